//! What earlier versions wrote is read by this one.
//!
//! `golden/<version>/` holds what that version of Kadence wrote: a log with one of each event, and plans. The folders
//! of released versions are never edited. `KADENCE_GOLDEN=write` writes the one of this version.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use kadence_core::apply::plan::Plan;
use kadence_core::event::{Event, Recorded};
use kadence_engine::contract::sample;
use kadence_engine::ports::Store;
use kadence_store::SqliteStore;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(golden())
        .expect("the golden files")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

fn read<T: DeserializeOwned>(file: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(file).expect("a golden file");
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|e| unreachable!("{}:{}: {e}", file.display(), number + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

fn lines<T: Serialize>(values: &[T]) -> String {
    values.iter().map(|v| serde_json::to_string(v).expect("json") + "\n").collect()
}

#[test]
fn this_version_writes_what_its_golden_files_say() {
    let folder = golden().join(env!("CARGO_PKG_VERSION"));
    let now = [("events.jsonl", lines(&sample::log())), ("plans.jsonl", lines(&sample::plans()))];
    if std::env::var_os("KADENCE_GOLDEN").is_some() {
        std::fs::create_dir_all(&folder).expect("made");
        for (name, text) in &now {
            std::fs::write(folder.join(name), text).expect("written");
        }
    }
    for (name, text) in now {
        let file = folder.join(name);
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        for (number, (golden, now)) in golden.lines().zip(text.lines()).enumerate() {
            assert_eq!(golden, now, "{}:{} is written differently now", file.display(), number + 1);
        }
        assert_eq!(
            golden.lines().count(),
            text.lines().count(),
            "{}: other samples; see the head of this test",
            file.display()
        );
    }
}

#[test]
fn every_version_is_read() {
    let folders = folders();
    assert!(folders.iter().any(|f| f.ends_with(env!("CARGO_PKG_VERSION"))), "no golden files of this version");
    for folder in folders {
        let log: Vec<Recorded> = read(&folder.join("events.jsonl"));
        assert!(log.iter().zip(1..).all(|(event, number)| event.number == number), "{}", folder.display());
        let Event::Started { plan, plan_hash, .. } = &log[0].event else {
            unreachable!("{}: the first event is the start", folder.display());
        };
        // A plan is found and approved by its hash: a field added to a decision must not change the hash of old ones.
        assert_eq!(plan.hash(), *plan_hash, "{}", folder.display());
        assert!(!read::<Plan>(&folder.join("plans.jsonl")).is_empty());
    }
}

#[tokio::test]
async fn a_log_of_every_version_goes_through_the_store() {
    for folder in folders() {
        let log: Vec<Recorded> = read(&folder.join("events.jsonl"));
        let plans: Vec<Plan> = read(&folder.join("plans.jsonl"));
        let state = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(state.path()).await.expect("the state opens");
        for event in &log {
            store.append(&sample::cluster(), event).await.expect("appended");
        }
        for plan in &plans {
            store.save_plan(plan).await.expect("saved");
        }
        assert_eq!(store.events(&log[0].rollout).await.expect("events"), log);
        assert_eq!(store.plans("").await.expect("plans").len(), plans.len());
    }
}
