//! Measures the outage of the API as a client sees it: every 100 ms a linearizable read and a Lease update, over the
//! servers in turn.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::SignedDuration;
use tokio::time::Instant;

use kadence_core::event::{Gap, OutageMeasured};

use crate::ports::Api;

const PACE: Duration = Duration::from_millis(100);

/// A measurement under way. Dropping it ends it.
pub(crate) struct Probing {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    reads: Line,
    writes: Line,
    probes: u32,
}

#[derive(Default)]
struct Line {
    last_good: Option<Instant>,
    longest: Duration,
    failed: u32,
}

impl Line {
    fn result(&mut self, good: bool, now: Instant) {
        if good {
            if let Some(last) = self.last_good {
                self.longest = self.longest.max(now.saturating_duration_since(last).saturating_sub(PACE));
            }
            self.last_good = Some(now);
        } else {
            self.failed += 1;
        }
    }

    fn gap(&self, now: Instant) -> Gap {
        // A gap that has not ended yet counts as far as it goes.
        let open =
            self.last_good.map_or(Duration::ZERO, |last| now.saturating_duration_since(last).saturating_sub(PACE));
        let longest = self.longest.max(open);
        Gap { longest: SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX), failed: self.failed }
    }
}

impl Probing {
    pub(crate) fn start(api: Arc<dyn Api>, servers: Vec<String>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(probe(api, servers, Arc::clone(&seen)));
        Self { seen, task }
    }

    pub(crate) fn measured(&self) -> OutageMeasured {
        let now = Instant::now();
        self.seen.lock().map_or_else(
            |_| OutageMeasured::default(),
            |seen| OutageMeasured { reads: seen.reads.gap(now), writes: seen.writes.gap(now), probes: seen.probes },
        )
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

async fn probe(api: Arc<dyn Api>, servers: Vec<String>, seen: Arc<Mutex<Seen>>) {
    if servers.is_empty() {
        return;
    }
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut turn = 0;
    let mut running = FuturesUnordered::new();
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
            }
        }
    }
}
