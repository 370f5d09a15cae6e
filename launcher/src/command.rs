//! What was typed, resolved to what is to be done.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, Value};
use spacelift_launcher::sweep::Mode;
use spacelift_launcher::worker_binary::DEFAULT_DIRECTORY;

/// Where the launcher keeps files on the host.
const DIRECTORY_VARIABLE: &str = "SPACELIFT_LAUNCHER_DIR";

pub(crate) const HELP: &str = "\
The agent on a worker host. It carries the worker that it starts in each run's container.

Usage:
  spacelift-launcher
      Connect to the control plane and execute runs, as the environment variables SPACELIFT_* say.
  spacelift-launcher check
      Try what a launcher needs, without taking a run: the variables, the worker, the Docker engine, pulling the default
      runner image, the API and the broker. Each part has a line; those that fail say what to do.
  spacelift-launcher sweep [--dry-run]
      Remove what launchers of this pool and host left behind that do not come back: containers, and files of runs that
      have ended. With --dry-run, only say what that is. What a launcher is at work with stays, and so does a run that the
      next launcher goes on with. It needs the launcher's variables.
  spacelift-launcher --version [--json]
      Print version, commit and target of the launcher, and version, commit, target, size and SHA-256 of the worker
      inside it. With --json, print the build note: one line of JSON, the same as in the ELF section .spacelift.build
      of this file. `worker` in it is null when there is none.
  spacelift-launcher extract-worker [--dir DIR]
      Write the worker to DIR/workers/spacelift-worker-<SHA-256> unless it is there, check it, and print its path.
      Without --dir, DIR is what the environment variable SPACELIFT_LAUNCHER_DIR says, or else /opt/spacelift.
  spacelift-launcher --help
      Print this text.

Examples:
  export SPACELIFT_TOKEN=... SPACELIFT_POOL_PRIVATE_KEY=$(base64 -w 0 spacelift.key)
  spacelift-launcher check
  spacelift-launcher
  spacelift-launcher extract-worker --dir /opt/spacelift

Exit codes:
  0    done
  64   the command line or a variable is wrong
  69   this launcher carries no worker, or reaches no Docker engine, or the control plane does not accept it
  70   the worker inside this launcher is damaged
  74   input or output failed: disk full, permission denied, output closed, something that sweep could not remove
  77   a file or directory on the host could be changed by others, so it was not used
  130  interrupted
";

const CHECK: &str = "check";
const SWEEP: &str = "sweep";
const EXTRACT_WORKER: &str = "extract-worker";
const COMMANDS: [&str; 3] = [CHECK, SWEEP, EXTRACT_WORKER];

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Start,
    Check,
    Sweep(Mode),
    Help,
    Version(Format),
    ExtractWorker { directory: PathBuf },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

pub(crate) fn from_environment() -> Result<Command, lexopt::Error> {
    parse(env::args_os().skip(1), env::var_os(DIRECTORY_VARIABLE))
}

fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    directory_variable: Option<OsString>,
) -> Result<Command, lexopt::Error> {
    let (mut help, mut version) = (false, false);
    let mut named: Option<&str> = None;
    let (mut json, mut dry_run) = (false, false);
    let mut directory = None;
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => help = true,
            Short('V') | Long("version") => version = true,
            Long("json") => json = true,
            Long("dir") => directory = Some(PathBuf::from(parser.value()?)),
            Long("dry-run") => dry_run = true,
            Value(ref value) if named.is_none() => match COMMANDS.iter().find(|name| value == **name) {
                Some(name) => named = Some(name),
                None => return Err(argument.unexpected()),
            },
            _ => return Err(argument.unexpected()),
        }
    }
    if help {
        return Ok(Command::Help);
    }
    if version && named.is_some() {
        return Err("--version is a command of its own".into());
    }
    if json && !version {
        return Err("--json belongs to --version".into());
    }
    if directory.is_some() && named != Some(EXTRACT_WORKER) {
        return Err("--dir belongs to extract-worker".into());
    }
    if dry_run && named != Some(SWEEP) {
        return Err("--dry-run belongs to sweep".into());
    }
    if directory.as_ref().is_some_and(|directory| directory.as_os_str().is_empty()) {
        return Err("--dir needs the name of a directory".into());
    }
    if version {
        return Ok(Command::Version(if json { Format::Json } else { Format::Text }));
    }
    if named == Some(EXTRACT_WORKER) {
        // An empty variable counts as unset: that is what `NAME=` in an environment file is meant to say.
        let directory = directory
            .or_else(|| directory_variable.filter(|value| !value.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| DEFAULT_DIRECTORY.into());
        return Ok(Command::ExtractWorker { directory });
    }
    Ok(match named {
        Some(CHECK) => Command::Check,
        Some(SWEEP) => Command::Sweep(if dry_run { Mode::Look } else { Mode::Remove }),
        _ => Command::Start,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(arguments: &[&str], variable: Option<&str>) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from), variable.map(OsString::from)).map_err(|error| error.to_string())
    }

    fn extract(directory: &str) -> Result<Command, String> {
        Ok(Command::ExtractWorker { directory: directory.into() })
    }

    #[test]
    fn flag_before_variable_before_default() {
        assert_eq!(command(&["extract-worker", "--dir", "a"], Some("b")), extract("a"));
        assert_eq!(command(&["--dir=a", "extract-worker"], None), extract("a"));
        assert_eq!(command(&["extract-worker"], Some("b")), extract("b"));
        assert_eq!(command(&["extract-worker"], Some("")), extract("/opt/spacelift"));
        assert_eq!(command(&["extract-worker"], None), extract("/opt/spacelift"));
    }

    #[test]
    fn commands_are_told_apart() {
        assert_eq!(command(&[], Some("b")), Ok(Command::Start));
        assert_eq!(command(&["check"], None), Ok(Command::Check));
        assert_eq!(command(&["sweep"], None), Ok(Command::Sweep(Mode::Remove)));
        for arguments in [["sweep", "--dry-run"], ["--dry-run", "sweep"]] {
            assert_eq!(command(&arguments, None), Ok(Command::Sweep(Mode::Look)));
        }
        assert_eq!(command(&["--version"], None), Ok(Command::Version(Format::Text)));
        assert_eq!(command(&["--json", "-V"], None), Ok(Command::Version(Format::Json)));
        assert_eq!(command(&["extract-worker", "--help"], None), Ok(Command::Help));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        for arguments in [
            &["--json"][..],
            &["--dir", "a"],
            &["extract-worker", "--dir"],
            &["extract-worker", "--dir", ""],
            &["extract-worker", "--json"],
            &["extract-worker", "extract-worker"],
            &["extract-worker", "--version"],
            &["check", "--version"],
            &["check", "extract-worker"],
            &["check", "--dry-run"],
            &["--dry-run"],
            &["sweep", "check"],
            &["sweep", "--dir", "a"],
            &["--version", "x"],
            &["run"],
            &["--verbose"],
        ] {
            assert!(command(arguments, None).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn help_names_every_exit_code_and_the_variable() {
        use spacelift_launcher::exit_code::{DAMAGED, INTERRUPTED, IO, OK, UNAVAILABLE, UNTRUSTED, USAGE};
        for code in [OK, USAGE, UNAVAILABLE, DAMAGED, IO, UNTRUSTED, INTERRUPTED] {
            assert!(HELP.contains(&format!("\n  {code:<3}  ")), "{code}");
        }
        assert!(HELP.contains(DIRECTORY_VARIABLE) && HELP.contains(DEFAULT_DIRECTORY));
    }
}
