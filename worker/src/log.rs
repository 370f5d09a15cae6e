//! The run's log: what the job writes and what the worker says, without secrets.

use std::sync::Arc;

use crate::masking::{Masker, TooMany};
use crate::protocol::{MAXIMUM_PART, Phase, from_worker};
use crate::session::Outbox;
use crate::untrusted::clipped;

/// Characters of a line beside the log. What a job wrote can be quoted in it, and the launcher takes no message of any length.
const MAXIMUM_LINE: usize = 2000;

/// The way into the log.
#[derive(Debug)]
pub struct Log {
    masker: Masker,
    outbox: Arc<Outbox>,
    masked: Vec<u8>,
    /// Once there are more secrets than can be searched for, nothing more is shown.
    closed: bool,
    at_line_start: bool,
}

impl Log {
    /// Begins one.
    pub fn new(masker: Masker, outbox: Arc<Outbox>) -> Self {
        Self { masker, outbox, masked: Vec::new(), closed: false, at_line_start: true }
    }

    /// What masks it.
    pub fn masker(&mut self) -> &mut Masker {
        &mut self.masker
    }

    /// Shows nothing more: it is not known what may be shown.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Output of the job. Waits while the launcher is away.
    pub async fn write(&mut self, bytes: &[u8]) {
        if !self.closed {
            let result = self.masker.write(bytes, &mut self.masked);
            self.send(result).await;
        }
    }

    /// The end of a program's output.
    pub async fn flush(&mut self) {
        if !self.closed {
            let result = self.masker.flush(&mut self.masked);
            self.send(result).await;
        }
    }

    /// Something that the worker itself has to say, on a line of its own.
    pub async fn say(&mut self, text: &str) {
        self.flush().await;
        let begin = if self.at_line_start { "" } else { "\n" };
        // What is said is not a directive, whatever is in it.
        self.write(format!("{begin}[spacelift] {text}\n").as_bytes()).await;
        self.flush().await;
    }

    /// A phase begins.
    pub async fn phase(&mut self, phase: Phase) {
        self.flush().await;
        self.outbox.push(from_worker::Body::Phase(phase.into())).await;
    }

    /// One line without secrets, for what is reported beside the log.
    pub fn masked_line(&mut self, text: &str) -> String {
        let mut out = Vec::new();
        let masked = self.masker.write(b" ", &mut Vec::new());
        let result = masked.and_then(|()| self.masker.write(text.as_bytes(), &mut out));
        let result = result.and_then(|()| self.masker.flush(&mut out));
        if self.closed || result.is_err() {
            return "there are too many secrets to show the reason".to_owned();
        }
        // Once it is masked: of a secret that is cut, the rest would be shown.
        clipped(&String::from_utf8_lossy(&out).trim().replace(['\n', '\r'], " "), MAXIMUM_LINE)
    }

    async fn send(&mut self, result: Result<(), TooMany>) {
        let mut masked = std::mem::take(&mut self.masked);
        if let Err(error) = result {
            self.closed = true;
            masked.extend_from_slice(format!("\n[spacelift] the rest of the log is not shown: {error}\n").as_bytes());
        }
        if let Some(last) = masked.last() {
            self.at_line_start = *last == b'\n';
        }
        for part in masked.chunks(MAXIMUM_PART) {
            self.outbox.push(from_worker::Body::Log(part.to_vec())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::Secrets;
    use crate::protocol::MAXIMUM_FROM_WORKER;

    /// An outcome that the launcher does not take would be said again until the run's time is over.
    #[test]
    fn a_reason_of_any_length_is_one_that_the_launcher_takes() {
        let mut secrets = Secrets::default();
        secrets.add(b"hunter2").unwrap();
        let mut log = Log::new(Masker::new(secrets), Arc::default());
        let line = log.masked_line(&format!("a\n{}", "hunter2 \u{1d11e}".repeat(MAXIMUM_FROM_WORKER)));
        assert!(line.len() <= 4 * MAXIMUM_LINE && line.ends_with('…'), "{} bytes", line.len());
        assert!(line.starts_with("a *** ") && !line.contains("hunter"), "{line}");
    }
}
