//! What goes wrong without anyone's intent: damaged downloads, wrong files, full disks, ^C. The error is clear, the exit
//! code the documented one, nothing half-written stands under a final name, and nothing else is left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::release::{Key, Release, Unpacked, noise};
use integration_tests::run::{self, Finished, finish, on_small_disk, succeed, tool, under_umask};
use integration_tests::tree;
use rustix::process::{Pid, Signal, kill_process};

/// The exit code after SIGINT or SIGTERM.
const INTERRUPTED: i32 = 130;
/// Enough that packing it takes most of a second, so that signals come in the middle of things.
const LARGE: usize = 48 << 20;
/// Less than any release has.
const SMALL_DISK: u64 = 1 << 20;

/// A release that is packed here, and a key to sign it with.
struct Bench {
    unpacked: Unpacked,
    stage: PathBuf,
    key: Key,
    /// Where temporary files go.
    work: PathBuf,
    /// Where results go.
    output: PathBuf,
    /// The unsigned release, and what it becomes.
    release: Release,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| ())
    }

    /// With more in its stage.
    fn with(add: impl FnOnce(&Path)) -> Self {
        let tested = Release::under_test();
        let unpacked = tested.unpack();
        let (stage, keys, packed) = (unpacked.stage(), unpacked.scratch("keys"), unpacked.scratch("packed"));
        add(&stage);
        finish(unpacked.pack(&stage).arg("--output-dir").arg(&packed)).expect(0);
        let key = unpacked.keygen(&keys, "test", &["--no-passphrase"]);
        Self {
            stage,
            work: unpacked.scratch("work"),
            output: unpacked.scratch("output"),
            release: Release::in_directory(&packed, &tested.version, &key.certificate),
            key,
            unpacked,
        }
    }

    /// With a signed release, too.
    fn signed() -> Self {
        let bench = Self::new();
        bench.sign_beside();
        bench
    }

    fn sign_beside(&self) {
        finish(self.bundle("sign").arg(&self.release.unsigned).arg("--key").arg(&self.key.signing)).expect(0);
    }

    fn bundle(&self, subcommand: &str) -> Command {
        let mut bundle = self.unpacked.bundle();
        bundle.arg(subcommand).env("TMPDIR", &self.work);
        bundle
    }

    fn pack(&self) -> Command {
        let mut pack = self.unpacked.pack(&self.stage);
        pack.env("TMPDIR", &self.work).arg("--output-dir").arg(&self.output);
        pack
    }

    fn sign(&self) -> Command {
        let mut sign = self.bundle("sign");
        sign.arg(&self.release.unsigned).arg("--key").arg(&self.key.signing).arg("--output-dir").arg(&self.output);
        sign
    }

    fn verify(&self, archive: &Path) -> Command {
        let mut verify = self.bundle("verify");
        verify.arg(archive).arg("--cert").arg(&self.key.certificate);
        verify
    }

    fn unpack(&self) -> Command {
        let mut verify = self.verify(&self.release.archive);
        verify.arg("--unpack").arg(self.output.join("release"));
        verify
    }

    /// # Panics
    /// Something was left where results or temporary files go.
    fn assert_nothing_is_left(&self) {
        for directory in [&self.output, &self.work] {
            assert_eq!(tree::entries(directory), [] as [PathBuf; 0]);
        }
    }

    fn as_nobody(&self, command: &Command) -> Finished {
        let mut nobody = run::as_nobody(Path::new(command.get_program()));
        nobody.args(command.get_args());
        finish(&mut nobody)
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_truncated_download_is_refused() {
    let bench = Bench::signed();
    let whole = fs::read(&bench.release.archive).unwrap();
    let copy = Release::in_directory(&bench.output, &bench.release.version, &bench.key.certificate);
    for (from, to) in [(&bench.release.sums, &copy.sums), (&bench.release.signature, &copy.signature)] {
        fs::copy(from, to).unwrap();
    }
    for length in [0, 1, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&copy.archive, &whole[..length]).unwrap();
        let refused = finish(&mut bench.verify(&copy.archive)).expect(15);
        assert!(refused.stderr.contains("SHA-256"), "{length}: {refused}");
        let target = bench.output.join("release");
        finish(bench.verify(&copy.archive).arg("--unpack").arg(&target)).expect(15);
        assert!(!target.exists(), "{length}");
        // Whoever only looks at it is told, too.
        finish(bench.bundle("inspect").arg(&copy.archive)).expect(65);
    }
    assert_eq!(tree::entries(&bench.work), [] as [PathBuf; 0]);
}

#[test]
fn a_truncated_unsigned_archive_is_not_signed() {
    let bench = Bench::new();
    let whole = fs::read(&bench.release.unsigned).unwrap();
    let copy = bench.stage.join("..").join(bench.release.unsigned.file_name().unwrap());
    for length in [0, 1, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&copy, &whole[..length]).unwrap();
        let mut sign = bench.bundle("sign");
        sign.arg(&copy).arg("--key").arg(&bench.key.signing).arg("--output-dir").arg(&bench.output);
        let refused = finish(&mut sign);
        assert_eq!(refused.code, Some(65), "{length} of {} bytes: {refused}", whole.len());
        bench.assert_nothing_is_left();
    }
}

#[test]
fn a_wrong_certificate_is_refused_and_named() {
    let bench = Bench::signed();
    let other = bench.unpacked.keygen(&bench.unpacked.scratch("other"), "other", &["--no-passphrase"]);
    let mut verify = bench.bundle("verify");
    verify.arg(&bench.release.archive).arg("--cert").arg(&other.certificate);
    let refused = finish(&mut verify).expect(12);
    assert!(refused.says("signed by") && refused.says(&other.fingerprint), "{refused}");
    // A file that is no certificate, and one that is not there.
    for (file, code) in [(&bench.release.sums, 65), (&bench.output.join("missing.asc"), 66)] {
        let mut verify = bench.bundle("verify");
        finish(verify.arg(&bench.release.archive).arg("--cert").arg(file)).expect(code);
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let bench = Bench::signed();
    for directory in [&bench.output, &bench.work] {
        set_mode(directory, 0o777);
    }
    // A directory of the stage, then a file.
    for path in [bench.stage.join("sbom"), bench.stage.join("provenance.json")] {
        let before = fs::metadata(&path).unwrap().permissions().mode();
        set_mode(&path, 0);
        let refused = bench.as_nobody(&bench.pack()).expect(66);
        assert!(refused.stderr.contains(path.to_str().unwrap()) && refused.says("Permission denied"), "{refused}");
        bench.assert_nothing_is_left();
        set_mode(&path, before);
    }
    for path in [&bench.release.archive, &bench.release.sums, &bench.release.signature, &bench.key.certificate] {
        set_mode(path, 0);
        let refused = bench.as_nobody(&bench.verify(&bench.release.archive)).expect(66);
        assert!(refused.stderr.contains(path.to_str().unwrap()), "{refused}");
        set_mode(path, 0o644);
    }
    let directory = bench.unpacked.root.join("sbom");
    set_mode(&directory, 0);
    // The development certificate may lie in a directory that nobody else can enter, so it is copied.
    let copy = bench.work.join("development.asc");
    succeed(tool("cp").arg(Release::under_test().certificate).arg(&copy));
    set_mode(&copy, 0o644);
    let mut verify = bench.bundle("verify");
    verify.arg(&bench.unpacked.root).arg("--cert").arg(&copy).arg("--allow-development");
    let refused = bench.as_nobody(&verify).expect(66);
    assert!(refused.stderr.contains("sbom"), "{refused}");
    set_mode(&directory, 0o755);
    // A key that is somebody else's.
    let refused = bench.as_nobody(&bench.sign()).expect(66);
    assert!(refused.stderr.contains("test.signing.asc"), "{refused}");
}

#[test]
fn where_nothing_can_be_written_is_named() {
    let bench = Bench::signed();
    set_mode(&bench.key.signing, 0o644);
    let mut keygen = bench.bundle("keygen");
    keygen.args(["--no-passphrase", "--user-id", "x", "--output"]).arg(&bench.output);
    let mut extract = bench.bundle("inspect");
    extract.arg(&bench.release.archive).args(["--extract", "version", "--output"]).arg(bench.output.join("version"));
    for command in [bench.pack(), bench.sign(), bench.unpack(), keygen, extract] {
        let refused = bench.as_nobody(&command).expect(73);
        assert!(refused.stderr.contains(bench.output.to_str().unwrap()), "{refused}");
        bench.assert_nothing_is_left();
    }
    let mut verify = bench.verify(&bench.release.archive);
    verify.arg("--work-dir").arg(&bench.output);
    let refused = bench.as_nobody(&verify).expect(73);
    assert!(refused.stderr.contains(bench.output.to_str().unwrap()), "{refused}");
    let missing = bench.output.join("missing");
    let mut verify = bench.verify(&bench.release.archive);
    finish(verify.arg("--work-dir").arg(&missing)).expect(73);
}

/// Runs a command on a disk that is too small for it, and nothing is left there.
#[track_caller]
fn assert_full(at: &Path, command: &Command) {
    let refused = finish(&mut on_small_disk(SMALL_DISK, at, command)).expect(74);
    assert!(refused.stderr.contains("No space left on device"), "{refused}");
    assert_eq!(refused.stdout, "", "it left something");
}

#[test]
fn a_full_disk_leaves_nothing() {
    let bench = Bench::signed();
    for command in [bench.pack(), bench.sign(), bench.unpack()] {
        assert_full(&bench.output, &command);
        bench.assert_nothing_is_left();
    }
    // Where temporary files go.
    let mut verify = bench.verify(&bench.release.archive);
    assert_full(&bench.work, verify.arg("--work-dir").arg(&bench.work));
    let mut extract = bench.bundle("inspect");
    extract.arg(&bench.release.archive).args(["--extract", "bin/spacelift-bundle", "--output"]);
    assert_full(&bench.output, extract.arg(bench.output.join("file")));
    let mut image = bench.bundle("image");
    image.args(["--source", "https://example.com/x", "--output"]).arg(bench.output.join("image.tar"));
    let launcher = bench.unpacked.program("spacelift-launcher", "x86_64");
    image.arg("--launcher").arg(format!("x86_64={}", launcher.display()));
    bench.unpacked.describe(&mut image);
    let refused = finish(&mut on_small_disk(64 << 10, &bench.output, &image)).expect(74);
    assert_eq!(refused.stdout, "", "it left something");
}

/// A set of keys is whole or not there: a secret without its certificate would stand in the way of the next attempt.
#[test]
fn a_full_disk_leaves_no_half_of_a_key() {
    let bench = Bench::new();
    let page = 4096;
    for pages in 1..=6 {
        let mut keygen = bench.bundle("keygen");
        keygen.args(["--no-passphrase", "--user-id", "x", "--output"]).arg(&bench.output);
        let finished = finish(&mut on_small_disk(pages * page, &bench.output, &keygen));
        if finished.code != Some(0) {
            let finished = finished.expect(74);
            assert_eq!(finished.stdout, "", "{pages} pages: it left something");
        }
    }
}

#[test]
fn a_worker_is_extracted_whole_or_not_at_all() {
    let bench = Bench::new();
    let mut extract = Command::new(bench.unpacked.program("spacelift-launcher", std::env::consts::ARCH));
    extract.args(["extract-worker", "--dir"]).arg(&bench.output);
    let refused = finish(&mut on_small_disk(64 << 10, &bench.output, &extract)).expect(74);
    assert!(refused.stderr.contains("No space left on device"), "{refused}");
    // The directory for workers may stay.
    assert!(refused.stdout.lines().all(|path| path.ends_with("/workers")), "it left something: {refused}");
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let bench = Bench::signed();
    let mut inspect = bench.bundle("inspect");
    inspect.arg(&bench.release.archive).arg("--json");
    let mut launcher = Command::new(bench.unpacked.program("spacelift-launcher", std::env::consts::ARCH));
    launcher.arg("--help");
    for command in [inspect, bench.verify(&bench.release.archive), launcher] {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "{ sleep 0.2; \"$0\" \"$@\"; } | true"]).arg(command.get_program()).args(command.get_args());
        assert_eq!(finish(&mut shell).expect(0).stderr, "");
    }
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn wait(child: &mut Child) -> ExitStatus {
    /// A program that has been asked to end does so at once.
    const LIMIT: Duration = Duration::from_secs(30);
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("it did not end after a signal");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Interrupts a command at twenty moments of its run. `is_whole` tells whether the results are there, and complete.
fn interrupt(bench: &Bench, mut command: impl FnMut() -> Command, is_whole: impl Fn() -> bool) {
    const TIMES: u32 = 20;
    let clean = || {
        for path in tree::entries(&bench.output) {
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    };
    let started = Instant::now();
    finish(&mut command()).expect(0);
    let whole = started.elapsed();
    assert!(is_whole(), "it works when nothing interrupts it");
    clean();
    let mut interrupted = 0;
    for time in 0..TIMES {
        let mut command = command();
        let mut child = spawn(&mut command);
        thread::sleep(whole * time / TIMES);
        // Build servers send the one, people the other.
        let signal = if time % 3 == 0 { Signal::TERM } else { Signal::INT };
        // It may have ended already, and has not been waited for, so the id is still its own.
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = wait(&mut child);
        assert_eq!(tree::entries(&bench.work), [] as [PathBuf; 0], "{command:?} left temporary files");
        match status.code() {
            Some(0) => assert!(is_whole(), "{command:?} succeeded without its results"),
            Some(INTERRUPTED) | None => {
                // The very first moment belongs to the system's own handler.
                assert!(status.code().is_some() || status.signal() == Some(signal.as_raw()), "{status}");
                assert_eq!(tree::entries(&bench.output), [] as [PathBuf; 0], "{command:?} left something: {status}");
                interrupted += 1;
            }
            Some(_) => panic!("{command:?} ended with {status}"),
        }
        clean();
    }
    assert!(interrupted > 0, "no signal came in time to interrupt {:?}", command());
}

fn large() -> Bench {
    Bench::with(|stage| fs::write(stage.join("noise"), noise(LARGE)).unwrap())
}

#[test]
fn packing_can_be_interrupted() {
    let bench = large();
    let expected = tree::sha256(&bench.release.unsigned);
    let packed = bench.output.join(bench.release.unsigned.file_name().unwrap());
    interrupt(
        &bench,
        || bench.pack(),
        || tree::entries(&bench.output) == [packed.clone()] && tree::sha256(&packed) == expected,
    );
}

#[test]
fn signing_can_be_interrupted() {
    let bench = large();
    let signed = Release::in_directory(&bench.output, &bench.release.version, &bench.key.certificate);
    let is_whole = || {
        let files = [&signed.archive, &signed.sums, &signed.signature].map(Clone::clone);
        tree::entries(&bench.output) == files
            && finish(bench.verify(&signed.archive).arg("--sums-only")).code == Some(0)
    };
    interrupt(&bench, || bench.sign(), is_whole);
}

#[test]
fn verifying_can_be_interrupted() {
    let bench = large();
    bench.sign_beside();
    interrupt(&bench, || bench.verify(&bench.release.archive), || true);
}

#[test]
fn unpacking_can_be_interrupted() {
    let bench = large();
    bench.sign_beside();
    let target = bench.output.join("release");
    let is_whole = || {
        let mut verify = bench.bundle("verify");
        finish(verify.arg(&target).arg("--cert").arg(&bench.key.certificate)).code == Some(0)
            && tree::entries(&bench.output) == [target.clone()]
    };
    interrupt(&bench, || bench.unpack(), is_whole);
}

/// Results can be read by everyone and changed by their owner, whatever the umask.
#[test]
fn results_have_the_same_modes_under_every_umask() {
    let bench = Bench::new();
    for umask in ["000", "077"] {
        succeed(&mut under_umask(umask, &bench.pack()));
        succeed(&mut under_umask(umask, &bench.sign()));
        for path in tree::entries(&bench.output) {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644, "{}", path.display());
            fs::remove_file(path).unwrap();
        }
    }
}
