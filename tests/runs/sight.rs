//! What an operator sees of a launcher: its log, its metrics, its health, and what its service manager hears.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// How long anything that takes a moment may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Tries until there is something.
#[track_caller]
fn wait<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what}");
        thread::sleep(POLL);
    }
}

/// Where a launcher with a free port says that its metrics are.
fn metrics_address(launcher: &Launcher) -> String {
    wait("the log names no address", || {
        let log = launcher.log();
        let (_, rest) = log.split_once("metrics are at http://")?;
        Some(rest.split_once("/metrics")?.0.to_owned())
    })
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of one series.
fn value(address: &str, series: &str) -> f64 {
    let (_, text) = get(address, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in {text}")).parse().unwrap()
}

fn wait_for_value(address: &str, series: &str, expected: f64) {
    wait(series, || (value(address, series) == expected).then_some(()));
}

/// What stands for systemd.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn listen(name: &str) -> Self {
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, heard: vec![] }
    }

    /// Everything so far, as lines.
    fn heard(&mut self) -> &[String] {
        let mut bytes = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let message = String::from_utf8(bytes[..length].to_vec()).unwrap();
            self.heard.extend(message.lines().map(str::to_owned));
        }
        &self.heard
    }

    fn hears(&mut self, line: &str) {
        let begun = Instant::now();
        while !self.heard().iter().any(|other| other == line) {
            assert!(begun.elapsed() < LIMIT, "nobody says {line}: {:?}", self.heard);
            thread::sleep(POLL);
        }
    }

    fn count(&mut self, line: &str) -> usize {
        self.heard().iter().filter(|other| *other == line).count()
    }
}

#[test]
fn an_operator_sees_what_a_launcher_does_and_misses() {
    let mut world = World::new();
    let name = format!("spacelift-manager-{}", std::process::id());
    let mut manager = Manager::listen(&name);
    let launcher = world.launcher(&[
        ("SPACELIFT_LAUNCHER_METRICS_ADDRESS", "127.0.0.1:0"),
        ("SPACELIFT_LAUNCHER_LOG_FORMAT", "json"),
        ("SPACELIFT_LAUNCHER_LOG", "info,spacelift_launcher::agent=debug"),
        ("NOTIFY_SOCKET", &format!("@{name}")),
        ("WATCHDOG_USEC", "1500000"),
    ]);
    manager.hears("READY=1");
    let address = metrics_address(&launcher);
    wait_for_value(&address, "spacelift_launcher_state{state=\"idle\"}", 1.0);
    assert_eq!(get(&address, "/healthz"), (200, "idle\n".to_owned()));
    assert_eq!(value(&address, "spacelift_launcher_session_connected"), 1.0);
    assert!(value(&address, "spacelift_launcher_api_success_age_seconds") < LIMIT.as_secs_f64());

    let command = "echo one; sleep 10; echo two";
    let run = world.control_plane.begin(&world.stack("seen"), RunType::Task, Some(command));
    wait_for_value(&address, "spacelift_launcher_run_phase{phase=\"executing\"}", 1.0);
    assert_eq!(get(&address, "/healthz"), (200, "busy: executing a run\n".to_owned()));
    manager.hears("STATUS=busy: executing a run");
    world.control_plane.wait_for(run, RunState::Finished);
    wait_for_value(&address, "spacelift_launcher_state{state=\"idle\"}", 1.0);
    assert_eq!(value(&address, "spacelift_launcher_runs_taken_total"), 1.0);
    assert_eq!(value(&address, "spacelift_launcher_runs_ended_total{outcome=\"finished\"}"), 1.0);
    assert_eq!(value(&address, "spacelift_launcher_runs_ended_total{outcome=\"failed\"}"), 0.0);
    assert!(value(&address, "spacelift_launcher_run_log_lines_total") >= 2.0);
    assert_eq!(value(&address, "spacelift_launcher_spool_bytes"), 0.0);

    // A broker that is away is named, and nobody ends the launcher for it.
    world.control_plane.broker.kill();
    wait_for_value(&address, "spacelift_launcher_session_connected", 0.0);
    manager.hears("STATUS=idle; broker not reached for less than a minute");
    let unreachable = "spacelift_launcher_unreachable_seconds{peer=\"broker\"}";
    wait("the broker is missed", || (value(&address, unreachable) > 0.0).then_some(()));
    let pings = manager.count("WATCHDOG=1");
    wait("it lives", || (manager.count("WATCHDOG=1") > pings + 1).then_some(()));
    world.control_plane.broker.restart();
    wait_for_value(&address, "spacelift_launcher_mqtt_connections_total", 2.0);
    wait_for_value(&address, "spacelift_launcher_unreachable_seconds{peer=\"broker\"}", 0.0);
    assert!(value(&address, "spacelift_launcher_mqtt_disconnections_total") >= 1.0);
    assert!(value(&address, "spacelift_launcher_log_lines_total{level=\"warn\"}") >= 1.0);
    assert_eq!((manager.count("READY=1"), manager.count("STOPPING=1")), (1, 0));

    let (_, text) = get(&address, "/metrics");
    for secret in [&world.pool.token, &world.pool.private_key(), &run.to_string()] {
        assert!(!text.contains(secret), "{text}");
    }
    let log = launcher.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let has = |level: &str, module: &str, part: &str| {
        lines.iter().any(|line| {
            line["level"] == level && line["module"] == module && line["msg"].as_str().unwrap().contains(part)
        })
    };
    assert!(lines.iter().all(|line| line["ts"].is_u64()), "{log}");
    assert!(has("info", "spacelift_launcher::agent", "connected to the broker"), "{log}");
    assert!(has("debug", "spacelift_launcher::agent", "busy: executing a run"), "{log}");
    assert!(has("warn", "spacelift_launcher::session", "no connection to the broker"), "{log}");
    assert!(
        lines.iter().all(|line| line["level"] != "debug" || line["module"] == "spacelift_launcher::agent"),
        "{log}"
    );

    assert_eq!(launcher.finish(), Some(0));
    manager.hears("STOPPING=1");
}

#[test]
fn an_operators_wishes_do_not_keep_a_launcher_from_its_work() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = world.launcher(&[
        ("SPACELIFT_LAUNCHER_METRICS_ADDRESS", &taken.local_addr().unwrap().to_string()),
        ("SPACELIFT_LAUNCHER_LOG", "warn"),
        ("NOTIFY_SOCKET", "/nowhere/notify"),
    ]);
    world.control_plane.wait_for_worker(None, WorkerStatus::Idle);
    let log = launcher.log();
    assert!(
        log.contains("cannot listen at 127.0.0.1:") && log.contains("the service manager does not listen"),
        "{log}"
    );
    assert!(!log.contains("INFO") && !log.contains("registering"), "{log}");
    assert_eq!(launcher.finish(), Some(0));
}
