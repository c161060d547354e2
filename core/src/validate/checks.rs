//! The checks: what is judged before anything is touched, and again before each hop.
//!
//! One file a check. Each names its code and number, the facts it needs and whether it blocks, and judges from facts
//! that were collected once; a missing fact is an answer of its own, and blocks where the check blocks. What each of
//! them is for stands in `docs/checks.md`.

use std::cmp::Reverse;

use jiff::Timestamp;

use crate::apply::plan::{Hop, Step};
use crate::config::{Cluster, WaiverEntry};
use crate::ident::{NodeName, RolloutId};
use crate::inventory::{HostFacts, Inventory, Node, Role};
use crate::knowledge::Knowledge;
use crate::track::catalog::Catalog;
use crate::validate::finding::{Finding, Verdict, Waiver};

mod arguments;
mod artifacts;
mod backup;
mod bare_pods;
mod baseline;
mod certificates;
mod cgroup;
mod check_missing;
mod clock;
mod containerd_template;
mod contradiction;
mod cordons;
mod datastore_size;
mod disk;
mod etcd_upgrade;
mod facts;
mod feature_gates;
mod host;
mod images;
mod installation;
mod lease;
mod local_data;
mod ntp;
mod one_server;
mod other_managers;
mod other_unit;
mod pdb_blocks;
mod peer_address;
mod pending_config;
mod pre_release;
mod quorum;
mod restore_rehearsal;
mod secrets_encryption;
mod server_flags;
mod server_token;
mod storage;
mod version_path;
mod version_truth;
mod waivers;
mod webhooks;

#[cfg(test)]
mod tests;

/// Every check, by number.
const CHECKS: [Check; 40] = [
    version_path::CHECK,
    backup::CHECK,
    restore_rehearsal::CHECK,
    quorum::CHECK,
    etcd_upgrade::CHECK,
    one_server::CHECK,
    pdb_blocks::CHECK,
    bare_pods::CHECK,
    version_truth::CHECK,
    webhooks::CHECK,
    storage::CHECK,
    disk::CHECK,
    artifacts::CHECK,
    pre_release::CHECK,
    images::CHECK,
    cgroup::CHECK,
    arguments::CHECK,
    feature_gates::CHECK,
    server_flags::CHECK,
    server_token::CHECK,
    containerd_template::CHECK,
    datastore_size::CHECK,
    certificates::CHECK,
    clock::CHECK,
    ntp::CHECK,
    other_managers::CHECK,
    lease::CHECK,
    baseline::CHECK,
    cordons::CHECK,
    peer_address::CHECK,
    local_data::CHECK,
    secrets_encryption::CHECK,
    contradiction::CHECK,
    host::CHECK,
    installation::CHECK,
    other_unit::CHECK,
    facts::CHECK,
    waivers::CHECK,
    pending_config::CHECK,
    check_missing::CHECK,
];

/// What the checks are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub inventory: &'a Inventory,
    /// The hop that is about to be done. `None`: no target is asked for; checks that need one say nothing.
    pub hop: Option<&'a Hop>,
    /// Whether that hop is a way back. Its plan says so; versions do not, where a node has only its binary taken back.
    pub goes_back: bool,
    /// The rollout that asks: its own cordons and its own Lease are not somebody else's.
    pub rollout: Option<&'a RolloutId>,
    pub catalog: &'a Catalog,
    pub cluster: &'a Cluster,
    pub knowledge: &'a Knowledge,
    pub now: Timestamp,
}

/// Runs every check. The findings are ordered: what blocks first, then what is missing and blocks, then warnings; by
/// the check's number within.
///
/// A check that has nothing to say is one finding that passes. One that could not be asked (it needs a target and
/// there is none, or the only node it is about could not be reached) is none at all: it did not pass.
pub fn run(question: &Question<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check.findings(question)).collect();
    for finding in &mut findings {
        if let Some(check) = Check::of(&finding.code) {
            waive(finding, check, question);
        }
    }
    findings.sort_by_key(|f| {
        (Reverse(f.blocks()), Reverse(rank(f.verdict)), f.number, f.code.clone(), f.about.clone(), f.what.clone())
    });
    findings
}

/// One check.
struct Check {
    /// Stable, documented in `docs/checks.md`, searchable.
    code: &'static str,
    /// Its number in `docs/checks.md`.
    number: u32,
    /// What is so when it passes, as a sentence without its full stop.
    title: &'static str,
    /// Why it matters.
    why: &'static str,
    weight: Weight,
    /// What it cannot judge without.
    needs: &'static [Need],
    judge: fn(&Question<'_>) -> Vec<Answer>,
}

/// What a check's *no* does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Blocks, and nobody can overrule it: on it rests a promise that every update keeps.
    Invariant,
    /// Blocks, and a waiver overrules it. On the way back it only warns: the way back is what cures.
    Gate,
    /// Never blocks.
    Advice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A hop that goes up.
    Target,
    /// Facts of the hosts. That a host could not be asked is said once, by `HOST`, and blocks there.
    Hosts,
}

/// What a check says about one subject.
struct Answer {
    says: Says,
    about: String,
    what: String,
    facts: Vec<String>,
    remedy: String,
}

enum Says {
    /// Passes, with a reason of its own.
    Pass,
    Warn,
    /// A fact is missing that the update can do without.
    Unsure,
    /// A fact is missing, which counts as the check's *no*.
    Unknown,
    Block,
}

impl Answer {
    fn new(says: Says, about: impl ToString, what: impl Into<String>) -> Self {
        Self { says, about: about.to_string(), what: what.into(), facts: Vec::new(), remedy: String::new() }
    }

    fn pass(what: impl Into<String>) -> Self {
        Self::new(Says::Pass, "cluster", what)
    }

    fn warn(about: impl ToString, what: impl Into<String>) -> Self {
        Self::new(Says::Warn, about, what)
    }

    fn unsure(about: impl ToString, what: impl Into<String>) -> Self {
        Self::new(Says::Unsure, about, what)
    }

    fn block(about: impl ToString, what: impl Into<String>) -> Self {
        Self::new(Says::Block, about, what)
    }

    /// `what` is not known, because of `why`.
    fn unknown(about: impl ToString, what: &str, why: &str) -> Self {
        Self::new(Says::Unknown, about, format!("{what} is not known: {why}"))
            .remedy("make it known and check again: kadence inspect shows every fact that is missing, with the reason")
    }

    /// A fact it rests on, as a person could see it.
    fn fact(mut self, fact: impl Into<String>) -> Self {
        self.facts.push(fact.into());
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

impl Check {
    fn of(code: &str) -> Option<&'static Self> {
        const { &CHECKS }.iter().find(|c| c.code == code)
    }

    fn findings(&self, question: &Question<'_>) -> Vec<Finding> {
        let lacks_target = self.needs.contains(&Need::Target) && question.up().is_none();
        if lacks_target {
            return Vec::new();
        }
        let answers = (self.judge)(question);
        let lacks_hosts = self.needs.contains(&Need::Hosts) && question.scope().any(|n| n.host.known().is_none());
        let mut findings: Vec<Finding> = answers.into_iter().map(|a| self.finding(a, question.goes_back)).collect();
        if findings.is_empty() && !lacks_hosts {
            findings.push(self.finding(Answer::pass(self.title), false));
        }
        findings
    }

    fn finding(&self, answer: Answer, goes_back: bool) -> Finding {
        let blocks = match self.weight {
            Weight::Invariant => true,
            Weight::Gate => !goes_back,
            Weight::Advice => false,
        };
        let verdict = match answer.says {
            Says::Pass => Verdict::Pass,
            Says::Warn => Verdict::Warn,
            Says::Unsure => Verdict::Unknown,
            Says::Unknown if blocks => Verdict::UnknownBlocks,
            Says::Unknown => Verdict::Unknown,
            Says::Block if blocks => Verdict::Block,
            Says::Block => Verdict::Warn,
        };
        Finding {
            code: self.code.to_owned(),
            number: self.number,
            verdict,
            about: answer.about,
            what: answer.what,
            facts: answer.facts,
            why: self.why.to_owned(),
            remedy: answer.remedy,
            waived: None,
        }
    }
}

impl<'a> Question<'a> {
    /// The hop, if it goes up: an update.
    fn up(&self) -> Option<&'a Hop> {
        self.hop.filter(|_| !self.goes_back)
    }

    fn step(&self, node: &NodeName) -> Option<&'a Step> {
        self.hop?.steps.iter().find(|s| s.node == *node)
    }

    /// Whether the node's health is the update's business: every server, and every agent that is not left out.
    fn concerns(&self, node: &Node) -> bool {
        node.role == Role::Server || self.hop.is_none() || self.step(&node.name).is_some()
    }

    fn scope(&self) -> impl Iterator<Item = &'a Node> {
        self.inventory.nodes.iter().filter(|n| self.concerns(n))
    }

    /// The nodes in scope whose hosts could be asked.
    fn hosts(&self) -> impl Iterator<Item = (&'a Node, &'a HostFacts)> {
        self.scope().filter_map(|n| Some((n, n.host.known()?)))
    }

    fn servers(&self) -> impl Iterator<Item = (&'a Node, &'a HostFacts)> {
        self.hosts().filter(|(n, _)| n.role == Role::Server)
    }
}

/// Why a waiver counts for nothing, as the end of a sentence about it; `None` if it counts.
pub fn waiver_fault(entry: &WaiverEntry, now: Timestamp) -> Option<String> {
    waivers::fault(entry, now)
}

/// Puts a waiver on the finding, if one holds; else says why one that names it does not.
fn waive(finding: &mut Finding, check: &Check, question: &Question<'_>) {
    if !matches!(finding.verdict, Verdict::Block | Verdict::UnknownBlocks) {
        return;
    }
    let about = finding.about.clone();
    let entries = question.cluster.waivers.iter();
    for entry in entries.filter(|w| w.check == check.code && w.about.as_ref().is_none_or(|a| *a == about)) {
        match waivers::fault(entry, question.now) {
            None => {
                finding.waived =
                    Some(Waiver { owner: entry.owner.clone(), reason: entry.reason.clone(), until: entry.until });
                return;
            }
            Some(fault) => finding.facts.push(format!("kadence.yaml, waivers: the one of {} {fault}", entry.owner)),
        }
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Block => 4,
        Verdict::UnknownBlocks => 3,
        Verdict::Warn => 2,
        Verdict::Unknown => 1,
        Verdict::Pass => 0,
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    match items.pop() {
        None => "none".to_owned(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

/// Bytes for people: `41 MB`.
fn bytes(count: u64) -> String {
    const MB: u64 = 1_000_000;
    match count {
        0..1_000 => format!("{count} B"),
        1_000..MB => format!("{} kB", count / 1_000),
        MB..10_000_000_000 => format!("{} MB", count / MB),
        _ => format!("{} GB", count / (1_000 * MB)),
    }
}
