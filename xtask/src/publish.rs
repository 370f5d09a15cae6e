//! `cargo xtask publish`: `spacelift-bundle publish` from a checkout.

use std::ffi::OsString;
use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use lexopt::Parser;

use crate::release_tool;

const HELP: &str = "\
Verifies a release and uploads it to a downloads bucket, and its image to a registry.

Usage: cargo xtask publish ARCHIVE --cert FILE --bucket URL [flags]

Builds `spacelift-bundle` and runs its `publish` with these arguments. `spacelift-bundle publish --help` lists all of
them; most used:

      --cert FILE                  A certificate that you trust
      --bucket URL                 s3://NAME[/PREFIX] or file:///DIRECTORY
      --image-repository HOST/NAME Push the launcher's image there as well
      --no-promote                 Upload only; `spacelift-bundle promote` moves the channel later
      --dry-run                    Say what would be done and write nothing
      --endpoint-url URL           Another S3-compatible store than AWS
  -h, --help                       Print this

Examples:
  cargo xtask publish target/dist/self-hosted-v1.2.3.tar.gz --cert vendor.asc --bucket s3://example-downloads
  cargo xtask publish target/dist/self-hosted-v1.2.3.tar.gz --cert vendor.asc --bucket file:///media/transfer --dry-run
";

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let flags: Vec<OsString> = flags.raw_args()?.collect();
    if flags.is_empty() || flags.iter().any(|flag| flag == "--help" || flag == "-h") {
        return Ok(io::stdout().write_all(HELP.as_bytes())?);
    }
    release_tool::run("publish", &flags).context("the release was not published")
}
