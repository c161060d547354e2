//! May this step be taken now? The plan's preconditions and the safety of the moment, looked at again before each step.
//!
//! The answer is *done*, *as planned*, or a reason not to: a precondition that somebody else changed, a cluster that is
//! not healthy, or a fact that is missing. A plan that is stale never acts.

use std::collections::BTreeSet;

use crate::apply::action::{EtcdGlance, Glance, NodeGlance};
use crate::apply::plan::{DatastoreKind, Decision, DeclaredOutage, Preconditions, Purpose, Step};
use crate::event::HoldCause;
use crate::fact::Fact;
use crate::ident::{NodeName, RolloutId};
use crate::inventory::{Cordon, Role};
use crate::version::Version;

/// What a second look at the world says about a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The node is where the step would bring it.
    Done,
    AsPlanned,
    No(No),
}

/// Why a step may not be taken now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct No {
    pub cause: HoldCause,
    pub what: String,
    pub next: String,
}

/// Judges one step. `ours` are the nodes this rollout has in hand right now, which may be down by our own doing;
/// `reached` gives for each node the versions this rollout may have brought it to, beside the one it began with.
pub fn judge(
    decision: &Decision,
    step: &Step,
    glance: &Glance,
    ours: &BTreeSet<NodeName>,
    rollout: &RolloutId,
) -> Verdict {
    match judge_step(decision, step, glance, ours, rollout) {
        Ok(verdict) => verdict,
        Err(no) => Verdict::No(no),
    }
}

fn judge_step(
    decision: &Decision,
    step: &Step,
    glance: &Glance,
    ours: &BTreeSet<NodeName>,
    rollout: &RolloutId,
) -> Result<Verdict, No> {
    same_cluster(decision, glance)?;
    let now =
        glance.nodes.get(&step.node).ok_or_else(|| changed(format!("{} is not in the cluster any more", step.node)))?;
    let done = same_node(decision, step, now)?;
    foreign_cordon(step, now, rollout)?;
    nobody_else(decision, glance, rollout)?;
    every_other_node_healthy(decision, step, glance, ours)?;
    versions_in_order(step, glance)?;
    if step.role == Role::Server {
        may_stop(decision, step, glance)?;
    }
    Ok(if done { Verdict::Done } else { Verdict::AsPlanned })
}

/// What is not any more as the plan has it, in words; `None` if all is. So a stale plan is refused before anything is
/// touched, not at its first step.
pub fn changed_since(plan: &Preconditions, now: &Preconditions) -> Option<String> {
    if now.cluster_uid != plan.cluster_uid {
        return Some(format!("this is cluster {}, the plan is for {}", now.cluster_uid, plan.cluster_uid));
    }
    if now.datastore != plan.datastore {
        return Some("the datastore is another one".to_owned());
    }
    if now.etcd_members != plan.etcd_members {
        return Some(format!(
            "the etcd members are {} now, {} in the plan",
            list(&now.etcd_members),
            list(&plan.etcd_members)
        ));
    }
    if let Some(new) = now.nodes.keys().find(|name| !plan.nodes.contains_key(*name)) {
        return Some(format!("{new} has joined since"));
    }
    plan.nodes.iter().find_map(|(name, was)| {
        let Some(is) = now.nodes.get(name) else { return Some(format!("{name} is not there any more")) };
        let what = if is.version != was.version {
            format!("runs {} now, {} in the plan", is.version, was.version)
        } else if is.binary != was.binary {
            "has another binary than in the plan".to_owned()
        } else if is.arguments != was.arguments {
            "has another configuration of K3s than when the plan was made".to_owned()
        } else if is.uid != was.uid || is.machine_id != was.machine_id || is.arch != was.arch {
            "is another machine, or another Node object, than in the plan".to_owned()
        } else if is.role != was.role {
            format!("is {} now, {} in the plan", is.role, was.role)
        } else {
            return None;
        };
        Some(format!("{name} {what}"))
    })
}

/// May the previous binary of a node that failed come back now? Its restart must not take away what nobody else gives:
/// the node may be a healthy voter although its proof failed, and another server may have gone down meanwhile.
///
/// # Errors
/// Why not. A node that neither votes nor serves takes nothing away.
pub fn may_put_back(decision: &Decision, step: &Step, glance: &Glance) -> Result<(), No> {
    if step.role == Role::Agent {
        return Ok(());
    }
    let now =
        glance.nodes.get(&step.node).ok_or_else(|| changed(format!("{} is not in the cluster any more", step.node)))?;
    let votes = !matches!(&now.etcd, None | Some(Fact::Known(EtcdGlance { healthy: false, .. })));
    let serves = !matches!(&now.apiserver, None | Some(Fact::Known(false)));
    if votes || serves { may_stop(decision, step, glance) } else { Ok(()) }
}

fn same_cluster(decision: &Decision, glance: &Glance) -> Result<(), No> {
    let plan = &decision.preconditions;
    let uid = known(&glance.uid, "the cluster's uid")?;
    if *uid != plan.cluster_uid {
        return Err(changed(format!(
            "this is another cluster: its uid is {uid}, the plan is for {}",
            plan.cluster_uid
        )));
    }
    if plan.datastore == DatastoreKind::EmbeddedEtcd {
        let members = known(&glance.etcd_members, "the list of etcd members")?;
        if *members != plan.etcd_members {
            return Err(changed(format!(
                "the etcd members changed: {} now, {} in the plan",
                list(members),
                list(&plan.etcd_members)
            )));
        }
    }
    let servers = |role: Role, glance: &Glance| -> BTreeSet<NodeName> {
        glance.nodes.iter().filter(|(_, n)| n.role == role).map(|(name, _)| name.clone()).collect()
    };
    let planned: BTreeSet<NodeName> =
        plan.nodes.iter().filter(|(_, n)| n.role == Role::Server).map(|(name, _)| name.clone()).collect();
    if servers(Role::Server, glance) != planned {
        return Err(changed("the set of servers is not the one that was planned for".to_owned()));
    }
    Ok(())
}

/// Whether the node already is where the step brings it; an error if it is not the node that was planned for.
fn same_node(decision: &Decision, step: &Step, now: &NodeGlance) -> Result<bool, No> {
    let node = &step.node;
    let Some(plan) = decision.preconditions.nodes.get(node) else {
        return Err(changed(format!("{node} is not in the plan's preconditions")));
    };
    if now.uid != plan.uid {
        return Err(changed(format!("{node} is another Node object than the one that was planned for")));
    }
    if now.role != plan.role {
        return Err(changed(format!("{node} is {} now, the plan has it as {}", now.role, plan.role)));
    }
    let machine = known(&now.machine_id, &format!("the machine id of {node}"))?;
    if *machine != plan.machine_id {
        return Err(changed(format!("SSH to {node} reaches another machine than the one that was planned for")));
    }
    same_boot(node, now)?;
    let arguments = known(&now.arguments, &format!("the arguments of {node}"))?;
    if *arguments != plan.arguments {
        return Err(changed(format!("the configuration of K3s on {node} was changed since the plan was made")));
    }
    let binary = known(&now.binary, &format!("the installed binary of {node}"))?;
    let version = known(&now.version, &format!("the version of {node}"))?;
    if *binary == step.artifact {
        return Ok(*version == step.to);
    }
    if *binary != step.previous || *version != step.from {
        return Err(changed(format!(
            "{node} has {version} (binary {}), planned was {} (binary {})",
            binary.short(12),
            step.from,
            step.previous.short(12)
        )));
    }
    Ok(false)
}

/// A mark of another rollout on whatever node says that another Kadence is at work, or left in the middle of it.
fn nobody_else(decision: &Decision, glance: &Glance, rollout: &RolloutId) -> Result<(), No> {
    let others = glance.nodes.iter().filter(|(name, _)| !decision.excluded.contains(*name));
    for (name, node) in others {
        if let Cordon::Ours { mark } = &node.cordon
            && RolloutId::new(mark.rollout.as_str()).family() != rollout.family()
        {
            return Err(changed(format!("{name} carries the mark of another rollout ({})", mark.rollout)));
        }
    }
    Ok(())
}

/// Machines that were cloned share their id, and never a boot. A Node that is not Ready may speak of the boot before:
/// its kubelet has not reported since.
fn same_boot(node: &NodeName, now: &NodeGlance) -> Result<(), No> {
    let Some(reported) = &now.node_boot else { return Ok(()) };
    if !now.ready.is(&true) || now.host_boot.as_ref() == Some(reported) {
        return Ok(());
    }
    Err(No {
        cause: HoldCause::Unknown,
        what: format!(
            "the host that SSH to {node} reaches is in boot {}, {node}'s kubelet reported boot {reported}: it is another \
             machine, or its kubelet has not reported since it booted",
            now.host_boot.as_deref().unwrap_or("(not told)")
        ),
        next: format!("see that the address of {node} is right (kadence.yaml, nodes), then resume"),
    })
}

fn foreign_cordon(step: &Step, now: &NodeGlance, rollout: &RolloutId) -> Result<(), No> {
    match &now.cordon {
        Cordon::None => Ok(()),
        Cordon::Ours { mark } if RolloutId::new(mark.rollout.as_str()).family() == rollout.family() => Ok(()),
        Cordon::Ours { mark } => {
            Err(changed(format!("{} carries the mark of another rollout ({})", step.node, mark.rollout)))
        }
        // Somebody wants no pods there. Restarting K3s would not break that, but they may be at work on it.
        Cordon::Foreign => Err(No {
            cause: HoldCause::Changed,
            what: format!("{} was cordoned by somebody else", step.node),
            next: format!("find out who works on it (kubectl describe node {}), uncordon it, then resume", step.node),
        }),
    }
}

/// A red cluster is a reason to stop before the next node, whoever made it red.
fn every_other_node_healthy(
    decision: &Decision,
    step: &Step,
    glance: &Glance,
    ours: &BTreeSet<NodeName>,
) -> Result<(), No> {
    for (name, node) in &glance.nodes {
        if ours.contains(name) || decision.excluded.contains(name) || still_to_take_back(decision, step, name) {
            continue;
        }
        if !*known(&node.ready, &format!("whether {name} is Ready"))? {
            return Err(not_healthy(format!("{name} is not Ready"), name));
        }
        let single = decision.outage == Some(DeclaredOutage::SingleServer);
        if let Some(apiserver) = &node.apiserver
            && !(single && *name == step.node)
            && !*known(apiserver, &format!("whether the API server of {name} is ready"))?
        {
            return Err(not_healthy(format!("the API server of {name} is not ready"), name));
        }
        if let Some(etcd) = &node.etcd {
            let etcd = known(etcd, &format!("the health of etcd on {name}"))?;
            if etcd.learner {
                return Err(not_healthy(format!("{name} has joined etcd and is still catching up"), name));
            }
            if !etcd.healthy {
                return Err(not_healthy(format!("etcd on {name} is not healthy"), name));
            }
        }
    }
    Ok(())
}

/// A way back is there for nodes that are not well: those it has not come to yet are no reason to stop. Whether this
/// one may be stopped is judged all the same.
fn still_to_take_back(decision: &Decision, step: &Step, node: &NodeName) -> bool {
    matches!(decision.purpose, Purpose::Rollback { .. })
        && decision.hops.iter().flat_map(|h| &h.steps).any(|s| s.node == *node && s.wave >= step.wave)
}

/// Up: servers before agents. Down: agents before servers. So no agent ever runs newer than any server
/// (Kubernetes version skew policy).
fn versions_in_order(step: &Step, glance: &Glance) -> Result<(), No> {
    let of = |role: Role| -> Result<Vec<(&NodeName, &Version)>, No> {
        glance
            .nodes
            .iter()
            .filter(|(_, n)| n.role == role)
            .map(|(name, n)| Ok((name, known(&n.version, &format!("the version of {name}"))?)))
            .collect()
    };
    let offender = match step.role {
        Role::Agent => of(Role::Server)?.into_iter().find(|(_, v)| **v < step.to),
        Role::Server => of(Role::Agent)?.into_iter().find(|(_, v)| **v > step.to),
    };
    if let Some((name, version)) = offender {
        let what = format!(
            "{} would run {} beside {name} on {version}: no agent may be newer than any server",
            step.node, step.to
        );
        return Err(No { cause: HoldCause::Changed, what, next: "make a new plan".to_owned() });
    }
    // An API server may be one minor from the others at most.
    for (name, version) in of(Role::Server)? {
        if step.role == Role::Server && step.to.minor().above(version.minor()).is_none_or(|d| d.abs() > 1) {
            return Err(No {
                cause: HoldCause::Changed,
                what: format!(
                    "{} would run {} beside server {name} on {version}: more than one minor apart",
                    step.node, step.to
                ),
                next: "make a new plan".to_owned(),
            });
        }
    }
    Ok(())
}

/// May this server be stopped while all others stay as they are? A quorum is more than half of the members, healthy or
/// not; a member counts as healthy only if it was seen to be.
fn may_stop(decision: &Decision, step: &Step, glance: &Glance) -> Result<(), No> {
    let node = &step.node;
    let others_serve =
        glance.nodes.iter().any(|(name, n)| name != node && matches!(n.apiserver, Some(Fact::Known(true))));
    let alone = decision.outage == Some(DeclaredOutage::SingleServer);
    if !others_serve && !alone {
        return Err(No {
            cause: HoldCause::NeedsConsent,
            what: format!("no other server would answer while {node} restarts: an outage that nobody consented to"),
            next: "start the other servers, or make a new plan".to_owned(),
        });
    }
    if decision.preconditions.datastore != DatastoreKind::EmbeddedEtcd || glance.nodes[node].etcd.is_none() {
        return Ok(());
    }
    let members = known(&glance.etcd_members, "the list of etcd members")?.len();
    let healthy_without_it = glance
        .nodes
        .iter()
        .filter(|(name, n)| *name != node && matches!(&n.etcd, Some(Fact::Known(e)) if e.healthy && !e.learner))
        .count();
    let needed = members / 2 + 1;
    let consented = match decision.outage {
        Some(DeclaredOutage::SingleServer) => members == 1,
        Some(DeclaredOutage::TwoMembers) => members == 2 && healthy_without_it == 1,
        Some(DeclaredOutage::Restore) | None => false,
    };
    if healthy_without_it < needed && !consented {
        return Err(No {
            cause: HoldCause::ClusterNotHealthy,
            what: format!(
                "without {node} {healthy_without_it} of the {needed} voters that etcd needs would be healthy"
            ),
            next: "bring the other members back, then resume".to_owned(),
        });
    }
    Ok(())
}

fn known<'a, T>(fact: &'a Fact<T>, what: &str) -> Result<&'a T, No> {
    match fact {
        Fact::Known(value) => Ok(value),
        Fact::Unknown(why) => Err(No {
            cause: HoldCause::Unknown,
            what: format!("{what} is not known: {why}"),
            next: "make it reachable again, then resume".to_owned(),
        }),
    }
}

fn changed(what: String) -> No {
    No { cause: HoldCause::Changed, what, next: "look at what was changed and by whom; make a new plan".to_owned() }
}

fn not_healthy(what: String, node: &NodeName) -> No {
    No {
        cause: HoldCause::ClusterNotHealthy,
        what,
        next: format!("look at {node} (systemctl status, journalctl), bring it back, then resume"),
    }
}

fn list(ids: &BTreeSet<String>) -> String {
    ids.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

impl Decision {
    /// Whether the way goes to lower versions.
    pub fn goes_back(&self) -> bool {
        !matches!(self.purpose, Purpose::Update)
    }
}
