//! The log of one assignment: taken in, kept on the disk, and uploaded.
//!
//! Two tasks share the work. The *keeper* owns the spool; it takes many messages at once, waits once for the disk, and answers
//! all of them. The *uploader* stores sealed chunks, several at once, and has the keeper discard them in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use launcher_wire::api::{LogSummary, Object};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::pace::Pace;
use super::{Error, Store};
use crate::metrics;
use crate::network::Backoff;
use crate::spool::{self, Spool};

/// How far apart chunks are of a log that goes on and on: people watch it while the run does. See [`Pace`] for other logs.
const LIVE_INTERVAL: Duration = Duration::from_secs(2);
/// The same for a log that has half of the chunks that it may have already. The rest lasts for days then.
const LATE_INTERVAL: Duration = Duration::from_secs(30);
/// The limit of the first wait after a refusal, and of all of them.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// Chunks on their way at once. Each costs an answer of the control plane and one of the object store, some tenths of a second
/// together where they are far away; one after the other a log would come to a few megabytes in a second.
const UPLOADS: u64 = 4;
/// Messages that wait for the disk, and the most that share one wait for it. With parts of 64 KiB that is 4 MiB.
const QUEUE: usize = 64;

/// What a log is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is spooled. Of this assignment alone; made if it is not there.
    pub directory: PathBuf,
    /// Bytes that may wait there.
    pub limit: u64,
    /// Where it goes.
    pub store: Store,
}

/// The log of one assignment. Dropping it ends the upload; what is on the disk stays there for [`Log::open`].
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    acknowledged: u64,
    commands: mpsc::Sender<Command>,
    progress: watch::Receiver<Progress>,
    keeper: JoinHandle<()>,
    uploader: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    Append {
        sequence: u64,
        bytes: Vec<u8>,
        answer: oneshot::Sender<Result<u64, spool::Error>>,
    },
    Seal {
        answer: oneshot::Sender<Result<(LogSummary, u64), spool::Error>>,
    },
    /// Because of its age; nobody waits for it.
    SealQuietly,
    Discard {
        number: u64,
        answer: oneshot::Sender<Result<(), spool::Error>>,
    },
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// Chunks below this number do not change any more.
    sealed: u64,
    /// Chunks below this number are in the object store.
    stored: u64,
    /// Why nothing is uploaded any more.
    failed: Option<Error>,
}

impl Log {
    /// Opens the log, or begins one, and uploads what an earlier process left.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let Settings { directory, limit, store } = settings;
        let place = directory.clone();
        let spool = on_disk(move || Spool::open(&place, limit)).await??;
        let acknowledged = spool.last_sequence();
        let start = Progress { sealed: spool.open_chunk(), stored: spool.first_chunk(), failed: None };
        let (report, progress) = watch::channel(start);
        let (commands, queue) = mpsc::channel(QUEUE);
        let keeper = tokio::spawn(keep(spool, queue, report.clone()));
        let uploader = tokio::spawn(upload(directory.clone(), store, commands.clone(), report));
        Ok(Self { directory, acknowledged, commands, progress, keeper, uploader })
    }

    /// The last message of the worker that was on the disk when the log was opened.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Takes a message of the worker, with its sequence number. Once this returns it is safe. Gives the last sequence number
    /// that is. A message that is there already is passed over; one without bytes leaves its number only.
    ///
    /// # Errors
    /// It is not in the log: see [`spool::Error`]. After [`spool::Error::LimitReached`] a later one may succeed.
    pub async fn append(&self, sequence: u64, bytes: Vec<u8>) -> Result<u64, spool::Error> {
        self.submit(sequence, bytes).await?.done().await
    }

    /// As [`Self::append`], without waiting for the disk: returns once the message has its place, so that the next one can
    /// follow at once and shares the wait with it.
    ///
    /// # Errors
    /// The log has ended.
    pub async fn submit(&self, sequence: u64, bytes: Vec<u8>) -> Result<Pending, spool::Error> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Append { sequence, bytes, answer }).await.map_err(|_| ended())?;
        Ok(Pending { answered })
    }

    /// Takes a line of the launcher's own; a line break is added. Some of them fit even when the limit is reached.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn say(&self, line: &str) -> Result<(), spool::Error> {
        let bytes = format!("{line}\n").into_bytes();
        self.ask(|answer| Command::Append { sequence: 0, bytes, answer }).await.map(|_| ())
    }

    /// Waits until everything that was taken before is in the object store, and says what it is.
    ///
    /// # Errors
    /// The disk fails, what is on it is damaged, or the control plane does not want it any more. Otherwise it is tried for as
    /// long as it takes.
    pub async fn flush(&self) -> Result<LogSummary, Error> {
        let (summary, end) = self.ask(|answer| Command::Seal { answer }).await?;
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| progress.stored >= end || progress.failed.is_some()).await;
        match reached {
            Ok(progress) if progress.stored >= end => Ok(summary),
            Ok(progress) => Err(progress.failed.clone().unwrap_or_else(|| ended().into())),
            Err(_) => Err(ended().into()),
        }
    }

    /// Why nothing is uploaded any more, once that is so.
    pub async fn failure(&self) -> Error {
        let mut progress = self.progress.clone();
        match progress.wait_for(|progress| progress.failed.is_some()).await {
            Ok(progress) => progress.failed.clone().unwrap_or_else(|| ended().into()),
            Err(_) => ended().into(),
        }
    }

    /// Ends both tasks and removes the directory: the outcome was reported, or there is none to be.
    ///
    /// # Errors
    /// The directory cannot be removed.
    pub async fn remove(self) -> Result<(), Error> {
        let directory = self.directory.clone();
        self.close().await;
        let place = directory.clone();
        let removed = on_disk(move || std::fs::remove_dir_all(&directory)).await?;
        removed.map_err(|error| super::file_error("remove", &place, &error))
    }

    /// Ends both tasks. What is on the disk stays there, and nobody touches it afterwards.
    pub async fn close(mut self) {
        self.uploader.abort();
        let _ = (&mut self.uploader).await;
        // It ends when nobody can ask for anything any more, and the disk is at rest then.
        let (closed, _) = mpsc::channel(1);
        self.commands = closed;
        let _ = (&mut self.keeper).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, spool::Error>>) -> Command,
    ) -> Result<T, spool::Error> {
        ask(&self.commands, command).await
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.uploader.abort();
        self.keeper.abort();
    }
}

/// A message on its way to the disk.
#[derive(Debug)]
pub struct Pending {
    answered: oneshot::Receiver<Result<u64, spool::Error>>,
}

impl Pending {
    /// Waits until it is safe: see [`Log::append`].
    ///
    /// # Errors
    /// It is not in the log.
    pub async fn done(self) -> Result<u64, spool::Error> {
        self.answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<T, spool::Error>>) -> Command,
) -> Result<T, spool::Error> {
    let (answer, answered) = oneshot::channel();
    commands.send(command(answer)).await.map_err(|_| ended())?;
    answered.await.unwrap_or_else(|_| Err(ended()))
}

fn ended() -> spool::Error {
    spool::Error::Io {
        action: "use",
        path: PathBuf::from("the log"),
        reason: "the task that keeps it has ended".to_owned(),
    }
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, spool::Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ended())
}

async fn keep(mut spool: Spool, mut queue: mpsc::Receiver<Command>, report: watch::Sender<Progress>) {
    let mut seal_at = None;
    let mut pace = Pace::new(Instant::now());
    loop {
        let waiting = spool.open_chunk() - spool.first_chunk() + u64::from(spool.has_unsealed());
        metrics::shared().spooled(spool.unsent(), waiting);
        let first = tokio::select! {
            // What is due is not put off by what comes next.
            biased;
            () = tokio::time::sleep_until(seal_at.unwrap_or_else(Instant::now)), if seal_at.is_some() => {
                Command::SealQuietly
            }
            command = queue.recv() => match command {
                Some(command) => command,
                None => return,
            },
        };
        let is_attempt = matches!(first, Command::SealQuietly);
        let mut batch = vec![first];
        while batch.len() < QUEUE
            && let Ok(command) = queue.try_recv()
        {
            batch.push(command);
        }
        let was_open = spool.open_chunk();
        let Ok(returned) = on_disk(move || (work(&mut spool, batch), spool).1).await else { return };
        spool = returned;
        report.send_if_modified(|progress| {
            std::mem::replace(&mut progress.sealed, spool.open_chunk()) != progress.sealed
        });
        let interval = if spool.open_chunk() < spool::MAXIMUM_CHUNKS / 2 { LIVE_INTERVAL } else { LATE_INTERVAL };
        let now = Instant::now();
        if is_attempt || spool.open_chunk() != was_open {
            pace.sealed(now, interval);
            seal_at = None;
        }
        seal_at = spool.has_unsealed().then(|| seal_at.unwrap_or_else(|| pace.due(now, interval)));
    }
}

/// Everything in a batch, with one wait for the disk before any of it is answered.
fn work(spool: &mut Spool, batch: Vec<Command>) {
    let mut appended = Vec::new();
    let mut others = Vec::new();
    for command in batch {
        match command {
            Command::Append { sequence, bytes, answer } => appended.push((spool.append(sequence, &bytes), answer)),
            other => others.push(other),
        }
    }
    if !appended.is_empty() {
        let committed = spool.commit();
        let last = spool.last_sequence();
        for (result, answer) in appended {
            // Whoever asked may be gone.
            let _ = answer.send(result.and_then(|_| committed.clone()).map(|()| last));
        }
    }
    for command in others {
        match command {
            Command::Append { .. } => {}
            Command::Seal { answer } => {
                let sealed = spool.seal().map(|()| (spool.summary(), spool.open_chunk()));
                let _ = answer.send(sealed);
            }
            Command::SealQuietly => {
                if let Err(error) = spool.seal() {
                    // Whoever appends or flushes next gets it as well.
                    tracing::warn!("a part of the log cannot be made ready for upload: {error}");
                }
            }
            Command::Discard { number, answer } => {
                let _ = answer.send(spool.discard(number));
            }
        }
    }
}

async fn upload(directory: PathBuf, store: Store, commands: mpsc::Sender<Command>, report: watch::Sender<Progress>) {
    let mut progress = report.subscribe();
    let mut first = progress.borrow().stored;
    let mut next = first;
    let mut uploads = JoinSet::new();
    // What came to its end before one with a lower number.
    let mut done = BTreeMap::new();
    loop {
        let sealed = progress.borrow_and_update().sealed;
        while next < sealed.min(first + UPLOADS) {
            uploads.spawn(upload_chunk(directory.clone(), store.clone(), next));
            next += 1;
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() {
                return;
            },
            Some(joined) = uploads.join_next() => match joined {
                Ok((number, result)) => {
                    done.insert(number, result);
                }
                // It panicked; nobody waits for a log that nobody uploads.
                Err(_) => return report.send_modify(|progress| progress.failed = Some(ended().into())),
            },
        }
        // In order: after a crash, the disk holds what follows the last one that was stored, without a hole.
        while let Some(result) = done.remove(&first) {
            let result = match result {
                Ok(()) => discard(&commands, first).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::error!("the log is not uploaded any more: {error}");
                return report.send_modify(|progress| progress.failed = Some(error));
            }
            first += 1;
            report.send_modify(|progress| progress.stored = first);
        }
    }
}

/// Stores a chunk, however long it takes, and gives its number as well. An error is one that stays as it is.
async fn upload_chunk(directory: PathBuf, store: Store, number: u64) -> (u64, Result<(), Error>) {
    let mut attempts = Attempts::default();
    loop {
        let Err(error) = try_chunk(&directory, &store, number).await else { return (number, Ok(())) };
        if let Err(error) = attempts.failed(error).await {
            return (number, Err(error));
        }
    }
}

async fn try_chunk(directory: &Path, store: &Store, number: u64) -> Result<(), Error> {
    let place = directory.to_owned();
    let bytes = on_disk(move || spool::read_chunk(&place, number)).await??;
    store.put_bytes(Object::Log { number }, &bytes).await
}

/// The object store has it.
async fn discard(commands: &mpsc::Sender<Command>, number: u64) -> Result<(), Error> {
    let mut attempts = Attempts::default();
    loop {
        let Err(error) = ask(commands, |answer| Command::Discard { number, answer }).await else { return Ok(()) };
        attempts.failed(error.into()).await?;
    }
}

/// Tries that did not succeed.
struct Attempts {
    backoff: Backoff,
    /// Each try ends after some refusals. To an operator all of them are one time of waiting.
    waiting: Option<metrics::Waiting<'static>>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST), waiting: None }
    }
}

impl Attempts {
    /// Waits until the next one. Gives the error back if it is one that stays as it is: whoever refuses today may have a new
    /// policy tomorrow, but what is unwanted or damaged remains so.
    async fn failed(&mut self, error: Error) -> Result<(), Error> {
        if error.is_unwanted() || error.is_damage() {
            return Err(error);
        }
        if matches!(error, Error::Refused { .. }) {
            self.waiting.get_or_insert_with(|| metrics::shared().object_store.wait());
        }
        metrics::shared().upload_retries.add_one();
        let wait = self.backoff.after_failure();
        tracing::warn!(wait_ms = wait.as_millis(), "the log waits on this host, trying again: {error}");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
