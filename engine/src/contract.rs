//! What every implementation of a port has to do, as suites that its crate runs, and samples of all that is stored.
//!
//! Only for tests: behind the feature `contract`.

pub mod api;
pub mod hosts;
pub mod sample;
pub mod store;
pub mod vault;
