//! Signing a packed release, and adding signatures to one.

pub(crate) mod head;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use crate::archive;
use crate::contents::Contents;
use crate::digest::{Digest, HashingWriter};
use crate::launcher_sums::LauncherSums;
use crate::manifest::Manifest;
use crate::output::{OutputFile, remove_if_present};
use crate::signature::{self, Fingerprint, PinnedCerts, Threshold};
use crate::signing::Signer;
use crate::verify::Files;
use crate::{gzip, sums};

pub(crate) use head::signature_names;
pub use head::{Error, Head, payload, read_head};
use head::{copy_member, io_error};

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

/// What each signature of a release signs.
fn signed_texts(manifest: &Manifest, manifest_bytes: &[u8]) -> Vec<Vec<u8>> {
    let launchers = LauncherSums::of(manifest).into_iter().map(|sums| sums.text().into_bytes());
    [manifest_bytes.to_vec()].into_iter().chain(launchers).collect()
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
