//! What is put into a downloads bucket: a key, and where its bytes are.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bundle_core::digest::Digest;

/// Bytes of one part of a multipart upload, and the largest object that is created in one request. Part boundaries are part of
/// an object's identity in S3, so this is never changed: an object of equal bytes must get an equal checksum.
pub(crate) const PART: u64 = 8 * 1024 * 1024;

/// The largest object that is written in place of another, in one request and from memory: those that readers find without a
/// version. A launcher has some 10 MB.
pub(crate) const WHOLE: u64 = 48 * 1024 * 1024;

/// An object to publish.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// The key below the bucket's prefix.
    pub(crate) key: String,
    /// Length in bytes.
    pub(crate) size: u64,
    /// SHA-256 of all of it, from the verified manifest or sums.
    pub(crate) sha256: Digest,
    source: Source,
    /// The SHA-256 of each part that was hashed already.
    sums: Arc<[OnceLock<[u8; 32]>]>,
}

#[derive(Debug, Clone)]
enum Source {
    /// A file of the private copy, opened once.
    File(Arc<File>),
    Bytes(Arc<[u8]>),
}

impl Object {
    /// An object whose bytes are in `file`.
    pub(crate) fn of_file(key: String, file: File, size: u64, sha256: Digest) -> Self {
        Self::new(key, size, sha256, Source::File(Arc::new(file)))
    }

    /// As [`Object::of_file`], with the file's path.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn of_path(key: String, path: &Path, size: u64, sha256: Digest) -> io::Result<Self> {
        Ok(Self::of_file(key, File::open(path)?, size, sha256))
    }

    /// A small object.
    pub(crate) fn of_bytes(key: String, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self::new(key, bytes.len() as u64, Digest::of(&bytes), Source::Bytes(bytes))
    }

    fn new(key: String, size: u64, sha256: Digest, source: Source) -> Self {
        let sums = (0..parts(size)).map(|_| OnceLock::new()).collect();
        Self { key, size, sha256, source, sums }
    }

    /// The same bytes under another key.
    pub(crate) fn under(&self, key: String) -> Self {
        Self { key, ..self.clone() }
    }

    /// How many parts it is sent in.
    pub(crate) fn parts(&self) -> u64 {
        parts(self.size)
    }

    /// Where part `index` is, from 0.
    pub(crate) fn range(&self, index: u64) -> Range<u64> {
        let start = index * PART;
        start..self.size.min(start + PART)
    }

    /// The bytes of part `index`, from 0.
    ///
    /// # Errors
    /// The private copy cannot be read, or is shorter than it was.
    pub(crate) fn part(&self, index: u64) -> io::Result<Vec<u8>> {
        let Range { start, end } = self.range(index);
        self.bytes(start, end - start)
    }

    /// The SHA-256 of `bytes`, which are part `index`.
    pub(crate) fn sum_of(&self, index: u64, bytes: &[u8]) -> [u8; 32] {
        *self.sums[index as usize].get_or_init(|| *Digest::of(bytes).as_bytes())
    }

    /// The SHA-256 of part `index`, which is read if it was not yet.
    ///
    /// # Errors
    /// As [`Object::part`].
    pub(crate) fn sum(&self, index: u64) -> io::Result<[u8; 32]> {
        match self.sums[index as usize].get() {
            Some(sum) => Ok(*sum),
            None => Ok(self.sum_of(index, &self.part(index)?)),
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`Object::part`].
    pub(crate) fn whole(&self) -> io::Result<Vec<u8>> {
        self.bytes(0, self.size)
    }

    fn bytes(&self, start: u64, length: u64) -> io::Result<Vec<u8>> {
        match &self.source {
            Source::Bytes(bytes) => Ok(bytes[start as usize..(start + length) as usize].to_vec()),
            Source::File(file) => {
                let mut part = vec![0; length as usize];
                file.read_exact_at(&mut part, start)?;
                Ok(part)
            }
        }
    }

    /// What a browser or a mirror takes it for.
    pub(crate) fn content_type(&self) -> &'static str {
        match self.key.rsplit('.').next() {
            Some("json") => "application/json",
            Some("yaml" | "txt" | "asc") => "text/plain",
            Some("sig") => "application/pgp-signature",
            Some("gz") => "application/gzip",
            _ => "application/octet-stream",
        }
    }
}

fn parts(size: u64) -> u64 {
    size.div_ceil(PART).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_an_object_exactly() {
        for size in [0, 1, PART - 1, PART, PART + 1, 3 * PART] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let object = Object::of_bytes("key".into(), bytes.clone());
            let all: Vec<u8> = (0..object.parts()).flat_map(|index| object.part(index).unwrap()).collect();
            assert_eq!(all, bytes);
            assert_eq!(object.whole().unwrap(), all);
            for index in 0..object.parts() {
                assert_eq!(object.sum(index).unwrap(), *Digest::of(&object.part(index).unwrap()).as_bytes());
            }
            assert_eq!(object.parts(), if size == 0 { 1 } else { size.div_ceil(PART) });
        }
    }
}
