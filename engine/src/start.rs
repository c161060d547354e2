//! From a wish to a plan, from a plan to a rollout, and from a stored rollout back to a running one.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use kadence_core::apply::plan::{Decision, Plan, Purpose};
use kadence_core::apply::planner::{self, NoPlan, Scope};
use kadence_core::apply::precondition;
use kadence_core::apply::rollout::Rollout;
use kadence_core::apply::verify;
use kadence_core::apply::way_back::NoWayBack;
use kadence_core::event::{Consent, Event};
use kadence_core::ident::{ClusterUid, NodeName, RolloutId};
use kadence_core::inventory::{Arch, Cordon, Inventory, Role};
use kadence_core::track::resolve::{self, Refusal};
use kadence_core::validate::checks;
use kadence_core::validate::finding::Finding;
use kadence_core::version::Version;

use crate::ports::{ApiError, HostAddress, ReleaseError, StoreError, Turn};
use crate::{Engine, EngineError};

/// What somebody asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The newest patch of the minor that runs, if absent.
    pub to: Option<Version>,
    pub scope: Scope,
}

/// Why there is no plan, or why a rollout cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Refusal(#[from] Refusal),
    #[error(transparent)]
    NoPlan(#[from] NoPlan),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Releases(#[from] ReleaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The plan breaks a rule that it must keep. A fault of the planner, found by a checker that shares nothing with it.
    #[error("the plan is unsafe: {}", .0.join("; "))]
    Unsafe(Vec<String>),
    #[error("{0} means an outage ({1}): say yes to it (--yes)")]
    NeedsConsent(String, String),
    #[error("rollout {0} of this cluster has not ended: kadence resume or kadence abort")]
    Unfinished(RolloutId),
    #[error("the log of {rollout} cannot be read: {why}")]
    Log { rollout: RolloutId, why: String },
    /// What decides a plan was changed in the configuration since it was made.
    #[error("kadence.yaml was changed since plan {0} was made (update, datastore or waivers)")]
    Stale(String),
    #[error("the plan has nothing to do")]
    NothingToDo,
    /// Something that the plan rests on is not so any more.
    #[error("plan {plan} does not fit the cluster any more: {what}")]
    Changed { plan: String, what: String },
    #[error("there is no rollout to take back")]
    NothingToUndo,
    #[error(transparent)]
    NoWayBack(#[from] NoWayBack),
    #[error("an order of the rollout is still at work on {0}")]
    AtWork(NodeName),
    /// A restore would have nothing to restore from.
    #[error("the backup cannot be read ({0})")]
    NoBackup(String),
}

impl From<EngineError> for StartError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(e) => Self::Store(e),
            EngineError::Api(e) => Self::Api(e),
            EngineError::Log { rollout, why } => Self::Log { rollout: RolloutId::new(rollout), why },
            EngineError::Superseded(why) => Self::Store(StoreError::Busy { holder: why, since: "now".to_owned() }),
        }
    }
}

impl Engine {
    /// Makes a plan for the wish. A plan without hops: nothing is to be done.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn plan(&self, inventory: &Inventory, wish: &Wish) -> Result<Plan, StartError> {
        let catalog = self.releases.catalog().await?;
        let versions = running(inventory);
        let archs: BTreeSet<Arch> = inventory.nodes.iter().filter_map(|n| n.arch.known().copied()).collect();
        let target = match &wish.to {
            Some(version) => resolve::Wish::To(version.clone()),
            None => resolve::Wish::NewestPatch,
        };
        let ladder = resolve::ladder(&versions, &archs, &target, &catalog, self.clock.now())?;
        let question = planner::Question {
            inventory,
            catalog: &catalog,
            cluster: &self.config,
            knowledge: self.knowledge,
            now: self.clock.now(),
        };
        let mut scope = wish.scope.clone();
        scope.exclude.extend(self.config.excluded(self.clock.now()).map(|entry| entry.node.clone()));
        let mut plan = planner::plan(&question, &ladder, &scope, &self.version)?;
        plan.seen.because.extend(ladder.because.iter().cloned());
        let faults = verify::faults(&plan);
        if !faults.is_empty() {
            return Err(StartError::Unsafe(faults));
        }
        Ok(plan)
    }

    /// The newest releases that this cluster could get.
    ///
    /// # Errors
    /// The release source could not be read, or no version is known.
    pub async fn newest(&self, inventory: &Inventory) -> Result<resolve::Newest, StartError> {
        let catalog = self.releases.catalog().await?;
        let archs = inventory.nodes.iter().filter_map(|n| n.arch.known().copied()).collect();
        Ok(resolve::newest(&running(inventory), &archs, &catalog, self.clock.now())?)
    }

    /// Judges the cluster for a plan's first hop, or in general.
    ///
    /// # Errors
    /// The release source could not be read.
    pub async fn check(&self, inventory: &Inventory, plan: Option<&Plan>) -> Result<Vec<Finding>, StartError> {
        Ok(self.judge(inventory, plan.map(|p| (&p.decision, 0)), None).await?)
    }

    /// Every check, for a hop of a plan and on behalf of a rollout that is under way, if there are any.
    pub(crate) async fn judge(
        &self,
        inventory: &Inventory,
        hop: Option<(&Decision, usize)>,
        rollout: Option<&RolloutId>,
    ) -> Result<Vec<Finding>, ReleaseError> {
        let catalog = self.releases.catalog().await?;
        Ok(checks::run(&checks::Question {
            inventory,
            hop: hop.and_then(|(decision, number)| decision.hops.get(number)),
            goes_back: hop.is_some_and(|(decision, _)| decision.goes_back()),
            rollout,
            catalog: &catalog,
            cluster: &self.config,
            knowledge: self.knowledge,
            now: self.clock.now(),
        }))
    }

    /// What of a plan that was made earlier does not fit what runs now, or is not known any more.
    pub fn misfit(&self, plan: &Plan, inventory: &Inventory) -> Option<String> {
        match planner::preconditions(inventory, &self.config, &plan.decision.excluded) {
            Ok(now) => precondition::changed_since(&plan.decision.preconditions, &now),
            Err(unknown) => Some(unknown.to_string()),
        }
    }

    /// Takes the cluster's turn. `seen` is the highest turn the nodes have obeyed so far.
    ///
    /// # Errors
    /// Somebody else has it, or the state cannot be used.
    pub async fn take_turn(&self, uid: &ClusterUid, seen: u64) -> Result<Turn, StoreError> {
        self.store.take_turn(uid, &self.actor, seen).await
    }

    /// The highest turn that the rollout's nodes have obeyed, as far as they can be reached, or that its log knows. A
    /// state knows only the turns that it handed out itself.
    pub async fn turn_of_nodes(&self, rollout: &Rollout) -> u64 {
        self.learn_again(rollout).await;
        let nodes = &rollout.plan.decision.preconditions.nodes;
        let asked = futures_util::future::join_all(nodes.keys().map(|name| self.hosts.facts(name))).await;
        asked.into_iter().flatten().map(|host| host.turn).fold(rollout.turn, u64::max)
    }

    /// Where nodes are is not in the log: it is asked again.
    async fn learn_again(&self, rollout: &Rollout) {
        match self.api.nodes().await {
            Ok(nodes) => drop(self.learn(&nodes)),
            Err(_) => self.learn_from_plan(rollout),
        }
    }

    /// Begins a rollout of the plan.
    ///
    /// # Errors
    /// The plan is unsafe or lacks consent, an earlier rollout has not ended, or the state cannot be written.
    pub async fn begin(&self, plan: Plan, consent: Consent, turn: &Turn) -> Result<Rollout, StartError> {
        let faults = verify::faults(&plan);
        if !faults.is_empty() {
            return Err(StartError::Unsafe(faults));
        }
        if plan.decision.hops.is_empty() {
            return Err(StartError::NothingToDo);
        }
        if plan.decision.preconditions.policy != self.config.policy_digest() {
            return Err(StartError::Stale(plan.hash().short()));
        }
        if let Some(outage) = plan.decision.outage
            && !consent.outage
        {
            return Err(StartError::NeedsConsent(format!("plan {}", plan.hash().short()), outage.words().to_owned()));
        }
        let uid = plan.decision.preconditions.cluster_uid.clone();
        if let Some(unfinished) = self.unfinished(&uid).await? {
            return Err(StartError::Unfinished(unfinished.id));
        }
        let id = match &plan.decision.purpose {
            Purpose::Update => RolloutId::new(format!("r{}", Uuid::now_v7().simple())),
            // Of the family of what it takes back: so it finds and lifts that one's cordons, in restored data too.
            Purpose::Rollback { of } | Purpose::Restore { of, .. } => {
                let taken = self.store.rollouts(&uid).await?;
                let mut id = of.adopted();
                while taken.contains(&id) {
                    id = id.adopted();
                }
                id
            }
        };
        self.begin_as(id, plan, consent, turn).await
    }

    /// Refuses while the cluster's Lease says that a Kadence with another state is at work: the turn of this one keeps
    /// out only those who share it. Without the Lease the nodes still refuse whoever comes second.
    async fn nobody_else_at_work(&self, uid: &ClusterUid) -> Result<(), StartError> {
        let Ok(seen) = self.inspect_api().await else { return Ok(()) };
        let Some(held) = seen.surroundings.lease.known().and_then(Option::as_ref) else { return Ok(()) };
        let ours = self.store.rollouts(uid).await?;
        if !held.is_at_work(self.clock.now()) || held.rollout.as_deref().is_some_and(|r| ours.contains(&r.into())) {
            return Ok(());
        }
        let holder = format!("{} with another state (rollout {})", held.holder, held.rollout.as_deref().unwrap_or("?"));
        Err(StoreError::Busy { holder, since: format!("{} at the latest", held.renewed) }.into())
    }

    pub(crate) async fn begin_as(
        &self,
        id: RolloutId,
        plan: Plan,
        consent: Consent,
        turn: &Turn,
    ) -> Result<Rollout, StartError> {
        let uid = plan.decision.preconditions.cluster_uid.clone();
        self.nobody_else_at_work(&uid).await?;
        self.store.save_plan(&plan).await?;
        // What was asked of an earlier rollout is not meant for this one.
        self.store.answered(&uid, u64::MAX).await?;
        let event = Event::Started { cluster: uid.clone(), plan_hash: plan.hash(), plan: Box::new(plan), consent };
        let started = self.recorded(id.clone(), 1, event);
        self.store.append(&uid, &started).await?;
        let mut rollout = Rollout::start(&started).map_err(|e| StartError::Log { rollout: id, why: e.to_string() })?;
        self.observer.event(&started);
        self.record(&mut rollout, turn.taken()).await?;
        self.announce(&rollout, false).await;
        Ok(rollout)
    }

    /// The cluster's rollout that has not ended.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn unfinished(&self, uid: &ClusterUid) -> Result<Option<Rollout>, StartError> {
        let Some(last) = self.store.rollouts(uid).await?.pop() else { return Ok(None) };
        let rollout = self.rollout(&last).await?;
        Ok(rollout.ended.is_none().then_some(rollout))
    }

    /// A rollout as its events tell it.
    ///
    /// # Errors
    /// The state cannot be read, or the log is not whole.
    pub async fn rollout(&self, id: &RolloutId) -> Result<Rollout, StartError> {
        let events = self.store.events(id).await?;
        Rollout::read(&events).map_err(|e| StartError::Log { rollout: id.clone(), why: e.to_string() })
    }

    /// Takes a stored rollout up again, under a new turn.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn take_up(&self, rollout: &mut Rollout, turn: &Turn) -> Result<(), StartError> {
        self.learn_again(rollout).await;
        self.nobody_else_at_work(&rollout.cluster).await?;
        self.record(rollout, turn.taken()).await?;
        self.record(rollout, Event::Resumed).await?;
        self.announce(rollout, false).await;
        Ok(())
    }

    pub(crate) fn learn_from_plan(&self, rollout: &Rollout) {
        let addresses = &rollout.plan.seen.addresses;
        let nodes = &rollout.plan.decision.preconditions.nodes;
        let hosts: BTreeMap<_, _> = addresses
            .iter()
            .filter_map(|(name, address)| {
                let role = nodes.get(name)?.role;
                Some((name.clone(), HostAddress { role, address: address.clone() }))
            })
            .collect();
        let servers: Vec<String> =
            hosts.values().filter(|h| h.role == Role::Server).map(|h| h.address.clone()).collect();
        self.api.learn_servers(&servers);
        self.hosts.learn_nodes(&hosts);
        if let Ok(mut known) = self.addresses.lock() {
            known.extend(addresses.iter().map(|(name, address)| (name.clone(), address.clone())));
        }
    }

    /// The marks of a rollout on nodes, for a Kadence that has no log of it: its id and the nodes that carry it.
    pub fn marks(inventory: &Inventory) -> Vec<(NodeName, kadence_core::inventory::Mark)> {
        inventory
            .nodes
            .iter()
            .filter_map(|n| match n.cordon() {
                Cordon::Ours { mark } => Some((n.name.clone(), mark.clone())),
                Cordon::None | Cordon::Foreign => None,
            })
            .collect()
    }

    /// Begins a rollout that takes over from one whose log is elsewhere: it finds and lifts that one's cordons.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn adopt(
        &self,
        old: &RolloutId,
        plan: Plan,
        consent: Consent,
        turn: &Turn,
    ) -> Result<Rollout, StartError> {
        self.begin_as(old.adopted(), plan, consent, turn).await
    }

    /// The highest turn that the nodes have obeyed.
    pub fn turn_seen(inventory: &Inventory) -> u64 {
        inventory.nodes.iter().filter_map(|n| n.host.known()).map(|h| h.turn).max().unwrap_or_default()
    }
}

/// The versions that run, of the nodes whose version is known; the planner refuses where one is not.
fn running(inventory: &Inventory) -> BTreeMap<NodeName, (Role, Version)> {
    inventory.nodes.iter().filter_map(|n| Some((n.name.clone(), (n.role, n.version.known()?.clone())))).collect()
}
