//! A proxy that leads to servers on loopback by a name that nothing else resolves: what comes through was led by it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::pki::UNRESOLVABLE;

/// User and password that it wants, as in an address.
pub const CREDENTIALS: &str = "user:p%40ss@";

/// A proxy that knows `CONNECT`, and one host.
#[derive(Debug)]
pub struct ConnectProxy {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Starts it.
    ///
    /// # Panics
    /// There is no free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::default();
        let seen: Arc<Mutex<Vec<String>>> = Arc::clone(&requests);
        // It ends with the process; a connection lasts as long as its two ends.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(client, &seen));
            }
        });
        Self { port, requests }
    }

    /// Its address, with [`CREDENTIALS`] or none.
    pub fn address(&self, credentials: &str) -> String {
        format!("http://{credentials}127.0.0.1:{}", self.port)
    }

    /// Requests so far.
    ///
    /// # Panics
    /// A thread of it has panicked.
    pub fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn serve(mut client: TcpStream, seen: &Mutex<Vec<String>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).ok()?;
    let port = head.strip_prefix(&format!("CONNECT {UNRESOLVABLE}:"))?.split(' ').next()?.parse::<u16>().ok()?;
    // The credentials, in base64 and here in lower case.
    let is_known = head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpwqhnz");
    seen.lock().unwrap().push(head);
    if !is_known {
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n").ok()?;
        return None;
    }
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    let upwards = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (server, client);
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    upwards.join().ok()
}
