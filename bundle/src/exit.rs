//! Which error ends the program with which exit code.

use std::io;
use std::path::PathBuf;

use bundle_core::{
    dependencies, image, install_config, interrupt, pack, provenance, release, release_config, signature, signing,
    verify,
};

use crate::exit_code::{
    CANNOT_CREATE, CONFIGURATION, DATA, DENIED, INTERRUPTED, IO, NO_INPUT, STEP, TRY_AGAIN, UNAVAILABLE, USAGE,
};
use crate::failure::{self, Failure};
use crate::install::stack;
use crate::{aws, publish, registry};

/// A mistake in how the program was called that the argument parser cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A file that the caller named cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} {}: {source}", .path.display())]
pub(crate) struct Unreadable {
    /// What it is, such as "the passphrase file".
    pub(crate) what: &'static str,
    /// The file.
    pub(crate) path: PathBuf,
    /// What the operating system said.
    pub(crate) source: io::Error,
}

/// The step of verification that refused, if one did.
pub(crate) fn step(error: &anyhow::Error) -> Option<u8> {
    error.chain().find_map(|cause| cause.downcast_ref::<verify::Error>().and_then(verify::Error::step))
}

/// What to do about a refusal of verification, where the refusal itself does not say so.
pub(crate) fn advice(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| cause.downcast_ref::<verify::Error>().and_then(verify::Error::advice))
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The exit code for `error`: the first cause that has one decides.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(interrupt::is_interrupted) {
        return INTERRUPTED;
    }
    error.chain().find_map(of_cause).unwrap_or(1)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<verify::Error>() {
        return match (error.step(), error) {
            (Some(step), _) => Some(STEP + step),
            (None, verify::Error::Io { doing, source, .. }) => Some(of_io(doing, source)),
            (None, _) => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<release::Error>() {
        return match error {
            release::Error::Io { doing, source, .. } => Some(of_io(doing, source)),
            release::Error::Signing(error) => Some(of_signing(error)),
            _ => Some(DATA),
        };
    }
    if let Some(error) = cause.downcast_ref::<pack::Error>() {
        return match error {
            pack::Error::Read { source, .. } => Some(of_io("read", source)),
            pack::Error::Write { source, .. } => Some(of_io("write", source)),
            pack::Error::Image { source, .. } => Some(source.exit_code()),
            _ => Some(DATA),
        };
    }
    if let Some(error) = cause.downcast_ref::<signature::CertError>() {
        return Some(match error {
            signature::CertError::Io { .. } => NO_INPUT,
            signature::CertError::Parse { .. } => DATA,
            signature::CertError::None => USAGE,
        });
    }
    if let Some(error) = cause.downcast_ref::<image::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<dependencies::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<provenance::Error>() {
        return Some(error.exit_code());
    }
    if let Some(problems) = cause.downcast_ref::<release_config::Problems>() {
        return Some(problems.exit_code());
    }
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(of_failure(failure));
    }
    if let Some(error) = cause.downcast_ref::<publish::Error>() {
        return Some(match error {
            publish::Error::Request(failure) => of_failure(failure),
            publish::Error::OtherContents { .. } | publish::Error::Pointer { .. } => DATA,
            publish::Error::NotAsWritten { .. } => IO,
            publish::Error::NotPublished { .. } => NO_INPUT,
            publish::Error::Read { source, .. } => of_io("read", source),
        });
    }
    if cause.is::<aws::Error>() {
        return Some(USAGE);
    }
    if let Some(error) = cause.downcast_ref::<registry::Error>() {
        return Some(error.exit_code());
    }
    if cause.is::<Usage>() {
        return Some(USAGE);
    }
    if let Some(error) = cause.downcast_ref::<stack::Error>() {
        return Some(match error {
            stack::Error::Service(failure) => of_failure(failure),
            stack::Error::Destroys { .. } => USAGE,
            stack::Error::TooLong { .. } => TRY_AGAIN,
            stack::Error::Ended { .. } | stack::Error::ChangeSet { .. } => CONFIGURATION,
            stack::Error::Interrupted { .. } => INTERRUPTED,
        });
    }
    if let Some(error) = cause.downcast_ref::<install_config::Error>() {
        return Some(match error {
            install_config::Error::Read { source, .. } => of_io("read", source),
            install_config::Error::Syntax { .. } | install_config::Error::Problems { .. } => USAGE,
        });
    }
    if let Some(error) = cause.downcast_ref::<Unreadable>() {
        return Some(of_io("read", &error.source));
    }
    if let Some(error) = cause.downcast_ref::<signing::Error>() {
        return Some(of_signing(error));
    }
    cause.downcast_ref::<io::Error>().map(|error| of_io("", error))
}

fn of_failure(failure: &Failure) -> u8 {
    match failure.kind {
        failure::Kind::Denied => DENIED,
        failure::Kind::Wrong => CONFIGURATION,
        failure::Kind::Full => IO,
        failure::Kind::Unreachable => UNAVAILABLE,
        failure::Kind::Busy => TRY_AGAIN,
        failure::Kind::Interrupted => INTERRUPTED,
    }
}

fn of_signing(error: &signing::Error) -> u8 {
    match error {
        signing::Error::Io { .. } => NO_INPUT,
        signing::Error::Write { source, .. } => of_io("write", source),
        signing::Error::Unusable { .. } | signing::Error::OpenPgp { .. } => DATA,
        signing::Error::PassphraseNeeded(_)
        | signing::Error::WrongPassphrase(_)
        | signing::Error::ExpiresSoon { .. }
        | signing::Error::Gpg { .. } => USAGE,
    }
}

fn of_io(doing: &str, error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => IO,
        _ if doing == "read" => NO_INPUT,
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::AlreadyExists => CANNOT_CREATE,
        _ => IO,
    }
}
