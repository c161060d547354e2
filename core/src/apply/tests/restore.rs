//! The order of a restore; that of each kind of datastore stands in `scenarios/way_back.toml`.

use super::story::{Fate, Story};
use super::way_back::group_words;
use super::world::{Wish, World};
use crate::apply::action::{Action, FailureKind};
use crate::apply::plan::{DatastoreKind, Plan};
use crate::apply::rollout::Wanted;
use crate::apply::{restore, way_back};
use crate::event::{Ending, Event, HoldCause, Request};
use crate::ident::NodeName;
use crate::inventory::{Inventory, Role, example};

/// The plan of a restore after a minor that was completed; `s2` and `s3` join `s1`.
fn planned(agents: u8, off: &[NodeName]) -> (Plan, Inventory) {
    let toml = format!(
        "datastore = 'embedded-etcd'\nservers = 3\nagents = {agents}\nruns = 'v1.35.7+k3s1'\n\
         but = {{ s2 = {{ told = {{ server = 'https://s1:6443' }} }}, s3 = {{ told = {{ server = 'https://s1:6443' }} }} }}"
    );
    let world: World = toml::from_str(&toml).expect("a world");
    assert_eq!(world.datastore, DatastoreKind::EmbeddedEtcd);
    let before = world.inventory();
    let plan = Wish::of(&["v1.36.4+k3s1"], 1).plan(&before).expect("a plan");
    let mut story = Story::begin(before, plan, &[]);
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed));
    for name in off {
        example::node_mut(&mut story.world, name.as_str()).host = crate::fact::Fact::unknown("no route to host");
    }
    let question = way_back::Question {
        rollout: &story.rollout,
        inventory: &story.world,
        cluster: &example::cluster(),
        off,
        kadence: "0.0.0",
        now: example::now(),
    };
    (way_back::plan(&question).expect("a way back"), story.world)
}

fn stop_of(node: &str) -> impl Fn(&Action) -> bool {
    move |action| matches!(action, Action::Stop { node: n, .. } if n.as_str() == node)
}

#[test]
fn nothing_is_asked_of_hosts_that_are_off() {
    let off: Vec<NodeName> = vec!["s3".into(), "a2".into()];
    let (plan, _) = planned(2, &[]);
    let all = [restore::sequence(&plan, &off), restore::give_up(&plan, &off)].concat();
    assert!(all.iter().flatten().all(|action| action.node().is_none_or(|n| !off.contains(n))), "{all:#?}");
    let (plan, _) = planned(2, &off);
    assert!(plan.nodes().iter().all(|n| !off.contains(n)), "{plan:#?}");
}

#[test]
fn what_is_given_up_is_started_again_servers_first() {
    let (plan, _) = planned(2, &[]);
    let groups: Vec<String> = restore::give_up(&plan, &[]).iter().map(|g| group_words(g)).collect();
    assert_eq!(
        groups,
        [
            "start K3s on s1, start K3s on s2, start K3s on s3",
            "prove s1 healthy on v1.36.4+k3s1, prove s2 healthy on v1.36.4+k3s1, prove s3 healthy on v1.36.4+k3s1",
            "start K3s on a1, start K3s on a2",
            "prove a1 healthy on v1.36.4+k3s1, prove a2 healthy on v1.36.4+k3s1",
            "uncordon a1, uncordon a2, uncordon s1, uncordon s2, uncordon s3",
        ]
    );
}

#[test]
fn nothing_starts_before_everything_is_stopped_and_replaced() {
    let (plan, _) = planned(2, &[]);
    let groups = restore::sequence(&plan, &[]);
    let first = |f: &dyn Fn(&Action) -> bool| groups.iter().position(|g| g.iter().any(f)).expect("such an action");
    let last = |f: &dyn Fn(&Action) -> bool| groups.iter().rposition(|g| g.iter().any(f)).expect("such an action");
    let stop = |role: Role| move |a: &Action| matches!(a, Action::Stop { role: r, .. } if *r == role);
    assert!(last(&stop(Role::Agent)) < first(&stop(Role::Server)), "agents first: they would only wait for servers");
    let place = |a: &Action| matches!(a, Action::Place { .. });
    assert!(last(&stop(Role::Server)) < first(&place));
    assert!(last(&place) < first(&|a: &Action| matches!(a, Action::Reset { .. })));
    let start = |role: Role| move |a: &Action| matches!(a, Action::Start { role: r, .. } if *r == role);
    assert!(first(&|a: &Action| matches!(a, Action::Reset { .. })) < first(&start(Role::Server)));
    assert!(last(&start(Role::Server)) < first(&start(Role::Agent)));
    for group in &groups {
        let servers = group.iter().filter(|a| start(Role::Server)(a)).count();
        assert!(servers <= 1, "restored servers join one at a time: {group:?}");
    }
}

#[test]
fn a_restore_is_carried_out_in_that_order_and_completes() {
    let (plan, world) = planned(1, &[]);
    let groups = restore::sequence(&plan, &[]);
    let mut story = Story::begin(world, plan, &[]);
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed), "{}", story.lines().join("\n"));
    let done: Vec<String> = story.lines().iter().filter_map(|l| Some(l.split_once("done: ")?.1.to_owned())).collect();
    let planned: Vec<String> = groups.iter().flatten().map(Action::words).collect();
    assert_eq!(done, planned);
}

#[test]
fn a_step_that_fails_holds_and_goes_on_where_it_stands() {
    let (plan, world) = planned(1, &[]);
    let mut story = Story::begin(world, plan, &[]);
    let mut once = true;
    let failing = |action: &Action| {
        let fails = std::mem::take(&mut once) & matches!(action, Action::Stop { .. });
        Some(if fails { Fate::Failed { kind: FailureKind::Refused, changed: false } } else { Fate::Done })
    };
    let held = story.run(failing);
    assert!(matches!(&held, Wanted::Hold(hold) if hold.cause == HoldCause::NeedsConsent), "{held:?}");
    assert!(story.rollout.sent.is_empty(), "nothing is replaced while one may still run");
    story.resume();
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed), "{}", story.lines().join("\n"));
}

#[test]
fn until_something_is_replaced_a_restore_can_be_given_up() {
    let (plan, world) = planned(1, &[]);
    let mut story = Story::begin(world, plan, &[]);
    story.run(|action| (!stop_of("s2")(action)).then_some(Fate::Done));
    story.ask(Request::Abort);
    let ended = story.run_well();
    assert!(matches!(ended, Wanted::End(Ending::Aborted { .. })), "{ended:?}\n{}", story.lines().join("\n"));
    let lines = story.lines().join("\n");
    assert!(lines.contains("done: start K3s on s1") && lines.contains("done: start K3s on a1"), "{lines}");
    assert!(story.rollout.sent.is_empty());
}

#[test]
fn once_something_is_replaced_it_stands_still_and_can_go_on() {
    let (plan, world) = planned(1, &[]);
    let mut story = Story::begin(world, plan, &[]);
    story.run(|action| (!matches!(action, Action::Reset { .. })).then_some(Fate::Done));
    story.ask(Request::Abort);
    let held = story.run_well();
    assert!(matches!(held, Wanted::Hold(_)), "{held:?}");
    story.resume();
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed), "{}", story.lines().join("\n"));
}

#[test]
fn a_host_declared_off_on_the_way_is_left_behind() {
    let (plan, world) = planned(1, &[]);
    let mut story = Story::begin(world, plan, &[]);
    let away = |action: &Action| Some(if stop_of("s3")(action) { Fate::Unknown { took: false } } else { Fate::Done });
    assert!(matches!(story.run(away), Wanted::Hold(_)));
    story.record(Event::DeclaredOff { nodes: vec!["s3".into()] });
    story.resume();
    let before = story.log.len();
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed), "{}", story.lines().join("\n"));
    let asked = story.log[before..].iter().any(|r| match &r.event {
        Event::Intent { action, .. } => action.node() == Some(&"s3".into()),
        _ => false,
    });
    assert!(!asked, "{}", story.lines().join("\n"));
}

#[test]
fn a_host_declared_off_while_giving_up_ends_it() {
    let (plan, world) = planned(1, &[]);
    let mut story = Story::begin(world, plan, &[]);
    story.run(|action| (!stop_of("s2")(action)).then_some(Fate::Done));
    story.ask(Request::Abort);
    let dead =
        |a: &Action| matches!(a, Action::Start { node, .. } | Action::Prove { node, .. } if node.as_str() == "a1");
    let held = story.run(|a| Some(if dead(a) { Fate::Unknown { took: false } } else { Fate::Done }));
    assert!(matches!(held, Wanted::Hold(_)), "{held:?}");
    story.record(Event::DeclaredOff { nodes: vec!["a1".into()] });
    story.resume();
    let ended = story.run_well();
    assert!(matches!(ended, Wanted::End(Ending::Aborted { .. })), "{ended:?}\n{}", story.lines().join("\n"));
}
