//! The launcher that ships, idle and with runs, on a real broker, control plane, container engine and object store.
//!
//! Beside it, idle for the same time: `buildbot-worker`, an agent that Debian and Ubuntu have, connected to a master of its own.
//!
//! How soon people see the first line is taken from the control plane's assignment, in its own history, to the moment at which
//! the object store has the line: an upload that is complete. The engine's part in that is measured with containers that the
//! launcher's own code makes, the same but for their program, in turn with the runs.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use integration_tests::control_plane::{ControlPlane, Launcher, Pool, custom_stack, runner_image};
use integration_tests::daemon::Daemon;
use integration_tests::docker::Engine;
use integration_tests::registry::free_port;
use integration_tests::release::{ARCHITECTURES, Release, Unpacked};
use integration_tests::run::{succeed, tool};
use launcher_wire::api::{RunState, RunType, Workflow};
use launcher_wire::id::RunId;
use mothership::admin::{Client, Stack, WorkerStatus};
use spacelift_launcher::docker::{self, ContainerSpec, Limits};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::report::cumulative;
use crate::svg::quantile;
use crate::{Limit, beside, figure, heading, memory, say};

/// Megabytes of the launcher's file with the worker in it: every host fetches it at boot.
const SIZE_GOAL: f64 = 8.0;
/// Megabytes of an idle launcher.
const MEMORY_GOAL: f64 = 6.0;
/// Milliseconds to the first line, besides what the engine takes: in the middle, and for all but one in a hundred.
const LATENCY_GOALS: [(&str, f64, f64); 2] = [("median", 0.5, 25.0), ("p99", 0.99, 60.0)];
/// Seconds of doing nothing, unless the variable says otherwise.
const IDLE: (&str, u64) = ("SPACELIFT_BENCH_IDLE_SECONDS", 60);
/// Runs that are timed, unless the variable says otherwise.
const RUNS: (&str, u64) = ("SPACELIFT_BENCH_RUNS", 200);
/// Runs before, which are not: caches are cold.
const WARM_UP: u64 = 2;
/// What begins with the process has ended by then.
const SETTLE: Duration = Duration::from_secs(5);
/// Seconds between two signs of life of the launcher: what the control plane asks for unless told otherwise.
const HEARTBEAT: u64 = 10;
/// How often the store is looked at.
const POLL: Duration = Duration::from_micros(500);
/// More than this is not slow, it hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// What the job says. Its command has it in two pieces, in case that somebody repeats that. Afterwards it goes on: at the end of
/// a job all of its log is sent, however long it would have waited.
const LINE: &str = "the first line";
const COMMAND: &str = "echo the first' 'line; sleep 1";

/// What the launcher works with. Fields are dropped in this order: it needs all others to end well.
struct Site {
    launcher: Launcher,
    control_plane: ControlPlane,
    pool: Pool,
    image: String,
    engine: Engine,
}

/// Measures, and prints rows with goals.
pub(crate) fn run() -> Result<()> {
    let release = Release::under_test().unpack_for(&[env::consts::ARCH]);
    let program = match env::var_os("SPACELIFT_LAUNCHER") {
        Some(path) => fs::canonicalize(&path).with_context(|| format!("SPACELIFT_LAUNCHER={}", path.display()))?,
        None => release.program("spacelift-launcher", env::consts::ARCH),
    };
    sizes(&release, &program)?;
    let mut site = Site::start(&program)?;
    idle(&site)?;
    // The old one has a connection that the control plane has closed meanwhile.
    site.control_plane.client = Client::open(&site.control_plane.home())?;
    latency(&site)
}

fn sizes(release: &Unpacked, own: &Path) -> Result<()> {
    heading("the launcher, with the worker in it");
    for architecture in ARCHITECTURES {
        let program = release.program("spacelift-launcher", architecture);
        let program = if architecture == env::consts::ARCH { own } else { &program };
        match fs::metadata(program) {
            Ok(file) => figure(
                &format!("size for {architecture}"),
                file.len() as f64 / 1e6,
                "MB",
                Some(Limit::AtMost(SIZE_GOAL)),
            )?,
            Err(_) => say(&format!("  the release has nothing for {architecture}"))?,
        }
    }
    Ok(())
}

impl Site {
    fn start(program: &Path) -> Result<Self> {
        let beside_this = |name: &str| -> Result<PathBuf> {
            let program = env::current_exe()?.with_file_name(name);
            ensure!(program.is_file(), "there is no {}; `cargo xtask bench agent` builds it", program.display());
            Ok(program)
        };
        let (mothership, strict_s3) = (beside_this("mothership")?, beside_this("strict-s3")?);
        let strict_s3 = strict_s3.to_str().context("the target directory is not named in UTF-8")?;
        let engine = Engine::start();
        let image = runner_image(&engine);
        let control_plane = ControlPlane::start_with(&mothership, strict_s3, HEARTBEAT);
        let pool = control_plane.pool();
        let launcher = Launcher::start(program, &engine, &pool, &[]);
        control_plane.wait_for_worker(None, WorkerStatus::Idle);
        Ok(Self { launcher, control_plane, pool, image, engine })
    }
}

/// Both agents with nothing to do.
fn idle(site: &Site) -> Result<()> {
    let seconds = setting(IDLE)?;
    let other = Buildbot::start();
    heading(&format!(
        "idle for {seconds} s: connected to a broker, a sign of life every {HEARTBEAT} s; against buildbot-worker"
    ));
    thread::sleep(SETTLE);
    let processes = [site.launcher.id(), other.worker.id()];
    let before = [used(processes[0])?, used(processes[1])?];
    thread::sleep(Duration::from_secs(seconds));
    let after = [used(processes[0])?, used(processes[1])?];
    for (name, field, goal) in [
        ("memory (VmRSS)", "VmRSS:", Some(Limit::AtMost(MEMORY_GOAL))),
        ("memory that is no file's (RssAnon)", "RssAnon:", None),
    ] {
        let sizes = processes.map(|process| memory(process, field).map(|kilobytes| kilobytes as f64 * 1024.0 / 1e6));
        let [Some(ours), Some(theirs)] = sizes else { anyhow::bail!("one of the agents has ended") };
        beside(name, "buildbot-worker", [ours, theirs], "MB", goal)?;
    }
    let ticks = [0, 1].map(|agent| (after[agent].ticks - before[agent].ticks) as f64);
    beside("processor ticks of 10 ms", "buildbot-worker", ticks, "", Some(Limit::AtMost(0.0)))?;
    let exactly = [0, 1].map(|agent| after[agent].since(&before[agent]) as f64 / 1e6);
    beside("processor time by the scheduler", "buildbot-worker", exactly, "ms", None)
}

/// Processor time of a process.
struct Used {
    ticks: u64,
    /// Nanoseconds, by thread.
    threads: BTreeMap<OsString, u64>,
}

impl Used {
    /// Nanoseconds. What a thread did that has ended meanwhile is not in them; ticks have it.
    fn since(&self, before: &Self) -> u64 {
        let earlier = |thread| before.threads.get(thread).copied().unwrap_or(0);
        self.threads.iter().map(|(thread, nanoseconds)| nanoseconds.saturating_sub(earlier(thread))).sum()
    }
}

fn used(process: u32) -> Result<Used> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("an agent has ended")?;
    // The second field is the program's name in parentheses; its own times are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let mut threads = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?;
        // It may have ended meanwhile.
        let spent = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let nanoseconds = spent.split(' ').next().and_then(|field| field.parse().ok());
        threads.extend(nanoseconds.map(|nanoseconds| (thread.file_name(), nanoseconds)));
    }
    Ok(Used { ticks, threads })
}

/// A Buildbot worker and its master, which has nothing for it to do.
struct Buildbot {
    worker: Daemon,
    _master: Daemon,
    _directory: TempDir,
}

impl Buildbot {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, at) = (free_port(), |name: &str| directory.path().join(name));
        succeed(tool("buildbot").args(["create-master", "--quiet"]).arg(at("master")));
        let configuration = format!(
            "from buildbot.plugins import schedulers, util, worker\n\
             c = BuildmasterConfig = {{}}\n\
             c['workers'] = [worker.Worker('idle', 'no-secret')]\n\
             c['protocols'] = {{'pb': {{'port': 'tcp:{port}:interface=127.0.0.1'}}}}\n\
             c['builders'] = [util.BuilderConfig(name='none', workernames=['idle'], factory=util.BuildFactory())]\n\
             c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['none'])]\n\
             c['db'] = {{'db_url': 'sqlite:///state.sqlite'}}\n\
             c['buildbotNetUsageData'] = None\n"
        );
        fs::write(at("master/master.cfg"), configuration).unwrap();
        let mut master = tool("buildbot");
        master.args(["start", "--nodaemon"]).arg(at("master"));
        let is_ready = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let master = Daemon::start(&mut master, &at("master.log"), is_ready);
        let address = format!("127.0.0.1:{port}");
        succeed(tool("buildbot-worker").arg("create-worker").arg(at("worker")).args([&address, "idle", "no-secret"]));
        let mut worker = tool("buildbot-worker");
        worker.args(["start", "--nodaemon"]).arg(at("worker"));
        let own_log = at("worker/twistd.log");
        let is_ready = || fs::read_to_string(&own_log).is_ok_and(|log| log.contains("Connected to buildmaster"));
        let worker = Daemon::start(&mut worker, &at("worker.log"), is_ready);
        Self { worker, _master: master, _directory: directory }
    }
}

/// Runs, one after the other, each after a container of the same kind without a launcher.
fn latency(site: &Site) -> Result<()> {
    let count = setting(RUNS)?;
    ensure!(count > 0, "{} is 0: there is nothing to measure then", RUNS.0);
    heading(&format!("from the assignment to the first line at the object store: {count} runs"));
    let floor = Floor::new(site)?;
    let workflow = Workflow { init: None, plan: None, apply: None, destroy: None, output: None };
    let stack = custom_stack("bench", site.pool.id, &site.image, workflow);
    let (mut floors, mut begins, mut lines) = (vec![], vec![], vec![]);
    for number in 0..WARM_UP + count {
        let without = floor.measure(number)?;
        let [begin, line] = first_lines(site, &stack)?;
        if number >= WARM_UP {
            floors.push(without);
            begins.push(begin);
            lines.push(line);
        }
    }
    // Of what is above it, the engine's own irregularity is a part.
    let engine = quantile(&floors, 0.5);
    let ours: Vec<f64> = lines.iter().map(|line| line - engine).collect();
    for (name, share, goal) in LATENCY_GOALS {
        figure(&format!("{name}: the launcher's own first line"), quantile(&begins, share), "ms", None)?;
        figure(
            &format!("{name}: the engine alone, to the program's first output"),
            quantile(&floors, share),
            "ms",
            None,
        )?;
        figure(&format!("{name}: the job's first line"), quantile(&lines, share), "ms", None)?;
        let name = format!("{name}: the job's first line, less the engine's median");
        figure(&name, quantile(&ours, share), "ms", Some(Limit::AtMost(goal)))?;
    }
    cumulative(
        "From the assignment to a line at the object store",
        "ms",
        &[("the job's first line", &lines), ("the engine alone", &floors), ("the launcher's own first line", &begins)],
    );
    Ok(())
}

/// Does a run: milliseconds from its assignment until the store has the launcher's first line, and that of the job.
fn first_lines(site: &Site, stack: &Stack) -> Result<[f64; 2]> {
    let control_plane = &site.control_plane;
    let run = control_plane.begin(stack, RunType::Task, Some(COMMAND));
    let begun = Instant::now();
    let (mut own, mut jobs) = (None, None);
    while jobs.is_none() {
        let log = stored(site, run);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3;
        own = own.or((!log.is_empty()).then_some(now));
        jobs = String::from_utf8_lossy(&log).contains(LINE).then_some(now);
        ensure!(begun.elapsed() < LIMIT, "the run {run} has no first line:\n{}", site.launcher.log());
        thread::sleep(POLL);
    }
    let finished = control_plane.wait_for(run, RunState::Finished);
    let assigned = finished.history.iter().find(|change| change.state == RunState::Preparing);
    let assigned = assigned.context("the run was assigned to nobody")?.at as f64;
    // One is there as soon as the other is.
    let jobs = jobs.context("there is a first line")?;
    Ok([own.unwrap_or(jobs), jobs].map(|at| at - assigned))
}

/// The chunks of a run's log that are in the store, one after the other.
fn stored(site: &Site, run: RunId) -> Vec<u8> {
    let of_run = site.control_plane.store.object(&format!("{}/{run}", site.pool.id));
    let stages = fs::read_dir(of_run).into_iter().flatten().filter_map(Result::ok);
    let mut chunks: Vec<PathBuf> = stages
        .flat_map(|stage| fs::read_dir(stage.path().join("log")).into_iter().flatten().filter_map(Result::ok))
        .map(|chunk| chunk.path())
        .collect();
    chunks.sort();
    chunks.iter().flat_map(|chunk| fs::read(chunk).unwrap_or_default()).collect()
}

/// What the engine takes for a container as the launcher makes it: create, start, and the first output of a program in it.
/// It goes to a file of the workspace: containers' own output takes a way of its own through the engine, which is slower.
struct Floor {
    runtime: Runtime,
    engine: docker::Engine,
    spec: ContainerSpec,
    directory: TempDir,
}

impl Floor {
    fn new(site: &Site) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("socket"))?;
        // For programs in the container.
        for path in [directory.path(), &at("socket")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(at("program"), "#!/bin/sh\necho \"$0\" > first\n")?;
        fs::set_permissions(at("program"), fs::Permissions::from_mode(0o755))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let engine = runtime.block_on(docker::Engine::connect(Some(&site.engine.host())))?;
        let spec = ContainerSpec {
            name: String::new(),
            labels: BTreeMap::new(),
            image: site.image.clone(),
            worker: at("program"),
            socket_directory: at("socket"),
            workspace: PathBuf::new(),
            mounts: vec![],
            network: "none".to_owned(),
            runtime: None,
            environment: vec![],
            limits: Limits::default(),
        };
        Ok(Self { runtime, engine, spec, directory })
    }

    /// In milliseconds.
    fn measure(&self, number: u64) -> Result<f64> {
        let workspace = self.directory.path().join(number.to_string());
        fs::create_dir(&workspace)?;
        fs::set_permissions(&workspace, fs::Permissions::from_mode(0o777))?;
        let name = format!("floor-{number}");
        let spec = ContainerSpec { name: name.clone(), workspace: workspace.clone(), ..self.spec.clone() };
        let begun = Instant::now();
        self.runtime.block_on(async {
            let created = self.engine.create(&spec).await?;
            self.engine.start(&created.id).await
        })?;
        while fs::read(workspace.join("first")).unwrap_or_default().is_empty() {
            ensure!(begun.elapsed() < LIMIT, "the container {name} has no output");
            thread::sleep(POLL);
        }
        let took = begun.elapsed().as_secs_f64() * 1e3;
        self.runtime.block_on(self.engine.wait(&name));
        self.runtime.block_on(self.engine.remove(&name))?;
        Ok(took)
    }
}

/// A number from the environment, for whoever tries it.
fn setting((name, usual): (&str, u64)) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is {text:?}, not a number")),
        Err(_) => Ok(usual),
    }
}
