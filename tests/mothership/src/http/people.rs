//! The part for people.

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use launcher_wire::id::{PoolId, RunId};
use launcher_wire::key::PoolCertificate;
use sha2::{Digest as _, Sha256};

use super::{App, MAXIMUM_ADMIN_REQUEST, MAXIMUM_ARCHIVE, body, from_json, identifier, to_json};
use crate::admin::{CreatePool, CreateRun, LOG_COMPLETE, PoolCredentials, Stack};
use crate::objects::{Key, log_prefix};
use crate::refusal::{Refusal, Result};

/// Bytes of a log after which an answer ends.
const LOG_PART: usize = 4 * 1024 * 1024;

pub(super) async fn create_pool(State(app): State<App>, request: Request) -> Result<Response> {
    let CreatePool { name, csr } = from_json(&body(request, MAXIMUM_ADMIN_REQUEST).await?)?;
    let pool = PoolId::new();
    let certificate = app.authority.issue(pool, &csr).map_err(|error| Refusal::invalid(error.to_string()))?;
    let name = name.unwrap_or_else(|| pool.to_string());
    let token = app.token(pool, &certificate);
    let answer = PoolCredentials { pool, name: name.clone(), token, certificate: certificate.clone() };
    app.store.decide(move |decision| decision.create_pool(pool, &name, &certificate)).await?;
    Ok((StatusCode::CREATED, to_json(&answer)).into_response())
}

pub(super) async fn reset_pool(State(app): State<App>, Path(pool): Path<String>, request: Request) -> Result<Response> {
    let pool: PoolId = identifier(&pool)?;
    let CreatePool { csr, .. } = from_json(&body(request, MAXIMUM_ADMIN_REQUEST).await?)?;
    let certificate = app.authority.issue(pool, &csr).map_err(|error| Refusal::invalid(error.to_string()))?;
    let answer_certificate = certificate.clone();
    let name = app
        .store
        .decide(move |decision| {
            let name = decision.pool(pool)?.name;
            let public_key = |pem: &str| PoolCertificate::from_pem(pem).map(|certificate| certificate.public_key);
            let present = decision.certificate(pool)?.unwrap_or_default();
            if let (Ok(present), Ok(next)) = (public_key(&present), public_key(&certificate))
                && present == next
            {
                return Err(Refusal::invalid(
                    "the certificate request is about the pool's present key, which a reset is to end. Make a new key",
                ));
            }
            decision.reset_pool(pool, &certificate)?;
            Ok(name)
        })
        .await?;
    let token = app.token(pool, &answer_certificate);
    Ok(to_json(&PoolCredentials { pool, name, token, certificate: answer_certificate }))
}

pub(super) async fn pools(State(app): State<App>) -> Result<Response> {
    Ok(to_json(&app.store.read(|decision| decision.pools()).await?))
}

pub(super) async fn pool(State(app): State<App>, Path(pool): Path<String>) -> Result<Response> {
    let pool = identifier(&pool)?;
    Ok(to_json(&app.store.read(move |decision| decision.pool(pool)).await?))
}

pub(super) async fn drain_pool(State(app): State<App>, Path(pool): Path<String>) -> Result<StatusCode> {
    let pool = identifier(&pool)?;
    app.store.decide(move |decision| decision.drain_pool(pool, true)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn undrain_pool(State(app): State<App>, Path(pool): Path<String>) -> Result<StatusCode> {
    let pool = identifier(&pool)?;
    app.store.decide(move |decision| decision.drain_pool(pool, false)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn cycle_pool(State(app): State<App>, Path(pool): Path<String>) -> Result<StatusCode> {
    let pool = identifier(&pool)?;
    app.store.decide(move |decision| decision.cycle_pool(pool)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn queued(State(app): State<App>) -> Result<Response> {
    Ok(to_json(&app.store.read(|decision| decision.queued(None)).await?))
}

pub(super) async fn queued_of(State(app): State<App>, Path(pool): Path<String>) -> Result<Response> {
    let pool: PoolId = identifier(&pool)?;
    let queued = app
        .store
        .read(move |decision| {
            decision.pool(pool)?;
            decision.queued(Some(pool))
        })
        .await?;
    Ok(to_json(&queued))
}

pub(super) async fn used_by(State(app): State<App>, Path(pool): Path<String>) -> Result<Response> {
    let pool = identifier(&pool)?;
    Ok(to_json(&app.store.read(move |decision| decision.used_by(pool)).await?))
}

pub(super) async fn workers(State(app): State<App>) -> Result<Response> {
    Ok(to_json(&app.store.read(|decision| decision.workers()).await?))
}

pub(super) async fn drain_worker(State(app): State<App>, Path(worker): Path<String>) -> Result<StatusCode> {
    let worker = identifier(&worker)?;
    app.store.decide(move |decision| decision.drain_worker(worker, true)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn undrain_worker(State(app): State<App>, Path(worker): Path<String>) -> Result<StatusCode> {
    let worker = identifier(&worker)?;
    app.store.decide(move |decision| decision.drain_worker(worker, false)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn stacks(State(app): State<App>) -> Result<Response> {
    let stacks = app.store.read(|decision| decision.stacks()).await?;
    Ok(to_json(&stacks.into_iter().map(without_secrets).collect::<Vec<_>>()))
}

pub(super) async fn stack(State(app): State<App>, Path(slug): Path<String>) -> Result<Response> {
    let (stack, _) = app.store.read(move |decision| decision.stack(&slug)).await?;
    Ok(to_json(&without_secrets(stack)))
}

/// What is shown of a stack: its secrets can be replaced, but not read.
fn without_secrets(mut stack: Stack) -> Stack {
    for variable in stack.environment.iter_mut().filter(|variable| variable.secret) {
        variable.value.clear();
    }
    for file in stack.files.iter_mut().filter(|file| file.secret) {
        file.contents.clear();
    }
    stack
}

pub(super) async fn apply_stack(
    State(app): State<App>,
    Path(slug): Path<String>,
    request: Request,
) -> Result<Response> {
    let stack: Stack = from_json(&body(request, MAXIMUM_ADMIN_REQUEST).await?)?;
    if stack.slug != slug {
        return Err(Refusal::invalid("the slug in the body is not the one in the path"));
    }
    let shown = without_secrets(stack.clone());
    app.store.decide(move |decision| decision.apply_stack(&stack)).await?;
    Ok(to_json(&shown))
}

pub(super) async fn upload_source(
    State(app): State<App>,
    Path(slug): Path<String>,
    request: Request,
) -> Result<StatusCode> {
    let wanted = slug.clone();
    let (stack, _) = app.store.read(move |decision| decision.stack(&wanted)).await?;
    let archive = body(request, MAXIMUM_ARCHIVE).await?;
    if !archive.starts_with(&[0x1f, 0x8b]) {
        return Err(Refusal::invalid("the source is not a gzipped tar archive: make it with `tar -czf`"));
    }
    let name: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    app.objects.put(&Key::source(stack.pool, &name), archive.to_vec()).await?;
    app.store.decide(move |decision| decision.set_archive(&slug, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn runs(State(app): State<App>) -> Result<Response> {
    Ok(to_json(&app.store.read(|decision| decision.runs()).await?))
}

pub(super) async fn create_run(State(app): State<App>, request: Request) -> Result<Response> {
    let wish: CreateRun = from_json(&body(request, MAXIMUM_ADMIN_REQUEST).await?)?;
    let run = app.store.decide(move |decision| decision.create_run(&wish)).await?;
    Ok((StatusCode::CREATED, to_json(&run)).into_response())
}

pub(super) async fn run(State(app): State<App>, Path(run): Path<String>) -> Result<Response> {
    let run = identifier(&run)?;
    Ok(to_json(&app.store.read(move |decision| decision.run(run)).await?))
}

pub(super) async fn confirm(State(app): State<App>, Path(run): Path<String>) -> Result<Response> {
    let run = identifier(&run)?;
    Ok(to_json(&app.store.decide(move |decision| decision.confirm(run)).await?))
}

pub(super) async fn discard(State(app): State<App>, Path(run): Path<String>) -> Result<Response> {
    let run = identifier(&run)?;
    Ok(to_json(&app.store.decide(move |decision| decision.discard(run)).await?))
}

pub(super) async fn stop(State(app): State<App>, Path(run): Path<String>) -> Result<Response> {
    let run = identifier(&run)?;
    Ok(to_json(&app.store.decide(move |decision| decision.stop(run)).await?))
}

pub(super) async fn cancel(State(app): State<App>, Path(run): Path<String>) -> Result<Response> {
    let run = identifier(&run)?;
    Ok(to_json(&app.store.decide(move |decision| decision.cancel(run)).await?))
}

/// The log from a byte on, of all stages one after the other, as far as it is there.
pub(super) async fn log(State(app): State<App>, Path(run): Path<String>, uri: Uri) -> Result<Response> {
    let run: RunId = identifier(&run)?;
    let from: u64 = match uri.query() {
        None => 0,
        Some(query) => query
            .strip_prefix("from=")
            .and_then(|from| from.parse().ok())
            .ok_or_else(|| Refusal::invalid("the query is not `from=BYTE`"))?,
    };
    // The state is read before the log: what was written until it ended is there then.
    let shown = app.store.read(move |decision| decision.run(run)).await?;
    let (mut position, mut part) = (0, Vec::new());
    let mut complete = shown.state.is_terminal();
    'stages: for stage in &shown.stages {
        let prefix = log_prefix(shown.pool, run, stage.assignment);
        for number in 0.. {
            let key = Key::log(&prefix, number);
            if position < from {
                let Some(length) = app.objects.length(&key).await? else { break };
                if position + length <= from {
                    position += length;
                    continue;
                }
            }
            if part.len() >= LOG_PART {
                complete = false;
                break 'stages;
            }
            let Some(chunk) = app.objects.get(&key).await? else { break };
            let skipped = usize::try_from(from.saturating_sub(position)).unwrap_or(usize::MAX).min(chunk.len());
            position += chunk.len() as u64;
            part.extend_from_slice(&chunk[skipped..]);
        }
    }
    let headers =
        [(header::CONTENT_TYPE.as_str(), "text/plain"), (LOG_COMPLETE, if complete { "true" } else { "false" })];
    Ok((headers, part).into_response())
}
