//! End to end, through the real binary, on hosts with real systemd and sshd.
//!
//! Each test tells one story on a cluster of its own. What is asserted is asked of the cluster and its hosts, not of
//! Kadence. Nothing sleeps to let time pass: each wait is for a sign, and has an end.

use std::time::Duration;

use kadence_testbed::{On, full, on, tags};

mod faults;
mod refuses;
mod undo;
mod update;

/// How long a sign may take that comes at once on a machine that is not busy.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// The two newest patches of the newest minor, and the newest patch of the minor before it, if there is one.
pub(crate) struct Versions {
    pub(crate) old: String,
    pub(crate) new: String,
    pub(crate) minor_before: Option<String>,
}

pub(crate) fn versions() -> Versions {
    let tags = tags();
    let new = tags.last().expect("the release source has releases").clone();
    let old = tags[..tags.len() - 1].last().expect("it has at least two").clone();
    let minor = |tag: &str| tag.split('.').take(2).collect::<Vec<_>>().join(".");
    assert_eq!(minor(&old), minor(&new), "the two newest releases are of one minor");
    let minor_before = tags.iter().rev().find(|t| minor(t) != minor(&new)).cloned();
    Versions { old, new, minor_before }
}

/// Which suites a story belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum In {
    /// The short suite on real K3s, and all others.
    Short,
    /// The full suite on real K3s, and the one on the stand-in.
    Full,
    /// The full suite on real K3s only: the story needs what the stand-in does not imitate.
    RealOnly,
}

/// Whether the story is told in this run; a test that is skipped says why.
pub(crate) fn told(suite: In) -> bool {
    let why = match (on(), suite) {
        (None, _) => "no end-to-end run was asked for (cargo xtask e2e)",
        (Some(On::Real), In::Full | In::RealOnly) if !full() => "part of the full suite (cargo xtask e2e --full)",
        (Some(On::StandIn), In::RealOnly) => "the stand-in does not imitate what this needs",
        (Some(_), _) => return true,
    };
    skipped(why);
    false
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}
