//! Hosts reached with the system's OpenSSH: the port [`Hosts`].
//!
//! Everything on a node is done by one script, `node.sh`. It comes through the connection, runs as root and answers in
//! lines. Looking installs nothing (digests are remembered in `/run/kadence` until the next boot). Acting runs in a
//! transient systemd unit, so that it outlives the connection, and leaves its result in `/var/lib/kadence` on the node.

mod answer;
mod arguments;
mod connection;
mod journal;
mod script;
mod secret;

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use hmac::{Hmac, Mac as _};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use kadence_core::apply::plan::SqliteTool;
use kadence_core::apply::signature::SIGNATURES;
use kadence_core::config::Cluster;
use kadence_core::ident::{Digest, NodeName};
use kadence_core::inventory::{HostFacts, Role};
use kadence_engine::ports::{
    Artifact, ArtifactKind, HostAddress, HostError, HostGlance, Hosts, Keep, Order, RemoteFile, Sign, Staged, Task,
    TaskReport,
};

use answer::Answer;
use connection::{Call, Connection, Destination, Line, Settings};

/// The prefix of every etcd snapshot that Kadence makes; pruning never goes beyond it.
pub const SNAPSHOT_PREFIX: &str = "kadence-";

/// A question is answered within so long, or not at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// While an order is performed the node says every second that it is still there.
const TICKS: Duration = Duration::from_secs(15);
/// A transfer that does not move for so long is broken.
const STALLED: Duration = Duration::from_secs(30);
/// One following lasts at most so long; the node ends it by itself should the connection vanish unnoticed.
const FOLLOW_SECONDS: u64 = 3600;

/// The key under which secrets are hashed. It belongs to a state folder and never changes, so that a digest of today
/// can be compared with one of last month.
#[derive(Clone)]
pub struct HmacKey([u8; 32]);

impl HmacKey {
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    pub(crate) fn hash(&self, secret: &str) -> Digest {
        // HMAC takes a key of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return Digest::from_bytes([0; 32]) };
        mac.update(secret.as_bytes());
        Digest::from_bytes(mac.finalize().into_bytes().into())
    }
}

impl std::fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HmacKey(..)")
    }
}

/// The hosts of one cluster.
pub struct SshHosts {
    cluster: Cluster,
    key: HmacKey,
    settings: Arc<Settings>,
    addresses: Mutex<BTreeMap<NodeName, String>>,
    connections: Mutex<BTreeMap<NodeName, Arc<Connection>>>,
}

impl SshHosts {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// If no folder for the control sockets can be made on this machine.
    pub fn new(cluster: &Cluster, key: HmacKey) -> Result<Self, String> {
        Ok(Self {
            settings: Arc::new(Settings::new(cluster.ssh.clone())?),
            cluster: cluster.clone(),
            key,
            addresses: Mutex::default(),
            connections: Mutex::default(),
        })
    }

    fn destination(&self, node: &NodeName) -> Result<Destination, HostError> {
        let access = self.cluster.nodes.get(node);
        let learned = || self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        let address = access.and_then(|a| a.address.clone()).or_else(learned).ok_or_else(|| HostError::NoWay {
            node: node.clone(),
            why: format!("its address is not known: say `address` under nodes.{node} in kadence.yaml"),
        })?;
        // ssh would take it for an option.
        if address.is_empty() || address.starts_with('-') {
            return Err(HostError::NoWay { node: node.clone(), why: format!("`{address}` is not an address") });
        }
        Ok(Destination {
            address,
            port: access.and_then(|a| a.port).unwrap_or(self.cluster.ssh.port),
            user: access.and_then(|a| a.user.clone()).unwrap_or_else(|| self.cluster.ssh.user.clone()),
        })
    }

    fn connection(&self, node: &NodeName) -> Arc<Connection> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Connection::new(node.clone(), Arc::clone(&self.settings)));
        Arc::clone(connections.entry(node.clone()).or_insert_with(new))
    }

    async fn call(&self, node: &NodeName, arguments: &[String]) -> Result<(Arc<Connection>, Call), HostError> {
        let to = self.destination(node)?;
        let connection = self.connection(node);
        let call = connection.call(&to, arguments).await?;
        Ok((connection, call))
    }

    /// Asks and takes the whole answer.
    async fn ask(&self, node: &NodeName, arguments: &[String], patience: Duration) -> Result<Answer, HostError> {
        let (connection, mut call) = self.call(node, arguments).await?;
        let answer = call.answer(patience).await;
        settle(&connection, call, answer).await
    }

    /// Sends a file into Kadence's folder on the node. Returns its path there, and whether it was there already.
    async fn deliver(
        &self,
        node: &NodeName,
        kind: &str,
        name: &str,
        from: &Path,
        digest: &Digest,
    ) -> Result<(String, bool), HostError> {
        let here = |why: String| HostError::Failed { node: node.clone(), code: "here".to_owned(), why };
        let mut file = tokio::fs::File::open(from).await.map_err(|e| here(format!("{}: {e}", from.display())))?;
        let bytes = file.metadata().await.map_err(|e| here(format!("{}: {e}", from.display())))?.len();
        let arguments = words(&["receive", kind, name, &digest.to_string(), &bytes.to_string()]);
        let (connection, mut call) = self.call(node, &arguments).await?;
        let sent = async {
            // Before it wants the bytes the node may have to read a file of the same name.
            match call.line(PATIENCE * 2).await? {
                Line::Fact(line) if line == "send" => {}
                Line::Fact(line) => return Ok((line, true)),
                Line::End => return Err(here("the node did not say what it wants".to_owned())),
                Line::Error { code, why } => return Err(call.failed(&Answer::default(), code, why)),
            }
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let read = file.read(&mut buffer).await.map_err(|e| here(format!("{}: {e}", from.display())))?;
                let Some(stdin) = call.stdin() else { break };
                if read == 0 {
                    break;
                }
                match tokio::time::timeout(STALLED, stdin.write_all(&buffer[..read])).await {
                    Ok(Ok(())) => {}
                    // The node has stopped reading: its answer says why.
                    Ok(Err(_)) => break,
                    Err(_) => {
                        let why = format!("the transfer of {name} did not move for {} s", STALLED.as_secs());
                        return Err(HostError::NoWay { node: node.clone(), why });
                    }
                }
            }
            call.close_stdin();
            let answer = call.answer(PATIENCE * 4).await?;
            let path =
                answer.text("stored").ok_or_else(|| here("the node did not say where the file is".to_owned()))?;
            Ok((format!("stored\t{path}"), false))
        }
        .await;
        let (line, already) = settle(&connection, call, sent).await?;
        let path = line.split_once('\t').map(|(_, path)| path.to_owned());
        path.map(|path| (path, already)).ok_or_else(|| here(format!("an answer that is not known: {line}")))
    }
}

/// After a way that broke the connection is not used again.
async fn settle<T>(connection: &Connection, call: Call, result: Result<T, HostError>) -> Result<T, HostError> {
    match &result {
        Err(HostError::NoWay { .. }) => connection.forget().await,
        _ => call.finish().await,
    }
    result
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[async_trait]
impl Hosts for SshHosts {
    fn learn_nodes(&self, nodes: &BTreeMap<NodeName, HostAddress>) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, host) in nodes {
            addresses.insert(node.clone(), host.address.clone());
        }
    }

    async fn facts(&self, node: &NodeName) -> Result<HostFacts, HostError> {
        let (connection, mut call) = self.call(node, &words(&["facts"])).await?;
        let result = async {
            let first = call.line(PATIENCE).await?;
            let round_trip = SignedDuration::try_from(call.begun().elapsed()).unwrap_or(SignedDuration::ZERO);
            let received = Timestamp::now();
            let mut answer = match first {
                Line::Fact(line) => {
                    let mut answer = Answer::default();
                    answer.push(&line);
                    answer
                }
                Line::Error { code, why } => return Err(call.failed(&Answer::default(), code, why)),
                Line::End => Answer::default(),
            };
            answer.extend(call.answer(PATIENCE).await?);
            Ok(answer::facts(&answer, &self.key, received, round_trip))
        }
        .await;
        settle(&connection, call, result).await
    }

    async fn glance(&self, node: &NodeName) -> Result<HostGlance, HostError> {
        let answer = self.ask(node, &words(&["glance"]), PATIENCE).await?;
        Ok(answer::glance(&answer, &self.key))
    }

    async fn stage(&self, node: &NodeName, artifact: &Artifact) -> Result<Staged, HostError> {
        let (kind, name) = match artifact.kind {
            ArtifactKind::Binary => ("binary", artifact.digest.to_string()),
            ArtifactKind::AirgapImages => ("images", format!("k3s-airgap-images-{}.tar.zst", artifact.arch)),
        };
        let (_, already_there) = self.deliver(node, kind, &name, &artifact.path, &artifact.digest).await?;
        Ok(Staged { already_there, bytes: artifact.bytes })
    }

    async fn act(&self, node: &NodeName, order: &Order) -> Result<TaskReport, HostError> {
        let (task, seconds) = task_words(&order.task);
        let mut arguments = vec![
            "order".to_owned(),
            order.id.to_string(),
            order.turn.to_string(),
            order.holder.clone(),
            seconds.to_string(),
            order.role.to_string(),
        ];
        arguments.extend(task);
        let answer = self.ask(node, &arguments, TICKS).await.map_err(|error| match error {
            HostError::Superseded { node, theirs, .. } => HostError::Superseded { node, ours: order.turn, theirs },
            error => error,
        })?;
        answer::report(&answer).map_err(|why| HostError::Failed {
            node: node.clone(),
            code: "report".to_owned(),
            why: format!("the report of {} cannot be read: {why}", order.id),
        })
    }

    fn follow(&self, node: &NodeName, role: Role) -> BoxStream<'static, Result<Sign, HostError>> {
        let (sender, receiver) = mpsc::channel(64);
        match self.destination(node) {
            Ok(to) => {
                let connection = self.connection(node);
                tokio::spawn(async move {
                    if let Err(error) = follow(&connection, &to, role, &sender).await {
                        if error.is_no_way() {
                            connection.forget().await;
                        }
                        // Nobody listening any more is a way to end, too.
                        let _ = sender.send(Err(error)).await;
                    }
                });
            }
            Err(error) => {
                let _ = sender.try_send(Err(error));
            }
        }
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
    }

    async fn pull(&self, node: &NodeName, file: &RemoteFile, into: &Path) -> Result<(), HostError> {
        let here = |why: String| HostError::Failed { node: node.clone(), code: "here".to_owned(), why };
        let at = |e: std::io::Error| here(format!("{}: {e}", into.display()));
        let (connection, mut call) = self.call(node, &words(&["send", &file.path])).await?;
        let pulled = async {
            match call.line(PATIENCE).await? {
                Line::Fact(_) => {}
                Line::End => return Err(here("the node did not send the file".to_owned())),
                Line::Error { code, why } => return Err(call.failed(&Answer::default(), code, why)),
            }
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let mut copy = tokio::fs::OpenOptions::from(options).open(into).await.map_err(at)?;
            let mut hash = Sha256::new();
            let mut left = file.bytes;
            while left > 0 {
                let stdout = call.stdout();
                let chunk = match tokio::time::timeout(STALLED, stdout.fill_buf()).await {
                    Ok(Ok(chunk)) => chunk,
                    Ok(Err(_)) => &[],
                    Err(_) => {
                        let why = format!("{} did not move for {} s", file.path, STALLED.as_secs());
                        return Err(HostError::NoWay { node: node.clone(), why });
                    }
                };
                if chunk.is_empty() {
                    let why = format!("{} ended {left} bytes before its end", file.path);
                    return Err(HostError::NoWay { node: node.clone(), why });
                }
                let take = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                hash.update(&chunk[..take]);
                copy.write_all(&chunk[..take]).await.map_err(|e| match e.kind() {
                    std::io::ErrorKind::StorageFull => here(format!("disk full here, writing {}", into.display())),
                    _ => at(e),
                })?;
                stdout.consume(take);
                left -= take as u64;
            }
            copy.sync_all().await.map_err(at)?;
            let found = Digest::from_bytes(hash.finalize().into());
            if found != file.digest {
                return Err(HostError::Digest {
                    node: node.clone(),
                    file: file.path.clone(),
                    expected: file.digest.to_string(),
                    found: found.to_string(),
                });
            }
            Ok(())
        }
        .await;
        if pulled.is_err() {
            // Half a file is none. If it was somebody else's, opening it failed and it is not ours to remove.
            if !matches!(&pulled, Err(HostError::Failed { code, .. }) if code == "here") {
                let _ = tokio::fs::remove_file(into).await;
            }
        }
        settle(&connection, call, pulled).await
    }

    async fn push(&self, node: &NodeName, from: &Path, name: &str, digest: &Digest) -> Result<String, HostError> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            let why = format!("`{name}` is not a file's name");
            return Err(HostError::Failed { node: node.clone(), code: "usage".to_owned(), why });
        }
        Ok(self.deliver(node, "file", name, from, digest).await?.0)
    }

    async fn tidy(&self, node: &NodeName, keep: &Keep) -> Result<(), HostError> {
        let mut arguments = words(&["tidy"]);
        arguments.extend(keep.rollouts.iter().map(ToString::to_string));
        arguments.push("--".to_owned());
        arguments.extend(keep.binaries.iter().map(ToString::to_string));
        self.ask(node, &arguments, PATIENCE).await.map(|_| ())
    }
}

/// A task as the script wants it, and how many seconds to wait for it.
fn task_words(task: &Task) -> (Vec<String>, u64) {
    const MINUTE: u64 = 60;
    match task {
        Task::Swap { to, artifact, expect, cold_copy } => {
            let cold = if *cold_copy { "cold" } else { "warm" };
            (words(&["swap", &to.to_string(), &artifact.to_string(), &expect.to_string(), cold]), 10 * MINUTE)
        }
        Task::Place { to, artifact, expect } => {
            (words(&["place", &to.to_string(), &artifact.to_string(), &expect.to_string(), "warm"]), 10 * MINUTE)
        }
        Task::EtcdSnapshot { name } => {
            let name =
                if name.starts_with(SNAPSHOT_PREFIX) { name.clone() } else { format!("{SNAPSHOT_PREFIX}{name}") };
            (words(&["etcd-snapshot", &name]), 7 * MINUTE)
        }
        Task::SqliteBackup { tool } => {
            let tool = match tool {
                SqliteTool::Sqlite3 => "sqlite3",
                SqliteTool::Python3 => "python3",
            };
            (words(&["sqlite-backup", tool]), 20 * MINUTE)
        }
        Task::SqliteStoppedCopy => (words(&["sqlite-stopped-copy"]), 20 * MINUTE),
        Task::Archive => (words(&["archive"]), 5 * MINUTE),
        Task::Stop => (words(&["stop"]), 5 * MINUTE),
        Task::Start => (words(&["start"]), 2 * MINUTE),
        Task::Restart => (words(&["restart"]), 2 * MINUTE),
        Task::EtcdReset { snapshot, digest } => (words(&["etcd-reset", snapshot, &digest.to_string()]), 35 * MINUTE),
        Task::SetEtcdAside => (words(&["set-etcd-aside"]), 2 * MINUTE),
        Task::SqliteRestore { copy, digest } => (words(&["sqlite-restore", copy, &digest.to_string()]), 20 * MINUTE),
        Task::PruneSnapshots { keep, spare } => {
            let mut prune = words(&["prune-snapshots", &keep.to_string(), SNAPSHOT_PREFIX]);
            prune.extend(spare.iter().cloned());
            (prune, 10 * MINUTE)
        }
    }
}

/// Passes on what the node's script says until it ends, the connection does, or nobody listens any more.
async fn follow(
    connection: &Connection,
    to: &Destination,
    role: Role,
    sender: &mpsc::Sender<Result<Sign, HostError>>,
) -> Result<(), HostError> {
    let mut arguments = vec!["follow".to_owned(), role.to_string(), FOLLOW_SECONDS.to_string()];
    arguments.extend(SIGNATURES.iter().flat_map(|s| s.patterns).map(|p| (*p).to_owned()));
    let mut call = connection.call(to, &arguments).await?;
    let mut unit = Answer::default();
    let mut health = Answer::default();
    let mut metrics = Answer::default();
    loop {
        let line = match call.line(TICKS).await? {
            Line::Fact(line) => line,
            Line::End => return Err(connection.no_way("the node ended the watch".to_owned())),
            Line::Error { code, why } => return Err(call.failed(&Answer::default(), code, why)),
        };
        let (key, rest) = line.split_once('\t').unwrap_or((&line, ""));
        let signs = match key {
            "unit" | "time" | "process" | "restart-due" => {
                unit.push(&line);
                Vec::new()
            }
            "unit-end" => {
                let seen = std::mem::take(&mut unit);
                let mut signs = vec![Sign::Unit(answer::unit(&seen))];
                signs.extend(answer::process(&seen).map(Sign::Process));
                signs
            }
            "etcd-health" => {
                health = Answer::default();
                health.push(&line);
                Vec::new()
            }
            "etcd-metrics" => {
                metrics = Answer::default();
                Vec::new()
            }
            "etcd-metric" => {
                metrics.push(&line);
                Vec::new()
            }
            "etcd-end" => {
                let mut both = std::mem::take(&mut health);
                both.extend(metrics.clone());
                vec![Sign::Etcd(answer::etcd_local(&both))]
            }
            "journal" => journal::sign(rest).into_iter().collect(),
            _ => Vec::new(),
        };
        for sign in signs {
            if sender.send(Ok(sign)).await.is_err() {
                break;
            }
        }
        if sender.is_closed() {
            call.finish().await;
            return Ok(());
        }
    }
}
