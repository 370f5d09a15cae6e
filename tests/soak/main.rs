//! Runs under faults, first every combination and then at random, for a bounded time: the long form of the fault matrix in the
//! tests. Prints a line for each, and a report at the end.
//!
//! Usage: `soak MINUTES REPORT`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use integration_tests::faults::{Case, Fault, Moment, Part, Site};
use integration_tests::program;
use integration_tests::random::Random;
use integration_tests::release::Release;

const LAUNCHERS: usize = 2;

#[expect(clippy::print_stdout, reason = "it is a program for people")]
fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [minutes, report] = &arguments[..] else { bail!("usage: soak MINUTES REPORT") };
    let limit = Duration::from_secs(60 * minutes.parse::<u64>().context("MINUTES is not a number")?);
    let report = PathBuf::from(report);

    let own = std::env::current_exe()?;
    let strict_s3 = own.with_file_name("strict-s3");
    let release = Release::under_test().unpack();
    let launcher = release.program("spacelift-launcher", std::env::consts::ARCH);
    let strict_s3 = strict_s3.to_str().context("the target directory is not named in UTF-8")?;
    let mut site = Site::start(program::mothership(), strict_s3, &launcher, LAUNCHERS);

    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 | 1;
    let mut random = Random(seed);
    let (begun, mut lines, mut wrong) = (Instant::now(), vec![], 0);
    let mut planned = every_case().into_iter();
    while begun.elapsed() < limit {
        let case = planned.next().unwrap_or_else(|| any_case(&mut random));
        let started = Instant::now();
        let found = site.try_case(&case);
        let word = if found.is_empty() { "ok" } else { "WRONG" };
        let line = format!("{case} {word:6} {:5.1} s", started.elapsed().as_secs_f32());
        println!("{line}");
        for what in &found {
            println!("    {what}");
        }
        wrong += found.len();
        lines.push(line);
        lines.extend(found.into_iter().map(|what| format!("    {what}")));
    }
    for what in site.finish() {
        println!("{what}");
        lines.push(what);
        wrong += 1;
    }
    let counts = site.counts();
    let summary = format!("{counts}\nseed {seed}, {:.0} s", begun.elapsed().as_secs_f32());
    println!("{summary}");
    if let Some(directory) = report.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&report, format!("{summary}\n\n{}\n", lines.join("\n")))?;
    println!("report: {}", report.display());
    Ok(if wrong == 0 && counts.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each part, struck in each way, at each moment that makes sense for it.
fn every_case() -> Vec<Case> {
    let begun = |milliseconds| Moment::Begun(Duration::from_millis(milliseconds));
    let mut cases = vec![];
    for part in Part::ALL {
        for fault in Fault::ALL {
            for moment in
                [begun(50), begun(400), Moment::Planning, Moment::PlanEnding, Moment::Applying, Moment::ApplyEnding]
            {
                if fault.can_strike(part, moment) {
                    cases.push(Case { part, fault, moment, duration: Duration::from_secs(3) });
                }
            }
        }
    }
    cases
}

fn any_case(random: &mut Random) -> Case {
    let (part, fault, moment) = loop {
        let part = Part::ALL[random.below(Part::ALL.len() as u64) as usize];
        let fault = Fault::ALL[random.below(Fault::ALL.len() as u64) as usize];
        let moment = match random.below(5) {
            0 => Moment::Begun(Duration::from_millis(random.below(3000))),
            1 => Moment::PlanEnding,
            2 => Moment::ApplyEnding,
            3 => Moment::Applying,
            _ => Moment::Planning,
        };
        if fault.can_strike(part, moment) {
            break (part, fault, moment);
        }
    };
    // Mostly short, now and then longer than most limits of a single attempt.
    let longest = [500, 2_000, 8_000, 70_000][random.below(4) as usize];
    Case { part, fault, moment, duration: Duration::from_millis(100 + random.below(longest)) }
}
