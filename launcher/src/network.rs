//! How connections are made: which authorities are trusted, through which proxy they lead, and how long to wait after one
//! that failed. MQTT, API and object store all ask here, so that a proxy or an authority counts for all of them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use launcher_wire::key::{PoolCertificate, PoolKey};
use reqwest::Url;
use rsa::rand_core::{OsRng, RngCore as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How long it may take until a connection is there, with name resolution, proxy and TLS.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that is not used is kept. Load balancers forget them after 60 seconds.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// What [`Network::new`] is made of.
#[derive(Clone, Default)]
pub struct Settings {
    /// The token's certificate authorities in PEM: for broker and API, besides those that the host trusts.
    pub token_authorities: Option<String>,
    /// More certificate authorities in PEM, for every connection: `ADDITIONAL_ROOT_CAS`.
    pub additional_roots: Vec<String>,
    /// `HTTP_PROXY`: for `http` addresses.
    pub http_proxy: Option<String>,
    /// `HTTPS_PROXY`: for `https`, MQTT and `wss`.
    pub https_proxy: Option<String>,
    /// `NO_PROXY`: comma list of host names with all below them, addresses, networks, or `*`.
    pub no_proxy: Option<String>,
}

// Proxies may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("token_authorities", &self.token_authorities.is_some())
            .field("additional_roots", &self.additional_roots.len())
            .field("http_proxy", &self.http_proxy.is_some())
            .field("https_proxy", &self.https_proxy.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// Why no connection can be configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate authority that is none.
    #[error(
        "{what} holds no certificates that can be used: {reason}. It is a PEM file, from a BEGIN CERTIFICATE line on"
    )]
    Authority {
        /// Where it is from.
        what: String,
        /// From the parser.
        reason: String,
    },
    /// Nothing is trusted.
    #[error(
        "this host trusts no certificate authority ({reason}), so no connection can be verified. Install the package ca-certificates, or set ADDITIONAL_ROOT_CAS"
    )]
    NoAuthority {
        /// What was met while looking.
        reason: String,
    },
    /// A proxy that is none. What was given is not repeated: it may hold a password.
    #[error("{variable} is not http://[USER:PASSWORD@]HOST[:PORT] or https://…: {reason}")]
    Proxy {
        /// Which.
        variable: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The pool's key or certificate does not serve for TLS.
    #[error(
        "the pool's certificate and key cannot be used for TLS: {reason}. Use an RSA key of 3072 or 4096 bits and the certificate that belongs to it"
    )]
    Identity {
        /// From the TLS library.
        reason: String,
    },
    /// The HTTP client.
    #[error("cannot make an HTTP client: {reason}")]
    Client {
        /// From the library.
        reason: String,
    },
}

/// How connections are made.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control_plane: Arc<RootCertStore>,
    everywhere: Arc<RootCertStore>,
    proxies: Proxies,
}

impl Network {
    /// Reads the authorities that the host trusts, and everything in `settings`.
    ///
    /// # Errors
    /// An authority or a proxy is none, or nothing would be trusted.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let host = rustls_native_certs::load_native_certs();
        let mut everywhere = RootCertStore::empty();
        // Some hosts carry ancient certificates that no parser takes; the others serve.
        everywhere.add_parsable_certificates(host.certs);
        for (place, pem) in settings.additional_roots.iter().enumerate() {
            add(&mut everywhere, pem, &format!("ADDITIONAL_ROOT_CAS, file {},", place + 1))?;
        }
        let mut control_plane = everywhere.clone();
        if let Some(pem) = &settings.token_authorities {
            add(&mut control_plane, pem, "`ca` in SPACELIFT_TOKEN")?;
        }
        if control_plane.is_empty() {
            let reason = host.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
            return Err(Error::NoAuthority { reason });
        }
        // An object store may well be plain HTTP on this host. Without any authority HTTPS to it fails, which is right.
        let proxies = Proxies {
            http: proxy("HTTP_PROXY", settings.http_proxy.as_deref())?,
            https: proxy("HTTPS_PROXY", settings.https_proxy.as_deref())?,
            exceptions: settings.no_proxy.as_deref().map(exceptions).unwrap_or_default(),
        };
        let shared = Shared { control_plane: Arc::new(control_plane), everywhere: Arc::new(everywhere), proxies };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// TLS to the broker, which knows the pool by its certificate.
    ///
    /// # Errors
    /// Key or certificate do not serve for TLS.
    pub fn broker_tls(&self, certificate: &PoolCertificate, key: &PoolKey) -> Result<Arc<ClientConfig>, Error> {
        let identity = |reason: &dyn fmt::Display| Error::Identity { reason: reason.to_string() };
        let chain = vec![CertificateDer::from(certificate.der.clone())];
        let key = PrivateKeyDer::from_pem_slice(key.pkcs1_pem().as_bytes()).map_err(|error| identity(&error))?;
        let builder = tls().with_root_certificates(Arc::clone(&self.shared.control_plane));
        let config = builder.with_client_auth_cert(chain, key).map_err(|error| identity(&error))?;
        Ok(Arc::new(config))
    }

    /// HTTP to the API.
    ///
    /// # Errors
    /// The library refuses the configuration.
    pub fn api_client(&self) -> Result<reqwest::Client, Error> {
        self.client(&self.shared.control_plane)
    }

    /// HTTP to the object store. The token's authorities vouch for the control plane and not for it.
    ///
    /// # Errors
    /// The library refuses the configuration.
    pub fn object_store_client(&self) -> Result<reqwest::Client, Error> {
        self.client(&self.shared.everywhere)
    }

    fn client(&self, roots: &Arc<RootCertStore>) -> Result<reqwest::Client, Error> {
        let network = self.clone();
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls().with_root_certificates(Arc::clone(roots)).with_no_client_auth())
            .proxy(reqwest::Proxy::custom(move |url| network.shared.proxies.of(url).map(|proxy| proxy.url.clone())))
            // A signature is for one address; whoever sends the launcher elsewhere is not to be followed.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .user_agent(concat!("spacelift-launcher/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Client { reason: chain(&error) })
    }

    /// The proxy to the broker, if one is to be used.
    #[must_use]
    pub fn broker_proxy(&self, host: &str, port: u16) -> Option<rumqttc::Proxy> {
        let Proxy { url } = self.shared.proxies.to(Scheme::Secure, host, port)?;
        let tls = tls().with_root_certificates(Arc::clone(&self.shared.everywhere)).with_no_client_auth();
        let auth = match (url.username(), url.password()) {
            ("", None) => rumqttc::ProxyAuth::None,
            (username, password) => rumqttc::ProxyAuth::Basic {
                username: unescaped(username),
                password: unescaped(password.unwrap_or_default()),
            },
        };
        Some(rumqttc::Proxy {
            ty: match url.scheme() {
                "https" => rumqttc::ProxyType::Https(rumqttc::TlsConfiguration::Rustls(Arc::new(tls))),
                _ => rumqttc::ProxyType::Http,
            },
            auth,
            addr: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default().unwrap_or(80),
        })
    }
}

fn tls() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the algorithms of TLS 1.2 and 1.3")
}

fn add(store: &mut RootCertStore, pem: &str, what: &str) -> Result<(), Error> {
    let invalid = |reason: &dyn fmt::Display| Error::Authority { what: what.to_owned(), reason: reason.to_string() };
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| invalid(&error))?;
        store.add(certificate).map_err(|error| invalid(&error))?;
        count += 1;
    }
    // Left out silently, it would be missed at the first connection only.
    if count == 0 { Err(invalid(&"there is no PEM block of a certificate")) } else { Ok(()) }
}

#[derive(Clone)]
struct Proxy {
    url: Url,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.url.host_str().unwrap_or_default())
    }
}

#[derive(Debug)]
struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Plain,
    Secure,
}

impl Proxies {
    fn of(&self, url: &Url) -> Option<&Proxy> {
        let scheme = if url.scheme() == "http" { Scheme::Plain } else { Scheme::Secure };
        self.to(scheme, url.host_str()?, url.port_or_known_default()?)
    }

    fn to(&self, scheme: Scheme, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = match scheme {
            Scheme::Plain => self.http.as_ref(),
            Scheme::Secure => self.https.as_ref(),
        }?;
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let except = is_loopback(&host)
            || is_link_local(&host)
            || self.exceptions.iter().any(|exception| exception.covers(&host, port));
        (!except).then_some(proxy)
    }
}

/// Whether it is this host. A proxy elsewhere would reach itself instead; Go programs leave it out as well.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether it is on this host's own link, where a cloud's instance metadata and a container's credentials are: a proxy
/// elsewhere would give its own.
fn is_link_local(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0xec2],
        Err(_) => false,
    }
}

fn proxy(variable: &'static str, value: Option<&str>) -> Result<Option<Proxy>, Error> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    let invalid = |reason: &str| Error::Proxy { variable, reason: reason.to_owned() };
    // Written without a scheme by many, and taken so by curl and Go.
    let address = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let url = Url::parse(&address).map_err(|error| invalid(&error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(Some(Proxy { url })),
        "http" | "https" => Err(invalid("it names no host")),
        _ => Err(invalid("no other kind of proxy is supported")),
    }
}

/// Percent-encoding in user information.
pub(crate) fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| first == b'%').and_then(|digits| str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    Network { address: IpAddr, prefix: u8 },
    Host { name: String, port: Option<u16> },
}

fn exceptions(list: &str) -> Vec<Exception> {
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).map(exception).collect()
}

fn exception(entry: &str) -> Exception {
    if entry == "*" {
        return Exception::Everything;
    }
    if let Some((address, prefix)) = entry.split_once('/')
        && let (Ok(address), Ok(prefix)) = (address.parse(), prefix.parse())
    {
        return Exception::Network { address, prefix };
    }
    let bare = entry.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Exception::Network { address, prefix: 128 };
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
        _ => (entry, None),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = name.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
    Exception::Host { name, port }
}

impl Exception {
    fn covers(&self, host: &str, at_port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Network { address, prefix } => {
                host.parse().is_ok_and(|host: IpAddr| within(*address, *prefix, host.to_canonical()))
            }
            Self::Host { name, port } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && port.is_none_or(|port| port == at_port)
            }
        }
    }
}

fn within(network: IpAddr, prefix: u8, host: IpAddr) -> bool {
    let same = |left: &[u8], right: &[u8]| {
        let bits = usize::from(prefix).min(left.len() * 8);
        let mask = (0xff00_u16 >> (bits % 8)) as u8;
        left[..bits / 8] == right[..bits / 8] && (bits % 8 == 0 || left[bits / 8] & mask == right[bits / 8] & mask)
    };
    match (network, host) {
        (IpAddr::V4(network), IpAddr::V4(host)) => same(&network.octets(), &host.octets()),
        (IpAddr::V6(network), IpAddr::V6(host)) => same(&network.octets(), &host.octets()),
        _ => false,
    }
}

/// An error with all that it was caused by, in one line. Libraries say the essential only in the last of them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// How long to wait after the next failure: a random time below a limit that doubles, so that the workers of a pool that lost
/// its control plane at once do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// The limit is `first` for the first wait, and never above `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// After a failure: how long to wait.
    #[must_use]
    pub fn after_failure(&mut self) -> Duration {
        let limit = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        limit.mul_f64(f64::from(OsRng.next_u32()) / f64::from(u32::MAX))
    }

    /// After a success: the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(https: &str, no_proxy: &str) -> Proxies {
        let https = proxy("HTTPS_PROXY", Some(https)).unwrap();
        Proxies { http: None, https, exceptions: exceptions(no_proxy) }
    }

    #[test]
    fn exceptions_are_reached_without_the_proxy() {
        let proxies = made(
            "proxy.test:3128",
            "example.org, .corp.test,*.star.test 10.1.0.0/16,2001:db8::/32,192.0.2.7,p.test:8443",
        );
        let proxied = |host, port| proxies.to(Scheme::Secure, host, port).is_some();
        for host in ["other.org", "notexample.org", "10.2.0.1", "192.0.2.8", "2001:db9::1", "org"] {
            assert!(proxied(host, 443), "{host}");
        }
        for host in [
            "example.org",
            "EXAMPLE.ORG.",
            "a.example.org",
            "corp.test",
            "a.b.corp.test",
            "s.star.test",
            "10.1.255.1",
            "[2001:db8:1::1]",
            "192.0.2.7",
            "localhost",
            "127.0.0.1",
            "[::1]",
        ] {
            assert!(!proxied(host, 443), "{host}");
        }
        assert!(proxied("p.test", 443) && !proxied("p.test", 8443));
        assert!(proxies.to(Scheme::Plain, "other.org", 80).is_none(), "there is no HTTP_PROXY");
        assert!(made("proxy.test", "*").to(Scheme::Secure, "other.org", 443).is_none());
    }

    #[test]
    fn a_proxys_password_is_in_no_message() {
        for wrong in ["socks5://u:hunter2@proxy.test", "http://u:hunter2@", "http://u:hunter2@proxy.test:port"] {
            let error = proxy("HTTPS_PROXY", Some(wrong)).unwrap_err().to_string();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("hunter2"), "{error}");
        }
        let right = made("http://u:hunter%32@proxy.test", "");
        assert!(!format!("{right:?}").contains("hunter"), "{right:?}");
        let settings = Settings { https_proxy: Some("http://u:hunter2@h".to_owned()), ..Settings::default() };
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(unescaped("a%40b%zz%4"), "a@b%zz%4");
    }

    #[test]
    fn waits_grow_up_to_their_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for limit in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(backoff.after_failure() <= Duration::from_secs(limit));
        }
        backoff.reset();
        assert!(backoff.after_failure() <= Duration::from_secs(1));
    }

    #[test]
    fn authorities_that_are_none_are_refused() {
        let settings = |pem: &str| Settings { additional_roots: vec![pem.to_owned()], ..Settings::default() };
        for wrong in ["", "certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = Network::new(&settings(wrong)).unwrap_err();
            assert!(error.to_string().contains("ADDITIONAL_ROOT_CAS"), "{error}");
        }
    }
}
