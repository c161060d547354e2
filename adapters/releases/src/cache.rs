//! Verified files on this machine: `<cache>/<tag>/<file>`.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kadence_core::ident::Digest;
use kadence_core::version::Version;
use kadence_engine::ports::ReleaseError;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::http::Body;

/// A partial download that nobody has written to for this long was left behind by a process that died.
const LEFT_BEHIND: Duration = Duration::from_hours(1);

/// SHA-256 and size of a file, read to its end now. Blocks.
///
/// Nothing is remembered between calls: size and modification time say little about contents.
pub(crate) fn measure(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = fs_err::File::open(path)?;
    let mut sha256 = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest::from_bytes(sha256.finalize().into()), bytes)),
            n => {
                sha256.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

/// A file of a release and the digest that was published for it.
pub(crate) struct Wanted<'a> {
    pub(crate) version: &'a Version,
    pub(crate) file: &'a str,
    pub(crate) digest: Digest,
}

#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    /// One lock per file: whoever comes second finds what the first one fetched.
    turns: Mutex<BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl Cache {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), turns: Mutex::default() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The file with exactly the wanted digest, and its size: from the cache, else from `open`.
    ///
    /// Until it is whole, verified and on the disk a download has another name; a file under its own name that turns
    /// out to be something else is removed and fetched anew.
    pub(crate) async fn obtain(
        &self,
        wanted: &Wanted<'_>,
        open: impl Future<Output = Result<Body, ReleaseError>>,
    ) -> Result<(PathBuf, u64), ReleaseError> {
        let folder = self.root.join(wanted.version.to_string());
        let path = folder.join(wanted.file);
        let turn =
            Arc::clone(self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default());
        let _turn = turn.lock().await;

        let found = blocking({
            let path = path.clone();
            move || measure(&path)
        });
        match found.await {
            Ok((digest, bytes)) if digest == wanted.digest => return Ok((path, bytes)),
            Ok((digest, _)) => {
                tracing::warn!(path = %path.display(), %digest, expected = %wanted.digest, "cached file is not the published one: fetched anew");
                fs_err::remove_file(&path).map_err(|e| here(&path, &e))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(here(&path, &error)),
        }

        make_folder(&folder)?;
        remove_left_behind(&folder);
        let body = open.await?;
        let bytes = self.save(wanted, body, &folder, &path).await?;
        Ok((path, bytes))
    }

    async fn save(&self, wanted: &Wanted<'_>, mut body: Body, folder: &Path, path: &Path) -> Result<u64, ReleaseError> {
        // Readable by us only, and removed when dropped.
        let part = tempfile::Builder::new()
            .prefix(&format!(".{}.", wanted.file))
            .suffix(".part")
            .tempfile_in(folder)
            .map_err(|e| here(folder, &e))?;
        let (file, part) = part.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        let mut sha256 = Sha256::new();
        while let Some(chunk) = body.next(wanted).await? {
            sha256.update(chunk.as_ref());
            file.write_all(chunk.as_ref()).await.map_err(|e| here(path, &e))?;
        }
        let found = Digest::from_bytes(sha256.finalize().into());
        if found != wanted.digest {
            return Err(ReleaseError::Digest {
                version: wanted.version.clone(),
                file: wanted.file.to_owned(),
                expected: wanted.digest.to_string(),
                found: found.to_string(),
            });
        }
        file.flush().await.map_err(|e| here(path, &e))?;
        file.sync_all().await.map_err(|e| here(path, &e))?;
        part.persist(path).map_err(|e| here(path, &e.error))?;
        fs_err::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| here(folder, &e))?;
        Ok(body.got())
    }
}

/// Writes a small file so that a reader sees the old or the new contents, never a part.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<(), ReleaseError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folder(folder)?;
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(|e| here(folder, &e))?;
    io::Write::write_all(&mut part, contents).map_err(|e| here(path, &e))?;
    part.persist(path).map_err(|e| here(path, &e.error))?;
    Ok(())
}

fn make_folder(folder: &Path) -> Result<(), ReleaseError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| here(folder, &e))
}

fn remove_left_behind(folder: &Path) {
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_part = entry.file_name().to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".part"));
        let old = || {
            let modified = entry.metadata().and_then(|it| it.modified()).ok()?;
            SystemTime::now().duration_since(modified).ok()
        };
        if is_part && old().is_some_and(|age| age > LEFT_BEHIND) {
            // Only room is lost if this fails, and a full disk says so itself.
            let _ = fs_err::remove_file(entry.path());
        }
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(io::Error::other)?
}

/// What went wrong on this machine.
pub(crate) fn here(path: &Path, error: &io::Error) -> ReleaseError {
    let why = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("the disk of this machine is full ({error}): make room, then try again")
        }
        _ => error.to_string(),
    };
    ReleaseError::Here { what: path.display().to_string(), why }
}
