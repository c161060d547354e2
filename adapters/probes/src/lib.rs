//! The user's probes and commands, run from this machine.
//!
//! What a probe sees is what a client here would see: no connection is kept from one probe to the next, no redirect is
//! followed, certificates are checked against this machine's authorities.

mod command;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use kadence_core::config::{HttpProbe, Probe, ProbeTest};
use kadence_engine::ports::{CommandRun, Prober};
use reqwest::header::LOCATION;
use tokio::time::timeout;

use crate::command::Command;

/// How much of a body is searched.
const BODY_AT_MOST: usize = 1 << 20;
/// How long a command for an external datastore may take. A dump takes minutes; one that hangs must not hang for ever.
const DATASTORE_WITHIN: Duration = Duration::from_hours(1);

/// Runs probes and commands. Not performed here: conditions of objects in the cluster, which the engine asks of its API.
pub struct Probes {
    http: reqwest::Client,
    datastore_within: Duration,
}

impl Probes {
    /// # Errors
    /// This machine's certificate authorities cannot be read.
    pub fn new() -> Result<Self, String> {
        // See `Http::new` in the release sources: a second provider changes nothing, a missing one would panic.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("kadence/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .build()
            .map_err(words)?;
        Ok(Self { http, datastore_within: DATASTORE_WITHIN })
    }

    async fn http(&self, probe: &HttpProbe) -> Result<(), String> {
        let mut response = self.http.get(&probe.url).send().await.map_err(words)?;
        let status = response.status();
        if status.as_u16() != probe.status {
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            // Where it leads may carry a session or a signature behind the `?`.
            let to = to.map(|to| format!(", which leads to {}", to.split(['?', '#']).next().unwrap_or_default()));
            return Err(format!("answered {status} instead of {}{}", probe.status, to.unwrap_or_default()));
        }
        let Some(text) = &probe.contains else { return Ok(()) };
        let mut body: Vec<u8> = Vec::new();
        while body.len() < BODY_AT_MOST
            && let Some(chunk) = response.chunk().await.map_err(words)?
        {
            // From where a match could begin that ends in the new bytes.
            let from = body.len().saturating_sub(text.len());
            body.extend_from_slice(&chunk);
            if text.is_empty() || body[from..].windows(text.len()).any(|window| window == text.as_bytes()) {
                return Ok(());
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        Err(format!("answered {status}, but without `{text}` in its body ({} bytes looked at)", body.len()))
    }
}

#[async_trait]
impl Prober for Probes {
    async fn probe(&self, probe: &Probe) -> Result<(), String> {
        let within = Duration::try_from(probe.within).unwrap_or_default();
        if within.is_zero() {
            return Err(format!("the time it may take ({:#}) is not more than nothing", probe.within));
        }
        let late = |_| format!("no answer within {:#}", probe.within);
        match &probe.test {
            ProbeTest::Http(http) => timeout(within, self.http(http)).await.map_err(late)?,
            ProbeTest::Tcp(address) => {
                timeout(within, tokio::net::TcpStream::connect(address))
                    .await
                    .map_err(late)?
                    .map_err(|e| e.to_string())?;
                Ok(())
            }
            ProbeTest::Command(argv) => {
                let ended = Command::new(argv)?.run(within).await?;
                if ended.exit == Some(0) { Ok(()) } else { Err(ended.to_string()) }
            }
            ProbeTest::Condition(_) => {
                Err("conditions are asked of the cluster's API by the engine, not here".to_owned())
            }
        }
    }

    async fn command(
        &self,
        argv: &[String],
        stdin: Option<&Path>,
        stdout: Option<&Path>,
    ) -> Result<CommandRun, String> {
        let mut command = Command::new(argv)?;
        if let Some(path) = stdin {
            command.read_from(path)?;
        }
        let file = stdout.map(|path| command.write_to(path)).transpose()?;
        let ended = command.run(self.datastore_within).await?;
        if ended.exit != Some(0) {
            return Err(ended.to_string());
        }
        let bytes_out = match file {
            Some(file) => {
                file.sync_all().map_err(|e| e.to_string())?;
                file.metadata().map_err(|e| e.to_string())?.len()
            }
            None => ended.bytes_out,
        };
        Ok(CommandRun { exit: 0, bytes_out })
    }
}

/// The error with its causes, without the address, which may hold a secret.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        next = cause.source();
    }
    words
}

#[cfg(test)]
mod tests;
