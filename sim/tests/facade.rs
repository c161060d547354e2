//! The façade: Kadence's own adapter, over TLS, sees the simulated world as the simulated port tells it, and does to it
//! what it would do.

use std::sync::Arc;

use futures_util::FutureExt as _;
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::fact::Fact;
use kadence_core::ident::{ClusterUid, NodeName};
use kadence_core::inventory::{ApiFacts, Cordon};
use kadence_core::version::Version;
use kadence_engine::contract::api;
use kadence_engine::ports::{Api, ApiError, Readyz};
use kadence_kubernetes::KubeApi;
use kadence_sim::facade::Facade;
use kadence_sim::faults::{Target, What};
use kadence_sim::{Topology, World};
use tempfile::TempDir;

struct AtHand {
    world: World,
    facade: Facade,
    api: Arc<KubeApi>,
    folder: TempDir,
}

async fn fresh() -> AtHand {
    let topology = Topology { servers: 3, agents: 2, datastore: DatastoreKind::EmbeddedEtcd };
    let world = World::cluster(topology, Version::new(1, 36, 3, 1)).seed(3).build();
    let facade = Facade::serve(&world).await.expect("a façade");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, facade.kubeconfig()).expect("written");
    let api = Arc::new(KubeApi::connect(&file, None).expect("a kubeconfig"));
    // Its servers listen a moment later.
    let listens = async {
        while !matches!(api.uid().await, Ok(uid) if uid != ClusterUid::new("")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), listens).await.expect("it listens");
    api.learn_servers(facade.servers());
    AtHand { world, facade, api, folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapter_does_over_it_what_every_api_does() {
    api::suite(async || {
        let at = fresh().await;
        let somebody = at.world.clone();
        api::AtHand {
            api: at.api.clone(),
            node: NodeName::new("a1"),
            servers: at.facade.servers().to_vec(),
            cordon_as_somebody_else: Box::new(move |node| {
                let world = somebody.clone();
                async move { world.strike(What::ForeignCordon { at: Target::Node(node) }) }.boxed()
            }),
            keep: Box::new(at),
        }
    })
    .await;
}

/// What both tell, but for what can only differ: addresses, the CA, ages, what only a real API has; and in one order.
fn comparable(mut facts: ApiFacts) -> ApiFacts {
    facts.ca_hash = Fact::unknown("another one");
    facts.endpoints = Fact::unknown("other addresses");
    facts.surroundings.storage_size = Fact::unknown("not the simulated file");
    if let Fact::Known(nodes) = &mut facts.nodes {
        for node in nodes {
            node.internal_ip = None;
            node.object.lease_age = None;
        }
    }
    if let Fact::Known(services) = &mut facts.workload.services {
        services.remove("default/kubernetes");
    }
    if let Fact::Known(packaged) = &mut facts.surroundings.packaged {
        packaged.iter_mut().for_each(|part| part.detail.clear());
    }
    if let Fact::Known(webhooks) = &mut facts.surroundings.webhooks {
        for hook in webhooks {
            hook.ready_on = hook.ready_on.clone().map(|mut nodes| {
                nodes.sort();
                nodes
            });
        }
    }
    if let Fact::Known(controllers) = &mut facts.workload.controllers {
        controllers.sort();
    }
    if let Fact::Known(pods) = &mut facts.workload.pods {
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    }
    if let Fact::Known(budgets) = &mut facts.workload.budgets {
        budgets.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        budgets.iter_mut().for_each(|b| b.pods.sort());
    }
    facts
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapter_reads_what_the_simulated_port_tells() {
    let at = fresh().await;
    let seen = comparable(at.api.facts().await.expect("facts"));
    let told = comparable(at.world.api().facts().await.expect("facts"));
    assert_eq!(seen.uid, told.uid);
    assert_eq!(seen.nodes, told.nodes);
    assert_eq!(seen.workload, told.workload);
    assert_eq!(seen.surroundings, told.surroundings);
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_obey_the_worlds_budgets() {
    let at = fresh().await;
    at.world.strike(What::BudgetStuck { name: "web".to_owned() });
    let pods = at.api.facts().await.expect("facts").workload.pods;
    let pods = pods.known().expect("pods");
    let pod = |app: &str| pods.iter().find(|p| p.labels.get("app").is_some_and(|a| a == app)).expect("a pod");
    api::evictions(&*at.api, pod("cart"), pod("web")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_refuses() {
    let at = fresh().await;
    let [first, second, _] = at.facade.servers() else { unreachable!("three servers") };
    assert_eq!(at.api.ready(second).await, Ok(Readyz::Ready));
    at.world.strike(What::PowerLoss { at: Target::Node(NodeName::new("s2")), back: None });
    let refused = async {
        while !matches!(at.api.ready(second).await, Err(ApiError::NoWay(_))) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), refused).await.expect("it refuses");
    let nodes = at.api.nodes().await.expect("the others go on");
    assert_eq!(nodes.len(), 5, "{first} answers");
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
async fn kubectl_works_against_it() {
    let at = fresh().await;
    let file = at.folder.path().join("kubeconfig");
    let ask = async |args: &[&str]| {
        let mut command = tokio::process::Command::new("kubectl");
        let output = command.arg("--kubeconfig").arg(&file).args(args).kill_on_drop(true).output().await?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok::<_, std::io::Error>((output.status.success(), text))
    };
    let nodes = match ask(&["get", "nodes"]).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return eprintln!("SKIPPED: there is no kubectl on this machine");
        }
        other => other.expect("kubectl runs"),
    };
    assert!(nodes.0 && nodes.1.contains("control-plane,etcd") && nodes.1.contains("v1.36.3+k3s1"), "{}", nodes.1);
    let cordoned = ask(&["cordon", "a1"]).await.expect("kubectl runs");
    assert!(cordoned.0, "{}", cordoned.1);
    let nodes = at.world.api().nodes().await.expect("nodes");
    let cordon = nodes.iter().find(|n| n.name.as_str() == "a1").map(|n| n.object.cordon.clone());
    assert_eq!(cordon, Some(Cordon::Foreign), "it is done to the world");
    let shown = ask(&["get", "node", "a1"]).await.expect("kubectl runs");
    assert!(shown.1.contains("Ready,SchedulingDisabled"), "{}", shown.1);
}
