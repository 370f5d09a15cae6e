//! What the host's service manager hears, by the protocol of systemd's `sd_notify`:
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>.
//!
//! Without `NOTIFY_SOCKET` nobody hears anything. What is said, and when:
//!
//! - `READY=1` once the control plane has accepted this worker and there has been a session, once.
//! - `STATUS=` whenever it becomes another one: what the launcher does, and who is not reached.
//! - `WATCHDOG=1` as long as the agent's loop turns, and for no other reason. A broker or an API that is away does not keep it
//!   back: the service manager would kill the launcher and, in a container's host, the run with it, though the run needs neither
//!   of them to go on, and a new launcher would not reach them either. What the watchdog is for is a loop that hangs. Who is not
//!   reached is in the status, in `/healthz` and in the metrics.
//! - `STOPPING=1` when nothing is left to do but the farewell. Not when the launcher drains: from `STOPPING=1` on systemd counts
//!   the time of `TimeoutStopSec=` and then kills, also when it was the control plane that asked, and a run that is finished
//!   first takes as long as a run may.
//!
//! Sending never waits. What could not be sent is said again at the next beat.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::metrics::{BEAT, Reading};

/// Whom to tell, and how often.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub address: Address,
    /// After which time of silence the launcher is killed. None: never.
    pub watchdog: Option<Duration>,
}

/// The address of a datagram socket.
#[derive(Debug, Clone)]
pub struct Address(SocketAddr);

impl Address {
    /// An absolute path, or `@` and the name of an abstract socket.
    #[must_use]
    pub fn parse(variable: &OsStr) -> Option<Self> {
        match variable.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(variable).ok().map(Self),
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok().map(Self),
            _ => None,
        }
    }
}

/// The launcher's side.
#[derive(Debug)]
pub struct Supervisor {
    to: Option<(UnixDatagram, Settings)>,
    said: String,
    is_ready: bool,
    /// Whether it was complained of already.
    is_deaf: bool,
}

/// Why something is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Something has changed.
    Change,
    /// The loop turns.
    Beat,
}

impl Supervisor {
    /// Without settings it says nothing to nobody.
    #[must_use]
    pub fn new(settings: Option<Settings>) -> Self {
        let to = settings.and_then(|settings| match socket() {
            Ok(socket) => Some((socket, settings)),
            Err(error) => {
                tracing::warn!(%error, "the service manager hears nothing");
                None
            }
        });
        Self { to, said: String::new(), is_ready: false, is_deaf: false }
    }

    /// How often [`Occasion::Beat`] is due: at least thrice in the watchdog's time.
    #[must_use]
    pub fn beat(&self) -> Duration {
        let watchdog = self.to.as_ref().and_then(|(_, settings)| settings.watchdog);
        // A timer takes no less than this, and a shorter watchdog is not to be had.
        watchdog.map_or(BEAT, |watchdog| (watchdog / 3).clamp(Duration::from_millis(10), BEAT))
    }

    /// Says what is new, and at a beat that the launcher lives.
    pub fn tell(&mut self, reading: &Reading<'_>, occasion: Occasion) {
        let Some((_, settings)) = &self.to else { return };
        let (status, is_ready) = (reading.status(), reading.is_ready());
        let mut message = String::new();
        if is_ready && !self.is_ready {
            message.push_str("READY=1\n");
        }
        if status != self.said {
            message.push_str(&format!("STATUS={status}\n"));
        }
        if occasion == Occasion::Beat && settings.watchdog.is_some() {
            message.push_str("WATCHDOG=1\n");
        }
        if !message.is_empty() && self.send(&message) {
            (self.said, self.is_ready) = (status, is_ready);
        }
    }

    /// Says that the process is about to end.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1\nSTATUS=saying farewell\n");
    }

    fn send(&mut self, message: &str) -> bool {
        let Some((socket, settings)) = &self.to else { return false };
        match socket.send_to_addr(message.as_bytes(), &settings.address.0) {
            Ok(_) => {
                self.is_deaf = false;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_deaf, true) {
                    tracing::warn!(%error, "the service manager does not listen; it is told again later");
                }
                false
            }
        }
    }
}

fn socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 4096];
        socket.set_nonblocking(true).unwrap();
        let length = socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    fn settings(variable: &str, watchdog: Option<Duration>) -> Option<Settings> {
        Some(Settings { address: Address::parse(OsStr::new(variable)).unwrap(), watchdog })
    }

    #[test]
    fn each_thing_is_said_once_and_life_at_every_beat() {
        let name = format!("spacelift-launcher-test-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut supervisor = Supervisor::new(settings(&format!("@{name}"), Some(Duration::from_secs(6))));
        assert_eq!(supervisor.beat(), Duration::from_secs(2));
        let metrics = Metrics::new();
        supervisor.tell(&metrics.read(), Occasion::Change);
        assert_eq!(heard(&listener).as_deref(), Some("STATUS=starting\n"));
        supervisor.tell(&metrics.read(), Occasion::Change);
        assert_eq!(heard(&listener), None);
        supervisor.tell(&metrics.read(), Occasion::Beat);
        assert_eq!(heard(&listener).as_deref(), Some("WATCHDOG=1\n"));
        metrics.registered();
        metrics.connections.add_one();
        supervisor.tell(&metrics.read(), Occasion::Change);
        assert_eq!(heard(&listener).as_deref(), Some("READY=1\nSTATUS=idle\n"));
        let waiting = metrics.broker.wait();
        supervisor.tell(&metrics.read(), Occasion::Beat);
        // Nobody is killed for somebody else's absence.
        let expected = "STATUS=idle; broker not reached for less than a minute\nWATCHDOG=1\n";
        assert_eq!(heard(&listener).as_deref(), Some(expected));
        drop(waiting);
        supervisor.stopping();
        assert_eq!(heard(&listener).as_deref(), Some("STOPPING=1\nSTATUS=saying farewell\n"));
    }

    #[test]
    fn what_nobody_heard_is_said_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let mut supervisor = Supervisor::new(settings(path.to_str().unwrap(), None));
        assert_eq!(supervisor.beat(), BEAT);
        let metrics = Metrics::new();
        metrics.registered();
        metrics.connections.add_one();
        supervisor.tell(&metrics.read(), Occasion::Change);
        let listener = UnixDatagram::bind(&path).unwrap();
        supervisor.tell(&metrics.read(), Occasion::Beat);
        assert_eq!(heard(&listener).as_deref(), Some("READY=1\nSTATUS=idle\n"));
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let mut supervisor = Supervisor::new(None);
        supervisor.tell(&Metrics::new().read(), Occasion::Beat);
        supervisor.stopping();
        assert_eq!(supervisor.beat(), BEAT);
        for wrong in ["", "run/notify", "vsock:2:1234"] {
            assert!(Address::parse(OsStr::new(wrong)).is_none(), "{wrong}");
        }
    }
}
