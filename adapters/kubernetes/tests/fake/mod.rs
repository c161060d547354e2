//! A small API server on the loopback: objects with resourceVersions, lists in pages, watches, merge patches with their
//! preconditions; and all that can go wrong between it and a client.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kadence_kubernetes::KubeApi;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// What all servers of the cluster share.
pub(crate) struct World {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By path: `/api/v1/namespaces/default/pods/web`.
    objects: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, String, Value)>,
    /// Answers that take the place of what would be said, by method and the beginning of the path.
    answers: Vec<(Method, String, u16, Value)>,
    /// Done to the object just before the next patch of it is looked at.
    meddle: Option<Value>,
    /// The next write is done, and its answer lost.
    lose_answer: bool,
    requests: Vec<Seen>,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) server: usize,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        let world = Arc::new(Self { state: Mutex::default(), version: watch::channel(0).0 });
        world.put(
            "/api/v1/namespaces/kube-system",
            json!({ "metadata": { "uid": "c1u5", "labels": { "kubernetes.io/metadata.name": "kube-system" } } }),
        );
        world.answer(Method::GET, "/apis", 200, &json!({ "kind": "APIGroupList", "groups": [] }));
        world
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an object as it is, with a new resourceVersion.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut state = self.state();
        state.store(path, object);
        self.version.send_replace(state.version);
    }

    /// Changes an object as somebody else would.
    pub(crate) fn merge(&self, path: &str, patch: &Value) {
        let mut state = self.state();
        let mut object = state.objects[path].clone();
        json_patch::merge(&mut object, patch);
        state.store(path, object);
        self.version.send_replace(state.version);
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.state().objects.get(path).cloned().unwrap_or_default()
    }

    pub(crate) fn answer(&self, method: Method, path: &str, code: u16, body: &Value) {
        self.state().answers.insert(0, (method, path.to_owned(), code, body.clone()));
    }

    pub(crate) fn meddle(&self, patch: Value) {
        self.state().meddle = Some(patch);
    }

    pub(crate) fn lose_next_answer(&self) {
        self.state().lose_answer = true;
    }

    pub(crate) fn requests(&self, method: &Method, path: &str) -> Vec<Seen> {
        self.state().requests.iter().filter(|r| r.method == *method && r.path == path).cloned().collect()
    }

    /// The datastore is put back to an older state: the version too.
    pub(crate) fn restore_to(&self, version: u64, path: &str, object: Value) {
        let mut state = self.state();
        state.version = version;
        state.events.clear();
        state.store(path, object);
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        let name = path.rsplit('/').next().unwrap_or_default();
        object["metadata"]["name"] = json!(name);
        if let Some((namespace, _)) = path.split_once("/namespaces/").and_then(|(_, rest)| rest.split_once('/')) {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.events.push((self.version, kind, path.to_owned(), object.clone()));
        self.objects.insert(path.to_owned(), object);
    }

    /// The objects that a list path names, over all namespaces where it says none.
    fn list(&self, path: &str) -> Vec<Value> {
        let (api, plural) = path.rsplit_once('/').unwrap_or(("", path));
        let of_list = |key: &str| {
            let Some((collection, _)) = key.rsplit_once('/') else { return false };
            collection == path
                || collection
                    .strip_prefix(api)
                    .and_then(|c| c.strip_prefix("/namespaces/"))
                    .and_then(|c| c.split_once('/'))
                    .is_some_and(|(_, p)| p == plural)
        };
        self.objects.iter().filter(|(key, _)| of_list(key)).map(|(_, object)| object.clone()).collect()
    }
}

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Up,
    /// Takes connections and requests and says nothing any more, on watches either.
    Silent,
}

/// One API server. Dropping it takes it down.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    number: usize,
    world: Arc<World>,
    tls: TlsAcceptor,
    mode: watch::Sender<Mode>,
    /// Connections older than this break when they are used.
    oldest: Arc<AtomicU64>,
    /// Watches on connections older than this bring nothing any more.
    deaf: Arc<AtomicU64>,
    pub(crate) connections: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

/// Certificates for servers on the loopback, and a kubeconfig that trusts them.
pub(crate) struct Pki {
    tls: TlsAcceptor,
    ca: String,
    folder: tempfile::TempDir,
    servers: AtomicUsize,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca_key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("CA").pem();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().expect("key");
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters").signed_by(&key, &issuer);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.expect("certificate").der().clone()], key)
            .expect("TLS");
        let folder = tempfile::tempdir().expect("a folder");
        Self { tls: TlsAcceptor::from(Arc::new(config)), ca, folder, servers: AtomicUsize::new(0) }
    }

    pub(crate) async fn serve(&self, world: &Arc<World>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut server = Server {
            address: listener.local_addr().expect("address"),
            number: self.servers.fetch_add(1, Ordering::Relaxed),
            world: world.clone(),
            tls: self.tls.clone(),
            mode: watch::channel(Mode::Up).0,
            oldest: Arc::default(),
            deaf: Arc::default(),
            connections: Arc::default(),
            tasks: JoinSet::new(),
        };
        server.accept(listener);
        server
    }

    /// A kubeconfig for a server.
    pub(crate) fn kubeconfig(&self, server: SocketAddr) -> PathBuf {
        use base64::Engine as _;
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        let path = self.folder.path().join(format!("kubeconfig-{}", server.port()));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: default\n\
             clusters:\n- name: c\n  cluster:\n    server: https://{server}\n    certificate-authority-data: {ca}\n\
             users:\n- name: u\n  user:\n    token: secret\n\
             contexts:\n- name: default\n  context:\n    cluster: c\n    user: u\n"
        );
        std::fs::write(&path, text).expect("written");
        path
    }

    /// The adapter under test, knowing these servers; the kubeconfig names the first.
    pub(crate) fn connect(&self, servers: &[&Server]) -> KubeApi {
        use kadence_engine::ports::Api as _;
        let api = KubeApi::connect(&self.kubeconfig(servers[0].address), None).expect("a kubeconfig");
        api.learn_servers(&servers.iter().map(|s| s.address.to_string()).collect::<Vec<_>>());
        api
    }
}

impl Server {
    fn accept(&mut self, listener: TcpListener) {
        let (world, tls, mode, number) = (self.world.clone(), self.tls.clone(), self.mode.subscribe(), self.number);
        let (oldest, deaf, connections) = (self.oldest.clone(), self.deaf.clone(), self.connections.clone());
        self.tasks.spawn(async move {
            // Dropped with this task: then all its connections close.
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let one = Connection {
                    world: world.clone(),
                    mode: mode.clone(),
                    server: number,
                    number: connections.fetch_add(1, Ordering::SeqCst),
                    oldest: oldest.clone(),
                    deaf: deaf.clone(),
                };
                open.spawn(one.serve(tls.clone(), stream));
            }
        });
    }

    /// Goes down: nobody listens, all connections close.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    pub(crate) async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is free");
        self.mode.send_replace(Mode::Up);
        self.accept(listener);
    }

    /// From now on it takes everything and answers nothing.
    pub(crate) fn fall_silent(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    pub(crate) fn speak(&self) {
        self.mode.send_replace(Mode::Up);
    }

    /// Every connection that is open now breaks when it is used next, as after a power cut and a quick boot.
    pub(crate) fn forget_connections(&self) {
        self.oldest.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Every watch that is open now brings nothing any more, though its connection stays and all else works.
    pub(crate) fn deafen_watches(&self) {
        self.deaf.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// Breaks the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("gone")]
struct Broken;

struct Connection {
    world: Arc<World>,
    mode: watch::Receiver<Mode>,
    server: usize,
    number: u64,
    oldest: Arc<AtomicU64>,
    deaf: Arc<AtomicU64>,
}

impl Connection {
    async fn serve(self, tls: TlsAcceptor, stream: TcpStream) {
        let mut mode = self.mode.clone();
        if mode.wait_for(|m| *m == Mode::Up).await.is_err() {
            return;
        }
        let Ok(stream) = tls.accept(stream).await else { return };
        let this = Arc::new(self);
        let service = service_fn(move |request| {
            let this = this.clone();
            async move { this.answer(request).await }
        });
        // Ends with an error when it was broken on purpose.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
        let mut mode = self.mode.clone();
        mode.wait_for(|m| *m == Mode::Up).await.map_err(|_| Broken)?;
        if self.number < self.oldest.load(Ordering::SeqCst) {
            return Err(Broken);
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        let seen = Seen {
            server: self.server,
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        self.world.state().requests.push(seen.clone());
        if seen.query.contains("watch=true") {
            return Ok(self.watch(&seen));
        }
        let (code, answer) = self.world.handle(&seen);
        let lost = seen.method != Method::GET && std::mem::take(&mut self.world.state().lose_answer);
        if lost {
            return Err(Broken);
        }
        let text = match answer {
            Value::String(text) => text,
            json => json.to_string(),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
        *response.status_mut() = StatusCode::from_u16(code).expect("a status");
        Ok(response)
    }

    fn watch(&self, seen: &Seen) -> Response<Body> {
        let from = parameter(&seen.query, "resourceVersion").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let name = parameter(&seen.query, "fieldSelector").map(|s| s.replace("metadata.name%3D", ""));
        let path = seen.path.clone();
        let (sender, receiver) = mpsc::channel(1);
        let (world, mut mode) = (self.world.clone(), self.mode.clone());
        let (number, deaf) = (self.number, self.deaf.clone());
        tokio::spawn(async move {
            let mut version = world.version.subscribe();
            let mut at = from;
            loop {
                let events: Vec<_> = {
                    let state = world.state();
                    let of_path = |p: &str| {
                        p.rsplit_once('/').is_some_and(|(c, n)| c == path && name.as_deref().is_none_or(|w| w == n))
                    };
                    state.events.iter().filter(|(v, _, p, _)| *v > at && of_path(p)).cloned().collect()
                };
                for (v, kind, _, object) in events {
                    at = v;
                    if mode.wait_for(|m| *m == Mode::Up).await.is_err() {
                        return;
                    }
                    if number < deaf.load(Ordering::SeqCst) {
                        sender.closed().await;
                        return;
                    }
                    let line = format!("{}\n", json!({ "type": kind, "object": object }));
                    if sender.send(Ok::<_, Infallible>(Frame::data(Bytes::from(line)))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = sender.closed() => return,
                    changed = version.changed() => if changed.is_err() { return },
                }
            }
        });
        let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
            let frame = receiver.recv().await?;
            Some((frame, receiver))
        });
        Response::new(StreamBody::new(stream).boxed())
    }
}

impl World {
    fn handle(&self, seen: &Seen) -> (u16, Value) {
        let mut state = self.state();
        let replaced = state.answers.iter().find(|(method, path, ..)| {
            *method == seen.method && seen.path.starts_with(path.as_str()) && (*path != "/apis" || seen.path == "/apis")
        });
        if let Some((_, _, code, body)) = replaced {
            return (*code, body.clone());
        }
        match seen.method {
            Method::GET => match state.objects.get(&seen.path) {
                Some(object) => (200, object.clone()),
                None if looks_like_a_list(&seen.path) => (200, page(&state, seen)),
                None => status(404, "NotFound", "not found"),
            },
            Method::PATCH => {
                if let Some(meddling) = state.meddle.take() {
                    let mut object = state.objects.get(&seen.path).cloned().unwrap_or_default();
                    json_patch::merge(&mut object, &meddling);
                    state.store(&seen.path, object);
                }
                let Some(mut object) = state.objects.get(&seen.path).cloned() else {
                    return status(404, "NotFound", "not found");
                };
                let wants = seen.body.pointer("/metadata/resourceVersion");
                if wants.is_some_and(|wanted| *wanted != object["metadata"]["resourceVersion"]) {
                    return status(409, "Conflict", "the object has been modified");
                }
                json_patch::merge(&mut object, &seen.body);
                state.store(&seen.path, object);
                self.version.send_replace(state.version);
                (200, state.objects[&seen.path].clone())
            }
            Method::POST => {
                let name = seen.body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{}/{name}", seen.path);
                if state.objects.contains_key(&path) {
                    return status(409, "AlreadyExists", "already exists");
                }
                state.store(&path, seen.body.clone());
                self.version.send_replace(state.version);
                (201, state.objects[&path].clone())
            }
            _ => status(405, "MethodNotAllowed", "no such method"),
        }
    }
}

/// The path of a collection: its plural ends in `s` and no object of that path is there.
fn looks_like_a_list(path: &str) -> bool {
    let plural = path.rsplit('/').next().unwrap_or_default();
    plural.ends_with('s') && !path.ends_with("/leases/kadence")
}

fn page(state: &State, seen: &Seen) -> Value {
    let all = state.list(&seen.path);
    let from = parameter(&seen.query, "continue").and_then(|c| c.parse().ok()).unwrap_or(0_usize);
    let limit = parameter(&seen.query, "limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
    let until = all.len().min(from.saturating_add(limit));
    let next = if until < all.len() { until.to_string() } else { String::new() };
    json!({
        "kind": "List",
        "apiVersion": "v1",
        "metadata": { "resourceVersion": state.version.to_string(), "continue": next },
        "items": all[from.min(until)..until],
    })
}

fn parameter(query: &str, key: &str) -> Option<String> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
}

/// A Status, as the API says what went wrong.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message });
    (code, body)
}

/// Fails the test if it takes longer: a test that hangs says nothing.
pub(crate) async fn soon<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(Duration::from_secs(seconds), future).await;
    result.map_err(|_| format!("{what}: not within {seconds} s")).expect("in time")
}
