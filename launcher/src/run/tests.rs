use std::collections::{HashMap, HashSet, VecDeque};

use launcher_wire::api::{RunType, Source, Tool};

use super::*;

const LIMITS: Limits = Limits { run: Duration::from_secs(4200), logs: Duration::from_secs(420) };

fn ids() -> Ids {
    Ids { run: RunId::new(), assignment: AssignmentId::new() }
}

fn job(ids: Ids, stage: Stage) -> Box<Job> {
    Box::new(Job {
        run: ids.run,
        assignment: ids.assignment,
        run_type: RunType::Tracked,
        stage,
        stack_id: "stack".to_owned(),
        commit: String::new(),
        image: None,
        tool: Tool::Custom,
        command: None,
        source: Source::None {},
        source_sha256: None,
        project_root: String::new(),
        environment: vec![],
        files: vec![],
        hooks: launcher_wire::api::Hooks::default(),
        workflow: None,
        restore_workspace: false,
        keep_workspace: false,
        policy_input: serde_json::Map::new(),
    })
}

fn log() -> LogSummary {
    LogSummary { chunks: 1, lines: 1, bytes: 1, sha256: String::new() }
}

fn said(result: WorkerResult) -> Event {
    Event::WorkerSaid(WorkerOutcome { result, message: "as the worker says".to_owned(), changes: None })
}

fn exited(out_of_memory: bool) -> Event {
    Event::Exited(Exit::Code { code: 0, out_of_memory })
}

fn all(state: State, events: impl IntoIterator<Item = Event>) -> (State, Vec<Action>) {
    events.into_iter().fold((state, vec![]), |(state, mut actions), event| {
        let (state, more) = step(state, event);
        actions.extend(more);
        (state, actions)
    })
}

/// The outcome of a run after these events, and its message.
fn report(events: impl IntoIterator<Item = Event>) -> (Outcome, String) {
    let ids = ids();
    let begin = [Event::Scheduled(ids), Event::Claimed(job(ids, Stage::Plan))];
    let (state, actions) = all(State::new(LIMITS, Intake::Open), begin.into_iter().chain(events));
    assert!(matches!(state.activity, Activity::Flushing { .. }), "{state:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Report(_))), "not before the log is delivered");
    let (_, actions) = step(state, Event::Flushed(log()));
    let [Action::Report(report)] = &actions[..] else { panic!("{actions:?}") };
    (report.outcome, report.message.clone())
}

/// The outcome of a run after these events.
fn outcome(events: impl IntoIterator<Item = Event>) -> Outcome {
    report(events).0
}

#[test]
fn a_run_from_its_offer_to_its_report() {
    let ids = ids();
    let (state, actions) = step(State::new(LIMITS, Intake::Open), Event::Scheduled(ids));
    let busy = WorkerState::Busy { run: ids.run, assignment: ids.assignment };
    assert_eq!(actions, [Action::Claim(ids), Action::Announce(busy)]);
    let (state, actions) = step(state, Event::Claimed(job(ids, Stage::Plan)));
    assert_eq!(
        actions,
        [
            Action::Journal(ids, Stage::Plan),
            Action::ReportState(RunState::Preparing),
            Action::SetTimer(Timer::Run, LIMITS.run),
            Action::Prepare(job(ids, Stage::Plan)),
        ]
    );
    let events = [Event::Started, Event::Phase(Phase::Preparing), Event::Phase(Phase::Initializing)];
    let (state, actions) = all(state, events);
    assert_eq!(actions, [Action::SetTimer(Timer::Logs, LIMITS.logs), Action::ReportState(RunState::Initializing)]);
    let events = [Event::WorkspaceStored, said(WorkerResult::Finished), exited(false), Event::Flushed(log())];
    let (state, actions) = all(state, events);
    let report = Report {
        assignment: ids.assignment,
        outcome: Outcome::Finished,
        message: "as the worker says".to_owned(),
        changes: None,
        log: log(),
        workspace: true,
        outputs: false,
    };
    assert_eq!(actions.last(), Some(&Action::Report(Box::new(report))));
    let (state, actions) = step(state, Event::Reported);
    assert_eq!(actions, [Action::CleanUp, Action::Announce(WorkerState::Idle)]);
    assert_eq!(state, State::new(LIMITS, Intake::Open));
}

/// Whoever reads it should know what to do.
#[test]
fn what_ends_a_container_is_named_with_what_to_do() {
    use Event::{Exited, Started};
    for (events, outcome, says) in [
        (vec![Started, exited(true)], Outcome::OutOfMemory, "SPACELIFT_WORKER_MEMORY"),
        (vec![Started, said(WorkerResult::Failed), exited(true)], Outcome::OutOfMemory, "(as the worker says)"),
        (vec![Started, said(WorkerResult::Finished), exited(true)], Outcome::Finished, "as the worker says"),
        (vec![Started, said(WorkerResult::Stopped), exited(false)], Outcome::ContainerLost, "live-restore"),
        (vec![Started, Exited(Exit::Code { code: 137, out_of_memory: false })], Outcome::ContainerLost, "live-restore"),
        (
            vec![Started, Exited(Exit::Code { code: 71, out_of_memory: false })],
            Outcome::ContainerLost,
            "_WORKER_RUNTIME",
        ),
        (vec![Started, Exited(Exit::Gone)], Outcome::ContainerLost, "io.spacelift.run"),
        (vec![Started, Event::DiskFailed, exited(false)], Outcome::Unable, "SPACELIFT_LAUNCHER_DIR"),
    ] {
        let (found, message) = report(events.clone());
        assert!(found == outcome && message.contains(says), "{events:?}: {found:?}, {message}");
    }
}

/// With the two minutes that a cloud gives.
const NOTICE: Event = Event::SpotNotice { left: Duration::from_secs(120) };

#[test]
fn what_a_notice_leaves_is_divided() {
    let ids = ids();
    let begin = [Event::Scheduled(ids), Event::Claimed(job(ids, Stage::Plan)), Event::Started];
    let (state, _) = all(State::new(LIMITS, Intake::Open), begin);
    for (left, grace) in [(300, 45), (120, 45), (60, 15), (30, 5), (0, 5)] {
        let (_, actions) = step(state.clone(), Event::SpotNotice { left: Duration::from_secs(left) });
        let (grace, kill) = (Duration::from_secs(grace), Duration::from_secs(2 * grace));
        let gives = |action: &Action| matches!(action, Action::StopWorker { grace: given, .. } if *given == grace);
        assert!(actions.iter().any(gives), "{left}: {actions:?}");
        assert!(actions.contains(&Action::SetTimer(Timer::Grace, kill)), "{left}: {actions:?}");
    }
}

#[test]
fn each_way_to_end_has_its_outcome() {
    use Event::{Elapsed, Kill, LogLimitReached, Started};
    assert_eq!(outcome([Started, said(WorkerResult::Finished), exited(false)]), Outcome::Finished);
    assert_eq!(outcome([Started, said(WorkerResult::Failed), exited(false)]), Outcome::Failed);
    assert_eq!(outcome([Started, said(WorkerResult::Failed), exited(true)]), Outcome::OutOfMemory);
    assert_eq!(outcome([Started, said(WorkerResult::Unable), exited(false)]), Outcome::Unable);
    assert_eq!(outcome([Started, exited(true)]), Outcome::OutOfMemory);
    assert_eq!(outcome([Started, exited(false)]), Outcome::ContainerLost);
    assert_eq!(outcome([Started, Event::Exited(Exit::Gone)]), Outcome::ContainerLost);
    assert_eq!(outcome([Started, Elapsed(Timer::Run), exited(false)]), Outcome::RunTimeout);
    assert_eq!(
        outcome([Started, Elapsed(Timer::Logs), said(WorkerResult::Stopped), exited(false)]),
        Outcome::LogsTimeout
    );
    assert_eq!(outcome([Started, Kill, exited(false)]), Outcome::Shutdown);
    assert_eq!(outcome([Started, NOTICE, exited(false)]), Outcome::SpotInterruption);
    assert_eq!(outcome([Started, LogLimitReached, exited(false)]), Outcome::LogLimit);
    assert_eq!(outcome([NOTICE, Event::PreparationCancelled]), Outcome::SpotInterruption);
    let denied = End { outcome: Outcome::Denied, message: "no".to_owned(), changes: None };
    assert_eq!(outcome([Event::PreparationFailed(denied)]), Outcome::Denied);
}

#[test]
fn the_first_reason_decides_and_a_more_urgent_one_only_hurries() {
    use Event::{Elapsed, Kill, Started};
    assert_eq!(outcome([Started, Elapsed(Timer::Run), Kill, exited(false)]), Outcome::RunTimeout);
    assert_eq!(outcome([Started, Kill, NOTICE, exited(false)]), Outcome::Shutdown);
    // It ended well before the stop came to it.
    assert_eq!(outcome([Started, Elapsed(Timer::Run), said(WorkerResult::Finished), exited(false)]), Outcome::Finished);

    let ids = ids();
    let events = [Event::Scheduled(ids), Event::Claimed(job(ids, Stage::Plan)), Started, Event::StopRequested(ids)];
    let (state, _) = all(State::new(LIMITS, Intake::Open), events);
    let (state, actions) = step(state, Kill);
    let hurried = actions
        .iter()
        .any(|action| matches!(action, Action::StopWorker { grace, .. } if *grace == Stop::Shutdown.grace()));
    assert!(hurried, "{actions:?}");
    let (_, actions) = step(state, Elapsed(Timer::Grace));
    assert_eq!(actions, [Action::KillContainer, Action::SetTimer(Timer::Grace, KILL_AGAIN)]);
}

#[test]
fn a_launcher_that_leaves_exits_when_it_is_idle() {
    let idle = State::new(LIMITS, Intake::Open);
    let (_, actions) = step(idle.clone(), Event::Terminate);
    assert_eq!(actions, [Action::Exit, Action::Announce(WorkerState::Drained)]);
    let ids = ids();
    let (state, actions) = all(idle, [Event::Scheduled(ids), Event::Terminate, Event::Undrain]);
    assert!(!actions.contains(&Action::Exit), "{actions:?}");
    let (_, actions) = step(state, Event::ClaimFailed);
    assert!(actions.contains(&Action::Exit), "{actions:?}");
}

#[test]
fn a_drained_launcher_takes_runs_again_when_it_is_told_to() {
    let ids = ids();
    let (state, actions) = all(State::new(LIMITS, Intake::Open), [Event::Drain, Event::Scheduled(ids)]);
    assert_eq!(actions, [Action::Announce(WorkerState::Drained)]);
    let (_, actions) = all(state, [Event::Undrain, Event::Scheduled(ids)]);
    assert!(actions.contains(&Action::Claim(ids)), "{actions:?}");
}

#[test]
fn a_worker_without_a_job_is_ended() {
    let events = [Event::Started, Event::JobLost, exited(false)];
    assert_eq!(outcome(events), Outcome::Unable);
    let ids = ids();
    let begin = [Event::Scheduled(ids), Event::Claimed(job(ids, Stage::Plan)), Event::Started];
    let (state, _) = all(State::new(LIMITS, Intake::Open), begin);
    let (_, actions) = step(state, Event::JobLost);
    assert_eq!(actions, [Action::KillContainer, Action::SetTimer(Timer::Grace, KILL_AGAIN)]);
}

#[test]
fn a_launcher_that_is_started_again_ends_what_it_finds() {
    let (state, ids) = (State::new(LIMITS, Intake::Open), ids());
    let report = |(state, actions): (State, Vec<Action>)| {
        assert_eq!(actions.last(), Some(&Action::Flush));
        let (_, actions) = step(state, Event::Flushed(log()));
        let [Action::Report(report)] = &actions[..] else { panic!("{actions:?}") };
        (report.outcome, report.workspace, report.outputs)
    };
    let found = |found| recovered(state.clone(), ids, Stage::Apply, found);
    assert_eq!(report(found(Found::Lost { stop: None })), (Outcome::LauncherLost, false, false));
    let outcome = WorkerOutcome { result: WorkerResult::Finished, message: String::new(), changes: None };
    let code = |out_of_memory| Exit::Code { code: 1, out_of_memory };
    let kept = Kept { end: end_of(None, outcome, &code(false), LIMITS), workspace: true, outputs: false };
    assert_eq!(report(found(Found::Ended(kept))), (Outcome::Finished, true, false));

    // What ended it is known from before, and is not what it looks like now.
    let stop = Some(Stopping { reason: Stop::RunTimeout, pace: Stop::RunTimeout });
    let ended = |result| WorkerOutcome { result, message: String::new(), changes: None };
    assert_eq!(end_of(stop, ended(WorkerResult::Stopped), &Exit::Gone, LIMITS).outcome, Outcome::RunTimeout);
    assert_eq!(end_of(None, ended(WorkerResult::Failed), &code(true), LIMITS).outcome, Outcome::OutOfMemory);
    assert_eq!(report(found(Found::Lost { stop })), (Outcome::RunTimeout, false, false));
    let alive = |said, stop| {
        found(Found::Alive { workspace: false, outputs: true, said, stop, age: Duration::from_secs(1000) })
    };
    // It said its last word to the launcher that is gone.
    let said_all = WorkerOutcome { result: WorkerResult::Finished, message: String::new(), changes: None };
    let (state, actions) = alive(Some(said_all), None);
    assert!(actions.contains(&Action::SetTimer(Timer::Grace, AFTER_RUN_GRACE)), "{actions:?}");
    assert_eq!(report(step(state, exited(false))), (Outcome::Finished, false, true));
    // It was being stopped, and is still.
    let (state, actions) = alive(None, stop);
    assert!(actions.iter().any(|action| matches!(action, Action::StopWorker { .. })), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::SetTimer(Timer::Grace, _))), "{actions:?}");
    assert_eq!(report(step(state, exited(false))).0, Outcome::RunTimeout);
    let (state, actions) = alive(None, None);
    let left = LIMITS.run - Duration::from_secs(1000);
    assert!(actions.contains(&Action::SetTimer(Timer::Run, left)), "{actions:?}");
    assert_eq!(state.announced(), WorkerState::Busy { run: ids.run, assignment: ids.assignment });
    let ended = all(state, [said(WorkerResult::Finished), exited(false)]);
    assert_eq!(report(ended), (Outcome::Finished, false, true));
}

#[test]
fn a_second_signal_does_not_wait_for_the_network() {
    let ids = ids();
    let begin = [Event::Scheduled(ids), Event::Claimed(job(ids, Stage::Plan)), Event::Started, exited(false)];
    let (state, actions) = all(State::new(LIMITS, Intake::Open), begin);
    let kept = actions.iter().position(|action| matches!(action, Action::Keep(_))).expect("its end is kept");
    assert!(actions[kept..].contains(&Action::Flush), "before it is told");
    let (state, actions) = step(state, Event::Terminate);
    assert_eq!(actions, []);
    let (_, actions) = step(state, Event::Kill);
    assert_eq!(actions, [Action::Exit]);

    // Told a second time while it runs: what is left then has a moment to be delivered.
    let begin = [Event::Scheduled(ids), Event::Claimed(job(ids, Stage::Plan)), Event::Started, Event::Kill];
    let (state, _) = all(State::new(LIMITS, Intake::Open), begin);
    let (flushing, actions) = step(state.clone(), exited(false));
    assert!(actions.contains(&Action::SetTimer(Timer::Delivery, DELIVERY)), "{actions:?}");
    let (_, actions) = step(flushing, Event::Elapsed(Timer::Delivery));
    assert_eq!(actions, [Action::Exit]);
    // And a third time, with an engine that does not answer: it is all on disk.
    let (_, actions) = step(state, Event::Kill);
    assert_eq!(actions, [Action::Exit]);
}

/// Numbers that are the same in every run of the test.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What is around the machine: it answers what was asked, at some time, and checks what must hold.
#[derive(Default)]
struct World {
    /// Answers that are on their way. Each kind comes in order; kinds overtake one another.
    answers: Vec<VecDeque<Event>>,
    journaled: HashSet<AssignmentId>,
    prepared: HashSet<AssignmentId>,
    kept: HashSet<AssignmentId>,
    flushed: HashSet<AssignmentId>,
    outcomes: HashMap<AssignmentId, Outcome>,
    claiming: Option<Ids>,
    /// Whose container there is.
    container: Option<AssignmentId>,
    present: Option<AssignmentId>,
    exits: usize,
}

impl World {
    fn perform(&mut self, action: &Action, random: &mut Random) {
        let is_said = matches!(action, Action::Announce(_));
        assert!(self.exits == 0 || is_said, "nothing follows the exit: {action:?}");
        match action {
            Action::Claim(ids) => {
                assert_eq!(self.claiming.replace(*ids), None, "one claim at a time");
                assert_eq!(self.present, None, "no claim beside a run");
                let claimed =
                    Event::Claimed(job(*ids, [Stage::Plan, Stage::Apply, Stage::Task][random.below(3) as usize]));
                self.answer([if random.below(4) == 0 { Event::ClaimFailed } else { claimed }]);
            }
            Action::Journal(ids, _) => {
                assert!(self.journaled.insert(ids.assignment), "begun once");
                self.present = Some(ids.assignment);
            }
            Action::Prepare(job) => {
                assert!(self.journaled.contains(&job.assignment), "the journal is first");
                assert!(self.prepared.insert(job.assignment), "prepared once");
                if random.below(4) == 0 {
                    let end = End { outcome: Outcome::Unable, message: String::new(), changes: None };
                    let begun = if random.below(2) == 0 { vec![Event::Started] } else { vec![] };
                    let failed = [Event::PreparationFailed(end), Event::PreparationCancelled];
                    self.answer(begun.into_iter().chain([failed[random.below(2) as usize].clone()]));
                } else {
                    self.container = self.present;
                    let mut life =
                        vec![Event::Started, Event::Logged, Event::Phase(Phase::Planning), Event::WorkspaceStored];
                    if random.below(3) > 0 {
                        life.push(said(
                            [WorkerResult::Finished, WorkerResult::Failed, WorkerResult::Stopped]
                                [random.below(3) as usize],
                        ));
                    }
                    life.push(exited(random.below(4) == 0));
                    self.answer(life);
                }
            }
            Action::Flush => {
                assert!(self.kept.contains(&self.present.expect("a run is flushed")), "its end is on disk first");
                self.flushed.insert(self.present.expect("a run is flushed"));
                self.answer([Event::Flushed(log())]);
            }
            Action::Report(report) => {
                assert_eq!(Some(report.assignment), self.present);
                assert!(self.flushed.contains(&report.assignment), "the log is first");
                assert_eq!(self.outcomes.insert(report.assignment, report.outcome), None, "one outcome");
                self.answer([Event::Reported]);
            }
            Action::CleanUp => {
                let present = self.present.take().expect("a run is cleaned up");
                assert!(self.outcomes.contains_key(&present), "the outcome is first");
                self.container = None;
            }
            Action::Keep(_) => {
                self.kept.insert(self.present.expect("a run is kept"));
            }
            Action::Exit => {
                // Without a run, or with one that the next launcher finds in the journal.
                assert!(self.present.is_none_or(|present| self.journaled.contains(&present)), "no exit beside a claim");
                assert_eq!(self.claiming, None, "no exit beside a claim");
                self.exits += 1;
            }
            Action::CancelPreparation
            | Action::KillContainer
            | Action::Announce(_)
            | Action::Remember(_)
            | Action::ReportState(_)
            | Action::Log(_)
            | Action::StopWorker { .. }
            | Action::SetTimer(..)
            | Action::ClearTimer(_) => {}
        }
    }

    fn answer(&mut self, events: impl IntoIterator<Item = Event>) {
        self.answers.push(events.into_iter().collect());
    }

    /// The next answer of some kind.
    fn next(&mut self, random: &mut Random) -> Option<Event> {
        self.answers.retain(|answers| !answers.is_empty());
        if self.answers.is_empty() {
            return None;
        }
        let kind = random.below(self.answers.len() as u64) as usize;
        let event = self.answers[kind].pop_front();
        if matches!(event, Some(Event::Claimed(_) | Event::ClaimFailed)) {
            self.claiming = None;
        }
        event
    }
}

/// What comes without having been asked for, some of it late or about other runs.
fn unasked(random: &mut Random, known: &[Ids]) -> Event {
    let some =
        if known.is_empty() || random.below(5) == 0 { ids() } else { known[random.below(known.len() as u64) as usize] };
    match random.below(40) {
        0..=11 => Event::Scheduled(ids()),
        12..=14 => Event::StopRequested(some),
        15 => Event::Drain,
        16..=18 => Event::Undrain,
        19 => Event::Elapsed(Timer::Run),
        20 => Event::Elapsed(Timer::Logs),
        21..=22 => Event::Elapsed(Timer::Grace),
        23..=30 => Event::Logged,
        31 => [Event::LogLimitReached, Event::DiskFailed, Event::Elapsed(Timer::Delivery)][random.below(3) as usize]
            .clone(),
        32..=36 => Event::Phase(Phase::Applying),
        37 => said(WorkerResult::Finished),
        38 => Event::OutputsStored,
        _ => [Event::Terminate, Event::Cycle, NOTICE, Event::Kill][random.below(4) as usize].clone(),
    }
}

#[test]
fn whatever_the_order_of_events_a_run_has_one_start_and_one_outcome() {
    let (mut runs, mut outcomes) = (0, HashSet::new());
    for seed in 1..=2000 {
        let mut random = Random(seed * 0x9E37_79B9);
        let mut world = World::default();
        let mut state = State::new(LIMITS, Intake::Open);
        let mut known = vec![];
        for turn in 0..300 {
            // Towards the end only answers come, until there are none.
            let settling = turn > 200;
            let answer = if settling || random.below(2) == 0 { world.next(&mut random) } else { None };
            let event = answer.unwrap_or_else(|| if settling { Event::Logged } else { unasked(&mut random, &known) });
            if let Event::Scheduled(ids) = &event {
                known.push(*ids);
            }
            let (next, actions) = step(state, event);
            state = next;
            for action in &actions {
                world.perform(action, &mut random);
            }
            if world.exits > 0 {
                break;
            }
        }
        // A launcher that is told a second time to end leaves a run whose end is on disk.
        let left = usize::from(world.exits > 0 && world.present.is_some_and(|one| !world.outcomes.contains_key(&one)));
        assert!(world.exits > 0 || world.present.is_none(), "seed {seed}: {state:?}");
        assert_eq!(world.journaled.len(), world.outcomes.len() + left, "seed {seed}: every run has its outcome");
        runs += world.outcomes.len();
        outcomes.extend(world.outcomes.values().map(|outcome| format!("{outcome:?}")));
    }
    assert!(runs > 5000, "{runs} runs are too few to say anything");
    assert!(outcomes.len() > 7, "{outcomes:?}");
}
