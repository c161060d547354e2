//! The measured outage of the API is the whole rollout's: over a hold, and over the death of the Kadence that measured.

use std::path::Path;
use std::sync::{Arc, Mutex};

use kadence_core::apply::action::Action;
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::{Consent, Event, OutageMeasured, Recorded, Request};
use kadence_core::ident::ActionId;
use kadence_core::version::Version;
use kadence_engine::ports::{Observer, Progress};
use kadence_engine::{Driven, Engine, Wish};
use kadence_sim::{Stage, Topology, World};
use tokio::sync::{Notify, mpsc};

/// Calls when the first node was replaced.
#[derive(Default)]
struct Swapped {
    swap: Mutex<Option<ActionId>>,
    done: Notify,
}

impl Observer for Swapped {
    fn event(&self, event: &Recorded) {
        let mut swap = self.swap.lock().expect("not poisoned");
        match &event.event {
            Event::Intent { id, action: Action::Prove { .. } } => *swap = Some(id.clone()),
            Event::Outcome { id, .. } if swap.as_ref() == Some(id) => self.done.notify_one(),
            _ => {}
        }
    }

    fn progress(&self, _: &Progress) {}
}

/// One server: its restart is an outage that nothing hides.
async fn begun(scratch: &Path, observer: Arc<Swapped>) -> (Stage, Engine, Rollout) {
    let topology = Topology { servers: 1, agents: 1, datastore: DatastoreKind::Sqlite };
    let world = World::cluster(topology, Version::new(1, 36, 3, 1)).build();
    let stage = Stage::new(world, "shop", scratch);
    let engine = stage.engine(observer);
    let inventory = engine.inspect().await.expect("an inventory");
    let plan = engine.plan(&inventory, &Wish::default()).await.expect("a plan");
    let uid = plan.decision.preconditions.cluster_uid.clone();
    let turn = engine.take_turn(&uid, 0).await.expect("the turn");
    stage.world.consent(plan.decision.outage);
    let consent = Consent { outage: true, ..Consent::default() };
    let rollout = engine.begin(plan, consent, &turn).await.expect("begun");
    (stage, engine, rollout)
}

/// Goes on as `kadence resume` does, to the end.
async fn resumed(engine: &Engine, rollout: &Rollout) -> OutageMeasured {
    let mut rollout = engine.rollout(&rollout.id).await.expect("the log");
    let turn = engine.take_turn(&rollout.cluster, rollout.turn).await.expect("the turn");
    engine.take_up(&mut rollout, &turn).await.expect("taken up");
    let (_ask, mut stop) = mpsc::unbounded_channel();
    let driven = engine.drive(&mut rollout, &mut stop).await.expect("driven");
    assert!(matches!(driven, Driven::Ended(_)), "{driven:?}");
    assert!(rollout.completed(), "{:?}", rollout.ended);
    let read = engine.rollout(&rollout.id).await.expect("the log");
    assert_eq!(read, rollout, "what is read is what was driven");
    rollout.ended.and_then(|(_, outage)| outage).expect("measured")
}

fn seconds(outage: &OutageMeasured) -> f64 {
    outage.reads.longest.as_secs_f64()
}

fn told(story: impl Future<Output = ()>) {
    kadence_sim::runtime().expect("a runtime").block_on(story);
}

#[test]
fn it_is_kept_over_a_hold() {
    told(async {
        let scratch = tempfile::tempdir().expect("a folder");
        let observer = Arc::new(Swapped::default());
        let (_stage, engine, mut rollout) = begun(scratch.path(), observer.clone()).await;
        let (ask, mut stop) = mpsc::unbounded_channel();
        let pause = tokio::spawn(async move {
            observer.done.notified().await;
            ask.send(Request::Pause).expect("somebody listens");
            std::future::pending::<()>().await;
        });
        let driven = engine.drive(&mut rollout, &mut stop).await.expect("driven");
        assert!(matches!(driven, Driven::Held(_)), "{driven:?}");
        pause.abort();
        let outage = resumed(&engine, &rollout).await;
        assert!(seconds(&outage) > 3.0, "the server's restart was before the pause: {outage:?}");
        assert!(outage.reads.failed > 10, "{outage:?}");
    });
}

#[test]
fn it_is_kept_over_a_kill() {
    told(async {
        let scratch = tempfile::tempdir().expect("a folder");
        let observer = Arc::new(Swapped::default());
        let (stage, engine, mut rollout) = begun(scratch.path(), observer.clone()).await;
        let (_ask, mut stop) = mpsc::unbounded_channel();
        tokio::select! {
            biased;
            () = observer.done.notified() => {}
            driven = Box::pin(engine.drive(&mut rollout, &mut stop)) => panic!("{driven:?}"),
        }
        stage.world.strike(kadence_sim::faults::What::Kill);
        drop(engine);
        stage.world.revive();
        let outage = resumed(&stage.engine(Arc::new(Swapped::default())), &rollout).await;
        assert!(seconds(&outage) > 3.0, "the server's restart was before the kill: {outage:?}");
    });
}
