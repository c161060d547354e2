//! What every way to a cluster's API does.

use std::any::Any;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use kadence_core::apply::action::CordonWas;
use kadence_core::config::ConditionProbe;
use kadence_core::fact::Fact;
use kadence_core::ident::{NodeName, RolloutId};
use kadence_core::inventory::{Cordon, LeaseHolder, Mark, Pod};

use crate::ports::{Api, ApiError, Eviction, Readyz};

/// A healthy cluster, with all that the suite needs around it.
pub struct AtHand {
    pub api: Arc<dyn Api>,
    /// A Ready node that nobody has cordoned.
    pub node: NodeName,
    /// Addresses of the servers.
    pub servers: Vec<String>,
    /// Somebody else cordons a node.
    pub cordon_as_somebody_else: Box<dyn Fn(NodeName) -> BoxFuture<'static, ()> + Send + Sync>,
    /// What all this lives in.
    pub keep: Box<dyn Any + Send>,
}

/// Runs the suite; `fresh` brings a cluster up each time.
///
/// # Panics
/// If the API does not do what it should.
pub async fn suite(fresh: impl AsyncFn() -> AtHand) {
    facts_are_there(&fresh().await).await;
    a_cordon_and_its_mark_come_and_go_together(&fresh().await).await;
    a_mark_is_shared_by_a_rollouts_family_only(&fresh().await).await;
    a_foreign_cordon_stays(&fresh().await).await;
    what_does_not_exist_is_said_so(&fresh().await).await;
    a_watcher_sees_the_present_state_and_changes(&fresh().await).await;
    each_server_answers_for_itself(&fresh().await).await;
    the_lease_tells_who_works(&fresh().await).await;
    conditions_are_read(&fresh().await).await;
}

/// Runs what needs pods that may be evicted: `free` is covered by no budget, `covered` by one that allows nothing.
///
/// # Panics
/// If the API does not do what it should.
pub async fn evictions(api: &dyn Api, free: &Pod, covered: &Pod) {
    let found = |pods: &[Pod], pod: &Pod| pods.iter().find(|p| p.uid == pod.uid).cloned();
    let node = free.node.clone().expect("the pod runs on a node");
    assert_eq!(api.evict(free, true).await, Ok(Eviction::Accepted));
    let pods = api.pods_on(&node).await.expect("pods");
    assert!(found(&pods, free).is_some_and(|p| !p.terminating), "a dry run changes nothing");

    let mut namesake = free.clone();
    namesake.uid = "another".to_owned();
    assert_eq!(api.evict(&namesake, false).await, Ok(Eviction::Gone), "exactly this pod, not one of its name");

    assert_eq!(api.evict(free, false).await, Ok(Eviction::Accepted));
    let pods = api.pods_on(&node).await.expect("pods");
    assert!(found(&pods, free).is_none_or(|p| p.terminating));

    let blocked = api.evict(covered, false).await;
    assert!(matches!(blocked, Ok(Eviction::Blocked(_))), "{blocked:?}");
    let node = covered.node.clone().expect("the pod runs on a node");
    let pods = api.pods_on(&node).await.expect("pods");
    assert!(found(&pods, covered).is_some_and(|p| !p.terminating));
}

fn mark(rollout: &str) -> Mark {
    Mark { rollout: rollout.to_owned(), plan: "plan".to_owned(), step: "step".to_owned() }
}

async fn cordon_of(at: &AtHand) -> Cordon {
    let nodes = at.api.nodes().await.expect("nodes");
    nodes.into_iter().find(|n| n.name == at.node).expect("the node").object.cordon
}

async fn facts_are_there(at: &AtHand) {
    let facts = at.api.facts().await.expect("facts");
    assert_eq!(facts.uid.known().cloned(), at.api.uid().await.ok());
    let nodes = at.api.nodes().await.expect("nodes");
    let names = |nodes: &[kadence_core::inventory::ApiNode]| nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    assert_eq!(facts.nodes.known().map(|n| names(n)), Some(names(&nodes)));
    assert!(facts.workload.pods.known().is_some_and(|p| !p.is_empty()));
    let mut endpoints = facts.endpoints.known().expect("endpoints").clone();
    let mut servers = at.servers.clone();
    endpoints.sort();
    servers.sort();
    assert_eq!(endpoints, servers);
    let first = at.api.revision().await.expect("a revision");
    at.api.announce(None).await.expect("announced");
    assert!(at.api.revision().await.expect("a revision") >= first);
}

async fn a_cordon_and_its_mark_come_and_go_together(at: &AtHand) {
    assert_eq!(cordon_of(at).await, Cordon::None);
    assert_eq!(at.api.cordon(&at.node, &mark("r1")).await, Ok(CordonWas::Open));
    assert_eq!(cordon_of(at).await, Cordon::Ours { mark: mark("r1") });
    assert_eq!(at.api.cordon(&at.node, &mark("r1")).await, Ok(CordonWas::OurMark), "done before");
    assert_eq!(at.api.uncordon(&at.node, &RolloutId::new("r1")).await, Ok(true));
    assert_eq!(cordon_of(at).await, Cordon::None);
    assert_eq!(at.api.uncordon(&at.node, &RolloutId::new("r1")).await, Ok(true), "it is free of it already");
}

async fn a_mark_is_shared_by_a_rollouts_family_only(at: &AtHand) {
    assert_eq!(at.api.cordon(&at.node, &mark("r1")).await, Ok(CordonWas::Open));
    assert_eq!(at.api.uncordon(&at.node, &RolloutId::new("r2")).await, Ok(false), "another rollout's");
    assert_eq!(cordon_of(at).await, Cordon::Ours { mark: mark("r1") });
    assert_eq!(at.api.uncordon(&at.node, &RolloutId::new("r1").adopted()).await, Ok(true), "who adopted it");
    assert_eq!(cordon_of(at).await, Cordon::None);
}

async fn a_foreign_cordon_stays(at: &AtHand) {
    (at.cordon_as_somebody_else)(at.node.clone()).await;
    assert_eq!(at.api.cordon(&at.node, &mark("r1")).await, Ok(CordonWas::Foreign));
    assert_eq!(cordon_of(at).await, Cordon::Foreign, "it gets no mark");
    assert_eq!(at.api.uncordon(&at.node, &RolloutId::new("r1")).await, Ok(true), "of ours it is free");
    assert_eq!(cordon_of(at).await, Cordon::Foreign);
}

async fn what_does_not_exist_is_said_so(at: &AtHand) {
    let nobody = NodeName::new("no-such-node");
    assert!(matches!(at.api.cordon(&nobody, &mark("r1")).await, Err(ApiError::NotFound(_))));
    assert!(matches!(at.api.uncordon(&nobody, &RolloutId::new("r1")).await, Err(ApiError::NotFound(_))));
    assert_eq!(at.api.pods_on(&nobody).await, Ok(Vec::new()));
}

async fn a_watcher_sees_the_present_state_and_changes(at: &AtHand) {
    let mut states = at.api.watch_node(&at.node);
    let first = states.next().await.expect("the present state");
    assert_eq!(first.name, at.node);
    assert_eq!(first.object.cordon, Cordon::None);
    at.api.cordon(&at.node, &mark("r1")).await.expect("cordoned");
    // States may repeat; the change comes.
    while states.next().await.expect("it goes on").object.cordon == Cordon::None {}
    at.api.uncordon(&at.node, &RolloutId::new("r1")).await.expect("uncordoned");
}

async fn each_server_answers_for_itself(at: &AtHand) {
    at.api.learn_servers(&at.servers);
    for server in &at.servers {
        assert_eq!(at.api.ready(server).await, Ok(Readyz::Ready), "{server}");
        assert_eq!(at.api.probe_read(server).await, Ok(()), "{server}");
        assert_eq!(at.api.probe_write(server).await, Ok(()), "{server}");
    }
}

async fn the_lease_tells_who_works(at: &AtHand) {
    let lease = async || match at.api.facts().await.expect("facts").surroundings.lease {
        Fact::Known(lease) => lease,
        Fact::Unknown(why) => unreachable_lease(&why),
    };
    // Whole seconds: what the API stores has no nanoseconds.
    let renewed = Timestamp::from_second(1_790_000_000).expect("a time");
    let holder = LeaseHolder {
        holder: "somebody@here".to_owned(),
        renewed,
        rollout: Some("r1".to_owned()),
        plan: Some("plan".to_owned()),
    };
    at.api.announce(Some(&holder)).await.expect("announced");
    let seen = lease().await.expect("there is a holder");
    assert_eq!((seen.holder, seen.rollout, seen.plan), (holder.holder, holder.rollout, holder.plan));
    at.api.announce(None).await.expect("announced");
    assert_eq!(lease().await, None);
}

#[expect(clippy::panic, reason = "a suite fails by panicking")]
fn unreachable_lease(why: &str) -> Option<LeaseHolder> {
    panic!("the Lease could not be read: {why}")
}

async fn conditions_are_read(at: &AtHand) {
    let ready = ConditionProbe {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        namespace: None,
        name: at.node.to_string(),
        condition: "Ready".to_owned(),
    };
    assert_eq!(at.api.condition(&ready).await, Ok(true));
    let missing = ConditionProbe { name: "no-such-node".to_owned(), ..ready };
    assert!(matches!(at.api.condition(&missing).await, Err(ApiError::NotFound(_))));
}
