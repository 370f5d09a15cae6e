//! How this program reaches AWS, or what speaks its protocols: one HTTP client, one configuration, one place that turns
//! what went wrong into words.
//!
//! The HTTP client is shared: S3, ECR, CloudFormation, STS and the image registry go through the same connection pool,
//! the same certificate store and the same proxy.

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpClient, SharedHttpConnector};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::sdk_config::SharedAsyncSleep;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of one request, the first included. The SDK waits between them with exponential backoff and full jitter.
const ATTEMPTS: u32 = 5;

/// The runtime for everything that needs a network.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("cannot start the threads that requests need")
}

/// Where to connect to. Shared by every command that needs a network.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// AWS region [default: AWS_REGION, AWS_DEFAULT_REGION or the profile's].
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Profile of the AWS configuration files [default: AWS_PROFILE].
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Address of an S3-compatible store or an emulator, instead of AWS [default: AWS_ENDPOINT_URL].
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint_url: Option<String>,
    /// Allow plain HTTP to the endpoint and the registry: everything, credentials included, can be read on the way.
    #[arg(long)]
    pub(crate) allow_http: bool,
    /// Proxies of a configuration file. Those of the environment go before.
    #[arg(skip)]
    pub(crate) proxies: Proxies,
}

/// Proxies that do not come from the environment. Their addresses may hold passwords.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    /// For endpoints with plain HTTP.
    pub(crate) http: Option<String>,
    /// For all others.
    pub(crate) https: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub(crate) none: Option<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.http.is_some() || self.https.is_some() { "Proxies(set)" } else { "Proxies(none)" })
    }
}

impl Proxies {
    /// What to connect through. The address of the endpoint decides, since everything goes there or to AWS by HTTPS.
    fn config(&self, endpoint: Option<&str>) -> Result<ProxyConfig, Error> {
        let of_environment = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
        if of_environment.iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty())) {
            return Ok(ProxyConfig::from_env());
        }
        let is_plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let config = match (is_plain, &self.http, &self.https) {
            (true, Some(address), _) => ProxyConfig::http(address.as_str()),
            (false, _, Some(address)) => ProxyConfig::https(address.as_str()),
            _ => return Ok(ProxyConfig::from_env()),
        };
        let config = config.map_err(|_| Error::Proxy)?;
        Ok(match &self.none {
            Some(hosts) => config.no_proxy(hosts),
            None => config,
        })
    }
}

/// A connection could not be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No region was named anywhere.
    #[error("no AWS region is set: give --region, set AWS_REGION, or set `region` in the profile")]
    NoRegion,
    /// The endpoint is plain HTTP and the caller did not ask for that.
    #[error("{0} is plain HTTP: everything, credentials included, could be read on the way; --allow-http accepts that")]
    PlainHttp(String),
    /// The endpoint is no address.
    #[error("{0:?} is not an address of the form https://HOST[:PORT]")]
    Endpoint(String),
    /// A proxy's address is no address. It is not repeated: there may be a password in it.
    #[error("the proxy's address cannot be used: it must have the form http://[USER:PASSWORD@]HOST:PORT")]
    Proxy,
    /// The file of certificates cannot be used.
    #[error("{variable} names {}, which cannot be used: {reason}", .path.display())]
    CaBundle {
        /// The variable that named it.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A configured connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// What every service's client is made from.
    pub(crate) config: SdkConfig,
    /// What is not AWS, an image registry, is reached through this: the same certificates, proxies and time limit.
    pub(crate) connector: SharedHttpConnector,
    /// Region.
    pub(crate) region: String,
    /// Whether plain HTTP is accepted.
    pub(crate) allow_http: bool,
}

impl Connection {
    /// Reads the environment, the AWS configuration files and `options`. Makes no request.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn open(options: &Options) -> Result<Self, Error> {
        Self::open_near(options, None).await
    }

    /// The same for a registry: where no region is named, that of the registry's address serves, and one that is not on AWS needs
    /// none.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn open_for_registry(options: &Options, region: Option<&str>) -> Result<Self, Error> {
        /// The SDK's clients want to be told one. No request is made with it.
        const ANY: &str = "us-east-1";
        Self::open_near(options, Some(region.unwrap_or(ANY))).await
    }

    /// `otherwise` is the region if none is named and no emulator either.
    async fn open_near(options: &Options, otherwise: Option<&str>) -> Result<Self, Error> {
        let endpoint = options.endpoint_url.clone().or_else(|| env::var("AWS_ENDPOINT_URL").ok());
        let proxy = options.proxies.config(endpoint.as_deref())?;
        let tls = tls_context()?;
        let loader = |region: Option<&str>| {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .http_client(http_client(tls.clone(), proxy.clone()))
                .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
                .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build());
            if let Some(region) = region {
                loader = loader.region(Region::new(region.to_owned()));
            }
            if let Some(profile) = &options.profile {
                loader = loader.profile_name(profile);
            }
            if let Some(endpoint) = &options.endpoint_url {
                loader = loader.endpoint_url(endpoint);
            }
            loader
        };
        let mut config = loader(options.region.as_deref()).load().await;
        if let Some(region) = otherwise.filter(|_| config.region().is_none() && config.endpoint_url().is_none()) {
            // Anew: what finds credentials by asking STS has to know the region as well.
            config = loader(Some(region)).load().await;
        }
        if let Some(endpoint) = config.endpoint_url() {
            check_endpoint(endpoint, options.allow_http)?;
        }
        // An empty variable is how a shell spells "none".
        let region = config.region().map(ToString::to_string).filter(|region| !region.is_empty());
        let region = region.ok_or(Error::NoRegion)?;
        let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
        let connector = SharedHttpConnector::new(connector(tls, proxy, Some(settings), config.sleep_impl()));
        Ok(Self { config, connector, region, allow_http: options.allow_http })
    }

    /// A client for S3, or for what stands in its place.
    pub(crate) fn s3(&self) -> aws_sdk_s3::Client {
        // Emulators and most other stores know a bucket by path only; on AWS the SDK's choice is the right one.
        let custom = self.config.endpoint_url().is_some();
        let config = aws_sdk_s3::config::Builder::from(&self.config).force_path_style(custom).build();
        aws_sdk_s3::Client::from_conf(config)
    }
}

/// # Errors
/// `endpoint` is not an address, or is plain HTTP and `allow_http` is not set.
pub(crate) fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), Error> {
    let host = if let Some(host) = endpoint.strip_prefix("https://") {
        host
    } else if let Some(host) = endpoint.strip_prefix("http://") {
        if !allow_http {
            return Err(Error::PlainHttp(endpoint.to_owned()));
        }
        host
    } else {
        return Err(Error::Endpoint(endpoint.to_owned()));
    };
    if host.is_empty() || host.starts_with('/') || host.contains(['@', ' ']) {
        return Err(Error::Endpoint(endpoint.to_owned()));
    }
    Ok(())
}

/// The host's certificates, or those of `AWS_CA_BUNDLE`.
fn tls_context() -> Result<TlsContext, Error> {
    let mut store = TrustStore::empty().with_native_roots(true);
    if let Some(path) = env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        let refuse = |reason: String| Error::CaBundle { variable: "AWS_CA_BUNDLE", path: path.clone(), reason };
        let pem = fs::read(&path).map_err(|error| refuse(error.to_string()))?;
        if !pem.windows(27).any(|window| window == b"-----BEGIN CERTIFICATE-----") {
            return Err(refuse("there is no PEM certificate in it".into()));
        }
        // As the AWS CLI has it: the bundle stands in place of the host's certificates.
        store = TrustStore::empty().with_pem_certificate(pem);
    }
    TlsContext::builder().with_trust_store(store).build().map_err(|error| Error::CaBundle {
        variable: "AWS_CA_BUNDLE",
        path: PathBuf::new(),
        reason: error.to_string(),
    })
}

fn http_client(tls: TlsContext, proxy: ProxyConfig) -> SharedHttpClient {
    // The builder's own `build_https` has no way to name a proxy.
    aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        connector(tls.clone(), proxy.clone(), settings.cloned(), components.and_then(RuntimeComponents::sleep_impl))
    })
}

/// rustls with ring.
fn connector(
    tls: TlsContext,
    proxy: ProxyConfig,
    settings: Option<HttpConnectorSettings>,
    sleep: Option<SharedAsyncSleep>,
) -> Connector {
    let mut connector =
        Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).proxy_config(proxy);
    connector.set_connector_settings(settings);
    connector.set_sleep_impl(sleep);
    connector.build()
}
