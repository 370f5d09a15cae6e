//! Functions for JSON Web Tokens, as the Open Policy Agent has them.
//!
//! | function | gives |
//! |---|---|
//! | `io.jwt.decode(token)` | `[header, payload, signature in hexadecimal]`, unverified |
//! | `io.jwt.decode_verify(token, constraints)` | `[true, header, payload]`, or `[false, {}, {}]` |
//! | `io.jwt.verify_{rs,ps}{256,384,512}(token, keys)` | whether one of the keys, which are RSA keys, signed it |
//! | `io.jwt.verify_es{256,384}(token, keys)` | the same for keys on P-256 and P-384 |
//! | `io.jwt.verify_hs{256,384,512}(token, secret)` | whether the secret signed it |
//!
//! Keys are PEM certificates, PEM public keys, a JWK or a JWK set. Constraints are `cert` (keys) or `secret`, `alg`, `iss`, `aud`
//! and `time` (nanoseconds; otherwise now).
//!
//! The algorithm is the one that the function or the constraint names, and what kind of key it takes follows from it; a
//! token's header has to agree. `decode_verify` without `alg` takes the header's word among those that fit the constraint's
//! kind of key: a certificate is never a secret. `none` is no algorithm.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use regorus::{Engine, Value};
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::signature::Verifier as _;
use rsa::{BigUint, RsaPublicKey, pkcs1v15, pss};
use serde_json::{Value as Json, json};
use sha2::{Sha256, Sha384, Sha512};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Names, and how many arguments they take.
pub(super) const FUNCTIONS: [(&str, u8); 13] = [
    ("io.jwt.decode", 1),
    ("io.jwt.decode_verify", 2),
    ("io.jwt.verify_rs256", 2),
    ("io.jwt.verify_rs384", 2),
    ("io.jwt.verify_rs512", 2),
    ("io.jwt.verify_ps256", 2),
    ("io.jwt.verify_ps384", 2),
    ("io.jwt.verify_ps512", 2),
    ("io.jwt.verify_es256", 2),
    ("io.jwt.verify_es384", 2),
    ("io.jwt.verify_hs256", 2),
    ("io.jwt.verify_hs384", 2),
    ("io.jwt.verify_hs512", 2),
];
/// Bytes of a token. Those that providers issue have some thousand.
const MAXIMUM_TOKEN: usize = 64 * 1024;
/// Bits of an RSA key. A shorter one can be broken, a longer one takes long.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

pub(super) fn add(engine: &mut Engine) -> Result<()> {
    for (name, arguments) in FUNCTIONS {
        let call = move |arguments: Vec<Value>| {
            let arguments = arguments.iter().map(serde_json::to_value).collect::<Result<Vec<Json>, _>>()?;
            call(name, &arguments).map(Value::from)
        };
        engine.add_extension(name.to_owned(), arguments, Box::new(call))?;
    }
    Ok(())
}

fn call(name: &str, arguments: &[Json]) -> Result<Json> {
    let text = |index: usize| arguments[index].as_str().with_context(|| format!("{name} takes texts"));
    match name {
        "io.jwt.decode" => {
            let token = Token::parse(text(0)?)?;
            let signature: String = token.signature.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(json!([token.header, token.payload, signature]))
        }
        "io.jwt.decode_verify" => decode_verify(text(0)?, &arguments[1]),
        _ => {
            let algorithm = name.strip_prefix("io.jwt.verify_").and_then(|name| Algorithm::named(&name.to_uppercase()));
            let algorithm = algorithm.with_context(|| format!("there is no {name}"))?;
            let keys = Keys::of(algorithm, text(1)?)?;
            Ok(json!(Token::parse(text(0)?)?.is_signed(algorithm, &keys)))
        }
    }
}

/// A token in its compact form.
struct Token<'a> {
    header: Json,
    payload: Json,
    signature: Vec<u8>,
    signed: &'a str,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        if text.len() > MAXIMUM_TOKEN {
            bail!("the token has more than {MAXIMUM_TOKEN} bytes");
        }
        let (signed, signature) = text.rsplit_once('.').context("the token has no parts")?;
        let (header, payload) = signed.split_once('.').context("the token has fewer than three parts")?;
        let json = |part: &str| -> Result<Json> {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).ok().context("a part of the token is not base64url")?;
            let json: Json = serde_json::from_slice(&bytes).ok().context("a part of the token is not JSON")?;
            if json.is_object() { Ok(json) } else { bail!("a part of the token is not an object") }
        };
        let (header, payload) = (json(header)?, json(payload)?);
        // Extensions that a verifier has to understand: none is understood.
        if header.get("crit").is_some() || header.get("enc").is_some() {
            bail!("the token needs extensions that are not supported");
        }
        let signature =
            BASE64_URL_SAFE_NO_PAD.decode(signature).ok().context("the token's signature is not base64url")?;
        Ok(Self { header, payload, signature, signed })
    }

    fn is_signed(&self, algorithm: Algorithm, keys: &Keys) -> bool {
        // What the header says decides nothing, but it must not say something else.
        if self.header["alg"].as_str() != Some(&algorithm.name()) {
            return false;
        }
        let data = self.signed.as_bytes();
        match keys {
            Keys::Secret(secret) => algorithm.authenticates(secret, data, &self.signature),
            Keys::Public(keys) => {
                let named = self.header["kid"].as_str();
                // A key of another name is not meant; one without a name may be.
                let is_meant = |key: &&Key| key.id.is_none() || named.is_none() || key.id.as_deref() == named;
                keys.iter().filter(is_meant).any(|key| algorithm.verifies(&key.key, data, &self.signature))
            }
        }
    }
}

fn decode_verify(token: &str, constraints: &Json) -> Result<Json> {
    let invalid = || json!([false, {}, {}]);
    let constraint = |name: &str| -> Result<Option<&str>> {
        match constraints.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).with_context(|| format!("the constraint `{name}` is not a text")),
        }
    };
    for name in constraints.as_object().context("constraints are an object")?.keys() {
        if !["cert", "secret", "alg", "iss", "aud", "time"].contains(&name.as_str()) {
            bail!("there is no constraint `{name}`");
        }
    }
    let (certificate, secret) = (constraint("cert")?, constraint("secret")?);
    let keys = match (certificate, secret) {
        (Some(keys), None) | (None, Some(keys)) => keys,
        _ => bail!("constraints have either `cert` or `secret`"),
    };
    let Ok(token) = Token::parse(token) else { return Ok(invalid()) };
    let name = constraint("alg")?.or(token.header["alg"].as_str()).unwrap_or_default();
    let Some(algorithm) = Algorithm::named(name) else { return Ok(invalid()) };
    // A certificate is public: whoever has it could sign with it as a secret.
    if (algorithm.family == Family::Hs) != secret.is_some() {
        return Ok(invalid());
    }
    if !token.is_signed(algorithm, &Keys::of(algorithm, keys)?) {
        return Ok(invalid());
    }
    let now = match constraints.get("time") {
        Some(time) => time.as_f64().context("the constraint `time` is not a number")? / 1e9,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64(),
    };
    let payload = &token.payload;
    // A time that is no number cannot be kept to.
    let holds =
        |name: &str, check: &dyn Fn(f64) -> bool| payload.get(name).is_none_or(|time| time.as_f64().is_some_and(check));
    let is_in_time = holds("exp", &|end| now < end) && holds("nbf", &|start| now >= start);
    let is_from = constraint("iss")?.is_none_or(|issuer| payload["iss"].as_str() == Some(issuer));
    let audience = constraint("aud")?;
    let is_for = match (&payload["aud"], audience) {
        // A token for somebody is for nobody who does not say who they are.
        (Json::Null, None) => true,
        (Json::String(one), Some(audience)) => one == audience,
        (Json::Array(all), Some(audience)) => all.iter().any(|one| one.as_str() == Some(audience)),
        _ => false,
    };
    if is_in_time && is_from && is_for { Ok(json!([true, token.header, token.payload])) } else { Ok(invalid()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// RSA, PKCS #1 v1.5.
    Rs,
    /// RSA, PSS.
    Ps,
    /// Elliptic curves.
    Es,
    /// A shared secret.
    Hs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Algorithm {
    family: Family,
    bits: u16,
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        let (family, bits) = name.split_at_checked(2)?;
        let family = match family {
            "RS" => Family::Rs,
            "PS" => Family::Ps,
            "ES" => Family::Es,
            "HS" => Family::Hs,
            _ => return None,
        };
        let bits = match bits {
            "256" => 256,
            "384" => 384,
            "512" if family != Family::Es => 512,
            _ => return None,
        };
        Some(Self { family, bits })
    }

    fn name(self) -> String {
        let family = match self.family {
            Family::Rs => "RS",
            Family::Ps => "PS",
            Family::Es => "ES",
            Family::Hs => "HS",
        };
        format!("{family}{}", self.bits)
    }

    fn authenticates(self, secret: &[u8], data: &[u8], signature: &[u8]) -> bool {
        macro_rules! check {
            ($hash:ty) => {
                Hmac::<$hash>::new_from_slice(secret)
                    .is_ok_and(|mac| mac.chain_update(data).verify_slice(signature).is_ok())
            };
        }
        match (self.family, self.bits) {
            (Family::Hs, 256) => check!(Sha256),
            (Family::Hs, 384) => check!(Sha384),
            (Family::Hs, 512) => check!(Sha512),
            _ => false,
        }
    }

    fn verifies(self, key: &PublicKey, data: &[u8], signature: &[u8]) -> bool {
        macro_rules! check {
            ($scheme:ident, $hash:ty, $key:expr) => {
                $scheme::Signature::try_from(signature).is_ok_and(|signature| {
                    $scheme::VerifyingKey::<$hash>::new($key.clone()).verify(data, &signature).is_ok()
                })
            };
        }
        match (key, self.family, self.bits) {
            (PublicKey::Rsa(key), Family::Rs, 256) => check!(pkcs1v15, Sha256, key),
            (PublicKey::Rsa(key), Family::Rs, 384) => check!(pkcs1v15, Sha384, key),
            (PublicKey::Rsa(key), Family::Rs, 512) => check!(pkcs1v15, Sha512, key),
            (PublicKey::Rsa(key), Family::Ps, 256) => check!(pss, Sha256, key),
            (PublicKey::Rsa(key), Family::Ps, 384) => check!(pss, Sha384, key),
            (PublicKey::Rsa(key), Family::Ps, 512) => check!(pss, Sha512, key),
            (PublicKey::P256(key), Family::Es, 256) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(data, &signature).is_ok()),
            (PublicKey::P384(key), Family::Es, 384) => p384::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(data, &signature).is_ok()),
            _ => false,
        }
    }
}

enum Keys {
    Secret(Vec<u8>),
    Public(Vec<Key>),
}

struct Key {
    /// Its name in a set.
    id: Option<String>,
    key: PublicKey,
}

enum PublicKey {
    Rsa(RsaPublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

impl Keys {
    fn of(algorithm: Algorithm, text: &str) -> Result<Self> {
        if algorithm.family == Family::Hs {
            if text.is_empty() {
                bail!("the secret is empty");
            }
            return Ok(Self::Secret(text.as_bytes().to_vec()));
        }
        let keys = if text.trim_start().starts_with('{') { from_jwk(text)? } else { from_pem(text)? };
        if keys.is_empty() { bail!("there is no key that can be used") } else { Ok(Self::Public(keys)) }
    }
}

fn from_pem(text: &str) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.ok().context("a key is not PEM")?;
        let certificate;
        let info = match block.label.as_str() {
            "CERTIFICATE" => {
                certificate = block.parse_x509().ok().context("a certificate cannot be read")?;
                certificate.public_key().clone()
            }
            "PUBLIC KEY" => {
                SubjectPublicKeyInfo::from_der(&block.contents).ok().context("a public key cannot be read")?.1
            }
            // "EC PRIVATE KEY" and the like have no business here.
            label => bail!("`{label}` is neither a certificate nor a public key"),
        };
        keys.push(Key { id: None, key: public_key(&info)? });
    }
    Ok(keys)
}

fn public_key(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey> {
    let point = &info.subject_public_key.data;
    if let Ok(key) = RsaPublicKey::from_pkcs1_der(point) {
        return rsa_key(key);
    }
    // The length of the point tells the curve.
    if let Ok(key) = p256::ecdsa::VerifyingKey::from_sec1_bytes(point) {
        return Ok(PublicKey::P256(key));
    }
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point);
    key.map(PublicKey::P384).ok().context("a key is neither of RSA nor on P-256 or P-384")
}

fn rsa_key(key: RsaPublicKey) -> Result<PublicKey> {
    use rsa::traits::PublicKeyParts as _;
    let bits = key.n().bits();
    if !RSA_BITS.contains(&bits) {
        bail!("an RSA key has {bits} bits; {} to {} are allowed", RSA_BITS.start(), RSA_BITS.end());
    }
    Ok(PublicKey::Rsa(key))
}

/// A JWK or a set of them. Keys of a set that are of another kind are passed over: providers publish several.
fn from_jwk(text: &str) -> Result<Vec<Key>> {
    let json: Json = serde_json::from_str(text).ok().context("the keys are not JSON")?;
    let Some(set) = json.get("keys") else { return Ok(vec![jwk(&json)?]) };
    let set = set.as_array().context("`keys` is not a list")?;
    Ok(set.iter().filter_map(|key| jwk(key).ok()).collect())
}

fn jwk(json: &Json) -> Result<Key> {
    let field = |name: &str| json[name].as_str().with_context(|| format!("a key has no `{name}`"));
    let bytes = |name: &str| -> Result<Vec<u8>> {
        let text = field(name)?;
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(text).or_else(|_| BASE64_STANDARD.decode(text));
        decoded.ok().with_context(|| format!("`{name}` of a key is not base64url"))
    };
    if json["use"].as_str().is_some_and(|purpose| purpose != "sig") {
        bail!("a key is not for signatures");
    }
    let point = || -> Result<Vec<u8>> { Ok([vec![4], bytes("x")?, bytes("y")?].concat()) };
    let key = match (field("kty")?, json["crv"].as_str()) {
        ("RSA", _) => {
            let [n, e] = [bytes("n")?, bytes("e")?].map(|bytes| BigUint::from_bytes_be(&bytes));
            rsa_key(RsaPublicKey::new(n, e).ok().context("an RSA key is not one")?)?
        }
        ("EC", Some("P-256")) => PublicKey::P256(p256::ecdsa::VerifyingKey::from_sec1_bytes(&point()?)?),
        ("EC", Some("P-384")) => PublicKey::P384(p384::ecdsa::VerifyingKey::from_sec1_bytes(&point()?)?),
        _ => bail!("a key is neither of RSA nor on P-256 or P-384"),
    };
    Ok(Key { id: json["kid"].as_str().map(str::to_owned), key })
}

#[cfg(test)]
mod tests;
