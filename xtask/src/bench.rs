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

Usage: cargo xtask bench [pack|verify|publish|push|sessions|agent|masker|pipeline|workspace] [flags]

      --no-dist      Let `agent` and `pipeline` measure the release that is in target/dist; build none
      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

With a name it measures that and prints it. Without one it measures everything, one after the other, and writes
docs/bench/report.md with its plots; what fails is named there and at the end, and the others are still measured.

`sessions` has nothing beside it: a thousand of the launcher's sessions, on one broker that is killed and started again.
`agent` measures the launcher of a release: its size, what it needs while it is idle, beside buildbot-worker, and how
soon the first line of a run is at the object store. `pipeline` follows the log of a run, from its container through the
worker and the launcher of a release to an object store. `masker` measures the masking in it beside `sed`, and
`workspace` what is kept between a plan and its apply, beside `tar`, `gzip` and `age`. For a quick try,
SPACELIFT_BENCH_IDLE_SECONDS (60) and SPACELIFT_BENCH_RUNS (200) may be less.

Inputs are generated in /var/tmp. Measure on an idle machine. `push`, `agent` and `pipeline` start a container
engine, and so have to be root.

Examples:
  cargo xtask bench
  cargo xtask bench verify
  cargo xtask bench sessions --no-install
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
    /// Whether it measures the launcher of a release.
    release: bool,
    programs: &'static [(&'static str, &'static str)],
}

/// All of them.
const BENCHMARKS: [Benchmark; 9] = [
    Benchmark { name: "pack", tool: true, release: false, programs: &[] },
    Benchmark { name: "verify", tool: true, release: false, programs: &[] },
    Benchmark { name: "publish", tool: true, release: false, programs: &[("/usr/bin/aws", "awscli")] },
    Benchmark { name: "push", tool: true, release: false, programs: &PUSH },
    Benchmark {
        name: "sessions",
        tool: false,
        release: false,
        programs: &[("mosquitto", "mosquitto"), ("openssl", "openssl")],
    },
    Benchmark { name: "agent", tool: false, release: true, programs: &AGENT },
    Benchmark { name: "masker", tool: false, release: false, programs: &[("sed", "sed")] },
    Benchmark { name: "pipeline", tool: false, release: true, programs: &AGENT },
    Benchmark {
        name: "workspace",
        tool: false,
        release: false,
        programs: &[("tar", "tar"), ("gzip", "gzip"), ("age", "age"), ("openssl", "openssl"), ("diff", "diffutils")],
    },
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
/// What a launcher works with, and an agent of others with its master.
const AGENT: [(&str, &str); 10] = [
    ("mosquitto", "mosquitto"),
    ("openssl", "openssl"),
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("containerd", "docker.io"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("busybox", "busybox-static"),
    ("buildbot", "buildbot"),
    ("buildbot-worker", "buildbot-worker"),
];
/// What runs beside: the S3 store that uploads go to, and the control plane, with the packages that they are in.
const SERVERS: [(&str, &str); 2] = [(PACKAGE, "strict-s3"), ("mothership", "mothership")];

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut name, mut no_install, mut no_dist) = (None, false, false);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("no-install") => no_install = true,
            Long("no-dist") => no_dist = true,
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
    if !no_dist && wanted.iter().any(|one| one.release) {
        let mut flags = vec!["--target=all"];
        flags.extend(no_install.then_some("--no-install"));
        dist::run(Parser::from_args(flags))?;
    }
    let mut progress = Progress::new(2);
    progress.step("find the programs to compare with", |progress| {
        debian::install(&debian::missing(&programs), installing, progress)
    })?;
    let cargo = |subcommand: &str| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace.root()).args([subcommand, "--quiet", "--release", "--locked"]);
        cargo.args(["--package", PACKAGE, "--bin", PROGRAM]).env("SPACELIFT_DIST_DIR", workspace.dist());
        if subcommand == "build" {
            cargo.args(SERVERS.iter().flat_map(|(package, program)| ["--package", *package, "--bin", *program]));
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
