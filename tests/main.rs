//! Integration tests.

mod attacks;

// Against a release that was just built: `cargo xtask test`.
mod stock_tools;

mod binaries;
mod documents;
mod embedding;
mod errors;
mod image;
mod release_tool;
mod signing;

mod determinism;
mod dist;

// The network side of `spacelift-bundle`, against servers on loopback.
mod registry_push;

mod accidents;
mod components;
mod parsers;
mod plots;

// The launcher's side of the container engine.
mod launcher_docker;

// Against an emulated AWS account.
mod install;
mod worker_pool;

// Against S3 stores, one strict about signatures and checksums, one emulated, and a directory.
mod publish;

// The launcher's ways to the control plane, against a broker and servers on loopback.
mod launcher_session;

// Launcher, worker and control plane, with everything real between them.
mod demo;
mod launcher_upload;
mod runs;
