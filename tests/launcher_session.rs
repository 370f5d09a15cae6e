//! The launcher's MQTT session, with a real broker and a control plane at its other side.

use std::time::{Duration, Instant};

use integration_tests::connect_proxy::{CREDENTIALS, ConnectProxy};
use integration_tests::pki::{Authority, UNRESOLVABLE, text};
use integration_tests::sessions::{LIMIT, QUIET, World};
use launcher_wire::id::{AssignmentId, RunId, WorkerId};
use launcher_wire::key::{PoolCertificate, PoolKey};
use launcher_wire::mqtt::{Envelope, FromWorker, ToWorker, WorkerState};
use spacelift_launcher::network::{self, Network};
use spacelift_launcher::session::{Event, Handle, Session, Settings};
use tokio::sync::mpsc;
use tokio::time::timeout;

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

/// How many sessions go through it together. `cargo xtask bench sessions` does it with ten times as many.
const FLEET: usize = 100;
/// How long it may take until all of them are back. What is promised for a pool of a thousand.
const BACK: Duration = Duration::from_secs(30);

/// What one of many sessions went through.
#[derive(Debug, Default)]
struct Fate {
    failures: i32,
    /// Since the broker was killed: how long it meant to wait altogether.
    waited: Duration,
    /// The first of these waits.
    first: Option<Duration>,
    /// Since the broker was killed.
    connected: Vec<Instant>,
    /// It got what was said to it after that.
    is_told: bool,
}

#[test]
fn many_sessions_come_back_after_their_broker_and_not_at_once() {
    run(async |mut world| {
        let template = world.settings(WorkerId::new());
        let (report, mut reports) = mpsc::unbounded_channel();
        let mut handles = vec![];
        let workers: Vec<_> = (0..FLEET).map(|_| WorkerId::new()).collect();
        for (index, &worker) in workers.iter().enumerate() {
            let (handle, mut events) = Session::start(Settings { worker, ..template.clone() }).unwrap();
            handles.push(handle);
            let report = report.clone();
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    let _ = report.send((index, Instant::now(), event));
                }
            });
        }
        let mut fates: Vec<Fate> = workers.iter().map(|_| Fate::default()).collect();
        let mut connected = 0;
        while connected < FLEET {
            match timeout(LIMIT, reports.recv()).await.expect("all of them connect").unwrap() {
                (_, _, Event::Connected) => connected += 1,
                (index, _, Event::Disconnected { .. }) => fates[index].failures += 1,
                (_, _, other) => panic!("{other:?}"),
            }
        }

        let killed = Instant::now();
        world.broker.kill();
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.broker.restart();
        let restarted = Instant::now();
        while !fates.iter().all(|fate| fate.is_told) {
            let left = BACK.saturating_sub(restarted.elapsed());
            let Ok(Some((index, at, event))) = timeout(left, reports.recv()).await else {
                let away: Vec<_> = fates.iter().filter(|fate| !fate.is_told).collect();
                panic!("{} of {FLEET} are not back: {away:?}", away.len());
            };
            let fate = &mut fates[index];
            match event {
                Event::Connected => {
                    fate.connected.push(at);
                    world.control.send(workers[index], ToWorker::Drain {}).await;
                }
                Event::Message(message) => {
                    assert_eq!(message, ToWorker::Drain {});
                    fate.is_told = true;
                }
                Event::Disconnected { retry_in, .. } => {
                    let limit = Duration::from_secs(1) * 2_u32.pow(fate.failures.min(5).unsigned_abs());
                    assert!(retry_in <= limit, "{retry_in:?} after {} failures", fate.failures);
                    fate.failures += 1;
                    fate.waited += retry_in;
                    fate.first.get_or_insert(retry_in);
                }
            }
        }
        let log = world.broker.log();
        for (worker, fate) in workers.iter().zip(&fates) {
            assert_eq!(fate.connected.len(), 1, "{worker} {fate:?}");
            assert_eq!(log.matches(&format!("as {worker} ")).count(), 1, "{worker} connects once");
            // It may be noticed late that it is back, but the broker did not go before it was killed.
            assert!(fate.connected[0] - killed >= fate.waited, "{worker} did not wait as it said: {fate:?}");
        }
        // Out of a hundred, each quarter gets 25 or so, and fewer than 5 less often than once in a million times.
        for quarter in 0..4 {
            let [from, to] = [quarter, quarter + 1].map(|number| Duration::from_millis(250) * number);
            let there = fates.iter().filter(|fate| fate.first.is_some_and(|first| from <= first && first < to));
            assert!(there.count() >= 5, "first waits are spread over a second: {fates:?}");
        }
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
