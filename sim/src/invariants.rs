//! The invariants of a rollout, asserted on the world as it is and not on what Kadence believes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use kadence_core::apply::action::{Action, Outcome, Report};
use kadence_core::apply::plan::DeclaredOutage;
use kadence_core::event::{Ending, Event, Hold, Recorded, Request};
use kadence_core::ident::{ActionId, Digest, NodeName};
use kadence_core::inventory::Role;
use kadence_core::version::Version;
use kadence_engine::ports::{Order, Task};

use crate::objects::Objects;
use crate::world::{Content, Data, Machine, State, UnitPhase, World};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's number in the design.
    pub invariant: u8,
    /// Since the world began.
    pub at: Duration,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {} broken at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// How long Kadence may need to learn of something and act on it.
const REACTS_WITHIN: Duration = Duration::from_secs(20);
/// A look that was under way when a hold was asked for may still end in its step.
const LOOK_UNDER_WAY: Duration = Duration::from_secs(3);
/// From the last facts of a validation to the end that is said of them: tidying up waits for a node that is away.
const LAST_WORD: Duration = Duration::from_secs(5);
/// From the look before a node to its stop: what goes down by itself in between could not be seen. A drain takes
/// longer, and is followed by another look.
const BETWEEN_LOOK_AND_STOP: Duration = Duration::from_secs(5);

/// What is remembered of the world to judge what happens next.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    violations: Vec<Violation>,
    consent: Option<DeclaredOutage>,
    agents_at_once: usize,
    /// The versions that ran when the rollout began.
    began: BTreeMap<NodeName, Version>,
    /// Every version that a node had installed.
    had: BTreeMap<NodeName, BTreeSet<Version>>,
    /// Nodes that an order of ours stopped and that are not healthy again, with the order's rollout.
    ours_down: BTreeMap<NodeName, String>,
    /// Backups that lie off their node: their rollout and the version they were taken on.
    backups: Vec<(Option<String>, Version)>,
    /// Backups that lie on Kadence's machine and are not in the vault yet.
    arrived: Vec<(Option<String>, Version)>,
    renames: BTreeMap<ActionId, u32>,
    /// The nodes that proofs are about.
    proofs: BTreeMap<ActionId, NodeName>,
    /// Restores of a datastore, with the machine's life right after.
    restores: BTreeMap<(NodeName, String), u64>,
    foreign_cordons: BTreeSet<NodeName>,
    changed_by_others: BTreeMap<NodeName, Duration>,
    /// Nodes on which we acted since the rollout began.
    touched: BTreeSet<NodeName>,
    hold_asked: Option<HoldAsked>,
    /// Servers of which anybody can see that they are not healthy, and not by our hand.
    red_since: BTreeMap<NodeName, Duration>,
    /// Nodes that are not well, for whatever reason.
    unwell_since: BTreeMap<NodeName, Duration>,
    split_brain: bool,
    /// The turn that Kadence took last, and the one that another Kadence took.
    turn: u64,
    turn_of_others: u64,
}

#[derive(Clone, Debug)]
struct HoldAsked {
    at: Duration,
    in_hand: Option<NodeName>,
    request: Request,
}

impl Watch {
    pub(crate) fn begin(&mut self, machines: &BTreeMap<NodeName, Machine>) {
        self.agents_at_once = self.agents_at_once.max(1);
        self.began = machines.iter().map(|(n, m)| (n.clone(), m.installed.version.clone())).collect();
        for (name, machine) in machines {
            self.had.entry(name.clone()).or_default().insert(machine.installed.version.clone());
        }
    }

    pub(crate) fn foreign_cordon(&mut self, node: &NodeName) {
        self.foreign_cordons.insert(node.clone());
    }

    pub(crate) fn turn_taken(&mut self, turn: u64) {
        self.turn = turn;
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }

    pub(crate) fn turn_of_others(&mut self, turn: u64) {
        self.turn_of_others = turn;
    }

    /// A restore brings back an earlier time: a cordon that somebody set after it is lost with all else, as was said.
    pub(crate) fn data_is_back(&mut self, objects: &Objects) {
        self.foreign_cordons.retain(|n| objects.nodes.get(n).is_some_and(|r| r.cordoned && r.mark.is_none()));
    }

    /// Whoever set a cordon lifted it.
    pub(crate) fn foreign_cordon_lifted(&mut self, node: &NodeName) {
        self.foreign_cordons.remove(node);
    }

    /// A power cut brought an unsynced rename back: it counts as not done.
    pub(crate) fn undone_by_power_cut(&mut self, action: &ActionId) {
        self.renames.remove(action);
    }
}

impl World {
    /// Every invariant that was broken so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.look(|s| s.watch.violations.clone())
    }

    /// A person consents to this outage, for the rollout that follows.
    pub fn consent(&self, outage: Option<DeclaredOutage>) {
        self.look(|s| s.watch.consent = outage);
    }

    /// How many agents the plan lets be in flight at once.
    pub fn agents_at_once(&self, agents: u32) {
        self.look(|s| s.watch.agents_at_once = usize::try_from(agents).unwrap_or(usize::MAX).max(1));
    }

    /// A rollout begins: the versions of now are those that a failure has to go back to.
    pub fn rollout_begins(&self) {
        self.look(|s| {
            let machines = std::mem::take(&mut s.machines);
            s.watch.begin(&machines);
            s.machines = machines;
            s.watch.hold_asked = None;
            s.rolls = true;
            s.watch.touched.clear();
            s.watch.changed_by_others.clear();
        });
    }

    /// Somebody asked for a hold (a pause, an abort, a freeze): from now on no new node may be touched.
    pub fn hold_asked(&self) {
        self.look(|s| s.hold_asked(Request::Abort));
    }

    /// Somebody resumes the rollout: a pause is over, an abort is not.
    pub fn resumed(&self) {
        self.look(|s| s.watch.hold_asked.take_if(|asked| asked.request == Request::Pause));
    }

    /// A rollout stands still: whoever comes has to be told why.
    pub fn judge_hold(&self, hold: &Hold) {
        self.look(|s| {
            if hold.what.is_empty() || hold.next.is_empty() {
                s.violated(4, "a hold names no cause, or nothing to do".to_owned());
            }
        });
    }

    /// Kadence goes on for ever.
    pub fn judge_endless(&self) {
        self.look(|s| s.violated(4, "it neither ends nor holds".to_owned()));
    }

    /// Judges what Kadence wrote where anybody may read it.
    pub fn judge_written(&self, what: &str, text: &str) {
        if text.contains(crate::SECRET) {
            self.look(|s| s.violated(12, format!("{what} has a secret in it")));
        }
    }

    /// Judges how a rollout ended against how the world is. `excluded` are agents left out on purpose.
    pub fn judge_end(&self, ending: &Ending, target: &Version, excluded: &BTreeSet<NodeName>) {
        self.look(|s| {
            s.rolls = false;
            s.judge_cordons();
            match ending {
                Ending::Completed => s.judge_completed(target, excluded),
                Ending::FailedAndBack { .. } => s.judge_back("failed and back"),
                Ending::Refused { .. } => s.judge_back("refused"),
                Ending::Failed { .. } | Ending::Aborted { .. } => {}
            }
        });
    }
}

impl State {
    fn violated(&mut self, invariant: u8, what: String) {
        self.note(format!("VIOLATION of invariant {invariant}"));
        self.watch.violations.push(Violation { invariant, at: self.now, what });
    }

    fn is_server(&self, node: &NodeName) -> bool {
        self.machines.get(node).is_some_and(|m| m.role == Role::Server)
    }

    fn is_upward_swap(&self, node: &NodeName, order: &Order) -> bool {
        match &order.task {
            Task::Swap { to, .. } => {
                // Asked before and after the rename: what ran is what it comes from.
                let came_from = self.watch.began.get(node);
                came_from.is_some_and(|from| to > from)
            }
            _ => false,
        }
    }

    /// A node takes an order.
    pub(crate) fn judge_order(&mut self, node: &NodeName, order: &Order) {
        let ours = order.rollout.family().to_owned();
        let other =
            self.watch.ours_down.iter().find(|(_, rollout)| **rollout != ours).map(|(n, r)| (n.clone(), r.clone()));
        let restores = self.watch.consent == Some(DeclaredOutage::Restore);
        if let Some((other, rollout)) = other
            && other != *node
            && !restores
            && acts(&order.task)
        {
            self.violated(9, format!("{ours} acts on {node} while {rollout} has {other} in hand"));
        }
        let (ours, others) = (self.watch.turn, self.watch.turn_of_others);
        if others > 0 && others >= ours && acts(&order.task) {
            self.violated(9, format!("{node} obeys turn {ours} although another Kadence has {others}"));
        }
        let changed = self.watch.changed_by_others.get(node).copied();
        if let Some(at) = changed
            && at + REACTS_WITHIN < self.now
            && self.is_upward_swap(node, order)
        {
            self.violated(7, format!("{node} is updated although somebody changed it at {:.3} s", at.as_secs_f64()));
        }
    }

    /// An order is about to stop K3s on a node.
    pub(crate) fn judge_stop(&mut self, node: &NodeName, order: &Order) {
        let consent = self.watch.consent;
        let restores = consent == Some(DeclaredOutage::Restore);
        let others: Vec<NodeName> = self.watch.ours_down.keys().filter(|n| *n != node).cloned().collect();
        if self.is_server(node) {
            if let Some(other) = others.iter().find(|n| self.is_server(n))
                && !restores
            {
                self.violated(1, format!("{node} is stopped while {other} is down by our hand"));
            }
            if let Data::Etcd { cluster, member } = self.machines[node].data
                && self.member_up(cluster, member)
                && consent.is_none()
            {
                let (up, needed) = self.quorum(cluster);
                let just_lost = self.just_red(node);
                if up + just_lost <= needed {
                    self.violated(
                        1,
                        format!("{node} is stopped: {} of the {needed} voters that etcd needs are left", up - 1),
                    );
                }
            }
            let alone = self.serves(node)
                && self.just_red(node) == 0
                && !self.machines.keys().any(|n| n != node && self.serves(n));
            if alone && consent.is_none() {
                self.violated(1, format!("{node} is stopped, and no other API server serves"));
            }
        } else {
            let agents = others.iter().filter(|n| !self.is_server(n)).count();
            if agents >= self.watch.agents_at_once && !restores {
                let most = self.watch.agents_at_once;
                self.violated(
                    10,
                    format!("{node} is stopped while {agents} agents are in flight, at most {most} may be"),
                );
            }
            if let Some(server) = others.iter().find(|n| self.is_server(n))
                && !restores
            {
                self.violated(10, format!("{node} is stopped while server {server} is in flight"));
            }
        }
        let red = self.watch.red_since.iter().find(|(n, since)| *n != node && **since + REACTS_WITHIN < self.now);
        if let Some((red, since)) = red.map(|(n, s)| (n.clone(), *s))
            && self.is_upward_swap(node, order)
            && !restores
        {
            self.violated(
                6,
                format!("{node} is updated while {red} is not healthy since {:.3} s", since.as_secs_f64()),
            );
        }
        self.watch.touched.insert(node.clone());
        self.watch.ours_down.insert(node.clone(), order.rollout.family().to_owned());
    }

    /// Servers that went down by themselves since the look before this node.
    fn just_red(&self, node: &NodeName) -> usize {
        let just = |n: &NodeName| match self.watch.red_since.get(n) {
            Some(since) => *since + BETWEEN_LOOK_AND_STOP >= self.now,
            // In this very moment.
            None => self.is_red(n) && !self.watch.ours_down.contains_key(n),
        };
        self.machines.keys().filter(|n| *n != node && self.is_server(n) && just(n)).count()
    }

    /// An order is about to put another binary in place.
    pub(crate) fn judge_rename(&mut self, node: &NodeName, order: &Order, from: &Version, to: &Version) {
        let had_before = self.watch.had.get(node).is_some_and(|had| had.contains(to));
        if to < from && !had_before {
            self.violated(2, format!("{node} goes from {from} down to {to}, which it never had"));
        }
        if to.minor().above(from.minor()).is_none_or(|d| d > 1) {
            self.violated(2, format!("{node} skips a minor from {from} to {to}"));
        }
        if to > from && self.is_server(node) {
            let family = order.rollout.family();
            let backed_up = self
                .watch
                .backups
                .iter()
                .any(|(rollout, version)| version == from && rollout.as_ref().is_none_or(|r| r == family));
            if !backed_up {
                self.violated(3, format!("{node} gets {to} and no backup of {from} lies off its node"));
            }
        }
        let renames = self.watch.renames.entry(order.id.clone()).or_default();
        *renames += 1;
        if *renames > 1 {
            self.violated(8, format!("{node}: order {} puts its binary in place a second time", order.id));
        }
        self.watch.had.entry(node.clone()).or_default().insert(to.clone());
    }

    /// K3s has started on a node.
    pub(crate) fn judge_start(&mut self, node: &NodeName) {
        let versions = |role: Role| {
            self.machines
                .values()
                .filter(move |m| m.role == role)
                .filter_map(|m| Some((m.name.clone(), m.running.as_ref()?.0.version.clone())))
        };
        let oldest = versions(Role::Server).min_by(|a, b| a.1.cmp(&b.1));
        let newest = versions(Role::Server).max_by(|a, b| a.1.cmp(&b.1));
        let agent = versions(Role::Agent).max_by(|a, b| a.1.cmp(&b.1));
        if let (Some((server, old)), Some((agent, new))) = (&oldest, &agent)
            && new > old
            && (node == server || node == agent)
        {
            self.violated(2, format!("agent {agent} runs {new} beside server {server} on {old}"));
        }
        if let (Some((one, old)), Some((other, new))) = (&oldest, &newest)
            && new.minor().above(old.minor()).is_none_or(|d| d > 1)
        {
            self.violated(2, format!("server {other} runs {new} beside {one} on {old}"));
        }
    }

    /// An order is about to restore the datastore.
    pub(crate) fn judge_reset(&mut self, node: &NodeName, order: &Order) {
        if self.watch.consent != Some(DeclaredOutage::Restore) {
            self.violated(1, format!("the datastore is restored on {node} without anybody's consent"));
        }
        let running: Vec<String> =
            self.machines.values().filter(|m| m.running.is_some()).map(|m| m.name.to_string()).collect();
        if !running.is_empty() {
            self.violated(1, format!("the datastore is restored on {node} while K3s runs on {}", running.join(", ")));
        }
        let life = self.machines[node].life;
        let key = (node.clone(), order.rollout.family().to_owned());
        if let Some(before) = self.watch.restores.insert(key, life)
            && before != life
        {
            self.violated(8, format!("{node} is restored again after it had been started"));
        }
    }

    /// What Kadence stored is judged by what was so.
    pub(crate) fn judge_event(&mut self, recorded: &Recorded) {
        match &recorded.event {
            Event::Intent { id, action: Action::Prove { node, .. } } => {
                self.watch.proofs.insert(id.clone(), node.clone());
            }
            Event::Outcome { id, outcome, .. }
                if matches!(**outcome, Outcome::Done { report: Report::Proven { .. }, .. }) =>
            {
                let Some(node) = self.watch.proofs.get(id).cloned() else { return };
                let silent = self.machines.get(&node).filter(|m| !m.kubelet_up).and_then(|m| m.running.as_ref());
                if silent.is_some_and(|(_, started)| *started + LAST_WORD < self.now) {
                    let what = format!("{node} is called proven, and its kubelet has said nothing since K3s started");
                    self.violated(11, what);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn hold_asked(&mut self, request: Request) {
        let asked = HoldAsked { at: self.now, in_hand: self.in_hand.clone(), request };
        self.watch.hold_asked = Some(asked);
    }

    /// A node gets our cordon.
    pub(crate) fn judge_cordon(&mut self, node: &NodeName, rollout: &str) {
        let Some(HoldAsked { at, in_hand, .. }) = self.watch.hold_asked.clone() else { return };
        if at + LOOK_UNDER_WAY < self.now && in_hand.as_ref() != Some(node) {
            let what = format!("{rollout} cordons {node} although a hold was asked for at {:.3} s", at.as_secs_f64());
            self.violated(6, what);
        }
    }

    pub(crate) fn changed_by_others(&mut self, node: &NodeName) {
        let now = self.now;
        self.watch.changed_by_others.insert(node.clone(), now);
    }

    /// A file has arrived on Kadence's machine.
    pub(crate) fn pulled(&mut self, digest: Digest) {
        if let Some(stored) = self.stored.get(&digest)
            && let Content::Snapshot(snapshot) = &stored.what
            && snapshot.usable
        {
            self.watch.arrived.push((Some(snapshot.rollout.clone()), snapshot.version.clone()));
        }
    }

    /// What has arrived was put into the vault.
    pub(crate) fn kept(&mut self) {
        let arrived = std::mem::take(&mut self.watch.arrived);
        self.watch.backups.extend(arrived);
    }

    /// The user's command has backed up an external datastore.
    pub(crate) fn external_backed_up(&mut self) {
        let oldest = self
            .machines
            .values()
            .filter(|m| m.role == Role::Server)
            .filter_map(|m| m.running.as_ref().map(|(b, _)| b.version.clone()))
            .min();
        if let Some(oldest) = oldest {
            self.watch.backups.push((None, oldest));
        }
    }

    /// Something has happened by itself.
    pub(crate) fn after_change(&mut self) {
        let well: BTreeMap<NodeName, bool> = self.machines.keys().map(|n| (n.clone(), self.well(n))).collect();
        self.watch.ours_down.retain(|node, _| !well.get(node).copied().unwrap_or(false));
        let now = self.now;
        let nodes: Vec<NodeName> = self.machines.keys().cloned().collect();
        for node in &nodes {
            if self.seems_well(node) {
                self.watch.unwell_since.remove(node);
            } else {
                self.watch.unwell_since.entry(node.clone()).or_insert(now);
            }
            if self.watch.ours_down.contains_key(node) || !self.is_server(node) || !self.is_red(node) {
                self.watch.red_since.remove(node);
            } else {
                self.watch.red_since.entry(node.clone()).or_insert(now);
            }
        }
        let leading: Vec<u32> = self.etcds.iter().filter(|(_, e)| e.leader.is_some()).map(|(c, _)| *c).collect();
        if leading.len() > 1 && !std::mem::replace(&mut self.watch.split_brain, true) {
            self.violated(1, "two etcd clusters of this one cluster have a leader each".to_owned());
        }
    }

    /// A server that does not serve, whose etcd is sick, or whose Node says NotReady. A kubelet that is away shows only
    /// when its lease has run out.
    fn is_red(&self, node: &NodeName) -> bool {
        let sick = self.machines[node].etcd_sick;
        let ready = self.live().and_then(|p| self.objects(&p)?.nodes.get(node).map(|r| r.ready == Some(true)));
        sick || !self.serves(node) || ready == Some(false)
    }

    /// What anybody can see of the node is well: its unit, its process, its Node, and on a server its API and its etcd.
    fn seems_well(&self, node: &NodeName) -> bool {
        let machine = &self.machines[node];
        let ready = self.live().and_then(|p| self.objects(&p)?.nodes.get(node).map(|r| r.ready == Some(true)));
        machine.unit == UnitPhase::Running
            && machine.running.as_ref().is_some_and(|(binary, _)| *binary == machine.installed)
            && ready == Some(true)
            && (machine.role == Role::Agent || !self.is_red(node))
    }

    /// Healthy, and the process that should run does.
    fn well(&self, node: &NodeName) -> bool {
        let machine = &self.machines[node];
        machine.unit == UnitPhase::Running
            && machine.running.as_ref().is_some_and(|(binary, _)| *binary == machine.installed)
            && self.healthy(node)
    }

    // ------------------------------------------------------------------------------------------------ the ending

    fn judge_cordons(&mut self) {
        let Some(place) = self.live() else { return };
        let Some(objects) = self.objects(&place) else { return };
        let mut wrong = Vec::new();
        for (node, record) in &objects.nodes {
            if record.cordoned && record.mark.is_some() && self.healthy(node) {
                wrong.push(format!("{node} is healthy and still has our cordon"));
            }
            if self.watch.foreign_cordons.contains(node) && !record.cordoned {
                wrong.push(format!("somebody else's cordon of {node} is gone"));
            }
        }
        for what in wrong {
            self.violated(5, what);
        }
    }

    fn judge_completed(&mut self, target: &Version, excluded: &BTreeSet<NodeName>) {
        let mut wrong = Vec::new();
        for (name, machine) in self.machines.iter().filter(|(n, _)| !excluded.contains(*n)) {
            if machine.installed.version != *target {
                wrong.push(format!("{name} has {} installed", machine.installed.version));
            }
            if !machine.enabled {
                wrong.push(format!("K3s is not enabled on {name}"));
            }
            // What broke while the last word was being said, nobody could know.
            let since = self.watch.unwell_since.get(name).filter(|since| **since + LAST_WORD < self.now);
            if let Some(since) = since {
                wrong.push(format!("{name} is not healthy since {:.3} s", since.as_secs_f64()));
            }
            match &machine.running {
                Some((binary, _)) if binary.version != *target => {
                    wrong.push(format!("{name} runs {}", binary.version));
                }
                _ => {}
            }
        }
        let fresh = self.watch.unwell_since.values().any(|since| *since + LAST_WORD >= self.now);
        if fresh && wrong.is_empty() {
            return;
        }
        wrong.extend(self.unsettled(target));
        for what in wrong {
            self.violated(11, format!("`completed` was said, and {what}"));
        }
    }

    fn judge_back(&mut self, said: &str) {
        let mut wrong = Vec::new();
        for (name, before) in &self.watch.began {
            let machine = &self.machines[name];
            if machine.installed.version != *before {
                wrong.push(format!("{name} has {} installed and had {before}", machine.installed.version));
            }
            if self.watch.touched.contains(name) && !self.healthy(name) {
                wrong.push(format!("{name} is not healthy"));
            }
        }
        for what in wrong {
            self.violated(11, format!("`{said}` was said, and {what}"));
        }
    }

    fn unsettled(&self, target: &Version) -> Vec<String> {
        let Some(objects) = self.live().and_then(|p| self.objects(&p)) else {
            return vec!["no API server serves".to_owned()];
        };
        let mut wrong: Vec<String> =
            objects.short_of_pods().into_iter().map(|c| format!("{c} has too few pods")).collect();
        if objects.packaged.version != *target {
            wrong.push(format!("the packaged components are those of {}", objects.packaged.version));
        }
        if !objects.packaged.settled {
            wrong.push("the packaged components have not settled".to_owned());
        }
        wrong
    }
}

/// Whether a task changes what runs.
fn acts(task: &Task) -> bool {
    matches!(task, Task::Swap { .. } | Task::Stop | Task::Restart | Task::SqliteStoppedCopy | Task::EtcdReset { .. })
}
