//! From events to what a report says.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::action::{Action, BackupReceipt, Failure, Outcome, Proof, Report as Brought};
use kadence_core::apply::plan::{Plan, PlanHash, Purpose};
use kadence_core::apply::rollout::{At, Rollout};
use kadence_core::event::{Consent, Ending, Event, OutageMeasured, Recorded, Request};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, ClusterName, NodeName, RolloutId};
use kadence_core::inventory::Role;
use kadence_core::validate::baseline::Regression;
use kadence_core::validate::finding::Finding;
use kadence_core::version::Version;
use serde::Serialize;

use crate::layout::{bad, good, warn};
use crate::words::{bytes, count, duration, names};

/// Everything a report says. Its JSON is documented at [`crate::report::json`].
#[derive(Serialize)]
pub(super) struct Report<'a> {
    schema: u32,
    pub(super) cluster: &'a ClusterName,
    rollout: &'a RolloutId,
    purpose: &'a Purpose,
    target: &'a Version,
    pub(super) verdict: Verdict<'a>,
    pub(super) started: Timestamp,
    pub(super) ended: Option<Timestamp>,
    /// Until now, as far as the log goes, if it has not ended.
    pub(super) took: SignedDuration,
    pub(super) by: BTreeSet<String>,
    pub(super) kadence: BTreeSet<String>,
    pub(super) consent: &'a Consent,
    pub(super) plan: PlanPart<'a>,
    pub(super) nodes: Vec<NodePart<'a>>,
    pub(super) timeline: Vec<Entry<'a>>,
    pub(super) moments: Vec<Moment>,
    pub(super) checks: Vec<Checked<'a>>,
    pub(super) outage: Option<OutageMeasured>,
    pub(super) backups: &'a [BackupReceipt],
    events: &'a [Recorded],
    #[serde(skip)]
    read: &'a Rollout,
}

#[derive(Serialize)]
pub(super) struct Verdict<'a> {
    pub(super) kind: &'static str,
    pub(super) what: Option<&'a str>,
    pub(super) because: Option<&'a str>,
    pub(super) next: Option<&'a str>,
    /// What refused it.
    pub(super) findings: &'a [Finding],
}

#[derive(Serialize)]
pub(super) struct PlanPart<'a> {
    pub(super) hash: PlanHash,
    pub(super) plan: &'a Plan,
}

#[derive(Serialize)]
pub(super) struct NodePart<'a> {
    pub(super) name: &'a NodeName,
    pub(super) role: Role,
    pub(super) before: &'a Version,
    pub(super) after: Fact<Version>,
    pub(super) proof: Option<&'a Proof>,
    pub(super) failure: Option<&'a Failure>,
    /// Whether it still has our cordon.
    pub(super) our_cordon: bool,
}

impl NodePart<'_> {
    pub(super) fn mark(&self) -> String {
        match (&self.failure, &self.after) {
            (_, Fact::Unknown(_)) => warn("?"),
            (Some(_), Fact::Known(after)) if after == self.before => warn("!"),
            (Some(_), _) => bad("✘"),
            (None, _) if self.our_cordon => warn("!"),
            (None, _) => good("✔"),
        }
    }
}

/// An action from its intent to its outcome.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    pub(super) id: &'a ActionId,
    /// The action's kind.
    #[serde(rename = "do")]
    pub(super) kind: &'static str,
    pub(super) nodes: Vec<&'a NodeName>,
    pub(super) words: String,
    pub(super) start: Timestamp,
    pub(super) end: Option<Timestamp>,
    pub(super) result: Result,
    pub(super) took: Option<SignedDuration>,
    pub(super) detail: String,
    /// Whether a binary is put back.
    #[serde(skip)]
    pub(super) back: bool,
    /// How long it had to stay healthy at the end.
    #[serde(skip)]
    pub(super) held: Option<SignedDuration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Result {
    Done,
    Failed,
    /// Tried, and nobody could tell what came of it.
    Unknown,
    /// Its outcome is not in the log.
    Open,
}

impl Result {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "not known",
            Self::Open => "open",
        }
    }
}

/// Something that is no action.
#[derive(Serialize)]
pub(super) struct Moment {
    pub(super) at: Timestamp,
    pub(super) kind: &'static str,
    pub(super) what: String,
    pub(super) by: String,
}

#[derive(Serialize)]
pub(super) struct Checked<'a> {
    pub(super) when: String,
    pub(super) at: Timestamp,
    pub(super) findings: &'a [Finding],
    pub(super) regressions: &'a [Regression],
}

impl<'a> Report<'a> {
    pub(super) const SCHEMA: u32 = 1;

    /// The report of a log and of the rollout that was read from it.
    pub(super) fn of(events: &'a [Recorded], rollout: &'a Rollout) -> Self {
        let decision = &rollout.plan.decision;
        Self {
            schema: Self::SCHEMA,
            cluster: &decision.cluster,
            rollout: &rollout.id,
            purpose: &decision.purpose,
            target: &decision.target,
            verdict: verdict(rollout),
            started: rollout.started,
            ended: rollout.ended.as_ref().map(|_| rollout.at),
            took: rollout.at.duration_since(rollout.started),
            by: events.iter().map(|e| e.actor.clone()).collect(),
            kadence: events.iter().map(|e| e.kadence.clone()).collect(),
            consent: &rollout.consent,
            plan: PlanPart { hash: rollout.plan_hash, plan: &rollout.plan },
            nodes: nodes(events, rollout),
            timeline: timeline(events),
            moments: events.iter().filter_map(moment).collect(),
            checks: checks(events),
            outage: rollout.outage,
            backups: &rollout.backups,
            events,
            read: rollout,
        }
    }

    pub(super) fn rollout(&self) -> &Rollout {
        self.read
    }

    /// The last time that the log knows of.
    pub(super) fn until(&self) -> Timestamp {
        self.read.at
    }
}

fn verdict(rollout: &Rollout) -> Verdict<'_> {
    let none = Verdict { kind: "under-way", what: None, because: None, next: None, findings: &[] };
    match &rollout.ended {
        Some((Ending::Completed, _)) => Verdict { kind: "completed", ..none },
        Some((Ending::FailedAndBack { what, because, next }, _)) => {
            Verdict { kind: "failed-and-back", what: Some(what), because: Some(because), next: Some(next), ..none }
        }
        Some((Ending::Failed { what, because, next, .. }, _)) => {
            Verdict { kind: "failed", what: Some(what), because: Some(because), next: Some(next), ..none }
        }
        Some((Ending::Refused { findings }, _)) => Verdict { kind: "refused", findings, ..none },
        Some((Ending::Aborted { .. }, _)) => Verdict { kind: "aborted", ..none },
        None => match &rollout.hold {
            Some(hold) => Verdict { kind: "held", what: Some(&hold.what), next: Some(&hold.next), ..none },
            None => none,
        },
    }
}

fn nodes<'a>(events: &'a [Recorded], rollout: &'a Rollout) -> Vec<NodePart<'a>> {
    let decision = &rollout.plan.decision;
    let mut open: BTreeMap<&ActionId, &NodeName> = BTreeMap::new();
    let mut proofs: BTreeMap<&NodeName, &Proof> = BTreeMap::new();
    let mut failures: BTreeMap<&NodeName, &Failure> = BTreeMap::new();
    for event in events {
        match &event.event {
            Event::Intent { id, action } => open.extend(action.node().map(|node| (id, node))),
            Event::Outcome { id, outcome, .. } => match (open.get(id), &**outcome) {
                (Some(node), Outcome::Done { report: Brought::Proven { proof }, .. }) => {
                    proofs.insert(node, proof);
                }
                (Some(node), Outcome::Failed { failure, .. }) => {
                    failures.insert(node, failure);
                    proofs.remove(node);
                }
                _ => {}
            },
            _ => {}
        }
    }
    let first = |name: &NodeName| decision.hops.iter().flat_map(|h| &h.steps).find(|s| s.node == *name);
    decision
        .preconditions
        .nodes
        .iter()
        .map(|(name, was)| {
            let progress = rollout.nodes.get(name);
            // A restore begins where the rollout before it ended: the preconditions are those of that one.
            let before = first(name).map_or(&was.version, |step| &step.from);
            let replacing = progress.is_some_and(|p| matches!(p.at, At::Swapping | At::PuttingBack));
            let after = if replacing && rollout.ended.is_none() {
                Fact::unknown("its binary is being replaced, as far as the log goes")
            } else {
                Fact::Known(rollout.versions.get(name).unwrap_or(before).clone())
            };
            NodePart {
                name,
                role: was.role,
                before,
                after,
                proof: proofs.get(name).copied(),
                failure: failures.get(name).copied(),
                our_cordon: progress.is_some_and(|p| p.cordon.is_some() && (p.at.in_hand() || p.at == At::Stuck)),
            }
        })
        .collect()
}

fn timeline(events: &[Recorded]) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut place: BTreeMap<&ActionId, usize> = BTreeMap::new();
    for event in events {
        match &event.event {
            Event::Intent { id, action } => {
                place.insert(id, entries.len());
                entries.push(Entry {
                    id,
                    kind: kind(action),
                    nodes: about(action),
                    words: action.words(),
                    start: event.at,
                    end: None,
                    result: Result::Open,
                    took: None,
                    detail: String::new(),
                    back: matches!(action, Action::Swap { swap, .. } if swap.back),
                    held: None,
                });
            }
            Event::Outcome { id, outcome, .. } => {
                let Some(entry) = place.get(id).and_then(|i| entries.get_mut(*i)) else { continue };
                entry.end = Some(event.at);
                let (result, took, detail) = match &**outcome {
                    Outcome::Done { took, report } => (Result::Done, Some(*took), brought(report)),
                    Outcome::Failed { took, failure } => (Result::Failed, Some(*took), failed(failure)),
                    Outcome::Unknown { why } => (Result::Unknown, None, why.clone()),
                };
                (entry.result, entry.took, entry.detail) = (result, took, detail);
                if let Outcome::Done { report: Brought::Proven { proof }, .. } = &**outcome {
                    entry.held = Some(proof.held);
                }
            }
            _ => {}
        }
    }
    entries
}

/// The word that an action has in the log.
fn kind(action: &Action) -> &'static str {
    match action {
        Action::Check { .. } => "check",
        Action::Stage { .. } => "stage",
        Action::Backup { .. } => "backup",
        Action::Look { .. } => "look",
        Action::Cordon { .. } => "cordon",
        Action::Drain { .. } => "drain",
        Action::Swap { .. } => "swap",
        Action::Prove { .. } => "prove",
        Action::Uncordon { .. } => "uncordon",
        Action::Compare { .. } => "compare",
        Action::Validate { .. } => "validate",
        Action::Stop { .. } => "stop",
        Action::Place { .. } => "place",
        Action::Reset { .. } => "reset",
        Action::SetAside { .. } => "set-aside",
        Action::Start { .. } => "start",
        Action::Restart { .. } => "restart",
        Action::RestartControllers => "restart-controllers",
        Action::RestoreCommand { .. } => "restore-command",
    }
}

fn about(action: &Action) -> Vec<&NodeName> {
    match action {
        Action::Look { before } => before.iter().collect(),
        Action::Compare { after } => vec![after],
        other => other.node().into_iter().collect(),
    }
}

/// What a successful action brought home, in words.
fn brought(report: &Brought) -> String {
    match report {
        Brought::Plain | Brought::Looked { .. } | Brought::Cordoned { .. } => String::new(),
        Brought::Checked { findings, .. } => {
            let blocks = findings.iter().filter(|f| f.blocks()).count();
            if blocks == 0 {
                count(findings.len(), "finding") + ", none in the way"
            } else {
                format!("{blocks} in the way")
            }
        }
        Brought::Staged { bytes: size, already_there } => {
            if *already_there {
                format!("{}, there already", bytes(*size))
            } else {
                bytes(*size)
            }
        }
        Brought::BackedUp { backup } => {
            let revision = backup.revision.map(|r| format!(", revision {r}")).unwrap_or_default();
            format!("{}{revision}, read back", bytes(backup.bytes))
        }
        Brought::Drained { evicted, left } => format!("{} moved, {} left", count(evicted.len(), "pod"), left.len()),
        Brought::Swapped { already: true, .. } => "was done already".to_owned(),
        Brought::Swapped { kept, .. } => kept.as_ref().map(|k| format!("kept {k}")).unwrap_or_default(),
        Brought::Proven { proof } => {
            let etcd = match &proof.etcd {
                Fact::Known(Some(etcd)) => format!(", etcd {etcd}"),
                Fact::Known(None) => String::new(),
                Fact::Unknown(why) => format!(", etcd not known: {why}"),
            };
            format!("healthy after {}, held {}{etcd}", duration(proof.healthy_after), duration(proof.held))
        }
        Brought::Validated { findings, regressions } => {
            match findings.iter().filter(|f| f.blocks()).count() + regressions.len() {
                0 => "nothing is worse".to_owned(),
                n => format!("{} worse", count(n, "thing")),
            }
        }
        Brought::Compared { regressions } => match regressions.len() {
            0 => "nothing is worse".to_owned(),
            n => format!("{} worse", count(n, "thing")),
        },
        Brought::Reset { already: true, .. } => "was done already".to_owned(),
        Brought::Reset { already: false, from } => from.clone().unwrap_or_default(),
    }
}

fn failed(failure: &Failure) -> String {
    match &failure.cause {
        Some(cause) => format!("{}; journal: {} (class: {})", failure.what, cause.line, cause.class),
        None => failure.what.clone(),
    }
}

/// A moment that a reader wants to see beside the actions.
pub(super) fn moment(event: &Recorded) -> Option<Moment> {
    let (kind, what) = match &event.event {
        // The first turn is the beginning.
        Event::TurnTaken { turn, .. } if event.number > 2 => ("turn", format!("taken up again, turn {turn}")),
        Event::Asked { request: Request::Pause } => ("asked", "asked to pause".to_owned()),
        Event::Asked { request: Request::Abort } => ("asked", "asked to abort".to_owned()),
        Event::Held { hold, .. } => ("held", format!("held: {}", hold.what)),
        Event::Resumed => ("resumed", "resumed".to_owned()),
        Event::DeclaredOff { nodes } => ("declared-off", format!("declared powered off: {}", names(nodes))),
        _ => return None,
    };
    Some(Moment { at: event.at, kind, what, by: event.actor.clone() })
}

fn checks(events: &[Recorded]) -> Vec<Checked<'_>> {
    let mut open: BTreeMap<&ActionId, &Action> = BTreeMap::new();
    let mut checks = Vec::new();
    for event in events {
        match &event.event {
            Event::Intent { id, action } => {
                open.insert(id, action);
            }
            Event::Outcome { id, outcome, .. } => {
                let Outcome::Done { report, .. } = &**outcome else { continue };
                let (when, findings, regressions): (_, &[Finding], &[Regression]) = match (open.get(id), report) {
                    (Some(Action::Check { hop }), Brought::Checked { findings, .. }) => {
                        (format!("Before hop {}", hop + 1), findings, &[])
                    }
                    (Some(Action::Validate { hop }), Brought::Validated { findings, regressions }) => {
                        (format!("After hop {}", hop + 1), findings, regressions)
                    }
                    (Some(Action::Compare { after }), Brought::Compared { regressions }) => {
                        (format!("After {after}"), &[], regressions)
                    }
                    _ => continue,
                };
                checks.push(Checked { when, at: event.at, findings, regressions });
            }
            _ => {}
        }
    }
    checks
}
