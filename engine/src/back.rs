//! The way back: what is to be taken back, what that means, and the rollout that does it. Nothing is changed before a
//! person has seen the plan.

use jiff::SignedDuration;

use kadence_core::apply::action::{BackupReceipt, Outcome};
use kadence_core::apply::plan::{Plan, Purpose, Step};
use kadence_core::apply::rollout::Rollout;
use kadence_core::apply::way_back::{self, NoWayBack};
use kadence_core::event::{Consent, Ending, Event};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, ClusterUid, NodeName, RolloutId};
use kadence_core::inventory::{Cordon, Inventory, Node, RecordState, Role};
use kadence_core::validate::prove::Goal;

use crate::Engine;
use crate::backup::DATASTORE;
use crate::ports::{ApiError, RemoteFile, Turn};
use crate::start::StartError;

/// What taking back means now.
#[derive(Clone, Debug)]
pub enum WayBack {
    /// A way back has begun and has not ended: it goes on.
    GoOn(Rollout),
    /// The last rollout told no node to change: it is ended, and its cordons are lifted.
    Untouched(Rollout),
    /// This plan, once a person agrees to what it costs. `seen` is the highest turn that the nodes have obeyed.
    Plan { plan: Plan, seen: u64 },
}

/// How long a node may need to be seen healthy before a cordon that was left on it is lifted.
const HEALTHY_WITHIN: SignedDuration = SignedDuration::from_secs(15);
/// How long an order that is at work on a node is waited for: longer than any but a restore's takes.
const SETTLED_WITHIN: std::time::Duration = std::time::Duration::from_secs(120);
/// How long a node that was restarted may need until its Node says what it runs. One that does not start never does.
const STARTS_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

impl Engine {
    /// What there is to take back, and how. Changes nothing.
    ///
    /// # Errors
    /// There is nothing to take back, or no way; for a restore also if a host cannot be reached that was not declared
    /// `off`, or if no backup can be read: found out here, not when everything is stopped.
    pub async fn way_back(&self, uid: &ClusterUid, off: &[NodeName]) -> Result<WayBack, StartError> {
        let last = match self.unfinished(uid).await? {
            Some(unfinished) if matches!(unfinished.plan.decision.purpose, Purpose::Restore { .. }) => {
                return Ok(WayBack::GoOn(unfinished));
            }
            // It only had nodes cordoned, if that: an older rollout is not what is meant.
            Some(unfinished) if unfinished.sent.is_empty() => return Ok(WayBack::Untouched(unfinished)),
            Some(unfinished) if unfinished.plan.decision.goes_back() => match self.last_changing(uid).await? {
                Some(last) => last,
                None => unfinished,
            },
            Some(unfinished) => unfinished,
            None => self.last_changing(uid).await?.ok_or(StartError::NothingToUndo)?,
        };
        let inventory = self.look_when_settled(&last).await?;
        let plan = way_back::plan(&way_back::Question {
            rollout: &last,
            inventory: &inventory,
            cluster: &self.config,
            off,
            kadence: &self.version,
            now: self.clock.now(),
        })?;
        if let Purpose::Restore { .. } = plan.decision.purpose {
            let receipt = last.backups.first().ok_or(StartError::NothingToUndo)?;
            self.backup_can_be_read(receipt).await?;
        }
        Ok(WayBack::Plan { plan, seen: Self::turn_seen(&inventory) })
    }

    /// Begins the way back: ends the rollout that is taken back, if it has not ended, and lifts the cordons that it left
    /// on healthy nodes, whose workloads then come back before they are compared. Those of others are lifted in the end.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn take_back(&self, plan: Plan, consent: Consent, turn: &Turn) -> Result<Rollout, StartError> {
        let uid = plan.decision.preconditions.cluster_uid.clone();
        if let Some(unfinished) = self.unfinished(&uid).await? {
            self.end(unfinished, turn).await?;
        }
        if let Purpose::Rollback { of } = &plan.decision.purpose {
            let _ = self.lift_marks(of).await;
        }
        self.begin(plan, consent, turn).await
    }

    /// Stores that a person declares hosts powered off in the middle of a restore: nothing is asked of them any more.
    ///
    /// # Errors
    /// A host answers, or is the one that is restored first, or the state cannot be written.
    pub async fn declare_off(&self, restore: &mut Rollout, off: &[NodeName]) -> Result<(), StartError> {
        let fresh: Vec<NodeName> = off.iter().filter(|n| !restore.consent.powered_off.contains(n)).cloned().collect();
        if fresh.is_empty() {
            return Ok(());
        }
        self.learn_from_plan(restore);
        let steps: Vec<&Step> = restore.plan.decision.hops.iter().flat_map(|h| &h.steps).collect();
        for name in &fresh {
            if !steps.iter().any(|s| s.node == *name) {
                return Err(NoWayBack::NoSuchNode(name.clone()).into());
            }
            if steps.iter().find(|s| s.role == Role::Server).is_some_and(|s| s.node == *name) {
                return Err(NoWayBack::RestoredFirst(name.clone()).into());
            }
            if self.hosts.glance(name).await.is_ok() {
                return Err(NoWayBack::NotOff(name.clone()).into());
            }
        }
        self.record(restore, Event::DeclaredOff { nodes: fresh }).await?;
        Ok(())
    }

    /// Ends a rollout that changed nothing and lifts its cordons; returns the nodes whose cordon stays.
    ///
    /// # Errors
    /// The state cannot be written, or the API could not be reached.
    pub async fn end_untouched(&self, rollout: Rollout, turn: &Turn) -> Result<Vec<NodeName>, StartError> {
        let id = rollout.id.clone();
        self.end(rollout, turn).await?;
        Ok(self.lift_marks(&id).await?)
    }

    /// Ends a rollout so that another can begin: what it changed stays as it is.
    async fn end(&self, mut rollout: Rollout, turn: &Turn) -> Result<(), StartError> {
        self.record(&mut rollout, turn.taken()).await?;
        let ending = Ending::Aborted { mixed: rollout.mixed() };
        self.record(&mut rollout, Event::Ended { ending, outage: None }).await?;
        Ok(())
    }

    /// Lifts cordons that carry the mark of this rollout's family, of nodes that are proven healthy on the version
    /// that runs on them; returns the nodes whose cordon stays.
    ///
    /// # Errors
    /// The API could not be reached.
    pub async fn lift_marks(&self, rollout: &RolloutId) -> Result<Vec<NodeName>, ApiError> {
        let nodes = self.api.nodes().await?;
        self.learn(&nodes);
        let mut stay = Vec::new();
        for node in &nodes {
            let Cordon::Ours { mark } = &node.object.cordon else { continue };
            let ours = RolloutId::new(mark.rollout.as_str()).family() == rollout.family();
            // What runs, not what the Node says: its kubelet may have to report yet.
            let runs = self.hosts.glance(&node.name).await.ok().and_then(|host| host.running.known().cloned());
            let healthy = match runs {
                Some(version) if ours => {
                    let goal = Goal {
                        node: node.name.clone(),
                        role: node.role(),
                        version,
                        settle: SignedDuration::ZERO,
                        within: HEALTHY_WITHIN,
                        etcd: node.etcd_label,
                        apiserver: node.control_plane,
                        has_node: true,
                    };
                    let id = ActionId::of(rollout, 0);
                    matches!(self.prove(&id, &goal, node.internal_ip.as_deref()).await, Outcome::Done { .. })
                }
                _ => false,
            };
            if !(healthy && self.api.uncordon(&node.name, rollout).await?) {
                stay.push(node.name.clone());
            }
        }
        Ok(stay)
    }

    /// The backup is where it should be and whole: in the vault, or else on its node.
    async fn backup_can_be_read(&self, receipt: &BackupReceipt) -> Result<(), StartError> {
        let scratch = self.vault.scratch().map_err(|e| StartError::NoBackup(e.to_string()))?;
        let file = scratch.join(DATASTORE);
        let read = async {
            let Err(vault) = self.vault.fetch(&receipt.backup.name, DATASTORE, &file).await else { return Ok(()) };
            let (Some(server), Some(copy)) = (receipt.backup.method.server(), &receipt.backup.on_node) else {
                return Err(vault.to_string());
            };
            let remote = RemoteFile { path: copy.path.clone(), bytes: receipt.bytes, digest: receipt.backup.digest };
            self.hosts
                .pull(server, &remote, &file)
                .await
                .map_err(|node| format!("in the vault: {vault}; on {server}: {node}"))
        }
        .await;
        self.vault.discard(&scratch);
        read.map_err(StartError::NoBackup)
    }

    /// The newest rollout that told a node to change and is not itself a way back.
    async fn last_changing(&self, uid: &ClusterUid) -> Result<Option<Rollout>, StartError> {
        for id in self.store.rollouts(uid).await?.into_iter().rev() {
            let rollout = self.rollout(&id).await?;
            match rollout.plan.decision.purpose {
                Purpose::Update if !rollout.sent.is_empty() => return Ok(Some(rollout)),
                // What it took back is back; before it there is nothing that a second way back could mean.
                Purpose::Rollback { .. } | Purpose::Restore { .. } if rollout.completed() => return Ok(None),
                Purpose::Update | Purpose::Rollback { .. } | Purpose::Restore { .. } => {}
            }
        }
        Ok(None)
    }

    /// What runs now, once no order of the rollout is at work on a node any more: a killed Kadence's order goes on there.
    /// A node that it restarted has a while to say what it runs.
    async fn look_when_settled(&self, last: &Rollout) -> Result<Inventory, StartError> {
        let family = last.id.family();
        let began = tokio::time::Instant::now();
        loop {
            let inventory = self.look_for_rollback(last).await;
            let at_work = inventory.nodes.iter().find(|n| {
                n.host.known().is_some_and(|h| {
                    h.records.iter().any(|r| r.state == RecordState::Running && r.id.starts_with(family))
                })
            });
            let starts = last.sent.keys().filter_map(|name| inventory.node(name)).any(|node| {
                let installed = node.host.known().and_then(|h| h.install.known()).and_then(|i| i.version.known());
                matches!((installed, node.version.known()), (Some(installed), Some(runs)) if installed != runs)
            });
            match at_work {
                None if !starts || began.elapsed() >= STARTS_WITHIN => return Ok(inventory),
                None => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
                Some(node) if began.elapsed() >= SETTLED_WITHIN => {
                    return Err(StartError::AtWork(node.name.clone()));
                }
                Some(_) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
            }
        }
    }

    /// What runs now, for planning a way back. While the API is away the nodes are those of the rollout's plan, with
    /// what their hosts say.
    async fn look_for_rollback(&self, last: &Rollout) -> Inventory {
        if let Ok(inventory) = self.inspect().await {
            return inventory;
        }
        self.learn_from_plan(last);
        let preconditions = &last.plan.decision.preconditions;
        let asked = futures_util::future::join_all(preconditions.nodes.iter().map(|(name, was)| async move {
            let host = Fact::from(self.hosts.facts(name).await);
            let away = || "the API did not answer".to_owned();
            Node {
                name: name.clone(),
                uid: was.uid.clone(),
                role: was.role,
                etcd: Fact::Unknown(away()),
                apiserver: Fact::Unknown(away()),
                version: host.as_ref().and_then(|h| h.install.as_ref()).and_then(|i| i.version.clone()),
                ready: Fact::Unknown(away()),
                address: last.plan.seen.addresses.get(name).cloned().unwrap_or_default(),
                arch: Fact::Known(was.arch),
                object: None,
                host,
            }
        }));
        Inventory::of_hosts(self.cluster.clone(), preconditions.cluster_uid.clone(), asked.await, self.clock.now())
    }
}
