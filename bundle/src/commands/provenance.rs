//! `provenance`

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use bundle_core::dependencies::Lock;
use bundle_core::digest::Digest;
use bundle_core::output::OutputFile;
use bundle_core::provenance::{self, BuildInfo, Provenance};
use bundle_core::source::{Commit, Date, Tree, Url};
use bundle_core::version::ReleaseVersion;

/// Write how the release was built, as an in-toto statement with SLSA provenance.
///
/// Its subjects are the files in bin/ and container-images/ of the stage directory.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle provenance --stage stage --version v1.2.3 --config release.yaml \\
    --lock Cargo.lock --commit unknown --source-date 1700000000 \\
    --source https://example.com/product --build-info build.json --output provenance.json")]
pub(crate) struct Arguments {
    /// The directory that holds the files under their final names.
    #[arg(long, value_name = "DIR")]
    stage: PathBuf,
    /// The release's version, such as v1.2.3.
    #[arg(long)]
    version: Option<ReleaseVersion>,
    /// The release configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The commit that it was built from, or `unknown`.
    #[arg(long)]
    commit: Commit,
    /// The work tree differed from the commit.
    #[arg(long)]
    modified: bool,
    /// The commit's time in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    source_date: Date,
    /// Where the sources are.
    #[arg(long, value_name = "URL")]
    source: Url,
    /// Cargo.lock.
    #[arg(long, value_name = "FILE")]
    lock: PathBuf,
    /// JSON object with what the build used: names and versions as text, and `targets` as a list of target triples.
    #[arg(long, value_name = "FILE")]
    build_info: PathBuf,
    /// URI of the builder that vouches for the build [default: SOURCE/builders/xtask-dist].
    #[arg(long, value_name = "URI")]
    builder: Option<String>,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => {
            let bytes = fs::read(path).map_err(|source| provenance::Error::Read { path: path.clone(), source })?;
            Some(Digest::of(&bytes))
        }
        None => None,
    };
    let provenance = Provenance {
        stage: &arguments.stage,
        version: arguments.version.as_ref(),
        config,
        commit: &arguments.commit,
        tree: if arguments.modified { Tree::Modified } else { Tree::Clean },
        date: arguments.source_date,
        source: &arguments.source,
        lock: Lock::read(&arguments.lock)?.digest(),
        build: &BuildInfo::read(&arguments.build_info)?,
        builder: arguments.builder.as_deref(),
    };
    OutputFile::write(&arguments.output, &provenance.to_bytes()?)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({ "path": arguments.output }))?;
    } else {
        writeln!(out, "provenance {}", arguments.output.display())?;
    }
    Ok(())
}
