//! The report of a rollout.

use kadence_core::event::Recorded;
use serde_json::{Value, json};

/// The report as one document.
pub fn json(events: &[Recorded]) -> Value {
    json!({ "schema": 1, "events": events })
}

/// The report as a self-contained page.
pub fn html(_events: &[Recorded]) -> String {
    "<!doctype html>".to_owned()
}

/// The report as text.
pub fn text(events: &[Recorded], style: crate::Style) -> String {
    match kadence_core::apply::rollout::Rollout::read(events) {
        Ok(rollout) => crate::status::ending(&rollout, style),
        Err(error) => format!("The log cannot be read: {error}\n"),
    }
}
