//! Copies of the datastore: how they are made, read and kept before a hop, and put back in a restore.
//!
//! A copy is read whole here before anything is done on the strength of it. In a restore the copy that still lies on
//! the node is used only if the node finds it to be what it was; else the one in the vault is sent there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::{Instant, sleep};

use kadence_core::apply::action::{BackupReceipt, FailureKind, Outcome, Report};
use kadence_core::apply::backup::{self, SqliteFacts};
use kadence_core::apply::plan::{BackupMethod, BackupRef, Drain, NodeCopy, Purpose, Step, UndoClass};
use kadence_core::apply::precondition::{self, Verdict};
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::HoldCause;
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, Digest, NodeName, RolloutId};
use kadence_core::inventory::Role;
use kadence_core::version::Version;

use crate::Engine;
use crate::perform::{Ended, SETTLES_WITHIN, failed, order};
use crate::ports::{HostError, Order, RemoteFile, Task, TaskReport};

/// Our snapshots of other rollouts on a server.
const SNAPSHOTS_KEPT: u32 = 3;
/// The datastore's name in the vault, and in a scratch folder.
pub(crate) const DATASTORE: &str = "datastore";

impl Engine {
    pub(crate) async fn back_up(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        hop: usize,
        method: &BackupMethod,
    ) -> Result<Report, Ended> {
        let scratch = self.vault.scratch()?;
        let made = self.back_up_into(&scratch, rollout, id, hop, method).await;
        self.vault.discard(&scratch);
        made.map(|backup| Report::BackedUp { backup })
    }

    async fn back_up_into(
        &self,
        scratch: &Path,
        rollout: &Rollout,
        id: &ActionId,
        hop: usize,
        method: &BackupMethod,
    ) -> Result<BackupReceipt, Ended> {
        // What is written from here on may not be in it.
        let taken = self.clock.now();
        let at_least = self.patiently(|| self.api.revision()).await?;
        let name = format!("{}-hop{}", rollout.id, hop + 1);
        let mut caveats = Vec::new();
        let database = scratch.join(DATASTORE);
        let on_node = match method {
            BackupMethod::EtcdSnapshot { server } => {
                Some(self.copy_etcd(rollout, id, server, &name, &database, at_least).await?)
            }
            BackupMethod::SqliteOnline { server, .. } | BackupMethod::SqliteStopped { server } => {
                Some(self.copy_sqlite(rollout, id, server, method, &database, at_least).await?)
            }
            BackupMethod::Command { .. } => {
                self.copy_external(&database).await?;
                caveats
                    .push("of an external datastore only the command's exit and its output's size were judged".into());
                None
            }
        };
        let (digest, bytes) = digest_of(&database).await?;
        let mut files = BTreeMap::from([(DATASTORE.to_owned(), database)]);
        // Without the token and the configuration no snapshot can be used on a fresh host.
        if let Some(server) = archive_from(rollout, method) {
            let archive = self.order(rollout, &id.part("archive"), &server, Role::Server, Task::Archive).await?;
            let file = one_file(archive)?;
            let path = scratch.join("configuration.tar");
            self.patiently(|| self.hosts.pull(&server, &file, &path)).await?;
            files.insert("configuration.tar".to_owned(), path);
        }
        let version = rollout.step_versions().min().cloned().unwrap_or_else(|| rollout.plan.decision.target.clone());
        let page = page(&name, method, &version);
        let kept = self.vault.keep(&name, &files, &page).await?;
        let revision = on_node.as_ref().and_then(|copy| copy.reaches.known().copied());
        let backup = BackupRef { name, taken, version, digest, method: method.clone(), on_node: on_node.map(Box::new) };
        Ok(BackupReceipt { backup, bytes, revision, at_least: Some(at_least), files: kept, caveats })
    }

    async fn copy_etcd(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        server: &NodeName,
        name: &str,
        into: &Path,
        at_least: u64,
    ) -> Result<NodeCopy, Ended> {
        let task = Task::EtcdSnapshot { name: format!("kadence-{name}-{at_least}") };
        let file = one_file(self.order(rollout, &anew(id, "snapshot", at_least), server, Role::Server, task).await?)?;
        self.patiently(|| self.hosts.pull(server, &file, into)).await?;
        let facts = read_snapshot(into, at_least).await?;
        let prune = Task::PruneSnapshots { keep: SNAPSHOTS_KEPT, spare: spared(rollout) };
        // A snapshot too many is no reason to stop.
        let _ = self.order(rollout, &anew(id, "prune", at_least), server, Role::Server, prune).await;
        Ok(NodeCopy { path: file.path, digest: Some(file.digest), reaches: Fact::Known(facts.revision) })
    }

    async fn copy_sqlite(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        server: &NodeName,
        method: &BackupMethod,
        into: &Path,
        at_least: u64,
    ) -> Result<NodeCopy, Ended> {
        let part = anew(id, "sqlite", at_least);
        let report = match method {
            BackupMethod::SqliteOnline { tool, .. } => {
                self.order(rollout, &part, server, Role::Server, Task::SqliteBackup { tool: *tool }).await?
            }
            _ => self.copy_while_stopped(rollout, &part, server).await?,
        };
        for file in &report.files {
            let name = if file.path.ends_with("-wal") { format!("{DATASTORE}-wal") } else { DATASTORE.to_owned() };
            let here = into.with_file_name(name);
            self.patiently(|| self.hosts.pull(server, file, &here)).await?;
        }
        let facts = self.vault.read_sqlite(into).await?;
        let reaches = backup::judge_sqlite(&facts, Some(at_least))
            .map_err(|e| failed(FailureKind::BackupUnusable, format!("the copy of SQLite cannot be used: {e}")))?;
        let copy = match report.cold_copy {
            Some(folder) => folder,
            None => one_file(report)?,
        };
        Ok(NodeCopy { path: copy.path, digest: Some(copy.digest), reaches: Fact::Known(reaches) })
    }

    /// Stops the only server for a copy: if it may be stopped as things are now, and only done when it is back.
    async fn copy_while_stopped(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        server: &NodeName,
    ) -> Result<TaskReport, Ended> {
        let step = as_it_is(rollout, server)
            .ok_or_else(|| failed(FailureKind::Blocked, format!("{server} is not in the plan")))?;
        self.may_stop(rollout, &step).await?;
        let copied = self.order(rollout, id, server, Role::Server, Task::SqliteStoppedCopy).await;
        if matches!(copied, Err(Ended::Unknown(_) | Ended::Superseded(_))) {
            return copied;
        }
        let within = rollout.plan.decision.manner.ready_within;
        let goal = self.goal(rollout, server, Role::Server, &step.from, SignedDuration::ZERO, within);
        let address = self.address(rollout, server).await;
        match self.prove(&id.part("back"), &goal, address.as_deref()).await {
            Outcome::Done { .. } => copied,
            Outcome::Failed { failure, .. } => Err(Ended::Failed(failure)),
            Outcome::Unknown { why } => Err(Ended::Unknown(why)),
        }
    }

    /// Whether this server may be stopped now. What may settle by itself is looked at again for a while.
    async fn may_stop(&self, rollout: &Rollout, step: &Step) -> Result<(), Ended> {
        let give_up = Instant::now() + SETTLES_WITHIN;
        loop {
            let glance = self.patiently(|| self.glance()).await?;
            let decision = &rollout.plan.decision;
            let Verdict::No(no) = precondition::judge(decision, step, &glance, &rollout.in_hand(), &rollout.id) else {
                return Ok(());
            };
            if !no.cause.may_settle() || Instant::now() >= give_up {
                let what = format!("K3s on {} is not stopped for a copy: {}", step.node, no.what);
                return match no.cause {
                    HoldCause::Unknown => Err(Ended::Unknown(what)),
                    _ => Err(failed(FailureKind::Blocked, what)),
                };
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn copy_external(&self, into: &Path) -> Result<(), Ended> {
        let argv = self.config.datastore.as_ref().map(|d| d.backup.clone()).unwrap_or_default();
        let ran = self.prober.command(&argv, None, Some(into)).await;
        match ran.map_err(|why| failed(FailureKind::BackupUnusable, why))? {
            run if run.exit == 0 && run.bytes_out > 0 => Ok(()),
            run => {
                let what = format!("the backup command ended with {} and wrote {} bytes", run.exit, run.bytes_out);
                Err(failed(FailureKind::BackupUnusable, what))
            }
        }
    }

    // -------------------------------------------------------------------------------------------------- restore

    pub(crate) async fn reset(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        node: &NodeName,
        backup: &BackupRef,
    ) -> Result<Report, Ended> {
        let task = |path: String, digest: Digest| match &backup.method {
            BackupMethod::EtcdSnapshot { .. } => Some(Task::EtcdReset { snapshot: path, digest }),
            BackupMethod::SqliteOnline { .. } | BackupMethod::SqliteStopped { .. } => {
                Some(Task::SqliteRestore { copy: path, digest })
            }
            BackupMethod::Command { .. } => None,
        };
        let why = match usable_on(node, backup) {
            Ok((path, digest)) => {
                let Some(task) = task(path.to_owned(), digest) else { return self.restore_command(rollout).await };
                match self.reset_from(&order(rollout, id, Role::Server, task), node).await? {
                    Ok(report) => return Ok(Report::Reset { already: report.already, from: Some(path.to_owned()) }),
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        let path = self.send_out_of_vault(node, backup, &rollout.id).await?;
        let Some(task) = task(path, backup.digest) else { return self.restore_command(rollout).await };
        let report = self.order(rollout, &id.part("vault"), node, Role::Server, task).await?;
        let from = Some(format!("{} out of the vault ({why})", backup.name));
        Ok(Report::Reset { already: report.already, from })
    }

    /// Has the copy on the node put back. The inner error says why that copy is of no use; then nothing was touched.
    async fn reset_from(&self, order: &Order, node: &NodeName) -> Result<Result<TaskReport, String>, Ended> {
        self.patiently(|| async {
            match self.hosts.act(node, order).await {
                Ok(report) => Ok(Ok(report)),
                Err(error @ HostError::Digest { .. }) => Ok(Err(error.to_string())),
                Err(HostError::Failed { code, why, .. }) if code == "no-snapshot" || code == "no-copy" => Ok(Err(why)),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn send_out_of_vault(
        &self,
        node: &NodeName,
        backup: &BackupRef,
        rollout: &RolloutId,
    ) -> Result<String, Ended> {
        let scratch = self.vault.scratch()?;
        let (file, name) = (scratch.join(DATASTORE), format!("restore-{rollout}"));
        let sent = async {
            self.out_of_vault(backup, &file).await?;
            self.patiently(|| self.hosts.push(node, &file, &name, &backup.digest)).await
        }
        .await;
        self.vault.discard(&scratch);
        sent
    }

    /// The backup's datastore as it was when it was read.
    async fn out_of_vault(&self, backup: &BackupRef, into: &Path) -> Result<(), Ended> {
        self.vault.fetch(&backup.name, DATASTORE, into).await?;
        let (found, _) = digest_of(into).await?;
        if found != backup.digest {
            let what = format!(
                "{} in the vault has digest {}, and the backup had {}",
                backup.name,
                found.short(12),
                backup.digest.short(12)
            );
            return Err(failed(FailureKind::BackupUnusable, what));
        }
        Ok(())
    }

    pub(crate) async fn restore_command(&self, rollout: &Rollout) -> Result<Report, Ended> {
        let Purpose::Restore { backup, .. } = &rollout.plan.decision.purpose else {
            return Err(failed(FailureKind::Refused, "this is no restore"));
        };
        let Some(argv) = self.config.datastore.as_ref().and_then(|d| d.restore.clone()) else {
            let what = "no restore command is configured (kadence.yaml: datastore.restore)";
            return Err(failed(FailureKind::Refused, what));
        };
        let scratch = self.vault.scratch()?;
        let file = scratch.join(DATASTORE);
        let ran = async {
            self.out_of_vault(backup, &file).await?;
            self.prober.command(&argv, Some(&file), None).await.map_err(|why| failed(FailureKind::Refused, why))
        }
        .await;
        self.vault.discard(&scratch);
        match ran? {
            run if run.exit == 0 => Ok(Report::Plain),
            run => Err(failed(FailureKind::Refused, format!("the restore command ended with {}", run.exit))),
        }
    }
}

/// The cold copy that a swap made, with what the node found when it read it. It cannot be older than the hop's backup.
pub(crate) fn cold_copy(rollout: &Rollout, report: &TaskReport) -> Option<NodeCopy> {
    let at_least = rollout.backups.last().and_then(|backup| backup.revision);
    let copy = report.cold_copy.as_ref()?;
    let reaches = match (&report.integrity, report.revision) {
        (Some(integrity), Some(revision)) => {
            match backup::judge_sqlite(&SqliteFacts { integrity: integrity.clone(), revision }, at_least) {
                Ok(revision) => Fact::Known(revision),
                Err(error) => Fact::unknown(error.to_string()),
            }
        }
        (Some(integrity), None) => Fact::unknown(format!("its revision could not be read: {integrity}")),
        (None, _) => Fact::unknown("neither sqlite3 nor python3 is on the node to read it"),
    };
    Some(NodeCopy { path: copy.path.clone(), digest: Some(copy.digest), reaches })
}

/// The copy on the node, if it was read whole and can be told from another; else why it is not used.
fn usable_on<'a>(node: &NodeName, backup: &'a BackupRef) -> Result<(&'a str, Digest), String> {
    let copy = backup.on_node.as_ref().filter(|_| backup.method.server() == Some(node));
    let copy = copy.ok_or_else(|| format!("there is no copy on {node}"))?;
    match (copy.digest, &copy.reaches) {
        (Some(digest), Fact::Known(_)) => Ok((&copy.path, digest)),
        (None, _) => Err(format!("nobody recorded the digest of {}", copy.path)),
        (_, Fact::Unknown(why)) => Err(format!("{} was not read: {why}", copy.path)),
    }
}

/// Performed again after a kill the datastore has gone on: the copy is made anew, under an id of its own. The stored
/// result of the first time would not reach the revision that was seen now.
fn anew(id: &ActionId, what: &str, at_least: u64) -> ActionId {
    id.part(&format!("{what}-{at_least}"))
}

/// How the snapshots are named that are not pruned: those of this rollout, whose first hop's a restore needs, and of the
/// one that it takes back.
fn spared(rollout: &Rollout) -> Vec<String> {
    let of = match &rollout.plan.decision.purpose {
        Purpose::Update => None,
        Purpose::Rollback { of } | Purpose::Restore { of, .. } => Some(of),
    };
    let families = [Some(&rollout.id), of].into_iter().flatten().map(RolloutId::family);
    // `r7-hop1..` and, of those who adopted it, `r7.2-hop1..`, but not `r70-hop1..`.
    families.flat_map(|family| ["-", "."].map(|end| format!("kadence-{family}{end}"))).collect()
}

/// The server's part in this hop, or one that leaves it as it is.
fn as_it_is(rollout: &Rollout, server: &NodeName) -> Option<Step> {
    let step = rollout.step(server).cloned();
    step.or_else(|| {
        let was = rollout.plan.decision.preconditions.nodes.get(server)?;
        Some(Step {
            node: server.clone(),
            role: was.role,
            wave: 0,
            from: was.version.clone(),
            to: was.version.clone(),
            artifact: was.binary,
            previous: was.binary,
            drain: Drain::CordonOnly,
            undo: UndoClass::Binary,
            because: Vec::new(),
        })
    })
}

fn one_file(report: TaskReport) -> Result<RemoteFile, Ended> {
    report
        .files
        .into_iter()
        .next()
        .ok_or_else(|| failed(FailureKind::BackupUnusable, "the node reports no file for the backup"))
}

/// SHA-256 of a file here, and its size.
async fn digest_of(path: &Path) -> Result<(Digest, u64), Ended> {
    let read = |path: PathBuf| {
        let file = std::fs::File::open(&path)?;
        let bytes = file.metadata()?.len();
        std::io::Result::Ok((Digest::of_all(file)?, bytes))
    };
    let path = path.to_owned();
    let what = format!("{} could not be read", path.display());
    match tokio::task::spawn_blocking(move || read(path)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(failed(FailureKind::BackupUnusable, format!("{what}: {error}"))),
        Err(error) => Err(failed(FailureKind::BackupUnusable, format!("{what}: {error}"))),
    }
}

async fn read_snapshot(path: &Path, at_least: u64) -> Result<backup::SnapshotFacts, Ended> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(&path).map_err(|e| e.to_string())?;
        backup::verify_etcd_snapshot(std::io::BufReader::new(file), Some(at_least)).map_err(|e| e.to_string())
    });
    match read.await {
        Ok(Ok(facts)) => Ok(facts),
        Ok(Err(why)) => Err(failed(FailureKind::BackupUnusable, format!("the snapshot cannot be used: {why}"))),
        Err(error) => Err(failed(FailureKind::BackupUnusable, format!("the snapshot could not be read: {error}"))),
    }
}

/// The server whose files belong to the backup.
fn archive_from(rollout: &Rollout, method: &BackupMethod) -> Option<NodeName> {
    let any = || {
        let nodes = &rollout.plan.decision.preconditions.nodes;
        nodes.iter().find(|(_, n)| n.role == Role::Server).map(|(name, _)| name)
    };
    method.server().or_else(any).cloned()
}

/// The plain page beside a backup: how to restore with `age` and `k3s` alone.
fn page(name: &str, method: &BackupMethod, version: &Version) -> String {
    let how = match method {
        BackupMethod::EtcdSnapshot { server } => format!(
            "3. Stop K3s on every node (`systemctl stop k3s`, on agents `k3s-agent`) and see that no k3s process runs.\n\
             4. Put {version} on every node as /usr/local/bin/k3s.\n\
             5. On {server}, without a `server:` line in /etc/rancher/k3s/config.yaml and with the unit's own arguments:\n   \
             `k3s server --cluster-reset --cluster-reset-restore-path=/root/datastore`\n   \
             until it says that the membership has been reset. Then `systemctl start k3s`.\n\
             6. On each other server, one at a time: move /var/lib/rancher/k3s/server/db/etcd aside, start K3s, wait \
             until its Node is Ready.\n\
             7. Start K3s on the agents; restart controllers in the cluster.\n"
        ),
        BackupMethod::SqliteOnline { server, .. } | BackupMethod::SqliteStopped { server } => format!(
            "3. Stop K3s on every node.\n\
             4. Put {version} on every node as /usr/local/bin/k3s.\n\
             5. On {server}: move state.db, state.db-wal and state.db-shm in /var/lib/rancher/k3s/server/db aside and put \
             `datastore` there as state.db (owner root, mode 0600).\n\
             6. `systemctl start k3s`, then the agents.\n"
        ),
        BackupMethod::Command { .. } => {
            "3. Stop K3s on every node, restore the database from `datastore` with your database's own program, put the \
             old version on every node, start the servers, then the agents.\n"
                .to_owned()
        }
    };
    format!(
        "# Backup {name}\n\nMade on {version}. To restore it by hand, with `age` and `k3s` alone:\n\n\
         1. `age -d -i KEY datastore.age > datastore` and the same for configuration.tar.age, with the private key that \
         `kadence init` showed.\n\
         2. Copy `datastore` to the server named below as /root/datastore. The server token is in configuration.tar \
         (var/lib/rancher/k3s/server/token): without it a snapshot of etcd cannot be used.\n{how}\n\
         Everything written after the backup is lost.\n"
    )
}
