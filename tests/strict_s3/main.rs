//! An S3 store in a directory that checks what real ones check: signatures of requests, checksums of bodies, and
//! conditional writes.
//!
//! The emulator of AWS in `support/aws_emulator.rs` accepts any signature and any checksum, and has versions and policies;
//! this one is the other way round. What works against both works against S3.

mod checksums;

use std::io::{self, Write as _};

use anyhow::{Context as _, bail};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

use crate::checksums::WithChecksums;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, port, access_key, secret_key] = arguments.as_slice() else {
        bail!("expected: DIRECTORY PORT ACCESS-KEY SECRET-KEY");
    };
    let files = FileSystem::new(directory).map_err(|error| anyhow::anyhow!("{directory}: {error:?}"))?;
    let mut service = S3ServiceBuilder::new(WithChecksums::new(files));
    service.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
    let service = service.build();
    let port: u16 = port.parse().context("the port")?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (socket, _) = listener.accept().await?;
            let service = service.clone();
            tokio::spawn(async move {
                let connection =
                    Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).into_owned();
                if let Err(error) = connection.await {
                    let _ = writeln!(io::stderr(), "{error}");
                }
            });
        }
    })
}
