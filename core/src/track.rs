//! Track: which releases there are.

pub mod catalog;
