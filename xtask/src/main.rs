//! The project's commands: `cargo xtask COMMAND`.
//!
//! Architecture invariant: nothing is compiled, packed or verified in this program. It starts `cargo`, `spacelift-bundle`
//! and a few system tools as processes, so that it builds in seconds and depends on no crate of the workspace.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

mod bench;
mod ci;
mod demo;
mod dist;
mod fuzz;
mod keygen;
mod publish;
mod record;
mod reproduce;
mod soak;
mod test;

mod build;
mod debian;
mod elf;
mod failure;
mod git;
mod json;
mod progress;
mod release_tool;
mod target;
mod toolchain;
mod tools;
mod workspace;

use failure::Failure;

const HELP: &str = "\
The project's commands.

Usage: cargo xtask COMMAND [flags]

  dist        Build, sign, pack and verify a release
  keygen      Make an OpenPGP key for signing releases, or add a subkey to one
  publish     Upload a release to a downloads bucket, and its image to a registry
  reproduce   Build a release again from its commit and compare
  test        Run all tests against a freshly built release
  bench       Measure what ships, side by side with the usual tools
  demo        Show one run from beginning to end on this machine
  record      Draw the pictures in the documents again
  soak        Do runs while everything around them fails
  fuzz        Search for input that harms a parser
  ci          Everything that must hold before a change is merged

Examples:
  cargo xtask dist
  cargo xtask test -- release_tool
  cargo xtask demo

`cargo xtask COMMAND --help` tells more. Exit codes: 0 done; 1 something failed; 64 wrong usage; 130 interrupted.
";

/// Those of [`HELP`].
const COMMANDS: [&str; 11] =
    ["dist", "keygen", "publish", "reproduce", "test", "bench", "demo", "record", "soak", "fuzz", "ci"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run() -> Result<()> {
    let mut arguments = Parser::from_env();
    let command = match arguments.next()? {
        Some(Value(command)) => command.string()?,
        Some(Short('h') | Long("help")) => return Ok(io::stdout().write_all(HELP.as_bytes())?),
        Some(flag) => return Err(flag.unexpected().into()),
        None => return Err(Failure::usage(format!("a command is missing\n\n{HELP}"))),
    };
    match command.as_str() {
        "dist" => dist::run(arguments),
        "keygen" => keygen::run(arguments),
        "publish" => publish::run(arguments),
        "reproduce" => reproduce::run(arguments),
        "test" => test::run(arguments),
        "bench" => bench::run(arguments),
        "demo" => demo::run(arguments),
        "record" => record::run(arguments),
        "soak" => soak::run(arguments),
        "fuzz" => fuzz::run(arguments),
        "ci" => ci::run(arguments),
        other => Err(Failure::usage(format!("there is no command \"{other}\"; see `cargo xtask --help`"))),
    }
}

/// `cargo xtask` with its command, if one was given.
fn command_line() -> String {
    let command = std::env::args_os().nth(1).and_then(|command| command.into_string().ok());
    let command = command.filter(|command| COMMANDS.contains(&command.as_str()));
    command.map_or_else(|| "cargo xtask".to_owned(), |command| format!("cargo xtask {command}"))
}

/// The one place that prints errors and decides the exit code.
fn report(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // Whoever read standard output has seen enough.
        return ExitCode::SUCCESS;
    }
    let code = match error.downcast_ref::<Failure>() {
        Some(failure) => failure.exit_code(),
        None if error.is::<lexopt::Error>() => 64,
        None => 1,
    };
    let message = match error.downcast_ref::<lexopt::Error>() {
        // Its words have its cause in them already.
        Some(error) => format!("{error}; see `{} --help`", command_line()),
        None if error.chain().next().is_some_and(|first| first.is::<io::Error>()) => {
            format!("cannot write to standard output: {error}")
        }
        None => format!("{error:#}"),
    };
    // Without standard error the exit code is all that can be told.
    let _ = writeln!(io::stderr(), "cargo xtask: {message}");
    ExitCode::from(code)
}
