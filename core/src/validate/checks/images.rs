//! The images that come with a release.

use super::{Answer, Check, Need, Question, Weight};

pub(super) const CHECK: Check = Check {
    code: "IMAGES",
    number: 18,
    title: "the release's images are there for every node",
    why: "CoreDNS, Traefik and the other packaged components are pulled anew after an update; where they cannot be, they \
          stay away",
    weight: Weight::Advice,
    needs: &[Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    if question.cluster.update.airgap_images {
        return vec![Answer::pass("the release's images are sent to every node before it is touched")];
    }
    vec![
        Answer::unsure(
            "cluster",
            format!(
                "whether the nodes' registry has the images of {}, and whether the channel names it, was not asked",
                hop.to
            ),
        )
        .fact("kadence.yaml: `update.airgap_images` is not set")
        .remedy(
            "try one: on a node, `k3s crictl pull` an image of the release's k3s-images.txt; or set `airgap_images`",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, passes, silent, unsure};

    #[test]
    fn a_registry_that_was_not_asked_is_not_taken_for_reachable() {
        let inventory = ha("v1.36.3+k3s1");
        let mut case = Case::of(&inventory).to("v1.36.4+k3s1");
        unsure(&case.run(), "IMAGES", "was not asked");
        case.cluster.update.airgap_images = true;
        passes(&case.run(), "IMAGES");
        silent(&Case::of(&inventory).run(), "IMAGES");
    }
}
