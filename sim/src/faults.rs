//! What goes wrong in the simulated world, and when.

use std::time::Duration;

use jiff::SignedDuration;
use kadence_core::apply::action::Outcome;
use kadence_core::event::{Event, Recorded, Request};
use kadence_core::ident::NodeName;
use kadence_core::inventory::Role;
use kadence_core::version::Version;

use crate::actions::MOST_STEPS;
use crate::rng::Rng;
use crate::world::{Broken, Effect, Over, State, Topology, UnitPhase, World};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub when: When,
    pub what: What,
}

/// When a fault strikes. Numbers count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This long after the world began.
    At(Duration),
    /// Just before this port call does its work. The outage's probes are not counted.
    Call(u64),
    /// This port call did its work, and its answer is on its way.
    Answer(u64),
    /// Just before the rollout's event of this number is stored.
    BeforeEvent(u64),
    /// Just after it.
    AfterEvent(u64),
    /// In the order of this number, before this step of it (from 0).
    Step { order: u32, step: usize },
}

/// Whom a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Node(NodeName),
    /// The node that was cordoned or given an order last; the first server before any was.
    InHand,
    /// A server that is not in hand.
    OtherServer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// SIGKILL to Kadence.
    Kill,
    SshCut {
        at: Target,
        lasts: Duration,
    },
    /// The next copy to the node breaks in the middle.
    SshCutInCopy {
        at: Target,
    },
    ApiAway {
        lasts: Duration,
    },
    /// `back`: after which time power is there again; never, if `None`.
    PowerLoss {
        at: Target,
        back: Option<Duration>,
    },
    DiskFull {
        at: Target,
        lasts: Option<Duration>,
    },
    /// A release does not work: on one node or on all.
    Broken {
        version: Version,
        on: Option<NodeName>,
        how: HowBroken,
    },
    /// A disruption budget allows nothing any more; the first one that there is, if the name is empty.
    BudgetStuck {
        name: String,
    },
    /// Somebody else cordons a node.
    ForeignCordon {
        at: Target,
    },
    /// Somebody changes a node's arguments (they take effect at the next start).
    ForeignArguments {
        at: Target,
    },
    /// Somebody replaces a node's binary.
    ForeignBinary {
        at: Target,
        version: Version,
    },
    /// A server's K3s goes down by itself.
    ServerDown {
        at: Target,
        lasts: Duration,
    },
    /// A member of etcd runs and does not work.
    EtcdSick {
        at: Target,
        lasts: Duration,
    },
    /// A host takes its time to answer what it is asked.
    SlowAnswers {
        at: Target,
        takes: Duration,
        lasts: Duration,
    },
    /// Another Kadence acts: the nodes obey a higher turn from now on.
    HigherTurn,
    /// Another Kadence acts, whose state has handed out the very turn that ours did.
    EqualTurn,
    /// The clock of Kadence's machine jumps.
    ClockJump {
        by: SignedDuration,
    },
    /// The next snapshot or backup cannot be read back.
    SnapshotCorrupt,
    /// Somebody asks the running rollout to stop; nothing, if none runs.
    Asked {
        request: Request,
    },
    /// The release is taken back by its source.
    Withdrawn {
        version: Version,
    },
    SourceAway,
}

/// How a release does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowBroken {
    ExitsAtOnce,
    /// It runs and never gets ready.
    Hangs,
    /// It gets ready and dies after this time, each time anew.
    DiesAfter(Duration),
    /// It runs, and its node is Ready and NotReady in turn.
    Flaps,
}

/// A fault that waits for its time.
#[derive(Clone, Debug)]
pub(crate) struct Armed {
    fault: Fault,
    struck: bool,
}

impl What {
    /// A short name, for counting.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::SshCut { .. } => "ssh-cut",
            Self::SshCutInCopy { .. } => "ssh-cut-in-copy",
            Self::SlowAnswers { .. } => "slow-answers",
            Self::ApiAway { .. } => "api-away",
            Self::PowerLoss { back: Some(_), .. } => "power-loss",
            Self::PowerLoss { back: None, .. } => "power-loss-for-good",
            Self::DiskFull { .. } => "disk-full",
            Self::Broken { how: HowBroken::ExitsAtOnce, .. } => "exits-at-once",
            Self::Broken { how: HowBroken::Hangs, .. } => "hangs",
            Self::Broken { how: HowBroken::DiesAfter(_), .. } => "dies-later",
            Self::Broken { how: HowBroken::Flaps, .. } => "flaps",
            Self::BudgetStuck { .. } => "budget-stuck",
            Self::ForeignCordon { .. } => "foreign-cordon",
            Self::ForeignArguments { .. } => "foreign-arguments",
            Self::ForeignBinary { .. } => "foreign-binary",
            Self::ServerDown { .. } => "server-down",
            Self::EtcdSick { .. } => "etcd-sick",
            Self::HigherTurn => "higher-turn",
            Self::EqualTurn => "equal-turn",
            Self::ClockJump { .. } => "clock-jump",
            Self::SnapshotCorrupt => "snapshot-corrupt",
            Self::Asked { request: Request::Pause } => "pause",
            Self::Asked { request: Request::Abort } => "abort",
            Self::Withdrawn { .. } => "withdrawn",
            Self::SourceAway => "source-away",
        }
    }
}

/// A fault for a cluster that is being updated to `to`, drawn from all there are.
pub fn random(rng: &mut Rng, topology: Topology, to: &Version) -> Fault {
    let when = moment(rng, 1);
    Fault { when, what: trouble(rng, topology, to) }
}

/// A fault for a story that is this many times as long as an update by one patch.
pub fn random_within(rng: &mut Rng, length: u64, topology: Topology, to: &Version) -> Fault {
    let when = moment(rng, length);
    let what = match rng.below(16) {
        0 => What::SourceAway,
        1 => What::ForeignArguments { at: Target::OtherServer },
        _ => trouble(rng, topology, to),
    };
    Fault { when, what }
}

/// A moment in a story that is this many times as long as an update by one patch.
pub fn moment(rng: &mut Rng, length: u64) -> When {
    match rng.below(6) {
        0 => When::At(rng.millis(0, 180_000 * length)),
        1 => When::Call(1 + rng.below(260 * length)),
        2 => When::Answer(1 + rng.below(260 * length)),
        // A way back counts its events anew.
        3 => When::BeforeEvent(1 + rng.below(70)),
        4 => When::AfterEvent(1 + rng.below(70)),
        _ => {
            let order = u32::try_from(1 + rng.below(12 * length)).unwrap_or(1);
            When::Step { order, step: usize::try_from(rng.below(MOST_STEPS as u64)).unwrap_or(0) }
        }
    }
}

fn trouble(rng: &mut Rng, topology: Topology, to: &Version) -> What {
    let nodes: Vec<NodeName> = (1..=topology.servers)
        .map(|n| NodeName::new(format!("s{n}")))
        .chain((1..=topology.agents).map(|n| NodeName::new(format!("a{n}"))))
        .collect();
    let at = match rng.below(4) {
        0 | 1 => Target::InHand,
        2 => Target::OtherServer,
        _ => rng.pick(&nodes).cloned().map_or(Target::InHand, Target::Node),
    };
    match rng.below(21) {
        0..=3 => What::Kill,
        4 if rng.coin() => {
            What::SlowAnswers { at, takes: rng.millis(2000, 25_000), lasts: rng.millis(10_000, 120_000) }
        }
        4 => What::SshCut { at, lasts: rng.millis(1000, 90_000) },
        5 => What::SshCutInCopy { at },
        6 => What::ApiAway { lasts: rng.millis(1000, 90_000) },
        7 | 8 => {
            let back = rng.millis(1000, 60_000);
            What::PowerLoss { at, back: (rng.below(4) != 0).then_some(back) }
        }
        9 => {
            let lasts = rng.millis(1000, 60_000);
            What::DiskFull { at, lasts: rng.coin().then_some(lasts) }
        }
        10 | 11 => {
            let how = match rng.below(4) {
                0 => HowBroken::ExitsAtOnce,
                1 => HowBroken::Hangs,
                2 => HowBroken::DiesAfter(rng.millis(1000, 40_000)),
                _ => HowBroken::Flaps,
            };
            let on = if rng.coin() { rng.pick(&nodes).cloned() } else { None };
            What::Broken { version: to.clone(), on, how }
        }
        12 => What::BudgetStuck { name: String::new() },
        13 => What::ForeignCordon { at },
        14 => What::ForeignArguments { at },
        15 => What::ServerDown { at, lasts: rng.millis(5000, 120_000) },
        16 => What::EtcdSick { at, lasts: rng.millis(5000, 120_000) },
        17 => [What::HigherTurn, What::EqualTurn][usize::from(rng.coin())].clone(),
        18 => {
            let seconds = i64::try_from(rng.below(7200)).unwrap_or(0) - 3600;
            What::ClockJump { by: SignedDuration::from_secs(seconds) }
        }
        19 => What::SnapshotCorrupt,
        _ => What::Withdrawn { version: to.clone() },
    }
}

impl World {
    /// Somebody puts right whatever went wrong, and nothing more goes wrong by itself.
    pub fn mend(&self) {
        self.look(State::mend);
    }
}

impl State {
    fn mend(&mut self) {
        self.note("somebody puts right what went wrong");
        for armed in &mut self.faults {
            armed.struck = true;
        }
        self.broken.clear();
        self.ssh_cut_in_copy.clear();
        self.api_away = false;
        self.source_away = false;
        self.corrupt_next_snapshot = false;
        for (version, release) in crate::release::published() {
            self.releases.entry(version).or_insert(release);
        }
        let nodes: Vec<NodeName> = self.machines.keys().cloned().collect();
        for node in &nodes {
            self.on(node, |m| {
                m.ssh_cut = false;
                m.answers_after = Duration::ZERO;
                m.disk_full = false;
            });
            if self.machines[node].etcd_sick {
                self.fault_over(&Over::Sick(node.clone()));
            }
            let machine = &self.machines[node];
            let (power, down) = (machine.power, machine.unit == UnitPhase::Inactive && machine.enabled);
            if !power {
                self.after(Duration::from_secs(1), Effect::PowerBack { node: node.clone() });
            } else if down {
                self.fault_over(&Over::Down(node.clone()));
            }
        }
        let Some(place) = self.live() else { return };
        let Some(objects) = self.objects_mut(&place) else { return };
        for budget in &mut objects.budgets {
            budget.stuck = false;
        }
        for node in nodes {
            let Some(objects) = self.objects_mut(&place) else { return };
            if objects.nodes.get(&node).is_some_and(|r| r.cordoned && r.mark.is_none()) {
                objects.change(&node, |record| record.cordoned = false);
                self.watch.foreign_cordon_lifted(&node);
            }
        }
    }

    pub(crate) fn arm(&mut self, fault: Fault) {
        // A release that is broken from the beginning waits for nothing.
        self.faults.push(Armed { fault, struck: false });
    }

    fn strike_where(&mut self, fits: impl Fn(&When) -> bool, step: &str) {
        for index in 0..self.faults.len() {
            if !self.faults[index].struck && fits(&self.faults[index].fault.when) {
                self.strike_in(index, step);
            }
        }
    }

    /// A fault whose time has come.
    pub(crate) fn strike(&mut self, index: usize) {
        let step = self.last_call;
        self.strike_in(index, step);
    }

    fn strike_in(&mut self, index: usize, step: &str) {
        let Some(armed) = self.faults.get_mut(index) else { return };
        if std::mem::replace(&mut armed.struck, true) {
            return;
        }
        let what = armed.fault.what.clone();
        self.reach(what.word().to_owned(), step.to_owned());
        self.strike_now(&what);
    }

    pub(crate) fn count_call(&mut self, name: &'static str) {
        self.calls += 1;
        self.last_call = name;
        let calls = self.calls;
        self.strike_where(|when| *when == When::Call(calls), name);
    }

    /// A call did its work.
    pub(crate) fn answered(&mut self) {
        self.answers += 1;
        let (answers, name) = (self.answers, self.last_call);
        self.strike_where(|when| *when == When::Answer(answers), name);
    }

    pub(crate) fn at_event(&mut self, event: &Recorded, written: bool) {
        if written {
            self.judge_event(event);
        }
        let number = event.number;
        let moment = if written { When::AfterEvent(number) } else { When::BeforeEvent(number) };
        let step = format!("{} {}", if written { "after" } else { "before" }, event_word(&event.event));
        self.strike_where(|when| *when == moment, &step);
    }

    pub(crate) fn at_step(&mut self, order: u32, step: usize, task: &str) {
        let moment = When::Step { order, step };
        self.strike_where(|when| *when == moment, &format!("{task} step {step}"));
    }

    fn target(&mut self, target: &Target) -> Option<NodeName> {
        let servers: Vec<NodeName> =
            self.machines.values().filter(|m| m.role == Role::Server).map(|m| m.name.clone()).collect();
        match target {
            Target::Node(node) => self.machines.contains_key(node).then(|| node.clone()),
            Target::InHand => self.in_hand.clone().or_else(|| servers.first().cloned()),
            Target::OtherServer => {
                let others: Vec<NodeName> = servers.into_iter().filter(|s| Some(s) != self.in_hand.as_ref()).collect();
                self.rng.pick(&others).cloned()
            }
        }
    }

    pub(crate) fn strike_now(&mut self, what: &What) {
        let node = match what {
            What::SshCut { at, .. }
            | What::SshCutInCopy { at }
            | What::SlowAnswers { at, .. }
            | What::PowerLoss { at, .. }
            | What::DiskFull { at, .. }
            | What::ForeignCordon { at }
            | What::ForeignArguments { at }
            | What::ForeignBinary { at, .. }
            | What::ServerDown { at, .. }
            | What::EtcdSick { at, .. } => match self.target(at) {
                Some(node) => Some(node),
                None => return,
            },
            _ => None,
        };
        match &node {
            Some(node) => self.note(format!("FAULT {} on {node}", what.word())),
            None => self.note(format!("FAULT {}", what.word())),
        }
        self.cause(what, &node.unwrap_or_else(|| NodeName::new("")));
    }

    fn cause(&mut self, what: &What, node: &NodeName) {
        match what {
            What::Kill => self.dead = self.process,
            What::SshCut { lasts, .. } => {
                self.on(node, |m| m.ssh_cut = true);
                self.after(*lasts, Effect::FaultOver { what: Over::Ssh(node.clone()) });
            }
            What::SlowAnswers { takes, lasts, .. } => {
                self.on(node, |m| m.answers_after = *takes);
                self.after(*lasts, Effect::FaultOver { what: Over::Slow(node.clone()) });
            }
            What::SshCutInCopy { .. } => {
                self.ssh_cut_in_copy.insert(node.clone());
            }
            What::ApiAway { lasts } => {
                self.api_away = true;
                self.after(*lasts, Effect::FaultOver { what: Over::Api });
            }
            What::PowerLoss { back, .. } => self.power_cut(node, *back),
            What::DiskFull { lasts, .. } => {
                self.on(node, |m| m.disk_full = true);
                if let Some(lasts) = lasts {
                    self.after(*lasts, Effect::FaultOver { what: Over::Disk(node.clone()) });
                }
            }
            What::Broken { version, on, how } => {
                self.broken.push(Broken { version: version.clone(), on: on.clone(), how: *how });
            }
            What::BudgetStuck { name } => {
                if let Some(objects) = self.live().and_then(|p| self.objects_mut(&p)) {
                    let budget = objects.budgets.iter_mut().find(|b| name.is_empty() || b.name == name);
                    if let Some(budget) = budget {
                        budget.stuck = true;
                    }
                }
            }
            What::ForeignCordon { .. } => self.foreign_cordon(node),
            What::ForeignArguments { .. } => {
                let now = self.now;
                self.on(node, |m| {
                    m.arguments += 1;
                    m.arguments_changed = Some(now);
                });
                self.changed_by_others(node);
            }
            What::ForeignBinary { version, .. } => {
                let version = version.clone();
                self.on(node, |m| m.installed = crate::release::Binary::of(&version, m.arch));
                self.changed_by_others(node);
            }
            What::ServerDown { lasts, .. } => {
                self.crash(node);
                self.after(*lasts, Effect::FaultOver { what: Over::Down(node.clone()) });
            }
            What::EtcdSick { lasts, .. } => {
                self.make_sick(node);
                self.after(*lasts, Effect::FaultOver { what: Over::Sick(node.clone()) });
            }
            What::HigherTurn => {
                let turn = self.machines.values().map(|m| m.folder.turn.0).max().unwrap_or(0) + 10;
                self.another_kadence(turn);
            }
            What::EqualTurn => {
                let turn = self.machines.values().map(|m| m.folder.turn.0).max().unwrap_or(0);
                self.another_kadence(turn.max(self.watch.turn()));
            }
            What::ClockJump { by } => self.skew += *by,
            What::SnapshotCorrupt => self.corrupt_next_snapshot = true,
            What::Asked { request } => {
                if self.rolls {
                    self.asked.push(*request);
                    self.hold_asked(*request);
                }
            }
            What::Withdrawn { version } => {
                self.releases.remove(version);
            }
            What::SourceAway => self.source_away = true,
        }
    }

    fn on(&mut self, node: &NodeName, change: impl FnOnce(&mut crate::world::Machine)) {
        if let Some(machine) = self.machines.get_mut(node) {
            change(machine);
            machine.changes += 1;
        }
    }

    /// A Kadence on another machine has the nodes obey this turn.
    fn another_kadence(&mut self, turn: u64) {
        for machine in self.machines.values_mut() {
            machine.folder.turn = (turn, "another".to_owned());
        }
        self.watch.turn_of_others(turn);
    }

    fn foreign_cordon(&mut self, node: &NodeName) {
        let Some(place) = self.live() else { return };
        let Some(objects) = self.objects_mut(&place) else { return };
        // One that is cordoned already cannot be cordoned by somebody else, too.
        if objects.nodes.get(node).is_none_or(|n| n.cordoned) {
            return;
        }
        objects.change(node, |record| record.cordoned = true);
        self.watch.foreign_cordon(node);
    }
}

/// What kind of event it is, with what its action does.
fn event_word(event: &Event) -> String {
    let word = |debug: String| debug.split([' ', '{', '(']).next().unwrap_or_default().to_lowercase();
    match event {
        Event::Intent { action, .. } => format!("intent {}", word(format!("{action:?}"))),
        Event::Outcome { outcome, .. } => match &**outcome {
            Outcome::Done { report, .. } => format!("outcome {}", word(format!("{report:?}"))),
            Outcome::Failed { failure, .. } => format!("outcome {}", word(format!("{:?}", failure.kind))),
            Outcome::Unknown { .. } => "outcome unknown".to_owned(),
        },
        other => word(format!("{other:?}")),
    }
}
