//! Two programs in turn, with time, processor time and memory.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Pairs of runs that count, after one that does not.
const RUNS: usize = 5;

/// What two programs took, in the middle of all pairs.
pub(crate) struct Race {
    pub(crate) ours: Duration,
    pub(crate) theirs: Duration,
    /// Theirs divided by ours, pair by pair: minimum, median, maximum.
    pub(crate) ratio: [f64; 3],
    pub(crate) our_cpu: Duration,
    pub(crate) their_cpu: Duration,
}

/// What is to be timed: all of these, one after the other.
pub(crate) type Commands<'a> = &'a dyn Fn() -> anyhow::Result<Vec<Command>>;

/// Ours and theirs in turn.
pub(crate) fn race(ours: Commands<'_>, theirs: Commands<'_>) -> anyhow::Result<Race> {
    let mut pairs = Vec::new();
    let mut cpus = (Duration::ZERO, Duration::ZERO);
    for run in 0..=RUNS {
        let before = cpu()?;
        let our_time = timed(ours)?;
        let between = cpu()?;
        let pair = (our_time, timed(theirs)?);
        let after = cpu()?;
        cpus = (cpus.0 + (between - before), cpus.1 + (after - between));
        if run > 0 {
            pairs.push(pair);
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let mut ratios: Vec<f64> = pairs.iter().map(|(ours, theirs)| theirs.as_secs_f64() / ours.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    Ok(Race {
        ours: median(pairs.iter().map(|pair| pair.0).collect()),
        theirs: median(pairs.iter().map(|pair| pair.1).collect()),
        ratio: [ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]],
        our_cpu: cpus.0 / (RUNS as u32 + 1),
        their_cpu: cpus.1 / (RUNS as u32 + 1),
    })
}

/// Processor time of all programs that were waited for so far.
pub(crate) fn cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in parentheses; the children's times are the 16th and 17th.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn timed(commands: Commands<'_>) -> anyhow::Result<Duration> {
    let commands = commands()?;
    let mut total = Duration::ZERO;
    for mut command in commands {
        command.stdout(Stdio::null());
        let start = Instant::now();
        let status = command.status().with_context(|| format!("{command:?} cannot be started"))?;
        total += start.elapsed();
        ensure!(status.success(), "{command:?} failed: {status}");
    }
    Ok(total)
}

/// The largest resident size in KiB, as the kernel keeps it; read until the process is gone.
pub(crate) fn peak_memory(command: &mut Command) -> anyhow::Result<u64> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        peak = peak.max(memory(child.id(), "VmHWM:").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(peak)
}

/// What the kernel says of a process's memory under this name, in KiB.
pub(crate) fn memory(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// A command for bash, whose arguments are never part of the script's text.
pub(crate) fn shell(script: &str, arguments: &[&OsStr]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).args(arguments);
    command
}
