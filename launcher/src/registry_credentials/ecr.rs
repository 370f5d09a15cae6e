//! Tokens of Amazon ECR, which the AWS credentials of this host are exchanged for.
//!
//! A token serves for every registry that the host's role may read, for twelve hours; one is fetched for each pull.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Credentials;
use crate::network::chain;

/// How long it may take until there is a token, with looking for credentials and all attempts.
const LIMIT: Duration = Duration::from_secs(60);
/// Attempts of one request, the first included. The SDK waits between them.
const ATTEMPTS: u32 = 4;

/// Where a registry of ECR is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Registry<'a> {
    region: &'a str,
    /// Whether it is reached by endpoints with validated cryptography.
    fips: bool,
    /// Whether it is reached by endpoints that have IPv6 too.
    is_dual: bool,
}

impl<'a> Registry<'a> {
    /// The registry at `host`, if that is one of ECR: `ACCOUNT.dkr.ecr[-fips].REGION.amazonaws.com[.cn]`, or, with IPv6,
    /// `ACCOUNT.dkr-ecr[-fips].REGION.on.aws` or `….on.amazonwebservices.com.cn`. A host that only looks like one gets no
    /// token.
    pub(super) fn at(host: &'a str) -> Option<Self> {
        let (account, host) = host.split_once('.')?;
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let (host, is_dual) = match host.strip_prefix("dkr.ecr") {
            Some(rest) => (rest, false),
            None => (host.strip_prefix("dkr-ecr")?, true),
        };
        let (host, fips) = host.strip_prefix("-fips").map_or((host, false), |rest| (rest, true));
        let (region, domain) = host.strip_prefix('.')?.split_once('.')?;
        let in_china = region.starts_with("cn-");
        let expected = match (is_dual, in_china) {
            (false, false) => "amazonaws.com",
            (false, true) => "amazonaws.com.cn",
            (true, false) => "on.aws",
            (true, true) => "on.amazonwebservices.com.cn",
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_region = region.contains('-') && region.bytes().all(plain);
        (is_account && is_region && domain == expected).then_some(Self { region, fips, is_dual })
    }

    /// A token, for twelve hours.
    ///
    /// # Errors
    /// Why there is none, in words that have no secret in them.
    pub(super) async fn credentials(&self, http: &reqwest::Client) -> Result<Credentials, String> {
        let exchange = self.exchange(http);
        tokio::time::timeout(LIMIT, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("there was no answer within {} s", LIMIT.as_secs())))
    }

    async fn exchange(&self, http: &reqwest::Client) -> Result<Credentials, String> {
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.to_owned()))
            .use_fips(self.fips)
            .use_dual_stack(self.is_dual)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .http_client(Http { client: http.clone() })
            .load()
            .await;
        let answer = aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await.map_err(reason)?;
        let token = answer.authorization_data().first().and_then(|data| data.authorization_token()).unwrap_or_default();
        let decoded = BASE64_STANDARD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = decoded.as_deref().and_then(|token| token.split_once(':')).ok_or("ECR gave none")?;
        Ok(Credentials::Password { username: username.to_owned(), password: password.to_owned() })
    }
}

fn reason<E, R>(error: SdkError<E, R>) -> String
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug + 'static,
{
    match error {
        SdkError::ServiceError(error) => {
            let error = error.err();
            let code = error.code().unwrap_or("an error without a code");
            match error.message() {
                Some(message) => format!("ECR refused with {code}: {message}"),
                None => format!("ECR refused with {code}"),
            }
        }
        other => chain(&other),
    }
}

/// The launcher's HTTP client, as the SDK wants one. Requests and answers are small, and in memory as a whole.
#[derive(Debug, Clone)]
struct Http {
    client: reqwest::Client,
}

impl HttpClient for Http {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        // The time for connecting is the client's own, unless there is one for the answer as well.
        let limit = settings.read_timeout().map(|read| read + settings.connect_timeout().unwrap_or_default());
        SharedHttpConnector::new(Connector { client: self.client.clone(), limit })
    }
}

#[derive(Debug)]
struct Connector {
    client: reqwest::Client,
    /// Short for the instance metadata service, which most hosts have not.
    limit: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let built = self.built(&request);
        let client = self.client.clone();
        HttpConnectorFuture::new(async move {
            let failed = |error: reqwest::Error| {
                // Addresses can have parameters that are nobody's business.
                let error = error.without_url();
                if error.is_timeout() {
                    ConnectorError::timeout(error.into())
                } else {
                    ConnectorError::io(error.into())
                }
            };
            let answer = client.execute(built?).await.map_err(failed)?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let body = answer.bytes().await.map_err(failed)?;
            let mut response = HttpResponse::new(status.into(), SdkBody::from(body));
            for (name, value) in &headers {
                if let Ok(value) = value.to_str() {
                    let _ = response.headers_mut().try_append(name.as_str().to_owned(), value.to_owned());
                }
            }
            Ok(response)
        })
    }
}

impl Connector {
    fn built(&self, request: &HttpRequest) -> Result<reqwest::Request, ConnectorError> {
        let method = reqwest::Method::from_bytes(request.method().as_bytes());
        let mut builder =
            self.client.request(method.map_err(|error| ConnectorError::user(error.into()))?, request.uri());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        if let Some(limit) = self.limit {
            builder = builder.timeout(limit);
        }
        let body = request.body().bytes().unwrap_or_default().to_vec();
        builder.body(body).build().map_err(|error| ConnectorError::user(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_ecr_get_a_token() {
        let registry = |region, fips, is_dual| Some(Registry { region, fips, is_dual });
        for (host, expected) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", registry("eu-west-1", false, false)),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", registry("us-gov-west-1", true, false)),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", registry("cn-north-1", false, false)),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", registry("eu-west-1", false, true)),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", registry("us-east-1", true, true)),
            ("123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", registry("cn-north-1", false, true)),
            ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("x23456789012.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.test", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com:8443", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn", None),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.evil.amazonaws.com", None),
            ("123456789012.dkr.ecreu-west-1.amazonaws.com", None),
            ("123456789012.dkr-ecr.eu-west-1.amazonaws.com", None),
            ("public.ecr.aws", None),
            ("docker.io", None),
        ] {
            assert_eq!(Registry::at(host), expected, "{host}");
        }
    }
}
