//! What is elsewhere: proxies, private version control, the Docker engine.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::reader::Reader;
use super::{DOCKER_HOST, VCS_ENDPOINT_PREFIX, VCS_NAME_PREFIX};

/// The proxies of the host's network. They may hold a password, so they are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://`.
    pub http: Option<String>,
    /// For `https://`, and for MQTT.
    pub https: Option<String>,
    /// Hosts that need none, separated by commas.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// As variables for runs. Some programs know only the names in capitals, some only the others.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        [("HTTP_PROXY", "http_proxy", &self.http), ("HTTPS_PROXY", "https_proxy", &self.https)]
            .into_iter()
            .chain([("NO_PROXY", "no_proxy", &self.no_proxy)])
            .filter_map(|(upper, lower, value)| Some((upper, lower, value.as_deref()?)))
            .flat_map(|(upper, lower, value)| [(upper, value), (lower, value)])
            .collect()
    }

    /// Those of [`Self::variables`] that hold no password: what may be seen in a container's description.
    #[must_use]
    pub fn public_variables(&self) -> Vec<(&'static str, &str)> {
        self.variables().into_iter().filter(|(_, value)| !has_password(value)).collect()
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.public_variables()).finish()
    }
}

fn has_password(value: &str) -> bool {
    value.contains('@')
}

pub(super) fn proxies(reader: &mut Reader) -> Proxies {
    Proxies {
        http: proxy(reader, "HTTP_PROXY", "http_proxy"),
        https: proxy(reader, "HTTPS_PROXY", "https_proxy"),
        no_proxy: reader.text("NO_PROXY").or_else(|| reader.text("no_proxy")),
    }
}

fn proxy(reader: &mut Reader, upper: &str, lower: &str) -> Option<String> {
    let (variable, value) = match reader.text(upper) {
        Some(value) => (upper, value),
        None => (lower, reader.text(lower)?),
    };
    // As curl and Go have it.
    let value = if value.contains("://") { value } else { format!("http://{value}") };
    let is_proxy =
        Url::parse(&value).is_ok_and(|url| ["http", "https", "socks5"].contains(&url.scheme()) && url.has_host());
    if !is_proxy {
        reader.problem(variable, "it is not a proxy's address. Write http://HOST:PORT");
        return None;
    }
    Some(value)
}

/// Where a private version control system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcsMapping {
    /// The name of the VCS agent pool.
    pub name: String,
    /// Its address, without a slash at the end.
    pub base_endpoint: String,
}

pub(super) fn vcs(reader: &mut Reader) -> Vec<VcsMapping> {
    let names = numbered(reader, VCS_NAME_PREFIX);
    let endpoints = numbered(reader, VCS_ENDPOINT_PREFIX);
    let mut mappings: Vec<VcsMapping> = Vec::new();
    let last = names.keys().chain(endpoints.keys()).max().copied();
    for number in last.map_or(0..0, |last| 0..last + 1) {
        let variables = [format!("{VCS_NAME_PREFIX}{number}"), format!("{VCS_ENDPOINT_PREFIX}{number}")];
        match (names.get(&number), endpoints.get(&number)) {
            (Some(name), Some(endpoint)) => {
                let is_taken = mappings.iter().any(|other| other.name == *name);
                let url = Url::parse(endpoint).ok().filter(|url| {
                    ["http", "https"].contains(&url.scheme()) && url.has_host() && url.username().is_empty()
                });
                if is_taken {
                    reader.problem(
                        &variables[0],
                        "another mapping has this name already. Give each one a name of its own",
                    );
                } else if url.is_none() {
                    reader.problem(
                        &variables[1],
                        "it is not an address. Write http://HOST or https://HOST, without a user or a password",
                    );
                } else {
                    let base_endpoint = endpoint.trim_end_matches('/').to_owned();
                    mappings.push(VcsMapping { name: name.clone(), base_endpoint });
                }
            }
            (Some(_), None) => reader
                .problem(&variables[1], format_args!("it is not set, but {} is. Set both, or neither", variables[0])),
            (None, Some(_)) => reader
                .problem(&variables[0], format_args!("it is not set, but {} is. Set both, or neither", variables[1])),
            (None, None) => {
                reader.problem(&variables[0], "it is not set, but one with a higher number is. Number them from 0 on");
            }
        }
    }
    mappings
}

/// Numbers that a mapping may have: a gap is reported for each number that is missing.
const MAXIMUM_MAPPINGS: u32 = 100;

fn numbered(reader: &mut Reader, prefix: &str) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for (variable, suffix) in reader.with_prefix(prefix) {
        let number =
            suffix.parse::<u32>().ok().filter(|number| *number < MAXIMUM_MAPPINGS && number.to_string() == suffix);
        match number {
            Some(number) => found.extend(reader.text(&variable).map(|value| (number, value))),
            None => reader
                .problem(&variable, format_args!("it does not end in a number from 0 to {}", MAXIMUM_MAPPINGS - 1)),
        }
    }
    found
}

pub(super) fn docker_host(reader: &mut Reader) -> Option<String> {
    let value = reader.text(DOCKER_HOST)?;
    if let Some(path) = value.strip_prefix("unix://") {
        if path.starts_with('/') {
            return Some(value);
        }
        reader.problem(DOCKER_HOST, "the socket's path is not absolute. Write unix:///PATH");
        return None;
    }
    // Without a scheme it is TCP.
    let address = value.strip_prefix("tcp://").unwrap_or(&value);
    if address.contains("://") {
        reader.problem(DOCKER_HOST, "the launcher talks to the engine at unix:///PATH, or at tcp://localhost:PORT");
        return None;
    }
    let Some(url) = Url::parse(&format!("tcp://{address}")).ok().filter(|url| url.has_host() && url.port().is_some())
    else {
        reader.problem(DOCKER_HOST, "it is not an address. Write unix:///PATH or tcp://localhost:PORT");
        return None;
    };
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    if host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
        reader.problem(
            DOCKER_HOST,
            "the engine is on another host. Its API is not encrypted, and whoever reads along becomes root there; use \
             one on this host",
        );
        return None;
    }
    if reader.text("DOCKER_TLS_VERIFY").is_some() {
        reader.problem(
            "DOCKER_TLS_VERIFY",
            "the launcher does not speak TLS to the engine. Use its Unix socket, or its plain port on loopback",
        );
        return None;
    }
    Some(format!("tcp://{}", address.trim_end_matches('/')))
}
