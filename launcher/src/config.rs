//! The launcher's configuration: environment variables, read once, into typed values.
//!
//! All that is wrong is reported together, so that whoever sets up a host does so once. No message repeats a value: tokens,
//! keys and passwords end up in the wrong variable. A variable that is empty counts as one that is not set.
//!
//! # Choices where the documentation leaves one
//!
//! - **`ro_` and `wo_`** in `SPACELIFT_WHITELIST_ENVS` and `SPACELIFT_MASK_ENVS`: an item `ro_NAME` means the launcher's variable
//!   `ro_NAME` if there is one, and otherwise `NAME`. The worker sees it as `NAME` either way. So `ro_AWS_ACCESS_KEY_ID` and
//!   `wo_AWS_ACCESS_KEY_ID` can have different values, and `wo_TOKEN` alone keeps `TOKEN` away from previews.
//! - **`SPACELIFT_MASK_ENVS`** passes what it lists also when `SPACELIFT_WHITELIST_ENVS` does not list it.
//! - **Timeouts** of zero are refused: a run that may take forever blocks its worker forever.
//! - **Proxies**: `HTTP_PROXY` before `http_proxy`, as programs in Go have it.
//! - **`DOCKER_HOST`**: Unix sockets, and TCP to this host only. Whoever can listen to the engine's API is root.
//! - **`ADDITIONAL_ROOT_CAS`**: PEM, base64 of PEM, the documented secret's value (base64 of
//!   `{"caCertificates": [base64 of PEM, …]}`), or the absolute path of a file with one of these.
//! - **`SPACELIFT_LAUNCHER_LOG`**: whatever it names no level for has `info`, so that a filter for one module does not hide
//!   every warning.
//! - **What the service manager sets** (`NOTIFY_SOCKET` and its like) is no reason not to start: what cannot be used is warned of.

mod authorities;
mod containers;
mod network;
mod reader;
mod sight;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use launcher_wire::api::{MAXIMUM_METADATA, MAXIMUM_METADATA_LENGTH};
use launcher_wire::key::{PoolCertificate, PoolKey};
use launcher_wire::token::Token;

use crate::network::{self as network_settings, Network};
use crate::policy::Policy;
use crate::supervisor;
use crate::worker_binary::DEFAULT_DIRECTORY;

pub use containers::Mount;
pub use network::{Proxies, VcsMapping};
pub use reader::{Problem, Problems};
pub use sight::{LogFormat, LogSettings};

use reader::Reader;

/// The network that containers are in unless another one is named.
pub const DEFAULT_NETWORK: &str = "bridge";
/// The runner image of stacks that name none.
pub const DEFAULT_IMAGE: &str = "public.ecr.aws/spacelift/runner-terraform:latest";
/// The runner image of Ansible stacks that name none.
pub const DEFAULT_ANSIBLE_IMAGE: &str = "public.ecr.aws/spacelift/runner-ansible:latest";
/// How long a run may be silent.
pub const DEFAULT_LOGS_TIMEOUT: Duration = Duration::from_secs(7 * 60);
/// How long a run may take.
pub const DEFAULT_RUN_TIMEOUT: Duration = Duration::from_secs(70 * 60);
/// A certificate that ends sooner is worth a warning: somebody has to make another one.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How far the clock of this host may be behind the one that a certificate was made by.
const CLOCK_SKEW: i64 = 5 * 60;
/// Bytes of a policy's file. Those that people write have a few thousand.
const MAXIMUM_POLICY: u64 = 1024 * 1024;

const TOKEN: &str = "SPACELIFT_TOKEN";
const KEY: &str = "SPACELIFT_POOL_PRIVATE_KEY";
const DIRECTORY: &str = "SPACELIFT_LAUNCHER_DIR";
const DOCKER_CONFIG_DIR: &str = "SPACELIFT_DOCKER_CONFIG_DIR";
const MASK: &str = "SPACELIFT_MASK_ENVS";
const PASSED: &str = "SPACELIFT_WHITELIST_ENVS";
const NETWORK: &str = "SPACELIFT_WORKER_NETWORK";
const RUNTIME: &str = "SPACELIFT_WORKER_RUNTIME";
const MEMORY: &str = "SPACELIFT_WORKER_MEMORY";
const MOUNTS: [(&str, Scope); 3] = [
    ("SPACELIFT_WORKER_EXTRA_MOUNTS", Scope::All),
    ("SPACELIFT_WORKER_RO_EXTRA_MOUNTS", Scope::ReadOnly),
    ("SPACELIFT_WORKER_WO_EXTRA_MOUNTS", Scope::WriteOnly),
];
const LOGS_TIMEOUT: &str = "SPACELIFT_LAUNCHER_LOGS_TIMEOUT";
const RUN_TIMEOUT: &str = "SPACELIFT_LAUNCHER_RUN_TIMEOUT";
const POLICY: &str = "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY";
const SENSITIVE_OUTPUTS: &str = "SPACELIFT_SENSITIVE_OUTPUT_UPLOAD_ENABLED";
const LOGS_ON_STDOUT: &str = "SPACELIFT_RUN_LOGS_ON_STANDARD_OUTPUT_ENABLED";
const IMAGE: &str = "SPACELIFT_DEFAULT_RUNNER_IMAGE";
const ANSIBLE_IMAGE: &str = "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE";
const DEBUG: &str = "SPACELIFT_DEBUG";
const LOG: &str = "SPACELIFT_LAUNCHER_LOG";
const LOG_FORMAT: &str = "SPACELIFT_LAUNCHER_LOG_FORMAT";
const METRICS_ADDRESS: &str = "SPACELIFT_LAUNCHER_METRICS_ADDRESS";
const METADATA_PREFIX: &str = "SPACELIFT_METADATA_";
const VCS_NAME_PREFIX: &str = "SPACELIFT_PRIVATEVCS_MAPPING_NAME_";
const VCS_ENDPOINT_PREFIX: &str = "SPACELIFT_PRIVATEVCS_MAPPING_BASE_ENDPOINT_";
const AUTHORITIES: &str = "ADDITIONAL_ROOT_CAS";
const DOCKER_HOST: &str = "DOCKER_HOST";

/// Names that a misspelt one is compared with.
const KNOWN: [&str; 25] = [
    TOKEN,
    KEY,
    DIRECTORY,
    DOCKER_CONFIG_DIR,
    MASK,
    PASSED,
    NETWORK,
    RUNTIME,
    MEMORY,
    MOUNTS[0].0,
    MOUNTS[1].0,
    MOUNTS[2].0,
    LOGS_TIMEOUT,
    RUN_TIMEOUT,
    POLICY,
    SENSITIVE_OUTPUTS,
    LOGS_ON_STDOUT,
    IMAGE,
    ANSIBLE_IMAGE,
    DEBUG,
    LOG,
    LOG_FORMAT,
    METRICS_ADDRESS,
    AUTHORITIES,
    DOCKER_HOST,
];

/// What the launcher was told.
pub struct Config {
    /// The pool's token.
    pub token: Token,
    /// The certificate in the token.
    pub certificate: PoolCertificate,
    /// The pool's private key. It belongs to the certificate.
    pub key: PoolKey,
    /// Where the launcher keeps files on the host. The Docker engine finds the same files under the same paths.
    pub directory: PathBuf,
    /// The directory with Docker's `config.json`.
    pub docker_config_dir: Option<PathBuf>,
    /// Names, as workers see them, of variables whose values are masked.
    pub mask: Vec<String>,
    /// Variables of the launcher that workers get.
    pub passed: Vec<PassedVariable>,
    /// The network that containers are in.
    pub network: String,
    /// The runtime of containers. None: the engine's default.
    pub runtime: Option<String>,
    /// Bytes of memory that a container may use. None: as much as the host has.
    pub memory: Option<u64>,
    /// What is mounted besides what every container has.
    pub mounts: Vec<Mount>,
    /// How long a run may be silent.
    pub logs_timeout: Duration,
    /// How long a run may take.
    pub run_timeout: Duration,
    /// Which runs may begin here. None: all.
    pub policy: Option<Policy>,
    /// Whether outputs that the tool calls sensitive are uploaded too.
    pub sensitive_outputs: bool,
    /// Whether logs of runs are copied to standard output.
    pub logs_on_stdout: bool,
    /// The runner image of stacks that name none.
    pub default_image: String,
    /// The runner image of Ansible stacks that name none.
    pub default_ansible_image: String,
    /// Whether the exact commands are written into the worker's log.
    pub debug: bool,
    /// The launcher's own log.
    pub log: LogSettings,
    /// Where metrics are served. None: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// The service manager that wants to hear of the launcher.
    pub supervisor: Option<supervisor::Settings>,
    /// Tags to register with.
    pub metadata: BTreeMap<String, String>,
    /// Where private version control systems are.
    pub vcs: Vec<VcsMapping>,
    /// The proxies of the host's network.
    pub proxies: Proxies,
    /// Authorities that are trusted besides the host's, a certificate in PEM each.
    pub additional_roots: Vec<String>,
    /// Where the Docker engine listens: `unix:///…` or `tcp://…`. None: at its usual socket.
    pub docker_host: Option<String>,
    /// What is not wrong but probably not meant, a sentence each.
    pub warnings: Vec<String>,
}

// The key redacts itself, as values of variables and passwords of proxies do. Named one by one, so that a new field is a
// decision.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("pool", &self.token.pool)
            .field("api", &self.token.api)
            .field("broker", &self.token.broker)
            .field("directory", &self.directory)
            .field("docker_config_dir", &self.docker_config_dir)
            .field("mask", &self.mask)
            .field("passed", &self.passed)
            .field("network", &self.network)
            .field("runtime", &self.runtime)
            .field("memory", &self.memory)
            .field("mounts", &self.mounts)
            .field("logs_timeout", &self.logs_timeout)
            .field("run_timeout", &self.run_timeout)
            .field("policy", &self.policy)
            .field("sensitive_outputs", &self.sensitive_outputs)
            .field("logs_on_stdout", &self.logs_on_stdout)
            .field("default_image", &self.default_image)
            .field("default_ansible_image", &self.default_ansible_image)
            .field("debug", &self.debug)
            .field("log", &self.log)
            .field("metrics_address", &self.metrics_address)
            .field("supervisor", &self.supervisor)
            .field("metadata", &self.metadata)
            .field("vcs", &self.vcs)
            .field("proxies", &self.proxies)
            .field("additional_roots", &self.additional_roots.len())
            .field("docker_host", &self.docker_host)
            .finish_non_exhaustive()
    }
}

/// Which runs something is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// Those that change nothing: previews.
    ReadOnly,
    /// Those that change something.
    WriteOnly,
}

impl Scope {
    /// Whether a run is one of them; see [`launcher_wire::api::RunType::is_read_only`].
    #[must_use]
    pub fn applies(self, is_read_only: bool) -> bool {
        match self {
            Self::All => true,
            Self::ReadOnly => is_read_only,
            Self::WriteOnly => !is_read_only,
        }
    }

    /// Whether there are runs that are of both.
    fn overlaps(self, other: Self) -> bool {
        self == other || self == Self::All || other == Self::All
    }
}

/// A variable of the launcher that workers get.
#[derive(Clone, PartialEq, Eq)]
pub struct PassedVariable {
    /// Its name, as the worker sees it.
    pub name: String,
    /// Its value.
    pub value: String,
    /// In which runs.
    pub scope: Scope,
    /// Whether its value is masked in logs.
    pub masked: bool,
}

impl fmt::Debug for PassedVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, scope, masked, value: _ } = self;
        f.debug_struct("PassedVariable")
            .field("name", name)
            .field("scope", scope)
            .field("masked", masked)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Reads the variables of an environment, and the files that they name.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn from_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Problems> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::at(now, variables)
    }

    /// How connections are made: authorities and proxies for all of them.
    ///
    /// # Errors
    /// An authority or a proxy is none.
    pub fn network(&self) -> Result<Network, network_settings::Error> {
        Network::new(&network_settings::Settings {
            token_authorities: self.token.ca.clone(),
            additional_roots: self.additional_roots.clone(),
            http_proxy: self.proxies.http.clone(),
            https_proxy: self.proxies.https.clone(),
            no_proxy: self.proxies.no_proxy.clone(),
        })
    }

    fn at(now: Duration, variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Problems> {
        let mut reader = Reader::new(variables);
        let token = token(&mut reader, now);
        let key = key(&mut reader);
        if let (Some((_, certificate)), Some(key)) = (&token, &key)
            && !certificate.belongs_to(key)
        {
            reader.problem(
                KEY,
                format_args!(
                    "the key does not belong to the certificate in {TOKEN}. Take the key of which the certificate \
                     request of this pool was made, and the token of the same pool"
                ),
            );
        }
        let (mask, passed) = passed(&mut reader);
        let directory = reader.path(DIRECTORY).unwrap_or_else(|| PathBuf::from(DEFAULT_DIRECTORY));
        let docker_config_dir = reader.path(DOCKER_CONFIG_DIR);
        let network = containers::name(&mut reader, NETWORK).unwrap_or_else(|| DEFAULT_NETWORK.to_owned());
        if network == "host" {
            reader.warn(format_args!(
                "{NETWORK} is `host`: every run can then reach what listens on this host alone, and the instance metadata \
                 service with the host's own role"
            ));
        }
        let runtime = containers::name(&mut reader, RUNTIME);
        let memory = containers::memory(&mut reader, MEMORY);
        let mounts = containers::mounts(&mut reader);
        let logs_timeout = reader.duration(LOGS_TIMEOUT).unwrap_or(DEFAULT_LOGS_TIMEOUT);
        let run_timeout = reader.duration(RUN_TIMEOUT).unwrap_or(DEFAULT_RUN_TIMEOUT);
        let policy = policy(&mut reader);
        let sensitive_outputs = reader.boolean(SENSITIVE_OUTPUTS);
        let logs_on_stdout = reader.boolean(LOGS_ON_STDOUT);
        let default_image = containers::image(&mut reader, IMAGE).unwrap_or_else(|| DEFAULT_IMAGE.to_owned());
        let default_ansible_image =
            containers::image(&mut reader, ANSIBLE_IMAGE).unwrap_or_else(|| DEFAULT_ANSIBLE_IMAGE.to_owned());
        let debug = reader.boolean(DEBUG);
        let log = sight::log(&mut reader);
        let metrics_address = sight::metrics_address(&mut reader);
        let supervisor = sight::supervisor(&mut reader);
        let metadata = metadata(&mut reader);
        let vcs = network::vcs(&mut reader);
        let proxies = network::proxies(&mut reader);
        let additional_roots = authorities::read(&mut reader);
        let docker_host = network::docker_host(&mut reader);
        reader.warn_of_misspelt_names(&KNOWN);
        let (warnings, problems) = reader.finish();
        match (token, key) {
            (Some((token, certificate)), Some(key)) if problems.is_empty() => Ok(Self {
                token,
                certificate,
                key,
                directory,
                docker_config_dir,
                mask,
                passed,
                network,
                runtime,
                memory,
                mounts,
                logs_timeout,
                run_timeout,
                policy,
                sensitive_outputs,
                logs_on_stdout,
                default_image,
                default_ansible_image,
                debug,
                log,
                metrics_address,
                supervisor,
                metadata,
                vcs,
                proxies,
                additional_roots,
                docker_host,
                warnings,
            }),
            _ => Err(problems),
        }
    }
}

fn token(reader: &mut Reader, now: Duration) -> Option<(Token, PoolCertificate)> {
    let Some(value) = reader.text(TOKEN) else {
        reader.problem_if_absent(TOKEN, "it is not set. Its value was given out when the pool was created");
        return None;
    };
    let (token, certificate) = match Token::from_variable(&value) {
        Ok(pair) => pair,
        Err(error) => {
            reader.problem(TOKEN, error);
            return None;
        }
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let remedy = "Have the control plane sign another request for the pool, and use the token that comes of it";
    let left = certificate.not_after.saturating_sub(now);
    let expires_soon = i64::try_from(EXPIRES_SOON.as_secs()).unwrap_or(i64::MAX);
    if left < 0 {
        let days = left.unsigned_abs() / (24 * 60 * 60);
        reader.problem(TOKEN, format_args!("the pool's certificate expired {} ago. {remedy}", in_days(days)));
    } else if certificate.not_before > now.saturating_add(CLOCK_SKEW) {
        reader.problem(TOKEN, "the pool's certificate is not valid yet. Is the clock of this host right?");
    } else if left < expires_soon {
        let days = left / (24 * 60 * 60);
        reader.warn(format_args!("{TOKEN}: the pool's certificate expires in {days} days. {remedy}"));
    }
    Some((token, certificate))
}

fn in_days(days: u64) -> String {
    if days == 1 { "1 day".to_owned() } else { format!("{days} days") }
}

fn key(reader: &mut Reader) -> Option<PoolKey> {
    let Some(value) = reader.text(KEY) else {
        reader.problem_if_absent(KEY, "it is not set. Its value is what `base64 -w 0 spacelift.key` prints");
        return None;
    };
    PoolKey::from_variable(&value).map_err(|error| reader.problem(KEY, error)).ok()
}

/// An item of a list of variables: `NAME`, `ro_NAME` or `wo_NAME`.
struct Listed {
    item: String,
    name: String,
    scope: Scope,
    list: &'static str,
}

fn listed(reader: &mut Reader, list: &'static str) -> Vec<Listed> {
    let mut found = Vec::new();
    for item in reader.list(list) {
        let (scope, name) = match (item.strip_prefix("ro_"), item.strip_prefix("wo_")) {
            (Some(name), _) => (Scope::ReadOnly, name),
            (_, Some(name)) => (Scope::WriteOnly, name),
            _ => (Scope::All, item.as_str()),
        };
        let is_name = !name.is_empty() && !name.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control());
        if !is_name {
            // Somebody may have written values into the list, so it is not repeated.
            reader.problem(list, "one of its items is not a variable's name. List names only, separated by commas");
        } else if [TOKEN, KEY].contains(&name) {
            reader.problem(
                list,
                format_args!("it lists {name}, which would make every run the owner of the pool. Take it off the list"),
            );
        } else {
            found.push(Listed { name: name.to_owned(), item, scope, list });
        }
    }
    found
}

/// Names whose values are masked, and what is passed.
fn passed(reader: &mut Reader) -> (Vec<String>, Vec<PassedVariable>) {
    let whitelisted = listed(reader, PASSED);
    let masked = listed(reader, MASK);
    let mask: BTreeSet<String> = masked.iter().map(|listed| listed.name.clone()).collect();
    let mut passed: Vec<PassedVariable> = Vec::new();
    for Listed { item, name, scope, list } in whitelisted.into_iter().chain(masked) {
        // The second list only adds what the first one does not have.
        if passed.iter().any(|other| other.name == name && (other.scope == scope || list == MASK)) {
            continue;
        }
        let Some(value) = reader.raw(&item).or_else(|| reader.raw(&name)) else {
            reader.warn(format_args!("{list} lists {item}, which is not set, so runs do not get it"));
            continue;
        };
        match value.into_string() {
            Ok(value) => {
                let masked = mask.contains(&name);
                passed.push(PassedVariable { name, value, scope, masked });
            }
            Err(_) => reader.problem(&item, format_args!("it is not UTF-8, and {list} lists it")),
        }
    }
    // A variable that both kinds of runs get is weaker than one that is for this kind.
    passed.sort_by_key(|variable| variable.scope != Scope::All);
    (mask.into_iter().collect(), passed)
}

fn policy(reader: &mut Reader) -> Option<Policy> {
    use std::io::Read as _;
    let path = reader.path(POLICY)?;
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(MAXIMUM_POLICY + 1).read_to_string(&mut text));
    match read {
        Err(error) => reader.problem(POLICY, format_args!("cannot read the policy `{}`: {error}", path.display())),
        Ok(size) if size as u64 > MAXIMUM_POLICY => {
            reader.problem(POLICY, format_args!("the file has more than {MAXIMUM_POLICY} bytes; it is not a policy"));
        }
        Ok(_) => match Policy::compile(&text, &path.to_string_lossy()) {
            Ok(policy) => return Some(policy),
            Err(error) => reader.problem(POLICY, error),
        },
    }
    None
}

fn metadata(reader: &mut Reader) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    for (variable, name) in reader.with_prefix(METADATA_PREFIX) {
        let Some(value) = reader.text(&variable) else { continue };
        if name.is_empty() {
            reader.problem(&variable, format_args!("the tag's name is missing after `{METADATA_PREFIX}`"));
        } else if name.len().max(value.len()) > MAXIMUM_METADATA_LENGTH {
            let message = format_args!("its name or value has more than {MAXIMUM_METADATA_LENGTH} bytes");
            reader.problem(&variable, message);
        } else {
            metadata.insert(name, value);
        }
    }
    if metadata.len() > MAXIMUM_METADATA {
        let message = format_args!("there are {} tags; a worker has at most {MAXIMUM_METADATA}", metadata.len());
        reader.problem(&format!("{METADATA_PREFIX}*"), message);
    }
    metadata
}

#[cfg(test)]
mod tests;
