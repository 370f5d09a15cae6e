//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that is written beside its final place and moved there by [`OutputFile::commit`]. Dropped before that, by an
/// error or an interruption, it leaves nothing.
pub struct OutputFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl OutputFile {
    /// Begins a file that will be `path`, readable by everyone whatever the umask.
    ///
    /// # Errors
    /// The directory is missing or cannot be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::with_mode(path, 0o644)
    }

    /// As [`OutputFile::create`], for secrets: readable by the owner alone, from the first byte on.
    ///
    /// # Errors
    /// As [`OutputFile::create`].
    pub fn create_private(path: &Path) -> io::Result<Self> {
        Self::with_mode(path, 0o600)
    }

    fn with_mode(path: &Path, mode: u32) -> io::Result<Self> {
        // Renaming over a device or a directory would replace it: as root, `--output /dev/null` would take it from everyone.
        if fs::symlink_metadata(path).is_ok_and(|existing| !existing.is_file() && !existing.is_symlink()) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is not a regular file stands there; name another output file",
            ));
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new().prefix(".partial-").suffix(".tmp").tempfile_in(directory)?;
        // The temporary file is private until here; its mode does not pass through the umask.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        Ok(Self { file: BufWriter::with_capacity(1024 * 1024, file), path: path.to_owned() })
    }

    /// Where to write to.
    pub fn writer(&mut self) -> &mut impl Write {
        &mut self.file
    }

    /// Writes everything to disk, still without a name. After that [`OutputFile::commit`] needs no more room, so that of
    /// several files either all get their names or none does.
    ///
    /// # Errors
    /// The disk is full.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().as_file().sync_all()
    }

    /// Writes everything to disk and gives the file its name, replacing what was there.
    ///
    /// # Errors
    /// The disk is full, or the name cannot be taken. Nothing is left then.
    pub fn commit(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        sync_parent(&self.path)
    }

    /// Writes `contents` to `path` as one step.
    ///
    /// # Errors
    /// As [`OutputFile::create`] and [`OutputFile::commit`].
    pub fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
        let mut file = Self::create(path)?;
        file.writer().write_all(contents)?;
        file.commit()
    }
}

/// Makes a rename in `path`'s directory survive a power cut.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Removes `path` if it is there.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_file_that_was_not_committed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut file = OutputFile::create(&path).unwrap();
        file.writer().write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        OutputFile::write(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_a_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        assert!(OutputFile::create(Path::new("/dev/null")).is_err());
        assert!(OutputFile::create(directory.path()).is_err());
    }

    #[test]
    fn secrets_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        OutputFile::create_private(&path).unwrap().commit().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
