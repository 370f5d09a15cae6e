//! The launcher's own log: what is in order on standard output, what needs somebody's attention on standard error.

use spacelift_launcher::output::{standard_error, standard_output};
use tracing::Level;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

/// Begins to log. A second call changes nothing.
pub(crate) fn start() {
    let writer = standard_error.with_max_level(Level::WARN).or_else(standard_output);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_ansi(false)
        .with_target(false)
        .with_writer(writer)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}
