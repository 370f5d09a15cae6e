//! What the user sees while steps run, and the children that run in them.
//!
//! On a terminal the current step is one line that is redrawn: number, title, elapsed time, the child's last line. Elsewhere
//! every step is a plain line, with a sign of life once a minute. Everything goes to standard error; standard output is for
//! results. The output of a child is held back and shown when it fails.
//!
//! Children stay in this process's group, so ^C reaches them as well: they remove what they have half written.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::failure::Failure;

/// How often the elapsed time on a terminal moves.
const REDRAW: Duration = Duration::from_millis(500);
/// How often a plain log says that a step is still alive: build servers end jobs that stay silent for long.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// A plain log reports the time of steps that took at least this long.
const WORTH_REPORTING: Duration = Duration::from_secs(5);
/// Lines of a child that are kept for the case that it fails. A failing build of everything prints fewer.
const MAX_KEPT_LINES: usize = 5000;
/// Width of a terminal that does not tell it in `COLUMNS`.
const USUAL_WIDTH: usize = 80;
/// Narrower than this is no terminal that anyone reads.
const MIN_WIDTH: usize = 20;

#[derive(Clone, Copy)]
enum Display {
    Live { width: usize },
    Plain,
}

/// The steps of one command.
pub(crate) struct Progress {
    display: Display,
    steps: usize,
    step: usize,
    title: String,
    started: Instant,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        let terminal = io::stderr().is_terminal()
            && std::env::var_os("CI").is_none()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let width = std::env::var("COLUMNS").ok().and_then(|width| width.parse().ok()).unwrap_or(USUAL_WIDTH);
        let width = width.max(MIN_WIDTH);
        let display = if terminal { Display::Live { width } } else { Display::Plain };
        Self { display, steps, step: 0, title: String::new(), started: Instant::now() }
    }

    /// Runs one step under a title.
    pub(crate) fn step<T>(&mut self, title: &str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.step += 1;
        self.title = title.to_owned();
        self.started = Instant::now();
        match self.display {
            Display::Live { .. } => self.draw(""),
            Display::Plain => self.note(&self.head()),
        }
        let result = work(self);
        let took = self.started.elapsed();
        match self.display {
            Display::Live { .. } => {
                let end = if result.is_ok() { "" } else { "  failed" };
                self.note(&format!("{}  {}{end}", self.head(), clock(took)));
            }
            Display::Plain if result.is_ok() && took >= WORTH_REPORTING => {
                self.note(&format!("{:width$}done in {}", "", clock(took), width = self.counter().len()));
            }
            Display::Plain => {}
        }
        result
    }

    /// Prints a line that stays.
    pub(crate) fn note(&self, text: &str) {
        self.erase();
        // Without standard error nobody watches the progress; the work goes on.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Runs a child that does not read from the terminal, and gives its standard output.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Vec<u8>> {
        let name = program(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let (lines, received) = mpsc::channel();
        let stderr = child.stderr.take().context("the child has no standard error")?;
        thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let mut stdout = child.stdout.take().context("the child has no standard output")?;
        let stdout = thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });

        let kept = self.watch(&received);
        let stdout = stdout
            .join()
            .ok()
            .with_context(|| format!("reading the output of {name} panicked"))?
            .with_context(|| format!("cannot read the output of {name}"))?;
        let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
        if status.success() {
            return Ok(stdout);
        }
        let output = if kept.is_empty() { String::from_utf8_lossy(&stdout).into_owned() } else { kept };
        Err(failure(name, status, output))
    }

    /// Runs a child that owns the terminal: it may ask for a passphrase or print what the user wants to read.
    pub(crate) fn run_visibly(&self, command: &mut Command) -> Result<()> {
        let name = program(command);
        self.erase();
        let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        if status.success() { Ok(()) } else { Err(failure(name, status, String::new())) }
    }

    /// Runs a child that may ask the user for something, and gives its standard output.
    pub(crate) fn run_asking(&self, command: &mut Command) -> Result<Vec<u8>> {
        let name = program(command);
        self.erase();
        let output = command
            .stdin(Stdio::inherit())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        if output.status.success() { Ok(output.stdout) } else { Err(failure(name, output.status, String::new())) }
    }

    /// Shows the child's lines until it closes its standard error, and returns the last of them.
    fn watch(&self, received: &mpsc::Receiver<String>) -> String {
        let mut kept: VecDeque<String> = VecDeque::new();
        let tick = match self.display {
            Display::Live { .. } => REDRAW,
            Display::Plain => HEARTBEAT,
        };
        let mut shown = Instant::now();
        loop {
            match received.recv_timeout(tick.saturating_sub(shown.elapsed())) {
                Ok(line) => {
                    if kept.len() == MAX_KEPT_LINES {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if shown.elapsed() >= tick {
                let last = kept.back().map_or("", |line| line.trim());
                match self.display {
                    Display::Live { .. } => self.draw(last),
                    Display::Plain => self.note(&format!(
                        "{:width$}… {}  {last}",
                        "",
                        clock(self.started.elapsed()),
                        width = self.counter().len()
                    )),
                }
                shown = Instant::now();
            }
        }
        kept.into_iter().fold(String::new(), |mut text, line| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
            text
        })
    }

    fn counter(&self) -> String {
        let digits = self.steps.to_string().len();
        format!("[{:digits$}/{}] ", self.step, self.steps)
    }

    fn head(&self) -> String {
        format!("{}{}", self.counter(), self.title)
    }

    fn draw(&self, last: &str) {
        let Display::Live { width } = self.display else { return };
        let line = format!("{}  {}  {last}", self.head(), clock(self.started.elapsed()));
        let visible: String = line.chars().filter(|character| !character.is_control()).take(width - 1).collect();
        let _ = write!(io::stderr(), "\r\x1b[2K{visible}");
    }

    fn erase(&self) {
        if let Display::Live { .. } = self.display {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

/// Minutes and seconds.
pub(crate) fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

fn program(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

fn failure(name: String, status: ExitStatus, output: String) -> anyhow::Error {
    /// `SIGINT`, and the exit code of programs that clean up after one.
    const INTERRUPT: i32 = 2;
    const INTERRUPTED: i32 = 130;
    if status.signal() == Some(INTERRUPT) || status.code() == Some(INTERRUPTED) {
        return Failure::Interrupted.into();
    }
    // The release tool's codes are documented and pass through; those of other programs mean nothing to the caller.
    let code = match status.code().map(u8::try_from) {
        Some(Ok(code)) if name == crate::workspace::TOOL => code,
        _ => 1,
    };
    Failure::Program { name, code, ended: status.to_string(), output }.into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::{Progress, clock};
    use crate::failure::Failure;

    fn shell(script: &str) -> anyhow::Result<Vec<u8>> {
        Progress::new(1).run(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn gives_standard_output() {
        assert_eq!(shell("echo out; echo err >&2").unwrap(), b"out\n");
    }

    #[test]
    fn shows_what_a_failing_child_printed() {
        let error = shell("echo why >&2; exit 3").unwrap_err();
        assert_eq!(error.to_string(), "sh printed:\nwhy\nsh failed (exit status: 3)");
        assert_eq!(error.downcast::<Failure>().unwrap().exit_code(), 1);
    }

    #[test]
    fn an_interrupted_child_interrupts() {
        // Whoever runs the tests in the background may have them ignore the signal.
        for script in ["exec env --default-signal=INT sh -c 'kill -INT $$'", "exit 130"] {
            assert_eq!(shell(script).unwrap_err().downcast::<Failure>().unwrap().exit_code(), 130);
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Progress::new(1).run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nonexistent/program");
    }

    #[test]
    fn clocks_have_two_digits_for_seconds() {
        assert_eq!(clock(Duration::from_secs(125)), "2:05");
    }
}
