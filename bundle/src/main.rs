//! `spacelift-bundle`: packs and signs Self-Hosted releases at the vendor, verifies and inspects them anywhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use bundle_core::interrupt;
use clap::{CommandFactory as _, Parser, Subcommand};

mod aws;
mod commands;
mod exit;
mod exit_code;
mod failure;
mod install;
mod own_note;
mod passphrase;
mod progress;
mod publish;
mod registry;
mod uninstall;

/// Packs, signs, verifies and inspects Self-Hosted releases.
///
/// Exit codes: 0 success; 1 unexpected failure, or `diff --reproduce` found a difference; 64 usage or configuration;
/// 65 bad input; 66 input missing or unreadable; 69 a service cannot be reached; 73 output cannot be created; 74
/// input/output error such as a full disk; 75 a service is busy, try again later; 77 credentials are missing, expired or not
/// sufficient; 78 what a service was asked for is not there or not as it should be; 130 interrupted. Verification that fails exits with 10 plus the number of the step that refused: 11 the signature
/// file is not detached signatures, 12 not signed by enough pinned certificates or a bad signature, 13 expired, revoked,
/// weak or out of its time, 14 the sums file, 15 the archive is not the signed one, 16 its form, 17 the manifest or a file
/// in it, 18 parts that do not belong together, 19 a development release, a rollback or a skipped version.
#[derive(Parser)]
#[command(after_help = "Examples:
  spacelift-bundle verify self-hosted-v1.2.3.tar.gz --cert vendor.asc
  spacelift-bundle inspect self-hosted-v1.2.3.tar.gz
  spacelift-bundle install --release self-hosted-v1.2.3 -c config.json --dry-run")]
#[command(name = "spacelift-bundle", version = commands::version::LINE, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document on standard output.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Verify(commands::verify::Arguments),
    Inspect(commands::inspect::Arguments),
    Diff(commands::diff::Arguments),
    Install(commands::install::Arguments),
    Uninstall(commands::uninstall::Arguments),
    Keygen(commands::keygen::Arguments),
    Publish(commands::publish::Arguments),
    Promote(commands::publish::Promote),
    #[command(name = "rollback")]
    RollBack(commands::publish::RollBack),
    Pack(commands::pack::Arguments),
    Push(commands::push::Arguments),
    Sign(commands::sign::Arguments),
    Image(commands::image::Arguments),
    Sbom(commands::sbom::Arguments),
    Notices(commands::notices::Arguments),
    Provenance(commands::provenance::Arguments),
    ReleaseConfig(commands::release_config::Arguments),
    Manual(commands::manual::Arguments),
    Completions(commands::manual::Completions),
    Version(commands::version::Arguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors to the parser; only real ones are usage errors.
            let code = if error.use_stderr() { exit_code::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let json = arguments.json;
    match run(arguments) {
        Ok(code) => code,
        Err(error) => report(&error, json),
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    interrupt::catch().context("cannot watch for signals")?;
    let json = arguments.json;
    match arguments.command {
        Command::Verify(arguments) => commands::verify::run(&arguments, json)?,
        Command::Inspect(arguments) => commands::inspect::run(&arguments, json)?,
        Command::Diff(arguments) => return commands::diff::run(&arguments, json),
        Command::Install(arguments) => commands::install::run(&arguments, json)?,
        Command::Uninstall(arguments) => commands::uninstall::run(&arguments, json)?,
        Command::Keygen(arguments) => commands::keygen::run(&arguments, json)?,
        Command::Publish(arguments) => commands::publish::run(&arguments, json)?,
        Command::Promote(arguments) => commands::publish::promote(&arguments, json)?,
        Command::RollBack(arguments) => commands::publish::roll_back(&arguments, json)?,
        Command::Pack(arguments) => commands::pack::run(&arguments, json)?,
        Command::Push(arguments) => commands::push::run(&arguments, json)?,
        Command::Sign(arguments) => commands::sign::run(&arguments, json)?,
        Command::Image(arguments) => commands::image::run(&arguments, json)?,
        Command::Sbom(arguments) => commands::sbom::run(&arguments, json)?,
        Command::Notices(arguments) => commands::notices::run(&arguments, json)?,
        Command::Provenance(arguments) => commands::provenance::run(&arguments, json)?,
        Command::ReleaseConfig(arguments) => commands::release_config::run(&arguments, json)?,
        Command::Manual(arguments) => commands::manual::run(&arguments, Arguments::command())
            .with_context(|| format!("cannot write the manual to {}", arguments.output_dir.display()))?,
        Command::Completions(arguments) => commands::manual::print_completions(&arguments, Arguments::command())?,
        Command::Version(_) => commands::version::run(json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The one place that prints errors.
fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let code = exit::code(error);
    if exit::is_broken_pipe(error) {
        // The reader of our output went away; there is nobody to tell.
        return ExitCode::from(code);
    }
    let message = message(error);
    if json {
        let document = serde_json::json!({
            "ok": false, "exit_code": code, "step": exit::step(error), "error": message, "advice": exit::advice(error),
        });
        let _ = writeln!(io::stdout(), "{document}");
    }
    let step = exit::step(error).map(|step| format!(" (verification step {step})")).unwrap_or_default();
    let (red, reset) = if io::stderr().is_terminal() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(io::stderr(), "{red}error{reset}{step}: {message}");
    if let Some(advice) = exit::advice(error) {
        let _ = writeln!(io::stderr(), "{advice}");
    }
    ExitCode::from(code)
}

/// The error and its causes on one line. Typed errors name their cause in their own text; it is not said twice.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    // Commands give what they cannot print as it is; everything else has words about what was being done.
    let is_bare = error.chain().next().and_then(|first| first.downcast_ref::<io::Error>());
    if is_bare.is_some_and(|error| !interrupt::is_interrupted(error)) {
        message.insert_str(0, "cannot write to standard output: ");
    }
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
