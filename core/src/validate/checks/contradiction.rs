//! Sources that do not agree about what the cluster is.

use super::{Answer, Check, Question, Weight};

pub(super) const CHECK: Check = Check {
    code: "CONTRADICTION",
    number: 41,
    title: "the API, etcd, the hosts and kadence.yaml speak of the same cluster",
    why: "who does not know which servers there are cannot know how many may be down, nor what an SSH login changes",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let contradictions = question.inventory.contradictions.iter();
    contradictions
        .map(|what| {
            Answer::block("cluster", what.clone())
                .fact(format!("kadence inspect {}: contradictions", question.inventory.cluster))
                .remedy("find out which of the two is right, and correct the other")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, blocks, passes};

    #[test]
    fn each_contradiction_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        passes(&Case::of(&inventory).run(), "CONTRADICTION");
        inventory.contradictions.push("s2: SSH reaches another machine than this Node".to_owned());
        blocks(&Case::of(&inventory).run(), "CONTRADICTION", "SSH reaches another machine");
    }
}
