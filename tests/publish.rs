//! Publishing to stores that check what S3 checks, and through a proxy that makes things go wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bundle_core::digest::Digest;
use bundle_core::manifest::Manifest;
use integration_tests::aws_emulator::Emulator;
use integration_tests::fault_proxy::{Fault, FaultProxy};
use integration_tests::program;
use integration_tests::release::workspace;
use integration_tests::run::{Finished, finish, succeed, tool};
use integration_tests::s3_store::{BUCKET, S3Store, SECRET_KEY, copy_directory};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// v1.2.3, v1.2.4, and another build of v1.2.3, all by the same signer.
const FIRST: &str = "good-binaries/self-hosted-v1.2.3.tar.gz";
const NEXT: &str = "good-next-version/self-hosted-v1.2.4.tar.gz";
const REBUILT: &str = "good-rebuilt/self-hosted-v1.2.3.tar.gz";

fn data() -> PathBuf {
    workspace().join("tests/data")
}

fn certificate() -> PathBuf {
    data().join("certs/vendor.asc")
}

fn store() -> S3Store {
    S3Store::start(env!("CARGO_BIN_EXE_strict-s3"))
}

/// A command of the program under test, that publishes with the vendor's certificate.
fn bundle(command: &str, what: &str, bucket: &str) -> Command {
    let mut bundle = Command::new(program::bundle());
    let what = if command == "publish" { data().join("attacks").join(what) } else { what.into() };
    bundle.arg(command).arg(what).arg("--cert").arg(certificate()).args(["--bucket", bucket]);
    S3Store::configure(&mut bundle, "https://127.0.0.1:1");
    bundle
}

fn to_store(command: &str, what: &str, endpoint: &str) -> Command {
    let mut bundle = bundle(command, what, &format!("s3://{BUCKET}"));
    S3Store::configure(&mut bundle, endpoint);
    bundle.arg("--allow-http");
    bundle
}

/// Where a bucket's objects are as files.
struct Reader(PathBuf);

impl Reader {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(key)).ok()
    }

    /// Follows the channel's pointer as a customer does, and gives the version that it found whole; `None` if there is no
    /// pointer yet.
    #[track_caller]
    fn follow(&self) -> Option<String> {
        let pointer = self.read("channel/stable.json")?;
        let manifest = Manifest::from_bytes(&pointer).expect("the pointer is a manifest");
        let version = manifest.version.to_string();
        let object = |name: &str| self.read(&format!("releases/{version}/{name}"));
        assert_eq!(object("manifest.json").as_ref(), Some(&pointer), "{version}: the manifest of the release");
        assert!(object("manifest.json.sig").is_some(), "{version}: the manifest's signature");
        for file in &manifest.files {
            let bytes = object(file.path.as_str()).unwrap_or_else(|| panic!("{version} lacks {}", file.path));
            assert_eq!(Digest::of(&bytes), file.sha256, "{version}: {}", file.path);
        }
        Some(version)
    }

    /// The digest of what lies under the keys without a version.
    fn launcher(&self) -> Digest {
        Digest::of(&self.read("spacelift-launcher").unwrap())
    }
}

#[track_caller]
fn publish(what: &str, store: &S3Store) -> serde_json::Value {
    finish(to_store("publish", what, &store.endpoint()).arg("--json")).expect(0).json()
}

#[test]
fn everything_is_published_in_the_documented_layout() {
    let store = store();
    let reader = Reader(store.bucket());
    let published = publish(FIRST, &store);
    assert_eq!((&published["objects_written"], &published["previous"]), (&16.into(), &serde_json::Value::Null));
    assert_eq!(reader.follow().as_deref(), Some("v1.2.3"));
    // As a worker host and as the documented commands see it.
    let home = integration_tests::gpg::Home::new();
    let keyring = home.keyring(&[&certificate()]);
    for (name, signed) in [
        ("spacelift-launcher", "spacelift-launcher-x86_64"),
        ("spacelift-launcher-x86_64", "spacelift-launcher-x86_64"),
        ("spacelift-launcher-aarch64", "spacelift-launcher-aarch64"),
        ("releases/v1.2.3/spacelift-launcher-x86_64", "spacelift-launcher-x86_64"),
        ("releases/v1.2.3/self-hosted-v1.2.3.tar.gz", "self-hosted-v1.2.3.tar.gz"),
    ] {
        let sums = format!("{}_SHA256SUMS", name.replace("spacelift-launcher-none", ""));
        let mut gpgv = tool("gpgv");
        gpgv.args(["--status-fd", "1", "--keyring"]).arg(&keyring).env("GNUPGHOME", home.path());
        gpgv.arg(store.object(&format!("{sums}.sig"))).arg(store.object(&sums));
        assert!(succeed(&mut gpgv).contains("VALIDSIG"), "{name}");
        let text = String::from_utf8(reader.read(&sums).unwrap()).unwrap();
        // The documented user data takes the first field of the whole file for the digest.
        assert_eq!(text.lines().count(), 1);
        let digest = Digest::of(&reader.read(name).unwrap());
        assert_eq!(text, format!("{digest}  {signed}\n"));
    }
    let again = publish(FIRST, &store);
    assert_eq!((&again["objects_written"], &again["keys_moved"]), (&0.into(), &0.into()));
}

#[test]
fn channels_move_forward_and_back_as_told() {
    let store = store();
    let reader = Reader(store.bucket());
    publish(FIRST, &store);
    let first = reader.launcher();
    let uploaded = finish(to_store("publish", NEXT, &store.endpoint()).arg("--no-promote")).expect(0);
    assert!(uploaded.says("channel    stable was not moved"), "{uploaded}");
    assert_eq!((reader.follow().as_deref(), reader.launcher()), (Some("v1.2.3"), first));
    finish(&mut to_store("promote", "v1.2.4", &store.endpoint())).expect(0);
    assert_eq!(reader.follow().as_deref(), Some("v1.2.4"));
    assert_ne!(reader.launcher(), first);
    // Back only when it is asked for by name, by whatever command.
    let refused = finish(&mut to_store("publish", FIRST, &store.endpoint())).expect(19);
    assert!(refused.says("--allow-rollback"), "{refused}");
    finish(&mut to_store("promote", "v1.2.3", &store.endpoint())).expect(19);
    finish(&mut to_store("rollback", "v1.2.3", &store.endpoint())).expect(64);
    assert_eq!(reader.follow().as_deref(), Some("v1.2.4"));
    finish(to_store("rollback", "v1.2.3", &store.endpoint()).arg("--allow-rollback")).expect(0);
    assert_eq!((reader.follow().as_deref(), reader.launcher()), (Some("v1.2.3"), first));
    let missing = finish(&mut to_store("promote", "v9.9.9", &store.endpoint())).expect(66);
    assert!(
        missing.says("there is no s3://example-downloads/releases/v9.9.9/manifest.json; publish it first"),
        "{missing}"
    );
}

#[test]
fn what_is_published_is_never_changed() {
    let store = store();
    publish(FIRST, &store);
    let before = Reader(store.bucket()).read("releases/v1.2.3/manifest.json");
    let refused = finish(&mut to_store("publish", REBUILT, &store.endpoint())).expect(65);
    assert!(refused.says("is there already with other contents"), "{refused}");
    assert_eq!(Reader(store.bucket()).read("releases/v1.2.3/manifest.json"), before);
    assert_eq!(Reader(store.bucket()).follow().as_deref(), Some("v1.2.3"));
    // Also not when the plan is only looked at.
    finish(to_store("publish", REBUILT, &store.endpoint()).arg("--dry-run")).expect(65);
}

#[test]
fn a_dry_run_writes_nothing() {
    let store = store();
    let planned = finish(to_store("publish", FIRST, &store.endpoint()).args(["--dry-run", "--json"])).expect(0).json();
    assert_eq!((&planned["objects_written"], &planned["keys_moved"]), (&16.into(), &11.into()));
    assert_eq!(fs::read_dir(store.bucket()).unwrap().count(), 0);
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("new");
    finish(bundle("publish", FIRST, &format!("file://{}", target.display())).arg("--dry-run")).expect(0);
    assert!(!target.exists());
}

#[test]
fn the_emulated_service_is_published_to_as_well() {
    // It keeps versions, and checks neither signatures nor checksums.
    let emulator = Emulator::start();
    succeed(emulator.aws().args(["s3", "mb", "s3://example-downloads"]));
    let run = |command: &str, what: &str, flags: &[&str]| {
        let mut bundle = bundle(command, what, "s3://example-downloads");
        emulator.configure(&mut bundle);
        finish(bundle.args(["--allow-http", "--json"]).args(flags))
    };
    assert_eq!(run("publish", FIRST, &[]).expect(0).json()["objects_written"], 16);
    let again = run("publish", FIRST, &[]).expect(0).json();
    assert_eq!((&again["objects_written"], &again["keys_moved"]), (&0.into(), &0.into()));
    run("publish", REBUILT, &[]).expect(65);
    run("publish", NEXT, &[]).expect(0);
    run("publish", FIRST, &[]).expect(19);
    run("rollback", "v1.2.3", &["--allow-rollback"]).expect(0);
    let directory = tempfile::tempdir().unwrap();
    succeed(emulator.aws().args(["s3", "sync", "--only-show-errors", "s3://example-downloads"]).arg(directory.path()));
    assert_eq!(Reader(directory.path().into()).follow().as_deref(), Some("v1.2.3"));
}

#[test]
fn a_directory_carries_a_release_to_the_other_side() {
    let store = store();
    let carried = tempfile::tempdir().unwrap();
    finish(&mut bundle("publish", FIRST, &format!("file://{}", carried.path().display()))).expect(0);
    assert_eq!(Reader(carried.path().into()).follow().as_deref(), Some("v1.2.3"));
    // From the archive in it, and from the release as it lies there.
    let release = carried.path().join("releases/v1.2.3");
    for from in [release.join("self-hosted-v1.2.3.tar.gz"), release.clone()] {
        let mut publish = to_store("publish", from.to_str().unwrap(), &store.endpoint());
        finish(&mut publish).expect(0);
        assert_eq!(Reader(store.bucket()).follow().as_deref(), Some("v1.2.3"));
    }
    // On the way, nobody has changed it unnoticed.
    fs::write(release.join("version"), "v1.2.4\n").unwrap();
    finish(&mut to_store("publish", release.to_str().unwrap(), &store.endpoint())).expect(17);
    fs::remove_file(carried.path().join("releases/v1.2.3/version")).unwrap();
    finish(&mut to_store("publish", release.to_str().unwrap(), &store.endpoint())).expect(17);
}

#[test]
fn only_verified_releases_are_published() {
    let store = store();
    for (attack, code) in [
        ("file-changed/self-hosted-v1.2.3.tar.gz", 17),
        ("launcher-signature-by-stranger/self-hosted-v1.2.3.tar.gz", 17),
    ] {
        finish(&mut to_store("publish", attack, &store.endpoint())).expect(code);
    }
    assert_eq!(fs::read_dir(store.bucket()).unwrap().count(), 0);
    // Nor does anybody follow a pointer that someone else has put there.
    let directory = tempfile::tempdir().unwrap();
    let bucket = format!("file://{}", directory.path().display());
    finish(&mut bundle("publish", FIRST, &bucket)).expect(0);
    let pointer = directory.path().join("channel/stable.json");
    let text = fs::read_to_string(&pointer).unwrap();
    fs::write(&pointer, text.replace("\"sequence\": 7", "\"sequence\": 6")).unwrap();
    let refused = finish(&mut bundle("publish", NEXT, &bucket)).expect(65);
    assert!(refused.says("what the bucket says is published cannot be trusted"), "{refused}");
}

/// A release of one large file, signed with a key of its own.
fn large(size: usize) -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("stage/payload")).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(size)
    .collect();
    fs::write(at("stage/payload/large.bin"), noise).unwrap();
    fs::write(at("release.yaml"), "product: large\nchannel: stable\nsequence: 1\nsource: https://example.com/large\n")
        .unwrap();
    let run =
        |arguments: &[&str]| succeed(Command::new(program::bundle()).args(arguments).current_dir(directory.path()));
    run(&["keygen", "--no-passphrase", "--user-id", "Vendor <v@example.com>", "--output", "keys"]);
    run(&[
        "pack",
        "--stage",
        "stage",
        "--config",
        "release.yaml",
        "--version",
        "v1.0.0",
        "--commit",
        "unknown",
        "--source-date",
        "1700000000",
        "--output-dir",
        "out",
    ]);
    run(&["sign", "out/large-v1.0.0.unsigned.tar.gz", "--key", "keys/release-key.signing.asc"]);
    let (archive, certificate) = (at("out/large-v1.0.0.tar.gz"), at("keys/release-key.cert.asc"));
    (directory, archive, certificate)
}

/// Publishes a large release and gives the largest resident size in KiB.
fn publish_large(archive: &Path, certificate: &Path, endpoint: &str) -> (Finished, u64) {
    let mut command = Command::new(program::bundle());
    command.arg("publish").arg(archive).arg("--cert").arg(certificate).args(["--allow-http", "--bucket"]);
    command.arg(format!("s3://{BUCKET}"));
    S3Store::configure(&mut command, endpoint);
    let peak = Arc::new(AtomicU32::new(0));
    let (measured, done) = (Arc::clone(&peak), Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    let name = program::bundle().to_owned();
    let archive = archive.to_owned();
    let watcher = thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let text = String::from_utf8_lossy(&line).into_owned();
                if text.starts_with(name.to_str().unwrap()) && text.contains(archive.to_str().unwrap()) {
                    let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                    let peak = peak.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
                    measured.fetch_max(peak, Ordering::Relaxed);
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    });
    let finished = finish(&mut command);
    done.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    (finished, u64::from(peak.load(Ordering::Relaxed)))
}

#[test]
fn large_files_go_in_parts_with_bounded_memory() {
    const SIZE: usize = 60_000_000;
    const LIMIT_KIB: u64 = 128 * 1024;
    let (directory, archive, certificate) = large(SIZE);
    let store = store();
    let (finished, peak) = publish_large(&archive, &certificate, &store.endpoint());
    finished.expect(0);
    assert!((1..LIMIT_KIB).contains(&peak), "{peak} KiB");
    let sent = fs::read(store.object("releases/v1.0.0/payload/large.bin")).unwrap();
    assert_eq!(Digest::of(&sent), Digest::of(&fs::read(directory.path().join("stage/payload/large.bin")).unwrap()));
    let (again, _) = publish_large(&archive, &certificate, &store.endpoint());
    assert!(again.expect(0).says("0 written"));
    // Connections that break in the middle of a part, and a store that is busy for a while, cost time and nothing else.
    let other = self::store();
    let proxy = FaultProxy::start(other.port(), |number, line| match number % 5 {
        2 if line.contains("partNumber") => Fault::Cut(300_000),
        3 if line.contains("partNumber") => Fault::Answer("HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n".into()),
        _ => Fault::None,
    });
    let (finished, _) = publish_large(&archive, &certificate, &proxy.endpoint());
    finished.expect(0);
    assert_eq!(fs::read(other.object("releases/v1.0.0/payload/large.bin")).unwrap(), sent);
}

#[test]
fn what_a_store_keeps_no_checksum_of_is_read_back() {
    const KEY: &str = "releases/v1.0.0/payload/large.bin";
    let (_directory, archive, certificate) = large(20_000_000);
    let mut store = store();
    publish_large(&archive, &certificate, &store.endpoint()).0.expect(0);
    // It knows the checksums of parts for as long as it runs.
    store.service.restart();
    let cut = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cut);
    let proxy = FaultProxy::start(store.port(), move |_, request| {
        let is_part = request.starts_with("GET ") && request.contains(KEY) && request.contains("bytes=");
        if is_part && counted.fetch_add(1, Ordering::Relaxed) == 1 {
            return Fault::Answer("HTTP/1.1 206 Partial Content\r\ncontent-length: 8388608\r\n\r\nhalf".into());
        }
        Fault::None
    });
    let (again, _) = publish_large(&archive, &certificate, &proxy.endpoint());
    assert!(again.expect(0).says("0 written"));
    assert_eq!(
        cut.load(Ordering::Relaxed),
        7,
        "three parts, to find them and to read them back, and one of them once more"
    );

    let mut bytes = fs::read(store.object(KEY)).unwrap();
    bytes[12_000_000] ^= 1;
    fs::write(store.object(KEY), bytes).unwrap();
    let (refused, _) = publish_large(&archive, &certificate, &store.endpoint());
    let refused = refused.expect(65);
    assert!(refused.says(KEY) && refused.says("bytes 8388608 to 16777216"), "{refused}");
}

/// Runs `command` and kills it when `at` requests have gone through the proxy. Says whether it was killed.
fn killed_at(at: usize, store: &S3Store) -> bool {
    let pid = Arc::new(AtomicU32::new(0));
    let target = Arc::clone(&pid);
    let proxy = FaultProxy::start(store.port(), move |number, _| {
        if number < at {
            return Fault::None;
        }
        while target.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let pid = i32::try_from(target.load(Ordering::SeqCst)).unwrap();
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        Fault::Cut(0)
    });
    let mut command = to_store("publish", NEXT, &proxy.endpoint());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    pid.store(child.id(), Ordering::SeqCst);
    child.wait().unwrap().code().is_none()
}

/// A store in which v1.2.3 is published, and a way to come back to that state.
struct Prepared {
    store: S3Store,
    saved: TempDir,
}

impl Prepared {
    fn new() -> Self {
        let store = store();
        publish(FIRST, &store);
        let saved = tempfile::tempdir().unwrap();
        copy_directory(&store.state(), saved.path());
        Self { store, saved }
    }

    fn reset(&self) {
        for entry in fs::read_dir(self.store.state()).unwrap().flatten() {
            if entry.path().is_dir() {
                fs::remove_dir_all(entry.path()).unwrap();
            } else {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        copy_directory(self.saved.path(), &self.store.state());
    }

    /// After a publisher was killed: readers find a whole release, and running it again ends well.
    #[track_caller]
    fn converges(&self, when: &str) {
        let reader = Reader(self.store.bucket());
        let version = reader.follow();
        assert!(matches!(version.as_deref(), Some("v1.2.3" | "v1.2.4")), "{when}: {version:?}");
        publish(NEXT, &self.store);
        assert_eq!(reader.follow().as_deref(), Some("v1.2.4"), "{when}");
        let sums = reader.read("spacelift-launcher_SHA256SUMS").unwrap();
        assert!(String::from_utf8(sums).unwrap().starts_with(&reader.launcher().to_string()), "{when}");
    }
}

#[test]
fn killed_before_any_request_it_converges() {
    let prepared = Prepared::new();
    let mut steps = 0;
    while killed_at(steps, &prepared.store) {
        prepared.converges(&format!("killed before request {steps}"));
        prepared.reset();
        steps += 1;
    }
    // 16 objects written and looked at, 9 mutable keys and 2 of the pointer looked at and written, and a few more.
    assert!(steps > 50, "only {steps} requests");
}

#[test]
fn killed_at_any_time_it_converges() {
    const TIMES: u32 = 50;
    let prepared = Prepared::new();
    let started = Instant::now();
    publish(NEXT, &prepared.store);
    let takes = started.elapsed();
    for time in 0..TIMES {
        prepared.reset();
        let mut command = to_store("publish", NEXT, &prepared.store.endpoint());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(takes * time / TIMES);
        let _ = child.kill();
        child.wait().unwrap();
        prepared.converges(&format!("killed after {time}/{TIMES} of its time"));
    }
}

#[test]
fn readers_never_see_a_mixed_release() {
    let directory = tempfile::tempdir().unwrap();
    let bucket = format!("file://{}", directory.path().display());
    finish(&mut bundle("publish", FIRST, &bucket)).expect(0);
    let ended = Arc::new(AtomicBool::new(false));
    let reader = {
        let (ended, reader) = (Arc::clone(&ended), Reader(directory.path().into()));
        thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !ended.load(Ordering::Relaxed) {
                seen.extend(reader.follow());
            }
            seen
        })
    };
    for _ in 0..10 {
        finish(&mut bundle("publish", NEXT, &bucket)).expect(0);
        finish(bundle("rollback", "v1.2.3", &bucket).arg("--allow-rollback")).expect(0);
    }
    ended.store(true, Ordering::Relaxed);
    let seen = reader.join().expect("a reader found a mixed release");
    assert_eq!(seen, BTreeSet::from(["v1.2.3".to_owned(), "v1.2.4".to_owned()]));
}

#[test]
fn of_two_who_race_one_wins_and_one_is_told() {
    for _ in 0..5 {
        let store = store();
        let race = |what: [&str; 2]| {
            let children = what.map(|what| {
                let mut command = to_store("publish", what, &store.endpoint());
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            });
            children.map(|child| child.wait_with_output().unwrap())
        };
        // One takes the version; the other finds it taken before it writes anything else. This store looks for an object
        // and writes it in two steps, so now and then both think that they have it: then one finds the other's files.
        let both = race([FIRST, REBUILT]);
        let mut codes = both.each_ref().map(|output| output.status.code().unwrap());
        codes.sort_unstable();
        assert!(codes[0] == 0 || codes[0] == 65, "{both:?}");
        assert!(matches!(codes[1], 65 | 74), "{both:?}");
        let version = Reader(store.bucket()).follow();
        assert!(version.is_none_or(|version| version == "v1.2.3"));
        // The same release twice is no conflict: at worst one is told that the other moved a key.
        let store = self::store();
        let children = [FIRST, FIRST].map(|what| {
            let mut command = to_store("publish", what, &store.endpoint());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let mut codes = children.map(|child| child.wait_with_output().unwrap()).map(|output| output.status.code());
        codes.sort_unstable();
        assert!(matches!(codes, [Some(0), Some(0 | 75)]), "{codes:?}");
        assert_eq!(Reader(store.bucket()).follow().as_deref(), Some("v1.2.3"));
    }
}

#[test]
fn errors_say_what_to_do_and_keep_secrets() {
    let store = store();
    let answer = |status: &str, headers: &str, code: &str| {
        let body =
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as the service says</Message></Error>");
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/xml\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (status, headers, code, exit, says) in [
        ("400 Bad Request", "", "ExpiredToken", 77, "the credentials have expired; sign in again"),
        ("403 Forbidden", "", "InvalidAccessKeyId", 77, "the service does not know these credentials"),
        ("403 Forbidden", "", "RequestTimeTooSkewed", 77, "the clock of this machine is wrong"),
        ("403 Forbidden", "", "AccessDenied", 77, "these credentials need s3:ListBucket"),
        ("404 Not Found", "", "NoSuchBucket", 78, "there is no such bucket"),
        (
            "301 Moved Permanently",
            "x-amz-bucket-region: eu-central-1\r\n",
            "PermanentRedirect",
            78,
            "use --region eu-central-1",
        ),
        ("503 Slow Down", "", "SlowDown", 75, "asks for fewer requests"),
        ("429 Too Many Requests", "", "", 75, "run the command again later"),
        ("500 Internal Server Error", "", "InternalError", 75, "the service failed, also after several attempts"),
        ("409 Conflict", "", "OperationAborted", 78, "HTTP 409 OperationAborted: as the service says"),
    ] {
        let text = answer(status, headers, code);
        let proxy = FaultProxy::start(store.port(), move |_, _| Fault::Answer(text.clone()));
        let finished = finish(&mut to_store("publish", FIRST, &proxy.endpoint())).expect(exit);
        assert!(finished.says(says), "{finished}");
        assert!(!finished.says(SECRET_KEY), "{finished}");
    }
    let run = |change: &dyn Fn(&mut Command)| {
        let mut command = to_store("publish", FIRST, &store.endpoint());
        change(&mut command);
        let finished = finish(&mut command);
        assert!(!finished.says(SECRET_KEY) && !finished.says("topsecret"), "{finished}");
        finished
    };
    let wrong = run(&|command| {
        command.env("AWS_SECRET_ACCESS_KEY", "topsecret");
    })
    .expect(77);
    assert!(wrong.says("the secret key does not belong to the access key"), "{wrong}");
    let none = run(&|command| {
        command.env_remove("AWS_SECRET_ACCESS_KEY");
    })
    .expect(77);
    assert!(none.says("no credentials were found: set AWS_PROFILE"), "{none}");
    let nowhere = run(&|command| {
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    })
    .expect(69);
    assert!(nowhere.says("it cannot be reached (Connection refused"), "{nowhere}");
    let no_region = run(&|command| {
        command.env_remove("AWS_REGION");
    })
    .expect(64);
    assert!(no_region.says("no AWS region is set"), "{no_region}");
    let plain =
        finish(to_store("publish", FIRST, &store.endpoint()).env("AWS_ENDPOINT_URL", "http://127.0.0.1:2")).code;
    assert_eq!(plain, Some(69));
    let mut without_consent = bundle("publish", FIRST, &format!("s3://{BUCKET}"));
    S3Store::configure(&mut without_consent, &store.endpoint());
    let refused = finish(&mut without_consent).expect(64);
    assert!(refused.says("is plain HTTP"), "{refused}");
    // A proxy that wants a password.
    let text = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
    let proxy = FaultProxy::start(store.port(), move |_, _| Fault::Answer(text.into()));
    let address = proxy.endpoint().replace("http://", "http://user:topsecret@");
    for (endpoint, variable) in [("http://s3.example.com", "HTTP_PROXY"), ("https://s3.example.com", "HTTPS_PROXY")] {
        let refused = run(&|command| {
            command.env("AWS_ENDPOINT_URL", endpoint).env(variable, &address);
        })
        .expect(77);
        assert!(refused.says("the proxy asks for a password"), "{refused}");
    }
    // A server that nobody has vouched for.
    let unreachable = run(&|command| {
        command.env("AWS_CA_BUNDLE", "/nonexistent");
    })
    .expect(64);
    assert!(unreachable.says("AWS_CA_BUNDLE names /nonexistent, which cannot be used"), "{unreachable}");
}

#[test]
fn every_request_names_the_account_that_must_own_the_bucket() {
    // Neither store knows accounts, so what is seen here is that they are asked.
    const OWNER: &str = "x-amz-expected-bucket-owner: 999999999999";
    let store = store();
    let others = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&others);
    let proxy = FaultProxy::start(store.port(), move |_, head| {
        if !head.contains(OWNER) {
            seen.lock().unwrap().push(head.to_owned());
        }
        Fault::None
    });
    finish(to_store("publish", FIRST, &proxy.endpoint()).args(["--expected-bucket-owner", "999999999999"])).expect(0);
    assert!(proxy.requests() > 50);
    assert_eq!(*others.lock().unwrap(), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = finish(&mut bundle("publish", FIRST, &format!("file://{}/below", file.display()))).expect(78);
    assert!(refused.says(&format!("cannot publish to {}/below", file.display())), "{refused}");
    for wrong in ["example", "s3://", "file://relative", "http://example.com"] {
        finish(&mut bundle("publish", FIRST, wrong)).expect(64);
    }
}
