//! Makes `tests/data/attacks` and `tests/data/certs`: every way that we know of to get a release past a verifier that
//! should not get past it, and releases that must get past it.
//!
//! ```text
//! cargo run -p integration-tests --bin make-attacks [DIRECTORY]
//! ```
//!
//! DIRECTORY is `tests/data` of this work tree by default; what was there before is replaced. Keys are new every time and
//! their secrets are never written (but for the one in the cases called `key-with-secret…`, which is made to be leaked), so
//! every file changes with every run: run it when a case is added or the format changes, and commit everything.
//!
//! A new case needs a line in the list of `tests/attacks.rs` as well; a test compares the two.
//!
//! Pinned certificates do not expire unless that is the attack, so the data stay valid for years. What depends on the time
//! says so in its description: signatures, certificates and manifests from the future are from 2099.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use integration_tests::case::CASE;

mod cases;
mod elf;
mod keys;
mod oci;
mod release;

use cases::{Made, Material};

/// Data in version control should be small. All cases together have some 900 KB.
const MAX_TOTAL: u64 = 3_000_000;

fn main() -> ExitCode {
    let directory =
        std::env::args_os().nth(1).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("data"), PathBuf::from);
    match make(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make(directory: &Path) -> anyhow::Result<()> {
    // Everything is made before anything is replaced.
    let made = cases::all(&Material::new()?)?;
    let mut certificates: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for case in &made {
        for (name, bytes) in &case.certificates {
            let known = certificates.insert(name, bytes);
            ensure!(known.is_none_or(|known| known == bytes.as_slice()), "two certificates are called {name}");
        }
    }
    let (attacks, certs) = (directory.join("attacks"), directory.join("certs"));
    for directory in [&attacks, &certs] {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("cannot replace {}", directory.display()))?;
        }
        fs::create_dir_all(directory)?;
        // A line end that version control has changed would be another attack than the one that is meant.
        fs::write(directory.join(".gitattributes"), "* -text -diff\n")?;
    }
    let mut total = 0;
    for (name, bytes) in &certificates {
        total += write(&certs.join(name), bytes)?;
    }
    let mut out = io::stdout().lock();
    for case in &made {
        let size = write_case(&attacks.join(case.name), case)?;
        writeln!(out, "{:>3}  {:>6}  {}", case.case.exit, size, case.name)?;
        total += size;
    }
    let count = made.len();
    writeln!(out, "{count} cases and {} certificates, {total} bytes, in {}", certificates.len(), directory.display())?;
    ensure!(total < MAX_TOTAL, "that is more than the limit of {MAX_TOTAL} bytes");
    Ok(())
}

fn write_case(directory: &Path, made: &Made) -> anyhow::Result<u64> {
    let mut json = serde_json::to_vec_pretty(&made.case)?;
    json.push(b'\n');
    let mut total = write(&directory.join(CASE), &json)?;
    for (name, bytes) in &made.files {
        let path = directory.join(name);
        total += write(&path, bytes)?;
        if name.ends_with(".sh") || name.contains("/bin/") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(total)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<u64> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes.len() as u64)
}
