//! The launcher's side of the protocol with a worker: a gRPC server on a Unix socket that only that container has.
//!
//! What the worker says is acknowledged once it is on disk. The job's own processes reach the socket too. So the job, and with it
//! the proof that the worker shows from then on, is given until the worker has said something, which it does before it executes
//! anything; afterwards whoever shows no proof is not heard.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use launcher_wire::api::{Changes, Object};
use rustix::process::geteuid;
use spacelift_worker::archive::MAXIMUM_PACKED;
use spacelift_worker::protocol::service::launcher_server::{Launcher, LauncherServer};
use spacelift_worker::protocol::{
    self, Chunk, Download, DownloadRequest, FromWorker, Hello, MAXIMUM_FROM_WORKER, MAXIMUM_MESSAGE, MAXIMUM_PART,
    Phase, Stop, ToWorker, Upload, UploadPart, Uploaded, Welcome, from_worker, to_worker,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::events::Sender;
use crate::run::{Event, WorkerOutcome, WorkerResult};
use crate::run_log::RunLog;
use crate::slot::Said;
use crate::spool;
use crate::transfer::Transfer;

/// The user that a container's processes are.
pub const WORKER_USER: u32 = 1983;
/// Messages that wait for the worker to take them.
const OUTGOING: usize = 64;
/// Messages that are written to disk at once.
const BATCH: usize = 64;
/// Connections to a socket at once. A worker has two or three; what its job opens takes nobody else's.
const MAXIMUM_CONNECTIONS: usize = 32;
/// Calls on a connection at once.
const MAXIMUM_CALLS: u32 = 8;
/// How long to wait before a connection is accepted again after it failed: for want of file descriptors as a rule.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long the first message of a session may take.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How often something that is on its way to the object store or back is counted as a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
/// How long to wait for room in the spool. The worker is not acknowledged meanwhile, and says nothing more.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);
/// How long to wait before the disk is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// How long the disk may fail before the run is ended for it.
const DISK_LIMIT: Duration = Duration::from_secs(60);
/// How long a connection may take to say what is in flight when its container has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the operating system.
    #[error("cannot listen at `{}`: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The container's user could not connect.
    #[error(
        "cannot give `{}` to user {WORKER_USER}, which runs have: {source}. Run the launcher as root or as that user",
        path.display()
    )]
    Owner {
        /// What.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A server for one worker. It ends when this is dropped.
#[derive(Debug)]
pub struct WorkerServer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What a server is made of.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub socket: PathBuf,
    /// What the worker shows, which no process of its job knows.
    pub session: String,
    /// For the worker. None: it has it from a launcher before this one.
    pub job: Option<protocol::Job>,
    /// The directory of the run's files.
    pub directory: PathBuf,
    /// What the worker has done already.
    pub said: Said,
    /// Where the log goes.
    pub log: RunLog,
    /// Where everything else is heard of.
    pub events: Sender,
    /// The object store.
    pub transfer: Transfer,
}

#[derive(Debug)]
struct Shared {
    session_key: String,
    job: Mutex<Option<Box<protocol::Job>>>,
    directory: PathBuf,
    said: Mutex<Said>,
    /// Nothing is heard any more.
    closed: AtomicBool,
    log: RunLog,
    events: Sender,
    transfer: Transfer,
    stop: watch::Sender<Option<Stop>>,
    /// Whether there is a session. One after the other.
    session: Arc<Semaphore>,
}

impl WorkerServer {
    /// Begins to listen.
    ///
    /// # Errors
    /// The socket cannot be made, or not given to the worker's user.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        let socket = &settings.socket;
        let listen = |source| Error::Listen { path: socket.clone(), source };
        // Of a launcher that was killed.
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        let listener = UnixListener::bind(socket).map_err(listen)?;
        fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(listen)?;
        give_to_worker(socket)?;
        Ok(Self::serve(listener, settings))
    }

    /// Takes connections from a socket that there is already, whoever owns it.
    #[must_use]
    pub fn serve(listener: UnixListener, settings: Settings) -> Self {
        let Settings { socket: _, session, job, directory, said, log, events, transfer } = settings;
        let shared = Arc::new(Shared {
            session_key: session,
            job: Mutex::new(job.map(Box::new)),
            directory,
            said: Mutex::new(said),
            closed: AtomicBool::new(false),
            log,
            events,
            transfer,
            stop: watch::channel(None).0,
            session: Arc::new(Semaphore::new(1)),
        });
        let service = LauncherServer::from_arc(Arc::new(Service(Arc::clone(&shared))))
            .max_decoding_message_size(MAXIMUM_FROM_WORKER)
            .max_encoding_message_size(MAXIMUM_MESSAGE);
        // Before anything of a call is read.
        let gate = Arc::clone(&shared);
        let service = InterceptedService::new(service, move |request: Request<()>| {
            if !gate.is_known(request.metadata())? {
                gate.check_nothing_runs()?;
            }
            Ok(request)
        });
        let router = tonic::transport::Server::builder().max_concurrent_streams(MAXIMUM_CALLS).add_service(service);
        let (connections, incoming) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            tokio::select! {
                // It ends with the task; errors are those of single connections.
                served = router.serve_with_incoming(ReceiverStream::new(incoming)) => if let Err(error) = served {
                    tracing::error!(%error, "the worker's socket is closed");
                },
                () = accept(listener, connections) => {}
            }
        });
        Self { shared, task }
    }

    /// Lets the worker end its job. It is said again at each connection.
    pub fn stop(&self, grace: Duration, reason: String) {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.shared.stop.send_replace(Some(Stop { grace, reason }));
    }

    /// Waits until what the worker said before it ended is in the log.
    pub async fn close(&self) {
        // The connection ends with the container; what it had sent is read before it is gone.
        let session = Arc::clone(&self.shared.session);
        let _ = tokio::time::timeout(DRAIN, session.acquire()).await;
        self.revoke();
    }

    /// Gives the job to nobody any more, and hears nobody.
    pub fn revoke(&self) {
        self.shared.job().take();
        self.shared.closed.store(true, Ordering::Release);
    }
}

impl Drop for WorkerServer {
    fn drop(&mut self) {
        self.revoke();
        self.task.abort();
    }
}

/// Takes connections, as many as may be there at once, and closes those above.
async fn accept(listener: UnixListener, connections: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(MAXIMUM_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of the worker");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        if connections.send(Ok(Connection { stream, _place: place })).await.is_err() {
            return;
        }
    }
}

/// A connection, which has a place until it ends.
struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Makes the container's user the owner of a file or directory. A link is not followed.
///
/// # Errors
/// It cannot be.
pub fn give_to_worker(path: &Path) -> Result<(), Error> {
    if geteuid().as_raw() == WORKER_USER {
        return Ok(());
    }
    lchown(path, Some(WORKER_USER), Some(WORKER_USER)).map_err(|source| Error::Owner { path: path.to_owned(), source })
}

struct Service(Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Launcher for Service {
    type SessionStream = Answers<ToWorker>;
    type DownloadStream = Answers<Chunk>;

    async fn session(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::SessionStream>, Status> {
        let shared = Arc::clone(&self.0);
        shared.check_open()?;
        // Before anything else: who is nobody takes no place.
        let is_known = shared.is_known(request.metadata())?;
        if !is_known {
            shared.check_nothing_runs()?;
        }
        let permit = Arc::clone(&shared.session).try_acquire_owned();
        let permit = permit.map_err(|_| Status::already_exists("the worker is connected already"))?;
        let mut incoming = request.into_inner();
        // Whoever holds the place has to say who it is.
        let first = tokio::time::timeout(FIRST_WORD, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("a session begins with Hello"))??;
        let Some(FromWorker { body: Some(from_worker::Body::Hello(hello)), .. }) = first else {
            return Err(Status::invalid_argument("a session begins with Hello"));
        };
        if hello.has_job != is_known {
            return Err(nobody());
        }
        let welcome = shared.welcome(&hello)?;
        let (outgoing, answers) = mpsc::channel(OUTGOING);
        let _ = outgoing.send(Ok(ToWorker { body: Some(to_worker::Body::Welcome(welcome)) })).await;
        tokio::spawn(async move {
            tokio::select! {
                () = tell_to_stop(&shared, &outgoing) => {}
                result = hear(&shared, incoming, &outgoing) => if let Err(status) = result {
                    tracing::warn!(reason = status.message(), "the connection to the worker broke");
                    let _ = outgoing.send(Err(status)).await;
                },
            }
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn download(&self, request: Request<DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        self.0.check_worker(request.metadata())?;
        let what = request.into_inner().what();
        let transfer = self.0.transfer.clone();
        let mut life = SignsOfLife::new(self.0.events.clone());
        let mut parts = match what {
            Download::Source => life.during(transfer.source()).await,
            Download::Workspace => life.during(transfer.workspace()).await,
            Download::Unspecified => return Err(Status::invalid_argument("nothing to download was named")),
        }
        .map_err(refused)?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(part) = life.during(parts.recv()).await {
                life.passed().await;
                let part = part.map_err(|error| Status::data_loss(format!("{error:#}")));
                let broken = part.is_err();
                for data in part.as_deref().unwrap_or_default().chunks(MAXIMUM_PART) {
                    if sender.send(Ok(Chunk { data: data.to_vec() })).await.is_err() {
                        return;
                    }
                }
                if let Err(status) = part {
                    let _ = sender.send(Err(status)).await;
                }
                if broken {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn upload(&self, request: Request<Streaming<UploadPart>>) -> Result<Response<Uploaded>, Status> {
        self.0.check_worker(request.metadata())?;
        let mut parts = request.into_inner();
        let shared = Arc::clone(&self.0);
        let mut life = SignsOfLife::new(shared.events.clone());
        let mut what = None;
        let mut sealed = None;
        let mut size = 0;
        let mut complete = false;
        while let Some(part) = parts.message().await? {
            let kind = part.what();
            if complete || what.is_some_and(|what| what != kind) || kind == Upload::Unspecified {
                return Err(Status::invalid_argument("parts of an upload that do not belong together"));
            }
            what = Some(kind);
            let mut file = match sealed.take() {
                Some(file) => file,
                None => shared.transfer.parcel(stored_as(kind)).map_err(internal)?,
            };
            size += part.data.len() as u64;
            // The worker's own limits are smaller: this is for one that has none.
            if size > MAXIMUM_PACKED {
                return Err(refused(format_args!(
                    "the upload has more than {MAXIMUM_PACKED} bytes, which is the limit"
                )));
            }
            complete = part.last;
            life.passed().await;
            // Encrypting is work for a processor, and the disk may be slow.
            let file = tokio::task::spawn_blocking(move || file.write_all(&part.data).map(|()| file)).await;
            let file = file.map_err(internal)?;
            sealed = Some(file.map_err(|error| internal(format_args!("the upload cannot be kept: {error}")))?);
        }
        let (Some(what), Some(sealed), true) = (what, sealed, complete) else {
            return Err(Status::aborted("the upload broke off"));
        };
        let sealed = tokio::task::spawn_blocking(|| sealed.finish()).await.map_err(internal)?.map_err(internal)?;
        let event = match what {
            Upload::Outputs => Event::OutputsStored,
            Upload::Workspace | Upload::Unspecified => Event::WorkspaceStored,
        };
        life.during(shared.transfer.store(sealed)).await.map_err(refused)?;
        shared.keep(|said| match what {
            Upload::Outputs => said.outputs = true,
            Upload::Workspace | Upload::Unspecified => said.workspace = true,
        })?;
        shared.events.send(event).await;
        Ok(Response::new(Uploaded { size }))
    }
}

/// What is on its way keeps a run from counting as silent: it is not the job that says nothing.
struct SignsOfLife {
    events: Sender,
    last: Instant,
}

impl SignsOfLife {
    fn new(events: Sender) -> Self {
        Self { events, last: Instant::now() }
    }

    /// Something came.
    async fn passed(&mut self) {
        if self.last.elapsed() >= SIGN_OF_LIFE {
            self.last = Instant::now();
            self.events.send(Event::Logged).await;
        }
    }

    /// Something is waited for that has a limit of its own.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.passed().await,
            }
        }
    }
}

/// Outputs are for the control plane and people, the workspace for the next stage.
fn stored_as(what: Upload) -> Object {
    match what {
        Upload::Outputs => Object::Outputs,
        Upload::Workspace | Upload::Unspecified => Object::Workspace,
    }
}

/// To processes of a job.
fn nobody() -> Status {
    Status::permission_denied("only the worker is heard here")
}

/// What was tried here as long as it made sense: the worker is not to try it again.
fn refused(error: impl std::fmt::Display) -> Status {
    Status::failed_precondition(format!("{error:#}"))
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("{error:#}"))
}

impl Shared {
    fn welcome(&self, hello: &Hello) -> Result<Welcome, Status> {
        if hello.protocol != protocol::VERSION {
            return Err(Status::failed_precondition(format!(
                "the worker speaks version {}, the launcher version {}",
                hello.protocol,
                protocol::VERSION
            )));
        }
        let job = if hello.has_job { None } else { Some(self.give_job()?) };
        Ok(Welcome { acknowledged: self.log.last_sequence(), job })
    }

    /// Whether a call shows what only the worker knows. An error if it shows something else.
    fn is_known(&self, metadata: &MetadataMap) -> Result<bool, Status> {
        let Some(shown) = metadata.get(protocol::SESSION) else { return Ok(false) };
        let (shown, expected) = (shown.as_encoded_bytes(), self.session_key.as_bytes());
        let differs = shown.iter().zip(expected).fold(0, |differs, (shown, expected)| differs | (shown ^ expected));
        if shown.len() == expected.len() && differs == 0 { Ok(true) } else { Err(nobody()) }
    }

    fn check_worker(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if self.is_known(metadata)? { Ok(()) } else { Err(nobody()) }
    }

    /// Until the worker said its first word, nothing of its job is executed: so whoever asks is the worker.
    fn check_nothing_runs(&self) -> Result<(), Status> {
        if self.log.last_sequence() == 0 { Ok(()) } else { Err(nobody()) }
    }

    /// It may be given again: the worker may not have received it.
    fn give_job(&self) -> Result<Box<protocol::Job>, Status> {
        self.job().clone().ok_or_else(|| {
            // The loop may be busy; whoever asks comes again.
            self.events.try_send(Event::JobLost);
            Status::permission_denied("there is no job to be had")
        })
    }

    /// Puts on disk what the worker did, before it is told that it was heard.
    fn keep(&self, change: impl FnOnce(&mut Said)) -> Result<(), Status> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut said);
        said.keep(&self.directory).map_err(internal)
    }

    fn check_open(&self) -> Result<(), Status> {
        if self.closed.load(Ordering::Acquire) { Err(Status::aborted("the run has ended")) } else { Ok(()) }
    }

    fn job(&self) -> MutexGuard<'_, Option<Box<protocol::Job>>> {
        // What it guards is whole in every moment.
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn tell_to_stop(shared: &Shared, outgoing: &mpsc::Sender<Result<ToWorker, Status>>) {
    let mut stop = shared.stop.subscribe();
    // Also when it was said before this connection.
    stop.mark_changed();
    while stop.changed().await.is_ok() {
        let said = stop.borrow_and_update().clone();
        if let Some(said) = said
            && outgoing.send(Ok(ToWorker { body: Some(to_worker::Body::Stop(said)) })).await.is_err()
        {
            break;
        }
    }
    // Whether the connection is there is seen by whoever reads from it.
    std::future::pending::<()>().await;
}

/// Takes what the worker says, in order, each message once.
async fn hear(
    shared: &Shared,
    incoming: Streaming<FromWorker>,
    outgoing: &mpsc::Sender<Result<ToWorker, Status>>,
) -> Result<(), Status> {
    let mut incoming = std::pin::pin!(incoming);
    let mut broken = None;
    while broken.is_none() {
        let Some(first) = incoming.next().await else { break };
        // Whatever else is there already goes to the disk with it.
        let mut batch = vec![first?];
        while batch.len() < BATCH {
            match futures_now(incoming.next()).await {
                Some(Some(Ok(message))) => batch.push(message),
                Some(Some(Err(status))) => {
                    broken = Some(status);
                    break;
                }
                _ => break,
            }
        }
        take(shared, batch).await?;
        let acknowledged = to_worker::Body::Acknowledged(shared.log.last_sequence());
        if outgoing.send(Ok(ToWorker { body: Some(acknowledged) })).await.is_err() {
            break;
        }
    }
    broken.map_or(Ok(()), Err)
}

/// What a future has now, if it has.
async fn futures_now<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

/// What messages of a worker come to.
#[derive(Debug, Default, PartialEq)]
pub struct Heard {
    /// For the log: sequence numbers without gaps, and bytes.
    pub entries: Vec<(u64, Vec<u8>)>,
    /// For the loop, in order. That something was logged is told once.
    pub events: Vec<Event>,
    /// How the worker ended, if it says so.
    pub outcome: Option<WorkerOutcome>,
}

impl Heard {
    /// Takes each message once: those up to `acknowledged` were taken before.
    ///
    /// # Errors
    /// One is missing, or too large.
    pub fn new(acknowledged: u64, batch: Vec<FromWorker>) -> Result<Self, Status> {
        let mut heard = Self::default();
        let mut next = acknowledged + 1;
        for FromWorker { sequence, body } in batch {
            // Said again after a connection broke.
            if sequence < next {
                continue;
            }
            if sequence > next {
                return Err(Status::data_loss(format!("message {next} is missing before message {sequence}")));
            }
            next += 1;
            let (bytes, event) = match body {
                Some(from_worker::Body::Log(bytes)) if bytes.len() <= MAXIMUM_PART => (bytes, Event::Logged),
                Some(from_worker::Body::Phase(phase)) => (vec![], Event::Phase(phase_of(phase))),
                Some(from_worker::Body::Outcome(outcome)) => {
                    let outcome = outcome_of(outcome);
                    heard.outcome = Some(outcome.clone());
                    (vec![], Event::WorkerSaid(outcome))
                }
                Some(from_worker::Body::Log(_)) => {
                    return Err(Status::invalid_argument("a part of the log is too large"));
                }
                // A newer worker may say what is not known here.
                Some(from_worker::Body::Hello(_)) | None => (vec![], Event::Logged),
            };
            heard.entries.push((sequence, bytes));
            if event != Event::Logged || !heard.events.contains(&Event::Logged) {
                heard.events.push(event);
            }
        }
        Ok(heard)
    }
}

async fn take(shared: &Shared, batch: Vec<FromWorker>) -> Result<(), Status> {
    let Heard { entries, events, outcome } = Heard::new(shared.log.last_sequence(), batch)?;
    let mut disk = Disk { shared, failing_since: None, told: false };
    // Before it is acknowledged: the worker does not repeat it then.
    while let Some(outcome) = &outcome
        && let Err(status) = shared.keep(|said| said.outcome = Some(outcome.clone()))
    {
        disk.failed(status.message()).await?;
    }
    let mut rest = &entries[..];
    let mut told = false;
    while !rest.is_empty() {
        shared.check_open()?;
        match shared.log.append(rest).await {
            Ok(safe) => rest = &rest[safe..],
            Err(error @ spool::Error::Io { .. }) => {
                disk.failed(&error.to_string()).await?;
                // What is on the disk is not known any more.
                if let Err(error) = shared.log.reopen().await {
                    tracing::error!(%error, "the run's log cannot be opened");
                }
                continue;
            }
            Err(error) => return Err(internal(error)),
        }
        if !rest.is_empty() {
            if !told {
                shared.events.send(Event::LogLimitReached).await;
            }
            told = true;
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
    }
    for event in events {
        shared.events.send(event).await;
    }
    Ok(())
}

/// A disk that fails, perhaps for a while only. The worker is not acknowledged meanwhile, and says nothing more.
struct Disk<'a> {
    shared: &'a Shared,
    failing_since: Option<Instant>,
    told: bool,
}

impl Disk<'_> {
    async fn failed(&mut self, reason: &str) -> Result<(), Status> {
        self.shared.check_open()?;
        if self.failing_since.is_none() {
            tracing::error!("what the run says cannot be kept, trying again: {reason}");
        }
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() > DISK_LIMIT && !self.told {
            self.told = true;
            self.shared.events.send(Event::DiskFailed).await;
        }
        tokio::time::sleep(DISK_PAUSE).await;
        Ok(())
    }
}

fn phase_of(phase: i32) -> Phase {
    Phase::try_from(phase).unwrap_or(Phase::Unspecified)
}

fn outcome_of(outcome: protocol::Outcome) -> WorkerOutcome {
    let result = match outcome.result() {
        protocol::Result::Finished => WorkerResult::Finished,
        protocol::Result::Stopped => WorkerResult::Stopped,
        protocol::Result::Unable => WorkerResult::Unable,
        // A kind that is not known here is no success.
        protocol::Result::Failed | protocol::Result::Unspecified => WorkerResult::Failed,
    };
    let changes = outcome.changes.map(|protocol::Changes { add, change, destroy }| Changes { add, change, destroy });
    WorkerOutcome { result, message: one_line(&outcome.message), changes }
}

/// Characters of a line that a worker says to people.
pub const MAXIMUM_LINE: usize = 2000;

/// What came from a container is shown to people, in one line of bounded length.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).take(MAXIMUM_LINE).collect()
}
