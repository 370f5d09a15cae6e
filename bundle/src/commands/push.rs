//! `push`

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bundle_core::gzip;
use bundle_core::manifest::Manifest;
use bundle_core::verify::{self, Files};
use tempfile::TempDir;

use crate::aws;
use crate::commands::{policy, verify::default_work_dir};
use crate::exit::Usage;
use crate::progress::Progress;
use crate::registry::{self, Push, Pushed, Repository};

/// The image that workers are started from.
const IMAGE: &str = "spacelift-launcher";

/// Push the launcher's image of a verified release to ECR or another registry.
///
/// What the registry has is not sent again. A tag that exists with the same digest is success; one with another digest is
/// an error, since tags of releases are never moved. ECR is reached with the AWS credentials, any other registry with those
/// of `docker login`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle push self-hosted-v1.2.3.tar.gz --cert vendor.asc --create-repository \\
    --repository 123456789012.dkr.ecr.eu-west-1.amazonaws.com/spacelift-launcher
  spacelift-bundle push self-hosted-v1.2.3 --cert vendor.asc --tag stable \\
    --repository registry.example.com/team/launcher")]
pub(crate) struct Arguments {
    /// The archive, with its `_SHA256SUMS` and `_SHA256SUMS.sig` beside it, or the directory of an unpacked release.
    release: PathBuf,
    #[command(flatten)]
    trust: policy::Trust,
    /// Where the image goes.
    #[arg(long, value_name = "HOST/NAME")]
    repository: String,
    /// Make the repository in ECR if it does not exist: with immutable tags, and scanned on push.
    #[arg(long)]
    create_repository: bool,
    /// Another repository of the same registry, whose blobs are used where they are the same.
    #[arg(long, value_name = "NAME")]
    mount_from: Option<String>,
    /// The tag [default: the release's version].
    #[arg(long)]
    tag: Option<String>,
    /// Push nothing: verify the release, ask the registry for the tag, and say what a push would do.
    #[arg(long, conflicts_with = "create_repository")]
    dry_run: bool,
    /// A directory on a disk with room for the release [default: $TMPDIR or /var/tmp].
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    aws: aws::Options,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let repository: Repository = arguments.repository.parse().map_err(registry::Error::Repository)?;
    let progress = Progress::new();
    let work = arguments.work_dir.clone().unwrap_or_else(default_work_dir);
    let release = Verified::open(&arguments.release, &arguments.trust, &work)?;
    let tag = arguments.tag.clone().unwrap_or_else(|| release.manifest.version.to_string());
    aws::runtime()?.block_on(async {
        let connection = aws::Connection::open_for_registry(&arguments.aws, repository.region().as_deref()).await;
        let connection = connection.map_err(registry::Error::Endpoint)?;
        if arguments.dry_run {
            let existing = registry::resolve(&connection, &repository, &tag).await?;
            return Ok(print_plan(&format!("{repository}:{tag}"), &release.digest, existing.as_deref(), json)?);
        }
        let push = Push {
            image: &release.image,
            digest: &release.digest,
            repository: &repository,
            tag: &tag,
            create_repository: arguments.create_repository,
            mount_from: arguments.mount_from.as_deref(),
            tags: &[],
        };
        Ok(print(&registry::push(&connection, &push, &progress).await?, json)?)
    })
}

/// The image of a verified release.
struct Verified {
    manifest: Manifest,
    /// The image's file.
    image: PathBuf,
    /// What the signed manifest calls the image by.
    digest: String,
    /// Where an archive was unpacked to; it is removed with this.
    _directory: Option<TempDir>,
}

impl Verified {
    fn open(release: &Path, trust: &policy::Trust, work: &Path) -> anyhow::Result<Self> {
        let pinned = trust.read()?;
        let policy = pinned.policy();
        let (verified, root, directory) = if release.is_dir() {
            (verify::directory(release, &policy)?, release.to_owned(), None)
        } else {
            let directory = tempfile::Builder::new().prefix("spacelift-bundle-").tempdir_in(work);
            let directory = directory.with_context(|| format!("cannot create a directory in {}", work.display()))?;
            let archive = verify::open(&Files::beside(release), &policy, work)?;
            let root = directory.path().join("release");
            (verify::unpack(&archive, &policy, gzip::default_threads(), &root)?, root, Some(directory))
        };
        let manifest = verified.manifest().clone();
        let (image, digest) = image_of(&manifest)?;
        let image = root.join(image);
        Ok(Self { manifest, image, digest, _directory: directory })
    }
}

/// Path and digest of the image.
pub(crate) fn image_of(manifest: &Manifest) -> Result<(String, String), Usage> {
    let image = manifest.images.iter().find(|image| image.name == IMAGE);
    image.map(|image| (image.path.to_string(), image.digest.clone())).ok_or_else(|| {
        Usage(format!("{} {} has no image {IMAGE}: there is nothing to push", manifest.product, manifest.version))
    })
}

fn print(pushed: &Pushed, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let mut document = serde_json::json!(pushed);
        document["ok"] = true.into();
        return writeln!(out, "{document}");
    }
    writeln!(out, "{}", pushed.reference)
}

fn print_plan(reference: &str, digest: &str, existing: Option<&str>, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let document = serde_json::json!({
            "ok": true, "dry_run": true, "reference": reference, "digest": digest, "existing": existing,
        });
        return writeln!(out, "{document}");
    }
    match existing {
        None => writeln!(out, "{reference} would become {digest}"),
        Some(existing) if existing == digest => writeln!(out, "{reference} is {digest} already"),
        Some(existing) => writeln!(out, "{reference} is {existing}, not {digest}: a push would be refused"),
    }
}
