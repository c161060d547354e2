//! The Kubernetes API of the simulated cluster.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use jiff::SignedDuration;
use kadence_core::apply::action::CordonWas;
use kadence_core::config::ConditionProbe;
use kadence_core::fact::Fact;
use kadence_core::ident::{ClusterUid, NodeName, RolloutId};
use kadence_core::inventory::{
    ApiFacts, ApiNode, Cordon, LeaseHolder, Mark, NodeObject, Pod, Storage, Surroundings, Webhook, Workload,
};
use kadence_engine::ports::{Api, ApiError, Eviction, Readyz};

use crate::hosts::ca_hash;
use crate::objects::{NodeRecord, Objects};
use crate::release::parts_of;
use crate::world::{Data, Effect, Handle, Place, State, UnitPhase};

/// How long a request waits for etcd to have a leader again.
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection to a host without power is waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The API, as the kubeconfig's user sees it.
#[derive(Clone)]
pub(crate) struct SimApi {
    handle: Handle,
    route: Arc<Mutex<Route>>,
}

/// Which servers are known, and which one answered last.
#[derive(Default)]
struct Route {
    servers: Vec<String>,
    last: Option<NodeName>,
}

/// Whom a request got through to.
enum Reached {
    Server(NodeName),
    /// Servers are up and etcd has no leader.
    NoLeader,
    Nobody {
        /// A host without power was waited for.
        silent: bool,
    },
}

impl SimApi {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, route: Arc::default() }
    }

    fn route(&self) -> (Vec<String>, Option<NodeName>) {
        let route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        (route.servers.clone(), route.last.clone())
    }

    /// Performs a request at the first server that answers.
    async fn request<R: Send>(
        &self,
        name: &'static str,
        millis: u64,
        work: impl FnOnce(&mut State, &Place) -> Result<R, ApiError> + Send,
    ) -> Result<R, ApiError> {
        self.handle.enter(name, Duration::from_millis(millis)).await;
        let result = match self.server().await {
            Ok(server) => self.handle.world().look(|s| match s.place_of(&server) {
                Some(place) => work(s, &place),
                None => Err(ApiError::NoWay(format!("{server} has no datastore"))),
            }),
            Err(error) => Err(error),
        };
        self.handle.leave().await;
        result
    }

    async fn server(&self) -> Result<NodeName, ApiError> {
        let (servers, last) = self.route();
        let give_up = self.handle.world().age() + LEADER_TIMEOUT;
        loop {
            match self.handle.world().look(|s| s.route(&servers, last.as_ref())) {
                Reached::Server(node) => {
                    self.route.lock().unwrap_or_else(PoisonError::into_inner).last = Some(node.clone());
                    return Ok(node);
                }
                Reached::NoLeader if self.handle.world().age() < give_up => {
                    self.handle
                        .world()
                        .wait(Some(give_up), |s| match s.route(&servers, last.as_ref()) {
                            Reached::NoLeader => None,
                            _ => Some(()),
                        })
                        .await;
                }
                Reached::NoLeader => return Err(ApiError::NoWay("etcdserver: request timed out".to_owned())),
                Reached::Nobody { silent } => {
                    if silent {
                        tokio::time::sleep(CONNECT_TIMEOUT).await;
                    }
                    return Err(ApiError::NoWay("connection refused by every server".to_owned()));
                }
            }
        }
    }

    /// One probe of the outage's measurement: cheap, and not counted as a call.
    async fn probe(&self, address: &str) -> Result<(), ApiError> {
        let world = self.handle.world();
        let ask = |s: &State| match s.by_address(address) {
            _ if s.api_away => Some(false),
            Some(m) if m.power && m.api_up => s.serves(&m.name).then_some(true),
            _ => Some(false),
        };
        // Ten of these come in every second: the usual answer needs no timer.
        let mut answered = world.look(|s| ask(s));
        if answered.is_none() {
            answered = world.wait(Some(world.age() + LEADER_TIMEOUT), |s| ask(s)).await;
        }
        self.handle.alive().await;
        match answered {
            Some(true) => Ok(()),
            Some(false) => Err(ApiError::NoWay(format!("{address}: connection refused"))),
            None => Err(ApiError::Answered("etcdserver: request timed out".to_owned())),
        }
    }
}

#[async_trait]
impl Api for SimApi {
    fn learn_servers(&self, addresses: &[String]) {
        self.route.lock().unwrap_or_else(PoisonError::into_inner).servers = addresses.to_vec();
    }

    async fn facts(&self) -> Result<ApiFacts, ApiError> {
        self.request("api facts", 60, |s, place| s.api_facts(place)).await
    }

    async fn uid(&self) -> Result<ClusterUid, ApiError> {
        self.request("uid", 8, |s, place| s.with(place, |o| o.uid.clone())).await
    }

    async fn revision(&self) -> Result<u64, ApiError> {
        self.request("revision", 8, |s, place| s.with(place, |o| o.revision)).await
    }

    async fn nodes(&self) -> Result<Vec<ApiNode>, ApiError> {
        self.request("nodes", 12, |s, place| Ok(s.api_nodes(place))).await
    }

    fn watch_node(&self, node: &NodeName) -> BoxStream<'static, ApiNode> {
        let start = (self.clone(), node.clone(), None::<(Place, u64)>);
        Box::pin(stream::unfold(start, |(api, node, mut seen)| async move {
            let world = api.handle.world().clone();
            let item = world
                .wait(None, |s| {
                    let (servers, last) = api.route();
                    let Reached::Server(server) = s.route(&servers, last.as_ref()) else { return None };
                    let place = s.place_of(&server)?;
                    let changes = s.objects(&place)?.nodes.get(&node)?.changes;
                    if seen.as_ref() == Some(&(place.clone(), changes)) {
                        return None;
                    }
                    seen = Some((place.clone(), changes));
                    s.api_node(&place, &node)
                })
                .await?;
            api.handle.alive().await;
            Some((item, (api, node, seen)))
        }))
    }

    async fn ready(&self, address: &str) -> Result<Readyz, ApiError> {
        let name = self.handle.world().look(|s| s.by_address(address).map(|m| m.name.clone()));
        self.handle
            .port("readyz", Duration::from_millis(8), |s| {
                let no_way = |why: &str| Err(ApiError::NoWay(format!("{address}: {why}")));
                let Some(node) = name else { return no_way("no such host") };
                let machine = &s.machines[&node];
                if s.api_away || !machine.power {
                    return no_way("timed out");
                }
                if !machine.api_up {
                    return match machine.unit {
                        UnitPhase::Starting if machine.etcd_up => {
                            Ok(Readyz::NotReady(vec!["[-]etcd failed: reason withheld".to_owned()]))
                        }
                        _ => no_way("connection refused"),
                    };
                }
                if s.serves(&node) {
                    return Ok(Readyz::Ready);
                }
                Ok(Readyz::NotReady(vec!["[-]etcd failed: reason withheld".to_owned()]))
            })
            .await
    }

    async fn cordon(&self, node: &NodeName, mark: &Mark) -> Result<CordonWas, ApiError> {
        self.request("cordon", 10, |s, place| s.cordon(place, node, mark)).await
    }

    async fn uncordon(&self, node: &NodeName, rollout: &RolloutId) -> Result<bool, ApiError> {
        self.request("uncordon", 10, |s, place| s.uncordon(place, node, rollout)).await
    }

    async fn pods_on(&self, node: &NodeName) -> Result<Vec<Pod>, ApiError> {
        self.request("pods", 15, |s, place| {
            s.with(place, |o| {
                o.pods.values().filter(|p| p.pod.node.as_ref() == Some(node)).map(|p| p.pod.clone()).collect()
            })
        })
        .await
    }

    async fn evict(&self, pod: &Pod, dry_run: bool) -> Result<Eviction, ApiError> {
        self.request("evict", 12, |s, place| s.evict(place, pod, dry_run)).await
    }

    async fn probe_read(&self, address: &str) -> Result<(), ApiError> {
        self.probe(address).await
    }

    async fn probe_write(&self, address: &str) -> Result<(), ApiError> {
        self.probe(address).await
    }

    async fn announce(&self, holder: Option<&LeaseHolder>) -> Result<(), ApiError> {
        self.request("announce", 10, |s, place| {
            s.with(place, |o| {
                o.lease = holder.cloned();
                o.revision += 1;
            })
        })
        .await
    }

    async fn condition(&self, probe: &ConditionProbe) -> Result<bool, ApiError> {
        self.request("condition", 10, |s, place| s.condition(place, probe)).await
    }

    async fn restart_controllers(&self) -> Result<Vec<String>, ApiError> {
        self.request("restart controllers", 40, |s, place| {
            let chosen: Vec<(usize, String)> = s.with(place, |o| {
                let restarted = |namespace: &str| matches!(namespace, "kube-system" | "cert-manager");
                o.controllers
                    .iter()
                    .enumerate()
                    .filter(|(_, c)| restarted(c.namespace))
                    .map(|(i, c)| (i, format!("{}/{}", c.namespace, c.name)))
                    .collect()
            })?;
            for (controller, _) in &chosen {
                s.roll(place, *controller);
            }
            s.note("controllers are restarted");
            Ok(chosen.into_iter().map(|(_, name)| name).collect())
        })
        .await
    }
}

impl State {
    /// The server that a request gets to: the one that answered last, else the known ones in order. Before any is
    /// known, the kubeconfig's: the first.
    fn route(&self, servers: &[String], last: Option<&NodeName>) -> Reached {
        if self.api_away {
            return Reached::Nobody { silent: true };
        }
        let known = servers.iter().filter_map(|a| self.by_address(a)).map(|m| &m.name);
        let first = self.machines.keys().find(|n| n.as_str() == "s1").filter(|_| servers.is_empty());
        let (mut no_leader, mut silent) = (false, false);
        for node in last.into_iter().chain(known).chain(first) {
            let machine = &self.machines[node];
            if self.serves(node) {
                return Reached::Server(node.clone());
            }
            no_leader |= machine.power && machine.api_up;
            silent |= !machine.power;
        }
        if no_leader { Reached::NoLeader } else { Reached::Nobody { silent } }
    }

    fn with<R>(&mut self, place: &Place, work: impl FnOnce(&mut Objects) -> R) -> Result<R, ApiError> {
        self.objects_mut(place).map(work).ok_or_else(|| ApiError::NoWay("the datastore is gone".to_owned()))
    }

    // ---------------------------------------------------------------------------------------------------- nodes

    pub(crate) fn api_node(&self, place: &Place, node: &NodeName) -> Option<ApiNode> {
        let record = self.objects(place)?.nodes.get(node)?;
        let machine = self.machines.get(node);
        let label = |key: &str| record.labels.contains_key(key);
        let (control_plane, etcd_label) =
            (label("node-role.kubernetes.io/control-plane"), label("node-role.kubernetes.io/etcd"));
        let etcd_member = machine.and_then(|m| match m.data {
            Data::Etcd { cluster, member } => self.etcds.get(&cluster)?.members.get(&member).map(|m| m.name.clone()),
            _ => None,
        });
        let ready = match record.ready {
            Some(ready) => Fact::Known(ready),
            // `Unknown` in the condition is an answer: the node controller's, that the kubelet is not heard of.
            None => Fact::Known(false),
        };
        Some(ApiNode {
            name: node.clone(),
            uid: record.uid.clone(),
            control_plane,
            etcd_label,
            version: Fact::Known(record.version.clone()),
            ready,
            // The API keeps whole seconds.
            reported: Fact::Known(self.node_clock(Duration::from_secs(record.reported.as_secs()))),
            internal_ip: machine.map(|m| m.address.clone()),
            arch: machine.map_or_else(|| Fact::unknown("it is gone"), |m| Fact::Known(m.arch)),
            etcd_member,
            object: NodeObject {
                labels: record.labels.clone(),
                taints: taints(record),
                cordon: cordon(record),
                pressures: Vec::new(),
                machine_id: machine.map(|m| m.machine_id.clone()).unwrap_or_default(),
                boot_id: record.boot_id.clone(),
                kernel: "6.12.0-simulated".to_owned(),
                os_image: "Debian GNU/Linux 13 (trixie)".to_owned(),
                runtime: format!("containerd://{}", parts_of(&record.version).containerd),
                args: machine.map(|m| crate::hosts::recorded_arguments(m, self.topology.datastore)).unwrap_or_default(),
                config_hash: Some(record.config_hash.clone()),
                encryption_hash: control_plane.then(|| "start-0000".to_owned()),
                lease_age: Some(SignedDuration::from_secs(if record.ready == Some(true) { 3 } else { 45 })),
            },
        })
    }

    fn api_nodes(&self, place: &Place) -> Vec<ApiNode> {
        let names = self.objects(place).map(|o| o.nodes.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        names.iter().filter_map(|n| self.api_node(place, n)).collect()
    }

    pub(crate) fn cordon(&mut self, place: &Place, node: &NodeName, mark: &Mark) -> Result<CordonWas, ApiError> {
        let Some(record) = self.objects(place).and_then(|o| o.nodes.get(node)) else {
            return Err(ApiError::NotFound(format!("node {node}")));
        };
        if record.cordoned {
            let ours = record.mark.as_ref().is_some_and(|m| same_family(&m.rollout, &mark.rollout));
            return Ok(if ours { CordonWas::OurMark } else { CordonWas::Foreign });
        }
        self.with(place, |o| {
            o.change(node, |record| {
                record.cordoned = true;
                record.mark = Some(mark.clone());
            });
        })?;
        self.in_hand = Some(node.clone());
        self.note(format!("{node}: cordoned"));
        self.judge_cordon(node, &mark.rollout);
        Ok(CordonWas::Open)
    }

    pub(crate) fn uncordon(&mut self, place: &Place, node: &NodeName, rollout: &RolloutId) -> Result<bool, ApiError> {
        let Some(record) = self.objects(place).and_then(|o| o.nodes.get(node)) else {
            return Err(ApiError::NotFound(format!("node {node}")));
        };
        match &record.mark {
            None => return Ok(true),
            Some(mark) if !same_family(&mark.rollout, rollout.as_str()) => return Ok(false),
            Some(_) => {}
        }
        let waiting = self.with(place, |o| {
            o.change(node, |record| {
                record.cordoned = false;
                record.mark = None;
            });
            o.schedule_pending()
        })?;
        for uid in waiting {
            self.after_millis(2000, 5000, Effect::PodReady { place: place.clone(), uid });
        }
        self.note(format!("{node}: uncordoned"));
        Ok(true)
    }

    // ------------------------------------------------------------------------------------------------ workloads

    pub(crate) fn evict(&mut self, place: &Place, pod: &Pod, dry_run: bool) -> Result<Eviction, ApiError> {
        let Some(objects) = self.objects(place) else {
            return Err(ApiError::NoWay("the datastore is gone".to_owned()));
        };
        let Some(record) = objects.pods.get(&pod.uid).cloned() else { return Ok(Eviction::Gone) };
        if record.pod.terminating {
            return Ok(Eviction::Accepted);
        }
        let name = format!("{}/{}", pod.namespace, pod.name);
        let budgets: Vec<_> = objects.budgets().into_iter().filter(|b| b.pods.contains(&name)).collect();
        if budgets.len() > 1 {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Ok(Eviction::TooManyBudgets(why.to_owned()));
        }
        if let Some(budget) = budgets.iter().find(|b| b.disruptions_allowed == 0) {
            let why = "Cannot evict pod as it would violate the pod's disruption budget.";
            return Ok(Eviction::Blocked(format!("{why} ({})", budget.name)));
        }
        if dry_run {
            return Ok(Eviction::Accepted);
        }
        let replacement = self.with(place, |o| {
            o.revision += 1;
            if let Some(going) = o.pods.get_mut(&pod.uid) {
                going.pod.terminating = true;
                going.pod.ready = false;
            }
            // A StatefulSet waits until the name is free.
            (record.pod.owner.as_deref() == Some("ReplicaSet")).then(|| o.replace_pod(&record))
        })?;
        self.note(format!("{name} is evicted"));
        self.after_millis(1000, 4000, Effect::PodGone { place: place.clone(), uid: pod.uid.clone(), grow: false });
        if let Some(uid) = replacement {
            self.after_millis(2500, 6000, Effect::PodReady { place: place.clone(), uid });
        }
        Ok(Eviction::Accepted)
    }

    fn condition(&mut self, place: &Place, probe: &ConditionProbe) -> Result<bool, ApiError> {
        let missing = || ApiError::NotFound(format!("{} {}", probe.kind, probe.name));
        let Some(objects) = self.objects(place) else { return Err(missing()) };
        match (probe.kind.as_str(), probe.condition.as_str()) {
            ("Node", "Ready") => {
                let node = objects.nodes.get(&NodeName::new(&*probe.name)).ok_or_else(missing)?;
                Ok(node.ready == Some(true))
            }
            ("Deployment", "Available") => {
                let namespace = probe.namespace.as_deref().unwrap_or("default");
                let fits = |c: &kadence_core::inventory::Controller| c.namespace == namespace && c.name == probe.name;
                let controller = objects.controllers().into_iter().find(fits).ok_or_else(missing)?;
                Ok(controller.available >= controller.desired)
            }
            _ => Err(missing()),
        }
    }

    fn api_facts(&mut self, place: &Place) -> Result<ApiFacts, ApiError> {
        let nodes = self.api_nodes(place);
        let endpoints: Vec<String> = self
            .machines
            .values()
            .filter(|m| self.serves(&m.name) && self.place_of(&m.name).as_ref() == Some(place))
            .map(|m| m.address.clone())
            .collect();
        let newest_snapshot = self
            .machines
            .values()
            .flat_map(|m| m.folder.files.keys())
            .filter(|path| path.contains("/db/snapshots/"))
            .filter_map(|path| jiff::Timestamp::from_second(path.rsplit('-').next()?.parse().ok()?).ok())
            .max();
        self.with(place, |objects| ApiFacts {
            uid: Fact::Known(objects.uid.clone()),
            ca_hash: Fact::Known(ca_hash()),
            nodes: Fact::Known(nodes),
            endpoints: Fact::Known(endpoints),
            workload: Workload {
                controllers: Fact::Known(objects.controllers()),
                pods: Fact::Known(objects.pods.values().map(|p| p.pod.clone()).collect()),
                budgets: Fact::Known(objects.budgets()),
                services: Fact::Known(objects.services()),
            },
            surroundings: Surroundings {
                webhooks: Fact::Known(webhooks(objects)),
                broken_api_services: Fact::Known(Vec::new()),
                packaged: Fact::Known(objects.packaged()),
                helm_releases: Fact::Known(objects.helm_releases()),
                chart_configs: Fact::Known(Vec::new()),
                storage: Fact::Known(Storage::default()),
                managers: Fact::Known(Vec::new()),
                newest_snapshot: Fact::Known(newest_snapshot),
                lease: Fact::Known(objects.lease.clone()),
                storage_size: Fact::Known(41_000_000),
            },
        })
    }
}

fn same_family(one: &str, other: &str) -> bool {
    RolloutId::new(one).family() == RolloutId::new(other).family()
}

fn cordon(record: &NodeRecord) -> Cordon {
    match (&record.mark, record.cordoned) {
        (_, false) => Cordon::None,
        (Some(mark), true) => Cordon::Ours { mark: mark.clone() },
        (None, true) => Cordon::Foreign,
    }
}

/// The taints that somebody set, and those that the node controller derives from the node's state.
fn taints(record: &NodeRecord) -> Vec<String> {
    let mut taints = record.taints.clone();
    if record.cordoned {
        taints.insert("node.kubernetes.io/unschedulable:NoSchedule".to_owned());
    }
    match record.ready {
        Some(true) => {}
        Some(false) => {
            taints.insert("node.kubernetes.io/not-ready:NoSchedule".to_owned());
        }
        None => {
            taints.insert("node.kubernetes.io/unreachable:NoSchedule".to_owned());
        }
    }
    taints.into_iter().collect()
}

/// The admission webhook of the workload: it fails closed, and spares `kube-system`.
pub(crate) fn webhooks(objects: &Objects) -> Vec<Webhook> {
    let Some(index) = objects.controllers.iter().position(|c| c.namespace == "policy" && c.name == "admission") else {
        return Vec::new();
    };
    let ready_on = objects.pods_of(index).filter(|p| p.pod.ready).filter_map(|p| p.pod.node.clone()).collect();
    vec![Webhook {
        name: "policy/admission.policy.svc".to_owned(),
        resources: vec!["pods".to_owned()],
        service: Some("policy/admission".to_owned()),
        ready_on: Fact::Known(ready_on),
        spares_kube_system: true,
    }]
}
