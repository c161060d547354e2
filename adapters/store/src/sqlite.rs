//! The state in SQLite.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::{Mutex, MutexGuard};

use kadence_core::apply::plan::{Plan, PlanHash};
use kadence_core::event::{Recorded, Request};
use kadence_core::ident::{ClusterUid, RolloutId};
use kadence_engine::ports::{Store, StoreError, Turn};

use crate::folder;
use crate::turn::{Guard, NoTurn};

/// Each brings the state from the version before to its own, which it writes into `user_version`. Never edited once
/// released: what has to change goes into a new one.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_state.sql")];

/// In `application_id`: whose database this is.
const APPLICATION: i64 = 0x4b64_6e63;

/// How long a write waits for another process's write. Those take milliseconds.
const BUSY: Duration = Duration::from_secs(5);

/// Kadence's state in `kadence.db`.
///
/// One connection, used in turn: events are written one after the other anyway, and SQLite's log lets other processes
/// read meanwhile. Each write is one statement, so that it is there whole or not at all, and on disk when its call
/// returns; a transaction of several would not survive a full disk, where SQLite ends it behind sqlx's back.
pub struct SqliteStore {
    folder: PathBuf,
    connection: Mutex<SqliteConnection>,
    hash_key: [u8; 32],
}

impl SqliteStore {
    /// Opens the state in this folder; makes both if they are not there.
    ///
    /// # Errors
    /// [`Newer`](StoreError::Newer) and [`Broken`](StoreError::Broken) leave everything as it is.
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let at = Place(folder);
        folder::claim(folder).map_err(|e| at.io(&e))?;
        let database = folder.join("kadence.db");
        if !database.try_exists().map_err(|e| at.io(&e))? {
            create(at, &database).await?;
        }
        let mut connection = connect(at, &database).await?;
        let known = async {
            if identify(at, &mut connection).await? < newest() {
                migrate(at, &mut connection).await?;
            }
            Ok(())
        };
        if let Err(error) = known.await {
            // Waited for, so that nothing of ours is left beside a state that we do not touch.
            let _ = connection.close().await;
            return Err(error);
        }
        folder::close_to_others(&database).map_err(|e| at.io(&e))?;
        let hash_key = hash_key(at, &folder.join("hash.key"))?;
        Ok(Self { folder: folder.to_owned(), connection: Mutex::new(connection), hash_key })
    }

    /// The key for hashes that tell whether two secrets are equal. Random, made once, never leaves this folder.
    pub fn hash_key(&self) -> [u8; 32] {
        self.hash_key
    }

    /// Closes the database; what is in its log is moved into `kadence.db`. Without it nothing is lost either.
    pub async fn close(self) {
        if let Err(error) = self.connection.into_inner().close().await {
            tracing::debug!(%error, "closing the state");
        }
    }

    fn at(&self) -> Place<'_> {
        Place(&self.folder)
    }

    async fn connection(&self) -> MutexGuard<'_, SqliteConnection> {
        self.connection.lock().await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn take_turn(&self, cluster: &ClusterUid, holder: &str, at_least: u64) -> Result<Turn, StoreError> {
        let at = self.at();
        let guard = Guard::take(&self.folder.join("turns"), cluster, holder).map_err(|e| match e {
            NoTurn::Held(by) => StoreError::Busy { holder: by.holder, since: by.since },
            NoTurn::Io(e) => at.io(&e),
        })?;
        let mut connection = self.connection().await;
        // Nobody acts on a state that is damaged, and this is the last moment to notice before somebody does.
        let health: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *connection).await.map_err(|e| at.sql(&e))?;
        if health != "ok" {
            return Err(at.damaged(&health));
        }
        // Far above what any cluster will see, and far below what SQLite's integers hold.
        let at_least = i64::try_from(at_least).ok().filter(|n| *n < i64::MAX / 2).ok_or_else(|| {
            at.broken(format!("a node says that it obeyed turn {at_least}, which cannot be: its record is damaged"))
        })?;
        let number: i64 = sqlx::query_scalar(
            "INSERT INTO turn VALUES ($1, $2 + 1) \
             ON CONFLICT (cluster) DO UPDATE SET number = max(number, $2) + 1 RETURNING number",
        )
        .bind(cluster.as_str())
        .bind(at_least)
        .fetch_one(&mut *connection)
        .await
        .map_err(|e| at.sql(&e))?;
        Ok(Turn::new(number.unsigned_abs(), Box::new(guard)))
    }

    async fn append(&self, cluster: &ClusterUid, event: &Recorded) -> Result<(), StoreError> {
        let at = self.at();
        let not_next = || StoreError::NotNext { rollout: event.rollout.clone(), number: event.number };
        let number = i64::try_from(event.number).map_err(|_| not_next())?;
        sqlx::query("INSERT INTO event (cluster, rollout, number, schema, document) VALUES ($1, $2, $3, $4, $5)")
            .bind(cluster.as_str())
            .bind(event.rollout.as_str())
            .bind(number)
            .bind(event.schema)
            .bind(at.write(event)?)
            .execute(&mut *self.connection().await)
            .await
            .map_err(|e| if refused_as(&e, "not the next event") { not_next() } else { at.sql(&e) })?;
        Ok(())
    }

    async fn events(&self, rollout: &RolloutId) -> Result<Vec<Recorded>, StoreError> {
        let at = self.at();
        let rows = sqlx::query("SELECT number, schema, document FROM event WHERE rollout = $1 ORDER BY number")
            .bind(rollout.as_str())
            .fetch_all(&mut *self.connection().await)
            .await
            .map_err(|e| at.sql(&e))?;
        let mut events = Vec::with_capacity(rows.len());
        for (row, expected) in rows.iter().zip(1_i64..) {
            let (number, schema, document): (i64, i64, String) =
                at.row(row, |r| Ok((r.try_get(0)?, r.try_get(1)?, r.try_get(2)?)))?;
            if schema > i64::from(Recorded::SCHEMA) {
                return Err(at.newer(schema, i64::from(Recorded::SCHEMA)));
            }
            let event: Recorded = at.read(&format!("event {number} of {rollout}"), &document)?;
            if number != expected || event.number != expected.unsigned_abs() || event.rollout != *rollout {
                return Err(at.damaged(&format!("event {expected} of {rollout} is missing")));
            }
            events.push(event);
        }
        Ok(events)
    }

    async fn rollouts(&self, cluster: &ClusterUid) -> Result<Vec<RolloutId>, StoreError> {
        let rollouts: Vec<String> =
            sqlx::query_scalar("SELECT rollout FROM event WHERE cluster = $1 AND number = 1 ORDER BY place")
                .bind(cluster.as_str())
                .fetch_all(&mut *self.connection().await)
                .await
                .map_err(|e| self.at().sql(&e))?;
        Ok(rollouts.into_iter().map(RolloutId::new).collect())
    }

    async fn known_uid(&self, name: &str) -> Result<Option<ClusterUid>, StoreError> {
        let uid: Option<String> = sqlx::query_scalar("SELECT uid FROM cluster_name WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *self.connection().await)
            .await
            .map_err(|e| self.at().sql(&e))?;
        Ok(uid.map(ClusterUid::new))
    }

    async fn remember_uid(&self, name: &str, uid: &ClusterUid) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO cluster_name VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET uid = excluded.uid")
            .bind(name)
            .bind(uid.as_str())
            .execute(&mut *self.connection().await)
            .await
            .map_err(|e| self.at().sql(&e))?;
        Ok(())
    }

    async fn save_plan(&self, plan: &Plan) -> Result<PlanHash, StoreError> {
        let hash = plan.hash();
        let document = self.at().write(plan)?;
        // Equal hashes are equal decisions; what was merely seen may be newer, and newer is better.
        sqlx::query("INSERT INTO plan VALUES ($1, $2) ON CONFLICT (hash) DO UPDATE SET document = excluded.document")
            .bind(hash.to_string())
            .bind(document)
            .execute(&mut *self.connection().await)
            .await
            .map_err(|e| self.at().sql(&e))?;
        Ok(hash)
    }

    async fn plans(&self, prefix: &str) -> Result<Vec<Plan>, StoreError> {
        let at = self.at();
        if !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        // `g` comes after every hexadecimal digit, so this is the range of the index that has the prefix.
        let from = prefix.to_ascii_lowercase();
        let rows = sqlx::query("SELECT hash, document FROM plan WHERE hash >= $1 AND hash < $1 || 'g' ORDER BY hash")
            .bind(from)
            .fetch_all(&mut *self.connection().await)
            .await
            .map_err(|e| at.sql(&e))?;
        rows.iter()
            .map(|row| {
                let (hash, document): (String, String) = at.row(row, |r| Ok((r.try_get(0)?, r.try_get(1)?)))?;
                let plan: Plan = at.read(&format!("plan {hash}"), &document)?;
                if plan.hash().to_string() == hash {
                    Ok(plan)
                } else {
                    Err(at.damaged(&format!("plan {hash} is not what its name says any more")))
                }
            })
            .collect()
    }

    async fn request(&self, cluster: &ClusterUid, request: Request) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO request (cluster, document) VALUES ($1, $2)")
            .bind(cluster.as_str())
            .bind(self.at().write(&request)?)
            .execute(&mut *self.connection().await)
            .await
            .map_err(|e| self.at().sql(&e))?;
        Ok(())
    }

    async fn requests(&self, cluster: &ClusterUid) -> Result<Vec<(u64, Request)>, StoreError> {
        let at = self.at();
        sqlx::query("SELECT place, document FROM request WHERE cluster = $1 ORDER BY place")
            .bind(cluster.as_str())
            .fetch_all(&mut *self.connection().await)
            .await
            .map_err(|e| at.sql(&e))?
            .iter()
            .map(|row| {
                let (place, document) = at.row(row, |r| Ok((r.try_get::<i64, _>(0)?, r.try_get::<String, _>(1)?)))?;
                Ok((u64::try_from(place).unwrap_or_default(), at.read("a request", &document)?))
            })
            .collect()
    }

    async fn answered(&self, cluster: &ClusterUid, up_to: u64) -> Result<(), StoreError> {
        let at = self.at();
        sqlx::query("DELETE FROM request WHERE cluster = $1 AND place <= $2")
            .bind(cluster.as_str())
            .bind(i64::try_from(up_to).unwrap_or(i64::MAX))
            .execute(&mut *self.connection().await)
            .await
            .map_err(|e| at.sql(&e))?;
        Ok(())
    }
}

fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Builds a new database under another name and gives it its own when it is whole, so that nobody ever opens half of
/// one, and two that begin at once end with the same.
async fn create(at: Place<'_>, database: &Path) -> Result<(), StoreError> {
    let temporary = folder::beside(database);
    let built = build(at, &temporary).await;
    let linked = built.and_then(|()| folder::link_new(&temporary, database).map_err(|e| at.io(&e)));
    for suffix in ["", "-wal", "-shm"] {
        let mut name = temporary.clone().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
    linked.map(|_| ())
}

async fn build(at: Place<'_>, path: &Path) -> Result<(), StoreError> {
    drop(folder::create_private(path).map_err(|e| at.io(&e))?);
    let mut connection = connect(at, path).await?;
    // Stays with the database.
    sqlx::query("PRAGMA journal_mode = WAL").execute(&mut connection).await.map_err(|e| at.sql(&e))?;
    migrate(at, &mut connection).await?;
    connection.close().await.map_err(|e| at.sql(&e))
}

fn refused_as(error: &sqlx::Error, rule: &str) -> bool {
    error.as_database_error().is_some_and(|answer| answer.message() == rule)
}

async fn connect(at: Place<'_>, database: &Path) -> Result<SqliteConnection, StoreError> {
    SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(false)
        .busy_timeout(BUSY)
        // In WAL mode anything less may lose the last commits with the power.
        .synchronous(SqliteSynchronous::Full)
        .connect()
        .await
        .map_err(|e| at.sql(&e))
}

/// The version of the state, if it is one that we know.
async fn identify(at: Place<'_>, connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let row = sqlx::query("SELECT application_id, user_version FROM pragma_application_id, pragma_user_version")
        .fetch_one(connection)
        .await
        .map_err(|e| at.sql(&e))?;
    let (application, version): (i64, i64) = at.row(&row, |r| Ok((r.try_get(0)?, r.try_get(1)?)))?;
    if application != APPLICATION {
        return Err(at.broken(
            "kadence.db is not a state of Kadence; move it away, or name another folder with --state".to_owned(),
        ));
    }
    if version > newest() {
        return Err(at.newer(version, newest()));
    }
    Ok(version)
}

/// All that is missing, in one transaction.
async fn migrate(at: Place<'_>, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(|e| at.sql(&e))?;
    // Looked at again: another process may have been faster.
    let version: i64 = sqlx::query_scalar("SELECT user_version FROM pragma_user_version")
        .fetch_one(&mut *transaction)
        .await
        .map_err(|e| at.sql(&e))?;
    for sql in MIGRATIONS.iter().copied().skip(usize::try_from(version).unwrap_or(usize::MAX)) {
        sqlx::raw_sql(sql).execute(&mut *transaction).await.map_err(|e| at.sql(&e))?;
    }
    transaction.commit().await.map_err(|e| at.sql(&e))
}

fn hash_key(at: Place<'_>, path: &Path) -> Result<[u8; 32], StoreError> {
    if !path.try_exists().map_err(|e| at.io(&e))? {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| at.broken(format!("no random numbers for hash.key: {e}")))?;
        folder::publish_new(path, &key).map_err(|e| at.io(&e))?;
    }
    folder::close_to_others(path).map_err(|e| at.io(&e))?;
    let bytes = fs_err::read(path).map_err(|e| at.io(&e))?;
    bytes.try_into().map_err(|bytes: Vec<u8>| {
        at.broken(format!(
            "hash.key has {} bytes instead of 32; remove it and a new one is made: plans from before are then refused \
             as changed",
            bytes.len()
        ))
    })
}

/// Where the state is, for errors that say so.
#[derive(Clone, Copy)]
struct Place<'a>(&'a Path);

impl Place<'_> {
    fn path(self) -> String {
        self.0.display().to_string()
    }

    fn broken(self, why: String) -> StoreError {
        StoreError::Broken { path: self.path(), why }
    }

    fn damaged(self, what: &str) -> StoreError {
        self.broken(format!(
            "it is damaged ({what}). Put back a copy of this folder; without one, move kadence.db, kadence.db-wal and \
             kadence.db-shm away and let `kadence resume --adopt` find an unfinished rollout by its marks on the \
             cluster"
        ))
    }

    fn newer(self, theirs: i64, ours: i64) -> StoreError {
        StoreError::Newer { path: self.path(), theirs, ours }
    }

    fn io(self, error: &io::Error) -> StoreError {
        if folder::is_full(error) {
            return StoreError::DiskFull { path: self.path() };
        }
        self.broken(error.to_string())
    }

    fn sql(self, error: &sqlx::Error) -> StoreError {
        let Some(answer) = error.as_database_error() else {
            return self.broken(error.to_string());
        };
        let message = answer.message();
        let code: i32 = answer.code().and_then(|c| c.parse().ok()).unwrap_or_default();
        // SQLite's result codes: the lower byte is the kind, the rest the detail. https://sqlite.org/rescode.html
        match (code, code & 0xff) {
            // FULL, and no room for the index of the log (IOERR_SHMSIZE).
            (_, 13) | (4874, _) => StoreError::DiskFull { path: self.path() },
            // BUSY, LOCKED
            (_, 5 | 6) => self.broken(format!(
                "another process has kept kadence.db locked for {} s; look which one has it open: fuser {}",
                BUSY.as_secs(),
                self.0.join("kadence.db").display()
            )),
            // READONLY, CANTOPEN, PERM
            (_, 3 | 8 | 14) => {
                self.broken(format!("it cannot be written ({message}); check who owns it and its mount"))
            }
            // CONSTRAINT_TRIGGER: one of the log's own rules.
            (1811, _) => self.broken(format!("the log refuses the event: {message}")),
            // CORRUPT, NOTADB
            (_, 11 | 26) => self.damaged(message),
            _ => self.broken(format!("SQLite says: {message} ({code})")),
        }
    }

    fn row<'r, T>(
        self,
        row: &'r sqlx::sqlite::SqliteRow,
        get: impl FnOnce(&'r sqlx::sqlite::SqliteRow) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        get(row).map_err(|e| self.damaged(&e.to_string()))
    }

    fn write<T: Serialize>(self, value: &T) -> Result<String, StoreError> {
        serde_json::to_string(value).map_err(|e| self.broken(format!("what was to be stored has no JSON form: {e}")))
    }

    fn read<T: DeserializeOwned>(self, what: &str, document: &str) -> Result<T, StoreError> {
        serde_json::from_str(document).map_err(|e| self.damaged(&format!("{what} cannot be read: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_waits_for_the_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(folder.path()).await.expect("the state opens");
        let mut connection = store.connection().await;
        let journal: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await.expect("a mode");
        assert_eq!(journal, "wal");
        let synchronous: i64 =
            sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await.expect("a level");
        assert_eq!(synchronous, 2, "FULL");
    }

    #[tokio::test]
    async fn each_migration_says_its_version() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = Place(folder.path());
        let path = folder.path().join("db");
        drop(folder::create_private(&path).expect("made"));
        let mut connection = connect(at, &path).await.expect("connected");
        for (sql, version) in MIGRATIONS.iter().copied().zip(1_i64..) {
            sqlx::raw_sql(sql).execute(&mut connection).await.expect("migrated");
            assert_eq!(identify(at, &mut connection).await, Ok(version));
        }
    }
}
