//! What is in an image file or directory, before anything is known about what belongs together.
//!
//! Small JSON is kept, everything else is only hashed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use flate2::write::MultiGzDecoder;

use super::tarball;
use super::{Error, quoted};
use crate::digest::{Digest, HashingWriter};

/// Entries of an image file. Docker's limit of 127 layers gives some 400 for an image.
const MAX_ENTRIES: usize = 4096;
/// One JSON document. The distribution specification asks registries to accept manifests of this size.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// All JSON documents that are kept. Real images have some 20 KiB; a verifier must stay below 64 MiB in all.
const MAX_DOCUMENTS: u64 = 16 * 1024 * 1024;
/// Compressed layers of `docker save` archives are inflated to be hashed: this many bytes in all, a minute's work.
const MAX_INFLATED: u64 = 64 * 1024 * 1024 * 1024;
/// Large enough that a system call per buffer costs nothing.
const BUFFER: usize = 128 * 1024;

/// Files, directories and links by name.
#[derive(Default)]
pub(super) struct Contents {
    files: BTreeMap<String, File>,
    directories: BTreeSet<String>,
    links: BTreeMap<String, String>,
    kept: u64,
    inflated: u64,
    buffer: Vec<u8>,
}

/// A file that was read.
pub(super) struct File {
    /// Length in bytes.
    pub(super) size: u64,
    /// Digest of the contents.
    pub(super) digest: Digest,
    /// Digest of the contents once they are uncompressed. Unknown for compressed blobs, whose own digest counts.
    pub(super) diff_id: Option<Digest>,
    document: Text,
}

enum Text {
    /// It may be JSON.
    Kept(Vec<u8>),
    /// It may be JSON, but there is too much of it.
    TooMuch,
    /// It is no JSON.
    None,
}

impl File {
    /// The contents, if they can be a JSON document.
    pub(super) fn document(&self, name: &str) -> Result<&[u8], Error> {
        match &self.document {
            Text::Kept(bytes) => Ok(bytes),
            Text::TooMuch if self.size > MAX_DOCUMENT => {
                Err(Error::Limit { limit: MAX_DOCUMENT, what: "bytes in a JSON document" })
            }
            Text::TooMuch => Err(Error::Limit { limit: MAX_DOCUMENTS, what: "bytes in JSON documents" }),
            Text::None => Err(Error::Document { document: quoted(name), reason: "it is not JSON".to_owned() }),
        }
    }
}

impl Contents {
    pub(super) fn file(&self, name: &str) -> Option<&File> {
        self.files.get(name)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(name, file)| (name.as_str(), file))
    }

    pub(super) fn directories(&self) -> impl Iterator<Item = &str> {
        self.directories.iter().map(String::as_str)
    }

    /// Links with the files that they lead to, which need not be there.
    pub(super) fn links(&self) -> impl Iterator<Item = (&str, &str)> {
        self.links.iter().map(|(name, target)| (name.as_str(), target.as_str()))
    }

    pub(super) fn link(&self, name: &str) -> Option<&str> {
        self.links.get(name).map(String::as_str)
    }

    /// Adds a directory.
    pub(super) fn add_directory(&mut self, name: String) -> Result<(), Error> {
        self.check_new(&name)?;
        self.directories.insert(name);
        Ok(())
    }

    /// Adds a symbolic link of the one form that `docker save`, podman and skopeo write into their archives:
    /// `HEX/layer.tar` leads to `../HEX.tar` or `../HEX/layer.tar`. Nothing here follows it on a file system.
    pub(super) fn add_link(&mut self, name: String, target: &str) -> Result<(), Error> {
        self.check_new(&name)?;
        let layer = |path: &str| path.strip_suffix("/layer.tar").is_some_and(|hex| hex.parse::<Digest>().is_ok());
        let flat = |path: &str| path.strip_suffix(".tar").is_some_and(|hex| hex.parse::<Digest>().is_ok());
        match target.strip_prefix("../") {
            Some(target) if layer(&name) && (layer(target) || flat(target)) => {
                self.links.insert(name, target.to_owned());
                Ok(())
            }
            _ => Err(Error::EntryType { name: quoted(&name), found: "a symbolic link".to_owned() }),
        }
    }

    /// Reads and adds a file. A blob must have the content that its name says.
    pub(super) fn add_file(&mut self, name: String, size: u64, reader: &mut dyn Read) -> Result<(), Error> {
        self.check_new(&name)?;
        let blob = match name.strip_prefix("blobs/").map(|rest| rest.strip_prefix("sha256/").map(str::parse::<Digest>))
        {
            None => None,
            Some(Some(Ok(digest))) => Some(digest),
            Some(_) => {
                let reason = "what is below `blobs` is named `blobs/sha256/` and its digest";
                return Err(Error::Name { name: quoted(&name), reason });
            }
        };
        self.buffer.resize(BUFFER, 0);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut hash = HashingWriter::new(io::sink());
        let mut document = Text::None;
        let mut layer = Layer::Plain;
        let mut left = size;
        while left > 0 {
            let chunk = match reader.read(&mut buffer) {
                Ok(0) => return Err(Error::Truncated("it ends within an entry")),
                Ok(n) => &buffer[..n],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(tarball::read_error(error)),
            };
            if left == size {
                document = self.start_document(size, chunk);
                layer = Layer::start(chunk, blob.is_some(), MAX_INFLATED - self.inflated);
            }
            left = left.saturating_sub(chunk.len() as u64);
            hash.write_all(chunk).map_err(Error::Read)?;
            layer.add(&name, chunk)?;
            if let Text::Kept(bytes) = &mut document {
                bytes.extend_from_slice(chunk);
            }
        }
        self.buffer = buffer;
        let (_, digest, size) = hash.finish();
        if let Some(expected) = blob
            && expected != digest
        {
            return Err(Error::DigestMismatch { name: quoted(&name), expected, found: digest });
        }
        let diff_id = match layer {
            Layer::Plain => Some(digest),
            Layer::CompressedBlob => None,
            Layer::Gzip(inflater) => {
                let Ok(Inflated { hash, .. }) = inflater.finish() else {
                    return Err(damaged(&name));
                };
                let (_, digest, length) = hash.finish();
                self.inflated += length;
                Some(digest)
            }
        };
        self.files.insert(name, File { size, digest, diff_id, document });
        Ok(())
    }

    fn check_new(&self, name: &str) -> Result<(), Error> {
        if self.files.len() + self.directories.len() + self.links.len() >= MAX_ENTRIES {
            return Err(Error::Limit { limit: MAX_ENTRIES as u64, what: "entries" });
        }
        if self.files.contains_key(name) || self.directories.contains(name) || self.links.contains_key(name) {
            return Err(Error::Duplicate(quoted(name)));
        }
        Ok(())
    }

    fn start_document(&mut self, size: u64, chunk: &[u8]) -> Text {
        if !matches!(chunk.trim_ascii_start().first(), Some(b'{' | b'[')) {
            return Text::None;
        }
        if size > MAX_DOCUMENT || self.kept + size > MAX_DOCUMENTS {
            return Text::TooMuch;
        }
        self.kept += size;
        Text::Kept(Vec::new())
    }
}

fn damaged(name: &str) -> Error {
    Error::Document { document: quoted(name), reason: "it starts as a gzip file, but is damaged".to_owned() }
}

/// A file that may be a layer.
enum Layer {
    /// Not compressed, as far as can be told.
    Plain,
    /// Its own digest is what others refer to: there is no need to inflate it.
    CompressedBlob,
    /// The digest of what is in it is what others refer to.
    Gzip(Box<MultiGzDecoder<Inflated>>),
}

impl Layer {
    fn start(chunk: &[u8], blob: bool, allowance: u64) -> Self {
        match (chunk.starts_with(&[0x1f, 0x8b]), blob) {
            (false, _) => Self::Plain,
            (true, true) => Self::CompressedBlob,
            (true, false) => {
                let inflated = Inflated { hash: HashingWriter::new(io::sink()), left: allowance };
                Self::Gzip(Box::new(MultiGzDecoder::new(inflated)))
            }
        }
    }

    fn add(&mut self, name: &str, chunk: &[u8]) -> Result<(), Error> {
        let Self::Gzip(inflater) = self else {
            return Ok(());
        };
        match inflater.write_all(chunk) {
            Ok(()) => Ok(()),
            Err(_) if inflater.get_ref().left == 0 => {
                Err(Error::Limit { limit: MAX_INFLATED, what: "bytes in its layers" })
            }
            Err(_) => Err(damaged(name)),
        }
    }
}

/// Hashes what comes out of a compressed layer, as long as it is not a bomb.
struct Inflated {
    hash: HashingWriter<io::Sink>,
    left: u64,
}

impl Write for Inflated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => self.left = left,
            None => {
                self.left = 0;
                return Err(io::Error::other("too much"));
            }
        }
        self.hash.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
