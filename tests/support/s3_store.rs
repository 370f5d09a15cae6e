//! The strict S3 store of `strict_s3/main.rs`, with its objects as files.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::daemon::Service;
use crate::registry::free_port;

/// The access key that it knows.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
/// Its secret.
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// The bucket that is there from the beginning.
pub const BUCKET: &str = "example-downloads";

/// A store with one empty bucket. It ends when this is dropped.
#[derive(Debug)]
pub struct S3Store {
    port: u16,
    /// The process.
    pub service: Service,
    data: TempDir,
}

impl S3Store {
    /// Starts it. `program` is `strict-s3`, whose path only tests know.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(program: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(data.path().join("objects").join(BUCKET)).unwrap();
        let port = free_port();
        let mut command = Command::new(program);
        command.arg(data.path().join("objects")).args([&port.to_string(), ACCESS_KEY, SECRET_KEY]);
        let is_ready = move || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let service = Service::start(command, &data.path().join("log"), is_ready);
        Self { port, service, data }
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where the object with this key is.
    pub fn object(&self, key: &str) -> PathBuf {
        self.bucket().join(key)
    }

    /// The directory that holds the bucket's objects.
    pub fn bucket(&self) -> PathBuf {
        self.data.path().join("objects").join(BUCKET)
    }

    /// Everything that the store keeps.
    pub fn state(&self) -> PathBuf {
        self.data.path().join("objects")
    }

    /// Credentials, region and this endpoint for a program, and nothing of the user's own.
    pub fn configure(command: &mut Command, endpoint: &str) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("AWS_") || name.to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command.envs([
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ]);
    }
}

/// Copies a directory, and all in it.
///
/// # Panics
/// It cannot be read or written.
pub fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
