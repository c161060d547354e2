//! K3s as its installer leaves it.

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;
use crate::inventory::{Install, Node};

pub(super) const CHECK: Check = Check {
    code: "INSTALLATION",
    number: 43,
    title: "K3s is a systemd unit on every node, with its binary where the installer puts it",
    why: "Kadence replaces the binary that the unit starts and restarts that unit; what is installed differently it would \
          not update, or break",
    weight: Weight::Invariant,
    needs: &[Need::Hosts],
    judge,
};

/// Where K3s's installer puts the binary; the second where `/usr/local/bin` cannot be written.
const BINARIES: [&str; 2] = ["/usr/local/bin/k3s", "/opt/bin/k3s"];

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        let name = &node.name;
        match &host.install {
            // The host was asked and K3s was not found there as it should be: that is an answer, and not a missing one.
            Fact::Unknown(why) => answers.push(
                Answer::block(name, format!("K3s on {name} is not installed as Kadence knows it: {why}"))
                    .fact(format!("on {name}, systemctl list-unit-files 'k3s*'"))
                    .remedy("install it with K3s's own installer (https://get.k3s.io), or update this node by hand and leave it out"),
            ),
            Fact::Known(install) => answers.extend(differs(node, install)),
        }
    }
    answers
}

fn differs(node: &Node, install: &Install) -> Vec<Answer> {
    let name = &node.name;
    let fact = format!("on {name}, systemctl cat {}: ExecStart={} {}", install.unit.name, install.binary, install.role);
    let mut answers = Vec::new();
    if install.role != node.role {
        answers.push(
            Answer::block(
                name,
                format!("{name} is {} in the cluster, and its unit starts K3s as {}", a(node.role), a(install.role)),
            )
            .fact(fact.clone())
            .remedy("find out which of the two is meant, and disable the unit of the other role"),
        );
    }
    if !BINARIES.contains(&install.binary.as_str()) {
        answers.push(
            Answer::block(
                name,
                format!("K3s on {name} starts from {}, where its installer does not put it", install.binary),
            )
            .fact(fact)
            .remedy(format!(
                "install it anew with K3s's installer, so that {} starts {}",
                install.unit.name, BINARIES[0]
            )),
        );
    }
    if !install.unit.enabled {
        answers.push(
            Answer::warn(name, format!("the unit {} on {name} is not enabled", install.unit.name))
                .fact(format!("on {name}, systemctl is-enabled {}", install.unit.name))
                .remedy(format!("systemctl enable {}: else K3s stays away after the next reboot", install.unit.name)),
        );
    }
    answers
}

fn a(role: crate::inventory::Role) -> String {
    use crate::inventory::Role;
    match role {
        Role::Server => "a server".to_owned(),
        Role::Agent => "an agent".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Role;
    use crate::inventory::example::{ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, warns};

    fn with(change: impl Fn(&mut Install)) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        if let Fact::Known(install) = &mut host_mut(&mut inventory, "a1").install {
            change(install);
        }
        Case::of(&inventory)
    }

    #[test]
    fn k3s_that_is_installed_differently_blocks_and_says_what_to_do() {
        blocks(&with(|i| i.binary = "/usr/bin/k3s".to_owned()).run(), "INSTALLATION", "starts from /usr/bin/k3s");
        passes(&with(|i| i.binary = "/opt/bin/k3s".to_owned()).run(), "INSTALLATION");
        blocks(&with(|i| i.role = Role::Server).run(), "INSTALLATION", "an agent in the cluster");
        warns(&with(|i| i.unit.enabled = false).run(), "INSTALLATION", "is not enabled");
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "a1").install = Fact::unknown("no systemd unit k3s*.service starts `k3s agent`");
        blocks(&Case::of(&inventory).run(), "INSTALLATION", "no systemd unit");
    }
}
