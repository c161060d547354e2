//! What happens, line by line, while a rollout runs.

use kadence_core::event::Recorded;

/// A fold of events into the lines that a person sees.
#[derive(Debug, Default)]
pub struct Lines {
    actions: std::collections::BTreeMap<kadence_core::ident::ActionId, String>,
}

impl Lines {
    /// The line for an event; `None` if it is not worth one.
    pub fn event(&mut self, recorded: &Recorded) -> Option<String> {
        use kadence_core::apply::action::Outcome;
        use kadence_core::event::Event;
        match &recorded.event {
            Event::Intent { id, action } => {
                self.actions.insert(id.clone(), action.words());
                None
            }
            Event::Outcome { id, outcome } => {
                let words = self.actions.remove(id).unwrap_or_else(|| id.to_string());
                Some(match &**outcome {
                    Outcome::Done { took, .. } => format!("✔ {words}   {}", crate::words::duration(*took)),
                    Outcome::Failed { failure, .. } => format!("✘ {words}: {}", failure.what),
                    Outcome::Unknown { why } => format!("? {words}: {why}"),
                })
            }
            _ => None,
        }
    }
}
