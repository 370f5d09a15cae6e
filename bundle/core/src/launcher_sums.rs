//! The sums of the launchers, which worker hosts check before they run one.
//!
//! A worker host fetches one binary and not the release. So for each launcher the signers of a release also sign the one
//! line of its sums file, in the form that `sha256sum -c` reads. The line follows from the manifest and is not kept; its
//! signature stands beside the manifest's, in the root of the release, under the name that it has in a downloads bucket.

use crate::digest::Digest;
use crate::manifest::Manifest;
use crate::names::LAUNCHERS;
use crate::sums;

/// The sums of one launcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LauncherSums {
    /// Where the launcher is in the release.
    pub path: &'static str,
    /// What the launcher is called in a downloads bucket.
    pub name: &'static str,
    /// The launcher's digest.
    pub sha256: Digest,
}

impl LauncherSums {
    /// One for each launcher in `manifest`, in the order in which their signatures stand in an archive.
    pub fn of(manifest: &Manifest) -> Vec<Self> {
        LAUNCHERS
            .into_iter()
            .filter_map(|(path, name)| {
                let sha256 = manifest.file(path)?.sha256;
                Some(Self { path, name, sha256 })
            })
            .collect()
    }

    /// The sums file: one line.
    pub fn text(&self) -> String {
        sums::line(self.sha256, self.name)
    }

    /// The sums file's name in a downloads bucket.
    pub fn sums_name(&self) -> String {
        format!("{}{}", self.name, sums::SUFFIX)
    }

    /// The name of its signature, in a release and in a downloads bucket.
    pub fn signature_name(&self) -> String {
        format!("{}{}{}", self.name, sums::SUFFIX, sums::SIGNATURE_SUFFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_documented_ones() {
        let sums = LauncherSums { path: LAUNCHERS[0].0, name: LAUNCHERS[0].1, sha256: Digest::of(b"") };
        assert_eq!(sums.sums_name(), "spacelift-launcher-x86_64_SHA256SUMS");
        assert_eq!(sums.signature_name(), "spacelift-launcher-x86_64_SHA256SUMS.sig");
        assert_eq!(sums.text(), format!("{}  spacelift-launcher-x86_64\n", Digest::of(b"")));
    }
}
