//! Each invariant finds the defect that it is there for: here Kadence's part is played by one that does wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kadence_core::apply::plan::{DatastoreKind, DeclaredOutage};
use kadence_core::event::Ending;
use kadence_core::ident::{ActionId, Digest, RolloutId};
use kadence_core::inventory::{Arch, Mark, Role};
use kadence_core::version::Version;
use kadence_engine::ports::{Api, ArtifactKind, Hosts, Order, Releases, Task, Vault as _};
use kadence_sim::faults::{HowBroken, Target, What};
use kadence_sim::vault::MemoryVault;
use kadence_sim::{Topology, World};

/// A Kadence without a mind.
struct Wrong {
    world: World,
    hosts: Arc<dyn Hosts>,
    api: Arc<dyn Api>,
    releases: Arc<dyn Releases>,
    rollout: RolloutId,
    number: u32,
    _folder: tempfile::TempDir,
    pulled: PathBuf,
}

fn version(minor: u64, patch: u64) -> Version {
    Version::new(1, minor, patch, 1)
}

fn old() -> Version {
    version(36, 3)
}

fn new() -> Version {
    version(36, 4)
}

impl Wrong {
    fn new(servers: u8, agents: u8) -> Self {
        Self::on(servers, agents, old())
    }

    fn on(servers: u8, agents: u8, version: Version) -> Self {
        let topology = Topology { servers, agents, datastore: DatastoreKind::EmbeddedEtcd };
        let world = World::cluster(topology, version).build();
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            hosts: world.hosts(),
            api: world.api(),
            releases: world.releases(),
            rollout: RolloutId::new("r1"),
            number: 0,
            pulled: folder.path().to_owned(),
            _folder: folder,
            world,
        }
    }

    async fn order(&mut self, node: &str, task: Task) -> bool {
        self.number += 1;
        let order = Order {
            id: ActionId::of(&self.rollout, self.number),
            turn: 1,
            holder: String::new(),
            rollout: self.rollout.clone(),
            plan: "plan".to_owned(),
            role: if node.starts_with('s') { Role::Server } else { Role::Agent },
            task,
        };
        self.hosts.act(&node.into(), &order).await.is_ok()
    }

    /// A snapshot that is brought here and put into the vault.
    async fn snapshot(&mut self) {
        let file = self.pulled_snapshot().await;
        let vault = MemoryVault::of(self.world.clone(), self.pulled.join("vault"));
        vault.keep("r1-hop1", &BTreeMap::from([("datastore".to_owned(), file)]), "").await.expect("kept");
    }

    async fn pulled_snapshot(&mut self) -> PathBuf {
        self.number += 1;
        let order = Order {
            id: ActionId::of(&self.rollout, self.number),
            turn: 1,
            holder: String::new(),
            rollout: self.rollout.clone(),
            plan: "plan".to_owned(),
            role: Role::Server,
            task: Task::EtcdSnapshot { name: format!("kadence-{}", self.number) },
        };
        let report = self.hosts.act(&"s1".into(), &order).await.expect("a snapshot");
        let file = report.files.first().expect("a file");
        let here = self.pulled.join(self.number.to_string());
        self.hosts.pull(&"s1".into(), file, &here).await.expect("pulled");
        here
    }

    async fn swap(&mut self, node: &str, from: &Version, to: &Version) -> bool {
        let artifact = self.releases.fetch(to, Arch::Amd64, ArtifactKind::Binary).await.expect("fetched");
        self.hosts.stage(&node.into(), &artifact).await.expect("staged");
        let expect = self.digest(from).await;
        self.order(node, Task::Swap { to: to.clone(), artifact: artifact.digest, expect, cold_copy: false }).await
    }

    async fn digest(&self, version: &Version) -> Digest {
        self.releases.fetch(version, Arch::Amd64, ArtifactKind::Binary).await.expect("fetched").digest
    }

    async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// The numbers of the invariants that were broken.
    fn broken(&self) -> BTreeSet<u8> {
        self.world.violations().iter().map(|v| v.invariant).collect()
    }

    fn ends(&self, ending: &Ending) -> BTreeSet<u8> {
        self.world.judge_end(ending, &new(), &BTreeSet::new());
        self.broken()
    }
}

fn only(invariant: u8) -> BTreeSet<u8> {
    BTreeSet::from([invariant])
}

#[tokio::test(start_paused = true)]
async fn a_right_order_breaks_nothing() {
    let mut right = Wrong::new(3, 1);
    right.snapshot().await;
    for node in ["s2", "s3", "s1", "a1"] {
        assert!(right.swap(node, &old(), &new()).await);
        right.pass(30).await;
    }
    assert_eq!(right.ends(&Ending::Completed), BTreeSet::new(), "{:?}", right.world.violations());
}

#[tokio::test(start_paused = true)]
async fn invariant_1_two_servers_down_by_our_hand() {
    let mut wrong = Wrong::new(5, 0);
    wrong.order("s2", Task::Restart).await;
    wrong.order("s3", Task::Restart).await;
    assert_eq!(wrong.broken(), only(1));
}

#[tokio::test(start_paused = true)]
async fn invariant_1_a_quorum_that_hangs_on_one() {
    let mut wrong = Wrong::new(3, 0);
    wrong.world.strike(What::ServerDown { at: Target::Node("s3".into()), lasts: Duration::from_secs(600) });
    wrong.pass(10).await;
    wrong.order("s2", Task::Restart).await;
    assert_eq!(wrong.broken(), only(1));
}

#[tokio::test(start_paused = true)]
async fn invariant_1_the_only_server_without_consent() {
    let mut wrong = Wrong::new(1, 0);
    wrong.order("s1", Task::Restart).await;
    assert_eq!(wrong.broken(), only(1));

    let mut asked = Wrong::new(1, 0);
    asked.world.consent(Some(DeclaredOutage::SingleServer));
    asked.order("s1", Task::Restart).await;
    assert_eq!(asked.broken(), BTreeSet::new(), "a person consented");
}

#[tokio::test(start_paused = true)]
async fn invariant_1_old_peers_that_were_started_make_a_second_cluster() {
    let mut wrong = Wrong::new(3, 0);
    wrong.world.consent(Some(DeclaredOutage::Restore));
    wrong.snapshot().await;
    for server in ["s1", "s2", "s3"] {
        assert!(wrong.order(server, Task::Stop).await);
    }
    let files = wrong.hosts.facts(&"s1".into()).await.expect("facts").records.len();
    assert_eq!(files, 2, "the snapshot and the stop");
    let snapshot = wrong.world.snapshots(&"s1".into()).pop().expect("a snapshot");
    assert!(wrong.order("s1", Task::EtcdReset { snapshot: snapshot.path, digest: snapshot.digest }).await);
    assert!(wrong.order("s1", Task::Start).await);
    wrong.pass(10).await;
    assert_eq!(wrong.broken(), BTreeSet::new(), "so far this is a restore");
    // Their data was not set aside: two of the three old members are a quorum.
    assert!(wrong.order("s2", Task::Start).await);
    assert!(wrong.order("s3", Task::Start).await);
    wrong.pass(20).await;
    assert_eq!(wrong.broken(), only(1), "{:?}", wrong.world.violations());
}

#[tokio::test(start_paused = true)]
async fn invariant_2_an_agent_before_the_servers() {
    let mut wrong = Wrong::new(3, 1);
    wrong.swap("a1", &old(), &new()).await;
    wrong.pass(5).await;
    assert_eq!(wrong.broken(), only(2));
}

#[tokio::test(start_paused = true)]
async fn invariant_2_a_skipped_minor() {
    let mut wrong = Wrong::on(3, 0, version(35, 8));
    wrong.snapshot().await;
    wrong.swap("s2", &version(35, 8), &version(37, 1)).await;
    wrong.pass(5).await;
    assert_eq!(wrong.broken(), only(2));
}

#[tokio::test(start_paused = true)]
async fn invariant_2_down_to_what_never_ran() {
    let mut wrong = Wrong::new(3, 0);
    wrong.swap("s2", &old(), &version(36, 2)).await;
    assert_eq!(wrong.broken(), only(2));
}

#[tokio::test(start_paused = true)]
async fn invariant_3_no_backup() {
    let mut wrong = Wrong::new(3, 0);
    wrong.swap("s2", &old(), &new()).await;
    assert_eq!(wrong.broken(), only(3));
}

#[tokio::test(start_paused = true)]
async fn invariant_3_a_backup_that_cannot_be_read_back() {
    let mut wrong = Wrong::new(3, 0);
    wrong.world.strike(What::SnapshotCorrupt);
    wrong.snapshot().await;
    wrong.swap("s2", &old(), &new()).await;
    assert_eq!(wrong.broken(), only(3));
}

#[tokio::test(start_paused = true)]
async fn invariant_3_a_backup_that_is_not_in_the_vault() {
    let mut wrong = Wrong::new(3, 0);
    wrong.pulled_snapshot().await;
    wrong.swap("s2", &old(), &new()).await;
    assert_eq!(wrong.broken(), only(3));
}

#[tokio::test(start_paused = true)]
async fn invariant_3_a_backup_of_another_rollout() {
    let mut wrong = Wrong::new(3, 0);
    wrong.snapshot().await;
    wrong.rollout = RolloutId::new("r2");
    wrong.swap("s2", &old(), &new()).await;
    assert_eq!(wrong.broken(), only(3));
}

async fn cordon(wrong: &Wrong, node: &str) {
    let mark = Mark { rollout: "r1".to_owned(), plan: "plan".to_owned(), step: "step".to_owned() };
    wrong.api.cordon(&node.into(), &mark).await.expect("cordoned");
}

#[tokio::test(start_paused = true)]
async fn invariant_5_a_cordon_is_left() {
    let wrong = Wrong::new(3, 0);
    cordon(&wrong, "s2").await;
    assert_eq!(wrong.ends(&Ending::Aborted { mixed: Default::default() }), only(5));
}

#[tokio::test(start_paused = true)]
async fn invariant_6_a_node_after_a_hold_was_asked_for() {
    let wrong = Wrong::new(3, 0);
    cordon(&wrong, "s2").await;
    wrong.world.hold_asked();
    wrong.pass(5).await;
    cordon(&wrong, "s3").await;
    assert_eq!(wrong.broken(), only(6));
}

#[tokio::test(start_paused = true)]
async fn invariant_6_a_node_while_the_cluster_is_red() {
    let mut wrong = Wrong::new(5, 0);
    wrong.snapshot().await;
    wrong.world.strike(What::EtcdSick { at: Target::Node("s5".into()), lasts: Duration::from_secs(600) });
    wrong.pass(30).await;
    wrong.swap("s2", &old(), &new()).await;
    assert_eq!(wrong.broken(), only(6));
}

#[tokio::test(start_paused = true)]
async fn invariant_7_a_node_that_somebody_changed() {
    let mut wrong = Wrong::new(3, 0);
    wrong.snapshot().await;
    wrong.world.strike(What::ForeignArguments { at: Target::Node("s2".into()) });
    wrong.pass(30).await;
    wrong.swap("s2", &old(), &new()).await;
    assert_eq!(wrong.broken(), only(7));
}

#[tokio::test(start_paused = true)]
async fn invariant_8_a_second_restore_of_what_has_started() {
    let mut wrong = Wrong::new(1, 0);
    wrong.world.consent(Some(DeclaredOutage::Restore));
    wrong.snapshot().await;
    let snapshot = wrong.world.snapshots(&"s1".into()).pop().expect("a snapshot");
    for again in [false, true] {
        assert!(wrong.order("s1", Task::Stop).await);
        let (path, digest) = (snapshot.path.clone(), snapshot.digest);
        assert!(wrong.order("s1", Task::EtcdReset { snapshot: path, digest }).await);
        assert_eq!(wrong.broken(), if again { only(8) } else { BTreeSet::new() });
        assert!(wrong.order("s1", Task::Start).await);
        wrong.pass(20).await;
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_9_two_rollouts_at_once() {
    let mut wrong = Wrong::new(3, 2);
    wrong.order("a1", Task::Restart).await;
    wrong.rollout = RolloutId::new("r2");
    wrong.world.agents_at_once(2);
    wrong.order("a2", Task::Restart).await;
    assert_eq!(wrong.broken(), only(9));
}

#[tokio::test(start_paused = true)]
async fn invariant_10_more_agents_than_the_wave_allows() {
    let mut wrong = Wrong::new(3, 2);
    wrong.order("a1", Task::Restart).await;
    wrong.order("a2", Task::Restart).await;
    assert_eq!(wrong.broken(), only(10));
}

#[tokio::test(start_paused = true)]
async fn invariant_11_completed_without_proof() {
    let mut wrong = Wrong::new(3, 0);
    wrong.snapshot().await;
    wrong.world.strike(What::Broken { version: new(), on: Some("s1".into()), how: HowBroken::Hangs });
    for server in ["s2", "s3", "s1"] {
        wrong.swap(server, &old(), &new()).await;
        wrong.pass(30).await;
    }
    assert_eq!(wrong.ends(&Ending::Completed), only(11));
}

#[tokio::test(start_paused = true)]
async fn invariant_11_back_without_being_back() {
    let mut wrong = Wrong::new(3, 0);
    wrong.snapshot().await;
    wrong.swap("s2", &old(), &new()).await;
    wrong.pass(30).await;
    let ending = Ending::FailedAndBack { what: String::new(), because: String::new(), next: String::new() };
    assert_eq!(wrong.ends(&ending), only(11));
}
