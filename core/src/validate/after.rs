//! After a hop, or after a way back: is every node where it should be? Read from the cluster, never from our own record.

use std::collections::{BTreeMap, BTreeSet};

use crate::apply::plan::Decision;
use crate::fact::Fact;
use crate::ident::{Digest, NodeName, RolloutId};
use crate::inventory::{Cordon, Datastore, EtcdMember, EtcdRole, Inventory, Node};
use crate::validate::finding::{Finding, Verdict};
use crate::version::Version;

/// What a node should run.
type Expected = BTreeMap<NodeName, (Version, Digest)>;

/// Judges the cluster after `hop`: every node of the hops so far on its version and binary, all others untouched.
pub fn truth(inventory: &Inventory, decision: &Decision, hop: usize, family: &str) -> Vec<Finding> {
    let mut expected = before(decision);
    for step in decision.hops.iter().take(hop + 1).flat_map(|h| &h.steps) {
        expected.insert(step.node.clone(), (step.to.clone(), step.artifact));
    }
    judge(inventory, decision, &expected, family)
}

/// Judges the cluster after everything was taken back: every node as it was when the plan was made.
pub fn unchanged(inventory: &Inventory, decision: &Decision, family: &str) -> Vec<Finding> {
    judge(inventory, decision, &before(decision), family)
}

fn before(decision: &Decision) -> Expected {
    decision.preconditions.nodes.iter().map(|(name, n)| (name.clone(), (n.version.clone(), n.binary))).collect()
}

fn judge(inventory: &Inventory, decision: &Decision, expected: &Expected, family: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, (version, binary)) in expected {
        match inventory.node(name) {
            None => {
                findings.push(finding(name.as_str(), Verdict::Block, "it is not in the cluster any more".to_owned()))
            }
            Some(node) => judge_node(node, version, binary, family, &mut findings),
        }
    }
    judge_members(inventory, decision, &mut findings);
    for contradiction in &inventory.contradictions {
        findings.push(finding("cluster", Verdict::Block, contradiction.clone()));
    }
    if findings.is_empty() {
        findings.push(finding("cluster", Verdict::Pass, "every node is where it should be, and healthy".to_owned()));
    }
    findings
}

fn judge_node(node: &Node, version: &Version, binary: &Digest, family: &str, findings: &mut Vec<Finding>) {
    let mut say = |verdict, what: String| findings.push(finding(node.name.as_str(), verdict, what));
    match &node.version {
        Fact::Known(is) if is == version => {}
        Fact::Known(is) => say(Verdict::Block, format!("{} runs {is}, it should run {version}", node.name)),
        Fact::Unknown(why) => say(Verdict::UnknownBlocks, format!("the version of {} is not known: {why}", node.name)),
    }
    match node.host.as_ref().and_then(|h| h.install.as_ref()) {
        Fact::Known(install) if install.digest == *binary => {}
        Fact::Known(install) => say(
            Verdict::Block,
            format!("{} has another binary installed ({}) than it should", node.name, install.digest.short(12)),
        ),
        Fact::Unknown(why) => {
            say(Verdict::UnknownBlocks, format!("the installed binary of {} is not known: {why}", node.name));
        }
    }
    match &node.ready {
        Fact::Known(true) => {}
        Fact::Known(false) => say(Verdict::Block, format!("{} is not Ready", node.name)),
        Fact::Unknown(why) => {
            say(Verdict::UnknownBlocks, format!("whether {} is Ready is not known: {why}", node.name))
        }
    }
    if let Cordon::Ours { mark } = node.cordon()
        && RolloutId::new(mark.rollout.as_str()).family() == family
    {
        say(Verdict::Block, format!("{} still has our cordon", node.name));
    }
    match &node.etcd {
        Fact::Known(EtcdRole::Learner) => say(Verdict::Block, format!("{} is an etcd learner, not a voter", node.name)),
        Fact::Known(EtcdRole::Voter) => match node.etcd_local() {
            Some(etcd) if etcd.healthy && etcd.has_leader => {}
            Some(_) => say(Verdict::Block, format!("etcd on {} is not healthy", node.name)),
            None => say(Verdict::UnknownBlocks, format!("the health of etcd on {} is not known", node.name)),
        },
        Fact::Known(EtcdRole::None) => {}
        Fact::Unknown(why) => {
            say(Verdict::UnknownBlocks, format!("the etcd role of {} is not known: {why}", node.name))
        }
    }
}

fn judge_members(inventory: &Inventory, decision: &Decision, findings: &mut Vec<Finding>) {
    let planned = &decision.preconditions.etcd_members;
    // A restore makes the membership anew, so its ids are others.
    let restored = matches!(decision.purpose, crate::apply::plan::Purpose::Restore { .. });
    match &inventory.datastore {
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) => {
            let learners: Vec<&EtcdMember> = members.iter().filter(|m| m.learner).collect();
            for learner in learners {
                findings.push(finding("cluster", Verdict::Block, format!("etcd member {} is a learner", learner.name)));
            }
            let same = if restored {
                members.len() == planned.len()
            } else {
                members.iter().map(|m| &m.id).collect::<BTreeSet<_>>() == planned.iter().collect::<BTreeSet<_>>()
            };
            if !same {
                findings.push(finding(
                    "cluster",
                    Verdict::Block,
                    "the etcd members are not those of before".to_owned(),
                ));
            }
        }
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Unknown(why) }) | Fact::Unknown(why) => {
            findings.push(finding("cluster", Verdict::UnknownBlocks, format!("the etcd members are not known: {why}")));
        }
        Fact::Known(Datastore::Sqlite | Datastore::External) => {}
    }
}

fn finding(about: &str, verdict: Verdict, what: String) -> Finding {
    Finding {
        code: "NODE-TRUTH".to_owned(),
        number: 9,
        verdict,
        about: about.to_owned(),
        what,
        facts: Vec::new(),
        why: "done is said only of what was proven".to_owned(),
        remedy: "look at what is named; kadence inspect shows it".to_owned(),
        waived: None,
    }
}
