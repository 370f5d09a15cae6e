//! Detached OpenPGP signatures, checked against pinned certificates.
//!
//! These are steps 1 to 3 of verification. They are stricter than what `gpg --verify` calls good:
//!
//! 1. only binary detached signatures, in binary form, are read;
//! 2. signers are counted by distinct pinned primary key, signatures by anyone else are ignored, and whatever is wrong
//!    with a pinned signer's signature is fatal;
//! 3. policy holds at the time of verification *and* at the time of signing.
//!
//! A pinned certificate is the only root of trust. Certificates inside a release are never trusted for being there.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sequoia_openpgp as openpgp;

use openpgp::cert::amalgamation::ValidateAmalgamation as _;
use openpgp::cert::{Cert, CertParser};
use openpgp::packet::{Packet, Signature, Tag};
use openpgp::parse::{PacketParser, PacketParserBuilder, PacketParserResult, Parse as _};
use openpgp::policy::{HashAlgoSecurity, Policy as _, StandardPolicy};
use openpgp::types::{HashAlgorithm, RevocationStatus, SignatureType};

/// Limit of a signature file in bytes: some hundred signatures.
pub const MAX_SIGNATURE: usize = 64 * 1024;
/// Limit of signatures in one file, so that a hostile one cannot cost minutes of arithmetic.
const MAX_SIGNATURES: usize = 64;
/// Limit of a certificate file in bytes.
const MAX_CERTIFICATES: u64 = 1024 * 1024;
/// How far the signer's clock may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// The fingerprint of an OpenPGP key: 40 upper-case hexadecimal digits (64 for version 6 keys).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of a certificate's primary key.
    pub fn of(cert: &Cert) -> Self {
        Self(cert.fingerprint().to_hex())
    }

    pub(crate) fn of_key(fingerprint: &openpgp::Fingerprint) -> Self {
        Self(fingerprint.to_hex())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Certificates that the caller trusts, pinned by having named their files.
#[derive(Clone)]
pub struct PinnedCerts(Vec<Cert>);

/// Why certificates could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The file could not be opened or read.
    #[error("cannot read the certificate {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not an OpenPGP certificate.
    #[error("{} is not an OpenPGP certificate: {reason}; export one with `gpg --export --armor FINGERPRINT`", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate was named.
    #[error("no certificate was given: name the vendor's certificate with --cert FILE")]
    None,
}

impl PinnedCerts {
    /// Reads every certificate in every file, armored or binary.
    ///
    /// # Errors
    /// See [`CertError`].
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self, CertError> {
        let mut certs: Vec<Cert> = Vec::new();
        for path in paths {
            let path = path.as_ref();
            for cert in read_certs(path)? {
                match certs.iter_mut().find(|known| known.fingerprint() == cert.fingerprint()) {
                    // A second copy may carry a revocation that the first lacks.
                    Some(known) => {
                        *known = known
                            .clone()
                            .merge_public(cert)
                            .map_err(|error| CertError::Parse { path: path.to_owned(), reason: error.to_string() })?;
                    }
                    None => certs.push(cert),
                }
            }
        }
        if certs.is_empty() {
            return Err(CertError::None);
        }
        Ok(Self(certs))
    }

    /// Pins certificates that are in memory already.
    pub fn from_certs(certs: Vec<Cert>) -> Self {
        Self(certs)
    }

    /// The certificates.
    pub fn certs(&self) -> &[Cert] {
        &self.0
    }
}

/// Every certificate in one file, armored or binary, without any secret key material.
///
/// # Errors
/// See [`CertError`].
pub fn read_certs(path: &Path) -> Result<Vec<Cert>, CertError> {
    let io = |source| CertError::Io { path: path.to_owned(), source };
    let parse = |reason: String| CertError::Parse { path: path.to_owned(), reason };
    let metadata = fs::metadata(path).map_err(io)?;
    if metadata.len() > MAX_CERTIFICATES {
        return Err(parse(format!("it has {} bytes, more than the limit of {MAX_CERTIFICATES}", metadata.len())));
    }
    let bytes = fs::read(path).map_err(io)?;
    certs_from_bytes(&bytes).map_err(parse)
}

/// Whether there is secret key material in an OpenPGP certificate. Bytes that are none hold none.
pub(crate) fn holds_secret(bytes: &[u8]) -> bool {
    CertParser::from_bytes(bytes).is_ok_and(|parser| parser.flatten().any(|cert| cert.is_tsk()))
}

/// As [`read_certs`], from memory.
///
/// # Errors
/// What is wrong with the bytes.
pub fn certs_from_bytes(bytes: &[u8]) -> Result<Vec<Cert>, String> {
    let certs = CertParser::from_bytes(bytes)
        .and_then(|parser| parser.collect::<openpgp::Result<Vec<_>>>())
        .map_err(|error| error.to_string())?;
    if certs.is_empty() {
        return Err("there is none in it".into());
    }
    Ok(certs.into_iter().map(Cert::strip_secret_key_material).collect())
}

/// Someone pinned whose signature is good. Only verification makes one.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The pinned certificate.
    pub primary: Fingerprint,
    /// The key or subkey that signed.
    pub key: Fingerprint,
    /// The certificate's user id, for people.
    pub user_id: String,
    /// When the signature was made, by the signer's clock.
    pub signed_at: SystemTime,
    /// When the signing key or its certificate expires, whichever is first.
    pub expires: Option<SystemTime>,
    /// The hash algorithm of the signature.
    pub hash: String,
}

/// Why signatures are not accepted. [`Error::step`] says which step of verification refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not OpenPGP packets.
    #[error("it is not a binary OpenPGP signature: {0}")]
    NotBinary(&'static str),
    /// Something besides signatures is in it.
    #[error(
        "it is not a detached signature: it holds a {0} packet, as an inline-signed message does; such a file says \
         nothing about the file beside it"
    )]
    NotDetached(String),
    /// Damaged, or too large.
    #[error("it cannot be read as OpenPGP signatures: {0}")]
    Malformed(String),
    /// A pinned signer's signature that is not of type 0x00.
    #[error("the signature by {signer} is of type {kind}, not a signature over a binary document")]
    WrongType {
        /// The pinned certificate.
        signer: Fingerprint,
        /// The type found.
        kind: String,
    },
    /// The arithmetic does not work out: the data is not what was signed.
    #[error("BAD signature by the pinned certificate {signer}: the signed file was changed, or the signature was")]
    Bad {
        /// The pinned certificate.
        signer: Fingerprint,
    },
    /// Good, but made with an algorithm that can be forged.
    #[error(
        "the signature by {signer} uses {algorithm}, which is too weak to rely on; ask the vendor for a signature with SHA-256 or SHA-512"
    )]
    WeakHash {
        /// The pinned certificate.
        signer: Fingerprint,
        /// The hash algorithm.
        algorithm: String,
    },
    /// Good, but it says less than a signature must, or more than this program understands.
    #[error("the signature by {signer} cannot be relied on: {reason}")]
    NotReliable {
        /// The pinned certificate.
        signer: Fingerprint,
        /// What is wrong with it.
        reason: String,
    },
    /// The key itself is too weak, or bound by a weak signature.
    #[error("the pinned certificate {signer} does not meet the policy: {reason}")]
    WeakKey {
        /// The pinned certificate.
        signer: Fingerprint,
        /// What the policy objects to.
        reason: String,
    },
    /// The certificate or signing key expired.
    #[error(
        "the pinned certificate {signer} or its signing key {key} has expired: {reason}; get the current certificate"
    )]
    Expired {
        /// The pinned certificate.
        signer: Fingerprint,
        /// The key that signed.
        key: Fingerprint,
        /// When.
        reason: String,
    },
    /// The certificate or signing key is revoked.
    #[error("the pinned certificate {signer} or its signing key {key} is revoked: {reason}; do not use this release")]
    Revoked {
        /// The pinned certificate.
        signer: Fingerprint,
        /// The key that signed.
        key: Fingerprint,
        /// The stated reason.
        reason: String,
    },
    /// The key may not sign data.
    #[error("the key {key} of the pinned certificate {signer} is not a signing key")]
    NotForSigning {
        /// The pinned certificate.
        signer: Fingerprint,
        /// The key that signed.
        key: Fingerprint,
    },
    /// Signed in the future, before the key was valid, or the signature itself expired.
    #[error("the signature by {signer} was not made while it could be: {reason}")]
    OutsideWindow {
        /// The pinned certificate.
        signer: Fingerprint,
        /// What is wrong with its time.
        reason: String,
    },
    /// Too few pinned signers.
    #[error(
        "{found} of the required {threshold} pinned certificate(s) signed it; pinned: {}; signed by: {}",
        list(pinned), if signers.is_empty() { "nobody that can be named".to_owned() } else { signers.join(", ") }
    )]
    Threshold {
        /// Distinct pinned signers with a good signature.
        found: usize,
        /// How many are required.
        threshold: usize,
        /// The pinned certificates.
        pinned: Vec<Fingerprint>,
        /// What the signatures say about who made them.
        signers: Vec<String>,
    },
}

fn list(fingerprints: &[Fingerprint]) -> String {
    fingerprints.iter().map(Fingerprint::as_str).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// The number of the step of verification that refused: 1, 2 or 3.
    pub fn step(&self) -> u8 {
        match self {
            Self::NotBinary(_) | Self::NotDetached(_) | Self::Malformed(_) | Self::WrongType { .. } => 1,
            Self::Bad { .. } | Self::Threshold { .. } => 2,
            Self::WeakHash { .. }
            | Self::NotReliable { .. }
            | Self::WeakKey { .. }
            | Self::Expired { .. }
            | Self::Revoked { .. }
            | Self::NotForSigning { .. }
            | Self::OutsideWindow { .. } => 3,
        }
    }
}

/// How many distinct pinned signers must have signed. At least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold(usize);

impl Threshold {
    /// `None` for zero: a threshold that everything meets is no threshold.
    pub fn new(count: usize) -> Option<Self> {
        (count > 0).then_some(Self(count))
    }

    /// One signer.
    pub const ONE: Self = Self(1);

    /// The number.
    pub fn get(self) -> usize {
        self.0
    }
}

/// Checks the detached `signature` over `data`. Returns the pinned signers, each once, in the order of their pins.
///
/// # Errors
/// See [`Error`].
pub fn verify(
    data: &[u8],
    signature: &[u8],
    pinned: &PinnedCerts,
    threshold: Threshold,
    now: SystemTime,
) -> Result<Vec<Signer>, Error> {
    // Step 1: only binary detached signatures.
    let signatures = parse_detached(signature)?;
    // Step 2: count by distinct pinned primary certificate.
    let mut signers = Vec::new();
    for cert in pinned.certs() {
        for signature in &signatures {
            // One key is one holder, also where two certificates share it.
            if let Some(signer) = check(data, signature, cert, now)?
                && !signers.iter().any(|known: &Signer| known.primary == signer.primary || known.key == signer.key)
            {
                signers.push(signer);
            }
        }
    }
    if signers.len() < threshold.0 {
        return Err(Error::Threshold {
            found: signers.len(),
            threshold: threshold.0,
            pinned: pinned.certs().iter().map(Fingerprint::of).collect(),
            signers: signatures.iter().flat_map(issuers).collect(),
        });
    }
    Ok(signers)
}

/// What the signatures in a file say about who made them. Says nothing about whether that is true.
///
/// # Errors
/// The file does not hold detached signatures.
pub fn claimed_signers(signature: &[u8]) -> Result<Vec<String>, Error> {
    Ok(parse_detached(signature)?.iter().flat_map(issuers).collect())
}

/// One signature, as it describes itself. Says nothing about whether that is true.
pub struct Claim {
    /// Fingerprint or key id of the key that is said to have made it.
    pub issuer: Option<String>,
    /// When it is said to have been made.
    pub made_at: Option<SystemTime>,
    /// Its hash algorithm.
    pub hash: String,
    signature: Signature,
}

impl Claim {
    /// Checks this one signature over `data` as [`verify`] does; `None` when `cert` has no key that may have made it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check(&self, data: &[u8], cert: &Cert, now: SystemTime) -> Result<Option<Signer>, Error> {
        check(data, &self.signature, cert, now)
    }
}

/// The signatures in a file, for people to look at.
///
/// # Errors
/// The file does not hold detached signatures.
pub fn claims(signature: &[u8]) -> Result<Vec<Claim>, Error> {
    let claim = |signature: Signature| Claim {
        issuer: issuers(&signature).pop(),
        made_at: signature.signature_creation_time(),
        hash: signature.hash_algo().to_string(),
        signature,
    };
    Ok(parse_detached(signature)?.into_iter().map(claim).collect())
}

fn issuers(signature: &Signature) -> Vec<String> {
    // The fingerprint says more than the key id, which is its tail.
    let handles = signature.get_issuers();
    let best = handles.iter().find(|handle| matches!(handle, openpgp::KeyHandle::Fingerprint(_)));
    best.or(handles.first()).map(|handle| format!("{handle:X}")).into_iter().collect()
}

fn parse_detached(bytes: &[u8]) -> Result<Vec<Signature>, Error> {
    let malformed = |error: anyhow::Error| Error::Malformed(error.to_string());
    match bytes.first() {
        None => return Err(Error::NotBinary("it is empty")),
        // Every OpenPGP packet begins with bit 7 set. Text, armor and clear-signed messages do not.
        Some(byte) if byte & 0x80 == 0 => {
            return Err(Error::NotBinary(if bytes.starts_with(b"-----BEGIN PGP SIGNED MESSAGE") {
                "it is a clear-signed message"
            } else if bytes.starts_with(b"-----BEGIN PGP") {
                "it is armored text; the published file is binary (`gpg --dearmor` makes one)"
            } else {
                "its first byte cannot begin an OpenPGP packet"
            }));
        }
        Some(_) if bytes.len() > MAX_SIGNATURE => {
            return Err(Error::Malformed(format!("it has more than {MAX_SIGNATURE} bytes")));
        }
        Some(_) => {}
    }
    let mut signatures = Vec::new();
    let mut result: PacketParserResult<'_> = PacketParserBuilder::from_bytes(bytes)
        .map_err(malformed)?
        .max_recursion_depth(0)
        .max_packet_size(MAX_SIGNATURE as u32)
        .build()
        .map_err(malformed)?;
    while let PacketParserResult::Some(parser) = result {
        let (packet, next) = PacketParser::next(parser).map_err(malformed)?;
        match packet {
            Packet::Signature(signature) => signatures.push(signature),
            // A version that this program does not know cannot come from a pinned signer that it understands.
            Packet::Unknown(unknown) if unknown.tag() == Tag::Signature => {}
            other => return Err(Error::NotDetached(other.tag().to_string())),
        }
        if signatures.len() > MAX_SIGNATURES {
            return Err(Error::Malformed(format!("it holds more than {MAX_SIGNATURES} signatures")));
        }
        result = next;
    }
    if signatures.is_empty() {
        return Err(Error::Malformed("there is no signature in it that this program understands".into()));
    }
    Ok(signatures)
}

/// `None` when `cert` did not make `signature`.
fn check(data: &[u8], signature: &Signature, cert: &Cert, now: SystemTime) -> Result<Option<Signer>, Error> {
    let signer = Fingerprint::of(cert);
    let issuers = signature.get_issuers();
    let claimed: Vec<_> = cert
        .keys()
        .filter(|key| issuers.is_empty() || issuers.iter().any(|issuer| issuer.aliases(key.key().key_handle())))
        .collect();
    if claimed.is_empty() {
        return Ok(None);
    }
    if signature.typ() != SignatureType::Binary {
        if issuers.is_empty() {
            return Ok(None);
        }
        return Err(Error::WrongType { signer, kind: signature.typ().to_string() });
    }
    let outside = |reason: String| Error::OutsideWindow { signer: signer.clone(), reason };
    let untimed = || outside("it does not say when it was made".into());
    let Some(made_by) = claimed.iter().find(|key| signature.verify_message(key.key(), data).is_ok()).cloned() else {
        // Without a claim there is nobody to blame: it is a signature by someone unknown.
        if issuers.is_empty() {
            return Ok(None);
        }
        // The library does not even compare a signature with a key that is younger.
        let signed_at = signature.signature_creation_time().ok_or_else(untimed)?;
        if claimed.iter().all(|key| signed_at < key.key().creation_time()) {
            return Err(outside("it says that it was made before the key was".into()));
        }
        return Err(Error::Bad { signer });
    };
    let key = Fingerprint::of_key(&made_by.key().fingerprint());

    // Step 3: policy at the time of verification.
    let mut policy = StandardPolicy::at(now);
    // A revocation is a warning by the owner, whatever hash it was made with: to overlook one is worse than to believe a
    // forged one.
    policy.hash_revocation_tolerance(u32::MAX);
    let hash = signature.hash_algo();
    let strong = matches!(hash, HashAlgorithm::SHA256 | HashAlgorithm::SHA384 | HashAlgorithm::SHA512);
    if !strong {
        return Err(Error::WeakHash { signer, algorithm: hash.to_string() });
    }
    let unreliable = |reason: String| Error::NotReliable { signer: signer.clone(), reason };
    if !matches!(signature.version(), 4 | 6) {
        return Err(unreliable(format!("it is of version {}, which signs nothing about itself", signature.version())));
    }
    policy.signature(signature, HashAlgoSecurity::CollisionResistance).map_err(|error| unreliable(chain(&error)))?;
    // Revocation comes before validity: a revoked certificate must be called revoked whatever else is wrong with it.
    let subkey = cert.keys().subkeys().find(|subkey| subkey.key().fingerprint() == made_by.key().fingerprint());
    let revoked = |when: SystemTime| {
        let of_subkey = subkey.as_ref().map(|subkey| subkey.revocation_status(&policy, when));
        [Some(cert.revocation_status(&policy, when)), of_subkey].into_iter().flatten().find_map(|status| match status {
            RevocationStatus::Revoked(revocations) => Some(revocation_reason(&revocations)),
            _ => None,
        })
    };
    if let Some(reason) = revoked(now) {
        return Err(Error::Revoked { signer, key, reason });
    }
    let weak = |error: anyhow::Error| Error::WeakKey { signer: signer.clone(), reason: chain(&error) };
    let valid_cert = cert.with_policy(&policy, now).map_err(weak)?;
    let valid_key = made_by.clone().with_policy(&policy, now).map_err(weak)?;
    let expired =
        |error: anyhow::Error| Error::Expired { signer: signer.clone(), key: key.clone(), reason: chain(&error) };
    // A subkey is alive only while its certificate is.
    valid_key.alive().map_err(expired)?;
    if !valid_key.for_signing() {
        return Err(Error::NotForSigning { signer, key });
    }
    // The signer's allowed window: the key was valid when it signed, and that was not in the future.
    let signed_at = signature.signature_creation_time().ok_or_else(untimed)?;
    signature.signature_alive(now, CLOCK_SKEW).map_err(|error| outside(error.to_string()))?;
    made_by
        .clone()
        .with_policy(&policy, signed_at)
        .and_then(|then| then.alive())
        .map_err(|error| outside(chain(&error)))?;
    // Someone may have taken the key out of use and into use again later.
    if let Some(reason) = revoked(signed_at) {
        return Err(outside(format!("its key was revoked at the time: {reason}")));
    }

    let user_id = valid_cert
        .primary_userid()
        .map(|user_id| String::from_utf8_lossy(user_id.userid().value()).into_owned())
        .unwrap_or_default();
    let expires =
        [valid_cert.primary_key().key_expiration_time(), valid_key.key_expiration_time()].into_iter().flatten().min();
    Ok(Some(Signer { primary: signer, key, user_id, signed_at, expires, hash: hash.to_string() }))
}

fn revocation_reason(revocations: &[&Signature]) -> String {
    let stated = revocations.iter().find_map(|revocation| {
        revocation.reason_for_revocation().map(|(code, message)| (code, String::from_utf8_lossy(message).into_owned()))
    });
    match stated {
        Some((code, message)) if message.is_empty() => code.to_string(),
        Some((code, message)) => format!("{code} ({})", message.escape_debug()),
        None => "no reason is stated".into(),
    }
}

fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
