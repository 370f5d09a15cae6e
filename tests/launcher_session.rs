//! The launcher's MQTT session, with a real broker and a control plane at its other side.

use std::future::Future;
use std::time::{Duration, Instant};

use integration_tests::connect_proxy::{CREDENTIALS, ConnectProxy};
use integration_tests::mosquitto::{self, Mosquitto};
use integration_tests::pki::{Authority, UNRESOLVABLE, text};
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use launcher_wire::key::{PoolCertificate, PoolKey};
use launcher_wire::mqtt::{self, Envelope, FromWorker, ToWorker, WorkerState};
use rumqttc::{AsyncClient, Event as MqttEvent, MqttOptions, Packet, PublishOptions, QoS, TlsConfiguration, Transport};
use spacelift_launcher::network::{self, Network};
use spacelift_launcher::session::{Event, Handle, Session, Settings};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine, reconnecting with its random waits included.
const LIMIT: Duration = Duration::from_secs(40);
/// Long enough for what must not happen.
const QUIET: Duration = Duration::from_secs(3);

/// A broker, a control plane connected to it, and a pool.
struct World {
    authority: Authority,
    broker: Mosquitto,
    pool: PoolId,
    control: Control,
}

impl World {
    async fn new() -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.server();
        let broker = Mosquitto::start(&authority.certificate(), &certificate, &key, mosquitto::ACCESS);
        let pool = PoolId::new();
        let control = Control::connect(&authority, &broker, pool).await;
        Self { authority, broker, pool, control }
    }

    fn settings(&self, worker: WorkerId) -> Settings {
        self.settings_through(worker, network::Settings::default(), &self.authority)
    }

    /// With a pool's certificate by `issuer`.
    fn settings_through(&self, worker: WorkerId, network: network::Settings, issuer: &Authority) -> Settings {
        let network = network::Settings { token_authorities: Some(self.authority.pem()), ..network };
        let network = Network::new(&network).unwrap();
        let (certificate, key) = issuer.client(&self.pool.to_string());
        let certificate = PoolCertificate::from_pem(&text(&certificate)).unwrap();
        let key = PoolKey::from_pem(&text(&key)).unwrap();
        Settings {
            tls: network.broker_tls(&certificate, &key).unwrap(),
            network,
            broker: format!("mqtts://127.0.0.1:{}", self.broker.port()),
            namespace: mqtt::DEFAULT_NAMESPACE.to_owned(),
            pool: self.pool,
            worker,
            heartbeat: Duration::from_secs(60),
            state: WorkerState::Idle,
        }
    }
}

/// The control plane's side of the broker.
struct Control {
    client: AsyncClient,
    pool: PoolId,
    heard: mpsc::UnboundedReceiver<(String, FromWorker)>,
}

impl Control {
    async fn connect(authority: &Authority, broker: &Mosquitto, pool: PoolId) -> Self {
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
                    Ok(MqttEvent::Incoming(Packet::Publish(publish))) => {
                        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                        let envelope = Envelope::<FromWorker>::decode(&publish.payload).unwrap();
                        if said.send((topic, envelope.body)).is_err() {
                            return;
                        }
                    }
                    Ok(MqttEvent::Incoming(Packet::SubAck(_))) => drop(subscribed.send(())),
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        is_subscribed.recv().await.unwrap();
        Self { client, pool, heard }
    }

    /// Returns once the broker has it.
    async fn publish(&self, worker: WorkerId, payload: Vec<u8>) {
        let topic = mqtt::to_worker(mqtt::DEFAULT_NAMESPACE, self.pool, worker);
        let options = PublishOptions::at_least_once();
        let notice = self.client.publish_tracked(topic, payload, options).await.unwrap();
        timeout(LIMIT, notice.wait_async()).await.unwrap().unwrap();
    }

    async fn say(&self, worker: WorkerId, body: ToWorker) {
        self.publish(worker, Envelope::new(1, body).encode().unwrap()).await;
    }

    #[track_caller]
    fn hears(&mut self, worker: WorkerId, body: FromWorker) -> impl Future<Output = ()> + '_ {
        let topic = mqtt::from_worker(mqtt::DEFAULT_NAMESPACE, self.pool, worker);
        async move {
            let heard = timeout(LIMIT, self.heard.recv()).await;
            assert_eq!(heard.expect("the worker says something").unwrap(), (topic, body));
        }
    }

    async fn hears_nothing(&mut self) {
        if let Ok(heard) = timeout(QUIET, self.heard.recv()).await {
            panic!("{heard:?}");
        }
    }
}

fn run(test: impl AsyncFnOnce(World)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { test(World::new().await).await });
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(LIMIT, events.recv()).await.expect("something happens").expect("the session goes on")
}

async fn connected(settings: Settings) -> (Handle, mpsc::Receiver<Event>) {
    let (handle, mut events) = Session::start(settings).unwrap();
    assert_eq!(next(&mut events).await, Event::Connected);
    (handle, events)
}

#[track_caller]
fn reason(event: Event) -> String {
    match event {
        Event::Disconnected { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn alive(state: WorkerState) -> FromWorker {
    FromWorker::Alive { state }
}

#[test]
fn a_worker_says_what_it_does_and_goodbye() {
    run(async |mut world| {
        let worker = WorkerId::new();
        let (handle, _events) = connected(world.settings(worker)).await;
        world.control.hears(worker, alive(WorkerState::Idle)).await;
        let busy = WorkerState::Busy { run: RunId::new(), assignment: AssignmentId::new() };
        handle.set_state(busy);
        world.control.hears(worker, alive(busy)).await;
        handle.set_state(busy);
        world.control.hears_nothing().await;
        handle.set_heartbeat(Duration::from_secs(1));
        let begun = Instant::now();
        for _ in 0..3 {
            world.control.hears(worker, alive(busy)).await;
        }
        assert!(begun.elapsed() > Duration::from_millis(1500), "as often as it is told to");
        handle.close().await;
        while world.control.heard.try_recv().is_ok_and(|(_, body)| body == alive(busy)) {}
        world.control.hears_nothing().await;
    });
}

#[test]
fn the_last_will_is_for_workers_that_die() {
    run(async |mut world| {
        let worker = WorkerId::new();
        let (handle, _events) = connected(world.settings(worker)).await;
        world.control.hears(worker, alive(WorkerState::Idle)).await;
        handle.close().await;
        world.control.hears(worker, FromWorker::Bye {}).await;
        world.control.hears_nothing().await;

        let (handle, _events) = connected(world.settings(worker)).await;
        world.control.hears(worker, alive(WorkerState::Idle)).await;
        drop(handle);
        world.control.hears(worker, FromWorker::Lost {}).await;
    });
}

#[test]
fn what_is_said_while_a_worker_is_away_reaches_it_once() {
    run(async |world| {
        let worker = WorkerId::new();
        let (handle, events) = connected(world.settings(worker)).await;
        drop((handle, events));
        let (run, assignment) = (RunId::new(), AssignmentId::new());
        world.control.say(worker, ToWorker::RunStop { run, assignment }).await;
        let (handle, mut events) = connected(world.settings(worker)).await;
        assert_eq!(next(&mut events).await, Event::Message(ToWorker::RunStop { run, assignment }));
        assert!(timeout(QUIET, events.recv()).await.is_err(), "once");
        handle.close().await;
        // It was acknowledged: it does not come again.
        let (_handle, mut events) = connected(world.settings(worker)).await;
        assert!(timeout(QUIET, events.recv()).await.is_err(), "once");
    });
}

#[test]
fn a_session_survives_its_broker() {
    run(async |mut world| {
        let worker = WorkerId::new();
        let (handle, mut events) = connected(world.settings(worker)).await;
        world.control.hears(worker, alive(WorkerState::Idle)).await;
        for drained in [true, false] {
            world.broker.kill();
            let reason = reason(next(&mut events).await);
            assert!(!reason.is_empty());
            // The latest of what changes meanwhile is said afterwards.
            handle.set_state(WorkerState::Idle);
            handle.set_state(if drained { WorkerState::Drained } else { WorkerState::Idle });
            world.broker.restart();
            while next(&mut events).await != Event::Connected {}
            let state = if drained { WorkerState::Drained } else { WorkerState::Idle };
            while timeout(LIMIT, world.control.heard.recv()).await.unwrap().unwrap().1 != alive(state) {}
            let body = if drained { ToWorker::Undrain {} } else { ToWorker::Drain {} };
            world.control.say(worker, body.clone()).await;
            assert_eq!(next(&mut events).await, Event::Message(body));
        }
        assert!(timeout(QUIET, events.recv()).await.is_err(), "each of them once");
        handle.close().await;
    });
}

#[test]
fn repeated_and_strange_messages_do_no_harm() {
    run(async |world| {
        let worker = WorkerId::new();
        let (_handle, mut events) = connected(world.settings(worker)).await;
        let once = Envelope::new(1, ToWorker::Cycle {}).encode().unwrap();
        for payload in [&once[..], &once, b"", b"{}", b"\xff", br#"{"version":9}"#, &vec![b' '; 100_000], &once] {
            world.control.publish(worker, payload.to_vec()).await;
        }
        world.control.say(worker, ToWorker::Drain {}).await;
        assert_eq!(next(&mut events).await, Event::Message(ToWorker::Cycle {}));
        assert_eq!(next(&mut events).await, Event::Message(ToWorker::Drain {}));
    });
}

#[test]
fn a_queue_that_is_full_loses_nothing() {
    run(async |world| {
        let worker = WorkerId::new();
        let (_handle, mut events) = connected(world.settings(worker)).await;
        let runs: Vec<RunId> = (0..150).map(|_| RunId::new()).collect();
        for &run in &runs {
            world.control.say(worker, ToWorker::RunStop { run, assignment: AssignmentId::new() }).await;
        }
        let mut stopped = Vec::new();
        while stopped.len() < runs.len() {
            if let Event::Message(ToWorker::RunStop { run, .. }) = next(&mut events).await {
                stopped.push(run);
            }
        }
        assert_eq!(stopped, runs);
    });
}

#[test]
fn two_launchers_with_one_identifier_do_not_storm() {
    run(async |world| {
        let worker = WorkerId::new();
        let (_first, mut events) = connected(world.settings(worker)).await;
        let (_second, _others) = connected(world.settings(worker)).await;
        let reason = reason(next(&mut events).await);
        assert!(reason.contains("another launcher uses the identifier"), "{reason}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        let connections = world.broker.log().matches(&format!("as {worker}")).count();
        assert!((2..40).contains(&connections), "{connections}");
    });
}

#[test]
fn strangers_are_refused_and_told_why() {
    run(async |world| {
        let other = Authority::new();
        // A broker that the launcher does not know.
        let mut settings = world.settings(WorkerId::new());
        let trusting = network::Settings { token_authorities: Some(other.pem()), ..network::Settings::default() };
        let network = Network::new(&trusting).unwrap();
        let (certificate, key) = world.authority.client("pool");
        settings.tls = network
            .broker_tls(
                &PoolCertificate::from_pem(&text(&certificate)).unwrap(),
                &PoolKey::from_pem(&text(&key)).unwrap(),
            )
            .unwrap();
        let (_handle, mut events) = Session::start(settings).unwrap();
        let unknown = reason(next(&mut events).await);
        assert!(
            unknown.contains("authority that is not trusted") && unknown.contains("ADDITIONAL_ROOT_CA"),
            "{unknown}"
        );

        // A pool that the broker does not know.
        let settings = world.settings_through(WorkerId::new(), network::Settings::default(), &other);
        let (_handle, mut events) = Session::start(settings).unwrap();
        let refused = reason(next(&mut events).await);
        assert!(refused.contains("refused the pool's certificate"), "{refused}");

        // A broker of another name.
        let mut settings = world.settings(WorkerId::new());
        settings.broker = settings.broker.replace("127.0.0.1", "127.0.0.2");
        let (_handle, mut events) = Session::start(settings).unwrap();
        let absent = reason(next(&mut events).await);
        assert!(absent.contains("Nothing listens there"), "{absent}");
    });
}

#[test]
fn brokers_over_websocket() {
    run(async |mut world| {
        let worker = WorkerId::new();
        let settings =
            Settings { broker: format!("wss://localhost:{}/mqtt", world.broker.web_port()), ..world.settings(worker) };
        let (handle, mut events) = connected(settings).await;
        world.control.hears(worker, alive(WorkerState::Idle)).await;
        world.control.say(worker, ToWorker::Drain {}).await;
        assert_eq!(next(&mut events).await, Event::Message(ToWorker::Drain {}));
        handle.close().await;
        world.control.hears(worker, FromWorker::Bye {}).await;
        world.control.hears_nothing().await;
    });
}

#[test]
fn a_proxy_leads_to_the_broker() {
    run(async |mut world| {
        let proxy = ConnectProxy::start();
        let through = |credentials: &str, no_proxy: Option<&str>| network::Settings {
            https_proxy: Some(proxy.address(credentials)),
            no_proxy: no_proxy.map(ToOwned::to_owned),
            ..network::Settings::default()
        };
        let settings = |network, scheme: &str, port| Settings {
            broker: format!("{scheme}://{UNRESOLVABLE}:{port}/mqtt"),
            ..world.settings_through(WorkerId::new(), network, &world.authority)
        };
        let (port, web_port) = (world.broker.port(), world.broker.web_port());
        let direct = settings(through(CREDENTIALS, None), "mqtts", port);
        let web = settings(through(CREDENTIALS, None), "wss", web_port);
        let denied = settings(through("", None), "mqtts", port);
        let around = settings(through(CREDENTIALS, Some(UNRESOLVABLE)), "mqtts", port);

        for settings in [direct, web] {
            let worker = settings.worker;
            let (handle, _events) = connected(settings).await;
            world.control.hears(worker, alive(WorkerState::Idle)).await;
            handle.close().await;
            world.control.hears(worker, FromWorker::Bye {}).await;
        }
        assert_eq!(proxy.requests(), 2);

        let (_handle, mut events) = Session::start(denied).unwrap();
        let reason_of_proxy = reason(next(&mut events).await);
        assert!(reason_of_proxy.contains("proxy") && reason_of_proxy.contains("HTTPS_PROXY"), "{reason_of_proxy}");

        let before = proxy.requests();
        let (_handle, mut events) = Session::start(around).unwrap();
        let unresolved = reason(next(&mut events).await);
        assert!(unresolved.contains("cannot be resolved"), "{unresolved}");
        assert!(proxy.requests() <= before + 1, "NO_PROXY leads around it");
    });
}
