//! One Node, watched at every server at once, so that a server may go away in the middle.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, pin_mut, stream};
use k8s_openapi::api::core::v1::Node;
use kadence_core::ident::NodeName;
use kadence_core::inventory::ApiNode;
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::facts::node::api_node;
use crate::servers::{Server, Servers, Trouble};

/// How often a server is asked although its watch is open: a connection that died silently shows only by that.
const ASK: Duration = Duration::from_secs(2);
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// The server ends a watch after this, in seconds.
const WATCH: u32 = 240;
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_AT_MOST: Duration = Duration::from_millis(500);
/// How often the watch looks for servers it did not know yet.
const LOOK_FOR_SERVERS: Duration = Duration::from_secs(1);

/// See the port.
pub(crate) fn node(servers: Arc<Servers>, name: NodeName) -> BoxStream<'static, ApiNode> {
    // Dropping the stream drops the set, which ends its tasks; so the tasks are made when it is first polled.
    let (sender, receiver) = mpsc::channel(16);
    let newest = Arc::new(Newest::default());
    let watches = Watches { servers, name, newest, sender, watched: BTreeSet::new(), tasks: JoinSet::new() };
    stream::unfold((watches, receiver), |(mut watches, mut receiver)| async move {
        loop {
            watches.join_new_servers();
            // Never `None`: `watches` holds a sender.
            if let Ok(Some(node)) = timeout(LOOK_FOR_SERVERS, receiver.recv()).await {
                return Some((node, (watches, receiver)));
            }
        }
    })
    .boxed()
}

struct Watches {
    servers: Arc<Servers>,
    name: NodeName,
    newest: Arc<Newest>,
    sender: mpsc::Sender<ApiNode>,
    watched: BTreeSet<String>,
    tasks: JoinSet<()>,
}

impl Watches {
    fn join_new_servers(&mut self) {
        for server in self.servers.in_order() {
            if self.watched.insert(server.authority.clone()) {
                let one =
                    One { server, name: self.name.clone(), newest: self.newest.clone(), sender: self.sender.clone() };
                self.tasks.spawn(one.watch());
            }
        }
    }
}

/// The newest state that was passed on, by any of the watches.
///
/// Servers lag behind each other, so a watch may bring what another one has surpassed. But the version may also go
/// back for good: by a restore of the datastore. The two are told apart by reads that go to the datastore: one that
/// began after a version was seen and finds an older one is the proof of a restore.
#[derive(Default)]
struct Newest(Mutex<Option<(String, u64)>>);

impl Newest {
    /// The version that the next read may not fall behind.
    fn version(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, version)| *version)
    }

    /// Whether this state goes out. `at_least` is for a read of the datastore: the version seen before it began.
    fn admit(&self, node: &Node, at_least: Option<u64>) -> bool {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = node.uid().unwrap_or_default();
        // Not a number in some future version: then every state goes out, repeated or not.
        let Some(version) = node.resource_version().and_then(|v| v.parse::<u64>().ok()) else {
            return true;
        };
        let fresh = match newest.as_ref() {
            None => true,
            Some((known, seen)) => {
                let restored = at_least.is_some_and(|least| version < least);
                *known != uid || version > *seen || (restored && version != *seen)
            }
        };
        if fresh {
            *newest = Some((uid, version));
        }
        fresh
    }
}

/// The watch at one server.
struct One {
    server: Arc<Server>,
    name: NodeName,
    newest: Arc<Newest>,
    sender: mpsc::Sender<ApiNode>,
}

impl One {
    async fn watch(self) {
        let mut pause = BACK_OFF / 2;
        loop {
            let begun = Instant::now();
            if let Err(trouble) = self.round().await {
                tracing::debug!(server = %self.server.authority, node = %self.name, %trouble, "watch ended");
            }
            // A watch that held for a while says that the server was well; it may be again soon.
            pause = if begun.elapsed() > ASK { BACK_OFF } else { (pause * 2).min(BACK_OFF_AT_MOST) };
            sleep(pause).await;
        }
    }

    /// Reads the Node, then watches it from there, until the server ends the watch or does not answer any more.
    async fn round(&self) -> Result<(), Trouble> {
        let version = self.ask().await?;
        let (generation, client) = self.server.calls.client().map_err(Trouble::from)?;
        let result = self.follow(client, version).await;
        if let Err(Trouble::Lost(_) | Trouble::TimedOut(_)) = result {
            self.server.calls.discard(generation);
        }
        result
    }

    async fn follow(&self, client: Client, version: String) -> Result<(), Trouble> {
        let params = WatchParams::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH);
        let nodes = Api::<Node>::all(client);
        let events = timeout(ASK_WITHIN, nodes.watch(&params, &version)).await;
        let events = events.map_err(|_| Trouble::TimedOut(ASK_WITHIN))??;
        pin_mut!(events);
        let mut ask = interval_at(Instant::now() + ASK, ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What the watch has brought, and whether it owes what a look found instead.
        let (mut told, mut owes) = (version, false);
        loop {
            tokio::select! {
                event = events.try_next() => match event? {
                    None => return Ok(()),
                    Some(WatchEvent::Added(node) | WatchEvent::Modified(node)) => {
                        told = node.resource_version().unwrap_or_default();
                        owes = false;
                        self.pass_on(&node, None).await;
                    }
                    Some(WatchEvent::Error(status)) => return Err(kube::Error::Api(status).into()),
                    Some(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_)) => {}
                },
                _ = ask.tick() => {
                    let now = self.ask().await?;
                    if owes {
                        return Err(Trouble::Lost("the watch brings nothing any more".to_owned()));
                    }
                    // It may be on its way; the next look tells.
                    owes = now != told;
                }
            }
        }
    }

    /// Reads the Node from the datastore; returns its version.
    async fn ask(&self) -> Result<String, Trouble> {
        let seen = self.newest.version();
        let get = |client| async move { Api::<Node>::all(client).get(self.name.as_str()).await };
        let node = self.server.calls.twice(ASK_WITHIN, get).await?;
        let version = node.resource_version().unwrap_or_default();
        self.pass_on(&node, seen).await;
        Ok(version)
    }

    async fn pass_on(&self, node: &Node, at_least: Option<u64>) {
        if self.newest.admit(node, at_least) {
            // Fails only if nobody listens any more; then this task is about to end.
            let _ = self.sender.send(api_node(node)).await;
        }
    }
}
