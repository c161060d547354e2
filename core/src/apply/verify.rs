//! Looks a plan over before it is kept and before it runs. Shares nothing with the planner but the plan's words: a fault
//! of the planner must not be invisible to its judge.

use std::collections::BTreeMap;

use crate::apply::plan::{DatastoreKind, Hop, Plan, Purpose, Step, UndoClass};
use crate::ident::{Digest, NodeName};
use crate::inventory::Role;
use crate::version::Version;

/// Every rule that the plan breaks, in words. Empty: it may run.
pub fn faults(plan: &Plan) -> Vec<String> {
    let mut faults = Vec::new();
    let mut walk = Walk::new(plan);
    for (i, hop) in plan.decision.hops.iter().enumerate() {
        let mut say = |fault: String| faults.push(format!("hop {}: {fault}", i + 1));
        shape(plan, hop, &mut say);
        match plan.decision.purpose {
            Purpose::Update => walk.forward(hop, &mut say),
            Purpose::Rollback { .. } => walk.back(hop, &mut say),
            // Everything is stopped: no order between versions can be broken.
            Purpose::Restore { .. } => {}
        }
    }
    outage(plan, &mut faults);
    if plan.decision.schema > Plan::SCHEMA {
        faults.push(format!("it has shape {}, which a newer Kadence wrote", plan.decision.schema));
    }
    faults
}

/// What a hop must be, whichever way it goes.
fn shape(plan: &Plan, hop: &Hop, say: &mut dyn FnMut(String)) {
    let nodes = &plan.decision.preconditions.nodes;
    if hop.steps.is_empty() {
        say("it has no steps".to_owned());
    }
    for (i, step) in hop.steps.iter().enumerate() {
        let Some(node) = nodes.get(&step.node) else {
            say(format!("{} is not in the preconditions", step.node));
            continue;
        };
        if node.role != step.role {
            say(format!("{} is {} in the preconditions and {} in the step", step.node, node.role, step.role));
        }
        if hop.steps[..i].iter().any(|s| s.node == step.node) {
            say(format!("{} comes twice", step.node));
        }
        if plan.decision.excluded.contains(&step.node) {
            say(format!("{} is excluded and has a step", step.node));
        }
        if plan.decision.purpose == Purpose::Update && hop.artifacts.get(&node.arch) != Some(&step.artifact) {
            say(format!("{} gets another binary than the hop has for {}", step.node, node.arch));
        }
    }
    if hop.steps.windows(2).any(|pair| pair[1].wave < pair[0].wave) {
        say("its waves are not in order".to_owned());
    }
    let mut waves: BTreeMap<u32, Vec<&Step>> = BTreeMap::new();
    for step in &hop.steps {
        waves.entry(step.wave).or_default().push(step);
    }
    let mut first_agents = true;
    for steps in waves.values() {
        let servers = steps.iter().filter(|s| s.role == Role::Server).count();
        if servers > 1 || (servers == 1 && steps.len() > 1) {
            say("a server does not go alone".to_owned());
        }
        if servers == 0 {
            let most = if first_agents { 1 } else { plan.decision.manner.agents_at_once.max(1) };
            if u32::try_from(steps.len()).unwrap_or(u32::MAX) > most {
                say(format!("{} agents at once, at most {most} are allowed", steps.len()));
            }
            first_agents = false;
        }
    }
    let marked = hop.steps.iter().position(|s| s.role == Role::Server && s.undo != UndoClass::Binary);
    if marked != hop.point_of_no_return {
        say("its point of no return is not the first server step that a binary cannot undo".to_owned());
    }
}

/// The versions and binaries of all nodes while the plan is walked through.
struct Walk {
    at: BTreeMap<NodeName, (Role, Version, Digest)>,
}

impl Walk {
    fn new(plan: &Plan) -> Self {
        let at = plan
            .decision
            .preconditions
            .nodes
            .iter()
            .map(|(name, n)| (name.clone(), (n.role, n.version.clone(), n.binary)))
            .collect();
        Self { at }
    }

    fn forward(&mut self, hop: &Hop, say: &mut dyn FnMut(String)) {
        for step in &hop.steps {
            if step.to <= step.from {
                say(format!("{} would go from {} to {}, which is not up", step.node, step.from, step.to));
            }
            if step.to.minor().above(step.from.minor()).is_none_or(|d| d > 1) {
                say(format!("{} would skip a minor from {} to {}", step.node, step.from, step.to));
            }
            self.step(step, say);
        }
    }

    fn back(&mut self, hop: &Hop, say: &mut dyn FnMut(String)) {
        for step in &hop.steps {
            // A node that never got as far as to report the new version has only its binary taken back.
            if step.to > step.from || (step.to == step.from && step.artifact == step.previous) {
                say(format!("{} would go from {} to {}, which is not back", step.node, step.from, step.to));
            }
            if step.undo != UndoClass::Binary {
                say(format!("{} cannot go back by its binary", step.node));
            }
            self.step(step, say);
        }
    }

    fn step(&mut self, step: &Step, say: &mut dyn FnMut(String)) {
        match self.at.get(&step.node) {
            Some((_, version, binary)) if *version == step.from && *binary == step.previous => {}
            Some((_, version, _)) => say(format!(
                "{} would begin with {}, and it has {version} or another binary there",
                step.node, step.from
            )),
            None => return,
        }
        self.at.insert(step.node.clone(), (step.role, step.to.clone(), step.artifact));
        let versions = |role: Role| self.at.values().filter(move |(r, ..)| *r == role).map(|(_, v, _)| v);
        let (oldest, newest) = (versions(Role::Server).min(), versions(Role::Server).max());
        if let (Some(oldest), Some(agent)) = (oldest, versions(Role::Agent).max())
            && agent > oldest
        {
            say(format!("after {} an agent would run {agent} beside a server on {oldest}", step.node));
        }
        if let (Some(oldest), Some(newest)) = (oldest, newest)
            && newest.minor().above(oldest.minor()).is_none_or(|d| d > 1)
        {
            say(format!("after {} servers would run {oldest} and {newest}", step.node));
        }
    }
}

fn outage(plan: &Plan, faults: &mut Vec<String>) {
    let preconditions = &plan.decision.preconditions;
    let servers = preconditions.nodes.values().filter(|n| n.role == Role::Server).count();
    let touches = plan.decision.hops.iter().flat_map(|h| &h.steps).any(|s| s.role == Role::Server);
    let unavoidable = servers == 1
        || (preconditions.datastore == DatastoreKind::EmbeddedEtcd && preconditions.etcd_members.len() == 2)
        || matches!(plan.decision.purpose, Purpose::Restore { .. });
    let stopped = plan.decision.hops.iter().any(|h| h.backup.stops_k3s());
    if (touches && unavoidable || stopped) && plan.decision.outage.is_none() {
        faults.push("it means an outage and does not declare it".to_owned());
    }
    if preconditions.datastore == DatastoreKind::EmbeddedEtcd && preconditions.etcd_members.is_empty() {
        faults.push("the etcd members are not in the preconditions".to_owned());
    }
}
