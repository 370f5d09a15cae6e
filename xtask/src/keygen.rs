//! `cargo xtask keygen`: `spacelift-bundle keygen` from a checkout.

use std::ffi::OsString;
use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use lexopt::Parser;

use crate::release_tool;

const HELP: &str = "\
Makes an OpenPGP key for signing releases, or adds a signing subkey to one.

Usage: cargo xtask keygen --user-id TEXT --output DIR [flags]
       cargo xtask keygen --rotate FILE --output DIR [flags]

Builds `spacelift-bundle` and runs its `keygen` with these flags:

      --user-id TEXT          Whose key it is, such as 'Example Inc. releases <release@example.com>'
      --output DIR            Where the key's files are written
      --name NAME             Beginning of their names
      --expires TIME          How long the signing subkey is valid, such as 2y
      --rotate FILE           Add a signing subkey to the key in FILE instead of making a new key
      --revoke-old            With --rotate: revoke the subkeys that are there
      --passphrase-file FILE  Read the passphrase from the first line of FILE; asked for otherwise
      --passphrase-env VAR    Read the passphrase from the environment variable VAR
      --no-passphrase         Do not protect the secret key
      --json                  Print one JSON document on standard output
  -h, --help                  Print this

Examples:
  cargo xtask keygen --user-id 'Example Inc. releases <release@example.com>' --output ../release-keys
  cargo xtask keygen --rotate ../release-keys/release-key.secret.asc --output ../release-keys --name release-key-2028

The passphrase is asked for twice unless a flag says where it is.
";

/// Builds the release tool for this machine and passes the flags on.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let flags: Vec<OsString> = flags.raw_args()?.collect();
    if flags.iter().any(|flag| flag == "--help" || flag == "-h") {
        return Ok(io::stdout().write_all(HELP.as_bytes())?);
    }
    release_tool::run("keygen", &flags).context("no key was made")
}
