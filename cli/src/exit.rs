//! How `kadence` ends: the exit codes, and failures in words.

use std::fmt;
use std::process::ExitCode;

use kadence_core::apply::way_back::NoWayBack;
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
    /// What to do next.
    pub(crate) next: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: &'static str, what: impl Into<String>) -> Self {
        Self { exit, code, what: what.into(), next: None }
    }

    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what, self.code)?;
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
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
            ApiError::NoWay(_) => Self::new(Exit::Refused, "E-API-UNREACHABLE", what)
                .next("look whether the servers run, and whether the kubeconfig names the right address"),
            ApiError::Denied(_) => Self::new(Exit::Refused, "E-API-DENIED", what)
                .next("the kubeconfig may be expired: copy /etc/rancher/k3s/k3s.yaml from a server again"),
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
            StoreError::Busy { .. } => Self::new(Exit::Refused, "E-BUSY", what)
                .next("wait for it, or ask it to stop: kadence pause, kadence abort"),
            StoreError::Newer { .. } => {
                Self::new(Exit::Wrong, "E-STATE-NEWER", what).next("use the Kadence that wrote it, or a newer one")
            }
            StoreError::DiskFull { .. } => Self::new(Exit::Held, "E-STATE-DISK-FULL", what)
                .next("make room, then kadence resume: what nodes were told goes on there and is asked for"),
            StoreError::NotNext { .. } => Self::new(Exit::Held, "E-STATE-RACE", what).next("kadence status"),
            StoreError::Broken { .. } => Self::new(Exit::Wrong, "E-STATE", what),
        }
    }
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        Self::new(Exit::Wrong, "E-VAULT", error.to_string())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::Api(error) => error.into(),
            EngineError::Log { .. } => Self::new(Exit::Wrong, "E-LOG", error.to_string()),
            EngineError::Superseded(_) => Self::new(Exit::Held, "E-SUPERSEDED", error.to_string())
                .next("let the other one finish: kadence status"),
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
            StartError::Unsafe(_) => Self::new(Exit::Refused, "E-PLAN-UNSAFE", what).next("please report this plan"),
            StartError::NeedsConsent(..) => Self::new(Exit::Refused, "E-CONSENT", what),
            StartError::Unfinished(_) => Self::new(Exit::Refused, "E-UNFINISHED", what),
            StartError::Log { .. } => Self::new(Exit::Wrong, "E-LOG", what),
            StartError::Stale(_) => Self::new(Exit::Refused, "E-PLAN-STALE", what).next("make a new plan"),
            StartError::NothingToDo => Self::new(Exit::Refused, "E-NOTHING-TO-DO", what),
        }
    }
}

impl From<NoWayBack> for Failure {
    fn from(error: NoWayBack) -> Self {
        Self::new(Exit::Refused, "E-NO-WAY-BACK", error.to_string())
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
