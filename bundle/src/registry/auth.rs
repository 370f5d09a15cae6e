//! Who the client says it is: credentials of Docker's configuration, and the challenges that a registry answers with.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aws_smithy_types::base64;
use serde::Deserialize;

use super::Error;

/// Limit of Docker's configuration file.
const MAX_CONFIG: u64 = 1024 * 1024;

/// A password or a token, as a header has it. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    /// The value of an `Authorization` header of the scheme Basic. `encoded` is user name and password as the header has
    /// them.
    pub(super) fn basic(encoded: &str) -> Self {
        Self(format!("Basic {encoded}"))
    }

    /// The value of an `Authorization` header of the scheme Bearer.
    pub(super) fn bearer(token: &str) -> Self {
        Self(format!("Bearer {token}"))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without the secret, whatever part of it a server put there: the header, what is in it, or the password.
    pub(super) fn redact(&self, text: &str) -> String {
        let value = self.0.split_once(' ').map_or(self.0.as_str(), |(_, value)| value);
        if value.is_empty() {
            return text.to_owned();
        }
        let mut text = text.replace(value, "***");
        let decoded = base64::decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some((_, password)) = decoded.as_deref().and_then(|pair| pair.split_once(':'))
            && !password.is_empty()
        {
            text = text.replace(password, "***");
        }
        text
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// One way in that a `WWW-Authenticate` header offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from another server.
    Bearer {
        /// Where to get it.
        realm: String,
        /// What it is for, in the token server's words.
        service: Option<String>,
    },
}

impl Challenge {
    /// Every challenge that is understood in the values of the headers.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Self> {
        headers.flat_map(Self::parse_one).collect()
    }

    fn parse_one(header: &str) -> Vec<Self> {
        let mut challenges = Vec::new();
        let mut rest = header.trim_start_matches([' ', ',', '\t']);
        while !rest.is_empty() {
            let (scheme, after) = rest.split_at(rest.find([' ', ',']).unwrap_or(rest.len()));
            let (parameters, after) = parameters(after);
            match scheme.to_ascii_lowercase().as_str() {
                "basic" => challenges.push(Self::Basic),
                "bearer" => {
                    if let Some(realm) = parameters.get("realm") {
                        let service = parameters.get("service").cloned();
                        challenges.push(Self::Bearer { realm: realm.clone(), service });
                    }
                }
                _ => {}
            }
            // Something must have been read, whatever nonsense the header is.
            rest = if after.len() < rest.len() { after } else { "" };
        }
        challenges
    }
}

/// `name="value", name=value` up to the next scheme, which is a word without `=`; and what follows.
fn parameters(text: &str) -> (BTreeMap<String, String>, &str) {
    let mut found = BTreeMap::new();
    let mut rest = text;
    loop {
        let start = rest.trim_start_matches([' ', ',', '\t']);
        let end = start.find(|c: char| !(c.is_ascii_alphanumeric() || "-._~!#$%&'*+^`|".contains(c)));
        let (name, after) = start.split_at(end.unwrap_or(start.len()));
        let Some(value) = after.trim_start().strip_prefix('=') else {
            return (found, start);
        };
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, after) = value.split_at(value.find([',', ' ']).unwrap_or(value.len()));
                (value.to_owned(), after)
            }
        };
        if name.is_empty() {
            return (found, "");
        }
        found.entry(name.to_ascii_lowercase()).or_insert(value);
        rest = after;
    }
}

/// What is before the closing quotation mark, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// Docker's configuration, as far as it is about credentials.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

/// The header that Docker's configuration has for the registry `HOST[:PORT]`, if it has one.
///
/// # Errors
/// The file cannot be used, or keeps the password in a program.
pub(super) fn of_docker(registry: &str) -> Result<Option<Secret>, Error> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let Some(path) = directory.map(|directory| directory.join("config.json")) else {
        return Ok(None);
    };
    let unusable = |reason: String| Error::DockerConfig { path: path.clone(), reason };
    let text = match fs::metadata(&path) {
        Ok(metadata) if metadata.len() > MAX_CONFIG => return Err(unusable("it is far too large".into())),
        Ok(_) => fs::read(&path).map_err(|error| unusable(error.to_string()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error.to_string())),
    };
    in_config(&text, &path, registry)
}

fn in_config(text: &[u8], path: &Path, registry: &str) -> Result<Option<Secret>, Error> {
    let unusable = |reason: String| Error::DockerConfig { path: path.to_owned(), reason };
    let config: DockerConfig = serde_json::from_slice(text).map_err(|error| {
        // What the parser says may quote a value, which may be a password.
        unusable(format!("it is not as Docker writes it, at line {} column {}", error.line(), error.column()))
    })?;
    let is_ours = |key: &str| {
        let key = key.split_once("://").map_or(key, |(_, rest)| rest);
        key.split('/').next().is_some_and(|host| host.eq_ignore_ascii_case(registry))
    };
    let helper =
        |name: &str| Error::CredentialHelper { path: path.to_owned(), helper: shown(name), host: registry.to_owned() };
    if let Some((_, name)) = config.helpers.iter().find(|(key, _)| is_ours(key)) {
        return Err(helper(name));
    }
    let Some((_, auth)) = config.auths.iter().find(|(key, _)| is_ours(key)) else {
        return Ok(None);
    };
    if let Some(encoded) = auth.auth.as_deref().filter(|encoded| !encoded.is_empty()) {
        let pair = base64::decode(encoded).ok().filter(|pair| pair.contains(&b':'));
        // Encoded again: the file may have been written by hand, and what is not the plain alphabet is no header.
        let pair = pair.ok_or_else(|| unusable(format!("its `auth` for {registry} is not base64 of USER:PASSWORD")))?;
        return Ok(Some(Secret::basic(&base64::encode(pair))));
    }
    if let (Some(user), Some(password)) = (&auth.username, &auth.password) {
        return Ok(Some(Secret::basic(&base64::encode(format!("{user}:{password}")))));
    }
    if auth.identity_token.is_some() {
        return Err(unusable(format!(
            "it has an identity token for {registry}, which is not supported: log in with a user name and a password"
        )));
    }
    match &config.store {
        // An empty entry is how Docker marks a registry whose password the helper keeps.
        Some(name) => Err(helper(name)),
        None => Ok(None),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(60).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenges(header: &str) -> Vec<Challenge> {
        Challenge::parse([header].into_iter())
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
        };
        let cases = [
            (
                r#"Bearer realm="https://a/token",service="b c",scope="repository:x:pull,push""#,
                vec![bearer("https://a/token", Some("b c"))],
            ),
            (r#"bearer  service=b , realm = "https://a""#, vec![bearer("https://a", Some("b"))]),
            (
                r#"Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#,
                vec![Challenge::Basic],
            ),
            (
                r#"Negotiate, Basic realm="a \"b\" , c", Bearer realm="https://a""#,
                vec![Challenge::Basic, bearer("https://a", None)],
            ),
            ("Basic", vec![Challenge::Basic]),
            ("Bearer", vec![]),
            (r#"Digest realm="x", nonce="y""#, vec![]),
            ("", vec![]),
            (",,, = \"", vec![]),
            (r#"Bearer realm="unclosed"#, vec![bearer("unclosed", None)]),
        ];
        for (header, expected) in cases {
            assert_eq!(challenges(header), expected, "{header}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::basic(&base64::encode("user:hunter2"));
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        let text = format!("you sent {} which is hunter2", secret.expose());
        assert_eq!(secret.redact(&text), "you sent Basic *** which is ***");
        assert_eq!(Secret::bearer("abc.def").redact("bad token abc.def"), "bad token ***");
    }

    #[test]
    fn docker_configurations_are_read() {
        let of = |text: &str, registry: &str| in_config(text.as_bytes(), Path::new("config.json"), registry);
        let encoded = base64::encode("user:hunter2");
        let plain = format!(r#"{{"auths":{{"https://example.com/v2/":{{"auth":"{encoded}"}}}},"credsStore":"x"}}"#);
        assert_eq!(of(&plain, "example.com").unwrap(), Some(Secret::basic(&encoded)));
        assert_eq!(of(&plain, "example.com:5000").unwrap(), None);
        assert_eq!(of(&plain, "ample.com").unwrap(), None);
        let pair = r#"{"auths":{"a.b:1":{"username":"user","password":"hunter2"}}}"#;
        assert_eq!(of(pair, "a.b:1").unwrap(), Some(Secret::basic(&encoded)));
        assert_eq!(of("{}", "a.b").unwrap(), None);
        let refused = [
            (r#"{"auths":{"a.b":{}},"credsStore":"desktop"}"#, "desktop"),
            (r#"{"credHelpers":{"a.b":"ecr-login"}}"#, "ecr-login"),
            (r#"{"auths":{"a.b":{"identitytoken":"hunter2"}}}"#, "identity token"),
            (r#"{"auths":{"a.b":{"auth":"hunter2"}}}"#, "base64"),
            (r#"{"auths":{"a.b":"hunter2"}}"#, "line 1"),
            ("hunter2", "line 1"),
        ];
        for (text, says) in refused {
            let error = of(text, "a.b").unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        }
    }
}
