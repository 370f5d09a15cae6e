//! `cargo xtask fuzz`: a coverage-guided search for input that harms a parser.

use std::fs;
use std::io::{self, Write as _};
use std::process::Command;

use anyhow::{Context as _, Result};
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::debian::{self, Installing};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::workspace::Workspace;

const HELP: &str = "\
Searches for input that makes a parser of outside input panic, hang or break a promise, with libFuzzer.

Usage: cargo xtask fuzz [TARGET] [flags]

      --minutes N    For how long, each, from 1 to 600 (default 10)
      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

Without a target, all of them, one after the other. The targets are in tests/support/fuzz.rs, their inputs in
tests/data/fuzz; what is found on the way stays in target/fuzz/corpus.

Examples:
  cargo xtask fuzz
  cargo xtask fuzz manifest --minutes 30
";

const DEFAULT_MINUTES: u64 = 10;
const MAXIMUM_MINUTES: u64 = 600;
/// Bytes of the longest input. What parsers do with more, they do with this.
const MAXIMUM_INPUT: &str = "-max_len=16384";
/// Seconds and MiB after which one input is a finding.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];
/// Counters at every edge of the program, for libFuzzer. Options of a stable compiler.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut minutes, mut no_install, mut target) = (DEFAULT_MINUTES, false, None);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("minutes") => minutes = flags.value()?.parse()?,
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(name) if target.is_none() => target = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    // None at all would be for ever.
    if !(1..=MAXIMUM_MINUTES).contains(&minutes) {
        return Err(Failure::usage(format!("--minutes takes 1 to {MAXIMUM_MINUTES}, not {minutes}")));
    }
    let workspace = Workspace::find()?;
    let inputs = workspace.root().join("tests/data/fuzz");
    let mut targets: Vec<String> = fs::read_dir(&inputs)
        .with_context(|| format!("cannot read {}", inputs.display()))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    targets.sort();
    if let Some(wanted) = target {
        if !targets.contains(&wanted) {
            return Err(Failure::usage(format!("there is no target \"{wanted}\"; there are {}", targets.join(", "))));
        }
        targets = vec![wanted];
    }

    let mut progress = Progress::new(2);
    progress.step("find a C++ compiler", |progress| {
        debian::install(&debian::missing(&[("g++", "g++")]), Installing::decide(no_install), progress)
    })?;
    let directory = workspace.root().join("target/fuzz");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(workspace.root().join("fuzz")).args(["build", "--release", "--locked"]);
    // With a target named, build scripts and macros are compiled as usual.
    let host = host(&workspace)?;
    build.arg("--target").arg(&host).arg("--target-dir").arg(&directory).env("RUSTFLAGS", FLAGS);
    progress.step("build the parsers with counters", |progress| progress.run(&mut build))?;
    let program = directory.join(&host).join("release/fuzz");
    for target in targets {
        let (corpus, found) = (directory.join("corpus").join(&target), directory.join("found").join(&target));
        for directory in [&corpus, &found] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let mut fuzz = Command::new(&program);
        fuzz.env("FUZZ_TARGET", &target).args([MAXIMUM_INPUT, "-print_final_stats=1"]).args(LIMITS);
        fuzz.arg(format!("-max_total_time={}", 60 * minutes)).arg(format!("-artifact_prefix={}/", found.display()));
        progress.run_visibly(fuzz.arg(corpus).arg(inputs.join(&target)))?;
    }
    Ok(())
}

fn host(workspace: &Workspace) -> Result<String> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let output = rustc.current_dir(workspace.root()).arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say which host it is for")?.to_owned())
}
