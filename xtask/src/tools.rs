//! Programs from the Python package index at exactly the pinned versions, in `target/tools`: zig and cargo-zigbuild, and
//! the AWS emulator of the tests.
//!
//! All come as Python wheels, so `pip` fetches them: from the package index that the machine is configured for, checked
//! against the hashes in `xtask/tools/zig.txt`. pip runs in a virtual environment because the system's Python is not to be
//! changed; the programs themselves need no Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::debian::{self, Installing};
use crate::progress::Progress;
use crate::workspace::Workspace;

/// The wheels and their hashes, for x86_64 and aarch64 Linux.
const REQUIREMENTS: &str = include_str!("../tools/zig.txt");

/// The installed tools.
#[derive(Debug)]
pub(crate) struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// The tools of this checkout, which may not be installed yet.
    pub(crate) fn of(workspace: &Workspace) -> Self {
        Self { directory: workspace.tools().join(directory_name(REQUIREMENTS)) }
    }

    pub(crate) fn are_installed(&self) -> bool {
        self.directory.exists()
    }

    pub(crate) fn cargo_zigbuild(&self) -> PathBuf {
        self.directory.join("bin/cargo-zigbuild")
    }

    pub(crate) fn zig(&self) -> PathBuf {
        self.directory.join("ziglang/zig")
    }

    /// zig's cache of compiled C libraries and cargo-zigbuild's wrappers: inside the checkout, not in the home directory.
    pub(crate) fn cache(&self) -> PathBuf {
        self.directory.with_extension("cache")
    }

    /// What the tools are, for people.
    pub(crate) fn description() -> String {
        Self::versions().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ")
    }

    /// Names and versions.
    pub(crate) fn versions() -> impl Iterator<Item = (&'static str, &'static str)> {
        pins(REQUIREMENTS)
    }

    /// The version of the C library that zig links in.
    pub(crate) fn musl_version(&self) -> Result<String> {
        let file = self.directory.join("ziglang/lib/libc/musl/src/internal/version.h");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let version = text.split('"').nth(1).with_context(|| format!("{} has no version", file.display()))?;
        Ok(version.to_owned())
    }

    /// Installs them if they are not there.
    pub(crate) fn install(&self, workspace: &Workspace, installing: Installing, progress: &Progress) -> Result<()> {
        if self.are_installed() {
            return Ok(());
        }
        let python = python(installing, progress)?;
        let venv = workspace.tools().join("pip");
        progress.run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&venv))?;
        // The directory gets its name when it is complete: an interrupted installation starts over.
        let partial = self.directory.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"])
            .args(["--require-hashes", "--only-binary=:all:", "--no-deps", "--no-compile"])
            .arg("--target")
            .arg(&partial)
            .arg("--requirement")
            .arg(workspace.root().join("xtask/tools/zig.txt"));
        progress.run(&mut pip).context("cannot fetch zig and cargo-zigbuild from the Python package index")?;
        fs::rename(&partial, &self.directory)
            .with_context(|| format!("cannot rename {} to {}", partial.display(), self.directory.display()))
    }
}

/// What the AWS emulator and the linter of templates are made of, for any processor.
const EMULATOR_REQUIREMENTS: &str = include_str!("../../tests/support/aws_emulator.txt");

/// The Python environment with the programs that tests run, in `target/tools/aws-emulator`.
///
/// # Errors
/// It is not there and may not be made, or a package cannot be fetched.
pub(crate) fn install_emulator(workspace: &Workspace, installing: Installing, progress: &Progress) -> Result<()> {
    let venv = workspace.tools().join("aws-emulator");
    // Written last: what is there without it is half an environment, or one of other versions.
    let installed = venv.join("requirements.txt");
    if fs::read_to_string(&installed).is_ok_and(|text| text == EMULATOR_REQUIREMENTS) {
        return Ok(());
    }
    let python = python(installing, progress)?;
    progress.run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet"])
        .args(["--require-hashes", "--only-binary=:all:", "--no-deps", "--requirement"])
        .arg(workspace.root().join("tests/support/aws_emulator.txt"));
    progress.run(&mut pip).context("cannot fetch the AWS emulator from the Python package index")?;
    fs::write(&installed, EMULATOR_REQUIREMENTS).with_context(|| format!("cannot write {}", installed.display()))
}

/// A Python that can make virtual environments; Debian keeps that in a package of its own.
fn python(installing: Installing, progress: &Progress) -> Result<PathBuf> {
    if let Some(python) = usable_python() {
        return Ok(python);
    }
    debian::install(&["python3-venv"], installing, progress)?;
    usable_python().context("python3 cannot make virtual environments, although python3-venv is installed")
}

fn usable_python() -> Option<PathBuf> {
    let makes_environments = |python: &Path| {
        let output = Command::new(python).args(["-c", "import venv, ensurepip"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    debian::find_program("python3")
        .into_iter()
        .chain([PathBuf::from("/usr/bin/python3")])
        .find(|python| makes_environments(python))
}

/// `name==version` of every requirement.
fn pins(requirements: &str) -> impl Iterator<Item = (&str, &str)> {
    requirements
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next()?.split_once("=="))
}

/// A directory per set of versions: another pin is another directory, never an update in place.
fn directory_name(requirements: &str) -> String {
    let pins: Vec<String> = pins(requirements).map(|(name, version)| format!("{name}-{version}")).collect();
    pins.join("+").replace('.', "_")
}

/// Fails where a network is needed and forbidden.
pub(crate) fn require_network(offline: bool, what: &str) -> Result<()> {
    if offline {
        bail!("{what} must be fetched once; run the command without --offline");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{REQUIREMENTS, directory_name, pins};

    #[test]
    fn every_requirement_is_pinned_with_a_hash_per_processor() {
        assert_eq!(pins(REQUIREMENTS).count(), 2);
        assert_eq!(REQUIREMENTS.matches("--hash=sha256:").count(), 4);
    }

    #[test]
    fn the_directory_tells_the_versions() {
        assert_eq!(directory_name("# zig\na==1.2 \\\n  --hash=sha256:00\nb==3\n"), "a-1_2+b-3");
    }
}
