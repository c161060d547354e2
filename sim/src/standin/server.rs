//! `k3s server`: certificates, datastore, the API on 6443, etcd's ports, and what a leader does for the cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::agent::{Etcd, heartbeat};
use super::client::{Client, by_token, trusting};
use super::cluster::{Cluster, Member};
use super::disk::{open_sqlite, set_aside, write_whole};
use super::settings::{Role, Settings, bare_token};
use super::tls::{ADMIN, Authorities, ETCD_SERVER, PEER, SERVING};
use super::{log, notify, random_hex, random_number, snapshot};
use crate::apiserver::pki::{Purpose, acceptor, connector, kubeconfig};
use crate::apiserver::serve::{Backend, serve};
use crate::apiserver::store::{Store, seconds};
use crate::apiserver::{Answer, Request, controllers, kinds};
use crate::release::parts_of;

/// Where servers ask to be taken in, and where they get the cluster's authorities.
pub(super) const JOIN: &str = "/v1-k3s/standin/join";
const BOOTSTRAP: &str = "/v1-k3s/server-bootstrap";
/// Where an agent gets its kubelet's files.
pub(super) const KUBELET: &str = "/v1-k3s/standin/kubelet";

const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
const CALL: Duration = Duration::from_secs(5);
const NEVER: &str = "this server never becomes ready, as its file says";

/// The ports of etcd: peers, metrics, and its gateway for HTTP.
const PEERS: u16 = 2380;
const METRICS: u16 = 2381;
const GATEWAY: u16 = 2382;

/// Runs until systemd ends it.
pub(crate) async fn run(settings: Settings, works: bool) -> Result<ExitCode, String> {
    log("info", &format!("Starting k3s {}", settings.version));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let server = tokio::select! {
        server = start(settings) => server?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
    };
    tokio::select! {
        result = server.work(works) => result?,
        _ = terminate.recv() => {}
    }
    server.cluster.hand_over().await;
    Ok(ExitCode::SUCCESS)
}

/// `k3s server --cluster-reset`: makes a cluster of one from a snapshot, or from what this member has, and ends.
pub(crate) async fn reset(settings: &Settings) -> Result<ExitCode, String> {
    let db = settings.data.join("server/db");
    let flag = db.join("reset-flag");
    if flag.exists() {
        return Err("Managed etcd cluster membership was already reset, please remove the cluster-reset flag and start \
                    k3s normally. If you need to perform another cluster reset, you must first manually delete the file \
                    at reset-flag"
            .to_owned());
    }
    if settings.join.is_some() {
        return Err("--cluster-reset and --server are mutually exclusive".to_owned());
    }
    let member = db.join("etcd/member");
    let mut store = match settings.reset.as_ref().and_then(Option::as_ref) {
        Some(path) => snapshot::read(path)?,
        None => super::disk::Log::open(&member)?.1.store,
    };
    // Snapshots are files of this node, not of the time they were taken.
    store.raise(store.revision + 1);
    set_aside(&db)?;
    let new = new_member(settings);
    Cluster::found(&member, store, &new, random_number())?;
    write_whole(&db.join("etcd/name"), new.name.as_bytes(), 0o600)?;
    write_whole(&flag, b"", 0o600)?;
    log(
        "info",
        "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. Backup and delete \
         ${datadir}/server/db on each peer etcd server and rejoin the nodes",
    );
    Ok(ExitCode::SUCCESS)
}

fn new_member(settings: &Settings) -> Member {
    Member {
        id: random_number(),
        name: format!("{}-{}", settings.node, random_hex(4)),
        peer: SocketAddr::new(settings.address, PEERS).to_string(),
        learner: false,
    }
}

struct Server {
    settings: Settings,
    authorities: Authorities,
    token: String,
    cluster: Arc<Cluster>,
    /// With etcd, not SQLite.
    etcd: bool,
    member: String,
    /// Answers requests of clients; false for a file that never becomes ready.
    open: AtomicBool,
}

async fn start(settings: Settings) -> Result<Arc<Server>, String> {
    let folder = settings.data.join("server");
    let (authorities, token) = authorities(&settings).await?;
    let mut names: Vec<String> =
        ["127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default.svc"].map(str::to_owned).into();
    names.extend([settings.address.to_string(), settings.node.clone()]);
    authorities.renew(&names)?;
    write_whole(&folder.join("token"), format!("{}\n", authorities.long_token(&token)?).as_bytes(), 0o600)?;
    let config = kubeconfig(
        &format!("https://127.0.0.1:{}", settings.port),
        &authorities.certificate("server-ca")?,
        &authorities.pair(ADMIN)?,
    );
    write_whole(Path::new(KUBECONFIG), config.as_bytes(), 0o600)?;
    // A server is a node as well.
    let agent = settings.data.join("agent");
    write_whole(&agent.join("server-ca.crt"), authorities.certificate("server-ca")?.as_bytes(), 0o644)?;

    let db = folder.join("db");
    let member = db.join("etcd/member");
    let etcd = member.is_dir() || settings.cluster_init || settings.join.is_some();
    let cluster = if etcd {
        let _ = std::fs::remove_file(db.join("reset-flag"));
        if !member.join("snap/state.json").is_file() {
            match &settings.join {
                Some(url) => join(&settings, &authorities, &token, url).await?,
                None => {
                    let new = new_member(&settings);
                    Cluster::found(&member, Store::at(0), &new, random_number())?;
                    write_whole(&db.join("etcd/name"), new.name.as_bytes(), 0o600)?;
                }
            }
        }
        let peers = connector(&authorities.certificate("etcd/peer-ca")?, Some(&authorities.pair(PEER)?))?;
        Cluster::member(&member, &settings.version, peers)?
    } else {
        let (disk, store) = open_sqlite(&db.join("state.db")).await?;
        Cluster::alone(disk, store, &settings.version)
    };
    let member = std::fs::read_to_string(db.join("etcd/name")).unwrap_or_default();
    Ok(Arc::new(Server { settings, authorities, token, cluster, etcd, member, open: AtomicBool::new(false) }))
}

/// The authorities on the disk, else those of the server to join, else new ones; and the token.
async fn authorities(settings: &Settings) -> Result<(Authorities, String), String> {
    let folder = settings.data.join("server/tls");
    let kept = std::fs::read_to_string(settings.data.join("server/token")).ok().map(|t| bare_token(&t).to_owned());
    if let Some(there) = Authorities::there(folder.clone()) {
        let token = settings.token.clone().or_else(|| kept.clone()).ok_or("there is no token")?;
        if kept.is_some_and(|kept| kept != token) {
            return Err("bootstrap data already found and encrypted with different token".to_owned());
        }
        return Ok((there, token));
    }
    let Some(url) = &settings.join else {
        return Ok((Authorities::make(folder)?, settings.token.clone().unwrap_or_else(|| random_hex(16))));
    };
    let token = settings.token.clone().ok_or("--token is required")?;
    let client = Client::new(host(url)?, trusting()?);
    loop {
        let mut request = Request::new("GET", BOOTSTRAP, None);
        request.authorization = Some(by_token("server", &token));
        match client.send(&request, CALL).await {
            Ok(Answer { code: 200, body: crate::apiserver::Body::Json(told) }) => {
                return Ok((Authorities::taken(folder, &told)?, token));
            }
            Ok(Answer { code: 401, .. }) => {
                return Err(format!("failed to validate token: {url}{BOOTSTRAP}: 401 Unauthorized"));
            }
            other => log("error", &format!("Failed to retrieve bootstrap data from {url}: {other:?}")),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn host(url: &str) -> Result<&str, String> {
    url.strip_prefix("https://").map(|h| h.trim_end_matches('/')).ok_or_else(|| format!("{url} is no https address"))
}

/// Asks until this server is taken in.
async fn join(settings: &Settings, authorities: &Authorities, token: &str, url: &str) -> Result<(), String> {
    let (db, new) = (settings.data.join("server/db"), new_member(settings));
    let client = Client::new(host(url)?, connector(&authorities.certificate("server-ca")?, None)?);
    loop {
        let body = json!({ "name": new.name, "node": settings.node, "peer": new.peer });
        let mut request = Request::new("POST", JOIN, Some(&body));
        request.authorization = Some(by_token("server", token));
        match client.send(&request, CALL).await {
            Ok(Answer { code: 200, body: crate::apiserver::Body::Json(told) }) => {
                let number = |key: &str| told[key].as_u64().ok_or("the answer to the join has no ids");
                Cluster::join(&db.join("etcd/member"), number("cluster")?, number("member")?)?;
                return write_whole(&db.join("etcd/name"), new.name.as_bytes(), 0o600);
            }
            Ok(Answer { code: 409, body }) => return Err(format!("etcd cluster join failed: {body:?}")),
            other => log("info", &format!("Waiting for other members to finish joining etcd cluster: {other:?}")),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((address, port)).await.map_err(|e| format!("port {port}: {e}"))
}

impl Server {
    async fn work(self: &Arc<Self>, works: bool) -> Result<(), String> {
        let (everywhere, here) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut tasks = tokio::task::JoinSet::new();
        if self.etcd {
            let peers = acceptor(&self.authorities.pair(PEER)?, &self.authorities.certificate("etcd/peer-ca")?, true)?;
            tasks.spawn(serve(listen(everywhere, PEERS).await?, Some(peers), Arc::new(Peers(self.clone()))));
            tasks.spawn(serve(listen(here, METRICS).await?, None, Arc::new(EtcdPort(self.clone()))));
            let ca = self.authorities.certificate("etcd/server-ca")?;
            let gateway = acceptor(&self.authorities.pair(ETCD_SERVER)?, &ca, true)?;
            tasks.spawn(serve(listen(here, GATEWAY).await?, Some(gateway), Arc::new(EtcdPort(self.clone()))));
        }
        let ca = self.authorities.certificate("client-ca")?;
        let api = acceptor(&self.authorities.pair(SERVING)?, &ca, false)?;
        tasks.spawn(serve(listen(everywhere, self.settings.port).await?, Some(api), Arc::new(Api(self.clone()))));
        if !works {
            log("info", NEVER);
            std::future::pending::<()>().await;
        }
        if self.etcd {
            tasks.spawn(self.cluster.clone().keep());
        }
        self.open.store(true, Ordering::SeqCst);
        tasks.spawn(self.clone().lead());
        self.kubelet().await
    }

    /// What the leader does for all: the first objects, controllers, endpoints, promotions. Never returns.
    async fn lead(self: Arc<Self>) {
        let mut pulse = controllers::Pulse::default();
        loop {
            if self.cluster.leads() {
                let (alive, members) = (self.cluster.alive(), self.cluster.members());
                let mut addresses: Vec<String> = members
                    .iter()
                    .filter(|m| alive.contains(&m.id) && !m.learner)
                    .filter_map(|m| m.peer.parse::<SocketAddr>().ok().map(|a| a.ip().to_string()))
                    .collect();
                if !self.etcd {
                    addresses.push(self.settings.address.to_string());
                }
                let port = self.settings.port;
                self.cluster
                    .write(|store| {
                        let now = Timestamp::now();
                        seed(store, now);
                        endpoints(store, &addresses, port, now);
                        controllers::tick(store, now, &BTreeSet::new());
                        pulse.silent_nodes(store, now);
                        Answer::text(200, "ok")
                    })
                    .await;
                self.cluster.promote().await;
            } else {
                pulse = controllers::Pulse::default();
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Registers the node, tells systemd that the server is ready, and goes on with heartbeats.
    async fn kubelet(&self) -> Result<(), String> {
        let me = self.cluster.id().1;
        let ask = async |request: Request| Ok(self.perform(request).await);
        let (mut told, mut beat) = (false, None::<(Instant, bool)>);
        loop {
            let votes = self.cluster.members().iter().any(|m| m.id == me && !m.learner);
            let etcd = self.etcd.then(|| Etcd { member: self.member.clone(), votes });
            // A changed condition does not wait.
            let due = beat.is_none_or(|(at, before)| at.elapsed() > Duration::from_secs(5) || before != votes);
            if due && self.cluster.serves() {
                match heartbeat(&self.settings, Role::Server, etcd.as_ref(), &ask).await {
                    Ok(()) => beat = Some((Instant::now(), votes)),
                    Err(why) => log("error", &why),
                }
            }
            if !told && beat.is_some() && self.in_the_endpoints() {
                log("info", "k3s is up and running");
                notify("READY=1");
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn in_the_endpoints(&self) -> bool {
        let address = self.settings.address.to_string();
        self.cluster.look(|store| {
            let slice = store.get(&kinds::key("endpointslices", Some("default"), "kubernetes"));
            let endpoints = slice.and_then(|s| s["endpoints"].as_array());
            endpoints.into_iter().flatten().any(|e| e["addresses"][0] == address.as_str())
        })
    }

    async fn perform(&self, request: Request) -> Answer {
        if request.method != "GET" {
            return self.cluster.request(&request).await;
        }
        if let Err(refusal) = self.cluster.barrier().await {
            return refusal;
        }
        let about = crate::apiserver::About { version: &self.settings.version, now: Timestamp::now() };
        // Reading changes nothing, so a copy that shares the objects is as good.
        let mut store = self.cluster.look(Clone::clone);
        crate::apiserver::answer(&mut store, &request, &about)
    }

    fn by_token(&self, request: &Request) -> bool {
        let authorization = request.authorization.as_deref();
        authorization.is_some_and(|a| ["server", "node"].iter().any(|user| a == by_token(user, &self.token)))
    }

    async fn answer(&self, request: Request) -> Answer {
        match request.path.as_str() {
            "/cacerts" => {
                return self
                    .authorities
                    .certificate("server-ca")
                    .map_or_else(|why| Answer::text(500, why), |ca| Answer::text(200, ca));
            }
            "/ping" => return Answer::text(200, "pong"),
            _ => {}
        }
        if !request.certified && !self.by_token(&request) {
            return Answer::refusal(401, "Unauthorized", "Unauthorized");
        }
        match request.path.as_str() {
            BOOTSTRAP => {
                return self
                    .authorities
                    .bootstrap()
                    .map_or_else(|why| Answer::text(500, why), |told| Answer::json(200, told));
            }
            "/readyz" | "/livez" | "/healthz" => return self.readyz(&request),
            _ if !self.open.load(Ordering::SeqCst) => {
                return Answer::refusal(503, "ServiceUnavailable", "apiserver not ready");
            }
            JOIN => return self.cluster.take_in(&request).await,
            KUBELET => return self.kubelet_files(&request),
            "/db/info" => return Answer::json(200, self.member_list()),
            "/db/snapshot" => return self.snapshot(&request).await,
            _ => {}
        }
        self.perform(request).await
    }

    fn readyz(&self, request: &Request) -> Answer {
        let serves = self.open.load(Ordering::SeqCst) && self.cluster.serves() && self.cluster.look(|s| s.revision > 0);
        let verbose = request.query.contains_key("verbose");
        match (serves, verbose) {
            (true, false) => Answer::text(200, "ok"),
            (true, true) => Answer::text(200, "[+]ping ok\n[+]etcd ok\nreadyz check passed\n"),
            (false, _) => Answer::text(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n"),
        }
    }

    fn kubelet_files(&self, request: &Request) -> Answer {
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let node = body["node"].as_str().unwrap_or("unknown");
        let made = || {
            let client = self.authorities.issue(
                "client-ca",
                &format!("system:node:{node}"),
                Some("system:nodes"),
                &[],
                Purpose::Client,
            )?;
            let serving = self.authorities.issue("server-ca", node, None, &[node.to_owned()], Purpose::Server)?;
            Ok::<_, String>(json!({
                "client-ca.crt": self.authorities.certificate("client-ca")?,
                "client-kubelet.crt": client.certificate, "client-kubelet.key": client.key,
                "serving-kubelet.crt": serving.certificate, "serving-kubelet.key": serving.key,
            }))
        };
        made().map_or_else(|why| Answer::text(500, why), |files| Answer::json(200, files))
    }

    fn member_list(&self) -> Value {
        let members: Vec<Value> = self
            .cluster
            .members()
            .into_iter()
            .map(|m| {
                json!({
                    "ID": m.id.to_string(), "name": m.name, "peerURLs": [format!("https://{}", m.peer)],
                    "clientURLs": [format!("https://{}", m.peer.replace(":2380", ":2379"))], "isLearner": m.learner,
                })
            })
            .collect();
        json!({ "members": members })
    }

    async fn snapshot(&self, request: &Request) -> Answer {
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        if !self.etcd {
            return Answer::refusal(400, "BadRequest", "etcd datastore is disabled");
        }
        let folder = body["folder"].as_str().map_or_else(|| self.settings.snapshots.clone(), Into::into);
        let of_node = |name: &str| kinds::key("etcdsnapshotfiles", None, &format!("local-{name}"));
        if body["operation"] == "delete" {
            let names: Vec<&str> = body["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            if names.iter().any(|n| n.contains('/')) {
                return Answer::refusal(400, "BadRequest", "a snapshot's name has no slash");
            }
            for name in &names {
                if let Err(why) = std::fs::remove_file(folder.join(name)) {
                    return Answer::refusal(400, "BadRequest", format!("{name}: {why}"));
                }
            }
            let keys: Vec<String> = names.iter().map(|n| of_node(n)).collect();
            self.cluster
                .write(|store| {
                    keys.iter().for_each(|key| store.delete(key));
                    Answer::json(200, json!({ "message": format!("Snapshot {} deleted.", names.join(", ")) }))
                })
                .await
        } else {
            if let Err(refusal) = self.cluster.barrier().await {
                return refusal;
            }
            let now = Timestamp::now();
            let name =
                format!("{}-{}-{}", body["name"].as_str().unwrap_or("on-demand"), self.settings.node, now.as_second());
            let path = folder.join(&name);
            let made = snapshot::bytes(&self.cluster.look(Clone::clone))
                .and_then(|b| write_whole(&path, &b, 0o600).map(|()| b.len()));
            let bytes = match made {
                Ok(bytes) => bytes,
                Err(why) => return Answer::refusal(500, "InternalError", why),
            };
            let file = json!({
                "metadata": { "name": format!("local-{name}") },
                "spec": { "snapshotName": name, "nodeName": self.settings.node, "location": format!("file://{}", path.display()) },
                "status": { "creationTime": seconds(now), "readyToUse": true, "size": bytes.to_string() },
            });
            let (method, path) = ("POST", "/apis/k3s.cattle.io/v1/etcdsnapshotfiles");
            // The file counts, as in K3s; its object comes when it can.
            self.cluster.request(&Request::new(method, path, Some(&file))).await;
            Answer::json(200, json!({ "message": format!("Snapshot {name} saved.") }))
        }
    }

    async fn metrics(&self) -> String {
        let health = self.cluster.health().await;
        let version = self.settings.version.parse().map(|v| parts_of(&v).etcd).unwrap_or("0.0.0");
        let mut text = format!(
            "etcd_server_has_leader {}\netcd_server_is_leader {}\netcd_server_is_learner {}\n\
             etcd_server_id{{server_id=\"{:x}\"}} 1\netcd_server_version{{server_version=\"{version}\"}} 1\n\
             etcd_server_quota_backend_bytes 2147483648\netcd_server_proposals_applied_total {}\n\
             etcd_mvcc_db_total_size_in_bytes {}\n",
            u8::from(health.has_leader),
            u8::from(health.leads),
            u8::from(health.learner),
            health.id,
            health.revision,
            health.bytes + 20_480,
        );
        for bound in [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024] {
            let count = health.fsync.iter().filter(|s| **s <= bound).count();
            text.push_str(&format!("etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"{bound}\"}} {count}\n"));
        }
        let all = health.fsync.len();
        text.push_str(&format!(
            "etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"+Inf\"}} {all}\netcd_disk_wal_fsync_duration_seconds_count {all}\n"
        ));
        text
    }
}

/// What every cluster has from the beginning.
fn seed(store: &mut Store, now: Timestamp) {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let key = kinds::key("namespaces", None, name);
        if store.get(&key).is_none() {
            let labels = json!({ "kubernetes.io/metadata.name": name });
            let namespace = json!({ "metadata": { "name": name, "labels": labels }, "status": { "phase": "Active" } });
            store.put(&key, namespace, now);
        }
    }
    for service in kinds::api_services() {
        let key = kinds::key("apiservices", None, service["metadata"]["name"].as_str().unwrap_or_default());
        if store.get(&key).is_none() {
            store.put(&key, service, now);
        }
    }
    let key = kinds::key("services", Some("default"), "kubernetes");
    if store.get(&key).is_none() {
        let service = json!({
            "metadata": { "name": "kubernetes", "namespace": "default" },
            "spec": { "clusterIP": "10.43.0.1", "type": "ClusterIP", "ports": [{ "name": "https", "port": 443 }] },
        });
        store.put(&key, service, now);
    }
}

/// The API servers that serve, for those who look for them.
fn endpoints(store: &mut Store, addresses: &[String], port: u16, now: Timestamp) {
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({ "addresses": [a], "conditions": { "ready": true } })).collect();
    let slice = json!({
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    });
    store.put(&kinds::key("endpointslices", Some("default"), "kubernetes"), slice, now);
}

/// The API on 6443.
struct Api(Arc<Server>);

#[async_trait]
impl Backend for Api {
    async fn answer(&self, request: Request) -> Answer {
        self.0.answer(request).await
    }

    async fn admit(&self, request: &Request) -> Result<(), Answer> {
        if !request.certified && !self.0.by_token(request) {
            return Err(Answer::refusal(401, "Unauthorized", "Unauthorized"));
        }
        self.0.cluster.barrier().await
    }

    fn look(&self, see: &mut dyn FnMut(&Store)) -> bool {
        self.0.cluster.look(see);
        true
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.cluster.changes()
    }
}

/// What other members ask.
struct Peers(Arc<Server>);

/// Health and metrics, and the gateway with the list of members.
struct EtcdPort(Arc<Server>);

#[async_trait]
impl Backend for Peers {
    async fn answer(&self, request: Request) -> Answer {
        self.0.cluster.peer(&request).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.cluster.changes()
    }
}

#[async_trait]
impl Backend for EtcdPort {
    async fn answer(&self, request: Request) -> Answer {
        match request.path.as_str() {
            "/health" => {
                let health = self.0.cluster.health().await;
                let (text, reason) = if health.has_leader { ("true", "") } else { ("false", "RAFT NO LEADER") };
                Answer::json(if health.has_leader { 200 } else { 503 }, json!({ "health": text, "reason": reason }))
            }
            "/metrics" => Answer::text(200, self.0.metrics().await),
            "/v3/cluster/member/list" => Answer::json(200, self.0.member_list()),
            _ => Answer::text(404, "404 page not found"),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.cluster.changes()
    }
}
