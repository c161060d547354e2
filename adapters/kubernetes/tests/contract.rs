//! What every implementation of the port `Api` has to keep, run against a real cluster: `KADENCE_TEST_KUBECONFIG` names
//! the kubeconfig of one that is made for tests. One of its nodes is cordoned for a moment, and pods are made and evicted
//! in a namespace of its own, which is removed in the end.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod as KubePod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kadence_core::apply::action::CordonWas;
use kadence_core::config::ConditionProbe;
use kadence_core::fact::Fact;
use kadence_core::ident::{NodeName, RolloutId};
use kadence_core::inventory::{ApiFacts, Cordon, LeaseHolder, Mark, Pod};
use kadence_engine::ports::{Api, ApiError, Eviction, Readyz};
use kadence_kubernetes::KubeApi;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::json;

/// The image that pods of the test run, which the cluster has to have.
const IMAGE: &str = "docker.io/testbed/pause:1";
const NAMESPACE: &str = "kadence-contract";

#[tokio::test(flavor = "multi_thread")]
async fn the_port_keeps_its_contract_on_a_real_cluster() {
    let Some(kubeconfig) = std::env::var_os("KADENCE_TEST_KUBECONFIG") else {
        say(
            "SKIPPED: the contract of the Kubernetes port was NOT tested on a real cluster: KADENCE_TEST_KUBECONFIG is not set",
        );
        return;
    };
    let kubeconfig = Path::new(&kubeconfig);
    let api = KubeApi::connect(kubeconfig, None).expect("a kubeconfig");
    let facts = api.facts().await.expect("facts");
    let servers = facts.endpoints.known().expect("the servers").clone();
    api.learn_servers(&servers);

    let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
    let config = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
    let client = Client::try_from(Config::try_from(config).expect("a configuration")).expect("a client");

    facts_agree(&api, &facts).await;
    servers_answer(&api, &servers).await;
    cordons(&api, &client, &facts).await;
    says_who_is_at_work(&api).await;
    conditions(&api, &facts).await;
    let namespaces = kube::Api::<Namespace>::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } })).expect("a namespace");
    namespaces.create(&PostParams::default(), &namespace).await.expect("a new namespace");
    let result = AssertUnwindSafe(evictions(&api, &client)).catch_unwind().await;
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.expect("deleted");
    if let Err(failure) = result {
        std::panic::resume_unwind(failure);
    }
}

#[expect(clippy::print_stderr, reason = "a skipped suite has to be seen, and figures are for people")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// Nothing is unknown to an administrator, and what two calls tell is the same.
async fn facts_agree(api: &dyn Api, facts: &ApiFacts) {
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        api.facts().await.expect("facts");
        times.push(begun.elapsed());
    }
    say(&format!("facts: {times:?}"));

    let unknown = [
        ("uid", facts.uid.why()),
        ("ca_hash", facts.ca_hash.why()),
        ("nodes", facts.nodes.why()),
        ("endpoints", facts.endpoints.why()),
        ("controllers", facts.workload.controllers.why()),
        ("pods", facts.workload.pods.why()),
        ("budgets", facts.workload.budgets.why()),
        ("services", facts.workload.services.why()),
        ("webhooks", facts.surroundings.webhooks.why()),
        ("broken_api_services", facts.surroundings.broken_api_services.why()),
        ("packaged", facts.surroundings.packaged.why()),
        ("helm_releases", facts.surroundings.helm_releases.why()),
        ("storage", facts.surroundings.storage.why()),
        ("managers", facts.surroundings.managers.why()),
        ("newest_snapshot", facts.surroundings.newest_snapshot.why()),
        ("lease", facts.surroundings.lease.why()),
        ("storage_size", facts.surroundings.storage_size.why()),
    ];
    for (what, why) in unknown {
        assert_eq!(why, None, "{what}");
    }
    assert_eq!(Fact::Known(api.uid().await.expect("uid")), facts.uid);
    let nodes = api.nodes().await.expect("nodes");
    let names = |nodes: &[kadence_core::inventory::ApiNode]| nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    let known = facts.nodes.known().expect("nodes");
    assert_eq!(names(&nodes), names(known));
    for node in known {
        assert!(node.version.known().is_some(), "{}: {:?}", node.name, node.version);
        assert!(!node.object.machine_id.is_empty() && !node.object.boot_id.is_empty());
        assert!(node.object.args.first().is_some_and(|a| a == "server" || a == "agent"), "{:?}", node.object.args);
        assert!(node.object.config_hash.is_some());
        assert!(node.object.lease_age.is_some_and(|age| age.as_secs().abs() < 60), "{:?}", node.object.lease_age);
        let here = api.pods_on(&node.name).await.expect("pods");
        assert!(here.iter().all(|p| p.node.as_ref() == Some(&node.name)));
    }
    assert!(facts.surroundings.storage_size.known().is_some_and(|bytes| *bytes > 100_000));
    assert!(facts.workload.services.known().is_some_and(|s| s.get("default/kubernetes").is_some_and(|n| *n > 0)));
}

/// Each server is ready, reads and writes by itself; writes raise the revision.
async fn servers_answer(api: &dyn Api, servers: &[String]) {
    let before = api.revision().await.expect("a revision");
    let mut slowest = Duration::ZERO;
    for server in servers {
        assert_eq!(api.ready(server).await, Ok(Readyz::Ready), "{server}");
        for _ in 0..20 {
            let begun = Instant::now();
            api.probe_read(server).await.expect("read");
            api.probe_write(server).await.expect("write");
            slowest = slowest.max(begun.elapsed());
        }
    }
    say(&format!("probes: a read and a write took at most {slowest:?}"));
    let after = api.revision().await.expect("a revision");
    assert!(after >= before + 20 * u64::try_from(servers.len()).expect("few"), "{before} to {after}");
    // Nobody is there.
    assert!(matches!(api.ready("127.0.0.1:1").await, Err(ApiError::NoWay(_))));
    assert!(matches!(api.probe_read("127.0.0.1:1").await, Err(ApiError::NoWay(_))));
}

async fn cordons(api: &dyn Api, client: &Client, facts: &ApiFacts) {
    let nodes = facts.nodes.known().expect("nodes");
    let node = nodes.iter().find(|n| !n.control_plane).or(nodes.last()).expect("a node").name.clone();
    let mark = |rollout: &str| Mark { rollout: rollout.into(), plan: "plan".into(), step: "step".into() };
    let (r1, r2) = (RolloutId::new("contract-1"), RolloutId::new("contract-2"));
    let mut states = api.watch_node(&node);
    let mut wait = async |wanted: fn(&Cordon) -> bool| {
        let seen = async { while !states.next().await.is_some_and(|n| wanted(&n.object.cordon)) {} };
        tokio::time::timeout(Duration::from_secs(5), seen).await.expect("the watch shows it");
    };
    wait(|c| *c == Cordon::None).await;

    assert_eq!(api.cordon(&node, &mark("contract-1")).await, Ok(CordonWas::Open));
    wait(|c| matches!(c, Cordon::Ours { mark } if mark.rollout == "contract-1")).await;
    assert_eq!(api.cordon(&node, &mark("contract-1")).await, Ok(CordonWas::OurMark));
    assert_eq!(api.cordon(&node, &mark("contract-2")).await, Ok(CordonWas::Foreign));
    assert_eq!(api.uncordon(&node, &r2).await, Ok(false));
    assert_eq!(api.uncordon(&node, &r1).await, Ok(true));
    wait(|c| *c == Cordon::None).await;
    assert_eq!(api.uncordon(&node, &r1).await, Ok(true));

    // Somebody else's.
    let objects = kube::Api::<Node>::all(client.clone());
    let set = async |on: bool| {
        let patch = json!({ "spec": { "unschedulable": on } });
        objects.patch(node.as_str(), &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patched");
    };
    set(true).await;
    assert_eq!(api.cordon(&node, &mark("contract-1")).await, Ok(CordonWas::Foreign));
    assert_eq!(api.uncordon(&node, &r1).await, Ok(true));
    wait(|c| *c == Cordon::Foreign).await;
    set(false).await;
    wait(|c| *c == Cordon::None).await;
    assert!(matches!(api.cordon(&NodeName::new("nobody"), &mark("contract-1")).await, Err(ApiError::NotFound(_))));
}

async fn says_who_is_at_work(api: &dyn Api) {
    let holder = LeaseHolder {
        holder: "contract".into(),
        renewed: Timestamp::from_second(Timestamp::now().as_second()).expect("time"),
        rollout: Some("contract-1".into()),
        plan: None,
    };
    api.announce(Some(&holder)).await.expect("announced");
    assert_eq!(api.facts().await.expect("facts").surroundings.lease, Fact::Known(Some(holder)));
    api.announce(None).await.expect("taken back");
    assert_eq!(api.facts().await.expect("facts").surroundings.lease, Fact::Known(None));
}

async fn conditions(api: &dyn Api, facts: &ApiFacts) {
    let node = &facts.nodes.known().expect("nodes")[0].name;
    let probe = |api_version: &str, kind: &str, name: &str, condition: &str| ConditionProbe {
        api_version: api_version.into(),
        kind: kind.into(),
        namespace: None,
        name: name.into(),
        condition: condition.into(),
    };
    assert_eq!(api.condition(&probe("v1", "Node", node.as_str(), "Ready")).await, Ok(true));
    assert_eq!(api.condition(&probe("v1", "Node", node.as_str(), "DiskPressure")).await, Ok(false));
    let service = probe("apiregistration.k8s.io/v1", "APIService", "v1.apps", "Available");
    assert_eq!(api.condition(&service).await, Ok(true));
    for nowhere in [
        probe("v1", "Node", "nobody", "Ready"),
        probe("v1", "Nodule", "nobody", "Ready"),
        probe("example.org/v1", "Node", "nobody", "Ready"),
    ] {
        let answer = api.condition(&nowhere).await;
        assert!(matches!(answer, Err(ApiError::NotFound(_))), "{answer:?}");
    }
}

async fn evictions(api: &dyn Api, client: &Client) {
    let labels = json!({ "app": "contract" });
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": { "name": "contract" },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{ "name": "pause", "image": IMAGE, "imagePullPolicy": "IfNotPresent" }],
                    "volumes": [{ "name": "scratch", "emptyDir": {} }],
                },
            },
        },
    }))
    .expect("a Deployment");
    let budget: PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": { "name": "contract" },
        "spec": { "minAvailable": 1, "selector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["contract"] }] } },
    }))
    .expect("a budget");
    let budgets = kube::Api::<PodDisruptionBudget>::namespaced(client.clone(), NAMESPACE);
    kube::Api::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &deployment).await.expect("made");
    budgets.create(&PostParams::default(), &budget).await.expect("made");

    let pod = until("a ready pod that its budget covers", async || {
        let facts = api.facts().await.expect("facts");
        let covered = facts
            .workload
            .budgets
            .known()
            .expect("budgets")
            .iter()
            .any(|b| b.name == "contract" && b.expected_pods == 1 && b.pods.len() == 1);
        facts
            .workload
            .pods
            .known()
            .expect("pods")
            .iter()
            .find(|p| p.namespace == NAMESPACE && p.ready && covered)
            .cloned()
    })
    .await;
    assert_eq!(pod.owner.as_deref(), Some("ReplicaSet"));
    assert_eq!((pod.empty_dirs.as_slice(), pod.grace_seconds), (["scratch".to_owned()].as_slice(), 1));

    for dry_run in [true, false] {
        let answer = api.evict(&pod, dry_run).await;
        assert!(matches!(&answer, Ok(Eviction::Blocked(why)) if why.contains("contract")), "{answer:?}");
    }
    let mut second = budget.clone();
    second.metadata.name = Some("contract-too".to_owned());
    budgets.create(&PostParams::default(), &second).await.expect("made");
    until("two budgets are too many", async || {
        matches!(api.evict(&pod, true).await, Ok(Eviction::TooManyBudgets(_))).then_some(())
    })
    .await;
    for name in ["contract", "contract-too"] {
        budgets.delete(name, &DeleteParams::default()).await.expect("deleted");
    }

    let another = Pod { uid: "3c1c5d0e-0000-4000-8000-000000000000".into(), ..pod.clone() };
    assert_eq!(api.evict(&another, false).await, Ok(Eviction::Gone), "another pod of the same name stays");
    until("the eviction is allowed", async || (api.evict(&pod, true).await == Ok(Eviction::Accepted)).then_some(()))
        .await;
    let pods = kube::Api::<KubePod>::namespaced(client.clone(), NAMESPACE);
    let there = pods.get(&pod.name).await.expect("a dry run changes nothing");
    assert!(there.metadata.deletion_timestamp.is_none());
    assert_eq!(api.evict(&pod, false).await, Ok(Eviction::Accepted));
    until("it is gone", async || (api.evict(&pod, false).await == Ok(Eviction::Gone)).then_some(())).await;
}

/// Asks until there is an answer.
async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let result = tokio::time::timeout(Duration::from_secs(60), asking).await;
    result.map_err(|_| format!("{what}: not within a minute")).expect("in time")
}
