//! What launcher and worker say to each other: gRPC over a Unix socket, service `spacelift.worker.v1.Launcher`.
//!
//! The launcher listens at [`SOCKET`] as the container sees it; the worker connects. Messages are Protocol Buffers, so a
//! newer peer may add fields. What is secret is only ever in here: not in the container's environment, arguments or labels.
//!
//! Every call but the first one shows the [`Job`]'s `session` in the header [`SESSION`]: the job's own processes see the socket
//! too, and are nobody.
//!
//! - `Session`: one stream in each direction for as long as the worker lives. The worker begins with [`Hello`], the launcher
//!   answers with [`Welcome`]. Everything else that the worker says has a sequence number, from 1 on without gaps. The
//!   launcher acknowledges what it has on disk, and the worker keeps what is not acknowledged. When the connection breaks, the
//!   worker connects again and repeats from the number after the one in [`Welcome`]: so nothing is lost or doubled, also when
//!   the launcher was restarted in between.
//! - `Download`: the source, or the workspace that an earlier stage left, as a gzipped tar archive in parts.
//! - `Upload`: the workspace for a later stage, or outputs. The launcher encrypts and stores it before it answers.

use std::fmt;

/// Client and server, written by build.rs.
#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/spacelift.worker.v1.Launcher.rs"));
}

/// The version of the protocol that this side speaks. Both sides are of one build, so another one is a mistake.
pub const VERSION: u32 = 1;
/// Where the worker is in the container.
pub const WORKER: &str = "/mnt/spacelift/spacelift-worker";
/// The launcher's socket in the container.
pub const SOCKET: &str = "/mnt/spacelift/socket/launcher.sock";
/// The header of calls that shows that the worker makes them.
pub const SESSION: &str = "x-spacelift-session";
/// The workspace in the container.
pub const WORKSPACE: &str = "/mnt/workspace";
/// Bytes of a message. Only a [`Job`] with its files comes near.
pub const MAXIMUM_MESSAGE: usize = 24 * 1024 * 1024;
/// Bytes of one part of the log, an archive or outputs.
pub const MAXIMUM_PART: usize = 64 * 1024;
/// Bytes of a message from the worker. The largest have a part and little else.
pub const MAXIMUM_FROM_WORKER: usize = 256 * 1024;
/// Messages that a worker may have sent without an acknowledgement; it stops reading from the job's output until there is
/// one.
pub const MAXIMUM_UNACKNOWLEDGED: usize = 256;

/// From the worker.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromWorker {
    /// Its place, from 1 on. 0 in [`Hello`].
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// What it says.
    #[prost(oneof = "from_worker::Body", tags = "2, 3, 4, 5")]
    pub body: Option<from_worker::Body>,
}

/// What a worker says.
pub mod from_worker {
    /// See [`super::FromWorker`].
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// First, at each connection.
        #[prost(message, tag = "2")]
        Hello(super::Hello),
        /// Log: at most [`super::MAXIMUM_PART`] bytes, secrets masked. Lines may be cut anywhere.
        #[prost(bytes, tag = "3")]
        Log(Vec<u8>),
        /// A phase began: a value of [`super::Phase`].
        #[prost(enumeration = "super::Phase", tag = "4")]
        Phase(i32),
        /// The end. The worker exits when it is acknowledged.
        #[prost(message, tag = "5")]
        Outcome(super::Outcome),
    }
}

/// Who connects.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// The worker's version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Whether it has its job already: it connects again.
    #[prost(bool, tag = "3")]
    pub has_job: bool,
}

/// A phase of a run, as its states are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// No phase.
    Unspecified = 0,
    /// Source, workspace and files are put in place.
    Preparing = 1,
    /// The tool is made ready.
    Initializing = 2,
    /// The tool says what it would change.
    Planning = 3,
    /// The tool changes.
    Applying = 4,
    /// A task's command is executed.
    Performing = 5,
    /// The tool destroys.
    Destroying = 6,
}

/// How it ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Outcome {
    /// A value of [`Result`].
    #[prost(enumeration = "Result", tag = "1")]
    pub result: i32,
    /// For people, in one line: why it failed.
    #[prost(string, tag = "2")]
    pub message: String,
    /// What the plan would change, if the tool says.
    #[prost(message, optional, tag = "3")]
    pub changes: Option<Changes>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Result {
    /// Never sent.
    Unspecified = 0,
    /// Well.
    Finished = 1,
    /// A command failed.
    Failed = 2,
    /// It ended because the launcher said [`Stop`].
    Stopped = 3,
    /// The worker could not begin: no shell in the image, a source or a workspace that cannot be unpacked.
    Unable = 4,
}

/// What a plan would change.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Changes {
    /// Resources to make.
    #[prost(uint64, tag = "1")]
    pub add: u64,
    /// Resources to change.
    #[prost(uint64, tag = "2")]
    pub change: u64,
    /// Resources to destroy.
    #[prost(uint64, tag = "3")]
    pub destroy: u64,
}

/// From the launcher.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToWorker {
    /// What it says.
    #[prost(oneof = "to_worker::Body", tags = "1, 2, 3")]
    pub body: Option<to_worker::Body>,
}

/// What a launcher says.
pub mod to_worker {
    /// See [`super::ToWorker`].
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// First, at each connection.
        #[prost(message, tag = "1")]
        Welcome(super::Welcome),
        /// Everything up to this sequence number is on the launcher's disk.
        #[prost(uint64, tag = "2")]
        Acknowledged(u64),
        /// End what is being executed.
        #[prost(message, tag = "3")]
        Stop(super::Stop),
    }
}

/// The answer to [`Hello`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The last sequence number that the launcher has.
    #[prost(uint64, tag = "1")]
    pub acknowledged: u64,
    /// What to do, for a worker that has no job yet.
    #[prost(message, optional, boxed, tag = "2")]
    pub job: Option<Box<Job>>,
}

/// End what is being executed: SIGTERM to it, and SIGKILL when the time is over. `after_run` is executed all the same.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stop {
    /// Milliseconds between the two.
    #[prost(uint64, tag = "1")]
    pub grace: u64,
    /// For the log, in one line: why.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// What to do.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Job {
    /// The run.
    #[prost(string, tag = "1")]
    pub run: String,
    /// A value of [`Stage`].
    #[prost(enumeration = "Stage", tag = "2")]
    pub stage: i32,
    /// A value of [`Tool`].
    #[prost(enumeration = "Tool", tag = "3")]
    pub tool: i32,
    /// A task's command.
    #[prost(string, optional, tag = "4")]
    pub command: Option<String>,
    /// A value of [`SourceKind`].
    #[prost(enumeration = "SourceKind", tag = "5")]
    pub source: i32,
    /// For [`SourceKind::Git`].
    #[prost(message, optional, tag = "6")]
    pub git: Option<Git>,
    /// The directory in the source in which the tool is run. Empty: its top.
    #[prost(string, tag = "7")]
    pub project_root: String,
    /// Variables, in order: a later one of the same name wins, and `${NAME}` sees all of them.
    #[prost(message, repeated, tag = "8")]
    pub environment: Vec<Variable>,
    /// Files to be put below [`WORKSPACE`] after the source.
    #[prost(message, repeated, tag = "9")]
    pub files: Vec<File>,
    /// The stack's hooks.
    #[prost(message, optional, tag = "10")]
    pub hooks: Option<Hooks>,
    /// The control plane's workflow.
    #[prost(message, optional, tag = "11")]
    pub workflow: Option<Workflow>,
    /// Whether to download and unpack the workspace of an earlier stage, instead of the source.
    #[prost(bool, tag = "12")]
    pub restore_workspace: bool,
    /// Whether to pack and upload the workspace at the end, if it went well.
    #[prost(bool, tag = "13")]
    pub keep_workspace: bool,
    /// Names of variables whose values are masked, besides those marked as secret.
    #[prost(string, repeated, tag = "14")]
    pub mask: Vec<String>,
    /// Values that are masked although they are in no variable.
    #[prost(string, repeated, tag = "15")]
    pub mask_values: Vec<String>,
    /// Whether the exact commands are written into the log.
    #[prost(bool, tag = "16")]
    pub debug: bool,
    /// Whether outputs that the tool calls sensitive are uploaded too.
    #[prost(bool, tag = "17")]
    pub sensitive_outputs: bool,
    /// The stack's slug.
    #[prost(string, tag = "18")]
    pub stack_id: String,
    /// The commit, or empty.
    #[prost(string, tag = "19")]
    pub commit: String,
    /// `proposed`, `tracked`, `task`, `testing` or `destroy`.
    #[prost(string, tag = "20")]
    pub run_type: String,
    /// What the worker shows in the header [`SESSION`] from now on, and never gives away: visible ASCII.
    #[prost(string, tag = "21")]
    pub session: String,
}

// Variables and files hold secrets.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("run", &self.run).field("stage", &self.stage()).finish_non_exhaustive()
    }
}

/// What one container does of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    /// Never sent.
    Unspecified = 0,
    /// Preparing, initializing, planning.
    Plan = 1,
    /// Preparing, applying what was planned.
    Apply = 2,
    /// Preparing, initializing, performing.
    Task = 3,
    /// Preparing, initializing, planning, applying, and destroying whatever happened before.
    Test = 4,
    /// Preparing, initializing, destroying.
    Destroy = 5,
}

/// What changes the infrastructure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Tool {
    /// Never sent.
    Unspecified = 0,
    /// The program `terraform`.
    Terraform = 1,
    /// The program `tofu`.
    OpenTofu = 2,
    /// The commands of a workflow.
    Custom = 3,
}

/// Where the source comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SourceKind {
    /// There is none: an empty directory.
    None = 0,
    /// `Download`.
    Archive = 1,
    /// Git.
    Git = 2,
}

/// A repository and what is wanted of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Git {
    /// Its address. May hold a password.
    #[prost(string, tag = "1")]
    pub url: String,
    /// The commit.
    #[prost(string, tag = "2")]
    pub commit: String,
    /// A branch or tag that has it.
    #[prost(string, optional, tag = "3")]
    pub reference: Option<String>,
}

/// A variable.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Variable {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value, before `${NAME}` in it is expanded.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Whether the value is masked.
    #[prost(bool, tag = "3")]
    pub secret: bool,
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variable").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A file.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct File {
    /// Below [`WORKSPACE`].
    #[prost(string, tag = "1")]
    pub path: String,
    /// Its bytes.
    #[prost(bytes, tag = "2")]
    pub contents: Vec<u8>,
    /// Permissions.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    /// Whether each of its lines is masked.
    #[prost(bool, tag = "4")]
    pub secret: bool,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Shell commands around the phases, in the order in which they are executed.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(missing_docs, reason = "the names say it: the product's documented hooks")]
pub struct Hooks {
    #[prost(string, repeated, tag = "1")]
    pub before_init: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub after_init: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub before_plan: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub after_plan: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub before_apply: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    pub after_apply: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub before_perform: Vec<String>,
    #[prost(string, repeated, tag = "8")]
    pub after_perform: Vec<String>,
    #[prost(string, repeated, tag = "9")]
    pub before_destroy: Vec<String>,
    #[prost(string, repeated, tag = "10")]
    pub after_destroy: Vec<String>,
    #[prost(string, repeated, tag = "11")]
    pub after_run: Vec<String>,
}

/// The commands of a workflow. None: the phase has no command.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(missing_docs, reason = "the names say it: the phases")]
pub struct Workflow {
    #[prost(string, optional, tag = "1")]
    pub init: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub plan: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub apply: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub destroy: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub output: Option<String>,
}

/// What to download.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DownloadRequest {
    /// A value of [`Download`].
    #[prost(enumeration = "Download", tag = "1")]
    pub what: i32,
}

/// What can be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Download {
    /// Never sent.
    Unspecified = 0,
    /// The source.
    Source = 1,
    /// The workspace of an earlier stage.
    Workspace = 2,
}

/// A part of a download.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Chunk {
    /// At most [`MAXIMUM_PART`] bytes.
    #[prost(bytes, tag = "1")]
    pub data: Vec<u8>,
}

/// A part of an upload.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UploadPart {
    /// A value of [`Upload`]; the same in all parts.
    #[prost(enumeration = "Upload", tag = "1")]
    pub what: i32,
    /// At most [`MAXIMUM_PART`] bytes.
    #[prost(bytes, tag = "2")]
    pub data: Vec<u8>,
    /// Whether it is the last one. An upload that ends without it broke off and counts for nothing.
    #[prost(bool, tag = "3")]
    pub last: bool,
}

/// What can be uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Upload {
    /// Never sent.
    Unspecified = 0,
    /// The workspace, as a gzipped tar archive.
    Workspace = 1,
    /// The outputs, as JSON: an object of `{"sensitive": bool, "type": …, "value": …}`.
    Outputs = 2,
}

/// The upload is in the object store.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Uploaded {
    /// Bytes that came, before encryption.
    #[prost(uint64, tag = "1")]
    pub size: u64,
}
