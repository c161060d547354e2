//! What the checks found.

use kadence_core::apply::plan::Plan;
use kadence_core::inventory::Inventory;
use kadence_core::validate::finding::{Finding, Verdict, readiness};

use crate::Style;

/// The findings, what to do first.
pub fn text(inventory: &Inventory, plan: Option<&Plan>, findings: &[Finding], _style: Style) -> String {
    let target = plan.map(|p| format!(" to update to {}", p.decision.target)).unwrap_or_default();
    let mut text = format!("{} is {}{target}.\n", inventory.cluster, readiness(findings));
    for f in findings.iter().filter(|f| f.verdict != Verdict::Pass) {
        let mark = match f.verdict {
            Verdict::Block => "✘",
            Verdict::UnknownBlocks | Verdict::Unknown => "?",
            Verdict::Warn => "!",
            Verdict::Pass => "✔",
        };
        text.push_str(&format!("  {mark} {} {}: {}\n      {}\n", f.code, f.about, f.what, f.remedy));
    }
    text
}
