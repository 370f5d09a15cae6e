//! Taking an installation out of an AWS account. What holds data stays unless its deletion is asked for.

use std::io::{self, Write as _};
use std::path::Path;

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bundle_core::install_config::Config;
use bundle_core::interrupt;
use serde_json::json;

use crate::aws::{self, Connection};
use crate::exit::Usage;
use crate::failure::{Failure, Kind, printable};
use crate::install::account::{self, Account};
use crate::install::stack::{Stack, Stacks, State};
use crate::install::{Consent, ask, connect};
use crate::progress::Progress;

/// Objects that one request lists and deletes: what S3 allows.
const BATCH: i32 = 1000;

/// What was asked for.
pub(crate) struct Request<'a> {
    /// The configuration of the installation.
    pub(crate) config: &'a Path,
    /// Whether data stays.
    pub(crate) data: Data,
    /// Who is asked.
    pub(crate) consent: Consent,
    /// How to reach AWS.
    pub(crate) aws: &'a aws::Options,
    /// Results for machines.
    pub(crate) json: bool,
}

/// What becomes of the bucket and the image repository, and of all that is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// They stay.
    Keep,
    /// They are emptied and deleted.
    Delete,
}

/// What is there.
struct Found {
    account: Account,
    stacks: Vec<(String, Stack)>,
    bucket: String,
    has_bucket: bool,
    repository: String,
    has_repository: bool,
    pools: Vec<String>,
}

/// Uninstalls.
///
/// # Errors
/// What was refused. What was deleted before stays deleted; the same command goes on.
pub(crate) fn run(request: &Request<'_>, progress: &Progress) -> anyhow::Result<()> {
    let config = Config::read(request.config)?;
    aws::runtime()?.block_on(async {
        let connection = connect(&config, request.aws).await?;
        let stacks = Stacks::new(&connection.config, &connection.region, progress);
        let found = find(&connection, &stacks, &config).await?;
        if !found.is_anything(request.data) {
            return report(request, &found, &[]);
        }
        found.lines(request.data, &connection.region).iter().for_each(|line| progress.line(line));
        if request.data == Data::Delete && !found.pools.is_empty() && request.consent != Consent::Given {
            return Err(Usage(format!(
                "worker pools still fetch their launcher from the bucket {}: {}; delete these stacks first, or give -f",
                found.bucket,
                found.pools.join(", ")
            ))
            .into());
        }
        if request.consent == Consent::Ask {
            let question = format!(
                "Uninstalling from AWS account {}. Are you sure you want to continue? Type 'yes' or the account's number:",
                found.account.id
            );
            ask(&question, &["yes", &found.account.id], "-f")?;
        }
        let deleted = effects(&connection, &stacks, &found, request.data, progress).await?;
        let left = find(&connection, &stacks, &config).await?;
        report(request, &left, &deleted)
    })
}

async fn find(connection: &Connection, stacks: &Stacks<'_>, config: &Config) -> anyhow::Result<Found> {
    let account = Account::identify(connection).await?;
    account.check(config.account_id.as_deref(), &connection.region)?;
    let mut bucket = config.bucket.clone().unwrap_or_else(|| account.default_bucket());
    let mut repository = config.repository.clone();
    let mut found = Vec::new();
    // The bucket last: whoever still pulls the image finds the launcher, too.
    for name in [&config.ecr_stack, &config.s3_stack] {
        let Some(stack) = stacks.find(name).await? else { continue };
        for (kind, physical) in stacks.resources(&stack).await? {
            match kind.as_str() {
                "AWS::S3::Bucket" => bucket = physical,
                "AWS::ECR::Repository" => repository = physical,
                _ => {}
            }
        }
        found.push((name.clone(), stack));
    }
    Ok(Found {
        has_bucket: account::has_bucket(connection, &account, &bucket).await?,
        has_repository: account::has_repository(connection, &repository).await?,
        pools: stacks.with_parameter("BinariesBucket", &bucket).await?,
        stacks: found,
        account,
        bucket,
        repository,
    })
}

impl Found {
    fn is_anything(&self, data: Data) -> bool {
        !self.stacks.is_empty() || data == Data::Delete && (self.has_bucket || self.has_repository)
    }

    fn lines(&self, data: Data, region: &str) -> Vec<String> {
        let fate = match data {
            Data::Keep => "stays, with everything in it; -n deletes it",
            Data::Delete => "DELETED, with everything in it and all earlier versions",
        };
        let mut lines =
            vec![format!("account      {} as {}", self.account.id, self.account.arn), format!("region       {region}")];
        for (name, stack) in &self.stacks {
            lines.push(format!("stack        {name}: deleted ({})", stack.status));
        }
        if self.has_bucket {
            lines.push(format!("bucket       {}: {fate}", self.bucket));
        }
        if self.has_repository {
            lines.push(format!("repository   {}: {fate}", self.repository));
        }
        for pool in &self.pools {
            lines.push(format!("note         the worker pool {pool} fetches its launcher from the bucket"));
        }
        lines
    }
}

async fn effects(
    connection: &Connection,
    stacks: &Stacks<'_>,
    found: &Found,
    data: Data,
    progress: &Progress,
) -> anyhow::Result<Vec<String>> {
    let mut deleted = Vec::new();
    for (name, stack) in &found.stacks {
        if stack.state() != State::Absent {
            stacks.delete(name, stack, &[]).await?;
            progress.line(format!("stack {name} was deleted"));
            deleted.push(format!("stack {name}"));
        }
    }
    if data == Data::Delete {
        if found.has_repository {
            delete_repository(connection, &found.repository).await?;
            progress.line(format!("repository {} was deleted", found.repository));
            deleted.push(format!("repository {}", found.repository));
        }
        if found.has_bucket {
            empty(connection, &found.bucket, &found.account, progress).await?;
            delete_bucket(connection, &found.bucket, &found.account).await?;
            progress.line(format!("bucket {} was deleted", found.bucket));
            deleted.push(format!("bucket {}", found.bucket));
        }
    }
    Ok(deleted)
}

/// Deletes every version of every object and every upload that was not finished, a batch at a time.
async fn empty(connection: &Connection, bucket: &str, account: &Account, progress: &Progress) -> anyhow::Result<()> {
    let client = connection.s3();
    let doing = format!("empty the bucket {bucket}");
    let mut count = 0_usize;
    loop {
        interrupt::check()?;
        // Always the first page: what it listed is gone when the next one is asked for.
        let page = client
            .list_object_versions()
            .bucket(bucket)
            .max_keys(BATCH)
            .expected_bucket_owner(&account.id)
            .send()
            .await;
        let page = match page {
            Ok(page) => page,
            Err(error) if error.code() == Some("NoSuchBucket") => return Ok(()),
            Err(error) => return Err(Failure::of(doing, "s3:ListBucketVersions", &error).into()),
        };
        let versions = page.versions().iter().map(|version| (version.key(), version.version_id()));
        let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
        let mut objects = Vec::new();
        for (key, version) in versions.chain(markers) {
            let object =
                ObjectIdentifier::builder().key(key.unwrap_or_default()).set_version_id(version.map(Into::into));
            objects.push(object.build()?);
        }
        if objects.is_empty() {
            break;
        }
        count += objects.len();
        let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build()?;
        let answer =
            client.delete_objects().bucket(bucket).delete(delete).expected_bucket_owner(&account.id).send().await;
        let answer = answer.map_err(|error| Failure::of(&doing, "s3:DeleteObjectVersion", &error))?;
        if let Some(error) = answer.errors().first() {
            let reason = format!(
                "{} of the objects stay, the first of them {}: {}",
                answer.errors().len(),
                printable(error.key().unwrap_or_default()),
                printable(error.message().or(error.code()).unwrap_or("no reason was given"))
            );
            let next = "allow s3:DeleteObjectVersion and remove object locks, then run the same command again";
            return Err(Failure::new(doing, Kind::Denied, format!("{reason}; {next}")).into());
        }
        progress.line(format!("bucket {bucket}: {count} versions of objects deleted"));
    }
    loop {
        interrupt::check()?;
        let page = client.list_multipart_uploads().bucket(bucket).expected_bucket_owner(&account.id).send().await;
        let page = page.map_err(|error| Failure::of(&doing, "s3:ListBucketMultipartUploads", &error))?;
        if page.uploads().is_empty() {
            return Ok(());
        }
        for upload in page.uploads() {
            let (key, id) = (upload.key().unwrap_or_default(), upload.upload_id().unwrap_or_default());
            let aborted = client.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send().await;
            match aborted {
                Ok(_) => {}
                Err(error) if error.code() == Some("NoSuchUpload") => {}
                Err(error) => return Err(Failure::of(&doing, "s3:AbortMultipartUpload", &error).into()),
            }
        }
    }
}

async fn delete_bucket(connection: &Connection, bucket: &str, account: &Account) -> Result<(), Failure> {
    let deleted = connection.s3().delete_bucket().bucket(bucket).expected_bucket_owner(&account.id).send().await;
    match deleted {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("NoSuchBucket") => Ok(()),
        Err(error) => Err(Failure::of(format!("delete the bucket {bucket}"), "s3:DeleteBucket", &error)),
    }
}

async fn delete_repository(connection: &Connection, name: &str) -> Result<(), Failure> {
    let client = aws_sdk_ecr::Client::new(&connection.config);
    match client.delete_repository().repository_name(name).force(true).send().await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("RepositoryNotFoundException") => Ok(()),
        Err(error) => Err(Failure::of(format!("delete the image repository {name}"), "ecr:DeleteRepository", &error)),
    }
}

/// What was deleted, and what is left.
fn report(request: &Request<'_>, left: &Found, deleted: &[String]) -> anyhow::Result<()> {
    let mut remaining: Vec<String> = left.stacks.iter().map(|(name, _)| format!("stack {name}")).collect();
    if left.has_bucket {
        remaining.push(format!("bucket {}", left.bucket));
    }
    if left.has_repository {
        remaining.push(format!("repository {}", left.repository));
    }
    let mut out = io::stdout().lock();
    if request.json {
        let document = json!({
            "ok": true,
            "account": left.account.id,
            "deleted": deleted,
            "left": remaining,
        });
        return Ok(writeln!(out, "{document}")?);
    }
    if deleted.is_empty() {
        writeln!(out, "There is nothing to uninstall in account {}.", left.account.id)?;
    }
    for what in deleted {
        writeln!(out, "deleted  {what}")?;
    }
    for what in &remaining {
        writeln!(out, "left     {what}")?;
    }
    Ok(())
}
