//! What a launcher remembers on its host: who it is, and which run it has begun.
//!
//! `DIR/pools/POOL/N/` belongs to one launcher at a time: several may run on one host, and each takes the first directory that
//! no other has locked, one with a run that was begun before others. So a launcher that is started again is the same worker as
//! before and finds its own journal.

mod tree;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use launcher_wire::api::Stage;
use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use rsa::rand_core::{OsRng, RngCore as _};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spacelift_worker::shortage;

use crate::run::{Kept, Stopping, WorkerOutcome};

/// Launchers of one pool on one host. A host with more is a mistake.
const MAXIMUM: usize = 1000;
const JOURNAL: &str = "journal";
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// Why a launcher has no place on its host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the operating system.
    #[error("cannot {doing} `{}`: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// All are taken.
    #[error(
        "{MAXIMUM} launchers of this pool run on this host already. End one of them, or start this one on another host"
    )]
    Full,
    /// A file of an earlier launcher is not what launchers write.
    #[error("`{}` is damaged: {reason}. Look at it, then remove the directory that it is in", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn advice(error: &io::Error) -> String {
    match shortage::advice(error) {
        // What else keeps a launcher from its own files.
        none if none.is_empty() => {
            ". The launcher's user needs to own this directory; SPACELIFT_LAUNCHER_DIR names another one".to_owned()
        }
        advice => advice,
    }
}

/// A launcher's place. It is free again when this is dropped, and when the process ends in whatever way.
#[derive(Debug)]
pub struct Slot {
    directory: PathBuf,
    worker: WorkerId,
    _lock: File,
}

/// A run that was begun. It is on disk from before anything is done for it until everything of it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The run.
    pub run: RunId,
    /// The stage of it.
    pub assignment: AssignmentId,
    /// What this stage does.
    pub stage: Stage,
    /// When, in seconds since 1970.
    #[serde(default = "now")]
    pub begun: u64,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Slot {
    /// Takes the first place that is free and has a run that was begun, or else the first that is free.
    ///
    /// # Errors
    /// The directory cannot be used, or there are too many launchers.
    pub fn take(directory: &Path, pool: PoolId) -> Result<Self, Error> {
        let pool = directory.join("pools").join(pool.to_string());
        let mut free = None;
        for number in 0..MAXIMUM {
            let directory = pool.join(number.to_string());
            let is_new = !directory.exists();
            if is_new && free.is_some() {
                break;
            }
            private_directory(&directory)?;
            let path = directory.join("lock");
            let lock = private_file().open(&path).map_err(failed("open", &path))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if directory.join(JOURNAL).exists() => {
                    free = Some((directory, lock));
                    break;
                }
                Ok(()) => free = free.or(Some((directory, lock))),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
        let (directory, lock) = free.ok_or(Error::Full)?;
        let worker = identity(&directory)?;
        Ok(Self { directory, worker, _lock: lock })
    }

    /// Who this launcher is.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Where the files of a run are.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Makes the directory of a new run's files. What an earlier run left there is put aside: a run never sees another's.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new_run_directory(&self) -> Result<PathBuf, Error> {
        let directory = self.run_directory();
        self.put_aside()?;
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed("make the directory", &directory))?;
        Ok(directory)
    }

    /// Puts the directory of the run's files where [`Self::sweep`] removes it.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn put_aside(&self) -> Result<(), Error> {
        let (directory, stale) = (self.run_directory(), self.directory.join("stale"));
        private_directory(&stale)?;
        match fs::rename(&directory, stale.join(AssignmentId::new().to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("rename", &directory)(error)),
            _ => Ok(()),
        }
    }

    /// Removes what was put aside, as far as that is possible. It takes a while: runs leave thousands of files.
    pub fn sweep(&self) -> impl FnOnce() + Send + 'static {
        let stale = self.directory.join("stale");
        move || {
            for path in fs::read_dir(&stale).into_iter().flatten().flatten().map(|entry| entry.path()) {
                remove(&path);
            }
        }
    }

    /// Looks after the places of launchers that did not come back: files of runs that have ended are removed, and what was begun
    /// and not ended is given, with its place. Such a run stays as it is, since the next launcher that starts here goes on with
    /// it. A place is locked for a moment, in which a launcher that starts takes another one: so not while launchers start.
    pub fn abandoned(&self) -> impl FnOnce() -> Vec<(PathBuf, Entry)> + Send + 'static {
        let own = self.directory.clone();
        move || {
            let Some(pool) = own.parent() else { return vec![] };
            let others = (0..MAXIMUM).map(|number| pool.join(number.to_string()));
            let others = others.take_while(|directory| directory.exists()).filter(|directory| *directory != own);
            others.filter_map(|directory| look_after(&directory)).collect()
        }
    }

    /// What was begun and not ended.
    ///
    /// # Errors
    /// The journal cannot be read, or is damaged.
    pub fn journal(&self) -> Result<Option<Entry>, Error> {
        read_json(self.journal_path())
    }

    /// Puts on disk that a run is begun. When this returns, no crash undoes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(&self, entry: &Entry) -> Result<(), Error> {
        let bytes = serde_json::to_vec(entry).expect("an entry has a JSON form");
        write(&self.directory, JOURNAL, &bytes)
    }

    /// Forgets it, once nothing of it is left.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn end(&self) -> Result<(), Error> {
        let path = self.journal_path();
        match fs::remove_file(&path) {
            Ok(()) => sync(&self.directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    fn journal_path(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }
}

/// What nobody goes on with in a place that nobody has. Nothing is removed where something was begun, or cannot be read.
fn look_after(directory: &Path) -> Option<(PathBuf, Entry)> {
    match Left::in_place(directory) {
        Ok(Some(Left { begun: Some(entry), .. })) => Some((directory.to_owned(), entry)),
        Ok(Some(left)) => {
            left.files.iter().for_each(|path| remove(path));
            None
        }
        Ok(None) => None,
        Err(error) => {
            tracing::error!(%error, "cannot look after the place of another launcher");
            None
        }
    }
}

/// What is left in a place that no launcher is in. None takes it as long as this is there.
#[derive(Debug)]
pub struct Left {
    /// Who had it.
    pub worker: WorkerId,
    /// What was begun there and not ended: the next launcher goes on with it.
    pub begun: Option<Entry>,
    /// Files and directories of runs that have ended.
    pub files: Vec<PathBuf>,
    _lock: File,
}

impl Left {
    /// Nothing where a launcher is, or was never.
    fn in_place(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join("lock");
        // It is not made: whoever looks changes nothing.
        let lock = match OpenOptions::new().write(true).custom_flags(NOFOLLOW).open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(failed("lock", &path)(error.into())),
        }
        let Some(worker) = known_identity(directory)? else { return Ok(None) };
        let begun = read_json(directory.join(JOURNAL))?;
        let (run, stale) = (directory.join("run"), directory.join("stale"));
        let stale = fs::read_dir(&stale).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = [run].into_iter().filter(|path| path.exists()).chain(stale).collect();
        Ok(Some(Self { worker, begun, files, _lock: lock }))
    }
}

/// The places of a pool's launchers on this host, each with what is left in it. Without one: a launcher is there. What is given
/// keeps launchers from its place until it is dropped.
pub fn places(directory: &Path, pool: PoolId) -> impl Iterator<Item = (PathBuf, Result<Option<Left>, Error>)> {
    let pool = directory.join("pools").join(pool.to_string());
    let places = (0..MAXIMUM).map(move |number| pool.join(number.to_string())).take_while(|place| place.exists());
    places.map(|place| {
        let left = Left::in_place(&place);
        (place, left)
    })
}

/// Removes files of a run, which it may have made to be hard to remove. Those that are not there are as good.
///
/// # Errors
/// Something of them is left.
pub fn remove_files(path: &Path) -> Result<(), Error> {
    match tree::remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a tree that a run may have made to be hard to remove. What is left is reported.
fn remove(tree: &Path) {
    if let Err(error) = remove_files(tree) {
        tracing::error!(%error, "something is left of a run");
    }
}

/// The identifier of whoever has this place, made at its first use.
fn identity(directory: &Path) -> Result<WorkerId, Error> {
    if let Some(worker) = known_identity(directory)? {
        return Ok(worker);
    }
    let worker = WorkerId::new();
    write(directory, "worker", format!("{worker}\n").as_bytes())?;
    Ok(worker)
}

/// The identifier of whoever had this place, if anybody had.
fn known_identity(directory: &Path) -> Result<Option<WorkerId>, Error> {
    let path = directory.join("worker");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let parsed = text.trim_end().parse().map(Some);
            parsed.map_err(|error: launcher_wire::id::InvalidId| Error::Damaged { path, reason: error.to_string() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// What the worker of a run has done so far. It is on disk before the worker is told that it was heard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// How it went, once it has said so. It exits then.
    pub outcome: Option<WorkerOutcome>,
    /// Whether its workspace is in the object store.
    pub workspace: bool,
    /// Whether its outputs are.
    pub outputs: bool,
}

const SAID: &str = "said";
const END: &str = "end";
const STOP: &str = "stop";
const SOURCE: &str = "source-sha256";
const SESSION: &str = "session";
/// Random bytes of it.
const SESSION_SIZE: usize = 32;

impl Said {
    /// Puts it on disk, in the directory of the run's files.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, directory: &Path) -> Result<(), Error> {
        write(directory, SAID, &serde_json::to_vec(self).expect("it has a JSON form"))
    }

    /// What is on disk there, if anything is.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn kept(directory: &Path) -> Result<Option<Self>, Error> {
        read_json(directory.join(SAID))
    }
}

/// Makes what a run's worker shows to be heard, and puts it on disk in the directory of the run's files: a launcher that is
/// started again has to know it.
///
/// # Errors
/// It cannot be written.
pub fn new_session(directory: &Path) -> Result<String, Error> {
    let mut bytes = [0; SESSION_SIZE];
    OsRng.fill_bytes(&mut bytes);
    let session: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write(directory, SESSION, session.as_bytes())?;
    Ok(session)
}

/// What the run's worker shows.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn session(directory: &Path) -> Result<String, Error> {
    let path = directory.join(SESSION);
    let session = fs::read_to_string(&path).map_err(failed("read", &path))?;
    if session.len() != 2 * SESSION_SIZE {
        return Err(Error::Damaged { path, reason: format!("it has {} characters", session.len()) });
    }
    Ok(session)
}

/// Puts on disk why a run is being ended, in the directory of its files.
///
/// # Errors
/// It cannot be written.
pub fn keep_stop(directory: &Path, stop: Stopping) -> Result<(), Error> {
    write(directory, STOP, &serde_json::to_vec(&stop).expect("it has a JSON form"))
}

/// Why a run was being ended, if that is on disk there.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn kept_stop(directory: &Path) -> Result<Option<Stopping>, Error> {
    read_json(directory.join(STOP))
}

/// Puts on disk which archive the run's source is, in the directory of its files: a launcher that is started again may be asked
/// for it.
///
/// # Errors
/// It cannot be written.
pub fn keep_source(directory: &Path, sha256: &str) -> Result<(), Error> {
    write(directory, SOURCE, sha256.as_bytes())
}

/// Which archive the run's source is.
///
/// # Errors
/// It cannot be read.
pub fn kept_source(directory: &Path) -> Result<String, Error> {
    let path = directory.join(SOURCE);
    fs::read_to_string(&path).map_err(failed("read", &path))
}

/// The directory of what a run works on, in the directory of its files.
#[must_use]
pub fn workspace(directory: &Path) -> PathBuf {
    directory.join("workspace")
}

/// Removes what a run worked on, as far as that is possible, once its container is gone.
pub fn empty_workspace(directory: &Path) {
    remove(&workspace(directory));
}

/// Puts on disk how a run ended, in the directory of its files.
///
/// # Errors
/// It cannot be written.
pub fn keep_end(directory: &Path, kept: &Kept) -> Result<(), Error> {
    write(directory, END, &serde_json::to_vec(kept).expect("it has a JSON form"))
}

/// How a run ended, if that is on disk there.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn kept_end(directory: &Path) -> Result<Option<Kept>, Error> {
    read_json(directory.join(END))
}

fn read_json<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, Error> {
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Damaged { path, reason: error.to_string() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Makes a directory that only its owner may enter, with those above it that are not there.
///
/// # Errors
/// It cannot be made.
pub fn private_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the directory", path))
}

/// Makes a directory that others may enter, and change nothing in: what is above it keeps out those who are not meant.
///
/// # Errors
/// It cannot be made.
pub fn shared_directory(path: &Path) -> Result<(), Error> {
    private_directory(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(failed("make the directory", path))
}

/// Writes a file that is there as a whole or not at all.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
    let mut file = private_file().truncate(true).open(&new).map_err(failed("make", &new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
    fs::rename(&new, &path).map_err(failed("rename", &new))?;
    sync(directory)
}

/// Only then does a new name survive a crash.
fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("write", directory))
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    // A link there is nobody's who means well.
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(NOFOLLOW);
    options
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_launcher_has_a_place_and_finds_it_again() {
        let directory = tempfile::tempdir().unwrap();
        let pool = PoolId::new();
        let first = Slot::take(directory.path(), pool).unwrap();
        let second = Slot::take(directory.path(), pool).unwrap();
        let (first_worker, second_worker) = (first.worker(), second.worker());
        assert_ne!(first_worker, second_worker);
        drop((first, second));
        assert_eq!(Slot::take(directory.path(), pool).unwrap().worker(), first_worker);
        assert_ne!(Slot::take(directory.path(), PoolId::new()).unwrap().worker(), first_worker);
    }

    #[test]
    fn a_run_that_was_begun_is_found_by_whoever_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let pool = PoolId::new();
        let (first, second) =
            (Slot::take(directory.path(), pool).unwrap(), Slot::take(directory.path(), pool).unwrap());
        let entry = Entry { run: RunId::new(), assignment: AssignmentId::new(), stage: Stage::Plan, begun: now() };
        second.begin(&entry).unwrap();
        let busy = second.worker();
        drop((first, second));
        assert_eq!(Slot::take(directory.path(), pool).unwrap().worker(), busy);
    }

    #[test]
    fn what_is_left_of_a_launcher_that_does_not_come_back_is_removed_but_not_what_it_has_begun() {
        let directory = tempfile::tempdir().unwrap();
        let pool = PoolId::new();
        let take = || Slot::take(directory.path(), pool).unwrap();
        let (own, alive, ended, busy) = (take(), take(), take(), take());
        for slot in [&own, &alive, &ended, &busy] {
            slot.new_run_directory().unwrap();
            fs::write(slot.new_run_directory().unwrap().join("file"), "secret").unwrap();
        }
        let entry = Entry { run: RunId::new(), assignment: AssignmentId::new(), stage: Stage::Plan, begun: now() };
        busy.begin(&entry).unwrap();
        let (gone, waiting) = (ended.directory.clone(), busy.directory.clone());
        drop((ended, busy));
        assert_eq!(own.abandoned()(), [(waiting.clone(), entry)]);
        assert!(!gone.join("run").exists() && fs::read_dir(gone.join("stale")).unwrap().next().is_none());
        for left in [&own.directory, &alive.directory, &waiting] {
            assert!(left.join("run/file").exists() && left.join("stale").exists(), "{}", left.display());
        }
        // Whoever comes next goes on with it.
        assert_eq!(take().journal().unwrap(), Some(entry));
        assert_eq!(own.abandoned()(), [(waiting, entry)]);
    }

    #[test]
    fn what_was_begun_is_known_until_it_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let pool = PoolId::new();
        let slot = Slot::take(directory.path(), pool).unwrap();
        assert_eq!(slot.journal().unwrap(), None);
        let entry = Entry { run: RunId::new(), assignment: AssignmentId::new(), stage: Stage::Apply, begun: 7 };
        slot.begin(&entry).unwrap();
        drop(slot);
        let slot = Slot::take(directory.path(), pool).unwrap();
        assert_eq!(slot.journal().unwrap(), Some(entry));
        slot.end().unwrap();
        slot.end().unwrap();
        assert_eq!(slot.journal().unwrap(), None);
        fs::write(slot.journal_path(), "{").unwrap();
        assert!(slot.journal().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn what_a_worker_said_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Said::kept(directory.path()).unwrap(), None);
        let outcome = WorkerOutcome {
            result: crate::run::WorkerResult::Failed,
            message: "why".to_owned(),
            changes: Some(launcher_wire::api::Changes { add: 1, change: 2, destroy: 3 }),
        };
        let said = Said { outcome: Some(outcome), workspace: true, outputs: false };
        said.keep(directory.path()).unwrap();
        assert_eq!(Said::kept(directory.path()).unwrap(), Some(said));
    }

    #[test]
    fn a_disk_that_is_full_is_named_with_what_to_do() {
        let error = |kind: rustix::io::Errno| failed("write", Path::new("/opt/x/journal.new"))(kind.into()).to_string();
        let full = error(rustix::io::Errno::NOSPC);
        for part in
            ["cannot write `/opt/x/journal.new`", "No space left", "docker image prune", "SPACELIFT_LAUNCHER_DIR"]
        {
            assert!(full.contains(part), "{full}");
        }
        assert!(!full.contains("own this directory"), "{full}");
        assert!(error(rustix::io::Errno::ACCESS).contains("own this directory"));
    }

    #[test]
    fn a_run_never_finds_what_another_left() {
        let directory = tempfile::tempdir().unwrap();
        let slot = Slot::take(directory.path(), PoolId::new()).unwrap();
        let first = slot.new_run_directory().unwrap();
        fs::create_dir(first.join("read-only")).unwrap();
        fs::write(first.join("read-only/file"), "secret").unwrap();
        fs::set_permissions(first.join("read-only"), fs::Permissions::from_mode(0o555)).unwrap();
        let second = slot.new_run_directory().unwrap();
        assert_eq!(fs::read_dir(second).unwrap().count(), 0);
        slot.sweep()();
        assert_eq!(fs::read_dir(slot.directory.join("stale")).unwrap().count(), 0);
    }
}
