//! The unit of the other role, enabled beside the right one.

use super::{Answer, Check, Need, Question, Weight};
use crate::inventory::Role;

pub(super) const CHECK: Check = Check {
    code: "OTHER-UNIT",
    number: 44,
    title: "no node has the units of both roles enabled",
    why: "at the next reboot both would start: an agent that also starts as a server is another cluster of its own",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        // An installation that is not known is INSTALLATION's to say, which blocks.
        let Some(install) = host.install.known().filter(|i| i.other_unit_enabled) else { continue };
        let other = match install.role {
            Role::Server => Role::Agent,
            Role::Agent => Role::Server,
        };
        answers.push(
            Answer::block(
                &node.name,
                format!("on {} the unit of the other role, {}, is enabled too", node.name, other.unit()),
            )
            .fact(format!("on {}, systemctl is-enabled {} {}", node.name, install.unit.name, other.unit()))
            .remedy(format!(
                "systemctl disable {} on {}, without --now if it does not run",
                other.unit(),
                node.name
            )),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes};

    #[test]
    fn both_units_enabled_block() {
        let mut inventory = ha("v1.36.3+k3s1");
        passes(&Case::of(&inventory).run(), "OTHER-UNIT");
        if let Fact::Known(install) = &mut host_mut(&mut inventory, "a1").install {
            install.other_unit_enabled = true;
        }
        blocks(&Case::of(&inventory).run(), "OTHER-UNIT", "on a1 the unit of the other role, k3s,");
    }
}
