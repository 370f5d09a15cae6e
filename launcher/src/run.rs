//! What the launcher does next: a pure function of its state and of what happened.
//!
//! `Idle → Claiming → Preparing → Executing → Flushing → Reporting → Idle`. The agent's loop owns the one [`State`], hands every
//! [`Event`] to [`step`] and performs the [`Action`]s in their order. Nothing here waits, reads a clock or talks to anybody, so
//! every order of events can be tried in a test.
//!
//! What always holds:
//!
//! - A run is prepared at most once for an assignment, and only after its journal entry is on disk.
//! - It gets one outcome: the first reason for which it ends decides.
//! - The outcome is reported only once the whole log is in the object store.
//! - While there is a run, no other is claimed. A launcher that drains claims none.

use std::time::Duration;

use launcher_wire::api::{Changes, Job, LogSummary, Outcome, Report, RunState, Stage};
use launcher_wire::id::{AssignmentId, RunId};
use launcher_wire::mqtt::WorkerState;
use serde::{Deserialize, Serialize};
use spacelift_worker::protocol::Phase;

/// How long a worker that has said its outcome may take to exit.
const EXIT_GRACE: Duration = Duration::from_secs(10);
/// When a container that was killed and does not end is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(30);
/// What is added to a stop's grace before the container is killed: the worker kills the job itself when the grace is over and
/// then executes `after_run`.
const AFTER_RUN_GRACE: Duration = Duration::from_secs(60);
/// What SIGTERM is for when there is no time.
const SHORTEST_GRACE: Duration = Duration::from_secs(5);
/// What is kept of a host's last minutes for the end of a log and for the outcome.
const DELIVERY: Duration = Duration::from_secs(30);

/// Why the kernel ended something of a run, and what to do.
const OUT_OF_MEMORY: &str = "the container ran out of memory, and the kernel ended a process of it. Let the run need less, or \
                             give it more with SPACELIFT_WORKER_MEMORY or a larger host";
/// Who ends containers besides the launcher, and what to do.
const ENDED_BY_OTHERS: &str = "somebody on the worker's host or a process of the run itself ended it, or the Docker engine was \
                               restarted there. With `live-restore` in its configuration, containers live on";
const ENDED_BY_ITSELF: &str = "start the run again. If it ends so again, try it without SPACELIFT_WORKER_RUNTIME and with another \
                               image, and look at the host's memory and disk";
/// Exit codes of a process that SIGINT, SIGKILL or SIGTERM ended, or that was told to end by one of them.
const SIGNALLED: [i64; 3] = [130, 137, 143];

/// Limits of every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take.
    pub run: Duration,
    /// How long it may log nothing.
    pub logs: Duration,
}

/// What the launcher is in.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What it does.
    pub activity: Activity,
    /// Whether it takes more runs.
    pub intake: Intake,
    /// For every run.
    pub limits: Limits,
}

/// Whether more runs are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    /// Yes.
    Open,
    /// No, until the control plane says otherwise.
    Drained,
    /// No, and the launcher exits when the present run has ended.
    Leaving,
}

/// What it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Activity {
    /// Waits.
    Idle,
    /// Has asked for a run.
    Claiming {
        /// Which.
        ids: Ids,
        /// Why it is to end already.
        stop: Option<Stopping>,
    },
    /// The log is opened, the policy asked, the image pulled, the container made and started.
    Preparing {
        /// The run.
        run: Present,
        /// Why it is to end already.
        stop: Option<Stopping>,
    },
    /// The container runs.
    Executing {
        /// The run.
        run: Present,
        /// Why it is to end.
        stop: Option<Stopping>,
        /// What the worker said last.
        said: Option<WorkerOutcome>,
    },
    /// The log is on its way.
    Flushing {
        /// The run.
        run: Present,
        /// How it ended.
        end: End,
    },
    /// The outcome is on its way.
    Reporting {
        /// The run.
        run: Present,
    },
}

/// Which run, which stage of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub assignment: AssignmentId,
}

/// A run that this launcher has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// Which.
    pub ids: Ids,
    /// What this stage does.
    pub stage: Stage,
    /// Whether the workspace is in the object store.
    pub workspace: bool,
    /// Whether outputs are in the object store.
    pub outputs: bool,
}

/// A run is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// The first reason. It decides the outcome.
    pub reason: Stop,
    /// The most urgent reason. It decides the grace.
    pub pace: Stop,
}

/// Why a run is ended before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Somebody stopped it.
    User,
    /// It took too long.
    RunTimeout,
    /// It said nothing for too long.
    LogsTimeout,
    /// The launcher is to exit at once.
    Shutdown,
    /// The host is being taken away.
    Spot {
        /// How long it is still there.
        left: Duration,
    },
    /// Its log is more than can be kept.
    LogLimit,
    /// Its log cannot be written to the disk.
    Disk,
}

impl Stop {
    /// How long the job may take between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(self) -> Duration {
        match self {
            // As long as Terraform takes to end what it has begun and to give its lock back.
            Self::User | Self::RunTimeout | Self::LogsTimeout => Duration::from_secs(120),
            // Of the two minutes that a notice gives, this leaves as much again for `after_run`, and the rest for the log.
            Self::Spot { left } => (left.saturating_sub(DELIVERY) / 2).clamp(SHORTEST_GRACE, Duration::from_secs(45)),
            Self::LogLimit | Self::Disk => Duration::from_secs(30),
            Self::Shutdown => SHORTEST_GRACE,
        }
    }

    /// How long `after_run` may take once the job has ended or was killed. Then the container is killed.
    fn after_run(self) -> Duration {
        match self {
            Self::Spot { .. } => self.grace(),
            _ => AFTER_RUN_GRACE,
        }
    }

    fn outcome(self) -> Outcome {
        match self {
            Self::User => Outcome::StoppedByUser,
            Self::RunTimeout => Outcome::RunTimeout,
            Self::LogsTimeout => Outcome::LogsTimeout,
            Self::Shutdown => Outcome::Shutdown,
            Self::Spot { .. } => Outcome::SpotInterruption,
            Self::LogLimit => Outcome::LogLimit,
            Self::Disk => Outcome::Unable,
        }
    }

    /// For people, as the end of a sentence about the run.
    fn reason(self, limits: Limits) -> String {
        match self {
            Self::User => "it was stopped by a user".to_owned(),
            Self::RunTimeout => format!(
                "it took longer than {} s, the limit that SPACELIFT_LAUNCHER_RUN_TIMEOUT sets",
                limits.run.as_secs()
            ),
            Self::LogsTimeout => format!(
                "it logged nothing for {} s, the limit that SPACELIFT_LAUNCHER_LOGS_TIMEOUT sets",
                limits.logs.as_secs()
            ),
            Self::Shutdown => "the launcher was told to end at once".to_owned(),
            Self::Spot { .. } => "the worker's host is being taken away".to_owned(),
            Self::Disk => "its log cannot be kept: the disk of the worker's host is full, or fails. The launcher's own log names the \
                           file. Free space there, for instance with `docker image prune`, or let SPACELIFT_LAUNCHER_DIR name a \
                           directory on a larger one"
                .to_owned(),
            Self::LogLimit => "it logged more than the worker's host can keep until the log is delivered".to_owned(),
        }
    }

    /// Whether it is more urgent than another.
    fn overrides(self, other: Self) -> bool {
        self.grace() < other.grace()
    }
}

/// What is on disk of a run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// How.
    pub end: End,
    /// Whether its workspace is in the object store.
    pub workspace: bool,
    /// Whether its outputs are.
    pub outputs: bool,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// As the control plane distinguishes it.
    pub outcome: Outcome,
    /// For people.
    pub message: String,
    /// What the plan would change.
    pub changes: Option<Changes>,
}

/// What a worker says at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerOutcome {
    /// Its kind.
    pub result: WorkerResult,
    /// For people.
    pub message: String,
    /// What the plan would change.
    pub changes: Option<Changes>,
}

/// How a worker says that it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the protocol, which describes them")]
pub enum WorkerResult {
    Finished,
    Failed,
    Stopped,
    Unable,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its first process did.
    Code {
        /// With this.
        code: i64,
        /// Whether memory ran out in it, perhaps for another of its processes.
        out_of_memory: bool,
    },
    /// There is no such container any more.
    Gone,
}

/// A limit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// For the run as a whole.
    Run,
    /// For its silence.
    Logs,
    /// For its end.
    Grace,
    /// For the delivery of what it left, when the launcher is to exit at once.
    Delivery,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The control plane offers a run.
    Scheduled(Ids),
    /// Somebody stops a run.
    StopRequested(Ids),
    /// The control plane wants no more runs on it.
    Drain,
    /// It wants them again.
    Undrain,
    /// It wants the launcher to exit when it is idle.
    Cycle,
    /// First SIGTERM.
    Terminate,
    /// Second SIGTERM.
    Kill,
    /// The host will be taken away.
    SpotNotice {
        /// How long it is still there.
        left: Duration,
    },
    /// The run is this launcher's.
    Claimed(Box<Job>),
    /// It is not, or could not be had.
    ClaimFailed,
    /// The container is about to be started. Whatever its worker says comes later.
    Started,
    /// It could not be made or started, and is not there.
    PreparationFailed(End),
    /// Preparing was cancelled, and there is no container.
    PreparationCancelled,
    /// The worker logged something.
    Logged,
    /// The log is more than can be kept.
    LogLimitReached,
    /// The log cannot be written to the disk.
    DiskFailed,
    /// The worker began a phase.
    Phase(Phase),
    /// The workspace is in the object store.
    WorkspaceStored,
    /// Outputs are in the object store.
    OutputsStored,
    /// The worker said how it went.
    WorkerSaid(WorkerOutcome),
    /// The worker asks for its job, and no launcher has it any more.
    JobLost,
    /// The container ended.
    Exited(Exit),
    /// Time is over.
    Elapsed(Timer),
    /// The whole log is in the object store.
    Flushed(LogSummary),
    /// What is left of the log on this host cannot be read, and why.
    LogDamaged(String),
    /// The control plane has the outcome, or does not want it.
    Reported,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write to disk that the run is being ended: a launcher that is started again goes on with that.
    Remember(Stopping),
    /// Say over MQTT what the launcher does.
    Announce(WorkerState),
    /// Ask for a run: answered by [`Event::Claimed`] or [`Event::ClaimFailed`].
    Claim(Ids),
    /// Write to disk that this run is begun, before anything else is done.
    Journal(Ids, Stage),
    /// Begin: answered by [`Event::Started`], [`Event::PreparationFailed`] or [`Event::PreparationCancelled`].
    Prepare(Box<Job>),
    /// Do not go on with that.
    CancelPreparation,
    /// Tell the control plane what the run is in.
    ReportState(RunState),
    /// A line of the launcher's own for the run's log.
    Log(String),
    /// Let the worker end its job.
    StopWorker {
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
        /// For the log.
        reason: String,
    },
    /// Kill the container: answered by [`Event::Exited`].
    KillContainer,
    /// Event [`Event::Elapsed`] after this time, instead of an earlier one of the same kind.
    SetTimer(Timer, Duration),
    /// No such event any more.
    ClearTimer(Timer),
    /// Write to disk how the run ended, before anybody is told.
    Keep(Kept),
    /// Deliver the rest of the log: answered by [`Event::Flushed`].
    Flush,
    /// Deliver the outcome: answered by [`Event::Reported`].
    Report(Box<Report>),
    /// Remove the container and the run's files, and forget the journal's entry.
    CleanUp,
    /// Close the session and exit with 0.
    Exit,
}

impl State {
    /// At the start of a launcher.
    #[must_use]
    pub fn new(limits: Limits, intake: Intake) -> Self {
        Self { activity: Activity::Idle, intake, limits }
    }

    /// As the control plane sees it.
    #[must_use]
    pub fn announced(&self) -> WorkerState {
        match self.ids() {
            Some(Ids { run, assignment }) => WorkerState::Busy { run, assignment },
            None if self.intake == Intake::Open => WorkerState::Idle,
            None => WorkerState::Drained,
        }
    }

    /// The run that it has or asks for.
    #[must_use]
    pub fn ids(&self) -> Option<Ids> {
        match &self.activity {
            Activity::Idle => None,
            Activity::Claiming { ids, .. } => Some(*ids),
            Activity::Preparing { run, .. }
            | Activity::Executing { run, .. }
            | Activity::Flushing { run, .. }
            | Activity::Reporting { run } => Some(run.ids),
        }
    }
}

/// What a launcher finds of a run that one before it had begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its container lives.
    Alive {
        /// Whether its workspace is in the object store.
        workspace: bool,
        /// Whether its outputs are.
        outputs: bool,
        /// What the worker said last.
        said: Option<WorkerOutcome>,
        /// Why it was being ended.
        stop: Option<Stopping>,
        /// How long ago it was begun.
        age: Duration,
    },
    /// How it had ended, which nobody was told yet.
    Ended(Kept),
    /// Nothing.
    Lost {
        /// Why it was being ended.
        stop: Option<Stopping>,
    },
}

/// The state of a launcher that finds that one before it had begun a run.
#[must_use]
pub fn recovered(state: State, ids: Ids, stage: Stage, found: Found) -> (State, Vec<Action>) {
    let limits = state.limits;
    let nothing = Present { ids, stage, workspace: false, outputs: false };
    let (activity, actions) = match found {
        Found::Alive { workspace, outputs, said, stop, age } => {
            let mut actions = vec![Action::Log("The launcher was started again and goes on with the run.".to_owned())];
            match (&said, stop) {
                // What it said before that may have to be said again.
                (Some(_), _) => actions.push(Action::SetTimer(Timer::Grace, AFTER_RUN_GRACE)),
                (None, Some(stop)) => actions.extend(stop_worker(stop, limits)),
                (None, None) => {
                    let left = limits.run.saturating_sub(age);
                    actions.push(Action::SetTimer(Timer::Run, left));
                    actions.push(Action::SetTimer(Timer::Logs, limits.logs));
                }
            }
            (Activity::Executing { run: Present { workspace, outputs, ..nothing }, stop, said }, actions)
        }
        Found::Ended(Kept { end, workspace, outputs }) => {
            (Activity::Flushing { run: Present { workspace, outputs, ..nothing }, end }, vec![Action::Flush])
        }
        Found::Lost { stop: Some(stop) } => ended(nothing, stopped(stop, limits)),
        Found::Lost { stop: None } => {
            let message = "the launcher ended while it had the run, and the run's container does not run any more";
            ended(nothing, End { outcome: Outcome::LauncherLost, message: message.to_owned(), changes: None })
        }
    };
    (State { activity, ..state }, actions)
}

/// How a run ended whose worker said so, and whose container has ended since. What stopped it, if anything did, and how the container
/// ended, come from before the launcher was started.
#[must_use]
pub fn end_of(stop: Option<Stopping>, said: WorkerOutcome, exit: &Exit, limits: Limits) -> End {
    container_end(stop, Some(said), exit, limits)
}

/// The next state, and what to do on the way there.
#[must_use]
pub fn step(state: State, event: Event) -> (State, Vec<Action>) {
    let before = state.announced();
    let (state, mut actions) = match event {
        Event::Scheduled(ids) => scheduled(state, ids),
        Event::StopRequested(ids) if state.ids() == Some(ids) => stop(state, Stop::User),
        Event::StopRequested(_) => (state, vec![]),
        Event::Drain => intake(state, Intake::Drained),
        Event::Undrain => intake(state, Intake::Open),
        Event::Cycle | Event::Terminate => intake(state, Intake::Leaving),
        Event::Kill => leave(state, Stop::Shutdown),
        Event::SpotNotice { left } => leave(state, Stop::Spot { left }),
        Event::LogLimitReached => stop(state, Stop::LogLimit),
        Event::DiskFailed => stop(state, Stop::Disk),
        Event::Elapsed(Timer::Run) => stop(state, Stop::RunTimeout),
        Event::Elapsed(Timer::Logs) => stop(state, Stop::LogsTimeout),
        Event::Elapsed(Timer::Grace) => grace_over(state),
        Event::Elapsed(Timer::Delivery) => delivery_over(state),
        event => run_event(state, event),
    };
    let after = state.announced();
    if before != after {
        actions.push(Action::Announce(after));
    }
    (state, actions)
}

fn scheduled(state: State, ids: Ids) -> (State, Vec<Action>) {
    if state.activity != Activity::Idle || state.intake != Intake::Open {
        // The control plane sees what this launcher does and offers the run to another.
        return (state, vec![]);
    }
    (State { activity: Activity::Claiming { ids, stop: None }, ..state }, vec![Action::Claim(ids)])
}

fn intake(state: State, wanted: Intake) -> (State, Vec<Action>) {
    // Leaving is final.
    let intake = if state.intake == Intake::Leaving { Intake::Leaving } else { wanted };
    let exits = intake == Intake::Leaving && state.intake != intake && state.activity == Activity::Idle;
    (State { intake, ..state }, if exits { vec![Action::Exit] } else { vec![] })
}

fn leave(state: State, reason: Stop) -> (State, Vec<Action>) {
    let (state, mut actions) = intake(state, Intake::Leaving);
    // Only the way to control plane and object store keeps it, or an engine that does not answer. What the run is in is on
    // disk, for the launcher's next start.
    let is_waiting = match &state.activity {
        Activity::Flushing { .. } | Activity::Reporting { .. } => true,
        Activity::Preparing { stop, .. } | Activity::Executing { stop, .. } => {
            stop.is_some_and(|stop| stop.pace == Stop::Shutdown)
        }
        Activity::Idle | Activity::Claiming { .. } => false,
    };
    if reason == Stop::Shutdown && is_waiting {
        actions.push(Action::Exit);
        return (state, actions);
    }
    let (state, more) = stop(state, reason);
    actions.extend(more);
    (state, actions)
}

fn stop(mut state: State, reason: Stop) -> (State, Vec<Action>) {
    let limits = state.limits;
    let (stop, begun) = match &mut state.activity {
        Activity::Claiming { stop, .. } => (stop, None),
        Activity::Preparing { stop, .. } => (stop, Some(false)),
        // What has said how it ended is not stopped any more.
        Activity::Executing { stop, said: None, .. } => (stop, Some(true)),
        Activity::Executing { .. } | Activity::Idle | Activity::Flushing { .. } | Activity::Reporting { .. } => {
            return (state, vec![]);
        }
    };
    if stop.is_some_and(|present| !reason.overrides(present.pace)) {
        return (state, vec![]);
    }
    let first = stop.is_none();
    let stopping = Stopping { reason: stop.map_or(reason, |present| present.reason), pace: reason };
    *stop = Some(stopping);
    let mut actions = vec![];
    if begun.is_some() {
        actions.push(Action::Remember(stopping));
        actions.push(Action::Log(format!("The run is ended: {}.", reason.reason(limits))));
    }
    match begun {
        Some(true) => actions.extend(stop_worker(stopping, limits)),
        Some(false) if first => actions.push(Action::CancelPreparation),
        _ => {}
    }
    (state, actions)
}

fn stop_worker(Stopping { pace, .. }: Stopping, limits: Limits) -> [Action; 2] {
    [
        Action::StopWorker { grace: pace.grace(), reason: pace.reason(limits) },
        Action::SetTimer(Timer::Grace, pace.grace() + pace.after_run()),
    ]
}

/// How it ended is on disk, for the launcher's next start.
fn delivery_over(state: State) -> (State, Vec<Action>) {
    let is_waiting = matches!(state.activity, Activity::Flushing { .. } | Activity::Reporting { .. });
    (state, if is_waiting { vec![Action::Exit] } else { vec![] })
}

fn grace_over(state: State) -> (State, Vec<Action>) {
    match state.activity {
        // Again and again: the engine may be away.
        Activity::Executing { .. } => (state, vec![Action::KillContainer, Action::SetTimer(Timer::Grace, KILL_AGAIN)]),
        _ => (state, vec![]),
    }
}

/// Events that belong to one activity. Where another is present they come late, and mean nothing any more.
fn run_event(state: State, event: Event) -> (State, Vec<Action>) {
    let State { activity, intake, limits } = state;
    let was_idle = activity == Activity::Idle;
    let is_hurried = match &activity {
        Activity::Preparing { stop, .. } | Activity::Executing { stop, .. } => {
            stop.is_some_and(|stop| stop.pace == Stop::Shutdown)
        }
        _ => false,
    };
    let (activity, mut actions) = match (activity, event) {
        (Activity::Claiming { stop, .. }, Event::Claimed(job)) => claimed(*job, stop, limits),
        (Activity::Claiming { .. }, Event::ClaimFailed) => (Activity::Idle, vec![]),
        (Activity::Preparing { run, stop }, Event::Started) => started(run, stop, limits),
        (
            Activity::Preparing { run, stop } | Activity::Executing { run, stop, said: None },
            Event::PreparationFailed(end),
        ) => {
            let end = stop.map_or(end, |stop| stopped(stop, limits));
            ended(run, end)
        }
        (
            Activity::Preparing { run, stop } | Activity::Executing { run, stop, said: None },
            Event::PreparationCancelled,
        ) => {
            let end = stop.map_or_else(
                || End { outcome: Outcome::Unable, message: "preparing was cancelled".to_owned(), changes: None },
                |stop| stopped(stop, limits),
            );
            ended(run, end)
        }
        // The worker was quicker than the answer about its start.
        (
            Activity::Executing { run, stop, said: said @ Some(_) },
            Event::PreparationFailed(_) | Event::PreparationCancelled,
        ) => ended(run, container_end(stop, said, &Exit::Gone, limits)),
        (activity @ Activity::Executing { said: None, .. }, Event::Logged) => {
            (activity, vec![Action::SetTimer(Timer::Logs, limits.logs)])
        }
        (Activity::Executing { run, stop, said }, Event::Phase(phase)) => {
            let mut actions: Vec<Action> = run_state(run.stage, phase).map(Action::ReportState).into_iter().collect();
            // A test always destroys what it made, also when it is stopped: it gets the time of a run for that.
            let is_hurried = stop.is_some_and(|stop| matches!(stop.pace, Stop::Shutdown | Stop::Spot { .. }));
            if phase == Phase::Destroying && run.stage == Stage::Test && stop.is_some() && !is_hurried {
                actions.push(Action::SetTimer(Timer::Grace, limits.run));
            }
            (Activity::Executing { run, stop, said }, actions)
        }
        (Activity::Executing { run, stop, said }, Event::WorkspaceStored) => {
            (Activity::Executing { run: Present { workspace: true, ..run }, stop, said }, vec![])
        }
        (Activity::Executing { run, stop, said }, Event::OutputsStored) => {
            (Activity::Executing { run: Present { outputs: true, ..run }, stop, said }, vec![])
        }
        (Activity::Executing { run, stop, said: None }, Event::WorkerSaid(said)) => {
            let actions = vec![
                Action::ClearTimer(Timer::Run),
                Action::ClearTimer(Timer::Logs),
                Action::SetTimer(Timer::Grace, EXIT_GRACE),
            ];
            (Activity::Executing { run, stop, said: Some(said) }, actions)
        }
        (Activity::Executing { run, stop, said: None }, Event::JobLost) => {
            let message = "the launcher ended before it could give the worker its job".to_owned();
            let said = WorkerOutcome { result: WorkerResult::Unable, message, changes: None };
            let actions = vec![Action::KillContainer, Action::SetTimer(Timer::Grace, KILL_AGAIN)];
            (Activity::Executing { run, stop, said: Some(said) }, actions)
        }
        (Activity::Executing { run, stop, said }, Event::Exited(exit)) => {
            let end = container_end(stop, said, &exit, limits);
            ended(run, end)
        }
        (Activity::Flushing { run, end }, Event::Flushed(log)) => {
            let End { outcome, message, changes } = end;
            let Present { ids, workspace, outputs, .. } = run;
            let report = Report { assignment: ids.assignment, outcome, message, changes, log, workspace, outputs };
            (Activity::Reporting { run }, vec![Action::Report(Box::new(report))])
        }
        (Activity::Flushing { run, .. }, Event::LogDamaged(reason)) => {
            let message = format!("its log on the worker's host is damaged, and a part of it is lost: {reason}");
            let Present { ids, workspace, outputs, .. } = run;
            let log = LogSummary::empty();
            let outcome = Outcome::Unable;
            let report =
                Report { assignment: ids.assignment, outcome, message, changes: None, log, workspace, outputs };
            (Activity::Reporting { run }, vec![Action::Report(Box::new(report))])
        }
        (Activity::Reporting { .. }, Event::Reported) => (Activity::Idle, vec![Action::CleanUp]),
        (activity, _) => (activity, vec![]),
    };
    if is_hurried && matches!(activity, Activity::Flushing { .. }) {
        actions.push(Action::SetTimer(Timer::Delivery, DELIVERY));
    }
    if activity == Activity::Idle && !was_idle && intake == Intake::Leaving {
        actions.push(Action::Exit);
    }
    (State { activity, intake, limits }, actions)
}

fn claimed(job: Job, stop: Option<Stopping>, limits: Limits) -> (Activity, Vec<Action>) {
    let ids = Ids { run: job.run, assignment: job.assignment };
    let run = Present { ids, stage: job.stage, workspace: false, outputs: false };
    let mut actions = vec![Action::Journal(ids, job.stage)];
    if let Some(stop) = stop {
        let (activity, more) = ended(run, stopped(stop, limits));
        actions.extend(more);
        return (activity, actions);
    }
    let preparing = if job.stage == Stage::Apply { RunState::PreparingApply } else { RunState::Preparing };
    actions.extend([
        Action::ReportState(preparing),
        Action::SetTimer(Timer::Run, limits.run),
        Action::Prepare(Box::new(job)),
    ]);
    (Activity::Preparing { run, stop: None }, actions)
}

fn started(run: Present, stop: Option<Stopping>, limits: Limits) -> (Activity, Vec<Action>) {
    // Its silence counts from here on: what came before was the launcher's doing.
    let mut actions = vec![Action::SetTimer(Timer::Logs, limits.logs)];
    if let Some(stop) = stop {
        actions.extend(stop_worker(stop, limits));
    }
    (Activity::Executing { run, stop, said: None }, actions)
}

fn stopped(stop: Stopping, limits: Limits) -> End {
    End { outcome: stop.reason.outcome(), message: stop.reason.reason(limits), changes: None }
}

fn container_end(stop: Option<Stopping>, said: Option<WorkerOutcome>, exit: &Exit, limits: Limits) -> End {
    match (stop, said) {
        // It had ended by itself before the stop came to it.
        (_, Some(WorkerOutcome { result: WorkerResult::Finished, message, changes })) => {
            End { outcome: Outcome::Finished, message, changes }
        }
        (Some(stop), _) => stopped(stop, limits),
        (None, Some(WorkerOutcome { result, message, changes })) => {
            let out_of_memory = matches!(exit, Exit::Code { out_of_memory: true, .. });
            let (outcome, message) = match result {
                WorkerResult::Unable => (Outcome::Unable, message),
                WorkerResult::Failed if out_of_memory => (Outcome::OutOfMemory, format!("{OUT_OF_MEMORY} ({message})")),
                // Nobody here asked for it.
                WorkerResult::Stopped => (Outcome::ContainerLost, format!("{message}: {ENDED_BY_OTHERS}")),
                WorkerResult::Failed | WorkerResult::Finished => (Outcome::Failed, message),
            };
            End { outcome, message, changes }
        }
        (None, None) => match exit {
            Exit::Code { out_of_memory: true, .. } => {
                End { outcome: Outcome::OutOfMemory, message: OUT_OF_MEMORY.to_owned(), changes: None }
            }
            Exit::Code { code, .. } => End {
                outcome: Outcome::ContainerLost,
                message: format!(
                    "the container ended with code {code} before its worker had said how the run went: {}",
                    if SIGNALLED.contains(code) { ENDED_BY_OTHERS } else { ENDED_BY_ITSELF }
                ),
                changes: None,
            },
            Exit::Gone => End {
                outcome: Outcome::ContainerLost,
                message:
                    "the container was removed by someone else: look for what removes containers on the worker's host, \
                          and let it spare those with the label io.spacelift.run"
                        .to_owned(),
                changes: None,
            },
        },
    }
}

fn ended(run: Present, end: End) -> (Activity, Vec<Action>) {
    let mut actions: Vec<Action> = [Timer::Run, Timer::Logs, Timer::Grace].map(Action::ClearTimer).into();
    if end.outcome != Outcome::Finished && !end.message.is_empty() {
        actions.push(Action::Log(format!("The run has ended: {}.", end.message)));
    }
    actions.push(Action::Keep(Kept { end: end.clone(), workspace: run.workspace, outputs: run.outputs }));
    actions.push(Action::Flush);
    (Activity::Flushing { run, end }, actions)
}

/// The state of a run whose worker began a phase. Preparing was reported before there was a container.
fn run_state(stage: Stage, phase: Phase) -> Option<RunState> {
    match phase {
        Phase::Unspecified | Phase::Preparing => None,
        // An apply has no such state: it goes on with what the plan's container had made ready.
        Phase::Initializing if stage == Stage::Apply => None,
        Phase::Initializing => Some(RunState::Initializing),
        Phase::Planning => Some(RunState::Planning),
        Phase::Applying => Some(RunState::Applying),
        Phase::Performing => Some(RunState::Performing),
        Phase::Destroying => Some(RunState::Destroying),
    }
}

#[cfg(test)]
mod tests;
