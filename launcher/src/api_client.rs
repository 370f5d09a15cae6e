//! The API of the control plane, as [`launcher_wire::api`] has it.
//!
//! Every attempt is signed anew: a signature holds for some minutes and counts once. What failed on the way, or because the
//! other side is overloaded, is tried again until the deadline that the caller gives; what was refused is not.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use launcher_wire::api::{
    Claim, Job, MAXIMUM_BODY, ObjectRequest, Presigned, Problem, Registered, Registration, Report, StateChange,
};
use launcher_wire::id::{PoolId, RunId, WorkerId};
use launcher_wire::key::PoolKey;
use launcher_wire::signature;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::metrics;
use crate::network::{Backoff, chain, is_loopback};

/// How long an attempt may take from connecting to the last byte of the answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// The limit of the first wait between two attempts.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The limit of all waits, also of one that the control plane asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Characters of a problem's message that are repeated in an error.
const MAXIMUM_MESSAGE: usize = 500;

/// Why there is no answer. No message holds the address of an object or anything else of an answer but a problem's message.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The control plane refused.
    #[error("{request} was refused ({status}): {message}{}", advice(*status))]
    Refused {
        /// Method and path.
        request: String,
        /// The status code.
        status: u16,
        /// Why, from the control plane.
        message: String,
    },
    /// The run is not this worker's any more.
    #[error("{request}: the run is not this worker's any more: {message}")]
    Gone {
        /// Method and path.
        request: String,
        /// Why, from the control plane.
        message: String,
    },
    /// There was no answer until the deadline.
    #[error(
        "{request}: there was no answer from the control plane within {seconds} s; the last attempt ended with: {reason}. Check that this host reaches the API, through HTTPS_PROXY if there is one"
    )]
    Unreachable {
        /// Method and path.
        request: String,
        /// For how long it was tried.
        seconds: u64,
        /// How the last attempt ended that was not cut short by the deadline.
        reason: String,
    },
    /// An answer that is none of the API's, or a request that cannot be made.
    #[error("{request}: {reason}")]
    Invalid {
        /// Method and path.
        request: String,
        /// What is wrong.
        reason: String,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        401 => ". Check that the host's clock is right, and that token and private key are of the same pool",
        403 => ". Check that the pool still exists and that this token is its latest one",
        404 => ". Check that the token is of this control plane",
        _ => "",
    }
}

/// A client of the API for one worker.
#[derive(Debug, Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    base: Url,
    key: Arc<PoolKey>,
    pool: PoolId,
    worker: WorkerId,
}

impl ApiClient {
    /// `base` is the token's `api`, with or without a path.
    ///
    /// # Errors
    /// `base` is not the address of an API.
    pub fn new(http: reqwest::Client, base: &str, key: PoolKey, pool: PoolId, worker: WorkerId) -> Result<Self, Error> {
        let invalid = |reason: String| Error::Invalid { request: format!("the API's address `{base}`"), reason };
        let mut base = Url::parse(base).map_err(|error| invalid(error.to_string()))?;
        if base.scheme() != "https" || !base.has_host() || base.query().is_some() || base.fragment().is_some() {
            return Err(invalid("it is not https://HOST[:PORT][/PATH]".to_owned()));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        base.set_path(&path);
        Ok(Self { http, base, key: Arc::new(key), pool, worker })
    }

    /// Whether the control plane is on this host, as on a developer's machine.
    pub(crate) fn is_on_this_host(&self) -> bool {
        self.base.host_str().is_some_and(is_loopback)
    }

    /// Says that this worker is there. `deadline`, here and below, is for how long to try; none: until there is an answer.
    ///
    /// # Errors
    /// Of any kind, here and below: see [`Error`].
    pub async fn register(&self, registration: &Registration, deadline: Option<Duration>) -> Result<Registered, Error> {
        let path = format!("/v1/workers/{}", self.worker);
        self.answer(Method::PUT, &path, Some(registration), deadline).await
    }

    /// Says that this worker will not come back under its identifier.
    ///
    /// # Errors
    /// See [`Self::register`].
    pub async fn deregister(&self, deadline: Option<Duration>) -> Result<(), Error> {
        let path = format!("/v1/workers/{}", self.worker);
        self.done(Method::DELETE, &path, None::<&()>, deadline).await
    }

    /// Takes a run.
    ///
    /// # Errors
    /// See [`Self::register`].
    pub async fn claim(&self, run: RunId, claim: &Claim, deadline: Option<Duration>) -> Result<Box<Job>, Error> {
        self.answer(Method::POST, &format!("/v1/runs/{run}/claim"), Some(claim), deadline).await
    }

    /// Says that a run is in a state.
    ///
    /// # Errors
    /// See [`Self::register`].
    pub async fn state(&self, run: RunId, change: &StateChange, deadline: Option<Duration>) -> Result<(), Error> {
        self.done(Method::POST, &format!("/v1/runs/{run}/state"), Some(change), deadline).await
    }

    /// Asks for an address in the object store.
    ///
    /// # Errors
    /// See [`Self::register`].
    pub async fn object(
        &self,
        run: RunId,
        object: &ObjectRequest,
        deadline: Option<Duration>,
    ) -> Result<Presigned, Error> {
        self.answer(Method::POST, &format!("/v1/runs/{run}/object"), Some(object), deadline).await
    }

    /// Says how a stage ended.
    ///
    /// # Errors
    /// See [`Self::register`].
    pub async fn outcome(&self, run: RunId, report: &Report, deadline: Option<Duration>) -> Result<(), Error> {
        self.done(Method::POST, &format!("/v1/runs/{run}/outcome"), Some(report), deadline).await
    }

    async fn answer<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
        deadline: Option<Duration>,
    ) -> Result<A, Error> {
        let request = Request::new(&self.base, method, path, body)?;
        let (status, answer) = self.send(&request, deadline).await?;
        if status != StatusCode::OK {
            return Err(request.unexpected(status));
        }
        // The parser's message may repeat what it met, and an answer holds secrets.
        serde_json::from_slice(&answer).map_err(|error| {
            request.invalid(format!(
                "the answer is not as the API describes it, at line {} column {}. Check that launcher and control plane are of the same release",
                error.line(),
                error.column()
            ))
        })
    }

    async fn done<Q: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
        deadline: Option<Duration>,
    ) -> Result<(), Error> {
        let request = Request::new(&self.base, method, path, body)?;
        let (status, _) = self.send(&request, deadline).await?;
        if status == StatusCode::NO_CONTENT { Ok(()) } else { Err(request.unexpected(status)) }
    }

    async fn send(&self, request: &Request, deadline: Option<Duration>) -> Result<(StatusCode, Vec<u8>), Error> {
        let started = Instant::now();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut known = None;
        let metrics = metrics::shared();
        let mut waiting = None;
        loop {
            let left = deadline.map(|deadline| deadline.saturating_sub(started.elapsed()));
            let limit = left.unwrap_or(ATTEMPT_TIMEOUT).min(ATTEMPT_TIMEOUT);
            let attempt = match tokio::time::timeout(limit, self.attempt(request)).await {
                Ok(attempt) => attempt,
                Err(_) => {
                    // What was the matter before says more than that the deadline cut the next attempt short.
                    let known = known.take().filter(|_| limit < ATTEMPT_TIMEOUT);
                    let reason = known.unwrap_or_else(|| format!("no answer after {} s", limit.as_secs()));
                    Attempt::Again { reason, wait: None }
                }
            };
            let (reason, asked) = match attempt {
                Attempt::Done(status, body) => {
                    metrics.api.reached();
                    tracing::debug!(request = %request.name, %status, "the API answered");
                    return Ok((status, body));
                }
                Attempt::Failed(error) => {
                    metrics.api_refusals.add_one();
                    return Err(error);
                }
                Attempt::Again { reason, wait } => (reason, wait),
            };
            waiting.get_or_insert_with(|| metrics.api.wait());
            let wait = asked.unwrap_or_default().min(LONGEST_WAIT) + backoff.after_failure();
            if deadline.is_some_and(|deadline| started.elapsed() + wait >= deadline) {
                let seconds = started.elapsed().as_secs();
                return Err(Error::Unreachable { request: request.name.clone(), seconds, reason });
            }
            tracing::warn!(request = %request.name, wait_ms = wait.as_millis(), "the API gave no answer, trying again: {reason}");
            known = Some(reason);
            metrics.api_retries.add_one();
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, request: &Request) -> Attempt {
        let headers = match self.sign(request).await {
            Ok(headers) => headers,
            Err(error) => return Attempt::Failed(error),
        };
        let mut http = self.http.request(request.method.clone(), request.url.clone());
        http = http
            .header(signature::CONTENT_DIGEST, headers.content_digest)
            .header(signature::WORKER, headers.worker)
            .header(signature::SIGNATURE_INPUT, headers.signature_input)
            .header(signature::SIGNATURE, headers.signature);
        if !request.body.is_empty() {
            http = http.header(CONTENT_TYPE, "application/json").body(request.body.to_vec());
        }
        let mut response = match http.send().await {
            Ok(response) => response,
            Err(error) => return request.failed(error),
        };
        let status = response.status();
        let wait = retry_after(&response);
        let body = match body(&mut response).await {
            Ok(body) => body,
            Err(Broken::TooLarge) => {
                return Attempt::Failed(
                    request.invalid(format!("the answer has more than {MAXIMUM_BODY} bytes ({status})")),
                );
            }
            Err(Broken::Connection(error)) => return request.failed(error),
        };
        match status {
            status if status.is_success() => Attempt::Done(status, body),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Attempt::Again { reason: format!("{status}: {}", message(&body)), wait }
            }
            status if status.is_server_error() => {
                Attempt::Again { reason: format!("{status}: {}", message(&body)), wait }
            }
            // Somebody on the way, who knows nothing of runs: a load balancer without its servers, or a proxy.
            status if status.is_client_error() && !is_problem(&body) => {
                Attempt::Again { reason: format!("{status}, which is not from the API itself"), wait }
            }
            StatusCode::CONFLICT => {
                Attempt::Failed(Error::Gone { request: request.name.clone(), message: message(&body) })
            }
            status if status.is_client_error() => Attempt::Failed(Error::Refused {
                request: request.name.clone(),
                status: status.as_u16(),
                message: message(&body),
            }),
            status => Attempt::Failed(request.unexpected(status)),
        }
    }

    /// Milliseconds of arithmetic, which would hold up everything else.
    async fn sign(&self, request: &Request) -> Result<signature::Headers, Error> {
        let (key, pool, worker) = (Arc::clone(&self.key), self.pool, self.worker);
        let (method, url, body) = (request.method.clone(), request.url.clone(), Arc::clone(&request.body));
        let signed = tokio::task::spawn_blocking(move || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let request = signature::Request { method: method.as_str(), path: url.path(), body: &body };
            signature::sign(&key, pool, worker, now, request)
        });
        signed.await.map_err(|_| request.invalid("the request could not be signed".to_owned()))
    }
}

struct Request {
    method: Method,
    url: Url,
    body: Arc<[u8]>,
    /// Method and path, for messages.
    name: String,
}

enum Attempt {
    Done(StatusCode, Vec<u8>),
    Failed(Error),
    Again { reason: String, wait: Option<Duration> },
}

impl Request {
    fn new<Q: Serialize>(base: &Url, method: Method, path: &str, body: Option<&Q>) -> Result<Self, Error> {
        let name = format!("{method} {path}");
        let invalid = |reason: String| Error::Invalid { request: name.clone(), reason };
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| invalid(error.to_string()))?,
            None => Vec::new(),
        };
        if body.len() > MAXIMUM_BODY {
            return Err(invalid(format!("the request has {} bytes; at most {MAXIMUM_BODY} are allowed", body.len())));
        }
        let mut url = base.clone();
        url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
        Ok(Self { method, url, body: body.into(), name })
    }

    fn invalid(&self, reason: String) -> Error {
        Error::Invalid { request: self.name.clone(), reason }
    }

    fn unexpected(&self, status: StatusCode) -> Error {
        self.invalid(format!("the answer {status} is not one of the API's. Check `api` in the token, and HTTPS_PROXY"))
    }

    fn failed(&self, error: reqwest::Error) -> Attempt {
        let error = error.without_url();
        if error.is_builder() {
            return Attempt::Failed(self.invalid(chain(&error)));
        }
        Attempt::Again { reason: explain(&error), wait: None }
    }
}

/// Whether the control plane itself says what is wrong.
fn is_problem(body: &[u8]) -> bool {
    serde_json::from_slice::<Problem>(body).is_ok()
}

/// What a failed connection was about, and what to do.
pub(crate) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let text = chain(error);
    let advice = if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        ". Its certificate is of an authority that this host does not trust: set ADDITIONAL_ROOT_CAS"
    } else if text.contains("dns error") || text.contains("lookup address") {
        ". Its name cannot be resolved: check the host's DNS, or set HTTPS_PROXY"
    } else if text.contains("certificate expired") || text.contains("Expired") {
        ". Its certificate has expired, or this host's clock is wrong"
    } else {
        ""
    };
    format!("{text}{advice}")
}

enum Broken {
    TooLarge,
    Connection(reqwest::Error),
}

async fn body(response: &mut reqwest::Response) -> Result<Vec<u8>, Broken> {
    let announced = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAXIMUM_BODY) {
        return Err(Broken::TooLarge);
    }
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(Broken::Connection)? {
        if body.len() + part.len() > MAXIMUM_BODY {
            return Err(Broken::TooLarge);
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// In seconds. The other form, a date, is not used by this API.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A problem's message in one line. What is not a problem is not repeated: a proxy's page may be anything.
fn message(body: &[u8]) -> String {
    let Ok(Problem { message }) = serde_json::from_slice(body) else {
        return "without a reason that the API would give".to_owned();
    };
    message
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(MAXIMUM_MESSAGE)
        .collect()
}
