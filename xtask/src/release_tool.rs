//! `spacelift-bundle` from a checkout, for what is done rarely and by hand.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::progress::Progress;
use crate::workspace::{TOOL, Workspace};

/// Builds the release tool and runs it with `command` and `flags`. The build that tests use does: it needs no other
/// toolchain than the one that runs.
pub(crate) fn run(command: &str, flags: &[OsString]) -> Result<()> {
    let workspace = Workspace::find()?;
    let mut progress = Progress::new(1);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace.root()).args(["build", "--locked", "--package", TOOL, "--bin", TOOL]);
    cargo.arg("--target-dir").arg(workspace.root().join("target"));
    progress.step(&format!("build {TOOL}"), |progress| progress.run(&mut cargo))?;
    let tool = workspace.root().join("target/debug").join(TOOL);
    progress.run_visibly(Command::new(&tool).arg(command).args(flags))
}
