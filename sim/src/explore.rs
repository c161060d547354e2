//! Drives the real engine over the simulated world, through faults, kills and resumes, to an end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kadence_core::apply::plan::DatastoreKind;
use kadence_core::event::{Consent, Ending, Hold, Recorded};
use kadence_core::version::Version;
use kadence_engine::ports::{Observer, Progress, StoreError};
use kadence_engine::{Driven, Engine, EngineError, StartError, Wish};

use crate::faults::{self, Fault};
use crate::invariants::Violation;
use crate::{Rng, Stage, Topology, Workload, World};

/// One story: a cluster, an update, and what goes wrong.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub topology: Topology,
    pub from: Version,
    pub to: Version,
    pub faults: Vec<Fault>,
}

/// How a story ended.
#[derive(Clone, Debug)]
pub struct Told {
    pub end: End,
    pub violations: Vec<Violation>,
    pub log: Vec<String>,
    pub trace: u64,
    /// Which fault struck in which step.
    pub reached: BTreeMap<(String, String), u32>,
    /// How many times Kadence was killed.
    pub kills: u32,
    pub calls: u64,
    /// Stored events over all rollouts.
    pub events: u64,
    /// How long it took in the world.
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Ended(Ending),
    /// It holds, and went on holding each time it was resumed.
    Held(Hold),
    /// There was no plan or no rollout.
    NotBegun(String),
    /// It could not go on, and said why.
    Stuck(String),
}

/// How often a held rollout is resumed before its hold is the end.
const RESUMES: u32 = 4;
/// How often Kadence is begun anew at most.
const PROCESSES: u32 = 12;
/// No story is longer than this in the world: what is longer waits without an end.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

impl Case {
    /// The story of a seed: a small cluster, and up to three faults.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5bd1_e995);
        let (servers, datastore) = match rng.below(8) {
            0 => (1, DatastoreKind::Sqlite),
            1 => (1, DatastoreKind::EmbeddedEtcd),
            2 => (2, DatastoreKind::External),
            _ => (3, DatastoreKind::EmbeddedEtcd),
        };
        let topology = Topology { servers, agents: u8::try_from(rng.below(3)).unwrap_or(0), datastore };
        let (from, to) = (Version::new(1, 36, 3, 1), Version::new(1, 36, 4, 1));
        let count = 1 + rng.below(3);
        let faults = (0..count).map(|_| faults::random(&mut rng, topology, &to)).collect();
        Self { seed, topology, from, to, faults }
    }

    /// Tells the story in a runtime of its own, under a clock that costs nothing.
    ///
    /// # Errors
    /// The runtime or the folder for files on their way into the vault could not be made.
    pub fn tell(&self, scratch: &Path) -> std::io::Result<Told> {
        Ok(crate::runtime()?.block_on(self.tell_here(scratch)))
    }

    /// Tells the story in the runtime of the caller.
    pub async fn tell_here(&self, scratch: &Path) -> Told {
        let world = World::cluster(self.topology, self.from.clone())
            .seed(self.seed)
            .workload(Workload::Shop)
            .faults(self.faults.iter().cloned())
            .build();
        self.tell_in(&world, scratch).await
    }

    /// Tells the story in a world that was made before.
    pub async fn tell_in(&self, world: &World, scratch: &Path) -> Told {
        let player = Player { stage: Stage::new(world.clone(), "simulated", scratch), to: self.to.clone() };
        let mut kills = 0;
        let end = loop {
            let killed = world.killed();
            tokio::select! {
                biased;
                () = killed => {
                    world.revive();
                    kills += 1;
                    if kills > PROCESSES {
                        break End::Stuck("it was killed too often".to_owned());
                    }
                }
                end = player.live() => break end,
                () = tokio::time::sleep(LONGEST) => break End::Stuck("it waited without an end".to_owned()),
            }
        };
        if let End::Ended(ending) = &end {
            world.judge_end(ending, &self.to, &std::collections::BTreeSet::new());
        }
        Told {
            end,
            violations: world.violations(),
            log: world.log(),
            trace: world.trace(),
            reached: world.reached(),
            kills,
            calls: world.calls(),
            events: player.stage.store.appends(),
            took: world.age(),
        }
    }
}

/// Plays Kadence's user: begins, resumes, takes back.
struct Player {
    stage: Stage,
    to: Version,
}

impl Player {
    fn engine(&self) -> Engine {
        self.stage.engine(Arc::new(Nobody))
    }

    /// One Kadence's life: it begins a rollout or takes one up, and resumes what holds a few times.
    async fn live(&self) -> End {
        let engine = self.engine();
        let mut last = None;
        for _ in 0..=RESUMES {
            match self.carry_on(&engine).await {
                Ok(Driven::Ended(ending)) => return End::Ended(ending),
                Ok(Driven::Held(hold)) => last = Some(End::Held(hold)),
                Err(Halt::NotBegun(why)) => return End::NotBegun(why),
                Err(Halt::Later(why)) => last = Some(End::Stuck(why)),
            }
            tokio::time::sleep(Duration::from_secs(90)).await;
        }
        last.unwrap_or_else(|| End::Stuck("nothing was done".to_owned()))
    }

    async fn carry_on(&self, engine: &Engine) -> Result<Driven, Halt> {
        let later = |error: &dyn std::fmt::Display| Halt::Later(error.to_string());
        let known = self.store_uid(engine).await;
        let unfinished = match &known {
            Some(uid) => engine.unfinished(uid).await.map_err(|e| later(&e))?,
            None => None,
        };
        let (_guard, mut rollout) = match unfinished {
            Some(mut rollout) => {
                let seen = match engine.inspect().await {
                    Ok(inventory) => Engine::turn_seen(&inventory),
                    Err(_) => rollout.turn,
                };
                let turn = engine.take_turn(&rollout.cluster, seen.max(rollout.turn)).await.map_err(|e| later(&e))?;
                engine.take_up(&mut rollout, &turn).await.map_err(|e| later(&e))?;
                (turn, rollout)
            }
            None => {
                let inventory = engine.inspect().await.map_err(|e| later(&e))?;
                let wish = Wish { to: Some(self.to.clone()), ..Wish::default() };
                let plan = engine.plan(&inventory, &wish).await.map_err(|e| Halt::NotBegun(e.to_string()))?;
                let uid = plan.decision.preconditions.cluster_uid.clone();
                engine.store.remember_uid("simulated", &uid).await.map_err(|e| later(&e))?;
                let turn = engine.take_turn(&uid, Engine::turn_seen(&inventory)).await.map_err(|e| later(&e))?;
                self.stage.world.consent(plan.decision.outage);
                self.stage.world.rollout_begins();
                let consent = Consent { outage: true, ..Consent::default() };
                let rollout = match engine.begin(plan, consent, &turn).await {
                    Ok(rollout) => rollout,
                    Err(StartError::Store(error @ StoreError::Busy { .. })) => return Err(later(&error)),
                    Err(error) => return Err(Halt::NotBegun(error.to_string())),
                };
                (turn, rollout)
            }
        };
        let (_ask, mut stop) = tokio::sync::mpsc::unbounded_channel();
        match engine.drive(&mut rollout, &mut stop).await {
            Ok(driven) => Ok(driven),
            Err(EngineError::Superseded(why)) => Err(Halt::Later(why)),
            Err(error) => Err(later(&error)),
        }
    }

    async fn store_uid(&self, engine: &Engine) -> Option<kadence_core::ident::ClusterUid> {
        engine.store.known_uid("simulated").await.ok().flatten()
    }
}

enum Halt {
    NotBegun(String),
    /// It may go better later.
    Later(String),
}

struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Recorded) {}
    fn progress(&self, _: &Progress) {}
}
