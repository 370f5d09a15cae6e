//! The HTTP API: one part for launchers, one for people.

mod launchers;
mod people;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use launcher_wire::id::PoolId;
use launcher_wire::token::{self, Token};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::authority::Authority;
use crate::objects::Objects;
use crate::refusal::{Refusal, Result};
use crate::store::Store;

/// Bytes of a request of a launcher. The largest is a registration with all its tags.
const MAXIMUM_LAUNCHER_REQUEST: usize = 1024 * 1024;
/// Bytes of a request of people. A job with all its files is to remain below what a launcher takes.
const MAXIMUM_ADMIN_REQUEST: usize = 12 * 1024 * 1024;
/// Bytes of a source archive.
const MAXIMUM_ARCHIVE: usize = 64 * 1024 * 1024;
/// Bytes by which a body is read beyond its limit.
const READ_BEYOND: usize = 1024 * 1024;
/// The description of all this.
pub const OPENAPI: &str = include_str!("openapi.json");

/// What tokens say besides the pool.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) broker: String,
    pub(crate) namespace: String,
    pub(crate) api: String,
}

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct App {
    store: Store,
    objects: Objects,
    authority: Arc<Authority>,
    facts: Facts,
    /// The token itself is not kept; digests of equal length are compared.
    admin: [u8; 32],
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl App {
    pub(crate) fn new(
        store: Store,
        objects: Objects,
        authority: Authority,
        facts: Facts,
        admin_token: &[u8],
    ) -> anyhow::Result<Self> {
        let admin_token = admin_token.trim_ascii();
        anyhow::ensure!(admin_token.len() >= 32, "the file admin.token is damaged: it has less than 32 characters");
        let admin = Sha256::digest(admin_token).into();
        Ok(Self { store, objects, authority: Arc::new(authority), facts, admin })
    }

    fn token(&self, pool: PoolId, certificate: &str) -> String {
        let Facts { broker, namespace, api } = self.facts.clone();
        let ca = Some(self.authority.pem.clone());
        let token =
            Token { version: token::VERSION, broker, namespace, api, pool, certificate: certificate.to_owned(), ca };
        token.to_variable()
    }
}

pub(crate) fn router(app: App) -> Router {
    let people = Router::new()
        .route("/admin/v1/pools", get(people::pools).post(people::create_pool))
        .route("/admin/v1/pools/{pool}", get(people::pool))
        .route("/admin/v1/pools/{pool}/reset", post(people::reset_pool))
        .route("/admin/v1/pools/{pool}/drain", post(people::drain_pool))
        .route("/admin/v1/pools/{pool}/undrain", post(people::undrain_pool))
        .route("/admin/v1/pools/{pool}/cycle", post(people::cycle_pool))
        .route("/admin/v1/pools/{pool}/queued", get(people::queued_of))
        .route("/admin/v1/pools/{pool}/used-by", get(people::used_by))
        .route("/admin/v1/workers", get(people::workers))
        .route("/admin/v1/workers/{worker}/drain", post(people::drain_worker))
        .route("/admin/v1/workers/{worker}/undrain", post(people::undrain_worker))
        .route("/admin/v1/stacks", get(people::stacks))
        .route("/admin/v1/stacks/{slug}", get(people::stack).put(people::apply_stack))
        .route("/admin/v1/stacks/{slug}/source", put(people::upload_source))
        .route("/admin/v1/runs", get(people::runs).post(people::create_run))
        .route("/admin/v1/queued", get(people::queued))
        .route("/admin/v1/runs/{run}", get(people::run))
        .route("/admin/v1/runs/{run}/confirm", post(people::confirm))
        .route("/admin/v1/runs/{run}/discard", post(people::discard))
        .route("/admin/v1/runs/{run}/stop", post(people::stop))
        .route("/admin/v1/runs/{run}/cancel", post(people::cancel))
        .route("/admin/v1/runs/{run}/log", get(people::log))
        .layer(from_fn_with_state(app.clone(), people_only));
    Router::new()
        .route("/v1/workers/{worker}", put(launchers::register).merge(delete(launchers::deregister)))
        .route("/v1/runs/{run}/claim", post(launchers::claim))
        .route("/v1/runs/{run}/state", post(launchers::state))
        .route("/v1/runs/{run}/object", post(launchers::object))
        .route("/v1/runs/{run}/outcome", post(launchers::outcome))
        .route("/openapi.json", get(openapi))
        .merge(people)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(app)
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn no_route(uri: Uri) -> Refusal {
    Refusal::not_found(format!("there is nothing at {}; /openapi.json says what there is", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for {}", uri.path()))
}

async fn people_only(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let token = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
    let digest: [u8; 32] = Sha256::digest(token).into();
    // Every byte is looked at, whichever differs.
    let difference = digest.iter().zip(&app.admin).fold(0, |difference, (given, right)| difference | (given ^ right));
    if difference != 0 {
        let message =
            "the bearer token is missing or wrong. It is in the file admin.token of the server's data directory";
        return Refusal::new(StatusCode::UNAUTHORIZED, message).into_response();
    }
    next.run(request).await
}

async fn body(request: Request, limit: usize) -> Result<Bytes> {
    let too_large = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {limit} bytes"));
    // A client that is answered while it still writes may not get to read the answer: what is a little too large is read.
    let bytes = axum::body::to_bytes(request.into_body(), limit + READ_BEYOND).await.map_err(|_| too_large())?;
    if bytes.len() > limit { Err(too_large()) } else { Ok(bytes) }
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        // The parser's message may repeat a value, and a value may be a secret.
        let (line, column) = (error.line(), error.column());
        let reason = match error.classify() {
            serde_json::error::Category::Data if error.to_string().starts_with("missing field") => error.to_string(),
            serde_json::error::Category::Data => format!("wrong type or value at line {line}, column {column}"),
            _ => format!("no JSON at line {line}, column {column}"),
        };
        Refusal::invalid(format!("the body is not as described in /openapi.json: {reason}"))
    })
}

fn to_json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// An identifier in a path. What is none is the name of nothing.
fn identifier<T: std::str::FromStr<Err: fmt::Display>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: T::Err| Refusal::not_found(error.to_string()))
}
