//! The world behaves as K3s does: each of these is a fact of the field, told by the reference or measured.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kadence_core::apply::backup::verify_etcd_snapshot;
use kadence_core::apply::plan::{DatastoreKind, DeclaredOutage};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, NodeName, RolloutId};
use kadence_core::inventory::{Arch, RecordState, Role};
use kadence_core::version::Version;
use kadence_engine::ports::{
    Api, ApiError, ArtifactKind, HostError, Hosts, Order, Readyz, Releases, Sign, Task, TaskReport,
};
use kadence_sim::faults::{Fault, HowBroken, Target, What, When};
use kadence_sim::{Setup, Topology, World};

struct Bench {
    world: World,
    hosts: Arc<dyn Hosts>,
    api: Arc<dyn Api>,
    releases: Arc<dyn Releases>,
}

fn v(minor: u64, patch: u64) -> Version {
    Version::new(1, minor, patch, 1)
}

fn setup(servers: u8, agents: u8, version: Version) -> Setup {
    let datastore = DatastoreKind::EmbeddedEtcd;
    World::cluster(Topology { servers, agents, datastore }, version)
}

impl Bench {
    fn new(setup: Setup) -> Self {
        let world = setup.build();
        world.consent(Some(DeclaredOutage::Restore));
        let bench = Self { hosts: world.hosts(), api: world.api(), releases: world.releases(), world };
        bench.api.learn_servers(&["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(str::to_owned));
        bench
    }

    async fn order(&self, node: &str, number: u32, task: Task) -> Result<TaskReport, HostError> {
        let rollout = RolloutId::new("r1");
        let role = if node.starts_with('s') { Role::Server } else { Role::Agent };
        let id = ActionId::of(&rollout, number);
        let order = Order { id, turn: 1, holder: String::new(), rollout, plan: "plan".to_owned(), role, task };
        self.hosts.act(&node.into(), &order).await
    }

    /// Stages what is needed and returns the order's task.
    async fn swap(&self, node: &str, from: &Version, to: &Version) -> Task {
        let old = self.releases.fetch(from, Arch::Amd64, ArtifactKind::Binary).await.expect("fetched");
        let new = self.releases.fetch(to, Arch::Amd64, ArtifactKind::Binary).await.expect("fetched");
        self.hosts.stage(&node.into(), &new).await.expect("staged");
        Task::Swap { to: to.clone(), artifact: new.digest, expect: old.digest, cold_copy: false }
    }

    async fn version(&self, node: &str) -> (Version, Option<bool>) {
        let nodes = self.api.nodes().await.expect("nodes");
        let node = nodes.into_iter().find(|n| n.name == NodeName::new(node)).expect("a node");
        (node.version.known().expect("a version").clone(), node.ready.known().copied())
    }

    fn running(&self, node: &str) -> Option<Version> {
        self.world.running().get(node).cloned().flatten()
    }
}

async fn pass(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_restarts_as_measured_and_stays_ready_meanwhile() {
    let bench = Bench::new(setup(3, 0, v(36, 3)));
    let task = bench.swap("s2", &v(36, 3), &v(36, 4)).await;
    bench.order("s2", 1, task).await.expect("swapped");
    let began = bench.world.age();
    pass(300).await;
    assert!(matches!(bench.api.ready("10.0.0.12").await, Err(ApiError::NoWay(_))), "its own API is away");
    assert_eq!(bench.version("s2").await, (v(36, 3), Some(true)), "its Node does not know yet");
    let ready = loop {
        if bench.api.ready("10.0.0.12").await == Ok(Readyz::Ready) {
            break bench.world.age() - began;
        }
        pass(50).await;
    };
    assert!((5000..7000).contains(&ready.as_millis()), "down 0.5 s and start 5 to 6 s, not {ready:?}");
    assert_eq!(bench.version("s2").await.0, v(36, 3), "the kubelet registers a second later");
    pass(1500).await;
    assert_eq!(bench.version("s2").await, (v(36, 4), Some(true)));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_is_ready_for_forty_seconds() {
    let bench = Bench::new(setup(3, 1, v(36, 3)));
    bench.world.strike(What::PowerLoss { at: Target::Node("a1".into()), back: Some(Duration::from_secs(60)) });
    pass(38_000).await;
    assert_eq!(bench.version("a1").await.1, Some(true));
    pass(4000).await;
    assert_eq!(bench.version("a1").await.1, Some(false));
    let before = bench.api.nodes().await.expect("nodes");
    pass(60_000).await;
    let after = bench.api.nodes().await.expect("nodes");
    let boot = |nodes: &[kadence_core::inventory::ApiNode]| {
        nodes.iter().find(|n| n.name.as_str() == "a1").map(|n| n.object.boot_id.clone())
    };
    assert_eq!(bench.version("a1").await.1, Some(true));
    assert_ne!(boot(&before), boot(&after), "it has booted anew");
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_no_api_works_and_with_it_again_all_do() {
    let bench = Bench::new(setup(3, 0, v(36, 3)));
    for server in ["s1", "s3"] {
        let lasts = Duration::from_secs(60);
        bench.world.strike(What::ServerDown { at: Target::Node(server.into()), lasts });
    }
    assert!(matches!(bench.api.nodes().await, Err(ApiError::NoWay(_))), "s2 is up and has no quorum");
    assert!(matches!(bench.api.ready("10.0.0.12").await, Ok(Readyz::NotReady(_))));
    assert!(bench.api.probe_read("10.0.0.12").await.is_err());
    pass(70_000).await;
    for server in ["10.0.0.11", "10.0.0.12", "10.0.0.13"] {
        assert_eq!(bench.api.ready(server).await, Ok(Readyz::Ready), "{server}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_leader_hands_over_and_another_leads_soon() {
    let bench = Bench::new(setup(3, 0, v(36, 3)));
    let leader = async || {
        for server in ["s1", "s2", "s3"] {
            let facts = bench.hosts.facts(&server.into()).await.expect("facts");
            if facts.etcd.is_some_and(|e| e.known().is_some_and(|e| e.leader)) {
                return Some(server);
            }
        }
        None
    };
    assert_eq!(leader().await, Some("s1"));
    bench.order("s1", 1, Task::Restart).await.expect("restarted");
    pass(1500).await;
    let next = leader().await.expect("there is a leader");
    assert_ne!(next, "s1");
    assert_eq!(bench.api.probe_write("10.0.0.12").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_a_newer_minor_than_its_servers_does_not_get_ready() {
    let bench = Bench::new(setup(1, 1, v(35, 8)));
    let task = bench.swap("a1", &v(35, 8), &v(36, 4)).await;
    bench.order("a1", 1, task).await.expect("swapped");
    pass(120_000).await;
    assert_eq!(bench.running("a1"), Some(v(36, 4)));
    assert_eq!(bench.version("a1").await, (v(35, 8), Some(false)));
}

#[tokio::test(start_paused = true)]
async fn the_previous_etcd_minor_starts_until_all_members_are_new() {
    let bench = Bench::new(setup(3, 0, v(33, 10)));
    let up = async |server: &str, number: u32| {
        let task = bench.swap(server, &v(33, 10), &v(33, 11)).await;
        bench.order(server, number, task).await.expect("swapped");
        pass(20_000).await;
    };
    let down = async |server: &str, number: u32| {
        let task = bench.swap(server, &v(33, 11), &v(33, 10)).await;
        bench.order(server, number, task).await.expect("swapped");
        pass(20_000).await;
    };
    up("s2", 1).await;
    down("s2", 2).await;
    assert_eq!(bench.version("s2").await, (v(33, 10), Some(true)), "mid-roll the old binary comes back");
    for (server, number) in [("s2", 3), ("s3", 4), ("s1", 5)] {
        up(server, number).await;
    }
    let mut signs = bench.hosts.follow(&"s2".into(), Role::Server);
    // The present state first; the journal begins here.
    signs.next().await.expect("a sign").expect("reached");
    down("s2", 6).await;
    assert_eq!(bench.version("s2").await.0, v(33, 11), "all were new: the old one does not start");
    let line = loop {
        if let Sign::Journal { class, line } = signs.next().await.expect("a sign").expect("reached") {
            break (class, line);
        }
    };
    assert_eq!(line.0, "etcd-downgrade");
    assert!(line.1.contains("invalid downgrade"));
}

#[tokio::test(start_paused = true)]
async fn packaged_components_are_those_of_the_server_that_started_last() {
    let bench = Bench::new(setup(3, 0, v(36, 2)));
    let coredns = async || {
        let facts = bench.api.facts().await.expect("facts");
        let controllers = facts.workload.controllers.known().expect("controllers").clone();
        controllers.into_iter().find(|c| c.name == "coredns").expect("coredns").images
    };
    let before = coredns().await;
    let task = bench.swap("s2", &v(36, 2), &v(36, 3)).await;
    bench.order("s2", 1, task).await.expect("swapped");
    pass(20_000).await;
    let after = coredns().await;
    assert_ne!(before, after);
    bench.order("s3", 2, Task::Restart).await.expect("restarted");
    pass(20_000).await;
    assert_eq!(coredns().await, before, "an old server flips them back");
}

#[tokio::test(start_paused = true)]
async fn releases_can_be_broken_in_four_ways() {
    for how in
        [HowBroken::ExitsAtOnce, HowBroken::Hangs, HowBroken::DiesAfter(Duration::from_secs(5)), HowBroken::Flaps]
    {
        let bench = Bench::new(setup(3, 0, v(36, 3)));
        bench.world.strike(What::Broken { version: v(36, 4), on: Some("s2".into()), how });
        let task = bench.swap("s2", &v(36, 3), &v(36, 4)).await;
        bench.order("s2", 1, task).await.expect("swapped: that it does not work shows later");
        let (mut active, mut restarts, mut unready) = (0, 0, 0);
        for _ in 0..60 {
            pass(1000).await;
            let glance = bench.hosts.glance(&"s2".into()).await.expect("a glance");
            let unit = glance.unit.known().expect("a unit").clone();
            active += u32::from(unit.active == "active");
            restarts = restarts.max(unit.restarts);
            unready += u32::from(bench.version("s2").await.1 == Some(false));
        }
        match how {
            HowBroken::ExitsAtOnce => assert!(active == 0 && restarts >= 3, "{active} {restarts}"),
            HowBroken::Hangs => assert!(active == 0 && restarts == 0, "{active} {restarts}"),
            HowBroken::DiesAfter(_) => assert!(active > 0 && restarts >= 2, "{active} {restarts}"),
            HowBroken::Flaps => assert!(active > 0 && restarts == 0 && unready > 10, "{active} {restarts} {unready}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_brings_objects_back_and_servers_rejoin_as_learners() {
    let bench = Bench::new(setup(3, 1, v(36, 3)));
    let folder = tempfile::tempdir().expect("a folder");
    let report = bench.order("s1", 1, Task::EtcdSnapshot { name: "kadence-r1".to_owned() }).await.expect("a snapshot");
    let file = report.files.first().expect("a file");
    let here = folder.path().join("snapshot");
    bench.hosts.pull(&"s1".into(), file, &here).await.expect("pulled");
    let read = std::fs::File::open(&here).expect("it is here");
    let facts = verify_etcd_snapshot(std::io::BufReader::new(read), None).expect("whole");

    bench.world.strike(What::ForeignCordon { at: Target::Node("a1".into()) });
    pass(60_000).await;
    let later = bench.api.revision().await.expect("a revision");
    assert!(later > facts.revision);

    let refused = bench.order("s1", 2, Task::EtcdReset { snapshot: file.path.clone(), digest: file.digest }).await;
    assert!(matches!(refused, Err(HostError::Failed { code, .. }) if code == "still-running"));
    for (number, node) in (10..).zip(["s1", "s2", "s3", "a1"]) {
        bench.order(node, number, Task::Stop).await.expect("stopped");
    }
    let back = bench.hosts.push(&"s2".into(), &here, "snapshot", &file.digest).await.expect("pushed");
    let refused = bench.order("s2", 3, Task::EtcdReset { snapshot: back, digest: file.digest }).await;
    assert!(matches!(refused, Err(HostError::Failed { code, .. }) if code == "server-configured"));

    let again = bench.hosts.push(&"s1".into(), &here, "snapshot", &file.digest).await.expect("pushed");
    bench.order("s1", 4, Task::EtcdReset { snapshot: again.clone(), digest: file.digest }).await.expect("reset");
    let told =
        bench.order("s1", 4, Task::EtcdReset { snapshot: again, digest: file.digest }).await.expect("told again");
    assert!(told.already);
    bench.order("s1", 5, Task::Start).await.expect("started");
    pass(15_000).await;
    let nodes = bench.api.nodes().await.expect("nodes");
    assert!(nodes.iter().all(|n| n.object.cordon == kadence_core::inventory::Cordon::None), "as in the snapshot");
    assert!(bench.api.revision().await.expect("a revision") < later, "what came after is lost");

    for (number, server) in [(20, "s2"), (30, "s3")] {
        bench.order(server, number, Task::SetEtcdAside).await.expect("set aside");
        bench.order(server, number + 1, Task::Start).await.expect("started");
        pass(1800).await;
        let etcd = bench.hosts.facts(&server.into()).await.expect("facts").etcd;
        assert!(etcd.is_some_and(|e| e.known().is_some_and(|e| e.learner)), "{server} is a learner first");
        pass(20_000).await;
        let etcd = bench.hosts.facts(&server.into()).await.expect("facts").etcd;
        assert!(etcd.is_some_and(|e| e.known().is_some_and(|e| !e.learner && e.healthy)), "{server} is a voter");
    }
    bench.order("a1", 40, Task::Start).await.expect("started");
    pass(10_000).await;
    let members = bench.hosts.glance(&"s1".into()).await.expect("a glance").etcd_members;
    assert_eq!(members.and_then(|m| m.known().map(Vec::len)), Some(3));
    for node in ["s1", "s2", "s3", "a1"] {
        assert_eq!(bench.version(node).await, (v(36, 3), Some(true)), "{node}");
    }
    assert_eq!(bench.world.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn an_order_goes_on_when_the_way_to_its_node_breaks() {
    let bench = Bench::new(setup(3, 0, v(36, 3)).fault(Fault {
        when: When::Step { order: 1, step: 2 },
        what: What::SshCut { at: Target::InHand, lasts: Duration::from_secs(10) },
    }));
    let task = bench.swap("s2", &v(36, 3), &v(36, 4)).await;
    let lost = bench.order("s2", 1, task.clone()).await;
    assert!(matches!(lost, Err(HostError::NoWay { .. })), "{lost:?}");
    pass(10_000).await;
    let told = bench.order("s2", 1, task).await.expect("the result was kept");
    assert!(told.already && told.kept.is_some());
    assert_eq!(bench.running("s2"), Some(v(36, 4)));
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_in_any_step_leaves_a_record_from_which_the_order_is_completed() {
    let mut brought_back = 0;
    for (step, seed) in (0..5).flat_map(|step| (0..6).map(move |seed| (step, seed))) {
        let bench = Bench::new(setup(3, 0, v(36, 3)).seed(seed).fault(Fault {
            when: When::Step { order: 1, step },
            what: What::PowerLoss { at: Target::InHand, back: Some(Duration::from_secs(5)) },
        }));
        let task = bench.swap("s2", &v(36, 3), &v(36, 4)).await;
        assert!(bench.order("s2", 1, task.clone()).await.is_err_and(|e| e.is_no_way()));
        pass(30_000).await;
        let facts = bench.hosts.facts(&"s2".into()).await.expect("facts");
        assert_eq!(facts.records.first().map(|r| r.state), Some(RecordState::Interrupted), "step {step}");
        let renamed = facts.install.known().is_some_and(|i| i.version.is(&v(36, 4)));
        assert!(renamed <= (step > 2), "step {step}");
        assert!(renamed || step < 4, "synced: it stays");
        brought_back += u32::from(step == 3 && !renamed);
        bench.order("s2", 1, task).await.expect("completed");
        pass(20_000).await;
        assert_eq!(bench.version("s2").await, (v(36, 4), Some(true)), "step {step}");
        let restarted = bench.world.log().iter().filter(|l| l.contains("to be started again")).count();
        assert_eq!(restarted, usize::from(!renamed), "what boot had started from the new file is not restarted");
    }
    assert!((1..6).contains(&brought_back), "an unsynced rename is sometimes lost: {brought_back} of 6");
}

#[tokio::test(start_paused = true)]
async fn two_orders_at_once_are_performed_one_after_the_other() {
    let bench = Bench::new(setup(3, 0, v(36, 3)));
    let (one, other) = tokio::join!(bench.order("s1", 1, Task::Archive), bench.order("s1", 2, Task::Archive));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    let same = tokio::join!(bench.order("s1", 3, Task::Archive), bench.order("s1", 3, Task::Archive));
    assert_eq!(same.0.expect("told").files, same.1.expect("told").files, "the same id is one action");
}

#[tokio::test(start_paused = true)]
async fn a_killed_kadence_never_hears_the_answer_and_its_order_goes_on() {
    let bench =
        Bench::new(setup(3, 0, v(36, 3)).fault(Fault { when: When::Step { order: 1, step: 1 }, what: What::Kill }));
    let task = bench.swap("s2", &v(36, 3), &v(36, 4)).await;
    let killed = bench.world.killed();
    tokio::select! {
        biased;
        () = killed => {}
        answer = bench.order("s2", 1, task.clone()) => unreachable!("{answer:?}"),
    }
    bench.world.revive();
    pass(30_000).await;
    let next = Bench { hosts: bench.world.hosts(), api: bench.world.api(), ..bench };
    assert_eq!(next.version("s2").await, (v(36, 4), Some(true)));
    assert!(next.order("s2", 1, task).await.expect("told").already);
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_surroundings_are_told_as_what_they_are() {
    let bench = Bench::new(setup(3, 1, v(36, 3)));
    let strike = |what| bench.world.strike(what);
    let artifact = bench.releases.fetch(&v(36, 4), Arch::Amd64, ArtifactKind::Binary).await.expect("fetched");

    strike(What::DiskFull { at: Target::Node("s2".into()), lasts: None });
    let full = bench.hosts.stage(&"s2".into(), &artifact).await;
    assert!(matches!(full, Err(HostError::DiskFull { .. })), "{full:?}");

    strike(What::SshCutInCopy { at: Target::Node("s3".into()) });
    let broke = bench.hosts.stage(&"s3".into(), &artifact).await;
    assert!(broke.is_err_and(|e| e.is_no_way()));
    assert!(!bench.hosts.stage(&"s3".into(), &artifact).await.expect("the next one gets through").already_there);

    strike(What::ApiAway { lasts: Duration::from_secs(20) });
    assert!(matches!(bench.api.nodes().await, Err(ApiError::NoWay(_))));
    pass(20_000).await;
    assert!(bench.api.nodes().await.is_ok());

    assert!(bench.order("s3", 1, Task::Archive).await.is_ok());
    strike(What::EqualTurn);
    let other = bench.order("s3", 2, Task::Archive).await;
    assert!(matches!(other, Err(HostError::Superseded { ours: 1, theirs: 1, .. })), "{other:?}");
    strike(What::HigherTurn);
    let late = bench.order("s3", 3, Task::Archive).await;
    assert!(matches!(late, Err(HostError::Superseded { .. })), "{late:?}");

    let before = bench.world.clock().now();
    strike(What::ClockJump { by: jiff::SignedDuration::from_hours(-1) });
    assert!(bench.world.clock().now() < before);

    strike(What::Withdrawn { version: v(36, 5) });
    assert!(!bench.releases.catalog().await.expect("a catalog").releases.contains_key(&v(36, 5)));

    strike(What::SnapshotCorrupt);
    let report = bench.order("s1", 9, Task::EtcdSnapshot { name: "k".to_owned() }).await;
    assert!(matches!(report, Err(HostError::Superseded { .. })), "the turn is still higher");
    let facts = bench.hosts.facts(&"s1".into()).await.expect("facts");
    assert!(matches!(facts.clock_offset, Fact::Known(offset) if offset.as_secs() >= 3600));
}
