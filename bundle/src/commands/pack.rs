//! `pack`

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use bundle_core::gzip;
use bundle_core::pack::{self, Packed, Release};
use bundle_core::release_config::ReleaseConfig;
use bundle_core::signature::{self, Fingerprint};
use bundle_core::source::{Commit, Date};
use bundle_core::version::ReleaseVersion;

/// Pack a stage directory into an unsigned archive.
///
/// The bytes depend on the contents of the files and on these arguments alone.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle pack --stage stage --config release.yaml --version v1.2.3 --cert vendor.asc \\
    --commit \"$(git rev-parse HEAD)\" --source-date \"$(git log -1 --format=%ct)\" --output-dir dist")]
pub(crate) struct Arguments {
    /// The directory that holds the files under their final names.
    #[arg(long, value_name = "DIR")]
    stage: PathBuf,
    /// The release configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The release's version, such as v1.2.3.
    #[arg(long)]
    version: ReleaseVersion,
    /// The commit that it was built from, or `unknown`.
    #[arg(long)]
    commit: Commit,
    /// The work tree differed from the commit.
    #[arg(long)]
    modified: bool,
    /// The commit's time in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    source_date: Date,
    /// Mark it as a development release, which customers' verifiers refuse.
    #[arg(long)]
    development: bool,
    /// A signer's certificate to ship in keys/, besides those that the configuration names.
    #[arg(long, value_name = "FILE")]
    cert: Vec<PathBuf>,
    /// Where to write the archive.
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
    /// Threads for compressing. The output does not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let config = ReleaseConfig::read(&arguments.config)?;
    let mut certificates: Vec<bundle_core::Cert> = Vec::new();
    for path in config.signers.iter().chain(&arguments.cert) {
        for cert in signature::read_certs(path)? {
            if !certificates.iter().any(|known| Fingerprint::of(known) == Fingerprint::of(&cert)) {
                certificates.push(cert);
            }
        }
    }
    let release = Release {
        product: config.product,
        version: arguments.version.clone(),
        sequence: config.sequence,
        channel: config.channel,
        development: arguments.development,
        commit: arguments.commit.to_string(),
        modified: arguments.modified,
        source_date: arguments.source_date.unix(),
        source: config.source.as_str().to_owned(),
        minimum_upgrade_from: config.minimum_upgrade_from,
        threshold: config.threshold,
        certificates,
        stage: arguments.stage.clone(),
        files: config.files.into_iter().map(|file| (file.path, file.source)).collect(),
        images: config.images.into_iter().map(|image| (image.name, image.path)).collect(),
    };
    fs::create_dir_all(&arguments.output_dir)
        .with_context(|| format!("cannot create the directory {}", arguments.output_dir.display()))?;
    let threads = arguments.threads.unwrap_or_else(gzip::default_threads);
    let packed = pack::pack(&release, &arguments.output_dir, threads)?;
    print(&packed, json)?;
    Ok(())
}

fn print(packed: &Packed, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let document = serde_json::json!({
            "archive": packed.path,
            "payload_sha256": packed.payload,
            "size": packed.size,
            "unpacked_size": packed.unpacked_size,
            "files": packed.manifest.files.len(),
            "images": packed.manifest.images.len(),
        });
        return writeln!(out, "{document}");
    }
    writeln!(out, "packed   {} ({} bytes)", packed.path.display(), packed.size)?;
    writeln!(out, "payload  {}", packed.payload)?;
    writeln!(
        out,
        "contents {} files, {} images, {} bytes",
        packed.manifest.files.len(),
        packed.manifest.images.len(),
        packed.unpacked_size
    )
}
