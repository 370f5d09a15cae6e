//! Authorities that are trusted besides the host's.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::AUTHORITIES;
use super::reader::Reader;

/// Bytes of the variable, or of the file that it names. All that a host trusts by itself has 250,000.
const MAXIMUM_SIZE: u64 = 1024 * 1024;

const FORM: &str = "Its documented form is base64 of {\"caCertificates\": [\"base64 of PEM\", …]}";
const NO_CERTIFICATE: &str = "there is no certificate in PEM in it. One begins with `-----BEGIN CERTIFICATE-----`; ask \
                              whoever runs the proxy or the control plane for it";

/// The documented secret.
#[derive(Deserialize)]
struct Secret {
    #[serde(rename = "caCertificates")]
    certificates: Vec<String>,
}

/// Certificates in PEM, one by one.
pub(super) fn read(reader: &mut Reader) -> Vec<String> {
    let Some(value) = reader.text(AUTHORITIES) else { return Vec::new() };
    certificates(&value).map_err(|reason| reader.problem(AUTHORITIES, reason)).unwrap_or_default()
}

fn certificates(value: &str) -> Result<Vec<String>, String> {
    let mut blocks = Vec::new();
    for text in texts(value)? {
        let before = blocks.len();
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate = certificate.map_err(|_| "it has a certificate that is not PEM".to_owned())?;
            RootCertStore::empty().add(certificate.clone()).map_err(|error| damaged(blocks.len() + 1, &error))?;
            blocks.push(pem(&certificate));
        }
        if blocks.len() == before {
            return Err(NO_CERTIFICATE.to_owned());
        }
    }
    Ok(blocks)
}

fn damaged(number: usize, error: &dyn fmt::Display) -> String {
    format!("its certificate number {number} cannot be an authority's: {error}")
}

/// The PEM texts in it, whichever way they are wrapped.
fn texts(value: &str) -> Result<Vec<String>, String> {
    if value.starts_with('/') && Path::new(value).exists() {
        let mut text = String::new();
        let file = File::open(value).and_then(|file| file.take(MAXIMUM_SIZE).read_to_string(&mut text));
        file.map_err(|error| format!("cannot read `{value}`: {error}"))?;
        return unwrapped(text.trim()).map_err(|reason| format!("the file `{value}` is named, but {reason}"));
    }
    unwrapped(value)
}

fn unwrapped(text: &str) -> Result<Vec<String>, String> {
    if text.contains("-----BEGIN") && !text.starts_with('{') {
        return Ok(vec![text.to_owned()]);
    }
    if text.starts_with('{') {
        let secret: Secret = serde_json::from_str(text)
            .map_err(|_| "its JSON is not of the form {\"caCertificates\": [\"…\"]}".to_owned())?;
        return secret.certificates.iter().map(|encoded| decoded(encoded)).collect();
    }
    // Twice at most: what it holds is PEM or JSON.
    let inner = decoded(text)?;
    if inner.starts_with('{') || inner.contains("-----BEGIN") {
        unwrapped(inner.trim())
    } else {
        Err(NO_CERTIFICATE.to_owned())
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = BASE64_STANDARD
        .decode(compact)
        .map_err(|_| format!("it is neither PEM nor base64, nor the absolute path of a file that is there. {FORM}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("its base64 holds no text. {FORM}"))?;
    Ok(text.trim().to_owned())
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let encoded = BASE64_STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in encoded.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
