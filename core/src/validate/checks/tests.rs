//! What the tests of the checks share, and the tests of all of them together.

use std::time::{Duration, Instant};

use super::*;
use crate::apply::planner::{self, Scope};
use crate::fact::Fact;
use crate::inventory::example;
use crate::inventory::{Cordon, NodeObject};
use crate::version::Version;

/// A question about a cluster.
#[derive(Clone)]
pub(super) struct Case {
    inventory: Inventory,
    hop: Option<Hop>,
    goes_back: bool,
    rollout: Option<RolloutId>,
    pub(super) catalog: Catalog,
    pub(super) cluster: Cluster,
}

impl Case {
    /// Without a target.
    pub(super) fn of(inventory: &Inventory) -> Self {
        Self {
            inventory: inventory.clone(),
            hop: None,
            goes_back: false,
            rollout: None,
            catalog: example::catalog(&[]),
            cluster: example::cluster(),
        }
    }

    /// With a target, and the hop that is planned for it.
    pub(super) fn to(&self, version: &str) -> Self {
        self.to_hop(version, |_| ())
    }

    /// The planned hop, changed.
    pub(super) fn to_hop(&self, version: &str, change: impl FnOnce(&mut Hop)) -> Self {
        self.planned(version, &self.inventory, change)
    }

    /// With the hop that was planned when the cluster was seen like this.
    pub(super) fn to_hop_of(&self, version: &str, planned: &Inventory) -> Self {
        self.planned(version, planned, |_| ())
    }

    fn planned(&self, version: &str, inventory: &Inventory, change: impl FnOnce(&mut Hop)) -> Self {
        let catalog = example::catalog(&[version]);
        let to: Version = version.parse().expect("a version");
        // What a check refuses may be no plan at all: then the hop is what the check has to judge.
        let mut planned = inventory.clone();
        let lowest = Version::new(1, 0, 0, 1);
        let too_low = |n: &crate::inventory::Node| n.version.known().is_some_and(|v| *v >= to);
        if planned.nodes.iter().any(too_low) {
            for node in &mut planned.nodes {
                node.version = Fact::Known(lowest.clone());
            }
        }
        let question = planner::Question {
            inventory: &planned,
            catalog: &catalog,
            cluster: &self.cluster,
            knowledge: Knowledge::embedded(),
            now: example::now(),
        };
        let plan = planner::plan(&question, std::slice::from_ref(&to), &Scope::default(), "0.0.0");
        let mut hop = plan.expect("a plan").decision.hops.remove(0);
        change(&mut hop);
        Self { hop: Some(hop), catalog, ..self.clone() }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Hop)) -> Self {
        let mut case = self.clone();
        if let Some(hop) = &mut case.hop {
            change(hop);
        }
        case
    }

    /// The same question, the cluster seen otherwise since.
    pub(super) fn seeing(&self, inventory: &Inventory) -> Self {
        Self { inventory: inventory.clone(), ..self.clone() }
    }

    /// The hop is a way back, whatever its versions say.
    pub(super) fn back(&self) -> Self {
        Self { goes_back: true, ..self.clone() }
    }

    /// Asked by this rollout.
    pub(super) fn by(&self, rollout: &str) -> Self {
        Self { rollout: Some(RolloutId::new(rollout)), ..self.clone() }
    }

    pub(super) fn run(&self) -> Vec<Finding> {
        run(&self.question())
    }

    fn question(&self) -> Question<'_> {
        Question {
            inventory: &self.inventory,
            hop: self.hop.as_ref(),
            goes_back: self.goes_back || self.hop.iter().flat_map(|h| &h.steps).any(|s| s.to < s.from),
            rollout: self.rollout.as_ref(),
            catalog: &self.catalog,
            cluster: &self.cluster,
            knowledge: Knowledge::embedded(),
            now: example::now(),
        }
    }
}

pub(super) fn of<'a>(findings: &'a [Finding], code: &str) -> Vec<&'a Finding> {
    findings.iter().filter(|f| f.code == code).collect()
}

#[track_caller]
fn says(findings: &[Finding], code: &str, verdict: Verdict, text: &str) {
    let found = of(findings, code);
    let hit = found.iter().any(|f| f.verdict == verdict && f.what.contains(text));
    assert!(hit, "{code} has no {verdict:?} with `{text}`: {found:#?}");
    assert!(found.iter().all(|f| f.verdict != Verdict::Pass), "it passes as well: {found:#?}");
}

#[track_caller]
pub(super) fn blocks(findings: &[Finding], code: &str, text: &str) {
    says(findings, code, Verdict::Block, text);
}

#[track_caller]
pub(super) fn warns(findings: &[Finding], code: &str, text: &str) {
    says(findings, code, Verdict::Warn, text);
}

#[track_caller]
pub(super) fn unknown(findings: &[Finding], code: &str, text: &str) {
    says(findings, code, Verdict::UnknownBlocks, text);
}

#[track_caller]
pub(super) fn unsure(findings: &[Finding], code: &str, text: &str) {
    says(findings, code, Verdict::Unknown, text);
}

#[track_caller]
pub(super) fn passes(findings: &[Finding], code: &str) {
    let found = of(findings, code);
    assert!(found.len() == 1 && found[0].verdict == Verdict::Pass, "{code} does not just pass: {found:#?}");
}

/// The check was not asked, so it did not pass either.
#[track_caller]
pub(super) fn silent(findings: &[Finding], code: &str) {
    assert_eq!(of(findings, code), Vec::<&Finding>::new());
}

fn clean() -> Vec<Case> {
    let (ha, alone) = (example::ha("v1.35.7+k3s1"), example::sqlite("v1.35.7+k3s1"));
    vec![
        Case::of(&ha),
        Case::of(&alone),
        Case::of(&ha).to("v1.35.8+k3s1"),
        Case::of(&ha).to("v1.36.4+k3s1"),
        Case::of(&alone).to("v1.36.4+k3s1"),
    ]
}

#[test]
fn a_clean_cluster_is_ready() {
    for case in clean() {
        let findings = case.run();
        let said: Vec<_> = findings.iter().filter(|f| f.verdict != Verdict::Pass).map(|f| f.code.as_str()).collect();
        let expected: &[&str] = if case.hop.is_some() { &["RESTORE-REHEARSAL", "IMAGES"] } else { &[] };
        assert_eq!(said, expected, "{findings:#?}");
        assert!(!findings.iter().any(Finding::blocks));
    }
}

#[test]
fn each_check_is_counted_once_where_all_is_well() {
    let findings = Case::of(&example::ha("v1.35.7+k3s1")).to("v1.36.4+k3s1").run();
    let mut codes: Vec<&str> = findings.iter().map(|f| f.code.as_str()).collect();
    codes.sort_unstable();
    let mut expected: Vec<&str> = CHECKS.iter().map(|c| c.code).collect();
    expected.sort_unstable();
    assert_eq!(codes, expected);
}

#[test]
fn every_finding_tells_what_to_do() {
    let mut inventory = example::ha("v1.35.7+k3s1");
    inventory.contradictions.push("s2 is another machine".to_owned());
    for node in &mut inventory.nodes {
        node.ready = Fact::Known(false);
        node.object = node.object.take().map(|o| NodeObject { cordon: Cordon::Foreign, ..o });
        let host = example::host(node);
        host.disks = Fact::unknown("df did not answer");
        host.clock_offset = Fact::Known(jiff::SignedDuration::from_secs(90));
    }
    for finding in Case::of(&inventory).to_hop_of("v1.36.4+k3s1", &example::ha("v1.35.7+k3s1")).run() {
        assert!(!finding.what.is_empty() && !finding.why.is_empty(), "{finding:#?}");
        if finding.verdict != Verdict::Pass {
            assert!(!finding.remedy.is_empty(), "{finding:#?}");
            let unknown = matches!(finding.verdict, Verdict::Unknown | Verdict::UnknownBlocks);
            assert!(unknown || !finding.facts.is_empty() || finding.code == "RESTORE-REHEARSAL", "{finding:#?}");
        }
        assert!(!finding.what.ends_with('.') && !finding.what.contains("  "), "{}", finding.what);
    }
}

#[test]
fn what_blocks_comes_first_then_what_is_missing_then_by_number() {
    let mut inventory = example::ha("v1.35.7+k3s1");
    example::host_mut(&mut inventory, "s1").clock_offset = Fact::Known(jiff::SignedDuration::from_secs(2));
    example::host_mut(&mut inventory, "s2").disks = Fact::unknown("df did not answer");
    example::node_mut(&mut inventory, "a1").ready = Fact::Known(false);
    example::host_mut(&mut inventory, "s3").token = Fact::Known(Some(crate::ident::Digest::of(b"another")));
    let findings = Case::of(&inventory).run();
    let order: Vec<_> = findings.iter().take(4).map(|f| (f.verdict, f.code.as_str())).collect();
    assert_eq!(
        order,
        [
            (Verdict::Block, "SERVER-TOKEN"),
            (Verdict::Block, "BASELINE"),
            (Verdict::UnknownBlocks, "DISK"),
            (Verdict::Warn, "CLOCK"),
        ]
    );
    let rest: Vec<u32> = findings.iter().skip(4).map(|f| f.number).collect();
    assert!(rest.is_sorted());
}

/// A cluster that is red because an update failed has to be let back.
#[test]
fn the_way_back_is_not_kept_from_a_red_cluster() {
    let mut inventory = example::ha("v1.36.4+k3s1");
    example::node_mut(&mut inventory, "s2").ready = Fact::Known(false);
    if let Some(Fact::Known(etcd)) = &mut example::host_mut(&mut inventory, "s2").etcd {
        etcd.healthy = false;
    }
    inventory.surroundings.storage = Fact::unknown("the API did not answer");
    let back = Case::of(&inventory).to_hop_of("v1.36.4+k3s1", &example::ha("v1.35.7+k3s1")).change(|hop| {
        for step in &mut hop.steps {
            std::mem::swap(&mut step.from, &mut step.to);
        }
    });
    let findings = back.run();
    assert!(!findings.iter().any(Finding::blocks), "{findings:#?}");
    warns(&findings, "BASELINE", "s2 is not Ready");
    warns(&findings, "QUORUM", "2 of 3 voters");
    unsure(&findings, "STORAGE", "did not answer");
    inventory.contradictions.push("s2 is another machine".to_owned());
    blocks(&back.seeing(&inventory).run(), "CONTRADICTION", "another machine");
}

#[test]
fn codes_are_unique_and_the_documentation_names_each_with_what_it_does() {
    let text = include_str!("../../../../docs/checks.md");
    for (at, check) in CHECKS.iter().enumerate() {
        assert!(CHECKS[at + 1..].iter().all(|other| other.code != check.code), "{} is there twice", check.code);
        let does = match check.weight {
            Weight::Invariant => "always",
            Weight::Gate => "yes",
            Weight::Advice => "no",
        };
        let row = format!("| `{}` | {} | {does} |", check.code, check.number);
        assert!(text.contains(&row), "docs/checks.md has no row that begins with `{row}`");
    }
    let list = text.split("\n## ").next().unwrap_or_default();
    let rows = list.lines().filter(|l| l.starts_with("| `")).count();
    assert_eq!(rows, CHECKS.len(), "docs/checks.md speaks of checks that are not there");
}

/// The shortest of several runs: what the checks themselves take, whatever else the machine does.
#[test]
fn all_checks_take_less_than_five_milliseconds() {
    let case = Case::of(&example::ha("v1.35.7+k3s1")).to("v1.36.4+k3s1");
    let once = || {
        let start = Instant::now();
        assert!(!case.run().is_empty());
        start.elapsed()
    };
    let shortest = (0..50).map(|_| once()).min().unwrap_or(Duration::MAX);
    assert!(shortest < Duration::from_millis(5), "{shortest:?}");
}
