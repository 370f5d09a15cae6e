//! Credentials for the registries of runner images.
//!
//! They come from a Docker configuration directory, as `docker login` and credential helpers leave it. In the order in which
//! they are looked at: `credHelpers` for the registry, `credsStore`, `auths`. Amazon ECR, where tokens expire, gives one out
//! for the AWS credentials of the host where the configuration has nothing for the registry.
//!
//! Nothing is kept between two calls: somebody may log in again at any time, and tokens expire.

mod ecr;
mod helper;
mod reference;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

pub use reference::{Invalid, Reference};

/// How Docker calls the Docker Hub in its configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Bytes of a `config.json`. Those that people have are a few kilobytes.
const MAXIMUM_CONFIG: u64 = 4 * 1024 * 1024;

/// What a registry wants to see.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that stands for a user.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(secret)",
            Self::IdentityToken(_) => "IdentityToken(secret)",
        })
    }
}

/// Why it is not known whether there are credentials. No message has any of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error("cannot read the Docker configuration `{}`: {error}. SPACELIFT_DOCKER_CONFIG_DIR names its directory", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The configuration is not one.
    #[error(
        "the Docker configuration `{}` is not valid: {reason}. `docker --config DIR login {registry}` writes a valid one",
        path.display()
    )]
    Config {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// The registry that was looked for.
        registry: String,
    },
    /// A credential helper does not do what it is for.
    #[error("the credential helper `{program}` {reason}")]
    Helper {
        /// Which.
        program: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// The host's AWS credentials give no token.
    #[error(
        "cannot get a token for {registry} with the AWS credentials of this host: {reason}. Its role needs \
         ecr:GetAuthorizationToken and the right to read the repository (AmazonEC2ContainerRegistryReadOnly has both); or \
         name other credentials with SPACELIFT_DOCKER_CONFIG_DIR"
    )]
    Ecr {
        /// Which registry.
        registry: String,
        /// What happened.
        reason: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for an image's registry. `directory` is Docker's configuration directory; `http` is how ECR is
/// reached: with the authorities and proxies that the host is configured for.
///
/// # Errors
/// The configuration cannot be read, or a helper or ECR fails. That there are none is no error: most images need none.
pub async fn for_image(
    directory: Option<&Path>,
    image: &Reference,
    http: &reqwest::Client,
) -> Result<Option<Credentials>, Error> {
    let registry = image.registry();
    if let Some(directory) = directory
        && let Some(configured) = configured_with(directory, registry, None).await?
    {
        return Ok(Some(configured));
    }
    let Some(ecr) = ecr::Registry::at(registry) else { return Ok(None) };
    let token = ecr.credentials(http).await;
    token.map(Some).map_err(|reason| Error::Ecr { registry: registry.to_owned(), reason })
}

/// `helpers`: where credential helpers are, if not on the `PATH`.
async fn configured_with(
    directory: &Path,
    registry: &str,
    helpers: Option<&Path>,
) -> Result<Option<Credentials>, Error> {
    let path = directory.join("config.json");
    let Some(text) = read(&path).await? else { return Ok(None) };
    let invalid = |reason: String| Error::Config { path: path.clone(), reason, registry: registry.to_owned() };
    let configured = Configured::parse(&text, registry).map_err(invalid)?;
    if let Some(name) = &configured.helper {
        let server = if registry == reference::HUB { HUB_KEY } else { registry };
        if let Some(credentials) = helper::get(name, server, directory, helpers).await? {
            return Ok(Some(credentials));
        }
    }
    configured.stored().map_err(|reason| invalid(format!("its entry for {registry} {reason}")))
}

/// What a `config.json` has for one registry.
pub struct Configured {
    /// The credential helper that is asked first, without `docker-credential-`.
    pub helper: Option<String>,
    auth: Option<Auth>,
}

impl Configured {
    /// Reads the file's text.
    ///
    /// # Errors
    /// Where it is not JSON of this form. A message of the parser can repeat a value, so only the place is told.
    pub fn parse(text: &[u8], registry: &str) -> Result<Self, String> {
        let mut config: Config = serde_json::from_slice(text)
            .map_err(|error| format!("line {}, column {}", error.line(), error.column()))?;
        let helper = take(&mut config.cred_helpers, registry).or(config.creds_store);
        let auth = take(&mut config.auths, registry);
        Ok(Self { helper: helper.filter(|name| !name.is_empty()), auth })
    }

    /// What is in the file itself, where no helper has anything.
    ///
    /// # Errors
    /// What is wrong with the entry, after its name.
    pub fn stored(&self) -> Result<Option<Credentials>, &'static str> {
        self.auth.as_ref().map_or(Ok(None), Auth::credentials)
    }
}

async fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    use tokio::io::AsyncReadExt as _;
    let failed = |error| Error::Read { path: path.to_owned(), error };
    let file = match tokio::fs::File::open(path).await {
        // Nobody has logged in yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = Vec::new();
    file.take(MAXIMUM_CONFIG).read_to_end(&mut text).await.map_err(failed)?;
    Ok(Some(text))
}

/// The entry for a registry. Keys are hosts, or addresses as older versions of Docker wrote them.
fn take<V>(map: &mut BTreeMap<String, V>, registry: &str) -> Option<V> {
    let exact = if registry == reference::HUB { HUB_KEY } else { registry };
    let key = match map.get_key_value(exact) {
        Some((key, _)) => key.clone(),
        None => map.keys().find(|key| host(key) == registry)?.clone(),
    };
    map.remove(&key)
}

fn host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = rest.split('/').next().unwrap_or_default();
    if reference::HUB_HOSTS.contains(&host) { reference::HUB } else { host }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::IdentityToken(token.clone())));
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let decoded = BASE64_STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or("has an `auth` that is not base64")?;
            let (username, password) = decoded.split_once(':').ok_or("has an `auth` without a user or a password")?;
            // Some tools pad passwords.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() }));
        }
        match (&self.username, &self.password) {
            (Some(username), Some(password)) if !username.is_empty() => {
                Ok(Some(Credentials::Password { username: username.clone(), password: password.clone() }))
            }
            // What `docker login` writes beside a credential store.
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
