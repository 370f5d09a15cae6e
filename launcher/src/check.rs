//! `spacelift-launcher check`: whether a launcher could work here, without taking a run.
//!
//! Every part is tried, also after another one has failed, so that whoever sets up a host sees all that is wrong at once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use launcher_wire::api::Registration;
use launcher_wire::id::WorkerId;
use launcher_wire::mqtt::WorkerState;
use tokio::sync::mpsc;

use crate::api_client::ApiClient;
use crate::config::Config;
use crate::docker::Engine;
use crate::network::Network;
use crate::registry_credentials::{self, Reference};
use crate::session::{self, Session};
use crate::worker_binary;

/// How long control plane and broker are tried.
const LIMIT: Duration = Duration::from_secs(20);
/// The sign of life of a session that is over before the first one.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The worker inside, and the directory on the host.
    Worker,
    /// The container engine.
    Docker,
    /// The runner image of stacks that name none.
    Image,
    /// The control plane's API, with a registration that is taken back.
    Api,
    /// The broker.
    Broker,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Docker => "Docker engine",
            Self::Image => "runner image",
            Self::Api => "API",
            Self::Broker => "broker",
        })
    }
}

/// What was found: where it is, or what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub part: Part,
    /// One line for people.
    pub result: Result<String, String>,
}

/// Tries everything.
pub async fn run(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding { part: Part::Worker, result: worker(config) }];
    match docker(config).await {
        Ok((engine, found)) => {
            findings.push(Finding { part: Part::Docker, result: Ok(found) });
            findings.push(Finding { part: Part::Image, result: image(config, &engine).await });
        }
        Err(reason) => findings.push(Finding { part: Part::Docker, result: Err(reason) }),
    }
    // Not the one that a launcher here has: it may be at work.
    let id = WorkerId::new();
    match config.network() {
        Ok(network) => {
            let api = api(config, &network, id).await.map_err(|reason| format!("{}: {reason}", config.token.api));
            findings.push(Finding { part: Part::Api, result: api });
            let broker = broker(config, &network, id).await;
            let broker = broker.map_err(|reason| format!("{}: {reason}", config.token.broker));
            findings.push(Finding { part: Part::Broker, result: broker });
        }
        Err(error) => findings.push(Finding { part: Part::Api, result: Err(error.to_string()) }),
    }
    findings
}

fn worker(config: &Config) -> Result<String, String> {
    let embedded = worker_binary::embedded().ok_or_else(|| worker_binary::Error::NotEmbedded.to_string())?;
    let file = embedded.ready(&config.directory).map_err(|error| error.to_string())?;
    file.confirm().map_err(|error| error.to_string())?;
    Ok(format!("{} at {}", embedded.version, file.path().display()))
}

async fn docker(config: &Config) -> Result<(Engine, String), String> {
    let engine = Engine::connect(config.docker_host.as_deref()).await.map_err(|error| error.to_string())?;
    engine.ping().await.map_err(|error| error.to_string())?;
    let address = config.docker_host.clone().unwrap_or_else(|| "the usual socket".to_owned());
    Ok((engine, format!("answers at {address}")))
}

async fn image(config: &Config, engine: &Engine) -> Result<String, String> {
    let image = &config.default_image;
    let credentials = match Reference::parse(image) {
        Ok(reference) => {
            let network = config.network().map_err(|error| error.to_string())?;
            let http = network.object_store_client().map_err(|error| error.to_string())?;
            registry_credentials::for_image(config.docker_config_dir.as_deref(), &reference, &http)
                .await
                .map_err(|error| error.to_string())?
        }
        Err(_) => None,
    };
    engine.pull(image, credentials, &mut |_| ()).await.map_err(|error| error.to_string())?;
    Ok(format!("{image} can be pulled"))
}

async fn api(config: &Config, network: &Network, worker: WorkerId) -> Result<String, String> {
    let http = network.api_client().map_err(|error| error.to_string())?;
    let api = ApiClient::new(http, &config.token.api, config.key.clone(), config.token.pool, worker);
    let api = api.map_err(|error| error.to_string())?;
    let registration = Registration {
        launcher_version: env!("CARGO_PKG_VERSION").to_owned(),
        worker_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        metadata: BTreeMap::new(),
        // Nobody offers it a run meanwhile.
        state: WorkerState::Drained,
    };
    api.register(&registration, Some(LIMIT)).await.map_err(|error| error.to_string())?;
    api.deregister(Some(LIMIT)).await.map_err(|error| error.to_string())?;
    Ok(format!("{} accepts pool {}", config.token.api, config.token.pool))
}

async fn broker(config: &Config, network: &Network, worker: WorkerId) -> Result<String, String> {
    let tls = network.broker_tls(&config.certificate, &config.key).map_err(|error| error.to_string())?;
    let (handle, mut events) = Session::start(session::Settings {
        network: network.clone(),
        tls,
        broker: config.token.broker.clone(),
        namespace: config.token.namespace.clone(),
        pool: config.token.pool,
        worker,
        heartbeat: HEARTBEAT,
        state: WorkerState::Drained,
    })
    .map_err(|error| error.to_string())?;
    let result = tokio::time::timeout(LIMIT, connected(&mut events)).await;
    handle.close().await;
    match result {
        Ok(result) => result.map(|()| format!("{} accepts the pool's certificate", config.token.broker)),
        Err(_) => Err(format!(
            "it does not answer within {} s: check that a firewall lets this host reach it",
            LIMIT.as_secs()
        )),
    }
}

async fn connected(events: &mut mpsc::Receiver<session::Event>) -> Result<(), String> {
    match events.recv().await {
        Some(session::Event::Connected | session::Event::Message(_)) => Ok(()),
        Some(session::Event::Disconnected { reason, .. }) => Err(reason),
        None => Err("the session ended".to_owned()),
    }
}
