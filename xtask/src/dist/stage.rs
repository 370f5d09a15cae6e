//! The stage: a directory with the files of the release under their final names, made anew every time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use xshell::{Shell, cmd};

use crate::target::Target;
use crate::workspace::Workspace;

/// What of the checkout ships: files and directories, where they exist.
const SHIPPED: [&str; 12] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "cloudformation",
    "completions",
    "config.json",
    "docs/alerts.yml",
    "docs/grafana-launcher.json",
    "docs/observability.md",
    "docs/operating.md",
    "licenses",
    "man",
    "scripts",
];
/// Scripts that customers call by their documented place, the top of the release.
const ENTRY_SCRIPTS: [&str; 2] = ["scripts/install.sh", "scripts/uninstall.sh"];

/// The stage directory.
pub(super) struct Stage {
    directory: PathBuf,
}

impl Stage {
    /// An empty stage.
    pub(super) fn create(directory: PathBuf) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { directory })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The place of a file; its directory exists.
    pub(super) fn place(&self, inside: &str) -> Result<PathBuf> {
        let path = self.directory.join(inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        Ok(path)
    }

    pub(super) fn add(&self, source: &Path, inside: &str) -> Result<()> {
        let path = self.place(inside)?;
        fs::copy(source, &path).with_context(|| format!("cannot copy {} to {}", source.display(), path.display()))?;
        Ok(())
    }

    pub(super) fn add_program(&self, binary: &Path, program: &str, target: Target) -> Result<()> {
        self.add(binary, &program_place(program, target))
    }

    /// Adds templates, scripts, licences and the customer's configuration.
    pub(super) fn add_sources(&self, workspace: &Workspace) -> Result<()> {
        for file in shipped_files(workspace.root())? {
            self.add(&workspace.root().join(&file), &source_place(&file))?;
        }
        Ok(())
    }
}

/// A program's place in a release.
pub(super) fn program_place(program: &str, target: Target) -> String {
    format!("bin/{program}{}", target.suffix())
}

/// The place in a release of a file in the checkout.
fn source_place(file: &str) -> String {
    if ENTRY_SCRIPTS.contains(&file) {
        file.trim_start_matches("scripts/").to_owned()
    } else if file.starts_with("LICENSE-") {
        format!("licenses/{file}")
    } else {
        file.to_owned()
    }
}

/// What git tracks or would track: a file that is ignored is no part of a release, or two clones would differ.
fn shipped_files(root: &Path) -> Result<Vec<String>> {
    if !root.join(".git").exists() {
        let mut files = Vec::new();
        for name in SHIPPED {
            walk(root, name, &mut files)?;
        }
        return Ok(files);
    }
    let shell = Shell::new()?;
    shell.change_dir(root);
    let listed = cmd!(shell, "git ls-files -z --cached --others --exclude-standard -- {SHIPPED...}").quiet().read()?;
    // A file that was deleted and not committed is still listed.
    let exists = |file: &&str| !file.is_empty() && root.join(file).exists();
    Ok(listed.split('\0').filter(exists).map(str::to_owned).collect())
}

fn walk(root: &Path, name: &str, files: &mut Vec<String>) -> Result<()> {
    let path = root.join(name);
    if path.is_file() {
        files.push(name.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", path.display()))?.file_name();
            let entry = entry.to_str().with_context(|| format!("a name in {} is not UTF-8", path.display()))?;
            walk(root, &format!("{name}/{entry}"), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{program_place, source_place};
    use crate::target::Target;

    #[test]
    fn files_have_their_documented_places() {
        assert_eq!(source_place("scripts/install.sh"), "install.sh");
        assert_eq!(source_place("scripts/helper.sh"), "scripts/helper.sh");
        assert_eq!(source_place("LICENSE-MIT"), "licenses/LICENSE-MIT");
        assert_eq!(source_place("cloudformation/workerpool.yaml"), "cloudformation/workerpool.yaml");
        assert_eq!(program_place("spacelift-launcher", Target::X86_64), "bin/spacelift-launcher");
        assert_eq!(program_place("spacelift-launcher", Target::Aarch64), "bin/spacelift-launcher-aarch64");
    }
}
