//! Against a real host with systemd and sshd, and a stand-in for the K3s binary that does nothing but run and stop.
//!
//! `KADENCE_TEST_HOST` names the folder of a host that `testbed/hosts` made and that is up; without it these tests do
//! nothing and say so. They take the host as theirs.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::sync::{Mutex, MutexGuard};

use kadence_core::apply::plan::SqliteTool;
use kadence_core::config::{Cluster, NodeAccess, SecretRef, Ssh, Sudo};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, Digest, NodeName, RolloutId};
use kadence_core::inventory::{Arch, RecordState, Role};
use kadence_core::version::Version;
use kadence_engine::ports::{
    Artifact, ArtifactKind, HostAddress, HostError, Hosts as _, Keep, Order, RemoteFile, Sign, Task, TaskReport,
};
use kadence_ssh::{HmacKey, SshHosts};

/// The tests share one host.
static HOST: Mutex<()> = Mutex::const_new(());

/// Runs until it is told to stop, then for as long as `/run/hold-stop` is there.
const STAND_IN: &str = r#"#!/bin/sh
# build NAME
[ "$1" != --version ] || { echo "k3s version VERSION (0000000)"; exit; }
case " $* " in *" --cluster-reset "*)
  env > /run/reset-env
  grep -las '[t]op .secret' /proc/[0-9]*/cmdline > /run/reset-seen
  touch /var/lib/rancher/k3s/server/db/reset-flag
  echo 'level=info msg="Managed etcd cluster membership has been reset, restart without --cluster-reset flag now."'
  exit ;;
esac
trap 'while [ -e /run/hold-stop ]; do sleep 0.05; done; exit 0' TERM
systemd-notify --ready
while :; do sleep 0.05; done
"#;

const UNIT: &str = "[Service]\nType=notify\nNotifyAccess=all\nKillMode=process\nRestart=always\n\
                    ExecStart=/usr/local/bin/k3s server --tls-san x\n[Install]\nWantedBy=multi-user.target\n";

struct Host {
    dir: PathBuf,
    name: String,
    ssh: Ssh,
    scratch: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

fn node() -> NodeName {
    NodeName::new("n1")
}

fn version(text: &str) -> Version {
    text.parse().expect("a version")
}

#[expect(clippy::print_stderr, reason = "a skipped test has to be loud")]
async fn host() -> Option<Host> {
    let Some(dir) = std::env::var_os("KADENCE_TEST_HOST").map(PathBuf::from) else {
        eprintln!("SKIPPED: KADENCE_TEST_HOST names no test host: nothing was proven about real hosts");
        return None;
    };
    let turn = HOST.lock().await;
    let testbed = dir.parent().and_then(Path::parent).expect("a host of the testbed");
    let ssh = Ssh { key: Some(testbed.join("id")), known_hosts: Some(dir.join("known_hosts")), ..Ssh::default() };
    let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
    let scratch = tempfile::tempdir().expect("a folder");
    let host = Host { dir, name, ssh, scratch, _turn: turn };
    host.install("v1.35.7+k3s1");
    Some(host)
}

impl Host {
    fn hosts(&self) -> SshHosts {
        self.hosts_by(self.ssh.clone())
    }

    fn hosts_by(&self, ssh: Ssh) -> SshHosts {
        let cluster = serde_json::json!({ "environment": "test", "kubeconfig": "/nowhere" });
        let mut cluster: Cluster = serde_json::from_value(cluster).expect("a cluster");
        cluster.ssh = ssh;
        let address = std::fs::read_to_string(self.dir.join("ip")).expect("an address").trim().to_owned();
        cluster.nodes.insert(node(), NodeAccess { address: Some(address), ..NodeAccess::default() });
        SshHosts::new(&cluster, HmacKey::new([9; 32])).expect("hosts")
    }

    /// By the testbed's own way in, without SSH.
    fn enter(&self, script: &str) -> Output {
        self.testbed(&["enter", &self.name, "sh", "-c", script])
    }

    fn run(&self, script: &str) -> String {
        let output = self.enter(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn testbed(&self, arguments: &[&str]) -> Output {
        let testbed = self.dir.parent().and_then(Path::parent).expect("a testbed");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testbed/hosts");
        Command::new(script).args(arguments).env("TESTBED", testbed).output().expect("testbed/hosts runs")
    }

    fn cut_power_and_boot(&self) {
        assert!(self.testbed(&["kill", &self.name]).status.success());
        let up = self.testbed(&["up", &self.name]);
        assert!(up.status.success(), "{up:?}");
    }

    /// A stand-in of this version on the host, running; nothing else of K3s's or of Kadence's.
    fn install(&self, version: &str) {
        let unit = UNIT.replace('\n', "\\n");
        let from = self.artifact(version).path;
        let text = std::fs::read_to_string(&from).expect("the stand-in").replace('\'', "'\\''");
        self.run(&format!(
            "rm -f /run/hold-stop /run/reset-*; systemctl stop squatter.socket 2>/dev/null
             [ ! -e /usr/bin/sqlite3.away ] || mv /usr/bin/sqlite3.away /usr/bin/sqlite3
             mountpoint -q /var/lib/kadence && umount /var/lib/kadence
             systemctl stop k3s.service 2>/dev/null; systemctl disable -q k3s.service 2>/dev/null
             rm -rf /var/lib/kadence /run/kadence /var/lib/rancher/k3s/* /etc/rancher/k3s /usr/local/bin/k3s
             mkdir -p /etc/rancher/k3s /var/lib/rancher/k3s/server/db
             printf 'token: secret\\ncluster-cidr: 10.42.0.0/16\\n' > /etc/rancher/k3s/config.yaml
             printf '%s' '{text}' > /usr/local/bin/k3s; chmod 755 /usr/local/bin/k3s
             printf '{unit}' > /etc/systemd/system/k3s.service
             systemctl daemon-reload; systemctl enable -q k3s; systemctl start k3s"
        ));
    }

    /// A stand-in that lies here, as a release source would have it.
    fn artifact(&self, version_text: &str) -> Artifact {
        let path = self.scratch.path().join(version_text);
        let text = STAND_IN.replace("VERSION", version_text).replace("NAME", version_text);
        std::fs::write(&path, &text).expect("written");
        Artifact {
            version: version(version_text),
            arch: Arch::Amd64,
            digest: Digest::of(text.as_bytes()),
            path,
            bytes: text.len() as u64,
            kind: ArtifactKind::Binary,
        }
    }

    fn installed(&self) -> Digest {
        self.run("sha256sum < /usr/local/bin/k3s | cut -c1-64").parse().expect("a digest")
    }

    fn main_pid(&self) -> String {
        self.run("systemctl show -p MainPID --value k3s")
    }

    /// Waits until something is so on the host, looking.
    async fn until(&self, what: &str, condition: &str) {
        let begun = Instant::now();
        while !self.enter(condition).status.success() {
            assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn order(id: &str, turn: u64, task: Task) -> Order {
    let (id, rollout) = (ActionId::new(id), RolloutId::new("r"));
    Order { id, turn, holder: "eva".to_owned(), rollout, plan: "p".to_owned(), role: Role::Server, task }
}

fn swap(to: &Artifact, from: &Artifact, cold_copy: bool) -> Task {
    Task::Swap { to: to.version.clone(), artifact: to.digest, expect: from.digest, cold_copy }
}

fn code(result: &Result<TaskReport, HostError>) -> &str {
    match result {
        Err(HostError::Failed { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_tells_what_runs_and_installs_nothing() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    let facts = hosts.facts(&node()).await.expect("facts");
    let install = facts.install.known().expect("an installation");
    assert_eq!(install.version, Fact::Known(version("v1.35.7+k3s1")));
    assert_eq!(install.digest, host.installed());
    assert_eq!((install.role, install.unit.name.as_str(), install.unit.enabled), (Role::Server, "k3s", true));
    assert_eq!(install.unit.active, "active");
    let glance = hosts.glance(&node()).await.expect("a glance");
    assert_eq!(glance.arguments.known(), facts.arguments.known().and_then(|a| a.digest.as_ref()));
    assert_eq!(glance.binary, Fact::Known(install.digest));
    assert!(facts.clock_offset.known().expect("an offset").abs() < jiff::SignedDuration::from_secs(1));
    assert_eq!(host.run("ls -d /var/lib/kadence 2>/dev/null || echo none"), "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_done_once_per_id() {
    let Some(host) = host().await else { return };
    let (old, new) = (host.artifact("v1.35.7+k3s1"), host.artifact("v1.35.9+k3s1"));
    let hosts = host.hosts();
    assert!(!hosts.stage(&node(), &new).await.expect("staged").already_there);
    assert!(hosts.stage(&node(), &new).await.expect("staged").already_there);
    let before = host.main_pid();

    let first = hosts.act(&node(), &order("r-1", 3, swap(&new, &old, false))).await.expect("swapped");
    assert!(!first.already);
    assert_eq!(host.installed(), new.digest);
    host.until("restarted", &format!("p=$(systemctl show -p MainPID --value k3s); [ $p != 0 ] && [ $p != {before} ] && systemctl -q is-active k3s")).await;
    let after = host.main_pid();

    let again = hosts.act(&node(), &order("r-1", 3, swap(&new, &old, false))).await.expect("told again");
    assert!(again.already);
    assert_eq!(again.kept, first.kept);
    assert_eq!(host.main_pid(), after, "nothing was restarted a second time");

    let lower = hosts.act(&node(), &order("r-2", 2, swap(&old, &new, false))).await;
    assert_eq!(lower, Err(HostError::Superseded { node: node(), ours: 2, theirs: 3 }));
    let other = Order { holder: "tom".to_owned(), ..order("r-2", 3, swap(&old, &new, false)) };
    let other = hosts.act(&node(), &other).await;
    assert_eq!(other, Err(HostError::Superseded { node: node(), ours: 3, theirs: 3 }));
    assert_eq!(host.installed(), new.digest);

    // Back, from what was kept: it need not be sent.
    hosts.act(&node(), &order("r-3", 3, swap(&old, &new, false))).await.expect("back");
    assert_eq!(host.installed(), old.digest);
    let facts = hosts.facts(&node()).await.expect("facts");
    assert_eq!(facts.turn, 3);
    let records: Vec<_> = facts.records.iter().map(|r| (r.id.as_str(), r.state)).collect();
    assert_eq!(
        records,
        [("r-1", RecordState::Succeeded), ("r-3", RecordState::Succeeded)],
        "the refused one left nothing"
    );

    hosts.tidy(&node(), &Keep { binaries: vec![], rollouts: vec![] }).await.expect("tidied");
    assert_eq!(
        host.run("cd /var/lib/kadence; ls staged binaries actions | grep -v : | grep . || echo nothing"),
        "nothing"
    );
    assert_eq!(host.run("cat /var/lib/kadence/turn"), "3 eva", "the turn outlives everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_expected_is_not_replaced() {
    let Some(host) = host().await else { return };
    let (old, new) = (host.artifact("v1.35.7+k3s1"), host.artifact("v1.35.9+k3s1"));
    let hosts = host.hosts();
    let pid = host.main_pid();
    assert_eq!(code(&hosts.act(&node(), &order("r-1", 1, swap(&new, &old, false))).await), "not-staged");

    hosts.stage(&node(), &new).await.expect("staged");
    // Somebody else was here.
    let foreign = hosts.act(&node(), &order("r-2", 1, swap(&new, &host.artifact("v1.35.8+k3s1"), false))).await;
    assert!(
        matches!(&foreign, Err(HostError::Digest { found, .. }) if *found == old.digest.to_string()),
        "{foreign:?}"
    );
    // The staged file is not what was verified any more, its size and its time of change are.
    host.run("cd /var/lib/kadence/staged; f=$(ls); touch -r $f /run/t; printf X | dd of=$f bs=1 seek=20 conv=notrunc 2>/dev/null; touch -r /run/t $f");
    let spoiled = hosts.act(&node(), &order("r-3", 1, swap(&new, &old, false))).await;
    assert!(matches!(&spoiled, Err(HostError::Digest { .. })), "{spoiled:?}");
    assert_eq!((host.installed(), host.main_pid()), (old.digest, pid), "and K3s ran on");
    // Sent again it is good.
    assert!(!hosts.stage(&node(), &new).await.expect("staged").already_there);
    hosts.act(&node(), &order("r-4", 1, swap(&new, &old, false))).await.expect("swapped");
    assert_eq!(host.installed(), new.digest);

    // A file that is not what its digest says is refused at the door.
    let lie = Artifact { digest: Digest::of(b"something else"), ..old };
    let refused = hosts.stage(&node(), &lie).await;
    assert!(matches!(&refused, Err(HostError::Digest { .. })), "{refused:?}");
    assert_eq!(host.run("ls -A /var/lib/kadence/staged"), "", "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_in_the_middle_is_completed() {
    let Some(host) = host().await else { return };
    let (old, new) = (host.artifact("v1.35.7+k3s1"), host.artifact("v1.35.9+k3s1"));
    let hosts = Arc::new(host.hosts());
    hosts.stage(&node(), &new).await.expect("staged");
    host.run("echo data > /var/lib/rancher/k3s/server/db/state.db; sync; touch /run/hold-stop");

    let task = swap(&new, &old, true);
    let acting = {
        let (hosts, order) = (Arc::clone(&hosts), order("r-1", 1, task.clone()));
        tokio::spawn(async move { hosts.act(&node(), &order).await })
    };
    host.until("in the middle", "[ \"$(systemctl show -p ActiveState --value k3s)\" = deactivating ]").await;
    host.cut_power_and_boot();
    let cut = acting.await.expect("ended");
    assert!(cut.as_ref().is_err_and(HostError::is_no_way), "{cut:?}");
    assert_eq!(host.installed(), old.digest);
    let facts = hosts.facts(&node()).await.expect("facts");
    assert_eq!(facts.records.first().map(|r| r.state), Some(RecordState::Interrupted));

    let done = hosts.act(&node(), &order("r-1", 1, task)).await.expect("completed");
    assert_eq!(host.installed(), new.digest);
    let copy = done.cold_copy.expect("a cold copy").path;
    assert_eq!(host.run(&format!("cat {copy}/state.db")), "data");
    host.until("it runs", "systemctl -q is-active k3s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_does_not_cut_the_work() {
    let Some(host) = host().await else { return };
    let (old, new) = (host.artifact("v1.35.7+k3s1"), host.artifact("v1.35.9+k3s1"));
    let hosts = Arc::new(host.hosts());
    hosts.stage(&node(), &new).await.expect("staged");
    host.run("echo data > /var/lib/rancher/k3s/server/db/state.db; touch /run/hold-stop");
    let task = swap(&new, &old, true);
    // The journal of the host remembers earlier runs of this test.
    let id = format!("cut-{}", std::process::id());
    let acting = {
        let (hosts, order) = (Arc::clone(&hosts), order(&id, 1, task.clone()));
        tokio::spawn(async move { hosts.act(&node(), &order).await })
    };
    host.until("in the middle", "[ \"$(systemctl show -p ActiveState --value k3s)\" = deactivating ]").await;
    // The processes that hold connections, not the one that listens.
    host.run("kill $(pgrep -P $(cat /run/sshd.pid) sshd)");
    let cut = acting.await.expect("ended");
    assert!(cut.as_ref().is_err_and(HostError::is_no_way), "{cut:?}");

    // Asked again while it is still at work: waits for the same.
    let waiting = {
        let (hosts, order) = (Arc::clone(&hosts), order(&id, 1, task));
        tokio::spawn(async move { hosts.act(&node(), &order).await })
    };
    host.until("somebody waits for it", "pgrep -f '[k]adence .* order cut-' > /dev/null").await;
    host.run("rm /run/hold-stop");
    waiting.await.expect("ended").expect("done");
    assert_eq!(host.installed(), new.digest);
    assert_eq!(
        host.run(&format!("journalctl -q -o cat -u kadence-{id} | grep -c '^Starting'")),
        "1",
        "one unit did it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_leaves_nothing() {
    let Some(host) = host().await else { return };
    let new = host.artifact("v1.35.9+k3s1");
    host.run("mkdir -p /var/lib/kadence; mount -t tmpfs -o size=4m none /var/lib/kadence; chmod 700 /var/lib/kadence");
    let hosts = host.hosts();
    let big = host.scratch.path().join("big");
    std::fs::write(&big, vec![1; 8 << 20]).expect("written");
    let full = hosts.push(&node(), &big, "big", &Digest::of(&vec![1; 8 << 20])).await;
    assert!(matches!(&full, Err(HostError::DiskFull { .. })), "{full:?}");
    assert_eq!(host.run("ls -A /var/lib/kadence/files"), "");
    // Full in the middle of the record of an action.
    hosts.stage(&node(), &new).await.expect("staged");
    host.run("dd if=/dev/zero of=/var/lib/kadence/fill bs=64k 2>/dev/null; true");
    let old = host.artifact("v1.35.7+k3s1");
    let pid = host.main_pid();
    let failed = hosts.act(&node(), &order("r-1", 1, swap(&new, &old, false))).await;
    assert!(failed.is_err(), "{failed:?}");
    assert_eq!((host.installed(), host.main_pid()), (old.digest, pid));
    host.run("rm /var/lib/kadence/fill");
    hosts.act(&node(), &order("r-1", 1, swap(&new, &old, false))).await.expect("with room it is done");
    assert_eq!(host.installed(), new.digest);
    host.run("umount /var/lib/kadence");
}

#[tokio::test(flavor = "multi_thread")]
async fn following_sees_a_restart_and_leaves_no_process() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    let mut signs = hosts.follow(&node(), Role::Server);
    let first = signs.next().await.expect("a sign").expect("no error");
    let Sign::Unit(unit) = first else { panic!("{first:?}") };
    assert_eq!((unit.active.as_str(), unit.sub.as_str()), ("active", "running"));
    host.run("echo 'level=fatal msg=\"database is locked\"' | systemd-cat -t k3s; systemctl restart k3s");
    let mut seen_new = false;
    while !seen_new {
        match signs.next().await.expect("a sign").expect("no error") {
            Sign::Unit(now) => seen_new = now.active == "active" && now.main_pid != unit.main_pid,
            _ => continue,
        }
    }
    drop(signs);
    host.until("nothing is left", "! pgrep -f '[k]adence .* follow' && ! pgrep -x journalctl").await;

    // Nor when the way is cut: the node notices by itself.
    let mut signs = hosts.follow(&node(), Role::Server);
    signs.next().await.expect("a sign").expect("no error");
    host.run("kill $(pgrep -P $(cat /run/sshd.pid) sshd)");
    loop {
        match signs.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                assert!(error.is_no_way(), "{error}");
                break;
            }
            None => panic!("it ended without saying why"),
        }
    }
    host.until("nothing is left", "! pgrep -f '[k]adence .* follow' && ! pgrep -x journalctl").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_is_proven_and_place_wants_it() {
    let Some(host) = host().await else { return };
    let (old, new) = (host.artifact("v1.35.7+k3s1"), host.artifact("v1.35.9+k3s1"));
    let hosts = host.hosts();
    hosts.stage(&node(), &new).await.expect("staged");
    let place = Task::Place { to: new.version.clone(), artifact: new.digest, expect: old.digest };
    assert_eq!(code(&hosts.act(&node(), &order("r-1", 1, place.clone())).await), "still-running");
    hosts.act(&node(), &order("r-2", 1, Task::Stop)).await.expect("stopped");
    assert_eq!(host.run("systemctl is-active k3s || true"), "inactive");
    assert_eq!(host.run("systemctl is-enabled k3s || true"), "disabled");
    hosts.act(&node(), &order("r-3", 1, place)).await.expect("placed");
    assert_eq!(host.installed(), new.digest);
    assert_eq!(host.run("systemctl is-active k3s || true"), "inactive");
    hosts.act(&node(), &order("r-4", 1, Task::Start)).await.expect("started");
    host.until("it runs", "systemctl -q is-active k3s && systemctl -q is-enabled k3s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_backed_up_while_it_is_written_and_put_back_clean() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    host.run(
        "cd /var/lib/rancher/k3s/server/db; sqlite3 state.db 'PRAGMA journal_mode=WAL; CREATE TABLE kine(id INTEGER PRIMARY KEY); \
         INSERT INTO kine VALUES (41)' > /dev/null; (sqlite3 state.db 'INSERT INTO kine VALUES (42); SELECT 1' '.shell cp state.db-wal /run/wal'); true",
    );
    let backup =
        hosts.act(&node(), &order("r-1", 1, Task::SqliteBackup { tool: SqliteTool::Sqlite3 })).await.expect("a backup");
    assert_eq!((backup.integrity.as_deref(), backup.revision), (Some("ok"), Some(42)));
    let file: &RemoteFile = &backup.files[0];
    let into = host.scratch.path().join("copy");
    hosts.pull(&node(), file, &into).await.expect("pulled");
    assert_eq!(Digest::of(&std::fs::read(&into).expect("read")), file.digest);
    assert!(hosts.pull(&node(), file, &into).await.is_err(), "a file that is there is not written over");

    // What was written after the backup, and a stale log, are gone after it was put back.
    host.run("cd /var/lib/rancher/k3s/server/db; sqlite3 state.db 'INSERT INTO kine VALUES (43)'; echo stale > state.db-wal; echo stale > state.db-shm");
    let pushed = hosts.push(&node(), &into, "state.db", &file.digest).await.expect("pushed");
    let restore = Task::SqliteRestore { copy: pushed, digest: file.digest };
    assert_eq!(code(&hosts.act(&node(), &order("r-2", 1, restore.clone())).await), "still-running");
    hosts.act(&node(), &order("r-3", 1, Task::Stop)).await.expect("stopped");
    let restored = hosts.act(&node(), &order("r-4", 1, restore)).await.expect("restored");
    assert_eq!(host.run("cd /var/lib/rancher/k3s/server/db; ls state.db*"), "state.db");
    assert_eq!(host.run("sqlite3 /var/lib/rancher/k3s/server/db/state.db 'SELECT max(id) FROM kine'"), "42");
    let aside = restored.kept.expect("what was there is kept");
    assert_eq!(host.run(&format!("ls {aside}")), "state.db\nstate.db-shm\nstate.db-wal");
}

/// A database whose newest row, 42, is only in the log beside it.
const DATABASE_WITH_A_LOG: &str = "cd /var/lib/rancher/k3s/server/db; rm -f state.db*
    sqlite3 state.db 'PRAGMA journal_mode=WAL; CREATE TABLE kine(id INTEGER PRIMARY KEY); INSERT INTO kine VALUES (41);
    PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO kine VALUES (42)' '.shell cp state.db state.db-wal /run' > /dev/null
    mv /run/state.db /run/state.db-wal .; test -s state.db-wal";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_copied_while_k3s_is_stopped_with_its_log() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    host.run(DATABASE_WITH_A_LOG);
    host.run("mv /usr/bin/sqlite3 /usr/bin/sqlite3.away");
    let tools = hosts.facts(&node()).await.expect("facts").tools;
    assert!(!tools.sqlite3 && !tools.python3, "a host on which nothing reads a database");
    let pid = host.main_pid();

    let copied = hosts.act(&node(), &order("r-1-sqlite-42", 1, Task::SqliteStoppedCopy)).await.expect("copied");
    host.until("it runs again", "systemctl -q is-active k3s && systemctl -q is-enabled k3s").await;
    assert_ne!(host.main_pid(), pid, "it was stopped");
    assert_eq!((copied.integrity, copied.revision), (None, None), "nothing there can read it");
    let names: Vec<&str> = copied.files.iter().map(|f| f.path.rsplit('/').next().unwrap_or_default()).collect();
    assert_eq!(names, ["state.db", "state.db-wal"]);
    for file in &copied.files {
        let into = host.scratch.path().join(file.path.rsplit('/').next().expect("a name"));
        hosts.pull(&node(), file, &into).await.expect("pulled");
    }
    let folder = copied.cold_copy.expect("a folder");
    assert_eq!(folder.bytes, copied.files.iter().map(|f| f.bytes).sum::<u64>());

    // Put back: only if it is what it was, and then with the log.
    let restore = |digest| Task::SqliteRestore { copy: folder.path.clone(), digest };
    hosts.act(&node(), &order("r-2", 1, Task::Stop)).await.expect("stopped");
    host.run("echo changed > /var/lib/rancher/k3s/server/db/state.db");
    let other = hosts.act(&node(), &order("r-3", 1, restore(Digest::of(b"another")))).await;
    assert!(matches!(&other, Err(HostError::Digest { file, .. }) if *file == folder.path), "{other:?}");
    host.run(&format!("mv {0}/state.db-wal {0}/lost", folder.path));
    let torn = hosts.act(&node(), &order("r-4", 1, restore(folder.digest))).await;
    assert!(matches!(&torn, Err(HostError::Digest { .. })), "a file that is missing counts: {torn:?}");
    assert_eq!(host.run("cat /var/lib/rancher/k3s/server/db/state.db"), "changed", "and nothing was touched");
    let none = Task::SqliteRestore { copy: format!("{}-none", folder.path), digest: folder.digest };
    assert_eq!(code(&hosts.act(&node(), &order("r-5", 1, none)).await), "no-copy");
    host.run(&format!("mv {0}/lost {0}/state.db-wal", folder.path));
    hosts.act(&node(), &order("r-6", 1, restore(folder.digest))).await.expect("restored");
    host.run("mv /usr/bin/sqlite3.away /usr/bin/sqlite3");
    assert_eq!(host.run("sqlite3 /var/lib/rancher/k3s/server/db/state.db 'SELECT max(id) FROM kine'"), "42");

    // Tidying keeps what belongs to a rollout that is kept, whatever part of an action made it.
    hosts.tidy(&node(), &Keep { binaries: vec![], rollouts: vec![RolloutId::new("r")] }).await.expect("tidied");
    host.run(&format!("test -s {}/state.db", folder.path));
    hosts.tidy(&node(), &Keep { binaries: vec![], rollouts: vec![RolloutId::new("s")] }).await.expect("tidied");
    assert_eq!(host.run("ls -A /var/lib/kadence/cold"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_copy_is_read_where_something_can_read_it() {
    let Some(host) = host().await else { return };
    let (old, new) = (host.artifact("v1.35.7+k3s1"), host.artifact("v1.35.9+k3s1"));
    let hosts = host.hosts();
    for artifact in [&old, &new] {
        hosts.stage(&node(), artifact).await.expect("staged");
    }
    host.run(DATABASE_WITH_A_LOG);
    let done = hosts.act(&node(), &order("r-1", 1, swap(&new, &old, true))).await.expect("swapped");
    let copy = done.cold_copy.expect("a cold copy");
    assert_eq!((done.integrity.as_deref(), done.revision), (Some("ok"), Some(42)));
    assert_eq!(host.run(&format!("ls {}", copy.path)), "state.db", "what was in the log is in the database");
    host.until("it runs", "systemctl -q is-active k3s").await;

    host.run("cd /var/lib/rancher/k3s/server/db; rm -f state.db-*; yes | dd of=state.db bs=1 seek=4096 count=99 conv=notrunc 2> /dev/null");
    let done = hosts.act(&node(), &order("r-2", 1, swap(&old, &new, true))).await.expect("swapped back");
    assert!(done.cold_copy.is_some());
    assert_ne!(done.integrity.as_deref(), Some("ok"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_wants_the_snapshot_that_was_read_and_shows_no_secret() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    host.run(
        r#"printf '[Service]\nEnvironment="K3S_TOKEN=top \\"secret" PLAIN=a\nEnvironmentFile=/etc/k3s.one\nEnvironmentFile=-/etc/k3s.two\n' > /run/reset-drop
           mkdir -p /etc/systemd/system/k3s.service.d; mv /run/reset-drop /etc/systemd/system/k3s.service.d/reset.conf
           printf 'ORDER=one\nPLAIN=b\n' > /etc/k3s.one; echo ORDER=two > /etc/k3s.two; systemctl daemon-reload"#,
    );
    hosts.act(&node(), &order("r-1", 1, Task::Stop)).await.expect("stopped");
    let snapshot = host.scratch.path().join("snapshot");
    std::fs::write(&snapshot, "a snapshot").expect("written");
    let digest = Digest::of(b"a snapshot");
    let path = hosts.push(&node(), &snapshot, "snapshot", &digest).await.expect("pushed");

    let missing = Task::EtcdReset { snapshot: "/nowhere".to_owned(), digest };
    assert_eq!(code(&hosts.act(&node(), &order("r-2", 1, missing)).await), "no-snapshot");
    let other = Task::EtcdReset { snapshot: path.clone(), digest: Digest::of(b"another") };
    let other = hosts.act(&node(), &order("r-3", 1, other)).await;
    assert!(matches!(&other, Err(HostError::Digest { .. })), "{other:?}");
    assert_eq!(host.run("ls /run/reset-env 2>/dev/null || echo none"), "none", "K3s was not asked");

    hosts.act(&node(), &order("r-4", 1, Task::EtcdReset { snapshot: path, digest })).await.expect("reset");
    let environment = host.run("cat /run/reset-env");
    for line in ["K3S_TOKEN=top \"secret", "PLAIN=b", "ORDER=two"] {
        assert!(environment.lines().any(|l| l == line), "{line}: {environment}");
    }
    assert_eq!(host.run("cat /run/reset-seen"), "", "on no command line");
    assert_eq!(host.run("ls /run/kadence | grep environment || echo none"), "none", "and no file is left");
    host.run("rm -r /etc/systemd/system/k3s.service.d /etc/k3s.one /etc/k3s.two; systemctl daemon-reload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_proven_on_the_ports_that_k3s_has() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    host.run("echo 'https-listen-port: 7443' >> /etc/rancher/k3s/config.yaml");
    host.run("systemd-run -q --unit=squatter --socket-property=ListenStream=7443 /bin/true");
    let refused = hosts.act(&node(), &order("r-1", 1, Task::Stop)).await;
    assert_eq!(code(&refused), "still-running");
    assert!(refused.is_err_and(|e| e.to_string().contains("7443")));
    host.run(
        "systemctl stop squatter.socket; systemd-run -q --unit=squatter --socket-property=ListenStream=6443 /bin/true",
    );
    hosts.act(&node(), &order("r-2", 1, Task::Stop)).await.expect("somebody else's port is not K3s's");
    host.run("systemctl stop squatter.socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_the_rollout_are_not_pruned() {
    let Some(host) = host().await else { return };
    let hosts = host.hosts();
    host.run(
        "mkdir -p /var/lib/rancher/k3s/server/db/snapshots; cd /var/lib/rancher/k3s/server/db/snapshots
         touch kadence-r7-hop1-n1-100 kadence-r7.2-hop1-n1-105 kadence-r70-hop1-n1-101 kadence-r5-hop1-n1-102
         touch kadence-r5-hop2-n1-103 mine-n1-50",
    );
    let spare = vec!["kadence-r7-".to_owned(), "kadence-r7.".to_owned()];
    hosts.act(&node(), &order("r-1", 1, Task::PruneSnapshots { keep: 1, spare })).await.expect("pruned");
    assert_eq!(
        host.run("cd /var/lib/rancher/k3s/server/db/snapshots; ls"),
        "kadence-r5-hop2-n1-103\nkadence-r7-hop1-n1-100\nkadence-r7.2-hop1-n1-105\nmine-n1-50"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_in_and_ways_that_are_none() {
    let Some(host) = host().await else { return };
    for (user, sudo) in [("ops", Sudo::Passwordless), ("pwops", password(&host, "testbed-password"))] {
        let hosts = host.hosts_by(Ssh { user: user.to_owned(), sudo, ..host.ssh.clone() });
        let facts = hosts.facts(&node()).await.unwrap_or_else(|e| panic!("{user}: {e}"));
        assert!(facts.token.why().is_some(), "there is none, and it says so");
        assert!(facts.install.known().is_some(), "{user}");
    }
    let sudo_errors = [
        ("ops", Sudo::No, "is not root"),
        ("pwops", Sudo::Passwordless, "sudo asks for a password and none is configured"),
        ("pwops", password(&host, "wrong"), "sudo refuses the password"),
        ("pwops", Sudo::Password(SecretRef::Env("KADENCE_NO_SUCH_VARIABLE".to_owned())), "is not set"),
    ];
    for (user, sudo, expected) in sudo_errors {
        let hosts = host.hosts_by(Ssh { user: user.to_owned(), sudo, ..host.ssh.clone() });
        let error = hosts.facts(&node()).await.expect_err(user);
        assert!(matches!(&error, HostError::Sudo { why, .. } if why.contains(expected)), "{error}");
    }

    let unknown = host.scratch.path().join("known_hosts");
    std::fs::write(&unknown, "").expect("written");
    let hosts = host.hosts_by(Ssh { known_hosts: Some(unknown.clone()), ..host.ssh.clone() });
    let error = hosts.glance(&node()).await.expect_err("unknown key");
    assert!(matches!(&error, HostError::HostKey { why, .. } if why.contains("ssh-keyscan")), "{error}");

    let ours = std::fs::read_to_string(host.dir.join("known_hosts")).expect("read");
    let (address, _) = ours.split_once(' ').expect("an address");
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    std::fs::write(&unknown, format!("{address} {other}\n")).expect("written");
    let error = host
        .hosts_by(Ssh { known_hosts: Some(unknown), ..host.ssh.clone() })
        .glance(&node())
        .await
        .expect_err("changed key");
    assert!(matches!(&error, HostError::HostKey { why, .. } if why.contains("ssh-keygen -R")), "{error}");

    let stranger = host.scratch.path().join("stranger");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&stranger).status();
    assert!(made.expect("ssh-keygen").success());
    let error =
        host.hosts_by(Ssh { key: Some(stranger), ..host.ssh.clone() }).glance(&node()).await.expect_err("no key");
    assert!(error.is_no_way() && error.to_string().contains("refuses to log us in"), "{error}");

    let error = host.hosts_by(Ssh { port: 1, ..host.ssh.clone() }).glance(&node()).await.expect_err("no sshd");
    assert!(error.is_no_way() && error.to_string().contains("refused"), "{error}");
}

fn password(host: &Host, text: &str) -> Sudo {
    let file = host.scratch.path().join(format!("password-{text}"));
    std::fs::write(&file, format!("{text}\n")).expect("written");
    Sudo::Password(SecretRef::File(file))
}

#[tokio::test]
async fn a_node_without_an_address_is_named() {
    let cluster = serde_json::json!({ "environment": "test", "kubeconfig": "/nowhere" });
    let cluster: Cluster = serde_json::from_value(cluster).expect("a cluster");
    let hosts = SshHosts::new(&cluster, HmacKey::new([9; 32])).expect("hosts");
    let error = hosts.glance(&node()).await.expect_err("unknown");
    assert!(error.is_no_way() && error.to_string().contains("nodes.n1"), "{error}");
    let address = HostAddress { role: Role::Agent, address: "-oProxyCommand=x".to_owned() };
    hosts.learn_nodes(&[(node(), address)].into());
    let error = hosts.glance(&node()).await.expect_err("an option is no address");
    assert!(error.to_string().contains("is not an address"), "{error}");
}
