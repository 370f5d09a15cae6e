//! Where releases are published: a bucket of an S3-compatible store, or a directory of the same layout.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `s3://NAME[/PREFIX]` or `file:///DIRECTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bucket {
    /// A bucket.
    S3 {
        /// Its name.
        name: String,
        /// Empty, or a prefix that ends with a slash.
        prefix: String,
    },
    /// A directory, for networks without a connection: carried over by hand, and published again on the other side.
    Directory(PathBuf),
}

/// A text that names no bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no bucket: {reason}")]
pub(crate) struct ParseBucketError {
    text: String,
    reason: &'static str,
}

impl FromStr for Bucket {
    type Err = ParseBucketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| ParseBucketError { text: text.chars().take(100).collect(), reason };
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(refuse("file:// is followed by an absolute path, as in file:///srv/releases"));
            }
            return Ok(Self::Directory(Path::new(path).to_owned()));
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(refuse("expected s3://NAME, s3://NAME/PREFIX or file:///DIRECTORY"));
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if !(3..=63).contains(&name.len()) || !name.chars().all(plain) || name.starts_with(['-', '.']) {
            return Err(refuse("a bucket's name has 3 to 63 lower-case letters, digits, hyphens and dots"));
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.chars().any(char::is_control) || prefix.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(refuse("the prefix has control characters, `.` or `..` in it"));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self::S3 { name: name.to_owned(), prefix })
    }
}

impl Bucket {
    /// The address of the object with this key.
    pub(crate) fn address(&self, key: &str) -> String {
        match self {
            Self::S3 { name, prefix } => format!("s3://{name}/{prefix}{key}"),
            Self::Directory(path) => format!("{}", path.join(key).display()),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { name, prefix } => write!(f, "s3://{name}/{prefix}"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_read_strictly() {
        let bucket: Bucket = "s3://012345678901-spacelift-infra-spacelift-downloads".parse().unwrap();
        assert_eq!(bucket.address("k"), "s3://012345678901-spacelift-infra-spacelift-downloads/k");
        assert_eq!("s3://abc/some/where/".parse::<Bucket>().unwrap().address("k"), "s3://abc/some/where/k");
        assert_eq!("file:///srv/x".parse::<Bucket>().unwrap().address("a/b"), "/srv/x/a/b");
        for wrong in
            ["", "abc", "s3://", "s3://ab", "s3://UPPER", "s3://a_b_c", "s3://abc/../x", "file://x", "http://abc"]
        {
            assert!(wrong.parse::<Bucket>().is_err(), "{wrong}");
        }
    }
}
