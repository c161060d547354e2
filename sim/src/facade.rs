//! The simulated world spoken as Kubernetes API over TLS: `kubectl` and Kadence's own adapter work against it.
//!
//! Each server of the world has an address of its own on the loopback, with one port for all; who asks for one that is
//! down is refused. The world's objects are put into a store of JSON objects whenever somebody looks, and what clients
//! write is done to the world: cordons with their marks, labels, taints, evictions, restarts of controllers, the Lease.
//! Objects that clients make are kept beside them, and Deployments among those get pods.
//!
//! What clients cannot do to the world: delete its pods and nodes, change its workloads. Such a write is undone at
//! the next look. A host without power refuses connections, where a real one would be silent. Times are those of the
//! machine that this runs on, and its CA is made anew, so that hosts of the same world belong to another one. It needs a
//! clock that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use kadence_core::ident::{NodeName, RolloutId};
use kadence_core::inventory::{ControllerKind, LeaseHolder, Mark, PackagedKind, Pod, PodPhase};
use kadence_engine::ports::Eviction;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::api::webhooks;
use crate::apiserver::pki::{Pair, Purpose, acceptor, kubeconfig, new_authority, sign};
use crate::apiserver::serve::{Backend, serve};
use crate::apiserver::store::{Op, Store, seconds};
use crate::apiserver::{About, Answer, Request, answer, blocked, controllers, kinds, too_many_budgets};
use crate::objects::{ControllerSpec, NodeRecord, Objects};
use crate::world::{Data, Place, State, World};

/// The API servers of a world. Dropping it takes them down.
pub struct Facade {
    shared: Arc<Shared>,
    kubeconfig: String,
    servers: Vec<String>,
    _tasks: JoinSet<()>,
}

struct Shared {
    world: World,
    port: u16,
    places: Mutex<BTreeMap<Place, Projection>>,
    /// Grows with every change of any store.
    changes: watch::Sender<u64>,
}

/// A datastore of the world as JSON objects.
struct Projection {
    store: Store,
    /// The keys that are the world's.
    managed: BTreeSet<String>,
    /// The world's revision when it was looked at last: one that goes back was restored.
    seen: u64,
}

const SERVER_CA: &str = "simulated-server-ca";
const CLIENT_CA: &str = "simulated-client-ca";
const MARK: &str = "kadence.dev/mark";
const ROLLOUT: &str = "kadence.dev/rollout";
const PLAN: &str = "kadence.dev/plan";
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
/// How long a request waits for etcd to have a leader again.
const LEADER: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(300);

impl Facade {
    /// Serves a world.
    ///
    /// # Errors
    /// In words: no certificates, or no port.
    pub async fn serve(world: &World) -> Result<Self, String> {
        let hosts: Vec<(NodeName, String)> = world.look(|s| {
            let servers = s.machines.values().filter(|m| m.role == kadence_core::inventory::Role::Server);
            servers.map(|m| (m.name.clone(), loopback(&m.address))).collect()
        });
        let first = hosts.first().ok_or("the world has no servers")?.1.clone();
        let now = Timestamp::now();
        let (server_ca, client_ca) = (new_authority(SERVER_CA, now)?, new_authority(CLIENT_CA, now)?);
        let names: Vec<String> = hosts.iter().map(|(_, address)| address.clone()).collect();
        let own = sign(SERVER_CA, &server_ca, "kube-apiserver", None, &names, Purpose::Server, now)?;
        let admin = sign(CLIENT_CA, &client_ca, "system:admin", Some("system:masters"), &[], Purpose::Client, now)?;
        // A port that is free at one address is likely free at the others.
        let found = TcpListener::bind((first.as_str(), 0)).await.map_err(|e| format!("{first}: {e}"))?;
        let port = found.local_addr().map_err(|e| e.to_string())?.port();
        drop(found);

        let shared =
            Arc::new(Shared { world: world.clone(), port, places: Mutex::default(), changes: watch::channel(0).0 });
        let mut tasks = JoinSet::new();
        for (node, address) in hosts {
            tasks.spawn(shared.clone().serve_one(node, address, own.clone(), client_ca.certificate.clone()));
        }
        tasks.spawn(shared.clone().keep_projected());
        Ok(Self {
            shared,
            kubeconfig: kubeconfig(&format!("https://{first}:{port}"), &server_ca.certificate, &admin),
            servers: names,
            _tasks: tasks,
        })
    }

    /// An administrator's kubeconfig for the first server.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// The servers' addresses, as the cluster tells them.
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    pub fn world(&self) -> &World {
        &self.shared.world
    }
}

/// 10.0.0.11 in the world is 127.77.0.11 here.
fn loopback(address: &str) -> String {
    let host = address.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(1);
    Ipv4Addr::new(127, 77, 0, host).to_string()
}

fn up(state: &State, node: &NodeName) -> bool {
    !state.api_away && state.machines.get(node).is_some_and(|m| m.power && m.api_up)
}

impl Shared {
    /// Listens for one server whenever its API is up.
    async fn serve_one(self: Arc<Self>, node: NodeName, address: String, own: Pair, client_ca: String) {
        let Ok(tls) = acceptor(&own, &client_ca, false) else { return };
        let Ok(ip) = address.parse::<IpAddr>() else { return };
        loop {
            self.world.wait(None, |s| up(s, &node).then_some(())).await;
            match TcpListener::bind(SocketAddr::new(ip, self.port)).await {
                Ok(listener) => self.while_up(listener, &tls, &node).await,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn while_up(self: &Arc<Self>, listener: TcpListener, tls: &TlsAcceptor, node: &NodeName) {
        let backend = Arc::new(Server { shared: self.clone(), node: node.clone() });
        tokio::select! {
            () = serve(listener, Some(tls.clone()), backend) => {}
            _ = self.world.wait(None, |s| (!up(s, node)).then_some(())) => {}
        }
    }

    /// Lets watches see what happens in the world, and does what controllers do for objects of clients.
    async fn keep_projected(self: Arc<Self>) {
        loop {
            self.world.look(|s| {
                let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
                let live: BTreeSet<Place> =
                    s.machines.keys().filter(|n| s.serves(n)).filter_map(|n| s.place_of(n)).collect();
                for place in live {
                    let Some(projection) = project(s, &place, &mut places, self.port) else { continue };
                    controllers::tick(&mut projection.store, Timestamp::now(), &projection.managed);
                    projection.store.take_written();
                    projection.hand_back(s, &place);
                }
            });
            self.changes.send_modify(|n| *n += 1);
            // Until something changes in the world, or it is time for the controllers again.
            let until = self.world.age() + TICK;
            let mut looked = false;
            self.world.wait(Some(until), |_| std::mem::replace(&mut looked, true).then_some(())).await;
        }
    }

    fn perform(&self, node: &NodeName, request: &Request) -> Answer {
        let answer = self.world.look(|s| {
            let place = s.place_of(node).filter(|_| s.serves(node))?;
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let projection = project(s, &place, &mut places, self.port)?;
            if let Some(evicted) = evict(s, &place, projection, request) {
                project(s, &place, &mut places, self.port)?;
                return Some(evicted);
            }
            let version = s.machines.get(node)?.running.as_ref()?.0.version.to_string();
            let projection = places.get_mut(&place)?;
            let before = projection.store.clone();
            let answer = answer(&mut projection.store, request, &About { version: &version, now: Timestamp::now() });
            for op in projection.store.take_written() {
                if projection.managed.contains(&op.key) || op.key == lease_key() {
                    write_back(s, &place, &before, &op);
                }
            }
            projection.hand_back(s, &place);
            project(s, &place, &mut places, self.port)?;
            Some(answer)
        });
        self.changes.send_modify(|n| *n += 1);
        answer.unwrap_or_else(no_leader)
    }
}

fn no_leader() -> Answer {
    Answer::refusal(503, "ServiceUnavailable", "etcdserver: no leader")
}

fn lease_key() -> String {
    kinds::key("leases", Some("kube-system"), "kadence")
}

impl Projection {
    /// The world and the store count with one another: writes of clients raise the world's revision.
    fn hand_back(&mut self, s: &mut State, place: &Place) {
        let revision = self.store.revision;
        if let Some(objects) = s.objects_mut(place) {
            objects.revision = objects.revision.max(revision);
            self.seen = objects.revision;
            self.store.raise(objects.revision);
        }
    }
}

// -------------------------------------------------------------------------------------------------- what clients write

/// An eviction of one of the world's pods; `None` if the request is something else.
fn evict(s: &mut State, place: &Place, projection: &mut Projection, request: &Request) -> Option<Answer> {
    let words: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let ["api", "v1", "namespaces", namespace, "pods", name, "eviction"] = words.as_slice() else { return None };
    let key = kinds::key("pods", Some(namespace), name);
    if request.method != "POST" || !projection.managed.contains(&key) {
        return None;
    }
    let uid = projection.store.get(&key)?["metadata"]["uid"].clone();
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let wanted = &body["deleteOptions"]["preconditions"]["uid"];
    if !wanted.is_null() && *wanted != uid {
        return Some(Answer::refusal(
            409,
            "Conflict",
            format!("the UID in the precondition ({wanted}) is not the pod's"),
        ));
    }
    let pod = s.objects(place)?.pods.get(uid.as_str()?)?.pod.clone();
    let full_name = format!("{namespace}/{name}");
    let covering = s.objects(place)?.budgets().into_iter().find(|b| b.pods.contains(&full_name));
    Some(match s.evict(place, &pod, request.parameter("dryRun").is_some()) {
        Ok(Eviction::Accepted) => Answer::json(
            201,
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
        ),
        Ok(Eviction::Gone) => Answer::refusal(404, "NotFound", format!("pods \"{name}\" not found")),
        Ok(Eviction::Blocked(_)) => {
            let budget = covering.and_then(|b| {
                projection.store.get(&kinds::key("poddisruptionbudgets", Some(&b.namespace), &b.name)).cloned()
            });
            blocked(&budget.unwrap_or_default())
        }
        Ok(Eviction::TooManyBudgets(_)) => too_many_budgets(),
        Err(error) => Answer::refusal(500, "InternalError", error.to_string()),
    })
}

/// Does to the world what a client wrote to one of its objects.
fn write_back(s: &mut State, place: &Place, before: &Store, op: &Op) {
    let Some(object) = &op.object else { return };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if op.key == lease_key() {
        if let Some(objects) = s.objects_mut(place) {
            objects.lease = lease_holder(object);
        }
    } else if op.key.starts_with("/registry/nodes/") {
        write_node(s, place, &NodeName::new(name), object);
    } else if op.key.contains(".apps/") {
        let annotation = format!("/spec/template/metadata/annotations/{}", RESTARTED.replace('/', "~1"));
        let restarted = |object: &Value| object.pointer(&annotation).cloned();
        let was = before.get(&op.key).and_then(restarted);
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let index = s
            .objects(place)
            .and_then(|o| o.controllers.iter().position(|c| c.namespace == namespace && c.name == name));
        if let (Some(index), true) = (index, restarted(object).is_some_and(|now| Some(now) != was)) {
            s.roll(place, index);
        }
    }
}

fn write_node(s: &mut State, place: &Place, node: &NodeName, object: &Value) {
    let Some(record) = s.objects(place).and_then(|o| o.nodes.get(node)).cloned() else { return };
    let cordoned = object["spec"]["unschedulable"] == true;
    let mark = object["metadata"]["annotations"][MARK].as_str().and_then(|m| serde_json::from_str::<Mark>(m).ok());
    match (record.cordoned, cordoned, mark, &record.mark) {
        // The node was just read as open, or as ours: neither can fail.
        (false, true, Some(mark), _) => drop(s.cordon(place, node, &mark)),
        (true, false, _, Some(mark)) => drop(s.uncordon(place, node, &RolloutId::new(mark.rollout.as_str()))),
        (before, after, mark, _) if before != after || mark != record.mark => {
            if let Some(objects) = s.objects_mut(place) {
                objects.change(node, |record| (record.cordoned, record.mark) = (after, mark.filter(|_| after)));
            }
        }
        _ => {}
    }
    let labels: BTreeMap<String, String> =
        serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
    let taints: BTreeSet<String> = object["spec"]["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|t| !t["key"].as_str().is_some_and(|k| k.starts_with("node.kubernetes.io/")))
        .map(|t| {
            let text = |field: &str| t[field].as_str().unwrap_or_default().to_owned();
            match text("value").as_str() {
                "" => format!("{}:{}", text("key"), text("effect")),
                value => format!("{}={value}:{}", text("key"), text("effect")),
            }
        })
        .collect();
    if (&labels, &taints) != (&record.labels, &record.taints)
        && let Some(objects) = s.objects_mut(place)
    {
        objects.change(node, |record| (record.labels, record.taints) = (labels, taints));
    }
}

fn lease_holder(lease: &Value) -> Option<LeaseHolder> {
    let holder = lease["spec"]["holderIdentity"].as_str().filter(|h| !h.is_empty())?.to_owned();
    let annotation = |key: &str| lease["metadata"]["annotations"][key].as_str().map(str::to_owned);
    let renewed = lease["spec"]["renewTime"].as_str().and_then(|t| t.parse().ok());
    Some(LeaseHolder {
        holder,
        renewed: renewed.unwrap_or(Timestamp::UNIX_EPOCH),
        rollout: annotation(ROLLOUT),
        plan: annotation(PLAN),
    })
}

// ------------------------------------------------------------------------------------------------ what the world holds

/// Brings the store up to what the world holds now.
fn project<'a>(
    s: &mut State,
    place: &Place,
    places: &'a mut BTreeMap<Place, Projection>,
    port: u16,
) -> Option<&'a mut Projection> {
    let now = Timestamp::now();
    let revision = s.objects_mut(place)?.revision;
    let fresh = || Projection { store: Store::at(revision), managed: BTreeSet::new(), seen: revision };
    let projection = places.entry(place.clone()).or_insert_with(fresh);
    if revision < projection.seen {
        *projection = fresh();
    }
    projection.seen = revision;
    let mut wanted = Wanted { all: BTreeMap::new(), now, store: &projection.store };
    wanted.cluster(s, place, port);
    wanted.nodes(s, place);
    let objects = s.objects(place)?;
    wanted.workloads(objects);
    wanted.pods(objects);
    wanted.components(objects);
    let wanted = wanted.all;
    let gone: Vec<String> = projection.managed.iter().filter(|k| !wanted.contains_key(*k)).cloned().collect();
    for key in gone {
        projection.store.delete(&key);
    }
    projection.managed = wanted.keys().filter(|k| **k != lease_key()).cloned().collect();
    for (key, object) in wanted {
        let (old, new) = (projection.store.get(&key).map(|o| &o["metadata"]["uid"]), &object["metadata"]["uid"]);
        // Another object of the same name.
        if old.is_some_and(|old| !new.is_null() && old != new) {
            projection.store.delete(&key);
        }
        projection.store.put(&key, object, now);
    }
    projection.store.take_written();
    projection.store.raise(revision);
    projection.hand_back(s, place);
    Some(projection)
}

struct Wanted<'a> {
    all: BTreeMap<String, Value>,
    now: Timestamp,
    store: &'a Store,
}

impl Wanted<'_> {
    fn add(&mut self, plural: &str, namespace: Option<&str>, name: &str, mut object: Value) {
        object["metadata"]["name"] = json!(name);
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        self.all.insert(kinds::key(plural, namespace, name), object);
    }

    fn cluster(&mut self, s: &State, place: &Place, port: u16) {
        let Some(objects) = s.objects(place) else { return };
        let own = ["default", "kube-system", "kube-public", "kube-node-lease"];
        let namespaces: BTreeSet<&str> =
            own.into_iter().chain(objects.controllers.iter().map(|c| c.namespace)).collect();
        for name in namespaces {
            let mut namespace = json!({ "metadata": { "labels": { "kubernetes.io/metadata.name": name } }, "status": { "phase": "Active" } });
            if name == "kube-system" {
                namespace["metadata"]["uid"] = json!(objects.uid.to_string());
            }
            self.add("namespaces", None, name, namespace);
        }
        for service in kinds::api_services() {
            let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.add("apiservices", None, &name, service);
        }
        let serving = s.machines.values().filter(|m| s.serves(&m.name) && s.place_of(&m.name).as_ref() == Some(place));
        let endpoints: Vec<Value> =
            serving.map(|m| json!({ "addresses": [loopback(&m.address)], "conditions": { "ready": true } })).collect();
        let slice = json!({
            "metadata": { "labels": { "kubernetes.io/service-name": "kubernetes" } }, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        self.add("endpointslices", Some("default"), "kubernetes", slice);
        for path in s.machines.values().flat_map(|m| m.folder.files.keys()).filter(|p| p.contains("/db/snapshots/")) {
            let name = path.rsplit('/').next().unwrap_or_default();
            let made = name.rsplit('-').next().and_then(|t| Timestamp::from_second(t.parse().ok()?).ok());
            let Some(made) = made else { continue };
            let file = json!({ "status": { "creationTime": seconds(made), "readyToUse": true } });
            self.add("etcdsnapshotfiles", None, &format!("local-{name}"), file);
        }
        match &objects.lease {
            Some(holder) => {
                let lease = json!({
                    "metadata": { "annotations": annotations([(ROLLOUT, &holder.rollout), (PLAN, &holder.plan)]) },
                    "spec": { "holderIdentity": holder.holder, "renewTime": micros(holder.renewed) },
                });
                self.add("leases", Some("kube-system"), "kadence", lease);
            }
            None if self.store.get(&lease_key()).is_some() => {
                self.add("leases", Some("kube-system"), "kadence", json!({ "spec": {} }));
            }
            None => {}
        }
    }

    fn nodes(&mut self, s: &State, place: &Place) {
        let Some(objects) = s.objects(place) else { return };
        // In steps, or every look would be a write.
        let beat = Timestamp::from_second(self.now.as_second() / 10 * 10).unwrap_or(self.now);
        for (name, record) in &objects.nodes {
            let Some(node) = s.api_node(place, name) else { continue };
            let status = match record.ready {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let reported = node.reported.known().copied().unwrap_or(beat);
            let mut conditions = vec![
                json!({ "type": "MemoryPressure", "status": "False" }),
                json!({ "type": "DiskPressure", "status": "False" }),
                json!({ "type": "Ready", "status": status, "lastHeartbeatTime": seconds(reported) }),
            ];
            if let Some(machine) = s.machines.get(name)
                && let Data::Etcd { cluster, member } = machine.data
            {
                let learner = s.etcds.get(&cluster).and_then(|e| e.members.get(&member)).is_none_or(|m| m.learner);
                conditions
                    .insert(0, json!({ "type": "EtcdIsVoter", "status": if learner { "False" } else { "True" } }));
            }
            let mark = record.mark.as_ref().and_then(|m| serde_json::to_string(m).ok());
            let args = json!(node.object.args).to_string();
            let object = json!({
                "metadata": {
                    "uid": node.uid, "labels": record.labels,
                    "annotations": annotations([
                        (MARK, &mark), ("k3s.io/node-args", &Some(args)), ("etcd.k3s.cattle.io/node-name", &node.etcd_member),
                        ("k3s.io/node-config-hash", &node.object.config_hash),
                        ("k3s.io/encryption-config-hash", &node.object.encryption_hash),
                    ]),
                },
                "spec": node_spec(record),
                "status": {
                    "conditions": conditions,
                    "addresses": [
                        { "type": "InternalIP", "address": node.internal_ip.as_deref().map(loopback) },
                        { "type": "Hostname", "address": name.as_str() },
                    ],
                    "nodeInfo": {
                        "architecture": node.arch.known().map(|a| a.to_string()).unwrap_or_default(), "operatingSystem": "linux",
                        "osImage": node.object.os_image, "kernelVersion": node.object.kernel, "systemUUID": "",
                        "bootID": node.object.boot_id, "machineID": node.object.machine_id,
                        "containerRuntimeVersion": node.object.runtime,
                        "kubeletVersion": record.version.to_string(), "kubeProxyVersion": record.version.to_string(),
                    },
                },
            });
            self.add("nodes", None, name.as_str(), object);
            let age = node.object.lease_age.unwrap_or_default();
            let renewed = beat.checked_sub(age).unwrap_or(beat);
            let lease = json!({ "spec": { "holderIdentity": name.as_str(), "leaseDurationSeconds": 40, "renewTime": micros(renewed) } });
            self.add("leases", Some("kube-node-lease"), name.as_str(), lease);
        }
    }

    /// What a status has to speak of to be that of this spec.
    fn generation(&self, plural: &str, spec: &ControllerSpec, wanted: &Value) -> i64 {
        match self.store.get(&kinds::key(plural, Some(spec.namespace), spec.name)) {
            None => 1,
            Some(old) => old["metadata"]["generation"].as_i64().unwrap_or(0) + i64::from(old["spec"] != *wanted),
        }
    }

    fn workloads(&mut self, objects: &Objects) {
        for (index, (spec, state)) in objects.controllers.iter().zip(objects.controllers()).enumerate() {
            let plural = match spec.kind {
                ControllerKind::Deployment => "deployments",
                ControllerKind::StatefulSet => "statefulsets",
                ControllerKind::DaemonSet => "daemonsets",
            };
            let labels = json!({ "app": spec.name });
            let image = state.images.first().cloned().unwrap_or_default();
            let wanted = json!({
                "replicas": spec.desired, "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": { "containers": [{ "name": spec.name, "image": image }] } },
            });
            let generation = self.generation(plural, spec, &wanted);
            let status = json!({
                "observedGeneration": generation, "replicas": spec.desired, "availableReplicas": state.available,
                "readyReplicas": state.available, "desiredNumberScheduled": spec.desired, "numberAvailable": state.available,
                "numberReady": state.available, "currentNumberScheduled": spec.desired, "numberMisscheduled": 0,
            });
            self.add(
                plural,
                Some(spec.namespace),
                spec.name,
                json!({ "metadata": {}, "spec": wanted, "status": status }),
            );
            if spec.service {
                let endpoints: Vec<Value> = objects
                    .pods_of(index)
                    .filter(|p| p.pod.ready && !p.pod.terminating)
                    .map(|p| {
                        json!({
                            "addresses": ["10.42.0.1"], "conditions": { "ready": true },
                            "nodeName": p.pod.node.as_ref().map(NodeName::as_str),
                            "targetRef": { "kind": "Pod", "name": p.pod.name, "uid": p.pod.uid },
                        })
                    })
                    .collect();
                let slice = json!({
                    "metadata": { "labels": { "kubernetes.io/service-name": spec.name } }, "addressType": "IPv4",
                    "endpoints": endpoints, "ports": [{ "port": 80, "protocol": "TCP" }],
                });
                self.add("endpointslices", Some(spec.namespace), spec.name, slice);
            }
        }
        for (spec, state) in objects.budgets.iter().zip(objects.budgets()) {
            let healthy = state.disruptions_allowed + spec.min_available;
            let budget = json!({
                "spec": { "minAvailable": spec.min_available, "selector": { "matchLabels": { "app": spec.covers } } },
                "status": {
                    "disruptionsAllowed": state.disruptions_allowed, "expectedPods": state.expected_pods,
                    "currentHealthy": healthy, "desiredHealthy": spec.min_available, "observedGeneration": 1,
                },
            });
            self.add("poddisruptionbudgets", Some(spec.namespace), spec.name, budget);
        }
        for hook in webhooks(objects) {
            let (configuration, name) = hook.name.split_once('/').unwrap_or((&hook.name, &hook.name));
            let service = hook.service.as_deref().and_then(|s| s.split_once('/'));
            let spared: Vec<&str> = if hook.spares_kube_system { vec!["kube-system"] } else { Vec::new() };
            let object = json!({ "webhooks": [{
                "name": name, "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": hook.resources }],
                "clientConfig": { "service": service.map(|(namespace, name)| json!({ "namespace": namespace, "name": name })) },
                "namespaceSelector": { "matchExpressions": [
                    { "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": spared },
                ] },
            }] });
            self.add("validatingwebhookconfigurations", None, configuration, object);
        }
    }

    fn pods(&mut self, objects: &Objects) {
        for record in objects.pods.values() {
            let pod = &record.pod;
            for claim in &pod.node_bound_claims {
                let volume = format!("{}-{claim}", pod.namespace);
                let nodes: Vec<&str> = pod.pinned_to.iter().flatten().map(NodeName::as_str).collect();
                self.add(
                    "persistentvolumeclaims",
                    Some(&pod.namespace),
                    claim,
                    json!({ "spec": { "volumeName": volume } }),
                );
                let terms = json!([{ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": nodes }] }]);
                let object = json!({ "spec": { "local": { "path": "/data" }, "nodeAffinity": { "required": { "nodeSelectorTerms": terms } } } });
                self.add("persistentvolumes", None, &volume, object);
            }
            let object = pod_object(pod, objects.controllers[record.controller].name, self.now);
            self.add("pods", Some(&pod.namespace), &pod.name, object);
        }
    }

    fn components(&mut self, objects: &Objects) {
        for part in objects.packaged() {
            match part.kind {
                PackagedKind::Addon => {
                    let addon = json!({ "spec": { "checksum": part.version, "source": part.detail } });
                    self.add("addons", Some("kube-system"), &part.name, addon);
                }
                PackagedKind::HelmChart => {
                    let job = format!("helm-install-{}", part.name);
                    let chart = json!({ "spec": { "version": part.version }, "status": { "jobName": job } });
                    self.add("helmcharts", Some("kube-system"), &part.name, chart);
                    let conditions =
                        if part.settled { json!([{ "type": "Complete", "status": "True" }]) } else { json!([]) };
                    let labels = json!({ "helmcharts.helm.cattle.io/chart": part.name });
                    let object = json!({ "metadata": { "labels": labels }, "status": { "conditions": conditions } });
                    self.add("jobs", Some("kube-system"), &job, object);
                }
            }
        }
        for release in objects.helm_releases() {
            let labels = json!({
                "owner": "helm", "name": release.name, "version": release.revision.to_string(), "status": release.status,
            });
            let name = format!("sh.helm.release.v1.{}.v{}", release.name, release.revision);
            let secret = json!({ "metadata": { "labels": labels }, "type": "helm.sh/release.v1" });
            self.add("secrets", Some(&release.namespace), &name, secret);
        }
    }
}

fn node_spec(record: &NodeRecord) -> Value {
    let mut taints: Vec<Value> = record
        .taints
        .iter()
        .map(|taint| {
            let (key, effect) = taint.rsplit_once(':').unwrap_or((taint, "NoSchedule"));
            match key.split_once('=') {
                Some((key, value)) => json!({ "key": key, "value": value, "effect": effect }),
                None => json!({ "key": key, "effect": effect }),
            }
        })
        .collect();
    let mut spec = json!({});
    if record.cordoned {
        taints.push(json!({ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }));
        spec["unschedulable"] = json!(true);
    }
    if record.ready != Some(true) {
        taints.push(json!({ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }));
    }
    if !taints.is_empty() {
        spec["taints"] = json!(taints);
    }
    spec
}

fn pod_object(pod: &Pod, controller: &str, now: Timestamp) -> Value {
    let mut volumes: Vec<Value> = pod.empty_dirs.iter().map(|name| json!({ "name": name, "emptyDir": {} })).collect();
    volumes.extend(
        pod.node_bound_claims.iter().map(|c| json!({ "name": c, "persistentVolumeClaim": { "claimName": c } })),
    );
    let phase = match pod.phase {
        PodPhase::Pending => "Pending",
        PodPhase::Running => "Running",
        PodPhase::Succeeded => "Succeeded",
        PodPhase::Failed => "Failed",
        PodPhase::Unknown => "Unknown",
    };
    let mut states: Vec<Value> = pod.waiting.iter().map(|reason| json!({ "waiting": { "reason": reason } })).collect();
    if states.is_empty() {
        states.push(json!({}));
    }
    let statuses: Vec<Value> = (0..)
        .zip(states)
        .map(|(i, state)| {
            json!({
                "name": format!("c{i}"), "image": "", "imageID": "", "ready": pod.ready, "state": state,
                "restartCount": if i == 0 { pod.restarts } else { 0 },
            })
        })
        .collect();
    let mut object = json!({
        "metadata": { "uid": pod.uid, "labels": pod.labels },
        "spec": {
            "containers": [{ "name": controller }], "volumes": volumes, "hostNetwork": pod.host_network,
            "terminationGracePeriodSeconds": pod.grace_seconds,
        },
        "status": {
            "phase": phase, "conditions": [{ "type": "Ready", "status": if pod.ready { "True" } else { "False" } }],
            "containerStatuses": statuses,
        },
    });
    if let Some(kind) = &pod.owner {
        object["metadata"]["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": kind, "name": controller, "uid": controller, "controller": true }]);
    }
    if let Some(node) = &pod.node {
        object["spec"]["nodeName"] = json!(node.as_str());
    }
    if let Some(pinned) = &pod.pinned_to {
        let nodes: Vec<&str> = pinned.iter().map(NodeName::as_str).collect();
        let terms =
            json!([{ "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": nodes }] }]);
        object["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": terms });
    }
    if pod.tolerates_unschedulable {
        object["spec"]["tolerations"] = json!([{ "key": "node.kubernetes.io/unschedulable", "operator": "Exists" }]);
    }
    if pod.terminating {
        // In steps, or every look would be a write.
        let ends = Timestamp::from_second(now.as_second() / 60 * 60 + 60).unwrap_or(now);
        object["metadata"]["deletionTimestamp"] = json!(seconds(ends));
    }
    object
}

fn annotations<const N: usize>(pairs: [(&str, &Option<String>); N]) -> Value {
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?)))).collect()
}

fn micros(time: Timestamp) -> String {
    time.strftime("%FT%T%.6fZ").to_string()
}

// --------------------------------------------------------------------------------------------------------- one server

struct Server {
    shared: Arc<Shared>,
    node: NodeName,
}

impl Server {
    async fn serves(&self) -> bool {
        let until = self.shared.world.age() + LEADER;
        self.shared.world.wait(Some(until), |s| s.serves(&self.node).then_some(())).await.is_some()
    }
}

#[async_trait]
impl Backend for Server {
    async fn answer(&self, request: Request) -> Answer {
        if !request.certified {
            return Answer::refusal(401, "Unauthorized", "Unauthorized");
        }
        if matches!(request.path.as_str(), "/readyz" | "/livez" | "/healthz") {
            let serves = self.shared.world.look(|s| s.serves(&self.node));
            return match (serves, request.query.contains_key("verbose")) {
                (true, false) => Answer::text(200, "ok"),
                (true, true) => Answer::text(200, "[+]ping ok\n[+]etcd ok\nreadyz check passed\n"),
                (false, _) => Answer::text(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n"),
            };
        }
        if !self.serves().await {
            return no_leader();
        }
        self.shared.perform(&self.node, &request)
    }

    async fn admit(&self, request: &Request) -> Result<(), Answer> {
        if !request.certified {
            return Err(Answer::refusal(401, "Unauthorized", "Unauthorized"));
        }
        if self.serves().await { Ok(()) } else { Err(no_leader()) }
    }

    fn look(&self, see: &mut dyn FnMut(&Store)) -> bool {
        self.shared.world.look(|s| {
            let Some(place) = s.place_of(&self.node).filter(|_| s.serves(&self.node)) else { return false };
            let mut places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
            match project(s, &place, &mut places, self.shared.port) {
                Some(projection) => {
                    see(&projection.store);
                    true
                }
                None => false,
            }
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}
