//! `kadence demo`: an update that fails and one that goes well, on a simulated cluster.
//!
//! Only what lies outside is simulated: the machines, K3s, the clock. What decides, acts and tells is the code of the
//! real thing. The world's time costs nothing, so the pauses here are for the reader alone.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::{Consent, Recorded};
use kadence_core::ident::RolloutId;
use kadence_core::validate::finding::Finding;
use kadence_core::version::Version;
use kadence_engine::ports::{Observer, Progress};
use kadence_engine::{Driven, Engine, Wish};
use kadence_sim::faults::{Fault, HowBroken, Target, What, When};
use kadence_sim::{Stage, Topology, World};
use kadence_tell::Style;
use kadence_tell::line::Lines;
use serde_json::json;
use tokio::sync::mpsc;

use crate::args::{Demo, Global, Output};
use crate::exit::{Exit, Failure, of_driven};
use crate::screen::{Screen, print, say};

const NAME: &str = "demo";
/// The newest patch of its minor is two releases away.
fn runs() -> Version {
    Version::new(1, 36, 3, 1)
}

/// How many seconds of the world pass in one second of the reader's.
const WORLD_SECONDS: u32 = 7;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For reading a line of a table.
const A_LINE: Duration = Duration::from_millis(250);
const LONGEST_READ: Duration = Duration::from_secs(5);
/// No fault takes more than this many commands to come to a good end.
const COMMANDS: u32 = 5;

/// What goes wrong in the first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trouble {
    /// The new version exits at once
    Crash,
    /// The new version runs and never gets ready
    Hang,
    /// The new version gets ready and dies 20 s later
    Dies,
    /// The new version's node is Ready and NotReady in turn
    Flap,
    /// A server loses power in the middle of its restart
    PowerLoss,
    /// Kadence is killed while a server replaces its binary
    Kill,
    /// SSH to a server is cut while it replaces its binary
    SshCut,
    /// The API does not answer for 20 s
    ApiAway,
    /// A server's disk is full when the binary is copied to it
    DiskFull,
    /// Another server goes down by itself
    ServerDown,
    /// Somebody else cordons a node
    ForeignCordon,
    /// The snapshot cannot be read back
    BadBackup,
}

impl Trouble {
    fn fault(self, target: &Version) -> Fault {
        let broken = |how| What::Broken { version: target.clone(), on: None, how };
        let node = |name: &str| Target::Node(name.into());
        // Order 4 is the first replacement of a binary: before it come snapshot, pruning and archive.
        let (when, what) = match self {
            Self::Crash => (When::At(Duration::ZERO), broken(HowBroken::ExitsAtOnce)),
            Self::Hang => (When::At(Duration::ZERO), broken(HowBroken::Hangs)),
            Self::Dies => (When::At(Duration::ZERO), broken(HowBroken::DiesAfter(Duration::from_secs(20)))),
            Self::Flap => (When::At(Duration::ZERO), broken(HowBroken::Flaps)),
            Self::PowerLoss => (
                When::Step { order: 5, step: 3 },
                What::PowerLoss { at: Target::InHand, back: Some(Duration::from_secs(20)) },
            ),
            Self::Kill => (When::Step { order: 5, step: 2 }, What::Kill),
            Self::SshCut => {
                (When::Step { order: 5, step: 2 }, What::SshCut { at: Target::InHand, lasts: Duration::from_secs(25) })
            }
            Self::ApiAway => (When::Step { order: 5, step: 4 }, What::ApiAway { lasts: Duration::from_secs(20) }),
            Self::DiskFull => (When::AfterEvent(5), What::DiskFull { at: node("s3"), lasts: None }),
            Self::ServerDown => {
                (When::Step { order: 4, step: 0 }, What::ServerDown { at: node("s1"), lasts: Duration::from_secs(300) })
            }
            Self::ForeignCordon => (When::Step { order: 4, step: 0 }, What::ForeignCordon { at: node("s3") }),
            Self::BadBackup => (When::At(Duration::ZERO), What::SnapshotCorrupt),
        };
        Fault { when, what }
    }

    /// What it is, as `--help` says it.
    fn words(self) -> String {
        let help = self.to_possible_value().and_then(|v| v.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }
}

pub(crate) fn run(global: &Global, args: &Demo) -> Result<Exit, Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, "E-DEMO", e.to_string());
    // The engine reads backups from files before it keeps them; here they are of no use to anybody afterwards.
    let scratch = tempfile::tempdir().map_err(failed)?;
    let runtime = kadence_sim::runtime().map_err(failed)?;
    runtime.block_on(Box::pin(show(global, args, scratch.path())))
}

async fn show(global: &Global, args: &Demo, scratch: &Path) -> Result<Exit, Failure> {
    let target = newest_patch(args.seed).await?;
    let topology = Topology { servers: 3, agents: 3, datastore: DatastoreKind::EmbeddedEtcd };
    let world = World::cluster(topology, runs()).seed(args.seed).fault(args.fault.fault(&target)).build();
    let teller = Arc::new(Teller::new(global, args, world.clone()));
    let show = Show { stage: Stage::new(world, NAME, scratch), teller };
    show.introduce().await?;
    let commands = show.update(&target).await?;
    show.conclude(global, args, &commands)
}

/// The version that a wish without a target leads to.
async fn newest_patch(seed: u64) -> Result<Version, Failure> {
    let topology = Topology { servers: 1, agents: 0, datastore: DatastoreKind::Sqlite };
    let catalog = World::cluster(topology, runs()).seed(seed).build().releases().catalog().await;
    let catalog = catalog.map_err(|e| Failure::new(Exit::Failed, "E-DEMO", e.to_string()))?;
    let newest = catalog.releases.into_keys().filter(|v| v.minor() == runs().minor()).max();
    Ok(newest.unwrap_or_else(runs))
}

/// How a command of the story ended.
struct Command {
    words: &'static str,
    exit: Exit,
    rollout: Option<Rollout>,
}

struct Show {
    stage: Stage,
    teller: Arc<Teller>,
}

impl Show {
    fn engine(&self) -> Engine {
        self.stage.engine(self.teller.clone())
    }

    fn style(&self) -> Style {
        self.teller.style
    }

    /// Inspect, check, plan.
    async fn introduce(&self) -> Result<(), Failure> {
        let teller = &self.teller;
        teller.say(
            "A simulated cluster: 3 servers, 3 agents, a shop that runs on them. No cluster and no network is touched;\n\
             what decides, acts and tells is the same code as on a real one.",
        );
        let engine = self.engine();
        teller.command("inspect");
        let inventory = engine.inspect().await?;
        teller.page(&kadence_tell::inspect::text(&inventory, self.style()));
        let plan = engine.plan(&inventory, &Wish::default()).await?;
        let findings = engine.check(&inventory, Some(&plan)).await?;
        teller.command("check");
        teller.page(&kadence_tell::check::text(&inventory, Some(&plan), &findings, self.style()));
        teller.command("plan");
        teller.page(&kadence_tell::plan::text(&plan, self.style()));
        Ok(())
    }

    /// Updates until it is done, as a person would: what went wrong is put right, then the next command goes on.
    async fn update(&self, target: &Version) -> Result<Vec<Command>, Failure> {
        let mut commands = Vec::new();
        let mut words = "apply";
        for _ in 0..COMMANDS {
            self.teller.command(words);
            let came = match words {
                "resume" => self.resume().await?,
                _ => self.apply().await?,
            };
            let (exit, rollout) = match came {
                Came::Killed => {
                    self.stage.world.revive();
                    self.teller.struck();
                    self.teller.say("Killed");
                    commands.push(Command { words, exit: Exit::Held, rollout: None });
                    words = "resume";
                    continue;
                }
                Came::Refused => (Exit::Refused, None),
                Came::Driven(driven, rollout) => {
                    self.teller.page(&kadence_tell::status::ending(&rollout, self.style()));
                    if let Driven::Ended(ending) = &driven {
                        self.stage.world.judge_end(ending, target, &std::collections::BTreeSet::new());
                    }
                    (of_driven(&driven), Some(rollout))
                }
            };
            let (done, held) = (exit == Exit::Done, exit == Exit::Held);
            commands.push(Command { words, exit, rollout: rollout.map(|r| *r) });
            if done {
                return Ok(commands);
            }
            words = if held { "resume" } else { "apply" };
            self.teller.say(&format!("exit {}\n\nWhat was wrong is put right, and a minute passes.", exit as u8));
            self.stage.world.mend();
            tokio::time::sleep(Duration::from_secs(90)).await;
        }
        Err(Failure::new(Exit::Failed, "E-DEMO", format!("the story has no good end after {COMMANDS} commands")))
    }

    async fn apply(&self) -> Result<Came, Failure> {
        let engine = self.engine();
        let inventory = engine.inspect().await?;
        let plan = engine.plan(&inventory, &Wish::default()).await?;
        let findings = engine.check(&inventory, Some(&plan)).await?;
        if findings.iter().any(Finding::blocks) {
            self.teller.page(&kadence_tell::check::text(&inventory, Some(&plan), &findings, self.style()));
            return Ok(Came::Refused);
        }
        let uid = plan.decision.preconditions.cluster_uid.clone();
        engine.store.remember_uid(NAME, &uid).await?;
        let turn = engine.take_turn(&uid, Engine::turn_seen(&inventory)).await?;
        self.stage.world.rollout_begins();
        let rollout = engine.begin(plan, Consent::default(), &turn).await?;
        self.drive(&engine, rollout).await
    }

    async fn resume(&self) -> Result<Came, Failure> {
        let engine = self.engine();
        let nothing = || Failure::new(Exit::Failed, "E-DEMO", "no rollout is held");
        let uid = engine.store.known_uid(NAME).await?.ok_or_else(nothing)?;
        let mut rollout = engine.unfinished(&uid).await?.ok_or_else(nothing)?;
        let turn = engine.take_turn(&uid, rollout.turn).await?;
        engine.take_up(&mut rollout, &turn).await?;
        self.drive(&engine, rollout).await
    }

    async fn drive(&self, engine: &Engine, mut rollout: Rollout) -> Result<Came, Failure> {
        let (_ask, mut stop) = mpsc::unbounded_channel();
        let driven = tokio::select! {
            biased;
            () = self.stage.world.killed() => return Ok(Came::Killed),
            driven = Box::pin(engine.drive(&mut rollout, &mut stop)) => driven?,
        };
        Ok(Came::Driven(driven, Box::new(rollout)))
    }

    fn conclude(&self, global: &Global, args: &Demo, commands: &[Command]) -> Result<Exit, Failure> {
        let violations = self.stage.world.violations();
        if let Some(first) = violations.first() {
            let what = format!("{first} (seed {}, fault {:?})", args.seed, args.fault);
            return Err(Failure::new(Exit::Failed, "E-DEMO", what).next("please report it with this line"));
        }
        self.teller.say(&format!(
            "\nThe simulator watched its own world meanwhile: never two servers down by Kadence's hand, a backup before\n\
             each, no cordon left, and \"completed\" said of what is healthy. Again: kadence demo --seed {}; other faults:\n\
             kadence demo --help. On a cluster of yours: kadence init",
            args.seed
        ));
        if global.output == Output::Json {
            let told: Vec<_> = commands
                .iter()
                .map(|c| {
                    let rollout = c.rollout.as_ref().map(kadence_tell::status::json);
                    json!({ "command": c.words, "exit": c.exit as u8, "rollout": rollout })
                })
                .collect();
            let document = json!({ "schema": 1, "seed": args.seed, "commands": told });
            print(&self.teller.with_plain_names(&format!("{document:#}\n")));
        }
        Ok(Exit::Done)
    }
}

enum Came {
    Driven(Driven, Box<Rollout>),
    Refused,
    Killed,
}

/// Tells the story as it happens, at a pace that can be read.
struct Teller {
    style: Style,
    output: Output,
    fast: bool,
    world: World,
    trouble: Trouble,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    lines: Lines,
    /// What was last told happened then.
    until: Option<Timestamp>,
    struck: bool,
    rollouts: Vec<RolloutId>,
}

impl Teller {
    fn new(global: &Global, args: &Demo, world: World) -> Self {
        Self {
            style: Screen::new(global).style(),
            output: global.output,
            fast: args.fast,
            world,
            trouble: args.fault,
            told: Mutex::default(),
        }
    }

    fn command(&self, words: &str) {
        self.say(&format!("\n$ kadence {words} {NAME}"));
        self.pause(Duration::from_millis(700));
    }

    /// Something to read.
    fn page(&self, text: &str) {
        self.say(text);
        let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
        self.pause(A_LINE.saturating_mul(lines).min(LONGEST_READ));
    }

    fn say(&self, text: &str) {
        let text = self.with_plain_names(text.trim_end_matches('\n'));
        match self.output {
            Output::Text => print(&(text + "\n")),
            Output::Json => say(text),
        }
    }

    /// Rollouts are named by chance; the same seed tells the same story.
    fn with_plain_names(&self, text: &str) -> String {
        let told = self.told();
        let named = |text: String, (n, id): (usize, &RolloutId)| text.replace(id.as_str(), &format!("r{}", n + 1));
        told.rollouts.iter().enumerate().fold(text.to_owned(), named)
    }

    /// Says, once, that the fault has struck.
    fn struck(&self) {
        let struck = !self.world.reached().is_empty();
        if struck && !std::mem::replace(&mut self.told().struck, true) {
            self.say(&format!("⚡ this demo's fault: {}", self.trouble.words()));
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self, pause: Duration) {
        if !self.fast {
            std::thread::sleep(pause);
        }
    }
}

impl Observer for Teller {
    fn event(&self, event: &Recorded) {
        let (line, passed) = {
            let mut told = self.told();
            if !told.rollouts.contains(&event.rollout) {
                told.rollouts.push(event.rollout.clone());
                told.until = None;
            }
            let passed = told.until.replace(event.at).map(|until| event.at.duration_since(until));
            (told.lines.event(event), passed.and_then(|p| Duration::try_from(p).ok()).unwrap_or_default())
        };
        self.pause((passed / WORLD_SECONDS).min(LONGEST_PAUSE));
        self.struck();
        if let Some(line) = line {
            self.say(&line);
        }
    }

    fn progress(&self, progress: &Progress) {
        match progress {
            Progress::Waiting { node, what, .. } if self.style.verbose > 0 => {
                let node = node.as_ref().map(|n| format!("{n}: ")).unwrap_or_default();
                self.say(&format!("  {node}waiting for {what}"));
            }
            Progress::Waiting { .. } | Progress::Outage(_) => {}
            Progress::Say(text) => self.say(text),
        }
    }
}
