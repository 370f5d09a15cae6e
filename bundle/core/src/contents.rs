//! Looking into a release without verifying who made it: for `inspect` and `diff`.
//!
//! What comes out of here agrees with the release's own manifest and is otherwise unverified. Nothing that decides about
//! trust may be built on it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::archive::{self, Entry, FormError};
use crate::digest::HashingReader;
use crate::gzip;
use crate::manifest::{self, MANIFEST, MAX_MANIFEST, Manifest};
use crate::release::head::{self, Head};
use crate::signature::MAX_SIGNATURE;

/// A release, as an archive or unpacked.
pub struct Contents {
    path: PathBuf,
    form: Form,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    signature: Option<Vec<u8>>,
    launcher_signatures: Vec<Vec<u8>>,
}

enum Form {
    Archive(Box<Head>),
    Directory,
}

impl Contents {
    /// Opens an archive, signed or not, or a release directory.
    ///
    /// # Errors
    /// It cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Self, head::Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| head::Error::Io { doing: "read", path, source }
        };
        if !std::fs::metadata(path).map_err(io(path))?.is_dir() {
            let head = head::read_head(path)?;
            return Ok(Self {
                path: path.to_owned(),
                manifest: head.manifest.clone(),
                manifest_bytes: head.manifest_bytes.clone(),
                signature: head.signature.clone(),
                launcher_signatures: head.launcher_signatures.clone(),
                form: Form::Archive(Box::new(head)),
            });
        }
        let read = |name: &str, limit: usize| {
            let file = path.join(name);
            let mut bytes = Vec::new();
            File::open(&file)
                .and_then(|opened| opened.take(limit as u64).read_to_end(&mut bytes))
                .map_err(io(&file))?;
            Ok(bytes)
        };
        let manifest_bytes = read(MANIFEST, MAX_MANIFEST)?;
        let manifest = Manifest::from_bytes(&manifest_bytes)
            .map_err(|source| head::Error::Manifest { path: path.join(MANIFEST), source })?;
        let mut signatures = Vec::new();
        for name in head::signature_names(&manifest) {
            match read(&name, MAX_SIGNATURE) {
                Ok(signature) => signatures.push(signature),
                Err(head::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        let mut signatures = signatures.into_iter();
        Ok(Self {
            path: path.to_owned(),
            form: Form::Directory,
            manifest,
            manifest_bytes,
            signature: signatures.next(),
            launcher_signatures: signatures.collect(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The archive's beginning; `None` for a directory.
    pub fn head(&self) -> Option<&Head> {
        match &self.form {
            Form::Archive(head) => Some(head),
            Form::Directory => None,
        }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as it stands in the release.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// The manifest's signature, if it has one.
    pub fn signature(&self) -> Option<&[u8]> {
        self.signature.as_deref()
    }

    /// The signatures over the launchers' sums, in the order of [`crate::launcher_sums::LauncherSums::of`]; fewer in a
    /// release that is not signed, or not whole.
    pub fn launcher_signatures(&self) -> &[Vec<u8>] {
        &self.launcher_signatures
    }

    /// Calls `look` with every file in the manifest's order and a reader of its contents. What `look` leaves unread is
    /// skipped; what it read whole is compared with the manifest.
    ///
    /// # Errors
    /// The release cannot be read, or differs from its manifest, or `look` failed.
    pub fn for_each(
        &self,
        mut look: impl FnMut(&manifest::File, &mut dyn Read) -> io::Result<()>,
    ) -> Result<(), head::Error> {
        // Only damage is the release's fault; a disk that fails or a signal is not.
        let not_a_release = |source: FormError| match source {
            FormError::Io(source)
                if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                head::Error::Io { doing: "read", path: self.path.clone(), source }
            }
            source => head::Error::NotARelease { path: self.path.clone(), source },
        };
        let mut visit = |file: &manifest::File, reader: &mut dyn Read| -> Result<(), FormError> {
            let mut hashing = HashingReader::new(reader.take(file.size));
            look(file, &mut hashing)?;
            let (mut rest, digest, length) = hashing.finish();
            if length == file.size && digest != file.sha256 {
                return Err(FormError::Differs {
                    path: file.path.to_string(),
                    field: "contents",
                    found: digest.to_string(),
                    expected: file.sha256.to_string(),
                });
            }
            if length + io::copy(&mut rest, &mut io::sink())? != file.size {
                return Err(FormError::Ends(format!("the rest of {}", file.path)));
            }
            Ok(())
        };
        match &self.form {
            Form::Directory => {
                for file in &self.manifest.files {
                    let path = self.path.join(file.path.as_str());
                    let mut opened = File::open(&path).map_err(|source| head::Error::Io {
                        doing: "read",
                        path: path.clone(),
                        source,
                    })?;
                    visit(file, &mut opened).map_err(not_a_release)?;
                }
                Ok(())
            }
            Form::Archive(head) => {
                let file = File::open(&self.path).map_err(|source| head::Error::Io {
                    doing: "read",
                    path: self.path.clone(),
                    source,
                })?;
                self.stream(file, head, &mut visit).map_err(not_a_release)
            }
        }
    }

    fn stream(
        &self,
        file: File,
        head: &Head,
        visit: &mut dyn FnMut(&manifest::File, &mut dyn Read) -> Result<(), FormError>,
    ) -> Result<(), FormError> {
        let manifest = &self.manifest;
        let mut stream = archive::Reader::new(gzip::Reader::new(BufReader::new(file), gzip::default_threads()));
        stream.expect(&archive::directory_header(manifest, "")?, manifest)?;
        let names = [MANIFEST.to_owned()].into_iter().chain(head::signature_names(manifest));
        let small = [&head.manifest_bytes].into_iter().chain(&head.signature).chain(&head.launcher_signatures);
        for (name, bytes) in names.zip(small) {
            stream.expect(&archive::manifest_header(manifest, &name, bytes.len())?, manifest)?;
            stream.small(&name, bytes.len() as u64, bytes.len())?;
        }
        for entry in archive::entries(manifest) {
            match entry {
                Entry::Directory(path) => stream.expect(&archive::directory_header(manifest, path)?, manifest)?,
                Entry::File(index) => {
                    stream.expect(&archive::file_header(manifest, index)?, manifest)?;
                    let file = &manifest.files[index];
                    visit(file, &mut stream.contents(file.size))?;
                    stream.padding(file.path.as_str(), file.size)?;
                }
            }
        }
        stream.end(manifest)
    }
}
