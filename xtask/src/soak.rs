//! `cargo xtask soak`: runs under faults, for as long as is asked for.

use std::io::{self, Write as _};
use std::process::Command;

use anyhow::Result;
use lexopt::Parser;
use lexopt::prelude::{Long, Short, ValueExt as _};

use crate::dist;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::test;
use crate::workspace::Workspace;

const HELP: &str = "\
Builds a release and does runs with it while launcher, broker, control plane, object store, Docker engine and
containers are killed, stopped and started again. Ends with counts, and fails if a promise was broken.

Usage: cargo xtask soak [flags]

      --minutes N    For how long, from 1 to 600 (default 20)
      --no-dist      Use the release that is in target/dist; build none
      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

The report is in target/soak/report.txt.

Examples:
  cargo xtask soak --minutes 60
  cargo xtask soak --no-dist
";

const DEFAULT_MINUTES: u64 = 20;
const MAXIMUM_MINUTES: u64 = 600;

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut minutes, mut no_dist, mut no_install) = (DEFAULT_MINUTES, false, false);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("minutes") => minutes = flags.value()?.parse()?,
            Long("no-dist") => no_dist = true,
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            other => return Err(other.unexpected().into()),
        }
    }
    if !(1..=MAXIMUM_MINUTES).contains(&minutes) {
        return Err(Failure::usage(format!("--minutes takes 1 to {MAXIMUM_MINUTES}, not {minutes}")));
    }
    test::install_programs(no_install)?;
    let workspace = Workspace::find()?;
    if !no_dist {
        let mut flags = vec!["--target=all"];
        flags.extend(no_install.then_some("--no-install"));
        dist::run(Parser::from_args(flags))?;
    }
    let cargo = |subcommand: &str| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace.root()).args([subcommand, "--quiet", "--locked", "--package", "integration-tests"]);
        cargo.env("SPACELIFT_DIST_DIR", workspace.dist());
        cargo
    };
    let progress = Progress::new(1);
    let report = workspace.root().join("target/soak/report.txt");
    progress.run_visibly(cargo("build").args(["--bin", "strict-s3", "--bin", "soak"]))?;
    progress.run_visibly(cargo("run").args(["--bin", "soak", "--", &minutes.to_string()]).arg(report))
}
