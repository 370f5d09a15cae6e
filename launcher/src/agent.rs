//! The launcher at work: one loop that owns the state, hears of everything as events, and performs what [`run::step`] says.
//!
//! Whatever takes long is a task of its own and reports with an event. A task never changes the state.

mod prepare;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use launcher_wire::api::{Claim, LogSummary, Outcome, Registration, Report, RunState, Stage, StateChange};
use launcher_wire::mqtt::ToWorker;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::api_client::{self, ApiClient};
use crate::config::Config;
use crate::docker::{self, Engine};
use crate::network;
use crate::run::{self, Action, Event, Exit, Ids, Intake, Limits, State, Timer};
use crate::run_log::RunLog;
use crate::session::{self, Session};
use crate::slot::{self, Entry, Slot};
use crate::transfer::Transfer;
use crate::upload::Store;
use crate::worker_binary::{self, Embedded};
use crate::worker_server::{self, WorkerServer};

/// Events that the loop has not taken yet. Those who report wait.
const QUEUE: usize = 256;
/// How long a claim may take. The control plane offers the run to another worker when it hears nothing.
const CLAIM_LIMIT: Duration = Duration::from_secs(30);
/// The sign of life until the control plane says how often it wants one.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long removing what is left of a run may hold up everything else.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(60);
/// How long a farewell to the control plane may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);
/// The label by which everything of this launcher is found.
pub const LABEL_POOL: &str = "io.spacelift.pool";
/// The label that says whose worker's it is.
pub const LABEL_WORKER: &str = "io.spacelift.worker";
/// The label that says of which run it is.
pub const LABEL_RUN: &str = "io.spacelift.run";
/// The label that says of which stage of the run.
pub const LABEL_ASSIGNMENT: &str = "io.spacelift.assignment";

/// Why a launcher does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It carries no worker, or a damaged one, or cannot put it on the disk.
    #[error(transparent)]
    Worker(#[from] worker_binary::Error),
    /// It has no place on the host.
    #[error(transparent)]
    Slot(#[from] slot::Error),
    /// Connections cannot be configured.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// There is no Docker engine.
    #[error(transparent)]
    Docker(#[from] docker::Error),
    /// The broker's address is none.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The control plane does not accept this launcher.
    #[error(transparent)]
    Api(#[from] api_client::Error),
    /// Signals cannot be watched for.
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs a launcher until it is told to end and has nothing left to do.
///
/// # Errors
/// It cannot begin. Once it has begun, it goes on through whatever happens.
pub async fn start(config: Config) -> Result<(), Error> {
    let mut signals = Signals::watch().map_err(Error::Signals)?;
    let embedded = worker_binary::embedded().ok_or(worker_binary::Error::NotEmbedded)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let config = Arc::new(config);
    let slot = Slot::take(&config.directory, config.token.pool)?;
    let engine = Engine::connect(config.docker_host.as_deref()).await?;
    engine.ping().await?;
    let network = config.network()?;
    let (pool, worker) = (config.token.pool, slot.worker());
    let api = ApiClient::new(network.api_client()?, &config.token.api, config.key.clone(), pool, worker)?;
    let tls = network.broker_tls(&config.certificate, &config.key)?;

    let (sender, events) = mpsc::channel(QUEUE);
    let limits = Limits { run: config.run_timeout, logs: config.logs_timeout };
    let http = network.object_store_client()?;
    let mut agent = Agent {
        state: State::new(limits, Intake::Open),
        timers: HashMap::new(),
        present: None,
        host: Arc::new(Host { config: Arc::clone(&config), engine, api, http, embedded }),
        slot,
        sender,
        session: None,
        done: false,
    };
    let recovered = agent.recover().await?;

    tracing::info!(%pool, %worker, "registering with {}", config.token.api);
    let registration = Registration {
        launcher_version: env!("CARGO_PKG_VERSION").to_owned(),
        worker_version: embedded.version.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        metadata: config.metadata.clone(),
        state: agent.state.announced(),
    };
    let registered = tokio::select! {
        registered = agent.host.api.register(&registration, None) => registered?,
        () = signals.next() => return Ok(()),
    };
    if registered.drained {
        agent.state.intake = Intake::Drained;
    }
    let heartbeat = if registered.heartbeat == 0 { HEARTBEAT } else { Duration::from_secs(registered.heartbeat) };
    let (session, messages) = Session::start(session::Settings {
        network,
        tls,
        broker: config.token.broker.clone(),
        namespace: config.token.namespace.clone(),
        pool,
        worker,
        heartbeat,
        state: agent.state.announced(),
    })?;
    agent.session = Some(session);
    agent.perform(recovered).await;
    agent.work(events, messages, signals).await;
    Ok(())
}

/// What tasks use too.
struct Host {
    config: Arc<Config>,
    engine: Engine,
    api: ApiClient,
    http: reqwest::Client,
    embedded: &'static Embedded,
}

impl Host {
    /// The object store for one stage of a run.
    fn store(&self, ids: Ids) -> Store {
        Store::new(self.api.clone(), self.http.clone(), ids.run, ids.assignment)
    }

    fn transfer(&self, ids: Ids, directory: PathBuf) -> Transfer {
        Transfer::new(self.store(ids), self.config.key.clone(), directory)
    }
}

struct Agent {
    state: State,
    timers: HashMap<Timer, Instant>,
    present: Option<Present>,
    host: Arc<Host>,
    slot: Slot,
    sender: mpsc::Sender<Event>,
    session: Option<session::Handle>,
    done: bool,
}

/// What belongs to the present run.
struct Present {
    ids: Ids,
    directory: PathBuf,
    /// None: it could not be opened, and why.
    log: Result<RunLog, String>,
    /// Says to whoever prepares the run that it is not wanted any more.
    cancel: Option<oneshot::Sender<()>>,
    /// There once the worker can connect.
    server: watch::Receiver<Option<Arc<WorkerServer>>>,
    /// What the control plane is told, in order.
    reports: mpsc::UnboundedSender<Said>,
}

enum Said {
    State(RunState),
    Outcome(Box<Report>),
}

impl Present {
    fn container(&self) -> String {
        container_name(self.ids)
    }
}

/// The same for the same stage of a run, whoever makes it.
fn container_name(ids: Ids) -> String {
    format!("spacelift-{}-{}", ids.run, ids.assignment)
}

impl Agent {
    async fn work(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut messages: mpsc::Receiver<session::Event>,
        mut signals: Signals,
    ) {
        let mut told_to_end = false;
        while !self.done {
            let timer = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            let event = tokio::select! {
                Some(event) = events.recv() => Some(event),
                Some(event) = messages.recv() => session_event(event),
                () = signals.next() => {
                    let event = if told_to_end { Event::Kill } else { Event::Terminate };
                    tracing::info!("{}", if told_to_end { "told again to end: stopping the run" } else { "told to end: finishing the run, taking no other" });
                    told_to_end = true;
                    Some(event)
                }
                () = elapsed(timer) => timer.map(|(timer, _)| {
                    self.timers.remove(&timer);
                    Event::Elapsed(timer)
                }),
            };
            if let Some(event) = event {
                let (state, actions) = run::step(self.state.clone(), event);
                self.state = state;
                self.perform(actions).await;
            }
        }
        if let Err(error) = self.host.api.deregister(Some(FAREWELL_LIMIT)).await {
            tracing::warn!(%error, "could not say farewell");
        }
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        tracing::info!("done");
    }

    async fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Announce(state) => {
                    if let Some(session) = &self.session {
                        session.set_state(state);
                    }
                }
                Action::Claim(ids) => self.claim(ids),
                Action::Journal(ids, stage) => self.begin(ids, stage).await,
                Action::Prepare(job) => self.prepare(*job),
                Action::CancelPreparation => {
                    if let Some(cancel) = self.present.as_mut().and_then(|present| present.cancel.take()) {
                        let _ = cancel.send(());
                    }
                }
                Action::ReportState(state) => self.say(Said::State(state)),
                Action::Report(report) => {
                    tracing::info!(run = %self.run(), outcome = ?report.outcome, "{}", report.message);
                    self.say(Said::Outcome(report));
                }
                Action::Log(line) => {
                    if let Some(Present { log: Ok(log), .. }) = &self.present {
                        log.line(line).await;
                    }
                }
                Action::StopWorker { grace, reason } => {
                    tracing::info!(run = %self.run(), "stopping: {reason}");
                    if let Some(server) = self.server() {
                        server.stop(grace, reason);
                    }
                }
                Action::KillContainer => self.kill(),
                Action::SetTimer(timer, after) => {
                    // Further than any host stays up.
                    let at = Instant::now().checked_add(after);
                    self.timers.insert(timer, at.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 365)));
                }
                Action::ClearTimer(timer) => {
                    self.timers.remove(&timer);
                }
                Action::Flush => self.flush(),
                Action::CleanUp => self.clean_up().await,
                Action::Exit => self.done = true,
            }
        }
    }

    fn run(&self) -> String {
        self.present.as_ref().map(|present| present.ids.run.to_string()).unwrap_or_default()
    }

    fn server(&self) -> Option<Arc<WorkerServer>> {
        self.present.as_ref().and_then(|present| present.server.borrow().clone())
    }

    fn say(&self, said: Said) {
        if let Some(present) = &self.present {
            let _ = present.reports.send(said);
        }
    }

    fn claim(&self, ids: Ids) {
        let (host, sender) = (Arc::clone(&self.host), self.sender.clone());
        tokio::spawn(async move {
            let claim = Claim { assignment: ids.assignment };
            let event = match host.api.claim(ids.run, &claim, Some(CLAIM_LIMIT)).await {
                Ok(job) if job.run == ids.run && job.assignment == ids.assignment => Event::Claimed(job),
                Ok(_) => {
                    tracing::error!(run = %ids.run, "the control plane gave another run than was claimed");
                    Event::ClaimFailed
                }
                Err(error) => {
                    tracing::warn!(run = %ids.run, %error, "the run was not claimed");
                    Event::ClaimFailed
                }
            };
            let _ = sender.send(event).await;
        });
    }

    /// Everything that a run has from its beginning to its end, on disk before anything else is done for it.
    async fn begin(&mut self, ids: Ids, stage: Stage) {
        let directory = self.slot.run_directory();
        let entry = Entry { run: ids.run, assignment: ids.assignment, stage };
        let begun = self.slot.begin(&entry).and_then(|()| slot::private_directory(&directory));
        let log = match begun {
            Ok(()) => self.open_log(ids).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = &log {
            tracing::error!(run = %ids.run, "cannot begin the run: {reason}");
        }
        self.present = Some(self.with_log(ids, directory, log));
    }

    async fn open_log(&self, ids: Ids) -> Result<RunLog, String> {
        let directory = self.slot.run_directory().join("log");
        let opened = RunLog::open(&directory, ids, self.host.store(ids), self.host.config.logs_on_stdout).await;
        opened.map_err(|error| error.to_string())
    }

    fn with_log(&self, ids: Ids, directory: PathBuf, log: Result<RunLog, String>) -> Present {
        let (reports, receiver) = mpsc::unbounded_channel();
        tokio::spawn(report(Arc::clone(&self.host), ids, receiver, self.sender.clone()));
        Present { ids, directory, log, cancel: None, server: watch::channel(None).1, reports }
    }

    fn prepare(&mut self, job: launcher_wire::api::Job) {
        let Some(present) = &mut self.present else { return };
        let log = match &present.log {
            Ok(log) => log.clone(),
            Err(reason) => {
                let end = run::End { outcome: Outcome::Unable, message: reason.clone(), changes: None };
                let sender = self.sender.clone();
                tokio::spawn(async move { sender.send(Event::PreparationFailed(end)).await });
                return;
            }
        };
        let (cancel, cancelled) = oneshot::channel();
        let (server, receiver) = watch::channel(None);
        present.cancel = Some(cancel);
        present.server = receiver;
        log.of_stack(&job.stack_id);
        let preparation = prepare::Preparation {
            host: Arc::clone(&self.host),
            worker: self.slot.worker(),
            name: present.container(),
            directory: present.directory.clone(),
            job,
            log,
            events: self.sender.clone(),
            server,
        };
        tokio::spawn(preparation.run(cancelled));
    }

    fn kill(&self) {
        let Some(present) = &self.present else { return };
        let (host, name) = (Arc::clone(&self.host), present.container());
        tokio::spawn(async move {
            // Whoever waits for the container hears of its end.
            if let Err(error) = host.engine.signal(&name, "SIGKILL").await {
                tracing::error!(container = name, %error, "cannot kill the container");
            }
        });
    }

    fn flush(&self) {
        let Some(present) = &self.present else { return };
        let (sender, log, server) = (self.sender.clone(), present.log.clone(), self.server());
        tokio::spawn(async move {
            if let Some(server) = server {
                server.close().await;
            }
            let flushed = match log {
                Ok(log) => log.flush().await.map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            let summary = flushed.unwrap_or_else(|reason| {
                tracing::error!("the run's log was not delivered: {reason}");
                empty_log()
            });
            let _ = sender.send(Event::Flushed(summary)).await;
        });
    }

    async fn clean_up(&mut self) {
        let Some(present) = self.present.take() else { return };
        let removed = tokio::time::timeout(CLEAN_UP_LIMIT, self.host.engine.remove(&present.container())).await;
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(container = present.container(), %error, "cannot remove the container"),
            Err(_) => {
                tracing::error!(container = present.container(), "the Docker engine does not remove the container")
            }
        }
        let directory = present.directory.clone();
        drop(present);
        remove_directory(directory).await;
        if let Err(error) = self.slot.end() {
            tracing::error!(%error, "cannot end the journal's entry");
        }
    }

    /// What a launcher before this one has begun and not ended: its container, if it lives, goes on with this one.
    async fn recover(&mut self) -> Result<Vec<Action>, Error> {
        let Some(Entry { run, assignment, stage }) = self.slot.journal()? else {
            remove_directory(self.slot.run_directory()).await;
            return Ok(vec![]);
        };
        let ids = Ids { run, assignment };
        let directory = self.slot.run_directory();
        slot::private_directory(&directory)?;
        let log = self.open_log(ids).await;
        let mut present = self.with_log(ids, directory, log);
        let name = present.container();
        let alive = self.host.engine.inspect(&name).await?.is_some_and(|found| found.running());
        if let (true, Ok(log)) = (alive, &present.log) {
            let server = WorkerServer::start(worker_server::Settings {
                socket: prepare::socket(&present.directory),
                job: None,
                directory: present.directory.clone(),
                log: log.clone(),
                events: self.sender.clone(),
                transfer: self.host.transfer(ids, present.directory.clone()),
            });
            match server {
                Ok(server) => {
                    tracing::info!(%run, "going on with the run that was begun before");
                    let (sender, receiver) = watch::channel(Some(Arc::new(server)));
                    drop(sender);
                    present.server = receiver;
                    self.present = Some(present);
                    prepare::watch_container(Arc::clone(&self.host), name, self.sender.clone());
                    let (state, actions) = run::adopted(self.state.clone(), ids, stage);
                    self.state = state;
                    return Ok(actions);
                }
                Err(error) => tracing::error!(%run, %error, "cannot go on with the run"),
            }
        }
        let said = slot::Said::kept(&present.directory)?;
        self.present = Some(present);
        let (state, actions) = match said {
            Some(slot::Said { outcome, workspace, outputs }) => {
                tracing::info!(%run, "the run that was begun before has ended");
                run::ended_before(self.state.clone(), ids, stage, outcome, workspace, outputs)
            }
            None => {
                tracing::warn!(%run, "the run that was begun before is lost");
                run::lost(self.state.clone(), ids, stage)
            }
        };
        self.state = state;
        Ok(actions)
    }
}

/// Tells the control plane, in order and as often as it takes, what a run is in and how it ended.
async fn report(host: Arc<Host>, ids: Ids, mut said: mpsc::UnboundedReceiver<Said>, sender: mpsc::Sender<Event>) {
    while let Some(said) = said.recv().await {
        match said {
            Said::State(state) => {
                let change = StateChange { assignment: ids.assignment, state };
                if let Err(error) = host.api.state(ids.run, &change, None).await {
                    tracing::warn!(run = %ids.run, %error, "the run's state was not taken");
                }
            }
            Said::Outcome(report) => {
                if let Err(error) = host.api.outcome(ids.run, &report, None).await {
                    tracing::error!(run = %ids.run, %error, "the run's outcome was not taken");
                }
                let _ = sender.send(Event::Reported).await;
            }
        }
    }
}

async fn elapsed(timer: Option<(Timer, Instant)>) {
    match timer {
        Some((_, at)) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn session_event(event: session::Event) -> Option<Event> {
    match event {
        session::Event::Connected => {
            tracing::info!("connected to the broker");
            None
        }
        session::Event::Disconnected { reason, retry_in } => {
            tracing::warn!("no connection to the broker: {reason}. Trying again in {:.1} s", retry_in.as_secs_f32());
            None
        }
        session::Event::Message(message) => Some(match message {
            ToWorker::RunScheduled { run, assignment } => Event::Scheduled(Ids { run, assignment }),
            ToWorker::RunStop { run, assignment } => Event::StopRequested(Ids { run, assignment }),
            ToWorker::Drain {} => Event::Drain,
            ToWorker::Undrain {} => Event::Undrain,
            ToWorker::Cycle {} => Event::Cycle,
        }),
    }
}

fn empty_log() -> LogSummary {
    use sha2::Digest as _;
    let sha256 = sha2::Sha256::digest(b"").iter().map(|byte| format!("{byte:02x}")).collect();
    LogSummary { chunks: 0, lines: 0, bytes: 0, sha256 }
}

async fn remove_directory(directory: PathBuf) {
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err((directory, error)),
        _ => Ok(()),
    });
    if let Ok(Err((directory, error))) = removed.await {
        tracing::error!(directory = %directory.display(), %error, "cannot remove the run's files");
    }
}

fn exit_of(exit: docker::Exit) -> Exit {
    match exit {
        docker::Exit::Ended(ended) => Exit::Code { code: ended.code, out_of_memory: ended.oom_killed },
        docker::Exit::Gone => Exit::Gone,
    }
}

/// SIGTERM and SIGINT mean the same: people and supervisors end a launcher.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
