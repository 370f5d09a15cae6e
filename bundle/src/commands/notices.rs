//! `notices`

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use bundle_core::dependencies::{Metadata, Tree};
use bundle_core::notices;
use bundle_core::output::OutputFile;

/// Write the notices of everything by others that is in the programs: authors, licences, and the licences' texts.
///
/// The texts are read from the crates' sources, whose places the metadata has.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle notices --metadata metadata.json --tree tree.txt --output THIRD-PARTY.txt
  spacelift-bundle notices --metadata metadata.json \\
    --tree x86_64.txt --tree aarch64.txt --output THIRD-PARTY.txt")]
pub(crate) struct Arguments {
    /// The output of `cargo metadata`, for all targets or for the one of the trees.
    #[arg(long, value_name = "FILE")]
    metadata: PathBuf,
    /// The output of `cargo tree` for a program and target; may be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    tree: Vec<PathBuf>,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let metadata = Metadata::read(&arguments.metadata)?;
    let trees = arguments.tree.iter().map(|path| Tree::read(path)).collect::<Result<Vec<_>, _>>()?;
    let notices = notices::third_party(&metadata, &trees)?;
    OutputFile::write(&arguments.output, notices.as_bytes())
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({ "path": arguments.output, "size": notices.len() }))?;
    } else {
        writeln!(out, "notices   {}: {} bytes", arguments.output.display(), notices.len())?;
    }
    Ok(())
}
