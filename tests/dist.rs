//! The command line of `cargo xtask`: plans, refusals, help. Nothing here builds a release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::program;
use integration_tests::release::Release;
use integration_tests::run::{Finished, finish, succeed, tool};
use integration_tests::tree;
use serde_json::json;
use tempfile::TempDir;

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// A git repository that looks like the project to `cargo xtask`: what it refuses, it refuses before it builds anything.
struct Checkout {
    directory: TempDir,
}

impl Checkout {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let checkout = Self { directory };
        fs::create_dir(checkout.path().join("xtask")).unwrap();
        fs::write(checkout.path().join("release.yaml"), "channel: stable\n").unwrap();
        fs::write(checkout.path().join(".gitignore"), "/target/\n").unwrap();
        checkout.git(&["init", "--quiet"]);
        checkout.git(&["add", "--all"]);
        checkout.git(&["commit", "--quiet", "--message", "first"]);
        checkout
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut git = tool("git");
        git.current_dir(self.path())
            .args(["-c", "user.name=Test", "-c", "user.email=test@example.com"])
            .args(arguments);
        // The machine's configuration may sign commits and tags, or run hooks.
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        succeed(&mut git)
    }

    fn xtask(&self, arguments: &[&str]) -> Command {
        let mut xtask = Command::new(program::xtask());
        xtask.args(arguments).env("CARGO_MANIFEST_DIR", self.path().join("xtask")).current_dir(self.path());
        xtask
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let finished = finish(&mut self.xtask(arguments));
        assert!(!self.path().join("target").exists(), "it made something: {finished}");
        finished
    }
}

/// The objections in a refusal.
fn reasons(refused: &Finished) -> Vec<&str> {
    refused.stderr.lines().filter_map(|line| line.strip_prefix("  - ")).collect()
}

#[test]
fn a_dry_run_prints_the_plan_and_makes_nothing() {
    let checkout = Checkout::new();
    let commit = checkout.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let plan = checkout.run(&["dist", "--dry-run", "--target=all"]).expect(0).stdout;
    let mut at = 0;
    for step in [
        VERSION,
        &commit,
        "development key",
        "build spacelift-bundle for",
        "build spacelift-worker for x86_64",
        "build spacelift-launcher for x86_64",
        "build spacelift-worker for aarch64",
        "build spacelift-launcher for aarch64",
        "pack",
        "sign",
        "verify",
    ] {
        at += plan[at..].find(step).unwrap_or_else(|| panic!("{step} is not in its place: {plan}"));
    }
    let plan = checkout.run(&["dist", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(
        (&plan["version"], &plan["commit"], &plan["modified"]),
        (&json!(VERSION), &json!(commit), &json!(false))
    );
    assert!(plan["steps"].as_array().unwrap().len() > 10, "{plan}");
    fs::write(checkout.path().join("new"), "").unwrap();
    assert_eq!(checkout.run(&["dist", "--dry-run", "--json"]).expect(0).json()["modified"], true);
}

#[test]
fn a_release_for_customers_is_refused_for_all_reasons_at_once() {
    let checkout = Checkout::new();
    checkout.git(&["tag", "v9.9.9"]);
    fs::write(checkout.path().join("release.yaml"), "channel: beta\n").unwrap();
    for extra in [&[][..], &["--dry-run"]] {
        let refused = checkout.run(&[&["dist", "--release", "--cert", "missing.asc"], extra].concat()).expect(64);
        let found = reasons(&refused);
        assert_eq!(found.len(), 4, "{refused}");
        for (reason, parts) in found.iter().zip([
            ["work tree differs", "git status"],
            ["v9.9.9", VERSION],
            ["release key", "cargo xtask keygen"],
            ["missing.asc", "cannot be read"],
        ]) {
            assert!(parts.iter().all(|part| reason.contains(part)), "{parts:?}: {reason}");
        }
    }
}

#[test]
fn each_objection_goes_away_when_its_cause_does() {
    let checkout = Checkout::new();
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key.asc");
    fs::write(&key, "").unwrap();
    let release = ["dist", "--release", "--dry-run", "--key", key.to_str().unwrap()];
    assert_eq!(reasons(&checkout.run(&release).expect(64)).len(), 1, "only the tag is missing");
    checkout.git(&["tag", VERSION]);
    checkout.run(&release).expect(0);
    // A file that git does not know is a change as well: it could be part of the release.
    let new = checkout.path().join("new");
    fs::write(&new, "").unwrap();
    assert!(reasons(&checkout.run(&release).expect(64))[0].contains("work tree differs"));
    fs::remove_file(&new).unwrap();
    assert!(reasons(&checkout.run(&release[..3]).expect(64))[0].contains("needs a release key"));
    checkout.run(&["dist", "--release", "--dry-run", "--unsigned"]).expect(0);
    // A development key does not become a release key by being named.
    fs::create_dir_all(checkout.path().join("target/dist/development")).unwrap();
    let ours = checkout.path().join("target/dist/development/development.secret.asc");
    fs::write(&ours, "").unwrap();
    let refused = finish(&mut checkout.xtask(&["dist", "--release", "--key", ours.to_str().unwrap()])).expect(64);
    assert!(reasons(&refused)[0].contains("for development releases"), "{refused}");
    fs::remove_dir_all(checkout.path().join("target")).unwrap();
    let refused = checkout.run(&[&release[..], &["--passphrase-env", "NO_SUCH_VARIABLE"]].concat()).expect(64);
    assert!(reasons(&refused)[0].contains("NO_SUCH_VARIABLE"), "{refused}");
}

#[test]
fn sources_without_git_cannot_become_a_release_for_customers() {
    let directory = tempfile::tempdir().unwrap();
    let checkout = Checkout { directory };
    fs::create_dir(checkout.path().join("xtask")).unwrap();
    fs::write(checkout.path().join("release.yaml"), "").unwrap();
    let refused = checkout.run(&["dist", "--release", "--unsigned"]).expect(64);
    assert!(reasons(&refused)[0].contains("not a git clone"), "{refused}");
    checkout.run(&["dist", "--dry-run"]).expect(0);
}

#[test]
fn a_missing_configuration_is_known_before_anything_is_built() {
    let checkout = Checkout::new();
    let refused = checkout.run(&["dist", "--config", "other.yaml"]).expect(64);
    assert!(reasons(&refused)[0].contains("other.yaml"), "{refused}");
}

#[test]
fn mistakes_in_the_configuration_have_line_numbers() {
    let unpacked = Release::under_test().unpack();
    let directory = unpacked.scratch("config");
    let file = directory.join("release.yaml");
    let config = [
        "chanel: stable",            // 1
        "sequence: twelve",          // 2
        "source: ftp://example.com", // 3
        "threshold: 0",              // 4
        "files:",                    // 5
        "  - path: ../escape",       // 6
        "    source: missing.md",    // 7
        "images:",                   // 8
        "  - name: backend",         // 9
        "    path: missing.tar",     // 10
    ];
    fs::write(&file, config.join("\n")).unwrap();
    let refused = finish(unpacked.bundle().arg("release-config").arg(&file)).expect(64);
    for (line, part) in [
        (1, "chanel"),
        (2, "sequence"),
        (3, "source"),
        (4, "threshold"),
        (6, "../escape"),
        (7, "missing.md"),
        (10, "missing.tar"),
    ] {
        let place = format!("{}:{line}:", file.display());
        let is_there = refused.stderr.lines().any(|text| text.contains(&place) && text.contains(part));
        assert!(is_there, "no mistake at {place} about {part}: {refused}");
    }
    assert!(refused.stderr.contains("did you mean `channel`?"), "{refused}");
    finish(unpacked.bundle().arg("release-config").arg(directory.join("missing.yaml"))).expect(66);

    let good = finish(unpacked.bundle().arg("release-config").arg(unpacked.config()).arg("--json")).expect(0).json();
    assert_eq!(good["product"], unpacked.manifest["product"]);
    assert_eq!(good["threshold"], unpacked.manifest["threshold"]);
}

#[test]
fn every_command_explains_itself() {
    let checkout = Checkout::new();
    let overview = checkout.run(&["--help"]).expect(0).stdout;
    let names: Vec<&str> = overview
        .split("\nExamples:")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for name in ["dist", "keygen", "reproduce", "test", "ci"] {
        assert!(names.contains(&name), "{name}: {overview}");
    }
    for name in names {
        let help = checkout.run(&[name, "--help"]).expect(0).stdout;
        assert!(help.contains(&format!("Usage: cargo xtask {name}")), "{help}");
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(120), "{name}: a line has {widest:?} characters");
    }
}

#[test]
fn wrong_usage_is_refused() {
    let checkout = Checkout::new();
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["--no-such-flag"],
        &["dist", "--no-such-flag"],
        &["dist", "--target", "riscv"],
        &["dist", "--unsigned", "--key", "k"],
        &["dist", "--threads", "0"],
        &["dist", "--threads", "many"],
        &["reproduce"],
        &["reproduce", "--no-such-flag"],
        &["test", "--no-such-flag"],
        &["ci", "stray"],
    ] {
        let refused = checkout.run(arguments).expect(64);
        assert!(refused.stderr.starts_with("cargo xtask: ") && refused.stdout.is_empty(), "{refused}");
    }
}

#[test]
fn what_nobody_can_rebuild_is_not_rebuilt() {
    let checkout = Checkout::new();
    let unpacked = Release::under_test().unpack();
    let output = unpacked.scratch("output");
    let stage = unpacked.stage();
    finish(unpacked.pack(&stage).arg("--modified").arg("--output-dir").arg(&output)).expect(0);
    let archive = tree::entries(&output).remove(0);
    let reproduce = |archive: &PathBuf| finish(checkout.xtask(&["reproduce"]).arg(archive));
    let refused = reproduce(&archive).expect(64);
    assert!(reasons(&refused)[0].contains("differed from its commit"), "{refused}");
    // Its commit is not in this repository.
    finish(unpacked.pack(&stage).arg("--output-dir").arg(&output)).expect(0);
    let refused = reproduce(&archive).expect(1);
    assert!(refused.stderr.contains("fetch it first"), "{refused}");
    // Not a release at all.
    let refused = reproduce(&checkout.path().join("release.yaml")).expect(1);
    assert!(refused.stderr.contains("is not a release"), "{refused}");
}
