//! Backups of the simulated world. They are kept in memory, and not encrypted: nothing in them is true.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::World;
use kadence_core::apply::action::BackupReceipt;
use kadence_core::apply::backup::SqliteFacts;
use kadence_core::ident::Digest;
use kadence_engine::ports::{Vault, VaultError};

use crate::sqlite;

/// A vault in memory. Only its scratch folders are real, because the engine reads backups there before it keeps them.
pub struct MemoryVault {
    scratch: PathBuf,
    kept: Mutex<Kept>,
    /// Who judges whether a backup is off its node.
    world: Option<World>,
}

#[derive(Default)]
struct Kept {
    files: BTreeMap<(String, String), Vec<u8>>,
    pages: BTreeMap<String, String>,
    scratch_made: u64,
    scratch: BTreeSet<PathBuf>,
    keeps: u64,
    disk_full: Range<u64>,
}

impl MemoryVault {
    /// Makes scratch folders in this one, which the caller removes in the end.
    pub fn new(scratch: PathBuf) -> Self {
        Self { scratch, kept: Mutex::default(), world: None }
    }

    /// One that tells the world what is put into it.
    pub fn of(world: World, scratch: PathBuf) -> Self {
        Self { world: Some(world), ..Self::new(scratch) }
    }

    /// Lets these calls of `keep` fail because the disk is full: counted from 1, `2..3` fails the second.
    pub fn fail_keeps(&self, which: Range<u64>) {
        self.kept().disk_full = which;
    }

    /// Somebody deletes a file of a backup. `false` if it was not there.
    pub fn lose(&self, backup: &str, file: &str) -> bool {
        self.kept().files.remove(&(backup.to_owned(), file.to_owned())).is_some()
    }

    /// The page that lies beside a backup.
    pub fn page(&self, backup: &str) -> Option<String> {
        self.kept().pages.get(backup).cloned()
    }

    /// The pages that lie beside all backups.
    pub fn pages(&self) -> Vec<String> {
        self.kept().pages.values().cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Vault for MemoryVault {
    fn scratch(&self) -> Result<PathBuf, VaultError> {
        let mut kept = self.kept();
        kept.scratch_made += 1;
        let path = self.scratch.join(kept.scratch_made.to_string());
        std::fs::create_dir_all(&path).map_err(|e| failed(&path, &e))?;
        kept.scratch.insert(path.clone());
        Ok(path)
    }

    fn discard(&self, scratch: &Path) {
        if self.kept().scratch.remove(scratch) {
            let _ = std::fs::remove_dir_all(scratch);
        }
    }

    async fn keep(
        &self,
        backup: &str,
        files: &BTreeMap<String, PathBuf>,
        page: &str,
    ) -> Result<BTreeMap<String, Digest>, VaultError> {
        let mut kept = self.kept();
        kept.keeps += 1;
        if kept.disk_full.contains(&kept.keeps) {
            return Err(VaultError::DiskFull(format!("memory/{backup}")));
        }
        plain_name(backup)?;
        let mut digests = BTreeMap::new();
        for (name, path) in files {
            plain_name(name)?;
            let bytes = std::fs::read(path).map_err(|e| failed(path, &e))?;
            digests.insert(name.clone(), Digest::of(&bytes));
            kept.files.insert((backup.to_owned(), name.clone()), bytes);
        }
        kept.pages.insert(backup.to_owned(), page.to_owned());
        if let Some(world) = &self.world {
            world.look(|s| s.kept());
        }
        Ok(digests)
    }

    async fn fetch(&self, backup: &str, file: &str, into: &Path) -> Result<(), VaultError> {
        let kept = self.kept();
        let bytes = kept.files.get(&(backup.to_owned(), file.to_owned())).ok_or_else(|| VaultError::Io {
            what: format!("memory/{backup}/{file}"),
            why: "it is not there".to_owned(),
        })?;
        std::fs::write(into, bytes).map_err(|e| failed(into, &e))
    }

    async fn read_sqlite(&self, database: &Path) -> Result<SqliteFacts, VaultError> {
        let bytes = std::fs::read(database).map_err(|e| failed(database, &e))?;
        let log = database
            .with_extension("")
            .with_file_name(format!("{}-wal", database.file_name().unwrap_or_default().to_string_lossy()));
        let (whole, facts) = sqlite::read(&bytes, std::fs::read(&log).ok().as_deref())
            .ok_or_else(|| VaultError::Io { what: database.display().to_string(), why: "no database".to_owned() })?;
        std::fs::write(database, whole).map_err(|e| failed(database, &e))?;
        let _ = std::fs::remove_file(log);
        Ok(facts)
    }

    async fn holds(&self, receipt: &BackupReceipt) -> bool {
        let kept = self.kept();
        let there = |(name, digest): (&String, &Digest)| {
            let bytes = kept.files.get(&(receipt.backup.name.clone(), name.clone()));
            bytes.is_some_and(|bytes| Digest::of(bytes) == *digest)
        };
        !receipt.files.is_empty() && receipt.files.iter().all(there)
    }
}

/// The real vault makes files of these names, and refuses what would lead elsewhere.
fn plain_name(name: &str) -> Result<(), VaultError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    if !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain) {
        return Ok(());
    }
    Err(VaultError::Io { what: format!("memory/{name}"), why: "not a plain file name".to_owned() })
}

fn failed(path: &Path, error: &std::io::Error) -> VaultError {
    VaultError::Io { what: path.display().to_string(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use kadence_engine::contract::vault;

    use super::*;

    #[tokio::test]
    async fn does_what_every_vault_does() {
        vault::suite(async || {
            let folder = tempfile::tempdir().expect("a folder");
            let vault = Arc::new(MemoryVault::new(folder.path().join("scratch")));
            let beside = folder.path().to_owned();
            vault::AtHand {
                vault,
                beside,
                database: |path, revision| database(path, revision).boxed(),
                keep: Box::new(folder),
            }
        })
        .await;
    }

    async fn database(path: PathBuf, revision: u64) {
        let (whole, log) = (sqlite::database("s1", revision, true), format!("{}-wal", path.display()));
        std::fs::write(&path, sqlite::before_log(&whole)).expect("written");
        std::fs::write(log, sqlite::log(&whole)).expect("written");
    }

    #[tokio::test]
    async fn faults_come_as_they_were_ordered() {
        let folder = tempfile::tempdir().expect("a folder");
        let vault = MemoryVault::new(folder.path().join("scratch"));
        let file = folder.path().join("a");
        std::fs::write(&file, "one").expect("written");
        let files = BTreeMap::from([("a".to_owned(), file)]);
        vault.fail_keeps(1..2);
        assert_eq!(vault.keep("b", &files, "").await, Err(VaultError::DiskFull("memory/b".to_owned())));
        assert!(vault.keep("b", &files, "how to").await.is_ok());
        assert_eq!(vault.page("b").as_deref(), Some("how to"));
        assert!(vault.lose("b", "a"));
        assert!(!vault.lose("b", "a"));
        assert!(vault.fetch("b", "a", &folder.path().join("out")).await.is_err());
    }
}
