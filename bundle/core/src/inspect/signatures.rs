//! What signatures and certificates say about themselves.

use std::time::SystemTime;

use sequoia_openpgp as openpgp;

use openpgp::Cert;
use openpgp::cert::amalgamation::{ValidAmalgamation as _, ValidateAmalgamation as _};
use openpgp::policy::StandardPolicy;
use openpgp::types::RevocationStatus;
use serde::Serialize;

use crate::signature::{self, Claim, Fingerprint};
use crate::source::Date;

/// A certificate has one or two user ids; hundreds would only serve to hide the one that matters.
const MAX_USER_IDS: usize = 8;
/// Subkeys of one certificate that are listed: ten years of yearly rotation, and some.
const MAX_KEYS: usize = 32;

/// A certificate, where it was found, and the keys in it that can sign a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The file that it is in: a path in the release, or one that the caller named.
    pub origin: String,
    /// Fingerprint of its primary key, which is what is pinned.
    pub fingerprint: String,
    /// Whom it is said to belong to. Any text: escape it before printing.
    pub user_ids: Vec<String>,
    /// Whether it is revoked as a whole.
    pub revoked: bool,
    /// Its signing keys, newest first.
    pub signing_keys: Vec<SigningKey>,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// A key that signs releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SigningKey {
    /// Its fingerprint.
    pub fingerprint: String,
    /// When it was made.
    pub created: String,
    /// When it or its certificate expires, whichever is first.
    pub expires: Option<String>,
    /// Whether that has passed.
    pub expired: bool,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// A file of detached signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignatureFile {
    /// Its name.
    pub file: String,
    /// The file that it signs.
    pub signs: String,
    /// Whether it is there.
    pub found: bool,
    /// Why it cannot be read, if it cannot.
    pub problem: Option<String>,
    /// The signatures in it.
    pub signatures: Vec<Signature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Fingerprint or key id of the key that it says it was made with.
    pub issuer: Option<String>,
    /// When it says it was made.
    pub made_at: Option<String>,
    /// The hash algorithm.
    pub hash: String,
    /// What each certificate at hand that has this key says about it. Empty when there is none.
    pub checks: Vec<Check>,
}

/// What a certificate says about a signature. It is worth as much as the certificate: nothing, when that came with the
/// release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The certificate's fingerprint.
    pub certificate: String,
    /// The file that it is in.
    pub origin: String,
    /// Whom it is said to belong to. Any text.
    pub user_id: Option<String>,
    /// When the signing key or its certificate expires, whichever is first.
    pub expires: Option<String>,
    /// Whether the signature belongs to this certificate and the signed file, and meets the policy.
    pub result: Outcome,
    /// What is wrong otherwise.
    pub problem: Option<String>,
}

/// See [`Check::result`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It does.
    Matches,
    /// It does not.
    Fails,
    /// The file that was signed is not there.
    NotChecked,
}

/// A certificate at hand and where it is from.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) origin: String,
    pub(crate) cert: Cert,
}

impl Certificate {
    /// Describes `cert`.
    pub(crate) fn of(known: &Known, now: SystemTime) -> Self {
        let Known { origin, cert } = known;
        let policy = StandardPolicy::at(now);
        let revoked = matches!(cert.revocation_status(&policy, now), RevocationStatus::Revoked(_));
        let mut certificate = Self {
            origin: origin.clone(),
            fingerprint: Fingerprint::of(cert).to_string(),
            user_ids: Vec::new(),
            revoked,
            signing_keys: Vec::new(),
            problem: None,
        };
        let user_ids = cert.userids().map(|id| String::from_utf8_lossy(id.userid().value()).into_owned());
        certificate.user_ids = user_ids.take(MAX_USER_IDS).collect();
        match cert.with_policy(&policy, now) {
            Ok(valid) => {
                if let Ok(primary) = valid.primary_userid() {
                    let primary = String::from_utf8_lossy(primary.userid().value()).into_owned();
                    certificate.user_ids.retain(|id| *id != primary);
                    certificate.user_ids.insert(0, primary);
                }
            }
            Err(error) => {
                certificate.problem = Some(format!("it does not meet the policy: {error:#}"));
                return certificate;
            }
        }
        let primary_expires =
            cert.primary_key().with_policy(&policy, now).ok().and_then(|key| key.key_expiration_time());
        let mut keys: Vec<_> = cert.keys().with_policy(&policy, now).for_signing().collect();
        keys.sort_by_key(|key| std::cmp::Reverse(key.key().creation_time()));
        certificate.signing_keys = keys
            .iter()
            .take(MAX_KEYS)
            .map(|key| {
                let expires = [primary_expires, key.key_expiration_time()].into_iter().flatten().min();
                SigningKey {
                    fingerprint: Fingerprint::of_key(&key.key().fingerprint()).to_string(),
                    created: date(key.key().creation_time()),
                    expires: expires.map(date),
                    expired: expires.is_some_and(|expires| expires <= now),
                    revoked: revoked || matches!(key.revocation_status(), RevocationStatus::Revoked(_)),
                }
            })
            .collect();
        certificate
    }

    /// The key with this fingerprint or key id.
    fn key(&self, issuer: &str) -> Option<&SigningKey> {
        self.signing_keys.iter().find(|key| key.fingerprint.ends_with(issuer))
    }
}

fn date(time: SystemTime) -> String {
    Date::of(time).to_string()
}

/// Looks at the signatures in `signature`: `None` if the file is missing, the error if it cannot be read. `data` is what
/// they sign, if that is there.
pub(super) fn look(
    (file, signs): (String, String),
    signature: Result<Option<Vec<u8>>, String>,
    data: Option<&[u8]>,
    certificates: &[Known],
    now: SystemTime,
) -> SignatureFile {
    let mut looked_at = SignatureFile { file, signs, found: true, problem: None, signatures: Vec::new() };
    match signature {
        Ok(Some(bytes)) => match signature::claims(&bytes) {
            Ok(claims) => {
                looked_at.signatures = claims.iter().map(|claim| describe(claim, data, certificates, now)).collect();
            }
            Err(error) => looked_at.problem = Some(error.to_string()),
        },
        Ok(None) => looked_at.found = false,
        Err(problem) => looked_at.problem = Some(problem),
    }
    looked_at
}

fn describe(claim: &Claim, data: Option<&[u8]>, certificates: &[Known], now: SystemTime) -> Signature {
    let checks = certificates.iter().filter_map(|known| check(claim, data, known, now)).collect();
    Signature { issuer: claim.issuer.clone(), made_at: claim.made_at.map(date), hash: claim.hash.clone(), checks }
}

/// `None` when the certificate does not have the key.
fn check(claim: &Claim, data: Option<&[u8]>, known: &Known, now: SystemTime) -> Option<Check> {
    // Without the signed file, checking against nothing still says whose signature it claims to be.
    let (result, problem) = match (claim.check(data.unwrap_or_default(), &known.cert, now), data) {
        (Ok(None), _) => return None,
        (_, None) => (Outcome::NotChecked, None),
        (Ok(Some(_)), _) => (Outcome::Matches, None),
        (Err(error), _) => (Outcome::Fails, Some(error.to_string())),
    };
    let certificate = Certificate::of(known, now);
    let key = claim.issuer.as_deref().and_then(|issuer| certificate.key(issuer));
    Some(Check {
        expires: key.and_then(|key| key.expires.clone()),
        user_id: certificate.user_ids.first().cloned(),
        certificate: certificate.fingerprint,
        origin: certificate.origin,
        result,
        problem,
    })
}
