//! End to end, through the real binary, on hosts with real systemd and sshd.
//!
//! Each test tells one story on a cluster of its own. What is asserted is asked of the cluster itself, not of Kadence.

use std::time::Duration;

use kadence_testbed::{Cluster, On, Person, broken_releases, full, on, tags};

/// The two newest patches of the newest minor, and the newest patch of the minor before it, if there is one.
struct Versions {
    old: String,
    new: String,
    minor_before: Option<String>,
}

fn versions() -> Versions {
    let tags = tags();
    let new = tags.last().expect("the release source has releases").clone();
    let old = tags[..tags.len() - 1].last().expect("it has at least two").clone();
    let minor = |tag: &str| tag.split('.').take(2).collect::<Vec<_>>().join(".");
    assert_eq!(minor(&old), minor(&new), "the two newest releases are of one minor");
    let minor_before = tags.iter().rev().find(|t| minor(t) != minor(&new)).cloned();
    Versions { old, new, minor_before }
}

macro_rules! only_on_hosts {
    ($full:expr) => {
        match on() {
            None => return skipped("no end-to-end run was asked for (cargo xtask e2e)"),
            Some(On::Real) if $full && !full() => return skipped("part of the full suite (cargo xtask e2e --full)"),
            Some(_) => {}
        }
    };
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

const SHORT: bool = false;
const FULL: bool = true;

#[test]
fn one_server_with_sqlite_is_updated_and_taken_back() {
    only_on_hosts!(SHORT);
    let v = versions();
    let cluster = Cluster::up("sqlite1", "e2e-sqlite", &v.old);
    let person = Person::before(&cluster);

    let inventory = person.run(&["inspect", "shop", "--output", "json"]).exits(0).json();
    let node = &inventory["nodes"][0];
    assert_eq!(node["name"], "s1");
    assert_eq!(node["role"], "server");
    assert_eq!(node["etcd"], "none");
    assert_eq!(node["apiserver"], true);
    assert_eq!(node["version"], v.old.as_str());
    assert_eq!(node["ready"], true);
    assert_eq!(inventory["datastore"]["kind"], "sqlite");
    assert_eq!(inventory["unknown"], serde_json::json!([]), "a plain cluster leaves nothing unknown");

    person.run(&["check", "shop"]).exits(0).says("ready");
    person.run(&["plan", "shop"]).exits(0).says(&v.new).says("s1");
    // The only server restarts: that is an outage, and nobody consented.
    person.run(&["apply", "shop"]).exits(3).says("E-CONSENT");
    cluster.assert_all_on(&v.old);

    person.run(&["apply", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.new);
    person.run(&["apply", "shop", "--yes"]).exits(0).says("nothing to do");
    assert_eq!(cluster.ssh("s1", "stat -c %a /var/lib/kadence").trim(), "700", "what is kept is root's alone");

    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    person.run(&["rollback", "shop", "--yes"]).exits(3);
    person.run(&["history", "shop"]).exits(0).says(&v.new).says(&v.old);
    person.run(&["validate", "shop"]).exits(0);
    let report = person.run(&["report", "shop", "--last", "--output", "json"]).exits(0).json();
    assert_eq!(report["schema"], 1);
}

#[test]
fn three_servers_and_an_agent_live_through_kills_pauses_and_a_broken_release() {
    only_on_hosts!(SHORT);
    let v = versions();
    let cluster = Cluster::up("ha3a1", "e2e-ha", &v.old);
    let mut person = Person::before(&cluster);

    // A release that does not start: undone by itself, and everything is as it was.
    let broken = tempfile::TempDir::new().expect("a folder");
    broken_releases(&v.new, broken.path());
    person.use_releases(broken.path());
    person.run(&["apply", "shop", "--yes"]).exits(4).says("did not stay up").says("unrecognized feature gate");
    cluster.assert_all_on(&v.old);
    person.use_releases(&kadence_testbed::releases());

    // Killed in the middle of the first server's restart, and paused in the middle of the second's.
    let mut running = person.start(&["apply", "shop", "--yes"]);
    running.until("✔ cordon s", Duration::from_secs(120));
    running.kill();
    person.run(&["apply", "shop", "--to", &v.old]).exits(0).says("has not ended");
    cluster.assert_all_on(&v.new);

    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);

    let mut running = person.start(&["apply", "shop", "--yes"]);
    running.until("✔ cordon s", Duration::from_secs(120));
    person.run(&["pause", "shop"]).exits(0);
    let paused = running.wait().exits(5);
    assert!(paused.stdout.contains("paused"), "{}", paused.stdout);
    let mixed = cluster.nodes();
    assert_eq!(mixed.values().filter(|(version, ..)| *version == v.new).count(), 1, "{mixed:?}");
    assert!(mixed.values().all(|(_, ready, cordoned)| *ready && !*cordoned), "{mixed:?}");
    person.run(&["status", "shop"]).exits(0).says("paused");
    // Two copies at once: the second one is refused.
    let mut running = person.start(&["resume", "shop"]);
    running.until("cordon", Duration::from_secs(60));
    person.run(&["resume", "shop"]).exits(3).says("E-BUSY");
    running.wait().exits(0);
    cluster.assert_all_on(&v.new);
    let members = cluster.ssh("s1", "curl -s http://127.0.0.1:2381/health");
    assert!(members.contains("true"), "{members}");
}

#[test]
fn a_minor_is_taken_back_by_a_restore() {
    only_on_hosts!(FULL);
    let v = versions();
    let Some(before) = v.minor_before.clone() else { return skipped("the release source has one minor only") };
    let cluster = Cluster::up("ha3a1", "e2e-restore", &before);
    let person = Person::before(&cluster);
    cluster.kubectl("create configmap before --from-literal=a=1");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    cluster.kubectl("create configmap after --from-literal=a=1");

    person.run(&["rollback", "shop"]).exits(3).says("lost");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&before);
    let maps = cluster.kubectl("get configmaps -o name");
    assert!(maps.contains("configmap/before"), "{maps}");
    assert!(!maps.contains("configmap/after"), "what came after the snapshot is lost, as was said: {maps}");
}

#[test]
fn a_minor_of_one_server_with_sqlite_is_taken_back_by_a_restore() {
    only_on_hosts!(FULL);
    let v = versions();
    let Some(before) = v.minor_before.clone() else { return skipped("the release source has one minor only") };
    let cluster = Cluster::up("sqlite1", "e2e-sqrest", &before);
    let person = Person::before(&cluster);
    cluster.kubectl("create configmap before --from-literal=a=1");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0);
    cluster.kubectl("create configmap after --from-literal=a=1");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&before);
    let maps = cluster.kubectl("get configmaps -o name");
    assert!(maps.contains("configmap/before") && !maps.contains("configmap/after"), "{maps}");
}

#[test]
fn bad_input_is_refused_and_nothing_is_touched() {
    only_on_hosts!(SHORT);
    let v = versions();
    let cluster = Cluster::up("sqlite1", "e2e-bad", &v.old);
    let person = Person::before(&cluster);
    person.run(&["inspect", "nosuch"]).exits(2).says("known: shop");
    person.run(&["plan", "shop", "--to", "v1.2.3"]).exits(2);
    person.run(&["plan", "shop", "--to", "v1.10.0+k3s1"]).exits(3);
    person.run(&["plan", "shop", "--to", "v1.99.0+k3s1"]).exits(3);
    person.run(&["apply", "shop", "--plan", "abcdef0123"]).exits(2);
    person.run(&["resume", "shop"]).exits(3);
    person.run(&["pause", "shop"]).exits(3);

    let config = std::fs::read_to_string(person.config()).expect("the configuration");
    std::fs::write(person.config(), config.replace("settle:", "setle:")).expect("written");
    person.run(&["inspect", "shop"]).exits(2).says("did you mean `settle`?");
    std::fs::write(person.config(), &config).expect("written");

    // Another host key than the known one.
    let known_hosts = cluster.file("known_hosts");
    let keys = std::fs::read_to_string(&known_hosts).expect("known hosts");
    std::fs::write(&known_hosts, "").expect("written");
    person.run(&["apply", "shop", "--yes"]).exits(3).says("key");
    std::fs::write(&known_hosts, keys).expect("written");

    // A release whose digest is not the published one.
    let wrong = tempfile::TempDir::new().expect("a folder");
    broken_releases(&v.new, wrong.path());
    let sums = wrong.path().join(&v.new).join("sha256sum-amd64.txt");
    std::fs::write(&sums, format!("{}  k3s\n", "0".repeat(64))).expect("written");
    let mut person = person;
    person.use_releases(wrong.path());
    person.run(&["apply", "shop", "--yes"]).exits(3).says("digest");
    cluster.assert_all_on(&v.old);
}
