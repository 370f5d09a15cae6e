//! An MQTT broker that knows its clients by their certificates.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::registry::free_port;
use crate::run;

/// What pools and control planes may do: a pool its own topics, by the common name of its certificate.
pub const ACCESS: &str = "user control-plane\ntopic readwrite #\n\
                          pattern read spacelift/readonly/%u/#\npattern write spacelift/writeonly/%u/#\n";

/// A broker. It ends when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    daemon: Option<Daemon>,
    port: u16,
    web_port: u16,
    data: TempDir,
}

impl Mosquitto {
    /// Starts it, with mutual TLS by these files in PEM and this access list, on two free ports: MQTT, and MQTT over
    /// WebSocket. What it has accepted for a session survives [`Self::kill`].
    ///
    /// # Panics
    /// It does not start.
    pub fn start(authority: &Path, certificate: &Path, key: &Path, access: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (port, web_port) = (free_port(), free_port());
        let at = |name: &str| data.path().join(name);
        fs::write(at("access"), access).unwrap();
        let tls = format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true\n",
            authority.display(),
            certificate.display(),
            key.display()
        );
        let configuration = format!(
            "user root\nallow_anonymous false\nacl_file {}\npersistence true\npersistence_location {}/\n\
             autosave_on_changes true\nautosave_interval 1\nmax_packet_size 135000\nlog_type all\n\
             listener {port} 127.0.0.1\n{tls}listener {web_port} 127.0.0.1\nprotocol websockets\n{tls}",
            at("access").display(),
            data.path().display(),
        );
        fs::write(at("mosquitto.conf"), configuration).unwrap();
        let mut broker = Self { daemon: None, port, web_port, data };
        broker.restart();
        broker
    }

    /// The port for MQTT.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port for MQTT over WebSocket.
    pub fn web_port(&self) -> u16 {
        self.web_port
    }

    /// What it printed since it was started last.
    ///
    /// # Panics
    /// It was killed.
    pub fn log(&self) -> String {
        self.daemon.as_ref().expect("the broker runs").log()
    }

    /// What it keeps on disk is in it.
    pub fn directory(&self) -> &Path {
        self.data.path()
    }

    /// The process.
    ///
    /// # Panics
    /// It was killed.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("the broker runs")
    }

    /// Ends it without a chance to say or save anything.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self) {
        let daemon = self.daemon.take().expect("the broker runs");
        let pid = Pid::from_raw(daemon.id().try_into().expect("ids are small")).expect("an id");
        kill_process(pid, Signal::KILL).unwrap();
        // Waits for it.
        drop(daemon);
    }

    /// Starts it on the same ports, with what it saved.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self) {
        self.daemon = None;
        let mut command = run::tool("mosquitto");
        command.arg("-c").arg(self.data.path().join("mosquitto.conf"));
        let is_ready =
            || [self.port, self.web_port].iter().all(|&port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        self.daemon = Some(Daemon::start(&mut command, &self.data.path().join("log"), is_ready));
    }
}
