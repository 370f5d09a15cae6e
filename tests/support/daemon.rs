//! Servers that tests start on this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::interactive;

/// How long a server may take until it answers. They take a second; a machine under load takes ten.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// A child process that is ended when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with its output in the file `log`, and waits until `is_ready`.
    ///
    /// # Panics
    /// It cannot be started, ends, or is not ready in time.
    pub fn start(command: &mut Command, log: &Path, mut is_ready: impl FnMut() -> bool) -> Self {
        let output = File::create(log).unwrap();
        let errors = output.try_clone().unwrap();
        interactive::keep_apart(command);
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        // From here on it is stopped even when what follows panics.
        let mut daemon = Self { child, log: log.to_owned() };
        let started = Instant::now();
        while !is_ready() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("{command:?} ended ({status}):\n{}", daemon.log());
            }
            assert!(!interactive::is_interrupted(), "{command:?} was interrupted");
            assert!(started.elapsed() < START_LIMIT, "{command:?} is not ready:\n{}", daemon.log());
            thread::sleep(POLL);
        }
        daemon
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended by itself.
    ///
    /// # Panics
    /// The operating system does not tell.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The file that it prints to.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it without asking, as a crash would.
    ///
    /// # Panics
    /// It has ended already.
    pub fn kill(&mut self) {
        assert!(self.is_running(), "it has ended:\n{}", self.log());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it do nothing until [`Self::resume`]: its connections stay open, and nobody answers.
    ///
    /// # Panics
    /// It has ended.
    pub fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// It has ended.
    pub fn resume(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Has it read its configuration again.
    ///
    /// # Panics
    /// It has ended.
    pub fn read_configuration(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
    }

    /// Asks it to end, and waits until it has: its exit code, if it was not ended by a signal.
    ///
    /// # Panics
    /// It takes longer than `limit`.
    pub fn finish(&mut self, limit: Duration) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.wait(limit)
    }

    /// Waits until it has ended by itself: its exit code, if it was not ended by a signal.
    ///
    /// # Panics
    /// It takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < limit, "it does not end:\n{}", self.log());
            thread::sleep(POLL);
        }
    }

    /// Asks it to end, and ends it if it does not.
    pub fn stop(&mut self) {
        let started = Instant::now();
        let mut is_asked = false;
        // Errors are of no interest: it may have ended by itself, and tests that have failed already end here, too.
        while let Ok(None) = self.child.try_wait() {
            if !is_asked {
                // Once: some take a second signal for impatience and leave their own children behind.
                let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
                // It may have been stopped for a while when a test failed.
                let _ = kill_process(Pid::from_child(&self.child), Signal::CONT);
                is_asked = true;
            }
            if started.elapsed() > STOP_LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// A daemon that can be ended, stopped for a while, and started again as it was.
pub struct Service {
    command: Command,
    logs: PathBuf,
    starts: u32,
    is_ready: Box<dyn FnMut() -> bool + Send>,
    daemon: Option<Daemon>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("command", &self.command).field("daemon", &self.daemon).finish_non_exhaustive()
    }
}

impl Service {
    /// Starts it, as [`Daemon::start`]. Each start has a log of its own: `logs` with a number.
    ///
    /// # Panics
    /// As for [`Daemon::start`].
    pub fn start(command: Command, logs: &Path, is_ready: impl FnMut() -> bool + Send + 'static) -> Self {
        let mut service =
            Self { command, logs: logs.to_owned(), starts: 0, is_ready: Box::new(is_ready), daemon: None };
        service.restart();
        service
    }

    /// Starts it once more, after it has ended.
    ///
    /// # Panics
    /// As for [`Daemon::start`].
    pub fn restart(&mut self) {
        self.daemon = None;
        self.starts += 1;
        let log = self.log_file();
        self.daemon = Some(Daemon::start(&mut self.command, &log, &mut self.is_ready));
    }

    /// The file that the last process prints to.
    pub fn log_file(&self) -> PathBuf {
        self.logs.with_extension(self.starts.to_string())
    }

    /// The present process.
    ///
    /// # Panics
    /// There is none.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("it runs")
    }

    /// Ends it, if it runs.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// What all of them printed so far.
    pub fn log(&self) -> String {
        let logs = (1..=self.starts).map(|start| self.logs.with_extension(start.to_string()));
        logs.map(|log| fs::read_to_string(log).unwrap_or_default()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}
