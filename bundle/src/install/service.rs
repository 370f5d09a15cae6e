//! What AWS answers when it does not do what was asked, in words that say what to do next.

use std::error::Error;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

/// Longer messages of services are cut: they repeat whole policies.
const MAX_MESSAGE: usize = 600;

/// A service refused, or could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {reason}; {next}")]
pub(crate) struct Failed {
    /// What was to be done.
    doing: String,
    /// Why it was not.
    reason: String,
    /// What to do about it.
    next: String,
    /// What kind of failure it is.
    kind: Kind,
    /// The service's own name for it.
    pub(crate) code: Option<String>,
    /// Status of the HTTP response, if there was one.
    pub(crate) status: Option<u16>,
}

/// Kinds of failure, which differ in what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Credentials are missing, expired, wrong, or not allowed to do this.
    Permission,
    /// The service cannot be reached, or refuses whatever is tried.
    Unavailable,
    /// The same command may succeed later.
    Later,
}

impl Failed {
    /// A failure that is not an answer of a service.
    pub(crate) fn new(kind: Kind, doing: &str, reason: impl Into<String>, next: impl Into<String>) -> Self {
        Self { doing: doing.into(), reason: reason.into(), next: next.into(), kind, code: None, status: None }
    }

    /// What kind of failure it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Puts what the SDK returned into words. `region` is named where it may be the reason.
    pub(crate) fn sdk<E>(doing: &str, region: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let Some(service) = error.as_service_error() else {
            let chain = chain(error);
            let (kind, reason, next) = unanswered(&chain, region);
            return Self { status, ..Self::new(kind, doing, reason, next) };
        };
        let code = service.code().unwrap_or_default();
        let message = printable(service.message().unwrap_or_default());
        let (kind, reason, next) = answered(code, &message, status, region);
        Self { code: (!code.is_empty()).then(|| code.to_owned()), status, ..Self::new(kind, doing, reason, next) }
    }
}

/// The words for an answer with an error code.
fn answered(code: &str, message: &str, status: Option<u16>, region: &str) -> (Kind, String, String) {
    let said = match (code, message) {
        ("", "") => status.map_or_else(|| "no reason was given".into(), |status| format!("HTTP status {status}")),
        ("", message) => message.to_owned(),
        (code, "") => code.to_owned(),
        (code, message) => format!("{message} ({code})"),
    };
    let sign_in = "sign in again (`aws sso login`, or new keys) and run the same command again";
    match code {
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" | "TokenRefreshRequired" => {
            (Kind::Permission, format!("the AWS credentials have expired: {said}"), sign_in.into())
        }
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "AuthFailure"
        | "InvalidToken"
        | "InvalidClientToken" => (
            Kind::Permission,
            format!("AWS does not know these credentials: {said}"),
            format!(
                "check them, and that {region} is in their partition: keys of GovCloud and China work nowhere else"
            ),
        ),
        "SignatureDoesNotMatch" | "IncompleteSignature" | "InvalidSignatureException" => (
            Kind::Permission,
            format!("the signature is wrong: {said}"),
            "check the secret access key, and this machine's clock".into(),
        ),
        "RequestTimeTooSkewed" => {
            (Kind::Permission, format!("this machine's clock is wrong: {said}"), "set the clock and try again".into())
        }
        "OptInRequired" => {
            (Kind::Permission, said, format!("enable the region {region} for the account, or choose another one"))
        }
        "LimitExceeded" | "LimitExceededException" | "TooManyBuckets" => (
            Kind::Unavailable,
            format!("a quota of the account is used up: {said}"),
            "ask AWS to raise it (Service Quotas), or remove what is not needed".into(),
        ),
        _ if code.starts_with("AccessDenied") || code == "UnauthorizedOperation" || status == Some(403) => (
            Kind::Permission,
            format!("the credentials are not allowed to do this: {said}"),
            "allow it in the role's policy, or use another role".into(),
        ),
        _ if code.starts_with("Throttl")
            || matches!(code, "TooManyRequestsException" | "SlowDown" | "RequestLimitExceeded")
            || status == Some(429) =>
        {
            (Kind::Later, format!("AWS limits the rate of requests: {said}"), "wait a minute and try again".into())
        }
        _ if status.is_some_and(|status| status >= 500) => {
            (Kind::Later, format!("the service failed: {said}"), "try again in a few minutes".into())
        }
        _ => (Kind::Unavailable, said, "nothing else was tried".into()),
    }
}

/// The words for a request that got no answer, from the errors that led to it.
fn unanswered(chain: &str, region: &str) -> (Kind, String, String) {
    let lower = chain.to_lowercase();
    if lower.contains("credential") || lower.contains("sso") {
        let next = "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or sign in with `aws sso login`";
        return (Kind::Permission, format!("there are no usable AWS credentials: {chain}"), next.into());
    }
    if lower.contains("407") || lower.contains("proxy auth") {
        let next = "put the user and password into the proxy's address: http://USER:PASSWORD@HOST:PORT";
        return (Kind::Unavailable, "the proxy asks for a password".into(), next.into());
    }
    let next = format!("check that the region {region} exists, the network, and the proxy settings");
    (Kind::Unavailable, format!("there was no answer: {chain}"), next)
}

/// The error and its causes, each once.
fn chain(error: &dyn Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = printable(&error.to_string());
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

/// Text of a service, made safe to print, and cut.
pub(crate) fn printable(text: &str) -> String {
    let shown: String = text.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    shown.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Kind, answered, printable, unanswered};

    #[test]
    fn credentials_are_told_apart() {
        let (kind, reason, next) = answered("ExpiredToken", "The token is expired", Some(400), "eu-west-1");
        assert_eq!(kind, Kind::Permission);
        assert!(reason.contains("have expired") && next.contains("sign in again"));
        let (_, reason, next) = answered("InvalidClientTokenId", "", Some(403), "us-gov-west-1");
        assert!(reason.contains("does not know") && next.contains("us-gov-west-1"));
        let (_, reason, _) = answered("AccessDenied", "not authorized to perform s3:x", Some(403), "eu-west-1");
        assert!(reason.contains("not allowed") && reason.contains("s3:x"));
        let (kind, reason, next) = unanswered("no providers in chain provided credentials", "eu-west-1");
        assert!(kind == Kind::Permission && reason.contains("no usable") && next.contains("AWS_PROFILE"));
        let (_, reason, next) = answered("RequestTimeTooSkewed", "x", Some(403), "eu-west-1");
        assert!(reason.contains("clock") && next.contains("clock"));
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        assert_eq!(answered("ThrottlingException", "", Some(400), "x").0, Kind::Later);
        assert_eq!(answered("", "", Some(503), "x").0, Kind::Later);
        assert_eq!(answered("ValidationError", "", Some(400), "x").0, Kind::Unavailable);
        assert_eq!(unanswered("dns error", "eu-wets-1").0, Kind::Unavailable);
        assert!(unanswered("dns error", "eu-wets-1").2.contains("eu-wets-1"));
    }

    #[test]
    fn terminals_do_not_obey_services() {
        assert_eq!(printable("a\x1b[2Jb.\n"), "a [2Jb");
    }
}
