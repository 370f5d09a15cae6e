//! Which compiler makes the static binaries, and where their standard library comes from.
//!
//! In this order, the first that serves every wanted target:
//!
//! 1. `target`: the active toolchain has the musl targets installed (`rustup target add …`). The ordinary way.
//! 2. `source`: the active toolchain has the library's sources (`rustup component add rust-src`, or Debian's
//!    `rust-web-src` beside Debian's own compiler); the library is built along.
//! 3. `debian`: Debian's `rustc-web` and `rust-web-src` lie beside another active toolchain; the library is built along.
//!
//! If none does and installing is allowed, `rustup target add` is tried first and Debian's packages second. The C compiler
//! and the linker are zig in all cases (see [`crate::tools`]), so a release depends on no C library of the machine.
//!
//! The compiler is part of what decides the bytes of a release: it is recorded in the release's provenance, and the same
//! commit gives the same bytes under the same compiler and the same way of these three.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::debian::{self, Installing};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::target::Target;

/// Debian's second, newer Rust toolchain with its library sources.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "libstd-rust-web-dev", "rust-web-src"];
/// The oldest compiler that the workspace builds with.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Where the standard library comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    /// Installed for the target.
    Target,
    /// Built from the sources of the active toolchain.
    Source,
    /// Built from Debian's sources with Debian's compiler.
    Debian,
}

impl Library {
    const ALL: [Self; 3] = [Self::Target, Self::Source, Self::Debian];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Source => "source",
            Self::Debian => "debian",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|library| library.name() == name)
            .ok_or_else(|| Failure::usage(format!("--toolchain takes target, source or debian, not \"{name}\"")))
    }
}

/// A compiler with its cargo, and what its installation has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) sysroot: PathBuf,
    /// The first line of `rustc --version --verbose`, as in "rustc 1.95.0 (59807616e 2026-04-14)".
    pub(crate) version: String,
    /// The commit of the compiler; paths in its library are known under `/rustc/COMMIT`.
    pub(crate) commit: String,
    release: String,
    targets: Vec<Target>,
    has_source: bool,
}

/// What was found on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    active: Option<Compiler>,
    debian: Option<Compiler>,
}

/// A compiler and where its standard library comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) library: Library,
    pub(crate) compiler: Compiler,
}

impl Toolchain {
    /// The toolchain that serves these targets, if there is one already.
    pub(crate) fn find(targets: &[Target], wanted: Option<Library>) -> Option<Self> {
        choose(&Found::look(), targets, wanted)
    }

    /// The toolchain that serves these targets, installed if need be.
    pub(crate) fn obtain(
        targets: &[Target],
        wanted: Option<Library>,
        installing: Installing,
        progress: &Progress,
    ) -> Result<Self> {
        if let Some(toolchain) = Self::find(targets, wanted) {
            return Ok(toolchain);
        }
        if installing == Installing::Allowed {
            let rustup =
                debian::find_program("rustup").filter(|_| wanted.is_none_or(|library| library == Library::Target));
            if let Some(rustup) = rustup {
                progress
                    .note(&format!("Installing the standard library: rustup {}", rustup_arguments(targets).join(" ")));
                if let Err(error) = progress.run(Command::new(rustup).args(rustup_arguments(targets))) {
                    progress.note(&format!("rustup could not: {error:#}"));
                }
            }
            if let Some(toolchain) = Self::find(targets, wanted) {
                return Ok(toolchain);
            }
            if wanted.is_none_or(|library| library == Library::Debian)
                && let Err(error) = debian::install(&DEBIAN_PACKAGES, installing, progress)
            {
                progress.note(&format!("apt-get could not: {error:#}"));
            }
        }
        let found = Found::look();
        choose(&found, targets, wanted).with_context(|| found.remedy(targets, wanted))
    }

    /// What builds the library along.
    pub(crate) fn build_std_flags(&self) -> &'static [&'static str] {
        match self.library {
            Library::Target => &[],
            // Small first, like the profile: formatting and panicking machinery is most of the worker.
            Library::Source | Library::Debian => {
                &["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]
            }
        }
    }

    /// The library's sources as the compiler writes them into binaries, and the name that they get there.
    pub(crate) fn library_remap(&self) -> (PathBuf, String) {
        (self.compiler.sysroot.join("lib/rustlib/src/rust"), format!("/rustc/{}", self.compiler.commit))
    }

    /// For the provenance: the same sources give the same bytes under the same description.
    pub(crate) fn description(&self) -> String {
        let library = match self.library {
            Library::Target => "installed",
            Library::Source | Library::Debian => "built along",
        };
        format!("{}, standard library {library}", self.compiler.version)
    }

    /// The way that has this description on this machine.
    pub(crate) fn described(description: &str, targets: &[Target]) -> Option<Self> {
        let ways = Library::ALL.into_iter().filter_map(|library| Self::find(targets, Some(library)));
        ways.into_iter().find(|toolchain| toolchain.description() == description)
    }
}

/// The documented order.
fn choose(found: &Found, targets: &[Target], wanted: Option<Library>) -> Option<Toolchain> {
    Library::ALL.into_iter().filter(|library| wanted.is_none_or(|wanted| wanted == *library)).find_map(|library| {
        let compiler = match library {
            Library::Target => {
                found.active.as_ref().filter(|compiler| targets.iter().all(|target| compiler.targets.contains(target)))
            }
            Library::Source => found.active.as_ref().filter(|compiler| compiler.has_source),
            Library::Debian => {
                found.debian.as_ref().filter(|compiler| compiler.has_source && !is_older(&compiler.release, OLDEST))
            }
        };
        compiler.map(|compiler| Toolchain { library, compiler: compiler.clone() })
    })
}

impl Found {
    fn look() -> Self {
        // `cargo run` tells which cargo runs; the compiler beside it is the one that belongs to it. A rustup proxy in that
        // place would do as well: rustup sets RUSTUP_TOOLCHAIN for everything below it.
        let cargo = env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        let rustc = env::var_os("RUSTC").map(PathBuf::from).unwrap_or_else(|| {
            let beside = cargo.with_file_name("rustc");
            if cargo.is_absolute() && beside.exists() { beside } else { "rustc".into() }
        });
        let active = Compiler::probe(cargo, rustc).ok();
        let debian = Compiler::probe("/usr/bin/cargo".into(), "/usr/bin/rustc".into()).ok();
        Self { active, debian }
    }

    /// The one command that installs what is missing.
    fn remedy(&self, targets: &[Target], wanted: Option<Library>) -> String {
        let triples: Vec<&str> = targets.iter().map(|target| target.triple()).collect();
        let sysroot = self.active.as_ref().map(|compiler| compiler.sysroot.as_path());
        let is_rustup =
            sysroot.is_some_and(|sysroot| sysroot.components().any(|part| part.as_os_str() == "toolchains"));
        let command = match wanted {
            Some(Library::Source) => "rustup component add rust-src".to_owned(),
            Some(Library::Debian) => debian::command_line(&DEBIAN_PACKAGES),
            Some(Library::Target) => format!("rustup {}", rustup_arguments(targets).join(" ")),
            None if is_rustup => format!("rustup {}", rustup_arguments(targets).join(" ")),
            None => debian::command_line(&DEBIAN_PACKAGES),
        };
        format!("there is no Rust standard library for {}; install it with: {command}", triples.join(" and "))
    }
}

impl Compiler {
    fn probe(cargo: PathBuf, rustc: PathBuf) -> Result<Self> {
        let ask = |arguments: &[&str]| -> Result<String> {
            // A library path for another toolchain would make this compiler load that one's parts.
            let output = Command::new(&rustc).args(arguments).env_remove("LD_LIBRARY_PATH").output()?;
            if !output.status.success() {
                bail!("{} {} failed ({})", rustc.display(), arguments.join(" "), output.status);
            }
            Ok(String::from_utf8(output.stdout)?)
        };
        let verbose = ask(&["--version", "--verbose"])?;
        let field =
            |name: &str| version_field(&verbose, name).with_context(|| format!("{} names no {name}", rustc.display()));
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim_end());
        Ok(Self {
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            commit: field("commit-hash")?,
            release: field("release")?,
            targets: Target::ALL.into_iter().filter(|target| has_library(&sysroot, *target)).collect(),
            has_source: sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml").exists(),
            cargo,
            rustc,
            sysroot,
        })
    }
}

/// Whether a toolchain has the target's standard library, and not just an empty directory of a removed one.
fn has_library(sysroot: &Path, target: Target) -> bool {
    let directory = sysroot.join("lib/rustlib").join(target.triple()).join("lib");
    fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libstd-") && name.ends_with(".rlib")
        })
    })
}

fn version_field(verbose: &str, name: &str) -> Option<String> {
    verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
}

/// Compares versions such as `1.96.0`, `1.97.0-nightly` and `1.95`.
fn is_older(version: &str, than: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        version.split(['.', '-']).map_while(|number| number.parse().ok()).chain([0, 0, 0]).take(3).collect()
    };
    numbers(version) < numbers(than)
}

fn rustup_arguments(targets: &[Target]) -> Vec<&'static str> {
    ["target", "add"].into_iter().chain(targets.iter().map(|target| target.triple())).collect()
}

#[cfg(test)]
mod tests {
    use super::{Compiler, Found, Library, choose, is_older, version_field};
    use crate::target::Target;

    fn compiler(release: &str, targets: &[Target], has_source: bool) -> Option<Compiler> {
        Some(Compiler {
            cargo: "cargo".into(),
            rustc: "rustc".into(),
            sysroot: "/home/user/.rustup/toolchains/stable".into(),
            version: format!("rustc {release} (0123abcd 2026-01-01)"),
            commit: "0123abcd".into(),
            release: release.into(),
            targets: targets.to_vec(),
            has_source,
        })
    }

    fn chosen(found: &Found, targets: &[Target]) -> Option<Library> {
        choose(found, targets, None).map(|toolchain| toolchain.library)
    }

    #[test]
    fn the_order_is_target_source_debian() {
        let debian = compiler("1.96.0", &[], true);
        let all = Found { active: compiler("1.95.0", &Target::ALL, true), debian: debian.clone() };
        assert_eq!(chosen(&all, &Target::ALL), Some(Library::Target));
        let source = Found { active: compiler("1.95.0", &[Target::X86_64], true), debian: debian.clone() };
        assert_eq!(chosen(&source, &Target::ALL), Some(Library::Source));
        assert_eq!(chosen(&source, &[Target::X86_64]), Some(Library::Target));
        let last = Found { active: compiler("1.95.0", &[], false), debian };
        assert_eq!(chosen(&last, &Target::ALL), Some(Library::Debian));
        assert_eq!(chosen(&Found::default(), &Target::ALL), None);
    }

    #[test]
    fn a_wish_leaves_no_alternative() {
        let found = Found { active: compiler("1.95.0", &[], true), debian: compiler("1.96.0", &[], true) };
        let wish = |library| choose(&found, &Target::ALL, Some(library)).map(|toolchain| toolchain.library);
        assert_eq!(wish(Library::Debian), Some(Library::Debian));
        assert_eq!(wish(Library::Target), None);
    }

    #[test]
    fn an_old_debian_compiler_does_not_count() {
        let found = Found { active: None, debian: compiler("1.85.0", &[], true) };
        assert_eq!(chosen(&found, &Target::ALL), None);
    }

    #[test]
    fn the_remedy_is_one_command() {
        let rustup = Found { active: compiler("1.95.0", &[], false), debian: None };
        assert!(
            rustup.remedy(&[Target::Aarch64], None).ends_with("with: rustup target add aarch64-unknown-linux-musl")
        );
        let plain = Found::default();
        assert!(plain.remedy(&[Target::Aarch64], None).contains("apt-get install --no-install-recommends rustc-web"));
    }

    #[test]
    fn compares_versions() {
        assert!(is_older("1.85.0", "1.95"));
        assert!(!is_older("1.95.0", "1.95"));
        assert!(!is_older("1.100.0-nightly", "1.95"));
        assert!(is_older("1.9", "1.10"));
    }

    #[test]
    fn reads_version_fields() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\ncommit-hash: ac68faa2\nrelease: 1.96.0\n";
        assert_eq!(version_field(verbose, "commit-hash").as_deref(), Some("ac68faa2"));
        assert_eq!(version_field(verbose, "release").as_deref(), Some("1.96.0"));
        assert_eq!(version_field(verbose, "host"), None);
    }
}
