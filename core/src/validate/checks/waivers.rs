//! Waivers and exclusions that do nothing.

use jiff::Timestamp;

use super::{Answer, Check, Question, Weight};
use crate::config::WaiverEntry;

pub(super) const CHECK: Check = Check {
    code: "WAIVERS",
    number: 46,
    title: "every waiver and every exclusion in kadence.yaml holds",
    why: "a waiver that does nothing looks as if something was agreed upon",
    weight: Weight::Advice,
    needs: &[],
    judge,
};

/// Why the waiver does not count, as the end of a sentence about it; `None` if it counts.
pub(super) fn fault(entry: &WaiverEntry, now: Timestamp) -> Option<String> {
    let code = &entry.check;
    match Check::of(code) {
        None => Some(format!("names {code}, which is no check")),
        Some(check) if check.weight == Weight::Invariant => {
            Some(format!("names {code}, which cannot be waived: every update rests on it"))
        }
        Some(check) if check.weight == Weight::Advice => Some(format!("names {code}, which never blocks")),
        Some(_) if entry.owner.trim().is_empty() || entry.reason.trim().is_empty() => {
            Some(format!("for {code} lacks an owner or a reason"))
        }
        Some(_) if entry.until <= now => Some(format!("for {code} ended at {}", entry.until)),
        Some(_) => None,
    }
}

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let waivers = question.cluster.waivers.iter().filter_map(|entry| {
        let fault = fault(entry, question.now)?;
        let answer = Answer::warn(&entry.check, format!("the waiver of {} {fault}", entry.owner))
            .fact("kadence.yaml: waivers")
            .remedy("remove it, or correct it: docs/checks.md lists the checks and which of them can be waived");
        Some(answer)
    });
    let exclusions = question.cluster.exclude.iter().filter_map(|entry| {
        let fault = entry.fault(question.now)?;
        let answer = Answer::warn(&entry.node, format!("the exclusion of {} {fault}", entry.owner))
            .fact("kadence.yaml: exclude")
            .remedy("remove it, so that the agent is updated with the others, or give it a new end");
        Some(answer)
    });
    waivers.chain(exclusions).collect()
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::config::ExcludeEntry;
    use crate::fact::Fact;
    use crate::inventory::Inventory;
    use crate::inventory::example::{ha, node_mut, now};
    use crate::validate::checks::tests::{Case, blocks, of, passes, warns};
    use crate::validate::finding::Verdict;

    fn entry(check: &str, hours: i64) -> WaiverEntry {
        WaiverEntry {
            check: check.to_owned(),
            about: None,
            owner: "ops".to_owned(),
            reason: "we know".to_owned(),
            until: now() + SignedDuration::from_hours(hours),
        }
    }

    fn not_ready() -> Inventory {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "s2").ready = Fact::Known(false);
        inventory
    }

    fn waived(entry: WaiverEntry) -> Case {
        let mut case = Case::of(&not_ready());
        case.cluster.waivers = vec![entry];
        case
    }

    #[test]
    fn a_waiver_that_holds_lets_the_finding_stand_and_not_block() {
        let findings = waived(entry("BASELINE", 1)).run();
        let found = of(&findings, "BASELINE");
        assert_eq!((found[0].verdict, found[0].blocks()), (Verdict::Block, false));
        assert_eq!(found[0].waived.as_ref().map(|w| w.owner.as_str()), Some("ops"));
        passes(&findings, "WAIVERS");
    }

    #[test]
    fn it_holds_for_its_subject_and_until_its_end_only() {
        let other = WaiverEntry { about: Some("s3".to_owned()), ..entry("BASELINE", 1) };
        blocks(&waived(other).run(), "BASELINE", "s2");
        let mine = WaiverEntry { about: Some("s2".to_owned()), ..entry("BASELINE", 1) };
        assert!(!of(&waived(mine).run(), "BASELINE")[0].blocks());
        let findings = waived(entry("BASELINE", 0)).run();
        blocks(&findings, "BASELINE", "s2");
        assert!(of(&findings, "BASELINE")[0].facts.iter().any(|f| f.contains("ended at 2026-11-24")), "it is said");
        warns(&findings, "WAIVERS", "ended at");
        blocks(&waived(WaiverEntry { reason: " ".to_owned(), ..entry("BASELINE", 1) }).run(), "BASELINE", "s2");
    }

    #[test]
    fn an_exclusion_that_has_ended_is_said() {
        let excluded = |hours| ExcludeEntry {
            node: "a1".into(),
            owner: "ops".to_owned(),
            reason: "its disk is being replaced".to_owned(),
            until: now() + SignedDuration::from_hours(hours),
        };
        let mut case = Case::of(&ha("v1.36.3+k3s1"));
        case.cluster.exclude = vec![excluded(1)];
        passes(&case.run(), "WAIVERS");
        assert_eq!(case.cluster.excluded(now()).count(), 1);
        case.cluster.exclude = vec![excluded(0), ExcludeEntry { reason: " ".to_owned(), ..excluded(1) }];
        warns(&case.run(), "WAIVERS", "the exclusion of ops for a1 ended at");
        warns(&case.run(), "WAIVERS", "the exclusion of ops for a1 lacks an owner or a reason");
        assert_eq!(case.cluster.excluded(now()).count(), 0);
    }

    #[test]
    fn an_invariant_cannot_be_waived_and_a_slip_of_the_pen_is_said() {
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.contradictions.push("s2 is another machine".to_owned());
        let mut case = Case::of(&inventory);
        case.cluster.waivers = vec![entry("CONTRADICTION", 1), entry("CORDON", 1)];
        let findings = case.run();
        blocks(&findings, "CONTRADICTION", "another machine");
        warns(&findings, "WAIVERS", "CONTRADICTION, which cannot be waived");
        assert_eq!(of(&findings, "WAIVERS").len(), 2);
    }
}
