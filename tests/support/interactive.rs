//! For a program that a person starts to look at the parts that tests use, and ends with ^C.
//!
//! A test that is interrupted ends at once, its children with it, and its directories stay. A person wants them gone. So
//! everything is in one directory, ^C becomes a flag, and children do not get the terminal's signal: they are ended in order.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, anyhow};
use rustix::process::Signal;
use signal_hook::flag;
use tempfile::TempDir;

/// Where sockets can be: a socket's path has at most 108 bytes.
const SHORT: &str = "/tmp";
/// ^C, a supervisor, and a terminal that was closed.
const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

static SESSION: OnceLock<Session> = OnceLock::new();

struct Session {
    directory: PathBuf,
    interrupted: Arc<AtomicBool>,
}

/// From here on everything of this process is in the directory that this gives, and signals interrupt it.
///
/// # Errors
/// The directory cannot be made, or temporary files were made already.
pub fn begin(prefix: &str) -> anyhow::Result<TempDir> {
    // Before there is anything that a signal could leave behind.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS {
        flag::register(signal.as_raw(), Arc::clone(&interrupted)).context("cannot watch for signals")?;
    }
    let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(SHORT);
    let directory = directory.with_context(|| format!("cannot make a directory in {SHORT}"))?;
    let path = directory.path().to_owned();
    tempfile::env::override_temp_dir(&path)
        .map_err(|other| anyhow!("temporary files are in {} already", other.display()))?;
    SESSION.set(Session { directory: path, interrupted }).map_err(|_| io::Error::other("a process has one session"))?;
    Ok(directory)
}

/// Whether somebody wants it to end.
pub fn is_interrupted() -> bool {
    SESSION.get().is_some_and(|session| session.interrupted.load(Ordering::Relaxed))
}

/// A directory with a short path, for what holds sockets.
pub(crate) fn short_directory() -> &'static Path {
    SESSION.get().map_or(Path::new(SHORT), |session| &session.directory)
}

/// Lets a child that is about to be started miss what is typed on the terminal. In a test nothing changes.
pub(crate) fn keep_apart(command: &mut Command) {
    if SESSION.get().is_some() {
        command.process_group(0);
    }
}
