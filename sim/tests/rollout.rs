//! The real engine over the simulated world.

use kadence_core::apply::plan::DatastoreKind;
use kadence_core::event::Ending;
use kadence_core::version::Version;
use kadence_sim::Topology;
use kadence_sim::explore::{Case, End, Then, Told};
use kadence_sim::faults::{Fault, What, When};

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
