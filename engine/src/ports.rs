//! What the engine needs of the outside world. Each port has a real implementation in `adapters/` and a simulated one
//! in `sim/`; a contract suite runs against both.
//!
//! Rules for every implementation:
//! - It never retries what could have changed something; the engine decides about retries, and shows them.
//! - It never waits without an end: a call has a deadline of its own, streams end with an error item.
//! - An error says what happened and where; `NoWay` errors (nobody was reached) are told apart from answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use kadence_core::apply::action::{BackupReceipt, CordonWas};
use kadence_core::apply::backup::SqliteFacts;
use kadence_core::apply::plan::{Plan, PlanHash, SqliteTool};
use kadence_core::config::Probe;
use kadence_core::event::{Event, Recorded, Request};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, ClusterUid, Digest, NodeName, RolloutId};
use kadence_core::inventory::{ApiFacts, ApiNode, Arch, HostFacts, LeaseHolder, Mark, Pod, Role};
use kadence_core::track::catalog::Catalog;
use kadence_core::version::Version;

/// The Kubernetes API of one cluster.
///
/// Calls go to any server that answers, in the order of [`learn_servers`](Self::learn_servers) and beginning with the
/// one that answered last, because the servers restart one after the other. Nothing is retried on 429: for an eviction
/// that is the answer of a disruption budget.
#[async_trait]
pub trait Api: Send + Sync {
    /// The addresses of the servers, as nodes reach them. Known only after the first facts.
    fn learn_servers(&self, addresses: &[String]);

    /// Everything an inventory needs, gathered in parallel. A part that fails is unknown in the facts, with its reason.
    ///
    /// # Errors
    /// Only if nothing could be had: no server answered, or the credentials were refused by all.
    async fn facts(&self) -> Result<ApiFacts, ApiError>;

    /// The cluster's uid: that of the namespace `kube-system`.
    async fn uid(&self) -> Result<ClusterUid, ApiError>;

    /// The datastore's revision, by a read that a quorum confirms: the `resourceVersion` of a list.
    async fn revision(&self) -> Result<u64, ApiError>;

    /// The Node objects only.
    async fn nodes(&self) -> Result<Vec<ApiNode>, ApiError>;

    /// The Node's states from now on, the present one first, without an end: when a server goes away it goes on with
    /// another. Items are levels, not events: a state may be skipped or repeated.
    fn watch_node(&self, node: &NodeName) -> BoxStream<'static, ApiNode>;

    /// Whether this server's own `/readyz` answers 200: asked at its own address, never through a load balancer.
    async fn ready(&self, address: &str) -> Result<Readyz, ApiError>;

    /// Makes the node unschedulable and writes our mark, in one write that fails if the node changed in between.
    /// A node that somebody else cordoned keeps that cordon and gets no mark.
    async fn cordon(&self, node: &NodeName, mark: &Mark) -> Result<CordonWas, ApiError>;

    /// Lifts the cordon and removes the mark, in one write, if the mark is of this rollout's family; else
    /// changes nothing.
    /// Returns whether the node is free of our cordon now.
    async fn uncordon(&self, node: &NodeName, rollout: &RolloutId) -> Result<bool, ApiError>;

    async fn pods_on(&self, node: &NodeName) -> Result<Vec<Pod>, ApiError>;

    /// Asks for the eviction of exactly this pod (by uid).
    async fn evict(&self, pod: &Pod, dry_run: bool) -> Result<Eviction, ApiError>;

    /// A linearizable read at this server, for measuring the outage.
    async fn probe_read(&self, address: &str) -> Result<(), ApiError>;

    /// An update of Kadence's probe Lease at this server, for measuring the outage.
    async fn probe_write(&self, address: &str) -> Result<(), ApiError>;

    /// Writes who is working on the cluster on Kadence's Lease. It informs others and fences nothing.
    async fn announce(&self, holder: Option<&LeaseHolder>) -> Result<(), ApiError>;

    /// Whether the object has the condition and it is True.
    async fn condition(&self, probe: &kadence_core::config::ConditionProbe) -> Result<bool, ApiError>;

    /// Restarts the Deployments, DaemonSets and StatefulSets of `kube-system` and all controllers that hold a leader
    /// Lease, by the annotation that `kubectl rollout restart` writes. Returns their names.
    async fn restart_controllers(&self) -> Result<Vec<String>, ApiError>;
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readyz {
    Ready,
    /// The lines of `/readyz?verbose` that are not ok.
    NotReady(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Accepted: the pod is going, not gone.
    Accepted,
    /// The pod is not there any more.
    Gone,
    /// A disruption budget says no (429), in its own words.
    Blocked(String),
    /// More than one budget covers the pod: the API refuses for good (500).
    TooManyBudgets(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("no API server answered: {0}")]
    NoWay(String),
    /// 401 or 403: the kubeconfig is expired, or may not do this.
    #[error("the API refused: {0}")]
    Denied(String),
    #[error("the API does not know {0}")]
    NotFound(String),
    /// The object was changed by somebody else in between.
    #[error("{0} was changed in between")]
    Conflict(String),
    #[error("the API answered with an error: {0}")]
    Answered(String),
}

/// The hosts of one cluster, reached as the configuration says.
///
/// Hosts are told apart by node name here; who a host really is stands in its facts.
#[async_trait]
pub trait Hosts: Send + Sync {
    /// Where nodes are reached: name, role and address, from the API and the configuration.
    fn learn_nodes(&self, nodes: &BTreeMap<NodeName, HostAddress>);

    /// One look at everything, read-only.
    async fn facts(&self, node: &NodeName) -> Result<HostFacts, HostError>;

    /// The few facts that are looked at again before each step, read-only and quick.
    async fn glance(&self, node: &NodeName) -> Result<HostGlance, HostError>;

    /// Copies an artifact into Kadence's folder on the node, if it is not there with the right digest, and verifies it
    /// there. Nothing that runs is touched.
    async fn stage(&self, node: &NodeName, artifact: &Artifact) -> Result<Staged, HostError>;

    /// Performs a task on the node: in a transient unit named by the id, once per id, under the node's lock, refused if
    /// the node has obeyed a higher turn, or the same turn of another holder. Performed again under the same id it waits for, or returns, the result of the
    /// first time; after the host went down in the middle it completes the task from what it finds.
    async fn act(&self, node: &NodeName, order: &Order) -> Result<TaskReport, HostError>;

    /// What the unit, its journal and the etcd member on the node say, from now on: the present state first. Ends after
    /// an error item.
    fn follow(&self, node: &NodeName, role: Role) -> BoxStream<'static, Result<Sign, HostError>>;

    /// Copies a file of the node into a new file here, readable by us only, and verifies its digest.
    async fn pull(&self, node: &NodeName, file: &RemoteFile, into: &Path) -> Result<(), HostError>;

    /// Copies a file into Kadence's folder on the node and verifies it there; returns its path.
    async fn push(&self, node: &NodeName, from: &Path, name: &str, digest: &Digest) -> Result<String, HostError>;

    /// Removes staged files and records of this rollout that no undo needs any more.
    async fn tidy(&self, node: &NodeName, keep: &Keep) -> Result<(), HostError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    pub role: Role,
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostGlance {
    pub machine_id: String,
    pub boot_id: String,
    pub arguments: Fact<Digest>,
    pub binary: Fact<Digest>,
    pub etcd: Option<Fact<kadence_core::inventory::EtcdLocal>>,
    /// The membership as this member lists it.
    pub etcd_members: Option<Fact<Vec<kadence_core::inventory::EtcdMember>>>,
    pub unit: Fact<kadence_core::inventory::Unit>,
    /// The version of the process that runs.
    pub running: Fact<Version>,
}

/// A file of a release that lies here, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub version: Version,
    pub arch: Arch,
    pub digest: Digest,
    pub path: PathBuf,
    pub bytes: u64,
    pub kind: ArtifactKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtifactKind {
    Binary,
    /// `k3s-airgap-images-<arch>.tar.zst`, which goes to `agent/images/`.
    AirgapImages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    pub already_there: bool,
    pub bytes: u64,
}

/// An order to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub id: ActionId,
    /// The fencing number of the Kadence that asks, and the id of its taking.
    pub turn: u64,
    pub holder: String,
    pub rollout: RolloutId,
    pub plan: String,
    pub role: Role,
    pub task: Task,
}

/// What a node can be told to do. Each is idempotent by the order's id, and each but `Restart` also by its end state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub enum Task {
    /// Keep the installed binary under its own version and digest, rename the staged one into its place, restart K3s.
    /// If `artifact` is not staged but was kept from before, the kept one is used.
    Swap {
        to: Version,
        artifact: Digest,
        expect: Digest,
        cold_copy: bool,
    },
    /// The same without any restart: on a node whose K3s is stopped.
    Place {
        to: Version,
        artifact: Digest,
        expect: Digest,
    },
    /// `k3s etcd-snapshot save` without compression, under our own prefix.
    EtcdSnapshot {
        name: String,
    },
    /// A consistent copy of the running SQLite database.
    SqliteBackup {
        tool: SqliteTool,
    },
    /// Stop K3s, copy the database with its log, start K3s. The files are reported: `state.db`, and `state.db-wal` if
    /// there is one.
    SqliteStoppedCopy,
    /// Server token, `/etc/rancher/k3s`, `/etc/rancher/node`, units with their environment files, the user's own
    /// manifests: one tar, readable by root only.
    Archive,
    /// Stop and disable K3s and prove that nothing of it runs.
    Stop,
    /// Enable and start K3s.
    Start,
    Restart,
    /// `--cluster-reset --cluster-reset-restore-path`, with exactly the unit's arguments and environment, under our own
    /// marker.
    EtcdReset {
        snapshot: String,
        /// What the snapshot must be. Failed with `no-snapshot` or a wrong digest, nothing was touched.
        digest: Digest,
    },
    /// Move `server/db/etcd` aside.
    SetEtcdAside,
    /// Put the cold copy back without stale `-wal` and `-shm`. `copy` is a folder or a single database file.
    SqliteRestore {
        copy: String,
        /// What the copy must be. Failed with `no-copy` or a wrong digest, nothing was touched.
        digest: Digest,
    },
    /// Delete all but the newest `keep` snapshots with our prefix, and those whose names begin with one of `spare`.
    PruneSnapshots {
        keep: u32,
        spare: Vec<String>,
    },
}

/// What a task left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// It had been done before under the same id, or its end state was there.
    pub already: bool,
    /// Files it made, with size and digest.
    pub files: Vec<RemoteFile>,
    /// The kept previous binary, or the folder of what was set aside, as the task says.
    pub kept: Option<String>,
    /// The cold copy's folder; its digest is that of the list of its files.
    pub cold_copy: Option<RemoteFile>,
    /// For a database: highest id in `kine`, and the answer of `integrity_check`; none where nothing on the node can
    /// read it.
    pub revision: Option<u64>,
    pub integrity: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    pub path: String,
    pub bytes: u64,
    pub digest: Digest,
}

/// What was seen on a node while it restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    Unit(kadence_core::inventory::Unit),
    /// The unit's main process, right after the unit whose it is. Not told of a process that a restart asked for by
    /// Kadence has yet to end.
    Process(kadence_core::validate::prove::Process),
    /// A line of the unit's journal that matches a known signature, with its class.
    Journal {
        class: String,
        line: String,
    },
    Etcd(Fact<kadence_core::inventory::EtcdLocal>),
}

/// What stays on a node when a rollout is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Digests of binaries that a rollback could need.
    pub binaries: Vec<Digest>,
    /// Records of these rollouts stay.
    pub rollouts: Vec<RolloutId>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The host could not be reached, or the way to it broke. What was asked may have happened.
    #[error("{node}: no way over SSH: {why}")]
    NoWay { node: NodeName, why: String },
    #[error("{node}: the host's key is not the known one: {why}")]
    HostKey { node: NodeName, why: String },
    #[error("{node}: {why}")]
    Sudo { node: NodeName, why: String },
    /// A higher turn was here, or the same one of another holder: this copy of Kadence may not act any more.
    #[error("{node}: obeys turn {theirs} of another Kadence, this is turn {ours}: another Kadence has taken over")]
    Superseded { node: NodeName, ours: u64, theirs: u64 },
    #[error("{node}: disk full: {why}")]
    DiskFull { node: NodeName, why: String },
    #[error("{node}: digest of {file} is {found}, expected {expected}")]
    Digest { node: NodeName, file: String, expected: String, found: String },
    /// The task was performed and failed, with the script's own code.
    #[error("{node}: {why}")]
    Failed { node: NodeName, code: String, why: String },
}

impl HostError {
    /// Whether nothing is known of what happened on the node.
    pub fn is_no_way(&self) -> bool {
        matches!(self, Self::NoWay { .. })
    }
}

/// Where releases come from.
#[async_trait]
pub trait Releases: Send + Sync {
    async fn catalog(&self) -> Result<Catalog, ReleaseError>;

    /// The release's binary, verified against the published digest, in the cache.
    async fn fetch(&self, version: &Version, arch: Arch, kind: ArtifactKind) -> Result<Artifact, ReleaseError>;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    #[error("the release source {source_name} could not be reached: {why}")]
    NoWay { source_name: String, why: String },
    /// It was reached, and refused or said something that cannot be used.
    #[error("the release source {source_name} gives no usable answer: {why}")]
    Answered { source_name: String, why: String },
    #[error("{version} does not exist in {source_name}")]
    NoSuchRelease { version: Version, source_name: String },
    #[error("{version} has no {file} in {source_name}")]
    NoAsset { version: Version, file: String, source_name: String },
    #[error("{file} of {version} has digest {found}, published is {expected}")]
    Digest { version: Version, file: String, expected: String, found: String },
    #[error("{file} of {version} ended after {got} of {expected} bytes")]
    Truncated { version: Version, file: String, got: u64, expected: u64 },
    #[error("{what}: {why}")]
    Here { what: String, why: String },
}

/// Kadence's own state.
#[async_trait]
pub trait Store: Send + Sync {
    /// Takes the cluster's turn: excludes every other Kadence with this state until the guard is dropped or this process
    /// ends, and raises the cluster's fencing number above `at_least`.
    async fn take_turn(&self, cluster: &ClusterUid, holder: &str, at_least: u64) -> Result<Turn, StoreError>;

    /// Appends an event. The number has to be the next one of the rollout.
    async fn append(&self, cluster: &ClusterUid, event: &Recorded) -> Result<(), StoreError>;

    /// The events of a rollout in order.
    async fn events(&self, rollout: &RolloutId) -> Result<Vec<Recorded>, StoreError>;

    /// The cluster's rollouts, oldest first.
    async fn rollouts(&self, cluster: &ClusterUid) -> Result<Vec<RolloutId>, StoreError>;

    /// The uid under which a cluster name was last seen.
    async fn known_uid(&self, name: &str) -> Result<Option<ClusterUid>, StoreError>;
    async fn remember_uid(&self, name: &str, uid: &ClusterUid) -> Result<(), StoreError>;

    async fn save_plan(&self, plan: &Plan) -> Result<PlanHash, StoreError>;
    /// Plans whose hash begins with these hexadecimal digits.
    async fn plans(&self, prefix: &str) -> Result<Vec<Plan>, StoreError>;

    /// Leaves a request for whoever works on the cluster.
    async fn request(&self, cluster: &ClusterUid, request: Request) -> Result<(), StoreError>;
    /// The requests that nobody has answered yet, oldest first, each with its place. They stay until they are answered:
    /// what is asked must not be lost between reading it and storing that it was asked.
    async fn requests(&self, cluster: &ClusterUid) -> Result<Vec<(u64, Request)>, StoreError>;
    /// Forgets the cluster's requests up to this place.
    async fn answered(&self, cluster: &ClusterUid, up_to: u64) -> Result<(), StoreError>;
}

/// The right to act on a cluster, while it is held.
pub struct Turn {
    /// The fencing number: nodes refuse orders with a lower one.
    pub number: u64,
    /// Random, new with each taking. States know nothing of each other, so two may hand out the same number: a node obeys
    /// the one whose order came first, and refuses the other.
    pub holder: String,
    /// Dropping it lets others in.
    pub guard: Box<dyn std::any::Any + Send + Sync>,
}

impl Turn {
    pub fn new(number: u64, guard: Box<dyn std::any::Any + Send + Sync>) -> Self {
        Self { number, holder: uuid::Uuid::now_v7().simple().to_string(), guard }
    }

    /// What is stored of it.
    pub fn taken(&self) -> Event {
        Event::TurnTaken { turn: self.number, holder: self.holder.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{holder} is working on this cluster (since {since})")]
    Busy { holder: String, since: String },
    #[error("the state in {path} was written by a newer Kadence (state version {theirs}, this one knows {ours})")]
    Newer { path: String, theirs: i64, ours: i64 },
    #[error("event {number} of {rollout} is not the next one: somebody else appended, or events are missing")]
    NotNext { rollout: RolloutId, number: u64 },
    #[error("the state in {path} cannot be used: {why}")]
    Broken { path: String, why: String },
    #[error("disk full while writing the state in {path}")]
    DiskFull { path: String },
}

/// Keeps backups encrypted.
#[async_trait]
pub trait Vault: Send + Sync {
    /// A new folder for plain files on their way into the vault, readable by us only; emptied by `discard`.
    fn scratch(&self) -> Result<PathBuf, VaultError>;
    fn discard(&self, scratch: &Path);

    /// Encrypts these files (name to path) to every recipient under the backup's name, writes the page that tells how
    /// to restore by hand beside them, and returns the digests of the encrypted files.
    async fn keep(
        &self,
        backup: &str,
        files: &BTreeMap<String, PathBuf>,
        page: &str,
    ) -> Result<BTreeMap<String, Digest>, VaultError>;

    /// Decrypts a file of a backup into `into`.
    async fn fetch(&self, backup: &str, file: &str, into: &Path) -> Result<(), VaultError>;

    /// Reads a plain copy of K3s's SQLite database whole. What its log beside it (`<database>-wal`) holds is written into
    /// it first, and the log removed: then it is one file.
    async fn read_sqlite(&self, database: &Path) -> Result<SqliteFacts, VaultError>;

    /// The receipts of earlier backups of the cluster can be found in the events; this says whether the files are there.
    async fn holds(&self, receipt: &BackupReceipt) -> bool;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("no recipient is configured: backups would be readable by anybody (kadence.yaml: backups.recipients)")]
    NoRecipient,
    #[error("{0} is not an age recipient (age1...)")]
    BadRecipient(String),
    #[error("no private key opens {0} (kadence.yaml: backups.identity)")]
    NoIdentity(String),
    #[error("disk full while writing {0}")]
    DiskFull(String),
    #[error("{what}: {why}")]
    Io { what: String, why: String },
}

/// Runs the user's probes from this machine.
#[async_trait]
pub trait Prober: Send + Sync {
    /// `Ok` if it passed; else what was seen instead.
    async fn probe(&self, probe: &Probe) -> Result<(), String>;

    /// Runs a command of the user's for an external datastore, with a file as standard input or output.
    async fn command(&self, argv: &[String], stdin: Option<&Path>, stdout: Option<&Path>)
    -> Result<CommandRun, String>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandRun {
    pub exit: i32,
    pub bytes_out: u64,
}

/// The time. Waiting is tokio's, so that tests can let it pass by itself.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// Sees everything as it happens: the terminal, a page. Never decides.
pub trait Observer: Send + Sync {
    /// An event was stored.
    fn event(&self, event: &Recorded);
    /// Something worth showing that is not stored and may be lost.
    fn progress(&self, progress: &Progress);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// An action goes on: what it waits for, how long so far, how long it usually takes.
    Waiting {
        action: ActionId,
        node: Option<NodeName>,
        what: String,
        since: SignedDuration,
        about: Option<SignedDuration>,
    },
    /// The outage measured so far.
    Outage(kadence_core::event::OutageMeasured),
    Say(String),
}
