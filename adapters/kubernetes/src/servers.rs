//! The servers of one cluster: a client for each, and calls that go on with the next one where a server is down.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kadence_engine::ports::ApiError;
use kube::{Client, Config};
use tokio::time::{Instant, timeout};

/// Time for a connection to one server.
pub(crate) const CONNECT: Duration = Duration::from_secs(1);
/// Time for one call to one server.
pub(crate) const CALL: Duration = Duration::from_secs(5);
/// Time for one call over all servers.
const DEADLINE: Duration = Duration::from_secs(12);
/// Where K3s serves, if neither the kubeconfig nor the cluster says otherwise.
const K3S_PORT: u16 = 6443;

/// Every server that is known, and which of them answered last.
pub(crate) struct Servers {
    base: Config,
    /// The port of the API servers: the kubeconfig's, until the cluster's own EndpointSlice says it.
    port: AtomicU16,
    /// The kubeconfig's own.
    own: Arc<Server>,
    known: Mutex<Known>,
}

struct Known {
    /// By authority (`10.0.0.11:6443`).
    all: BTreeMap<String, Arc<Server>>,
    /// In the order in which calls try them; the kubeconfig's own server is the last.
    order: Vec<Arc<Server>>,
    answered_last: Arc<Server>,
}

/// One server, or the load balancer that the kubeconfig names.
pub(crate) struct Server {
    /// Host and port, for people too.
    pub(crate) authority: String,
    /// For calls.
    pub(crate) calls: Pool,
    /// For what measures an outage: of its own, so that nothing else waits on its connections or breaks them.
    pub(crate) probes: Pool,
}

/// Kept connections to one server.
///
/// When one connection breaks, those beside it are no better: after a power cut they are all dead and only their use
/// shows it. So the pool is thrown away as a whole, and the next call makes a new connection.
pub(crate) struct Pool {
    config: Config,
    client: Mutex<(u64, Option<Client>)>,
}

/// Why a call got no good answer from one server.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No connection: surely nothing was done.
    NotSent(String),
    /// It was sent, and no answer came: it may have been done.
    Lost(String),
    TimedOut(Duration),
    Answer(Box<kube::Error>),
}

/// Whether a call may be made again at another server after it was sent and not answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

impl Servers {
    pub(crate) fn new(base: Config) -> Self {
        let url = &base.cluster_url;
        let host = url.host().unwrap_or_default().to_owned();
        // Behind a path there is a proxy of many clusters, whose port says nothing about the servers.
        let direct = url.path() == "/" || url.path().is_empty();
        let port = url.port_u16().filter(|_| direct).unwrap_or(K3S_PORT);
        let authority = format!("{host}:{}", url.port_u16().unwrap_or(443));
        let own = Arc::new(Server::new(authority.clone(), base.clone()));
        let known = Known {
            all: BTreeMap::from([(authority, own.clone())]),
            order: vec![own.clone()],
            answered_last: own.clone(),
        };
        Self { base, port: AtomicU16::new(port), own, known: Mutex::new(known) }
    }

    pub(crate) fn learn(&self, addresses: &[String]) {
        let mut order: Vec<_> = addresses.iter().map(|address| self.at(address)).collect();
        if !order.iter().any(|server| Arc::ptr_eq(server, &self.own)) {
            order.push(self.own.clone());
        }
        self.known().order = order;
    }

    pub(crate) fn learn_port(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// Exactly the server with this address.
    pub(crate) fn at(&self, address: &str) -> Arc<Server> {
        let authority = authority(address, self.port.load(Ordering::Relaxed));
        let mut known = self.known();
        if let Some(server) = known.all.get(&authority) {
            return server.clone();
        }
        let mut config = self.base.clone();
        // What does not parse cannot be reached: the call then says so with the address as it was given.
        config.cluster_url = format!("https://{authority}").parse().unwrap_or_default();
        let server = Arc::new(Server::new(authority.clone(), config));
        known.all.insert(authority, server.clone());
        server
    }

    /// In the order in which a call tries them.
    pub(crate) fn in_order(&self) -> Vec<Arc<Server>> {
        let known = self.known();
        let first = &known.answered_last;
        std::iter::once(first).chain(known.order.iter().filter(|s| !Arc::ptr_eq(s, first))).cloned().collect()
    }

    /// A call that changes nothing: tried at every server until one answers well.
    pub(crate) async fn read<T, F>(&self, what: &str, call: impl Fn(Client) -> F + Sync) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        self.call(Kind::Read, what, call).await
    }

    /// A call that changes something: goes on with the next server only if it surely was not sent.
    pub(crate) async fn write<T, F>(&self, what: &str, call: impl Fn(Client) -> F + Sync) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        self.call(Kind::Write, what, call).await
    }

    async fn call<T, F>(&self, kind: Kind, what: &str, call: impl Fn(Client) -> F + Sync) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let deadline = Instant::now() + DEADLINE;
        let mut refused = None;
        let mut silent = Vec::new();
        for server in self.in_order() {
            let left = CALL.min(deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            let trouble = match kind {
                Kind::Read => server.calls.twice(left, &call).await,
                Kind::Write => server.calls.once(left, &call).await,
            };
            match trouble {
                Ok(value) => {
                    self.known().answered_last = server;
                    return Ok(value);
                }
                Err(Trouble::Answer(error)) if !elsewhere(kind, &error) => {
                    self.known().answered_last = server;
                    return Err(answer(what, &error));
                }
                // A server that just starts answers 503, or knows nobody yet: another one may know better.
                Err(Trouble::Answer(error)) => refused = Some(answer(what, &error)),
                Err(trouble @ (Trouble::Lost(_) | Trouble::TimedOut(_))) if kind == Kind::Write => {
                    return Err(ApiError::NoWay(format!(
                        "{what}: {}: {trouble}; it may have happened all the same",
                        server.authority
                    )));
                }
                Err(trouble) => silent.push(format!("{}: {trouble}", server.authority)),
            }
        }
        Err(refused.unwrap_or_else(|| ApiError::NoWay(format!("{what}: {}", silent.join("; ")))))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn new(authority: String, config: Config) -> Self {
        Self { authority, calls: Pool::new(config.clone()), probes: Pool::new(config) }
    }

    /// The error that a call to exactly this server ends with.
    pub(crate) fn error(&self, what: &str, trouble: &Trouble) -> ApiError {
        match trouble {
            Trouble::Answer(error) => answer(&format!("{what} at {}", self.authority), error),
            other => ApiError::NoWay(format!("{}: {other}", self.authority)),
        }
    }
}

impl Pool {
    fn new(config: Config) -> Self {
        Self { config, client: Mutex::new((0, None)) }
    }

    /// One attempt.
    pub(crate) async fn once<T, F>(&self, within: Duration, call: impl Fn(Client) -> F + Sync) -> Result<T, Trouble>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let (generation, client) = self.client().map_err(|e| Trouble::NotSent(root(&e)))?;
        let trouble = match timeout(within, call(client)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Trouble::from(error),
            Err(_) => Trouble::TimedOut(within),
        };
        if !matches!(trouble, Trouble::Answer(_)) {
            self.discard(generation);
        }
        Err(trouble)
    }

    /// Like [`once`](Self::once), and once more on a new connection if the one that was used broke: it may have been a
    /// kept one whose server has restarted since.
    pub(crate) async fn twice<T, F>(&self, within: Duration, call: impl Fn(Client) -> F + Sync) -> Result<T, Trouble>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let deadline = Instant::now() + within;
        match self.once(within, &call).await {
            Err(Trouble::Lost(_)) => self.once(deadline.saturating_duration_since(Instant::now()), &call).await,
            other => other,
        }
    }

    /// A client with the number of its pool. Made on first use: making one needs a running executor.
    pub(crate) fn client(&self) -> kube::Result<(u64, Client)> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match &slot.1 {
            Some(client) => client.clone(),
            None => slot.1.insert(Client::try_from(self.config.clone())?).clone(),
        };
        Ok((slot.0, client))
    }

    pub(crate) fn discard(&self, generation: u64) {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.0 == generation {
            *slot = (generation + 1, None);
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Service(cause) => {
                let connect = cause
                    .downcast_ref::<hyper_util::client::legacy::Error>()
                    .is_some_and(hyper_util::client::legacy::Error::is_connect);
                let why = root(cause.as_ref());
                if connect { Self::NotSent(why) } else { Self::Lost(why) }
            }
            kube::Error::HyperError(cause) => Self::Lost(root(&cause)),
            kube::Error::ReadEvents(cause) => Self::Lost(root(&cause)),
            kube::Error::Auth(cause) => Self::NotSent(root(&cause)),
            other => Self::Answer(Box::new(other)),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(why) | Self::Lost(why) => f.write_str(why),
            Self::TimedOut(within) => write!(f, "no answer within {within:?}"),
            Self::Answer(error) => error.fmt(f),
        }
    }
}

/// Whether another server could have a better answer.
fn elsewhere(kind: Kind, error: &kube::Error) -> bool {
    match (error, kind) {
        (kube::Error::Api(status), Kind::Read) => matches!(status.code, 401 | 403) || status.code >= 500,
        // K3s answers 503 as long as its API server is not up: the call did not get to it.
        (kube::Error::Api(status), Kind::Write) => status.code == 503,
        _ => false,
    }
}

/// An answer that is not what was asked for.
pub(crate) fn answer(what: &str, error: &kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => match status.code {
            401 | 403 => ApiError::Denied(format!("{what}: {}", status.message)),
            404 => ApiError::NotFound(what.to_owned()),
            409 => ApiError::Conflict(what.to_owned()),
            code => ApiError::Answered(format!("{what}: {code} {}", status.message)),
        },
        other => ApiError::Answered(format!("{what}: {}", root(other))),
    }
}

/// The innermost cause: `connection refused` rather than three layers of who reports it.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn authority(address: &str, port: u16) -> String {
    if let Ok(ip) = address.parse::<IpAddr>() {
        return SocketAddr::new(ip, port).to_string();
    }
    // `host:port`, or `[v6]:port`.
    if address.parse::<SocketAddr>().is_ok() || address.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok())
    {
        return address.to_owned();
    }
    format!("{address}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(servers: &Servers) -> Vec<String> {
        servers.in_order().iter().map(|s| s.authority.clone()).collect()
    }

    #[test]
    fn the_kubeconfigs_own_server_stays_the_last_resort() {
        let servers = Servers::new(Config::new("https://127.0.0.1:6443".parse().expect("an address")));
        assert_eq!(names(&servers), ["127.0.0.1:6443"]);
        for _ in 0..2 {
            servers.learn(&["10.0.0.11".to_owned(), "10.0.0.12".to_owned()]);
            servers.known().answered_last = servers.at("10.0.0.12");
            assert_eq!(names(&servers), ["10.0.0.12:6443", "10.0.0.11:6443", "127.0.0.1:6443"]);
        }
        servers.learn_port(7443);
        servers.learn(&["127.0.0.1:6443".to_owned(), "10.0.0.11".to_owned()]);
        servers.known().answered_last = servers.at("10.0.0.11");
        assert_eq!(names(&servers), ["10.0.0.11:7443", "127.0.0.1:6443"]);
        servers.learn(&[]);
        servers.known().answered_last = servers.own.clone();
        assert_eq!(names(&servers), ["127.0.0.1:6443"]);
    }

    #[test]
    fn addresses_get_the_port_they_lack() {
        for (address, expected) in [
            ("10.0.0.11", "10.0.0.11:6443"),
            ("10.0.0.11:7443", "10.0.0.11:7443"),
            ("fd00::11", "[fd00::11]:6443"),
            ("[fd00::11]:7443", "[fd00::11]:7443"),
            ("s1.example.org", "s1.example.org:6443"),
            ("s1.example.org:7443", "s1.example.org:7443"),
        ] {
            assert_eq!(authority(address, 6443), expected);
        }
    }
}
