//! Which plans are kept in the state.

use std::sync::Arc;

use kadence_core::apply::plan::DatastoreKind;
use kadence_core::event::{Consent, Recorded};
use kadence_core::version::Version;
use kadence_engine::Wish;
use kadence_engine::ports::{Observer, Progress};
use kadence_sim::{Stage, Topology, World};

struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Recorded) {}
    fn progress(&self, _: &Progress) {}
}

#[test]
fn a_plan_that_was_only_looked_at_is_not_kept_and_one_that_is_carried_out_is() {
    kadence_sim::runtime().expect("a runtime").block_on(async {
        let scratch = tempfile::tempdir().expect("a folder");
        let topology = Topology { servers: 3, agents: 0, datastore: DatastoreKind::EmbeddedEtcd };
        let world = World::cluster(topology, Version::new(1, 36, 3, 1)).build();
        let stage = Stage::new(world, "shop", scratch.path());
        let engine = stage.engine(Arc::new(Nobody));
        let inventory = engine.inspect().await.expect("an inventory");
        let plan = engine.plan(&inventory, &Wish::default()).await.expect("a plan");
        engine.check(&inventory, Some(&plan)).await.expect("checked");
        assert_eq!(engine.store.plans("").await.expect("plans"), Vec::new(), "check and why do this, too");
        let uid = plan.decision.preconditions.cluster_uid.clone();
        let turn = engine.take_turn(&uid, 0).await.expect("the turn");
        engine.begin(plan.clone(), Consent::default(), &turn).await.expect("begun");
        assert_eq!(engine.store.plans("").await.expect("plans"), vec![plan]);
    });
}
