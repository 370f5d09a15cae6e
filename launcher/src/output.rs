//! The launcher's own output, by threads of their own: whoever reads it may stop to, and the launcher goes on.
//!
//! What has no room is left out, and how much that was is said as soon as there is room again. Logs of runs go another way.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::metrics;

/// Lines that wait.
const QUEUE: usize = 4096;
/// Bytes that wait.
const MAXIMUM_WAITING: usize = 8 * 1024 * 1024;
/// How often it is looked at whether everything was written.
const POLL: Duration = Duration::from_millis(5);

/// One of the two.
#[derive(Debug)]
pub struct Output {
    lines: SyncSender<Vec<u8>>,
    waiting: &'static AtomicUsize,
    lost: &'static AtomicU64,
}

/// Standard output.
pub fn standard_output() -> &'static Output {
    static OUTPUT: OnceLock<Output> = OnceLock::new();
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    static LOST: AtomicU64 = AtomicU64::new(0);
    OUTPUT.get_or_init(|| Output::start(io::stdout, &WAITING, &LOST))
}

/// Standard error.
pub fn standard_error() -> &'static Output {
    static OUTPUT: OnceLock<Output> = OnceLock::new();
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    static LOST: AtomicU64 = AtomicU64::new(0);
    OUTPUT.get_or_init(|| Output::start(io::stderr, &WAITING, &LOST))
}

/// Waits until everything was written, for so long at most.
pub fn finish(limit: Duration) {
    let begun = Instant::now();
    for output in [standard_output(), standard_error()] {
        while output.waiting.load(Ordering::Acquire) > 0 && begun.elapsed() < limit {
            thread::sleep(POLL);
        }
    }
}

impl Output {
    fn start<W: Write>(
        open: impl Fn() -> W + Send + 'static,
        waiting: &'static AtomicUsize,
        lost: &'static AtomicU64,
    ) -> Self {
        let (lines, queue) = sync_channel::<Vec<u8>>(QUEUE);
        let writer = move || {
            for line in queue {
                let missing = lost.swap(0, Ordering::AcqRel);
                let mut out = open();
                // Whoever closed it does not want it any more.
                if missing > 0 {
                    let _ = writeln!(out, "{missing} lines of the launcher are missing here: nobody read them");
                }
                let _ = out.write_all(&line).and_then(|()| out.flush());
                waiting.fetch_sub(line.len(), Ordering::AcqRel);
            }
        };
        // Without a thread nothing is written, and nothing else suffers.
        let _ = thread::Builder::new().name("output".to_owned()).spawn(writer);
        Self { lines, waiting, lost }
    }

    /// Takes a whole line, with its line break, or leaves it out.
    pub fn line(&self, line: Vec<u8>) {
        let size = line.len();
        let has_room = self.waiting.fetch_add(size, Ordering::AcqRel) + size <= MAXIMUM_WAITING;
        if !has_room || self.lines.try_send(line).is_err() {
            self.waiting.fetch_sub(size, Ordering::AcqRel);
            self.lost.fetch_add(1, Ordering::AcqRel);
            metrics::shared().lines_lost.add_one();
        }
    }
}

/// For `tracing`, which writes a line at once.
impl Write for &Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Somebody who reads only when told to.
    struct Reader {
        seen: Arc<Mutex<Vec<u8>>>,
        told: Arc<Mutex<Receiver<()>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whoever told is gone: everything is read then.
            let _ = self.told.lock().unwrap().recv();
            self.seen.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_missing_is_said() {
        static WAITING: AtomicUsize = AtomicUsize::new(0);
        static LOST: AtomicU64 = AtomicU64::new(0);
        let (tell, told) = channel();
        let (seen, told) = (Arc::new(Mutex::new(vec![])), Arc::new(Mutex::new(told)));
        let read = Arc::clone(&seen);
        let output =
            Output::start(move || Reader { seen: Arc::clone(&read), told: Arc::clone(&told) }, &WAITING, &LOST);
        for number in 0..QUEUE + 100 {
            output.line(format!("line {number}\n").into_bytes());
        }
        output.line(vec![b'x'; MAXIMUM_WAITING + 1]);
        drop(tell);
        let begun = Instant::now();
        while WAITING.load(Ordering::Acquire) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not write");
            thread::sleep(POLL);
        }
        output.line(b"last\n".to_vec());
        while WAITING.load(Ordering::Acquire) > 0 {
            thread::sleep(POLL);
        }
        let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert!(seen.contains("line 0\n") && seen.contains("lines of the launcher are missing"), "{seen}");
        assert!(seen.ends_with("last\n") && seen.len() < MAXIMUM_WAITING, "{seen}");
    }
}
