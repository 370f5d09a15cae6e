//! `GET /metrics` and `GET /healthz`, for those who watch.
//!
//! Nobody proves who they are here, and nothing is encrypted: it listens on loopback unless the operator says otherwise, and
//! answers with numbers alone. Whoever connects gets a few seconds, and only some may be there at once, so that nobody takes
//! the launcher's descriptors by that.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Health, Metrics, exposition};

/// Connections at once. Two scrapers and somebody who looks.
const MAXIMUM_CONNECTIONS: usize = 8;
/// How long a connection may take from its beginning to its end. An answer is made in less than a millisecond.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a request. It has no body, and scrapers send some short headers; the library takes no less.
const MAXIMUM_REQUEST: usize = 8 * 1024;
/// How long to wait before a listener that failed is tried again: another launcher may be about to give the address up, or
/// descriptors are short.
const AGAIN: Duration = Duration::from_secs(10);

const PLAIN: &str = "text/plain; charset=utf-8";

/// Serves until it is dropped. An address that cannot be had is tried again: a launcher does not end for it, least of all one
/// that goes on with a run.
pub async fn serve(address: SocketAddr, metrics: &'static Metrics) -> Infallible {
    let places = Arc::new(Semaphore::new(MAXIMUM_CONNECTIONS));
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                // With port 0 the system chooses.
                let address = listener.local_addr().unwrap_or(address);
                tracing::info!("metrics are at http://{address}/metrics");
                accept(&listener, &places, metrics).await;
            }
            Err(error) => tracing::error!(
                "cannot listen at {address} for metrics: {error}. Trying again; set another SPACELIFT_LAUNCHER_METRICS_ADDRESS if it stays so"
            ),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Until the listener fails.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>, metrics: &'static Metrics) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection for metrics");
                return;
            }
        };
        // Those above are closed at once.
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { continue };
        tokio::spawn(async move {
            let answer = service_fn(move |request| async move { Ok::<_, Infallible>(answer(&request, metrics)) });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(MAXIMUM_REQUEST)
                .serve_connection(TokioIo::new(stream), answer);
            // Whatever a stranger does wrong is no concern of the launcher's.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<String> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, exposition::CONTENT_TYPE, exposition::text(&metrics.read())),
        (&Method::GET, "/healthz") => match metrics.read().health() {
            Health::Well(line) => (StatusCode::OK, PLAIN, line + "\n"),
            Health::Unwell(line) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, line + "\n"),
        },
        (&Method::GET, _) => (StatusCode::NOT_FOUND, PLAIN, "there are /metrics and /healthz\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET is answered\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    /// Longer than a connection may last.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A server on a free port, and a way to talk to it.
    fn with_server(test: impl FnOnce(SocketAddr)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let metrics: &'static Metrics = Box::leak(Box::new(Metrics::new()));
        metrics.turn();
        let places = Arc::new(Semaphore::new(MAXIMUM_CONNECTIONS));
        runtime.spawn(async move { accept(&listener, &places, metrics).await });
        test(address);
        runtime.shutdown_background();
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = connect(address);
        // It may have been closed before all of it is sent.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn two_pages_by_one_method() {
        with_server(|address| {
            let get = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"));
            let metrics = get("/metrics");
            assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
            assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
            assert!(metrics.contains("\nspacelift_launcher_state{state=\"starting\"} 1\n"), "{metrics}");
            let health = get("/healthz");
            assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
            assert!(health.ends_with("\r\n\r\nit is starting, and not registered with the API yet\n"), "{health}");
            assert!(get("/").starts_with("HTTP/1.1 404 "));
            assert!(get("/metrics/").starts_with("HTTP/1.1 404 "));
            for method in ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"] {
                let refused = ask(address, &format!("{method} /metrics HTTP/1.1\r\nHost: here\r\n\r\n"));
                assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET\r\n"), "{refused}");
            }
        });
    }

    #[test]
    fn strangers_get_little_room_and_little_time() {
        with_server(|address| {
            let long = format!("GET /metrics HTTP/1.1\r\nLong: {}\r\n\r\n", "x".repeat(4 * MAXIMUM_REQUEST));
            assert!(!ask(address, &long).contains("200 OK"));
            // One more is closed without a word, until the silent ones are.
            let begun = std::time::Instant::now();
            let silent: Vec<TcpStream> = (0..MAXIMUM_CONNECTIONS).map(|_| connect(address)).collect();
            while !ask(address, "GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n").starts_with("HTTP/1.1 503 ") {
                assert!(begun.elapsed() < PATIENCE, "the silent ones keep their places");
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(begun.elapsed() > CONNECTION_LIMIT / 2, "there were places for all");
            for mut stream in silent {
                assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "it was closed");
            }
        });
    }
}
