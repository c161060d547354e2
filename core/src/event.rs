//! What happened in a rollout, as it is stored. Status, pages, reports and notices are folds of these; there is no
//! second truth.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::apply::action::{Action, Outcome};
use crate::apply::plan::{Plan, PlanHash};
use crate::ident::{ActionId, ClusterUid, RolloutId};
use crate::validate::finding::Finding;

/// An event as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Version of the event's shape.
    pub schema: u32,
    pub rollout: RolloutId,
    /// Orders the events of a rollout, from 1 without gaps. Wall time never does.
    pub number: u64,
    pub at: Timestamp,
    /// Who caused it: `user@host`, or `kadence` for what follows by itself.
    pub actor: String,
    /// Kadence's version that wrote it.
    pub kadence: String,
    pub event: Event,
}

impl Recorded {
    pub const SCHEMA: u32 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first event of every rollout.
    Started {
        cluster: ClusterUid,
        plan_hash: PlanHash,
        plan: Box<Plan>,
        consent: Consent,
    },
    /// A Kadence took its turn: at the start and at each resume. Nodes refuse lower turns, and the same turn of another
    /// holder.
    TurnTaken {
        turn: u64,
        /// Random, of this taking alone: two copies with a state each may come to the same number.
        #[serde(default)]
        holder: String,
    },
    /// Stored before an action is performed.
    Intent {
        id: ActionId,
        action: Action,
    },
    /// Stored after it. An intent without outcome is unknown, and settled by performing the same id again.
    Outcome {
        id: ActionId,
        outcome: Box<Outcome>,
        /// Measured since the last event that says so; absent if nobody measures.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outage: Option<OutageMeasured>,
    },
    /// Somebody asked from outside.
    Asked {
        request: Request,
    },
    /// The rollout stands still.
    Held {
        hold: Hold,
        /// As with an outcome.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outage: Option<OutageMeasured>,
    },
    Resumed,
    /// A person declared these hosts powered off, in the middle of a restore.
    DeclaredOff {
        nodes: Vec<crate::ident::NodeName>,
    },
    /// The last event; nothing follows.
    Ended {
        ending: Ending,
        /// As with an outcome: that of the whole rollout is the sum over its events.
        outage: Option<OutageMeasured>,
    },
}

/// What a person agreed to when the rollout began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    pub outage: bool,
    pub data_loss: bool,
    /// Hosts that a person declared powered off, for a restore.
    pub powered_off: Vec<crate::ident::NodeName>,
}

/// What another terminal can ask of a running or held rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Stop before the next node and wait for `resume`.
    Pause,
    /// Stop after the node in hand, for good.
    Abort,
}

/// Why a rollout stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub cause: HoldCause,
    /// In words: what happened, where.
    pub what: String,
    /// What to do next.
    pub next: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldCause {
    /// A person asked for it.
    Paused,
    /// A precondition was changed by somebody else.
    Changed,
    /// The cluster is not healthy, not by our doing.
    ClusterNotHealthy,
    /// A fact that a safe step needs could not be had.
    Unknown,
    /// A disruption budget never allowed the eviction.
    BudgetBlocks,
    /// What is left needs a person's consent or decision.
    NeedsConsent,
}

impl HoldCause {
    /// Whether it may go by itself: elections, restarts and hosts that are slow to answer do; what somebody changed or
    /// has to decide does not.
    pub fn may_settle(self) -> bool {
        matches!(self, Self::ClusterNotHealthy | Self::Unknown)
    }
}

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Ending {
    /// Every node proven healthy on the target.
    Completed,
    /// It failed, and everything is as it was before.
    FailedAndBack { what: String, because: String, next: String },
    /// It failed and a person is needed; `mixed` says which versions run where.
    Failed { what: String, because: String, next: String, mixed: BTreeMap<String, Vec<String>> },
    /// Nothing was changed: the checks said no.
    Refused { findings: Vec<Finding> },
    /// Ended by a person between nodes.
    Aborted { mixed: BTreeMap<String, Vec<String>> },
}

/// The outage of the API, measured every 100 ms over the servers in turn, by the Kadence that is at work: nobody measures
/// while a rollout is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageMeasured {
    pub reads: Gap,
    pub writes: Gap,
    pub probes: u32,
}

impl OutageMeasured {
    /// Both together, of one rollout.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            reads: self.reads.and(other.reads),
            writes: self.writes.and(other.writes),
            probes: self.probes.saturating_add(other.probes),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The longest time between two successes beyond the probe's own pace; before the first success, since the probing
    /// began.
    pub longest: SignedDuration,
    pub failed: u32,
}

impl Gap {
    fn and(self, other: Self) -> Self {
        Self { longest: self.longest.max(other.longest), failed: self.failed.saturating_add(other.failed) }
    }
}
