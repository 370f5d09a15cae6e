//! `image`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use bundle_core::image::{self, Architecture, ImageSummary, LauncherImage};
use bundle_core::output::OutputFile;
use bundle_core::source::{Commit, Date, Url};
use bundle_core::version::ReleaseVersion;

use crate::exit::Usage;

/// A launcher has some 8 MB. One of this size was built with debug information, and a release is no place for it.
const MAX_LAUNCHER: u64 = 128 * 1024 * 1024;

/// Make the launcher's container image, without a container engine.
///
/// The file is an OCI image layout that `docker load` reads as well. The same arguments give the same bytes anywhere.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle image --version v1.2.3 --commit unknown --source-date 1700000000 \\
    --source https://example.com/product --output launcher.tar \\
    --launcher x86_64=target/spacelift-launcher
  skopeo inspect oci-archive:launcher.tar
  skopeo copy --all oci-archive:launcher.tar docker://registry.example.com/spacelift-launcher:v1.2.3
  docker load -i launcher.tar && docker run --rm spacelift-launcher:v1.2.3 --version")]
pub(crate) struct Arguments {
    /// The release's version, such as v1.2.3; becomes the image's tag.
    #[arg(long)]
    version: ReleaseVersion,
    /// The commit that the launchers were built from, or `unknown`.
    #[arg(long)]
    commit: Commit,
    /// The commit's time in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    source_date: Date,
    /// Where the sources are.
    #[arg(long, value_name = "URL")]
    source: Url,
    /// The launcher for x86_64 or aarch64; give the option once for each.
    #[arg(long, value_name = "ARCH=FILE", required = true)]
    launcher: Vec<Launcher>,
    /// The image file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Clone)]
struct Launcher {
    architecture: Architecture,
    path: PathBuf,
}

impl FromStr for Launcher {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (architecture, path) =
            text.split_once('=').ok_or("expected ARCH=FILE, such as x86_64=spacelift-launcher")?;
        let architecture = architecture.parse().map_err(|error: image::ParseArchitectureError| error.to_string())?;
        Ok(Self { architecture, path: path.into() })
    }
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let mut launchers = BTreeMap::new();
    for Launcher { architecture, path } in &arguments.launcher {
        if launchers.insert(*architecture, read(path)?).is_some() {
            return Err(Usage(format!("--launcher {architecture}=… is given twice")).into());
        }
    }
    let image = LauncherImage {
        version: &arguments.version,
        commit: &arguments.commit,
        source: &arguments.source,
        date: arguments.source_date,
        launchers,
    };
    let built = image.build()?;
    OutputFile::write(&arguments.output, &built.tar)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    print(&built.summary, &arguments.output, json)?;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_LAUNCHER + 1).read_to_end(&mut bytes))
        .map_err(image::Error::Read)
        .with_context(|| format!("the launcher {}", path.display()))?;
    if bytes.len() as u64 > MAX_LAUNCHER {
        return Err(Usage(format!("{} has more than {MAX_LAUNCHER} bytes; build it stripped", path.display())).into());
    }
    Ok(bytes)
}

fn print(summary: &ImageSummary, path: &Path, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let document = serde_json::json!({ "path": path, "image": summary });
        return writeln!(out, "{document}");
    }
    let platforms: Vec<String> = summary.platforms.iter().map(|image| image.platform.to_string()).collect();
    writeln!(out, "image     {}", path.display())?;
    writeln!(out, "digest    {}", summary.digest)?;
    writeln!(out, "platforms {}", platforms.join(", "))?;
    writeln!(out, "tags      {}", summary.tags.join(", "))
}
