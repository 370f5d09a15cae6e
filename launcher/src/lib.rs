//! The agent on a worker host.
//!
//! A control plane schedules runs; the launcher starts each of them in a container, with the worker as its first
//! process. The worker is inside the launcher, so a host never fetches a second program and never has one of another
//! version:
//!
//! - [`config`]: what the launcher is told, by environment variables.
//! - [`docker`]: the engine that runs containers.
//! - [`registry_credentials`]: what registries of runner images want to see.
//! - [`policy`]: which runs may begin on this host.
//! - [`worker_binary`]: the embedded worker, and how it gets onto the host's disk and stays the right one there.
//! - [`exit_code`]: what the launcher's exit codes mean.
//!
//! The facts of a build (version, commit, target) come from [`mod@spacelift_worker::build_info`].

pub mod config;
pub mod docker;
pub mod exit_code;
pub mod policy;
pub mod registry_credentials;
pub mod worker_binary;
