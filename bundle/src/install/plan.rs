//! What an installation would do, from what is there. Finding out has no effect.

use bundle_core::install_config::Config;
use bundle_core::manifest::Manifest;
use bundle_core::verify::{self, Policy};
use serde_json::json;

use super::account::{self, Account};
use super::stack::{self, Import, Stack, Stacks, State};
use crate::aws::Connection;
use crate::exit::Usage;
use crate::failure::{Failure, Kind};
use crate::publish::{self, Access, Bucket, Pointer, Store, Trust};

/// Output of the bucket's stack.
pub(crate) const BUCKET_OUTPUT: &str = "DownloadsBucketName";
/// Output of the repository's stack.
pub(crate) const REPOSITORY_OUTPUT: &str = "LauncherRepositoryUri";

/// A stack of the plan.
#[derive(Debug)]
pub(crate) struct PlannedStack {
    /// Its name.
    pub(crate) name: String,
    /// As it is.
    pub(crate) found: Option<Stack>,
    /// What exists without a stack and becomes part of this one.
    pub(crate) imports: Vec<Import>,
}

/// A plan that nothing speaks against.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Account.
    pub(crate) account: Account,
    /// Region.
    pub(crate) region: String,
    /// Version to install.
    pub(crate) version: String,
    /// What the bucket's channel points to: the release that is installed.
    pub(crate) installed: Option<Pointer>,
    /// Name of the downloads bucket.
    pub(crate) bucket: String,
    /// Name of the image repository.
    pub(crate) repository: String,
    /// Stack of the bucket.
    pub(crate) s3: PlannedStack,
    /// Stack of the repository.
    pub(crate) ecr: PlannedStack,
    /// What the reader should know.
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// Looks at the account.
    ///
    /// # Errors
    /// Something speaks against the installation.
    pub(crate) async fn make(
        connection: &Connection,
        stacks: &Stacks<'_>,
        config: &Config,
        manifest: &Manifest,
        policy: &Policy<'_>,
    ) -> anyhow::Result<Self> {
        let account = Account::identify(connection).await?;
        account.check(config.account_id.as_deref(), &connection.region)?;
        let bucket = config.bucket.clone().unwrap_or_else(|| account.default_bucket());
        let mut notes = Vec::new();
        let mut s3 = planned(connection, stacks, &config.s3_stack, &mut notes).await?;
        let mut ecr = planned(connection, stacks, &config.ecr_stack, &mut notes).await?;
        agrees(&s3, BUCKET_OUTPUT, |value| value == bucket, "downloads_bucket_name", &bucket)?;
        let repository = &config.repository;
        let is_ours = |uri: &str| uri.split_once('/').is_some_and(|(_, name)| name == repository);
        agrees(&ecr, REPOSITORY_OUTPUT, is_ours, "launcher_repository_name", repository)?;

        let has_bucket = account::has_bucket(connection, &account, &bucket).await?;
        if has_bucket && is_new(&s3) {
            s3.imports.push(import("AWS::S3::Bucket", "DownloadsBucket", "BucketName", &bucket));
            if account::has_policy(connection, &bucket).await? {
                s3.imports.push(import("AWS::S3::BucketPolicy", "DownloadsBucketPolicy", "Bucket", &bucket));
            }
            notes.push(format!("the bucket {bucket} exists and has no stack; it becomes part of {}", s3.name));
        }
        if is_new(&ecr) && account::has_repository(connection, repository).await? {
            ecr.imports.push(import("AWS::ECR::Repository", "LauncherRepository", "RepositoryName", repository));
            notes.push(format!("the repository {repository} exists and has no stack; it becomes part of {}", ecr.name));
        }
        if !has_bucket && s3.found.as_ref().is_some_and(|stack| stack.state() == State::Steady) {
            let why = format!(
                "its bucket {bucket} was deleted by someone; run ./uninstall.sh, which removes what is left of the stack, \
                 then install again"
            );
            return Err(Failure::new(format!("use the stack {}", s3.name), Kind::Wrong, why).into());
        }
        let needed = [&s3, &ecr].into_iter().filter(|planned| planned.found.is_none()).count();
        if needed > 0 {
            notes.extend(account::check_stack_quota(connection, needed).await?);
        }
        let installed = match has_bucket {
            true => {
                let trust = Trust { pinned: policy.pinned, threshold: policy.threshold };
                let address = Bucket::S3 { name: bucket.clone(), prefix: String::new() };
                let store = Store::open(&address, Access::Read, Some(connection), Some(&account.id)).await?;
                publish::read_pointer(&store, &address, &manifest.channel, &trust).await?
            }
            false => None,
        };
        if let Some(installed) = &installed {
            verify::check_upgrade(manifest, &Policy { installed: Some(&installed.manifest), ..*policy })?;
        }
        if !config.unused.is_empty() {
            notes.push(format!("not used by this installer, only by the backend: {}", config.unused.join(", ")));
        }
        Ok(Self {
            region: connection.region.clone(),
            version: manifest.version.to_string(),
            installed,
            repository: repository.clone(),
            account,
            bucket,
            s3,
            ecr,
            notes,
        })
    }

    /// The version that is installed.
    pub(crate) fn installed_version(&self) -> Option<String> {
        self.installed.as_ref().map(|pointer| pointer.manifest.version.to_string())
    }

    /// In words, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let from = match self.installed_version() {
            None => format!("{} (nothing is installed)", self.version),
            Some(installed) if installed == self.version => format!("{installed}, which is installed already"),
            Some(installed) => format!("{installed} -> {}", self.version),
        };
        let partition = if self.account.partition == "aws" { "" } else { self.account.partition.as_str() };
        let mut lines = vec![
            format!("account      {} as {}", self.account.id, self.account.arn),
            format!("region       {} {partition}", self.region).trim_end().to_owned(),
            format!("version      {from}"),
            format!("stack        {}: {}", self.s3.name, doing(&self.s3)),
            format!("stack        {}: {}", self.ecr.name, doing(&self.ecr)),
            format!("bucket       {}", self.bucket),
            format!("repository   {}", self.repository),
        ];
        lines.extend(self.notes.iter().map(|note| format!("note         {note}")));
        lines
    }

    /// For machines.
    pub(crate) fn json(&self) -> serde_json::Value {
        let stack = |planned: &PlannedStack| {
            json!({
                "name": planned.name,
                "status": planned.found.as_ref().map(|stack| stack.status.as_str()),
                "imports": planned.imports.iter().map(|import| import.value.as_str()).collect::<Vec<_>>(),
            })
        };
        json!({
            "account": self.account.id,
            "caller": self.account.arn,
            "partition": self.account.partition,
            "region": self.region,
            "version": self.version,
            "installed": self.installed_version(),
            "bucket": self.bucket,
            "repository": self.repository,
            "stacks": [stack(&self.s3), stack(&self.ecr)],
            "notes": self.notes,
        })
    }
}

fn import(kind: &'static str, logical_id: &'static str, property: &'static str, value: &str) -> Import {
    Import { kind, logical_id, property, value: value.to_owned() }
}

/// Whether a stack has nothing in it yet.
fn is_new(planned: &PlannedStack) -> bool {
    matches!(stack::state(planned.found.as_ref()), State::Absent | State::Review)
}

async fn planned(
    connection: &Connection,
    stacks: &Stacks<'_>,
    name: &str,
    notes: &mut Vec<String>,
) -> Result<PlannedStack, Failure> {
    let found = stacks.find(name).await?;
    match found.as_ref().map(|stack| (stack, stack.state())) {
        Some((found, State::Stuck)) => return Err(stack::stuck(name, found, &connection.region)),
        Some((stack, State::Busy)) if stack.status == "DELETE_IN_PROGRESS" => {
            let why = "it is being deleted; run the same command again when that is done";
            return Err(Failure::new(format!("use the stack {name}"), Kind::Busy, why));
        }
        Some((stack, State::Busy)) => {
            notes.push(format!("the stack {name} is {}; the installation waits for it first", stack.status));
        }
        _ => {}
    }
    Ok(PlannedStack { name: name.to_owned(), found, imports: Vec::new() })
}

fn doing(planned: &PlannedStack) -> String {
    match &planned.found {
        _ if !planned.imports.is_empty() => "create, from what exists".into(),
        Some(stack) if stack.state() == State::Steady => format!("update if it differs ({})", stack.status),
        Some(stack) if stack.state() == State::Busy => format!("wait, then update if it differs ({})", stack.status),
        _ => "create".into(),
    }
}

/// # Errors
/// The stack was made with another name than the configuration has. Changing it would leave everything behind.
fn agrees(
    planned: &PlannedStack,
    output: &str,
    is_it: impl Fn(&str) -> bool,
    field: &str,
    wanted: &str,
) -> Result<(), Usage> {
    let has = planned.found.as_ref().and_then(|stack| stack.outputs.get(output));
    match has {
        Some(has) if !is_it(has) => Err(Usage(format!(
            "the stack {} has {has}, and the configuration asks for {wanted}: correct `{field}`, or give the stack \
             another name in `stack_names`",
            planned.name
        ))),
        _ => Ok(()),
    }
}
