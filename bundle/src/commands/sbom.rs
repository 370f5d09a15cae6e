//! `sbom`

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use bundle_core::dependencies::{Lock, Metadata, Tree};
use bundle_core::output::OutputFile;
use bundle_core::sbom::Sbom;
use bundle_core::source::Date;

use crate::exit::Usage;

/// Write the software bill of materials of one program, as CycloneDX 1.5 JSON.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  T=x86_64-unknown-linux-musl
  cargo metadata --format-version 1 --locked --filter-platform $T > metadata.json
  cargo tree -p spacelift-launcher --target $T --edges normal,build --prefix none --locked \\
    > tree.txt
  spacelift-bundle sbom --metadata metadata.json --tree tree.txt --lock Cargo.lock \\
    --package spacelift-launcher --target $T --toolchain \"$(rustc --version)\" \\
    --source-date 1700000000 --output launcher.cdx.json")]
pub(crate) struct Arguments {
    /// The output of `cargo metadata`.
    #[arg(long, value_name = "FILE")]
    metadata: PathBuf,
    /// The output of `cargo tree` for the program and target.
    #[arg(long, value_name = "FILE")]
    tree: PathBuf,
    /// Cargo.lock.
    #[arg(long, value_name = "FILE")]
    lock: PathBuf,
    /// The program's package, which the tree must be of.
    #[arg(long, value_name = "NAME")]
    package: String,
    /// The target triple that the program is built for.
    #[arg(long, value_name = "TRIPLE")]
    target: String,
    /// What else is linked in, as `NAME VERSION`; `rustc 1.95.0` is the standard library. May be repeated.
    #[arg(long, value_name = "TEXT")]
    toolchain: Vec<String>,
    /// The commit's time in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    source_date: Date,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let metadata = Metadata::read(&arguments.metadata)?;
    let tree = Tree::read(&arguments.tree)?;
    if tree.root() != arguments.package {
        let message = format!("--tree is of {}, but --package is {}", tree.root(), arguments.package);
        return Err(Usage(message).into());
    }
    let sbom = Sbom {
        selection: &metadata.select(&tree)?,
        lock: &Lock::read(&arguments.lock)?,
        target: &arguments.target,
        toolchain: &arguments.toolchain,
        date: arguments.source_date,
    };
    OutputFile::write(&arguments.output, &sbom.to_bytes()?)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    let crates = sbom.selection.dependencies.len();
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({ "path": arguments.output, "crates": crates }))?;
    } else {
        writeln!(out, "sbom      {}: {crates} crates", arguments.output.display())?;
    }
    Ok(())
}
