//! Updates that go well: looked at, planned, carried out, told; each topology, each way to log in.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use kadence_testbed::{Cluster, Person, eventually};
use serde_json::{Value, json};

use crate::{In, skipped, told, versions};

#[test]
fn one_server_with_sqlite_is_updated_and_taken_back() {
    if !told(In::Short) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("sqlite1", "e2e-sqlite", &v.old);
    let person = Person::before(&cluster);
    person.run(&["config", "check"]).exits(0).says("shop");
    let schema = person.run(&["config", "schema"]).exits(0).json();
    assert!(schema["properties"]["clusters"].is_object(), "{schema}");

    let inventory = person.run(&["inspect", "shop", "--output", "json"]).exits(0).json();
    assert_eq!(inventory["datastore"]["kind"], "sqlite");
    assert_eq!(inventory["unknown"], json!([]), "a plain cluster leaves nothing unknown");
    as_the_api_says(&cluster, &inventory);
    assert_eq!(inventory["nodes"][0]["etcd"], "none");

    person.run(&["check", "shop"]).exits(0).says("ready");
    let plan = person.run(&["plan", "shop", "--write", "plan.json"]).exits(0).says(&v.new).says("s1").says("Outage");
    assert!(!plan.stdout.is_empty());
    let runbook = person.run(&["plan", "shop", "--runbook"]).exits(0).stdout;
    for word in ["kubectl", "systemctl", "s1", v.new.as_str(), v.old.as_str()] {
        assert!(runbook.contains(word), "a person follows the runbook with {word}:\n{runbook}");
    }
    cluster.scene("the only server restarts: that is an outage, and nobody consented");
    let before = cluster.starts("s1");
    person.run(&["apply", "shop"]).exits(3).says("E-CONSENT");
    cluster.assert_all_on(&v.old);
    assert_eq!(cluster.starts("s1"), before, "nothing was restarted");
    person.run(&["why", "shop"]).exits(0).says(&v.new);

    person.run(&["apply", "shop", "--plan", "plan.json", "--yes"]).exits(0);
    cluster.assert_all_on(&v.new);
    assert_eq!(cluster.starts("s1"), before + 1, "one restart");
    person.run(&["apply", "shop", "--yes"]).exits(0).says("nothing to do");
    assert_eq!(cluster.starts("s1"), before + 1, "nothing to do is nothing done");
    assert_eq!(cluster.enter("s1", "stat -c %a /var/lib/kadence").trim(), "700", "what is kept is root's alone");
    backup_is_encrypted(&person);

    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    person.run(&["rollback", "shop", "--yes"]).exits(3);
    person.run(&["history", "shop"]).exits(0).says(&v.new).says(&v.old);
    person.run(&["validate", "shop"]).exits(0);
    let status = person.run(&["status", "shop", "--output", "json"]).exits(0).json();
    assert_eq!(status["rollouts"].as_array().map(Vec::len), Some(1), "{status}");
    let report = person.run(&["report", "shop", "--last", "--output", "json"]).exits(0).json();
    assert_eq!(report["schema"], 1);
    person.run(&["report", "shop", "--html", "report.html"]).exits(0);
    let page = std::fs::read_to_string(person.folder.path().join("report.html")).expect("the report");
    needs_nothing_else(&page);
    assert!(page.contains(&v.new) && page.contains(&v.old) && page.contains("s1"), "before and after are in it");
    assert!(page.contains("<svg"), "the timeline is a picture");
    let token = std::fs::read_to_string(cluster.file("token")).expect("the cluster's token");
    for secret in [token.trim(), "client-key-data", "AGE-SECRET-KEY-"] {
        no_file_holds(&person.state(), secret);
    }
    // What ends in good order takes its connections and its temporary files with it.
    eventually("nothing to be left behind", Duration::from_secs(5), || person.left_behind().is_empty());
}

/// What an inventory says of nodes is what the API says.
fn as_the_api_says(cluster: &Cluster, inventory: &Value) {
    let nodes = inventory["nodes"].as_array().cloned().unwrap_or_default();
    let seen = cluster.nodes();
    assert_eq!(nodes.len(), seen.len());
    let servers = cluster.servers();
    for node in &nodes {
        let name = node["name"].as_str().unwrap_or_default();
        let is = &seen[name];
        let server = servers.iter().any(|s| s == name);
        assert_eq!(node["role"], if server { "server" } else { "agent" }, "{name}");
        assert_eq!(node["apiserver"], server, "{name}");
        assert_eq!(node["version"], is.version.as_str(), "{name}");
        assert_eq!(node["ready"], is.ready, "{name}");
        let object = cluster.get(&format!("/api/v1/nodes/{name}"));
        assert_eq!(node["uid"], object["metadata"]["uid"], "{name}");
        assert_eq!(node["arch"], object["status"]["nodeInfo"]["architecture"], "{name}");
        assert_eq!(node["address"], cluster.address(name).as_str(), "{name}");
        let machine = cluster.enter(name, "cat /etc/machine-id");
        assert_eq!(node["host"]["machine_id"], machine.trim(), "{name}");
    }
}

/// A page that shows itself without fetching anything.
fn needs_nothing_else(page: &str) {
    for loads in ["src=\"http", "src='http", "<link", "@import", "url(http", "<script src", "<iframe"] {
        assert!(!page.contains(loads), "the page loads something: {loads}");
    }
}

/// Every file of every backup is in the age format, but the page that tells how to use it; none is readable by others.
fn backup_is_encrypted(person: &Person) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut files = 0;
    for backup in std::fs::read_dir(person.state().join("backups")).expect("backups").flatten() {
        for file in std::fs::read_dir(backup.path()).expect("a backup").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let mode = file.metadata().expect("a file").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name} is not for others");
            if name.ends_with(".age") {
                files += 1;
                let mut begin = [0; 21];
                std::fs::File::open(file.path()).expect("a file").read_exact(&mut begin).expect("not empty");
                assert_eq!(&begin, b"age-encryption.org/v1", "{name}");
            }
        }
    }
    assert!(files >= 2, "the datastore and the configuration are backed up");
}

#[test]
fn one_server_with_etcd_is_updated_and_taken_back_by_binaries_and_by_a_restore() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let Some(before) = v.minor_before.clone() else { return skipped("the release source has one minor only") };
    let cluster = Cluster::up("etcd1", "e2e-etcd", &before);
    let person = Person::before(&cluster);
    let inventory = person.run(&["inspect", "shop", "--output", "json"]).exits(0).json();
    assert_eq!(inventory["nodes"][0]["etcd"], "voter");
    as_the_api_says(&cluster, &inventory);

    keep(&cluster, "before");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    keep(&cluster, "after");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&before);
    assert_eq!(kept(&cluster), ["before"], "what came after the snapshot is lost");

    cluster.scene("a restored cluster is one like any other");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0);
    person.run(&["apply", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.new);
    keep(&cluster, "later");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    assert_eq!(kept(&cluster), ["before", "later"], "a way back by binaries loses nothing");
}

/// Writes something into the cluster that can be looked for later.
pub(crate) fn keep(cluster: &Cluster, name: &str) {
    let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "1" } });
    cluster.create("/api/v1/namespaces/default/configmaps", &body);
}

/// What of that is there.
pub(crate) fn kept(cluster: &Cluster) -> Vec<String> {
    let maps = cluster.get("/api/v1/namespaces/default/configmaps");
    let names = maps["items"].as_array().into_iter().flatten().filter_map(|m| m["metadata"]["name"].as_str());
    let mut names: Vec<String> = names.filter(|n| *n != "kube-root-ca.crt").map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn three_servers_and_two_agents_are_updated_in_parts_by_a_user_with_sudo() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("ha3a2", "e2e-parts", &v.old);
    let person = Person::before_as(&cluster, "ops");
    let inventory = person.run(&["inspect", "shop", "--output", "json"]).exits(0).json();
    as_the_api_says(&cluster, &inventory);
    let leader = cluster
        .servers()
        .into_iter()
        .find(|s| {
            cluster.enter(s, "curl -s http://127.0.0.1:2381/metrics").lines().any(|l| l == "etcd_server_is_leader 1")
        })
        .expect("one of them leads");

    let order = person.plan(&[]).order;
    assert_eq!(order.len(), 5);
    assert_eq!(order[2], leader, "the leader is last of the servers: {order:?}");
    assert!(order[3..].iter().all(|n| n.starts_with('a')), "agents come after the servers: {order:?}");

    person.run(&["apply", "shop", "--until", "servers"]).exits(0);
    assert_eq!(cluster.on(&v.new), cluster.servers().into_iter().collect());
    person.run(&["apply", "shop", "--only-agents", "--to", &v.new, "--exclude", "a2"]).exits(0);
    assert_eq!(cluster.on(&v.old).into_iter().collect::<Vec<_>>(), ["a2"], "the agent that was left out");
    person.run(&["plan", "shop", "--exclude", "s1"]).exits(3);
    person.run(&["apply", "shop", "--to", &v.new]).exits(0);
    cluster.assert_all_on(&v.new);
    // Files that were made with sudo are root's.
    let owner = cluster.enter("s1", "stat -c '%U %a' /usr/local/bin/k3s /var/lib/kadence");
    assert_eq!(owner.lines().collect::<Vec<_>>(), ["root 755", "root 700"]);
}

#[test]
fn sudo_with_a_password_works_where_it_is_configured_and_is_refused_where_not() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("sqlite1a1", "e2e-sudo", &v.old);
    let person = Person::before_as(&cluster, "pwops");
    let starts = cluster.starts("s1");

    // `init` saw that sudo wants one; as it stands there is none.
    person.run(&["apply", "shop", "--yes"]).exits(3).says("KADENCE_SUDO_PASSWORD");
    let asked = std::fs::read_to_string(person.config()).expect("the configuration");
    let sudo = asked.lines().find(|l| l.trim_start().starts_with("sudo:")).expect("init wrote how sudo is used");
    person.with(sudo, "      sudo: passwordless", |person| {
        person.run(&["apply", "shop", "--yes"]).exits(3).says("sudo").says("password");
    });
    let wrong = person.folder.path().join("wrong");
    std::fs::write(&wrong, "not-it\n").expect("a file");
    person.with(sudo, &format!("      sudo: {{password: {{file: {}}}}}", wrong.display()), |person| {
        person.run(&["apply", "shop", "--yes"]).exits(3).says("sudo");
    });
    cluster.assert_all_on(&v.old);
    assert_eq!(cluster.starts("s1"), starts, "nothing was touched");
    assert!(!cluster.enter("s1", "ls /var/lib/kadence 2>&1 || true").contains("staged"), "nothing was sent");

    let right = person.folder.path().join("right");
    std::fs::write(&right, "testbed-password\n").expect("a file");
    person.edit(sudo, &format!("      sudo: {{password: {{file: {}}}}}", right.display()));
    person.run(&["apply", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.new);
    no_file_holds(&person.state(), "testbed-password");
    let log = cluster.enter("s1", "journalctl -q -o cat | grep -c testbed-password || true");
    assert_eq!(log.trim(), "0", "no password in the host's journal");

    cluster.scene("through a bastion, where the server itself takes no connection from here");
    let (agent, rule) = (cluster.address("a1"), "INPUT -p tcp --dport 22 -s 172.31.77.1 -j REJECT");
    cluster.enter("s1", &format!("iptables -I {rule}"));
    let bastion = format!("    ssh:\n      bastion: \"pwops@{agent}\"\n");
    person.with("    ssh:\n", &bastion, |person| {
        let inventory = person.run(&["inspect", "shop", "--output", "json"]).exits(0).json();
        // ssh does not jump through a host to itself, so nothing is known of that one.
        let machine = cluster.enter("s1", "cat /etc/machine-id");
        let server = inventory["nodes"].as_array().into_iter().flatten().find(|n| n["name"] == "s1");
        assert_eq!(server.expect("the server")["host"]["machine_id"], machine.trim());
    });
    let direct = person.run(&["inspect", "shop", "--output", "json"]).exits(0).json();
    let unknown = direct["unknown"].as_array().into_iter().flatten();
    assert!(
        unknown.into_iter().any(|u| u["of"] == "s1"),
        "without the bastion it is out of reach: {}",
        direct["unknown"]
    );
}

/// No file of a folder holds a text.
fn no_file_holds(folder: &Path, secret: &str) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let text = std::fs::read(entry.path()).unwrap_or_default();
                let found = text.windows(secret.len()).any(|w| w == secret.as_bytes());
                assert!(!found, "{} holds a secret", entry.path().display());
            }
        }
    }
}

#[test]
fn probes_are_asked_before_and_after_and_one_that_fails_since_halts() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let cluster = Cluster::up("sqlite1", "e2e-probes", &v.old);
    let person = Person::before(&cluster);
    let site = Site::open();
    let flag = person.folder.path().join("flag");
    std::fs::write(&flag, "").expect("a file");
    person.edit("ready_within: 10m", "ready_within: 45s");
    person.add(&format!(
        "    probes:\n      - name: page\n        test: {{http: {{url: \"http://{0}/\", contains: hello}}}}\n      \
         - name: port\n        test: {{tcp: \"{0}\"}}\n      - name: flag\n        test: {{command: [test, -e, \"{1}\"]}}\n      \
         - name: node\n        test: {{condition: {{api_version: v1, kind: Node, name: s1, condition: Ready}}}}\n      \
         - name: never\n        test: {{command: [\"false\"]}}\n",
        site.address,
        flag.display()
    ));
    let validated = person.run(&["validate", "shop"]).exits(3);
    for passes in ["page", "port", "flag", "node"] {
        assert!(validated.stdout.contains(&format!("✔ probe {passes}")), "{}", validated.stdout);
    }
    assert!(validated.stdout.contains("✘ probe never"), "{}", validated.stdout);

    cluster.scene("one that failed before already does not count; one that fails since does");
    let mut running = person.start(&["apply", "shop", "--yes"]);
    running.until("✔ cordon s1", crate::SOON);
    std::fs::remove_file(&flag).expect("the flag");
    running.wait().exits(1).says("flag");
    assert_eq!(cluster.node("s1").version, v.new, "what a probe says is for a person to judge");
    assert!(!cluster.node("s1").cordoned);
    person.run(&["status", "shop"]).exits(0).says("flag");
    person.run(&["validate", "shop"]).exits(3).says("✘ probe flag");

    std::fs::write(&flag, "").expect("a file");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
}

/// A web page on this machine, until it is dropped.
struct Site {
    address: String,
}

impl Site {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
            }
        });
        Self { address }
    }
}
