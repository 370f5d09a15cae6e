//! A vendor who releases one small version after another.
//!
//! Binaries are files that look like programs to a verifier and do nothing, so a release of any version is made in a
//! second. Everything else is what ships: configuration, scripts, templates, image, signatures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::program;
use integration_tests::release::workspace;
use integration_tests::run::finish;
use tempfile::TempDir;

/// What is shared with the releases of the attacks.
mod release {
    pub(super) const VERSION: &str = "v1.2.3";
    pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
}

#[path = "../attacks/elf.rs"]
#[expect(dead_code, reason = "attacks exchange more than a vendor does")]
mod elf;

use elf::{AARCH64, Program, X86_64};

/// What every release of this vendor says about its time.
const SOURCE_DATE: &str = "1717200000";
const SOURCE: &str = "https://example.com/source";

/// Somebody who makes releases.
pub(crate) struct Vendor {
    directory: TempDir,
    /// The certificate that customers pin.
    pub(crate) certificate: PathBuf,
    /// Its fingerprint.
    pub(crate) fingerprint: String,
}

/// What differs between releases.
#[derive(Clone, Copy)]
pub(crate) struct Offer<'a> {
    pub(crate) version: &'a str,
    pub(crate) sequence: u64,
    pub(crate) minimum_upgrade_from: Option<&'a str>,
    pub(crate) development: bool,
    /// Bytes that its launchers have at least.
    pub(crate) launcher_size: usize,
}

impl<'a> Offer<'a> {
    pub(crate) fn new(version: &'a str, sequence: u64) -> Self {
        Self { version, sequence, minimum_upgrade_from: None, development: false, launcher_size: 0 }
    }
}

impl Vendor {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut keygen = bundle();
        keygen.args(["keygen", "--json", "--no-passphrase", "--name", "vendor", "--user-id", "Vendor <v@example.com>"]);
        let made = finish(keygen.arg("--output").arg(directory.path())).expect(0).json();
        let certificate = directory.path().join("vendor.cert.asc");
        Self { directory, certificate, fingerprint: made["fingerprint"].as_str().unwrap().to_owned() }
    }

    /// A release, unpacked as a customer does it, in a directory with the version's name.
    pub(crate) fn release(&self, offer: Offer<'_>) -> PathBuf {
        let (version, work) = (offer.version, self.directory.path().join(offer.version));
        let stage = work.join("stage");
        fs::create_dir_all(stage.join("container-images")).unwrap();
        let mut launchers = Vec::new();
        for (machine, architecture, suffix) in [(X86_64, "x86_64", ""), (AARCH64, "aarch64", "-aarch64")] {
            let of_version = |program: Program| program.note(|note| note["version"] = version.into());
            let worker = of_version(Program::new(machine, "spacelift-worker")).file();
            let launcher = of_version(Program::launcher_with(machine, &worker));
            let launcher = launcher.note(|note| note["worker"]["version"] = version.into());
            let mut file = launcher.file();
            file.resize(file.len().max(offer.launcher_size), 0);
            let path = write(&stage, &format!("bin/spacelift-launcher{suffix}"), &file);
            write(
                &stage,
                &format!("bin/spacelift-bundle{suffix}"),
                &of_version(Program::new(machine, "spacelift-bundle")).file(),
            );
            launchers.push(format!("{architecture}={}", path.display()));
        }
        for file in ["config.json", "cloudformation/infra-s3.yaml", "cloudformation/infra-ecr.yaml"] {
            write(&stage, file, &fs::read(workspace().join(file)).unwrap());
        }
        for script in ["install.sh", "uninstall.sh"] {
            write(&stage, script, &fs::read(workspace().join("scripts").join(script)).unwrap());
        }
        let mut image = bundle();
        image.args(["image", "--version", version, "--commit", release::COMMIT, "--source-date", SOURCE_DATE]);
        image.args(["--source", SOURCE]).args(launchers.iter().flat_map(|launcher| ["--launcher", launcher]));
        let tar = work.join("image.tar");
        finish(image.arg("--output").arg(&tar)).expect(0);
        fs::rename(&tar, stage.join("container-images/spacelift-launcher.tar")).unwrap();

        let mut config = format!(
            "product: self-hosted\nchannel: stable\nsequence: {}\nsource: {SOURCE}\nthreshold: 1\n",
            offer.sequence
        );
        if let Some(minimum) = offer.minimum_upgrade_from {
            config.push_str(&format!("minimum_upgrade_from: {minimum}\n"));
        }
        let config = write(&work, "release.yaml", config.as_bytes());
        let mut pack = bundle();
        pack.args(["pack", "--version", version, "--commit", release::COMMIT, "--source-date", SOURCE_DATE]);
        pack.arg("--stage").arg(&stage).arg("--config").arg(config).arg("--output-dir").arg(&work);
        // The certificate ships with the release; that is where one that is pinned by its fingerprint comes from.
        pack.arg("--cert").arg(&self.certificate);
        if offer.development {
            pack.arg("--development");
        }
        finish(&mut pack).expect(0);
        let archive = work.join(format!("self-hosted-{version}"));
        let mut sign = bundle();
        sign.arg("sign").arg(format!("{}.unsigned.tar.gz", archive.display()));
        finish(sign.arg("--key").arg(self.directory.path().join("vendor.signing.asc"))).expect(0);
        let mut verify = bundle();
        verify.arg("verify").arg(format!("{}.tar.gz", archive.display())).arg("--cert").arg(&self.certificate);
        finish(verify.arg("--allow-development").arg("--unpack").arg(&archive)).expect(0);
        fs::remove_dir_all(stage).unwrap();
        archive
    }
}

/// The release tool.
pub(crate) fn bundle() -> Command {
    let mut bundle = Command::new(program::bundle());
    bundle.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    bundle
}

fn write(directory: &Path, name: &str, contents: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    path
}
