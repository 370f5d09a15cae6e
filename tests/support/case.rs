//! A hostile release kept as data: what it is, how the verifier is called, what it must answer.
//!
//! A case is a directory with a `case.json`, which holds a [`Case`], and the files of the release. Version control keeps
//! neither links nor pipes nor most permission bits, and huge files should not be kept at all: [`Preparation`] makes those
//! in a copy of the case before it is run.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The contents of `case.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What the attack or accident is, in one or two sentences.
    pub description: String,
    /// The archive or directory to verify, in the directory of the case.
    pub release: String,
    /// More arguments. They may name files of the case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// The pinned certificates: names in `data/certs`.
    pub certificates: Vec<String>,
    /// What has to be done to the copy of the case before it is run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prepare: Vec<Preparation>,
    /// The exit code.
    pub exit: u8,
    /// Every one of these must be in what the program prints: in the error if it refuses, in the report if it accepts.
    pub message: Vec<String>,
    /// For an accepted archive: the exit code of verifying the directory that it was unpacked to, if that is not 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_exit: Option<u8>,
}

/// One change to the copy of a case. Paths are below the directory of the case.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Preparation {
    /// Removes a file.
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// Makes an empty directory.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// Makes an empty file.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Makes an empty file whose name is these bytes.
    FileNamed {
        /// The directory that it goes to.
        path: PathBuf,
        /// The name.
        name: Vec<u8>,
    },
    /// Makes a symbolic link.
    Symlink {
        /// The link.
        path: PathBuf,
        /// What it leads to.
        target: PathBuf,
    },
    /// Makes a named pipe.
    Fifo {
        /// The pipe.
        path: PathBuf,
    },
    /// Sets permission bits.
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// The bits in octal.
        mode: String,
    },
    /// Takes permission bits away from everything in a directory, as a umask does when it is unpacked.
    Umask {
        /// The directory.
        path: PathBuf,
        /// The bits in octal.
        mask: String,
    },
    /// Lengthens a file with zeros, which take no room on the disk, or cuts it.
    Resize {
        /// The file.
        path: PathBuf,
        /// The new length in bytes.
        size: u64,
    },
}

/// The name of the file that describes a case.
pub const CASE: &str = "case.json";

impl Case {
    /// Reads `case.json` in `directory`.
    ///
    /// # Errors
    /// It is missing or not of the form of a [`Case`].
    pub fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(CASE);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is not a case", path.display()))
    }

    /// Copies the case to `copy`, which must not exist, and prepares the copy. What version control leaves to the umask is
    /// set: directories are 0755, files 0644 or 0755.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn set_up(&self, directory: &Path, copy: &Path) -> anyhow::Result<()> {
        copy_tree(directory, copy)?;
        for preparation in &self.prepare {
            preparation.apply(copy).with_context(|| format!("{preparation:?}"))?;
        }
        Ok(())
    }
}

impl Preparation {
    fn apply(&self, copy: &Path) -> anyhow::Result<()> {
        let octal = |digits: &str| u32::from_str_radix(digits, 8).with_context(|| format!("{digits} is not octal"));
        match self {
            Self::Remove { path } => fs::remove_file(copy.join(path))?,
            Self::Directory { path } => fs::create_dir(copy.join(path))?,
            Self::File { path } => fs::write(copy.join(path), b"")?,
            Self::FileNamed { path, name } => fs::write(copy.join(path).join(std::ffi::OsStr::from_bytes(name)), b"")?,
            Self::Symlink { path, target } => symlink(target, copy.join(path))?,
            Self::Fifo { path } => {
                let status = Command::new("mkfifo").arg("--").arg(copy.join(path)).status()?;
                ensure!(status.success(), "mkfifo failed: {status}");
            }
            Self::Mode { path, mode } => {
                fs::set_permissions(copy.join(path), fs::Permissions::from_mode(octal(mode)?))?
            }
            Self::Umask { path, mask } => take_bits_away(&copy.join(path), octal(mask)?)?,
            Self::Resize { path, size } => fs::OpenOptions::new().write(true).open(copy.join(path))?.set_len(*size)?,
        }
        Ok(())
    }
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            fs::write(&target, fs::read(&source)?)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
        }
    }
    Ok(())
}

fn take_bits_away(path: &Path, mask: u32) -> anyhow::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            take_bits_away(&entry?.path(), mask)?;
        }
    }
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(metadata.permissions().mode() & !mask))?)
}
