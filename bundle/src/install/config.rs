//! `config.json`: what the customer says about the installation.
//!
//! Files of existing installations are accepted as they are. What only concerns the backend has its type checked and is
//! reported as not used; what nobody knows is a mistake. All mistakes are reported together, each with its place.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::json::{Json, SyntaxError};

/// Limit of the file: SAML metadata and certificates may be in it, and have some kilobytes each.
const MAX_FILE: u64 = 1024 * 1024;
/// More mistakes are not listed.
const MAX_SHOWN: usize = 50;
/// Limit of the tags of a CloudFormation stack.
const MAX_TAGS: usize = 50;
/// The stack of the downloads bucket, as it is documented.
pub(crate) const S3_STACK: &str = "spacelift-infra-s3";
/// The stack of the launcher's image repository.
pub(crate) const ECR_STACK: &str = "spacelift-infra-ecr";
/// The launcher's image repository, as it is documented.
pub(crate) const REPOSITORY: &str = "spacelift-launcher";

/// A configuration without mistakes, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Region to install into.
    pub(crate) region: Option<String>,
    /// The account that the credentials must belong to.
    pub(crate) account_id: Option<String>,
    /// Profile of the AWS configuration files.
    pub(crate) profile: Option<String>,
    /// Who must have signed the release.
    pub(crate) signers: Vec<Pin>,
    /// How many of them.
    pub(crate) threshold: usize,
    /// Name of the downloads bucket, unless it is the default, which has the account in it.
    pub(crate) bucket: Option<String>,
    /// Name of the launcher's image repository.
    pub(crate) repository: String,
    /// Name of the stack of the downloads bucket.
    pub(crate) s3_stack: String,
    /// Name of the stack of the image repository.
    pub(crate) ecr_stack: String,
    /// Tags of everything that is created.
    pub(crate) tags: Vec<(String, String)>,
    /// After how many days replaced and deleted objects of the downloads bucket are gone.
    pub(crate) noncurrent_days: Option<u64>,
    /// Proxies.
    pub(crate) proxy: Proxy,
    /// Paths of what is set and not used here, because it only concerns the backend.
    pub(crate) unused: Vec<String>,
}

/// A certificate that is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pin {
    /// The file that has it, joined to the directory of the configuration.
    File(PathBuf),
    /// Its fingerprint in capital letters. The certificate itself may then come from anywhere.
    Fingerprint(String),
}

/// `proxy_config`. Addresses may hold a password, so they are not printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// For plain HTTP.
    pub(crate) http: Option<String>,
    /// For HTTPS.
    pub(crate) https: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub(crate) none: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |value: &Option<String>| value.as_ref().map(|_| "(set)");
        let mut shown = f.debug_struct("Proxy");
        shown.field("http", &set(&self.http)).field("https", &set(&self.https)).field("none", &self.none).finish()
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be read.
    #[error(
        "the configuration {} cannot be read: {source}; name another file with -c", .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not JSON.
    #[error("{}: {source}; it has to be one JSON object, as config.json in the release is", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: SyntaxError,
    },
    /// It has mistakes.
    #[error("{}", list(.path, .problems))]
    Problems {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where, such as `global_resource_tags[0].key`.
    pub(crate) path: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let count = problems.len();
    let mut text = format!("{} has {count} {}", path.display(), if count == 1 { "mistake:" } else { "mistakes:" });
    for Problem { path, message } in problems.iter().take(MAX_SHOWN) {
        text.push_str(&format!("\n  {path}: {message}"));
    }
    if count > MAX_SHOWN {
        text.push_str(&format!("\n  … and {} more", count - MAX_SHOWN));
    }
    text
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let problem = |message: String| Error::Problems {
            path: path.to_owned(),
            problems: vec![Problem { path: "(file)".into(), message }],
        };
        if bytes.len() as u64 > MAX_FILE {
            return Err(problem(format!("it has more than {MAX_FILE} bytes; this is not a configuration")));
        }
        let text = String::from_utf8(bytes).map_err(|_| problem("it is not UTF-8".into()))?;
        let json = Json::parse(&text).map_err(|source| Error::Syntax { path: path.to_owned(), source })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::from_json(&json, directory).map_err(|problems| Error::Problems { path: path.to_owned(), problems })
    }

    /// Checks a configuration. Paths in it are relative to `directory`.
    fn from_json(json: &Json, directory: &Path) -> Result<Self, Vec<Problem>> {
        let mut check = Check::default();
        check.object(json, "", FIELDS);
        let set = |path: &str| find(json, path).filter(|value| is_set(value));
        let text = |path: &str| match set(path) {
            Some(Json::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let config = Self {
            region: check.matches("aws_region", text("aws_region"), is_region, "a region, such as eu-west-1"),
            account_id: check.matches("aws_account_id", text("aws_account_id"), is_account, "an account: 12 digits"),
            profile: text("aws_profile"),
            signers: check.signers(set("signers"), directory),
            threshold: check.whole("threshold", set("threshold"), 1, 100).map_or(1, |number| number as usize),
            bucket: check.matches(
                "downloads_bucket_name",
                text("downloads_bucket_name"),
                is_bucket,
                "a bucket's name: 3 to 63 lower-case letters, digits, `-` and `.`, from letter or digit to letter or digit",
            ),
            repository: check
                .matches(
                    "launcher_repository_name",
                    text("launcher_repository_name"),
                    is_repository,
                    "a repository's name: 2 to 256 lower-case letters, digits and single `.`, `_`, `-` or `/` between them",
                )
                .unwrap_or_else(|| REPOSITORY.into()),
            s3_stack: check.stack("stack_names.s3", text("stack_names.s3"), S3_STACK),
            ecr_stack: check.stack("stack_names.ecr", text("stack_names.ecr"), ECR_STACK),
            tags: check.tags(set("global_resource_tags")),
            noncurrent_days: check.whole(NONCURRENT_DAYS, set(NONCURRENT_DAYS), 1, 36_500),
            proxy: Proxy {
                http: check.proxy("proxy_config.http_proxy", text("proxy_config.http_proxy")),
                https: check.proxy("proxy_config.https_proxy", text("proxy_config.https_proxy")),
                none: text("proxy_config.no_proxy"),
            },
            unused: std::mem::take(&mut check.unused),
        };
        if config.s3_stack == config.ecr_stack {
            check.problem("stack_names", "both stacks have the same name; give each its own".into());
        }
        if !config.signers.is_empty() && config.threshold > config.signers.len() {
            let message = format!(
                "{} signatures cannot be had from the {} pinned in `signers`",
                config.threshold,
                config.signers.len()
            );
            check.problem("threshold", message);
        }
        if check.problems.is_empty() { Ok(config) } else { Err(check.problems) }
    }
}

/// Type of a field.
enum Shape {
    Text,
    Whole,
    /// A list of strings.
    Texts,
    /// An object with these fields.
    Object(&'static [Field]),
    /// A list of such objects.
    Objects(&'static [Field]),
    /// What existing files have as `true`, as `"true"` or as `""`.
    Switch,
    /// What existing files have as `7` or as `"7"`.
    Count,
}

/// Who uses a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Installer,
    Backend,
}

/// A known field.
struct Field {
    name: &'static str,
    shape: Shape,
    used: For,
}

const fn ours(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, used: For::Installer }
}

const fn backend(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, used: For::Backend }
}

const NONCURRENT_DAYS: &str = "s3_config.downloads_bucket_noncurrent_expiration_days";

/// Every field: those that this installer uses, and those of the backend in files of existing installations.
const FIELDS: &[Field] = &[
    ours("aws_region", Shape::Text),
    ours("aws_account_id", Shape::Text),
    ours("aws_profile", Shape::Text),
    ours("signers", Shape::Texts),
    ours("threshold", Shape::Whole),
    ours("downloads_bucket_name", Shape::Text),
    ours("launcher_repository_name", Shape::Text),
    ours("stack_names", Shape::Object(&[ours("s3", Shape::Text), ours("ecr", Shape::Text)])),
    ours("global_resource_tags", Shape::Objects(&[ours("key", Shape::Text), ours("value", Shape::Text)])),
    ours(
        "proxy_config",
        Shape::Object(&[
            ours("http_proxy", Shape::Text),
            ours("https_proxy", Shape::Text),
            ours("no_proxy", Shape::Text),
        ]),
    ),
    ours(
        "s3_config",
        Shape::Object(&[
            ours("downloads_bucket_noncurrent_expiration_days", Shape::Whole),
            backend("run_logs_expiration_days", Shape::Count),
            backend("deliveries_bucket_expiration_days", Shape::Count),
            backend("large_queue_messages_bucket_expiration_days", Shape::Count),
            backend("metadata_bucket_expiration_days", Shape::Count),
            backend("policy_inputs_bucket_expiration_days", Shape::Count),
            backend("uploads_bucket_expiration_days", Shape::Count),
            backend("user_uploaded_workspaces_bucket_expiration_days", Shape::Count),
            backend("workspaces_bucket_expiration_days", Shape::Count),
            backend("access_logs_bucket_expiration_days", Shape::Count),
        ]),
    ),
    backend("account_name", Shape::Text),
    backend("spacelift_hostname", Shape::Text),
    backend("webhooks_endpoint", Shape::Text),
    backend("iot_broker_endpoint", Shape::Text),
    backend("disable_services", Shape::Switch),
    backend("tracing_enabled", Shape::Switch),
    backend("automatically_report_usage_data", Shape::Switch),
    backend("alerting", Shape::Object(&[backend("sns_topic_arn", Shape::Text)])),
    backend(
        "load_balancer",
        Shape::Object(&[
            backend("certificate_arn", Shape::Text),
            backend("scheme", Shape::Text),
            backend("ssl_policy", Shape::Text),
            backend("subnet_placement", Shape::Text),
            backend("tag", Shape::Object(&[backend("key", Shape::Text), backend("value", Shape::Text)])),
        ]),
    ),
    backend(
        "database",
        Shape::Object(&[
            backend("delete_protection_enabled", Shape::Switch),
            backend("instance_class", Shape::Text),
            backend("postgres_engine_version", Shape::Text),
            backend("db_cluster_identifier", Shape::Text),
            backend("connection_string_ssm_arn", Shape::Text),
            backend("connection_string_ssm_kms_arn", Shape::Text),
        ]),
    ),
    backend(
        "sso_config",
        Shape::Object(&[
            backend("admin_login", Shape::Text),
            backend("sso_type", Shape::Text),
            backend("update_on_install", Shape::Switch),
            backend(
                "oidc_args",
                Shape::Object(&[
                    backend("client_id", Shape::Text),
                    backend("client_credentials", Shape::Text),
                    backend("identity_provider_host", Shape::Text),
                ]),
            ),
            backend(
                "saml_args",
                Shape::Object(&[
                    backend("metadata", Shape::Text),
                    backend("dynamic", Shape::Switch),
                    backend("name_id_format", Shape::Text),
                    backend("update_on_install", Shape::Switch),
                ]),
            ),
        ]),
    ),
    backend(
        "slack_config",
        Shape::Object(&[
            backend("enabled", Shape::Switch),
            backend("client_id", Shape::Text),
            backend("client_secret", Shape::Text),
            backend("signing_secret", Shape::Text),
        ]),
    ),
    backend(
        "tls_config",
        Shape::Object(&[
            backend("server_certificate_secrets_manager_arn", Shape::Text),
            backend("ca_certificates", Shape::Texts),
        ]),
    ),
    backend(
        "vpc_config",
        Shape::Object(&[
            backend("use_custom_vpc", Shape::Switch),
            backend("vpc_id", Shape::Text),
            backend("vpc_cidr_block", Shape::Text),
            backend("subnet_mask_size", Shape::Count),
            backend("private_subnet_ids", Shape::Text),
            backend("public_subnet_ids", Shape::Text),
            backend("availability_zones", Shape::Text),
            backend("drain_security_group_id", Shape::Text),
            backend("load_balancer_security_group_id", Shape::Text),
            backend("server_security_group_id", Shape::Text),
            backend("scheduler_security_group_id", Shape::Text),
            backend("installation_task_security_group_id", Shape::Text),
            backend("database_security_group_id", Shape::Text),
        ]),
    ),
    backend(
        "disaster_recovery",
        Shape::Object(&[
            backend("is_dr_instance", Shape::Switch),
            backend("replica_region", Shape::Text),
            backend("encryption_primary_key_arn", Shape::Text),
            backend(
                "s3_bucket_replication",
                Shape::Object(&[
                    backend("enabled", Shape::Switch),
                    backend("replica_kms_key_arn", Shape::Text),
                    backend("states_bucket_arn", Shape::Text),
                    backend("run_logs_bucket_arn", Shape::Text),
                    backend("modules_bucket_arn", Shape::Text),
                    backend("policy_inputs_bucket_arn", Shape::Text),
                    backend("workspaces_bucket_arn", Shape::Text),
                ]),
            ),
        ]),
    ),
];

/// What was found so far.
#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
    unused: Vec<String>,
}

impl Check {
    fn problem(&mut self, path: &str, message: String) {
        self.problems.push(Problem { path: path.to_owned(), message });
    }

    fn object(&mut self, value: &Json, path: &str, fields: &'static [Field]) {
        let Json::Object(entries) = value else {
            let message = format!("it is {} and must be an object", value.kind());
            return self.problem(if path.is_empty() { "(file)" } else { path }, message);
        };
        let mut seen = BTreeSet::new();
        for (name, value) in entries {
            // Names are the file's own text; what a terminal would obey must not get there.
            let name: String = name.chars().flat_map(char::escape_debug).take(100).collect();
            let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                self.problem(&place, format!("nothing has this name{}", suggestion(&name, path, fields)));
                continue;
            };
            if !seen.insert(name) {
                self.problem(&place, "it stands here twice; keep one".into());
            }
            if field.used == For::Backend && is_set(value) && !self.unused.contains(&place) {
                // Of an object that is not used, one line is enough.
                if !self.unused.iter().any(|known| place.starts_with(&format!("{known}."))) {
                    self.unused.push(place.clone());
                }
            }
            self.value(value, &place, &field.shape);
        }
    }

    fn value(&mut self, value: &Json, path: &str, shape: &'static Shape) {
        let expected = match (shape, value) {
            (_, Json::Null)
            | (Shape::Text, Json::Text(_))
            | (Shape::Whole, Json::Number(_))
            | (Shape::Switch, Json::Flag(_))
            | (Shape::Count, Json::Number(_)) => return,
            (Shape::Switch, Json::Text(text)) if matches!(text.as_str(), "" | "true" | "false") => return,
            (Shape::Count, Json::Text(text)) if text.chars().all(|c| c.is_ascii_digit()) => return,
            (Shape::Object(fields), _) => return self.object(value, path, fields),
            (Shape::Texts, Json::List(list)) => {
                for (index, item) in list.iter().enumerate() {
                    self.value(item, &format!("{path}[{index}]"), &Shape::Text);
                }
                return;
            }
            (Shape::Objects(fields), Json::List(list)) => {
                for (index, item) in list.iter().enumerate() {
                    self.object(item, &format!("{path}[{index}]"), fields);
                }
                return;
            }
            (Shape::Text, _) => "a string",
            (Shape::Whole | Shape::Count, _) => "a whole number",
            (Shape::Switch, _) => "true or false",
            (Shape::Texts, _) => "a list of strings",
            (Shape::Objects(_), _) => "a list of objects",
        };
        self.problem(path, format!("it is {} and must be {expected}", value.kind()));
    }

    fn matches(
        &mut self,
        path: &str,
        value: Option<String>,
        is_good: fn(&str) -> bool,
        expected: &str,
    ) -> Option<String> {
        let value = value?;
        if !is_good(&value) {
            let shown: String = value.chars().take(100).collect();
            self.problem(path, format!("{shown:?} is not {expected}"));
        }
        Some(value)
    }

    fn stack(&mut self, path: &str, value: Option<String>, default: &str) -> String {
        let expected = "a stack's name: a letter, then up to 127 letters, digits and `-`";
        self.matches(path, value, is_stack, expected).unwrap_or_else(|| default.to_owned())
    }

    fn whole(&mut self, path: &str, value: Option<&Json>, least: u64, most: u64) -> Option<u64> {
        let Some(Json::Number(number)) = value else { return None };
        match number.as_u64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Some(number),
            None => {
                self.problem(path, format!("{number} is not a whole number from {least} to {most}"));
                None
            }
        }
    }

    fn signers(&mut self, value: Option<&Json>, directory: &Path) -> Vec<Pin> {
        let Some(Json::List(list)) = value else { return Vec::new() };
        let mut pins = Vec::new();
        for (index, signer) in list.iter().enumerate() {
            let Json::Text(text) = signer else { continue };
            let path = format!("signers[{index}]");
            let digits: String = text.chars().filter(|c| *c != ' ').collect();
            let is_hex = digits.chars().all(|c| c.is_ascii_hexdigit());
            let pin = match digits.len() {
                0 => {
                    self.problem(&path, "it is empty; name a certificate file or a fingerprint".into());
                    continue;
                }
                40 | 64 if is_hex => Pin::Fingerprint(digits.to_ascii_uppercase()),
                8..=63 if is_hex => {
                    let message =
                        "it is a key ID or part of a fingerprint, which others can imitate; give all 40 digits";
                    self.problem(&path, message.into());
                    continue;
                }
                _ => Pin::File(directory.join(text)),
            };
            if pins.contains(&pin) {
                self.problem(&path, "it stands in the list twice".into());
            }
            pins.push(pin);
        }
        pins
    }

    fn tags(&mut self, value: Option<&Json>) -> Vec<(String, String)> {
        let Some(Json::List(list)) = value else { return Vec::new() };
        if list.len() > MAX_TAGS {
            let message = format!("{} tags are more than the {MAX_TAGS} that a stack can have", list.len());
            self.problem("global_resource_tags", message);
        }
        let mut tags: Vec<(String, String)> = Vec::new();
        for (index, tag) in list.iter().enumerate() {
            let path = format!("global_resource_tags[{index}]");
            let text = |name: &str| match find(tag, name) {
                Some(Json::Text(text)) => Some(text.clone()),
                _ => None,
            };
            // A value of another type was reported already.
            for name in ["key", "value"] {
                if matches!(find(tag, name), None | Some(Json::Null)) && matches!(tag, Json::Object(_)) {
                    self.problem(&format!("{path}.{name}"), "it is missing".into());
                }
            }
            let (Some(key), Some(value)) = (text("key"), text("value")) else { continue };
            let lower = key.to_ascii_lowercase();
            if key.is_empty() || key.chars().count() > 128 || lower.starts_with("aws:") || !key.chars().all(is_tag_char)
            {
                let message =
                    "a tag's key has 1 to 128 letters, digits, spaces and `_.:/=+-@`, and does not begin with `aws:`";
                self.problem(&format!("{path}.key"), message.into());
            }
            if value.chars().count() > 256 || !value.chars().all(is_tag_char) {
                let message = "a tag's value has at most 256 letters, digits, spaces and `_.:/=+-@`";
                self.problem(&format!("{path}.value"), message.into());
            }
            if tags.iter().any(|(known, _)| *known == key) {
                self.problem(&format!("{path}.key"), "another tag has the same key".into());
            }
            tags.push((key, value));
        }
        tags
    }

    /// The address is not repeated in the message: there may be a password in it.
    fn proxy(&mut self, path: &str, value: Option<String>) -> Option<String> {
        let value = value?;
        let host = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
        let host = host.map(|rest| rest.rsplit_once('@').map_or(rest, |(_, host)| host));
        let is_host = |host: &str| {
            let host = host.trim_end_matches('/');
            !host.is_empty() && !host.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
        };
        if !host.is_some_and(is_host) {
            self.problem(path, "it must have the form http://HOST:PORT or https://HOST:PORT, with the protocol".into());
        }
        Some(value)
    }
}

/// Whether a value says anything: templates of the file have empty strings, lists and objects in place of what is not set.
fn is_set(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Text(text) => !text.is_empty(),
        Json::List(list) => list.iter().any(is_set),
        Json::Object(entries) => entries.iter().any(|(_, value)| is_set(value)),
        Json::Flag(_) | Json::Number(_) => true,
    }
}

/// The value at a path of names with dots.
fn find<'a>(json: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(json, |value, name| match value {
        Json::Object(entries) => entries.iter().find(|(known, _)| known == name).map(|(_, value)| value),
        _ => None,
    })
}

/// What a name that nothing has was meant to be.
fn suggestion(name: &str, path: &str, fields: &[Field]) -> String {
    let lower = name.to_lowercase();
    // Among its neighbours first; a field in the wrong place has exactly the name that it should have.
    let near = fields
        .iter()
        .map(|field| (distance(&lower, field.name), field.name))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .min();
    if let Some((_, known)) = near {
        return format!("; did you mean `{known}`?");
    }
    let mut places = Vec::new();
    places_of(&lower, "", FIELDS, &mut places);
    match places.first() {
        Some(place) if path.is_empty() || !place.starts_with(&format!("{path}.")) => {
            format!("; there is `{place}`: it belongs there")
        }
        _ => "; remove it, or see the documentation for the names".to_owned(),
    }
}

fn places_of(name: &str, path: &str, fields: &[Field], places: &mut Vec<String>) {
    for field in fields {
        let place = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        if field.name == name {
            places.push(place.clone());
        }
        if let Shape::Object(inner) = &field.shape {
            places_of(name, &place, inner, places);
        }
    }
}

/// Edit distance with transpositions of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

/// `eu-west-1`, `us-gov-west-1`, `cn-north-1`. Whether it exists is for AWS to say.
pub(crate) fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let Some((number, words)) = parts.split_last() else { return false };
    let is_word = |word: &&str| (2..=12).contains(&word.len()) && word.chars().all(|c| c.is_ascii_lowercase());
    (2..=4).contains(&words.len()) && words.iter().all(is_word) && matches!(number.as_bytes(), [b'0'..=b'9'])
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.chars().all(|c| c.is_ascii_digit())
}

fn is_bucket(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    (3..=63).contains(&text.len())
        && text.chars().all(is_inner)
        && is_end(text.chars().next())
        && is_end(text.chars().last())
        && !text.contains("..")
}

fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .split(['.', '_', '-'])
                .all(|run| !run.is_empty() && run.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()))
    };
    (2..=256).contains(&text.len()) && text.split('/').all(is_part)
}

fn is_stack(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn is_tag_char(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, Json, Pin, Problem, distance, is_bucket, is_region, is_repository};

    fn read(text: &str) -> Result<Config, Vec<Problem>> {
        Config::from_json(&Json::parse(text).unwrap(), Path::new("/etc/release"))
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = read(text).expect_err("it has mistakes");
        problems.into_iter().map(|Problem { path, message }| format!("{path}: {message}")).collect()
    }

    #[test]
    fn the_file_that_ships_is_in_order_and_says_what_is_the_default_anyway() {
        let shipped = read(crate::install::release::SHIPPED_CONFIG).unwrap();
        assert_eq!(shipped, read("{}").unwrap());
        assert_eq!(shipped.unused, [] as [String; 0]);
    }

    #[test]
    fn a_file_of_an_existing_installation_is_accepted() {
        let config = read(
            r#"{
                "account_name": "test-org", "aws_region": "eu-west-3", "disable_services": true,
                "database": { "delete_protection_enabled": "", "connection_string_ssm_arn": "arn:aws:ssm:x" },
                "load_balancer": { "certificate_arn": "arn", "scheme": "internal", "tag": { "key": "", "value": "" } },
                "sso_config": { "sso_type": "OIDC", "oidc_args": { "client_credentials": "hunter2" } },
                "s3_config": { "run_logs_expiration_days": 60, "workspaces_bucket_expiration_days": "7" },
                "tls_config": { "server_certificate_secrets_manager_arn": "", "ca_certificates": [] },
                "proxy_config": { "http_proxy": "", "https_proxy": "http://user:secret@proxy:3128", "no_proxy": "" },
                "global_resource_tags": [{ "key": "team", "value": "platform" }]
            }"#,
        )
        .unwrap();
        assert_eq!(config.region.as_deref(), Some("eu-west-3"));
        assert_eq!(config.tags, [("team".to_owned(), "platform".to_owned())]);
        assert_eq!(
            config.unused,
            [
                "account_name",
                "disable_services",
                "database",
                "load_balancer",
                "sso_config",
                "s3_config.run_logs_expiration_days",
                "s3_config.workspaces_bucket_expiration_days"
            ]
        );
        let shown = format!("{config:?}");
        assert!(!shown.contains("secret") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn all_mistakes_are_reported_with_their_places() {
        let found = problems(
            r#"{
                "aws_regoin": "eu-west-1",
                "aws_account_id": 123,
                "global_resources_tags": [],
                "global_resource_tags": [{ "key": "aws:x", "value": 1 }, { "Key": "a" }, "b"],
                "proxy_config": { "https_proxy": "proxy:3128" },
                "threshold": 0,
                "http_proxy": "x",
                "load_balancer": { "shceme": "internal" },
                "signers": ["0123456789ABCDEF"],
                "vpc_config": [],
                "threshold": 2,
                "zzz": 1
            }"#,
        );
        for expected in [
            "aws_regoin: nothing has this name; did you mean `aws_region`?",
            "aws_account_id: it is a number and must be a string",
            "global_resources_tags: nothing has this name; did you mean `global_resource_tags`?",
            "global_resource_tags[0].value: it is a number and must be a string",
            "global_resource_tags[1].Key: nothing has this name; did you mean `key`?",
            "global_resource_tags[1].value: it is missing",
            "global_resource_tags[2]: it is a string and must be an object",
            "proxy_config.https_proxy: it must have the form http://HOST:PORT or https://HOST:PORT, with the protocol",
            "threshold: 0 is not a whole number from 1 to 100",
            "http_proxy: nothing has this name; there is `proxy_config.http_proxy`: it belongs there",
            "load_balancer.shceme: nothing has this name; did you mean `scheme`?",
            "signers[0]: it is a key ID or part of a fingerprint, which others can imitate; give all 40 digits",
            "vpc_config: it is a list and must be an object",
            "threshold: it stands here twice; keep one",
            "zzz: nothing has this name; remove it, or see the documentation for the names",
        ] {
            assert!(found.iter().any(|found| found == expected), "{expected}\nis not in {found:#?}");
        }
        assert_eq!(problems("[]"), ["(file): it is a list and must be an object"]);
    }

    #[test]
    fn names_are_checked() {
        let found = problems(
            r#"{ "aws_region": "Ireland", "aws_account_id": "12", "downloads_bucket_name": "My_Bucket",
                 "launcher_repository_name": "A", "stack_names": { "s3": "9", "ecr": "9" }, "threshold": 3,
                 "signers": ["a.asc", "b.asc"], "s3_config": { "downloads_bucket_noncurrent_expiration_days": 0.5 } }"#,
        );
        assert_eq!(found.len(), 9, "{found:#?}");
        assert!(found.iter().any(|found| found.contains("3 signatures cannot be had from the 2 pinned")), "{found:#?}");
    }

    #[test]
    fn a_proxy_password_is_never_repeated() {
        let found = problems(
            r#"{ "proxy_config": { "http_proxy": "user:hunter2@proxy", "https_proxy": "ftp://u:hunter2@p" } }"#,
        );
        assert_eq!(found.len(), 2);
        assert!(!found.join("").contains("hunter2"), "{found:?}");
    }

    #[test]
    fn signers_are_files_beside_the_configuration_or_fingerprints() {
        let fingerprint = "380b d769 9053 035b 71d0 27b1 73eb a0cf 3b3f 4a46";
        let config = read(&format!(r#"{{ "signers": ["vendor.asc", "{fingerprint}"] }}"#)).unwrap();
        let whole = "380BD7699053035B71D027B173EBA0CF3B3F4A46".to_owned();
        assert_eq!(config.signers, [Pin::File("/etc/release/vendor.asc".into()), Pin::Fingerprint(whole)]);
    }

    #[test]
    fn forms() {
        for region in ["eu-west-1", "us-gov-west-1", "cn-north-1", "ap-southeast-4"] {
            assert!(is_region(region), "{region}");
        }
        for region in ["eu-west-1a", "eu-west", "", "EU-west-1", "eu_west_1", "eu-west-1.evil.example"] {
            assert!(!is_region(region), "{region}");
        }
        assert!(is_bucket("123456789012-spacelift-infra-spacelift-downloads"));
        assert!(!is_bucket("a/b") && !is_bucket("ab") && !is_bucket("-abc") && !is_bucket("a..b"));
        assert!(is_repository("spacelift-launcher") && is_repository("team/launcher_x.y"));
        assert!(!is_repository("a//b") && !is_repository("a--b") && !is_repository("a:b"));
        assert_eq!(distance("shceme", "scheme"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
