//! The few operations of ECR's API that a push needs.

use aws_config::Region;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::types::{ImageScanningConfiguration, ImageTagMutability, Tag};

use super::address::{EcrRegistry, Repository};
use super::auth::Secret;
use super::error::{Class, Error, chain};
use crate::aws;

/// The API in the registry's region.
#[derive(Debug, Clone)]
pub(super) struct Ecr {
    client: aws_sdk_ecr::Client,
    /// `None` for an emulator, whose registry has no account in its name.
    account: Option<String>,
    region: String,
}

/// A repository as ECR describes it.
pub(super) struct Described {
    /// `HOST/NAME`.
    uri: String,
    /// Whether a tag in it can be moved.
    pub(super) is_mutable: bool,
}

impl Described {
    /// Whether ECR says that this is where `repository` is.
    pub(super) fn is(&self, repository: &Repository) -> bool {
        self.uri.parse::<Repository>().is_ok_and(|described| described == *repository)
    }
}

impl Ecr {
    /// The API for a registry, wherever the caller's own region is.
    pub(super) fn of(connection: &aws::Connection, registry: &EcrRegistry) -> Result<Self, Error> {
        check_variable(connection)?;
        let mut config =
            aws_sdk_ecr::config::Builder::from(&connection.config).region(Region::new(registry.region.clone()));
        if registry.fips {
            config = config.use_fips(true);
        }
        let client = aws_sdk_ecr::Client::from_conf(config.build());
        Ok(Self { client, account: Some(registry.account.clone()), region: registry.region.clone() })
    }

    /// The API at the endpoint that the connection names, if it names one.
    pub(super) fn emulated(connection: &aws::Connection) -> Result<Option<Self>, Error> {
        if !check_variable(connection)? && connection.config.endpoint_url().is_none() {
            return Ok(None);
        }
        let client = aws_sdk_ecr::Client::new(&connection.config);
        Ok(Some(Self { client, account: None, region: connection.region.clone() }))
    }

    /// The header with which its registry lets the caller in, for twelve hours.
    pub(super) async fn authorization(&self) -> Result<Secret, Error> {
        let doing = "give out a token for its registry";
        let answer = self.client.get_authorization_token().send().await;
        let answer = answer.map_err(|error| self.error(doing, "ecr:GetAuthorizationToken", &error))?;
        let token = answer.authorization_data().first().and_then(|data| data.authorization_token());
        // It is user name and password as the header has them; anything else would be no header.
        let plain = |token: &&str| token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
        token.filter(plain).map(Secret::basic).ok_or_else(|| Error::Ecr {
            region: self.region.clone(),
            doing,
            reason: "there is no token in its answer".into(),
            class: Class::Unavailable,
        })
    }

    /// Makes the repository, whose tags cannot be moved and whose images are scanned, unless it is there.
    pub(super) async fn create(&self, name: &str, tags: &[(String, String)]) -> Result<Created, Error> {
        let doing = "make the repository";
        let mut request = self
            .client
            .create_repository()
            .repository_name(name)
            .set_registry_id(self.account.clone())
            .image_tag_mutability(ImageTagMutability::Immutable)
            .image_scanning_configuration(ImageScanningConfiguration::builder().scan_on_push(true).build());
        for (key, value) in tags {
            let tag = Tag::builder().key(key).value(value).build().map_err(|error| Error::Ecr {
                region: self.region.clone(),
                doing,
                reason: error.to_string(),
                class: Class::Unavailable,
            })?;
            request = request.tags(tag);
        }
        match request.send().await {
            Ok(_) => Ok(Created::New),
            Err(error)
                if error.as_service_error().is_some_and(|error| error.is_repository_already_exists_exception()) =>
            {
                Ok(Created::Existing)
            }
            Err(error) => Err(self.error(doing, "ecr:CreateRepository and ecr:TagResource", &error)),
        }
    }

    /// What the repository is like, if there is one.
    pub(super) async fn describe(&self, name: &str) -> Result<Option<Described>, Error> {
        let request = self.client.describe_repositories().repository_names(name).set_registry_id(self.account.clone());
        match request.send().await {
            Ok(answer) => Ok(answer.repositories().first().map(|repository| Described {
                uri: repository.repository_uri().unwrap_or_default().to_owned(),
                is_mutable: repository.image_tag_mutability() != Some(&ImageTagMutability::Immutable),
            })),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_repository_not_found_exception()) => {
                Ok(None)
            }
            Err(error) => Err(self.error("describe the repository", "ecr:DescribeRepositories", &error)),
        }
    }

    fn error<E, R>(&self, doing: &'static str, actions: &str, error: &SdkError<E, R>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        let (reason, class) = explain(actions, error);
        Error::Ecr { region: self.region.clone(), doing, reason, class }
    }
}

/// Whether the environment names an endpoint for ECR alone, which the connection does not know of.
fn check_variable(connection: &aws::Connection) -> Result<bool, Error> {
    match std::env::var("AWS_ENDPOINT_URL_ECR") {
        Ok(endpoint) if !endpoint.is_empty() => {
            aws::check_endpoint(&endpoint, connection.allow_http)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// What became of making a repository.
pub(super) enum Created {
    /// It was made.
    New,
    /// It was there.
    Existing,
}

/// What went wrong and what to do.
fn explain<E, R>(actions: &str, error: &SdkError<E, R>) -> (String, Class)
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    const CREDENTIALS: &str = "sign in again, and check AWS_PROFILE and the AWS_* variables";
    let Some(service) = error.as_service_error() else {
        let reason = chain(error);
        // The credentials are looked for when the first request is made.
        if reason.contains("proxy authorization required") {
            let hint = "put the proxy's user name and password into HTTPS_PROXY, as in http://USER:PASSWORD@PROXY:PORT";
            return (format!("{reason}; {hint}"), Class::Permission);
        }
        let is_credentials = reason.contains("credentials") || reason.contains("identity");
        let (hint, class) = if is_credentials {
            (CREDENTIALS, Class::Permission)
        } else {
            ("check the network, the proxy variables and AWS_CA_BUNDLE", Class::Unavailable)
        };
        return (format!("{reason}; {hint}"), class);
    };
    let code = service.code().unwrap_or("unknown error");
    let message = service.message().unwrap_or("no message");
    let said = format!("{message} ({code})");
    let said: String = said.chars().filter(|character| !character.is_control()).take(600).collect();
    match code {
        "AccessDenied" | "AccessDeniedException" | "AuthorizationError" => {
            (format!("{said}; the caller's policy has to allow {actions}"), Class::Permission)
        }
        "ExpiredToken"
        | "ExpiredTokenException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "RequestExpired"
        | "MissingAuthenticationToken"
        | "IncompleteSignature"
        | "OptInRequired" => {
            (format!("{said}; {CREDENTIALS}, and that this machine's clock is right"), Class::Permission)
        }
        "ThrottlingException"
        | "Throttling"
        | "TooManyRequestsException"
        | "ServerException"
        | "ServiceUnavailable"
        | "InternalFailure" => (format!("{said}; try again later"), Class::Later),
        "LimitExceededException" => {
            (format!("{said}; remove repositories or raise the account's quota"), Class::Unavailable)
        }
        _ => (said, Class::Unavailable),
    }
}
