//! What becomes of runs.

use std::time::Duration;

use launcher_wire::api::{Changes, Object, ObjectRequest, Operation, Outcome, Report, RunState, RunType, Stage};
use launcher_wire::id::{AssignmentId, RunId};
use launcher_wire::mqtt::{FromWorker, ToWorker, WorkerState};
use mothership::admin::{CreateRun, WorkerStatus};

use crate::bench::{Bench, eventually, wish};
use crate::worker::{Worker, plain};

fn states(bench: &Bench, run: RunId) -> Vec<RunState> {
    bench.client().run(run).unwrap().history.iter().map(|change| change.state).collect()
}

#[test]
fn a_tracked_run_plans_waits_and_applies_on_another_worker() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("network", pool.id);
    let first = Worker::start(&pool);
    let run = bench.run("network");
    assert_eq!(run.state, RunState::Queued);

    let (id, assignment, job) = first.take();
    assert_eq!((id, job.run, job.assignment, job.stage), (run.id, run.id, assignment, Stage::Plan));
    assert!(job.keep_workspace && !job.restore_workspace);
    assert_eq!(first.claim(id, assignment).unwrap(), job, "an answer that was lost is given once more");
    assert_eq!(job.policy_input["run"]["type"], "TRACKED");
    assert_eq!(job.policy_input["stack"]["labels"][0], "team:network");
    let worker = &bench.client().workers().unwrap()[0];
    assert_eq!((worker.status, worker.run, worker.metadata["zone"].as_str()), (WorkerStatus::Busy, Some(id), "a"));

    for state in [RunState::Preparing, RunState::Initializing, RunState::Planning, RunState::Planning] {
        first.state(id, assignment, state).unwrap();
    }
    let (status, message) = first.state(id, assignment, RunState::Preparing).unwrap_err();
    assert_eq!((status, message.contains("does not go back")), (409, true), "{message}");
    assert_eq!(first.state(id, assignment, RunState::Applying).unwrap_err().0, 422, "no part of this stage");

    first.put(id, assignment, Object::Log { number: 0 }, b"one\ntw");
    let part = bench.client().log(id, 0).unwrap();
    assert_eq!((part.bytes.as_slice(), part.complete), (b"one\ntw".as_slice(), false), "live");
    let mut planned = first.finish(id, assignment, &[b"one\ntw", b"o\n"]);
    first.put(id, assignment, Object::Workspace, b"encrypted");
    planned.workspace = true;
    first.outcome(id, &planned).unwrap();
    first.outcome(id, &planned).unwrap();
    assert_eq!(first.outcome(id, &Report { message: "other".into(), ..planned.clone() }).unwrap_err().0, 409);
    let shown = bench.client().run(id).unwrap();
    assert_eq!((shown.state, shown.changes), (RunState::Unconfirmed, Some(Changes { add: 1, change: 0, destroy: 0 })));

    // The newest worker gets it.
    let second = Worker::start(&pool);
    assert_eq!(bench.client().confirm(id).unwrap().state, RunState::Confirmed);
    let (_, assignment, job) = second.take();
    assert_eq!((job.stage, job.restore_workspace, job.keep_workspace), (Stage::Apply, true, false));
    let get = ObjectRequest { assignment, object: Object::Workspace, operation: Operation::Get };
    let presigned = second.object(id, get).unwrap();
    assert_eq!(plain("GET", &presigned.url, Vec::new()), (200, b"encrypted".to_vec()));
    second.state(id, assignment, RunState::PreparingApply).unwrap();
    second.state(id, assignment, RunState::Applying).unwrap();
    let report = second.finish(id, assignment, &[b"three\n"]);
    second.outcome(id, &report).unwrap();
    assert_eq!(
        states(&bench, id),
        [
            RunState::Queued,
            RunState::Preparing,
            RunState::Initializing,
            RunState::Planning,
            RunState::Unconfirmed,
            RunState::Confirmed,
            RunState::PreparingApply,
            RunState::Applying,
            RunState::Finished
        ]
    );
    let log = bench.client().log(id, 0).unwrap();
    assert_eq!((log.bytes.as_slice(), log.complete), (b"one\ntwo\nthree\n".as_slice(), true));
    assert_eq!(bench.client().log(id, 5).unwrap().bytes, b"wo\nthree\n");
}

/// Ends the stage that this worker is given next, with what `change` makes of a good report.
fn end(worker: &Worker, change: impl FnOnce(&mut Report)) -> RunId {
    let (run, assignment, _) = worker.take();
    let mut report = worker.finish(run, assignment, &[]);
    change(&mut report);
    worker.outcome(run, &report).unwrap();
    worker.alive(WorkerState::Idle);
    run
}

#[test]
fn what_a_report_makes_of_a_run() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    let stack = bench.stack("s", pool.id);
    let client = bench.client();
    let worker = Worker::start(&pool);
    let state = |run: RunId| client.run(run).unwrap().state;
    let of = |run_type, command: Option<&str>| CreateRun { run_type, command: command.map(Into::into), ..wish("s") };

    client.create_run(&of(RunType::Proposed, None)).unwrap();
    assert_eq!(state(end(&worker, |_| ())), RunState::Finished, "a preview has no second stage");
    bench.run("s");
    assert_eq!(state(end(&worker, |report| report.changes = Some(Changes::default()))), RunState::Finished);
    bench.run("s");
    let run = end(&worker, |_| ());
    assert_eq!(state(run), RunState::Failed, "there is nothing to apply from");
    bench.run("s");
    let run = end(&worker, |report| {
        (report.outcome, report.message) = (Outcome::Denied, "not on Fridays".to_owned());
    });
    assert_eq!((state(run), client.run(run).unwrap().message.as_str()), (RunState::Failed, "not on Fridays"));
    bench.run("s");
    assert_eq!(state(end(&worker, |report| report.outcome = Outcome::RunTimeout)), RunState::Stopped);
    bench.run("s");
    let run = end(&worker, |report| (report.workspace, report.changes) = (true, None));
    assert_eq!(state(run), RunState::Unconfirmed);
    assert_eq!(client.stop(run).unwrap_err().status(), Some(409));
    assert_eq!(client.discard(run).unwrap().state, RunState::Discarded);
    assert_eq!(client.confirm(run).unwrap_err().status(), Some(409));

    client.create_run(&of(RunType::Task, Some("echo"))).unwrap();
    let (run, assignment, job) = worker.take();
    assert_eq!((job.stage, job.command.as_deref()), (Stage::Task, Some("echo")));
    worker.state(run, assignment, RunState::Performing).unwrap();
    worker.outcome(run, &worker.finish(run, assignment, &[])).unwrap();
    assert_eq!(state(run), RunState::Finished);
    assert_eq!(client.create_run(&of(RunType::Task, None)).unwrap_err().status(), Some(422));
    assert_eq!(client.create_run(&of(RunType::Tracked, Some("echo"))).unwrap_err().status(), Some(422));

    client.apply_stack(&mothership::admin::Stack { autodeploy: true, ..stack }).unwrap();
    worker.alive(WorkerState::Idle);
    bench.run("s");
    let run = end(&worker, |report| report.workspace = true);
    let (again, _, job) = worker.take();
    assert_eq!((again, job.stage, state(run)), (run, Stage::Apply, RunState::Confirmed), "nobody is asked");
}

#[test]
fn a_run_that_nobody_claims_goes_to_another_worker() {
    let bench = Bench::start(&["--claim-timeout", "1"]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    let older = Worker::start(&pool);
    let newer = Worker::start(&pool);
    bench.run("s");
    let (run, stale) = newer.scheduled();
    let (again, fresh) = older.scheduled();
    assert_eq!(again, run);
    assert_ne!(fresh, stale);
    assert_eq!(newer.claim(run, stale).unwrap_err().0, 409);
    assert_eq!(newer.claim(run, fresh).unwrap_err().0, 409, "the assignment of another worker");
    older.claim(run, fresh).unwrap();
    assert_eq!(newer.outcome(run, &newer_report(stale)).unwrap_err().0, 409);
}

fn newer_report(assignment: AssignmentId) -> Report {
    crate::worker::report(assignment, &[])
}

#[test]
fn one_tracked_run_of_a_stack_at_a_time_and_in_order() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    bench.stack("other", pool.id);
    let client = bench.client();
    let (first, second, third) = (bench.run("s"), bench.run("s"), bench.run("other"));
    let queued: Vec<RunId> = client.queued().unwrap().iter().map(|run| run.id).collect();
    assert_eq!(queued, [first.id, second.id, third.id]);
    let used = client.used_by(pool.id).unwrap();
    assert_eq!((used.stacks, used.runs), (vec!["other".to_owned(), "s".to_owned()], queued));

    let workers = [Worker::start(&pool), Worker::start(&pool), Worker::start(&pool)];
    let (run, assignment, _) = workers[0].take();
    assert_eq!(run, first.id);
    assert_eq!(workers[1].take().0, third.id, "the second of the stack waits");
    assert_eq!(workers[2].next_within(Duration::from_millis(500)), None);
    workers[0].outcome(run, &Report { outcome: Outcome::Failed, ..newer_report(assignment) }).unwrap();
    // Whichever is the newest idle one.
    assert_eq!(workers[2].take().0, second.id);
}

#[test]
fn stopping_is_said_until_the_worker_has_reported() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    let client = bench.client();
    let queued = bench.run("s");
    assert_eq!(client.stop(queued.id).unwrap().state, RunState::Canceled);
    let queued = bench.run("s");
    assert_eq!(client.cancel(queued.id).unwrap().state, RunState::Canceled);

    let worker = Worker::start(&pool);
    bench.run("s");
    let (run, assignment, _) = worker.take();
    assert_eq!(client.cancel(run).unwrap_err().status(), Some(409));
    assert!(client.stop(run).unwrap().stopping);
    assert_eq!(worker.next(), ToWorker::RunStop { run, assignment });
    worker.alive(WorkerState::Busy { run, assignment });
    assert_eq!(worker.next(), ToWorker::RunStop { run, assignment }, "it may not have heard it");
    worker.outcome(run, &Report { outcome: Outcome::StoppedByUser, ..newer_report(assignment) }).unwrap();
    assert_eq!(client.run(run).unwrap().state, RunState::Stopped);
    worker.alive(WorkerState::Idle);
    assert_eq!(worker.next_within(Duration::from_millis(500)), None);
}

#[test]
fn a_log_that_is_not_complete_ends_nothing() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    let worker = Worker::start(&pool);
    bench.run("s");
    let (run, assignment, _) = worker.take();
    let report = Report { outcome: Outcome::Failed, ..worker.finish(run, assignment, &[b"a\n", b"b\n"]) };
    let refused = |change: &dyn Fn(&mut Report)| {
        let mut changed = report.clone();
        change(&mut changed);
        let (status, message) = worker.outcome(run, &changed).unwrap_err();
        assert_eq!(status, 422, "{message}");
        message
    };
    assert!(refused(&|report| report.log.chunks = 3).contains("object 2"));
    assert!(refused(&|report| report.log.lines = 1).contains("lines: the worker says 1, the object store has 2"));
    assert!(refused(&|report| report.log.bytes = 5).contains("bytes"));
    assert!(refused(&|report| report.log.sha256 = "00".to_owned()).contains("sha256"));
    assert_eq!(bench.client().run(run).unwrap().state, RunState::Queued);
    worker.outcome(run, &report).unwrap();
}

#[test]
fn only_what_a_stage_needs_is_given_from_the_object_store() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    let mut stack = bench.stack("s", pool.id);
    let client = bench.client();
    stack.source = launcher_wire::api::Source::Archive {};
    client.apply_stack(&stack).unwrap();
    assert_eq!(client.create_run(&wish("s")).unwrap_err().status(), Some(409), "there is no archive yet");
    assert_eq!(client.upload_source("s", b"zip".to_vec()).unwrap_err().status(), Some(422));
    client.upload_source("s", b"\x1f\x8bfirst".to_vec()).unwrap();
    let worker = Worker::start(&pool);
    client.create_run(&CreateRun { run_type: RunType::Proposed, ..wish("s") }).unwrap();
    // A run has the source that it was started with.
    client.upload_source("s", b"\x1f\x8bsecond".to_vec()).unwrap();
    let (run, assignment, _) = worker.take();
    let ask = |object, operation| worker.object(run, ObjectRequest { assignment, object, operation });
    let source = ask(Object::Source, Operation::Get).unwrap();
    assert_eq!(plain("GET", &source.url, Vec::new()).1, b"\x1f\x8bfirst");
    for (object, operation) in [
        (Object::Source, Operation::Put),
        (Object::Log { number: 0 }, Operation::Get),
        (Object::Workspace, Operation::Put),
        (Object::Workspace, Operation::Get),
        (Object::Outputs, Operation::Get),
    ] {
        assert_eq!(ask(object, operation).unwrap_err().0, 403, "{object:?} {operation:?}");
    }
    assert_eq!(ask(Object::Log { number: 100_000_000 }, Operation::Put).unwrap_err().0, 422);
    ask(Object::Outputs, Operation::Put).unwrap();
    worker.outcome(run, &newer_report(assignment)).unwrap();
    assert_eq!(ask(Object::Log { number: 0 }, Operation::Put).unwrap_err().0, 409, "it is over");
}

#[test]
fn workers_that_go_away_keep_what_they_claimed_for_a_while() {
    let bench = Bench::start(&["--heartbeat", "1", "--lost-timeout", "8"]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    bench.stack("other", pool.id);
    let client = bench.client();
    let status = |id| client.workers().unwrap().iter().find(|worker| worker.id == id).unwrap().status;

    // One that breaks off, with a run that it had not claimed.
    let broken = Worker::start(&pool);
    bench.run("s");
    let (unclaimed, _) = broken.scheduled();
    let id = broken.vanish();
    eventually("the last will is heard", || status(id) == WorkerStatus::Offline);
    let leaver = Worker::start(&pool);
    let (run, _) = leaver.scheduled();
    assert_eq!(run, unclaimed);
    // One that says good-bye.
    leaver.say(FromWorker::Bye {});
    eventually("the good-bye is heard", || status(leaver.id) == WorkerStatus::Offline);

    let silent = Worker::start(&pool);
    let (run, assignment, _) = silent.take();
    assert_eq!(run, unclaimed);
    eventually("the silence is noticed", || status(silent.id) == WorkerStatus::Offline);
    assert_eq!(client.run(run).unwrap().worker, Some(silent.id), "what was claimed is given to nobody else");
    eventually("the run has failed", || client.run(run).unwrap().state == RunState::Failed);
    assert!(client.run(run).unwrap().message.contains(&silent.id.to_string()));
    assert_eq!(silent.state(run, assignment, RunState::Preparing).unwrap_err().0, 409);
    silent.alive(WorkerState::Busy { run, assignment });
    assert_eq!(silent.next(), ToWorker::RunStop { run, assignment }, "it is to end what nobody waits for");
}
