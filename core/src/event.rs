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
    /// A Kadence took its turn: at the start and at each resume. Nodes refuse lower turns.
    TurnTaken {
        turn: u64,
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
    },
    /// Somebody asked from outside.
    Asked {
        request: Request,
    },
    /// The rollout stands still.
    Held {
        hold: Hold,
    },
    Resumed,
    /// The last event; nothing follows.
    Ended {
        ending: Ending,
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

/// The outage of the API, measured every 100 ms over the servers in turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageMeasured {
    pub reads: Gap,
    pub writes: Gap,
    pub probes: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The longest time between two successes beyond the probe's own pace.
    pub longest: SignedDuration,
    pub failed: u32,
}
