//! The duties of process 1.
//!
//! Orphans become children of the worker: of process 1 by nature, and elsewhere because it asks for them. It reaps them,
//! and ends them when their phase is over.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper,
    set_dumpable_behavior, waitpid,
};
use tokio::signal::unix::{SignalKind, signal};

/// A signal can be lost among others of its kind, so that a look is taken every now and then.
const REAP_INTERVAL: Duration = Duration::from_secs(1);
/// Processes can be made while others are ended. As many rounds end whatever does not make new ones all the time.
const MAXIMUM_ROUNDS: u32 = 50;

/// The children that somebody waits for.
#[derive(Debug, Clone, Default)]
pub struct Children(Arc<Mutex<HashSet<i32>>>);

impl Children {
    /// From now on somebody waits for this child. To be called without a pause after it was started.
    pub fn awaited(&self, pid: Pid) -> Awaited {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pid.as_raw_nonzero().get());
        Awaited { children: self.clone(), pid }
    }

    fn has(&self, pid: i32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
    }

    /// Reaps orphans for ever.
    ///
    /// # Errors
    /// When the signal cannot be watched for.
    pub async fn reap(self) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            tokio::select! {
                _ = ended.recv() => {}
                () = tokio::time::sleep(REAP_INTERVAL) => {}
            }
            for process in processes().iter().filter(|process| process.zombie && !self.has(process.pid)) {
                if process.parent == getpid().as_raw_nonzero().get() {
                    let _ = waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
                }
            }
        }
    }
}

/// A child that somebody waits for, as long as this lives.
#[derive(Debug)]
pub struct Awaited {
    children: Children,
    pid: Pid,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut children = self.children.0.lock().unwrap_or_else(PoisonError::into_inner);
        children.remove(&self.pid.as_raw_nonzero().get());
    }
}

/// Has orphans become children of this process.
///
/// # Errors
/// As the operating system says.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Keeps processes of the same user from reading this one's memory: the job's secrets are in it before they are masked, and what
/// the launcher knows the worker by.
///
/// # Errors
/// As the operating system says.
pub fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Ends everything that descends from this process.
pub async fn end_everything() {
    let me = getpid();
    for _ in 0..MAXIMUM_ROUNDS {
        let alive = descendants(me.as_raw_nonzero().get());
        if alive.is_empty() {
            return;
        }
        if me.is_init() {
            // The group of process 1 stands for everything but process 1, at once: nothing can be made in between.
            let _ = kill_process_group(me, Signal::KILL);
        } else {
            for pid in alive.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Debug, Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    zombie: bool,
}

fn descendants(of: i32) -> Vec<i32> {
    let all = processes();
    let mut found = HashSet::from([of]);
    loop {
        let before = found.len();
        found.extend(
            all.iter().filter(|process| found.contains(&process.parent)).map(|process| process.pid).collect::<Vec<_>>(),
        );
        if found.len() == before {
            break;
        }
    }
    all.iter()
        .filter(|process| !process.zombie && process.pid != of && found.contains(&process.pid))
        .map(|p| p.pid)
        .collect()
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything, so that the fields are counted from its end.
            let end = stat.iter().rposition(|&byte| byte == b')')?;
            let mut fields = str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
            let zombie = matches!(fields.next()?, "Z" | "X");
            Some(Process { pid, parent: fields.next()?.parse().ok()?, zombie })
        })
        .collect()
}
