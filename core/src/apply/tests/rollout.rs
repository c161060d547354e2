use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::story::{Fate, Story};
use super::world::{Wish, World, set_cordon};
use crate::apply::action::{Action, FailureKind};
use crate::apply::plan::{DatastoreKind, DeclaredOutage};
use crate::apply::rollout::{At, LOOK_HOLDS, Rollout, Wanted};
use crate::event::{Ending, Event, Request};
use crate::fact::Fact;
use crate::ident::{ActionId, NodeName};
use crate::inventory::{Cordon, Inventory, Role, example};
use crate::version::Version;

/// A rollout with whatever may happen to it, and what must hold all the while.
struct Chaos {
    story: Story,
    began: Inventory,
    in_flight: BTreeMap<ActionId, Action>,
    ids: BTreeSet<ActionId>,
    /// When the look began that was last done before a node.
    looked: BTreeMap<NodeName, Timestamp>,
    /// The nodes that were in hand when somebody or something asked to stop.
    stopping: Option<BTreeSet<NodeName>>,
}

impl Chaos {
    fn begin(world: &World, wish: &Wish) -> Self {
        let inventory = world.inventory();
        let plan = wish.plan(&inventory).expect("a plan");
        Self {
            began: inventory.clone(),
            story: Story::begin(inventory, plan, &[]),
            in_flight: BTreeMap::new(),
            ids: BTreeSet::new(),
            looked: BTreeMap::new(),
            stopping: None,
        }
    }

    fn said(&self) -> String {
        self.story.lines().join("\n")
    }

    /// Notes who was in hand when a stop was asked for; from then on nobody else is begun.
    fn note_stop(&mut self, in_hand_before: &BTreeSet<NodeName>) {
        let rollout = &self.story.rollout;
        if rollout.hold.is_none() && rollout.asked.is_none() {
            self.stopping = None;
        } else if self.stopping.is_none() {
            self.stopping = Some(in_hand_before.clone());
        }
    }

    fn begun(&mut self, id: &ActionId, action: &Action) {
        let rollout = &self.story.rollout;
        if !rollout.open().any(|(open, _)| open == id) {
            assert!(self.ids.insert(id.clone()), "{id} is used twice\n{}", self.said());
        }
        if let (Some(in_hand), Action::Cordon { node }) = (&self.stopping, action) {
            assert!(in_hand.contains(node), "{node} is begun after a stop was asked for\n{}", self.said());
        }
        // A look that was begun before is only asked for its result.
        if let (Some(_), Action::Look { before }) = (&self.stopping, action)
            && !rollout.open().any(|(open, _)| open == id)
        {
            let waiting: Vec<_> = before.iter().filter(|n| rollout.nodes[*n].at == At::Waiting).collect();
            assert!(waiting.is_empty(), "{waiting:?} are looked at after a stop was asked for\n{}", self.said());
        }
        if let Action::Swap { node, swap } = action {
            let alone = rollout.plan.decision.outage == Some(DeclaredOutage::SingleServer);
            let back = rollout.nodes[node].at == At::PuttingBack;
            let age = self.looked.get(node).map(|at| self.story.now.duration_since(*at));
            let fresh = age.is_some_and(|age| age <= LOOK_HOLDS);
            // Where it is already there the order changes nothing, and only asks for the result of the first one.
            let there = super::world::binary(&self.story.world, node) == Some(swap.artifact);
            assert!(fresh || there || (alone && back), "{node} is stopped on a look {age:?} old\n{}", self.said());
            self.versions_in_order(node, &swap.to);
        }
    }

    /// With this node on that version no agent is newer than a server.
    fn versions_in_order(&self, node: &NodeName, to: &Version) {
        let of = |role| {
            let nodes = self.story.world.nodes.iter().filter(move |n| n.role == role);
            nodes.filter_map(|n| if n.name == *node { Some(to) } else { n.version.known() })
        };
        let (agent, server) = (of(Role::Agent).max(), of(Role::Server).min());
        assert!(agent.is_none() || agent <= server, "{node} to {to}: an agent is newer\n{}", self.said());
    }

    /// What is wanted is begun.
    fn intend(&mut self) -> bool {
        let Wanted::Actions(actions) = self.story.rollout.wanted() else { return false };
        for (id, action) in actions {
            if !self.in_flight.contains_key(&id) {
                self.begun(&id, &action);
                self.story.intend(&id, &action);
                self.in_flight.insert(id, action);
            }
        }
        let servers = |name: &&NodeName| self.story.rollout.step(name).is_some_and(|s| s.role == Role::Server);
        let in_hand = self.story.rollout.in_hand();
        assert!(in_hand.iter().filter(servers).count() <= 1, "two servers in hand\n{}", self.said());
        true
    }

    /// One that is under way comes to its end.
    fn finish(&mut self, which: usize, fate: Fate, seconds: i64) {
        let Some((id, action)) = self.in_flight.iter().nth(which % self.in_flight.len().max(1)) else { return };
        let (id, action) = (id.clone(), action.clone());
        let began = self.story.now;
        let outcome = self.story.perform(&action, fate);
        self.story.pass(seconds);
        if let (Action::Look { before }, Fate::Done) = (&action, fate) {
            self.looked.extend(before.iter().map(|n| (n.clone(), began)));
        }
        let in_hand = self.story.rollout.in_hand();
        self.in_flight.remove(&id);
        self.story.outcome(&id, outcome);
        self.note_stop(&in_hand);
    }

    /// Kadence is killed; what it began may have been done. Another one reads the log and goes on.
    fn kill(&mut self, took: bool) {
        for action in std::mem::take(&mut self.in_flight).into_values() {
            self.story.perform(&action, Fate::Unknown { took });
        }
        let read = Rollout::read(&self.story.log).expect("a whole log");
        assert_eq!(read, self.story.rollout, "what is read is what was\n{}", self.said());
        self.resume();
    }

    fn resume(&mut self) {
        let in_hand = self.story.rollout.in_hand();
        self.story.resume();
        self.stopping = None;
        self.note_stop(&in_hand);
    }

    /// Something happens. `false`: it has ended.
    fn happen(&mut self, what: u8, which: usize) -> bool {
        if !self.intend() {
            match self.story.rollout.wanted() {
                Wanted::End(ending) => {
                    self.story.record(Event::Ended { ending, outage: None });
                    return false;
                }
                Wanted::Hold(hold) => {
                    self.story.record(Event::Held { hold, outage: None });
                    self.in_flight.clear();
                    self.resume();
                }
                Wanted::Actions(_) | Wanted::Nothing => unreachable!("{}", self.said()),
            }
            return true;
        }
        let seconds = i64::try_from(which % 4).unwrap_or_default();
        let failed = |kind, changed| Fate::Failed { kind, changed };
        match what {
            0 => self.finish(which, failed(FailureKind::NotReadyInTime, true), seconds),
            1 => self.finish(which, failed(FailureKind::Refused, false), seconds),
            2 => self.finish(which, Fate::Unknown { took: true }, seconds),
            3 => self.finish(which, Fate::Unknown { took: false }, seconds),
            4 => self.kill(true),
            5 => self.kill(false),
            6 | 7 => {
                let in_hand = self.story.rollout.in_hand();
                self.story.ask(if what == 6 { Request::Pause } else { Request::Abort });
                self.note_stop(&in_hand);
            }
            8 => {
                let count = self.story.world.nodes.len();
                let node = &mut self.story.world.nodes[which % count];
                node.ready = Fact::Known(!node.ready.is(&true));
            }
            9 => {
                let count = self.story.world.nodes.len();
                let node = &mut self.story.world.nodes[which % count];
                match node.cordon() {
                    Cordon::None => set_cordon(node, Cordon::Foreign),
                    Cordon::Foreign => set_cordon(node, Cordon::None),
                    Cordon::Ours { .. } => {}
                }
            }
            // A slow one.
            10 => self.finish(which, Fate::Done, 8),
            _ => self.finish(which, Fate::Done, seconds),
        }
        true
    }

    /// The others let it be, and everything is well again.
    fn heal(&mut self) {
        for node in &mut self.story.world.nodes {
            node.ready = Fact::Known(true);
            if *node.cordon() == Cordon::Foreign {
                set_cordon(node, Cordon::None);
            }
        }
    }

    fn end(&mut self) {
        self.heal();
        for _ in 0..2_000 {
            if !self.happen(u8::MAX, 1) {
                self.ended();
                return;
            }
        }
        unreachable!("left alone it does not come to an end\n{}", self.said());
    }

    fn ended(&self) {
        let rollout = &self.story.rollout;
        assert_eq!(rollout.wanted(), Wanted::Nothing);
        assert_eq!(Rollout::read(&self.story.log).as_ref(), Ok(rollout), "what is read is what was");
        for node in &self.story.world.nodes {
            let at = rollout.nodes.get(&node.name).map(|p| p.at);
            let ours = matches!(node.cordon(), Cordon::Ours { .. });
            assert!(!ours || at == Some(At::Stuck), "{} ({at:?}) keeps our cordon\n{}", node.name, self.said());
            if at == Some(At::Done) {
                assert_eq!(node.version.known(), rollout.step(&node.name).map(|s| &s.to), "{}", self.said());
            }
        }
        match &rollout.ended {
            Some((Ending::Completed, _)) => {
                let target = &rollout.plan.decision.target;
                assert!(self.story.world.nodes.iter().all(|n| n.version.is(target)), "{}", self.said());
            }
            Some((Ending::FailedAndBack { .. } | Ending::Refused { .. }, _)) => {
                let installed = |inventory: &Inventory| -> Vec<_> {
                    let install = |n: &crate::inventory::Node| {
                        let host = n.host.known().expect("a host");
                        (n.version.clone(), host.install.clone().map(|i| i.digest))
                    };
                    inventory.nodes.iter().map(install).collect()
                };
                assert_eq!(installed(&self.story.world), installed(&self.began), "all is back\n{}", self.said());
            }
            Some((Ending::Failed { .. } | Ending::Aborted { .. }, _)) => {}
            None => unreachable!("it ended"),
        }
    }
}

fn cluster() -> impl Strategy<Value = (World, Wish)> {
    let shape = prop_oneof![
        (Just(DatastoreKind::EmbeddedEtcd), 1u8..=3),
        (Just(DatastoreKind::External), 1u8..=2),
        (Just(DatastoreKind::Sqlite), Just(1u8)),
    ];
    let hop = prop_oneof![
        Just(("v1.36.3+k3s1", vec!["v1.36.4+k3s1"])),
        Just(("v1.35.7+k3s1", vec!["v1.36.4+k3s1"])),
        Just(("v1.33.10+k3s1", vec!["v1.33.11+k3s1"])),
        Just(("v1.34.10+k3s1", vec!["v1.35.7+k3s1", "v1.36.4+k3s1"])),
    ];
    (shape, 0u8..=3, hop, 1u32..=2).prop_map(|((datastore, servers), agents, (runs, to), at_once)| {
        let world = World { datastore, servers, agents, runs: runs.to_owned(), but: super::world::But::default() };
        (world, Wish::of(&to, at_once))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold_and_it_ends(
        (world, wish) in cluster(),
        happens in prop::collection::vec((0u8..40, 0usize..12), 0..90),
    ) {
        let mut chaos = Chaos::begin(&world, &wish);
        let goes_on = happens.iter().all(|(what, which)| chaos.happen(*what, *which));
        if goes_on { chaos.end() } else { chaos.ended() }
    }
}

fn ha(agents: u8) -> (World, Wish) {
    let but = super::world::But::default();
    let world =
        World { datastore: DatastoreKind::EmbeddedEtcd, servers: 3, agents, runs: "v1.36.3+k3s1".to_owned(), but };
    (world, Wish::of(&["v1.36.4+k3s1"], 2))
}

#[test]
fn a_group_of_agents_of_which_one_may_not_be_touched_is_not_begun() {
    let (world, wish) = ha(3);
    for foreign in ["a2", "a3"] {
        let inventory = world.inventory();
        let mut story = Story::begin(inventory.clone(), wish.plan(&inventory).expect("a plan"), &[]);
        let group: Vec<NodeName> = vec!["a2".into(), "a3".into()];
        story.run(|action| match action {
            Action::Look { before } if *before == group => None,
            _ => Some(Fate::Done),
        });
        set_cordon(example::node_mut(&mut story.world, foreign), Cordon::Foreign);
        let held = story.run_well();
        assert!(matches!(&held, Wanted::Hold(hold) if hold.what.contains("cordoned by somebody else")), "{held:?}");
        let other = if foreign == "a2" { "a3" } else { "a2" };
        assert_eq!(
            story.rollout.sent.get(other),
            None,
            "{foreign} holds the rollout, and {other} was begun\n{}",
            story.lines().join("\n")
        );
    }
}

#[test]
fn a_cordon_that_is_refused_holds() {
    let (world, wish) = ha(0);
    let inventory = world.inventory();
    let mut story = Story::begin(inventory.clone(), wish.plan(&inventory).expect("a plan"), &[]);
    let refused = Fate::Failed { kind: FailureKind::Refused, changed: false };
    let mut refusals = 0;
    let held = story.run(|action| match action {
        Action::Cordon { .. } if refusals > 3 => None,
        Action::Cordon { .. } => {
            refusals += 1;
            Some(refused)
        }
        _ => Some(Fate::Done),
    });
    assert!(matches!(held, Wanted::Hold(_)), "{held:?}\n{}", story.lines().join("\n"));
    story.resume();
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed), "{}", story.lines().join("\n"));
}

#[test]
fn what_is_asked_between_a_look_and_its_cordon_is_honoured() {
    let (world, wish) = ha(0);
    let inventory = world.inventory();
    for request in [Request::Pause, Request::Abort] {
        let mut story = Story::begin(inventory.clone(), wish.plan(&inventory).expect("a plan"), &[]);
        story.run(|action| (!matches!(action, Action::Look { .. })).then_some(Fate::Done));
        let Wanted::Actions(look) = story.rollout.wanted() else { unreachable!("a look") };
        let outcome = story.perform(&look[0].1, Fate::Done);
        story.outcome(&look[0].0, outcome);
        story.ask(request);
        story.run_well();
        assert!(story.rollout.sent.is_empty(), "s2 was begun after {request:?}\n{}", story.lines().join("\n"));
    }
}

#[test]
fn a_log_that_is_not_whole_is_refused() {
    let (world, wish) = ha(0);
    let inventory = world.inventory();
    let mut story = Story::begin(inventory.clone(), wish.plan(&inventory).expect("a plan"), &[]);
    story.run_well();
    let log = &story.log;
    let why = |log: &[crate::event::Recorded]| Rollout::read(log).expect_err("not whole").to_string();
    assert_eq!(why(&[]), "the log is empty");
    assert_eq!(why(&log[1..]), "the log begins with event 2, not with the first one");
    assert_eq!(why(&[&log[..3], &log[4..]].concat()), "event 5 follows event 3");
    let mut newer = log.clone();
    newer[4].schema += 1;
    assert_eq!(why(&newer), "event 5 has shape 2, which a newer Kadence wrote");
    newer.truncate(1);
    newer[0].schema += 1;
    assert_eq!(why(&newer), "event 1 has shape 2, which a newer Kadence wrote");
}

/// What is done, in order, when all goes well.
#[test]
fn three_servers_and_an_agent_go_one_after_the_other() {
    let (world, wish) = ha(1);
    let inventory = world.inventory();
    let mut story = Story::begin(inventory.clone(), wish.plan(&inventory).expect("a plan"), &[]);
    assert_eq!(story.run_well(), Wanted::End(Ending::Completed));
    let done: Vec<String> = story.lines().iter().filter_map(|l| Some(l.split_once("done: ")?.1.to_owned())).collect();
    let node = |n: &str, last: bool| {
        let mut of = vec![
            format!("look again before {n}"),
            format!("cordon {n}"),
            format!("restart {n} with v1.36.4+k3s1"),
            format!("prove {n} healthy on v1.36.4+k3s1"),
            format!("uncordon {n}"),
        ];
        of.extend((!last).then(|| format!("see whether everything serves after {n}")));
        of
    };
    let mut expected = vec!["check the cluster before hop 1".to_owned()];
    expected.extend(["s2", "s3", "s1", "a1"].map(|n| format!("stage v1.36.4+k3s1 on {n}")));
    expected.push("snapshot etcd on s1".to_owned());
    expected.extend(["s2", "s3", "s1"].iter().flat_map(|n| node(n, false)));
    expected.extend(node("a1", true));
    expected.push("compare with the state before, run the probes".to_owned());
    assert_eq!(done, expected);
}
