//! The report of a rollout: as one document, as a page, as text. All three are folds of its events.

mod fold;
mod page;
mod picture;

use kadence_core::apply::rollout::Rollout;
use kadence_core::event::Recorded;
use serde_json::{Value, json};

use crate::Style;
use crate::check::{about, mark};
use crate::layout::{Page, dim, finish, strong, warn};
use crate::line::Lines;
use crate::report::fold::Report;
use crate::status;
use crate::words::{bytes, clock, count, fact, time};

/// The report as one document, schema 1. Times and durations are ISO 8601; a fact that is not known is
/// `{"unknown": "why"}`; digests are SHA-256.
///
/// | field | what it is |
/// | --- | --- |
/// | `schema` | version of this document's shape |
/// | `cluster`, `rollout`, `purpose`, `target` | what it was about |
/// | `verdict` | `kind` (completed, failed-and-back, failed, refused, aborted, held, under-way); `what`, `because`, `next` |
/// | `started`, `ended`, `took` | `ended` is null while it has not ended |
/// | `by`, `kadence` | who worked on it, and with which versions of Kadence |
/// | `consent` | what a person agreed to |
/// | `plan` | its `hash`, and the whole `plan` |
/// | `nodes[]` | `name`, `role`, `before` and `after` (versions), `proof` of its health, `failure`, `our_cordon` if left |
/// | `timeline[]` | `id`, `do`, `nodes`, `words`, `start`, `end`, `result` (done, failed, unknown, open), `detail` |
/// | `moments[]` | turns taken, requests, holds, resumptions: `at`, `what`, `by` |
/// | `checks[]` | `when`, `at`, `findings` with their facts; after a hop also `regressions` |
/// | `outage` | of the API, as measured; null if nobody measured |
/// | `backups[]` | `backup` (name, digest, version), `bytes`, `revision`, digests of its `files`, `caveats` |
/// | `events[]` | the log itself |
///
/// A log that cannot be read gives `schema`, `error` and `events` alone.
pub fn json(events: &[Recorded]) -> Value {
    let cannot = |error: &dyn std::fmt::Display| json!({ "schema": Report::SCHEMA, "error": error.to_string(), "events": events });
    match Rollout::read(events) {
        Ok(rollout) => serde_json::to_value(Report::of(events, &rollout)).unwrap_or_else(|error| cannot(&error)),
        Err(error) => cannot(&error),
    }
}

/// The report as one page that needs nothing else: no script, no network. Light or dark as the reader has it; prints.
pub fn html(events: &[Recorded]) -> String {
    match Rollout::read(events) {
        Ok(rollout) => page::html(&Report::of(events, &rollout)),
        Err(error) => page::unreadable(&error.to_string()),
    }
}

/// The report as text: how it ended, what happened when, what the checks said, what was kept.
pub fn text(events: &[Recorded], style: Style) -> String {
    let rollout = match Rollout::read(events) {
        Ok(rollout) => rollout,
        Err(error) => return finish(style.colour, &format!("The log cannot be read: {error}\n")),
    };
    let report = Report::of(events, &rollout);
    let mut page = Page::new(style);
    let decision = &rollout.plan.decision;
    page.say(&dim(&format!(
        "Rollout {}, plan {}, begun {} by {}, with Kadence {}",
        rollout.id,
        rollout.plan_hash.short(),
        time(report.started),
        report.by.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        report.kadence.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
    )));

    page.gap();
    let mut rows = vec![["", "node", "role", "before", "after", ""].map(dim).to_vec()];
    rows.extend(report.nodes.iter().map(|n| {
        let left = if n.our_cordon { warn("keeps our cordon") } else { String::new() };
        vec![n.mark(), n.name.to_string(), n.role.to_string(), n.before.to_string(), fact(&n.after), left]
    }));
    page.table(2, &rows);

    page.gap();
    let mut lines = Lines::default();
    for event in events {
        if let Some(text) = lines.event(event) {
            for line in text.lines() {
                page.line(&format!("  {}  {line}", clock(event.at)));
            }
        } else if let Some(moment) = fold::moment(event) {
            page.entry(&format!("  {}  ", clock(event.at)), &format!("· {}", moment.what));
        }
    }
    page.line(&dim(&format!("  times of day in UTC, from {}", time(report.started))));

    for checked in &report.checks {
        let said: Vec<_> = checked
            .findings
            .iter()
            .filter(|f| page.verbose(1) || f.verdict != kadence_core::validate::finding::Verdict::Pass)
            .collect();
        if said.is_empty() && checked.regressions.is_empty() {
            continue;
        }
        page.gap();
        page.say(&format!("  {}", strong(&checked.when)));
        for finding in said {
            page.entry(&format!("  {} {}  ", mark(finding), finding.code), &about(finding));
        }
        for worse in checked.regressions {
            page.entry("  ✘ worse  ", &format!("{}: {}, was {}", worse.about, worse.now, worse.before));
        }
    }
    if !report.backups.is_empty() {
        page.gap();
        page.say(&format!("  {}", strong(&count(report.backups.len(), "backup"))));
    }
    for backup in report.backups {
        page.entry(
            "    ",
            &format!(
                "{}  {} of {}, on {}, sha256 {}",
                backup.backup.name,
                bytes(backup.bytes),
                time(backup.backup.taken),
                backup.backup.version,
                backup.backup.digest.short(12)
            ),
        );
    }
    page.gap();
    page.say(&format!("As a page: kadence report {} --rollout {} --html FILE", decision.cluster, rollout.id));
    format!("{}\n{}", status::ending(&rollout, style), page.finish())
}
