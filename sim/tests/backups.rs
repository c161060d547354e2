//! Backups that need an outage, and restores whose copy on the node is not what it was.

use std::collections::BTreeSet;
use std::sync::Arc;

use kadence_core::apply::action::{Outcome, Report};
use kadence_core::apply::plan::{BackupMethod, DatastoreKind, DeclaredOutage, Plan, Purpose};
use kadence_core::apply::rollout::Rollout;
use kadence_core::config::WaiverEntry;
use kadence_core::event::{Consent, Ending, Event, Recorded};
use kadence_core::ident::NodeName;
use kadence_core::version::Version;
use kadence_engine::ports::{Observer, Progress, Store as _, Vault as _};
use kadence_engine::{Driven, Engine, StartError, WayBack, Wish};
use kadence_sim::faults::{Fault, Target, What, When};

use kadence_sim::{Stage, Topology, Workload, World, runtime};

struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Recorded) {}
    fn progress(&self, _: &Progress) {}
}

struct Play {
    world: World,
    stage: Stage,
    engine: Engine,
}

fn play(datastore: DatastoreKind, agents: u8, from: &Version, tools: bool, act: impl AsyncFn(Play)) {
    play_with(datastore, agents, from, tools, None, act);
}

fn play_with(
    datastore: DatastoreKind,
    agents: u8,
    from: &Version,
    tools: bool,
    fault: Option<Fault>,
    act: impl AsyncFn(Play),
) {
    let folder = tempfile::tempdir().expect("a folder");
    runtime().expect("a runtime").block_on(async {
        let setup = World::cluster(Topology { servers: 1, agents, datastore }, from.clone())
            .workload(Workload::Bare)
            .faults(fault);
        let world = if tools { setup } else { setup.without_sqlite_tools() }.build();
        let mut stage = Stage::new(world.clone(), "shop", folder.path());
        // Not every release of the simulated source is in the tables.
        Arc::make_mut(&mut stage.config).waivers.push(WaiverEntry {
            check: "CHECK-MISSING".to_owned(),
            about: None,
            owner: "test".to_owned(),
            reason: "nothing is in the way".to_owned(),
            until: "2099-01-01T00:00:00Z".parse().expect("a time"),
        });
        let engine = stage.engine(Arc::new(Nobody));
        act(Play { world, stage, engine }).await;
    });
}

impl Play {
    async fn plan(&self, to: &Version) -> Plan {
        let inventory = self.engine.inspect().await.expect("inspected");
        let wish = Wish { to: Some(to.clone()), ..Wish::default() };
        self.engine.plan(&inventory, &wish).await.expect("a plan")
    }

    async fn carry_out(&self, plan: Plan) -> (Rollout, Ending) {
        let uid = plan.decision.preconditions.cluster_uid.clone();
        self.stage.store.remember_uid("shop", &uid).await.expect("remembered");
        let inventory = self.engine.inspect().await.expect("inspected");
        let turn = self.engine.take_turn(&uid, Engine::turn_seen(&inventory)).await.expect("the turn");
        self.world.consent(plan.decision.outage);
        self.world.rollout_begins();
        let consent = Consent { outage: true, ..Consent::default() };
        let rollout = self.engine.begin(plan, consent, &turn).await.expect("begun");
        self.drive(rollout).await
    }

    async fn drive(&self, mut rollout: Rollout) -> (Rollout, Ending) {
        let (_ask, mut stop) = tokio::sync::mpsc::unbounded_channel();
        match self.engine.drive(&mut rollout, &mut stop).await.expect("driven") {
            Driven::Ended(ending) => (rollout, ending),
            Driven::Held(hold) => unreachable!("{hold:?}\n{}", self.world.log().join("\n")),
        }
    }

    /// Takes the last rollout back by a restore; gives the words on which copy it used.
    async fn restore(&self, spoil: impl FnOnce(&Plan)) -> String {
        let uid = self.stage.store.known_uid("shop").await.expect("asked").expect("known");
        let WayBack::Plan { plan, seen } = self.engine.way_back(&uid, &[]).await.expect("a way back") else {
            unreachable!("no plan");
        };
        assert!(matches!(plan.decision.purpose, Purpose::Restore { .. }), "{:?}", plan.decision.purpose);
        spoil(&plan);
        let turn = self.engine.take_turn(&uid, seen).await.expect("the turn");
        self.world.consent(plan.decision.outage);
        self.world.rollout_begins();
        let consent = Consent { outage: true, data_loss: true, ..Consent::default() };
        let target = plan.decision.target.clone();
        let restore = self.engine.take_back(plan, consent, &turn).await.expect("begun");
        let (restore, ending) = self.drive(restore).await;
        assert_eq!(ending, Ending::Completed, "{}", self.world.log().join("\n"));
        self.world.judge_end(&ending, &target, &BTreeSet::new());
        assert_eq!(self.world.violations(), []);
        let events = self.stage.store.events(&restore.id).await.expect("events");
        let from = events.into_iter().find_map(|e| match e.event {
            Event::Outcome { outcome, .. } => match *outcome {
                Outcome::Done { report: Report::Reset { from, .. }, .. } => from,
                _ => None,
            },
            _ => None,
        });
        from.expect("it says which copy it used")
    }
}

fn v(minor: u64, patch: u64) -> Version {
    Version::new(1, minor, patch, 1)
}

fn s1() -> NodeName {
    "s1".into()
}

#[test]
fn without_tools_k3s_is_stopped_for_the_copy_and_the_copy_is_read_here() {
    play(DatastoreKind::Sqlite, 1, &v(36, 3), false, async |play| {
        let plan = play.plan(&v(36, 4)).await;
        assert_eq!(plan.decision.hops[0].backup, BackupMethod::SqliteStopped { server: s1() });
        assert_eq!(plan.decision.outage, Some(DeclaredOutage::SingleServer));
        let (rollout, ending) = play.carry_out(plan).await;
        assert_eq!(ending, Ending::Completed, "{}", play.world.log().join("\n"));
        assert_eq!(play.world.violations(), []);
        let receipt = rollout.backups.first().expect("a backup");
        assert!(receipt.revision >= receipt.at_least && receipt.revision.is_some(), "{receipt:?}");
        // What is kept is one file that has the log's writes in it.
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("datastore");
        play.stage.vault.fetch(&receipt.backup.name, "datastore", &file).await.expect("fetched");
        let read = play.stage.vault.read_sqlite(&file).await.expect("read");
        assert_eq!(Some(read.revision), receipt.revision);
        assert!(receipt.backup.taken < rollout.at);
    });
}

#[test]
fn agents_alone_mean_an_outage_too_if_the_backup_stops_the_server() {
    for (tools, outage) in [(true, None), (false, Some(DeclaredOutage::SingleServer))] {
        play(DatastoreKind::Sqlite, 1, &v(36, 3), tools, async |play| {
            let inventory = play.engine.inspect().await.expect("inspected");
            let wish = Wish { to: Some(v(36, 4)), ..Wish::default() };
            let servers = Wish {
                scope: kadence_core::apply::planner::Scope { until_servers: true, ..wish.scope.clone() },
                ..wish.clone()
            };
            let plan = play.engine.plan(&inventory, &servers).await.expect("a plan");
            assert_eq!(play.carry_out(plan).await.1, Ending::Completed);
            let plan = play.plan(&v(36, 4)).await;
            assert!(plan.decision.hops[0].steps.iter().all(|s| s.node != s1()), "only the agent is left");
            assert_eq!(plan.decision.outage, outage);
            assert_eq!(play.carry_out(plan).await.1, Ending::Completed, "{}", play.world.log().join("\n"));
            assert_eq!(play.world.violations(), []);
        });
    }
}

#[test]
fn k3s_is_not_stopped_for_a_copy_that_nobody_consented_to() {
    play(DatastoreKind::Sqlite, 1, &v(36, 3), false, async |play| {
        let mut plan = play.plan(&v(36, 4)).await;
        for hop in &mut plan.decision.hops {
            hop.steps.retain(|s| s.node != s1());
        }
        plan.decision.outage = None;
        let turn = play.engine.take_turn(&plan.decision.preconditions.cluster_uid, 0).await.expect("the turn");
        let refused = play.engine.begin(plan, Consent { outage: true, ..Consent::default() }, &turn).await;
        assert!(
            matches!(&refused, Err(StartError::Unsafe(faults)) if faults.iter().any(|f| f.contains("outage"))),
            "{refused:?}"
        );
    });
}

#[test]
fn k3s_is_not_stopped_for_a_copy_on_a_node_that_somebody_works_on() {
    // After the checks, and before the backup.
    let fault = Fault { when: When::AfterEvent(4), what: What::ForeignCordon { at: Target::Node(s1()) } };
    play_with(DatastoreKind::Sqlite, 1, &v(36, 3), false, Some(fault), async |play| {
        let plan = play.plan(&v(36, 4)).await;
        let (rollout, ending) = play.carry_out(plan).await;
        assert!(matches!(ending, Ending::Refused { .. }), "{ending:?}");
        assert!(rollout.backups.is_empty());
        let log = play.world.log();
        assert!(!log.iter().any(|line| line.contains("sqlite-stopped-copy")), "{}", log.join("\n"));
        assert!(log.iter().any(|line| line.contains("cordon")), "{}", log.join("\n"));
        assert_eq!(play.world.violations(), []);
    });
}

#[test]
fn refused_is_not_said_once_k3s_was_stopped_for_a_copy() {
    play(DatastoreKind::Sqlite, 1, &v(36, 3), false, async |play| {
        play.stage.vault.fail_keeps(1..2);
        let plan = play.plan(&v(36, 4)).await;
        let (_, ending) = play.carry_out(plan).await;
        assert!(matches!(ending, Ending::Failed { .. }), "{ending:?}");
        assert!(play.world.log().iter().any(|line| line.contains("sqlite-stopped-copy")));
        assert_eq!(play.world.violations(), []);
    });
}

#[test]
fn a_restore_uses_the_copy_on_the_node_if_it_is_what_it_was_and_else_the_vaults() {
    type Spoil = fn(&World, &str);
    let cases: [(Spoil, bool); 3] = [
        (|_, _| {}, false),
        (|world, path| world.spoil(&s1(), path, None), true),
        (|world, path| world.spoil(&s1(), path, Some(b"damaged")), true),
    ];
    for datastore in [DatastoreKind::EmbeddedEtcd, DatastoreKind::Sqlite] {
        for (spoil, vault) in cases {
            play(datastore, 1, &v(35, 7), true, async |play| {
                assert_eq!(play.carry_out(play.plan(&v(36, 4)).await).await.1, Ending::Completed);
                let used = play
                    .restore(|plan| {
                        let Purpose::Restore { backup, .. } = &plan.decision.purpose else {
                            unreachable!("no restore")
                        };
                        spoil(&play.world, &backup.on_node.as_ref().expect("a copy").path);
                    })
                    .await;
                assert_eq!(used.contains("out of the vault"), vault, "{datastore:?}: {used}");
            });
        }
    }
}

#[test]
fn the_first_hops_snapshot_outlives_a_ladder() {
    play(DatastoreKind::EmbeddedEtcd, 0, &v(33, 1), true, async |play| {
        let plan = play.plan(&v(37, 1)).await;
        assert_eq!(plan.decision.hops.len(), 4);
        let (rollout, ending) = play.carry_out(plan).await;
        assert_eq!(ending, Ending::Completed, "{}", play.world.log().join("\n"));
        let first = rollout.backups.first().and_then(|b| b.backup.on_node.clone()).expect("a copy");
        assert!(play.world.snapshots(&s1()).iter().any(|s| s.path == first.path), "it was pruned");
        let used = play.restore(|_| {}).await;
        assert_eq!(used, first.path);
    });
}
