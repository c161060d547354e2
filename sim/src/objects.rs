//! What a cluster's datastore holds: nodes, workloads, packaged components. It is what a snapshot takes along and a
//! restore brings back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kadence_core::ident::{ClusterUid, NodeName};
use kadence_core::inventory::{
    Budget, Controller, ControllerKind, HelmRelease, LeaseHolder, Mark, Packaged, PackagedKind, Pod, PodPhase, Role,
};
use kadence_core::version::Version;

use crate::release::parts_of;

#[derive(Clone, Debug)]
pub(crate) struct Objects {
    pub(crate) uid: ClusterUid,
    pub(crate) revision: u64,
    /// Until when the revision includes the writes that a cluster makes all the time.
    touched: Duration,
    pub(crate) nodes: BTreeMap<NodeName, NodeRecord>,
    pub(crate) controllers: Vec<ControllerSpec>,
    /// By uid.
    pub(crate) pods: BTreeMap<String, PodRecord>,
    pub(crate) budgets: Vec<BudgetSpec>,
    pub(crate) packaged: PackagedState,
    pub(crate) lease: Option<LeaseHolder>,
    minted: u64,
}

/// A Node object.
#[derive(Clone, Debug)]
pub(crate) struct NodeRecord {
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Taints that somebody set; those of the node controller follow from the state.
    pub(crate) taints: BTreeSet<String>,
    pub(crate) cordoned: bool,
    pub(crate) mark: Option<Mark>,
    /// What the kubelet said when it registered last.
    pub(crate) version: Version,
    pub(crate) boot_id: String,
    pub(crate) config_hash: String,
    /// `None` is `Unknown`: the node's lease ran out.
    pub(crate) ready: Option<bool>,
    /// When its kubelet said so.
    pub(crate) reported: Duration,
    /// Grows with every change, as a resourceVersion does.
    pub(crate) changes: u64,
}

/// A Deployment, StatefulSet or DaemonSet, with what its pods look like.
#[derive(Clone, Debug)]
pub(crate) struct ControllerSpec {
    pub(crate) kind: ControllerKind,
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    /// For a DaemonSet the number of nodes.
    pub(crate) desired: u32,
    pub(crate) image: Image,
    pub(crate) storage: Storage,
    pub(crate) service: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    Fixed(&'static str),
    /// The image that the packaged components' version brings.
    Packaged(Component),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Coredns,
    MetricsServer,
    LocalPath,
    Traefik,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    None,
    EmptyDir,
    /// A local-path claim: bound to the node on which it was first used.
    NodeBound,
}

#[derive(Clone, Debug)]
pub(crate) struct PodRecord {
    pub(crate) pod: Pod,
    /// Index into the controllers.
    pub(crate) controller: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct BudgetSpec {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    /// The controller whose pods it covers.
    pub(crate) covers: &'static str,
    pub(crate) min_available: u32,
    /// A planted fault: it never allows anything.
    pub(crate) stuck: bool,
}

/// The packaged components, as the server that started last has put them.
#[derive(Clone, Debug)]
pub(crate) struct PackagedState {
    pub(crate) version: Version,
    pub(crate) settled: bool,
    pub(crate) helm_revision: u32,
}

/// What runs in a simulated cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Workload {
    /// Only K3s's own components.
    Bare,
    /// A shop with payments and monitoring: 17 controllers, budgets, data bound to nodes, a webhook.
    #[default]
    Shop,
}

/// How many writes a second a cluster makes by itself: leases, statuses, events.
const IDLE_WRITES_PER_SECOND: u64 = 4;

impl Objects {
    pub(crate) fn new(
        uid: &str,
        now: Duration,
        version: &Version,
        workload: Workload,
        machines: &[(NodeName, Role, String)],
    ) -> Self {
        let mut objects = Self {
            uid: ClusterUid::new(uid),
            revision: 10_000,
            touched: now,
            nodes: BTreeMap::new(),
            controllers: controllers(workload),
            pods: BTreeMap::new(),
            budgets: budgets(workload),
            packaged: PackagedState { version: version.clone(), settled: true, helm_revision: 1 },
            lease: None,
            minted: 0,
        };
        for (name, role, config_hash) in machines {
            objects.add_node(name, *role, version, "", config_hash);
        }
        objects.schedule_all();
        objects
    }

    pub(crate) fn add_node(
        &mut self,
        name: &NodeName,
        role: Role,
        version: &Version,
        boot_id: &str,
        config_hash: &str,
    ) {
        let mut labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_string())]);
        if role == Role::Server {
            labels.insert("node-role.kubernetes.io/control-plane".to_owned(), "true".to_owned());
        }
        self.minted += 1;
        let record = NodeRecord {
            uid: format!("node-uid-{name}-{}", self.minted),
            labels,
            taints: BTreeSet::new(),
            cordoned: false,
            mark: None,
            version: version.clone(),
            boot_id: boot_id.to_owned(),
            config_hash: config_hash.to_owned(),
            ready: Some(true),
            // The world begins in the middle: its kubelets have reported since they were started.
            reported: self.touched + Duration::from_secs(1),
            changes: 1,
        };
        self.nodes.insert(name.clone(), record);
    }

    /// The revision now; it grows by itself while the datastore takes writes.
    pub(crate) fn touch(&mut self, now: Duration, writable: bool) -> u64 {
        let seconds = now.as_secs().saturating_sub(self.touched.as_secs());
        if writable {
            self.revision += seconds * IDLE_WRITES_PER_SECOND;
        }
        self.touched = now;
        self.revision
    }

    pub(crate) fn change(&mut self, node: &NodeName, change: impl FnOnce(&mut NodeRecord)) {
        self.revision += 1;
        if let Some(record) = self.nodes.get_mut(node) {
            record.changes += 1;
            change(record);
        }
    }

    fn schedule_all(&mut self) {
        for index in 0..self.controllers.len() {
            if self.controllers[index].kind == ControllerKind::DaemonSet {
                self.controllers[index].desired = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
                for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
                    self.create_pod(index, Some(node), true);
                }
            } else {
                for _ in 0..self.controllers[index].desired {
                    let node = self.place(index, None);
                    self.create_pod(index, node, true);
                }
            }
        }
    }

    /// The node a new pod of this controller would be put on: apart from its like, then on an agent, then where the
    /// fewest pods are.
    fn place(&self, controller: usize, pinned: Option<&[NodeName]>) -> Option<NodeName> {
        let load = |node: &NodeName, record: &NodeRecord| {
            let on = self.pods.values().filter(|p| p.pod.node.as_ref() == Some(node) && !p.pod.terminating);
            let (mut like, mut all) = (0, 0);
            for pod in on {
                like += usize::from(pod.controller == controller);
                all += 1;
            }
            (like, record.labels.contains_key("node-role.kubernetes.io/control-plane"), all)
        };
        self.nodes
            .iter()
            .filter(|(name, record)| {
                !record.cordoned && record.ready == Some(true) && pinned.is_none_or(|p| p.contains(name))
            })
            .min_by_key(|(name, record)| load(name, record))
            .map(|(name, _)| name.clone())
    }

    pub(crate) fn create_pod(&mut self, controller: usize, node: Option<NodeName>, ready: bool) -> String {
        self.minted += 1;
        self.revision += 2;
        let spec = &self.controllers[controller];
        let uid = format!("pod-uid-{}", self.minted);
        let name = match spec.kind {
            ControllerKind::StatefulSet => {
                let taken: BTreeSet<&str> = self.pods_of(controller).map(|p| p.pod.name.as_str()).collect();
                (0_u32..)
                    .map(|n| format!("{}-{n}", spec.name))
                    .find(|n| !taken.contains(n.as_str()))
                    .unwrap_or_default()
            }
            _ => format!("{}-{:05x}", spec.name, self.minted),
        };
        let bound = spec.storage == Storage::NodeBound;
        let pod = Pod {
            namespace: spec.namespace.to_owned(),
            name: name.clone(),
            uid: uid.clone(),
            node: node.clone(),
            labels: BTreeMap::from([("app".to_owned(), spec.name.to_owned())]),
            phase: if node.is_some() && ready { PodPhase::Running } else { PodPhase::Pending },
            owner: Some(
                match spec.kind {
                    ControllerKind::Deployment => "ReplicaSet",
                    ControllerKind::StatefulSet => "StatefulSet",
                    ControllerKind::DaemonSet => "DaemonSet",
                }
                .to_owned(),
            ),
            mirror: false,
            ready: node.is_some() && ready,
            restarts: 0,
            waiting: Vec::new(),
            terminating: false,
            empty_dirs: if spec.storage == Storage::EmptyDir { vec!["cache".to_owned()] } else { Vec::new() },
            node_bound_claims: if bound { vec![format!("data-{name}")] } else { Vec::new() },
            host_network: spec.kind == ControllerKind::DaemonSet && spec.name == "node-exporter",
            pinned_to: if bound { node.map(|n| vec![n]) } else { None },
            tolerates_unschedulable: spec.kind == ControllerKind::DaemonSet,
            grace_seconds: 30,
        };
        self.pods.insert(uid.clone(), PodRecord { pod, controller });
        uid
    }

    /// The controller makes up for a pod that is going. A node-bound one waits for its node.
    pub(crate) fn replace_pod(&mut self, old: &PodRecord) -> String {
        let pinned = old.pod.pinned_to.clone();
        let node = self.place(old.controller, pinned.as_deref());
        let uid = self.create_pod(old.controller, node, false);
        if let Some(record) = self.pods.get_mut(&uid) {
            record.pod.pinned_to = pinned;
        }
        uid
    }

    /// Puts pods that wait for a node on one, if one has room now; returns the uids of those that start.
    pub(crate) fn schedule_pending(&mut self) -> Vec<String> {
        let waiting: Vec<String> =
            self.pods.iter().filter(|(_, p)| p.pod.node.is_none()).map(|(uid, _)| uid.clone()).collect();
        let mut placed = Vec::new();
        for uid in waiting {
            let Some(record) = self.pods.get(&uid) else { continue };
            let node = self.place(record.controller, record.pod.pinned_to.as_deref());
            if node.is_none() {
                continue;
            }
            if let Some(record) = self.pods.get_mut(&uid) {
                record.pod.node = node;
                placed.push(uid);
            }
        }
        placed
    }

    pub(crate) fn pods_of(&self, controller: usize) -> impl Iterator<Item = &PodRecord> {
        self.pods.values().filter(move |p| p.controller == controller)
    }

    fn healthy(&self, controller: usize) -> u32 {
        let healthy = self.pods_of(controller).filter(|p| p.pod.ready && !p.pod.terminating).count();
        u32::try_from(healthy).unwrap_or(u32::MAX)
    }

    pub(crate) fn image(&self, image: Image) -> String {
        let parts = parts_of(&self.packaged.version);
        match image {
            Image::Fixed(text) => text.to_owned(),
            Image::Packaged(Component::Coredns) => format!("rancher/mirrored-coredns-coredns:{}", parts.coredns),
            Image::Packaged(Component::MetricsServer) => {
                format!("rancher/mirrored-metrics-server:v{}", parts.metrics_server)
            }
            Image::Packaged(Component::LocalPath) => format!("rancher/local-path-provisioner:v{}", parts.local_path),
            Image::Packaged(Component::Traefik) => format!("rancher/mirrored-library-traefik:{}", parts.traefik),
        }
    }

    pub(crate) fn controllers(&self) -> Vec<Controller> {
        self.controllers
            .iter()
            .enumerate()
            .map(|(index, spec)| Controller {
                kind: spec.kind,
                namespace: spec.namespace.to_owned(),
                name: spec.name.to_owned(),
                desired: spec.desired,
                available: self.healthy(index),
                images: vec![self.image(spec.image)],
                observed: true,
            })
            .collect()
    }

    /// The names of controllers that have fewer available pods than they want.
    pub(crate) fn short_of_pods(&self) -> Vec<String> {
        (0..self.controllers.len())
            .filter(|&i| self.healthy(i) < self.controllers[i].desired)
            .map(|i| format!("{}/{}", self.controllers[i].namespace, self.controllers[i].name))
            .collect()
    }

    pub(crate) fn budgets(&self) -> Vec<Budget> {
        self.budgets
            .iter()
            .map(|spec| {
                let pods = || {
                    self.pods.values().filter(|p| {
                        let of = &self.controllers[p.controller];
                        of.namespace == spec.namespace && of.name == spec.covers
                    })
                };
                let healthy = pods().filter(|p| p.pod.ready && !p.pod.terminating).count();
                let healthy = u32::try_from(healthy).unwrap_or(u32::MAX);
                Budget {
                    namespace: spec.namespace.to_owned(),
                    name: spec.name.to_owned(),
                    disruptions_allowed: if spec.stuck { 0 } else { healthy.saturating_sub(spec.min_available) },
                    expected_pods: u32::try_from(pods().count()).unwrap_or(u32::MAX),
                    pods: pods().map(|p| format!("{}/{}", p.pod.namespace, p.pod.name)).collect(),
                }
            })
            .collect()
    }

    pub(crate) fn services(&self) -> BTreeMap<String, u32> {
        self.controllers
            .iter()
            .enumerate()
            .filter(|(index, spec)| spec.service && self.healthy(*index) > 0)
            .map(|(index, spec)| (format!("{}/{}", spec.namespace, spec.name), self.healthy(index)))
            .collect()
    }

    pub(crate) fn packaged(&self) -> Vec<Packaged> {
        let state = &self.packaged;
        let addon = |name: &str, component| Packaged {
            kind: PackagedKind::Addon,
            name: name.to_owned(),
            version: kadence_core::ident::Digest::of(self.image(Image::Packaged(component)).as_bytes()).to_string(),
            settled: true,
            detail: self.image(Image::Packaged(component)),
        };
        let chart = |name: &str| Packaged {
            kind: PackagedKind::HelmChart,
            name: name.to_owned(),
            version: parts_of(&state.version).traefik.to_owned(),
            settled: state.settled,
            detail: if state.settled { "deployed" } else { "its install job runs" }.to_owned(),
        };
        vec![
            addon("coredns", Component::Coredns),
            addon("local-storage", Component::LocalPath),
            addon("metrics-server", Component::MetricsServer),
            chart("traefik"),
            chart("traefik-crd"),
        ]
    }

    pub(crate) fn helm_releases(&self) -> Vec<HelmRelease> {
        let status = if self.packaged.settled { "deployed" } else { "pending-upgrade" };
        ["traefik", "traefik-crd"]
            .map(|name| HelmRelease {
                namespace: "kube-system".to_owned(),
                name: name.to_owned(),
                revision: self.packaged.helm_revision,
                status: status.to_owned(),
            })
            .to_vec()
    }
}

fn controllers(workload: Workload) -> Vec<ControllerSpec> {
    use ControllerKind::{DaemonSet, Deployment, StatefulSet};
    let spec = |kind, namespace, name, desired, image, storage, service| ControllerSpec {
        kind,
        namespace,
        name,
        desired,
        image,
        storage,
        service,
    };
    let fixed = Image::Fixed;
    let packaged = Image::Packaged;
    let mut all = vec![
        spec(Deployment, "kube-system", "coredns", 1, packaged(Component::Coredns), Storage::None, true),
        spec(
            Deployment,
            "kube-system",
            "local-path-provisioner",
            1,
            packaged(Component::LocalPath),
            Storage::None,
            false,
        ),
        spec(Deployment, "kube-system", "metrics-server", 1, packaged(Component::MetricsServer), Storage::None, true),
        spec(Deployment, "kube-system", "traefik", 1, packaged(Component::Traefik), Storage::None, true),
        spec(DaemonSet, "kube-system", "svclb-traefik", 0, fixed("rancher/klipper-lb:v0.4.13"), Storage::None, false),
    ];
    if workload == Workload::Shop {
        all.extend([
            spec(Deployment, "shop", "web", 3, fixed("shop/web:8.1.0"), Storage::None, true),
            spec(Deployment, "shop", "api", 3, fixed("shop/api:8.1.0"), Storage::None, true),
            spec(Deployment, "shop", "cart", 2, fixed("shop/cart:3.4.2"), Storage::None, true),
            spec(Deployment, "shop", "worker", 2, fixed("shop/worker:8.1.0"), Storage::EmptyDir, false),
            spec(StatefulSet, "shop", "search", 1, fixed("opensearch:3.2.0"), Storage::EmptyDir, true),
            spec(Deployment, "payments", "gateway", 2, fixed("payments/gateway:2.0.7"), Storage::None, true),
            spec(StatefulSet, "payments", "ledger", 1, fixed("postgres:17.6"), Storage::NodeBound, true),
            spec(StatefulSet, "monitoring", "prometheus", 1, fixed("prometheus:v3.7.1"), Storage::EmptyDir, true),
            spec(DaemonSet, "monitoring", "node-exporter", 0, fixed("node-exporter:v1.9.1"), Storage::None, false),
            spec(Deployment, "monitoring", "grafana", 1, fixed("grafana:12.2.0"), Storage::EmptyDir, true),
            spec(Deployment, "cert-manager", "cert-manager", 1, fixed("cert-manager:v1.19.0"), Storage::None, false),
            spec(Deployment, "policy", "admission", 2, fixed("policy/admission:1.15.2"), Storage::None, true),
        ]);
    }
    all
}

fn budgets(workload: Workload) -> Vec<BudgetSpec> {
    let spec =
        |namespace, name, covers, min_available| BudgetSpec { namespace, name, covers, min_available, stuck: false };
    match workload {
        Workload::Bare => Vec::new(),
        Workload::Shop => vec![
            spec("shop", "web", "web", 2),
            spec("shop", "api", "api", 2),
            spec("payments", "gateway", "gateway", 1),
            spec("policy", "admission", "admission", 1),
        ],
    }
}
