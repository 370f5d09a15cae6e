//! The MQTT session with the control plane: what it asks of this worker, and signs of life.
//!
//! One task owns the connection. It is the only one that publishes, and it publishes one message at a time: the worker's latest
//! state, which replaces whatever was not sent yet, and at the end a farewell. So nothing queues up while the broker is away.
//!
//! - The session is a persistent one: what is said while the connection is down arrives afterwards. The subscription is made
//!   anew at each connection all the same, because a broker may have lost the session, and the worker calls itself alive only
//!   after it: whoever answers is heard.
//! - A message is acknowledged once it is in the receiver's queue. While the queue is full the connection is given up, and the
//!   broker repeats the message later. Repetitions are told by their identifiers.
//! - After every disconnection the client is built anew. The one of the library keeps state over connections that can wedge it.
//! - A connection that ends soon after it was accepted counts as a failure: two workers with one identifier would otherwise
//!   push each other out as fast as they can.
//! - The last will makes the broker tell of a worker whose connection broke. [`Handle::close`] prevents it; a process that dies,
//!   or drops the handle, does not.

mod explain;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use launcher_wire::id::{MessageId, PoolId, WorkerId};
use launcher_wire::mqtt::{self, Envelope, FromWorker, ToWorker, WorkerState};
use rumqttc::{
    AckMode, AsyncClient, LastWill, MqttOptions, Outgoing, Packet, PublishOptions, QoS, SessionMode,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::metrics::{self, Waiting};
use crate::network::{Backoff, Network};

/// How often a connection without traffic is tried. AWS IoT Core allows 30 s to 20 minutes; a worker that is gone is noticed
/// after one and a half of it.
const KEEP_ALIVE: u16 = 30;
/// How long it may take until the broker has accepted the connection, with proxy and TLS. An attempt that gets no answer at all
/// delays the return by so much.
const CONNECT_TIMEOUT: u64 = 30;
/// How long the broker may take to acknowledge anything. It is gone if it takes longer.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a farewell may take altogether, before the process exits without it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that ends within this time after it was accepted was a failure.
const PROBATION: Duration = Duration::from_secs(30);
/// The limit of the first wait before connecting again.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The limit of all of them. However long a broker was away, all workers are back within half a minute after it is, with some
/// seconds left for the connections; a pool of a thousand tries eighty times a second meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
/// Events that the receiver has not taken yet. The control plane sends a handful for each run.
const QUEUE: usize = 64;
/// Identifiers of messages that are remembered. A broker repeats what it sent last.
const REMEMBERED: usize = 1024;
/// The shortest time between two signs of life, whatever the control plane asks for.
const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(1);
/// Bytes of a packet: a message with its topic and what is around it.
const MAXIMUM_PACKET: usize = mqtt::MAXIMUM_SIZE + 1024;

/// What a session is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to get to the broker.
    pub network: Network,
    /// From [`Network::broker_tls`].
    pub tls: Arc<ClientConfig>,
    /// The token's `broker`.
    pub broker: String,
    /// The token's `namespace`.
    pub namespace: String,
    /// The token's `pool`.
    pub pool: PoolId,
    /// This worker. It is the client id, too.
    pub worker: WorkerId,
    /// How often to give a sign of life.
    pub heartbeat: Duration,
    /// What this worker does.
    pub state: WorkerState,
}

/// What happens in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Messages from the control plane arrive. What was said meanwhile follows.
    Connected,
    /// The control plane says something, once.
    Message(ToWorker),
    /// There is no connection. It is tried again by itself.
    Disconnected {
        /// Why, and what to do, in one line for people.
        reason: String,
        /// When it will be tried again.
        retry_in: Duration,
    },
}

/// Why no session can be made. Whatever a network can do about it is an [`Event::Disconnected`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address.
    #[error("`broker` in the token is not mqtts://HOST[:PORT] or wss://HOST[:PORT]/PATH: {reason}")]
    Broker {
        /// What is wrong.
        reason: String,
    },
}

/// Namespace for [`Session::start`].
#[derive(Debug, Clone, Copy)]
pub struct Session;

impl Session {
    /// Begins to connect. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The broker's address is none.
    pub fn start(settings: Settings) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
        let broker = Broker::parse(&settings.broker)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let heartbeat = settings.heartbeat.max(SHORTEST_HEARTBEAT);
        let (say, said) = watch::channel(Said { state: settings.state, heartbeat });
        let (close, closing) = oneshot::channel();
        let task = Task {
            to_worker: mqtt::to_worker(&settings.namespace, settings.pool, settings.worker),
            from_worker: mqtt::from_worker(&settings.namespace, settings.pool, settings.worker),
            settings,
            broker,
            events: sender,
            said,
            closing,
            seen: Seen::default(),
            waiting: Some(metrics::shared().broker.wait()),
        };
        Ok((Handle { say, close, task: tokio::spawn(task.run()) }, receiver))
    }
}

/// What this worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    state: WorkerState,
    heartbeat: Duration,
}

/// A session. Dropping it breaks the connection, and the broker publishes the last will. Dropping the receiver of events does
/// not: signs of life go on, and messages wait at the broker.
#[derive(Debug)]
pub struct Handle {
    say: watch::Sender<Said>,
    close: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Handle {
    /// What this worker does from now on. It is said at once, or when there is a connection.
    pub fn set_state(&self, state: WorkerState) {
        self.say.send_if_modified(|said| std::mem::replace(&mut said.state, state) != state);
    }

    /// How often to give a sign of life from now on.
    pub fn set_heartbeat(&self, heartbeat: Duration) {
        let heartbeat = heartbeat.max(SHORTEST_HEARTBEAT);
        self.say.send_if_modified(|said| std::mem::replace(&mut said.heartbeat, heartbeat) != heartbeat);
    }

    /// Says farewell and disconnects, so that the last will is not published. Takes at most some seconds; without a connection
    /// there is nothing to say it to.
    pub async fn close(self) {
        let Self { say, close, mut task } = self;
        // It has ended already if the receiver is gone.
        let _ = close.send(());
        if timeout(CLOSE_TIMEOUT + Duration::from_secs(1), &mut task).await.is_err() {
            task.abort();
        }
        drop(say);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Broker {
    Tcp { host: String, port: u16 },
    WebSocket { url: String, host: String, port: u16 },
}

impl Broker {
    fn parse(address: &str) -> Result<Self, Error> {
        let invalid = |reason: &str| Error::Broker { reason: reason.to_owned() };
        let url = reqwest::Url::parse(address).map_err(|error| invalid(&error.to_string()))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("it names no host"))?;
        let host = host.to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("it must not hold a user"));
        }
        match url.scheme() {
            "mqtts" => Ok(Self::Tcp { host, port: url.port().unwrap_or(8883) }),
            "wss" => Ok(Self::WebSocket { url: address.to_owned(), host, port: url.port().unwrap_or(443) }),
            // Without TLS everybody on the way could schedule runs.
            _ => Err(invalid("it is neither mqtts:// nor wss://")),
        }
    }

    fn endpoint(&self) -> (&str, u16) {
        match self {
            Self::Tcp { host, port } | Self::WebSocket { host, port, .. } => (host, *port),
        }
    }
}

struct Task {
    settings: Settings,
    broker: Broker,
    to_worker: String,
    from_worker: String,
    events: mpsc::Sender<Event>,
    said: watch::Receiver<Said>,
    closing: oneshot::Receiver<()>,
    seen: Seen,
    /// For the broker, while there is no session.
    waiting: Option<Waiting<'static>>,
}

/// How a connection ended.
enum End {
    /// As it was asked to, or because the handle was dropped.
    Closed,
    /// By itself.
    Failed {
        reason: String,
        /// Since when the broker had accepted it.
        accepted: Option<Instant>,
    },
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let end = self.connection().await;
            metrics::shared().set_connected(false);
            let (mut reason, accepted) = match end {
                End::Closed => return,
                End::Failed { reason, accepted } => (reason, accepted),
            };
            metrics::shared().disconnections.add_one();
            self.waiting.get_or_insert_with(|| metrics::shared().broker.wait());
            match accepted.map(|since| since.elapsed()) {
                Some(lasted) if lasted >= PROBATION => backoff.reset(),
                Some(lasted) => {
                    reason = format!(
                        "{reason}. That was {} ms after the broker had accepted the connection: if it happens again and again, another launcher uses the identifier {}, or the broker's policy does not permit its topics",
                        lasted.as_millis(),
                        self.settings.worker
                    );
                }
                None => {}
            }
            let retry_in = backoff.after_failure();
            tracing::warn!(retry_in_ms = retry_in.as_millis(), "no connection to the broker: {reason}");
            // While the queue is full the receiver learns of the next connection, or of the next failure.
            let _ = self.events.try_send(Event::Disconnected { reason, retry_in });
            tokio::select! {
                () = tokio::time::sleep(retry_in) => {}
                _ = &mut self.closing => return,
            }
        }
    }

    fn options(&self) -> Result<MqttOptions, String> {
        let id = self.settings.worker.to_string();
        let tls = TlsConfiguration::Rustls(Arc::clone(&self.settings.tls));
        let mut options = match &self.broker {
            Broker::Tcp { host, port } => {
                let mut options = MqttOptions::new(id, (host.as_str(), *port));
                options.set_transport(Transport::tls_with_config(tls));
                options
            }
            Broker::WebSocket { url, .. } => MqttOptions::websocket_with_tls_config(id, url.as_str(), tls)
                .map_err(|error| format!("`broker` in the token: {error}"))?,
        };
        let (host, port) = self.broker.endpoint();
        if let Some(proxy) = self.settings.network.broker_proxy(host, port) {
            options.set_proxy(proxy);
        }
        let will = self.encoded(FromWorker::Lost {})?;
        options
            .set_last_will(LastWill::new(self.from_worker.clone(), will, QoS::AtLeastOnce, false))
            .set_session_mode(SessionMode::Persistent)
            .set_keep_alive(KEEP_ALIVE)
            .set_max_packet_size(MAXIMUM_PACKET, MAXIMUM_PACKET)
            .set_ack_mode(AckMode::Manual);
        Ok(options)
    }

    fn encoded(&self, body: FromWorker) -> Result<Vec<u8>, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(now.as_millis()).unwrap_or_default();
        Envelope::new(at, body).encode().map_err(|error| error.to_string())
    }

    async fn connection(&mut self) -> End {
        let options = match self.options() {
            Ok(options) => options,
            Err(reason) => return End::Failed { reason, accepted: None },
        };
        let (client, mut events) = AsyncClient::builder(options).capacity(2 * QUEUE).build();
        events.network_options.set_connection_timeout(CONNECT_TIMEOUT);
        let (forward, mut incoming) = mpsc::channel(QUEUE);
        // Polling is not to be interrupted: what it has half written would be lost. So it is one future from the beginning to
        // the end of the connection, and hands on what it gets.
        let polling = async move {
            loop {
                match events.poll().await {
                    Ok(event) => {
                        // Nobody listens any more only when this is about to be dropped.
                        let _ = forward.send(event).await;
                    }
                    Err(error) => return error,
                }
            }
        };
        tokio::pin!(polling);
        let mut connection = Connection {
            client,
            phase: Phase::Connecting,
            accepted: None,
            in_flight: None,
            due: false,
            announced: false,
        };
        let mut heartbeat = Instant::now() + self.said.borrow().heartbeat;
        let mut deadline = Instant::now() + 2 * Duration::from_secs(CONNECT_TIMEOUT);
        let mut close_deadline = None;
        loop {
            let before = connection.progress();
            tokio::select! {
                biased;
                Some(event) = incoming.recv() => {
                    if let Err(reason) = self.event(&mut connection, event) {
                        return connection.failed(reason);
                    }
                }
                error = &mut polling => {
                    // What came before the end, above all that the connection had been accepted.
                    while let Ok(event) = incoming.try_recv() {
                        if let Err(reason) = self.event(&mut connection, event) {
                            return connection.failed(reason);
                        }
                    }
                    return connection.failed(explain::connection(&error));
                }
                closing = &mut self.closing, if close_deadline.is_none() => {
                    // Without a handle nobody asked for a farewell.
                    if closing.is_err() || connection.accepted.is_none() {
                        return End::Closed;
                    }
                    close_deadline = Some(Instant::now() + CLOSE_TIMEOUT);
                    connection.phase = Phase::Closing;
                }
                Ok(()) = self.said.changed() => {
                    connection.due = true;
                    heartbeat = Instant::now() + self.said.borrow().heartbeat;
                }
                () = tokio::time::sleep_until(heartbeat), if connection.phase == Phase::Subscribed => {
                    connection.due = true;
                    heartbeat = Instant::now() + self.said.borrow().heartbeat;
                }
                () = tokio::time::sleep_until(deadline), if connection.awaits() => {
                    return connection.failed("the broker accepts no more messages".to_owned());
                }
                () = tokio::time::sleep_until(close_deadline.unwrap_or(deadline)), if close_deadline.is_some() => {
                    tracing::warn!("the broker did not take the farewell in time");
                    return End::Closed;
                }
            }
            if let Err(reason) = self.publish(&mut connection) {
                return connection.failed(reason);
            }
            if connection.progress() != before {
                deadline = Instant::now() + ACKNOWLEDGE_TIMEOUT;
            }
        }
    }

    fn event(&mut self, connection: &mut Connection, event: rumqttc::Event) -> Result<(), String> {
        if matches!(event, rumqttc::Event::Incoming(_)) {
            metrics::shared().broker.reached();
        }
        match event {
            rumqttc::Event::Incoming(Packet::ConnAck(_)) => {
                connection.accepted = Some(Instant::now());
                connection.phase = Phase::Subscribing;
                let topic = self.to_worker.clone();
                connection.client.try_subscribe(topic, QoS::AtLeastOnce).map_err(|error| error.to_string())
            }
            rumqttc::Event::Incoming(Packet::SubAck(answer)) => {
                if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return Err(format!(
                        "the broker does not permit this worker to read {}. Check the policy of the pool's certificate",
                        self.to_worker
                    ));
                }
                if connection.phase == Phase::Subscribing {
                    connection.phase = Phase::Subscribed;
                    connection.due = true;
                    self.announce(connection)?;
                }
                Ok(())
            }
            rumqttc::Event::Incoming(Packet::Publish(publish)) => {
                // A broker that kept the session sends what it holds before it answers the subscription.
                self.announce(connection)?;
                match self.message(&publish.payload)? {
                    Taken::Yes => connection.client.try_ack(&publish).map_err(|error| error.to_string()),
                    // This process is about to end. The next one gets it, in the same persistent session.
                    Taken::NobodyListens => Ok(()),
                }
            }
            rumqttc::Event::Incoming(Packet::PubAck(_)) => {
                if connection.in_flight.take() == Some(InFlight::Bye) {
                    connection.client.try_disconnect().map_err(|error| error.to_string())?;
                }
                Ok(())
            }
            rumqttc::Event::Outgoing(Outgoing::Disconnect) => {
                connection.phase = Phase::Disconnected;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn announce(&mut self, connection: &mut Connection) -> Result<(), String> {
        if !std::mem::replace(&mut connection.announced, true) {
            self.waiting = None;
            metrics::shared().set_connected(true);
            metrics::shared().connections.add_one();
            self.hand_on(Event::Connected)?;
        }
        Ok(())
    }

    /// An error here makes the broker repeat the message after the next connection.
    fn message(&mut self, payload: &[u8]) -> Result<Taken, String> {
        let envelope = match Envelope::<ToWorker>::decode(payload) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::warn!("passed over what the control plane sent: {error}");
                return Ok(Taken::Yes);
            }
        };
        if self.seen.contains(envelope.id) {
            tracing::debug!(id = %envelope.id, "passed over a repeated message");
            return Ok(Taken::Yes);
        }
        let taken = self.hand_on(Event::Message(envelope.body))?;
        if taken == Taken::Yes {
            self.seen.insert(envelope.id);
        }
        Ok(taken)
    }

    fn hand_on(&self, event: Event) -> Result<Taken, String> {
        match self.events.try_send(event) {
            Ok(()) => Ok(Taken::Yes),
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(Taken::NobodyListens),
            Err(mpsc::error::TrySendError::Full(_)) => Err("the launcher is too busy to take more messages".to_owned()),
        }
    }

    fn publish(&mut self, connection: &mut Connection) -> Result<(), String> {
        if connection.in_flight.is_some() {
            return Ok(());
        }
        let (body, in_flight) = match connection.phase {
            Phase::Subscribed if connection.due => {
                let state = self.said.borrow_and_update().state;
                (FromWorker::Alive { state }, InFlight::Alive)
            }
            Phase::Closing => (FromWorker::Bye {}, InFlight::Bye),
            _ => return Ok(()),
        };
        let payload = self.encoded(body)?;
        let options = PublishOptions::new(QoS::AtLeastOnce);
        connection.client.try_publish(self.from_worker.clone(), payload, options).map_err(|error| error.to_string())?;
        connection.in_flight = Some(in_flight);
        connection.due = false;
        if in_flight == InFlight::Bye {
            connection.phase = Phase::Farewell;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    /// The receiver of events was dropped.
    NobodyListens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Subscribing,
    Subscribed,
    /// A farewell is to be said.
    Closing,
    /// It is said.
    Farewell,
    /// It was acknowledged, and the broker was told that this is no accident.
    Disconnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    Alive,
    Bye,
}

struct Connection {
    client: AsyncClient,
    phase: Phase,
    accepted: Option<Instant>,
    in_flight: Option<InFlight>,
    /// Whether a sign of life is to be given.
    due: bool,
    /// Whether [`Event::Connected`] was handed on.
    announced: bool,
}

impl Connection {
    fn failed(&self, reason: String) -> End {
        match self.phase {
            Phase::Disconnected => return End::Closed,
            Phase::Closing | Phase::Farewell => {
                tracing::warn!("the broker was not told that this worker exits: {reason}");
                return End::Closed;
            }
            Phase::Connecting | Phase::Subscribing | Phase::Subscribed => {}
        }
        End::Failed { reason, accepted: self.accepted }
    }

    /// Whether the broker has something to acknowledge.
    fn awaits(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Subscribing) || self.in_flight.is_some()
    }

    fn progress(&self) -> (Phase, Option<InFlight>) {
        (self.phase, self.in_flight)
    }
}

/// The identifiers of the latest messages.
#[derive(Debug, Default)]
struct Seen {
    set: HashSet<MessageId>,
    order: VecDeque<MessageId>,
}

impl Seen {
    fn contains(&self, id: MessageId) -> bool {
        self.set.contains(&id)
    }

    fn insert(&mut self, id: MessageId) {
        if self.set.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_brokers() {
        let tcp = |host: &str, port| Broker::Tcp { host: host.to_owned(), port };
        assert_eq!(Broker::parse("mqtts://broker.test").unwrap(), tcp("broker.test", 8883));
        assert_eq!(Broker::parse("mqtts://127.0.0.1:1").unwrap(), tcp("127.0.0.1", 1));
        assert_eq!(Broker::parse("wss://broker.test/mqtt").unwrap().endpoint(), ("broker.test", 443));
        for wrong in
            ["mqtt://broker.test", "ws://broker.test", "mqtts://", "broker.test:8883", "mqtts://u:p@broker.test"]
        {
            assert!(Broker::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_latest_identifiers_are_remembered() {
        let mut seen = Seen::default();
        let first = MessageId::new();
        seen.insert(first);
        seen.insert(first);
        for _ in 1..REMEMBERED {
            seen.insert(MessageId::new());
        }
        assert!(seen.contains(first));
        seen.insert(MessageId::new());
        assert!(!seen.contains(first));
        assert_eq!((seen.set.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
    }
}
