//! One look at the cluster: every list in parallel, each with its own time, each turned into words page by page.
//!
//! A part that could not be had is unknown, with the reason; what an API server does not serve (a CRD that is not
//! installed) is known to be none.

pub(crate) mod node;
mod selector;
mod surroundings;
mod workload;

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures_util::{AsyncBufReadExt as _, TryStreamExt as _, future::join, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod as KubePod, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kadence_core::fact::Fact;
use kadence_core::ident::{ClusterUid, Digest, NodeName};
use kadence_core::inventory::{
    ApiFacts, ApiNode, Budget, Controller, HelmRelease, LeaseHolder, Pod, Surroundings, Workload,
};
use kadence_engine::ports::ApiError;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, ObjectList};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::act::LEASE;
use crate::servers::Servers;
use node::api_node;
use surroundings::{Attachment, ChartJob, HookDraft, Longhorn, Manages, Seen};
use workload::{PodDraft, Slices};

/// Objects per answer, so that memory stays bounded however large the cluster is.
const PAGE: u32 = 250;

/// See the port.
pub(crate) async fn gather(servers: &Servers, ca: Option<Digest>) -> Result<ApiFacts, ApiError> {
    // First the two small ones that others need; they also find out which server answers.
    let (kube_system, groups) = join(kube_system(servers), Groups::ask(servers)).await;
    match (&kube_system, &groups) {
        (Err(error @ ApiError::NoWay(_)), Err(_)) | (Err(error @ ApiError::Denied(_)), Err(ApiError::Denied(_))) => {
            return Err(error.clone());
        }
        _ => {}
    }
    let look = Look { servers, groups: groups.map_err(|e| e.to_string()) };
    let now = Timestamp::now();

    // All lists at once: together they take as long as the slowest.
    let (basis, around) = join(Box::pin(look.basis(now)), Box::pin(look.around())).await;
    let Basis { nodes, pods, slices, controllers, budgets } = basis;
    let seen = Seen {
        kube_system: kube_system.as_ref().map(|n| n.labels().clone()).map_err(ToString::to_string),
        slices: &slices,
        nodes: &nodes,
        controllers: &controllers,
    };
    let surroundings = Surroundings {
        webhooks: both(around.validating, around.mutating, |v, m| v.into_iter().chain(m).flatten().collect::<Vec<_>>())
            .and_then(|hooks| seen.webhooks(hooks).into()),
        broken_api_services: around.broken_api_services,
        managers: seen.managers(around.plans, &around.charts, &around.addons, now),
        storage: seen.storage(around.longhorn, around.ceph, around.attachments),
        packaged: surroundings::packaged(around.addons, around.charts, around.chart_jobs, &around.helm),
        helm_releases: around.helm,
        chart_configs: around.chart_configs.map(|all| all.iter().map(surroundings::short_name).collect()),
        newest_snapshot: around.snapshots.map(|files| surroundings::newest_snapshot(&files)),
        lease: around.lease,
        storage_size: around.storage_size,
    };
    Ok(ApiFacts {
        uid: kube_system.and_then(|n| uid_of(&n)).into(),
        ca_hash: ca.map_or_else(|| Fact::unknown("the kubeconfig has no certificate authority"), Fact::Known),
        endpoints: slices.as_ref().map(|s| s.api_servers.clone()),
        workload: Workload {
            controllers: controllers.map(|all| all.into_iter().map(|(controller, _)| controller).collect()),
            pods,
            budgets,
            services: slices.map(|s| s.services()),
        },
        nodes,
        surroundings,
    })
}

/// Nodes and what runs on them.
struct Basis {
    nodes: Fact<Vec<ApiNode>>,
    pods: Fact<Vec<Pod>>,
    slices: Fact<Slices>,
    controllers: Fact<Vec<(Controller, Manages)>>,
    budgets: Fact<Vec<Budget>>,
}

/// What stands around it.
struct Around {
    validating: Fact<Vec<Vec<HookDraft>>>,
    mutating: Fact<Vec<Vec<HookDraft>>>,
    broken_api_services: Fact<Vec<String>>,
    attachments: Fact<Vec<Attachment>>,
    helm: Fact<Vec<HelmRelease>>,
    addons: Fact<Vec<DynamicObject>>,
    chart_configs: Fact<Vec<DynamicObject>>,
    charts: Fact<Vec<DynamicObject>>,
    chart_jobs: Fact<Vec<ChartJob>>,
    snapshots: Fact<Vec<DynamicObject>>,
    plans: Fact<Vec<DynamicObject>>,
    longhorn: Longhorn,
    ceph: Fact<Vec<DynamicObject>>,
    lease: Fact<Option<LeaseHolder>>,
    storage_size: Fact<u64>,
}

impl Look<'_> {
    async fn basis(&self, now: Timestamp) -> Basis {
        let (nodes, renewals, pods, volumes, claims, slices, deployments, stateful_sets, daemon_sets, budgets) = tokio::join!(
            self.all::<Node, _>(None, |n| Some(api_node(&n))),
            self.node_leases(),
            self.all::<KubePod, _>(None, |p| Some(PodDraft::of(&p))),
            self.all::<PersistentVolume, _>(None, |v| workload::node_bound(&v)),
            self.all::<PersistentVolumeClaim, _>(None, |c| workload::bound_to(&c)),
            self.all::<EndpointSlice, _>(None, Some),
            self.all::<Deployment, _>(None, |d| Some((workload::deployment(&d), Manages::of(&d)))),
            self.all::<StatefulSet, _>(None, |s| Some((workload::stateful_set(&s), Manages::of(&s)))),
            self.all::<DaemonSet, _>(None, |d| Some((workload::daemon_set(&d), Manages::of(&d)))),
            self.all::<PodDisruptionBudget, _>(None, Some),
        );
        let slices = slices.map(Slices::of);
        if let Fact::Known(Slices { api_port: Some(port), .. }) = &slices {
            self.servers.learn_port(*port);
        }
        let nodes = nodes.map(|mut nodes| {
            for node in &mut nodes {
                node.object.lease_age = renewals.get(node.name.as_str()).map(|at| now.duration_since(*at));
            }
            nodes
        });
        let pods = workload::finish(pods, &nodes, claims, volumes);
        let controllers = both(both(deployments, stateful_sets, chain), daemon_sets, chain).map(|mut all| {
            all.sort_by(|(a, _), (b, _)| a.cmp(b));
            all
        });
        let budgets = both(budgets, pods.as_ref(), |budgets, pods| workload::budgets(&budgets, pods));
        Basis { nodes, pods, slices, controllers, budgets }
    }

    async fn around(&self) -> Around {
        let kubernetes = async {
            tokio::join!(
                self.all::<ValidatingWebhookConfiguration, _>(None, |c| Some(surroundings::validating(c))),
                self.all::<MutatingWebhookConfiguration, _>(None, |c| Some(surroundings::mutating(c))),
                self.all::<APIService, _>(None, |s| surroundings::broken_api_service(&s)),
                self.all::<VolumeAttachment, _>(None, |a| Some(Attachment::of(&a))),
                self.helm_releases(),
                self.lease(),
                self.storage_size(),
            )
        };
        let k3s = async {
            tokio::join!(
                self.custom("k3s.cattle.io", "Addon", "addons"),
                self.custom("k3s.cattle.io", "ETCDSnapshotFile", "etcdsnapshotfiles"),
                self.custom("helm.cattle.io", "HelmChart", "helmcharts"),
                self.custom("helm.cattle.io", "HelmChartConfig", "helmchartconfigs"),
                self.all::<Job, _>(Some("helmcharts.helm.cattle.io/chart"), |j| Some(ChartJob::of(&j))),
                self.custom("upgrade.cattle.io", "Plan", "plans"),
            )
        };
        let storage = async {
            tokio::join!(
                self.custom("longhorn.io", "Volume", "volumes"),
                self.custom("longhorn.io", "Snapshot", "snapshots"),
                self.custom("longhorn.io", "Backup", "backups"),
                self.custom("ceph.rook.io", "CephCluster", "cephclusters"),
            )
        };
        let (kubernetes, k3s, storage) = tokio::join!(kubernetes, k3s, storage);
        let (validating, mutating, broken_api_services, attachments, helm, lease, storage_size) = kubernetes;
        let (addons, snapshots, charts, chart_configs, chart_jobs, plans) = k3s;
        let (volumes, snapshots_of_volumes, backups, ceph) = storage;
        Around {
            validating,
            mutating,
            broken_api_services,
            attachments,
            helm,
            addons,
            charts,
            chart_configs,
            chart_jobs,
            snapshots,
            plans,
            longhorn: Longhorn { volumes, snapshots: snapshots_of_volumes, backups },
            ceph,
            lease,
            storage_size,
        }
    }
}

fn chain<T>(mut one: Vec<T>, mut other: Vec<T>) -> Vec<T> {
    one.append(&mut other);
    one
}

/// Known if both are.
fn both<A, B, C>(a: Fact<A>, b: Fact<B>, join: impl FnOnce(A, B) -> C) -> Fact<C> {
    a.and_then(|a| b.map(|b| join(a, b)))
}

/// See the port.
pub(crate) async fn uid(servers: &Servers) -> Result<ClusterUid, ApiError> {
    uid_of(&kube_system(servers).await?)
}

/// See the port.
pub(crate) async fn revision(servers: &Servers) -> Result<u64, ApiError> {
    let what = "the datastore's revision";
    // Without a resourceVersion in the request the answer is as new as the datastore.
    let list =
        |client| async move { Api::<Namespace>::all(client).list_metadata(&ListParams::default().limit(1)).await };
    let version = servers.read(what, list).await?.metadata.resource_version.unwrap_or_default();
    version.parse().map_err(|_| ApiError::Answered(format!("{what}: `{version}` is not a number")))
}

/// See the port.
pub(crate) async fn nodes(servers: &Servers) -> Result<Vec<ApiNode>, ApiError> {
    list(
        servers,
        "nodes",
        ListParams::default(),
        |client, page| async move { Api::<Node>::all(client).list(&page).await },
        |n| Some(api_node(&n)),
    )
    .await
}

/// See the port.
pub(crate) async fn pods_on(servers: &Servers, node: &NodeName) -> Result<Vec<Pod>, ApiError> {
    let what = format!("pods on {node}");
    let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let page = |client: Client, page: ListParams| async move { Api::<KubePod>::all(client).list(&page).await };
    let drafts = list(servers, &what, here, page, |p| Some(PodDraft::of(&p))).await?;
    let look = Look { servers, groups: Ok(Groups::default()) };
    let (nodes, volumes, claims) = tokio::join!(
        look.all::<Node, _>(None, |n| Some(api_node(&n))),
        look.all::<PersistentVolume, _>(None, |v| workload::node_bound(&v)),
        look.all::<PersistentVolumeClaim, _>(None, |c| workload::bound_to(&c)),
    );
    match workload::finish(Fact::Known(drafts), &nodes, claims, volumes) {
        Fact::Known(pods) => Ok(pods),
        Fact::Unknown(why) => Err(ApiError::Answered(format!("{what}: {why}"))),
    }
}

async fn kube_system(servers: &Servers) -> Result<PartialObjectMeta<Namespace>, ApiError> {
    let get = |client| async move { Api::<Namespace>::all(client).get_metadata("kube-system").await };
    servers.read("namespace kube-system", get).await
}

fn uid_of(kube_system: &PartialObjectMeta<Namespace>) -> Result<ClusterUid, ApiError> {
    let uid = kube_system.uid().filter(|uid| !uid.is_empty());
    uid.map(ClusterUid::new).ok_or_else(|| ApiError::Answered("namespace kube-system has no uid".to_owned()))
}

/// The API groups that are served, with the version each prefers.
#[derive(Default)]
struct Groups(BTreeMap<String, String>);

impl Groups {
    async fn ask(servers: &Servers) -> Result<Self, ApiError> {
        let list = |client: Client| async move { client.list_api_groups().await };
        let groups = servers.read("the API's groups", list).await?.groups;
        Ok(Self(groups.into_iter().filter_map(|g| Some((g.name, g.preferred_version?.version))).collect()))
    }
}

struct Look<'a> {
    servers: &'a Servers,
    groups: Result<Groups, String>,
}

impl Look<'_> {
    /// All objects of a kind, or those with a label.
    async fn all<K, T>(&self, label: Option<&str>, word: impl Fn(K) -> Option<T>) -> Fact<Vec<T>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let params = label.map_or_else(ListParams::default, |label| ListParams::default().labels(label));
        let page = |client: Client, page: ListParams| async move { Api::<K>::all(client).list(&page).await };
        list(self.servers, &K::plural(&()), params, page, word).await.into()
    }

    /// When each node's kubelet last renewed its Lease. Those that could not be had are left out.
    async fn node_leases(&self) -> BTreeMap<String, Timestamp> {
        let page = |client: Client, page: ListParams| async move {
            Api::<Lease>::namespaced(client, "kube-node-lease").list(&page).await
        };
        let leases = list(self.servers, "node leases", ListParams::default(), page, |lease: Lease| {
            Some((lease.metadata.name?, lease.spec?.renew_time?.0))
        });
        leases.await.unwrap_or_default().into_iter().collect()
    }

    /// From the labels of Helm's Secrets alone: what they hold does not leave the API server.
    async fn helm_releases(&self) -> Fact<Vec<HelmRelease>> {
        let params = ListParams::default().labels("owner=helm");
        let page =
            |client: Client, page: ListParams| async move { Api::<Secret>::all(client).list_metadata(&page).await };
        let revisions = list(self.servers, "secrets", params, page, |secret| surroundings::helm_revision(&secret));
        Fact::from(revisions.await).map(surroundings::newest_releases)
    }

    /// All objects of a kind that a CRD defines, in the version that its group prefers; none if it is not installed.
    async fn custom(&self, group: &str, kind: &str, plural: &str) -> Fact<Vec<DynamicObject>> {
        let groups = match &self.groups {
            Ok(groups) => groups,
            Err(why) => return Fact::unknown(why),
        };
        let Some(version) = groups.0.get(group) else {
            return Fact::Known(Vec::new());
        };
        let kind = &ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let page = |client: Client, page: ListParams| async move {
            Api::<DynamicObject>::all_with(client, kind).list(&page).await
        };
        match list(self.servers, &format!("{plural}.{group}"), ListParams::default(), page, Some).await {
            Err(ApiError::NotFound(_)) => Fact::Known(Vec::new()),
            other => other.into(),
        }
    }

    async fn lease(&self) -> Fact<Option<LeaseHolder>> {
        let get = |client| async move { Api::<Lease>::namespaced(client, "kube-system").get_opt(LEASE).await };
        let lease = self.servers.read("lease kube-system/kadence", get).await;
        lease.map(|lease| lease.and_then(|l| surroundings::lease_holder(&l))).into()
    }

    /// From the API server's metrics, which are long and sorted: read only as far as needed.
    async fn storage_size(&self) -> Fact<u64> {
        const METRIC: &str = "apiserver_storage_size_bytes";
        let scan = |client: Client| async move {
            let request = http::Request::get("/metrics").body(Vec::new()).map_err(kube::Error::HttpError)?;
            let lines = client.request_stream(request).await?.lines();
            pin_mut!(lines);
            while let Some(line) = lines.try_next().await.map_err(kube::Error::ReadEvents)? {
                if let Some(rest) = line.strip_prefix(METRIC) {
                    return Ok(surroundings::metric_value(rest));
                }
            }
            Ok(None)
        };
        match self.servers.read("the API server's metrics", scan).await {
            Ok(Some(bytes)) => Fact::Known(bytes),
            Ok(None) => Fact::unknown(format!("the API server has no metric {METRIC}")),
            Err(error) => Fact::unknown(error.to_string()),
        }
    }
}

/// Every page of a list, each turned into words before the next one is asked for.
async fn list<K, T, F>(
    servers: &Servers,
    what: &str,
    mut params: ListParams,
    page: impl Fn(Client, ListParams) -> F + Sync,
    word: impl Fn(K) -> Option<T>,
) -> Result<Vec<T>, ApiError>
where
    K: Clone,
    F: Future<Output = kube::Result<ObjectList<K>>> + Send,
{
    params.limit = Some(PAGE);
    let mut words = Vec::new();
    loop {
        let list = servers.read(what, |client| page(client, params.clone())).await?;
        words.extend(list.items.into_iter().filter_map(&word));
        params.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(words);
        }
    }
}
