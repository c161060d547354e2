//! A plan as a table, and as a document.

use std::path::Path;

use kadence_core::apply::plan::{BackupMethod, DatastoreKind, Decision, Drain, Hop, Plan, Purpose, Step, UndoClass};
use kadence_core::apply::restore;
use kadence_core::inventory::Role;
use serde_json::{Value, json};

use crate::Style;
use crate::layout::{Page, bad, dim, strong, warn};
use crate::words::{count, datastore, duration, names, servers_and_agents, time};

/// A plan as one document, schema 1: its `hash`, the `file` it lies in, and the `plan`, as [`Plan`] has it.
pub fn json(plan: &Plan, file: &Path) -> Value {
    json!({ "schema": 1, "hash": plan.hash(), "file": file, "plan": plan })
}

const UNDER: &str = "           ";

/// The plan: what it brings and takes, its order, its undo, why, and how to go on.
///
/// `verbose` 1 adds the reasons of each step, 2 what must still hold before each.
pub fn text(plan: &Plan, style: Style) -> String {
    let decision = &plan.decision;
    let mut page = Page::new(style);
    if decision.hops.is_empty() {
        page.say(&format!("{} is on {} already: nothing to do.", decision.cluster, decision.target));
        return page.finish();
    }
    page.say(&strong(&answer(plan)));
    page.say(&format!("Forecast from {}.", plan.seen.expected.basis.trim_end_matches('.')));
    outage(&mut page, decision);
    lost(&mut page, plan);
    page.gap();

    if let Purpose::Restore { .. } = &decision.purpose {
        steps_of_restore(&mut page, plan);
    } else {
        before(&mut page, decision);
        for (i, hop) in decision.hops.iter().enumerate() {
            self::hop(&mut page, plan, i, hop);
        }
        page.entry(
            "  after    ",
            "compare versions, readiness, etcd, workloads, packaged components and cordons with the state before · run \
             the probes",
        );
    }
    if !decision.excluded.is_empty() {
        page.entry("  left out ", &format!("{}, on purpose", names(&decision.excluded)));
    }
    if decision.manner.until_servers {
        page.entry("  left out ", "the agents: this plan ends with the servers");
    }
    if page.verbose(2) {
        preconditions(&mut page, decision);
    }

    page.gap();
    reasons(&mut page, plan);
    page.finish()
}

fn answer(plan: &Plan) -> String {
    let decision = &plan.decision;
    let expected = &plan.seen.expected;
    let (hash, cluster, target) = (plan.hash().short(), &decision.cluster, &decision.target);
    let about = duration(expected.total);
    let servers = servers_and_agents(decision.preconditions.nodes.values().map(|n| n.role));
    match &decision.purpose {
        Purpose::Update => format!(
            "Plan {hash} for {cluster}: {target}, about {about}; longest API gap expected: reads {}, writes {} \
             ({servers}).",
            duration(expected.reads_gap),
            duration(expected.writes_gap),
        ),
        Purpose::Rollback { of } => format!(
            "Rollback {hash} of {cluster}: back to {target} by the binaries that were kept, about {about}. Nothing is \
             lost: the datastore stays as it is. It takes back {of}."
        ),
        Purpose::Restore { of, .. } => format!(
            "Restore {hash} of {cluster}: back to {target} from a backup, since binaries alone cannot take {of} back."
        ),
    }
}

fn outage(page: &mut Page, decision: &Decision) {
    if let Some(outage) = decision.outage {
        page.entry(&warn("! Outage: "), &format!("{}. You will be asked, or say --yes.", outage.words()));
    }
}

fn lost(page: &mut Page, plan: &Plan) {
    let Purpose::Restore { backup, .. } = &plan.decision.purpose else { return };
    let age = plan.seen.made.duration_since(backup.taken);
    page.entry(
        &bad("! Lost:   "),
        &format!(
            "everything that was written to the cluster after the backup {}, taken on {} at {}: the last {}. Objects \
             made since are gone, changed ones are as they were; data in volumes stays as it is now.",
            backup.name,
            backup.version,
            time(backup.taken),
            duration(age),
        ),
    );
}

fn before(page: &mut Page, decision: &Decision) {
    let nodes = decision.hops.iter().flat_map(|h| &h.steps).map(|s| &s.node).collect::<std::collections::BTreeSet<_>>();
    let stage = match decision.purpose {
        Purpose::Update => {
            format!("check again · stage the binary on {}, digests compared there", count(nodes.len(), "node"))
        }
        _ => format!("check again · look for the kept binary on {}", count(nodes.len(), "node")),
    };
    let backups: std::collections::BTreeSet<String> = decision.hops.iter().map(|h| backup(&h.backup)).collect();
    let each = if decision.hops.len() > 1 { " (each hop anew)" } else { "" };
    page.entry("  before   ", &format!("{stage} · {}{each}", backups.into_iter().collect::<Vec<_>>().join(" · ")));
}

pub(crate) fn backup(method: &BackupMethod) -> String {
    match method {
        BackupMethod::EtcdSnapshot { server } => format!("snapshot etcd on {server}, read it back, copy it here"),
        BackupMethod::SqliteOnline { server, .. } => {
            format!("copy SQLite on {server} while it runs, check it, bring it here; a second copy at the stop")
        }
        BackupMethod::SqliteStopped { server } => {
            format!("stop K3s on {server} to copy SQLite (neither sqlite3 nor python3 is there), bring it here")
        }
        BackupMethod::Command { command } => {
            format!("run `{command}`: only its exit and the size of its output can be judged")
        }
    }
}

fn hop(page: &mut Page, plan: &Plan, number: usize, hop: &Hop) {
    let from: std::collections::BTreeSet<String> = hop.steps.iter().map(|s| s.from.to_string()).collect();
    let from = from.into_iter().collect::<Vec<_>>().join(", ");
    page.entry(&format!("  {:<9}", format!("hop {}", number + 1)), &strong(&format!("{from} → {}", hop.to)));
    let rows: Vec<Vec<String>> = hop.steps.iter().map(|s| row(plan, hop, s)).collect();
    let mut table = Page::new(Style { verbose: 0, ..Style::PLAIN });
    table.table(UNDER.len(), &rows);
    let lines = table.into_lines();
    for (i, (step, line)) in hop.steps.iter().zip(lines).enumerate() {
        if hop.point_of_no_return == Some(i) {
            no_return(page, step);
        }
        page.line(&line);
        if page.verbose(1) {
            for because in &step.because {
                page.entry(&format!("{UNDER}    "), &dim(because));
            }
        } else if step.undo != UndoClass::Binary
            && let Some(because) = step.because.last()
        {
            page.entry(&format!("{UNDER}    "), &dim(because));
        }
    }
    if hop.point_of_no_return.is_none() && hop.steps.iter().all(|s| s.undo == UndoClass::Binary) {
        page.entry(UNDER, &dim("no point of no return in this hop"));
    }
}

fn no_return(page: &mut Page, step: &Step) {
    let how = match step.undo {
        UndoClass::ForwardOnly => "nothing brings the old version back".to_owned(),
        _ => format!("only the backup brings {} back, and what was written after it is lost then", step.from.minor()),
    };
    page.entry(&format!("{UNDER}{} ", bad("━━")), &bad(&format!("point of no return: from here on {how} ━━")));
}

fn row(plan: &Plan, hop: &Hop, step: &Step) -> Vec<String> {
    let (seen, decision) = (&plan.seen, &plan.decision);
    let what = match step.role {
        Role::Agent => "agent".to_owned(),
        Role::Server if decision.preconditions.datastore != DatastoreKind::EmbeddedEtcd => "server".to_owned(),
        Role::Server if seen.etcd_leader.as_ref() == Some(&step.node) => "server, etcd leader".to_owned(),
        Role::Server if seen.etcd_leader.is_some() => "server, follower".to_owned(),
        Role::Server => "server".to_owned(),
    };
    let together = hop.steps.iter().filter(|s| s.wave == step.wave).count();
    let drain = match step.drain {
        Drain::CordonOnly => "cordon only",
        Drain::Evict => "drain",
    };
    let takes = match step.role {
        Role::Server => seen.expected.per_server,
        Role::Agent => seen.expected.per_agent,
    };
    let undo = match step.undo {
        UndoClass::Binary => format!("undo: binary, {}", duration(takes)),
        UndoClass::Restore => warn("undo: restore"),
        UndoClass::ForwardOnly => bad("undo: none"),
    };
    let from = hop.steps.iter().any(|s| s.from != step.from || hop.to != step.to);
    vec![
        step.node.to_string(),
        what,
        if from { format!("{} → {}", step.from, step.to) } else { String::new() },
        drain.to_owned(),
        undo,
        if together > 1 { format!("{together} at a time (wave {})", step.wave + 1) } else { String::new() },
    ]
}

fn steps_of_restore(page: &mut Page, plan: &Plan) {
    let order = restore::sequence(plan, &[]);
    let point = order.iter().position(|group| group.iter().any(resets));
    let mut number = 0;
    for (i, group) in order.iter().enumerate() {
        if point == Some(i) {
            page.entry(
                &format!("  {} ", bad("━━")),
                &bad("point of no return: from here on the data is that of the backup ━━"),
            );
        }
        number += 1;
        let words: Vec<String> = group.iter().map(kadence_core::apply::action::Action::words).collect();
        page.entry(&format!("  {number:>6}   "), &words.join(" · "));
    }
}

fn resets(action: &kadence_core::apply::action::Action) -> bool {
    use kadence_core::apply::action::Action;
    matches!(action, Action::Reset { .. } | Action::RestoreCommand { .. })
}

fn preconditions(page: &mut Page, decision: &Decision) {
    page.gap();
    let held = &decision.preconditions;
    page.say(&dim("  Before each step this must still hold, else nothing more is begun:"));
    page.entry("    cluster  ", &format!("{}, {}", held.cluster_uid, datastore(held.datastore)));
    if !held.etcd_members.is_empty() {
        let members: Vec<&str> = held.etcd_members.iter().map(String::as_str).collect();
        page.entry("    etcd     ", &format!("members {}", members.join(", ")));
    }
    let rows: Vec<Vec<String>> = held
        .nodes
        .iter()
        .map(|(name, n)| {
            vec![
                name.to_string(),
                n.version.to_string(),
                n.arch.to_string(),
                format!("machine {}", n.machine_id.chars().take(8).collect::<String>()),
                format!("binary {}", n.binary.short(12)),
                format!("arguments {}", n.arguments.short(12)),
            ]
        })
        .collect();
    page.table(4, &rows);
}

fn reasons(page: &mut Page, plan: &Plan) {
    let decision = &plan.decision;
    let cluster = &decision.cluster;
    let hash = plan.hash().short();
    let because: Vec<&str> = plan.seen.because.iter().map(|b| b.trim_end_matches('.')).collect();
    let because = if because.is_empty() { "no reason was written down".to_owned() } else { because.join("; ") };
    let label = match decision.purpose {
        Purpose::Update => "Why this version: ",
        Purpose::Rollback { .. } => "Why by binaries: ",
        Purpose::Restore { .. } => "Why a restore: ",
    };
    page.say(&format!("{label}{because}."));
    match decision.purpose {
        Purpose::Update => {
            let to = &decision.target;
            page.say(&format!("Runbook: kadence plan {cluster} --to {to} --runbook"));
            page.say(&format!("Apply:   kadence apply {cluster} --plan {hash}"));
        }
        Purpose::Rollback { .. } | Purpose::Restore { .. } => {
            page.say(&format!("Apply:   kadence rollback {cluster}"));
        }
    }
}
