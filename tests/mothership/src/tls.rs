//! TLS of the API and of the session with the broker.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::authority::{API, CA, CLIENT};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn identity(directory: &Path, name: &str) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read the certificate {}", certificate.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(&key).with_context(|| format!("cannot read the private key {}", key.display()))?;
    Ok((chain, key))
}

/// Trusts the authority in `directory` and nobody else.
pub(crate) fn roots(directory: &Path) -> anyhow::Result<RootCertStore> {
    let path = directory.join(CA);
    let certificate = CertificateDer::from_pem_file(&path)
        .with_context(|| format!("cannot read the certificate {}", path.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    Ok(roots)
}

/// For the API's listener.
pub(crate) fn server(directory: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = identity(directory, API)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For the session with the broker.
pub(crate) fn client(directory: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let (chain, key) = identity(directory, CLIENT)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// For a client of the API.
pub(crate) fn anonymous(directory: &Path) -> anyhow::Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots(directory)?)
        .with_no_client_auth();
    Ok(config)
}
