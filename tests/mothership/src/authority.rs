//! The certificate authority: what servers, the control plane itself and pools are known by.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use launcher_wire::id::PoolId;
use launcher_wire::key;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SubjectPublicKeyInfo,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

/// Seconds that a pool's certificate and those of the servers hold.
const YEAR: u64 = 365 * 24 * 60 * 60;
/// Seconds that the authority itself holds.
const AUTHORITY_VALIDITY: u64 = 10 * YEAR;
/// Seconds before now from which a certificate holds: clocks of worker hosts differ.
const BACKDATED: u64 = 5 * 60;
/// Bytes of a certificate request. One with a 4096-bit key has some 1,700.
pub const MAXIMUM_REQUEST: usize = 32 * 1024;
/// Random bytes of the administrator's token.
const TOKEN_BYTES: usize = 32;

/// The authority's certificate.
pub const CA: &str = "ca.pem";
/// The certificate of the API, and `api.key` beside it.
pub const API: &str = "api";
/// The certificate for a broker, and `broker.key` beside it.
pub const BROKER: &str = "broker";
/// The certificate with which the control plane goes to the broker, and `client.key` beside it.
pub const CLIENT: &str = "client";
/// The name in that certificate, for the broker's access rules.
pub const CLIENT_NAME: &str = "mothership";
/// The administrator's bearer token.
pub const ADMIN_TOKEN: &str = "admin.token";

/// Why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Larger than requests are.
    #[error("the certificate request has {0} bytes; at most {MAXIMUM_REQUEST} are allowed")]
    TooLarge(usize),
    /// Not a request.
    #[error(
        "there is no certificate request in PEM in it ({0}). Send the file that `openssl req -new -newkey rsa:4096 -nodes` wrote as -out"
    )]
    Malformed(String),
    /// The one who asks does not have the key.
    #[error("the certificate request is not signed by the key that it is about")]
    Signature,
    /// A key that pools do not have.
    #[error(transparent)]
    Key(#[from] key::Invalid),
    /// It asks for more than a pool gets.
    #[error(
        "the certificate request asks for extensions, which a pool's certificate does not have: {0}. Make it without -addext, -reqexts and -config"
    )]
    Extensions(String),
    /// Signing failed.
    #[error("the certificate cannot be signed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// The authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, in PEM.
    pub pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(secret)")
    }
}

/// Makes what is missing in `directory`: the authority, the certificates of broker, API and of the control plane itself, and
/// the administrator's token. What is there stays as it is.
///
/// # Errors
/// The directory cannot be written, or what is in it is damaged.
pub fn init(directory: &Path, server_names: &[String]) -> io::Result<Authority> {
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    let authority = open_or_make(directory)?;
    let mut names: Vec<String> = server_names.to_vec();
    for name in ["localhost", "127.0.0.1"] {
        if !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    }
    for server in [API, BROKER] {
        authority.leaf(directory, server, &names[0], &names, ExtendedKeyUsagePurpose::ServerAuth)?;
    }
    authority.leaf(directory, CLIENT, CLIENT_NAME, &[], ExtendedKeyUsagePurpose::ClientAuth)?;
    let token = directory.join(ADMIN_TOKEN);
    if !token.exists() {
        let mut random = [0; TOKEN_BYTES];
        io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
        let text = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, random);
        write_private(&token, text.as_bytes())?;
    }
    Ok(authority)
}

fn open_or_make(directory: &Path) -> io::Result<Authority> {
    let (certificate, key) = (directory.join(CA), directory.join("ca.key"));
    // The certificate is written last: without it nothing has been signed yet.
    if !certificate.exists() {
        let pair = KeyPair::generate().map_err(damaged)?;
        let mut params = parameters("Reference control plane", AUTHORITY_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = params.self_signed(&pair).map_err(damaged)?;
        write_private(&key, pair.serialize_pem().as_bytes())?;
        write_public(&certificate, made.pem().as_bytes())?;
    }
    let pem = fs::read_to_string(&certificate)?;
    let pair = KeyPair::from_pem(&fs::read_to_string(&key)?).map_err(damaged)?;
    let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(damaged)?;
    Ok(Authority { issuer, pem })
}

impl Authority {
    /// A certificate for a pool: about the key of the request and nothing else of it.
    ///
    /// # Errors
    /// The request is not one that a pool may make.
    pub fn issue(&self, pool: PoolId, request: &str) -> Result<String, Refused> {
        let public_key = check_request(request)?;
        let mut params = parameters(&pool.to_string(), YEAR);
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&public_key, &self.issuer)?.pem())
    }

    fn leaf(
        &self,
        directory: &Path,
        file: &str,
        common_name: &str,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> io::Result<()> {
        let certificate = directory.join(format!("{file}.pem"));
        if certificate.exists() {
            return Ok(());
        }
        let pair = KeyPair::generate().map_err(damaged)?;
        let mut params = parameters(common_name, YEAR);
        params.subject_alt_names = CertificateParams::new(names.to_vec()).map_err(damaged)?.subject_alt_names;
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let made = params.signed_by(&pair, &self.issuer).map_err(damaged)?;
        write_private(&directory.join(format!("{file}.key")), pair.serialize_pem().as_bytes())?;
        write_public(&certificate, made.pem().as_bytes())
    }
}

fn check_request(request: &str) -> Result<SubjectPublicKeyInfo, Refused> {
    let malformed = |reason: &dyn fmt::Display| Refused::Malformed(reason.to_string());
    if request.len() > MAXIMUM_REQUEST {
        return Err(Refused::TooLarge(request.len()));
    }
    let mut blocks = Pem::iter_from_buffer(request.as_bytes());
    let block = blocks.next().ok_or_else(|| malformed(&"there is no PEM block"))?.map_err(|error| malformed(&error))?;
    // `openssl req` of old versions writes the second label.
    if !["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"].contains(&block.label.as_str()) {
        return Err(malformed(&format_args!("it is a {}", block.label)));
    }
    if blocks.next().is_some() {
        return Err(malformed(&"there is more than one PEM block"));
    }
    let (rest, parsed) = X509CertificationRequest::from_der(&block.contents).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(malformed(&"something follows the request"));
    }
    let spki = parsed.certification_request_info.subject_pki.raw;
    // Before the signature: the reason is clearer, and nobody verifies with a key of a million bits.
    key::public_key_from_der(spki)?;
    parsed.verify_signature().map_err(|_| Refused::Signature)?;
    let mut foreign = Vec::new();
    for attribute in parsed.certification_request_info.iter_attributes() {
        if let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() {
            foreign.extend(requested.extensions.iter().map(|extension| extension_name(&extension.oid.to_id_string())));
        }
    }
    if !foreign.is_empty() {
        return Err(Refused::Extensions(foreign.join(", ")));
    }
    Ok(SubjectPublicKeyInfo::from_der(spki)?)
}

fn extension_name(oid: &str) -> String {
    match oid {
        "2.5.29.17" => "subjectAltName".to_owned(),
        "2.5.29.19" => "basicConstraints".to_owned(),
        "2.5.29.15" => "keyUsage".to_owned(),
        "2.5.29.37" => "extendedKeyUsage".to_owned(),
        "2.5.29.14" => "subjectKeyIdentifier".to_owned(),
        other => other.to_owned(),
    }
}

fn parameters(common_name: &str, validity: u64) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATED));
    params.not_after = epoch + Duration::from_secs(now + validity);
    params
}

fn damaged(error: impl fmt::Display) -> io::Error {
    io::Error::other(format!("certificates cannot be made or read: {error}"))
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, 0o600)
}

fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, 0o644)
}

/// Writes a file that is there as a whole or not at all, whenever the power goes.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(parent) = path.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}
