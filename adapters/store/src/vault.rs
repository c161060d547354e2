//! Backups in the age format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use age::secrecy::SecretString;
use age::x25519::{Identity, Recipient};
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use kadence_core::apply::action::BackupReceipt;
use kadence_core::apply::backup::SqliteFacts;
use kadence_core::config::Backups;
use kadence_core::ident::Digest;
use kadence_engine::ports::{Vault, VaultError};

use crate::folder;

/// What goes through memory at once.
const CHUNK: usize = 64 * 1024;

/// Makes a key pair: the private key (`AGE-SECRET-KEY-1...`), and the recipient (`age1...`) that belongs to it.
pub fn generate_identity() -> (SecretString, String) {
    let identity = Identity::generate();
    (identity.to_string(), identity.to_public().to_string())
}

/// Keeps backups in `<state>/backups/<name>/`, each file encrypted to every recipient.
pub struct AgeVault {
    backups: PathBuf,
    scratch: PathBuf,
    recipients: Arc<[Recipient]>,
    identity: Option<PathBuf>,
    in_use: Mutex<InUse>,
}

/// Scratch folders of this vault. While there are any, the lock keeps others from taking them for left-overs.
#[derive(Default)]
struct InUse {
    lock: Option<File>,
    folders: BTreeSet<PathBuf>,
    made: u64,
}

impl AgeVault {
    /// Opens the vault in the state folder, and removes plain files that a killed Kadence left, unless somebody has
    /// some in use.
    ///
    /// # Errors
    /// A recipient that is none, or folders that cannot be made ours.
    pub fn open(state: &Path, config: &Backups) -> Result<Self, VaultError> {
        let recipients = config.recipients.iter().map(|text| recipient(text)).collect::<Result<_, _>>()?;
        let vault = Self {
            backups: state.join("backups"),
            scratch: state.join("scratch"),
            recipients,
            identity: config.identity.clone(),
            in_use: Mutex::default(),
        };
        for path in [state, &vault.backups, &vault.scratch] {
            folder::claim(path).map_err(|e| failed(path, &e))?;
        }
        vault.remove_left_overs()?;
        Ok(vault)
    }

    fn remove_left_overs(&self) -> Result<(), VaultError> {
        let lock = self.lock_file()?;
        // A shared lock of another process means that it has files here; they are looked at next time.
        if lock.try_lock().is_err() {
            return Ok(());
        }
        for entry in fs_err::read_dir(&self.scratch).map_err(|e| failed(&self.scratch, &e))? {
            let path = entry.map_err(|e| failed(&self.scratch, &e))?.path();
            if path.is_dir() && !path.is_symlink() {
                tracing::info!(folder = %path.display(), "removing what a killed Kadence left");
                fs_err::remove_dir_all(&path).map_err(|e| failed(&path, &e))?;
            }
        }
        Ok(())
    }

    fn lock_file(&self) -> Result<File, VaultError> {
        let path = self.scratch.join("lock");
        folder::create_private(&path).map_err(|e| failed(&path, &e))
    }

    fn in_use(&self) -> MutexGuard<'_, InUse> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder_of(&self, backup: &str) -> Result<PathBuf, VaultError> {
        plain_name("the backup's name", backup)?;
        Ok(self.backups.join(backup))
    }

    fn file_of(&self, backup: &str, file: &str) -> Result<PathBuf, VaultError> {
        plain_name("a backup's file name", file)?;
        Ok(self.folder_of(backup)?.join(format!("{file}.age")))
    }
}

#[async_trait]
impl Vault for AgeVault {
    fn scratch(&self) -> Result<PathBuf, VaultError> {
        let mut in_use = self.in_use();
        if in_use.lock.is_none() {
            let lock = self.lock_file()?;
            // Waits only while another process removes left-overs.
            lock.lock_shared().map_err(|e| failed(&self.scratch, &e))?;
            in_use.lock = Some(lock);
        }
        in_use.made += 1;
        let path = self.scratch.join(format!("{}-{}", std::process::id(), in_use.made));
        // Another vault of this process counts from 1, too; whoever comes second takes the next number.
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {
                in_use.folders.insert(path.clone());
                Ok(path)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                drop(in_use);
                self.scratch()
            }
            Err(e) => Err(failed(&path, &e)),
        }
    }

    fn discard(&self, scratch: &Path) {
        let mut in_use = self.in_use();
        if !in_use.folders.remove(scratch) {
            tracing::warn!(folder = %scratch.display(), "not a scratch folder of this vault: left as it is");
            return;
        }
        if let Err(error) = fs_err::remove_dir_all(scratch) {
            tracing::warn!(%error, "plain files of a backup could not be removed; the next start tries again");
        }
        if in_use.folders.is_empty() {
            in_use.lock = None;
        }
    }

    async fn keep(
        &self,
        backup: &str,
        files: &BTreeMap<String, PathBuf>,
        page: &str,
    ) -> Result<BTreeMap<String, Digest>, VaultError> {
        if self.recipients.is_empty() {
            return Err(VaultError::NoRecipient);
        }
        let folder = self.folder_of(backup)?;
        let mut jobs = Vec::new();
        for (name, from) in files {
            jobs.push((name.clone(), from.clone(), self.file_of(backup, name)?));
        }
        let (recipients, page) = (Arc::clone(&self.recipients), page.to_owned());
        off_the_loop(move || {
            folder::claim(&folder).map_err(|e| failed(&folder, &e))?;
            let mut digests = BTreeMap::new();
            for (name, from, to) in jobs {
                let digest = replace(&to, |out| encrypt(&recipients, &from, out))?;
                digests.insert(name, digest);
            }
            // Last: where the page is, the backup is whole.
            replace(&folder.join("README.md"), |out: &mut File| {
                out.write_all(page.as_bytes()).map_err(|e| Trouble::There(e.to_string(), e.kind()))
            })?;
            folder::sync_folder_of(&folder).map_err(|e| failed(&folder, &e))?;
            Ok(digests)
        })
        .await
    }

    async fn fetch(&self, backup: &str, file: &str, into: &Path) -> Result<(), VaultError> {
        let from = self.file_of(backup, file)?;
        let (into, identity) = (into.to_owned(), self.identity.clone());
        off_the_loop(move || {
            let identity = identity.ok_or_else(|| VaultError::NoIdentity(from.display().to_string()))?;
            let identities = age::IdentityFile::from_file(identity.display().to_string())
                .and_then(|file| file.into_identities().map_err(io::Error::other))
                .map_err(|e| failed(&identity, &e))?;
            replace(&into, |out| decrypt(&from, &identities, out))
        })
        .await
    }

    async fn read_sqlite(&self, database: &Path) -> Result<SqliteFacts, VaultError> {
        let bad = |e: sqlx::Error| VaultError::Io { what: database.display().to_string(), why: e.to_string() };
        let options = SqliteConnectOptions::new().filename(database).create_if_missing(false);
        let mut connection = options.connect().await.map_err(bad)?;
        let read = async {
            let integrity = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(&mut connection).await?;
            let revision: i64 = sqlx::query_scalar("SELECT max(id) FROM kine").fetch_one(&mut connection).await?;
            // What is in the log comes into the database, and the log goes.
            let _: String = sqlx::query_scalar("PRAGMA journal_mode = DELETE").fetch_one(&mut connection).await?;
            Ok(SqliteFacts { integrity, revision: u64::try_from(revision).unwrap_or_default() })
        };
        let read = read.await;
        connection.close().await.map_err(bad)?;
        read.map_err(bad)
    }

    async fn holds(&self, receipt: &BackupReceipt) -> bool {
        let mut files = Vec::new();
        for (name, digest) in &receipt.files {
            let Ok(path) = self.file_of(&receipt.backup.name, name) else { return false };
            files.push((path, *digest));
        }
        let whole = move || files.iter().all(|(path, expected)| digest_of(path).is_ok_and(|found| found == *expected));
        !receipt.files.is_empty() && off_the_loop(move || Ok(whole())).await.unwrap_or(false)
    }
}

/// Runs what reads, writes and encrypts much outside of the threads that wait for the network.
async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(VaultError::Io { what: "the vault".to_owned(), why: e.to_string() }))
}

/// What went wrong, and on which side: a full disk is only one where we write.
enum Trouble {
    Known(VaultError),
    There(String, io::ErrorKind),
}

/// Writes a file under a temporary name, and gives it its own when it is whole and on disk.
fn replace<T>(path: &Path, fill: impl FnOnce(&mut File) -> Result<T, Trouble>) -> Result<T, VaultError> {
    let temporary = folder::beside(path);
    let there = |e: io::Error| Trouble::There(e.to_string(), e.kind());
    let done = folder::create_private(&temporary).map_err(there).and_then(|mut out| {
        let value = fill(&mut out)?;
        out.sync_all().map_err(there)?;
        std::fs::rename(&temporary, path).map_err(there)?;
        folder::sync_folder_of(path).map_err(there)?;
        Ok(value)
    });
    done.map_err(|trouble| {
        let _ = std::fs::remove_file(&temporary);
        match trouble {
            Trouble::Known(error) => error,
            Trouble::There(why, kind) => failed(path, &io::Error::new(kind, why)),
        }
    })
}

fn encrypt(recipients: &[Recipient], from: &Path, out: &mut File) -> Result<Digest, Trouble> {
    let here = |e: io::Error| Trouble::Known(VaultError::Io { what: from.display().to_string(), why: e.to_string() });
    let there = |e: io::Error| Trouble::There(e.to_string(), e.kind());
    let mut input = File::open(from).map_err(here)?;
    let to = recipients.iter().map(|r| r as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(to).map_err(|e| there(io::Error::other(e)))?;
    let mut writer = encryptor.wrap_output(Hashing { out, hash: Sha256::new() }).map_err(there)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = input.read(&mut chunk).map_err(here)?;
        if read == 0 {
            break;
        }
        writer.write_all(&chunk[..read]).map_err(there)?;
    }
    let hashing = writer.finish().map_err(there)?;
    Ok(Digest::from_bytes(hashing.hash.finalize().into()))
}

fn decrypt(from: &Path, identities: &[Box<dyn age::Identity + Send + Sync>], out: &mut File) -> Result<(), Trouble> {
    let here = |why: String| Trouble::Known(VaultError::Io { what: from.display().to_string(), why });
    let there = |e: io::Error| Trouble::There(e.to_string(), e.kind());
    let input = File::open(from).map_err(|e| here(e.to_string()))?;
    let decryptor = age::Decryptor::new_buffered(BufReader::with_capacity(CHUNK, input))
        .map_err(|e| here(format!("it is not an age file: {e}")))?;
    let keys = identities.iter().map(|i| &**i as &dyn age::Identity);
    let mut reader = decryptor.decrypt(keys).map_err(|e| match e {
        age::DecryptError::NoMatchingKeys => Trouble::Known(VaultError::NoIdentity(from.display().to_string())),
        e => here(e.to_string()),
    })?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = reader.read(&mut chunk).map_err(|e| here(format!("it is damaged or cut short: {e}")))?;
        if read == 0 {
            return Ok(());
        }
        out.write_all(&chunk[..read]).map_err(there)?;
    }
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut input = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = input.read(&mut chunk)?;
        if read == 0 {
            return Ok(Digest::from_bytes(hash.finalize().into()));
        }
        hash.update(&chunk[..read]);
    }
}

/// Hashes what passes through.
struct Hashing<'a> {
    out: &'a mut File,
    hash: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn recipient(text: &str) -> Result<Recipient, VaultError> {
    text.trim().parse().map_err(|_| {
        // The one mistake whose message must not repeat what was written.
        let private = text.trim().to_ascii_uppercase().starts_with("AGE-SECRET-KEY");
        let shown = if private { "a private key (AGE-SECRET-KEY-...)" } else { text };
        VaultError::BadRecipient(shown.chars().take(100).collect())
    })
}

/// Names come from node names and versions: none may lead out of the vault or hide in it.
fn plain_name(what: &str, name: &str) -> Result<(), VaultError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    if !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(plain) {
        return Ok(());
    }
    Err(VaultError::Io {
        what: what.to_owned(),
        why: format!(
            "`{}` is not a plain file name (letters, digits, `-_.+`)",
            name.chars().take(100).collect::<String>()
        ),
    })
}

fn failed(path: &Path, error: &io::Error) -> VaultError {
    let what = path.display().to_string();
    if folder::is_full(error) {
        return VaultError::DiskFull(what);
    }
    VaultError::Io { what, why: error.to_string() }
}
