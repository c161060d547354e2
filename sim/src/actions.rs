//! What a node does with an order: on its own, in steps that take time, whoever listens.
//!
//! The steps and refusals are those of the script that real nodes run. Between two steps power can go, and what is
//! begun again under the same id goes on from what it finds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kadence_core::ident::{ActionId, Digest, NodeName};
use kadence_core::inventory::RecordState;
use kadence_core::version::Version;
use kadence_engine::ports::{HostError, Order, RemoteFile, Task, TaskReport};

use crate::bbolt;
use crate::objects::Objects;
use crate::release::{Binary, etcd_minor};
use crate::sqlite;
use crate::world::{Content, Data, Effect, Snapshot, State, Stored, UnitPhase};

/// What an order left on its node.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) order: Order,
    pub(crate) state: RecordState,
    pub(crate) report: TaskReport,
    pub(crate) error: Option<HostError>,
    /// How often it was begun.
    run: u32,
    /// Which order of the world this is, from 1.
    pub(crate) number: u32,
    renamed: bool,
    asked: bool,
    /// The life of the machine in which the cold copy was made.
    cold: Option<u64>,
    /// How far a reset or restore of the datastore came, with the machine's life at that time.
    restored: Option<u64>,
}

/// A step of a task: it happens after its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Inspect,
    Keep,
    StopForCopy,
    ColdCopy,
    Rename,
    Sync,
    AskRestart,
    AskStart,
    Snapshot,
    Backup,
    Archive,
    Disable,
    ProveStopped,
    Reset,
    MoveAside,
    PutBack,
    Prune,
}

/// What comes after a step.
enum Flow {
    Next,
    /// The task is done before its last step.
    Done,
    /// The same step again, later.
    Wait(Duration),
    Fail(&'static str, String),
    Wrong {
        file: String,
        expected: Digest,
        found: Digest,
    },
    DiskFull(String),
}

/// What became of an order that was handed to a node.
pub(crate) enum Taken {
    /// It runs now; its result will lie in the record.
    Runs,
    Finished(Result<TaskReport, HostError>),
    /// Another action is at work.
    Busy,
}

impl Op {
    fn millis(self) -> (u64, u64) {
        match self {
            Self::Inspect | Self::AskRestart | Self::AskStart | Self::MoveAside | Self::Rename => (20, 40),
            Self::Keep => (150, 350),
            Self::Sync => (50, 120),
            Self::StopForCopy | Self::Disable | Self::Archive => (100, 200),
            Self::ColdCopy | Self::ProveStopped => (650, 800),
            Self::Backup | Self::Snapshot => (500, 900),
            Self::Reset => (3000, 3800),
            Self::PutBack | Self::Prune => (150, 300),
        }
    }
}

/// How many steps the longest task has.
pub(crate) const MOST_STEPS: usize = 7;

fn ops(task: &Task) -> &'static [Op] {
    use Op::{
        Archive, AskRestart, AskStart, Backup, ColdCopy, Disable, Inspect, Keep, MoveAside, ProveStopped, Prune,
        PutBack, Rename, Reset, Snapshot, StopForCopy, Sync,
    };
    match task {
        Task::Swap { cold_copy: true, .. } => &[Inspect, Keep, StopForCopy, ColdCopy, Rename, Sync, AskRestart],
        Task::Swap { cold_copy: false, .. } => &[Inspect, Keep, Rename, Sync, AskRestart],
        Task::Place { .. } => &[Inspect, Keep, Rename, Sync],
        Task::EtcdSnapshot { .. } => &[Snapshot],
        Task::SqliteBackup { .. } => &[Backup],
        Task::SqliteStoppedCopy => &[StopForCopy, ColdCopy, AskStart],
        Task::Archive => &[Archive],
        Task::Stop => &[Disable, ProveStopped],
        Task::Start => &[AskStart],
        Task::Restart => &[AskRestart],
        Task::EtcdReset { .. } => &[Reset],
        Task::SetEtcdAside => &[MoveAside],
        Task::SqliteRestore { .. } => &[PutBack],
        Task::PruneSnapshots { .. } => &[Prune],
    }
}

const BASE: &str = "/var/lib/kadence";
const SNAPSHOTS: &str = "/var/lib/rancher/k3s/server/db/snapshots";

pub(crate) fn word(task: &Task) -> &'static str {
    match task {
        Task::Swap { .. } => "swap",
        Task::Place { .. } => "place",
        Task::EtcdSnapshot { .. } => "etcd-snapshot",
        Task::SqliteBackup { .. } => "sqlite-backup",
        Task::SqliteStoppedCopy => "sqlite-stopped-copy",
        Task::Archive => "archive",
        Task::Stop => "stop",
        Task::Start => "start",
        Task::Restart => "restart",
        Task::EtcdReset { .. } => "etcd-reset",
        Task::SetEtcdAside => "set-etcd-aside",
        Task::SqliteRestore { .. } => "sqlite-restore",
        Task::PruneSnapshots { .. } => "prune-snapshots",
    }
}

impl State {
    /// A node is handed an order.
    pub(crate) fn take_order(&mut self, node: &NodeName, order: &Order) -> Result<Taken, HostError> {
        let failed = |code: &str, why: String| HostError::Failed { node: node.clone(), code: code.to_owned(), why };
        let Some(machine) = self.machines.get_mut(node) else {
            return Err(failed("unknown", "there is no such host".to_owned()));
        };
        if let Some(record) = machine.folder.records.get(&order.id) {
            match record.state {
                // Asking for a result changes nothing: no turn is needed.
                RecordState::Succeeded | RecordState::Failed => return Ok(Taken::Finished(record.result())),
                RecordState::Running => {
                    superseded(node, order, &machine.folder.turn)?;
                    return Ok(Taken::Runs);
                }
                RecordState::Interrupted => {}
            }
        }
        superseded(node, order, &machine.folder.turn)?;
        if machine.folder.busy.is_some() {
            return Ok(Taken::Busy);
        }
        if order.role != machine.role {
            return Err(failed("no-unit", format!("no systemd unit starts `k3s {}`", order.role)));
        }
        machine.folder.turn = (order.turn, order.holder.clone());
        machine.folder.busy = Some(order.id.clone());
        self.orders += 1;
        let number = self.orders;
        let record = machine.folder.records.entry(order.id.clone()).or_insert_with(|| {
            machine.folder.order.push(order.id.clone());
            Record {
                order: order.clone(),
                state: RecordState::Running,
                report: TaskReport::default(),
                error: None,
                run: 0,
                number,
                renamed: false,
                asked: false,
                cold: None,
                restored: None,
            }
        });
        record.run += 1;
        record.number = number;
        record.state = RecordState::Running;
        record.report = TaskReport::default();
        let run = record.run;
        self.in_hand = Some(node.clone());
        self.note(format!("{node}: takes order {number} ({}, turn {})", word(&order.task), order.turn));
        self.judge_order(node, order);
        self.next_step(node, &order.id, run, 0);
        Ok(Taken::Runs)
    }

    fn next_step(&mut self, node: &NodeName, action: &ActionId, run: u32, step: usize) {
        let Some(record) = self.record(node, action) else { return };
        let Some(op) = ops(&record.order.task).get(step) else {
            self.finish(node, action, None);
            return;
        };
        let (from, to) = op.millis();
        self.after_millis(from, to, Effect::Step { node: node.clone(), action: action.clone(), run, step });
    }

    pub(crate) fn record(&self, node: &NodeName, action: &ActionId) -> Option<&Record> {
        self.machines.get(node)?.folder.records.get(action)
    }

    fn record_mut(&mut self, node: &NodeName, action: &ActionId) -> Option<&mut Record> {
        self.machines.get_mut(node)?.folder.records.get_mut(action)
    }

    fn at_work(&self, node: &NodeName, action: &ActionId, run: u32) -> bool {
        self.record(node, action).is_some_and(|r| r.state == RecordState::Running && r.run == run)
    }

    /// A step of an order is due.
    pub(crate) fn step(&mut self, node: &NodeName, action: &ActionId, run: u32, step: usize) {
        if !self.at_work(node, action, run) {
            return;
        }
        let Some(record) = self.record(node, action) else { return };
        let (number, order) = (record.number, record.order.clone());
        self.at_step(number, step, word(&order.task));
        // The fault may have taken the node, and with it the order.
        if !self.at_work(node, action, run) {
            return;
        }
        let Some(op) = ops(&order.task).get(step).copied() else { return };
        match self.perform(node, &order, op) {
            Flow::Next => self.next_step(node, action, run, step + 1),
            Flow::Done => self.finish(node, action, None),
            Flow::Wait(time) => {
                self.after(time, Effect::Step { node: node.clone(), action: action.clone(), run, step });
            }
            Flow::Fail(code, why) => {
                let error = HostError::Failed { node: node.clone(), code: code.to_owned(), why };
                self.finish(node, action, Some(error));
            }
            Flow::Wrong { file, expected, found } => {
                let (expected, found) = (expected.to_string(), found.to_string());
                self.finish(node, action, Some(HostError::Digest { node: node.clone(), file, expected, found }));
            }
            Flow::DiskFull(why) => self.finish(node, action, Some(HostError::DiskFull { node: node.clone(), why })),
        }
    }

    fn finish(&mut self, node: &NodeName, action: &ActionId, error: Option<HostError>) {
        let said = error.as_ref().map_or("is done", |_| "failed");
        let number = self.record(node, action).map_or(0, |r| r.number);
        if let Some(machine) = self.machines.get_mut(node) {
            machine.folder.busy = None;
            machine.changes += 1;
        }
        if let Some(record) = self.record_mut(node, action) {
            record.state = if error.is_none() { RecordState::Succeeded } else { RecordState::Failed };
            record.error = error;
        }
        self.note(format!("{node}: order {number} {said}"));
    }

    /// The node went down: what it was doing is neither running nor finished.
    pub(crate) fn interrupt(&mut self, node: &NodeName) {
        let Some(action) = self.machines.get_mut(node).and_then(|m| m.folder.busy.take()) else { return };
        if let Some(record) = self.record_mut(node, &action) {
            record.state = RecordState::Interrupted;
        }
        let number = self.record(node, &action).map_or(0, |r| r.number);
        self.note(format!("{node}: order {number} is interrupted"));
    }

    fn perform(&mut self, node: &NodeName, order: &Order, op: Op) -> Flow {
        match op {
            Op::Inspect => self.inspect_binary(node, order),
            Op::Keep => self.keep(node, order),
            Op::StopForCopy => self.stop_for_copy(node, order),
            Op::ColdCopy => self.cold_copy(node, order),
            Op::Rename => self.rename(node, order),
            Op::Sync => {
                // Only now the second name goes: until here a power cut may bring the old file back.
                if let Some(machine) = self.machines.get_mut(node) {
                    machine.folder.unsynced = None;
                    let installed = machine.installed.digest;
                    machine.folder.staged.remove(&installed);
                }
                if matches!(order.task, Task::Place { .. }) { Flow::Done } else { Flow::Next }
            }
            Op::AskRestart => self.ask_restart(node, order),
            Op::AskStart => self.ask_start(node, order),
            Op::Snapshot => self.snapshot(node, order),
            Op::Backup => self.sqlite_backup(node, order),
            Op::Archive => self.archive(node, order),
            Op::Disable => self.disable(node, order),
            Op::ProveStopped => self.prove_stopped(node),
            Op::Reset => self.etcd_reset(node, order),
            Op::MoveAside => self.move_aside(node, order),
            Op::PutBack => self.sqlite_restore(node, order),
            Op::Prune => self.prune(node, order),
        }
    }

    fn report(&mut self, node: &NodeName, order: &Order, report: impl FnOnce(&mut TaskReport)) {
        if let Some(record) = self.record_mut(node, &order.id) {
            report(&mut record.report);
        }
    }

    // ------------------------------------------------------------------------------------------- the binary

    fn inspect_binary(&mut self, node: &NodeName, order: &Order) -> Flow {
        let (Task::Swap { artifact, expect, .. } | Task::Place { artifact, expect, .. }) = &order.task else {
            return Flow::Next;
        };
        let Some(machine) = self.machines.get(node) else { return Flow::Next };
        let runs = machine.unit != UnitPhase::Inactive;
        if matches!(order.task, Task::Place { .. }) && runs {
            return still_running();
        }
        if machine.installed.digest == *artifact {
            let kept = machine.folder.kept.get(expect).map(|v| kept_path(v, *expect));
            self.report(node, order, |r| {
                r.already = true;
                r.kept = kept;
            });
            // The name is right already; what is left is that the right process runs.
            return match order.task {
                Task::Swap { .. } => self.ask_restart(node, order),
                _ => Flow::Done,
            };
        }
        if machine.installed.digest != *expect {
            let file = "/usr/local/bin/k3s".to_owned();
            return Flow::Wrong { file, expected: *expect, found: machine.installed.digest };
        }
        if !machine.folder.staged.contains_key(artifact) && !machine.folder.kept.contains_key(artifact) {
            return Flow::Fail("not-staged", format!("not staged: no binary with digest {artifact} is on this node"));
        }
        Flow::Next
    }

    fn keep(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get_mut(node) else { return Flow::Next };
        if machine.disk_full {
            return Flow::DiskFull(format!("{BASE}: the installed binary could not be kept"));
        }
        let Binary { version, digest } = machine.installed.clone();
        machine.folder.kept.insert(digest, version.clone());
        self.report(node, order, |r| r.kept = Some(kept_path(&version, digest)));
        Flow::Next
    }

    fn rename(&mut self, node: &NodeName, order: &Order) -> Flow {
        let (Task::Swap { to, artifact, .. } | Task::Place { to, artifact, .. }) = &order.task else {
            return Flow::Next;
        };
        let before = match self.machines.get(node) {
            Some(machine) => machine.installed.clone(),
            None => return Flow::Next,
        };
        self.judge_rename(node, order, &before.version, to);
        let Some(machine) = self.machines.get_mut(node) else { return Flow::Next };
        machine.folder.unsynced = Some(before);
        machine.installed = Binary { version: to.clone(), digest: *artifact };
        machine.changes += 1;
        self.note(format!("{node}: {to} is put in place"));
        if let Some(record) = self.record_mut(node, &order.id) {
            record.renamed = true;
        }
        Flow::Next
    }

    fn ask_restart(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get(node) else { return Flow::Done };
        let swap = matches!(order.task, Task::Swap { .. });
        let asked = self.record(node, &order.id).is_some_and(|r| r.asked);
        if asked && !swap {
            self.report(node, order, |r| r.already = true);
            return Flow::Done;
        }
        let installed = machine.installed.digest;
        let right = machine.running.as_ref().is_some_and(|(binary, _)| binary.digest == installed);
        match machine.unit {
            UnitPhase::Inactive => self.start_unit(node),
            // systemd starts it by itself, and from the name that is right.
            UnitPhase::Stopping | UnitPhase::AutoRestart if swap && asked => {}
            _ if swap && right => return Flow::Done,
            UnitPhase::AutoRestart => self.start_unit(node),
            _ => {
                self.judge_stop(node, order);
                self.stop_unit(node, true);
            }
        }
        if let Some(record) = self.record_mut(node, &order.id) {
            record.asked = true;
        }
        Flow::Done
    }

    fn ask_start(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get_mut(node) else { return Flow::Done };
        machine.enabled = true;
        machine.changes += 1;
        if machine.unit == UnitPhase::Inactive {
            self.start_unit(node);
        } else if matches!(order.task, Task::Start) {
            self.report(node, order, |r| r.already = true);
        }
        Flow::Done
    }

    fn disable(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get_mut(node) else { return Flow::Next };
        let was = std::mem::replace(&mut machine.enabled, false);
        machine.changes += 1;
        if machine.unit == UnitPhase::Inactive {
            if !was {
                self.report(node, order, |r| r.already = true);
            }
        } else {
            if machine.unit != UnitPhase::Stopping {
                self.judge_stop(node, order);
            }
            // A stop takes the place of a restart that is under way.
            self.halt_unit(node);
        }
        Flow::Next
    }

    /// Stops the unit, or what waits to become it.
    fn halt_unit(&mut self, node: &NodeName) {
        let waits = self.machines.get(node).is_some_and(|m| m.unit == UnitPhase::AutoRestart);
        self.stop_unit(node, false);
        if waits && let Some(machine) = self.machines.get_mut(node) {
            machine.unit = UnitPhase::Inactive;
        }
    }

    fn prove_stopped(&mut self, node: &NodeName) -> Flow {
        match self.machines.get(node) {
            Some(machine) if machine.running.is_some() => Flow::Wait(Duration::from_millis(100)),
            _ => Flow::Done,
        }
    }

    // ---------------------------------------------------------------------------------------- the datastore

    /// The datastore of the node as it is now, and what is needed to bring it back.
    fn picture(&mut self, node: &NodeName, order: &Order) -> Option<Snapshot> {
        let place = self.place_of(node)?;
        let usable = !std::mem::take(&mut self.corrupt_next_snapshot);
        let version = self.machines.get(node).map(|m| m.installed.version.clone())?;
        let version = self.machines.get(node)?.running.as_ref().map_or(version, |(b, _)| b.version.clone());
        let etcd_minor = match self.machines.get(node)?.data {
            Data::Etcd { cluster, .. } => self.etcds.get(&cluster)?.cluster_minor,
            _ => (0, 0),
        };
        let objects = self.objects_mut(&place)?.clone();
        let rollout = order.rollout.family().to_owned();
        Some(Snapshot { objects, version, etcd_minor, usable, rollout })
    }

    pub(crate) fn store_file(&mut self, node: &NodeName, path: String, bytes: Vec<u8>, what: Content) -> RemoteFile {
        let digest = Digest::of(&bytes);
        let file = RemoteFile { path: path.clone(), bytes: bytes.len() as u64, digest };
        let stored = Arc::new(Stored { bytes, digest, what });
        self.stored.insert(digest, Arc::clone(&stored));
        if let Some(machine) = self.machines.get_mut(node) {
            machine.folder.files.insert(path, stored);
        }
        file
    }

    /// Bytes that may come from outside, and what they stand for.
    fn know(&mut self, bytes: Vec<u8>, what: Content) {
        let digest = Digest::of(&bytes);
        self.stored.insert(digest, Arc::new(Stored { bytes, digest, what }));
    }

    /// A copy on a node, a file or a folder; a folder's digest is that of the list of its files.
    fn copy_at(&self, node: &NodeName, path: &str) -> Option<RemoteFile> {
        let files = &self.machines.get(node)?.folder.files;
        let (bytes, digest) = match files.get(path) {
            Some(file) => (file.bytes.len(), file.digest),
            None => {
                let below = format!("{path}/");
                let inside: Vec<_> = files.iter().filter(|(p, _)| p.starts_with(&below)).collect();
                let list: String = inside.iter().map(|(p, f)| format!("{}  {p}\n", f.digest)).collect();
                (inside.iter().map(|(_, f)| f.bytes.len()).sum(), Digest::of(list.as_bytes()))
            }
        };
        Some(RemoteFile { path: path.to_owned(), bytes: bytes as u64, digest })
    }

    fn snapshot(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Task::EtcdSnapshot { name } = &order.task else { return Flow::Done };
        let Some(machine) = self.machines.get(node) else { return Flow::Done };
        let prefix = format!("{SNAPSHOTS}/{name}-{node}-");
        if let Some((path, stored)) = machine.folder.files.iter().find(|(path, _)| path.starts_with(&prefix)) {
            let file = RemoteFile { path: path.clone(), bytes: stored.bytes.len() as u64, digest: stored.digest };
            self.report(node, order, |r| {
                r.already = true;
                r.files.push(file);
            });
            return Flow::Done;
        }
        if machine.disk_full {
            return Flow::DiskFull(format!("{SNAPSHOTS}: no space left on device"));
        }
        if !self.serves(node) {
            let why = "k3s etcd-snapshot save: the server does not answer".to_owned();
            return Flow::Fail("snapshot", why);
        }
        let Some(picture) = self.picture(node, order) else {
            return Flow::Fail("snapshot", "etcd datastore disabled".to_owned());
        };
        let mut bytes = bbolt::snapshot(picture.objects.revision, self.rng.draw());
        if !picture.usable
            && let Some(byte) = bytes.get_mut(4200)
        {
            *byte ^= 0x40;
        }
        let path = format!("{prefix}{}", self.wall().as_second());
        let revision = picture.objects.revision;
        self.note(format!("{node}: snapshot of revision {revision}"));
        let file = self.store_file(node, path, bytes, Content::Snapshot(Box::new(picture)));
        self.report(node, order, |r| r.files.push(file));
        Flow::Done
    }

    fn sqlite_backup(&mut self, node: &NodeName, order: &Order) -> Flow {
        if self.machines.get(node).is_some_and(|m| m.disk_full) {
            return Flow::DiskFull(format!("{BASE}: too little room for a copy"));
        }
        if self.machines.get(node).is_some_and(|m| !m.tools) {
            return Flow::Fail("backup", "sqlite3: command not found".to_owned());
        }
        let Some(picture) = self.picture(node, order) else {
            return Flow::Fail("no-database", "state.db is not there".to_owned());
        };
        let (revision, usable) = (picture.objects.revision, picture.usable);
        let bytes = sqlite::database(&format!("{node} {}", order.id), revision, usable);
        let file = self.store_file(
            node,
            format!("{BASE}/backups/{}.db", order.id),
            bytes,
            Content::Snapshot(Box::new(picture)),
        );
        self.report(node, order, |r| {
            r.files.push(file);
            r.revision = Some(revision);
            r.integrity = Some(if usable { "ok" } else { "database disk image is malformed" }.to_owned());
        });
        Flow::Done
    }

    fn archive(&mut self, node: &NodeName, order: &Order) -> Flow {
        if self.machines.get(node).is_some_and(|m| m.disk_full) {
            return Flow::DiskFull(format!("{BASE}: tar: no space left on device"));
        }
        let bytes = format!("ustar {node}: {} and /etc/rancher/k3s", crate::SECRET).into_bytes();
        let file = self.store_file(node, format!("{BASE}/backups/{}.tar", order.id), bytes, Content::Other);
        self.report(node, order, |r| r.files.push(file));
        Flow::Done
    }

    fn stop_for_copy(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get(node) else { return Flow::Next };
        if machine.disk_full {
            return Flow::DiskFull(format!("{BASE}: too little room for a cold copy"));
        }
        if !matches!(machine.data, Data::Sqlite(_)) {
            return Flow::Fail("no-database", "state.db is not there".to_owned());
        }
        if !matches!(machine.unit, UnitPhase::Inactive | UnitPhase::Stopping) {
            self.judge_stop(node, order);
            self.halt_unit(node);
        }
        Flow::Next
    }

    fn cold_copy(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get(node) else { return Flow::Next };
        if machine.running.is_some() {
            return Flow::Wait(Duration::from_millis(100));
        }
        let life = machine.life;
        let folder = format!("{BASE}/cold/{}", order.id);
        if self.record(node, &order.id).is_some_and(|r| r.cold == Some(life)) {
            return Flow::Next;
        }
        let Some(mut picture) = self.picture(node, order) else { return Flow::Next };
        picture.version = self.machines.get(node).map_or(picture.version, |m| m.installed.version.clone());
        let (revision, usable) = (picture.objects.revision, picture.usable);
        let whole = sqlite::database(&format!("cold {node} {}", order.id), revision, usable);
        let content = Content::Snapshot(Box::new(picture));
        let (database, log) = (format!("{folder}/state.db"), format!("{folder}/state.db-wal"));
        let tools = self.machines.get(node).is_some_and(|m| m.tools);
        // Where nothing can read it, its last writes stay in the log; the two together are the whole.
        let files = if tools {
            vec![self.store_file(node, database, whole, content)]
        } else {
            self.know(whole.clone(), content.clone());
            let database = self.store_file(node, database, sqlite::before_log(&whole), content);
            vec![database, self.store_file(node, log, sqlite::log(&whole), Content::Other)]
        };
        let Some(cold) = self.copy_at(node, &folder) else { return Flow::Next };
        let stopped_copy = matches!(order.task, Task::SqliteStoppedCopy);
        if let Some(record) = self.record_mut(node, &order.id) {
            record.cold = Some(life);
        }
        self.report(node, order, |r| {
            r.cold_copy = Some(cold);
            if stopped_copy {
                r.files = files;
            }
            if tools {
                r.revision = Some(revision);
                r.integrity = Some(if usable { "ok" } else { "database disk image is malformed" }.to_owned());
            }
        });
        Flow::Next
    }

    fn etcd_reset(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Task::EtcdReset { snapshot, digest } = &order.task else { return Flow::Done };
        let Some(machine) = self.machines.get(node) else { return Flow::Done };
        if machine.unit != UnitPhase::Inactive {
            return still_running();
        }
        if let Some(life) = self.record(node, &order.id).and_then(|r| r.restored) {
            if machine.life != life {
                let why = "the restored server has been started since: resetting it again would lose what was written";
                return Flow::Fail("already-started", why.to_owned());
            }
            self.report(node, order, |r| r.already = true);
            return Flow::Done;
        }
        let Some(stored) = machine.folder.files.get(snapshot).cloned() else {
            return Flow::Fail("no-snapshot", format!("{snapshot} is not there"));
        };
        if stored.digest != *digest {
            return Flow::Wrong { file: snapshot.clone(), expected: *digest, found: stored.digest };
        }
        if machine.joins.is_some() {
            let why = "this server is told to join another one (server:): K3s refuses to reset it".to_owned();
            return Flow::Fail("server-configured", why);
        }
        let Content::Snapshot(taken) = &stored.what else {
            return Flow::Fail("reset", format!("{snapshot} is no snapshot"));
        };
        let version = machine.installed.version.clone();
        if !taken.usable {
            return Flow::Fail("reset", "level=fatal msg=\"snapshot file integrity check failed\"".to_owned());
        }
        if version.minor() < taken.version.minor() || etcd_minor(&version) < taken.etcd_minor {
            return Flow::Fail("reset", format!("{version} cannot read a snapshot of {}", taken.version));
        }
        let life = machine.life;
        self.judge_reset(node, order);
        let objects = taken.objects.clone();
        let revision = objects.revision;
        self.watch.data_is_back(&objects);
        self.new_etcd(node, &version, restored(objects, self.now), false);
        if let Some(record) = self.record_mut(node, &order.id) {
            record.restored = Some(life);
        }
        self.note(format!("{node}: etcd is reset to revision {revision}"));
        Flow::Done
    }

    fn move_aside(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Some(machine) = self.machines.get_mut(node) else { return Flow::Done };
        if machine.unit != UnitPhase::Inactive {
            return still_running();
        }
        let aside = format!("/var/lib/rancher/k3s/server/db/etcd-kadence-{}", order.id);
        let already = !matches!(machine.data, Data::Etcd { .. });
        machine.data = Data::None;
        self.report(node, order, |r| {
            r.already = already;
            r.kept = Some(aside);
        });
        Flow::Done
    }

    fn sqlite_restore(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Task::SqliteRestore { copy, digest } = &order.task else { return Flow::Done };
        let Some(machine) = self.machines.get(node) else { return Flow::Done };
        if machine.unit != UnitPhase::Inactive {
            return still_running();
        }
        if self.record(node, &order.id).is_some_and(|r| r.restored.is_some()) {
            self.report(node, order, |r| r.already = true);
            return Flow::Done;
        }
        let files = &machine.folder.files;
        let Some(stored) = files.get(copy).or_else(|| files.get(&format!("{copy}/state.db"))).cloned() else {
            return Flow::Fail("no-copy", format!("{copy} is not there"));
        };
        match self.copy_at(node, copy) {
            Some(found) if found.digest == *digest => {}
            found => {
                let found = found.map_or_else(|| Digest::of(b""), |f| f.digest);
                return Flow::Wrong { file: copy.clone(), expected: *digest, found };
            }
        }
        let Content::Snapshot(taken) = &stored.what else {
            return Flow::Fail("no-copy", format!("{copy} is no database"));
        };
        let life = machine.life;
        self.judge_reset(node, order);
        let objects = restored(taken.objects.clone(), self.now);
        let revision = objects.revision;
        self.watch.data_is_back(&objects);
        if let Some(machine) = self.machines.get_mut(node) {
            machine.data = Data::Sqlite(Box::new(objects));
        }
        if let Some(record) = self.record_mut(node, &order.id) {
            record.restored = Some(life);
        }
        self.report(node, order, |r| {
            r.kept = Some(format!("/var/lib/rancher/k3s/server/db/aside-kadence-{}", order.id));
        });
        self.note(format!("{node}: the database is back at revision {revision}"));
        Flow::Done
    }

    fn prune(&mut self, node: &NodeName, order: &Order) -> Flow {
        let Task::PruneSnapshots { keep, spare } = &order.task else { return Flow::Done };
        let Some(machine) = self.machines.get_mut(node) else { return Flow::Done };
        let prefix = format!("{SNAPSHOTS}/kadence");
        let mut ours: BTreeMap<(String, String), String> = BTreeMap::new();
        let spared = |path: &str| spare.iter().any(|s| path.starts_with(&format!("{SNAPSHOTS}/{s}")));
        for path in machine.folder.files.keys().filter(|p| p.starts_with(&prefix) && !spared(p)) {
            let taken = path.rsplit('-').next().unwrap_or_default().to_owned();
            ours.insert((taken, path.clone()), path.clone());
        }
        let surplus = ours.len().saturating_sub(usize::try_from(*keep).unwrap_or(usize::MAX));
        for path in ours.values().take(surplus) {
            machine.folder.files.remove(path);
        }
        Flow::Done
    }
}

impl Record {
    /// What is told to whoever asks again.
    fn result(&self) -> Result<TaskReport, HostError> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(TaskReport { already: true, ..self.report.clone() }),
        }
    }

    /// What is told to whoever waited for it.
    pub(crate) fn outcome(&self) -> Option<Result<TaskReport, HostError>> {
        match (self.state, &self.error) {
            (RecordState::Running | RecordState::Interrupted, _) => None,
            (_, Some(error)) => Some(Err(error.clone())),
            (_, None) => Some(Ok(self.report.clone())),
        }
    }
}

fn superseded(node: &NodeName, order: &Order, (theirs, holder): &(u64, String)) -> Result<(), HostError> {
    let theirs = *theirs;
    if order.turn < theirs || (order.turn == theirs && order.holder != *holder) {
        return Err(HostError::Superseded { node: node.clone(), ours: order.turn, theirs });
    }
    Ok(())
}

fn still_running() -> Flow {
    Flow::Fail("still-running", "k3s runs: this is done only while it is stopped".to_owned())
}

fn kept_path(version: &Version, digest: Digest) -> String {
    format!("{BASE}/binaries/k3s-{version}-{}", digest.short(12))
}

/// Objects as they were, from now on.
fn restored(mut objects: Objects, now: Duration) -> Objects {
    objects.touch(now, false);
    objects
}
