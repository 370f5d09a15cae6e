//! Output files that appear under their final name only when they are complete.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use tempfile::NamedTempFile;

/// A file that is written beside its final place and moved there by [`OutputFile::commit`]. Dropped before that, by an
/// error or an interruption, it leaves nothing.
pub struct OutputFile {
    file: BufWriter<Written>,
    path: PathBuf,
}

/// Bytes after which a file begins to go to disk while more is written: waiting for all of it at the end costs a large archive
/// as much time as hashing it does.
const STEP: usize = 16 * 1024 * 1024;

struct Written {
    file: NamedTempFile,
    /// Bytes since the disk was last asked to take what there is.
    since: usize,
    early: Option<Early>,
}

/// A thread that puts what was written to disk.
struct Early {
    wanted: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Early {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (wanted, requests) = sync_channel(1);
        let thread = std::thread::spawn(move || requests.iter().try_for_each(|()| file.sync_data()));
        Ok(Self { wanted, thread })
    }

    /// The kernel reports a failure of the disk once, so this one may not be lost.
    fn finish(self) -> io::Result<()> {
        drop(self.wanted);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Written {
    fn sync_all(&mut self) -> io::Result<()> {
        let early = self.early.take().map_or(Ok(()), Early::finish);
        self.file.as_file().sync_all().and(early)
    }
}

impl Write for Written {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.since += written;
        if self.since >= STEP {
            self.since = 0;
            if self.early.is_none() {
                self.early = Some(Early::start(self.file.as_file())?);
            }
            // One that is still at it takes this along the next time.
            let _ = self.early.as_ref().map(|early| early.wanted.try_send(()));
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
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
        let file = Written { file, since: 0, early: None };
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
        self.file.get_mut().sync_all()
    }

    /// Writes everything to disk and gives the file its name, replacing what was there.
    ///
    /// # Errors
    /// The disk is full, or the name cannot be taken. Nothing is left then.
    pub fn commit(self) -> io::Result<()> {
        let mut written = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        written.sync_all()?;
        written.file.persist(&self.path).map_err(|error| error.error)?;
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
