//! A container registry.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::run;

/// An empty registry on loopback, without TLS and without passwords.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    // Fields are dropped in this order: the server before its data.
    _daemon: Daemon,
    data: TempDir,
}

impl Registry {
    /// Starts `docker-registry`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = data.path().join("config.yml");
        let storage = data.path().join("storage");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = run::tool("docker-registry");
        command.arg("serve").arg(&config);
        let is_ready = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let daemon = Daemon::start(&mut command, &data.path().join("log"), is_ready);
        Self { port, _daemon: daemon, data }
    }

    /// The directory that everything of it is in.
    pub fn path(&self) -> &Path {
        self.data.path()
    }

    /// `host:port`, as in an image's reference.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// A port that nothing listens on. Another program could take it in between; then the server ends and says so.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
