//! A mirror: K3s's layout below an URL, listed by its `releases.json` ([`Entry`](crate::Entry)).

use std::collections::BTreeMap;

use jiff::Timestamp;
use kadence_core::ident::Digest;
use kadence_core::inventory::Arch;
use kadence_engine::ports::ReleaseError;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use crate::http::Http;
use crate::layout::{self, Entry, INDEX_AT_MOST, Named};
use crate::remote::{Listing, Told};

pub(crate) async fn list(http: &Http, base: &str, name: &str) -> Result<Listing, ReleaseError> {
    let address = format!("{base}/releases.json");
    let answered = |why| ReleaseError::Answered { source_name: name.to_owned(), why };
    let document = http
        .document(&address, HeaderMap::new(), INDEX_AT_MOST)
        .await
        .map_err(|why| ReleaseError::NoWay { source_name: name.to_owned(), why })?;
    match document.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(answered(format!(
                "{address} does not exist; a mirror lists its releases in this file (kadence's documentation has its form)"
            )));
        }
        status => return Err(answered(format!("{address}: {status}"))),
    }
    let entries = layout::read_index(&document.body).map_err(|why| answered(format!("{address}: {why}")))?;
    let mut listing = Listing { fetched: Timestamp::now(), ..Listing::default() };
    for entry in entries {
        match entry.and_then(|entry| told(entry, &mut listing.unreadable)) {
            Ok(told) => {
                if let Some(earlier) = listing.releases.insert(told.version.clone(), told) {
                    listing.unreadable.push(format!("{}: listed twice; the last one counts", earlier.version));
                }
            }
            Err(why) => listing.unreadable.push(why),
        }
    }
    Ok(listing)
}

fn told(entry: Entry, unreadable: &mut Vec<String>) -> Result<Told, String> {
    let version = match layout::name_of(&entry.tag) {
        Named::Release(version) => version,
        Named::Unreadable(why) => return Err(why),
        Named::SomethingElse => return Err(format!("{}: not a K3s version", entry.tag)),
    };
    let mut files = BTreeMap::new();
    if entry.digests.is_empty() {
        files.extend(Arch::ALL.map(|arch| (arch.binary().to_owned(), None)));
    }
    for (arch, digest) in &entry.digests {
        match (Arch::parse(arch), digest.parse::<Digest>()) {
            (Some(arch), Ok(digest)) => drop(files.insert(arch.binary().to_owned(), Some(digest))),
            (Some(_), Err(error)) => unreadable.push(format!("{version}: digest for {arch}: {error}")),
            // Of architectures that Kadence does not know nothing is lost.
            (None, _) => {}
        }
    }
    Ok(Told { version, published: entry.published, prerelease: entry.prerelease, files })
}
