//! The three versions of a node: what it says, what is installed, what runs.

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "VERSION-TRUTH",
    number: 9,
    title: "every node runs the version that is installed on it",
    why: "where another binary is installed than runs, the next restart changes the version by itself, perhaps at night \
          and perhaps below what the datastore was written by",
    weight: Weight::Invariant,
    needs: &[Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        // Without an installation that is known there is nothing to compare, and INSTALLATION blocks.
        let Fact::Known(install) = &host.install else { continue };
        match (&node.version, &install.version) {
            (Fact::Known(runs), Fact::Known(installed)) if runs == installed => {}
            (Fact::Known(runs), Fact::Known(installed)) => answers.push(
                Answer::block(&node.name, format!("{} runs {runs}, and {installed} is installed on it", node.name))
                    .fact(format!("kubectl get node {}: {runs}", node.name))
                    .fact(format!("on {}, {} --version: {installed}", node.name, install.binary))
                    .remedy(format!(
                        "put {runs} back, or restart {} on {installed} if that is what you want",
                        install.unit.name
                    )),
            ),
            (Fact::Unknown(why), _) => answers.push(Answer::unknown(&node.name, "the version that runs", why)),
            (_, Fact::Unknown(why)) => answers.push(Answer::unknown(&node.name, "the version that is installed", why)),
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::Install;
    use crate::inventory::example::{ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};
    use crate::version::Version;

    fn installed(version: Fact<Version>) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        let host = host_mut(&mut inventory, "s2");
        host.install = host.install.clone().map(|install| Install { version, ..install });
        Case::of(&inventory)
    }

    #[test]
    fn another_installed_version_blocks() {
        blocks(&installed(Fact::Known(Version::new(1, 36, 3, 2))).run(), "VERSION-TRUTH", "v1.36.3+k3s2 is installed");
        passes(&installed(Fact::Known(Version::new(1, 36, 3, 1))).run(), "VERSION-TRUTH");
        unknown(&installed(Fact::unknown("`k3s --version` did not tell")).run(), "VERSION-TRUTH", "did not tell");
    }
}
