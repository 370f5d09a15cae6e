//! Records what a user sees of the main commands, as pictures for the documents: `cargo xtask record`.
//!
//! Usage: `record DIRECTORY [NAME...]`
//!
//! Every command of a picture is run as it is shown, with its output line by line. Only two things are changed: directories of
//! this machine get the names that a reader has, and pauses longer than two seconds are shortened.

mod picture;
mod scenes;

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Somebody types a command and looks at it before the next thing happens.
const TYPED: Duration = Duration::from_millis(900);
/// Longer pauses say nothing in a picture.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "record: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("usage: record DIRECTORY [NAME...]")?);
    let wanted: Vec<String> = arguments.collect();
    let unknown = wanted.iter().find(|name| !scenes::ALL.iter().any(|(known, ..)| known == name));
    let names = scenes::ALL.map(|(name, ..)| name).join(", ");
    ensure!(unknown.is_none(), "there is no picture {:?}; there are {names}", unknown.into_iter().next());
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, title, play) in scenes::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let mut screen = Screen::default();
        play(&mut screen).with_context(|| format!("cannot record \"{name}\""))?;
        let path = directory.join(format!("{name}.svg"));
        fs::write(&path, picture::draw(title, &screen.lines))
            .with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(io::stdout(), "{}", path.display())?;
    }
    Ok(())
}

/// A line, and when it appeared after the beginning of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    at: Duration,
    text: String,
    is_typed: bool,
}

/// What was seen so far.
#[derive(Default)]
struct Screen {
    lines: Vec<Line>,
    now: Duration,
    /// Words of this machine, and what a reader has in their place.
    names: Vec<(String, String)>,
}

impl Screen {
    /// Shows `name` wherever `place` would be seen.
    fn call(&mut self, place: &str, name: &str) {
        self.names.push((place.to_owned(), name.to_owned()));
    }

    /// Types a command, and shows what the command says until it ends, with the exit code that it has to have.
    fn run(&mut self, typed: &str, command: &mut Command, code: i32) -> Result<()> {
        if !self.lines.is_empty() {
            self.show("", false);
        }
        self.show(&format!("$ {typed}"), true);
        self.now += TYPED;
        let (reader, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // As a terminal of the simplest kind: whole lines, one after the other.
        command.env("TERM", "dumb").env_remove("CI").env_remove("RUST_BACKTRACE");
        let mut last = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        // The ends of the pipe that are in there; otherwise this would read for ever.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut lines = BufReader::new(reader);
        let mut line = vec![];
        while lines.read_until(b'\n', &mut line)? > 0 {
            self.now += last.elapsed().min(LONGEST_PAUSE);
            last = Instant::now();
            self.show(String::from_utf8_lossy(&line).trim_end(), false);
            line.clear();
        }
        let status = child.wait()?;
        let seen = || self.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
        ensure!(status.code() == Some(code), "\"{typed}\" ended with {status}, not {code}:\n{}", seen());
        Ok(())
    }

    fn show(&mut self, text: &str, is_typed: bool) {
        let text = self.names.iter().fold(text.to_owned(), |text, (place, name)| text.replace(place, name));
        self.lines.push(Line { at: self.now, text, is_typed });
    }
}
