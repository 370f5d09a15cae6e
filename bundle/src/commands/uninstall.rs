//! `uninstall`

use std::path::PathBuf;

use crate::install::{Consent, release};
use crate::progress::Progress;
use crate::uninstall::{self, Data, Request};

/// Remove an installation from an AWS account. `./uninstall.sh` calls this.
///
/// The stacks are deleted. The downloads bucket and the image repository stay with everything in them, since worker hosts
/// may still need them, unless -n is given; a later installation uses them again.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ./uninstall.sh
  ./uninstall.sh -c /etc/self-hosted/config.json -f
  spacelift-bundle uninstall --release self-hosted-v1.2.3 -c config.json --no-retain")]
pub(crate) struct Arguments {
    /// The directory of the unpacked release.
    #[arg(long, value_name = "DIR")]
    release: PathBuf,
    /// The configuration that the installation was made with [default: config.json in the release].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
    /// Retain nothing: also delete the bucket and the repository, and everything in them.
    #[arg(short, long)]
    no_retain: bool,
    #[command(flatten)]
    aws: crate::aws::Options,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let config = arguments.config.clone().unwrap_or_else(|| arguments.release.join(release::CONFIG));
    let request = Request {
        config: &config,
        data: if arguments.no_retain { Data::Delete } else { Data::Keep },
        consent: if arguments.force { Consent::Given } else { Consent::Ask },
        aws: &arguments.aws,
        json,
    };
    uninstall::run(&request, &Progress::new())
}
