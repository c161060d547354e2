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
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::ResourceExt;
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
        Ok(Webhook { name: draft.name, resources: draft.resources, service: draft.service, ready_on, spares_kube_system })
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
        let condition = |type_: &str| {
            status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True")
        };
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
    let target = text(chart, "/spec/targetNamespace").unwrap_or(&namespace);
    let name = chart.name_any();
    let job_name = text(chart, "/status/jobName").map_or_else(|| format!("helm-install-{name}"), str::to_owned);
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
    let of = |pointer| text(chart, pointer).filter(|v| !v.is_empty());
    Packaged {
        kind: PackagedKind::HelmChart,
        name: short_name(chart),
        version: of("/spec/version").or_else(|| of("/spec/chart")).unwrap_or_default().to_owned(),
        settled: job_settled && deployed,
        detail: format!("{job_words}; {release_words}"),
    }
}

/// The name alone in `kube-system`, where K3s keeps what it packages; else `namespace/name`.
fn short_name(object: &DynamicObject) -> String {
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
            let health = |c: &DynamicObject| text(c, "/status/ceph/health").unwrap_or("it says nothing of its health").to_owned();
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
    !flag("/status/readyToUse") && !flag("/status/markRemoved") && !failed
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
            charts.iter().filter_map(owned("HelmChart")).chain(addons.iter().filter_map(owned("Addon"))).collect::<Vec<_>>()
        });
        let controllers = self.controllers.as_ref().map(|controllers| {
            controllers.iter().flat_map(|(controller, manages)| of_controller(controller, manages, now)).collect::<Vec<_>>()
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
    let kured = manages.kured.as_deref().and_then(|lock| kured_holder(lock, now)).map(|node| Manager::KuredLock { node });
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
