//! The launcher's exit codes. They follow `sysexits.h` where it has a fitting one, and keep their meaning between
//! releases.

/// The command did what it was asked for.
pub const OK: u8 = 0;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 64;
/// This launcher cannot do what was asked: it carries no worker, or has no control plane to connect to.
pub const UNAVAILABLE: u8 = 69;
/// The launcher's own file is damaged: what it carries is not what it was built with.
pub const DAMAGED: u8 = 70;
/// The operating system refused to read or write something: disk full, permission denied, output closed.
pub const IO: u8 = 74;
/// A file or directory on the host could be changed by others, so the launcher does not use it.
pub const UNTRUSTED: u8 = 77;
/// Stopped by SIGINT or SIGTERM.
pub const INTERRUPTED: u8 = 130;
