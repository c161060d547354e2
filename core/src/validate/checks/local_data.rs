//! What pods lose, or cannot do meanwhile, when their node is drained.

use super::{Answer, Check, Need, Question, Weight, pdb_blocks};
use crate::apply::drain::classify;
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "LOCAL-DATA",
    number: 35,
    title: "a drain costs no pod its data or its place",
    why: "an emptyDir is gone with its pod, and a pod that is bound to a node is away until the node takes pods again",
    weight: Weight::Advice,
    needs: &[Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let drained = match pdb_blocks::drained(question) {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "what a drain costs", &why)],
        Fact::Known(drained) if drained.is_empty() => return vec![Answer::pass("no node is drained")],
        Fact::Known(drained) => drained,
    };
    let mut answers = Vec::new();
    for (node, pods) in drained {
        let losses = classify(&pods).losses;
        if !losses.is_empty() {
            let pods = if losses.len() == 1 { "one pod".to_owned() } else { format!("pods in {} ways", losses.len()) };
            let answer = Answer::warn(node, format!("draining {node} touches {pods}: {}", losses.join("; ")))
                .fact(format!("kubectl get pods --all-namespaces --field-selector spec.nodeName={node} --output yaml"))
                .remedy("nothing, if that is meant; else move the data, or set `drain: never` and accept that containers may restart");
            answers.push(answer);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, pod};
    use crate::inventory::{Inventory, Pod};
    use crate::validate::checks::tests::{Case, passes, unsure, warns};

    fn with(pod: Pod) -> Inventory {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.workload.pods = Fact::Known(vec![pod]);
        inventory
    }

    #[test]
    fn what_is_lost_is_named_where_a_node_is_drained() {
        let ledger = with(Pod { node_bound_claims: vec!["data".to_owned()], ..pod("ledger-0", "a1") });
        warns(&Case::of(&ledger).to("v1.36.4+k3s1").run(), "LOCAL-DATA", "its claim data is bound to this node");
        passes(&Case::of(&ledger).to("v1.35.8+k3s1").run(), "LOCAL-DATA");
        let daemon =
            with(Pod { owner: Some("DaemonSet".to_owned()), empty_dirs: vec!["tmp".to_owned()], ..pod("log-1", "a1") });
        passes(&Case::of(&daemon).to("v1.36.4+k3s1").run(), "LOCAL-DATA");
    }

    #[test]
    fn pods_that_are_not_known_do_not_block_here() {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.workload.pods = Fact::unknown("forbidden");
        unsure(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "LOCAL-DATA", "forbidden");
    }
}
