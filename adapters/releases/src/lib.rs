//! Release sources: where K3s releases are listed and fetched.
//!
//! Every source has the layout of K3s's own releases: for each tag the files `k3s`, `k3s-arm64`, `k3s-armhf`,
//! `sha256sum-<amd64|arm64|arm>.txt` and, where wanted, `k3s-airgap-images-<arch>.tar.zst`.
//!
//! | in `kadence.yaml` | listed by | digests from |
//! | --- | --- | --- |
//! | a folder | looking; `releases.json` in it adds dates, if it is there | the sums files |
//! | `https://...` | `releases.json` (see [`Entry`]) | `releases.json`, else the sums files |
//! | `github`, `github:owner/repo` | GitHub's REST API | the API's asset digests, else the sums files |
//!
//! Nothing is handed out whose SHA-256 was not compared with the published one a moment ago, cached files included. The
//! digest comes from the same place as the file: it proves that the file is whole, not who built it.

mod cache;
mod folder;
mod github;
mod http;
mod layout;
mod mirror;
mod remote;
#[cfg(test)]
mod tests;

use std::path::Path;

use kadence_engine::ports::{ReleaseError, Releases};

use crate::folder::Folder;
use crate::github::GitHub;
use crate::http::Limits;
use crate::remote::Remote;

pub use crate::layout::Entry;

/// Opens the release source that `spec` names. Downloads are kept below `cache`; a folder's files are used where they
/// are. GitHub's API is asked with the token in the environment variable `GITHUB_TOKEN`, if there is one.
///
/// # Errors
/// `spec` names no source, or a folder that is not there. Nothing is asked of the network yet.
pub fn open(spec: &str, cache: &Path) -> Result<Box<dyn Releases>, ReleaseError> {
    let wrong = |why| ReleaseError::Here { what: format!("release source `{spec}`"), why };
    let limits = Limits::default();
    if spec == "github" || spec.starts_with("github:") {
        let repository = spec.strip_prefix("github:").unwrap_or("k3s-io/k3s");
        let token = std::env::var("GITHUB_TOKEN").ok().filter(|token| !token.trim().is_empty());
        let github = GitHub::new(repository, "https://api.github.com", token.as_deref()).map_err(wrong)?;
        let base = format!("https://github.com/{repository}/releases/download");
        return Ok(Box::new(Remote::github(github, &base, cache, limits).map_err(wrong)?));
    }
    if spec.starts_with("https://") || spec.starts_with("http://") {
        // Not repeated in the error: it may hold a password.
        let wrong = |why| ReleaseError::Here { what: "the release source's address".to_owned(), why };
        return Ok(Box::new(Remote::mirror(spec, cache, limits).map_err(wrong)?));
    }
    let folder = Folder::open(Path::new(spec)).map_err(|why| {
        wrong(format!("{why}; a source is `github`, `github:owner/repo`, a folder or an http(s) address"))
    })?;
    Ok(Box::new(folder))
}
