//! Another Kadence at work.

use super::{Answer, Check, Question, Weight};
use crate::fact::Fact;
use crate::ident::RolloutId;

pub(super) const CHECK: Check = Check {
    code: "LEASE",
    number: 26,
    title: "no other Kadence is at work on this cluster",
    why: "at most one rollout acts on a cluster; who goes on all the same takes the other's turn away in the middle",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let held = match &question.inventory.surroundings.lease {
        // On the way back the API itself may be what is to be cured.
        Fact::Unknown(why) if question.goes_back => {
            return vec![Answer::unsure("cluster", format!("whether another Kadence is at work is not known: {why}"))];
        }
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "whether another Kadence is at work", why)],
        Fact::Known(None) => return Vec::new(),
        Fact::Known(Some(held)) => held,
    };
    let family = |id: &str| RolloutId::new(id).family().to_owned();
    let ours = question.rollout.map(RolloutId::family);
    if ours.is_some() && ours == held.rollout.as_deref().map(family).as_deref() {
        return Vec::new();
    }
    let rollout = held.rollout.as_deref().unwrap_or("without a name");
    let fact = format!("kubectl get lease --namespace kube-system kadence: {}, renewed {}", held.holder, held.renewed);
    vec![if held.is_at_work(question.now) {
        Answer::block("cluster", format!("{} is at work on this cluster with the rollout {rollout}", held.holder))
            .fact(fact)
            .remedy("wait until it is done, or pause it there; it counts as left 3 minutes after its last sign of life")
    } else {
        Answer::warn("cluster", format!("{} left the rollout {rollout} unfinished", held.holder))
            .fact(fact)
            .remedy("go on with it there, or take it over: kadence resume --adopt")
    }]
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::config::WaiverEntry;
    use crate::inventory::LeaseHolder;
    use crate::inventory::example::{ha, now};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn held(minutes: i64) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.surroundings.lease = Fact::Known(Some(LeaseHolder {
            holder: "kadence@ops2".to_owned(),
            renewed: now() - SignedDuration::from_mins(minutes),
            rollout: Some("r7".to_owned()),
            plan: None,
        }));
        Case::of(&inventory)
    }

    #[test]
    fn another_rollout_blocks_and_our_own_does_not() {
        blocks(&held(1).run(), "LEASE", "kadence@ops2 is at work");
        passes(&held(1).by("r7").run(), "LEASE");
        passes(&held(1).by("r7.2").run(), "LEASE");
        blocks(&held(1).by("r8").run(), "LEASE", "the rollout r7");
    }

    #[test]
    fn no_waiver_lifts_it_while_the_other_is_at_work() {
        let mut case = held(2);
        case.cluster.waivers = vec![WaiverEntry {
            check: "LEASE".to_owned(),
            about: None,
            owner: "eva".to_owned(),
            reason: "it is mine".to_owned(),
            until: now() + SignedDuration::from_hours(1),
        }];
        blocks(&case.run(), "LEASE", "kadence@ops2 is at work");
    }

    #[test]
    fn one_that_was_left_behind_warns() {
        warns(&held(3).run(), "LEASE", "left the rollout r7 unfinished");
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.surroundings.lease = Fact::unknown("forbidden");
        unknown(&Case::of(&inventory).run(), "LEASE", "forbidden");
    }
}
