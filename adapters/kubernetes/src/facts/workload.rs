//! What runs in the cluster for its users, turned into words.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{
    ContainerStatus, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod as KubePod, PodSpec,
    PodTemplateSpec, Toleration,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kadence_core::fact::Fact;
use kadence_core::ident::NodeName;
use kadence_core::inventory::{ApiNode, Budget, Controller, ControllerKind, Pod, PodPhase};
use kube::ResourceExt as _;

use super::selector::{Labels, allows, selects};

pub(crate) fn deployment(object: &Deployment) -> Controller {
    let status = object.status.as_ref();
    let spec = object.spec.as_ref();
    Controller {
        kind: ControllerKind::Deployment,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        desired: count(spec.and_then(|s| s.replicas).unwrap_or(1)),
        available: count(status.and_then(|s| s.available_replicas).unwrap_or(0)),
        images: images(spec.map(|s| &s.template)),
        observed: observed(object.metadata.generation, status.and_then(|s| s.observed_generation)),
    }
}

pub(crate) fn stateful_set(object: &StatefulSet) -> Controller {
    let status = object.status.as_ref();
    let spec = object.spec.as_ref();
    Controller {
        kind: ControllerKind::StatefulSet,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        desired: count(spec.and_then(|s| s.replicas).unwrap_or(1)),
        available: count(status.and_then(|s| s.available_replicas).unwrap_or(0)),
        images: images(spec.map(|s| &s.template)),
        observed: observed(object.metadata.generation, status.and_then(|s| s.observed_generation)),
    }
}

pub(crate) fn daemon_set(object: &DaemonSet) -> Controller {
    let status = object.status.as_ref();
    Controller {
        kind: ControllerKind::DaemonSet,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        desired: count(status.map_or(0, |s| s.desired_number_scheduled)),
        available: count(status.and_then(|s| s.number_available).unwrap_or(0)),
        images: images(object.spec.as_ref().map(|s| &s.template)),
        observed: observed(object.metadata.generation, status.and_then(|s| s.observed_generation)),
    }
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// A status that names no generation yet speaks of none.
fn observed(generation: Option<i64>, observed: Option<i64>) -> bool {
    observed.is_some_and(|seen| seen >= generation.unwrap_or(0))
}

fn images(template: Option<&PodTemplateSpec>) -> Vec<String> {
    let spec = template.and_then(|t| t.spec.as_ref());
    let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    all.filter_map(|c| c.image.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A pod, with what other objects have to say about it still open.
pub(crate) struct PodDraft {
    pod: Pod,
    /// Claims it mounts.
    claims: Vec<String>,
    /// Node selector and required affinity, if it has any.
    placement: Option<(Labels, Option<Vec<NodeSelectorTerm>>)>,
}

impl PodDraft {
    pub(crate) fn of(object: &KubePod) -> Self {
        let empty = PodSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let status = object.status.clone().unwrap_or_default();
        let name = object.name_any();
        let volumes = || spec.volumes.iter().flatten();
        let claims = volumes().filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            // The claim that Kubernetes makes for it.
            (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
            (None, None) => None,
        });
        let containers: Vec<&ContainerStatus> =
            [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten().collect();
        let waiting: BTreeSet<_> = containers
            .iter()
            .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone())
            .filter(|reason| !matches!(reason.as_str(), "ContainerCreating" | "PodInitializing"))
            .collect();
        let selector: Labels = spec.node_selector.clone().unwrap_or_default();
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let terms = affinity
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|required| required.node_selector_terms.clone());
        Self {
            claims: claims.collect(),
            placement: (!selector.is_empty() || terms.is_some()).then_some((selector, terms)),
            pod: Pod {
                namespace: object.namespace().unwrap_or_default(),
                uid: object.uid().unwrap_or_default(),
                node: spec.node_name.as_deref().filter(|n| !n.is_empty()).map(NodeName::new),
                labels: object.labels().clone(),
                phase: match status.phase.as_deref() {
                    Some("Pending") => PodPhase::Pending,
                    Some("Running") => PodPhase::Running,
                    Some("Succeeded") => PodPhase::Succeeded,
                    Some("Failed") => PodPhase::Failed,
                    _ => PodPhase::Unknown,
                },
                owner: object.owner_references().iter().find(|o| o.controller == Some(true)).map(|o| o.kind.clone()),
                mirror: object.annotations().contains_key("kubernetes.io/config.mirror"),
                ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
                restarts: containers.iter().map(|c| count(c.restart_count)).fold(0, u32::saturating_add),
                waiting: waiting.into_iter().collect(),
                terminating: object.metadata.deletion_timestamp.is_some(),
                empty_dirs: volumes().filter(|v| v.empty_dir.is_some()).map(|v| v.name.clone()).collect(),
                node_bound_claims: Vec::new(),
                host_network: spec.host_network.unwrap_or_default(),
                pinned_to: None,
                tolerates_unschedulable: spec.tolerations.iter().flatten().any(tolerates_unschedulable),
                grace_seconds: spec.termination_grace_period_seconds.map_or(30, |s| u32::try_from(s).unwrap_or(0)),
                name,
            },
        }
    }
}

fn tolerates_unschedulable(toleration: &Toleration) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = toleration.value.as_deref().unwrap_or_default();
    matches!(effect, "" | "NoSchedule")
        && match key {
            "" => exists,
            // The taint has no value.
            "node.kubernetes.io/unschedulable" => exists || value.is_empty(),
            _ => false,
        }
}

/// Puts what volumes and nodes say to the pods. Unknown only if a pod depends on what is unknown.
pub(crate) fn finish(
    drafts: Fact<Vec<PodDraft>>,
    nodes: &Fact<Vec<ApiNode>>,
    claims: Fact<Vec<(ClaimName, String)>>,
    node_bound: Fact<Vec<String>>,
) -> Fact<Vec<Pod>> {
    let drafts = match drafts {
        Fact::Known(drafts) => drafts,
        Fact::Unknown(why) => return Fact::Unknown(why),
    };
    let claims = claims.map(|claims| claims.into_iter().collect::<BTreeMap<_, _>>());
    let node_bound = node_bound.map(|volumes| volumes.into_iter().collect::<BTreeSet<_>>());
    let finished = drafts.into_iter().map(|draft| {
        let mut pod = draft.pod;
        if !draft.claims.is_empty() {
            let claims = claims.known().ok_or_else(|| unknown("persistent volume claims", &claims))?;
            let node_bound = node_bound.known().ok_or_else(|| unknown("persistent volumes", &node_bound))?;
            let bound = |claim: &String| {
                claims.get(&(pod.namespace.clone(), claim.clone())).is_some_and(|volume| node_bound.contains(volume))
            };
            pod.node_bound_claims = draft.claims.into_iter().filter(bound).collect();
        }
        if let Some((selector, terms)) = draft.placement {
            let nodes = nodes.known().ok_or_else(|| unknown("nodes", nodes))?;
            let allowed = nodes.iter().filter(|n| allows(&selector, terms.as_deref(), n)).map(|n| n.name.clone());
            pod.pinned_to = Some(allowed.collect());
        }
        Ok(pod)
    });
    let mut pods = match finished.collect::<Result<Vec<_>, String>>() {
        Ok(pods) => pods,
        Err(why) => return Fact::Unknown(why),
    };
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Fact::Known(pods)
}

fn unknown<T>(what: &str, fact: &Fact<T>) -> String {
    format!("{what}: {}", fact.why().unwrap_or_default())
}

/// Namespace and name.
pub(crate) type ClaimName = (String, String);

/// The volume that a claim is bound to.
pub(crate) fn bound_to(claim: &PersistentVolumeClaim) -> Option<(ClaimName, String)> {
    let volume = claim.spec.as_ref()?.volume_name.clone().filter(|v| !v.is_empty())?;
    Some(((claim.namespace()?, claim.name_any()), volume))
}

/// The volume's name, if its data is on one node: a local or hostPath volume, or one whose affinity goes by a key that
/// names a node (`kubernetes.io/hostname`, `topology.topolvm.io/node`). A zone is not a node.
pub(crate) fn node_bound(volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    let names_a_node =
        |key: &str| matches!(key.rsplit('/').next(), Some("hostname" | "node" | "nodename" | "node-name"));
    let affinity = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
    let by_node = affinity.is_some_and(|required| {
        required.node_selector_terms.iter().any(|term| {
            let mut keys = term.match_expressions.iter().flatten().map(|e| e.key.as_str());
            keys.any(names_a_node) || term.match_fields.iter().flatten().any(|f| f.key == "metadata.name")
        })
    });
    (spec.local.is_some() || spec.host_path.is_some() || by_node).then(|| volume.name_any())
}

/// The budgets with the pods they cover; those that are done need no budget any more.
pub(crate) fn budgets(budgets: &[PodDisruptionBudget], pods: &[Pod]) -> Vec<Budget> {
    let mut words: Vec<_> = budgets
        .iter()
        .map(|budget| {
            let namespace = budget.namespace().unwrap_or_default();
            // No selector at all covers nothing, an empty one everything.
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let covered = pods.iter().filter(|pod| {
                pod.namespace == namespace
                    && !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed)
                    && selector.is_some_and(|s| selects(s, &pod.labels))
            });
            Budget {
                pods: covered.map(|p| format!("{}/{}", p.namespace, p.name)).collect(),
                name: budget.name_any(),
                disruptions_allowed: count(budget.status.as_ref().map_or(0, |s| s.disruptions_allowed)),
                expected_pods: count(budget.status.as_ref().map_or(0, |s| s.expected_pods)),
                namespace,
            }
        })
        .collect();
    words.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    words
}

/// What the EndpointSlices say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Slices {
    /// Addresses of the `kubernetes` Service: every API server that serves now.
    pub(crate) api_servers: Vec<String>,
    pub(crate) api_port: Option<u16>,
    /// Ready endpoints by Service, `namespace/name`: each once, however many address families it has. The value is its
    /// node, where it says one.
    ready: BTreeMap<String, BTreeMap<String, Option<NodeName>>>,
}

impl Slices {
    pub(crate) fn of(slices: Vec<EndpointSlice>) -> Self {
        let mut all = Self::default();
        let mut api_servers = BTreeSet::new();
        for slice in slices {
            let Some(service) = slice.labels().get("kubernetes.io/service-name") else { continue };
            let service = format!("{}/{service}", slice.namespace().unwrap_or_default());
            let api = service == "default/kubernetes";
            if api {
                let port = slice.ports.iter().flatten().find_map(|p| p.port);
                all.api_port = all.api_port.or_else(|| port.and_then(|p| u16::try_from(p).ok()));
            }
            let ready = all.ready.entry(service).or_default();
            for endpoint in slice.endpoints {
                // An endpoint that says nothing counts as ready, by the API's own rule.
                if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                    continue;
                }
                if api {
                    api_servers.extend(endpoint.addresses.iter().cloned());
                }
                let target = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone().or_else(|| t.name.clone()));
                let key = target.or_else(|| endpoint.addresses.first().cloned()).unwrap_or_default();
                ready.insert(key, endpoint.node_name.map(NodeName::new));
            }
        }
        all.api_servers = api_servers.into_iter().collect();
        all
    }

    /// Every Service that has an EndpointSlice, with the number of its ready endpoints: none is told as 0.
    pub(crate) fn services(&self) -> BTreeMap<String, u32> {
        self.ready.iter().map(|(name, ready)| (name.clone(), u32::try_from(ready.len()).unwrap_or(u32::MAX))).collect()
    }

    /// Where the Service's ready endpoints are.
    pub(crate) fn ready_on(&self, service: &str) -> Fact<Vec<NodeName>> {
        let ready = self.ready.get(service).into_iter().flatten();
        let nodes: Option<BTreeSet<_>> = ready.map(|(_, node)| node.clone()).collect();
        let unknown = || Fact::unknown(format!("an endpoint of {service} does not say which node it is on"));
        nodes.map_or_else(unknown, |nodes| Fact::Known(nodes.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::facts::node::api_node;

    fn parse<T: DeserializeOwned>(json: Value) -> T {
        serde_json::from_value(json).expect("an object of its kind")
    }

    fn nodes() -> Fact<Vec<ApiNode>> {
        let node = |name: &str, disk: &str| {
            api_node(&parse(json!({ "metadata": {
                "name": name,
                "labels": { "kubernetes.io/hostname": name, "disk": disk, "cores": "8" },
            } })))
        };
        Fact::Known(vec![node("a1", "ssd"), node("a2", "hdd"), node("a3", "ssd")])
    }

    /// A pod of a StatefulSet on local-path storage, as K3s lists it.
    fn ledger() -> Value {
        json!({
            "metadata": {
                "name": "ledger-0", "namespace": "payments", "uid": "p-1", "labels": { "app": "ledger" },
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Application", "name": "x", "uid": "1" },
                    { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "ledger", "uid": "2", "controller": true },
                ],
            },
            "spec": {
                "nodeName": "a1",
                "containers": [{ "name": "db", "image": "db:1" }],
                "terminationGracePeriodSeconds": 3600,
                "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute" }],
                "volumes": [
                    { "name": "data", "persistentVolumeClaim": { "claimName": "data-ledger-0" } },
                    { "name": "shared", "persistentVolumeClaim": { "claimName": "shared" } },
                    { "name": "cache", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } },
                    { "name": "scratch", "emptyDir": {} },
                ],
            },
            "status": {
                "phase": "Running",
                "conditions": [{ "type": "Ready", "status": "False" }],
                "containerStatuses": [{
                    "name": "db", "image": "db:1", "imageID": "", "ready": false, "restartCount": 7,
                    "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                }],
                "initContainerStatuses": [{
                    "name": "init", "image": "i", "imageID": "", "ready": true, "restartCount": 1,
                    "state": { "waiting": { "reason": "PodInitializing" } },
                }],
            },
        })
    }

    fn claims() -> Fact<Vec<(ClaimName, String)>> {
        let claim = |name: &str, volume: &str| {
            bound_to(&parse(json!({
                "metadata": { "name": name, "namespace": "payments" }, "spec": { "volumeName": volume },
            })))
        };
        let all = [
            claim("data-ledger-0", "pv-1"),
            claim("shared", "pv-2"),
            claim("ledger-0-cache", "pv-3"),
            claim("pending", ""),
        ];
        Fact::Known(all.into_iter().flatten().collect())
    }

    fn volumes() -> Fact<Vec<String>> {
        let volume = |name: &str, mut spec: Value, key: &str| {
            spec["nodeAffinity"] = json!({ "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": key, "operator": "In", "values": ["a1"] }] },
            ] } });
            node_bound(&parse(json!({ "metadata": { "name": name }, "spec": spec })))
        };
        let csi = || json!({ "csi": { "driver": "d", "volumeHandle": "h" } });
        let all = [
            volume(
                "pv-1",
                json!({ "hostPath": { "path": "/var/lib/rancher/k3s/storage/pvc" } }),
                "kubernetes.io/hostname",
            ),
            volume("pv-2", csi(), "topology.kubernetes.io/zone"),
            volume("pv-3", csi(), "topology.topolvm.io/node"),
        ];
        Fact::Known(all.into_iter().flatten().collect())
    }

    fn finished(pod: Value) -> Pod {
        let drafts = Fact::Known(vec![PodDraft::of(&parse(pod))]);
        finish(drafts, &nodes(), claims(), volumes()).known().expect("known")[0].clone()
    }

    #[test]
    fn a_pod_is_told_with_what_a_drain_would_lose() {
        let pod = finished(ledger());
        assert_eq!(pod.owner.as_deref(), Some("StatefulSet"), "the owner that controls it");
        assert_eq!(pod.node_bound_claims, ["data-ledger-0", "ledger-0-cache"], "a zone is not a node");
        assert_eq!(pod.empty_dirs, ["scratch"]);
        assert_eq!((pod.restarts, pod.ready, pod.grace_seconds), (8, false, 3600));
        assert_eq!(pod.waiting, ["CrashLoopBackOff"], "starting is no trouble");
        assert_eq!(pod.pinned_to, None);
        assert!(!pod.tolerates_unschedulable && !pod.mirror && !pod.terminating && !pod.host_network);
    }

    #[test]
    fn mirrors_and_bare_pods_are_told_apart() {
        let mut pod = ledger();
        pod["metadata"]["ownerReferences"] = json!([]);
        assert_eq!(finished(pod.clone()).owner, None);
        pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "hash" });
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-24T02:00:00Z");
        let pod = finished(pod);
        assert!(pod.mirror && pod.terminating);
    }

    #[test]
    fn where_a_pod_may_go_is_decided_by_selector_and_affinity_together() {
        let required = |terms: Value| json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } });
        let expression = |key: &str, operator: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        let field =
            |name: &str| json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] });
        for (selector, terms, expected) in [
            (json!({ "disk": "ssd" }), None, vec!["a1", "a3"]),
            (json!({}), Some(json!([field("a2")])), vec!["a2"]),
            (json!({}), Some(json!([field("a2"), expression("disk", "In", &["ssd"])])), vec!["a1", "a2", "a3"]),
            (
                json!({ "disk": "ssd" }),
                Some(json!([expression("kubernetes.io/hostname", "NotIn", &["a1"])])),
                vec!["a3"],
            ),
            (json!({}), Some(json!([expression("cores", "Gt", &["7"])])), vec!["a1", "a2", "a3"]),
            (json!({}), Some(json!([expression("cores", "Lt", &["8"])])), vec![]),
            (json!({}), Some(json!([{}])), vec![]),
        ] {
            let mut pod = ledger();
            pod["spec"]["nodeSelector"] = selector.clone();
            if let Some(terms) = &terms {
                pod["spec"]["affinity"] = required(terms.clone());
            }
            let names = finished(pod).pinned_to.expect("it is restricted");
            let names: Vec<_> = names.iter().map(NodeName::as_str).collect();
            assert_eq!(names, expected, "{selector} {terms:?}");
        }
    }

    #[test]
    fn a_pod_is_unknown_only_if_it_depends_on_what_is_unknown() {
        let simple = json!({ "metadata": { "name": "x", "namespace": "y" }, "spec": { "containers": [] } });
        let draft = |pod: Value| Fact::Known(vec![PodDraft::of(&parse(pod))]);
        let no = || Fact::unknown("denied");
        let pods = finish(draft(simple), &Fact::unknown("denied"), Fact::unknown("denied"), no());
        assert_eq!(pods.known().map(Vec::len), Some(1));
        let pods = finish(draft(ledger()), &nodes(), claims(), no());
        assert_eq!(pods.why(), Some("persistent volumes: denied"));
        let mut pinned = ledger();
        pinned["spec"]["nodeSelector"] = json!({ "disk": "ssd" });
        assert_eq!(finish(draft(pinned), &Fact::unknown("denied"), claims(), volumes()).why(), Some("nodes: denied"));
    }

    #[test]
    fn only_the_right_tolerations_outlive_a_cordon() {
        for (toleration, expected) in [
            (json!({ "operator": "Exists" }), true),
            (json!({ "key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule" }), true),
            (json!({ "key": "node.kubernetes.io/unschedulable" }), true),
            (json!({ "key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoExecute" }), false),
            (json!({ "key": "node.kubernetes.io/unschedulable", "operator": "Equal", "value": "x" }), false),
            (json!({ "key": "dedicated", "operator": "Exists" }), false),
        ] {
            assert_eq!(tolerates_unschedulable(&parse(toleration.clone())), expected, "{toleration}");
        }
    }

    #[test]
    fn controllers_count_as_they_say_of_their_newest_generation() {
        let template = json!({ "spec": {
            "containers": [{ "name": "b", "image": "b:1" }, { "name": "a", "image": "a:1" }],
            "initContainers": [{ "name": "i", "image": "a:1" }],
        } });
        let web = |generation: i64| {
            json!({
                "metadata": { "name": "web", "namespace": "default", "generation": generation },
                "spec": { "replicas": 3, "selector": {}, "template": template },
                "status": { "availableReplicas": 2, "observedGeneration": 4 },
            })
        };
        let now = deployment(&parse(web(4)));
        assert_eq!((now.desired, now.available, now.observed), (3, 2, true));
        assert_eq!(now.images, ["a:1", "b:1"]);
        assert!(!deployment(&parse(web(5))).observed);
        let fresh = stateful_set(&parse(json!({ "metadata": { "name": "s", "generation": 1 } })));
        assert_eq!((fresh.desired, fresh.available, fresh.observed), (1, 0, false), "it has no status yet");
        let svclb = daemon_set(&parse(json!({
            "metadata": { "name": "svclb", "generation": 1 },
            "status": {
                "desiredNumberScheduled": 4, "numberAvailable": 3, "observedGeneration": 1,
                "currentNumberScheduled": 4, "numberMisscheduled": 0, "numberReady": 3,
            },
        })));
        assert_eq!((svclb.desired, svclb.available, svclb.observed), (4, 3, true));
    }

    #[test]
    fn a_budget_covers_what_its_selector_says_and_what_still_runs() {
        let pod = |name: &str, app: &str, phase: &str| {
            finished(json!({
                "metadata": { "name": name, "namespace": "default", "labels": { "app": app } },
                "spec": { "containers": [] },
                "status": { "phase": phase },
            }))
        };
        let pods = [pod("web-1", "web", "Running"), pod("web-2", "web", "Succeeded"), pod("db-1", "db", "Pending")];
        let covered = |spec: Value| {
            let budget = json!({ "metadata": { "name": "b", "namespace": "default" }, "spec": spec });
            budgets(&[parse(budget)], &pods)[0].pods.clone()
        };
        assert_eq!(covered(json!({ "selector": { "matchLabels": { "app": "web" } } })), ["default/web-1"]);
        assert_eq!(covered(json!({ "selector": {} })), ["default/web-1", "default/db-1"]);
        assert_eq!(covered(json!({})), Vec::<String>::new());
    }

    fn slices() -> Slices {
        let slice = |namespace: &str, name: &str, service: &str, family: &str, endpoints: Value| {
            parse::<EndpointSlice>(json!({
                "metadata": { "name": name, "namespace": namespace, "labels": { "kubernetes.io/service-name": service } },
                "addressType": family, "ports": [{ "port": 6443 }], "endpoints": endpoints,
            }))
        };
        let web =
            |ip: &str| json!([{ "addresses": [ip], "nodeName": "a1", "targetRef": { "kind": "Pod", "uid": "p" } }]);
        Slices::of(vec![
            slice(
                "default",
                "kubernetes",
                "kubernetes",
                "IPv4",
                json!([
                    { "addresses": ["10.0.0.12"], "conditions": { "ready": true } },
                    { "addresses": ["10.0.0.11"] },
                    { "addresses": ["10.0.0.13"], "conditions": { "ready": false } },
                ]),
            ),
            slice("shop", "web-4", "web", "IPv4", web("10.42.0.5")),
            slice("shop", "web-6", "web", "IPv6", web("fd00::5")),
            slice(
                "shop",
                "down",
                "down",
                "IPv4",
                json!([{ "addresses": ["10.42.0.6"], "conditions": { "ready": false } }]),
            ),
        ])
    }

    #[test]
    fn services_count_each_ready_endpoint_once_and_tell_of_none() {
        let slices = slices();
        assert_eq!(
            (slices.api_servers.as_slice(), slices.api_port),
            (["10.0.0.11".to_owned(), "10.0.0.12".to_owned()].as_slice(), Some(6443))
        );
        let services: Vec<_> = slices.services().into_iter().collect();
        let expected = [("default/kubernetes", 2), ("shop/down", 0), ("shop/web", 1)];
        assert_eq!(services, expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!(slices.ready_on("shop/web"), Fact::Known(vec!["a1".into()]));
        assert_eq!(slices.ready_on("shop/down"), Fact::Known(vec![]));
        assert!(slices.ready_on("default/kubernetes").why().is_some(), "they name no node");
    }
}
