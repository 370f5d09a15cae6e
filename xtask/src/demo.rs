//! `cargo xtask demo`: one run from beginning to end, on this machine alone.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use lexopt::Parser;
use lexopt::prelude::{Long, Short};

use crate::debian::{self, Installing};
use crate::dist;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::workspace::{VERSION, Workspace};

const HELP: &str = "\
Builds a release for this machine's processor and shows one run with it: broker, object store, container engine, control
plane and two launchers start on loopback, the run is planned by one launcher and, once it is confirmed, applied by the
other, and its log is shown as it arrives. Then it says where everything is and how to go on, and waits for ^C. It needs
root, no AWS and no network but for what is missing here; nothing is left when it ends.

Usage: cargo xtask demo [flags]

      --yes          Confirm the plan without asking; so does standard input that is no terminal
      --exit         End when the run has, as it does when standard input is no terminal
      --no-dist      Use the release that is in target/dist; build none
      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

Examples:
  cargo xtask demo
  cargo xtask demo --no-dist --yes --exit
";

/// Programs that it runs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 9] = [
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("containerd", "docker.io"),
    ("mosquitto", "mosquitto"),
    ("openssl", "openssl"),
    // What the runner image is made of.
    ("busybox", "busybox-static"),
    // The engine's own mounts.
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    // For whoever goes on: it opens the stored workspace.
    ("age", "age"),
];
/// Programs that are built for it, in debug form, with the features that they have for the tests.
const BUILT: [&str; 3] = ["demo", "strict-s3", "mothership"];

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut no_dist, mut no_install, mut passed_on) = (false, false, vec![]);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("yes") => passed_on.push("--yes"),
            Long("exit") => passed_on.push("--exit"),
            Long("no-dist") => no_dist = true,
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            other => return Err(other.unexpected().into()),
        }
    }
    let workspace = Workspace::find()?;
    check(&workspace, no_dist)?;
    let mut progress = Progress::new(2);
    progress.step("find the programs that it runs", |progress| {
        debian::install(&debian::missing(&PROGRAMS), Installing::decide(no_install), progress)
    })?;
    progress.step("build the control plane and what shows the run", |progress| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace.root()).args(["build", "--locked", "--workspace"]);
        cargo.args(BUILT.iter().flat_map(|name| ["--bin", name]));
        progress.run(&mut cargo)
    })?;
    if !no_dist {
        dist::run(Parser::from_args(no_install.then_some("--no-install")))?;
    }
    // Cargo puts them beside this program, wherever its target directory is.
    let program = std::env::current_exe().context("cannot find the target directory")?.with_file_name(BUILT[0]);
    let mut demo = Command::new(&program);
    demo.args(passed_on).env("SPACELIFT_DIST_DIR", workspace.dist());
    // In place of this process: ^C then reaches one that cleans up, and the shell waits until it has.
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// What would stop it later, after everything was built.
fn check(workspace: &Workspace, no_dist: bool) -> Result<()> {
    let mut reasons = vec![];
    if !debian::is_root() {
        reasons.push("a container engine of its own needs root; run it as root".to_owned());
    }
    let archive = workspace.dist().join(format!("self-hosted-{VERSION}.tar.gz"));
    if no_dist && !archive.is_file() {
        reasons.push(format!("there is no {}; leave --no-dist out to build it", archive.display()));
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Failure::Refused { what: "no demonstration".to_owned(), reasons }.into())
    }
}
