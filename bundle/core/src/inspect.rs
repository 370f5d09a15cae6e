//! Saying what a release is, who claims to have signed it and until when: for people who want to know, and for scripts
//! that need one value.
//!
//! # Architecture Invariant
//! Nothing here verifies. Whoever makes a release decides what this module finds in it, the certificates included, so
//! nothing here may be turned into a decision about trust; [`crate::verify`] is for that. Everything that comes out of a
//! release may hold any text: print it through [`crate::show`].

mod binaries;
mod extract;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod signatures;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sequoia_openpgp::Cert;
use serde::{Serialize, Serializer};

use crate::contents::Contents;
use crate::digest::{Digest, HashingReader};
use crate::interrupt;
use crate::launcher_sums::LauncherSums;
use crate::manifest::{Kind, MANIFEST, MANIFEST_SIGNATURE, Manifest};
use crate::release;
use crate::signature::{self, MAX_SIGNATURE};
use crate::source::Date;
use crate::sums::{self, MAX_SUMS};
use crate::verify::Files;

pub(crate) use crate::verify::MAX_KEY;
pub(crate) use binaries::MAX_BINARY;
pub use binaries::{Binary, Build, Worker};
pub use extract::{ExtractError, KeysError, claimed_signers, extract, keys};
pub use files::Problem;
pub(crate) use files::{read_whole, unlisted, visit};
pub(crate) use signatures::Known;
pub use signatures::{Certificate, Check, Outcome, Signature, SignatureFile, SigningKey};

/// What a release says about itself.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Always `false`.
    pub verified: NotVerified,
    /// Where it is.
    pub release: String,
    /// What it is.
    pub form: Form,
    /// Name of the directory in the archive.
    pub root: String,
    /// Its source date in RFC 3339.
    pub date: String,
    /// The manifest.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// The archive; `None` for a directory.
    pub archive: Option<Archive>,
    /// The sums file beside the archive; `None` for a directory.
    pub sums: Option<Sums>,
    /// The signatures: over the manifest, over each launcher's sums, and over the sums file beside the archive.
    pub signatures: Vec<SignatureFile>,
    /// The certificates that the caller gave, then those in `keys/`.
    pub certificates: Vec<Certificate>,
    /// The programs in `bin/`.
    pub binaries: Vec<Binary>,
    /// What is not as it should be, as far as that was noticed in passing.
    pub problems: Vec<Problem>,
    /// Why an archive could not be read to its end. What follows from its contents is incomplete then.
    #[serde(skip)]
    pub damage: Option<release::Error>,
}

/// `false` in JSON, and nothing that runs can make it `true`.
#[derive(Debug, Clone, Copy)]
pub struct NotVerified;

impl Serialize for NotVerified {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(false)
    }
}

/// How a release is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// An archive with a signature over its manifest.
    SignedArchive,
    /// An archive that waits for its signatures.
    UnsignedArchive,
    /// Unpacked.
    Directory,
}

impl Form {
    /// What `contents` is.
    pub fn of(contents: &Contents) -> Self {
        match (contents.head(), contents.signature()) {
            (None, _) => Self::Directory,
            (Some(_), Some(_)) => Self::SignedArchive,
            (Some(_), None) => Self::UnsignedArchive,
        }
    }
}

/// An archive as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archive {
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Digest,
    /// Its SHA-256 without the manifest's signature: equal for two builds of the same release, whoever signed them.
    pub payload_sha256: Digest,
}

/// The sums file beside an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sums {
    /// Its name.
    pub file: String,
    /// Whether it is there.
    pub found: bool,
    /// What is wrong with it. Without a problem it names the archive with the digest that it has.
    pub problem: Option<String>,
}

/// Looks at the release at `path`. `given` are certificates from elsewhere, with the names of their files.
///
/// # Errors
/// There is no release there. An archive that has a readable beginning and is damaged further on is
/// [`Inspection::damage`].
pub fn inspect(path: &Path, given: &[(PathBuf, Cert)], now: SystemTime) -> Result<Inspection, release::Error> {
    let contents = Contents::open(path)?;
    let manifest = contents.manifest().clone();
    let mut problems = Vec::new();
    let mut binaries = Vec::new();
    let mut keys = Vec::new();
    let visited = visit(
        &contents,
        |_| true,
        &mut problems,
        |file, reader| {
            match file.kind {
                Kind::Binary => {
                    let held = read_whole(reader, MAX_BINARY)?;
                    binaries.push(Binary::of(file.path.as_str(), held.as_deref()));
                }
                Kind::Key => keys.push((file.path.to_string(), read_whole(reader, MAX_KEY)?)),
                _ => {}
            }
            Ok(())
        },
    );
    let damage = match visited {
        Err(error) if Form::of(&contents) == Form::Directory || is_interrupted(&error) => return Err(error),
        visited => visited.err(),
    };
    let mut known: Vec<_> =
        given.iter().map(|(path, cert)| Known { origin: path.display().to_string(), cert: cert.clone() }).collect();
    for (path, bytes) in keys {
        match parse_key(&path, bytes.as_deref()) {
            Ok(found) => known.extend(found),
            Err(problem) => problems.push(problem),
        }
    }

    let (archive, sums, sums_signature) = match contents.head() {
        None => {
            problems.extend(unlisted(&contents)?);
            (None, None, None)
        }
        Some(head) => {
            let archive = archive(path, head)?;
            let (sums, signature) = look_beside(path, &archive, &known, now);
            (Some(archive), Some(sums), Some(signature))
        }
    };
    let of_manifest = signatures::look(
        (MANIFEST_SIGNATURE.into(), MANIFEST.into()),
        Ok(contents.signature().map(<[u8]>::to_vec)),
        Some(contents.manifest_bytes()),
        &known,
        now,
    );
    let of_launchers = LauncherSums::of(&manifest).into_iter().enumerate().map(|(index, sums)| {
        signatures::look(
            (sums.signature_name(), format!("the SHA-256 of {}", sums.path)),
            Ok(contents.launcher_signatures().get(index).cloned()),
            Some(sums.text().as_bytes()),
            &known,
            now,
        )
    });
    let of_launchers: Vec<_> = of_launchers.collect();
    Ok(Inspection {
        verified: NotVerified,
        release: path.display().to_string(),
        form: Form::of(&contents),
        root: manifest.root(),
        date: date(&manifest),
        manifest,
        archive,
        sums,
        signatures: [of_manifest].into_iter().chain(of_launchers).chain(sums_signature).collect(),
        certificates: known.iter().map(|known| Certificate::of(known, now)).collect(),
        binaries,
        problems,
        damage,
    })
}

/// The manifest's source date in RFC 3339, or its number if that is no date.
pub(crate) fn date(manifest: &Manifest) -> String {
    let seconds = manifest.source_date.to_string();
    seconds.parse().map_or(seconds, |date: Date| date.to_string())
}

fn is_interrupted(error: &release::Error) -> bool {
    matches!(error, release::Error::Io { source, .. } if interrupt::is_interrupted(source))
}

/// The certificates in a file of `keys/`, whose bytes are `None` if there are more than [`MAX_KEY`].
pub(crate) fn parse_key(path: &str, bytes: Option<&[u8]>) -> Result<Vec<Known>, Problem> {
    let wrong = |reason: String| Problem::new(path, reason);
    let bytes = bytes.ok_or_else(|| wrong(format!("it has more than {MAX_KEY} bytes and was not looked into")))?;
    if bytes.windows(11).any(|window| window == b"PRIVATE KEY") {
        return Err(wrong("it holds a PRIVATE KEY; consider that key compromised".into()));
    }
    let certs = signature::certs_from_bytes(bytes).map_err(|reason| wrong(format!("not a certificate: {reason}")))?;
    Ok(certs.into_iter().map(|cert| Known { origin: path.to_owned(), cert }).collect())
}

fn archive(path: &Path, head: &release::Head) -> Result<Archive, release::Error> {
    let io = |source| release::Error::Io { doing: "read", path: path.to_owned(), source };
    let payload_sha256 = release::payload(path, head)?;
    let file = File::open(path).map_err(io)?;
    let mut hashing = HashingReader::new(file);
    let mut buffer = vec![0; 1024 * 1024];
    while hashing.read(&mut buffer).map_err(io)? > 0 {
        interrupt::check().map_err(io)?;
    }
    let (_, sha256, size) = hashing.finish();
    Ok(Archive { size, sha256, payload_sha256 })
}

/// The sums file beside an archive, and its signatures.
fn look_beside(path: &Path, archive: &Archive, known: &[Known], now: SystemTime) -> (Sums, SignatureFile) {
    let files = Files::beside(path);
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let contents = read_small(&files.sums, MAX_SUMS);
    let problem = match &contents {
        Ok(None) => None,
        Err(problem) => Some(problem.clone()),
        Ok(Some(bytes)) => match sums::find(bytes, &name(path)) {
            Ok(digest) if digest == archive.sha256 => None,
            Ok(digest) => Some(format!("it gives the SHA-256 {digest}, the archive has {}", archive.sha256)),
            Err(error) => Some(error.to_string()),
        },
    };
    let found = !matches!(contents, Ok(None));
    let signature = signatures::look(
        (name(&files.signature), name(&files.sums)),
        read_small(&files.signature, MAX_SIGNATURE),
        contents.as_ref().ok().and_then(Option::as_deref),
        known,
        now,
    );
    (Sums { file: name(&files.sums), found, problem }, signature)
}

/// A small file beside the archive; `None` if there is none.
fn read_small(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    let read = files::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() > limit => Err(format!("it has more than {limit} bytes")),
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use serde_json::Value;

    use super::fixture::{Example, YEAR, cert, key, launcher_binary, launcher_image};
    use super::*;
    use crate::build_note::fixture::COMMIT;
    use crate::signing::{self, OldSubkeys};

    fn now() -> SystemTime {
        SystemTime::now()
    }

    /// A release with a bit of everything.
    fn example() -> Example {
        let files: [(&str, &[u8]); 5] = [
            ("bin/spacelift-launcher", &launcher_binary("v1.2.3")),
            ("config.json", b"{}\n"),
            ("container-images/spacelift-launcher.tar", &launcher_image("v1.2.3")),
            ("install.sh", b"#!/bin/sh\n"),
            ("cloudformation/pool.yaml", b"Resources: {}\n"),
        ];
        Example::new("v1.2.3", &files)
    }

    fn problems(inspection: &Inspection) -> Vec<String> {
        inspection.problems.iter().map(|problem| format!("{}: {}", problem.path, problem.problem)).collect()
    }

    #[test]
    fn a_signed_archive_shows_everything_that_is_in_it() {
        let vendor = key("Vendor <vendor@example.com>");
        let mut example = example();
        example.release.certificates = vec![cert(&vendor)];
        let payload = release::payload(&example.pack(), &release::read_head(&example.pack()).unwrap()).unwrap();
        let archive = example.sign(&[&vendor]);
        let inspection = inspect(&archive, &[], now()).unwrap();
        assert_eq!(inspection.form, Form::SignedArchive);
        assert_eq!(problems(&inspection), [""; 0]);
        assert!(inspection.damage.is_none());
        let bytes = fs::read(&archive).unwrap();
        assert_eq!(
            inspection.archive,
            Some(Archive { size: bytes.len() as u64, sha256: Digest::of(&bytes), payload_sha256: payload })
        );
        let sums = inspection.sums.as_ref().unwrap();
        assert_eq!((sums.file.as_str(), sums.found), ("self-hosted-v1.2.3.tar.gz_SHA256SUMS", true));
        assert_eq!(sums.problem, None);

        let [binary] = inspection.binaries.as_slice() else { panic!("{:?}", inspection.binaries) };
        assert_eq!(binary.problem, None);
        let build = binary.build.as_ref().unwrap();
        assert_eq!((build.program.as_str(), build.version.as_str()), ("spacelift-launcher", "v1.2.3"));
        assert_eq!((build.commit.as_str(), build.target.as_str()), (COMMIT, "x86_64-unknown-linux-musl"));
        assert_eq!(binary.worker.as_ref().unwrap().version, "v1.2.3");

        let [over_manifest, over_launcher, over_sums] = inspection.signatures.as_slice() else {
            panic!("three signature files")
        };
        assert_eq!(over_launcher.file, "spacelift-launcher-x86_64_SHA256SUMS.sig");
        assert_eq!((over_manifest.file.as_str(), over_manifest.signs.as_str()), (MANIFEST_SIGNATURE, MANIFEST));
        assert_eq!(over_sums.file, "self-hosted-v1.2.3.tar.gz_SHA256SUMS.sig");
        let fingerprint = vendor.fingerprint.to_string();
        let [certificate] = inspection.certificates.as_slice() else { panic!("one certificate") };
        assert_eq!(certificate.origin, format!("keys/{fingerprint}.asc"));
        assert_eq!(certificate.user_ids, ["Vendor <vendor@example.com>"]);
        let signing_key = &certificate.signing_keys[0];
        assert!(!signing_key.expired && !signing_key.revoked && !certificate.revoked);
        for file in [over_manifest, over_sums] {
            let [signature] = file.signatures.as_slice() else { panic!("one signature") };
            assert_eq!(signature.issuer.as_ref(), Some(&signing_key.fingerprint));
            assert_eq!(signature.hash, "SHA512");
            let made_at = signature.made_at.as_deref().unwrap();
            assert!(made_at <= Date::of(now()).to_string().as_str() && made_at.starts_with("20"), "{made_at}");
            let [check] = signature.checks.as_slice() else { panic!("one check") };
            assert_eq!((check.result, &check.problem), (Outcome::Matches, &None));
            assert_eq!(check.certificate, fingerprint);
            assert_eq!(check.user_id.as_deref(), Some("Vendor <vendor@example.com>"));
            assert_eq!(check.expires, signing_key.expires);
        }

        let document: Value = serde_json::to_value(&inspection).unwrap();
        assert_eq!(document["verified"], false);
        assert_eq!(document["form"], "signed-archive");
        assert_eq!(document["version"], "v1.2.3");
        assert_eq!(document["root"], "self-hosted-v1.2.3");
        assert_eq!(document["date"], "2023-11-14T22:13:20Z");
        assert_eq!(document["files"].as_array().unwrap().len(), inspection.manifest.files.len());
        assert_eq!(document["images"][0]["platforms"][0], "linux/amd64");
        assert_eq!(document["binaries"][0]["worker"]["version"], "v1.2.3");
    }

    #[test]
    fn without_sums_and_signatures_it_says_so() {
        let example = example();
        let unsigned = inspect(&example.pack(), &[], now()).unwrap();
        assert_eq!(unsigned.form, Form::UnsignedArchive);
        assert!(!unsigned.sums.unwrap().found);
        assert!(unsigned.signatures.iter().all(|file| !file.found && file.problem.is_none()));
        let archive = unsigned.archive.unwrap();
        assert_eq!(archive.sha256, archive.payload_sha256);

        let vendor = key("Vendor");
        let archive = example.sign(&[&vendor]);
        let given = [(PathBuf::from("vendor.asc"), cert(&vendor))];
        fs::remove_file(Files::beside(&archive).sums).unwrap();
        let inspection = inspect(&archive, &given, now()).unwrap();
        assert!(!inspection.sums.unwrap().found);
        let check = &inspection.signatures[2].signatures[0].checks[0];
        assert_eq!(check.result, Outcome::NotChecked, "there is nothing to check it against");
        assert_eq!(inspection.signatures[0].signatures[0].checks[0].result, Outcome::Matches);
    }

    #[test]
    fn a_certificate_from_elsewhere_tells_whose_signature_it_is() {
        let (vendor, other) = (key("Vendor"), key("Other"));
        let example = example();
        let archive = example.sign(&[&vendor]);
        let unknown = inspect(&archive, &[("other.asc".into(), cert(&other))], now()).unwrap();
        assert!(unknown.signatures.iter().all(|file| file.signatures[0].checks.is_empty()));
        let known = inspect(&archive, &[("dir/vendor.asc".into(), cert(&vendor))], now()).unwrap();
        for file in &known.signatures {
            let check = &file.signatures[0].checks[0];
            assert_eq!((check.result, check.origin.as_str()), (Outcome::Matches, "dir/vendor.asc"));
        }
    }

    #[test]
    fn what_was_changed_after_signing_does_not_match() {
        let vendor = key("Vendor");
        let example = example();
        let archive = example.sign(&[&vendor]);
        let given = [(PathBuf::from("vendor.asc"), cert(&vendor))];
        let files = Files::beside(&archive);
        let line = sums::line(Digest::of(b"another"), "self-hosted-v1.2.3.tar.gz");
        fs::write(&files.sums, line).unwrap();
        let changed = inspect(&archive, &given, now()).unwrap();
        let check = &changed.signatures[2].signatures[0].checks[0];
        assert_eq!(check.result, Outcome::Fails);
        assert!(check.problem.as_ref().unwrap().contains("BAD"), "{check:?}");
        assert_eq!(check.user_id.as_deref(), Some("Vendor"));
        assert!(changed.sums.unwrap().problem.unwrap().contains("it gives the SHA-256"));

        let unusable: [(&[u8], &[u8], &str, &str); 4] = [
            (b"garbage\n", b"-----BEGIN PGP SIGNATURE-----", "is not `<64", "armored"),
            (b"", b"", "empty", "empty"),
            (&[b'x'; MAX_SUMS + 1], &[0x88; MAX_SIGNATURE + 1], "more than", "more than"),
            (b"\xff\n", b"\xff\xff\xff", "ASCII", "cannot be read"),
        ];
        for (sums, signature, sums_problem, signature_problem) in unusable {
            fs::write(&files.sums, sums).unwrap();
            fs::write(&files.signature, signature).unwrap();
            let inspection = inspect(&archive, &given, now()).unwrap();
            let found = inspection.sums.unwrap().problem.unwrap();
            assert!(found.contains(sums_problem), "{found}");
            let found = inspection.signatures[2].problem.clone().unwrap();
            assert!(found.contains(signature_problem), "{found}");
        }
    }

    #[test]
    fn keys_that_expired_or_were_revoked_are_shown_as_such() {
        let vendor = key("Vendor");
        let later = now() + 2 * YEAR;
        let expired = Certificate::of(&Known { origin: String::new(), cert: cert(&vendor) }, later);
        assert!(expired.signing_keys[0].expired);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vendor.secret).unwrap();
        let rotated = signing::rotate(file.path(), YEAR, OldSubkeys::Revoke, None, now()).unwrap();
        let rotated = Certificate::of(&Known { origin: String::new(), cert: cert(&rotated) }, now());
        let revoked: Vec<_> = rotated.signing_keys.iter().map(|key| key.revoked).collect();
        assert_eq!(revoked.iter().filter(|revoked| **revoked).count(), 1, "{rotated:?}");
        assert!(!rotated.revoked);

        let example = example();
        let archive = example.sign(&[&vendor]);
        let given = [(PathBuf::from("vendor.asc"), cert(&vendor))];
        let inspection = inspect(&archive, &given, later).unwrap();
        let check = &inspection.signatures[0].signatures[0].checks[0];
        assert_eq!(check.result, Outcome::Fails);
        assert!(check.problem.as_ref().unwrap().contains("expired"), "{check:?}");
        assert!(check.expires.is_some());
    }

    #[test]
    fn what_was_changed_in_a_directory_is_a_problem_and_not_an_error() {
        let vendor = key("Vendor");
        let mut example = example();
        example.release.certificates = vec![cert(&vendor)];
        let root = example.unpack(&example.sign(&[&vendor]));
        let inspection = inspect(&root, &[], now()).unwrap();
        assert_eq!(inspection.form, Form::Directory);
        assert_eq!(problems(&inspection), [""; 0]);
        assert!(inspection.archive.is_none() && inspection.sums.is_none());
        assert_eq!(inspection.signatures.len(), 2);
        for file in &inspection.signatures {
            assert_eq!(file.signatures[0].checks[0].result, Outcome::Matches, "{}", file.file);
        }

        fs::write(root.join("config.json"), "{\"edited\": true}\n").unwrap();
        fs::write(root.join("version"), "v9.9.9\n").unwrap();
        fs::remove_file(root.join("install.sh")).unwrap();
        fs::set_permissions(root.join("bin/spacelift-launcher"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        fs::create_dir(root.join("extra")).unwrap();
        fs::write(root.join("bin/extra"), "").unwrap();
        fs::remove_file(root.join("cloudformation/pool.yaml")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("cloudformation/pool.yaml")).unwrap();
        let changed = problems(&inspect(&root, &[], now()).unwrap());
        let expected = [
            ("bin/spacelift-launcher", "mode: found 0600, expected 0755"),
            ("cloudformation/pool.yaml", "cannot be read"),
            ("config.json", "size: found 17, expected 3"),
            ("install.sh", "cannot be read"),
            ("version", "contents"),
            ("bin/extra", "not in the manifest"),
            ("extra", "not in the manifest"),
        ];
        assert_eq!(changed.len(), expected.len(), "{changed:#?}");
        for (problem, (path, reason)) in changed.iter().zip(expected) {
            assert!(problem.starts_with(&format!("{path}: ")) && problem.contains(reason), "{problem}");
        }
    }

    #[test]
    fn a_pipe_in_a_directory_does_not_block() {
        let example = example();
        let root = example.unpack(&example.pack());
        let path = root.join("config.json");
        fs::remove_file(&path).unwrap();
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, pipe, rustix::fs::Mode::RWXU, 0).unwrap();
        let changed = problems(&inspect(&root, &[], now()).unwrap());
        assert_eq!(changed, ["config.json: it cannot be read: it is not a regular file"]);
    }

    #[test]
    fn files_that_are_not_what_they_should_be_are_reported() {
        let vendor = key("Vendor");
        let large = vec![b'x'; MAX_KEY as usize + 1];
        let files: [(&str, &[u8]); 6] = [
            ("bin/text", b"#!/bin/sh\n"),
            ("bin/empty", b""),
            ("bin/mixed", &crate::build_note::fixture::launcher(62, "v1.2.3", COMMIT, b"not a worker").file()),
            ("keys/a.asc", &vendor.secret),
            ("keys/b.asc", b"text"),
            ("keys/c.asc", &large),
        ];
        let example = Example::new("v1.2.3", &files);
        let inspection = inspect(&example.pack(), &[], now()).unwrap();
        let shown = problems(&inspection);
        for (problem, reason) in shown.iter().zip(["PRIVATE KEY", "not a certificate", "more than"]) {
            assert!(problem.contains(reason), "{shown:?}");
        }
        assert_eq!(shown.len(), 3);
        let binaries: Vec<_> =
            inspection.binaries.iter().map(|it| (it.path.as_str(), it.problem.as_deref().unwrap_or("none"))).collect();
        assert_eq!(binaries[0].0, "bin/empty");
        assert!(binaries[0].1.contains("ELF"), "{binaries:?}");
        assert!(binaries[1].1.contains("worker"), "{binaries:?}");
        assert!(inspection.binaries[1].worker.is_some(), "what it says is shown all the same");
        assert!(binaries[2].1.contains("ELF"), "{binaries:?}");
    }

    #[test]
    fn of_a_damaged_archive_the_readable_part_is_shown() {
        let example = example();
        let archive = example.sign(&[&key("Vendor")]);
        let bytes = fs::read(&archive).unwrap();
        fs::write(&archive, &bytes[..bytes.len() - 1]).unwrap();
        let inspection = inspect(&archive, &[], now()).unwrap();
        assert_eq!(inspection.manifest.version.to_string(), "v1.2.3");
        let damage = inspection.damage.unwrap();
        assert!(matches!(damage, release::Error::NotARelease { .. }), "{damage}");
        assert!(damage.to_string().contains("truncated"), "{damage}");
        for length in [0, 10, 300] {
            fs::write(&archive, &bytes[..length]).unwrap();
            let error = inspect(&archive, &[], now()).unwrap_err();
            assert!(matches!(error, release::Error::NotARelease { .. }), "{length}: {error}");
        }
        let missing = inspect(Path::new("/nonexistent/x.tar.gz"), &[], now()).unwrap_err();
        assert!(matches!(missing, release::Error::Io { doing: "read", .. }));
    }
}
