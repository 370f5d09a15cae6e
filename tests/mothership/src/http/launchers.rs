//! The part for launchers. Every request is signed with the key of a pool.

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use launcher_wire::api::{Claim, ObjectRequest, Registration, Report, StateChange};
use launcher_wire::id::{RunId, WorkerId};
use launcher_wire::key::PoolCertificate;
use launcher_wire::signature::{self, Headers, Signed};

use super::{App, MAXIMUM_LAUNCHER_REQUEST, body, from_json, identifier, to_json};
use crate::refusal::{Refusal, Result};
use crate::store::{Reported, milliseconds};

/// Whether a worker has to be known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    Any,
    Registered,
}

async fn verified(app: &App, request: Request, worker: Worker) -> Result<(Signed, Bytes)> {
    let method = request.method().as_str().to_owned();
    let path = request.uri().path().to_owned();
    if request.uri().query().is_some() {
        return Err(Refusal::invalid("requests have no query: it would not be signed"));
    }
    let headers = signature_headers(&request)?;
    let claimed = signature::claimed(&headers).map_err(|error| unauthorized(error.to_string()))?;
    let pool = claimed.pool;
    let certificate = app.store.read(move |decision| decision.certificate(pool)).await?;
    // The same words as for a wrong signature: who cannot sign does not learn which pools there are.
    let wrong = || unauthorized(signature::Invalid::Signature.to_string());
    let certificate = certificate.ok_or_else(wrong)?;
    let certificate = PoolCertificate::from_pem(&certificate).map_err(|error| {
        tracing::error!(%error, %pool, "a pool's certificate in the database is damaged");
        wrong()
    })?;
    let now = u64::try_from(milliseconds() / 1000).unwrap_or_default();
    let body = body(request, MAXIMUM_LAUNCHER_REQUEST).await?;
    let signed_request = signature::Request { method: &method, path: &path, body: &body };
    let signed = signature::verify(&certificate.public_key, &headers, now, signed_request)
        .map_err(|error| unauthorized(error.to_string()))?;
    if i64::try_from(now).unwrap_or(i64::MAX) > certificate.not_after {
        return Err(unauthorized("the pool's certificate has expired. Reset the pool"));
    }
    let (id, nonce) = (signed.worker, signed.nonce.clone());
    let until = i64::try_from((signed.created + 2 * signature::MAXIMUM_SKEW) * 1000).unwrap_or(i64::MAX);
    app.store
        .decide(move |decision| {
            if !decision.nonce(pool, &nonce, until)? {
                return Err(unauthorized("the request came before: sign each one anew"));
            }
            Ok(())
        })
        .await?;
    if worker == Worker::Registered {
        app.store.decide(move |decision| decision.expect_worker(pool, id)).await?;
    }
    Ok((signed, body))
}

fn signature_headers(request: &Request) -> Result<Headers> {
    let header = |name: &'static str| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned).ok_or_else(|| unauthorized(format!("the header {name} is missing")))
    };
    Ok(Headers {
        content_digest: header(signature::CONTENT_DIGEST)?,
        worker: header(signature::WORKER)?,
        signature_input: header(signature::SIGNATURE_INPUT)?,
        signature: header(signature::SIGNATURE)?,
    })
}

fn unauthorized(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, message)
}

fn itself(signed: &Signed, path: &str) -> Result<()> {
    if identifier::<WorkerId>(path)? == signed.worker {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::FORBIDDEN, "a worker registers itself only"))
}

pub(super) async fn register(State(app): State<App>, Path(worker): Path<String>, request: Request) -> Result<Response> {
    let (signed, body) = verified(&app, request, Worker::Any).await?;
    itself(&signed, &worker)?;
    let registration: Registration = from_json(&body)?;
    let answer = app.store.decide(move |decision| decision.register(signed.pool, signed.worker, &registration)).await?;
    Ok(to_json(&answer))
}

pub(super) async fn deregister(
    State(app): State<App>,
    Path(worker): Path<String>,
    request: Request,
) -> Result<StatusCode> {
    let (signed, _) = verified(&app, request, Worker::Registered).await?;
    itself(&signed, &worker)?;
    app.store.decide(move |decision| decision.deregister(signed.worker)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn claim(State(app): State<App>, Path(run): Path<String>, request: Request) -> Result<Response> {
    let (signed, body) = verified(&app, request, Worker::Registered).await?;
    let (run, claim): (RunId, Claim) = (identifier(&run)?, from_json(&body)?);
    let job = app.store.decide(move |decision| decision.claim(signed.pool, signed.worker, run, &claim)).await?;
    Ok(to_json(&job))
}

pub(super) async fn state(State(app): State<App>, Path(run): Path<String>, request: Request) -> Result<StatusCode> {
    let (signed, body) = verified(&app, request, Worker::Registered).await?;
    let (run, change): (RunId, StateChange) = (identifier(&run)?, from_json(&body)?);
    app.store.decide(move |decision| decision.change_state(signed.pool, signed.worker, run, &change)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn object(State(app): State<App>, Path(run): Path<String>, request: Request) -> Result<Response> {
    let (signed, body) = verified(&app, request, Worker::Registered).await?;
    let (run, wish): (RunId, ObjectRequest) = (identifier(&run)?, from_json(&body)?);
    let grant = app.store.decide(move |decision| decision.object(signed.pool, signed.worker, run, &wish)).await?;
    let now = u64::try_from(milliseconds() / 1000).unwrap_or_default();
    let presigned = app.objects.presign(&grant.key, grant.operation, now).await?;
    Ok(to_json(&presigned).into_response())
}

pub(super) async fn outcome(State(app): State<App>, Path(run): Path<String>, request: Request) -> Result<StatusCode> {
    let (signed, body) = verified(&app, request, Worker::Registered).await?;
    let (run, report): (RunId, Report) = (identifier(&run)?, from_json(&body)?);
    let Signed { pool, worker, .. } = signed;
    let checked = report.clone();
    let reported = app.store.read(move |decision| decision.check_report(pool, worker, run, &checked)).await?;
    if let Reported::Log(prefix) = reported {
        app.objects.check_log(&prefix, &report.log).await?;
        app.store.decide(move |decision| decision.take_report(pool, worker, run, &report)).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
