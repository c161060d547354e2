//! A deterministic simulated world behind every port: machines, K3s, etcd, workloads, and what goes wrong with them.
//!
//! [`World`] is made by [`World::cluster`] inside a tokio runtime and lives by its clock. Under a paused clock a whole
//! rollout takes milliseconds. What Kadence does to the world is judged by [`invariants`] on the world itself.

mod actions;
mod api;
mod apiserver;
mod bbolt;
pub mod explore;
pub mod facade;
pub mod faults;
mod hosts;
pub mod invariants;
mod objects;
mod release;
mod rng;
mod sqlite;
mod stage;
pub mod standin;
pub mod store;
mod surroundings;
pub mod vault;
mod world;

pub use objects::Workload;
pub use release::Trouble;
pub use rng::Rng;
pub use stage::{Stage, runtime};
pub use world::{Setup, Topology, World};

/// The secret that every simulated server's files hold. It may be nowhere but in encrypted backups.
pub const SECRET: &str = "K10simulated::server:not-to-be-shown";
