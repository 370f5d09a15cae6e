//! What the programs in a release say about themselves. They are read, never run.

use serde::Serialize;

use crate::build_note::{self, Elf};
use crate::digest::Digest;

pub(crate) use crate::verify::MAX_BINARY;

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binary {
    /// Its path in the release.
    pub path: String,
    /// Its build note.
    pub build: Option<Build>,
    /// Whether it starts without a dynamic loader and without libraries.
    #[serde(rename = "static")]
    pub is_static: Option<bool>,
    /// The worker that it carries.
    pub worker: Option<Worker>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Which build a program is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Name.
    pub program: String,
    /// Release version.
    pub version: String,
    /// Commit, or `unknown`.
    pub commit: String,
    /// Target triple.
    pub target: String,
}

/// The worker inside a launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// Release version.
    pub version: String,
    /// Commit, or `unknown`.
    pub commit: String,
    /// Target triple.
    pub target: String,
    /// SHA-256 of the worker's file.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The bytes that it takes in the launcher.
    pub compressed_size: u64,
}

impl Binary {
    /// Looks at the file's contents, which are `None` if there are more than [`MAX_BINARY`].
    pub(crate) fn of(path: &str, contents: Option<&[u8]>) -> Self {
        let mut binary = Self { path: path.to_owned(), build: None, is_static: None, worker: None, problem: None };
        let Some(contents) = contents else {
            binary.problem = Some(format!("it has more than {MAX_BINARY} bytes and was not looked into"));
            return binary;
        };
        if let Err(error) = binary.read(contents) {
            binary.problem = Some(error.to_string());
        }
        binary
    }

    fn read(&mut self, contents: &[u8]) -> Result<(), build_note::Error> {
        let elf = Elf::parse(contents)?;
        self.is_static = Some(elf.is_static());
        let note = elf.build_note()?;
        self.build = Some(Build {
            program: note.program,
            version: note.version.to_string(),
            commit: note.commit,
            target: note.target,
        });
        let Some(worker) = note.worker else { return Ok(()) };
        self.worker = Some(Worker {
            version: worker.version.to_string(),
            commit: worker.commit,
            target: worker.target,
            sha256: worker.sha256,
            size: worker.size,
            compressed_size: worker.compressed_size,
        });
        elf.embedded_worker().map(drop)
    }
}
