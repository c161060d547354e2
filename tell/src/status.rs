//! Where a rollout stands, and how it ended.

use jiff::Timestamp;
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::Ending;
use serde_json::{Value, json};

use crate::Style;

/// How a rollout ended, or why it holds: the answer first, then why, then what to do.
pub fn ending(rollout: &Rollout, _style: Style) -> String {
    let cluster = &rollout.plan.decision.cluster;
    match (&rollout.ended, &rollout.hold) {
        (Some((Ending::Completed, _)), _) => {
            format!("{cluster} is on {}: every node proven healthy.\n", rollout.plan.decision.target)
        }
        (Some((Ending::FailedAndBack { what, because, next }, _)), _) => {
            format!("Stopped: {what}.\n{cluster} is as it was.\nBecause: {because}\nDo: {next}\n")
        }
        (Some((Ending::Failed { what, because, next, mixed }, _)), _) => {
            format!("Failed: {what}.\nBecause: {because}\nVersions: {mixed:?}\nDo: {next}\n")
        }
        (Some((Ending::Refused { findings }, _)), _) => {
            let all: Vec<String> =
                findings.iter().filter(|f| f.blocks()).map(|f| format!("  {}: {}", f.about, f.what)).collect();
            format!("Refused; nothing was changed.\n{}\n", all.join("\n"))
        }
        (Some((Ending::Aborted { mixed }, _)), _) => format!("Aborted. Versions: {mixed:?}\n"),
        (None, Some(hold)) => format!("Held: {}.\nDo: {}\n", hold.what, hold.next),
        (None, None) => format!("{} goes on.\n", rollout.id),
    }
}

/// A rollout as one document.
pub fn json(rollout: &Rollout) -> Value {
    json!({
        "schema": 1,
        "rollout": rollout.id,
        "cluster": rollout.plan.decision.cluster,
        "plan": rollout.plan_hash,
        "target": rollout.plan.decision.target,
        "started": rollout.started,
        "ended": rollout.ended.as_ref().map(|(ending, _)| ending),
        "outage": rollout.ended.as_ref().and_then(|(_, outage)| *outage),
        "hold": rollout.hold,
        "versions": rollout.mixed(),
    })
}

/// Where a rollout stands now.
pub fn text(rollout: &Rollout, _now: Timestamp, style: Style) -> String {
    ending(rollout, style)
}

/// A cluster's rollouts, oldest first.
pub fn history(cluster: &str, rollouts: &[Rollout], _style: Style) -> String {
    if rollouts.is_empty() {
        return format!("{cluster} had no rollout yet.\n");
    }
    let mut text = String::new();
    for rollout in rollouts {
        text.push_str(&format!("{}  {}  {}\n", rollout.started, rollout.id, rollout.plan.decision.target));
    }
    text
}

/// What `why` answers from.
#[derive(Clone, Copy, Debug)]
pub struct Why<'a> {
    pub inventory: &'a kadence_core::inventory::Inventory,
    /// The rollout that has not ended.
    pub unfinished: Option<&'a Rollout>,
    /// The plan that would be made now, or why there is none.
    pub plan: Result<&'a kadence_core::apply::plan::Plan, &'a String>,
    pub findings: &'a [kadence_core::validate::finding::Finding],
}

/// Why this version, why not now, what is waited for, what is mixed and since when.
pub fn why(why: &Why<'_>, now: Timestamp, style: Style) -> String {
    match why.unfinished {
        Some(rollout) => text(rollout, now, style),
        None => match why.plan {
            Ok(plan) => plan.seen.because.join("\n") + "\n",
            Err(error) => format!("No plan: {error}\n"),
        },
    }
}

/// The same as one document.
pub fn why_json(why: &Why<'_>) -> Value {
    json!({
        "schema": 1,
        "cluster": why.inventory.cluster,
        "unfinished": why.unfinished.map(json),
        "target": why.plan.ok().map(|p| &p.decision.target),
        "because": why.plan.ok().map(|p| &p.seen.because),
        "no_plan": why.plan.err(),
        "findings": why.findings,
    })
}
