//! One run from beginning to end for somebody who watches, on this machine alone: broker, object store, container engine,
//! control plane and two launchers on loopback, and the launcher of a release.
//!
//! Usage: `demo [--yes] [--exit]`
//!
//! Exit codes: 0 the run was shown; 1 something failed; 64 wrong usage; 130 interrupted. Whatever it is, nothing is left.

mod places;
mod watch;

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use integration_tests::control_plane::{ControlPlane, Launcher, Pool, custom_stack, runner_image};
use integration_tests::docker::Engine;
use integration_tests::interactive;
use integration_tests::release::{Release, Unpacked};
use launcher_wire::api::{RunState, RunType, Variable, Workflow};
use mothership::admin::{Stack, WorkerStatus};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use watch::Watch;

const LAUNCHERS: usize = 2;
/// What the stack is called.
const STACK: &str = "demo";
/// The secret of the stack. The job says it; nobody else does.
const SECRET: &str = "correct-horse-battery-staple";
/// How often everything is looked at that is waited for.
const POLL: Duration = Duration::from_millis(100);
/// How long launchers may take to be seen. They take a second; a machine under load takes ten.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a launcher may take to end by itself before it is asked to end its run as well.
const PATIENCE: Duration = Duration::from_secs(1);
/// Wrong usage.
const USAGE: u8 = 64;
/// Ended by ^C.
const INTERRUPTED: u8 = 130;

/// Somebody wants it to end.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// What was typed.
struct Options {
    /// Nobody is asked.
    yes: bool,
    /// It ends when the run has.
    exit: bool,
}

/// What is being done, for the message if it does not work.
#[derive(Default)]
struct Steps {
    present: RefCell<String>,
}

/// Launchers, which end faster than those of a test: what they run is not wanted any more.
struct Launchers(Vec<Launcher>);

/// Everything that runs. Fields are dropped in this order: a launcher needs all others to end well.
struct Site {
    launchers: Launchers,
    control_plane: ControlPlane,
    engine: Engine,
    pool: Pool,
    image: String,
    release: Unpacked,
    mothership: PathBuf,
}

fn main() -> ExitCode {
    let mut options = Options { yes: false, exit: false };
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("--yes") => options.yes = true,
            Some("--exit") => options.exit = true,
            _ => {
                complain(&format_args!("usage: demo [--yes] [--exit]"));
                return ExitCode::from(USAGE);
            }
        }
    }
    match in_a_directory(&options) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read standard output has seen enough.
        Err(error) if error.downcast_ref().is_some_and(is_closed_pipe) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(INTERRUPTED),
        Err(error) => {
            complain(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// When standard error is closed, nobody is left to tell.
fn complain(message: &fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "demo: {message}");
}

/// The one way to standard output. `println` would panic when nobody reads it any more.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    Ok(writeln!(out, "{text}").and_then(|()| out.flush())?)
}

/// Keeps everything in one directory, and removes it at the end, whatever the end is.
fn in_a_directory(options: &Options) -> Result<()> {
    if !geteuid().is_root() {
        bail!("a container engine of one's own needs root. Run it as root, such as with sudo");
    }
    let directory = interactive::begin("demo")?;
    thread::spawn(answer_at_once);
    let steps = Steps::default();
    let shown = say(&format!("Everything is in {}, until the end.\n", directory.path().display()))
        .and_then(|()| without_panics(&steps, || show(options, &steps, directory.path())));
    let path = directory.path().to_owned();
    let removed = directory.close().with_context(|| format!("{} is left; remove it", path.display()));
    match (shown, removed) {
        // What a signal cut short did not fail.
        (Err(_), Ok(())) if interactive::is_interrupted() => Err(Interrupted.into()),
        (Err(error), Err(left)) => Err(error.context(format!("{left:#}"))),
        (shown, removed) => shown.and(removed),
    }
}

/// Cleaning up takes some seconds, and a step that has begun is brought to its end. Whoever pressed ^C is told so.
fn answer_at_once() {
    while !interactive::is_interrupted() {
        thread::sleep(POLL);
    }
    // Nothing depends on whether it is read.
    let _ = say("\nEnding everything. This takes some seconds.");
}

/// The support of tests panics where a test would fail. Here, it is an error like others, and what runs is ended by the
/// unwinding.
fn without_panics(steps: &Steps, work: impl FnOnce() -> Result<()>) -> Result<()> {
    // The message is printed once, below, in the words of this program.
    panic::set_hook(Box::new(|_| ()));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|reason| {
        let reason = reason.downcast_ref::<String>().map(String::as_str).or(reason.downcast_ref::<&str>().copied());
        let step = steps.present.borrow();
        bail!(
            "it did not work to {step}: {}\nAll that was started has been ended again. Correct what the message says, and \
             start the demonstration once more",
            reason.unwrap_or("there is no message")
        )
    })
}

impl Steps {
    /// Does something that takes a moment, under its name.
    fn take<T>(&self, what: &str, work: impl FnOnce() -> T) -> Result<T> {
        self.begin(what)?;
        let begun = Instant::now();
        let made = work();
        say(&format!("{:6.2} s  {what}", begun.elapsed().as_secs_f32()))?;
        Ok(made)
    }

    /// From here on it is this that is being done.
    fn begin(&self, what: &str) -> Result<()> {
        what.clone_into(&mut self.present.borrow_mut());
        check_interruption()
    }
}

fn check_interruption() -> Result<()> {
    if interactive::is_interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

impl Drop for Launchers {
    fn drop(&mut self) {
        // Errors are of no interest: one may have ended by itself. The first signal lets a launcher finish the run that it
        // has, the second one ends the run.
        for wait in [PATIENCE, Duration::ZERO] {
            for launcher in &self.0 {
                let pid = i32::try_from(launcher.id()).ok().and_then(Pid::from_raw);
                let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
            }
            thread::sleep(wait);
        }
    }
}

/// Starts everything, shows the run, and tells how to go on.
fn show(options: &Options, steps: &Steps, directory: &Path) -> Result<()> {
    let site = Site::start(steps)?;
    steps.begin("write down how to go on")?;
    places::write(&site, directory)?;
    steps.begin("show the run")?;
    let shown = watched_run(&site, options)?;
    say(&places::describe(&site, directory, &shown))?;
    if options.exit || !io::stdin().is_terminal() {
        return say("Ending everything.");
    }
    say("All of it runs until ^C.")?;
    while !interactive::is_interrupted() {
        thread::sleep(POLL);
    }
    Ok(())
}

impl Site {
    fn start(steps: &Steps) -> Result<Self> {
        let strict_s3 = beside_this("strict-s3")?;
        let mothership = beside_this("mothership")?;
        let strict_s3 = strict_s3.to_str().context("the target directory is not named in UTF-8")?;
        let release =
            steps.take("unpack the release", || Release::under_test().unpack_for(&[std::env::consts::ARCH]))?;
        let engine = steps.take("start a container engine", Engine::start)?;
        let image = steps.take("make a runner image: a shell and little else", || runner_image(&engine))?;
        let what = "start broker, object store and control plane";
        let control_plane = steps.take(what, || ControlPlane::start(&mothership, strict_s3))?;
        let pool = steps.take("make a worker pool, with a key by openssl", || control_plane.pool())?;
        let program = release.program("spacelift-launcher", std::env::consts::ARCH);
        let launchers = steps.take("start two launchers", || {
            let mut launchers = Launchers(vec![]);
            for number in 1..=LAUNCHERS {
                let name = format!("launcher-{number}");
                let variables = [("SPACELIFT_METADATA_name", name.as_str())];
                launchers.0.push(Launcher::start(&program, &engine, &pool, &variables));
            }
            wait_for_workers(&control_plane, &launchers).map(|()| launchers)
        })??;
        Ok(Self { launchers, control_plane, engine, pool, image, release, mothership })
    }

    /// A stack whose job says what it does, and a secret.
    fn stack(&self) -> Stack {
        let here = "echo \"In container $(cat /etc/hostname)\"";
        // Slow enough that its log is seen to arrive.
        let plan = "for part in network database service; do echo \"Would create the $part\"; sleep 1; done && \
                    echo \"The password is $DATABASE_PASSWORD\" && echo \"network database service\" > plan";
        let apply = "for part in $(cat plan); do echo \"Creating the $part\"; sleep 1; done && \
                     echo \"The password is still $DATABASE_PASSWORD\"";
        let workflow = Workflow {
            init: Some(format!("{here} && echo \"Nothing to initialize\"")),
            plan: Some(plan.to_owned()),
            apply: Some(format!("{here} && {apply}")),
            destroy: None,
            output: None,
        };
        let password = Variable { name: "DATABASE_PASSWORD".to_owned(), value: SECRET.to_owned(), secret: true };
        Stack { environment: vec![password], ..custom_stack(STACK, self.pool.id, &self.image, workflow) }
    }
}

/// A program that was built with this one.
fn beside_this(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    if !program.is_file() {
        bail!("there is no {}; `cargo xtask demo` builds it", program.display());
    }
    Ok(program)
}

fn wait_for_workers(control_plane: &ControlPlane, launchers: &Launchers) -> Result<()> {
    let begun = Instant::now();
    loop {
        check_interruption()?;
        let workers = control_plane.client.workers()?;
        if workers.iter().filter(|worker| worker.status == WorkerStatus::Idle).count() == LAUNCHERS {
            return Ok(());
        }
        if begun.elapsed() > START_LIMIT {
            let logs: Vec<String> = launchers.0.iter().map(Launcher::log).collect();
            bail!("the launchers do not register within {} seconds:\n{}", START_LIMIT.as_secs(), logs.join("\n"));
        }
        thread::sleep(POLL);
    }
}

/// The run, with all that happens to it as it happens.
fn watched_run(site: &Site, options: &Options) -> Result<mothership::admin::Run> {
    let client = &site.control_plane.client;
    say("\nA tracked run. The log is shown as it arrives in the object store.\n")?;
    let run = site.control_plane.begin(&site.stack(), RunType::Tracked, None);
    let mut watch = Watch::new(client, run)?;
    let planned = watch.until(RunState::Unconfirmed)?;
    if confirmation(options)? {
        // Otherwise either of them may take it, and the way of the workspace would not show.
        let planner = planned.stages.last().context("the plan was made nowhere")?.worker;
        client.drain_worker(planner)?;
        let name = watch.name(planner);
        say(&format!("{name} takes no more runs for a moment, so that the other one applies."))?;
        client.confirm(run)?;
        let applied = watch.until(RunState::Finished);
        client.undrain_worker(planner)?;
        applied?;
    } else {
        client.discard(run)?;
        watch.until(RunState::Discarded)?;
    }
    let ended = client.run(run)?;
    say(&watch.timings(&ended))?;
    Ok(ended)
}

/// Whether the plan is to be applied. Where nobody can be asked, it is.
fn confirmation(options: &Options) -> Result<bool> {
    let mut out = io::stdout();
    write!(out, "\nConfirm? [yes] ")?;
    out.flush()?;
    if options.yes || !io::stdin().is_terminal() {
        say(if options.yes { "yes (--yes)" } else { "yes (nobody to ask: standard input is no terminal)" })?;
        return Ok(true);
    }
    // A signal does not end a read that waits, so that another thread does the waiting.
    let (typed, answers) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        // Whoever is interrupted meanwhile does not listen any more.
        let _ = typed.send(io::stdin().lock().read_line(&mut line).map(|length| (length, line)));
    });
    loop {
        check_interruption()?;
        match answers.recv_timeout(POLL) {
            Ok(answer) => {
                let (length, line) = answer.context("cannot read the answer")?;
                // ^D is no answer, and no answer is no agreement.
                return Ok(length > 0 && ["", "y", "yes"].contains(&line.trim().to_lowercase().as_str()));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("cannot read the answer"),
        }
    }
}
