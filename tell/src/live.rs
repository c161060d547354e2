//! What is under way now: drawn again and again on a terminal; where there is none, the waits that take long.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::action::Action;
use kadence_core::apply::plan::{Purpose, Step};
use kadence_core::apply::rollout::{At, NodeProgress, Rollout};
use kadence_core::event::{Event, OutageMeasured, Recorded};
use kadence_core::ident::{ActionId, NodeName};
use kadence_core::inventory::Role;

use crate::Style;
use crate::layout::{columns, dim, finish, one_line, pad, strong, warn};
use crate::words::{count, duration, names, took};

/// What goes on for longer than this is told where nothing is drawn.
const LONG: SignedDuration = SignedDuration::from_secs(10);
const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const BAR: usize = 16;
/// Columns for the times behind a bar.
const TIMES: usize = 22;
/// Nodes still to come that are shown; the rest is counted.
const TO_COME: usize = 6;

/// A fold of a rollout's events, and of what is seen between them, into what goes on now.
#[derive(Debug)]
pub struct Live {
    rollout: Rollout,
    since: BTreeMap<ActionId, Timestamp>,
    waits: BTreeMap<ActionId, String>,
    told: BTreeSet<ActionId>,
    outage: Option<OutageMeasured>,
}

impl Live {
    /// Of a rollout that is carried on from now.
    pub fn of(rollout: &Rollout, now: Timestamp) -> Self {
        Self {
            since: rollout.open().map(|(id, _)| (id.clone(), now)).collect(),
            waits: BTreeMap::new(),
            told: BTreeSet::new(),
            outage: rollout.outage,
            rollout: rollout.clone(),
        }
    }

    /// Takes an event in. The line that an action ends with whose long wait was told, if `Lines` has none for it.
    pub fn event(&mut self, recorded: &Recorded, told_already: bool) -> Option<String> {
        let mut ended = None;
        match &recorded.event {
            Event::Intent { id, .. } => {
                self.since.insert(id.clone(), recorded.at);
            }
            Event::Outcome { id, .. } => {
                let action = self.rollout.open().find(|(open, _)| *open == id).map(|(_, action)| action.words());
                let since = self.since.remove(id);
                self.waits.remove(id);
                if let (true, false, Some(words), Some(since)) = (self.told.remove(id), told_already, action, since) {
                    ended = Some(format!("· {words}: over after {}", duration(recorded.at.duration_since(since))));
                }
            }
            _ => {}
        }
        // A log that is not whole is refused elsewhere; here it would only be shown.
        let _ = self.rollout.apply(recorded);
        ended.map(|line| finish(false, &line))
    }

    /// What an action waits for.
    pub fn waits(&mut self, action: &ActionId, what: &str) {
        self.waits.insert(action.clone(), one_line(what));
    }

    /// The outage measured so far.
    pub fn outage(&mut self, outage: OutageMeasured) {
        self.outage = Some(outage);
    }

    /// Waits that have become long since this was last asked, a line each.
    pub fn long_waits(&mut self, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, action) in self.rollout.open() {
            let Some(lasts) = self.since.get(id).map(|since| now.duration_since(*since)) else { continue };
            if lasts < LONG || !self.told.insert(id.clone()) {
                continue;
            }
            let what = self.waits.get(id).map(|what| format!(", waits for {what}")).unwrap_or_default();
            let usual = self.usual(action).map(|usual| format!("; usually about {}", duration(usual)));
            let line = format!("· {}: {} so far{what}{}", action.words(), duration(lasts), usual.unwrap_or_default());
            lines.push(finish(false, &line));
        }
        lines
    }

    /// What is under way, what is still to come, the outage so far and how to stop: a few lines, to be drawn over the
    /// last ones. `tick` turns the wheel.
    pub fn block(&self, now: Timestamp, tick: usize, style: Style) -> String {
        let width = usize::from(style.width);
        let wheel = FRAMES[tick % FRAMES.len()];
        let mut lines = Vec::new();
        let mut shown = BTreeSet::new();
        for step in self.rollout.steps() {
            let Some(progress) = self.rollout.nodes.get(&step.node).filter(|p| p.at.in_hand()) else { continue };
            shown.insert(&step.node);
            lines.push(self.in_hand(wheel, step, progress, now, width));
        }
        for (text, since) in self.besides(&shown) {
            let time = since.map(|since| took(now.duration_since(since))).unwrap_or_default();
            lines.push(line(&format!("{wheel} {text}"), "", &time, width));
        }
        lines.extend(self.to_come());
        lines.push(self.foot());
        finish(style.colour, &lines.join("\n"))
    }

    fn name_columns(&self) -> usize {
        self.rollout.nodes.keys().map(|n| n.as_str().chars().count()).max().unwrap_or_default().max(4)
    }

    fn in_hand(&self, wheel: &str, step: &Step, progress: &NodeProgress, now: Timestamp, width: usize) -> String {
        let node = &step.node;
        let of_node = |action: &Action| action.node() == Some(node);
        let open = self.rollout.open().find(|(_, action)| of_node(action));
        let waits = open.and_then(|(id, _)| self.waits.get(id)).map(|w| format!(": {w}")).unwrap_or_default();
        let text = format!("{wheel} {} {}{waits}", pad(&strong(node.as_str()), self.name_columns()), doing(progress));
        let lasts = progress.began.map_or(SignedDuration::ZERO, |began| now.duration_since(began));
        let usual = self.of_node(step.role);
        let times = if lasts > usual {
            warn(&format!("{}, usually {}", took(lasts), duration(usual)))
        } else {
            format!("{} of about {}", took(lasts), duration(usual))
        };
        line(&text, &bar(lasts, usual), &times, width)
    }

    /// Actions under way that no node in hand stands for: copies to nodes at the same time are one.
    fn besides(&self, shown: &BTreeSet<&NodeName>) -> Vec<(String, Option<Timestamp>)> {
        let open = || self.rollout.open().filter(|(_, action)| action.node().is_none_or(|n| !shown.contains(n)));
        let staging: Vec<_> = open().filter(|(_, action)| matches!(action, Action::Stage { .. })).collect();
        let mut rows = Vec::new();
        if !staging.is_empty() {
            let nodes = staging.iter().filter_map(|(_, action)| action.node());
            let since = staging.iter().filter_map(|(id, _)| self.since.get(*id)).min().copied();
            rows.push((format!("stage the binary on {}", names(nodes)), since));
        }
        for (id, action) in open().filter(|(_, action)| !matches!(action, Action::Stage { .. })) {
            let waits = self.waits.get(id).map(|what| format!(": {what}")).unwrap_or_default();
            rows.push((format!("{}{waits}", action.words()), self.since.get(id).copied()));
        }
        rows
    }

    fn to_come(&self) -> Vec<String> {
        // A restore goes by what is done, not by nodes.
        if let Purpose::Restore { .. } = self.rollout.plan.decision.purpose {
            return Vec::new();
        }
        let waiting =
            |node: &NodeName| self.rollout.nodes.get(node).is_some_and(|p| matches!(p.at, At::Waiting | At::Looking));
        let nodes: Vec<&NodeName> = self.rollout.steps().iter().map(|s| &s.node).filter(|n| waiting(n)).collect();
        let mut lines: Vec<String> = nodes.iter().take(TO_COME).map(|node| dim(&format!("· {node}"))).collect();
        if nodes.len() > TO_COME {
            lines.push(dim(&format!("· and {} more", count(nodes.len() - TO_COME, "node"))));
        }
        let hops = self.rollout.plan.decision.hops.len();
        if self.rollout.hop + 1 < hops {
            lines.push(dim(&format!("· then {} more", count(hops - self.rollout.hop - 1, "hop"))));
        }
        lines
    }

    fn foot(&self) -> String {
        let cluster = &self.rollout.plan.decision.cluster;
        let gap = self.outage.map(|outage| {
            format!(
                "API: longest gap so far: reads {}, writes {}      ",
                duration(outage.reads.longest),
                duration(outage.writes.longest)
            )
        });
        let stop = match self.rollout.asked {
            Some(_) => "asked to stop: no further node is begun".to_owned(),
            None => format!("kadence pause {cluster}    kadence abort {cluster}"),
        };
        format!("  {}{}", gap.unwrap_or_default(), dim(&stop))
    }

    /// From the cordon to the last proof.
    fn of_node(&self, role: Role) -> SignedDuration {
        let plan = &self.rollout.plan;
        let restart = match role {
            Role::Server => plan.seen.expected.per_server,
            Role::Agent => plan.seen.expected.per_agent,
        };
        restart + plan.decision.manner.settle
    }

    fn usual(&self, action: &Action) -> Option<SignedDuration> {
        match action {
            Action::Prove { role, .. } => Some(self.of_node(*role)),
            _ => None,
        }
    }
}

fn doing(progress: &NodeProgress) -> &'static str {
    match progress.at {
        At::Cordoning => "cordoning",
        At::Draining => "draining",
        At::Swapping => "restarting",
        At::Proving => "restarted",
        At::Uncordoning | At::UncordoningBack | At::GivingUp => "uncordoning",
        At::PuttingBack => "putting its previous binary back",
        At::ProvingBack => "back on its previous binary",
        At::Waiting | At::Looking | At::Done | At::Back | At::Stuck => "",
    }
}

/// Text, bar and times, each in its place; a text that is too long is cut, so that the line stays one.
fn line(text: &str, bar: &str, times: &str, width: usize) -> String {
    let room = width.saturating_sub(BAR + TIMES + 3).max(20);
    let mut cut = String::new();
    for c in text.chars() {
        if columns(&cut) + 1 == room && columns(text) > room {
            cut.push('…');
            break;
        }
        cut.push(c);
    }
    let line = format!("{} {} {times}", pad(&cut, room), pad(bar, BAR));
    line.trim_end().to_owned()
}

fn bar(lasts: SignedDuration, usual: SignedDuration) -> String {
    let (lasts, usual) = (lasts.as_millis().max(0), usual.as_millis().max(1));
    let full = usize::try_from(lasts.saturating_mul(BAR as i128) / usual).unwrap_or(BAR).min(BAR);
    if full == BAR {
        return "━".repeat(BAR);
    }
    format!("{}╸{}", "━".repeat(full), "─".repeat(BAR - full - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_grows_to_its_end_and_not_further() {
        let bar = |millis| bar(SignedDuration::from_millis(millis), SignedDuration::from_secs(8));
        assert_eq!(bar(0), "╸───────────────");
        assert_eq!(bar(4_000), "━━━━━━━━╸───────");
        assert_eq!(bar(7_999), "━━━━━━━━━━━━━━━╸");
        assert_eq!(bar(80_000), "━━━━━━━━━━━━━━━━");
    }

    #[test]
    fn a_line_stays_one_line() {
        let text =
            line(&format!("⠹ {} restarting: {}", strong("s2"), "waits ".repeat(40)), "━", "1 s of about 8 s", 100);
        assert_eq!(columns(&text), 100 - TIMES + "1 s of about 8 s".len() - 1);
        assert!(text.contains('…'), "{text}");
    }
}
