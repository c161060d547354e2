//! A plan: everything that was decided about one update, rollback or restore, so that carrying it out needs no more
//! choices.
//!
//! A plan never changes. Its name is the hash of its [`Decision`], which holds what was decided and the short list of
//! preconditions; what was merely seen while planning stands beside it in [`Seen`] and is looked at again before each
//! step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::fact::Fact;
use crate::ident::{ClusterName, ClusterUid, Digest, NodeName, RolloutId};
use crate::inventory::{Arch, Role};
use crate::version::Version;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub decision: Decision,
    pub seen: Seen,
}

/// What the hash covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Version of this document's shape.
    pub schema: u32,
    pub cluster: ClusterName,
    pub purpose: Purpose,
    /// The version every node in scope has when the plan is done.
    pub target: Version,
    /// The version ladder: no minor is skipped. Empty if nothing is to be done.
    pub hops: Vec<Hop>,
    pub preconditions: Preconditions,
    pub manner: Manner,
    /// The outage that carrying this out means, which a person has to consent to. `None`: one server at a time, the
    /// API stays.
    pub outage: Option<DeclaredOutage>,
    /// Agents left out on purpose.
    pub excluded: BTreeSet<NodeName>,
}

/// What the plan is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Purpose {
    Update,
    /// The previous binaries come back; the datastore stays as it is.
    Rollback {
        of: RolloutId,
    },
    /// The datastore comes back from a snapshot: what was written after it is lost.
    Restore {
        of: RolloutId,
        backup: BackupRef,
    },
}

/// One step of the version ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub to: Version,
    /// What is put on the nodes, by architecture.
    pub artifacts: BTreeMap<Arch, Digest>,
    /// In the order in which they are done. Steps with the same wave may run together.
    pub steps: Vec<Step>,
    pub backup: BackupMethod,
    /// The first step after which only a restore brings the old version back; index into `steps`.
    pub point_of_no_return: Option<usize>,
}

/// One node's part in a hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub node: NodeName,
    pub role: Role,
    pub wave: u32,
    pub from: Version,
    pub to: Version,
    /// The digest of what is put on the node.
    pub artifact: Digest,
    /// The digest of what must be installed before.
    pub previous: Digest,
    pub drain: Drain,
    pub undo: UndoClass,
    /// Why the step is as it is, in words: its place in the order, its drain, its undo class.
    pub because: Vec<String>,
}

/// What brings the previous version back once this step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UndoClass {
    /// The previous binary can come back. The only class that is ever undone without a person.
    Binary,
    /// Only the datastore's snapshot brings it back, and what came after the snapshot is lost.
    Restore,
    /// Nothing does.
    ForwardOnly,
}

impl fmt::Display for UndoClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Binary => "binary",
            Self::Restore => "restore",
            Self::ForwardOnly => "forward only",
        })
    }
}

/// What happens to the pods of a node before its K3s is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// Pods go on running while K3s restarts; the node only takes no new ones.
    CordonOnly,
    /// Pods are evicted through the Eviction API first.
    Evict,
}

/// How the datastore is backed up before a hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BackupMethod {
    /// `k3s etcd-snapshot save` on this server.
    EtcdSnapshot { server: NodeName },
    /// SQLite's own backup, K3s goes on running; a second, cold copy is made at the stop.
    SqliteOnline { server: NodeName, tool: SqliteTool },
    /// No tool for SQLite on the node: K3s is stopped for the copy.
    SqliteStopped { server: NodeName },
    /// The user's own command for an external datastore; only its exit and its output's size can be judged.
    Command { command: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SqliteTool {
    Sqlite3,
    Python3,
}

/// A backup that a restore uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRef {
    /// The backup's name in the vault.
    pub name: String,
    pub taken: Timestamp,
    pub version: Version,
    /// Of the datastore's file in the vault, before it was encrypted.
    pub digest: Digest,
    pub method: BackupMethod,
    /// What still lies on the method's server, if anything does. It is used only if it is what it was.
    pub on_node: Option<Box<NodeCopy>>,
}

/// A copy of the datastore on a node: a file, or a folder with SQLite's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredNodeCopy", into = "StoredNodeCopy")]
pub struct NodeCopy {
    pub path: String,
    /// Of a folder that of the list of its files. `None`: nobody recorded it, so the copy is not used.
    pub digest: Option<Digest>,
    /// The revision that was found in it when it was read whole. Unknown: it was not read, or not whole.
    pub reaches: Fact<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredNodeCopy {
    /// As the first logs have it, and as such a copy is written again: the hash of its plan stays.
    Path(String),
    Copy {
        path: String,
        digest: Option<Digest>,
        reaches: Fact<u64>,
    },
}

impl From<StoredNodeCopy> for NodeCopy {
    fn from(stored: StoredNodeCopy) -> Self {
        match stored {
            StoredNodeCopy::Path(path) => {
                Self { path, digest: None, reaches: Fact::unknown("nobody recorded what is in it") }
            }
            StoredNodeCopy::Copy { path, digest, reaches } => Self { path, digest, reaches },
        }
    }
}

impl From<NodeCopy> for StoredNodeCopy {
    fn from(copy: NodeCopy) -> Self {
        match copy {
            NodeCopy { path, digest: None, reaches: Fact::Unknown(_) } => Self::Path(path),
            NodeCopy { path, digest, reaches } => Self::Copy { path, digest, reaches },
        }
    }
}

/// Downtime that a person consents to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclaredOutage {
    /// The only server restarts: no API meanwhile; pods go on.
    SingleServer,
    /// Two etcd members: while one restarts the other has no quorum.
    TwoMembers,
    /// Every K3s of the cluster is stopped.
    Restore,
}

impl BackupMethod {
    /// Whether K3s is stopped for it: an outage of its own.
    pub fn stops_k3s(&self) -> bool {
        matches!(self, Self::SqliteStopped { .. })
    }

    /// The server on which the datastore is copied. `None`: an external one is copied by a command, from here.
    pub fn server(&self) -> Option<&NodeName> {
        match self {
            Self::EtcdSnapshot { server } | Self::SqliteOnline { server, .. } | Self::SqliteStopped { server } => {
                Some(server)
            }
            Self::Command { .. } => None,
        }
    }
}

impl DeclaredOutage {
    /// What it means, for the person who has to consent.
    pub fn words(self) -> &'static str {
        match self {
            Self::SingleServer => "the only server restarts: no API for some seconds, pods go on",
            Self::TwoMembers => "two etcd members: while one restarts the other has no quorum, so no writes",
            Self::Restore => {
                "every K3s of the cluster is stopped; pods go on, the API is away until the restore is done"
            }
        }
    }
}

/// What must still hold before each step. If somebody else changed one of these, the plan does not act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preconditions {
    pub cluster_uid: ClusterUid,
    pub datastore: DatastoreKind,
    /// Ids of the etcd members; empty with another datastore.
    pub etcd_members: BTreeSet<String>,
    pub nodes: BTreeMap<NodeName, NodePrecondition>,
    /// Digest of the parts of `kadence.yaml` that decided this.
    pub policy: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    Sqlite,
    EmbeddedEtcd,
    External,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePrecondition {
    pub uid: Option<String>,
    pub role: Role,
    pub version: Version,
    pub arch: Arch,
    /// Of the host: SSH must still reach the same machine.
    pub machine_id: String,
    /// Of everything K3s is told on this node.
    pub arguments: Digest,
    /// Of the installed binary.
    pub binary: Digest,
}

/// How nodes are handled. Part of the decision, because changing it changes what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// How long a node must stay healthy before the next one is touched.
    pub settle: SignedDuration,
    /// How long a node may take from its restart to being proven healthy.
    pub ready_within: SignedDuration,
    pub drain_within: SignedDuration,
    /// After the first agent, which goes alone.
    pub agents_at_once: u32,
    /// Stop before the agents.
    pub until_servers: bool,
    /// How long versions may stay mixed when the rollout is held, before it is called out.
    pub mixed_at_most: SignedDuration,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            settle: SignedDuration::from_secs(30),
            // Ten minutes is the field's floor for slow disks: start-up migrations and image imports happen before
            // Ready.
            ready_within: SignedDuration::from_mins(10),
            drain_within: SignedDuration::from_mins(10),
            agents_at_once: 1,
            until_servers: false,
            mixed_at_most: SignedDuration::from_hours(24),
        }
    }
}

/// What was seen while planning; shown, and never relied on later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub made: Timestamp,
    pub kadence: String,
    pub etcd_leader: Option<NodeName>,
    /// Why this version and why not another.
    pub because: Vec<String>,
    pub expected: Expected,
    /// Where each node was reached: all that is left to go by while the API is away.
    #[serde(default)]
    pub addresses: BTreeMap<NodeName, String>,
}

/// What carrying the plan out is expected to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub total: SignedDuration,
    pub per_server: SignedDuration,
    pub per_agent: SignedDuration,
    /// Longest time without an answer from any API server, for reads and for writes.
    pub reads_gap: SignedDuration,
    pub writes_gap: SignedDuration,
    /// Where the figures come from: earlier updates of this cluster, or typical figures.
    pub basis: String,
}

/// The name of a plan: the hash of its decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanHash(pub Digest);

impl PlanHash {
    /// Enough digits for a person to tell plans apart.
    pub fn short(self) -> String {
        self.0.short(6)
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Plan {
    pub const SCHEMA: u32 = 1;

    pub fn hash(&self) -> PlanHash {
        self.decision.hash()
    }

    pub fn nodes(&self) -> BTreeSet<&NodeName> {
        self.decision.hops.iter().flat_map(|h| &h.steps).map(|s| &s.node).collect()
    }
}

impl Decision {
    /// The hash over the decision in JSON. Structs keep their fields' order and every map is ordered, so equal
    /// decisions have equal bytes.
    pub fn hash(&self) -> PlanHash {
        // A decision holds nothing that JSON cannot express: string keys, numbers, no floats.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        PlanHash(Digest::of(&bytes))
    }
}
