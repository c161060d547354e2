//! The one loop: loads facts, asks core, performs actions through the ports, appends events.
//!
//! [`Engine`] holds the ports of one cluster. [`inspect`](Engine::inspect) gathers facts; [`drive`](Engine::drive)
//! carries a rollout on until it ends or holds. Nothing here decides what is safe: that is asked of core each time.

mod back;
mod backup;
pub mod config;
#[cfg(feature = "contract")]
pub mod contract;
mod drive;
mod inspect;
mod outage;
mod perform;
pub mod ports;
mod prove;
mod start;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kadence_core::config::Cluster;
use kadence_core::ident::{ClusterName, NodeName};
use kadence_core::knowledge::Knowledge;

pub use back::WayBack;
pub use drive::{Driven, Stop};
pub use start::{StartError, Wish};

use crate::ports::{Api, Clock, Hosts, Observer, Prober, Releases, Store, StoreError, Vault};

/// The ports of one cluster, and who asks.
#[derive(Clone)]
pub struct Engine {
    pub cluster: ClusterName,
    pub config: Arc<Cluster>,
    pub api: Arc<dyn Api>,
    pub hosts: Arc<dyn Hosts>,
    pub releases: Arc<dyn Releases>,
    pub store: Arc<dyn Store>,
    pub vault: Arc<dyn Vault>,
    pub prober: Arc<dyn Prober>,
    pub clock: Arc<dyn Clock>,
    pub observer: Arc<dyn Observer>,
    pub knowledge: &'static Knowledge,
    /// Who asks: `user@host`.
    pub actor: String,
    /// This program's version.
    pub version: String,
    /// Where each node is reached, as last learnt; shared by clones.
    pub addresses: Arc<Mutex<BTreeMap<NodeName, String>>>,
}

/// Why the engine could not go on at all. What a *node* or the *cluster* did wrong is in the events, not here.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Api(#[from] crate::ports::ApiError),
    #[error("the log of {rollout} cannot be read: {why}")]
    Log { rollout: String, why: String },
    /// A higher turn acts on the nodes.
    #[error("another Kadence has taken over: {0}")]
    Superseded(String),
}
