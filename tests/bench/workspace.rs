//! The workspace between two stages of a run: packed and encrypted, decrypted and unpacked, with the code of worker and launcher
//! and beside `tar`, `gzip` and `age`.
//!
//! Ours is this program, started again: one thread is the worker, which packs, the other one the launcher, which encrypts, and
//! parts go from one to the other as they do in a run. `gzip` has the worker's level. Encrypted is for the same key.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use integration_tests::random::Random;
use integration_tests::release::noise;
use integration_tests::run::{self, succeed};
use launcher_wire::key::PoolKey;
use spacelift_launcher::sealed::{self, Sealer};
use spacelift_worker::archive;
use spacelift_worker::protocol::MAXIMUM_PART;

use crate::{Goal, heading, race, row, say, shell};

/// Bytes of the workspace.
const SIZE: usize = 200_000_000;
/// As in a run.
const PURPOSE: &str = "the workspace of run 01ARZ3NDEKTSV4RRFFQ69G5FAV";
/// Parts between the two of them.
const PARTS: usize = 4;
/// How many times as fast ours is to be.
const GOAL: f64 = 1.0;

/// Measures, and prints rows with goals.
pub(crate) fn run() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
    let at = |name: &str| directory.path().join(name);
    let (workspace, key) = (at("workspace"), at("spacelift.key"));
    fill(&workspace)?;
    succeed(
        run::tool("openssl")
            .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096", "-out"])
            .arg(&key),
    );
    let (our_file, their_file) = (at("ours.age"), at("theirs.age"));
    let ours = |what: &'static str, from: &Path, to: &Path| -> Result<Vec<Command>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(what).arg(&key).args([from, to]);
        Ok(vec![command])
    };
    heading(
        "a workspace of 200 MB, a third each of text, machine code and random bytes; both compress with level 1 of gzip",
    );
    let theirs = || {
        let script = r#"set -o pipefail; tar -C "$1" -cf - . | gzip -1 | age --encrypt --identity "$2" --output "$3""#;
        Ok(vec![shell(script, &[workspace.as_os_str(), key.as_os_str(), their_file.as_os_str()])])
    };
    let result = race(&|| ours("pack-workspace", &workspace, &our_file), &theirs)?;
    row("pack and encrypt: tar | gzip -1 | age", &result, Goal::Faster(GOAL))?;
    let (our_size, their_size) = (fs::metadata(&our_file)?.len() as f64, fs::metadata(&their_file)?.len() as f64);
    say(&format!(
        "    size: ours {:.2} MB, theirs {:.2} MB, ratio {:.4}; {:.0} MB/s against {:.0} MB/s",
        our_size / 1e6,
        their_size / 1e6,
        our_size / their_size,
        SIZE as f64 / 1e6 / result.ours.as_secs_f64(),
        SIZE as f64 / 1e6 / result.theirs.as_secs_f64(),
    ))?;

    // Both read the same file: theirs reads ours, as it does where somebody looks into a workspace.
    let (our_copy, their_copy) = (at("ours"), at("theirs"));
    let empty = |copy: &Path| -> Result<()> {
        if copy.exists() {
            fs::remove_dir_all(copy)?;
        }
        Ok(fs::create_dir(copy)?)
    };
    let mine = || {
        empty(&our_copy)?;
        ours("unpack-workspace", &our_file, &our_copy)
    };
    let theirs = || {
        empty(&their_copy)?;
        let script = r#"set -o pipefail; age --decrypt --identity "$1" "$2" | tar -C "$3" -xzf -"#;
        Ok(vec![shell(script, &[key.as_os_str(), our_file.as_os_str(), their_copy.as_os_str()])])
    };
    let result = race(&mine, &theirs)?;
    for copy in [&our_copy, &their_copy] {
        let same = Command::new("diff").args(["--recursive", "--brief"]).args([&workspace, copy]).status()?;
        ensure!(same.success(), "{} is not what was packed", copy.display());
    }
    row("decrypt and unpack: age | tar -xz", &result, Goal::Faster(GOAL))
}

/// A directory such as stages leave: many files of text, programs as providers are, and what is compressed already.
fn fill(workspace: &Path) -> Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let text = TEXT.concat().into_bytes();
    let code = fs::read(std::env::current_exe()?)?;
    let third = SIZE / 3;
    for (name, files, original) in
        [("source", 1_000, Some(&text)), (".terraform", 4, Some(&code)), ("packed", 10, None)]
    {
        let directory = workspace.join(name);
        fs::create_dir_all(&directory)?;
        for index in 0..files {
            let size = third / files;
            let content = match original {
                Some(original) => pieces(original, size, &mut random),
                None => noise(size),
            };
            fs::write(directory.join(format!("{index:04}")), content)?;
        }
    }
    Ok(())
}

/// Text as there is in a workspace: this project's own.
const TEXT: [&str; 5] = [
    include_str!("workspace.rs"),
    include_str!("../../Cargo.lock"),
    include_str!("../../README.md"),
    include_str!("../../cloudformation/workerpool.yaml"),
    include_str!("../../worker/src/archive.rs"),
];

/// Pieces of a real thing in random order, each a little different.
fn pieces(original: &[u8], size: usize, random: &mut Random) -> Vec<u8> {
    const PIECE: usize = 32 * 1024;
    let mut out = Vec::with_capacity(size + PIECE);
    while out.len() < size {
        let length = PIECE.min(original.len() / 2);
        let start = random.below((original.len() - length) as u64) as usize;
        let begin = out.len();
        out.extend_from_slice(&original[start..start + length]);
        for _ in 0..length / 256 {
            let (from, to) = (random.below(length as u64) as usize, random.below(length as u64) as usize);
            out[begin + to] = out[begin + from];
        }
    }
    out.truncate(size);
    out
}

fn key_in(path: &str) -> Result<PoolKey> {
    PoolKey::from_pem(&fs::read_to_string(path)?).with_context(|| format!("{path} is no key of a pool"))
}

/// This program as worker and launcher at the end of a stage: KEY, DIRECTORY and FILE.
pub(crate) fn pack(arguments: &[String]) -> Result<()> {
    let [key, directory, file] = arguments else { bail!("expected: pack-workspace KEY DIRECTORY FILE") };
    let key = key_in(key)?;
    let directory = directory.clone();
    let (sender, receiver) = sync_channel(PARTS);
    let packing = thread::spawn(move || {
        let mut parts = Parts { sender, part: Vec::with_capacity(MAXIMUM_PART) };
        archive::pack(Path::new(&directory), &[] as &[&OsStr], &mut parts)?;
        Ok::<_, anyhow::Error>(parts.send()?)
    });
    let mut sealer = Sealer::new(BufWriter::new(File::create(file)?), &key, PURPOSE)?;
    for part in receiver {
        sealer.write_all(&part)?;
    }
    packing.join().map_err(|_| anyhow!("packing panicked"))??;
    Ok(sealer.finish()?.flush()?)
}

/// This program as launcher and worker at the beginning of the next stage: KEY, FILE and DIRECTORY.
pub(crate) fn unpack(arguments: &[String]) -> Result<()> {
    let [key, file, directory] = arguments else { bail!("expected: unpack-workspace KEY FILE DIRECTORY") };
    let mut opened = sealed::open(BufReader::new(File::open(file)?), &key_in(key)?, PURPOSE)?;
    let directory = directory.clone();
    let (sender, receiver) = sync_channel(PARTS);
    let unpacking =
        thread::spawn(move || archive::unpack(Received { receiver, part: Vec::new(), at: 0 }, Path::new(&directory)));
    loop {
        let mut part = vec![0; MAXIMUM_PART];
        let count = opened.read(&mut part)?;
        part.truncate(count);
        // Whoever unpacks does not want more: it has failed.
        if count == 0 || sender.send(part).is_err() {
            break;
        }
    }
    drop(sender);
    Ok(unpacking.join().map_err(|_| anyhow!("unpacking panicked"))??)
}

/// The worker's side of an upload.
struct Parts {
    sender: SyncSender<Vec<u8>>,
    part: Vec<u8>,
}

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(MAXIMUM_PART));
        self.sender.send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(MAXIMUM_PART - self.part.len());
        self.part.extend_from_slice(&bytes[..length]);
        if self.part.len() == MAXIMUM_PART {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The worker's side of a download.
struct Received {
    receiver: Receiver<Vec<u8>>,
    part: Vec<u8>,
    at: usize,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            match self.receiver.recv() {
                Ok(part) => (self.part, self.at) = (part, 0),
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.part.len() - self.at);
        buffer[..length].copy_from_slice(&self.part[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
