//! Disruption budgets that keep a node from being drained.

use std::collections::BTreeMap;

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::apply::drain::classify;
use crate::apply::plan::Drain;
use crate::fact::Fact;
use crate::inventory::Pod;

pub(super) const CHECK: Check = Check {
    code: "PDB-BLOCKS",
    number: 7,
    title: "no disruption budget stands against a drain",
    why: "a budget is the workload owner's word: Kadence does not evict against it, so the drain would wait until its \
          time is up, and the node with it",
    weight: Weight::Gate,
    needs: &[Need::Target],
    judge,
};

/// The pods that stand on each node that is drained, or why they are not known.
pub(super) fn drained<'a>(question: &Question<'a>) -> Fact<Vec<(&'a crate::ident::NodeName, Vec<Pod>)>> {
    let steps = question.up().into_iter().flat_map(|hop| &hop.steps).filter(|s| s.drain == Drain::Evict);
    let nodes: Vec<_> = steps.map(|s| &s.node).collect();
    if nodes.is_empty() {
        return Fact::Known(Vec::new());
    }
    question.inventory.workload.pods.as_ref().map(|pods| {
        let on = |name| pods.iter().filter(|p| p.node.as_ref() == Some(name)).cloned().collect();
        nodes.into_iter().map(|name| (name, on(name))).collect()
    })
}

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let drained = match drained(question) {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "which pods a drain evicts", &why)],
        Fact::Known(drained) if drained.is_empty() => return vec![Answer::pass("no node is drained")],
        Fact::Known(drained) => drained,
    };
    let budgets = match &question.inventory.workload.budgets {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "which disruption budgets there are", why)],
        Fact::Known(budgets) => budgets,
    };
    let mut answers = Vec::new();
    let mut against: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (node, pods) in &drained {
        for pod in classify(pods).evict {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let mine: Vec<_> = budgets.iter().filter(|b| b.pods.contains(&name)).collect();
            if mine.len() > 1 {
                let names = listed(mine.iter().map(|b| format!("{}/{}", b.namespace, b.name)));
                answers.push(
                    Answer::block(&name, format!("{name} on {node} has more than one disruption budget: {names}"))
                        .fact(format!(
                            "kubectl get pdb --namespace {}: the selectors of {names} match it",
                            pod.namespace
                        ))
                        .remedy("leave it one budget: the Eviction API refuses a pod that has several"),
                );
            }
            for budget in mine.iter().filter(|b| b.disruptions_allowed == 0 && b.expected_pods > 0) {
                against
                    .entry(format!("{}/{}", budget.namespace, budget.name))
                    .or_default()
                    .push(format!("{name} on {node}"));
            }
        }
    }
    answers.extend(against.into_iter().map(|(budget, pods)| {
        Answer::block(&budget, format!("the budget {budget} allows no disruption now, and {} must be evicted", listed(pods)))
            .fact(format!("kubectl get pdb --namespace {}: ALLOWED DISRUPTIONS 0", budget.split('/').next().unwrap_or_default()))
            .remedy("add a replica, wait until all of its pods are ready, or ask its owner to loosen it; `drain: never` leaves the pods where they are")
    }));
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, pod};
    use crate::inventory::{Budget, Inventory};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn tight() -> Inventory {
        let mut inventory = ha("v1.35.7+k3s1");
        let Fact::Known(budgets) = &mut inventory.workload.budgets else { return inventory };
        budgets[0].disruptions_allowed = 0;
        inventory
    }

    #[test]
    fn a_budget_without_room_blocks_a_drain_and_no_patch() {
        let inventory = tight();
        blocks(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "PDB-BLOCKS", "shop/web-6d5f-2 on a1");
        passes(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "PDB-BLOCKS");
        passes(&Case::of(&ha("v1.35.7+k3s1")).to("v1.36.4+k3s1").run(), "PDB-BLOCKS");
    }

    #[test]
    fn a_budget_over_no_pods_or_over_daemons_is_no_matter() {
        let mut inventory = tight();
        let Fact::Known(budgets) = &mut inventory.workload.budgets else { return };
        budgets[0].expected_pods = 0;
        passes(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "PDB-BLOCKS");
        let mut inventory = tight();
        let Fact::Known(pods) = &mut inventory.workload.pods else { return };
        for pod in pods {
            pod.owner = Some("DaemonSet".to_owned());
        }
        passes(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "PDB-BLOCKS");
    }

    #[test]
    fn two_budgets_over_one_pod_block() {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.workload.pods = Fact::Known(vec![pod("web-1", "a1")]);
        let budget = |name: &str| Budget {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            disruptions_allowed: 1,
            expected_pods: 1,
            pods: vec!["shop/web-1".to_owned()],
        };
        inventory.workload.budgets = Fact::Known(vec![budget("a"), budget("b")]);
        blocks(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "PDB-BLOCKS", "more than one disruption budget");
    }

    #[test]
    fn budgets_that_are_not_known_block_a_drain_only() {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.workload.budgets = Fact::unknown("forbidden");
        unknown(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "PDB-BLOCKS", "forbidden");
        passes(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "PDB-BLOCKS");
    }
}
