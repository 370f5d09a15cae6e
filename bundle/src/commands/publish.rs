//! `publish`, `promote` and `rollback`

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bundle_core::gzip;
use bundle_core::private::PrivateRelease;
use bundle_core::verify::{Rollback, SkippedVersion};
use bundle_core::version::ReleaseVersion;

use crate::aws::{self, Connection};
use crate::commands::policy::{self, Pinned};
use crate::exit::Usage;
use crate::progress::Progress;
use crate::publish::{self, Access, Bucket, Published, Request, Store, Trust};
use crate::registry::{self, Push, Pushed, Repository};

/// Whom to trust, and where to publish to.
#[derive(clap::Args)]
pub(crate) struct Target {
    #[command(flatten)]
    trust: policy::Trust,
    /// The downloads bucket: s3://NAME, s3://NAME/PREFIX, or file:///DIRECTORY for networks without a connection.
    #[arg(long, value_name = "URL")]
    bucket: Bucket,
    /// The account that the bucket must belong to; with any other owner nothing is written.
    #[arg(long, value_name = "ACCOUNT")]
    expected_bucket_owner: Option<String>,
    #[command(flatten)]
    aws: aws::Options,
}

/// Verify a release and upload it to a downloads bucket.
///
/// RELEASE is an archive, with its `_SHA256SUMS` and `_SHA256SUMS.sig` beside it, or the directory of an unpacked release.
/// Everything of a version is written once, to `releases/VERSION/`, and read back; then the keys without a version move,
/// and last the channel's pointer. Interrupted at any point, the command goes on where it stopped when it is run again.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle publish self-hosted-v1.2.3.tar.gz --cert vendor.asc \\
    --bucket s3://example-downloads
  spacelift-bundle publish self-hosted-v1.2.3.tar.gz --cert vendor.asc \\
    --bucket file:///media/transfer")]
pub(crate) struct Arguments {
    /// The archive, or the directory of an unpacked release.
    release: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Upload only; `promote` moves the channel's pointer later.
    #[arg(long)]
    no_promote: bool,
    /// Verify, look at the bucket, say what would be done, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Push the launcher's image to this repository as well, tagged with the version, before the channel moves.
    #[arg(long, value_name = "HOST/NAME")]
    image_repository: Option<String>,
    /// Make the repository in ECR if it does not exist: with immutable tags, and scanned on push.
    #[arg(long, requires = "image_repository")]
    create_repository: bool,
    /// Another repository of the same registry, whose blobs are used where they are the same.
    #[arg(long, value_name = "NAME", requires = "image_repository")]
    mount_from: Option<String>,
    /// Accept a release that is older than the one that the channel points to.
    #[arg(long)]
    allow_rollback: bool,
    /// Accept a release that skips a version which it requires in between.
    #[arg(long)]
    allow_skipping_versions: bool,
    /// A directory on a disk with room for twice the release [default: $TMPDIR or /var/tmp].
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

/// Point a channel to a version that is in the bucket already.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle promote v1.2.3 --cert vendor.asc --bucket s3://example-downloads
  spacelift-bundle promote v1.2.3 --channel beta --cert vendor.asc \\
    --bucket s3://example-downloads")]
pub(crate) struct Promote {
    /// The version, such as v1.2.3.
    version: ReleaseVersion,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "stable")]
    channel: String,
    #[command(flatten)]
    target: Target,
    /// Accept an upgrade that skips a version which it requires in between.
    #[arg(long)]
    allow_skipping_versions: bool,
}

/// Point a channel back to an older version that is in the bucket.
///
/// A rollback brings back faults that were repaired since, so it has to be asked for by name with --allow-rollback.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle rollback v1.2.2 --allow-rollback --cert vendor.asc \\
    --bucket s3://example-downloads")]
pub(crate) struct RollBack {
    #[command(flatten)]
    promote: Promote,
    /// Bring back an older version, with the faults that were repaired since.
    #[arg(long)]
    allow_rollback: bool,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    aws::runtime()?.block_on(publish(arguments, json))
}

pub(crate) fn promote(arguments: &Promote, json: bool) -> anyhow::Result<()> {
    aws::runtime()?.block_on(move_to(arguments, Rollback::Refuse, json))
}

pub(crate) fn roll_back(arguments: &RollBack, json: bool) -> anyhow::Result<()> {
    if !arguments.allow_rollback {
        let why =
            "a rollback brings back faults that were repaired since; --allow-rollback accepts that at your own risk";
        return Err(Usage(why.into()).into());
    }
    aws::runtime()?.block_on(move_to(&arguments.promote, Rollback::Accept, json))
}

struct Opened {
    pinned: Pinned,
    connection: Option<Connection>,
}

impl Opened {
    /// `registry` says whether a registry is needed as well.
    async fn new(target: &Target, registry: bool) -> anyhow::Result<Self> {
        let pinned = target.trust.read()?;
        let connection = match &target.bucket {
            Bucket::Directory(_) if !registry => None,
            _ => Some(Connection::open(&target.aws).await?),
        };
        Ok(Self { pinned, connection })
    }

    fn trust(&self) -> Trust<'_> {
        Trust { pinned: self.pinned.certs(), threshold: self.pinned.threshold() }
    }

    async fn store(&self, target: &Target, access: Access) -> anyhow::Result<Store> {
        Ok(Store::open(&target.bucket, access, self.connection.as_ref(), target.expected_bucket_owner.as_deref())
            .await?)
    }
}

async fn publish(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::new());
    let target = &arguments.target;
    let repository = arguments.image_repository.as_deref().map(str::parse::<Repository>);
    let repository = repository.transpose().map_err(registry::Error::Repository)?;
    let opened = Opened::new(target, repository.is_some()).await?;
    let work = arguments.work_dir.clone().unwrap_or_else(super::verify::default_work_dir);
    let mut accept = opened.pinned.policy();
    accept.rollback = if arguments.allow_rollback { Rollback::Accept } else { Rollback::Refuse };
    accept.skipped_version = skipping(arguments.allow_skipping_versions);
    progress.line(format_args!("verifying {}", arguments.release.display()));
    let release = PrivateRelease::open(&arguments.release, &accept, &work, gzip::default_threads())?;
    let manifest = release.manifest();
    let access = if arguments.dry_run { Access::Read } else { Access::Write };
    let store = opened.store(target, access).await?;
    let current = publish::read_pointer(&store, &target.bucket, &manifest.channel, &opened.trust()).await?;
    accept.installed = current.as_ref().map(|pointer| &pointer.manifest);
    if !arguments.no_promote {
        bundle_core::verify::check_upgrade(manifest, &accept)?;
    }
    let request = Request {
        release: &release,
        bucket: &target.bucket,
        current: current.as_ref(),
        promote: !arguments.no_promote,
    };
    if arguments.dry_run {
        let plan = publish::plan(&store, &request).await?;
        return Ok(print(json, "dry run: nothing was written", &request, plan, None)?);
    }
    // Before anything is sent: a release without an image cannot be published with one.
    let image = repository.as_ref().map(|_| super::push::image_of(manifest)).transpose()?;
    let mut published = publish::upload(&store, &request, &progress).await?;
    let mut pushed = None;
    if let (Some(connection), Some(repository), Some((image, digest))) = (&opened.connection, &repository, image) {
        let push = Push {
            image: &release.path().join(image),
            digest: &digest,
            repository,
            tag: &manifest.version.to_string(),
            create_repository: arguments.create_repository,
            mount_from: arguments.mount_from.as_deref(),
            tags: &[],
        };
        pushed = Some(registry::push(connection, &push, &progress).await?);
    }
    if request.promote {
        published.moved =
            publish::point(&store, &target.bucket, release.path(), manifest, current.as_ref(), &progress).await?;
    }
    Ok(print(json, "published", &request, published, pushed.as_ref())?)
}

async fn move_to(arguments: &Promote, rollback: Rollback, json: bool) -> anyhow::Result<()> {
    let progress = Progress::new();
    let target = &arguments.target;
    let opened = Opened::new(target, false).await?;
    let store = opened.store(target, Access::Write).await?;
    let current = publish::read_pointer(&store, &target.bucket, &arguments.channel, &opened.trust()).await?;
    let directory =
        tempfile::tempdir().context("cannot make a temporary directory; set TMPDIR to one that you may write to")?;
    let manifest = publish::fetch_published(
        &store,
        &target.bucket,
        &arguments.version.to_string(),
        &opened.trust(),
        directory.path(),
    )
    .await?;
    if manifest.channel != arguments.channel {
        let why = format!(
            "{} is of the channel {:?}, and its signers said nothing about {:?}; --channel {} promotes it there",
            manifest.version, manifest.channel, arguments.channel, manifest.channel
        );
        return Err(Usage(why).into());
    }
    let mut policy = opened.pinned.policy();
    policy.installed = current.as_ref().map(|pointer| &pointer.manifest);
    policy.rollback = rollback;
    policy.skipped_version = skipping(arguments.allow_skipping_versions || rollback == Rollback::Accept);
    bundle_core::verify::check_upgrade(&manifest, &policy)?;
    let moved =
        publish::point(&store, &target.bucket, directory.path(), &manifest, current.as_ref(), &progress).await?;
    let from = current.map(|pointer| pointer.manifest.version.to_string());
    let mut out = io::stdout().lock();
    if json {
        let document = serde_json::json!({
            "ok": true, "bucket": target.bucket.to_string(), "channel": arguments.channel, "from": from,
            "version": manifest.version, "sequence": manifest.sequence, "keys_written": moved,
        });
        return Ok(writeln!(out, "{document}")?);
    }
    writeln!(
        out,
        "{} of {}: {} -> {}, {moved} keys written",
        arguments.channel,
        target.bucket,
        from.as_deref().unwrap_or("nothing"),
        manifest.version
    )?;
    Ok(())
}

fn skipping(accept: bool) -> SkippedVersion {
    if accept { SkippedVersion::Accept } else { SkippedVersion::Refuse }
}

fn print(
    json: bool,
    what: &str,
    request: &Request<'_>,
    published: Published,
    image: Option<&Pushed>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let manifest = request.release.manifest();
    let from = request.current.map(|pointer| pointer.manifest.version.to_string());
    let Published { written, present, moved, aborted } = published;
    if json {
        let document = serde_json::json!({
            "ok": true, "what": what, "bucket": request.bucket.to_string(), "product": manifest.product,
            "version": manifest.version, "sequence": manifest.sequence, "channel": manifest.channel,
            "promoted": request.promote, "previous": from, "objects_written": written, "objects_present": present,
            "keys_moved": moved, "uploads_aborted": aborted, "image": image,
        });
        return writeln!(out, "{document}");
    }
    writeln!(out, "{what}: {} {} in {}", manifest.product, manifest.version, request.bucket)?;
    writeln!(out, "objects    {written} written, {present} there already")?;
    if aborted > 0 {
        writeln!(out, "aborted    {aborted} unfinished uploads")?;
    }
    if let Some(image) = image {
        writeln!(out, "image      {}", image.reference)?;
    }
    if request.promote {
        let from = from.as_deref().unwrap_or("nothing");
        writeln!(out, "channel    {}: {from} -> {}, {moved} keys written", manifest.channel, manifest.version)?;
    } else {
        writeln!(
            out,
            "channel    {} was not moved; `spacelift-bundle promote {}` does",
            manifest.channel, manifest.version
        )?;
    }
    Ok(())
}
