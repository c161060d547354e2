//! sim

pub mod store;
pub mod vault;
