//! What a server keeps: in SQLite with kine's table, or as a member's snapshot and log.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::cluster::Entry;
use crate::apiserver::store::{Op, Store};

/// All that a member knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Which cluster it belongs to; a reset makes another one.
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    pub(crate) term: u64,
    pub(crate) voted: Option<u64>,
    /// The term of the last write.
    pub(crate) last_term: u64,
    pub(crate) store: Store,
}

#[derive(Serialize, Deserialize)]
enum Line {
    Entry(Entry),
    Term { term: u64, voted: Option<u64> },
}

pub(crate) enum Disk {
    Log(Log),
    Sqlite(Box<SqliteConnection>),
}

/// `db/etcd/member`: `snap/state.json`, and the lines since in `wal/log`.
pub(crate) struct Log {
    folder: PathBuf,
    file: File,
    bytes: usize,
    /// Seconds that writes to the disk took.
    pub(crate) took: Vec<f64>,
}

/// The log is folded into the snapshot when it is this long.
const FOLD: usize = 4 << 20;
const SAMPLES: usize = 2000;

fn io(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}

/// A file that is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let part = folder.join(format!(".{}.part", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part).map_err(io(&part))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(&part))?;
    std::fs::rename(&part, path).map_err(io(path))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder))
}

impl Log {
    fn state(folder: &Path) -> PathBuf {
        folder.join("snap/state.json")
    }

    /// Makes a member.
    pub(crate) fn create(folder: &Path, kept: &Kept) -> Result<Self, String> {
        let log = folder.join("wal/log");
        write_whole(&Self::state(folder), &serde_json::to_vec(kept).map_err(|e| e.to_string())?, 0o600)?;
        write_whole(&log, b"", 0o600)?;
        let file = OpenOptions::new().append(true).open(&log).map_err(io(&log))?;
        Ok(Self { folder: folder.to_owned(), file, bytes: 0, took: Vec::new() })
    }

    /// Reads a member; the last line may be torn by a power cut.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Kept), String> {
        let (state, log) = (Self::state(folder), folder.join("wal/log"));
        let bytes = std::fs::read(&state).map_err(io(&state))?;
        let mut kept: Kept = serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", state.display()))?;
        match File::open(&log) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let line = line.map_err(io(&log))?;
                    let Ok(line) = serde_json::from_str(&line) else { break };
                    match line {
                        // From before the snapshot: the fold ended before the log was emptied.
                        Line::Entry(entry) if entry.after <= kept.store.revision => {}
                        Line::Entry(entry) => {
                            kept.last_term = entry.term;
                            entry.ops.into_iter().for_each(|op| kept.store.apply(op));
                        }
                        Line::Term { term, voted } => (kept.term, kept.voted) = (term, voted),
                    }
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io(&log)(e)),
        }
        kept.store.take_written();
        kept.store = kept.store.loaded();
        // Folded at once: so nothing is ever appended after a torn line.
        Ok((Self::create(folder, &kept)?, kept))
    }

    fn append(&mut self, line: &Line) -> Result<(), String> {
        let mut text = serde_json::to_string(line).map_err(|e| e.to_string())?;
        text.push('\n');
        let begun = Instant::now();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(io(&self.folder.join("wal/log")))?;
        self.bytes += text.len();
        if self.took.len() >= SAMPLES {
            self.took.remove(0);
        }
        self.took.push(begun.elapsed().as_secs_f64());
        Ok(())
    }

    fn fold(&mut self, kept: &Kept) -> Result<(), String> {
        let took = std::mem::take(&mut self.took);
        *self = Self::create(&self.folder.clone(), kept)?;
        self.took = took;
        Ok(())
    }
}

impl Disk {
    /// Keeps a write. When this returns, it outlasts a power cut.
    pub(crate) async fn append(&mut self, entry: &Entry, kept: impl Fn() -> Kept + Send) -> Result<(), String> {
        match self {
            Self::Log(log) => tokio::task::block_in_place(|| {
                log.append(&Line::Entry(entry.clone()))?;
                if log.bytes > FOLD { log.fold(&kept()) } else { Ok(()) }
            }),
            Self::Sqlite(connection) => insert(connection, &entry.ops).await.map_err(|e| format!("state.db: {e}")),
        }
    }

    pub(crate) fn term(&mut self, term: u64, voted: Option<u64>) -> Result<(), String> {
        match self {
            Self::Log(log) => tokio::task::block_in_place(|| log.append(&Line::Term { term, voted })),
            Self::Sqlite(_) => Ok(()),
        }
    }

    pub(crate) fn replace(&mut self, kept: &Kept) -> Result<(), String> {
        match self {
            Self::Log(log) => tokio::task::block_in_place(|| log.fold(kept)),
            Self::Sqlite(_) => Err("a database of one server is never replaced by another server's".to_owned()),
        }
    }
}

/// The table as kine has it.
const KINE: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name INTEGER, created INTEGER, \
     deleted INTEGER, create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)",
    "CREATE INDEX IF NOT EXISTS kine_name_index ON kine (name)",
    "CREATE INDEX IF NOT EXISTS kine_name_id_index ON kine (name,id)",
    "CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision_uindex ON kine (name, prev_revision)",
];

/// Opens the database of a single server and reads what it holds.
pub(crate) async fn open_sqlite(path: &Path) -> Result<(Disk, Store), String> {
    let broken = |e: sqlx::Error| format!("{}: {e}", path.display());
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(std::time::Duration::from_secs(30));
    let mut connection = options.connect().await.map_err(broken)?;
    for statement in KINE {
        sqlx::query(statement).execute(&mut connection).await.map_err(broken)?;
    }
    // As kine's compaction leaves it: of each object the last row, and the last of all.
    let newest = "DELETE FROM kine WHERE id NOT IN (SELECT max(id) FROM kine GROUP BY name)";
    sqlx::query(newest).execute(&mut connection).await.map_err(broken)?;
    let rows = sqlx::query("SELECT id, name, deleted, value FROM kine ORDER BY id").fetch_all(&mut connection).await;
    let mut store = Store::default();
    for row in rows.map_err(broken)? {
        let (id, name, deleted, value): (i64, String, i64, Vec<u8>) = (
            row.try_get(0).map_err(broken)?,
            row.try_get(1).map_err(broken)?,
            row.try_get(2).map_err(broken)?,
            row.try_get(3).map_err(broken)?,
        );
        let object = match deleted {
            0 => Some(Arc::new(
                serde_json::from_slice(&value).map_err(|e| format!("{}: row {id}: {e}", path.display()))?,
            )),
            _ => None,
        };
        store.apply(Op { revision: u64::try_from(id).unwrap_or(0), key: name, object });
    }
    store.take_written();
    Ok((Disk::Sqlite(Box::new(connection)), store.loaded()))
}

async fn insert(connection: &mut SqliteConnection, ops: &[Op]) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    for op in ops {
        let id = i64::try_from(op.revision).unwrap_or(i64::MAX);
        let value = op.object.as_ref().map(|o| o.to_string().into_bytes()).unwrap_or_default();
        sqlx::query(
            "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value, old_value) \
             SELECT ?1, ?2, p.id IS NULL, ?3, coalesce(p.create_revision, ?1), coalesce(p.id, 0), 0, ?4, p.value \
             FROM (SELECT 1) LEFT JOIN (SELECT id, create_revision, value FROM kine WHERE name = ?2 ORDER BY id DESC LIMIT 1) p",
        )
        .bind(id)
        .bind(&op.key)
        .bind(op.object.is_none())
        .bind(value)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await
}

/// Moves a member's folder out of the way, as a reset does.
pub(crate) fn set_aside(db: &Path) -> Result<(), String> {
    let (from, to) = (db.join("etcd"), db.join(format!("etcd-old-{}", Timestamp::now().as_second())));
    match std::fs::rename(&from, &to) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io(&from)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(store: &mut Store, key: &str, term: u64) -> Entry {
        store.put(key, json!({ "metadata": { "name": "x" }, "at": store.revision }), Timestamp::UNIX_EPOCH);
        Entry { term, ops: store.take_written(), after: store.revision }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_finds_again_what_it_kept_and_no_torn_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut kept = Kept { cluster: 7, member: 1, term: 1, voted: None, last_term: 0, store: Store::at(0) };
        let mut disk = Disk::Log(Log::create(folder.path(), &kept).expect("made"));
        for key in ["/registry/nodes/a", "/registry/nodes/b"] {
            let entry = entry(&mut kept.store, key, 3);
            disk.append(&entry, || kept.clone()).await.expect("kept");
        }
        disk.term(5, Some(9)).expect("kept");
        let log = folder.path().join("wal/log");
        let mut torn = OpenOptions::new().append(true).open(&log).expect("the log");
        torn.write_all(b"{\"Entry\":{\"term\":9").expect("written");
        let (_, found) = Log::open(folder.path()).expect("opened");
        assert_eq!((found.term, found.voted, found.last_term, found.store.revision), (5, Some(9), 3, 2));
        assert_eq!(found.store.get("/registry/nodes/b"), kept.store.get("/registry/nodes/b"));
        let (_, again) = Log::open(folder.path()).expect("opened");
        assert_eq!(again.store.revision, 2, "folded");
    }

    #[tokio::test]
    async fn a_database_finds_again_what_it_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("db/state.db");
        let (mut disk, mut store) = open_sqlite(&path).await.expect("made");
        for key in ["/registry/nodes/a", "/registry/nodes/b", "/registry/nodes/a"] {
            let entry = entry(&mut store, key, 0);
            disk.append(&entry, || unreachable!()).await.expect("kept");
        }
        store.delete("/registry/nodes/b");
        let ops = store.take_written();
        disk.append(&Entry { term: 0, ops, after: store.revision }, || unreachable!()).await.expect("kept");
        drop(disk);
        let (disk, found) = open_sqlite(&path).await.expect("opened");
        assert_eq!(found.revision, 4);
        assert_eq!(found.get("/registry/nodes/a"), store.get("/registry/nodes/a"));
        assert_eq!(found.get("/registry/nodes/b"), None);
        drop(disk);
    }
}
