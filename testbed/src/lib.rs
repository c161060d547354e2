//! Clusters on test hosts, and `kadence` run against them as a person would.
//!
//! The suites that use this run only where `KADENCE_E2E` says on what: `real` or `stand-in`. Elsewhere they say that
//! they were skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// On what the suites run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Real,
    StandIn,
}

/// On what this run is, or `None` where no end-to-end run was asked for.
pub fn on() -> Option<On> {
    match std::env::var("KADENCE_E2E").ok()?.as_str() {
        "real" => Some(On::Real),
        "stand-in" => Some(On::StandIn),
        other => unknown(other),
    }
}

#[expect(clippy::panic, reason = "a test run that was asked for something unknown must not pass")]
fn unknown(other: &str) -> ! {
    panic!("KADENCE_E2E is `real` or `stand-in`, not `{other}`")
}

/// Whether everything is run, or the short suite only.
pub fn full() -> bool {
    std::env::var("KADENCE_E2E_EXTENT").as_deref() == Ok("full")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Where the releases are.
pub fn releases() -> PathBuf {
    std::env::var_os("KADENCE_RELEASES").map_or_else(|| PathBuf::from("/var/tmp/kadence-releases"), PathBuf::from)
}

/// The release tags, oldest first.
pub fn tags() -> Vec<String> {
    let entries = std::fs::read_dir(releases()).into_iter().flatten().flatten();
    let mut tags: Vec<String> = entries
        .filter(|e| e.path().join("k3s").is_file())
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with('v'))
        .collect();
    // Enough for a folder of test releases: minor, patch and build have the same number of digits.
    tags.sort();
    tags
}

fn sh(program: &Path, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).env("KADENCE_RELEASES", releases()).stdin(Stdio::null()).output();
    output.expect("the testbed's script can be started")
}

fn must(program: &str, args: &[&str]) -> String {
    let path = root().join("testbed").join(program);
    let output = sh(&path, args);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {}: {}\n{out}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

/// Waits for a sign; fails after the time, and says what was waited for.
pub fn eventually(what: &str, within: Duration, mut seen: impl FnMut() -> bool) {
    let give_up = Instant::now() + within;
    while !seen() {
        assert!(Instant::now() < give_up, "waited {within:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A cluster on test hosts; taken away when dropped.
pub struct Cluster {
    pub name: String,
    folder: PathBuf,
    since: Instant,
}

/// A node by the cluster's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    pub version: String,
    pub ready: bool,
    pub cordoned: bool,
}

/// An order that a host was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// `running`, `succeeded` or `failed`.
    pub state: String,
    /// `swap`, `etcd-snapshot`, ...
    pub task: String,
}

impl Cluster {
    /// Brings a cluster up and waits until its nodes are Ready.
    pub fn up(topology: &str, name: &str, version: &str) -> Self {
        // Names of hosts are the machine's, so that both suites can run on it at the same time.
        let name = if on() == Some(On::StandIn) { &format!("im-{name}") } else { name };
        let _ = sh(&root().join("testbed/cluster"), &["down", name]);
        // Before it is up, so that a boot that failed is taken away too.
        let mut cluster = Self { name: name.to_owned(), folder: PathBuf::new(), since: Instant::now() };
        let out = must("cluster", &["up", topology, name, "--version", version]);
        cluster.folder = PathBuf::from(out.lines().last().unwrap_or_default());
        cluster
    }

    /// Says what is played next, with the time since the cluster was asked for.
    #[expect(clippy::print_stderr, reason = "a suite of half an hour says where it is")]
    pub fn scene(&self, what: &str) {
        eprintln!("\n[{:4} s] {}: {what}", self.since.elapsed().as_secs(), self.name);
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn host(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    /// Name, role and address of each node, servers first.
    fn table(&self) -> Vec<(String, String, String)> {
        let text = std::fs::read_to_string(self.file("nodes.tsv")).expect("the cluster's nodes");
        let mut rows: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split('\t').map(str::to_owned);
                Some((words.next()?, words.next()?, words.next()?))
            })
            .collect();
        rows.sort_by_key(|(name, role, _)| (role != "server", name.clone()));
        rows
    }

    pub fn names(&self) -> Vec<String> {
        self.table().into_iter().map(|(name, ..)| name).collect()
    }

    pub fn servers(&self) -> Vec<String> {
        self.table().into_iter().filter(|(_, role, _)| role == "server").map(|(name, ..)| name).collect()
    }

    pub fn address(&self, node: &str) -> String {
        let row = self.table().into_iter().find(|(name, ..)| name == node);
        row.unwrap_or_else(|| unknown_node(node)).2
    }

    /// The unit of a node's K3s.
    pub fn unit(&self, node: &str) -> &'static str {
        if self.servers().iter().any(|s| s == node) { "k3s" } else { "k3s-agent" }
    }

    /// Runs a command on a node by SSH, as root.
    pub fn ssh(&self, node: &str, command: &str) -> String {
        must("cluster", &["ssh", &self.name, node, command])
    }

    /// Runs a command on a node without network or SSH, as root.
    pub fn enter(&self, node: &str, command: &str) -> String {
        must("hosts", &["enter", &self.host(node), "sh", "-c", command])
    }

    /// Where the files of a running host can be seen from here.
    pub fn root(&self, node: &str) -> PathBuf {
        PathBuf::from(must("hosts", &["root", &self.host(node)]).trim())
    }

    /// A fault on one of its hosts, by the testbed's own command.
    pub fn fault(&self, fault: &str, node: &str, args: &[&str]) {
        must("fault", &[&[fault, &self.host(node)], args].concat());
    }

    /// Mends a fault; does nothing where there is none.
    pub fn mend(&self, fault: &str, node: &str, args: &[&str]) {
        must("fault", &[&["undo", fault, &self.host(node)], args].concat());
    }

    /// Asks the cluster itself, not Kadence, with the kubectl on its first server.
    pub fn kubectl(&self, args: &str) -> String {
        self.ssh("s1", &format!("k3s kubectl {args}"))
    }

    /// Whether the API of this server serves.
    pub fn answers(&self, server: &str) -> bool {
        self.call(&[server.to_owned()], "GET", "/api/v1/nodes", None).is_ok()
    }

    /// A call to the API of the first server that answers, with the rights of the cluster's administrator.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        self.call(&self.servers(), method, path, body)
    }

    fn call(&self, servers: &[String], method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let keys = self.file("keys");
        let key = |name: &str| keys.join(name).to_string_lossy().into_owned();
        let content = match method {
            "PATCH" => "content-type: application/merge-patch+json",
            _ => "content-type: application/json",
        };
        let mut why = String::new();
        for server in servers {
            let mut call = Command::new("curl");
            call.args(["--silent", "--show-error", "--fail-with-body", "--connect-timeout", "2", "--max-time", "10"])
                .args(["--cacert", &key("ca"), "--cert", &key("cert"), "--key", &key("key")])
                .args(["--request", method, "--header", content]);
            if let Some(body) = body {
                call.args(["--data-binary", &body.to_string()]);
            }
            let output = call.arg(format!("https://{}:6443{path}", self.address(server))).output().expect("curl");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                return serde_json::from_str(&text).map_err(|e| format!("{path}: {e}: {text}"));
            }
            why = format!("{method} {path} on {server}: {text}{}", String::from_utf8_lossy(&output.stderr));
            // 22: it answered, with an error.
            if output.status.code() == Some(22) {
                break;
            }
        }
        Err(why)
    }

    pub fn get(&self, path: &str) -> Value {
        self.api("GET", path, None).unwrap_or_else(|why| broken(&why))
    }

    pub fn create(&self, path: &str, body: &Value) {
        self.api("POST", path, Some(body)).unwrap_or_else(|why| broken(&why));
    }

    pub fn delete(&self, path: &str) {
        self.api("DELETE", path, None).unwrap_or_else(|why| broken(&why));
    }

    /// Cordons a node, or lifts that, as a person would with kubectl.
    pub fn cordon(&self, node: &str, on: bool) {
        let body = json!({ "spec": { "unschedulable": if on { json!(true) } else { Value::Null } } });
        self.api("PATCH", &format!("/api/v1/nodes/{node}"), Some(&body)).unwrap_or_else(|why| broken(&why));
    }

    /// Each node by the cluster's own word.
    pub fn nodes(&self) -> BTreeMap<String, NodeSeen> {
        let json = self.get("/api/v1/nodes");
        let mut nodes = BTreeMap::new();
        for node in json["items"].as_array().into_iter().flatten() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().to_owned();
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let cordoned = node["spec"]["unschedulable"] == true;
            nodes.insert(name, NodeSeen { version, ready, cordoned });
        }
        nodes
    }

    pub fn node(&self, name: &str) -> NodeSeen {
        self.nodes().remove(name).unwrap_or_else(|| unknown_node(name))
    }

    /// The nodes that run a version, by the cluster's own word.
    pub fn on(&self, version: &str) -> BTreeSet<String> {
        self.nodes().into_iter().filter(|(_, n)| n.version == version).map(|(name, _)| name).collect()
    }

    /// Every node runs `version`, is Ready and takes pods; the binary of that release is what is installed and what
    /// runs; every member of etcd is healthy.
    pub fn assert_all_on(&self, version: &str) {
        for (name, node) in self.nodes() {
            assert_eq!(node.version, version, "{name}");
            assert!(node.ready, "{name} is Ready");
            assert!(!node.cordoned, "{name} is not cordoned");
        }
        for name in self.names() {
            self.assert_runs(&name, version);
        }
        for server in self.servers() {
            assert!(self.etcd_is_healthy(&server), "etcd of {server} is healthy");
        }
    }

    /// What a member says of itself; true where there is no etcd.
    fn etcd_is_healthy(&self, server: &str) -> bool {
        !std::fs::read_to_string(self.file("datastore")).is_ok_and(|d| d.trim() == "etcd")
            || self
                .enter(server, "curl --silent --max-time 5 http://127.0.0.1:2381/health || true")
                .contains("\"true\"")
    }

    /// Whether a node is Ready, and of a server whether its API and its etcd serve.
    pub fn is_whole(&self, node: &str) -> bool {
        self.node(node).ready && (self.unit(node) != "k3s" || self.answers(node) && self.etcd_is_healthy(node))
    }

    /// The installed file is that of the release, and K3s was started from it.
    pub fn assert_runs(&self, node: &str, version: &str) {
        let sums = std::fs::read_to_string(releases().join(version).join("sha256sum-amd64.txt")).expect("digests");
        let published = sums.lines().find(|l| l.ends_with("k3s")).and_then(|l| l.split_whitespace().next());
        let said = self.enter(
            node,
            &format!(
                "sha256sum < /usr/local/bin/k3s; readlink /proc/$(systemctl show -p MainPID --value {})/exe",
                self.unit(node)
            ),
        );
        let mut lines = said.lines();
        assert_eq!(lines.next().and_then(|l| l.split_whitespace().next()), published, "the installed file of {node}");
        assert_eq!(lines.next(), Some("/usr/local/bin/k3s"), "what runs on {node} is the installed file");
    }

    /// How often a node's K3s was started since it booted, by its systemd's own word.
    pub fn starts(&self, node: &str) -> usize {
        let journal = format!("journalctl -q -o cat -b -u {} _PID=1 | grep -c ^Starting || true", self.unit(node));
        self.enter(node, &journal).trim().parse().expect("a number")
    }

    /// Kadence's orders that a host knows, by id.
    pub fn orders(&self, root: &Path) -> BTreeMap<String, Order> {
        let entries = std::fs::read_dir(root.join("var/lib/kadence/actions")).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let read = |name: &str| std::fs::read_to_string(entry.path().join(name));
                // Turn, role, task.
                let task = read("order").ok()?.split_whitespace().nth(2).unwrap_or_default().to_owned();
                let order = Order { state: read("state").ok()?.trim().to_owned(), task };
                Some((entry.file_name().into_string().ok()?, order))
            })
            .collect()
    }

    /// Whether an order on a host has come to the restart of K3s, or gone through it.
    pub fn told_to_restart(&self, root: &Path) -> bool {
        let orders = std::fs::read_dir(root.join("var/lib/kadence/actions")).into_iter().flatten().flatten();
        orders.into_iter().any(|order| order.path().join("asked").exists())
    }
}

#[expect(clippy::panic, reason = "a test that cannot ask its cluster has failed")]
fn broken(why: &str) -> ! {
    panic!("{why}")
}

#[expect(clippy::panic, reason = "a test that names a node that is not there has failed")]
fn unknown_node(node: &str) -> ! {
    panic!("the cluster has no node {node}")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("KADENCE_E2E_KEEP").is_none() {
            let _ = sh(&root().join("testbed/cluster"), &["down", &self.name]);
        }
    }
}

/// A person at a terminal with `kadence`: a folder with a configuration and its state.
pub struct Person {
    pub folder: TempDir,
    releases: PathBuf,
}

/// What a command of `kadence` ended in.
pub struct Ran {
    what: String,
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Asserts the exit code; on another one everything that was said is shown.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.exit, code,
            "exit code of kadence {}\n--- stdout\n{}\n--- stderr\n{}",
            self.what, self.stdout, self.stderr
        );
        self
    }

    /// Asserts that something was said.
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "kadence {}: `{text}` was not said\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.stdout,
            self.stderr
        );
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("one JSON document on stdout")
    }
}

/// A plan that `kadence plan` made.
pub struct Planned {
    pub hash: String,
    /// The nodes in the order in which they are changed.
    pub order: Vec<String>,
}

impl Person {
    /// Sits down before a cluster: `kadence init` with its flags. Nothing waits longer than it has to.
    pub fn before(cluster: &Cluster) -> Self {
        Self::before_as(cluster, "root")
    }

    /// The same, with another SSH user.
    pub fn before_as(cluster: &Cluster, user: &str) -> Self {
        let person = Self { folder: TempDir::new().expect("a folder"), releases: releases() };
        std::fs::create_dir(person.scratch()).expect("a folder");
        let file = |name: &str| cluster.file(name).to_string_lossy().into_owned();
        let (kubeconfig, key, known_hosts) = (file("kubeconfig"), file("id"), file("known_hosts"));
        person
            .run(&[
                "init",
                "--yes",
                "--name",
                "shop",
                "--environment",
                "test",
                "--kubeconfig",
                &kubeconfig,
                "--ssh-user",
                user,
                "--ssh-key",
                &key,
                "--known-hosts",
                &known_hosts,
            ])
            .exits(0);
        person.edit("settle: 30s", "settle: 2s");
        person
    }

    /// Takes releases from another folder from now on.
    pub fn use_releases(&mut self, folder: &Path) {
        self.releases = folder.to_owned();
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("kadence.yaml")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Temporary files, and processes that know of them, that commands left behind.
    pub fn left_behind(&self) -> Vec<String> {
        let scratch = self.scratch();
        let files = std::fs::read_dir(&scratch).expect("a folder").flatten().map(|f| f.path().display().to_string());
        let processes = std::fs::read_dir("/proc").expect("processes").flatten().filter_map(|process| {
            let words = std::fs::read(process.path().join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            words.contains(&*scratch.to_string_lossy()).then_some(words)
        });
        files.chain(processes).collect()
    }

    /// Changes a text in the configuration.
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        assert!(text.contains(from), "`{from}` is in the configuration");
        std::fs::write(self.config(), text.replace(from, to)).expect("the configuration can be written");
    }

    /// Adds a part to the cluster's entry, which is the last one of the file. It begins with four spaces.
    pub fn add(&self, part: &str) {
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        std::fs::write(self.config(), format!("{text}\n{part}\n")).expect("the configuration can be written");
    }

    /// Runs something with another configuration, and puts the old one back.
    pub fn with(&self, from: &str, to: &str, story: impl FnOnce(&Self)) {
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        self.edit(from, to);
        story(self);
        std::fs::write(self.config(), text).expect("the configuration can be written");
    }

    fn command(&self, args: &[&str]) -> Command {
        let binary =
            std::env::var_os("KADENCE_BIN").map_or_else(|| root().join("target/release/kadence"), PathBuf::from);
        let mut command = Command::new(binary);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("KADENCE_RELEASES", &self.releases)
            .env("NO_COLOR", "1")
            .env("TMPDIR", self.scratch())
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.start(args).wait()
    }

    /// Runs a command to its end, started by another program: the words of that come first.
    pub fn run_by(&self, starter: &[&str], args: &[&str]) -> Ran {
        let kadence = self.command(args);
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg(kadence.get_program()).args(kadence.get_args());
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        for (key, value) in kadence.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        self.spawn(command, args.join(" ")).wait()
    }

    /// Makes a plan, with the flags of `kadence plan` beside the cluster's name.
    pub fn plan(&self, flags: &[&str]) -> Planned {
        let json = self.run(&[&["plan", "shop", "--output", "json"], flags].concat()).exits(0).json();
        let hops = json["plan"]["decision"]["hops"].as_array().cloned().unwrap_or_default();
        let steps = hops.iter().flat_map(|hop| hop["steps"].as_array().cloned().unwrap_or_default());
        Planned {
            hash: json["hash"].as_str().unwrap_or_default().to_owned(),
            order: steps.filter_map(|step| step["node"].as_str().map(str::to_owned)).collect(),
        }
    }

    /// Starts a command and lets it run.
    pub fn start(&self, args: &[&str]) -> Running {
        self.spawn(self.command(args), args.join(" "))
    }

    fn spawn(&self, mut command: Command, what: String) -> Running {
        let logs = TempDir::new_in(self.folder.path()).expect("a folder");
        let file = |name: &str| std::fs::File::create(logs.path().join(name)).expect("a log file");
        let (out, err) = (file("stdout"), file("stderr"));
        let child = command.stdout(out).stderr(err).spawn().expect("kadence can be started");
        Running { child, ended: None, logs, what }
    }
}

/// A command of `kadence` that runs; killed when dropped.
pub struct Running {
    child: Child,
    ended: Option<ExitStatus>,
    logs: TempDir,
    what: String,
}

/// How long any command of `kadence` may take.
const COMMAND: Duration = Duration::from_secs(600);

impl Running {
    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.logs.path().join(name)).unwrap_or_default()
    }

    pub fn said(&self) -> String {
        self.log("stdout") + &self.log("stderr")
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child");
        }
        self.ended.is_some()
    }

    /// Waits until it says this text; fails after the time, or if it ended before.
    pub fn until(&mut self, text: &str, within: Duration) {
        self.until_seen(&format!("`{text}`"), within, |running| running.said().contains(text));
    }

    /// Waits for a sign in the world while it runs; fails after the time, or if it ended before.
    pub fn until_seen(&mut self, what: &str, within: Duration, mut seen: impl FnMut(&Self) -> bool) {
        let give_up = Instant::now() + within;
        loop {
            let ended = self.ended();
            if seen(self) {
                return;
            }
            assert!(!ended, "kadence {} ended before {what}:\n{}", self.what, self.said());
            assert!(Instant::now() < give_up, "kadence {}: no {what} within {within:?}:\n{}", self.what, self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets it stand still while something is done.
    pub fn frozen(&self, meanwhile: impl FnOnce()) {
        self.signal("STOP");
        meanwhile();
        self.signal("CONT");
    }

    pub fn signal(&self, name: &str) {
        must_run("kill", &["-s", name, &self.child.id().to_string()]);
    }

    /// SIGKILL: no chance to write anything. Whether that was what ended it.
    pub fn kill(mut self) -> bool {
        if !self.ended() {
            self.child.kill().expect("a child");
            self.ended = Some(self.child.wait().expect("a child"));
        }
        self.ended.is_some_and(|status| status.signal().is_some())
    }

    pub fn wait(mut self) -> Ran {
        let give_up = Instant::now() + COMMAND;
        while !self.ended() {
            assert!(Instant::now() < give_up, "kadence {} did not end:\n{}", self.what, self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        let exit = self.ended.and_then(|status| status.code()).unwrap_or(-1);
        Ran { what: self.what.clone(), exit, stdout: self.log("stdout"), stderr: self.log("stderr") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a release is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It tells its version; when it should run it complains and exits.
    ExitsAtOnce,
    /// It tells its version; when it should run it does nothing, for ever.
    Hangs,
}

/// A release source whose `tag` does not run.
pub fn broken_releases(tag: &str, how: Broken, folder: &Path) {
    let run = match how {
        Broken::ExitsAtOnce => "echo 'Error: unrecognized feature gate: OldGate' >&2; exit 1",
        Broken::Hangs => "exec sleep 86400",
    };
    let script =
        format!("#!/bin/sh\ncase \"$1\" in\n  --version|-v) echo 'k3s version {tag} (broken)';;\n  *) {run};;\nesac\n");
    changed_releases(tag, script.as_bytes(), folder);
}

/// A release source whose `tag` is this program, with the digest that belongs to it.
pub fn changed_releases(tag: &str, program: &[u8], folder: &Path) {
    for known in tags() {
        if known != tag {
            std::os::unix::fs::symlink(releases().join(&known), folder.join(&known)).expect("a link");
        }
    }
    let release = folder.join(tag);
    std::fs::create_dir_all(&release).expect("a folder");
    let binary = release.join("k3s");
    std::fs::write(&binary, program).expect("a file");
    must_run("chmod", &["755", &binary.to_string_lossy()]);
    let sum = must_run("sha256sum", &[&binary.to_string_lossy()]);
    let sum = sum.split_whitespace().next().unwrap_or_default();
    std::fs::write(release.join("sha256sum-amd64.txt"), format!("{sum}  k3s\n")).expect("a file");
}

/// Runs a program of this machine.
pub fn must_run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("a program of the system");
    assert!(output.status.success(), "{program} {}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
