//! Logs on the disk: whatever ends the launcher, what was acknowledged is there, in order and once.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use spacelift_launcher::spool::{self, Appended, Error, MAXIMUM_CHUNK, RESERVE, Spool};
use tempfile::TempDir;

const LIMIT: u64 = 64 * 1024 * 1024;
/// Tells this program that it is the child of a test.
const CHILD: &str = "SPOOL_TEST_DIRECTORY";

/// What the worker says under this number. Some messages are empty, some hold no line break, one in a while is large.
fn message(sequence: u64) -> Vec<u8> {
    let length = if sequence.is_multiple_of(97) { 60_000 } else { sequence % 23 };
    (0..length).map(|place| if place % 11 == 7 { b'\n' } else { b'a' + ((sequence + place) % 26) as u8 }).collect()
}

fn messages(up_to: u64) -> Vec<u8> {
    (1..=up_to).flat_map(message).collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Everything that is spooled, by way of what would be uploaded.
fn contents(spool: &mut Spool, directory: &Path) -> Vec<u8> {
    spool.seal().unwrap();
    (spool.first_chunk()..spool.open_chunk()).flat_map(|number| spool::read_chunk(directory, number).unwrap()).collect()
}

#[track_caller]
fn assert_is(spool: &mut Spool, directory: &Path, up_to: u64) {
    let expected = messages(up_to);
    assert_eq!(spool.last_sequence(), up_to);
    assert!(contents(spool, directory) == expected, "other bytes than the first {up_to} messages");
    let summary = spool.summary();
    assert_eq!(summary.bytes, expected.len() as u64);
    assert_eq!(summary.lines, expected.iter().filter(|&&byte| byte == b'\n').count() as u64);
    assert_eq!(summary.sha256, format!("{:x}", Sha256::digest(&expected)));
    assert_eq!(summary.chunks, spool.open_chunk());
}

fn filled(up_to: u64) -> (TempDir, Spool) {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(directory.path(), LIMIT).unwrap();
    for sequence in 1..=up_to {
        assert_eq!(spool.append(sequence, &message(sequence)).unwrap(), Appended::New);
    }
    spool.commit().unwrap();
    (directory, spool)
}

#[test]
fn a_log_that_is_cut_off_anywhere_ends_with_its_last_whole_message() {
    let (directory, spool) = filled(40);
    drop(spool);
    let original = fs::read(&files(directory.path())[0]).unwrap();
    // 20 bytes around each message.
    let sizes = (1..=40).map(|sequence| 20 + message(sequence).len());
    let header = original.len() - sizes.clone().sum::<usize>();
    let ends: Vec<usize> = sizes
        .scan(header, |end, size| {
            Some({
                *end += size;
                *end
            })
        })
        .collect();
    let copy = tempfile::tempdir().unwrap();
    for cut in header..=original.len() {
        let directory = copy.path().join(cut.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("000000"), &original[..cut]).unwrap();
        let whole = ends.iter().filter(|&&end| end <= cut).count() as u64;
        let mut spool = Spool::open(&directory, LIMIT).unwrap();
        assert_eq!(spool.last_sequence(), whole, "cut off at {cut}");
        // The worker repeats what was not acknowledged.
        for sequence in 1..=40 {
            spool.append(sequence, &message(sequence)).unwrap();
        }
        spool.commit().unwrap();
        drop(spool);
        assert_is(&mut Spool::open(&directory, LIMIT).unwrap(), &directory, 40);
        fs::remove_dir_all(&directory).unwrap();
    }
    // A header appears as a whole; a part of it is no crash.
    fs::write(copy.path().join("000000"), &original[..header - 1]).unwrap();
    assert!(matches!(Spool::open(copy.path(), LIMIT), Err(Error::Damaged { .. })));
}

#[test]
fn a_tail_of_garbage_is_cut_off() {
    let (directory, spool) = filled(10);
    drop(spool);
    for garbage in [&[0; 4096][..], &[0xff; 100], &[1, 0, 0, 0]] {
        let mut file = OpenOptions::new().append(true).open(&files(directory.path())[0]).unwrap();
        file.write_all(garbage).unwrap();
        assert_eq!(Spool::open(directory.path(), LIMIT).unwrap().last_sequence(), 10);
    }
    assert_is(&mut Spool::open(directory.path(), LIMIT).unwrap(), directory.path(), 10);
}

/// Disks keep no order: the length of a message can be there before its last byte is.
#[test]
fn a_message_that_is_on_the_disk_in_part_is_cut_off() {
    let (directory, spool) = filled(10);
    drop(spool);
    let path = &files(directory.path())[0];
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    assert_eq!(Spool::open(directory.path(), LIMIT).unwrap().last_sequence(), 9);
    assert_is(&mut Spool::open(directory.path(), LIMIT).unwrap(), directory.path(), 9);
}

#[test]
fn what_was_uploaded_is_gone_from_the_disk_and_still_counted() {
    let (directory, mut spool) = filled(4000);
    assert!(spool.open_chunk() >= 2, "several chunks fill up by themselves");
    let mut uploaded = Vec::new();
    for _ in 0..spool.open_chunk() {
        let first = spool.first_chunk();
        uploaded.extend(spool::read_chunk(directory.path(), first).unwrap());
        spool.discard(first).unwrap();
        // Before and after each of them the launcher may have been restarted.
        spool = Spool::open(directory.path(), LIMIT).unwrap();
        spool.discard(first).unwrap();
    }
    assert_eq!(files(directory.path()).len(), 1);
    uploaded.extend(contents(&mut spool, directory.path()));
    let expected = messages(4000);
    assert!(uploaded == expected);
    assert_eq!(spool.summary().sha256, format!("{:x}", Sha256::digest(&expected)));
    assert_eq!((spool.summary().bytes, spool.last_sequence()), (expected.len() as u64, 4000));
}

#[test]
fn sealed_chunks_are_the_same_after_a_restart_and_small_enough() {
    let (directory, mut spool) = filled(3000);
    spool.seal().unwrap();
    let chunks = |spool: &Spool| -> Vec<Vec<u8>> {
        (0..spool.open_chunk()).map(|number| spool::read_chunk(directory.path(), number).unwrap()).collect()
    };
    let before = chunks(&spool);
    drop(spool);
    let mut spool = Spool::open(directory.path(), LIMIT).unwrap();
    spool.append(3001, b"more").unwrap();
    assert_eq!(chunks(&spool), before);
    assert!(before.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= MAXIMUM_CHUNK));
}

#[test]
fn past_the_limit_only_the_launcher_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(directory.path(), 100_000).unwrap();
    let part = vec![b'x'; 40_000];
    spool.append(1, &part).unwrap();
    spool.seal().unwrap();
    spool.append(2, &part).unwrap();
    assert!(matches!(spool.append(3, &part), Err(Error::LimitReached { limit: 100_000, .. })));
    spool.append(0, b"the log is too long\n").unwrap();
    spool.append(0, &vec![b'y'; 2 * RESERVE as usize]).unwrap_err();
    assert_eq!(spool.last_sequence(), 2);
    spool.discard(0).unwrap();
    assert_eq!(spool.append(3, &part).unwrap(), Appended::New);
    // Messages without bytes take room as well.
    let refused = (4..).find(|&sequence| spool.append(sequence, b"").is_err()).unwrap();
    assert!(spool.unsent() <= 100_000, "{refused}");
}

#[test]
fn messages_are_taken_once_and_in_order() {
    let (directory, mut spool) = filled(5);
    assert_eq!(spool.append(5, b"repeated").unwrap(), Appended::Repeated);
    assert!(matches!(spool.append(7, b""), Err(Error::Gap { expected: 6, given: 7 })));
    assert!(matches!(spool.append(6, &vec![0; MAXIMUM_CHUNK + 1]), Err(Error::TooLarge { .. })));
    assert_is(&mut spool, directory.path(), 5);
}

#[test]
fn damage_is_not_taken_for_a_crash() {
    let damaged = |change: &dyn Fn(&Path)| {
        let (directory, mut spool) = filled(30);
        for sequence in 31..=33 {
            spool.seal().unwrap();
            spool.append(sequence, b"x").unwrap();
        }
        drop(spool);
        change(directory.path());
        let error = Spool::open(directory.path(), LIMIT).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    };
    damaged(&|directory| fs::remove_file(directory.join("000001")).unwrap());
    damaged(&|directory| fs::write(directory.join("000001"), "").unwrap());
    damaged(&|directory| fs::write(directory.join("README"), "").unwrap());
    damaged(&|directory| fs::rename(directory.join("000002"), directory.join("000004")).unwrap());
    damaged(&|directory| {
        let sealed = fs::read(directory.join("000001")).unwrap();
        fs::write(directory.join("000001"), &sealed[..sealed.len() - 1]).unwrap();
    });
    damaged(&|directory| {
        let mut sealed = fs::read(directory.join("000000")).unwrap();
        let last = sealed.len() - 1;
        sealed[last] ^= 1;
        fs::write(directory.join("000000"), sealed).unwrap();
    });
}

#[test]
fn what_an_interrupted_start_of_a_chunk_left_is_removed() {
    let (directory, spool) = filled(3);
    drop(spool);
    fs::write(directory.path().join("next"), "half").unwrap();
    assert_is(&mut Spool::open(directory.path(), LIMIT).unwrap(), directory.path(), 3);
    assert!(!directory.path().join("next").exists());
}

fn child(test: &str, directory: &Path, wrapper: &[&str]) -> Command {
    let program = env::current_exe().unwrap();
    let mut command = match wrapper {
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&program);
            command
        }
        [] => Command::new(&program),
    };
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(CHILD, directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn acknowledged(line: &str) -> Option<u64> {
    line.strip_prefix("acknowledged ")?.parse().ok()
}

/// Not a test of its own: what the next one kills.
#[test]
#[ignore = "the child process of another test"]
fn append_until_killed() {
    let Some(directory) = env::var_os(CHILD).map(PathBuf::from) else { return };
    let mut spool = Spool::open(&directory, LIMIT).unwrap();
    let mut output = std::io::stdout();
    for sequence in spool.last_sequence() + 1.. {
        spool.append(sequence, &message(sequence)).unwrap();
        if sequence % 5 == 0 {
            spool.commit().unwrap();
            writeln!(output, "\nacknowledged {sequence}").unwrap();
        }
        if sequence % 31 == 0 {
            spool.seal().unwrap();
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..12 {
        let mut child = child("append_until_killed", directory.path(), &[]).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok).filter_map(|line| acknowledged(&line));
        let begun = Instant::now();
        last = lines.next().unwrap();
        while begun.elapsed() < Duration::from_millis(20 + 17 * round) {
            last = lines.next().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before the signal came.
        last = lines.last().unwrap_or(last);
        let mut spool = Spool::open(directory.path(), LIMIT).unwrap();
        let found = spool.last_sequence();
        assert!(found >= last, "{last} was acknowledged, {found} is there");
        assert_is(&mut spool, directory.path(), found);
    }
    assert!(last > 12 * 5, "it appended, up to {last}");
}

/// Not a test of its own: it has a small disk.
#[test]
#[ignore = "the child process of another test"]
fn append_until_the_disk_is_full() {
    let Some(directory) = env::var_os(CHILD).map(PathBuf::from) else { return };
    let mut spool = Spool::open(&directory.join("log"), LIMIT).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        let appended = spool.append(acknowledged + 1, &message(acknowledged + 1)).and_then(|_| spool.commit());
        match appended {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(spool.last_sequence(), acknowledged);
    // Room is made; the worker repeats what was refused.
    fs::remove_file(directory.join("ballast")).unwrap();
    for sequence in acknowledged + 1..acknowledged + 20 {
        spool.append(sequence, &message(sequence)).unwrap();
    }
    spool.commit().unwrap();
    drop(spool);
    let mut spool = Spool::open(&directory.join("log"), LIMIT).unwrap();
    assert_is(&mut spool, &directory.join("log"), acknowledged + 19);
    writeln!(std::io::stdout(), "\nacknowledged {acknowledged}").unwrap();
}

#[test]
fn a_full_disk_refuses_and_damages_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m tmpfs \"$SPOOL_TEST_DIRECTORY\" && head -c 500000 /dev/zero > \
                  \"$SPOOL_TEST_DIRECTORY/ballast\" && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "--", "/bin/sh", "-c", script, "sh"];
    let output = child("append_until_the_disk_is_full", directory.path(), &wrapper).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.lines().filter_map(acknowledged).next().is_some_and(|count| count > 100), "{printed}");
}
