//! What changes a cluster: apply, resume, rollback; and what other terminals ask of it: pause, abort.

use std::sync::Arc;

use kadence_core::apply::plan::{Plan, Purpose};
use kadence_core::apply::planner::{NoPlan, Scope};
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::{Consent, Request};
use kadence_core::ident::{ClusterUid, NodeName, RolloutId};
use kadence_core::inventory::Inventory;
use kadence_core::validate::finding::{Finding, readiness};
use kadence_engine::ports::Store as _;
use kadence_engine::{Driven, Engine, StartError, WayBack, Wish};
use tokio::sync::mpsc;

use crate::args::{Apply, Global, Output, Resume, Rollback, Target};
use crate::exit::{Exit, Failure, of_driven};
use crate::open;
use crate::screen::{Screen, say};

pub(crate) fn wish(target: &Target) -> Wish {
    Wish {
        to: target.to.clone(),
        scope: Scope {
            exclude: target.exclude.iter().cloned().collect(),
            until_servers: target.until.is_some(),
            only_agents: target.only_agents,
        },
    }
}

pub(crate) async fn apply(global: &Global, args: &Apply) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(&args.cluster, screen.clone()).await?;
    // A rollout that was cut off goes on; one that holds waits for a person, and `apply` is not what it waits for.
    if let Some(uid) = engine.store.known_uid(&args.cluster).await?
        && let Some(unfinished) = engine.unfinished(&uid).await?
    {
        may_go_on(args, &unfinished)?;
        say(format!("{} of {} has not ended: it goes on first.", unfinished.id, args.cluster));
        return go_on(global, &engine, unfinished, &[], &screen).await;
    }
    let inventory = look(&engine, &args.cluster).await?;
    let plan = match &args.plan {
        Some(which) => find_plan(&engine, which).await?,
        None => planned(&engine, &screen, &inventory, &wish(&args.target)).await?,
    };
    same_cluster(&plan, &inventory)?;
    if args.plan.is_some()
        && let Some(what) = engine.misfit(&plan, &inventory)
    {
        return Err(StartError::Changed { plan: plan.hash().short(), what }.into());
    }
    if plan.decision.hops.is_empty() {
        say(format!("{} is on {} already: nothing to do.", args.cluster, plan.decision.target));
        return Ok(Exit::Done);
    }
    let findings = engine.check(&inventory, Some(&plan)).await?;
    if findings.iter().any(Finding::blocks) {
        say(kadence_tell::check::text(&inventory, Some(&plan), &findings, screen.style()));
        return Err(Failure::new(
            Exit::Refused,
            "E-NOT-READY",
            format!("{} is not ready for {}: {}", args.cluster, plan.decision.target, readiness(&findings)),
        )
        .next(format!("do what the findings say, then kadence check {}", args.cluster)));
    }
    if !args.yes {
        say(kadence_tell::plan::text(&plan, screen.style()));
    }
    if let Some(outage) = plan.decision.outage
        && !args.yes
        && !screen.ask(&format!("This means an outage: {}. Go on?", outage.words()))?
    {
        return Err(Failure::new(Exit::Refused, "E-CONSENT", "not consented to; nothing was changed")
            .next(format!("kadence apply {} --yes", args.cluster)));
    }
    let uid = plan.decision.preconditions.cluster_uid.clone();
    let turn = engine.take_turn(&uid, Engine::turn_seen(&inventory)).await?;
    let consent = Consent { outage: plan.decision.outage.is_some(), data_loss: false, powered_off: Vec::new() };
    let mut rollout = engine.begin(plan, consent, &turn).await?;
    let driven = drive(&engine, &mut rollout, &screen).await?;
    finish(global, &rollout, &driven, &screen)
}

pub(crate) async fn resume(global: &Global, args: &Resume) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(&args.cluster, screen.clone()).await?;
    if args.adopt {
        return adopt(global, args, &engine, &screen).await;
    }
    let store = opened.store().await?;
    let uid = opened.known_uid(&store, &args.cluster).await?;
    let Some(unfinished) = engine.unfinished(&uid).await? else {
        return Err(Failure::new(Exit::Refused, "E-NOTHING-HELD", format!("no rollout of {} is held", args.cluster))
            .next(format!("kadence status {}", args.cluster)));
    };
    go_on(global, &engine, unfinished, &[], &screen).await
}

/// Takes a rollout up again; `off` are hosts that a person declares powered off, in a restore.
async fn go_on(
    global: &Global,
    engine: &Engine,
    mut rollout: Rollout,
    off: &[NodeName],
    screen: &Arc<Screen>,
) -> Result<Exit, Failure> {
    let seen = engine.turn_of_nodes(&rollout).await;
    let turn = engine.take_turn(&rollout.cluster, seen).await?;
    // Somebody may have carried it on between our look at the log and our turn.
    rollout = engine.rollout(&rollout.id).await?;
    engine.declare_off(&mut rollout, off).await?;
    screen.catch_up(&engine.store.events(&rollout.id).await?);
    engine.take_up(&mut rollout, &turn).await?;
    let driven = drive(engine, &mut rollout, screen).await?;
    finish(global, &rollout, &driven, screen)
}

/// Takes over a rollout whose log is elsewhere: its marks say which one it was and where it went.
async fn adopt(global: &Global, args: &Resume, engine: &Engine, screen: &Arc<Screen>) -> Result<Exit, Failure> {
    let inventory = look(engine, &args.cluster).await?;
    let marks = Engine::marks(&inventory);
    let lease = inventory.surroundings.lease.known().and_then(Option::as_ref).cloned();
    let old = marks
        .first()
        .map(|(_, mark)| mark.rollout.clone())
        .or_else(|| lease.as_ref().and_then(|l| l.rollout.clone()))
        .ok_or_else(|| {
            Failure::new(Exit::Refused, "E-NO-MARK", format!("{} carries no mark of a rollout", args.cluster))
                .next(format!("kadence plan {}", args.cluster))
        })?;
    // A mark's step reads `<node> <version>`.
    let to = marks
        .first()
        .and_then(|(_, mark)| mark.step.split_once(' ').and_then(|(_, version)| version.parse().ok()))
        .or_else(|| inventory.nodes.iter().filter_map(|n| n.version.known()).max().cloned());
    let old = RolloutId::new(old);
    let plan = engine.plan(&inventory, &Wish { to, scope: Scope::default() }).await?;
    if plan.decision.hops.is_empty() {
        let stay = engine.lift_marks(&old).await?;
        if stay.is_empty() {
            say(format!("{old} had nothing left to do; its cordons are lifted."));
            return Ok(Exit::Done);
        }
        return Err(stays(&stay));
    }
    let names: Vec<String> = marks.iter().map(|(node, _)| node.to_string()).collect();
    say(format!(
        "Taking over {old}; it has in hand: {}.",
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    ));
    if plan.decision.outage.is_some() && !args.yes {
        return Err(Failure::new(Exit::Refused, "E-CONSENT", "going on means an outage").next("add --yes"));
    }
    let uid = plan.decision.preconditions.cluster_uid.clone();
    let turn = engine.take_turn(&uid, Engine::turn_seen(&inventory)).await?;
    let consent = Consent { outage: plan.decision.outage.is_some(), ..Consent::default() };
    let mut rollout = engine.adopt(&old, plan, consent, &turn).await?;
    let driven = drive(engine, &mut rollout, screen).await?;
    finish(global, &rollout, &driven, screen)
}

pub(crate) async fn rollback(global: &Global, args: &Rollback) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(&args.cluster, screen.clone()).await?;
    let store = opened.store().await?;
    let uid = opened.known_uid(&store, &args.cluster).await?;
    let (plan, seen) = match engine.way_back(&uid, &args.powered_off).await? {
        WayBack::GoOn(restore) => {
            say(format!("The restore {} has not ended: it goes on.", restore.id));
            return go_on(global, &engine, restore, &args.powered_off, &screen).await;
        }
        WayBack::Untouched(rollout) => {
            let id = rollout.id.clone();
            let turn = engine.take_turn(&uid, engine.turn_of_nodes(&rollout).await).await?;
            let stay = engine.end_untouched(rollout, &turn).await?;
            say(format!("{id} had changed no node; it is ended, and its cordons are lifted."));
            return if stay.is_empty() { Ok(Exit::Done) } else { Err(stays(&stay)) };
        }
        WayBack::Plan { plan, seen } => (plan, seen),
    };
    say(kadence_tell::plan::text(&plan, screen.style()));
    let restore = matches!(plan.decision.purpose, Purpose::Restore { .. });
    if (restore || plan.decision.outage.is_some()) && !args.yes {
        let question = if restore {
            "Everything written since the backup is lost, and every K3s of the cluster is stopped meanwhile. Restore?"
        } else {
            "This means an outage. Go on?"
        };
        if !screen.ask(question)? {
            return Err(Failure::new(Exit::Refused, "E-CONSENT", "not consented to; nothing was changed")
                .next(format!("kadence rollback {} --yes", args.cluster)));
        }
    }
    let turn = engine.take_turn(&uid, seen).await?;
    let consent = Consent { outage: true, data_loss: restore, powered_off: args.powered_off.clone() };
    let mut rollout = engine.take_back(plan, consent, &turn).await?;
    let driven = drive(&engine, &mut rollout, &screen).await?;
    finish(global, &rollout, &driven, &screen)
}

/// Leaves a request for whoever works on the cluster.
pub(crate) async fn ask(global: &Global, cluster: &str, request: Request) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let store = opened.store().await?;
    let uid = opened.known_uid(&store, cluster).await?;
    let last = store.rollouts(&uid).await?.pop();
    let rollout = match last {
        Some(id) => {
            let events = store.events(&id).await?;
            Rollout::read(&events).ok().filter(|r| r.ended.is_none())
        }
        None => None,
    };
    let Some(rollout) = rollout else {
        return Err(Failure::new(
            Exit::Refused,
            "E-NOTHING-RUNS",
            format!("no rollout of {cluster} is running or held"),
        ));
    };
    store.request(&uid, request).await?;
    // If nobody has the turn, nobody would hear it: it is carried on until it stands still, which is at once.
    let screen = Screen::new(global);
    let engine = opened.engine(cluster, screen.clone()).await?;
    let idle = engine.take_turn(&uid, rollout.turn).await.is_ok();
    if idle && (request == Request::Abort || rollout.hold.is_none()) {
        return go_on(global, &engine, rollout, &[], &screen).await;
    }
    let word = match request {
        Request::Pause => "It stops before the next node",
        Request::Abort => "It ends after the node in hand",
    };
    say(format!("Asked {}. {word}; kadence status {cluster} shows when.", rollout.id));
    Ok(Exit::Done)
}

// --------------------------------------------------------------------------------------------------------- parts

/// Whether `apply` may carry on what has not ended: only what was cut off, and only if nothing else was asked for.
fn may_go_on(args: &Apply, unfinished: &Rollout) -> Result<(), Failure> {
    let cluster = &args.cluster;
    if let Some(hold) = &unfinished.hold {
        return Err(Failure::new(Exit::Held, "E-HELD", format!("{} of {cluster} holds: {}", unfinished.id, hold.what))
            .next(format!("{}; then kadence resume {cluster}, or kadence abort {cluster}", hold.next)));
    }
    let decision = &unfinished.plan.decision;
    let other = args.target.to.as_ref().is_some_and(|to| *to != decision.target)
        || args.plan.as_ref().is_some_and(|which| !unfinished.plan_hash.to_string().starts_with(which.as_str()))
        || args.target.exclude.iter().any(|name| !decision.excluded.contains(name))
        || (args.target.until.is_some() && !decision.manner.until_servers)
        || decision.goes_back();
    if other {
        return Err(Failure::new(
            Exit::Refused,
            "E-UNFINISHED",
            format!(
                "{} of {cluster} (to {}) has not ended, and something else is asked for now",
                unfinished.id, decision.target
            ),
        )
        .next(format!("kadence resume {cluster}, or kadence abort {cluster}; then ask again")));
    }
    Ok(())
}

/// Makes a plan; where a fact is missing for it, the checks say which and what to do, better than the planner could.
pub(crate) async fn planned(
    engine: &Engine,
    screen: &Arc<Screen>,
    inventory: &Inventory,
    wish: &Wish,
) -> Result<Plan, Failure> {
    let error = match engine.plan(inventory, wish).await {
        Ok(plan) => return Ok(plan),
        Err(error) => error,
    };
    if matches!(error, StartError::NoPlan(NoPlan::Unknown { .. } | NoPlan::Contradiction(_))) {
        let findings = engine.check(inventory, None).await?;
        if findings.iter().any(Finding::blocks) {
            say(kadence_tell::check::text(inventory, None, &findings, screen.style()));
        }
    }
    Err(error.into())
}

/// Inspects, and remembers which cluster the name means.
pub(crate) async fn look(engine: &Engine, name: &str) -> Result<Inventory, Failure> {
    let inventory = engine.inspect().await?;
    if let Some(uid) = inventory.uid.known() {
        if let Some(known) = engine.store.known_uid(name).await?
            && known != *uid
        {
            return Err(other_cluster(name, &known, uid));
        }
        engine.store.remember_uid(name, uid).await?;
    }
    Ok(inventory)
}

fn stays(nodes: &[NodeName]) -> Failure {
    let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
    Failure::new(Exit::Held, "E-NOT-READY", format!("{} is not proven healthy: its cordon stays", names.join(", ")))
        .next("look at it, then ask again; or kubectl uncordon it, if it is well")
}

fn other_cluster(name: &str, known: &ClusterUid, found: &ClusterUid) -> Failure {
    Failure::new(
        Exit::Refused,
        "E-OTHER-CLUSTER",
        format!("{name} was cluster {known} so far; the kubeconfig leads to {found}"),
    )
    .next("if it was set up anew on purpose, give it a new name in kadence.yaml")
}

fn same_cluster(plan: &Plan, inventory: &Inventory) -> Result<(), Failure> {
    let planned = &plan.decision.preconditions.cluster_uid;
    match inventory.uid.known() {
        Some(uid) if uid == planned => Ok(()),
        Some(uid) => Err(other_cluster(plan.decision.cluster.as_str(), planned, uid)),
        None => Err(Failure::new(Exit::Refused, "E-UNKNOWN", "the cluster's uid is not known")),
    }
}

async fn find_plan(engine: &Engine, which: &str) -> Result<Plan, Failure> {
    let is_hash = which.len() >= 4 && which.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash && !std::path::Path::new(which).exists() {
        let mut plans = engine.store.plans(which).await?;
        return match plans.len() {
            1 => Ok(plans.remove(0)),
            0 => Err(Failure::new(Exit::Wrong, "E-NO-SUCH-PLAN", format!("no plan is called {which}"))
                .next(format!("kadence plan {}", engine.cluster))),
            n => {
                Err(Failure::new(Exit::Wrong, "E-AMBIGUOUS", format!("{n} plans begin with {which}: give more digits")))
            }
        };
    }
    let text = fs_err::read_to_string(which).map_err(|e| Failure::new(Exit::Wrong, "E-PLAN-FILE", e.to_string()))?;
    serde_json::from_str(&text)
        .map_err(|e| Failure::new(Exit::Wrong, "E-PLAN-FILE", format!("{which}:{}:{}: {e}", e.line(), e.column())))
}

/// Drives with Ctrl-C as a request to pause; a second one ends the program, and `resume` goes on.
async fn drive(engine: &Engine, rollout: &mut Rollout, screen: &Arc<Screen>) -> Result<Driven, Failure> {
    let (ask, mut stop) = mpsc::unbounded_channel();
    let interrupt = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            say("Pausing before the next node; press Ctrl-C again to leave at once (kadence resume goes on)."
                .to_owned());
            let _ = ask.send(Request::Pause);
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            #[expect(clippy::exit, reason = "a person asks twice to leave at once; the log is whole at any point")]
            std::process::exit(Exit::Held as i32);
        }
    });
    screen.begin(rollout);
    let driven = engine.drive(rollout, &mut stop).await;
    interrupt.abort();
    screen.over();
    Ok(driven?)
}

fn finish(global: &Global, rollout: &Rollout, driven: &Driven, screen: &Arc<Screen>) -> Result<Exit, Failure> {
    say(kadence_tell::status::ending(rollout, screen.style()));
    if global.output == Output::Json {
        screen.json(&kadence_tell::status::json(rollout))?;
    }
    Ok(of_driven(driven))
}
