//! A folder with one folder per release.
//!
//! Files are used where they lie: they are verified when they are asked for and again on the node they are sent to, so a
//! copy here would cost 260 MB and prove nothing more. A folder that changes in between is noticed on the node, before
//! anything there is touched.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use kadence_core::ident::Digest;
use kadence_core::inventory::Arch;
use kadence_core::track::catalog::{Catalog, Release};
use kadence_core::version::Version;
use kadence_engine::ports::{Artifact, ArtifactKind, ReleaseError, Releases};

use crate::cache;
use crate::layout::{self, Entry, INDEX_AT_MOST, Named, SUMS_AT_MOST, Sums};

#[derive(Clone)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(crate) fn open(root: &Path) -> Result<Self, String> {
        match std::fs::metadata(root) {
            Ok(it) if it.is_dir() => Ok(Self { root: root.to_owned() }),
            Ok(_) => Err("it is not a folder".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("there is no such folder".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn no_way(&self, why: &str) -> ReleaseError {
        ReleaseError::NoWay { source_name: self.name(), why: why.to_owned() }
    }

    fn read(&self) -> Result<Catalog, ReleaseError> {
        let mut catalog = Catalog {
            source: self.name(),
            fetched: Timestamp::now(),
            releases: BTreeMap::new(),
            unreadable: Vec::new(),
        };
        let known = self.index(&mut catalog.unreadable);
        let entries = fs_err::read_dir(&self.root).map_err(|e| self.no_way(&e.to_string()))?;
        for entry in entries {
            let entry = entry.map_err(|e| self.no_way(&e.to_string()))?;
            let name = entry.file_name();
            // A name that is no UTF-8 is no version either.
            let Some(name) = name.to_str() else { continue };
            match layout::name_of(name) {
                Named::SomethingElse => {}
                Named::Unreadable(why) => catalog.unreadable.push(why),
                // Through symbolic links: a mirror may point from one version's folder elsewhere.
                Named::Release(version) if entry.path().is_dir() => {
                    let release = self.release(version.clone(), known.get(name), &mut catalog.unreadable);
                    catalog.releases.insert(version, release);
                }
                Named::Release(version) => catalog.unreadable.push(format!("{version}: not a folder")),
            }
        }
        catalog.unreadable.sort();
        Ok(catalog)
    }

    /// The optional `releases.json`: here it only adds what files cannot say, dates and pre-releases.
    fn index(&self, unreadable: &mut Vec<String>) -> BTreeMap<String, Entry> {
        let entries = match read_at_most(&self.root.join("releases.json"), INDEX_AT_MOST) {
            Ok(None) => return BTreeMap::new(),
            Ok(Some(text)) => layout::read_index(&text),
            Err(why) => Err(why),
        };
        let mut known = BTreeMap::new();
        match entries {
            Err(why) => unreadable.push(why),
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => drop(known.insert(entry.tag.clone(), entry)),
                        Err(why) => unreadable.push(why),
                    }
                }
            }
        }
        known
    }

    fn release(&self, version: Version, known: Option<&Entry>, unreadable: &mut Vec<String>) -> Release {
        let folder = self.root.join(version.to_string());
        let mut binaries = BTreeMap::new();
        let before = unreadable.len();
        for arch in Arch::ALL {
            let (binary, sums_file) = (arch.binary(), arch.sums());
            let has_binary = folder.join(binary).is_file();
            let sums = match read_at_most(&folder.join(&sums_file), SUMS_AT_MOST) {
                Ok(Some(text)) => Sums::parse(&String::from_utf8_lossy(&text)),
                Ok(None) => {
                    if has_binary {
                        unreadable.push(format!("{version}: {binary} is left out: {sums_file} is missing"));
                    }
                    continue;
                }
                Err(why) => {
                    unreadable.push(format!("{version}: {why}"));
                    continue;
                }
            };
            unreadable.extend(sums.unreadable.iter().map(|why| format!("{version}: {sums_file}: {why}")));
            match sums.digests.get(binary) {
                Some(digest) if has_binary => drop(binaries.insert(arch, *digest)),
                Some(_) => unreadable.push(format!("{version}: {sums_file} names {binary}, which is missing")),
                None if has_binary => {
                    unreadable.push(format!("{version}: {binary} is left out: {sums_file} has no digest for it"));
                }
                None => {}
            }
        }
        if binaries.is_empty() && unreadable.len() == before {
            unreadable.push(format!("{version}: the folder has no binary"));
        }
        let published = known.and_then(|entry| entry.published);
        Release { version, published, prerelease: known.is_some_and(|entry| entry.prerelease), binaries }
    }

    fn take(&self, version: &Version, arch: Arch, kind: ArtifactKind) -> Result<Artifact, ReleaseError> {
        let file = layout::file_name(arch, kind);
        let expected = self.published(version, arch, &file)?;
        // Absolute, because the artifact is read later, by others.
        let path = self.root.join(version.to_string()).join(&file);
        let path = std::path::absolute(&path).map_err(|e| here(&path, &e.to_string()))?;
        let (digest, bytes) = cache::measure(&path).map_err(|e| here(&path, &e.to_string()))?;
        if digest != expected {
            let (expected, found) = (expected.to_string(), digest.to_string());
            return Err(ReleaseError::Digest { version: version.clone(), file, expected, found });
        }
        Ok(Artifact { version: version.clone(), arch, digest, path, bytes, kind })
    }

    fn published(&self, version: &Version, arch: Arch, file: &str) -> Result<Digest, ReleaseError> {
        let folder = self.root.join(version.to_string());
        let no_asset =
            |file: String| ReleaseError::NoAsset { version: version.clone(), file, source_name: self.name() };
        if !folder.is_dir() {
            return Err(ReleaseError::NoSuchRelease { version: version.clone(), source_name: self.name() });
        }
        if !folder.join(file).is_file() {
            return Err(no_asset(file.to_owned()));
        }
        let sums = read_at_most(&folder.join(arch.sums()), SUMS_AT_MOST)
            .map_err(|why| here(&folder.join(arch.sums()), &why))?
            .ok_or_else(|| no_asset(arch.sums()))?;
        let sums = Sums::parse(&String::from_utf8_lossy(&sums));
        sums.digests.get(file).copied().ok_or_else(|| no_asset(format!("digest for {file} in {}", arch.sums())))
    }

    /// Runs `look` where it may wait for a disk, or for a file server that has gone away.
    async fn aside<T: Send + 'static>(
        &self,
        look: impl FnOnce(Self) -> Result<T, ReleaseError> + Send + 'static,
    ) -> Result<T, ReleaseError> {
        let folder = self.clone();
        tokio::task::spawn_blocking(move || look(folder)).await.map_err(|e| self.no_way(&e.to_string()))?
    }
}

#[async_trait]
impl Releases for Folder {
    async fn catalog(&self) -> Result<Catalog, ReleaseError> {
        self.aside(|folder| folder.read()).await
    }

    async fn fetch(&self, version: &Version, arch: Arch, kind: ArtifactKind) -> Result<Artifact, ReleaseError> {
        let version = version.clone();
        self.aside(move |folder| folder.take(&version, arch, kind)).await
    }
}

fn here(path: &Path, why: &str) -> ReleaseError {
    ReleaseError::Here { what: path.display().to_string(), why: why.to_owned() }
}

/// The file's contents; `None` if there is none.
fn read_at_most(path: &Path, most: u64) -> Result<Option<Vec<u8>>, String> {
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = Vec::new();
    file.take(most + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > most {
        return Err(format!("{} is larger than {most} bytes", path.display()));
    }
    Ok(Some(text))
}
