//! SIGINT and SIGTERM.
//!
//! The handler only sets a flag. Loops that copy, hash or compress look at it between blocks and return an error, so
//! that every temporary file and directory is removed by its own destructor, and nothing half-written is left.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// What [`check`] returns inside an [`io::Error`] once a signal has come.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was left under a final name")]
pub struct Interrupted;

/// Catches SIGINT and SIGTERM from here on. A second signal ends the process at once.
///
/// # Errors
/// The operating system refused to install the handler.
pub fn catch() -> io::Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Order matters: the first handler sees the flag as it was before this signal.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag))?;
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// # Errors
/// A signal came since [`catch`].
pub fn check() -> io::Result<()> {
    if FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        // Not ErrorKind::Interrupted: std's copy loops would take that for EINTR and go on.
        return Err(io::Error::other(Interrupted));
    }
    Ok(())
}

/// Whether `error` is what [`check`] returned.
pub fn is_interrupted(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Interrupted>())
}
