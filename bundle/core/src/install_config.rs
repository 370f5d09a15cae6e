//! `config.json`: what the customer says about the installation.
//!
//! Files of existing installations are accepted as they are. What only concerns the backend has its type checked and is
//! reported as not used; what nobody knows is a mistake. All mistakes are reported together, each with its place.

mod check;
mod fields;
mod forms;
mod json;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use forms::is_region;
pub use json::{Json, SyntaxError};

use check::{Check, find, is_set};
use fields::{FIELDS, NONCURRENT_DAYS};
use forms::{is_account, is_bucket, is_repository};

/// Limit of the file: SAML metadata and certificates may be in it, and have some kilobytes each.
const MAX_FILE: u64 = 1024 * 1024;
/// More mistakes are not listed.
const MAX_SHOWN: usize = 50;
/// Limit of the tags of a CloudFormation stack.
const MAX_TAGS: usize = 50;
/// `config.json` as it ships with every release of this commit.
pub const SHIPPED: &str = include_str!("../../../config.json");
/// The stack of the downloads bucket, as it is documented.
pub const S3_STACK: &str = "spacelift-infra-s3";
/// The stack of the launcher's image repository.
pub const ECR_STACK: &str = "spacelift-infra-ecr";
/// The launcher's image repository, as it is documented.
pub const REPOSITORY: &str = "spacelift-launcher";

/// A configuration without mistakes, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Region to install into.
    pub region: Option<String>,
    /// The account that the credentials must belong to.
    pub account_id: Option<String>,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    /// Who must have signed the release.
    pub signers: Vec<Pin>,
    /// How many of them.
    pub threshold: usize,
    /// Name of the downloads bucket, unless it is the default, which has the account in it.
    pub bucket: Option<String>,
    /// Name of the launcher's image repository.
    pub repository: String,
    /// Name of the stack of the downloads bucket.
    pub s3_stack: String,
    /// Name of the stack of the image repository.
    pub ecr_stack: String,
    /// Tags of everything that is created.
    pub tags: Vec<(String, String)>,
    /// After how many days replaced and deleted objects of the downloads bucket are gone.
    pub noncurrent_days: Option<u64>,
    /// Proxies.
    pub proxy: Proxy,
    /// Paths of what is set and not used here, because it only concerns the backend.
    pub unused: Vec<String>,
}

/// A certificate that is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// The file that has it, joined to the directory of the configuration.
    File(PathBuf),
    /// Its fingerprint in capital letters. The certificate itself may then come from anywhere.
    Fingerprint(String),
}

/// `proxy_config`. Addresses may hold a password, so they are not printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// For plain HTTP.
    pub http: Option<String>,
    /// For HTTPS.
    pub https: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub none: Option<String>,
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
pub enum Error {
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
pub struct Problem {
    /// Where, such as `global_resource_tags[0].key`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
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
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&bytes, path)
    }

    /// Checks what is in a file. Paths in it are relative to the file's directory.
    ///
    /// # Errors
    /// See [`Error`]; nothing is read.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let problem = |message: String| Error::Problems {
            path: path.to_owned(),
            problems: vec![Problem { path: "(file)".into(), message }],
        };
        if bytes.len() as u64 > MAX_FILE {
            return Err(problem(format!("it has more than {MAX_FILE} bytes; this is not a configuration")));
        }
        let text = str::from_utf8(bytes).map_err(|_| problem("it is not UTF-8".into()))?;
        let json = Json::parse(text).map_err(|source| Error::Syntax { path: path.to_owned(), source })?;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, Json, Pin, Problem};

    fn read(text: &str) -> Result<Config, Vec<Problem>> {
        Config::from_json(&Json::parse(text).unwrap(), Path::new("/etc/release"))
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = read(text).expect_err("it has mistakes");
        problems.into_iter().map(|Problem { path, message }| format!("{path}: {message}")).collect()
    }

    #[test]
    fn the_file_that_ships_is_in_order_and_says_what_is_the_default_anyway() {
        let shipped = read(super::SHIPPED).unwrap();
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
}
