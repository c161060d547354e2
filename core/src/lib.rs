//! Kadence's words and its decisions.
//!
//! Pure: no I/O, no async, no clock, no randomness. Decisions take facts and `now` as arguments and return what they
//! decided with the reasons. The five steps of the product are the five rooms; the words they share lie beside them.

pub mod apply;
pub mod config;
pub mod event;
pub mod fact;
pub mod ident;
pub mod inventory;
pub mod knowledge;
pub mod track;
pub mod validate;
pub mod version;
