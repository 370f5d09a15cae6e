//! A part of the image file as the body of a request.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bundle_core::digest::HashingWriter;
use bundle_core::image::{Blob, BlobDigest};
use bundle_core::interrupt;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// What is read, hashed and sent at once.
const CHUNK: usize = 128 * 1024;
/// Chunks that are read ahead of the network, so that neither waits for the other. With the chunk at each end, four
/// blobs at once take 2 MiB.
const AHEAD: usize = 2;

/// A blob and the file that it is in.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) file: Arc<File>,
    pub(super) blob: Blob,
}

/// The error when the contents are not what the digest says. It comes back through the connection as text.
pub(super) const CHANGED: &str = "the image file was changed while it was being read";

/// Streams a blob: a thread reads and hashes, and the connection takes.
pub(super) struct BlobBody {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
    moved: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl BlobBody {
    /// Starts to read. `moved` and `sent` grow by what the connection takes.
    pub(super) fn start(source: &Source, moved: Arc<AtomicU64>, sent: Arc<AtomicU64>) -> Self {
        let (sender, chunks) = mpsc::channel(AHEAD);
        let left = source.blob.size;
        let source = source.clone();
        // Not awaited: it ends when the receiver does.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = read(&source, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
        }));
        Self { chunks, left, moved, sent }
    }
}

fn read(source: &Source, chunks: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut hash = HashingWriter::new(io::sink());
    let (mut offset, mut left) = (source.blob.offset, source.blob.size);
    let mut last = Bytes::new();
    while left > 0 {
        interrupt::check()?;
        let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        source.file.read_exact_at(&mut chunk, offset)?;
        io::Write::write_all(&mut hash, &chunk)?;
        offset += chunk.len() as u64;
        left -= chunk.len() as u64;
        last = Bytes::from(chunk);
        // The last chunk is kept back: a blob that is not what was verified is never complete on the other side.
        if left > 0 && chunks.blocking_send(Ok(last.clone())).is_err() {
            return Ok(());
        }
    }
    let (_, digest, _) = hash.finish();
    if BlobDigest(digest) != source.blob.digest {
        return Err(io::Error::other(CHANGED));
    }
    if !last.is_empty() {
        let _ = chunks.blocking_send(Ok(last));
    }
    Ok(())
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.chunks.poll_recv(context).map(|chunk| {
            let chunk = chunk?.map(|bytes| {
                let length = bytes.len() as u64;
                self.left = self.left.saturating_sub(length);
                self.moved.fetch_add(length, Ordering::Relaxed);
                self.sent.fetch_add(length, Ordering::Relaxed);
                Frame::data(bytes)
            });
            Some(chunk)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
