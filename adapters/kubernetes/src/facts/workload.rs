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
        let containers: Vec<&ContainerStatus> = [
            &status.container_statuses,
            &status.init_container_statuses,
        ]
        .into_iter()
        .flatten()
        .flatten()
        .collect();
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
