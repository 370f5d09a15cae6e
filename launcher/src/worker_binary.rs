//! The worker inside the launcher, and its file on the host.
//!
//! `build.rs` puts the worker, compressed as one zlib stream, into the ELF section `.spacelift.worker`, and its facts
//! into the field `worker` of the build note:
//!
//! ```json
//! {"version":"v1.2.3","commit":"…","target":"x86_64-unknown-linux-musl",
//!  "sha256":"<of the worker, 64 hexadecimal digits>","size":300000,"compressed_size":145000}
//! ```
//!
//! A container engine mounts the worker into a run's container by its path, so it has to be a file on the host:
//! `<directory>/workers/spacelift-worker-<sha256>`. The name says what is in it. Launchers of different versions share
//! a directory, and running containers keep the file that they started with.
//!
//! # What can be relied on
//!
//! 1. [`Embedded::ready`] hashes the file at every use and gives a [`WorkerFile`] only for the right content, owner and
//!    mode. A file that was changed is not used and not repaired in place: the right one replaces it, and
//!    [`WorkerFile::outcome`] says so.
//! 2. The file appears under its name complete or not at all, whatever happens in between. Any number of launchers may
//!    do this at the same time.
//! 3. Nobody but root and the launcher's own user can put another file under the path between the check and the mount:
//!    a directory on the way there that somebody else owns or can write to is refused, and so is a symbolic link.
//! 4. [`WorkerFile::confirm`] shows that the path still leads to the very file that was hashed. The caller asks once
//!    more when the container engine has resolved the path, before anything runs.

mod directory;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use directory::{Directory, Existing};

/// Where the launcher keeps files on the host unless it is told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/opt/spacelift";

/// Anyone may start the worker, inside a container it runs as another user. Only its owner may write to it.
const FILE_MODE: u32 = 0o755;

/// Each attempt writes and then checks what is there. One is enough unless somebody works against the launcher.
const MAX_ATTEMPTS: u32 = 3;

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256([u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The worker that this launcher carries.
#[derive(Debug)]
pub struct Embedded {
    /// The release version, with the `v`: the launcher's own.
    pub version: &'static str,
    /// The commit that was built, or `unknown`: the launcher's own.
    pub commit: &'static str,
    /// The target triple: the launcher's own.
    pub target: &'static str,
    /// The digest of the worker's file.
    pub sha256: Sha256,
    /// The size of the worker's file in bytes.
    pub size: u64,
    compressed: &'static [u8],
}

/// Takes others' right to write away from a directory that is a volume of its own, empty, and this user's. To be called before
/// anything is put there.
///
/// # Errors
/// It is one, and its mode cannot be set.
pub fn close_new_volume(directory: &Path) -> Result<(), Error> {
    match fs::canonicalize(directory) {
        Ok(directory) => directory::close_new_volume(&directory),
        // Whoever makes or opens it says what is wrong with it.
        Err(_) => Ok(()),
    }
}

/// The worker that this launcher carries. A launcher that was built without one cannot start runs.
pub fn embedded() -> Option<&'static Embedded> {
    #[cfg(embedded_worker)]
    {
        #[used]
        #[expect(unsafe_code, reason = "naming a section counts as unsafe; this one is read, never executed")]
        #[unsafe(link_section = ".spacelift.worker")]
        static COMPRESSED: [u8; include_bytes!(concat!(env!("OUT_DIR"), "/worker.zlib")).len()] =
            *include_bytes!(concat!(env!("OUT_DIR"), "/worker.zlib"));
        static EMBEDDED: Embedded = include!(concat!(env!("OUT_DIR"), "/embedded_worker.rs"));
        Some(&EMBEDDED)
    }
    #[cfg(not(embedded_worker))]
    None
}

/// Why there is no worker to mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher was built without a worker.
    #[error(
        "this launcher was built without a worker, so it cannot start runs; use the launcher of a release, or build \
         one with `cargo xtask dist`"
    )]
    NotEmbedded,
    /// The embedded worker does not inflate to what the launcher was built with.
    #[error(
        "the worker inside this launcher is damaged: {0}; the launcher's file was changed or cut short after it was \
         built, so install it again from a verified release"
    )]
    Damaged(String),
    /// Something on the host that others can change.
    #[error("`{path}` {reason}", path = path.display())]
    Untrusted {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it, and what to do about it.
        reason: Untrusted,
    },
    /// The file is wrong again each time after it was written.
    #[error(
        "`{path}` is not the right file even after the launcher wrote it ({difference}): somebody else writes there, or \
         the file system does not keep owners and modes; choose another directory with --dir or SPACELIFT_LAUNCHER_DIR",
        path = path.display()
    )]
    KeepsChanging {
        /// The worker's file.
        path: PathBuf,
        /// How it differs.
        difference: Difference,
    },
    /// The path does not lead to the checked file any more.
    #[error("`{path}` was changed or replaced after it was checked, so it was not used; try again", path = path.display())]
    Exchanged {
        /// The worker's file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} `{path}`: {source}{advice}", path = path.display(), advice = advice(source))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space there, or choose another directory with --dir or SPACELIFT_LAUNCHER_DIR"
        }
        io::ErrorKind::PermissionDenied => {
            "; run the launcher as root or as the owner of that directory, or choose another directory with --dir or \
             SPACELIFT_LAUNCHER_DIR"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; choose another directory with --dir or SPACELIFT_LAUNCHER_DIR",
        _ => "",
    }
}

/// Why the launcher does not use a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Links are followed up to the directory that was named, and not below it.
    #[error("is a symbolic link, which the launcher does not follow there; remove it")]
    SymbolicLink,
    /// Something other than a directory where one is needed.
    #[error("is not a directory; move it away, or choose another directory with --dir or SPACELIFT_LAUNCHER_DIR")]
    NotADirectory,
    /// Something other than a regular file where the worker belongs.
    #[error("is neither absent nor a regular file; move it away")]
    NotAFile,
    /// Neither root nor the launcher's user owns it.
    #[error(
        "belongs to user {0}, who could exchange the worker after it was checked; give it to root or to the user that \
         the launcher runs as, or choose another directory with --dir or SPACELIFT_LAUNCHER_DIR"
    )]
    Owner(u32),
    /// Group or others can write to it, and it is not sticky.
    #[error(
        "can be written by other users (mode {0:04o}), who could exchange the worker after it was checked; take that \
         right away with `chmod go-w`, or choose another directory with --dir or SPACELIFT_LAUNCHER_DIR"
    )]
    WritableByOthers(u32),
}

/// How a file under the worker's name differs from the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// It has another length in bytes.
    #[error("it has {0} bytes")]
    Size(u64),
    /// It has other content.
    #[error("its SHA-256 is {0}")]
    Content(Sha256),
    /// It has other permissions.
    #[error("its mode is {0:04o}")]
    Mode(u32),
    /// It belongs to neither root nor the launcher's user.
    #[error("it belongs to user {0}")]
    Owner(u32),
    /// The launcher's user may not read it.
    #[error("it cannot be read")]
    Unreadable,
}

/// What [`Embedded::ready`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The right file was there already.
    Present,
    /// There was none.
    Written,
    /// There was another one under this name.
    Replaced(Difference),
}

/// The worker's file on the host: hashed, and held open.
#[derive(Debug)]
pub struct WorkerFile {
    path: PathBuf,
    file: File,
    identity: Identity,
    outcome: Outcome,
}

impl WorkerFile {
    /// Where it is: absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it came to be there. [`Outcome::Replaced`] deserves to be reported: somebody changed a file on this host.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Shows that [`path`](Self::path) leads to the file that was hashed, unchanged since. To be asked after somebody
    /// else, such as a container engine, has resolved the path, and before what they made of it is used.
    ///
    /// # Errors
    /// [`Error::Exchanged`] when it leads elsewhere or the file was touched, [`Error::Io`] when that cannot be found out.
    pub fn confirm(&self) -> Result<(), Error> {
        let io = |source| Error::Io { action: "look at", path: self.path.clone(), source };
        let opened = Identity::of(&self.file.metadata().map_err(io)?);
        let named = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => Some(Identity::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io(error)),
        };
        if opened == self.identity && named == Some(self.identity) {
            Ok(())
        } else {
            Err(Error::Exchanged { path: self.path.clone() })
        }
    }
}

/// A file, and the state that it is in. Whoever writes to it, or changes its owner or mode, moves its change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

enum Found {
    Absent,
    Right(File, Identity),
    Wrong(Difference),
}

impl Embedded {
    /// The size in bytes of the worker inside the launcher.
    pub fn compressed_size(&self) -> usize {
        self.compressed.len()
    }

    /// The worker's file under `directory`, checked just now; written first when it is absent or not the right one.
    /// `directory` is made when it does not exist.
    ///
    /// # Errors
    /// See [`Error`]. Nothing is left behind under any name but the final one.
    pub fn ready(&self, directory: &Path) -> Result<WorkerFile, Error> {
        let workers = Directory::open(directory)?.child("workers")?;
        let name = format!("spacelift-worker-{}", self.sha256);
        let path = workers.path().join(&name);
        let mut outcome = Outcome::Present;
        let mut attempts = 0;
        loop {
            let existing = match self.look(&workers, &name)? {
                Found::Right(file, identity) => return Ok(WorkerFile { path, file, identity, outcome }),
                Found::Wrong(difference) if attempts == MAX_ATTEMPTS => {
                    return Err(Error::KeepsChanging { path, difference });
                }
                Found::Absent if attempts == MAX_ATTEMPTS => return Err(Error::Exchanged { path }),
                Found::Wrong(difference) => {
                    outcome = Outcome::Replaced(difference);
                    Existing::Replace
                }
                Found::Absent => {
                    if outcome == Outcome::Present {
                        outcome = Outcome::Written;
                    }
                    Existing::Keep
                }
            };
            self.write(&workers, &name, existing)?;
            attempts += 1;
        }
    }

    /// Everything is asked of one open file, so that the answers belong together.
    fn look(&self, workers: &Directory, name: &str) -> Result<Found, Error> {
        let path = workers.path().join(name);
        let io = |action: &'static str| {
            let path = path.clone();
            move |source| Error::Io { action, path, source }
        };
        let file = match workers.open_file(name) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Found::Absent),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Found::Wrong(Difference::Unreadable));
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata().map_err(io("look at"))?;
        if !metadata.is_file() {
            return Err(Error::Untrusted { path, reason: Untrusted::NotAFile });
        }
        if !directory::is_trusted_owner(metadata.uid()) {
            return Ok(Found::Wrong(Difference::Owner(metadata.uid())));
        }
        let mode = metadata.mode() & 0o7777;
        if mode != FILE_MODE {
            return Ok(Found::Wrong(Difference::Mode(mode)));
        }
        // Also keeps the launcher from hashing whatever endless file is there.
        if metadata.size() != self.size {
            return Ok(Found::Wrong(Difference::Size(metadata.size())));
        }
        // Taken before hashing: a change from here on shows in `confirm`.
        let identity = Identity::of(&metadata);
        let digest = digest_of(&mut (&file).take(self.size)).map_err(io("read"))?;
        if digest != self.sha256 {
            return Ok(Found::Wrong(Difference::Content(digest)));
        }
        Ok(Found::Right(file, identity))
    }

    fn write(&self, workers: &Directory, name: &str, existing: Existing) -> Result<(), Error> {
        let content = self.inflate()?;
        let incoming = workers.create_incoming()?;
        incoming.write(&content, FILE_MODE)?;
        incoming.publish(name, existing)
    }

    fn inflate(&self) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        flate2::read::ZlibDecoder::new(self.compressed)
            // One more, to notice that there is more.
            .take(self.size + 1)
            .read_to_end(&mut content)
            .map_err(|error| Error::Damaged(error.to_string()))?;
        if content.len() as u64 != self.size {
            return Err(Error::Damaged(format!("it inflates to another size than {} bytes", self.size)));
        }
        let digest = Sha256(sha2::Sha256::digest(&content).into());
        if digest != self.sha256 {
            return Err(Error::Damaged(format!("it has the SHA-256 {digest}, not {}", self.sha256)));
        }
        Ok(content)
    }
}

fn digest_of(reader: &mut impl Read) -> io::Result<Sha256> {
    let mut hasher = sha2::Sha256::new();
    io::copy(reader, &mut hasher)?;
    Ok(Sha256(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Long enough that writing it takes several calls, and hard to compress.
    fn content() -> Vec<u8> {
        (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn sample() -> Embedded {
        let content = content();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&content).unwrap();
        Embedded {
            version: "v1.2.3",
            commit: "unknown",
            target: "x86_64-unknown-linux-musl",
            sha256: Sha256(sha2::Sha256::digest(&content).into()),
            size: content.len() as u64,
            compressed: encoder.finish().unwrap().leak(),
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn refused(result: Result<WorkerFile, Error>) -> (PathBuf, Untrusted) {
        match result {
            Err(Error::Untrusted { path, reason }) => (path, reason),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn the_file_is_made_once_and_found_again() {
        let host = tempfile::tempdir().unwrap();
        let (worker, base) = (sample(), host.path().join("opt/spacelift"));
        let first = worker.ready(&base).unwrap();
        assert_eq!(first.outcome(), Outcome::Written);
        assert_eq!(first.path(), base.join("workers").join(format!("spacelift-worker-{}", worker.sha256)));
        assert_eq!(fs::read(first.path()).unwrap(), content());
        assert_eq!(mode(first.path()), 0o755);
        assert_eq!((mode(&base), mode(&base.join("workers"))), (0o755, 0o755));
        assert_eq!(names(&base.join("workers")).len(), 1);
        first.confirm().unwrap();

        let second = worker.ready(&base).unwrap();
        assert_eq!((second.outcome(), second.identity), (Outcome::Present, first.identity));
        second.confirm().unwrap();
    }

    #[test]
    fn a_changed_file_is_detected_and_replaced_but_not_rewritten() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        let mut other_content = content();
        other_content[50_000] ^= 1;
        let other_digest = Sha256(sha2::Sha256::digest(&other_content).into());

        let changes: [(&dyn Fn(), Difference); 4] = [
            (&|| fs::write(&path, &other_content).unwrap(), Difference::Content(other_digest)),
            (&|| fs::write(&path, b"short").unwrap(), Difference::Size(5)),
            (&|| fs::write(&path, [&content()[..], b"x"].concat()).unwrap(), Difference::Size(100_001)),
            (&|| set_mode(&path, 0o757), Difference::Mode(0o757)),
        ];
        for (change, difference) in changes {
            change();
            let before = (File::open(&path).unwrap(), fs::read(&path).unwrap());
            let ready = worker.ready(host.path()).unwrap();
            assert_eq!(ready.outcome(), Outcome::Replaced(difference));
            assert_eq!((fs::read(&path).unwrap(), mode(&path)), (content(), 0o755));
            ready.confirm().unwrap();
            // Whoever has the old file open, a running container for example, keeps it as it was.
            let mut old = Vec::new();
            (&before.0).read_to_end(&mut old).unwrap();
            assert!(old == before.1, "{difference}");
            assert_eq!(names(path.parent().unwrap()).len(), 1);
        }
    }

    #[test]
    fn a_file_of_another_user_is_replaced() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        // Only root can make one. What decides is `is_trusted_owner`, as for directories.
        if chown(&path, Some(1234), None).is_ok() {
            assert_eq!(worker.ready(host.path()).unwrap().outcome(), Outcome::Replaced(Difference::Owner(1234)));
        }
    }

    #[test]
    fn racing_launchers_all_succeed_and_share_one_file() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        for round in 0..20 {
            let base = host.path().join(round.to_string());
            let start = Barrier::new(4);
            let files: Vec<WorkerFile> = thread::scope(|scope| {
                let launchers = [(); 4].map(|()| {
                    scope.spawn(|| {
                        start.wait();
                        worker.ready(&base).unwrap()
                    })
                });
                launchers.map(|launcher| launcher.join().unwrap()).into()
            });
            for file in &files {
                file.confirm().unwrap();
                assert_eq!(file.identity, files[0].identity);
            }
            assert_eq!(names(&base.join("workers")).len(), 1);
        }
    }

    #[test]
    fn racing_to_replace_a_changed_file_succeeds_too() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        for _ in 0..20 {
            fs::write(&path, b"changed").unwrap();
            let start = Barrier::new(2);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        start.wait();
                        worker.ready(host.path()).unwrap();
                    });
                }
            });
            assert_eq!(fs::read(&path).unwrap(), content());
            assert_eq!(names(path.parent().unwrap()).len(), 1);
        }
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let host = tempfile::tempdir().unwrap();
        let (worker, base, elsewhere) = (sample(), host.path().join("base"), host.path().join("elsewhere"));
        let path = worker.ready(&base).unwrap().path().to_owned();

        // To the right content even: it could lead elsewhere a moment later.
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert_eq!(refused(worker.ready(&base)), (path.clone(), Untrusted::SymbolicLink));

        fs::remove_dir_all(base.join("workers")).unwrap();
        fs::create_dir(host.path().join("directory")).unwrap();
        symlink(host.path().join("directory"), base.join("workers")).unwrap();
        assert_eq!(refused(worker.ready(&base)), (base.join("workers"), Untrusted::SymbolicLink));
        assert!(names(&host.path().join("directory")).is_empty());
    }

    #[test]
    fn a_link_to_the_whole_directory_is_resolved_once() {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir(host.path().join("disk")).unwrap();
        symlink(host.path().join("disk"), host.path().join("base")).unwrap();
        let file = sample().ready(&host.path().join("base")).unwrap();
        assert_eq!(file.path().parent().unwrap(), fs::canonicalize(host.path()).unwrap().join("disk/workers"));
    }

    #[test]
    fn anything_but_a_regular_file_is_refused() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(refused(worker.ready(host.path())), (path.clone(), Untrusted::NotAFile));

        // A named pipe must not hold the launcher up until somebody writes to it.
        fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        assert_eq!(refused(worker.ready(host.path())), (path.clone(), Untrusted::NotAFile));

        fs::remove_file(&path).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(refused(worker.ready(host.path())), (path.clone(), Untrusted::NotAFile));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_unless_it_is_sticky() {
        let host = tempfile::tempdir().unwrap();
        let (worker, base) = (sample(), host.path().join("base"));
        worker.ready(&base).unwrap();
        for (directory, bits, reason) in [
            (base.clone(), 0o777, Some(Untrusted::WritableByOthers(0o777))),
            (base.clone(), 0o1777, None),
            (base.clone(), 0o755, None),
            (base.join("workers"), 0o775, Some(Untrusted::WritableByOthers(0o775))),
            (base.join("workers"), 0o755, None),
            // Whoever can rename the directory above can exchange everything below.
            (host.path().to_owned(), 0o777, Some(Untrusted::WritableByOthers(0o777))),
            (host.path().to_owned(), 0o700, None),
        ] {
            set_mode(&directory, bits);
            match reason {
                Some(reason) => assert_eq!(refused(worker.ready(&base)), (directory, reason)),
                None => assert_eq!(worker.ready(&base).unwrap().outcome(), Outcome::Present),
            }
        }
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let host = tempfile::tempdir().unwrap();
        let base = host.path().join("base");
        fs::create_dir(&base).unwrap();
        // Only root can make one.
        if chown(&base, Some(1234), None).is_ok() {
            assert_eq!(refused(sample().ready(&base)), (base.clone(), Untrusted::Owner(1234)));
            assert!(names(&base).is_empty());
        }
    }

    #[test]
    fn a_damaged_worker_is_never_written() {
        let host = tempfile::tempdir().unwrap();
        let good = sample();
        let damaged = [
            Embedded { compressed: &good.compressed[..good.compressed.len() - 100], ..sample() },
            Embedded { size: good.size - 1, ..sample() },
            Embedded { size: good.size + 1, ..sample() },
            Embedded { sha256: Sha256([7; 32]), ..sample() },
            Embedded { compressed: b"not zlib", ..sample() },
        ];
        for worker in damaged {
            let result = worker.ready(host.path());
            assert!(matches!(result, Err(Error::Damaged(_))), "{result:?}");
            assert!(names(&host.path().join("workers")).is_empty());
        }
    }

    #[test]
    fn confirming_notices_every_change_after_the_check() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        let copy = host.path().join("copy");
        let changes: [&dyn Fn(); 6] = [
            &|| File::options().write(true).open(&path).unwrap().write_all(b"x").unwrap(),
            &|| set_mode(&path, 0o777),
            &|| {
                fs::copy(&path, &copy).unwrap();
                fs::rename(&copy, &path).unwrap();
            },
            &|| {
                fs::rename(&path, &copy).unwrap();
                symlink(&copy, &path).unwrap();
            },
            &|| fs::remove_file(&path).unwrap(),
            // The file itself is as it was, but the path leads to another one.
            &|| {
                let workers = path.parent().unwrap();
                fs::rename(workers, host.path().join("away")).unwrap();
                fs::create_dir(workers).unwrap();
                fs::copy(host.path().join("away").join(path.file_name().unwrap()), &path).unwrap();
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let checked = worker.ready(host.path()).unwrap();
            checked.confirm().unwrap();
            // Change times move with the clock tick of the kernel, 10 ms at most.
            thread::sleep(Duration::from_millis(20));
            change();
            assert!(matches!(checked.confirm(), Err(Error::Exchanged { .. })), "change {number}");
            let _ = fs::remove_file(&path);
        }
    }

    #[test]
    fn a_file_that_is_changed_all_the_time_is_given_up() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        let stop = AtomicBool::new(false);
        let given_up = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
                }
            });
            // The launcher can win the race against the other thread, which is as good; not for ten seconds, though.
            let deadline = Instant::now() + Duration::from_secs(10);
            let given_up = loop {
                match worker.ready(host.path()) {
                    Err(error) => break Some(error),
                    Ok(_) if Instant::now() > deadline => break None,
                    Ok(_) => {}
                }
            };
            stop.store(true, Ordering::Relaxed);
            given_up
        });
        assert!(
            matches!(given_up, Some(Error::KeepsChanging { difference: Difference::Mode(0o700), .. })),
            "{given_up:?}"
        );
    }

    #[test]
    fn what_killed_launchers_left_is_removed_unless_one_is_writing() {
        let host = tempfile::tempdir().unwrap();
        let worker = sample();
        let path = worker.ready(host.path()).unwrap().path().to_owned();
        let workers = path.parent().unwrap();
        let left = workers.join(".incoming-4711-0");

        let writing = Directory::open(workers).unwrap();
        let incoming = writing.create_incoming().unwrap();
        fs::write(&left, b"half").unwrap();
        fs::remove_file(&path).unwrap();
        worker.ready(host.path()).unwrap();
        assert_eq!(names(workers).len(), 3, "{:?}", names(workers));

        drop(incoming);
        assert_eq!(names(workers), [".incoming-4711-0", path.file_name().unwrap().to_str().unwrap()]);
        fs::remove_file(&path).unwrap();
        worker.ready(host.path()).unwrap();
        assert_eq!(names(workers), [path.file_name().unwrap().to_str().unwrap()]);
    }

    #[test]
    fn errors_name_the_path_and_the_way_out() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), b"").unwrap();
        let error = sample().ready(&host.path().join("file/below")).unwrap_err().to_string();
        assert!(error.contains(&format!("cannot find `{}", host.path().join("file/below").display())), "{error}");

        let io = |code| Error::Io { action: "write", path: "/x".into(), source: io::Error::from_raw_os_error(code) };
        let text = |errno: rustix::io::Errno| io(errno.raw_os_error()).to_string();
        assert_eq!(
            text(rustix::io::Errno::NOSPC),
            "cannot write `/x`: No space left on device (os error 28); free some space there, or choose another \
             directory with --dir or SPACELIFT_LAUNCHER_DIR"
        );
        assert!(text(rustix::io::Errno::ACCESS).contains("as root or as the owner"));
        assert!(text(rustix::io::Errno::ROFS).contains("choose another directory"));
    }
}
