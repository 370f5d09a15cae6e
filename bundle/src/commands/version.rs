//! `version`

use std::io::{self, Write as _};

use crate::own_note;

/// What `--version` prints after the program's name.
pub(crate) const LINE: &str = concat!(
    "v",
    env!("CARGO_PKG_VERSION"),
    "\ncommit  ",
    env!("SPACELIFT_BUILD_COMMIT"),
    "\ntarget  ",
    env!("SPACELIFT_BUILD_TARGET")
);

/// Print the version, commit and target of this program. With --json: its build note, byte for byte.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle version
  spacelift-bundle version --json")]
pub(crate) struct Arguments {}

pub(crate) fn run(json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        // The note's own bytes, so that the linker keeps the section that verification reads.
        out.write_all(own_note::own())?;
        return out.write_all(b"\n");
    }
    writeln!(out, "{} {LINE}", env!("CARGO_PKG_NAME"))
}
