//! What people ask for: pools, workers, stacks and runs.

use launcher_wire::api::{Registration, RunState, RunType, Stage};
use launcher_wire::id::{PoolId, RunId, WorkerId};
use launcher_wire::mqtt::{ToWorker, WorkerState};
use rusqlite::{OptionalExtension as _, params};

use super::launchers::commit;
use super::{CLAIMED, Decision, RunRow, SCHEDULED, TAKEN_BACK, from_json, json, parsed, seconds, word};
use crate::admin::{Change, CreateRun, Pool, Run, Stack, StageOf, UsedBy, Worker, WorkerStatus};
use crate::refusal::{Refusal, Result};

/// Characters of a stack's slug and of other names.
const MAXIMUM_NAME: usize = 128;
/// Runs that a list has at most: the newest.
const LISTED_RUNS: u32 = 500;
/// Entries of a run's metadata.
const MAXIMUM_METADATA: usize = 64;

impl Decision<'_> {
    pub(crate) fn create_pool(&self, pool: PoolId, name: &str, certificate: &str) -> Result<()> {
        if name.is_empty() || name.chars().count() > MAXIMUM_NAME || name.chars().any(char::is_control) {
            return Err(Refusal::invalid(format!("a pool's name has 1 to {MAXIMUM_NAME} characters in one line")));
        }
        self.tx.execute(
            "INSERT INTO pools(id, name, certificate, created) VALUES(?1, ?2, ?3, ?4)",
            params![pool.to_string(), name, certificate, self.now],
        )?;
        Ok(())
    }

    pub(crate) fn pools(&self) -> Result<Vec<Pool>> {
        let mut statement = self.tx.prepare(
            "SELECT id, name, drained, created,
               (SELECT count(*) FROM workers w WHERE w.pool = pools.id AND w.online = 1 AND w.gone = 0),
               (SELECT count(*) FROM assignments a WHERE a.pool = pools.id AND a.status = 'CLAIMED'),
               (SELECT count(*) FROM runs r WHERE r.pool = pools.id AND r.state IN ('QUEUED', 'CONFIRMED')
                  AND r.id NOT IN (SELECT run FROM assignments WHERE status = 'CLAIMED'))
             FROM pools ORDER BY created, id",
        )?;
        let rows = statement.query_map([], |row| {
            let count = |index| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(index)?).unwrap_or_default());
            Ok(Pool {
                id: parsed(row, 0)?,
                name: row.get(1)?,
                drained: row.get(2)?,
                created: seconds(row.get(3)?),
                workers: count(4)?,
                busy: count(5)?,
                queued: count(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(crate) fn pool(&self, pool: PoolId) -> Result<Pool> {
        let found = self.pools()?.into_iter().find(|other| other.id == pool);
        found.ok_or_else(|| Refusal::not_found(format!("there is no pool {pool}")))
    }

    /// Another certificate in place of the pool's present one.
    pub(crate) fn reset_pool(&self, pool: PoolId, certificate: &str) -> Result<()> {
        self.tx.execute("UPDATE pools SET certificate = ?2 WHERE id = ?1", params![pool.to_string(), certificate])?;
        Ok(())
    }

    pub(crate) fn drain_pool(&self, pool: PoolId, drained: bool) -> Result<()> {
        self.pool(pool)?;
        self.tx.execute("UPDATE pools SET drained = ?2 WHERE id = ?1", params![pool.to_string(), drained])?;
        for worker in self.workers()?.into_iter().filter(|worker| worker.pool == pool) {
            self.tell_drained(&worker, drained || worker.drained)?;
        }
        Ok(())
    }

    pub(crate) fn drain_worker(&self, worker: WorkerId, drained: bool) -> Result<()> {
        let worker = self.worker(worker)?;
        self.tx.execute("UPDATE workers SET drained = ?2 WHERE id = ?1", params![worker.id.to_string(), drained])?;
        let pool = self.pool(worker.pool)?;
        self.tell_drained(&worker, drained || pool.drained)
    }

    fn tell_drained(&self, worker: &Worker, drained: bool) -> Result<()> {
        if drained {
            self.release(worker.id)?;
        }
        self.tx
            .execute("UPDATE workers SET undraining = ?2 WHERE id = ?1", params![worker.id.to_string(), !drained])?;
        if worker.status == WorkerStatus::Offline {
            return Ok(());
        }
        self.send(worker.pool, worker.id, if drained { ToWorker::Drain {} } else { ToWorker::Undrain {} })
    }

    /// Each worker of the pool finishes what it has and starts anew.
    pub(crate) fn cycle_pool(&self, pool: PoolId) -> Result<()> {
        self.pool(pool)?;
        for worker in self.workers()?.into_iter().filter(|worker| worker.pool == pool) {
            if worker.status != WorkerStatus::Offline {
                self.release(worker.id)?;
                self.tx.execute("UPDATE workers SET cycling = 1 WHERE id = ?1", [worker.id.to_string()])?;
                self.send(pool, worker.id, ToWorker::Cycle {})?;
            }
        }
        Ok(())
    }

    pub(crate) fn workers(&self) -> Result<Vec<Worker>> {
        let mut statement = self.tx.prepare(
            "SELECT w.id, w.pool, w.registration, w.state, w.online, w.drained, w.registered, w.seen,
               (SELECT a.run FROM assignments a WHERE a.worker = w.id AND a.status = 'CLAIMED'), p.drained
             FROM workers w JOIN pools p ON p.id = w.pool WHERE w.gone = 0 ORDER BY w.registered DESC, w.id DESC",
        )?;
        let rows = statement.query_map([], |row| {
            let registration: Registration = from_json(row, 2)?;
            let state: WorkerState = from_json(row, 3)?;
            let (online, drained, pool_drained): (bool, bool, bool) = (row.get(4)?, row.get(5)?, row.get(9)?);
            let run: Option<String> = row.get(8)?;
            let run: Option<RunId> = run.and_then(|run| run.parse().ok());
            let status = match state {
                _ if !online => WorkerStatus::Offline,
                WorkerState::Busy { .. } => WorkerStatus::Busy,
                _ if run.is_some() => WorkerStatus::Busy,
                WorkerState::Drained => WorkerStatus::Drained,
                WorkerState::Idle if drained || pool_drained => WorkerStatus::Drained,
                WorkerState::Idle => WorkerStatus::Idle,
            };
            Ok(Worker {
                id: parsed(row, 0)?,
                pool: parsed(row, 1)?,
                status,
                drained,
                run,
                launcher_version: registration.launcher_version,
                worker_version: registration.worker_version,
                architecture: registration.architecture,
                metadata: registration.metadata,
                registered: seconds(row.get(6)?),
                seen: seconds(row.get(7)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn worker(&self, worker: WorkerId) -> Result<Worker> {
        let found = self.workers()?.into_iter().find(|other| other.id == worker);
        found.ok_or_else(|| Refusal::not_found(format!("there is no worker {worker}")))
    }

    pub(crate) fn apply_stack(&self, stack: &Stack) -> Result<()> {
        let slug = &stack.slug;
        let allowed = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '-' | '_');
        if slug.is_empty() || slug.len() > MAXIMUM_NAME || !slug.chars().all(allowed) {
            return Err(Refusal::invalid(format!(
                "a stack's slug has 1 to {MAXIMUM_NAME} of the characters a-z, 0-9, `-` and `_`"
            )));
        }
        self.pool(stack.pool)?;
        self.tx.execute(
            "INSERT INTO stacks(slug, pool, specification) VALUES(?1, ?2, ?3)
             ON CONFLICT(slug) DO UPDATE SET pool = excluded.pool, specification = excluded.specification",
            params![slug, stack.pool.to_string(), json(stack)],
        )?;
        Ok(())
    }

    pub(crate) fn stacks(&self) -> Result<Vec<Stack>> {
        let mut statement = self.tx.prepare("SELECT specification FROM stacks ORDER BY slug")?;
        let rows = statement.query_map([], |row| from_json(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A stack, and the name of its uploaded source.
    pub(crate) fn stack(&self, slug: &str) -> Result<(Stack, Option<String>)> {
        let found = self
            .tx
            .query_row("SELECT specification, archive FROM stacks WHERE slug = ?1", [slug], |row| {
                Ok((from_json(row, 0)?, row.get(1)?))
            })
            .optional()?;
        found.ok_or_else(|| {
            Refusal::not_found(format!(
                "there is no stack {slug:?}; `mothership stack list` shows those that there are"
            ))
        })
    }

    pub(crate) fn set_archive(&self, slug: &str, archive: &str) -> Result<()> {
        self.tx.execute("UPDATE stacks SET archive = ?2 WHERE slug = ?1", params![slug, archive])?;
        Ok(())
    }

    pub(crate) fn create_run(&self, request: &CreateRun) -> Result<Run> {
        let (stack, archive) = self.stack(&request.stack)?;
        let is_task = request.run_type == RunType::Task;
        if is_task != request.command.is_some() {
            return Err(Refusal::invalid("a task has a command, and no other run has one"));
        }
        if matches!(stack.source, launcher_wire::api::Source::Archive {}) && archive.is_none() {
            return Err(Refusal::conflict(format!(
                "the source of stack {} is an archive that nobody has uploaded yet",
                stack.slug
            )));
        }
        if request.user_provided_metadata.len() > MAXIMUM_METADATA {
            return Err(Refusal::invalid(format!("a run has at most {MAXIMUM_METADATA} entries of metadata")));
        }
        let stage = match request.run_type {
            RunType::Proposed | RunType::Tracked => Stage::Plan,
            RunType::Task => Stage::Task,
            RunType::Testing => Stage::Test,
            RunType::Destroy => Stage::Destroy,
        };
        let id = RunId::new();
        self.tx.execute(
            "INSERT INTO runs(id, stack, pool, type, state, stage, request, specification, archive, created)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                id.to_string(),
                stack.slug,
                stack.pool.to_string(),
                word(&request.run_type),
                word(&RunState::Queued),
                word(&stage),
                json(request),
                json(&stack),
                archive,
                self.now
            ],
        )?;
        self.enter(id, RunState::Queued, "")?;
        self.run(id)
    }

    fn summary(&self, row: RunRow) -> Result<Run> {
        let worker = self.open_assignment(row.id)?.filter(|open| open.status == CLAIMED).map(|open| open.worker);
        Ok(Run {
            worker,
            commit: commit(&row),
            id: row.id,
            stack: row.stack,
            pool: row.pool,
            run_type: row.run_type,
            state: row.state,
            stage: row.stage,
            message: row.message,
            changes: row.changes,
            stopping: row.stopping,
            created: seconds(row.created),
            history: Vec::new(),
            stages: Vec::new(),
        })
    }

    pub(crate) fn runs(&self) -> Result<Vec<Run>> {
        let rows = self.run_rows("ORDER BY sequence DESC LIMIT ?1", [LISTED_RUNS])?;
        rows.into_iter().map(|row| self.summary(row)).collect()
    }

    /// Runs that wait for a worker, in the order in which they get one.
    pub(crate) fn queued(&self, pool: Option<PoolId>) -> Result<Vec<Run>> {
        let rows = self.run_rows(
            "WHERE state IN ('QUEUED', 'CONFIRMED') AND (?1 IS NULL OR pool = ?1)
             AND id NOT IN (SELECT run FROM assignments WHERE status = 'CLAIMED') ORDER BY sequence",
            [pool.map(|pool| pool.to_string())],
        )?;
        rows.into_iter().map(|row| self.summary(row)).collect()
    }

    pub(crate) fn used_by(&self, pool: PoolId) -> Result<UsedBy> {
        self.pool(pool)?;
        let mut statement = self.tx.prepare("SELECT slug FROM stacks WHERE pool = ?1 ORDER BY slug")?;
        let stacks = statement.query_map([pool.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let rows = self.run_rows("WHERE pool = ?1 ORDER BY sequence", [pool.to_string()])?;
        let runs = rows.into_iter().filter(|run| !run.state.is_terminal()).map(|run| run.id).collect();
        Ok(UsedBy { stacks, runs })
    }

    /// A run with what it was in.
    pub(crate) fn run(&self, run: RunId) -> Result<Run> {
        let mut shown = self.summary(self.run_row(run)?)?;
        let mut statement = self.tx.prepare("SELECT at, state, message FROM history WHERE run = ?1 ORDER BY rowid")?;
        let history = statement.query_map([run.to_string()], |row| {
            Ok(Change {
                at: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
                state: super::from_word(row, 1)?,
                message: row.get(2)?,
            })
        })?;
        shown.history = history.collect::<Result<_, _>>()?;
        shown.stages = self
            .stages(run)?
            .into_iter()
            .map(|row| StageOf {
                assignment: row.id,
                stage: row.stage,
                worker: row.worker,
                report: row.report.and_then(|report| serde_json::from_str(&report).ok()),
                status: row.status,
            })
            .collect();
        Ok(shown)
    }

    pub(crate) fn confirm(&self, run: RunId) -> Result<Run> {
        self.expect_state(run, RunState::Unconfirmed, "confirmed")?;
        self.confirm_run(run, "")?;
        self.run(run)
    }

    pub(crate) fn discard(&self, run: RunId) -> Result<Run> {
        self.expect_state(run, RunState::Unconfirmed, "discarded")?;
        self.enter(run, RunState::Discarded, "")?;
        self.run(run)
    }

    /// Ends a run that no worker has had.
    pub(crate) fn cancel(&self, run: RunId) -> Result<Run> {
        let row = self.expect_state(run, RunState::Queued, "canceled")?;
        match self.open_assignment(run)? {
            Some(open) if open.status == CLAIMED => {
                return Err(Refusal::conflict(format!("a worker has run {}; stop it", row.id)));
            }
            Some(open) => self.set_status(open.id, TAKEN_BACK)?,
            None => {}
        }
        self.enter(run, RunState::Canceled, "")?;
        self.run(run)
    }

    /// Ends a run wherever it is.
    pub(crate) fn stop(&self, run: RunId) -> Result<Run> {
        let row = self.run_row(run)?;
        if row.state.is_terminal() {
            return Err(Refusal::conflict(format!("run {run} has ended: it is {}", word(&row.state))));
        }
        if row.state == RunState::Unconfirmed {
            return Err(Refusal::conflict(format!("run {run} is UNCONFIRMED and runs nowhere; discard it")));
        }
        match self.open_assignment(run)? {
            Some(open) if open.status == CLAIMED => {
                self.tx.execute("UPDATE runs SET stopping = 1 WHERE id = ?1", [run.to_string()])?;
                self.stop_assignment(row.pool, &open)?;
            }
            open => {
                if let Some(open) = open.filter(|open| open.status == SCHEDULED) {
                    self.set_status(open.id, TAKEN_BACK)?;
                }
                let state = if row.state == RunState::Queued { RunState::Canceled } else { RunState::Stopped };
                self.enter(run, state, "stopped before a worker had it")?;
            }
        }
        self.run(run)
    }

    fn expect_state(&self, run: RunId, state: RunState, participle: &str) -> Result<RunRow> {
        let row = self.run_row(run)?;
        if row.state == state {
            return Ok(row);
        }
        let (present, needed) = (word(&row.state), word(&state));
        Err(Refusal::conflict(format!("run {run} is {present}; only a run that is {needed} can be {participle}")))
    }
}
