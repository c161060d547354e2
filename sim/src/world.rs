//! The simulated world: machines with K3s, etcd, the objects of the cluster, and time.
//!
//! The world is a discrete-event simulation. What will happen lies in a queue, ordered by time and by the order in
//! which it was decided; whoever looks at the world first lets everything happen that is due. Time is tokio's: under a
//! paused clock, waiting costs nothing. Chance comes from one seeded generator and every collection is ordered, so a
//! seed gives the same world each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::event::{Recorded, Request};
use kadence_core::ident::{ActionId, Digest, NodeName};
use kadence_core::inventory::{Arch, Role, Unit};
use kadence_core::version::Version;
use kadence_engine::ports::RemoteFile;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::actions::Record;
use crate::faults::{Armed, Fault, HowBroken, What, When};
use crate::invariants::Watch;
use crate::objects::{Objects, Workload};
use crate::release::{Binary, Published, etcd_minor, published};
use crate::rng::Rng;

/// How many servers and agents a cluster has, and where it keeps its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub servers: u8,
    pub agents: u8,
    pub datastore: DatastoreKind,
}

/// A world to be made.
pub struct Setup {
    topology: Topology,
    version: Version,
    seed: u64,
    workload: Workload,
    faults: Vec<Fault>,
    sqlite_tools: bool,
}

/// A simulated cluster. Clones are the same world.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    /// Wakes those who wait for the death of a Kadence.
    killed: Notify,
    started: Instant,
}

/// One Kadence's grip on the world: its calls stop for ever when it is killed.
#[derive(Clone)]
pub(crate) struct Handle {
    world: World,
    process: u64,
}

pub(crate) struct State {
    pub(crate) topology: Topology,
    /// Time since the world began; while an effect is applied, the time at which it is due.
    pub(crate) now: Duration,
    began: Timestamp,
    /// How far the clock of the machine that Kadence runs on has jumped.
    pub(crate) skew: SignedDuration,
    pub(crate) rng: Rng,
    queue: BTreeMap<(Duration, u64), Effect>,
    sequence: u64,
    dirty: bool,
    pub(crate) machines: BTreeMap<NodeName, Machine>,
    /// Every etcd cluster that ever was; a reset makes a new one beside the old.
    pub(crate) etcds: BTreeMap<u32, Etcd>,
    /// The objects in an external datastore.
    pub(crate) external: Option<Objects>,
    pub(crate) releases: BTreeMap<Version, Published>,
    pub(crate) cache: BTreeSet<(Version, Arch)>,
    pub(crate) source_away: bool,
    pub(crate) api_away: bool,
    pub(crate) prober_commands: BTreeMap<String, i32>,
    pub(crate) corrupt_next_snapshot: bool,
    pub(crate) ssh_cut_in_copy: BTreeSet<NodeName>,
    pub(crate) broken: Vec<Broken>,
    pub(crate) faults: Vec<Armed>,
    pub(crate) calls: u64,
    pub(crate) answers: u64,
    pub(crate) orders: u32,
    /// The node that was given an order or cordoned last.
    pub(crate) in_hand: Option<NodeName>,
    pub(crate) last_call: &'static str,
    pub(crate) process: u64,
    /// Processes up to this one are dead.
    pub(crate) dead: u64,
    /// Files on nodes by digest, so that a file that is sent back is known for what it is.
    pub(crate) stored: BTreeMap<Digest, Arc<Stored>>,
    pub(crate) watch: Watch,
    /// What was asked of the running rollout and not taken by it yet.
    pub(crate) asked: Vec<Request>,
    /// A rollout has begun and not ended.
    pub(crate) rolls: bool,
    log: Vec<(Duration, String)>,
    trace: u64,
    pid: u32,
    reached: BTreeMap<(String, String), u32>,
}

/// A release that does not work, on one node or on all.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) version: Version,
    pub(crate) on: Option<NodeName>,
    pub(crate) how: HowBroken,
}

/// An etcd cluster: one that began together, or by a reset.
pub(crate) struct Etcd {
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) leader: Option<u64>,
    electing: bool,
    term: u64,
    /// The minor that all members have had; an older etcd refuses to start on it.
    pub(crate) cluster_minor: (u32, u32),
    pub(crate) objects: Objects,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: NodeName,
    pub(crate) name: String,
    pub(crate) peer: String,
    pub(crate) learner: bool,
}

/// A host.
pub(crate) struct Machine {
    pub(crate) name: NodeName,
    pub(crate) role: Role,
    pub(crate) address: String,
    pub(crate) arch: Arch,
    pub(crate) machine_id: String,
    pub(crate) boots: u32,
    pub(crate) power: bool,
    pub(crate) ssh_cut: bool,
    /// How long it takes to answer what it is asked, beside the usual.
    pub(crate) answers_after: Duration,
    pub(crate) disk_free: u64,
    pub(crate) disk_full: bool,
    pub(crate) tools: bool,
    /// The server that `server:` in the configuration points to.
    pub(crate) joins: Option<String>,
    /// Changes when somebody changes the arguments.
    pub(crate) arguments: u32,
    /// Those with which K3s was last started.
    pub(crate) started_with: u32,
    /// When somebody last did; `None`: never.
    pub(crate) arguments_changed: Option<Duration>,
    pub(crate) installed: Binary,
    pub(crate) unit: UnitPhase,
    pub(crate) enabled: bool,
    pub(crate) restarts: u32,
    pub(crate) pid: u32,
    /// The process that runs, and since when.
    pub(crate) running: Option<(Binary, Duration)>,
    /// Grows with every start and stop; what was decided for an earlier life is void.
    pub(crate) life: u64,
    pub(crate) etcd_up: bool,
    pub(crate) etcd_sick: bool,
    pub(crate) api_up: bool,
    pub(crate) kubelet_up: bool,
    /// Its pods lost their processes in a power cut.
    pub(crate) pods_lost: bool,
    pub(crate) data: Data,
    pub(crate) folder: Folder,
    pub(crate) journal: Vec<(String, String)>,
    /// Grows with everything that `follow` could show.
    pub(crate) changes: u64,
}

/// What the data directory holds.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    None,
    Etcd { cluster: u32, member: u64 },
    Sqlite(Box<Objects>),
    External,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitPhase {
    Inactive,
    Starting,
    Running,
    Stopping,
    /// Exited, waits for systemd's `RestartSec`.
    AutoRestart,
}

/// Kadence's folder on a node, and the files that actions made.
#[derive(Default)]
pub(crate) struct Folder {
    /// The highest turn that was obeyed, and its holder.
    pub(crate) turn: (u64, String),
    pub(crate) staged: BTreeMap<Digest, Version>,
    pub(crate) kept: BTreeMap<Digest, Version>,
    /// Airgap image archives.
    pub(crate) images: BTreeSet<Digest>,
    pub(crate) records: BTreeMap<ActionId, Record>,
    /// In the order in which they were begun.
    pub(crate) order: Vec<ActionId>,
    pub(crate) busy: Option<ActionId>,
    pub(crate) files: BTreeMap<String, Arc<Stored>>,
    /// A rename that is not on the disk yet: what a power cut brings back.
    pub(crate) unsynced: Option<Binary>,
}

/// A file of a node, with what it is in the world.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) what: Content,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    Snapshot(Box<Snapshot>),
    Other,
}

/// A datastore at one time.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) objects: Objects,
    /// The version of the server it was taken on.
    pub(crate) version: Version,
    pub(crate) etcd_minor: (u32, u32),
    pub(crate) usable: bool,
    /// The rollout that asked for it.
    pub(crate) rollout: String,
}

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    External,
    Sqlite(NodeName),
    Etcd(u32),
}

/// What will happen.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// The process is gone; then the unit is started again, or not.
    Stopped {
        node: NodeName,
        life: u64,
        start: bool,
    },
    Restart {
        node: NodeName,
        life: u64,
    },
    EtcdUp {
        node: NodeName,
        life: u64,
    },
    Serving {
        node: NodeName,
        life: u64,
    },
    AgentUp {
        node: NodeName,
        life: u64,
    },
    Registered {
        node: NodeName,
        life: u64,
    },
    Exited {
        node: NodeName,
        life: u64,
        class: &'static str,
        line: String,
    },
    Flap {
        node: NodeName,
        life: u64,
    },
    Deployed {
        node: NodeName,
        life: u64,
    },
    HelmDone {
        place: Place,
    },
    NodeLost {
        node: NodeName,
    },
    Elected {
        cluster: u32,
        term: u64,
    },
    Promoted {
        cluster: u32,
        member: u64,
    },
    ClusterVersion {
        cluster: u32,
    },
    PowerBack {
        node: NodeName,
    },
    Booted {
        node: NodeName,
    },
    Step {
        node: NodeName,
        action: ActionId,
        run: u32,
        step: usize,
    },
    PodGone {
        place: Place,
        uid: String,
        grow: bool,
    },
    PodReady {
        place: Place,
        uid: String,
    },
    Fault {
        index: usize,
    },
    FaultOver {
        what: Over,
    },
}

/// The end of a fault that lasts.
#[derive(Clone, Debug)]
pub(crate) enum Over {
    Ssh(NodeName),
    Slow(NodeName),
    Disk(NodeName),
    Api,
    Down(NodeName),
    Sick(NodeName),
}

const SECOND: Duration = Duration::from_secs(1);
/// systemd's `RestartSec` in K3s's unit.
const RESTART_SEC: Duration = Duration::from_secs(5);
/// How long a Node stays Ready after its kubelet went away (`node-monitor-grace-period`).
const NODE_GRACE: Duration = Duration::from_secs(40);

impl Setup {
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub fn workload(mut self, workload: Workload) -> Self {
        self.workload = workload;
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    pub fn faults(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.extend(faults);
        self
    }

    /// Neither sqlite3 nor python3 is on the nodes.
    pub fn without_sqlite_tools(mut self) -> Self {
        self.sqlite_tools = false;
        self
    }

    /// Makes the world. Has to be called inside the runtime it is used in, whose clock it lives by.
    pub fn build(self) -> World {
        let state = State::new(self);
        let shared =
            Shared { state: Mutex::new(state), changed: Notify::new(), killed: Notify::new(), started: Instant::now() };
        World { shared: Arc::new(shared) }
    }
}

impl World {
    /// A cluster on which every node runs `version`, healthy and settled.
    pub fn cluster(topology: Topology, version: Version) -> Setup {
        Setup { topology, version, seed: 0, workload: Workload::default(), faults: Vec::new(), sqlite_tools: true }
    }

    pub(crate) fn handle(&self) -> Handle {
        let process = self.look(|s| s.process);
        Handle { world: self.clone(), process }
    }

    /// Looks at the world as it is now.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        let elapsed = self.shared.started.elapsed();
        let (result, changed, killed) = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let dead = state.dead;
            state.advance(elapsed);
            let result = look(&mut state);
            if state.dirty {
                state.after_change();
            }
            (result, std::mem::take(&mut state.dirty), state.dead != dead)
        };
        if changed {
            self.shared.changed.notify_waiters();
        }
        if killed {
            self.shared.killed.notify_waiters();
        }
        result
    }

    /// Waits until `check` finds something in the world, or `deadline` (since the world began) has passed.
    pub(crate) async fn wait<R>(
        &self,
        deadline: Option<Duration>,
        mut check: impl FnMut(&mut State) -> Option<R>,
    ) -> Option<R> {
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let (found, next, now) = self.look(|s| (check(s), s.next_due(), s.now));
            if found.is_some() || deadline.is_some_and(|d| d <= now) {
                return found;
            }
            match [next, deadline].into_iter().flatten().min() {
                Some(until) => {
                    let until = self.shared.started + until;
                    tokio::select! {
                        biased;
                        () = &mut changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Returns when the Kadence of now is killed by a fault: whoever runs it drops it then, and calls
    /// [`revive`](Self::revive) before the next one gets its ports.
    pub fn killed(&self) -> impl Future<Output = ()> + Send + 'static {
        let world = self.clone();
        let process = self.look(|s| s.process);
        async move {
            loop {
                let mut killed = pin!(world.shared.killed.notified());
                killed.as_mut().enable();
                if world.look(|s| s.dead >= process) {
                    return;
                }
                // A kill that is due strikes when anybody looks; a Kadence that does nothing until then is none the wiser.
                killed.await;
            }
        }
    }

    /// Kills the Kadence of now, as SIGKILL would: calls it has under way never return to it.
    pub fn kill(&self) {
        self.look(|s| s.dead = s.process);
    }

    /// Begins a new Kadence: ports made from now on belong to it.
    pub fn revive(&self) {
        self.look(|s| {
            s.dead = s.process;
            s.process += 1;
        });
    }

    /// Lets a fault strike at once.
    pub fn strike(&self, what: What) {
        self.look(|s| s.strike_now(&what));
    }

    /// How long the world has existed.
    pub fn age(&self) -> Duration {
        self.look(|s| s.now)
    }

    /// What happened, a line each: for people and for comparing runs.
    pub fn log(&self) -> Vec<String> {
        self.look(|s| s.log.iter().map(|(at, line)| format!("{:>9.3} {line}", at.as_secs_f64())).collect())
    }

    /// A hash over everything that happened: equal for equal seeds and equal orders.
    pub fn trace(&self) -> u64 {
        self.look(|s| s.trace)
    }

    /// The snapshots that lie on a node, in the order of their names.
    pub fn snapshots(&self, node: &NodeName) -> Vec<RemoteFile> {
        self.look(|s| {
            let files = s.machines.get(node).into_iter().flat_map(|m| &m.folder.files);
            let snapshots = files.filter(|(path, _)| path.contains("/db/snapshots/"));
            let file = |(path, file): (&String, &Arc<Stored>)| RemoteFile {
                path: path.clone(),
                bytes: file.bytes.len() as u64,
                digest: file.digest,
            };
            snapshots.map(file).collect()
        })
    }

    /// Somebody deletes files of a node whose paths begin so, or, if bytes are given, writes over them.
    pub fn spoil(&self, node: &NodeName, path: &str, with: Option<&[u8]>) {
        self.look(|s| {
            let Some(machine) = s.machines.get_mut(node) else { return };
            let files = &mut machine.folder.files;
            match with {
                None => files.retain(|p, _| !p.starts_with(path)),
                Some(bytes) => {
                    let digest = Digest::of(bytes);
                    let spoilt = Arc::new(Stored { bytes: bytes.to_vec(), digest, what: Content::Other });
                    files.iter_mut().filter(|(p, _)| p.starts_with(path)).for_each(|(_, f)| *f = Arc::clone(&spoilt));
                }
            }
        });
    }

    /// How many port calls were made, without the outage's probes.
    pub fn calls(&self) -> u64 {
        self.look(|s| s.calls)
    }

    /// Which fault struck in which step, and how often.
    pub fn reached(&self) -> BTreeMap<(String, String), u32> {
        self.look(|s| s.reached.clone())
    }

    /// The versions that run, by node; `None` where no K3s runs.
    pub fn running(&self) -> BTreeMap<NodeName, Option<Version>> {
        self.look(|s| {
            s.machines
                .iter()
                .map(|(name, m)| (name.clone(), m.running.as_ref().map(|(binary, _)| binary.version.clone())))
                .collect()
        })
    }
}

impl Handle {
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Never returns once this Kadence is dead.
    pub(crate) async fn alive(&self) {
        if self.world.look(|s| s.dead >= self.process) {
            std::future::pending::<()>().await;
        }
    }

    /// Begins a call: counts it, lets faults strike that wait for it, and lets its way there take `latency`.
    pub(crate) async fn enter(&self, name: &'static str, latency: Duration) {
        self.alive().await;
        self.world.look(|s| s.count_call(name));
        self.alive().await;
        tokio::time::sleep(latency).await;
        self.alive().await;
    }

    /// Ends a call: a Kadence that was killed meanwhile, or is now, never sees the answer.
    pub(crate) async fn leave(&self) {
        self.world.look(State::answered);
        self.alive().await;
    }

    /// A call that does its work in one go.
    pub(crate) async fn port<R>(
        &self,
        name: &'static str,
        latency: Duration,
        work: impl FnOnce(&mut State) -> R + Send,
    ) -> R {
        self.enter(name, latency).await;
        let result = self.world.look(work);
        self.leave().await;
        result
    }

    /// A stored event is about to be written, or was written: a moment at which Kadence can be killed.
    pub(crate) async fn event(&self, event: &Recorded, written: bool) {
        self.alive().await;
        self.world.look(|s| s.at_event(event, written));
        self.alive().await;
    }
}

// --------------------------------------------------------------------------------------------------- the beginning

fn names(topology: &Topology) -> Vec<(NodeName, Role, String)> {
    let servers =
        (1..=topology.servers).map(|n| (NodeName::new(format!("s{n}")), Role::Server, format!("10.0.0.{}", 10 + n)));
    let agents =
        (1..=topology.agents).map(|n| (NodeName::new(format!("a{n}")), Role::Agent, format!("10.0.0.{}", 100 + n)));
    servers.chain(agents).collect()
}

impl State {
    fn new(setup: Setup) -> Self {
        let Setup { topology, version, seed, workload, faults, sqlite_tools } = setup;
        let mut rng = Rng::new(seed);
        let mut state = Self {
            topology,
            now: Duration::ZERO,
            // A Wednesday night, so that logs read like one.
            began: "2026-11-25T02:00:00Z".parse().unwrap_or(Timestamp::UNIX_EPOCH),
            skew: SignedDuration::ZERO,
            rng: rng.clone(),
            queue: BTreeMap::new(),
            sequence: 0,
            dirty: false,
            machines: BTreeMap::new(),
            etcds: BTreeMap::new(),
            external: None,
            releases: published(),
            cache: BTreeSet::new(),
            source_away: false,
            api_away: false,
            prober_commands: BTreeMap::new(),
            corrupt_next_snapshot: false,
            ssh_cut_in_copy: BTreeSet::new(),
            broken: Vec::new(),
            faults: Vec::new(),
            calls: 0,
            answers: 0,
            orders: 0,
            in_hand: None,
            last_call: "",
            process: 1,
            dead: 0,
            stored: BTreeMap::new(),
            watch: Watch::default(),
            asked: Vec::new(),
            rolls: false,
            log: Vec::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            pid: 800,
            reached: BTreeMap::new(),
        };
        let mut hashes = Vec::new();
        for (name, role, address) in names(&topology) {
            let joins = (name.as_str() != "s1").then(|| "https://10.0.0.11:6443".to_owned());
            let machine = Machine {
                role,
                address,
                arch: Arch::Amd64,
                machine_id: Digest::of(format!("machine {name} {seed}").as_bytes()).short(32),
                boots: 1,
                power: true,
                ssh_cut: false,
                answers_after: Duration::ZERO,
                disk_free: 40_000_000_000,
                disk_full: false,
                tools: sqlite_tools,
                joins,
                arguments: 1,
                started_with: 1,
                arguments_changed: None,
                installed: Binary::of(&version, Arch::Amd64),
                unit: UnitPhase::Running,
                enabled: true,
                restarts: 0,
                pid: 700 + u32::try_from(state.machines.len()).unwrap_or(0),
                running: Some((Binary::of(&version, Arch::Amd64), Duration::ZERO)),
                life: 1,
                etcd_up: false,
                etcd_sick: false,
                api_up: role == Role::Server,
                kubelet_up: true,
                pods_lost: false,
                data: Data::None,
                folder: Folder::default(),
                journal: Vec::new(),
                changes: 1,
                name: name.clone(),
            };
            hashes.push((name.clone(), role, machine.config_hash()));
            state.machines.insert(name, machine);
        }
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", rng.draw() & 0xffff_ffff, rng.draw() & 0xffff_ffff_ffff);
        let mut objects = Objects::new(&uid, Duration::ZERO, &version, workload, &hashes);
        for (name, machine) in &state.machines {
            let boot_id = machine.boot_id();
            let etcd = topology.datastore == DatastoreKind::EmbeddedEtcd && machine.role == Role::Server;
            objects.change(name, |record| {
                record.boot_id = boot_id;
                if etcd {
                    record.labels.insert("node-role.kubernetes.io/etcd".to_owned(), "true".to_owned());
                }
            });
        }
        match topology.datastore {
            DatastoreKind::External => state.external = Some(objects),
            DatastoreKind::Sqlite => {
                if let Some(server) = state.machines.get_mut("s1") {
                    server.data = Data::Sqlite(Box::new(objects));
                }
            }
            DatastoreKind::EmbeddedEtcd => {
                let mut members = BTreeMap::new();
                for machine in state.machines.values_mut().filter(|m| m.role == Role::Server) {
                    let id = rng.draw();
                    machine.data = Data::Etcd { cluster: 1, member: id };
                    machine.etcd_up = true;
                    members.insert(id, Member::of(&machine.name, &machine.address, id, false));
                }
                let leader = members.iter().find(|(_, m)| m.node.as_str() == "s1").map(|(id, _)| *id);
                let etcd =
                    Etcd { members, leader, electing: false, term: 1, cluster_minor: etcd_minor(&version), objects };
                state.etcds.insert(1, etcd);
            }
        }
        if topology.datastore == DatastoreKind::External {
            for machine in state.machines.values_mut().filter(|m| m.role == Role::Server) {
                machine.data = Data::External;
            }
        }
        state.rng = rng;
        state.watch.begin(&state.machines);
        for (index, fault) in faults.into_iter().enumerate() {
            if let When::At(at) = fault.when {
                state.at(at, Effect::Fault { index });
            }
            state.arm(fault);
        }
        state
    }

    fn advance(&mut self, to: Duration) {
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > to {
                break;
            }
            let effect = entry.remove();
            self.now = self.now.max(at);
            self.dirty = true;
            self.apply(effect);
            self.after_change();
        }
        self.now = self.now.max(to);
    }

    fn next_due(&self) -> Option<Duration> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn at(&mut self, at: Duration, effect: Effect) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), effect);
        self.dirty = true;
    }

    pub(crate) fn after(&mut self, delay: Duration, effect: Effect) {
        self.at(self.now + delay, effect);
    }

    pub(crate) fn after_millis(&mut self, from: u64, to: u64, effect: Effect) {
        let delay = self.rng.millis(from, to);
        self.after(delay, effect);
    }

    /// Notes what happened, for people and for the trace.
    pub(crate) fn note(&mut self, line: impl fmt::Display) {
        let line = line.to_string();
        for byte in self.now.as_millis().to_le_bytes().iter().chain(line.as_bytes()) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.log.push((self.now, line));
        self.dirty = true;
    }

    pub(crate) fn reach(&mut self, fault: String, step: String) {
        *self.reached.entry((fault, step)).or_default() += 1;
    }

    /// The time on the wall of the machine that Kadence runs on.
    pub(crate) fn wall(&self) -> Timestamp {
        self.wall_at(self.now)
    }

    pub(crate) fn wall_at(&self, at: Duration) -> Timestamp {
        self.node_clock(at).checked_add(self.skew).unwrap_or(self.began)
    }

    /// The time on the nodes' clocks, which are right.
    pub(crate) fn node_clock(&self, at: Duration) -> Timestamp {
        self.began.checked_add(SignedDuration::try_from(at).unwrap_or_default()).unwrap_or(self.began)
    }

    /// Remembers a dump of the external datastore, so that it is known when it comes back.
    pub(crate) fn remember_dump(&mut self, bytes: &[u8], objects: Objects) {
        let version = objects.packaged.version.clone();
        let snapshot = Snapshot { objects, version, etcd_minor: (0, 0), usable: true, rollout: String::new() };
        let digest = Digest::of(bytes);
        let stored = Stored { bytes: bytes.to_vec(), digest, what: Content::Snapshot(Box::new(snapshot)) };
        self.stored.insert(digest, Arc::new(stored));
    }

    // ------------------------------------------------------------------------------------------ who keeps what

    pub(crate) fn place_of(&self, node: &NodeName) -> Option<Place> {
        match self.machines.get(node)?.data {
            Data::None => None,
            Data::Etcd { cluster, .. } => Some(Place::Etcd(cluster)),
            Data::Sqlite(_) => Some(Place::Sqlite(node.clone())),
            Data::External => Some(Place::External),
        }
    }

    pub(crate) fn objects(&self, place: &Place) -> Option<&Objects> {
        match place {
            Place::External => self.external.as_ref(),
            Place::Sqlite(node) => match &self.machines.get(node)?.data {
                Data::Sqlite(objects) => Some(objects),
                _ => None,
            },
            Place::Etcd(cluster) => self.etcds.get(cluster).map(|e| &e.objects),
        }
    }

    /// The objects, their revision brought up to now.
    pub(crate) fn objects_mut(&mut self, place: &Place) -> Option<&mut Objects> {
        let writable = self.machines.keys().any(|n| self.serves(n) && self.place_of(n).as_ref() == Some(place));
        let now = self.now;
        let objects = match place {
            Place::External => self.external.as_mut(),
            Place::Sqlite(node) => match &mut self.machines.get_mut(node)?.data {
                Data::Sqlite(objects) => Some(&mut **objects),
                _ => None,
            },
            Place::Etcd(cluster) => self.etcds.get_mut(cluster).map(|e| &mut e.objects),
        }?;
        objects.touch(now, writable);
        Some(objects)
    }

    /// Whether this server's API answers with what its datastore holds.
    pub(crate) fn serves(&self, node: &NodeName) -> bool {
        let Some(machine) = self.machines.get(node) else { return false };
        machine.power
            && machine.api_up
            && match machine.data {
                Data::None => false,
                Data::Etcd { cluster, member } => self.etcds.get(&cluster).is_some_and(|e| {
                    e.leader.is_some() && machine.etcd_up && e.members.get(&member).is_some_and(|m| !m.learner)
                }),
                Data::Sqlite(_) | Data::External => true,
            }
    }

    /// A server whose API works, of the newest etcd cluster.
    pub(crate) fn live_server(&self) -> Option<NodeName> {
        self.machines
            .keys()
            .filter(|n| self.serves(n))
            .max_by_key(|n| (self.place_of(n), std::cmp::Reverse((*n).clone())))
            .cloned()
    }

    pub(crate) fn live(&self) -> Option<Place> {
        self.place_of(&self.live_server()?)
    }

    pub(crate) fn by_address(&self, address: &str) -> Option<&Machine> {
        let host = address.trim_start_matches("https://");
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        self.machines.values().find(|m| m.address == host)
    }

    // ----------------------------------------------------------------------------------------------------- etcd

    pub(crate) fn member_up(&self, cluster: u32, member: u64) -> bool {
        let Some(node) = self.etcds.get(&cluster).and_then(|e| e.members.get(&member)).map(|m| &m.node) else {
            return false;
        };
        self.machines.get(node).is_some_and(|m| {
            m.power
                && m.etcd_up
                && !m.etcd_sick
                && matches!(m.data, Data::Etcd { cluster: c, member: id } if c == cluster && id == member)
        })
    }

    /// Healthy voters, and how many the quorum needs.
    pub(crate) fn quorum(&self, cluster: u32) -> (usize, usize) {
        let Some(etcd) = self.etcds.get(&cluster) else { return (0, 1) };
        let voters = etcd.members.iter().filter(|(_, m)| !m.learner);
        let (up, all) =
            voters.fold((0, 0), |(up, all), (id, _)| (up + usize::from(self.member_up(cluster, *id)), all + 1));
        (up, all / 2 + 1)
    }

    /// After a member came or went: is there still a leader, and if not, can there be one?
    fn settle_etcd(&mut self, cluster: u32, handed_over: bool) {
        let (up, needed) = self.quorum(cluster);
        let leader_up = self.etcds.get(&cluster).and_then(|e| e.leader).is_some_and(|l| self.member_up(cluster, l));
        let Some(etcd) = self.etcds.get_mut(&cluster) else { return };
        if up >= needed && leader_up {
            return;
        }
        if etcd.leader.take().is_some() {
            etcd.term += 1;
            etcd.electing = false;
        }
        if up >= needed && !etcd.electing {
            etcd.electing = true;
            let term = etcd.term;
            let (from, to) = if handed_over { (50, 150) } else { (1000, 1600) };
            self.after_millis(from, to, Effect::Elected { cluster, term });
        }
        self.dirty = true;
    }

    fn elected(&mut self, cluster: u32, term: u64) {
        let (up, needed) = self.quorum(cluster);
        let candidates: Vec<u64> = self.etcds.get(&cluster).map_or_else(Vec::new, |e| {
            e.members.iter().filter(|(id, m)| !m.learner && self.member_up(cluster, **id)).map(|(id, _)| *id).collect()
        });
        let chosen = self.rng.pick(&candidates).copied();
        let Some(etcd) = self.etcds.get_mut(&cluster) else { return };
        if etcd.term != term || !etcd.electing {
            return;
        }
        etcd.electing = false;
        if up >= needed {
            etcd.leader = chosen;
            if let Some(leader) = chosen.and_then(|id| etcd.members.get(&id)).map(|m| m.node.clone()) {
                self.note(format!("etcd: {leader} leads"));
                for machine in self.machines.values_mut().filter(|m| m.role == Role::Server) {
                    machine.changes += 1;
                }
            }
        }
    }

    /// Once every member runs a newer etcd minor, the cluster's version follows: from then on nothing older starts.
    fn raise_cluster_version(&mut self, cluster: u32) {
        let Some(etcd) = self.etcds.get(&cluster) else { return };
        if etcd.leader.is_none() {
            return;
        }
        let mut lowest = None;
        for (id, member) in &etcd.members {
            let minor = self
                .member_up(cluster, *id)
                .then(|| self.machines.get(&member.node)?.running.as_ref().map(|(b, _)| etcd_minor(&b.version)))
                .flatten();
            let Some(minor) = minor else { return };
            lowest = Some(lowest.map_or(minor, |l: (u32, u32)| l.min(minor)));
        }
        let Some(lowest) = lowest else { return };
        let Some(etcd) = self.etcds.get_mut(&cluster) else { return };
        if lowest > etcd.cluster_minor {
            etcd.cluster_minor = lowest;
            self.note(format!("etcd: the cluster's version is {}.{}", lowest.0, lowest.1));
        }
    }

    // ------------------------------------------------------------------------------------------ K3s's life

    pub(crate) fn broken(&self, node: &NodeName, version: &Version) -> Option<HowBroken> {
        let fits = |b: &&Broken| b.version == *version && b.on.as_ref().is_none_or(|on| on == node);
        self.broken.iter().find(fits).map(|b| b.how)
    }

    /// systemd starts the unit.
    pub(crate) fn start_unit(&mut self, node: &NodeName) {
        self.pid += 1;
        let pid = self.pid;
        let now = self.now;
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.power) else { return };
        machine.life += 1;
        // A server's unit is active once K3s says so, an agent's as soon as there is a process.
        machine.unit = if machine.role == Role::Server { UnitPhase::Starting } else { UnitPhase::Running };
        machine.pid = pid;
        machine.running = Some((machine.installed.clone(), now));
        machine.started_with = machine.arguments;
        machine.changes += 1;
        let (life, role, version) = (machine.life, machine.role, machine.installed.version.clone());
        self.note(format!("{node}: k3s {version} starts"));
        self.judge_start(node);
        let node = node.clone();
        if self.broken(&node, &version) == Some(HowBroken::ExitsAtOnce) {
            let line = "level=fatal msg=\"flag provided but not defined: -simulated\"".to_owned();
            self.after_millis(200, 400, Effect::Exited { node, life, class: "configuration", line });
            return;
        }
        match role {
            Role::Server => {
                self.after_millis(800, 1200, Effect::EtcdUp { node: node.clone(), life });
                self.after_millis(4800, 6000, Effect::Serving { node, life });
            }
            Role::Agent => self.after_millis(1000, 2000, Effect::AgentUp { node, life }),
        }
    }

    /// systemd stops the unit, and starts it again if `start`.
    pub(crate) fn stop_unit(&mut self, node: &NodeName, start: bool) {
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.power) else { return };
        machine.life += 1;
        machine.api_up = false;
        machine.unit = UnitPhase::Stopping;
        machine.restarts = 0;
        machine.changes += 1;
        let life = machine.life;
        self.note(format!("{node}: k3s is stopped{}", if start { " to be started again" } else { "" }));
        self.after_millis(400, 600, Effect::Stopped { node: node.clone(), life, start });
    }

    /// The process is gone, by a stop, an exit or a power cut.
    fn process_gone(&mut self, node: &NodeName, handed_over: bool) {
        let Some(machine) = self.machines.get_mut(node) else { return };
        machine.running = None;
        machine.pid = 0;
        machine.api_up = false;
        machine.etcd_up = false;
        machine.changes += 1;
        let lost = std::mem::take(&mut machine.kubelet_up);

        if let Data::Etcd { cluster, .. } = machine.data {
            self.settle_etcd(cluster, handed_over);
        }
        if lost {
            self.after(NODE_GRACE, Effect::NodeLost { node: node.clone() });
        }
    }

    pub(crate) fn alive(&self, node: &NodeName, life: u64) -> bool {
        self.machines.get(node).is_some_and(|m| m.life == life && m.power)
    }

    pub(crate) fn exit(&mut self, node: &NodeName, class: &'static str, line: String) {
        self.process_gone(node, false);
        let Some(machine) = self.machines.get_mut(node) else { return };
        machine.life += 1;
        machine.unit = UnitPhase::AutoRestart;
        machine.restarts += 1;
        machine.journal.push((class.to_owned(), line.clone()));
        let life = machine.life;
        self.note(format!("{node}: k3s exits: {line}"));
        self.after(RESTART_SEC, Effect::Restart { node: node.clone(), life });
    }

    fn etcd_comes_up(&mut self, node: &NodeName, life: u64) {
        let Some(machine) = self.machines.get(node) else { return };
        let Some(version) = machine.running.as_ref().map(|(b, _)| b.version.clone()) else { return };
        match (&machine.data, self.topology.datastore) {
            (Data::Etcd { cluster, .. }, _) => {
                let cluster = *cluster;
                let theirs = self.etcds.get(&cluster).map_or((0, 0), |e| e.cluster_minor);
                if etcd_minor(&version) < theirs {
                    let line = "level=fatal msg=\"invalid downgrade; server version is lower than determined cluster version\"";
                    self.exit(node, "etcd-downgrade", line.to_owned());
                    return;
                }
                if let Some(machine) = self.machines.get_mut(node) {
                    machine.etcd_up = true;
                    machine.changes += 1;
                }
                self.settle_etcd(cluster, false);
                self.after(4 * SECOND, Effect::ClusterVersion { cluster });
            }
            (Data::None, DatastoreKind::EmbeddedEtcd) => match machine.joins.clone() {
                Some(url) => self.join_etcd(node, life, &url),
                None => self.found_cluster(node, &version),
            },
            (Data::None, DatastoreKind::Sqlite) => self.found_cluster(node, &version),
            (Data::None, DatastoreKind::External) => {
                if let Some(machine) = self.machines.get_mut(node) {
                    machine.data = Data::External;
                }
            }
            (Data::Sqlite(_) | Data::External, _) => {}
        }
    }

    fn join_etcd(&mut self, node: &NodeName, life: u64, url: &str) {
        let target = self.by_address(url).map(|m| m.name.clone()).filter(|n| n != node && self.serves(n));
        let cluster = target.as_ref().and_then(|t| match self.machines.get(t)?.data {
            Data::Etcd { cluster, .. } => Some(cluster),
            _ => None,
        });
        let learner_there =
            cluster.and_then(|c| self.etcds.get(&c)).is_some_and(|e| e.members.values().any(|m| m.learner));
        let Some(cluster) = cluster.filter(|_| !learner_there) else {
            // Nobody to join yet, or another learner is in the way: K3s goes on trying.
            self.after(SECOND, Effect::EtcdUp { node: node.clone(), life });
            return;
        };
        let id = self.rng.draw();
        let Some(machine) = self.machines.get_mut(node) else { return };
        machine.data = Data::Etcd { cluster, member: id };
        machine.etcd_up = true;
        machine.changes += 1;
        let member = Member::of(node, &machine.address, id, true);
        if let Some(etcd) = self.etcds.get_mut(&cluster) {
            etcd.members.retain(|_, m| m.node != *node);
            etcd.members.insert(id, member);
        }
        self.note(format!("etcd: {node} joins as learner"));
        self.after_millis(1500, 3000, Effect::Promoted { cluster, member: id });
        self.settle_etcd(cluster, false);
    }

    /// A server without data and without anybody to join makes a cluster of its own, empty.
    fn found_cluster(&mut self, node: &NodeName, version: &Version) {
        let uid = format!("new-cluster-{:08x}", self.rng.draw() & 0xffff_ffff);
        let objects = Objects::new(&uid, self.now, version, Workload::Bare, &[]);
        self.note(format!("{node}: founds a new, empty cluster"));
        if self.topology.datastore == DatastoreKind::Sqlite {
            if let Some(machine) = self.machines.get_mut(node) {
                machine.data = Data::Sqlite(Box::new(objects));
            }
            return;
        }
        self.new_etcd(node, version, objects, true);
    }

    /// Makes an etcd cluster of one member with these objects; returns its number.
    pub(crate) fn new_etcd(&mut self, node: &NodeName, version: &Version, objects: Objects, up: bool) -> Option<u32> {
        let id = self.rng.draw();
        let cluster = self.etcds.keys().next_back().map_or(1, |c| c + 1);
        let machine = self.machines.get_mut(node)?;
        machine.data = Data::Etcd { cluster, member: id };
        machine.etcd_up = up;
        let members = BTreeMap::from([(id, Member::of(node, &machine.address, id, false))]);
        let etcd =
            Etcd { members, leader: None, electing: false, term: 1, cluster_minor: etcd_minor(version), objects };
        self.etcds.insert(cluster, etcd);
        self.settle_etcd(cluster, false);
        Some(cluster)
    }

    fn promoted(&mut self, cluster: u32, member: u64) {
        let up = self.member_up(cluster, member);
        let leads = self.etcds.get(&cluster).is_some_and(|e| e.leader.is_some());
        let Some(record) = self.etcds.get_mut(&cluster).and_then(|e| e.members.get_mut(&member)) else { return };
        if up && leads {
            record.learner = false;
            let node = record.node.clone();
            self.note(format!("etcd: {node} is a voter"));
            self.settle_etcd(cluster, false);
        } else {
            self.after(SECOND, Effect::Promoted { cluster, member });
        }
    }

    /// The server's API begins to serve, or waits for etcd.
    fn serving(&mut self, node: &NodeName, life: u64) {
        let Some(machine) = self.machines.get(node) else { return };
        let Some(version) = machine.running.as_ref().map(|(b, _)| b.version.clone()) else { return };
        let broken = self.broken(node, &version);
        let ready = match machine.data {
            Data::None => false,
            Data::Etcd { cluster, member } => {
                self.etcds
                    .get(&cluster)
                    .is_some_and(|e| e.leader.is_some() && e.members.get(&member).is_some_and(|m| !m.learner))
                    && self.member_up(cluster, member)
            }
            Data::Sqlite(_) | Data::External => true,
        };
        if broken == Some(HowBroken::Hangs) {
            return;
        }
        if !ready {
            self.after(SECOND / 2, Effect::Serving { node: node.clone(), life });
            return;
        }
        if let Some(machine) = self.machines.get_mut(node) {
            machine.api_up = true;
            machine.unit = UnitPhase::Running;
            machine.changes += 1;
        }
        self.note(format!("{node}: the API serves"));
        self.after_millis(800, 1200, Effect::Registered { node: node.clone(), life });
        self.after_millis(1200, 2000, Effect::Deployed { node: node.clone(), life });
        // Kubelets that lived on meet a datastore that may not know how they are.
        let others: Vec<(NodeName, u64, bool)> = self
            .machines
            .values()
            .filter(|m| m.name != *node)
            .map(|m| (m.name.clone(), m.life, m.kubelet_up))
            .collect();
        for (other, life, kubelet_up) in others {
            if kubelet_up {
                self.after(10 * SECOND, Effect::Registered { node: other, life });
            } else {
                self.after(NODE_GRACE, Effect::NodeLost { node: other });
            }
        }
        self.decline(node, life, broken);
    }

    /// How a release that starts well goes wrong later.
    fn decline(&mut self, node: &NodeName, life: u64, broken: Option<HowBroken>) {
        match broken {
            Some(HowBroken::DiesAfter(after)) => {
                let line = "level=fatal msg=\"simulated: died after it had been ready\"".to_owned();
                self.after(after, Effect::Exited { node: node.clone(), life, class: "exit", line });
            }
            Some(HowBroken::Flaps) => self.after(5 * SECOND, Effect::Flap { node: node.clone(), life }),
            Some(HowBroken::ExitsAtOnce | HowBroken::Hangs) | None => {}
        }
    }

    fn agent_up(&mut self, node: &NodeName, life: u64) {
        let Some(version) = self.machines.get(node).and_then(|m| m.running.as_ref()).map(|(b, _)| b.version.clone())
        else {
            return;
        };
        let broken = self.broken(node, &version);
        if broken == Some(HowBroken::Hangs) {
            return;
        }
        let server =
            self.live_server().and_then(|s| self.machines.get(&s)?.running.as_ref().map(|(b, _)| b.version.clone()));
        // A kubelet of a newer minor than the API server's is not supported and does not get to Ready here.
        if server.is_none_or(|s| version.minor() > s.minor()) {
            self.after(SECOND, Effect::AgentUp { node: node.clone(), life });
            return;
        }
        self.after_millis(1200, 2000, Effect::Registered { node: node.clone(), life });
        self.decline(node, life, broken);
    }

    /// The kubelet writes its Node: from now on the API knows the version that runs.
    fn registered(&mut self, node: &NodeName, life: u64) {
        let Some(machine) = self.machines.get(node) else { return };
        let Some(version) = machine.running.as_ref().map(|(b, _)| b.version.clone()) else { return };
        let place = if machine.role == Role::Server { self.place_of(node) } else { None };
        let Some(place) = place.filter(|_| self.serves(node)).or_else(|| self.live()) else {
            self.after(SECOND, Effect::Registered { node: node.clone(), life });
            return;
        };
        let (role, boot_id, config_hash) = (machine.role, machine.boot_id(), machine.config_hash());
        let etcd = matches!(machine.data, Data::Etcd { .. });
        let lost = machine.pods_lost;
        let fresh = !machine.kubelet_up;
        let now = self.now;
        let Some(objects) = self.objects_mut(&place) else { return };
        let known = objects.nodes.get(node).is_some_and(|r| {
            r.version == version && r.boot_id == boot_id && r.config_hash == config_hash && r.ready == Some(true)
        });
        if known && !fresh {
            return;
        }
        if !objects.nodes.contains_key(node) {
            objects.add_node(node, role, &version, &boot_id, &config_hash);
        }
        objects.change(node, |record| {
            record.version = version.clone();
            record.boot_id = boot_id;
            record.config_hash = config_hash;
            record.ready = Some(true);
            record.reported = now;
            if etcd {
                record.labels.insert("node-role.kubernetes.io/etcd".to_owned(), "true".to_owned());
            }
        });
        let pods: Vec<String> = objects
            .pods
            .iter_mut()
            .filter(|(_, p)| p.pod.node.as_ref() == Some(node) && !p.pod.terminating)
            .map(|(uid, p)| {
                if lost {
                    p.pod.restarts += 1;
                }
                uid.clone()
            })
            .collect();
        let waiting = objects.schedule_pending();
        for uid in pods {
            let delay = if lost { self.rng.millis(2000, 5000) } else { Duration::ZERO };
            self.after(delay, Effect::PodReady { place: place.clone(), uid });
        }
        for uid in waiting {
            self.after_millis(2000, 5000, Effect::PodReady { place: place.clone(), uid });
        }
        if let Some(machine) = self.machines.get_mut(node) {
            machine.kubelet_up = true;
            machine.pods_lost = false;
        }
        self.note(format!("{node}: Ready on {version}"));
    }

    fn flap(&mut self, node: &NodeName, life: u64) {
        let now = self.now;
        let Some(place) = self.live() else { return };
        if let Some(objects) = self.objects_mut(&place) {
            objects.change(node, |record| {
                record.ready = Some(record.ready != Some(true));
                record.reported = now;
            });
            self.after(5 * SECOND, Effect::Flap { node: node.clone(), life });
        }
    }

    /// The deploy controller of each server applies the manifests packaged in its own binary.
    fn deployed(&mut self, node: &NodeName) {
        let Some(place) = self.place_of(node).filter(|_| self.serves(node)) else { return };
        let Some(version) = self.machines.get(node).and_then(|m| m.running.as_ref()).map(|(b, _)| b.version.clone())
        else {
            return;
        };
        let Some(objects) = self.objects_mut(&place) else { return };
        if objects.packaged.version == version {
            return;
        }
        let before: Vec<String> = objects.controllers.iter().map(|c| objects.image(c.image)).collect();
        objects.packaged.version = version.clone();
        objects.packaged.settled = false;
        objects.packaged.helm_revision += 1;
        objects.revision += 40;
        let rolled: Vec<usize> =
            (0..before.len()).filter(|&i| objects.image(objects.controllers[i].image) != before[i]).collect();
        self.note(format!("{node}: applies the packaged components of {version}"));
        for controller in rolled {
            self.roll(&place, controller);
        }
        self.after_millis(6000, 10_000, Effect::HelmDone { place });
    }

    /// A rolling restart of a controller's pods: each new one is ready before its old one goes.
    pub(crate) fn roll(&mut self, place: &Place, controller: usize) {
        let Some(objects) = self.objects_mut(place) else { return };
        let old: Vec<String> = objects
            .pods
            .iter()
            .filter(|(_, p)| p.controller == controller && !p.pod.terminating)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in old {
            self.after_millis(2500, 4500, Effect::PodGone { place: place.clone(), uid, grow: true });
        }
    }

    fn pod_gone(&mut self, place: &Place, uid: &str, grow: bool) {
        let Some(objects) = self.objects_mut(place) else { return };
        let Some(old) = objects.pods.remove(uid) else { return };
        objects.revision += 1;
        let stateful = old.pod.owner.as_deref() == Some("StatefulSet");
        if grow {
            let new = objects.create_pod(old.controller, old.pod.node.clone(), true);
            if let Some(record) = objects.pods.get_mut(&new) {
                record.pod.pinned_to = old.pod.pinned_to;
            }
        } else if stateful {
            let new = objects.replace_pod(&old);
            self.after_millis(3000, 6000, Effect::PodReady { place: place.clone(), uid: new });
        }
    }

    fn pod_ready(&mut self, place: &Place, uid: &str) {
        let Some(objects) = self.objects_mut(place) else { return };
        objects.revision += 1;
        let ready = |node: &Option<NodeName>, objects: &Objects| {
            node.as_ref().and_then(|n| objects.nodes.get(n)).is_some_and(|n| n.ready == Some(true))
        };
        let Some(node) = objects.pods.get(uid).map(|p| p.pod.node.clone()) else { return };
        let ready = ready(&node, objects);
        if let Some(record) = objects.pods.get_mut(uid).filter(|p| !p.pod.terminating && ready) {
            record.pod.ready = true;
            record.pod.phase = kadence_core::inventory::PodPhase::Running;
        }
    }

    /// The node's lease ran out: its Ready becomes Unknown and its pods count for nothing.
    fn node_lost(&mut self, node: &NodeName) {
        if self.machines.get(node).is_none_or(|m| m.kubelet_up) {
            return;
        }

        let Some(place) = self.live() else {
            // Nobody who could notice.
            self.after(5 * SECOND, Effect::NodeLost { node: node.clone() });
            return;
        };
        let Some(objects) = self.objects_mut(&place) else { return };
        if objects.nodes.get(node).is_none_or(|r| r.ready.is_none()) {
            return;
        }
        objects.change(node, |record| record.ready = None);
        for record in objects.pods.values_mut().filter(|p| p.pod.node.as_ref() == Some(node)) {
            record.pod.ready = false;
        }
        self.note(format!("{node}: NotReady"));
    }

    // --------------------------------------------------------------------------------------------------- power

    pub(crate) fn power_cut(&mut self, node: &NodeName, back: Option<Duration>) {
        let coin = self.rng.coin();
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.power) else { return };
        machine.life += 1;
        machine.unit = UnitPhase::Inactive;
        machine.pods_lost = true;
        // What was renamed and not synced may be back as it was.
        if let Some(before) = machine.folder.unsynced.take()
            && coin
        {
            machine.installed = before;
            if let Some(action) = &machine.folder.busy {
                self.watch.undone_by_power_cut(action);
            }
        }
        self.note(format!("{node}: loses power"));
        self.process_gone(node, false);
        self.interrupt(node);
        if let Some(machine) = self.machines.get_mut(node) {
            machine.power = false;
        }
        if let Data::Etcd { cluster, .. } = self.machines[node].data {
            self.settle_etcd(cluster, false);
        }
        if let Some(back) = back {
            self.after(back, Effect::PowerBack { node: node.clone() });
        }
    }

    fn booted(&mut self, node: &NodeName) {
        let Some(machine) = self.machines.get_mut(node) else { return };
        machine.power = true;
        machine.boots += 1;
        machine.restarts = 0;
        machine.changes += 1;
        let enabled = machine.enabled;
        self.note(format!("{node}: has booted"));
        if enabled {
            self.start_unit(node);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Stopped { node, life, start } if self.alive(&node, life) => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.unit = UnitPhase::Inactive;
                }
                self.process_gone(&node, true);
                if start {
                    self.start_unit(&node);
                }
            }
            Effect::Restart { node, life } if self.alive(&node, life) => self.start_unit(&node),
            Effect::EtcdUp { node, life } if self.alive(&node, life) => self.etcd_comes_up(&node, life),
            Effect::Serving { node, life } if self.alive(&node, life) => self.serving(&node, life),
            Effect::AgentUp { node, life } if self.alive(&node, life) => self.agent_up(&node, life),
            Effect::Registered { node, life } if self.alive(&node, life) => self.registered(&node, life),
            Effect::Exited { node, life, class, line } if self.alive(&node, life) => self.exit(&node, class, line),
            Effect::Flap { node, life } if self.alive(&node, life) => self.flap(&node, life),
            // It looks through its manifests every 15 s, so an API that is away for a moment costs a round.
            Effect::Deployed { node, life } if self.alive(&node, life) && !self.serves(&node) => {
                self.after(15 * SECOND, Effect::Deployed { node, life });
            }
            Effect::Deployed { node, life } if self.alive(&node, life) => self.deployed(&node),
            Effect::Stopped { .. }
            | Effect::Restart { .. }
            | Effect::EtcdUp { .. }
            | Effect::Serving { .. }
            | Effect::AgentUp { .. }
            | Effect::Registered { .. }
            | Effect::Exited { .. }
            | Effect::Flap { .. }
            | Effect::Deployed { .. } => {}
            Effect::HelmDone { place } => {
                if let Some(objects) = self.objects_mut(&place) {
                    objects.packaged.settled = true;
                    objects.revision += 10;
                }
            }
            Effect::NodeLost { node } => self.node_lost(&node),
            Effect::Elected { cluster, term } => self.elected(cluster, term),
            Effect::Promoted { cluster, member } => self.promoted(cluster, member),
            Effect::ClusterVersion { cluster } => self.raise_cluster_version(cluster),
            Effect::PowerBack { node } => self.after_millis(4000, 8000, Effect::Booted { node }),
            Effect::Booted { node } => self.booted(&node),
            Effect::Step { node, action, run, step } => self.step(&node, &action, run, step),
            Effect::PodGone { place, uid, grow } => self.pod_gone(&place, &uid, grow),
            Effect::PodReady { place, uid } => self.pod_ready(&place, &uid),
            Effect::Fault { index } => self.strike(index),
            Effect::FaultOver { what } => self.fault_over(&what),
        }
    }

    pub(crate) fn fault_over(&mut self, what: &Over) {
        match what {
            Over::Api => self.api_away = false,
            Over::Down(node) => {
                if self.machines.get(node).is_some_and(|m| m.running.is_none() && m.power) {
                    self.start_unit(node);
                }
            }
            Over::Ssh(node) | Over::Slow(node) | Over::Disk(node) | Over::Sick(node) => {
                let Some(machine) = self.machines.get_mut(node) else { return };
                match what {
                    Over::Ssh(_) => machine.ssh_cut = false,
                    Over::Slow(_) => machine.answers_after = Duration::ZERO,
                    Over::Disk(_) => machine.disk_full = false,
                    _ => machine.etcd_sick = false,
                }
                machine.changes += 1;
                if let Data::Etcd { cluster, .. } = machine.data {
                    self.settle_etcd(cluster, false);
                }
            }
        }
        self.note(format!("over: {what:?}"));
    }

    /// A member of etcd is sick: it counts for nothing until it is over.
    pub(crate) fn make_sick(&mut self, node: &NodeName) {
        let Some(machine) = self.machines.get_mut(node) else { return };
        let Data::Etcd { cluster, .. } = machine.data else { return };
        machine.etcd_sick = true;
        machine.changes += 1;
        self.settle_etcd(cluster, false);
    }

    /// K3s goes down by itself and is not started again for a while.
    pub(crate) fn crash(&mut self, node: &NodeName) {
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.power) else { return };
        machine.life += 1;
        machine.unit = UnitPhase::Inactive;
        self.note(format!("{node}: k3s goes down by itself"));
        self.process_gone(node, false);
    }

    /// Whether the node works: for a server its API and its vote, for both the kubelet's Ready.
    pub(crate) fn healthy(&self, node: &NodeName) -> bool {
        let Some(machine) = self.machines.get(node) else { return false };
        let ready =
            self.live().and_then(|p| self.objects(&p)?.nodes.get(node).map(|r| r.ready == Some(true))).unwrap_or(false);
        machine.kubelet_up && ready && (machine.role == Role::Agent || (self.serves(node) && !machine.etcd_sick))
    }
}

impl Member {
    fn of(node: &NodeName, address: &str, id: u64, learner: bool) -> Self {
        let name = format!("{node}-{:08x}", id & 0xffff_ffff);
        Self { node: node.clone(), name, peer: format!("https://{address}:2380"), learner }
    }
}

impl Machine {
    pub(crate) fn boot_id(&self) -> String {
        Digest::of(format!("boot {} {}", self.machine_id, self.boots).as_bytes()).short(32)
    }

    /// What stands in the annotation `k3s.io/node-config-hash`: it is written at the start.
    pub(crate) fn config_hash(&self) -> String {
        self.digest_of_arguments(self.started_with).short(52)
    }

    pub(crate) fn arguments_digest(&self) -> Digest {
        self.digest_of_arguments(self.arguments)
    }

    fn digest_of_arguments(&self, arguments: u32) -> Digest {
        Digest::of(format!("arguments {} {:?} {arguments}", self.role, self.joins).as_bytes())
    }

    pub(crate) fn unit(&self) -> Unit {
        let (active, sub) = match self.unit {
            UnitPhase::Inactive => ("inactive", "dead"),
            UnitPhase::Starting => ("activating", "start"),
            UnitPhase::Running => ("active", "running"),
            UnitPhase::Stopping => ("deactivating", "stop-sigterm"),
            UnitPhase::AutoRestart => ("activating", "auto-restart"),
        };
        Unit {
            name: self.role.unit().to_owned(),
            enabled: self.enabled,
            active: active.to_owned(),
            sub: sub.to_owned(),
            restarts: self.restarts,
            main_pid: self.pid,
            files: vec![format!("/etc/systemd/system/{}.service", self.role.unit())],
        }
    }
}
