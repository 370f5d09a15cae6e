//! The server: one HTTPS listener, one session with the broker, and the clock.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::broker::Broker;
use crate::objects::{self, Objects};
use crate::store::{Store, Timing};
use crate::{authority, http, tls};

/// Connections at a time.
const MAXIMUM_CONNECTIONS: usize = 256;
/// How long a client may take for TLS, and then for the head of each request.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a request may take as a whole: a source archive over a slow line.
const CONNECTION_LIMIT: Duration = Duration::from_secs(600);
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(500);
/// The file that says that the server is ready, and where.
pub const READY: &str = "ready";
/// The file with the port that the tokens carry.
const PORT: &str = "port";

/// What the server is told.
#[derive(Debug)]
pub struct Settings {
    /// The directory of its state.
    pub data: PathBuf,
    /// Where to listen. Port 0: any free one, and the same one again after a restart.
    pub listen: SocketAddr,
    /// The name under which launchers find it.
    pub advertise_host: String,
    /// The broker: `mqtts://HOST[:PORT]`.
    pub broker: String,
    /// What all topics begin with.
    pub namespace: String,
    /// The object store.
    pub objects: objects::Configuration,
    /// Between two signs of life of a worker.
    pub heartbeat: Duration,
    /// Until a scheduled run goes to another worker.
    pub claim_timeout: Duration,
    /// Until a claimed run has failed whose worker is not there.
    pub lost_timeout: Duration,
}

/// What the file `ready` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// The API's base.
    pub api: String,
}

/// Serves until `stop` comes.
///
/// # Errors
/// It cannot begin.
pub async fn serve(
    settings: Settings,
    ready: impl FnOnce(&Ready),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let data = &settings.data;
    let authority = authority::init(data, std::slice::from_ref(&settings.advertise_host))
        .with_context(|| format!("cannot set up {}", data.display()))?;
    let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 8);
    let timing = Timing {
        heartbeat: milliseconds(settings.heartbeat),
        claim: milliseconds(settings.claim_timeout),
        lost: milliseconds(settings.lost_timeout),
    };
    let database = data.join("state.db");
    let store = Store::open(&database, timing).with_context(|| format!("cannot open {}", database.display()))?;
    let broker = Broker::new(&settings.broker, &settings.namespace, data)?;
    let objects = Objects::new(&settings.objects)?;
    let acceptor = TlsAcceptor::from(tls::server(data)?);

    let listener = listen(&settings).await?;
    let port = listener.local_addr()?.port();
    let api = format!("https://{}:{port}", settings.advertise_host);
    authority::write(&data.join(PORT), port.to_string().as_bytes(), 0o600)?;
    let token = std::fs::read(data.join(authority::ADMIN_TOKEN)).context("cannot read admin.token")?;
    let facts =
        http::Facts { broker: settings.broker.clone(), namespace: settings.namespace.clone(), api: api.clone() };
    let router = http::router(http::App::new(store.clone(), objects, authority, facts, &token)?);

    store.decide(|decision| decision.resume()).await?;
    let broker = tokio::spawn(broker.run(store.clone()));
    let clock = tokio::spawn(tick(store));
    let connections = tokio::spawn(accept(listener, acceptor, router));
    let announcement = Ready { api };
    authority::write(&data.join(READY), &serde_json::to_vec(&announcement)?, 0o600)?;
    ready(&announcement);
    stop.await;
    for task in [broker, clock, connections] {
        task.abort();
    }
    Ok(())
}

async fn listen(settings: &Settings) -> anyhow::Result<TcpListener> {
    let mut address = settings.listen;
    let remembered = std::fs::read_to_string(settings.data.join(PORT)).ok();
    if let Some(port) = remembered.filter(|_| address.port() == 0) {
        // Tokens that were given out lead to it.
        let Ok(port) = port.trim().parse() else {
            bail!("the file `{PORT}` in the data directory does not hold a port; remove it to take another port")
        };
        address.set_port(port);
    }
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; --listen names another address"))
}

async fn tick(store: Store) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = store.decide(|decision| decision.tick()).await {
            tracing::error!(%error, "what time brings about was not decided");
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, router: axum::Router) {
    let places = Arc::new(Semaphore::new(MAXIMUM_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly too many open files: others close theirs meanwhile.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection(stream, acceptor, router).await {
                tracing::debug!(error = format!("{error:#}"), "a connection ended");
            }
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: axum::Router) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await??;
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_LIMIT);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_LIMIT, serving).await? {
        Ok(()) => Ok(()),
        Err(error) => bail!("{error}"),
    }
}
