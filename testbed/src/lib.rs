//! Clusters on test hosts, and `kadence` run against them as a person would.
//!
//! The suites that use this run only where `KADENCE_E2E` says on what: `real` or `stand-in`. Elsewhere they say that
//! they were skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
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

/// A cluster on test hosts; taken away when dropped.
pub struct Cluster {
    pub name: String,
    folder: PathBuf,
}

impl Cluster {
    /// Brings a cluster up and waits until its nodes are Ready.
    pub fn up(topology: &str, name: &str, version: &str) -> Self {
        let _ = sh(&root().join("testbed/cluster"), &["down", name]);
        let out = must("cluster", &["up", topology, name, "--version", version]);
        let folder = PathBuf::from(out.lines().last().unwrap_or_default());
        Self { name: name.to_owned(), folder }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs a command on a node, as root.
    pub fn ssh(&self, node: &str, command: &str) -> String {
        must("cluster", &["ssh", &self.name, node, command])
    }

    /// A fault on one of its hosts, by the testbed's own command.
    pub fn fault(&self, fault: &str, node: &str, args: &[&str]) {
        let host = format!("{}-{node}", self.name);
        must("fault", &[&[fault, host.as_str()], args].concat());
    }

    /// Asks the cluster itself, not Kadence, with the kubectl on its first server.
    pub fn kubectl(&self, args: &str) -> String {
        self.ssh("s1", &format!("k3s kubectl {args}"))
    }

    /// Each node's version and whether it is Ready and schedulable, by the cluster's own word.
    pub fn nodes(&self) -> BTreeMap<String, (String, bool, bool)> {
        let json: Value = serde_json::from_str(&self.kubectl("get nodes -o json")).expect("nodes in JSON");
        let mut nodes = BTreeMap::new();
        for node in json["items"].as_array().into_iter().flatten() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().to_owned();
            let ready = node["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            let cordoned = node["spec"]["unschedulable"] == true;
            nodes.insert(name, (version, ready, cordoned));
        }
        nodes
    }

    /// Every node runs `version`, is Ready and takes pods.
    pub fn assert_all_on(&self, version: &str) {
        for (name, (is, ready, cordoned)) in self.nodes() {
            assert_eq!(is, version, "{name}");
            assert!(ready, "{name} is Ready");
            assert!(!cordoned, "{name} is not cordoned");
        }
    }
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
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Asserts the exit code; on another one everything that was said is shown.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.exit, code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that something was said.
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "`{text}` was not said\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("one JSON document on stdout")
    }
}

impl Person {
    /// Sits down before a cluster: `kadence init` with its flags.
    pub fn before(cluster: &Cluster) -> Self {
        let person = Self { folder: TempDir::new().expect("a folder"), releases: releases() };
        let file = |name: &str| cluster.file(name).to_string_lossy().into_owned();
        person
            .run(&[
                "init",
                "--yes",
                "--name",
                "shop",
                "--environment",
                "test",
                "--kubeconfig",
                &file("kubeconfig"),
                "--ssh-user",
                "root",
                "--ssh-key",
                &file("id"),
                "--known-hosts",
                &file("known_hosts"),
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

    /// Changes a text in the configuration.
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        assert!(text.contains(from), "`{from}` is in the configuration");
        std::fs::write(self.config(), text.replace(from, to)).expect("the configuration can be written");
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
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().expect("kadence can be started");
        Ran {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a command and lets it run.
    pub fn start(&self, args: &[&str]) -> Running {
        let log = self.folder.path().join(format!("{}.log", args.join("-").replace('/', "_")));
        let out = std::fs::File::create(&log).expect("a log file");
        let err = out.try_clone().expect("a log file");
        let child = self.command(args).stdout(out).stderr(err).spawn().expect("kadence can be started");
        Running { child, log }
    }
}

/// A command of `kadence` that runs.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it says this text; fails after the time, or if it ended before.
    pub fn until(&mut self, text: &str, within: Duration) {
        let give_up = Instant::now() + within;
        while !self.said().contains(text) {
            let ended = self.child.try_wait().expect("a child").is_some();
            assert!(!ended || self.said().contains(text), "it ended before it said `{text}`:\n{}", self.said());
            assert!(Instant::now() < give_up, "it did not say `{text}` within {within:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL: no chance to write anything.
    pub fn kill(mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    pub fn wait(mut self) -> Ran {
        let exit = self.child.wait().expect("a child").code().unwrap_or(-1);
        Ran { exit, stdout: self.said(), stderr: String::new() }
    }
}

/// A release source whose `tag` is a program that prints its version and exits when it should run.
pub fn broken_releases(tag: &str, folder: &Path) {
    for known in tags() {
        if known != tag {
            std::os::unix::fs::symlink(releases().join(&known), folder.join(&known)).expect("a link");
        }
    }
    let release = folder.join(tag);
    std::fs::create_dir_all(&release).expect("a folder");
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\n  --version|-v) echo 'k3s version {tag} (broken)';;\n  \
         *) echo 'Error: unrecognized feature gate: OldGate' >&2; exit 1;;\nesac\n"
    );
    let binary = release.join("k3s");
    std::fs::write(&binary, script).expect("a file");
    must_run("chmod", &["755", &binary.to_string_lossy()]);
    let sum = must_run("sha256sum", &[&binary.to_string_lossy()]);
    let sum = sum.split_whitespace().next().unwrap_or_default();
    std::fs::write(release.join("sha256sum-amd64.txt"), format!("{sum}  k3s\n")).expect("a file");
}

fn must_run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("a program of the system");
    assert!(output.status.success(), "{program} {}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
