//! A release, and no candidate for one.

use super::{Answer, Check, Need, Question, Weight};

pub(super) const CHECK: Check = Check {
    code: "PRE-RELEASE",
    number: 18,
    title: "the target is a release and no candidate for one",
    why: "a pre-release is made to be tested; nobody supports it, and the way from it to the release is not tried",
    weight: Weight::Gate,
    needs: &[Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    let release = question.catalog.releases.get(&hop.to);
    if !release.map_or(hop.to.is_prerelease(), crate::track::catalog::Release::is_prerelease) {
        return Vec::new();
    }
    vec![
        Answer::block("cluster", format!("{} is a pre-release", hop.to))
            .fact(format!("{}: pre-release", question.catalog.source))
            .remedy("choose a release; to test this one, waive this check for a time"),
    ]
}

#[cfg(test)]
mod tests {
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, blocks, passes, silent};

    #[test]
    fn the_sources_word_counts_as_much_as_the_versions() {
        let inventory = ha("v1.36.3+k3s1");
        blocks(&Case::of(&inventory).to("v1.36.4-rc1+k3s1").run(), "PRE-RELEASE", "v1.36.4-rc1+k3s1 is a pre-release");
        let mut case = Case::of(&inventory).to("v1.36.4+k3s1");
        passes(&case.run(), "PRE-RELEASE");
        for release in case.catalog.releases.values_mut() {
            release.prerelease = true;
        }
        blocks(&case.run(), "PRE-RELEASE", "v1.36.4+k3s1 is a pre-release");
        silent(&Case::of(&inventory).run(), "PRE-RELEASE");
    }
}
