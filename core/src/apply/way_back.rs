//! The way back from a rollout: by binaries where every step it did can be undone so, else a restore.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::apply::plan::{
    BackupMethod, BackupRef, Decision, DeclaredOutage, Drain, Hop, Manner, Plan, Preconditions, Purpose, Seen, Step,
    UndoClass,
};
use crate::apply::planner::{self, NoPlan};
use crate::apply::rollout::Rollout;
use crate::config::Cluster;
use crate::ident::NodeName;
use crate::inventory::{Inventory, Role};

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
    #[error(transparent)]
    NoPlan(#[from] NoPlan),
}

/// Plans the way back to where the cluster was before `rollout`. `inventory` is what runs now; for a restore its nodes
/// may be down, so only the hosts' own facts are needed.
///
/// # Errors
/// Why there is none.
pub fn plan(
    rollout: &Rollout,
    inventory: &Inventory,
    cluster: &Cluster,
    kadence: &str,
    now: Timestamp,
) -> Result<Plan, NoWayBack> {
    if rollout.versions.is_empty() {
        return Err(NoWayBack::NothingChanged);
    }
    let done: Vec<&Step> = rollout
        .plan
        .decision
        .hops
        .iter()
        .take(rollout.hop + 1)
        .flat_map(|h| &h.steps)
        .filter(|s| rollout.versions.contains_key(&s.node))
        .filter(|s| rollout.versions[&s.node] >= s.to)
        .collect();
    let beyond = done.iter().find(|s| s.undo != UndoClass::Binary);
    match beyond {
        None => binaries(rollout, inventory, cluster, kadence, now),
        Some(step) => {
            let because = format!("{} went to {} with undo class {}", step.node, step.to, step.undo);
            restore(rollout, inventory, cluster, kadence, &because, now)
        }
    }
}

fn binaries(
    rollout: &Rollout,
    inventory: &Inventory,
    cluster: &Cluster,
    kadence: &str,
    now: Timestamp,
) -> Result<Plan, NoWayBack> {
    let preconditions = planner::preconditions(inventory, cluster)?;
    let before = &rollout.plan.decision.preconditions.nodes;
    let mut steps = Vec::new();
    // Down: agents before servers, so that no agent is ever newer than a server. The leader goes last again.
    let leader = inventory.servers().find(|n| n.etcd_local().is_some_and(|e| e.leader)).map(|n| &n.name);
    let mut nodes: Vec<&NodeName> = rollout.versions.keys().collect();
    nodes.sort_by_key(|name| {
        let server = before.get(*name).is_some_and(|n| n.role == Role::Server);
        (server, Some(*name) == leader, *name)
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
    let touches_servers = steps.iter().any(|s| s.role == Role::Server);
    let hop = Hop {
        to: target.clone(),
        artifacts: BTreeMap::new(),
        backup: planner::backup(inventory, cluster)?,
        point_of_no_return: None,
        steps,
    };
    Ok(Plan {
        decision: Decision {
            schema: Plan::SCHEMA,
            cluster: inventory.cluster.clone(),
            purpose: Purpose::Rollback { of: rollout.id.clone() },
            target,
            outage: if touches_servers { rollout.plan.decision.outage } else { None },
            hops: vec![hop],
            preconditions,
            manner: manner(cluster),
            excluded: BTreeSet::new(),
        },
        seen: seen(
            rollout,
            inventory,
            kadence,
            vec!["every step of the rollout can be undone by its binary".to_owned()],
            now,
        ),
    })
}

fn restore(
    rollout: &Rollout,
    inventory: &Inventory,
    cluster: &Cluster,
    kadence: &str,
    because: &str,
    now: Timestamp,
) -> Result<Plan, NoWayBack> {
    let receipt = rollout.backups.first().ok_or_else(|| NoWayBack::NoBackup { because: because.to_owned() })?;
    let backup = with_cold_copy(rollout, receipt.backup.clone());
    let before = &rollout.plan.decision.preconditions;
    let mut steps = Vec::new();
    let first = match &backup.method {
        BackupMethod::EtcdSnapshot { server }
        | BackupMethod::SqliteOnline { server, .. }
        | BackupMethod::SqliteStopped { server } => Some(server),
        BackupMethod::Command { .. } => None,
    };
    let mut nodes: Vec<_> = before.nodes.iter().collect();
    nodes.sort_by_key(|(name, n)| (n.role == Role::Server, Some(*name) != first, (*name).clone()));
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
            excluded: BTreeSet::new(),
        },
        seen: seen(rollout, inventory, kadence, vec![because.to_owned()], now),
    })
}

/// The cold copy that was made at the stop reaches further than the backup before, so it is used first.
fn with_cold_copy(rollout: &Rollout, mut backup: BackupRef) -> BackupRef {
    if let BackupMethod::SqliteOnline { server, .. } | BackupMethod::SqliteStopped { server } = &backup.method
        && let Some(copy) = rollout.cold_copies.get(server)
    {
        backup.on_node = Some(copy.clone());
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

fn seen(rollout: &Rollout, inventory: &Inventory, kadence: &str, because: Vec<String>, now: Timestamp) -> Seen {
    let mut addresses = rollout.plan.seen.addresses.clone();
    addresses.extend(planner::addresses(inventory));
    Seen {
        made: now,
        kadence: kadence.to_owned(),
        etcd_leader: None,
        because,
        expected: rollout.plan.seen.expected.clone(),
        addresses,
    }
}
