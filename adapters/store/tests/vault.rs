//! Backups as age files.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection};

use kadence_core::config::Backups;
use kadence_core::ident::Digest;
use kadence_engine::contract::{sample, vault};
use kadence_engine::ports::{Vault, VaultError};
use kadence_store::{AgeVault, generate_identity};

mod mount;

/// A state folder with keys: one that the vault knows, and one that lies in a safe.
struct Scene {
    folder: tempfile::TempDir,
    known: Backups,
    in_the_safe: PathBuf,
}

fn identity_file(folder: &Path, name: &str) -> (PathBuf, String) {
    let (secret, recipient) = generate_identity();
    let path = folder.join(name);
    let text = format!("# kept by the test\n\n{}\n", secret.expose_secret());
    std::fs::write(&path, text).expect("written");
    (path, recipient)
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (known, one) = identity_file(folder.path(), "known.txt");
        let (in_the_safe, two) = identity_file(folder.path(), "safe.txt");
        let known = Backups { recipients: vec![one, format!(" {two}\n")], identity: Some(known) };
        Self { folder, known, in_the_safe }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn open(&self) -> AgeVault {
        self.open_with(&self.known)
    }

    fn open_with(&self, config: &Backups) -> AgeVault {
        AgeVault::open(&self.state(), config).expect("the vault opens")
    }

    fn files(&self, contents: &[(&str, &[u8])]) -> BTreeMap<String, PathBuf> {
        let write = |(name, bytes): &(&str, &[u8])| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            ((*name).to_owned(), path)
        };
        contents.iter().map(write).collect()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn does_what_every_vault_does() {
    vault::suite(async || {
        let scene = Scene::new();
        let (vault, beside) = (Arc::new(scene.open()), scene.folder.path().to_owned());
        vault::AtHand {
            vault,
            beside,
            database: |path, revision| Box::pin(database(path, revision)),
            keep: Box::new(scene),
        }
    })
    .await;
}

/// As K3s has it after an unclean stop: copied while a connection keeps the log from being moved in.
async fn database(path: PathBuf, revision: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let live = folder.path().join("state.db");
    let options = SqliteConnectOptions::new().filename(&live).create_if_missing(true);
    let mut k3s = options.journal_mode(SqliteJournalMode::Wal).connect().await.expect("opened");
    for statement in [
        "CREATE TABLE kine(id INTEGER PRIMARY KEY)",
        &format!("INSERT INTO kine VALUES ({})", revision - 1),
        "PRAGMA wal_checkpoint(TRUNCATE)",
        &format!("INSERT INTO kine VALUES ({revision})"),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut k3s).await.expect("done");
    }
    for end in ["", "-wal"] {
        let from = folder.path().join(format!("state.db{end}"));
        std::fs::copy(from, format!("{}{end}", path.display())).expect("copied");
    }
    k3s.close().await.expect("closed");
}

#[tokio::test]
async fn a_backup_is_age_files_and_a_page_for_us_alone() {
    let scene = Scene::new();
    let vault = scene.open();
    let secret = b"K10abc::server:the-token";
    let digests =
        vault.keep("shop-1", &scene.files(&[("archive.tar", secret)]), "Restore by hand\n").await.expect("kept");

    let backup = scene.state().join("backups/shop-1");
    assert_eq!(names(&backup), ["README.md", "archive.tar.age"]);
    for folder in [scene.state(), scene.state().join("backups"), scene.state().join("scratch"), backup.clone()] {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
    }
    for file in names(&backup) {
        assert_eq!(mode(&backup.join(&file)), 0o600, "{file}");
    }
    assert_eq!(std::fs::read_to_string(backup.join("README.md")).expect("a page"), "Restore by hand\n");
    let encrypted = std::fs::read(backup.join("archive.tar.age")).expect("a file");
    assert_eq!(digests["archive.tar"], Digest::of(&encrypted));
    assert!(encrypted.starts_with(b"age-encryption.org/v1\n"));
    assert!(!encrypted.windows(9).any(|w| w == b"the-token"));

    // Either key opens it.
    let into = scene.folder.path().join("plain");
    for identity in [scene.known.identity.clone(), Some(scene.in_the_safe.clone())] {
        let vault = scene.open_with(&Backups { recipients: Vec::new(), identity });
        vault.fetch("shop-1", "archive.tar", &into).await.expect("fetched");
        assert_eq!(std::fs::read(&into).expect("plain"), secret);
        assert_eq!(mode(&into), 0o600);
    }
}

#[tokio::test]
async fn the_page_can_rely_on_the_age_program() {
    let scene = Scene::new();
    if Command::new("age").arg("--version").stdout(Stdio::null()).status().is_err() {
        mount::left_out("that the program `age` opens our files: it is not installed");
        return;
    }
    scene.open().keep("shop-1", &scene.files(&[("a", b"one")]), "").await.expect("kept");
    let output = Command::new("age")
        .args(["--decrypt", "--identity"])
        .arg(&scene.in_the_safe)
        .arg(scene.state().join("backups/shop-1/a.age"))
        .output()
        .expect("age");
    assert_eq!(output.stdout, b"one", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn what_is_missing_is_said() {
    let scene = Scene::new();
    scene.open().keep("shop-1", &scene.files(&[("a", b"one")]), "").await.expect("kept");
    let into = scene.folder.path().join("plain");
    let file = scene.state().join("backups/shop-1/a.age").display().to_string();

    let nobody = scene.open_with(&Backups::default());
    assert_eq!(nobody.keep("shop-2", &scene.files(&[("a", b"one")]), "").await, Err(VaultError::NoRecipient));
    assert!(!scene.state().join("backups/shop-2").exists());
    assert_eq!(nobody.fetch("shop-1", "a", &into).await, Err(VaultError::NoIdentity(file.clone())));

    let (stranger, _) = identity_file(scene.folder.path(), "stranger.txt");
    let stranger = scene.open_with(&Backups { recipients: Vec::new(), identity: Some(stranger) });
    assert_eq!(stranger.fetch("shop-1", "a", &into).await, Err(VaultError::NoIdentity(file)));

    let no_key = scene.folder.path().join("no-key.txt");
    std::fs::write(&no_key, "AGE-SECRET-KEY-1QQQ-a-typing-error\n").expect("written");
    for identity in [no_key, scene.folder.path().join("missing.txt")] {
        let vault = scene.open_with(&Backups { recipients: Vec::new(), identity: Some(identity.clone()) });
        match vault.fetch("shop-1", "a", &into).await {
            Err(VaultError::Io { what, why }) => {
                assert_eq!(what, identity.display().to_string());
                assert!(!why.contains("QQQ"), "no part of a key is shown: {why}");
            }
            other => unreachable!("{other:?}"),
        }
    }
    assert!(!into.exists());
}

#[test]
fn what_is_no_recipient_is_named_but_never_a_private_key() {
    let scene = Scene::new();
    let refused = |text: &str| {
        let config = Backups { recipients: vec![text.to_owned()], identity: None };
        AgeVault::open(&scene.state(), &config).err().expect("refused")
    };
    assert_eq!(refused("age1qqq"), VaultError::BadRecipient("age1qqq".to_owned()));
    assert_eq!(refused(""), VaultError::BadRecipient(String::new()));
    let secret = generate_identity().0;
    for text in [secret.expose_secret().to_owned(), format!("  {}", secret.expose_secret().to_lowercase())] {
        let error = refused(&text);
        assert!(matches!(error, VaultError::BadRecipient(_)));
        assert!(!error.to_string().to_uppercase().contains(&secret.expose_secret()[15..30]), "{error}");
    }
}

#[tokio::test]
async fn damage_never_passes_as_a_backup() {
    let scene = Scene::new();
    let vault = scene.open();
    let plain: Vec<u8> = (0..=u8::MAX).cycle().take(200_000).collect();
    let digests = vault.keep("shop-1", &scene.files(&[("a", &plain)]), "").await.expect("kept");
    let receipt = sample::receipt("shop-1", digests);
    assert!(vault.holds(&receipt).await);
    let path = scene.state().join("backups/shop-1/a.age");
    let good = std::fs::read(&path).expect("a file");
    let into = scene.folder.path().join("plain");

    let mut flipped = good.clone();
    flipped[150_000] ^= 1;
    // Cut at the border of two pieces: each piece that is there is right.
    let pieces = good.len() - (plain.len() % 65_536 + 16);
    for (kind, bad) in
        [("a bit", &flipped[..]), ("the end", &good[..pieces]), ("all but the head", &good[..60]), ("all", &[])]
    {
        std::fs::write(&path, bad).expect("written");
        assert!(!vault.holds(&receipt).await, "{kind}");
        assert!(vault.fetch("shop-1", "a", &into).await.is_err(), "{kind}");
        assert!(!into.exists(), "{kind}: no half of a file is left for a restore to use");
    }
}

#[tokio::test]
async fn a_full_disk_leaves_what_was_kept_before() {
    if !mount::root("a full disk") {
        return;
    }
    let scene = Scene::new();
    let disk = mount::Tmpfs::new("1m");
    let vault = AgeVault::open(disk.path(), &scene.known).expect("the vault opens");
    let digests = vault.keep("shop-1", &scene.files(&[("a", b"one")]), "").await.expect("kept");
    let big = vec![7; 2_000_000];
    let path = disk.path().join("backups/shop-1/a.age").display().to_string();
    assert_eq!(vault.keep("shop-1", &scene.files(&[("a", &big)]), "").await, Err(VaultError::DiskFull(path)));
    assert!(vault.holds(&sample::receipt("shop-1", digests)).await);
    assert_eq!(names(&disk.path().join("backups/shop-1")), ["README.md", "a.age"]);
    let into = disk.path().join("plain");
    disk.remount("size=8m");
    vault.keep("shop-1", &scene.files(&[("a", &big)]), "").await.expect("kept");
    disk.remount("size=3m");
    let full = Err(VaultError::DiskFull(into.display().to_string()));
    assert_eq!(vault.fetch("shop-1", "a", &into).await, full, "the plain file has no room beside it");
    assert!(!into.exists());
}

#[test]
fn left_overs_go_unless_somebody_works() {
    let scene = Scene::new();
    let working = scene.open();
    let in_use = working.scratch().expect("a folder");
    std::fs::write(in_use.join("token"), "secret").expect("written");
    assert_eq!(mode(&in_use), 0o700);
    let left_over = scene.state().join("scratch/4711-1");
    std::fs::create_dir(&left_over).expect("made");
    std::fs::write(left_over.join("token"), "secret").expect("written");

    let other = scene.open();
    assert!(in_use.exists() && left_over.exists(), "somebody works: nothing is touched");
    let second = other.scratch().expect("another folder");
    assert_ne!(second, in_use);
    drop(working);
    scene.open();
    assert!(in_use.exists(), "the second still works");
    other.discard(&second);

    scene.open();
    assert_eq!(names(&scene.state().join("scratch")), ["lock"], "nobody works: all plain files go");
}

#[test]
fn a_link_in_scratch_leads_nowhere() {
    let scene = Scene::new();
    drop(scene.open());
    let kept = scene.folder.path().join("kept");
    std::fs::create_dir(&kept).expect("made");
    std::fs::write(kept.join("file"), "").expect("written");
    std::os::unix::fs::symlink(&kept, scene.state().join("scratch/link")).expect("linked");
    drop(scene.open());
    assert!(kept.join("file").exists());
}

/// Encrypts a big file in a process of its own, so that its peak memory is only that.
#[expect(clippy::print_stdout, reason = "its standard output is read by the test that starts it")]
#[tokio::test]
#[ignore = "the process that memory_does_not_grow_with_the_file starts"]
async fn keeper() {
    let megabytes: usize = std::env::var("KADENCE_TEST_MEGABYTES").expect("set").parse().expect("a number");
    let scene = Scene::new();
    let path = scene.folder.path().join("big");
    let mut file = std::fs::File::create(&path).expect("made");
    for _ in 0..megabytes {
        std::io::Write::write_all(&mut file, &vec![0x5a; 1 << 20]).expect("written");
    }
    let vault = scene.open();
    vault.keep("shop-1", &BTreeMap::from([("big".to_owned(), path)]), "").await.expect("kept");
    let into = scene.folder.path().join("plain");
    vault.fetch("shop-1", "big", &into).await.expect("fetched");
    assert_eq!(std::fs::metadata(&into).expect("plain").len(), (megabytes as u64) << 20);
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let peak = |megabytes: u32| -> u64 {
        let output = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "keeper", "--ignored", "--nocapture"])
            .env("KADENCE_TEST_MEGABYTES", megabytes.to_string())
            .output()
            .expect("a process");
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, rest) = text.split_once("peak ").expect("a figure");
        rest.lines().next().expect("a line").trim().parse().expect("a number")
    };
    let (small, big) = (peak(1), peak(12));
    assert!(big < small + 5_000, "12 MB took {big} kB at its peak, 1 MB took {small} kB");
}
