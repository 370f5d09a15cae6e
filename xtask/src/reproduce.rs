//! `cargo xtask reproduce`: builds a release again and compares it with the one that is there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use xshell::{Shell, cmd};

use crate::failure::Failure;
use crate::json::Json;
use crate::progress::Progress;
use crate::target::Target;
use crate::toolchain::Toolchain;
use crate::workspace::{TOOL, Workspace};

const HELP: &str = "\
Builds a release again from the commit that it names, and compares file by file.

Usage: cargo xtask reproduce ARCHIVE [flags]

The commit is cloned from this checkout's repository to target/reproduce, built there by its own `cargo xtask dist`, and
compared with ARCHIVE; signatures are left out. The same bytes need the same Rust toolchain: the release's provenance
names it. ARCHIVE is not verified; do that first, with `spacelift-bundle verify`.

      --toolchain WAY   target, source or debian [default: what the release was built with]
      --config FILE     The release configuration [default: that of the commit]
      --no-install      Install nothing on this machine
      --offline         Use no network
      --threads N       Jobs and threads
      --keep            Keep target/reproduce, also when everything is equal
  -h, --help            Print this

Exit codes: 0 equal; 1 different, or something failed; 64 wrong flags, or a release that nobody can rebuild;
130 interrupted.

Examples:
  cargo xtask reproduce self-hosted-v1.2.3.tar.gz
  cargo xtask reproduce self-hosted-v1.2.3.tar.gz --keep
";

/// Flags that the rebuild gets as they are.
const PASSED_ON: [&str; 3] = ["toolchain", "config", "threads"];

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut archive, mut keep, mut passed_on) = (None, false, Vec::new());
    while let Some(flag) = flags.next()? {
        match flag {
            Long("keep") => keep = true,
            Long(name @ ("no-install" | "offline")) => passed_on.push(format!("--{name}")),
            Long(name) if PASSED_ON.contains(&name) => {
                let name = format!("--{name}");
                let value = flags.value()?.string()?;
                let value = if name == "--config" { std::path::absolute(value)?.display().to_string() } else { value };
                passed_on.extend([name, value]);
            }
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(path) if archive.is_none() => archive = Some(std::path::absolute(path)?),
            Value(_) | Short(_) | Long(_) => return Err(flag.unexpected().into()),
        }
    }
    let archive = archive.ok_or_else(|| Failure::usage("which archive? cargo xtask reproduce ARCHIVE"))?;
    File::open(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let workspace = Workspace::find()?;
    let work = workspace.root().join("target/reproduce");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;

    let mut progress = Progress::new(4);
    let original = progress.step("read the release", |progress| Original::read(&archive, &work, progress))?;
    if !passed_on.iter().any(|flag| flag == "--toolchain")
        && let Some(toolchain) = original.toolchain()?
    {
        passed_on.extend(["--toolchain".into(), toolchain.library.name().into()]);
    }
    let clone = work.join("clone");
    let title = format!("clone commit {}", original.commit);
    progress.step(&title, |_| clone_commit(&workspace, &original.commit, &clone))?;

    let rebuilt = progress.step("build it again", |progress| {
        let mut dist = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        dist.current_dir(&clone).args(["run", "--quiet", "--locked", "--package", "xtask", "--", "dist", "--json"]);
        dist.args(original.dist_flags(&passed_on)).arg("--output").arg(work.join("output"));
        let output = progress.run_asking(&mut dist)?;
        Json::parse(&String::from_utf8(output)?).context("the rebuild printed no JSON document")
    })?;
    original.warn_of_another_toolchain(&rebuilt, &progress);
    let tool = clone.join("target/musl").join(Target::host()?.triple()).join("dist").join(TOOL);
    let rebuilt = rebuilt.require("archive", "cargo xtask dist")?;
    progress.step("compare", |progress| {
        progress.run_visibly(Command::new(&tool).args(["diff", "--reproduce"]).arg(&archive).arg(rebuilt))
    })?;
    if !keep {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    Ok(writeln!(io::stdout(), "{} is what commit {} gives", archive.display(), original.commit)?)
}

/// What a rebuild must know of the release.
struct Original {
    commit: String,
    development: bool,
    targets: Vec<String>,
    certificates: Vec<PathBuf>,
    toolchain: Option<String>,
}

impl Original {
    /// Unpacks the few files that matter here.
    fn read(archive: &Path, work: &Path, progress: &Progress) -> Result<Self> {
        let directory = work.join("original");
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        // Named one by one: tar fails for a pattern that fits nothing, and a release that nobody has signed has no keys.
        let not_a_release = || format!("{} is not a release", archive.display());
        let listed = progress.run(Command::new("tar").arg("-tzf").arg(archive)).with_context(not_a_release)?;
        let listed = String::from_utf8(listed).with_context(not_a_release)?;
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(archive).arg("-C").arg(&directory).args(["--strip-components=1", "--"]);
        tar.args(listed.lines().filter(|file| is_needed(file)));
        progress.run(&mut tar).with_context(not_a_release)?;

        let read = |name: &str| -> Result<Json> {
            let text = fs::read_to_string(directory.join(name))
                .with_context(|| format!("cannot read {name} of {}", archive.display()))?;
            Json::parse(&text).with_context(|| format!("{name} of {}", archive.display()))
        };
        let manifest = read("manifest.json")?;
        let whose = archive.display().to_string();
        let commit = manifest.require("commit", &whose)?.to_owned();
        let refuse = |reason: &str| {
            let what = format!("{whose} cannot be rebuilt");
            Err(Failure::Refused { what, reasons: vec![reason.into()] }.into())
        };
        if manifest.is_true("modified") {
            return refuse("it was built from a work tree that differed from its commit");
        }
        if commit == "unknown" {
            return refuse("it was built from sources without git");
        }
        let keys = directory.join("keys");
        let mut certificates = Vec::new();
        if keys.exists() {
            for entry in fs::read_dir(&keys).with_context(|| format!("cannot list {}", keys.display()))? {
                certificates.push(entry.with_context(|| format!("cannot list {}", keys.display()))?.path());
            }
            certificates.sort();
        }
        Ok(Self {
            commit,
            development: manifest.is_true("development"),
            targets: manifest.list("targets").iter().filter_map(Json::as_text).map(str::to_owned).collect(),
            certificates,
            toolchain: read("provenance.json")?.find("toolchain").and_then(Json::as_text).map(str::to_owned),
        })
    }

    /// The toolchain of this machine that it was built with, if there is one.
    fn toolchain(&self) -> Result<Option<Toolchain>> {
        let mut targets = vec![Target::host()?];
        for target in &self.targets {
            targets.extend(Target::parse(target)?);
        }
        Ok(self.toolchain.as_ref().and_then(|description| Toolchain::described(description, &targets)))
    }

    fn dist_flags(&self, passed_on: &[String]) -> Vec<String> {
        let mut flags = vec!["--unsigned".to_owned()];
        if self.development {
            flags.push("--development".into());
        }
        flags.extend(self.targets.iter().flat_map(|target| ["--target".into(), target.clone()]));
        flags.extend(self.certificates.iter().flat_map(|file| ["--cert".into(), file.display().to_string()]));
        flags.extend_from_slice(passed_on);
        flags
    }

    fn warn_of_another_toolchain(&self, rebuilt: &Json, progress: &Progress) {
        let (then, now) = (self.toolchain.as_deref().unwrap_or("unknown"), rebuilt.text("toolchain"));
        if let Some(now) = now.filter(|now| *now != then) {
            progress
                .note(&format!("Note: it was built with {then}, and now with {now}; other bytes are to be expected"));
        }
    }
}

/// Whether a rebuild must know a file of the original.
fn is_needed(file: &str) -> bool {
    let inside = file.split_once('/').map_or("", |(_, inside)| inside);
    matches!(inside, "manifest.json" | "provenance.json") || (inside.starts_with("keys/") && inside.ends_with(".asc"))
}

fn clone_commit(workspace: &Workspace, commit: &str, clone: &Path) -> Result<()> {
    let shell = Shell::new()?;
    let root = workspace.root();
    let object = format!("{commit}^{{commit}}");
    cmd!(shell, "git -C {root} cat-file -e {object}")
        .quiet()
        .ignore_stderr()
        .run()
        .with_context(|| format!("{} has no commit {commit}; fetch it first: git fetch --tags", root.display()))?;
    cmd!(shell, "git clone --quiet --no-checkout {root} {clone}").quiet().run()?;
    cmd!(shell, "git -C {clone} checkout --quiet --detach {commit}").quiet().run()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Original, is_needed};

    fn original() -> Original {
        Original {
            commit: "a".repeat(40),
            development: true,
            targets: vec!["x86_64".into()],
            certificates: vec!["/keys/F.asc".into()],
            toolchain: None,
        }
    }

    #[test]
    fn only_what_a_rebuild_needs_is_unpacked() {
        for file in ["r/manifest.json", "r/provenance.json", "r/keys/F.asc"] {
            assert!(is_needed(file), "{file}");
        }
        for file in ["r/", "r/keys/", "manifest.json", "r/docs/manifest.json", "r/bin/tool", "r/manifest.json.sig"] {
            assert!(!is_needed(file), "{file}");
        }
    }

    #[test]
    fn a_rebuild_repeats_the_original() {
        let flags = original().dist_flags(&["--offline".into()]);
        assert_eq!(flags.join(" "), "--unsigned --development --target x86_64 --cert /keys/F.asc --offline");
    }
}
