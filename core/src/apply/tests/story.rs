//! Carries a rollout on over a world, as the engine's loop does: what is wanted is stored, done, and its outcome stored.

use jiff::{SignedDuration, Timestamp};

use super::world::{glance, set_binary, set_cordon, set_version};
use crate::apply::action::{Action, BackupReceipt, CordonWas, Failure, FailureKind, Outcome, Proof, Report};
use crate::apply::plan::{BackupMethod, BackupRef, NodeCopy, Plan};
use crate::apply::rollout::{Rollout, Wanted};
use crate::event::{Consent, Event, Recorded, Request};
use crate::fact::Fact;
use crate::ident::{ActionId, Digest, NodeName, RolloutId};
use crate::inventory::{Cordon, Inventory, Mark, Node, example};
use crate::validate::baseline::Baseline;
use crate::version::Version;

pub(super) struct Story {
    pub log: Vec<Recorded>,
    pub rollout: Rollout,
    /// The world as it is.
    pub world: Inventory,
    pub now: Timestamp,
}

/// What comes of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// It failed; with `changed` the new binary is there all the same.
    Failed {
        kind: FailureKind,
        changed: bool,
    },
    /// Nobody can tell what came of it; with `took` it was done.
    Unknown {
        took: bool,
    },
}

impl Story {
    pub(super) fn begin(world: Inventory, plan: Plan, powered_off: &[NodeName]) -> Self {
        let consent = Consent { outage: true, data_loss: true, powered_off: powered_off.to_vec() };
        let cluster = plan.decision.preconditions.cluster_uid.clone();
        let event = Event::Started { cluster, plan_hash: plan.hash(), plan: Box::new(plan), consent };
        let first = recorded(1, example::now(), event);
        let rollout = Rollout::start(&first).expect("a first event");
        let mut story = Self { log: vec![first], rollout, world, now: example::now() };
        story.record(Event::TurnTaken { turn: 1, holder: "one".to_owned() });
        story
    }

    /// Every event is the same after it was written and read.
    pub(super) fn record(&mut self, event: Event) {
        let recorded = recorded(self.rollout.number + 1, self.now, event);
        let text = serde_json::to_string(&recorded).expect("JSON");
        let read: Recorded = serde_json::from_str(&text).unwrap_or_else(|e| unreachable!("{e}: {text}"));
        assert_eq!(read, recorded, "{text}");
        self.rollout.apply(&recorded).expect("the next event");
        self.log.push(recorded);
    }

    pub(super) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        self.world.taken = self.now;
    }

    pub(super) fn resume(&mut self) {
        self.record(Event::TurnTaken { turn: self.rollout.turn + 1, holder: "another".to_owned() });
        self.record(Event::Resumed);
    }

    pub(super) fn ask(&mut self, request: Request) {
        self.record(Event::Asked { request });
    }

    /// Stores that an action begins, unless it is stored already.
    pub(super) fn intend(&mut self, id: &ActionId, action: &Action) {
        if !self.rollout.open().any(|(open, _)| open == id) {
            self.record(Event::Intent { id: id.clone(), action: action.clone() });
        }
    }

    pub(super) fn outcome(&mut self, id: &ActionId, outcome: Outcome) {
        self.record(Event::Outcome { id: id.clone(), outcome: Box::new(outcome), outage: None });
    }

    /// Carries on until it ends or holds; `fate` decides what comes of each action, or stops before its outcome is
    /// stored.
    pub(super) fn run(&mut self, mut fate: impl FnMut(&Action) -> Option<Fate>) -> Wanted {
        for _ in 0..1000 {
            match self.rollout.wanted() {
                Wanted::Actions(actions) => {
                    for (id, action) in &actions {
                        self.intend(id, action);
                    }
                    let (id, action) = &actions[0];
                    let Some(fate) = fate(action) else { return Wanted::Actions(actions) };
                    let outcome = self.perform(action, fate);
                    self.outcome(id, outcome);
                }
                Wanted::End(ending) => {
                    self.record(Event::Ended { ending: ending.clone(), outage: None });
                    return Wanted::End(ending);
                }
                Wanted::Hold(hold) => {
                    self.record(Event::Held { hold: hold.clone(), outage: None });
                    return Wanted::Hold(hold);
                }
                Wanted::Nothing => return Wanted::Nothing,
            }
        }
        unreachable!("it neither ends nor holds: {:#?}", self.lines())
    }

    /// All goes well.
    pub(super) fn run_well(&mut self) -> Wanted {
        self.run(|_| Some(Fate::Done))
    }

    fn node(&mut self, name: &NodeName) -> &mut Node {
        example::node_mut(&mut self.world, name.as_str())
    }

    fn version_below(&self) -> Version {
        self.world.servers().filter_map(|n| n.version.known()).min().expect("a server").clone()
    }

    /// Does what an action asks for, and says what came of it. Done twice, it is done once.
    pub(super) fn perform(&mut self, action: &Action, fate: Fate) -> Outcome {
        let took = SignedDuration::from_secs(1);
        // No node is proven on a version that it does not run.
        let fate = match action {
            Action::Prove { node, version, .. } if fate == Fate::Done && !self.node(node).version.is(version) => {
                Fate::Failed { kind: FailureKind::NotReadyInTime, changed: false }
            }
            _ => fate,
        };
        match fate {
            Fate::Done => Outcome::Done { took, report: self.done(action) },
            Fate::Failed { kind, changed } => {
                if changed && let Action::Swap { node, swap } = action {
                    set_binary(self.node(node), swap.artifact);
                }
                let failure = Failure { kind, what: format!("could not {}", action.words()), cause: None };
                Outcome::Failed { took, failure }
            }
            Fate::Unknown { took } => {
                if took {
                    self.done(action);
                }
                Outcome::Unknown { why: "no way to it".to_owned() }
            }
        }
    }

    fn done(&mut self, action: &Action) -> Report {
        match action {
            Action::Check { .. } => {
                Report::Checked { findings: Vec::new(), baseline: Box::new(Baseline::of(&self.world, [].into())) }
            }
            Action::Stage { .. } => Report::Staged { bytes: 1, already_there: false },
            Action::Backup { method, .. } => {
                Report::BackedUp { backup: receipt(method, self.version_below(), self.now) }
            }
            Action::Look { .. } => Report::Looked { glance: Box::new(glance(&self.world)) },
            Action::Cordon { node } => {
                let mark = Mark { rollout: self.rollout.id.to_string(), plan: String::new(), step: String::new() };
                let node = self.node(node);
                let was = match node.cordon() {
                    Cordon::None => CordonWas::Open,
                    Cordon::Ours { .. } => CordonWas::OurMark,
                    Cordon::Foreign => return Report::Cordoned { was: CordonWas::Foreign },
                };
                set_cordon(node, Cordon::Ours { mark });
                Report::Cordoned { was }
            }
            Action::Drain { .. } => Report::Drained { evicted: Vec::new(), left: Vec::new() },
            Action::Swap { node, swap } | Action::Place { node, swap } => {
                let (to, artifact) = (swap.to.clone(), swap.artifact);
                let node = self.node(node);
                set_version(node, Fact::Known(to));
                set_binary(node, artifact);
                let cold_copy = swap.cold_copy.then(|| copy("/var/lib/kadence/cold"));
                Report::Swapped { kept: None, already: false, cold_copy }
            }
            Action::Prove { .. } => {
                let (ready_after, healthy_after, held) = (took(2), took(3), took(30));
                Report::Proven { proof: Proof { ready_after, healthy_after, held, etcd: Fact::Known(None) } }
            }
            Action::Uncordon { node } => {
                let node = self.node(node);
                if matches!(node.cordon(), Cordon::Ours { .. }) {
                    set_cordon(node, Cordon::None);
                }
                Report::Plain
            }
            Action::Compare { .. } => Report::Compared { regressions: Vec::new() },
            Action::Validate { .. } => Report::Validated { findings: Vec::new(), regressions: Vec::new() },
            Action::Reset { .. } => Report::Reset { already: false, from: None },
            Action::Stop { .. }
            | Action::SetAside { .. }
            | Action::Start { .. }
            | Action::Restart { .. }
            | Action::RestartControllers
            | Action::RestoreCommand { .. } => Report::Plain,
        }
    }

    /// The log for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let of = |id: &ActionId| {
            let action = self.log.iter().find_map(|r| match &r.event {
                Event::Intent { id: other, action } if other == id => Some(action.words()),
                _ => None,
            });
            action.expect("an intent")
        };
        let line = |r: &Recorded| match &r.event {
            Event::Started { .. } => "started".to_owned(),
            Event::TurnTaken { turn, .. } => format!("turn {turn}"),
            Event::Intent { id, action } => format!("  {id} {}", action.words()),
            Event::Outcome { id, outcome, .. } => match &**outcome {
                Outcome::Done { .. } => format!("done: {}", of(id)),
                Outcome::Failed { failure, .. } => format!("failed ({:?}): {}", failure.kind, of(id)),
                Outcome::Unknown { .. } => format!("unknown: {}", of(id)),
            },
            Event::Asked { request } => format!("asked: {request:?}"),
            Event::DeclaredOff { nodes } => format!("declared off: {nodes:?}"),
            Event::Held { hold, .. } => format!("held ({:?}): {}", hold.cause, hold.what),
            Event::Resumed => "resumed".to_owned(),
            Event::Ended { ending, .. } => format!("ended: {ending:?}"),
        };
        self.log.iter().map(|r| format!("{} {}", r.at.duration_since(example::now()).as_secs(), line(r))).collect()
    }
}

fn took(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

fn copy(path: &str) -> NodeCopy {
    NodeCopy { path: path.to_owned(), digest: Some(Digest::of(path.as_bytes())), reaches: Fact::Known(7) }
}

fn receipt(method: &BackupMethod, version: Version, taken: Timestamp) -> BackupReceipt {
    let backup = BackupRef {
        name: "2026-11-24".to_owned(),
        taken,
        version,
        digest: Digest::of(b"backup"),
        method: method.clone(),
        on_node: method.server().map(|_| Box::new(copy("/var/lib/kadence/snapshot"))),
    };
    BackupReceipt { backup, bytes: 1, revision: Some(7), at_least: Some(7), files: [].into(), caveats: Vec::new() }
}

fn recorded(number: u64, at: Timestamp, event: Event) -> Recorded {
    Recorded {
        schema: Recorded::SCHEMA,
        rollout: RolloutId::new("r7"),
        number,
        at,
        actor: "test".to_owned(),
        kadence: "0.0.0".to_owned(),
        event,
    }
}
