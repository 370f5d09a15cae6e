//! A worker as far as the wire goes: the signed API and a session with the broker, without containers.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use launcher_wire::api::{
    Changes, Claim, Job, LogSummary, Object, ObjectRequest, Operation, Outcome, Presigned, Problem, Registered,
    Registration, Report, RunState, StateChange,
};
use launcher_wire::id::{AssignmentId, RunId, WorkerId};
use launcher_wire::key::PoolKey;
use launcher_wire::mqtt::{self, Envelope, FromWorker, ToWorker, WorkerState};
use launcher_wire::signature;
use launcher_wire::token::Token;
use rumqttc::{AsyncClient, Event, Incoming, LastWill, MqttOptions, PublishOptions, QoS, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use crate::bench::{LIMIT, Pool};

pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) token: Token,
    key: PoolKey,
    http: reqwest::Client,
    runtime: Runtime,
    client: Arc<Mutex<Option<AsyncClient>>>,
    sender: mpsc::Sender<ToWorker>,
    messages: Receiver<ToWorker>,
}

/// The status and the reason of a refusal.
pub(crate) type Refused = (u16, String);

impl Worker {
    /// One that is registered, connected and idle.
    pub(crate) fn start(pool: &Pool) -> Self {
        let worker = Self::new(pool);
        worker.register(WorkerState::Idle).unwrap();
        worker.connect();
        worker.alive(WorkerState::Idle);
        worker
    }

    pub(crate) fn new(pool: &Pool) -> Self {
        let (token, _) = Token::from_variable(&pool.token).unwrap();
        Self::with(token, &pool.key)
    }

    pub(crate) fn with(token: Token, key: &str) -> Self {
        let roots = roots(&token);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(LIMIT).build().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let key = PoolKey::from_pem(key).unwrap();
        let (sender, messages) = mpsc::channel();
        Self { id: WorkerId::new(), token, key, http, runtime, client: Arc::default(), sender, messages }
    }

    pub(crate) fn register(&self, state: WorkerState) -> Result<Registered, Refused> {
        let registration = Registration {
            launcher_version: "0.1.0".to_owned(),
            worker_version: "0.1.0".to_owned(),
            architecture: "x86_64".to_owned(),
            metadata: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            state,
        };
        self.json("PUT", &format!("/v1/workers/{}", self.id), &registration)
    }

    pub(crate) fn deregister(&self) -> Result<(), Refused> {
        self.request("DELETE", &format!("/v1/workers/{}", self.id), Vec::new()).map(drop)
    }

    pub(crate) fn claim(&self, run: RunId, assignment: AssignmentId) -> Result<Job, Refused> {
        self.json("POST", &format!("/v1/runs/{run}/claim"), &Claim { assignment })
    }

    pub(crate) fn state(&self, run: RunId, assignment: AssignmentId, state: RunState) -> Result<(), Refused> {
        let body = serde_json::to_vec(&StateChange { assignment, state }).unwrap();
        self.request("POST", &format!("/v1/runs/{run}/state"), body).map(drop)
    }

    pub(crate) fn object(&self, run: RunId, request: ObjectRequest) -> Result<Presigned, Refused> {
        self.json("POST", &format!("/v1/runs/{run}/object"), &request)
    }

    pub(crate) fn outcome(&self, run: RunId, report: &Report) -> Result<(), Refused> {
        let body = serde_json::to_vec(report).unwrap();
        self.request("POST", &format!("/v1/runs/{run}/outcome"), body).map(drop)
    }

    /// Puts an object there, with an address that the control plane gave.
    pub(crate) fn put(&self, run: RunId, assignment: AssignmentId, object: Object, bytes: &[u8]) {
        let presigned = self.object(run, ObjectRequest { assignment, object, operation: Operation::Put }).unwrap();
        let (status, answer) = plain("PUT", &presigned.url, bytes.to_vec());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }

    /// Puts a log there, and gives the report of a stage that ended well.
    pub(crate) fn finish(&self, run: RunId, assignment: AssignmentId, log: &[&[u8]]) -> Report {
        for (number, chunk) in (0..).zip(log) {
            self.put(run, assignment, Object::Log { number }, chunk);
        }
        report(assignment, log)
    }

    fn json<T: DeserializeOwned>(&self, method: &str, path: &str, body: &impl Serialize) -> Result<T, Refused> {
        let answer = self.request(method, path, serde_json::to_vec(body).unwrap())?;
        Ok(serde_json::from_slice(&answer).unwrap())
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Refused> {
        let headers = self.sign(method, path, &body, seconds());
        self.send(method, path, body, &headers)
    }

    pub(crate) fn sign(&self, method: &str, path: &str, body: &[u8], created: u64) -> signature::Headers {
        let request = signature::Request { method, path, body };
        signature::sign(&self.key, self.token.pool, self.id, created, request)
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
        headers: &signature::Headers,
    ) -> Result<Vec<u8>, Refused> {
        let request = self
            .http
            .request(method.parse().unwrap(), format!("{}{path}", self.token.api))
            .header(signature::CONTENT_DIGEST, &headers.content_digest)
            .header(signature::WORKER, &headers.worker)
            .header(signature::SIGNATURE_INPUT, &headers.signature_input)
            .header(signature::SIGNATURE, &headers.signature)
            .body(body);
        let (status, bytes) = self.runtime.block_on(async {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
        });
        if status < 300 {
            return Ok(bytes);
        }
        let problem: Problem = serde_json::from_slice(&bytes).unwrap();
        Err((status, problem.message))
    }

    /// Opens a session with the broker that lasts until [`Self::vanish`], over the broker's restarts.
    pub(crate) fn connect(&self) {
        let token = &self.token;
        let (host, port) = token.broker.strip_prefix("mqtts://").unwrap().rsplit_once(':').unwrap();
        let (host, port): (String, u16) = (host.to_owned(), port.parse().unwrap());
        let chain = vec![CertificateDer::from_pem_slice(token.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.pkcs1_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(token))
            .with_client_auth_cert(chain, key)
            .unwrap();
        let tls = Arc::new(tls);
        let (from, to) = (
            mqtt::from_worker(&token.namespace, token.pool, self.id),
            mqtt::to_worker(&token.namespace, token.pool, self.id),
        );
        let sender = self.sender.clone();
        let (connected, is_connected) = mpsc::channel();
        let (shared, id) = (Arc::clone(&self.client), self.id);
        self.runtime.spawn(async move {
            loop {
                let mut options = MqttOptions::new(id.to_string(), (host.clone(), port));
                options.set_keep_alive(30);
                options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&tls))));
                let will = Envelope::new(milliseconds(), FromWorker::Lost {}).encode().unwrap();
                options.set_last_will(LastWill::new(from.clone(), will, QoS::AtLeastOnce, false));
                let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
                client.try_subscribe(to.clone(), QoS::AtLeastOnce).unwrap();
                *shared.lock().unwrap() = Some(client);
                loop {
                    match events.poll().await {
                        Ok(Event::Incoming(Incoming::Publish(message))) => {
                            let envelope = Envelope::<ToWorker>::decode(&message.payload).unwrap();
                            // Nobody listens any more when the test has ended.
                            let _ = sender.send(envelope.body);
                        }
                        Ok(Event::Incoming(Incoming::SubAck(_))) => drop(connected.send(())),
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        is_connected.recv_timeout(LIMIT).expect("the broker lets the worker in");
    }

    pub(crate) fn say(&self, message: FromWorker) {
        let payload = Envelope::new(milliseconds(), message).encode().unwrap();
        self.say_bytes(payload);
    }

    pub(crate) fn say_bytes(&self, payload: Vec<u8>) {
        let topic = mqtt::from_worker(&self.token.namespace, self.token.pool, self.id);
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            // The present session's, which may be another one at the next attempt.
            let client = self.client.lock().unwrap().clone().expect("it is connected");
            let saying = async {
                let options = PublishOptions::new(QoS::AtLeastOnce);
                let notice = client.publish_tracked(topic.clone(), payload.clone(), options).await.ok()?;
                notice.wait_async().await.ok()
            };
            let said = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), saying).await });
            if let Ok(Some(_)) = said {
                return;
            }
        }
        panic!("the broker does not take what worker {} says", self.id);
    }

    pub(crate) fn alive(&self, state: WorkerState) {
        self.say(FromWorker::Alive { state });
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn next(&self) -> ToWorker {
        self.next_within(LIMIT).expect("a message to the worker comes")
    }

    pub(crate) fn next_within(&self, limit: Duration) -> Option<ToWorker> {
        self.messages.recv_timeout(limit).ok()
    }

    /// The run that is scheduled next. Other messages are passed over.
    #[track_caller]
    pub(crate) fn scheduled(&self) -> (RunId, AssignmentId) {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            if let Some(ToWorker::RunScheduled { run, assignment }) = self.next_within(Duration::from_millis(100)) {
                return (run, assignment);
            }
        }
        panic!("no run is scheduled on worker {}", self.id);
    }

    /// As [`Self::scheduled`], and claims it.
    #[track_caller]
    pub(crate) fn take(&self) -> (RunId, AssignmentId, Job) {
        let (run, assignment) = self.scheduled();
        let job = self.claim(run, assignment).unwrap();
        (run, assignment, job)
    }

    /// Ends without a word: the broker says the last will.
    pub(crate) fn vanish(self) -> WorkerId {
        let id = self.id;
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        id
    }
}

pub(crate) fn report(assignment: AssignmentId, log: &[&[u8]]) -> Report {
    let all = log.concat();
    Report {
        assignment,
        outcome: Outcome::Finished,
        message: String::new(),
        changes: Some(Changes { add: 1, change: 0, destroy: 0 }),
        log: LogSummary {
            chunks: log.len() as u64,
            lines: all.iter().filter(|byte| **byte == b'\n').count() as u64,
            bytes: all.len() as u64,
            sha256: Sha256::digest(&all).iter().map(|byte| format!("{byte:02x}")).collect(),
        },
        workspace: false,
        outputs: false,
    }
}

/// A request that is not signed.
pub(crate) fn plain(method: &str, url: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(LIMIT).build().unwrap();
    runtime.block_on(async {
        let answer = http.request(method.parse().unwrap(), url).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
    })
}

fn roots(token: &Token) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(token.ca.as_ref().unwrap().as_bytes()).unwrap()).unwrap();
    roots
}

pub(crate) fn seconds() -> u64 {
    milliseconds() / 1000
}

fn milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}
