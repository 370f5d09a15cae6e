//! Debian and Ubuntu packages: installed where that is allowed, named where it is not.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::Progress;

/// Whether missing programs may be installed on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installing {
    /// The user runs as root on Debian or Ubuntu and did not forbid it.
    Allowed,
    /// Anything else: the command that is missing is named instead.
    Refused,
}

impl Installing {
    pub(crate) fn decide(forbidden: bool) -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if !forbidden && is_root() && is_debian(&release) { Self::Allowed } else { Self::Refused }
    }
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Whether an `os-release` file is that of Debian, Ubuntu or one of their descendants.
fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|ids| ids.trim_matches('"').split(' '))
        .any(|id| matches!(id, "debian" | "ubuntu"))
}

/// Installs packages, or fails with the command that would.
pub(crate) fn install(packages: &[&str], installing: Installing, progress: &Progress) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if installing == Installing::Refused {
        bail!("some packages are missing; install them with: {}", command_line(packages));
    }
    progress.note(&format!("Installing Debian packages: {}", packages.join(" ")));
    // One of several package sources may be out of reach and still the packages be there: what counts is the installation.
    if let Err(error) = progress.run(&mut apt(&["update"])) {
        progress.note(&format!("apt-get update did not succeed, going on with the lists that are there: {error}"));
    }
    progress.run(apt(&["install", "--yes", "--no-install-recommends"]).args(packages))?;
    Ok(())
}

/// The command that a user would type.
pub(crate) fn command_line(packages: &[&str]) -> String {
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

fn apt(arguments: &[&str]) -> Command {
    /// Seconds to wait for another package manager, such as unattended upgrades right after boot.
    const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=300";
    let mut command = Command::new("apt-get");
    command.args(["-o", LOCK_TIMEOUT, "--quiet"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The packages of a table from program to package whose programs are not on the PATH.
pub(crate) fn missing<'a>(table: &[(&str, &'a str)]) -> Vec<&'a str> {
    let mut packages: Vec<&str> = Vec::new();
    for (program, package) in table {
        if find_program(program).is_none() && !packages.contains(package) {
            packages.push(package);
        }
    }
    packages
}

/// A program on the PATH, or where Debian keeps programs of the administrator.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::{find_program, is_debian, missing};

    #[test]
    fn recognises_debian_and_its_descendants() {
        assert!(is_debian("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\n"));
        assert!(!is_debian("NAME=\"not debian\"\nID=arch\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn names_each_missing_package_once() {
        let table = [("sh", "dash"), ("no-such-program", "some"), ("no-such-either", "some")];
        assert_eq!(missing(&table), ["some"]);
    }

    #[test]
    fn finds_programs() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program"), None);
    }
}
