//! Measures the outage of the API as a client sees it: every 100 ms a linearizable read and a Lease update, over the
//! servers in turn.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::SignedDuration;
use tokio::time::Instant;

use kadence_core::event::{Gap, OutageMeasured};

use crate::ports::{Api, Observer, Progress};

const PACE: Duration = Duration::from_millis(100);
/// How often a gap that grows is told.
const TELL: Duration = Duration::from_millis(500);

/// A measurement under way. Dropping it ends it.
pub(crate) struct Probing {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

struct Seen {
    reads: Line,
    writes: Line,
    probes: u32,
}

struct Line {
    /// The last success; before the first one, when the probing began: what fails from then on is an outage, too.
    since: Instant,
    longest: Duration,
    failed: u32,
}

impl Line {
    fn new(began: Instant) -> Self {
        Self { since: began, longest: Duration::ZERO, failed: 0 }
    }

    fn result(&mut self, good: bool, now: Instant) {
        if good {
            self.longest = self.longest.max(self.open(now));
            self.since = now;
        } else {
            self.failed += 1;
        }
    }

    /// How long the gap is that goes on now.
    fn open(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since).saturating_sub(PACE)
    }

    fn gap(&self, now: Instant) -> Gap {
        let longest = self.longest.max(self.open(now));
        Gap { longest: SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX), failed: self.failed }
    }
}

impl Seen {
    fn new(began: Instant) -> Self {
        Self { reads: Line::new(began), writes: Line::new(began), probes: 0 }
    }

    fn measured(&self, now: Instant) -> OutageMeasured {
        OutageMeasured { reads: self.reads.gap(now), writes: self.writes.gap(now), probes: self.probes }
    }

    /// What was counted since it was last taken. The longest gap is that of the whole time: a gap may go on.
    fn take(&mut self, now: Instant) -> Option<OutageMeasured> {
        let measured = self.measured(now);
        (self.probes, self.reads.failed, self.writes.failed) = (0, 0, 0);
        (measured != OutageMeasured::default()).then_some(measured)
    }
}

impl Probing {
    /// Begins; nobody is asked, and nothing measured, where no server is known. `so_far` was measured before, and counts
    /// in what the observer is told.
    pub(crate) fn start(
        api: Arc<dyn Api>,
        servers: Vec<String>,
        so_far: OutageMeasured,
        observer: Arc<dyn Observer>,
    ) -> Option<Self> {
        if servers.is_empty() {
            return None;
        }
        let seen = Arc::new(Mutex::new(Seen::new(Instant::now())));
        let task = tokio::spawn(probe(api, servers, Arc::clone(&seen), so_far, observer));
        Some(Self { seen, task })
    }

    /// What was measured since this was last asked, for the log.
    pub(crate) fn take(&self) -> Option<OutageMeasured> {
        self.seen.lock().ok()?.take(Instant::now())
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
}

async fn probe(
    api: Arc<dyn Api>,
    servers: Vec<String>,
    seen: Arc<Mutex<Seen>>,
    so_far: OutageMeasured,
    observer: Arc<dyn Observer>,
) {
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut turn = 0;
    let mut running = FuturesUnordered::new();
    let mut told = (Instant::now(), so_far);
    loop {
        tokio::select! {
            biased;
            Some((kind, good)) = running.next(), if !running.is_empty() => {
                if let Ok(mut seen) = seen.lock() {
                    let now = Instant::now();
                    match kind {
                        Kind::Read => {
                            seen.reads.result(good, now);
                            seen.probes += 1;
                        }
                        Kind::Write => seen.writes.result(good, now),
                    }
                }
            }
            _ = ticks.tick() => {
                let address = servers[turn % servers.len()].clone();
                turn += 1;
                // Each counts when it ends: a write that a starting server lets hang says nothing about reads.
                let (reader, writer, at) = (Arc::clone(&api), Arc::clone(&api), address.clone());
                running.push(async move { (Kind::Read, reader.probe_read(&at).await.is_ok()) }.boxed());
                running.push(async move { (Kind::Write, writer.probe_write(&address).await.is_ok()) }.boxed());
                let now = Instant::now();
                let Some(measured) = seen.lock().ok().map(|seen| so_far.and(seen.measured(now))) else { return };
                let longer = measured.reads.longest > told.1.reads.longest
                    || measured.writes.longest > told.1.writes.longest;
                if longer && now.duration_since(told.0) >= TELL {
                    told = (now, measured);
                    observer.progress(&Progress::Outage(measured));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(began: Instant, millis: u64) -> Instant {
        began + Duration::from_millis(millis)
    }

    fn longest(line: &Line, now: Instant) -> i128 {
        line.gap(now).longest.as_millis()
    }

    #[test]
    fn what_never_succeeded_is_away_since_the_probing_began() {
        let began = Instant::now();
        let mut line = Line::new(began);
        for tick in 1..=50 {
            line.result(false, after(began, tick * 100));
        }
        assert_eq!(longest(&line, after(began, 5_000)), 4_900);
        line.result(true, after(began, 6_100));
        line.result(true, after(began, 6_200));
        assert_eq!(longest(&line, after(began, 6_250)), 6_000, "and it stays the longest");
    }

    #[test]
    fn counts_are_taken_once_and_a_gap_that_goes_on_is_told_again_with_all_of_its_length() {
        let began = Instant::now();
        let mut seen = Seen::new(began);
        seen.reads.result(true, after(began, 100));
        seen.reads.result(false, after(began, 200));
        seen.probes = 2;
        let first = seen.take(after(began, 1_200)).expect("measured");
        seen.reads.result(false, after(began, 1_300));
        seen.probes = 1;
        let second = seen.take(after(began, 2_200)).expect("measured");
        let all = first.and(second);
        assert_eq!((all.probes, all.reads.failed), (3, 2));
        assert_eq!(all.reads.longest, SignedDuration::from_secs(2));
    }

    #[test]
    fn nothing_measured_is_nothing_to_store() {
        let began = Instant::now();
        assert_eq!(Seen::new(began).take(began), None);
    }
}
