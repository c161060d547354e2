//! A stand-in for `k3s` on test hosts: a program that systemd starts, that kills, power cuts and full disks hit, and that
//! speaks enough of what a K3s speaks for Kadence not to notice.
//!
//! It has the model of the simulated world's API ([`apiserver`](crate::apiserver)) and, instead of simulated machines,
//! the real ones it runs on: files, processes, ports, certificates, time.
//!
//! What is true of it: one binary for all roles and commands, with its version in the file; certificates of the
//! cluster's own CAs; a kubeconfig; joins by token; SQLite with kine's table, or members that elect a leader, need a
//! majority, and keep their log on the disk; snapshots that read back as etcd's, resets, Nodes with heartbeats, Leases,
//! `/readyz`, etcd's health, metrics and member list; flags that a version does not know.
//!
//! What is not: containers (a pod runs as soon as it has a node), the packaged components, networks, etcd's own protocol
//! and file format (only a snapshot's outside is like it), migrations between datastores, the versions of etcd and of
//! stored objects (any binary reads any data), authorisation, node passwords. A follower shows a write a moment before
//! it is certain that a majority has it.

mod agent;
mod client;
mod cluster;
mod disk;
mod kubectl;
mod server;
mod settings;
mod snapshot;
mod tls;

use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::process::ExitCode;

use settings::{Role, Settings};

/// What the file says about itself after its own end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trailer {
    version: String,
    behaviour: Behaviour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Works,
    /// `server` and `agent` end at once, as with a flag that the version does not know.
    ExitsAtOnce,
    /// It starts, and never becomes ready.
    NeverReady,
}

const VERSION: &str = "K3S-STANDIN-VERSION ";
const BEHAVIOUR: &str = "K3S-STANDIN-BEHAVIOUR ";
/// A trailer is shorter than this.
const TRAILER: i64 = 512;

/// Runs `k3s`: the words after the program's name decide what it is.
pub fn run() -> ExitCode {
    let mut words: Vec<String> = std::env::args().collect();
    let program = words.first().and_then(|w| w.rsplit('/').next()).unwrap_or_default().to_owned();
    let mut words = words.split_off(1.min(words.len()));
    // `kubectl` is a link to it, as K3s's installer makes.
    if program == "kubectl" {
        words.insert(0, program);
    }
    match dispatch(&words) {
        Ok(code) => code,
        Err(why) => {
            log("fatal", &why);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[String]) -> Result<ExitCode, String> {
    let trailer = trailer()?;
    let rest = words.get(1..).unwrap_or_default();
    match words.first().map(String::as_str) {
        Some("--version" | "-v") => say(&format!("k3s version {} (standin)\ngo version none", trailer.version)),
        Some(word @ ("server" | "agent")) => {
            let role = if word == "server" { Role::Server } else { Role::Agent };
            if rest.iter().any(|w| w == "--help" || w == "-h") {
                return say(&format!("NAME:\n   k3s {word} - a stand-in\n"));
            }
            if trailer.behaviour == Behaviour::ExitsAtOnce {
                return Err("Error: unrecognized feature gate: StandInGate".to_owned());
            }
            let settings = Settings::read(role, rest, &trailer.version)?;
            block_on(async move {
                match (role, settings.reset.is_some()) {
                    (Role::Server, true) => server::reset(&settings).await,
                    (Role::Server, false) => server::run(settings, trailer.behaviour == Behaviour::Works).await,
                    (Role::Agent, _) => agent::run(settings, trailer.behaviour == Behaviour::Works).await,
                }
            })
        }
        Some("kubectl") => block_on(kubectl::run(rest.to_vec())),
        Some("etcd-snapshot") => block_on(snapshot::command(rest.to_vec())),
        Some("secrets-encrypt") if rest.first().is_some_and(|w| w == "status") => {
            say("Encryption Status: Disabled, no configuration file found")
        }
        Some("token") if rest.first().is_some_and(|w| w == "generate") => say(&random_hex(16)),
        other => Err(format!("the stand-in has no command `{}`", other.unwrap_or_default())),
    }
}

/// Prints what was asked for. Whoever reads only the first line has what it wanted.
fn say(text: &str) -> Result<ExitCode, String> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(format!("stdout: {e}")),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn block_on(work: impl Future<Output = Result<ExitCode, String>>) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|e| format!("no runtime: {e}"))?.block_on(work)
}

fn trailer() -> Result<Trailer, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open("/proc/self/exe")?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::End(-TRAILER.min(i64::try_from(length).unwrap_or(TRAILER))))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().map_err(|e| format!("/proc/self/exe: {e}"))?;
    parse_trailer(&tail).ok_or_else(|| "this file carries no version: see testbed/stand-in".to_owned())
}

fn parse_trailer(tail: &[u8]) -> Option<Trailer> {
    let text = String::from_utf8_lossy(tail);
    let value = |key: &str| text.lines().rev().find_map(|line| line.strip_prefix(key)).map(|v| v.trim().to_owned());
    let behaviour = match value(BEHAVIOUR).as_deref() {
        None | Some("works") => Behaviour::Works,
        Some("exits-at-once") => Behaviour::ExitsAtOnce,
        Some("never-ready") => Behaviour::NeverReady,
        Some(_) => return None,
    };
    Some(Trailer { version: value(VERSION)?, behaviour })
}

/// A line as K3s writes it, for the journal.
#[expect(clippy::print_stderr, reason = "what systemd takes into the journal")]
fn log(level: &str, message: &str) {
    eprintln!("time=\"{}\" level={level} msg={message:?}", jiff::Timestamp::now().strftime("%FT%TZ"));
}

/// Ends the process: a part of it without which the rest is of no use has failed.
#[expect(clippy::exit, reason = "as K3s does when its datastore fails")]
fn fatal(why: &str) -> ! {
    log("fatal", why);
    std::process::exit(1)
}

fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    if getrandom::fill(&mut random).is_err() {
        fatal("the system has no random numbers");
    }
    random.iter().map(|b| format!("{b:02x}")).collect()
}

fn random_number() -> u64 {
    u64::from_str_radix(&random_hex(8), 16).unwrap_or(1).max(1)
}

/// Tells systemd something about this service (`sd_notify`).
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = path.to_string_lossy().into_owned();
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &a));
    if let Err(error) = sent {
        log("error", &format!("systemd could not be told `{state}`: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_its_version_after_its_end() {
        let tail = b"\x7fELF\xff\nK3S-STANDIN-VERSION v1.36.3+k3s1\nK3S-STANDIN-VERSION v1.36.4+k3s1\n";
        let works = Trailer { version: "v1.36.4+k3s1".to_owned(), behaviour: Behaviour::Works };
        assert_eq!(parse_trailer(tail), Some(works), "the last one counts");
        let tail = b"\nK3S-STANDIN-VERSION v1.36.4+k3s1\nK3S-STANDIN-BEHAVIOUR never-ready\n";
        assert_eq!(parse_trailer(tail).map(|t| t.behaviour), Some(Behaviour::NeverReady));
        assert_eq!(parse_trailer(b"ELF"), None);
        assert_eq!(parse_trailer(b"\nK3S-STANDIN-VERSION v1\nK3S-STANDIN-BEHAVIOUR odd\n"), None);
    }
}
