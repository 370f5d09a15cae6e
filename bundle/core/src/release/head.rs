//! What stands at the beginning of an archive, read without verifying who made it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::archive::{self, FormError};
use crate::digest::{Digest, HashingWriter};
use crate::launcher_sums::LauncherSums;
use crate::manifest::{self, MANIFEST, MANIFEST_SIGNATURE, MAX_MANIFEST, Manifest};
use crate::signature::MAX_SIGNATURE;
use crate::{gzip, interrupt, signing};

/// What stands at the beginning of an archive. Nothing of it is verified.
pub struct Head {
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest as it stands in the archive.
    pub manifest_bytes: Vec<u8>,
    /// The manifest's signature; `None` in an unsigned archive.
    pub signature: Option<Vec<u8>>,
    /// The signatures over the launchers' sums, as many as there are launchers; none in an unsigned archive.
    pub launcher_signatures: Vec<Vec<u8>>,
    /// Compressed length of the first member.
    pub(super) first: u64,
    /// Compressed length of the signatures' member, 0 if there is none.
    pub(super) second: u64,
}

/// Why a release cannot be signed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// Read or write.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Not an archive that this program packed.
    #[error("{} is not a release archive: {source}", .path.display())]
    NotARelease {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormError,
    },
    /// The manifest is not in order.
    #[error("{}: {source}", .path.display())]
    Manifest {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: manifest::Error,
    },
    /// A signer failed.
    #[error(transparent)]
    Signing(#[from] signing::Error),
    /// The release that is to get another signature is not in order.
    #[error("{} cannot get another signature: {reason}", .path.display())]
    NotSignable {
        /// The archive or its sums.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

/// Reads the beginning of an archive.
///
/// # Errors
/// See [`Error`].
pub fn read_head(path: &Path) -> Result<Head, Error> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let not_a_release = |source: FormError| match source {
        FormError::Io(error) if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            io_error("read", path)(error)
        }
        source => Error::NotARelease { path: path.to_owned(), source },
    };
    let mut reader = BufReader::new(file);
    let no_member = || not_a_release(FormError::Ends(MANIFEST.to_owned()));
    let first = gzip::read_member(&mut reader, 0).map_err(|error| not_a_release(error.into()))?;
    let first = first.ok_or_else(no_member)?;
    let mut stream = archive::Reader::new(gzip::Reader::new(first.as_slice(), 1));
    let head = (|| {
        let directory = stream.header("the release directory")?;
        let header = stream.header(MANIFEST)?;
        let bytes = stream.small(MANIFEST, archive::size_of(&header)?, MAX_MANIFEST)?;
        Ok((directory, header, bytes))
    })();
    let (directory, header, manifest_bytes) = head.map_err(not_a_release)?;
    let manifest =
        Manifest::from_bytes(&manifest_bytes).map_err(|source| Error::Manifest { path: path.to_owned(), source })?;
    let expected = archive::directory_header(&manifest, "")
        .and_then(|directory| Ok((directory, archive::manifest_header(&manifest, MANIFEST, manifest_bytes.len())?)));
    let (expected_directory, expected_header) = expected.map_err(|error| not_a_release(error.into()))?;
    stream.compare(&directory, &expected_directory, &manifest).map_err(not_a_release)?;
    stream.compare(&header, &expected_header, &manifest).map_err(not_a_release)?;

    let second = gzip::read_member(&mut reader, first.len() as u64).map_err(|error| not_a_release(error.into()))?;
    let second = second.ok_or_else(no_member)?;
    let mut signatures = read_signatures(&second, &manifest).map_err(not_a_release)?.into_iter();
    let signature = signatures.next();
    Ok(Head {
        manifest,
        manifest_bytes,
        first: first.len() as u64,
        second: if signature.is_some() { second.len() as u64 } else { 0 },
        signature,
        launcher_signatures: signatures.collect(),
    })
}

/// The signatures, the manifest's first, if they are what the member holds.
fn read_signatures(member: &[u8], manifest: &Manifest) -> Result<Vec<Vec<u8>>, FormError> {
    let mut stream = archive::Reader::new(gzip::Reader::new(member, 1));
    let mut signatures = Vec::new();
    for name in signature_names(manifest) {
        let header = stream.header(&name)?;
        if name == MANIFEST_SIGNATURE && archive::path_of(&header) != format!("{}/{name}", manifest.root()) {
            break;
        }
        let signature = stream.small(&name, archive::size_of(&header)?, MAX_SIGNATURE)?;
        let expected = archive::manifest_header(manifest, &name, signature.len())?;
        stream.compare(&header, &expected, manifest)?;
        signatures.push(signature);
    }
    Ok(signatures)
}

/// The names of the signatures in a release, in the order in which they stand in its archive.
pub(crate) fn signature_names(manifest: &Manifest) -> Vec<String> {
    let launchers = LauncherSums::of(manifest).into_iter().map(|sums| sums.signature_name());
    [MANIFEST_SIGNATURE.to_owned()].into_iter().chain(launchers).collect()
}

/// The payload digest of an archive: its SHA-256 without the member that holds the signatures in it.
///
/// # Errors
/// See [`Error`].
pub fn payload(path: &Path, head: &Head) -> Result<Digest, Error> {
    let mut file = File::open(path).map_err(io_error("read", path))?;
    let mut sink = HashingWriter::new(io::sink());
    copy_member(&mut file, head.first, &mut sink).map_err(io_error("read", path))?;
    file.seek(SeekFrom::Start(head.first + head.second)).map_err(io_error("read", path))?;
    copy_member(&mut file, u64::MAX, &mut sink).map_err(io_error("read", path))?;
    Ok(sink.finish().1)
}

pub(super) fn copy_member(file: &mut File, length: u64, to: &mut impl Write) -> io::Result<()> {
    let mut limited = file.take(length);
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        interrupt::check()?;
        match limited.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}
