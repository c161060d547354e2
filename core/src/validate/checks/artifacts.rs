//! The binaries that the plan puts on the nodes.

use std::collections::BTreeSet;

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "ARTIFACTS",
    number: 18,
    title: "the release has a binary with a published digest for every node",
    why: "what arrives on a node is run as root; it is run only if its digest is the published one",
    weight: Weight::Invariant,
    needs: &[Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    let source = &question.catalog.source;
    let Some(release) = question.catalog.releases.get(&hop.to) else {
        let answer = Answer::block("cluster", format!("{source} has no release {}", hop.to));
        let said = question.catalog.unreadable.iter().filter(|u| u.contains(&hop.to.to_string()));
        return vec![
            said.fold(answer, |answer, said| answer.fact(said.clone()))
                .remedy("choose a release it has; one that was there when the plan was made may have been withdrawn"),
        ];
    };
    let mut answers = Vec::new();
    let mut asked = BTreeSet::new();
    for step in &hop.steps {
        let arch = match question.inventory.node(&step.node).map(|n| &n.arch) {
            Some(Fact::Known(arch)) => *arch,
            Some(Fact::Unknown(why)) => {
                answers.push(Answer::unknown(&step.node, "its architecture", why));
                continue;
            }
            None => continue,
        };
        if !asked.insert(arch) {
            continue;
        }
        match (release.binaries.get(&arch), hop.artifacts.get(&arch)) {
            (None, _) => answers.push(
                Answer::block(&step.node, format!("{} has no binary with a published digest for {arch}", hop.to))
                    .fact(format!("{source}: {} of {} has no line for {}", arch.sums(), hop.to, arch.binary()))
                    .remedy("choose a release that has one for every architecture of the cluster"),
            ),
            (Some(published), Some(planned)) if published != planned => answers.push(
                Answer::block(&step.node, format!("{} for {arch} was published anew since the plan was made", hop.to))
                    .fact(format!("{source}: sha256 {} now", published.short(12)))
                    .fact(format!("the plan: sha256 {}", planned.short(12)))
                    .remedy("find out why a release changed; then make the plan again"),
            ),
            (Some(_), Some(_)) => {}
            (Some(_), None) => answers.push(
                Answer::block(&step.node, format!("the plan has no binary for {arch}"))
                    .fact(format!("{} is {arch}", step.node))
                    .remedy("make the plan again"),
            ),
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::ident::Digest;
    use crate::inventory::Arch;
    use crate::inventory::example::{ha, node_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, silent, unknown};

    #[test]
    fn a_release_must_be_there_and_be_what_was_planned() {
        let inventory = ha("v1.36.3+k3s1");
        let mut case = Case::of(&inventory).to("v1.36.4+k3s1");
        passes(&case.run(), "ARTIFACTS");
        let version = "v1.36.4+k3s1".parse().expect("a version");
        if let Some(release) = case.catalog.releases.get_mut(&version) {
            release.binaries.insert(Arch::Amd64, Digest::of(b"another"));
        }
        blocks(&case.run(), "ARTIFACTS", "published anew");
        case.catalog.releases.remove(&version);
        blocks(&case.run(), "ARTIFACTS", "has no release v1.36.4+k3s1");
        silent(&Case::of(&inventory).run(), "ARTIFACTS");
    }

    #[test]
    fn every_architecture_needs_its_binary() {
        let mut inventory = ha("v1.36.3+k3s1");
        let case = Case::of(&inventory).to("v1.36.4+k3s1");
        node_mut(&mut inventory, "a1").arch = Fact::Known(Arch::Arm);
        blocks(&case.seeing(&inventory).run(), "ARTIFACTS", "for arm");
        node_mut(&mut inventory, "a1").arch = Fact::unknown("no K3s release is for riscv64");
        unknown(&case.seeing(&inventory).run(), "ARTIFACTS", "riscv64");
    }
}
