//! The worlds of the stories.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::apply::action::{EtcdGlance, Glance, NodeGlance};
use crate::apply::plan::{DatastoreKind, Plan};
use crate::apply::planner::{self, NoPlan, Scope};
use crate::config::{Cluster, DatastoreCommands, DrainPolicy};
use crate::fact::Fact;
use crate::ident::{ClusterUid, Digest, NodeName};
use crate::inventory::{
    Arch, Argument, Cordon, Datastore, EtcdRole, Inventory, Mark, Node, Role, SqliteFiles, example,
};
use crate::knowledge::Knowledge;
use crate::version::Version;

/// A cluster where all is well, but for what is said.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct World {
    pub datastore: DatastoreKind,
    pub servers: u8,
    #[serde(default)]
    pub agents: u8,
    /// The version of all nodes.
    pub runs: String,
    #[serde(default)]
    pub but: But,
}

/// What is different. `unknown: why` is a fact that could not be had.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct But {
    uid: Option<String>,
    /// Names of the etcd members instead of ids.
    members: Option<String>,
    datastore: Option<String>,
    contradiction: Option<String>,
    #[serde(flatten)]
    nodes: BTreeMap<String, NodeBut>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NodeBut {
    /// `there`, where it was not; `gone`.
    is: Option<String>,
    host: Option<String>,
    runs: Option<String>,
    /// The version whose binary is installed, or `other`.
    binary: Option<String>,
    arch: Option<Arch>,
    ready: Option<String>,
    api: Option<String>,
    /// `leader`, `follower`, `unhealthy`, `learner`, `none`.
    etcd: Option<String>,
    /// `foreign`, or the rollout whose mark it has.
    cordon: Option<String>,
    machine: Option<String>,
    /// The boot that the host is in, where its Node speaks of another.
    boot: Option<String>,
    object: Option<String>,
    arguments: Option<String>,
    role: Option<Role>,
    tools: Option<Vec<String>>,
    /// Arguments of K3s, such as `server` and `tls-san`; a value of `hidden` is a secret.
    told: Option<BTreeMap<String, String>>,
}

/// What somebody wants.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Wish {
    pub to: Vec<String>,
    pub exclude: Vec<String>,
    pub until_servers: bool,
    pub only_agents: bool,
    pub agents_at_once: Option<u32>,
    pub drain: Option<DrainPolicy>,
    pub backup_command: Option<String>,
    pub restore_command: Option<String>,
    /// Releases that the source has not, or only for amd64.
    pub missing: Vec<String>,
    pub amd64_only: Vec<String>,
}

pub(super) fn v(text: &str) -> Version {
    text.parse().unwrap_or_else(|e| unreachable!("{text}: {e}"))
}

fn fact<T>(text: &str, known: impl FnOnce(&str) -> T) -> Fact<T> {
    match text.strip_prefix("unknown: ") {
        Some(why) => Fact::unknown(why),
        None => Fact::Known(known(text)),
    }
}

fn yes(text: &str) -> bool {
    match text {
        "yes" => true,
        "no" => false,
        _ => unreachable!("`{text}` is neither yes nor no"),
    }
}

impl World {
    pub(super) fn inventory(&self) -> Inventory {
        let mut inventory = match self.datastore {
            DatastoreKind::EmbeddedEtcd => example::etcd(self.servers, self.agents, &self.runs),
            DatastoreKind::Sqlite => example::of(Datastore::Sqlite, self.servers, self.agents, &self.runs),
            DatastoreKind::External => example::of(Datastore::External, self.servers, self.agents, &self.runs),
        };
        if self.datastore == DatastoreKind::Sqlite {
            let path = "/var/lib/rancher/k3s/server/db/state.db".to_owned();
            let files = SqliteFiles { path, db_bytes: 1 << 23, wal_bytes: 1 << 22 };
            example::host_mut(&mut inventory, "s1").sqlite = Some(Fact::Known(files));
        }
        self.but.apply(&mut inventory);
        inventory
    }
}

impl But {
    pub(super) fn apply(&self, inventory: &mut Inventory) {
        if let Some(uid) = &self.uid {
            inventory.uid = fact(uid, |uid| ClusterUid::new(uid));
        }
        if let Some(datastore) = &self.datastore {
            inventory.datastore = fact(datastore, |text| match text {
                "sqlite" => Datastore::Sqlite,
                "external" => Datastore::External,
                _ => unreachable!("datastore `{text}`"),
            });
        }
        if let Some(names) = &self.members
            && let Fact::Known(Datastore::EmbeddedEtcd { members }) = &mut inventory.datastore
        {
            let all = members.known().cloned().unwrap_or_default();
            *members = fact(names, |names| {
                let of = |name: &str| {
                    let known = all.iter().find(|m| m.node().is_some_and(|n| n.as_str() == name));
                    known.cloned().unwrap_or_else(|| crate::inventory::EtcdMember {
                        id: format!("id of {name}"),
                        name: format!("{name}-0a1b2c3d"),
                        peer_urls: Vec::new(),
                        learner: false,
                    })
                };
                names.split_whitespace().map(of).collect()
            });
        }
        inventory.contradictions.extend(self.contradiction.clone());
        for (name, but) in &self.nodes {
            if but.is.as_deref() == Some("gone") {
                inventory.nodes.retain(|n| n.name.as_str() != name);
                continue;
            }
            if but.is.as_deref() == Some("there") {
                let mut new = inventory.nodes[0].clone();
                new.name = name.as_str().into();
                inventory.nodes.push(new);
                inventory.nodes.sort_by(|a, b| a.name.cmp(&b.name));
            }
            but.apply(example::node_mut(inventory, name));
        }
    }
}

impl NodeBut {
    fn apply(&self, node: &mut Node) {
        if let Some(role) = self.role {
            node.role = role;
        }
        if let Some(runs) = &self.runs {
            set_version(node, fact(runs, v));
        }
        if let Some(arch) = self.arch {
            node.arch = Fact::Known(arch);
            let version = node.version.known().expect("a version").clone();
            set_binary(node, example::binary(&version, arch));
        }
        if let Some(binary) = &self.binary {
            let digest = match binary.as_str() {
                "other" => Digest::of(b"somebody's own build"),
                version => example::binary(&v(version), Arch::Amd64),
            };
            set_binary(node, digest);
        }
        if let Some(ready) = &self.ready {
            node.ready = fact(ready, yes);
        }
        if let Some(api) = &self.api {
            node.apiserver = fact(api, yes);
        }
        if let Some(cordon) = &self.cordon {
            let cordon = match cordon.as_str() {
                "foreign" => Cordon::Foreign,
                rollout => Cordon::Ours { mark: mark(rollout) },
            };
            set_cordon(node, cordon);
        }
        if self.object.is_some() {
            node.uid = Some("uid-of-another".to_owned());
        }
        let name = node.name.to_string();
        let host = match &mut node.host {
            Fact::Known(host) => host,
            Fact::Unknown(_) => return,
        };
        if self.machine.is_some() {
            host.machine_id = format!("{:032x}", 0xbad);
        }
        if let Some(boot) = &self.boot {
            host.boot_id.clone_from(boot);
        }
        if let Some(etcd) = &self.etcd {
            node.etcd = Fact::Known(if etcd == "none" { EtcdRole::None } else { EtcdRole::Voter });
            if etcd == "none" {
                (host.etcd, host.etcd_members) = (None, None);
            } else if let Some(local) = &mut host.etcd {
                *local = fact(etcd, |text| {
                    let mut local = local.known().expect("etcd's own facts").clone();
                    local.leader = text == "leader";
                    local.healthy = text != "unhealthy";
                    local.learner = text == "learner";
                    local
                });
            }
        }
        if let Some(arguments) = &self.arguments {
            if let (Fact::Known(entries), Some(why)) = (&mut host.arguments, arguments.strip_prefix("unreadable: ")) {
                entries.digest = None;
                entries.unreadable = vec![why.to_owned()];
            } else {
                let mut known = host.arguments.known().expect("the arguments").clone();
                known.digest = Some(Digest::of(b"other arguments"));
                host.arguments = fact(arguments, |_| known);
            }
        }
        if let (Some(told), Fact::Known(arguments)) = (&self.told, &mut host.arguments) {
            for (key, value) in told {
                let value = (value != "hidden").then_some(value);
                let argument = Argument { value: value.cloned(), ..example::argument(key, "") };
                arguments.entries.push(argument);
            }
        }
        if let Some(tools) = &self.tools {
            host.tools.sqlite3 = tools.iter().any(|t| t == "sqlite3");
            host.tools.python3 = tools.iter().any(|t| t == "python3");
        }
        if let Some(why) = &self.host {
            node.host = Fact::unknown(why.strip_prefix("unknown: ").unwrap_or_else(|| unreachable!("{name}: {why}")));
        }
    }
}

pub(super) fn set_version(node: &mut Node, version: Fact<Version>) {
    if let (Fact::Known(version), Fact::Known(arch)) = (&version, &node.arch) {
        let digest = example::binary(version, *arch);
        set_binary(node, digest);
    }
    node.version = version;
}

pub(super) fn set_binary(node: &mut Node, binary: Digest) {
    if let Fact::Known(host) = &mut node.host
        && let Fact::Known(install) = &mut host.install
    {
        install.digest = binary;
    }
}

pub(super) fn binary(inventory: &Inventory, node: &NodeName) -> Option<Digest> {
    Some(inventory.node(node)?.host.known()?.install.known()?.digest)
}

pub(super) fn set_cordon(node: &mut Node, cordon: Cordon) {
    node.object.as_mut().expect("a Node object").cordon = cordon;
}

pub(super) fn mark(rollout: &str) -> Mark {
    Mark { rollout: rollout.to_owned(), plan: "a plan".to_owned(), step: "a step".to_owned() }
}

impl Wish {
    pub(super) fn of(ladder: &[&str], agents_at_once: u32) -> Self {
        let to = ladder.iter().map(|&version| version.to_owned()).collect();
        let backup_command = Some("pg_dump k3s".to_owned());
        Self { to, agents_at_once: Some(agents_at_once), backup_command, ..Self::default() }
    }

    pub(super) fn cluster(&self) -> Cluster {
        let mut cluster = example::cluster();
        cluster.update.agents_at_once = self.agents_at_once.unwrap_or(cluster.update.agents_at_once);
        cluster.update.drain = self.drain.unwrap_or(cluster.update.drain);
        let words = |command: &String| command.split(' ').map(str::to_owned).collect();
        cluster.datastore = self.backup_command.as_ref().map(|backup| DatastoreCommands {
            backup: words(backup),
            restore: self.restore_command.as_ref().map(words),
        });
        cluster
    }

    pub(super) fn plan(&self, inventory: &Inventory) -> Result<Plan, NoPlan> {
        let versions: Vec<&str> =
            self.to.iter().map(String::as_str).filter(|t| !self.missing.contains(&(*t).to_owned())).collect();
        let mut catalog = example::catalog(&versions);
        for version in &self.amd64_only {
            catalog.releases.get_mut(&v(version)).expect("a release").binaries.remove(&Arch::Arm64);
        }
        let cluster = self.cluster();
        let question = planner::Question {
            inventory,
            catalog: &catalog,
            cluster: &cluster,
            knowledge: Knowledge::embedded(),
            now: example::now(),
        };
        let ladder: Vec<Version> = self.to.iter().map(|t| v(t)).collect();
        let scope = Scope {
            exclude: self.exclude.iter().map(|n| n.as_str().into()).collect(),
            until_servers: self.until_servers,
            only_agents: self.only_agents,
        };
        planner::plan(&question, &ladder, &scope, "0.0.0")
    }
}

/// What a second look at a world like this finds.
pub(super) fn glance(inventory: &Inventory) -> Glance {
    let members = match &inventory.datastore {
        Fact::Known(Datastore::EmbeddedEtcd { members }) => {
            members.clone().map(|m| m.into_iter().map(|m| m.id).collect::<BTreeSet<_>>())
        }
        _ => Fact::Known(BTreeSet::new()),
    };
    let of = |node: &Node| {
        let host = node.host.as_ref();
        NodeGlance {
            role: node.role,
            uid: node.uid.clone(),
            version: node.version.clone(),
            ready: node.ready.clone(),
            cordon: node.cordon().clone(),
            machine_id: host.clone().map(|h| h.machine_id.clone()),
            host_boot: node.host.known().map(|h| h.boot_id.clone()),
            node_boot: node.object.as_ref().map(|o| o.boot_id.clone()),
            arguments: host.clone().and_then(|h| h.arguments.clone()).and_then(|a| match a.digest {
                Some(digest) => Fact::Known(digest),
                None => Fact::unknown(a.unreadable.join("; ")),
            }),
            binary: host.and_then(|h| h.install.clone()).map(|i| i.digest),
            etcd: etcd(node),
            apiserver: (node.role == Role::Server).then(|| node.apiserver.clone()),
        }
    };
    Glance {
        at: inventory.taken,
        uid: inventory.uid.clone(),
        nodes: inventory.nodes.iter().map(|n| (n.name.clone(), of(n))).collect(),
        etcd_members: members,
    }
}

fn etcd(node: &Node) -> Option<Fact<EtcdGlance>> {
    match &node.host {
        Fact::Known(host) => host
            .etcd
            .clone()
            .map(|fact| fact.map(|e| EtcdGlance { healthy: e.healthy, learner: e.learner, leader: e.leader })),
        Fact::Unknown(why) => node.etcd.is(&EtcdRole::Voter).then(|| Fact::unknown(why)),
    }
}

pub(super) fn names(of: &[String]) -> BTreeSet<NodeName> {
    of.iter().map(|n| n.as_str().into()).collect()
}
