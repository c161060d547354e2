//! A plan as a table.

use kadence_core::apply::plan::Plan;

use crate::Style;
use crate::words;

/// The plan: its order, its undo, why.
pub fn text(plan: &Plan, _style: Style) -> String {
    let decision = &plan.decision;
    if decision.hops.is_empty() {
        return format!("{} is on {} already: nothing to do.\n", decision.cluster, decision.target);
    }
    let mut text = format!(
        "Plan {} for {}: {}, about {}.\n",
        plan.hash().short(),
        decision.cluster,
        decision.target,
        words::duration(plan.seen.expected.total)
    );
    for (i, hop) in decision.hops.iter().enumerate() {
        text.push_str(&format!("  hop {}  to {}\n", i + 1, hop.to));
        for step in &hop.steps {
            text.push_str(&format!(
                "    {:<12} {:<7} {} → {}   undo: {}\n",
                step.node, step.role, step.from, step.to, step.undo
            ));
        }
    }
    text
}
