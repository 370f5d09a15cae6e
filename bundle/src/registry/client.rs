//! Requests to one registry: who is asked, with which credentials, and what an answer comes down to.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{HttpConnector as _, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time;

use super::address::{Repository, Url};
use super::auth::{Challenge, Secret};
use super::blob::{BlobBody, Source};
use super::error::{Error, Failure, chain};

/// Attempts of one operation, the first included.
const ATTEMPTS: u32 = 5;
/// The first wait is at most this long; every further one at most twice as long as the one before.
const BACKOFF: Duration = Duration::from_millis(250);
/// No wait is longer, whatever a server asks for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// A connection on which nothing moves for this long is given up. Registries take seconds to check a large layer.
const STALL: Duration = Duration::from_secs(60);
/// Redirects of one request. Registries have one, to their storage.
const MAX_REDIRECTS: usize = 5;
/// What is read of an answer. Manifests, the largest, have at most this size.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// What is shown of an answer.
const MAX_SHOWN: usize = 400;

/// A registry, as one repository in it is reached.
#[derive(Debug)]
pub(super) struct Client {
    connector: SharedHttpConnector,
    base: Url,
    repository: Repository,
    /// What may be asked of the repository, in the words of token servers.
    scopes: Vec<String>,
    /// What the caller has, as a header of the scheme Basic.
    credentials: Option<Secret>,
    /// What requests are made with. It changes when a registry asks for a token, and when a token expires.
    authorization: RwLock<Option<Secret>>,
    /// Held while it is found out what the registry wants, so that several requests ask for one token.
    asking: Mutex<()>,
    /// Bytes of blobs that were handed to the network.
    pub(super) sent: Arc<AtomicU64>,
    notices: mpsc::UnboundedSender<String>,
}

/// What is asked for.
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) url: Url,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body<'a>,
    /// For messages: "push a layer".
    pub(super) doing: &'a str,
}

/// What is sent along.
#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    Empty,
    Bytes(&'a [u8]),
    Blob(&'a Source),
}

/// What came back.
pub(super) struct Response {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The address that answered, which redirects may have led to.
    pub(super) url: Url,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.headers.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The code of the first error in the answer.
    pub(super) fn code(&self) -> String {
        let answer: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        answer["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
    }
}

impl Client {
    pub(super) fn new(
        connector: SharedHttpConnector,
        base: Url,
        repository: Repository,
        scopes: Vec<String>,
        notices: mpsc::UnboundedSender<String>,
    ) -> Self {
        let (authorization, asking, sent) = (RwLock::default(), Mutex::default(), Arc::default());
        Self { connector, base, repository, scopes, credentials: None, authorization, asking, sent, notices }
    }

    /// Has `credentials` for the time when the registry asks for some.
    pub(super) fn with_credentials(mut self, credentials: Option<Secret>) -> Self {
        self.credentials = credentials;
        self
    }

    /// Sends `credentials` with every request from the first one on.
    pub(super) fn with_authorization(mut self, authorization: Secret) -> Self {
        self.authorization = RwLock::new(Some(authorization));
        self
    }

    fn authorization(&self) -> Option<Secret> {
        self.authorization.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_authorization(&self, authorization: Option<Secret>) {
        *self.authorization.write().unwrap_or_else(PoisonError::into_inner) = authorization;
    }

    pub(super) fn host(&self) -> String {
        self.base.origin()
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(super) fn say(&self, text: String) {
        // Nobody listens any more once the push has failed.
        let _ = self.notices.send(text);
    }

    /// An address below `/v2/`.
    pub(super) fn at(&self, target: &str) -> Url {
        self.base.at(&format!("/v2/{target}"))
    }

    /// Does something up to five times. What is repeated is a whole operation and not a request: an upload that broke off
    /// starts again with a look at what is there.
    pub(super) async fn retry<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, Error> {
        let mut tried = 1;
        loop {
            let (mut error, after) = match attempt().await {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient { error, after }) => (error, after),
            };
            if tried == ATTEMPTS {
                if let Error::Unavailable { attempts, .. } = &mut error {
                    *attempts = tried;
                }
                return Err(error);
            }
            let wait = after.unwrap_or_else(|| backoff(tried)).min(MAX_WAIT);
            let reason = match &error {
                Error::Unavailable { doing, answer, .. } => format!("could not {doing}: {answer}"),
                Error::Unreachable { reason, .. } => reason.clone(),
                other => other.to_string(),
            };
            self.say(format!("{}: {reason}; trying again in {:.1} s", self.host(), wait.as_secs_f64()));
            time::sleep(wait).await;
            tried += 1;
        }
    }

    /// One request with everything that leads to its answer: credentials when they are asked for, and redirects.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let (mut url, mut method, mut body) = (request.url.clone(), request.method, request.body);
        let (mut challenges, mut redirects) = (0, 0);
        loop {
            // Credentials are for the registry alone. Wherever else it sends us gets none.
            let is_registry = url.is_same_origin(&self.base);
            let authorization = if is_registry { self.authorization() } else { None };
            let response = self.exchange(method, &url, &request.headers, body, authorization.as_ref()).await?;
            match response.status {
                401 if is_registry && challenges < 2 => {
                    challenges += 1;
                    self.authorize(&response, authorization.as_ref(), challenges, request.doing).await?;
                }
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(self.protocol(request.doing, "it redirects without end").into());
                    }
                    if response.status < 307 && !matches!(method, "GET" | "HEAD") {
                        if response.status != 303 {
                            let reason = format!("it redirects {method} with the status {}", response.status);
                            return Err(self.protocol(request.doing, &reason).into());
                        }
                        (method, body) = ("GET", Body::Empty);
                    }
                    url = self.follow(&url, response.header("location"), request.doing)?;
                }
                _ => return Ok(response),
            }
        }
    }

    /// Where `location` leads from `url`. Never from TLS to plain HTTP, where everything could be read and changed.
    pub(super) fn follow(&self, url: &Url, location: Option<&str>, doing: &str) -> Result<Url, Error> {
        let location = location.ok_or_else(|| self.protocol(doing, "it names no Location"))?;
        let next = url.join(location).map_err(|reason| self.protocol(doing, &format!("its Location: {reason}")))?;
        if url.is_secure() && !next.is_secure() {
            return Err(self.protocol(doing, &format!("it leads from TLS to plain HTTP at {}", next.origin())));
        }
        Ok(next)
    }

    /// Finds out what the registry wants instead of `refused`, which it did not take.
    async fn authorize(
        &self,
        response: &Response,
        refused: Option<&Secret>,
        challenges: usize,
        doing: &str,
    ) -> Result<(), Failure> {
        let _asking = self.asking.lock().await;
        if self.authorization().as_ref() != refused {
            // Another request has found out meanwhile.
            return Ok(());
        }
        let offered = Challenge::parse(response.all("www-authenticate"));
        let bearer = offered.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service } => Some((realm, service)),
            Challenge::Basic => None,
        });
        if let Some((realm, service)) = bearer
            && challenges == 1
            && self.repository.ecr().is_none()
        {
            let token = self.token(realm, service.as_deref(), doing).await?;
            self.set_authorization(Some(token));
            return Ok(());
        }
        if offered.contains(&Challenge::Basic) && self.credentials.is_some() && self.credentials.as_ref() != refused {
            self.set_authorization(self.credentials.clone());
            return Ok(());
        }
        Err(self.unauthorized(response, doing).into())
    }

    fn unauthorized(&self, response: &Response, doing: &str) -> Error {
        let registry = self.repository.registry();
        let hint = match (self.repository.ecr(), &self.credentials) {
            (Some(ecr), _) => format!(
                "it refused the token that ECR in {} gave for these AWS credentials; check that they belong to account {} \
                 or that its registry lets them in",
                ecr.region, ecr.account
            ),
            (None, Some(_)) => {
                format!("it refused those of Docker's configuration; `docker login {registry}` renews them")
            }
            (None, None) => {
                format!("there are none for it; `docker login {registry}` stores some where they are looked for")
            }
        };
        let answer = self.answer(response);
        Error::Unauthorized { host: self.host(), doing: doing.to_owned(), hint: format!("{hint} ({answer})") }
    }

    /// Asks a token server for a token. The caller's credentials are shown to it: the registry, over a connection that
    /// cannot be changed on the way, says that this is the one it trusts.
    async fn token(&self, realm: &str, service: Option<&str>, doing: &str) -> Result<Secret, Failure> {
        let refuse = |reason: &str| self.protocol(doing, &format!("the token server that it names: {reason}"));
        let mut url = Url::parse(realm).map_err(refuse)?;
        if self.base.is_secure() && !url.is_secure() {
            return Err(refuse("it is plain HTTP").into());
        }
        if let Some(service) = service {
            url = url.with_parameter("service", service);
        }
        for scope in &self.scopes {
            url = url.with_parameter("scope", scope);
        }
        let response = self.exchange("GET", &url, &[], Body::Empty, self.credentials.as_ref()).await?;
        if response.status == 401 || response.status == 403 {
            return Err(self.unauthorized(&response, doing).into());
        }
        if response.status != 200 {
            return Err(self.refused("get a token", &response));
        }
        let answer: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let token = [&answer["token"], &answer["access_token"]].into_iter().find_map(serde_json::Value::as_str);
        let plain = |token: &&str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let token = token.filter(plain).ok_or_else(|| refuse("there is no token in its answer"))?;
        Ok(Secret::bearer(token))
    }

    /// One request and its answer.
    pub(super) async fn exchange(
        &self,
        method: &'static str,
        url: &Url,
        headers: &[(&'static str, String)],
        body: Body<'_>,
        authorization: Option<&Secret>,
    ) -> Result<Response, Failure> {
        let host = url.origin();
        let broken = |reason: &str| Error::Unreachable { host: host.clone(), reason: reason.to_owned() };
        let moved = Arc::new(AtomicU64::new(0));
        let body = match body {
            Body::Empty => SdkBody::empty(),
            Body::Bytes(bytes) => SdkBody::from(bytes),
            Body::Blob(source) => {
                SdkBody::from_body_1_x(BlobBody::start(source, Arc::clone(&moved), Arc::clone(&self.sent)))
            }
        };
        let mut request = HttpRequest::new(body);
        let unusable = |_| broken("the address cannot be asked for");
        request.set_method(method).map_err(unusable)?;
        request.set_uri(url.full()).map_err(unusable)?;
        let agent = concat!("spacelift-bundle/", env!("CARGO_PKG_VERSION")).to_owned();
        for (name, value) in headers.iter().cloned().chain([("user-agent", agent)]) {
            request.headers_mut().try_insert(name, value).map_err(unusable)?;
        }
        if let Some(authorization) = authorization {
            let value = authorization.expose().to_owned();
            request.headers_mut().try_insert("authorization", value).map_err(unusable)?;
        }
        let stalled = || Failure::Transient {
            error: broken(&format!("nothing moved for {} seconds", STALL.as_secs())),
            after: None,
        };
        let call = self.connector.call(request);
        tokio::pin!(call);
        let mut seen = 0;
        let response = loop {
            tokio::select! {
                response = &mut call => break response,
                () = time::sleep(STALL) => {
                    let now = moved.load(Ordering::Relaxed);
                    if now == seen {
                        return Err(stalled());
                    }
                    seen = now;
                }
            }
        };
        let response = response.map_err(|error| self.disconnected(&host, error))?;
        let status = response.status().as_u16();
        let headers = response.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut stream = ByteStream::new(response.into_body());
        let mut body = Vec::new();
        while let Some(chunk) = time::timeout(STALL, stream.next()).await.map_err(|_| stalled())? {
            let cut = |error| Failure::Transient { error: broken(&chain(&error)), after: None };
            let chunk = chunk.map_err(cut)?;
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(broken("its answer has no end").into());
            }
            body.extend_from_slice(&chunk);
        }
        if status == 407 {
            return Err(Error::Proxy { host }.into());
        }
        Ok(Response { status, headers, body, url: url.clone() })
    }

    /// What a connection that failed means.
    fn disconnected(&self, host: &str, error: ConnectorError) -> Failure {
        let host = host.to_owned();
        let reason = self.redact(&chain(&error));
        let says = |part: &str| reason.contains(part);
        // The libraries below give text and no types here; a test holds each of these.
        if says("proxy authorization required") {
            return Error::Proxy { host }.into();
        }
        if says("InvalidContentType") || says("corrupt message") {
            return Error::NotTls { host }.into();
        }
        if says("certificate") || says("received fatal alert") {
            return Error::Tls { host, reason }.into();
        }
        Failure::Transient { error: Error::Unreachable { host, reason }, after: None }
    }

    /// What an answer that is no success means.
    pub(super) fn refused(&self, doing: &str, response: &Response) -> Failure {
        let (host, doing, answer) = (self.host(), doing.to_owned(), self.answer(response));
        match (response.status, response.code().as_str()) {
            (408 | 429 | 500 | 502 | 503 | 504, _) => Failure::Transient {
                error: Error::Unavailable { host, doing, answer, attempts: 1 },
                after: response.retry_after(),
            },
            // What is sent was hashed here: it was damaged on its way, or two clients wrote the same thing at once into a
            // store that lets readers see half of it.
            (400, "DIGEST_INVALID") => {
                Failure::Transient { error: Error::Refused { host, doing, answer }, after: None }
            }
            (401, _) => self.unauthorized(response, &doing).into(),
            (403, _) | (_, "DENIED") => {
                let hint = if self.repository.ecr().is_some() {
                    "the caller's policy has to allow ecr:BatchCheckLayerAvailability, ecr:BatchGetImage, \
                     ecr:InitiateLayerUpload, ecr:UploadLayerPart, ecr:CompleteLayerUpload and ecr:PutImage on the \
                     repository, and ecr:GetAuthorizationToken on `*`"
                } else {
                    "the user needs the permission to push to it"
                };
                let repository = self.repository.to_string();
                Error::Denied { repository, doing, answer, hint: hint.to_owned() }.into()
            }
            (404, "NAME_UNKNOWN" | "") => {
                let name = self.repository.name().to_owned();
                let (place, hint) = match self.repository.ecr() {
                    Some(ecr) => (
                        format!("account {}, region {}", ecr.account, ecr.region),
                        "make it with --create-repository, or deploy cloudformation/infra-ecr.yaml",
                    ),
                    None => (
                        self.repository.registry(),
                        "make it by the registry's own means; in ECR that is --create-repository or \
                         cloudformation/infra-ecr.yaml",
                    ),
                };
                Error::NoRepository { name, place, hint }.into()
            }
            _ => Error::Refused { host, doing, answer }.into(),
        }
    }

    /// What a registry said, in one line that is safe to print.
    fn answer(&self, response: &Response) -> String {
        let answer: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let error = &answer["errors"][0];
        let said = match (error["code"].as_str(), error["message"].as_str()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_owned(),
            _ => String::from_utf8_lossy(&response.body).trim().to_owned(),
        };
        // Redacted whole before it is cut: half a password is no less secret.
        let said: String = self.redact(&said).chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
        if said.is_empty() {
            format!("status {}", response.status)
        } else {
            format!("status {}, {}", response.status, said.replace("\\\"", "\"").replace("\\'", "'"))
        }
    }

    fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.credentials.iter().chain(&self.authorization()) {
            text = secret.redact(&text);
        }
        text
    }

    pub(super) fn protocol(&self, doing: &str, reason: &str) -> Error {
        Error::Protocol { host: self.host(), doing: doing.to_owned(), reason: reason.to_owned() }
    }
}

/// Exponential, with full jitter: clients that failed together do not come back together.
fn backoff(tried: u32) -> Duration {
    let most = BACKOFF * 2_u32.saturating_pow(tried - 1);
    // The standard library seeds its hash tables at random, which is all the randomness that this needs.
    let random = RandomState::new().build_hasher().finish();
    most.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_differ() {
        let waits: Vec<Duration> = (0..64).map(|_| backoff(3)).collect();
        assert!(waits.iter().all(|wait| *wait <= BACKOFF * 4));
        assert!(waits.iter().any(|wait| *wait > BACKOFF * 2), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait < BACKOFF), "{waits:?}");
    }
}
