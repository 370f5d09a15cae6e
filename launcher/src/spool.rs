//! The log of one assignment on this host's disk, from when the worker is told that it is safe until the object store has it.
//!
//! A directory holds one file for each chunk, with the chunk's number as its name. Chunks are what is uploaded: a chunk is
//! *open* while it is the last one, and *sealed* once the next one's file is there. A sealed chunk never changes, so whatever
//! happens, the same bytes are uploaded under the same number. A chunk that was uploaded is discarded: the disk holds what is
//! yet to be sent, and no more than the limit.
//!
//! A file begins with a header: the chunk's number, and what the log was where the chunk begins (sequence number, length,
//! lines, and the digest so far). Records follow, each with its length, its sequence number, a checksum, and bytes of the log.
//! [`Spool::open`] reads them back; what a crash left half written at the end is cut off.
//!
//! Nothing is safe before [`Spool::commit`]: many records are written for one wait for the disk.

mod digest;

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use launcher_wire::api::LogSummary;
use sha2::{Digest as _, Sha256};
use spacelift_worker::shortage;

use digest::Running;

/// Bytes of a chunk.
pub const MAXIMUM_CHUNK: usize = 1024 * 1024;
/// Chunks of a log. At their largest that is 100 GB.
pub const MAXIMUM_CHUNKS: u64 = 100_000;
/// Bytes above the limit for what the launcher itself has to say, above all that the limit was reached.
pub const RESERVE: u64 = 64 * 1024;

const MAGIC: [u8; 8] = *b"slspool1";
/// Magic, chunk, sequence, lines, digest, checksum.
const HEADER: usize = 8 + 8 + 8 + 8 + Running::SIZE + CHECKSUM;
const CHECKSUM: usize = 8;
/// Length, sequence, checksum.
const RECORD: usize = 4 + 8 + CHECKSUM;
/// Bytes of a chunk's file. Records need room, too, and some are short or empty.
const LARGEST_FILE: u64 = 32 * MAXIMUM_CHUNK as u64;
/// Where a file is until it is complete.
const UNFINISHED: &str = "next";

/// Why something cannot be spooled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// More is waiting to be sent than may be.
    #[error(
        "the log has {unsent} bytes that could not be uploaded yet; at most {limit} are kept on this host. Check that this host reaches the object store, or let the run print less"
    )]
    LimitReached {
        /// Bytes that wait.
        unsent: u64,
        /// How many may.
        limit: u64,
    },
    /// More chunks than a log may have.
    #[error("the log has {MAXIMUM_CHUNKS} chunks, which is the most a log may have. Let the run print less")]
    TooManyChunks,
    /// More than a chunk at once.
    #[error("{size} bytes at once; at most {MAXIMUM_CHUNK} are allowed")]
    TooLarge {
        /// Bytes that were given.
        size: usize,
    },
    /// A message is missing.
    #[error("message {given} of the worker came where {expected} was due")]
    Gap {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        given: u64,
    },
    /// The directory holds what this program did not write, or not in this way.
    #[error("{path} is damaged: {reason}. The log in it cannot be continued", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk.
    #[error("cannot {action} {path}: {reason}", path = path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// From the operating system.
        reason: String,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Io { action, path, reason: format!("{error}{}", shortage::advice(&error)) }
}

/// What the log is up to some place.
#[derive(Clone, PartialEq, Eq)]
struct Position {
    sequence: u64,
    lines: u64,
    digest: Running,
}

impl Position {
    fn advance(&mut self, sequence: u64, bytes: &[u8]) {
        self.sequence = self.sequence.max(sequence);
        self.lines += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.digest.update(bytes);
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log; safe after [`Spool::commit`].
    New,
    /// It was there already.
    Repeated,
}

/// The log of one assignment. All its methods wait for the disk.
pub struct Spool {
    directory: PathBuf,
    limit: u64,
    /// The open chunk.
    file: File,
    number: u64,
    /// Bytes of its file.
    written: u64,
    /// Bytes of the log in it.
    payload: u64,
    /// The numbers of sealed chunks that are there, and how many bytes their records have.
    sealed: VecDeque<(u64, u64)>,
    position: Position,
    /// Set when it is not known any more what is on the disk.
    broken: Option<Error>,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("directory", &self.directory)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens the log in this directory, or begins one. `limit` is for [`Self::unsent`].
    ///
    /// # Errors
    /// The directory cannot be read or written, or is damaged.
    pub fn open(directory: &Path, limit: u64) -> Result<Self, Error> {
        make_directory(directory)?;
        let unfinished = directory.join(UNFINISHED);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &unfinished)(error));
            }
            _ => {}
        }
        let numbers = numbers(directory)?;
        let Some((&number, sealed)) = numbers.split_last() else {
            let position = Position { sequence: 0, lines: 0, digest: Running::new() };
            let file = begin(directory, 0, &position)?;
            sync_directory(directory)?;
            return Ok(Self::at(directory, limit, file, 0, position));
        };
        let mut chunks = VecDeque::new();
        let mut end = None::<Position>;
        for &number in sealed {
            let path = path(directory, number);
            let scan = scan(&path, number)?;
            scan.follows(&path, end.as_ref())?;
            if scan.whole != scan.file_size {
                return Err(damaged(&path, "a record in it is not whole, and another chunk follows"));
            }
            chunks.push_back((number, scan.file_size - HEADER as u64));
            end = Some(scan.end);
        }
        let path = path(directory, number);
        let scan = scan(&path, number)?;
        scan.follows(&path, end.as_ref())?;
        let mut file = OpenOptions::new().write(true).open(&path).map_err(io_error("open", &path))?;
        if scan.whole < scan.file_size {
            file.set_len(scan.whole).and_then(|()| file.sync_all()).map_err(io_error("shorten", &path))?;
        }
        file.seek(SeekFrom::Start(scan.whole)).map_err(io_error("read", &path))?;
        let mut spool = Self::at(directory, limit, file, number, scan.end);
        spool.written = scan.whole;
        spool.payload = scan.payload.len() as u64;
        spool.sealed = chunks;
        Ok(spool)
    }

    fn at(directory: &Path, limit: u64, file: File, number: u64, position: Position) -> Self {
        Self {
            directory: directory.to_owned(),
            limit,
            file,
            number,
            written: HEADER as u64,
            payload: 0,
            sealed: VecDeque::new(),
            position,
            broken: None,
        }
    }

    /// The last message of the worker that is in the log.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.position.sequence
    }

    /// Bytes on the disk: what was not discarded, with what is around each record.
    #[must_use]
    pub fn unsent(&self) -> u64 {
        self.size() + self.sealed.iter().map(|(_, size)| size).sum::<u64>()
    }

    fn size(&self) -> u64 {
        self.written - HEADER as u64
    }

    /// What the log is. Chunks that have nothing in them are not counted.
    #[must_use]
    pub fn summary(&self) -> LogSummary {
        LogSummary {
            chunks: self.number + u64::from(self.payload > 0),
            lines: self.position.lines,
            bytes: self.position.digest.bytes(),
            sha256: self.position.digest.hex(),
        }
    }

    /// The first chunk that is not sealed.
    #[must_use]
    pub fn open_chunk(&self) -> u64 {
        self.number
    }

    /// The first chunk that was not discarded: the open one, if all others were.
    #[must_use]
    pub fn first_chunk(&self) -> u64 {
        self.sealed.front().map_or(self.number, |&(number, _)| number)
    }

    /// Whether the open chunk has anything in it.
    #[must_use]
    pub fn has_unsealed(&self) -> bool {
        self.payload > 0
    }

    /// Appends a message of the worker, or with sequence number 0 a line of the launcher's own. A message without bytes leaves
    /// its number only.
    ///
    /// # Errors
    /// The limit is reached, a message is missing before this one, or the disk fails; the message is not in the log then.
    pub fn append(&mut self, sequence: u64, bytes: &[u8]) -> Result<Appended, Error> {
        self.check()?;
        if sequence != 0 && sequence <= self.position.sequence {
            return Ok(Appended::Repeated);
        }
        if sequence != 0 && sequence != self.position.sequence + 1 {
            return Err(Error::Gap { expected: self.position.sequence + 1, given: sequence });
        }
        if bytes.len() > MAXIMUM_CHUNK {
            return Err(Error::TooLarge { size: bytes.len() });
        }
        let unsent = self.unsent();
        let limit = if sequence == 0 { self.limit.saturating_add(RESERVE) } else { self.limit };
        let size = (RECORD + bytes.len()) as u64;
        if unsent.saturating_add(size) > limit || self.written + size > LARGEST_FILE && !self.has_unsealed() {
            return Err(Error::LimitReached { unsent, limit: self.limit });
        }
        if self.payload + bytes.len() as u64 > MAXIMUM_CHUNK as u64 || self.written + size > LARGEST_FILE {
            self.seal()?;
        }
        if self.number >= MAXIMUM_CHUNKS && !bytes.is_empty() {
            return Err(Error::TooManyChunks);
        }
        let record = record(self.number, sequence, bytes);
        let path = path(&self.directory, self.number);
        if let Err(error) = self.file.write_all(&record) {
            let error = io_error("write", &path)(error);
            self.take_back(&error);
            return Err(error);
        }
        self.written += record.len() as u64;
        self.payload += bytes.len() as u64;
        self.position.advance(sequence, bytes);
        Ok(Appended::New)
    }

    /// A record that did not fit on the disk leaves a part of itself. What follows it would be lost at the next start.
    fn take_back(&mut self, error: &Error) {
        let restored = self.file.set_len(self.written).and_then(|()| self.file.seek(SeekFrom::Start(self.written)));
        if restored.is_err() {
            self.broken = Some(error.clone());
        }
    }

    /// Waits until everything that was appended is on the disk.
    ///
    /// # Errors
    /// The disk fails. It is not known then what is on it, and the spool takes nothing more until it is opened again.
    pub fn commit(&mut self) -> Result<(), Error> {
        self.check()?;
        let path = path(&self.directory, self.number);
        self.file.sync_data().map_err(|error| {
            let error = io_error("write", &path)(error);
            self.broken = Some(error.clone());
            error
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Seals the open chunk, if there is anything in it, and opens the next one.
    ///
    /// # Errors
    /// The disk fails.
    pub fn seal(&mut self) -> Result<(), Error> {
        if !self.has_unsealed() {
            return Ok(());
        }
        self.commit()?;
        self.file = begin(&self.directory, self.number + 1, &self.position)?;
        self.sealed.push_back((self.number, self.size()));
        self.number += 1;
        self.written = HEADER as u64;
        self.payload = 0;
        sync_directory(&self.directory).inspect_err(|error| self.broken = Some(error.clone()))
    }

    /// Discards a sealed chunk: the object store has it.
    ///
    /// # Errors
    /// It is not the first one, or the disk fails.
    pub fn discard(&mut self, number: u64) -> Result<(), Error> {
        let path = path(&self.directory, number);
        match self.sealed.front() {
            Some(&(first, _)) if first == number => {}
            Some(&(first, _)) if number < first => return Ok(()),
            None if number < self.number => return Ok(()),
            // Out of order, a crash would leave a hole.
            _ => return Err(damaged(&path, "it is not the first chunk")),
        }
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        self.sealed.pop_front();
        Ok(())
    }
}

/// The bytes of the log in a sealed chunk.
///
/// # Errors
/// It is not there, or damaged.
pub fn read_chunk(directory: &Path, number: u64) -> Result<Vec<u8>, Error> {
    let path = path(directory, number);
    let scan = scan(&path, number)?;
    if scan.whole == scan.file_size { Ok(scan.payload) } else { Err(damaged(&path, "a record in it is not whole")) }
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

/// With leading zeros, so that people see them in order.
fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:06}"))
}

fn make_directory(directory: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error("create", directory))?;
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_directory(parent)?;
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(io_error("write", directory))
}

/// The numbers of all chunks, in order and without a hole.
fn numbers(directory: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error("read", directory))? {
        let name = entry.map_err(io_error("read", directory))?.file_name();
        let number = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let number = number.and_then(|name| name.parse().ok());
        numbers.push(number.ok_or_else(|| damaged(&directory.join(&name), "no such file belongs here"))?);
    }
    numbers.sort_unstable();
    match numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        Some(pair) => Err(damaged(&path(directory, pair[0] + 1), "it is missing, and others follow")),
        None => Ok(numbers),
    }
}

/// A chunk's file with its header, which appears at once or not at all.
fn begin(directory: &Path, number: u64, position: &Position) -> Result<File, Error> {
    let unfinished = directory.join(UNFINISHED);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&unfinished).map_err(io_error("create", &unfinished))?;
    file.write_all(&header(number, position)).and_then(|()| file.sync_all()).map_err(io_error("write", &unfinished))?;
    let path = path(directory, number);
    fs::rename(&unfinished, &path).map_err(io_error("rename", &unfinished))?;
    Ok(file)
}

fn header(number: u64, position: &Position) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    for value in [number, position.sequence, position.lines] {
        header.extend(value.to_le_bytes());
    }
    position.digest.encode(&mut header);
    header.extend(checksum(&[&header]));
    header
}

/// Against what a crash leaves, not against people: whoever can write here can read the pool's key as well.
fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    *digest.finalize().first_chunk().expect("SHA-256 has more bytes")
}

fn record(number: u64, sequence: u64, bytes: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD + bytes.len());
    record.extend(u32::try_from(bytes.len()).expect("at most a chunk").to_le_bytes());
    record.extend(sequence.to_le_bytes());
    // The chunk's number, so that a record of a file that had this place on the disk before is none of this one.
    record.extend(checksum(&[&number.to_le_bytes(), &record, bytes]));
    record.extend(bytes);
    record
}

/// What is in a chunk's file.
struct Scan {
    start: Position,
    end: Position,
    payload: Vec<u8>,
    /// Bytes up to the end of the last whole record.
    whole: u64,
    file_size: u64,
}

impl Scan {
    fn follows(&self, path: &Path, before: Option<&Position>) -> Result<(), Error> {
        if before.is_none_or(|before| *before == self.start) {
            Ok(())
        } else {
            Err(damaged(path, "it does not begin where the chunk before it ends"))
        }
    }
}

fn scan(path: &Path, number: u64) -> Result<Scan, Error> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let file_size = file.metadata().map_err(io_error("read", path))?.len();
    if file_size > LARGEST_FILE {
        return Err(damaged(path, "it is larger than a chunk can be"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io_error("read", path))?;
    let start = parse_header(&bytes, number).ok_or_else(|| damaged(path, "it has no header of this chunk"))?;
    let mut end = start.clone();
    let mut payload = Vec::new();
    let mut rest = &bytes[HEADER..];
    while let Some((sequence, bytes, after)) = parse_record(number, rest) {
        end.advance(sequence, bytes);
        payload.extend_from_slice(bytes);
        rest = after;
    }
    Ok(Scan { start, end, payload, whole: (bytes.len() - rest.len()) as u64, file_size: bytes.len() as u64 })
}

fn parse_header(bytes: &[u8], number: u64) -> Option<Position> {
    let (header, found) = bytes.get(..HEADER)?.split_last_chunk::<CHECKSUM>()?;
    let (magic, rest) = header.split_first_chunk::<8>()?;
    let word = |place: usize| Some(u64::from_le_bytes(rest.get(8 * place..8 * place + 8)?.try_into().ok()?));
    let digest = Running::decode(rest.get(24..)?.try_into().ok()?);
    let right = *magic == MAGIC && *found == checksum(&[header]) && word(0)? == number;
    right.then_some(Position { sequence: word(1)?, lines: word(2)?, digest })
}

fn parse_record(number: u64, bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(RECORD)?;
    let (head, found) = head.split_last_chunk::<CHECKSUM>()?;
    let length = u32::from_le_bytes(*head.first_chunk()?) as usize;
    let sequence = u64::from_le_bytes(*head.last_chunk()?);
    let (bytes, rest) = rest.split_at_checked(length)?;
    (*found == checksum(&[&number.to_le_bytes(), head, bytes])).then_some((sequence, bytes, rest))
}
