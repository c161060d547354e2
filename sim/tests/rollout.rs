//! The real engine over the simulated world.

use std::sync::Arc;
use std::time::Duration;

use kadence_core::apply::plan::DatastoreKind;
use kadence_core::event::{Consent, Ending, Recorded};
use kadence_core::version::Version;
use kadence_engine::ports::{Observer, Progress};
use kadence_engine::{Driven, Engine, Wish};
use kadence_sim::explore::{Case, End, Then, Told};
use kadence_sim::faults::{Fault, Target, What, When};
use kadence_sim::{Stage, Topology, World};

fn case(servers: u8, agents: u8, datastore: DatastoreKind) -> Case {
    Case {
        seed: 1,
        topology: Topology { servers, agents, datastore },
        from: Version::new(1, 36, 3, 1),
        to: Version::new(1, 36, 4, 1),
        faults: Vec::new(),
        then: Then::Nothing,
    }
}

fn tell(case: &Case) -> Told {
    let folder = tempfile::tempdir().expect("a folder");
    let told = case.tell(folder.path()).expect("a runtime");
    let log = told.log.join("\n");
    assert!(told.violations.is_empty(), "{:?}\n{log}", told.violations);
    told
}

#[test]
fn three_servers_and_an_agent_are_updated() {
    let told = tell(&case(3, 1, DatastoreKind::EmbeddedEtcd));
    assert_eq!(told.end, End::Ended(Ending::Completed), "{}", told.log.join("\n"));
}

#[test]
fn other_shapes_are_updated_too() {
    for (servers, agents, datastore) in [
        (1, 0, DatastoreKind::Sqlite),
        (1, 2, DatastoreKind::Sqlite),
        (1, 1, DatastoreKind::EmbeddedEtcd),
        (2, 1, DatastoreKind::External),
        (3, 3, DatastoreKind::EmbeddedEtcd),
        (5, 2, DatastoreKind::EmbeddedEtcd),
    ] {
        let told = tell(&case(servers, agents, datastore));
        let shape = format!("{servers} + {agents} on {datastore:?}");
        assert_eq!(told.end, End::Ended(Ending::Completed), "{shape}\n{}", told.log.join("\n"));
    }
}

#[test]
fn minors_are_climbed_one_by_one_with_drains() {
    let shape = Case {
        from: Version::new(1, 35, 6, 1),
        to: Version::new(1, 37, 1, 1),
        ..case(3, 2, DatastoreKind::EmbeddedEtcd)
    };
    let told = tell(&shape);
    assert_eq!(told.end, End::Ended(Ending::Completed), "{}", told.log.join("\n"));
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in 0..30 {
        let (one, other) = (tell(&Case::of_seed(seed)), tell(&Case::of_seed(seed)));
        assert_eq!(one.log, other.log, "seed {seed}");
        assert_eq!((one.trace, one.calls, one.events), (other.trace, other.calls, other.events), "seed {seed}");
    }
}

/// Kills Kadence once at each of these moments, and expects the next one to finish the work.
fn survives(shape: &Case, moments: impl Iterator<Item = When>) {
    let mut lost = Vec::new();
    for when in moments {
        let case = Case { faults: vec![Fault { when, what: What::Kill }], ..shape.clone() };
        let told = tell(&case);
        assert_eq!(told.kills, 1, "{when:?} was not reached");
        if told.end != End::Ended(Ending::Completed) {
            lost.push(format!("killed at {when:?}: {:?}", told.end));
        }
    }
    assert!(lost.is_empty(), "{} ended otherwise:\n{}", lost.len(), lost.join("\n"));
}

#[test]
fn a_kill_at_any_call_is_survived() {
    for shape in [case(3, 1, DatastoreKind::EmbeddedEtcd), case(1, 1, DatastoreKind::Sqlite)] {
        // The last call is the end's announcement: nothing is left to do after it.
        let calls = tell(&shape).calls;
        survives(&shape, (1..calls).flat_map(|n| [When::Call(n), When::Answer(n)]));
    }
}

#[test]
fn a_kill_around_any_stored_event_is_survived() {
    for shape in [case(3, 1, DatastoreKind::EmbeddedEtcd), case(1, 1, DatastoreKind::Sqlite)] {
        let events = tell(&shape).events;
        survives(&shape, (1..events).flat_map(|n| [When::BeforeEvent(n), When::AfterEvent(n)]));
    }
}

#[test]
fn a_kill_in_the_middle_of_any_remote_action_is_survived() {
    // Snapshot, prune and archive on the first server, then a swap a node.
    let backup = (1..=3).map(|order| When::Step { order, step: 0 });
    let swaps = (4..=7).flat_map(|order| (0..5).map(move |step| When::Step { order, step }));
    survives(&case(3, 1, DatastoreKind::EmbeddedEtcd), backup.chain(swaps));
}

/// A host that answers slowly makes old what the others said at once: nobody is stopped on the strength of it.
#[test]
fn a_slow_answer_makes_a_look_too_old() {
    for second in 20..40 {
        let slow = What::SlowAnswers {
            at: Target::Node("a1".into()),
            takes: Duration::from_secs(20),
            lasts: Duration::from_secs(200),
        };
        let down = What::ServerDown { at: Target::Node("s1".into()), lasts: Duration::from_secs(60) };
        let faults = vec![
            Fault { when: When::At(Duration::from_secs(8)), what: slow },
            Fault { when: When::At(Duration::from_secs(second)), what: down },
        ];
        let told = tell(&Case { faults, ..case(3, 1, DatastoreKind::EmbeddedEtcd) });
        assert_eq!(told.end, End::Ended(Ending::Completed), "{second}: {}", told.log.join("\n"));
    }
}

/// Two machines, each with a state of its own, update one cluster at about the same time: at most one has its way, and
/// what the other one began is in nobody's way.
#[test]
fn two_states_never_act_at_once() {
    for apart in [0, 1, 2, 5, 10, 17, 20, 30, 45, 60, 90] {
        let folder = tempfile::tempdir().expect("a folder");
        let (violations, ends, log) = kadence_sim::runtime().expect("a runtime").block_on(async {
            let topology = Topology { servers: 3, agents: 1, datastore: DatastoreKind::EmbeddedEtcd };
            let world = World::cluster(topology, Version::new(1, 36, 3, 1)).seed(apart).build();
            let states =
                [Stage::new(world.clone(), "one", folder.path()), Stage::new(world.clone(), "other", folder.path())];
            world.rollout_begins();
            let (one, other) = tokio::join!(update(&states[0], 0), update(&states[1], apart));
            (world.violations(), [one, other], world.log())
        });
        assert!(violations.is_empty(), "{apart} s apart: {violations:?}\n{}", log.join("\n"));
        let completed = ends.iter().filter(|e| **e == Ok(Driven::Ended(Ending::Completed))).count();
        assert!(completed <= 1, "{apart} s apart: {ends:?}");
        if apart >= 5 {
            assert_eq!(completed, 1, "{apart} s apart: {ends:?}\n{}", log.join("\n"));
        }
    }
}

async fn update(stage: &Stage, after: u64) -> Result<Driven, String> {
    tokio::time::sleep(Duration::from_secs(after)).await;
    let engine = stage.engine(Arc::new(Nobody));
    let inventory = engine.inspect().await.map_err(|e| e.to_string())?;
    let wish = Wish { to: Some(Version::new(1, 36, 4, 1)), ..Wish::default() };
    let plan = engine.plan(&inventory, &wish).await.map_err(|e| e.to_string())?;
    let uid = plan.decision.preconditions.cluster_uid.clone();
    let turn = engine.take_turn(&uid, Engine::turn_seen(&inventory)).await.map_err(|e| e.to_string())?;
    let mut rollout = engine.begin(plan, Consent::default(), &turn).await.map_err(|e| e.to_string())?;
    let (_ask, mut stop) = tokio::sync::mpsc::unbounded_channel();
    engine.drive(&mut rollout, &mut stop).await.map_err(|e| e.to_string())
}

struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Recorded) {}
    fn progress(&self, _: &Progress) {}
}
