//! The layout that all sources share: file names, sums files and `releases.json`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kadence_core::ident::Digest;
use kadence_core::inventory::Arch;
use kadence_core::version::{Version, VersionError};
use kadence_engine::ports::ArtifactKind;
use serde::{Deserialize, Serialize};

/// Largest sums file that is read. Real ones have four lines.
pub(crate) const SUMS_AT_MOST: u64 = 64 << 10;
/// Largest `releases.json` that is read: room for tens of thousands of releases.
pub(crate) const INDEX_AT_MOST: u64 = 16 << 20;

/// One release in the `releases.json` at the root of a mirror, which is a JSON list of these:
///
/// ```json
/// [
///   {
///     "tag": "v1.36.4+k3s1",
///     "published": "2026-08-27T14:03:11Z",
///     "prerelease": false,
///     "digests": { "amd64": "41cf94b2...", "arm64": "0e8dec9c..." }
///   }
/// ]
/// ```
///
/// Only `tag` is required. `published` is when the release was published upstream (RFC 3339), not when it was mirrored.
/// `digests` holds the SHA-256 of the *binary* for each architecture that the mirror has (`amd64`, `arm64`, `arm`);
/// without it the mirror's sums files are asked. Unknown keys are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub tag: String,
    #[serde(default)]
    pub published: Option<Timestamp>,
    #[serde(default)]
    pub prerelease: bool,
    #[serde(default)]
    pub digests: BTreeMap<String, String>,
}

/// Reads a `releases.json`. An entry that cannot be read does not hide the others: it comes back as its reason.
pub(crate) fn read_index(text: &[u8]) -> Result<Vec<Result<Entry, String>>, String> {
    let entries: Vec<serde_json::Value> =
        serde_json::from_slice(text).map_err(|e| format!("releases.json is not a JSON list of releases: {e}"))?;
    let read = |(i, value): (usize, serde_json::Value)| {
        let tag = value.get("tag").and_then(|t| t.as_str()).map_or_else(|| format!("entry {}", i + 1), str::to_owned);
        Entry::deserialize(value).map_err(|e| format!("{tag}: unreadable in releases.json: {e}"))
    };
    Ok(entries.into_iter().enumerate().map(read).collect())
}

pub(crate) fn file_name(arch: Arch, kind: ArtifactKind) -> String {
    match kind {
        ArtifactKind::Binary => arch.binary().to_owned(),
        ArtifactKind::AirgapImages => format!("k3s-airgap-images-{arch}.tar.zst"),
    }
}

/// The digests of a sums file, by file name; and what in it could not be understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) digests: BTreeMap<String, Digest>,
    pub(crate) unreadable: Vec<String>,
}

impl Sums {
    /// Lines are `<64 hexadecimal digits>  <file>`, with `*` before the file's name where it was read as binary.
    pub(crate) fn parse(text: &str) -> Self {
        let mut sums = Self::default();
        let mut ambiguous = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((digest, file)) = line.split_once(char::is_whitespace) else {
                sums.unreadable.push(format!("line {number} is not `<sha256>  <file>`"));
                continue;
            };
            let file = file.trim_start().trim_start_matches('*');
            match digest.parse::<Digest>() {
                Ok(digest) => {
                    if sums.digests.insert(file.to_owned(), digest).is_some_and(|earlier| earlier != digest) {
                        ambiguous.push(file.to_owned());
                    }
                }
                Err(e) => sums.unreadable.push(format!("line {number} ({file}): {e}")),
            }
        }
        for file in ambiguous {
            sums.digests.remove(&file);
            sums.unreadable.push(format!("{file} has two different digests"));
        }
        sums
    }
}

/// What the name of an entry beside releases means.
pub(crate) enum Named {
    Release(Version),
    /// It looks like a version and is none that can be ordered.
    Unreadable(String),
    SomethingElse,
}

pub(crate) fn name_of(name: &str) -> Named {
    match name.parse::<Version>() {
        Ok(version) => Named::Release(version),
        Err(error) if name.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()) => {
            Named::Unreadable(not_a_version(name, &error))
        }
        Err(_) => Named::SomethingElse,
    }
}

fn not_a_version(name: &str, error: &VersionError) -> String {
    let decoded = name.replace("%2B", "+").replace("%2b", "+");
    if decoded != name && decoded.parse::<Version>().is_ok() {
        format!("{name}: the `+` is written as in an URL; rename the folder to {decoded}")
    } else {
        format!("{name}: {error}")
    }
}
