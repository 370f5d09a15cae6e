//! The pool's private key and its certificate.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rsa::pkcs1::{DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _, EncodeRsaPrivateKey as _, LineEnding};
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{RsaPrivateKey, RsaPublicKey};
use x509_parser::oid_registry::OID_PKCS1_RSAENCRYPTION;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bits of the shortest key that a pool may have.
pub const MINIMUM_BITS: usize = 3072;
/// Bits of the longest: more is not what the TLS and RSA libraries on both sides take.
pub const MAXIMUM_BITS: usize = 4096;

/// Why a key or a certificate is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The variable does not hold base64.
    #[error("it is not base64. Make it of the whole PEM file: `base64 -w 0 spacelift.key`")]
    Base64,
    /// Not a private key in PEM.
    #[error(
        "there is no unencrypted RSA private key in PEM in it ({reason}). It is the file that `openssl req -new -newkey rsa:4096 -nodes` wrote as -keyout"
    )]
    Key {
        /// From the parser. It does not repeat what it read.
        reason: String,
    },
    /// Too short or too long.
    #[error(
        "the RSA key has {bits} bits; a pool's key has {MINIMUM_BITS} to {MAXIMUM_BITS}. Make another one, as with `openssl req -new -newkey rsa:4096 -nodes`"
    )]
    Length {
        /// Its length.
        bits: usize,
    },
    /// Not a certificate in PEM.
    #[error(
        "the pool's certificate cannot be read: {reason}. Copy the token as a whole, from the page where the pool was created"
    )]
    Certificate {
        /// From the parser.
        reason: String,
    },
}

/// The private key of a pool. Whoever has it acts as the pool and reads what its runs stored.
#[derive(Clone)]
pub struct PoolKey {
    key: RsaPrivateKey,
}

impl fmt::Debug for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolKey(secret)")
    }
}

impl PoolKey {
    /// From the variable `SPACELIFT_POOL_PRIVATE_KEY`: base64 of a PEM file, PKCS#8 or PKCS#1. Line breaks in the base64 are
    /// passed over, as `base64` without `-w 0` makes them.
    ///
    /// # Errors
    /// It is not such a key, or has a length that a pool's key may not have.
    pub fn from_variable(value: &str) -> Result<Self, Invalid> {
        let compact: String = value.chars().filter(|character| !character.is_ascii_whitespace()).collect();
        let pem = BASE64_STANDARD.decode(compact).map_err(|_| Invalid::Base64)?;
        let pem = String::from_utf8(pem).map_err(|_| Invalid::Key { reason: "it is not text".to_owned() })?;
        Self::from_pem(&pem)
    }

    /// From a PEM file, PKCS#8 or PKCS#1.
    ///
    /// # Errors
    /// As for [`Self::from_variable`].
    pub fn from_pem(pem: &str) -> Result<Self, Invalid> {
        let key = if pem.contains("-----BEGIN RSA PRIVATE KEY-----") {
            RsaPrivateKey::from_pkcs1_pem(pem).map_err(|error| error.to_string())
        } else if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
            Err("it is protected by a passphrase".to_owned())
        } else {
            RsaPrivateKey::from_pkcs8_pem(pem).map_err(|error| error.to_string())
        };
        let key = key.map_err(|reason| Invalid::Key { reason })?;
        check_length(key.size() * 8)?;
        Ok(Self { key })
    }

    /// The key as the `rsa` crate has it.
    #[must_use]
    pub fn rsa(&self) -> &RsaPrivateKey {
        &self.key
    }

    /// As PKCS#1 in PEM, the form that `age` and rustls both read.
    #[must_use]
    pub fn pkcs1_pem(&self) -> rsa::pkcs8::der::zeroize::Zeroizing<String> {
        self.key.to_pkcs1_pem(LineEnding::LF).expect("an RSA key has a PKCS#1 form")
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> RsaPublicKey {
        self.key.to_public_key()
    }
}

fn check_length(bits: usize) -> Result<(), Invalid> {
    if (MINIMUM_BITS..=MAXIMUM_BITS).contains(&bits) { Ok(()) } else { Err(Invalid::Length { bits }) }
}

/// What is needed of a pool's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolCertificate {
    /// As it came, in PEM.
    pub pem: String,
    /// The certificate itself, without the PEM around it.
    pub der: Vec<u8>,
    /// The key that it is about.
    pub public_key: RsaPublicKey,
    /// Since when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

impl PoolCertificate {
    /// From PEM. Its signature is for TLS to check; what is needed here is whose it is.
    ///
    /// # Errors
    /// It is not one certificate about an RSA key of a length that a pool's key may have.
    pub fn from_pem(pem: &str) -> Result<Self, Invalid> {
        let invalid = |reason: &dyn fmt::Display| Invalid::Certificate { reason: reason.to_string() };
        let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
        let block = match blocks.next() {
            Some(block) => block.map_err(|error| invalid(&error))?,
            None => return Err(invalid(&"there is no PEM block")),
        };
        if block.label != "CERTIFICATE" {
            return Err(invalid(&format_args!("it is a {}", block.label)));
        }
        if blocks.next().is_some() {
            return Err(invalid(&"there is more than one PEM block"));
        }
        let certificate = block.parse_x509().map_err(|error| invalid(&error))?;
        let public_key = rsa_key(certificate.public_key())?;
        Ok(Self {
            pem: pem.to_owned(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            public_key,
            der: block.contents.clone(),
        })
    }

    /// Whether it is about this key.
    #[must_use]
    pub fn belongs_to(&self, key: &PoolKey) -> bool {
        self.public_key == key.public()
    }
}

/// The RSA key in a `SubjectPublicKeyInfo` in DER, as certificates and certificate requests have it.
///
/// # Errors
/// It is another kind of key, or of a length that a pool's key may not have.
pub fn public_key_from_der(der: &[u8]) -> Result<RsaPublicKey, Invalid> {
    let invalid = |reason: String| Invalid::Certificate { reason };
    let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|error| invalid(error.to_string()))?;
    if !rest.is_empty() {
        return Err(invalid("something follows the public key".to_owned()));
    }
    rsa_key(&info)
}

fn rsa_key(info: &SubjectPublicKeyInfo<'_>) -> Result<RsaPublicKey, Invalid> {
    let invalid = |reason: String| Invalid::Certificate { reason };
    if info.algorithm.algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(invalid("its key is not an RSA key".to_owned()));
    }
    let key =
        RsaPublicKey::from_pkcs1_der(&info.subject_public_key.data).map_err(|error| invalid(error.to_string()))?;
    check_length(key.size() * 8)?;
    Ok(key)
}
