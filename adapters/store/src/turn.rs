//! Whose turn it is: one locked file for each cluster.
//!
//! The lock belongs to the open file, so it ends with the process however that ends, and a second store in the same
//! process is kept out like any other. The file stays for good: removing it would let two processes lock two files of
//! the same name.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};

use kadence_core::ident::{ClusterUid, Digest};

use crate::folder;

/// Who holds a turn, as it is written into the locked file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) holder: String,
    pub(crate) since: String,
}

#[derive(Debug)]
pub(crate) enum NoTurn {
    Held(Holder),
    Io(io::Error),
}

impl From<io::Error> for NoTurn {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Locks the cluster until it is dropped.
pub(crate) struct Guard(File);

impl Guard {
    pub(crate) fn take(turns: &Path, cluster: &ClusterUid, holder: &str) -> Result<Self, NoTurn> {
        folder::claim(turns)?;
        let path = file(turns, cluster);
        // Not truncated: until the lock is ours, what stands in it is another's.
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(NoTurn::Held(who(&path))),
            Err(TryLockError::Error(e)) => return Err(e.into()),
        }
        let mut guard = Self(file);
        let since = Timestamp::now();
        let since = since.round(Unit::Second).unwrap_or(since).to_string();
        let text = serde_json::to_vec(&Holder { holder: holder.to_owned(), since }).map_err(io::Error::other)?;
        guard.0.set_len(0)?;
        guard.0.write_all(&text)?;
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // So that the next holder is not taken for us in the moment before it has written its own name.
        let _ = self.0.set_len(0);
    }
}

fn who(path: &Path) -> Holder {
    let text = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text)
        .unwrap_or_else(|_| Holder { holder: "another Kadence".to_owned(), since: "just now".to_owned() })
}

/// The uid comes from the cluster: what could leave the folder gets a name of its own.
fn file(turns: &Path, cluster: &ClusterUid) -> PathBuf {
    let uid = cluster.as_str();
    let plain = (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let name = if plain { uid.to_owned() } else { format!("sha256-{}", Digest::of(uid.as_bytes())) };
    turns.join(format!("{name}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_uid_leaves_the_folder() {
        let turns = Path::new("/state/turns");
        for uid in ["../../etc/passwd", "", ".", "/etc/passwd", "a/b", "ä", "sha256-", &"x".repeat(300)] {
            let path = file(turns, &uid.into());
            assert_eq!(path.parent(), Some(turns), "{uid}");
            assert!(path.file_name().is_some_and(|n| n.len() < 100), "{uid}");
        }
        assert_ne!(file(turns, &"a/b".into()), file(turns, &"a/c".into()));
    }
}
