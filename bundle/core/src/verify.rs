//! Verification: the nine steps, in order, and failing closed.
//!
//! 1. read the signature: binary, detached, over the sums file that was named;
//! 2. count signers by distinct pinned primary certificate;
//! 3. apply policy: hash, key strength, expiry, revocation, window;
//! 4. read the sums: exact form, exact name, exactly once;
//! 5. hash the archive while copying it; from here on only that copy is used;
//! 6. read the archive: one acceptable form, allow-listed by the manifest;
//! 7. check the signatures of the manifest and of the launchers' sums, and every file against the manifest;
//! 8. cross-check versions and architectures: file name, `version`, manifest, binaries, worker, images;
//! 9. refuse development releases, rollbacks and skipped versions.
//!
//! Steps 1 to 3 are in [`crate::signature`], step 4 is in [`crate::sums`], the form of step 6 in [`crate::archive`].
//! No step opens a socket, runs a program or follows a link inside the release.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::archive::{self, Entry, FormError};
use crate::build_note::{Elf, Machine};
use crate::digest::{Digest, HashingReader, HashingWriter};
use crate::launcher_sums::LauncherSums;
use crate::manifest::{self, Kind, MANIFEST, MANIFEST_SIGNATURE, MAX_MANIFEST, Manifest, Mode, ReleasePath};
use crate::names::is_signature_name;
use crate::output::sync_parent;
use crate::signature::{self, Fingerprint, MAX_SIGNATURE, PinnedCerts, Signer, Threshold};
use crate::sums;
use crate::{gzip, image, interrupt, pack};

/// Limit of one of our binaries. It is held in memory while its notes are read, together with the worker in it, and all of
/// verification stays below 64 MiB. The launcher's goal is 8 MB.
pub(crate) const MAX_BINARY: u64 = 16 * 1024 * 1024;
/// Limit of a certificate in `keys/`.
pub(crate) const MAX_KEY: u64 = 1024 * 1024;
/// Limit of the archive's own size.
const MAX_ARCHIVE: u64 = 32_000_000_000;
/// What is wrong with a file that does not belong to an unpacked release.
const EXTRA: &str = "it is in the directory but not in the manifest";
/// What is copied, hashed and looked at for signals at once.
const CHUNK: usize = 1024 * 1024;

/// Whether a development release, which no release key signed, is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Development {
    /// Refuse it.
    Refuse,
    /// The caller named the risk.
    Accept,
}

/// Whether a release older than the installed one is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollback {
    /// Refuse it.
    Refuse,
    /// The caller named the risk.
    Accept,
}

/// Whether an upgrade may skip a version that the release requires in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkippedVersion {
    /// Refuse it.
    Refuse,
    /// The caller named the risk.
    Accept,
}

/// What the caller trusts and accepts.
pub struct Policy<'a> {
    /// The pinned certificates.
    pub pinned: &'a PinnedCerts,
    /// How many of them must have signed.
    pub threshold: Threshold,
    /// The time of verification.
    pub now: SystemTime,
    /// The release that is installed, if one is.
    pub installed: Option<&'a Manifest>,
    /// See [`Development`].
    pub development: Development,
    /// See [`Rollback`].
    pub rollback: Rollback,
    /// See [`SkippedVersion`].
    pub skipped_version: SkippedVersion,
}

/// The three files of a release.
#[derive(Debug, Clone)]
pub struct Files {
    /// The archive.
    pub archive: PathBuf,
    /// Its sums file.
    pub sums: PathBuf,
    /// The sums file's signature.
    pub signature: PathBuf,
}

impl Files {
    /// The documented names beside the archive.
    pub fn beside(archive: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = archive.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            archive: archive.to_owned(),
            sums: with(sums::SUFFIX),
            signature: with(&format!("{}{}", sums::SUFFIX, sums::SIGNATURE_SUFFIX)),
        }
    }
}

/// A release that passed every step. Only verification makes one.
#[derive(Debug)]
pub struct Verified {
    manifest: Manifest,
    signers: Vec<Signer>,
    archive: Option<(Digest, u64)>,
}

impl Verified {
    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The pinned signers, at least as many as the threshold.
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// Digest and length of the archive; `None` for an unpacked release.
    pub fn archive(&self) -> Option<(Digest, u64)> {
        self.archive
    }
}

/// Why a release is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A signature is missing, bad, or not by whom it should be: steps 1 to 3, or step 7 for the manifest's.
    #[error("{}: {source}", printable(.file.display()))]
    Signature {
        /// The signature file.
        file: PathBuf,
        /// Whether it is the one inside the release.
        of_manifest: bool,
        /// What is wrong.
        source: signature::Error,
    },
    /// The sums file is not in order: step 4.
    #[error("{}: {source}", printable(.file.display()))]
    Sums {
        /// The sums file.
        file: PathBuf,
        /// What is wrong.
        source: sums::Error,
    },
    /// The archive is not the one that was signed: step 5.
    #[error(
        "{}: the archive is not the one that was signed{}: its SHA-256 is {found}, the sums file says {expected}; \
         download it again", printable(.file.display()), if *.size == 0 { " (the file is empty)" } else { "" }
    )]
    Archive {
        /// The archive.
        file: PathBuf,
        /// Its length.
        size: u64,
        /// What it hashes to.
        found: Digest,
        /// What was signed.
        expected: Digest,
    },
    /// The archive is larger than any release: step 5.
    #[error("{}: it is larger than the limit of {MAX_ARCHIVE} bytes", printable(.0.display()))]
    TooLarge(PathBuf),
    /// The archive is not of the only acceptable form: step 6.
    #[error("{}: {source}", printable(.file.display()))]
    Form {
        /// The archive.
        file: PathBuf,
        /// What is wrong.
        source: FormError,
    },
    /// The manifest cannot be used: step 7.
    // Not a source: what it says is made safe to print here, and would follow as it is.
    #[error("{}", printable(.0))]
    Manifest(manifest::Error),
    /// A file is not as the manifest has it: step 7.
    #[error("{}: {}", printable(.path), printable(.reason))]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Two parts of the release are not of one build: step 8.
    #[error("{}: {}; the release mixes parts that do not belong together", printable(.path), printable(.reason))]
    Mismatch {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// No release key signed it: step 9.
    #[error(
        "{0} is a development release: it was made without a release key; --allow-development accepts it at your own risk"
    )]
    Development(String),
    /// Older than what is installed: step 9.
    #[error(
        "{offered} (sequence {offered_sequence}) is older than the installed {installed} (sequence {installed_sequence}): \
         a rollback brings back faults that were repaired; --allow-rollback accepts it at your own risk"
    )]
    Rollback {
        /// Version offered.
        offered: String,
        /// Its sequence.
        offered_sequence: u64,
        /// Version installed.
        installed: String,
        /// Its sequence.
        installed_sequence: u64,
    },
    /// Another product or channel than what is installed, or the same sequence with another version: step 9.
    #[error("{0}")]
    NotAnUpgrade(String),
    /// Requires another version in between: step 9.
    #[error(
        "{offered} can be installed over {required} or later, and {installed} is installed: upgrade to {required} first; \
         --allow-skipping-versions goes on at your own risk"
    )]
    SkippedVersion {
        /// Version offered.
        offered: String,
        /// Version installed.
        installed: String,
        /// Version required.
        required: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} {}: {source}", printable(.path.display()))]
    Io {
        /// Read, write, …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Error {
    /// Which of the nine steps refused; `None` when a file could not be read or written.
    pub fn step(&self) -> Option<u8> {
        Some(match self {
            Self::Signature { of_manifest: true, .. } => 7,
            Self::Signature { source, .. } => source.step(),
            Self::Sums { .. } => 4,
            Self::Archive { .. } | Self::TooLarge(_) => 5,
            Self::Form { .. } => 6,
            Self::Manifest(_) | Self::File { .. } => 7,
            Self::Mismatch { .. } => 8,
            Self::Development(_) | Self::Rollback { .. } | Self::NotAnUpgrade(_) | Self::SkippedVersion { .. } => 9,
            Self::Io { .. } => return None,
        })
    }

    /// What to do next, a sentence or two; `None` where the error's own words say it.
    pub fn advice(&self) -> Option<&'static str> {
        if let Self::Io { doing, path, source } = self {
            let ends_with = |suffix: &str| path.to_string_lossy().ends_with(suffix);
            return match source.kind() {
                io::ErrorKind::NotFound if *doing == "read" && ends_with(sums::SIGNATURE_SUFFIX) => Some(
                    "The signature is published with the release. Put it beside the archive, or name it with --signature.",
                ),
                io::ErrorKind::NotFound if *doing == "read" && ends_with(sums::SUFFIX) => Some(
                    "The sums file is published with the release. Put it beside the archive, or name it with --sums.",
                ),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if *doing == PRIVATE_COPY => {
                    Some("Name a directory with room for it: --work-dir DIR, or the variable TMPDIR.")
                }
                io::ErrorKind::StorageFull => Some("Make room there, or choose another disk."),
                io::ErrorKind::AlreadyExists => Some("Choose a directory that does not exist yet."),
                _ => None,
            };
        }
        if let Self::Signature { of_manifest: true, source, .. } = self {
            return match source.step() {
                1 => Some(RELEASE_AGAIN),
                2 => Some(
                    "Make sure that the pinned certificates are the vendor's present ones. If they are, unpack the release again \
                     from its verified archive. If it is refused then too, do not use it, and ask the vendor.",
                ),
                _ => None,
            };
        }
        match self.step()? {
            1 => Some("Get the signature again from where the release is published, in binary mode."),
            2 => Some(
                "Get archive, sums file and signature again, and make sure that the pinned certificates are the vendor's \
                 present ones. If it is refused then too, do not use the release, and ask the vendor.",
            ),
            4 => Some("Get the sums file again from where the release is published, in binary mode."),
            6 | 8 => Some("Do not use this release. The vendor signed it as it is: ask there."),
            7 => Some(RELEASE_AGAIN),
            // Their words say it.
            _ => None,
        }
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

/// A file in a release is not the one that was signed, or the release is not whole.
const RELEASE_AGAIN: &str = "Download the archive again, or, if this is an unpacked release, unpack it again from its verified archive. \
                             If it is refused then too, do not use it, and ask the vendor.";
/// What is done when the copy that is verified cannot be made.
const PRIVATE_COPY: &str = "make a private copy of the archive in";

/// Reads a small file whole. Of a larger one it reads one byte more than the limit, so that whoever judges the contents
/// refuses them for their size.
fn read_small(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(bytes)
}

/// Reads a manifest whose texts can be printed.
fn read_manifest(bytes: &[u8]) -> Result<Manifest, Error> {
    let manifest = Manifest::from_bytes(bytes).map_err(Error::Manifest)?;
    let images = manifest.images.iter();
    let images = images.flat_map(|image| [&image.name, &image.digest].into_iter().chain(&image.platforms));
    for text in images.chain(&manifest.targets).chain([&manifest.source]) {
        if !text.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            return Err(Error::Manifest(manifest::Error::Rule(format!("{text:?} is not plain text"))));
        }
    }
    Ok(manifest)
}

/// Text out of a release, made safe to print: it must not clear the screen, paint an answer of its own or turn the text
/// around it.
fn printable(text: impl fmt::Display) -> String {
    let mut shown = String::new();
    for c in text.to_string().chars() {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// An archive whose bytes are the signed ones, in a private copy that has no name. Only [`open`] makes one.
#[derive(Debug)]
pub struct SignedArchive {
    copy: File,
    path: PathBuf,
    digest: Digest,
    size: u64,
    signers: Vec<Signer>,
    sums: Vec<u8>,
    signature: Vec<u8>,
}

impl SignedArchive {
    /// The private copy, to read at any position.
    ///
    /// # Errors
    /// No further file can be opened.
    pub fn copy(&self) -> io::Result<File> {
        self.copy.try_clone()
    }

    /// Digest and length of the archive.
    pub fn digest(&self) -> (Digest, u64) {
        (self.digest, self.size)
    }

    /// The sums file, as it was verified.
    pub fn sums(&self) -> &[u8] {
        &self.sums
    }

    /// The sums file's signature, as it was verified.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }
}

/// Steps 1 to 5. The copy goes to `work`, a directory on a disk with room for the archive; it has no name there, so
/// nothing else can change it and nothing is left of it however the process ends.
///
/// # Errors
/// See [`Error`].
pub fn open(files: &Files, policy: &Policy<'_>, work: &Path) -> Result<SignedArchive, Error> {
    let Signed { digest: expected, signers, sums, signature } = signed_digest(files, policy)?;
    // Step 5.
    let archive = open_archive(files)?;
    let copy = tempfile::tempfile_in(work).map_err(io_error(PRIVATE_COPY, work))?;
    let failed = io_error("write the private copy of the archive in", work);
    let (digest, size) = hash_archive(files, archive, expected, &copy, failed)?;
    Ok(SignedArchive { copy, path: files.archive.clone(), digest, size, signers, sums, signature })
}

/// Steps 1 to 5 without the copy: for those who only want to know whether the file is the signed one, and who will not
/// use it on the strength of this.
///
/// # Errors
/// See [`Error`].
pub fn sums_only(files: &Files, policy: &Policy<'_>) -> Result<Digest, Error> {
    let Signed { digest: expected, .. } = signed_digest(files, policy)?;
    let archive = open_archive(files)?;
    let failed = io_error("read", &files.archive);
    Ok(hash_archive(files, archive, expected, io::sink(), failed)?.0)
}

/// What pinned signers vouch for, and how.
struct Signed {
    digest: Digest,
    signers: Vec<Signer>,
    sums: Vec<u8>,
    signature: Vec<u8>,
}

/// Steps 1 to 4.
fn signed_digest(files: &Files, policy: &Policy<'_>) -> Result<Signed, Error> {
    let sums = read_small(&files.sums, sums::MAX_SUMS)?;
    // A part of a file must not be called badly signed.
    if sums.len() > sums::MAX_SUMS {
        return Err(Error::Sums { file: files.sums.clone(), source: sums::Error::TooLarge });
    }
    let signature = read_small(&files.signature, MAX_SIGNATURE)?;
    // Steps 1, 2 and 3.
    let signers = signature::verify(&sums, &signature, policy.pinned, policy.threshold, policy.now)
        .map_err(|source| Error::Signature { file: files.signature.clone(), of_manifest: false, source })?;
    // Step 4.
    let name = files.archive.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let digest = sums::find(&sums, &name).map_err(|source| Error::Sums { file: files.sums.clone(), source })?;
    Ok(Signed { digest, signers, sums, signature })
}

fn open_archive(files: &Files) -> Result<File, Error> {
    let archive = File::open(&files.archive).map_err(io_error("read", &files.archive))?;
    let metadata = archive.metadata().map_err(io_error("read", &files.archive))?;
    if metadata.len() > MAX_ARCHIVE {
        return Err(Error::TooLarge(files.archive.clone()));
    }
    Ok(archive)
}

/// Hashes the archive while copying it to `sink`, and compares. Returns its digest and length.
fn hash_archive(
    files: &Files,
    mut archive: File,
    expected: Digest,
    sink: impl Write,
    write_failed: impl FnOnce(io::Error) -> Error,
) -> Result<(Digest, u64), Error> {
    let mut hashing = HashingWriter::new(sink);
    let mut buffer = vec![0; CHUNK];
    let mut size = 0_u64;
    loop {
        interrupt::check().map_err(io_error("read", &files.archive))?;
        let read = match archive.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_error("read", &files.archive)(error)),
        };
        size += read as u64;
        if size > MAX_ARCHIVE {
            return Err(Error::TooLarge(files.archive.clone()));
        }
        if let Err(error) = hashing.write_all(&buffer[..read]) {
            return Err(write_failed(error));
        }
    }
    let (_, found, _) = hashing.finish();
    if found != expected {
        return Err(Error::Archive { file: files.archive.clone(), size, found, expected });
    }
    Ok((found, size))
}

/// Steps 6 to 9, without writing anything.
///
/// # Errors
/// See [`Error`].
pub fn check(archive: &SignedArchive, policy: &Policy<'_>, threads: usize) -> Result<Verified, Error> {
    read(archive, policy, threads, None)
}

/// Steps 6 to 9, unpacking on the way. `destination` must not exist; it appears when everything was verified, and not
/// before.
///
/// # Errors
/// See [`Error`]. Nothing is left at `destination`.
pub fn unpack(
    archive: &SignedArchive,
    policy: &Policy<'_>,
    threads: usize,
    destination: &Path,
) -> Result<Verified, Error> {
    if fs::symlink_metadata(destination).is_ok() {
        return Err(io_error("unpack to", destination)(io::ErrorKind::AlreadyExists.into()));
    }
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Private until it is complete, whatever the umask: nobody exchanges a file that has been checked.
    let fresh = tempfile::Builder::new()
        .prefix(".unpacking-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(io_error("unpack into", parent))?;
    let verified = read(archive, policy, threads, Some(fresh.path()))?;
    fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755)).map_err(io_error("unpack to", destination))?;
    fs::rename(fresh.path(), destination).map_err(io_error("unpack to", destination))?;
    let _ = fresh.keep();
    sync_parent(destination).map_err(io_error("unpack to", destination))?;
    Ok(verified)
}

fn read(
    archive: &SignedArchive,
    policy: &Policy<'_>,
    threads: usize,
    directory: Option<&Path>,
) -> Result<Verified, Error> {
    let form = |source: FormError| match source {
        // Damage is the archive's fault, anything else the machine's.
        FormError::Io(error) if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            io_error("read", &archive.path)(error)
        }
        source => Error::Form { file: archive.path.clone(), source },
    };
    let mut copy = &archive.copy;
    copy.seek(SeekFrom::Start(0)).map_err(io_error("read", &archive.path))?;
    // Step 6: the stream has one acceptable form. The first two headers are compared once the manifest is known.
    let mut stream = archive::Reader::new(gzip::Reader::new(BufReader::with_capacity(CHUNK, copy), threads));
    let directory_header = stream.head("").map_err(form)?;
    let manifest_header = stream.head(MANIFEST).map_err(form)?;
    let size = archive::size_of(&manifest_header).map_err(form)?;
    let manifest_bytes = stream.small(MANIFEST, size, MAX_MANIFEST).map_err(form)?;
    let manifest = read_manifest(&manifest_bytes)?;
    let expected = fits(archive::directory_header(&manifest, ""), "")?;
    stream.compare(&directory_header, &expected, &manifest).map_err(form)?;
    let expected = fits(archive::manifest_header(&manifest, MANIFEST, manifest_bytes.len()), MANIFEST)?;
    stream.compare(&manifest_header, &expected, &manifest).map_err(form)?;
    // Step 7, its first half, before any file is looked at.
    let header = stream.header(MANIFEST_SIGNATURE).map_err(form)?;
    let size = archive::size_of(&header).map_err(form)?;
    let expected = archive::manifest_header(&manifest, MANIFEST_SIGNATURE, size.min(u64::from(u32::MAX)) as usize);
    stream.compare(&header, &fits(expected, MANIFEST_SIGNATURE)?, &manifest).map_err(form)?;
    let signature = stream.small(MANIFEST_SIGNATURE, size, MAX_SIGNATURE).map_err(form)?;
    // The threshold was met over the whole archive, signature file included; one pinned signer is enough in here, since
    // a co-signer who joins later signs the sums and cannot reach into the archive.
    signature::verify(&manifest_bytes, &signature, policy.pinned, Threshold::ONE, policy.now)
        .map_err(|source| Error::Signature { file: MANIFEST_SIGNATURE.into(), of_manifest: true, source })?;
    let out = directory.map(|directory| Unpacker { directory });
    if let Some(out) = &out {
        out.file(MANIFEST, 0o644, &mut manifest_bytes.as_slice())?;
        out.file(MANIFEST_SIGNATURE, 0o644, &mut signature.as_slice())?;
    }
    for sums in LauncherSums::of(&manifest) {
        let name = sums.signature_name();
        let header = stream.header(&name).map_err(form)?;
        let size = archive::size_of(&header).map_err(form)?;
        let expected = archive::manifest_header(&manifest, &name, size.min(u64::from(u32::MAX)) as usize);
        stream.compare(&header, &fits(expected, &name)?, &manifest).map_err(form)?;
        let signature = stream.small(&name, size, MAX_SIGNATURE).map_err(form)?;
        check_launcher_sums(&sums, &signature, Threshold::ONE, policy, Path::new(&name))?;
        if let Some(out) = &out {
            out.file(&name, 0o644, &mut signature.as_slice())?;
        }
    }
    // Steps 6 and 7 for every file.
    let mut cross_check = CrossCheck::new(&manifest);
    for entry in archive::entries(&manifest) {
        interrupt::check().map_err(io_error("read", &archive.path))?;
        match entry {
            Entry::Directory(path) => {
                let expected = fits(archive::directory_header(&manifest, path), path)?;
                stream.expect(&expected, &manifest).map_err(form)?;
                if let Some(out) = &out {
                    out.directory(path)?;
                }
            }
            Entry::File(index) => {
                let file = &manifest.files[index];
                let path = file.path.as_str();
                let expected = fits(archive::file_header(&manifest, index), path)?;
                stream.expect(&expected, &manifest).map_err(form)?;
                let contents = stream.contents(file.size);
                match &out {
                    Some(out) => {
                        let target = out.create(path, file.mode.bits())?;
                        let mut tee = Tee { reader: contents, writer: &target };
                        cross_check.file(file, &mut tee).map_err(|error| relabel(error, &out.directory.join(path)))?;
                        out.close(path, &target)?;
                    }
                    None => cross_check.file(file, contents)?,
                }
                stream.padding(path, file.size).map_err(form)?;
            }
        }
    }
    stream.end(&manifest).map_err(form)?;
    // Step 8.
    cross_check.finish()?;
    let name = archive.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name != format!("{}{}", manifest.root(), archive::SUFFIX) {
        return Err(Error::Mismatch { path: name, reason: format!("the manifest in it is of {}", manifest.root()) });
    }
    // Step 9.
    check_upgrade(&manifest, policy)?;
    Ok(Verified { manifest, signers: archive.signers.clone(), archive: Some((archive.digest, archive.size)) })
}

/// Worker hosts will rely on this signature alone, so a release in which it is not good is not a good release.
fn check_launcher_sums(
    sums: &LauncherSums,
    signature: &[u8],
    threshold: Threshold,
    policy: &Policy<'_>,
    file: &Path,
) -> Result<(), Error> {
    signature::verify(sums.text().as_bytes(), signature, policy.pinned, threshold, policy.now)
        .map_err(|source| Error::Signature { file: file.to_owned(), of_manifest: true, source })?;
    Ok(())
}

/// The header that the manifest calls for. Its product, version and paths are each short enough, but a header has to hold
/// them together.
fn fits<T>(header: io::Result<T>, path: &str) -> Result<T, Error> {
    header.map_err(|_| {
        let rule = format!("{path:?} is too long a path together with the name of the release");
        Error::Manifest(manifest::Error::Rule(rule))
    })
}

/// Errors of writing come out of the tee as errors of reading; they name the file that was being written.
fn relabel(error: Error, target: &Path) -> Error {
    match error {
        Error::Io { source, .. } if source.get_ref().is_some_and(|inner| inner.is::<TeeWriteError>()) => {
            let kind = source.kind();
            Error::Io { doing: "write", path: target.to_owned(), source: io::Error::new(kind, source) }
        }
        other => other,
    }
}

/// Verifies a release that was unpacked before: steps 7 to 9. The signatures over the archive are not there any more, so
/// the manifest's own signatures must meet the threshold.
///
/// # Errors
/// See [`Error`].
pub fn directory(path: &Path, policy: &Policy<'_>) -> Result<Verified, Error> {
    let wrong = |path: &str, reason: &str| Error::File { path: path.to_owned(), reason: reason.to_owned() };
    // Everything is listed before anything is opened: a reader would wait for ever on a named pipe.
    let mut present = BTreeMap::new();
    list(path, "", &mut present)?;
    let mut take = |name: &str| match present.remove(name) {
        Some(Listed::File) => Ok(()),
        Some(Listed::Directory) => Err(wrong(name, "it is a directory and should be a file")),
        None if matches!(name, MANIFEST | MANIFEST_SIGNATURE) || is_signature_name(name) => {
            Err(wrong(name, "it is missing, so this is not the directory of a signed release"))
        }
        None => Err(wrong(name, "it is in the manifest but missing from the directory")),
    };
    take(MANIFEST)?;
    take(MANIFEST_SIGNATURE)?;
    // Step 7: the manifest, then every file against it.
    let manifest_bytes = read_small(&path.join(MANIFEST), MAX_MANIFEST)?;
    if manifest_bytes.len() > MAX_MANIFEST {
        return Err(Error::Manifest(manifest::Error::TooLarge(manifest_bytes.len())));
    }
    let signature_path = path.join(MANIFEST_SIGNATURE);
    let signature = read_small(&signature_path, MAX_SIGNATURE)?;
    let signers = signature::verify(&manifest_bytes, &signature, policy.pinned, policy.threshold, policy.now)
        .map_err(|source| Error::Signature { file: signature_path, of_manifest: true, source })?;
    let manifest = read_manifest(&manifest_bytes)?;
    for sums in LauncherSums::of(&manifest) {
        let name = sums.signature_name();
        take(&name)?;
        let signature_path = path.join(name);
        let signature = read_small(&signature_path, MAX_SIGNATURE)?;
        check_launcher_sums(&sums, &signature, policy.threshold, policy, &signature_path)?;
    }
    let mut cross_check = CrossCheck::new(&manifest);
    let mut directories = BTreeSet::new();
    for file in &manifest.files {
        let name = file.path.as_str();
        directories.extend(file.path.parents());
        take(name)?;
        let full = path.join(name);
        // Between listing and opening a file may have become a link; it is not followed.
        let opened = fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&full)
            .map_err(io_error("read", &full))?;
        let metadata = opened.metadata().map_err(io_error("read", &full))?;
        // A umask may have taken bits away from what the manifest says. What was added is another matter.
        let mode = metadata.permissions().mode();
        if mode & 0o6000 != 0 {
            return Err(wrong(name, "it has a set-user-id or set-group-id bit"));
        }
        if mode & 0o002 != 0 {
            return Err(wrong(name, "everyone may write to it"));
        }
        match file.mode {
            Mode::Executable if mode & 0o100 == 0 => return Err(wrong(name, "it is not executable and should be")),
            Mode::Plain if mode & 0o111 != 0 => return Err(wrong(name, "it is executable and should not be")),
            Mode::Executable | Mode::Plain => {}
        }
        if metadata.len() != file.size {
            return Err(wrong(name, &format!("it has {} bytes, the manifest says {}", metadata.len(), file.size)));
        }
        cross_check.file(file, &opened)?;
    }
    if let Some(extra) = present
        .into_iter()
        .find(|(name, kind)| !(matches!(kind, Listed::Directory) && directories.contains(name.as_str())))
    {
        return Err(wrong(&extra.0, EXTRA));
    }
    // Step 8.
    cross_check.finish()?;
    // Step 9.
    check_upgrade(&manifest, policy)?;
    Ok(Verified { manifest, signers, archive: None })
}

enum Listed {
    Directory,
    File,
}

fn list(root: &Path, below: &str, found: &mut BTreeMap<String, Listed>) -> Result<(), Error> {
    let directory = if below.is_empty() { root.to_owned() } else { root.join(below) };
    for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))? {
        let entry = entry.map_err(io_error("read", &directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let inside = if below.is_empty() { name.into_owned() } else { format!("{below}/{name}") };
        // No manifest can list such a name, and a directory of such a name need not be entered.
        if inside.parse::<ReleasePath>().is_err() {
            return Err(Error::File { path: inside, reason: EXTRA.into() });
        }
        let kind = entry.file_type().map_err(io_error("read", &entry.path()))?;
        // A hostile tree must not cost more than the largest honest one.
        if found.len() > 4 * manifest::MAX_FILES {
            return Err(Error::File { path: inside, reason: "the directory holds too many files".into() });
        }
        if kind.is_dir() {
            list(root, &inside, found)?;
            found.insert(inside, Listed::Directory);
        } else if kind.is_file() {
            found.insert(inside, Listed::File);
        } else {
            let reason = "it is neither a regular file nor a directory".into();
            return Err(Error::File { path: inside, reason });
        }
    }
    Ok(())
}

struct Unpacker<'a> {
    directory: &'a Path,
}

impl Unpacker<'_> {
    fn directory(&self, path: &str) -> Result<(), Error> {
        let full = self.directory.join(path);
        fs::create_dir(&full).map_err(io_error("create", &full))?;
        fs::set_permissions(&full, fs::Permissions::from_mode(0o755)).map_err(io_error("create", &full))
    }

    fn create(&self, path: &str, mode: u32) -> Result<File, Error> {
        let full = self.directory.join(path);
        let file = File::create_new(&full).map_err(io_error("create", &full))?;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io_error("create", &full))?;
        Ok(file)
    }

    fn close(&self, path: &str, file: &File) -> Result<(), Error> {
        // A full disk may show only here.
        file.sync_data().map_err(io_error("write", &self.directory.join(path)))
    }

    fn file(&self, path: &str, mode: u32, contents: &mut &[u8]) -> Result<(), Error> {
        let mut file = self.create(path, mode)?;
        io::copy(contents, &mut file).map_err(io_error("write", &self.directory.join(path)))?;
        self.close(path, &file)
    }
}

/// Hands on what it reads and writes it to a file.
struct Tee<'a, R> {
    reader: R,
    writer: &'a File,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TeeWriteError(io::Error);

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let mut writer = self.writer;
        writer.write_all(&buffer[..read]).map_err(|error| io::Error::new(error.kind(), TeeWriteError(error)))?;
        Ok(read)
    }
}

/// Step 7 for contents, and what step 8 needs to know of them.
struct CrossCheck<'a> {
    manifest: &'a Manifest,
    binaries: BTreeSet<&'a str>,
}

impl<'a> CrossCheck<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        Self { manifest, binaries: BTreeSet::new() }
    }

    /// Reads one file to its end, compares it with the manifest, then looks into it.
    fn file(&mut self, file: &'a manifest::File, contents: impl Read) -> Result<(), Error> {
        let path = file.path.as_str();
        let wrong = |reason: String| Error::File { path: path.to_owned(), reason };
        let mut hashing = match file.kind {
            Kind::Image => HashingReader::beside(contents),
            _ => HashingReader::new(contents),
        };
        // What must be looked into is read in memory, or in one pass; it is believed only after the digest matched.
        let mut held = Vec::new();
        let mut image = None;
        let result = match file.kind {
            Kind::Binary | Kind::Key | Kind::Version => {
                let limit = if file.kind == Kind::Binary { MAX_BINARY } else { MAX_KEY };
                if file.size > limit {
                    return Err(wrong(format!("it has {} bytes, more than the limit of {limit}", file.size)));
                }
                held.reserve_exact(file.size as usize);
                (&mut hashing).take(file.size + 1).read_to_end(&mut held).map(|_| ())
            }
            Kind::Image => {
                image = Some(image::summarize(&mut hashing));
                Ok(())
            }
            _ => Ok(()),
        };
        let mut buffer = vec![0; 256 * 1024];
        let drained = result.and_then(|()| {
            while hashing.read(&mut buffer)? > 0 {
                interrupt::check()?;
            }
            Ok(())
        });
        drained.map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::Form { file: path.into(), source: FormError::Io(source) }
            }
            _ => io_error("read", Path::new(path))(source),
        })?;
        let (_, digest, size) = hashing.finish();
        if size != file.size {
            return Err(wrong(format!("it ends after {size} bytes, the manifest says {}", file.size)));
        }
        if digest != file.sha256 {
            return Err(wrong(format!("its SHA-256 is {digest}, the manifest says {}", file.sha256)));
        }
        match file.kind {
            Kind::Key => key(&file.path, &held),
            Kind::Version => self.version(&held),
            Kind::Binary => self.binary(path, &held),
            Kind::Image => match image {
                Some(summary) => self.image(path, summary),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn version(&self, contents: &[u8]) -> Result<(), Error> {
        if contents == format!("{}\n", self.manifest.version).as_bytes() {
            return Ok(());
        }
        Err(Error::Mismatch {
            path: manifest::VERSION.into(),
            reason: format!(
                "it says {:?}, the manifest says {}",
                String::from_utf8_lossy(&contents[..contents.len().min(80)]).trim_end(),
                self.manifest.version
            ),
        })
    }

    /// The binary is read, never run: what is being verified must not execute, and a binary for another architecture
    /// could not.
    fn binary(&mut self, path: &'a str, contents: &[u8]) -> Result<(), Error> {
        let mismatch = |reason: String| Error::Mismatch { path: path.to_owned(), reason };
        let name = path.strip_prefix("bin/").unwrap_or(path);
        let (program, machine) = match name.strip_suffix("-aarch64") {
            Some(program) => (program, Machine::Aarch64),
            None => (name, Machine::X86_64),
        };
        let elf = Elf::parse(contents).map_err(|error| mismatch(format!("it is not a usable binary: {error}")))?;
        if elf.machine() != machine {
            return Err(mismatch(format!("it is built for {}, its name says {machine}", elf.machine())));
        }
        if !elf.is_static() {
            return Err(mismatch("it is not statically linked".into()));
        }
        let note = elf.build_note().map_err(|error| mismatch(format!("its build note cannot be read: {error}")))?;
        if note.program != program {
            return Err(mismatch(format!("it says it is {}", note.program)));
        }
        if note.version != self.manifest.version {
            return Err(mismatch(format!("it is of {}, the manifest of {}", note.version, self.manifest.version)));
        }
        if note.commit != self.manifest.commit {
            return Err(mismatch(format!(
                "it was built from commit {}, the manifest names {}",
                note.commit, self.manifest.commit
            )));
        }
        if program == "spacelift-launcher" {
            // Its digest, version, commit and target are compared with the launcher's own note on the way.
            elf.embedded_worker().map_err(|error| mismatch(format!("the worker in it: {error}")))?;
        }
        self.binaries.insert(path);
        Ok(())
    }

    fn image(&self, path: &str, summary: Result<image::ImageSummary, image::Error>) -> Result<(), Error> {
        let summary = summary
            .map_err(|error| Error::Mismatch { path: path.to_owned(), reason: format!("the image in it: {error}") })?;
        let mismatch = |reason: String| Error::Mismatch { path: path.to_owned(), reason };
        let platforms = pack::platform_names(&summary);
        // The manifest may call one file by several names. What it says must be right for each of them.
        let listed: Vec<_> = self.manifest.images.iter().filter(|image| image.path.as_str() == path).collect();
        if listed.is_empty() {
            return Err(mismatch("the manifest lists no image of that name".into()));
        }
        if let Some(listed) =
            listed.iter().find(|image| image.digest != summary.digest.to_string() || image.platforms != platforms)
        {
            return Err(mismatch(format!(
                "the image in it is {} for {}, the manifest says {} for {}",
                summary.digest,
                platforms.join(", "),
                listed.digest,
                listed.platforms.join(", ")
            )));
        }
        if listed.iter().any(|image| image.name == "spacelift-launcher") {
            let expected = [
                ("org.opencontainers.image.version", self.manifest.version.to_string()),
                ("org.opencontainers.image.revision", self.manifest.commit.clone()),
            ];
            for platform in &summary.platforms {
                for (label, value) in &expected {
                    let found = platform.labels.get(*label).map_or("(none)", String::as_str);
                    if found != value {
                        return Err(mismatch(format!("its label {label} is {found}, the manifest says {value}")));
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        let missing = |path: String, reason: &str| Err(Error::Mismatch { path, reason: reason.into() });
        if self.manifest.file(manifest::VERSION).is_none() {
            return missing(manifest::VERSION.into(), "the manifest does not list it");
        }
        for target in &self.manifest.targets {
            let suffix = match target.as_str() {
                "x86_64" => "",
                "aarch64" => "-aarch64",
                _ => return missing(target.clone(), "the manifest names a target that this program does not know"),
            };
            for program in ["spacelift-launcher", "spacelift-bundle"] {
                let path = format!("bin/{program}{suffix}");
                if !self.binaries.contains(path.as_str()) {
                    return missing(path, "the manifest names its target but does not list it");
                }
            }
        }
        Ok(())
    }
}

fn key(path: &ReleasePath, contents: &[u8]) -> Result<(), Error> {
    let mismatch = |reason: String| Error::Mismatch { path: path.to_string(), reason };
    // A search for the words finds keys of every program; a look into the packets finds OpenPGP keys without armor.
    if contents.windows(11).any(|window| window == b"PRIVATE KEY") || signature::holds_secret(contents) {
        return Err(mismatch("it holds a PRIVATE KEY; consider that key compromised".into()));
    }
    let certs =
        signature::certs_from_bytes(contents).map_err(|reason| mismatch(format!("not a certificate: {reason}")))?;
    let named = |cert: &sequoia_openpgp::Cert| path.as_str() == format!("keys/{}.asc", Fingerprint::of(cert));
    if certs.len() != 1 || !certs.iter().all(named) {
        return Err(mismatch("it is not the certificate that its name says".into()));
    }
    Ok(())
}

/// Step 9: whether a release may follow the one that is installed. It is part of every verification that is given the
/// installed release; this is for those who learn of that one later.
///
/// # Errors
/// [`Error::Development`], [`Error::Rollback`], [`Error::NotAnUpgrade`] or [`Error::SkippedVersion`].
pub fn check_upgrade(offered: &Manifest, policy: &Policy<'_>) -> Result<(), Error> {
    if offered.development && policy.development == Development::Refuse {
        return Err(Error::Development(offered.root()));
    }
    let Some(installed) = policy.installed else { return Ok(()) };
    if offered.product != installed.product {
        return Err(Error::NotAnUpgrade(format!(
            "the release is {}, and {} is installed: they are different products",
            offered.root(),
            installed.root()
        )));
    }
    let same_version = offered.version == installed.version;
    if offered.sequence == installed.sequence && !same_version {
        return Err(Error::NotAnUpgrade(format!(
            "{} and the installed {} both have sequence {}: one of them was released in error; ask the vendor",
            offered.version, installed.version, offered.sequence
        )));
    }
    let older = offered.sequence < installed.sequence || offered.version < installed.version;
    if older && policy.rollback == Rollback::Refuse {
        return Err(Error::Rollback {
            offered: offered.version.to_string(),
            offered_sequence: offered.sequence,
            installed: installed.version.to_string(),
            installed_sequence: installed.sequence,
        });
    }
    if let Some(required) = &offered.minimum_upgrade_from
        && installed.version < *required
        && policy.skipped_version == SkippedVersion::Refuse
    {
        return Err(Error::SkippedVersion {
            offered: offered.version.to_string(),
            installed: installed.version.to_string(),
            required: required.to_string(),
        });
    }
    Ok(())
}
