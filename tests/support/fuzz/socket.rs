//! Whatever a container's processes write to the launcher's socket: the real server on a real socket, with a run of its own for
//! each input.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};
use launcher_wire::key::PoolKey;
use spacelift_launcher::api_client::ApiClient;
use spacelift_launcher::events::{Message, Sender};
use spacelift_launcher::network::{self, Network};
use spacelift_launcher::run::Ids;
use spacelift_launcher::run_log::RunLog;
use spacelift_launcher::slot::Said;
use spacelift_launcher::transfer::Transfer;
use spacelift_launcher::upload::Store;
use spacelift_launcher::worker_server::{Settings, WorkerServer};
use spacelift_worker::protocol::Job;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::pki::Authority;

/// What the worker shows in the inputs that are kept.
const SESSION: &str = "the-session-of-the-worker";
/// What it would have to show where the input is a stranger's. Nobody guesses it.
const OTHER_SESSION: &str = "Jz1qHWn0cXq6mJrQ9bVt";
/// In the job, and nowhere else.
const SECRET: &str = "kR7wvEoYp2sD";
/// More events than an input of the largest size makes.
const EVENTS: usize = 16 * 1024;
/// How often the server's tasks get their turn before the peer is gone. A call takes a few.
const TURNS: usize = 32;
/// What takes longer hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// One thread, so that tasks take turns in the same order each time; the disk has threads of its own.
struct Host {
    runtime: Runtime,
    key: PoolKey,
    store: Store,
}

static HOST: LazyLock<Host> = LazyLock::new(|| {
    let authority = Authority::new();
    let key = fs::read_to_string(authority.client("pool").1).expect("it was made");
    let key = PoolKey::from_pem(&key).expect("it is a pool's key");
    let settings = network::Settings { token_authorities: Some(authority.pem()), ..network::Settings::default() };
    let network = Network::new(&settings).expect("an authority is there");
    let http = network.api_client().expect("a client can be made");
    // Nobody listens there: what a peer wants of the object store it does not get.
    let api = ApiClient::new(http, "https://127.0.0.1:1", key.clone(), PoolId::new(), WorkerId::new());
    let http = network.object_store_client().expect("a client can be made");
    let store = Store::new(api.expect("it is an address"), http, RunId::new(), AssignmentId::new());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are file descriptors");
    Host { runtime, key, store }
});

/// What came of an input.
struct Heard {
    answer: Vec<u8>,
    sequence: u64,
    said: Option<Said>,
    events: Vec<Message>,
}

/// Bytes of a connection. The first one is not of it: its lowest bit says whether the worker has said something before, the next
/// one whether it would have to show something else than in the inputs.
pub(super) fn hear(bytes: &[u8]) {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let (is_executed, is_stranger) = (first & 1 != 0, first & 2 != 0);
    let host = &*HOST;
    let directory = super::scratch();
    let session = if is_stranger { OTHER_SESSION } else { SESSION };
    let heard = host.runtime.block_on(host.connection(directory.path(), session, is_executed, bytes));
    if is_executed {
        let shown = heard.answer.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!shown, "the job is given although its processes are there");
    }
    if is_executed && is_stranger {
        assert_eq!((heard.sequence, &heard.said), (1, &None), "a stranger is heard");
        assert_eq!(heard.events, [], "a stranger makes something happen");
    }
    if let Some(outcome) = heard.said.and_then(|said| said.outcome) {
        assert!(!outcome.message.contains(char::is_control), "not a line: {outcome:?}");
    }
}

impl Host {
    async fn connection(&self, directory: &Path, session: &str, is_executed: bool, bytes: &[u8]) -> Heard {
        let (sender, mut receiver) = mpsc::channel(EVENTS);
        let ids = Ids { run: RunId::new(), assignment: AssignmentId::new() };
        let log = RunLog::open(&directory.join("log"), ids, self.store.clone(), false).await.expect("there is room");
        if is_executed {
            log.append(&[(1, vec![])]).await.expect("there is room");
        }
        let socket = directory.join("launcher.sock");
        let listener = UnixListener::bind(&socket).expect("there is room");
        let server = WorkerServer::serve(
            listener,
            Settings {
                socket: socket.clone(),
                session: session.to_owned(),
                job: Some(Job { command: Some(SECRET.to_owned()), session: session.to_owned(), ..Job::default() }),
                directory: directory.to_owned(),
                said: Said::default(),
                log: log.clone(),
                events: Sender::new(sender, ids.assignment),
                transfer: Transfer::new(self.store.clone(), self.key.clone(), directory.to_owned()),
            },
        );
        let mut peer = UnixStream::connect(&socket).await.expect("it listens");
        let mut answer = vec![];
        let conversation = async {
            // The server may close while it is still written to: that is an answer, too.
            if peer.write_all(bytes).await.is_ok() {
                for _ in 0..TURNS {
                    tokio::task::yield_now().await;
                }
            }
            let _ = peer.shutdown().await;
            let _ = peer.read_to_end(&mut answer).await;
        };
        timeout(LIMIT, conversation).await.expect("a connection ends when its peer ends");
        drop(peer);
        // What is in flight is read by then.
        timeout(LIMIT, server.close()).await.expect("the session ends with its connection");
        drop(server);
        let sequence = log.last_sequence();
        drop(log);
        let since = Instant::now();
        while self.runtime.metrics().num_alive_tasks() > 0 {
            assert!(since.elapsed() < LIMIT, "a task of a connection that has ended is there");
            tokio::task::yield_now().await;
        }
        let said = Said::kept(directory).expect("what was kept can be read");
        let mut events = vec![];
        while let Ok(event) = receiver.try_recv() {
            events.push(event);
        }
        Heard { answer, sequence, said, events }
    }
}
