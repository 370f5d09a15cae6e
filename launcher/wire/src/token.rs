//! The token of a pool, the variable `SPACELIFT_TOKEN`: base64 of a JSON object.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::id::PoolId;
use crate::key::PoolCertificate;
use crate::{key, mqtt};

/// The version that this side makes and the only one that it understands.
pub const VERSION: u32 = 1;
/// Bytes of a token's base64. One with a 4096-bit certificate and ten authorities has some 25,000.
pub const MAXIMUM_SIZE: usize = 128 * 1024;

/// What the token says, as it is in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// [`VERSION`].
    pub version: u32,
    /// The broker: `mqtts://HOST[:PORT]` (8883 if there is no port), or `wss://HOST[:PORT]/PATH`.
    pub broker: String,
    /// What all topics begin with.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// The API's base: `https://HOST[:PORT][/PATH]`.
    pub api: String,
    /// The pool.
    pub pool: PoolId,
    /// The pool's certificate, in PEM.
    pub certificate: String,
    /// The certificate authorities of broker and API, in PEM. None: those that the host trusts.
    #[serde(default)]
    pub ca: Option<String>,
}

fn default_namespace() -> String {
    mqtt::DEFAULT_NAMESPACE.to_owned()
}

/// Why a token is of no use. No message repeats what the token holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Longer than tokens are.
    #[error("it has {size} bytes; at most {MAXIMUM_SIZE} are allowed")]
    TooLarge {
        /// Bytes that it has.
        size: usize,
    },
    /// Not base64.
    #[error("it is not base64. Copy it as a whole, from the page where the pool was created")]
    Base64,
    /// Of another version.
    #[error(
        "it has version {version}; this launcher understands version {VERSION}. Use the launcher of the release that the control plane runs"
    )]
    Version {
        /// Its version.
        version: u64,
    },
    /// Not what the version describes.
    #[error("it is not a pool's token: {reason}. Copy it as a whole, from the page where the pool was created")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Its certificate.
    #[error(transparent)]
    Certificate(#[from] key::Invalid),
}

impl Token {
    /// From the variable. Line breaks in the base64 are passed over.
    ///
    /// # Errors
    /// It is too large, not base64, of another version or malformed, or has an address or a certificate that is none.
    pub fn from_variable(value: &str) -> Result<(Self, PoolCertificate), Invalid> {
        /// Read first: a token of another version may look different in everything else.
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        if value.len() > MAXIMUM_SIZE {
            return Err(Invalid::TooLarge { size: value.len() });
        }
        let compact: String = value.chars().filter(|character| !character.is_ascii_whitespace()).collect();
        let json = BASE64_STANDARD.decode(compact).map_err(|_| Invalid::Base64)?;
        let Version { version } = serde_json::from_slice(&json).map_err(|error| malformed(position(&error)))?;
        if version != u64::from(VERSION) {
            return Err(Invalid::Version { version });
        }
        let token: Self = serde_json::from_slice(&json).map_err(|error| malformed(position(&error)))?;
        token.check_addresses()?;
        let certificate = PoolCertificate::from_pem(&token.certificate)?;
        Ok((token, certificate))
    }

    /// As the variable has it.
    #[must_use]
    pub fn to_variable(&self) -> String {
        BASE64_STANDARD.encode(serde_json::to_vec(self).expect("a token has a JSON form"))
    }

    fn check_addresses(&self) -> Result<(), Invalid> {
        // Plain MQTT and HTTP would show every message to the network.
        if !["mqtts://", "wss://"].iter().any(|scheme| has_host(&self.broker, scheme)) {
            return Err(malformed("`broker` is not mqtts://HOST[:PORT] or wss://HOST[:PORT]/PATH"));
        }
        if !has_host(&self.api, "https://") {
            return Err(malformed("`api` is not https://HOST[:PORT][/PATH]"));
        }
        // Wildcards and separators would make other topics of it.
        if self.namespace.is_empty() || self.namespace.contains(['+', '#', '/', '\0', '$']) {
            return Err(malformed("`namespace` is empty or has one of the characters + # / $"));
        }
        Ok(())
    }
}

fn has_host(address: &str, scheme: &str) -> bool {
    let rest = address.strip_prefix(scheme).unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    !authority.is_empty()
        && !authority.starts_with(':')
        && !address.contains(char::is_whitespace)
        && !address.contains('@')
}

fn malformed(reason: impl fmt::Display) -> Invalid {
    Invalid::Malformed { reason: reason.to_string() }
}

/// What serde_json says, which names fields and positions and may repeat a value where it has the wrong type: tokens hold no
/// secret, yet nothing of them belongs into a log.
fn position(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => {
            let text = error.to_string();
            // "missing field `x`" names what is missing; everything else is reduced to where it is.
            if text.starts_with("missing field") {
                text
            } else {
                format!("wrong type or value at column {}", error.column())
            }
        }
        _ => format!("its JSON breaks off or is damaged at column {}", error.column()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(change: impl FnOnce(&mut serde_json::Value)) -> Result<Token, Invalid> {
        let mut value = serde_json::json!({
            "version": 1, "broker": "mqtts://localhost:8883", "api": "https://localhost/x",
            "pool": PoolId::new(), "certificate": "", "newer": {},
        });
        change(&mut value);
        Token::from_variable(&BASE64_STANDARD.encode(value.to_string())).map(|(token, _)| token)
    }

    #[test]
    fn what_is_wrong_is_said_without_repeating_it() {
        assert!(matches!(token(|_| ()), Err(Invalid::Certificate(_))), "everything before the certificate is right");
        for (key, value) in [
            ("broker", "mqtt://localhost"),
            ("broker", "mqtts://"),
            ("broker", "mqtts://a@b"),
            ("api", "http://localhost"),
            ("namespace", "a/b"),
            ("namespace", "#"),
            ("pool", "p"),
            ("ca", ""),
        ] {
            let result = token(|token| token[key] = if key == "ca" { 1.into() } else { value.into() });
            assert!(matches!(result, Err(Invalid::Malformed { .. })), "{key} {value}: {result:?}");
        }
        let secret = token(|token| token["namespace"] = serde_json::json!({ "hunter2": "hunter2" })).unwrap_err();
        assert!(!secret.to_string().contains("hunter2"), "{secret}");
        assert_eq!(token(|token| token["version"] = 2.into()), Err(Invalid::Version { version: 2 }));
        let missing = token(|token| drop(token.as_object_mut().unwrap().remove("api"))).unwrap_err();
        assert!(missing.to_string().contains("missing field `api`"), "{missing}");
        assert!(matches!(Token::from_variable("*"), Err(Invalid::Base64)));
        assert!(matches!(Token::from_variable("e30="), Err(Invalid::Malformed { .. })));
        assert!(matches!(Token::from_variable(&"e".repeat(MAXIMUM_SIZE + 1)), Err(Invalid::TooLarge { .. })));
    }
}
