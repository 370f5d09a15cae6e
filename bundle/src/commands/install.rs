//! `install`

use std::path::PathBuf;
use std::sync::Arc;

use bundle_core::verify::{Development, Rollback, SkippedVersion};

use crate::install::{self, Consent, Request, release};
use crate::progress::Progress;

/// Install the release in a directory into an AWS account. `./install.sh` calls this.
///
/// First everything without effect: the release is verified against the pinned certificates, the configuration and the
/// account are checked, and the plan is shown. After `yes`: the stacks of the downloads bucket and of the image
/// repository, the release's files, the launcher's image. Run it again to upgrade, to repair, or after an interruption.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ./install.sh
  ./install.sh -c /etc/self-hosted/config.json --yes
  ./install.sh -c config.json --cert vendor.asc --dry-run")]
pub(crate) struct Arguments {
    /// The directory of the unpacked release.
    #[arg(long, value_name = "DIR")]
    release: PathBuf,
    /// The configuration [default: config.json in the release].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A certificate that you trust, besides `signers` of the configuration; several are allowed.
    #[arg(long, value_name = "FILE")]
    cert: Vec<PathBuf>,
    /// How many of the certificates must have signed [default: `threshold` of the configuration].
    #[arg(long, value_name = "N")]
    threshold: Option<usize>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Show the plan and stop.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Accept a development release, which no release key signed.
    #[arg(long)]
    allow_development: bool,
    /// Accept a release that is older than the installed one.
    #[arg(long)]
    allow_rollback: bool,
    /// Accept an upgrade that skips a required version.
    #[arg(long)]
    allow_skipping_versions: bool,
    /// A directory on a disk with room for a copy of the release [default: $TMPDIR or /var/tmp].
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    aws: crate::aws::Options,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let config = arguments.config.clone().unwrap_or_else(|| arguments.release.join(release::CONFIG));
    let work = arguments.work_dir.clone().unwrap_or_else(super::verify::default_work_dir);
    let request = Request {
        release: &arguments.release,
        config: &config,
        certificates: &arguments.cert,
        threshold: arguments.threshold,
        development: if arguments.allow_development { Development::Accept } else { Development::Refuse },
        rollback: if arguments.allow_rollback { Rollback::Accept } else { Rollback::Refuse },
        skipped_version: if arguments.allow_skipping_versions {
            SkippedVersion::Accept
        } else {
            SkippedVersion::Refuse
        },
        consent: match (arguments.yes, arguments.dry_run) {
            (_, true) => Consent::PlanOnly,
            (true, false) => Consent::Given,
            (false, false) => Consent::Ask,
        },
        work: &work,
        aws: &arguments.aws,
        json,
    };
    install::run(&request, &Arc::new(Progress::new()))
}
