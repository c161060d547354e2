//! What happens, line by line, while a rollout runs.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::action::{Action, BackupReceipt, CordonWas, Failure, Outcome, Proof, Report};
use kadence_core::apply::plan::{BackupMethod, Plan};
use kadence_core::apply::rollout::{At, Rollout};
use kadence_core::event::{Event, Recorded, Request};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, NodeName};
use kadence_core::validate::baseline::Regression;
use kadence_core::validate::finding::{Finding, Verdict};
use kadence_core::version::Version;

use crate::Style;
use crate::check::about;
use crate::layout::{bad, columns, dim, finish, good, pad, strong, warn};
use crate::words::{bytes, count, duration, names, took};

/// Where the times stand.
const TIMES: usize = 76;
/// Reasons of one failed comparison that are shown; the rest is in the report.
const SHOWN: usize = 5;

/// A fold of events into the lines that a person sees: one when a node is cordoned, one when it is done, and each step
/// by itself once something went wrong.
///
/// It may begin in the middle of a log, as after `resume`: see [`take_up`](Self::take_up).
#[derive(Debug, Default)]
pub struct Lines {
    colour: bool,
    /// Columns that the longest name of a node takes.
    name: usize,
    open: BTreeMap<ActionId, (Action, Timestamp)>,
    staged: Staged,
    nodes: BTreeMap<NodeName, InHand>,
}

/// Copies to the nodes, which run side by side.
#[derive(Debug, Default)]
struct Staged {
    began: Option<Timestamp>,
    done: usize,
    already: usize,
    failed: usize,
}

/// What was done with a node since it was cordoned.
#[derive(Debug, Default)]
struct InHand {
    began: Option<Timestamp>,
    version: Option<Version>,
    back: bool,
    failed: bool,
    proof: Option<Proof>,
}

impl Lines {
    pub fn new(style: Style) -> Self {
        Self { colour: style.colour, ..Self::default() }
    }

    /// What is known of a rollout that is taken up in the middle, so that its nodes are named as before.
    pub fn take_up(&mut self, rollout: &Rollout) {
        self.see(&rollout.plan);
        for (id, action) in rollout.open() {
            if matches!(action, Action::Stage { .. }) {
                self.staged.began.get_or_insert(rollout.at);
            }
            self.open.insert(id.clone(), (action.clone(), rollout.at));
        }
        for (node, progress) in rollout.nodes.iter().filter(|(_, p)| p.at.in_hand()) {
            let in_hand = InHand {
                began: progress.began,
                version: rollout.versions.get(node).cloned(),
                back: rollout.plan.decision.goes_back()
                    || matches!(progress.at, At::PuttingBack | At::ProvingBack | At::UncordoningBack),
                failed: progress.failure.is_some(),
                proof: progress.proof.clone(),
            };
            self.nodes.insert(node.clone(), in_hand);
        }
    }

    fn see(&mut self, plan: &Plan) {
        self.name = plan.nodes().iter().map(|n| n.as_str().chars().count()).max().unwrap_or_default();
    }

    /// The line for an event, or several with line breaks between them; `None` if it is not worth one.
    pub fn event(&mut self, recorded: &Recorded) -> Option<String> {
        let text = match &recorded.event {
            Event::Started { plan, .. } => {
                self.see(plan);
                None
            }
            Event::Intent { id, action } => {
                if matches!(action, Action::Stage { .. }) {
                    self.staged.began.get_or_insert(recorded.at);
                }
                self.open.insert(id.clone(), (action.clone(), recorded.at));
                None
            }
            Event::Outcome { id, outcome, .. } => {
                let open = self.open.get(id).cloned();
                if !matches!(**outcome, Outcome::Unknown { .. }) {
                    self.open.remove(id);
                }
                self.outcome(open, outcome, recorded.at)
            }
            Event::Asked { request: Request::Pause } => Some("· asked to pause: no further node is begun".to_owned()),
            Event::Asked { request: Request::Abort } => {
                Some("· asked to abort: it ends after the node in hand".to_owned())
            }
            Event::DeclaredOff { nodes } => Some(format!("· declared powered off by a person: {}", names(nodes))),
            // The ending and the hold are told as a whole, by `status::ending`.
            Event::TurnTaken { .. } | Event::Held { .. } | Event::Resumed | Event::Ended { .. } => None,
        };
        text.map(|text| finish(self.colour, &text))
    }

    fn outcome(&mut self, open: Option<(Action, Timestamp)>, outcome: &Outcome, at: Timestamp) -> Option<String> {
        let Some((action, began)) = open else { return Some(before(outcome)) };
        match outcome {
            Outcome::Done { took: time, report } => self.done(&action, began, *time, report, at),
            Outcome::Failed { failure, .. } => Some(self.failed(&action, failure, at)),
            Outcome::Unknown { why } => Some(format!("{} {}: {why}", warn("?"), action.words())),
        }
    }

    fn done(
        &mut self,
        action: &Action,
        began: Timestamp,
        time: SignedDuration,
        report: &Report,
        at: Timestamp,
    ) -> Option<String> {
        match (action, report) {
            (Action::Check { .. }, Report::Checked { findings, .. }) => Some(checked(findings, time)),
            (Action::Stage { .. }, report) => {
                self.staged.done += 1;
                if let Report::Staged { already_there: true, .. } = report {
                    self.staged.already += 1;
                }
                self.staging_over(at)
            }
            (Action::Backup { method, .. }, Report::BackedUp { backup }) => Some(backed_up(method, backup, time)),
            (Action::Look { .. }, _) => None,
            (Action::Cordon { node }, Report::Cordoned { was: CordonWas::Foreign }) => {
                Some(format!("{} {node} was cordoned by somebody else in this moment", warn("!")))
            }
            (Action::Cordon { node }, _) => {
                self.nodes.insert(node.clone(), InHand { began: Some(began), ..InHand::default() });
                Some(format!("{} cordon {node}", good("✔")))
            }
            (Action::Drain { node }, Report::Drained { evicted, left }) => {
                let stay = if left.is_empty() { String::new() } else { format!(", {} on it", stay(left.len())) };
                Some(row(&format!("{} drain {node}: {} moved{stay}", good("✔"), count(evicted.len(), "pod")), time))
            }
            (Action::Swap { node, swap }, _) => {
                let in_hand = self.in_hand(node, began);
                in_hand.version = Some(swap.to.clone());
                in_hand.back = swap.back;
                in_hand.failed.then(|| row(&format!("{} put {node} back on {}", good("✔"), swap.to), time))
            }
            (Action::Prove { node, version, .. }, Report::Proven { proof }) if self.nodes.contains_key(node) => {
                let in_hand = self.in_hand(node, began);
                in_hand.proof = Some(proof.clone());
                in_hand.version = Some(version.clone());
                None
            }
            (Action::Uncordon { node }, _) => Some(self.node_done(node, at)),
            (Action::Validate { .. }, Report::Validated { findings, regressions }) => {
                Some(validated(findings, regressions, time))
            }
            // Nothing worse between two nodes is what is expected: the next node's line says it went on.
            (Action::Compare { .. }, Report::Compared { regressions }) if regressions.is_empty() => None,
            (Action::Compare { .. }, Report::Compared { regressions }) => Some(validated(&[], regressions, time)),
            _ => Some(row(&format!("{} {}", good("✔"), action.words()), time)),
        }
    }

    fn in_hand(&mut self, node: &NodeName, began: Timestamp) -> &mut InHand {
        self.nodes.entry(node.clone()).or_insert_with(|| InHand { began: Some(began), ..InHand::default() })
    }

    /// A node's line begins with its mark and its name.
    fn node(&self, mark: &str, node: &NodeName, text: &str) -> String {
        format!("{mark} {} {text}", pad(&strong(node.as_str()), self.name.max(4)))
    }

    fn node_done(&mut self, node: &NodeName, at: Timestamp) -> String {
        let lifted = format!("{} uncordon {node}", good("✔"));
        let Some(in_hand) = self.nodes.remove(node) else { return lifted };
        let Some(proof) = &in_hand.proof else { return lifted };
        let mut parts = Vec::new();
        if let Some(version) = in_hand.version.filter(|_| in_hand.back) {
            parts.push(format!("back on {version}"));
        }
        parts.push(format!("restarted {}", took(proof.healthy_after)));
        parts.push("ready".to_owned());
        match &proof.etcd {
            Fact::Known(Some(etcd)) => parts.push(format!("etcd {}", etcd.split(',').next().unwrap_or(etcd))),
            Fact::Known(None) => {}
            Fact::Unknown(why) => parts.push(warn(&format!("etcd not known: {why}"))),
        }
        if !proof.held.is_zero() {
            parts.push(format!("held {}", duration(proof.held)));
        }
        let line = self.node(&good("✔"), node, &parts.join(" · "));
        let line = in_hand.began.map_or(line.clone(), |began| row(&line, at.duration_since(began)));
        // Once it failed each step is watched closely.
        if in_hand.failed { format!("{lifted}\n{line}") } else { line }
    }

    fn failed(&mut self, action: &Action, failure: &Failure, at: Timestamp) -> String {
        let line = match action.node() {
            Some(node) => {
                let what = failure.what.strip_prefix(node.as_str()).map_or(failure.what.as_str(), |rest| {
                    rest.strip_prefix(": ").or_else(|| rest.strip_prefix(' ')).unwrap_or(&failure.what)
                });
                self.node(&bad("✘"), node, what)
            }
            None => format!("{} {}: {}", bad("✘"), action.words(), failure.what),
        };
        let cause = failure.cause.as_ref().map(|cause| {
            let indent = " ".repeat(self.name.max(4) + 3);
            format!("\n{indent}journal: \"{}\" (class: {})", cause.line, cause.class)
        });
        let mut text = format!("{line}{}", cause.unwrap_or_default());
        match action {
            Action::Stage { .. } => {
                self.staged.failed += 1;
                if let Some(over) = self.staging_over(at) {
                    text = format!("{text}\n{over}");
                }
            }
            Action::Swap { node, .. } | Action::Prove { node, .. } | Action::Drain { node } => {
                let in_hand = self.in_hand(node, at);
                in_hand.failed = true;
                in_hand.proof = None;
            }
            _ => {}
        }
        text
    }

    /// The line about the copies, once none is under way any more.
    fn staging_over(&mut self, at: Timestamp) -> Option<String> {
        if self.open.values().any(|(action, _)| matches!(action, Action::Stage { .. })) {
            return None;
        }
        let staged = std::mem::take(&mut self.staged);
        if staged.done == 0 {
            return None;
        }
        let all = staged.done + staged.failed;
        let nodes = if staged.failed > 0 { format!("{} of {all} nodes", staged.done) } else { count(all, "node") };
        let already = match staged.already {
            0 => String::new(),
            n if n == staged.done => " (it was there already)".to_owned(),
            n => format!(" ({n} had it already)"),
        };
        let line = format!("{} staged on {nodes}{already}, digests agree", good("✔"));
        Some(staged.began.map_or(line.clone(), |began| row(&line, at.duration_since(began))))
    }
}

/// A line with its time at the end.
fn row(line: &str, time: SignedDuration) -> String {
    let time = took(time);
    let width = TIMES.max(columns(line)) + 2;
    format!("{}{}", pad(line, width), dim(&format!("{time:>9}")))
}

fn stay(n: usize) -> String {
    if n == 1 { "1 stays".to_owned() } else { format!("{n} stay") }
}

/// The outcome of an action that was begun before these lines: which one it was, only its report says.
fn before(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { took: time, report } => {
            let what = match report {
                Report::Plain => "done",
                Report::Checked { .. } => "checked",
                Report::Staged { .. } => "staged",
                Report::BackedUp { .. } => "backed up, read back, copied here",
                Report::Looked { .. } => "looked at again",
                Report::Cordoned { .. } => "cordoned",
                Report::Drained { .. } => "drained",
                Report::Swapped { .. } => "binary replaced",
                Report::Proven { .. } => "proven healthy",
                Report::Validated { .. } | Report::Compared { .. } => "compared with the state before",
                Report::Reset { .. } => "datastore restored",
            };
            row(&format!("{} what was begun before: {what}", good("✔")), *time)
        }
        Outcome::Failed { failure, .. } => format!("{} what was begun before: {}", bad("✘"), failure.what),
        Outcome::Unknown { why } => format!("{} what was begun before: {why}", warn("?")),
    }
}

fn checked(findings: &[Finding], time: SignedDuration) -> String {
    let blocks: Vec<&Finding> = findings.iter().filter(|f| f.blocks()).collect();
    if blocks.is_empty() {
        let of = |verdict: Verdict| findings.iter().filter(|f| f.verdict == verdict).count();
        let mut parts = vec![format!("{} passed", of(Verdict::Pass))];
        if of(Verdict::Warn) > 0 {
            parts.push(count(of(Verdict::Warn), "warning"));
        }
        if of(Verdict::Unknown) > 0 {
            parts.push(format!("{} unknown", of(Verdict::Unknown)));
        }
        return row(&format!("{} the plan still holds; checks: {}", good("✔"), parts.join(", ")), time);
    }
    let mut lines = vec![row(&format!("{} the checks say no", bad("✘")), time)];
    lines.extend(blocks.iter().take(SHOWN).map(|f| format!("    {}  {}", f.code, about(f))));
    lines.join("\n")
}

fn backed_up(method: &BackupMethod, backup: &BackupReceipt, time: SignedDuration) -> String {
    let size = bytes(backup.bytes);
    let what = match method {
        BackupMethod::EtcdSnapshot { server } => {
            format!("snapshot of etcd on {server}, {size}, read back, copied here")
        }
        BackupMethod::SqliteOnline { server, .. } => {
            format!("copy of SQLite on {server}, {size}, checked, brought here")
        }
        BackupMethod::SqliteStopped { server } => {
            format!("K3s on {server} stopped for a copy of SQLite, {size}, brought here")
        }
        BackupMethod::Command { .. } => format!("backup by your command, {size}, kept here"),
    };
    let mut lines = vec![row(&format!("{} {what}", good("✔")), time)];
    lines.extend(backup.caveats.iter().map(|caveat| format!("  {} {caveat}", warn("!"))));
    lines.join("\n")
}

fn validated(findings: &[Finding], regressions: &[Regression], time: SignedDuration) -> String {
    let blocks: Vec<String> = findings.iter().filter(|f| f.blocks()).map(about).collect();
    let worse: Vec<String> = blocks
        .into_iter()
        .chain(regressions.iter().map(|r| format!("{}: {}, was {}", r.about, r.now, r.before)))
        .collect();
    if worse.is_empty() {
        return row(&format!("{} compared with the state before: nothing is worse", good("✔")), time);
    }
    let is = if worse.len() == 1 { "1 thing is worse".to_owned() } else { format!("{} things are worse", worse.len()) };
    let mut lines = vec![row(&format!("{} compared with the state before: {is}", bad("✘")), time)];
    lines.extend(worse.iter().take(SHOWN).map(|what| format!("    {what}")));
    if worse.len() > SHOWN {
        lines.push(format!("    and {} more, all in the report", worse.len() - SHOWN));
    }
    lines.join("\n")
}
