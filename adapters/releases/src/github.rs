//! GitHub's list of releases.
//!
//! `GET /repos/{owner}/{repo}/releases?per_page=100&page=N`, newest first, pages until no `Link` with `rel="next"`.
//! Without a token GitHub allows 60 requests an hour, and K3s has about ten pages. So each page is kept in the cache
//! with its ETag and asked for only if it changed; while the first one has not changed, the others are taken as they
//! are for some hours.
//!
//! The shapes here are those of GitHub's documentation and of public clients; the tests play them back, and none was
//! recorded from the live service: `digest` of an asset (`sha256:<hex>`, `null` for files uploaded before 2025-06),
//! 403 or 429 with `x-ratelimit-remaining: 0` and `x-ratelimit-reset` (seconds since 1970) or `retry-after` (seconds),
//! 304 for an unchanged page.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use kadence_core::inventory::Arch;
use kadence_core::version::Version;
use kadence_engine::ports::{ArtifactKind, ReleaseError};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LINK, RETRY_AFTER};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::http::{Document, Http};
use crate::layout::file_name;
use crate::remote::{Listing, Told};

/// A page of 100 releases has about 6 MB.
const PAGE_AT_MOST: u64 = 48 << 20;
/// More than twice what K3s has. Where there are more, that is said.
const PAGES_AT_MOST: usize = 25;
/// GitHub itself lets answers be reused that long.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// How long pages after the first are taken as they are while the first one did not change: a release that is withdrawn
/// after it left the first page, a year later, is noticed this late.
const ASK_OLDER_AGAIN: SignedDuration = SignedDuration::from_hours(6);
/// How old a list may be that stands in while GitHub does not answer.
const STAND_IN_AT_MOST: SignedDuration = SignedDuration::from_hours(24);

pub(crate) struct GitHub {
    /// `owner/repo`.
    repository: String,
    /// `https://api.github.com`.
    api: String,
    /// Sent to `api` only.
    token: Option<HeaderValue>,
}

/// What is kept of the pages.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pages {
    schema: u32,
    pages: Vec<Page>,
    #[serde(skip)]
    path: PathBuf,
    /// Why this is not the newest state.
    #[serde(skip)]
    stands_in: Option<String>,
}

const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Page {
    etag: Option<String>,
    /// When GitHub last said that this is the page.
    asked: Timestamp,
    more: bool,
    releases: Vec<Told>,
    other_tags: Vec<String>,
}

/// A release in GitHub's words; what is not needed is left out.
#[derive(Deserialize)]
struct ApiRelease {
    tag_name: String,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    prerelease: bool,
    published_at: Option<Timestamp>,
    #[serde(default)]
    assets: Vec<ApiAsset>,
}

#[derive(Deserialize)]
struct ApiAsset {
    name: String,
    #[serde(default)]
    digest: Option<String>,
    /// `uploaded`, or `open` while the upload goes on.
    #[serde(default)]
    state: Option<String>,
}

impl GitHub {
    pub(crate) fn new(repository: &str, api: &str, token: Option<&str>) -> Result<Self, String> {
        let part = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !repository.split_once('/').is_some_and(|(owner, repo)| part(owner) && part(repo)) {
            return Err(format!("`{repository}` is not a repository like k3s-io/k3s"));
        }
        let token = token
            .map(|token| {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                    .map_err(|_| "the token in GITHUB_TOKEN has characters that no token has".to_owned())?;
                value.set_sensitive(true);
                Ok::<_, String>(value)
            })
            .transpose()?;
        Ok(Self { repository: repository.to_owned(), api: api.to_owned(), token })
    }

    pub(crate) fn name(&self) -> String {
        format!("github.com/{}", self.repository)
    }

    /// All pages, as new as GitHub lets us have them.
    pub(crate) async fn list(&self, http: &Http, cache: &Path) -> Result<Pages, ReleaseError> {
        let path = cache.join("github").join(format!("{}.json", self.repository.replace('/', "+")));
        let kept = Pages::read(&path);
        match self.refresh(http, &kept.pages).await {
            Ok(pages) => Ok(Pages { schema: SCHEMA, pages, path, stands_in: None }),
            Err(error) => {
                let oldest = kept.pages.iter().map(|page| page.asked).min();
                let age = oldest.map(|asked| Timestamp::now().duration_since(asked));
                match (error, age) {
                    (ReleaseError::NoWay { why, .. } | ReleaseError::Answered { why, .. }, Some(age))
                        if age <= STAND_IN_AT_MOST =>
                    {
                        let minutes = age.as_secs() / 60;
                        let why = format!("{}: this list is {minutes} min old: {why}", self.name());
                        Ok(Pages { stands_in: Some(why), path, ..kept })
                    }
                    (error, _) => Err(error),
                }
            }
        }
    }

    async fn refresh(&self, http: &Http, kept: &[Page]) -> Result<Vec<Page>, ReleaseError> {
        let mut pages: Vec<Page> = Vec::new();
        let mut first_changed = true;
        loop {
            let number = pages.len() + 1;
            let old = kept.get(number - 1);
            let now = Timestamp::now();
            let fresh_for = if number == 1 { ASK_AGAIN } else { ASK_OLDER_AGAIN };
            let as_it_is = old.filter(|old| {
                let age = now.duration_since(old.asked);
                (number == 1 || !first_changed) && !age.is_negative() && age < fresh_for
            });
            let page = match as_it_is {
                Some(page) => page.clone(),
                None => self.page(http, number, old).await?,
            };
            if number == 1 {
                first_changed = !old.is_some_and(|old| old.etag.is_some() && old.etag == page.etag);
            }
            let more = page.more;
            pages.push(page);
            if !more || number == PAGES_AT_MOST {
                carry_over(kept, &mut pages);
                return Ok(pages);
            }
        }
    }

    async fn page(&self, http: &Http, number: usize, old: Option<&Page>) -> Result<Page, ReleaseError> {
        let address = format!("{}/repos/{}/releases?per_page=100&page={number}", self.api, self.repository);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.insert("x-github-api-version", HeaderValue::from_static("2022-11-28"));
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        if let Some(etag) = old.and_then(|old| HeaderValue::from_str(old.etag.as_deref()?).ok()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        let source_name = self.name();
        let document = http
            .document(&address, headers, PAGE_AT_MOST)
            .await
            .map_err(|why| ReleaseError::NoWay { source_name: source_name.clone(), why })?;
        let answered = |why| ReleaseError::Answered { source_name, why };
        let asked = Timestamp::now();
        match (document.status, old) {
            (StatusCode::NOT_MODIFIED, Some(old)) => Ok(Page { asked, ..old.clone() }),
            (StatusCode::OK, _) => {
                let releases: Vec<ApiRelease> = serde_json::from_slice(&document.body)
                    .map_err(|e| answered(format!("{address}: the answer is not a list of releases: {e}")))?;
                Ok(Page::of(&document, releases, asked))
            }
            (StatusCode::NOT_FOUND, _) => Err(answered(format!("there is no repository {}", self.repository))),
            (StatusCode::UNAUTHORIZED, _) => {
                Err(answered("the token in GITHUB_TOKEN is refused (401): it is wrong or has expired".to_owned()))
            }
            (status @ (StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS), _) => {
                Err(answered(self.refused(status, &document, asked)))
            }
            (status, _) => Err(answered(format!("{address}: {status}"))),
        }
    }

    /// What a 403 or 429 means, and until when.
    fn refused(&self, status: StatusCode, document: &Document, now: Timestamp) -> String {
        let number = |name: &str| document.headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
        let spent = number("x-ratelimit-remaining") == Some(0);
        let until = number(RETRY_AFTER.as_str())
            .and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok())
            .or_else(|| spent.then(|| Timestamp::from_second(number("x-ratelimit-reset")?).ok()).flatten());
        let more = if self.token.is_none() {
            "; a token in GITHUB_TOKEN raises the limit from 60 to 5000 requests an hour"
        } else {
            ""
        };
        match until {
            Some(until) => {
                let minutes = (until.duration_since(now).as_secs().max(0) + 59) / 60;
                let until = until.strftime("%H:%M UTC");
                format!("GitHub's rate limit is used up until {until} (in {minutes} min){more}")
            }
            None if spent => format!("GitHub's rate limit is used up{more}"),
            None => {
                #[derive(Deserialize)]
                struct Message {
                    message: String,
                }
                let said = serde_json::from_slice::<Message>(&document.body).map(|it| it.message).unwrap_or_default();
                let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
                format!("GitHub refuses ({status}): {said}")
            }
        }
    }
}

impl Page {
    fn of(document: &Document, api: Vec<ApiRelease>, asked: Timestamp) -> Self {
        let header = |name| document.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let full = api.len() >= 100;
        // Something between here and GitHub may have dropped the header; one page too many is empty and does no harm.
        let more = header(LINK).map_or(full, |link| link.contains("rel=\"next\""));
        let mut page =
            Self { etag: header(ETAG).map(str::to_owned), asked, more, releases: Vec::new(), other_tags: Vec::new() };
        for release in api.into_iter().filter(|release| !release.draft) {
            match release.tag_name.parse::<Version>() {
                Ok(version) => page.releases.push(release.told(version)),
                Err(_) => page.other_tags.push(release.tag_name),
            }
        }
        page
    }
}

impl ApiRelease {
    fn told(self, version: Version) -> Told {
        let wanted: Vec<String> = Arch::ALL
            .into_iter()
            .flat_map(|arch| [ArtifactKind::Binary, ArtifactKind::AirgapImages].map(|kind| file_name(arch, kind)))
            .collect();
        let files = self
            .assets
            .into_iter()
            .filter(|asset| wanted.contains(&asset.name) && asset.state.as_deref().is_none_or(|s| s == "uploaded"))
            .map(|asset| {
                let digest = asset.digest.as_deref().and_then(|text| text.strip_prefix("sha256:")?.parse().ok());
                (asset.name, digest)
            })
            .collect();
        Told { version, published: self.published_at, prerelease: self.prerelease, files }
    }
}

/// Digests that the sums files gave earlier, for files of which GitHub still has none. A release that GitHub lists with
/// another date is not the same one.
fn carry_over(kept: &[Page], pages: &mut [Page]) {
    let known: BTreeMap<&Version, &Told> =
        kept.iter().flat_map(|page| &page.releases).map(|told| (&told.version, told)).collect();
    for told in pages.iter_mut().flat_map(|page| &mut page.releases) {
        let Some(earlier) = known.get(&told.version).filter(|earlier| earlier.published == told.published) else {
            continue;
        };
        for (file, digest) in &mut told.files {
            if digest.is_none() {
                *digest = earlier.files.get(file).copied().flatten();
            }
        }
    }
}

impl Pages {
    /// What was kept; nothing if it cannot be read, which only costs asking again.
    fn read(path: &Path) -> Self {
        let read = || serde_json::from_slice::<Self>(&fs_err::read(path).ok()?).ok();
        read().filter(|pages| pages.schema == SCHEMA).unwrap_or_default()
    }

    pub(crate) fn listing(&self) -> Listing {
        let mut listing = Listing {
            fetched: self.pages.iter().map(|page| page.asked).min().unwrap_or(Timestamp::UNIX_EPOCH),
            ..Listing::default()
        };
        listing.unreadable.extend(self.stands_in.clone());
        if self.pages.last().is_some_and(|page| page.more) {
            listing
                .unreadable
                .push(format!("there are more than {} releases: the oldest are not listed", PAGES_AT_MOST * 100));
        }
        for told in self.pages.iter().flat_map(|page| &page.releases) {
            // While pages are read a new release can move one from the end of a page to the start of the next.
            listing.releases.insert(told.version.clone(), told.clone());
        }
        let others: Vec<&str> = self.pages.iter().flat_map(|page| &page.other_tags).map(String::as_str).collect();
        if !others.is_empty() {
            let few = others.iter().take(4).copied().collect::<Vec<_>>().join(", ");
            let rest = others.len().saturating_sub(4);
            let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            listing.unreadable.push(format!("not K3s versions that can be ordered: {few}{rest}"));
        }
        listing
    }

    /// Keeps the pages, with the digests that were found since.
    pub(crate) fn remember(&mut self, listing: &Listing, cache: &Path) {
        if self.stands_in.is_some() {
            return;
        }
        for told in self.pages.iter_mut().flat_map(|page| &mut page.releases) {
            if let Some(filled) = listing.releases.get(&told.version) {
                told.files.clone_from(&filled.files);
            }
        }
        // What cannot be kept is asked for again: slower, not wrong.
        let kept = serde_json::to_vec(self)
            .map_err(|e| e.to_string())
            .and_then(|text| cache::write_whole(&self.path, &text).map_err(|e| e.to_string()));
        if let Err(why) = kept {
            tracing::warn!(cache = %cache.display(), why, "the list of releases could not be kept");
        }
    }
}
