//! A downloads bucket as a directory: the same keys as paths, the same rules.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bundle_core::digest::Digest;
use bundle_core::interrupt;

use super::object::Object;
use super::{Existing, Put};
use crate::failure::{Failure, Kind};

/// A directory with the layout of a bucket. One process at a time writes to it.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    // The lock lasts as long as the file is open.
    _lock: Option<File>,
}

impl Directory {
    /// Opens `root` for reading.
    pub(crate) fn reading(root: &Path) -> Self {
        Self { root: root.to_owned(), _lock: None }
    }

    /// Makes `root` if it is not there, and takes its lock.
    ///
    /// # Errors
    /// It cannot be made, or another process publishes to it.
    pub(crate) fn writing(root: &Path) -> Result<Self, Failure> {
        let doing = || format!("publish to {}", root.display());
        let failed = |error: io::Error| of_io(doing(), &error);
        fs::create_dir_all(root).map_err(failed)?;
        let lock = File::create(root.join(".lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: Some(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(Failure::new(
                doing(),
                Kind::Busy,
                "another process is publishing to it; run the command again later",
            )),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Writes the object unless there is one of this key.
    pub(crate) fn create(&self, object: &Object) -> Result<Put, Failure> {
        let path = self.root.join(&object.key);
        if path.symlink_metadata().is_ok() {
            return Ok(Put::Exists);
        }
        let failed = |error: io::Error| of_io(format!("write {}", path.display()), &error);
        let file = self.written(object, &path).map_err(failed)?;
        // Does not replace what another process may have put there since.
        match file.persist_noclobber(&path) {
            Ok(_) => sync_parent(&path).map_err(failed).map(|()| Put::Written),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
            Err(error) => Err(failed(error.error)),
        }
    }

    /// Writes the object, in place of what was there.
    pub(crate) fn replace(&self, object: &Object) -> Result<(), Failure> {
        let path = self.root.join(&object.key);
        let failed = |error: io::Error| of_io(format!("write {}", path.display()), &error);
        let file = self.written(object, &path).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        sync_parent(&path).map_err(failed)
    }

    fn written(&self, object: &Object, path: &Path) -> io::Result<tempfile::NamedTempFile> {
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent)?;
        let mut file = tempfile::Builder::new().prefix(".partial-").suffix(".tmp").tempfile_in(parent)?;
        for index in 0..object.parts() {
            interrupt::check()?;
            file.write_all(&object.part(index)?)?;
        }
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.as_file().sync_all()?;
        Ok(file)
    }

    /// What is there under `key`, its digest taken from its bytes.
    pub(crate) fn existing(&self, key: &str) -> Result<Option<Existing>, Failure> {
        let path = self.root.join(key);
        let digest = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(Digest::of_reader),
        };
        let (sha256, size) = digest.map_err(|error| of_io(format!("read {}", path.display()), &error))?;
        Ok(Some(Existing { size, sha256: Some(sha256), etag: None }))
    }

    /// The whole of a small object.
    pub(crate) fn read(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.root.join(key);
        let mut bytes = Vec::new();
        let read = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)),
        };
        let doing = || format!("read {}", path.display());
        read.map_err(|error| of_io(doing(), &error))?;
        if bytes.len() as u64 > limit {
            return Err(Failure::new(doing(), Kind::Wrong, format!("it has more than {limit} bytes")));
        }
        Ok(Some(bytes))
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn of_io(doing: String, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room, and run the command again",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a directory that you may write to"
        }
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => "; it is a file: choose a directory",
        _ => "",
    };
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Full,
        _ => Kind::Wrong,
    };
    Failure::new(doing, kind, format!("{error}{advice}"))
}
