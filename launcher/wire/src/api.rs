//! The API between launcher and control plane: JSON over HTTPS, each request signed as [`crate::signature`] has it.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `PUT /v1/workers/{worker}` | [`Registration`] | [`Registered`] |
//! | `DELETE /v1/workers/{worker}` | none | 204: it exits and will not come back under this identifier |
//! | `POST /v1/runs/{run}/claim` | [`Claim`] | [`Job`], or 409: it is not this worker's any more |
//! | `POST /v1/runs/{run}/state` | [`StateChange`] | 204, or 409 |
//! | `POST /v1/runs/{run}/object` | [`ObjectRequest`] | [`Presigned`], or 409 |
//! | `POST /v1/runs/{run}/outcome` | [`Report`] | 204, also when the same report comes again; 409 if another one came before |
//!
//! Every refusal is a [`Problem`]. 401: the signature. 403: the pool may not. 404: there is no such thing in this pool. 409:
//! see above; the worker drops the run. 413: too large. 422: not as described here. 429 and 5xx: try again later.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AssignmentId, RunId};
use crate::mqtt::WorkerState;

/// Bytes of the largest body of a request or an answer. A job with its mounted files is the largest of them.
pub const MAXIMUM_BODY: usize = 16 * 1024 * 1024;
/// Tags that a worker may register with.
pub const MAXIMUM_METADATA: usize = 64;
/// Bytes of a tag's name or value.
pub const MAXIMUM_METADATA_LENGTH: usize = 1024;

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The launcher's version, such as `0.1.0`.
    pub launcher_version: String,
    /// The version of the worker inside it.
    pub worker_version: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// The tags, from `SPACELIFT_METADATA_*`.
    pub metadata: BTreeMap<String, String>,
    /// What it does.
    pub state: WorkerState,
}

/// What the control plane answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Seconds between two signs of life over MQTT.
    pub heartbeat: u64,
    /// Whether it is to take runs. A pool or a worker that was drained stays so over restarts.
    pub drained: bool,
}

/// Takes a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// As it was scheduled.
    pub assignment: AssignmentId,
}

/// What a run does with what it manages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunType {
    /// A preview. It changes nothing: a *read-only* run.
    Proposed,
    /// Plans and applies: a *write-only* run.
    Tracked,
    /// One command: a *write-only* run.
    Task,
    /// Tests a module: plans, applies, and always destroys. A *write-only* run.
    Testing,
    /// Destroys what a stack manages: a *write-only* run.
    Destroy,
}

impl RunType {
    /// Whether it is a read-only run, as mounts and variables distinguish them.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        self == Self::Proposed
    }
}

/// The part of a run that one container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Stage {
    /// PREPARING, INITIALIZING, PLANNING.
    Plan,
    /// PREPARING_APPLY, APPLYING: with the workspace that the plan left.
    Apply,
    /// PREPARING, INITIALIZING, PERFORMING.
    Task,
    /// PREPARING, INITIALIZING, PLANNING, APPLYING, and DESTROYING whatever happened before.
    Test,
    /// PREPARING, INITIALIZING, DESTROYING.
    Destroy,
}

/// What a run is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunState {
    /// It waits for a worker.
    Queued,
    /// A worker makes a container for it.
    Preparing,
    /// The tool is made ready.
    Initializing,
    /// The tool says what it would change.
    Planning,
    /// It waits for somebody to look at the plan.
    Unconfirmed,
    /// Somebody agreed. It waits for a worker.
    Confirmed,
    /// A worker makes a container for the second stage.
    PreparingApply,
    /// The tool changes.
    Applying,
    /// A task's command is executed.
    Performing,
    /// The tool destroys.
    Destroying,
    /// Ended well.
    Finished,
    /// Ended badly.
    Failed,
    /// Somebody, or a limit, ended it.
    Stopped,
    /// Somebody did not agree with the plan.
    Discarded,
    /// Ended before any worker had it.
    Canceled,
    /// There was nothing to do.
    Skipped,
}

impl RunState {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Stopped | Self::Discarded | Self::Canceled | Self::Skipped)
    }
}

/// All that a worker needs for one stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The run.
    pub run: RunId,
    /// This stage of it, on this worker.
    pub assignment: AssignmentId,
    /// What the run does.
    pub run_type: RunType,
    /// What this container does.
    pub stage: Stage,
    /// The stack's slug.
    pub stack_id: String,
    /// The commit, or empty.
    #[serde(default)]
    pub commit: String,
    /// The runner image. None: the launcher's default.
    #[serde(default)]
    pub image: Option<String>,
    /// Which tool, with what it needs.
    pub tool: Tool,
    /// The command of a task.
    #[serde(default)]
    pub command: Option<String>,
    /// Where the source comes from.
    pub source: Source,
    /// SHA-256 of an archive, in hexadecimal: whoever can write to the object store cannot choose what is executed.
    #[serde(default)]
    pub source_sha256: Option<String>,
    /// The directory in the source in which the tool is run. Empty: its top.
    #[serde(default)]
    pub project_root: String,
    /// The stack's variables.
    #[serde(default)]
    pub environment: Vec<Variable>,
    /// Files to be mounted.
    #[serde(default)]
    pub files: Vec<MountedFile>,
    /// The stack's hooks.
    #[serde(default)]
    pub hooks: Hooks,
    /// The commands of a workflow that the control plane defines; `.spacelift/workflow.yml` in the source goes before.
    #[serde(default)]
    pub workflow: Option<Workflow>,
    /// Whether a workspace that an earlier stage left is to be restored.
    #[serde(default)]
    pub restore_workspace: bool,
    /// Whether the workspace is to be kept for a later stage.
    #[serde(default)]
    pub keep_workspace: bool,
    /// What the initialization policy sees besides what the launcher knows: the documented `run`, `stack`, `commit` and
    /// `request`.
    #[serde(default)]
    pub policy_input: serde_json::Map<String, serde_json::Value>,
}

/// What changes the infrastructure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// The program `terraform`.
    Terraform,
    /// The program `tofu`.
    OpenTofu,
    /// Ansible: the commands of a workflow, in a runner image that has it.
    Ansible,
    /// The commands of a workflow.
    Custom,
}

/// Where source comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// There is none: an empty directory.
    None {},
    /// A gzipped tar archive in the object store, under [`Object::Source`].
    Archive {},
    /// A Git repository.
    Git {
        /// Its address. Its beginning is replaced where the launcher has a mapping for a private VCS.
        url: String,
        /// The commit to check out.
        commit: String,
        /// A branch or tag that has the commit; helps where servers give no single commits.
        #[serde(default)]
        reference: Option<String>,
    },
}

/// A variable for the run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value; `${NAME}` in it is expanded on the worker.
    pub value: String,
    /// Whether its value is masked in logs.
    #[serde(default)]
    pub secret: bool,
}

/// A file for the run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedFile {
    /// Below `/mnt/workspace`, such as `source/terraform.tfvars`.
    pub path: String,
    /// Base64 of its bytes.
    pub contents: String,
    /// Whether its lines are masked in logs.
    #[serde(default)]
    pub secret: bool,
    /// Permissions. None: 0600.
    #[serde(default)]
    pub mode: Option<u32>,
}

/// Shell commands around the phases, in the order in which they are to be executed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names say it: the product's documented hooks")]
pub struct Hooks {
    pub before_init: Vec<String>,
    pub after_init: Vec<String>,
    pub before_plan: Vec<String>,
    pub after_plan: Vec<String>,
    pub before_apply: Vec<String>,
    pub after_apply: Vec<String>,
    pub before_perform: Vec<String>,
    pub after_perform: Vec<String>,
    pub before_destroy: Vec<String>,
    pub after_destroy: Vec<String>,
    pub after_run: Vec<String>,
}

/// The commands of a custom workflow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names say it: the phases")]
pub struct Workflow {
    pub init: Option<String>,
    pub plan: Option<String>,
    pub apply: Option<String>,
    pub destroy: Option<String>,
    pub output: Option<String>,
}

/// Says that a run is in a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// Which stage.
    pub assignment: AssignmentId,
    /// What it is in now. Repeating is harmless; going back is refused.
    pub state: RunState,
}

/// Asks for an address in the object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRequest {
    /// Which stage asks.
    pub assignment: AssignmentId,
    /// What for.
    pub object: Object,
    /// To do what.
    pub operation: Operation,
}

/// What the object store has of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Object {
    /// A part of the log. Plain text.
    Log {
        /// Its place, from 0 on.
        number: u64,
    },
    /// The workspace between two stages: an `age` file to the pool's key. In it a tar archive, compressed with gzip.
    Workspace,
    /// The outputs: an `age` file to the pool's key. In it JSON.
    Outputs,
    /// The source, as the control plane put it there.
    Source,
}

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Operation {
    /// Fetch it.
    Get,
    /// Put it there. An object of the same name is replaced.
    Put,
}

/// An address that needs no further permission for a while.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presigned {
    /// Where. A secret: whoever has it may do it.
    pub url: String,
    /// Headers that belong to the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Until when, in seconds since 1970.
    pub expires: u64,
}

/// How a stage ended, said once its log is in the object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which stage.
    pub assignment: AssignmentId,
    /// How it ended.
    pub outcome: Outcome,
    /// For people: why, in one line. Empty if it ended well.
    #[serde(default)]
    pub message: String,
    /// Whether the plan has changes. None: the tool does not say.
    #[serde(default)]
    pub changes: Option<Changes>,
    /// What the log is, so that the control plane can tell that nothing is missing.
    pub log: LogSummary,
    /// Whether a workspace was stored.
    #[serde(default)]
    pub workspace: bool,
    /// Whether outputs were stored.
    #[serde(default)]
    pub outputs: bool,
}

/// What a plan would change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Resources to make.
    pub add: u64,
    /// Resources to change.
    pub change: u64,
    /// Resources to destroy.
    pub destroy: u64,
}

/// What a log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSummary {
    /// Objects.
    pub chunks: u64,
    /// Line breaks.
    pub lines: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of all bytes, in hexadecimal.
    pub sha256: String,
}

impl LogSummary {
    /// Of a log without anything in it.
    #[must_use]
    pub fn empty() -> Self {
        // SHA-256 of nothing.
        let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned();
        Self { chunks: 0, lines: 0, bytes: 0, sha256 }
    }
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Finished,
    /// A command of it failed.
    Failed,
    /// The initialization policy denied it.
    Denied,
    /// The worker could not do it: an image that cannot be pulled, a workspace that cannot be read, and the like.
    Unable,
    /// Somebody stopped it.
    StoppedByUser,
    /// It took longer than a run may.
    RunTimeout,
    /// It logged nothing for longer than a run may.
    LogsTimeout,
    /// The launcher was told to end at once.
    Shutdown,
    /// The host is being taken away.
    SpotInterruption,
    /// Memory ran out.
    OutOfMemory,
    /// The container went away.
    ContainerLost,
    /// The launcher ended without a word, and the container is gone.
    LauncherLost,
    /// More log was made than could be delivered.
    LogLimit,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// For people, in one line.
    pub message: String,
}

macro_rules! redacted {
    ($name:ident, $($shown:ident),*) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    };
}
redacted!(Variable, name, secret);
redacted!(MountedFile, path, secret);
redacted!(Presigned, expires);
