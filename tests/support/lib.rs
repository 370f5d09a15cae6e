//! Support for the integration tests: starts and stops the real components that they talk to.
//!
//! Everything is private to one test: directories are temporary, servers listen on loopback or on sockets in those
//! directories, and all of it ends with the values that stand for it, also when a test fails. A tool that is missing is a
//! failure, never a skipped test.

pub mod aws_emulator;
pub mod case;
pub mod connect_proxy;
pub mod control_plane;
pub mod daemon;
pub mod docker;
pub mod ecr;
pub mod fault_proxy;
pub mod faults;
pub mod fuzz;
pub mod gpg;
pub mod instance_metadata;
pub mod interactive;
pub mod mosquitto;
pub mod pki;
pub mod program;
pub mod random;
pub mod registry;
pub mod release;
pub mod run;
pub mod s3_store;
pub mod sessions;
pub mod tree;
pub mod worker_host;
