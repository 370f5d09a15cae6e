//! Servers that tests start on this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

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
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        // From here on it is stopped even when what follows panics.
        let mut daemon = Self { child, log: log.to_owned() };
        let started = Instant::now();
        while !is_ready() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("{command:?} ended ({status}):\n{}", daemon.log());
            }
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

    /// Asks it to end, and waits until it has: its exit code, if it was not ended by a signal.
    ///
    /// # Panics
    /// It takes longer than `limit`.
    pub fn finish(&mut self, limit: Duration) -> Option<i32> {
        let started = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
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

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}
