//! Hosts with cgroup v1.

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;
use crate::inventory::{Cgroup, HostFacts};
use crate::version::Minor;

pub(super) const CHECK: Check = Check {
    code: "CGROUP",
    number: 20,
    title: "no node has a cgroup version that the target refuses",
    why: "from v1.35 on the kubelet does not start on a host with cgroup v1",
    weight: Weight::Gate,
    needs: &[Need::Target, Need::Hosts],
    judge,
};

const REFUSES_V1: Minor = Minor { major: 1, minor: 35 };

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up().filter(|hop| hop.to.minor() >= REFUSES_V1) else { return Vec::new() };
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        match &host.cgroup {
            Fact::Known(Cgroup::V2) => {}
            Fact::Unknown(why) => answers.push(Answer::unknown(&node.name, "its cgroup version", why)),
            Fact::Known(Cgroup::V1) => {
                let fact = format!("on {}, /sys/fs/cgroup/cgroup.controllers does not exist", node.name);
                answers.push(match tolerates(host) {
                    Fact::Known(Some(place)) => {
                        let what = format!("{} has cgroup v1, which {} runs on only as long as it is told to", node.name, hop.to);
                        Answer::warn(&node.name, what)
                            .fact(fact)
                            .fact(format!("{place}: kubelet-arg fail-cgroupv1=false"))
                            .remedy("move the host to cgroup v2: the kubelet will lose this setting")
                    }
                    Fact::Known(None) => {
                        let what = format!("{} has cgroup v1, and the kubelet of {} does not start on it", node.name, hop.to);
                        Answer::block(&node.name, what)
                            .fact(fact)
                            .remedy("boot the host with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or for a time set `kubelet-arg: fail-cgroupv1=false`")
                    }
                    Fact::Unknown(why) => Answer::unknown(&node.name, "whether its kubelet is told to run on cgroup v1", &why),
                });
            }
        }
    }
    answers
}

/// Where the kubelet is told to run on cgroup v1 all the same.
fn tolerates(host: &HostFacts) -> Fact<Option<&str>> {
    host.arguments.as_ref().map(|arguments| {
        let told = |a: &&crate::inventory::Argument| {
            let value = a.value.as_deref().map(|v| v.trim_start_matches('-'));
            a.key == "kubelet-arg" && value == Some("fail-cgroupv1=false")
        };
        arguments.entries.iter().find(told).map(|a| a.place.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{argument, ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    #[test]
    fn cgroup_v1_blocks_from_v1_35_on() {
        let mut inventory = ha("v1.34.10+k3s1");
        host_mut(&mut inventory, "a1").cgroup = Fact::Known(Cgroup::V1);
        passes(&Case::of(&inventory).to("v1.34.11+k3s1").run(), "CGROUP");
        blocks(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "CGROUP", "a1 has cgroup v1");
        let Fact::Known(arguments) = &mut host_mut(&mut inventory, "a1").arguments else { return };
        arguments.entries.push(argument("kubelet-arg", "fail-cgroupv1=true"));
        blocks(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "CGROUP", "a1 has cgroup v1");
        let Fact::Known(arguments) = &mut host_mut(&mut inventory, "a1").arguments else { return };
        arguments.entries.push(argument("kubelet-arg", "fail-cgroupv1=false"));
        warns(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "CGROUP", "only as long as it is told to");
    }

    #[test]
    fn a_version_that_is_not_known_blocks() {
        let mut inventory = ha("v1.34.10+k3s1");
        host_mut(&mut inventory, "s2").cgroup = Fact::unknown("the host did not tell its cgroup");
        unknown(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "CGROUP", "did not tell");
    }
}
