//! A plan as a runbook that a person can follow by hand.
//!
//! It does what Kadence would do, with kubectl, ssh and the tools of the nodes alone: for the night on which Kadence is
//! not to be had, and for whoever wants to see what it does before it is let near a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use kadence_core::apply::plan::{
    BackupMethod, BackupRef, DatastoreKind, Decision, Drain, Hop, Plan, Purpose, SqliteTool, Step, UndoClass,
};
use kadence_core::ident::{Digest, NodeName};
use kadence_core::inventory::{Arch, Role};
use kadence_core::version::Version;

use crate::layout::one_line;
use crate::plan::backup as backup_words;
use crate::words::{count, datastore, duration, names, time};

const BIN: &str = "/usr/local/bin";
const DATA: &str = "/var/lib/rancher/k3s";
/// Where Kadence keeps the binaries that it replaced.
const KEPT: &str = "/var/lib/kadence/binaries";
/// What a member of etcd says of itself, asked on its node.
const HEALTH: &str = "curl -s http://127.0.0.1:2381/health; echo";

/// The runbook in Markdown: preparation, backup, each node with its way back, and what a restore is.
pub fn markdown(plan: &Plan) -> String {
    let mut book = Book { plan, text: String::new() };
    book.head();
    if plan.decision.hops.is_empty() {
        book.say(&format!("{} is on {} already: there is nothing to do.", plan.decision.cluster, plan.decision.target));
        return book.text;
    }
    book.overview();
    match &plan.decision.purpose {
        Purpose::Restore { backup, .. } => {
            book.needs();
            book.restore_of(backup);
        }
        Purpose::Update | Purpose::Rollback { .. } => {
            book.needs();
            book.before();
            for (i, hop) in plan.decision.hops.iter().enumerate() {
                book.hop(i, hop);
            }
            book.last_resort();
        }
    }
    book.text
}

struct Book<'a> {
    plan: &'a Plan,
    text: String,
}

/// Text from outside inside a sentence of Markdown, on one line.
fn inline(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_control() => " ".to_owned(),
            '<' => "&lt;".to_owned(),
            '|' => "\\|".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

/// One word of a shell's command line.
fn word(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_./:@%+=,-".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.to_owned();
    }
    // A line break would end the command, and the block with it.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    if text.contains('\'') && !text.contains(['"', '$', '`', '\\', '!']) {
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl<'a> Book<'a> {
    fn say(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push_str("\n\n");
    }

    fn title(&mut self, level: usize, text: &str) {
        self.say(&format!("{} {text}", "#".repeat(level)));
    }

    /// A numbered step: what is done, the commands, what comes of it.
    fn step(&mut self, number: usize, what: &str, commands: &[String], expect: &str) {
        let label = format!("{number}. ");
        let indent = " ".repeat(label.len());
        let _ = writeln!(self.text, "{label}{what}");
        if !commands.is_empty() {
            let _ = writeln!(self.text, "\n{indent}```sh");
            for command in commands.iter().flat_map(|c| c.lines()) {
                let _ = writeln!(self.text, "{indent}{command}");
            }
            let _ = writeln!(self.text, "{indent}```");
        }
        if !expect.is_empty() {
            let _ = write!(self.text, "\n{indent}Expect: {expect}\n");
        }
        self.text.push('\n');
    }

    fn address(&self, node: &NodeName) -> String {
        word(self.plan.seen.addresses.get(node).map_or(node.as_str(), String::as_str))
    }

    fn ssh(&self, node: &NodeName, command: &str) -> String {
        format!("ssh root@{} {}", self.address(node), word(command))
    }

    /// A command for each of these nodes; in it, `$host` is the node's address.
    fn each(&self, nodes: &[&NodeName], command: &str) -> String {
        let hosts: Vec<String> = nodes.iter().map(|n| self.address(n)).collect();
        // What needs quotes would be split by the loop into options for ssh.
        if hosts.len() < 2 || hosts.iter().any(|host| host.contains(['\'', '"'])) {
            let each: Vec<String> = hosts.iter().map(|host| command.replace("$host", host)).collect();
            return each.join("\n");
        }
        format!("for host in {}; do\n  {}\ndone", hosts.join(" "), command.replace('\n', "\n  "))
    }

    fn ssh_each(&self, nodes: &[&NodeName], command: &str) -> String {
        self.each(nodes, &format!("ssh root@$host {}", word(command)))
    }

    fn of(&self, role: Role) -> Vec<&'a NodeName> {
        let plan: &'a Plan = self.plan;
        plan.decision.preconditions.nodes.iter().filter(|(_, n)| n.role == role).map(|(name, _)| name).collect()
    }

    fn servers(&self) -> Vec<&'a NodeName> {
        self.of(Role::Server)
    }

    fn agents(&self) -> Vec<&'a NodeName> {
        self.of(Role::Agent)
    }

    fn etcd(&self) -> bool {
        self.plan.decision.preconditions.datastore == DatastoreKind::EmbeddedEtcd
    }

    // ----------------------------------------------------------------------------------------------- what and how

    fn head(&mut self) {
        let decision = &self.plan.decision;
        let (cluster, target) = (inline(decision.cluster.as_str()), &decision.target);
        let what = match decision.purpose {
            Purpose::Update => format!("{cluster} to {target}"),
            Purpose::Rollback { .. } => format!("{cluster} back to {target}"),
            Purpose::Restore { .. } => format!("restore {cluster} on {target}"),
        };
        self.title(1, &format!("Runbook: {what}"));
        let seen = &self.plan.seen;
        self.say(&format!(
            "Plan `{}`, made {} by Kadence {}. Everything Kadence would do, by hand: follow it from top to bottom, and \
             stop at the first thing that is not as written. Nothing goes on before what is expected was seen.",
            self.plan.hash().short(),
            time(seen.made),
            inline(&seen.kadence),
        ));
    }

    fn overview(&mut self) {
        let decision = &self.plan.decision;
        let expected = &self.plan.seen.expected;
        self.title(2, "What happens");
        let gap = format!(
            "Longest time without an answer of the API: reads {}, writes {}.",
            duration(expected.reads_gap),
            duration(expected.writes_gap)
        );
        self.say(&format!(
            "With Kadence about {}, by hand longer. {gap} Forecast from {}.",
            duration(expected.total),
            inline(expected.basis.trim_end_matches('.'))
        ));
        if let Some(outage) = decision.outage {
            self.say(&format!("**Outage: {}.** Announce it.", outage.words()));
        }
        if let Purpose::Restore { backup, .. } = &decision.purpose {
            self.say(&format!(
                "**Lost: everything that was written to the cluster after {}.** Data in volumes stays as it is now.",
                time(backup.taken)
            ));
        }
        if let Purpose::Rollback { .. } = &decision.purpose {
            self.say("Nothing is lost: the binaries go back, the datastore stays as it is.");
        }
        let mut table =
            "| | node | role | address | version | pods | undo |\n|---|---|---|---|---|---|---|\n".to_owned();
        for (i, hop) in decision.hops.iter().enumerate() {
            for (j, step) in hop.steps.iter().enumerate() {
                let no_return = if hop.point_of_no_return == Some(j) { "**⚠ point of no return** " } else { "" };
                let pods = match step.drain {
                    Drain::CordonOnly => "stay",
                    Drain::Evict => "evicted",
                };
                let _ = writeln!(
                    table,
                    "| {}.{} | {} | {} | {} | {} → {} | {pods} | {no_return}{} |",
                    i + 1,
                    j + 1,
                    inline(step.node.as_str()),
                    step.role,
                    self.address(&step.node),
                    step.from,
                    step.to,
                    step.undo
                );
            }
        }
        self.say(table.trim_end());
        let reasons: BTreeSet<&String> = decision
            .hops
            .iter()
            .flat_map(|h| &h.steps)
            .filter(|s| s.undo != UndoClass::Binary)
            .flat_map(|s| s.because.last())
            .collect();
        if !reasons.is_empty() && matches!(decision.purpose, Purpose::Update) {
            let list: Vec<String> = reasons.into_iter().map(|r| format!("- {}", inline(r))).collect();
            self.say(&format!(
                "Past the point of no return only the backup brings the old version back:\n\n{}",
                list.join("\n")
            ));
        }
        if !decision.excluded.is_empty() {
            self.say(&format!("Left out on purpose: {}.", inline(&names(&decision.excluded))));
        }
        let because: Vec<String> = self.plan.seen.because.iter().map(|b| format!("- {}", inline(b))).collect();
        if !because.is_empty() {
            self.say(&format!("Why:\n\n{}", because.join("\n")));
        }
    }

    fn needs(&mut self) {
        self.title(2, "What you need");
        self.say(&format!(
            "- `kubectl` with an administrator's kubeconfig of this cluster, and SSH as root to every node (else `sudo`).\n\
             - K3s as its installer leaves it: the binary `{BIN}/k3s`, data in `{DATA}`, the units `k3s` on servers and \
             `k3s-agent` on agents. See `systemctl cat k3s`; where yours differ, change the commands.\n\
             - A second pair of eyes, and a quiet cluster: nobody else updates, drains or deploys meanwhile."
        ));
    }

    fn before(&mut self) {
        let decision = &self.plan.decision;
        let held = &decision.preconditions;
        self.title(2, "Before anything is touched");
        let mut n = 0;
        let mut next = || {
            n += 1;
            n
        };
        self.step(
            next(),
            "It is the right cluster.",
            &["kubectl get namespace kube-system -o jsonpath='{.metadata.uid}{\"\\n\"}'".to_owned()],
            &format!("`{}`", held.cluster_uid),
        );
        let versions: BTreeMap<String, Vec<&NodeName>> =
            held.nodes.iter().fold(BTreeMap::new(), |mut all, (name, node)| {
                all.entry(node.version.to_string()).or_default().push(name);
                all
            });
        let versions: Vec<String> =
            versions.iter().map(|(v, nodes)| format!("{v} on {}", names(nodes.iter().copied()))).collect();
        self.step(
            next(),
            "Every node is Ready, none is cordoned, and the versions are those of the plan.",
            &["kubectl get nodes -o wide".to_owned()],
            &inline(&versions.join("; ")),
        );
        let servers = self.servers();
        let ready = self.each(&servers, "kubectl --server https://$host:6443 get --raw /readyz; echo");
        self.step(next(), "Every server's own API answers.", &[ready], "`ok` from each");
        if self.etcd() {
            self.step(
                next(),
                "Every member of etcd is healthy.",
                &[self.ssh_each(&servers, HEALTH)],
                &format!("`{{\"health\":\"true\",\"reason\":\"\"}}` from each of {}", count(servers.len(), "server")),
            );
        }
        let all: Vec<&NodeName> = held.nodes.keys().collect();
        let expected: BTreeSet<String> = held.nodes.values().map(|n| format!("`{}`", n.binary)).collect();
        self.step(
            next(),
            "The installed binaries are those of the plan: nobody replaced them since.",
            &[self.ssh_each(&all, &format!("sha256sum {BIN}/k3s"))],
            &expected.into_iter().collect::<Vec<_>>().join(" or "),
        );
        self.step(
            next(),
            "Write down how the workloads are, to compare later.",
            &["kubectl get deployments,statefulsets,daemonsets -A > before.txt".to_owned()],
            "",
        );
    }

    // ---------------------------------------------------------------------------------------------------- one hop

    fn hop(&mut self, i: usize, hop: &Hop) {
        let from: BTreeSet<String> = hop.steps.iter().map(|s| s.from.to_string()).collect();
        let from = from.into_iter().collect::<Vec<_>>().join(", ");
        self.title(2, &format!("Hop {}: {from} → {}", i + 1, hop.to));
        self.stage(i, hop);
        self.backup(i, hop);
        for (j, step) in hop.steps.iter().enumerate() {
            self.node(i, j, hop, step);
        }
        self.compare(i, hop);
    }

    fn stage(&mut self, i: usize, hop: &Hop) {
        let update = matches!(self.plan.decision.purpose, Purpose::Update);
        self.title(3, &format!("{}.0 Put the binary beside the installed one", i + 1));
        let mut n = 0;
        if update {
            let mut commands = Vec::new();
            for (arch, digest) in &hop.artifacts {
                commands.extend(fetch(&hop.to, *arch, *digest));
            }
            n += 1;
            self.step(
                n,
                "Fetch the release, from GitHub or your mirror, and compare its digest.",
                &commands,
                "`OK` for each file. Anything else: do not go on",
            );
        }
        // Nodes that get the same file.
        let mut alike: BTreeMap<(&Version, Digest, Option<Arch>), Vec<&NodeName>> = BTreeMap::new();
        for step in &hop.steps {
            let arch = self.plan.decision.preconditions.nodes.get(&step.node).map(|p| p.arch);
            alike.entry((&step.to, step.artifact, arch)).or_default().push(&step.node);
        }
        for ((to, artifact, arch), nodes) in alike {
            n += 1;
            let staged = staged(to);
            let check = format!("chmod 755 {staged} && echo '{artifact}  {staged}' | sha256sum -c");
            let whom = inline(&names(nodes.iter().copied()));
            let (what, command) = if update {
                let file = word(&arch.map_or_else(|| "k3s".to_owned(), |arch| local(to, arch)));
                (
                    format!("Copy it to {whom}, onto the file system of the installed one."),
                    format!("scp {file} root@$host:{staged}\nssh root@$host {}", word(&check)),
                )
            } else {
                let kept = format!("{KEPT}/k3s-{to}-{}", artifact.short(12));
                let command = format!("cp -p {kept} {staged} || cp -p {BIN}/k3s-{to} {staged}; {check}");
                (
                    format!("Take the binary that was kept on {whom}: by Kadence, or by a runbook like this one."),
                    format!("ssh root@$host {}", word(&command)),
                )
            };
            self.step(n, &what, &[self.each(&nodes, &command)], &format!("`{staged}: OK` from each"));
        }
        self.say(&format!("Nothing that runs was touched so far. Way back: `rm {}` on the nodes.", staged(&hop.to)));
    }

    fn backup(&mut self, i: usize, hop: &Hop) {
        let from = hop.steps.iter().map(|s| &s.from).min();
        let from = from.map_or_else(String::new, |v| format!(", on {v}"));
        self.title(3, &format!("{}.1 Back up the datastore{from}", i + 1));
        let name = self.backup_name(i);
        let mut n = 0;
        let mut next = || {
            n += 1;
            n
        };
        match &hop.backup {
            BackupMethod::EtcdSnapshot { server } => self.backup_etcd(&mut next, server, &name),
            BackupMethod::SqliteOnline { server, tool } => self.backup_sqlite(&mut next, server, *tool, &name),
            BackupMethod::SqliteStopped { server } => {
                let cold = format!("/root/{name}");
                let command = format!(
                    "systemctl stop k3s && mkdir -p {cold} && cp -p {DATA}/server/db/state.db* {cold}/; systemctl start --no-block k3s; ls -l {cold}"
                );
                self.step(
                    next(),
                    &format!(
                        "Stop K3s on {} for a copy; neither sqlite3 nor python3 is there. The API is away meanwhile.",
                        inline(server.as_str())
                    ),
                    &[self.ssh(server, &command)],
                    "`state.db`, and perhaps `state.db-wal`",
                );
                self.step(next(), "Bring it here.", &[format!("scp -r root@{}:{cold} .", self.address(server))], "");
                self.secrets(next(), server, &name);
            }
            BackupMethod::Command { command } => {
                self.step(
                    next(),
                    "Run your backup command. What is in its output, only you can judge.",
                    &[format!("{} > {name}.dump && ls -l {name}.dump", one_line(command))],
                    "a size as you know it",
                );
                if let Some(server) = self.servers().first() {
                    self.secrets(next(), server, &name);
                }
            }
        }
        let _ = writeln!(self.text, "What this is: {}.\n", backup_words(&hop.backup).replace("here", "where you are"));
    }

    fn backup_etcd(&mut self, next: &mut impl FnMut() -> usize, server: &NodeName, name: &str) {
        let dir = format!("{DATA}/server/db/snapshots");
        self.step(
            next(),
            &format!("Save a snapshot on {}.", inline(server.as_str())),
            &[self.ssh(
                server,
                &format!("k3s etcd-snapshot save --etcd-snapshot-compress=false --name {name} && ls -l {dir}/{name}-*"),
            )],
            "one file, about as large as etcd's data",
        );
        self.step(
            next(),
            "Bring it here.",
            &[format!("scp 'root@{}:{dir}/{name}-*' {name}.snapshot", self.address(server))],
            "",
        );
        self.step(
            next(),
            "Read it back: a snapshot ends with the SHA-256 of all that stands before.",
            &[format!("[ \"$(head -c -32 {name}.snapshot | sha256sum | cut -d ' ' -f 1)\" = \"$(tail -c 32 {name}.snapshot | od -An -v -tx1 | tr -d ' \\n')\" ] && echo whole")],
            "`whole`. Anything else: take another snapshot; without one no server is touched",
        );
        self.secrets(next(), server, name);
    }

    fn backup_sqlite(&mut self, next: &mut impl FnMut() -> usize, server: &NodeName, tool: SqliteTool, name: &str) {
        let (db, copy) = (format!("{DATA}/server/db/state.db"), format!("/root/{name}.db"));
        let command = match tool {
            SqliteTool::Sqlite3 => format!("sqlite3 -cmd '.timeout 30000' {db} \"VACUUM INTO '{copy}'\""),
            SqliteTool::Python3 => format!(
                "python3 -c \"import sqlite3; c = sqlite3.connect('{copy}'); sqlite3.connect('{db}', timeout=30).backup(c); c.close()\""
            ),
        };
        self.step(
            next(),
            &format!(
                "Copy the database on {} through SQLite itself. Never copy the file of a running one.",
                inline(server.as_str())
            ),
            &[self.ssh(server, &command)],
            "no output",
        );
        let ask = match tool {
            SqliteTool::Sqlite3 => format!("sqlite3 {copy} 'PRAGMA integrity_check; SELECT max(id) FROM kine'"),
            SqliteTool::Python3 => format!(
                "python3 -c \"import sqlite3; c = sqlite3.connect('{copy}'); print(c.execute('PRAGMA integrity_check').fetchone()[0]); print(c.execute('SELECT max(id) FROM kine').fetchone()[0])\""
            ),
        };
        self.step(
            next(),
            "Read the copy back.",
            &[
                "kubectl get --raw '/api/v1/namespaces?limit=1' | grep -o '\"resourceVersion\":\"[0-9]*\"' | head -n 1"
                    .to_owned(),
                self.ssh(server, &ask),
            ],
            "`ok`, and a number that is not much below the resourceVersion (it grows while you look)",
        );
        self.step(next(), "Bring it here.", &[format!("scp root@{}:{copy} .", self.address(server))], "");
        self.secrets(next(), server, name);
    }

    fn backup_name(&self, hop: usize) -> String {
        format!("kadence-{}-hop{}", self.plan.hash().short(), hop + 1)
    }

    fn secrets(&mut self, n: usize, server: &NodeName, name: &str) {
        let what = "var/lib/rancher/k3s/server/token etc/rancher";
        let command = format!("umask 077; {} > {name}.tar", self.ssh(server, &format!("tar -C / -ch {what}")));
        self.step(
            n,
            "Bring the server token and the configuration, too: without the token nobody can use the backup. They are \
             secrets; keep them where only you can read them.",
            &[command, format!("tar -tf {name}.tar | grep server/token")],
            "`var/lib/rancher/k3s/server/token`",
        );
    }

    // --------------------------------------------------------------------------------------------------- one node

    fn node(&mut self, i: usize, j: usize, hop: &Hop, step: &Step) {
        let node = &step.node;
        let name = inline(node.as_str());
        if hop.point_of_no_return == Some(j) {
            self.say(&format!(
                "> **⚠ Point of no return.** Once {name} has started {}, only the backup brings {} back, and what is \
                 written after it is lost then. If you have any doubt, this is where to stop.",
                step.to, step.from
            ));
        }
        self.title(3, &format!("{}.{} {name} ({}): {} → {}", i + 1, j + 2, step.role, step.from, step.to));
        if !step.because.is_empty() {
            let because: Vec<String> = step.because.iter().map(|b| inline(b)).collect();
            self.say(&format!("Why so: {}.", because.join("; ")));
        }
        let together: Vec<&NodeName> =
            hop.steps.iter().filter(|s| s.wave == step.wave && s.node != *node).map(|s| &s.node).collect();
        if !together.is_empty() {
            self.say(&format!("May be done together with {}.", inline(&names(together))));
        }
        let unit = step.role.unit();
        let mut n = 0;
        let mut next = || {
            n += 1;
            n
        };
        let mut look = vec!["kubectl get nodes".to_owned()];
        if step.role == Role::Server && self.etcd() {
            look.push(self.ssh_each(&self.servers(), HEALTH));
        }
        let etcd = if look.len() > 1 { ", every member of etcd `\"health\":\"true\"`" } else { "" };
        self.step(
            next(),
            "Look again: is everything well at this moment?",
            &look,
            &format!("every node Ready{etcd}. Else wait, or find out why: this is not the time"),
        );
        self.step(next(), "Keep new pods away.", &[format!("kubectl cordon {}", word(node.as_str()))], "`cordoned`");
        if step.drain == Drain::Evict {
            let within = self.plan.decision.manner.drain_within.as_secs();
            self.step(
                next(),
                "Move its pods away. Pods that keep data in an emptyDir lose it, and are refused until you say that this \
                 is fine (`--delete-emptydir-data`); a disruption budget may make this wait, and is to be believed.",
                &[format!("kubectl drain {} --ignore-daemonsets --timeout={within}s", word(node.as_str()))],
                "`drained`. Way back: `kubectl uncordon`",
            );
        }
        self.swap(next(), i, step);
        self.wait(next(), step);
        self.step(
            next(),
            "Let pods come again.",
            &[format!("kubectl uncordon {}", word(node.as_str()))],
            "`uncordoned`. Only after all of the above was seen; a node that is not healthy keeps its cordon",
        );
        self.way_back(step, unit);
    }

    fn swap(&mut self, n: usize, i: usize, step: &Step) {
        let unit = step.role.unit();
        let kept = format!("{BIN}/k3s-{}", step.from);
        let staged = staged(&step.to);
        let cold = step.role == Role::Server
            && self.plan.decision.preconditions.datastore == DatastoreKind::Sqlite
            && matches!(self.plan.decision.purpose, Purpose::Update);
        let mut commands = vec![
            format!("ssh root@{}", self.address(&step.node)),
            format!("echo '{}  {BIN}/k3s' | sha256sum -c    # what is installed is what the plan saw", step.previous),
            format!("echo '{}  {staged}' | sha256sum -c    # what comes is what was verified", step.artifact),
            format!("ln -f {BIN}/k3s {kept}    # keeps the old one under its own name"),
        ];
        if cold {
            let folder = format!("/root/{}-cold", self.backup_name(i));
            commands.push(format!("systemctl stop {unit}"));
            commands.push(format!(
                "mkdir -p {folder} && cp -p {DATA}/server/db/state.db* {folder}/    # second, cold copy"
            ));
        }
        commands.push(format!("mv -f {staged} {BIN}/k3s && sync -f {BIN}    # a rename: never half a file"));
        commands.push(format!("command -v restorecon > /dev/null && restorecon {BIN}/k3s    # where SELinux is on"));
        let verb = if cold { "start" } else { "restart" };
        commands.push(format!("systemctl {verb} --no-block {unit}"));
        commands.push("exit".to_owned());
        self.step(
            n,
            "Replace the binary and restart K3s. Both digests first; if one is not `OK`, stop here.",
            &commands,
            &format!(
                "`OK` twice. Containers go on running while K3s restarts{}",
                if step.role == Role::Server { "; this server's API is away for some seconds" } else { "" }
            ),
        );
    }

    fn wait(&mut self, n: usize, step: &Step) {
        let manner = &self.plan.decision.manner;
        let unit = step.role.unit();
        let expected = match step.role {
            Role::Server => self.plan.seen.expected.per_server,
            Role::Agent => self.plan.seen.expected.per_agent,
        };
        let mut commands = vec![
            format!(
                "kubectl get node {} --watch    # Ready, with VERSION {}; Ctrl-C then",
                word(step.node.as_str()),
                step.to
            ),
            self.ssh(&step.node, &format!("systemctl show -p ActiveState -p NRestarts {unit}")),
        ];
        if step.role == Role::Server {
            commands
                .push(format!("kubectl --server https://{}:6443 get --raw /readyz; echo", self.address(&step.node)));
            if self.etcd() {
                commands.push(self.ssh(&step.node, HEALTH));
                commands.push(self.ssh(
                    &step.node,
                    "curl -s http://127.0.0.1:2381/metrics | grep -E '^etcd_server_(is_learner|has_leader)'",
                ));
            }
        }
        let etcd = if step.role == Role::Server && self.etcd() {
            ", `\"health\":\"true\"`, `is_learner 0` and `has_leader 1`"
        } else {
            ""
        };
        let api = if step.role == Role::Server { ", `ok`" } else { "" };
        let settle = if manner.settle.is_zero() {
            String::new()
        } else {
            format!(" Then all of it still so for {}.", duration(manner.settle))
        };
        self.step(
            n,
            "Wait until it is proven healthy. A Node stays Ready for some 40 s after its K3s died, so look at the version \
             and at the unit as well.",
            &commands,
            &format!(
                "after about {} the node Ready with {}, `active`{api}{etcd}.{settle} A third restart (`NRestarts=3`), or \
                 nothing after {}: go the way back",
                duration(expected),
                step.to,
                duration(manner.ready_within)
            ),
        );
    }

    fn way_back(&mut self, step: &Step, unit: &str) {
        let name = inline(step.node.as_str());
        if step.undo != UndoClass::Binary {
            let how = match (&self.plan.decision.purpose, step.undo) {
                (_, UndoClass::ForwardOnly) => "There is none: repair forward.".to_owned(),
                _ => format!(
                    "The binary alone does not bring {name} back once it has started {}. Find the cause first: `{}`. If \
                     the cluster cannot go on with {}, restore it as the last chapter says.",
                    step.to,
                    self.ssh(&step.node, &format!("journalctl -u {unit} -n 100 --no-pager")),
                    step.to
                ),
            };
            return self.say(&format!("**Way back (undo class {}).** {how}", step.undo));
        }
        let lines = [
            self.ssh(&step.node, &format!("journalctl -u {unit} -n 100 --no-pager"))
                + "    # why, while it is still there",
            format!("ssh root@{}", self.address(&step.node)),
            format!("echo '{}  {BIN}/k3s-{}' | sha256sum -c", step.previous, step.from),
            format!(
                "cp -p {BIN}/k3s-{} {BIN}/.k3s-back && mv -f {BIN}/.k3s-back {BIN}/k3s && sync -f {BIN}",
                step.from
            ),
            format!("systemctl restart --no-block {unit}"),
            "exit".to_owned(),
        ];
        self.say(&format!(
            "**Way back (undo class binary, about as long).** Before the replacement: `kubectl uncordon {}` is all. After \
             it:\n\n```sh\n{}\n```\n\nThen wait as above, for {}, uncordon, and stop: find the cause before anything else \
             is updated.",
            word(step.node.as_str()),
            lines.join("\n"),
            step.from
        ));
    }

    fn compare(&mut self, i: usize, hop: &Hop) {
        self.title(3, &format!("{}.{} Compare", i + 1, hop.steps.len() + 2));
        let back = match self.plan.decision.purpose {
            Purpose::Update if hop.point_of_no_return.is_some() => "the last chapter, if it cannot be repaired",
            Purpose::Update => "the way back of each node: agents first, then the servers one at a time",
            _ => "repair what is named",
        };
        self.step(
            1,
            "Is everything as it was, on the new version?",
            &[
                "kubectl get nodes -o wide".to_owned(),
                "kubectl get deployments,statefulsets,daemonsets -A | diff before.txt - ".to_owned(),
                "kubectl -n kube-system get jobs,helmcharts".to_owned(),
                "kubectl get pods -A | grep -Ev 'Running|Completed'".to_owned(),
            ],
            &format!(
                "every node on {} and without a cordon, nothing less available than before, the charts' jobs complete, no \
                 pod in trouble that was not in trouble before. Way back: {back}",
                hop.to
            ),
        );
    }

    // --------------------------------------------------------------------------------------------------- restoring

    /// What is left when a node cannot go back by its binary.
    fn last_resort(&mut self) {
        let decision: &'a Decision = &self.plan.decision;
        let Some(hop) = decision.hops.first() else { return };
        if !matches!(decision.purpose, Purpose::Update) {
            return;
        }
        self.title(2, "The last resort: restore the datastore");
        self.say(
            "**Everything that was written to the cluster after the backup is lost**, and every K3s of the cluster is \
             stopped meanwhile; pods go on. Only if the cluster can go neither on nor back by its binaries. It leads back \
             to before the first hop, with the backup of 1.1.",
        );
        let name = self.backup_name(0);
        let (first, file) = match &hop.backup {
            BackupMethod::EtcdSnapshot { server } => (Some(server), format!("{DATA}/server/db/snapshots/{name}-*")),
            BackupMethod::SqliteOnline { server, .. } => (Some(server), format!("/root/{name}-cold")),
            BackupMethod::SqliteStopped { server } => (Some(server), format!("/root/{name}-cold")),
            BackupMethod::Command { .. } => (None, format!("{name}.dump")),
        };
        self.restore(&hop.backup, first, &file, "");
    }

    fn restore_of(&mut self, backup: &BackupRef) {
        self.title(2, "Open the backup");
        let (first, file) = match &backup.method {
            BackupMethod::EtcdSnapshot { server }
            | BackupMethod::SqliteOnline { server, .. }
            | BackupMethod::SqliteStopped { server } => (Some(server), "/root/datastore".to_owned()),
            BackupMethod::Command { .. } => (None, "datastore".to_owned()),
        };
        let commands = [
            format!("cd backups/{}", word(&backup.name)),
            "age -d -i KEY datastore.age > datastore".to_owned(),
            format!("echo '{}  datastore' | sha256sum -c", backup.digest),
            "age -d -i KEY configuration.tar.age > configuration.tar    # the server token is in it".to_owned(),
        ];
        self.step(
            1,
            "In Kadence's state folder; KEY is the private key that `kadence init` showed.",
            &commands,
            "`datastore: OK`",
        );
        let file = match (first, &backup.on_node) {
            // The cold copy was made at the stop and reaches further than the backup before.
            (Some(_), Some(on_node)) if !matches!(backup.method, BackupMethod::EtcdSnapshot { .. }) => {
                on_node.path.clone()
            }
            (Some(server), _) => {
                let command = format!("scp datastore root@{}:{file}", self.address(server));
                self.step(2, &format!("Bring it to {}.", inline(server.as_str())), &[command], "");
                file
            }
            (None, _) => file,
        };
        self.restore(&backup.method, first, &file, KEPT);
    }

    /// `kept`: the folder with the binaries that were replaced; empty where this runbook kept them.
    fn restore(&mut self, method: &BackupMethod, first: Option<&NodeName>, file: &str, kept: &str) {
        let plan = self.plan;
        let mut n = 0;
        let mut next = || {
            n += 1;
            n
        };
        let (agents, servers) = (self.agents(), self.servers());
        self.stop_all(&mut next, &agents, &servers);
        self.place_all(&mut next, kept);

        self.title(3, "Restore");
        self.say("> **⚠ Point of no return.** From here on the data is that of the backup.");
        match (method, first) {
            (BackupMethod::EtcdSnapshot { .. }, Some(first)) => self.restore_etcd(&mut next, first, file),
            (BackupMethod::Command { .. }, _) | (_, None) => {
                self.step(
                    next(),
                    "Run your restore command with the dump; all servers stay stopped until it is done.",
                    &[],
                    "its success, as you know it",
                );
                let start: Vec<String> = servers.iter().map(|s| self.ssh(s, "systemctl enable --now k3s")).collect();
                self.step(
                    next(),
                    "Start the servers one at a time, each Ready before the next.",
                    &start,
                    "the node Ready, its `/readyz` says `ok`",
                );
            }
            (_, Some(first)) => self.restore_sqlite(&mut next, first, file),
        }
        self.title(3, "Bring the rest back");
        if !agents.is_empty() {
            let command = self.ssh_each(&agents, "systemctl enable --now k3s-agent");
            self.step(next(), "Start the agents.", &[command], "every node Ready");
        }
        self.step(
            next(),
            "Restart what watches the API: its watches are ahead of the data that came back. Operators of your own, too.",
            &["kubectl -n kube-system rollout restart deployments,daemonsets".to_owned()],
            "all available again",
        );
        self.step(
            next(),
            "Lift cordons that the data brought back, and compare.",
            &["kubectl get nodes -o wide".to_owned(), "kubectl get deployments,statefulsets,daemonsets -A".to_owned()],
            &format!("every node Ready on its version, on {}", datastore(plan.decision.preconditions.datastore)),
        );
    }

    fn stop_all(&mut self, next: &mut impl FnMut() -> usize, agents: &[&NodeName], servers: &[&NodeName]) {
        self.title(3, "Stop all of K3s");
        let stop = |role: Role| {
            format!(
                "systemctl disable --now {}; pgrep -fa '[k]3s (server|agent)'; ss -Hltn 'sport = :2380 or sport = :6443'",
                role.unit()
            )
        };
        if !agents.is_empty() {
            let command = self.ssh_each(agents, &stop(Role::Agent));
            self.step(next(), "On every agent.", &[command], "no process, no port");
        }
        let command = self.ssh_each(servers, &stop(Role::Server));
        self.step(
            next(),
            "On every server. An old member that still runs is a quorum with the same CA, and wins over the restored one: \
             a host that cannot be reached has to be powered off.",
            &[command],
            "no process, no port. Way back until here: `systemctl enable --now` again, servers first",
        );
    }

    fn place_all(&mut self, next: &mut impl FnMut() -> usize, kept: &str) {
        self.title(3, "Put the backup's version on every node");
        let mut alike: BTreeMap<(&Version, Digest), Vec<&NodeName>> = BTreeMap::new();
        for (node, was) in &self.plan.decision.preconditions.nodes {
            alike.entry((&was.version, was.binary)).or_default().push(node);
        }
        let places: Vec<String> = alike
            .into_iter()
            .map(|((version, digest), nodes)| {
                let source = if kept.is_empty() {
                    format!("{BIN}/k3s-{version}")
                } else {
                    format!("{kept}/k3s-{version}-{}", digest.short(12))
                };
                let command = format!(
                    "if [ -f {source} ]; then cp -p {source} {BIN}/.k3s-back && mv -f {BIN}/.k3s-back {BIN}/k3s && sync; \
                     fi; echo '{digest}  {BIN}/k3s' | sha256sum -c"
                );
                self.ssh_each(&nodes, &command)
            })
            .collect();
        self.step(
            next(),
            "From the binaries that were kept; a node that was never updated has it.",
            &places,
            "`OK` for each",
        );
    }

    fn restore_sqlite(&mut self, next: &mut impl FnMut() -> usize, first: &NodeName, file: &str) {
        let db = format!("{DATA}/server/db");
        let file = word(file);
        let commands = [
            format!("ssh root@{}", self.address(first)),
            format!("mkdir -p {db}/aside && mv {db}/state.db* {db}/aside/    # no stale -wal or -shm may stay"),
            format!(
                "if [ -d {file} ]; then cp -p {file}/state.db* {db}/ && rm -f {db}/state.db-shm; else cp {file} {db}/state.db; fi; sync"
            ),
            "systemctl enable --now k3s".to_owned(),
            "exit".to_owned(),
        ];
        self.step(
            next(),
            &format!("Put the database back on {} and start it.", inline(first.as_str())),
            &commands,
            "the node Ready, `kubectl get --raw /readyz` says `ok`",
        );
    }

    fn restore_etcd(&mut self, next: &mut impl FnMut() -> usize, first: &NodeName, file: &str) {
        let db = format!("{DATA}/server/db");
        let name = inline(first.as_str());
        self.step(
            next(),
            &format!("On {name} nothing may tell K3s to join another server, or it refuses."),
            &[self.ssh(first, "grep -rns '^server:' /etc/rancher/k3s/config.yaml /etc/rancher/k3s/config.yaml.d/; systemctl cat k3s | grep -E 'K3S_URL|--server'")],
            "no output. Else take the setting out for now, and put it back after the restore",
        );
        let commands = [
            format!("ssh root@{}", self.address(first)),
            "systemctl show -p ExecStart --value k3s    # the arguments to repeat below, after `k3s server`".to_owned(),
            format!(
                "k3s server ARGUMENTS --cluster-reset --cluster-reset-restore-path={}",
                if file.contains('*') { format!("\"$(ls {file})\"") } else { word(file) }
            ),
            "systemctl enable --now k3s".to_owned(),
            "exit".to_owned(),
        ];
        self.step(
            next(),
            &format!("Restore on {name}, with exactly the arguments of its unit. Once only: started since, it is never restored again without a second thought."),
            &commands,
            "`Managed etcd cluster membership has been reset`, and after the start the node Ready, `\"health\":\"true\"`",
        );
        for server in self.servers().into_iter().filter(|s| *s != first) {
            let commands = [
                self.ssh(server, &format!("mv {db}/etcd {db}/etcd-before-restore && systemctl enable --now k3s")),
                self.ssh(server, "curl -s http://127.0.0.1:2381/health; curl -s http://127.0.0.1:2381/metrics | grep ^etcd_server_is_learner"),
            ];
            self.step(
                next(),
                &format!(
                    "Let {} join anew. Only `db/etcd` is moved, never `db`: the snapshots are in it.",
                    inline(server.as_str())
                ),
                &commands,
                "the node Ready, `\"health\":\"true\"`, `is_learner 0`. Only then the next one",
            );
        }
    }
}

/// Where a binary waits beside the installed one.
fn staged(version: &Version) -> String {
    format!("{BIN}/.k3s-{version}")
}

/// The name of a release's file here.
fn local(version: &Version, arch: Arch) -> String {
    format!("k3s-{version}-{arch}")
}

fn fetch(version: &Version, arch: Arch, digest: Digest) -> [String; 2] {
    let tag = version.to_string().replace('+', "%2B");
    let file = local(version, arch);
    [
        format!("curl -fL -o {file} https://github.com/k3s-io/k3s/releases/download/{tag}/{}", arch.binary()),
        format!("echo '{digest}  {file}' | sha256sum -c"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_for_the_shell() {
        assert_eq!(word("s1.example"), "s1.example");
        assert_eq!(word("10.0.0.11"), "10.0.0.11");
        assert_eq!(word("a b"), "'a b'");
        assert_eq!(word("echo 'a b'"), "\"echo 'a b'\"");
        assert_eq!(word("it's; rm -rf /"), "\"it's; rm -rf /\"");
        assert_eq!(word("it's $(reboot)"), r"'it'\''s $(reboot)'");
        assert_eq!(word("$(reboot)\n```"), "'$(reboot)```'");
        assert_eq!(word(""), "''");
    }
}
