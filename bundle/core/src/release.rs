//! Signing a packed release, and adding signatures to one.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::archive::{self, FormError};
use crate::contents::Contents;
use crate::digest::{Digest, HashingWriter};
use crate::launcher_sums::LauncherSums;
use crate::manifest::{self, MANIFEST, MANIFEST_SIGNATURE, MAX_MANIFEST, Manifest};
use crate::output::{OutputFile, remove_if_present};
use crate::signature::{self, Fingerprint, MAX_SIGNATURE, PinnedCerts, Threshold};
use crate::signing::{self, Signer};
use crate::verify::Files;
use crate::{gzip, interrupt, sums};

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
    first: u64,
    /// Compressed length of the signatures' member, 0 if there is none.
    second: u64,
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

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

/// A signed release.
#[derive(Debug)]
pub struct Signed {
    /// Its three files.
    pub files: Files,
    /// SHA-256 of the archive.
    pub digest: Digest,
    /// Length of the archive in bytes.
    pub size: u64,
    /// SHA-256 of the archive without the signatures in it.
    pub payload: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The signers that were asked for, in order.
    pub signers: Vec<Fingerprint>,
    /// What was done.
    pub action: Action,
}

/// What signing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The archive, sums and signature are new.
    Signed,
    /// Signatures were added to the sums' signature file.
    Added,
    /// Everything was there already, made by the same signers from the same payload.
    Kept,
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

/// What each of them signs.
fn signed_texts(manifest: &Manifest, manifest_bytes: &[u8]) -> Vec<Vec<u8>> {
    let launchers = LauncherSums::of(manifest).into_iter().map(|sums| sums.text().into_bytes());
    [manifest_bytes.to_vec()].into_iter().chain(launchers).collect()
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

fn copy_member(file: &mut File, length: u64, to: &mut impl Write) -> io::Result<()> {
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

/// Signs an unsigned archive: the manifest and the launchers' sums in it, then the sums over it. Writes the archive, its sums and their
/// signature to `output`. When they are there already, with the same payload and good signatures by the same signers,
/// they are left as they are.
///
/// Given an archive that is signed, adds `signers` to the signatures over its sums.
///
/// In both cases the archive must agree with its own manifest: nobody signs what was damaged on the way to the key.
///
/// # Errors
/// See [`Error`]. No file is left half-written, and never an archive beside the sums of another.
pub fn sign(archive: &Path, output: &Path, signers: &[Signer], now: SystemTime) -> Result<Signed, Error> {
    let head = read_head(archive)?;
    if head.signature.is_some() {
        return add(archive, &head, signers, now);
    }
    agrees_with_its_manifest(archive)?;
    let payload = payload(archive, &head)?;
    let files = Files::beside(&output.join(format!("{}{}", head.manifest.root(), archive::SUFFIX)));
    if let Some(kept) = keep(&files, payload, signers) {
        return Ok(kept);
    }
    let mut signatures = Vec::new();
    for text in signed_texts(&head.manifest, &head.manifest_bytes) {
        let mut signature = Vec::new();
        for signer in signers {
            signature.extend(signer.sign(&text, now)?);
        }
        signatures.push(signature);
    }
    // The old sums must not stand beside the new archive, however this ends.
    for old in [&files.signature, &files.sums, &files.archive] {
        remove_if_present(old).map_err(io_error("replace", old))?;
    }
    let write = |source| io_error("write", &files.archive)(source);
    let mut unsigned = File::open(archive).map_err(io_error("read", archive))?;
    let mut out = OutputFile::create(&files.archive).map_err(write)?;
    let (digest, size) = (|| {
        let mut sink = HashingWriter::new(out.writer());
        copy_member(&mut unsigned, head.first, &mut sink)?;
        let mut tar = archive::Writer::new(gzip::Writer::new(sink, 1));
        for (name, signature) in signature_names(&head.manifest).iter().zip(&signatures) {
            tar.header(&archive::manifest_header(&head.manifest, name, signature.len())?)?;
            tar.contents(signature.as_slice(), signature.len() as u64)?;
        }
        let mut sink = tar.into_inner().finish()?;
        unsigned.seek(SeekFrom::Start(head.first))?;
        copy_member(&mut unsigned, u64::MAX, &mut sink)?;
        let (_, digest, size) = sink.finish();
        Ok((digest, size))
    })()
    .map_err(write)?;
    let name = format!("{}{}", head.manifest.root(), archive::SUFFIX);
    let line = sums::line(digest, &name);
    let mut signature = Vec::new();
    for signer in signers {
        signature.extend(signer.sign(line.as_bytes(), now)?);
    }
    out.commit().map_err(write)?;
    OutputFile::write(&files.sums, line.as_bytes()).map_err(io_error("write", &files.sums))?;
    OutputFile::write(&files.signature, &signature).map_err(io_error("write", &files.signature))?;
    let signers = fingerprints(signers);
    Ok(Signed { files, digest, size, payload, manifest: head.manifest, signers, action: Action::Signed })
}

fn agrees_with_its_manifest(archive: &Path) -> Result<(), Error> {
    Contents::open(archive)?.for_each(|_, file| io::copy(file, &mut io::sink()).map(drop))
}

fn fingerprints(signers: &[Signer]) -> Vec<Fingerprint> {
    signers.iter().map(|signer| Fingerprint::of(signer.cert())).collect()
}

fn pins(signers: &[Signer]) -> PinnedCerts {
    PinnedCerts::from_certs(signers.iter().map(|signer| signer.cert().clone()).collect())
}

/// The release at `files`, if it is whole, of this payload, and signed by exactly these signers. Anything else, an error
/// included, means that it has to be made again.
fn keep(files: &Files, payload: Digest, signers: &[Signer]) -> Option<Signed> {
    let head = read_head(&files.archive).ok()?;
    let everyone = Threshold::new(signers.len())?;
    let (sums, signature) = (std::fs::read(&files.sums).ok()?, std::fs::read(&files.signature).ok()?);
    let now = SystemTime::now();
    signature::verify(&sums, &signature, &pins(signers), everyone, now).ok()?;
    let inside = head.signature.iter().chain(&head.launcher_signatures);
    let texts = signed_texts(&head.manifest, &head.manifest_bytes);
    if inside.clone().count() != texts.len() {
        return None;
    }
    for (text, signature) in texts.iter().zip(inside) {
        signature::verify(text, signature, &pins(signers), everyone, now).ok()?;
    }
    if signature::claimed_signers(&signature).ok()?.len() != signers.len()
        || self::payload(&files.archive, &head).ok()? != payload
    {
        return None;
    }
    let name = files.archive.file_name()?.to_str()?;
    let (digest, size) = Digest::of_reader(File::open(&files.archive).ok()?).ok()?;
    (sums::find(&sums, name) == Ok(digest)).then(|| Signed {
        files: files.clone(),
        digest,
        size,
        payload,
        manifest: head.manifest,
        signers: fingerprints(signers),
        action: Action::Kept,
    })
}

/// Adds signatures over the sums of a signed archive. The archive itself does not change.
fn add(archive: &Path, head: &Head, signers: &[Signer], now: SystemTime) -> Result<Signed, Error> {
    let files = Files::beside(archive);
    let refuse = |path: &Path, reason: String| Error::NotSignable { path: path.to_owned(), reason };
    let sums_bytes = std::fs::read(&files.sums).map_err(io_error("read", &files.sums))?;
    let mut signature = std::fs::read(&files.signature).map_err(io_error("read", &files.signature))?;
    let name = archive.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // A co-signer vouches for the archive, so the archive must be the one that the sums name.
    let expected = sums::find(&sums_bytes, &name).map_err(|error| refuse(&files.sums, error.to_string()))?;
    let file = File::open(archive).map_err(io_error("read", archive))?;
    let (digest, size) = Digest::of_reader(file).map_err(io_error("read", archive))?;
    if digest != expected {
        return Err(refuse(archive, format!("its SHA-256 is {digest}, its sums file says {expected}")));
    }
    agrees_with_its_manifest(archive)?;
    let mut action = Action::Kept;
    for signer in signers {
        let pin = PinnedCerts::from_certs(vec![signer.cert().clone()]);
        match signature::verify(&sums_bytes, &signature, &pin, Threshold::ONE, SystemTime::now()) {
            Ok(_) => {}
            Err(signature::Error::Threshold { .. }) => {
                signature.extend(signer.sign(&sums_bytes, now)?);
                action = Action::Added;
            }
            Err(error) => return Err(refuse(&files.signature, error.to_string())),
        }
    }
    if action == Action::Added {
        OutputFile::write(&files.signature, &signature).map_err(io_error("write", &files.signature))?;
    }
    let payload = payload(archive, head)?;
    let signers = fingerprints(signers);
    Ok(Signed { files, digest, size, payload, manifest: head.manifest.clone(), signers, action })
}
