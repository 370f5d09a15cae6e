//! Who does what: assignments, and what becomes of those that nobody does.

use launcher_wire::api::RunState;
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use launcher_wire::mqtt::{FromWorker, ToWorker, WorkerState};
use rusqlite::{OptionalExtension as _, params};

use super::{AssignmentRow, CLAIMED, Decision, LOST, SCHEDULED, TAKEN_BACK, from_json, json, parsed, word};
use crate::refusal::Result;

/// Signs of life that a worker may miss.
const MISSED_HEARTBEATS: i64 = 3;
/// Milliseconds after which a worker that says it is idle is told of its assignment once more.
const REPEAT: i64 = 1_000;

impl Decision<'_> {
    /// What time alone brings about.
    pub(crate) fn tick(&self) -> Result<()> {
        let silent_since = self.now - MISSED_HEARTBEATS * self.timing.heartbeat;
        // Nobody could give a sign of life while this process was not there.
        if self.started <= silent_since {
            self.tx.execute("UPDATE workers SET online = 0 WHERE online = 1 AND seen <= ?1", [silent_since])?;
        }
        let unclaimed = self.assignment_rows(
            "WHERE status = 'SCHEDULED' AND (created <= ?1
             OR worker IN (SELECT id FROM workers WHERE online = 0 OR gone = 1))",
            [self.now - self.timing.claim],
        )?;
        for assignment in unclaimed {
            self.take_back(&assignment)?;
        }
        let lost_since = self.now - self.timing.lost;
        let lost = self.assignment_rows(
            "WHERE status = 'CLAIMED' AND (missed <= ?1 OR worker IN
             (SELECT id FROM workers WHERE (online = 0 OR gone = 1) AND max(seen, ?2) <= ?1))",
            [lost_since, self.started],
        )?;
        for assignment in lost {
            self.set_status(assignment.id, LOST)?;
            let worker = assignment.worker;
            let message = format!("worker {worker} went away with the run, and did not come back in time");
            self.enter(assignment.run, RunState::Failed, &message)?;
        }
        self.tx.execute("DELETE FROM nonces WHERE until < ?1", [self.now])?;
        Ok(())
    }

    /// A worker said something over MQTT. Gives whether it is one that is known.
    pub(crate) fn heard(&self, pool: PoolId, worker: WorkerId, message: &FromWorker) -> Result<bool> {
        let known = self
            .tx
            .query_row(
                "SELECT w.drained OR p.drained, w.undraining, w.cycling FROM workers w JOIN pools p ON p.id = w.pool
                 WHERE w.id = ?1 AND w.pool = ?2 AND w.gone = 0",
                [worker.to_string(), pool.to_string()],
                |row| Ok((row.get::<_, bool>(0)?, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?)),
            )
            .optional()?;
        let Some((drained, undraining, cycling)) = known else {
            return Ok(false);
        };
        match message {
            FromWorker::Alive { state } => {
                self.alive(pool, worker, state)?;
                match state {
                    WorkerState::Idle if drained => self.send(pool, worker, ToWorker::Drain {})?,
                    // Only what was drained from here: a launcher that drains by itself is about to exit.
                    WorkerState::Drained if undraining && !drained => self.send(pool, worker, ToWorker::Undrain {})?,
                    WorkerState::Drained => {}
                    WorkerState::Idle | WorkerState::Busy { .. } => self.undrained(worker)?,
                }
                // One that is drained may be about to exit, and what it did not read the one after it would.
                if cycling && *state != WorkerState::Drained {
                    self.send(pool, worker, ToWorker::Cycle {})?;
                }
            }
            FromWorker::Bye {} => {
                self.tx.execute("UPDATE workers SET online = 0, cycling = 0 WHERE id = ?1", [worker.to_string()])?;
                self.release(worker)?;
            }
            FromWorker::Lost {} => {
                self.tx.execute("UPDATE workers SET online = 0 WHERE id = ?1", [worker.to_string()])?;
                self.release(worker)?;
            }
        }
        Ok(true)
    }

    fn alive(&self, pool: PoolId, worker: WorkerId, state: &WorkerState) -> Result<()> {
        self.tx.execute(
            "UPDATE workers SET online = 1, heard = 1, seen = ?2, state = ?3 WHERE id = ?1",
            params![worker.to_string(), self.now, json(state)],
        )?;
        let open =
            self.assignment_rows("WHERE worker = ?1 AND status IN ('SCHEDULED', 'CLAIMED')", [worker.to_string()])?;
        for assignment in open {
            let has_it = matches!(state, WorkerState::Busy { assignment: busy, .. } if *busy == assignment.id);
            if assignment.status == CLAIMED {
                self.tx.execute(
                    "UPDATE assignments SET missed = CASE WHEN ?2 THEN NULL ELSE coalesce(missed, ?3) END WHERE id = ?1",
                    params![assignment.id.to_string(), has_it, self.now],
                )?;
                if self.run_row(assignment.run)?.stopping {
                    self.stop_assignment(pool, &assignment)?;
                }
            } else if *state == WorkerState::Drained {
                self.take_back(&assignment)?;
            } else if *state == WorkerState::Idle && assignment.created <= self.now - REPEAT {
                self.announce(pool, &assignment)?;
            }
        }
        if let WorkerState::Busy { run, assignment } = state {
            let is_lost = self.assignment_rows("WHERE id = ?1 AND status = 'LOST'", [assignment.to_string()])?;
            if !is_lost.is_empty() {
                self.send(pool, worker, ToWorker::RunStop { run: *run, assignment: *assignment })?;
            }
        }
        Ok(())
    }

    fn undrained(&self, worker: WorkerId) -> Result<()> {
        self.tx.execute("UPDATE workers SET undraining = 0 WHERE id = ?1 AND undraining = 1", [worker.to_string()])?;
        Ok(())
    }

    pub(super) fn stop_assignment(&self, pool: PoolId, assignment: &AssignmentRow) -> Result<()> {
        let AssignmentRow { run, id, worker, .. } = *assignment;
        self.send(pool, worker, ToWorker::RunStop { run, assignment: id })
    }

    fn announce(&self, pool: PoolId, assignment: &AssignmentRow) -> Result<()> {
        let AssignmentRow { run, id, worker, .. } = *assignment;
        self.send(pool, worker, ToWorker::RunScheduled { run, assignment: id })
    }

    /// Lets another worker have what this one has not claimed.
    pub(super) fn release(&self, worker: WorkerId) -> Result<()> {
        for assignment in self.assignment_rows("WHERE worker = ?1 AND status = 'SCHEDULED'", [worker.to_string()])? {
            self.take_back(&assignment)?;
        }
        Ok(())
    }

    pub(super) fn take_back(&self, assignment: &AssignmentRow) -> Result<()> {
        tracing::info!(run = %assignment.run, assignment = %assignment.id, worker = %assignment.worker, "taken back");
        self.set_status(assignment.id, TAKEN_BACK)
    }

    /// What a process that starts anew finds unfinished: it is said once more, as nobody knows whether it was heard.
    pub(crate) fn resume(&self) -> Result<()> {
        for assignment in self.assignment_rows("WHERE status IN ('SCHEDULED', 'CLAIMED')", [])? {
            let run = self.run_row(assignment.run)?;
            if assignment.status == SCHEDULED {
                // The time to claim begins anew: it may have passed while this process was not there.
                self.tx.execute(
                    "UPDATE assignments SET created = ?2 WHERE id = ?1",
                    params![assignment.id.to_string(), self.now],
                )?;
                self.announce(run.pool, &assignment)?;
            } else if run.stopping {
                self.stop_assignment(run.pool, &assignment)?;
            }
        }
        Ok(())
    }

    /// Gives runs that wait to workers that are idle.
    pub(super) fn schedule(&self) -> Result<()> {
        let waiting = self.run_rows(
            "WHERE state IN ('QUEUED', 'CONFIRMED')
               AND pool IN (SELECT id FROM pools WHERE drained = 0)
               AND id NOT IN (SELECT run FROM assignments WHERE status IN ('SCHEDULED', 'CLAIMED'))
               AND (type NOT IN ('TRACKED', 'DESTROY') OR NOT EXISTS (
                 SELECT 1 FROM runs earlier WHERE earlier.stack = runs.stack AND earlier.sequence < runs.sequence
                   AND earlier.type IN ('TRACKED', 'DESTROY')
                   AND earlier.state NOT IN ('FINISHED', 'FAILED', 'STOPPED', 'DISCARDED', 'CANCELED', 'SKIPPED')))
             ORDER BY sequence",
            [],
        )?;
        for run in waiting {
            let Some(worker) = self.idle_worker(run.pool, run.id)? else {
                continue;
            };
            let assignment = AssignmentId::new();
            self.tx.execute(
                "INSERT INTO assignments(id, run, stage, worker, pool, status, created)
                 VALUES(?1, ?2, ?3, ?4, ?5, 'SCHEDULED', ?6)",
                params![
                    assignment.to_string(),
                    run.id.to_string(),
                    word(&run.stage),
                    worker.to_string(),
                    run.pool.to_string(),
                    self.now
                ],
            )?;
            tracing::info!(run = %run.id, %assignment, %worker, "scheduled");
            self.send(run.pool, worker, ToWorker::RunScheduled { run: run.id, assignment })?;
        }
        Ok(())
    }

    /// The newest one, and rather one that did not let this run lie before. Between its registration and the first message
    /// of its session a worker would not hear of the run.
    fn idle_worker(&self, pool: PoolId, run: RunId) -> Result<Option<WorkerId>> {
        let mut statement = self.tx.prepare(
            "SELECT id, state FROM workers WHERE pool = ?1 AND online = 1 AND heard = 1 AND gone = 0 AND drained = 0 AND cycling = 0
               AND id NOT IN (SELECT worker FROM assignments WHERE status IN ('SCHEDULED', 'CLAIMED'))
             ORDER BY (SELECT count(*) FROM assignments a WHERE a.worker = workers.id AND a.run = ?2
                       AND a.status = 'TAKEN_BACK'), registered DESC, id DESC",
        )?;
        let workers = statement.query_map([pool.to_string(), run.to_string()], |row| {
            Ok((parsed::<WorkerId>(row, 0)?, from_json::<WorkerState>(row, 1)?))
        })?;
        for worker in workers {
            let (worker, state) = worker?;
            if state == WorkerState::Idle {
                return Ok(Some(worker));
            }
        }
        Ok(None)
    }
}
