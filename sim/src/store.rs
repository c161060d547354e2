//! Kadence's state in memory: the store of the simulated world.
//!
//! It outlives the simulated Kadence that uses it, as a disk does: kill the one, and give the other to the next.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use kadence_core::apply::plan::{Plan, PlanHash};
use kadence_core::event::{Recorded, Request};
use kadence_core::ident::{ClusterUid, RolloutId};
use kadence_engine::ports::{Clock, Store, StoreError, Turn};

/// A store in memory. Clones are handles on the same state.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    logs: BTreeMap<RolloutId, (ClusterUid, Vec<Recorded>)>,
    /// In the order of their first events.
    rollouts: Vec<RolloutId>,
    plans: BTreeMap<String, Plan>,
    requests: Vec<(u64, ClusterUid, Request)>,
    /// Requests so far, over all clusters: the place of the last one.
    asked: u64,
    uids: BTreeMap<String, ClusterUid>,
    turns: BTreeMap<ClusterUid, u64>,
    holders: BTreeMap<ClusterUid, (String, String)>,
    appends: u64,
    disk_full: Range<u64>,
}

impl MemoryStore {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Arc::default(), clock }
    }

    /// Lets these appends fail because the disk is full: counted from 1, over all rollouts, failed ones included.
    /// `3..4` fails the third, `3..u64::MAX` that and all after it.
    pub fn fail_appends(&self, which: Range<u64>) {
        self.state().disk_full = which;
    }

    /// How many appends were tried so far.
    pub fn appends(&self) -> u64 {
        self.state().appends
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the state is, for errors.
const MEMORY: &str = "memory";

struct Guard {
    state: Arc<Mutex<State>>,
    cluster: ClusterUid,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).holders.remove(&self.cluster);
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn take_turn(&self, cluster: &ClusterUid, holder: &str, at_least: u64) -> Result<Turn, StoreError> {
        let mut state = self.state();
        if let Some((holder, since)) = state.holders.get(cluster) {
            return Err(StoreError::Busy { holder: holder.clone(), since: since.clone() });
        }
        let stored = state.turns.get(cluster).copied().unwrap_or_default();
        let number = stored.max(at_least).checked_add(1).ok_or_else(|| StoreError::Broken {
            path: MEMORY.to_owned(),
            why: format!("the turn {at_least} that a node has seen is too high to come after"),
        })?;
        state.turns.insert(cluster.clone(), number);
        state.holders.insert(cluster.clone(), (holder.to_owned(), self.clock.now().to_string()));
        let guard = Guard { state: Arc::clone(&self.state), cluster: cluster.clone() };
        Ok(Turn::new(number, Box::new(guard)))
    }

    async fn append(&self, cluster: &ClusterUid, event: &Recorded) -> Result<(), StoreError> {
        let mut state = self.state();
        state.appends += 1;
        if state.disk_full.contains(&state.appends) {
            return Err(StoreError::DiskFull { path: MEMORY.to_owned() });
        }
        let state = &mut *state;
        let last = state.logs.get(&event.rollout).map_or(0, |(_, log)| log.len() as u64);
        if event.number != last + 1 {
            return Err(StoreError::NotNext { rollout: event.rollout.clone(), number: event.number });
        }
        let (owner, log) = state.logs.entry(event.rollout.clone()).or_insert_with(|| {
            state.rollouts.push(event.rollout.clone());
            (cluster.clone(), Vec::new())
        });
        if owner != cluster {
            let why = format!("rollout {} is one of cluster {owner}, not of {cluster}", event.rollout);
            return Err(StoreError::Broken { path: MEMORY.to_owned(), why });
        }
        log.push(event.clone());
        Ok(())
    }

    async fn events(&self, rollout: &RolloutId) -> Result<Vec<Recorded>, StoreError> {
        Ok(self.state().logs.get(rollout).map(|(_, log)| log.clone()).unwrap_or_default())
    }

    async fn rollouts(&self, cluster: &ClusterUid) -> Result<Vec<RolloutId>, StoreError> {
        let state = self.state();
        let of_cluster = |rollout: &&RolloutId| state.logs.get(*rollout).is_some_and(|(owner, _)| owner == cluster);
        Ok(state.rollouts.iter().filter(of_cluster).cloned().collect())
    }

    async fn known_uid(&self, name: &str) -> Result<Option<ClusterUid>, StoreError> {
        Ok(self.state().uids.get(name).cloned())
    }

    async fn remember_uid(&self, name: &str, uid: &ClusterUid) -> Result<(), StoreError> {
        self.state().uids.insert(name.to_owned(), uid.clone());
        Ok(())
    }

    async fn save_plan(&self, plan: &Plan) -> Result<PlanHash, StoreError> {
        let hash = plan.hash();
        self.state().plans.insert(hash.to_string(), plan.clone());
        Ok(hash)
    }

    async fn plans(&self, prefix: &str) -> Result<Vec<Plan>, StoreError> {
        let prefix = prefix.to_ascii_lowercase();
        let state = self.state();
        let found = state.plans.range(prefix.clone()..).take_while(|(hash, _)| hash.starts_with(&prefix));
        Ok(found.map(|(_, plan)| plan.clone()).collect())
    }

    async fn request(&self, cluster: &ClusterUid, request: Request) -> Result<(), StoreError> {
        let mut state = self.state();
        state.asked += 1;
        let place = state.asked;
        state.requests.push((place, cluster.clone(), request));
        Ok(())
    }

    async fn requests(&self, cluster: &ClusterUid) -> Result<Vec<(u64, Request)>, StoreError> {
        let state = self.state();
        let of = state.requests.iter().filter(|(_, of, _)| of == cluster);
        Ok(of.map(|(place, _, request)| (*place, *request)).collect())
    }

    async fn answered(&self, cluster: &ClusterUid, up_to: u64) -> Result<(), StoreError> {
        self.state().requests.retain(|(place, of, _)| of != cluster || *place > up_to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kadence_core::event::Event;
    use kadence_engine::contract::{sample, store};
    use proptest::prelude::*;

    use super::*;

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    fn handles() -> store::Handles {
        let one = MemoryStore::new(Arc::new(Stopped));
        store::Handles { two: Arc::new(one.clone()), one: Arc::new(one), keep: Box::new(()) }
    }

    #[tokio::test]
    async fn does_what_every_store_does() {
        store::suite(async || handles()).await;
        store::race(&handles(), 50).await;
    }

    #[tokio::test]
    async fn the_disk_is_full_when_it_was_told_to_be() {
        let store = MemoryStore::new(Arc::new(Stopped));
        store.fail_appends(2..4);
        let append = async |number| {
            store.append(&sample::cluster(), &sample::recorded(&sample::rollout(), number, Event::Resumed)).await
        };
        let full = Err(StoreError::DiskFull { path: "memory".to_owned() });
        assert_eq!(append(1).await, Ok(()));
        assert_eq!(append(2).await, full);
        assert_eq!(append(2).await, full);
        assert_eq!(append(2).await, Ok(()), "nothing of the failed ones was kept");
        assert_eq!(store.appends(), 4);
    }

    proptest! {
        #[test]
        fn no_interleaving_makes_a_gap(turns in proptest::collection::vec(any::<bool>(), 0..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(store::interleave(&handles(), &turns));
        }
    }
}
