//! A proxy between a client and a server on loopback that makes things go wrong at a chosen request.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is passed on.
    None,
    /// It is answered with this, and the connection is closed.
    Answer(String),
    /// The connection is closed after so many bytes of the request were passed on.
    Cut(usize),
}

type Decide = dyn Fn(usize, &str) -> Fault + Send + Sync;

/// The proxy. It ends when this is dropped.
pub struct FaultProxy {
    port: u16,
    requests: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl FaultProxy {
    /// Passes on to `127.0.0.1:upstream`. `decide` is given the number of each request, from 0, and its
    /// beginning: the first line, and as a rule all headers.
    ///
    /// # Panics
    /// There is no free port.
    pub fn start(upstream: u16, decide: impl Fn(usize, &str) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, ended): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let decide: Arc<Decide> = Arc::new(decide);
        let (count, end) = (Arc::clone(&requests), Arc::clone(&ended));
        thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect((Ipv4Addr::LOCALHOST, upstream))) else {
                    continue;
                };
                let (decide, count) = (Arc::clone(&decide), Arc::clone(&count));
                thread::spawn(move || serve(&client, &server, &count, &*decide));
            }
        });
        Self { port, requests, ended }
    }

    /// Its address, for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener, so that it sees that it has ended.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn serve(client: &TcpStream, server: &TcpStream, count: &AtomicUsize, decide: &Decide) {
    let (Ok(mut from_server), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else { return };
    let answers = thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    requests(client, server, count, decide);
    let _ = server.shutdown(Shutdown::Both);
    let _ = answers.join();
    let _ = client.shutdown(Shutdown::Both);
}

/// Passes requests on until one is not. A client sends the next one only after the answer, so each begins a chunk.
fn requests(mut client: &TcpStream, mut server: &TcpStream, count: &AtomicUsize, decide: &Decide) {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = usize::MAX;
    loop {
        let read = match client.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        let chunk = &buffer[..read];
        if ["GET ", "PUT ", "HEAD ", "POST ", "DELETE ", "CONNECT "]
            .iter()
            .any(|method| chunk.starts_with(method.as_bytes()))
        {
            let number = count.fetch_add(1, Ordering::Relaxed);
            match decide(number, &String::from_utf8_lossy(chunk)) {
                Fault::None => left = usize::MAX,
                Fault::Cut(after) => left = after,
                Fault::Answer(answer) => {
                    let _ = client.write_all(answer.as_bytes());
                    // What the client still sends is read, or closing would take the answer away from it.
                    let _ = client.shutdown(Shutdown::Write);
                    let _ = client.set_read_timeout(Some(Duration::from_millis(200)));
                    while client.read(&mut buffer).is_ok_and(|read| read > 0) {}
                    return;
                }
            }
        }
        let passed = read.min(left);
        if server.write_all(&buffer[..passed]).is_err() || passed < read {
            return;
        }
        left -= if left == usize::MAX { 0 } else { passed };
    }
}
