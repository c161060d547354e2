//! What was seen of one cluster: facts from its API and from its hosts, and their union.
//!
//! Adapters fill [`ApiFacts`] and [`HostFacts`]; [`assemble`](crate::inventory::assemble::assemble) joins them to an
//! [`Inventory`]. Nothing here decides.

pub mod assemble;
#[cfg(test)]
pub(crate) mod example;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::fact::Fact;
use crate::ident::{ClusterName, ClusterUid, Digest, NodeName};
use crate::version::Version;

/// Everything known about a cluster at one time. Not atomic: facts are gathered within seconds of each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Version of this document's shape.
    pub schema: u32,
    pub cluster: ClusterName,
    pub uid: Fact<ClusterUid>,
    pub taken: Timestamp,
    pub datastore: Fact<Datastore>,
    /// Ordered by name.
    pub nodes: Vec<Node>,
    pub workload: Workload,
    pub surroundings: Surroundings,
    /// Differences between the sources that nothing explains, such as an etcd member without a node. Each blocks.
    pub contradictions: Vec<String>,
    /// Every fact that could not be had, for people; the same reasons stand where the facts would be.
    pub unknown: Vec<UnknownFact>,
}

/// A fact that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnknownFact {
    /// What it is about: a node's name, or `cluster`.
    pub of: String,
    pub fact: String,
    pub why: String,
}

/// One server or agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    /// The Node object's uid. `None`: a server started with `--disable-agent`, which has no Node.
    pub uid: Option<String>,
    pub role: Role,
    pub etcd: Fact<EtcdRole>,
    /// Whether it runs an API server.
    pub apiserver: Fact<bool>,
    pub version: Fact<Version>,
    pub ready: Fact<bool>,
    /// The address other nodes reach it at.
    pub address: String,
    pub arch: Fact<Arch>,
    /// Everything else the Node object says; `None` where there is no Node.
    pub object: Option<NodeObject>,
    pub host: Fact<HostFacts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Server,
    Agent,
}

impl Role {
    /// The systemd unit that K3s's installer makes for the role.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Server => "k3s",
            Self::Agent => "k3s-agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Server => "server",
            Self::Agent => "agent",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EtcdRole {
    Voter,
    /// Joined and copying; does not count for the quorum yet.
    Learner,
    None,
}

/// A processor architecture that K3s releases exist for, by Kubernetes' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    Amd64,
    Arm64,
    Arm,
}

impl Arch {
    pub const ALL: [Self; 3] = [Self::Amd64, Self::Arm64, Self::Arm];

    /// The name of the binary among a release's assets. The binary says `armhf` where sums and images say `arm`.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Amd64 => "k3s",
            Self::Arm64 => "k3s-arm64",
            Self::Arm => "k3s-armhf",
        }
    }

    /// The name of the file with the sums of this architecture's assets.
    pub fn sums(self) -> String {
        format!("sha256sum-{self}.txt")
    }

    /// From what `uname -m` or Kubernetes says.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "amd64" | "x86_64" => Some(Self::Amd64),
            "arm64" | "aarch64" => Some(Self::Arm64),
            "arm" | "armhf" | "armv7l" => Some(Self::Arm),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
        })
    }
}

/// Where the cluster keeps its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Datastore {
    Sqlite,
    EmbeddedEtcd {
        /// The membership as etcd itself lists it.
        members: Fact<Vec<EtcdMember>>,
    },
    /// MySQL, PostgreSQL or an etcd outside. Which one it is stays hidden behind K3s's redaction.
    External,
}

impl Datastore {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::EmbeddedEtcd { .. } => "embedded etcd",
            Self::External => "external datastore",
        }
    }
}

/// A member of embedded etcd, by etcd's own list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EtcdMember {
    /// Hexadecimal, as etcd prints it.
    pub id: String,
    /// `<node>-<8 hexadecimal digits>` in K3s.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub learner: bool,
}

impl EtcdMember {
    /// The node a K3s member's name speaks of.
    pub fn node(&self) -> Option<NodeName> {
        let (node, suffix) = self.name.rsplit_once('-')?;
        (suffix.len() == 8 && suffix.bytes().all(|b| b.is_ascii_hexdigit())).then(|| NodeName::new(node))
    }
}

/// What the Node object says beyond what every node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObject {
    pub labels: BTreeMap<String, String>,
    /// `key=value:Effect`, sorted.
    pub taints: Vec<String>,
    pub cordon: Cordon,
    /// Conditions other than Ready that are True and bad: `DiskPressure`, `MemoryPressure`, `PIDPressure`, ...
    pub pressures: Vec<String>,
    pub machine_id: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// `containerd://2.3.2-k3s2`.
    pub runtime: String,
    /// From the annotation `k3s.io/node-args`: K3s's own record of its arguments, secrets already starred out.
    pub args: Vec<String>,
    /// From the annotation `k3s.io/node-config-hash`: differs when arguments or environment changed.
    pub config_hash: Option<String>,
    /// From the annotation `k3s.io/encryption-config-hash`: `<stage>-<hash>`.
    pub encryption_hash: Option<String>,
    /// Whether the node's own kubelet lease says it is alive: age of the last renewal.
    pub lease_age: Option<SignedDuration>,
}

/// Whether new pods may be placed on a node, and who said no.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Cordon {
    #[default]
    None,
    /// Unschedulable, and with Kadence's mark: the rollout that did it.
    Ours { mark: Mark },
    /// Unschedulable without our mark: somebody else's, never lifted by us.
    Foreign,
}

/// What Kadence writes on a Node together with its cordon, so that a Kadence without its state can find its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub rollout: String,
    pub plan: String,
    pub step: String,
}

// ---------------------------------------------------------------------------------------------- from the API

/// What one look at the Kubernetes API found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiFacts {
    pub uid: Fact<ClusterUid>,
    /// SHA-256 of the cluster's server CA in DER form, as K3s uses it in its tokens.
    pub ca_hash: Fact<Digest>,
    pub nodes: Fact<Vec<ApiNode>>,
    /// Addresses of the `kubernetes` EndpointSlice: every API server that serves now.
    pub endpoints: Fact<Vec<String>>,
    pub workload: Workload,
    pub surroundings: Surroundings,
}

/// A Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiNode {
    pub name: NodeName,
    pub uid: String,
    /// From the roles' labels: `node-role.kubernetes.io/control-plane` and `.../etcd`.
    pub control_plane: bool,
    pub etcd_label: bool,
    pub version: Fact<Version>,
    pub ready: Fact<bool>,
    /// When the kubelet last reported its state, in whole seconds of the node's own clock: `lastHeartbeatTime` of the
    /// condition Ready. Written at once when a kubelet starts, with every change, and every 5 minutes.
    pub reported: Fact<Timestamp>,
    pub internal_ip: Option<String>,
    pub arch: Fact<Arch>,
    /// From the annotation `etcd.k3s.cattle.io/node-name`.
    pub etcd_member: Option<String>,
    pub object: NodeObject,
}

impl ApiNode {
    /// By its labels: a server runs the control plane, etcd, or both.
    pub fn role(&self) -> Role {
        if self.control_plane || self.etcd_label { Role::Server } else { Role::Agent }
    }
}

/// What runs in the cluster for its users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub controllers: Fact<Vec<Controller>>,
    pub pods: Fact<Vec<Pod>>,
    pub budgets: Fact<Vec<Budget>>,
    /// Names of Services that have at least one ready endpoint, `namespace/name`, with the number of endpoints.
    pub services: Fact<BTreeMap<String, u32>>,
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Controller {
    pub kind: ControllerKind,
    pub namespace: String,
    pub name: String,
    pub desired: u32,
    pub available: u32,
    /// The images of its pod template, sorted.
    pub images: Vec<String>,
    /// Whether its status speaks of its newest generation.
    pub observed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ControllerKind {
    Deployment,
    StatefulSet,
    DaemonSet,
}

/// A pod, as far as a drain or a comparison needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub node: Option<NodeName>,
    pub labels: BTreeMap<String, String>,
    pub phase: PodPhase,
    /// The kind of its controlling owner; `None` is a bare pod that nothing brings back.
    pub owner: Option<String>,
    /// A static pod, mirrored from a file on its node; cannot be evicted.
    pub mirror: bool,
    pub ready: bool,
    /// Sum over its containers.
    pub restarts: u32,
    /// Reasons its containers wait for, other than starting: `CrashLoopBackOff`, `ImagePullBackOff`, ...
    pub waiting: Vec<String>,
    pub terminating: bool,
    /// Names of its emptyDir volumes: gone with the pod.
    pub empty_dirs: Vec<String>,
    /// Claims whose volume is bound to one node (local-path and other local volumes).
    pub node_bound_claims: Vec<String>,
    pub host_network: bool,
    /// Nodes its node selector and required affinity by host name allow; `None` is any.
    pub pinned_to: Option<Vec<NodeName>>,
    pub tolerates_unschedulable: bool,
    pub grace_seconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    pub namespace: String,
    pub name: String,
    pub disruptions_allowed: u32,
    pub expected_pods: u32,
    /// The pods its selector matches, `namespace/name`.
    pub pods: Vec<String>,
}

/// What stands around the workload and can get in an update's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    pub webhooks: Fact<Vec<Webhook>>,
    /// APIServices that are not Available, with their message.
    pub broken_api_services: Fact<Vec<String>>,
    pub packaged: Fact<Vec<Packaged>>,
    pub helm_releases: Fact<Vec<HelmRelease>>,
    /// HelmChartConfigs, which change the values of packaged charts: names in `kube-system`, else `namespace/name`.
    pub chart_configs: Fact<Vec<String>>,
    pub storage: Fact<Storage>,
    pub managers: Fact<Vec<Manager>>,
    /// The newest ETCDSnapshotFile that is ready to use: when it was made.
    pub newest_snapshot: Fact<Option<Timestamp>>,
    /// Whether somebody else holds Kadence's Lease.
    pub lease: Fact<Option<LeaseHolder>>,
    /// Size of the datastore in bytes by `apiserver_storage_size_bytes`.
    pub storage_size: Fact<u64>,
}

/// A rule of a validating or mutating webhook that fails closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// `<configuration>/<webhook>`.
    pub name: String,
    /// Resources that matter for an update to go on: pods, nodes, leases, jobs, serviceaccounts, tokenreviews, `*`.
    pub resources: Vec<String>,
    /// `namespace/name` of the Service behind it; `None` for an URL outside.
    pub service: Option<String>,
    /// Nodes of the Service's ready endpoints. Unknown for an URL outside.
    pub ready_on: Fact<Vec<NodeName>>,
    /// Whether its namespace selector leaves `kube-system` out.
    pub spares_kube_system: bool,
}

/// A packaged component of K3s: an Addon or a HelmChart with its install job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Packaged {
    pub kind: PackagedKind,
    pub name: String,
    /// For an Addon the checksum of its manifest, for a HelmChart its chart's version or URL.
    pub version: String,
    /// Whether it settled: the job succeeded and the release is deployed. Always true for an Addon.
    pub settled: bool,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PackagedKind {
    Addon,
    HelmChart,
}

/// The newest revision of a Helm release, from its Secret's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HelmRelease {
    pub namespace: String,
    pub name: String,
    pub revision: u32,
    /// `deployed`, `failed`, `pending-upgrade`, ...
    pub status: String,
}

/// The state of storage systems that Kadence knows to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Attached Longhorn volumes whose robustness is not `healthy`.
    pub longhorn_unhealthy: Vec<String>,
    /// Longhorn snapshots or backups that are in progress.
    pub longhorn_busy: Vec<String>,
    /// Health of each Rook CephCluster, `namespace/name` to `HEALTH_OK` and so on.
    pub ceph: BTreeMap<String, String>,
    /// VolumeAttachments being deleted, or of a node that does not exist.
    pub dangling_attachments: Vec<String>,
}

/// Something else that could change versions, cordons or nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Manager {
    /// A Plan of the system-upgrade-controller.
    UpgradePlan { name: String, applying: Vec<String>, rancher: bool, gitops: bool },
    /// Rancher manages this cluster.
    Rancher { evidence: String },
    /// kured holds its reboot lock.
    KuredLock { node: String },
    /// Objects that an update changes belong to GitOps.
    GitOps { object: String, owner: String },
}

/// Who holds Kadence's Lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    pub holder: String,
    pub renewed: Timestamp,
    pub rollout: Option<String>,
    pub plan: Option<String>,
}

impl LeaseHolder {
    /// How often whoever is at work renews it.
    pub const RENEWED_EVERY: SignedDuration = SignedDuration::from_secs(20);
    /// How long it speaks for its holder. It cannot be renewed while a single server restarts, nor while etcd has no
    /// leader: both are over in less, or not at work any more.
    pub const SPEAKS_FOR: SignedDuration = SignedDuration::from_mins(3);

    /// Whether its holder is at work, as far as a Lease can tell.
    pub fn is_at_work(&self, now: Timestamp) -> bool {
        now.duration_since(self.renewed) < Self::SPEAKS_FOR
    }
}

// --------------------------------------------------------------------------------------------- from the hosts

/// What one look at a host over SSH found. Secrets are not in here: tokens appear as keyed hashes, arguments pass an
/// allow-list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub hostname: String,
    pub machine_id: String,
    pub boot_id: String,
    pub arch: Fact<Arch>,
    /// SHA-256 of the server CA that this node trusts, in DER form.
    pub ca_hash: Fact<Digest>,
    /// How K3s is installed here.
    pub install: Fact<Install>,
    pub arguments: Fact<Arguments>,
    pub cgroup: Fact<Cgroup>,
    pub disks: Fact<Vec<Disk>>,
    /// The host's clock minus ours; the truth lies within half the round trip.
    pub clock_offset: Fact<SignedDuration>,
    pub ntp_synchronised: Fact<bool>,
    pub certificates: Fact<Vec<Certificate>>,
    /// Keyed hash of the server token: equal hashes are equal tokens. Servers only.
    pub token: Fact<Option<Digest>>,
    /// `None` on an agent and on a server without embedded etcd.
    pub etcd: Option<Fact<EtcdLocal>>,
    /// The etcd membership as this member lists it; `None` like `etcd`.
    pub etcd_members: Option<Fact<Vec<EtcdMember>>>,
    /// `None` on an agent and with another datastore.
    pub sqlite: Option<Fact<SqliteFiles>>,
    /// `None` on an agent.
    pub secrets_encryption: Option<Fact<SecretsEncryption>>,
    pub tools: Tools,
    /// Highest turn (fencing number) this node has obeyed; 0 if Kadence never acted here.
    pub turn: u64,
    /// Actions of Kadence whose record is still on the node, newest last.
    pub records: Vec<ActionRecord>,
    /// Custom containerd templates: `config.toml.tmpl`, `config-v3.toml.tmpl`.
    pub containerd_templates: Vec<String>,
    /// What a start of K3s reads, and when it last started.
    pub last_start: Fact<LastStart>,
    /// Where K3s looks for the host's address if nothing tells it.
    pub addresses: Fact<Addresses>,
}

/// When K3s was started, and what on the disk its next start reads. Times are the host's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStart {
    /// When the unit's main process was started; `None` if there is none.
    pub at: Option<Timestamp>,
    pub reads: Vec<StartFile>,
    /// By systemd's `NeedDaemonReload`: the unit's files are others than systemd has in memory.
    pub needs_daemon_reload: Fact<bool>,
}

/// A file that a start of K3s reads: configuration, the unit and its environment, `registries.yaml`, templates.
/// Times in whole seconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StartFile {
    pub path: String,
    /// When its contents last changed, as the file says (mtime). Can be set to anything.
    pub written: Timestamp,
    /// When its contents, its name or its rights last changed (ctime). Cannot be set.
    pub changed: Timestamp,
}

/// The host's addresses that another host can reach, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The interface of the first default route, IPv4's before IPv6's; `None` if there is no default route.
    pub default_route: Option<String>,
    /// By interface, in the kernel's order.
    pub interfaces: BTreeMap<String, Vec<IpAddr>>,
}

/// How K3s is installed on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Install {
    pub role: Role,
    /// The binary that the unit starts.
    pub binary: String,
    pub digest: Digest,
    pub size: u64,
    /// By `k3s --version` of that binary.
    pub version: Fact<Version>,
    pub unit: Unit,
    /// Whether the *other* role's unit is enabled too: shows only at the next reboot, as a wreck.
    pub other_unit_enabled: bool,
    pub data_dir: String,
}

/// The systemd unit that runs K3s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    pub enabled: bool,
    /// `active`, `activating`, `failed`, `inactive`, ...
    pub active: String,
    /// `running`, `auto-restart`, `start`, ...
    pub sub: String,
    /// Restarts by systemd since it was last started by hand.
    pub restarts: u32,
    /// 0 if there is no main process.
    pub main_pid: u32,
    /// Paths of the unit's file and drop-ins.
    pub files: Vec<String>,
}

/// What K3s was told, from all the places it looks at, in the order in which it looks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arguments {
    pub entries: Vec<Argument>,
    /// SHA-256 over all of them with secrets replaced by keyed hashes: the precondition that they did not change.
    pub digest: Option<Digest>,
    /// Files that could not be read as what they should be, with the reason.
    pub unreadable: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Argument {
    /// Without dashes: `cluster-cidr`, `kubelet-arg`.
    pub key: String,
    /// `None`: a secret, or a key that is not on the allow-list.
    pub value: Option<String>,
    pub origin: Origin,
    /// File, and line where there is one.
    pub place: String,
}

/// Where an argument is set. It decides what an argument unknown to the target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// `config.yaml` or `config.yaml.d/`.
    ConfigFile,
    /// The unit's `ExecStart`.
    CommandLine,
    /// An environment file of the unit.
    Environment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroup {
    V1,
    V2,
}

/// A file system that holds something that matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What of ours it holds: `data` (the data directory), `binary`, `kadence` (our own folder).
    pub holds: String,
    pub mount: String,
    pub total: u64,
    /// Free for root, in bytes.
    pub free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Certificate {
    pub path: String,
    pub not_after: Timestamp,
    /// A CA lives 10 years and is never renewed by itself; a leaf is renewed by a restart in its last 120 days.
    pub ca: bool,
}

/// What a member of embedded etcd says of itself on `127.0.0.1:2381`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdLocal {
    /// `/health` answered `true`, which needs a leader and a write.
    pub healthy: bool,
    pub leader: bool,
    pub learner: bool,
    pub has_leader: bool,
    /// By `etcd_server_version`: 3.6.14.
    pub version: Fact<String>,
    pub db_bytes: Fact<u64>,
    pub quota_bytes: Fact<u64>,
    /// Raft index applied here.
    pub applied_index: Fact<u64>,
    /// NOSPACE or CORRUPT, if raised.
    pub alarms: Fact<Vec<String>>,
    /// 99th percentile of WAL fsync since the process started, in microseconds.
    pub fsync_p99_micros: Fact<u64>,
    pub member_id: Fact<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqliteFiles {
    pub path: String,
    pub db_bytes: u64,
    pub wal_bytes: u64,
}

/// By `k3s secrets-encrypt status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsEncryption {
    pub enabled: bool,
    /// `start`, `prepare`, `rotate`, `reencrypt_request`, `reencrypt_active`, `reencrypt_finished`.
    pub stage: String,
    pub hashes_match: bool,
}

/// Programs on the host that Kadence uses where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    pub systemd_run: bool,
    pub sqlite3: bool,
    pub python3: bool,
    pub restorecon: bool,
    pub selinux_enforcing: bool,
}

/// The record that an action left on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionRecord {
    pub id: String,
    pub state: RecordState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    Running,
    Succeeded,
    Failed,
    /// Begun, and neither running nor finished: the host went down in the middle.
    Interrupted,
}

impl Inventory {
    pub const SCHEMA: u32 = 1;

    /// What is known while the API is away: the nodes and what their hosts say.
    pub fn of_hosts(cluster: ClusterName, uid: ClusterUid, nodes: Vec<Node>, taken: Timestamp) -> Self {
        fn away<T>() -> Fact<T> {
            Fact::unknown("the API did not answer")
        }
        Self {
            schema: Self::SCHEMA,
            cluster,
            uid: Fact::Known(uid),
            taken,
            datastore: away(),
            nodes,
            workload: Workload { controllers: away(), pods: away(), budgets: away(), services: away() },
            surroundings: Surroundings {
                webhooks: away(),
                broken_api_services: away(),
                packaged: away(),
                helm_releases: away(),
                chart_configs: away(),
                storage: away(),
                managers: away(),
                newest_snapshot: away(),
                lease: away(),
                storage_size: away(),
            },
            contradictions: Vec::new(),
            unknown: Vec::new(),
        }
    }

    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == *name)
    }

    pub fn servers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role == Role::Server)
    }

    pub fn agents(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role == Role::Agent)
    }
}

impl Node {
    pub fn cordon(&self) -> &Cordon {
        const NONE: &Cordon = &Cordon::None;
        self.object.as_ref().map_or(NONE, |o| &o.cordon)
    }

    /// What embedded etcd says on this node, if it runs here and was asked with success.
    pub fn etcd_local(&self) -> Option<&EtcdLocal> {
        self.host.known()?.etcd.as_ref()?.known()
    }
}
