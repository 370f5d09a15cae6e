//! Release versions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The version of a release, written `v1.2.3` or `v1.2.3-rc.1` everywhere: in file names, the manifest, image tags and
/// the output of `--version`. Ordered by precedence as in <https://semver.org>.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ReleaseVersion(semver::Version);

/// A string that is not a release version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a release version: expected the form v1.2.3 or v1.2.3-rc.1{hint}")]
pub struct ParseVersionError {
    text: String,
    hint: &'static str,
}

impl FromStr for ReleaseVersion {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |hint| ParseVersionError { text: text.chars().take(80).collect(), hint };
        let number = text.strip_prefix('v').ok_or_else(|| refuse(", with the `v`"))?;
        // Longer ones do not fit an image tag together with an architecture.
        if text.len() > 64 {
            return Err(refuse(", at most 64 characters"));
        }
        let version = semver::Version::parse(number).map_err(|_| refuse(""))?;
        // Two builds of one version would share their file names and their precedence.
        if !version.build.is_empty() {
            return Err(refuse(", without build metadata (`+…`)"));
        }
        Ok(Self(version))
    }
}

impl fmt::Display for ReleaseVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl From<ReleaseVersion> for String {
    fn from(version: ReleaseVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for ReleaseVersion {
    type Error = ParseVersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ReleaseVersion {
        text.parse().unwrap()
    }

    #[test]
    fn order_is_by_precedence_not_by_text() {
        assert!(version("v1.10.0") > version("v1.9.0"));
        assert!(version("v1.0.0") > version("v1.0.0-rc.1"));
    }

    #[test]
    fn only_the_documented_form_is_read() {
        for text in ["1.2.3", "v1.2", "v1.2.3+x", "v01.2.3", "v1.2.3/..", " v1.2.3", "v1.2.3\n", ""] {
            assert!(text.parse::<ReleaseVersion>().is_err(), "{text:?}");
        }
        assert_eq!(version("v1.2.3-rc.1").to_string(), "v1.2.3-rc.1");
    }
}
