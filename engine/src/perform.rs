//! Performs one action of a rollout through the ports, and says what came of it.
//!
//! Every action may be performed again under the same id. What could not be reached is tried again for a while, since
//! asking again is safe; what answered is never asked twice.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::{Instant, sleep};

use kadence_core::apply::action::{Action, CordonWas, Failure, FailureKind, Outcome, Report, Swap};
use kadence_core::apply::drain;
use kadence_core::apply::plan::{DatastoreKind, DeclaredOutage, Purpose};
use kadence_core::apply::precondition::{self, Verdict};
use kadence_core::apply::rollout::{At, LOOK_HOLDS, Rollout};
use kadence_core::config::{Probe, ProbeTest};
use kadence_core::ident::{ActionId, Digest, NodeName};
use kadence_core::inventory::{Mark, Role};
use kadence_core::validate::after;
use kadence_core::validate::baseline::{Baseline, regressions};
use kadence_core::validate::prove::Goal;
use kadence_core::version::Version;

use crate::Engine;
use crate::backup;
use crate::ports::{
    ApiError, ArtifactKind, Eviction, HostError, Order, Progress, ReleaseError, Task, TaskReport, VaultError,
};
use crate::prove::to_std;

/// How long a host or the API may be out of reach before an action's outcome is called unknown. Longer than a server's
/// restart and a leader's election, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the cluster may look unhealthy before a step is put off: elections and restarts settle within it.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// How often a disruption budget is asked again.
const ASK_BUDGET_AGAIN: Duration = Duration::from_secs(2);

/// Another Kadence has taken over: nothing more may be written or done.
#[derive(Debug)]
pub(crate) struct Superseded(pub String);

/// What an action ended in before it is an outcome.
pub(crate) enum Ended {
    Failed(Failure),
    /// Somebody else wrote to the object in the same moment: nothing was changed, and it may be tried anew.
    Conflict(String),
    /// The node has no file with the digest that it was told to put in place.
    NotStaged(String),
    Unknown(String),
    Superseded(String),
}

impl From<HostError> for Ended {
    fn from(error: HostError) -> Self {
        let what = error.to_string();
        let failed = |kind| Self::Failed(Failure { kind, what: what.clone(), cause: None });
        match &error {
            HostError::NoWay { .. } => Self::Unknown(what),
            HostError::Superseded { .. } => Self::Superseded(what),
            HostError::DiskFull { .. } => failed(FailureKind::DiskFull),
            HostError::Digest { .. } => failed(FailureKind::Digest),
            HostError::HostKey { .. } => failed(FailureKind::Changed),
            HostError::Sudo { .. } => failed(FailureKind::Refused),
            HostError::Failed { code, .. } if code == "changed" => failed(FailureKind::Changed),
            HostError::Failed { code, .. } if code == "not-staged" => Self::NotStaged(what),
            HostError::Failed { .. } => failed(FailureKind::Refused),
        }
    }
}

impl From<ApiError> for Ended {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::NoWay(_) => Self::Unknown(error.to_string()),
            ApiError::Conflict(_) => Self::Conflict(error.to_string()),
            ApiError::NotFound(_) => failed(FailureKind::Changed, error.to_string()),
            ApiError::Denied(_) | ApiError::Answered(_) => failed(FailureKind::Refused, error.to_string()),
        }
    }
}

impl From<ReleaseError> for Ended {
    fn from(error: ReleaseError) -> Self {
        let kind = match error {
            ReleaseError::NoWay { .. } => return Self::Unknown(error.to_string()),
            ReleaseError::Digest { .. } => FailureKind::Digest,
            _ => FailureKind::Refused,
        };
        failed(kind, error.to_string())
    }
}

impl From<VaultError> for Ended {
    fn from(error: VaultError) -> Self {
        let kind = match error {
            VaultError::DiskFull(_) => FailureKind::DiskFull,
            _ => FailureKind::BackupUnusable,
        };
        failed(kind, error.to_string())
    }
}

pub(crate) fn order(rollout: &Rollout, id: &ActionId, role: Role, task: Task) -> Order {
    Order {
        id: id.clone(),
        turn: rollout.turn,
        holder: rollout.holder.clone(),
        rollout: rollout.id.clone(),
        plan: rollout.plan_hash.to_string(),
        role,
        task,
    }
}

pub(crate) fn failed(kind: FailureKind, what: impl Into<String>) -> Ended {
    Ended::Failed(Failure { kind, what: what.into(), cause: None })
}

impl Engine {
    pub(crate) async fn perform(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        action: &Action,
    ) -> Result<Outcome, Superseded> {
        let began = self.clock.now();
        let ended = match action {
            Action::Check { hop } => self.check_hop(rollout, *hop).await,
            Action::Stage { node, version, artifact } => self.stage(rollout, node, version, artifact).await,
            Action::Backup { hop, method } => self.back_up(rollout, id, *hop, method).await,
            Action::Look { before } => self.look(rollout, before).await,
            Action::Cordon { node } => self.cordon(rollout, node).await,
            Action::Drain { node } => self.drain(rollout, id, node).await,
            Action::Swap { node, swap } => {
                let task = Task::Swap {
                    to: swap.to.clone(),
                    artifact: swap.artifact,
                    expect: swap.expect,
                    cold_copy: swap.cold_copy,
                };
                self.swap(rollout, &order(rollout, id, swap.role, task), node).await.map(|report| Report::Swapped {
                    cold_copy: backup::cold_copy(rollout, &report),
                    kept: report.kept,
                    already: report.already,
                })
            }
            Action::Prove { node, role, version, settle, within } => {
                let goal = self.goal(rollout, node, *role, version, *settle, *within);
                let address = self.address(rollout, node).await;
                return Ok(self.prove(id, &goal, address.as_deref()).await);
            }
            Action::Uncordon { node } => self.uncordon(rollout, node).await,
            Action::Compare { .. } => self.compare(rollout).await,
            Action::Validate { hop } => self.validate_hop(rollout, id, *hop).await,
            Action::Stop { node, role } => self.plain(rollout, id, node, *role, Task::Stop).await,
            Action::Place { node, swap } => self.place(rollout, id, node, swap).await,
            Action::Reset { node, backup } => self.reset(rollout, id, node, backup).await,
            Action::SetAside { node } => self.plain(rollout, id, node, Role::Server, Task::SetEtcdAside).await,
            Action::Start { node, role } => self.plain(rollout, id, node, *role, Task::Start).await,
            Action::Restart { node, role } => self.plain(rollout, id, node, *role, Task::Restart).await,
            Action::RestartControllers => {
                self.patiently(|| self.api.restart_controllers()).await.map(|_| Report::Plain)
            }
            Action::RestoreCommand { .. } => self.restore_command(rollout).await,
        };
        let took = self.clock.now().duration_since(began);
        match ended {
            Ok(report) => Ok(Outcome::Done { took, report }),
            Err(Ended::Failed(failure)) => Ok(Outcome::Failed { took, failure }),
            Err(Ended::Conflict(what)) => {
                Ok(Outcome::Failed { took, failure: Failure { kind: FailureKind::Changed, what, cause: None } })
            }
            Err(Ended::NotStaged(what)) => {
                Ok(Outcome::Failed { took, failure: Failure { kind: FailureKind::Refused, what, cause: None } })
            }
            Err(Ended::Unknown(why)) => Ok(Outcome::Unknown { why }),
            Err(Ended::Superseded(why)) => Err(Superseded(why)),
        }
    }

    /// Tries again while nobody is reached, for [`PATIENCE`]. Only for what may be asked twice.
    pub(crate) async fn patiently<T, E, F>(&self, mut ask: impl FnMut() -> F) -> Result<T, Ended>
    where
        E: Into<Ended>,
        F: Future<Output = Result<T, E>>,
    {
        let give_up = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(200);
        loop {
            match ask().await.map_err(Into::into) {
                Ok(value) => return Ok(value),
                Err(Ended::Unknown(why)) if Instant::now() + pause >= give_up => return Err(Ended::Unknown(why)),
                Err(Ended::Unknown(_)) => {}
                Err(other) => return Err(other),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    // --------------------------------------------------------------------------------------------------- before

    async fn check_hop(&self, rollout: &Rollout, hop: usize) -> Result<Report, Ended> {
        let inventory = self.patiently(|| self.inspect()).await?;
        let hop = (&rollout.plan.decision, hop);
        let (findings, probes) = tokio::join!(self.judge(&inventory, Some(hop), Some(&rollout.id)), self.probe_all());
        let baseline = Box::new(Baseline::of(&inventory, probes));
        Ok(Report::Checked { findings: findings?, baseline })
    }

    /// Every probe once, at the same time: name to passed.
    pub(crate) async fn probe_all(&self) -> BTreeMap<String, bool> {
        let probes = self.config.probes.iter().map(|probe| async {
            let passed = self.probe(probe).await.is_ok();
            (probe.name.clone(), passed)
        });
        futures_util::future::join_all(probes).await.into_iter().collect()
    }

    /// One probe; else what was seen instead.
    pub async fn probe(&self, probe: &Probe) -> Result<(), String> {
        let ProbeTest::Condition(condition) = &probe.test else { return self.prober.probe(probe).await };
        match tokio::time::timeout(to_std(probe.within), self.api.condition(condition)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(format!("{} is not True", condition.condition)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {:#}", probe.within)),
        }
    }

    async fn stage(
        &self,
        rollout: &Rollout,
        node: &NodeName,
        version: &Version,
        digest: &Digest,
    ) -> Result<Report, Ended> {
        let Some(precondition) = rollout.plan.decision.preconditions.nodes.get(node) else {
            return Err(failed(FailureKind::Changed, format!("{node} is not in the plan")));
        };
        let artifact = self.patiently(|| self.releases.fetch(version, precondition.arch, ArtifactKind::Binary)).await?;
        // The source may have changed its mind since the plan was made: what was decided is what is put there.
        if artifact.digest != *digest {
            let what = format!(
                "{version} for {} has digest {} now, the plan has {}: it was published anew",
                precondition.arch,
                artifact.digest.short(12),
                digest.short(12)
            );
            return Err(failed(FailureKind::Digest, what));
        }
        let mut staged = self.patiently(|| self.hosts.stage(node, &artifact)).await?;
        if self.config.update.airgap_images {
            let images =
                self.patiently(|| self.releases.fetch(version, precondition.arch, ArtifactKind::AirgapImages)).await?;
            let archive = self.patiently(|| self.hosts.stage(node, &images)).await?;
            staged.bytes += archive.bytes;
            staged.already_there &= archive.already_there;
        }
        Ok(Report::Staged { bytes: staged.bytes, already_there: staged.already_there })
    }

    // --------------------------------------------------------------------------------------------------- a node

    async fn look(&self, rollout: &Rollout, before: &[NodeName]) -> Result<Report, Ended> {
        let give_up = Instant::now() + SETTLES_WITHIN;
        loop {
            let began = Instant::now();
            let glance = self.patiently(|| self.glance()).await?;
            let slow = began.elapsed() > to_std(LOOK_HOLDS);
            let ours = rollout.in_hand();
            let passing = before.iter().filter_map(|n| rollout.step(n)).any(|step| {
                let verdict = precondition::judge(&rollout.plan.decision, step, &glance, &ours, &rollout.id);
                matches!(verdict, Verdict::No(no) if no.cause.may_settle())
            });
            // What may settle by itself is looked at again; what somebody changed will not.
            if !(passing || slow) || Instant::now() >= give_up {
                return Ok(Report::Looked { glance: Box::new(glance) });
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn cordon(&self, rollout: &Rollout, node: &NodeName) -> Result<Report, Ended> {
        let version = rollout.step(node).map(|s| s.to.to_string()).unwrap_or_default();
        let mark = Mark {
            rollout: rollout.id.to_string(),
            plan: rollout.plan_hash.to_string(),
            step: format!("{node} {version}"),
        };
        let was = self.through_conflicts(|| self.api.cordon(node, &mark)).await?;
        Ok(Report::Cordoned { was })
    }

    async fn uncordon(&self, rollout: &Rollout, node: &NodeName) -> Result<Report, Ended> {
        // A node that was cordoned by others before us was never cordoned by us.
        if rollout.nodes.get(node).is_some_and(|p| p.cordon == Some(CordonWas::Foreign)) {
            return Ok(Report::Plain);
        }
        if self.through_conflicts(|| self.api.uncordon(node, &rollout.id)).await? {
            return Ok(Report::Plain);
        }
        Err(failed(FailureKind::Changed, format!("{node} is cordoned with another mark than ours")))
    }

    /// Tries again while somebody else writes to the object in the same moment: the kubelet does so all the time.
    async fn through_conflicts<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.patiently(&mut ask).await {
                Err(Ended::Conflict(_)) if Instant::now() < give_up => sleep(Duration::from_millis(100)).await,
                other => return other,
            }
        }
    }

    async fn drain(&self, rollout: &Rollout, id: &ActionId, node: &NodeName) -> Result<Report, Ended> {
        let within = rollout.plan.decision.manner.drain_within;
        let give_up = Instant::now() + to_std(within);
        let mut evicted = Vec::new();
        loop {
            let pods = self.patiently(|| self.api.pods_on(node)).await?;
            let drainage = drain::classify(&pods);
            if !drainage.refuse.is_empty() {
                return Err(failed(FailureKind::DrainBlocked, drainage.refuse.join("; ")));
            }
            if drainage.evict.is_empty() {
                return Ok(Report::Drained { evicted, left: drainage.stay });
            }
            let mut waits = Vec::new();
            for pod in &drainage.evict {
                let name = format!("{}/{}", pod.namespace, pod.name);
                if pod.terminating {
                    waits.push(format!("{name} to end"));
                    continue;
                }
                match self.patiently(|| self.api.evict(pod, false)).await? {
                    Eviction::Accepted => {
                        evicted.push(name.clone());
                        waits.push(format!("{name} to end"));
                    }
                    Eviction::Gone => {}
                    Eviction::Blocked(why) => waits.push(format!("{name}: {why}")),
                    Eviction::TooManyBudgets(why) => {
                        return Err(failed(FailureKind::DrainBlocked, format!("{name}: {why}")));
                    }
                }
            }
            if Instant::now() >= give_up {
                let what = format!("not drained within {within:#}: {}", waits.join("; "));
                return Err(failed(FailureKind::DrainBlocked, what));
            }
            if !waits.is_empty() {
                self.observer.progress(&Progress::Waiting {
                    action: id.clone(),
                    node: Some(node.clone()),
                    what: waits.join("; "),
                    since: SignedDuration::ZERO,
                    about: None,
                });
                sleep(ASK_BUDGET_AGAIN).await;
            }
        }
    }

    pub(crate) async fn order(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        node: &NodeName,
        role: Role,
        task: Task,
    ) -> Result<TaskReport, Ended> {
        let order = order(rollout, id, role, task);
        self.patiently(|| self.hosts.act(node, &order)).await
    }

    /// Sends the order that stops a node. One that could not be delivered for a while is only sent again if a new look
    /// still allows it; whether the first one arrived after all does not matter, the node knows it by its id.
    async fn swap(&self, rollout: &Rollout, order: &Order, node: &NodeName) -> Result<TaskReport, Ended> {
        let at = rollout.nodes.get(node).map(|p| p.at);
        let alone = rollout.plan.decision.outage == Some(DeclaredOutage::SingleServer);
        let step = rollout.step(node).filter(|_| at == Some(At::Swapping) || !alone);
        let looked = rollout.nodes.get(node).and_then(|p| p.looked).filter(|_| at == Some(At::Swapping));
        let began = looked.unwrap_or_else(|| self.clock.now());
        self.patiently(|| async {
            if let Some(step) = step
                && self.clock.now().duration_since(began) > LOOK_HOLDS
            {
                let glance = self.glance().await.map_err(Ended::from)?;
                if self.clock.now().duration_since(glance.at) > LOOK_HOLDS {
                    return Err(Ended::Unknown(format!("{node} is not stopped on a look that took so long")));
                }
                let ours = rollout.in_hand();
                if let Verdict::No(no) = precondition::judge(&rollout.plan.decision, step, &glance, &ours, &rollout.id)
                {
                    return Err(Ended::Unknown(format!("{node} was out of reach, and now: {}", no.what)));
                }
            }
            self.hosts.act(node, order).await.map_err(Ended::from)
        })
        .await
    }

    async fn plain(
        &self,
        rollout: &Rollout,
        id: &ActionId,
        node: &NodeName,
        role: Role,
        task: Task,
    ) -> Result<Report, Ended> {
        self.order(rollout, id, node, role, task).await.map(|_| Report::Plain)
    }

    pub(crate) fn goal(
        &self,
        rollout: &Rollout,
        node: &NodeName,
        role: Role,
        version: &Version,
        settle: SignedDuration,
        within: SignedDuration,
    ) -> Goal {
        let preconditions = &rollout.plan.decision.preconditions;
        let server = role == Role::Server;
        Goal {
            node: node.clone(),
            role,
            version: version.clone(),
            settle,
            within,
            etcd: server && preconditions.datastore == DatastoreKind::EmbeddedEtcd,
            apiserver: server,
            has_node: preconditions.nodes.get(node).is_none_or(|n| n.uid.is_some()),
        }
    }

    /// The address of a node's own API server.
    pub(crate) async fn address(&self, rollout: &Rollout, node: &NodeName) -> Option<String> {
        if rollout.plan.decision.preconditions.nodes.get(node).map(|n| n.role) != Some(Role::Server) {
            return None;
        }
        if let Some(address) = self.config.nodes.get(node).and_then(|n| n.address.clone()) {
            return Some(address);
        }
        self.addresses.lock().ok()?.get(node).cloned()
    }

    // ---------------------------------------------------------------------------------------------------- after

    /// Whether everything that served before still serves. What the packaged components' own installers are still at is
    /// judged at the end of the hop.
    async fn compare(&self, rollout: &Rollout) -> Result<Report, Ended> {
        let Some(before) = &rollout.baseline else { return Ok(Report::Compared { regressions: Vec::new() }) };
        let give_up = Instant::now() + to_std(rollout.plan.decision.manner.ready_within);
        loop {
            let (inventory, probes) = tokio::join!(self.patiently(|| self.inspect_api()), self.probe_all());
            let mut now = Baseline::of(&inventory?, probes);
            now.packaged.clone_from(&before.packaged);
            now.helm_releases.clone_from(&before.helm_releases);
            match regressions(before, &now) {
                Ok(regressions) if regressions.is_empty() || Instant::now() >= give_up => {
                    return Ok(Report::Compared { regressions });
                }
                Err(unknown) if Instant::now() >= give_up => return Err(Ended::Unknown(unknown.join("; "))),
                Ok(_) | Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn validate_hop(&self, rollout: &Rollout, id: &ActionId, hop: usize) -> Result<Report, Ended> {
        let within = rollout.plan.decision.manner.ready_within;
        let give_up = Instant::now() + to_std(within);
        let began = self.clock.now();
        let goes_back = rollout.trouble.is_some();
        loop {
            let (inventory, glance, probes) =
                tokio::join!(self.patiently(|| self.inspect()), self.patiently(|| self.glance()), self.probe_all());
            let (inventory, glance) = (inventory?, glance?);
            let now = Baseline::of(&inventory, probes);
            let mut findings = if goes_back {
                after::unchanged(&inventory, &rollout.plan.decision, rollout.id.family())
            } else {
                after::truth(&inventory, &rollout.plan.decision, hop, rollout.id.family())
            };
            findings.extend(after::serving(&glance));
            let baseline = match &rollout.plan.decision.purpose {
                // A restore takes none of its own: what it brings back is what was before the rollout it undoes.
                Purpose::Restore { of, .. } => self.rollout(of).await.ok().and_then(|r| r.baseline),
                Purpose::Update | Purpose::Rollback { .. } => rollout.baseline.clone(),
            };
            let compared = match &baseline {
                Some(before) => regressions(before, &now),
                None => Ok(Vec::new()),
            };
            let (worse, unknown) = match compared {
                Ok(worse) => (worse, Vec::new()),
                Err(unknown) => (Vec::new(), unknown),
            };
            let blocking: Vec<String> = findings.iter().filter(|f| f.blocks()).map(|f| f.what.clone()).collect();
            if worse.is_empty() && unknown.is_empty() && blocking.is_empty() {
                return Ok(Report::Validated { findings, regressions: worse });
            }
            // Components and workloads need a while after the last server; what is bad then stays in the report.
            if Instant::now() >= give_up {
                if !unknown.is_empty() {
                    return Err(Ended::Unknown(unknown.join("; ")));
                }
                return Ok(Report::Validated { findings, regressions: worse });
            }
            let waits = worse.iter().map(|r| format!("{}: {}", r.about, r.now)).chain(unknown).chain(blocking);
            self.observer.progress(&Progress::Waiting {
                action: id.clone(),
                node: None,
                what: waits.collect::<Vec<_>>().join("; "),
                since: self.clock.now().duration_since(began),
                about: None,
            });
            sleep(Duration::from_secs(1)).await;
        }
    }

    // -------------------------------------------------------------------------------------------------- restore

    async fn place(&self, rollout: &Rollout, id: &ActionId, node: &NodeName, swap: &Swap) -> Result<Report, Ended> {
        let arch = rollout.plan.decision.preconditions.nodes.get(node).map(|n| n.arch);
        let task = Task::Place { to: swap.to.clone(), artifact: swap.artifact, expect: swap.expect };
        match self.order(rollout, id, node, swap.role, task.clone()).await {
            // Not kept on the node: it is sent again.
            Err(Ended::NotStaged(_)) => {
                let arch = arch.ok_or_else(|| failed(FailureKind::Changed, format!("{node} is not in the plan")))?;
                let artifact = self.patiently(|| self.releases.fetch(&swap.to, arch, ArtifactKind::Binary)).await?;
                self.patiently(|| self.hosts.stage(node, &artifact)).await?;
                self.order(rollout, &id.part("staged"), node, swap.role, task).await.map(|_| Report::Plain)
            }
            other => other.map(|_| Report::Plain),
        }
    }
}
