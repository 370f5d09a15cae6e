//! What a service said no with, in words: what failed, why, and what to do next.
//!
//! Services say the same thing in many ways, and some of what they say repeats the request. So texts are made here, from
//! the kind of failure and from the service's code; of a service's own message only a bounded, printable piece is shown.

use std::error::Error as StdError;
use std::fmt::{self, Display, Write as _};

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

/// Characters of a service's own message that are shown.
const MAX_MESSAGE: usize = 300;

/// What kind of failure it is: what a script can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Credentials are missing, wrong or expired, or do not allow it.
    Denied,
    /// What was asked for is not there, or not what it should be.
    Wrong,
    /// There is no room.
    Full,
    /// The service cannot be reached.
    Unreachable,
    /// The service is there and cannot answer now.
    Busy,
    /// A signal asked this program to stop.
    Interrupted,
}

/// A request failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was being done, such as "upload s3://bucket/key".
    pub(crate) doing: String,
    /// What kind of failure it is.
    pub(crate) kind: Kind,
    /// The HTTP status, if there was an answer.
    pub(crate) status: Option<u16>,
    /// The service's code, such as `NoSuchBucket`.
    pub(crate) code: Option<String>,
    /// Why, and what to do about it.
    why: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.doing, self.why)
    }
}

impl StdError for Failure {}

impl Failure {
    /// A signal came while this was being done.
    pub(crate) fn interrupted(doing: impl Into<String>) -> Self {
        Self::new(doing, Kind::Interrupted, "interrupted; run the command again to go on")
    }

    /// A failure of the connection, or of what came over it.
    pub(crate) fn of_error(doing: impl Into<String>, error: &(dyn StdError + 'static)) -> Self {
        let (kind, why) = of_chain(error);
        Self::new(doing, kind, why)
    }

    /// A failure that no service reported.
    pub(crate) fn new(doing: impl Into<String>, kind: Kind, why: impl Into<String>) -> Self {
        Self { doing: doing.into(), kind, status: None, code: None, why: why.into() }
    }

    /// What `error` means. `permission` names what the caller must be allowed to do, such as `s3:PutObject`.
    pub(crate) fn of<E>(doing: impl Into<String>, permission: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let doing = doing.into();
        match error {
            SdkError::ServiceError(service) => {
                let raw = service.raw();
                let status = raw.status().as_u16();
                let code = service.err().code().map(str::to_owned);
                let region = raw.headers().get("x-amz-bucket-region").map(str::to_owned);
                let (kind, why) =
                    of_service(status, code.as_deref(), service.err().message(), permission, region.as_deref());
                Self { doing, kind, status: Some(status), code, why }
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                let why = format!(
                    "the answer (HTTP {status}) is not one of this service; is the endpoint right, and is there a proxy \
                     in between?"
                );
                Self { doing, kind: Kind::Unreachable, status: Some(status), code: None, why }
            }
            other => {
                let (kind, why) = of_chain(other);
                Self { doing, kind, status: None, code: None, why }
            }
        }
    }
}

/// Codes by which services of AWS, and those that speak the same protocols, name what is wrong with credentials.
fn of_service(
    status: u16,
    code: Option<&str>,
    message: Option<&str>,
    permission: &str,
    region: Option<&str>,
) -> (Kind, String) {
    let said = said(status, code, message);
    let code = code.unwrap_or("");
    match code {
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" | "TokenRefreshRequired" => {
            (Kind::Denied, format!("the credentials have expired; sign in again ({said})"))
        }
        "InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidToken" => (
            Kind::Denied,
            format!("the service does not know these credentials; are they of this account and partition? ({said})"),
        ),
        "SignatureDoesNotMatch" | "InvalidSignatureException" => (
            Kind::Denied,
            format!("the secret key does not belong to the access key, or a proxy changes requests ({said})"),
        ),
        "RequestTimeTooSkewed" | "RequestInTheFuture" => {
            (Kind::Denied, format!("the clock of this machine is wrong; set it, and run the command again ({said})"))
        }
        "NoSuchBucket" => (
            Kind::Wrong,
            format!("there is no such bucket; deploy cloudformation/infra-s3.yaml or check the name ({said})"),
        ),
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            let mut why = "the bucket is in another region".to_owned();
            match region {
                Some(region) => {
                    let _ = write!(why, ": use --region {}", printable(region));
                }
                None => why.push_str("; find it in the console, and use --region"),
            }
            (Kind::Wrong, format!("{why} ({said})"))
        }
        "SlowDown" | "Throttling" | "ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded" => (
            Kind::Busy,
            format!(
                "the service asks for fewer requests, also after several attempts; run the command again later ({said})"
            ),
        ),
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" | "AllAccessDisabled" => (
            Kind::Denied,
            format!(
                "access is denied: these credentials need {permission}, and the resource must belong to this account \
                 ({said})"
            ),
        ),
        _ => match status {
            301 | 307 => {
                let hint = region.map(|region| format!(": use --region {}", printable(region))).unwrap_or_default();
                (Kind::Wrong, format!("it is in another region or at another endpoint{hint} ({said})"))
            }
            401 | 403 => (
                Kind::Denied,
                format!(
                    "access is denied: these credentials need {permission}, and the resource must belong to this \
                     account ({said})"
                ),
            ),
            407 => (
                Kind::Denied,
                format!(
                    "the proxy asks for a password: put it into HTTPS_PROXY as http://USER:PASSWORD@HOST:PORT ({said})"
                ),
            ),
            404 => (Kind::Wrong, format!("it is not there ({said})")),
            429 => (Kind::Busy, format!("the service asks for fewer requests; run the command again later ({said})")),
            500.. => (
                Kind::Busy,
                format!("the service failed, also after several attempts; run the command again later ({said})"),
            ),
            _ => (Kind::Wrong, said),
        },
    }
}

/// The service's own words, bounded.
fn said(status: u16, code: Option<&str>, message: Option<&str>) -> String {
    let mut said = format!("HTTP {status}");
    if let Some(code) = code.filter(|code| !code.is_empty()) {
        let _ = write!(said, " {}", printable(code));
    }
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        let _ = write!(said, ": {}", printable(message));
    }
    said
}

/// A bounded piece of foreign text without control characters.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_MESSAGE).is_some() {
        shown.push('…');
    }
    shown
}

/// Failures before there was an answer: the causes say more than the error.
pub(crate) fn of_chain(error: &(dyn StdError + 'static)) -> (Kind, String) {
    let mut causes = Vec::new();
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    let all = causes.join(": ");
    let contains = |words: &[&str]| words.iter().any(|word| all.contains(word));
    // The outermost texts of the SDK are about itself.
    let innermost = printable(causes.last().map_or("", String::as_str));
    if contains(&["no providers in chain provided credentials", "CredentialsNotLoaded", "no credentials"]) {
        return (
            Kind::Denied,
            "no credentials were found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or sign in \
             with `aws sso login`"
                .into(),
        );
    }
    if contains(&["credentials", "Credentials", "sso", "token"]) && !contains(&["dispatch failure", "Connect"]) {
        return (Kind::Denied, format!("the credentials cannot be used: {innermost}"));
    }
    if contains(&["407", "Proxy Authentication", "proxy authorization"]) {
        let why = "the proxy asks for a password: put it into HTTPS_PROXY as http://USER:PASSWORD@HOST:PORT";
        return (Kind::Denied, why.into());
    }
    if contains(&["checksum mismatch", "checksum did not match"]) {
        return (Kind::Wrong, format!("what came is not what the store keeps ({innermost})"));
    }
    if contains(&["InvalidContentType"]) {
        let why = "the server does not speak TLS; if it is meant to be plain HTTP, give an address that begins with http:// \
                   and accept with --allow-http that everything can be read on the way";
        return (Kind::Unreachable, why.into());
    }
    if contains(&["UnknownIssuer", "invalid peer certificate", "CertNotValidForName", "CaUsedAsEndEntity"]) {
        return (
            Kind::Unreachable,
            format!(
                "the server's certificate is not trusted ({innermost}); name your certificate authority with AWS_CA_BUNDLE"
            ),
        );
    }
    if contains(&["dns error", "failed to lookup address", "Name or service not known"]) {
        return (
            Kind::Unreachable,
            format!(
                "its name cannot be resolved ({innermost}): is the region right, and does this network need HTTPS_PROXY?"
            ),
        );
    }
    if contains(&["Connection refused", "unreachable", "Connect", "timed out", "timeout", "tunnel"]) {
        return (
            Kind::Unreachable,
            format!(
                "it cannot be reached ({innermost}): is the endpoint right, and does this network need HTTPS_PROXY?"
            ),
        );
    }
    (
        Kind::Unreachable,
        format!("the connection broke, also after several attempts ({innermost}); run the command again"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_errors_say_what_to_do() {
        let why = |status, code: &str, region| of_service(status, Some(code), Some("m"), "s3:PutObject", region);
        assert!(why(400, "ExpiredToken", None).1.contains("sign in again"));
        assert!(why(301, "PermanentRedirect", Some("eu-west-1")).1.contains("use --region eu-west-1"));
        let (kind, denied) = why(403, "AccessDenied", None);
        assert_eq!(kind, Kind::Denied);
        assert!(denied.contains("need s3:PutObject") && denied.contains("HTTP 403 AccessDenied: m"));
        assert_eq!(why(503, "SlowDown", None).0, Kind::Busy);
        assert_eq!(why(418, "Teapot", None), (Kind::Wrong, "HTTP 418 Teapot: m".into()));
    }

    #[test]
    fn foreign_text_is_bounded_and_printable() {
        let long = "x\u{1b}[2J".repeat(500);
        let shown = printable(&long);
        assert!(!shown.contains('\u{1b}') && shown.chars().count() == MAX_MESSAGE + 1);
    }
}
