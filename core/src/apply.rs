//! Apply: the plan, its carrying out, its undo.

pub mod action;
pub mod backup;
pub mod drain;
pub mod plan;
pub mod planner;
pub mod precondition;
pub mod restore;
pub mod rollout;
pub mod signature;
pub mod undo;
pub mod verify;
pub mod way_back;

#[cfg(test)]
mod tests;
