//! The release under test.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::run::{self, finish, succeed};

/// The architectures that are released.
pub const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// A release as `cargo xtask dist` writes it.
#[derive(Debug, Clone)]
pub struct Release {
    /// The directory that it is in.
    pub directory: PathBuf,
    /// The name of the directory in the archive.
    pub root: String,
    /// Its version, such as v1.2.3.
    pub version: String,
    /// The archive.
    pub archive: PathBuf,
    /// The archive before it was signed.
    pub unsigned: PathBuf,
    /// The file with the archive's SHA-256.
    pub sums: PathBuf,
    /// Their signature.
    pub signature: PathBuf,
    /// The signer's certificate.
    pub certificate: PathBuf,
}

impl Release {
    /// The release in the directory that the environment variable `SPACELIFT_DIST_DIR` names, as `cargo xtask test` sets it,
    /// or else in `target/dist`.
    ///
    /// # Panics
    /// There is none.
    pub fn under_test() -> Self {
        let directory =
            env::var_os("SPACELIFT_DIST_DIR").map_or_else(|| workspace().join("target/dist"), PathBuf::from);
        let version = concat!("v", env!("CARGO_PKG_VERSION")).to_owned();
        let release = Self::in_directory(&directory, &version, &directory.join("development/development.cert.asc"));
        for file in [&release.archive, &release.unsigned, &release.sums, &release.signature, &release.certificate] {
            assert!(file.is_file(), "there is no {}; `cargo xtask test` makes a release and tests it", file.display());
        }
        release
    }

    /// The release of this version in a directory.
    pub fn in_directory(directory: &Path, version: &str, certificate: &Path) -> Self {
        let root = format!("self-hosted-{version}");
        let file = |suffix: &str| directory.join(format!("{root}{suffix}"));
        Self {
            archive: file(".tar.gz"),
            unsigned: file(".unsigned.tar.gz"),
            sums: file(".tar.gz_SHA256SUMS"),
            signature: file(".tar.gz_SHA256SUMS.sig"),
            certificate: certificate.to_owned(),
            directory: directory.to_owned(),
            version: version.to_owned(),
            root,
        }
    }

    /// Unpacks the archive with `tar`.
    ///
    /// # Panics
    /// It cannot be unpacked, or misses an architecture.
    pub fn unpack(&self) -> Unpacked {
        self.unpack_for(&ARCHITECTURES)
    }

    /// The same, of a release that need not have all architectures.
    ///
    /// # Panics
    /// It cannot be unpacked, or misses one of these.
    pub fn unpack_for(&self, architectures: &[&str]) -> Unpacked {
        let directory = tempfile::tempdir().unwrap();
        // Others must be able to run what is in it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        succeed(run::tool("tar").arg("-zxf").arg(&self.archive).current_dir(directory.path()));
        let root = directory.path().join(&self.root);
        let manifest: Value = serde_json::from_slice(&fs::read(root.join("manifest.json")).unwrap()).unwrap();
        for architecture in architectures {
            let has_it = manifest["targets"].as_array().unwrap().iter().any(|target| target == architecture);
            assert!(has_it, "the release has nothing for {architecture}; `cargo xtask test` makes one that has");
        }
        Unpacked { directory, root, manifest }
    }
}

/// An unpacked release.
#[derive(Debug)]
pub struct Unpacked {
    directory: TempDir,
    /// The directory of the release.
    pub root: PathBuf,
    /// Its manifest.
    pub manifest: Value,
}

impl Unpacked {
    /// `spacelift-bundle` as it ships, for this machine.
    pub fn bundle(&self) -> Command {
        let mut bundle = Command::new(self.program("spacelift-bundle", env::consts::ARCH));
        // Backtraces are for developers; they would only make what is compared here longer.
        bundle.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        bundle
    }

    /// Where a program is.
    pub fn program(&self, name: &str, architecture: &str) -> PathBuf {
        let suffix = if architecture == "x86_64" { "" } else { "-aarch64" };
        self.root.join(format!("bin/{name}{suffix}"))
    }

    /// A program, under an emulator where this machine needs one.
    pub fn runnable(&self, name: &str, architecture: &str) -> Command {
        let program = self.program(name, architecture);
        if architecture == env::consts::ARCH {
            return Command::new(program);
        }
        let mut emulator = run::tool(&format!("qemu-{architecture}-static"));
        emulator.arg(program);
        emulator
    }

    /// A field of the manifest as text.
    ///
    /// # Panics
    /// It is not there.
    pub fn field(&self, name: &str) -> String {
        match &self.manifest[name] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => panic!("{name} of the manifest is {other}"),
        }
    }

    /// The files that the manifest lists, by path.
    pub fn files(&self) -> BTreeMap<String, &Value> {
        let files = self.manifest["files"].as_array().unwrap();
        files.iter().map(|file| (file["path"].as_str().unwrap().to_owned(), file)).collect()
    }

    /// A directory inside the temporary one, made anew.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// What `spacelift-bundle pack` was given when this release was made: the files that it did not write itself.
    ///
    /// # Panics
    /// A file cannot be copied.
    pub fn stage(&self) -> PathBuf {
        let stage = self.directory.path().join("stage");
        succeed(run::tool("cp").args(["-a", "--"]).arg(&self.root).arg(&stage));
        fs::remove_dir_all(stage.join("keys")).unwrap();
        for file in ["manifest.json", "manifest.json.sig", "version"] {
            fs::remove_file(stage.join(file)).unwrap();
        }
        for architecture in ["x86_64", "aarch64"] {
            fs::remove_file(stage.join(format!("spacelift-launcher-{architecture}_SHA256SUMS.sig"))).unwrap();
        }
        // Packing put the signers into it.
        let template = "cloudformation/workerpool.yaml";
        fs::copy(workspace().join(template), stage.join(template)).unwrap();
        stage
    }

    /// The release configuration that gives this manifest.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn config(&self) -> PathBuf {
        let path = self.directory.path().join("release.yaml");
        let mut text = String::new();
        for name in ["product", "channel", "sequence", "source", "threshold", "minimum_upgrade_from"] {
            if self.manifest.get(name).is_some() {
                text.push_str(&format!("{name}: {}\n", self.field(name)));
            }
        }
        fs::write(&path, text).unwrap();
        path
    }

    /// `spacelift-bundle pack` for a stage, with everything but the output directory, and not as a development release.
    pub fn pack(&self, stage: &Path) -> Command {
        self.pack_with(stage, &self.config())
    }

    /// As [`Unpacked::pack`], with another release configuration.
    pub fn pack_with(&self, stage: &Path, config: &Path) -> Command {
        let mut pack = self.bundle();
        pack.arg("pack").arg("--stage").arg(stage).arg("--config").arg(config);
        self.describe(&mut pack);
        pack
    }

    /// Makes a key with `spacelift-bundle keygen`.
    ///
    /// # Panics
    /// It is refused.
    pub fn keygen(&self, directory: &Path, name: &str, arguments: &[&str]) -> Key {
        let mut keygen = self.bundle();
        keygen.args(["keygen", "--json", "--name", name, "--output"]).arg(directory).args(arguments);
        if !arguments.contains(&"--rotate") {
            keygen.arg("--user-id").arg(format!("{name} <{name}@example.com>"));
        }
        let made = finish(&mut keygen).expect(0).json();
        let file = |kind: &str| directory.join(format!("{name}.{kind}.asc"));
        Key {
            secret: file("secret"),
            signing: file("signing"),
            certificate: file("cert"),
            revocation: file("revocation"),
            fingerprint: made["fingerprint"].as_str().unwrap().to_owned(),
        }
    }

    /// Version, commit and date, as `spacelift-bundle` takes them.
    pub fn describe(&self, command: &mut Command) {
        for (flag, field) in [("--version", "version"), ("--commit", "commit"), ("--source-date", "source_date")] {
            command.arg(flag).arg(self.field(field));
        }
    }

    /// An unsigned release for customers, with the same files, in `output`.
    ///
    /// # Panics
    /// It cannot be packed.
    pub fn repacked(&self, output: &Path) -> PathBuf {
        let stage = self.stage();
        finish(self.pack(&stage).arg("--output-dir").arg(output)).expect(0);
        fs::remove_dir_all(stage).unwrap();
        output.join(format!("{}.unsigned.tar.gz", self.root.file_name().unwrap().to_str().unwrap()))
    }
}

/// The files of a key.
#[derive(Debug)]
pub struct Key {
    /// Everything.
    pub secret: PathBuf,
    /// The signing subkey.
    pub signing: PathBuf,
    /// What customers pin.
    pub certificate: PathBuf,
    /// What is published when the key is lost.
    pub revocation: PathBuf,
    /// The fingerprint of the certificate.
    pub fingerprint: String,
}

/// Bytes that do not compress, the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..length / 8).flat_map(|_| {
        // Xorshift: fast, and gzip finds nothing in it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// The directory of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
