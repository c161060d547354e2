//! What lies around the cluster: the clock, the user's probes, and a store that a fault can strike at.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use kadence_core::apply::plan::{Plan, PlanHash};
use kadence_core::config::{Probe, ProbeTest};
use kadence_core::event::{Recorded, Request};
use kadence_core::ident::{ClusterUid, RolloutId};
use kadence_engine::ports::{Clock, CommandRun, Prober, Store, StoreError, Turn};

use crate::world::{Content, Handle, Place, State, World};

/// The wall clock of the machine that Kadence runs on.
pub(crate) struct SimClock(pub(crate) World);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.0.look(|s| s.wall())
    }
}

/// The user's probes and commands.
pub(crate) struct SimProber(pub(crate) Handle);

#[async_trait]
impl Prober for SimProber {
    async fn probe(&self, probe: &Probe) -> Result<(), String> {
        self.0.port("probe", Duration::from_millis(20), |s| s.probe(&probe.test)).await
    }

    async fn command(
        &self,
        argv: &[String],
        stdin: Option<&Path>,
        stdout: Option<&Path>,
    ) -> Result<CommandRun, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
        let input = stdin.map(read).transpose()?;
        let exit_and_bytes = self.0.port("command", Duration::from_millis(800), |s| s.command(argv, input)).await;
        let (exit, bytes) = exit_and_bytes?;
        if let Some(path) = stdout {
            std::fs::write(path, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;
            if exit == 0 && !bytes.is_empty() {
                self.0.world().look(State::external_backed_up);
            }
        }
        Ok(CommandRun { exit, bytes_out: bytes.len() as u64 })
    }
}

impl World {
    /// A command of this name ends with this exit code from now on; 0 before.
    pub fn command_ends_with(&self, program: &str, exit: i32) {
        self.look(|s| s.prober_commands.insert(program.to_owned(), exit));
    }
}

impl State {
    /// `service.namespace...` is answered by that Service's endpoints, an address of a server by its API.
    fn probe(&self, test: &ProbeTest) -> Result<(), String> {
        let target = match test {
            ProbeTest::Http(http) => {
                let rest = http.url.split_once("://").map_or(http.url.as_str(), |(_, rest)| rest);
                rest.split('/').next().unwrap_or_default()
            }
            ProbeTest::Tcp(target) => target.as_str(),
            ProbeTest::Command(argv) => {
                let exit = argv.first().and_then(|p| self.prober_commands.get(p)).copied().unwrap_or(0);
                return if exit == 0 { Ok(()) } else { Err(format!("it ended with {exit}")) };
            }
            ProbeTest::Condition(_) => return Err("a condition is asked of the API".to_owned()),
        };
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
        if let Some(machine) = self.by_address(target) {
            return if self.serves(&machine.name) { Ok(()) } else { Err(format!("{target}: connection refused")) };
        }
        let mut parts = host.split('.');
        let (Some(name), Some(namespace)) = (parts.next(), parts.next()) else {
            return Err(format!("{host}: no such host"));
        };
        // Pods and their Services go on while every API server is away.
        let service = format!("{namespace}/{name}");
        let objects = self.etcds.values().next_back().map(|e| &e.objects);
        let objects = objects
            .or(self.external.as_ref())
            .or_else(|| self.machines.keys().find_map(|n| self.objects(&Place::Sqlite(n.clone()))));
        match objects.map(|o| o.services().contains_key(&service)) {
            Some(true) => Ok(()),
            _ => Err(format!("{host}: connection refused")),
        }
    }

    /// The user's own command: with a file on its standard input it restores the external datastore, else it backs it
    /// up.
    fn command(&mut self, argv: &[String], input: Option<Vec<u8>>) -> Result<(i32, Vec<u8>), String> {
        let Some(program) = argv.first() else { return Err("no command is given".to_owned()) };
        if let Some(exit) = self.prober_commands.get(program).copied().filter(|e| *e != 0) {
            return Ok((exit, Vec::new()));
        }
        if let Some(dump) = input {
            let digest = kadence_core::ident::Digest::of(&dump);
            let known = self.stored.get(&digest).cloned();
            let Some(Content::Snapshot(snapshot)) = known.as_deref().map(|s| &s.what) else {
                return Ok((1, Vec::new()));
            };
            self.external = Some(snapshot.objects.clone());
            self.watch.data_is_back(&snapshot.objects);
            self.note("the external datastore is restored");
            return Ok((0, Vec::new()));
        }
        let Some(objects) = self.objects_mut(&Place::External).map(|o| o.clone()) else { return Ok((0, Vec::new())) };
        let bytes = format!("-- dump of revision {} at {}", objects.revision, self.now.as_millis()).into_bytes();
        self.remember_dump(&bytes, objects);
        Ok((0, bytes))
    }
}

/// A store whose writes are moments at which Kadence can be killed.
pub(crate) struct KillableStore<S> {
    inner: S,
    handle: Handle,
}

impl<S> KillableStore<S> {
    pub(crate) fn new(inner: S, handle: Handle) -> Self {
        Self { inner, handle }
    }
}

#[async_trait]
impl<S: Store> Store for KillableStore<S> {
    async fn take_turn(&self, cluster: &ClusterUid, holder: &str, at_least: u64) -> Result<Turn, StoreError> {
        self.handle.alive().await;
        let turn = self.inner.take_turn(cluster, holder, at_least).await?;
        self.handle.world().look(|s| s.watch.turn_taken(turn.number));
        Ok(turn)
    }

    async fn append(&self, cluster: &ClusterUid, event: &Recorded) -> Result<(), StoreError> {
        self.handle.event(event, false).await;
        let appended = self.inner.append(cluster, event).await;
        self.handle.event(event, true).await;
        appended
    }

    async fn events(&self, rollout: &RolloutId) -> Result<Vec<Recorded>, StoreError> {
        self.inner.events(rollout).await
    }

    async fn rollouts(&self, cluster: &ClusterUid) -> Result<Vec<RolloutId>, StoreError> {
        self.inner.rollouts(cluster).await
    }

    async fn known_uid(&self, name: &str) -> Result<Option<ClusterUid>, StoreError> {
        self.inner.known_uid(name).await
    }

    async fn remember_uid(&self, name: &str, uid: &ClusterUid) -> Result<(), StoreError> {
        self.inner.remember_uid(name, uid).await
    }

    async fn save_plan(&self, plan: &Plan) -> Result<PlanHash, StoreError> {
        self.inner.save_plan(plan).await
    }

    async fn plans(&self, prefix: &str) -> Result<Vec<Plan>, StoreError> {
        self.inner.plans(prefix).await
    }

    async fn request(&self, cluster: &ClusterUid, request: Request) -> Result<(), StoreError> {
        self.inner.request(cluster, request).await
    }

    async fn requests(&self, cluster: &ClusterUid) -> Result<Vec<(u64, Request)>, StoreError> {
        self.handle.alive().await;
        for request in self.handle.world().look(|s| std::mem::take(&mut s.asked)) {
            self.inner.request(cluster, request).await?;
        }
        self.inner.requests(cluster).await
    }

    async fn answered(&self, cluster: &ClusterUid, up_to: u64) -> Result<(), StoreError> {
        self.handle.alive().await;
        self.inner.answered(cluster, up_to).await
    }
}

impl World {
    /// The ports of the Kadence of now. Made anew after [`revive`](Self::revive).
    pub fn api(&self) -> Arc<dyn kadence_engine::ports::Api> {
        Arc::new(crate::api::SimApi::new(self.handle()))
    }

    pub fn hosts(&self) -> Arc<dyn kadence_engine::ports::Hosts> {
        Arc::new(crate::hosts::SimHosts(self.handle()))
    }

    pub fn releases(&self) -> Arc<dyn kadence_engine::ports::Releases> {
        Arc::new(crate::release::SimReleases(self.handle()))
    }

    pub fn prober(&self) -> Arc<dyn Prober> {
        Arc::new(SimProber(self.handle()))
    }

    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SimClock(self.clone()))
    }

    /// The store, with every stored event a moment at which Kadence can be killed.
    pub fn store<S: Store + 'static>(&self, inner: S) -> Arc<dyn Store> {
        Arc::new(KillableStore::new(inner, self.handle()))
    }
}
