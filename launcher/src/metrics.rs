//! What an operator sees of a launcher: numbers that its parts count, and what they mean together.
//!
//! There is one launcher in a process, so there is one [`Metrics`]: [`shared`]. Parts count where things happen; nobody decides
//! anything by these numbers. A [`Reading`] is what they are at one moment: [`exposition::text`] writes it for Prometheus,
//! [`Reading::health`] judges it, [`Reading::status`] says it in a line. [`server`] hands them out.
//!
//! Times are ages by the monotonic clock, not timestamps: a host whose clock is wrong is one of the things to find out.

pub mod exposition;
pub mod server;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use launcher_wire::api::{LogSummary, Outcome};
use launcher_wire::id::{PoolId, WorkerId};

use crate::run::{Activity, Intake, State};

/// How long something may be out of reach before the launcher is called unhealthy. Brokers and load balancers are exchanged
/// within seconds, and connections come back by themselves.
pub const TOLERANCE: Duration = Duration::from_secs(60);
/// How often the agent's loop says that it turns.
pub const BEAT: Duration = Duration::from_secs(10);

/// The numbers of this process.
#[must_use]
pub fn shared() -> &'static Metrics {
    static SHARED: Metrics = Metrics::new();
    &SHARED
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a launcher is and has done since it was started.
#[derive(Debug)]
pub struct Metrics {
    begun: OnceLock<Begun>,
    worker: OnceLock<Worker>,
    doing: Mutex<Doing>,
    turned: Mutex<Option<Instant>>,
    registered: AtomicBool,
    connected: AtomicBool,
    spool: Mutex<Spool>,
    outcomes: [Counter; OUTCOMES.len()],
    log_lines: [Counter; LEVELS.len()],
    /// The MQTT broker.
    pub broker: Peer,
    /// The control plane's API.
    pub api: Peer,
    /// The object store.
    pub object_store: Peer,
    /// Sessions with the broker that came about.
    pub connections: Counter,
    /// Sessions that broke, and attempts that failed.
    pub disconnections: Counter,
    /// Requests to the API that were made again.
    pub api_retries: Counter,
    /// Requests that the API refused.
    pub api_refusals: Counter,
    /// Uploads that were tried again.
    pub upload_retries: Counter,
    /// Stages of runs that were claimed.
    pub runs_taken: Counter,
    /// Claims that were not granted.
    pub claims_failed: Counter,
    /// Lines of runs' logs that the object store has.
    pub run_log_lines: Counter,
    /// Bytes of runs' logs that the object store has.
    pub run_log_bytes: Counter,
    /// Lines on standard output and standard error that nobody read in time.
    pub lines_lost: Counter,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    clock: SystemTime,
    version: &'static str,
    commit: &'static str,
    target: &'static str,
}

#[derive(Debug)]
struct Worker {
    pool: PoolId,
    id: WorkerId,
    certificate_expires: i64,
}

#[derive(Debug)]
struct Doing {
    phase: Option<Phase>,
    intake: Intake,
    since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Spool {
    bytes: u64,
    chunks: u64,
}

/// What is done for a run. The names are those of [`Activity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Activity` describes them")]
pub enum Phase {
    Claiming,
    Preparing,
    Executing,
    Flushing,
    Reporting,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [Self::Claiming, Self::Preparing, Self::Executing, Self::Flushing, Self::Reporting];

    fn of(activity: &Activity) -> Option<Self> {
        match activity {
            Activity::Idle => None,
            Activity::Claiming { .. } => Some(Self::Claiming),
            Activity::Preparing { .. } => Some(Self::Preparing),
            Activity::Executing { .. } => Some(Self::Executing),
            Activity::Flushing { .. } => Some(Self::Flushing),
            Activity::Reporting { .. } => Some(Self::Reporting),
        }
    }

    /// For labels and sentences.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Claiming => "claiming",
            Self::Preparing => "preparing",
            Self::Executing => "executing",
            Self::Flushing => "flushing",
            Self::Reporting => "reporting",
        }
    }
}

/// All outcomes, with their labels.
const OUTCOMES: [(Outcome, &str); 13] = [
    (Outcome::Finished, "finished"),
    (Outcome::Failed, "failed"),
    (Outcome::Denied, "denied"),
    (Outcome::Unable, "unable"),
    (Outcome::StoppedByUser, "stopped_by_user"),
    (Outcome::RunTimeout, "run_timeout"),
    (Outcome::LogsTimeout, "logs_timeout"),
    (Outcome::Shutdown, "shutdown"),
    (Outcome::SpotInterruption, "spot_interruption"),
    (Outcome::OutOfMemory, "out_of_memory"),
    (Outcome::ContainerLost, "container_lost"),
    (Outcome::LauncherLost, "launcher_lost"),
    (Outcome::LogLimit, "log_limit"),
];

/// Levels of the launcher's own log, with their labels.
const LEVELS: [(tracing::Level, &str); 5] = [
    (tracing::Level::ERROR, "error"),
    (tracing::Level::WARN, "warn"),
    (tracing::Level::INFO, "info"),
    (tracing::Level::DEBUG, "debug"),
    (tracing::Level::TRACE, "trace"),
];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    pub(crate) const fn new() -> Self {
        Self {
            begun: OnceLock::new(),
            worker: OnceLock::new(),
            doing: Mutex::new(Doing { phase: None, intake: Intake::Open, since: None }),
            turned: Mutex::new(None),
            registered: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            spool: Mutex::new(Spool { bytes: 0, chunks: 0 }),
            outcomes: [const { Counter::new() }; OUTCOMES.len()],
            log_lines: [const { Counter::new() }; LEVELS.len()],
            broker: Peer::new(),
            api: Peer::new(),
            object_store: Peer::new(),
            connections: Counter::new(),
            disconnections: Counter::new(),
            api_retries: Counter::new(),
            api_refusals: Counter::new(),
            upload_retries: Counter::new(),
            runs_taken: Counter::new(),
            claims_failed: Counter::new(),
            run_log_lines: Counter::new(),
            run_log_bytes: Counter::new(),
            lines_lost: Counter::new(),
        }
    }

    /// The process begins, and what it was built of. Ages of what has not happened yet count from here.
    pub fn begin(&self, version: &'static str, commit: &'static str, target: &'static str) {
        let (at, clock) = (Instant::now(), SystemTime::now());
        self.begun.get_or_init(|| Begun { at, clock, version, commit, target });
    }

    /// Which worker of which pool it is, and when the pool's certificate expires, in seconds of Unix time.
    pub fn identify(&self, pool: PoolId, worker: WorkerId, certificate_expires: i64) {
        self.worker.get_or_init(|| Worker { pool, id: worker, certificate_expires });
    }

    /// What the agent is in now. Gives whether that is something else than before.
    pub fn observe(&self, state: &State) -> bool {
        let mut doing = lock(&self.doing);
        let phase = Phase::of(&state.activity);
        let (old_phase, old_intake) = (doing.phase, doing.intake);
        if phase != old_phase || doing.since.is_none() {
            doing.since = Some(Instant::now());
        }
        (doing.phase, doing.intake) = (phase, state.intake);
        (old_phase, old_intake) != (phase, state.intake)
    }

    /// The agent's loop turns.
    pub fn turn(&self) {
        *lock(&self.turned) = Some(Instant::now());
    }

    /// The control plane accepts this worker.
    pub fn registered(&self) {
        self.registered.store(true, Ordering::Relaxed);
    }

    /// Whether there is a session with the broker, in which messages arrive.
    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// What of the present run's log is on the disk and not in the object store yet.
    pub fn spooled(&self, bytes: u64, chunks: u64) {
        *lock(&self.spool) = Spool { bytes, chunks };
    }

    /// A stage of a run has ended, and with this log.
    pub fn ended(&self, outcome: Outcome, log: &LogSummary) {
        if let Some(place) = OUTCOMES.iter().position(|(other, _)| *other == outcome) {
            self.outcomes[place].add_one();
        }
        self.run_log_lines.add(log.lines);
        self.run_log_bytes.add(log.bytes);
    }

    /// The launcher logged a line of its own.
    pub fn logged(&self, level: tracing::Level) {
        if let Some(place) = LEVELS.iter().position(|(other, _)| *other == level) {
            self.log_lines[place].add_one();
        }
    }

    /// What all of it is now.
    #[must_use]
    pub fn read(&self) -> Reading<'_> {
        let now = Instant::now();
        let begun = self.begun.get();
        let start = begun.map_or(now, |begun| begun.at);
        let age = |at: Option<Instant>| now.saturating_duration_since(at.unwrap_or(start));
        let doing = lock(&self.doing);
        // Without a run there is no log that waits.
        let spool = if doing.phase.is_some() { *lock(&self.spool) } else { Spool::default() };
        Reading {
            metrics: self,
            phase: doing.phase,
            phase_age: age(doing.since),
            intake: doing.intake,
            loop_age: age(*lock(&self.turned)),
            is_registered: self.registered.load(Ordering::Relaxed),
            is_connected: self.connected.load(Ordering::Relaxed),
            broker: self.broker.read(start, now),
            api: self.api.read(start, now),
            object_store: self.object_store.read(start, now),
            spool,
        }
    }
}

/// Somebody whom the launcher needs.
#[derive(Debug, Default)]
pub struct Peer(Mutex<Contact>);

#[derive(Debug, Default)]
struct Contact {
    last: Option<Instant>,
    /// How many wait for it, after an attempt that failed.
    waiting: usize,
    /// Since when there is at least one of them.
    since: Option<Instant>,
}

/// Waits for a [`Peer`] that could not be reached, until this is dropped. Once nobody tries any more, nobody knows whether it
/// could be reached, and nothing is said of it.
#[derive(Debug)]
#[must_use = "the wait ends when this is dropped"]
pub struct Waiting<'a>(&'a Peer);

impl Peer {
    const fn new() -> Self {
        Self(Mutex::new(Contact { last: None, waiting: 0, since: None }))
    }

    /// It answered.
    pub fn reached(&self) {
        lock(&self.0).last = Some(Instant::now());
    }

    /// It did not answer, and is tried again.
    pub fn wait(&self) -> Waiting<'_> {
        let mut contact = lock(&self.0);
        contact.waiting += 1;
        contact.since.get_or_insert_with(Instant::now);
        drop(contact);
        Waiting(self)
    }

    fn read(&self, start: Instant, now: Instant) -> PeerReading {
        let contact = lock(&self.0);
        PeerReading {
            age: now.saturating_duration_since(contact.last.unwrap_or(start)),
            unreachable: contact.since.map(|since| now.saturating_duration_since(since)),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut contact = lock(&self.0.0);
        contact.waiting = contact.waiting.saturating_sub(1);
        if contact.waiting == 0 {
            contact.since = None;
        }
    }
}

/// A [`Peer`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReading {
    /// How long ago it answered last; if never, how long ago the launcher was started.
    pub age: Duration,
    /// For how long it has been tried in vain. None: nobody waits for it.
    pub unreachable: Option<Duration>,
}

/// A launcher at one moment.
#[derive(Debug)]
pub struct Reading<'a> {
    metrics: &'a Metrics,
    phase: Option<Phase>,
    phase_age: Duration,
    intake: Intake,
    loop_age: Duration,
    is_registered: bool,
    is_connected: bool,
    broker: PeerReading,
    api: PeerReading,
    object_store: PeerReading,
    spool: Spool,
}

/// What a launcher does, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It has not registered yet, or had no session yet.
    Starting,
    /// It waits for runs.
    Idle,
    /// It has one.
    Busy,
    /// It has one, and takes no other.
    Draining,
    /// It has none, and takes none.
    Drained,
}

impl Word {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Starting, Self::Idle, Self::Busy, Self::Draining, Self::Drained];

    /// For labels and sentences.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// Whether a launcher can do its work, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Well(String),
    /// It cannot.
    Unwell(String),
}

impl Reading<'_> {
    /// In a word.
    #[must_use]
    pub fn word(&self) -> Word {
        match (self.phase.is_some(), self.intake) {
            (true, Intake::Open) => Word::Busy,
            (true, Intake::Drained | Intake::Leaving) => Word::Draining,
            (false, Intake::Drained | Intake::Leaving) => Word::Drained,
            (false, Intake::Open) if !self.is_ready() => Word::Starting,
            (false, Intake::Open) => Word::Idle,
        }
    }

    /// Whether the control plane has accepted it and there has been a session. That stays so.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_registered && self.metrics.connections.get() > 0
    }

    fn peers(&self) -> [(&'static str, PeerReading); 3] {
        [("broker", self.broker), ("API", self.api), ("object store", self.object_store)]
    }

    /// Whether it can do its work, with a line that says why not. For those who watch and route; whoever ends launchers for it
    /// ends runs that would have outlasted the disturbance.
    #[must_use]
    pub fn health(&self) -> Health {
        if self.loop_age > TOLERANCE {
            return Health::Unwell(format!("the launcher's loop has not turned for {}", rounded(self.loop_age)));
        }
        if let Some((name, age)) = self.peers().into_iter().find_map(|(name, peer)| {
            let unreachable = peer.unreachable?;
            (unreachable > TOLERANCE).then_some((name, unreachable))
        }) {
            return Health::Unwell(format!("the {name} has not been reached for {}", rounded(age)));
        }
        if !self.is_ready() {
            let missing = if self.is_registered { "connected to the broker" } else { "registered with the API" };
            return Health::Unwell(format!("it is starting, and not {missing} yet"));
        }
        Health::Well(self.to_string())
    }

    /// What it does and what it misses, in one line for people.
    #[must_use]
    pub fn status(&self) -> String {
        let missing: Vec<String> = self
            .peers()
            .into_iter()
            .filter_map(|(name, peer)| Some(format!("{name} not reached for {}", rounded(peer.unreachable?))))
            .collect();
        if missing.is_empty() { self.to_string() } else { format!("{self}; {}", missing.join(", ")) }
    }
}

impl fmt::Display for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word().name())?;
        self.phase.map_or(Ok(()), |phase| write!(f, ": {} a run", phase.name()))
    }
}

/// As exact as a reader needs it, so that a line stays the same for a while.
fn rounded(age: Duration) -> String {
    match age.as_secs() / 60 {
        0 => "less than a minute".to_owned(),
        minutes => format!("{minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use launcher_wire::api::Stage;
    use launcher_wire::id::{AssignmentId, RunId};

    use super::*;
    use crate::run::{Ids, Limits, Present};

    fn state(activity: Activity, intake: Intake) -> State {
        State { activity, intake, limits: Limits { run: Duration::MAX, logs: Duration::MAX } }
    }

    fn reporting() -> Activity {
        let ids = Ids { run: RunId::new(), assignment: AssignmentId::new() };
        Activity::Reporting { run: Present { ids, stage: Stage::Task, workspace: false, outputs: false } }
    }

    /// As long ago as nobody waits.
    fn past() -> Option<Instant> {
        Instant::now().checked_sub(TOLERANCE + Duration::from_secs(30))
    }

    fn ready() -> Metrics {
        let metrics = Metrics::new();
        metrics.turn();
        metrics.registered();
        metrics.connections.add_one();
        metrics
    }

    #[test]
    fn words_and_changes() {
        let metrics = Metrics::new();
        assert_eq!(metrics.read().word(), Word::Starting);
        metrics.registered();
        assert_eq!(metrics.read().word(), Word::Starting, "without a session it takes nothing");
        metrics.connections.add_one();
        assert!(!metrics.observe(&state(Activity::Idle, Intake::Open)));
        assert_eq!(metrics.read().status(), "idle");
        assert!(metrics.observe(&state(reporting(), Intake::Open)));
        metrics.spooled(10, 1);
        assert_eq!((metrics.read().status().as_str(), metrics.read().spool.bytes), ("busy: reporting a run", 10));
        assert!(!metrics.observe(&state(reporting(), Intake::Open)));
        assert!(metrics.observe(&state(reporting(), Intake::Leaving)));
        assert_eq!(metrics.read().word(), Word::Draining);
        assert!(metrics.observe(&state(Activity::Idle, Intake::Drained)));
        assert_eq!((metrics.read().word(), metrics.read().spool.bytes), (Word::Drained, 0));
    }

    #[test]
    fn every_outcome_and_level_is_counted() {
        let metrics = Metrics::new();
        for (outcome, _) in OUTCOMES {
            metrics.ended(outcome, &LogSummary { lines: 2, bytes: 3, ..LogSummary::empty() });
        }
        assert!(metrics.outcomes.iter().all(|counter| counter.get() == 1));
        assert_eq!((metrics.run_log_lines.get(), metrics.run_log_bytes.get()), (26, 39));
        for (level, _) in LEVELS {
            metrics.logged(level);
        }
        assert!(metrics.log_lines.iter().all(|counter| counter.get() == 1));
    }

    #[test]
    fn a_disturbance_is_told_at_once_and_makes_unwell_when_it_lasts() {
        let metrics = ready();
        assert_eq!(metrics.read().health(), Health::Well("idle".to_owned()));
        let (first, second) = (metrics.api.wait(), metrics.api.wait());
        assert_eq!(metrics.read().health(), Health::Well("idle".to_owned()));
        assert_eq!(metrics.read().status(), "idle; API not reached for less than a minute");
        lock(&metrics.api.0).since = past();
        let unwell = Health::Unwell("the API has not been reached for 1 min".to_owned());
        assert_eq!(metrics.read().health(), unwell);
        drop(first);
        assert_eq!(metrics.read().health(), unwell, "somebody still waits");
        drop(second);
        assert_eq!(metrics.read().health(), Health::Well("idle".to_owned()));
    }

    #[test]
    fn a_launcher_that_hangs_or_has_not_begun_is_unwell() {
        let metrics = Metrics::new();
        assert_eq!(
            metrics.read().health(),
            Health::Unwell("it is starting, and not registered with the API yet".to_owned())
        );
        metrics.registered();
        assert_eq!(
            metrics.read().health(),
            Health::Unwell("it is starting, and not connected to the broker yet".to_owned())
        );
        let metrics = ready();
        *lock(&metrics.turned) = past();
        assert_eq!(metrics.read().health(), Health::Unwell("the launcher's loop has not turned for 1 min".to_owned()));
    }
}
