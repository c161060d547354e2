//! Bad input: each has a clear error, ends with 2 or 3, and nothing is touched.

use std::fs;
use std::path::Path;

use kadence_testbed::{Broken, Cluster, On, Person, broken_releases, changed_releases, must_run, on, releases};
use serde_json::json;
use tempfile::TempDir;

use crate::{In, SOON, told, versions};

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

/// A configuration that is spoilt for the time of a story.
fn spoilt(file: &Path, content: &str, story: impl FnOnce()) {
    let was = fs::read(file).expect("a file");
    fs::write(file, content).expect("written");
    story();
    fs::write(file, was).expect("written");
}

#[test]
fn bad_input_is_refused_and_nothing_is_touched() {
    if !told(In::Short) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("sqlite1", "e2e-bad", &v.old);
    let mut person = Person::before(&cluster);
    let starts = cluster.starts("s1");

    cluster.scene("the command line and the configuration");
    person.run(&["inspect", "nosuch"]).exits(2).says("known: shop");
    person.run(&["plan", "shop", "--to", "v1.2.3"]).exits(2);
    person.run(&["apply", "shop", "--plan", "abcdef0123"]).exits(2).says("E-NO-SUCH-PLAN");
    person.run(&["apply", "shop", "--plan", "nosuch.json"]).exits(2).says("E-PLAN-FILE");
    for command in ["resume", "pause", "abort"] {
        person.run(&[command, "shop"]).exits(3);
    }
    person.run(&["init", "--yes"]).exits(3).says("E-CONFIG-EXISTS");
    let found = format!("KUBECONFIG={}", cluster.file("kubeconfig").display());
    fs::create_dir(person.folder.path().join("fresh")).expect("a folder");
    let fresh = ["init", "--yes", "--config", "fresh/kadence.yaml"];
    if !Path::new("/etc/rancher/k3s/k3s.yaml").exists() {
        person.run_by(&["env", "KUBECONFIG=", "HOME=/nosuch"], &fresh).exits(2).says("E-NO-KUBECONFIG");
    }
    // Hosts that SSH does not reach yet are said, and are no failure.
    person.run_by(&["env", &found, "HOME=/nosuch"], &fresh).exits(0).says("Found kubeconfig").says("does not work yet");
    assert!(person.folder.path().join("fresh/kadence.yaml").is_file(), "it was written");
    person.with("settle:", "setle:", |person| {
        person.run(&["inspect", "shop"]).exits(2).says("did you mean `settle`?").says("kadence.yaml:");
    });
    person.with("clusters:", "clusters: [", |person| {
        person.run(&["config", "check"]).exits(2).says("kadence.yaml:");
    });
    let kubeconfig = cluster.file("kubeconfig").to_string_lossy().into_owned();
    person.with(&kubeconfig, "/nosuch/kubeconfig", |person| {
        person.run(&["inspect", "shop"]).exits(2).says("/nosuch/kubeconfig");
    });

    cluster.scene("the target");
    person.run(&["plan", "shop", "--to", "v1.10.0+k3s1"]).exits(3).says("E-TARGET");
    person.run(&["plan", "shop", "--to", "v1.99.0+k3s1"]).exits(3).says("E-TARGET");
    let odd = folder();
    broken_releases(&v.new, Broken::ExitsAtOnce, odd.path());
    let (beyond, early, elsewhere) = ("v1.99.1+k3s1", "v1.99.2-rc1+k3s1", "v1.36.99+k3s1");
    for tag in [beyond, early] {
        copy(&odd.path().join(&v.new), &odd.path().join(tag));
    }
    let arm = odd.path().join(elsewhere);
    fs::create_dir(&arm).expect("a folder");
    fs::write(arm.join("k3s-arm64"), "not for here").expect("a file");
    let sum = must_run("sha256sum", &[&arm.join("k3s-arm64").to_string_lossy()]);
    let sum = sum.split_whitespace().next().unwrap_or_default();
    fs::write(arm.join("sha256sum-arm64.txt"), format!("{sum}  k3s-arm64\n")).expect("a file");
    person.use_releases(odd.path());
    person.run(&["apply", "shop", "--to", beyond, "--yes"]).exits(3).says("E-TARGET").says("more than one minor above");
    person.run(&["apply", "shop", "--to", early, "--yes"]).exits(3).says("pre-release");
    person.run(&["apply", "shop", "--to", elsewhere, "--yes"]).exits(3).says("amd64");

    let dates = format!(
        r#"[{{"tag": "{}", "published": "2026-08-01T00:00:00Z"}}, {{"tag": "{}", "published": "2026-01-01T00:00:00Z"}}]"#,
        v.old, v.new
    );
    fs::write(odd.path().join("releases.json"), dates).expect("written");
    person.run(&["apply", "shop", "--to", &v.new, "--yes"]).exits(3).says("was published on 2026-01-01");

    cluster.scene("what arrives is not what was published");
    let wrong = folder();
    broken_releases(&v.new, Broken::ExitsAtOnce, wrong.path());
    let sums = wrong.path().join(&v.new).join("sha256sum-amd64.txt");
    fs::write(&sums, format!("{}  k3s\n", "0".repeat(64))).expect("written");
    person.use_releases(wrong.path());
    person.run(&["apply", "shop", "--yes"]).exits(3).says("digest");
    let cut = folder();
    let whole = fs::read(releases().join(&v.new).join("k3s")).expect("a release");
    changed_releases(&v.new, &whole[..whole.len() / 2], cut.path());
    let sums = fs::read(releases().join(&v.new).join("sha256sum-amd64.txt")).expect("its digests");
    fs::write(cut.path().join(&v.new).join("sha256sum-amd64.txt"), sums).expect("written");
    person.use_releases(cut.path());
    person.run(&["apply", "shop", "--yes"]).exits(3).says("digest");
    person.use_releases(Path::new("/nosuch"));
    person.run(&["apply", "shop", "--yes"]).exits(2).says("/nosuch");
    person.use_releases(&releases());

    cluster.scene("host keys");
    let known_hosts = cluster.file("known_hosts");
    spoilt(&known_hosts, "", || {
        person.run(&["apply", "shop", "--yes"]).exits(3).says("key");
    });
    let other = folder();
    let key = other.path().join("key");
    must_run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key.to_string_lossy()]);
    let public = fs::read_to_string(key.with_extension("pub")).expect("a key");
    spoilt(&known_hosts, &format!("{} {public}", cluster.address("s1")), || {
        person.run(&["apply", "shop", "--yes"]).exits(3).says("key").says("s1");
    });

    cluster.scene("a backup that cannot be read back");
    let tool = cluster.root("s1").join("usr/local/bin/sqlite3");
    let cuts = "#!/bin/sh\n/usr/bin/sqlite3 \"$@\" || exit\nfor copy in /var/lib/kadence/backups/*.db; do\n  \
                truncate -s 20000 \"$copy\"\ndone\n";
    fs::write(&tool, cuts).expect("written");
    cluster.enter("s1", "chmod 755 /usr/local/bin/sqlite3");
    person.run(&["apply", "shop", "--yes"]).exits(3).says("malformed");
    fs::remove_file(&tool).expect("removed");

    cluster.scene("a state folder of a newer Kadence, and one that others could write into");
    let newer = folder();
    let state = newer.path().join("state");
    copy(&person.state(), &state);
    with_sqlite_of(&cluster, &state.join("kadence.db"), "PRAGMA user_version = 1000");
    let at = state.to_string_lossy().into_owned();
    person.run(&["apply", "shop", "--yes", "--state", &at]).exits(2).says("E-STATE-NEWER");
    must_run("chmod", &["777", &at]);
    person.run(&["apply", "shop", "--yes", "--state", &at]).exits(2).says("E-STATE");

    cluster.scene("this machine's disk is full: there is no room for the release");
    let narrow =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=600k,mode=700 full state && exec \"$@\"", "sh"];
    person.run_by(&narrow, &["apply", "shop", "--yes"]).exits(3).says("full");

    cluster.assert_all_on(&v.old);
    assert_eq!(cluster.starts("s1"), starts, "nothing was restarted");
}

fn copy(from: &Path, to: &Path) {
    must_run("cp", &["-a", &from.to_string_lossy(), &to.to_string_lossy()]);
}

/// Runs SQL on a database of this machine, with the sqlite3 of a host.
fn with_sqlite_of(cluster: &Cluster, database: &Path, sql: &str) {
    let there = cluster.root("s1").join("tmp/state.db");
    fs::copy(database, &there).expect("copied");
    // What is still in the log beside it belongs to it.
    let wal =
        |file: &Path| file.with_file_name(format!("{}-wal", file.file_name().unwrap_or_default().to_string_lossy()));
    if wal(database).exists() {
        fs::copy(wal(database), wal(&there)).expect("copied");
    }
    cluster.enter("s1", &format!("sqlite3 /tmp/state.db \"{sql}; PRAGMA wal_checkpoint(TRUNCATE)\""));
    fs::copy(&there, database).expect("copied");
    let _ = fs::remove_file(wal(database));
    cluster.enter("s1", "rm -f /tmp/state.db*");
}

#[test]
fn hosts_and_clusters_that_are_not_what_they_seem_are_refused() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("sqlite1a1", "e2e-odd", &v.old);
    let other = Cluster::up("sqlite1", "e2e-other", &v.old);
    let person = Person::before(&cluster);
    let starts = (cluster.starts("s1"), cluster.starts("a1"), other.starts("s1"));
    let refused = |person: &Person| person.run(&["apply", "shop", "--yes"]).exits(3);

    cluster.scene("SSH leads to another machine than the Node's");
    person.with(
        "    update:",
        &format!("    nodes:\n      a1: {{address: {}}}\n    update:", cluster.address("s1")),
        |person| {
            refused(person).says("a1");
        },
    );
    cluster.scene("the kubeconfig is of another cluster than the name meant so far; and, from a fresh folder, than the hosts are of");
    person.run(&["inspect", "shop"]).exits(0);
    let (ours, theirs) = (cluster.file("kubeconfig"), other.file("kubeconfig"));
    let (ours, theirs) = (ours.to_string_lossy().into_owned(), theirs.to_string_lossy().into_owned());
    person.with(&ours, &theirs, |person| {
        refused(person).says("E-OTHER-CLUSTER");
        let nodes = format!("    nodes:\n      s1: {{address: {}}}\n    update:", cluster.address("s1"));
        person.with("    update:", &nodes, |person| {
            person.run(&["apply", "shop", "--yes", "--state", "elsewhere"]).exits(3).says("s1");
        });
    });
    cluster.scene("credentials that have ended");
    expired(&cluster, &person);

    cluster.scene("a node that SSH does not reach: its connections are refused, then its cable is pulled");
    for fault in ["ssh", "network"] {
        cluster.fault(fault, "a1", &[]);
        person.run(&["check", "shop"]).exits(3).says("a1").says("HOST");
        refused(&person).says("a1");
        cluster.mend(fault, "a1", &[]);
        ready_again(&cluster);
    }

    cluster.scene("K3s that is installed in another way");
    let unit = cluster.root("a1").join("etc/systemd/system/k3s-agent.service");
    let text = fs::read_to_string(&unit).expect("the unit");
    let reload = || drop(cluster.enter("a1", "systemctl daemon-reload"));
    let was = unit.with_extension("was");
    copy(&unit, &was);
    fs::write(&unit, text.replace("/usr/local/bin/k3s", "/opt/k3s")).expect("written");
    cluster.enter("a1", "cp /usr/local/bin/k3s /opt/k3s; systemctl daemon-reload");
    refused(&person).says("a1").says("/opt/k3s");
    fs::remove_file(&unit).expect("removed");
    reload();
    refused(&person).says("a1").says("unit");
    // With the time it had: one that was written since K3s started is a finding of its own.
    fs::rename(&was, &unit).expect("put back");
    cluster.enter("a1", "rm /opt/k3s; systemctl daemon-reload");
    cluster.scene("the unit of the other role would start at the next boot");
    let second = unit.with_file_name("k3s.service");
    fs::write(&second, text.replace("k3s agent", "k3s server")).expect("written");
    cluster.enter("a1", "systemctl daemon-reload; systemctl -q enable k3s");
    refused(&person).says("OTHER-UNIT");
    cluster.enter("a1", "systemctl -q disable k3s; rm /etc/systemd/system/k3s.service; systemctl daemon-reload");

    cluster.scene("somebody else manages versions here");
    cluster.create(
        "/api/v1/namespaces",
        &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "cattle-system" } }),
    );
    let deployments = "/apis/apps/v1/namespaces/cattle-system/deployments";
    cluster.create(
        deployments,
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "cattle-cluster-agent" },
            "spec": {
                "replicas": 0, "selector": { "matchLabels": { "app": "agent" } },
                "template": {
                    "metadata": { "labels": { "app": "agent" } },
                    "spec": { "containers": [{ "name": "agent", "image": "docker.io/testbed/web:1" }] },
                },
            },
        }),
    );
    refused(&person).says("OTHER-MANAGERS").says("Rancher");
    cluster.delete(&format!("{deployments}/cattle-cluster-agent"));
    if on() == Some(On::Real) {
        upgrade_plan(&cluster, &person);
    }

    cluster.scene("a plan whose preconditions changed since: arguments, and the wishes of kadence.yaml");
    let plan = person.plan(&[]);
    person.with("settle: 2s", "settle: 3s", |person| {
        person.run(&["apply", "shop", "--plan", &plan.hash, "--yes"]).exits(3).says("E-PLAN-STALE");
    });
    let drop_in = cluster.root("s1").join("etc/rancher/k3s/config.yaml.d");
    fs::create_dir_all(&drop_in).expect("a folder");
    fs::write(drop_in.join("more.yaml"), "node-label:\n  - added=later\n").expect("written");
    person.run(&["apply", "shop", "--plan", &plan.hash, "--yes"]).exits(3).says("E-PLAN-STALE").says("s1");
    fs::remove_dir_all(&drop_in).expect("removed");

    cluster.scene("a full disk on a node, before anything is copied");
    // The last scene: the kubelet minds a full disk for minutes.
    cluster.fault("disk", "a1", &["/usr/local/bin", "200000"]);
    refused(&person).says("DISK").says("a1");
    cluster.mend("disk", "a1", &["/usr/local/bin"]);

    cluster.assert_all_on(&v.old);
    other.assert_all_on(&v.old);
    assert_eq!((cluster.starts("s1"), cluster.starts("a1"), other.starts("s1")), starts, "nothing was restarted");
}

fn ready_again(cluster: &Cluster) {
    kadence_testbed::eventually("all nodes to be Ready", SOON, || cluster.nodes().values().all(|n| n.ready));
}

/// A kubeconfig whose certificate has ended.
fn expired(cluster: &Cluster, person: &Person) {
    let tls = cluster.root("s1").join("var/lib/rancher/k3s/server/tls");
    if !tls.join("client-ca.key").is_file() {
        return crate::skipped("credentials that have ended: the CA of the stand-in is elsewhere");
    }
    let made = folder();
    let file = |name: &str| made.path().join(name).to_string_lossy().into_owned();
    let ca = |name: &str| tls.join(name).to_string_lossy().into_owned();
    must_run(
        "openssl",
        &[
            "req",
            "-new",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-keyout",
            &file("key"),
            "-out",
            &file("csr"),
            "-subj",
            "/O=system:masters/CN=late",
        ],
    );
    must_run(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            &file("csr"),
            "-CA",
            &ca("client-ca.crt"),
            "-CAkey",
            &ca("client-ca.key"),
            "-set_serial",
            "77",
            "-days",
            "-1",
            "-out",
            &file("cert"),
        ],
    );
    let encoded = |name: &str| must_run("base64", &["-w0", &file(name)]);
    let kubeconfig = fs::read_to_string(cluster.file("kubeconfig")).expect("a kubeconfig");
    let lines = kubeconfig.lines().map(|line| match line.trim_start().split_once(": ") {
        Some(("client-certificate-data", _)) => format!("    client-certificate-data: {}", encoded("cert")),
        Some(("client-key-data", _)) => format!("    client-key-data: {}", encoded("key")),
        _ => line.to_owned(),
    });
    let late = person.folder.path().join("late");
    fs::write(&late, lines.collect::<Vec<_>>().join("\n")).expect("written");
    person.with(&cluster.file("kubeconfig").to_string_lossy(), &late.to_string_lossy(), |person| {
        person.run(&["apply", "shop", "--yes"]).exits(2).says("expired");
    });
}

/// The system-upgrade-controller has a Plan for these nodes.
fn upgrade_plan(cluster: &Cluster, person: &Person) {
    let kinds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.create(
        kinds,
        &json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "plans.upgrade.cattle.io" },
            "spec": {
                "group": "upgrade.cattle.io", "scope": "Namespaced",
                "names": { "kind": "Plan", "listKind": "PlanList", "plural": "plans", "singular": "plan" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                }],
            },
        }),
    );
    let plans = "/apis/upgrade.cattle.io/v1/namespaces/cattle-system/plans";
    let plan = json!({
        "apiVersion": "upgrade.cattle.io/v1", "kind": "Plan", "metadata": { "name": "server-plan" },
        "spec": { "concurrency": 1, "version": "v1.36.4+k3s1", "upgrade": { "image": "rancher/k3s-upgrade" } },
    });
    kadence_testbed::eventually("the kind to be served", SOON, || cluster.api("POST", plans, Some(&plan)).is_ok());
    person.run(&["apply", "shop", "--yes"]).exits(3).says("OTHER-MANAGERS").says("server-plan");
    cluster.delete(&format!("{plans}/server-plan"));
    cluster.delete(&format!("{kinds}/plans.upgrade.cattle.io"));
}
