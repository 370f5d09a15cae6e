//! The pictures, one function each.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use integration_tests::aws_emulator::Emulator;
use integration_tests::registry::Registry;
use integration_tests::release::{Release, workspace};
use tempfile::TempDir;

use super::Screen;

/// Plays it.
type Play = fn(&mut Screen) -> Result<()>;

/// Name, title and what happens.
pub(crate) const ALL: [(&str, &str, Play); 4] = [
    ("dist", "Building a signed release", dist),
    ("verify", "Verifying a release, and refusing one that was changed", verify),
    ("install", "Installing a release", install),
    ("demo", "A run, from its trigger to its end", demo),
];

/// What a reader's checkout is called.
const CHECKOUT: &str = "/home/ada/self-hosted";
/// Exit code of an archive that is not the signed one.
const NOT_THE_SIGNED_ONE: i32 = 15;

fn dist(screen: &mut Screen) -> Result<()> {
    screen.call(&workspace().to_string_lossy(), CHECKOUT);
    screen.run("cargo xtask dist", &mut xtask(&["dist"]), 0)
}

fn demo(screen: &mut Screen) -> Result<()> {
    screen.call(&workspace().to_string_lossy(), CHECKOUT);
    screen.run("cargo xtask demo --no-dist --yes --exit", &mut xtask(&["demo", "--no-dist", "--yes", "--exit"]), 0)
}

fn xtask(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).arg("xtask").args(arguments);
    cargo
}

fn verify(screen: &mut Screen) -> Result<()> {
    let release = Release::under_test();
    let downloads = downloads(&release, screen)?;
    let archive = format!("{}.tar.gz", release.root);
    let tool = release.unpack_for(&[std::env::consts::ARCH]);
    let verify = || {
        let mut verify = tool.bundle();
        verify.args(["verify", &archive, "--cert", "development.cert.asc", "--allow-development"]);
        verify.current_dir(downloads.path());
        verify
    };
    let typed = format!("spacelift-bundle verify {archive} --cert development.cert.asc --allow-development");
    screen.run("ls", Command::new("ls").arg("-1").current_dir(downloads.path()), 0)?;
    screen.run(&typed, &mut verify(), 0)?;
    let change =
        ["if=/dev/zero", &format!("of={archive}"), "bs=1", "count=1", "seek=1000000", "conv=notrunc", "status=none"];
    let typed_change = format!("dd {}", change.join(" "));
    screen.run(&typed_change, Command::new("dd").args(change).current_dir(downloads.path()), 0)?;
    screen.run(&typed, &mut verify(), NOT_THE_SIGNED_ONE)
}

fn install(screen: &mut Screen) -> Result<()> {
    let release = Release::under_test();
    let downloads = downloads(&release, screen)?;
    let registry = Registry::start();
    let account = Emulator::start_with_registry(&registry.address());
    let config = "{\n  \"aws_region\": \"eu-west-1\",\n  \"signers\": [\"development.cert.asc\"]\n}\n";
    fs::write(downloads.path().join("my-config.json"), config)?;
    let here = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        account.configure(&mut command);
        command.args(arguments).current_dir(downloads.path());
        command
    };
    let archive = format!("{}.tar.gz", release.root);
    screen.run("cat my-config.json", &mut here("cat", &["my-config.json"]), 0)?;
    screen.run(&format!("tar -zxf {archive}"), &mut here("tar", &["-zxf", &archive]), 0)?;
    let script = format!("./{}/install.sh", release.root);
    // The account is emulated on loopback, without TLS, and the release is one of development.
    let flags = ["-c", "my-config.json", "--yes", "--allow-development", "--allow-http"];
    let typed = format!("{script} {}", flags.join(" "));
    let program = downloads.path().join(&script);
    let program = program.to_str().context("the directory is not named in UTF-8")?;
    screen.run(&typed, &mut here(program, &flags), 0)
}

/// What a customer has downloaded, in a directory of its own.
fn downloads(release: &Release, screen: &mut Screen) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for file in [&release.archive, &release.sums, &release.signature, &release.certificate] {
        fs::copy(file, directory.path().join(name(file)?))
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    screen.call(&directory.path().to_string_lossy(), "/home/ada/downloads");
    Ok(directory)
}

fn name(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().context("a file has a name")
}
