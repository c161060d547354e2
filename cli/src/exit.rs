//! How `kadence` ends: the exit codes, and failures in words.

use std::fmt;
use std::process::ExitCode;

use kadence_core::event::Ending;
use kadence_core::validate::finding::Readiness;
use kadence_engine::config::ConfigError;
use kadence_engine::ports::{ApiError, StoreError, VaultError};
use kadence_engine::{Driven, EngineError, StartError};

/// The exit codes. They are a promise to scripts: see `kadence --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    /// It failed, and a person is needed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Wrong = 2,
    /// Refused, or not ready: no service, cordon or binary was changed.
    Refused = 3,
    /// It failed, and everything is back as it was.
    Back = 4,
    /// Held on purpose or for lack of knowledge.
    Held = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Stable and searchable: `E-CONFIG`.
    pub(crate) code: &'static str,
    pub(crate) what: String,
    /// What to do next: no failure is without.
    pub(crate) next: String,
}

impl Failure {
    /// With what one does about failures of this code in general; [`next`](Self::next) says it better where more is
    /// known.
    pub(crate) fn new(exit: Exit, code: &'static str, what: impl Into<String>) -> Self {
        Self { exit, code, what: what.into(), next: advice(code).to_owned() }
    }

    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]\n  next: {}", self.what, self.code, self.next)
    }
}

/// What one does about a failure of this code. `docs/errors.md` says more about each.
fn advice(code: &str) -> &'static str {
    match code {
        "E-AMBIGUOUS" => "give more digits of the plan's hash",
        "E-API" => "read what the API said; -vv shows the requests",
        "E-API-DENIED" => "the kubeconfig may be expired: copy /etc/rancher/k3s/k3s.yaml from a server again",
        "E-API-UNREACHABLE" => "look whether the servers run, and whether the kubeconfig names the right address",
        "E-AT-WORK" => "wait for it (kadence status), then ask again",
        "E-BUSY" => "wait for it, or ask it to stop: kadence pause, kadence abort",
        "E-CONFIG" => "correct kadence.yaml where it says, then kadence config check; kadence init writes a new one",
        "E-CONFIG-EXISTS" => "add the cluster to it by hand, or move it away first",
        "E-CONSENT" => "read what the plan says; if it is what you want, the same command with --yes",
        "E-DEMO" => "another --seed tells another story; please report this one",
        "E-HELD" => "kadence status says what it waits for; kadence resume goes on, kadence abort ends it",
        "E-INPUT" => "give the answers as flags (--help lists them), or --yes for what is found",
        "E-KUBECONFIG" => {
            "correct `kubeconfig` and `context` in kadence.yaml; kubectl --kubeconfig FILE config view reads it"
        }
        "E-LOG" => "use the Kadence that wrote it, or a newer one; the log is left as it is: never edit kadence.db",
        "E-MAN" => "give a folder that exists and may be written to",
        "E-NAME" => "take letters, digits, `-`, `_` and `.`",
        "E-NO-BACKUP" => "give the private key (kadence.yaml: backups.identity), or bring the file back",
        "E-NO-KUBECONFIG" => "--kubeconfig FILE; on a server K3s keeps one in /etc/rancher/k3s/k3s.yaml",
        "E-NO-MARK" => "nothing has to be taken over: kadence plan",
        "E-NO-PLAN" => "make known or correct what is named; kadence inspect shows every fact and why one is missing",
        "E-NO-ROLLOUT" => "kadence history lists the rollouts",
        "E-NO-SUCH-CLUSTER" => "take one of the clusters of kadence.yaml, or add this one",
        "E-NO-SUCH-PLAN" => "kadence plan makes one",
        "E-NO-WAY-BACK" => {
            "kadence history shows what was done; the folder of each backup has a page for restoring by hand"
        }
        "E-NOT-READY" => "do what the findings say, then kadence check",
        "E-NOT-SEEN" => "kadence inspect looks at it; or is the state in another folder (--state)?",
        "E-NOTHING-HELD" => "kadence status shows what there is",
        "E-NOTHING-RUNS" => "kadence status shows what there is",
        "E-NOTHING-TO-DO" => "nothing: every node is where the plan wants it",
        "E-NOTHING-TO-UNDO" => "kadence history shows what was done",
        "E-OTHER-CLUSTER" => "correct the kubeconfig; a cluster that was set up anew gets a new name in kadence.yaml",
        "E-OUTPUT" => "please report this, with -vv",
        "E-PLAN-FILE" => "give a file that kadence plan wrote, or the plan's hash; kadence plan makes it anew",
        "E-PLAN-STALE" => "make a new plan (kadence plan), and look it over",
        "E-PLAN-UNSAFE" => "nothing was done; please report this plan: it is a fault of Kadence",
        "E-PROBES" => "please report this, with -vv",
        "E-RELEASES" => {
            "look at `releases` in kadence.yaml and at the way there; what does not match its digest is never used"
        }
        "E-REPORT-FILE" => "give a path in a folder that exists and may be written to",
        "E-RUNTIME" => "look at this machine's limits: ulimit -u",
        "E-SSH" => "set the variable or the file that is named",
        "E-STATE" => {
            "look at the owner, the rights and the disk of the folder that is named; --state names another one"
        }
        "E-STATE-DISK-FULL" => "make room on this machine, then ask again",
        "E-STATE-NEWER" => "use the Kadence that wrote it, or a newer one",
        "E-STATE-RACE" => "kadence status shows who was faster, and with what",
        "E-SUPERSEDED" => "let the other one finish: kadence status",
        "E-TARGET" => "take another --to, or none: then it is the newest patch of the minor that runs",
        "E-UNFINISHED" => "kadence resume, or kadence abort; then ask again",
        "E-UNKNOWN" => "kadence inspect says why it is not known",
        "E-VAULT" => "look at `backups` in kadence.yaml: recipients, identity, folder",
        "E-WRITE" => "move the file away that is there, or look at the folder's rights",
        _ => "please report this, with -vv",
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Wrong, "E-CONFIG", error.to_string())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let what = error.to_string();
        match error {
            ApiError::NoWay(_) => Self::new(Exit::Refused, "E-API-UNREACHABLE", what),
            ApiError::Denied(_) => Self::new(Exit::Refused, "E-API-DENIED", what),
            ApiError::NotFound(_) | ApiError::Conflict(_) | ApiError::Answered(_) => {
                Self::new(Exit::Refused, "E-API", what)
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let what = error.to_string();
        match error {
            StoreError::Busy { .. } => Self::new(Exit::Refused, "E-BUSY", what),
            StoreError::Newer { .. } => Self::new(Exit::Wrong, "E-STATE-NEWER", what),
            // Before anything began. In the middle of a rollout see `EngineError`.
            StoreError::DiskFull { .. } => Self::new(Exit::Refused, "E-STATE-DISK-FULL", what),
            StoreError::NotNext { .. } => Self::new(Exit::Held, "E-STATE-RACE", what),
            StoreError::Broken { .. } => Self::new(Exit::Wrong, "E-STATE", what),
        }
    }
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        let what = error.to_string();
        match error {
            VaultError::NoRecipient => Self::new(Exit::Wrong, "E-VAULT", what)
                .next("kadence init makes a key; its line `age1...` belongs under backups.recipients"),
            VaultError::BadRecipient(_) => Self::new(Exit::Wrong, "E-VAULT", what).next(
                "the recipient is the public key, age1...; the private one (AGE-SECRET-KEY-1...) is no recipient",
            ),
            VaultError::NoIdentity(_) => Self::new(Exit::Wrong, "E-VAULT", what).next(
                "bring the file back that kadence init wrote (kadence-backup.key), and name it in backups.identity",
            ),
            VaultError::DiskFull(_) => Self::new(Exit::Refused, "E-STATE-DISK-FULL", what),
            VaultError::Io { .. } => Self::new(Exit::Wrong, "E-VAULT", what),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error @ StoreError::DiskFull { .. }) => {
                Self::new(Exit::Held, "E-STATE-DISK-FULL", error.to_string())
                    .next("make room, then kadence resume: what nodes were told goes on there and is asked for")
            }
            EngineError::Store(error) => error.into(),
            EngineError::Api(error) => error.into(),
            EngineError::Log { .. } => Self::new(Exit::Wrong, "E-LOG", error.to_string()),
            EngineError::Superseded(_) => Self::new(Exit::Held, "E-SUPERSEDED", error.to_string()),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let what = error.to_string();
        match error {
            StartError::Api(error) => error.into(),
            StartError::Store(error) => error.into(),
            StartError::Refusal(_) => Self::new(Exit::Refused, "E-TARGET", what),
            StartError::NoPlan(_) => Self::new(Exit::Refused, "E-NO-PLAN", what),
            StartError::Releases(_) => Self::new(Exit::Refused, "E-RELEASES", what),
            StartError::Unsafe(_) => Self::new(Exit::Refused, "E-PLAN-UNSAFE", what),
            StartError::NeedsConsent(..) => Self::new(Exit::Refused, "E-CONSENT", what),
            StartError::Unfinished(_) => Self::new(Exit::Refused, "E-UNFINISHED", what),
            StartError::Log { .. } => Self::new(Exit::Wrong, "E-LOG", what),
            StartError::Stale(_) => Self::new(Exit::Refused, "E-PLAN-STALE", what),
            StartError::Changed { .. } => Self::new(Exit::Refused, "E-PLAN-STALE", what),
            StartError::NothingToUndo => Self::new(Exit::Refused, "E-NOTHING-TO-UNDO", what),
            StartError::NoWayBack(error) => Self::new(Exit::Refused, "E-NO-WAY-BACK", what).next(error.next()),
            StartError::AtWork(_) => Self::new(Exit::Refused, "E-AT-WORK", what),
            StartError::NoBackup(_) => Self::new(Exit::Refused, "E-NO-BACKUP", what).next(
                "give the private key (kadence.yaml: backups.identity), or bring the file back; nothing was stopped",
            ),
            StartError::NothingToDo => Self::new(Exit::Refused, "E-NOTHING-TO-DO", what),
        }
    }
}

/// The exit of a rollout's end.
pub(crate) fn of_driven(driven: &Driven) -> Exit {
    match driven {
        Driven::Held(_) => Exit::Held,
        Driven::Ended(ending) => match ending {
            Ending::Completed => Exit::Done,
            Ending::FailedAndBack { .. } => Exit::Back,
            Ending::Failed { .. } => Exit::Failed,
            Ending::Refused { .. } => Exit::Refused,
            Ending::Aborted { mixed } => {
                // Ended by a person before anything was mixed: nothing failed.
                if mixed.len() > 1 { Exit::Held } else { Exit::Done }
            }
        },
    }
}

/// The exit of `check`.
pub(crate) fn of_readiness(readiness: Readiness) -> Exit {
    match readiness {
        Readiness::Ready | Readiness::ReadyWithWarnings => Exit::Done,
        Readiness::NotReady => Exit::Refused,
        Readiness::CannotDetermine => Exit::Held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes that `docs/errors.md` explains, which are those that the program has: `cli/tests/errors.rs`.
    fn codes() -> impl Iterator<Item = &'static str> {
        let rows = include_str!("../../docs/errors.md").lines().filter_map(|line| line.strip_prefix("| `"));
        rows.filter_map(|row| row.split('`').next())
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let unknown = advice("");
        let reported = ["E-OUTPUT", "E-PROBES"];
        let without: Vec<&str> = codes().filter(|c| advice(c) == unknown && !reported.contains(c)).collect();
        assert_eq!(without, Vec::<&str>::new(), "without a next step");
        assert!(codes().count() > 40);
        let said = Failure::new(Exit::Wrong, "E-KUBECONFIG", "no such file").to_string();
        assert!(said.starts_with("no such file [E-KUBECONFIG]\n  next: correct `kubeconfig`"), "{said}");
    }

    #[test]
    fn a_full_disk_here_refuses_before_a_rollout_and_holds_within() {
        let full = || StoreError::DiskFull { path: "state".to_owned() };
        assert_eq!(Failure::from(full()).exit, Exit::Refused);
        assert_eq!(Failure::from(StartError::Store(full())).exit, Exit::Refused);
        assert_eq!(Failure::from(VaultError::DiskFull("state".to_owned())).exit, Exit::Refused);
        let within = Failure::from(EngineError::Store(full()));
        assert_eq!(within.exit, Exit::Held);
        assert!(within.next.contains("kadence resume"), "{within}");
    }
}
