//! `cargo xtask test`: all tests, against a release that was just built and against real programs.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::Command;

use anyhow::Result;
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value};

use crate::debian::{self, Installing};
use crate::dist;
use crate::progress::Progress;
use crate::tools;
use crate::workspace::Workspace;

const HELP: &str = "\
Builds a release for all targets and runs every test of the workspace.

Usage: cargo xtask test [flags] [-- arguments for `cargo test`]

      --no-install   Install nothing on this machine; name the command that would
      --no-dist      Test the release that is in target/dist; build none
  -h, --help         Print this

`cargo xtask test -- -- --skip second_clone` leaves out the test that builds everything once more.

The tests use real verifiers, container tools and emulators. A missing one is a failure: nothing is skipped.

Examples:
  cargo xtask test
  cargo xtask test --no-dist -- signing
";

/// Programs that tests run, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 26] = [
    // The verifiers that customers use.
    ("gpg", "gnupg"),
    ("gpg-agent", "gnupg"),
    ("gpgv", "gpgv"),
    ("sqv", "sqv"),
    // The container tools that customers load the image with, and a registry for them.
    ("skopeo", "skopeo"),
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("containerd", "docker.io"),
    ("docker-registry", "docker-registry"),
    // Reads the certificates that the image trusts, and makes those of servers that tests start.
    ("openssl", "openssl"),
    // Runs the documented commands. Version 1, which may come first on the PATH, does not know all of their flags.
    ("/usr/bin/aws", "awscli"),
    // What people open encrypted files of a run with.
    ("age", "age"),
    // The broker between launcher and control plane.
    ("mosquitto", "mosquitto"),
    // Stock clients, to try what the broker keeps apart.
    ("mosquitto_pub", "mosquitto-clients"),
    ("mosquitto_sub", "mosquitto-clients"),
    ("curl", "curl"),
    // Namespaces, and sessions of their own for processes that outlive their parents.
    ("unshare", "util-linux"),
    // A worker host that boots, in a network of its own.
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    // A container without a C library, and the other processor.
    ("busybox", "busybox-static"),
    ("qemu-aarch64-static", "qemu-user-static"),
    // Proof that verification makes no network call.
    ("strace", "strace"),
    // What packing is compared with.
    ("pigz", "pigz"),
    // The scripts of a release, and a terminal for what asks before it begins.
    ("shellcheck", "shellcheck"),
    ("script", "bsdutils"),
    ("git", "git"),
];

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut no_install, mut no_dist, mut passed_on) = (false, false, Vec::<OsString>::new());
    while let Some(flag) = flags.next()? {
        match flag {
            Long("no-install") => no_install = true,
            Long("no-dist") => no_dist = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(first) => {
                passed_on.push(first);
                passed_on.extend(flags.raw_args()?);
            }
            Short(_) | Long(_) => return Err(flag.unexpected().into()),
        }
    }
    // Tests that take minutes are ignored by a plain `cargo test`.
    if !passed_on.iter().any(|argument| argument == "--") {
        passed_on.push("--".into());
    }
    passed_on.push("--include-ignored".into());
    install_programs(no_install)?;
    let workspace = Workspace::find()?;
    if !no_dist {
        let mut flags = vec!["--target=all"];
        if no_install {
            flags.push("--no-install");
        }
        dist::run(Parser::from_args(flags))?;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace.root()).args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(passed_on);
    // Errors capture backtraces then, as they do for users who ask for them: it must not crash a static binary.
    cargo.env("RUST_BACKTRACE", "1").env("SPACELIFT_DIST_DIR", workspace.dist());
    Progress::new(0).run_visibly(&mut cargo)
}

/// Installs what tests use, where that is allowed.
pub(crate) fn install_programs(no_install: bool) -> Result<()> {
    let mut progress = Progress::new(2);
    progress.step("find the programs that tests use", |progress| {
        debian::install(&debian::missing(&PROGRAMS), Installing::decide(no_install), progress)
    })?;
    let workspace = Workspace::find()?;
    progress.step("find the AWS emulator", |progress| {
        tools::install_emulator(&workspace, Installing::decide(no_install), progress)
    })
}
