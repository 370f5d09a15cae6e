//! What a job had too little of when it failed. A tool says that in words of its own, deep in the log or not at all.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::statvfs;

/// Where containers see how often they were refused another process: with either version of control groups.
const EVENTS: [&str; 2] = ["/sys/fs/cgroup/pids.events", "/sys/fs/cgroup/pids/pids.events"];
/// A disk with less room than this takes no more files that mean anything.
const FULL: u64 = 64 * 1024;
/// What to do about the disk of a worker's host.
const FREE_SPACE: &str = "the disk of the worker's host is full. Free space there, for instance with `docker image prune`, or let \
                          SPACELIFT_LAUNCHER_DIR name a directory on a larger one";

/// What follows the operating system's reason in a message: what to do where a disk is full, and otherwise nothing.
#[must_use]
pub fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!("; {FREE_SPACE}"),
        _ => String::new(),
    }
}

/// How often this container was refused another process so far. Nothing where it cannot see that.
#[must_use]
pub fn refused_processes() -> u64 {
    EVENTS.iter().find_map(|path| refusals(&fs::read_to_string(path).ok()?)).unwrap_or_default()
}

fn refusals(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
}

/// What ran out, for the end of a sentence about a program that failed. `before` is what [`refused_processes`] gave when it was
/// started, `places` is where it may have written to.
#[must_use]
pub fn found(before: u64, places: &[&Path]) -> String {
    let mut found = String::new();
    if refused_processes() > before {
        found +=
            "; the container reached its limit of processes and threads: let the run start fewer of them at a time";
    }
    if let Some(place) = places.iter().find(|place| is_full(place)) {
        found +=
            &format!("; no room is left at `{}`: the run filled it, or {FREE_SPACE}", crate::untrusted::shown(place));
    }
    found
}

/// Whether nothing can be written to the file system of a place. One that does not say so has room.
fn is_full(place: &Path) -> bool {
    statvfs(place).is_ok_and(|found| {
        let no_bytes = found.f_blocks > 0 && found.f_bavail.saturating_mul(found.f_frsize) < FULL;
        no_bytes || (found.f_files > 0 && found.f_favail == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_of_what_the_kernel_says() {
        assert_eq!(refusals("max 12\n"), Some(12));
        assert_eq!(refusals("other 1\nmax 0\nmax.imposed 3\n"), Some(0));
        assert_eq!(refusals(""), None);
    }

    #[test]
    fn a_full_disk_comes_with_what_to_do() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert!(advice(&full).contains("disk of the worker's host is full"), "{}", advice(&full));
        assert_eq!(advice(&io::Error::from(io::ErrorKind::NotFound)), "");
        assert!(!is_full(Path::new("/nowhere")));
        assert_eq!(found(u64::MAX, &[Path::new("/proc")]), "", "what has no blocks is not full");
    }
}
