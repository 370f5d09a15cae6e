//! The archive: a tar stream with exactly one acceptable form.
//!
//! Every header follows from the manifest: path, size, mode and time; owner 0, plain ustar, regular files and
//! directories only. So the writer makes the headers from the manifest, and the reader makes the same headers and
//! compares them byte by byte with what the archive holds. Links, devices, `..`, absolute paths, PAX and GNU extensions,
//! sparse files, set-user-id bits, duplicate or missing or extra names: none of them can be what is expected next, so
//! none is ever interpreted. A parser only runs afterwards, to say what was found instead.
//!
//! Order: the release directory, `manifest.json`, its signature, then every other file by path, each directory before
//! the first file in it, two blocks of zeros, end. The directory and the manifest fill the first gzip member; the
//! signature is the second, and is absent from an unsigned archive. The rest begins a member of its own.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use crate::manifest::{MANIFEST, MANIFEST_SIGNATURE, Manifest};
use crate::names::is_signature_name;
use crate::{gzip, interrupt};

/// The unit of a tar stream.
const BLOCK: usize = 512;
/// What ends a tar stream.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Ends the name of an archive.
pub const SUFFIX: &str = ".tar.gz";
/// Ends the name of an archive without the manifest's signature.
pub const UNSIGNED_SUFFIX: &str = ".unsigned.tar.gz";

/// A header as it must be.
type Header = [u8; BLOCK];

/// What comes next in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// A directory below the release directory.
    Directory(&'a str),
    /// The file with this index in the manifest.
    File(usize),
}

/// Every entry after the manifest and its signature, in order.
pub(crate) fn entries(manifest: &Manifest) -> Vec<Entry<'_>> {
    let mut directories = BTreeSet::new();
    let mut entries = Vec::new();
    for (index, file) in manifest.files.iter().enumerate() {
        for parent in file.path.parents() {
            if directories.insert(parent) {
                entries.push(Entry::Directory(parent));
            }
        }
        entries.push(Entry::File(index));
    }
    entries
}

/// The header of a directory. `path` is empty for the release directory itself.
pub(crate) fn directory_header(manifest: &Manifest, path: &str) -> io::Result<Header> {
    let separator = if path.is_empty() { "" } else { "/" };
    header(&format!("{}{separator}{path}/", manifest.root()), tar::EntryType::Directory, 0o755, 0, manifest)
}

/// The header of `manifest.json` or of one of the signatures beside it.
pub(crate) fn manifest_header(manifest: &Manifest, name: &str, size: usize) -> io::Result<Header> {
    header(&format!("{}/{name}", manifest.root()), tar::EntryType::Regular, 0o644, size as u64, manifest)
}

/// The header of the file with this index.
pub(crate) fn file_header(manifest: &Manifest, index: usize) -> io::Result<Header> {
    let file = &manifest.files[index];
    header(
        &format!("{}/{}", manifest.root(), file.path),
        tar::EntryType::Regular,
        file.mode.bits(),
        file.size,
        manifest,
    )
}

fn header(path: &str, kind: tar::EntryType, mode: u32, size: u64, manifest: &Manifest) -> io::Result<Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(manifest.source_date);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Writes headers and contents, padded to whole blocks.
pub(crate) struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner }
    }

    pub(crate) fn inner(&mut self) -> &mut W {
        &mut self.inner
    }

    pub(crate) fn header(&mut self, header: &Header) -> io::Result<()> {
        self.inner.write_all(header)
    }

    /// Writes exactly `size` bytes of `contents`.
    pub(crate) fn contents(&mut self, contents: impl Read, size: u64) -> io::Result<()> {
        let mut contents = contents.take(size.saturating_add(1));
        let mut buffer = vec![0; 256 * 1024];
        let mut written = 0_u64;
        loop {
            interrupt::check()?;
            let read = contents.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            written += read as u64;
            if written > size {
                break;
            }
            self.inner.write_all(&buffer[..read])?;
        }
        if written != size {
            return Err(io::Error::other(format!("it changed while it was packed: {size} bytes were expected")));
        }
        self.inner.write_all(&END[..padding(size)])
    }

    /// The inner writer, without ending the stream.
    pub(crate) fn into_inner(self) -> W {
        self.inner
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&END)?;
        Ok(self.inner)
    }
}

fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK as u64) as usize
}

/// What the stream holds in place of what the manifest calls for.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The stream could not be read or inflated.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ends too early.
    #[error("the archive ends where {0} should follow")]
    Ends(String),
    /// An entry that is not a regular file or directory.
    #[error("{path} is {what}; a release holds only regular files and directories")]
    Special {
        /// The name in the archive.
        path: String,
        /// A symbolic link, a device, …
        what: &'static str,
    },
    /// A path that leaves the release directory.
    #[error("{0} leads out of the release directory")]
    Escapes(String),
    /// A file whose header differs from the manifest in size or mode, or in a field that must be zero.
    #[error("{path} differs from the manifest in its {field}: found {found}, expected {expected}")]
    Differs {
        /// The name in the archive.
        path: String,
        /// Size, mode, owner, …
        field: &'static str,
        /// As in the archive.
        found: String,
        /// As the manifest has it.
        expected: String,
    },
    /// A name that came before.
    #[error("{0} stands in the archive twice")]
    Duplicate(String),
    /// A name that the manifest does not list.
    #[error("{0} is in the archive but not in the manifest")]
    Extra(String),
    /// Something that must be there was left out.
    #[error("{missing} is missing from the archive ({found} stands in its place)")]
    Missing {
        /// What was left out.
        missing: String,
        /// What came instead.
        found: String,
    },
    /// Something after the end.
    #[error("there is data after the end of the tar stream")]
    TrailingData,
    /// Padding that hides data.
    #[error("the padding after {0} is not empty")]
    Padding(String),
    /// The entry is no tar header at all.
    #[error("the block where {0} should begin is not a tar header")]
    NotAHeader(String),
    /// The manifest or its signature is larger than allowed.
    #[error("{0}")]
    TooLarge(String),
}

/// Reads a stream block by block and compares.
pub(crate) struct Reader<R> {
    inner: R,
    seen: BTreeSet<String>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, seen: BTreeSet::new() }
    }

    fn fill(&mut self, buffer: &mut [u8], expecting: &str) -> Result<(), FormError> {
        if gzip::read_fully(&mut self.inner, buffer)? < buffer.len() {
            return Err(FormError::Ends(expecting.to_owned()));
        }
        Ok(())
    }

    /// Reads one header. `expecting` is what to call it if there is none.
    pub(crate) fn header(&mut self, expecting: &str) -> Result<Header, FormError> {
        let mut header = [0; BLOCK];
        self.fill(&mut header, expecting)?;
        Ok(header)
    }

    /// Reads one header that cannot be compared yet, because the manifest comes later: that of the release directory, if
    /// `name` is empty, or of a file directly in it. It is only looked at as far as is needed to read on; the caller
    /// compares it as soon as the manifest is known.
    pub(crate) fn head(&mut self, name: &str) -> Result<Header, FormError> {
        let wanted = if name.is_empty() { "the release directory" } else { name };
        let found = self.header(wanted)?;
        let path = plain_path(&found, wanted)?;
        if path.split_once('/').is_none_or(|(_, inside)| inside != name) {
            return Err(FormError::Missing { missing: wanted.to_owned(), found: path });
        }
        Ok(found)
    }

    /// Reads one header and requires it to be `expected`, the header of `path`.
    pub(crate) fn expect(&mut self, expected: &Header, manifest: &Manifest) -> Result<(), FormError> {
        let path = path_of(expected);
        let found = self.header(&path)?;
        self.compare(&found, expected, manifest)
    }

    /// Requires `found` to be `expected`, and otherwise says what is wrong with it.
    pub(crate) fn compare(&mut self, found: &Header, expected: &Header, manifest: &Manifest) -> Result<(), FormError> {
        if found == expected {
            self.seen.insert(path_of(found));
            return Ok(());
        }
        Err(self.explain(found, expected, manifest))
    }

    fn explain(&self, found: &Header, expected: &Header, manifest: &Manifest) -> FormError {
        let wanted = path_of(expected);
        let path = match plain_path(found, &wanted) {
            Ok(path) => path,
            Err(error) => return error,
        };
        let header = tar::Header::from_byte_slice(found);
        if path != wanted {
            let root = manifest.root();
            let listed = path.strip_prefix(&format!("{root}/")).is_some_and(|inside| {
                matches!(inside, MANIFEST | MANIFEST_SIGNATURE)
                    || is_signature_name(inside)
                    || manifest.file(inside).is_some()
            });
            let directory = path.ends_with('/');
            return if self.seen.contains(&path) {
                FormError::Duplicate(path)
            } else if listed || directory && wanted.starts_with(&root) && !wanted.ends_with('/') {
                FormError::Missing { missing: wanted, found: path }
            } else {
                FormError::Extra(path)
            };
        }
        let expected_header = tar::Header::from_byte_slice(expected);
        let number = |value: io::Result<u64>| value.map_or_else(|_| "nonsense".to_owned(), |value| value.to_string());
        let mode =
            |value: io::Result<u32>| value.map_or_else(|_| "nonsense".to_owned(), |value| format!("{value:04o}"));
        let fields: [(&'static str, String, String); 5] = [
            ("size", number(header.size()), number(expected_header.size())),
            ("mode", mode(header.mode()), mode(expected_header.mode())),
            ("owner", number(header.uid()), number(expected_header.uid())),
            ("group", number(header.gid()), number(expected_header.gid())),
            ("modification time", number(header.mtime()), number(expected_header.mtime())),
        ];
        for (field, found, expected) in fields {
            if found != expected {
                return FormError::Differs { path, field, found, expected };
            }
        }
        FormError::Differs { path, field: "tar header", found: "other bytes".into(), expected: "plain ustar".into() }
    }

    /// The contents that follow a header, without the padding. Call [`Reader::padding`] afterwards.
    pub(crate) fn contents(&mut self, size: u64) -> io::Take<&mut R> {
        self.inner.by_ref().take(size)
    }

    /// Reads small contents whole, with their padding.
    pub(crate) fn small(&mut self, name: &str, size: u64, limit: usize) -> Result<Vec<u8>, FormError> {
        if size > limit as u64 {
            return Err(FormError::TooLarge(format!("{name} has {size} bytes, more than the limit of {limit}")));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        self.contents(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(FormError::Ends(format!("the rest of {name}")));
        }
        self.padding(name, size)?;
        Ok(bytes)
    }

    /// Reads the padding that follows contents of `size` bytes.
    pub(crate) fn padding(&mut self, name: &str, size: u64) -> Result<(), FormError> {
        let mut bytes = [0; BLOCK];
        let bytes = &mut bytes[..padding(size)];
        self.fill(bytes, &format!("the padding after {name}"))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(FormError::Padding(name.to_owned()));
        }
        Ok(())
    }

    /// Requires the end of the stream, and nothing after it.
    pub(crate) fn end(&mut self, manifest: &Manifest) -> Result<(), FormError> {
        let first = self.header("the end of the tar stream")?;
        if first != END[..BLOCK] {
            let header = tar::Header::from_byte_slice(&first);
            if header.cksum().ok() != Some(checksum(&first)) {
                return Err(FormError::TrailingData);
            }
            // Any header that cannot be right serves to explain this one.
            return Err(self.explain(&first, &[0; BLOCK], manifest));
        }
        let second = self.header("the end of the tar stream")?;
        let mut more = [0];
        if second != END[..BLOCK] || self.inner.read(&mut more)? != 0 {
            return Err(FormError::TrailingData);
        }
        Ok(())
    }
}

/// The size field of a header.
pub(crate) fn size_of(header: &Header) -> Result<u64, FormError> {
    tar::Header::from_byte_slice(header).size().map_err(|_| FormError::Differs {
        path: path_of(header),
        field: "size",
        found: "nonsense".into(),
        expected: "a number".into(),
    })
}

/// The path in a header, if it is the header of a regular file or directory inside the release directory. `wanted` is
/// what to say is missing if it is no header.
fn plain_path(found: &Header, wanted: &str) -> Result<String, FormError> {
    if *found == END[..BLOCK] {
        return Err(FormError::Ends(wanted.to_owned()));
    }
    let header = tar::Header::from_byte_slice(found);
    if header.cksum().ok() != Some(checksum(found)) {
        return Err(FormError::NotAHeader(wanted.to_owned()));
    }
    let path = path_of(found);
    if let Some(what) = special(header.entry_type()) {
        return Err(FormError::Special { path, what });
    }
    if path.starts_with('/') || path.split('/').any(|component| component == "..") {
        return Err(FormError::Escapes(path));
    }
    Ok(path)
}

/// The name in a header, made safe to print.
pub(crate) fn path_of(header: &Header) -> String {
    let header = tar::Header::from_byte_slice(header);
    String::from_utf8_lossy(&header.path_bytes()).escape_debug().to_string()
}

fn checksum(header: &Header) -> u32 {
    header.iter().enumerate().map(|(index, byte)| if (148..156).contains(&index) { 32 } else { u32::from(*byte) }).sum()
}

fn special(kind: tar::EntryType) -> Option<&'static str> {
    Some(match kind {
        tar::EntryType::Regular | tar::EntryType::Directory => return None,
        tar::EntryType::Symlink => "a symbolic link",
        tar::EntryType::Link => "a hard link",
        tar::EntryType::Char | tar::EntryType::Block => "a device",
        tar::EntryType::Fifo => "a named pipe",
        tar::EntryType::GNUSparse => "a sparse file",
        tar::EntryType::XHeader | tar::EntryType::XGlobalHeader => "a PAX extension, which can override name and size",
        tar::EntryType::GNULongName | tar::EntryType::GNULongLink => "a GNU extension, which can override the name",
        _ => "of an unknown type",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    #[test]
    fn each_directory_comes_before_its_first_file() {
        let manifest = manifest(&[("bin/a", b""), ("a-b/c", b""), ("a/b/c", b""), ("a/b/d", b""), ("z", b"")]);
        let names: Vec<_> = entries(&manifest)
            .into_iter()
            .map(|entry| match entry {
                Entry::Directory(path) => format!("{path}/"),
                Entry::File(index) => manifest.files[index].path.to_string(),
            })
            .collect();
        assert_eq!(names, ["a-b/", "a-b/c", "a/", "a/b/", "a/b/c", "a/b/d", "bin/", "bin/a", "z"]);
    }

    #[test]
    fn the_longest_path_fits_a_plain_header() {
        let component = "x".repeat(50);
        let mut manifest = manifest(&[(&format!("{component}/{component}/{}", "y".repeat(48)), b"")]);
        manifest.product = "p".repeat(32);
        manifest.version = format!("v1.2.3-{}", "r".repeat(57)).parse().unwrap();
        file_header(&manifest, 0).unwrap();
    }

    #[test]
    fn contents_of_another_length_are_refused() {
        for size in [2, 4] {
            assert!(Writer::new(Vec::new()).contents(&b"abc"[..], size).is_err(), "{size}");
        }
    }
}
