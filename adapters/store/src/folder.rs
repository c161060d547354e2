//! Files and folders that only their owner may read, and that are there after a power cut.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the folder with mode 0700 if it is not there, its parents too, and makes sure that it is ours alone.
///
/// # Errors
/// In words: somebody else owns it or may write into it, or it cannot be made.
pub(crate) fn claim(folder: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(refused("it is not a folder".to_owned())),
        Err(e) => return Err(io::Error::new(e.kind(), format!("the folder cannot be made: {e}"))),
    }
    let meta = std::fs::metadata(folder)?;
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != us {
        return Err(refused(format!(
            "the folder belongs to uid {}, this is uid {us}; run Kadence as its owner, or name another with --state",
            meta.uid()
        )));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(refused(format!(
            "others may write into the folder (mode {mode:04o}); after making sure that nobody did: chmod 0700 {}",
            folder.display()
        )));
    }
    Ok(())
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Takes from group and others what they have of a file.
pub(crate) fn close_to_others(file: &Path) -> io::Result<()> {
    let mut permissions = fs_err::metadata(file)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o600);
        fs_err::set_permissions(file, permissions)?;
    }
    Ok(())
}

/// Opens a file that only we can read, for writing from its start; makes it if it is not there.
pub(crate) fn create_private(path: &Path) -> io::Result<std::fs::File> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.into_parts().0)
}

/// Writes a new file so that it is there whole or not at all, and never replaces one. `false`: it was there.
pub(crate) fn publish_new(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let temporary = beside(path);
    let written = create_private(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let linked = written.and_then(|()| link_new(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    linked
}

/// Gives a finished file its name, if nobody has it yet. `false`: somebody was faster.
pub(crate) fn link_new(temporary: &Path, path: &Path) -> io::Result<bool> {
    match std::fs::hard_link(temporary, path) {
        Ok(()) => sync_folder_of(path).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(io::Error::new(e.kind(), format!("{} cannot be made: {e}", path.display()))),
    }
}

/// A name next to `path` that nobody else uses now.
pub(crate) fn beside(path: &Path) -> std::path::PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Makes names given or taken in the file's folder last through a power cut.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| fs_err::File::open(folder)?.sync_all())
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
