//! Everything that a run needs besides its launcher: broker, object store, container engine and control plane.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use launcher_wire::api::{Hooks, RunState, Source, Tool, Workflow};
use launcher_wire::id::{PoolId, RunId, WorkerId};
use mothership::admin::{Client, CreateRun, Run, Stack, WorkerStatus};
use tempfile::TempDir;

use crate::daemon::{Daemon, Service};
use crate::docker::{self, Engine};
use crate::interactive;
use crate::mosquitto::Mosquitto;
use crate::run::{self, succeed};
use crate::s3_store::{self, S3Store};

/// How long anything that takes a moment may take on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// What the broker lets whom do: the control plane everything, each worker what is between the two of them.
const ACCESS: &str = "user mothership\ntopic readwrite #\n\
                      pattern read spacelift/readonly/%u/%c\npattern write spacelift/writeonly/%u/%c\n";

/// A control plane with all that it talks to. It ends when this is dropped.
pub struct ControlPlane {
    /// Asks it things as its administrator.
    pub client: Client,
    /// Where objects are.
    pub store: S3Store,
    /// The control plane itself.
    pub mothership: Service,
    /// The broker.
    pub broker: Mosquitto,
    data: TempDir,
}

/// A pool, as its administrator has it on disk.
pub struct Pool {
    /// Which.
    pub id: PoolId,
    /// The token.
    pub token: String,
    /// The file of the private key, as openssl wrote it.
    pub key: PathBuf,
    _directory: TempDir,
}

impl Pool {
    /// `SPACELIFT_POOL_PRIVATE_KEY`.
    pub fn private_key(&self) -> String {
        BASE64_STANDARD.encode(fs::read(&self.key).unwrap())
    }
}

impl ControlPlane {
    /// Starts all of it. `mothership` and `strict_s3` are programs, whose paths only tests know.
    ///
    /// # Panics
    /// Some part does not start.
    pub fn start(mothership: &Path, strict_s3: &str) -> Self {
        // Often, so that tests need not wait for what comes with it.
        Self::start_with(mothership, strict_s3, 2)
    }

    /// The same, with so many seconds between two signs of life of a launcher.
    ///
    /// # Panics
    /// Some part does not start.
    pub fn start_with(mothership: &Path, strict_s3: &str, heartbeat: u64) -> Self {
        let data = tempfile::tempdir().unwrap();
        let home = data.path().join("mothership");
        succeed(Command::new(mothership).arg("--data").arg(&home).args(["init", "--server-name", "localhost"]));
        let file = |name: &str| home.join(name);
        let broker = Mosquitto::start(&file("ca.pem"), &file("broker.pem"), &file("broker.key"), ACCESS);
        let store = S3Store::start(strict_s3);
        let mut serve = Command::new(mothership);
        S3Store::configure(&mut serve, &store.endpoint());
        serve.arg("--data").arg(&home).args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--heartbeat",
            &heartbeat.to_string(),
            "--broker",
        ]);
        serve.arg(format!("mqtts://localhost:{}", broker.port()));
        serve.args(["--s3-endpoint", &store.endpoint(), "--s3-bucket", s3_store::BUCKET, "--s3-region", "eu-west-1"]);
        let opened = home.clone();
        // After a restart the file is there already: what counts is that it answers.
        let is_ready = move || Client::open(&opened).is_ok_and(|client| client.pools().is_ok());
        let mothership = Service::start(serve, &data.path().join("mothership"), is_ready);
        let client = Client::open(&home).unwrap();
        Self { client, store, mothership, broker, data }
    }

    /// The directory of the control plane, with its certificates.
    pub fn home(&self) -> PathBuf {
        self.data.path().join("mothership")
    }

    /// Makes a pool as the documentation says.
    ///
    /// # Panics
    /// openssl is missing, or the request is refused.
    pub fn pool(&self) -> Pool {
        let directory = tempfile::tempdir().unwrap();
        let mut openssl = run::tool("openssl");
        openssl.args([
            "req",
            "-new",
            "-newkey",
            "rsa:4096",
            "-nodes",
            "-keyout",
            "spacelift.key",
            "-out",
            "spacelift.csr",
        ]);
        // Whoever is asked for a subject presses Enter.
        openssl.args(["-batch"]).current_dir(directory.path());
        succeed(&mut openssl);
        let csr = fs::read_to_string(directory.path().join("spacelift.csr")).unwrap();
        let made = self.client.create_pool(None, &csr).unwrap();
        Pool { id: made.pool, token: made.token, key: directory.path().join("spacelift.key"), _directory: directory }
    }

    /// Starts a run.
    ///
    /// # Panics
    /// It is refused.
    pub fn begin(&self, stack: &Stack, run_type: launcher_wire::api::RunType, command: Option<&str>) -> RunId {
        self.client.apply_stack(stack).unwrap();
        let run = CreateRun {
            stack: stack.slug.clone(),
            run_type,
            command: command.map(str::to_owned),
            commit: None,
            author: None,
            message: None,
            user_provided_metadata: vec![],
        };
        self.client.create_run(&run).unwrap().id
    }

    /// Waits until a run is in a state.
    ///
    /// # Panics
    /// It takes too long, or it ended in another.
    pub fn wait_for(&self, run: RunId, state: RunState) -> Run {
        self.wait_within(run, state, LIMIT)
    }

    /// The same, with a limit of one's own.
    ///
    /// # Panics
    /// It takes longer, or it ended in another.
    pub fn wait_within(&self, run: RunId, state: RunState, limit: Duration) -> Run {
        let started = Instant::now();
        loop {
            let present = self.client.run(run).unwrap();
            if present.state == state {
                return present;
            }
            let log = || String::from_utf8_lossy(&self.log(run)).into_owned();
            assert!(!present.state.is_terminal(), "the run ended as {present:#?}\n{}", log());
            assert!(started.elapsed() < limit, "the run is {present:#?}\n{}\n{}", log(), self.own_log());
            thread::sleep(POLL);
        }
    }

    /// Waits until a worker is seen with this status.
    ///
    /// # Panics
    /// It takes too long.
    pub fn wait_for_worker(&self, worker: Option<WorkerId>, status: WorkerStatus) {
        let started = Instant::now();
        loop {
            let workers = self.client.workers().unwrap();
            if workers.iter().any(|one| worker.is_none_or(|worker| one.id == worker) && one.status == status) {
                return;
            }
            assert!(started.elapsed() < LIMIT, "the workers are {workers:#?}\n{}", self.own_log());
            thread::sleep(POLL);
        }
    }

    /// What a run has logged.
    ///
    /// # Panics
    /// The control plane does not give it.
    pub fn log(&self, run: RunId) -> Vec<u8> {
        let mut log = vec![];
        loop {
            let part = self.client.log(run, log.len() as u64).unwrap();
            if part.bytes.is_empty() {
                return log;
            }
            log.extend(part.bytes);
            if part.complete {
                return log;
            }
        }
    }

    /// What the control plane itself printed.
    pub fn own_log(&self) -> String {
        self.mothership.log()
    }
}

/// A launcher on a host of its own, as far as files go.
pub struct Launcher {
    daemon: Daemon,
    data: TempDir,
    /// Its variables.
    pub variables: HashMap<String, String>,
    starts: u32,
}

impl Launcher {
    /// Starts it with the two variables that are needed, those that lead it to this machine's parts, and `more`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(program: &Path, engine: &Engine, pool: &Pool, more: &[(&str, &str)]) -> Self {
        let data = tempfile::Builder::new().prefix("host").tempdir_in(interactive::short_directory()).unwrap();
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let directory = data.path().join("spacelift");
        let mut variables = HashMap::from([
            ("SPACELIFT_TOKEN".to_owned(), pool.token.clone()),
            ("SPACELIFT_POOL_PRIVATE_KEY".to_owned(), pool.private_key()),
            ("SPACELIFT_LAUNCHER_DIR".to_owned(), directory.to_str().unwrap().to_owned()),
            ("DOCKER_HOST".to_owned(), engine.host()),
            // The engine has no bridge here.
            ("SPACELIFT_WORKER_NETWORK".to_owned(), "none".to_owned()),
            // Whatever this machine is, the launcher's host is no instance of EC2.
            ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
            ("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ]);
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Killed { data, variables, starts: 0 }.start_again(program)
    }

    /// What it printed.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// The directory that it keeps its files in.
    pub fn directory(&self) -> PathBuf {
        self.data.path().join("spacelift")
    }

    /// Ends it without a chance to say or do anything. Its host stays as it is.
    ///
    /// # Panics
    /// It has ended already.
    pub fn kill(mut self) -> Killed {
        self.daemon.kill();
        Killed { data: self.data, variables: self.variables, starts: self.starts }
    }

    /// The process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Asks it to end and waits until it has: the exit code.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn finish(self) -> Option<i32> {
        self.finish_with_host().1
    }

    /// The same, and what it left on its host.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn finish_with_host(mut self) -> (TempDir, Option<i32>) {
        let code = self.daemon.finish(LIMIT);
        (self.data, code)
    }

    /// Waits until it ends by itself: the exit code.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn wait(mut self) -> Option<i32> {
        self.daemon.wait(LIMIT)
    }
}

/// The host of a launcher that does not run.
pub struct Killed {
    data: TempDir,
    variables: HashMap<String, String>,
    starts: u32,
}

impl Killed {
    /// The directory that it kept its files in.
    pub fn directory(&self) -> PathBuf {
        self.data.path().join("spacelift")
    }

    /// Starts the launcher as before.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_again(self, program: &Path) -> Launcher {
        let Self { data, variables, starts } = self;
        let mut launcher = Command::new(program);
        launcher.env_clear().envs(&variables);
        // Each start has a log of its own.
        let daemon = Daemon::start(&mut launcher, &data.path().join(format!("log.{starts}")), || true);
        Launcher { daemon, data, variables, starts: starts + 1 }
    }
}

/// A stack that executes a workflow of its own, and has nothing else.
pub fn custom_stack(slug: &str, pool: PoolId, image: &str, workflow: Workflow) -> Stack {
    Stack {
        slug: slug.to_owned(),
        name: None,
        labels: vec![],
        pool,
        tool: Tool::Custom,
        image: Some(image.to_owned()),
        environment: vec![],
        hooks: Hooks::default(),
        files: vec![],
        workflow: Some(workflow),
        project_root: String::new(),
        source: Source::None {},
        branch: None,
        autodeploy: false,
    }
}

/// The image of a runner: a shell and little else. The name is one that needs no registry.
///
/// # Panics
/// The engine refuses it.
pub fn runner_image(engine: &Engine) -> String {
    runner_image_with(engine, &[])
}

/// The same, with programs of this machine that need no libraries.
///
/// # Panics
/// There is no such program, or the engine refuses it.
pub fn runner_image_with(engine: &Engine, programs: &[&str]) -> String {
    let root = docker::busybox_root();
    for program in programs {
        // By another process: what this one writes cannot be executed while it forks.
        succeed(run::tool("cp").arg(run::find(program)).arg(root.path().join("bin")));
    }
    for name in [
        "sh", "cat", "echo", "env", "grep", "head", "id", "ls", "mkdir", "sleep", "stat", "touch", "true", "false",
        "date", "ps",
    ] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name)).unwrap();
    }
    engine.import(root.path(), "runner");
    let mut docker = engine.docker();
    docker.args(["image", "inspect", "--format", "{{.Id}}", "runner"]);
    succeed(&mut docker).trim().to_owned()
}
