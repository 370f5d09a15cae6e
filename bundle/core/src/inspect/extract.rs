//! Taking parts out of a release.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use sequoia_openpgp::Cert;

use super::files::{look_at, open};
use super::{Known, MAX_KEY, Problem, parse_key, read_small, read_whole, visit};
use crate::contents::Contents;
use crate::launcher_sums::LauncherSums;
use crate::manifest::{self, Kind, MANIFEST, MANIFEST_SIGNATURE};
use crate::signature::{self, CertError, Fingerprint, MAX_SIGNATURE};
use crate::verify::Files;
use crate::{interrupt, release};

/// Every certificate in the release's `keys/`, each once.
///
/// # Errors
/// The release cannot be read, or a file in `keys/` is not a certificate.
pub fn keys(contents: &Contents) -> Result<Vec<Cert>, KeysError> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    visit(
        contents,
        |file| file.kind == Kind::Key,
        &mut problems,
        |file, reader| {
            files.push((file.path.to_string(), read_whole(reader, MAX_KEY)?));
            Ok(())
        },
    )?;
    let unusable = |Problem { path, problem }| CertError::Parse { path: contents.path().join(path), reason: problem };
    if let Some(problem) = problems.pop() {
        return Err(unusable(problem).into());
    }
    let mut certs: Vec<Cert> = Vec::new();
    for (path, bytes) in files {
        for Known { cert, .. } in parse_key(&path, bytes.as_deref()).map_err(unusable)? {
            if !certs.iter().any(|known| known.fingerprint() == cert.fingerprint()) {
                certs.push(cert);
            }
        }
    }
    Ok(certs)
}

/// Why the certificates cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The release cannot be read.
    #[error(transparent)]
    Release(#[from] release::Error),
    /// A file in `keys/` is not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// Who the signatures over the manifest and over the sums file say made them, each once: the primary fingerprint if
/// `known` or the release's `keys/` has the certificate, and otherwise what the signature says.
///
/// # Errors
/// As [`keys`].
pub fn claimed_signers(contents: &Contents, given: &[(PathBuf, Cert)]) -> Result<Vec<String>, KeysError> {
    let mut certs = keys(contents)?;
    certs.extend(given.iter().map(|(_, cert)| cert.clone()));
    let beside = contents.head().map(|_| Files::beside(contents.path()).signature);
    let over_sums = beside.and_then(|path| read_small(&path, MAX_SIGNATURE).ok().flatten());
    let mut signers: Vec<String> = Vec::new();
    for bytes in [contents.signature(), over_sums.as_deref()].into_iter().flatten() {
        // What cannot be read names nobody; `inspect` says why.
        for issuer in signature::claimed_signers(bytes).unwrap_or_default() {
            let owner = certs.iter().find(|cert| {
                cert.keys().any(|key| Fingerprint::of_key(&key.key().fingerprint()).as_str().ends_with(&issuer))
            });
            let signer = owner.map_or(issuer, |cert| Fingerprint::of(cert).to_string());
            if !signers.contains(&signer) {
                signers.push(signer);
            }
        }
    }
    Ok(signers)
}

/// Why a file cannot be taken out of a release.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// There is no such file, the release cannot be read, or the file differs from the manifest.
    #[error(transparent)]
    Release(#[from] release::Error),
    /// Writing failed.
    #[error("{0}")]
    Write(#[source] io::Error),
}

/// Copies one file to `out`, `manifest.json` and the signatures included. What was written is worth nothing if this
/// fails.
///
/// # Errors
/// See [`ExtractError`].
pub fn extract(contents: &Contents, path: &str, out: &mut dyn Write) -> Result<(), ExtractError> {
    let whole = match path {
        MANIFEST => Some(contents.manifest_bytes()),
        MANIFEST_SIGNATURE => contents.signature(),
        _ => LauncherSums::of(contents.manifest())
            .iter()
            .position(|sums| sums.signature_name() == path)
            .and_then(|index| contents.launcher_signatures().get(index))
            .map(Vec::as_slice),
    };
    if let Some(bytes) = whole {
        return out.write_all(bytes).map_err(ExtractError::Write);
    }
    let Some(file) = contents.manifest().file(path) else {
        let missing = "the release holds no such file; `spacelift-bundle inspect` lists those that it holds";
        let source = io::Error::new(io::ErrorKind::NotFound, missing);
        return Err(release::Error::Io { doing: "read", path: contents.path().join(path), source }.into());
    };
    let mut write_error = None;
    let mut copy = |_: &manifest::File, reader: &mut dyn Read| {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            interrupt::check()?;
            let read = reader.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            if let Err(error) = out.write_all(&buffer[..read]) {
                // Whose fault it was is told apart below.
                let kind = error.kind();
                write_error = Some(error);
                return Err(kind.into());
            }
        }
    };
    let copied = match contents.head() {
        Some(_) => visit(contents, |other| other.path == file.path, &mut Vec::new(), &mut copy),
        None => {
            let full = contents.path().join(path);
            let looked_at = open(&full).and_then(|opened| look_at(file, &opened, &mut copy));
            match looked_at {
                Ok(None) => Ok(()),
                Ok(Some(difference)) => Err(difference.error(contents.path(), file)),
                Err(source) => Err(release::Error::Io { doing: "read", path: full, source }),
            }
        }
    };
    match write_error {
        Some(error) => Err(ExtractError::Write(error)),
        None => Ok(copied?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::fixture::{Example, cert, key, launcher_binary};
    use super::*;
    use crate::signing;

    fn example() -> Example {
        let files: [(&str, &[u8]); 3] = [
            ("bin/spacelift-launcher", &launcher_binary("v1.2.3")),
            ("config.json", b"{}\n"),
            ("install.sh", b"#!/bin/sh\n"),
        ];
        Example::new("v1.2.3", &files)
    }

    fn extracted(path: &Path, file: &str) -> Result<Vec<u8>, ExtractError> {
        let mut out = Vec::new();
        extract(&Contents::open(path).unwrap(), file, &mut out).map(|()| out)
    }

    #[test]
    fn one_file_is_extracted_and_checked() {
        let example = example();
        let archive = example.sign(&[&key("Vendor")]);
        let root = example.unpack(&archive);
        for release in [&archive, &root] {
            assert_eq!(extracted(release, "config.json").unwrap(), b"{}\n");
            assert_eq!(extracted(release, "bin/spacelift-launcher").unwrap(), launcher_binary("v1.2.3"));
            for name in [MANIFEST, MANIFEST_SIGNATURE] {
                assert_eq!(extracted(release, name).unwrap(), fs::read(root.join(name)).unwrap());
            }
            for missing in ["", "bin", "/config.json", "bin/../config.json", "\u{1b}[2J"] {
                let error = extracted(release, missing).unwrap_err();
                let ExtractError::Release(release::Error::Io { doing: "read", source, .. }) = &error else {
                    panic!("{error}");
                };
                assert_eq!(source.kind(), io::ErrorKind::NotFound);
            }
        }
        for edited in ["{ }", "{}\n\n", "", "[]\n"] {
            fs::write(root.join("config.json"), edited).unwrap();
            let error = extracted(&root, "config.json").unwrap_err();
            assert!(matches!(error, ExtractError::Release(release::Error::NotARelease { .. })), "{error}");
        }
    }

    #[test]
    fn an_output_that_is_full_is_not_the_release_s_fault() {
        let example = example();
        let archive = example.pack();
        let root = example.unpack(&archive);
        for release in [&archive, &root] {
            // The file has ten bytes.
            let mut enough: &mut [u8] = &mut [0; 10];
            extract(&Contents::open(release).unwrap(), "install.sh", &mut enough).unwrap();
            let mut full: &mut [u8] = &mut [0; 9];
            let error = extract(&Contents::open(release).unwrap(), "install.sh", &mut full).unwrap_err();
            assert!(matches!(error, ExtractError::Write(_)), "{error}");
        }
    }

    #[test]
    fn certificates_come_out_as_they_were_packed() {
        let (vendor, partner) = (key("Vendor"), key("Partner"));
        let mut example = example();
        assert_eq!(keys(&Contents::open(&example.pack()).unwrap()).unwrap().len(), 0);
        example.release.certificates = vec![cert(&vendor), cert(&partner)];
        let archive = example.sign(&[&vendor]);
        let root = example.unpack(&archive);
        for release in [&archive, &root] {
            let certs = keys(&Contents::open(release).unwrap()).unwrap();
            assert_eq!(certs.len(), 2);
            for cert in &certs {
                let packed = fs::read(root.join(format!("keys/{}.asc", Fingerprint::of(cert)))).unwrap();
                assert_eq!(signing::armored_certificate(cert).unwrap(), packed);
            }
        }
        fs::write(root.join(format!("keys/{}.asc", vendor.fingerprint)), &partner.certificate).unwrap();
        let error = keys(&Contents::open(&root).unwrap()).err().unwrap();
        assert!(matches!(error, KeysError::Certificate(CertError::Parse { .. })), "{error}");
    }

    #[test]
    fn claimed_signers_are_named_by_their_primary_key_when_it_is_known() {
        let (vendor, partner) = (key("Vendor"), key("Partner"));
        let mut example = example();
        example.release.certificates = vec![cert(&vendor)];
        let unsigned = Contents::open(&example.pack()).unwrap();
        assert_eq!(claimed_signers(&unsigned, &[]).unwrap(), [""; 0]);
        let archive = Contents::open(&example.sign(&[&vendor, &partner])).unwrap();
        let signing_key = cert(&partner).keys().subkeys().next().unwrap().key().fingerprint().to_hex();
        assert_eq!(claimed_signers(&archive, &[]).unwrap(), [vendor.fingerprint.to_string(), signing_key]);
        let given = [(PathBuf::from("partner.asc"), cert(&partner))];
        let both = [vendor.fingerprint.to_string(), partner.fingerprint.to_string()];
        assert_eq!(claimed_signers(&archive, &given).unwrap(), both);
    }
}
