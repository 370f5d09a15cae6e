//! `exec(command)`: programs of the host.
//!
//! The command is an array of a path or name and arguments; no shell reads them. The program gets the launcher's environment
//! without the pool's token and key, no input, 30 seconds, and a process group of its own, of which nothing is left afterwards.
//! A program that exits with another code than 0 is no error; one that cannot be started, takes too long or prints too much is.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use regorus::Value;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(10);
/// Bytes that it may write, on each of its outputs.
const MAXIMUM_OUTPUT: u64 = 1024 * 1024;

pub(super) fn exec(command: &Value) -> Result<Value> {
    exec_within(LIMIT, command)
}

pub(super) fn exec_within(limit: Duration, command: &Value) -> Result<Value> {
    let words: Option<Vec<String>> = match command {
        Value::Array(words) => words.iter().map(|word| Some(word.as_string().ok()?.to_string())).collect(),
        _ => None,
    };
    let Some((program, arguments)) = words.as_deref().and_then(<[String]>::split_first) else {
        bail!("exec takes an array of strings: a program and its arguments");
    };
    let child = Command::new(program)
        .args(arguments)
        .env_remove("SPACELIFT_TOKEN")
        .env_remove("SPACELIFT_POOL_PRIVATE_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("exec cannot start `{program}`"))?;
    let mut group = Group(child);
    let deadline = Instant::now() + limit;
    let outputs =
        [collect(group.0.stdout.take().expect("it is piped")), collect(group.0.stderr.take().expect("it is piped"))];
    let late = || format!("exec: `{program}` took longer than {} seconds", limit.as_secs());
    let status = group.wait_until(deadline)?.with_context(late)?;
    // A process that it left behind can hold the outputs open.
    group.end();
    let [stdout, stderr] = outputs.map(|output| {
        let output =
            output.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok().with_context(late)??;
        if output.len() as u64 > MAXIMUM_OUTPUT {
            bail!("exec: `{program}` printed more than {MAXIMUM_OUTPUT} bytes");
        }
        Ok(String::from_utf8_lossy(&output).into_owned())
    });
    // As shells have it for signals.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    Ok(Value::from(json!({ "status": code, "stdout": stdout?, "stderr": stderr? })))
}

fn collect(output: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(MAXIMUM_OUTPUT + 1).read_to_end(&mut bytes);
        // Nobody listens any more when it took too long.
        let _ = sender.send(read.map(|_| bytes));
    });
    receiver
}

/// A process that leads a group.
struct Group(Child);

impl Group {
    fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }

    fn end(&mut self) {
        // Errors: nothing is left in it.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
        let _ = self.0.wait();
    }
}
