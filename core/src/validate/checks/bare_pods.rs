//! Pods that nothing would bring back after a drain.

use super::{Answer, Check, Need, Question, Weight, pdb_blocks};
use crate::apply::drain::classify;
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "BARE-PODS",
    number: 7,
    title: "a drain ends no pod that nothing brings back",
    why: "a pod without an owner is gone once it is evicted",
    weight: Weight::Gate,
    needs: &[Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let drained = match pdb_blocks::drained(question) {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "which pods a drain evicts", &why)],
        Fact::Known(drained) if drained.is_empty() => return vec![Answer::pass("no node is drained")],
        Fact::Known(drained) => drained,
    };
    let mut answers = Vec::new();
    for (node, pods) in drained {
        let refuse = classify(&pods).refuse;
        if !refuse.is_empty() {
            let answer = Answer::block(node, format!("{node} cannot be drained: {}", refuse.join("; ")))
                .fact(format!("kubectl get pods --all-namespaces --field-selector spec.nodeName={node}"))
                .remedy("delete them, or run them from a Deployment or Job; `drain: never` leaves them where they are");
            answers.push(answer);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, pod};
    use crate::inventory::{Inventory, Pod, PodPhase};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn with(pod: Pod) -> Inventory {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.workload.pods = Fact::Known(vec![pod]);
        inventory
    }

    #[test]
    fn a_bare_pod_blocks_a_drain_and_no_patch() {
        let bare = with(Pod { owner: None, ..pod("debug", "a1") });
        blocks(&Case::of(&bare).to("v1.36.4+k3s1").run(), "BARE-PODS", "shop/debug is a bare pod");
        passes(&Case::of(&bare).to("v1.35.8+k3s1").run(), "BARE-PODS");
        let finished = with(Pod { owner: None, phase: PodPhase::Succeeded, ..pod("debug", "a1") });
        passes(&Case::of(&finished).to("v1.36.4+k3s1").run(), "BARE-PODS");
    }

    #[test]
    fn pods_that_are_not_known_block_a_drain() {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.workload.pods = Fact::unknown("forbidden");
        unknown(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "BARE-PODS", "forbidden");
    }
}
