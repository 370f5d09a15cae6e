//! The conversation with the launcher.
//!
//! [`Outbox`] numbers what the worker says and keeps it until the launcher has it on disk; [`Connection`] carries it there,
//! over as many connections as it takes. Nobody else has to know that a connection can break.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::protocol::service::launcher_client::LauncherClient;
use crate::protocol::{
    FromWorker, Hello, Job, MAXIMUM_MESSAGE, MAXIMUM_PART, MAXIMUM_UNACKNOWLEDGED, SESSION, VERSION, from_worker,
    to_worker,
};
use crate::stop::Stopper;

/// A launcher that was away for longer does not come back to this run: its own limit for a run is far below.
pub const MAXIMUM_ABSENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// A launcher that accepts a connection answers at once; this one is stuck, so another attempt is made.
const MAXIMUM_SILENCE: Duration = Duration::from_secs(30);
/// Between attempts to connect: doubled from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Why the conversation ended for good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error(
        "no launcher has answered at `{path}` for {hours} hours ({last}); nothing can be reported any more, so the job was \
         ended", path = path.display(), hours = MAXIMUM_ABSENCE.as_secs() / 3600
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What went wrong last.
        last: String,
    },
    /// The launcher forgot what it had acknowledged, or acknowledged what was never sent.
    #[error(
        "the launcher says that it has everything up to message {said}, but it must have {kept} and can have no more than \
         {sent}: its journal of this run is damaged, or it is another launcher"
    )]
    Numbers {
        /// What it says.
        said: u64,
        /// What it acknowledged before.
        kept: u64,
        /// What was sent.
        sent: u64,
    },
}

/// What the worker says, in order, until it is acknowledged.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    space: Semaphore,
    last: watch::Sender<u64>,
    acknowledged: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<FromWorker>,
    /// The last message that was given to a connection. It and those before it may be at the launcher, and never change.
    given: u64,
}

impl Queue {
    /// Adds to the last message where that is possible: a job that prints line by line would be told of in as many messages,
    /// and waited for as often. Gives back what was not added.
    fn extend(&mut self, body: from_worker::Body) -> Option<from_worker::Body> {
        let last = self.messages.back_mut().filter(|message| message.sequence > self.given);
        if let (Some(from_worker::Body::Log(last)), from_worker::Body::Log(more)) =
            (last.and_then(|message| message.body.as_mut()), &body)
            && last.len() + more.len() <= MAXIMUM_PART
        {
            // Twice what is needed, as vectors grow, would be twice the memory of all that waits.
            if last.capacity() < last.len() + more.len() {
                last.reserve_exact(MAXIMUM_PART - last.len());
            }
            last.extend_from_slice(more);
            return None;
        }
        Some(body)
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            space: Semaphore::new(MAXIMUM_UNACKNOWLEDGED),
            last: watch::Sender::new(0),
            acknowledged: watch::Sender::new(0),
        }
    }
}

impl Outbox {
    /// Says something. Waits while [`MAXIMUM_UNACKNOWLEDGED`] messages are not acknowledged; a caller that stops waiting has
    /// said nothing.
    pub async fn push(&self, body: from_worker::Body) {
        let Some(body) = self.queue().extend(body) else { return };
        // The semaphore is never closed.
        if let Ok(permit) = self.space.acquire().await {
            permit.forget();
        }
        let mut queue = self.queue();
        let sequence = *self.last.borrow() + 1;
        queue.messages.push_back(FromWorker { sequence, body: Some(body) });
        self.last.send_replace(sequence);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // What it guards is whole in every moment.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything is acknowledged.
    pub async fn empty(&self) {
        let mut acknowledged = self.acknowledged.subscribe();
        // The sender lives as long as `self`.
        let _ = acknowledged.wait_for(|&acknowledged| acknowledged == *self.last.borrow()).await;
    }

    fn acknowledge(&self, upto: u64) -> Result<(), Error> {
        let (kept, sent) = (*self.acknowledged.borrow(), *self.last.borrow());
        if !(kept..=sent).contains(&upto) {
            return Err(Error::Numbers { said: upto, kept, sent });
        }
        let mut queue = self.queue();
        let done = queue.messages.iter().take_while(|message| message.sequence <= upto).count();
        queue.messages.drain(..done);
        drop(queue);
        self.space.add_permits(done);
        self.acknowledged.send_replace(upto);
        Ok(())
    }

    /// The message after the one of this number, as soon as there is one.
    async fn after(&self, sequence: u64) -> FromWorker {
        let mut last = self.last.subscribe();
        loop {
            let message = {
                let mut queue = self.queue();
                let place = queue.messages.partition_point(|message| message.sequence <= sequence);
                let message = queue.messages.get(place).cloned();
                queue.given = queue.given.max(message.as_ref().map_or(0, |message| message.sequence));
                message
            };
            if let Some(message) = message {
                return message;
            }
            // The sender lives as long as `self`.
            let _ = last.wait_for(|&last| last > sequence).await;
        }
    }
}

/// A client of the launcher's service.
pub type Client = LauncherClient<InterceptedService<Channel, Proof>>;

/// Where the launcher is, and what shows it that the worker speaks.
#[derive(Clone)]
pub struct Launcher {
    /// Where it listens.
    pub socket: PathBuf,
    /// The job's `session`; empty as long as there is no job.
    pub session: String,
}

impl fmt::Debug for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launcher").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Launcher {
    /// A client with a connection of its own.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn client(&self) -> Result<Client, tonic::transport::Error> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        // The address is needed for form's sake: the connector knows where to go.
        let channel = Endpoint::from_static("http://launcher").connect_with_connector(connector).await?;
        let proof = self.session.parse().ok().filter(|_| !self.session.is_empty());
        Ok(LauncherClient::with_interceptor(channel, Proof(proof))
            .max_decoding_message_size(MAXIMUM_MESSAGE)
            .max_encoding_message_size(MAXIMUM_MESSAGE))
    }
}

/// Puts the header [`SESSION`] on each call.
#[derive(Clone)]
pub struct Proof(Option<AsciiMetadataValue>);

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof")
    }
}

impl Interceptor for Proof {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(proof) = &self.0 {
            request.metadata_mut().insert(SESSION, proof.clone());
        }
        Ok(request)
    }
}

/// Carries the outbox to the launcher, and the launcher's orders to the worker.
#[derive(Debug)]
pub struct Connection {
    /// The launcher.
    pub launcher: Launcher,
    /// What is to be said.
    pub outbox: Arc<Outbox>,
    /// Hears of [`crate::protocol::Stop`].
    pub stopper: Stopper,
    /// Gets the job.
    pub job: Option<oneshot::Sender<Box<Job>>>,
}

impl Connection {
    /// Does so until it is dropped.
    ///
    /// # Errors
    /// When it can never go on.
    pub async fn run(mut self) -> Error {
        let mut away_since = Instant::now();
        let mut back_off = BACK_OFF.0;
        loop {
            let mut met = false;
            let last = match self.converse(&mut met).await {
                Ok(reason) => reason,
                Err(error) => return error,
            };
            if met {
                (away_since, back_off) = (Instant::now(), BACK_OFF.0);
            }
            if away_since.elapsed() > MAXIMUM_ABSENCE {
                return Error::Absent { path: self.launcher.socket, last };
            }
            sleep(back_off).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    /// One connection. Gives the reason why it ended, which is no error: there will be another one.
    async fn converse(&mut self, met: &mut bool) -> Result<String, Error> {
        let (sender, receiver) = mpsc::channel(8);
        let hello = Hello {
            protocol: VERSION,
            version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            has_job: self.job.is_none(),
        };
        let hello = FromWorker { sequence: 0, body: Some(from_worker::Body::Hello(hello)) };
        // There is room: it is the first.
        let _ = sender.send(hello).await;
        let begin = async {
            let mut client = self.launcher.client().await.map_err(|error| describe(&error))?;
            let mut incoming =
                client.session(ReceiverStream::new(receiver)).await.map_err(|status| describe(&status))?.into_inner();
            let first = incoming.message().await.map_err(|status| describe(&status))?;
            Ok::<_, String>((incoming, first))
        };
        let (mut incoming, welcome) = match timeout(MAXIMUM_SILENCE, begin).await {
            Ok(Ok((incoming, Some(message)))) => match message.body {
                Some(to_worker::Body::Welcome(welcome)) => (incoming, welcome),
                _ => return Ok("the launcher did not begin with a welcome".into()),
            },
            Ok(Ok((_, None))) => return Ok("the launcher ended the session".into()),
            Ok(Err(reason)) => return Ok(reason),
            Err(_) => return Ok("the launcher does not answer".into()),
        };
        self.outbox.acknowledge(welcome.acknowledged)?;
        if let Some(waiting) = self.job.take() {
            match welcome.job {
                Some(job) => {
                    self.launcher.session.clone_from(&job.session);
                    // Whoever waited for it is gone only when the worker ends.
                    let _ = waiting.send(job);
                }
                None => {
                    self.job = Some(waiting);
                    return Ok("the launcher has no job for this worker".into());
                }
            }
        }
        *met = true;
        self.stopper.connected();
        let mut sent = welcome.acknowledged;
        loop {
            let next = async {
                let message = self.outbox.after(sent).await;
                sent = message.sequence;
                sender.send(message).await
            };
            tokio::pin!(next);
            // A message is either sent, or the connection is over: what comes in meanwhile must not interrupt it.
            loop {
                tokio::select! {
                    result = &mut next => match result {
                        Ok(()) => break,
                        Err(_) => return Ok("the connection broke".into()),
                    },
                    message = incoming.message() => match message {
                        Ok(Some(message)) => match message.body {
                            Some(to_worker::Body::Acknowledged(upto)) => self.outbox.acknowledge(upto)?,
                            Some(to_worker::Body::Stop(stop)) => self.stopper.launcher_said(&stop),
                            // A newer launcher may say more than we know.
                            Some(to_worker::Body::Welcome(_)) | None => {}
                        },
                        Ok(None) => return Ok("the launcher ended the session".into()),
                        Err(status) => return Ok(describe(&status)),
                    },
                }
            }
        }
    }
}

fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Nothing in these tests waits, unless it is for what they leave out.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn log(text: &[u8]) -> from_worker::Body {
        from_worker::Body::Log(text.to_vec())
    }

    fn phase() -> from_worker::Body {
        from_worker::Body::Phase(crate::protocol::Phase::Planning.into())
    }

    #[test]
    fn what_waits_becomes_one_message_and_what_was_sent_never_changes() {
        let outbox = Outbox::default();
        let push = |body| now(outbox.push(body)).expect("there is room");
        let after = |sequence| now(outbox.after(sequence)).map(|message| (message.sequence, message.body.unwrap()));
        push(log(b"one\n"));
        push(log(b"two\n"));
        assert_eq!(after(0), Some((1, log(b"one\ntwo\n"))));
        // It may be at the launcher already.
        push(log(b"three\n"));
        assert_eq!(after(1), Some((2, log(b"three\n"))));
        // The connection broke, and the next one begins after what is acknowledged.
        push(log(b"four\n"));
        assert_eq!(after(0), Some((1, log(b"one\ntwo\n"))));
        push(log(b"five\n"));
        push(phase());
        push(log(b"six\n"));
        assert_eq!(after(1), Some((2, log(b"three\n"))));
        assert_eq!(after(2), Some((3, log(b"four\nfive\n"))));
        assert_eq!(after(3), Some((4, phase())));
        assert_eq!(after(4), Some((5, log(b"six\n"))));
        assert_eq!(after(5), None);
    }

    #[test]
    fn a_message_has_at_most_a_part_and_there_are_so_many_of_them() {
        let outbox = Outbox::default();
        let part = [b'x'; MAXIMUM_PART];
        now(outbox.push(log(&part[1..]))).expect("there is room");
        now(outbox.push(log(b"y"))).expect("it fills the first one");
        for _ in 1..MAXIMUM_UNACKNOWLEDGED {
            now(outbox.push(log(&part))).expect("there is room");
        }
        assert_eq!(now(outbox.push(log(b"z"))), None, "the job is not read from any more");
        for sequence in 0..MAXIMUM_UNACKNOWLEDGED as u64 {
            let message = now(outbox.after(sequence)).unwrap();
            assert!(matches!(message.body, Some(from_worker::Body::Log(bytes)) if bytes.len() == MAXIMUM_PART));
        }
        outbox.acknowledge(1).unwrap();
        now(outbox.push(log(b"z"))).expect("there is room again");
    }
}
