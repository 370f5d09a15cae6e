//! What launchers ask for: registration, claims, states, objects, outcomes.

use axum::http::StatusCode;
use launcher_wire::api::{
    Changes, Claim, Job, MAXIMUM_METADATA, MAXIMUM_METADATA_LENGTH, Object, ObjectRequest, Operation, Outcome,
    Registered, Registration, Report, RunState, RunType, Source, Stage, StateChange,
};
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use launcher_wire::mqtt::WorkerState;
use rusqlite::{OptionalExtension as _, params};
use serde_json::{Map, Value};

use super::{AssignmentRow, CLAIMED, Decision, REPORTED, RunRow, SCHEDULED, json, seconds, word};
use crate::objects::{Key, log_prefix};
use crate::refusal::{Refusal, Result};

/// The largest number of a log's object: its name has eight digits.
const MAXIMUM_CHUNKS: u64 = 100_000_000;

/// What a worker may do with an object.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) key: Key,
    pub(crate) operation: Operation,
}

/// What a report is, before the log has been looked at.
#[derive(Debug)]
pub(crate) enum Reported {
    /// It came before.
    Before,
    /// It is new; the objects of its log begin with this.
    Log(String),
}

impl Decision<'_> {
    /// The certificate of a pool, in PEM.
    pub(crate) fn certificate(&self, pool: PoolId) -> Result<Option<String>> {
        let found =
            self.tx.query_row("SELECT certificate FROM pools WHERE id = ?1", [pool.to_string()], |row| row.get(0));
        Ok(found.optional()?)
    }

    /// Remembers a nonce until then. Gives whether it is new.
    pub(crate) fn nonce(&self, pool: PoolId, nonce: &str, until: i64) -> Result<bool> {
        let inserted = self.tx.execute(
            "INSERT OR IGNORE INTO nonces(pool, nonce, until) VALUES(?1, ?2, ?3)",
            params![pool.to_string(), nonce, until],
        )?;
        Ok(inserted == 1)
    }

    /// A worker is there.
    pub(crate) fn register(&self, pool: PoolId, worker: WorkerId, registration: &Registration) -> Result<Registered> {
        let metadata = &registration.metadata;
        let too_long = |text: &String| text.len() > MAXIMUM_METADATA_LENGTH;
        if metadata.len() > MAXIMUM_METADATA || metadata.iter().any(|(name, value)| too_long(name) || too_long(value)) {
            return Err(Refusal::invalid(format!(
                "a worker has at most {MAXIMUM_METADATA} tags of at most {MAXIMUM_METADATA_LENGTH} bytes. Set fewer or \
                 shorter SPACELIFT_METADATA_ variables"
            )));
        }
        let owner: Option<String> = self
            .tx
            .query_row("SELECT pool FROM workers WHERE id = ?1", [worker.to_string()], |row| row.get(0))
            .optional()?;
        if owner.is_some_and(|owner| owner != pool.to_string()) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, format!("the worker {worker} is another pool's")));
        }
        self.tx.execute(
            "INSERT INTO workers(id, pool, registration, state, online, registered, seen) VALUES(?1, ?2, ?3, ?4, 1, ?5, ?5)
             ON CONFLICT(id) DO UPDATE SET registration = excluded.registration, state = excluded.state, online = 1,
               heard = 0, gone = 0, cycling = 0, registered = excluded.registered, seen = excluded.seen",
            params![worker.to_string(), pool.to_string(), json(registration), json(&registration.state), self.now],
        )?;
        // It began anew: what it was told before, it may not have heard.
        if registration.state == WorkerState::Drained {
            self.release(worker)?;
        }
        let drained = self.tx.query_row(
            "SELECT w.drained OR p.drained FROM workers w JOIN pools p ON p.id = w.pool WHERE w.id = ?1",
            [worker.to_string()],
            |row| row.get(0),
        )?;
        Ok(Registered { heartbeat: seconds(self.timing.heartbeat).max(1), drained })
    }

    /// A worker will not come back.
    pub(crate) fn deregister(&self, worker: WorkerId) -> Result<()> {
        self.tx.execute("UPDATE workers SET online = 0, gone = 1 WHERE id = ?1", [worker.to_string()])?;
        self.release(worker)
    }

    /// Refuses a worker that is not registered; for one that is, the request is a sign of life.
    pub(crate) fn expect_worker(&self, pool: PoolId, worker: WorkerId) -> Result<()> {
        let seen = self.tx.execute(
            "UPDATE workers SET seen = ?3 WHERE id = ?1 AND pool = ?2 AND gone = 0",
            params![worker.to_string(), pool.to_string(), self.now],
        )?;
        if seen == 1 {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("the worker {worker} is not registered in this pool. Start the launcher anew"),
        ))
    }

    /// A run of the pool. Those of others are as if they were not there.
    pub(crate) fn own_run(&self, pool: PoolId, run: RunId) -> Result<RunRow> {
        let found = self.run_row(run)?;
        if found.pool == pool { Ok(found) } else { Err(Refusal::not_found(format!("there is no run {run}"))) }
    }

    /// Gives the run to the worker, once or, if the answer was lost, again.
    pub(crate) fn claim(&self, pool: PoolId, worker: WorkerId, run: RunId, claim: &Claim) -> Result<Job> {
        let run = self.own_run(pool, run)?;
        let assignment = self.own_assignment(&run, worker, claim.assignment)?;
        let claimed = match (assignment.status.as_str(), assignment.claimed) {
            (SCHEDULED, _) => {
                self.tx.execute(
                    "UPDATE assignments SET status = 'CLAIMED', claimed = ?2 WHERE id = ?1",
                    params![assignment.id.to_string(), self.now],
                )?;
                let state = WorkerState::Busy { run: run.id, assignment: assignment.id };
                self.tx.execute(
                    "UPDATE workers SET state = ?2 WHERE id = ?1",
                    params![worker.to_string(), json(&state)],
                )?;
                self.now
            }
            (CLAIMED, Some(claimed)) => claimed,
            _ => return Err(not_yours(run.id, assignment.id)),
        };
        Ok(job(&run, &assignment, claimed))
    }

    fn own_assignment(&self, run: &RunRow, worker: WorkerId, assignment: AssignmentId) -> Result<AssignmentRow> {
        let found = self.stages(run.id)?.into_iter().find(|row| row.id == assignment && row.worker == worker);
        found.ok_or_else(|| not_yours(run.id, assignment))
    }

    fn claimed_assignment(&self, run: &RunRow, worker: WorkerId, assignment: AssignmentId) -> Result<AssignmentRow> {
        let found = self.own_assignment(run, worker, assignment)?;
        if found.status == CLAIMED {
            self.tx.execute("UPDATE assignments SET missed = NULL WHERE id = ?1", [assignment.to_string()])?;
            Ok(found)
        } else {
            Err(not_yours(run.id, assignment))
        }
    }

    /// A worker says what a run is in.
    pub(crate) fn change_state(&self, pool: PoolId, worker: WorkerId, run: RunId, change: &StateChange) -> Result<()> {
        let run = self.own_run(pool, run)?;
        let assignment = self.claimed_assignment(&run, worker, change.assignment)?;
        let order = states(assignment.stage);
        let place = |state: RunState| order.iter().position(|other| *other == state);
        let Some(next) = place(change.state) else {
            return Err(Refusal::invalid(format!(
                "a run in stage {} does not enter {}",
                word(&assignment.stage),
                word(&change.state)
            )));
        };
        match place(run.state) {
            Some(present) if next == present => Ok(()),
            Some(present) if next < present => Err(Refusal::conflict(format!(
                "run {} is in {}; it does not go back to {}",
                run.id,
                word(&run.state),
                word(&change.state)
            ))),
            _ => self.enter(run.id, change.state, ""),
        }
    }

    /// What a worker may do in the object store.
    pub(crate) fn object(&self, pool: PoolId, worker: WorkerId, run: RunId, request: &ObjectRequest) -> Result<Grant> {
        let run = self.own_run(pool, run)?;
        let assignment = self.claimed_assignment(&run, worker, request.assignment)?;
        let keeps = keeps_workspace(run.run_type, assignment.stage);
        let key = match (request.object, request.operation) {
            (Object::Log { number }, Operation::Put) if number < MAXIMUM_CHUNKS => {
                Key::log(&log_prefix(pool, run.id, assignment.id), number)
            }
            (Object::Log { number }, Operation::Put) => {
                return Err(Refusal::invalid(format!(
                    "a log has at most {MAXIMUM_CHUNKS} objects; {number} is beyond the last"
                )));
            }
            (Object::Workspace, Operation::Put) if keeps => Key::workspace(pool, run.id),
            (Object::Workspace, Operation::Get) if assignment.stage == Stage::Apply => Key::workspace(pool, run.id),
            (Object::Outputs, Operation::Put) => Key::outputs(pool, run.id),
            (Object::Source, Operation::Get) => match (&run.specification.source, &run.archive) {
                (Source::Archive {}, Some(archive)) => Key::source(pool, archive),
                _ => return Err(Refusal::not_found(format!("run {} has no source archive", run.id))),
            },
            (object, operation) => {
                let stage = word(&assignment.stage);
                let message = format!("stage {stage} has no permission for {} of {object:?}", word(&operation));
                return Err(Refusal::new(StatusCode::FORBIDDEN, message));
            }
        };
        Ok(Grant { key, operation: request.operation })
    }

    /// Whether a report is to be looked at.
    pub(crate) fn check_report(&self, pool: PoolId, worker: WorkerId, run: RunId, report: &Report) -> Result<Reported> {
        let run = self.own_run(pool, run)?;
        let assignment = self.own_assignment(&run, worker, report.assignment)?;
        if assignment.status == REPORTED {
            return if assignment.report == Some(json(report)) {
                Ok(Reported::Before)
            } else {
                Err(Refusal::conflict(format!("another report of assignment {} came before", assignment.id)))
            };
        }
        if assignment.status != CLAIMED {
            return Err(not_yours(run.id, assignment.id));
        }
        if report.log.chunks > MAXIMUM_CHUNKS {
            return Err(Refusal::invalid(format!("a log has at most {MAXIMUM_CHUNKS} objects")));
        }
        Ok(Reported::Log(log_prefix(pool, run.id, assignment.id)))
    }

    /// Takes a report whose log is complete, and draws the conclusion.
    pub(crate) fn take_report(&self, pool: PoolId, worker: WorkerId, run: RunId, report: &Report) -> Result<()> {
        // Once more: the log was read in between.
        if matches!(self.check_report(pool, worker, run, report)?, Reported::Before) {
            return Ok(());
        }
        self.tx.execute(
            "UPDATE assignments SET status = 'REPORTED', report = ?2 WHERE id = ?1",
            params![report.assignment.to_string(), json(report)],
        )?;
        let busy = json(&WorkerState::Busy { run, assignment: report.assignment });
        self.tx.execute(
            "UPDATE workers SET state = ?3 WHERE id = ?1 AND state = ?2",
            params![worker.to_string(), busy, json(&WorkerState::Idle)],
        )?;
        let run = self.run_row(run)?;
        let stage = run.stage;
        if stage == Stage::Plan {
            let changes = report.changes.as_ref().map(json);
            self.tx.execute("UPDATE runs SET changes = ?2 WHERE id = ?1", params![run.id.to_string(), changes])?;
        }
        let (state, message) = conclusion(&run, report);
        self.enter(run.id, state, &message)?;
        if state == RunState::Unconfirmed && run.specification.autodeploy {
            self.confirm_run(run.id, "the stack is deployed automatically")?;
        }
        if state.is_terminal() {
            self.tx.execute("UPDATE runs SET stopping = 0 WHERE id = ?1", [run.id.to_string()])?;
        }
        Ok(())
    }

    /// The plan is to be applied.
    pub(super) fn confirm_run(&self, run: RunId, message: &str) -> Result<()> {
        self.tx.execute("UPDATE runs SET stage = ?2 WHERE id = ?1", params![run.to_string(), word(&Stage::Apply)])?;
        self.enter(run, RunState::Confirmed, message)
    }
}

fn not_yours(run: RunId, assignment: AssignmentId) -> Refusal {
    Refusal::conflict(format!("assignment {assignment} of run {run} is not this worker's, or not any more"))
}

/// What a run enters in a stage, in this order. Some may be left out.
fn states(stage: Stage) -> &'static [RunState] {
    use RunState::{Applying, Destroying, Initializing, Performing, Planning, Preparing, PreparingApply};
    match stage {
        Stage::Plan => &[Preparing, Initializing, Planning],
        Stage::Apply => &[PreparingApply, Applying],
        Stage::Task => &[Preparing, Initializing, Performing],
        Stage::Test => &[Preparing, Initializing, Planning, Applying, Destroying],
        Stage::Destroy => &[Preparing, Initializing, Destroying],
    }
}

fn keeps_workspace(run_type: RunType, stage: Stage) -> bool {
    (run_type, stage) == (RunType::Tracked, Stage::Plan)
}

/// What a run is in after a report.
fn conclusion(run: &RunRow, report: &Report) -> (RunState, String) {
    let nothing = Some(Changes::default());
    let failed = |reason: &str| {
        let message = if report.message.is_empty() { reason } else { &report.message };
        (RunState::Failed, message.to_owned())
    };
    match report.outcome {
        Outcome::Finished if !keeps_workspace(run.run_type, run.stage) => (RunState::Finished, report.message.clone()),
        Outcome::Finished if run.stopping => (RunState::Stopped, "stopped after the plan".to_owned()),
        Outcome::Finished if report.changes == nothing => (RunState::Finished, "there is nothing to change".to_owned()),
        Outcome::Finished if !report.workspace => {
            (RunState::Failed, "the plan ended well, but the worker stored no workspace to apply it from".to_owned())
        }
        Outcome::Finished => (RunState::Unconfirmed, report.message.clone()),
        Outcome::StoppedByUser | Outcome::RunTimeout | Outcome::LogsTimeout => {
            (RunState::Stopped, report.message.clone())
        }
        Outcome::Failed => failed("a command failed"),
        Outcome::Denied => failed("the initialization policy denied it"),
        Outcome::Unable => failed("the worker could not do it"),
        Outcome::Shutdown => failed("the launcher was told to end"),
        Outcome::SpotInterruption => failed("the host was taken away"),
        Outcome::OutOfMemory => failed("memory ran out"),
        Outcome::ContainerLost => failed("the container went away"),
        Outcome::LauncherLost => failed("the launcher ended without a word"),
        Outcome::LogLimit => failed("more log was made than could be delivered"),
    }
}

fn job(run: &RunRow, assignment: &AssignmentRow, claimed: i64) -> Job {
    let stack = &run.specification;
    let commit = commit(run);
    let source = match &stack.source {
        Source::Git { url, reference, .. } => {
            Source::Git { url: url.clone(), commit: commit.clone(), reference: reference.clone() }
        }
        other => other.clone(),
    };
    Job {
        run: run.id,
        assignment: assignment.id,
        run_type: run.run_type,
        stage: assignment.stage,
        stack_id: run.stack.clone(),
        commit,
        image: stack.image.clone(),
        tool: stack.tool,
        command: run.request.command.clone(),
        source,
        // It is stored under its digest.
        source_sha256: run.archive.clone().filter(|_| stack.source == Source::Archive {}),
        project_root: stack.project_root.clone(),
        environment: stack.environment.clone(),
        files: stack.files.clone(),
        hooks: stack.hooks.clone(),
        workflow: stack.workflow.clone(),
        restore_workspace: assignment.stage == Stage::Apply,
        keep_workspace: keeps_workspace(run.run_type, assignment.stage),
        policy_input: policy_input(run, assignment.stage, claimed),
    }
}

/// The commit of a run, or of its stack's source.
pub(super) fn commit(run: &RunRow) -> String {
    match (&run.request.commit, &run.specification.source) {
        (Some(commit), _) => commit.clone(),
        (None, Source::Git { commit, .. }) => commit.clone(),
        _ => String::new(),
    }
}

/// The part of the documented input of initialization policies that the launcher does not know by itself.
fn policy_input(run: &RunRow, stage: Stage, claimed: i64) -> Map<String, Value> {
    let (stack, request) = (&run.specification, &run.request);
    let branch = stack.branch.clone().unwrap_or_default();
    let commit = serde_json::json!({
        "author": request.author.clone().unwrap_or_default(),
        "branch": branch,
        "created_at": nanoseconds(run.created),
        "hash": commit(run),
        "message": request.message.clone().unwrap_or_default(),
    });
    let state = states(stage)[0];
    let value = serde_json::json!({
        "commit": commit,
        "request": { "timestamp_ns": nanoseconds(claimed) },
        "run": {
            "id": run.id,
            "based_on_local_workspace": false,
            "branch": branch,
            "changes": [],
            "commit": commit,
            "created_at": nanoseconds(run.created),
            "flags": [],
            "runtime_config": {
                "before_init": stack.hooks.before_init,
                "after_init": stack.hooks.after_init,
                "environment": {},
                "project_root": stack.project_root,
                "runner_image": stack.image.clone().unwrap_or_default(),
                "terraform_version": "",
            },
            "state": state,
            "triggered_by": "admin",
            "type": word(&run.run_type).to_uppercase(),
            "updated_at": nanoseconds(claimed),
            "user_provided_metadata": request.user_provided_metadata,
        },
        "stack": {
            "administrative": false,
            "autodeploy": stack.autodeploy,
            "branch": branch,
            "id": stack.slug,
            "labels": stack.labels,
            "locked_by": null,
            "name": stack.name.clone().unwrap_or_else(|| stack.slug.clone()),
            "namespace": "",
            "project_root": stack.project_root,
            "repository": match &stack.source { Source::Git { url, .. } => url.as_str(), _ => "" },
            "state": state,
            "terraform_version": "",
            "worker_pool": run.pool,
        },
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn nanoseconds(milliseconds: i64) -> i64 {
    milliseconds.saturating_mul(1_000_000)
}
