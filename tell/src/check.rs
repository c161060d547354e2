//! What the checks found.

use std::collections::{BTreeMap, BTreeSet};

use kadence_core::apply::plan::Plan;
use kadence_core::fact::Fact;
use kadence_core::inventory::Inventory;
use kadence_core::track::resolve::Newest;
use kadence_core::validate::finding::{Finding, Readiness, Verdict, readiness};
use kadence_core::version::Version;
use serde_json::{Value, json};

use crate::Style;
use crate::layout::{Page, bad, dim, good, strong, warn};
use crate::words::{count, time};

/// The findings, what to do first.
///
/// `verbose` 1 adds the facts and why they matter, 2 what passed.
pub fn text(inventory: &Inventory, plan: Option<&Plan>, findings: &[Finding], style: Style) -> String {
    let mut page = Page::new(style);
    page.say(&strong(&answer(inventory, plan, findings)));
    page.say(&counts(findings));

    let of = |kind: Kind| findings.iter().filter(move |f| Kind::of(f) == kind).collect::<Vec<_>>();
    group(&mut page, "First: without this nothing is updated", &of(Kind::Blocks));
    group(&mut page, "Then: what has to be known before anything is updated", &of(Kind::UnknownBlocks));
    group(&mut page, "Worth knowing; does not stop the update", &of(Kind::Warns));
    group(&mut page, "Not known; the update can do without", &of(Kind::Unsure));
    group(&mut page, "Waived by a person", &of(Kind::Waived));
    if page.verbose(2) {
        let passed = of(Kind::Passed);
        if !passed.is_empty() {
            page.gap();
            page.say(&dim("  Passed"));
        }
        for f in passed {
            page.entry(&format!("  {} {}  ", good("✔"), f.code), &about(f));
        }
    }

    page.gap();
    let cluster = &inventory.cluster;
    let to = plan.map(|p| format!(" --to {}", p.decision.target)).unwrap_or_default();
    page.say(&match (readiness(findings), plan) {
        (Readiness::Ready | Readiness::ReadyWithWarnings, Some(_)) => format!("Next: kadence plan {cluster}{to}"),
        (Readiness::Ready | Readiness::ReadyWithWarnings, None) => format!("Next: kadence plan {cluster}"),
        _ => format!("Next: do what stands above, then kadence check {cluster}{to}"),
    });
    page.finish()
}

/// What there is for the cluster: `shop is on v1.36.3+k3s1. Newest patch of its minor: ... Next minor: ...`
pub fn newest(cluster: &str, newest: &Newest, style: Style) -> String {
    let patch = match &newest.patch {
        Some(offer) if offer.version == newest.runs => "it is the newest patch of its minor".to_owned(),
        Some(offer) => format!("newest patch of its minor: {offer}"),
        None => "no patch of its minor is to be had".to_owned(),
    };
    let minor = match &newest.next_minor {
        Some(offer) => format!("next minor: {offer}"),
        None => "no next minor yet".to_owned(),
    };
    let mut page = Page::new(style);
    page.say(&format!("{cluster} is on {}; {patch}; {minor}.", newest.runs));
    page.gap();
    page.finish()
}

/// The findings as one document, schema 1.
pub fn json(cluster: &str, target: Option<&Version>, findings: &[Finding]) -> Value {
    json!({
        "schema": 1,
        "cluster": cluster,
        "target": target,
        "readiness": readiness(findings),
        "findings": findings,
    })
}

/// What `validate` found as one document, schema 1: the checks that need no target, and the probes.
pub fn validate_json(cluster: &str, probes: &BTreeMap<String, Fact<bool>>, findings: &[Finding]) -> Value {
    json!({
        "schema": 1,
        "cluster": cluster,
        "readiness": readiness(findings),
        "probes": probes,
        "findings": findings,
    })
}

fn answer(inventory: &Inventory, plan: Option<&Plan>, findings: &[Finding]) -> String {
    let cluster = &inventory.cluster;
    let target = plan.map(|p| format!(" to update to {}", p.decision.target)).unwrap_or_default();
    let none = if plan.is_none() { " No target: checks that need one were not asked." } else { "" };
    let tally = |kind: Kind| findings.iter().filter(|f| Kind::of(f) == kind).count();
    let (blocks, missing) = (tally(Kind::Blocks), tally(Kind::UnknownBlocks));
    let (warnings, unsure) = (tally(Kind::Warns), tally(Kind::Unsure));
    let with: Vec<String> = [(warnings, "warning"), (unsure, "unknown"), (tally(Kind::Waived), "waiver")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| if what == "unknown" { format!("{n} unknown") } else { count(n, what) })
        .collect();
    let with = if with.is_empty() { String::new() } else { format!(", with {}", with.join(" and ")) };
    match readiness(findings) {
        Readiness::Ready | Readiness::ReadyWithWarnings => format!("{cluster} is ready{target}{with}.{none}"),
        Readiness::NotReady => {
            let too = if missing > 0 { format!(", and {missing} not known") } else { String::new() };
            format!("{cluster} is not ready{target}: {} in the way{too}.{none}", stands(blocks))
        }
        Readiness::CannotDetermine => {
            format!("Whether {cluster} is ready{target} cannot be determined: {} not known.{none}", stands(missing))
        }
    }
}

fn stands(n: usize) -> String {
    if n == 1 { "1 thing is".to_owned() } else { format!("{n} things are") }
}

fn counts(findings: &[Finding]) -> String {
    let tally = |kind: Kind| findings.iter().filter(|f| Kind::of(f) == kind).count();
    let passed: BTreeSet<&str> =
        findings.iter().filter(|f| Kind::of(f) == Kind::Passed).map(|f| f.code.as_str()).collect();
    let mut parts = vec![format!("{} {} passed", good("✔"), count(passed.len(), "check"))];
    for (kind, mark, one, many) in [
        (Kind::Blocks, bad("✘"), "blocks", "block"),
        (Kind::UnknownBlocks, bad("?"), "unknown that blocks", "unknown that block"),
        (Kind::Warns, warn("!"), "warning", "warnings"),
        (Kind::Unsure, warn("?"), "unknown", "unknown"),
        (Kind::Waived, warn("~"), "waived", "waived"),
    ] {
        match tally(kind) {
            0 => {}
            1 => parts.push(format!("{mark} 1 {one}")),
            n => parts.push(format!("{mark} {n} {many}")),
        }
    }
    format!("  {}", parts.join("   "))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blocks,
    UnknownBlocks,
    Warns,
    Unsure,
    Waived,
    Passed,
}

impl Kind {
    fn of(finding: &Finding) -> Self {
        match finding.verdict {
            Verdict::Pass => Self::Passed,
            Verdict::Warn => Self::Warns,
            Verdict::Unknown => Self::Unsure,
            Verdict::Block | Verdict::UnknownBlocks if finding.waived.is_some() => Self::Waived,
            Verdict::Block => Self::Blocks,
            Verdict::UnknownBlocks => Self::UnknownBlocks,
        }
    }
}

pub(crate) fn mark(finding: &Finding) -> String {
    match Kind::of(finding) {
        Kind::Blocks => bad("✘"),
        Kind::UnknownBlocks => bad("?"),
        Kind::Warns => warn("!"),
        Kind::Unsure => warn("?"),
        Kind::Waived => warn("~"),
        Kind::Passed => good("✔"),
    }
}

/// What was found, with whom it is about where the sentence does not say.
pub(crate) fn about(finding: &Finding) -> String {
    if finding.about == "cluster" || finding.what.contains(&finding.about) {
        finding.what.clone()
    } else {
        format!("{}: {}", finding.about, finding.what)
    }
}

fn group(page: &mut Page, title: &str, findings: &[&Finding]) {
    if findings.is_empty() {
        return;
    }
    page.gap();
    page.say(&dim(&format!("  {title}")));
    // Of the same check, with the same answer to it, the answer stands once, below the last.
    let same = |a: &&Finding, b: &&Finding| a.code == b.code && a.why == b.why && a.remedy == b.remedy;
    for alike in findings.chunk_by(same) {
        for finding in alike {
            page.entry(&format!("  {} {}  ", mark(finding), strong(&finding.code)), &about(finding));
            if page.verbose(1) {
                for fact in &finding.facts {
                    page.entry("      fact  ", fact);
                }
            }
        }
        let Some(last) = alike.last() else { continue };
        if page.verbose(1) && !last.why.is_empty() {
            page.entry("      why   ", &last.why);
        }
        if !last.remedy.is_empty() {
            page.entry("      do    ", &last.remedy);
        }
        if let Some(waiver) = &last.waived {
            let text = format!("by {} until {}: {}", waiver.owner, time(waiver.until), waiver.reason);
            page.entry("      waived  ", &text);
        }
    }
}

/// The findings that keep an update from starting, as they stand in an ending.
pub(crate) fn blocking(page: &mut Page, findings: &[Finding]) {
    for finding in findings.iter().filter(|f| f.blocks()) {
        page.entry(&format!("  {} {}  ", mark(finding), finding.code), &about(finding));
        if !finding.remedy.is_empty() {
            page.entry("      do    ", &finding.remedy);
        }
    }
}
