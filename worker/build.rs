//! Hands the two facts of a build that only the build knows to `build_info!`, and writes the service of `protocol`.

use std::env;
use std::io::{self, Write};

use tonic_build::manual::{Builder, Method, Service};

fn main() -> io::Result<()> {
    let target = env::var("TARGET").map_err(io::Error::other)?;
    let commit = env::var("SPACELIFT_BUILD_COMMIT").unwrap_or_else(|_| "unknown".into());
    let mut cargo = io::stdout();
    writeln!(cargo, "cargo::rerun-if-changed=build.rs")?;
    writeln!(cargo, "cargo::rerun-if-env-changed=SPACELIFT_BUILD_COMMIT")?;
    writeln!(cargo, "cargo::rustc-env=SPACELIFT_BUILD_TARGET={target}")?;
    writeln!(cargo, "cargo::rustc-env=SPACELIFT_BUILD_COMMIT={commit}")?;
    write_service();
    Ok(())
}

/// The service that a launcher offers to its worker; `src/protocol.rs` says what its methods are for.
fn write_service() {
    let method = |name: &str, route: &str, input: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::protocol::{input}"))
            .output_type(format!("crate::protocol::{output}"))
            .codec_path("tonic_prost::ProstCodec")
    };
    let service = Service::builder()
        .name("Launcher")
        .package("spacelift.worker.v1")
        .method(method("session", "Session", "FromWorker", "ToWorker").client_streaming().server_streaming().build())
        .method(method("download", "Download", "DownloadRequest", "Chunk").server_streaming().build())
        .method(method("upload", "Upload", "UploadPart", "Uploaded").client_streaming().build())
        .build();
    Builder::new().build_transport(false).compile(&[service]);
}
