//! What can go wrong between here and a registry, in words that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bundle_core::image;

use super::address::ParseRepositoryError;
use crate::exit_code;

/// Why an image was not pushed, or a tag not looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The repository is not one.
    #[error(transparent)]
    Repository(#[from] ParseRepositoryError),
    /// The tag is not one.
    #[error("{0:?} cannot be a tag: letters, digits, `_`, `.` and `-`, at most 128, and no `.` or `-` at the start")]
    Tag(String),
    /// The name of a repository in the same registry is not one.
    #[error("{0:?} cannot be the name of a repository to mount from: give the name alone, without the registry's host")]
    MountFrom(String),
    /// The image file cannot be opened.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The image file is not one that can be pushed.
    #[error("{}: {source}", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: image::Error,
    },
    /// The image file changed after it was verified.
    #[error("{} was changed after it was verified: what should be {digest} is something else now", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The image or the part of it.
        digest: String,
    },
    /// A signal came.
    #[error("the push was interrupted; run it again to finish it")]
    Interrupted(#[source] io::Error),

    /// No connection could be made, or it broke again and again.
    #[error("{host} cannot be reached: {reason}; check the name, the network and the proxy variables")]
    Unreachable {
        /// Scheme and host.
        host: String,
        /// What happened.
        reason: String,
    },
    /// The certificate was not accepted.
    #[error(
        "the TLS connection to {host} was refused: {reason}; if its certificate comes from an authority of your own, \
         name the file with that authority's certificate in AWS_CA_BUNDLE"
    )]
    Tls {
        /// Scheme and host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What answers there does not speak TLS.
    #[error(
        "{host} does not speak TLS; if it is meant to be plain HTTP, where everything, credentials included, can be read \
         on the way, --allow-http accepts that"
    )]
    NotTls {
        /// Scheme and host.
        host: String,
    },
    /// The proxy wants a password.
    #[error(
        "the proxy on the way to {host} asks for credentials: put them into the proxy variable, as in \
         HTTPS_PROXY=http://USER:PASSWORD@PROXY:PORT"
    )]
    Proxy {
        /// Scheme and host.
        host: String,
    },
    /// Too many requests, or a failure of the registry's own, again and again.
    #[error("{host} could not {doing}: {answer}, {attempts} times; try again later")]
    Unavailable {
        /// Scheme and host.
        host: String,
        /// What was being done.
        doing: String,
        /// What it said.
        answer: String,
        /// How often it was asked.
        attempts: u32,
    },
    /// The credentials were not accepted, or there are none.
    #[error("{host} does not let anyone {doing} without valid credentials: {hint}")]
    Unauthorized {
        /// Scheme and host.
        host: String,
        /// What was being done.
        doing: String,
        /// Where they come from.
        hint: String,
    },
    /// The credentials are good, and not good for this.
    #[error("not allowed to {doing} in {repository}: {answer}; {hint}")]
    Denied {
        /// The repository.
        repository: String,
        /// What was being done.
        doing: String,
        /// What the registry said.
        answer: String,
        /// What is needed for it.
        hint: String,
    },
    /// There is no such repository.
    #[error("the repository {name} does not exist in {place}: {hint}")]
    NoRepository {
        /// Its name.
        name: String,
        /// Where it should be.
        place: String,
        /// How to make one.
        hint: &'static str,
    },
    /// The tag belongs to something else.
    #[error(
        "{reference} exists already and is {existing}, not {ours}: a tag is never moved; push the image under another \
         tag, or find out which of the two is the release"
    )]
    TagTaken {
        /// Repository and tag.
        reference: String,
        /// The digest that the tag has.
        existing: String,
        /// The digest that it should get.
        ours: String,
    },
    /// Any other answer that is not a success.
    #[error("{host} refused to {doing}: {answer}")]
    Refused {
        /// Scheme and host.
        host: String,
        /// What was being done.
        doing: String,
        /// What it said.
        answer: String,
    },
    /// An answer that breaks the distribution specification.
    #[error("{host} answered the request to {doing} in a way that no registry does: {reason}")]
    Protocol {
        /// Scheme and host.
        host: String,
        /// What was being done.
        doing: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Docker's configuration cannot be used.
    #[error("cannot take credentials from {}: {reason}", .path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The password is kept by a program.
    #[error(
        "{} leaves the password for {host} to the credential helper {helper}, which is not supported: log in with a \
         DOCKER_CONFIG directory that has no helper, as in `DOCKER_CONFIG=DIR docker login {host}`",
        .path.display()
    )]
    CredentialHelper {
        /// The configuration.
        path: PathBuf,
        /// The helper.
        helper: String,
        /// The registry.
        host: String,
    },
    /// Making a repository is an operation of ECR.
    #[error(
        "{repository} is not in ECR: only there can --create-repository make one; make it by the registry's own means"
    )]
    NotEcr {
        /// The repository.
        repository: String,
    },
    /// The AWS endpoint cannot be used.
    #[error(transparent)]
    Endpoint(#[from] crate::aws::Error),
    /// The API of ECR refused or could not be reached.
    #[error("ECR in {region} could not {doing}: {reason}")]
    Ecr {
        /// The region.
        region: String,
        /// What was being done.
        doing: &'static str,
        /// What happened and what to do.
        reason: String,
        /// What kind of failure it is.
        class: Class,
    },
}

/// What a failure of an AWS API comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Credentials are missing, expired or not allowed to do this.
    Permission,
    /// Not reached, or refused.
    Unavailable,
    /// It may work later.
    Later,
}

impl Error {
    /// The exit code for it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Repository(_)
            | Self::Tag(_)
            | Self::MountFrom(_)
            | Self::NotTls { .. }
            | Self::DockerConfig { .. }
            | Self::CredentialHelper { .. }
            | Self::Endpoint(_)
            | Self::NotEcr { .. } => exit_code::USAGE,
            Self::Changed { .. } => exit_code::DATA,
            Self::Read { .. } => exit_code::NO_INPUT,
            Self::Image { source, .. } => source.exit_code(),
            Self::Interrupted(_) => exit_code::INTERRUPTED,
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::NoRepository { .. }
            | Self::TagTaken { .. }
            | Self::Refused { .. }
            | Self::Protocol { .. } => exit_code::UNAVAILABLE,
            Self::Unavailable { .. } => exit_code::TRY_AGAIN,
            Self::Proxy { .. } | Self::Unauthorized { .. } | Self::Denied { .. } => exit_code::DENIED,
            Self::Ecr { class, .. } => match class {
                Class::Permission => exit_code::DENIED,
                Class::Unavailable => exit_code::UNAVAILABLE,
                Class::Later => exit_code::TRY_AGAIN,
            },
        }
    }
}

/// One attempt that failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again cannot help.
    Final(Error),
    /// Trying again may help.
    Transient {
        /// What to say if it does not.
        error: Error,
        /// How long the server asks to wait.
        after: Option<Duration>,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// An error with everything below it, on one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = fmt::Write::write_fmt(&mut text, format_args!(": {cause_text}"));
        }
        next = cause.source();
    }
    text
}
