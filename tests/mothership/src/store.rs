//! All state, in SQLite. Every decision is one transaction: what was answered stays so, whenever the process dies.

mod launchers;
mod people;
mod schedule;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use launcher_wire::api::{Changes, RunState, RunType, Stage};
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use launcher_wire::mqtt::{Envelope, ToWorker};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::admin::{CreateRun, Stack};
use crate::refusal::{Refusal, Result};

pub(crate) use launchers::Reported;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS pools(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, certificate TEXT NOT NULL, drained INTEGER NOT NULL DEFAULT 0,
  created INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS workers(
  id TEXT PRIMARY KEY, pool TEXT NOT NULL REFERENCES pools(id), registration TEXT NOT NULL, state TEXT NOT NULL,
  online INTEGER NOT NULL, heard INTEGER NOT NULL DEFAULT 0, gone INTEGER NOT NULL DEFAULT 0, drained INTEGER NOT NULL DEFAULT 0,
  undraining INTEGER NOT NULL DEFAULT 0, cycling INTEGER NOT NULL DEFAULT 0,
  registered INTEGER NOT NULL, seen INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS stacks(
  slug TEXT PRIMARY KEY, pool TEXT NOT NULL REFERENCES pools(id), specification TEXT NOT NULL, archive TEXT) STRICT;
CREATE TABLE IF NOT EXISTS runs(
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, stack TEXT NOT NULL,
  pool TEXT NOT NULL REFERENCES pools(id), type TEXT NOT NULL, state TEXT NOT NULL, stage TEXT NOT NULL,
  request TEXT NOT NULL, specification TEXT NOT NULL, archive TEXT, created INTEGER NOT NULL,
  message TEXT NOT NULL DEFAULT '', changes TEXT, stopping INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS history(
  run TEXT NOT NULL REFERENCES runs(id), at INTEGER NOT NULL, state TEXT NOT NULL, message TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS history_run ON history(run);
CREATE TABLE IF NOT EXISTS assignments(
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, run TEXT NOT NULL REFERENCES runs(id),
  stage TEXT NOT NULL, worker TEXT NOT NULL REFERENCES workers(id), pool TEXT NOT NULL, status TEXT NOT NULL,
  created INTEGER NOT NULL, claimed INTEGER, missed INTEGER, report TEXT) STRICT;
CREATE INDEX IF NOT EXISTS assignments_run ON assignments(run);
CREATE INDEX IF NOT EXISTS assignments_worker ON assignments(worker, status);
CREATE TABLE IF NOT EXISTS outbox(
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, pool TEXT NOT NULL, worker TEXT NOT NULL, envelope TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS nonces(
  pool TEXT NOT NULL, nonce TEXT NOT NULL, until INTEGER NOT NULL, PRIMARY KEY(pool, nonce)) STRICT;
";

/// How long things may take, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Between two signs of life of a worker.
    pub(crate) heartbeat: i64,
    /// Until a scheduled run is claimed, or goes to another worker.
    pub(crate) claim: i64,
    /// Until a claimed run of a worker that is not there, or does not know of it, has failed.
    pub(crate) lost: i64,
}

/// The state.
#[derive(Clone)]
pub(crate) struct Store {
    connection: Arc<Mutex<Connection>>,
    timing: Timing,
    /// When this process began: workers cannot have given it a sign of life before.
    started: i64,
    /// Wakes whoever sends what is in the outbox.
    pub(crate) outbox: Arc<Notify>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("timing", &self.timing).finish_non_exhaustive()
    }
}

/// One decision: reads and writes that happen together or not at all.
pub(crate) struct Decision<'a> {
    tx: Transaction<'a>,
    timing: Timing,
    started: i64,
    /// Milliseconds since 1970.
    now: i64,
}

/// A message on its way to a worker.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) sequence: i64,
    pub(crate) pool: PoolId,
    pub(crate) worker: WorkerId,
    pub(crate) envelope: Envelope<ToWorker>,
}

/// A run as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct RunRow {
    pub(crate) id: RunId,
    pub(crate) stack: String,
    pub(crate) pool: PoolId,
    pub(crate) run_type: RunType,
    pub(crate) state: RunState,
    pub(crate) stage: Stage,
    pub(crate) request: CreateRun,
    pub(crate) specification: Stack,
    pub(crate) archive: Option<String>,
    pub(crate) created: i64,
    pub(crate) message: String,
    pub(crate) changes: Option<Changes>,
    pub(crate) stopping: bool,
}

/// An assignment as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct AssignmentRow {
    pub(crate) id: AssignmentId,
    pub(crate) run: RunId,
    pub(crate) stage: Stage,
    pub(crate) worker: WorkerId,
    pub(crate) status: String,
    pub(crate) created: i64,
    pub(crate) claimed: Option<i64>,
    pub(crate) report: Option<String>,
}

/// A worker was told to claim it.
pub(crate) const SCHEDULED: &str = "SCHEDULED";
/// A worker has it.
pub(crate) const CLAIMED: &str = "CLAIMED";
/// The worker said how it ended.
pub(crate) const REPORTED: &str = "REPORTED";
/// It was not claimed in time.
pub(crate) const TAKEN_BACK: &str = "TAKEN_BACK";
/// The worker went away with it.
pub(crate) const LOST: &str = "LOST";

impl Store {
    /// Opens the database, and makes it if there is none.
    pub(crate) fn open(path: &Path, timing: Timing) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            timing,
            started: milliseconds(),
            outbox: Arc::new(Notify::new()),
        })
    }

    /// Decides something. Whatever it makes possible is scheduled in the same transaction.
    pub(crate) async fn decide<T: Send + 'static>(
        &self,
        decision: impl FnOnce(&Decision<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let result = self
            .with(move |begun| {
                let result = decision(&begun)?;
                begun.schedule()?;
                begun.tx.commit()?;
                Ok(result)
            })
            .await;
        self.outbox.notify_one();
        result
    }

    /// Reads something.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        reading: impl FnOnce(&Decision<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.with(move |begun| reading(&begun)).await
    }

    /// The broker has a message. Nothing new follows from that.
    pub(crate) async fn forget(&self, sequence: i64) -> Result<()> {
        self.with(move |begun| {
            begun.sent(sequence)?;
            Ok(begun.tx.commit()?)
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(Decision<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            // A panic while it was held rolled its transaction back, so what is there is whole.
            let mut connection = this.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            work(Decision { tx, timing: this.timing, started: this.started, now: milliseconds() })
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a decision ended unexpectedly");
            Err(Refusal::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "something is wrong; see the server's log"))
        })
    }
}

impl Decision<'_> {
    /// Leaves a message for a worker.
    fn send(&self, pool: PoolId, worker: WorkerId, message: ToWorker) -> Result<()> {
        let envelope = Envelope::new(u64::try_from(self.now).unwrap_or_default(), message);
        self.tx.execute(
            "INSERT INTO outbox(pool, worker, envelope) VALUES(?1, ?2, ?3)",
            params![pool.to_string(), worker.to_string(), json(&envelope)],
        )?;
        Ok(())
    }

    /// The oldest messages that the broker does not have.
    pub(crate) fn outgoing(&self, limit: u32) -> Result<Vec<Outgoing>> {
        let mut statement =
            self.tx.prepare("SELECT sequence, pool, worker, envelope FROM outbox ORDER BY sequence LIMIT ?1")?;
        let rows = statement.query_map([limit], |row| {
            Ok(Outgoing {
                sequence: row.get(0)?,
                pool: parsed(row, 1)?,
                worker: parsed(row, 2)?,
                envelope: from_json(row, 3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The broker has them.
    fn sent(&self, sequence: i64) -> Result<()> {
        self.tx.execute("DELETE FROM outbox WHERE sequence = ?1", [sequence])?;
        Ok(())
    }

    pub(crate) fn run_row(&self, run: RunId) -> Result<RunRow> {
        let found = self
            .tx
            .query_row(&format!("SELECT {RUN} FROM runs WHERE id = ?1"), [run.to_string()], run_row)
            .optional()?;
        found.ok_or_else(|| Refusal::not_found(format!("there is no run {run}")))
    }

    fn run_rows(&self, rest: &str, parameters: impl rusqlite::Params) -> Result<Vec<RunRow>> {
        let mut statement = self.tx.prepare(&format!("SELECT {RUN} FROM runs {rest}"))?;
        let rows = statement.query_map(parameters, run_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn assignment_rows(&self, rest: &str, parameters: impl rusqlite::Params) -> Result<Vec<AssignmentRow>> {
        let mut statement = self.tx.prepare(&format!("SELECT {ASSIGNMENT} FROM assignments {rest}"))?;
        let rows = statement.query_map(parameters, assignment_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The stages of a run that a worker had, the oldest first.
    pub(crate) fn stages(&self, run: RunId) -> Result<Vec<AssignmentRow>> {
        self.assignment_rows("WHERE run = ?1 ORDER BY sequence", [run.to_string()])
    }

    /// The stage of a run that is on a worker or on its way to one.
    fn open_assignment(&self, run: RunId) -> Result<Option<AssignmentRow>> {
        let rows = self.assignment_rows("WHERE run = ?1 AND status IN ('SCHEDULED', 'CLAIMED')", [run.to_string()])?;
        Ok(rows.into_iter().next())
    }

    fn set_status(&self, assignment: AssignmentId, status: &str) -> Result<()> {
        self.tx.execute("UPDATE assignments SET status = ?2 WHERE id = ?1", params![assignment.to_string(), status])?;
        Ok(())
    }

    /// Brings a run into a state, which is to follow the one that it is in.
    fn enter(&self, run: RunId, state: RunState, message: &str) -> Result<()> {
        self.tx.execute(
            "UPDATE runs SET state = ?2, message = ?3 WHERE id = ?1",
            params![run.to_string(), word(&state), message],
        )?;
        self.tx.execute(
            "INSERT INTO history(run, at, state, message) VALUES(?1, ?2, ?3, ?4)",
            params![run.to_string(), self.now, word(&state), message],
        )?;
        Ok(())
    }
}

const RUN: &str = "id, stack, pool, type, state, stage, request, specification, archive, created, message, changes, \
                   stopping";
const ASSIGNMENT: &str = "id, run, stage, worker, status, created, claimed, report";

fn run_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        id: parsed(row, 0)?,
        stack: row.get(1)?,
        pool: parsed(row, 2)?,
        run_type: from_word(row, 3)?,
        state: from_word(row, 4)?,
        stage: from_word(row, 5)?,
        request: from_json(row, 6)?,
        specification: from_json(row, 7)?,
        archive: row.get(8)?,
        created: row.get(9)?,
        message: row.get(10)?,
        changes: row.get::<_, Option<String>>(11)?.and_then(|text| serde_json::from_str(&text).ok()),
        stopping: row.get(12)?,
    })
}

fn assignment_row(row: &Row<'_>) -> rusqlite::Result<AssignmentRow> {
    Ok(AssignmentRow {
        id: parsed(row, 0)?,
        run: parsed(row, 1)?,
        stage: from_word(row, 2)?,
        worker: parsed(row, 3)?,
        status: row.get(4)?,
        created: row.get(5)?,
        claimed: row.get(6)?,
        report: row.get(7)?,
    })
}

fn unreadable(index: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
}

fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    row.get::<_, String>(index)?.parse().map_err(|error| unreadable(index, error))
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    serde_json::from_str(&row.get::<_, String>(index)?).map_err(|error| unreadable(index, error))
}

/// One of the wire's words, such as `QUEUED`.
fn from_word<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    serde_json::from_value(row.get::<_, String>(index)?.into()).map_err(|error| unreadable(index, error))
}

pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => unreachable!("{other:?} is not a word"),
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("what the wire describes has a JSON form")
}

/// Milliseconds since 1970.
pub(crate) fn milliseconds() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since 1970, of a time in the database.
fn seconds(milliseconds: i64) -> u64 {
    u64::try_from(milliseconds / 1000).unwrap_or_default()
}
