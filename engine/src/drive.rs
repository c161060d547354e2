//! The loop: what core wants is performed, what came of it is stored, until the rollout ends or holds.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::sleep;

use kadence_core::apply::action::Outcome;
use kadence_core::apply::rollout::{Phase, Rollout, Wanted};
use kadence_core::event::{Ending, Event, Hold, Recorded, Request};
use kadence_core::ident::ActionId;
use kadence_core::inventory::{LeaseHolder, Role};

use crate::outage::Probing;
use crate::perform::Superseded;
use crate::ports::{Keep, Progress};
use crate::prove::to_std;
use crate::{Engine, EngineError};

/// How a drive came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driven {
    Ended(Ending),
    Held(Hold),
}

/// A way to ask the drive to stop, from the same process: the first Ctrl-C.
pub type Stop = mpsc::UnboundedReceiver<Request>;

impl Engine {
    /// Carries a rollout on until it ends or holds. The caller holds the cluster's turn.
    ///
    /// # Errors
    /// The state could not be written, or another Kadence has taken over. Nothing more was done then; what nodes were
    /// told goes on there, and `resume` asks for its result.
    pub async fn drive(&self, rollout: &mut Rollout, stop: &mut Stop) -> Result<Driven, EngineError> {
        let mut running: FuturesUnordered<BoxFuture<'static, (ActionId, Result<Outcome, Superseded>)>> =
            FuturesUnordered::new();
        let mut in_flight: BTreeSet<ActionId> = BTreeSet::new();
        let mut probing: Option<Probing> = None;
        let mut renewing = self.keep_announcing(rollout);
        loop {
            self.hear(rollout).await?;
            if probing.is_none() && matches!(rollout.phase, Phase::Rolling | Phase::Restoring) {
                let (servers, so_far) = (self.servers(rollout), rollout.outage.unwrap_or_default());
                probing = Probing::start(self.api.clone(), servers, so_far, self.observer.clone());
            }
            let measured = || probing.as_ref().and_then(Probing::take);
            match rollout.wanted() {
                Wanted::Actions(wanted) => {
                    for (id, action) in wanted {
                        if !in_flight.insert(id.clone()) {
                            continue;
                        }
                        let fresh = !rollout.open().any(|(open, _)| *open == id);
                        if fresh {
                            self.record(rollout, Event::Intent { id: id.clone(), action: action.clone() }).await?;
                        }
                        let (engine, seen, id) = (self.clone(), rollout.clone(), id.clone());
                        running.push(
                            async move {
                                let outcome = engine.perform(&seen, &id, &action).await;
                                (id, outcome)
                            }
                            .boxed(),
                        );
                    }
                }
                Wanted::Hold(hold) => {
                    self.record(rollout, Event::Held { hold: hold.clone(), outage: measured() }).await?;
                    self.announce(rollout, false).await;
                    return Ok(Driven::Held(hold));
                }
                Wanted::End(ending) => {
                    // Before the last event: killed in the middle of it, the next Kadence does it again.
                    if ending == Ending::Completed {
                        self.tidy(rollout).await;
                    }
                    // What a way back did not come to may still carry the cordon of what it takes back. A node that is not
                    // proven healthy keeps it, and status names it.
                    if rollout.plan.decision.goes_back() && ending != Ending::Completed {
                        let _ = self.lift_marks(&rollout.id).await;
                    }
                    self.record(rollout, Event::Ended { ending: ending.clone(), outage: measured() }).await?;
                    self.announce(rollout, true).await;
                    return Ok(Driven::Ended(ending));
                }
                Wanted::Nothing => {
                    return match &rollout.ended {
                        Some((ending, _)) => Ok(Driven::Ended(ending.clone())),
                        None => Err(EngineError::Log {
                            rollout: rollout.id.to_string(),
                            why: "it wants nothing and has not ended".to_owned(),
                        }),
                    };
                }
            }
            tokio::select! {
                biased;
                Some(request) = stop.recv() => {
                    self.record(rollout, Event::Asked { request }).await?;
                }
                Some((id, outcome)) = running.next() => {
                    in_flight.remove(&id);
                    match outcome {
                        Ok(outcome) => {
                            // What was asked while it was under way comes first: a look that ends after it must not
                            // begin another node.
                            self.hear(rollout).await?;
                            let outcome = Event::Outcome { id, outcome: Box::new(outcome), outage: measured() };
                            self.record(rollout, outcome).await?;
                        }
                        Err(Superseded(why)) => return Err(EngineError::Superseded(why)),
                    }
                }
                () = &mut renewing => {}
            }
        }
    }

    /// Stores what other terminals asked for.
    async fn hear(&self, rollout: &mut Rollout) -> Result<(), EngineError> {
        let asked = self.store.requests(&rollout.cluster).await?;
        for (_, request) in &asked {
            self.record(rollout, Event::Asked { request: *request }).await?;
        }
        if let Some((last, _)) = asked.last() {
            self.store.answered(&rollout.cluster, *last).await?;
        }
        Ok(())
    }

    /// Stores an event and takes it in.
    pub(crate) async fn record(&self, rollout: &mut Rollout, event: Event) -> Result<(), EngineError> {
        let recorded = self.recorded(rollout.id.clone(), rollout.number + 1, event);
        self.store.append(&rollout.cluster, &recorded).await?;
        rollout
            .apply(&recorded)
            .map_err(|error| EngineError::Log { rollout: rollout.id.to_string(), why: error.to_string() })?;
        self.observer.event(&recorded);
        Ok(())
    }

    pub(crate) fn recorded(&self, rollout: kadence_core::ident::RolloutId, number: u64, event: Event) -> Recorded {
        Recorded {
            schema: Recorded::SCHEMA,
            rollout,
            number,
            at: self.clock.now(),
            actor: self.actor.clone(),
            kadence: self.version.clone(),
            event,
        }
    }

    /// Frees the nodes of what no way back needs any more. A file too many is no failure.
    async fn tidy(&self, rollout: &Rollout) {
        let nodes = &rollout.plan.decision.preconditions.nodes;
        let tidied = nodes.iter().map(|(name, was)| async move {
            let keep = Keep { binaries: vec![was.binary], rollouts: vec![rollout.id.clone()] };
            let _ = self.hosts.tidy(name, &keep).await;
        });
        join_all(tidied).await;
    }

    /// The addresses of the servers, in the order of their names.
    fn servers(&self, rollout: &Rollout) -> Vec<String> {
        let known: BTreeMap<_, _> = self.addresses.lock().map(|a| a.clone()).unwrap_or_default();
        rollout
            .plan
            .decision
            .preconditions
            .nodes
            .iter()
            .filter(|(_, n)| n.role == Role::Server)
            .filter_map(|(name, _)| {
                let address = known.get(name).or_else(|| rollout.plan.seen.addresses.get(name));
                if address.is_none() {
                    let what = format!("no address of {name} is known: whether its API answers is not measured");
                    self.observer.progress(&Progress::Say(what));
                }
                address.cloned()
            })
            .collect()
    }

    /// Tells others through the cluster's Lease who works on it. It fences nothing, so failing is no matter.
    pub(crate) async fn announce(&self, rollout: &Rollout, over: bool) {
        let holder = self.lease(rollout);
        let _ = self.api.announce((!over).then_some(&holder)).await;
    }

    /// Renews the Lease for as long as it is polled, beside all else: others read from its age whether we are at work.
    fn keep_announcing(&self, rollout: &Rollout) -> BoxFuture<'static, ()> {
        let (engine, holder) = (self.clone(), self.lease(rollout));
        async move {
            loop {
                sleep(to_std(LeaseHolder::RENEWED_EVERY)).await;
                let _ = engine.api.announce(Some(&LeaseHolder { renewed: engine.clock.now(), ..holder.clone() })).await;
            }
        }
        .boxed()
    }

    fn lease(&self, rollout: &Rollout) -> LeaseHolder {
        LeaseHolder {
            holder: self.actor.clone(),
            renewed: self.clock.now(),
            rollout: Some(rollout.id.to_string()),
            plan: Some(rollout.plan_hash.to_string()),
        }
    }
}
