//! A program of the user's: no shell, a process group of its own, a deadline, bounded output.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How much of an output is kept: its end, where programs say why they failed.
const KEPT: usize = 4 << 10;
/// How long after its end a program's output is waited for. It ends later only if the program left others behind.
const LINGER: Duration = Duration::from_millis(500);

pub(crate) struct Command {
    program: String,
    inner: tokio::process::Command,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    program: String,
    /// `None` if a signal ended it.
    pub(crate) exit: Option<i32>,
    signal: Option<i32>,
    /// Of its standard output, where that was not a file.
    pub(crate) bytes_out: u64,
    /// Its last words.
    said: String,
}

impl Command {
    pub(crate) fn new(argv: &[String]) -> Result<Self, String> {
        let (program, arguments) = argv.split_first().ok_or("no program is named")?;
        let mut inner = tokio::process::Command::new(program);
        inner.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        inner.process_group(0).kill_on_drop(true);
        Ok(Self { program: program.clone(), inner })
    }

    pub(crate) fn read_from(&mut self, path: &Path) -> Result<(), String> {
        self.inner.stdin(File::from(fs_err::File::open(path).map_err(|e| e.to_string())?));
        Ok(())
    }

    /// Standard output goes to this file, emptied before, which only we can read.
    pub(crate) fn write_to(&mut self, path: &Path) -> Result<File, String> {
        let say = |e: std::io::Error| format!("{}: {e}", path.display());
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(say)?;
        // The mode above does nothing for a file that was there before.
        let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        file.set_permissions(only_us).map_err(say)?;
        self.inner.stdout(file.try_clone().map_err(say)?);
        Ok(file)
    }

    /// Runs it to its end, or kills it and what it started in its process group at the deadline.
    pub(crate) async fn run(mut self, within: Duration) -> Result<Ended, String> {
        let program = self.program;
        let mut group = Group(self.inner.spawn().map_err(|e| format!("{program} could not be started: {e}"))?);
        let out = group.0.stdout.take().map(Output::follow);
        let err = group.0.stderr.take().map(Output::follow);
        match timeout(within, group.0.wait()).await {
            Ok(status) => {
                let status = status.map_err(|e| format!("{program}: {e}"))?;
                Ok(Ended::new(program, status, finish(out).await, finish(err).await))
            }
            Err(_) => {
                group.kill();
                let (out, err) = (finish(out).await, finish(err).await);
                let said = last_words(&err, &out);
                Err(format!("{program} did not end within {within:?} and was killed{said}"))
            }
        }
    }
}

/// A child and its process group, which end at the latest when this is dropped.
struct Group(Child);

impl Group {
    /// The group's id stays its own for as long as its leader was not waited for; after that nothing is killed.
    fn kill(&mut self) {
        let leader = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(leader) = leader {
            // It fails only if the group has ended.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Default)]
struct Heard {
    bytes: u64,
    end: Vec<u8>,
}

/// An output that is read as it comes, so that the program never waits for us, and of which only the end is kept.
struct Output {
    heard: Arc<Mutex<Heard>>,
    reading: JoinHandle<()>,
}

impl Output {
    fn follow(mut from: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let into = Arc::clone(&heard);
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; KEPT];
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                let mut heard = into.lock().unwrap_or_else(PoisonError::into_inner);
                heard.bytes += n as u64;
                heard.end.extend_from_slice(&buffer[..n]);
                let surplus = heard.end.len().saturating_sub(KEPT);
                heard.end.drain(..surplus);
            }
        });
        Self { heard, reading }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn finish(output: Option<Output>) -> Heard {
    let Some(mut output) = output else { return Heard::default() };
    let _ = timeout(LINGER, &mut output.reading).await;
    std::mem::take(&mut *output.heard.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Ended {
    fn new(program: String, status: ExitStatus, out: Heard, err: Heard) -> Self {
        let said = last_words(&err, &out);
        Self { program, exit: status.code(), signal: status.signal(), bytes_out: out.bytes, said }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, said, .. } = self;
        match (self.exit, self.signal) {
            (Some(exit), _) => write!(f, "{program} ended with exit code {exit}{said}"),
            (None, Some(signal)) => write!(f, "{program} was ended by signal {signal}{said}"),
            (None, None) => write!(f, "{program} did not end{said}"),
        }
    }
}

/// The last line that is not empty, of the errors, else of the output; short, and without control characters, because
/// it is shown in a terminal.
fn last_words(err: &Heard, out: &Heard) -> String {
    let line = |heard: &Heard| {
        let text = String::from_utf8_lossy(&heard.end);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    };
    line(err).or_else(|| line(out)).map_or_else(String::new, |line| format!(": {line}"))
}
