//! The way back from a rollout: by binaries where every step it did can be undone so, else a restore.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::apply::plan::{
    BackupMethod, BackupRef, Decision, DeclaredOutage, Drain, Expected, Hop, Manner, Plan, Preconditions, Purpose,
    Seen, Step, UndoClass,
};
use crate::apply::planner::{self, NoPlan};
use crate::apply::rollout::Rollout;
use crate::config::Cluster;
use crate::fact::Fact;
use crate::ident::NodeName;
use crate::inventory::{Inventory, Role};
use crate::version::Version;

/// What a way back is planned from. `inventory` is what runs now; for a restore the API may be away, so only the hosts'
/// own facts are needed.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// What is to be taken back.
    pub rollout: &'a Rollout,
    pub inventory: &'a Inventory,
    pub cluster: &'a Cluster,
    /// Hosts that a person declares powered off.
    pub off: &'a [NodeName],
    pub kadence: &'a str,
    pub now: Timestamp,
}

/// Why there is no way back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWayBack {
    #[error("the last rollout changed no node: there is nothing to take back")]
    NothingChanged,
    /// Only a restore would do, and there is no backup.
    #[error("a restore is needed ({because}), and the rollout has no backup")]
    NoBackup { because: String },
    #[error("{node} was changed and was not in the rollout's plan")]
    UnknownNode { node: NodeName },
    #[error("{0} is declared powered off, and is not a node of this cluster")]
    NoSuchNode(NodeName),
    /// Old members that live on would be a quorum of their own, with the same CA.
    #[error("{0} is declared powered off, and its host answers")]
    NotOff(NodeName),
    #[error("{0} is the server that is restored first: it has to be there")]
    RestoredFirst(NodeName),
    #[error("a restore stops K3s on every host, and {node} cannot be reached: {why}")]
    NoHost { node: NodeName, why: String },
    #[error("every server that could be restored is told to join another one (`server:`), so none can be the first")]
    NoFirstServer,
    /// It would join a cluster that is not the restored one, or none.
    #[error("{node} would not join the restored server: {why}")]
    JoinsElsewhere { node: NodeName, why: String },
    #[error("no command restores the external datastore (kadence.yaml: datastore.restore)")]
    NoRestoreCommand,
    #[error(transparent)]
    NoPlan(#[from] NoPlan),
}

impl NoWayBack {
    /// What a person can do about it.
    pub fn next(&self) -> String {
        match self {
            Self::NothingChanged => "nothing has to be done".to_owned(),
            Self::NoBackup { .. } => "K3s's own snapshots may help: k3s etcd-snapshot list, on a server".to_owned(),
            Self::UnknownNode { node } => format!("look at {node} by hand"),
            Self::NoSuchNode(_) => "give the name as kadence inspect shows it".to_owned(),
            Self::NotOff(node) => format!("power {node} off, or leave it out of --powered-off"),
            Self::RestoredFirst(node) => {
                format!("bring {node} back, or abort the restore and take another server first")
            }
            Self::NoHost { node, .. } => {
                format!("make SSH to {node} work again, or power it off and say so: --powered-off {node}")
            }
            Self::NoFirstServer => {
                "take `server:` out of the configuration of the server that is to be restored first".to_owned()
            }
            Self::JoinsElsewhere { node, .. } => format!("let `server:` of {node} point to the restored server"),
            Self::NoRestoreCommand => "configure it, then ask again".to_owned(),
            Self::NoPlan(_) => {
                "make the fact known (kadence inspect says which are missing), then ask again".to_owned()
            }
        }
    }
}

/// Plans the way back to where the cluster was before the rollout.
///
/// # Errors
/// Why there is none.
pub fn plan(question: &Question<'_>) -> Result<Plan, NoWayBack> {
    let rollout = question.rollout;
    if rollout.sent.is_empty() {
        return Err(NoWayBack::NothingChanged);
    }
    let steps = rollout.plan.decision.hops.iter().take(rollout.hop + 1).flat_map(|h| &h.steps);
    match steps.filter(|s| reached(question, s)).find(|s| s.undo != UndoClass::Binary) {
        None if matches!(question.inventory.datastore, Fact::Unknown(_)) => {
            let because = "the API does not answer, so going back one server at a time could not be watched; once it \
                           answers again, the binaries alone can come back and nothing is lost";
            restore(question, because)
        }
        None => binaries(question),
        Some(step) => {
            let because = format!("{} went to {} with undo class {}", step.node, step.to, step.undo);
            restore(question, &because)
        }
    }
}

/// Whether the step's version may have run on its node. Where no outcome tells it, the installed binary does; and where
/// that is not known either, it may have.
fn reached(Question { rollout, inventory, .. }: &Question<'_>, step: &Step) -> bool {
    let at_least = |versions: &BTreeMap<NodeName, Version>| versions.get(&step.node).is_some_and(|v| *v >= step.to);
    let before = || {
        let host = inventory.node(&step.node).and_then(|n| n.host.known());
        host.and_then(|h| h.install.known()).is_some_and(|i| i.digest == step.previous)
    };
    at_least(&rollout.versions) || (at_least(&rollout.sent) && !before())
}

fn binaries(question: &Question<'_>) -> Result<Plan, NoWayBack> {
    let Question { rollout, inventory, cluster, kadence, now, .. } = *question;
    let excluded = &rollout.plan.decision.excluded;
    let preconditions = planner::preconditions(inventory, cluster, excluded)?;
    let before = &rollout.plan.decision.preconditions.nodes;
    let mut steps = Vec::new();
    // Down: agents before servers, so that no agent is ever newer than a server. What is not well goes before what
    // is, and etcd's leader last.
    let sick = |name: &NodeName| {
        inventory.node(name).is_none_or(|n| !n.ready.is(&true) || n.etcd_local().is_some_and(|e| !e.healthy))
    };
    let leader = inventory.servers().find(|n| n.etcd_local().is_some_and(|e| e.leader)).map(|n| &n.name);
    let mut nodes: Vec<&NodeName> = rollout.sent.keys().collect();
    nodes.sort_by_key(|name| {
        let server = before.get(*name).is_some_and(|n| n.role == Role::Server);
        (server, !sick(name), Some(*name) == leader, *name)
    });
    for name in nodes {
        let was = before.get(name).ok_or_else(|| NoWayBack::UnknownNode { node: name.clone() })?;
        let is = preconditions.nodes.get(name).ok_or_else(|| NoWayBack::UnknownNode { node: name.clone() })?;
        if is.version == was.version && is.binary == was.binary {
            continue;
        }
        steps.push(Step {
            node: name.clone(),
            role: was.role,
            wave: u32::try_from(steps.len()).unwrap_or(u32::MAX),
            from: is.version.clone(),
            to: was.version.clone(),
            artifact: was.binary,
            previous: is.binary,
            drain: Drain::CordonOnly,
            undo: UndoClass::Binary,
            because: vec!["its previous binary was kept on the node".to_owned()],
        });
    }
    let target = steps.iter().map(|s| &s.to).min().cloned().ok_or(NoWayBack::NothingChanged)?;
    let backup = planner::backup(inventory, cluster, excluded)?;
    let outage = if backup.stops_k3s() {
        Some(DeclaredOutage::SingleServer)
    } else {
        rollout.plan.decision.outage.filter(|_| steps.iter().any(|s| s.role == Role::Server))
    };
    let hop = Hop { to: target.clone(), artifacts: BTreeMap::new(), backup, point_of_no_return: None, steps };
    Ok(Plan {
        decision: Decision {
            schema: Plan::SCHEMA,
            cluster: inventory.cluster.clone(),
            purpose: Purpose::Rollback { of: rollout.id.clone() },
            target,
            outage,
            hops: vec![hop],
            preconditions,
            manner: manner(cluster),
            excluded: excluded.clone(),
        },
        seen: seen(
            rollout,
            inventory,
            kadence,
            vec!["every step of the rollout can be undone by its binary".to_owned()],
            rollout.plan.seen.expected.clone(),
            now,
        ),
    })
}

fn restore(question: &Question<'_>, because: &str) -> Result<Plan, NoWayBack> {
    let Question { rollout, inventory, cluster, off, kadence, now } = *question;
    let receipt = rollout.backups.first().ok_or_else(|| NoWayBack::NoBackup { because: because.to_owned() })?;
    let mut backup = with_cold_copy(rollout, receipt.backup.clone());
    let before = &rollout.plan.decision.preconditions;
    every_host(question, before)?;
    let servers = match &backup.method {
        BackupMethod::EtcdSnapshot { server } => {
            let servers = joining_order(question, before, server)?;
            if servers.first() != Some(server) {
                // The file lies on another node: the copy in the vault is sent to this one.
                backup.on_node = None;
            }
            servers
        }
        BackupMethod::SqliteOnline { server, .. } | BackupMethod::SqliteStopped { server } => {
            if off.contains(server) {
                return Err(NoWayBack::RestoredFirst(server.clone()));
            }
            vec![server.clone()]
        }
        BackupMethod::Command { .. } => {
            if cluster.datastore.as_ref().is_none_or(|d| d.restore.is_none()) {
                return Err(NoWayBack::NoRestoreCommand);
            }
            before.nodes.iter().filter(|(_, n)| n.role == Role::Server).map(|(name, _)| name.clone()).collect()
        }
    };
    let mut steps = Vec::new();
    let mut nodes: Vec<_> = before
        .nodes
        .iter()
        .filter(|(name, _)| !off.contains(name) && !rollout.plan.decision.excluded.contains(*name))
        .collect();
    nodes.sort_by_key(|(name, n)| {
        (n.role == Role::Server, servers.iter().position(|s| s == *name).unwrap_or(usize::MAX), (*name).clone())
    });
    for (name, was) in nodes {
        // A node may be down: what the rollout brought it to is known from the events.
        let host = inventory.node(name).and_then(|n| n.host.known()).and_then(|h| h.install.known());
        let previous = host.map_or_else(|| rollout.binary_of(name).unwrap_or(was.binary), |i| i.digest);
        let from = rollout.versions.get(name).unwrap_or(&was.version);
        steps.push(Step {
            node: name.clone(),
            role: was.role,
            wave: u32::try_from(steps.len()).unwrap_or(u32::MAX),
            from: from.clone(),
            to: was.version.clone(),
            artifact: was.binary,
            previous,
            drain: Drain::CordonOnly,
            undo: UndoClass::ForwardOnly,
            because: vec!["the restored datastore needs the version it was taken on".to_owned()],
        });
    }
    let point = steps.iter().position(|s| s.role == Role::Server);
    let expected = expected(&steps, cluster);
    let hop = Hop {
        to: backup.version.clone(),
        artifacts: BTreeMap::new(),
        backup: backup.method.clone(),
        point_of_no_return: point,
        steps,
    };
    Ok(Plan {
        decision: Decision {
            schema: Plan::SCHEMA,
            cluster: inventory.cluster.clone(),
            purpose: Purpose::Restore { of: rollout.id.clone(), backup: backup.clone() },
            target: backup.version,
            hops: vec![hop],
            // Planned now, by what the configuration says now; all else is as it was before the rollout.
            preconditions: Preconditions { policy: cluster.policy_digest(), ..before.clone() },
            manner: manner(cluster),
            outage: Some(DeclaredOutage::Restore),
            excluded: rollout.plan.decision.excluded.iter().chain(off).cloned().collect(),
        },
        seen: seen(rollout, inventory, kadence, vec![because.to_owned()], expected, now),
    })
}

/// Every host of the cluster can be stopped, or is declared off and does not answer. Found out before anything stops.
fn every_host(Question { inventory, off, .. }: &Question<'_>, before: &Preconditions) -> Result<(), NoWayBack> {
    if let Some(stranger) = off.iter().find(|name| !before.nodes.contains_key(*name)) {
        return Err(NoWayBack::NoSuchNode(stranger.clone()));
    }
    for name in before.nodes.keys() {
        match (inventory.node(name).map(|n| &n.host), off.contains(name)) {
            (Some(Fact::Known(_)), true) => return Err(NoWayBack::NotOff(name.clone())),
            (Some(Fact::Known(_)), false) | (_, true) => {}
            (Some(Fact::Unknown(why)), false) => {
                return Err(NoWayBack::NoHost { node: name.clone(), why: why.clone() });
            }
            (None, false) => {
                return Err(NoWayBack::NoHost {
                    node: name.clone(),
                    why: "it is not in the cluster any more".to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// The servers in the order in which they come back: the first one joins no other, and every other one joins one that
/// is back already (K3s refuses to reset a server that has `server:`, and a server that joins a member which was not
/// restored brings the old data back).
fn joining_order(
    Question { inventory, off, .. }: &Question<'_>,
    before: &Preconditions,
    snapshot_on: &NodeName,
) -> Result<Vec<NodeName>, NoWayBack> {
    let alive: Vec<&NodeName> = before
        .nodes
        .iter()
        .filter(|(name, n)| n.role == Role::Server && !off.contains(name))
        .map(|(name, _)| name)
        .collect();
    let join = |name: &NodeName| argument(inventory, name, "server").next();
    let first = alive
        .iter()
        .copied()
        .filter(|name| join(name).is_none())
        .max_by_key(|name| *name == snapshot_on)
        .ok_or(NoWayBack::NoFirstServer)?;
    let mut order = vec![first.clone()];
    let mut left: Vec<&NodeName> = alive.into_iter().filter(|name| *name != first).collect();
    while !left.is_empty() {
        let next = left.iter().position(|name| join(name).is_some_and(|url| leads_to(inventory, url, &order)));
        let Some(next) = next else {
            let node = left[0].clone();
            let why = match join(&node) {
                None => "it has no `server:`, so it would begin a cluster of its own".to_owned(),
                Some(url) => format!("its `server:` is {url}, which is none of {}", list(&order)),
            };
            return Err(NoWayBack::JoinsElsewhere { node, why });
        };
        order.push(left.remove(next).clone());
    }
    Ok(order)
}

/// Whether a registration address leads to one of these servers. A name that all servers carry in their certificates
/// (`tls-san`) leads to whichever of them serves, and only restored ones do.
fn leads_to(inventory: &Inventory, url: &str, servers: &[NodeName]) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let is = |name: &NodeName| {
        let node = inventory.node(name);
        name.as_str() == host
            || node.is_some_and(|n| n.address == host)
            || ["node-ip", "node-external-ip", "advertise-address"]
                .iter()
                .any(|key| argument(inventory, name, key).any(|v| v.split(',').any(|v| v.trim() == host)))
    };
    if inventory.servers().any(|n| is(&n.name)) {
        return servers.iter().any(is);
    }
    !host.is_empty()
        && servers
            .iter()
            .all(|name| argument(inventory, name, "tls-san").any(|v| v.split(',').any(|v| v.trim() == host)))
}

/// The values of an argument on a node.
fn argument<'a>(inventory: &'a Inventory, node: &NodeName, key: &'a str) -> impl Iterator<Item = &'a str> {
    let host = inventory.node(node).and_then(|n| n.host.known());
    let entries = host.and_then(|h| h.arguments.known()).map(|a| a.entries.as_slice()).unwrap_or_default();
    // A value that is not shown is there all the same.
    entries.iter().filter(move |a| a.key == key).map(|a| a.value.as_deref().unwrap_or_default())
}

fn list(names: &[NodeName]) -> String {
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

/// How long a restore takes, by restores of small clusters: all stopped and replaced, then the servers one after
/// another. The API is away from the first stop until the first server is back.
fn expected(steps: &[Step], cluster: &Cluster) -> Expected {
    let count = |role| i32::try_from(steps.iter().filter(|s| s.role == role).count()).unwrap_or(i32::MAX);
    let (per_server, per_agent) = (SignedDuration::from_secs(15), SignedDuration::from_secs(10));
    let stopped = SignedDuration::from_secs(30);
    let settle = cluster.update.settle;
    Expected {
        total: stopped + (per_server + settle) * count(Role::Server) + per_agent + settle,
        per_server,
        per_agent,
        reads_gap: stopped + per_server,
        writes_gap: stopped + per_server,
        basis: "typical figures of small clusters; a large datastore takes longer".to_owned(),
    }
}

/// The cold copy that was made at the stop reaches further than the backup before, so it is used first, if it was read.
fn with_cold_copy(rollout: &Rollout, mut backup: BackupRef) -> BackupRef {
    if let BackupMethod::SqliteOnline { server, .. } | BackupMethod::SqliteStopped { server } = &backup.method
        && let Some(copy) = rollout.cold_copies.get(server)
        && copy.reaches.known().is_some()
    {
        backup.on_node = Some(Box::new(copy.clone()));
    }
    backup
}

fn manner(cluster: &Cluster) -> Manner {
    Manner {
        settle: cluster.update.settle,
        ready_within: cluster.update.ready_within,
        drain_within: cluster.update.drain_within,
        agents_at_once: cluster.update.agents_at_once.max(1),
        until_servers: false,
        mixed_at_most: cluster.update.mixed_at_most,
    }
}

fn seen(
    rollout: &Rollout,
    inventory: &Inventory,
    kadence: &str,
    because: Vec<String>,
    expected: Expected,
    now: Timestamp,
) -> Seen {
    let mut addresses = rollout.plan.seen.addresses.clone();
    addresses.extend(planner::addresses(inventory));
    Seen { made: now, kadence: kadence.to_owned(), etcd_leader: None, because, expected, addresses }
}
