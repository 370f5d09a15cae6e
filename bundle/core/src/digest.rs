//! SHA-256 digests, and readers and writers that take one on the way.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::interrupt;

/// A SHA-256 digest. Written as 64 lower-case hexadecimal digits, and accepted in no other form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// A string that is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256 digest: expected exactly 64 lower-case hexadecimal digits")]
pub struct ParseDigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest that has these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest and length in bytes of everything that `reader` still has.
    ///
    /// # Errors
    /// As [`HashingReader::drain`].
    pub fn of_reader(reader: impl Read) -> io::Result<(Self, u64)> {
        let mut reader = HashingReader::new(reader);
        reader.drain()?;
        let (_, digest, length) = reader.finish();
        Ok((digest, length))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseDigestError(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = lower_hex_value(pair[0]).ok_or_else(refuse)?;
            let low = lower_hex_value(pair[1]).ok_or_else(refuse)?;
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

fn lower_hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Passes bytes on to `inner` and takes their digest.
pub struct HashingWriter<W> {
    inner: W,
    hasher: sha2::Sha256,
    length: u64,
}

impl<W> HashingWriter<W> {
    /// Starts with nothing hashed.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: sha2::Sha256::new(), length: 0 }
    }

    /// The wrapped writer, the digest and the number of bytes that went through.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.hasher.finalize().into()), self.length)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hands on what `inner` gives and takes its digest.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    length: u64,
}

enum Hasher {
    Here(sha2::Sha256),
    Beside(Beside),
}

impl<R> HashingReader<R> {
    /// Starts with nothing hashed.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::Here(sha2::Sha256::new()), length: 0 }
    }

    /// The same, with a thread that hashes: for a reader that takes digests of its own of what it is given.
    pub fn beside(inner: R) -> Self {
        Self { inner, hasher: Hasher::Beside(Beside::start()), length: 0 }
    }

    /// The wrapped reader, the digest and the number of bytes that went through.
    pub fn finish(self) -> (R, Digest, u64) {
        let digest = match self.hasher {
            Hasher::Here(hasher) => Digest(hasher.finalize().into()),
            Hasher::Beside(beside) => beside.finish(),
        };
        (self.inner, digest, self.length)
    }
}

/// A thread that hashes pieces of a stream.
struct Beside {
    piece: Vec<u8>,
    pieces: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<sha2::Sha256>,
}

impl Beside {
    /// What is given to the thread at once.
    const PIECE: usize = 256 * 1024;
    /// Pieces on their way to the thread. With one at each end, a reader holds a MiB.
    const AHEAD: usize = 2;

    fn start() -> Self {
        let (pieces, full) = sync_channel::<Vec<u8>>(Self::AHEAD);
        // Room for every piece that there is: giving one back never waits.
        let (back, empty) = sync_channel(Self::AHEAD + 2);
        let thread = std::thread::spawn(move || {
            let mut hasher = sha2::Sha256::new();
            for mut piece in full {
                hasher.update(&piece);
                piece.clear();
                let _ = back.send(piece);
            }
            hasher
        });
        Self { piece: Vec::with_capacity(Self::PIECE), pieces, empty, thread }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(Self::PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == Self::PIECE {
                self.hand_over();
            }
        }
    }

    fn hand_over(&mut self) {
        let next = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(Self::PIECE));
        // A thread that is not there any more has panicked, which `finish` passes on.
        let _ = self.pieces.send(std::mem::replace(&mut self.piece, next));
    }

    fn finish(mut self) -> Digest {
        self.hand_over();
        drop(self.pieces);
        match self.thread.join() {
            Ok(hasher) => Digest(hasher.finalize().into()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl<R: Read> HashingReader<R> {
    /// Reads and hashes what is left, in pieces large enough that the calls cost nothing beside the hashing.
    ///
    /// # Errors
    /// Reading failed, or the process was interrupted.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            interrupt::check()?;
            match self.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match &mut self.hasher {
            Hasher::Here(hasher) => hasher.update(&buffer[..read]),
            Hasher::Beside(beside) => beside.update(&buffer[..read]),
        }
        self.length += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_read_only_as_it_is_written() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(text.parse::<Digest>(), Ok(digest));
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!(text[1..].parse::<Digest>().is_err());
        assert!(format!(" {}", &text[1..]).parse::<Digest>().is_err());
    }

    #[test]
    fn readers_and_writers_agree_with_hashing_at_once() {
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"ab").unwrap();
        writer.write_all(b"c").unwrap();
        let (bytes, digest, length) = writer.finish();
        assert_eq!((bytes.as_slice(), digest, length), (&b"abc"[..], Digest::of(b"abc"), 3));
        assert_eq!(Digest::of_reader(&b"abc"[..]).unwrap(), (Digest::of(b"abc"), 3));
    }

    #[test]
    fn a_thread_beside_takes_the_same_digest() {
        let piece = Beside::PIECE;
        for length in [0, 1, piece - 1, piece, piece + 1, 9 * piece + 7] {
            let bytes: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            let mut reader = HashingReader::beside(bytes.as_slice());
            let mut taken = vec![0; 1 + piece * 2 / 3];
            while reader.read(&mut taken).unwrap() > 0 {}
            let (rest, digest, read) = reader.finish();
            assert_eq!((rest.len(), digest, read), (0, Digest::of(&bytes), length as u64), "{length} bytes");
        }
    }
}
