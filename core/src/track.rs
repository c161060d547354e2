//! Track: which releases there are, and which of them a cluster goes through.

pub mod catalog;
pub mod resolve;
