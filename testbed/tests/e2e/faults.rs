//! Everything that can die in the middle, does. Several faults share a cluster: each leaves it as the next one needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kadence_testbed::{Broken, Cluster, Person, broken_releases, eventually, releases};
use serde_json::json;

use crate::{In, SOON, told, versions};

#[test]
fn three_servers_and_an_agent_live_through_kills_pauses_and_a_broken_release() {
    if !told(In::Short) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("ha3a1", "e2e-ha", &v.old);
    let mut person = Person::before(&cluster);

    cluster.scene("a release that does not start: undone by itself, and everything is as it was");
    let broken = tempfile::TempDir::new().expect("a folder");
    broken_releases(&v.new, Broken::ExitsAtOnce, broken.path());
    person.use_releases(broken.path());
    person.run(&["apply", "shop", "--yes"]).exits(4).says("did not stay up").says("unrecognized feature gate");
    cluster.assert_all_on(&v.old);
    person.use_releases(&releases());

    cluster.scene("killed in the middle of the first server's restart");
    let mut running = person.start(&["apply", "shop", "--yes"]);
    running.until("✔ cordon s", SOON);
    running.kill();
    person.run(&["apply", "shop", "--to", &v.old]).exits(3).says("something else is asked for now");
    person.run(&["apply", "shop"]).exits(0).says("has not ended");
    cluster.assert_all_on(&v.new);

    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);

    cluster.scene("paused in the middle of the first server's: it is finished, no other is begun");
    let mut running = person.start(&["apply", "shop", "--yes"]);
    running.until("✔ cordon s", SOON);
    person.run(&["pause", "shop"]).exits(0);
    running.wait().exits(5).says("paused");
    let mixed = cluster.nodes();
    assert_eq!(cluster.on(&v.new).len(), 1, "{mixed:?}");
    assert!(mixed.values().all(|n| n.ready && !n.cordoned), "{mixed:?}");
    person.run(&["status", "shop"]).exits(0).says("paused");
    person.run(&["why", "shop"]).exits(0).says("paused");
    cluster.scene("two copies at once: the second one is refused");
    let mut running = person.start(&["resume", "shop"]);
    running.until("✔ cordon s", SOON);
    person.run(&["resume", "shop"]).exits(3).says("E-BUSY");
    cluster.scene("aborted: the node in hand is finished, what is mixed is said");
    person.run(&["abort", "shop"]).exits(0);
    running.wait().exits(5).says(&v.new).says(&v.old);
    assert_eq!(cluster.on(&v.new).len(), 2);
    person.run(&["resume", "shop"]).exits(3).says("E-NOTHING-HELD");
    person.run(&["apply", "shop"]).exits(0);
    cluster.assert_all_on(&v.new);
}

/// Makes `version` fail on one node only, as a setting of that node's own would: K3s complains and exits.
fn fails_on(cluster: &Cluster, node: &str, version: &str) {
    let folder = drop_ins(cluster, node);
    std::fs::create_dir_all(&folder).expect("a folder on the host");
    let check = format!(
        "if /usr/local/bin/k3s --version | grep -qF '{version}'; then echo 'Error: unrecognized feature gate: OldGate' >&2; \
         exit 1; fi"
    );
    let text = format!("[Service]\nExecStartPre=/bin/sh -c \"{check}\"\n");
    std::fs::write(folder.join("gate.conf"), text).expect("a file on the host");
    // It is in effect before anything is planned, and does no harm to what runs.
    let unit = cluster.unit(node);
    cluster.enter(node, &format!("systemctl daemon-reload; systemctl restart {unit}"));
    eventually("the node to be whole with it", SOON, || cluster.is_whole(node));
}

fn works_again_on(cluster: &Cluster, node: &str) {
    std::fs::remove_dir_all(drop_ins(cluster, node)).expect("a folder on the host");
    cluster.enter(node, "systemctl daemon-reload");
}

fn drop_ins(cluster: &Cluster, node: &str) -> PathBuf {
    cluster.root(node).join(format!("etc/systemd/system/{}.service.d", cluster.unit(node)))
}

/// Nodes that are neither Ready nor open, in words: there should be none.
fn not_whole(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.nodes();
    nodes.iter().filter(|(_, n)| !n.ready || n.cordoned).map(|(name, n)| format!("{name}: {n:?}")).collect()
}

#[test]
fn a_release_that_fails_on_a_second_server_on_an_agent_or_hangs_is_undone_there() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("ha3a1", "e2e-fails", &v.old);
    let mut person = Person::before(&cluster);
    person.edit("ready_within: 10m", "ready_within: 45s");

    cluster.scene("it hangs, and never becomes ready: the deadline undoes it");
    let hangs = tempfile::TempDir::new().expect("a folder");
    broken_releases(&v.new, Broken::Hangs, hangs.path());
    person.use_releases(hangs.path());
    person.run(&["apply", "shop", "--yes"]).exits(4).says("not proven healthy within");
    cluster.assert_all_on(&v.old);
    person.use_releases(&releases());

    cluster.scene("on the second server: that one goes back, the first stays where it is, and nobody else is touched");
    let order = person.plan(&[]).order;
    let second = order[1].as_str();
    fails_on(&cluster, second, &v.new);
    let before: BTreeMap<String, usize> =
        cluster.names().into_iter().map(|n| (n.clone(), cluster.starts(&n))).collect();
    let planned = person.plan(&[]);
    assert_eq!(planned.order[1], second, "the order is that of before");
    person
        .run(&["apply", "shop", "--plan", &planned.hash])
        .exits(1)
        .says("did not stay up")
        .says("unrecognized feature gate");
    assert_eq!(cluster.on(&v.new).into_iter().collect::<Vec<_>>(), [order[0].clone()]);
    assert_eq!(not_whole(&cluster), [""; 0]);
    cluster.assert_runs(second, &v.old);
    for untouched in &order[2..] {
        assert_eq!(cluster.starts(untouched), before[untouched], "{untouched} was not touched");
    }
    person.run(&["status", "shop"]).exits(0).says(second);
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    works_again_on(&cluster, second);

    cluster.scene("on the agent: it goes back, the servers stay; when the cause is gone the next update finishes it");
    fails_on(&cluster, "a1", &v.new);
    person.run(&["apply", "shop"]).exits(1).says("did not stay up");
    assert_eq!(cluster.on(&v.new), cluster.servers().into_iter().collect());
    assert_eq!(not_whole(&cluster), [""; 0]);
    cluster.assert_runs("a1", &v.old);
    works_again_on(&cluster, "a1");
    let servers: Vec<usize> = cluster.servers().iter().map(|s| cluster.starts(s)).collect();
    person.run(&["apply", "shop", "--to", &v.new]).exits(0);
    cluster.assert_all_on(&v.new);
    assert_eq!(servers, cluster.servers().iter().map(|s| cluster.starts(s)).collect::<Vec<_>>());
}

#[test]
fn connections_that_break_and_an_api_that_is_away_are_waited_for_or_held() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("ha3a1", "e2e-cut", &v.old);
    let person = Person::before(&cluster);
    person.edit("ready_within: 10m", "ready_within: 60s");
    let roots: BTreeMap<String, PathBuf> = cluster.names().into_iter().map(|n| (n.clone(), cluster.root(&n))).collect();
    let before: BTreeMap<String, usize> =
        cluster.names().into_iter().map(|n| (n.clone(), cluster.starts(&n))).collect();
    let planned = person.plan(&[]);
    let order = &planned.order;
    let copied = |node: &str| {
        let files = std::fs::read_dir(roots[node].join("var/lib/kadence/staged")).into_iter().flatten().flatten();
        files
            .filter(|f| f.file_name().to_string_lossy().ends_with(".part"))
            .any(|f| f.metadata().is_ok_and(|m| m.len() > 0))
    };
    let restarting = |node: &str| cluster.told_to_restart(&roots[node]);

    // A small disk of its own for the copies, since the kubelet minds a full one for minutes.
    cluster.scene("the disk of one node becomes full in the middle of the copy: refused, and nothing was touched");
    let copies = "/var/lib/kadence/staged";
    cluster.enter("a1", &format!("mkdir -p -m 700 {copies}"));
    cluster.fault("folder", "a1", &[copies, "500000"]);
    let mut running = person.start(&["apply", "shop", "--plan", &planned.hash]);
    running.until_seen("a copy on a1 that has begun", SOON, |_| copied("a1"));
    running.frozen(|| cluster.fault("disk", "a1", &[copies]));
    running.wait().exits(3).says("a1").says("full");
    assert!(!copied("a1"), "the half of a file is removed");
    cluster.mend("folder", "a1", &[]);
    cluster.assert_all_on(&v.old);
    assert!(cluster.names().iter().all(|n| cluster.starts(n) == before[n]), "no K3s was restarted");
    cluster.enter(&order[0], "rm -rf /var/lib/kadence/staged/*");

    cluster
        .scene("the connection breaks in the middle of the copy, and in the middle of a restart: it goes on by itself");
    let mut running = person.start(&["apply", "shop", "--plan", &planned.hash]);
    let first = order[0].as_str();
    running.until_seen("a copy on the first server that has begun", SOON, |_| copied(first));
    cluster.fault("ssh-drop", first, &[]);
    running.until_seen("the first server's restart", SOON, |_| restarting(first));
    cluster.fault("ssh-drop", first, &[]);

    cluster
        .scene("it stays broken in the middle of the second one's: held, with its cause named; no other node is begun");
    let second = order[1].as_str();
    running.until_seen("the second server's restart", SOON, |_| restarting(second));
    running.frozen(|| {
        cluster.fault("ssh", second, &[]);
        cluster.fault("ssh-drop", second, &[]);
    });
    running.wait().exits(5).says(second);
    assert!(cluster.node(first).version == v.new && !cluster.node(first).cordoned, "{:?}", cluster.nodes());
    for untouched in &order[2..] {
        assert_eq!(cluster.starts(untouched), before[untouched], "{untouched} was not touched");
        assert!(!cluster.node(untouched).cordoned, "{untouched}");
    }
    person.run(&["status", "shop"]).exits(0).says(second);
    cluster.mend("ssh", second, &[]);

    cluster.scene(
        "the API is away for 20 s in the middle of the third one's; and somebody cordons the agent, which waits",
    );
    let third = order[2].as_str();
    let mut running = person.start(&["resume", "shop"]);
    running.until_seen("the third server's restart", SOON, |_| restarting(third));
    cluster.cordon("a1", true);
    for server in cluster.servers() {
        cluster.fault("api", &server, &["20"]);
    }
    running.wait().exits(5).says("a1 was cordoned by somebody else");
    eventually("the API to be back", SOON, || cluster.servers().iter().all(|s| cluster.answers(s)));
    assert_eq!(cluster.on(&v.new), cluster.servers().into_iter().collect());
    assert!(cluster.node("a1").cordoned, "what others cordoned stays so");
    assert_eq!(cluster.starts("a1"), before["a1"]);
    person.run(&["resume", "shop"]).exits(5).says("a1 was cordoned by somebody else");
    assert!(cluster.node("a1").cordoned);
    cluster.cordon("a1", false);
    person.run(&["resume", "shop"]).exits(0);
    cluster.assert_all_on(&v.new);
    for name in cluster.names() {
        assert_eq!(cluster.starts(&name), before[&name] + 1, "{name} was restarted once");
    }
    let report = person.run(&["report", "shop", "--output", "json"]).exits(0).json();
    assert_eq!(report["schema"], 1);
}

#[test]
fn machines_that_lose_power_and_servers_that_go_down_by_themselves_are_waited_for_or_held() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("ha3a1", "e2e-power", &v.old);
    let person = Person::before(&cluster);
    person.edit("ready_within: 10m", "ready_within: 60s");
    let planned = person.plan(&[]);
    let order = &planned.order;
    let restarting = |node: &str| {
        let root = cluster.root(node);
        move |cluster: &Cluster| cluster.told_to_restart(&root)
    };

    // What was written without fsync is not lost on these hosts: that needs a real machine.
    cluster.scene(
        "the first server loses its power in the middle of the restart, and comes back: the rollout goes on by itself",
    );
    let first = order[0].as_str();
    let sign = restarting(first);
    let mut running = person.start(&["apply", "shop", "--plan", &planned.hash]);
    running.until_seen("the first server's restart", SOON, |_| sign(&cluster));
    cluster.fault("power", first, &[]);
    cluster.mend("power", first, &[]);

    cluster.scene("the second one stays off: held, with its cause named; nobody else is touched");
    let second = order[1].as_str();
    let sign = restarting(second);
    running.until_seen("the second server's restart", SOON * 2, |_| sign(&cluster));
    cluster.fault("power", second, &[]);
    running.wait().exits(5).says(second);
    let seen = cluster.nodes();
    assert!(seen[first].version == v.new && !seen[first].cordoned, "{seen:?}");
    assert!(order[2..].iter().all(|n| seen[n].version == v.old && !seen[n].cordoned), "{seen:?}");
    person.run(&["status", "shop"]).exits(0).says(second);
    cluster.scene("it is not gone around: as long as it is off nothing goes on");
    person.run(&["resume", "shop"]).exits(5).says(second);
    assert!(order[2..].iter().all(|n| cluster.node(n).version == v.old), "{:?}", cluster.nodes());
    cluster.mend("power", second, &[]);

    cluster.scene(
        "once it is back it goes on; then a server that is done goes down by itself: the last one is not touched",
    );
    let third = order[2].as_str();
    let mut running = person.start(&["resume", "shop"]);
    running.until_seen("the second server to be done", SOON * 2, |_| {
        cluster.nodes().get(second).is_some_and(|n| n.version == v.new && n.ready && !n.cordoned)
    });
    running.frozen(|| cluster.fault("k3s", first, &[]));
    let stopped = running.wait();
    let third_was_in_hand = cluster.node(third).version == v.new;
    let stopped = stopped.exits(5);
    let said = stopped.stdout + &stopped.stderr;
    assert!(said.contains(first), "the cause is named: {said}");
    assert!(!third_was_in_hand, "never two servers down: {:?}", cluster.nodes());
    cluster.mend("k3s", first, &[]);
    eventually("the server that went down to be back", SOON, || cluster.nodes()[first].ready);

    cluster.scene(
        "the state folder is lost in the middle of the last server's restart: another one takes over by the marks",
    );
    let sign = restarting(third);
    let mut running = person.start(&["resume", "shop"]);
    running.until_seen("the third server's restart", SOON * 2, |_| sign(&cluster));
    running.kill();
    drop(person);
    eventually("the server that the kubeconfig names", SOON, || cluster.answers("s1"));
    let other = Person::before(&cluster);
    other.edit("ready_within: 10m", "ready_within: 60s");
    other.run(&["resume", "shop"]).exits(3);
    other.run(&["resume", "shop", "--adopt"]).exits(0).says("Taking over");
    cluster.assert_all_on(&v.new);
}

#[test]
fn killed_after_any_event_and_in_any_order_to_a_node_it_goes_on() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("ha3a1", "e2e-kill", &v.old);
    let person = Person::before(&cluster);
    let roots: Vec<PathBuf> = cluster.names().iter().map(|n| cluster.root(n)).collect();
    let before: Vec<usize> = cluster.names().iter().map(|n| cluster.starts(n)).collect();

    cluster.scene("in the middle of each order that a node performs: the unit goes on there, its result is asked for");
    // Once for each kind of order and node: what is not kept here yet, a backup above all, is made anew at each resume.
    let mut seen = BTreeSet::new();
    let mut kills = 0;
    for _ in 0..40 {
        let mut running = person.start(if kills == 0 { &["apply", "shop"] } else { &["resume", "shop"] });
        let mut found = None;
        running.until_seen("the end of the rollout, or an order at work", SOON * 2, |running| {
            let orders = roots.iter().flat_map(|root| cluster.orders(root).into_values().map(move |o| (root, o)));
            let at_work = orders.filter(|(_, order)| order.state == "running").map(|(root, order)| (root, order.task));
            found = at_work.into_iter().find(|order| !seen.contains(order));
            found.is_some() || running.said().contains("kadence report")
        });
        let Some(order) = found else {
            running.wait().exits(0);
            break;
        };
        seen.insert(order);
        kills += usize::from(running.kill());
    }
    assert!(kills >= 5, "a snapshot and four restarts at least: {seen:?}");
    cluster.assert_all_on(&v.new);
    let after: Vec<usize> = cluster.names().iter().map(|n| cluster.starts(n)).collect();
    assert_eq!(after, before.iter().map(|n| n + 1).collect::<Vec<_>>(), "each node was restarted once");

    // Each write to the state is a change of its log. Always the next one but a few, so that it gets on.
    cluster.scene("after events, on the way back");
    // Each write to the state is a change of its log. Always the next one but a few, so that it gets on.
    let mut kills = 0;
    for round in 0..60 {
        let last = person.run(&["status", "shop", "--output", "json"]).exits(0).json()["rollouts"][0].clone();
        let goes_on = last["ended"].is_null();
        if !goes_on && last["purpose"]["kind"] != "update" {
            break;
        }
        // Killed before the first event is as if nobody had asked.
        let mut running = person.start(if goes_on { &["resume", "shop"] } else { &["rollback", "shop", "--yes"] });
        let log = person.state().join("kadence.db-wal");
        let now = || std::fs::metadata(&log).ok().and_then(|m| Some((m.len(), m.modified().ok()?)));
        let mut last: Option<(u64, SystemTime)> = now();
        let mut writes = 0;
        let upto = if kills < 12 { 4 + round % 5 } else { usize::MAX };
        running.until_seen("the end of the rollout, or another write", SOON * 2, |running| {
            if now() != last {
                last = now();
                writes += 1;
            }
            writes >= upto || running.said().contains("kadence report")
        });
        if writes < upto {
            running.wait().exits(0);
        } else {
            kills += usize::from(running.kill());
        }
    }
    assert!(kills >= 8, "killed {kills} times only");
    cluster.assert_all_on(&v.old);
    let back: Vec<usize> = cluster.names().iter().map(|n| cluster.starts(n)).collect();
    assert_eq!(back, after.iter().map(|n| n + 1).collect::<Vec<_>>(), "each node was restarted once");
}

#[test]
fn a_disruption_budget_that_never_allows_holds_the_drain_and_evicts_nobody() {
    if !told(In::RealOnly) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("sqlite1a1", "e2e-budget", &v.old);
    let person = Person::before(&cluster);
    person.edit("drain: auto", "drain: always\n      drain_within: 15s");
    cluster.create(
        "/apis/apps/v1/namespaces/default/deployments",
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
            "spec": {
                "replicas": 1, "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": {
                        "nodeSelector": { "kubernetes.io/hostname": "a1" },
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{ "name": "web", "image": "docker.io/testbed/web:1", "imagePullPolicy": "Never" }],
                    },
                },
            },
        }),
    );
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    cluster.create(
        budgets,
        &json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "web" },
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } },
        }),
    );
    let pod = || {
        let pods = cluster.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb");
        let pod = pods["items"].as_array().into_iter().flatten().next().cloned().unwrap_or_default();
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = ready.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        (pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(), ready)
    };
    eventually("the pod to be ready", Duration::from_secs(60), || pod().1);
    eventually("the budget to have seen it", SOON, || {
        cluster.get(&format!("{budgets}/web"))["status"]["currentHealthy"] == 1
    });
    let (uid, _) = pod();

    cluster.scene("seen before anything is touched");
    let starts = cluster.starts("s1");
    person.run(&["check", "shop"]).exits(3).says("PDB-BLOCKS").says("default/web");
    person.run(&["apply", "shop", "--yes"]).exits(3).says("PDB-BLOCKS");
    cluster.assert_all_on(&v.old);
    assert_eq!(cluster.starts("s1"), starts);

    cluster.scene("overruled: the budget's word stands all the same, and the agent is as it was");
    person.add(
        "    waivers:\n      - check: PDB-BLOCKS\n        owner: somebody\n        reason: to see what a drain does\n        \
         until: 2099-01-01T00:00:00Z",
    );
    let starts = cluster.starts("a1");
    person.run(&["apply", "shop", "--yes"]).exits(5).says("a1").says("default/web");
    assert_eq!(pod(), (uid.clone(), true), "nobody was evicted");
    assert_eq!(cluster.on(&v.new).into_iter().collect::<Vec<_>>(), ["s1"]);
    assert_eq!(not_whole(&cluster), [""; 0]);
    assert_eq!(cluster.starts("a1"), starts);

    cluster.delete(&format!("{budgets}/web"));
    person.run(&["resume", "shop"]).exits(0);
    cluster.assert_all_on(&v.new);
    eventually("the pod to be ready again", Duration::from_secs(60), || pod().1);
    assert_ne!(pod().0, uid, "it was moved by the drain");
}
