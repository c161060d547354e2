//! Validate: what is healthy, what is ready, what became worse. "Done" is said only of what was proven here.

pub mod after;
pub mod baseline;
pub mod checks;
pub mod finding;
pub mod prove;
