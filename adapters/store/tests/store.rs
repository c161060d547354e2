//! The state in SQLite, as files and processes meet it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use kadence_core::event::{Event, Recorded};
use kadence_core::ident::{Digest, RolloutId};
use kadence_engine::contract::{sample, store};
use kadence_engine::ports::{Store, StoreError};
use kadence_store::SqliteStore;

mod mount;

async fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(folder).await.expect("the state opens")
}

async fn refusal(folder: &Path) -> StoreError {
    SqliteStore::open(folder).await.err().expect("the state is refused")
}

/// The database as anybody else could open it.
async fn raw(folder: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(folder.join("kadence.db")).connect().await.expect("the database opens")
}

fn event(number: u64) -> Recorded {
    sample::recorded(&sample::rollout(), number, Event::TurnTaken { turn: number, holder: String::new() })
}

async fn append(store: &SqliteStore, number: u64) -> Result<(), StoreError> {
    store.append(&sample::cluster(), &event(number)).await
}

async fn numbers(store: &SqliteStore) -> Vec<u64> {
    store.events(&sample::rollout()).await.expect("events").iter().map(|e| e.number).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

/// Everything in the folder, with contents.
fn contents(folder: &Path) -> BTreeMap<String, Digest> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry"));
    entries
        .map(|e| {
            (e.file_name().to_string_lossy().into_owned(), Digest::of(&std::fs::read(e.path()).unwrap_or_default()))
        })
        .collect()
}

async fn handles() -> store::Handles {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two] = [Arc::new(open(folder.path()).await), Arc::new(open(folder.path()).await)];
    store::Handles { one, two, keep: Box::new(folder) }
}

#[tokio::test]
async fn does_what_every_store_does() {
    store::suite(handles).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_append_at_once_make_no_gap() {
    store::race(&handles().await, 40).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_interleaving_makes_a_gap(turns in proptest::collection::vec(any::<bool>(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { store::interleave(&handles().await, &turns).await });
    }
}

#[tokio::test]
async fn the_state_is_ours_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("deep/state");
    let store = open(&state).await;
    append(&store, 1).await.expect("appended");
    let turn = store.take_turn(&sample::cluster(), "eva@here", 0).await.expect("a turn");
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("turns")), 0o700);
    let files = ["kadence.db", "kadence.db-wal", "kadence.db-shm", "hash.key"].map(|name| state.join(name));
    let lock = state.join("turns").join(format!("{}.lock", sample::cluster()));
    for file in files.iter().chain([&lock]) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    drop(turn);
    store.close().await;

    for file in ["kadence.db", "hash.key"] {
        std::fs::set_permissions(state.join(file), PermissionsExt::from_mode(0o644)).expect("chmod");
    }
    open(&state).await;
    for file in ["kadence.db", "hash.key"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file} is closed to others again");
    }
}

#[tokio::test]
async fn everything_outlives_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = open(folder.path()).await;
    let key = first.hash_key();
    append(&first, 1).await.expect("appended");
    first.save_plan(&sample::plan()).await.expect("saved");
    drop(first.take_turn(&sample::cluster(), "eva@here", 7).await.expect("a turn"));
    first.close().await;

    let second = open(folder.path()).await;
    assert_eq!(second.hash_key(), key);
    assert_ne!(key, [0; 32]);
    assert_eq!(numbers(&second).await, [1]);
    assert_eq!(second.plans("").await, Ok(vec![sample::plan()]));
    assert_eq!(second.take_turn(&sample::cluster(), "eva@here", 0).await.expect("a turn").number, 9);
    let elsewhere = tempfile::tempdir().expect("a folder");
    assert_ne!(open(elsewhere.path()).await.hash_key(), key, "every state has its own");
}

#[tokio::test]
async fn many_may_begin_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let (a, b, c, d) = tokio::join!(open(&state), open(&state), open(&state), open(&state));
    append(&a, 1).await.expect("appended");
    for store in [&b, &c, &d] {
        assert_eq!(numbers(store).await, [1], "all have the same state");
        assert_eq!(store.hash_key(), a.hash_key());
    }
    let left: Vec<_> = contents(&state).into_keys().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_newer_state_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).await;
    append(&store, 1).await.expect("appended");
    store.close().await;
    let mut newer = raw(folder.path()).await;
    sqlx::raw_sql("ALTER TABLE event ADD COLUMN mood TEXT; PRAGMA user_version = 99")
        .execute(&mut newer)
        .await
        .expect("a newer state");
    newer.close().await.expect("closed");
    std::fs::remove_file(folder.path().join("hash.key")).expect("removed");

    let before = contents(folder.path());
    let path = folder.path().display().to_string();
    let refused = refusal(folder.path()).await;
    assert_eq!(refused, StoreError::Newer { path, theirs: 99, ours: 1 });
    assert_eq!(refused.to_string().matches("newer Kadence").count(), 1);
    assert_eq!(contents(folder.path()), before);
}

#[tokio::test]
async fn an_event_of_a_newer_shape_is_not_guessed_at() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).await;
    let mut newer = event(1);
    newer.schema = Recorded::SCHEMA + 1;
    store.append(&sample::cluster(), &newer).await.expect("appended");
    assert!(matches!(store.events(&sample::rollout()).await, Err(StoreError::Newer { theirs: 2, ours: 1, .. })));
}

#[track_caller]
fn broken(error: &StoreError, words: &[&str]) {
    let StoreError::Broken { why, .. } = error else {
        unreachable!("expected Broken, got {error:?}");
    };
    for word in words {
        assert!(why.contains(word), "`{word}` is not in: {why}");
    }
}

#[tokio::test]
async fn what_is_no_state_is_refused_and_kept() {
    let kinds: [(&str, &[u8], &str); 3] = [
        ("text", b"clusters: {}\nthis is no database, but long enough to look at\n", "damaged"),
        ("empty", b"", "not a state"),
        ("cut", b"SQLite format 3\0", "damaged"),
    ];
    for (kind, bytes, word) in kinds {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("kadence.db"), bytes).expect("written");
        broken(&refusal(folder.path()).await, &[word]);
        assert_eq!(std::fs::read(folder.path().join("kadence.db")).expect("still there"), bytes, "{kind}");
    }

    let folder = tempfile::tempdir().expect("a folder");
    let other = SqliteConnectOptions::new().filename(folder.path().join("kadence.db")).create_if_missing(true);
    let mut other = other.connect().await.expect("a database");
    sqlx::raw_sql("CREATE TABLE song (title TEXT)").execute(&mut other).await.expect("a table");
    other.close().await.expect("closed");
    broken(&refusal(folder.path()).await, &["not a state of Kadence", "--state"]);
}

#[tokio::test]
async fn damage_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).await;
    for number in 1..=200 {
        append(&store, number).await.expect("appended");
    }
    store.close().await;
    let database = folder.path().join("kadence.db");
    let good = std::fs::read(&database).expect("the database");

    // Cut short: seen at once.
    std::fs::write(&database, &good[..good.len() / 2]).expect("written");
    broken(&refusal(folder.path()).await, &["damaged", "resume --adopt"]);

    // Overwritten inside: seen when it is read, and before anybody acts.
    let mut bad = good.clone();
    let half = bad.len() / 2;
    bad[half..].fill(0x5a);
    std::fs::write(&database, &bad).expect("written");
    let store = open(folder.path()).await;
    broken(&store.events(&sample::rollout()).await.expect_err("damaged"), &["damaged"]);
    let turn = store.take_turn(&sample::cluster(), "eva@here", 0).await;
    broken(&turn.err().expect("no turn on a damaged state"), &["damaged", "resume --adopt"]);
}

#[tokio::test]
async fn nobody_can_make_a_gap_or_change_what_happened() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path()).await;
    append(&store, 1).await.expect("appended");
    append(&store, 2).await.expect("appended");
    let mut other = raw(folder.path()).await;
    for sql in [
        "INSERT INTO event (cluster, rollout, number, schema, document) SELECT cluster, rollout, 4, 1, '{}' FROM event",
        "INSERT INTO event (cluster, rollout, number, schema, document) VALUES ('c', 'new', 2, 1, '{}')",
        "INSERT INTO event (cluster, rollout, number, schema, document) VALUES ('c', 'new', 1, 1, 'no json')",
        "UPDATE event SET document = '{}'",
        "DELETE FROM event WHERE number = 2",
    ] {
        assert!(sqlx::query(sql).execute(&mut other).await.is_err(), "{sql}");
    }
    assert_eq!(numbers(&store).await, [1, 2]);
}

#[tokio::test]
async fn a_folder_that_others_can_change_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for bad in [0o770, 0o702, 0o777] {
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(bad)).expect("chmod");
        broken(&refusal(folder.path()).await, &["others may write", "chmod 0700"]);
    }
    assert!(contents(folder.path()).is_empty(), "nothing was made in it");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    broken(&refusal(&file).await, &["not a folder"]);

    if mount::root("a folder of somebody else") {
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).expect("chmod");
        std::os::unix::fs::chown(folder.path(), Some(12_345), None).expect("chown");
        broken(&refusal(folder.path()).await, &["belongs to uid 12345", "uid 0"]);
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    // Root may write into any folder but one that is mounted read-only.
    if !mount::root("a read-only folder") {
        return;
    }
    let disk = mount::Tmpfs::new("4m");
    let state = disk.path().join("state");
    let store = open(&state).await;
    append(&store, 1).await.expect("appended");
    store.close().await;
    disk.remount("ro");
    broken(&refusal(&state).await, &["cannot be written"]);
    broken(&refusal(&disk.path().join("new")).await, &["cannot be made", "ead-only"]);
    disk.remount("rw");
    assert_eq!(numbers(&open(&state).await).await, [1]);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_said() {
    if !mount::root("a full disk") {
        return;
    }
    let disk = mount::Tmpfs::new("1m");
    let state = disk.path().join("state");
    let full = StoreError::DiskFull { path: state.display().to_string() };
    let store = open(&state).await;
    let mut stored = 0;
    let error = loop {
        match append(&store, stored + 1).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, full);
    assert!(stored > 50, "{stored} fit");
    assert_eq!(store.save_plan(&sample::plan()).await, Err(full.clone()));
    assert_eq!(numbers(&store).await, (1..=stored).collect::<Vec<_>>());

    // Closing moves the log into the database, which makes room; then it goes on where it stopped.
    store.close().await;
    disk.remount("size=4m");
    let store = open(&state).await;
    assert_eq!(append(&store, stored + 1).await, Ok(()));
    assert_eq!(numbers(&store).await, (1..=stored + 1).collect::<Vec<_>>());
    store.close().await;

    // No room even for a new state: nothing half-made is left.
    let small = mount::Tmpfs::new("32k");
    let state = small.path().join("state");
    assert_eq!(refusal(&state).await, StoreError::DiskFull { path: state.display().to_string() });
    assert_eq!(contents(&state), BTreeMap::new());
    small.remount("size=1m");
    open(&state).await.close().await;
}

#[tokio::test]
async fn the_same_handle_goes_on_after_a_full_disk() {
    if !mount::root("a full disk that is emptied") {
        return;
    }
    let disk = mount::Tmpfs::new("1m");
    let store = open(&disk.path().join("state")).await;
    let mut stored = 0;
    while append(&store, stored + 1).await.is_ok() {
        stored += 1;
    }
    disk.remount("size=4m");
    assert_eq!(append(&store, stored + 1).await, Ok(()), "no transaction was left open");
    assert_eq!(numbers(&store).await, (1..=stored + 1).collect::<Vec<_>>());
    store.close().await;
}

/// Starts [`writer`] in a process of its own.
fn start_writer(folder: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "writer", "--ignored", "--nocapture"])
        .env("KADENCE_TEST_WRITER", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process")
}

#[expect(clippy::print_stdout, reason = "its standard output is read by the test that starts it")]
#[tokio::test]
#[ignore = "the process that a_killed_writer_loses_nothing starts and kills"]
async fn writer() {
    let folder = std::env::var_os("KADENCE_TEST_WRITER").expect("started by a test, with the folder");
    let store = open(Path::new(&folder)).await;
    let _turn = store.take_turn(&sample::cluster(), "the writer", 0).await.expect("a turn");
    for number in store.events(&sample::rollout()).await.expect("events").len() as u64 + 1.. {
        append(&store, number).await.expect("appended");
        println!("stored {number}");
    }
}

#[tokio::test]
async fn a_killed_writer_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut before = 0;
    for (round, more) in [1, 7, 60, 3, 25].into_iter().enumerate() {
        let mut child = start_writer(folder.path());
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        // The test harness writes its own words on the first line, before ours.
        let mut stored = || {
            lines.find_map(|line| line.expect("a line").split_once("stored ")?.1.parse::<u64>().ok()).expect("an event")
        };
        while stored() < before + more {}
        let mine = open(folder.path()).await;
        match mine.take_turn(&sample::cluster(), "the test", 0).await {
            Err(StoreError::Busy { holder, .. }) => assert_eq!(holder, "the writer"),
            other => unreachable!("the writer lives and has the turn: {:?}", other.map(|t| t.number)),
        }
        child.kill().expect("killed");
        child.wait().expect("gone");

        let numbers = numbers(&mine).await;
        let last = *numbers.last().expect("events");
        assert_eq!(numbers, (1..=last).collect::<Vec<_>>());
        assert!(last >= before + more, "{last} of {}: what was acknowledged is there", before + more);
        before = last;
        let turn = mine.take_turn(&sample::cluster(), "the test", 0).await.expect("free by itself");
        assert_eq!(turn.number, 2 * (round as u64 + 1));
    }
}

#[expect(clippy::print_stdout, reason = "figures are for a person")]
#[tokio::test]
#[ignore = "a measurement: cargo test --release -p kadence-store --test store figures -- --ignored --nocapture"]
async fn figures() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on the disk");
    let state = folder.path().join("state");
    let median = |mut of: Vec<std::time::Duration>| {
        of.sort();
        (of[of.len() / 2], of[of.len() * 99 / 100])
    };
    let begin = std::time::Instant::now();
    let store = open(&state).await;
    println!("first open {:?}", begin.elapsed());
    let log = sample::log();
    let mut appends = Vec::new();
    for round in 0..20 {
        for event in &log {
            let mut event = event.clone();
            event.rollout = RolloutId::new(format!("rollout-{round}"));
            let begin = std::time::Instant::now();
            store.append(&sample::cluster(), &event).await.expect("appended");
            appends.push(begin.elapsed());
        }
    }
    println!("append, {} events, median and 99th: {:?}", appends.len(), median(appends));
    let begin = std::time::Instant::now();
    store.events(&"rollout-7".into()).await.expect("events");
    println!("read {} events {:?}", log.len(), begin.elapsed());
    let mut turns = Vec::new();
    for _ in 0..20 {
        let begin = std::time::Instant::now();
        drop(store.take_turn(&sample::cluster(), "eva@here", 0).await.expect("a turn"));
        turns.push(begin.elapsed());
    }
    println!("take a turn, median and 99th: {:?}", median(turns));
    store.close().await;
    let mut opens = Vec::new();
    for _ in 0..50 {
        let begin = std::time::Instant::now();
        let store = open(&state).await;
        opens.push(begin.elapsed());
        store.close().await;
    }
    println!("open again, median and 99th: {:?}", median(opens));
    let size = std::fs::metadata(state.join("kadence.db")).expect("the database").len();
    println!("database {} kB", size / 1000);
}
