//! A verified release in a private directory: what publishing and installing work from.
//!
//! What is verified has to be what is used. The release that the caller named may be on a share, or be exchanged while it
//! is read; so it is copied first, and the copy is what is verified, and all that is used from then on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::manifest::{MAX_FILES, MAX_TOTAL, Manifest, Mode, ReleasePath};
use crate::names;
use crate::verify::{self, Error, Files, Policy, SignedArchive, Verified};
use crate::{interrupt, sums};

/// Directories in a release, beside its files: more than this is not a release.
const MAX_ENTRIES: usize = 2 * MAX_FILES;

/// A verified release in a directory that only this user can reach, and that is removed in the end.
#[derive(Debug)]
pub struct PrivateRelease {
    // Removed when this is dropped.
    _directory: TempDir,
    root: PathBuf,
    verified: Verified,
    archive: Option<SignedArchive>,
}

impl PrivateRelease {
    /// Verifies the release at `path`, an archive or a directory, as [`verify::open`], [`verify::unpack`] and
    /// [`verify::directory`] do. `work` is a directory on a disk with room for twice its size.
    ///
    /// In a directory, the names that a downloads bucket adds to a release (launchers under their bucket names, sums, the
    /// archive) are passed over and not copied, so a bucket's copy of a release is a release.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(path: &Path, policy: &Policy<'_>, work: &Path, threads: usize) -> Result<Self, Error> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { doing, path, source }
        };
        let directory = tempfile::Builder::new()
            .prefix("release-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(work)
            .map_err(failed("make a private directory in", work))?;
        let root = directory.path().join("release");
        let metadata = fs::metadata(path).map_err(failed("read", path))?;
        if metadata.is_dir() {
            let mut copy = Copy { entries: 0, bytes: 0 };
            fs::create_dir(&root).map_err(failed("write", &root))?;
            copy.directory(path, &root, "")?;
            let verified = verify::directory(&root, policy)?;
            return Ok(Self { _directory: directory, root, verified, archive: None });
        }
        let archive = verify::open(&Files::beside(path), policy, work)?;
        let verified = verify::unpack(&archive, policy, threads, &root)?;
        Ok(Self { _directory: directory, root, verified, archive: Some(archive) })
    }

    /// Verifies a release that the caller copied to a private directory itself, file by file.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of_copy(directory: TempDir, policy: &Policy<'_>) -> Result<Self, Error> {
        let root = directory.path().to_owned();
        let verified = verify::directory(&root, policy)?;
        Ok(Self { _directory: directory, root, verified, archive: None })
    }

    /// The release directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// What verification found.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        self.verified.manifest()
    }

    /// The archive, if the release came as one.
    pub fn archive(&self) -> Option<&SignedArchive> {
        self.archive.as_ref()
    }
}

/// Whether a downloads bucket adds a file of this name to a release.
fn is_of_a_bucket(name: &str) -> bool {
    if names::is_signature_name(name) {
        return false;
    }
    let of_sums =
        name.ends_with(sums::SUFFIX) || name.ends_with(&format!("{}{}", sums::SUFFIX, sums::SIGNATURE_SUFFIX));
    of_sums || name.ends_with(".tar.gz") || matches!(name, "spacelift-launcher-x86_64" | "spacelift-launcher-aarch64")
}

struct Copy {
    entries: usize,
    bytes: u64,
}

impl Copy {
    fn directory(&mut self, from: &Path, to: &Path, below: &str) -> Result<(), Error> {
        let read = |source| Error::Io { doing: "read", path: from.to_owned(), source };
        for entry in fs::read_dir(from).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            if below.is_empty() && name.to_str().is_some_and(is_of_a_bucket) {
                continue;
            }
            self.entries += 1;
            let kind = entry.file_type().map_err(read)?;
            let path = entry.path();
            let refuse = |reason: &str| Error::File { path: path.display().to_string(), reason: reason.to_owned() };
            if self.entries > MAX_ENTRIES {
                return Err(refuse("the directory holds more than any release"));
            }
            let target = to.join(&name);
            let inside = format!("{below}{}", name.to_string_lossy());
            if kind.is_dir() {
                fs::create_dir(&target).map_err(|source| Error::Io { doing: "write", path: target.clone(), source })?;
                self.directory(&path, &target, &format!("{inside}/"))?;
            } else if kind.is_file() {
                self.file(&path, &target, &inside)?;
            } else {
                return Err(refuse("it is neither a regular file nor a directory"));
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path, inside: &str) -> Result<(), Error> {
        let read = |source| Error::Io { doing: "read", path: from.to_owned(), source };
        let write = |source| Error::Io { doing: "write", path: to.to_owned(), source };
        // What was listed as a file may have become something else since; no link is followed and no pipe waited for.
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
        let source = OpenOptions::new().read(true).custom_flags(flags).open(from).map_err(read)?;
        let metadata = source.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is no regular file any more")));
        }
        let mut target = File::create_new(to).map_err(write)?;
        let left = MAX_TOTAL.saturating_sub(self.bytes);
        let mut source = source.take(left.saturating_add(1));
        interrupt::check().map_err(read)?;
        let copied = io::copy(&mut source, &mut target).map_err(write)?;
        self.bytes += copied;
        if copied > left {
            return Err(read(io::Error::other("the directory is larger than any release")));
        }
        // A bucket and a share keep no modes; which one a file has follows from its path.
        let mode = inside.parse::<ReleasePath>().map_or(0o600, |path| Mode::of(&path).bits());
        target.set_permissions(fs::Permissions::from_mode(mode)).map_err(write)
    }
}
