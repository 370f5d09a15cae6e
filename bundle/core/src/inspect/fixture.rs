//! Small releases for the tests of `inspect` and `diff`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::build_note::fixture::{COMMIT, X86_64, launcher, program};
use crate::contents::Contents;
use crate::image::{Architecture, LauncherImage};
use crate::launcher_sums::LauncherSums;
use crate::manifest::{MANIFEST, MANIFEST_SIGNATURE};
use crate::signing::{NewKey, Signer};
use crate::source::{Commit, Date};
use crate::{pack, release, signature, signing};

pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(crate) fn key(user_id: &str) -> NewKey {
    signing::generate(user_id, YEAR, None, SystemTime::now()).unwrap()
}

pub(crate) fn signer(key: &NewKey) -> Signer {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&key.secret).unwrap();
    Signer::from_file(file.path(), None, SystemTime::now()).unwrap()
}

pub(crate) fn cert(key: &NewKey) -> sequoia_openpgp::Cert {
    signature::certs_from_bytes(&key.certificate).unwrap().remove(0)
}

/// A launcher of this version that carries a worker of the same.
pub(crate) fn launcher_binary(version: &str) -> Vec<u8> {
    let worker = program(X86_64, "spacelift-worker", version, COMMIT).file();
    launcher(X86_64, version, COMMIT, &worker).file()
}

pub(crate) fn launcher_image(version: &str) -> Vec<u8> {
    let image = LauncherImage {
        version: &version.parse().unwrap(),
        commit: &Commit::Known(COMMIT.into()),
        source: &"https://example.com/source".parse().unwrap(),
        date: "1700000000".parse::<Date>().unwrap(),
        launchers: BTreeMap::from([(Architecture::X86_64, launcher_binary(version))]),
    };
    image.build().unwrap().tar
}

/// A release that is about to be packed, and the directory that everything about it is in.
pub(crate) struct Example {
    pub(crate) directory: TempDir,
    pub(crate) release: pack::Release,
}

impl Example {
    pub(crate) fn new(version: &str, files: &[(&str, &[u8])]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stage = directory.path().join("stage");
        for (path, contents) in files {
            let path = stage.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        fs::create_dir_all(&stage).unwrap();
        let release = pack::Release {
            product: "self-hosted".into(),
            version: version.parse().unwrap(),
            sequence: 7,
            channel: "stable".into(),
            development: false,
            commit: COMMIT.into(),
            modified: false,
            source_date: 1_700_000_000,
            source: "https://example.com/source".into(),
            minimum_upgrade_from: None,
            threshold: 1,
            certificates: Vec::new(),
            stage,
            files: Vec::new(),
            images: Vec::new(),
        };
        Self { directory, release }
    }

    /// Packs it and gives the unsigned archive.
    pub(crate) fn pack(&self) -> PathBuf {
        pack::pack(&self.release, self.directory.path(), 1).unwrap().path
    }

    /// Packs and signs it and gives the signed archive.
    pub(crate) fn sign(&self, keys: &[&NewKey]) -> PathBuf {
        let signers: Vec<_> = keys.iter().copied().map(signer).collect();
        release::sign(&self.pack(), self.directory.path(), &signers, SystemTime::now()).unwrap().files.archive
    }

    /// The release in `archive`, unpacked.
    pub(crate) fn unpack(&self, archive: &Path) -> PathBuf {
        let contents = Contents::open(archive).unwrap();
        let root = self.directory.path().join(contents.manifest().root());
        fs::create_dir(&root).unwrap();
        fs::write(root.join(MANIFEST), contents.manifest_bytes()).unwrap();
        if let Some(signature) = contents.signature() {
            fs::write(root.join(MANIFEST_SIGNATURE), signature).unwrap();
        }
        for (sums, signature) in LauncherSums::of(contents.manifest()).iter().zip(contents.launcher_signatures()) {
            fs::write(root.join(sums.signature_name()), signature).unwrap();
        }
        contents
            .for_each(|file, reader| {
                let path = root.join(file.path.as_str());
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::io::copy(reader, &mut fs::File::create(&path)?)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(file.mode.bits()))
            })
            .unwrap();
        root
    }
}
