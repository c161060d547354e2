//! Hosts that can be reached.

use super::{Answer, CHECKS, Check, Need, Question, Weight, listed};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "HOST",
    number: 42,
    title: "every node can be reached over SSH, and is the node that it should be",
    why: "nothing can be put on a node that cannot be reached, nor taken back from it",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for node in question.scope() {
        let Fact::Unknown(why) = &node.host else { continue };
        let not_judged = CHECKS.iter().filter(|c| c.needs.contains(&Need::Hosts) && c.number < 41).map(|c| c.code);
        answers.push(
            Answer::block(&node.name, format!("{} cannot be looked at over SSH: {why}", node.name))
                .fact(format!("ssh to {}", node.address))
                .fact(format!("not judged for it: {}", listed(not_judged)))
                .remedy(
                    "make it reachable as kadence.yaml says (ssh); an agent can be left out of the update (--exclude)",
                ),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, node_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, silent};

    #[test]
    fn a_host_that_cannot_be_reached_blocks_once_and_nothing_about_it_passes() {
        let mut inventory = ha("v1.36.3+k3s1");
        let case = Case::of(&inventory).to("v1.36.4+k3s1");
        passes(&case.run(), "HOST");
        node_mut(&mut inventory, "a1").host = Fact::unknown("10.0.0.21: no route to host");
        let findings = case.seeing(&inventory).run();
        blocks(&findings, "HOST", "no route to host");
        for code in ["DISK", "CLOCK", "CERTIFICATES", "CGROUP", "ARGUMENTS", "INSTALLATION"] {
            silent(&findings, code);
        }
        let without = case.seeing(&inventory).change(|hop| hop.steps.retain(|s| s.node.as_str() != "a1"));
        passes(&without.run(), "HOST");
        passes(&without.run(), "DISK");
    }
}
