//! Pulling images.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::time::{Duration, Instant};

use bollard::BollardRequest;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as Bollard;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use tokio_stream::StreamExt as _;

use super::{Engine, Error, LIMIT, causes, failed, one_line};
use crate::registry_credentials::{Credentials, Reference};

/// How long the engine may take until it says the first word about an image: it asks the registry first.
const FIRST_WORD: Duration = Duration::from_secs(600);
/// How often progress is told.
const INTERVAL: Duration = Duration::from_secs(5);

/// Why an image did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Its name is none.
    #[error("{0}")]
    Name(crate::registry_credentials::Invalid),
    /// There is no such image.
    #[error("there is no such image ({0}). Check the runner image in the stack's settings")]
    NotFound(String),
    /// The registry wants credentials, or other ones.
    #[error(
        "the registry does not let this host have it ({0}). Log in with `docker --config DIR login` and name DIR in \
         SPACELIFT_DOCKER_CONFIG_DIR; for Amazon ECR, allow this host's role to read the repository"
    )]
    Unauthorized(String),
    /// The registry cannot be reached.
    #[error(
        "the registry cannot be reached ({0}). The Docker engine pulls it, with the network and proxies that it has"
    )]
    Unreachable(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl Engine {
    /// Pulls an image. One with a digest that is there already is not asked for again; a tag always is, as it may mean another
    /// image now. An image named by its own identifier, `sha256:…`, is never anywhere else.
    ///
    /// `progress` gets lines for the run's log, one every few seconds at most besides the first and the last.
    ///
    /// # Errors
    /// It did not come, or the engine does not answer.
    pub async fn pull(
        &self,
        image: &str,
        credentials: Option<Credentials>,
        progress: &mut (dyn FnMut(String) + Send),
    ) -> Result<(), Error> {
        let problem = |problem| Error::Pull { image: image.to_owned(), problem };
        if is_identifier(image) {
            return if self.has_image(image).await? {
                Ok(())
            } else {
                Err(problem(Problem::NotFound(
                    "an identifier instead of a name means an image of this host".to_owned(),
                )))
            };
        }
        let reference = Reference::parse(image).map_err(|invalid| problem(Problem::Name(invalid)))?;
        if reference.digest().is_some() && self.has_image(image).await? {
            return Ok(());
        }
        let mut options = CreateImageOptionsBuilder::new().from_image(image);
        // Without a tag the engine would pull all of them.
        if let (Some(tag), None) = (reference.tag(), reference.digest()) {
            options = options.tag(tag);
        }
        let credentials = credentials.map(|credentials| engine_credentials(credentials, reference.registry()));
        let docker = self.docker.clone().with_timeout(FIRST_WORD);
        let mut messages = pin!(docker.create_image(Some(options.build()), None, credentials));
        let mut report = Report::default();
        progress(format!("Pulling the image {image}"));
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| self.pull_failed(image, error))?;
            if let Some(detail) = message.error_detail {
                return Err(problem(classify(None, &detail.message.unwrap_or_default())));
            }
            if let Some(line) = report.take(message) {
                progress(line);
            }
        }
        // A stream that just ends is not a success by itself: the engine may have ended.
        if self.has_image(image).await? {
            progress(format!("Pulled the image {image}"));
            Ok(())
        } else {
            Err(problem(Problem::Other("the engine ended before the image was complete".to_owned())))
        }
    }

    fn pull_failed(&self, image: &str, error: Bollard) -> Error {
        let problem = match &error {
            Bollard::DockerResponseServerError { status_code, message } => classify(Some(*status_code), message),
            Bollard::DockerStreamError { error } => classify(None, error),
            Bollard::RequestTimeoutError => Problem::Unreachable("the engine heard nothing from it".to_owned()),
            Bollard::JsonDataError { .. } | Bollard::JsonSerdeError { .. } => Problem::Other(one_line(&causes(&error))),
            _ => return failed(&self.address, "pull an image", error),
        };
        Error::Pull { image: image.to_owned(), problem }
    }

    async fn has_image(&self, image: &str) -> Result<bool, Error> {
        let inspected = self.docker.inspect_image(image);
        match self.within(&format!("describe the image {image}"), LIMIT, inspected).await {
            Ok(_) => Ok(true),
            Err(Error::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether it is an image's own identifier instead of a name.
fn is_identifier(image: &str) -> bool {
    image.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The header with credentials in the alphabet of base64 that engines read. The client writes the other one, in which an
/// engine reads nothing where the two differ: it would ask the registry as a stranger.
pub(super) fn with_url_safe_auth(mut request: BollardRequest) -> BollardRequest {
    if let Some(value) = request.headers_mut().get_mut("X-Registry-Auth") {
        let text = value.to_str().unwrap_or_default().replace('+', "-").replace('/', "_");
        if let Ok(mut changed) = text.parse() {
            std::mem::swap(value, &mut changed);
            value.set_sensitive(true);
        }
    }
    request
}

fn engine_credentials(credentials: Credentials, registry: &str) -> DockerCredentials {
    let base = DockerCredentials { serveraddress: Some(registry.to_owned()), ..DockerCredentials::default() };
    match credentials {
        Credentials::Password { username, password } => {
            DockerCredentials { username: Some(username), password: Some(password), ..base }
        }
        Credentials::IdentityToken(token) => DockerCredentials { identitytoken: Some(token), ..base },
    }
}

/// What engines of all versions say, in words: statuses differ between them.
fn classify(status: Option<u16>, message: &str) -> Problem {
    let text = one_line(message);
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    // What a registry calls denied may just not exist: it does not tell strangers.
    if has(&["unauthorized", "no basic auth", "access denied", "authentication required", "forbidden", "denied:"]) {
        Problem::Unauthorized(text)
    } else if has(&["not found", "manifest unknown", "name unknown", "no matching manifest", "does not exist"])
        && !has(&["no such host", "dial tcp"])
    {
        Problem::NotFound(text)
    } else if has(&[
        "dial tcp",
        "no such host",
        "connection refused",
        "connection reset",
        "i/o timeout",
        "deadline exceeded",
        "client.timeout",
        "tls",
        "x509",
        "proxyconnect",
        "network is unreachable",
        "unexpected eof",
        "bad gateway",
        "service unavailable",
        "gateway timeout",
        "toomanyrequests",
        "server gave http response",
    ]) {
        Problem::Unreachable(text)
    } else if status == Some(404) {
        Problem::NotFound(text)
    } else {
        Problem::Other(text)
    }
}

/// Makes lines of the engine's messages, of which there are hundreds per second.
#[derive(Default)]
struct Report {
    /// Bytes that came, and of how many, by layer.
    layers: BTreeMap<String, (i64, i64)>,
    last: Option<Instant>,
}

impl Report {
    fn take(&mut self, message: CreateImageInfo) -> Option<String> {
        let CreateImageInfo { id: Some(layer), status: Some(status), progress_detail, .. } = message else {
            return None;
        };
        let detail = progress_detail.unwrap_or_default();
        match status.as_str() {
            "Downloading" => {
                self.layers.insert(layer, (detail.current.unwrap_or_default(), detail.total.unwrap_or_default()));
            }
            "Download complete" | "Pull complete" => {
                self.layers.entry(layer).and_modify(|(current, total)| *current = *total);
            }
            _ => return None,
        }
        if self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return None;
        }
        // The first message says nothing yet.
        self.last.replace(Instant::now())?;
        Some(self.to_string())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEGABYTE: i64 = 1_000_000;
        let (current, total) = self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        write!(f, "Downloaded {} of {} MB", current / MEGABYTE, total / MEGABYTE)
    }
}
