//! Running programs to their end.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::interactive;

/// Far longer than any program of these tests takes: what does not end by then hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
    command: String,
}

impl Finished {
    /// Itself, if it ended with this exit code.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// The JSON document on standard output.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON document, {error}: {self}"))
    }

    /// Whether any of its lines on either output contains `text`.
    pub fn says(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr, command } = self;
        write!(f, "{command}\nended with {code:?} and printed\n{stdout}\n{stderr}")
    }
}

/// A system tool, in its plain English voice.
///
/// # Panics
/// It is not installed.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(find(name));
    command.env("LC_ALL", "C");
    command
}

/// Where a system tool is, also when only the administrator has it on the `PATH`.
///
/// # Panics
/// It is not installed.
pub fn find(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not on the PATH; `cargo xtask test` installs what tests need and Debian has, and the rest is for you to install"))
}

/// Runs a program that needs no input.
///
/// # Panics
/// It cannot be started, or does not end.
pub fn finish(command: &mut Command) -> Finished {
    finish_within(LIMIT, command)
}

/// As [`finish`], for programs that take longer than most.
///
/// # Panics
/// It cannot be started, or does not end in time.
pub fn finish_within(limit: Duration, command: &mut Command) -> Finished {
    let description = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    interactive::keep_apart(command);
    let child = command.spawn().unwrap_or_else(|error| panic!("{description} cannot be started: {error}"));
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(limit) else {
        // It has not been waited for, so the id is still its own.
        let _ = kill_process(pid, Signal::KILL);
        panic!("{description} did not end within {} seconds", limit.as_secs());
    };
    let output = output.unwrap_or_else(|error| panic!("{description}: {error}"));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        command: description,
    }
}

/// Runs a program that must succeed, and gives its standard output.
///
/// # Panics
/// It fails.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    finish(command).expect(0).stdout
}

/// Runs a program as another user, who is nobody: files that only root may read are closed to it.
///
/// # Panics
/// The tests do not run as root.
pub fn as_nobody(program: &Path) -> Command {
    assert_root("running a program as another user");
    let mut command = tool("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    command
}

/// The same command under another umask.
pub fn under_umask(umask: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "umask \"$0\" && exec \"$@\"", umask]).arg(command.get_program()).args(command.get_args());
    wrapped(shell, command)
}

/// The same command on a small disk that holds the directory `at` and nothing else, in a mount namespace that ends with it.
/// What the command leaves there is printed at the end of standard output, one path per line.
///
/// # Panics
/// The tests do not run as root.
pub fn on_small_disk(bytes: u64, at: &Path, command: &Command) -> Command {
    assert_root("mounting a small disk");
    let script = "mount -t tmpfs -o \"size=$0\" tmpfs \"$1\" || exit 99; at=$1; shift; \"$@\"; code=$?; \
                  find \"$at\" -mindepth 1; exit $code";
    let mut unshare = tool("unshare");
    unshare.args(["--mount", "--", "/bin/sh", "-c", script, &bytes.to_string()]).arg(at);
    unshare.arg(command.get_program()).args(command.get_args());
    wrapped(unshare, command)
}

/// `outer` with the environment and the directory of `inner`.
fn wrapped(mut outer: Command, inner: &Command) -> Command {
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(directory) = inner.get_current_dir() {
        outer.current_dir(directory);
    }
    outer
}

/// # Panics
/// The tests do not run as root.
pub fn assert_root(what: &str) {
    assert!(rustix::process::geteuid().is_root(), "{what} needs root; run `cargo xtask test` as root");
}
