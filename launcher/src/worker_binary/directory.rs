//! Directories that nobody else can change, and files that appear in them whole.
//!
//! Every step is taken relative to an open directory, so what was checked is what is used, even while somebody renames
//! things in between.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::{Error, Untrusted};

/// Container engines run as root and runs as other users: both must be able to get through.
const DIRECTORY_MODE: u32 = 0o755;

/// Files under this prefix are being written, or were when their launcher was killed.
const INCOMING: &str = ".incoming-";

/// Names are free unless launchers in several containers, each process 1 of its own, share the directory.
const MAX_INCOMING: u32 = 1000;

/// An open directory. Nobody but root and the launcher's own user can exchange anything on the way to it.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// What [`Incoming::publish`] does with a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// Leaves it: another launcher was faster, and its file may be in use already.
    Keep,
    /// Puts the new file in its place.
    Replace,
}

/// Whether a file of `owner` is as good as the launcher's own. Root could change the launcher itself.
pub(super) fn is_trusted_owner(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

/// Takes others' right to write away from a volume that is empty and this user's own. Orchestrators make such volumes writable
/// for everyone (an emptyDir of Kubernetes), because they do not know who will use them.
pub(super) fn close_new_volume(path: &Path) -> Result<(), Error> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
    };
    // What cannot be opened here is not such a volume, and is judged by whoever opens it in earnest.
    let Some(Ok(above)) = path.parent().map(open) else { return Ok(()) };
    let Ok(volume) = open(path) else { return Ok(()) };
    let look = |fd: &OwnedFd| rustix::fs::fstat(fd).map_err(|error| failed("look at", path, error));
    let (above, Stat { st_uid, st_mode, st_dev, .. }) = (look(&above)?, look(&volume)?);
    let is_own_volume = st_uid == rustix::process::geteuid().as_raw() && st_dev != above.st_dev;
    if !is_own_volume || judge(true, st_uid, st_mode).is_ok() || !is_empty(&volume) {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(st_mode & 0o755);
    // What somebody made in between is there still, and is judged like everything else.
    rustix::fs::fchmod(&volume, mode).map_err(|error| failed("set the mode of", path, error))
}

fn is_empty(directory: &OwnedFd) -> bool {
    Dir::read_from(directory).is_ok_and(|entries| {
        // The last one is what file systems of volumes come with.
        entries.flatten().all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found"))
    })
}

/// Whether others could exchange what is in a directory of this owner and mode.
fn judge(owner_is_trusted: bool, owner: u32, mode: u32) -> Result<(), Untrusted> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    // In a sticky directory, such as /tmp, everyone can make files and only their owner can rename or remove them.
    const STICKY: u32 = 0o1000;
    if !owner_is_trusted {
        Err(Untrusted::Owner(owner))
    } else if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        Err(Untrusted::WritableByOthers(mode & 0o7777))
    } else {
        Ok(())
    }
}

impl Directory {
    /// Opens `path`, and makes what does not exist of it. Symbolic links in the part that exists are followed once, and
    /// everything after that goes by the path without links.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let (existing, missing) = resolve(path)?;
        if missing.is_empty() {
            close_new_volume(&existing)?;
        }
        let root = Path::new("/");
        let fd = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed("open", root, error))?;
        let mut directory = Self::checked(fd, root.to_owned())?;
        for component in existing.components() {
            if let Component::Normal(name) = component {
                directory = directory.open_child(name)?;
            }
        }
        for name in missing {
            directory = directory.child(name)?;
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory `name` in this one, and makes it when it does not exist.
    pub(super) fn child(&self, name: impl AsRef<OsStr>) -> Result<Self, Error> {
        let name = name.as_ref();
        match self.open_child(name) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            // The umask may have taken rights away.
            Ok(()) => {
                let child = self.open_child(name)?;
                rustix::fs::fchmod(child.readable()?, Mode::from_raw_mode(DIRECTORY_MODE))
                    .map_err(|error| failed("set the mode of", &path, error))?;
                self.sync()?;
                Ok(child)
            }
            // Another launcher made it just now.
            Err(Errno::EXIST) => self.open_child(name),
            Err(error) => Err(failed("create the directory", &path, error)),
        }
    }

    fn open_child(&self, name: &OsStr) -> Result<Self, Error> {
        let path = self.path.join(name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Self::checked(fd, path),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let reason = match self.file_type(name) {
                    Ok(FileType::Symlink) => Untrusted::SymbolicLink,
                    _ => Untrusted::NotADirectory,
                };
                Err(Error::Untrusted { path, reason })
            }
            Err(error) => Err(failed("open", &path, error)),
        }
    }

    fn checked(fd: OwnedFd, path: PathBuf) -> Result<Self, Error> {
        let Stat { st_uid, st_mode, .. } = rustix::fs::fstat(&fd).map_err(|error| failed("look at", &path, error))?;
        match judge(is_trusted_owner(st_uid), st_uid, st_mode) {
            Ok(()) => Ok(Self { fd, path }),
            Err(reason) => Err(Error::Untrusted { path, reason }),
        }
    }

    fn file_type(&self, name: &OsStr) -> rustix::io::Result<FileType> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// The same directory, opened for what takes more than the right to pass through.
    fn readable(&self) -> Result<OwnedFd, Error> {
        rustix::fs::openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed("open", &self.path, error))
    }

    /// Brings the names in this directory to disk.
    fn sync(&self) -> Result<(), Error> {
        match rustix::fs::fsync(self.readable()?) {
            // Some network and FUSE file systems have nothing to bring to disk here and say so.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(failed("flush to disk", &self.path, error)),
        }
    }

    /// Opens the file `name` for reading; `None` when there is none.
    pub(super) fn open_file(&self, name: &str) -> Result<Option<File>, Error> {
        // Without NONBLOCK, a named pipe in the file's place would hold the launcher up for good.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(Error::Untrusted { path: self.path.join(name), reason: Untrusted::SymbolicLink }),
            // What opening a socket gives.
            Err(Errno::NXIO) => Err(Error::Untrusted { path: self.path.join(name), reason: Untrusted::NotAFile }),
            Err(error) => Err(failed("open", &self.path.join(name), error)),
        }
    }

    /// Starts a file that has no final name yet. It is gone with the value unless it is published.
    pub(super) fn create_incoming(&self) -> Result<Incoming<'_>, Error> {
        let in_use = self.mark_in_use()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut number = 0;
        loop {
            let name = format!("{INCOMING}{}-{number}", std::process::id());
            match rustix::fs::openat(&self.fd, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(fd) => {
                    return Ok(Incoming { directory: self, name, file: fd.into(), renamed: false, _in_use: in_use });
                }
                Err(Errno::EXIST) if number < MAX_INCOMING => number += 1,
                Err(error) => return Err(failed("create", &self.path.join(name), error)),
            }
        }
    }

    /// Removes what killed launchers left behind, and marks the directory as one in which a file is being written for
    /// as long as the returned descriptor lives.
    ///
    /// The mark is a shared lock, so launchers do not wait for each other. Only who gets the lock exclusively, alone at
    /// this moment, can know that every incoming file is abandoned.
    fn mark_in_use(&self) -> Result<OwnedFd, Error> {
        let fd = self.readable()?;
        // Locks do not work on every network file system. Then abandoned files stay, and nothing else changes.
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            self.remove_abandoned(&fd);
        }
        let _ = rustix::fs::flock(&fd, FlockOperation::LockShared);
        Ok(fd)
    }

    /// What cannot be removed does no harm, so failing to is no error.
    fn remove_abandoned(&self, fd: &OwnedFd) {
        let Ok(entries) = Dir::read_from(fd) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_bytes().starts_with(INCOMING.as_bytes()) {
                let _ = rustix::fs::unlinkat(&self.fd, entry.file_name(), AtFlags::empty());
            }
        }
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    directory: &'a Directory,
    name: String,
    file: File,
    renamed: bool,
    _in_use: OwnedFd,
}

impl Incoming<'_> {
    /// Writes the whole file and brings it to disk.
    pub(super) fn write(&self, content: &[u8], mode: u32) -> Result<(), Error> {
        let path = self.directory.path.join(&self.name);
        let io = |action| {
            let path = path.clone();
            move |source| Error::Io { action, path, source }
        };
        (&self.file).write_all(content).map_err(io("write"))?;
        // Not at creation, where the umask would have its say.
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))
            .map_err(|error| failed("set the mode of", &path, error))?;
        // Before it gets its name: after a power failure there must be no empty file under that name.
        self.file.sync_all().map_err(io("flush to disk"))
    }

    /// Gives the file its final name.
    pub(super) fn publish(mut self, name: &str, existing: Existing) -> Result<(), Error> {
        let directory = &self.directory.fd;
        let mut renamed = match existing {
            Existing::Replace => rustix::fs::renameat(directory, &self.name, directory, name),
            Existing::Keep => rustix::fs::renameat_with(directory, &self.name, directory, name, RenameFlags::NOREPLACE),
        };
        // A file system without the second kind of rename. Replacing another launcher's file by the same content costs
        // that launcher no more than another attempt.
        if let Err(Errno::INVAL | Errno::NOSYS) = renamed {
            renamed = rustix::fs::renameat(directory, &self.name, directory, name);
        }
        match renamed {
            Ok(()) => self.renamed = true,
            Err(Errno::EXIST) if existing == Existing::Keep => {}
            Err(error) => return Err(failed("create", &self.directory.path.join(name), error)),
        }
        self.directory.sync()
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        // After a rename the old name is free, and another launcher may be using it by now.
        if !self.renamed {
            let _ = rustix::fs::unlinkat(&self.directory.fd, &self.name, AtFlags::empty());
        }
    }
}

/// The part of `path` that exists, without symbolic links, and the names below it that do not.
fn resolve(path: &Path) -> Result<(PathBuf, Vec<OsString>), Error> {
    let io = |action, source| Error::Io { action, path: path.to_owned(), source };
    let mut existing = std::path::absolute(path).map_err(|error| io("use", error))?;
    let mut missing = Vec::new();
    loop {
        match fs::canonicalize(&existing) {
            Ok(existing) => {
                missing.reverse();
                return Ok((existing, missing));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // `..` below something that does not exist leads nowhere.
                let Some(name) = existing.file_name() else { return Err(io("find", error)) };
                missing.push(name.to_owned());
                existing.pop();
            }
            Err(error) => return Err(io("find", error)),
        }
    }
}

fn failed(action: &'static str, path: &Path, error: Errno) -> Error {
    Error::Io { action, path: path.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_owners_and_modes_pass() {
        for mode in [0o755, 0o700, 0o711, 0o555, 0o2755, 0o1777, 0o1775, 0o3777] {
            assert_eq!(judge(true, 0, 0o040_000 | mode), Ok(()), "{mode:o}");
            assert_eq!(judge(false, 7, mode), Err(Untrusted::Owner(7)), "{mode:o}");
        }
        for mode in [0o777, 0o775, 0o757, 0o702, 0o720, 0o2770] {
            assert_eq!(judge(true, 0, 0o040_000 | mode), Err(Untrusted::WritableByOthers(mode)), "{mode:o}");
        }
    }

    #[test]
    fn what_is_missing_is_found_by_going_up() {
        let host = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(host.path()).unwrap();
        assert_eq!(resolve(&base.join("a/b")).unwrap(), (base.clone(), vec!["a".into(), "b".into()]));
        assert_eq!(resolve(&base).unwrap(), (base.clone(), vec![]));
        assert!(matches!(resolve(&base.join("a/../b")), Err(Error::Io { action: "find", .. })));
        assert!(matches!(resolve(Path::new("")), Err(Error::Io { action: "use", .. })));
    }

    #[test]
    fn publishing_keeps_or_replaces_as_told() {
        let host = tempfile::tempdir().unwrap();
        let directory = Directory::open(host.path()).unwrap();
        let put = |content: &[u8], existing| {
            let incoming = directory.create_incoming().unwrap();
            incoming.write(content, 0o755).unwrap();
            incoming.publish("name", existing).unwrap();
            fs::read(host.path().join("name")).unwrap()
        };
        assert_eq!(put(b"first", Existing::Keep), b"first");
        assert_eq!(put(b"second", Existing::Keep), b"first");
        assert_eq!(put(b"third", Existing::Replace), b"third");
        assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
    }
}
