//! The words of `kadence.yaml`. Reading the file, with errors at line and column, is the engine's part.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::apply::plan::Manner;
use crate::ident::{ClusterName, Digest, NodeName};
use crate::inventory::Role;

/// Kadence's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where releases come from: `github`, a folder, or an URL with the same layout and a `releases.json`.
    #[serde(default = "default_releases")]
    pub releases: String,
    /// Who can read backups.
    #[serde(default)]
    pub backups: Backups,
    /// The clusters, by the names that commands use.
    pub clusters: BTreeMap<ClusterName, Cluster>,
}

fn default_releases() -> String {
    "github".to_owned()
}

/// Who can read backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backups {
    /// Public keys in the age format (`age1...`). Whoever holds one of the private keys can read every backup.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// The private key that a restore reads backups with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
}

/// One K3s cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// `production`, `staging`, ...
    pub environment: String,
    /// The kubeconfig file.
    pub kubeconfig: PathBuf,
    /// The context in it; its current one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// How its hosts are reached.
    #[serde(default)]
    pub ssh: Ssh,
    /// What differs for single nodes, and servers that have no Node (`--disable-agent`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<NodeName, NodeAccess>,
    /// What must work before, while and after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// How updates are done.
    #[serde(default)]
    pub update: Update,
    /// Commands for an external datastore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<DatastoreCommands>,
    /// Checks that a person took upon themselves to overrule, for a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waivers: Vec<WaiverEntry>,
    /// Agents that a person leaves out of updates, for a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<ExcludeEntry>,
}

/// How hosts are reached with SSH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    pub user: String,
    /// The private key file; `~/.ssh/config` and the agent decide if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    pub port: u16,
    /// The file with the hosts' keys; `~/.ssh/known_hosts` if absent. Keys are always checked strictly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
    /// A host to jump through: `user@host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bastion: Option<String>,
    pub sudo: Sudo,
}

impl Default for Ssh {
    fn default() -> Self {
        Self { user: "root".to_owned(), key: None, port: 22, known_hosts: None, bastion: None, sudo: Sudo::No }
    }
}

/// How root's rights are had on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sudo {
    /// The user is root.
    #[default]
    No,
    /// `sudo` asks for no password.
    Passwordless,
    /// `sudo` wants the password that this file or environment variable holds.
    Password(SecretRef),
}

/// Where a secret is: never the secret itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// The first line of this file.
    File(PathBuf),
    /// The value of this environment variable.
    Env(String),
}

/// What differs for one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeAccess {
    /// The address SSH connects to; the Node's internal address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Needed for a server that has no Node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// Something of the user's that must work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    pub name: String,
    pub test: ProbeTest,
    /// How long one attempt may take.
    #[serde(default = "ten_seconds")]
    pub within: SignedDuration,
}

fn ten_seconds() -> SignedDuration {
    SignedDuration::from_secs(10)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeTest {
    /// A GET answers with this status (200), its body holding the text if one is given.
    Http(HttpProbe),
    /// A connection to `host:port` is accepted.
    Tcp(String),
    /// An object in the cluster has a condition that is True.
    Condition(ConditionProbe),
    /// A command on this machine exits with 0: program and arguments, no shell.
    Command(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    pub url: String,
    #[serde(default = "ok_status")]
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
}

fn ok_status() -> u16 {
    200
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConditionProbe {
    /// `apps/v1`, `v1`, ...
    pub api_version: String,
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    /// The condition's type: `Available`.
    pub condition: String,
}

/// How updates are done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    pub drain: DrainPolicy,
    /// How long a node must stay healthy before the next one is touched.
    pub settle: SignedDuration,
    /// How long a node may take from its restart to being proven healthy.
    pub ready_within: SignedDuration,
    /// How long a drain may take.
    pub drain_within: SignedDuration,
    /// How many agents at once, after the first, which goes alone.
    pub agents_at_once: u32,
    /// Send the release's airgap image archive to the nodes, too.
    pub airgap_images: bool,
    /// How long versions may stay mixed when a rollout is held, before it is called out.
    pub mixed_at_most: SignedDuration,
}

impl Default for Update {
    fn default() -> Self {
        let manner = Manner::default();
        Self {
            drain: DrainPolicy::Auto,
            settle: manner.settle,
            ready_within: manner.ready_within,
            drain_within: manner.drain_within,
            agents_at_once: manner.agents_at_once,
            airgap_images: false,
            mixed_at_most: manner.mixed_at_most,
        }
    }
}

/// Whether pods are evicted before a node's K3s restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DrainPolicy {
    /// Where the kubelet's minor or containerd's major changes; else only cordon.
    #[default]
    Auto,
    Always,
    Never,
}

/// Commands for an external datastore. They run on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatastoreCommands {
    /// Writes a backup to its standard output. Judged by its exit and by the size of what it wrote.
    pub backup: Vec<String>,
    /// Reads that backup from its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Vec<String>>,
}

/// A check that a person overrules for a time. Invariants cannot be waived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaiverEntry {
    /// The check's code: `PDB-BLOCKS`.
    pub check: String,
    /// Only for this subject; for every one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    pub owner: String,
    pub reason: String,
    pub until: Timestamp,
}

/// An agent that a person leaves out of updates for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExcludeEntry {
    pub node: NodeName,
    pub owner: String,
    pub reason: String,
    pub until: Timestamp,
}

impl ExcludeEntry {
    /// Why the entry counts for nothing, as the end of a sentence about it; `None` if it counts.
    pub fn fault(&self, now: Timestamp) -> Option<String> {
        if self.owner.trim().is_empty() || self.reason.trim().is_empty() {
            Some(format!("for {} lacks an owner or a reason", self.node))
        } else if self.until <= now {
            Some(format!("for {} ended at {}", self.node, self.until))
        } else {
            None
        }
    }
}

impl Cluster {
    /// The agents that are left out of a plan that is made now.
    pub fn excluded(&self, now: Timestamp) -> impl Iterator<Item = &ExcludeEntry> {
        self.exclude.iter().filter(move |entry| entry.fault(now).is_none())
    }

    /// Digest over what decides a plan: a change here makes a plan stale. Access paths and probes are not in it.
    pub fn policy_digest(&self) -> Digest {
        let decisive = (&self.update, &self.datastore, &self.waivers);
        Digest::of(&serde_json::to_vec(&decisive).unwrap_or_default())
    }
}
