//! The first process of a run's container.
//!
//! The launcher starts it there; a person only ever asks it for its version.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | it said what it was asked for |
//! | 64 | it was started in a way that it does not know |
//! | 74 | standard output could not be written |

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use spacelift_worker::build_info::BuildInfo;

const EXIT_USAGE: u8 = 64;
const EXIT_IO: u8 = 74;

fn main() -> ExitCode {
    let info = spacelift_worker::build_info!("spacelift-worker");
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();

    let written = match arguments[..] {
        ["--version" | "-V"] => writeln!(io::stdout(), "{info}"),
        ["--version" | "-V", "--json"] | ["--json", "--version" | "-V"] => print_note(&info),
        ["--help" | "-h"] => writeln!(io::stdout(), "{}", introduction(&info)),
        _ => {
            // Nothing is left to report to when standard error is closed as well.
            let _ = writeln!(io::stderr(), "{}", introduction(&info));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match written {
        // Whoever stopped reading has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "spacelift-worker: cannot write to standard output: {error}");
            ExitCode::from(EXIT_IO)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn print_note(info: &BuildInfo) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(info.note())?;
    out.write_all(b"\n")
}

fn introduction(info: &BuildInfo) -> String {
    format!(
        "This is spacelift-worker {}, the first process of a run's container. spacelift-launcher starts it there and \
         tells it what to do; by itself it does nothing.\n\
         To see which build it is: spacelift-worker --version [--json]",
        info.version
    )
}
