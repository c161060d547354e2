//! What controllers, the scheduler and kubelets do about objects that clients made: pods for Deployments, StatefulSets
//! and DaemonSets, nodes for pods, the state of budgets; and, where Nodes are a kubelet's, those that fell silent.
//!
//! A pod is Running as soon as it has a Ready node: there are no containers. A changed template replaces all pods at
//! once. Jobs and Services do nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kadence_core::ident::Digest;
use serde_json::{Value, json};

use super::kinds;
use super::patch::selects;
use super::store::{Store, seconds};

/// How long a node's Lease speaks for it (`node-monitor-grace-period`).
const NODE_GRACE: SignedDuration = SignedDuration::from_secs(40);
/// How long a container takes to end after it was told to.
const ENDING: SignedDuration = SignedDuration::from_secs(1);

/// One round over all objects but those that somebody else moves.
pub(crate) fn tick(store: &mut Store, now: Timestamp, others: &BTreeSet<String>) {
    for plural in ["deployments", "statefulsets", "daemonsets"] {
        for (key, object) in all(store, plural, others) {
            workload(store, plural, &key, &object, now);
        }
    }
    pods(store, now, others);
    budgets(store, now, others);
}

fn all(store: &Store, plural: &str, others: &BTreeSet<String>) -> Vec<(String, Arc<Value>)> {
    let Some(kind) = kinds::named(plural) else { return Vec::new() };
    let found = store.with_prefix(&kind.prefix(None)).filter(|(key, _)| !others.contains(*key));
    found.map(|(key, object)| (key.clone(), object.clone())).collect()
}

fn ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn terminating(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// When each node's Lease was seen to move, by the clock of who watches and not by the time in it: whoever begins to
/// watch gives every node its whole time anew, after a restore too.
#[derive(Default)]
pub(crate) struct Pulse(BTreeMap<String, (Value, Timestamp)>);

impl Pulse {
    /// Nodes whose Lease did not move for too long are unknown from now on.
    pub(crate) fn silent_nodes(&mut self, store: &mut Store, now: Timestamp) {
        for (key, node) in all(store, "nodes", &BTreeSet::new()) {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let lease = store.get(&kinds::key("leases", Some("kube-node-lease"), name));
            let renewed = lease.map(|l| l["spec"]["renewTime"].clone()).unwrap_or_default();
            let (seen, since) = self.0.entry(name.to_owned()).or_insert_with(|| (renewed.clone(), now));
            if *seen != renewed {
                (*seen, *since) = (renewed, now);
            }
            let conditions = node["status"]["conditions"].as_array();
            let known = conditions.is_some_and(|all| all.iter().any(|c| c["status"] != "Unknown"));
            if now.duration_since(*since) <= NODE_GRACE || !known {
                continue;
            }
            let mut changed = (*node).clone();
            for condition in changed["status"]["conditions"].as_array_mut().into_iter().flatten() {
                condition["status"] = json!("Unknown");
                condition["reason"] = json!("NodeStatusUnknown");
                condition["message"] = json!("Kubelet stopped posting node status.");
                condition["lastTransitionTime"] = json!(seconds(now));
            }
            store.put(&key, changed, now);
        }
    }
}

/// A workload's pods, and its status. A Deployment has them by a ReplicaSet for each template.
fn workload(store: &mut Store, plural: &str, key: &str, object: &Value, now: Timestamp) {
    let meta = &object["metadata"];
    let (name, namespace) = (meta["name"].as_str().unwrap_or_default(), meta["namespace"].as_str().unwrap_or_default());
    let template = &object["spec"]["template"];
    let hash = Digest::of(template.to_string().as_bytes()).short(10);
    let owned_by = |owner: &Value, object: &Value| {
        object["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|o| o["uid"] == owner["metadata"]["uid"])
    };
    let (owner, owner_kind) = match plural {
        "deployments" => {
            for (old, set) in all(store, "replicasets", &BTreeSet::new()) {
                if owned_by(object, &set) && set["metadata"]["labels"]["pod-template-hash"] != *hash {
                    for (pod, it) in all(store, "pods", &BTreeSet::new()) {
                        if owned_by(&set, &it) {
                            super::terminate(store, &pod, &it, now);
                        }
                    }
                    store.delete(&old);
                }
            }
            let set = json!({
                "metadata": {
                    "name": format!("{name}-{hash}"), "namespace": namespace, "labels": { "pod-template-hash": hash },
                    "ownerReferences": [reference("Deployment", object)],
                },
                "spec": { "replicas": object["spec"]["replicas"], "selector": object["spec"]["selector"], "template": template },
            });
            let key = kinds::key("replicasets", Some(namespace), &format!("{name}-{hash}"));
            (store.put(&key, set, now), "ReplicaSet")
        }
        "statefulsets" => (Arc::new(object.clone()), "StatefulSet"),
        _ => (Arc::new(object.clone()), "DaemonSet"),
    };
    let mine: Vec<(String, Arc<Value>)> =
        all(store, "pods", &BTreeSet::new()).into_iter().filter(|(_, p)| owned_by(&owner, p)).collect();
    let names = |wanted: &str| mine.iter().any(|(_, p)| p["metadata"]["name"] == wanted);
    let mut wanted: Vec<(String, Option<String>)> = Vec::new();
    let desired = match plural {
        "daemonsets" => {
            for (_, node) in all(store, "nodes", &BTreeSet::new()) {
                let node = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                wanted.push((format!("{name}-{node}"), Some(node)));
            }
            wanted.len()
        }
        _ => {
            let desired = usize::try_from(object["spec"]["replicas"].as_u64().unwrap_or(1)).unwrap_or(0);
            let alive = mine.iter().filter(|(_, p)| !terminating(p)).count();
            if plural == "statefulsets" {
                wanted.extend((0..desired).map(|n| (format!("{name}-{n}"), None)));
            } else {
                let revision = store.revision;
                wanted.extend(
                    (alive..desired)
                        .map(|n| (format!("{name}-{hash}-{:05x}", (revision + n as u64) % 0x10_0000), None)),
                );
            }
            for (key, pod) in mine.iter().filter(|(_, p)| !terminating(p)).skip(desired) {
                super::terminate(store, key, pod, now);
            }
            desired
        }
    };
    for (pod, node) in wanted {
        if names(&pod) {
            continue;
        }
        let mut new = template.clone();
        new["metadata"]["name"] = json!(pod);
        new["metadata"]["namespace"] = json!(namespace);
        new["metadata"]["ownerReferences"] = json!([reference(owner_kind, &owner)]);
        if let Some(node) = node {
            new["spec"]["nodeName"] = json!(node);
        }
        new["status"] = json!({ "phase": "Pending" });
        store.put(&kinds::key("pods", Some(namespace), &pod), new, now);
    }
    let available = mine.iter().filter(|(_, p)| ready(p) && !terminating(p)).count();
    let generation = object["metadata"]["generation"].clone();
    let status = match plural {
        "daemonsets" => json!({
            "observedGeneration": generation, "desiredNumberScheduled": desired, "currentNumberScheduled": mine.len(),
            "numberAvailable": available, "numberReady": available, "numberMisscheduled": 0,
        }),
        _ => json!({
            "observedGeneration": generation, "replicas": mine.len(), "readyReplicas": available,
            "availableReplicas": available, "updatedReplicas": mine.len(),
        }),
    };
    let mut changed = object.clone();
    changed["status"] = status;
    store.put(key, changed, now);
}

fn reference(kind: &str, owner: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": true,
    })
}

fn pods(store: &mut Store, now: Timestamp, others: &BTreeSet<String>) {
    for (key, pod) in all(store, "pods", others) {
        if terminating(&pod) {
            let grace = SignedDuration::from_secs(pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0));
            let ends = pod["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
            let told = ends.and_then(|ends| ends.checked_sub(grace).ok());
            if told.is_none_or(|told| now.duration_since(told) >= grace.min(ENDING)) {
                store.delete(&key);
            }
            continue;
        }
        let mut changed = (*pod).clone();
        if changed["spec"]["nodeName"].is_null() {
            let Some(node) = place(store, &pod) else { continue };
            changed["spec"]["nodeName"] = json!(node);
        } else if !ready(&pod) {
            let node = store.get(&kinds::key("nodes", None, changed["spec"]["nodeName"].as_str().unwrap_or_default()));
            if !node.is_some_and(ready) {
                continue;
            }
            changed["status"] = json!({
                "phase": "Running", "startTime": seconds(now),
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": seconds(now) }],
            });
        }
        store.put(&key, changed, now);
    }
}

/// The Ready node that takes pods, fits the pod's node selector, and has the fewest.
fn place(store: &Store, pod: &Value) -> Option<String> {
    let none = BTreeSet::new();
    let running = all(store, "pods", &none);
    let selector = json!({ "matchLabels": pod["spec"]["nodeSelector"].as_object().cloned().unwrap_or_default() });
    let fits = |node: &Value| {
        ready(node) && node["spec"]["unschedulable"] != true && selects(&selector, &node["metadata"]["labels"])
    };
    let nodes = all(store, "nodes", &none);
    let chosen = nodes.iter().filter(|(_, node)| fits(node)).min_by_key(|(_, node)| {
        running.iter().filter(|(_, p)| p["spec"]["nodeName"] == node["metadata"]["name"]).count()
    })?;
    chosen.1["metadata"]["name"].as_str().map(str::to_owned)
}

fn budgets(store: &mut Store, now: Timestamp, others: &BTreeSet<String>) {
    for (key, budget) in all(store, "poddisruptionbudgets", others) {
        let namespace = &budget["metadata"]["namespace"];
        let covered: Vec<_> = all(store, "pods", &BTreeSet::new())
            .into_iter()
            .filter(|(_, p)| {
                p["metadata"]["namespace"] == *namespace
                    && selects(&budget["spec"]["selector"], &p["metadata"]["labels"])
            })
            .collect();
        let expected = i64::try_from(covered.len()).unwrap_or(0);
        let healthy = covered.iter().filter(|(_, p)| ready(p) && !terminating(p)).count();
        let healthy = i64::try_from(healthy).unwrap_or(0);
        let number = |field: &str| share(&budget["spec"][field], expected);
        let desired = match (number("minAvailable"), number("maxUnavailable")) {
            (Some(least), _) => least,
            (None, Some(most)) => (expected - most).max(0),
            (None, None) => expected,
        };
        let mut changed = (*budget).clone();
        changed["status"] = json!({
            "observedGeneration": budget["metadata"]["generation"], "expectedPods": expected, "currentHealthy": healthy,
            "desiredHealthy": desired, "disruptionsAllowed": (healthy - desired).max(0),
        });
        store.put(&key, changed, now);
    }
}

/// A number, or a percentage of all, rounded up.
fn share(value: &Value, of: i64) -> Option<i64> {
    if let Some(text) = value.as_str() {
        let percent: i64 = text.trim_end_matches('%').parse().ok()?;
        return Some((of * percent + 99) / 100);
    }
    value.as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(store: &mut Store, name: &str, now: Timestamp) {
        let node = json!({ "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        store.put(&kinds::key("nodes", None, name), node, now);
        let lease = json!({ "metadata": { "name": name }, "spec": { "renewTime": seconds(now) } });
        store.put(&kinds::key("leases", Some("kube-node-lease"), name), lease, now);
    }

    #[test]
    fn a_deployment_gets_its_pods_and_its_budget_counts_them() {
        let (mut store, now, none) = (Store::at(0), Timestamp::UNIX_EPOCH, BTreeSet::new());
        node(&mut store, "a1", now);
        node(&mut store, "a2", now);
        let deployment = json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "replicas": 2, "template": { "metadata": { "labels": { "app": "web" } }, "spec": {} } },
        });
        let key = kinds::key("deployments", Some("shop"), "web");
        store.put(&key, deployment, now);
        let budget = json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "minAvailable": "50%", "selector": { "matchLabels": { "app": "web" } } },
        });
        store.put(&kinds::key("poddisruptionbudgets", Some("shop"), "web"), budget, now);
        for _ in 0..4 {
            tick(&mut store, now, &none);
        }
        let settled = store.revision;
        tick(&mut store, now, &none);
        assert_eq!(store.revision, settled, "nothing is written when nothing changes");
        assert_eq!(store.get(&key).expect("it")["status"]["availableReplicas"], 2);
        let pods = all(&store, "pods", &none);
        let on: BTreeSet<_> = pods.iter().map(|(_, p)| p["spec"]["nodeName"].to_string()).collect();
        assert_eq!(on.len(), 2, "spread over both nodes");
        let budget = store.get(&kinds::key("poddisruptionbudgets", Some("shop"), "web")).expect("it");
        assert_eq!(budget["status"]["disruptionsAllowed"], 1);
    }

    #[test]
    fn a_node_that_fell_silent_is_unknown_once_somebody_watched_for_long_enough() {
        let (mut store, mut pulse) = (Store::at(0), Pulse::default());
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let status =
            |store: &Store| store.get("/registry/nodes/a1").expect("it")["status"]["conditions"][0]["status"].clone();
        node(&mut store, "a1", at(0));
        pulse.silent_nodes(&mut store, at(1000));
        assert_eq!(status(&store), "True", "an old Lease says nothing to who has just begun to watch");
        let lease = json!({ "metadata": { "name": "a1" }, "spec": { "renewTime": seconds(at(1030)) } });
        store.put(&kinds::key("leases", Some("kube-node-lease"), "a1"), lease, at(1030));
        pulse.silent_nodes(&mut store, at(1030));
        pulse.silent_nodes(&mut store, at(1070));
        assert_eq!(status(&store), "True", "it moved");
        pulse.silent_nodes(&mut store, at(1071));
        assert_eq!(status(&store), "Unknown");
        Pulse::default().silent_nodes(&mut store, at(1072));
        assert_eq!(status(&store), "Unknown", "only the kubelet makes it known again");
    }
}
