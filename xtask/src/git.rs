//! What git knows about the sources.

use std::env;

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use crate::workspace::{VERSION, Workspace};

/// The date of a source tree without git, such as an unpacked tarball, that names none in `SOURCE_DATE_EPOCH`:
/// 1980-01-01, the earliest that every archive format can store.
const NO_SOURCE_DATE: u64 = 315_532_800;

/// The state of the sources.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// 40 hexadecimal digits, or "unknown" without git.
    pub(crate) commit: String,
    /// Seconds since 1970: the time of the commit.
    pub(crate) date: u64,
    /// Whether the work tree differs from the commit.
    pub(crate) modified: bool,
    /// Tags on the commit.
    pub(crate) tags: Vec<String>,
}

impl Sources {
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        // The remote's URL is not read: it differs between clones and may contain a password. `release.yaml` has it.
        if !workspace.root().join(".git").exists() {
            return Self::without_git();
        }
        let shell = Shell::new()?;
        shell.change_dir(workspace.root());
        let read = |arguments: &[&str]| {
            cmd!(shell, "git {arguments...}")
                .quiet()
                .read()
                .with_context(|| format!("git {} failed in {}", arguments.join(" "), workspace.root().display()))
        };
        let commit = read(&["rev-parse", "--verify", "HEAD"])?;
        let date = read(&["show", "--no-patch", "--format=%ct", "HEAD"])?;
        Ok(Self {
            date: date.parse().with_context(|| format!("git names \"{date}\" as the commit's time"))?,
            modified: !read(&["status", "--porcelain"])?.is_empty(),
            tags: read(&["tag", "--points-at", "HEAD"])?.lines().map(str::to_owned).collect(),
            commit,
        })
    }

    fn without_git() -> Result<Self> {
        let date = match env::var("SOURCE_DATE_EPOCH") {
            Ok(date) => {
                date.parse().with_context(|| format!("SOURCE_DATE_EPOCH is \"{date}\", not a number of seconds"))?
            }
            Err(env::VarError::NotPresent) => NO_SOURCE_DATE,
            Err(error) => bail!("SOURCE_DATE_EPOCH: {error}"),
        };
        Ok(Self { commit: "unknown".into(), date, modified: false, tags: Vec::new() })
    }

    /// Why a release for customers cannot be made from these sources.
    pub(crate) fn objections(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.commit == "unknown" {
            reasons
                .push("these sources are not a git clone, so nobody could tell which commit it was made from".into());
            return reasons;
        }
        if self.modified {
            reasons
                .push("the work tree differs from the commit: commit the changes, or stash them (git status)".into());
        }
        if !self.tags.iter().any(|tag| tag == VERSION) {
            let found = if self.tags.is_empty() { "no tag".to_owned() } else { self.tags.join(", ") };
            reasons.push(format!(
                "the commit must carry the tag {VERSION} of the workspace version and has {found}: git tag {VERSION}, or \
                 change the version in Cargo.toml"
            ));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::Sources;
    use crate::workspace::VERSION;

    fn sources() -> Sources {
        Sources { commit: "a".repeat(40), date: 1, modified: false, tags: vec!["other".into(), VERSION.into()] }
    }

    #[test]
    fn a_clean_tagged_commit_is_fine() {
        assert_eq!(sources().objections(), Vec::<String>::new());
    }

    #[test]
    fn all_objections_come_together() {
        let reasons = Sources { modified: true, tags: vec!["v9.9.9".into()], ..sources() }.objections();
        assert_eq!(reasons.len(), 2);
        assert!(reasons[0].contains("git status") && reasons[1].contains("v9.9.9"));
    }

    #[test]
    fn a_tarball_cannot_be_released() {
        assert_eq!(Sources { commit: "unknown".into(), ..sources() }.objections().len(), 1);
    }
}
