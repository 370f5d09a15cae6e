//! Gzip in fixed blocks, written and read in parallel.
//!
//! A release archive is a sequence of gzip members. Each holds at most [`BLOCK`] bytes of the tar stream and names its
//! own compressed length in an extra field (RFC 1952, 2.3.1.1, subfield `SL`), as BGZF does. Any gzip tool reads it as
//! one stream. Three things follow:
//!
//! - blocks compress independently, so the output does not depend on the number of threads;
//! - a reader knows where the next member starts without inflating this one, so it inflates in parallel, into buffers
//!   of a known size: there is no such thing as a decompression bomb in this form;
//! - anything that is not a member of this form, after a member of this form, is an error: no trailing garbage.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::{CompressionLvl, Compressor};

use crate::interrupt;

/// Bytes of the uncompressed stream per member, at most. Large enough that the window restarting at each block costs
/// less than 0.5 % of the ratio, small enough that a few dozen in flight stay far below the verifier's memory bound.
pub const BLOCK: usize = 1024 * 1024;

/// Threads beyond this number would only add memory.
pub const MAX_THREADS: usize = 8;

/// The same for reading: one thread hashes what comes out, and cannot keep up with more. Reading holds at most 18 blocks
/// with 4 threads, which leaves room for the largest program below the verifier's bound of 64 MiB.
const MAX_READING_THREADS: usize = 4;

/// libdeflate's level, measured against `gzip -6` on the benchmark's text and machine code: both come out about 1 % smaller.
/// Level 6 gains another 0.5 % and costs a quarter more time; level 4 loses 2 % and is larger than gzip's.
const LEVEL: i32 = 5;

/// Header with the extra field: fixed part, XLEN, subfield id, subfield length, member length.
const HEADER: usize = 10 + 2 + 2 + 2 + 4;
/// CRC-32 and length of the uncompressed data.
const TRAILER: usize = 8;
const MAGIC: [u8; 16] = [
    0x1f, 0x8b, 8, // gzip, deflate
    4, // flags: only FEXTRA
    0, 0, 0, 0, // no modification time
    0, 255, // no extra flags, unknown operating system
    8, 0, // length of the extra field
    b'S', b'L', 4, 0, // subfield and its length
];
/// A stored block of BLOCK bytes, with deflate's five bytes per 64 KiB, is the largest there can be.
const MAX_MEMBER: usize = HEADER + BLOCK + BLOCK / 1024 + 64 + TRAILER;

/// The number of threads to use when the caller did not say: as many as there are processors, at most [`MAX_THREADS`].
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))
}

/// Compresses what is written to it. The output depends on the bytes and on where [`Writer::end_member`] is called, not
/// on the sizes of the writes or on the number of threads.
pub struct Writer<W: Write> {
    inner: W,
    block: Vec<u8>,
    pool: Pool,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Starts `threads` compressors (at least one, at most [`MAX_THREADS`]).
    pub fn new(inner: W, threads: usize) -> Self {
        Self { inner, block: Vec::with_capacity(BLOCK), pool: Pool::new(threads, Deflater::compress), written: 0 }
    }

    /// Ends the current member, so that what follows begins a new one. Returns the compressed length so far.
    ///
    /// # Errors
    /// Writing to the inner writer failed, or the process was interrupted.
    pub fn end_member(&mut self) -> io::Result<u64> {
        self.submit()?;
        self.drain(0)?;
        Ok(self.written)
    }

    /// Compresses and writes what is left, and gives back the inner writer.
    ///
    /// # Errors
    /// As [`Writer::end_member`].
    pub fn finish(mut self) -> io::Result<W> {
        self.end_member()?;
        Ok(self.inner)
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        interrupt::check()?;
        let next = self.pool.buffer();
        let full = std::mem::replace(&mut self.block, next);
        self.pool.submit(full);
        self.drain(self.pool.capacity())
    }

    fn drain(&mut self, leave: usize) -> io::Result<()> {
        while self.pool.in_flight() > leave {
            let member = self.pool.next()?;
            self.inner.write_all(&member)?;
            self.written += member.len() as u64;
            self.pool.recycle(member);
        }
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let taken = buffer.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&buffer[..taken]);
        if self.block.len() == BLOCK {
            self.submit()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A member's end is part of the output's form; flushing must not move it.
        Ok(())
    }
}

/// Inflates a sequence of members of the form that [`Writer`] makes, and refuses any other.
pub struct Reader<R: Read> {
    inner: R,
    pool: Pool,
    current: Vec<u8>,
    position: usize,
    ended: bool,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Starts `threads` inflaters, at least one and at most four.
    pub fn new(inner: R, threads: usize) -> Self {
        Self {
            inner,
            pool: Pool::new(threads.min(MAX_READING_THREADS), Inflater::inflate),
            current: Vec::new(),
            position: 0,
            ended: false,
            offset: 0,
        }
    }

    fn refill(&mut self) -> io::Result<()> {
        interrupt::check()?;
        while !self.ended && self.pool.in_flight() < self.pool.capacity() {
            match self.next_member()? {
                Some(member) => self.pool.submit(member),
                None => self.ended = true,
            }
        }
        if self.pool.in_flight() > 0 {
            self.current = self.pool.next()?;
            self.position = 0;
        }
        Ok(())
    }

    fn next_member(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut member = self.pool.buffer();
        if !read_member_into(&mut self.inner, self.offset, &mut member)? {
            return Ok(None);
        }
        self.offset += member.len() as u64;
        Ok(Some(member))
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.current.len() {
            if self.ended && self.pool.in_flight() == 0 {
                return Ok(0);
            }
            self.pool.recycle(std::mem::take(&mut self.current));
            self.position = 0;
            self.refill()?;
        }
        let available = &self.current[self.position..];
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.position += taken;
        Ok(taken)
    }
}

/// The next whole member as it stands in the file, still compressed; `None` at the end. `offset` is where it starts and
/// only serves the error message.
///
/// # Errors
/// `UnexpectedEof` when the input ends inside a member, `InvalidData` when what follows is not a member.
pub(crate) fn read_member(inner: &mut impl Read, offset: u64) -> io::Result<Option<Vec<u8>>> {
    let mut member = Vec::new();
    Ok(read_member_into(inner, offset, &mut member)?.then_some(member))
}

/// As [`read_member`], into a buffer that is used again. Returns whether there was a member.
fn read_member_into(inner: &mut impl Read, offset: u64, member: &mut Vec<u8>) -> io::Result<bool> {
    let mut header = [0; HEADER];
    let got = read_fully(inner, &mut header)?;
    if got == 0 {
        return Ok(false);
    }
    if header[..got.min(MAGIC.len())] != MAGIC[..got.min(MAGIC.len())] {
        return Err(if offset == 0 {
            invalid("it does not begin as an archive made by spacelift-bundle".to_owned())
        } else {
            invalid(format!("garbage after the compressed data, at byte {offset}"))
        });
    }
    if got < HEADER {
        return Err(truncated(offset));
    }
    let length = u32::from_le_bytes([header[16], header[17], header[18], header[19]]) as usize;
    if !(HEADER + TRAILER + 1..=MAX_MEMBER).contains(&length) {
        return Err(invalid(format!("the compressed block at byte {offset} claims a length of {length} bytes")));
    }
    member.resize(length, 0);
    member[..HEADER].copy_from_slice(&header);
    if read_fully(inner, &mut member[HEADER..])? < length - HEADER {
        return Err(truncated(offset));
    }
    Ok(true)
}

fn truncated(offset: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("it ends inside the compressed block at byte {offset}: the file is truncated"),
    )
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Fills `buffer` as far as the input goes; returns how far that was.
pub(crate) fn read_fully(inner: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match inner.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// One thread's compressors, made when they are first needed and kept: setting one up costs as much as compressing a
/// few KiB.
#[derive(Default)]
struct Deflater([Option<Compressor>; 13]);

impl Deflater {
    fn at_level(&mut self, level: i32) -> io::Result<&mut Compressor> {
        let invalid = || io::Error::other(format!("libdeflate has no level {level}"));
        let slot = usize::try_from(level).ok().and_then(|level| self.0.get_mut(level)).ok_or_else(invalid)?;
        let lvl = CompressionLvl::new(level).map_err(|_| invalid())?;
        Ok(slot.get_or_insert_with(|| Compressor::new(lvl)))
    }

    fn compress(&mut self, block: &[u8], member: &mut Vec<u8>) -> io::Result<()> {
        let level = self.level_for(block)?;
        let compressor = self.at_level(level)?;
        member.resize(HEADER + compressor.deflate_compress_bound(block.len()) + TRAILER, 0);
        let end = member.len() - TRAILER;
        let length = compressor
            .deflate_compress(block, &mut member[HEADER..end])
            .map_err(|error| io::Error::other(format!("compressing a block: {error}")))?;
        member.truncate(HEADER + length);
        member.extend_from_slice(&libdeflater::crc32(block).to_le_bytes());
        member.extend_from_slice(&(block.len() as u32).to_le_bytes());
        let total = member.len() as u32;
        member[..MAGIC.len()].copy_from_slice(&MAGIC);
        member[MAGIC.len()..HEADER].copy_from_slice(&total.to_le_bytes());
        Ok(())
    }

    /// The level to compress `block` at. Three samples decide, so the answer depends on the bytes alone.
    ///
    /// Image layers fill whole blocks with data that is compressed already: those are stored.
    fn level_for(&mut self, block: &[u8]) -> io::Result<i32> {
        const SAMPLE: usize = 16 * 1024;
        /// Below a saving of 2 %, a customer's disk gains less than their time loses.
        const WORTHWHILE: usize = SAMPLE * 98 / 100;
        if block.len() < 8 * SAMPLE {
            return Ok(LEVEL);
        }
        let samples = [0, (block.len() - SAMPLE) / 2, block.len() - SAMPLE].map(|start| &block[start..start + SAMPLE]);
        let fastest = self.at_level(1)?;
        let mut output = vec![0; fastest.deflate_compress_bound(SAMPLE)];
        let incompressible = samples
            .iter()
            .all(|sample| fastest.deflate_compress(sample, &mut output).is_ok_and(|length| length > WORTHWHILE));
        Ok(if incompressible { 0 } else { LEVEL })
    }
}

/// One thread's decompressor. Not libdeflate's: that one passes over what follows the end of the compressed data, where
/// every other reader of gzip looks for the trailer and then for another member, so that a whole member could hide there.
/// This one says how much it read; and it is Rust, so no C code sees what an attacker wrote.
struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

impl Inflater {
    fn inflate(&mut self, member: &[u8], block: &mut Vec<u8>) -> io::Result<()> {
        let damaged = |what: &str| Err(invalid(format!("a compressed block is damaged: {what}")));
        let body = &member[HEADER..member.len() - TRAILER];
        let trailer = &member[member.len() - TRAILER..];
        let crc = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]);
        let length = u32::from_le_bytes([trailer[4], trailer[5], trailer[6], trailer[7]]) as usize;
        if length == 0 || length > BLOCK {
            return Err(invalid(format!(
                "a compressed block claims to hold {length} bytes; at most {BLOCK} are allowed"
            )));
        }
        block.resize(length, 0);
        self.0.reset(false);
        match self.0.decompress(body, block, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => {}
            Ok(Status::Ok | Status::BufError) => return damaged("it holds more or less data than its trailer says"),
            Err(error) => return damaged(&error.to_string()),
        }
        if self.0.total_in() != body.len() as u64 {
            return damaged("its data end before its trailer");
        }
        if self.0.total_out() != length as u64 || libdeflater::crc32(block) != crc {
            return damaged("its length or CRC-32 does not match");
        }
        Ok(())
    }
}

/// What a thread works on: the input, a buffer for the output, and where both go.
struct Job {
    input: Vec<u8>,
    output: Vec<u8>,
    done: SyncSender<Done>,
}

struct Done {
    input: Vec<u8>,
    output: Vec<u8>,
    result: io::Result<()>,
}

/// Worker threads whose results come back in the order in which their jobs were submitted. Buffers go round: asking the
/// system for a mebibyte of zeroed pages per block costs as much as inflating it.
struct Pool {
    jobs: Option<SyncSender<Job>>,
    results: VecDeque<Receiver<Done>>,
    spare: Vec<Vec<u8>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads. Each has a `State` of its own.
    fn new<State: Default + 'static>(
        threads: usize,
        task: fn(&mut State, &[u8], &mut Vec<u8>) -> io::Result<()>,
    ) -> Self {
        let threads = threads.clamp(1, MAX_THREADS);
        let (jobs, queue) = sync_channel::<Job>(2 * threads);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    let mut state = State::default();
                    loop {
                        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(Job { input, mut output, done }) = job else { return };
                        let result = task(&mut state, &input, &mut output);
                        // The receiver is gone only when the whole operation was given up.
                        let _ = done.send(Done { input, output, result });
                    }
                })
            })
            .collect();
        Self { jobs: Some(jobs), results: VecDeque::new(), spare: Vec::new(), threads }
    }

    /// How many jobs may be in flight: enough that no thread waits, few enough to bound the memory.
    fn capacity(&self) -> usize {
        2 * self.threads.len()
    }

    fn in_flight(&self) -> usize {
        self.results.len()
    }

    /// An empty buffer, with room from an earlier use if there was one.
    fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && self.spare.len() <= 2 * self.capacity() {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    fn submit(&mut self, input: Vec<u8>) {
        let (done, receiver) = sync_channel(1);
        self.results.push_back(receiver);
        let output = self.buffer();
        if let Some(jobs) = &self.jobs {
            // Fails only when every thread is gone; `next` then reports that.
            let _ = jobs.send(Job { input, output, done });
        }
    }

    fn next(&mut self) -> io::Result<Vec<u8>> {
        let lost = || io::Error::other("a compression thread ended unexpectedly");
        let done = self.results.pop_front().ok_or_else(lost)?.recv().map_err(|_| lost())?;
        self.recycle(done.input);
        done.result.map(|()| done.output)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        self.results.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text-like and random-like stretches, longer than several blocks.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        (0..length)
            .map(|index| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if (index / 1_500_000) % 2 == 0 { b"abcdefgh"[(state % 8) as usize] } else { (state >> 11) as u8 }
            })
            .collect()
    }

    fn packed(data: &[u8], threads: usize, step: usize) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), threads);
        for piece in data.chunks(step) {
            writer.write_all(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    fn unpacked(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Reader::new(data, 2).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn output_depends_on_the_bytes_alone() {
        let data = sample(5_300_000);
        let one = packed(&data, 1, 7_919);
        assert_eq!(one, packed(&data, 2, data.len()));
        assert_eq!(one, packed(&data, 5, 65_536));
        assert_eq!(unpacked(&one).unwrap(), data);
    }

    #[test]
    fn ordinary_gzip_reads_it() {
        let data = sample(3_000_000);
        let mut out = Vec::new();
        flate2::read::MultiGzDecoder::new(packed(&data, 2, 4096).as_slice()).read_to_end(&mut out).unwrap();
        assert_eq!(out, data);
    }

    #[test]
    fn compressed_data_is_stored_and_text_is_not() {
        let text = &sample(BLOCK)[..];
        let mut deflater = Deflater::default();
        assert_eq!(deflater.level_for(text).unwrap(), LEVEL);
        let code: Vec<u8> = text.iter().map(|byte| byte ^ 0x80).collect();
        assert_eq!(deflater.level_for(&code).unwrap(), LEVEL);
        assert_eq!(deflater.level_for(&sample(3_000_000)[1_600_000..1_600_000 + BLOCK]).unwrap(), 0);
        let mut member = Vec::new();
        deflater.compress(text, &mut member).unwrap();
        assert!(member.len() < BLOCK / 2);
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let whole = packed(&sample(40_000), 1, 4096);
        for length in 1..whole.len() {
            assert!(unpacked(&whole[..length]).is_err(), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn trailing_garbage_is_an_error() {
        for garbage in [&b"x"[..], &[0; 512], &[0x1f, 0x8b, 8, 0], b"\x1f\x8b\x08\x04"] {
            let mut whole = packed(&sample(40_000), 1, 4096);
            whole.extend_from_slice(garbage);
            assert!(unpacked(&whole).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn a_changed_bit_is_an_error() {
        let whole = packed(&sample(4_000), 1, 4096);
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(unpacked(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn plain_gzip_is_refused() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"hello").unwrap();
        let error = unpacked(&encoder.finish().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
