//! The Docker engine: pulls images, and runs one container per stage of a run.
//!
//! # What can be relied on
//!
//! 1. The container starts the worker as its first process, as user 1983, whatever the image says about entry point,
//!    command, user and health checks.
//! 2. No secret is in a container's description: it gets no environment besides what [`ContainerSpec::environment`] has.
//! 3. [`Engine::create`] can be repeated: a container of the same name and labels is found again.
//! 4. [`Engine::wait`] outlasts restarts of the engine, and tells a container that was removed from one that ended.
//! 5. Every call has a time limit, apart from pulling and waiting.

mod pull;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, HealthConfig,
    HostConfig, HostConfigLogConfig, Mount as EngineMount, MountType, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use spacelift_worker::protocol;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;

pub use pull::Problem as PullProblem;

/// The engine's socket unless another one is named.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// User and group in containers; the images have a user `spacelift` of this number.
pub const USER: &str = "1983:1983";
/// Processes in a container unless told otherwise. Enough for any tool with its providers, and a fork bomb ends at it
/// while the host lives.
pub const DEFAULT_PIDS: u32 = 4096;

/// How long the engine may take for what it does at once.
const LIMIT: Duration = Duration::from_secs(60);
/// Creating, starting and removing wait for disks.
const SLOW_LIMIT: Duration = Duration::from_secs(180);
/// How often a container that is waited for is looked at, in case that the engine forgets to tell.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How soon after waiting broke off.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// Pauses double up to this one while the engine does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What containers print themselves is for diagnosis, and must not fill the disk.
const OWN_OUTPUT: &str = "10m";
/// Bytes of the container's own output that are looked at.
const MAXIMUM_TAIL: usize = 64 * 1024;

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no engine.
    #[error(
        "cannot reach the Docker engine at {address}: {reason}. Is it running, and may this user write to its socket? \
         DOCKER_HOST names another one"
    )]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It took too long.
    #[error("the Docker engine at {address} did not answer within {} seconds when asked to {action}", limit.as_secs())]
    Timeout {
        /// Where it is.
        address: String,
        /// What was asked.
        action: String,
        /// The limit.
        limit: Duration,
    },
    /// It said no.
    #[error("the Docker engine refused to {action}: {reason}")]
    Refused {
        /// What was asked.
        action: String,
        /// What it said.
        reason: String,
        /// The status of its answer.
        status: u16,
    },
    /// Another container has the name.
    #[error(
        "a container `{name}` exists that is not this run's: {difference}. Remove it with `docker rm --force {name}` if \
         nobody needs it"
    )]
    Conflict {
        /// The name.
        name: String,
        /// What is different.
        difference: String,
    },
    /// It was there when it was pulled.
    #[error(
        "the runner image `{image}` was removed from this host after it was pulled and before there was a container of it. Look for \
         what removes images here, such as `docker image prune --all`, and let it wait until no run begins"
    )]
    ImageGone {
        /// Which.
        image: String,
    },
    /// An image did not come.
    #[error("cannot pull the runner image `{image}`: {problem}")]
    Pull {
        /// Which.
        image: String,
        /// Why.
        problem: PullProblem,
    },
}

impl Error {
    /// Whether it may be different soon, with nothing changed but the engine.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }
}

/// A Docker engine.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
    address: String,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Its name, the same whenever it is made for the same stage.
    pub name: String,
    /// What it can be found by. Anybody on the host can read them.
    pub labels: BTreeMap<String, String>,
    /// The runner image.
    pub image: String,
    /// The worker's file on the host.
    pub worker: PathBuf,
    /// The directory on the host with the socket that the worker connects to.
    pub socket_directory: PathBuf,
    /// The directory on the host that is the workspace.
    pub workspace: PathBuf,
    /// What else is mounted: from the host, into the container.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// The network.
    pub network: String,
    /// The runtime. None: the engine's default.
    pub runtime: Option<String>,
    /// Variables besides the image's. Anybody who may ask the engine can read them, so there is no secret among them.
    pub environment: Vec<(String, String)>,
    /// What it may use.
    pub limits: Limits,
}

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Processes and threads.
    pub pids: u32,
    /// Bytes of memory. None: as much as the host has.
    pub memory: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pids: DEFAULT_PIDS, memory: None }
    }
}

/// A container that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The engine's identifier.
    pub id: String,
    /// Whether it was there already.
    pub existed: bool,
    /// What the engine had to remark.
    pub warnings: Vec<String>,
}

/// A container that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The engine's identifier.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it can be found by.
    pub labels: BTreeMap<String, String>,
    /// What it does.
    pub state: State,
}

impl Found {
    /// Whether its processes live.
    #[must_use]
    pub fn running(&self) -> bool {
        self.state == State::Running
    }
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// Its first process lives.
    Running,
    /// Its first process ended.
    Ended(Ended),
    /// It is being removed.
    Removing,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code; 128 and the signal's number for a signal.
    pub code: i64,
    /// Whether the kernel killed a process of it for want of memory. It need not have been the first one: the exit code
    /// may be 0.
    pub oom_killed: bool,
    /// What the engine says went wrong.
    pub error: Option<String>,
}

/// What became of a container that was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It ended.
    Ended(Ended),
    /// It is not there any more: somebody removed it.
    Gone,
}

impl Engine {
    /// Connects, and agrees on a version of the API. `docker_host` is `unix:///PATH` or `tcp://HOST:PORT`.
    ///
    /// # Errors
    /// There is no engine, or none that answers.
    pub async fn connect(docker_host: Option<&str>) -> Result<Self, Error> {
        let address = docker_host.unwrap_or(DEFAULT_HOST).to_owned();
        let connected = if address.starts_with("unix://") {
            Docker::connect_with_unix(&address, LIMIT.as_secs(), API_DEFAULT_VERSION)
        } else {
            Docker::connect_with_http(&address, LIMIT.as_secs(), API_DEFAULT_VERSION)
        };
        let action = "tell its version";
        let docker =
            connected.map_err(|error| failed(&address, action, error))?.with_request_modifier(pull::with_url_safe_auth);
        let docker = within(&address, action, LIMIT, docker.negotiate_version()).await?;
        Ok(Self { docker, address })
    }

    /// Whether the engine answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.within("say that it is there", LIMIT, self.docker.ping()).await.map(drop)
    }

    /// Makes a container. One of the same name and labels that is there already is as good.
    ///
    /// # Errors
    /// The engine refuses, or another container has the name.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Created, Error> {
        let action = format!("create the container `{}`", spec.name);
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        // The client's own limit would end it before.
        let docker = self.docker.clone().with_timeout(SLOW_LIMIT);
        let created = self.within(&action, SLOW_LIMIT, docker.create_container(Some(options), body(spec))).await;
        match created {
            Ok(created) => Ok(Created { id: created.id, existed: false, warnings: created.warnings }),
            Err(Error::Refused { status: 409, reason, .. }) => {
                let Some(found) = self.inspect(&spec.name).await? else {
                    return Err(Error::Refused { action, reason, status: 409 });
                };
                match difference(&spec.labels, &found.labels) {
                    None => Ok(Created { id: found.id, existed: true, warnings: Vec::new() }),
                    Some(difference) => Err(Error::Conflict { name: spec.name.clone(), difference }),
                }
            }
            // Networks and runtimes are only looked for once it starts.
            Err(Error::Refused { status: 404, reason, .. }) if reason.to_lowercase().contains("no such image") => {
                Err(Error::ImageGone { image: spec.image.clone() })
            }
            Err(error) => Err(error),
        }
    }

    /// Starts a container, once. One that runs already is as good, and so is one of which it shows later that it was started:
    /// an engine that is restarted meanwhile gives no answer.
    ///
    /// # Errors
    /// The engine refuses, or does not come back in time.
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        let docker = self.docker.clone().with_timeout(SLOW_LIMIT);
        let started = docker.start_container(id, None::<StartContainerOptions>);
        let error = match self.within(&format!("start the container {id}"), SLOW_LIMIT, started).await {
            Err(error) if error.is_transient() => error,
            done => return done,
        };
        // Not asked for again: it could have run and ended.
        let begun = Instant::now();
        while begun.elapsed() < SLOW_LIMIT {
            match self.inspect(id).await {
                Ok(Some(Found { state: State::Created, .. }) | None) => return Err(error),
                Ok(Some(_)) => return Ok(()),
                Err(_) => sleep(LONGEST_PAUSE).await,
            }
        }
        Err(error)
    }

    /// Waits until a container that was started has ended. While the engine does not answer, it goes on waiting.
    pub async fn wait(&self, id: &str) -> Exit {
        let mut pause = SHORTEST_PAUSE;
        loop {
            // However it ends, what counts is what the engine then says about the container: an answer tells nothing about
            // memory, and a broken connection nothing at all.
            let _ = timeout(LOOK_AGAIN, self.until_not_running(id)).await;
            match self.inspect(id).await {
                Ok(None | Some(Found { state: State::Removing, .. })) => return Exit::Gone,
                Ok(Some(Found { state: State::Ended(ended), .. })) => return Exit::Ended(ended),
                Ok(Some(_)) => pause = SHORTEST_PAUSE,
                Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
            sleep(pause).await;
        }
    }

    async fn until_not_running(&self, id: &str) {
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let _ = self.docker.wait_container(id, Some(options)).next().await;
    }

    /// Sends a signal, such as `SIGTERM`, to a container's first process. One that has ended needs none.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn signal(&self, id: &str, signal: &str) -> Result<(), Error> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let sent = self.docker.kill_container(id, Some(options));
        match self.within(&format!("send {signal} to the container {id}"), LIMIT, sent).await {
            // Not there, or not running.
            Err(Error::Refused { status: 404 | 409, .. }) => Ok(()),
            other => other,
        }
    }

    /// Sends SIGTERM to a container's first process, and SIGKILL to all that is left after `grace`.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().signal("SIGTERM").t(seconds).build();
        // The client's own limit would end it before.
        let limit = grace + LIMIT;
        let docker = self.docker.clone().with_timeout(limit);
        match self.within(&format!("stop the container {id}"), limit, docker.stop_container(id, Some(options))).await {
            Err(Error::Refused { status: 404, .. }) => Ok(()),
            other => other,
        }
    }

    /// Removes a container with its anonymous volumes, killing it if it runs. One that is not there is as good.
    ///
    /// # Errors
    /// The engine refuses.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let docker = self.docker.clone().with_timeout(SLOW_LIMIT);
        let removed = docker.remove_container(id, Some(options));
        match self.within(&format!("remove the container {id}"), SLOW_LIMIT, removed).await {
            Err(Error::Refused { status: 404, .. }) => Ok(()),
            // It is being removed already. It is not gone before it is.
            Err(error @ Error::Refused { status: 409, .. }) => {
                let begun = Instant::now();
                while begun.elapsed() < SLOW_LIMIT {
                    if self.inspect(id).await?.is_none() {
                        return Ok(());
                    }
                    sleep(LONGEST_PAUSE).await;
                }
                Err(error)
            }
            other => other,
        }
    }

    /// The container of a name or an identifier.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn inspect(&self, name: &str) -> Result<Option<Found>, Error> {
        let inspected = self.docker.inspect_container(name, None::<InspectContainerOptions>);
        match self.within(&format!("describe the container {name}"), LIMIT, inspected).await {
            Ok(inspected) => Ok(Some(found(inspected))),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All containers with this label: `NAME` or `NAME=VALUE`. Also those that have ended.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn list(&self, label: &str) -> Result<Vec<Found>, Error> {
        let listed = self.listed(label).await?;
        let mut found = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            // One that went away meanwhile is not there.
            found.extend(self.inspect(&id).await?);
        }
        Ok(found)
    }

    async fn listed(&self, label: &str) -> Result<Vec<ContainerSummary>, Error> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        self.within("list containers", LIMIT, self.docker.list_containers(Some(options))).await
    }

    /// The names of all containers with this label, also of those that the engine cannot describe.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn names(&self, label: &str) -> Result<Vec<String>, Error> {
        Ok(self.names_and_labels(label).await?.into_iter().map(|(name, _)| name).collect())
    }

    /// As [`Self::names`], each with all its labels.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn names_and_labels(&self, label: &str) -> Result<Vec<(String, HashMap<String, String>)>, Error> {
        let named = |container: ContainerSummary| {
            let name = container.names.unwrap_or_default().into_iter().next()?;
            Some((name.trim_start_matches('/').to_owned(), container.labels.unwrap_or_default()))
        };
        Ok(self.listed(label).await?.into_iter().filter_map(named).collect())
    }

    /// The last lines that a container itself wrote to its standard output and standard error: for diagnosis, as a run's
    /// log goes another way.
    ///
    /// # Errors
    /// The engine does not say.
    pub async fn tail(&self, id: &str, lines: u32) -> Result<String, Error> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let mut logs = self.docker.logs(id, Some(options));
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(part) = logs.next().await {
                bytes.extend_from_slice(&part?.into_bytes());
                if bytes.len() > MAXIMUM_TAIL {
                    bytes.drain(..bytes.len() - MAXIMUM_TAIL);
                }
            }
            Ok(bytes)
        };
        let bytes = self.within(&format!("show what the container {id} wrote"), LIMIT, collect).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn within<T>(
        &self,
        action: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, Bollard>>,
    ) -> Result<T, Error> {
        within(&self.address, action, limit, call).await
    }
}

async fn within<T>(
    address: &str,
    action: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, Bollard>>,
) -> Result<T, Error> {
    match timeout(limit, call).await {
        Ok(result) => result.map_err(|error| failed(address, action, error)),
        Err(_) => Err(Error::Timeout { address: address.to_owned(), action: action.to_owned(), limit }),
    }
}

fn failed(address: &str, action: &str, error: Bollard) -> Error {
    match error {
        Bollard::DockerResponseServerError { status_code, message } => {
            Error::Refused { action: action.to_owned(), reason: one_line(&message), status: status_code }
        }
        Bollard::DockerStreamError { error } => {
            Error::Refused { action: action.to_owned(), reason: one_line(&error), status: 500 }
        }
        Bollard::RequestTimeoutError => {
            Error::Timeout { address: address.to_owned(), action: action.to_owned(), limit: LIMIT }
        }
        error => Error::Unreachable { address: address.to_owned(), reason: one_line(&causes(&error)) },
    }
}

/// An error with what it came of: the outer ones of HTTP clients say little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// Characters of what the engine says that are repeated.
const MAXIMUM_REASON: usize = 1000;

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(MAXIMUM_REASON).collect()
}

fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let socket_directory = Path::new(protocol::SOCKET).parent().unwrap_or(Path::new("/"));
    let own = [
        (spec.worker.as_path(), Path::new(protocol::WORKER), true),
        // One may connect to a socket that is mounted so, and not put anything else in its place.
        (spec.socket_directory.as_path(), socket_directory, true),
        (spec.workspace.as_path(), Path::new(protocol::WORKSPACE), false),
    ];
    let others = spec.mounts.iter().map(|(source, target)| (source.as_path(), target.as_path(), false));
    let mounts = own.into_iter().chain(others).map(|(source, target, read_only)| EngineMount {
        // Unlike `binds`, an engine does not make a directory of a source that is not there.
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_string_lossy().into_owned()),
        read_only: Some(read_only),
        ..EngineMount::default()
    });
    let host_config = HostConfig {
        mounts: Some(mounts.collect()),
        network_mode: Some(spec.network.clone()),
        runtime: spec.runtime.clone(),
        // The worker is the first process and reaps what is left to it.
        init: Some(false),
        // It is looked at after its end.
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        pids_limit: Some(i64::from(spec.limits.pids)),
        memory: spec.limits.memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(
                [("max-size", OWN_OUTPUT), ("max-file", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ),
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        entrypoint: Some(vec![protocol::WORKER.to_owned(), "run".to_owned()]),
        cmd: Some(Vec::new()),
        user: Some(USER.to_owned()),
        working_dir: Some(protocol::WORKSPACE.to_owned()),
        env: Some(spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        stop_signal: Some("SIGTERM".to_owned()),
        // An image's check would start programs beside the run.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        tty: Some(false),
        open_stdin: Some(false),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

/// What a container lacks of these labels. An image may have added others.
fn difference(wanted: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Option<String> {
    wanted.iter().find(|(name, value)| found.get(*name) != Some(value)).map(|(name, value)| match found.get(name) {
        Some(other) => format!("its label {name} is `{other}` instead of `{value}`"),
        None => format!("it has no label {name}"),
    })
}

fn found(inspected: ContainerInspectResponse) -> Found {
    let labels = inspected.config.and_then(|config| config.labels).unwrap_or_default();
    let state = inspected.state.unwrap_or_default();
    let ended = || Ended {
        code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.as_deref().map(one_line).filter(|error| !error.is_empty()),
    };
    Found {
        id: inspected.id.unwrap_or_default(),
        name: inspected.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        labels: labels.into_iter().collect(),
        state: match state.status {
            Some(ContainerStateStatusEnum::CREATED) => State::Created,
            Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD) => State::Ended(ended()),
            Some(ContainerStateStatusEnum::REMOVING) => State::Removing,
            _ => State::Running,
        },
    }
}
