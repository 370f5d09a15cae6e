//! The demonstration, as somebody sees it who watches, and what is left of it: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::program;
use integration_tests::run::{self, succeed};
use rustix::process::{Pid, Signal, kill_process};

/// What its job says, and nobody may read.
const SECRET: &str = "correct-horse-battery-staple";
/// How long anything of it may take on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(300);
/// The exit code after a signal.
const INTERRUPTED: i32 = 130;

/// The demonstration. What it needs beside it is built.
fn demo() -> Command {
    program::mothership();
    Command::new(env!("CARGO_BIN_EXE_demo"))
}

/// The directory that it says everything is in.
fn directory(shown: &str) -> PathBuf {
    let named = shown.split_once("Everything is in ").and_then(|(_, rest)| rest.split_once(", until the end."));
    PathBuf::from(named.unwrap_or_else(|| panic!("it names no directory:\n{shown}")).0)
}

/// Fails if there is the directory still, or a process of something in it, in whatever container.
fn assert_nothing_left(shown: &str) {
    let directory = directory(shown);
    assert!(!directory.exists(), "{} is left\n{shown}", directory.display());
    let name = directory.to_str().unwrap();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        // A container's root is a mount of files in the directory. Processes may end meanwhile.
        for file in ["cmdline", "mountinfo"] {
            let text = fs::read(process.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(name), "{} is left: {text}\n{shown}", process.path().display());
        }
    }
}

/// A demonstration that runs, with what it has shown so far.
struct Watched {
    child: Child,
    shown: String,
    more: Receiver<Vec<u8>>,
}

impl Watched {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, more) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_owned()).is_err() {
                    break;
                }
            }
        });
        Self { child, shown: String::new(), more }
    }

    /// Waits until it has shown this.
    fn until(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.shown.contains(text) {
            let left = LIMIT.saturating_sub(begun.elapsed());
            match self.more.recv_timeout(left) {
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("it does not show {text:?}, {error}:\n{}", self.shown),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended: the exit code, and all that it showed.
    fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < LIMIT, "it does not end:\n{}", self.shown);
            thread::sleep(Duration::from_millis(20));
        };
        self.shown.extend(self.more.iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
        (status.code(), std::mem::take(&mut self.shown))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A test that failed leaves nothing either: it is asked to clean up.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn a_run_is_shown_from_beginning_to_end() {
    let mut watched = Watched::start(demo().arg("--exit").stdin(Stdio::null()));
    watched.until("Ending everything");
    let (code, shown) = watched.end();
    assert_eq!(code, Some(0), "{shown}");
    let mut rest = shown.as_str();
    for part in [
        "start a container engine",
        "A tracked run",
        "QUEUED",
        "PREPARING on launcher-",
        "│ Would create the network\n",
        "│ Would create the service\n",
        "│ The password is ***\n",
        "UNCONFIRMED\n",
        "Confirm? [yes] yes",
        "takes no more runs for a moment",
        "CONFIRMED\n",
        "PREPARING_APPLY on launcher-",
        "│ Creating the network\n",
        "│ The password is still ***\n",
        "FINISHED\n",
        "How long it took",
        "assignment to first line in the store",
        "apply, until its log is stored",
        "Where everything is",
        "To go on",
        "Ending everything",
    ] {
        let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part:?} does not follow in\n{shown}"));
        rest = after;
    }
    assert!(!shown.contains(SECRET), "{shown}");
    // Each stage has a container and a launcher of its own.
    for what in ["│ In container ", " on launcher-"] {
        let different: BTreeSet<&str> =
            shown.split(what).skip(1).filter_map(|rest| rest.split([',', '\n']).next()).collect();
        assert_eq!(different.len(), 2, "{what}: {different:?}\n{shown}");
    }
    // The plan takes three seconds of sleep, and so it was measured.
    let plan = shown.lines().find_map(|line| line.strip_suffix(" s  plan, until log and workspace are stored"));
    assert!(plan.is_some_and(|seconds| seconds.trim().parse::<f32>().unwrap() >= 3.0), "{shown}");
    assert_nothing_left(&shown);
}

#[test]
fn a_signal_at_any_time_ends_all_of_it() {
    for (moment, signal) in [
        ("Everything is in", Signal::INT),
        ("make a worker pool", Signal::TERM),
        ("│ Would create the network", Signal::INT),
        ("PREPARING_APPLY", Signal::HUP),
    ] {
        let mut watched = Watched::start(demo().stdin(Stdio::null()));
        watched.until(moment);
        watched.signal(signal);
        let (code, shown) = watched.end();
        assert_eq!(code, Some(INTERRUPTED), "after {moment:?}:\n{shown}");
        assert!(!shown.contains("FINISHED"), "{shown}");
        // The launchers alone take a second to end. Before there are any, it may be too fast to say anything.
        let takes_time = shown.contains("start two launchers");
        assert!(!takes_time || shown.contains("\nEnding everything. This takes some seconds.\n"), "{shown}");
        assert_nothing_left(&shown);
    }
}

/// ^C of a terminal reaches every process that was started from it. What the demonstration started is ended in order
/// nevertheless.
#[test]
fn somebody_at_a_terminal_confirms_goes_on_and_ends_it() {
    program::mothership();
    let mut script = run::tool("script");
    let line = format!("exec '{}'", env!("CARGO_BIN_EXE_demo"));
    script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]).stdin(Stdio::piped());
    let mut watched = Watched::start(&mut script);
    let mut keyboard = watched.child.stdin.take().unwrap();
    watched.until("Confirm? [yes]");
    // Nobody else confirms it.
    thread::sleep(Duration::from_secs(1));
    watched.shown.extend(watched.more.try_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    assert!(!watched.shown.contains("takes no more runs for a moment"), "{}", watched.shown);
    keyboard.write_all(b"yes\n").unwrap();
    watched.until("All of it runs until ^C.");
    let shown = watched.shown.replace('\r', "");
    let commands = shown.split_once("in another terminal\n").unwrap().1;
    let commands: Vec<&str> = commands.lines().map_while(|line| line.strip_prefix("  ")).collect();
    let mut said = String::new();
    for command in &commands {
        said += &succeed(Command::new("/bin/sh").args(["-c", command]));
    }
    assert!(commands.len() > 5, "{shown}");
    for part in ["IDLE", "The password is still ***", "ok      broker: ", "source/plan"] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(Path::new(&directory(&shown)).join("another-host").is_dir(), "the checked launcher has a host of its own");
    assert!(!said.contains(SECRET), "{said}");
    // It ends in the middle of a run, when parts that end in the wrong order would leave its container behind.
    let mothership = commands[0].strip_suffix(" worker list").unwrap();
    let busy = format!("{mothership} run start --stack demo --command 'echo busy; sleep 100'");
    succeed(Command::new("/bin/sh").args(["-c", &busy]));
    let docker = commands.iter().find_map(|command| command.strip_suffix(" ps --all")).unwrap();
    let begun = Instant::now();
    while succeed(Command::new("/bin/sh").args(["-c", &format!("{docker} ps --quiet")])).is_empty() {
        assert!(begun.elapsed() < LIMIT, "there is no container");
        thread::sleep(Duration::from_millis(100));
    }
    keyboard.write_all(b"\x03").unwrap();
    let (code, shown) = watched.end();
    assert_eq!(code, Some(0), "{shown}");
    assert_nothing_left(&shown);
}
