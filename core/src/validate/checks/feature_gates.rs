//! Feature gates that the target does not know, or does not let change.

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::{Argument, HostFacts, Node};
use crate::knowledge::gates::Gate;
use crate::version::Version;

pub(super) const CHECK: Check = Check {
    code: "FEATURE-GATES",
    number: 21,
    title: "the target knows every feature gate that is set",
    why: "an unknown feature gate, or one that is locked to another value, stops K3s at its start",
    weight: Weight::Gate,
    needs: &[Need::Target, Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    question.hosts().flat_map(|(node, host)| of_node(node, host, &hop.to, question)).collect()
}

fn of_node(node: &Node, host: &HostFacts, to: &Version, question: &Question<'_>) -> Vec<Answer> {
    let arguments = match &host.arguments {
        Fact::Unknown(why) => return vec![Answer::unknown(&node.name, "which feature gates it sets", why)],
        Fact::Known(arguments) => arguments,
    };
    let (mut answers, mut no_data) = (Vec::new(), Vec::new());
    for argument in &arguments.entries {
        for (gate, value) in gates(argument) {
            let wrong = match question.knowledge.gates().gate(to.minor(), gate) {
                Gate::Known(spec) if spec.locked && switch(value) != Some(spec.default) => {
                    Some(format!("it is locked to {} in {}", spec.default, to.minor()))
                }
                Gate::Known(_) => None,
                Gate::Removed { since } => Some(format!("it is gone since {since}")),
                Gate::NotYet { since } => Some(format!("it comes with {since}")),
                Gate::NeverKnown => Some("no minor has it: it may be misspelt".to_owned()),
                Gate::NoData => {
                    // Within a minor no gate goes away, and K3s runs with this one today.
                    if node.version.known().is_none_or(|v| v.minor() != to.minor()) {
                        no_data.push(format!("{gate} ({})", argument.place));
                    }
                    None
                }
            };
            if let Some(why) = wrong {
                answers.push(
                    Answer::block(
                        &node.name,
                        format!("{to} refuses `{gate}={value}` of {}: K3s would not start", node.name),
                    )
                    .fact(format!("on {}, {}: {} feature-gates", node.name, argument.place, argument.key))
                    .fact(why)
                    .remedy(format!("remove {gate} there, restart K3s on this node, then check again")),
                );
            }
        }
    }
    if !no_data.is_empty() {
        let what = format!("whether {to} knows the feature gates {}", listed(no_data));
        answers.push(
            Answer::unknown(&node.name, &what, "the data about releases does not reach there")
                .remedy("remove them, or look them up and waive this check for the time of the update"),
        );
    }
    answers
}

/// A switch as Go reads it.
fn switch(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// The gates that an argument to a component of Kubernetes sets, with their values.
fn gates(argument: &Argument) -> impl Iterator<Item = (&str, &str)> {
    let value =
        argument.value.as_deref().filter(|_| argument.key.starts_with("kube") && argument.key.ends_with("-arg"));
    let list = value.and_then(|v| v.trim_start_matches("--").strip_prefix("feature-gates="));
    list.into_iter().flat_map(|list| list.split(',')).filter_map(|one| {
        let (gate, value) = one.trim().split_once('=')?;
        // A gate may be said to be of one component: `kube:Gate=true`.
        Some((gate.rsplit(':').next().unwrap_or(gate), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{argument, ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn case(from: &str, key: &str, value: &str) -> Case {
        let mut inventory = ha(from);
        if let Fact::Known(arguments) = &mut host_mut(&mut inventory, "s2").arguments {
            arguments.entries.push(argument(key, value));
        }
        Case::of(&inventory)
    }

    #[test]
    fn gates_that_went_away_block() {
        let gone = case("v1.35.7+k3s1", "kube-apiserver-arg", "feature-gates=MemoryManager=true,AllAlpha=false");
        blocks(&gone.to("v1.36.4+k3s1").run(), "FEATURE-GATES", "`MemoryManager=true` of s2");
        let to_come = case("v1.33.10+k3s1", "kubelet-arg", "feature-gates=GangScheduling=true");
        blocks(&to_come.to("v1.34.10+k3s1").run(), "FEATURE-GATES", "GangScheduling");
        let misspelt = case("v1.35.7+k3s1", "kube-scheduler-arg", "feature-gates=gangScheduling=true");
        blocks(&misspelt.to("v1.36.4+k3s1").run(), "FEATURE-GATES", "gangScheduling");
    }

    #[test]
    fn a_locked_gate_may_only_be_set_to_its_value() {
        let off = case("v1.35.7+k3s1", "kubelet-arg", "feature-gates=SidecarContainers=false");
        blocks(&off.to("v1.36.4+k3s1").run(), "FEATURE-GATES", "`SidecarContainers=false`");
        for value in ["true", "True", "1"] {
            let on = case("v1.35.7+k3s1", "kubelet-arg", &format!("feature-gates=SidecarContainers={value}"));
            passes(&on.to("v1.36.4+k3s1").run(), "FEATURE-GATES");
        }
    }

    #[test]
    fn etcd_has_gates_of_its_own() {
        let etcd = case("v1.35.7+k3s1", "etcd-arg", "feature-gates=MemoryManager=true");
        passes(&etcd.to("v1.36.4+k3s1").run(), "FEATURE-GATES");
    }

    #[test]
    fn a_minor_without_data_blocks_the_way_to_it() {
        let case = case("v1.37.1+k3s1", "kubelet-arg", "feature-gates=AllAlpha=true");
        passes(&case.to("v1.37.2+k3s1").run(), "FEATURE-GATES");
        unknown(&case.to("v1.38.0+k3s1").run(), "FEATURE-GATES", "AllAlpha");
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s1").arguments = Fact::unknown("it did not arrive");
        unknown(
            &Case::of(&inventory).to_hop_of("v1.36.4+k3s1", &ha("v1.36.3+k3s1")).run(),
            "FEATURE-GATES",
            "did not arrive",
        );
    }
}
