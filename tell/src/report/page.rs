//! The report as a page of HTML that needs nothing else.

use std::fmt::Write as _;

use kadence_core::apply::plan::{Purpose, UndoClass};
use kadence_core::fact::Fact;
use kadence_core::validate::finding::{Finding, Verdict};

use crate::layout::is_control;
use crate::report::fold::{Checked, NodePart, Report, Result};
use crate::report::picture;
use crate::status::versions;
use crate::words::{bytes, clock, count, duration, fact, names, purpose, servers_and_agents, time, took};

const CSS: &str = include_str!("page.css");

/// Text as it may stand anywhere in HTML, between tags or in a quoted attribute.
///
/// Everything in a report was once said by a cluster or its machines: whoever can name a pod must not be able to write
/// into the page that a person opens afterwards.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in HTML, or turning the direction of what follows.
            c if is_control(c) => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The page of a log that cannot be read.
pub(super) fn unreadable(error: &str) -> String {
    let mut page = Html::new("A log that cannot be read");
    let _ = write!(page.0, "<h1>This log cannot be read</h1><p>{}</p>", escape(error));
    page.end()
}

pub(super) fn html(report: &Report<'_>) -> String {
    let decision = &report.plan.plan.decision;
    let title = match &decision.purpose {
        Purpose::Update => format!("Update of {} to {}", report.cluster, decision.target),
        Purpose::Rollback { .. } => format!("Rollback of {} to {}", report.cluster, decision.target),
        Purpose::Restore { .. } => format!("Restore of {} on {}", report.cluster, decision.target),
    };
    let mut page = Html::new(&title);
    page.head(report, &title);
    page.facts(report);
    page.timeline(report);
    page.nodes(report);
    page.moments(report);
    for checked in &report.checks {
        page.checks(checked);
    }
    page.backups(report);
    page.plan(report);
    page.steps(report);
    let _ = write!(
        page.0,
        "<footer>Rollout <code>{}</code>. All times are UTC. Folded from {} by Kadence; the document with all of them: \
         <code>kadence report {} --rollout {} --output json</code></footer>",
        escape(report.rollout().id.as_str()),
        count(usize::try_from(report.rollout().number).unwrap_or(usize::MAX), "event"),
        escape(report.cluster.as_str()),
        escape(report.rollout().id.as_str()),
    );
    page.end()
}

struct Html(String);

impl Html {
    fn new(title: &str) -> Self {
        Self(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\"><meta http-equiv=\"Content-Security-Policy\" \
             content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>{}</title><style>\n{CSS}</style></head>\
             <body>\n",
            escape(title)
        ))
    }

    fn end(mut self) -> String {
        self.0.push_str("</body></html>\n");
        self.0
    }

    fn title(&mut self, text: &str) {
        let _ = write!(self.0, "\n<h2>{}</h2>", escape(text));
    }

    fn head(&mut self, report: &Report<'_>, title: &str) {
        let verdict = &report.verdict;
        let (class, sentence) = match verdict.kind {
            "completed" if matches!(report.plan.plan.decision.purpose, Purpose::Restore { .. }) => {
                ("good", "✔ Completed: restored and proven healthy. What was written after the backup is lost.")
            }
            "completed" => ("good", "✔ Completed: every node touched is proven healthy, nothing is worse than before."),
            "failed-and-back" => ("warn", "! It failed, and everything is as it was before."),
            "failed" => ("bad", "✘ It failed, and a person is needed."),
            "refused" => ("warn", "! Refused: no service, cordon or binary was changed."),
            "aborted" => ("warn", "! Ended by a person, between nodes."),
            "held" => ("warn", "… It stands still and has not ended."),
            _ => ("warn", "… It is under way, as far as the log goes."),
        };
        let _ = write!(
            self.0,
            "<header><h1>{}</h1><p class=\"soft\">{} · {}</p></header><div class=\"verdict {class}\"><strong>{}</strong><dl>",
            escape(title),
            escape(&servers_and_agents(report.nodes.iter().map(|n| n.role))),
            escape(&time(report.started)),
            escape(sentence),
        );
        let mut entry = |label: &str, text: Option<&str>| {
            if let Some(text) = text {
                let _ = write!(self.0, "<dt>{}</dt><dd>{}</dd>", escape(label), escape(text));
            }
        };
        entry("What", verdict.what);
        entry("Because", verdict.because);
        entry("Do", verdict.next);
        entry("Versions", Some(&versions(report.rollout())));
        for finding in verdict.findings.iter().filter(|f| f.blocks()) {
            entry(&finding.code, Some(&format!("{}: {}. Do: {}", finding.about, finding.what, finding.remedy)));
        }
        self.0.push_str("</dl></div>");
    }

    fn facts(&mut self, report: &Report<'_>) {
        let mut entries: Vec<(&str, String)> = vec![
            (if report.ended.is_some() { "Took" } else { "So far" }, duration(report.took)),
            ("Begun", time(report.started)),
            ("Ended", report.ended.map_or_else(|| "not yet".to_owned(), time)),
        ];
        match &report.outage {
            Some(outage) => {
                entries.push(("Longest API gap, reads", duration(outage.reads.longest)));
                entries.push(("Longest API gap, writes", duration(outage.writes.longest)));
                let failed = outage.reads.failed + outage.writes.failed;
                entries.push(("Probes of the API", format!("{}, {failed} failed", outage.probes)));
            }
            None => entries.push(("API gap", "not measured".to_owned())),
        }
        if let Purpose::Restore { backup, .. } = &report.plan.plan.decision.purpose {
            entries.push(("Restored from", format!("{}, of {}", backup.name, time(backup.taken))));
        } else {
            let size = report.backups.iter().map(|b| b.bytes).sum();
            entries.push(("Backups", format!("{} ({})", report.backups.len(), bytes(size))));
        }
        entries.push(("Plan", report.plan.hash.short()));
        entries.push(("By", report.by.iter().map(String::as_str).collect::<Vec<_>>().join(", ")));
        entries.push(("Kadence", report.kadence.iter().map(String::as_str).collect::<Vec<_>>().join(", ")));
        let consent = report.consent;
        let mut agreed = Vec::new();
        if consent.outage {
            agreed.push("an outage".to_owned());
        }
        if consent.data_loss {
            agreed.push("loss of what came after the backup".to_owned());
        }
        if !consent.powered_off.is_empty() {
            agreed.push(format!("powered off: {}", names(&consent.powered_off)));
        }
        if !agreed.is_empty() {
            entries.push(("Consented to", agreed.join("; ")));
        }
        self.0.push_str("<dl class=\"facts\">");
        for (label, text) in entries {
            let _ = write!(self.0, "<div><dt>{}</dt><dd>{}</dd></div>", escape(label), escape(&text));
        }
        self.0.push_str("</dl>");
    }

    fn timeline(&mut self, report: &Report<'_>) {
        let svg = picture::svg(report);
        if svg.is_empty() {
            return;
        }
        self.title("What happened when");
        let _ = write!(self.0, "<div class=\"scroll\">{svg}</div><ul class=\"legend\">");
        for (class, words) in picture::legend(report) {
            let _ = write!(self.0, "<li><i class=\"{class}\"></i>{}</li>", escape(words));
        }
        let any = |results: &[Result]| report.timeline.iter().any(|e| results.contains(&e.result));
        if any(&[Result::Failed]) {
            self.0.push_str("<li>✘ and hatched: failed</li>");
        }
        if any(&[Result::Unknown, Result::Open]) {
            self.0.push_str("<li>? and dashed: outcome not known</li>");
        }
        self.0.push_str("</ul>");
    }

    fn nodes(&mut self, report: &Report<'_>) {
        self.title("Nodes, before and after");
        self.table(&["", "Node", "Role", "Before", "After", "How it was proven"]);
        for node in &report.nodes {
            let (class, mark) = mark_of(node);
            let _ = write!(
                self.0,
                "<tr><td class=\"mark {class}\">{mark}</td><td class=\"mono nowrap\">{}</td><td>{}</td><td class=\"mono nowrap\">{}\
                 </td><td class=\"mono nowrap\">{}</td><td>{}</td></tr>",
                escape(node.name.as_str()),
                node.role,
                escape(&node.before.to_string()),
                escape(&fact(&node.after)),
                escape(&proven(node)),
            );
        }
        self.0.push_str("</tbody></table></div>");
    }

    fn moments(&mut self, report: &Report<'_>) {
        if report.moments.is_empty() {
            return;
        }
        self.title("Holds and requests");
        self.table(&["When", "What", "By"]);
        for moment in &report.moments {
            let _ = write!(
                self.0,
                "<tr><td class=\"time\">{}</td><td>{}</td><td>{}</td></tr>",
                escape(&time(moment.at)),
                escape(&moment.what),
                escape(&moment.by)
            );
        }
        self.0.push_str("</tbody></table></div>");
    }

    fn checks(&mut self, checked: &Checked<'_>) {
        let (passed, other): (Vec<&Finding>, Vec<&Finding>) =
            checked.findings.iter().partition(|f| f.verdict == Verdict::Pass);
        self.title(&format!("{}: {}", checked.when, tally(passed.len(), &other, checked.regressions.len())));
        if !checked.regressions.is_empty() {
            self.table(&["", "What is worse", "Before", "Then"]);
            for worse in checked.regressions {
                let _ = write!(
                    self.0,
                    "<tr><td class=\"mark bad\">✘</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                    escape(&worse.about),
                    escape(&worse.before),
                    escape(&worse.now)
                );
            }
            self.0.push_str("</tbody></table></div>");
        }
        if !other.is_empty() {
            self.findings(&other);
        }
        if !passed.is_empty() {
            let _ =
                write!(self.0, "<details><summary>{} passed, with their facts</summary>", count(passed.len(), "check"));
            self.findings(&passed);
            self.0.push_str("</details>");
        }
    }

    fn findings(&mut self, findings: &[&Finding]) {
        self.table(&["", "Check", "About", "What was found, and the facts it rests on"]);
        for finding in findings {
            let (class, mark, word) = match finding.verdict {
                Verdict::Pass => ("good", "✔", "passed"),
                _ if finding.waived.is_some() => ("warn", "~", "waived"),
                Verdict::Warn => ("warn", "!", "warning"),
                Verdict::Unknown => ("warn", "?", "unknown"),
                Verdict::UnknownBlocks => ("bad", "?", "unknown, blocks"),
                Verdict::Block => ("bad", "✘", "blocks"),
            };
            let _ = write!(
                self.0,
                "<tr><td class=\"mark {class}\" title=\"{word}\">{mark}</td><td class=\"mono nowrap\">{}</td><td>{}</td><td>{}",
                escape(&finding.code),
                escape(&finding.about),
                escape(&finding.what)
            );
            if !finding.facts.is_empty() {
                self.0.push_str("<ul>");
                for fact in &finding.facts {
                    let _ = write!(self.0, "<li><code>{}</code></li>", escape(fact));
                }
                self.0.push_str("</ul>");
            }
            if finding.verdict != Verdict::Pass {
                let _ = write!(self.0, "<p class=\"soft\">Why it matters: {}</p>", escape(&finding.why));
                let _ = write!(self.0, "<p>Do: {}</p>", escape(&finding.remedy));
            }
            if let Some(waiver) = &finding.waived {
                let text = format!("Waived by {} until {}: {}", waiver.owner, time(waiver.until), waiver.reason);
                let _ = write!(self.0, "<p>{}</p>", escape(&text));
            }
            self.0.push_str("</td></tr>");
        }
        self.0.push_str("</tbody></table></div>");
    }

    fn backups(&mut self, report: &Report<'_>) {
        if report.backups.is_empty() {
            return;
        }
        self.title("Backups");
        self.table(&["Name", "Taken", "On", "Size", "Revision", "SHA-256"]);
        for backup in report.backups {
            let revision = backup.revision.map_or_else(|| "not known".to_owned(), |r| r.to_string());
            let least = backup.at_least.map(|r| format!(" (at least {r} was seen before)")).unwrap_or_default();
            let _ = write!(
                self.0,
                "<tr><td class=\"mono\">{}</td><td class=\"time\">{}</td><td class=\"mono nowrap\">{}</td><td class=\"nowrap\">{}\
                 </td><td>{}</td><td class=\"mono\">datastore as read back: {}",
                escape(&backup.backup.name),
                escape(&time(backup.backup.taken)),
                escape(&backup.backup.version.to_string()),
                escape(&bytes(backup.bytes)),
                escape(&format!("{revision}{least}")),
                backup.backup.digest,
            );
            for (file, digest) in &backup.files {
                let _ = write!(self.0, "<br>{}, encrypted: {digest}", escape(file));
            }
            for caveat in &backup.caveats {
                let _ = write!(self.0, "<br>! {}", escape(caveat));
            }
            self.0.push_str("</td></tr>");
        }
        self.0.push_str("</tbody></table></div>");
    }

    fn plan(&mut self, report: &Report<'_>) {
        let plan = report.plan.plan;
        self.title(&format!("The plan, {}: why so", report.plan.hash.short()));
        self.0.push_str("<ul>");
        for because in &plan.seen.because {
            let _ = write!(self.0, "<li>{}</li>", escape(because));
        }
        let _ = write!(
            self.0,
            "</ul><details><summary>Each step of the {}, its undo class and its reasons</summary>",
            purpose(&plan.decision)
        );
        self.table(&["Hop", "Node", "From", "To", "Undo", "Why so"]);
        for (i, hop) in plan.decision.hops.iter().enumerate() {
            for (j, step) in hop.steps.iter().enumerate() {
                let point = if hop.point_of_no_return == Some(j) { " (⚠ point of no return)" } else { "" };
                let class = if step.undo == UndoClass::Binary { "" } else { " class=\"mark warn\"" };
                let _ = write!(
                    self.0,
                    "<tr><td>{}</td><td class=\"mono nowrap\">{}</td><td class=\"mono nowrap\">{}</td><td class=\"mono \
                     nowrap\">{}</td><td{class}>{}{point}</td><td>{}</td></tr>",
                    i + 1,
                    escape(step.node.as_str()),
                    escape(&step.from.to_string()),
                    escape(&step.to.to_string()),
                    step.undo,
                    escape(&step.because.join("; "))
                );
            }
        }
        self.0.push_str("</tbody></table></div></details>");
    }

    fn steps(&mut self, report: &Report<'_>) {
        self.title(&format!("Every action ({})", report.timeline.len()));
        self.0.push_str("<details><summary>In the order in which they were begun</summary>");
        self.table(&["", "Begun", "Took", "What", "What came of it"]);
        for entry in &report.timeline {
            let (class, mark) = match entry.result {
                Result::Done => ("good", "✔"),
                Result::Failed => ("bad", "✘"),
                Result::Unknown | Result::Open => ("warn", "?"),
            };
            let _ = write!(
                self.0,
                "<tr><td class=\"mark {class}\" title=\"{}\">{mark}</td><td class=\"time\">{}</td><td class=\"time\">{}</td>\
                 <td>{}</td><td>{}</td></tr>",
                entry.result.word(),
                clock(entry.start),
                escape(&entry.took.map(took).unwrap_or_default()),
                escape(&entry.words),
                escape(&entry.detail)
            );
        }
        self.0.push_str("</tbody></table></div></details>");
    }

    /// Begins a table; its rows and its end follow.
    fn table(&mut self, heads: &[&str]) {
        self.0.push_str("<div class=\"scroll\"><table><thead><tr>");
        for head in heads {
            let _ = write!(self.0, "<th>{}</th>", escape(head));
        }
        self.0.push_str("</tr></thead><tbody>");
    }
}

fn mark_of(node: &NodePart<'_>) -> (&'static str, &'static str) {
    match (&node.failure, &node.after) {
        (_, Fact::Unknown(_)) => ("warn", "?"),
        (Some(_), Fact::Known(after)) if after == node.before => ("warn", "! back"),
        (Some(_), _) => ("bad", "✘"),
        (None, _) if node.our_cordon => ("warn", "!"),
        (None, Fact::Known(after)) if after == node.before && node.proof.is_none() => ("good", "· as before"),
        (None, _) => ("good", "✔"),
    }
}

fn proven(node: &NodePart<'_>) -> String {
    let mut parts = Vec::new();
    if let Some(failure) = node.failure {
        parts.push(failure.what.clone());
    }
    if let Some(proof) = node.proof {
        parts.push(format!(
            "Ready {} after its restart, healthy after {}, held {}",
            duration(proof.ready_after),
            duration(proof.healthy_after),
            duration(proof.held)
        ));
        match &proof.etcd {
            Fact::Known(Some(etcd)) => parts.push(format!("etcd {etcd}")),
            Fact::Known(None) => {}
            Fact::Unknown(why) => parts.push(format!("etcd not known: {why}")),
        }
    }
    if let Fact::Unknown(why) = &node.after {
        parts.push(why.clone());
    }
    if node.our_cordon {
        parts.push("still has our cordon".to_owned());
    }
    parts.join("; ")
}

fn tally(passed: usize, other: &[&Finding], worse: usize) -> String {
    let blocks = other.iter().filter(|f| f.blocks()).count();
    if passed + other.len() + worse == 0 {
        return "no finding was kept".to_owned();
    }
    let mut parts = vec![format!("{passed} passed")];
    if blocks > 0 {
        parts.push(format!("{blocks} in the way"));
    }
    if other.len() > blocks {
        parts.push(count(other.len() - blocks, "remark"));
    }
    if worse > 0 {
        parts.push(format!("{} worse", count(worse, "thing")));
    }
    parts.join(", ")
}
