//! The log of a run: kept and delivered by [`upload::Log`], and copied to standard output where that is wanted.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use launcher_wire::api::LogSummary;
use serde_json::json;

use crate::run::Ids;
use crate::spool;
use crate::upload::{self, Store};

/// Bytes of a log that may wait on the disk. A run that makes more while nothing can be delivered is ended.
pub const LIMIT: u64 = 1024 * 1024 * 1024;
/// Bytes of a line on standard output; what is longer is cut into several.
const MAXIMUM_LINE: usize = 64 * 1024;

/// The log of the present run. Clones are the same log.
#[derive(Debug, Clone)]
pub struct RunLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: upload::Log,
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
        let log = upload::Log::open(settings).await?;
        let last_sequence = AtomicU64::new(log.acknowledged());
        let copy = on_standard_output.then(|| Mutex::new(Copy::new(ids.run.to_string())));
        Ok(Self { shared: Arc::new(Shared { log, last_sequence, copy }) })
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
        let mut pending = vec![];
        for (sequence, bytes) in messages {
            pending.push(self.shared.log.submit(*sequence, bytes.clone()).await?);
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
        if let Err(error) = self.shared.log.say(&line).await {
            tracing::error!(%error, "a line is missing in the run's log: {line}");
        }
    }

    /// Waits until all of it is in the object store.
    ///
    /// # Errors
    /// The disk fails, or control plane or object store refuse for good.
    pub async fn flush(&self) -> Result<LogSummary, upload::Error> {
        if let Some(mut copy) = self.copy() {
            copy.end();
        }
        self.shared.log.flush().await
    }

    fn copy(&self) -> Option<MutexGuard<'_, Copy>> {
        self.shared.copy.as_ref().map(|copy| copy.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
        let line = self.line(now());
        self.rest.clear();
        // Whoever closed it does not want it any more; the log itself is not touched by that.
        let _ = writeln!(io::stdout().lock(), "{line}");
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
