//! What every vault does.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kadence_core::ident::Digest;

use crate::contract::sample;
use crate::ports::{Vault, VaultError};

/// An empty vault, and a folder for plain files beside it.
pub struct AtHand {
    pub vault: Arc<dyn Vault>,
    pub beside: PathBuf,
    /// Writes a database of K3s's that reaches a revision under this name. The last revision is only in the log beside
    /// it, as after an unclean stop.
    pub database: fn(PathBuf, u64) -> BoxFuture<'static, ()>,
    /// What both live in.
    pub keep: Box<dyn Any + Send>,
}

/// Runs the suite; `fresh` makes a new vault each time.
///
/// # Panics
/// If the vault does not do what it should.
pub async fn suite(fresh: impl AsyncFn() -> AtHand) {
    what_is_kept_comes_back(&fresh().await).await;
    a_backup_can_be_kept_again(&fresh().await).await;
    what_is_not_there_is_not_held(&fresh().await).await;
    no_name_leads_outside(&fresh().await).await;
    scratch_folders_are_new_and_go(&fresh().await);
    a_database_is_read_with_its_log(&fresh().await).await;
}

fn files(folder: &Path, contents: &[(&str, &[u8])]) -> BTreeMap<String, PathBuf> {
    let write = |(name, bytes): &(&str, &[u8])| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("written");
        ((*name).to_owned(), path)
    };
    contents.iter().map(write).collect()
}

async fn fetched(at: &AtHand, backup: &str, file: &str) -> Result<Vec<u8>, VaultError> {
    let into = at.beside.join("fetched");
    at.vault.fetch(backup, file, &into).await?;
    let bytes = std::fs::read(&into).expect("fetched");
    std::fs::remove_file(&into).expect("removed");
    Ok(bytes)
}

async fn what_is_kept_comes_back(at: &AtHand) {
    let scratch = at.vault.scratch().expect("a folder");
    // Around the size of the pieces that files are encrypted in, and nothing at all.
    let big: Vec<u8> = (0..=u8::MAX).cycle().take(3 * 64 * 1024).collect();
    let contents: [(&str, &[u8]); 4] =
        [("snapshot.db", &big), ("archive.tar", b"token"), ("empty", b""), ("even", &big[..64 * 1024])];
    let digests = at.vault.keep("shop-1", &files(&scratch, &contents), "How to restore").await.expect("kept");
    at.vault.discard(&scratch);

    assert_eq!(digests.keys().map(String::as_str).collect::<Vec<_>>(), ["archive.tar", "empty", "even", "snapshot.db"]);
    for (name, bytes) in contents {
        assert_eq!(fetched(at, "shop-1", name).await.as_deref(), Ok(bytes), "{name}");
    }
    assert!(at.vault.holds(&sample::receipt("shop-1", digests)).await);
}

async fn a_backup_can_be_kept_again(at: &AtHand) {
    let first = at.vault.keep("shop-1", &files(&at.beside, &[("a", b"one"), ("b", b"two")]), "").await.expect("kept");
    // The same action after a crash: its outcome was not stored, so it is done again under the same name.
    let second = at.vault.keep("shop-1", &files(&at.beside, &[("a", b"three")]), "").await.expect("kept again");
    assert_eq!(fetched(at, "shop-1", "a").await.as_deref(), Ok(&b"three"[..]));
    assert_eq!(fetched(at, "shop-1", "b").await.as_deref(), Ok(&b"two"[..]), "what was not kept again stays");
    assert!(at.vault.holds(&sample::receipt("shop-1", second)).await);
    assert!(!at.vault.holds(&sample::receipt("shop-1", first)).await, "the first is not what is there now");
}

async fn what_is_not_there_is_not_held(at: &AtHand) {
    let digests = at.vault.keep("shop-1", &files(&at.beside, &[("a", b"one")]), "").await.expect("kept");
    let receipt = sample::receipt("shop-1", digests);
    let mut more = receipt.clone();
    more.files.insert("b".to_owned(), Digest::of(b"b"));
    let mut other = receipt.clone();
    other.files.insert("a".to_owned(), Digest::of(b"other"));
    let mut elsewhere = receipt.clone();
    elsewhere.backup.name = "shop-2".to_owned();
    let nothing = sample::receipt("shop-1", BTreeMap::new());
    for receipt in [more, other, elsewhere, nothing] {
        assert!(!at.vault.holds(&receipt).await, "{receipt:?}");
    }
    assert!(at.vault.holds(&receipt).await);
    assert!(fetched(at, "shop-1", "b").await.is_err());
    assert!(fetched(at, "shop-2", "a").await.is_err());
    assert!(!at.beside.join("fetched").exists(), "a fetch that fails leaves nothing");
    let missing = BTreeMap::from([("a".to_owned(), at.beside.join("missing"))]);
    assert!(at.vault.keep("shop-3", &missing, "").await.is_err());
}

async fn a_database_is_read_with_its_log(at: &AtHand) {
    let (database, log) = (at.beside.join("datastore"), at.beside.join("datastore-wal"));
    (at.database)(database.clone(), 42).await;
    assert!(log.exists(), "the suite was given no log");
    let bytes = std::fs::read(&database).expect("read");

    let read = at.vault.read_sqlite(&database).await.expect("read");
    assert_eq!((read.integrity.as_str(), read.revision), ("ok", 42));
    assert!(!log.exists(), "one file is enough from now on");
    let whole = std::fs::read(&database).expect("read");
    assert_eq!(at.vault.read_sqlite(&database).await, Ok(read));
    assert_eq!(std::fs::read(&database).expect("read"), whole, "reading it again changes nothing");

    // Without its log it lacks what was in there.
    std::fs::write(&database, &bytes).expect("written");
    let read = at.vault.read_sqlite(&database).await.expect("read");
    assert_eq!((read.integrity.as_str(), read.revision), ("ok", 41));

    std::fs::write(&database, "not a database at all, but long enough").expect("written");
    assert!(at.vault.read_sqlite(&database).await.is_err());
    std::fs::remove_file(&database).expect("removed");
    assert!(at.vault.read_sqlite(&database).await.is_err());
    assert!(!database.exists(), "none is made");
}

async fn no_name_leads_outside(at: &AtHand) {
    let ok = files(&at.beside, &[("a", b"one")]);
    let path = ok["a"].clone();
    for name in ["", ".", "..", "../x", "a/b", "/etc/x", ".hidden", "a\0b", "a b"] {
        assert!(at.vault.keep(name, &ok, "").await.is_err(), "backup {name:?}");
        let files = BTreeMap::from([(name.to_owned(), path.clone())]);
        assert!(at.vault.keep("shop-1", &files, "").await.is_err(), "file {name:?}");
        assert!(fetched(at, "shop-1", name).await.is_err(), "{name:?}");
    }
}

fn scratch_folders_are_new_and_go(at: &AtHand) {
    let [one, two] = [at.vault.scratch().expect("a folder"), at.vault.scratch().expect("a folder")];
    assert_ne!(one, two);
    for folder in [&one, &two] {
        assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), 0, "new");
        std::fs::write(folder.join("plain"), "secret").expect("written");
    }
    at.vault.discard(&at.beside);
    assert!(at.beside.exists(), "only what it made itself");
    at.vault.discard(&one);
    assert!(!one.exists());
    assert!(two.join("plain").exists());
    at.vault.discard(&two);
    assert!(!two.exists());
}
