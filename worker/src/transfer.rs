//! Archives and outputs on their way between the launcher and the disk, in parts: nothing is in memory as a whole.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::archive;
use crate::protocol::{Download, DownloadRequest, MAXIMUM_PART, Upload, UploadPart};
use crate::session::Launcher;

/// A launcher that is being restarted is back long before.
const MAXIMUM_ABSENCE: Duration = Duration::from_secs(15 * 60);
/// The first wait between two attempts, and the longest: an attempt may mean to pack everything once more.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Parts between the connection and the disk.
const PARTS: usize = 16;

/// Why a transfer did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher refused, or did not come back.
    #[error("the launcher: {0}")]
    Launcher(String),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// What came does not have the size of what was sent.
    #[error("{sent} bytes were sent and {came} came")]
    Size {
        /// Bytes that were sent.
        sent: u64,
        /// Bytes that came.
        came: u64,
    },
}

enum Attempt {
    /// It may work another time.
    Broken(String),
    Failed(Error),
}

/// Repeats an attempt until it works or the launcher was away for too long.
async fn persistently<T>(mut attempt: impl AsyncFnMut() -> Result<T, Attempt>) -> Result<T, Error> {
    let begin = Instant::now();
    let mut pause = PAUSE;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(Attempt::Failed(error)) => return Err(error),
            Err(Attempt::Broken(reason)) if begin.elapsed() > MAXIMUM_ABSENCE => return Err(Error::Launcher(reason)),
            Err(Attempt::Broken(_)) => sleep(pause).await,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn classified(status: &Status) -> Attempt {
    match status.code() {
        // What a connection that broke looks like.
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Aborted
        | Code::Internal
        | Code::DeadlineExceeded => Attempt::Broken(status.message().to_owned()),
        _ => Attempt::Failed(Error::Launcher(status.message().to_owned())),
    }
}

/// Downloads an archive and unpacks it; `clear` is called before another attempt: what is there before
/// the first one may be mounted.
///
/// # Errors
/// When the launcher has none, or it cannot be unpacked.
pub async fn download(
    launcher: Launcher,
    what: Download,
    into: PathBuf,
    clear: impl Fn() -> io::Result<()>,
) -> Result<(), Error> {
    let mut again = false;
    persistently(async || {
        if std::mem::replace(&mut again, true) {
            clear().map_err(|source| {
                let context = "cannot clear the directory: ".to_owned();
                Attempt::Failed(archive::Error::Io { context, source }.into())
            })?;
        }
        let mut client = launcher.client().await.map_err(|error| Attempt::Broken(error.to_string()))?;
        let request = DownloadRequest { what: what.into() };
        let mut stream = client.download(request).await.map_err(|status| classified(&status))?.into_inner();
        let (sender, receiver) = mpsc::channel(PARTS);
        let into = into.clone();
        let unpacking = spawn_blocking(move || archive::unpack(Parts { receiver, part: Vec::new(), at: 0 }, &into));
        let mut broken = None;
        loop {
            match stream.message().await {
                // Whoever unpacks does not want more: it has failed.
                Ok(Some(chunk)) => {
                    if sender.send(Ok(chunk.data)).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(status) => {
                    let _ = sender.send(Err(io::Error::other("the connection broke"))).await;
                    broken = Some(status);
                    break;
                }
            }
        }
        drop(sender);
        let unpacked = unpacking.await.map_err(|error| Attempt::Broken(error.to_string()))?;
        match broken {
            Some(status) => Err(classified(&status)),
            None => unpacked.map_err(|error| Attempt::Failed(error.into())),
        }
    })
    .await
}

struct Parts {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            match self.receiver.blocking_recv() {
                Some(part) => (self.part, self.at) = (part?, 0),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.part.len() - self.at);
        buffer[..length].copy_from_slice(&self.part[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Uploads what `produce` writes; it is called again at each attempt.
///
/// # Errors
/// When it cannot be produced, or the launcher refuses it.
pub async fn upload<T, P>(launcher: Launcher, what: Upload, produce: P) -> Result<T, Error>
where
    T: Send + 'static,
    P: Fn(&mut dyn Write) -> Result<T, archive::Error> + Clone + Send + 'static,
{
    persistently(async || {
        let mut client = launcher.client().await.map_err(|error| Attempt::Broken(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(PARTS);
        let produce = produce.clone();
        let producing = spawn_blocking(move || {
            let mut parts = Sender { sender, what, part: Vec::with_capacity(MAXIMUM_PART), size: 0 };
            let value = produce(&mut parts)?;
            // The mark at the end is what makes it count.
            parts.send(true).map_err(|source| archive::Error::Io { context: String::new(), source })?;
            Ok::<_, archive::Error>((value, parts.size))
        });
        let answer = client.upload(ReceiverStream::new(receiver)).await;
        let produced = producing.await.map_err(|error| Attempt::Broken(error.to_string()))?;
        match (produced, answer) {
            (Ok((value, sent)), Ok(answer)) => match answer.into_inner().size {
                came if came == sent => Ok(value),
                came => Err(Attempt::Failed(Error::Size { sent, came })),
            },
            // Nobody took it any more: the launcher knows why.
            (Err(archive::Error::Io { source, .. }), Err(status)) if source.kind() == io::ErrorKind::BrokenPipe => {
                Err(classified(&status))
            }
            (Err(error), _) => Err(Attempt::Failed(error.into())),
            (Ok(_), Err(status)) => Err(classified(&status)),
        }
    })
    .await
}

struct Sender {
    sender: mpsc::Sender<UploadPart>,
    what: Upload,
    part: Vec<u8>,
    size: u64,
}

impl Sender {
    fn send(&mut self, last: bool) -> io::Result<()> {
        let data = std::mem::replace(&mut self.part, Vec::with_capacity(MAXIMUM_PART));
        self.size += data.len() as u64;
        let part = UploadPart { what: self.what.into(), data, last };
        self.sender.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(MAXIMUM_PART - self.part.len());
        self.part.extend_from_slice(&bytes[..length]);
        if self.part.len() == MAXIMUM_PART {
            self.send(false)?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
