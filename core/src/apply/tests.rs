//! Stories of plans and rollouts. Most stand in `scenarios/*.toml`: a world, what somebody wants, and what must come of
//! it, in the words that a person would read. A file is read whole, and every story that comes out differently is shown.

mod planner;
mod precondition;
mod restore;
mod rollout;
mod story;
mod verify;
mod way_back;
mod world;

use serde::de::DeserializeOwned;

use crate::apply::plan::{BackupMethod, Drain, Plan};

/// Tells every story of a file; `tell` returns what is expected and what came.
fn tell_all<S: DeserializeOwned>(file: &str, text: &str, tell: impl Fn(&S) -> (String, String)) {
    #[derive(serde::Deserialize)]
    struct File<S> {
        story: Vec<S>,
    }
    let stories: File<toml::Spanned<S>> = toml::from_str(text).unwrap_or_else(|e| unreachable!("{file}: {e}"));
    assert!(!stories.story.is_empty());
    let mut wrong = Vec::new();
    for story in &stories.story {
        let (expected, came) = tell(story.get_ref());
        let lines = |text: &str| text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n");
        if lines(&expected) != lines(&came) {
            let line = text[..story.span().start].lines().count() + 1;
            wrong.push(format!("{file}:{line}\nexpected\n{}\ncame\n{}", lines(&expected), lines(&came)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A plan for people: its hops with their waves, each node with where it comes from, what happens to its pods and what
/// undoes it.
fn words(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for hop in &plan.decision.hops {
        let backup = match &hop.backup {
            BackupMethod::EtcdSnapshot { server } => format!("etcd snapshot on {server}"),
            BackupMethod::SqliteOnline { server, tool } => format!("SQLite on {server} with {tool:?}"),
            BackupMethod::SqliteStopped { server } => format!("SQLite on {server} while stopped"),
            BackupMethod::Command { command } => format!("`{command}`"),
        };
        lines.push(format!("to {}, backup: {backup}", hop.to));
        for (i, step) in hop.steps.iter().enumerate() {
            if hop.point_of_no_return == Some(i) {
                lines.push("point of no return".to_owned());
            }
            let to = if step.to == hop.to { String::new() } else { format!(" to {}", step.to) };
            let pods = match step.drain {
                Drain::CordonOnly => "cordoned",
                Drain::Evict => "drained",
            };
            lines.push(format!(
                "{} {} {} from {}{to}, {pods}, undo: {}",
                step.wave, step.role, step.node, step.from, step.undo
            ));
        }
    }
    if let Some(outage) = plan.decision.outage {
        lines.push(format!("outage: {outage:?}"));
    }
    if lines.is_empty() { "nothing to do".to_owned() } else { lines.join("\n") }
}
