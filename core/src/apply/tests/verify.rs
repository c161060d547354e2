use proptest::prelude::*;

use super::world::{Wish, World, v};
use crate::apply::plan::{DatastoreKind, Plan, Purpose, UndoClass};
use crate::apply::planner::NoPlan;
use crate::apply::verify::faults;
use crate::fact::Fact;
use crate::ident::Digest;
use crate::inventory::Role;

/// Three servers and three agents, two agents at once, one minor up.
fn sound() -> Plan {
    let toml = "datastore = 'embedded-etcd'\nservers = 3\nagents = 3\nruns = 'v1.35.7+k3s1'";
    let world: World = toml::from_str(toml).expect("a world");
    Wish::of(&["v1.36.4+k3s1"], 2).plan(&world.inventory()).expect("a plan")
}

/// The same way down, by binaries, with only the first two servers and an agent done.
fn back() -> Plan {
    let mut plan = sound();
    plan.decision.purpose = Purpose::Rollback { of: "r7".into() };
    plan.decision.excluded.clear();
    let hop = &mut plan.decision.hops[0];
    hop.steps.retain(|s| ["s2", "s3"].contains(&s.node.as_str()));
    hop.point_of_no_return = None;
    hop.artifacts.clear();
    for step in &mut hop.steps {
        std::mem::swap(&mut step.from, &mut step.to);
        std::mem::swap(&mut step.previous, &mut step.artifact);
        step.undo = UndoClass::Binary;
        let node = plan.decision.preconditions.nodes.get_mut(&step.node).expect("a node");
        (node.version, node.binary) = (step.from.clone(), step.previous);
    }
    plan
}

#[test]
fn a_sound_plan_has_no_fault() {
    assert_eq!(faults(&sound()), Vec::<String>::new());
    assert_eq!(faults(&back()), Vec::<String>::new());
}

/// Each fault, by a plan that has it; a phrase of what is said.
#[test]
fn every_fault_is_seen() {
    type Spoil = fn(&mut Plan);
    let forward: &[(&str, Spoil)] = &[
        ("hop 1: it has no steps", |p| p.decision.hops[0].steps.clear()),
        ("s2 is not in the preconditions", |p| {
            p.decision.preconditions.nodes.remove("s2");
        }),
        ("s2 is agent in the preconditions and server in the step", |p| {
            p.decision.preconditions.nodes.get_mut("s2").expect("s2").role = Role::Agent;
        }),
        ("s2 comes twice", |p| {
            let again = p.decision.hops[0].steps[0].clone();
            p.decision.hops[0].steps.insert(0, again);
        }),
        ("a1 is excluded and has a step", |p| {
            p.decision.excluded.insert("a1".into());
        }),
        ("s2 gets another binary than the hop has for amd64", |p| {
            p.decision.hops[0].steps[0].artifact = Digest::of(b"another");
        }),
        ("its waves are not in order", |p| p.decision.hops[0].steps[0].wave = 9),
        ("a server does not go alone", |p| p.decision.hops[0].steps[1].wave = 0),
        ("a server does not go alone", |p| p.decision.hops[0].steps[3].wave = 2),
        ("3 agents at once, at most 1 are allowed", |p| {
            for step in &mut p.decision.hops[0].steps[3..] {
                step.wave = 3;
            }
        }),
        ("2 agents at once, at most 1 are allowed", |p| p.decision.manner.agents_at_once = 1),
        ("its point of no return is not the first server step that a binary cannot undo", |p| {
            p.decision.hops[0].point_of_no_return = None;
        }),
        ("its point of no return is not the first server step that a binary cannot undo", |p| {
            p.decision.hops[0].steps[1].undo = UndoClass::ForwardOnly;
        }),
        ("s2 would go from v1.36.4+k3s1 to v1.36.4+k3s1, which is not up", |p| {
            p.decision.hops[0].steps[0].from = v("v1.36.4+k3s1");
        }),
        ("s2 would skip a minor from v1.34.10+k3s1 to v1.36.4+k3s1", |p| {
            p.decision.hops[0].steps[0].from = v("v1.34.10+k3s1");
        }),
        ("s2 would begin with v1.35.6+k3s1, and it has v1.35.7+k3s1 or another binary there", |p| {
            p.decision.hops[0].steps[0].from = v("v1.35.6+k3s1");
        }),
        ("s2 would begin with v1.35.7+k3s1, and it has v1.35.7+k3s1 or another binary there", |p| {
            p.decision.hops[0].steps[0].previous = Digest::of(b"another");
        }),
        ("after a1 an agent would run v1.36.4+k3s1 beside a server on v1.35.7+k3s1", |p| {
            p.decision.hops[0].steps.remove(2);
            p.decision.hops[0].point_of_no_return = None;
        }),
        ("after s2 servers would run v1.34.10+k3s1 and v1.36.4+k3s1", |p| {
            p.decision.preconditions.nodes.get_mut("s3").expect("s3").version = v("v1.34.10+k3s1");
        }),
        ("it means an outage and does not declare it", |p| {
            p.decision.preconditions.etcd_members.pop_first();
        }),
        ("it means an outage and does not declare it", |p| {
            p.decision.preconditions.nodes.remove("s2");
            p.decision.preconditions.nodes.remove("s3");
        }),
        ("the etcd members are not in the preconditions", |p| p.decision.preconditions.etcd_members.clear()),
        ("it has shape 2, which a newer Kadence wrote", |p| p.decision.schema = 2),
    ];
    let down: &[(&str, Spoil)] = &[
        ("s2 would go from v1.36.4+k3s1 to v1.37.1+k3s1, which is not back", |p| {
            p.decision.hops[0].steps[0].to = v("v1.37.1+k3s1");
        }),
        ("s2 would go from v1.36.4+k3s1 to v1.36.4+k3s1, which is not back", |p| {
            let step = &mut p.decision.hops[0].steps[0];
            (step.to, step.artifact) = (step.from.clone(), step.previous);
        }),
        ("s2 cannot go back by its binary", |p| {
            p.decision.hops[0].steps[0].undo = UndoClass::Restore;
            p.decision.hops[0].point_of_no_return = Some(0);
        }),
        ("after s2 an agent would run v1.36.4+k3s1 beside a server on v1.35.7+k3s1", |p| {
            p.decision.preconditions.nodes.get_mut("a1").expect("a1").version = v("v1.36.4+k3s1");
        }),
    ];
    for (plan, spoilt) in [(sound(), forward), (back(), down)] {
        for (fault, spoil) in spoilt {
            let mut plan = plan.clone();
            spoil(&mut plan);
            let found = faults(&plan);
            assert!(found.iter().any(|f| f.contains(fault)), "{fault:?} is not among {found:#?}");
        }
    }
}

#[test]
fn a_restore_declares_its_outage() {
    let mut plan = sound();
    plan.decision.outage = None;
    let backup = crate::apply::plan::BackupRef {
        name: "b".to_owned(),
        taken: crate::inventory::example::now(),
        version: v("v1.35.7+k3s1"),
        digest: Digest::of(b"b"),
        method: plan.decision.hops[0].backup.clone(),
        on_node: None,
    };
    plan.decision.purpose = Purpose::Restore { of: "r7".into(), backup };
    assert_eq!(faults(&plan), ["it means an outage and does not declare it"]);
}

const VERSIONS: &[&str] = &[
    "v1.33.10+k3s1",
    "v1.33.11+k3s1",
    "v1.34.1+k3s1",
    "v1.34.10+k3s1",
    "v1.35.2+k3s1",
    "v1.35.7+k3s1",
    "v1.35.9+k3s1",
    "v1.36.3+k3s1",
    "v1.36.4+k3s1",
    "v1.36.4+k3s2",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the planner makes of whatever runs, it is sound, or says why there is none. The ladder is that of the
    /// servers' lowest version, and no node is ahead of it.
    #[test]
    fn what_is_planned_is_sound(
        datastore in prop_oneof![Just(DatastoreKind::EmbeddedEtcd), Just(DatastoreKind::External)],
        servers in 1u8..=5,
        agents in 0u8..=5,
        lowest in 0..VERSIONS.len(),
        above in prop::collection::vec(0usize..3, 10),
        leader in 0usize..5,
        at_once in 1u32..=3,
        only_servers in any::<bool>(),
    ) {
        let runs = VERSIONS[lowest];
        let world = World { datastore, servers, agents, runs: runs.to_owned(), but: super::world::But::default() };
        let mut inventory = world.inventory();
        // Some servers are ahead, within the minor; agents are nowhere ahead of any server.
        let minor = |text: &str| v(text).minor();
        let same: Vec<&str> = VERSIONS[lowest..].iter().copied().filter(|t| minor(t) == minor(runs)).collect();
        for (i, node) in inventory.nodes.iter_mut().filter(|n| n.role == Role::Server).enumerate() {
            super::world::set_version(node, Fact::Known(v(same[above[i] % same.len()])));
            if let Fact::Known(host) = &mut node.host
                && let Some(Fact::Known(etcd)) = &mut host.etcd
            {
                etcd.leader = i == leader;
            }
        }
        let mut ladder: Vec<&str> = Vec::new();
        for text in &VERSIONS[lowest..] {
            match ladder.last() {
                Some(last) if minor(last) == minor(text) => *ladder.last_mut().expect("one") = text,
                _ => ladder.push(text),
            }
        }
        let wish = Wish { until_servers: only_servers, ..Wish::of(&ladder, at_once) };
        match wish.plan(&inventory) {
            Ok(plan) => prop_assert_eq!(faults(&plan), Vec::<String>::new()),
            Err(no) => prop_assert!(matches!(no, NoPlan::NoTarget), "{no}"),
        }
    }
}
