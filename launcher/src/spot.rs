//! Notice of the end of a spot instance, from the instance metadata service (version 2).
//!
//! The service is asked once whether this is a spot instance at all. Elsewhere nothing is asked again, so that a launcher on a
//! host that nobody takes away does nothing while it waits.
//!
//! `AWS_EC2_METADATA_SERVICE_ENDPOINT` and `AWS_EC2_METADATA_DISABLED` mean here what they mean to every AWS SDK.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use crate::api_client::explain;

/// Where the service is unless a variable says otherwise.
const ENDPOINT: &str = "http://169.254.169.254";
/// The variable that says otherwise.
pub const ENDPOINT_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
/// The variable that switches it off.
pub const DISABLED_VARIABLE: &str = "AWS_EC2_METADATA_DISABLED";
/// As often as AWS recommends.
const POLL: Duration = Duration::from_secs(5);
/// How long an answer may take. It comes from the host below.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is tried to find out what kind of host this is. Right after a boot the service may not be there yet; with the
/// waits between, that is some minutes.
const ATTEMPTS: u32 = 12;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Seconds that a session with the service lasts: the most that it gives.
const SESSION: &str = "21600";
/// Bytes of an answer that are read. They have less than 100.
const MAXIMUM_ANSWER: usize = 4096;

/// What the service says of the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `terminate`, `stop` or `hibernate`.
    pub action: String,
    /// How long the host is still there. Nothing where it goes to sleep at once.
    pub left: Duration,
}

/// Where to ask; None where it is switched off.
#[must_use]
pub fn endpoint(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if set(DISABLED_VARIABLE).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    let endpoint = set(ENDPOINT_VARIABLE).unwrap_or_else(|| ENDPOINT.to_owned());
    Some(endpoint.trim_end_matches('/').to_owned())
}

/// Waits until this host is to be taken away. On a host that is no spot instance, that is for ever.
pub async fn notice(http: reqwest::Client, endpoint: String) -> Notice {
    let mut service = Service { http, endpoint, session: None };
    if !service.is_spot().await {
        return std::future::pending().await;
    }
    tracing::info!("this host is a spot instance; watching for the notice of its end");
    let mut failures = 0_u32;
    loop {
        match service.get("spot/instance-action").await {
            Ok(Some(answer)) => match parse(&answer, SystemTime::now()) {
                Some(notice) => return notice,
                None => tracing::warn!("a notice of the end of this host that cannot be read: {answer:?}"),
            },
            Ok(None) => failures = 0,
            Err(reason) => {
                // Once in a while it does not answer; what stays is for people.
                failures += 1;
                if failures.is_power_of_two() && failures > 4 {
                    tracing::warn!("the instance metadata service did not answer {failures} times: {reason}");
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

struct Service {
    http: reqwest::Client,
    endpoint: String,
    session: Option<String>,
}

impl Service {
    async fn is_spot(&mut self) -> bool {
        let mut wait = FIRST_WAIT;
        for _ in 0..ATTEMPTS {
            match self.get("instance-life-cycle").await {
                Ok(kind) => return kind.is_some_and(|kind| kind.trim() == "spot"),
                Err(reason) => tracing::debug!("no instance metadata service: {reason}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        false
    }

    /// A value; None where there is none.
    async fn get(&mut self, path: &str) -> Result<Option<String>, String> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.begin().await?,
        };
        let url = format!("{}/latest/meta-data/{path}", self.endpoint);
        let (status, answer) = self.send(Method::GET, &url, ("x-aws-ec2-metadata-token", &session)).await?;
        match status {
            StatusCode::OK => {
                self.session = Some(session);
                Ok(Some(answer))
            }
            StatusCode::NOT_FOUND => {
                self.session = Some(session);
                Ok(None)
            }
            // Also for a session that is over: the next attempt begins another.
            status => Err(status.to_string()),
        }
    }

    async fn begin(&self) -> Result<String, String> {
        let url = format!("{}/latest/api/token", self.endpoint);
        let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", SESSION);
        match self.send(Method::PUT, &url, ttl).await? {
            (StatusCode::OK, session) => Ok(session),
            (status, _) => Err(format!("no session: {status}")),
        }
    }

    async fn send(&self, method: Method, url: &str, header: (&str, &str)) -> Result<(StatusCode, String), String> {
        let request = self.http.request(method, url).header(header.0, header.1).timeout(TIMEOUT);
        let mut response = request.send().await.map_err(|error| explain(&error))?;
        let mut answer = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| explain(&error))? {
            answer.extend_from_slice(&part);
            if answer.len() > MAXIMUM_ANSWER {
                return Err("an answer that is too long".to_owned());
            }
        }
        Ok((response.status(), String::from_utf8_lossy(&answer).into_owned()))
    }
}

fn parse(answer: &str, now: SystemTime) -> Option<Notice> {
    #[derive(Deserialize)]
    struct InstanceAction {
        action: String,
        time: String,
    }

    let InstanceAction { action, time } = serde_json::from_str(answer).ok()?;
    let at = DateTime::from_str(&time, Format::DateTime).ok()?.secs();
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Hibernating begins with the notice.
    let left = if action == "hibernate" { 0 } else { u64::try_from(at).unwrap_or(0).saturating_sub(now) };
    Some(Notice { action, left: Duration::from_secs(left) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-09-18T08:20:00Z.
    const NOW: Duration = Duration::from_secs(1_789_719_600);

    #[test]
    fn notices_say_how_long_a_host_is_there() {
        let parsed = |answer| parse(answer, UNIX_EPOCH + NOW).map(|notice| (notice.action, notice.left.as_secs()));
        let cases = [
            (r#"{"action": "terminate", "time": "2026-09-18T08:22:00Z"}"#, Some(("terminate", 120))),
            (r#"{"action":"stop","time":"2026-09-18T08:20:30Z","more":1}"#, Some(("stop", 30))),
            (r#"{"action": "hibernate", "time": "2026-09-18T08:22:00Z"}"#, Some(("hibernate", 0))),
            (r#"{"action": "terminate", "time": "2026-09-18T08:00:00Z"}"#, Some(("terminate", 0))),
            (r#"{"action": "terminate", "time": "soon"}"#, None),
            (r#"{"action": "terminate"}"#, None),
            ("<html>", None),
        ];
        for (answer, expected) in cases {
            let expected = expected.map(|(action, left)| (action.to_owned(), left));
            assert_eq!(parsed(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_variables_of_every_sdk_are_heeded() {
        let with = |set: &'static [(&str, &str)]| {
            endpoint(|name| set.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(with(&[]).as_deref(), Some(ENDPOINT));
        assert_eq!(with(&[(ENDPOINT_VARIABLE, "http://[fd00:ec2::254]/")]).as_deref(), Some("http://[fd00:ec2::254]"));
        assert_eq!(with(&[(DISABLED_VARIABLE, "TRUE")]), None);
        assert_eq!(with(&[(DISABLED_VARIABLE, "false")]).as_deref(), Some(ENDPOINT));
    }
}
