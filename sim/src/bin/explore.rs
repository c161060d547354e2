//! Tells stories by the thousand, and says which of them broke an invariant.
//!
//! ```text
//! explore [--schedules N] [--seed S] [--replay STORY]
//! ```
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kadence_core::event::Ending;
use kadence_sim::explore::{Case, End, Told};

const REGRESSIONS: &str = include_str!("../../regressions.txt");
const THREADS: usize = 2;
/// As much of the story before its first violation as fits on a screen.
const TAIL: usize = 40;
/// So many broken stories are told; the others are only named.
const ENOUGH: usize = 20;

enum Task {
    Schedules { from: u64, count: u64 },
    Replay(String),
}

fn main() -> ExitCode {
    let task = match arguments(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(why) => {
            println!("explore: {why}\nusage: explore [--schedules N] [--seed S] | explore --replay STORY");
            return ExitCode::from(2);
        }
    };
    let scratch = std::env::temp_dir().join(format!("kadence-explore-{}", std::process::id()));
    let result = match task {
        Task::Schedules { from, count } => schedules(from, count, &scratch),
        Task::Replay(story) => replay(&story, &scratch),
    };
    let _ = std::fs::remove_dir_all(&scratch);
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("explore: {}: {error}", scratch.display());
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Task, String> {
    let (mut from, mut count) = (1, 10_000);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{word} {value}: {e}"));
        match word.as_str() {
            "--schedules" => count = number()?,
            "--seed" => from = number()?,
            "--replay" => return Ok(Task::Replay(value)),
            _ => return Err(format!("{word} is not known")),
        }
    }
    Ok(Task::Schedules { from, count })
}

/// What all stories together came to. Maps are ordered and sums know no order, so threads change nothing.
#[derive(Default)]
struct Sum {
    stories: u64,
    broken: BTreeSet<String>,
    ends: BTreeMap<&'static str, u64>,
    reached: BTreeMap<(String, String), u64>,
    kills: u64,
    calls: u64,
}

impl Sum {
    fn add(&mut self, name: &str, told: &Told) {
        self.stories += 1;
        if !told.violations.is_empty() {
            self.broken.insert(name.to_owned());
        }
        *self.ends.entry(end_word(&told.end)).or_default() += 1;
        for (pair, times) in &told.reached {
            *self.reached.entry(pair.clone()).or_default() += u64::from(*times);
        }
        self.kills += u64::from(told.kills);
        self.calls += told.calls;
    }
}

fn end_word(end: &End) -> &'static str {
    match end {
        End::Ended(Ending::Completed) => "completed",
        End::Ended(Ending::FailedAndBack { .. }) => "failed and back",
        End::Ended(Ending::Failed { .. }) => "failed",
        End::Ended(Ending::Refused { .. }) => "refused",
        End::Ended(Ending::Aborted { .. }) => "aborted",
        End::Held(_) => "held",
        End::NotBegun(_) => "not begun",
        End::Stuck(_) => "could not go on",
    }
}

/// Tells the regressions, then the schedules; whether no invariant was broken.
fn schedules(from: u64, count: u64, scratch: &Path) -> std::io::Result<bool> {
    let began = Instant::now();
    let known: Vec<&str> =
        REGRESSIONS.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let all = known.len() as u64 + count;
    let work = |thread: usize| -> std::io::Result<()> {
        let scratch = scratch.join(thread.to_string());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= all {
                return Ok(());
            }
            let name = match usize::try_from(number).ok().and_then(|n| known.get(n)) {
                Some(name) => (*name).to_owned(),
                None => match from + number - known.len() as u64 {
                    // Every fourth one is taken back in the middle.
                    seed if seed % 4 == 3 => format!("back:{seed}"),
                    seed => seed.to_string(),
                },
            };
            let told = named(&name)?.tell(&scratch)?;
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.add(&name, &told);
            let shown = sum.broken.len() <= ENOUGH;
            drop(sum);
            if !told.violations.is_empty() && shown {
                show_broken(&name, &told, &scratch)?;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a story panicked: its seed is not known")))
        })
    })?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    show(&sum, began);
    Ok(sum.broken.is_empty())
}

fn named(name: &str) -> std::io::Result<Case> {
    Case::named(name).ok_or_else(|| std::io::Error::other(format!("no story is called {name:?}")))
}

fn show(sum: &Sum, began: Instant) {
    let (faults, steps): (BTreeSet<_>, BTreeSet<_>) = sum.reached.keys().map(|(f, s)| (f, s)).unzip();
    let ends: Vec<String> = sum.ends.iter().map(|(end, count)| format!("{count} {end}")).collect();
    println!(
        "{} stories in {:.1} s ({:.0} a second): {} broken.\nEnds: {}.\n{} kills, {} calls. {} fault × step pairs were \
         reached: {} faults in {} steps.",
        sum.stories,
        began.elapsed().as_secs_f64(),
        sum.stories as f64 / began.elapsed().as_secs_f64(),
        sum.broken.len(),
        ends.join(", "),
        sum.kills,
        sum.calls,
        sum.reached.len(),
        faults.len(),
        steps.len(),
    );
    if !sum.broken.is_empty() {
        let names: Vec<&str> = sum.broken.iter().map(String::as_str).collect();
        println!("BROKEN: {}", names.join(" "));
    }
}

/// A broken story: what broke, what it needs, what came before, and how it is told again.
fn show_broken(name: &str, told: &Told, scratch: &Path) -> std::io::Result<()> {
    let minimal = named(name)?.minimal(scratch)?;
    let until = told.log.iter().position(|line| line.contains("VIOLATION")).map_or(told.log.len(), |at| at + 1);
    let tail = &told.log[until.saturating_sub(TAIL)..until];
    let broken: Vec<String> = told.violations.iter().map(|v| format!("  {v}")).collect();
    println!(
        "STORY {name} BROKE AN INVARIANT\n{}\n  needs: {minimal:?}\n  ends: {}\n  what came before:\n{}\n  again: cargo xtask explore \
         --replay {name}\n  keep it: add the line {name} to sim/regressions.txt\n",
        broken.join("\n"),
        end_word(&told.end),
        tail.join("\n"),
    );
    Ok(())
}

/// One story from its beginning; whether no invariant was broken.
fn replay(name: &str, scratch: &Path) -> std::io::Result<bool> {
    let case = named(name)?;
    let told = case.tell(scratch)?;
    println!(
        "{case:?}\n{}\nend: {:?}\n{} kills, {} calls, {:?} in the world",
        told.log.join("\n"),
        told.end,
        told.kills,
        told.calls,
        told.took
    );
    for violation in &told.violations {
        println!("{violation}");
    }
    if !told.violations.is_empty() {
        println!("needs: {:?}", case.minimal(scratch)?);
    }
    Ok(told.violations.is_empty())
}
