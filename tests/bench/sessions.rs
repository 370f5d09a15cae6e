//! A thousand launchers' sessions on one broker that is killed and comes back.
//!
//! The sessions are a process of their own, this program again as `hold-sessions`, so that its memory is theirs. It starts a
//! session for each identifier on its standard input, says on standard output what happens in them, and ends with its input.

use std::collections::HashSet;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use integration_tests::sessions::{self, World};
use launcher_wire::id::{AssignmentId, RunId, WorkerId};
use launcher_wire::mqtt::ToWorker;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spacelift_launcher::network;
use spacelift_launcher::session::{Event, Session, Settings};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::report::print;
use crate::{Limit, figure, heading, memory, over_time};

/// Sessions at once.
const SESSIONS: usize = 1000;
/// Descriptors that broker and sessions need, each: one for a session and some around them.
const DESCRIPTORS: u64 = SESSIONS as u64 + 200;
/// How long it may take until all sessions are back, from the moment in which the broker is started again.
const BACK: Duration = Duration::from_secs(30);
/// For how long the broker is away, and the share of the sessions that may try in any one second once it is back.
///
/// A session tries after a random time below 1 s, 2 s, 4 s and so on. After one second half of them are to try for the second
/// time in the second that follows, and some for the third or fourth: 58 % in the middle of many simulations, 63 % at most.
/// After fifteen, waits are spread over 16 s and more: 10 % and 13 %.
const OUTAGES: [(Duration, f64); 2] = [(Duration::from_secs(1), 0.67), (Duration::from_secs(15), 0.15)];
/// More than this is not slow, it hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// What a holder of sessions prints first.
const READY: &str = "ready";

/// Measures, and prints rows with goals.
pub(crate) fn run() -> Result<()> {
    raise_descriptors()?;
    Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let mut world = World::new().await;
    let mut fleet = Fleet::start(&world).await?;
    heading(&format!("{SESSIONS} launcher sessions in one process, with mutual TLS, on one mosquitto"));
    let before = fleet.memory()?;
    let begun = Instant::now();
    fleet.connect()?;
    let round = fleet.all_are_told(&world).await?;
    let after = fleet.memory()?;
    figure("all begun at once: each connected and heard after", (round.end - begun).as_secs_f64(), "s", None)?;
    figure("all begun at once: connected in the busiest second", busiest_second(&round.connected) as f64, "", None)?;
    figure("all begun at once: tried again", round.tries.len() as f64, "", None)?;
    let mut growth = vec![("all begun at once".to_owned(), since(begun, &round.connected))];
    let each = |memory: u64| memory.saturating_sub(before) as f64 / SESSIONS as f64;
    figure("memory for each session", each(after), "KiB", None)?;
    figure("memory without any session", before as f64 / 1024.0, "MiB", None)?;
    figure("memory with all of them", after as f64 / 1024.0, "MiB", None)?;
    for (outage, share) in OUTAGES {
        world.broker.kill();
        tokio::time::sleep(outage).await;
        let restarted = Instant::now();
        world.broker.restart();
        let round = fleet.all_are_told(&world).await?;
        let took = round.end - restarted;
        let during = format!("broker away for {} s", outage.as_secs());
        let goal = Some(Limit::AtMost(BACK.as_secs_f64()));
        figure(&format!("{during}: all back, each heard, after"), took.as_secs_f64(), "s", goal)?;
        // From here on somebody listens.
        let tries: Vec<_> = round.tries.iter().copied().filter(|&at| at >= restarted).collect();
        let goal = Some(Limit::AtMost((share * SESSIONS as f64).floor()));
        let tries = busiest_second(&tries) as f64;
        figure(&format!("{during}: meant to connect in the busiest second"), tries, "", goal)?;
        // No goal: handshakes that waited for the broker end together once it has caught up.
        let connected = busiest_second(&round.connected) as f64;
        figure(&format!("{during}: were connected in the busiest second"), connected, "", None)?;
        // Each once, and no more: `all_are_told` has seen each of them.
        let goal = Some(Limit::AtMost(SESSIONS as f64));
        figure(&format!("{during}: connections of {SESSIONS} sessions"), round.connected.len() as f64, "", goal)?;
        growth.push((during, since(restarted, &round.connected)));
    }
    over_time(
        "Sessions that are connected",
        growth.iter().map(|(name, moments)| (&name[..], moments.clone())).collect(),
    );
    figure("memory for each session afterwards", each(fleet.memory()?), "KiB", None)
}

/// In seconds.
fn since(begin: Instant, moments: &[Instant]) -> Vec<f64> {
    moments.iter().map(|moment| moment.saturating_duration_since(begin).as_secs_f64()).collect()
}

/// The most of these moments within a second.
fn busiest_second(moments: &[Instant]) -> usize {
    let mut moments = moments.to_vec();
    moments.sort();
    let within = |&from: &Instant| moments.partition_point(|&at| at < from + Duration::from_secs(1));
    moments.iter().enumerate().map(|(index, from)| within(from) - index).max().unwrap_or(0)
}

/// The sessions, in a process that ends when this is dropped.
struct Fleet {
    process: Child,
    input: ChildStdin,
    output: mpsc::UnboundedReceiver<(Instant, String)>,
    workers: Vec<WorkerId>,
}

/// What happened until each session had got what was said to it.
struct Round {
    end: Instant,
    /// When sessions were connected.
    connected: Vec<Instant>,
    /// When sessions meant to try again.
    tries: Vec<Instant>,
}

impl Fleet {
    /// Starts the process, without sessions.
    async fn start(world: &World) -> Result<Self> {
        let (certificate, key) = world.authority.client(&world.pool.to_string());
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("hold-sessions").arg(world.broker.port().to_string()).arg(world.authority.certificate());
        command.arg(certificate).arg(key).arg(world.pool.to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("it has an input")?;
        let lines = BufReader::new(process.stdout.take().context("it has an output")?).lines();
        let (sender, output) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send((Instant::now(), line));
            }
        });
        let workers = (0..SESSIONS).map(|_| WorkerId::new()).collect();
        let mut fleet = Self { process, input, output, workers };
        ensure!(fleet.line(Instant::now() + LIMIT).await?.1 == READY, "the process with the sessions does not begin");
        Ok(fleet)
    }

    fn connect(&mut self) -> Result<()> {
        let lines: String = self.workers.iter().map(|worker| format!("{worker}\n")).collect();
        Ok(self.input.write_all(lines.as_bytes())?)
    }

    /// Says something to each session once it is connected, and returns when all have got it.
    async fn all_are_told(&mut self, world: &World) -> Result<Round> {
        let (run, begun) = (RunId::new(), Instant::now());
        let told_of = run.to_string();
        let mut told = HashSet::new();
        let mut round = Round { end: begun, connected: vec![], tries: vec![] };
        while told.len() < self.workers.len() {
            let (at, line) = self.line(begun + LIMIT).await.with_context(|| {
                format!("{} of {SESSIONS} sessions heard nothing within {} s", SESSIONS - told.len(), LIMIT.as_secs())
            })?;
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["connected", worker] => {
                    round.connected.push(at);
                    let message = ToWorker::RunStop { run, assignment: AssignmentId::new() };
                    world.control.send(WorkerId::from_str(worker)?, message).await;
                }
                ["told", worker, of] if of == told_of => {
                    told.insert(worker.to_owned());
                    round.end = at;
                }
                // Of the round before: the broker forgot that it was acknowledged.
                ["told", ..] => {}
                ["disconnected", _, retry_in] => round.tries.push(at + Duration::from_millis(retry_in.parse()?)),
                _ => bail!("the process with the sessions says {line:?}"),
            }
        }
        Ok(round)
    }

    async fn line(&mut self, deadline: Instant) -> Result<(Instant, String)> {
        let line = timeout(deadline.saturating_duration_since(Instant::now()), self.output.recv()).await;
        line.context("nothing happens any more")?.context("the process with the sessions ended")
    }

    /// In KiB.
    fn memory(&self) -> Result<u64> {
        memory(self.process.id(), "VmRSS:").context("the process with the sessions ended")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process with the sessions: PORT, files with the authority, certificate and key, and the pool.
pub(crate) fn hold(arguments: &[String]) -> Result<()> {
    let [port, authority, certificate, key, pool] = arguments else {
        bail!("expected: hold-sessions PORT AUTHORITY CERTIFICATE KEY POOL");
    };
    let authority = std::fs::read_to_string(authority)?;
    let network = network::Settings { token_authorities: Some(authority), ..network::Settings::default() };
    let (certificate, key) = (Path::new(certificate), Path::new(key));
    // What all sessions share, as in a launcher there is one.
    let template = sessions::settings(port.parse()?, &network, certificate, key, pool.parse()?, WorkerId::new());
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let _inside = runtime.enter();
    print(READY)?;
    for line in io::stdin().lines() {
        let worker = WorkerId::from_str(&line?)?;
        let (handle, mut events) = Session::start(Settings { worker, ..template.clone() })?;
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let line = match event {
                    Event::Connected => format!("connected {worker}"),
                    Event::Message(ToWorker::RunStop { run, .. }) => format!("told {worker} {run}"),
                    Event::Message(other) => format!("surprised {worker} {other:?}"),
                    Event::Disconnected { retry_in, .. } => format!("disconnected {worker} {}", retry_in.as_millis()),
                };
                // Nobody reads only when this is about to end.
                let _ = print(&line);
            }
            drop(handle);
        });
    }
    Ok(())
}

/// For this process and those that it starts.
fn raise_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= DESCRIPTORS) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: limit.maximum }).with_context(|| {
        format!("cannot open {DESCRIPTORS} files at once; raise the limit with `ulimit -Hn {DESCRIPTORS}`")
    })
}
