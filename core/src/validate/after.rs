//! After a hop, or after a way back: is every node where it should be? Read from the cluster, never from our own record.

use std::collections::{BTreeMap, BTreeSet};

use crate::apply::action::Glance;
use crate::apply::plan::{Decision, Purpose};
use crate::fact::Fact;
use crate::ident::{Digest, NodeName, RolloutId};
use crate::inventory::{Cordon, Datastore, EtcdRole, Inventory, Node};
use crate::validate::finding::{Finding, Verdict};
use crate::version::Version;

/// What a node should run.
type Expected = BTreeMap<NodeName, (Version, Digest)>;

/// Judges the cluster after `hop`: every node of the hops so far on its version and binary, all others untouched.
///
/// Each thing that is not so is a finding that blocks, and so is each that is not known; if there is none, one finding
/// passes. `family` is that of the rollout ([`RolloutId::family`]): no cordon with its mark may be left.
pub fn truth(inventory: &Inventory, decision: &Decision, hop: usize, family: &str) -> Vec<Finding> {
    let mut expected = before(decision);
    for step in decision.hops.iter().take(hop + 1).flat_map(|h| &h.steps) {
        expected.insert(step.node.clone(), (step.to.clone(), step.artifact));
    }
    judge(inventory, decision, &expected, family)
}

/// Judges whether every server's own API answers: a load balancer or the other servers hide that one does not.
pub fn serving(glance: &Glance) -> Vec<Finding> {
    let servers = glance.nodes.iter().filter_map(|(name, n)| Some((name, n.apiserver.as_ref()?)));
    servers
        .filter_map(|(name, apiserver)| match apiserver {
            Fact::Known(true) => None,
            Fact::Known(false) => Some(
                finding(name, Verdict::Block, format!("the API server of {name} is not ready"))
                    .fact(format!("GET /readyz?verbose at the address of {name}"))
                    .remedy(format!("read why: journalctl --unit k3s on {name}")),
            ),
            Fact::Unknown(why) => Some(unknown(name, &format!("whether the API server of {name} is ready"), why)),
        })
        .map(|draft| draft.0)
        .collect()
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
        // What was left out on purpose may be down: only what is seen of it counts.
        let left_out = decision.excluded.contains(name);
        match inventory.node(name) {
            None if left_out => {
                findings.push(finding(name, Verdict::Warn, format!("{name} is not in the cluster any more")));
            }
            None => findings.push(
                finding(name, Verdict::Block, format!("{name} is not in the cluster any more"))
                    .fact("kubectl get nodes")
                    .remedy("find out who removed it, and whether it still runs"),
            ),
            Some(node) => {
                let found = of_node(node, version, binary, family);
                findings.extend(found.into_iter().map(|f| if left_out { f.softened() } else { f }));
            }
        }
    }
    findings.extend(strangers(inventory, expected));
    findings.extend(members(inventory, decision));
    findings.extend(inventory.contradictions.iter().map(|what| {
        finding("cluster", Verdict::Block, what.clone())
            .fact(format!("kadence inspect {}: contradictions", inventory.cluster))
            .remedy("find out which of the two is right, and correct the other")
    }));
    if findings.is_empty() {
        let what = format!("every node is where it should be, and healthy: {}", versions(expected));
        findings.push(finding("cluster", Verdict::Pass, what));
    }
    findings.into_iter().map(|f| f.0).collect()
}

fn of_node(node: &Node, version: &Version, binary: &Digest, family: &str) -> Vec<Draft> {
    let name = &node.name;
    let mut findings = Vec::new();
    match &node.version {
        Fact::Known(is) if is == version => {}
        Fact::Known(is) => findings.push(
            finding(name, Verdict::Block, format!("{name} runs {is}, it should run {version}"))
                .fact(format!("kubectl get node {name}: {is}"))
                .remedy("look why its K3s was not restarted, or who else changed it"),
        ),
        Fact::Unknown(why) => findings.push(unknown(name, &format!("the version that {name} runs"), why)),
    }
    match node.host.as_ref().and_then(|h| h.install.as_ref()) {
        // A Node stays Ready for about 40 s after its K3s died: only the unit knows at once.
        Fact::Known(install) if install.unit.active != "active" => findings.push(
            finding(
                name,
                Verdict::Block,
                format!("{} on {name} is {}, not active", install.unit.name, install.unit.active),
            )
            .fact(format!("on {name}, systemctl status {}: {}", install.unit.name, install.unit.sub))
            .remedy(format!("read why: journalctl --unit {} on {name}", install.unit.name)),
        ),
        Fact::Known(install) if install.digest == *binary => {}
        Fact::Known(install) => findings.push(
            finding(name, Verdict::Block, format!("{name} has another binary installed than it should"))
                .fact(format!("on {name}, sha256sum {}: {}", install.binary, install.digest.short(12)))
                .fact(format!("the plan: {}", binary.short(12)))
                .remedy("find out who put it there: it starts at the next restart"),
        ),
        Fact::Unknown(why) => findings.push(unknown(name, &format!("the installed binary of {name}"), &why)),
    }
    match &node.ready {
        Fact::Known(true) => {}
        Fact::Known(false) => findings.push(
            finding(name, Verdict::Block, format!("{name} is not Ready"))
                .fact(format!("kubectl get node {name}"))
                .remedy(format!(
                    "read why: kubectl describe node {name}, and on it journalctl --unit {}",
                    node.role.unit()
                )),
        ),
        Fact::Unknown(why) => findings.push(unknown(name, &format!("whether {name} is Ready"), why)),
    }
    if let Cordon::Ours { mark } = node.cordon()
        && RolloutId::new(mark.rollout.as_str()).family() == family
    {
        findings.push(
            finding(name, Verdict::Block, format!("{name} still has our cordon"))
                .fact(format!("kubectl get node {name}: SchedulingDisabled, with the mark of {}", mark.rollout))
                .remedy("kadence resume or kadence abort lifts it once the node is healthy"),
        );
    }
    findings.extend(etcd(node));
    findings
}

fn etcd(node: &Node) -> Option<Draft> {
    let name = &node.name;
    let health = format!("on {name}, curl http://127.0.0.1:2381/health and /metrics");
    let sick = |what: String| {
        let remedy = format!("give it a minute; then read why: journalctl --unit {} on {name}", node.role.unit());
        Some(finding(name, Verdict::Block, what).fact(health.clone()).remedy(remedy))
    };
    match &node.etcd {
        Fact::Known(EtcdRole::None) => None,
        Fact::Known(EtcdRole::Learner) => sick(format!("{name} is an etcd learner, not a voter")),
        Fact::Known(EtcdRole::Voter) => match node.etcd_local() {
            Some(etcd) if etcd.healthy && etcd.has_leader => None,
            Some(_) => sick(format!("etcd on {name} is not healthy")),
            None => Some(unknown(name, &format!("the health of etcd on {name}"), "it did not answer")),
        },
        Fact::Unknown(why) => Some(unknown(name, &format!("the etcd role of {name}"), why)),
    }
}

/// Nodes that joined meanwhile: not ours to judge, but versions are mixed where they run another one.
fn strangers(inventory: &Inventory, expected: &Expected) -> Vec<Draft> {
    let runs: BTreeSet<&Version> = expected.values().map(|(version, _)| version).collect();
    let new = inventory.nodes.iter().filter(|n| !expected.contains_key(&n.name));
    new.filter(|n| n.version.known().is_none_or(|v| !runs.contains(v)))
        .map(|n| {
            let runs = n.version.known().map_or("an unknown version".to_owned(), ToString::to_string);
            finding(&n.name, Verdict::Warn, format!("{} joined meanwhile and runs {runs}", n.name))
                .fact(format!("kubectl get node {}", n.name))
                .remedy("plan again: it is updated like the others")
        })
        .collect()
}

fn members(inventory: &Inventory, decision: &Decision) -> Vec<Draft> {
    let members = match &inventory.datastore {
        Fact::Known(Datastore::Sqlite | Datastore::External) => return Vec::new(),
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Unknown(why) }) | Fact::Unknown(why) => {
            return vec![unknown("cluster", "the list of etcd's members", why)];
        }
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) => members,
    };
    let mut findings = Vec::new();
    let list = || members.iter().map(|m| format!("{} ({})", m.name, m.id)).collect::<Vec<_>>().join(", ");
    for member in members {
        if member.learner {
            findings.push(
                finding(
                    "cluster",
                    Verdict::Block,
                    format!("the etcd member {} is a learner, not a voter", member.name),
                )
                .fact(format!("etcd's member list: {}", list()))
                .remedy("give it a minute; if it stays so, remove the member and let its server join anew"),
            );
        }
        let node = member.node().and_then(|name| inventory.node(&name));
        if node.is_none_or(|n| n.etcd.is(&EtcdRole::None)) {
            findings.push(
                finding("cluster", Verdict::Block, format!("the etcd member {} runs on no server", member.name))
                    .fact(format!("etcd's member list: {}", list()))
                    .remedy("bring its server back, or remove the member"),
            );
        }
    }
    let planned = &decision.preconditions.etcd_members;
    // A restore makes the membership anew, so its ids are others.
    let same = match decision.purpose {
        Purpose::Restore { .. } => members.len() == planned.len(),
        Purpose::Update | Purpose::Rollback { .. } => {
            members.iter().map(|m| &m.id).collect::<BTreeSet<_>>() == planned.iter().collect::<BTreeSet<_>>()
        }
    };
    if !same {
        let planned = planned.iter().cloned().collect::<Vec<_>>().join(", ");
        findings.push(
            finding("cluster", Verdict::Block, "etcd's members are not those of before".to_owned())
                .fact(format!("etcd's member list: {}", list()))
                .fact(format!("the plan: {planned}"))
                .remedy("find out who added or removed a member, and why"),
        );
    }
    findings
}

fn versions(expected: &Expected) -> String {
    let mut by_version: BTreeMap<&Version, usize> = BTreeMap::new();
    for (version, _) in expected.values() {
        *by_version.entry(version).or_default() += 1;
    }
    let all = by_version.iter().rev().map(|(version, n)| format!("{n} of {} on {version}", expected.len()));
    all.collect::<Vec<_>>().join(", ")
}

/// A finding that is being written.
struct Draft(Finding);

fn finding(about: impl ToString, verdict: Verdict, what: String) -> Draft {
    Draft(Finding {
        code: "NODE-TRUTH".to_owned(),
        number: 9,
        verdict,
        about: about.to_string(),
        what,
        facts: Vec::new(),
        why: "done is said only of what was proven healthy, on every node".to_owned(),
        remedy: String::new(),
        waived: None,
    })
}

fn unknown(about: impl ToString, what: &str, why: &str) -> Draft {
    finding(about, Verdict::UnknownBlocks, format!("{what} is not known: {why}"))
        .remedy("make it known, then resume: kadence inspect shows every fact that is missing, with the reason")
}

impl Draft {
    fn fact(mut self, fact: impl Into<String>) -> Self {
        self.0.facts.push(fact.into());
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = remedy.into();
        self
    }

    /// Of a node that was left out: said, and no reason to call the update failed.
    fn softened(mut self) -> Self {
        self.0.verdict = match self.0.verdict {
            Verdict::UnknownBlocks => Verdict::Unknown,
            Verdict::Block => Verdict::Warn,
            other => other,
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::planner::{self, Scope};
    use crate::inventory::Mark;
    use crate::inventory::example::{self, ha, host_mut, node_mut};
    use crate::knowledge::Knowledge;

    const FROM: &str = "v1.36.3+k3s1";
    const TO: &str = "v1.36.4+k3s1";

    fn decision(exclude: &[&str]) -> Decision {
        let scope = Scope { exclude: exclude.iter().map(|&n| n.into()).collect(), ..Scope::default() };
        let to = [TO.parse().expect("a version")];
        let (catalog, cluster, knowledge) = (example::catalog(&[TO]), example::cluster(), Knowledge::embedded());
        let question = planner::Question {
            inventory: &ha(FROM),
            catalog: &catalog,
            cluster: &cluster,
            knowledge,
            now: example::now(),
        };
        planner::plan(&question, &to, &scope, "0.0.0").expect("a plan").decision
    }

    fn after(inventory: &Inventory) -> Vec<(Verdict, String)> {
        said(truth(inventory, &decision(&[]), 0, "r7"))
    }

    fn said(findings: Vec<Finding>) -> Vec<(Verdict, String)> {
        findings.into_iter().map(|f| (f.verdict, f.what)).collect()
    }

    #[track_caller]
    fn only(found: Vec<(Verdict, String)>, verdict: Verdict, text: &str) {
        assert!(found.len() == 1 && found[0].0 == verdict && found[0].1.contains(text), "{found:#?}");
    }

    #[test]
    fn all_on_the_target_and_healthy_passes() {
        only(after(&ha(TO)), Verdict::Pass, "4 of 4 on v1.36.4+k3s1");
    }

    #[test]
    fn a_node_that_stayed_behind_blocks_by_what_it_runs_and_by_its_binary() {
        let mut inventory = ha(TO);
        *node_mut(&mut inventory, "s2") = ha(FROM).node(&"s2".into()).expect("a node").clone();
        let found = after(&inventory);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].1.contains("s2 runs v1.36.3+k3s1, it should run v1.36.4+k3s1"), "{found:#?}");
        let mut inventory = ha(TO);
        if let Fact::Known(install) = &mut host_mut(&mut inventory, "s2").install {
            install.digest = Digest::of(b"another");
        }
        only(after(&inventory), Verdict::Block, "another binary installed");
    }

    #[test]
    fn the_next_hops_are_not_expected_yet_and_taken_back_is_as_before() {
        let mut decision = decision(&[]);
        let mut next = decision.hops[0].clone();
        next.steps.iter_mut().for_each(|s| s.to = Version::new(1, 37, 1, 1));
        decision.hops.push(next);
        only(said(truth(&ha(TO), &decision, 0, "r7")), Verdict::Pass, "v1.36.4+k3s1");
        assert!(truth(&ha(TO), &decision, 1, "r7").iter().all(|f| f.verdict == Verdict::Block));
        only(said(unchanged(&ha(FROM), &decision, "r7")), Verdict::Pass, "v1.36.3+k3s1");
    }

    #[test]
    fn what_is_not_healthy_blocks() {
        let mut inventory = ha(TO);
        node_mut(&mut inventory, "a1").ready = Fact::Known(false);
        only(after(&inventory), Verdict::Block, "a1 is not Ready");
        let mut inventory = ha(TO);
        if let Some(Fact::Known(etcd)) = &mut host_mut(&mut inventory, "s3").etcd {
            etcd.has_leader = false;
        }
        only(after(&inventory), Verdict::Block, "etcd on s3 is not healthy");
        let mut inventory = ha(TO);
        node_mut(&mut inventory, "s3").etcd = Fact::Known(EtcdRole::Learner);
        only(after(&inventory), Verdict::Block, "s3 is an etcd learner");
    }

    #[test]
    fn our_cordon_must_be_gone_and_others_are_theirs() {
        let mut inventory = ha(TO);
        let cordon = |inventory: &mut Inventory, cordon| {
            if let Some(object) = &mut node_mut(inventory, "a1").object {
                object.cordon = cordon;
            }
        };
        let mark = |rollout: &str| Mark { rollout: rollout.into(), plan: "7c41e0".into(), step: "a1".into() };
        for ours in ["r7", "r7.2"] {
            cordon(&mut inventory, Cordon::Ours { mark: mark(ours) });
            only(after(&inventory), Verdict::Block, "a1 still has our cordon");
        }
        cordon(&mut inventory, Cordon::Ours { mark: mark("r6") });
        only(after(&inventory), Verdict::Pass, "healthy");
        cordon(&mut inventory, Cordon::Foreign);
        only(after(&inventory), Verdict::Pass, "healthy");
    }

    #[test]
    fn the_membership_must_be_that_of_before() {
        let mut inventory = ha(TO);
        if let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = &mut inventory.datastore {
            members[1].id = "1".to_owned();
        }
        only(after(&inventory), Verdict::Block, "not those of before");
        let mut inventory = ha(TO);
        node_mut(&mut inventory, "s2").etcd = Fact::Known(EtcdRole::None);
        only(after(&inventory), Verdict::Block, "runs on no server");
    }

    #[test]
    fn a_missing_fact_is_never_a_pass() {
        let mut inventory = ha(TO);
        node_mut(&mut inventory, "a1").host = Fact::unknown("no route to host");
        only(after(&inventory), Verdict::UnknownBlocks, "no route to host");
        let mut inventory = ha(TO);
        inventory.datastore = Fact::unknown("no answer");
        only(after(&inventory), Verdict::UnknownBlocks, "etcd's members");
        let mut inventory = ha(TO);
        inventory.nodes.retain(|n| n.name.as_str() != "a1");
        only(after(&inventory), Verdict::Block, "a1 is not in the cluster any more");
    }

    #[test]
    fn who_joined_meanwhile_on_an_old_version_is_named() {
        let mut inventory = ha(TO);
        let new = |version: &str| Node { name: "a9".into(), ..ha(version).node(&"a1".into()).expect("a node").clone() };
        inventory.nodes.push(new(FROM));
        only(after(&inventory), Verdict::Warn, "a9 joined meanwhile and runs v1.36.3+k3s1");
        inventory.nodes.pop();
        inventory.nodes.push(new(TO));
        only(after(&inventory), Verdict::Pass, "healthy");
    }

    #[test]
    fn an_agent_that_was_left_out_fails_nothing() {
        let mut inventory = ha(TO);
        *node_mut(&mut inventory, "a1") = ha(FROM).node(&"a1".into()).expect("a node").clone();
        let decision = decision(&["a1"]);
        only(
            said(truth(&inventory, &decision, 0, "r7")),
            Verdict::Pass,
            "3 of 4 on v1.36.4+k3s1, 1 of 4 on v1.36.3+k3s1",
        );
        node_mut(&mut inventory, "a1").ready = Fact::Known(false);
        only(said(truth(&inventory, &decision, 0, "r7")), Verdict::Warn, "a1 is not Ready");
    }
}
