//! The agent on a worker host.
//!
//! A control plane schedules runs; the launcher starts each of them in a container, with the worker as its first
//! process. The worker is inside the launcher, so a host never fetches a second program and never has one of another
//! version:
//!
//! - [`worker_binary`]: the embedded worker, and how it gets onto the host's disk and stays the right one there.
//! - [`network`], [`api_client`], [`session`]: the ways to the control plane.
//! - [`spool`], [`upload`], [`sealed`]: what a run leaves, on its way to the object store.
//! - [`exit_code`]: what the launcher's exit codes mean.
//!
//! The facts of a build (version, commit, target) come from [`mod@spacelift_worker::build_info`].

pub mod exit_code;
pub mod run;
pub mod worker_binary;

pub mod api_client;
pub mod network;
pub mod session;

pub mod spool;
pub mod upload;

pub mod sealed;
