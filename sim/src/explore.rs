//! Drives the real engine over the simulated world: through faults, kills, resumes and the way back, to an end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kadence_core::apply::plan::{DatastoreKind, Plan, Purpose};
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::{Consent, Ending, Event, Hold, Recorded, Request};
use kadence_core::ident::{ClusterUid, RolloutId};
use kadence_core::version::Version;
use kadence_engine::ports::{Observer, Progress, Store as _, Turn};
use kadence_engine::{Driven, Engine, StartError, WayBack, Wish};

use crate::faults::{self, Fault, What};
use crate::invariants::Violation;
use crate::{Rng, Stage, Topology, Workload, World};

/// One story: a cluster, an update, what goes wrong, and whether the update is taken back in the end.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub topology: Topology,
    pub from: Version,
    pub to: Version,
    pub faults: Vec<Fault>,
    pub then: Then,
}

/// What a person wants once the update has ended, or holds for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Nothing,
    /// By binaries or by a restore, as the way back has it.
    TakeItBack,
    /// As soon as Kadence was killed, in the middle of whatever it did.
    TakeItBackWhenKilled,
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

/// A defect that is planted to see whether it is found: in a port, or in a plan that nobody looks over.
#[derive(Default)]
pub struct Planted<'a> {
    /// Puts something before the ports of each Kadence.
    pub ports: Option<&'a dyn Fn(Engine) -> Engine>,
    /// Changes the update's plan after it was looked over.
    pub plan: Option<&'a dyn Fn(&mut Plan)>,
}

const CLUSTER: &str = "simulated";
/// How often a held rollout is resumed before its hold is the end.
const RESUMES: u32 = 4;
/// How often Kadence is begun anew at most.
const PROCESSES: u32 = 12;
/// No Kadence lives longer than this in the world: what takes longer waits without an end.
const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// How long a person takes to come back to a hold.
const BACK_AFTER: Duration = Duration::from_secs(90);

impl Case {
    /// The story that `--replay` and `regressions.txt` call so: the seed of a whole story, or the seed of
    /// one that is taken back (`back:`) or of an update alone (`update:`).
    pub fn named(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None => name.parse().ok().map(Self::of_seed),
            Some(("back", seed)) => seed.parse().ok().map(Self::back_of_seed),
            Some(("update", seed)) => seed.parse().ok().map(Self::update_of_seed),
            Some(_) => None,
        }
    }

    /// The whole story of a seed: any shape of cluster, by a patch or by minors, up to three faults, somebody who asks
    /// it to stop, and the way back.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x00c0_ffee);
        let (servers, datastore) = match rng.below(12) {
            0 | 1 => (1, DatastoreKind::Sqlite),
            2 | 3 => (1, DatastoreKind::EmbeddedEtcd),
            4 => (2, DatastoreKind::External),
            5 => (2, DatastoreKind::EmbeddedEtcd),
            6 => (5, DatastoreKind::EmbeddedEtcd),
            _ => (3, DatastoreKind::EmbeddedEtcd),
        };
        let topology = Topology { servers, agents: u8::try_from(rng.below(4)).unwrap_or(0), datastore };
        // A patch, a minor of which etcd's is the same, one of which it is not, and two at once.
        let (from, to) = match rng.below(8) {
            0 | 1 => (Version::new(1, 35, 8, 1), Version::new(1, 36, 5, 1)),
            2 => (Version::new(1, 36, 4, 1), Version::new(1, 37, 1, 1)),
            3 => (Version::new(1, 35, 6, 1), Version::new(1, 37, 1, 1)),
            _ => (Version::new(1, 36, 3, 1), Version::new(1, 36, 4, 1)),
        };
        let then = if rng.below(3) == 0 { Then::TakeItBack } else { Then::Nothing };
        let length = 1 + u64::from(servers + topology.agents > 5) + u64::from(then == Then::TakeItBack);
        let count = rng.below(4);
        let mut faults: Vec<Fault> =
            (0..count).map(|_| faults::random_within(&mut rng, length, topology, &to)).collect();
        if count == 0 || rng.below(4) == 0 {
            let request = if rng.coin() { Request::Pause } else { Request::Abort };
            faults.push(Fault { when: faults::moment(&mut rng, length), what: What::Asked { request } });
        }
        Self { seed, topology, from, to, faults, then }
    }

    /// The whole story of a seed, in which Kadence is killed at some moment and the update is taken back then and there.
    pub fn back_of_seed(seed: u64) -> Self {
        let mut case = Self::of_seed(seed);
        let mut rng = Rng::new(seed ^ 0x0bac_0bac);
        case.faults.truncate(2);
        case.faults.push(Fault { when: faults::moment(&mut rng, 1), what: What::Kill });
        case.then = Then::TakeItBackWhenKilled;
        case
    }

    /// An update by one patch, with up to three faults.
    pub fn update_of_seed(seed: u64) -> Self {
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
        Self { seed, topology, from, to, faults, then: Then::Nothing }
    }

    /// The same story with only those faults that its first violation needs.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub fn minimal(&self, scratch: &Path) -> std::io::Result<Self> {
        let mut minimal = self.clone();
        let breaks = |case: &Self| Ok::<_, std::io::Error>(!case.tell(scratch)?.violations.is_empty());
        if minimal.then != Then::Nothing {
            let shorter = Self { then: Then::Nothing, ..minimal.clone() };
            if breaks(&shorter)? {
                minimal = shorter;
            }
        }
        for index in (0..minimal.faults.len()).rev() {
            let mut fewer = minimal.clone();
            fewer.faults.remove(index);
            if breaks(&fewer)? {
                minimal = fewer;
            }
        }
        Ok(minimal)
    }

    /// Tells the story in a runtime of its own, under a clock that costs nothing.
    ///
    /// # Errors
    /// The runtime or the folder for files on their way into the vault could not be made.
    pub fn tell(&self, scratch: &Path) -> std::io::Result<Told> {
        self.tell_with(scratch, &Planted::default())
    }

    /// The same with a planted defect.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub fn tell_with(&self, scratch: &Path, planted: &Planted<'_>) -> std::io::Result<Told> {
        Ok(crate::runtime()?.block_on(self.tell_here(scratch, planted)))
    }

    async fn tell_here(&self, scratch: &Path, planted: &Planted<'_>) -> Told {
        let world = World::cluster(self.topology, self.from.clone())
            .seed(self.seed)
            .workload(Workload::Shop)
            .faults(self.faults.iter().cloned())
            .build();
        let stage = Stage::new(world.clone(), CLUSTER, scratch);
        let player = Player { stage, case: self, planted, judged: Mutex::default(), killed: AtomicBool::new(false) };
        let mut kills = 0;
        let end = loop {
            let killed = world.killed();
            tokio::select! {
                biased;
                () = killed => {
                    world.revive();
                    kills += 1;
                    player.killed.store(true, Ordering::Relaxed);
                    if kills > PROCESSES {
                        break End::Stuck("it was killed too often".to_owned());
                    }
                }
                end = player.live() => break end,
                () = tokio::time::sleep(LONGEST) => {
                    world.judge_endless();
                    break End::Stuck("it waited without an end".to_owned());
                }
            }
        };
        if let End::Held(hold) = &end {
            world.judge_hold(hold);
        }
        player.judge_written().await;
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
struct Player<'a> {
    stage: Stage,
    case: &'a Case,
    planted: &'a Planted<'a>,
    judged: Mutex<BTreeSet<RolloutId>>,
    killed: AtomicBool,
}

impl Player<'_> {
    fn engine(&self) -> Engine {
        let engine = self.stage.engine(Arc::new(Nobody));
        match self.planted.ports {
            Some(plant) => plant(engine),
            None => engine,
        }
    }

    /// One Kadence's life: it does what is to be done, or goes on with what an earlier one began.
    async fn live(&self) -> End {
        let engine = self.engine();
        let killed = self.killed.load(Ordering::Relaxed);
        if self.case.then == Then::TakeItBackWhenKilled && killed {
            return Box::pin(self.settle(&engine, true)).await;
        }
        let end = Box::pin(self.settle(&engine, false)).await;
        match (self.case.then, &end) {
            (Then::TakeItBack, end) if !matches!(end, End::NotBegun(_)) => Box::pin(self.settle(&engine, true)).await,
            _ => end,
        }
    }

    /// Comes back to what holds a few times.
    async fn settle(&self, engine: &Engine, back: bool) -> End {
        let mut tries = 0;
        loop {
            let end = match Box::pin(self.go_on(engine, back)).await {
                Ok(Driven::Ended(ending)) => return End::Ended(ending),
                Ok(Driven::Held(hold)) => End::Held(hold),
                Err(Halt::NotBegun(why)) => return End::NotBegun(why),
                Err(Halt::Later(why)) => End::Stuck(why),
            };
            tries += 1;
            if tries > RESUMES {
                return end;
            }
            tokio::time::sleep(BACK_AFTER).await;
        }
    }

    async fn go_on(&self, engine: &Engine, back: bool) -> Result<Driven, Halt> {
        let uid = self.stage.store.known_uid(CLUSTER).await?;
        let last = match &uid {
            Some(uid) => engine.store.rollouts(uid).await?.pop(),
            None => None,
        };
        let last = match last {
            Some(id) => Some(engine.rollout(&id).await?),
            None => None,
        };
        match last {
            None if back => Err(Halt::NotBegun("nothing to take back".to_owned())),
            None => self.update(engine).await,
            Some(last) if back && !last.plan.decision.goes_back() => Box::pin(self.take_back(engine, last)).await,
            Some(last) => match &last.ended {
                Some((ending, _)) => {
                    self.judge_end(&last, ending);
                    Ok(Driven::Ended(ending.clone()))
                }
                None => self.resume(engine, last).await,
            },
        }
    }

    /// `kadence apply`
    async fn update(&self, engine: &Engine) -> Result<Driven, Halt> {
        let inventory = engine.inspect().await?;
        let wish = Wish { to: Some(self.case.to.clone()), ..Wish::default() };
        let mut plan = engine.plan(&inventory, &wish).await.map_err(|e| Halt::NotBegun(e.to_string()))?;
        let uid = plan.decision.preconditions.cluster_uid.clone();
        engine.store.remember_uid(CLUSTER, &uid).await?;
        let turn = engine.take_turn(&uid, Engine::turn_seen(&inventory)).await?;
        self.stage.world.consent(plan.decision.outage);
        self.stage.world.rollout_begins();
        let consent = Consent { outage: true, ..Consent::default() };
        if let Some(change) = self.planted.plan {
            change(&mut plan);
            self.smuggle(engine, &uid, plan, consent).await?;
            drop(turn);
            return Err(Halt::Later("a plan that nobody looked over was put into the state".to_owned()));
        }
        let rollout = self.begin(engine, plan, consent, &turn).await?;
        self.drive(engine, rollout).await
    }

    /// Writes the first event of a rollout past the engine.
    async fn smuggle(&self, engine: &Engine, uid: &ClusterUid, plan: Plan, consent: Consent) -> Result<(), Halt> {
        let started = Recorded {
            schema: Recorded::SCHEMA,
            rollout: RolloutId::new("r0"),
            number: 1,
            at: engine.clock.now(),
            actor: engine.actor.clone(),
            kadence: engine.version.clone(),
            event: Event::Started { cluster: uid.clone(), plan_hash: plan.hash(), plan: Box::new(plan), consent },
        };
        Ok(engine.store.append(uid, &started).await?)
    }

    /// `kadence resume`
    async fn resume(&self, engine: &Engine, mut rollout: Rollout) -> Result<Driven, Halt> {
        let seen = engine.turn_of_nodes(&rollout).await;
        let turn = engine.take_turn(&rollout.cluster, seen).await?;
        self.stage.world.resumed();
        engine.take_up(&mut rollout, &turn).await?;
        self.drive(engine, rollout).await
    }

    /// `kadence rollback`
    async fn take_back(&self, engine: &Engine, last: Rollout) -> Result<Driven, Halt> {
        let uid = last.cluster.clone();
        match engine.way_back(&uid, &[]).await.map_err(halt)? {
            WayBack::GoOn(restore) => self.resume(engine, restore).await,
            WayBack::Untouched(rollout) => {
                let turn = engine.take_turn(&uid, rollout.turn).await?;
                let ending = Ending::Aborted { mixed: rollout.mixed() };
                let stay = engine.end_untouched(rollout, &turn).await.map_err(halt)?;
                if stay.is_empty() { Ok(Driven::Ended(ending)) } else { Err(Halt::Later(format!("{stay:?} stay"))) }
            }
            WayBack::Plan { plan, seen } => {
                let turn = engine.take_turn(&uid, seen).await?;
                self.stage.world.consent(plan.decision.outage);
                self.stage.world.rollout_begins();
                let data_loss = matches!(plan.decision.purpose, Purpose::Restore { .. });
                let consent = Consent { outage: true, data_loss, ..Consent::default() };
                let rollout = engine.take_back(plan, consent, &turn).await.map_err(halt)?;
                self.drive(engine, rollout).await
            }
        }
    }

    async fn begin(&self, engine: &Engine, plan: Plan, consent: Consent, turn: &Turn) -> Result<Rollout, Halt> {
        engine.begin(plan, consent, turn).await.map_err(halt)
    }

    async fn drive(&self, engine: &Engine, mut rollout: Rollout) -> Result<Driven, Halt> {
        let (_ask, mut stop) = tokio::sync::mpsc::unbounded_channel();
        let driven = engine.drive(&mut rollout, &mut stop).await?;
        if let Driven::Ended(ending) = &driven {
            self.judge_end(&rollout, ending);
        }
        Ok(driven)
    }

    fn judge_end(&self, rollout: &Rollout, ending: &Ending) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if judged.insert(rollout.id.clone()) {
            self.stage.world.judge_end(ending, &rollout.plan.decision.target, &BTreeSet::new());
        }
    }

    /// What may be read by anybody: events, and the pages beside backups.
    async fn judge_written(&self) {
        let Ok(Some(uid)) = self.stage.store.known_uid(CLUSTER).await else { return };
        for id in self.stage.store.rollouts(&uid).await.unwrap_or_default() {
            for event in self.stage.store.events(&id).await.unwrap_or_default() {
                self.stage.world.judge_written(&format!("event {}", event.number), &format!("{event:?}"));
            }
        }
        for page in self.stage.vault.pages() {
            self.stage.world.judge_written("the page beside a backup", &page);
        }
    }
}

enum Halt {
    NotBegun(String),
    /// It may go better later.
    Later(String),
}

fn halt(error: StartError) -> Halt {
    match error {
        StartError::Store(_) | StartError::Api(_) => Halt::Later(error.to_string()),
        error => Halt::NotBegun(error.to_string()),
    }
}

impl<E: std::error::Error> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Later(error.to_string())
    }
}

struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Recorded) {}
    fn progress(&self, _: &Progress) {}
}
