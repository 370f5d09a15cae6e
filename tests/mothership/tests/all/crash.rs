//! The process is killed between steps, and goes on.

use launcher_wire::api::{Object, RunState, Stage};
use launcher_wire::mqtt::{ToWorker, WorkerState};
use mothership::admin::WorkerStatus;

use crate::bench::{Bench, eventually};
use crate::worker::Worker;

#[test]
fn a_run_survives_the_end_of_the_process_after_every_step() {
    let mut bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    let base = bench.client().base().to_owned();
    let run = bench.run("s").id;
    bench.restart_mothership();
    assert_eq!(bench.client().base(), base, "tokens lead to the same address");
    let worker = Worker::start(&pool);
    let (_, assignment) = worker.scheduled();
    bench.restart_mothership();
    assert_eq!(worker.scheduled(), (run, assignment), "it is said once more");
    let job = worker.claim(run, assignment).unwrap();
    bench.restart_mothership();
    assert_eq!(worker.claim(run, assignment).unwrap(), job);
    worker.state(run, assignment, RunState::Planning).unwrap();
    bench.restart_mothership();
    assert_eq!(worker.state(run, assignment, RunState::Preparing).unwrap_err().0, 409);
    worker.put(run, assignment, Object::Workspace, b"w");
    let mut report = worker.finish(run, assignment, &[b"log\n"]);
    report.workspace = true;
    bench.restart_mothership();
    worker.outcome(run, &report).unwrap();
    bench.restart_mothership();
    worker.outcome(run, &report).unwrap();
    bench.client().confirm(run).unwrap();
    bench.restart_mothership();
    worker.alive(WorkerState::Idle);
    let begun = std::cell::Cell::new(None);
    eventually("the second stage is scheduled", || {
        begun.set(Some(worker.scheduled()));
        begun.get().is_some_and(|(_, next)| next != assignment)
    });
    let (_, assignment) = begun.get().unwrap();
    assert_eq!(worker.claim(run, assignment).unwrap().stage, Stage::Apply);
    bench.client().stop(run).unwrap();
    bench.restart_mothership();
    eventually("the stop is said again", || worker.next() == ToWorker::RunStop { run, assignment });
    bench.restart_mothership();
    eventually("and again", || worker.next() == ToWorker::RunStop { run, assignment });
    worker.outcome(run, &crate::worker::report(assignment, &[])).unwrap();
    assert_eq!(bench.client().run(run).unwrap().state, RunState::Finished, "the stop came too late");
}

#[test]
fn what_is_said_while_the_broker_is_away_is_said_afterwards() {
    let mut bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    let worker = Worker::start(&pool);
    eventually("it is there", || bench.client().workers().unwrap()[0].status == WorkerStatus::Idle);
    bench.kill_broker();
    let run = bench.run("s").id;
    bench.start_broker();
    eventually("both sessions are back", || {
        worker.alive(WorkerState::Idle);
        worker
            .next_within(std::time::Duration::from_secs(1))
            .is_some_and(|message| matches!(message, ToWorker::RunScheduled { run: scheduled, .. } if scheduled == run))
    });
}
