//! What an operator sees of the launcher: its log, its metrics, and what its service manager hears.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::reader::Reader;
use super::{LOG, LOG_FORMAT, METRICS_ADDRESS};
use crate::supervisor::{Address, Settings};

/// Set by systemd: <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// What modules of the launcher begin with.
const OWN: &str = "spacelift_launcher";
/// Those of them that somebody may name without that beginning, which no line would have.
const MODULES: [&str; 23] = [
    "agent",
    "api_client",
    "check",
    "config",
    "docker",
    "events",
    "job",
    "metrics",
    "network",
    "output",
    "policy",
    "registry_credentials",
    "run",
    "run_log",
    "sealed",
    "session",
    "slot",
    "spool",
    "spot",
    "supervisor",
    "transfer",
    "upload",
    "worker_server",
];

/// How the launcher's own lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// An object of JSON each.
    Json,
}

/// The launcher's own log.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// How lines look.
    pub format: LogFormat,
    /// Which are written.
    pub filter: Targets,
}

pub(super) fn log(reader: &mut Reader) -> LogSettings {
    let format = match reader.text(LOG_FORMAT).as_deref() {
        None | Some("human") => LogFormat::Human,
        Some("json") => LogFormat::Json,
        Some(_) => {
            reader.problem(LOG_FORMAT, "it is neither `human` nor `json`. Write one of them");
            LogFormat::Human
        }
    };
    let filter = reader.text(LOG).and_then(|text| {
        let filter = filter(&text);
        if filter.is_none() {
            reader.problem(
                LOG,
                "it is not a filter. Write a level, or MODULE=LEVEL, separated by commas, such as \
                 info,spacelift_launcher::session=debug. Levels are error, warn, info, debug, trace and off",
            );
        }
        filter
    });
    LogSettings { format, filter: filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO)) }
}

fn filter(text: &str) -> Option<Targets> {
    // The parser takes a level that is misspelt for a module of that name, and nothing else would be logged.
    let is_own = |item: &str| MODULES.iter().any(|module| item.split(['=', ':']).next() == Some(module));
    let is_known = |item: &str| {
        item.contains('=') && !is_own(item) || item.starts_with(OWN) || item.parse::<LevelFilter>().is_ok()
    };
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    let targets = items.iter().all(|item| is_known(item)).then(|| items.join(","))?.parse::<Targets>().ok()?;
    Some(if targets.default_level().is_some() { targets } else { targets.with_default(LevelFilter::INFO) })
}

pub(super) fn metrics_address(reader: &mut Reader) -> Option<SocketAddr> {
    let text = reader.text(METRICS_ADDRESS)?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        reader.problem(METRICS_ADDRESS, "it is not IP:PORT. Write 127.0.0.1:9464, or [::1]:9464");
        return None;
    };
    if !address.ip().is_loopback() {
        reader.warn(format_args!(
            "{METRICS_ADDRESS} is not on loopback: whoever reaches this host can read the launcher's metrics, without a \
             password and without encryption. Let a firewall decide who does"
        ));
    }
    Some(address)
}

pub(super) fn supervisor(reader: &mut Reader) -> Option<Settings> {
    let socket = reader.raw(NOTIFY_SOCKET).filter(|socket| !socket.is_empty())?;
    let Some(address) = Address::parse(&socket) else {
        reader.warn(format_args!(
            "{NOTIFY_SOCKET} is neither an absolute path nor an abstract socket's name, so the service manager hears nothing"
        ));
        return None;
    };
    // Set for another process, it is not meant for this one: a shell between the two, for example.
    let is_meant = number(reader, WATCHDOG_PID).is_none_or(|process| process == u64::from(std::process::id()));
    let watchdog = number(reader, WATCHDOG_USEC).filter(|microseconds| is_meant && *microseconds > 0);
    Some(Settings { address, watchdog: watchdog.map(Duration::from_micros) })
}

fn number(reader: &mut Reader, name: &str) -> Option<u64> {
    let value = reader.raw(name)?;
    let number = value.to_str().and_then(|text| text.parse().ok());
    if number.is_none() {
        reader.warn(format_args!("{name} is not a number, so it is as if it were not set"));
    }
    number
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn filters() {
        let is = |text: &str, target: &str, level: Level| filter(text).unwrap().would_enable(target, &level);
        assert!(is("warn", "h2", Level::WARN) && !is("warn", "h2", Level::INFO));
        assert!(is("spacelift_launcher::session=debug", "spacelift_launcher::session", Level::DEBUG));
        assert!(is("spacelift_launcher::session=debug", "spacelift_launcher::agent", Level::INFO));
        assert!(!is("spacelift_launcher::session=debug", "spacelift_launcher::agent", Level::DEBUG));
        assert!(is(" error , spacelift_launcher::agent=trace,", "spacelift_launcher::agent", Level::ERROR));
        assert!(!is("off", "spacelift_launcher::agent", Level::ERROR));
        for wrong in
            ["loud", "warn,session", "session=loud", "session=debug", "metrics::server=debug", "a=b=c", "verbose,info"]
        {
            assert!(filter(wrong).is_none(), "{wrong}");
        }
    }
}
