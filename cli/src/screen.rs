//! What a person sees: facts on stdout, talk and progress on stderr.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kadence_core::event::Recorded;
use kadence_engine::ports::{Observer, Progress};
use kadence_tell::Style;
use kadence_tell::line::Lines;
use serde::Serialize;

use crate::args::{Global, Output};
use crate::exit::{Exit, Failure};

/// Shows a rollout as it goes: a live line on a terminal, plain lines else.
pub(crate) struct Screen {
    style: Style,
    lines: Mutex<Lines>,
    live: Option<ProgressBar>,
}

impl Screen {
    pub(crate) fn new(global: &Global) -> Arc<Self> {
        let terminal = std::io::stderr().is_terminal() && global.output == Output::Text;
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let live = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            bar.set_style(style);
            bar
        });
        let style = Style { colour, width: width(), verbose: global.verbose };
        Arc::new(Self { style, lines: Mutex::new(Lines::new(style)), live })
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Ends the live line.
    pub(crate) fn over(&self) {
        if let Some(live) = &self.live {
            live.finish_and_clear();
        }
    }

    /// Prints one document on stdout.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::new(Exit::Failed, "E-OUTPUT", format!("cannot be written as JSON: {e}")))?;
        print(&(text + "\n"));
        Ok(())
    }

    /// Asks a question; no is the answer where nobody can be asked.
    pub(crate) fn ask(&self, question: &str) -> Result<bool, Failure> {
        if !std::io::stdin().is_terminal() {
            say(question.to_owned());
            return Ok(false);
        }
        let mut stderr = anstream::stderr();
        let _ = write!(stderr, "{question} [y/N] ");
        let _ = stderr.flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|e| Failure::new(Exit::Wrong, "E-INPUT", e.to_string()))?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    fn line(&self, line: &str) {
        match &self.live {
            Some(live) => live.println(line),
            None => say(line.to_owned()),
        }
    }
}

impl Observer for Screen {
    fn event(&self, event: &Recorded) {
        let line = self.lines.lock().ok().and_then(|mut lines| lines.event(event));
        if let Some(line) = line {
            self.line(&line);
        }
    }

    fn progress(&self, progress: &Progress) {
        match progress {
            Progress::Waiting { node, what, .. } => {
                if let Some(live) = &self.live {
                    let node = node.as_ref().map(|n| format!("{n}: ")).unwrap_or_default();
                    live.set_message(format!("{node}waiting for {what}"));
                    live.tick();
                } else if self.style.verbose > 0 {
                    let node = node.as_ref().map(|n| format!("{n}: ")).unwrap_or_default();
                    say(format!("  {node}waiting for {what}"));
                }
            }
            Progress::Outage(_) => {}
            Progress::Say(text) => self.line(text),
        }
    }
}

fn width() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).map_or(100, |c: u16| c.clamp(60, 100))
}

/// Facts, on stdout.
pub(crate) fn print(text: &str) {
    // A reader that went away (`| head`) is no failure of ours.
    let _ = anstream::stdout().write_all(text.as_bytes());
}

/// Talk, on stderr.
pub(crate) fn say(text: String) {
    let mut stderr = anstream::stderr();
    let _ = stderr.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = stderr.write_all(b"\n");
    }
}
