//! The programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `spacelift-bundle`: the file that the environment variable `SPACELIFT_BUNDLE` names, so that the program that ships can
/// be tested, or else one that is built here, once.
///
/// # Panics
/// It cannot be built, or the variable names nothing.
pub fn bundle() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| named_or_built("SPACELIFT_BUNDLE", "spacelift-bundle"))
}

/// `spacelift-launcher`, as [`bundle`]; the environment variable is `SPACELIFT_LAUNCHER`.
///
/// # Panics
/// It cannot be built, or the variable names nothing.
pub fn launcher() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| named_or_built("SPACELIFT_LAUNCHER", "spacelift-launcher"))
}

/// `spacelift-worker`, as [`bundle`]; the environment variable is `SPACELIFT_WORKER`.
///
/// # Panics
/// It cannot be built, or the variable names nothing.
pub fn worker() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| named_or_built("SPACELIFT_WORKER", "spacelift-worker"))
}

/// `mothership`, the reference control plane, as [`bundle`]; the environment variable is `SPACELIFT_MOTHERSHIP`.
///
/// # Panics
/// It cannot be built, or the variable names nothing.
pub fn mothership() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| named_or_built("SPACELIFT_MOTHERSHIP", "mothership"))
}

/// `cargo xtask` as a program, as [`bundle`]; the environment variable is `SPACELIFT_XTASK`.
///
/// # Panics
/// It cannot be built, or the variable names nothing.
pub fn xtask() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| named_or_built("SPACELIFT_XTASK", "xtask"))
}

fn named_or_built(variable: &str, package: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => {
            std::fs::canonicalize(&path).unwrap_or_else(|error| panic!("{variable}={}: {error}", path.display()))
        }
        None => build(package),
    }
}

fn build(package: &str) -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    // The directory decides which configuration of cargo applies, the manifest which workspace is built.
    // With the features that dependencies have for the whole workspace, for which `cargo xtask test` has built them.
    command.args(["build", "--quiet", "--workspace", "--bin", package, "--message-format", "json-render-diagnostics"]);
    command.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{stderr}");
    // One JSON document per line; the one about the program says where it is, whatever the target directory.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == package)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .unwrap_or_else(|| panic!("{command:?} built no program:\n{stderr}"))
}
