//! `cargo xtask record`: draws again the pictures of what users see, for the documents.

use std::io::{self, Write as _};
use std::process::Command;

use anyhow::Result;
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::progress::Progress;
use crate::test;
use crate::workspace::Workspace;

const HELP: &str = "\
Runs the commands of the pictures in docs/screens and draws them again: dist, verify, install, demo.

Usage: cargo xtask record [NAME...] [flags]

      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

All but `dist` show the release that is in target/dist. `demo` starts a container engine, and so has to be root.

Examples:
  cargo xtask record
  cargo xtask record verify install
";

/// Programs that are built for it, in debug form, with the features that they have for the tests.
const BUILT: [&str; 4] = ["record", "demo", "strict-s3", "mothership"];

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut names, mut no_install) = (vec![], false);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(name) => names.push(name.string()?),
            Short(_) | Long(_) => return Err(flag.unexpected().into()),
        }
    }
    test::install_programs(no_install)?;
    let workspace = Workspace::find()?;
    let cargo = |subcommand: &str| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace.root()).args([subcommand, "--quiet", "--locked"]);
        cargo.env("SPACELIFT_DIST_DIR", workspace.dist());
        cargo
    };
    let progress = Progress::new(1);
    let built = BUILT.iter().flat_map(|name| ["--bin", name]);
    progress.run_visibly(cargo("build").arg("--workspace").args(built))?;
    let mut record = cargo("run");
    record.args(["--package", "integration-tests", "--bin", BUILT[0], "--"]).arg(workspace.root().join("docs/screens"));
    progress.run_visibly(record.args(names))
}
