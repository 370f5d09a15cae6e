//! Hands the two facts of a build that only the build knows to `src/build_note.rs`.

use std::env;
use std::io::{self, Write};

fn main() -> io::Result<()> {
    let target = env::var("TARGET").map_err(io::Error::other)?;
    let commit = env::var("SPACELIFT_BUILD_COMMIT").unwrap_or_else(|_| "unknown".into());
    let mut cargo = io::stdout();
    writeln!(cargo, "cargo::rerun-if-changed=build.rs")?;
    writeln!(cargo, "cargo::rerun-if-env-changed=SPACELIFT_BUILD_COMMIT")?;
    writeln!(cargo, "cargo::rustc-env=SPACELIFT_BUILD_TARGET={target}")?;
    writeln!(cargo, "cargo::rustc-env=SPACELIFT_BUILD_COMMIT={commit}")
}
