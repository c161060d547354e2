//! Releases as their sources describe them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ident::Digest;
use crate::inventory::Arch;
use crate::version::Version;

/// One K3s release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub version: Version,
    pub published: Option<Timestamp>,
    /// By the source's own word; a version with a pre-release part is one in any case.
    pub prerelease: bool,
    /// The published digest of the binary for each architecture that the release has.
    pub binaries: BTreeMap<Arch, Digest>,
}

/// All that one release source has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// The folder or URL, for people.
    pub source: String,
    pub fetched: Timestamp,
    pub releases: BTreeMap<Version, Release>,
    /// Entries that could not be read, with the reason: a release is never dropped silently.
    pub unreadable: Vec<String>,
}

impl Release {
    pub fn is_prerelease(&self) -> bool {
        self.prerelease || self.version.is_prerelease()
    }
}
