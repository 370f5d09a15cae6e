//! `cargo xtask bench`: measures what ships.

use std::io::{self, Write as _};
use std::process::Command;

use anyhow::Result;
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::debian::{self, Installing};
use crate::dist;
use crate::failure::Failure;
use crate::git::Sources;
use crate::progress::Progress;
use crate::workspace::Workspace;

const HELP: &str = "\
Measures what ships, side by side with the tools that a user would use instead.

Usage: cargo xtask bench [pack|verify|publish|push|sessions] [flags]

      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

With a name it measures that and prints it. Without one it measures everything, one after the other, and writes
docs/bench/report.md with its plots; what fails is named there and at the end, and the others are still measured.

`sessions` has nothing beside it: a thousand of the launcher's sessions, on one broker that is killed and started again.

Inputs are generated in /var/tmp. Measure on an idle machine. `push` starts a container engine, and so has to be root.
";

/// The package and program that measures.
const PACKAGE: &str = "integration-tests";
const PROGRAM: &str = "bench-release";
/// Where the report goes.
const REPORT: &str = "docs/bench";

/// What a benchmark needs on this machine: programs, with the Debian packages that have them.
struct Benchmark {
    name: &'static str,
    /// Whether it measures `spacelift-bundle`.
    tool: bool,
    programs: &'static [(&'static str, &'static str)],
}

/// All of them.
const BENCHMARKS: [Benchmark; 5] = [
    Benchmark { name: "pack", tool: true, programs: &[] },
    Benchmark { name: "verify", tool: true, programs: &[] },
    Benchmark { name: "publish", tool: true, programs: &[("/usr/bin/aws", "awscli")] },
    Benchmark { name: "push", tool: true, programs: &PUSH },
    Benchmark { name: "sessions", tool: false, programs: &[("mosquitto", "mosquitto"), ("openssl", "openssl")] },
];
/// What `spacelift-bundle` is compared with.
const TOOL: [(&str, &str); 4] = [("tar", "tar"), ("gzip", "gzip"), ("pigz", "pigz"), ("sha256sum", "coreutils")];
/// What images are pushed with besides, and to where.
const PUSH: [(&str, &str); 6] = [
    ("skopeo", "skopeo"),
    ("docker-registry", "docker-registry"),
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("containerd", "docker.io"),
    ("unshare", "util-linux"),
];
/// The S3 store that uploads go to.
const STORE: &str = "strict-s3";

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut name, mut no_install) = (None, false);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(value) if name.is_none() => name = Some(value.string()?),
            Value(_) | Short(_) | Long(_) => return Err(flag.unexpected().into()),
        }
    }
    let wanted: Vec<&Benchmark> =
        BENCHMARKS.iter().filter(|one| name.as_ref().is_none_or(|name| name == one.name)).collect();
    if let (Some(name), true) = (&name, wanted.is_empty()) {
        let names = BENCHMARKS.map(|one| one.name).join(", ");
        return Err(Failure::usage(format!("there is no benchmark \"{name}\"; there are {names}")));
    }
    let workspace = Workspace::find()?;
    let installing = Installing::decide(no_install);
    let needs_tool = wanted.iter().any(|one| one.tool);
    let tool = if needs_tool { Some(dist::build_tool(&workspace, installing)?) } else { None };

    let mut programs: Vec<_> = wanted.iter().flat_map(|one| one.programs).copied().collect();
    programs.extend(TOOL.iter().filter(|_| needs_tool));
    let mut progress = Progress::new(2);
    progress.step("find the programs to compare with", |progress| {
        debian::install(&debian::missing(&programs), installing, progress)
    })?;
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
    let mut measure = cargo("run");
    measure.args(["--", name.as_deref().unwrap_or("all")]).args(tool);
    if name.is_none() {
        let sources = Sources::read(&workspace)?;
        measure.arg(workspace.root().join(REPORT));
        measure.arg(sources.commit + if sources.modified { ", with changes" } else { "" });
    }
    progress.run_visibly(&mut measure)
}
