//! A restore that was rehearsed.

use super::{Answer, Check, Need, Question, Weight};

pub(super) const CHECK: Check = Check {
    code: "RESTORE-REHEARSAL",
    number: 2,
    title: "a restore was rehearsed",
    why: "backups are believed until the day they are needed: a token is missing, a file is empty, a step is forgotten",
    weight: Weight::Advice,
    needs: &[Need::Target],
    judge,
};

fn judge(_: &Question<'_>) -> Vec<Answer> {
    // Nothing records rehearsals yet, so none is known of any cluster.
    vec![
        Answer::warn("cluster", "no rehearsal of a restore is on record for this cluster")
            .remedy("restore a backup on a machine of its own (the page beside each backup tells how), then update"),
    ]
}

#[cfg(test)]
mod tests {
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, silent, warns};

    #[test]
    fn it_only_warns_and_only_before_an_update() {
        let inventory = ha("v1.36.3+k3s1");
        warns(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "RESTORE-REHEARSAL", "no rehearsal");
        silent(&Case::of(&inventory).run(), "RESTORE-REHEARSAL");
    }
}
