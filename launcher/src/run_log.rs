//! The log of a run: kept and delivered by [`upload::Log`], and copied to standard output where that is wanted.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use launcher_wire::api::LogSummary;
use serde_json::json;
use tokio::sync::RwLock;

use crate::output::standard_output;
use crate::run::Ids;
use crate::spool;
use crate::upload::{self, Store};

/// Bytes of a log that may wait on the disk. A run that makes more while nothing can be delivered is ended.
pub const LIMIT: u64 = 1024 * 1024 * 1024;
/// Bytes of a line on standard output; what is longer is cut into several.
const MAXIMUM_LINE: usize = 64 * 1024;

/// How long to wait before a log that could not be delivered is tried again.
const FLUSH_AGAIN: Duration = Duration::from_secs(30);

/// How often a log may be found damaged before nobody waits for it any more.
const MAXIMUM_DAMAGED: u32 = 4;

/// What became of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// All of it is in the object store.
    Whole(LogSummary),
    /// The control plane does not want it any more.
    Unwanted,
    /// It cannot be read any more, and why.
    Damaged(String),
}

/// The log of the present run. Clones are the same log.
#[derive(Debug, Clone)]
pub struct RunLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// None while it is opened anew.
    log: RwLock<Option<upload::Log>>,
    settings: upload::Settings,
    last_sequence: AtomicU64,
    copy: Option<Mutex<Copy>>,
}

impl RunLog {
    /// Opens it, or begins it.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub async fn open(
        directory: &Path,
        ids: Ids,
        store: Store,
        on_standard_output: bool,
    ) -> Result<Self, upload::Error> {
        let settings = upload::Settings { directory: directory.to_owned(), limit: LIMIT, store };
        let log = upload::Log::open(settings.clone()).await?;
        let last_sequence = AtomicU64::new(log.acknowledged());
        let copy = on_standard_output.then(|| Mutex::new(Copy::new(ids.run.to_string())));
        Ok(Self { shared: Arc::new(Shared { log: RwLock::new(Some(log)), settings, last_sequence, copy }) })
    }

    /// Of which stack it is, for standard output.
    pub fn of_stack(&self, stack: &str) {
        if let Some(mut copy) = self.copy() {
            stack.clone_into(&mut copy.stack);
        }
    }

    /// The last message of the worker that is safe.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.shared.last_sequence.load(Ordering::Acquire)
    }

    /// Takes messages of the worker, in order, with one wait for the disk. Gives how many are safe: fewer than all where there
    /// is no room for more until something was delivered.
    ///
    /// # Errors
    /// The disk fails, or a message before these is missing.
    pub async fn append(&self, messages: &[(u64, Vec<u8>)]) -> Result<usize, spool::Error> {
        let log = self.shared.log.read().await;
        let log = log.as_ref().ok_or_else(closed)?;
        let mut pending = vec![];
        for (sequence, bytes) in messages {
            pending.push(log.submit(*sequence, bytes.clone()).await?);
        }
        for (place, pending) in pending.into_iter().enumerate() {
            match pending.done().await {
                Ok(safe) => {
                    self.shared.last_sequence.fetch_max(safe, Ordering::AcqRel);
                    if let Some(mut copy) = self.copy() {
                        copy.take(&messages[place].1);
                    }
                }
                // What follows was refused as well: this one is missing before it.
                Err(spool::Error::LimitReached { .. }) => return Ok(place),
                Err(error) => return Err(error),
            }
        }
        Ok(messages.len())
    }

    /// Takes a line of the launcher's own.
    pub async fn line(&self, line: String) {
        if let Some(mut copy) = self.copy() {
            copy.take(line.as_bytes());
            copy.take(b"\n");
        }
        let log = self.shared.log.read().await;
        let said = match log.as_ref() {
            Some(log) => log.say(&line).await,
            None => Err(closed()),
        };
        if let Err(error) = said {
            tracing::error!(%error, "a line is missing in the run's log: {line}");
        }
    }

    /// Opens it anew, with what is on the disk: what gave up before, or does not know what is on the disk, begins again.
    ///
    /// # Errors
    /// The disk fails, or what is on it is damaged.
    pub async fn reopen(&self) -> Result<(), upload::Error> {
        let mut log = self.shared.log.write().await;
        if let Some(log) = log.take() {
            log.close().await;
        }
        let opened = upload::Log::open(self.shared.settings.clone()).await?;
        self.shared.last_sequence.fetch_max(opened.acknowledged(), Ordering::AcqRel);
        *log = Some(opened);
        Ok(())
    }

    /// Waits until all of it is in the object store, however long disk, control plane or object store refuse.
    pub async fn flush_for_good(&self) -> Delivered {
        if let Some(mut copy) = self.copy() {
            copy.end();
        }
        let mut damaged = 0;
        loop {
            let flushed = match self.shared.log.read().await.as_ref() {
                Some(log) => log.flush().await,
                None => Err(closed().into()),
            };
            let error = match flushed {
                Ok(summary) => return Delivered::Whole(summary),
                Err(error) => error,
            };
            tracing::error!(%error, "the run's log is not delivered");
            if error.is_unwanted() {
                return Delivered::Unwanted;
            }
            damaged += u32::from(error.is_damage());
            tokio::time::sleep(FLUSH_AGAIN).await;
            if let Err(error) = self.reopen().await {
                tracing::error!(%error, "the run's log cannot be opened");
                damaged += u32::from(error.is_damage());
            }
            // Reading it again does not mend it.
            if damaged >= MAXIMUM_DAMAGED {
                return Delivered::Damaged(error.to_string());
            }
        }
    }

    fn copy(&self) -> Option<MutexGuard<'_, Copy>> {
        self.shared.copy.as_ref().map(|copy| copy.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn closed() -> spool::Error {
    spool::Error::Io { action: "use", path: "the log".into(), reason: "it is being opened anew".to_owned() }
}

/// What goes to standard output: each line of the log as one line of JSON.
#[derive(Debug)]
struct Copy {
    run: String,
    stack: String,
    rest: Vec<u8>,
}

impl Copy {
    fn new(run: String) -> Self {
        Self { run, stack: String::new(), rest: vec![] }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() >= MAXIMUM_LINE {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if self.rest.is_empty() {
            return;
        }
        let line = format!("{}\n", self.line(now()));
        self.rest.clear();
        standard_output().line(line.into_bytes());
    }

    fn line(&self, milliseconds: u64) -> String {
        let message = String::from_utf8_lossy(&self.rest);
        let message = message.trim_end_matches(['\n', '\r']);
        json!({ "run_ulid": self.run, "stack_id": self.stack, "ts": milliseconds, "msg": message }).to_string()
    }
}

fn now() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_documented_fields() {
        let copy =
            Copy { stack: "network".to_owned(), rest: b"one \"line\"\r\n".to_vec(), ..Copy::new("R".to_owned()) };
        let line: serde_json::Value = serde_json::from_str(&copy.line(5)).unwrap();
        assert_eq!(line, json!({ "run_ulid": "R", "stack_id": "network", "ts": 5, "msg": "one \"line\"" }));
    }
}
