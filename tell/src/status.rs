//! Where a rollout stands, and how it ended.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::plan::{Plan, Purpose};
use kadence_core::apply::rollout::{At, NodeProgress, Phase, Rollout};
use kadence_core::event::{Ending, HoldCause, OutageMeasured};
use kadence_core::ident::NodeName;
use kadence_core::inventory::{Cordon, Inventory};
use kadence_core::validate::finding::{Finding, Readiness, readiness};
use serde_json::{Value, json};

use crate::check::{about, blocking};
use crate::layout::{Page, bad, dim, good, strong, warn};
use crate::words::{age, bytes, count, duration, fact, names, purpose, time};
use crate::{Style, check};

/// How a rollout ended, or why it holds: the answer first, then why, then what to do.
pub fn ending(rollout: &Rollout, style: Style) -> String {
    let mut page = Page::new(style);
    match &rollout.ended {
        Some((ending, outage)) => ended(&mut page, rollout, ending, outage.as_ref()),
        None => going(&mut page, rollout, None),
    }
    page.finish()
}

/// Where a rollout stands now, or how the last one ended and when.
pub fn text(rollout: &Rollout, now: Timestamp, style: Style) -> String {
    let mut page = Page::new(style);
    match &rollout.ended {
        Some((ending, outage)) => {
            page.say(&dim(&format!(
                "Nothing is under way on {}. Its last {} ended {}:",
                rollout.plan.decision.cluster,
                purpose(&rollout.plan.decision),
                since(rollout.at, now),
            )));
            ended(&mut page, rollout, ending, outage.as_ref());
        }
        None => going(&mut page, rollout, Some(now)),
    }
    page.finish()
}

/// `2026-11-25 11:14:02 UTC (12 min ago)`.
fn since(at: Timestamp, now: Timestamp) -> String {
    format!("{} ({} ago)", time(at), age(now.duration_since(at)))
}

// ------------------------------------------------------------------------------------------------------ it goes on

fn going(page: &mut Page, rollout: &Rollout, now: Option<Timestamp>) {
    let cluster = &rollout.plan.decision.cluster;
    let what = purpose(&rollout.plan.decision);
    let when =
        |at: Timestamp| now.map_or_else(|| format!("since {}", time(at)), |now| format!("since {}", since(at, now)));
    match &rollout.hold {
        Some(hold) => {
            page.say(&strong(&format!("Held: {}.", hold.what.trim_end_matches('.'))));
            page.entry("  since     ", &when(rollout.at).replace("since ", ""));
            page.entry("  because   ", cause(hold.cause));
            page.entry("  do        ", &hold.next);
        }
        None => {
            page.say(&strong(&format!("The {what} of {cluster} is under way: {}.", phase(rollout))));
            if let Some(now) = now {
                page.entry("  last sign ", &since(rollout.at, now));
            }
        }
    }
    progress(page, rollout);
    mixed(page, rollout, now);
    in_hand(page, rollout);
    if rollout.asked.is_some() && rollout.hold.is_none() {
        page.entry("  asked     ", "to stop: no further node is begun");
    }
    page.gap();
    page.say(&match (&rollout.hold, rollout.versions.is_empty()) {
        (Some(_), true) => format!("Next: kadence resume {cluster}    or end it: kadence abort {cluster}"),
        (Some(_), false) => format!(
            "Next: kadence resume {cluster}    or end it: kadence abort {cluster}    or take it back: kadence rollback \
             {cluster}"
        ),
        (None, _) => {
            format!("Next: kadence pause {cluster}    If no Kadence works on it any more: kadence resume {cluster}")
        }
    });
}

fn cause(cause: HoldCause) -> &'static str {
    match cause {
        HoldCause::Paused => "a person asked for it",
        HoldCause::Changed => "somebody else changed what the plan rests on",
        HoldCause::ClusterNotHealthy => "the cluster is not healthy, not by Kadence's doing",
        HoldCause::Unknown => "a fact that a safe step needs could not be had; nothing is concluded from not knowing",
        HoldCause::BudgetBlocks => "a disruption budget did not let the pods go",
        HoldCause::NeedsConsent => "what is left needs a person's decision",
    }
}

fn phase(rollout: &Rollout) -> &'static str {
    match rollout.phase {
        Phase::Checking => "checking",
        Phase::Preparing => "staging and backing up",
        Phase::Rolling if rollout.trouble.is_some() => "taking back what failed",
        Phase::Rolling => "node by node",
        Phase::Restoring => "restoring",
        Phase::Validating => "comparing with the state before",
        Phase::ValidatingBack => "comparing with the state before, after the way back",
        Phase::Over => "ending",
    }
}

fn progress(page: &mut Page, rollout: &Rollout) {
    let decision = &rollout.plan.decision;
    let done = rollout.nodes.values().filter(|p| p.at == At::Done).count();
    let hops = decision.hops.len();
    let hop = if hops > 1 { format!("hop {} of {hops}, ", rollout.hop + 1) } else { String::new() };
    let nodes = if matches!(decision.purpose, Purpose::Restore { .. }) {
        format!("the versions of {} placed", count(rollout.versions.len(), "node"))
    } else {
        format!("{done} of {} done", count(rollout.nodes.len(), "node"))
    };
    page.entry(
        "  where     ",
        &format!(
            "{} to {}, {hop}{nodes}; plan {}, rollout {}",
            purpose(decision),
            decision.target,
            rollout.plan_hash.short(),
            rollout.id
        ),
    );
}

/// When the versions of the present hop began to differ: when the first of the nodes that have the new one was begun.
fn mixed_since(rollout: &Rollout) -> Option<Timestamp> {
    let changed = rollout.nodes.iter().filter(|(node, _)| rollout.versions.contains_key(*node));
    (rollout.mixed().len() > 1).then(|| changed.filter_map(|(_, p)| p.began).min().unwrap_or(rollout.started))
}

fn mixed(page: &mut Page, rollout: &Rollout, now: Option<Timestamp>) {
    page.entry("  versions  ", &versions(rollout));
    let Some(began) = mixed_since(rollout) else { return };
    let limit = rollout.plan.decision.manner.mixed_at_most;
    let Some(now) = now else {
        return page.entry("  mixed     ", &format!("since {}; at most {} is meant", time(began), duration(limit)));
    };
    let lasts = now.duration_since(began);
    let text = if lasts > limit {
        bad(&format!(
            "since {}: {} more than the {} that are meant",
            since(began, now),
            duration(lasts - limit),
            duration(limit)
        ))
    } else {
        format!("since {}; at most {} is meant", since(began, now), duration(limit))
    };
    page.entry("  mixed     ", &text);
}

/// Which versions run where, as far as the log knows.
pub(crate) fn versions(rollout: &Rollout) -> String {
    // A binary that is being replaced is one or the other: which one, only the node knows.
    let unsure: Vec<&NodeName> = rollout
        .nodes
        .iter()
        .filter(|(_, p)| rollout.ended.is_none() && matches!(p.at, At::Swapping | At::PuttingBack))
        .map(|(node, _)| node)
        .collect();
    let mut all: Vec<String> = rollout
        .mixed()
        .iter()
        .map(|(version, nodes)| {
            let sure = nodes.iter().filter(|n| !unsure.iter().any(|u| u.as_str() == *n)).map(String::as_str);
            (version, sure.collect::<Vec<_>>())
        })
        .filter(|(_, nodes)| !nodes.is_empty())
        .map(|(version, nodes)| format!("{version} on {}", nodes.join(", ")))
        .collect();
    all.extend(unsure.iter().map(|node| format!("one or the other on {node}")));
    all.join(" · ")
}

fn in_hand(page: &mut Page, rollout: &Rollout) {
    for (node, progress) in rollout.nodes.iter().filter(|(_, p)| p.at.in_hand() || p.at == At::Stuck) {
        let text = format!("{node}: {}{}", at(progress), cordoned(progress));
        page.entry("  in hand   ", &if progress.at == At::Stuck { bad(&text) } else { warn(&text) });
    }
}

fn at(progress: &NodeProgress) -> &'static str {
    match progress.at {
        At::Waiting => "waits",
        At::Looking => "is looked at",
        At::Cordoning => "is being cordoned",
        At::Draining => "is being drained",
        At::Swapping => "its binary is being replaced",
        At::Proving => "restarted, not yet proven healthy",
        At::Uncordoning => "proven healthy, its cordon is being lifted",
        At::Done => "done",
        At::GivingUp => "could not be drained, its cordon is being lifted",
        At::PuttingBack => "its previous binary is being put back",
        At::ProvingBack => "is back on its previous binary, not yet proven healthy",
        At::UncordoningBack => "is back and healthy, its cordon is being lifted",
        At::Back => "is back on its previous version",
        At::Stuck => "is neither here nor there",
    }
}

fn cordoned(progress: &NodeProgress) -> &'static str {
    let maybe = progress.at == At::Cordoning;
    match (&progress.cordon, maybe) {
        (Some(_), _) => " (with our cordon)",
        (None, true) => " (perhaps with our cordon)",
        (None, false) => "",
    }
}

// -------------------------------------------------------------------------------------------------------- it ended

fn ended(page: &mut Page, rollout: &Rollout, ending: &Ending, outage: Option<&OutageMeasured>) {
    let cluster = &rollout.plan.decision.cluster;
    let report = format!("Report: kadence report {cluster}");
    match ending {
        Ending::Completed => {
            completed(page, rollout);
            facts(page, rollout, outage);
            page.say(&report);
        }
        Ending::FailedAndBack { what, because, next } => {
            page.say(&strong(&format!("Stopped: {}.", what.trim_end_matches('.'))));
            page.say(&format!("{} {}", good(&format!("{cluster} is as it was:")), as_it_was(rollout)));
            page.say(&format!("Because: {because}"));
            page.say(&format!("Do: {next}"));
            facts(page, rollout, outage);
            page.say(&report);
        }
        Ending::Failed { what, because, next, .. } => {
            page.say(&strong(&format!("Failed, and a person is needed: {}.", what.trim_end_matches('.'))));
            page.say(&format!("Versions: {}", versions(rollout)));
            left(page, rollout);
            page.say(&format!("Because: {because}"));
            page.say(&format!("Do: {next}"));
            facts(page, rollout, outage);
            let back = matches!(rollout.plan.decision.purpose, Purpose::Update) && !rollout.versions.is_empty();
            page.say(&if back {
                format!("{report}    Take it back, told first what is lost: kadence rollback {cluster}")
            } else {
                report
            });
        }
        Ending::Refused { findings } => {
            page.say(&strong(&format!(
                "Refused: no service, cordon or binary of {cluster} was changed (staged files may remain)."
            )));
            blocking(page, findings);
            page.say(&format!("Next: do what stands above, then kadence check {cluster}"));
        }
        Ending::Aborted { mixed } => {
            let target = rollout.plan.decision.target.to_string();
            let there = mixed.get(&target).map(Vec::len).unwrap_or_default();
            let all: usize = mixed.values().map(Vec::len).sum();
            page.say(&strong(&format!("Ended, as asked: {there} of {} on {target}.", count(all, "node"))));
            page.say(&format!("Versions: {}", versions(rollout)));
            left(page, rollout);
            facts(page, rollout, outage);
            page.say(&if mixed.len() > 1 {
                format!("Next: kadence apply {cluster}    or take it back: kadence rollback {cluster}    {report}")
            } else {
                report
            });
        }
    }
}

fn completed(page: &mut Page, rollout: &Rollout) {
    let decision = &rollout.plan.decision;
    let cluster = &decision.cluster;
    let all = decision.preconditions.nodes.len();
    let there = rollout.mixed().get(&decision.target.to_string()).map(Vec::len).unwrap_or_default();
    let nodes = format!("{there} of {}", count(all, "node"));
    page.say(&strong(&match &decision.purpose {
        Purpose::Update => format!(
            "{cluster} is on {}: {nodes} there, each proven healthy, nothing worse than before, no cordon \
             of ours left.",
            decision.target
        ),
        Purpose::Rollback { .. } => format!(
            "{cluster} is back on {}: {nodes} there, each proven healthy, no cordon of ours left.",
            decision.target
        ),
        Purpose::Restore { backup, .. } => format!(
            "{cluster} is back on {} with the data of {}: what was written after that is lost.",
            decision.target,
            time(backup.taken)
        ),
    }));
    let other: Vec<String> = rollout
        .mixed()
        .iter()
        .filter(|(version, _)| **version != decision.target.to_string())
        .map(|(version, nodes)| format!("{version} on {}", nodes.join(", ")))
        .collect();
    if !other.is_empty() {
        page.entry("  as planned, still: ", &other.join(" · "));
    }
}

fn as_it_was(rollout: &Rollout) -> String {
    let before = &rollout.plan.decision.preconditions.nodes;
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for node in before.values() {
        *versions.entry(node.version.to_string()).or_default() += 1;
    }
    let all = before.len();
    let on: Vec<String> =
        versions.iter().map(|(version, n)| format!("{n} of {} on {version}", count(all, "node"))).collect();
    format!("{}, nothing worse than before, no cordon of ours left.", on.join(", "))
}

/// Nodes that a person has to look at.
fn left(page: &mut Page, rollout: &Rollout) {
    for (node, progress) in rollout.nodes.iter().filter(|(_, p)| p.at == At::Stuck || p.at.in_hand()) {
        let cordon = match &progress.cordon {
            Some(_) => format!("; it keeps our cordon: kubectl uncordon {node}, once it is well"),
            None => String::new(),
        };
        page.entry(&format!("  {} ", bad("✘")), &format!("{node} {}{cordon}", at(progress)));
    }
}

/// Figures that a reader asks for next, on one line.
fn facts(page: &mut Page, rollout: &Rollout, outage: Option<&OutageMeasured>) {
    let mut parts = vec![format!("took {}", duration(rollout.at.duration_since(rollout.started)))];
    if let Some(outage) = outage {
        parts.push(self::outage(outage));
    }
    if !rollout.backups.is_empty() {
        let size = rollout.backups.iter().map(|b| b.bytes).sum();
        parts.push(format!("{}, {}", count(rollout.backups.len(), "backup"), bytes(size)));
    }
    page.entry("  ", &dim(&parts.join(" · ")));
}

/// The measured outage in words.
fn outage(outage: &OutageMeasured) -> String {
    format!(
        "longest API gap: reads {}, writes {} ({} of {} probes failed)",
        duration(outage.reads.longest),
        duration(outage.writes.longest),
        outage.reads.failed + outage.writes.failed,
        outage.probes
    )
}

/// How it ended in one or two words.
pub(crate) fn verdict(rollout: &Rollout) -> &'static str {
    match &rollout.ended {
        Some((Ending::Completed, _)) => "completed",
        Some((Ending::FailedAndBack { .. }, _)) => "failed, all back",
        Some((Ending::Failed { .. }, _)) => "failed",
        Some((Ending::Refused { .. }, _)) => "refused",
        Some((Ending::Aborted { .. }, _)) => "aborted",
        None if rollout.hold.is_some() => "held",
        None => "under way",
    }
}

// --------------------------------------------------------------------------------------------------------- history

/// A cluster's rollouts, oldest first.
pub fn history(cluster: &str, rollouts: &[Rollout], style: Style) -> String {
    let mut page = Page::new(style);
    let Some(last) = rollouts.last() else {
        page.say(&format!("{cluster} had no rollout yet. Next: kadence check {cluster}"));
        return page.finish();
    };
    page.say(&strong(&format!("{cluster} had {}; the last one: {}.", count(rollouts.len(), "rollout"), verdict(last))));
    page.gap();
    let mut rows = vec![["", "started", "took", "what", "from", "to", "end", "rollout"].map(dim).to_vec()];
    rows.extend(rollouts.iter().map(|r| {
        let decision = &r.plan.decision;
        let steps = decision.hops.first().map(|h| h.steps.as_slice()).unwrap_or_default();
        let from: std::collections::BTreeSet<String> = steps.iter().map(|s| s.from.to_string()).collect();
        let mark = match &r.ended {
            Some((Ending::Completed, _)) => good("✔"),
            Some((Ending::Failed { .. }, _)) => bad("✘"),
            Some(_) => warn("!"),
            None => warn("…"),
        };
        vec![
            mark,
            time(r.started),
            duration(r.at.duration_since(r.started)),
            purpose(decision).to_owned(),
            from.into_iter().collect::<Vec<_>>().join(", "),
            decision.target.to_string(),
            verdict(r).to_owned(),
            r.id.to_string(),
        ]
    }));
    page.table(2, &rows);
    page.gap();
    page.say(&format!("Next: kadence report {cluster} --rollout {}", last.id));
    page.finish()
}

// ------------------------------------------------------------------------------------------------------------- why

/// What `why` answers from.
#[derive(Clone, Copy, Debug)]
pub struct Why<'a> {
    pub inventory: &'a Inventory,
    /// The rollout that has not ended.
    pub unfinished: Option<&'a Rollout>,
    /// The plan that would be made now, or why there is none.
    pub plan: Result<&'a Plan, &'a String>,
    pub findings: &'a [Finding],
}

/// Why this version, why not now, what is waited for, what is mixed and since when.
pub fn why(why: &Why<'_>, now: Timestamp, style: Style) -> String {
    let mut page = Page::new(style);
    let cluster = &why.inventory.cluster;
    if let Some(rollout) = why.unfinished {
        page.say(&strong(&format!(
            "{cluster} waits for its {} to {}, which has not ended.",
            purpose(&rollout.plan.decision),
            rollout.plan.decision.target
        )));
        page.gap();
        going(&mut page, rollout, Some(now));
        page.gap();
        why_version(&mut page, &rollout.plan);
        return page.finish();
    }
    let blocks: Vec<&Finding> = why.findings.iter().filter(|f| f.blocks()).collect();
    let runs = runs(why.inventory);
    match why.plan {
        Err(error) => {
            page.say(&strong(&format!("{cluster} stays on {runs}: there is no plan.")));
            page.entry("  because   ", error);
        }
        Ok(plan) if plan.decision.hops.is_empty() => {
            page.say(&strong(&format!("{cluster} stays on {runs}: there is nothing to do.")));
            why_version(&mut page, plan);
        }
        Ok(plan) if blocks.is_empty() => {
            page.say(&strong(&format!("{cluster} can go from {runs} to {} now.", plan.decision.target)));
            why_version(&mut page, plan);
            page.entry("  blocked?  ", &not_blocked(why.findings));
            page.entry("  waits for ", "a person: kadence apply");
        }
        Ok(plan) => {
            page.say(&strong(&format!(
                "{cluster} stays on {runs}: {} for {}.",
                match readiness(why.findings) {
                    Readiness::CannotDetermine => "it is not known whether it is ready",
                    _ => "it is not ready",
                },
                plan.decision.target
            )));
            why_version(&mut page, plan);
        }
    }
    for finding in &blocks {
        page.entry("  blocked   ", &format!("{} {}  {}", check::mark(finding), finding.code, about(finding)));
        page.entry("            do  ", &finding.remedy);
    }
    cordons(&mut page, why.inventory);
    page.gap();
    page.say(&match why.plan {
        Ok(plan) if blocks.is_empty() && !plan.decision.hops.is_empty() => {
            format!("Next: kadence plan {cluster} --to {}", plan.decision.target)
        }
        _ => format!("Next: kadence check {cluster}"),
    });
    page.finish()
}

fn not_blocked(findings: &[Finding]) -> String {
    let others = findings.iter().filter(|f| f.verdict != kadence_core::validate::finding::Verdict::Pass).count();
    if others == 0 { "no".to_owned() } else { format!("no; {} in kadence check", count(others, "remark")) }
}

fn why_version(page: &mut Page, plan: &Plan) {
    for (i, because) in plan.seen.because.iter().enumerate() {
        page.entry(if i == 0 { "  version   " } else { "            " }, because);
    }
}

/// What runs now, by the inventory: one version, or each with its nodes.
fn runs(inventory: &Inventory) -> String {
    let mut versions: BTreeMap<String, Vec<&NodeName>> = BTreeMap::new();
    for node in &inventory.nodes {
        versions.entry(fact(&node.version)).or_default().push(&node.name);
    }
    match versions.len() {
        0 => "what it is on".to_owned(),
        1 => versions.into_keys().next().unwrap_or_default(),
        _ => versions.into_iter().map(|(v, n)| format!("{v} ({})", names(n))).collect::<Vec<_>>().join(" and "),
    }
}

fn cordons(page: &mut Page, inventory: &Inventory) {
    for node in &inventory.nodes {
        if let Cordon::Ours { mark } = node.cordon() {
            page.entry(
                "  cordon    ",
                &warn(&format!(
                    "{} has our cordon, of rollout {}: kadence resume {} --adopt lifts it",
                    node.name, mark.rollout, inventory.cluster
                )),
            );
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ JSON

/// A rollout as one document, schema 1. Durations and times are ISO 8601.
///
/// `rollout`, `cluster`, `plan` (hash), `purpose`, `target`, `started`; `at` and `number` of the last event; `phase`,
/// `hop` (from 1), `hops`; `ended`, `outage` once it ended; `hold`, `held_since` while it stands still; `versions` by
/// version, `mixed_since` and `mixed_at_most` if there are several; `in_hand` with the node's place and whether it has
/// our cordon; `backups` by name.
pub fn json(rollout: &Rollout) -> Value {
    let decision = &rollout.plan.decision;
    let in_hand: Vec<Value> = rollout
        .nodes
        .iter()
        .filter(|(_, p)| p.at.in_hand() || p.at == At::Stuck)
        .map(|(node, p)| json!({ "node": node, "at": at(p), "stuck": p.at == At::Stuck, "cordon": p.cordon }))
        .collect();
    let mixed_since = mixed_since(rollout);
    let at_most: Option<SignedDuration> = mixed_since.map(|_| decision.manner.mixed_at_most);
    let standing = rollout.ended.is_none().then_some(rollout.hold.as_ref()).flatten();
    json!({
        "schema": 1,
        "rollout": rollout.id,
        "cluster": decision.cluster,
        "plan": rollout.plan_hash,
        "purpose": decision.purpose,
        "target": decision.target,
        "started": rollout.started,
        "at": rollout.at,
        "number": rollout.number,
        "phase": phase(rollout),
        "hop": rollout.hop + 1,
        "hops": decision.hops.len(),
        "ended": rollout.ended.as_ref().map(|(ending, _)| ending),
        "outage": rollout.outage,
        "hold": standing,
        "held_since": standing.map(|_| rollout.at),
        "versions": rollout.mixed(),
        "mixed_since": mixed_since,
        "mixed_at_most": at_most,
        "in_hand": in_hand,
        "backups": rollout.backups.iter().map(|b| &b.backup.name).collect::<Vec<_>>(),
    })
}

/// Rollouts as one document, schema 1: the last of each cluster (`status`), or all of one (`history`).
pub fn rollouts_json(rollouts: &[Rollout]) -> Value {
    json!({ "schema": 1, "rollouts": rollouts.iter().map(json).collect::<Vec<_>>() })
}

/// The same as [`why`] as one document, schema 1.
pub fn why_json(why: &Why<'_>) -> Value {
    json!({
        "schema": 1,
        "cluster": why.inventory.cluster,
        "unfinished": why.unfinished.map(json),
        "target": why.plan.ok().map(|p| &p.decision.target),
        "because": why.plan.ok().map(|p| &p.seen.because),
        "no_plan": why.plan.err(),
        "readiness": readiness(why.findings),
        "findings": why.findings,
    })
}
