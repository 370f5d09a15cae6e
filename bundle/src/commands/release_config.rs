//! `release-config`

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bundle_core::release_config::ReleaseConfig;

/// Check a release configuration, and print what it says.
///
/// Every mistake is reported at once, with its line and column; the exit code is 64 then, and 66 if the file cannot be
/// read. With --json the configuration is printed with its defaults filled in and its paths as they are written.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle release-config release.yaml
  spacelift-bundle release-config release.yaml --json")]
pub(crate) struct Arguments {
    /// The configuration, usually release.yaml.
    file: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let config = ReleaseConfig::read(&arguments.file)?;
    print(&config, &arguments.file, json)?;
    Ok(())
}

fn print(config: &ReleaseConfig, path: &Path, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, config)?;
        return writeln!(out);
    }
    writeln!(out, "{} is in order", path.display())?;
    writeln!(out, "product   {}, channel {}, sequence {}", config.product, config.channel, config.sequence)?;
    writeln!(out, "source    {}", config.source)?;
    match &config.minimum_upgrade_from {
        Some(version) => writeln!(out, "upgrades  from {version} on")?,
        None => writeln!(out, "upgrades  from any version")?,
    }
    writeln!(out, "signers   {} listed, threshold {}", config.signers.len(), config.threshold)?;
    for signer in &config.signers {
        writeln!(out, "          {}", signer.display())?;
    }
    for image in &config.images {
        writeln!(out, "image     {} from {}", image.name, image.path.display())?;
    }
    for file in &config.files {
        writeln!(out, "file      {} from {}", file.path, file.source.display())?;
    }
    Ok(())
}
