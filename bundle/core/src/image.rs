//! Container images as single files.
//!
//! [`LauncherImage`] makes the launcher's image without a container engine. [`summarize`] proves that a file holds a
//! complete image and says what is in it; [`normalize()`] brings an image that a vendor adds into the form that ships.
//!
//! # The file
//!
//! An image file is a tar with an [OCI image layout] and, beside it, the `manifest.json` of `docker save` that points at
//! the same blobs:
//!
//! ```text
//! oci-layout  index.json       read by skopeo, containerd, Docker 25 and later
//! manifest.json                read by `docker load` of every Docker
//! blobs/sha256/…               manifests, configurations, layers: once, for both
//! ```
//!
//! `index.json` has a single entry, so tools need no tag to find the image: its manifest, or for two architectures the
//! image index over both. `docker load` before containerd's image store has one image per name, so there the plain
//! `spacelift-launcher:VERSION` is x86_64 when the file has it, and `-amd64` and `-arm64` are appended for the others.
//!
//! [OCI image layout]: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md

mod build;
mod contents;
mod document;
mod layer;
mod layout;
mod normalize;
mod summary;
mod tarball;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use build::{Built, LauncherImage, REPOSITORY};
pub use layout::{Blob, Document, Layout};
pub use normalize::normalize;
pub use summary::{ImageSummary, Kind, PlatformImage, summarize};

/// The architectures that the product is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// `x86_64`; `amd64` in the language of container images.
    X86_64,
    /// `aarch64`; `arm64` in the language of container images.
    Aarch64,
}

/// A string that names no supported architecture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a supported architecture: expected x86_64 or aarch64")]
pub struct ParseArchitectureError(String);

impl Architecture {
    /// The name that image manifests use.
    pub fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// `e_machine` of the ELF header.
    fn elf_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }
}

impl FromStr for Architecture {
    type Err = ParseArchitectureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            _ => Err(ParseArchitectureError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// Digest of a blob, written `sha256:` and 64 lower-case hexadecimal digits. The specification has other algorithms as
/// well; tools do not write them, and they are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BlobDigest(pub Digest);

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl From<BlobDigest> for String {
    fn from(digest: BlobDigest) -> Self {
        digest.to_string()
    }
}

/// A string that is not the digest of a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
pub struct ParseBlobDigestError(String);

impl FromStr for BlobDigest {
    type Err = ParseBlobDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = text.strip_prefix("sha256:").and_then(|digits| digits.parse().ok());
        digest.map(Self).ok_or_else(|| ParseBlobDigestError(quoted(text)))
    }
}

impl TryFrom<String> for BlobDigest {
    type Error = ParseBlobDigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Where an image runs, such as `linux/amd64` or `linux/arm/v7`. Only plain characters, so it prints safely.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// Operating system, such as `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Processor architecture, such as `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

/// Why an image file is not accepted, or could not be made. Names that come from the file are escaped and shortened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("it cannot be written: {0}")]
    Write(#[source] io::Error),

    /// The file is compressed as a whole.
    #[error(
        "the image file is compressed with {0}; unpack it first: the release compresses it once, for all of its files"
    )]
    Compressed(&'static str),
    /// The tar ends too early.
    #[error("the image file is cut off: {0}")]
    Truncated(&'static str),
    /// A tar header that makes no sense.
    #[error("the image file is not a tar, or a damaged one: at byte {offset}, {reason}")]
    Header {
        /// Where the header starts.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something after the tar's end, which other readers may take for more of the image.
    #[error("the image file has something after its end")]
    TrailingData,
    /// A name that could escape a directory or that two tools would read differently.
    #[error("the image file has an entry named {name}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// The broken rule.
        reason: &'static str,
    },
    /// The same name twice: which of them a tool takes depends on the tool.
    #[error("the image file has two entries named {0}")]
    Duplicate(String),
    /// A link, a device, a sparse file.
    #[error("the image file's entry {name} is {found}; only regular files and directories are allowed")]
    EntryType {
        /// The entry.
        name: String,
        /// What it is.
        found: String,
    },
    /// A PAX record that changes what the plain header says.
    #[error("the image file has the tar extension {0}, which could show different tools different files; {REPACK}")]
    Extension(String),
    /// More entries, more JSON or more data than any real image.
    #[error("the image file has more than {limit} {what}")]
    Limit {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },

    /// Neither of the two formats.
    #[error(
        "the file is not a container image: it has neither `oci-layout` nor `manifest.json`; expected the output of \
         `docker save` or `skopeo copy … oci-archive:FILE`"
    )]
    NotAnImage,
    /// A JSON document that cannot be read, or that contradicts the specification.
    #[error("{document}: {reason}")]
    Document {
        /// Its name.
        document: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that is referenced is not there.
    #[error("{referrer} refers to {name}, which the image file does not have; {REPACK}")]
    Missing {
        /// What is missing.
        name: String,
        /// Who refers to it.
        referrer: String,
    },
    /// Something is there that the image does not refer to.
    #[error("the image file has {0}, which belongs to no image in it; {REPACK}")]
    Unreferenced(String),
    /// Content that does not have the digest it is named or referenced by.
    #[error("{name} has the SHA-256 {found}, not {expected}: it was changed or damaged")]
    DigestMismatch {
        /// The content.
        name: String,
        /// The digest that it should have.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// Content that does not have the size it is referenced with.
    #[error("{name} has {found} bytes, but {referrer} says {expected}")]
    SizeMismatch {
        /// The content.
        name: String,
        /// Who refers to it.
        referrer: String,
        /// The size that it should have.
        expected: u64,
        /// The size that it has.
        found: u64,
    },
    /// A manifest under the name of another platform than its own.
    #[error("the manifest {manifest} is listed for {listed}, but its configuration says {configured}")]
    PlatformMismatch {
        /// Digest of the manifest.
        manifest: BlobDigest,
        /// What the index says.
        listed: String,
        /// What the image's configuration says.
        configured: String,
    },
    /// More than one image, so that there is no answer to which one is meant.
    #[error("the file holds more than one image for {0}; give every image its own file")]
    SeveralImages(String),
    /// `manifest.json` leads `docker load` to another image than `index.json` leads everyone else to.
    #[error("manifest.json and index.json describe different images: {0}; {REPACK}")]
    Disagreement(String),

    /// What should be a launcher is none, or one for another architecture.
    #[error("the launcher for {architecture} {reason}; check the file of --launcher {architecture}=FILE")]
    Launcher {
        /// What it was given for.
        architecture: Architecture,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No launcher was given.
    #[error("an image needs a launcher: give at least one of --launcher x86_64=PATH and --launcher aarch64=PATH")]
    NoLauncher,
}

const REPACK: &str = "pack the image again with `docker save` or `skopeo copy SOURCE oci-archive:FILE`";

impl Error {
    /// The exit code for it: 64 for a wrong call, 65 for bad data, 66 for a failed read, 74 for a failed write.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoLauncher => 64,
            Self::Read(_) => 66,
            Self::Write(_) => 74,
            _ => 65,
        }
    }
}

/// A name out of an untrusted file, fit for a message: escaped, and no longer than a line.
fn quoted(name: &str) -> String {
    const SHOWN: usize = 120;
    let mut shown: String = name.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}
