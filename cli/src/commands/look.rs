//! What changes nothing: inspect, check, plan, validate, status, history, why, report, config.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kadence_core::apply::rollout::Rollout;
use kadence_core::fact::Fact;
use kadence_core::validate::baseline::Baseline;
use kadence_core::validate::checks;
use kadence_core::validate::finding::readiness;
use kadence_engine::config as configuration;
use kadence_engine::ports::Store as _;

use crate::args::{Check, ConfigWhat, Global, Output, Plan, Report};
use crate::commands::roll::{look, planned, wish};
use crate::exit::{Exit, Failure, of_readiness};
use crate::open;
use crate::screen::{Screen, print, say};

pub(crate) fn config(global: &Global, what: ConfigWhat) -> Result<Exit, Failure> {
    match what {
        ConfigWhat::Schema => print(&configuration::schema()),
        ConfigWhat::Check => {
            let opened = open::config(global)?;
            let file = global.config.display().to_string();
            let text = fs_err::read_to_string(&global.config)
                .map_err(|error| Failure::new(Exit::Wrong, "E-CONFIG", error.to_string()))?;
            let mut doubts = configuration::doubts(&opened.config, &text, &file, Timestamp::now()).into_iter();
            if let Some(first) = doubts.next() {
                // One line ends the program; the others stand before it.
                doubts.for_each(|doubt| say(doubt.to_string()));
                return Err(first.into());
            }
            let names: Vec<&str> = opened.config.clusters.keys().map(|n| n.as_str()).collect();
            print(&format!("{} is good. Clusters: {}.\n", global.config.display(), names.join(", ")));
        }
    }
    Ok(Exit::Done)
}

pub(crate) async fn inspect(global: &Global, cluster: &str) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(cluster, screen.clone()).await?;
    let inventory = look(&engine, cluster).await?;
    match global.output {
        Output::Json => screen.json(&inventory)?,
        Output::Text => print(&kadence_tell::inspect::text(&inventory, screen.style())),
    }
    Ok(Exit::Done)
}

pub(crate) async fn check(global: &Global, args: &Check) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(&args.cluster, screen.clone()).await?;
    let inventory = look(&engine, &args.cluster).await?;
    let wish = wish(&args.target);
    let asked = wish.to.is_some();
    let plan = match engine.plan(&inventory, &wish).await {
        Ok(plan) => Some(plan).filter(|p| !p.decision.hops.is_empty()),
        Err(error) if asked => return Err(error.into()),
        // Without a target the checks that need one say nothing; why there is none is said.
        Err(error) => {
            say(format!("No target: {error}"));
            None
        }
    };
    let findings = engine.check(&inventory, plan.as_ref()).await?;
    match global.output {
        Output::Json => {
            let target = plan.as_ref().map(|p| &p.decision.target);
            screen.json(&kadence_tell::check::json(&args.cluster, target, &findings))?;
        }
        Output::Text => {
            if let Ok(newest) = engine.newest(&inventory).await {
                print(&kadence_tell::check::newest(&args.cluster, &newest, screen.style()));
            }
            print(&kadence_tell::check::text(&inventory, plan.as_ref(), &findings, screen.style()));
        }
    }
    Ok(of_readiness(readiness(&findings)))
}

pub(crate) async fn plan(global: &Global, args: &Plan) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(&args.cluster, screen.clone()).await?;
    let inventory = look(&engine, &args.cluster).await?;
    let plan = planned(&engine, &screen, &inventory, &wish(&args.target)).await?;
    // Only what was asked for is kept: `check` and `why` make plans, too.
    engine.store.save_plan(&plan).await?;
    let file = keep(&plan, &opened.plans())?;
    if let Some(also) = &args.write {
        write_plan(&plan, also)?;
    }
    match (global.output, args.runbook) {
        (_, true) => print(&kadence_tell::runbook::markdown(&plan)),
        (Output::Json, false) => screen.json(&kadence_tell::plan::json(&plan, &file))?,
        (Output::Text, false) => print(&kadence_tell::plan::text(&plan, screen.style())),
    }
    if !plan.decision.hops.is_empty() {
        say(format!("Written to {}.", file.display()));
    }
    Ok(Exit::Done)
}

/// Writes the plan into the folder for plans, under the cluster's name and its own.
fn keep(plan: &kadence_core::apply::plan::Plan, folder: &Path) -> Result<PathBuf, Failure> {
    fs_err::create_dir_all(folder).map_err(|e| Failure::new(Exit::Wrong, "E-PLAN-FILE", e.to_string()))?;
    // A cluster may be called what no file can.
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let cluster: String = plan.decision.cluster.as_str().chars().map(plain).collect();
    let file = folder.join(format!("{cluster}-{}.json", plan.hash().short()));
    write_plan(plan, &file)?;
    Ok(file)
}

fn write_plan(plan: &kadence_core::apply::plan::Plan, file: &Path) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(plan).map_err(|e| Failure::new(Exit::Failed, "E-OUTPUT", e.to_string()))?;
    fs_err::write(file, text + "\n").map_err(|e| Failure::new(Exit::Wrong, "E-PLAN-FILE", e.to_string()))
}

/// Judges the cluster as it is: the checks that need no target, and the probes.
pub(crate) async fn validate(global: &Global, cluster: &str) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(cluster, screen.clone()).await?;
    let inventory = look(&engine, cluster).await?;
    let mut probes = std::collections::BTreeMap::new();
    for probe in &engine.config.probes {
        probes.insert(probe.name.clone(), Fact::from(engine.probe(probe).await).map(|()| true));
    }
    let catalog = kadence_core::track::catalog::Catalog {
        source: String::new(),
        fetched: engine.clock.now(),
        releases: std::collections::BTreeMap::new(),
        unreadable: Vec::new(),
    };
    let findings = checks::run(&checks::Question {
        inventory: &inventory,
        hop: None,
        goes_back: false,
        rollout: None,
        catalog: &catalog,
        cluster: &engine.config,
        knowledge: engine.knowledge,
        now: engine.clock.now(),
    });
    let passed = probes.iter().map(|(name, p)| (name.clone(), p.is(&true))).collect();
    let baseline = Baseline::of(&inventory, passed);
    let failed: Vec<&String> = baseline.probes.iter().filter(|(_, passed)| !**passed).map(|(name, _)| name).collect();
    match global.output {
        Output::Json => screen.json(&kadence_tell::check::validate_json(cluster, &probes, &findings))?,
        Output::Text => {
            print(&kadence_tell::check::text(&inventory, None, &findings, screen.style()));
            for (name, result) in &probes {
                match result {
                    Fact::Known(_) => print(&format!("  ✔ probe {name}\n")),
                    Fact::Unknown(why) => print(&format!("  ✘ probe {name}: {why}\n")),
                }
            }
        }
    }
    Ok(if failed.is_empty() { of_readiness(readiness(&findings)) } else { Exit::Refused })
}

pub(crate) async fn status(global: &Global, cluster: Option<&str>) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let store = opened.store().await?;
    let names: Vec<String> = match cluster {
        Some(name) => {
            opened.cluster(name)?;
            vec![name.to_owned()]
        }
        None => opened.config.clusters.keys().map(ToString::to_string).collect(),
    };
    let mut rollouts = Vec::new();
    for name in names {
        let Some(uid) = store.known_uid(&name).await? else {
            print_text(global, &format!("{name} was never looked at from here. Next: kadence inspect {name}\n"));
            continue;
        };
        let Some(last) = store.rollouts(&uid).await?.pop() else {
            print_text(global, &format!("{name} had no rollout yet. Next: kadence check {name}\n"));
            continue;
        };
        let rollout = read(&store.events(&last).await?, last.as_str())?;
        print_text(global, &kadence_tell::status::text(&rollout, Timestamp::now(), screen.style()));
        rollouts.push(rollout);
    }
    if global.output == Output::Json {
        screen.json(&kadence_tell::status::rollouts_json(&rollouts))?;
    }
    Ok(Exit::Done)
}

pub(crate) async fn history(global: &Global, cluster: &str) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let store = opened.store().await?;
    let uid = opened.known_uid(&store, cluster).await?;
    let mut rollouts = Vec::new();
    for id in store.rollouts(&uid).await? {
        rollouts.push(read(&store.events(&id).await?, id.as_str())?);
    }
    match global.output {
        Output::Json => screen.json(&kadence_tell::status::rollouts_json(&rollouts))?,
        Output::Text => print(&kadence_tell::status::history(cluster, &rollouts, screen.style())),
    }
    Ok(Exit::Done)
}

pub(crate) async fn why(global: &Global, cluster: &str) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let engine = opened.engine(cluster, screen.clone()).await?;
    let inventory = look(&engine, cluster).await?;
    let last = match inventory.uid.known() {
        Some(uid) => engine.unfinished(uid).await?,
        None => None,
    };
    let plan = engine.plan(&inventory, &kadence_engine::Wish::default()).await;
    let findings = engine.check(&inventory, plan.as_ref().ok()).await?;
    let plan = plan.map_err(|e| e.to_string());
    let why = kadence_tell::status::Why {
        inventory: &inventory,
        unfinished: last.as_ref(),
        plan: plan.as_ref(),
        findings: &findings,
    };
    match global.output {
        Output::Json => screen.json(&kadence_tell::status::why_json(&why))?,
        Output::Text => print(&kadence_tell::status::why(&why, engine.clock.now(), screen.style())),
    }
    Ok(Exit::Done)
}

pub(crate) async fn report(global: &Global, args: &Report) -> Result<Exit, Failure> {
    let opened = open::config(global)?;
    let screen = Screen::new(global);
    let store = opened.store().await?;
    let uid = opened.known_uid(&store, &args.cluster).await?;
    let ids = store.rollouts(&uid).await?;
    let id = match &args.rollout {
        Some(prefix) => ids.iter().find(|id| id.as_str().starts_with(prefix.as_str())),
        None => ids.last(),
    };
    let Some(id) = id else {
        return Err(Failure::new(Exit::Refused, "E-NO-ROLLOUT", format!("{} has no such rollout", args.cluster))
            .next(format!("kadence history {}", args.cluster)));
    };
    let events = store.events(id).await?;
    read(&events, id.as_str())?;
    if let Some(file) = &args.html {
        let write = |path: &std::path::Path, text: String| {
            fs_err::write(path, text).map_err(|e| Failure::new(Exit::Wrong, "E-REPORT-FILE", e.to_string()))
        };
        write(file, kadence_tell::report::html(&events))?;
        let document = serde_json::to_string_pretty(&kadence_tell::report::json(&events))
            .map_err(|e| Failure::new(Exit::Failed, "E-OUTPUT", e.to_string()))?;
        write(&file.with_extension("json"), document)?;
        say(format!("Wrote {} and {}.", file.display(), file.with_extension("json").display()));
        return Ok(Exit::Done);
    }
    match global.output {
        Output::Json => screen.json(&kadence_tell::report::json(&events))?,
        Output::Text => print(&kadence_tell::report::text(&events, screen.style())),
    }
    Ok(Exit::Done)
}

fn read(events: &[kadence_core::event::Recorded], id: &str) -> Result<Rollout, Failure> {
    Rollout::read(events)
        .map_err(|e| Failure::new(Exit::Wrong, "E-LOG", format!("the log of {id} cannot be read: {e}")))
}

fn print_text(global: &Global, text: &str) {
    if global.output == Output::Text {
        print(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_kept_as_a_file_that_is_the_same_plan() {
        let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tell/tests/stories/minors.plan.json");
        let text = std::fs::read_to_string(stories).expect("a plan");
        let mut plan: kadence_core::apply::plan::Plan = serde_json::from_str(&text).expect("a plan");
        plan.decision.cluster = "../shop".into();
        let folder = tempfile::tempdir().expect("a folder");
        let file = keep(&plan, &folder.path().join("plans")).expect("kept");
        let name = format!(".._shop-{}.json", plan.hash().short());
        assert_eq!(file, folder.path().join("plans").join(name));
        let kept = std::fs::read_to_string(&file).expect("the file");
        assert_eq!(serde_json::from_str::<kadence_core::apply::plan::Plan>(&kept).expect("a plan").hash(), plan.hash());
        assert_eq!(keep(&plan, &folder.path().join("plans")).expect("kept again"), file);
    }
}
