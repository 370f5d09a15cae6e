//! One program of the job: started, read from, ended.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::environment::Environment;
use crate::init::{Children, end_everything};
use crate::log::Log;
use crate::protocol::MAXIMUM_PART;
use crate::stop::{Order, Stops};

/// The job is what the kernel ends first when memory runs out, not the worker.
const OOM_SCORE: &str = "500";
/// How long what a program left behind may hold on to its output.
const END_OF_OUTPUT: Duration = Duration::from_secs(2);
/// What a program left behind has as much time to end before it is killed.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// How a program ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Because it was told to.
    Stopped,
}

/// What all programs of a job have in common.
#[derive(Debug)]
pub struct Executor {
    /// Children that are waited for.
    pub children: Children,
    /// Orders to stop.
    pub stops: Stops,
    /// Where output goes.
    pub log: Log,
}

/// A program to be executed.
#[derive(Debug)]
pub struct Program {
    /// It and its arguments.
    pub command: Vec<OsString>,
    /// All of its environment.
    pub environment: Environment,
    /// Where it runs.
    pub directory: PathBuf,
    /// Where its standard output goes, unless into the log.
    pub output: Option<fs::File>,
}

impl Executor {
    /// Executes it, and ends what it leaves behind.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn run(&mut self, program: Program) -> io::Result<End> {
        let (reader, writer) = io::pipe()?;
        let mut reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
        let (name, arguments) =
            program.command.split_first().map_or((OsStr::new(""), &[][..]), |(n, a)| (n.as_os_str(), a));
        let mut command = Command::new(name);
        let output = match program.output {
            Some(file) => Stdio::from(file),
            None => Stdio::from(writer.try_clone()?),
        };
        command
            .args(arguments)
            .env_clear()
            .envs(program.environment.iter())
            .current_dir(program.directory)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::from(writer))
            .process_group(0);
        let mut child = command.spawn()?;
        // It holds the writing ends, of which none may be left here.
        drop(command);
        let group =
            child.id().and_then(|id| Pid::from_raw(id as i32)).ok_or_else(|| io::Error::other("it has no id"))?;
        let awaited = self.children.awaited(group);
        // It is better to go on than to fail where this cannot be set.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", group.as_raw_nonzero()), OOM_SCORE);

        let reading = Cell::new(false);
        let log = &mut self.log;
        let mut pump = Box::pin(async {
            let mut buffer = vec![0; MAXIMUM_PART];
            loop {
                reading.set(true);
                // An error is as good as the end: there is nothing more to be had.
                let read = reader.read(&mut buffer).await.unwrap_or(0);
                reading.set(false);
                if read == 0 {
                    break;
                }
                log.write(&buffer[..read]).await;
            }
        });
        let mut output = Output { pump: pump.as_mut(), ended: false, reading: &reading };

        let mut stopped = false;
        let status = tokio::select! {
            status = output.alongside(child.wait()) => status?,
            order = self.stops.next() => {
                stopped = true;
                // Both at once: until somebody waited for it, a process that has ended is still in its group.
                let ending = async { tokio::join!(end_group(group, &order, &mut self.stops), child.wait()).1 };
                output.alongside(ending).await?
            }
        };
        drop(awaited);
        if !output.settle(END_OF_OUTPUT).await || test_kill_process_group(group).is_ok() {
            let order = Order { grace: LEFTOVER_GRACE, ..Order::default() };
            output.alongside(end_group(group, &order, &mut self.stops)).await;
        }
        output.alongside(end_everything()).await;
        output.settle(END_OF_OUTPUT).await;
        drop(pump);
        self.log.flush().await;
        Ok(if stopped { End::Stopped } else { End::Exited(status) })
    }
}

/// SIGTERM, and SIGKILL when the time is over; sooner when another order comes that says so.
async fn end_group(group: Pid, order: &Order, stops: &mut Stops) {
    let _ = kill_process_group(group, Signal::TERM);
    let mut deadline = Instant::now() + order.grace;
    while test_kill_process_group(group).is_ok() && Instant::now() < deadline {
        tokio::select! {
            () = sleep(POLL) => {}
            order = stops.next() => deadline = deadline.min(Instant::now() + order.grace),
        }
    }
    if test_kill_process_group(group).is_ok() {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A program's output on its way into the log.
struct Output<'a, P> {
    pump: Pin<&'a mut P>,
    ended: bool,
    reading: &'a Cell<bool>,
}

impl<P: Future<Output = ()>> Output<'_, P> {
    /// Goes on reading while something else is waited for: a program whose output nobody takes does not end.
    async fn alongside<F: Future>(&mut self, other: F) -> F::Output {
        tokio::pin!(other);
        loop {
            tokio::select! {
                result = &mut other => return result,
                () = &mut self.pump, if !self.ended => self.ended = true,
            }
        }
    }

    /// Reads to the end, but does not wait for more than this time for more output. The time that the launcher takes does
    /// not count: what was written is not lost.
    async fn settle(&mut self, limit: Duration) -> bool {
        let mut waited = Duration::ZERO;
        while !self.ended && waited < limit {
            self.alongside(sleep(POLL)).await;
            if self.reading.get() {
                waited += POLL;
            }
        }
        self.ended
    }
}
