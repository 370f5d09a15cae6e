//! The session with the MQTT broker.

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use launcher_wire::id::{MessageId, PoolId, WorkerId};
use launcher_wire::mqtt::{self, Envelope, FromWorker};
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, PublishOptions, QoS, TlsConfiguration, Transport};

use crate::refusal::Refusal;
use crate::store::Store;
use crate::tls;

/// Seconds between two signs of life. AWS IoT Core takes 30 to 1200.
const KEEP_ALIVE: u16 = 30;
/// Messages that are sent before the broker's acknowledgement of the first is waited for.
const BATCH: u32 = 32;
/// Requests that wait within the client.
const CAPACITY: usize = 64;
/// Bytes of a packet: the largest message, its topic and the header.
const MAXIMUM_PACKET: usize = mqtt::MAXIMUM_SIZE + 1024;
/// The first and the longest pause before the next attempt to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A session that lasted this long was a good one: the next pause is a short one.
const GOOD_SESSION: Duration = Duration::from_secs(60);

/// Where the broker is.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    host: String,
    port: u16,
    namespace: String,
    tls: Arc<rustls::ClientConfig>,
    /// Messages that could not be read.
    malformed: Arc<AtomicU64>,
}

impl Broker {
    /// From its address, `mqtts://HOST[:PORT]`, with the certificate in `directory`.
    pub(crate) fn new(address: &str, namespace: &str, directory: &Path) -> anyhow::Result<Self> {
        let rest = address
            .strip_prefix("mqtts://")
            .context("the broker's address is not mqtts://HOST[:PORT]; --broker names it")?;
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => (
                host,
                port.parse()
                    .context("the port in the broker's address is not a number; --broker takes mqtts://HOST[:PORT]")?,
            ),
            None => (rest, 8883),
        };
        let tls = tls::client(directory)?;
        Ok(Self { host: host.to_owned(), port, namespace: namespace.to_owned(), tls, malformed: Arc::default() })
    }

    /// Keeps a session, for ever.
    pub(crate) async fn run(self, store: Store) {
        let mut pause = PAUSES.0;
        loop {
            let begun = Instant::now();
            // A new client and event loop each time: what an old one remembers of packets is of no use, as all that is
            // to be sent is in the database.
            let error = self.session(&store).await;
            if begun.elapsed() > GOOD_SESSION {
                pause = PAUSES.0;
            }
            let wait = pause.mul_f64(random_fraction());
            tracing::warn!(error = format!("{error:#}"), ?wait, "no session with the broker");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn session(&self, store: &Store) -> anyhow::Error {
        let client_id = format!("mothership-{}", MessageId::new());
        let mut options = MqttOptions::new(client_id, (self.host.clone(), self.port));
        options.set_keep_alive(KEEP_ALIVE);
        options.set_clean_session(true);
        options.set_max_packet_size(MAXIMUM_PACKET, MAXIMUM_PACKET);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&self.tls))));
        let (client, events) = AsyncClient::builder(options).capacity(CAPACITY).build();
        let connected = tokio::sync::Notify::new();
        tokio::select! {
            error = self.receive(&client, events, store, &connected) => error,
            error = self.send(&client, store, &connected) => error,
        }
    }

    async fn receive(
        &self,
        client: &AsyncClient,
        mut events: EventLoop,
        store: &Store,
        connected: &tokio::sync::Notify,
    ) -> anyhow::Error {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    let filter = mqtt::from_all_workers(&self.namespace);
                    // Not awaited in place: the event loop is what carries it.
                    if let Err(error) = client.try_subscribe(filter, QoS::AtLeastOnce) {
                        return anyhow::Error::new(error).context("cannot subscribe");
                    }
                }
                Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                    let is_refused =
                        |code: &rumqttc::SubscribeReasonCode| matches!(code, rumqttc::SubscribeReasonCode::Failure);
                    if ack.return_codes.iter().any(is_refused) {
                        return anyhow!(
                            "the broker refuses the subscription to what workers say; see its access rules"
                        );
                    }
                    tracing::info!(host = self.host, port = self.port, "session with the broker");
                    connected.notify_one();
                }
                Ok(Event::Incoming(Incoming::Publish(message))) => {
                    self.heard(store, &message.topic, &message.payload).await;
                }
                Ok(_) => {}
                Err(error) => return anyhow::Error::new(error).context("the connection broke"),
            }
        }
    }

    /// Sends what is in the outbox; it is there until the broker has it.
    async fn send(&self, client: &AsyncClient, store: &Store, connected: &tokio::sync::Notify) -> anyhow::Error {
        connected.notified().await;
        loop {
            let waiting = match store.read(|decision| decision.outgoing(BATCH)).await {
                Ok(waiting) => waiting,
                Err(error) => return anyhow::Error::new(error),
            };
            if waiting.is_empty() {
                store.outbox.notified().await;
                continue;
            }
            for message in waiting {
                let topic = mqtt::to_worker(&self.namespace, message.pool, message.worker);
                let result = match message.envelope.encode() {
                    Ok(bytes) => self.publish(client, topic, bytes).await,
                    Err(error) => {
                        tracing::error!(%error, "a message was not sent");
                        Ok(())
                    }
                };
                let sequence = message.sequence;
                let result = match result {
                    Ok(()) => store.forget(sequence).await.map_err(anyhow::Error::new),
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    return error;
                }
            }
        }
    }

    async fn publish(&self, client: &AsyncClient, topic: String, bytes: Vec<u8>) -> anyhow::Result<()> {
        let notice = client.publish_tracked(topic, bytes, PublishOptions::new(QoS::AtLeastOnce)).await?;
        notice.wait_async().await?;
        Ok(())
    }

    /// A worker said something. The broker's rules see to it that each writes below its own pool only.
    async fn heard(&self, store: &Store, topic: &[u8], payload: &[u8]) {
        let Some((pool, worker)) = self.sender(topic) else {
            return self.count("a topic that is no worker's");
        };
        let message = match Envelope::<FromWorker>::decode(payload) {
            Ok(envelope) => envelope.body,
            Err(error) => return self.count(&format!("{worker} of pool {pool}: {error}")),
        };
        match store.decide(move |decision| decision.heard(pool, worker, &message)).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!(%pool, %worker, "a message from a worker that is not registered"),
            Err(Refusal { message, .. }) => tracing::error!(message, "what a worker said was not taken"),
        }
    }

    fn sender(&self, topic: &[u8]) -> Option<(PoolId, WorkerId)> {
        let topic = std::str::from_utf8(topic).ok()?;
        let rest = topic.strip_prefix(self.namespace.as_str())?.strip_prefix("/writeonly/")?;
        let (pool, worker) = rest.split_once('/')?;
        Some((pool.parse().ok()?, worker.parse().ok()?))
    }

    fn count(&self, what: &str) {
        let malformed = self.malformed.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::warn!(malformed, what, "a message that cannot be read was dropped");
    }
}

/// Somewhere between 0 and 1.
fn random_fraction() -> f64 {
    // Each state of the standard library's hash map is a random one; for a pause that is good enough.
    f64::from(u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
