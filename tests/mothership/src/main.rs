//! `mothership`: the command line of the reference control plane.

mod command;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let result = command::Arguments::parse().run();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // When standard error is closed, nobody is left to tell.
            let _ = writeln!(io::stderr(), "mothership: {error:#}");
            ExitCode::FAILURE
        }
    }
}
