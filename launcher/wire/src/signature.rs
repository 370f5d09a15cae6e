//! Signatures of API requests: HTTP Message Signatures (RFC 9421) in one fixed form.
//!
//! Signed are the method, the path, the digest of the body (RFC 9530) and the worker's identifier. `keyid` is the pool,
//! `created` the time in seconds, `nonce` a random value, `alg` always `rsa-pss-sha512`. A verifier accepts only this form,
//! only near its own time, and each nonce once.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rsa::RsaPublicKey;
use rsa::pss::{BlindedSigningKey, Signature, VerifyingKey};
use rsa::sha2::Sha512;
use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _, Verifier as _};
use sha2::{Digest as _, Sha256};

use crate::id::{PoolId, WorkerId};
use crate::key::PoolKey;

/// Seconds by which the clocks of both sides may differ.
pub const MAXIMUM_SKEW: u64 = 300;
/// Header of the body's digest.
pub const CONTENT_DIGEST: &str = "content-digest";
/// Header of the worker's identifier.
pub const WORKER: &str = "spacelift-worker";
/// Header of what is signed and how.
pub const SIGNATURE_INPUT: &str = "signature-input";
/// Header of the signature.
pub const SIGNATURE: &str = "signature";

/// A request as far as it is signed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// In capital letters.
    pub method: &'a str,
    /// The path of the address as it is sent, from the first `/` on. There is no query.
    pub path: &'a str,
    /// The body. Empty if there is none.
    pub body: &'a [u8],
}

/// The headers that make a request a signed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// [`CONTENT_DIGEST`].
    pub content_digest: String,
    /// [`WORKER`].
    pub worker: String,
    /// [`SIGNATURE_INPUT`].
    pub signature_input: String,
    /// [`SIGNATURE`].
    pub signature: String,
}

/// Who signed, when, and the nonce, which the verifier keeps for twice [`MAXIMUM_SKEW`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The pool by whose key.
    pub pool: PoolId,
    /// The worker that it says it is.
    pub worker: WorkerId,
    /// When, in seconds since 1970.
    pub created: u64,
    /// What makes it different from every other request.
    pub nonce: String,
}

/// Why a request is not one of a pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A header that is not in the one form.
    #[error("the header {0} is not as it should be")]
    Header(&'static str),
    /// The body is another one.
    #[error("the body is not the one that was signed")]
    Digest,
    /// Made too long ago, or ahead of this side's time.
    #[error(
        "the request was signed {0} seconds away from this side's time; at most {MAXIMUM_SKEW} are allowed. Set the worker host's clock"
    )]
    Skew(u64),
    /// The signature is not by the pool's key over this request.
    #[error("the signature is not by the pool's key")]
    Signature,
}

/// Signs a request. `created` is in seconds since 1970.
///
/// # Panics
/// The operating system has no randomness.
#[must_use]
pub fn sign(key: &PoolKey, pool: PoolId, worker: WorkerId, created: u64, request: Request<'_>) -> Headers {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the operating system has randomness");
    let nonce = BASE64_URL_SAFE_NO_PAD.encode(nonce);
    let content_digest = digest(request.body);
    let worker = worker.to_string();
    let parameters = parameters(created, pool, &nonce);
    let base = base(request, &content_digest, &worker, &parameters);
    let signature = BlindedSigningKey::<Sha512>::new(key.rsa().clone())
        .sign_with_rng(&mut rsa::rand_core::OsRng, base.as_bytes())
        .to_vec();
    Headers {
        content_digest,
        worker,
        signature_input: format!("sig1={parameters}"),
        signature: format!("sig1=:{}:", BASE64_STANDARD.encode(signature)),
    }
}

/// Reads who says that they signed, before the key of that pool is looked up. Nothing is verified yet.
///
/// # Errors
/// A header is not in the one form.
pub fn claimed(headers: &Headers) -> Result<Signed, Invalid> {
    let malformed = || Invalid::Header(SIGNATURE_INPUT);
    let worker = headers.worker.parse().map_err(|_| Invalid::Header(WORKER))?;
    let (_components, rest) = headers.signature_input.split_once(';').ok_or_else(malformed)?;
    let mut parts = rest.split(';');
    let mut part = |name: &str| {
        let (key, value) = parts.next().and_then(|part| part.split_once('=')).ok_or_else(malformed)?;
        if key == name { Ok(value.trim_matches('"')) } else { Err(malformed()) }
    };
    let created: u64 = part("created")?.parse().map_err(|_| malformed())?;
    let nonce = part("nonce")?.to_owned();
    let pool: PoolId = part("keyid")?.parse().map_err(|_| malformed())?;
    // One form, so that what was read is all there is.
    if headers.signature_input != format!("sig1={}", parameters(created, pool, &nonce)) {
        return Err(malformed());
    }
    let valid_nonce = (16..=64).contains(&nonce.len())
        && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if valid_nonce { Ok(Signed { pool, worker, created, nonce }) } else { Err(malformed()) }
}

/// Verifies a request with the key of the pool that [`claimed`] named. `now` is in seconds since 1970.
///
/// Whether the nonce is new remains for the caller to see.
///
/// # Errors
/// The request is not one that the pool's key signed, or not of this time.
pub fn verify(key: &RsaPublicKey, headers: &Headers, now: u64, request: Request<'_>) -> Result<Signed, Invalid> {
    let signed = claimed(headers)?;
    let skew = signed.created.abs_diff(now);
    if skew > MAXIMUM_SKEW {
        return Err(Invalid::Skew(skew));
    }
    if headers.content_digest != digest(request.body) {
        return Err(Invalid::Digest);
    }
    let signature = headers
        .signature
        .strip_prefix("sig1=:")
        .and_then(|rest| rest.strip_suffix(':'))
        .and_then(|text| BASE64_STANDARD.decode(text).ok())
        .and_then(|bytes| Signature::try_from(bytes.as_slice()).ok())
        .ok_or(Invalid::Header(SIGNATURE))?;
    let parameters = parameters(signed.created, signed.pool, &signed.nonce);
    let base = base(request, &headers.content_digest, &headers.worker, &parameters);
    VerifyingKey::<Sha512>::new(key.clone()).verify(base.as_bytes(), &signature).map_err(|_| Invalid::Signature)?;
    Ok(signed)
}

fn digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(Sha256::digest(body)))
}

fn parameters(created: u64, pool: PoolId, nonce: &str) -> String {
    format!(
        "(\"@method\" \"@path\" \"{CONTENT_DIGEST}\" \"{WORKER}\");created={created};nonce=\"{nonce}\";keyid=\"{pool}\";alg=\"rsa-pss-sha512\""
    )
}

/// RFC 9421, section 2.5: the signature base.
fn base(request: Request<'_>, content_digest: &str, worker: &str, parameters: &str) -> String {
    let Request { method, path, .. } = request;
    format!(
        "\"@method\": {method}\n\"@path\": {path}\n\"{CONTENT_DIGEST}\": {content_digest}\n\"{WORKER}\": {worker}\n\"@signature-params\": {parameters}"
    )
}

#[cfg(test)]
mod tests {
    use rsa::RsaPrivateKey;
    use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};

    use super::*;

    const NOW: u64 = 1_700_000_000;

    /// Made once: a key of this length takes a while.
    fn key() -> PoolKey {
        static KEY: std::sync::OnceLock<PoolKey> = std::sync::OnceLock::new();
        KEY.get_or_init(|| {
            let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, crate::key::MINIMUM_BITS).unwrap();
            PoolKey::from_pem(&key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap()
        })
        .clone()
    }

    #[test]
    fn a_request_is_signed_as_a_whole() {
        let (pool, worker) = (PoolId::new(), WorkerId::new());
        let request = Request { method: "POST", path: "/v1/runs", body: b"{}" };
        let headers = sign(&key(), pool, worker, NOW, request);
        let check = |headers: &Headers, now, request| verify(&key().public(), headers, now, request);
        let signed = check(&headers, NOW + MAXIMUM_SKEW, request).unwrap();
        assert_eq!((signed.pool, signed.worker, signed.created), (pool, worker, NOW));

        assert_eq!(check(&headers, NOW, Request { method: "PUT", ..request }), Err(Invalid::Signature));
        assert_eq!(check(&headers, NOW, Request { path: "/v1/run", ..request }), Err(Invalid::Signature));
        assert_eq!(check(&headers, NOW, Request { body: b"[]", ..request }), Err(Invalid::Digest));
        assert_eq!(check(&headers, NOW + MAXIMUM_SKEW + 1, request), Err(Invalid::Skew(MAXIMUM_SKEW + 1)));
        assert_eq!(check(&headers, NOW - MAXIMUM_SKEW - 1, request), Err(Invalid::Skew(MAXIMUM_SKEW + 1)));
        let other = Headers { worker: WorkerId::new().to_string(), ..headers.clone() };
        assert_eq!(check(&other, NOW, request), Err(Invalid::Signature));
        for (from, to) in
            [("rsa-pss-sha512", "hmac-sha256"), (" \"content-digest\"", ""), ("nonce=", "nonce2="), ("sig1", "sig2")]
        {
            let changed = Headers { signature_input: headers.signature_input.replace(from, to), ..headers.clone() };
            assert_eq!(check(&changed, NOW, request), Err(Invalid::Header(SIGNATURE_INPUT)), "{to}");
        }
        let later = headers.signature_input.replace("1700000000", "1700000001");
        assert_eq!(check(&Headers { signature_input: later, ..headers }, NOW, request), Err(Invalid::Signature));
    }
}
