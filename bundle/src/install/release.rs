//! The release that the installer lies in, in a private copy that was verified.
//!
//! Only the copy is used: what is published is what was verified, whatever happens to the directory meanwhile. It has the
//! files that the manifest lists and nothing else. Customers edit `config.json` in place, as it is documented; the copy
//! gets the file as it was signed, so that no secret of theirs is ever published.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use bundle_core::digest::Digest;
use bundle_core::install_config::{Pin, SHIPPED};
use bundle_core::interrupt;
use bundle_core::launcher_sums::LauncherSums;
use bundle_core::manifest::{MANIFEST, MANIFEST_SIGNATURE, MAX_MANIFEST, Manifest};
use bundle_core::private::PrivateRelease;
use bundle_core::signature::{self, CertError, Fingerprint, PinnedCerts};
use bundle_core::verify::{self, Policy};
use tempfile::TempDir;

/// Its name.
pub(crate) const CONFIG: &str = "config.json";
/// Limit of a signature file; the verifier has a tighter one.
const MAX_SIGNATURE: u64 = 1024 * 1024;

/// A private copy of a release directory.
#[derive(Debug)]
pub(crate) struct Copy {
    directory: TempDir,
    /// Files in the top directory that belong to someone else and are not used.
    pub(crate) ignored: Vec<String>,
}

impl Copy {
    /// Copies what the manifest in `source` lists to a fresh directory in `work`.
    ///
    /// # Errors
    /// A file cannot be read or written, is missing, or is in the way.
    pub(crate) fn make(source: &Path, work: &Path) -> Result<Self, verify::Error> {
        let directory = tempfile::Builder::new()
            .prefix(".installing-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(work)
            .map_err(|error| io_error("write", work, error))?;
        let mut copy = Self { directory, ignored: Vec::new() };
        copy.file(source, MANIFEST, 0o644, MAX_MANIFEST as u64)?;
        let bytes = fs::read(copy.path().join(MANIFEST)).map_err(|error| io_error("read", copy.path(), error))?;
        // Not verified yet: it only says what is copied, within its own limits, and to paths that stay inside.
        let manifest = Manifest::from_bytes(&bytes).map_err(verify::Error::Manifest)?;
        let mut known = BTreeSet::from([MANIFEST.to_owned()]);
        let launchers = LauncherSums::of(&manifest).into_iter().map(|sums| sums.signature_name());
        for name in [MANIFEST_SIGNATURE.to_owned()].into_iter().chain(launchers) {
            copy.file(source, &name, 0o644, MAX_SIGNATURE)?;
            known.insert(name);
        }
        for file in &manifest.files {
            let name = file.path.as_str();
            known.insert(name.to_owned());
            for parent in file.path.parents() {
                if known.insert(parent.to_owned()) {
                    let path = copy.path().join(parent);
                    fs::create_dir(&path).map_err(|error| io_error("write", &path, error))?;
                }
            }
            if name == CONFIG && file.sha256 == Digest::of(SHIPPED.as_bytes()) {
                let path = copy.path().join(name);
                fs::write(&path, SHIPPED).map_err(|error| io_error("write", &path, error))?;
                continue;
            }
            copy.file(source, name, file.mode.bits(), file.size)?;
        }
        copy.ignored = not_listed(source, &known)?;
        Ok(copy)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The certificates that are pinned, of which those pinned by fingerprint are taken from the release.
    ///
    /// # Errors
    /// One cannot be read, or is not there.
    pub(crate) fn pinned(&self, pins: &[Pin]) -> Result<PinnedCerts, CertError> {
        let mut certs = Vec::new();
        for pin in pins {
            match pin {
                Pin::File(path) => certs.extend(PinnedCerts::read(&[path])?.certs().iter().cloned()),
                Pin::Fingerprint(fingerprint) => {
                    let path = self.path().join(format!("keys/{fingerprint}.asc"));
                    let found = signature::read_certs(&path)?;
                    let cert = found.into_iter().find(|cert| Fingerprint::of(cert).as_str() == fingerprint);
                    let missing = || CertError::Parse { path, reason: format!("its fingerprint is not {fingerprint}") };
                    certs.push(cert.ok_or_else(missing)?);
                }
            }
        }
        certs.sort_by_key(|cert| Fingerprint::of(cert).as_str().to_owned());
        certs.dedup_by_key(|cert| Fingerprint::of(cert).as_str().to_owned());
        if certs.is_empty() { Err(CertError::None) } else { Ok(PinnedCerts::from_certs(certs)) }
    }

    /// Verifies the copy: steps 7 to 9.
    ///
    /// # Errors
    /// See [`verify::directory`].
    pub(crate) fn verify(self, policy: &Policy<'_>) -> Result<PrivateRelease, verify::Error> {
        PrivateRelease::of_copy(self.directory, policy).map_err(|error| match error {
            verify::Error::File { path, reason } if path == CONFIG => verify::Error::File {
                path,
                reason: format!(
                    "{reason}; this release was packed with a configuration of its own: unpack it again and name yours \
                     with -c FILE"
                ),
            },
            other => other,
        })
    }

    /// Copies one file. Of a longer one it copies one byte more than there should be, so that verification says so.
    fn file(&self, source: &Path, name: &str, mode: u32, size: u64) -> Result<(), verify::Error> {
        let from = source.join(name);
        let missing = |reason: &str| verify::Error::File { path: name.to_owned(), reason: reason.to_owned() };
        let metadata = fs::symlink_metadata(&from).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if name == MANIFEST => {
                missing("it is missing, so this is not the directory of a signed release")
            }
            io::ErrorKind::NotFound => missing("it is missing from the release directory"),
            _ => io_error("read", &from, error),
        })?;
        if !metadata.is_file() {
            return Err(missing("it is not a regular file"));
        }
        let to = self.path().join(name);
        let reader = File::open(&from).map_err(|error| io_error("read", &from, error))?;
        let mut writer = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&to)
            .map_err(|error| io_error("write", &to, error))?;
        interrupt::check().map_err(|error| io_error("read", &from, error))?;
        io::copy(&mut reader.take(size.saturating_add(1)), &mut writer)
            .map_err(|error| io_error("copy", &to, error))?;
        // Whatever the umask is: the verifier compares what the manifest says.
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).map_err(|error| io_error("write", &to, error))
    }
}

/// What is in the release directory and not in the manifest. In the top directory customers keep configurations and
/// certificates; anywhere else it is a sign that something is wrong.
fn not_listed(source: &Path, known: &BTreeSet<String>) -> Result<Vec<String>, verify::Error> {
    let mut ignored = Vec::new();
    let mut left = vec![(source.to_owned(), String::new())];
    while let Some((directory, below)) = left.pop() {
        let list = fs::read_dir(&directory).map_err(|error| io_error("read", &directory, error))?;
        for entry in list {
            let entry = entry.map_err(|error| io_error("read", &directory, error))?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            let is_directory = entry.file_type().map_err(|error| io_error("read", &entry.path(), error))?.is_dir();
            if known.contains(&name) {
                if is_directory {
                    left.push((entry.path(), format!("{name}/")));
                }
            } else if below.is_empty() && !is_directory {
                ignored.push(name.escape_debug().to_string());
            } else {
                let reason = "it is in the release directory but not in the manifest; remove it".to_owned();
                return Err(verify::Error::File { path: name, reason });
            }
        }
    }
    ignored.sort();
    Ok(ignored)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> verify::Error {
    verify::Error::Io { doing, path: path.to_owned(), source }
}
