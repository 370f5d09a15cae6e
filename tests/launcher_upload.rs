//! The launcher's API client and uploads: a control plane that verifies every signature, and an object store that verifies
//! every address it signed. Between them and the launcher things go wrong.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use integration_tests::connect_proxy::{CREDENTIALS, ConnectProxy};
use integration_tests::fault_proxy::{Fault, FaultProxy};
use integration_tests::pki::{Authority, UNRESOLVABLE, text};
use integration_tests::s3_store::{ACCESS_KEY, BUCKET, S3Store, SECRET_KEY};
use launcher_wire::api::{
    Claim, Job, LogSummary, Object, ObjectRequest, Operation, Outcome, Presigned, Problem, Registered, Registration,
    Report, RunState, RunType, Source, Stage, StateChange, Tool,
};
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use launcher_wire::key::PoolKey;
use launcher_wire::mqtt::WorkerState;
use launcher_wire::signature;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use spacelift_launcher::api_client::{self, ApiClient};
use spacelift_launcher::network::{self, Network};
use spacelift_launcher::slot;
use spacelift_launcher::spool;
use spacelift_launcher::transfer::Transfer;
use spacelift_launcher::upload::{self, Log, Parcel, Settings, Store};

const STORE: &str = env!("CARGO_BIN_EXE_strict-s3");
const LIMIT: u64 = 64 * 1024 * 1024;

/// One authority, one server and one pool for all tests: keys take a while.
struct Pki {
    authority: String,
    certificate: String,
    key: String,
    pool: PoolKey,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    // Its directory goes at once: nothing that is in a static is ever dropped.
    PKI.get_or_init(|| {
        let authority = Authority::new();
        let (certificate, key) = authority.server();
        let (_, pool) = authority.client("pool");
        Pki {
            authority: authority.pem(),
            certificate: text(&certificate),
            key: text(&key),
            pool: PoolKey::from_pem(&text(&pool)).unwrap(),
        }
    })
}

/// What the control plane does instead of what it should.
#[derive(Debug, Clone)]
enum Mistake {
    Status(u16, &'static str),
    /// From somebody on the way, who is not the API.
    Page(u16),
    Body(String),
    Silence,
    CutOff,
}

/// A request as it came.
#[derive(Debug, Clone)]
struct Seen {
    request: String,
    nonce: String,
    at: Instant,
}

/// A control plane for one run. It ends when this is dropped.
struct ControlPlane {
    port: u16,
    state: Arc<State>,
}

struct State {
    tls: Arc<ServerConfig>,
    pool: PoolId,
    worker: WorkerId,
    /// Where objects are, as the launcher is to reach them.
    store: String,
    mistakes: Mutex<VecDeque<Mistake>>,
    seen: Mutex<Vec<Seen>>,
    ended: AtomicBool,
}

impl ControlPlane {
    fn start(store: &str) -> Self {
        let Pki { certificate, key, .. } = pki();
        let chain = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let state = Arc::new(State {
            tls: Arc::new(tls.with_no_client_auth().with_single_cert(vec![chain], key).unwrap()),
            pool: PoolId::new(),
            worker: WorkerId::new(),
            store: store.to_owned(),
            mistakes: Mutex::default(),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&shared);
                // A connection ends with an error when the launcher closes it.
                thread::spawn(move || serve(&state, client));
            }
        });
        Self { port, state }
    }

    fn will(&self, mistakes: impl IntoIterator<Item = Mistake>) {
        self.state.mistakes.lock().unwrap().extend(mistakes);
    }

    fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    fn client(&self) -> ApiClient {
        self.client_at(&format!("https://127.0.0.1:{}/base/", self.port), &pki().pool, network::Settings::default())
    }

    fn client_at(&self, address: &str, key: &PoolKey, network: network::Settings) -> ApiClient {
        let settings = network::Settings { token_authorities: Some(pki().authority.clone()), ..network };
        let http = Network::new(&settings).unwrap().api_client().unwrap();
        ApiClient::new(http, address, key.clone(), self.state.pool, self.state.worker).unwrap()
    }

    fn store(&self) -> Store {
        let http = Network::new(&network::Settings::default()).unwrap().object_store_client().unwrap();
        Store::new(self.client(), http, RunId::new(), AssignmentId::new())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn serve(state: &State, client: TcpStream) -> io::Result<()> {
    let tls = ServerConnection::new(Arc::clone(&state.tls)).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(tls, client);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.lines();
        let line = lines.next().unwrap_or_default().to_owned();
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let Some((status, body)) = answer(state, &line, &headers, &body) else { return Ok(()) };
        let extra = if status == 429 { "Retry-After: 1\r\n" } else { "Location: https://localhost/\r\n" };
        write!(stream, "HTTP/1.1 {status} X\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len())?;
        stream.flush()?;
    }
}

fn json(value: &impl Serialize) -> Option<(u16, String)> {
    Some((200, serde_json::to_string(value).unwrap()))
}

fn answer(state: &State, line: &str, headers: &BTreeMap<String, String>, body: &[u8]) -> Option<(u16, String)> {
    let problem = |status, message: String| Some((status, serde_json::to_string(&Problem { message }).unwrap()));
    let (method, path) = line.trim_end_matches(" HTTP/1.1").split_once(' ')?;
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let signed = signature::Headers {
        content_digest: header(signature::CONTENT_DIGEST),
        worker: header(signature::WORKER),
        signature_input: header(signature::SIGNATURE_INPUT),
        signature: header(signature::SIGNATURE),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let request = signature::Request { method, path, body };
    let signed = match signature::verify(&pki().pool.public(), &signed, now, request) {
        Ok(signed) => signed,
        Err(error) => return problem(401, error.to_string()),
    };
    assert_eq!((signed.pool, signed.worker), (state.pool, state.worker));
    let seen = Seen { request: format!("{method} {path}"), nonce: signed.nonce, at: Instant::now() };
    state.seen.lock().unwrap().push(seen);
    match state.mistakes.lock().unwrap().pop_front() {
        Some(Mistake::Status(status, message)) => return problem(status, message.to_owned()),
        Some(Mistake::Page(status)) => return Some((status, "<html>default backend</html>".to_owned())),
        Some(Mistake::Body(body)) => return Some((200, body)),
        Some(Mistake::CutOff) => return None,
        Some(Mistake::Silence) => {
            thread::sleep(Duration::from_secs(5));
            return None;
        }
        None => {}
    }
    let run = path.strip_prefix("/base/v1/runs/").and_then(|rest| rest.split_once('/'));
    match (method, run) {
        ("PUT", None) => json(&Registered { heartbeat: 30, drained: false }),
        ("DELETE", None) => Some((204, String::new())),
        ("POST", Some((run, "claim"))) => {
            let Claim { assignment } = serde_json::from_slice(body).unwrap();
            json(&job(run.parse().unwrap(), assignment))
        }
        ("POST", Some((_, "state" | "outcome"))) => Some((204, String::new())),
        ("POST", Some((run, "object"))) => {
            let request: ObjectRequest = serde_json::from_slice(body).unwrap();
            let method = if request.operation == Operation::Put { "PUT" } else { "GET" };
            let key = match request.object {
                Object::Log { number } => format!("{run}-log-{number:06}"),
                other => format!("{run}-{other:?}"),
            };
            let url = presign(method, &state.store, &key);
            json(&Presigned { url, headers: BTreeMap::new(), expires: now + 60 })
        }
        _ => problem(404, "no such thing".to_owned()),
    }
}

fn job(run: RunId, assignment: AssignmentId) -> Job {
    Job {
        run,
        assignment,
        run_type: RunType::Task,
        stage: Stage::Task,
        stack_id: "stack".to_owned(),
        commit: String::new(),
        image: None,
        tool: Tool::Custom,
        command: None,
        source: Source::None {},
        source_sha256: None,
        project_root: String::new(),
        environment: Vec::new(),
        files: Vec::new(),
        hooks: launcher_wire::api::Hooks::default(),
        workflow: None,
        restore_workspace: false,
        keep_workspace: false,
        policy_input: serde_json::Map::new(),
    }
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|key| key ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// An address by AWS Signature Version 4 in the query, as AWS documents it.
fn presign(method: &str, endpoint: &str, key: &str) -> String {
    let host = endpoint.strip_prefix("http://").unwrap();
    let time = integration_tests::run::succeed(integration_tests::run::tool("date").args(["-u", "+%Y%m%dT%H%M%SZ"]));
    let (time, day) = (time.trim(), &time[..8]);
    let scope = format!("{day}/eu-west-1/s3/aws4_request");
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={ACCESS_KEY}%2F{}&X-Amz-Date={time}&X-Amz-Expires=60&X-Amz-SignedHeaders=host",
        scope.replace('/', "%2F")
    );
    let canonical = format!("{method}\n/{BUCKET}/{key}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{:x}", Sha256::digest(canonical));
    let secret = format!("AWS4{SECRET_KEY}").into_bytes();
    let key_of_day = [day, "eu-west-1", "s3", "aws4_request"].iter().fold(secret, |key, part| hmac(&key, part));
    let signature: String = hmac(&key_of_day, &text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{endpoint}/{BUCKET}/{key}?{query}&X-Amz-Signature={signature}")
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

fn registration() -> Registration {
    Registration {
        launcher_version: "0.1.0".to_owned(),
        worker_version: "0.1.0".to_owned(),
        architecture: "x86_64".to_owned(),
        metadata: BTreeMap::new(),
        state: WorkerState::Idle,
    }
}

const SOON: Option<Duration> = Some(Duration::from_secs(20));

#[test]
fn every_request_of_the_api() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        let (client, run, assignment) = (plane.client(), RunId::new(), AssignmentId::new());
        assert_eq!(client.register(&registration(), SOON).await.unwrap().heartbeat, 30);
        assert_eq!(*client.claim(run, &Claim { assignment }, SOON).await.unwrap(), job(run, assignment));
        client.state(run, &StateChange { assignment, state: RunState::Preparing }, SOON).await.unwrap();
        let object = ObjectRequest { assignment, object: Object::Log { number: 0 }, operation: Operation::Put };
        assert!(client.object(run, &object, SOON).await.unwrap().url.contains("X-Amz-Signature"));
        let log = LogSummary { chunks: 0, lines: 0, bytes: 0, sha256: String::new() };
        let report = Report {
            assignment,
            outcome: Outcome::Finished,
            message: String::new(),
            changes: None,
            log,
            workspace: false,
            outputs: false,
        };
        client.outcome(run, &report, SOON).await.unwrap();
        client.deregister(SOON).await.unwrap();
        let requests: Vec<String> = plane.seen().into_iter().map(|seen| seen.request).collect();
        let worker = plane.state.worker;
        let expected = ["claim", "state", "object", "outcome"].map(|what| format!("POST /base/v1/runs/{run}/{what}"));
        assert_eq!(requests[0], format!("PUT /base/v1/workers/{worker}"));
        assert_eq!(requests[1..5], expected);
        assert_eq!(requests[5], format!("DELETE /base/v1/workers/{worker}"));
    });
}

#[test]
fn what_may_pass_is_tried_again_and_signed_anew() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        plane.will([Mistake::Status(500, "a"), Mistake::Status(429, "b"), Mistake::CutOff, Mistake::Status(503, "c")]);
        // A load balancer whose servers are away knows nothing of workers and runs.
        plane.will([404, 409, 403].map(Mistake::Page));
        plane.client().register(&registration(), None).await.unwrap();
        let seen = plane.seen();
        assert_eq!(seen.len(), 8);
        assert_eq!(seen.iter().map(|seen| &seen.nonce).collect::<HashSet<_>>().len(), 8, "each nonce counts once");
        assert!(seen[2].at - seen[1].at >= Duration::from_secs(1), "Retry-After is heeded");
    });
}

#[test]
fn what_was_refused_is_not_tried_again() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        let client = plane.client();
        let mut expected = 0;
        for status in [400, 403, 404, 413, 422] {
            plane.will([Mistake::Status(status, "because\nof hunter2")]);
            let error = client.register(&registration(), None).await.unwrap_err();
            assert!(matches!(&error, api_client::Error::Refused { status: found, .. } if *found == status), "{error}");
            assert!(error.to_string().contains("because of"), "{error}");
            expected += 1;
        }
        plane.will([Mistake::Status(409, "given to another")]);
        let claim = Claim { assignment: AssignmentId::new() };
        let error = client.claim(RunId::new(), &claim, None).await.unwrap_err();
        assert!(matches!(error, api_client::Error::Gone { .. }), "{error}");
        // A redirection, pages of proxies, and an answer without end.
        let large = "x".repeat(launcher_wire::api::MAXIMUM_BODY + 1);
        for mistake in [
            Mistake::Status(302, ""),
            Mistake::Body("<html>hunter2".to_owned()),
            Mistake::Body("{\"heartbeat\":\"hunter2\"}".to_owned()),
            Mistake::Body(large),
        ] {
            plane.will([mistake]);
            let error = client.register(&registration(), None).await.unwrap_err();
            assert!(matches!(error, api_client::Error::Invalid { .. }), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert_eq!(plane.seen().len(), expected + 1 + 4, "each of them once");
        // The key of another pool.
        let other = Authority::new();
        let (_, key) = other.client("other");
        let stranger = PoolKey::from_pem(&text(&key)).unwrap();
        let address = format!("https://127.0.0.1:{}/base", plane.port);
        let stranger = plane.client_at(&address, &stranger, network::Settings::default());
        let error = stranger.register(&registration(), None).await.unwrap_err().to_string();
        assert!(error.contains("401") && error.contains("clock"), "{error}");
    });
}

#[test]
fn deadlines_hold() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        plane.will([Mistake::Silence]);
        let client = plane.client();
        let nobody = plane.client_at("https://127.0.0.1:1", &pki().pool, network::Settings::default());
        for client in [client, nobody] {
            let begun = Instant::now();
            let error = client.register(&registration(), Some(Duration::from_secs(2))).await.unwrap_err();
            assert!(matches!(error, api_client::Error::Unreachable { .. }), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        }
        // What was the matter is not hidden by an attempt that the deadline cut short.
        plane.will([Mistake::Status(503, "{}"), Mistake::Silence]);
        let error =
            plane.client().register(&registration(), Some(Duration::from_secs(2))).await.unwrap_err().to_string();
        assert!(error.contains("503"), "{error}");
    });
}

#[test]
fn only_known_authorities_are_talked_to_and_proxies_are_used() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        let address = format!("https://127.0.0.1:{}/base", plane.port);
        let other = Network::new(&network::Settings {
            token_authorities: Some(Authority::new().pem()),
            ..network::Settings::default()
        });
        let http = other.unwrap().api_client().unwrap();
        let (pool, worker) = (plane.state.pool, plane.state.worker);
        let stranger = ApiClient::new(http, &address, pki().pool.clone(), pool, worker).unwrap();
        let error = stranger.register(&registration(), Some(Duration::from_secs(5))).await.unwrap_err().to_string();
        assert!(error.contains("ADDITIONAL_ROOT_CA"), "{error}");
        assert!(
            ApiClient::new(
                Network::new(&network::Settings::default()).unwrap().api_client().unwrap(),
                "http://127.0.0.1/",
                pki().pool.clone(),
                pool,
                worker
            )
            .is_err()
        );

        let proxy = ConnectProxy::start();
        let settings =
            network::Settings { https_proxy: Some(proxy.address(CREDENTIALS)), ..network::Settings::default() };
        let address = format!("https://{UNRESOLVABLE}:{}/base", plane.port);
        plane.client_at(&address, &pki().pool, settings).register(&registration(), SOON).await.unwrap();
        assert_eq!(proxy.requests(), 1);
    });
}

fn line(number: usize) -> Vec<u8> {
    format!("line {number} {}\n", "x".repeat(number * 37 % 3000)).into_bytes()
}

/// All that is in the store of the log, by the names of the objects.
fn stored(store: &S3Store) -> Vec<u8> {
    let mut objects: Vec<_> = fs::read_dir(store.bucket())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("-log-"))
        .collect();
    objects.sort();
    objects.into_iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

fn summary(bytes: &[u8], chunks: u64) -> LogSummary {
    LogSummary {
        chunks,
        lines: bytes.iter().filter(|&&byte| byte == b'\n').count() as u64,
        bytes: bytes.len() as u64,
        sha256: format!("{:x}", Sha256::digest(bytes)),
    }
}

#[test]
fn a_log_is_complete_whatever_goes_wrong_on_its_way() {
    let unavailable = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let expired =
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 32\r\nConnection: close\r\n\r\n<Code>AccessDenied</Code>       ";
    let store = S3Store::start(STORE);
    let faults = FaultProxy::start(store.port(), move |number, _| match number {
        0 => Fault::Answer(unavailable.to_owned()),
        1 => Fault::Answer(expired.to_owned()),
        2 => Fault::Cut(100_000),
        4 => Fault::Cut(10),
        _ => Fault::None,
    });
    run(async {
        let plane = ControlPlane::start(&faults.endpoint());
        plane.will([Mistake::Status(500, ""), Mistake::CutOff]);
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        let settings = Settings { directory: place.clone(), limit: LIMIT, store: plane.store() };
        let log = Log::open(settings).await.unwrap();
        let mut expected = Vec::new();
        for number in 1..=2000 {
            expected.extend(line(number));
            let acknowledged = log.append(number as u64, line(number)).await.unwrap();
            assert_eq!(acknowledged, number as u64);
            if number == 1000 {
                log.say("said by the launcher").await.unwrap();
                expected.extend(b"said by the launcher\n");
            }
        }
        let found = log.flush().await.unwrap();
        assert!(stored(&store) == expected, "the store has other bytes");
        assert_eq!(found, summary(&expected, found.chunks));
        assert_eq!(fs::read_dir(store.bucket()).unwrap().count() as u64, found.chunks);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1, "what is stored is gone from this host");
        assert_eq!(log.flush().await.unwrap(), found, "nothing new");
        log.remove().await.unwrap();
        assert!(!place.exists());
    });
}

#[test]
fn a_log_goes_on_after_a_restart() {
    let store = S3Store::start(STORE);
    let is_away = Arc::new(AtomicBool::new(true));
    let away = Arc::clone(&is_away);
    let faults =
        FaultProxy::start(
            store.port(),
            move |_, _| {
                if away.load(Ordering::Relaxed) { Fault::Cut(1000) } else { Fault::None }
            },
        );
    run(async {
        let plane = ControlPlane::start(&faults.endpoint());
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().join("log"), limit: LIMIT, store: plane.store() };
        let mut expected = Vec::new();
        for round in 0..3_usize {
            let log = Log::open(settings.clone()).await.unwrap();
            assert_eq!(log.acknowledged(), 300 * round as u64);
            // The worker repeats what it has no acknowledgement for.
            for number in (300 * round).saturating_sub(20).max(1)..=300 * (round + 1) {
                log.append(number as u64, line(number)).await.unwrap();
            }
            expected.extend((300 * round + 1..=300 * (round + 1)).flat_map(line));
            let flushed = tokio::time::timeout(Duration::from_secs(1), log.flush()).await;
            assert!(flushed.is_err(), "nothing is flushed while the store is away");
        }
        is_away.store(false, Ordering::Relaxed);
        let log = Log::open(settings).await.unwrap();
        let found = log.flush().await.unwrap();
        assert!(stored(&store) == expected, "the store has other bytes");
        assert_eq!(found, summary(&expected, found.chunks));
    });
}

/// One that is slow holds up neither those behind it, as far as there may be any, nor what is on the disk.
#[test]
fn chunks_of_a_log_are_on_their_way_together() {
    let store = S3Store::start(STORE);
    let (asked, is_held) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(true)));
    let (seen, held) = (Arc::clone(&asked), Arc::clone(&is_held));
    let faults = FaultProxy::start(store.port(), move |_, head| {
        let number = head.split("-log-").nth(1).and_then(|rest| rest.get(..6)?.parse::<u64>().ok()).unwrap();
        seen.lock().unwrap().insert(number);
        let begun = Instant::now();
        while number == 0 && held.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        Fault::None
    });
    run(async {
        let plane = ControlPlane::start(&faults.endpoint());
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        let settings = Settings { directory: place.clone(), limit: LIMIT, store: plane.store() };
        let log = Log::open(settings).await.unwrap();
        let mut expected = Vec::new();
        for sequence in 1..=7 {
            let part = vec![b'0' + sequence as u8; spool::MAXIMUM_CHUNK];
            expected.extend(&part);
            log.append(sequence, part).await.unwrap();
        }
        let begun = Instant::now();
        let are_there = || fs::read_dir(store.bucket()).unwrap().count();
        while are_there() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", asked.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(*asked.lock().unwrap(), BTreeSet::from([0, 1, 2, 3]));
        let on_disk = |number: u64| place.join(format!("{number:06}")).exists();
        assert!((0..7).all(on_disk), "a crash would leave a log with a hole");
        is_held.store(false, Ordering::Relaxed);
        let found = log.flush().await.unwrap();
        assert!(stored(&store) == expected, "the store has other bytes");
        assert_eq!(found, summary(&expected, 7));
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1, "what is stored is gone from this host");
    });
}

#[test]
fn a_log_is_uploaded_while_the_run_goes_on() {
    let store = S3Store::start(STORE);
    run(async {
        let plane = ControlPlane::start(&store.endpoint());
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().join("log"), limit: LIMIT, store: plane.store() };
        let log = Log::open(settings).await.unwrap();
        log.append(1, b"watch me\n".to_vec()).await.unwrap();
        // Long after people want to see it, and long before a steady log has its second chunk.
        tokio::time::sleep(Duration::from_millis(500)).await;
        log.append(2, b"and me\n".to_vec()).await.unwrap();
        assert_eq!(log.flush().await.unwrap().chunks, 2, "the first line has waited for the second");
        for number in 3..200 {
            log.append(number, b"not each line by itself\n".to_vec()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let chunks = log.flush().await.unwrap().chunks;
        assert!((3..20).contains(&chunks), "{chunks}");
    });
}

#[test]
fn a_log_outlasts_refusals_of_others() {
    let store = S3Store::start(STORE);
    run(async {
        let plane = ControlPlane::start(&store.endpoint());
        let address = Presigned { url: "https://".to_owned(), headers: BTreeMap::new(), expires: u64::MAX };
        plane.will([
            Mistake::Page(404),
            Mistake::Status(401, "the clock"),
            Mistake::Body("<html>".to_owned()),
            Mistake::Body(serde_json::to_string(&address).unwrap()),
            Mistake::Status(403, "a policy that is mended later"),
        ]);
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().join("log"), limit: LIMIT, store: plane.store() };
        let log = Log::open(settings).await.unwrap();
        log.append(1, b"a line\n".to_vec()).await.unwrap();
        let summary = log.flush().await.unwrap();
        assert_eq!((summary.chunks, summary.lines, summary.bytes), (1, 1, 7));
    });
}

#[test]
fn a_log_of_a_run_that_is_gone_says_so() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        plane.will([Mistake::Status(409, "given to another")]);
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().join("log"), limit: LIMIT, store: plane.store() };
        let log = Log::open(settings).await.unwrap();
        log.append(1, b"x".to_vec()).await.unwrap();
        let error = log.flush().await.unwrap_err();
        assert!(matches!(error, upload::Error::Api(api_client::Error::Gone { .. })), "{error}");
        assert!(matches!(log.failure().await, upload::Error::Api(api_client::Error::Gone { .. })));
    });
}

#[test]
fn encrypted_objects_come_back_and_nothing_else_does() {
    let store = S3Store::start(STORE);
    run(async {
        let plane = ControlPlane::start(&store.endpoint());
        let (objects, key) = (plane.store(), &pki().pool);
        let directory = tempfile::tempdir().unwrap();
        let plain: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut parcel = Parcel::begin(directory.path(), key, &objects, Object::Workspace).unwrap();
        parcel.write_all(&plain).unwrap();
        let closed = parcel.finish().unwrap();
        assert_eq!(closed.store(&objects).await.unwrap(), plain.len() as u64);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the file is gone");
        let object = fs::read_dir(store.bucket()).unwrap().next().unwrap().unwrap().path();
        assert!(fs::read(&object).unwrap().starts_with(b"age-encryption.org/v1\n"));

        let read = async || {
            let mut opened = upload::get_sealed(&objects, Object::Workspace, key).await?;
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                opened.read_to_end(&mut bytes).map(|_| bytes)
            });
            read.await.unwrap().map_err(|error| upload::Error::File(error.to_string()))
        };
        assert!(read().await.unwrap() == plain);
        let sealed = fs::read(&object).unwrap();
        fs::write(&object, &sealed[..sealed.len() - 1]).unwrap();
        let error = read().await.unwrap_err();
        assert!(error.to_string().contains("damaged") || error.to_string().contains("cut off"), "{error}");

        let error = objects.get(Object::Outputs).await.unwrap_err();
        assert!(matches!(error, upload::Error::Missing { .. }), "{error}");
    });
}

#[test]
fn what_nobody_unpacks_does_not_fill_the_disk() {
    let store = S3Store::start(STORE);
    run(async {
        let plane = ControlPlane::start(&store.endpoint());
        let (objects, key) = (plane.store(), &pki().pool);
        let directory = tempfile::tempdir().unwrap();
        let plain = vec![7; 100_000];
        objects.put_bytes(Object::Source, &plain).await.unwrap();
        let digest: String = Sha256::digest(&plain).iter().map(|byte| format!("{byte:02x}")).collect();
        slot::keep_source(directory.path(), &digest).unwrap();
        let mut parcel = Parcel::begin(directory.path(), key, &objects, Object::Workspace).unwrap();
        parcel.write_all(&plain).unwrap();
        parcel.finish().unwrap().store(&objects).await.unwrap();
        let transfer = Transfer::new(objects.clone(), key.clone(), directory.path().to_owned());
        let read = async |limit, object| {
            let transfer = transfer.clone().limited_to(limit);
            let mut parts =
                if object == Object::Source { transfer.source().await? } else { transfer.workspace().await? };
            let mut bytes = vec![];
            while let Some(part) = parts.recv().await {
                bytes.extend(part?);
            }
            Ok::<_, upload::Error>(bytes)
        };
        for (object, name) in [(Object::Source, "the source"), (Object::Workspace, "the workspace")] {
            assert!(read(100_000, object).await.unwrap() == plain, "{name}");
            let error = read(99_999, object).await.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("more than 99999 bytes"), "{error}");
        }
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["source-sha256"], "nothing is left of it");
    });
}

#[test]
fn addresses_that_are_not_https_are_not_used() {
    run(async {
        let plane = ControlPlane::start("http://127.0.0.1:1");
        let objects = plane.store();
        for url in ["http://store.example/hunter2", "ftp://127.0.0.1/hunter2", "hunter2"] {
            let presigned = Presigned { url: url.to_owned(), headers: BTreeMap::new(), expires: u64::MAX };
            plane.will([Mistake::Body(serde_json::to_string(&presigned).unwrap())]);
            let error = objects.put_bytes(Object::Outputs, b"x").await.unwrap_err();
            assert!(matches!(error, upload::Error::Address { .. }), "{error}");
            assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    });
}
