//! What stands around the workload and can get in an update's way, turned into words.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kadence_core::fact::Fact;
use kadence_core::inventory::{
    ApiNode, Controller, ControllerKind, HelmRelease, LeaseHolder, Manager, Packaged, PackagedKind, Storage, Webhook,
};
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use serde_json::Value;

use super::both;
use super::selector::{Labels, selects};
use super::workload::Slices;
use crate::act::{LEASE_PLAN, LEASE_ROLLOUT};

/// What the judgement of other objects rests on.
pub(crate) struct Seen<'a> {
    /// Labels of the namespace `kube-system`.
    pub(crate) kube_system: Result<Labels, String>,
    pub(crate) slices: &'a Fact<Slices>,
    pub(crate) nodes: &'a Fact<Vec<ApiNode>>,
    pub(crate) controllers: &'a Fact<Vec<(Controller, Manages)>>,
}

// ------------------------------------------------------------------------------------------------------- webhooks

/// A webhook that fails closed on something that an update needs.
pub(crate) struct HookDraft {
    name: String,
    resources: Vec<String>,
    service: Option<String>,
    namespaces: Option<LabelSelector>,
}

pub(crate) fn validating(configuration: ValidatingWebhookConfiguration) -> Vec<HookDraft> {
    let of = configuration.name_any();
    let hooks = configuration.webhooks.into_iter().flatten();
    hooks
        .filter_map(|h| HookDraft::of(&of, h.name, h.failure_policy, h.rules, h.client_config, h.namespace_selector))
        .collect()
}

pub(crate) fn mutating(configuration: MutatingWebhookConfiguration) -> Vec<HookDraft> {
    let of = configuration.name_any();
    let hooks = configuration.webhooks.into_iter().flatten();
    hooks
        .filter_map(|h| HookDraft::of(&of, h.name, h.failure_policy, h.rules, h.client_config, h.namespace_selector))
        .collect()
}

impl HookDraft {
    fn of(
        configuration: &str,
        name: String,
        failure_policy: Option<String>,
        rules: Option<Vec<RuleWithOperations>>,
        client: WebhookClientConfig,
        namespaces: Option<LabelSelector>,
    ) -> Option<Self> {
        // Fail is what an absent policy means.
        if failure_policy.is_some_and(|policy| policy != "Fail") {
            return None;
        }
        let mut resources: Vec<_> = rules.iter().flatten().flat_map(needed).collect();
        resources.sort();
        resources.dedup();
        (!resources.is_empty()).then(|| Self {
            name: format!("{configuration}/{name}"),
            resources,
            service: client.service.map(|s| format!("{}/{}", s.namespace, s.name)),
            namespaces,
        })
    }
}

/// The resources of a rule without which a node cannot come back: its own object and lease, pods with what is decided
/// about them, jobs of packaged charts, and who may do it.
fn needed(rule: &RuleWithOperations) -> Vec<String> {
    const NEEDED: [(&str, &str); 6] = [
        ("", "pods"),
        ("", "nodes"),
        ("", "serviceaccounts"),
        ("batch", "jobs"),
        ("coordination.k8s.io", "leases"),
        ("authentication.k8s.io", "tokenreviews"),
    ];
    let groups = rule.api_groups.as_deref().unwrap_or_default();
    let covers = |group: &str| groups.iter().any(|g| g == "*" || g == group);
    let resources = rule.resources.iter().flatten();
    resources
        .filter_map(|resource| {
            let (base, sub) = resource.split_once('/').unwrap_or((resource, ""));
            // Subresources that people use, such as exec and portforward, can fail without harm to an update.
            let matters = matches!(sub, "" | "*" | "status" | "eviction" | "binding");
            let hit = NEEDED.iter().any(|(group, name)| (base == "*" || base == *name) && covers(group));
            (matters && hit).then(|| base.to_owned())
        })
        .collect()
}

impl Seen<'_> {
    pub(crate) fn webhooks(&self, drafts: Vec<HookDraft>) -> Result<Vec<Webhook>, String> {
        let mut hooks = drafts.into_iter().map(|draft| self.webhook(draft)).collect::<Result<Vec<_>, _>>()?;
        hooks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(hooks)
    }

    fn webhook(&self, draft: HookDraft) -> Result<Webhook, String> {
        let ready_on = match (&draft.service, self.slices) {
            (None, _) => Fact::unknown("it is an URL outside the cluster"),
            (Some(_), Fact::Unknown(why)) => Fact::unknown(format!("endpoint slices: {why}")),
            (Some(service), Fact::Known(slices)) => slices.ready_on(service),
        };
        let spares_kube_system = match (&draft.namespaces, &self.kube_system) {
            (None, _) => false,
            (Some(selector), Ok(labels)) => !selects(selector, labels),
            (Some(_), Err(why)) => return Err(why.clone()),
        };
        Ok(Webhook {
            name: draft.name,
            resources: draft.resources,
            service: draft.service,
            ready_on,
            spares_kube_system,
        })
    }
}

/// The APIService with what its condition says, if it is not Available.
pub(crate) fn broken_api_service(service: &APIService) -> Option<String> {
    let available = service.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == "Available");
    let why = match available {
        Some(condition) if condition.status == "True" => return None,
        Some(condition) => condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default(),
        None => "it has no condition Available".to_owned(),
    };
    Some(format!("{}: {why}", service.name_any()))
}

// ------------------------------------------------------------------------------------------- packaged components

/// The newest Job that installs a HelmChart.
pub(crate) struct ChartJob {
    namespace: String,
    name: String,
    state: JobState,
}

enum JobState {
    Succeeded,
    Failed(String),
    Running { failed: i32 },
}

impl ChartJob {
    pub(crate) fn of(job: &Job) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let condition =
            |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True");
        let state = if condition("Complete").is_some() {
            JobState::Succeeded
        } else if let Some(failed) = condition("Failed") {
            JobState::Failed(failed.message.clone().unwrap_or_default())
        } else {
            JobState::Running { failed: status.failed.unwrap_or(0) }
        };
        Self { namespace: job.namespace().unwrap_or_default(), name: job.name_any(), state }
    }
}

pub(crate) fn packaged(
    addons: Fact<Vec<DynamicObject>>,
    charts: Fact<Vec<DynamicObject>>,
    jobs: Fact<Vec<ChartJob>>,
    releases: &Fact<Vec<HelmRelease>>,
) -> Fact<Vec<Packaged>> {
    // Without charts their jobs and releases do not matter.
    let charts = charts.and_then(|charts| match charts.is_empty() {
        true => Fact::Known(Vec::new()),
        false => both(jobs, releases.as_ref(), |jobs, releases| {
            charts.iter().map(|chart| packaged_chart(chart, &jobs, releases)).collect()
        }),
    });
    both(addons, charts, |addons, charts: Vec<Packaged>| {
        let mut all: Vec<_> = addons.iter().map(packaged_addon).chain(charts).collect();
        all.sort();
        all
    })
}

fn packaged_addon(addon: &DynamicObject) -> Packaged {
    Packaged {
        kind: PackagedKind::Addon,
        name: short_name(addon),
        version: text(addon, "/spec/checksum").unwrap_or_default().to_owned(),
        settled: true,
        detail: text(addon, "/spec/source").unwrap_or_default().to_owned(),
    }
}

/// Settled if the release is deployed and the job, where there still is one, succeeded.
fn packaged_chart(chart: &DynamicObject, jobs: &[ChartJob], releases: &[HelmRelease]) -> Packaged {
    let namespace = chart.namespace().unwrap_or_default();
    let of = |pointer| text(chart, pointer).filter(|v| !v.is_empty());
    let target = of("/spec/targetNamespace").unwrap_or(&namespace);
    let name = chart.name_any();
    let job_name = of("/status/jobName").map_or_else(|| format!("helm-install-{name}"), str::to_owned);
    let job = jobs.iter().find(|j| j.namespace == namespace && j.name == job_name);
    let (job_settled, job_words) = match job.map(|j| &j.state) {
        Some(JobState::Succeeded) => (true, format!("job {job_name} succeeded")),
        Some(JobState::Failed(why)) => (false, format!("job {job_name} failed: {why}")),
        Some(JobState::Running { failed: 0 }) => (false, format!("job {job_name} is running")),
        Some(JobState::Running { failed }) => (false, format!("job {job_name} is running, after {failed} failed pods")),
        None => (true, format!("there is no job {job_name}")),
    };
    let release = releases.iter().find(|r| r.namespace == target && r.name == name);
    let (deployed, release_words) = match release {
        Some(r) => (r.status == "deployed", format!("release {target}/{name} revision {} is {}", r.revision, r.status)),
        None => (false, format!("there is no release {target}/{name}")),
    };
    Packaged {
        kind: PackagedKind::HelmChart,
        name: short_name(chart),
        version: of("/spec/version").or_else(|| of("/spec/chart")).unwrap_or_default().to_owned(),
        settled: job_settled && deployed,
        detail: format!("{job_words}; {release_words}"),
    }
}

/// The name alone in `kube-system`, where K3s keeps what it packages; else `namespace/name`.
pub(crate) fn short_name(object: &DynamicObject) -> String {
    match object.namespace().as_deref() {
        None | Some("kube-system") => object.name_any(),
        Some(_) => full_name(object),
    }
}

fn full_name(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn text<'a>(object: &'a DynamicObject, pointer: &str) -> Option<&'a str> {
    object.data.pointer(pointer).and_then(Value::as_str)
}

/// One revision of a Helm release.
pub(crate) fn helm_revision(secret: &PartialObjectMeta<Secret>) -> Option<HelmRelease> {
    let label = |key: &str| secret.labels().get(key).cloned();
    Some(HelmRelease {
        namespace: secret.namespace()?,
        name: label("name")?,
        revision: label("version")?.parse().ok()?,
        status: label("status").unwrap_or_default(),
    })
}

/// The newest revision of each release.
pub(crate) fn newest_releases(revisions: Vec<HelmRelease>) -> Vec<HelmRelease> {
    let mut newest = BTreeMap::<_, HelmRelease>::new();
    for release in revisions {
        let key = (release.namespace.clone(), release.name.clone());
        let kept = newest.entry(key).or_insert_with(|| release.clone());
        if release.revision > kept.revision {
            *kept = release;
        }
    }
    newest.into_values().collect()
}

// -------------------------------------------------------------------------------------------------------- storage

/// What Longhorn says, where it is installed.
pub(crate) struct Longhorn {
    pub(crate) volumes: Fact<Vec<DynamicObject>>,
    pub(crate) snapshots: Fact<Vec<DynamicObject>>,
    pub(crate) backups: Fact<Vec<DynamicObject>>,
}

/// A volume's attachment to a node.
pub(crate) struct Attachment {
    name: String,
    node: String,
    deleting: bool,
}

impl Attachment {
    pub(crate) fn of(object: &VolumeAttachment) -> Self {
        Self {
            name: object.name_any(),
            node: object.spec.node_name.clone(),
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl Seen<'_> {
    pub(crate) fn storage(
        &self,
        longhorn: Longhorn,
        ceph: Fact<Vec<DynamicObject>>,
        attachments: Fact<Vec<Attachment>>,
    ) -> Fact<Storage> {
        let unhealthy = longhorn.volumes.map(|volumes| {
            let attached = volumes.iter().filter(|v| text(v, "/status/state") == Some("attached"));
            attached.filter(|v| text(v, "/status/robustness") != Some("healthy")).map(full_name).collect::<Vec<_>>()
        });
        let busy = both(longhorn.snapshots, longhorn.backups, |snapshots, backups| {
            let snapshots = snapshots.iter().filter(|s| snapshot_in_progress(s)).map(full_name);
            let backups = backups.iter().filter(|b| backup_in_progress(b)).map(full_name);
            snapshots.chain(backups).collect::<Vec<_>>()
        });
        let ceph = ceph.map(|clusters| {
            let health = |c: &DynamicObject| {
                text(c, "/status/ceph/health").unwrap_or("it says nothing of its health").to_owned()
            };
            clusters.iter().map(|c| (full_name(c), health(c))).collect::<BTreeMap<_, _>>()
        });
        let dangling = both(attachments, self.nodes.as_ref(), |attachments, nodes| {
            let of_no_node = |a: &&Attachment| a.deleting || !nodes.iter().any(|n| n.name.as_str() == a.node);
            let words = |a: &Attachment| match a.deleting {
                true => format!("{} on {} is being deleted", a.name, a.node),
                false => format!("{} is of node {}, which does not exist", a.name, a.node),
            };
            attachments.iter().filter(of_no_node).map(words).collect::<Vec<_>>()
        });
        both(both(unhealthy, busy, |u, b| (u, b)), both(ceph, dangling, |c, d| (c, d)), |longhorn, (ceph, dangling)| {
            let (longhorn_unhealthy, longhorn_busy) = longhorn;
            Storage { longhorn_unhealthy, longhorn_busy, ceph, dangling_attachments: dangling }
        })
    }
}

/// One that waits to be removed is not ready either, and stays so.
fn snapshot_in_progress(snapshot: &DynamicObject) -> bool {
    let flag = |pointer| snapshot.data.pointer(pointer).and_then(Value::as_bool).unwrap_or_default();
    let failed = text(snapshot, "/status/error").is_some_and(|e| !e.is_empty());
    !flag("/status/readyToUse")
        && !flag("/status/markRemoved")
        && !failed
        && snapshot.metadata.deletion_timestamp.is_none()
}

fn backup_in_progress(backup: &DynamicObject) -> bool {
    matches!(text(backup, "/status/state"), Some("InProgress" | "Pending" | "New" | ""))
}

/// When the newest snapshot of etcd that is ready to use was made.
pub(crate) fn newest_snapshot(files: &[DynamicObject]) -> Option<Timestamp> {
    let usable = files.iter().filter(|f| {
        f.data.pointer("/status/readyToUse").and_then(Value::as_bool) == Some(true)
            && f.data.pointer("/status/error").is_none_or(Value::is_null)
    });
    usable.filter_map(|f| text(f, "/status/creationTime")?.parse().ok()).max()
}

// ------------------------------------------------------------------------------------------------------- managers

/// What an object's labels and annotations say about who else acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manages {
    /// GitOps that owns the object.
    gitops: Option<String>,
    /// Whether K3s applied it as part of a packaged manifest.
    packaged: bool,
    /// kured's reboot lock.
    kured: Option<String>,
}

impl Manages {
    pub(crate) fn of(object: &impl ResourceExt) -> Self {
        let annotation = |key: &str| object.annotations().get(key);
        Self {
            gitops: gitops_owner(object),
            packaged: annotation("objectset.rio.cattle.io/owner-gvk").is_some_and(|gvk| gvk.contains("Kind=Addon")),
            kured: annotation("weave.works/kured-node-lock").cloned(),
        }
    }
}

fn gitops_owner(object: &impl ResourceExt) -> Option<String> {
    let label = |key: &str| object.labels().get(key);
    for (kind, group) in [("Kustomization", "kustomize.toolkit.fluxcd.io"), ("HelmRelease", "helm.toolkit.fluxcd.io")] {
        if let Some(name) = label(&format!("{group}/name")) {
            let namespace = label(&format!("{group}/namespace")).map(|n| format!("{n}/")).unwrap_or_default();
            return Some(format!("Flux {kind} {namespace}{name}"));
        }
    }
    let tracked = object.annotations().get("argocd.argoproj.io/tracking-id").and_then(|id| id.split(':').next());
    let argo = label("argocd.argoproj.io/instance").map(String::as_str).or(tracked)?;
    Some(format!("Argo CD application {argo}"))
}

impl Seen<'_> {
    /// Who else could change versions, cordons or nodes, or would put back what K3s changes.
    pub(crate) fn managers(
        &self,
        plans: Fact<Vec<DynamicObject>>,
        charts: &Fact<Vec<DynamicObject>>,
        addons: &Fact<Vec<DynamicObject>>,
        now: Timestamp,
    ) -> Fact<Vec<Manager>> {
        let plans = plans.map(|plans| plans.iter().map(upgrade_plan).collect::<Vec<_>>());
        let objects = both(charts.as_ref(), addons.as_ref(), |charts, addons| {
            let owned = |kind: &'static str| {
                move |o: &DynamicObject| {
                    let owner = gitops_owner(o)?;
                    Some(Manager::GitOps { object: format!("{kind} {}", full_name(o)), owner })
                }
            };
            charts
                .iter()
                .filter_map(owned("HelmChart"))
                .chain(addons.iter().filter_map(owned("Addon")))
                .collect::<Vec<_>>()
        });
        let controllers = self.controllers.as_ref().map(|controllers| {
            controllers
                .iter()
                .flat_map(|(controller, manages)| of_controller(controller, manages, now))
                .collect::<Vec<_>>()
        });
        both(both(plans, objects, super::chain), controllers, super::chain).map(|mut all| {
            all.sort();
            all
        })
    }
}

fn of_controller(controller: &Controller, manages: &Manages, now: Timestamp) -> Vec<Manager> {
    let kind = match controller.kind {
        ControllerKind::Deployment => "Deployment",
        ControllerKind::StatefulSet => "StatefulSet",
        ControllerKind::DaemonSet => "DaemonSet",
    };
    let object = format!("{kind} {}/{}", controller.namespace, controller.name);
    let rancher = (controller.namespace == "cattle-system" && controller.name == "cattle-cluster-agent")
        .then(|| Manager::Rancher { evidence: object.clone() });
    let kured =
        manages.kured.as_deref().and_then(|lock| kured_holder(lock, now)).map(|node| Manager::KuredLock { node });
    let gitops = manages.gitops.clone().filter(|_| manages.packaged).map(|owner| Manager::GitOps { object, owner });
    [rancher, kured, gitops].into_iter().flatten().collect()
}

fn upgrade_plan(plan: &DynamicObject) -> Manager {
    let applying = plan.data.pointer("/status/applying").and_then(Value::as_array);
    let rancher = plan.labels().get("rancher-managed").is_some_and(|v| v != "false")
        || plan.namespace().as_deref() == Some("cattle-system");
    Manager::UpgradePlan {
        name: full_name(plan),
        applying: applying.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        rancher,
        gitops: gitops_owner(plan).is_some(),
    }
}

/// The nodes that hold kured's lock. One that cannot be read counts as held: somebody wrote it.
fn kured_holder(annotation: &str, now: Timestamp) -> Option<String> {
    let Ok(lock) = serde_json::from_str::<Value>(annotation) else {
        return Some("(a lock that cannot be read)".to_owned());
    };
    // Several owners at once, or one.
    let locks = match lock.get("locks").and_then(Value::as_array) {
        Some(locks) => locks.clone(),
        None => vec![lock],
    };
    let held: Vec<_> = locks
        .iter()
        .filter(|lock| {
            let created = lock["created"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
            // In nanoseconds; 0 never ends.
            let ttl = lock["TTL"].as_i64().filter(|ttl| *ttl > 0).map(SignedDuration::from_nanos);
            !matches!((created, ttl), (Some(created), Some(ttl)) if now.duration_since(created) > ttl)
        })
        .filter_map(|lock| lock["nodeID"].as_str().filter(|node| !node.is_empty()))
        .collect();
    (!held.is_empty()).then(|| held.join(", "))
}

/// Who holds Kadence's Lease. Whether the last renewal is too long ago is for others to judge.
pub(crate) fn lease_holder(lease: &Lease) -> Option<LeaseHolder> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.clone().filter(|h| !h.is_empty())?;
    Some(LeaseHolder {
        holder,
        renewed: spec.renew_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        rollout: lease.annotations().get(LEASE_ROLLOUT).cloned(),
        plan: lease.annotations().get(LEASE_PLAN).cloned(),
    })
}

/// The value of a sample, from what follows the metric's name: `{storage_cluster_id="etcd-0"} 2.1e+07`.
pub(crate) fn metric_value(rest: &str) -> Option<u64> {
    let value = rest.rsplit(' ').next()?.parse::<f64>().ok()?;
    (rest.starts_with(['{', ' ']) && value.is_finite() && value >= 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;
    use crate::facts::node::api_node;

    fn parse<T: DeserializeOwned>(json: Value) -> T {
        serde_json::from_value(json).expect("an object of its kind")
    }

    fn custom(namespace: &str, name: &str, rest: Value) -> DynamicObject {
        let mut object =
            json!({ "apiVersion": "x/v1", "kind": "X", "metadata": { "name": name, "namespace": namespace } });
        for (key, value) in rest.as_object().expect("fields") {
            match key.as_str() {
                "labels" | "annotations" => object["metadata"][key] = value.clone(),
                _ => object[key] = value.clone(),
            }
        }
        parse(object)
    }

    fn now() -> Timestamp {
        "2026-11-24T02:00:00Z".parse().expect("time")
    }

    fn with_seen<T>(controllers: Vec<(Controller, Manages)>, then: impl FnOnce(Seen<'_>) -> T) -> T {
        let slices = Fact::Known(Slices::of(vec![parse(json!({
            "metadata": { "name": "h", "namespace": "ops", "labels": { "kubernetes.io/service-name": "hook" } },
            "addressType": "IPv4", "endpoints": [{ "addresses": ["10.42.0.5"], "nodeName": "a1" }],
        }))]));
        let nodes = Fact::Known(vec![api_node(&parse(json!({ "metadata": { "name": "a1" } })))]);
        let controllers = Fact::Known(controllers);
        let labels = [("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())].into();
        then(Seen { kube_system: Ok(labels), slices: &slices, nodes: &nodes, controllers: &controllers })
    }

    fn hooks(webhooks: Value) -> Vec<Webhook> {
        let drafts = validating(parse(json!({ "metadata": { "name": "policy" }, "webhooks": webhooks })));
        with_seen(vec![], |seen| seen.webhooks(drafts)).expect("kube-system is known")
    }

    #[test]
    fn a_webhook_counts_if_it_fails_closed_on_what_an_update_needs() {
        let hook = |name: &str, policy: Value, group: &str, resource: &str| {
            json!({
                "name": name, "failurePolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": { "service": { "namespace": "ops", "name": "hook" } },
                "rules": [{ "apiGroups": [group], "apiVersions": ["*"], "operations": ["*"], "resources": [resource] }],
            })
        };
        let found = hooks(json!([
            hook("pods", json!("Fail"), "", "pods"),
            hook("default-is-fail", Value::Null, "*", "*/*"),
            hook("ignored", json!("Ignore"), "", "pods"),
            hook("evictions", json!("Fail"), "", "pods/eviction"),
            hook("exec", json!("Fail"), "", "pods/exec"),
            hook("ingresses", json!("Fail"), "networking.k8s.io", "ingresses"),
            hook("other-jobs", json!("Fail"), "example.org", "jobs"),
            hook("leases", json!("Fail"), "coordination.k8s.io", "leases"),
        ]));
        let names: Vec<_> = found.iter().map(|w| (w.name.as_str(), w.resources.join(","))).collect();
        let expected = [("default-is-fail", "*"), ("evictions", "pods"), ("leases", "leases"), ("pods", "pods")];
        let expected = expected.map(|(name, resources)| (format!("policy/{name}"), resources.to_owned()));
        assert_eq!(names, expected.iter().map(|(n, r)| (n.as_str(), r.clone())).collect::<Vec<_>>());
        assert_eq!(found[0].service.as_deref(), Some("ops/hook"));
        assert_eq!(found[0].ready_on, Fact::Known(vec!["a1".into()]));
    }

    #[test]
    fn whether_a_webhook_spares_kube_system_is_told_by_its_selector() {
        let spares = |selector: Value, client: Value| {
            let mut hook = json!({
                "name": "h", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": client,
                "rules": [{ "apiGroups": [""], "resources": ["pods"] }],
            });
            if !selector.is_null() {
                hook["namespaceSelector"] = selector;
            }
            hooks(json!([hook])).remove(0)
        };
        let inside = || json!({ "service": { "namespace": "ops", "name": "nobody" } });
        let but = json!({ "matchExpressions": [{ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"] }] });
        assert!(spares(but, inside()).spares_kube_system);
        assert!(!spares(json!({}), inside()).spares_kube_system);
        assert!(!spares(Value::Null, inside()).spares_kube_system);
        assert_eq!(spares(Value::Null, inside()).ready_on, Fact::Known(vec![]), "nobody is behind it");
        let outside = spares(Value::Null, json!({ "url": "https://elsewhere" }));
        assert!(outside.service.is_none() && outside.ready_on.why().is_some());
    }

    #[test]
    fn an_api_service_that_is_not_available_says_why() {
        let service = |status: &str| {
            broken_api_service(&parse(json!({
                "metadata": { "name": "v1beta1.metrics.k8s.io" },
                "spec": { "groupPriorityMinimum": 1, "versionPriority": 1 },
                "status": { "conditions": [{ "type": "Available", "status": status, "message": "no endpoints" }] },
            })))
        };
        assert_eq!(service("True"), None);
        assert_eq!(service("False").as_deref(), Some("v1beta1.metrics.k8s.io: no endpoints"));
    }

    fn release(name: &str, version: &str, status: &str) -> Option<HelmRelease> {
        helm_revision(&parse(json!({
            "metadata": {
                "name": format!("sh.helm.release.v1.{name}.v{version}"), "namespace": "kube-system",
                "labels": { "owner": "helm", "name": name, "version": version, "status": status },
            },
        })))
    }

    #[test]
    fn the_newest_revision_of_a_release_is_the_highest_number() {
        let all = [
            release("traefik", "9", "superseded"),
            release("traefik", "10", "deployed"),
            release("traefik", "2", "failed"),
        ];
        let newest = newest_releases(all.into_iter().flatten().collect());
        assert_eq!(newest.len(), 1);
        assert_eq!((newest[0].revision, newest[0].status.as_str()), (10, "deployed"));
    }

    #[test]
    fn a_chart_is_settled_once_its_job_succeeded_and_its_release_is_deployed() {
        let chart = || {
            custom(
                "kube-system",
                "traefik",
                json!({
                    "spec": { "chart": "https://%{KUBERNETES_API}%/static/charts/traefik-39.0.501.tgz", "targetNamespace": "" },
                    "status": { "jobName": "helm-install-traefik" },
                }),
            )
        };
        let job = |condition: Option<&str>, failed: i32| {
            let conditions: Vec<_> = condition
                .iter()
                .map(|c| json!({ "type": c, "status": "True", "message": "BackoffLimitExceeded" }))
                .collect();
            ChartJob::of(&parse(json!({
                "metadata": { "name": "helm-install-traefik", "namespace": "kube-system" },
                "status": { "conditions": conditions, "failed": failed },
            })))
        };
        let deployed = || release("traefik", "3", "deployed");
        for (job, release, settled, words) in [
            (Some(job(Some("Complete"), 0)), deployed(), true, "succeeded"),
            (Some(job(Some("Complete"), 0)), release("traefik", "4", "pending-upgrade"), false, "pending-upgrade"),
            (Some(job(Some("Complete"), 0)), None, false, "no release kube-system/traefik"),
            (Some(job(Some("Failed"), 6)), deployed(), false, "BackoffLimitExceeded"),
            (Some(job(None, 2)), deployed(), false, "after 2 failed pods"),
            (Some(job(None, 0)), deployed(), false, "is running"),
            (None, deployed(), true, "no job"),
        ] {
            let releases = Fact::Known(release.into_iter().collect());
            let all = packaged(
                Fact::Known(vec![]),
                Fact::Known(vec![chart()]),
                Fact::Known(job.into_iter().collect()),
                &releases,
            );
            let all = all.known().expect("known");
            assert_eq!(all[0].settled, settled, "{}", all[0].detail);
            assert!(all[0].detail.contains(words), "{}", all[0].detail);
            assert_eq!(all[0].name, "traefik");
            assert!(all[0].version.ends_with("traefik-39.0.501.tgz"));
        }
    }

    #[test]
    fn releases_matter_only_where_there_are_charts() {
        let addon = || custom("kube-system", "coredns", json!({ "spec": { "checksum": "abc", "source": "/f" } }));
        let no = || Fact::unknown("denied");
        let all = packaged(Fact::Known(vec![addon()]), Fact::Known(vec![]), Fact::unknown("denied"), &no());
        assert_eq!(all.known().map(|all| all[0].version.as_str()), Some("abc"));
        let chart = custom("web", "shop", json!({}));
        let all = packaged(Fact::Known(vec![addon()]), Fact::Known(vec![chart]), Fact::Known(vec![]), &no());
        assert_eq!(all.why(), Some("denied"));
    }

    #[test]
    fn storage_tells_what_is_unhealthy_busy_or_dangling() {
        let volume = |name: &str, state: &str, robustness: &str| {
            custom("longhorn-system", name, json!({ "status": { "state": state, "robustness": robustness } }))
        };
        let status = |name: &str, status: Value| custom("longhorn-system", name, json!({ "status": status }));
        let longhorn = Longhorn {
            volumes: Fact::Known(vec![
                volume("v1", "attached", "degraded"),
                volume("v2", "attached", "healthy"),
                volume("v3", "detached", "unknown"),
            ]),
            snapshots: Fact::Known(vec![
                status("s1", json!({ "readyToUse": false, "error": "" })),
                status("s2", json!({ "readyToUse": true })),
                status("s3", json!({ "readyToUse": false, "markRemoved": true })),
                status("s4", json!({ "readyToUse": false, "error": "lost" })),
            ]),
            backups: Fact::Known(vec![
                status("b1", json!({ "state": "InProgress" })),
                status("b2", json!({ "state": "Completed" })),
            ]),
        };
        let ceph = Fact::Known(vec![custom(
            "rook-ceph",
            "ceph",
            json!({ "status": { "ceph": { "health": "HEALTH_WARN" } } }),
        )]);
        let attachment =
            |name: &str, node: &str, deleting: bool| Attachment { name: name.into(), node: node.into(), deleting };
        let attachments =
            Fact::Known(vec![attachment("x", "a1", false), attachment("y", "a1", true), attachment("z", "a9", false)]);
        let storage = with_seen(vec![], |seen| seen.storage(longhorn, ceph, attachments));
        let storage = storage.known().expect("known");
        assert_eq!(storage.longhorn_unhealthy, ["longhorn-system/v1"]);
        assert_eq!(storage.longhorn_busy, ["longhorn-system/s1", "longhorn-system/b1"]);
        assert_eq!(storage.ceph["rook-ceph/ceph"], "HEALTH_WARN");
        assert_eq!(storage.dangling_attachments, ["y on a1 is being deleted", "z is of node a9, which does not exist"]);
    }

    #[test]
    fn the_newest_snapshot_is_one_that_can_be_used() {
        let file = |ready: bool, time: &str, error: Value| {
            custom("", "f", json!({ "status": { "readyToUse": ready, "creationTime": time, "error": error } }))
        };
        let files = [
            file(true, "2026-11-24T01:00:00Z", Value::Null),
            file(true, "2026-11-24T00:00:00Z", Value::Null),
            file(false, "2026-11-24T01:30:00Z", Value::Null),
            file(true, "2026-11-24T01:40:00Z", json!({ "message": "no space" })),
        ];
        assert_eq!(newest_snapshot(&files), Some("2026-11-24T01:00:00Z".parse().expect("time")));
        assert_eq!(newest_snapshot(&[]), None);
    }

    fn controller(namespace: &str, name: &str) -> Controller {
        Controller {
            kind: ControllerKind::DaemonSet,
            namespace: namespace.into(),
            name: name.into(),
            desired: 1,
            available: 1,
            images: vec![],
            observed: true,
        }
    }

    #[test]
    fn who_else_manages_is_told_with_the_evidence() {
        let flux =
            json!({ "kustomize.toolkit.fluxcd.io/name": "infra", "kustomize.toolkit.fluxcd.io/namespace": "flux" });
        let plans = Fact::Known(vec![
            custom("system-upgrade", "server-plan", json!({ "labels": flux, "status": { "applying": ["s1"] } })),
            custom("cattle-system", "k3s-master-plan", json!({ "labels": { "rancher-managed": "true" } })),
        ]);
        let argo = json!({ "argocd.argoproj.io/tracking-id": "traefik:helm.cattle.io/HelmChart:kube-system/traefik" });
        let charts = Fact::Known(vec![custom("kube-system", "traefik", json!({ "annotations": argo }))]);
        let none = Manages { gitops: None, packaged: false, kured: None };
        let lock = r#"{"nodeID":"a1","created":"2026-11-24T01:59:00Z","TTL":0}"#.to_owned();
        let controllers = vec![
            (controller("cattle-system", "cattle-cluster-agent"), none.clone()),
            (controller("kube-system", "kured"), Manages { kured: Some(lock), ..none.clone() }),
            (
                controller("kube-system", "coredns"),
                Manages { gitops: Some("Flux".into()), packaged: true, ..none.clone() },
            ),
            (controller("shop", "web"), Manages { gitops: Some("Flux".into()), ..none }),
        ];
        let managers = with_seen(controllers, |seen| seen.managers(plans, &charts, &Fact::Known(vec![]), now()));
        let mut expected = vec![
            Manager::UpgradePlan {
                name: "system-upgrade/server-plan".into(),
                applying: vec!["s1".into()],
                rancher: false,
                gitops: true,
            },
            Manager::UpgradePlan {
                name: "cattle-system/k3s-master-plan".into(),
                applying: vec![],
                rancher: true,
                gitops: false,
            },
            Manager::Rancher { evidence: "DaemonSet cattle-system/cattle-cluster-agent".into() },
            Manager::KuredLock { node: "a1".into() },
            Manager::GitOps {
                object: "HelmChart kube-system/traefik".into(),
                owner: "Argo CD application traefik".into(),
            },
            Manager::GitOps { object: "DaemonSet kube-system/coredns".into(), owner: "Flux".into() },
        ];
        expected.sort();
        assert_eq!(managers, Fact::Known(expected), "what users own in GitOps is their matter");
    }

    #[test]
    fn kureds_lock_ends_with_its_time_and_can_have_several_owners() {
        let minute = 60_000_000_000_i64;
        for (lock, expected) in [
            (json!({ "nodeID": "a1", "created": "2026-11-24T01:00:00Z", "TTL": 0 }), Some("a1")),
            (json!({ "nodeID": "a1", "created": "2026-11-24T01:00:00Z", "TTL": 30 * minute }), None),
            (json!({ "nodeID": "a1", "created": "2026-11-24T01:45:00Z", "TTL": 30 * minute }), Some("a1")),
            (json!({ "maxOwners": 2, "locks": [{ "nodeID": "a1" }, { "nodeID": "a2" }] }), Some("a1, a2")),
            (json!({ "maxOwners": 2, "locks": [] }), None),
            (json!({ "nodeID": "" }), None),
        ] {
            assert_eq!(kured_holder(&lock.to_string(), now()).as_deref(), expected, "{lock}");
        }
        assert!(kured_holder("{", now()).is_some(), "a lock that cannot be read is held");
    }

    #[test]
    fn a_metric_is_read_in_go_s_notation() {
        assert_eq!(metric_value(r#"{storage_cluster_id="etcd-0"} 2.097152e+07"#), Some(20_971_520));
        assert_eq!(metric_value(" 4096"), Some(4096));
        assert_eq!(metric_value("_total 4096"), None);
        assert_eq!(metric_value(r#"{x="y"} NaN"#), None);
    }
}
