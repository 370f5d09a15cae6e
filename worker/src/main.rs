//! The first process of a run's container.
//!
//! The launcher starts it there; a person only ever asks it for its version.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | it said what it was asked for |
//! | 0 | it did a job, and the launcher has its outcome, whichever it is |
//! | 64 | it was started in a way that it does not know |
//! | 71 | it could not work at all: the operating system refused something |
//! | 74 | standard output, or the file for the environment, could not be written |
//! | 75 | no launcher answered for a day, or one that has lost this run |

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spacelift_worker::build_info::BuildInfo;
use spacelift_worker::environment::Environment;
use spacelift_worker::init::{self, Children};
use spacelift_worker::protocol;
use spacelift_worker::protocol::from_worker::Body;
use spacelift_worker::run::{self, Place};
use spacelift_worker::session::{self, Connection, Launcher, Outbox};
use spacelift_worker::stop::{SIGNAL_GRACE, Stopper};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

const EXAMPLES: &str = "\
Examples:
  spacelift-worker --version
  spacelift-worker --version --json";

const EXIT_USAGE: u8 = 64;
const EXIT_SYSTEM: u8 = 71;
const EXIT_IO: u8 = 74;
const EXIT_ABSENT: u8 = 75;

fn main() -> ExitCode {
    let info = spacelift_worker::build_info!("spacelift-worker");
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();

    let written = match arguments[..] {
        ["--version" | "-V"] => writeln!(io::stdout(), "{info}"),
        ["--version" | "-V", "--json"] | ["--json", "--version" | "-V"] => print_note(&info),
        ["run", ref flags @ ..] => match place(flags) {
            Some(place) => return work(place),
            None => return usage(&info, &format!("`run` does not take {}", quoted(flags))),
        },
        ["dump-env", path] => return dump_environment(Path::new(path)),
        ["--help" | "-h"] => writeln!(io::stdout(), "{}\n\n{EXAMPLES}", introduction(&info)),
        ["dump-env"] => return usage(&info, "`dump-env` needs the name of a file"),
        [] => return usage(&info, "it was started without a command"),
        ref unknown => return usage(&info, &format!("it does not know {}", quoted(unknown))),
    };
    match written {
        // Whoever stopped reading has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "spacelift-worker: cannot write to standard output: {error}");
            ExitCode::from(EXIT_IO)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn quoted(arguments: &[&str]) -> String {
    format!("`{}`", arguments.join(" "))
}

fn usage(info: &BuildInfo, problem: &str) -> ExitCode {
    // Nothing is left to report to when standard error is closed as well.
    let _ = writeln!(io::stderr(), "spacelift-worker: {problem}.\n{}", introduction(info));
    ExitCode::from(EXIT_USAGE)
}

/// Where to work, as the flags say.
fn place(mut flags: &[&str]) -> Option<Place> {
    let mut place = Place {
        socket: protocol::SOCKET.into(),
        workspace: protocol::WORKSPACE.into(),
        // Its file has this name in the container. Elsewhere it is asked for.
        worker: std::env::current_exe().unwrap_or_else(|_| PathBuf::from(protocol::WORKER)),
    };
    while let [flag, value, rest @ ..] = flags {
        match *flag {
            "--socket" => place.socket = value.into(),
            "--workspace" => place.workspace = value.into(),
            _ => return None,
        }
        flags = rest;
    }
    flags.is_empty().then_some(place)
}

/// Does a job, from the first connection to the acknowledged outcome.
fn work(place: Place) -> ExitCode {
    // One thread is enough for what mostly waits, and leaves the container's processors to the job.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(converse(place));
            // What is still being packed or unpacked is of no use to anybody.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::System(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "spacelift-worker: {failure}");
            ExitCode::from(match failure {
                Failure::System(_) => EXIT_SYSTEM,
                Failure::Session(_) => EXIT_ABSENT,
            })
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the operating system refused what every job needs: {0}")]
    System(#[from] io::Error),
    #[error(transparent)]
    Session(#[from] session::Error),
}

async fn converse(place: Place) -> Result<(), Failure> {
    let stopper = Stopper::default();
    let stops = stopper.stops();
    let signals = watch_signals(stopper.another())?;
    init::adopt_orphans()?;
    init::hide_memory()?;
    let children = Children::default();
    let reaper = tokio::spawn(children.clone().reap());
    let outbox = Arc::new(Outbox::default());
    let (sender, job) = oneshot::channel();
    let launcher = Launcher { socket: place.socket.clone(), session: String::new() };
    let connection = Connection { launcher, outbox: Arc::clone(&outbox), stopper, job: Some(sender) };
    let doing = async {
        // The connection has the other end as long as it lives.
        let Ok(job) = job.await else { return std::future::pending().await };
        let outcome = run::execute(job, place, Arc::clone(&outbox), stops, children).await;
        outbox.push(Body::Outcome(outcome)).await;
        outbox.empty().await;
    };
    let connection = tokio::spawn(connection.run());
    let result = tokio::select! {
        () = doing => Ok(()),
        error = connection => Err(match error {
            Ok(error) => Failure::Session(error),
            Err(error) => Failure::System(io::Error::other(error)),
        }),
    };
    init::end_everything().await;
    reaper.abort();
    signals.abort();
    result
}

/// SIGTERM, as container engines send it, is an order to stop.
fn watch_signals(stopper: Stopper) -> io::Result<tokio::task::JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            stopper.order(SIGNAL_GRACE, format!("the container was told to end ({name})"));
        }
    }))
}

/// Writes this process's environment into a file: a script of the job does this at its end, and not every image has a program
/// for it.
fn dump_environment(path: &Path) -> ExitCode {
    let write = || {
        let new = path.with_extension("new");
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&Environment::of_the_container().to_bytes())?;
        // Complete or not at all.
        std::fs::rename(new, path)
    };
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "spacelift-worker: cannot write `{}`: {error}", path.display());
            ExitCode::from(EXIT_IO)
        }
    }
}

fn print_note(info: &BuildInfo) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(info.note())?;
    out.write_all(b"\n")
}

fn introduction(info: &BuildInfo) -> String {
    format!(
        "This is spacelift-worker {}, the first process of a run's container. spacelift-launcher starts it there and \
         tells it what to do; by itself it does nothing.\n\
         To see which build it is: spacelift-worker --version [--json]",
        info.version
    )
}
