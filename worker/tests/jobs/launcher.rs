//! A launcher's side of the protocol: the real service on a real socket, with a job to give and a memory for what came.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spacelift_worker::protocol::service::launcher_server::{Launcher, LauncherServer};
use spacelift_worker::protocol::{
    Chunk, Download, DownloadRequest, FromWorker, Job, MAXIMUM_MESSAGE, MAXIMUM_PART, Outcome, Phase, Stop, ToWorker,
    Upload, UploadPart, Uploaded, Welcome, from_worker, to_worker,
};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Far above what any of the tests takes.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Memory {
    job: Mutex<Option<Job>>,
    received: Mutex<Vec<from_worker::Body>>,
    wrong: Mutex<Vec<String>>,
    connection: Mutex<Option<mpsc::Sender<Result<ToWorker, Status>>>>,
    downloads: Mutex<HashMap<i32, Vec<u8>>>,
    uploads: Mutex<HashMap<i32, Vec<u8>>>,
    /// Connections break after as many messages, each other time before they are acknowledged.
    break_after: AtomicUsize,
    connections: AtomicUsize,
    acknowledged: AtomicU64,
    deaf: AtomicBool,
}

#[derive(Clone)]
struct Service(Arc<Memory>);

type Answers<T> = Response<ReceiverStream<Result<T, Status>>>;

#[tonic::async_trait]
impl Launcher for Service {
    type SessionStream = ReceiverStream<Result<ToWorker, Status>>;
    type DownloadStream = ReceiverStream<Result<Chunk, Status>>;

    async fn session(&self, request: Request<Streaming<FromWorker>>) -> Result<Answers<ToWorker>, Status> {
        let mut incoming = request.into_inner();
        let memory = Arc::clone(&self.0);
        let (sender, receiver) = mpsc::channel(1024);
        let Some(FromWorker { sequence: 0, body: Some(from_worker::Body::Hello(hello)) }) = incoming.message().await?
        else {
            return Err(Status::invalid_argument("no hello"));
        };
        let job = if hello.has_job { None } else { memory.job.lock().unwrap().clone().map(Box::new) };
        let connection = memory.connections.fetch_add(1, Ordering::SeqCst);
        let acknowledged = memory.received.lock().unwrap().len() as u64;
        let welcome = ToWorker { body: Some(to_worker::Body::Welcome(Welcome { acknowledged, job })) };
        sender.send(Ok(welcome)).await.unwrap();
        *memory.connection.lock().unwrap() = Some(sender.clone());
        tokio::spawn(async move {
            let mut here = 0;
            while let Ok(Some(message)) = incoming.message().await {
                while memory.deaf.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                here += 1;
                let break_after = memory.break_after.load(Ordering::SeqCst);
                let breaks = break_after > 0 && here > break_after;
                if breaks && connection.is_multiple_of(2) {
                    break;
                }
                let upto = {
                    let mut received = memory.received.lock().unwrap();
                    if message.sequence != received.len() as u64 + 1 {
                        let wrong = format!("{} came after {}", message.sequence, received.len());
                        memory.wrong.lock().unwrap().push(wrong);
                    }
                    received.push(message.body.unwrap());
                    received.len() as u64
                };
                if breaks {
                    break;
                }
                memory.acknowledged.store(upto, Ordering::SeqCst);
                if sender.send(Ok(ToWorker { body: Some(to_worker::Body::Acknowledged(upto)) })).await.is_err() {
                    break;
                }
            }
            let _ = sender.send(Err(Status::unavailable("restarted"))).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Answers<Chunk>, Status> {
        let data = self.0.downloads.lock().unwrap().get(&request.into_inner().what).cloned();
        let data = data.ok_or_else(|| Status::not_found("there is none"))?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            for part in data.chunks(MAXIMUM_PART) {
                if sender.send(Ok(Chunk { data: part.to_vec() })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn upload(&self, request: Request<Streaming<UploadPart>>) -> Result<Response<Uploaded>, Status> {
        let mut incoming = request.into_inner();
        let mut data = Vec::new();
        while let Some(part) = incoming.message().await? {
            assert!(part.data.len() <= MAXIMUM_PART);
            data.extend_from_slice(&part.data);
            if part.last {
                let size = data.len() as u64;
                self.0.uploads.lock().unwrap().insert(part.what, data);
                return Ok(Response::new(Uploaded { size }));
            }
        }
        Err(Status::data_loss("it broke off"))
    }
}

/// A launcher, a workspace and, once it is started, a worker.
pub(crate) struct Bench {
    directory: TempDir,
    memory: Arc<Memory>,
    server: Option<JoinHandle<()>>,
    worker: Option<Child>,
    environment: Vec<(String, String)>,
}

/// How a job went.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) received: Vec<from_worker::Body>,
    pub(crate) status: ExitStatus,
}

impl Done {
    /// The log, without the phases in it.
    pub(crate) fn log(&self) -> Vec<u8> {
        let parts = self.received.iter().filter_map(|body| match body {
            from_worker::Body::Log(bytes) => Some(&bytes[..]),
            _ => None,
        });
        parts.collect::<Vec<_>>().concat()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.log()).unwrap()
    }

    /// Phases and the log between them.
    pub(crate) fn transcript(&self) -> String {
        let mut text = String::new();
        for body in &self.received {
            match body {
                from_worker::Body::Phase(phase) => {
                    text.push_str(&format!("== {:?}\n", Phase::try_from(*phase).unwrap()))
                }
                from_worker::Body::Log(bytes) => text.push_str(str::from_utf8(bytes).unwrap()),
                from_worker::Body::Outcome(outcome) => {
                    text.push_str(&format!("== {:?} {}", outcome.result(), outcome.message));
                }
                from_worker::Body::Hello(_) => panic!("a hello with a number"),
            }
        }
        text.trim_end().to_owned()
    }
}

impl Bench {
    pub(crate) fn new(job: Job) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("workspace")).unwrap();
        let memory = Arc::new(Memory { job: Mutex::new(Some(job)), ..Memory::default() });
        let environment = vec![("PATH".into(), std::env::var("PATH").unwrap())];
        let mut bench = Self { directory, memory, server: None, worker: None, environment };
        bench.listen();
        bench
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.directory.path().join("workspace")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("launcher.sock")
    }

    pub(crate) fn environment(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.into(), value.as_ref().to_str().unwrap().into()));
        self
    }

    pub(crate) fn download(self, what: Download, data: Vec<u8>) -> Self {
        self.memory.downloads.lock().unwrap().insert(what.into(), data);
        self
    }

    pub(crate) fn breaking_after(self, messages: usize) -> Self {
        self.memory.break_after.store(messages, Ordering::SeqCst);
        self
    }

    pub(crate) fn connections(&self) -> usize {
        self.memory.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn uploaded(&self, what: Upload) -> Option<Vec<u8>> {
        self.memory.uploads.lock().unwrap().get(&i32::from(what)).cloned()
    }

    /// From now on it takes nothing, or does again.
    pub(crate) fn be_deaf(&self, deaf: bool) {
        self.memory.deaf.store(deaf, Ordering::SeqCst);
    }

    fn listen(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let service = LauncherServer::new(Service(Arc::clone(&self.memory)))
            .max_decoding_message_size(MAXIMUM_MESSAGE)
            .max_encoding_message_size(MAXIMUM_MESSAGE);
        let server = tonic::transport::Server::builder();
        self.server = Some(tokio::spawn(async move {
            server.serve_with_incoming(service, UnixListenerStream::new(listener)).await.unwrap();
        }));
    }

    pub(crate) fn start(&mut self) -> u32 {
        self.spawn(Command::new(env!("CARGO_BIN_EXE_spacelift-worker")))
    }

    /// In a process namespace, as in a container.
    pub(crate) fn start_as_process_1(&mut self) {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", env!("CARGO_BIN_EXE_spacelift-worker")]);
        self.spawn(unshare);
    }

    fn spawn(&mut self, mut command: Command) -> u32 {
        command
            .arg("run")
            .arg("--socket")
            .arg(self.socket())
            .arg("--workspace")
            .arg(self.workspace())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .kill_on_drop(true);
        let worker = command.spawn().expect("it does not start; `unshare` is in the Debian package util-linux");
        let id = worker.id().unwrap();
        self.worker = Some(worker);
        id
    }

    /// Away with its socket, and back after a while.
    pub(crate) async fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.server.take().unwrap().abort();
        let connection = self.memory.connection.lock().unwrap().take().unwrap();
        std::fs::remove_file(self.socket()).unwrap();
        connection.send(Err(Status::unavailable("gone"))).await.unwrap();
        drop(connection);
        meanwhile(&self.workspace());
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.listen();
    }

    pub(crate) async fn stop(&self, grace: Duration, reason: &str) {
        let stop = Stop { grace: grace.as_millis() as u64, reason: reason.into() };
        let sender = self.memory.connection.lock().unwrap().clone().unwrap();
        sender.send(Ok(ToWorker { body: Some(to_worker::Body::Stop(stop)) })).await.unwrap();
    }

    /// Waits until this is in the log.
    pub(crate) async fn until_logged(&self, text: &str) {
        timeout(PATIENCE, async {
            loop {
                let received = self.memory.received.lock().unwrap().clone();
                let status = ExitStatus::from_raw(0);
                let so_far = Done { outcome: Outcome::default(), received, status };
                if so_far.log().windows(text.len()).any(|window| window == text.as_bytes()) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{text:?} never came"));
    }

    /// Waits for the end.
    pub(crate) async fn done(&mut self) -> Done {
        if self.worker.is_none() {
            self.start();
        }
        let mut worker = self.worker.take().unwrap();
        let status = timeout(PATIENCE, worker.wait()).await.expect("the worker does not end").unwrap();
        let received = self.memory.received.lock().unwrap().clone();
        assert_eq!(*self.memory.wrong.lock().unwrap(), Vec::<String>::new());
        let Some(from_worker::Body::Outcome(outcome)) = received.last().cloned() else {
            panic!("the last message is not the outcome, and the worker ended with {status}");
        };
        let done = Done { outcome, received, status };
        assert_eq!(done.status.code(), Some(0));
        done
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}
