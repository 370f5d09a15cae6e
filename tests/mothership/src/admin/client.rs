//! A client for people's API. Its calls block; it is for programs without a runtime of their own.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use launcher_wire::api::Problem;
use launcher_wire::id::{PoolId, RunId, WorkerId};
use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

use super::{CreatePool, CreateRun, LOG_COMPLETE, LogPart, Pool, PoolCredentials, Run, Stack, UsedBy, Worker};
use crate::authority::ADMIN_TOKEN;
use crate::server::{READY, Ready};
use crate::tls;

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no server to talk to, as far as the data directory says.
    #[error("{0:#}")]
    Setup(anyhow::Error),
    /// The server did not answer.
    #[error("the server does not answer: {0}")]
    Transport(String),
    /// The server said no.
    #[error("{message} (status {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The answer is not as it should be.
    #[error("the server's answer is not as it should be: {0}")]
    Answer(serde_json::Error),
}

impl Error {
    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A client. It must not be used within an asynchronous runtime.
pub struct Client {
    runtime: Runtime,
    http: reqwest::Client,
    base: String,
    token: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

type Result<T> = std::result::Result<T, Error>;

impl Client {
    /// For the server whose data directory this is.
    ///
    /// # Errors
    /// It has not been started, or its files cannot be read.
    pub fn open(data: &Path) -> Result<Self> {
        Self::try_open(data).map_err(Error::Setup)
    }

    fn try_open(data: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let read = |name: &str| {
            let path = data.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                let path = path.display();
                anyhow::anyhow!("cannot read {path}: {error}. --data names the data directory of a server that runs")
            })
        };
        let ready: Ready = serde_json::from_str(&read(READY)?).context(
            "the file `ready` in the data directory is damaged; start the server again, which writes it anew",
        )?;
        let token = read(ADMIN_TOKEN)?.trim().to_owned();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::anonymous(data)?)
            .no_proxy()
            .timeout(LIMIT)
            .build()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, http, base: ready.api, token })
    }

    /// The API's base.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(reqwest::header::HeaderMap, Vec<u8>)> {
        let request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .body(body);
        self.runtime.block_on(async {
            let transport = |error: reqwest::Error| Error::Transport(chain(&error));
            let answer = request.send().await.map_err(transport)?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let bytes = answer.bytes().await.map_err(transport)?.to_vec();
            if status.is_success() {
                return Ok((headers, bytes));
            }
            let message = match serde_json::from_slice::<Problem>(&bytes) {
                Ok(problem) => problem.message,
                Err(_) => "the server gave no reason".to_owned(),
            };
            Err(Error::Refused { status: status.as_u16(), message })
        })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let (_, bytes) = self.send(Method::GET, path, Vec::new())?;
        serde_json::from_slice(&bytes).map_err(Error::Answer)
    }

    fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl serde::Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(Error::Answer)?;
        let (_, bytes) = self.send(method, path, body)?;
        serde_json::from_slice(&bytes).map_err(Error::Answer)
    }

    fn order(&self, path: &str) -> Result<()> {
        self.send(Method::POST, path, Vec::new()).map(drop)
    }

    fn run_order(&self, run: RunId, what: &str) -> Result<Run> {
        let (_, bytes) = self.send(Method::POST, &format!("/admin/v1/runs/{run}/{what}"), Vec::new())?;
        serde_json::from_slice(&bytes).map_err(Error::Answer)
    }
}

/// The calls. Each fails if the server does not answer or says no.
#[expect(clippy::missing_errors_doc, reason = "all fail in the same two ways, see above")]
impl Client {
    /// Makes a pool from a certificate request in PEM.
    pub fn create_pool(&self, name: Option<&str>, csr: &str) -> Result<PoolCredentials> {
        let body = CreatePool { name: name.map(str::to_owned), csr: csr.to_owned() };
        self.exchange(Method::POST, "/admin/v1/pools", &body)
    }

    /// Gives a pool another key; the present one is refused from then on.
    pub fn reset_pool(&self, pool: PoolId, csr: &str) -> Result<PoolCredentials> {
        let body = CreatePool { name: None, csr: csr.to_owned() };
        self.exchange(Method::POST, &format!("/admin/v1/pools/{pool}/reset"), &body)
    }

    /// All pools.
    pub fn pools(&self) -> Result<Vec<Pool>> {
        self.get("/admin/v1/pools")
    }

    /// The pool's workers are to take no more runs.
    pub fn drain_pool(&self, pool: PoolId) -> Result<()> {
        self.order(&format!("/admin/v1/pools/{pool}/drain"))
    }

    /// The pool's workers are to take runs again.
    pub fn undrain_pool(&self, pool: PoolId) -> Result<()> {
        self.order(&format!("/admin/v1/pools/{pool}/undrain"))
    }

    /// The pool's workers are to start anew.
    pub fn cycle_pool(&self, pool: PoolId) -> Result<()> {
        self.order(&format!("/admin/v1/pools/{pool}/cycle"))
    }

    /// What uses the pool.
    pub fn used_by(&self, pool: PoolId) -> Result<UsedBy> {
        self.get(&format!("/admin/v1/pools/{pool}/used-by"))
    }

    /// All workers, the newest first.
    pub fn workers(&self) -> Result<Vec<Worker>> {
        self.get("/admin/v1/workers")
    }

    /// One worker is to take no more runs.
    pub fn drain_worker(&self, worker: WorkerId) -> Result<()> {
        self.order(&format!("/admin/v1/workers/{worker}/drain"))
    }

    /// One worker is to take runs again.
    pub fn undrain_worker(&self, worker: WorkerId) -> Result<()> {
        self.order(&format!("/admin/v1/workers/{worker}/undrain"))
    }

    /// Makes a stack or replaces it.
    pub fn apply_stack(&self, stack: &Stack) -> Result<Stack> {
        self.exchange(Method::PUT, &format!("/admin/v1/stacks/{}", stack.slug), stack)
    }

    /// All stacks, without their secrets.
    pub fn stacks(&self) -> Result<Vec<Stack>> {
        self.get("/admin/v1/stacks")
    }

    /// Gives a stack its source, a gzipped tar archive.
    pub fn upload_source(&self, slug: &str, archive: Vec<u8>) -> Result<()> {
        self.send(Method::PUT, &format!("/admin/v1/stacks/{slug}/source"), archive).map(drop)
    }

    /// Starts a run.
    pub fn create_run(&self, run: &CreateRun) -> Result<Run> {
        self.exchange(Method::POST, "/admin/v1/runs", run)
    }

    /// The newest runs.
    pub fn runs(&self) -> Result<Vec<Run>> {
        self.get("/admin/v1/runs")
    }

    /// Runs that wait for a worker.
    pub fn queued(&self) -> Result<Vec<Run>> {
        self.get("/admin/v1/queued")
    }

    /// One run with its history.
    pub fn run(&self, run: RunId) -> Result<Run> {
        self.get(&format!("/admin/v1/runs/{run}"))
    }

    /// Agrees with a plan.
    pub fn confirm(&self, run: RunId) -> Result<Run> {
        self.run_order(run, "confirm")
    }

    /// Does not agree with a plan.
    pub fn discard(&self, run: RunId) -> Result<Run> {
        self.run_order(run, "discard")
    }

    /// Ends a run.
    pub fn stop(&self, run: RunId) -> Result<Run> {
        self.run_order(run, "stop")
    }

    /// Ends a run that no worker has had.
    pub fn cancel(&self, run: RunId) -> Result<Run> {
        self.run_order(run, "cancel")
    }

    /// The log of a run from a byte on, as far as it is there.
    pub fn log(&self, run: RunId, from: u64) -> Result<LogPart> {
        let (headers, bytes) = self.send(Method::GET, &format!("/admin/v1/runs/{run}/log?from={from}"), Vec::new())?;
        let complete = headers.get(LOG_COMPLETE).is_some_and(|value| value == "true");
        Ok(LogPart { bytes, complete })
    }
}

/// An error with its causes: the outermost says only that something went wrong.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
