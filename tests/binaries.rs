//! The programs of a release need nothing but a Linux kernel, and say what they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::docker::{Engine, busybox_root};
use integration_tests::release::{ARCHITECTURES, Release, Unpacked};
use integration_tests::run::{finish, succeed, tool};
use integration_tests::tree;
use serde_json::{Value, json};

/// What a launcher may have, the worker inside it included: every worker host fetches it at boot. The goal is 8 MB; what it has
/// too much are the time zones that policies can ask for (1.1 MB) and AWS's credentials and tokens (1.5 MB).
const MAX_LAUNCHER: u64 = 10_500_000;

/// The part of an ELF file that tells how it is started. Fields are at the places that the format gives them for 64-bit
/// little-endian files.
struct Elf {
    machine: u16,
    /// Types of the program headers.
    segments: Vec<u32>,
    /// Types of the section headers.
    sections: Vec<u32>,
}

impl Elf {
    const X86_64: u16 = 62;
    const AARCH64: u16 = 183;
    const DYNAMIC: u32 = 2;
    const INTERPRETER: u32 = 3;
    const SYMBOL_TABLE: u32 = 2;

    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes[..6], [0x7f, b'E', b'L', b'F', 2, 1], "{}", path.display());
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let offset = |at: usize| usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
        let types = |table: usize, size: u16, count: u16, field: usize| {
            (0..count).map(|index| word(table + usize::from(index) * usize::from(size) + field)).collect()
        };
        Self {
            machine: half(18),
            segments: types(offset(32), half(54), half(56), 0),
            sections: types(offset(40), half(58), half(60), 4),
        }
    }
}

fn programs(unpacked: &Unpacked) -> Vec<(&'static str, PathBuf)> {
    ARCHITECTURES
        .iter()
        .flat_map(|architecture| {
            ["spacelift-bundle", "spacelift-launcher"].map(|name| (*architecture, unpacked.program(name, architecture)))
        })
        .collect()
}

/// Extracts the worker of a launcher to `directory`, which is made.
fn extract_worker(unpacked: &Unpacked, architecture: &str, directory: &Path) -> PathBuf {
    let mut extract = unpacked.runnable("spacelift-launcher", architecture);
    let path = PathBuf::from(succeed(extract.args(["extract-worker", "--dir"]).arg(directory)).trim_end());
    assert!(path.starts_with(directory) && path.is_file(), "{}", path.display());
    path
}

#[test]
fn programs_are_static_and_stripped() {
    let unpacked = Release::under_test().unpack();
    let mut all = programs(&unpacked);
    for architecture in ARCHITECTURES {
        let directory = unpacked.scratch(architecture);
        all.push((architecture, extract_worker(&unpacked, architecture, &directory.join("worker"))));
    }
    for (architecture, path) in all {
        let linked = finish(tool("ldd").arg(&path));
        assert!(linked.says("not a dynamic executable"), "{linked}");
        let elf = Elf::read(&path);
        let machine = if architecture == "x86_64" { Elf::X86_64 } else { Elf::AARCH64 };
        assert_eq!(elf.machine, machine, "{}", path.display());
        for segment in [Elf::INTERPRETER, Elf::DYNAMIC] {
            assert!(!elf.segments.contains(&segment), "{} has a segment of type {segment}", path.display());
        }
        assert!(!elf.sections.contains(&Elf::SYMBOL_TABLE), "{} is not stripped", path.display());
    }
}

#[test]
fn launchers_are_small_enough() {
    let unpacked = Release::under_test().unpack();
    for architecture in ARCHITECTURES {
        let size = fs::metadata(unpacked.program("spacelift-launcher", architecture)).unwrap().len();
        assert!(size <= MAX_LAUNCHER, "{architecture}: {size} bytes");
    }
}

/// What a program says about itself, against what the release says about it.
fn check_note(note: &Value, unpacked: &Unpacked, program: &str, architecture: &str) {
    let expected = json!({
        "program": program,
        "version": unpacked.manifest["version"],
        "commit": unpacked.manifest["commit"],
        "target": format!("{architecture}-unknown-linux-musl"),
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&note[name], value, "{name} of {program} for {architecture}");
    }
}

#[test]
fn programs_say_what_the_release_says() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    // The sums name the archive, the archive's name has the version.
    let sums = fs::read_to_string(&release.sums).unwrap();
    assert!(sums.ends_with(&format!("  self-hosted-{}.tar.gz\n", unpacked.field("version"))), "{sums}");
    for architecture in ARCHITECTURES {
        let note = finish(unpacked.runnable("spacelift-launcher", architecture).args(["--version", "--json"]));
        let note = note.expect(0).json();
        check_note(&note, &unpacked, "spacelift-launcher", architecture);

        let directory = unpacked.scratch(architecture);
        let worker = extract_worker(&unpacked, architecture, &directory.join("worker"));
        assert_eq!(note["worker"]["sha256"], tree::sha256(&worker));
        assert_eq!(note["worker"]["size"], fs::metadata(&worker).unwrap().len());
        for field in ["version", "commit", "target"] {
            assert_eq!(note["worker"][field], note[field], "the worker is of the same build");
        }
        let mut run_worker = if architecture == std::env::consts::ARCH {
            Command::new(&worker)
        } else {
            let mut emulator = tool(&format!("qemu-{architecture}-static"));
            emulator.arg(&worker);
            emulator
        };
        let said = finish(run_worker.args(["--version", "--json"])).expect(0).json();
        check_note(&said, &unpacked, "spacelift-worker", architecture);

        let note = finish(unpacked.runnable("spacelift-bundle", architecture).args(["version", "--json"]));
        check_note(&note.expect(0).json(), &unpacked, "spacelift-bundle", architecture);
        let text = succeed(unpacked.runnable("spacelift-launcher", architecture).arg("--version"));
        for value in [release.version.as_str(), &unpacked.field("commit"), &tree::sha256(&worker)] {
            assert!(text.contains(value), "{value}: {text}");
        }
    }
}

/// A static binary that is linked wrongly crashes when it looks at its own stack, which it does when somebody wants to know
/// where an error came from.
#[test]
fn backtraces_do_not_crash() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    for architecture in ARCHITECTURES {
        for value in ["1", "full"] {
            let run = |name: &str, arguments: &[&str]| {
                let mut command = unpacked.runnable(name, architecture);
                finish(command.args(arguments).env("RUST_BACKTRACE", value).env("RUST_LIB_BACKTRACE", "1"))
            };
            assert!(run("spacelift-launcher", &["--version"]).expect(0).says(&release.version));
            run("spacelift-launcher", &["--no-such-flag"]).expect(64);
            // A file in the place of a directory.
            let archive = release.archive.to_str().unwrap();
            let refused = run("spacelift-launcher", &["extract-worker", "--dir", archive]);
            assert!(matches!(refused.code, Some(74 | 77)), "{refused}");

            run("spacelift-bundle", &["inspect", "/no/such/archive.tar.gz"]).expect(66);
            run("spacelift-bundle", &["release-config", archive]).expect(64);
            let certificate = release.certificate.to_str().unwrap();
            let refused = run("spacelift-bundle", &["verify", archive, "--cert", certificate]).expect(19);
            assert!(refused.says("--allow-development"), "{refused}");
        }
    }
}

/// `verify` under an emulator is the same program for another processor.
#[test]
fn every_architecture_verifies() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    for architecture in ARCHITECTURES {
        let mut verify = unpacked.runnable("spacelift-bundle", architecture);
        verify.arg("verify").arg(&release.archive).arg("--cert").arg(&release.certificate).arg("--allow-development");
        assert!(succeed(&mut verify).starts_with("verified"), "{architecture}");
    }
}

#[test]
fn launcher_and_worker_run_in_containers_that_have_nothing() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let engine = Engine::start();
    let release_volume = format!("{}:/release:ro", unpacked.root.display());
    let suffix = if std::env::consts::ARCH == "x86_64" { "" } else { "-aarch64" };
    let launcher = format!("/release/bin/spacelift-launcher{suffix}");

    let busybox = busybox_root();
    engine.import(busybox.path(), "busybox:test");
    let run = |arguments: &[&str], script: &str| {
        let mut docker = engine.run();
        docker.args(["--volume", &release_volume, "--env", "RUST_BACKTRACE=full"]).args(arguments);
        docker.args(["busybox:test", "/bin/busybox", "sh", "-c", script]);
        finish(&mut docker)
    };
    let said = run(&[], &format!("{launcher} --version --json")).expect(0).json();
    check_note(&said, &unpacked, "spacelift-launcher", std::env::consts::ARCH);
    // As root and as the launcher's own user, who owns nothing here.
    for arguments in [&["--user=0"][..], &["--user=1983:1983", "--tmpfs=/opt/spacelift:exec,mode=0755,uid=1983"]] {
        let script = format!("worker=$({launcher} extract-worker) && \"$worker\" --version --json");
        let said = run(arguments, &script).expect(0).json();
        check_note(&said, &unpacked, "spacelift-worker", std::env::consts::ARCH);
    }
    run(&[], &format!("{launcher} --no-such-flag")).expect(64);

    // No shell, no library, no /etc, and nothing can be written.
    let empty = tempfile::tempdir().unwrap();
    let program = unpacked.program("spacelift-launcher", std::env::consts::ARCH);
    succeed(tool("cp").arg(program).arg(empty.path().join("launcher")));
    engine.import(empty.path(), "empty:test");
    let mut docker = engine.run();
    docker.args(["--read-only", "--cap-drop=ALL", "--user=65534", "empty:test", "/launcher", "--version", "--json"]);
    check_note(&finish(&mut docker).expect(0).json(), &unpacked, "spacelift-launcher", std::env::consts::ARCH);
}
