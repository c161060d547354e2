//! The releases of the simulated world, with the parts of real ones, and the port that hands them out.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use kadence_core::ident::Digest;
use kadence_core::inventory::Arch;
use kadence_core::track::catalog::{Catalog, Release};
use kadence_core::version::Version;
use kadence_engine::ports::{Artifact, ArtifactKind, ReleaseError, Releases};

use crate::world::{Handle, State};

/// A binary as it lies on a node: what it says it is, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    pub(crate) version: Version,
    pub(crate) digest: Digest,
}

impl Binary {
    pub(crate) fn of(version: &Version, arch: Arch) -> Self {
        Self { version: version.clone(), digest: Digest::of(format!("k3s {version} {arch}").as_bytes()) }
    }
}

/// What is inside a release, as its notes say. Facts from the component tables of the K3s release notes.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) published: &'static str,
    pub(crate) etcd: &'static str,
    pub(crate) containerd: &'static str,
    pub(crate) coredns: &'static str,
    pub(crate) metrics_server: &'static str,
    pub(crate) traefik: &'static str,
    pub(crate) local_path: &'static str,
}

const KNOWN: [(&str, Parts); 13] = [
    ("v1.33.10+k3s1", parts("2026-03-28", "3.5.26", "2.2.2-k3s1.33", "1.14.1", "0.8.1", "3.6.7", "0.0.34")),
    ("v1.33.11+k3s1", parts("2026-04-27", "3.6.7", "2.2.3-k3s1.33", "1.14.2", "0.8.1", "3.6.13", "0.0.35")),
    ("v1.33.12+k3s1", parts("2026-05-20", "3.6.7", "2.2.3-k3s1.33", "1.14.3", "0.8.1", "3.6.13", "0.0.36")),
    ("v1.34.2+k3s1", parts("2025-11-20", "3.6.5", "2.1.5-k3s1", "1.13.1", "0.8.0", "3.5.1", "0.0.32")),
    ("v1.35.6+k3s1", parts("2026-06-24", "3.6.12", "2.2.5-k3s2", "1.14.4", "0.8.1", "3.7.4", "0.0.36")),
    ("v1.35.7+k3s1", parts("2026-07-29", "3.6.14", "2.2.7-k3s1", "1.14.6", "0.9.0", "3.7.8", "0.0.36")),
    ("v1.35.8+k3s1", parts("2026-08-27", "3.6.14", "2.2.7-k3s1", "1.14.6", "0.9.0", "3.7.8", "0.0.37")),
    ("v1.36.2+k3s1", parts("2026-06-24", "3.6.12", "2.3.2-k3s2", "1.14.4", "0.8.1", "3.7.4", "0.0.36")),
    ("v1.36.3+k3s1", parts("2026-08-04", "3.6.14", "2.3.2-k3s2", "1.14.6", "0.9.0", "3.7.8", "0.0.36")),
    ("v1.36.4+k3s1", parts("2026-08-27", "3.6.14", "2.3.4-k3s1.36", "1.14.6", "0.9.0", "3.7.8", "0.0.37")),
    ("v1.36.5+k3s1", parts("2026-09-30", "3.6.14", "2.3.4-k3s1.36", "1.14.7", "0.9.0", "3.7.13", "0.0.37")),
    ("v1.37.0+k3s1", parts("2026-09-14", "3.7.1", "2.3.4-k3s1", "1.14.7", "0.9.0", "3.7.13", "0.0.37")),
    ("v1.37.1+k3s1", parts("2026-09-30", "3.7.1", "2.3.4-k3s1", "1.14.7", "0.9.0", "3.7.13", "0.0.37")),
];

const fn parts(
    published: &'static str,
    etcd: &'static str,
    containerd: &'static str,
    coredns: &'static str,
    metrics_server: &'static str,
    traefik: &'static str,
    local_path: &'static str,
) -> Parts {
    Parts { published, etcd, containerd, coredns, metrics_server, traefik, local_path }
}

/// The parts of a release. A version that is not in the table has those of the newest known one below it.
pub(crate) fn parts_of(version: &Version) -> &'static Parts {
    let below = KNOWN.iter().rev().find(|(known, _)| known.parse::<Version>().is_ok_and(|k| k <= *version));
    &below.unwrap_or(&KNOWN[0]).1
}

/// Etcd's minor (`3.6`) as one ordered number.
pub(crate) fn etcd_minor(version: &Version) -> (u32, u32) {
    let mut numbers = parts_of(version).etcd.split('.').map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// One release as the source has it.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) release: Release,
    /// What a fetch of the binary runs into.
    pub(crate) trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The file arrives with another digest than the published one.
    Tampered,
    /// The connection ends early.
    Truncated,
}

pub(crate) fn published() -> BTreeMap<Version, Published> {
    KNOWN
        .iter()
        .filter_map(|(text, parts)| {
            let version: Version = text.parse().ok()?;
            let binaries = Arch::ALL.into_iter().map(|arch| (arch, Binary::of(&version, arch).digest)).collect();
            let published = format!("{}T12:00:00Z", parts.published).parse::<Timestamp>().ok();
            let release = Release { version: version.clone(), published, prerelease: false, binaries };
            Some((version, Published { release, trouble: None }))
        })
        .collect()
}

pub(crate) const SOURCE: &str = "simulated releases";
pub(crate) const BINARY_BYTES: u64 = 73_400_320;
const IMAGES_BYTES: u64 = 209_715_200;

/// The release source of the simulated world.
pub(crate) struct SimReleases(pub(crate) Handle);

#[async_trait]
impl Releases for SimReleases {
    async fn catalog(&self) -> Result<Catalog, ReleaseError> {
        self.0.port("catalog", Duration::from_millis(120), State::catalog).await
    }

    async fn fetch(&self, version: &Version, arch: Arch, kind: ArtifactKind) -> Result<Artifact, ReleaseError> {
        let cached = self.0.world().look(|s| s.cache.contains(&(version.clone(), arch)));
        let latency = Duration::from_millis(if cached { 5 } else { 1800 });
        self.0.port("fetch", latency, |s| s.fetch(version, arch, kind)).await
    }
}

impl State {
    fn catalog(&mut self) -> Result<Catalog, ReleaseError> {
        if self.source_away {
            return Err(ReleaseError::NoWay { source_name: SOURCE.to_owned(), why: "connection refused".to_owned() });
        }
        Ok(Catalog {
            source: SOURCE.to_owned(),
            fetched: self.wall(),
            releases: self.releases.iter().map(|(v, p)| (v.clone(), p.release.clone())).collect(),
            unreadable: Vec::new(),
        })
    }

    fn fetch(&mut self, version: &Version, arch: Arch, kind: ArtifactKind) -> Result<Artifact, ReleaseError> {
        let source_name = || SOURCE.to_owned();
        let artifact = |digest| Artifact {
            version: version.clone(),
            arch,
            digest,
            path: format!("/simulated/{version}/{}", arch.binary()).into(),
            bytes: if kind == ArtifactKind::Binary { BINARY_BYTES } else { IMAGES_BYTES },
            kind,
        };
        // What is in the cache was verified, and stays usable when the release is withdrawn or the source is away.
        if self.cache.contains(&(version.clone(), arch)) && kind == ArtifactKind::Binary {
            return Ok(artifact(Binary::of(version, arch).digest));
        }
        if self.source_away {
            return Err(ReleaseError::NoWay { source_name: source_name(), why: "connection refused".to_owned() });
        }
        let Some(published) = self.releases.get(version) else {
            return Err(ReleaseError::NoSuchRelease { version: version.clone(), source_name: source_name() });
        };
        let file = arch.binary().to_owned();
        let Some(digest) = published.release.binaries.get(&arch).copied() else {
            return Err(ReleaseError::NoAsset { version: version.clone(), file, source_name: source_name() });
        };
        match published.trouble {
            Some(Trouble::Tampered) => Err(ReleaseError::Digest {
                version: version.clone(),
                file,
                expected: digest.to_string(),
                found: Digest::of(b"tampered").to_string(),
            }),
            Some(Trouble::Truncated) => Err(ReleaseError::Truncated {
                version: version.clone(),
                file,
                got: BINARY_BYTES / 3,
                expected: BINARY_BYTES,
            }),
            None if kind == ArtifactKind::Binary => {
                self.cache.insert((version.clone(), arch));
                Ok(artifact(digest))
            }
            None => Ok(artifact(Digest::of(format!("images {version} {arch}").as_bytes()))),
        }
    }
}
