//! The reference control plane: what launchers talk to.
//!
//! - [`server`]: the whole, as a process runs it.
//! - [`authority`]: certificates of pools, of the API, of a broker and of the control plane itself.
//! - [`admin`]: people's API, with a client for it.
//! - [`objects`]: the object store.
//!
//! State is in SQLite, and every decision is one transaction. Nothing is kept in memory that a decision depends on, so the
//! process may be killed at any point and goes on from there.

pub mod admin;
pub mod authority;
mod broker;
pub mod http;
pub mod objects;
mod refusal;
pub mod server;
mod store;
mod tls;
