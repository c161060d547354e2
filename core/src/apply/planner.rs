//! From facts and a wish to a plan, or to the reasons why there is none.
//!
//! The order: servers before agents, one server at a time, the etcd leader last among them (each loss of the leader
//! costs the API's writes an election, so there is one and not several), then one agent alone, then agents in groups.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::apply::plan::{
    BackupMethod, DatastoreKind, Decision, DeclaredOutage, Drain, Expected, Hop, Manner, NodePrecondition, Plan,
    Preconditions, Purpose, Seen, SqliteTool, Step, UndoClass,
};
use crate::apply::undo;
use crate::config::{Cluster, DrainPolicy};
use crate::fact::Fact;
use crate::ident::{ClusterUid, Digest, NodeName};
use crate::inventory::{Arch, Datastore, EtcdRole, Inventory, Node, Role};
use crate::knowledge::Knowledge;
use crate::knowledge::components::Component;
use crate::track::catalog::Catalog;
use crate::version::Version;

/// What somebody wants, beyond the version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Agents to leave out.
    pub exclude: BTreeSet<NodeName>,
    pub until_servers: bool,
    pub only_agents: bool,
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub inventory: &'a Inventory,
    pub catalog: &'a Catalog,
    pub cluster: &'a Cluster,
    pub knowledge: &'a Knowledge,
    pub now: Timestamp,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// Facts that a plan is made of.
    #[error("{what} is not known: {why}")]
    Unknown { what: String, why: String },
    #[error("the sources disagree: {0}")]
    Contradiction(String),
    #[error("{0} is not a node of this cluster")]
    NoSuchNode(NodeName),
    #[error("{0} is a server: only agents can be left out, since no server may stay behind the others")]
    ServerExcluded(NodeName),
    #[error("{version} has no binary with a published digest for {arch}, which {node} needs")]
    NoBinary { version: Version, arch: Arch, node: NodeName },
    #[error("an external datastore can only be backed up by your own command (kadence.yaml: datastore.backup)")]
    NoBackupCommand,
    #[error("the agents cannot be updated alone: {server} runs {version}, below {target}")]
    ServersBehind { server: NodeName, version: Version, target: Version },
    #[error("the ladder is empty: nothing was asked for")]
    NoTarget,
}

/// Plans an update along `ladder` (the hops in order, the last one is the target).
///
/// A plan without hops means that nothing is to be done. Whether the cluster is *ready* for it is judged by the checks,
/// not here. `kadence` is the version of the program that plans.
///
/// # Errors
/// A fact that a plan consists of is unknown, or the wish cannot be met.
pub fn plan(question: &Question<'_>, ladder: &[Version], scope: &Scope, kadence: &str) -> Result<Plan, NoPlan> {
    let Question { inventory, catalog, cluster, knowledge, now } = *question;
    let target = ladder.last().ok_or(NoPlan::NoTarget)?.clone();
    let world = World::read(inventory, &scope.exclude)?;
    for name in &scope.exclude {
        match inventory.node(name).map(|n| n.role) {
            None => return Err(NoPlan::NoSuchNode(name.clone())),
            Some(Role::Server) => return Err(NoPlan::ServerExcluded(name.clone())),
            Some(Role::Agent) => {}
        }
    }

    let mut at: BTreeMap<NodeName, (Version, Digest)> =
        world.nodes.iter().map(|(name, n)| (name.clone(), (n.version.clone(), n.binary))).collect();
    if scope.only_agents {
        let behind = world.nodes.iter().find(|(_, n)| n.role == Role::Server && n.version < target);
        if let Some((server, node)) = behind {
            return Err(NoPlan::ServersBehind { server: server.clone(), version: node.version.clone(), target });
        }
    }
    let mut hops = Vec::new();
    for to in ladder {
        let artifacts = artifacts(to, catalog);
        let mut steps = Vec::new();
        if !scope.only_agents {
            steps.extend(world.server_steps(to, &at, cluster, knowledge));
        }
        if !scope.until_servers {
            steps.extend(world.agent_steps(to, &at, cluster, &scope.exclude, steps.len(), knowledge));
        }
        if steps.is_empty() {
            continue;
        }
        for step in &mut steps {
            let node = &world.nodes[&step.node];
            let artifact = artifacts.get(&node.arch).ok_or_else(|| NoPlan::NoBinary {
                version: to.clone(),
                arch: node.arch,
                node: step.node.clone(),
            })?;
            step.artifact = *artifact;
            at.insert(step.node.clone(), (to.clone(), *artifact));
        }
        let needed: BTreeSet<Arch> = steps.iter().map(|s| world.nodes[&s.node].arch).collect();
        hops.push(Hop {
            to: to.clone(),
            artifacts: artifacts.into_iter().filter(|(arch, _)| needed.contains(arch)).collect(),
            backup: world.backup(cluster)?,
            point_of_no_return: steps.iter().position(|s| s.undo != UndoClass::Binary && s.role == Role::Server),
            steps,
        });
    }
    let outage = world.outage(&hops);
    let preconditions = world.preconditions(cluster);
    let expected = world.expected(&hops, &cluster.update.settle);
    Ok(Plan {
        decision: Decision {
            schema: Plan::SCHEMA,
            cluster: inventory.cluster.clone(),
            purpose: Purpose::Update,
            target: target.clone(),
            hops,
            preconditions,
            manner: Manner {
                settle: cluster.update.settle,
                ready_within: cluster.update.ready_within,
                drain_within: cluster.update.drain_within,
                agents_at_once: cluster.update.agents_at_once.max(1),
                until_servers: scope.until_servers,
                mixed_at_most: cluster.update.mixed_at_most,
            },
            outage,
            excluded: scope.exclude.clone(),
        },
        seen: Seen {
            made: now,
            kadence: kadence.to_owned(),
            etcd_leader: world.leader.clone(),
            because: why_this_version(&world, &target, ladder, catalog, now),
            expected,
            addresses: addresses(inventory),
        },
    })
}

/// What must hold before each step, as it is now.
///
/// # Errors
/// A fact that belongs to it is unknown.
///
/// `but` are agents that are left out: nothing has to be known of them.
pub fn preconditions(
    inventory: &Inventory,
    cluster: &Cluster,
    but: &BTreeSet<NodeName>,
) -> Result<Preconditions, NoPlan> {
    Ok(World::read(inventory, but)?.preconditions(cluster))
}

/// How this cluster's datastore is backed up.
///
/// # Errors
/// It is unknown, or external and no command is configured.
pub fn backup(inventory: &Inventory, cluster: &Cluster, but: &BTreeSet<NodeName>) -> Result<BackupMethod, NoPlan> {
    World::read(inventory, but)?.backup(cluster)
}

/// Where each node is reached.
pub fn addresses(inventory: &Inventory) -> BTreeMap<NodeName, String> {
    inventory.nodes.iter().map(|n| (n.name.clone(), n.address.clone())).collect()
}

/// The facts a plan is made of, all known.
struct World {
    uid: ClusterUid,
    datastore: DatastoreKind,
    members: BTreeSet<String>,
    leader: Option<NodeName>,
    nodes: BTreeMap<NodeName, Seat>,
}

struct Seat {
    role: Role,
    uid: Option<String>,
    version: Version,
    arch: Arch,
    machine_id: String,
    arguments: Digest,
    binary: Digest,
    etcd: bool,
    /// Whether it is told to join another server (`server:`, K3S_URL).
    joins: bool,
    sqlite3: bool,
    python3: bool,
}

impl World {
    /// `but` are agents that are left out: one that cannot be reached is left out for just that reason.
    fn read(inventory: &Inventory, but: &BTreeSet<NodeName>) -> Result<Self, NoPlan> {
        if let Some(contradiction) = inventory.contradictions.first() {
            return Err(NoPlan::Contradiction(contradiction.clone()));
        }
        let uid = known(&inventory.uid, "the cluster's uid")?.clone();
        let (datastore, members) = match known(&inventory.datastore, "the datastore")? {
            Datastore::Sqlite => (DatastoreKind::Sqlite, BTreeSet::new()),
            Datastore::External => (DatastoreKind::External, BTreeSet::new()),
            Datastore::EmbeddedEtcd { members } => {
                let members = known(members, "the list of etcd members")?;
                (DatastoreKind::EmbeddedEtcd, members.iter().map(|m| m.id.clone()).collect())
            }
        };
        let mut nodes = BTreeMap::new();
        for node in &inventory.nodes {
            match seat(node) {
                Ok(seat) => {
                    nodes.insert(node.name.clone(), seat);
                }
                Err(_) if node.role == Role::Agent && but.contains(&node.name) => {}
                Err(unknown) => return Err(unknown),
            }
        }
        let leader = inventory.servers().find(|n| n.etcd_local().is_some_and(|e| e.leader)).map(|n| n.name.clone());
        Ok(Self { uid, datastore, members, leader, nodes })
    }

    fn of(&self, role: Role) -> impl Iterator<Item = (&NodeName, &Seat)> {
        self.nodes.iter().filter(move |(_, n)| n.role == role)
    }

    fn server_steps(
        &self,
        to: &Version,
        at: &BTreeMap<NodeName, (Version, Digest)>,
        cluster: &Cluster,
        knowledge: &Knowledge,
    ) -> Vec<Step> {
        let mut servers: Vec<&NodeName> = self.of(Role::Server).map(|(n, _)| n).filter(|n| at[*n].0 < *to).collect();
        servers.sort_by_key(|n| (Some(*n) == self.leader.as_ref(), *n));
        let count = servers.len();
        servers
            .iter()
            .enumerate()
            .map(|(i, node)| {
                let (from, previous) = at[*node].clone();
                // Who still runs the old minor holds the data down to it; who runs a newer one already does not.
                let later = &servers[i + 1..];
                let etcd = |v: &Version| {
                    knowledge.components(v).and_then(|c| c.get(Component::Etcd)).map(|c| (c.major, c.minor))
                };
                let position = undo::Position {
                    servers_after_me_still_on_from: later.iter().filter(|n| at[**n].0.minor() == from.minor()).count(),
                    etcd_members_after_me_still_on_from: later
                        .iter()
                        .filter(|n| {
                            self.nodes[**n].etcd && etcd(&at[**n].0).is_some() && etcd(&at[**n].0) == etcd(&from)
                        })
                        .count(),
                };
                let (undo, undo_because) = undo::class(&from, to, Role::Server, self.datastore, position, knowledge);
                let (drain, drain_because) = drain(cluster.update.drain, &from, to, knowledge);
                let mut because = vec![if self.nodes.len() == 1 {
                    "the only node".to_owned()
                } else if count == 1 {
                    "the only server that is not there yet".to_owned()
                } else if Some(*node) == self.leader.as_ref() {
                    "etcd's leader goes last among the servers: one election instead of several".to_owned()
                } else {
                    "a follower goes before the leader".to_owned()
                }];
                because.push(drain_because);
                because.extend(undo_because);
                Step {
                    node: (*node).clone(),
                    role: Role::Server,
                    wave: u32::try_from(i).unwrap_or(u32::MAX),
                    from,
                    to: to.clone(),
                    artifact: previous,
                    previous,
                    drain,
                    undo,
                    because,
                }
            })
            .collect()
    }

    fn agent_steps(
        &self,
        to: &Version,
        at: &BTreeMap<NodeName, (Version, Digest)>,
        cluster: &Cluster,
        exclude: &BTreeSet<NodeName>,
        first_wave: usize,
        knowledge: &Knowledge,
    ) -> Vec<Step> {
        let agents = self.of(Role::Agent).map(|(n, _)| n).filter(|n| at[*n].0 < *to && !exclude.contains(*n));
        let at_once = usize::try_from(cluster.update.agents_at_once.max(1)).unwrap_or(1);
        agents
            .enumerate()
            .map(|(i, node)| {
                let (from, previous) = at[node].clone();
                let position = undo::Position::before(0);
                let (undo, undo_because) = undo::class(&from, to, Role::Agent, self.datastore, position, knowledge);
                let (drain, drain_because) = drain(cluster.update.drain, &from, to, knowledge);
                let mut because = vec![if i == 0 {
                    "agents after the servers, the first one alone".to_owned()
                } else if at_once == 1 {
                    "agents one at a time".to_owned()
                } else {
                    format!("after the first agent, {at_once} at a time")
                }];
                because.push(drain_because);
                because.extend(undo_because);
                let wave = first_wave + if i == 0 { 0 } else { 1 + (i - 1) / at_once };
                Step {
                    node: node.clone(),
                    role: Role::Agent,
                    wave: u32::try_from(wave).unwrap_or(u32::MAX),
                    from,
                    to: to.clone(),
                    artifact: previous,
                    previous,
                    drain,
                    undo,
                    because,
                }
            })
            .collect()
    }

    fn backup(&self, cluster: &Cluster) -> Result<BackupMethod, NoPlan> {
        let servers: Vec<_> = self.of(Role::Server).collect();
        match self.datastore {
            DatastoreKind::EmbeddedEtcd => {
                // A restore begins on a server that joins no other one, so the snapshot is best made there; else the
                // leader has no lag.
                let server = servers
                    .iter()
                    .find(|(_, s)| s.etcd && !s.joins)
                    .map(|(n, _)| (*n).clone())
                    .or_else(|| self.leader.clone())
                    .or_else(|| servers.iter().find(|(_, s)| s.etcd).map(|(n, _)| (*n).clone()))
                    .ok_or_else(|| NoPlan::Unknown {
                        what: "a server that runs etcd".into(),
                        why: "none could be asked".into(),
                    })?;
                Ok(BackupMethod::EtcdSnapshot { server })
            }
            DatastoreKind::Sqlite => {
                let (server, seat) = servers
                    .first()
                    .ok_or_else(|| NoPlan::Unknown { what: "the server".into(), why: "none is known".into() })?;
                let server = (*server).clone();
                Ok(if seat.sqlite3 {
                    BackupMethod::SqliteOnline { server, tool: SqliteTool::Sqlite3 }
                } else if seat.python3 {
                    BackupMethod::SqliteOnline { server, tool: SqliteTool::Python3 }
                } else {
                    BackupMethod::SqliteStopped { server }
                })
            }
            DatastoreKind::External => {
                let commands = cluster.datastore.as_ref().ok_or(NoPlan::NoBackupCommand)?;
                Ok(BackupMethod::Command { command: commands.backup.join(" ") })
            }
        }
    }

    fn outage(&self, hops: &[Hop]) -> Option<DeclaredOutage> {
        let touches_servers = hops.iter().flat_map(|h| &h.steps).any(|s| s.role == Role::Server);
        // Even where only agents are updated: the backup may stop the server.
        if !touches_servers && !hops.iter().any(|h| h.backup.stops_k3s()) {
            return None;
        }
        let servers = self.of(Role::Server).count();
        match (servers, self.datastore, self.members.len()) {
            (1, _, _) => Some(DeclaredOutage::SingleServer),
            (_, DatastoreKind::EmbeddedEtcd, 2) => Some(DeclaredOutage::TwoMembers),
            _ => None,
        }
    }

    fn preconditions(&self, cluster: &Cluster) -> Preconditions {
        Preconditions {
            cluster_uid: self.uid.clone(),
            datastore: self.datastore,
            etcd_members: self.members.clone(),
            nodes: self
                .nodes
                .iter()
                .map(|(name, n)| {
                    let precondition = NodePrecondition {
                        uid: n.uid.clone(),
                        role: n.role,
                        version: n.version.clone(),
                        arch: n.arch,
                        machine_id: n.machine_id.clone(),
                        arguments: n.arguments,
                        binary: n.binary,
                    };
                    (name.clone(), precondition)
                })
                .collect(),
            policy: cluster.policy_digest(),
        }
    }

    fn expected(&self, hops: &[Hop], settle: &SignedDuration) -> Expected {
        let (per_server, per_agent) = (SignedDuration::from_secs(9), SignedDuration::from_secs(5));
        let mut total = SignedDuration::ZERO;
        for hop in hops {
            // Staging and the backup run side by side before the first node.
            total += SignedDuration::from_secs(10);
            let mut wave = None;
            for step in &hop.steps {
                if wave != Some(step.wave) {
                    wave = Some(step.wave);
                    total += *settle + if step.role == Role::Server { per_server } else { per_agent };
                }
            }
        }
        let alone = self.of(Role::Server).count() == 1;
        let (reads_gap, writes_gap) = if alone {
            (SignedDuration::from_secs(7), SignedDuration::from_secs(7))
        } else {
            (SignedDuration::from_millis(300), SignedDuration::from_secs(1))
        };
        Expected {
            total,
            per_server,
            per_agent,
            reads_gap,
            writes_gap,
            basis: "typical figures; this cluster has no update on record yet".to_owned(),
        }
    }
}

fn seat(node: &Node) -> Result<Seat, NoPlan> {
    let of = |what: &str| format!("{what} of {}", node.name);
    let host = known(&node.host, &of("the host"))?;
    let install = known(&host.install, &of("the installation"))?;
    let arguments = known(&host.arguments, &of("the arguments"))?;
    let digest = arguments.digest.ok_or_else(|| NoPlan::Unknown {
        what: of("the digest of the arguments"),
        why: arguments.unreadable.join("; "),
    })?;
    Ok(Seat {
        role: node.role,
        uid: node.uid.clone(),
        version: known(&node.version, &of("the version"))?.clone(),
        arch: *known(&node.arch, &of("the architecture"))?,
        machine_id: host.machine_id.clone(),
        arguments: digest,
        binary: install.digest,
        etcd: node.etcd.is(&EtcdRole::Voter),
        joins: arguments.entries.iter().any(|a| a.key == "server"),
        sqlite3: host.tools.sqlite3,
        python3: host.tools.python3,
    })
}

fn known<'a, T>(fact: &'a Fact<T>, what: &str) -> Result<&'a T, NoPlan> {
    match fact {
        Fact::Known(value) => Ok(value),
        Fact::Unknown(why) => Err(NoPlan::Unknown { what: what.to_owned(), why: why.clone() }),
    }
}

fn artifacts(version: &Version, catalog: &Catalog) -> BTreeMap<Arch, Digest> {
    catalog.releases.get(version).map(|r| r.binaries.clone()).unwrap_or_default()
}

/// Whether the node's pods are evicted first, and why.
///
/// Pods live on while K3s restarts (`KillMode=process`), except where the kubelet's minor changes (its maintainers
/// demand a drain: kubernetes#129385) or containerd's major does.
pub fn drain(policy: DrainPolicy, from: &Version, to: &Version, knowledge: &Knowledge) -> (Drain, String) {
    match policy {
        DrainPolicy::Always => (Drain::Evict, "drained: `drain: always`".to_owned()),
        DrainPolicy::Never => (Drain::CordonOnly, "only cordoned: `drain: never`".to_owned()),
        DrainPolicy::Auto if from.minor() != to.minor() => (
            Drain::Evict,
            format!(
                "drained: the kubelet's minor changes from {} to {}, and its containers may restart",
                from.minor(),
                to.minor()
            ),
        ),
        DrainPolicy::Auto => {
            let major = |v: &Version| knowledge.components(v)?.get(Component::Containerd).map(|c| c.major);
            match (major(from), major(to)) {
                (Some(a), Some(b)) if a != b => (Drain::Evict, format!("drained: containerd changes from {a} to {b}")),
                (Some(_), Some(_)) => {
                    (Drain::CordonOnly, "only cordoned: within a minor pods go on while K3s restarts".to_owned())
                }
                // Within one minor containerd's major changed twice in K3s's history (1.31.6, 1.32.2); both have rows.
                _ => (
                    Drain::CordonOnly,
                    "only cordoned: within a minor pods go on while K3s restarts (containerd's version of one side is \
                     not in the tables)"
                        .to_owned(),
                ),
            }
        }
    }
}

fn why_this_version(
    world: &World,
    target: &Version,
    ladder: &[Version],
    catalog: &Catalog,
    now: Timestamp,
) -> Vec<String> {
    let mut because = Vec::new();
    let lowest = world.nodes.values().map(|n| &n.version).min();
    if let Some(lowest) = lowest {
        because.push(if lowest.minor() == target.minor() {
            format!("{target} is in the minor that runs ({}): no Kubernetes API goes away", target.minor())
        } else {
            let ladder: Vec<String> = ladder.iter().map(ToString::to_string).collect();
            format!("from {lowest} no minor is skipped: {}", ladder.join(" → "))
        });
    }
    if let Some(published) = catalog.releases.get(target).and_then(|r| r.published) {
        because.push(format!("published {} days ago", now.duration_since(published).as_hours() / 24));
    }
    because
}
