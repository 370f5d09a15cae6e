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
