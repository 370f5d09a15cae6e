//! Where things are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Runs in the container, embedded in the launcher.
pub(crate) const WORKER: &str = "spacelift-worker";
/// Runs on the worker host.
pub(crate) const LAUNCHER: &str = "spacelift-launcher";
/// Packs and verifies releases; ships in them, too.
pub(crate) const TOOL: &str = "spacelift-bundle";

/// The version of everything that ships: xtask shares it with the workspace.
pub(crate) const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// The workspace on disk.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        // Cargo sets the variable for `cargo run`; a binary that is started directly remembers where it was compiled.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("xtask has no directory above it")?;
        let root = root.canonicalize().with_context(|| format!("cannot find the workspace {}", root.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory of what ships, apart from `target/debug`: the two do not wait for each other's lock.
    pub(crate) fn static_builds(&self) -> PathBuf {
        self.root.join("target/musl")
    }

    /// Programs that builds need, at exact versions.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Releases, and what they are made of.
    pub(crate) fn dist(&self) -> PathBuf {
        self.root.join("target/dist")
    }
}

/// Cargo's home directory, where the sources of dependencies are.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        return std::path::absolute(&home).context("CARGO_HOME is not usable");
    }
    let home = env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}
