//! Brings an image that a vendor adds into the one form that ships: a tar file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::contents::Contents;
use super::summary::Summary;
use super::tarball::{Attributes, Writer};
use super::{Error, ImageSummary, quoted, summarize};
use crate::interrupt;

/// Directories below an OCI layout: `blobs` and `blobs/sha256`.
const MAX_DEPTH: usize = 2;

/// Copies the image at `path` to `writer` and checks it on the way, see [`summarize`].
///
/// A tar file, from `docker save` for instance, is copied as it is, so its digests stay what the vendor knows them as.
/// A directory with an OCI layout becomes a tar that is the same wherever it is made: sorted, without owners and times.
/// Symbolic links in such a directory are followed, as some build tools make layouts of them.
///
/// # Errors
/// It is not a complete image, or reading or writing failed. What was written by then is useless.
pub fn normalize(path: &Path, writer: impl Write) -> Result<ImageSummary, Error> {
    if fs::metadata(path).map_err(Error::Read)?.is_dir() {
        return from_directory(path, writer);
    }
    let mut copy = Copy { reader: File::open(path).map_err(Error::Read)?, writer, failed: None };
    let summary = summarize(&mut copy);
    match copy.failed {
        Some(error) => Err(Error::Write(error)),
        None => summary,
    }
}

fn from_directory(root: &Path, writer: impl Write) -> Result<ImageSummary, Error> {
    let mut files = BTreeMap::new();
    list(root, "", 0, &mut files)?;
    let directory = Attributes { mode: 0o755, owner: 0, modified: 0 };
    let plain = Attributes { mode: 0o644, ..directory };
    let mut contents = Contents::default();
    let mut tar = Writer::new(writer);
    for (name, path) in files {
        let Some(path) = path else {
            tar.directory(&name, directory).map_err(Error::Write)?;
            contents.add_directory(name)?;
            continue;
        };
        let file = File::open(&path).map_err(Error::Read)?;
        let size = file.metadata().map_err(Error::Read)?.len();
        tar.start_file(&name, plain, size).map_err(Error::Write)?;
        // One that grows or shrinks meanwhile ends up with another digest or too few bytes, and is refused for it.
        let mut copy = Copy { reader: file.take(size), writer: tar.contents(), failed: None };
        let added = contents.add_file(name, size, &mut copy);
        if let Some(error) = copy.failed {
            return Err(Error::Write(error));
        }
        added?;
        tar.end_file(size).map_err(Error::Write)?;
    }
    tar.finish().map_err(Error::Write)?;
    Summary::of(&contents)
}

/// Names relative to the layout with the paths of files, and `None` for directories. Sorted by name, a directory comes
/// before what is in it.
fn list(
    directory: &Path,
    prefix: &str,
    depth: usize,
    found: &mut BTreeMap<String, Option<PathBuf>>,
) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::Read)? {
        let entry = entry.map_err(Error::Read)?;
        let Ok(name) = entry.file_name().into_string() else {
            let name = quoted(&entry.file_name().to_string_lossy());
            return Err(Error::Name { name, reason: "it is not UTF-8" });
        };
        let name = format!("{prefix}{name}");
        let metadata = fs::metadata(entry.path()).map_err(Error::Read)?;
        if metadata.is_file() {
            found.insert(name, Some(entry.path()));
        } else if metadata.is_dir() && depth < MAX_DEPTH {
            list(&entry.path(), &format!("{name}/"), depth + 1, found)?;
            found.insert(name, None);
        } else if metadata.is_dir() {
            return Err(Error::Unreferenced(quoted(&name)));
        } else {
            return Err(Error::EntryType { name: quoted(&name), found: "neither file nor directory".to_owned() });
        }
    }
    Ok(())
}

/// Hands on what is read, and writes it as well.
struct Copy<R, W> {
    reader: R,
    writer: W,
    /// A failed write has to pass through readers that would call it a failed read.
    failed: Option<io::Error>,
}

impl<R: Read, W: Write> Read for Copy<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        let read = self.reader.read(buffer)?;
        if let Err(error) = self.writer.write_all(&buffer[..read]) {
            self.failed = Some(error);
            return Err(io::Error::other("the copy cannot be written"));
        }
        Ok(read)
    }
}
