//! The simulated ports do what every port of their kind does.

use futures_util::FutureExt as _;
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::ident::NodeName;
use kadence_core::inventory::Arch;
use kadence_core::version::Version;
use kadence_engine::contract::{api, hosts};
use kadence_engine::ports::ArtifactKind;
use kadence_sim::faults::{Target, What};
use kadence_sim::{Topology, World};

fn world() -> World {
    let topology = Topology { servers: 3, agents: 2, datastore: DatastoreKind::EmbeddedEtcd };
    World::cluster(topology, Version::new(1, 36, 3, 1)).seed(3).build()
}

#[tokio::test(start_paused = true)]
async fn hosts_do_what_every_host_does() {
    hosts::suite(async || {
        let world = world();
        let releases = world.releases();
        let artifact = releases.fetch(&Version::new(1, 36, 4, 1), Arch::Amd64, ArtifactKind::Binary).await;
        let folder = tempfile::tempdir().expect("a folder");
        hosts::AtHand {
            hosts: world.hosts(),
            server: NodeName::new("s2"),
            artifact: artifact.expect("fetched"),
            folder: folder.path().to_owned(),
            keep: Box::new((world, folder)),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_api_does_what_every_api_does() {
    api::suite(async || {
        let world = world();
        let somebody = world.clone();
        api::AtHand {
            api: world.api(),
            node: NodeName::new("a1"),
            servers: ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(str::to_owned).to_vec(),
            cordon_as_somebody_else: Box::new(move |node| {
                let world = somebody.clone();
                async move { world.strike(What::ForeignCordon { at: Target::Node(node) }) }.boxed()
            }),
            keep: Box::new(world),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn evictions_obey_budgets() {
    let world = world();
    world.strike(What::BudgetStuck { name: "web".to_owned() });
    let api = world.api();
    let pods = api.facts().await.expect("facts").workload.pods;
    let pods = pods.known().expect("pods");
    let pod = |app: &str| pods.iter().find(|p| p.labels.get("app").is_some_and(|a| a == app)).expect("a pod");
    api::evictions(&*api, pod("cart"), pod("web")).await;
}
