//! Whom the caller trusts: the flags that every command has which uses a release.

use std::path::PathBuf;
use std::time::SystemTime;

use bundle_core::signature::{PinnedCerts, Threshold};
use bundle_core::verify::{Development, Policy, Rollback, SkippedVersion};

use crate::exit::Usage;

/// Certificates, how many of them must have signed, and whether development releases will do.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Trust {
    /// A certificate that you trust, got from the vendor by another way than the release; several are allowed.
    #[arg(long, value_name = "FILE", required = true)]
    cert: Vec<PathBuf>,
    /// How many of the certificates must have signed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: usize,
    /// Accept a development release, which no release key signed.
    #[arg(long)]
    allow_development: bool,
}

/// The flags with the certificates that they name.
pub(crate) struct Pinned {
    certs: PinnedCerts,
    threshold: Threshold,
    development: Development,
}

impl Trust {
    /// Reads the certificates.
    ///
    /// # Errors
    /// One cannot be read, or the threshold cannot be met.
    pub(crate) fn read(&self) -> anyhow::Result<Pinned> {
        let threshold = Threshold::new(self.threshold)
            .ok_or_else(|| Usage("--threshold 0 would accept anything; it must be at least 1".into()))?;
        let certs = PinnedCerts::read(&self.cert)?;
        if certs.certs().len() < threshold.get() {
            return Err(Usage(format!(
                "--threshold {} cannot be met: only {} certificate(s) are pinned; name the others with --cert as well",
                threshold.get(),
                certs.certs().len()
            ))
            .into());
        }
        let development = if self.allow_development { Development::Accept } else { Development::Refuse };
        Ok(Pinned { certs, threshold, development })
    }
}

impl Pinned {
    /// The certificates.
    pub(crate) fn certs(&self) -> &PinnedCerts {
        &self.certs
    }

    /// How many of them must have signed.
    pub(crate) fn threshold(&self) -> Threshold {
        self.threshold
    }

    /// The policy as of now, without a release that is installed.
    pub(crate) fn policy(&self) -> Policy<'_> {
        Policy {
            pinned: &self.certs,
            threshold: self.threshold,
            now: SystemTime::now(),
            installed: None,
            development: self.development,
            rollback: Rollback::Refuse,
            skipped_version: SkippedVersion::Refuse,
        }
    }
}
