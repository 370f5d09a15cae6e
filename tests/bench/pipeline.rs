//! A run's log from the job to the object store: container, worker, launcher, store, each of them as it ships. Nothing is beside
//! it: a promise of the launcher is measured, and that every byte arrives.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use integration_tests::control_plane::{ControlPlane, Launcher, Pool, custom_stack, runner_image};
use integration_tests::docker::Engine;
use integration_tests::release::Release;
use launcher_wire::api::{RunState, RunType, Variable, Workflow};
use launcher_wire::id::RunId;
use mothership::admin::{Stack, WorkerStatus};
use spacelift_worker::masking::{Masker, Secrets};

use crate::heading;
use crate::logs::{self, LogText};

/// Bytes of a log in long lines, and of one in short ones.
const SIZE: usize = 200_000_000;
const SHORT_SIZE: usize = 50_000_000;
/// Secrets of the stack.
const SECRETS: usize = 50;
/// Megabytes in a second.
const GOAL: f64 = 50.0;
/// Where the container has the log.
const MOUNT: &str = "/mnt/bench";
/// Around the log: what the worker itself says is not part of it.
const BEGIN: &str = "-- the log begins --\n";
const END: &str = "-- the log ends --\n";
/// More than this is not slow, it hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// What a job does.
struct Job {
    title: &'static str,
    /// Prints the file of its name, with the file's path in the place of `{}`.
    command: &'static str,
    text: fn(&[String]) -> Vec<u8>,
    goal: Option<f64>,
}

const JOBS: [Job; 3] = [
    Job {
        title: "200 MB of a log",
        command: "cat {}",
        text: |secrets| LogText::new(secrets).take(SIZE),
        goal: Some(GOAL),
    },
    Job {
        title: "50 MB of lines of some ten bytes",
        command: "cat {}",
        text: |_| short_lines(SHORT_SIZE),
        goal: Some(GOAL),
    },
    Job {
        // As most programs print to a pipe that somebody is to watch. The program's own speed is in it.
        title: "10 MB of such lines, each written alone",
        command: "/bin/busybox awk '{ print; fflush() }' {}",
        text: |_| short_lines(SHORT_SIZE / 5),
        goal: None,
    },
];

fn short_lines(size: usize) -> Vec<u8> {
    let mut lines: Vec<u8> = (0..).flat_map(|number| format!("line {number}\n").into_bytes()).take(size).collect();
    // Also the last one is whole.
    lines[size - 1] = b'\n';
    lines
}

/// Everything that runs. Fields are dropped in this order: a launcher needs all others to end well.
struct Site {
    _launcher: Launcher,
    control_plane: ControlPlane,
    _engine: Engine,
    pool: Pool,
    image: String,
    /// What containers have at [`MOUNT`].
    mount: tempfile::TempDir,
}

/// Measures, and prints rows with goals.
pub(crate) fn run() -> Result<()> {
    let secrets = logs::secrets(SECRETS);
    let site = Site::start()?;
    heading(&format!(
        "a run's log from the first line to the last chunk in the object store, {SECRETS} secrets masked"
    ));
    for job in JOBS {
        let text = (job.text)(&secrets);
        let (took, arrived) = site.measure(&job, &text, &secrets)?;
        let expected = masked(&text, &secrets)?;
        ensure!(arrived == expected, "{}: what arrived is not what was printed, masked", job.title);
        logs::rate(job.title, &text, took, job.goal)?;
    }
    Ok(())
}

fn masked(text: &[u8], secrets: &[String]) -> Result<Vec<u8>> {
    let mut all = Secrets::default();
    for secret in secrets {
        all.add(secret.as_bytes())?;
    }
    let (mut masker, mut out) = (Masker::new(all), Vec::new());
    masker.write(text, &mut out)?;
    masker.flush(&mut out)?;
    Ok(out)
}

impl Site {
    fn start() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "this benchmark starts a container engine: run it as root");
        // Another launcher than the one of a release, for somebody who looks for what is slow.
        let unpacked = std::env::var_os("SPACELIFT_LAUNCHER").is_none().then(Release::under_test);
        let unpacked = unpacked.map(|release| release.unpack_for(&[std::env::consts::ARCH]));
        let program = match &unpacked {
            Some(release) => release.program("spacelift-launcher", std::env::consts::ARCH),
            None => PathBuf::from(std::env::var_os("SPACELIFT_LAUNCHER").context("it is set")?),
        };
        let own = std::env::current_exe()?;
        let strict_s3 = own.with_file_name("strict-s3");
        let strict_s3 = strict_s3.to_str().context("the target directory is not named in UTF-8")?;
        let mount = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
        // The job is another user.
        fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o777))?;
        let engine = Engine::start();
        let image = runner_image(&engine);
        let control_plane = ControlPlane::start(&own.with_file_name("mothership"), strict_s3);
        let pool = control_plane.pool();
        let mounts = format!("{}:{MOUNT}", mount.path().display());
        let launcher = Launcher::start(&program, &engine, &pool, &[("SPACELIFT_WORKER_EXTRA_MOUNTS", &mounts)]);
        control_plane.wait_for_worker(None, WorkerStatus::Idle);
        Ok(Self { _launcher: launcher, control_plane, _engine: engine, pool, image, mount })
    }

    /// How long it took, and what arrived.
    fn measure(&self, job: &Job, text: &[u8], secrets: &[String]) -> Result<(Duration, Vec<u8>)> {
        fs::write(self.mount.path().join("log"), text)?;
        let begun = self.mount.path().join("begun");
        let print = job.command.replace("{}", &format!("{MOUNT}/log"));
        let command = format!("printf '%s' '{BEGIN}' && touch {MOUNT}/begun && {print} && printf '%s' '{END}'");
        let environment = secrets.iter().enumerate().map(|(number, secret)| Variable {
            name: format!("SECRET_{number}"),
            value: secret.clone(),
            secret: true,
        });
        let workflow = Workflow { init: None, plan: None, apply: None, destroy: None, output: None };
        let stack = custom_stack("pipeline", self.pool.id, &self.image, workflow);
        let stack = Stack { environment: environment.collect(), ..stack };
        let run = self.control_plane.begin(&stack, RunType::Task, Some(&command));
        self.control_plane.wait_within(run, RunState::Finished, LIMIT);
        let chunks = self.chunks(run)?;
        let (mut log, mut end) = (Vec::new(), SystemTime::UNIX_EPOCH);
        for chunk in &chunks {
            log.extend(fs::read(chunk)?);
            end = end.max(fs::metadata(chunk)?.modified()?);
        }
        let took = end.duration_since(fs::metadata(&begun)?.modified()?).context("the log arrived before it began")?;
        fs::remove_file(begun)?;
        let find = |mark: &str| {
            let found = log.windows(mark.len()).position(|window| window == mark.as_bytes());
            found.with_context(|| format!("{mark:?} is not in the log"))
        };
        let (from, to) = (find(BEGIN)? + BEGIN.len(), find(END)?);
        Ok((took, log[from..to].to_vec()))
    }

    /// The objects of a run's log, in order.
    fn chunks(&self, run: RunId) -> Result<Vec<PathBuf>> {
        let directory = self.control_plane.store.object(&format!("{}/{run}", self.pool.id));
        let mut chunks = vec![];
        collect(&directory, &mut chunks)?;
        chunks.sort();
        Ok(chunks)
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.components().any(|part| part.as_os_str() == "log") {
            files.push(path);
        }
    }
    Ok(())
}
