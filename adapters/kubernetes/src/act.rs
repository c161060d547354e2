//! What changes the cluster: each of it one write that fails if the object changed in between.

use std::collections::BTreeSet;
use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod as KubePod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kadence_core::apply::action::CordonWas;
use kadence_core::config::ConditionProbe;
use kadence_core::ident::{NodeName, RolloutId};
use kadence_core::inventory::{Cordon, LeaseHolder, Mark, Pod};
use kadence_engine::ports::{ApiError, Eviction};
use kube::api::{DynamicObject, GroupVersionKind, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{NamespaceResourceScope, Status};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::facts::node::{MARK, cordon_of, mark_of};
use crate::servers::Servers;

/// How often a write is decided anew after the object changed in between. A conflict changed nothing.
const CONFLICTS: u32 = 4;

/// Kadence's Lease.
pub(crate) const LEASE: &str = "kadence";
pub(crate) const LEASE_ROLLOUT: &str = "kadence.dev/rollout";
pub(crate) const LEASE_PLAN: &str = "kadence.dev/plan";

/// See the port. The mark of another rollout than this one's family counts as foreign: only who set a mark, or adopted
/// the rollout that did, may act on it.
pub(crate) async fn cordon(servers: &Servers, node: &NodeName, mark: &Mark) -> Result<CordonWas, ApiError> {
    let text = serde_json::to_string(mark).map_err(|e| ApiError::Answered(format!("the mark of {node}: {e}")))?;
    let mut written = false;
    decide_and_patch(servers, node, |object| match cordon_of(object) {
        Cordon::Foreign => Decision::Leave(CordonWas::Foreign),
        Cordon::Ours { mark: theirs } if family(&theirs) != family(mark) => Decision::Leave(CordonWas::Foreign),
        // Our own write, whose answer was lost: before it the node was open.
        Cordon::Ours { .. } if written => Decision::Leave(CordonWas::Open),
        Cordon::Ours { .. } => Decision::Leave(CordonWas::OurMark),
        Cordon::None => {
            written = true;
            let patch = json!({ "metadata": { "annotations": { MARK: text } }, "spec": { "unschedulable": true } });
            Decision::Write(patch, CordonWas::Open)
        }
    })
    .await
}

/// See the port. False only while a mark of another rollout is on the node.
pub(crate) async fn uncordon(servers: &Servers, node: &NodeName, rollout: &RolloutId) -> Result<bool, ApiError> {
    decide_and_patch(servers, node, |object| match (mark_of(object), cordon_of(object)) {
        (Some(mark), _) if family(&mark) == rollout.family() => {
            let patch = json!({ "metadata": { "annotations": { MARK: null } }, "spec": { "unschedulable": null } });
            Decision::Write(patch, true)
        }
        (_, Cordon::Ours { .. }) => Decision::Leave(false),
        (_, Cordon::None | Cordon::Foreign) => Decision::Leave(true),
    })
    .await
}

fn family(mark: &Mark) -> String {
    RolloutId::new(mark.rollout.as_str()).family().to_owned()
}

enum Decision<T> {
    /// Nothing is to be written.
    Leave(T),
    /// A merge patch.
    Write(Value, T),
}

/// Reads the Node, decides, and writes only if the Node is still the one that was read; else decides anew. A lost
/// answer is settled by looking.
async fn decide_and_patch<T>(
    servers: &Servers,
    node: &NodeName,
    mut decide: impl FnMut(&Node) -> Decision<T>,
) -> Result<T, ApiError> {
    let what = format!("node {node}");
    let mut last = None;
    for _ in 0..CONFLICTS {
        let object =
            servers.read(&what, |client| async move { Api::<Node>::all(client).get(node.as_str()).await }).await;
        let object = match (object, last) {
            (Ok(object), _) => object,
            // The first trouble says more than that looking for its outcome failed too.
            (Err(_), Some(first)) => return Err(first),
            (Err(error), None) => return Err(error),
        };
        let (mut patch, outcome) = match decide(&object) {
            Decision::Leave(outcome) => return Ok(outcome),
            Decision::Write(patch, outcome) => (patch, outcome),
        };
        patch["metadata"]["resourceVersion"] = json!(object.resource_version());
        patch["metadata"]["uid"] = json!(object.uid());
        let patch = &Patch::Merge(patch);
        let write = |client| async move {
            Api::<Node>::all(client).patch_metadata(node.as_str(), &PatchParams::default(), patch).await
        };
        match servers.write(&what, write).await {
            Ok(_) => return Ok(outcome),
            Err(error @ (ApiError::Conflict(_) | ApiError::NoWay(_))) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(ApiError::Conflict(what)))
}

/// See the port. `kube`'s own `evict` writes the delete options under a name that the API ignores, and with them the
/// precondition on the uid.
pub(crate) async fn evict(servers: &Servers, pod: &Pod, dry_run: bool) -> Result<Eviction, ApiError> {
    let what = format!("eviction of {}/{}", pod.namespace, pod.name);
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "namespace": pod.namespace, "name": pod.name },
        "deleteOptions": { "preconditions": { "uid": pod.uid } },
    });
    let query = if dry_run { "?dryRun=All" } else { "" };
    let uri = format!("/api/v1/namespaces/{}/pods/{}/eviction{query}", pod.namespace, pod.name);
    let (uri, body) = (&uri, &serde_json::to_vec(&body).map_err(|e| ApiError::Answered(format!("{what}: {e}")))?);
    let post = |client: kube::Client| async move {
        let request = http::Request::post(uri).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(body.clone()).map_err(kube::Error::HttpError)?;
        // The answer that is no success is wanted as it is.
        match client.request::<Status>(request).await {
            Ok(status) => Ok(Ok(status)),
            Err(kube::Error::Api(status)) if status.code != 503 => Ok(Err(status)),
            Err(error) => Err(error),
        }
    };
    let Err(refusal) = servers.write(&what, post).await? else {
        return Ok(Eviction::Accepted);
    };
    if refusal.code == 404 {
        return Ok(Eviction::Gone);
    }
    if let Some(budget) = budget_words(&refusal) {
        return Ok(Eviction::Blocked(budget));
    }
    if refusal.code == 500 && refusal.message.contains("more than one PodDisruptionBudget") {
        return Ok(Eviction::TooManyBudgets(refusal.message));
    }
    if refusal.code == 409 {
        // Either another pod has the name now, or ours changed in between.
        let get = |client| async move {
            Api::<KubePod>::namespaced(client, &pod.namespace).get_metadata_opt(&pod.name).await
        };
        let there = servers.read(&what, get).await?;
        let ours = there.and_then(|found| found.uid()).is_some_and(|uid| uid == pod.uid);
        return if ours { Err(ApiError::Conflict(what)) } else { Ok(Eviction::Gone) };
    }
    Err(crate::servers::answer(&what, &kube::Error::Api(refusal)))
}

/// What a disruption budget says. A 429 without one is an overloaded server.
fn budget_words(status: &Status) -> Option<String> {
    let causes = &status.details.as_ref()?.causes;
    let said: Vec<_> = causes.iter().filter(|c| c.reason == "DisruptionBudget").map(|c| c.message.as_str()).collect();
    (status.code == 429 && !said.is_empty()).then(|| said.join("; "))
}

/// See the port. Nobody holding is an empty holder; the Lease stays.
pub(crate) async fn announce(servers: &Servers, holder: Option<&LeaseHolder>) -> Result<(), ApiError> {
    let what = "lease kube-system/kadence";
    let patch = &json!({
        "metadata": { "annotations": {
            LEASE_ROLLOUT: holder.and_then(|h| h.rollout.as_deref()),
            LEASE_PLAN: holder.and_then(|h| h.plan.as_deref()),
        } },
        "spec": {
            "holderIdentity": holder.map(|h| &h.holder),
            "leaseDurationSeconds": holder.map(|_| LeaseHolder::SPEAKS_FOR.as_secs()),
            "renewTime": holder.map(|h| MicroTime(h.renewed)),
        },
    });
    let leases = |client| Api::<Lease>::namespaced(client, "kube-system");
    let update = |client| async move {
        leases(client).patch_metadata(LEASE, &PatchParams::default(), &Patch::Merge(patch)).await
    };
    match (servers.write(what, update).await, holder) {
        (Err(ApiError::NotFound(_)), None) => Ok(()),
        (Err(ApiError::NotFound(_)), Some(_)) => {
            let empty = &Lease {
                metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
                ..Lease::default()
            };
            let create = |client| async move { leases(client).create(&PostParams::default(), empty).await };
            match servers.write(what, create).await {
                // Somebody else made it at the same time.
                Ok(_) | Err(ApiError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
            servers.write(what, update).await.map(drop)
        }
        (result, _) => result.map(drop),
    }
}

/// See the port.
pub(crate) async fn condition(servers: &Servers, probe: &ConditionProbe) -> Result<bool, ApiError> {
    let (group, version) = probe.api_version.split_once('/').unwrap_or(("", &probe.api_version));
    let kind = &GroupVersionKind::gvk(group, version, &probe.kind);
    let namespace = probe.namespace.as_deref();
    let name = match namespace {
        Some(namespace) => format!("{} {namespace}/{}", probe.kind, probe.name),
        None => format!("{} {}", probe.kind, probe.name),
    };
    let get = |client: kube::Client| async move {
        let (resource, capabilities) = match pinned_kind(&client, kind).await {
            Err(kube::Error::Discovery(_)) => return Ok(None),
            other => other?,
        };
        let objects: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client, &resource),
            Scope::Namespaced => Api::namespaced_with(client, namespace.unwrap_or("default"), &resource),
        };
        objects.get(&probe.name).await.map(Some)
    };
    let object = servers.read(&name, get).await?;
    let object = object.ok_or_else(|| ApiError::NotFound(format!("kind {} in {}", probe.kind, probe.api_version)))?;
    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
    Ok(conditions.into_iter().flatten().any(|c| c["type"] == probe.condition.as_str() && c["status"] == "True"))
}

/// See the port.
///
/// A controller that holds a leader Lease is found by the Lease's holder, which begins with the name of its pod, and
/// the pod's owners. Kubelets and API servers hold Leases too and are no pods: they are restarted with their nodes.
pub(crate) async fn restart_controllers(servers: &Servers) -> Result<Vec<String>, ApiError> {
    let mut wanted = BTreeSet::new();
    let (deployments, daemon_sets, stateful_sets, leaders) = tokio::try_join!(
        names::<Deployment>(servers),
        names::<DaemonSet>(servers),
        names::<StatefulSet>(servers),
        leaders(servers),
    )?;
    wanted.extend(deployments.into_iter().map(|name| (Kind::Deployment, KUBE_SYSTEM.to_owned(), name)));
    wanted.extend(daemon_sets.into_iter().map(|name| (Kind::DaemonSet, KUBE_SYSTEM.to_owned(), name)));
    wanted.extend(stateful_sets.into_iter().map(|name| (Kind::StatefulSet, KUBE_SYSTEM.to_owned(), name)));
    wanted.extend(leaders);

    let now = Timestamp::now().to_string();
    let patch =
        &Patch::Merge(json!({ "spec": { "template": { "metadata": { "annotations": { RESTARTED_AT: now } } } } }));
    let params = &PatchParams::default();
    let mut restarted = Vec::new();
    let mut failed = Vec::new();
    for (kind, namespace, name) in &wanted {
        let what = format!("{kind:?} {namespace}/{name}");
        let restart = |client: kube::Client| async move {
            match kind {
                Kind::Deployment => {
                    Api::<Deployment>::namespaced(client, namespace).patch_metadata(name, params, patch).await.map(drop)
                }
                Kind::DaemonSet => {
                    Api::<DaemonSet>::namespaced(client, namespace).patch_metadata(name, params, patch).await.map(drop)
                }
                Kind::StatefulSet => Api::<StatefulSet>::namespaced(client, namespace)
                    .patch_metadata(name, params, patch)
                    .await
                    .map(drop),
            }
        };
        match servers.write(&what, restart).await {
            Ok(()) => restarted.push(what),
            // Deleted since it was listed.
            Err(ApiError::NotFound(_)) => {}
            Err(error) => failed.push(error.to_string()),
        }
    }
    if failed.is_empty() {
        return Ok(restarted);
    }
    Err(ApiError::Answered(format!("restarted {} controllers, but not these: {}", restarted.len(), failed.join("; "))))
}

/// What `kubectl rollout restart` writes.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
const KUBE_SYSTEM: &str = "kube-system";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deployment,
    DaemonSet,
    StatefulSet,
}

/// Names of the objects of a kind in `kube-system`.
async fn names<K>(servers: &Servers) -> Result<Vec<String>, ApiError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let list =
        |client| async move { Api::<K>::namespaced(client, KUBE_SYSTEM).list_metadata(&ListParams::default()).await };
    let list = servers.read(&format!("{} in {KUBE_SYSTEM}", K::plural(&())), list).await?;
    Ok(list.items.iter().map(ResourceExt::name_any).collect())
}

/// The controllers whose pods hold a leader Lease.
async fn leaders(servers: &Servers) -> Result<Vec<(Kind, String, String)>, ApiError> {
    let all = &ListParams::default();
    let leases = |client| async move { Api::<Lease>::all(client).list(all).await };
    let pods = |client| async move { Api::<KubePod>::all(client).list_metadata(all).await };
    let replica_sets = |client| async move { Api::<ReplicaSet>::all(client).list_metadata(all).await };
    let (leases, pods, replica_sets) = tokio::try_join!(
        servers.read("leases", leases),
        servers.read("pods", pods),
        servers.read("replicasets", replica_sets),
    )?;
    let owner = |owned: &ObjectMeta, kind: &str| {
        let owners = owned.owner_references.iter().flatten();
        owners.into_iter().find(|o| o.controller == Some(true) && o.kind == kind).map(|o| o.name.clone())
    };
    let found = leases.items.iter().filter_map(|lease| {
        let namespace = lease.namespace()?;
        let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
        let pod = pods.items.iter().find(|pod| {
            let name = pod.name_any();
            pod.namespace().as_deref() == Some(&namespace)
                && holder
                    .strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '.']))
        })?;
        let meta = &pod.metadata;
        if let Some(name) = owner(meta, "DaemonSet") {
            return Some((Kind::DaemonSet, namespace, name));
        }
        if let Some(name) = owner(meta, "StatefulSet") {
            return Some((Kind::StatefulSet, namespace, name));
        }
        let set = owner(meta, "ReplicaSet")?;
        let set =
            replica_sets.items.iter().find(|s| s.namespace().as_deref() == Some(&namespace) && s.name_any() == set)?;
        Some((Kind::Deployment, namespace, owner(&set.metadata, "Deployment")?))
    });
    Ok(found.collect())
}
