//! The command line of `cargo xtask dist`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::debian::Installing;
use crate::failure::Failure;
use crate::target::Target;
use crate::toolchain::Library;

pub(super) const HELP: &str = "\
Builds the programs, makes the image and the documents, packs, signs and verifies a release.

Usage: cargo xtask dist [flags]

Without flags it builds for this machine's processor and signs with a throw-away development key; customers'
verifiers refuse such a release unless told otherwise.

What to build:
      --target TARGET         x86_64, aarch64 or all [default: this machine's]; may be given twice
      --release               A release for customers. Refuses a work tree that differs from the commit, a commit
                              without the tag of the workspace version, a development key, and a signing key that
                              expires in less than 180 days
      --config FILE           The release configuration [default: release.yaml]
      --output DIR            Where the release is written [default: target/dist]

Signing:
      --key FILE              Sign with this key file, as `cargo xtask keygen` makes it; several sign together
      --gpg-key FINGERPRINT   Sign with a key that gpg-agent holds, on disk or on a token; several sign together
      --passphrase-file FILE  Read the passphrase of the keys from the first line of FILE
      --passphrase-env VAR    Read the passphrase of the keys from the environment variable VAR. Without either, it is
                              asked for twice: before the long part, to find a wrong one early, and to sign
      --cert FILE             Ship this certificate in keys/ as well, such as that of the next key; repeatable
      --unsigned              Stop after the unsigned archive, which `spacelift-bundle sign` signs elsewhere
      --development           With --unsigned: mark it as a development release

How to build:
      --toolchain WAY         Where the standard library comes from: target, source or debian [default: the first
                              of these that is there; see xtask/src/toolchain.rs]
      --no-install            Install nothing on this machine; name the command that would
      --offline               Use no network
      --threads N             Jobs and threads [default: one per processor]; the bytes do not depend on it

Output:
      --dry-run               Print the plan and the objections to it; build nothing
      --json                  Print one JSON document on standard output at the end
  -h, --help                  Print this

Examples:
  cargo xtask dist
  cargo xtask dist --target all --release --key ../release-keys/release-key.signing.asc
  cargo xtask dist --release --key ../release-keys/release-key.signing.asc --dry-run

Exit codes: 0 done; 1 something failed; 64 wrong flags, or --release was refused; 130 interrupted; those of
`spacelift-bundle` when it is what failed (see its --help).
";

/// Who signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signing {
    /// A throw-away key, made when there is none.
    Development,
    /// Keys of the user.
    Keys { files: Vec<PathBuf>, gpg: Vec<String> },
    /// Nobody, now.
    Later { development: bool },
}

/// For whom the release is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Customers,
    Ourselves,
}

/// The command line, resolved.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) targets: Vec<Target>,
    pub(super) audience: Audience,
    pub(super) config: Option<PathBuf>,
    pub(super) output: Option<PathBuf>,
    pub(super) signing: Signing,
    pub(super) passphrase_file: Option<PathBuf>,
    pub(super) passphrase_env: Option<OsString>,
    pub(super) certificates: Vec<PathBuf>,
    pub(super) toolchain: Option<Library>,
    pub(super) installing: Installing,
    pub(super) offline: bool,
    pub(super) threads: Option<usize>,
    pub(super) dry_run: bool,
    pub(super) json: bool,
}

impl Options {
    /// Those of a command line without flags, on a machine where nothing may be installed.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            targets: vec![Target::host()?],
            audience: Audience::Ourselves,
            config: None,
            output: None,
            signing: Signing::Development,
            passphrase_file: None,
            passphrase_env: None,
            certificates: Vec::new(),
            toolchain: None,
            installing: Installing::Refused,
            offline: false,
            threads: None,
            dry_run: false,
            json: false,
        })
    }

    /// `None` if help was asked for.
    pub(super) fn parse(mut flags: Parser) -> Result<Option<Self>> {
        let mut targets: Vec<Target> = Vec::new();
        let (mut release, mut unsigned, mut development, mut no_install) = (false, false, false, false);
        let (mut files, mut gpg) = (Vec::new(), Vec::new());
        let mut options = Self::new()?;
        while let Some(flag) = flags.next()? {
            match flag {
                Long("target") => targets.extend(Target::parse(&flags.value()?.string()?)?),
                Long("release") => release = true,
                Long("config") => options.config = Some(path(&mut flags)?),
                Long("output") => options.output = Some(path(&mut flags)?),
                Long("key") => files.push(path(&mut flags)?),
                Long("gpg-key") => gpg.push(flags.value()?.string()?),
                Long("passphrase-file") => options.passphrase_file = Some(path(&mut flags)?),
                Long("passphrase-env") => options.passphrase_env = Some(flags.value()?),
                Long("cert") => options.certificates.push(path(&mut flags)?),
                Long("unsigned") => unsigned = true,
                Long("development") => development = true,
                Long("toolchain") => options.toolchain = Some(Library::parse(&flags.value()?.string()?)?),
                Long("no-install") => no_install = true,
                Long("offline") => options.offline = true,
                Long("threads") => options.threads = Some(flags.value()?.parse()?),
                Long("dry-run") => options.dry_run = true,
                Long("json") => options.json = true,
                Short('h') | Long("help") => return Ok(None),
                Value(_) | Short(_) | Long(_) => return Err(flag.unexpected().into()),
            }
        }
        if !targets.is_empty() {
            targets.sort_unstable();
            targets.dedup();
            options.targets = targets;
        }
        options.installing = Installing::decide(no_install || options.offline);
        options.audience = if release { Audience::Customers } else { Audience::Ourselves };
        options.signing = signing(files, gpg, unsigned, development)?;
        if options.threads == Some(0) {
            return Err(Failure::usage("--threads must be at least 1"));
        }
        Ok(Some(options))
    }

    pub(super) fn is_development(&self) -> bool {
        matches!(self.signing, Signing::Development | Signing::Later { development: true })
    }
}

fn signing(files: Vec<PathBuf>, gpg: Vec<String>, unsigned: bool, development: bool) -> Result<Signing> {
    let has_keys = !files.is_empty() || !gpg.is_empty();
    match (has_keys, unsigned) {
        (true, true) => Err(Failure::usage("--unsigned means that no key signs; leave it or --key and --gpg-key out")),
        (_, false) if development => Err(Failure::usage(
            "--development goes with --unsigned; without a key a release is a development release in any case",
        )),
        (true, false) => Ok(Signing::Keys { files, gpg }),
        (false, true) => Ok(Signing::Later { development }),
        (false, false) => Ok(Signing::Development),
    }
}

/// The value of a flag as an absolute path: programs are started in other directories.
fn path(flags: &mut Parser) -> Result<PathBuf> {
    let value = flags.value()?;
    std::path::absolute(&value).with_context(|| format!("{} is not a path", value.display()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use lexopt::Parser;

    use super::{Options, Signing};
    use crate::target::Target;
    use crate::toolchain::Library;

    fn parse(flags: &[&str]) -> anyhow::Result<Options> {
        let flags: Vec<OsString> = flags.iter().map(|flag| flag.into()).collect();
        Options::parse(Parser::from_args(flags)).map(Option::unwrap)
    }

    #[test]
    fn without_flags_it_is_a_development_release_for_this_machine() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.targets, [Target::host().unwrap()]);
        assert_eq!(options.signing, Signing::Development);
        assert!(options.is_development());
    }

    #[test]
    fn flags_are_understood() {
        let options = parse(&[
            "--target=aarch64",
            "--target",
            "all",
            "--toolchain",
            "debian",
            "--key",
            "/k",
            "--gpg-key",
            "F",
            "--threads=2",
        ]);
        let options = options.unwrap();
        assert_eq!(options.targets, Target::ALL);
        assert_eq!(options.toolchain, Some(Library::Debian));
        assert_eq!(options.signing, Signing::Keys { files: vec!["/k".into()], gpg: vec!["F".into()] });
        assert_eq!(options.threads, Some(2));
        assert!(!options.is_development());
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for flags in [
            &["--unsigned", "--key", "k"][..],
            &["--development"],
            &["--development", "--key", "k"],
            &["--threads", "0"],
            &["--target", "riscv"],
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.is::<crate::failure::Failure>(), "{flags:?}: {error}");
        }
        assert!(parse(&["--no-such-flag"]).is_err());
        assert!(parse(&["stray"]).is_err());
    }
}
