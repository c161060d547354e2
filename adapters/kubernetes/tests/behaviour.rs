//! What the adapter does when servers come and go, objects change under its hands, and budgets say no: against small
//! API servers on the loopback that do all this on request.

mod fake;

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use http::Method;
use jiff::Timestamp;
use kadence_core::apply::action::CordonWas;
use kadence_core::config::ConditionProbe;
use kadence_core::fact::Fact;
use kadence_core::ident::{NodeName, RolloutId};
use kadence_core::inventory::{Cordon, LeaseHolder, Mark, Pod, PodPhase};
use kadence_engine::ports::{Api, ApiError, Eviction, Readyz};
use kadence_kubernetes::KubeApi;
use serde_json::{Value, json};

use fake::{Pki, World, soon, status};

const S1: &str = "/api/v1/nodes/s1";
const MARK: &str = "kadence.dev/mark";

fn node(name: &str, version: &str) -> Value {
    json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"), "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": {
            "conditions": [{ "type": "Ready", "status": "True" }],
            "nodeInfo": {
                "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.3.2-k3s2",
                "kernelVersion": "6.1", "kubeProxyVersion": version, "kubeletVersion": version, "machineID": "m",
                "operatingSystem": "linux", "osImage": "Debian", "systemUUID": "u",
            },
        },
    })
}

fn mark(rollout: &str) -> Mark {
    Mark { rollout: rollout.to_owned(), plan: "p1".to_owned(), step: "s1".to_owned() }
}

fn s1() -> NodeName {
    NodeName::new("s1")
}

fn unschedulable(world: &World) -> bool {
    world.get(S1).pointer("/spec/unschedulable") == Some(&json!(true))
}

fn web() -> Pod {
    Pod {
        namespace: "default".into(),
        name: "web-1".into(),
        uid: "uid-web-1".into(),
        node: Some(s1()),
        labels: [].into(),
        phase: PodPhase::Running,
        owner: Some("ReplicaSet".into()),
        mirror: false,
        ready: true,
        restarts: 0,
        waiting: vec![],
        terminating: false,
        empty_dirs: vec![],
        node_bound_claims: vec![],
        host_network: false,
        pinned_to: None,
        tolerates_unschedulable: false,
        grace_seconds: 30,
    }
}

// ------------------------------------------------------------------------------------------------ one of several

#[tokio::test]
async fn a_call_goes_on_with_the_next_server_and_stays_there() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let (mut first, second) = (pki.serve(&world).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);

    api.nodes().await.expect("the first answers");
    first.stop().await;
    assert_eq!(api.nodes().await.expect("the second answers").len(), 1);
    first.start().await;
    api.nodes().await.expect("an answer");

    let asked: Vec<_> = world.requests(&Method::GET, "/api/v1/nodes").iter().map(|r| r.server).collect();
    assert_eq!(asked, [0, 1, 1], "who answered last is asked first");
}

#[tokio::test]
async fn a_silent_server_costs_a_read_its_time_and_no_more() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let (first, second) = (pki.serve(&world).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);
    api.nodes().await.expect("the first answers");

    first.fall_silent();
    soon(7, "the second server", api.nodes()).await.expect("the second answers");
    let begun = Instant::now();
    api.nodes().await.expect("the second answers at once");
    assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_starting_server_that_knows_nobody_yet_is_passed_over() {
    let (pki, world, starting) = (Pki::new(), World::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let (first, second) = (pki.serve(&starting).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);
    for (code, reason) in [(503, "ServiceUnavailable"), (401, "Unauthorized"), (403, "Forbidden")] {
        let (code, body) = status(code, reason, "starting");
        starting.answer(Method::GET, "/api/v1/nodes", code, &body);
        assert_eq!(api.nodes().await.expect("the second answers").len(), 1, "{reason}");
    }
}

#[tokio::test]
async fn an_error_tells_whether_anybody_was_reached() {
    let (pki, world) = (Pki::new(), World::new());
    let (mut first, mut second) = (pki.serve(&world).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);
    let (code, body) = status(401, "Unauthorized", "Unauthorized");
    world.answer(Method::GET, "/", code, &body);
    assert!(matches!(api.nodes().await, Err(ApiError::Denied(_))));
    assert!(matches!(api.facts().await, Err(ApiError::Denied(_))));

    first.stop().await;
    second.stop().await;
    let error = api.nodes().await.expect_err("nobody is there");
    assert!(matches!(error, ApiError::NoWay(_)));
    let said = error.to_string();
    assert!(said.contains(&first.address.to_string()) && said.contains(&second.address.to_string()), "{said}");
    assert!(said.contains("refused"), "{said}");
    assert!(matches!(api.facts().await, Err(ApiError::NoWay(_))));
}

#[tokio::test]
async fn a_write_without_an_answer_is_not_made_again_elsewhere() {
    let (pki, world) = (Pki::new(), World::new());
    let (first, second) = (pki.serve(&world).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);
    let eviction = "/api/v1/namespaces/default/pods/web-1/eviction";
    world.answer(Method::POST, eviction, 201, &json!({ "kind": "Status", "status": "Success" }));
    world.lose_next_answer();
    assert!(matches!(api.evict(&web(), false).await, Err(ApiError::NoWay(why)) if why.contains("may have happened")));
    assert_eq!(world.requests(&Method::POST, eviction).len(), 1);
}

// ---------------------------------------------------------------------------------------------------- the cordon

#[tokio::test]
async fn cordon_and_mark_are_one_write_with_its_precondition() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);

    assert_eq!(api.cordon(&s1(), &mark("r1")).await, Ok(CordonWas::Open));
    let writes = world.requests(&Method::PATCH, S1);
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].body["spec"]["unschedulable"], json!(true));
    assert!(writes[0].body["metadata"]["annotations"][MARK].is_string());
    assert!(writes[0].body["metadata"]["resourceVersion"].is_string());
    let nodes = api.nodes().await.expect("nodes");
    assert_eq!(nodes[0].object.cordon, Cordon::Ours { mark: mark("r1") });

    assert_eq!(api.cordon(&s1(), &mark("r1")).await, Ok(CordonWas::OurMark));
    assert_eq!(api.cordon(&s1(), &mark("r1.2")).await, Ok(CordonWas::OurMark), "who adopted the rollout");
    assert_eq!(api.cordon(&s1(), &mark("r2")).await, Ok(CordonWas::Foreign), "another rollout");
    assert_eq!(world.requests(&Method::PATCH, S1).len(), 1, "nothing more was written");
}

#[tokio::test]
async fn a_cordon_of_somebody_else_stays_as_it_is() {
    let (pki, world) = (Pki::new(), World::new());
    let mut foreign = node("s1", "v1.36.3+k3s1");
    foreign["spec"]["unschedulable"] = json!(true);
    world.put(S1, foreign);
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    assert_eq!(api.cordon(&s1(), &mark("r1")).await, Ok(CordonWas::Foreign));
    assert_eq!(api.uncordon(&s1(), &RolloutId::new("r1")).await, Ok(true), "it is free of ours");
    assert!(unschedulable(&world));
    assert!(world.requests(&Method::PATCH, S1).is_empty());
}

#[tokio::test]
async fn a_foreign_cordon_that_comes_in_between_wins() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    world.meddle(json!({ "spec": { "unschedulable": true } }));
    assert_eq!(api.cordon(&s1(), &mark("r1")).await, Ok(CordonWas::Foreign));
    assert!(world.get(S1).pointer("/metadata/annotations").is_none_or(|a| a.get(MARK).is_none()));
}

#[tokio::test]
async fn a_change_in_between_that_is_none_of_ours_is_read_again() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    world.meddle(json!({ "metadata": { "labels": { "heartbeat": "2" } } }));
    assert_eq!(api.cordon(&s1(), &mark("r1")).await, Ok(CordonWas::Open));
    assert_eq!(world.get(S1)["metadata"]["labels"]["heartbeat"], json!("2"), "the change is kept");
    assert!(unschedulable(&world));
}

#[tokio::test]
async fn a_cordon_whose_answer_was_lost_is_found_by_looking() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    world.lose_next_answer();
    assert_eq!(api.cordon(&s1(), &mark("r1")).await, Ok(CordonWas::Open));
    world.lose_next_answer();
    assert_eq!(api.uncordon(&s1(), &RolloutId::new("r1")).await, Ok(true));
    assert!(!unschedulable(&world));
    assert_eq!(world.requests(&Method::PATCH, S1).len(), 2, "each was written once");
}

#[tokio::test]
async fn only_the_rollouts_own_cordon_is_lifted() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    api.cordon(&s1(), &mark("r1")).await.expect("cordoned");
    assert_eq!(api.uncordon(&s1(), &RolloutId::new("r2")).await, Ok(false));
    assert!(unschedulable(&world));
    assert_eq!(api.uncordon(&s1(), &RolloutId::new("r1.2")).await, Ok(true), "adopted");
    let after = world.get(S1);
    assert!(after.pointer("/spec/unschedulable").is_none() && after["metadata"]["annotations"].get(MARK).is_none());
    assert_eq!(api.uncordon(&s1(), &RolloutId::new("r1")).await, Ok(true), "done twice");
    let nobody = NodeName::new("s9");
    assert!(matches!(api.cordon(&nobody, &mark("r1")).await, Err(ApiError::NotFound(_))));
}

// --------------------------------------------------------------------------------------------------------- evict

#[tokio::test]
async fn an_eviction_names_the_pod_by_uid_and_its_answers_are_told_apart() {
    let (pki, world) = (Pki::new(), World::new());
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let eviction = "/api/v1/namespaces/default/pods/web-1/eviction";

    world.answer(Method::POST, eviction, 201, &json!({ "kind": "Status", "status": "Success", "code": 201 }));
    assert_eq!(api.evict(&web(), false).await, Ok(Eviction::Accepted));
    assert_eq!(api.evict(&web(), true).await, Ok(Eviction::Accepted));
    let asked = world.requests(&Method::POST, eviction);
    assert_eq!(asked[0].body["deleteOptions"]["preconditions"]["uid"], json!("uid-web-1"));
    assert_eq!((asked[0].query.as_str(), asked[1].query.as_str()), ("", "dryRun=All"));

    let (_, mut budget) =
        status(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.");
    let words = "The disruption budget web needs 2 healthy pods and has 2 currently";
    budget["details"] = json!({ "causes": [{ "reason": "DisruptionBudget", "message": words }] });
    let (_, overload) = status(429, "TooManyRequests", "too many requests, please try again later");
    let (_, several) = status(
        500,
        "InternalError",
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
    );
    let (_, gone) = status(404, "NotFound", "pods \"web-1\" not found");
    let before = world.requests(&Method::POST, eviction).len();
    world.answer(Method::POST, eviction, 429, &budget);
    assert_eq!(api.evict(&web(), false).await, Ok(Eviction::Blocked(words.to_owned())));
    world.answer(Method::POST, eviction, 429, &overload);
    assert!(matches!(api.evict(&web(), false).await, Err(ApiError::Answered(why)) if why.contains("429")));
    world.answer(Method::POST, eviction, 500, &several);
    assert!(matches!(api.evict(&web(), false).await, Ok(Eviction::TooManyBudgets(_))));
    world.answer(Method::POST, eviction, 404, &gone);
    assert_eq!(api.evict(&web(), false).await, Ok(Eviction::Gone));
    assert_eq!(world.requests(&Method::POST, eviction).len(), before + 4, "nothing was tried twice");
}

#[tokio::test]
async fn a_conflict_means_gone_only_if_another_pod_has_the_name() {
    let (pki, world) = (Pki::new(), World::new());
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let pod = "/api/v1/namespaces/default/pods/web-1";
    let (code, conflict) = status(409, "Conflict", "Precondition failed: UID in precondition: uid-web-1");
    world.answer(Method::POST, &format!("{pod}/eviction"), code, &conflict);
    world.put(pod, json!({ "metadata": { "uid": "uid-web-1" } }));
    assert!(matches!(api.evict(&web(), false).await, Err(ApiError::Conflict(_))));
    world.put(pod, json!({ "metadata": { "uid": "another" } }));
    assert_eq!(api.evict(&web(), false).await, Ok(Eviction::Gone));
}

// -------------------------------------------------------------------------------------------------------- probes

#[tokio::test]
async fn readiness_is_asked_of_exactly_this_server() {
    let (pki, world, other) = (Pki::new(), World::new(), World::new());
    let (mut first, second) = (pki.serve(&world).await, pki.serve(&other).await);
    let api = pki.connect(&[&first, &second]);
    let address = first.address.to_string();
    other.answer(Method::GET, "/readyz", 200, &json!("ok"));
    world.answer(
        Method::GET,
        "/readyz",
        500,
        &json!("[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed"),
    );
    assert_eq!(api.ready(&address).await, Ok(Readyz::NotReady(vec!["etcd failed: reason withheld".into()])));
    world.answer(Method::GET, "/readyz", 200, &json!("ok"));
    assert_eq!(api.ready(&address).await, Ok(Readyz::Ready));
    first.stop().await;
    assert!(matches!(api.ready(&address).await, Err(ApiError::NoWay(_))));
    assert_eq!(api.ready(&second.address.to_string()).await, Ok(Readyz::Ready));
}

#[tokio::test]
async fn a_dead_connection_is_no_failed_probe_while_a_new_one_works() {
    let (pki, world) = (Pki::new(), World::new());
    let mut server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let address = server.address.to_string();

    for _ in 0..20 {
        api.probe_read(&address).await.expect("read");
        api.probe_write(&address).await.expect("write");
    }
    let kept = server.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!(kept <= 2, "connections are kept: {kept} were made");

    // It stopped and came back, and the kernel told us so.
    server.stop().await;
    server.start().await;
    api.probe_read(&address).await.expect("read after a restart");
    // It lost its memory without a word, so that only use shows it.
    server.forget_connections();
    api.probe_read(&address).await.expect("read after a power cut");
    server.forget_connections();
    api.probe_write(&address).await.expect("write after a power cut");
    // As many as were needed at once are kept, and all of them are dead.
    let calls = (0..6).map(|_| api.probe_read(&address));
    futures_util::future::join_all(calls).await.into_iter().collect::<Result<(), _>>().expect("reads");
    server.forget_connections();
    api.probe_read(&address).await.expect("read with several dead connections");
    futures_util::future::join_all((0..6).map(|_| api.nodes())).await;
    server.forget_connections();
    assert!(api.nodes().await.is_ok(), "calls, too");
}

#[tokio::test]
async fn a_silent_server_fails_a_probe_in_a_second_and_the_next_one_begins_anew() {
    let (pki, world) = (Pki::new(), World::new());
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let address = server.address.to_string();
    api.probe_write(&address).await.expect("write");

    server.fall_silent();
    let begun = Instant::now();
    assert!(matches!(api.probe_read(&address).await, Err(ApiError::NoWay(_))));
    assert!(begun.elapsed() < Duration::from_millis(1500), "took {:?}", begun.elapsed());
    server.speak();
    server.forget_connections();
    api.probe_read(&address).await.expect("read");
}

#[tokio::test]
async fn each_write_probe_changes_the_datastore() {
    let (pki, world) = (Pki::new(), World::new());
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let address = server.address.to_string();
    let mut versions = Vec::new();
    for _ in 0..3 {
        api.probe_write(&address).await.expect("write");
        versions.push(api.revision().await.expect("a revision"));
    }
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
}

// --------------------------------------------------------------------------------------------------------- watch

async fn next_version(
    stream: &mut futures_util::stream::BoxStream<'static, kadence_core::inventory::ApiNode>,
    wanted: &str,
) {
    let wanted = Fact::Known(wanted.parse().expect("a version"));
    soon(8, &format!("{wanted:?}"), async {
        while let Some(node) = stream.next().await {
            if node.version == wanted {
                return;
            }
        }
    })
    .await;
}

fn version(version: &str) -> Value {
    json!({ "status": { "nodeInfo": { "kubeletVersion": version } } })
}

#[tokio::test]
async fn a_watch_begins_with_the_present_and_survives_every_server_going_away() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    world.put("/api/v1/nodes/s2", node("s2", "v1.36.9+k3s1"));
    let (mut first, mut second) = (pki.serve(&world).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);
    let mut states = api.watch_node(&s1());
    next_version(&mut states, "v1.36.3+k3s1").await;
    world.merge(S1, &version("v1.36.4+k3s1"));
    next_version(&mut states, "v1.36.4+k3s1").await;

    first.stop().await;
    world.merge(S1, &version("v1.36.4+k3s2"));
    next_version(&mut states, "v1.36.4+k3s2").await;
    first.start().await;
    second.stop().await;
    world.merge(S1, &version("v1.36.4+k3s3"));
    next_version(&mut states, "v1.36.4+k3s3").await;
    first.stop().await;
    world.merge(S1, &version("v1.36.4+k3s4"));
    second.start().await;
    next_version(&mut states, "v1.36.4+k3s4").await;
}

#[tokio::test]
async fn a_change_comes_by_the_watch_and_not_by_asking() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let mut states = api.watch_node(&s1());
    next_version(&mut states, "v1.36.3+k3s1").await;
    let mut slowest = Duration::ZERO;
    for build in 2..12 {
        let begun = Instant::now();
        world.merge(S1, &version(&format!("v1.36.3+k3s{build}")));
        next_version(&mut states, &format!("v1.36.3+k3s{build}")).await;
        slowest = slowest.max(begun.elapsed());
    }
    // Reads come every 2 s; ten changes in less than that were brought by the watch.
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

#[tokio::test]
async fn a_connection_that_died_silently_is_noticed() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let (first, second) = (pki.serve(&world).await, pki.serve(&world).await);
    let api = pki.connect(&[&first, &second]);
    let mut states = api.watch_node(&s1());
    next_version(&mut states, "v1.36.3+k3s1").await;
    first.fall_silent();
    world.merge(S1, &version("v1.36.4+k3s1"));
    next_version(&mut states, "v1.36.4+k3s1").await;
    second.fall_silent();
    world.merge(S1, &version("v1.36.4+k3s2"));
    second.speak();
    next_version(&mut states, "v1.36.4+k3s2").await;
}

#[tokio::test]
async fn a_watch_that_brings_nothing_any_more_is_replaced() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let mut states = api.watch_node(&s1());
    next_version(&mut states, "v1.36.3+k3s1").await;
    world.merge(S1, &version("v1.36.3+k3s2"));
    next_version(&mut states, "v1.36.3+k3s2").await;
    server.deafen_watches();
    world.merge(S1, &version("v1.36.4+k3s1"));
    next_version(&mut states, "v1.36.4+k3s1").await;
    soon(8, "a second watch", async {
        while world.requests(&Method::GET, "/api/v1/nodes").len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_restored_datastore_is_believed_although_its_versions_are_lower() {
    let (pki, world) = (Pki::new(), World::new());
    for build in 1..9 {
        world.put(S1, node("s1", &format!("v1.36.4+k3s{build}")));
    }
    let mut server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let mut states = api.watch_node(&s1());
    next_version(&mut states, "v1.36.4+k3s8").await;
    server.stop().await;
    world.restore_to(2, S1, node("s1", "v1.36.3+k3s1"));
    server.start().await;
    next_version(&mut states, "v1.36.3+k3s1").await;
}

#[tokio::test]
async fn a_watch_that_nobody_listens_to_ends() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let mut states = api.watch_node(&s1());
    next_version(&mut states, "v1.36.3+k3s1").await;
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    drop(states);
    soon(5, "fewer tasks", async {
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() >= before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

// --------------------------------------------------------------------------------------------------------- facts

#[tokio::test]
async fn facts_come_in_pages_and_what_fails_is_unknown_with_its_reason() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    for number in 0..600 {
        let labels = json!({ "app": if number < 3 { "web" } else { "other" } });
        world.put(
            &format!("/api/v1/namespaces/default/pods/pod-{number}"),
            json!({ "metadata": { "uid": format!("p{number}"), "labels": labels }, "spec": { "containers": [], "nodeName": "s1" }, "status": { "phase": "Running" } }),
        );
    }
    world.put(
        "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web",
        json!({ "spec": { "selector": { "matchLabels": { "app": "web" } } }, "status": { "disruptionsAllowed": 0, "expectedPods": 3, "currentHealthy": 3, "desiredHealthy": 3 } }),
    );
    world.put(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        json!({ "addressType": "IPv4", "metadata": { "labels": { "kubernetes.io/service-name": "kubernetes" } }, "ports": [{ "port": 6443 }], "endpoints": [{ "addresses": ["10.0.0.12"] }, { "addresses": ["10.0.0.11"] }, { "addresses": ["10.0.0.13"], "conditions": { "ready": false } }] }),
    );
    let (code, denied) =
        status(403, "Forbidden", "secrets is forbidden: User \"ops\" cannot list resource \"secrets\"");
    world.answer(Method::GET, "/api/v1/secrets", code, &denied);
    world.answer(
        Method::GET,
        "/metrics",
        200,
        &json!("# HELP x y\napiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} 2.097152e+06\n"),
    );
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let facts = api.facts().await.expect("facts");

    assert_eq!(facts.uid.known().map(|u| u.as_str()), Some("c1u5"));
    assert!(facts.ca_hash.known().is_some());
    assert_eq!(facts.endpoints, Fact::Known(vec!["10.0.0.11".to_owned(), "10.0.0.12".to_owned()]));
    assert_eq!(facts.workload.pods.known().map(Vec::len), Some(600));
    assert_eq!(world.requests(&Method::GET, "/api/v1/pods").len(), 3, "in pages");
    let budgets = facts.workload.budgets.known().expect("budgets");
    assert_eq!(budgets[0].pods, ["default/pod-0", "default/pod-1", "default/pod-2"]);
    let around = facts.surroundings;
    assert!(around.helm_releases.why().is_some_and(|why| why.contains("cannot list resource")));
    assert_eq!(around.packaged, Fact::Known(vec![]), "nothing of K3s's own is installed, so no release matters");
    assert_eq!(around.newest_snapshot, Fact::Known(None), "a CRD that is not there has no objects");
    assert_eq!(around.managers, Fact::Known(vec![]));
    assert_eq!(around.lease, Fact::Known(None));
    assert_eq!(around.storage_size, Fact::Known(2_097_152));
}

#[tokio::test]
async fn one_list_that_hangs_does_not_take_the_others_with_it() {
    let (pki, world) = (Pki::new(), World::new());
    world.put(S1, node("s1", "v1.36.3+k3s1"));
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    for code in [500, 504] {
        let (code, broken) = status(code, "Timeout", "etcdserver: request timed out");
        world.answer(Method::GET, "/api/v1/pods", code, &broken);
        let facts = api.facts().await.expect("the rest");
        assert!(facts.workload.pods.why().is_some_and(|why| why.contains("timed out")), "{:?}", facts.workload.pods);
        assert!(facts.workload.budgets.why().is_some(), "which pods a budget covers is not known either");
        assert!(facts.workload.controllers.known().is_some());
        assert_eq!(facts.nodes.known().map(Vec::len), Some(1));
    }
}

// ------------------------------------------------------------------------------------------- the lease and others

#[tokio::test]
async fn the_lease_says_who_is_at_work_and_that_nobody_is() {
    let (pki, world) = (Pki::new(), World::new());
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let lease = async |api: &KubeApi| api.facts().await.expect("facts").surroundings.lease;

    api.announce(None).await.expect("nothing to take back");
    let holder = LeaseHolder {
        holder: "ops@laptop".into(),
        renewed: Timestamp::from_second(1_800_000_000).expect("time"),
        rollout: Some("r1".into()),
        plan: Some("7c41e0".into()),
    };
    api.announce(Some(&holder)).await.expect("made");
    assert_eq!(lease(&api).await, Fact::Known(Some(holder.clone())));
    let later = LeaseHolder { renewed: Timestamp::from_second(1_800_000_030).expect("time"), ..holder };
    api.announce(Some(&later)).await.expect("renewed");
    assert_eq!(lease(&api).await, Fact::Known(Some(later)));
    api.announce(None).await.expect("taken back");
    assert_eq!(lease(&api).await, Fact::Known(None));
}

#[tokio::test]
async fn a_condition_is_true_only_if_the_object_says_so() {
    let (pki, world) = (Pki::new(), World::new());
    world.answer(
        Method::GET,
        "/apis/example.org/v1",
        200,
        &json!({ "kind": "APIResourceList", "groupVersion": "example.org/v1", "resources": [{ "name": "databases", "singularName": "database", "namespaced": true, "kind": "Database", "verbs": ["get", "list"] }] }),
    );
    let database = |conditions: Value| json!({ "apiVersion": "example.org/v1", "kind": "Database", "metadata": { "name": "db" }, "status": { "conditions": conditions } });
    let path = "/apis/example.org/v1/namespaces/data/databases/db";
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let probe = |kind: &str, name: &str| ConditionProbe {
        api_version: "example.org/v1".into(),
        kind: kind.into(),
        namespace: Some("data".into()),
        name: name.into(),
        condition: "Healthy".into(),
    };
    for (conditions, expected) in [
        (json!([{ "type": "Healthy", "status": "True" }]), true),
        (json!([{ "type": "Healthy", "status": "False" }]), false),
        (json!([{ "type": "Healthy", "status": "Unknown" }]), false),
        (json!([]), false),
    ] {
        world.answer(Method::GET, path, 200, &database(conditions));
        assert_eq!(api.condition(&probe("Database", "db")).await, Ok(expected));
    }
    let (code, gone) = status(404, "NotFound", "not found");
    world.answer(Method::GET, path, code, &gone);
    assert!(
        matches!(api.condition(&probe("Database", "db")).await, Err(ApiError::NotFound(what)) if what.contains("data/db"))
    );
    assert!(
        matches!(api.condition(&probe("Table", "db")).await, Err(ApiError::NotFound(what)) if what.contains("Table"))
    );
}

#[tokio::test]
async fn controllers_that_lead_are_restarted_with_those_of_kube_system() {
    let (pki, world) = (Pki::new(), World::new());
    let template = json!({ "spec": { "selector": {}, "template": {} } });
    let deployment = |ns: &str, name: &str| format!("/apis/apps/v1/namespaces/{ns}/deployments/{name}");
    for path in [deployment("kube-system", "coredns"), deployment("ops", "operator"), deployment("ops", "bystander")] {
        world.put(&path, template.clone());
    }
    world.put("/apis/apps/v1/namespaces/kube-system/daemonsets/svclb", template.clone());
    world.put(
        "/apis/apps/v1/namespaces/ops/replicasets/operator-5d",
        json!({ "metadata": { "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "operator", "uid": "d", "controller": true }] } }),
    );
    for (pod, owner) in [("operator-5d-x1", "operator-5d"), ("bystander-7c-y1", "bystander-7c")] {
        world.put(
            &format!("/api/v1/namespaces/ops/pods/{pod}"),
            json!({ "metadata": { "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "r", "controller": true }] } }),
        );
    }
    for (lease, holder) in [("ops/leases/operator", "operator-5d-x1_2f3b"), ("kube-node-lease/leases/s1", "s1")] {
        world.put(
            &format!("/apis/coordination.k8s.io/v1/namespaces/{lease}"),
            json!({ "spec": { "holderIdentity": holder } }),
        );
    }
    let server = pki.serve(&world).await;
    let api = pki.connect(&[&server]);
    let restarted = api.restart_controllers().await.expect("restarted");
    assert_eq!(restarted, ["Deployment kube-system/coredns", "Deployment ops/operator", "DaemonSet kube-system/svclb"]);
    let annotation = "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt";
    assert!(world.get(&deployment("ops", "operator")).pointer(annotation).is_some());
    assert!(world.get(&deployment("ops", "bystander")).pointer(annotation).is_none());
}
