//! Benchmarks of what ships, side by side with the tools that a user would use instead.
//!
//! `cargo xtask bench` builds the programs that ship and runs this with their paths. Every such row is measured in the same run:
//! ours and theirs in turn, and the ratio pair by pair, so that a machine whose speed drifts does not decide the result. Inputs
//! are generated: pieces of this project's text, pieces of the program's own machine code, and random bytes in place of
//! compressed image layers; the same ones for the same program.
//!
//! Usage: `bench-release NAME [PATH-OF-spacelift-bundle]` measures one thing and prints it;
//! `bench-release all PATH-OF-spacelift-bundle DIRECTORY COMMIT` measures everything and writes the report to DIRECTORY.

mod agent;
mod logs;
mod masker;
mod pack;
mod pipeline;
mod publish;
mod push;
mod race;
mod report;
mod sessions;
mod svg;
mod verify;
mod workspace;

use std::fs;
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use race::{memory, peak_memory, race, shell};
use report::{Goal, Limit, beside, cpu_row, figure, heading, over_time, row, say, share};

/// Bytes of a generated release.
const SIZE: usize = 200_000_000;

/// Something that is measured.
struct Benchmark {
    name: &'static str,
    run: Run,
}

enum Run {
    /// With the path of `spacelift-bundle` and an empty directory.
    WithTool(fn(&Path, &Path) -> Result<()>),
    /// With nothing.
    Alone(fn() -> Result<()>),
}

/// In the order of the report.
const BENCHMARKS: [Benchmark; 9] = [
    Benchmark { name: "pack", run: Run::WithTool(pack::run) },
    Benchmark { name: "verify", run: Run::WithTool(verify::run) },
    Benchmark { name: "publish", run: Run::WithTool(publish::run) },
    Benchmark { name: "push", run: Run::WithTool(push::run) },
    Benchmark { name: "sessions", run: Run::Alone(sessions::run) },
    Benchmark { name: "agent", run: Run::Alone(agent::run) },
    Benchmark { name: "masker", run: Run::Alone(masker::run) },
    Benchmark { name: "pipeline", run: Run::Alone(pipeline::run) },
    Benchmark { name: "workspace", run: Run::Alone(workspace::run) },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// When standard error is closed, nobody is left to tell.
fn complain(error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "error: {error:#}");
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["hold-sessions", ..] => sessions::hold(&arguments[1..]),
        ["mask", ..] => masker::mask(&arguments[1..]),
        ["pack-workspace", ..] => workspace::pack(&arguments[1..]),
        ["unpack-workspace", ..] => workspace::unpack(&arguments[1..]),
        ["all", tool, directory, commit] => all(tool, Path::new(directory), commit),
        [name] => find(name)?.measure(None),
        [name, tool] => find(name)?.measure(Some(tool)),
        _ => bail!(
            "expected: all PATH-OF-spacelift-bundle DIRECTORY COMMIT, or one of {} and for some of them \
             PATH-OF-spacelift-bundle; `cargo xtask bench` calls this",
            names()
        ),
    }
}

/// Everything, one after the other. What fails keeps nothing else from being measured.
fn all(tool: &str, directory: &Path, commit: &str) -> Result<()> {
    let mut failed = vec![];
    for benchmark in &BENCHMARKS {
        report::begin(benchmark.name);
        if let Err(error) = benchmark.measure(Some(tool)) {
            let error = error.context(format!("the benchmark {} failed", benchmark.name));
            complain(&error);
            report::fail(benchmark.name);
            failed.push(benchmark.name);
        }
    }
    let written = report::write(directory, commit)?;
    report::print(&format!("\nThe report is {}.", written.display()))?;
    ensure!(
        failed.is_empty(),
        "of {} benchmarks {} failed: {}. The messages above say why; `cargo xtask bench NAME` measures one of them again",
        BENCHMARKS.len(),
        failed.len(),
        failed.join(", ")
    );
    Ok(())
}

fn find(name: &str) -> Result<&'static Benchmark> {
    let found = BENCHMARKS.iter().find(|benchmark| benchmark.name == name);
    found.with_context(|| format!("there is no benchmark {name:?}; there are {}", names()))
}

fn names() -> String {
    BENCHMARKS.map(|benchmark| benchmark.name).join(", ")
}

impl Benchmark {
    /// The support of tests panics where a test would fail. Here, it is an error like others, and the unwinding ends what runs.
    fn measure(&self, tool: Option<&str>) -> Result<()> {
        let measured = panic::catch_unwind(AssertUnwindSafe(|| match self.run {
            Run::Alone(run) => run(),
            Run::WithTool(run) => {
                let tool = tool.context("the path of spacelift-bundle is missing; `cargo xtask bench` builds it")?;
                with_tool(tool, run)
            }
        }));
        measured.unwrap_or_else(|reason| {
            let text = reason.downcast_ref::<String>().map(String::as_str).or(reason.downcast_ref::<&str>().copied());
            Err(anyhow!("{}", text.unwrap_or("it panicked without a message")))
        })
    }
}

fn with_tool(tool: &str, run: fn(&Path, &Path) -> Result<()>) -> Result<()> {
    let tool = fs::canonicalize(tool).with_context(|| format!("{tool} is not there"))?;
    for other in ["tar", "gzip", "pigz", "sha256sum"] {
        ensure!(
            Command::new(other).arg("--version").output().is_ok_and(|output| output.status.success()),
            "{other} is not installed (`apt-get install {}`)",
            if other == "sha256sum" { "coreutils" } else { other }
        );
    }
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
    run(&tool, directory.path())
}
