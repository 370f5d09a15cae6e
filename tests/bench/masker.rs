//! The worker's masker alone, beside `sed` with the same secrets: both read one file and write another.
//!
//! The masker is measured in this program, which is started again as `mask` where it is compared. The release builds its code for
//! size and this program for speed: `pipeline` has what ships.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use spacelift_worker::masking::{MASK, Masker, Secrets};
use spacelift_worker::protocol::MAXIMUM_PART;

use crate::logs::{self, LogText};
use crate::{Goal, heading, race, row};

/// Bytes of the log.
const SIZE: usize = 256_000_000;
/// Bytes of it that `sed` gets: with many secrets it takes seconds for a few megabytes.
const COMPARED: usize = 16_000_000;
const COUNTS: [usize; 4] = [1, 10, 50, 200];
/// Megabytes in a second with as many secrets as there are at most.
const GOAL: f64 = 200.0;
/// Times that each is measured; the one in the middle counts.
const RUNS: usize = 3;

/// Measures, and prints rows with goals.
pub(crate) fn run() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
    let input = directory.path().join("input");
    let list = directory.path().join("secrets");
    let script = directory.path().join("script");
    let ours_out = directory.path().join("ours");
    let theirs_out = directory.path().join("theirs");
    heading(&format!(
        "mask a log of {} MB, as the worker does: in pieces of {} KiB",
        SIZE / 1_000_000,
        MAXIMUM_PART / 1024
    ));
    for count in COUNTS {
        let secrets = logs::secrets(count);
        let text = LogText::new(&secrets).take(SIZE);
        let mut times = Vec::new();
        for _ in 0..RUNS {
            times.push(masked(&secrets, &text)?);
        }
        times.sort();
        let goal = (count == COUNTS[COUNTS.len() - 1]).then_some(GOAL);
        logs::rate(&format!("{count} secrets"), &text, times[RUNS / 2], goal)?;

        let end = text[..COMPARED].iter().rposition(|&byte| byte == b'\n').context("there are lines")? + 1;
        fs::write(&input, &text[..end])?;
        fs::write(&list, secrets.join("\n"))?;
        // Letters and digits alone: nothing in them means anything to `sed`.
        let lines = secrets.iter().map(|secret| format!("s/{secret}/{}/g\n", String::from_utf8_lossy(MASK)));
        fs::write(&script, lines.collect::<String>())?;
        let ours = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("mask").args([&list, &input, &ours_out]);
            Ok(vec![command])
        };
        let theirs = || {
            let mut command = Command::new("sed");
            // Bytes, as ours: it is slower where it looks at characters.
            command
                .env("LC_ALL", "C")
                .arg("-n")
                .arg("-f")
                .arg(&script)
                .arg("-e")
                .arg(write_to(&theirs_out)?)
                .arg(&input);
            Ok(vec![command])
        };
        let result = race(&ours, &theirs)?;
        ensure!(fs::read(&ours_out)? == fs::read(&theirs_out)?, "they mask differently");
        row(&format!("{count} secrets, {} MB: sed", COMPARED / 1_000_000), &result, Goal::Faster(1.0))?;
    }
    Ok(())
}

/// What makes `sed` write each line to a file.
fn write_to(path: &Path) -> Result<String> {
    Ok(format!("w {}", path.to_str().context("the path is not UTF-8")?))
}

fn masker(secrets: &[String]) -> Result<Masker> {
    let mut all = Secrets::default();
    for secret in secrets {
        all.add(secret.as_bytes())?;
    }
    Ok(Masker::new(all))
}

/// How long it takes without reading or writing a file. Making the search counts.
fn masked(secrets: &[String], text: &[u8]) -> Result<Duration> {
    let begun = Instant::now();
    let mut masker = masker(secrets)?;
    let mut out = Vec::new();
    let mut written = 0;
    for part in text.chunks(MAXIMUM_PART) {
        out.clear();
        masker.write(part, &mut out)?;
        written += out.len();
    }
    out.clear();
    masker.flush(&mut out)?;
    written += out.len();
    let took = begun.elapsed();
    ensure!(written < text.len(), "nothing was masked");
    Ok(took)
}

/// This program as what `sed` is compared with: SECRETS, one in each line, INPUT and OUTPUT.
pub(crate) fn mask(arguments: &[String]) -> Result<()> {
    let [list, input, output] = arguments else { bail!("expected: mask SECRETS INPUT OUTPUT") };
    let secrets: Vec<String> = fs::read_to_string(list)?.lines().map(str::to_owned).collect();
    let mut masker = masker(&secrets)?;
    let (mut source, mut file) = (File::open(input)?, BufWriter::new(File::create(output)?));
    let (mut piece, mut out) = (vec![0; MAXIMUM_PART], Vec::new());
    loop {
        let count = source.read(&mut piece)?;
        if count == 0 {
            break;
        }
        out.clear();
        masker.write(&piece[..count], &mut out)?;
        file.write_all(&out)?;
    }
    out.clear();
    masker.flush(&mut out)?;
    file.write_all(&out)?;
    Ok(file.flush()?)
}
