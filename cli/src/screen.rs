//! What a person sees: facts on stdout, talk and progress on stderr.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::Recorded;
use kadence_engine::ports::{Observer, Progress};
use kadence_tell::Style;
use kadence_tell::line::Lines;
use kadence_tell::live::Live;
use serde::Serialize;

use crate::args::{Global, Output};
use crate::exit::{Exit, Failure};

/// How often what goes on is drawn on a terminal, and how often it is looked at where nothing is drawn.
const DRAW: Duration = Duration::from_millis(120);
const LOOK: Duration = Duration::from_secs(1);

/// Shows a rollout as it goes: a block of live lines below the others on a terminal, plain lines else.
pub(crate) struct Screen {
    style: Style,
    lines: Mutex<Lines>,
    live: Mutex<Option<Live>>,
    over: AtomicBool,
    /// The place of the live lines; `None` without a terminal.
    bar: Option<ProgressBar>,
}

impl Screen {
    pub(crate) fn new(global: &Global) -> Arc<Self> {
        let terminal = std::io::stderr().is_terminal() && global.output == Output::Text;
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        let style = Style { colour, width: width(), verbose: global.verbose };
        let (lines, live) = (Mutex::new(Lines::new(style)), Mutex::new(None));
        Arc::new(Self { style, lines, live, over: AtomicBool::new(false), bar })
    }

    /// Shows what goes on in this rollout from now on, until it is [over](Self::over).
    pub(crate) fn begin(self: &Arc<Self>, rollout: &Rollout) {
        if let Ok(mut lines) = self.lines.lock() {
            lines.take_up(rollout);
        }
        if let Ok(mut live) = self.live.lock() {
            *live = Some(Live::of(rollout, Timestamp::now()));
        }
        self.over.store(false, Ordering::Relaxed);
        let screen = Arc::downgrade(self);
        // A thread of its own: the wheel turns while the runtime is busy.
        std::thread::spawn(move || {
            let mut tick = 0;
            while let Some(screen) = screen.upgrade().filter(|s| !s.over.load(Ordering::Relaxed)) {
                screen.draw(tick);
                tick += 1;
                let pause = if screen.bar.is_some() { DRAW } else { LOOK };
                drop(screen);
                std::thread::sleep(pause);
            }
        });
    }

    fn draw(&self, tick: usize) {
        let Ok(mut live) = self.live.lock() else { return };
        let Some(live) = live.as_mut() else { return };
        match &self.bar {
            Some(bar) => {
                bar.set_message(live.block(Timestamp::now(), tick, self.style));
                bar.tick();
            }
            None => live.long_waits(Timestamp::now()).into_iter().for_each(say),
        }
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Takes in what was said before, so that what follows names what it goes on with.
    pub(crate) fn catch_up(&self, events: &[Recorded]) {
        if let Ok(mut lines) = self.lines.lock() {
            for event in events {
                let _ = lines.event(event);
            }
        }
    }

    /// Ends the live lines.
    pub(crate) fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
        // Nothing is drawn after this: the thread draws only what is there.
        if let Ok(mut live) = self.live.lock() {
            *live = None;
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
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
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(line.to_owned()),
        }
    }
}

impl Observer for Screen {
    fn event(&self, event: &Recorded) {
        let line = self.lines.lock().ok().and_then(|mut lines| lines.event(event));
        let ended = self.live.lock().ok().and_then(|mut live| live.as_mut()?.event(event, line.is_some()));
        for line in line.iter().chain(&ended) {
            self.line(line);
        }
    }

    fn progress(&self, progress: &Progress) {
        match progress {
            Progress::Waiting { action, node, what, .. } => {
                if let Ok(mut live) = self.live.lock()
                    && let Some(live) = live.as_mut()
                {
                    live.waits(action, what);
                }
                if self.bar.is_none() && self.style.verbose > 0 {
                    let node = node.as_ref().map(|n| format!("{n}: ")).unwrap_or_default();
                    say(format!("  {node}waiting for {what}"));
                }
            }
            Progress::Outage(outage) => {
                if let Ok(mut live) = self.live.lock()
                    && let Some(live) = live.as_mut()
                {
                    live.outage(*outage);
                }
            }
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
