//! `cargo xtask bench`: measures the program that ships.

use std::io::{self, Write as _};
use std::process::Command;

use anyhow::Result;
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::debian::{self, Installing};
use crate::dist;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::workspace::Workspace;

const HELP: &str = "\
Measures the program that ships, side by side with the tools that a user would use instead.

Usage: cargo xtask bench pack|verify|publish|push|sessions [flags]

      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

`sessions` has nothing beside it: a thousand of the launcher's sessions, on one broker that is killed and started again.

Inputs are generated in /var/tmp. Measure on an idle machine. `push` starts a container engine, and so has to be root.

Examples:
  cargo xtask bench verify
  cargo xtask bench sessions --no-install
";

/// The package and program that measures.
const PACKAGE: &str = "integration-tests";
const PROGRAM: &str = "bench-release";
/// The benchmark without the program that ships: it needs nothing but a broker and certificates.
const SESSIONS: &str = "sessions";
const SESSIONS_PROGRAMS: [(&str, &str); 2] = [("mosquitto", "mosquitto"), ("openssl", "openssl")];
/// What the others compare with.
const PROGRAMS: [(&str, &str); 7] = [
    ("tar", "tar"),
    ("gzip", "gzip"),
    ("pigz", "pigz"),
    ("sha256sum", "coreutils"),
    ("/usr/bin/aws", "awscli"),
    ("skopeo", "skopeo"),
    ("docker-registry", "docker-registry"),
];
/// What the images are pushed with besides.
const ENGINE: [(&str, &str); 4] =
    [("docker", "docker.io"), ("dockerd", "docker.io"), ("containerd", "docker.io"), ("unshare", "util-linux")];
/// The S3 store that both uploads go to.
const STORE: &str = "strict-s3";

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut what, mut no_install) = (None, false);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(name) if what.is_none() => what = Some(name.string()?),
            Value(_) | Short(_) | Long(_) => return Err(flag.unexpected().into()),
        }
    }
    let what = match what.as_deref() {
        Some(what @ ("pack" | "verify" | "publish" | "push" | SESSIONS)) => what,
        Some(other) => {
            return Err(Failure::usage(format!(
                "there is no benchmark \"{other}\"; there are pack, verify, publish, push and sessions"
            )));
        }
        None => return Err(Failure::usage("which benchmark? cargo xtask bench pack|verify|publish|push|sessions")),
    };
    let workspace = Workspace::find()?;
    let installing = Installing::decide(no_install);
    let (tool, step, programs) = if what == SESSIONS {
        (None, "find the broker", SESSIONS_PROGRAMS.to_vec())
    } else {
        let mut programs = PROGRAMS.to_vec();
        programs.extend(ENGINE.iter().filter(|_| what == "push"));
        (Some(dist::build_tool(&workspace, installing)?), "find the programs to compare with", programs)
    };

    let mut progress = Progress::new(2);
    progress.step(step, |progress| debian::install(&debian::missing(&programs), installing, progress))?;
    let cargo = |subcommand: &str| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace.root()).args([subcommand, "--quiet", "--release", "--locked"]);
        cargo.args(["--package", PACKAGE, "--bin", PROGRAM]);
        if subcommand == "build" {
            cargo.args(["--bin", STORE]);
        }
        cargo
    };
    progress.step("build what measures", |progress| progress.run(&mut cargo("build")))?;
    progress.run_visibly(cargo("run").args(["--", what]).args(tool))
}
