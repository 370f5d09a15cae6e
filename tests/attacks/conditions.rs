//! What cannot be kept as data: files that change under the verifier, signals, full disks, missing permissions, and what
//! the verifier does not do: talk to the network, run programs, take more memory than it should.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bundle_core::digest::Digest;
use bundle_core::signature::{PinnedCerts, Threshold};
use bundle_core::signing::Signer;
use bundle_core::verify::{self, Development, Files, Policy, Rollback, SkippedVersion};
use bundle_core::{gzip, sums};
use flate2::read::MultiGzDecoder;
use integration_tests::program;
use integration_tests::release::noise;
use integration_tests::run::{as_nobody, finish, on_small_disk, succeed, tool, under_umask};
use integration_tests::tree::entries;
use rustix::process::{Pid, Signal, kill_process};

use super::{Stage, check_printable, data, is_empty, tree};

/// The name of the archive in most cases.
const ARCHIVE: &str = "self-hosted-v1.2.3.tar.gz";
const SUMS: &str = "self-hosted-v1.2.3.tar.gz_SHA256SUMS";
const SIGNATURE: &str = "self-hosted-v1.2.3.tar.gz_SHA256SUMS.sig";

/// How long to wait for something that should happen at once.
const PATIENCE: Duration = Duration::from_secs(60);

fn pinned() -> PinnedCerts {
    PinnedCerts::read(&[data().join("certs/vendor.asc")]).unwrap()
}

fn policy(pinned: &PinnedCerts) -> Policy<'_> {
    Policy {
        pinned,
        threshold: Threshold::ONE,
        now: SystemTime::now(),
        installed: None,
        development: Development::Refuse,
        rollback: Rollback::Refuse,
        skipped_version: SkippedVersion::Refuse,
    }
}

/// The archive is exchanged after its digest was taken: what was digested is what is used, whichever way it is exchanged.
#[test]
fn the_verified_copy_is_used_whatever_becomes_of_the_archive() {
    type Exchange = fn(&Path);
    let exchanges: [(&str, Exchange); 4] = [
        ("overwritten", |archive| {
            let length = fs::metadata(archive).unwrap().len() as usize;
            let mut file = File::options().write(true).open(archive).unwrap();
            file.write_all(&vec![b'x'; length]).unwrap();
        }),
        ("truncated", |archive| File::options().write(true).open(archive).unwrap().set_len(0).unwrap()),
        ("replaced", |archive| {
            let other = archive.with_extension("other");
            fs::write(&other, b"other").unwrap();
            fs::rename(&other, archive).unwrap();
        }),
        ("removed", |archive| fs::remove_file(archive).unwrap()),
    ];
    let pinned = pinned();
    for (name, exchange) in exchanges {
        let stage = Stage::new("good");
        let archive = stage.copy.join(ARCHIVE);
        let opened = verify::open(&Files::beside(&archive), &policy(&pinned), &stage.work).unwrap();
        exchange(&archive);
        verify::check(&opened, &policy(&pinned), 2).unwrap_or_else(|error| panic!("{name}: {error}"));
        let target = stage.unpacked.join("release");
        verify::unpack(&opened, &policy(&pinned), 2, &target).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(fs::read(target.join("version")).unwrap(), b"v1.2.3\n", "{name}");
    }
}

/// A file that has a name could be opened and changed by someone else, and would be left behind by a power cut.
#[test]
fn the_private_copy_has_no_name() {
    let stage = Stage::new("good");
    let pinned = pinned();
    let archive = stage.copy.join(ARCHIVE);
    let opened = verify::open(&Files::beside(&archive), &policy(&pinned), &stage.work).unwrap();
    assert!(is_empty(&stage.work));
    let copies = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(&stage.work))
        .count();
    assert_eq!(copies, 1, "the copy is open, and in the work directory");
    drop(opened);
}

/// What is verified through one name and read through another is not what was verified.
#[test]
fn an_existing_destination_is_left_alone() {
    let stage = Stage::new("good");
    let file = stage.unpacked.join("file");
    fs::write(&file, b"precious").unwrap();
    let directory = stage.unpacked.join("directory");
    fs::create_dir(&directory).unwrap();
    let link = stage.unpacked.join("link");
    symlink("nowhere", &link).unwrap();
    let before = tree(&stage.unpacked);
    for target in [&file, &directory, &link] {
        let refused = stage.verify(Path::new(ARCHIVE), &["--unpack", target.to_str().unwrap()]).expect(73);
        assert!(refused.says("unpack to"), "{refused}");
    }
    assert_eq!(tree(&stage.unpacked), before);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

/// What is unpacked can be read by everyone and written by its owner alone, whatever the umask.
#[test]
fn unpacked_modes_do_not_depend_on_the_umask() {
    let stage = Stage::new("good_binaries");
    for umask in ["000", "077"] {
        let target = stage.unpacked.join(umask);
        succeed(&mut under_umask(umask, stage.command(Path::new(ARCHIVE), &["--unpack"]).arg(&target)));
        for path in tree(&target).into_iter().chain([target.clone()]) {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let executable = metadata.is_dir() || path.parent().unwrap().ends_with("bin");
            let expected = if executable { 0o755 } else { 0o644 };
            assert_eq!(metadata.permissions().mode() & 0o7777, expected, "{} under {umask}", path.display());
        }
    }
}

/// The user's own file names are no less hostile: they may come from a directory that someone else has filled.
#[test]
fn the_name_of_the_archive_is_not_printed_as_it_is() {
    let stage = Stage::new("good");
    let name = "\x1b[2J\x1b[32mverified\u{9b}0m\r.tar.gz";
    fs::rename(stage.copy.join(ARCHIVE), stage.copy.join(name)).unwrap();
    for file in [SUMS, SIGNATURE] {
        fs::rename(stage.copy.join(file), stage.copy.join(file.replace(ARCHIVE, name))).unwrap();
    }
    check_printable(&stage.verify(Path::new(name), &[]).expect(14));
}

/// No step opens a socket or runs a program; strace sees every system call of every thread.
#[test]
fn verification_makes_no_network_call_and_runs_no_program() {
    let stage = Stage::new("good_binaries");
    let log = stage.unpacked.join("log");
    let calls = |command: &Command| {
        let mut strace = tool("strace");
        strace.args(["-f", "-qq", "-e", "trace=%network,execve,execveat", "-o"]).arg(&log);
        strace.arg(command.get_program()).args(command.get_args()).current_dir(&stage.copy).env("TMPDIR", &stage.work);
        let traced = finish(&mut strace);
        let log = fs::read_to_string(&log).unwrap();
        let is_call = |line: &&str| !line.contains("+++ ") && !line.contains("--- ");
        (traced, log.lines().filter(is_call).map(str::to_owned).collect::<Vec<_>>())
    };
    // A program that does call: otherwise no call seen would prove nothing.
    let (_, seen) = calls(tool("bash").args(["-c", "exec 3<>/dev/tcp/127.0.0.1/9"]));
    assert!(seen.iter().any(|call| call.contains("connect(")), "strace does not see network calls here: {seen:#?}");

    let target = stage.unpacked.join("release");
    let archive = Path::new(ARCHIVE);
    let ways = [
        stage.command(archive, &[]),
        stage.command(archive, &["--sums-only"]),
        stage.command(archive, &["--unpack", target.to_str().unwrap()]),
        stage.command(&target, &[]),
    ];
    for command in ways {
        let (traced, seen) = calls(&command);
        traced.expect(0);
        assert_eq!(seen.len(), 1, "{command:?}: only its own start is expected: {seen:#?}");
        assert!(seen[0].contains("execve("), "{seen:#?}");
    }
}

/// Every kind of input, unreadable for whoever verifies, and every kind of output, not to be written.
#[test]
fn missing_permissions_are_reported() {
    let (stage, directory) = (Stage::new("good"), Stage::new("directory"));
    let locked = stage.unpacked.join("locked");
    fs::create_dir(&locked).unwrap();
    let set_mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // Everyone may look, and leave a copy in the work directory.
    for stage in [&stage, &directory] {
        set_mode(stage.copy.parent().unwrap(), 0o755);
        set_mode(&stage.work, 0o777);
    }
    // The program, and what it reads, at places where everyone can get at them.
    let (program, certificate) = (stage.unpacked.join("program"), stage.unpacked.join("vendor.asc"));
    fs::copy(program::bundle(), &program).unwrap();
    fs::copy(data().join("certs/vendor.asc"), &certificate).unwrap();
    set_mode(&program, 0o755);
    let run = |release: &Path, more: &[&str]| {
        let mut command = as_nobody(&program);
        command.arg("verify").arg(release).arg("--cert").arg(&certificate).args(more);
        finish(command.env("TMPDIR", &stage.work))
    };
    let archive = stage.copy.join(ARCHIVE);
    let root = directory.copy.join("self-hosted-v1.2.3");
    // Nothing is missing yet.
    run(&archive, &[]).expect(0);
    run(&root, &[]).expect(0);

    let closed: [(&Path, &Path); 7] = [
        (&certificate, &archive),
        (&stage.copy.join(SUMS), &archive),
        (&stage.copy.join(SIGNATURE), &archive),
        (&archive, &archive),
        (&root.join("manifest.json"), &root),
        (&root.join("config.json"), &root),
        (&root.join("scripts"), &root),
    ];
    for (path, release) in closed {
        let mode = fs::metadata(path).unwrap().permissions();
        set_mode(path, 0o000);
        let refused = run(release, &[]).expect(66);
        fs::set_permissions(path, mode).unwrap();
        assert!(refused.says("cannot read") && refused.says(path.to_str().unwrap()), "{refused}");
        assert!(refused.says("Permission denied"), "{refused}");
    }
    set_mode(&locked, 0o555);
    for more in [["--work-dir", locked.to_str().unwrap()], ["--unpack", locked.join("release").to_str().unwrap()]] {
        let refused = run(&archive, &more).expect(73);
        assert!(refused.says("Permission denied"), "{refused}");
    }
    assert!(is_empty(&locked) && is_empty(&stage.work));
}

#[test]
fn a_full_disk_leaves_nothing() {
    const DISK: u64 = 1 << 20;
    let root = tempfile::tempdir().unwrap();
    // It does not compress, so the archive does not fit either.
    let release = Generated::new(root.path(), &[("data.bin", Contents::Noise(3 << 20))]);
    let (work, disk) = (root.path().join("work"), root.path().join("disk"));
    for directory in [&work, &disk] {
        fs::create_dir(directory).unwrap();
    }
    let unpack = release.verify(&work, &["--unpack", disk.join("release").to_str().unwrap()]);
    let copy = release.verify(&disk, &[]);
    for (command, what) in [(unpack, "data.bin"), (copy, "the private copy")] {
        let refused = finish(&mut on_small_disk(DISK, &disk, &command)).expect(74);
        assert!(refused.says("cannot write") && refused.says(what), "{refused}");
        assert!(refused.says("No space left on device"), "{refused}");
        assert_eq!(refused.stdout, "", "it left something");
        assert!(is_empty(&work));
    }
}

#[test]
fn an_interruption_while_copying_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let stage = Stage::new("good");
        let archive = stage.copy.join(ARCHIVE);
        let bytes = fs::read(&archive).unwrap();
        fs::remove_file(&archive).unwrap();
        succeed(tool("mkfifo").arg(&archive));
        let mut child = spawn(&mut stage.command(Path::new(ARCHIVE), &[]));
        // Opening waits until the verifier reads.
        let mut pipe = File::options().write(true).open(&archive).unwrap();
        pipe.write_all(&bytes[..10]).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        // The archive goes on arriving, a byte at a time, until nobody reads any more.
        let start = Instant::now();
        for byte in bytes[10..].iter().cycle() {
            if pipe.write_all(&[*byte]).is_err() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{signal:?} does not end it");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(wait(&mut child), Some(130));
        assert!(is_empty(&stage.work));
    }
}

#[test]
fn an_interruption_while_unpacking_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let release = Generated::new(root.path(), &[("zeros.bin", Contents::Zeros(200 << 20))]);
    let (work, parent) = (root.path().join("work"), root.path().join("parent"));
    for directory in [&work, &parent] {
        fs::create_dir(directory).unwrap();
    }
    let mut child = spawn(&mut release.verify(&work, &["--unpack", parent.join("release").to_str().unwrap()]));
    let start = Instant::now();
    // It is in the middle of the large file as soon as that has a length.
    let begun = |path: &PathBuf| fs::metadata(path.join("zeros.bin")).is_ok_and(|metadata| metadata.len() > 0);
    while !entries(&parent).iter().any(begun) {
        assert!(start.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "it does not unpack");
        thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(wait(&mut child), Some(130));
    assert!(is_empty(&parent), "{:?} was left", tree(&parent));
    assert!(is_empty(&work));
}

/// A release of any size takes the same memory.
#[test]
fn memory_is_bounded() {
    const LIMIT_KIB: u64 = 64 * 1024;
    let root = tempfile::tempdir().unwrap();
    // Together 300 MB: what compresses well, what does not, and many small files.
    let mut files = vec![("zeros.bin".to_owned(), Contents::Zeros(220 << 20))];
    files.push(("noise.bin".to_owned(), Contents::Noise(70 << 20)));
    files.extend((0..500).map(|index| (format!("many/{index:03}"), Contents::Noise(20_000))));
    let files: Vec<_> = files.iter().map(|(name, contents)| (name.as_str(), *contents)).collect();
    let release = Generated::new(root.path(), &files);
    let work = root.path().join("work");
    fs::create_dir(&work).unwrap();
    let target = root.path().join("release");
    for more in [&["--threads", "8"][..], &["--threads", "8", "--unpack", target.to_str().unwrap()]] {
        let mut child = spawn(&mut release.verify(&work, more));
        // The kernel keeps the largest size that there was; the last look is at most a millisecond before the end.
        let path = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let status = fs::read_to_string(&path).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = peak.max(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0));
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(wait(&mut child), Some(0));
        assert!(peak > 0, "the kernel does not say how much memory it took");
        assert!(peak <= LIMIT_KIB, "{more:?}: it took {peak} KiB, more than {LIMIT_KIB}");
    }
}

/// There is one acceptable archive per manifest and signature: no byte of its tar stream is free, except in what a signature
/// says without signing it. Every archive here is validly signed.
#[test]
fn whatever_byte_of_the_archive_is_changed_it_is_refused() {
    /// Every eleventh byte, so that it takes seconds. Eleven does not divide the 512 of a header.
    const STEP: usize = 11;
    let root = tempfile::tempdir().unwrap();
    let release = Generated::new(root.path(), &[("scripts/run.sh", Contents::Noise(600))]);
    let work = root.path().join("work");
    fs::create_dir(&work).unwrap();
    let signer = Signer::from_file(&release.key, None, SystemTime::now()).unwrap();
    let pinned = PinnedCerts::read(&[&release.certificate]).unwrap();
    let files = Files::beside(&release.archive);
    let mut stream = Vec::new();
    MultiGzDecoder::new(File::open(&release.archive).unwrap()).read_to_end(&mut stream).unwrap();
    let verify = |stream: &[u8]| {
        let mut writer = gzip::Writer::new(Vec::new(), 1);
        writer.write_all(stream).unwrap();
        let archive = writer.finish().unwrap();
        let sums = sums::line(Digest::of(&archive), "large-v1.0.0.tar.gz");
        fs::write(&files.archive, archive).unwrap();
        fs::write(&files.sums, &sums).unwrap();
        fs::write(&files.signature, signer.sign(sums.as_bytes(), SystemTime::now()).unwrap()).unwrap();
        let opened = verify::open(&files, &policy(&pinned), &work).unwrap();
        verify::check(&opened, &policy(&pinned), 1).map(|_| ())
    };
    verify(&stream).unwrap();
    let is_signature = |entry: &tar::Entry<'_, &[u8]>| entry.path_bytes().ends_with(b"/manifest.json.sig");
    let mut archive = tar::Archive::new(stream.as_slice());
    let signature = archive.entries().unwrap().map(Result::unwrap).find(is_signature).unwrap();
    let signature = signature.raw_file_position()..signature.raw_file_position() + signature.size();
    for at in (0..stream.len()).step_by(STEP).filter(|at| !signature.contains(&(*at as u64))) {
        let mut changed = stream.clone();
        changed[at] ^= 1 << (at % 8);
        let error = verify(&changed).expect_err(&format!("byte {at} can be changed"));
        assert!(matches!(error.step(), Some(6..=8)), "byte {at}: {error}");
    }
}

#[derive(Clone, Copy)]
enum Contents {
    /// So many zeros.
    Zeros(u64),
    /// So many bytes that do not compress.
    Noise(usize),
}

/// A release that the program under test has made, signed with a key of its own.
struct Generated {
    archive: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Generated {
    fn new(directory: &Path, files: &[(&str, Contents)]) -> Self {
        let (stage, keys, out) = (directory.join("stage"), directory.join("keys"), directory.join("out"));
        for directory in [&stage, &out] {
            fs::create_dir(directory).unwrap();
        }
        for (name, contents) in files {
            let path = stage.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match contents {
                Contents::Zeros(length) => File::create(&path).unwrap().set_len(*length).unwrap(),
                Contents::Noise(length) => fs::write(&path, noise(*length)).unwrap(),
            }
        }
        let config = directory.join("release.yaml");
        fs::write(&config, "product: large\nchannel: stable\nsequence: 1\nsource: https://example.com/source\n")
            .unwrap();
        let bundle = || Command::new(program::bundle());
        succeed(bundle().args(["keygen", "--user-id", "Test", "--no-passphrase", "--output"]).arg(&keys));
        let mut pack = bundle();
        pack.args(["pack", "--version", "v1.0.0", "--commit", "unknown", "--source-date", "1700000000"]);
        succeed(pack.arg("--stage").arg(&stage).arg("--config").arg(&config).arg("--output-dir").arg(&out));
        let key = keys.join("release-key.signing.asc");
        succeed(bundle().arg("sign").arg(out.join("large-v1.0.0.unsigned.tar.gz")).arg("--key").arg(&key));
        Self { archive: out.join("large-v1.0.0.tar.gz"), certificate: keys.join("release-key.cert.asc"), key }
    }

    fn verify(&self, work: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(program::bundle());
        command.arg("verify").arg(&self.archive).arg("--cert").arg(&self.certificate).args(more).env("TMPDIR", work);
        command
    }
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The exit code of a child, which ends soon.
fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}
