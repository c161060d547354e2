//! Facts without which nothing can be compared afterwards, and which no other check is about.

use super::{Answer, Check, Question, Weight};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "FACTS",
    number: 45,
    title: "all is known that the cluster is compared by afterwards",
    why: "done is said only of what was proven healthy; what was not seen before cannot be compared with what is after",
    weight: Weight::Gate,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let inventory = question.inventory;
    let mut answers = Vec::new();
    if inventory.nodes.is_empty() {
        let listed = inventory.unknown.iter().find(|u| u.fact == "nodes");
        let why = listed.map_or("the API lists none", |u| u.why.as_str());
        answers.push(Answer::unknown("cluster", "which nodes there are", why));
    }
    fn missing<T>(what: &str, fact: &Fact<T>) -> Option<Answer> {
        fact.why().map(|why| Answer::unknown("cluster", what, why))
    }
    let (workload, around) = (&inventory.workload, &inventory.surroundings);
    answers.extend(
        [
            missing("the cluster's uid", &inventory.uid),
            missing("which workloads there are", &workload.controllers),
            missing("which pods there are", &workload.pods),
            missing("which services have endpoints", &workload.services),
            missing("which packaged components there are", &around.packaged),
            missing("which Helm releases there are", &around.helm_releases),
        ]
        .into_iter()
        .flatten(),
    );
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, passes, unknown};

    #[test]
    fn what_cannot_be_compared_later_blocks_now() {
        let mut inventory = ha("v1.36.3+k3s1");
        passes(&Case::of(&inventory).run(), "FACTS");
        inventory.surroundings.helm_releases = Fact::unknown("secrets is forbidden");
        unknown(&Case::of(&inventory).run(), "FACTS", "which Helm releases there are");
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.nodes.clear();
        unknown(&Case::of(&inventory).run(), "FACTS", "which nodes there are");
    }
}
