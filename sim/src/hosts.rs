//! The hosts of the simulated world, as SSH would reach them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::fact::Fact;
use kadence_core::ident::{Digest, NodeName};
use kadence_core::inventory::{
    ActionRecord, Addresses, Argument, Arguments, Certificate, Cgroup, Disk, EtcdLocal, EtcdMember, HostFacts, Install,
    LastStart, Origin, RecordState, Role, SecretsEncryption, SqliteFiles, StartFile, Tools,
};
use kadence_core::validate::prove::Process;
use kadence_engine::ports::{
    Artifact, ArtifactKind, HostAddress, HostError, HostGlance, Hosts, Keep, Order, RemoteFile, Sign, Staged,
    TaskReport,
};

use crate::actions::Taken;
use crate::release::parts_of;
use crate::world::{Content, Data, Handle, Machine, State};

/// How long it takes until a broken way is noticed.
const SSH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an order waits for another action that is ending.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const BYTES_PER_SECOND: u64 = 50_000_000;

/// SSH to the simulated hosts.
pub(crate) struct SimHosts(pub(crate) Handle);

#[async_trait]
impl Hosts for SimHosts {
    fn learn_nodes(&self, _: &BTreeMap<NodeName, HostAddress>) {}

    async fn facts(&self, node: &NodeName) -> Result<HostFacts, HostError> {
        self.0.enter("host facts", Duration::from_millis(150)).await;
        let facts = self.reached(node, |s| s.host_facts(node)).await;
        self.answers(node).await;
        self.0.leave().await;
        facts
    }

    async fn glance(&self, node: &NodeName) -> Result<HostGlance, HostError> {
        self.0.enter("glance", Duration::from_millis(60)).await;
        let glance = self.reached(node, |s| s.host_glance(node)).await;
        self.answers(node).await;
        self.0.leave().await;
        glance
    }

    async fn stage(&self, node: &NodeName, artifact: &Artifact) -> Result<Staged, HostError> {
        self.0.enter("stage", Duration::from_millis(80)).await;
        let there = self.reached(node, |s| s.is_staged(node, artifact)).await;
        let result = match there {
            Ok(true) => Ok(Staged { already_there: true, bytes: 0 }),
            Ok(false) => self.copy(node, artifact).await,
            Err(error) => Err(error),
        };
        self.0.leave().await;
        result
    }

    async fn act(&self, node: &NodeName, order: &Order) -> Result<TaskReport, HostError> {
        self.0.enter("act", Duration::from_millis(80)).await;
        let give_up = self.0.world().age() + LOCK_TIMEOUT;
        let result = loop {
            match self.reached(node, |s| s.take_order(node, order)).await.and_then(|taken| taken) {
                Ok(Taken::Finished(result)) => break result,
                Ok(Taken::Runs) => break self.result_of(node, order).await,
                Ok(Taken::Busy) if self.0.world().age() < give_up => {
                    self.0
                        .world()
                        .wait(Some(give_up), |s| {
                            s.reachable(node).map_or(Some(()), |m| m.folder.busy.is_none().then_some(()))
                        })
                        .await;
                }
                Ok(Taken::Busy) => {
                    let why = "another action is at work on this node".to_owned();
                    break Err(HostError::Failed { node: node.clone(), code: "busy".to_owned(), why });
                }
                Err(error) => break Err(error),
            }
        };
        self.0.leave().await;
        result
    }

    fn follow(&self, node: &NodeName, role: Role) -> BoxStream<'static, Result<Sign, HostError>> {
        let start = Following { handle: self.0.clone(), node: node.clone(), role, said: Said::default(), over: false };
        Box::pin(stream::unfold(start, |mut following| async move {
            if following.over {
                return None;
            }
            let sign = following.next().await;
            following.over = sign.is_err();
            Some((sign, following))
        }))
    }

    async fn pull(&self, node: &NodeName, file: &RemoteFile, into: &Path) -> Result<(), HostError> {
        self.0.enter("pull", Duration::from_millis(150)).await;
        let result = match self.reached(node, |s| s.read_file(node, file)).await {
            Ok(Ok(bytes)) => write_new(into, &bytes).map_err(|why| here(node, into, &why)),
            Ok(Err(error)) | Err(error) => Err(error),
        };
        if result.is_ok() {
            self.0.world().look(|s| s.pulled(file.digest));
        }
        self.0.leave().await;
        result
    }

    async fn push(&self, node: &NodeName, from: &Path, name: &str, digest: &Digest) -> Result<String, HostError> {
        self.0.enter("push", Duration::from_millis(150)).await;
        let read = std::fs::read(from).map_err(|why| here(node, from, &why));
        let result = match read {
            Ok(bytes) => self.reached(node, |s| s.write_file(node, name, bytes, digest)).await.and_then(|path| path),
            Err(error) => Err(error),
        };
        self.0.leave().await;
        result
    }

    async fn tidy(&self, node: &NodeName, keep: &Keep) -> Result<(), HostError> {
        self.0.enter("tidy", Duration::from_millis(60)).await;
        let result = self.reached(node, |s| s.tidy(node, keep)).await.and_then(|tidied| tidied);
        self.0.leave().await;
        result
    }
}

impl SimHosts {
    /// Does something on the host, if there is a way to it.
    async fn reached<R>(&self, node: &NodeName, work: impl FnOnce(&mut State) -> R + Send) -> Result<R, HostError> {
        match self.0.world().look(|s| s.reachable(node).map(|_| ()).map(|()| work(s))) {
            Ok(result) => Ok(result),
            Err(error) => {
                tokio::time::sleep(SSH_TIMEOUT).await;
                Err(error)
            }
        }
    }

    /// Lets pass how long the host takes to answer.
    async fn answers(&self, node: &NodeName) {
        let after = self.0.world().look(|s| s.machines.get(node).map(|m| m.answers_after));
        if let Some(after) = after.filter(|after| !after.is_zero()) {
            tokio::time::sleep(after).await;
        }
    }

    async fn copy(&self, node: &NodeName, artifact: &Artifact) -> Result<Staged, HostError> {
        let world = self.0.world();
        let took = Duration::from_millis(artifact.bytes * 1000 / BYTES_PER_SECOND);
        let done = world.age() + took;
        let cut = world.look(|s| s.ssh_cut_in_copy.remove(node)).then(|| world.age() + took / 2);
        let broke = world
            .wait(Some(cut.unwrap_or(done)), |s| s.reachable(node).err())
            .await
            .or_else(|| cut.map(|_| HostError::NoWay { node: node.clone(), why: "connection reset".to_owned() }));
        match broke {
            Some(error) => Err(error),
            None => self.reached(node, |s| s.staged(node, artifact)).await.and_then(|staged| staged),
        }
    }

    /// Waits for what the node makes of the order, as long as there is a way to it.
    async fn result_of(&self, node: &NodeName, order: &Order) -> Result<TaskReport, HostError> {
        let found = self
            .0
            .world()
            .wait(None, |s| match s.reachable(node) {
                Err(error) => Some(Err(error)),
                Ok(machine) => {
                    let record = machine.folder.records.get(&order.id)?;
                    if record.state == RecordState::Interrupted {
                        let why = "the connection ended in the middle".to_owned();
                        return Some(Err(HostError::NoWay { node: node.clone(), why }));
                    }
                    record.outcome()
                }
            })
            .await;
        let lost = || HostError::NoWay { node: node.clone(), why: "the connection ended".to_owned() };
        let result = found.unwrap_or_else(|| Err(lost()));
        if result.as_ref().is_err_and(HostError::is_no_way) {
            tokio::time::sleep(SSH_TIMEOUT).await;
        }
        result
    }
}

fn here(node: &NodeName, path: &Path, why: &std::io::Error) -> HostError {
    let code = "here".to_owned();
    HostError::Failed { node: node.clone(), code, why: format!("{} on this machine: {why}", path.display()) }
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

// ------------------------------------------------------------------------------------------------- following a node

struct Following {
    handle: Handle,
    node: NodeName,
    role: Role,
    said: Said,
    over: bool,
}

/// What was said last, so that only changes are said again.
#[derive(Default)]
struct Said {
    unit: Option<kadence_core::inventory::Unit>,
    started: Option<Duration>,
    etcd: Option<(bool, bool, bool, bool)>,
    etcd_known: bool,
    /// Lines of the journal seen; `None` before the first look, which begins at its end.
    journal: Option<usize>,
}

impl Following {
    async fn next(&mut self) -> Result<Sign, HostError> {
        let world = self.handle.world().clone();
        let (node, role, said) = (&self.node, self.role, &mut self.said);
        let sign = world
            .wait(None, |s| match s.reachable(node) {
                Err(error) => Some(Err(error)),
                Ok(_) => s.sign(node, role, said).map(Ok),
            })
            .await;
        let lost = || HostError::NoWay { node: self.node.clone(), why: "the connection ended".to_owned() };
        let sign = sign.unwrap_or_else(|| Err(lost()));
        if sign.is_err() {
            tokio::time::sleep(SSH_TIMEOUT).await;
        }
        self.handle.alive().await;
        sign
    }
}

impl State {
    /// The next thing on the node that was not said yet.
    fn sign(&self, node: &NodeName, role: Role, said: &mut Said) -> Option<Sign> {
        let machine = self.machines.get(node)?;
        let seen = *said.journal.get_or_insert(machine.journal.len());
        if let Some((class, line)) = machine.journal.get(seen) {
            said.journal = Some(seen + 1);
            return Some(Sign::Journal { class: class.clone(), line: line.clone() });
        }
        let unit = machine.unit();
        if said.unit.as_ref() != Some(&unit) {
            said.unit = Some(unit.clone());
            return Some(Sign::Unit(unit));
        }
        if let Some((binary, started)) = &machine.running
            && said.started != Some(*started)
        {
            said.started = Some(*started);
            let version = Fact::Known(binary.version.clone());
            return Some(Sign::Process(Process { version, started: self.node_clock(*started) }));
        }
        if role == Role::Server
            && let Some(etcd) = self.etcd_local(node)
        {
            let key = etcd.known().map(|e| (e.healthy, e.leader, e.learner, e.has_leader));
            if !said.etcd_known || said.etcd != key {
                said.etcd = key;
                said.etcd_known = true;
                return Some(Sign::Etcd(etcd));
            }
        }
        None
    }

    /// The host, if SSH gets through to it.
    pub(crate) fn reachable(&self, node: &NodeName) -> Result<&Machine, HostError> {
        let no_way = |why: &str| HostError::NoWay { node: node.clone(), why: why.to_owned() };
        match self.machines.get(node) {
            None => Err(no_way("could not resolve the host's name")),
            Some(m) if !m.power => Err(no_way("no route to host")),
            Some(m) if m.ssh_cut => Err(no_way("connection timed out")),
            Some(m) => Ok(m),
        }
    }

    // ---------------------------------------------------------------------------------------------------- files

    fn is_staged(&self, node: &NodeName, artifact: &Artifact) -> bool {
        self.machines.get(node).is_some_and(|m| match artifact.kind {
            ArtifactKind::Binary => m.folder.staged.contains_key(&artifact.digest),
            ArtifactKind::AirgapImages => m.folder.images.contains(&artifact.digest),
        })
    }

    fn staged(&mut self, node: &NodeName, artifact: &Artifact) -> Result<Staged, HostError> {
        let Some(machine) = self.machines.get_mut(node) else {
            return Err(HostError::NoWay { node: node.clone(), why: "it is gone".to_owned() });
        };
        if machine.disk_full || machine.disk_free < artifact.bytes {
            return Err(HostError::DiskFull { node: node.clone(), why: "/var/lib/kadence: write failed".to_owned() });
        }
        match artifact.kind {
            ArtifactKind::Binary => {
                machine.folder.staged.insert(artifact.digest, artifact.version.clone());
            }
            ArtifactKind::AirgapImages => {
                machine.folder.images.insert(artifact.digest);
            }
        }
        self.note(format!("{node}: {} is staged", artifact.version));
        Ok(Staged { already_there: false, bytes: artifact.bytes })
    }

    fn read_file(&self, node: &NodeName, file: &RemoteFile) -> Result<Vec<u8>, HostError> {
        let stored = self.machines.get(node).and_then(|m| m.folder.files.get(&file.path));
        let Some(stored) = stored else {
            let why = format!("{} is not there", file.path);
            return Err(HostError::Failed { node: node.clone(), code: "no-file".to_owned(), why });
        };
        if stored.digest != file.digest {
            return Err(HostError::Digest {
                node: node.clone(),
                file: file.path.clone(),
                expected: file.digest.to_string(),
                found: stored.digest.to_string(),
            });
        }
        Ok(stored.bytes.clone())
    }

    fn write_file(
        &mut self,
        node: &NodeName,
        name: &str,
        bytes: Vec<u8>,
        digest: &Digest,
    ) -> Result<String, HostError> {
        let found = Digest::of(&bytes);
        if found != *digest {
            let (expected, found) = (digest.to_string(), found.to_string());
            return Err(HostError::Digest { node: node.clone(), file: name.to_owned(), expected, found });
        }
        if self.machines.get(node).is_some_and(|m| m.disk_full) {
            return Err(HostError::DiskFull { node: node.clone(), why: "/var/lib/kadence: write failed".to_owned() });
        }
        let path = format!("/var/lib/kadence/files/{name}");
        // What comes back is what was taken along.
        match self.stored.get(&found).cloned() {
            Some(stored) => {
                if let Some(machine) = self.machines.get_mut(node) {
                    machine.folder.files.insert(path.clone(), stored);
                }
            }
            None => {
                self.store_file(node, path.clone(), bytes, Content::Other);
            }
        }
        Ok(path)
    }

    fn tidy(&mut self, node: &NodeName, keep: &Keep) -> Result<(), HostError> {
        let Some(machine) = self.machines.get_mut(node) else { return Ok(()) };
        if machine.folder.busy.is_some() {
            let why = "an action is at work on this node".to_owned();
            return Err(HostError::Failed { node: node.clone(), code: "busy".to_owned(), why });
        }
        let folder = &mut machine.folder;
        folder.staged.retain(|digest, _| keep.binaries.contains(digest));
        folder.kept.retain(|digest, _| keep.binaries.contains(digest));
        folder.records.retain(|_, record| keep.rollouts.contains(&record.order.rollout));
        let records = &folder.records;
        folder.order.retain(|id| records.contains_key(id));
        let of_action =
            |path: &str| path.starts_with("/var/lib/kadence/backups/") || path.starts_with("/var/lib/kadence/cold/");
        let stays = |path: &str| records.keys().any(|id| path.contains(id.as_str()));
        folder
            .files
            .retain(|path, _| !path.starts_with("/var/lib/kadence/files/") && (!of_action(path) || stays(path)));
        Ok(())
    }

    // ---------------------------------------------------------------------------------------------------- facts

    /// What etcd on the node says of itself; `None` where none is meant to run.
    pub(crate) fn etcd_local(&self, node: &NodeName) -> Option<Fact<EtcdLocal>> {
        let machine = self.machines.get(node)?;
        if machine.role == Role::Agent || self.topology.datastore != DatastoreKind::EmbeddedEtcd {
            return None;
        }
        let Data::Etcd { cluster, member } = machine.data else {
            return Some(Fact::unknown("127.0.0.1:2381: connection refused"));
        };
        if !machine.etcd_up {
            return Some(Fact::unknown("127.0.0.1:2381: connection refused"));
        }
        let etcd = self.etcds.get(&cluster)?;
        let own = etcd.members.get(&member);
        let learner = own.is_some_and(|m| m.learner);
        let has_leader = etcd.leader.is_some();
        let version = machine.running.as_ref().map(|(b, _)| parts_of(&b.version).etcd.to_owned());
        Some(Fact::Known(EtcdLocal {
            healthy: has_leader && !machine.etcd_sick && own.is_some(),
            leader: etcd.leader == Some(member),
            learner,
            has_leader,
            version: Fact::Known(version.unwrap_or_default()),
            db_bytes: Fact::Known(41_000_000),
            quota_bytes: Fact::Known(2_147_483_648),
            applied_index: Fact::Known(etcd.objects.revision + 1000),
            alarms: Fact::Known(Vec::new()),
            fsync_p99_micros: Fact::Known(4000),
            member_id: Fact::Known(format!("{member:x}")),
        }))
    }

    fn etcd_members(&self, node: &NodeName) -> Option<Fact<Vec<EtcdMember>>> {
        if self.etcd_local(node)?.known().is_none() {
            return Some(Fact::unknown("etcd does not answer on this node"));
        }
        let Data::Etcd { cluster, .. } = self.machines.get(node)?.data else { return None };
        let members = self.etcds.get(&cluster)?.members.iter().map(|(id, m)| EtcdMember {
            id: format!("{id:x}"),
            name: m.name.clone(),
            peer_urls: vec![m.peer.clone()],
            learner: m.learner,
        });
        Some(Fact::Known(members.collect()))
    }

    fn host_glance(&self, node: &NodeName) -> HostGlance {
        let machine = &self.machines[node];
        HostGlance {
            machine_id: machine.machine_id.clone(),
            boot_id: machine.boot_id(),
            arguments: Fact::Known(machine.arguments_digest()),
            binary: Fact::Known(machine.installed.digest),
            etcd: self.etcd_local(node),
            etcd_members: self.etcd_members(node),
            unit: Fact::Known(machine.unit()),
            running: machine
                .running
                .as_ref()
                .map_or_else(|| Fact::unknown("no process runs"), |(binary, _)| Fact::Known(binary.version.clone())),
        }
    }

    fn host_facts(&self, node: &NodeName) -> HostFacts {
        let machine = &self.machines[node];
        let server = machine.role == Role::Server;
        let later = self.wall().checked_add((24 * 200).hours()).unwrap_or(self.wall());
        let certificate = |path: &str, ca| Certificate { path: path.to_owned(), not_after: later, ca };
        let disk = |holds: &str, mount: &str| Disk {
            holds: holds.to_owned(),
            mount: mount.to_owned(),
            total: 100_000_000_000,
            free: if machine.disk_full { 0 } else { machine.disk_free },
            inodes: 6_000_000,
            inodes_free: 5_000_000,
        };
        HostFacts {
            hostname: node.to_string(),
            machine_id: machine.machine_id.clone(),
            boot_id: machine.boot_id(),
            arch: Fact::Known(machine.arch),
            ca_hash: Fact::Known(ca_hash()),
            install: Fact::Known(Install {
                role: machine.role,
                binary: "/usr/local/bin/k3s".to_owned(),
                digest: machine.installed.digest,
                size: crate::release::BINARY_BYTES,
                version: Fact::Known(machine.installed.version.clone()),
                unit: machine.unit(),
                other_unit_enabled: false,
                data_dir: "/var/lib/rancher/k3s".to_owned(),
            }),
            arguments: Fact::Known(arguments(machine, self.topology.datastore)),
            cgroup: Fact::Known(Cgroup::V2),
            disks: Fact::Known(vec![disk("data", "/var"), disk("binary", "/"), disk("kadence", "/var")]),
            clock_offset: Fact::Known(SignedDuration::from_millis(12) - self.skew),
            ntp_synchronised: Fact::Known(true),
            certificates: Fact::Known(vec![
                certificate("/var/lib/rancher/k3s/server/tls/server-ca.crt", true),
                certificate("/var/lib/rancher/k3s/agent/client-kubelet.crt", false),
            ]),
            token: Fact::Known(server.then(|| Digest::of(b"keyed hash of the token"))),
            etcd: self.etcd_local(node),
            etcd_members: self.etcd_members(node),
            sqlite: matches!(machine.data, Data::Sqlite(_)).then(|| {
                Fact::Known(SqliteFiles {
                    path: "/var/lib/rancher/k3s/server/db/state.db".to_owned(),
                    db_bytes: 18_000_000,
                    wal_bytes: 4_000_000,
                })
            }),
            secrets_encryption: server.then(|| {
                let stage = "start".to_owned();
                Fact::Known(SecretsEncryption { enabled: false, stage, hashes_match: true })
            }),
            tools: Tools {
                systemd_run: true,
                sqlite3: machine.tools,
                python3: machine.tools,
                restorecon: false,
                selinux_enforcing: false,
            },
            turn: machine.folder.turn.0,
            records: machine
                .folder
                .order
                .iter()
                .filter_map(|id| {
                    let state = machine.folder.records.get(id)?.state;
                    Some(ActionRecord { id: id.to_string(), state })
                })
                .collect(),
            containerd_templates: Vec::new(),
            last_start: Fact::Known(self.last_start(machine)),
            addresses: match machine.address.parse() {
                Ok(address) => Fact::Known(Addresses {
                    default_route: Some("eth0".to_owned()),
                    interfaces: BTreeMap::from([("eth0".to_owned(), vec![address])]),
                }),
                Err(_) => Fact::unknown("the address is none"),
            },
        }
    }

    fn last_start(&self, machine: &Machine) -> LastStart {
        let at = machine.running.as_ref().map(|(_, started)| self.node_clock(*started));
        let changed = machine.arguments_changed.map_or(Timestamp::UNIX_EPOCH, |at| self.node_clock(at));
        let path = "/etc/rancher/k3s/config.yaml".to_owned();
        LastStart {
            at,
            reads: vec![StartFile { path, written: changed, changed }],
            needs_daemon_reload: Fact::Known(false),
        }
    }
}

pub(crate) fn ca_hash() -> Digest {
    Digest::of(b"the simulated cluster's server CA")
}

/// K3s's own record of its arguments: those it was started with, secrets starred.
pub(crate) fn recorded_arguments(machine: &Machine, datastore: DatastoreKind) -> Vec<String> {
    let started = machine.running.as_ref().map(|(_, started)| *started);
    let pending = machine.arguments_changed > started;
    let known = arguments(machine, datastore).entries;
    let known = known.into_iter().filter(|a| !(pending && a.key == "node-label"));
    let words = known.flat_map(|a| [format!("--{}", a.key), a.value.unwrap_or_else(|| "********".to_owned())]);
    std::iter::once(machine.role.to_string()).chain(words).collect()
}

fn arguments(machine: &Machine, datastore: DatastoreKind) -> Arguments {
    let entry = |key: &str, value: Option<&str>| Argument {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        origin: Origin::ConfigFile,
        place: "/etc/rancher/k3s/config.yaml".to_owned(),
    };
    let mut entries = vec![entry("token", None)];
    match &machine.joins {
        Some(url) if datastore == DatastoreKind::EmbeddedEtcd || machine.role == Role::Agent => {
            entries.push(entry("server", Some(url)));
        }
        None if datastore == DatastoreKind::EmbeddedEtcd => entries.push(entry("cluster-init", Some("true"))),
        _ => {}
    }
    if datastore == DatastoreKind::External && machine.role == Role::Server {
        entries.push(entry("datastore-endpoint", None));
    }
    if machine.arguments > 1 {
        entries.push(entry("node-label", Some("changed-by=somebody")));
    }
    Arguments { entries, digest: Some(machine.arguments_digest()), unreadable: Vec::new() }
}
