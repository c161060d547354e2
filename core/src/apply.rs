//! Apply: the plan, its carrying out, its undo.

pub mod action;
pub mod plan;
