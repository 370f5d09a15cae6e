//! Packing, beside `tar` and a compressor.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;

use crate::{Goal, SIZE, beside, heading, race, row, share, shell};

/// Packs 200 MB of text and code, and a release as real ones are.
pub(crate) fn run(program: &Path, directory: &Path) -> anyhow::Result<()> {
    for (title, mix) in [("text and code", Mix::Compressible), ("a release with image layers", Mix::Release)] {
        let stage = directory.join("stage");
        generate(&stage, mix, program)?;
        let out = directory.join("out");
        let ours = || Ok(vec![pack_command(program, &stage, &directory.join("release.yaml"), &out)?]);
        let archive = out.join("bench-v1.0.0.unsigned.tar.gz");
        heading(&format!("pack 200 MB: {title}"));
        for (tool, other) in [("gzip -6", "gzip"), ("pigz -6", "pigz")] {
            let theirs_out = directory.join("theirs.tar.gz");
            let theirs = || {
                Ok(vec![shell(
                    r#"set -o pipefail; tar -C "$1" -cf - . | "$2" -6 > "$3""#,
                    &[stage.as_os_str(), other.as_ref(), theirs_out.as_os_str()],
                )])
            };
            let result = race(&ours, &theirs)?;
            let (our_size, their_size) = (fs::metadata(&archive)?.len(), fs::metadata(&theirs_out)?.len());
            row(&format!("tar | {tool}"), &result, Goal::Faster(if other == "gzip" { 7.0 } else { 3.0 }))?;
            share(&format!("size, {other}"), tool, [our_size, their_size].map(|size| size as f64 / 1e6), "MB", None)?;
            let speeds = [result.ours, result.theirs].map(|time| SIZE as f64 / 1e6 / time.as_secs_f64());
            beside(&format!("speed, {other}"), tool, speeds, "MB/s", None)?;
        }
        fs::remove_dir_all(&stage)?;
    }
    Ok(())
}

/// What fills a generated release.
#[derive(Clone, Copy)]
pub(crate) enum Mix {
    /// Text and machine code alone: nothing that is compressed already.
    Compressible,
    /// As a real release: a third of it is image layers that are compressed already.
    Release,
}

/// Packs a stage without a signature.
pub(crate) fn pack_command(program: &Path, stage: &Path, config: &Path, out: &Path) -> anyhow::Result<Command> {
    fs::write(config, "product: bench\nchannel: stable\nsequence: 1\nsource: https://example.com/bench\n")?;
    let mut command = Command::new(program);
    command.args([
        "pack",
        "--version",
        "v1.0.0",
        "--commit",
        "unknown",
        "--source-date",
        "1700000000",
        "--development",
    ]);
    command.arg("--stage").arg(stage).arg("--config").arg(config).arg("--output-dir").arg(out);
    Ok(command)
}

/// Fills `stage` with files of a mix that is the same for the same program.
pub(crate) fn generate(stage: &Path, mix: Mix, program: &Path) -> anyhow::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let program = fs::read(program)?;
    let text = TEXT.concat().into_bytes();
    fs::create_dir_all(stage.join("payload"))?;
    let files = 20;
    for index in 0..files {
        let path = stage.join(format!("payload/{index:02}.bin"));
        let mut file = BufWriter::new(File::create(&path)?);
        let size = SIZE / files;
        let kind = match mix {
            Mix::Release if index % 3 == 2 => 2,
            _ => index % 2,
        };
        let mut written = 0;
        let mut piece = Vec::new();
        while written < size {
            piece.clear();
            match kind {
                0 => self::piece(&text, &mut random, &mut piece),
                1 => self::piece(&program, &mut random, &mut piece),
                _ => piece.extend((0..512).flat_map(|_| random.next().to_le_bytes())),
            }
            piece.truncate(size - written);
            file.write_all(&piece)?;
            written += piece.len();
        }
        file.flush()?;
    }
    Ok(())
}

/// Text as there is in a release: this project's own.
const TEXT: [&str; 6] = [
    include_str!("main.rs"),
    include_str!("../../Cargo.lock"),
    include_str!("../../README.md"),
    include_str!("../../LICENSE-APACHE"),
    include_str!("../../bundle/core/src/verify.rs"),
    include_str!("../../bundle/core/src/signing.rs"),
];

/// A piece of a real thing, a little different each time. Pieces come in random order, so what repeats lies further away
/// than any window reaches.
fn piece(original: &[u8], random: &mut Random, out: &mut Vec<u8>) {
    const PIECE: usize = 64 * 1024;
    let length = PIECE.min(original.len() / 2);
    let start = random.below((original.len() - length) as u64) as usize;
    out.extend_from_slice(&original[start..start + length]);
    for _ in 0..length / 256 {
        let (from, to) = (random.below(length as u64) as usize, random.below(length as u64) as usize);
        out[to] = out[from];
    }
}

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
}
