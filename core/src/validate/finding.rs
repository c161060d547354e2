//! What a check says: a verdict, the facts it rests on, why it matters and what to do.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The answer of one check about one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's code: `VERSION-PATH`. Stable, documented, searchable.
    pub code: String,
    /// The check's number in the project's list of checks.
    pub number: u32,
    pub verdict: Verdict,
    /// What it is about: a node, `namespace/name`, or `cluster`.
    pub about: String,
    /// What was found, in one sentence.
    pub what: String,
    /// The facts it rests on, each as a person could see it for themselves.
    pub facts: Vec<String>,
    /// Why it matters.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
    /// The waiver that lets the update go on all the same.
    pub waived: Option<Waiver>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Pass,
    /// Known, and worth knowing before going on.
    Warn,
    /// A fact is missing. Does not block: the check only warns.
    Unknown,
    /// A fact is missing, and the check blocks: so does not knowing.
    UnknownBlocks,
    Block,
}

/// What a person took upon themselves: go on although a check says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiver {
    pub owner: String,
    pub reason: String,
    pub until: Timestamp,
}

/// The answer of all checks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    Ready,
    ReadyWithWarnings,
    NotReady,
    CannotDetermine,
}

impl Finding {
    /// Whether it keeps an update from starting.
    pub fn blocks(&self) -> bool {
        self.waived.is_none() && matches!(self.verdict, Verdict::Block | Verdict::UnknownBlocks)
    }
}

/// The readiness that `findings` amount to. Not ready wins over not knowing: the first is what a person fixes first.
pub fn readiness(findings: &[Finding]) -> Readiness {
    let blocking = |verdict| findings.iter().any(|f| f.blocks() && f.verdict == verdict);
    if blocking(Verdict::Block) {
        Readiness::NotReady
    } else if blocking(Verdict::UnknownBlocks) {
        Readiness::CannotDetermine
    } else if findings.iter().any(|f| f.verdict != Verdict::Pass) {
        Readiness::ReadyWithWarnings
    } else {
        Readiness::Ready
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::ReadyWithWarnings => "ready, with warnings",
            Self::NotReady => "not ready",
            Self::CannotDetermine => "cannot determine",
        })
    }
}
