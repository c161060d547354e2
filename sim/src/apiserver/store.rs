//! The objects of a cluster as JSON, with revisions and the events that watches are made from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use kadence_core::ident::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How many events are remembered; who asks for older ones is told to list again.
const HISTORY: usize = 4000;

/// Objects by key (`/registry/pods/<namespace>/<name>`), at a revision that every write raises.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Store {
    pub(crate) revision: u64,
    objects: BTreeMap<String, Arc<Value>>,
    #[serde(skip)]
    history: VecDeque<Event>,
    /// Events up to this revision are forgotten.
    #[serde(skip)]
    forgotten: u64,
    /// What was written and not taken yet.
    #[serde(skip)]
    written: Vec<Op>,
}

/// One write: exactly what a copy of this store needs to follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) revision: u64,
    pub(crate) key: String,
    /// `None`: it was deleted.
    pub(crate) object: Option<Arc<Value>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) what: &'static str,
    pub(crate) key: String,
    /// As it is now; of a deleted one, as it was last.
    pub(crate) object: Arc<Value>,
}

impl Store {
    /// A store whose first write gets the revision after this one.
    pub(crate) fn at(revision: u64) -> Self {
        Self { revision, forgotten: revision, ..Self::default() }
    }

    /// A copy as it lies on a disk: what came before it is forgotten.
    pub(crate) fn loaded(mut self) -> Self {
        self.forgotten = self.revision;
        self
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.objects.get(key).map(Arc::as_ref)
    }

    pub(crate) fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&String, &Arc<Value>)> + use<'_> {
        let prefix = prefix.to_owned();
        self.objects.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(&prefix))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.objects.keys()
    }

    /// Writes an object; one that is as it was stays as it is. Returns what is stored.
    pub(crate) fn put(&mut self, key: &str, mut object: Value, now: Timestamp) -> Arc<Value> {
        let old = self.objects.get(key);
        let meta = &mut object["metadata"];
        match old {
            Some(old) => {
                for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
                    meta[field] = old["metadata"][field].clone();
                }
                if object == **old {
                    return old.clone();
                }
                if object["spec"] != old["spec"] {
                    object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
                }
            }
            None => {
                if meta["uid"].as_str().is_none_or(str::is_empty) {
                    meta["uid"] = json!(uid(key, self.revision, now));
                }
                if meta["creationTimestamp"].is_null() {
                    meta["creationTimestamp"] = json!(seconds(now));
                }
                meta["generation"] = json!(1);
            }
        }
        let revision = self.revision + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let object = Arc::new(object);
        self.apply(Op { revision, key: key.to_owned(), object: Some(object.clone()) });
        object
    }

    pub(crate) fn delete(&mut self, key: &str) {
        if self.objects.contains_key(key) {
            self.apply(Op { revision: self.revision + 1, key: key.to_owned(), object: None });
        }
    }

    /// Follows a write, here or of the store that this one is a copy of.
    pub(crate) fn apply(&mut self, op: Op) {
        self.revision = op.revision;
        let event = match &op.object {
            Some(object) => {
                let old = self.objects.insert(op.key.clone(), object.clone());
                Some((if old.is_some() { "MODIFIED" } else { "ADDED" }, object.clone()))
            }
            None => self.objects.remove(&op.key).map(|old| {
                let mut gone = (*old).clone();
                gone["metadata"]["resourceVersion"] = json!(op.revision.to_string());
                ("DELETED", Arc::new(gone))
            }),
        };
        if let Some((what, object)) = event {
            self.history.push_back(Event { revision: op.revision, what, key: op.key.clone(), object });
            if self.history.len() > HISTORY {
                self.forgotten = self.history.pop_front().map_or(self.forgotten, |e| e.revision);
            }
        }
        self.written.push(op);
    }

    /// Raises the revision without a write, as writes outside of this store do.
    pub(crate) fn raise(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// The writes since the last time.
    pub(crate) fn take_written(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.written)
    }

    /// The events after a revision; `None` if they are forgotten.
    pub(crate) fn events_after(&self, revision: u64) -> Option<impl Iterator<Item = &Event>> {
        let from = self.history.partition_point(|e| e.revision <= revision);
        (revision >= self.forgotten && revision <= self.revision).then(|| self.history.range(from..))
    }
}

/// Looks like a UUID, and is another one for each object that ever was.
fn uid(key: &str, revision: u64, now: Timestamp) -> String {
    let hash = Digest::of(format!("{key} {revision} {}", now.as_nanosecond()).as_bytes()).short(32);
    format!("{}-{}-4{}-8{}-{}", &hash[..8], &hash[8..12], &hash[13..16], &hash[17..20], &hash[20..32])
}

/// A time as the API writes it.
pub(crate) fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_by_the_writes_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let mut store = Store::at(10);
        let first = store.put("/registry/nodes/s1", json!({ "metadata": { "name": "s1" }, "spec": {} }), now);
        assert_eq!(first["metadata"]["resourceVersion"], "11");
        let same = store.put("/registry/nodes/s1", json!({ "metadata": { "name": "s1" }, "spec": {} }), now);
        assert_eq!((same, store.revision), (first.clone(), 11), "no write without a change");
        let changed = json!({ "metadata": { "name": "s1" }, "spec": { "unschedulable": true } });
        let second = store.put("/registry/nodes/s1", changed, now);
        assert_eq!(
            (&second["metadata"]["uid"], &second["metadata"]["generation"]),
            (&first["metadata"]["uid"], &json!(2))
        );
        store.delete("/registry/nodes/s1");
        store.delete("/registry/nodes/s1");
        let ops = store.take_written();
        assert_eq!(ops.len(), 3);

        let mut copy = Store::at(10);
        for op in ops {
            copy.apply(op);
        }
        assert_eq!((copy.revision, copy.get("/registry/nodes/s1")), (13, None));
        let seen: Vec<_> = copy.events_after(11).expect("remembered").map(|e| (e.revision, e.what)).collect();
        assert_eq!(seen, [(12, "MODIFIED"), (13, "DELETED")]);
        assert!(copy.events_after(9).is_none(), "from before its time");
        assert!(copy.events_after(14).is_none(), "from a future that a restore took back");
    }
}
