//! Where the parts of an image are in its file, in the order in which a registry takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use super::document::{self, Descriptor, Index, Layout as Marker, Manifest};
use super::tarball::{self, Entry};
use super::{BlobDigest, Error, quoted};
use crate::digest::Digest;

/// One JSON document. The distribution specification asks registries to accept manifests of this size.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// Entries of an image file and documents in it: far more than any image of a release has.
const MAX_ENTRIES: usize = 4096;
/// Indexes inside each other, `index.json` included.
const MAX_DEPTH: usize = 4;

/// An image in a file, ready to be sent.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Configurations and layers, each once, the largest first.
    pub blobs: Vec<Blob>,
    /// Manifests and indexes, each after everything that it refers to. The last one is the image itself.
    pub documents: Vec<Document>,
}

/// A configuration or a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// What it is called by.
    pub digest: BlobDigest,
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is called by.
    pub digest: BlobDigest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes, which have this digest.
    pub bytes: Vec<u8>,
}

impl Layout {
    /// Finds the parts in an image file with an OCI layout. Headers and documents are read, and documents have the digests
    /// that they are referred to by; blobs are only located.
    ///
    /// # Errors
    /// It is not such a file, or a part is missing.
    pub fn read(file: &File) -> Result<Self, Error> {
        let mut start = file;
        start.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        let mut tar = tarball::Reader::new(BufReader::new(file));
        let mut files = BTreeMap::new();
        while let Some(entry) = tar.next_entry()? {
            if let Entry::File { name, size } = entry {
                if files.len() == MAX_ENTRIES {
                    return Err(Error::Limit { limit: MAX_ENTRIES as u64, what: "entries" });
                }
                files.insert(name, (tar.offset(), size));
            }
            tar.skip()?;
        }
        let mut finder = Finder { file, files, blobs: BTreeMap::new(), seen: BTreeSet::new(), documents: Vec::new() };
        finder.find()?;
        let mut blobs: Vec<Blob> = finder.blobs.into_values().collect();
        blobs.sort_by_key(|blob| (std::cmp::Reverse(blob.size), blob.digest));
        Ok(Self { blobs, documents: finder.documents })
    }

    /// The image itself: its index, or its only manifest.
    pub fn root(&self) -> &Document {
        self.documents.last().expect("an image has a manifest: `read` returns nothing else")
    }
}

struct Finder<'a> {
    file: &'a File,
    files: BTreeMap<String, (u64, u64)>,
    blobs: BTreeMap<BlobDigest, Blob>,
    seen: BTreeSet<BlobDigest>,
    documents: Vec<Document>,
}

impl Finder<'_> {
    fn find(&mut self) -> Result<(), Error> {
        const LAYOUT: &str = "oci-layout";
        const INDEX: &str = "index.json";
        let marker: Marker = document::parse(LAYOUT, &self.read(LAYOUT, "a registry, whose form is the OCI layout,")?)?;
        if marker.image_layout_version != document::LAYOUT_VERSION {
            let reason = format!("unknown version {}", quoted(&marker.image_layout_version));
            return Err(Error::Document { document: LAYOUT.into(), reason });
        }
        let bytes = self.read(INDEX, LAYOUT)?;
        let index: Index = document::parse(INDEX, &bytes)?;
        for descriptor in &index.manifests {
            self.document(descriptor, INDEX, 1)?;
        }
        let listed: BTreeSet<BlobDigest> = index.manifests.iter().map(|descriptor| descriptor.digest).collect();
        if listed.is_empty() {
            return Err(Error::Document { document: INDEX.into(), reason: "it lists no image".into() });
        }
        if listed.len() > 1 {
            // Several platforms without an index in between: then `index.json` itself is the image's index.
            let media_type = index.media_type.unwrap_or_else(|| document::INDEX.to_owned());
            self.documents.push(Document { digest: BlobDigest(Digest::of(&bytes)), media_type, bytes });
        }
        Ok(())
    }

    fn document(&mut self, descriptor: &Descriptor, referrer: &str, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::Limit { limit: MAX_DEPTH as u64, what: "indexes inside each other" });
        }
        if !self.seen.insert(descriptor.digest) {
            return Ok(());
        }
        if self.seen.len() > MAX_ENTRIES {
            return Err(Error::Limit { limit: MAX_ENTRIES as u64, what: "manifests" });
        }
        let name = path(descriptor.digest);
        let bytes = self.read(&name, referrer)?;
        let found = Digest::of(&bytes);
        if BlobDigest(found) != descriptor.digest {
            return Err(Error::DigestMismatch { name, expected: descriptor.digest.0, found });
        }
        match descriptor.media_type.as_str() {
            document::INDEX | document::DOCKER_INDEX => {
                let index: Index = document::parse(&name, &bytes)?;
                check_type(&name, index.media_type.as_deref(), &descriptor.media_type)?;
                for inner in &index.manifests {
                    self.document(inner, &name, depth + 1)?;
                }
            }
            document::MANIFEST | document::DOCKER_MANIFEST => {
                let manifest: Manifest = document::parse(&name, &bytes)?;
                check_type(&name, manifest.media_type.as_deref(), &descriptor.media_type)?;
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    self.blob(blob, &name)?;
                }
            }
            other => {
                let reason = format!("it lists something of the unknown type {}", quoted(other));
                return Err(Error::Document { document: referrer.to_owned(), reason });
            }
        }
        let media_type = descriptor.media_type.clone();
        self.documents.push(Document { digest: descriptor.digest, media_type, bytes });
        Ok(())
    }

    fn blob(&mut self, descriptor: &Descriptor, referrer: &str) -> Result<(), Error> {
        let name = path(descriptor.digest);
        let (offset, size) = self.locate(&name, referrer)?;
        if size != descriptor.size {
            let referrer = referrer.to_owned();
            return Err(Error::SizeMismatch { name, referrer, expected: descriptor.size, found: size });
        }
        self.blobs.insert(descriptor.digest, Blob { digest: descriptor.digest, offset, size });
        Ok(())
    }

    fn locate(&self, name: &str, referrer: &str) -> Result<(u64, u64), Error> {
        let missing = || Error::Missing { name: name.to_owned(), referrer: referrer.to_owned() };
        self.files.get(name).copied().ok_or_else(missing)
    }

    fn read(&self, name: &str, referrer: &str) -> Result<Vec<u8>, Error> {
        let (offset, size) = self.locate(name, referrer)?;
        if size > MAX_DOCUMENT {
            return Err(Error::Limit { limit: MAX_DOCUMENT, what: "bytes in a JSON document" });
        }
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::Read)?;
        Ok(bytes)
    }
}

/// `index.json` has no digest that vouches for it; what it lists has.
fn check_type(name: &str, own: Option<&str>, listed: &str) -> Result<(), Error> {
    match own {
        Some(own) if own != listed => {
            let reason = format!("it is of the type {}, but listed as {}", quoted(own), quoted(listed));
            Err(Error::Document { document: name.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

fn path(digest: BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.0)
}
