//! The metadata service of an instance, as EC2 has it: version 2 only.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::registry::free_port;
use crate::release::workspace;
use crate::run;

/// The service. It ends when this is dropped.
#[derive(Debug)]
pub struct InstanceMetadata {
    daemon: Daemon,
    address: String,
    port: u16,
    data: TempDir,
}

impl InstanceMetadata {
    /// Starts it on a free port of loopback, with values for paths below `meta-data/`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(values: &[(&str, &str)]) -> Self {
        Self::start_at("127.0.0.1", free_port(), values)
    }

    /// Starts it where instances expect it, or elsewhere.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_at(address: &str, port: u16, values: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        write(&data, values);
        let mut server = run::tool("python3");
        server.arg(workspace().join("tests/support/instance_metadata.py"));
        server.args([address, &port.to_string()]).arg(data.path().join("values"));
        let is_ready = || TcpStream::connect((address, port)).is_ok();
        let daemon = Daemon::start(&mut server, &data.path().join("log"), is_ready);
        Self { daemon, address: address.to_owned(), port, data }
    }

    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// Answers with these values from now on.
    pub fn answer(&self, values: &[(&str, &str)]) {
        write(&self.data, values);
    }

    /// The questions that it was asked, as its log has them.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

fn write(data: &TempDir, values: &[(&str, &str)]) {
    let values: BTreeMap<_, _> = values.iter().copied().collect();
    let new = data.path().join("new");
    fs::write(&new, serde_json::to_vec(&values).unwrap()).unwrap();
    // A reader sees the one or the other.
    fs::rename(new, data.path().join("values")).unwrap();
}
