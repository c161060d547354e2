//! Bounded HTTP: every answer has a size limit, every wait an end.

use std::error::Error as _;
use std::time::Duration;

use kadence_engine::ports::ReleaseError;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cache::Wanted;

/// Limits on what an answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    /// Until the headers of an answer have arrived; a document has to be whole within twice that.
    pub(crate) answer: Duration,
    /// A download that makes less than `least` bytes of progress in this time has stalled.
    pub(crate) window: Duration,
    pub(crate) least: u64,
    /// Largest file. The largest ones K3s publishes, uncompressed image archives, are below 1 GB.
    pub(crate) file: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            window: Duration::from_secs(30),
            least: 32 << 10,
            file: 2 << 30,
        }
    }
}

pub(crate) struct Http {
    documents: Client,
    files: Client,
    limits: Limits,
}

/// A small answer, whole.
pub(crate) struct Document {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// A file on its way.
pub(crate) struct Body {
    response: Response,
    source_name: String,
    limits: Limits,
    /// By the answer's headers.
    expected: Option<u64>,
    got: u64,
    mark: u64,
    window_ends: Instant,
}

impl Http {
    pub(crate) fn new(limits: Limits) -> Result<Self, String> {
        // The program installs a provider when it starts. A library that only may come second must not panic if it
        // comes first; an error here says that one is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = || {
            Client::builder()
                .user_agent(concat!("kadence/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(limits.connect)
                .referer(false)
                .redirect(redirect::Policy::custom(follow))
        };
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(words);
        Ok(Self {
            documents: build(client())?,
            // Digests are of the bytes as published. Servers that label an archive `Content-Encoding: gzip` would have
            // it unpacked on the way.
            files: build(client().no_gzip())?,
            limits,
        })
    }

    /// Gets a document of at most `most` bytes, whatever its status.
    pub(crate) async fn document(&self, url: &str, headers: HeaderMap, most: u64) -> Result<Document, String> {
        let within = self.limits.answer * 2;
        let get = async {
            let response = self.documents.get(url).headers(headers).send().await.map_err(words)?;
            let (status, headers) = (response.status(), response.headers().clone());
            let mut response = response;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(words)? {
                if (body.len() + chunk.len()) as u64 > most {
                    return Err(format!("the answer is larger than {most} bytes"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Document { status, headers, body })
        };
        match timeout(within, get).await {
            Ok(Ok(document)) => Ok(document),
            Ok(Err(why)) => Err(format!("{url}: {why}")),
            Err(_) => Err(format!("{url}: no whole answer within {} s", within.as_secs_f32())),
        }
    }

    /// Begins to get a file. The inner error is the status of an answer that is not the file.
    pub(crate) async fn file(&self, url: &str, source_name: &str) -> Result<Result<Body, StatusCode>, ReleaseError> {
        let no_way = |why| ReleaseError::NoWay { source_name: source_name.to_owned(), why };
        let limits = self.limits;
        let identity = HeaderValue::from_static("identity");
        let response = timeout(limits.answer, self.files.get(url).header("accept-encoding", identity).send())
            .await
            .map_err(|_| no_way(format!("{url}: no answer within {} s", limits.answer.as_secs_f32())))?
            .map_err(|e| no_way(format!("{url}: {}", words(e))))?;
        if response.status() != StatusCode::OK {
            return Ok(Err(response.status()));
        }
        let expected = response.content_length();
        if let Some(bytes) = expected.filter(|bytes| *bytes > limits.file) {
            return Err(no_way(format!("{url}: {bytes} bytes are more than any K3s file ({})", limits.file)));
        }
        let window_ends = Instant::now() + limits.window;
        Ok(Ok(Body { response, source_name: source_name.to_owned(), limits, expected, got: 0, mark: 0, window_ends }))
    }
}

impl Body {
    pub(crate) fn got(&self) -> u64 {
        self.got
    }

    /// The next bytes; `None` once all have arrived.
    pub(crate) async fn next(&mut self, wanted: &Wanted<'_>) -> Result<Option<impl AsRef<[u8]> + use<>>, ReleaseError> {
        let file = wanted.file;
        let no_way = |this: &Self, why| ReleaseError::NoWay { source_name: this.source_name.clone(), why };
        let chunk = loop {
            match timeout_at(self.window_ends, self.response.chunk()).await {
                Ok(chunk) => break chunk,
                Err(_) if self.got - self.mark >= self.limits.least => {
                    self.mark = self.got;
                    self.window_ends = Instant::now() + self.limits.window;
                }
                Err(_) => {
                    let (bytes, seconds) = (self.got - self.mark, self.limits.window.as_secs_f32());
                    let why = format!("{file} stalled: {bytes} bytes in {seconds} s, {} bytes in all", self.got);
                    return Err(no_way(self, why));
                }
            }
        };
        match chunk {
            Ok(Some(chunk)) => {
                self.got += chunk.len() as u64;
                if self.got > self.limits.file {
                    return Err(no_way(self, format!("{file} does not end after {} bytes", self.limits.file)));
                }
                Ok(Some(chunk))
            }
            Ok(None) => Ok(None),
            // Whatever broke the connection: of a file whose length is known it can be said how much is missing.
            Err(error) => Err(match self.expected {
                Some(expected) if self.got < expected => ReleaseError::Truncated {
                    version: wanted.version.clone(),
                    file: file.to_owned(),
                    got: self.got,
                    expected,
                },
                _ => no_way(self, format!("{file} broke off after {} bytes: {}", self.got, words(error))),
            }),
        }
    }
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let last_was_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > 5 {
        attempt.error("more than 5 redirects")
    } else if last_was_https && attempt.url().scheme() != "https" {
        attempt.error("a redirect leads from https to an unprotected address")
    } else {
        attempt.follow()
    }
}

/// The error with its causes. Without the address: what a server redirects to may hold a signature.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        next = cause.source();
    }
    words
}
