//! The way into the object store: the log in chunks while the run goes on, and whole objects at its stages' ends.
//!
//! Each attempt asks the control plane for a new address: they expire, and asking costs less than finding out. Addresses are
//! secrets, so none is in a message.

mod log;
mod pace;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use launcher_wire::api::{Object, ObjectRequest, Operation, Presigned};
use launcher_wire::id::{AssignmentId, RunId};
use launcher_wire::key::PoolKey;
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, Method, Response, StatusCode, Url};
use spacelift_worker::shortage;
use tempfile::NamedTempFile;

pub use log::{Log, Pending, Settings};

use crate::api_client::{self, ApiClient};
use crate::metrics;
use crate::network::{Backoff, chain, is_loopback};
use crate::sealed::{self, Sealer};
use crate::spool;

/// The limit of the first wait between two attempts.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The limit of all of them.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often the object store may refuse (not: be unavailable) before it is not asked any more. With the waits between, that is
/// some minutes, longer than a new policy or a clock takes to become right.
const MAXIMUM_REFUSALS: u32 = 10;
/// How long any transfer may take, and how much longer for each byte of a large one.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(120);
/// The slowest connection that is still one.
const SLOWEST_BYTES_PER_SECOND: u64 = 32 * 1024;
/// How long a download may stand still.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it is tried to begin a download.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(300);
/// Bytes of a refusal that are looked at.
const MAXIMUM_REFUSAL: usize = 16 * 1024;

/// Why something is not in the object store, or not here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The control plane gave no address. [`api_client::Error::Gone`]: the run is not this worker's any more.
    #[error(transparent)]
    Api(#[from] api_client::Error),
    /// The disk.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The object store refused again and again.
    #[error(
        "the object store refused to {verb} {object}: {reason}. Check the bucket's policy and the permissions of the control plane, which signs the addresses"
    )]
    Refused {
        /// `store` or `give`.
        verb: &'static str,
        /// What.
        object: String,
        /// Its answer.
        reason: String,
    },
    /// There is no such object.
    #[error("the object store has no {object}. It may have expired: start the run anew")]
    Missing {
        /// What.
        object: String,
    },
    /// A download could not be begun, or broke off.
    #[error("{object} could not be fetched from the object store: {reason}")]
    Download {
        /// What.
        object: String,
        /// How.
        reason: String,
    },
    /// An address that is not to be used.
    #[error("the control plane gave an address for {object} that is not used: {reason}")]
    Address {
        /// What.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than what anybody keeps.
    #[error("{object} has more than {limit} bytes, which is the limit; leave out what no stage needs")]
    TooLarge {
        /// What.
        object: String,
        /// Bytes.
        limit: u64,
    },
    /// A file on this host.
    #[error("{0}")]
    File(String),
}

impl Error {
    /// Whether the control plane itself says that it does not want this of this worker any more.
    #[must_use]
    pub fn is_unwanted(&self) -> bool {
        const NOT_FOUND: u16 = 404;
        matches!(self, Self::Api(api_client::Error::Gone { .. } | api_client::Error::Refused { status: NOT_FOUND, .. }))
    }

    /// Whether what is on this host's disk is not what was written to it.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Spool(spool::Error::Damaged { .. }))
    }
}

fn named(object: Object) -> String {
    match object {
        Object::Log { number } => format!("chunk {number} of the log"),
        Object::Workspace => "the workspace".to_owned(),
        Object::Outputs => "the outputs".to_owned(),
        Object::Source => "the source".to_owned(),
    }
}

/// The object store, for one stage of a run.
#[derive(Debug, Clone)]
pub struct Store {
    api: ApiClient,
    http: reqwest::Client,
    run: RunId,
    assignment: AssignmentId,
}

/// What an upload is made of, for each attempt anew.
enum Source<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

impl Store {
    /// `http` is [`crate::network::Network::object_store_client`].
    #[must_use]
    pub fn new(api: ApiClient, http: reqwest::Client, run: RunId, assignment: AssignmentId) -> Self {
        Self { api, http, run, assignment }
    }

    /// Stores bytes. It is tried until the object store has them; whoever does not want to wait drops the future.
    ///
    /// # Errors
    /// Control plane or object store refuse for good.
    pub async fn put_bytes(&self, object: Object, bytes: &[u8]) -> Result<(), Error> {
        self.put(object, &Source::Bytes(bytes), bytes.len() as u64).await
    }

    /// Stores a file, as [`Self::put_bytes`]. Gives its length.
    ///
    /// # Errors
    /// The file cannot be read, or control plane or object store refuse for good.
    pub async fn put_file(&self, object: Object, path: &Path) -> Result<u64, Error> {
        let metadata = tokio::fs::metadata(path).await.map_err(|error| file_error("read", path, &error))?;
        self.put(object, &Source::File(path), metadata.len()).await?;
        Ok(metadata.len())
    }

    async fn put(&self, object: Object, source: &Source<'_>, length: u64) -> Result<(), Error> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut refusals = 0;
        let mut waiting = None;
        loop {
            let (address, presigned) = self.presigned(object, Operation::Put, None).await?;
            let body = match source {
                Source::Bytes(bytes) => Body::from(bytes.to_vec()),
                Source::File(path) => {
                    Body::from(tokio::fs::File::open(path).await.map_err(|error| file_error("read", path, &error))?)
                }
            };
            let limit = TRANSFER_TIMEOUT + Duration::from_secs(length / SLOWEST_BYTES_PER_SECOND);
            // Object stores take no body of unknown length.
            let request = self.request(Method::PUT, address, &presigned).header(CONTENT_LENGTH, length).timeout(limit);
            let reason = match request.body(body).send().await {
                Ok(response) if response.status().is_success() => {
                    metrics::shared().object_store.reached();
                    return Ok(());
                }
                Ok(response) => {
                    let refused = is_refusal(response.status());
                    let reason = refusal(response).await;
                    refusals = if refused { refusals + 1 } else { 0 };
                    if refusals >= MAXIMUM_REFUSALS {
                        return Err(Error::Refused { verb: "store", object: named(object), reason });
                    }
                    reason
                }
                Err(error) => api_client::explain(&error.without_url()),
            };
            waiting.get_or_insert_with(|| metrics::shared().object_store.wait());
            metrics::shared().upload_retries.add_one();
            let wait = backoff.after_failure();
            tracing::warn!(
                run_ulid = %self.run,
                wait_ms = wait.as_millis(),
                "the object store did not take {}, trying again: {reason}",
                named(object)
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// Begins to fetch an object.
    ///
    /// # Errors
    /// There is none, or it cannot be had for some minutes.
    pub async fn get(&self, object: Object) -> Result<Download, Error> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut refusals = 0;
        let mut waiting = None;
        loop {
            let (address, presigned) = self.presigned(object, Operation::Get, Some(DOWNLOAD_DEADLINE)).await?;
            let sent = tokio::time::timeout(STALL_TIMEOUT, self.request(Method::GET, address, &presigned).send()).await;
            let reason = match sent {
                Ok(Ok(response)) if response.status() == StatusCode::OK => {
                    metrics::shared().object_store.reached();
                    return Ok(Download { response, object });
                }
                Ok(Ok(response)) if response.status() == StatusCode::NOT_FOUND => {
                    return Err(Error::Missing { object: named(object) });
                }
                Ok(Ok(response)) => {
                    let refused = is_refusal(response.status());
                    let reason = refusal(response).await;
                    refusals = if refused { refusals + 1 } else { 0 };
                    if refusals >= MAXIMUM_REFUSALS {
                        return Err(Error::Refused { verb: "give", object: named(object), reason });
                    }
                    reason
                }
                Ok(Err(error)) => api_client::explain(&error.without_url()),
                Err(_) => format!("no answer after {} s", STALL_TIMEOUT.as_secs()),
            };
            if begun.elapsed() > DOWNLOAD_DEADLINE {
                return Err(Error::Download { object: named(object), reason });
            }
            waiting.get_or_insert_with(|| metrics::shared().object_store.wait());
            let wait = backoff.after_failure();
            tracing::warn!(
                run_ulid = %self.run,
                wait_ms = wait.as_millis(),
                "the object store did not give {}, trying again: {reason}",
                named(object)
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// What an encrypted object is, for its proof: that of another run is none.
    fn purpose(&self, object: Object) -> String {
        // For as long as there are objects with it: not the words of messages.
        let what = match object {
            Object::Workspace => "workspace",
            Object::Outputs => "outputs",
            Object::Source => "source",
            Object::Log { .. } => "log",
        };
        format!("the {what} of run {}", self.run)
    }

    async fn presigned(
        &self,
        object: Object,
        operation: Operation,
        deadline: Option<Duration>,
    ) -> Result<(Url, Presigned), Error> {
        let request = ObjectRequest { assignment: self.assignment, object, operation };
        let presigned = self.api.object(self.run, &request, deadline).await?;
        let address = |reason| Error::Address { object: named(object), reason };
        let url = Url::parse(&presigned.url).map_err(|_| address("it cannot be parsed"))?;
        let host = url.host_str().ok_or_else(|| address("it names no host"))?;
        // Without TLS everybody on the way could read logs and exchange what a run is made of.
        // On a developer's machine all of it is on loopback; elsewhere, this host has services that a run may not talk to.
        let is_own = is_loopback(host) && self.api.is_on_this_host();
        if url.scheme() != "https" && !(url.scheme() == "http" && is_own) {
            return Err(address("it is not https"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if presigned.expires < now {
            tracing::warn!("an address from the control plane has expired already: check this host's clock");
        }
        Ok((url, presigned))
    }

    fn request(&self, method: Method, address: Url, presigned: &Presigned) -> reqwest::RequestBuilder {
        let request = self.http.request(method, address);
        // What a signature can be about, and nothing with which one could talk to somebody else.
        let is_used = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.starts_with("x-amz-") || matches!(&name[..], "content-type" | "content-md5" | "host")
        };
        let headers = presigned.headers.iter().filter(|(name, _)| is_used(name));
        headers.fold(request, |request, (name, value)| request.header(name, value))
    }
}

/// Of a file on this host, with what to do where its disk is full.
pub(crate) fn file_error(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::File(format!("cannot {verb} `{}`: {error}{}", path.display(), shortage::advice(error)))
}

/// Whether asking again is likely to get the same answer.
fn is_refusal(status: StatusCode) -> bool {
    !status.is_server_error() && !matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Status and, from the XML that object stores answer with, the code. The rest of it may repeat the address.
async fn refusal(mut response: Response) -> String {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Ok(Some(part))) = tokio::time::timeout(STALL_TIMEOUT, response.chunk()).await {
        body.extend_from_slice(&part);
        if body.len() > MAXIMUM_REFUSAL {
            break;
        }
    }
    let text = String::from_utf8_lossy(&body);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    let code = code.filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    code.map_or_else(|| status.to_string(), |code| format!("{status}, {code}"))
}

/// An object on its way here. It is complete only once [`Self::chunk`] gave `None`.
#[derive(Debug)]
pub struct Download {
    response: Response,
    object: Object,
}

impl Download {
    /// Its length, if the object store says.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next part, and `None` at the end.
    ///
    /// # Errors
    /// It broke off, or stands still.
    pub async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + Send + 'static>, Error> {
        let failed = |reason| Error::Download { object: named(self.object), reason };
        match tokio::time::timeout(STALL_TIMEOUT, self.response.chunk()).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(error)) => Err(failed(chain(&error.without_url()))),
            Err(_) => Err(failed(format!("nothing came for {} s", STALL_TIMEOUT.as_secs()))),
        }
    }

    /// As a reader, for what is not asynchronous, such as [`sealed::open`]. It must be made in a tokio runtime and be used on a
    /// thread that may wait, as in `spawn_blocking`.
    #[must_use]
    pub fn into_reader(self) -> DownloadReader {
        DownloadReader { download: self, runtime: tokio::runtime::Handle::current(), part: Vec::new(), taken: 0 }
    }
}

/// Made by [`Download::into_reader`].
#[derive(Debug)]
pub struct DownloadReader {
    download: Download,
    runtime: tokio::runtime::Handle,
    part: Vec<u8>,
    taken: usize,
}

impl Read for DownloadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.part.len() {
            let part = self.runtime.block_on(async {
                let part = self.download.chunk().await;
                part.map(|part| part.map(|part| part.as_ref().to_vec()))
            });
            let Some(part) = part.map_err(io::Error::other)? else { return Ok(0) };
            (self.part, self.taken) = (part, 0);
        }
        let count = buffer.len().min(self.part.len() - self.taken);
        buffer[..count].copy_from_slice(&self.part[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Something that is encrypted into a file before it is stored: an object store must know the length beforehand. The file is
/// private, and removed when this is dropped. Writing to it waits for the disk.
pub struct Parcel {
    sealer: Sealer<io::BufWriter<NamedTempFile>>,
    object: Object,
    size: u64,
    /// Of its file, for messages.
    path: PathBuf,
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parcel").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Parcel {
    /// Begins one in this directory, which must exist.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin(directory: &Path, key: &PoolKey, store: &Store, object: Object) -> Result<Self, Error> {
        // tempfile makes files that only their owner reads.
        let file =
            NamedTempFile::new_in(directory).map_err(|error| file_error("create a file in", directory, &error))?;
        let path = file.path().to_owned();
        let sealer = Sealer::new(io::BufWriter::new(file), key, &store.purpose(object));
        let sealer = sealer.map_err(|error| sealing_error(&path, error))?;
        Ok(Self { sealer, object, size: 0, path })
    }

    /// Bytes that were written, before encryption.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Ends it.
    ///
    /// # Errors
    /// The disk fails.
    pub fn finish(self) -> Result<Closed, Error> {
        let Self { sealer, object, size, path } = self;
        let writer = sealer.finish().map_err(|error| sealing_error(&path, error))?;
        let file = writer.into_inner().map_err(|error| file_error("write", &path, error.error()))?;
        Ok(Closed { file, object, size })
    }
}

impl Write for Parcel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sealer.write(bytes);
        let count = written.map_err(|error| io::Error::new(error.kind(), file_error("write", &self.path, &error)))?;
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sealer.flush()
    }
}

/// An error of the disk names the file.
fn sealing_error(path: &Path, error: sealed::Error) -> Error {
    match error {
        sealed::Error::Io(error) => file_error("write", path, &error),
        other => Error::File(other.to_string()),
    }
}

/// A [`Parcel`] that is complete.
#[derive(Debug)]
pub struct Closed {
    file: NamedTempFile,
    object: Object,
    size: u64,
}

impl Closed {
    /// Stores it. Gives the bytes that are in it, before encryption.
    ///
    /// # Errors
    /// See [`Store::put_file`].
    pub async fn store(self, store: &Store) -> Result<u64, Error> {
        store.put_file(self.object, self.file.path()).await?;
        Ok(self.size)
    }
}

/// What is in an encrypted object, as a reader for a thread that may wait. See [`sealed::open`] for when it counts.
///
/// # Errors
/// It is not to be had, or not what a holder of this key stored for this run.
pub async fn get_sealed(store: &Store, object: Object, key: &PoolKey) -> Result<sealed::Opened<DownloadReader>, Error> {
    let reader = store.get(object).await?.into_reader();
    let (key, purpose) = (key.clone(), store.purpose(object));
    let failed = |reason: String| Error::Download { object: named(object), reason };
    let opened = tokio::task::spawn_blocking(move || sealed::open(reader, &key, &purpose)).await;
    opened.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}
