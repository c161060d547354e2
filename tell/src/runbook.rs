//! A plan as a runbook that a person can follow by hand.

use kadence_core::apply::plan::Plan;

/// The runbook in Markdown.
pub fn markdown(plan: &Plan) -> String {
    format!("# Runbook of plan {}\n", plan.hash().short())
}
