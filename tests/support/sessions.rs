//! What launchers' sessions talk to: a broker, and a control plane connected to it.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use launcher_wire::id::{PoolId, WorkerId};
use launcher_wire::key::{PoolCertificate, PoolKey};
use launcher_wire::mqtt::{self, Envelope, FromWorker, ToWorker, WorkerState};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, PublishOptions, QoS, TlsConfiguration, Transport};
use spacelift_launcher::network::{self, Network};
use spacelift_launcher::session::Settings;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::mosquitto::{self, Mosquitto};
use crate::pki::{Authority, text};

/// Longer than anything here takes on a busy machine, reconnecting with its random waits included.
pub const LIMIT: Duration = Duration::from_secs(40);
/// Long enough for what must not happen.
pub const QUIET: Duration = Duration::from_secs(3);

/// A broker, a control plane connected to it, and a pool.
#[derive(Debug)]
pub struct World {
    /// Who issued all of their certificates.
    pub authority: Authority,
    /// The broker.
    pub broker: Mosquitto,
    /// The pool.
    pub pool: PoolId,
    /// The control plane.
    pub control: Control,
}

impl World {
    /// Starts a broker, and connects a control plane to it.
    ///
    /// # Panics
    /// The broker does not start.
    pub async fn new() -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.server();
        let broker = Mosquitto::start(&authority.certificate(), &certificate, &key, mosquitto::ACCESS);
        let pool = PoolId::new();
        let control = Control::connect(&authority, &broker, pool).await;
        Self { authority, broker, pool, control }
    }

    /// Of a session of this worker.
    ///
    /// # Panics
    /// No certificate can be made.
    pub fn settings(&self, worker: WorkerId) -> Settings {
        self.settings_through(worker, network::Settings::default(), &self.authority)
    }

    /// With a pool's certificate by `issuer`.
    ///
    /// # Panics
    /// No certificate can be made, or the network's settings are wrong.
    pub fn settings_through(&self, worker: WorkerId, network: network::Settings, issuer: &Authority) -> Settings {
        let network = network::Settings { token_authorities: Some(self.authority.pem()), ..network };
        let (certificate, key) = issuer.client(&self.pool.to_string());
        settings(self.broker.port(), &network, &certificate, &key, self.pool, worker)
    }
}

/// Of a session of this worker with the broker at this port. `certificate` and `key` are the pool's, files in PEM.
///
/// # Panics
/// They cannot be read, or the network's settings are wrong.
pub fn settings(
    port: u16,
    network: &network::Settings,
    certificate: &Path,
    key: &Path,
    pool: PoolId,
    worker: WorkerId,
) -> Settings {
    let network = Network::new(network).unwrap();
    let certificate = PoolCertificate::from_pem(&text(certificate)).unwrap();
    let key = PoolKey::from_pem(&text(key)).unwrap();
    Settings {
        tls: network.broker_tls(&certificate, &key).unwrap(),
        network,
        broker: format!("mqtts://127.0.0.1:{port}"),
        namespace: mqtt::DEFAULT_NAMESPACE.to_owned(),
        pool,
        worker,
        heartbeat: Duration::from_secs(60),
        state: WorkerState::Idle,
    }
}

/// The control plane's side of the broker.
#[derive(Debug)]
pub struct Control {
    client: AsyncClient,
    pool: PoolId,
    /// What workers say: topic and message.
    pub heard: mpsc::UnboundedReceiver<(String, FromWorker)>,
}

impl Control {
    /// Connects, and does so again whenever the connection is gone.
    ///
    /// # Panics
    /// The first time it does not work.
    pub async fn connect(authority: &Authority, broker: &Mosquitto, pool: PoolId) -> Self {
        let (certificate, key) = authority.client("control-plane");
        let network = network::Settings { token_authorities: Some(authority.pem()), ..network::Settings::default() };
        let certificate = PoolCertificate::from_pem(&text(&certificate)).unwrap();
        let tls = Network::new(&network).unwrap().broker_tls(&certificate, &PoolKey::from_pem(&text(&key)).unwrap());
        let mut options = MqttOptions::new("control-plane", ("127.0.0.1", broker.port()));
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.unwrap())));
        options.set_clean_session(false).set_max_packet_size(mqtt::MAXIMUM_SIZE, mqtt::MAXIMUM_SIZE);
        let (client, mut events) = AsyncClient::builder(options).capacity(64).build();
        client.subscribe(mqtt::from_all_workers(mqtt::DEFAULT_NAMESPACE), QoS::AtLeastOnce).await.unwrap();
        let (said, heard) = mpsc::unbounded_channel();
        let (subscribed, mut is_subscribed) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                        let envelope = Envelope::<FromWorker>::decode(&publish.payload).unwrap();
                        if said.send((topic, envelope.body)).is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => drop(subscribed.send(())),
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        is_subscribed.recv().await.unwrap();
        Self { client, pool, heard }
    }

    /// Returns once the broker has it.
    ///
    /// # Panics
    /// It does not take it in time.
    pub async fn publish(&self, worker: WorkerId, payload: Vec<u8>) {
        let options = PublishOptions::at_least_once();
        let notice = self.client.publish_tracked(self.topic(worker), payload, options).await.unwrap();
        timeout(LIMIT, notice.wait_async()).await.unwrap().unwrap();
    }

    /// As [`Self::publish`].
    ///
    /// # Panics
    /// As for [`Self::publish`].
    pub async fn say(&self, worker: WorkerId, body: ToWorker) {
        self.publish(worker, Envelope::new(1, body).encode().unwrap()).await;
    }

    /// Returns once it is on its way: for messages to many, one after the other.
    ///
    /// # Panics
    /// It is not on its way in time.
    pub async fn send(&self, worker: WorkerId, body: ToWorker) {
        let payload = Envelope::new(1, body).encode().unwrap();
        let sent = self.client.publish(self.topic(worker), payload, PublishOptions::at_least_once());
        timeout(LIMIT, sent).await.unwrap().unwrap();
    }

    fn topic(&self, worker: WorkerId) -> String {
        mqtt::to_worker(mqtt::DEFAULT_NAMESPACE, self.pool, worker)
    }

    /// Waits for the next that any worker says, which is this.
    ///
    /// # Panics
    /// It is another, or nothing.
    #[track_caller]
    pub fn hears(&mut self, worker: WorkerId, body: FromWorker) -> impl Future<Output = ()> + '_ {
        let topic = mqtt::from_worker(mqtt::DEFAULT_NAMESPACE, self.pool, worker);
        async move {
            let heard = timeout(LIMIT, self.heard.recv()).await;
            assert_eq!(heard.expect("the worker says something").unwrap(), (topic, body));
        }
    }

    /// No worker says anything for a while.
    ///
    /// # Panics
    /// One does.
    pub async fn hears_nothing(&mut self) {
        if let Ok(heard) = timeout(QUIET, self.heard.recv()).await {
            panic!("{heard:?}");
        }
    }
}
