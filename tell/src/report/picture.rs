//! The timeline as a picture: a lane for the cluster and one for each node, a bar for each action.
//!
//! Colour tells kinds apart, and so do the words in the bars, the legend and the table below the picture. Long times in
//! which nothing ran (a hold, a night) are folded, and said.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use kadence_core::ident::NodeName;

use crate::report::fold::{Entry, Report, Result};
use crate::report::page::escape;
use crate::words::{age, clock, duration, took};

const WIDTH: f64 = 1040.0;
const LANE: f64 = 26.0;
const BETWEEN: f64 = 8.0;
const TOP: f64 = 34.0;
/// Width of a folded time.
const FOLD: f64 = 52.0;
/// Width of a character in a bar, at least.
const CHARACTER: f64 = 6.4;
/// Of what is short, this much is drawn.
const LEAST: f64 = 2.0;

/// A kind of bar: its class, and what the legend says.
fn kind(entry: &Entry<'_>) -> (&'static str, &'static str) {
    match entry.kind {
        "check" | "look" | "validate" => ("k-look", "check, look, compare"),
        "stage" | "place" => ("k-stage", "copy the binary"),
        "backup" | "reset" | "restore-command" => ("k-data", "back up, restore"),
        "cordon" | "uncordon" => ("k-cordon", "cordon, uncordon"),
        "drain" => ("k-drain", "drain"),
        "prove" => ("k-prove", "until proven healthy, lighter: the settle time"),
        _ => ("k-swap", "replace, stop, start"),
    }
}

/// What stands in a bar.
fn label(entry: &Entry<'_>) -> &'static str {
    match entry.kind {
        "swap" if entry.back => "put back",
        "swap" => "replace",
        "prove" if entry.result == Result::Failed => "not healthy",
        "prove" => "healthy",
        "validate" => "compare",
        "backup" => "back up",
        "reset" | "restore-command" => "restore",
        "set-aside" => "set aside",
        "restart-controllers" => "restart controllers",
        other => other,
    }
}

/// The picture, as SVG in a page that has the styles; nothing if nothing was done.
pub(super) fn svg(report: &Report<'_>) -> String {
    let Some(scale) = Scale::of(report) else { return String::new() };
    let lanes = lanes(report);
    let height = TOP + lanes.len() as f64 * (LANE + BETWEEN) + 4.0;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg class=\"timeline\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Timeline: what was done on \
         which node, and when\"><defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"2.5\" height=\"6\" class=\"hatch\"/></pattern></defs>"
    );
    scale.draw(&mut out, height);
    for (i, (name, node)) in lanes.iter().enumerate() {
        let y = TOP + i as f64 * (LANE + BETWEEN);
        let _ = write!(
            out,
            "<line class=\"lane\" x1=\"{:.1}\" x2=\"{WIDTH}\" y1=\"{3:.1}\" y2=\"{3:.1}\"/><text class=\"name\" x=\"0\" \
             y=\"{:.1}\">{}</text>",
            scale.left,
            y + LANE / 2.0 + 4.0,
            escape(&shortened(name)),
            y + LANE + BETWEEN / 2.0,
        );
        for entry in report.timeline.iter().filter(|e| lane_of(e) == *node) {
            bar(&mut out, report, &scale, entry, y);
        }
    }
    out.push_str("</svg>");
    out
}

/// The kinds that are in the picture, in the order in which they appear: class and words.
pub(super) fn legend(report: &Report<'_>) -> Vec<(&'static str, &'static str)> {
    let mut kinds = Vec::new();
    for kind in report.timeline.iter().map(kind) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn lane_of<'a>(entry: &Entry<'a>) -> Option<&'a NodeName> {
    match entry.nodes.as_slice() {
        [node] if entry.kind != "look" => Some(node),
        _ => None,
    }
}

/// The cluster's lane, then the nodes in the order in which they were done.
fn lanes<'a>(report: &Report<'a>) -> Vec<(String, Option<&'a NodeName>)> {
    let mut lanes: Vec<(String, Option<&NodeName>)> = vec![("cluster".to_owned(), None)];
    let order = report.plan.plan.decision.hops.iter().flat_map(|h| &h.steps).map(|s| &s.node);
    for node in order.chain(report.timeline.iter().filter_map(lane_of)) {
        if !lanes.iter().any(|(_, n)| *n == Some(node)) {
            lanes.push((node.to_string(), Some(node)));
        }
    }
    lanes
}

fn shortened(name: &str) -> String {
    let mut chars = name.chars();
    let short: String = chars.by_ref().take(22).collect();
    if chars.next().is_some() { format!("{short}…") } else { short }
}

fn bar(out: &mut String, report: &Report<'_>, scale: &Scale, entry: &Entry<'_>, y: f64) {
    let end = entry.end.unwrap_or(report.until());
    let (x0, x1) = (scale.x(entry.start), scale.x(end));
    let width = (x1 - x0).max(LEAST);
    let (class, _) = kind(entry);
    let (state, mark) = match entry.result {
        Result::Done => ("", ""),
        Result::Failed => (" failed", "✘ "),
        Result::Unknown | Result::Open => (" unsure", "? "),
    };
    let lasted = entry.took.unwrap_or_else(|| end.duration_since(entry.start));
    let detail = if entry.detail.is_empty() { String::new() } else { format!(": {}", entry.detail) };
    let tip = format!("{}, {} ({}){detail}", entry.words, took(lasted), entry.result.word());
    let _ = write!(
        out,
        "<g class=\"bar {class}{state}\"><title>{}</title><rect x=\"{x0:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
         height=\"{LANE}\" rx=\"3\"/>",
        escape(&tip)
    );
    if entry.result == Result::Failed {
        let _ = write!(
            out,
            "<rect x=\"{x0:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{LANE}\" rx=\"3\" fill=\"url(#hatch)\"/>"
        );
    }
    // The time a node had to stay healthy is waiting by intent: it is drawn lighter.
    let held = entry.held.filter(|h| !h.is_zero()).map_or(0.0, |held| (x1 - scale.x(end - held)).clamp(0.0, width));
    if held > LEAST {
        let x = x1 - held;
        let _ = write!(
            out,
            "<rect class=\"held\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{held:.1}\" height=\"{LANE}\" rx=\"3\"/>"
        );
        text(out, "settle", x, held, y);
    }
    let free = width - held;
    let own = took(lasted - entry.held.unwrap_or_default());
    let labels = [format!("{mark}{} {own}", label(entry)), format!("{mark}{}", label(entry)), format!("{mark}{own}")];
    if let Some(fits) = labels.iter().find(|l| l.chars().count() as f64 * CHARACTER + 8.0 <= free) {
        text(out, fits, x0, free, y);
    } else if !mark.is_empty() && free >= 12.0 {
        text(out, mark.trim(), x0, free, y);
    }
    out.push_str("</g>");
}

fn text(out: &mut String, text: &str, x: f64, width: f64, y: f64) {
    if text.chars().count() as f64 * CHARACTER + 6.0 > width {
        return;
    }
    let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 4.0, y + LANE / 2.0 + 4.0, escape(text));
}

/// Where a time stands in the picture: times in which something ran, with folds between them.
struct Scale {
    left: f64,
    stretches: Vec<Stretch>,
}

struct Stretch {
    from: Timestamp,
    to: Timestamp,
    x0: f64,
    x1: f64,
}

impl Scale {
    fn of(report: &Report<'_>) -> Option<Self> {
        let longest = lanes(report).iter().map(|(name, _)| shortened(name).chars().count()).max().unwrap_or_default();
        let left = (longest as f64 * 7.5 + 14.0).min(190.0);
        let mut busy: Vec<(Timestamp, Timestamp)> = report
            .timeline
            .iter()
            .flat_map(|e| without_holds(report, e.start, e.end.unwrap_or(report.until()).max(e.start)))
            .collect();
        busy.sort();
        let total: SignedDuration = sum(&busy);
        let fold_from = (total / 8).max(SignedDuration::from_secs(10));
        let mut merged: Vec<(Timestamp, Timestamp)> = Vec::new();
        for (from, to) in busy {
            match merged.last_mut() {
                Some((_, end)) if from.duration_since(*end) <= fold_from => *end = (*end).max(to),
                _ => merged.push((from, to)),
            }
        }
        let total = sum(&merged).as_secs_f64().max(0.001);
        let folds = merged.len().saturating_sub(1) as f64;
        let room = (WIDTH - left - folds * FOLD).max(100.0);
        let mut x = left;
        let stretches: Vec<Stretch> = merged
            .into_iter()
            .map(|(from, to)| {
                let x0 = x;
                let x1 = x0 + to.duration_since(from).as_secs_f64() / total * room;
                x = x1 + FOLD;
                Stretch { from, to, x0, x1 }
            })
            .collect();
        (!stretches.is_empty()).then_some(Self { left, stretches })
    }

    fn x(&self, at: Timestamp) -> f64 {
        let mut x = self.left;
        for stretch in &self.stretches {
            if at < stretch.from {
                return x;
            }
            let share = at.duration_since(stretch.from).as_secs_f64()
                / stretch.to.duration_since(stretch.from).as_secs_f64().max(0.001);
            if share <= 1.0 {
                return stretch.x0 + share * (stretch.x1 - stretch.x0);
            }
            x = stretch.x1;
        }
        x
    }

    /// The axis: clock times where a stretch begins, the time since then at ticks, and folds.
    fn draw(&self, out: &mut String, height: f64) {
        for (i, stretch) in self.stretches.iter().enumerate() {
            let _ = write!(
                out,
                "<line class=\"tick\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"20\" y2=\"{height:.1}\"/><text class=\"axis\" \
                 x=\"{0:.1}\" y=\"14\">{1} UTC</text>",
                stretch.x0,
                clock(stretch.from)
            );
            let lasts = stretch.to.duration_since(stretch.from);
            let per_second = (stretch.x1 - stretch.x0) / lasts.as_secs_f64().max(0.001);
            let step = step(per_second);
            let mut tick = step;
            while tick <= lasts && !step.is_zero() {
                let x = stretch.x0 + tick.as_secs_f64() * per_second;
                // Beside the clock time and before the end there is room.
                let half = (duration(tick).chars().count() as f64 + 1.0) * CHARACTER / 2.0;
                if x - half > stretch.x0 + 78.0 && x + half < stretch.x1 {
                    let _ = write!(
                        out,
                        "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{height:.1}\"/><text \
                         class=\"axis\" x=\"{x:.1}\" y=\"14\" text-anchor=\"middle\">+{}</text>",
                        duration(tick)
                    );
                }
                tick += step;
            }
            if let Some(next) = self.stretches.get(i + 1) {
                let middle = f64::midpoint(stretch.x1, next.x0);
                let _ = write!(
                    out,
                    "<rect class=\"fold\" x=\"{:.1}\" y=\"20\" width=\"{:.1}\" height=\"{:.1}\"/><text class=\"axis\" \
                     x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    stretch.x1 + 4.0,
                    next.x0 - stretch.x1 - 8.0,
                    height - 24.0,
                    height / 2.0 + 10.0,
                    escape(&age(next.from.duration_since(stretch.to)))
                );
            }
        }
    }
}

/// The least round time between ticks that leaves room for their words.
fn step(per_second: f64) -> SignedDuration {
    const STEPS: [i64; 16] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21_600, 86_400];
    let least = 90.0 / per_second.max(1e-9);
    STEPS.iter().find(|s| **s as f64 >= least).map_or(SignedDuration::ZERO, |s| SignedDuration::from_secs(*s))
}

fn sum(stretches: &[(Timestamp, Timestamp)]) -> SignedDuration {
    stretches
        .iter()
        .map(|(from, to)| to.duration_since(*from))
        .fold(SignedDuration::ZERO, SignedDuration::saturating_add)
}

/// A time without the times in which the rollout was held.
fn without_holds(report: &Report<'_>, from: Timestamp, to: Timestamp) -> Vec<(Timestamp, Timestamp)> {
    let mut parts = vec![(from, to)];
    let moments: BTreeMap<Timestamp, &str> = report.moments.iter().map(|m| (m.at, m.kind)).collect();
    let held = moments.iter().filter(|(_, kind)| **kind == "held").map(|(at, _)| *at);
    for begin in held {
        let end = moments.range(begin..).find(|(at, kind)| **at > begin && **kind != "asked").map_or(to, |(at, _)| *at);
        parts = parts
            .into_iter()
            .flat_map(|(a, b)| {
                let outside = end <= a || begin >= b;
                if outside { vec![(a, b)] } else { vec![(a, begin.max(a)), (end.min(b), b)] }
            })
            .collect();
    }
    parts
}
