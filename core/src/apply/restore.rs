//! The order of a restore: what a rollout does that brings the datastore back from a backup.
//!
//! Every K3s of the cluster is stopped and proven stopped first: old members that still run are a quorum with the same
//! CA, and would win over the restored one. Then the backup's version is put on all nodes, the datastore is restored
//! on one server, and the others join it one at a time, each a voter before the next.

use crate::apply::action::{Action, Swap};
use crate::apply::plan::{BackupMethod, Drain, Manner, Plan, Purpose, Step};
use crate::ident::NodeName;
use crate::inventory::Role;
use crate::version::Version;

/// The steps of nodes that are there.
fn steps<'a>(plan: &'a Plan, off: &[NodeName]) -> Vec<&'a Step> {
    plan.decision.hops.iter().flat_map(|h| &h.steps).filter(|s| !off.contains(&s.node)).collect()
}

fn start(step: &Step) -> Action {
    Action::Start { node: step.node.clone(), role: step.role }
}

fn prove(step: &Step, version: &Version, manner: &Manner) -> Action {
    Action::Prove {
        node: step.node.clone(),
        role: step.role,
        version: version.clone(),
        settle: manner.settle,
        within: manner.ready_within,
    }
}

fn uncordon(step: &&Step) -> Action {
    Action::Uncordon { node: step.node.clone() }
}

/// What starts everything again that a restore has stopped before it replaced anything.
pub fn give_up(plan: &Plan, off: &[NodeName]) -> Vec<Vec<Action>> {
    let steps = steps(plan, off);
    let mut groups = Vec::new();
    for role in [Role::Server, Role::Agent] {
        let of = || steps.iter().copied().filter(|s| s.role == role);
        groups.push(of().map(start).collect());
        groups.push(of().map(|s| prove(s, &s.from, &plan.decision.manner)).collect::<Vec<_>>());
    }
    groups.push(steps.iter().map(uncordon).collect());
    groups.retain(|g| !g.is_empty());
    groups
}

/// The actions in groups: a group begins when the one before is done, the actions of one may run together. Empty if
/// the plan is no restore.
///
/// Nodes in `off` were declared powered off by a person: nothing is asked of them, and they are not brought back.
pub fn sequence(plan: &Plan, off: &[NodeName]) -> Vec<Vec<Action>> {
    let Purpose::Restore { backup, .. } = &plan.decision.purpose else { return Vec::new() };
    let steps = steps(plan, off);
    let of = |role: Role| steps.iter().copied().filter(move |s| s.role == role);
    // The plan has the servers in the order in which they come back.
    let first = of(Role::Server).next().map(|s| &s.node);
    let stop = |s: &Step| Action::Stop { node: s.node.clone(), role: s.role };
    let prove = |s: &Step| prove(s, &s.to, &plan.decision.manner);
    let place = |s: &Step| Action::Place {
        node: s.node.clone(),
        swap: Swap {
            role: s.role,
            to: s.to.clone(),
            artifact: s.artifact,
            expect: s.previous,
            drain: Drain::CordonOnly,
            cold_copy: false,
            back: true,
        },
    };

    let mut groups = vec![
        of(Role::Agent).map(stop).collect(),
        of(Role::Server).map(stop).collect(),
        steps.iter().copied().map(place).collect::<Vec<_>>(),
    ];
    match (&backup.method, first) {
        (BackupMethod::Command { .. }, _) | (_, None) => {
            groups.push(vec![Action::RestoreCommand { command: String::new() }]);
            for server in of(Role::Server) {
                groups.push(vec![start(server)]);
                groups.push(vec![prove(server)]);
            }
        }
        (_, Some(first)) => {
            groups.push(vec![Action::Reset { node: first.clone(), backup: backup.clone() }]);
            for server in of(Role::Server).filter(|s| s.node == *first) {
                groups.push(vec![start(server)]);
                groups.push(vec![prove(server)]);
            }
            for server in of(Role::Server).filter(|s| s.node != *first) {
                groups.push(vec![Action::SetAside { node: server.node.clone() }]);
                groups.push(vec![start(server)]);
                groups.push(vec![prove(server)]);
            }
        }
    }
    groups.push(of(Role::Agent).map(start).collect());
    groups.push(of(Role::Agent).map(prove).collect());
    // Their watches are ahead of the data that came back.
    groups.push(vec![Action::RestartControllers]);
    // Marks and cordons in the restored data are those of the time of the snapshot: ours are lifted.
    groups.push(steps.iter().map(uncordon).collect());
    groups.push(vec![Action::Validate { hop: 0 }]);
    groups.retain(|g| !g.is_empty());
    groups
}
