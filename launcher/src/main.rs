//! `spacelift-launcher`: the command line.

mod command;
mod logging;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use spacelift_launcher::config::{Config, Problems};
use spacelift_launcher::sweep::{self, Fate, Mode};
use spacelift_launcher::worker_binary::{self, Embedded, Outcome};
use spacelift_launcher::{agent, check, docker, exit_code, metrics, output};
use spacelift_worker::build_info::BuildInfo;

use command::{Command, Format};

/// How long the last lines of the launcher's log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Far more than a launcher has open at once.
const MAXIMUM_DESCRIPTORS: u64 = 65_536;

fn main() -> ExitCode {
    let info = spacelift_worker::build_info!("spacelift-launcher", worker = env!("SPACELIFT_WORKER_NOTE"));
    let result = command::from_environment().map_err(Failure::Usage).and_then(|command| run(command, &info));
    match result {
        Ok(()) => ExitCode::from(exit_code::OK),
        // Whoever stopped reading has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(exit_code::OK),
        Err(failure) => {
            if logging::tell_end(&failure) {
                output::finish(LAST_LINES);
            } else {
                say(&failure);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command, info: &BuildInfo) -> Result<(), Failure> {
    match command {
        Command::Start => start(info),
        Command::Check => check_host(),
        Command::Sweep(mode) => sweep_host(mode),
        Command::Help => print(command::HELP.as_bytes()),
        Command::Version(Format::Text) => print(version(info).as_bytes()),
        Command::Version(Format::Json) => print(&[info.note(), b"\n"].concat()),
        Command::ExtractWorker { directory } => extract_worker(&directory),
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}; see `spacelift-launcher --help`")]
    Usage(lexopt::Error),
    #[error("{description}. Use the launcher of a release, or build one with `cargo xtask dist`")]
    NoWorker { description: String },
    #[error("{0}")]
    Config(Problems),
    #[error("{failed} of what a launcher needs does not work here")]
    Check { failed: usize },
    #[error("{failed} of what was left behind could not be removed or looked at")]
    Sweep { failed: usize },
    #[error(transparent)]
    Docker(docker::Error),
    #[error("cannot start its threads: {0}")]
    Runtime(io::Error),
    #[error(transparent)]
    Agent(agent::Error),
    #[error(transparent)]
    Worker(#[from] worker_binary::Error),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => exit_code::USAGE,
            Self::NoWorker { .. } | Self::Check { .. } | Self::Docker(_) => exit_code::UNAVAILABLE,
            Self::Worker(error) => worker_exit_code(error),
            Self::Agent(error) => agent_exit_code(error),
            Self::Output(_) | Self::Signals(_) | Self::Runtime(_) | Self::Sweep { .. } => exit_code::IO,
            Self::Interrupted => exit_code::INTERRUPTED,
        }
    }
}

fn worker_exit_code(error: &worker_binary::Error) -> u8 {
    use worker_binary::Error;
    match error {
        Error::NotEmbedded => exit_code::UNAVAILABLE,
        Error::Damaged(_) => exit_code::DAMAGED,
        Error::Untrusted { .. } | Error::KeepsChanging { .. } | Error::Exchanged { .. } => exit_code::UNTRUSTED,
        Error::Io { .. } => exit_code::IO,
    }
}

fn agent_exit_code(error: &agent::Error) -> u8 {
    use agent::Error;
    match error {
        Error::Worker(error) => worker_exit_code(error),
        Error::Slot(_) | Error::Signals(_) => exit_code::IO,
        Error::Network(_) | Error::Session(_) => exit_code::USAGE,
        Error::Docker(_) | Error::Api(_) => exit_code::UNAVAILABLE,
    }
}

/// Each part has a line on standard output, and the last word is the exit code.
fn check_host() -> Result<(), Failure> {
    let config = Config::from_variables(std::env::vars_os()).map_err(Failure::Config)?;
    for warning in &config.warnings {
        say(warning);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::Runtime)?;
    let findings = runtime.block_on(check::run(&config));
    runtime.shutdown_background();
    let mut failed = 0;
    for check::Finding { part, result } in findings {
        let line = match result {
            Ok(found) => format!("ok      {part}: {found}\n"),
            Err(reason) => {
                failed += 1;
                format!("FAILED  {part}: {reason}\n")
            }
        };
        print(line.as_bytes())?;
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Check { failed }) }
}

/// Each thing that was found has a line on standard output.
fn sweep_host(mode: Mode) -> Result<(), Failure> {
    let config = Config::from_variables(std::env::vars_os()).map_err(Failure::Config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::Runtime)?;
    let findings = runtime.block_on(sweep::run(&config, mode)).map_err(Failure::Docker)?;
    runtime.shutdown_background();
    for finding in &findings {
        print(format!("{finding}\n").as_bytes())?;
    }
    if findings.iter().all(|finding| matches!(finding.fate, Fate::Kept(_))) {
        let directory = config.directory.display();
        print(
            format!("nothing is left behind in {directory}, nor in containers of pool {}\n", config.token.pool)
                .as_bytes(),
        )?;
    }
    match findings.iter().filter(|finding| matches!(finding.fate, Fate::Failed(_))).count() {
        0 => Ok(()),
        failed => Err(Failure::Sweep { failed }),
    }
}

/// Lives until it is told to end.
fn start(info: &BuildInfo) -> Result<(), Failure> {
    // First of all: no variable would help.
    if worker_binary::embedded().is_none() {
        return Err(Failure::NoWorker { description: one_line(info) });
    }
    // The pool's key is in it: no core of a crash has it then, and no other process of the same user reads it.
    spacelift_worker::init::hide_memory().map_err(Failure::Runtime)?;
    raise_descriptors();
    metrics::shared().begin(info.version, info.commit, info.target);
    let config = Config::from_variables(std::env::vars_os()).map_err(Failure::Config)?;
    logging::start(&config.log);
    tracing::info!("{}", one_line(info));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::Runtime)?;
    let result = runtime.block_on(agent::start(config)).map_err(Failure::Agent);
    // What still waits, such as a name that is being looked up, must not keep the process.
    runtime.shutdown_background();
    output::finish(LAST_LINES);
    result
}

/// Sockets and files, as many as the host allows: what is missing then is the way to stop a run.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MAXIMUM_DESCRIPTORS).min(MAXIMUM_DESCRIPTORS);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
        if let Err(error) = raised {
            say(&format_args!("cannot raise the limit of open files: {error}"));
        }
    }
}

fn extract_worker(directory: &Path) -> Result<(), Failure> {
    let worker = worker_binary::embedded().ok_or(worker_binary::Error::NotEmbedded)?;
    let interrupted = interruption().map_err(Failure::Signals)?;
    let file = worker.ready(directory)?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(Failure::Interrupted);
    }
    if let Outcome::Replaced(difference) = file.outcome() {
        say(&format_args!(
            "`{}` was not the worker that belongs there ({difference}); it has been replaced by the right one. Find \
             out who changed it",
            file.path().display()
        ));
    }
    file.confirm()?;
    // Paths on Linux are bytes; `display` would not print all of them as they are.
    print(&[file.path().as_os_str().as_encoded_bytes(), b"\n"].concat())
}

/// Becomes true at the first SIGINT or SIGTERM: writing the worker takes milliseconds, so it is brought to its end and
/// leaves nothing half done. The second one ends the process at once, in case that the disk hangs.
fn interruption() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, exit_code::INTERRUPTED.into(), Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

fn version(info: &BuildInfo) -> String {
    let worker = match worker_binary::embedded() {
        Some(Embedded { version, commit, target, sha256, size, .. }) => format!(
            "worker: {version}\nworker commit: {commit}\nworker target: {target}\nworker size: {size} bytes\n\
             worker sha256: {sha256}"
        ),
        None => "worker: none, so it cannot start runs".to_owned(),
    };
    format!("{info}\n{worker}\n")
}

fn one_line(info: &BuildInfo) -> String {
    let BuildInfo { program, version, commit, target, .. } = info;
    let worker = match worker_binary::embedded() {
        Some(worker) => format!("carries worker {} (SHA-256 {})", worker.version, worker.sha256),
        None => "carries no worker, so it cannot start runs".to_owned(),
    };
    format!("{program} {version} (commit {commit}, {target}) {worker}")
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Diagnostics go to standard error. When that is closed, nobody is left to tell.
fn say(message: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "spacelift-launcher: {message}.");
}
