//! Sources that are reached over HTTP: a mirror, GitHub.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use kadence_core::ident::Digest;
use kadence_core::inventory::Arch;
use kadence_core::track::catalog::{Catalog, Release};
use kadence_core::version::{Minor, Version};
use kadence_engine::ports::{Artifact, ArtifactKind, ReleaseError, Releases};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Wanted};
use crate::github::GitHub;
use crate::http::{Http, Limits};
use crate::layout::{self, SUMS_AT_MOST, Sums};
use crate::mirror;

/// One release as its source lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) version: Version,
    pub(crate) published: Option<Timestamp>,
    pub(crate) prerelease: bool,
    /// The files that Kadence could want, with their digest where the listing has it.
    pub(crate) files: BTreeMap<String, Option<Digest>>,
}

/// What a source lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) releases: BTreeMap<Version, Told>,
    pub(crate) unreadable: Vec<String>,
    /// When the oldest part of it was true.
    pub(crate) fetched: Timestamp,
}

pub(crate) enum Index {
    Mirror,
    GitHub(GitHub),
}

pub(crate) struct Remote {
    /// For people.
    name: String,
    /// Below it lies `<tag>/<file>`; without a slash at its end.
    base: String,
    index: Index,
    http: Http,
    cache: Cache,
    /// The newest listing.
    listing: tokio::sync::Mutex<Option<Listing>>,
}

impl Remote {
    pub(crate) fn mirror(address: &str, cache: &Path, limits: Limits) -> Result<Self, String> {
        let url = reqwest::Url::parse(address).map_err(|e| e.to_string())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the address holds a user name or password; secrets do not belong there".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the address has a `?` or `#`; folders and file names are put behind it".to_owned());
        }
        let base = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            name: base.clone(),
            base,
            index: Index::Mirror,
            http: Http::new(limits)?,
            cache: Cache::new(cache),
            listing: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn github(github: GitHub, base: &str, cache: &Path, limits: Limits) -> Result<Self, String> {
        Ok(Self {
            name: github.name(),
            base: base.to_owned(),
            index: Index::GitHub(github),
            http: Http::new(limits)?,
            cache: Cache::new(cache),
            listing: tokio::sync::Mutex::default(),
        })
    }

    fn no_way(&self, why: String) -> ReleaseError {
        ReleaseError::NoWay { source_name: self.name.clone(), why }
    }

    fn answered(&self, why: String) -> ReleaseError {
        ReleaseError::Answered { source_name: self.name.clone(), why }
    }

    /// `+` would be read as a space by some servers, so it is written as GitHub's own links do.
    fn address(&self, version: &Version, file: &str) -> String {
        format!("{}/{}/{file}", self.base, version.to_string().replace('+', "%2B"))
    }

    async fn list(&self) -> Result<Listing, ReleaseError> {
        match &self.index {
            Index::Mirror => {
                let mut listing = mirror::list(&self.http, &self.base, &self.name).await?;
                self.fill(&mut listing).await;
                Ok(listing)
            }
            Index::GitHub(github) => {
                let mut pages = github.list(&self.http, self.cache.root()).await?;
                let mut listing = pages.listing();
                self.fill(&mut listing).await;
                pages.remember(&listing, self.cache.root());
                Ok(listing)
            }
        }
    }

    /// Asks the sums files where a listing has no digests: of the newest patch of each minor only, the ones an update
    /// goes to. The others stay without, which makes them no target.
    async fn fill(&self, listing: &mut Listing) {
        let mut newest: BTreeMap<Minor, &Told> = BTreeMap::new();
        for told in listing.releases.values().filter(|told| !told.prerelease && !told.version.is_prerelease()) {
            newest.insert(told.version.minor(), told);
        }
        let lacking: Vec<(Version, Arch)> = newest
            .into_values()
            .flat_map(|told| Arch::ALL.map(|arch| (told, arch)))
            .filter(|(told, arch)| told.files.get(arch.binary()) == Some(&None))
            .map(|(told, arch)| (told.version.clone(), arch))
            .collect();
        let asked: Vec<_> = stream::iter(lacking)
            .map(|(version, arch)| async move {
                let sums = self.sums(&version, arch).await;
                (version, arch, sums)
            })
            .buffered(8)
            .collect()
            .await;
        for (version, arch, sums) in asked {
            match sums {
                Ok(sums) => {
                    let unreadable = sums.unreadable.iter().map(|why| format!("{version}: {}: {why}", arch.sums()));
                    listing.unreadable.extend(unreadable);
                    let Some(told) = listing.releases.get_mut(&version) else { continue };
                    if let Some(digest) = sums.digests.get(arch.binary()) {
                        told.files.insert(arch.binary().to_owned(), Some(*digest));
                    }
                }
                // A mirror need not have every architecture.
                Err(ReleaseError::NoAsset { .. }) if matches!(self.index, Index::Mirror) => {}
                Err(error) => listing.unreadable.push(format!("{version} for {arch}: {error}")),
            }
        }
    }

    async fn sums(&self, version: &Version, arch: Arch) -> Result<Sums, ReleaseError> {
        let file = arch.sums();
        let address = self.address(version, &file);
        let document =
            self.http.document(&address, HeaderMap::new(), SUMS_AT_MOST).await.map_err(|why| self.no_way(why))?;
        match document.status {
            StatusCode::OK => Ok(Sums::parse(&String::from_utf8_lossy(&document.body))),
            StatusCode::NOT_FOUND => Err(self.no_asset(version, file)),
            status => Err(self.answered(format!("{address}: {status}"))),
        }
    }

    fn no_asset(&self, version: &Version, file: String) -> ReleaseError {
        ReleaseError::NoAsset { version: version.clone(), file, source_name: self.name.clone() }
    }

    /// The release, from the newest listing; one is fetched only if there is none.
    async fn told(&self, version: &Version) -> Result<Told, ReleaseError> {
        let mut known = self.listing.lock().await;
        let listing = match &mut *known {
            Some(listing) => listing,
            none => none.insert(self.list().await?),
        };
        let gone = || ReleaseError::NoSuchRelease { version: version.clone(), source_name: self.name.clone() };
        listing.releases.get(version).cloned().ok_or_else(gone)
    }
}

#[async_trait]
impl Releases for Remote {
    async fn catalog(&self) -> Result<Catalog, ReleaseError> {
        let mut known = self.listing.lock().await;
        let listing = known.insert(self.list().await?);
        let release = |told: &Told| Release {
            version: told.version.clone(),
            published: told.published,
            prerelease: told.prerelease,
            binaries: Arch::ALL
                .into_iter()
                .filter_map(|arch| Some((arch, (*told.files.get(arch.binary())?)?)))
                .collect(),
        };
        Ok(Catalog {
            source: self.name.clone(),
            fetched: listing.fetched,
            releases: listing.releases.iter().map(|(version, told)| (version.clone(), release(told))).collect(),
            unreadable: listing.unreadable.clone(),
        })
    }

    async fn fetch(&self, version: &Version, arch: Arch, kind: ArtifactKind) -> Result<Artifact, ReleaseError> {
        let file = layout::file_name(arch, kind);
        let told = self.told(version).await?;
        let listed = told.files.get(&file);
        if listed.is_none() && matches!(self.index, Index::GitHub(_)) {
            return Err(self.no_asset(version, file));
        }
        let digest = match listed {
            Some(Some(digest)) => *digest,
            _ => {
                let sums = self.sums(version, arch).await?;
                let named = sums.digests.get(&file).copied();
                named.ok_or_else(|| self.no_asset(version, format!("digest for {file} in {}", arch.sums())))?
            }
        };
        let address = self.address(version, &file);
        let open = async {
            match self.http.file(&address, &self.name).await? {
                Ok(body) => Ok(body),
                Err(StatusCode::NOT_FOUND) => Err(self.no_asset(version, file.clone())),
                Err(status) => Err(self.answered(format!("{address}: {status}"))),
            }
        };
        let (path, bytes) = self.cache.obtain(&Wanted { version, file: &file, digest }, open).await?;
        let path = std::path::absolute(&path).map_err(|e| crate::cache::here(&path, &e))?;
        Ok(Artifact { version: version.clone(), arch, digest, path, bytes, kind })
    }
}
