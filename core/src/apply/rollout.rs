//! How a rollout goes on: a fold of its events, and from that what is wanted next.
//!
//! [`Rollout::apply`] takes an event in; [`Rollout::wanted`] says which actions should be under way now, or why none
//! is. Both are pure: a Kadence that was killed reads the events again and wants the same. An action whose intent is
//! stored and whose outcome is not is wanted again under the same id.
//!
//! The way of a node, with the way back on any failure after its cordon:
//!
//! ```text
//! waiting → looking → cordoning → (draining) → swapping → proving → uncordoning → done
//!                         └──────────┴────────────┴──────────┘
//!                                    putting back → proving back → uncordoning → back
//! ```

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::apply::action::{
    Action, BackupReceipt, CordonWas, Failure, FailureKind, Glance, Outcome, Proof, Report, Swap,
};
use crate::apply::plan::{
    DatastoreKind, DeclaredOutage, Drain, Hop, NodeCopy, Plan, PlanHash, Purpose, Step, UndoClass,
};
use crate::apply::precondition::{self, No, Verdict};
use crate::apply::restore;
use crate::event::{Consent, Ending, Event, Hold, HoldCause, OutageMeasured, Recorded, Request};
use crate::ident::{ActionId, ClusterUid, Digest, NodeName, RolloutId};
use crate::inventory::Role;
use crate::validate::baseline::{Baseline, Regression};
use crate::validate::finding::{Finding, Verdict as Judged};
use crate::version::Version;

/// How old a look may be, from its beginning, for a node to be stopped on the strength of it. What goes down by itself
/// in between is not seen: short, yet longer than slow hosts need to answer and a cordon takes.
pub const LOOK_HOLDS: SignedDuration = SignedDuration::from_secs(5);

/// A rollout, rollback or restore as its events tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    pub id: RolloutId,
    pub cluster: ClusterUid,
    pub plan: Plan,
    pub plan_hash: PlanHash,
    pub consent: Consent,
    pub started: Timestamp,
    /// Of the last event.
    pub number: u64,
    pub at: Timestamp,
    pub turn: u64,
    /// Who holds that turn: the random id of its taking.
    pub holder: String,
    pub hop: usize,
    pub phase: Phase,
    /// The nodes of the present hop.
    pub nodes: BTreeMap<NodeName, NodeProgress>,
    /// The version each node of the plan was last brought to by this rollout.
    pub versions: BTreeMap<NodeName, Version>,
    /// The version that each node was last told to have. Whether it was heard, only the node knows.
    pub sent: BTreeMap<NodeName, Version>,
    /// Cold copies of SQLite's files, by server: made at the stop, before the new version's first start.
    pub cold_copies: BTreeMap<NodeName, NodeCopy>,
    pub baseline: Option<Baseline>,
    /// One a hop.
    pub backups: Vec<BackupReceipt>,
    pub findings: Vec<Finding>,
    pub regressions: Vec<Regression>,
    /// The first failure: what the rollout stops for.
    pub trouble: Option<Trouble>,
    pub asked: Option<Request>,
    pub hold: Option<Hold>,
    pub ended: Option<(Ending, Option<OutageMeasured>)>,
    /// Measured so far; `None` if nobody did.
    pub outage: Option<OutageMeasured>,
    actions: u32,
    open: BTreeMap<ActionId, Open>,
    restore: Vec<Vec<(Action, bool)>>,
    /// The restore was given up before anything was replaced: what was stopped is started again.
    given_up: bool,
    /// The node after which it has not been seen yet that everything still serves.
    to_compare: Option<NodeName>,
    /// K3s was stopped for a backup: from then on a service was touched.
    stopped_for_copy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    action: Action,
    /// Tried, and nobody could tell what came of it.
    unknown: Option<String>,
}

/// Where in its present hop the rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Checking,
    /// Staging on every node and backing up, at the same time.
    Preparing,
    Rolling,
    /// A restore's own sequence.
    Restoring,
    Validating,
    /// Comparing with the baseline after a failure was undone.
    ValidatingBack,
    Over,
}

/// What happened to one node in the present hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeProgress {
    pub at: At,
    pub staged: bool,
    pub cordon: Option<CordonWas>,
    pub began: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub proof: Option<Proof>,
    pub failure: Option<Failure>,
    /// The rollout stood still while this node was in hand and not yet changed: whether it still is as planned is looked
    /// at before anything goes on with it.
    pub look_again: bool,
    /// When the look began that allows what comes next.
    pub looked: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    Waiting,
    Looking,
    Cordoning,
    Draining,
    Swapping,
    Proving,
    Uncordoning,
    Done,
    /// The drain was blocked: the cordon is lifted, then the rollout holds.
    GivingUp,
    PuttingBack,
    ProvingBack,
    UncordoningBack,
    /// On the version it had, proven healthy.
    Back,
    /// Neither here nor there: a person is needed. Its cordon stays.
    Stuck,
}

impl At {
    /// Whether the node is in our hands.
    pub fn in_hand(self) -> bool {
        !matches!(self, Self::Waiting | Self::Looking | Self::Done | Self::Back | Self::Stuck)
    }
}

/// The failure a rollout stops for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub node: Option<NodeName>,
    pub what: String,
    pub because: String,
    pub next: String,
}

/// What should happen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These actions should be under way. Some may be already.
    Actions(Vec<(ActionId, Action)>),
    /// Nothing goes on until somebody resumes.
    Hold(Hold),
    End(Ending),
    /// It has ended.
    Nothing,
}

/// Why a log cannot be read as a rollout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("the log is empty")]
    Empty,
    #[error("the log begins with event {0}, not with the first one")]
    NoStart(u64),
    #[error("event {found} follows event {after}")]
    Gap { after: u64, found: u64 },
    #[error("event {0} has shape {1}, which a newer Kadence wrote")]
    Newer(u64, u32),
}

impl Rollout {
    /// Reads a whole log.
    ///
    /// # Errors
    /// If it is not the gapless log of one rollout.
    pub fn read(events: &[Recorded]) -> Result<Self, LogError> {
        let (first, rest) = events.split_first().ok_or(LogError::Empty)?;
        let mut rollout = Self::start(first)?;
        rest.iter().try_for_each(|event| rollout.apply(event))?;
        Ok(rollout)
    }

    /// A rollout as its first event tells it.
    ///
    /// # Errors
    /// If it is not a first event.
    pub fn start(first: &Recorded) -> Result<Self, LogError> {
        let Event::Started { cluster, plan_hash, plan, consent } = &first.event else {
            return Err(LogError::NoStart(first.number));
        };
        if first.number != 1 {
            return Err(LogError::NoStart(first.number));
        }
        if first.schema > Recorded::SCHEMA {
            return Err(LogError::Newer(first.number, first.schema));
        }
        let mut rollout = Self {
            id: first.rollout.clone(),
            cluster: cluster.clone(),
            plan: (**plan).clone(),
            plan_hash: *plan_hash,
            consent: consent.clone(),
            started: first.at,
            number: 1,
            at: first.at,
            turn: 0,
            holder: String::new(),
            hop: 0,
            phase: Phase::Checking,
            nodes: BTreeMap::new(),
            versions: BTreeMap::new(),
            sent: BTreeMap::new(),
            cold_copies: BTreeMap::new(),
            baseline: None,
            backups: Vec::new(),
            findings: Vec::new(),
            regressions: Vec::new(),
            trouble: None,
            asked: None,
            hold: None,
            ended: None,
            outage: None,
            actions: 0,
            open: BTreeMap::new(),
            restore: Vec::new(),
            given_up: false,
            to_compare: None,
            stopped_for_copy: false,
        };
        rollout.begin_hop(0);
        if let Purpose::Restore { .. } = rollout.plan.decision.purpose {
            rollout.restore = undone(restore::sequence(&rollout.plan, &rollout.consent.powered_off));
            rollout.phase = Phase::Restoring;
        }
        Ok(rollout)
    }

    fn measured(&mut self, outage: Option<OutageMeasured>) {
        self.outage = match (self.outage, outage) {
            (Some(so_far), Some(now)) => Some(so_far.and(now)),
            (so_far, now) => so_far.or(now),
        };
    }

    fn begin_hop(&mut self, hop: usize) {
        self.hop = hop;
        self.phase = Phase::Checking;
        let waiting = NodeProgress {
            at: At::Waiting,
            staged: false,
            cordon: None,
            began: None,
            ended: None,
            proof: None,
            failure: None,
            look_again: false,
            looked: None,
        };
        self.nodes = self.steps().iter().map(|s| (s.node.clone(), waiting.clone())).collect();
    }

    pub fn hop(&self) -> Option<&Hop> {
        self.plan.decision.hops.get(self.hop)
    }

    pub fn steps(&self) -> &[Step] {
        self.hop().map(|h| h.steps.as_slice()).unwrap_or_default()
    }

    pub fn step(&self, node: &NodeName) -> Option<&Step> {
        self.steps().iter().find(|s| s.node == *node)
    }

    pub fn completed(&self) -> bool {
        matches!(self.ended, Some((Ending::Completed, _)))
    }

    /// The nodes that are in our hands now.
    pub fn in_hand(&self) -> BTreeSet<NodeName> {
        self.nodes.iter().filter(|(_, p)| p.at.in_hand()).map(|(name, _)| name.clone()).collect()
    }

    /// The digest of the binary that this rollout last put on a node.
    pub fn binary_of(&self, node: &NodeName) -> Option<Digest> {
        let version = self.versions.get(node)?;
        let steps = self.plan.decision.hops.iter().flat_map(|h| &h.steps).filter(|s| s.node == *node);
        steps
            .flat_map(|s| [(&s.to, s.artifact), (&s.from, s.previous)])
            .find(|(v, _)| *v == version)
            .map(|(_, digest)| digest)
    }

    /// The versions that the present hop's nodes have before it.
    pub fn step_versions(&self) -> impl Iterator<Item = &Version> {
        self.steps().iter().map(|s| &s.from)
    }

    /// Actions whose intent is stored and whose outcome is not.
    pub fn open(&self) -> impl Iterator<Item = (&ActionId, &Action)> {
        self.open.iter().map(|(id, open)| (id, &open.action))
    }

    // ------------------------------------------------------------------------------------------------ events in

    /// Takes the next event in.
    ///
    /// # Errors
    /// If it is not the next one, or of a shape that only a newer Kadence knows.
    pub fn apply(&mut self, recorded: &Recorded) -> Result<(), LogError> {
        if recorded.number != self.number + 1 {
            return Err(LogError::Gap { after: self.number, found: recorded.number });
        }
        if recorded.schema > Recorded::SCHEMA {
            return Err(LogError::Newer(recorded.number, recorded.schema));
        }
        self.number = recorded.number;
        self.at = recorded.at;
        match &recorded.event {
            Event::Started { .. } => {}
            Event::TurnTaken { turn, holder } => {
                self.turn = *turn;
                self.holder.clone_from(holder);
                self.stood_still();
            }
            Event::Intent { id, action } => {
                self.actions += 1;
                self.open.insert(id.clone(), Open { action: action.clone(), unknown: None });
                self.began(action, recorded.at);
            }
            Event::Outcome { id, outcome, outage } => {
                self.measured(*outage);
                self.outcome(id, outcome, recorded.at);
            }
            Event::Asked { request } => {
                // Abort is stronger than pause, whichever came first.
                if self.asked != Some(Request::Abort) {
                    self.asked = Some(*request);
                }
                self.put_off_begun();
                if *request == Request::Abort {
                    self.forget_unknown_looks();
                    self.give_up_restore();
                }
            }
            Event::DeclaredOff { nodes } => {
                self.consent.powered_off.extend(nodes.iter().cloned());
                let of_them = |action: &Action| action.node().is_some_and(|n| nodes.contains(n));
                self.open.retain(|_, open| !of_them(&open.action));
                for (action, done) in self.restore.iter_mut().flatten() {
                    *done |= of_them(action);
                }
                self.restored();
            }
            Event::Held { hold, outage } => {
                self.measured(*outage);
                self.hold = Some(hold.clone());
            }
            Event::Resumed => {
                self.hold = None;
                // A restore cannot be aborted, so whoever resumes one wants it to go on.
                if self.asked == Some(Request::Pause) || self.phase == Phase::Restoring {
                    self.asked = None;
                }
                for open in self.open.values_mut() {
                    open.unknown = None;
                }
                self.stood_still();
                // What a person had to look at is looked at anew.
                for progress in self.nodes.values_mut() {
                    if progress.at == At::Looking {
                        progress.at = At::Waiting;
                    }
                }
            }
            Event::Ended { ending, outage } => {
                self.measured(*outage);
                self.ended = Some((ending.clone(), self.outage));
                self.phase = Phase::Over;
            }
        }
        Ok(())
    }

    /// Nobody watched for a while: what is in hand and not changed yet has to be looked at again.
    fn stood_still(&mut self) {
        let others = self.has_other_servers();
        for progress in self.nodes.values_mut() {
            progress.look_again |= match progress.at {
                At::Cordoning | At::Draining | At::Swapping => true,
                At::PuttingBack => others,
                _ => false,
            };
        }
    }

    /// With one server nobody else can have gone down meanwhile, and nobody else could be asked.
    fn has_other_servers(&self) -> bool {
        self.plan.decision.outage != Some(DeclaredOutage::SingleServer)
    }

    fn began(&mut self, action: &Action, at: Timestamp) {
        match action {
            Action::Look { before } => {
                for node in before {
                    self.with(node, |p| p.at = if p.look_again { p.at } else { At::Looking });
                }
            }
            Action::Cordon { node } => self.with(node, |p| {
                p.at = At::Cordoning;
                p.began = p.began.or(Some(at));
            }),
            Action::Swap { node, swap } | Action::Place { node, swap } => {
                self.sent.insert(node.clone(), swap.to.clone());
            }
            _ => {}
        }
    }

    fn with(&mut self, node: &NodeName, f: impl FnOnce(&mut NodeProgress)) {
        if let Some(progress) = self.nodes.get_mut(node) {
            f(progress);
        }
    }

    fn outcome(&mut self, id: &ActionId, outcome: &Outcome, at: Timestamp) {
        let Some(open) = self.open.get_mut(id) else { return };
        if let Outcome::Unknown { why } = outcome {
            open.unknown = Some(why.clone());
            return;
        }
        let action = open.action.clone();
        self.open.remove(id);
        if self.phase == Phase::Restoring {
            self.restore_outcome(&action, outcome);
            return;
        }
        match (&action, outcome) {
            (_, Outcome::Unknown { .. }) => {}
            (Action::Check { .. }, Outcome::Done { report: Report::Checked { findings, baseline }, .. }) => {
                self.findings.clone_from(findings);
                if !findings.iter().any(Finding::blocks) {
                    // The first baseline is the truth for the whole rollout; a later hop must not lower it.
                    if self.baseline.is_none() {
                        self.baseline = Some((**baseline).clone());
                    }
                    self.phase = Phase::Preparing;
                }
            }
            (Action::Stage { node, .. }, Outcome::Done { .. }) => {
                self.with(node, |p| p.staged = true);
                self.prepared();
            }
            (Action::Backup { method, .. }, Outcome::Done { report: Report::BackedUp { backup }, .. }) => {
                self.stopped_for_copy |= method.stops_k3s();
                self.backups.push(backup.clone());
                self.prepared();
            }
            (Action::Look { before }, Outcome::Done { report: Report::Looked { glance }, .. }) => {
                self.looked(before, glance, at);
            }
            (Action::Cordon { node }, Outcome::Done { report: Report::Cordoned { was }, .. }) => {
                let drains = self.step(node).is_some_and(|s| s.drain == Drain::Evict);
                if *was == CordonWas::Foreign {
                    self.with(node, |p| p.at = At::Looking);
                    self.stop_for(No {
                        cause: HoldCause::Changed,
                        what: format!("{node} was cordoned by somebody else in this moment"),
                        next: format!(
                            "find out who works on it (kubectl describe node {node}), uncordon it, then resume"
                        ),
                    });
                } else {
                    self.with(node, |p| {
                        p.cordon = Some(*was);
                        p.at = if drains { At::Draining } else { At::Swapping };
                        p.look_again |= !drains && stale(p.looked, at);
                    });
                }
            }
            (Action::Drain { node }, Outcome::Done { .. }) => self.with(node, |p| {
                p.at = At::Swapping;
                p.look_again |= stale(p.looked, at);
            }),
            (Action::Swap { node, swap }, Outcome::Done { report, .. }) => {
                let back = self.nodes.get(node).is_some_and(|p| p.at == At::PuttingBack);
                if let Report::Swapped { cold_copy: Some(copy), .. } = report {
                    // The first one is of the state before the rollout: a later hop's must not replace it.
                    self.cold_copies.entry(node.clone()).or_insert_with(|| copy.clone());
                }
                self.versions.insert(node.clone(), swap.to.clone());
                self.with(node, |p| p.at = if back { At::ProvingBack } else { At::Proving });
            }
            (Action::Prove { node, .. }, Outcome::Done { report: Report::Proven { proof }, .. }) => {
                self.with(node, |p| {
                    p.proof = Some(proof.clone());
                    p.at = if p.at == At::ProvingBack { At::UncordoningBack } else { At::Uncordoning };
                });
            }
            (Action::Uncordon { node }, Outcome::Done { .. }) => self.uncordoned(node, at),
            (Action::Compare { after }, Outcome::Done { report: Report::Compared { regressions }, .. }) => {
                self.compared(after, regressions);
            }
            (Action::Validate { .. }, Outcome::Done { report: Report::Validated { findings, regressions }, .. }) => {
                self.findings.clone_from(findings);
                self.regressions.clone_from(regressions);
                self.validated();
            }
            (action, Outcome::Failed { failure, .. }) => self.failed(action, failure, at),
            // A report that does not belong to its action: written by nobody; nothing may be concluded from it.
            (_, Outcome::Done { .. }) => {
                self.open
                    .insert(id.clone(), Open { action, unknown: Some("its report is of another kind".to_owned()) });
            }
        }
    }

    fn prepared(&mut self) {
        if self.phase == Phase::Preparing && self.backups.len() > self.hop && self.nodes.values().all(|p| p.staged) {
            self.phase = Phase::Rolling;
        }
    }

    fn looked(&mut self, before: &[NodeName], glance: &Glance, at: Timestamp) {
        let ours = self.in_hand();
        for node in before {
            let Some(step) = self.step(node) else { continue };
            if self.nodes.get(node).is_some_and(|p| p.at == At::PuttingBack) {
                let may = precondition::may_put_back(&self.plan.decision, step, glance);
                self.with(node, |p| {
                    p.look_again = may.is_err();
                    p.looked = Some(glance.at);
                });
                if let Err(no) = may {
                    self.stop_for(no);
                }
                continue;
            }
            let verdict = match precondition::judge(&self.plan.decision, step, glance, &ours, &self.id) {
                // One host that answers slowly makes what all others said too old to stop a node on.
                Verdict::AsPlanned if stale(Some(glance.at), at) => Verdict::No(too_slow(node, glance, at)),
                verdict => verdict,
            };
            self.with(node, |p| p.looked = Some(glance.at));
            match verdict {
                // It goes on where it was: its open action is performed again under the same id.
                Verdict::AsPlanned | Verdict::Done if self.nodes.get(node).is_some_and(|p| p.look_again) => {
                    self.with(node, |p| p.look_again = false);
                }
                // It is in hand, and may not be stopped any more. Nothing was changed on it, unless the order to do so
                // was sent already: then only its result says.
                Verdict::No(no) if self.nodes.get(node).is_some_and(|p| p.look_again) => {
                    let of_node = |o: &Open| o.action.node() == Some(node);
                    if !self.open.values().any(|o| of_node(o) && matches!(o.action, Action::Swap { .. })) {
                        self.open.retain(|_, o| !of_node(o));
                        self.with(node, |p| {
                            p.look_again = false;
                            p.at = At::GivingUp;
                        });
                    }
                    self.stop_for(no);
                }
                // Somebody asked to stop while it was looked at: it is not begun.
                _ if self.asked.is_some() => self.with(node, |p| p.at = At::Waiting),
                Verdict::AsPlanned => self.with(node, |p| p.at = At::Cordoning),
                // Already there: it is proven like any other, and freed of our cordon if it has it.
                Verdict::Done => self.with(node, |p| p.at = At::Proving),
                Verdict::No(no) => self.stop_for(no),
            }
        }
        // Of a group nobody is begun if one may not be.
        if self.hold.is_some() {
            self.put_off_begun();
        }
    }

    /// Nodes that are about to be cordoned, and of which nothing was asked yet, wait again.
    fn put_off_begun(&mut self) {
        let open =
            |node: &NodeName| self.open.values().any(|o| matches!(&o.action, Action::Cordon { node: n } if n == node));
        let begun: Vec<NodeName> = self
            .nodes
            .iter()
            .filter(|(name, p)| p.at == At::Cordoning && p.cordon.is_none() && !p.look_again && !open(name))
            .map(|(name, _)| name.clone())
            .collect();
        for node in begun {
            self.with(&node, |p| p.at = At::Waiting);
        }
    }

    /// Stops before the next node; what is in hand is finished first.
    fn stop_for(&mut self, no: No) {
        if self.hold.is_none() {
            self.hold = Some(Hold { cause: no.cause, what: no.what, next: no.next });
        }
    }

    fn uncordoned(&mut self, node: &NodeName, at: Timestamp) {
        let gave_up = self.nodes.get(node).filter(|p| p.at == At::GivingUp).and_then(|p| p.failure.clone());
        let held = self.hold.is_some();
        self.with(node, |p| {
            p.ended = Some(at);
            p.at = match p.at {
                At::UncordoningBack => At::Back,
                // A person has to look, or has looked since.
                At::GivingUp if held || p.failure.is_some() => At::Looking,
                At::GivingUp => At::Waiting,
                _ => At::Done,
            };
        });
        if let Some(failure) = gave_up {
            self.stop_for(No {
                cause: HoldCause::BudgetBlocks,
                what: format!("{node} could not be drained: {}", failure.what),
                next:
                    "make room (scale up, widen the budget), then resume; or abort, set `drain: never` and plan again"
                        .to_owned(),
            });
        }
        if self.phase != Phase::Rolling {
            return;
        }
        if self.nodes.get(node).is_some_and(|p| p.at == At::Done) {
            self.to_compare = Some(node.clone());
        }
        if self.trouble.is_none() && self.nodes.values().all(|p| p.at == At::Done) {
            self.phase = Phase::Validating;
        }
        // Everything went back: whether it is as it was, the comparison with the baseline says.
        let untouched = self.nodes.values().all(|p| matches!(p.at, At::Back | At::Waiting | At::Looking));
        if self.trouble.is_some() && untouched && self.hop == 0 {
            self.phase = Phase::ValidatingBack;
        }
    }

    fn compared(&mut self, after: &NodeName, regressions: &[Regression]) {
        self.regressions = regressions.to_vec();
        match self.worse() {
            None => self.to_compare = None,
            Some(worse) => self.stop_for(No {
                cause: HoldCause::ClusterNotHealthy,
                what: format!("since {after} was updated: {worse}"),
                next: "bring back what is named, then resume; or take the update back (kadence rollback)".to_owned(),
            }),
        }
    }

    /// A look whose answer nobody waits for any more: its nodes were not begun.
    fn forget_unknown_looks(&mut self) {
        let mut forgotten = Vec::new();
        self.open.retain(|_, open| match &open.action {
            Action::Look { before }
                if open.unknown.is_some()
                    && before.iter().all(|n| self.nodes.get(n).is_some_and(|p| p.at == At::Looking)) =>
            {
                forgotten.extend(before.iter().cloned());
                false
            }
            _ => true,
        });
        for node in forgotten {
            self.with(&node, |p| p.at = At::Waiting);
        }
    }

    /// As long as nothing was replaced, a restore can be given up: what was stopped is started again.
    fn give_up_restore(&mut self) {
        if self.phase != Phase::Restoring || self.given_up || !self.sent.is_empty() {
            return;
        }
        self.given_up = true;
        self.open.clear();
        self.restore = undone(restore::give_up(&self.plan, &self.consent.powered_off));
    }

    fn validated(&mut self) {
        if self.phase == Phase::ValidatingBack {
            self.phase = Phase::Over;
            return;
        }
        if self.worse().is_some() {
            return;
        }
        if self.hop + 1 < self.plan.decision.hops.len() {
            self.begin_hop(self.hop + 1);
        } else {
            self.phase = Phase::Over;
        }
    }

    /// What the last validation found to be worse than the baseline, in words.
    fn worse(&self) -> Option<String> {
        let findings = self.findings.iter().filter(|f| f.blocks()).map(|f| format!("{}: {}", f.about, f.what));
        let regressions = self.regressions.iter().map(|r| format!("{}: {}, was {}", r.about, r.now, r.before));
        let all: Vec<String> = findings.chain(regressions).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn failed(&mut self, action: &Action, failure: &Failure, at: Timestamp) {
        let trouble = |node: Option<&NodeName>, next: String| Trouble {
            node: node.cloned(),
            what: failure.what.clone(),
            because: failure.cause.as_ref().map_or_else(
                || "the journal names no known cause".to_owned(),
                |c| format!("{} (class: {})", c.line, c.class),
            ),
            next: failure.cause.as_ref().map_or(next, |c| c.remedy.clone()),
        };
        match action {
            Action::Drain { node } => self.with(node, |p| {
                p.failure = Some(failure.clone());
                p.at = At::GivingUp;
            }),
            // A refused cordon is not asked again before a person has looked. An earlier try of the same may have set it.
            Action::Look { .. } | Action::Cordon { .. } => {
                if let Action::Cordon { node } = action {
                    self.with(node, |p| {
                        p.at = At::GivingUp;
                        p.look_again = false;
                    });
                }
                self.stop_for(No {
                    cause: if failure.kind == FailureKind::Changed { HoldCause::Changed } else { HoldCause::Unknown },
                    what: failure.what.clone(),
                    next: "look at what happened, then resume".to_owned(),
                });
            }
            Action::Swap { node, .. } | Action::Prove { node, .. } => {
                let at_now = self.nodes.get(node).map(|p| p.at);
                let going_back = matches!(at_now, Some(At::PuttingBack | At::ProvingBack));
                let binary = self.step(node).is_some_and(|s| s.undo == UndoClass::Binary);
                let undo = !going_back && binary && !self.plan.decision.goes_back();
                // The order itself failed, and the old binary is still in place, or was to be put there anyway: whether
                // the node is well is proven. Otherwise nobody knows which of both the next start would take.
                let in_place = matches!(
                    failure.kind,
                    FailureKind::Digest | FailureKind::DiskFull | FailureKind::Changed | FailureKind::Superseded
                );
                let unchanged = !going_back
                    && !undo
                    && matches!(action, Action::Swap { .. })
                    && (in_place || self.plan.decision.goes_back());
                let unit = self.step(node).map_or("k3s", |s| s.role.unit());
                let next = if undo || unchanged {
                    format!("find the cause (journalctl -u {unit} on {node}), then make a new plan")
                } else if going_back {
                    format!("the way back failed too: look at {node} (journalctl -u {unit}); its cordon stays")
                } else {
                    format!(
                        "only a restore brings the old version back: kadence rollback {}",
                        self.plan.decision.cluster
                    )
                };
                if self.trouble.is_none() || going_back {
                    self.trouble = Some(trouble(Some(node), next));
                }
                let asks = self.has_other_servers();
                self.with(node, |p| {
                    p.failure = Some(failure.clone());
                    p.ended = Some(at);
                    p.look_again = undo && asks;
                    p.at = match (undo, unchanged) {
                        (true, _) => At::PuttingBack,
                        (false, true) => At::ProvingBack,
                        (false, false) => At::Stuck,
                    };
                });
            }
            Action::Uncordon { node } => {
                self.trouble
                    .get_or_insert_with(|| trouble(Some(node), format!("kubectl uncordon {node}, if it is well")));
                self.with(node, |p| p.at = At::Stuck);
            }
            Action::Compare { .. } => self.stop_for(No {
                cause: HoldCause::Unknown,
                what: failure.what.clone(),
                next: "look at what happened, then resume".to_owned(),
            }),
            Action::Validate { .. } => {
                self.trouble
                    .get_or_insert_with(|| trouble(None, "look at what is named, then kadence validate".to_owned()));
                // What could not be compared is not as it was.
                self.regressions = vec![Regression {
                    about: "comparison with the state before".to_owned(),
                    before: "possible".to_owned(),
                    now: failure.what.clone(),
                }];
                self.phase = Phase::Over;
            }
            Action::Stage { node, .. } => {
                self.trouble
                    .get_or_insert_with(|| trouble(Some(node), "repair what is named, then apply again".to_owned()));
            }
            Action::Check { .. } | Action::Backup { .. } => {
                // What was not allowed was not begun.
                let begun = failure.kind != FailureKind::Blocked;
                self.stopped_for_copy |= begun && matches!(action, Action::Backup { method, .. } if method.stops_k3s());
                self.trouble.get_or_insert_with(|| trouble(None, "repair what is named, then apply again".to_owned()));
            }
            // These belong to a restore, which has its own way.
            Action::Stop { .. }
            | Action::Place { .. }
            | Action::Reset { .. }
            | Action::SetAside { .. }
            | Action::Start { .. }
            | Action::Restart { .. }
            | Action::RestartControllers
            | Action::RestoreCommand { .. } => {}
        }
    }

    fn restore_outcome(&mut self, action: &Action, outcome: &Outcome) {
        if let Outcome::Failed { failure, .. } = outcome {
            self.stop_for(No {
                cause: HoldCause::NeedsConsent,
                what: failure.what.clone(),
                next: "repair what is named, then resume: the restore goes on where it stands".to_owned(),
            });
            return;
        }
        if let Action::Place { node, swap } = action {
            self.versions.insert(node.clone(), swap.to.clone());
        }
        if let Outcome::Done { report: Report::Validated { findings, regressions }, .. } = outcome {
            self.findings.clone_from(findings);
            self.regressions.clone_from(regressions);
        }
        for (wanted, done) in self.restore.iter_mut().flatten() {
            if wanted == action && !*done {
                *done = true;
                break;
            }
        }
        self.restored();
    }

    fn restored(&mut self) {
        if self.restore.iter().flatten().all(|(_, done)| *done) {
            self.phase = Phase::Over;
        }
    }

    // ---------------------------------------------------------------------------------------------- actions out

    /// What should happen now.
    pub fn wanted(&self) -> Wanted {
        if self.ended.is_some() {
            return Wanted::Nothing;
        }
        let open: Vec<(ActionId, Action)> = self
            .open
            .iter()
            .filter(|(_, open)| open.unknown.is_none() && !self.waits_for_look(&open.action))
            .map(|(id, open)| (id.clone(), open.action.clone()))
            .collect();
        let unknown = self.open.values().find_map(|open| open.unknown.as_ref().map(|why| (&open.action, why)));

        // Work that began is finished first, whatever else is wanted.
        let mut actions = open;
        let mut fresh = self.fresh(unknown.is_some());
        let mut number = self.actions;
        for action in fresh.drain(..) {
            number += 1;
            actions.push((ActionId::of(&self.id, number), action));
        }
        if !actions.is_empty() {
            return Wanted::Actions(actions);
        }
        if let Some((action, why)) = unknown {
            return Wanted::Hold(Hold {
                cause: HoldCause::Unknown,
                what: format!("{}: {why}", action.words()),
                next: "make it reachable again, then resume: the same action is asked for its result".to_owned(),
            });
        }
        if let Some(ending) = self.ending() {
            return Wanted::End(ending);
        }
        if let Some(hold) = &self.hold {
            return Wanted::Hold(hold.clone());
        }
        match self.asked {
            Some(Request::Pause) => Wanted::Hold(Hold {
                cause: HoldCause::Paused,
                what: "paused, as asked".to_owned(),
                next: format!("kadence resume {}", self.plan.decision.cluster),
            }),
            Some(Request::Abort) if self.phase == Phase::Restoring => Wanted::Hold(Hold {
                cause: HoldCause::Paused,
                what: "a restore that has replaced something cannot be aborted: it stands still".to_owned(),
                next: format!("kadence resume {}", self.plan.decision.cluster),
            }),
            // Abort ends in `ending`; nothing else is left to want.
            Some(Request::Abort) | None => {
                Wanted::End(self.failed_ending("nothing is left to do, and not all is done"))
            }
        }
    }

    /// Whether an action's node is looked at again before it goes on.
    fn waits_for_look(&self, action: &Action) -> bool {
        matches!(action, Action::Cordon { .. } | Action::Drain { .. } | Action::Swap { .. })
            && action.node().and_then(|n| self.nodes.get(n)).is_some_and(|p| p.look_again)
    }

    /// Whether a new node may be begun.
    fn may_begin(&self, unknown: bool) -> bool {
        !unknown && self.hold.is_none() && self.asked.is_none() && self.trouble.is_none()
    }

    fn fresh(&self, unknown: bool) -> Vec<Action> {
        let busy = |f: &dyn Fn(&Action) -> bool| self.open.values().any(|o| f(&o.action));
        let Some(hop) = self.hop() else { return Vec::new() };
        match self.phase {
            Phase::Checking if self.may_begin(unknown) && !busy(&|a| matches!(a, Action::Check { .. })) => {
                // A blocking finding was the answer: it is not asked again by itself.
                if self.findings.iter().any(Finding::blocks) {
                    Vec::new()
                } else {
                    vec![Action::Check { hop: self.hop }]
                }
            }
            Phase::Preparing if self.may_begin(unknown) => {
                let mut actions: Vec<Action> = hop
                    .steps
                    .iter()
                    .filter(|s| !self.nodes[&s.node].staged)
                    .filter(|s| !busy(&|a| matches!(a, Action::Stage { node, .. } if *node == s.node)))
                    .map(|s| Action::Stage { node: s.node.clone(), version: s.to.clone(), artifact: s.artifact })
                    .collect();
                if self.backups.len() <= self.hop && !busy(&|a| matches!(a, Action::Backup { .. })) {
                    actions.push(Action::Backup { hop: self.hop, method: hop.backup.clone() });
                }
                actions
            }
            Phase::Rolling => self.rolling(hop, unknown),
            Phase::Validating
                if !busy(&|a| matches!(a, Action::Validate { .. })) && self.worse().is_none() && !unknown =>
            {
                vec![Action::Validate { hop: self.hop }]
            }
            Phase::ValidatingBack if !busy(&|a| matches!(a, Action::Validate { .. })) && !unknown => {
                vec![Action::Validate { hop: self.hop }]
            }
            Phase::Restoring if self.hold.is_none() && (self.asked.is_none() || self.given_up) && !unknown => {
                let Some(group) = self.restore.iter().find(|g| g.iter().any(|(_, done)| !done)) else {
                    return Vec::new();
                };
                group
                    .iter()
                    .filter(|(action, done)| !done && !busy(&|a| a == action))
                    .map(|(action, _)| action.clone())
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn rolling(&self, hop: &Hop, unknown: bool) -> Vec<Action> {
        let busy = |action: &Action| self.open.values().any(|o| o.action == *action);
        // A node that failed is put back even while the rollout is held for something else.
        let may_look = |p: &NodeProgress| self.hold.is_none() || (p.at == At::PuttingBack && p.looked < p.ended);
        let again: Vec<NodeName> =
            self.nodes.iter().filter(|(_, p)| p.look_again && may_look(p)).map(|(name, _)| name.clone()).collect();
        if !again.is_empty() {
            let look = Action::Look { before: again };
            if !busy(&look) {
                return vec![look];
            }
        }
        let mut actions: Vec<Action> =
            hop.steps.iter().filter_map(|s| self.next_of(s)).filter(|a| !self.waits_for_look(a)).collect();
        // Nodes in hand go on even while the rollout is held; a new one begins only if nothing speaks against it.
        let in_hand = self.nodes.values().any(|p| p.at.in_hand());
        let looking = self.open.values().any(|o| matches!(o.action, Action::Look { .. }));
        let put_off = self.nodes.values().any(|p| p.at == At::Looking) && !looking;
        if actions.is_empty() && !in_hand && !looking && !put_off && self.may_begin(unknown) {
            let next = hop.steps.iter().find(|s| self.nodes[&s.node].at == At::Waiting);
            // What served before still has to, before the next node is touched.
            if let Some(after) = &self.to_compare {
                let compare = Action::Compare { after: after.clone() };
                if !busy(&compare) {
                    actions.push(compare);
                }
            } else if let Some(next) = next {
                let before = hop
                    .steps
                    .iter()
                    .filter(|s| s.wave == next.wave && self.nodes[&s.node].at == At::Waiting)
                    .map(|s| s.node.clone())
                    .collect();
                actions.push(Action::Look { before });
            }
        }
        actions
    }

    fn next_of(&self, step: &Step) -> Option<Action> {
        let node = step.node.clone();
        let busy =
            self.open.values().any(|o| o.action.node() == Some(&node) && !matches!(o.action, Action::Stage { .. }));
        if busy {
            return None;
        }
        let decision = &self.plan.decision;
        let prove = |version: &Version, settle: SignedDuration| Action::Prove {
            node: node.clone(),
            role: step.role,
            version: version.clone(),
            settle,
            within: decision.manner.ready_within,
        };
        match self.nodes[&node].at {
            At::Cordoning => Some(Action::Cordon { node }),
            At::Draining => Some(Action::Drain { node }),
            At::Swapping => {
                let swap = Swap {
                    role: step.role,
                    to: step.to.clone(),
                    artifact: step.artifact,
                    expect: step.previous,
                    drain: step.drain,
                    cold_copy: step.role == Role::Server && decision.preconditions.datastore == DatastoreKind::Sqlite,
                    back: decision.goes_back(),
                };
                Some(Action::Swap { node, swap })
            }
            At::Proving => Some(prove(&step.to, decision.manner.settle)),
            At::ProvingBack => Some(prove(&step.from, decision.manner.settle)),
            At::PuttingBack => {
                let swap = Swap {
                    role: step.role,
                    to: step.from.clone(),
                    artifact: step.previous,
                    expect: step.artifact,
                    drain: step.drain,
                    cold_copy: false,
                    back: true,
                };
                Some(Action::Swap { node, swap })
            }
            At::Uncordoning | At::UncordoningBack | At::GivingUp => Some(Action::Uncordon { node }),
            At::Waiting | At::Looking | At::Done | At::Back | At::Stuck => None,
        }
    }

    // -------------------------------------------------------------------------------------------------- endings

    fn ending(&self) -> Option<Ending> {
        let touched = !self.versions.is_empty() || self.stopped_for_copy;
        // A node in hand that cannot go on is a reason to hold, never to end: its cordon would be forgotten.
        if self.phase == Phase::Rolling && self.nodes.values().any(|p| p.at.in_hand()) {
            return None;
        }
        match self.phase {
            Phase::Checking if self.findings.iter().any(Finding::blocks) => Some(if touched {
                self.failed_ending("the checks before the next hop say no")
            } else {
                Ending::Refused { findings: self.findings.clone() }
            }),
            Phase::Checking | Phase::Preparing if self.trouble.is_some() => Some(if touched {
                self.failed_ending("the next hop could not be prepared")
            } else {
                Ending::Refused { findings: self.trouble.iter().map(Trouble::finding).collect() }
            }),
            Phase::Checking | Phase::Preparing if self.asked == Some(Request::Abort) => Some(self.aborted()),
            Phase::Rolling if self.trouble.is_some() => Some(self.failed_ending("a node failed")),
            Phase::Rolling if self.asked == Some(Request::Abort) => Some(self.aborted()),
            Phase::Validating if self.worse().is_some() => {
                Some(self.failed_ending("the cluster is not as it was before"))
            }
            Phase::Over => Some(self.over()),
            _ => None,
        }
    }

    fn over(&self) -> Ending {
        if self.given_up {
            return self.aborted();
        }
        if let Some(trouble) = &self.trouble {
            let back =
                self.nodes.values().all(|p| matches!(p.at, At::Back | At::Waiting | At::Looking)) && self.hop == 0;
            return if back && self.worse().is_none() && trouble.node.is_some() {
                Ending::FailedAndBack {
                    what: trouble.what.clone(),
                    because: trouble.because.clone(),
                    next: trouble.next.clone(),
                }
            } else {
                self.failed_ending("not everything is as it was")
            };
        }
        if self.worse().is_some() {
            self.failed_ending("the cluster is not as it was before")
        } else {
            Ending::Completed
        }
    }

    fn failed_ending(&self, fallback: &str) -> Ending {
        let (what, because, next) = match (&self.trouble, self.worse()) {
            (Some(t), None) => (t.what.clone(), t.because.clone(), t.next.clone()),
            (Some(t), Some(worse)) => (format!("{}; {worse}", t.what), t.because.clone(), t.next.clone()),
            (None, Some(worse)) => (
                worse,
                fallback.to_owned(),
                format!(
                    "look at what is named; kadence validate {0}, or kadence rollback {0}",
                    self.plan.decision.cluster
                ),
            ),
            (None, None) => (
                fallback.to_owned(),
                "no single failure stands for it".to_owned(),
                format!("kadence status {}", self.plan.decision.cluster),
            ),
        };
        Ending::Failed { what, because, next, mixed: self.mixed() }
    }

    fn aborted(&self) -> Ending {
        Ending::Aborted { mixed: self.mixed() }
    }

    /// Which versions run where, by this rollout's own doing: version to nodes.
    pub fn mixed(&self) -> BTreeMap<String, Vec<String>> {
        let mut mixed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (node, precondition) in &self.plan.decision.preconditions.nodes {
            let version = self.versions.get(node).unwrap_or(&precondition.version);
            mixed.entry(version.to_string()).or_default().push(node.to_string());
        }
        mixed
    }
}

fn undone(groups: Vec<Vec<Action>>) -> Vec<Vec<(Action, bool)>> {
    groups.into_iter().map(|group| group.into_iter().map(|action| (action, false)).collect()).collect()
}

/// Whether too much may have happened since a node was looked at to stop it on the strength of that look.
fn stale(looked: Option<Timestamp>, now: Timestamp) -> bool {
    looked.is_none_or(|at| now.duration_since(at) > LOOK_HOLDS)
}

fn too_slow(node: &NodeName, glance: &Glance, at: Timestamp) -> No {
    let took = at.duration_since(glance.at).round(jiff::Unit::Second).unwrap_or_else(|_| at.duration_since(glance.at));
    No {
        cause: HoldCause::Unknown,
        what: format!("the look before {node} took {took:#}: what it says of the others is too old to stop {node} on"),
        next: "find out which host answers slowly (kadence inspect), then resume".to_owned(),
    }
}

impl Trouble {
    fn finding(&self) -> Finding {
        Finding {
            code: "PREPARE".to_owned(),
            number: 0,
            verdict: Judged::Block,
            about: self.node.as_ref().map_or_else(|| "cluster".to_owned(), ToString::to_string),
            what: self.what.clone(),
            facts: Vec::new(),
            why: self.because.clone(),
            remedy: self.next.clone(),
            waived: None,
        }
    }
}
