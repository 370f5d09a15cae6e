//! Self-Hosted releases: packing, signing, verifying, inspecting.
//!
//! # Architecture Invariant
//! Nothing in this crate touches the network: its dependency tree has no HTTP, TLS or async runtime, which
//! `cargo xtask ci` checks. Publishing and installing are in `spacelift-bundle`, on top of it.

pub use sequoia_openpgp::Cert;

pub mod archive;
pub mod build_note;
pub mod contents;
pub mod dependencies;
pub mod diff;
pub mod digest;
pub mod gzip;
pub mod image;
pub mod inspect;
pub mod install_config;
pub mod interrupt;
pub mod launcher_sums;
pub mod manifest;
mod names;
pub mod notices;
pub mod output;
pub mod pack;
pub mod private;
pub mod provenance;
pub mod release;
pub mod release_config;
pub mod sbom;
pub mod show;
pub mod signature;
pub mod signing;
pub mod source;
pub mod sums;
pub mod verify;
pub mod version;
pub mod worker_template;
