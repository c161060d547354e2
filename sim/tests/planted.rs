//! For each invariant a defect is planted, in a port or in a plan that nobody looks over, and exploring finds it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kadence_core::apply::action::{BackupReceipt, CordonWas};
use kadence_core::apply::backup::SqliteFacts;
use kadence_core::apply::plan::{Plan, PlanHash};
use kadence_core::event::{Recorded, Request};
use kadence_core::fact::Fact;
use kadence_core::ident::{ClusterUid, Digest, NodeName, RolloutId};
use kadence_core::inventory::{ApiFacts, ApiNode, HostFacts, LeaseHolder, Mark, Pod, Role, Workload};
use kadence_core::version::Version;
use kadence_engine::Engine;
use kadence_engine::ports::{
    Api, ApiError, Artifact, Eviction, HostAddress, HostError, HostGlance, Hosts, Keep, Order, Readyz, RemoteFile,
    Sign, Staged, Store, StoreError, Task, TaskReport, Turn, Vault, VaultError,
};
use kadence_sim::explore::{Case, Planted};

/// A defect that no real port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// Everything is as healthy as at first, says everybody.
    SaysHealthy,
    /// An agent runs what it was told to run, says everybody, and nobody told it.
    SaysUpdated,
    /// An order reaches another server, too.
    ReachesTwo,
    /// Orders to a server reach an agent.
    ReachesAnother,
    /// A cordon is said to be lifted and is not.
    LeavesCordons,
    /// A backup is said to be copied and is not.
    CopiesNothing,
    /// Staging never ends.
    WaitsForEver,
    /// What a node looked like at first is what it looks like.
    LooksOnce,
    /// A node that refuses a lower turn is told a higher one.
    Insists,
    /// Every Kadence says that it holds the turn, whichever took it.
    SharesItsTurn,
    /// A restored server is restored once more after its start.
    RestoresTwice,
    /// An error quotes a file that it read.
    QuotesSecrets,
    /// What is asked of a rollout is thrown away.
    ForgetsRequests,
}

/// What a defect remembers, over all ports and over the deaths of Kadence.
#[derive(Default)]
struct Memory {
    /// What each node looked like at first.
    first: BTreeMap<NodeName, HostGlance>,
    workload: Option<Workload>,
    resets: BTreeMap<NodeName, Order>,
    /// What each agent was told to run.
    told: BTreeMap<NodeName, (Version, Digest)>,
}

struct Bent<P: ?Sized> {
    inner: Arc<P>,
    defect: Defect,
    memory: Arc<Mutex<Memory>>,
}

impl<P: ?Sized> Bent<P> {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("unpoisoned")
    }
}

fn bend(engine: Engine, defect: Defect, memory: &Arc<Mutex<Memory>>) -> Engine {
    let (api, hosts) = (Arc::clone(&engine.api), Arc::clone(&engine.hosts));
    Engine {
        api: Arc::new(Bent { inner: api, defect, memory: Arc::clone(memory) }),
        hosts: Arc::new(Bent { inner: hosts, defect, memory: Arc::clone(memory) }),
        vault: Arc::new(Bent { inner: Arc::clone(&engine.vault), defect, memory: Arc::clone(memory) }),
        store: Arc::new(Bent { inner: Arc::clone(&engine.store), defect, memory: Arc::clone(memory) }),
        ..engine
    }
}

fn bent_node(defect: Defect, memory: &Mutex<Memory>, mut node: ApiNode) -> ApiNode {
    if defect == Defect::SaysHealthy {
        node.ready = Fact::Known(true);
    }
    if matches!(defect, Defect::SaysHealthy | Defect::SaysUpdated) {
        node.reported = Fact::Known(jiff::Timestamp::MAX);
    }
    if let Some((version, _)) = memory.lock().expect("unpoisoned").told.get(&node.name) {
        node.version = Fact::Known(version.clone());
    }
    node
}

#[async_trait]
impl Api for Bent<dyn Api> {
    fn learn_servers(&self, addresses: &[String]) {
        self.inner.learn_servers(addresses);
    }

    async fn facts(&self) -> Result<ApiFacts, ApiError> {
        let mut facts = self.inner.facts().await?;
        facts.nodes =
            facts.nodes.map(|nodes| nodes.into_iter().map(|n| bent_node(self.defect, &self.memory, n)).collect());
        if self.defect == Defect::SaysHealthy {
            facts.workload = self.memory().workload.get_or_insert_with(|| facts.workload.clone()).clone();
        }
        Ok(facts)
    }

    async fn uid(&self) -> Result<ClusterUid, ApiError> {
        self.inner.uid().await
    }

    async fn revision(&self) -> Result<u64, ApiError> {
        self.inner.revision().await
    }

    async fn nodes(&self) -> Result<Vec<ApiNode>, ApiError> {
        Ok(self.inner.nodes().await?.into_iter().map(|n| bent_node(self.defect, &self.memory, n)).collect())
    }

    fn watch_node(&self, node: &NodeName) -> BoxStream<'static, ApiNode> {
        let (defect, memory) = (self.defect, Arc::clone(&self.memory));
        self.inner.watch_node(node).map(move |seen| bent_node(defect, &memory, seen)).boxed()
    }

    async fn ready(&self, address: &str) -> Result<Readyz, ApiError> {
        match self.defect {
            Defect::SaysHealthy => Ok(Readyz::Ready),
            _ => self.inner.ready(address).await,
        }
    }

    async fn cordon(&self, node: &NodeName, mark: &Mark) -> Result<CordonWas, ApiError> {
        self.inner.cordon(node, mark).await
    }

    async fn uncordon(&self, node: &NodeName, rollout: &RolloutId) -> Result<bool, ApiError> {
        match self.defect {
            Defect::LeavesCordons => Ok(true),
            _ => self.inner.uncordon(node, rollout).await,
        }
    }

    async fn pods_on(&self, node: &NodeName) -> Result<Vec<Pod>, ApiError> {
        self.inner.pods_on(node).await
    }

    async fn evict(&self, pod: &Pod, dry_run: bool) -> Result<Eviction, ApiError> {
        self.inner.evict(pod, dry_run).await
    }

    async fn probe_read(&self, address: &str) -> Result<(), ApiError> {
        self.inner.probe_read(address).await
    }

    async fn probe_write(&self, address: &str) -> Result<(), ApiError> {
        self.inner.probe_write(address).await
    }

    async fn announce(&self, holder: Option<&LeaseHolder>) -> Result<(), ApiError> {
        self.inner.announce(holder).await
    }

    async fn condition(&self, probe: &kadence_core::config::ConditionProbe) -> Result<bool, ApiError> {
        self.inner.condition(probe).await
    }

    async fn restart_controllers(&self) -> Result<Vec<String>, ApiError> {
        self.inner.restart_controllers().await
    }
}

#[async_trait]
impl Hosts for Bent<dyn Hosts> {
    fn learn_nodes(&self, nodes: &BTreeMap<NodeName, HostAddress>) {
        self.inner.learn_nodes(nodes);
    }

    async fn facts(&self, node: &NodeName) -> Result<HostFacts, HostError> {
        let mut facts = self.inner.facts(node).await?;
        let told = self.memory().told.get(node).cloned();
        facts.install = facts.install.map(|mut install| {
            if let Some((version, digest)) = told {
                install.version = Fact::Known(version);
                install.digest = digest;
            }
            install
        });
        Ok(facts)
    }

    async fn glance(&self, node: &NodeName) -> Result<HostGlance, HostError> {
        let mut glance = self.inner.glance(node).await?;
        let mut memory = self.memory();
        let first = memory.first.entry(node.clone()).or_insert_with(|| glance.clone()).clone();
        match self.defect {
            Defect::SaysHealthy => {
                let HostGlance { binary, arguments, boot_id, running, .. } = glance;
                glance = HostGlance { binary, arguments, boot_id, running, ..first };
            }
            Defect::LooksOnce => glance.arguments = first.arguments,
            _ => {}
        }
        if let Some((_, digest)) = memory.told.get(node) {
            glance.binary = Fact::Known(*digest);
        }
        Ok(glance)
    }

    async fn stage(&self, node: &NodeName, artifact: &Artifact) -> Result<Staged, HostError> {
        if self.defect == Defect::WaitsForEver {
            std::future::pending::<()>().await;
        }
        self.inner.stage(node, artifact).await
    }

    async fn act(&self, node: &NodeName, order: &Order) -> Result<TaskReport, HostError> {
        match (self.defect, &order.task) {
            (Defect::SaysUpdated, Task::Swap { to, artifact, .. }) if order.role == Role::Agent => {
                self.memory().told.insert(node.clone(), (to.clone(), *artifact));
                return Ok(TaskReport { already: true, ..TaskReport::default() });
            }
            (Defect::QuotesSecrets, Task::Swap { .. }) => {
                let why = format!("server/token: unexpected {}", kadence_sim::SECRET);
                return Err(HostError::Failed { node: node.clone(), code: "read".to_owned(), why });
            }
            (Defect::ReachesTwo, Task::Swap { .. }) if node.as_str() == "s2" => {
                let too = Order { id: order.id.part("too"), task: Task::Restart, ..order.clone() };
                self.inner.act(&"s3".into(), &too).await?;
            }
            (Defect::ReachesAnother, Task::Swap { .. }) if node.as_str() == "s2" => {
                self.inner.act(&"a1".into(), &Order { role: Role::Agent, ..order.clone() }).await?;
            }
            (Defect::RestoresTwice, Task::EtcdReset { .. }) => {
                self.memory().resets.insert(node.clone(), order.clone());
            }
            _ => {}
        }
        let order = &match self.defect {
            Defect::SharesItsTurn => Order { holder: "another".to_owned(), ..order.clone() },
            _ => order.clone(),
        };
        let done = self.inner.act(node, order).await;
        if let (Defect::Insists, Err(HostError::Superseded { theirs, .. })) = (self.defect, &done) {
            return self.inner.act(node, &Order { turn: *theirs + 1, ..order.clone() }).await;
        }
        let again = self.memory().resets.remove(node);
        match (again, &order.task) {
            (Some(reset), Task::Start) => {
                let stop = Order { id: order.id.part("stop"), task: Task::Stop, ..order.clone() };
                tokio::time::sleep(Duration::from_secs(20)).await;
                self.inner.act(node, &stop).await?;
                self.inner.act(node, &Order { id: order.id.part("reset"), ..reset }).await?;
                self.inner.act(node, &Order { id: order.id.part("start"), ..order.clone() }).await
            }
            (Some(reset), _) => {
                self.memory().resets.insert(node.clone(), reset);
                done
            }
            (None, _) => done,
        }
    }

    fn follow(&self, node: &NodeName, role: Role) -> BoxStream<'static, Result<Sign, HostError>> {
        self.inner.follow(node, role)
    }

    async fn pull(&self, node: &NodeName, file: &RemoteFile, into: &Path) -> Result<(), HostError> {
        self.inner.pull(node, file, into).await
    }

    async fn push(&self, node: &NodeName, from: &Path, name: &str, digest: &Digest) -> Result<String, HostError> {
        self.inner.push(node, from, name, digest).await
    }

    async fn tidy(&self, node: &NodeName, keep: &Keep) -> Result<(), HostError> {
        self.inner.tidy(node, keep).await
    }
}

#[async_trait]
impl Vault for Bent<dyn Vault> {
    fn scratch(&self) -> Result<PathBuf, VaultError> {
        self.inner.scratch()
    }

    fn discard(&self, scratch: &Path) {
        self.inner.discard(scratch);
    }

    async fn keep(
        &self,
        backup: &str,
        files: &BTreeMap<String, PathBuf>,
        page: &str,
    ) -> Result<BTreeMap<String, Digest>, VaultError> {
        if self.defect == Defect::CopiesNothing {
            return Ok(files.keys().map(|name| (name.clone(), Digest::of(name.as_bytes()))).collect());
        }
        self.inner.keep(backup, files, page).await
    }

    async fn fetch(&self, backup: &str, file: &str, into: &Path) -> Result<(), VaultError> {
        self.inner.fetch(backup, file, into).await
    }

    async fn read_sqlite(&self, database: &Path) -> Result<SqliteFacts, VaultError> {
        self.inner.read_sqlite(database).await
    }

    async fn holds(&self, receipt: &BackupReceipt) -> bool {
        self.inner.holds(receipt).await
    }
}

#[async_trait]
impl Store for Bent<dyn Store> {
    async fn take_turn(&self, cluster: &ClusterUid, holder: &str, at_least: u64) -> Result<Turn, StoreError> {
        self.inner.take_turn(cluster, holder, at_least).await
    }

    async fn append(&self, cluster: &ClusterUid, event: &Recorded) -> Result<(), StoreError> {
        self.inner.append(cluster, event).await
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
        let asked = self.inner.requests(cluster).await?;
        Ok(if self.defect == Defect::ForgetsRequests { Vec::new() } else { asked })
    }

    async fn answered(&self, cluster: &ClusterUid, up_to: u64) -> Result<(), StoreError> {
        self.inner.answered(cluster, up_to).await
    }
}

/// So many stories find any of these.
const WITHIN: u64 = 200;

/// Tells stories until one breaks this invariant.
fn finds(invariant: u8, what: &str, tell: impl Fn(&Case, &Path) -> Vec<kadence_sim::invariants::Violation>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut others = Vec::new();
    let found = (1..=WITHIN).any(|seed| {
        let case = Case::of_seed(seed);
        let violations = tell(&case, folder.path());
        let broken = violations.iter().any(|v| v.invariant == invariant);
        others.extend(violations.iter().map(|v| format!("{seed}: {v}")));
        // Only a story that is whole without the defect shows that it is the defect that was found.
        broken && case.tell(folder.path()).expect("a runtime").violations.is_empty()
    });
    assert!(found, "{what}: not found in {WITHIN} stories; found instead: {others:#?}");
}

fn finds_port(invariant: u8, defect: Defect) {
    finds(invariant, &format!("{defect:?}"), |case, folder| {
        let memory = Arc::default();
        let ports = |engine: Engine| bend(engine, defect, &memory);
        let planted = Planted { ports: Some(&ports), plan: None };
        case.tell_with(folder, &planted).expect("a runtime").violations
    });
}

fn finds_plan(invariant: u8, what: &str, change: impl Fn(&mut Plan)) {
    finds(invariant, what, |case, folder| {
        let planted = Planted { ports: None, plan: Some(&change) };
        case.tell_with(folder, &planted).expect("a runtime").violations
    });
}

#[test]
fn invariant_1_an_order_that_reaches_two_servers() {
    finds_port(1, Defect::ReachesTwo);
}

#[test]
fn invariant_2_an_agent_gets_a_servers_order() {
    finds_port(2, Defect::ReachesAnother);
}

/// What a plan of this kind does not get past: the engine looks it over again, by checks that share nothing with it.
#[test]
fn two_servers_in_one_wave_and_agents_first_break_nothing() {
    let in_one_wave = |plan: &mut Plan| {
        let steps = plan.decision.hops.iter_mut().flat_map(|h| &mut h.steps);
        steps.filter(|s| s.role == Role::Server).for_each(|s| s.wave = 0);
    };
    let agents_first = |plan: &mut Plan| {
        for hop in &mut plan.decision.hops {
            hop.steps.sort_by_key(|s| s.role == Role::Server);
            hop.steps.iter_mut().zip(0..).for_each(|(step, wave)| step.wave = wave);
        }
    };
    let folder = tempfile::tempdir().expect("a folder");
    for seed in 1..=20 {
        for change in [&in_one_wave as &dyn Fn(&mut Plan), &agents_first] {
            let told = Case::of_seed(seed).tell_with(folder.path(), &Planted { ports: None, plan: Some(change) });
            let violations = told.expect("a runtime").violations;
            assert!(violations.iter().all(|v| ![1, 2].contains(&v.invariant)), "{seed}: {violations:?}");
        }
    }
}

#[test]
fn invariant_3_a_backup_that_was_never_copied() {
    finds_port(3, Defect::CopiesNothing);
}

#[test]
fn invariant_4_a_port_without_an_end() {
    finds_port(4, Defect::WaitsForEver);
}

#[test]
fn invariant_5_a_cordon_that_stays() {
    finds_port(5, Defect::LeavesCordons);
}

#[test]
fn invariant_6_a_request_that_is_forgotten() {
    finds_port(6, Defect::ForgetsRequests);
}

#[test]
fn invariant_6_everything_is_called_healthy() {
    finds_port(6, Defect::SaysHealthy);
}

#[test]
fn invariant_7_a_second_look_that_is_none() {
    finds_port(7, Defect::LooksOnce);
}

#[test]
fn invariant_8_a_second_restore() {
    finds_port(8, Defect::RestoresTwice);
}

#[test]
fn invariant_9_a_kadence_that_insists() {
    finds_port(9, Defect::Insists);
}

#[test]
fn invariant_9_two_states_hand_out_one_turn() {
    finds_port(9, Defect::SharesItsTurn);
}

#[test]
fn invariant_10_all_agents_at_once() {
    finds_plan(10, "all agents at once", |plan| {
        for hop in &mut plan.decision.hops {
            let first = hop.steps.iter().find(|s| s.role == Role::Agent).map_or(0, |s| s.wave);
            hop.steps.iter_mut().filter(|s| s.role == Role::Agent).for_each(|s| s.wave = first);
        }
    });
}

#[test]
fn invariant_11_completed_on_hearsay() {
    finds_port(11, Defect::SaysUpdated);
}

#[test]
fn invariant_12_a_secret_in_an_error() {
    finds_port(12, Defect::QuotesSecrets);
}
