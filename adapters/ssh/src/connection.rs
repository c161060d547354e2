//! One master connection to each node, made when it is first needed, kept, and made anew after it was lost.
//!
//! All of it is the system's own OpenSSH: its cryptography, agents, hardware keys, certificates and `~/.ssh/config`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssh::{Child, ChildStdin, ChildStdout, ControlPersist, KnownHosts, Session, SessionBuilder, Stdio};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use kadence_core::config::{Ssh, Sudo};
use kadence_core::ident::NodeName;
use kadence_engine::ports::HostError;

use crate::answer::Answer;
use crate::script::{BOOTSTRAP, Script};

/// ssh gives up on a host that does not answer, at connecting and at authenticating.
const CONNECT: Duration = Duration::from_secs(8);
const LOGIN: Duration = Duration::from_secs(20);
/// A dead way is noticed after two of these without an answer.
const ALIVE: Duration = Duration::from_secs(3);
/// The master ends by itself when nobody has used it for so long: also when Kadence was killed and could not end it.
const IDLE_SECONDS: usize = 120;

/// Where a node is and how to get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) user: String,
}

/// A node's connection.
pub(crate) struct Connection {
    node: NodeName,
    // Before the settings: dropped first, while its control socket still lies in their folder.
    session: Mutex<Option<(Destination, Arc<Session>)>>,
    settings: Arc<Settings>,
}

/// What all connections of a cluster share.
pub(crate) struct Settings {
    ssh: Ssh,
    /// Holds the control sockets and our ssh configuration; removed when the last connection is gone.
    folder: tempfile::TempDir,
    script: Script,
}

impl Settings {
    pub(crate) fn new(ssh: Ssh) -> Result<Self, String> {
        let folder = control_folder()?;
        let config = folder.path().join("ssh_config");
        fs_err::write(&config, ssh_config(&ssh)).map_err(|e| e.to_string())?;
        Ok(Self { ssh, folder, script: Script::new() })
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("ssh_config")
    }
}

/// A folder for control sockets: private, and short, because the path of a socket has at most 107 bytes.
fn control_folder() -> Result<tempfile::TempDir, String> {
    const SOCKET: usize = "/kadence-xxxxxx/.ssh-connectionxxxxxx/master.xxxxxxxxxxxxxxxx".len();
    let candidates = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(std::env::temp_dir())];
    let fitting = |dir: &PathBuf| dir.is_dir() && dir.as_os_str().len() + SOCKET <= 107;
    let parent = candidates.into_iter().flatten().find(fitting).unwrap_or_else(|| PathBuf::from("/tmp"));
    tempfile::Builder::new()
        .prefix("kadence-")
        .tempdir_in(&parent)
        .map_err(|e| format!("no folder for SSH's control sockets in {}: {e}", parent.display()))
}

/// The first value that ssh finds is the one that counts, so ours stand before those of the user. In a file and not on
/// the command line, because only so they hold for a host that is jumped through.
fn ssh_config(ssh: &Ssh) -> String {
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    let mut lines = vec![
        "Host *".to_owned(),
        "LogLevel INFO".to_owned(),
        "BatchMode yes".to_owned(),
        "StrictHostKeyChecking yes".to_owned(),
        "UpdateHostKeys no".to_owned(),
        "ServerAliveCountMax 2".to_owned(),
        "ForwardAgent no".to_owned(),
        "ForwardX11 no".to_owned(),
        "PermitLocalCommand no".to_owned(),
        "RemoteCommand none".to_owned(),
        "RequestTTY no".to_owned(),
        "ClearAllForwardings yes".to_owned(),
    ];
    if let Some(file) = &ssh.known_hosts {
        lines.push(format!("UserKnownHostsFile {}", quoted(file)));
    }
    if let Some(key) = &ssh.key {
        lines.push("IdentitiesOnly yes".to_owned());
        lines.push(format!("IdentityFile {}", quoted(key).replace('%', "%%")));
    }
    // Given a file of ours, ssh reads neither of these by itself.
    lines.push("Include ~/.ssh/config".to_owned());
    lines.push("Include /etc/ssh/ssh_config".to_owned());
    lines.push(String::new());
    lines.join("\n")
}

impl Connection {
    pub(crate) fn new(node: NodeName, settings: Arc<Settings>) -> Self {
        Self { node, settings, session: Mutex::new(None) }
    }

    /// Runs a command of the node's script, as root.
    ///
    /// # Errors
    /// If the host cannot be reached. Nothing was asked of it then.
    pub(crate) async fn call(&self, to: &Destination, arguments: &[String]) -> Result<Call, HostError> {
        // A kept connection may have died; as long as nothing was sent a second try changes nothing.
        let session = self.session(to).await?;
        match self.spawn(session, arguments).await {
            Ok(call) => Ok(call),
            Err(error @ HostError::Sudo { .. }) => Err(error),
            Err(_) => {
                self.forget().await;
                let session = self.session(to).await?;
                self.spawn(session, arguments).await
            }
        }
    }

    /// Lets the connection go: the next call makes a new one.
    pub(crate) async fn forget(&self) {
        // Dropping it asks the master to end.
        self.session.lock().await.take();
    }

    async fn session(&self, to: &Destination) -> Result<Arc<Session>, HostError> {
        let mut slot = self.session.lock().await;
        if let Some((connected_to, session)) = &*slot
            && connected_to == to
        {
            return Ok(Arc::clone(session));
        }
        let mut builder = SessionBuilder::default();
        builder
            .known_hosts_check(KnownHosts::Strict)
            .user(to.user.clone())
            .port(to.port)
            .connect_timeout(CONNECT)
            .server_alive_interval(ALIVE)
            .control_directory(self.settings.folder.path())
            .config_file(self.settings.config_file());
        if let Some(idle) = std::num::NonZeroUsize::new(IDLE_SECONDS) {
            builder.control_persist(ControlPersist::IdleFor(idle));
        }
        // A node may itself be the bastion: it is not jumped to through itself.
        if let Some(bastion) = &self.settings.ssh.bastion
            && host_of(bastion) != to.address
        {
            builder.jump_hosts([bastion]);
        }
        let connecting = builder.connect_mux(&to.address);
        let session = match tokio::time::timeout(LOGIN, connecting).await {
            Ok(Ok(session)) => Arc::new(session),
            Ok(Err(error)) => return Err(self.why_not(to, &error)),
            Err(_) => return Err(self.no_way(format!("{} did not let us in within {LOGIN:?}", to.address))),
        };
        *slot = Some((to.clone(), Arc::clone(&session)));
        Ok(session)
    }

    async fn spawn(&self, session: Arc<Session>, arguments: &[String]) -> Result<Call, HostError> {
        let sudo = &self.settings.ssh.sudo;
        let password = match sudo {
            Sudo::Password(secret) => Some(crate::secret::read(secret).map_err(|why| self.sudo(why))?),
            Sudo::No | Sudo::Passwordless => None,
        };
        let mut command = match sudo {
            Sudo::No => Session::to_command(Arc::clone(&session), "sh"),
            Sudo::Passwordless => {
                let mut command = Session::to_command(Arc::clone(&session), "sudo");
                command.args(["-n", "--", "sh"]);
                command
            }
            Sudo::Password(_) => {
                let mut command = Session::to_command(Arc::clone(&session), "sudo");
                // -k: a password remembered from before would leave ours unread.
                command.args(["-k", "-S", "-p", "", "--", "sh"]);
                command
            }
        };
        command.args(["-c", BOOTSTRAP, "kadence", self.settings.script.short()]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().await.map_err(|e| self.no_way(chain(&e)))?;
        let broken = || self.no_way("the connection has no pipes".to_owned());
        let mut stdin = child.stdin().take().ok_or_else(broken)?;
        let stdout = child.stdout().take().ok_or_else(broken)?;
        let mut stderr = child.stderr().take().ok_or_else(broken)?;
        let complaints = tokio::spawn(async move {
            let mut text = Vec::new();
            // As much as tells what is wrong; the rest is read and dropped, or the other side would wait.
            let _ = (&mut stderr).take(8192).read_to_end(&mut text).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut hello = Vec::new();
        if let Some(password) = password {
            hello.extend(password.as_bytes());
            hello.push(b'\n');
        }
        hello.extend(self.settings.script.line().as_bytes());
        // Not an error here: if the other side is gone its answer says why.
        let _ = stdin.write_all(&hello).await;
        Ok(Call {
            node: self.node.clone(),
            sudo: sudo.clone(),
            stdin: Some(stdin),
            stdout: BufReader::with_capacity(64 * 1024, stdout),
            child,
            complaints,
            begun,
        })
    }

    pub(crate) fn no_way(&self, why: String) -> HostError {
        HostError::NoWay { node: self.node.clone(), why }
    }

    fn sudo(&self, why: String) -> HostError {
        HostError::Sudo { node: self.node.clone(), why }
    }

    /// Why there is no connection, from what ssh wrote.
    fn why_not(&self, to: &Destination, error: &openssh::Error) -> HostError {
        let text = chain(error);
        let Destination { address, port, user } = to;
        let known_hosts =
            self.settings.ssh.known_hosts.as_ref().map_or("~/.ssh/known_hosts".into(), |p| p.display().to_string());
        let key_name = if *port == 22 { address.clone() } else { format!("[{address}]:{port}") };
        if text.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            return HostError::HostKey {
                node: self.node.clone(),
                why: format!(
                    "{key_name} shows another key than the one in {known_hosts}. Either the host was installed anew or \
                     this is not the host. If you know that it is: ssh-keygen -R '{key_name}' -f {known_hosts}, then \
                     ssh-keyscan -p {port} {address} >> {known_hosts}"
                ),
            };
        }
        if text.contains("Host key verification failed") || text.contains("host key is known for") {
            return HostError::HostKey {
                node: self.node.clone(),
                why: format!(
                    "{key_name} is not in {known_hosts}. Compare its key at the host, then: \
                     ssh-keyscan -p {port} {address} >> {known_hosts}"
                ),
            };
        }
        if text.contains("Permission denied (") {
            let key = self
                .settings
                .ssh
                .key
                .as_ref()
                .map_or("your agent's and default keys".to_owned(), |k| k.display().to_string());
            return self.no_way(format!(
                "{user}@{address} refuses to log us in with {key} (ssh.user, ssh.key in kadence.yaml)"
            ));
        }
        self.no_way(format!("{address} port {port}: {}", last_line(&text)))
    }
}

/// One command that runs on a node.
pub(crate) struct Call {
    node: NodeName,
    sudo: Sudo,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    child: Child<Arc<Session>>,
    complaints: JoinHandle<String>,
    begun: Instant,
}

/// What a line of an answer is.
pub(crate) enum Line {
    Fact(String),
    /// The answer is whole.
    End,
    /// The script's own error: code and reason.
    Error {
        code: String,
        why: String,
    },
}

impl Call {
    /// When the node was asked: the connection was there already.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// The other end's stdin.
    pub(crate) fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.stdin.as_mut()
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn stdout(&mut self) -> &mut BufReader<ChildStdout> {
        &mut self.stdout
    }

    /// The next line. Cancel-safe only as a whole: a call that timed out is not used again.
    ///
    /// # Errors
    /// `NoWay` if nothing came within `patience` or the answer was cut off.
    pub(crate) async fn line(&mut self, patience: Duration) -> Result<Line, HostError> {
        let mut text = Vec::new();
        match tokio::time::timeout(patience, self.stdout.read_until(b'\n', &mut text)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(self.no_way(format!("the connection broke: {error}"))),
            Err(_) => return Err(self.no_way(format!("no answer for {} s", patience.as_secs()))),
        }
        if text.pop() != Some(b'\n') {
            return Err(self.cut_off(&text).await);
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut fields = text.splitn(3, '\t');
        Ok(match fields.next() {
            Some("end") => Line::End,
            Some("error") => Line::Error {
                code: fields.next().unwrap_or_default().to_owned(),
                why: fields.next().unwrap_or_default().to_owned(),
            },
            _ => Line::Fact(text),
        })
    }

    /// All lines until the end, as an answer; lines that only say that somebody is there are left out.
    pub(crate) async fn answer(&mut self, patience: Duration) -> Result<Answer, HostError> {
        let mut answer = Answer::default();
        loop {
            match self.line(patience).await? {
                Line::Fact(line) if line == "tick" => {}
                Line::Fact(line) => answer.push(&line),
                Line::End => return Ok(answer),
                Line::Error { code, why } => return Err(self.failed(&answer, code, why)),
            }
        }
    }

    /// An error of the script's, as the port names it.
    pub(crate) fn failed(&self, answer: &Answer, code: String, why: String) -> HostError {
        let node = self.node.clone();
        match code.as_str() {
            "disk-full" => HostError::DiskFull { node, why },
            "not-root" => HostError::Sudo {
                node,
                why: format!("{why}: log in as root, or say in kadence.yaml how to become root (ssh.sudo)"),
            },
            "superseded" => {
                let theirs = answer.text("turn").and_then(|t| t.parse().ok()).unwrap_or(u64::MAX);
                HostError::Superseded { node, ours: 0, theirs }
            }
            "digest" => match answer.get("digest-mismatch") {
                Some([file, expected, found]) => {
                    HostError::Digest { node, file: file.clone(), expected: expected.clone(), found: found.clone() }
                }
                _ => HostError::Failed { node, code, why },
            },
            // Nothing is known of how it ends; of what is watched, how it goes on.
            "waiting" | "over" => HostError::NoWay { node, why },
            _ => HostError::Failed { node, code, why },
        }
    }

    /// Why an answer ended before its end.
    async fn cut_off(&mut self, rest: &[u8]) -> HostError {
        self.stdin = None;
        let complaints = tokio::time::timeout(Duration::from_secs(2), &mut self.complaints).await;
        let complaints = complaints.ok().and_then(Result::ok).unwrap_or_default();
        let said = last_line(&complaints);
        let sudo = |why: String| HostError::Sudo { node: self.node.clone(), why };
        if complaints.contains("sudo: a password is required") {
            return sudo(match self.sudo {
                Sudo::Password(_) => "sudo refuses the password (ssh.sudo in kadence.yaml)".to_owned(),
                _ => "sudo asks for a password and none is configured (ssh.sudo: password in kadence.yaml)".to_owned(),
            });
        }
        if complaints.contains("incorrect password attempt") || complaints.contains("no password was provided") {
            return sudo("sudo refuses the password (ssh.sudo in kadence.yaml)".to_owned());
        }
        if complaints.contains("sudo: ") || complaints.contains("sudoers") {
            return sudo(said.to_owned());
        }
        if complaints.contains("not found") && self.sudo != Sudo::No {
            return sudo(format!("there is no sudo: {said}"));
        }
        let rest = String::from_utf8_lossy(rest);
        self.no_way(match (said.is_empty(), rest.is_empty()) {
            (false, _) => format!("the answer was cut off: {said}"),
            (true, false) => format!("the answer was cut off after `{}`", rest.chars().take(80).collect::<String>()),
            (true, true) => "the connection ended before the answer did".to_owned(),
        })
    }

    fn no_way(&self, why: String) -> HostError {
        HostError::NoWay { node: self.node.clone(), why }
    }

    /// Waits until the other end is gone, for a moment.
    pub(crate) async fn finish(self) {
        drop(self.stdin);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.child.wait()).await;
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default()
}

/// The host of `user@host:port`, without the brackets of an IPv6 address.
fn host_of(destination: &str) -> &str {
    let host = destination.rsplit_once('@').map_or(destination, |(_, host)| host);
    if let Some(v6) = host.strip_prefix('[') {
        return v6.split(']').next().unwrap_or_default();
    }
    match host.split_once(':') {
        Some((name, rest)) if !rest.contains(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_settings_come_before_the_users() {
        let ssh = Ssh {
            key: Some("/keys/with space/id".into()),
            known_hosts: Some("/etc/kadence/known hosts".into()),
            ..Ssh::default()
        };
        let text = ssh_config(&ssh);
        let at = |what: &str| text.find(what).expect(what);
        assert!(at("StrictHostKeyChecking yes") < at("Include"));
        assert!(at("UserKnownHostsFile \"/etc/kadence/known hosts\"") < at("Include"));
        assert!(at("IdentityFile \"/keys/with space/id\"") < at("Include"));
        assert!(!ssh_config(&Ssh::default()).contains("IdentityFile"), "without a key the user's own ssh decides");
    }

    #[test]
    fn control_sockets_fit_into_a_socket_address() {
        let folder = control_folder().expect("a folder");
        assert!(folder.path().as_os_str().len() + "/.ssh-connectionxxxxxx/master.xxxxxxxxxxxxxxxx".len() <= 107);
    }

    #[test]
    fn the_host_of_a_bastion_is_found() {
        for (text, host) in [
            ("10.0.0.1", "10.0.0.1"),
            ("ops@gate:2222", "gate"),
            ("ops@[fd00::1]:22", "fd00::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(super::host_of(text), host, "{text}");
        }
    }
}
