//! The API for people: what it takes and gives, and a client for it.

mod client;

use std::collections::BTreeMap;

use launcher_wire::api::{Changes, Hooks, MountedFile, RunState, RunType, Source, Stage, Tool, Variable, Workflow};
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use serde::{Deserialize, Serialize};

pub use client::{Client, Error};

/// Asks for a pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreatePool {
    /// For people. None: the pool's identifier.
    #[serde(default)]
    pub name: Option<String>,
    /// The certificate request, in PEM.
    pub csr: String,
}

/// A certificate for a pool, and the token with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolCredentials {
    /// The pool.
    pub pool: PoolId,
    /// For people.
    pub name: String,
    /// The value of `SPACELIFT_TOKEN`.
    pub token: String,
    /// The certificate, in PEM. It is in the token, too.
    pub certificate: String,
}

/// A pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pool {
    /// Its identifier.
    pub id: PoolId,
    /// For people.
    pub name: String,
    /// Whether its workers are to take no runs.
    pub drained: bool,
    /// Workers that are there.
    pub workers: u64,
    /// Those of them that have a run.
    pub busy: u64,
    /// Runs that wait for one.
    pub queued: u64,
    /// Seconds since 1970.
    pub created: u64,
}

/// What a worker is seen as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkerStatus {
    /// It waits for a run.
    Idle,
    /// It has one.
    Busy,
    /// It takes no runs.
    Drained,
    /// It is not there.
    Offline,
}

/// A worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Worker {
    /// Its identifier.
    pub id: WorkerId,
    /// Its pool.
    pub pool: PoolId,
    /// What it is seen as.
    pub status: WorkerStatus,
    /// Whether somebody wishes that it takes no runs.
    pub drained: bool,
    /// The run that it has.
    #[serde(default)]
    pub run: Option<RunId>,
    /// The launcher's version.
    pub launcher_version: String,
    /// The version of the worker inside it.
    pub worker_version: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Its tags.
    pub metadata: BTreeMap<String, String>,
    /// When it registered last, in seconds since 1970.
    pub registered: u64,
    /// When it gave a sign of life last, in seconds since 1970.
    pub seen: u64,
}

/// What runs are made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stack {
    /// Its identifier: lower-case letters, digits, `-` and `_`.
    pub slug: String,
    /// For people. None: the slug.
    #[serde(default)]
    pub name: Option<String>,
    /// For policies.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The pool that does its runs.
    pub pool: PoolId,
    /// What changes the infrastructure.
    pub tool: Tool,
    /// The runner image. None: the launcher's default.
    #[serde(default)]
    pub image: Option<String>,
    /// Its variables.
    #[serde(default)]
    pub environment: Vec<Variable>,
    /// Its hooks.
    #[serde(default)]
    pub hooks: Hooks,
    /// Its mounted files.
    #[serde(default)]
    pub files: Vec<MountedFile>,
    /// The commands of a custom workflow.
    #[serde(default)]
    pub workflow: Option<Workflow>,
    /// The directory in the source in which the tool is run.
    #[serde(default)]
    pub project_root: String,
    /// Where the source comes from. An archive is uploaded on its own.
    #[serde(default = "no_source")]
    pub source: Source,
    /// The branch that it follows, for policies.
    #[serde(default)]
    pub branch: Option<String>,
    /// Whether plans are applied without somebody's confirmation.
    #[serde(default)]
    pub autodeploy: bool,
}

fn no_source() -> Source {
    Source::None {}
}

/// Asks for a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateRun {
    /// The slug.
    pub stack: String,
    /// What it does.
    #[serde(rename = "type", default = "tracked")]
    pub run_type: RunType,
    /// The command, of a task only.
    #[serde(default)]
    pub command: Option<String>,
    /// The commit. None: the one of the stack's source.
    #[serde(default)]
    pub commit: Option<String>,
    /// The commit's author, for policies.
    #[serde(default)]
    pub author: Option<String>,
    /// The commit's message, for policies.
    #[serde(default)]
    pub message: Option<String>,
    /// Whatever who starts the run wishes policies to see.
    #[serde(default)]
    pub user_provided_metadata: Vec<String>,
}

fn tracked() -> RunType {
    RunType::Tracked
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Its identifier.
    pub id: RunId,
    /// The slug.
    pub stack: String,
    /// Its pool.
    pub pool: PoolId,
    /// What it does.
    #[serde(rename = "type")]
    pub run_type: RunType,
    /// What it is in.
    pub state: RunState,
    /// The stage that it is in or waits for.
    pub stage: Stage,
    /// Why it ended as it did.
    #[serde(default)]
    pub message: String,
    /// What its plan would change.
    #[serde(default)]
    pub changes: Option<Changes>,
    /// The commit, or empty.
    #[serde(default)]
    pub commit: String,
    /// The worker that has it.
    #[serde(default)]
    pub worker: Option<WorkerId>,
    /// Whether somebody wishes it to end.
    #[serde(default)]
    pub stopping: bool,
    /// Seconds since 1970.
    pub created: u64,
    /// What it was in, the oldest first. Only where one run is asked for.
    #[serde(default)]
    pub history: Vec<Change>,
    /// Its stages so far. Only where one run is asked for.
    #[serde(default)]
    pub stages: Vec<StageOf>,
}

/// A change of state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Milliseconds since 1970.
    pub at: u64,
    /// Into which.
    pub state: RunState,
    /// Why, or empty.
    #[serde(default)]
    pub message: String,
}

/// One stage of a run on one worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageOf {
    /// Its identifier.
    pub assignment: AssignmentId,
    /// Which stage.
    pub stage: Stage,
    /// Which worker.
    pub worker: WorkerId,
    /// `SCHEDULED`, `CLAIMED`, `REPORTED`, `TAKEN_BACK` or `LOST`.
    pub status: String,
    /// What the worker reported.
    #[serde(default)]
    pub report: Option<launcher_wire::api::Report>,
}

/// What uses a pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsedBy {
    /// Slugs.
    pub stacks: Vec<String>,
    /// Runs that have not ended.
    pub runs: Vec<RunId>,
}

/// Part of a run's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPart {
    /// Bytes of it. They may begin or end within a character.
    pub bytes: Vec<u8>,
    /// Whether nothing will follow.
    pub complete: bool,
}

/// The header that says of a part of a log whether nothing will follow.
pub const LOG_COMPLETE: &str = "mothership-log-complete";
