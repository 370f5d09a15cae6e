//! The exit codes: what scripts branch on. Documented in `--help`; `exit` says which error has which.

/// Wrong usage or configuration (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// Bad input (`EX_DATAERR`).
pub(crate) const DATA: u8 = 65;
/// Input missing or unreadable (`EX_NOINPUT`).
pub(crate) const NO_INPUT: u8 = 66;
/// Output cannot be created (`EX_CANTCREAT`).
pub(crate) const CANNOT_CREATE: u8 = 73;
/// Input/output error (`EX_IOERR`).
pub(crate) const IO: u8 = 74;
/// A service cannot be reached (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// A service cannot answer now, or someone else is at it; later the same command may succeed (`EX_TEMPFAIL`).
pub(crate) const TRY_AGAIN: u8 = 75;
/// Credentials are missing, wrong, expired or not sufficient (`EX_NOPERM`).
pub(crate) const DENIED: u8 = 77;
/// What a service was asked for is not there, or is not what it should be (`EX_CONFIG`).
pub(crate) const CONFIGURATION: u8 = 78;
/// Interrupted by SIGINT or SIGTERM.
pub(crate) const INTERRUPTED: u8 = 130;
/// Verification step N failed: this plus N.
pub(crate) const STEP: u8 = 10;
