//! Small file systems for tests, which root may mount. They go when they are dropped.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether this is root; else says what is not tested.
pub(crate) fn root(what: &str) -> bool {
    let root = std::fs::metadata("/proc/self").expect("proc").uid() == 0;
    if !root {
        left_out(&format!("{what}: needs root"));
    }
    root
}

/// Says what is not tested here. Written past the test runner, which would keep it to itself.
pub(crate) fn left_out(what: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("NOT TESTED: {what}\n").as_bytes());
}

fn run(program: &str, args: &[&str], path: &Path) {
    let status = Command::new(program).args(args).arg(path).status().expect("a program");
    assert!(status.success(), "{program} {args:?} {}", path.display());
}

/// A file system in memory of a fixed size.
pub(crate) struct Tmpfs {
    mounted: Mounted,
    _folder: tempfile::TempDir,
}

impl Tmpfs {
    pub(crate) fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"], folder.path());
        Self { mounted: Mounted(folder.path().to_owned()), _folder: folder }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mounted.0
    }

    /// Changes its size, or what else `mount` knows: `size=4m`, `ro`.
    pub(crate) fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}")], self.path());
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, because a test that failed may still have files open there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
