//! The launcher at work: one loop that owns the state, hears of everything as events, and performs what [`run::step`] says.
//!
//! Whatever takes long is a task of its own and reports with an event. A task never changes the state.

mod prepare;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use launcher_wire::api::{
    Claim, Job, LogSummary, Outcome, Registered, Registration, Report, RunState, Stage, StateChange,
};
use launcher_wire::id::AssignmentId;
use launcher_wire::mqtt::{ToWorker, WorkerState};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api_client::{self, ApiClient};
use crate::config::Config;
use crate::docker::{self, Engine};
use crate::events::{self, Sender};
use crate::metrics;
use crate::network;
use crate::run::{self, Action, Event, Exit, Found, Ids, Intake, Kept, Limits, State, Stopping, Timer};
use crate::run_log::{Delivered, RunLog};
use crate::session::{self, Session};
use crate::slot::{self, Entry, Slot};
use crate::spot;
use crate::supervisor::{Occasion, Supervisor};
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
/// Seconds between two signs of life, whatever the control plane says.
const MAXIMUM_HEARTBEAT: u64 = 3600;
/// How long to wait before a launcher with a run that goes on tries to register again.
const REGISTER_AGAIN: Duration = Duration::from_secs(60);
/// How long to wait before an outcome that was refused is said again.
const REPORT_AGAIN: Duration = Duration::from_secs(60);
/// How often an outcome that the control plane does not understand is said.
const MAXIMUM_REFUSALS: u32 = 10;
/// How long a farewell to the control plane may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);
/// When to look after the places of other launchers first. Those that are started with this one have theirs by then.
const OTHERS_FIRST: Duration = Duration::from_secs(60);
/// How often from then on.
const OTHERS_INTERVAL: Duration = Duration::from_secs(10 * 60);
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
    let signals = Signals::watch().map_err(Error::Signals)?;
    let embedded = worker_binary::embedded().ok_or(worker_binary::Error::NotEmbedded)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut supervisor = Supervisor::new(config.supervisor.clone());
    supervisor.tell(&metrics::shared().read(), Occasion::Beat);
    let config = Arc::new(config);
    worker_binary::close_new_volume(&config.directory)?;
    // A directory that others can change is refused before anything is written to it.
    let ready = embedded.ready(&config.directory);
    if let Err(error @ worker_binary::Error::Untrusted { .. }) = ready {
        return Err(error.into());
    }
    let slot = Slot::take(&config.directory, config.token.pool)?;
    let engine = Engine::connect(config.docker_host.as_deref()).await?;
    engine.ping().await?;
    let network = config.network()?;
    let (pool, worker) = (config.token.pool, slot.worker());
    metrics::shared().identify(pool, worker, config.certificate.not_after);
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
        supervisor,
        done: false,
    };
    metrics::shared().turn();
    if let Some(address) = config.metrics_address {
        tokio::spawn(metrics::server::serve(address, metrics::shared()));
    }
    let recovered = agent.recover().await?;
    agent.supervisor.tell(&metrics::shared().read(), Occasion::Beat);
    match ready {
        // Whether the directory is fit for it shows now, not at the first run. What runs has its worker already.
        Err(error) if agent.present.is_none() => return Err(error.into()),
        Err(error) => tracing::error!(%error, "no other run can begin"),
        Ok(_) => {}
    }
    agent.perform(recovered).await;
    agent.remove_orphans().await;

    tracing::info!(%pool, %worker, "registering with {}", config.token.api);
    let registration = registration(&agent.host, agent.state.announced());
    let (api, is_idle) = (agent.host.api.clone(), agent.state.ids().is_none());
    let registering = tokio::spawn(async move {
        loop {
            match api.register(&registration, None).await {
                // A run that goes on does not depend on what the control plane thinks of this launcher just now.
                Err(error) if !is_idle => {
                    tracing::error!(%error, "not registered; trying again");
                    tokio::time::sleep(REGISTER_AGAIN).await;
                }
                result => return result,
            }
        }
    });
    let open_session = move |registered: &Registered, state| {
        let heartbeat = match registered.heartbeat {
            0 => HEARTBEAT,
            seconds => Duration::from_secs(seconds.min(MAXIMUM_HEARTBEAT)),
        };
        Session::start(session::Settings {
            network: network.clone(),
            tls: Arc::clone(&tls),
            broker: config.token.broker.clone(),
            namespace: config.token.namespace.clone(),
            pool,
            worker,
            heartbeat,
            state,
        })
    };
    let watch_spot = spot::endpoint(|name| std::env::var(name).ok());
    let notice = match watch_spot {
        Some(endpoint) => tokio::spawn(spot::notice(agent.host.http.clone(), endpoint)),
        None => tokio::spawn(std::future::pending()),
    };
    agent.work(events, registering, open_session, notice, signals).await
}

type Registering = tokio::task::JoinHandle<Result<Registered, api_client::Error>>;
type Opened = (session::Handle, mpsc::Receiver<session::Event>);

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

fn registration(host: &Host, state: WorkerState) -> Registration {
    Registration {
        launcher_version: env!("CARGO_PKG_VERSION").to_owned(),
        worker_version: host.embedded.version.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        metadata: host.config.metadata.clone(),
        state,
    }
}

struct Agent {
    state: State,
    timers: HashMap<Timer, Instant>,
    present: Option<Present>,
    host: Arc<Host>,
    slot: Slot,
    sender: mpsc::Sender<events::Message>,
    session: Option<session::Handle>,
    supervisor: Supervisor,
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
    /// How it ended, where that could not be put on disk.
    unkept: Option<Kept>,
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
        mut events: mpsc::Receiver<events::Message>,
        mut registering: Registering,
        open_session: impl Fn(&Registered, WorkerState) -> Result<Opened, session::Error>,
        mut notice: tokio::task::JoinHandle<spot::Notice>,
        mut signals: Signals,
    ) -> Result<(), Error> {
        let (mut told_to_end, mut is_noticed, mut was_connected) = (false, false, false);
        let mut again = None;
        let mut others = tokio::time::interval_at(Instant::now() + OTHERS_FIRST, OTHERS_INTERVAL);
        let mut messages: Option<mpsc::Receiver<session::Event>> = None;
        let mut beat = interval(self.supervisor.beat());
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.show(Occasion::Change);
        while !self.done {
            let (mut occasion, mut is_new) = (Occasion::Change, false);
            let timer = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            let event = tokio::select! {
                Some((assignment, event)) = events.recv() => self.of_present(assignment, event),
                Some(event) = next(&mut messages) => {
                    is_new = true;
                    // The control plane may have lost or forgotten this launcher meanwhile.
                    if matches!(event, session::Event::Connected) && std::mem::replace(&mut was_connected, true) {
                        again = self.register_again();
                    }
                    session_event(event)
                }
                registered = &mut registering, if messages.is_none() => {
                    // A task of ours that panics is a mistake; there is nothing to go on with.
                    let registered = registered.expect("registering does not panic")?;
                    let (session, receiver) = open_session(&registered, self.state.announced())?;
                    self.session = Some(session);
                    messages = Some(receiver);
                    metrics::shared().registered();
                    is_new = true;
                    registered.drained.then_some(Event::Drain)
                }
                noticed = &mut notice, if !is_noticed => {
                    is_noticed = true;
                    // It was watched for in vain from then on, which is no reason to end what runs.
                    noticed.ok().map(|spot::Notice { action, left }| {
                        tracing::warn!("this host is taken away in {} s ({action}): taking no other run", left.as_secs());
                        Event::SpotNotice { left }
                    })
                }
                () = signals.next() => {
                    let (event, doing) = if told_to_end {
                        (Event::Kill, "told again to end: ending the run")
                    } else {
                        (Event::Terminate, "told to end: finishing the run, taking no other")
                    };
                    tracing::info!("{doing}");
                    told_to_end = true;
                    Some(event)
                }
                _ = others.tick() => {
                    self.look_after_others();
                    None
                }
                () = elapsed(timer) => timer.map(|(timer, _)| {
                    self.timers.remove(&timer);
                    Event::Elapsed(timer)
                }),
                _ = beat.tick() => {
                    occasion = Occasion::Beat;
                    None
                }
            };
            if let Some(event) = event {
                if event == Event::ClaimFailed {
                    metrics::shared().claims_failed.add_one();
                }
                let (state, actions) = run::step(self.state.clone(), event);
                self.state = state;
                if metrics::shared().observe(&self.state) {
                    is_new = true;
                    tracing::debug!("now {}", metrics::shared().read());
                }
                self.perform(actions).await;
            }
            metrics::shared().turn();
            if is_new || occasion == Occasion::Beat {
                self.show(occasion);
            }
        }
        self.supervisor.stopping();
        registering.abort();
        notice.abort();
        if let Some(again) = again {
            again.abort();
        }
        let Some(session) = self.session.take() else { return Ok(()) };
        // With a run whose end nobody could be told yet it comes back under the same identifier.
        if self.present.is_none()
            && let Err(error) = self.host.api.deregister(Some(FAREWELL_LIMIT)).await
        {
            tracing::warn!(%error, "could not say farewell");
        }
        session.close().await;
        tracing::info!("done");
        Ok(())
    }

    fn show(&mut self, occasion: Occasion) {
        let metrics = metrics::shared();
        metrics.observe(&self.state);
        self.supervisor.tell(&metrics.read(), occasion);
    }

    fn register_again(&self) -> Option<tokio::task::JoinHandle<()>> {
        if self.state.intake == Intake::Leaving {
            return None;
        }
        let (host, registration) = (Arc::clone(&self.host), registration(&self.host, self.state.announced()));
        Some(tokio::spawn(async move {
            if let Err(error) = host.api.register(&registration, Some(REGISTER_AGAIN)).await {
                tracing::warn!(%error, "not registered again");
            }
        }))
    }

    /// What is said of another stage than the present one comes late.
    fn of_present(&self, assignment: AssignmentId, event: Event) -> Option<Event> {
        let is_present = self.state.ids().is_some_and(|ids| ids.assignment == assignment);
        is_present.then_some(event)
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
                Action::Journal(ids, stage) => {
                    metrics::shared().runs_taken.add_one();
                    self.begin(ids, stage).await;
                }
                Action::Prepare(job) => self.prepare(*job),
                Action::CancelPreparation => {
                    if let Some(cancel) = self.present.as_mut().and_then(|present| present.cancel.take()) {
                        let _ = cancel.send(());
                    }
                }
                Action::Remember(stop) => self.remember(stop),
                Action::ReportState(state) => self.say(Said::State(state)),
                Action::Report(report) => {
                    tracing::info!(run = %self.run(), outcome = ?report.outcome, "{}", report.message);
                    metrics::shared().ended(report.outcome, &report.log);
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
                Action::Keep(kept) => self.keep(kept),
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
        let (host, sender) = (Arc::clone(&self.host), self.sender(ids));
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
            sender.send(event).await;
        });
    }

    fn sender(&self, ids: Ids) -> Sender {
        Sender::new(self.sender.clone(), ids.assignment)
    }

    /// Everything that a run has from its beginning to its end, on disk before anything else is done for it.
    async fn begin(&mut self, ids: Ids, stage: Stage) {
        let directory = self.slot.run_directory();
        let entry = Entry { run: ids.run, assignment: ids.assignment, stage, begun: slot::now() };
        // What an earlier run left is put aside first: under the new entry it would be taken for this one's.
        let begun = self.slot.new_run_directory().and_then(|_| self.slot.begin(&entry));
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
        tokio::spawn(report(Arc::clone(&self.host), ids, receiver, self.sender(ids)));
        Present { ids, directory, log, cancel: None, server: watch::channel(None).1, reports, unkept: None }
    }

    fn prepare(&mut self, job: Job) {
        let sender = self.sender(Ids { run: job.run, assignment: job.assignment });
        let Some(present) = &mut self.present else { return };
        let log = match &present.log {
            Ok(log) => log.clone(),
            Err(reason) => {
                let end = run::End { outcome: Outcome::Unable, message: reason.clone(), changes: None };
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
            events: sender,
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
                tracing::error!(container = name, %error, "cannot kill the container; removing it");
                if let Err(error) = host.engine.remove(&name).await {
                    tracing::error!(container = name, %error, "cannot remove the container");
                }
            }
        });
    }

    fn remember(&self, stop: Stopping) {
        let Some(present) = &self.present else { return };
        if let Err(error) = slot::keep_stop(&present.directory, stop) {
            tracing::error!(run = %present.ids.run, %error, "why the run is ended is not on disk");
        }
    }

    fn keep(&mut self, kept: Kept) {
        let Some(present) = &mut self.present else { return };
        if let Err(error) = slot::keep_end(&present.directory, &kept) {
            tracing::error!(run = %present.ids.run, %error, "how the run ended is not on disk");
            // The run itself may have filled it.
            present.unkept = Some(kept);
        }
    }

    fn flush(&mut self) {
        let server = self.server();
        let Some(present) = &mut self.present else { return };
        let (log, directory, unkept) = (present.log.clone(), present.directory.clone(), present.unkept.take());
        let sender = Sender::new(self.sender.clone(), present.ids.assignment);
        let (host, name) = (Arc::clone(&self.host), present.container());
        tokio::spawn(async move {
            if let Some(server) = server {
                server.close().await;
            }
            // Nobody is told of an end while the container could still do something.
            prepare::remove(&host.engine, &name).await;
            // Nobody needs the run's files any more, and the log may need the room.
            let emptied = tokio::task::spawn_blocking(move || {
                slot::empty_workspace(&directory);
                unkept.map_or(Ok(()), |kept| slot::keep_end(&directory, &kept))
            });
            if let Ok(Err(error)) = emptied.await {
                tracing::error!(%error, "how the run ended is not on disk");
            }
            let delivered = match log {
                Ok(log) => log.flush_for_good().await,
                Err(reason) => {
                    tracing::error!("there is no log: {reason}");
                    Delivered::Unwanted
                }
            };
            let event = match delivered {
                Delivered::Whole(summary) => Event::Flushed(summary),
                Delivered::Unwanted => Event::Flushed(LogSummary::empty()),
                Delivered::Damaged(reason) => Event::LogDamaged(reason),
            };
            sender.send(event).await;
        });
    }

    async fn clean_up(&mut self) {
        let Some(present) = self.present.take() else { return };
        drop(present);
        if let Err(error) = self.slot.put_aside() {
            tracing::error!(%error, "cannot put the run's files aside");
        }
        tokio::task::spawn_blocking(self.slot.sweep());
        if let Err(error) = self.slot.end() {
            tracing::error!(%error, "cannot end the journal's entry");
        }
    }

    /// What a launcher before this one has begun and not ended: its container, if it lives, goes on with this one.
    async fn recover(&mut self) -> Result<Vec<Action>, Error> {
        let Some(Entry { run, assignment, stage, begun }) = self.slot.journal()? else {
            self.slot.put_aside()?;
            tokio::task::spawn_blocking(self.slot.sweep());
            return Ok(vec![]);
        };
        tokio::task::spawn_blocking(self.slot.sweep());
        let ids = Ids { run, assignment };
        let directory = self.slot.run_directory();
        slot::private_directory(&directory)?;
        let log = self.open_log(ids).await;
        let mut present = self.with_log(ids, directory, log);
        let age = Duration::from_secs(slot::now().saturating_sub(begun));
        let found = self.find(&mut present, age).await?;
        tracing::info!(%run, "the run that was begun before: {found:?}");
        self.present = Some(present);
        let (state, actions) = run::recovered(self.state.clone(), ids, stage, found);
        self.state = state;
        Ok(actions)
    }

    /// Removes containers of this worker that its journal knows nothing of. Nobody else makes containers in its name, so nobody
    /// is just about to.
    async fn remove_orphans(&mut self) {
        let own = self.present.as_ref().map(Present::container);
        let found = match self.host.engine.names(&format!("{LABEL_WORKER}={}", self.slot.worker())).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "cannot look for containers that were left behind");
                return;
            }
        };
        for orphan in found.into_iter().filter(|name| Some(name) != own.as_ref()) {
            tracing::warn!(container = orphan, "removing a container that was left behind");
            if let Err(error) = self.host.engine.remove(&orphan).await {
                tracing::warn!(container = orphan, %error, "cannot remove the container");
            }
            // A slow engine may need minutes for each, and the loop that says that all is well does not turn yet.
            self.supervisor.tell(&metrics::shared().read(), Occasion::Beat);
        }
    }

    /// What launchers left behind that do not come back: nobody else on this host would say so.
    fn look_after_others(&self) {
        let abandoned = self.slot.abandoned();
        tokio::task::spawn_blocking(move || {
            for (place, Entry { run, .. }) in abandoned() {
                tracing::error!(
                    %run,
                    place = %place.display(),
                    "the launcher that began this run has not come back; start another one of this pool on this host, which goes \
                     on with the run"
                );
            }
        });
    }

    async fn find(&self, present: &mut Present, age: Duration) -> Result<Found, Error> {
        if let Some(kept) = slot::kept_end(&present.directory)? {
            return Ok(Found::Ended(kept));
        }
        let name = present.container();
        let said = slot::Said::kept(&present.directory)?.unwrap_or_default();
        let stop = slot::kept_stop(&present.directory)?;
        let container = self.host.engine.inspect(&name).await?;
        let is_alive = container.as_ref().is_some_and(|found| found.running());
        let session = slot::session(&present.directory);
        if let (true, Err(error)) = (is_alive, &session) {
            tracing::error!(%error, "cannot go on with the run");
        }
        if let (true, Ok(log), Ok(session)) = (is_alive, &present.log, session) {
            let server = WorkerServer::start(worker_server::Settings {
                socket: prepare::socket(&present.directory),
                session,
                job: None,
                directory: present.directory.clone(),
                said: said.clone(),
                log: log.clone(),
                events: self.sender(present.ids),
                transfer: self.host.transfer(present.ids, present.directory.clone()),
            });
            match server {
                Ok(server) => {
                    let (sender, receiver) = watch::channel(Some(Arc::new(server)));
                    drop(sender);
                    present.server = receiver;
                    prepare::watch_container(Arc::clone(&self.host), name, self.sender(present.ids));
                    let slot::Said { outcome, workspace, outputs } = said;
                    return Ok(Found::Alive { workspace, outputs, said: outcome, stop, age });
                }
                Err(error) => tracing::error!(%error, "cannot go on with the run"),
            }
        }
        let slot::Said { outcome, workspace, outputs } = said;
        Ok(outcome.map_or(Found::Lost { stop }, |outcome| {
            let exit = match container.map(|container| container.state) {
                Some(docker::State::Ended(ended)) => exit_of(docker::Exit::Ended(ended)),
                _ => Exit::Gone,
            };
            Found::Ended(Kept { end: run::end_of(stop, outcome, &exit, self.state.limits), workspace, outputs })
        }))
    }
}

/// Tells the control plane, in order and as often as it takes, what a run is in and how it ended.
async fn report(host: Arc<Host>, ids: Ids, mut said: mpsc::UnboundedReceiver<Said>, sender: Sender) {
    while let Some(said) = said.recv().await {
        match said {
            Said::State(state) => {
                let change = StateChange { assignment: ids.assignment, state };
                if let Err(error) = host.api.state(ids.run, &change, None).await {
                    tracing::warn!(run = %ids.run, %error, "the run's state was not taken");
                }
            }
            Said::Outcome(report) => {
                tell_outcome(&host, ids, &report).await;
                sender.send(Event::Reported).await;
            }
        }
    }
}

/// Only when the control plane has it, or does not want it any more, may it be forgotten here.
async fn tell_outcome(host: &Host, ids: Ids, report: &Report) {
    /// The control plane understands it, and takes it for wrong.
    const UNPROCESSABLE: u16 = 422;
    const NOT_FOUND: u16 = 404;
    let mut refusals = 0;
    loop {
        let error = match host.api.outcome(ids.run, report, None).await {
            Ok(()) => return,
            Err(error) => error,
        };
        tracing::error!(run = %ids.run, %error, "the run's outcome was not taken");
        match error {
            api_client::Error::Gone { .. } | api_client::Error::Refused { status: NOT_FOUND, .. } => return,
            api_client::Error::Refused { status: UNPROCESSABLE, .. } => refusals += 1,
            _ => {}
        }
        if refusals >= MAXIMUM_REFUSALS {
            return;
        }
        tokio::time::sleep(REPORT_AGAIN).await;
    }
}

async fn next(messages: &mut Option<mpsc::Receiver<session::Event>>) -> Option<session::Event> {
    match messages {
        Some(messages) => messages.recv().await,
        None => std::future::pending().await,
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
