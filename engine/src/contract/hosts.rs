//! What every way to hosts does.

use std::any::Any;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt as _;
use kadence_core::ident::{ActionId, Digest, NodeName, RolloutId};
use kadence_core::inventory::{RecordState, Role};
use kadence_core::version::Version;

use crate::ports::{Artifact, HostError, Hosts, Keep, Order, Sign, Task};

/// A server that runs K3s, with all that the suite needs around it.
pub struct AtHand {
    pub hosts: Arc<dyn Hosts>,
    pub server: NodeName,
    /// A binary of another version than the one that is installed, not on the node yet.
    pub artifact: Artifact,
    /// A new, empty folder on this machine.
    pub folder: PathBuf,
    /// What all this lives in.
    pub keep: Box<dyn Any + Send>,
}

/// Runs the suite; `fresh` brings a server up each time.
///
/// # Panics
/// If the hosts do not do what they should.
pub async fn suite(fresh: impl AsyncFn() -> AtHand) {
    facts_and_glance_tell_the_same(&fresh().await).await;
    staging_is_done_once(&fresh().await).await;
    an_order_is_performed_once_per_id(&fresh().await).await;
    a_swap_keeps_what_was_there_and_can_be_taken_back(&fresh().await).await;
    a_swap_of_something_else_than_expected_is_refused(&fresh().await).await;
    a_lower_turn_may_not_act(&fresh().await).await;
    files_are_pulled_and_pushed_by_digest(&fresh().await).await;
    what_changes_only_a_stopped_node_is_refused_on_a_running_one(&fresh().await).await;
    a_copy_is_put_back_only_if_it_is_what_it_was(&fresh().await).await;
    a_follower_is_told_the_present_state_first(&fresh().await).await;
    tidying_forgets_other_rollouts(&fresh().await).await;
}

/// An order of the rollout `r1` in turn 7.
fn order(number: u32, task: Task) -> Order {
    let rollout = RolloutId::new("r1");
    let (id, holder) = (ActionId::of(&rollout, number), "eva".to_owned());
    Order { id, turn: 7, holder, rollout, plan: "plan".to_owned(), role: Role::Server, task }
}

fn swap(to: &Version, artifact: Digest, expect: Digest) -> Task {
    Task::Swap { to: to.clone(), artifact, expect, cold_copy: false }
}

async fn installed(at: &AtHand) -> (Version, Digest) {
    let facts = at.hosts.facts(&at.server).await.expect("the host answers");
    let install = facts.install.known().expect("K3s is installed").clone();
    (install.version.known().expect("its version is known").clone(), install.digest)
}

async fn facts_and_glance_tell_the_same(at: &AtHand) {
    let facts = at.hosts.facts(&at.server).await.expect("facts");
    let glance = at.hosts.glance(&at.server).await.expect("a glance");
    assert_eq!(glance.machine_id, facts.machine_id);
    assert_eq!(glance.boot_id, facts.boot_id);
    let install = facts.install.known().expect("an installation");
    assert_eq!(install.role, Role::Server);
    assert!(glance.binary.is(&install.digest));
    assert_eq!(glance.arguments.known().copied(), facts.arguments.known().and_then(|a| a.digest));
    assert_eq!(glance.etcd.is_some(), facts.etcd.is_some());
    assert_eq!(glance.unit.known().map(|u| u.active.as_str()), Some("active"));
    assert_eq!(facts.turn, 0, "nothing of ours was here");
    assert!(facts.records.is_empty());
}

async fn staging_is_done_once(at: &AtHand) {
    let (_, before) = installed(at).await;
    let first = at.hosts.stage(&at.server, &at.artifact).await.expect("staged");
    assert!(!first.already_there);
    let again = at.hosts.stage(&at.server, &at.artifact).await.expect("staged");
    assert!(again.already_there);
    assert_eq!(installed(at).await.1, before, "staging touches nothing that runs");
}

async fn an_order_is_performed_once_per_id(at: &AtHand) {
    let archive = order(1, Task::Archive);
    let first = at.hosts.act(&at.server, &archive).await.expect("performed");
    assert!(!first.already);
    assert_eq!(first.files.len(), 1);
    let again = at.hosts.act(&at.server, &archive).await.expect("told again");
    assert!(again.already);
    assert_eq!(again.files, first.files, "the result of the first time");
    let facts = at.hosts.facts(&at.server).await.expect("facts");
    assert_eq!(facts.turn, 7);
    let records: Vec<_> = facts.records.iter().map(|r| (r.id.as_str(), r.state)).collect();
    assert_eq!(records, [("r1-1", RecordState::Succeeded)]);
}

async fn a_swap_keeps_what_was_there_and_can_be_taken_back(at: &AtHand) {
    let (old, before) = installed(at).await;
    let (new, artifact) = (&at.artifact.version, at.artifact.digest);
    at.hosts.stage(&at.server, &at.artifact).await.expect("staged");
    let there = at.hosts.act(&at.server, &order(1, swap(new, artifact, before))).await.expect("swapped");
    assert!(!there.already);
    assert!(there.kept.is_some(), "the previous binary is kept");
    assert_eq!(installed(at).await.1, artifact);

    let again = at.hosts.act(&at.server, &order(1, swap(new, artifact, before))).await.expect("told again");
    assert!(again.already, "once per id");

    let back = at.hosts.act(&at.server, &order(2, swap(&old, before, artifact))).await.expect("swapped back");
    assert!(!back.already);
    assert_eq!(installed(at).await, (old, before), "from what was kept, without staging it anew");
}

async fn a_swap_of_something_else_than_expected_is_refused(at: &AtHand) {
    let (_, before) = installed(at).await;
    let (new, artifact) = (&at.artifact.version, at.artifact.digest);
    let missing = at.hosts.act(&at.server, &order(1, swap(new, artifact, before))).await;
    assert!(matches!(&missing, Err(HostError::Failed { code, .. }) if code == "not-staged"), "{missing:?}");

    at.hosts.stage(&at.server, &at.artifact).await.expect("staged");
    let other = Digest::of(b"somebody else's");
    let refused = at.hosts.act(&at.server, &order(2, swap(new, artifact, other))).await;
    assert!(matches!(refused, Err(HostError::Digest { .. })), "{refused:?}");
    assert_eq!(installed(at).await.1, before);
    let again = at.hosts.act(&at.server, &order(2, swap(new, artifact, other))).await;
    assert_eq!(again, refused, "a failure is a result, too");
}

async fn a_lower_turn_may_not_act(at: &AtHand) {
    at.hosts.act(&at.server, &order(1, Task::Archive)).await.expect("performed");
    let mut late = order(2, Task::Archive);
    late.turn = 6;
    let refused = at.hosts.act(&at.server, &late).await;
    assert!(matches!(refused, Err(HostError::Superseded { ours: 6, theirs: 7, .. })), "{refused:?}");
    let facts = at.hosts.facts(&at.server).await.expect("facts");
    assert_eq!(facts.records.len(), 1, "nothing was begun");
    // Two states that know nothing of each other hand out the same number.
    let mut other = order(2, Task::Archive);
    other.holder = "tom".to_owned();
    let refused = at.hosts.act(&at.server, &other).await;
    assert!(matches!(refused, Err(HostError::Superseded { ours: 7, theirs: 7, .. })), "{refused:?}");
    assert_eq!(at.hosts.facts(&at.server).await.expect("facts").records.len(), 1, "nothing was begun");
    let mut higher = order(3, Task::Archive);
    higher.turn = 8;
    higher.holder = "tom".to_owned();
    at.hosts.act(&at.server, &higher).await.expect("performed");
    assert_eq!(at.hosts.facts(&at.server).await.expect("facts").turn, 8);
}

async fn files_are_pulled_and_pushed_by_digest(at: &AtHand) {
    let made = at.hosts.act(&at.server, &order(1, Task::Archive)).await.expect("performed");
    let file = made.files.first().expect("a file").clone();
    let into = at.folder.join("pulled");
    at.hosts.pull(&at.server, &file, &into).await.expect("pulled");
    let bytes = std::fs::read(&into).expect("it is here");
    assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (file.bytes, file.digest));

    let mut other = file.clone();
    other.digest = Digest::of(b"another");
    let wrong = at.hosts.pull(&at.server, &other, &at.folder.join("wrong")).await;
    assert!(matches!(wrong, Err(HostError::Digest { .. })), "{wrong:?}");
    let mut missing = file.clone();
    missing.path.push_str("-missing");
    let missing = at.hosts.pull(&at.server, &missing, &at.folder.join("missing")).await;
    assert!(matches!(missing, Err(HostError::Failed { .. })), "{missing:?}");

    let path = at.hosts.push(&at.server, &into, "pushed", &file.digest).await.expect("pushed");
    let mut there = file.clone();
    there.path = path;
    at.hosts.pull(&at.server, &there, &at.folder.join("again")).await.expect("what was pushed is there");
    let spoilt = at.hosts.push(&at.server, &into, "spoilt", &Digest::of(b"another")).await;
    assert!(matches!(spoilt, Err(HostError::Digest { .. })), "{spoilt:?}");
}

async fn what_changes_only_a_stopped_node_is_refused_on_a_running_one(at: &AtHand) {
    let (old, before) = installed(at).await;
    at.hosts.stage(&at.server, &at.artifact).await.expect("staged");
    let (new, artifact) = (at.artifact.version.clone(), at.artifact.digest);
    let place = Task::Place { to: new.clone(), artifact, expect: before };
    for (number, task) in [(1, place.clone()), (2, Task::SetEtcdAside)] {
        let refused = at.hosts.act(&at.server, &order(number, task)).await;
        assert!(matches!(&refused, Err(HostError::Failed { code, .. }) if code == "still-running"), "{refused:?}");
    }
    at.hosts.act(&at.server, &order(3, Task::Stop)).await.expect("stopped");
    let unit = at.hosts.glance(&at.server).await.expect("a glance").unit;
    let unit = unit.known().expect("the unit is known");
    assert_eq!((unit.enabled, unit.main_pid), (false, 0), "stopped, disabled, and nothing runs");
    at.hosts.act(&at.server, &order(4, place)).await.expect("placed");
    assert_eq!(installed(at).await.1, artifact);
    let back = Task::Place { to: old, artifact: before, expect: artifact };
    at.hosts.act(&at.server, &order(5, back)).await.expect("placed back, from what was kept");
    at.hosts.act(&at.server, &order(6, Task::Start)).await.expect("started");
    let unit = at.hosts.glance(&at.server).await.expect("a glance").unit;
    assert!(unit.known().is_some_and(|u| u.enabled));
}

async fn a_copy_is_put_back_only_if_it_is_what_it_was(at: &AtHand) {
    let file = at.folder.join("copy");
    std::fs::write(&file, "no datastore, but a file").expect("written");
    let (digest, other) = (Digest::of(b"no datastore, but a file"), Digest::of(b"another"));
    let path = at.hosts.push(&at.server, &file, "copy", &digest).await.expect("pushed");
    let unit = at.hosts.glance(&at.server).await.expect("a glance").unit;
    assert!(unit.known().is_some_and(|u| u.active == "active"));
    for (number, task) in [
        (1, Task::EtcdReset { snapshot: path.clone(), digest: other }),
        (2, Task::SqliteRestore { copy: path.clone(), digest: other }),
    ] {
        let refused = at.hosts.act(&at.server, &order(number, task)).await;
        assert!(matches!(&refused, Err(HostError::Failed { code, .. }) if code == "still-running"), "{refused:?}");
    }
    at.hosts.act(&at.server, &order(3, Task::Stop)).await.expect("stopped");
    for (number, task) in [
        (4, Task::EtcdReset { snapshot: path.clone(), digest: other }),
        (5, Task::SqliteRestore { copy: path.clone(), digest: other }),
    ] {
        let refused = at.hosts.act(&at.server, &order(number, task)).await;
        assert!(matches!(&refused, Err(HostError::Digest { .. })), "{refused:?}");
    }
    let missing = format!("{path}-missing");
    for (number, code, task) in [
        (6, "no-snapshot", Task::EtcdReset { snapshot: missing.clone(), digest }),
        (7, "no-copy", Task::SqliteRestore { copy: missing.clone(), digest }),
    ] {
        let refused = at.hosts.act(&at.server, &order(number, task)).await;
        assert!(matches!(&refused, Err(HostError::Failed { code: c, .. }) if c == code), "{refused:?}");
    }
}

async fn a_follower_is_told_the_present_state_first(at: &AtHand) {
    let mut signs = at.hosts.follow(&at.server, Role::Server);
    let mut kinds = BTreeSet::new();
    while !kinds.contains("unit") || !kinds.contains("process") {
        match signs.next().await.expect("it goes on").expect("the host is there") {
            Sign::Unit(unit) => {
                assert_eq!(unit.active, "active");
                kinds.insert("unit");
            }
            Sign::Process(_) => {
                kinds.insert("process");
            }
            Sign::Journal { .. } | Sign::Etcd(_) => {}
        }
    }
    at.hosts.act(&at.server, &order(1, Task::Restart)).await.expect("restarted");
    loop {
        match signs.next().await.expect("it goes on").expect("the host is there") {
            Sign::Unit(unit) if unit.active != "active" => break,
            _ => {}
        }
    }
}

async fn tidying_forgets_other_rollouts(at: &AtHand) {
    at.hosts.act(&at.server, &order(1, Task::Archive)).await.expect("performed");
    let mut other = order(1, Task::Archive);
    other.rollout = RolloutId::new("r2");
    other.id = ActionId::of(&other.rollout, 1);
    at.hosts.act(&at.server, &other).await.expect("performed");
    let keep = Keep { binaries: Vec::new(), rollouts: vec![RolloutId::new("r2")] };
    at.hosts.tidy(&at.server, &keep).await.expect("tidied");
    let facts = at.hosts.facts(&at.server).await.expect("facts");
    let ids: Vec<_> = facts.records.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["r2-1"]);
    assert_eq!(facts.turn, 7, "the turn is never forgotten");
}
