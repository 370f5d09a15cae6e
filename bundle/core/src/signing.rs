//! Making keys and signatures.
//!
//! A signer is either a key file or a key that gpg-agent holds, on disk or on a hardware token. Both give a detached
//! version 4 signature with SHA-512, which GnuPG 2.2, `gpgv` and `sqv` accept.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use sequoia_openpgp as openpgp;

use openpgp::cert::prelude::{CertBuilder, KeyBuilder, SubkeyRevocationBuilder};
use openpgp::cert::{Cert, CipherSuite};
use openpgp::crypto::{KeyPair, Password};
use openpgp::packet::Packet;
use openpgp::packet::key::{PublicParts, SecretKeyMaterial, SecretParts, UnspecifiedRole};
use openpgp::packet::prelude::{Key, SignatureBuilder};
use openpgp::parse::Parse as _;
use openpgp::policy::StandardPolicy;
use openpgp::serialize::{Serialize as _, SerializeInto as _};
use openpgp::types::{HashAlgorithm, KeyFlags, ReasonForRevocation, SignatureType};
use openpgp::{KeyHandle, armor};

use crate::output::OutputFile;
use crate::signature::{self, Fingerprint, PinnedCerts, Threshold};

/// A passphrase. It does not print, and its memory is cleared and kept encrypted while it is not used.
#[derive(Clone)]
pub struct Passphrase(Password);

impl Passphrase {
    /// Takes the text as it is; the caller strips a file's last newline.
    pub fn new(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Why a key cannot be made or used, or a signature not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file could not be read.
    #[error("cannot read the key {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A certificate could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The key file is not an OpenPGP key, or has no usable signing key.
    #[error("{} cannot sign: {reason}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key is encrypted and no passphrase was given.
    #[error("{} is protected by a passphrase: give it with --passphrase-file, --passphrase-env or at a terminal's prompt", .0.display())]
    PassphraseNeeded(PathBuf),
    /// The passphrase does not open the key.
    #[error("the passphrase does not open {}; check that it is the one of this key", .0.display())]
    WrongPassphrase(PathBuf),
    /// The key's remaining validity is shorter than required.
    #[error(
        "the signing key {key} in {source_of} expires in {days} days, less than the {required} that are required: \
         add a subkey with `cargo xtask keygen --rotate KEYFILE` and ship the new certificate first"
    )]
    ExpiresSoon {
        /// The signing key.
        key: Fingerprint,
        /// Where it comes from.
        source_of: String,
        /// Whole days until it expires.
        days: u64,
        /// What was asked for.
        required: u64,
    },
    /// `gpg` failed.
    #[error("gpg could not sign with {key}: {reason}")]
    Gpg {
        /// The key that was asked for.
        key: String,
        /// What gpg said.
        reason: String,
    },
    /// Anything that the OpenPGP library refuses to do.
    #[error("{doing}: {reason}")]
    OpenPgp {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        reason: String,
    },
}

fn failed(doing: &'static str) -> impl Fn(anyhow::Error) -> Error {
    move |error| Error::OpenPgp { doing, reason: format!("{error:#}") }
}

/// A freshly made or rotated key, ready to be written to files. All are ASCII-armored.
pub struct NewKey {
    /// Primary and subkeys with their secrets: for the safe.
    pub secret: Vec<u8>,
    /// Signing subkeys only: for the machine that signs releases. The primary key is there without its secret.
    pub signing_secret: Vec<u8>,
    /// The public certificate: for customers to pin.
    pub certificate: Vec<u8>,
    /// A revocation of the whole certificate, to be published if the primary key is lost. `None` after a rotation:
    /// the one from the beginning still holds.
    pub revocation: Option<Vec<u8>>,
    /// The certificate.
    pub fingerprint: Fingerprint,
    /// When the newest signing subkey expires.
    pub expires: SystemTime,
}

/// Makes a certificate: a primary key that only certifies and does not expire, and a signing subkey that expires after
/// `validity`. Ed25519, version 4.
///
/// # Errors
/// The OpenPGP library failed.
pub fn generate(
    user_id: &str,
    validity: Duration,
    passphrase: Option<&Passphrase>,
    now: SystemTime,
) -> Result<NewKey, Error> {
    let (cert, revocation) = CertBuilder::new()
        .add_userid(user_id)
        .set_creation_time(now)
        .set_cipher_suite(CipherSuite::Cv25519)
        .set_primary_key_flags(KeyFlags::empty().set_certification())
        .add_subkey(KeyFlags::empty().set_signing(), validity, None)
        .set_password(passphrase.map(|passphrase| passphrase.0.clone()))
        .generate()
        .map_err(failed("making a key"))?;
    let mut armored = armor::Writer::with_headers(
        Vec::new(),
        armor::Kind::PublicKey,
        [("Comment", format!("Revocation of {}. Publishing it cannot be undone.", cert.fingerprint()))],
    )
    .map_err(|error| failed("writing the revocation")(error.into()))?;
    // As GnuPG does it, the revocation stands alone; importing it into a keyring revokes the certificate there.
    Packet::from(revocation).serialize(&mut armored).map_err(failed("writing the revocation"))?;
    let revocation = armored.finalize().map_err(|error| failed("writing the revocation")(error.into()))?;
    new_key(&cert, Some(revocation), now + validity)
}

/// What happens to the signing subkeys that are there when one is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldSubkeys {
    /// They stay valid until they expire: releases that they signed go on verifying.
    Keep,
    /// They are revoked as superseded: releases that they signed no longer verify.
    Revoke,
}

/// Adds a signing subkey to the key in `path`, which must hold the primary key's secret.
///
/// # Errors
/// See [`Error`].
pub fn rotate(
    path: &Path,
    validity: Duration,
    old: OldSubkeys,
    passphrase: Option<&Passphrase>,
    now: SystemTime,
) -> Result<NewKey, Error> {
    let cert = read_key(path)?;
    let policy = StandardPolicy::at(now);
    let primary = cert.primary_key().key().clone().parts_into_secret().ok();
    let primary = primary.filter(|key| !is_stub(key.secret())).ok_or_else(|| Error::Unusable {
        path: path.to_owned(),
        reason: "it does not hold the secret of the primary key; use the file from the safe (`.secret.asc`)".into(),
    })?;
    let mut certifier = open(primary.role_into_unspecified(), path, passphrase)?;
    let subkeys: Vec<_> = cert.keys().subkeys().map(|subkey| subkey.key().clone()).collect();

    let mut builder =
        KeyBuilder::new(KeyFlags::empty().set_signing()).set_cipher_suite(CipherSuite::Cv25519).set_creation_time(now);
    if let Some(passphrase) = passphrase {
        builder = builder.set_password(passphrase.0.clone());
    }
    let valid = cert.with_policy(&policy, now).map_err(failed("reading the key's certificate"))?;
    let mut rotated = builder
        .subkey(valid)
        .and_then(|subkey| {
            subkey
                .set_signature_creation_time(now)?
                .set_key_validity_period(validity)?
                .set_primary_key_signer(certifier.clone())
                .attach_cert()
        })
        .map_err(failed("adding a subkey"))?;
    if old == OldSubkeys::Revoke {
        for subkey in subkeys {
            let revocation = SubkeyRevocationBuilder::new()
                .set_signature_creation_time(now)
                .and_then(|builder| {
                    builder
                        .set_reason_for_revocation(ReasonForRevocation::KeySuperseded, b"replaced by a newer subkey")?
                        .build(&mut certifier, &rotated, &subkey, HashAlgorithm::SHA512)
                })
                .map_err(failed("revoking the old subkey"))?;
            rotated = rotated.insert_packets(revocation).map_err(failed("revoking the old subkey"))?.0;
        }
    }
    new_key(&rotated, None, now + validity)
}

fn new_key(cert: &Cert, revocation: Option<Vec<u8>>, expires: SystemTime) -> Result<NewKey, Error> {
    let write = failed("writing the key");
    let primary = cert.fingerprint();
    let mut signing = armor::Writer::new(Vec::new(), armor::Kind::SecretKey).map_err(|error| write(error.into()))?;
    cert.as_tsk()
        .set_filter(move |key| key.fingerprint() != primary)
        .emit_secret_key_stubs(true)
        .serialize(&mut signing)
        .map_err(&write)?;
    Ok(NewKey {
        secret: cert.as_tsk().armored().to_vec().map_err(&write)?,
        signing_secret: signing.finalize().map_err(|error| write(error.into()))?,
        certificate: armored_certificate(cert)?,
        revocation,
        fingerprint: Fingerprint::of(cert),
        expires,
    })
}

/// The public certificate in ASCII armor: the same bytes for the same certificate.
///
/// # Errors
/// The OpenPGP library failed.
pub fn armored_certificate(cert: &Cert) -> Result<Vec<u8>, Error> {
    let cert = cert.clone().strip_secret_key_material();
    let mut writer = armor::Writer::new(Vec::new(), armor::Kind::PublicKey)
        .map_err(|error| failed("writing the certificate")(error.into()))?;
    cert.export(&mut writer).map_err(failed("writing the certificate"))?;
    writer.finalize().map_err(|error| failed("writing the certificate")(error.into()))
}

fn read_key(path: &Path) -> Result<Cert, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Cert::from_bytes(&bytes).map_err(|error| Error::Unusable {
        path: path.to_owned(),
        reason: format!("it is not an OpenPGP key: {error}; `spacelift-bundle keygen` makes one"),
    })
}

/// Whether GnuPG left a note in place of the secret: it is elsewhere, in the safe or on a token.
fn is_stub(secret: &SecretKeyMaterial) -> bool {
    matches!(secret, SecretKeyMaterial::Encrypted(encrypted) if !encrypted.s2k().is_supported())
}

fn open(
    key: Key<SecretParts, UnspecifiedRole>,
    path: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<KeyPair, Error> {
    let key = if key.secret().is_encrypted() {
        let passphrase = passphrase.ok_or_else(|| Error::PassphraseNeeded(path.to_owned()))?;
        key.decrypt_secret(&passphrase.0).map_err(|_| Error::WrongPassphrase(path.to_owned()))?
    } else {
        key
    };
    key.into_keypair().map_err(failed("opening the key"))
}

/// Something that can sign: a key file that has been opened, or a key of gpg-agent.
pub struct Signer {
    cert: Cert,
    key: Key<PublicParts, UnspecifiedRole>,
    expires: Option<SystemTime>,
    source: String,
    kind: Kind,
}

enum Kind {
    File(Box<KeyPair>),
    GpgAgent,
}

/// Whether the key in `path` asks for a passphrase.
///
/// # Errors
/// The file cannot be read or is not a key.
pub fn needs_passphrase(path: &Path) -> Result<bool, Error> {
    let cert = read_key(path)?;
    Ok(cert.keys().secret().any(|key| key.key().secret().is_encrypted() && !is_stub(key.key().secret())))
}

impl Signer {
    /// Opens the newest valid signing key in a key file.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_file(path: &Path, passphrase: Option<&Passphrase>, now: SystemTime) -> Result<Self, Error> {
        let cert = read_key(path)?;
        let policy = StandardPolicy::at(now);
        let newest = cert
            .keys()
            .with_policy(&policy, now)
            .alive()
            .revoked(false)
            .for_signing()
            .secret()
            .filter(|key| !is_stub(key.key().secret()))
            .max_by_key(|key| key.key().creation_time())
            .ok_or_else(|| Error::Unusable { path: path.to_owned(), reason: no_signing_key(&cert, now) })?;
        let expires = newest.key_expiration_time();
        let key = newest.key().clone();
        let pair = open(key.clone(), path, passphrase)?;
        Ok(Self {
            key: key.parts_into_public(),
            expires,
            source: path.display().to_string(),
            kind: Kind::File(Box::new(pair)),
            cert: cert.clone().strip_secret_key_material(),
        })
    }

    /// Takes the key named by `fingerprint` from gpg-agent: the fingerprint of a certificate or of its signing subkey.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_gpg_agent(fingerprint: &str, now: SystemTime) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Gpg { key: fingerprint.to_owned(), reason };
        let digits = fingerprint.trim_start_matches("0x");
        if digits.len() < 40 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(refuse("name it by its whole fingerprint; shorter key ids can be forged".into()));
        }
        let output = gpg(&["--batch", "--export", "--", digits], &[]).map_err(refuse)?;
        let cert = Cert::from_bytes(&output)
            .map_err(|_| refuse("gpg has no such certificate; `gpg --list-secret-keys` shows what there is".into()))?;
        let handle: KeyHandle = digits.parse().map_err(|error: anyhow::Error| refuse(error.to_string()))?;
        let policy = StandardPolicy::at(now);
        let keys = cert.keys().with_policy(&policy, now).alive().revoked(false).for_signing();
        let is_primary = handle.aliases(cert.key_handle());
        let newest = keys
            .filter(|key| is_primary || handle.aliases(key.key().key_handle()))
            .max_by_key(|key| key.key().creation_time())
            .ok_or_else(|| refuse(no_signing_key(&cert, now)))?;
        Ok(Self {
            key: newest.key().clone(),
            expires: newest.key_expiration_time(),
            source: "gpg-agent".into(),
            kind: Kind::GpgAgent,
            cert: cert.clone(),
        })
    }

    /// The public certificate that verifies its signatures.
    pub fn cert(&self) -> &Cert {
        &self.cert
    }

    /// Writes the public certificate to `directory`, which is made if it is missing, as `FINGERPRINT.asc`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_certificate(&self, directory: &Path) -> Result<PathBuf, Error> {
        let path = directory.join(format!("{}.asc", Fingerprint::of(&self.cert)));
        let contents = armored_certificate(&self.cert)?;
        std::fs::create_dir_all(directory)
            .and_then(|()| OutputFile::write(&path, &contents))
            .map_err(|source| Error::Write { path: path.clone(), source })?;
        Ok(path)
    }

    /// # Errors
    /// The signing key expires in less than `days` days.
    pub fn require_validity(&self, days: u64, now: SystemTime) -> Result<(), Error> {
        let Some(expires) = self.expires else { return Ok(()) };
        let left = expires.duration_since(now).unwrap_or_default().as_secs() / 86_400;
        if left < days {
            return Err(Error::ExpiresSoon {
                key: Fingerprint::of_key(&self.key.fingerprint()),
                source_of: self.source.clone(),
                days: left,
                required: days,
            });
        }
        Ok(())
    }

    /// A binary detached signature over `data`. It is verified before it is returned: a signature that our own verifier
    /// refuses is never written anywhere.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn sign(&self, data: &[u8], now: SystemTime) -> Result<Vec<u8>, Error> {
        let signature = match &self.kind {
            Kind::File(pair) => {
                let mut pair = pair.as_ref().clone();
                let signature = SignatureBuilder::new(SignatureType::Binary)
                    .set_hash_algo(HashAlgorithm::SHA512)
                    .set_signature_creation_time(now)
                    .and_then(|builder| builder.set_issuer_fingerprint(pair.public().fingerprint()))
                    .and_then(|builder| builder.set_issuer(pair.public().keyid()))
                    .and_then(|builder| builder.sign_message(&mut pair, data))
                    .map_err(failed("signing"))?;
                Packet::from(signature).to_vec().map_err(failed("writing the signature"))?
            }
            Kind::GpgAgent => {
                // The exclamation mark pins this very key; without it gpg would choose the newest subkey by itself.
                let user = format!("{}!", self.key.fingerprint().to_hex());
                gpg(
                    &["--batch", "--digest-algo", "SHA512", "--local-user", &user, "--detach-sign", "--output", "-"],
                    data,
                )
                .map_err(|reason| Error::Gpg { key: self.key.fingerprint().to_hex(), reason })?
            }
        };
        signature::verify(
            data,
            &signature,
            &PinnedCerts::from_certs(vec![self.cert.clone()]),
            Threshold::ONE,
            SystemTime::now(),
        )
        .map_err(|error| Error::OpenPgp { doing: "checking the signature just made", reason: error.to_string() })?;
        Ok(signature)
    }
}

fn no_signing_key(cert: &Cert, now: SystemTime) -> String {
    let policy = StandardPolicy::at(now);
    let usable = |revoked, alive: bool| {
        let mut keys = cert.keys().with_policy(&policy, now).for_signing().revoked(revoked);
        if alive { keys.alive().next().is_some() } else { keys.next().is_some() }
    };
    if usable(Some(false), true) {
        "the secret of its signing key is not in the file; it holds only the public part. Take the file that keygen calls NAME.signing.asc".into()
    } else if usable(Some(false), false) {
        "its signing keys have expired; add one with `cargo xtask keygen --rotate KEYFILE`".into()
    } else if usable(None, false) {
        "its signing keys are revoked".into()
    } else {
        "it has no signing key that the policy accepts".into()
    }
}

/// Runs gpg with `input` on its standard input and returns its standard output. The passphrase or the token's PIN is
/// gpg-agent's business: its pinentry asks the person at the terminal.
fn gpg(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    let mut child = Command::new("gpg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "gpg is not installed (`apt-get install gnupg`)".to_owned(),
            _ => format!("gpg cannot be started: {error}"),
        })?;
    let mut stdin = child.stdin.take();
    if let Some(stdin) = &mut stdin {
        // A gpg that ends early says why on its standard error; the broken pipe adds nothing.
        let _ = stdin.write_all(input);
    }
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        return Err(format!("{}: {stderr}", output.status));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::certs_from_bytes;

    const DAY: Duration = Duration::from_secs(86_400);

    fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pinned(certificate: &[u8]) -> PinnedCerts {
        PinnedCerts::from_certs(certs_from_bytes(certificate).unwrap())
    }

    fn signed(key: &[u8], now: SystemTime) -> Vec<u8> {
        Signer::from_file(write(key).path(), None, now).unwrap().sign(b"data", now).unwrap()
    }

    #[test]
    fn a_new_key_signs_and_its_certificate_holds_no_secret() {
        let now = SystemTime::now();
        let key = generate("Vendor <vendor@example.com>", 365 * DAY, None, now).unwrap();
        for secret in [&key.secret, &key.signing_secret] {
            let signature = signed(secret, now);
            let signers =
                signature::verify(b"data", &signature, &pinned(&key.certificate), Threshold::ONE, now).unwrap();
            assert_eq!(signers[0].primary, key.fingerprint);
            assert_ne!(signers[0].key, key.fingerprint, "the primary key only certifies");
        }
        let certificate = Cert::from_bytes(&key.certificate).unwrap();
        assert!(!certificate.is_tsk());
        let signing = Cert::from_bytes(&key.signing_secret).unwrap();
        assert!(is_stub(signing.primary_key().key().clone().parts_into_secret().unwrap().secret()));
    }

    #[test]
    fn a_passphrase_protects_every_secret() {
        let now = SystemTime::now();
        let passphrase = Passphrase::new("correct horse".into());
        let key = generate("Vendor", 365 * DAY, Some(&passphrase), now).unwrap();
        let file = write(&key.secret);
        assert!(needs_passphrase(file.path()).unwrap());
        assert!(matches!(Signer::from_file(file.path(), None, now), Err(Error::PassphraseNeeded(_))));
        let wrong = Passphrase::new("wrong".into());
        assert!(matches!(Signer::from_file(file.path(), Some(&wrong), now), Err(Error::WrongPassphrase(_))));
        Signer::from_file(file.path(), Some(&passphrase), now).unwrap().sign(b"data", now).unwrap();
        assert!(!format!("{passphrase:?}").contains("horse"));
    }

    #[test]
    fn rotation_keeps_or_revokes_the_old_subkey() {
        let then = SystemTime::now() - 10 * DAY;
        let now = SystemTime::now();
        let key = generate("Vendor", 365 * DAY, None, then).unwrap();
        let old = signed(&key.secret, then);
        let check = |new: &NewKey, signature: &[u8]| {
            signature::verify(b"data", signature, &pinned(&new.certificate), Threshold::ONE, now)
                .map(|signers| signers[0].key.clone())
        };
        let kept = rotate(write(&key.secret).path(), 365 * DAY, OldSubkeys::Keep, None, now).unwrap();
        assert_eq!(kept.fingerprint, key.fingerprint);
        let new = signed(&kept.secret, now);
        assert_ne!(check(&kept, &new).unwrap(), check(&kept, &old).unwrap(), "the newest subkey signs");
        let replaced = rotate(write(&key.secret).path(), 365 * DAY, OldSubkeys::Revoke, None, now).unwrap();
        check(&replaced, &signed(&replaced.secret, now)).unwrap();
        assert!(matches!(check(&replaced, &old), Err(signature::Error::Revoked { .. })));
    }

    #[test]
    fn rotation_needs_the_primary_secret() {
        let now = SystemTime::now();
        let key = generate("Vendor", 365 * DAY, None, now).unwrap();
        let error = rotate(write(&key.signing_secret).path(), DAY, OldSubkeys::Keep, None, now).err().unwrap();
        assert!(error.to_string().contains("primary key"), "{error}");
    }

    #[test]
    fn validity_is_required_in_whole_days() {
        let now = SystemTime::now();
        let key = generate("Vendor", 181 * DAY, None, now).unwrap();
        let signer = Signer::from_file(write(&key.secret).path(), None, now).unwrap();
        signer.require_validity(180, now).unwrap();
        assert!(matches!(signer.require_validity(180, now + DAY), Err(Error::ExpiresSoon { days: 179, .. })));
    }

    #[test]
    fn an_expired_key_does_not_sign() {
        let then = SystemTime::now() - 400 * DAY;
        let key = generate("Vendor", 365 * DAY, None, then).unwrap();
        let error = Signer::from_file(write(&key.secret).path(), None, SystemTime::now()).err().unwrap();
        assert!(error.to_string().contains("expired"), "{error}");
        let error = Signer::from_file(write(&key.certificate).path(), None, then).err().unwrap();
        assert!(error.to_string().contains("public part"), "{error}");
    }
}
