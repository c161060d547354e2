//! What a rollout asks to be done, as data, and what came of it.
//!
//! Every action has an id and may be performed again under the same id: what changes a node runs there once per id,
//! the rest looks first. So after a crash the same action is performed again, and nothing destructive happens twice.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::apply::plan::{BackupMethod, BackupRef, Drain, NodeCopy};
use crate::fact::Fact;
use crate::ident::{ClusterUid, Digest, NodeName};
use crate::inventory::{Cordon, Role};
use crate::validate::baseline::{Baseline, Regression};
use crate::validate::finding::Finding;
use crate::version::Version;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// Inspect the cluster and run every check for this hop.
    Check {
        hop: usize,
    },
    /// Copy the hop's binary to the node and verify its digest there. Nothing that runs is touched.
    Stage {
        node: NodeName,
        version: Version,
        artifact: Digest,
    },
    /// Back up the datastore and what belongs to it, read it back, copy it here.
    Backup {
        hop: usize,
        method: BackupMethod,
    },
    /// Look at nodes, etcd and holds again, just before a node (or group of agents) is touched.
    Look {
        before: Vec<NodeName>,
    },
    Cordon {
        node: NodeName,
    },
    Drain {
        node: NodeName,
    },
    /// Replace the binary and restart K3s, on the node, in a unit of its own.
    Swap {
        node: NodeName,
        swap: Swap,
    },
    /// Watch the node until it is proven healthy on `version` and has been so for `settle`, or its time is over.
    Prove {
        node: NodeName,
        role: Role,
        version: Version,
        settle: SignedDuration,
        within: SignedDuration,
    },
    Uncordon {
        node: NodeName,
    },
    /// Whether everything that served before still serves, with this node on its new version; before the next one.
    Compare {
        after: NodeName,
    },
    /// Compare everything with the baseline; run the probes.
    Validate {
        hop: usize,
    },

    // Restore only.
    /// Stop and disable K3s on the node and prove it: no process, port 2380 closed.
    Stop {
        node: NodeName,
        role: Role,
    },
    /// Put this version's binary in place on a stopped node.
    Place {
        node: NodeName,
        swap: Swap,
    },
    /// Restore the datastore on a stopped server, under our own marker.
    Reset {
        node: NodeName,
        backup: BackupRef,
    },
    /// Move the old etcd data of a stopped server aside, so that it joins anew.
    SetAside {
        node: NodeName,
    },
    /// Enable and start K3s.
    Start {
        node: NodeName,
        role: Role,
    },
    /// Restart K3s on a node that runs, so that its watches begin anew.
    Restart {
        node: NodeName,
        role: Role,
    },
    /// Restart the pods of in-cluster controllers, whose watches are ahead of the restored data.
    RestartControllers,
    /// Give the user's restore command for an external datastore its turn.
    RestoreCommand {
        command: String,
    },
}

impl Action {
    /// The one node an action is about.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Stage { node, .. }
            | Self::Cordon { node }
            | Self::Drain { node }
            | Self::Swap { node, .. }
            | Self::Prove { node, .. }
            | Self::Uncordon { node }
            | Self::Stop { node, .. }
            | Self::Place { node, .. }
            | Self::Reset { node, .. }
            | Self::SetAside { node }
            | Self::Start { node, .. }
            | Self::Restart { node, .. } => Some(node),
            Self::Check { .. }
            | Self::Backup { .. }
            | Self::Look { .. }
            | Self::Compare { .. }
            | Self::Validate { .. }
            | Self::RestartControllers
            | Self::RestoreCommand { .. } => None,
        }
    }

    /// What is done, for people: `restart s2 with v1.36.4+k3s1`.
    pub fn words(&self) -> String {
        match self {
            Self::Check { hop } => format!("check the cluster before hop {}", hop + 1),
            Self::Stage { node, version, .. } => format!("stage {version} on {node}"),
            Self::Backup { method, .. } => match method {
                BackupMethod::EtcdSnapshot { server } => format!("snapshot etcd on {server}"),
                BackupMethod::SqliteOnline { server, .. } => format!("back up SQLite on {server}"),
                BackupMethod::SqliteStopped { server } => format!("stop K3s on {server} and copy SQLite"),
                BackupMethod::Command { .. } => "run the backup command".to_owned(),
            },
            Self::Look { before } => {
                let names: Vec<&str> = before.iter().map(NodeName::as_str).collect();
                format!("look again before {}", names.join(", "))
            }
            Self::Cordon { node } => format!("cordon {node}"),
            Self::Drain { node } => format!("drain {node}"),
            Self::Swap { node, swap } if swap.back => format!("put {node} back on {}", swap.to),
            Self::Swap { node, swap } => format!("restart {node} with {}", swap.to),
            Self::Prove { node, version, .. } => format!("prove {node} healthy on {version}"),
            Self::Uncordon { node } => format!("uncordon {node}"),
            Self::Compare { after } => format!("see whether everything serves after {after}"),
            Self::Validate { .. } => "compare with the state before, run the probes".to_owned(),
            Self::Stop { node, .. } => format!("stop K3s on {node} and prove it"),
            Self::Place { node, swap } => format!("put {} on {node}", swap.to),
            Self::Reset { node, .. } => format!("restore the datastore on {node}"),
            Self::SetAside { node } => format!("set the old etcd data of {node} aside"),
            Self::Start { node, .. } => format!("start K3s on {node}"),
            Self::Restart { node, .. } => format!("restart K3s on {node}"),
            Self::RestartControllers => "restart the controllers in the cluster".to_owned(),
            Self::RestoreCommand { .. } => "run the restore command".to_owned(),
        }
    }
}

/// One replacement of a binary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    pub role: Role,
    pub to: Version,
    pub artifact: Digest,
    /// What must be installed before. Anything else means that somebody else was here.
    pub expect: Digest,
    pub drain: Drain,
    /// Make a cold copy of SQLite's files between stop and start.
    pub cold_copy: bool,
    /// Whether this is a way back: then the cold copy made by that action is not wanted, and the node's refusal of
    /// lower versions does not apply.
    pub back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    Done {
        took: SignedDuration,
        report: Report,
    },
    /// It was tried, or looked at, and it is not so. What it was about is known.
    Failed {
        took: SignedDuration,
        failure: Failure,
    },
    /// It could not be found out: no way to the node or the API. Nothing may be concluded.
    Unknown {
        why: String,
    },
}

/// What a successful action brought home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    Plain,
    Checked {
        findings: Vec<Finding>,
        baseline: Box<Baseline>,
    },
    Staged {
        bytes: u64,
        already_there: bool,
    },
    BackedUp {
        backup: BackupReceipt,
    },
    Looked {
        glance: Box<Glance>,
    },
    Cordoned {
        was: CordonWas,
    },
    Drained {
        evicted: Vec<String>,
        left: Vec<String>,
    },
    Swapped {
        kept: Option<String>,
        already: bool,
        cold_copy: Option<NodeCopy>,
    },
    Proven {
        proof: Proof,
    },
    Compared {
        regressions: Vec<Regression>,
    },
    Validated {
        findings: Vec<Finding>,
        regressions: Vec<Regression>,
    },
    Reset {
        already: bool,
        /// Which copy was put back, and why not another, in words.
        #[serde(default)]
        from: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CordonWas {
    Open,
    /// Our own mark was there: the action was done before.
    OurMark,
    /// Somebody else had cordoned it: it stays so, and we do not lift it.
    Foreign,
}

/// Why an action failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// What was seen, in words: `k3s did not stay up: 3 restarts in 20 s`.
    pub what: String,
    /// The cause that the journal names, if its signature is known.
    pub cause: Option<Cause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Findings that block.
    Blocked,
    /// The digest there is not the one that was expected.
    Digest,
    DiskFull,
    /// A budget, or a pod that cannot move, stood in the way until the time was over.
    DrainBlocked,
    /// The unit did not stay up.
    DidNotStayUp,
    /// The node was not proven healthy in its time.
    NotReadyInTime,
    /// It was healthy and did not stay so.
    Regressed,
    /// The backup could not be read back.
    BackupUnusable,
    /// Another turn, another rollout or another hand acts here.
    Superseded,
    /// A precondition was changed by somebody else.
    Changed,
    /// The node refused or its script failed.
    Refused,
}

/// A cause named by a line of the journal, by the signature table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The signature's class.
    pub class: String,
    pub line: String,
    pub remedy: String,
}

/// A backup that was made, read back and copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupReceipt {
    pub backup: BackupRef,
    pub bytes: u64,
    /// The datastore's revision that the backup reaches, and the one seen just before.
    pub revision: Option<u64>,
    pub at_least: Option<u64>,
    /// Files in the vault with their digests (of the encrypted file).
    pub files: BTreeMap<String, Digest>,
    /// What could not be judged, such as the content of an external dump.
    pub caveats: Vec<String>,
}

/// A second look at what can change between two steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glance {
    /// When the asking began: what was answered first is as old as that.
    pub at: Timestamp,
    pub uid: Fact<ClusterUid>,
    pub nodes: BTreeMap<NodeName, NodeGlance>,
    /// Ids of the etcd members by etcd's own list; empty with another datastore.
    pub etcd_members: Fact<BTreeSet<String>>,
}

/// One node, as the second look found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeGlance {
    pub role: Role,
    pub uid: Option<String>,
    pub version: Fact<Version>,
    pub ready: Fact<bool>,
    pub cordon: Cordon,
    pub machine_id: Fact<String>,
    /// The boot that the host is in, and the one that the Node's kubelet reported last. Absent: the host could not be
    /// reached, there is no Node, or an older Kadence looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_boot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_boot: Option<String>,
    pub arguments: Fact<Digest>,
    pub binary: Fact<Digest>,
    /// `None`: no embedded etcd here.
    pub etcd: Option<Fact<EtcdGlance>>,
    /// Whether the node's own API server answers `/readyz` with 200. `None` on an agent.
    pub apiserver: Option<Fact<bool>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdGlance {
    pub healthy: bool,
    pub learner: bool,
    pub leader: bool,
}

/// How a node was proven healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// From the restart to Ready with the right version.
    pub ready_after: SignedDuration,
    /// From the restart to everything healthy.
    pub healthy_after: SignedDuration,
    pub held: SignedDuration,
    pub etcd: Fact<Option<String>>,
}
