//! The agent on a worker host.
//!
//! A control plane schedules runs; the launcher starts each of them in a container, with the worker as its first
//! process. The worker is inside the launcher, so a host never fetches a second program and never has one of another
//! version:
//!
//! - [`agent`]: the loop that owns the state; [`run`]: what to do next, as a pure function; [`events`]: how tasks tell it.
//! - [`check`]: whether it could work on a host, without taking a run. [`sweep`]: what others left behind there.
//! - [`config`]: what the launcher is told, by environment variables.
//! - [`docker`]: the engine that runs containers.
//! - [`registry_credentials`]: what registries of runner images want to see.
//! - [`policy`]: which runs may begin on this host.
//! - [`worker_binary`]: the embedded worker, and how it gets onto the host's disk and stays the right one there.
//! - [`network`], [`api_client`], [`session`]: the ways to the control plane.
//! - [`run_log`], [`spool`], [`upload`], [`transfer`], [`sealed`]: what a run leaves, on its way to the object store.
//! - [`job`], [`worker_server`]: what the worker of a run is told, and says.
//! - [`slot`]: what the launcher remembers on its host.
//! - [`output`]: what the launcher itself prints.
//! - [`metrics`], [`supervisor`]: what an operator and the host's service manager see of it.
//! - [`exit_code`]: what the launcher's exit codes mean.
//!
//! The facts of a build (version, commit, target) come from [`mod@spacelift_worker::build_info`].

pub mod agent;
pub mod check;
pub mod events;
pub mod run;
pub mod sweep;

pub mod config;
pub mod docker;
pub mod policy;
pub mod registry_credentials;

pub mod api_client;
pub mod network;
pub mod session;

pub mod run_log;
pub mod sealed;
pub mod spool;
pub mod transfer;
pub mod upload;

pub mod job;
pub mod worker_server;

pub mod slot;
pub mod spot;
pub mod worker_binary;

pub mod exit_code;
pub mod metrics;
pub mod output;
pub mod supervisor;
