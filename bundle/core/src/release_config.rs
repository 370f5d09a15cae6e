//! `release.yaml`: what a vendor decides about a release.
//!
//! ```yaml
//! product: self-hosted            # prefix of the archive's name; this is the default
//! channel: stable
//! sequence: 12                    # grows with every release of the channel
//! source: https://example.com/team/product
//! minimum_upgrade_from: v1.0.0    # older installations must upgrade to that version first; optional
//! signers:                        # certificates that ship in keys/; optional
//!   - certificate: keys/release.asc
//! threshold: 1                    # how many signers the vendor intends; 1 is the default
//! images:                         # more container images: an OCI layout directory, or a tar of one or of docker save
//!   - name: backend
//!     path: build/backend.tar
//! files:                          # more files: where they go in the archive, and where they come from
//!   - path: docs/upgrade.md
//!     source: docs/upgrade.md
//! ```
//!
//! Paths are relative to the file. Everything that is wrong is reported at once, each mistake with its line and column.

mod check;
mod yaml;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::manifest::ReleasePath;
use crate::source;
use crate::version::ReleaseVersion;

use yaml::Mark;

/// Limit of the file. One with every image and file that a release may hold has a tenth of this.
const MAX_FILE: u64 = 1024 * 1024;
/// More are not listed: whoever has that many reads the documentation first.
const MAX_SHOWN: usize = 50;

/// A release configuration without mistakes. The files that it names exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseConfig {
    /// Product name, the prefix of the archive's name.
    pub product: String,
    /// Channel, such as `stable`.
    pub channel: String,
    /// Grows with every release of the channel.
    pub sequence: u64,
    /// Where the sources are.
    pub source: source::Url,
    /// The oldest version that may be upgraded directly.
    pub minimum_upgrade_from: Option<ReleaseVersion>,
    /// Certificate files of the signers.
    pub signers: Vec<PathBuf>,
    /// How many signers the vendor intends; at least one, and no more than there are in `signers`, if there are any.
    pub threshold: u32,
    /// Additional container images.
    pub images: Vec<Image>,
    /// Additional files.
    pub files: Vec<AddedFile>,
    /// What paths are relative to; joined to every path above already.
    directory: PathBuf,
}

/// A container image that the vendor adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name: it becomes `container-images/NAME.tar`.
    pub name: String,
    /// The tar file or OCI layout directory.
    pub path: PathBuf,
}

/// A file that the vendor adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedFile {
    /// Where it goes in the archive.
    pub path: ReleasePath,
    /// Where it comes from.
    pub source: PathBuf,
}

impl ReleaseConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let unreadable = |reason: String| Problems { path: path.to_owned(), kind: Kind::Unreadable(reason) };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|error| unreadable(format!("the release configuration cannot be read: {error}")))?;
        let invalid = |problems| Problems { path: path.to_owned(), kind: Kind::Invalid(problems) };
        if bytes.len() as u64 > MAX_FILE {
            let message = format!("the file has more than {MAX_FILE} bytes; it cannot be a release configuration");
            return Err(invalid(vec![Problem::new(Mark::START, message)]));
        }
        let Ok(text) = String::from_utf8(bytes) else {
            return Err(invalid(vec![Problem::new(Mark::START, "the file is not UTF-8".to_owned())]));
        };
        let directory = path.parent().unwrap_or(Path::new(""));
        check::config(&text, directory).map_err(invalid)
    }

    /// A path as it is written in the file.
    fn written<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.directory).unwrap_or(path)
    }
}

/// As in the file, with the defaults filled in: paths are relative to the file.
impl Serialize for ReleaseConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            product: &'a str,
            channel: &'a str,
            sequence: u64,
            source: &'a str,
            minimum_upgrade_from: Option<&'a ReleaseVersion>,
            signers: Vec<Signer<'a>>,
            threshold: u32,
            images: Vec<Image<'a>>,
            files: Vec<AddedFile<'a>>,
        }
        #[derive(Serialize)]
        struct Signer<'a> {
            certificate: &'a Path,
        }
        #[derive(Serialize)]
        struct Image<'a> {
            name: &'a str,
            path: &'a Path,
        }
        #[derive(Serialize)]
        struct AddedFile<'a> {
            path: &'a ReleasePath,
            source: &'a Path,
        }
        let signers = self.signers.iter().map(|path| Signer { certificate: self.written(path) });
        let images = self.images.iter().map(|image| Image { name: &image.name, path: self.written(&image.path) });
        let files = self.files.iter().map(|file| AddedFile { path: &file.path, source: self.written(&file.source) });
        let written = Written {
            product: &self.product,
            channel: &self.channel,
            sequence: self.sequence,
            source: self.source.as_str(),
            minimum_upgrade_from: self.minimum_upgrade_from.as_ref(),
            signers: signers.collect(),
            threshold: self.threshold,
            images: images.collect(),
            files: files.collect(),
        };
        written.serialize(serializer)
    }
}

/// Everything that is wrong with a release configuration. Its `Display` has one line for each mistake:
/// `release.yaml:LINE:COLUMN: message`.
#[derive(Debug, thiserror::Error)]
pub struct Problems {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Unreadable(String),
    Invalid(Vec<Problem>),
}

impl Problems {
    /// The exit code for it: 66 if the file cannot be read, 64 for mistakes in it.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Unreadable(_) => 66,
            Kind::Invalid(_) => 64,
        }
    }

    /// The mistakes in the order of the file: line, column and message. Empty if the file cannot be read at all.
    pub fn list(&self) -> impl Iterator<Item = (usize, usize, &str)> {
        let problems = match &self.kind {
            Kind::Unreadable(_) => [].as_slice(),
            Kind::Invalid(problems) => problems,
        };
        problems.iter().map(|problem| (problem.mark.line, problem.mark.column, problem.message.as_str()))
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let problems = match &self.kind {
            Kind::Unreadable(reason) => return write!(f, "{path}: {reason}"),
            Kind::Invalid(problems) => problems,
        };
        for (index, Problem { mark, message }) in problems.iter().take(MAX_SHOWN).enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{path}:{}:{}: {message}", mark.line, mark.column)?;
        }
        match problems.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n{path}: and {more} more"),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    mark: Mark,
    message: String,
}

impl Problem {
    fn new(mark: Mark, message: String) -> Self {
        Self { mark, message }
    }
}
