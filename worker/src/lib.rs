//! What the worker and the launcher share.
//!
//! The worker is PID 1 of a run's container and the launcher is the agent on the host that starts it. Both sides of
//! what they say to each other are defined in this crate, so that they cannot drift apart:
//!
//! - [`mod@build_info`]: which build a program is, as it prints it and as it can be read from its file.
//! - [`protocol`]: what they say to each other while a run is executed.
//!
//! The rest is what the worker does, in the order in which it comes to be used: [`session`] and [`stop`] talk with the
//! launcher, [`run`] does a job with all that follows it here.
//!
//! Everything here ends up in the launcher too and is compiled for every run's container: it may not use MQTT, Docker
//! or AWS crates.

pub mod build_info;
pub mod protocol;

pub mod session;
pub mod stop;

pub mod run;

pub mod archive;
pub mod environment;
pub mod execution;
pub mod files;
pub mod init;
pub mod log;
pub mod masking;
pub mod runtime_config;
pub mod shell;
pub mod shortage;
pub mod transfer;
pub mod untrusted;
