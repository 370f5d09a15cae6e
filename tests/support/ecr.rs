//! What ECR is to its clients: a registry behind a door that wants a token, repositories that exist only once they were
//! made, tags that cannot be moved, and the three operations of its API that a push uses.
//!
//! Images are kept by `docker-registry`, which everything that is let in goes on to. ECR's own rules are here, as are the
//! failures that a test asks for, and a record of every request. TLS and plain HTTP are answered on the same port; it is
//! also the proxy through which a client that is told so reaches `*.amazonaws.com`, so that real names can be used.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::registry::Registry;
use crate::run::{succeed, tool};

/// The account that the registry belongs to.
pub const ACCOUNT: &str = "123456789012";
/// The region that it is in.
pub const REGION: &str = "eu-west-1";
/// The password in the tokens that the API gives out.
pub const PASSWORD: &str = "correct-horse-battery-staple";
/// What a token server gives out.
pub const TOKEN: &str = "opaque.token-of-this-registry";

/// How clients are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// As in ECR: with every request the token that its API gives out. Its rules apply.
    Ecr,
    /// With a token from `/token` of the same server, which wants `user` and [`PASSWORD`].
    Token,
    /// With a token from `/token` of the same server, which anyone gets.
    AnonymousToken,
    /// Everyone is let in.
    Open,
}

/// What happens to a request instead of what should.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is read and answered like this.
    Answer {
        /// Status.
        status: u16,
        /// More header lines, each with its end.
        headers: String,
        /// Body.
        body: String,
    },
    /// The connection is cut after this many bytes of its body. Requests with less of it are let through, and the next one
    /// is waited for.
    Cut(u64),
    /// It is done, and the address in the answer's `Location` is on this `scheme://host:port`.
    Elsewhere(String),
    /// Every 64 KiB of its body take this long.
    Slow(Duration),
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Every header, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Bytes of the body that arrived.
    pub body: u64,
}

/// A repository that was made.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    /// Whether tags cannot be moved.
    pub is_immutable: bool,
    /// Whether images are scanned when they are pushed.
    pub is_scanned: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Ecr {
    port: u16,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
    certificates: TempDir,
}

#[derive(Debug)]
struct State {
    door: Door,
    backend: String,
    tls: Arc<ServerConfig>,
    address: String,
    is_stopping: AtomicBool,
    repositories: Mutex<BTreeMap<String, Repository>>,
    faults: Mutex<VecDeque<(String, Fault)>>,
    seen: Mutex<Vec<Seen>>,
    /// Looking whether a tag is there and writing it are one step, as in ECR.
    tagging: Mutex<()>,
    proxy_password: Mutex<Option<String>>,
}

impl Ecr {
    /// Starts in front of a registry.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(registry: &Registry, door: Door) -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let tls = Arc::new(certificate(certificates.path()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            door,
            backend: registry.address(),
            tls,
            address: format!("127.0.0.1:{port}"),
            is_stopping: AtomicBool::new(false),
            repositories: Mutex::default(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            tagging: Mutex::default(),
            proxy_password: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), state) = (stream, Arc::clone(&shared)) else { continue };
                // A client that goes away in the middle of a request is an error of this thread alone.
                thread::spawn(move || drop(connection(&state, stream)));
            }
        });
        Self { port, state, accepting: Some(accepting), certificates }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.state.address.clone()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the authority that vouches for it.
    pub fn authority(&self) -> PathBuf {
        self.certificates.path().join("authority.pem")
    }

    /// The host that ECR has for this account.
    pub fn host() -> String {
        format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com")
    }

    /// Makes a repository.
    pub fn create(&self, name: &str, is_immutable: bool) {
        locked(&self.state.repositories).insert(name.to_owned(), Repository { is_immutable, is_scanned: false });
    }

    /// A repository, if it was made.
    pub fn repository(&self, name: &str) -> Option<Repository> {
        locked(&self.state.repositories).get(name).cloned()
    }

    /// The next request whose method and target contain `part`, such as `PUT /v2/a/blobs/`, fails like this. Several are
    /// used up in their order.
    pub fn fail(&self, part: &str, fault: Fault) {
        locked(&self.state.faults).push_back((part.to_owned(), fault));
    }

    /// Lets no client through to other hosts without this password for the user `proxy`.
    pub fn require_proxy_password(&self, password: &str) {
        *locked(&self.state.proxy_password) = Some(password.to_owned());
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.state.seen).clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        locked(&self.state.seen).clear();
    }
}

impl Drop for Ecr {
    fn drop(&mut self) {
        self.state.is_stopping.store(true, Ordering::SeqCst);
        // A last connection wakes the thread that waits for one.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An authority, and a certificate of it for every name that is served.
fn certificate(directory: &Path) -> ServerConfig {
    let names = format!(
        "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:{},DNS:api.ecr.{REGION}.amazonaws.com,DNS:ecr.{REGION}.amazonaws.com",
        Ecr::host()
    );
    let request = |arguments: &[&str]| {
        let mut openssl = tool("openssl");
        openssl.current_dir(directory).args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        succeed(openssl.args(["-nodes", "-sha256", "-days", "2"]).args(arguments));
    };
    request(&["-subj", "/CN=Authority of a test", "-keyout", "authority.key", "-out", "authority.pem"]);
    let signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-subj", "/CN=registry"];
    let limits = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &names];
    request(&[&signed[..], &limits[..], &["-keyout", "server.key", "-out", "server.pem"]].concat());
    let chain = CertificateDer::from_pem_file(directory.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_no_client_auth().with_single_cert(vec![chain], key).unwrap()
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Requests of one connection, through TLS where the client speaks it.
fn connection(state: &State, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first)? == 0 {
        return Ok(());
    }
    let raw = stream.try_clone()?;
    // The first byte of every TLS connection.
    let is_tls = first[0] == 0x16;
    let mut reader: BufReader<Box<dyn Stream>> =
        BufReader::new(if is_tls { secured(state, stream)? } else { Box::new(stream) });
    loop {
        let Some(mut request) = read_request(&mut reader)? else { return Ok(()) };
        if request.method == "CONNECT" {
            let password = locked(&state.proxy_password).clone();
            let expected = password.map(|password| basic("proxy", &password));
            if expected.is_some() && request.headers.get("proxy-authorization") != expected.as_ref() {
                let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"p\"\r\n\
                              Content-Length: 0\r\n\r\n";
                return reader.get_mut().write_all(answer.as_bytes());
            }
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            // Whatever name was asked for, it is this server that answers.
            return inside(state, raw.try_clone()?);
        }
        if !answer(state, &mut reader, &mut request, is_tls, &raw)? {
            return Ok(());
        }
    }
}

/// What follows in a connection that was made through the proxy.
fn inside(state: &State, stream: TcpStream) -> io::Result<()> {
    let raw = stream.try_clone()?;
    let mut reader: BufReader<Box<dyn Stream>> = BufReader::new(secured(state, stream)?);
    while let Some(mut request) = read_request(&mut reader)? {
        if !answer(state, &mut reader, &mut request, true, &raw)? {
            break;
        }
    }
    Ok(())
}

fn secured(state: &State, stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    let connection = ServerConnection::new(Arc::clone(&state.tls)).map_err(io::Error::other)?;
    Ok(Box::new(StreamOwned::new(connection, stream)))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// Base64, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, at| word << 8 | u32::from(*chunk.get(at).unwrap_or(&0)));
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { char::from(ALPHABET[value as usize]) });
        }
    }
    text
}

struct Head {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
}

impl Head {
    fn length(&self) -> u64 {
        self.headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    }
}

fn read_request(reader: &mut impl io::BufRead) -> io::Result<Option<Head>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Some(Head { method, target, headers: read_headers(reader)? }))
}

fn read_headers(reader: &mut impl io::BufRead) -> io::Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(headers) };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: "Content-Type: application/json\r\n".into(), body: body.to_string().into_bytes() }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &json!({ "errors": [{ "code": code, "message": message }] }))
    }
}

/// Answers one request. Returns whether another one may follow.
fn answer(
    state: &State,
    reader: &mut BufReader<Box<dyn Stream>>,
    request: &mut Head,
    is_tls: bool,
    raw: &TcpStream,
) -> io::Result<bool> {
    let index = {
        let mut seen = locked(&state.seen);
        let (method, target) = (request.method.clone(), request.target.clone());
        seen.push(Seen { method, target, headers: request.headers.clone(), body: 0 });
        seen.len() - 1
    };
    let fault = {
        let line = format!("{} {}", request.method, request.target);
        let mut faults = locked(&state.faults);
        let found = faults.iter().position(|(part, fault)| {
            let is_long = !matches!(fault, Fault::Cut(after) if request.length() <= *after);
            is_long && line.contains(part.as_str())
        });
        found.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
    };
    let length = request.length();
    let mut body = Body { reader, left: length, state, index, raw, fault: fault.clone() };
    let answer = match fault {
        Some(Fault::Answer { status, ref headers, body: ref text }) => {
            io::copy(&mut body, &mut io::sink())?;
            Answer { status, headers: headers.clone(), body: text.clone().into_bytes() }
        }
        _ => match rules(state, request, &mut body, is_tls)? {
            Some(answer) => {
                io::copy(&mut body, &mut io::sink())?;
                answer
            }
            None => forward(state, request, &mut body, is_tls)?,
        },
    };
    let mut headers = answer.headers;
    if let Some(Fault::Elsewhere(origin)) = fault {
        headers = headers
            .lines()
            .map(|line| match line.split_once("://") {
                Some((_, rest)) if line.to_ascii_lowercase().starts_with("location:") => {
                    format!("Location: {origin}/{}\r\n", rest.split_once('/').map_or("", |(_, path)| path))
                }
                _ => format!("{line}\r\n"),
            })
            .collect();
    }
    let length =
        if request.method == "HEAD" { String::new() } else { format!("Content-Length: {}\r\n", answer.body.len()) };
    let head = format!("HTTP/1.1 {} X\r\n{headers}{length}\r\n", answer.status);
    let writer = reader.get_mut();
    writer.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        writer.write_all(&answer.body)?;
    }
    writer.flush()?;
    Ok(true)
}

/// The body of a request, counted.
struct Body<'a> {
    reader: &'a mut BufReader<Box<dyn Stream>>,
    left: u64,
    state: &'a State,
    index: usize,
    raw: &'a TcpStream,
    fault: Option<Fault>,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(buffer.len()).min(buffer.len()).min(64 * 1024);
        if most == 0 {
            return Ok(0);
        }
        let length = self.reader.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= length as u64;
        let arrived = {
            let mut seen = locked(&self.state.seen);
            // A test may have forgotten the request meanwhile.
            seen.get_mut(self.index).map_or(0, |seen| {
                seen.body += length as u64;
                seen.body
            })
        };
        match &self.fault {
            Some(Fault::Cut(after)) if arrived >= *after => {
                self.raw.shutdown(Shutdown::Both)?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Some(Fault::Slow(wait)) => thread::sleep(*wait),
            _ => {}
        }
        Ok(length)
    }
}

/// What is answered without the registry: its door, ECR's rules, ECR's API.
fn rules(state: &State, request: &mut Head, body: &mut Body<'_>, is_tls: bool) -> io::Result<Option<Answer>> {
    let given = request.headers.get("authorization").map(String::as_str);
    if let Some(operation) = request.headers.get("x-amz-target") {
        let operation = operation.rsplit('.').next().unwrap_or_default().to_owned();
        let mut text = Vec::new();
        let signed = given.is_some_and(|given| given.starts_with("AWS4-HMAC-SHA256 "));
        body.read_to_end(&mut text)?;
        return Ok(Some(if signed { api(state, &operation, &text) } else { Answer::json(403, &json!({})) }));
    }
    let scheme = if is_tls { "https" } else { "http" };
    match state.door {
        Door::Open => return Ok(None),
        Door::Token | Door::AnonymousToken if request.target.starts_with("/token?") => {
            let is_known = given == Some(basic("user", PASSWORD).as_str());
            let is_let_in = is_known || state.door == Door::AnonymousToken && given.is_none();
            return Ok(Some(match is_let_in {
                true => Answer::json(200, &json!({ "token": TOKEN })),
                false => Answer::error(401, "UNAUTHORIZED", &format!("unknown user: {}", given.unwrap_or("nobody"))),
            }));
        }
        Door::Token | Door::AnonymousToken => {
            if given == Some(&format!("Bearer {TOKEN}")) {
                return Ok(None);
            }
            let mut answer = Answer::error(401, "UNAUTHORIZED", "authentication required");
            let address = &state.address;
            answer.headers.push_str(&format!(
                "WWW-Authenticate: Bearer realm=\"{scheme}://{address}/token\",service=\"registry of a test\"\r\n"
            ));
            return Ok(Some(answer));
        }
        Door::Ecr => {}
    }
    if given != Some(basic("AWS", PASSWORD).as_str()) {
        return Ok(Some(Answer {
            status: 401,
            headers: format!(
                "WWW-Authenticate: Basic realm=\"https://{}/\",service=\"ecr.amazonaws.com\"\r\n",
                Ecr::host()
            ),
            body: b"Not Authorized\n".to_vec(),
        }));
    }
    let path = request.target.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix("/v2/").filter(|path| !path.is_empty()) else { return Ok(None) };
    let kind = ["/manifests/", "/blobs/"].into_iter().find_map(|kind| Some((kind, path.find(kind)?)));
    let Some((kind, at)) = kind else { return Ok(None) };
    let (name, reference) = (&path[..at], &path[at + kind.len()..]);
    let Some(repository) = locked(&state.repositories).get(name).cloned() else {
        let message = format!("The repository with name '{name}' does not exist in the registry with id '{ACCOUNT}'");
        return Ok(Some(Answer::error(404, "NAME_UNKNOWN", &message)));
    };
    if request.method == "PUT" && kind == "/manifests/" && !reference.contains(':') && repository.is_immutable {
        let tagging = locked(&state.tagging);
        let head = Head { method: "HEAD".into(), target: request.target.clone(), headers: accept_all() };
        let existing = send(state, &head, &mut io::empty(), 0, is_tls)?;
        if existing.status == 200 {
            let message = format!(
                "The image tag '{reference}' already exists in the '{name}' repository and cannot be overwritten because \
                 the repository is immutable."
            );
            return Ok(Some(Answer::error(400, "TAG_INVALID", &message)));
        }
        let written = forward(state, request, body, is_tls)?;
        drop(tagging);
        return Ok(Some(written));
    }
    Ok(None)
}

fn accept_all() -> BTreeMap<String, String> {
    let types = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    BTreeMap::from([("accept".to_owned(), types.to_owned())])
}

/// The operations of ECR's API, as far as a push uses them.
fn api(state: &State, operation: &str, body: &[u8]) -> Answer {
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    let uri = |name: &str| match state.door {
        Door::Ecr => format!("{}/{name}", Ecr::host()),
        _ => format!("{}/{name}", state.address),
    };
    let described = |name: &str, repository: &Repository| {
        json!({
            "registryId": ACCOUNT, "repositoryName": name, "repositoryUri": uri(name),
            "imageTagMutability": if repository.is_immutable { "IMMUTABLE" } else { "MUTABLE" },
            "imageScanningConfiguration": { "scanOnPush": repository.is_scanned },
        })
    };
    let mut repositories = locked(&state.repositories);
    match operation {
        "GetAuthorizationToken" => {
            let token = base64(format!("AWS:{PASSWORD}").as_bytes());
            let endpoint = format!("https://{}", Ecr::host());
            Answer::json(
                200,
                &json!({ "authorizationData": [{ "authorizationToken": token, "proxyEndpoint": endpoint }] }),
            )
        }
        "CreateRepository" => {
            let name = request["repositoryName"].as_str().unwrap_or_default();
            if repositories.contains_key(name) {
                let error = json!({ "__type": "RepositoryAlreadyExistsException", "message": "it exists" });
                return Answer::json(400, &error);
            }
            let repository = Repository {
                is_immutable: request["imageTagMutability"] == "IMMUTABLE",
                is_scanned: request["imageScanningConfiguration"]["scanOnPush"] == true,
            };
            let answer = Answer::json(200, &json!({ "repository": described(name, &repository) }));
            repositories.insert(name.to_owned(), repository);
            answer
        }
        "DescribeRepositories" => {
            let name = request["repositoryNames"][0].as_str().unwrap_or_default();
            match repositories.get(name) {
                Some(repository) => Answer::json(200, &json!({ "repositories": [described(name, repository)] })),
                None => Answer::json(
                    400,
                    &json!({ "__type": "RepositoryNotFoundException", "message": "it does not exist" }),
                ),
            }
        }
        other => panic!("the API is asked for {other}, which no push needs"),
    }
}

fn forward(state: &State, request: &Head, body: &mut Body<'_>, is_tls: bool) -> io::Result<Answer> {
    let length = body.left;
    send(state, request, body, length, is_tls)
}

/// Has the registry do it.
fn send(state: &State, request: &Head, body: &mut impl Read, length: u64, is_tls: bool) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(&state.backend)?;
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.target);
    if is_tls {
        head.push_str("X-Forwarded-Proto: https\r\n");
    }
    for (name, value) in &request.headers {
        // Who the client is was settled here.
        if !matches!(name.as_str(), "authorization" | "connection" | "content-length") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    if !request.headers.contains_key("host") {
        head.push_str("host: registry\r\n");
    }
    head.push_str(&format!("content-length: {length}\r\n\r\n"));
    stream.write_all(head.as_bytes())?;
    io::copy(body, &mut stream)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(502);
    let fields = read_headers(&mut reader)?;
    let mut answer = Vec::new();
    if request.method != "HEAD" {
        match fields.get("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => io::copy(&mut reader.take(length), &mut answer)?,
            None => io::copy(&mut reader, &mut answer)?,
        };
    }
    let keep = |name: &str| name != "connection" && (name != "content-length" || request.method == "HEAD");
    let headers = fields.iter().filter(|(name, _)| keep(name)).map(|(name, value)| format!("{name}: {value}\r\n"));
    Ok(Answer { status, headers: headers.collect(), body: answer })
}

/// An image file with one layer per platform, for tests that need one of a size of their choice.
///
/// # Panics
/// The file cannot be written.
pub fn image(path: &Path, version: &str, commit: &str, layer: &[u8]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut blob = |media_type: &str, bytes: &[u8]| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        add(&format!("blobs/sha256/{digest}"), bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let mut inner = tar::Builder::new(Vec::new());
        for (name, bytes) in [("architecture", architecture.as_bytes()), ("contents", layer)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            inner.append_data(&mut header, name, bytes).unwrap();
        }
        let layer = blob("application/vnd.oci.image.layer.v1.tar", &inner.into_inner().unwrap());
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Labels": {
                "org.opencontainers.image.version": version, "org.opencontainers.image.revision": commit,
            } },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        let mut manifest = blob(media_type, manifest.to_string().as_bytes());
        manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        manifests.push(manifest);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let index = blob(media_type, index.to_string().as_bytes());
    let outer = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [index] });
    add("index.json", outer.to_string().as_bytes());
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.finish().unwrap();
}
