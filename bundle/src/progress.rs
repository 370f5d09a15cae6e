//! What a person or a log sees while something takes long. Everything goes to standard error; results go to standard output.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often a line on a terminal is drawn again.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a log gets a line about something that goes on.
const LOG: Duration = Duration::from_secs(10);

/// Lines on standard error. On a terminal, the amount done so far is drawn over and over on the last line.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the last line is a drawing without a line break.
    drawn: bool,
    last: Option<Instant>,
}

impl Progress {
    /// Draws if standard error is a terminal.
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), state: Mutex::default() }
    }

    /// One line that stays.
    pub(crate) fn line(&self, text: impl Display) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let clear = if std::mem::take(&mut state.drawn) { "\r\x1b[K" } else { "" };
        // Nobody reads it any more when this fails, and the work goes on.
        let _ = writeln!(io::stderr(), "{clear}{text}");
        state.last = None;
    }

    /// How much of something is done: drawn on a terminal, a line every ten seconds in a log.
    pub(crate) fn amount(&self, what: impl Display, done: u64, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let every = if self.terminal { REDRAW } else { LOG };
        let due = match state.last {
            None => {
                state.last = Some(now);
                self.terminal
            }
            Some(last) => now.duration_since(last) >= every,
        };
        if !due {
            return;
        }
        state.last = Some(now);
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        let text = format!("{what}: {percent} % of {:.1} MB", total as f64 / 1e6);
        if self.terminal {
            state.drawn = true;
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        } else {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}
