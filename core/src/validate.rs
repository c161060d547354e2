//! Validate: what is healthy, what is ready, what became worse. "Done" is said only of what was proven here.

pub mod baseline;
pub mod finding;
