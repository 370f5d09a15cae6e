//! A launcher without a worker, a launcher with one, and workers that no launcher accepts.
//!
//! The launchers with a worker are built here, by cargo, in a target directory of their own.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock, PoisonError};

use object::read::elf::{FileHeader, SectionHeader};
use object::{LittleEndian, elf};

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// A launcher, and the worker that is in it.
struct Built {
    launcher: PathBuf,
    worker: PathBuf,
}

fn run(launcher: impl AsRef<Path>, arguments: &[&str]) -> Output {
    Command::new(launcher.as_ref()).args(arguments).env_remove("SPACELIFT_LAUNCHER_DIR").output().unwrap()
}

fn target_directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedding")
}

fn cargo(arguments: &[&str], worker: Option<&Path>) -> Output {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap());
    cargo.args(arguments).args(["--locked", "--offline", "--quiet", "--target-dir"]).arg(target_directory());
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("SPACELIFT_WORKER_BINARY")
        .env_remove("CARGO_BUILD_TARGET");
    if let Some(worker) = worker {
        cargo.env("SPACELIFT_WORKER_BINARY", worker);
    }
    cargo.output().unwrap()
}

/// Cargo's own lock would do, were it not for the launcher that one of these builds and another one copies.
static CARGO: Mutex<()> = Mutex::new(());

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let _turn = CARGO.lock().unwrap_or_else(PoisonError::into_inner);
        let build = |package, worker| {
            let output = cargo(&["build", "--package", package, "--bin", package], worker);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let program = target_directory().join(format!("{package}-under-test"));
            fs::copy(target_directory().join("debug").join(package), &program).unwrap();
            program
        };
        let worker = build("spacelift-worker", None);
        let launcher = build("spacelift-launcher", Some(&worker));
        Built { launcher, worker }
    })
}

/// The sections' content, and whether they are loaded into memory, which is what keeps `strip` from removing them.
fn section(program: &[u8], name: &str) -> Option<Vec<u8>> {
    let header = elf::FileHeader64::<LittleEndian>::parse(program).unwrap();
    let sections = header.sections(LittleEndian, program).unwrap();
    let (_, section) = sections.section_by_name(LittleEndian, name.as_bytes())?;
    assert!(section.sh_flags(LittleEndian).contains(elf::SHF_ALLOC), "{name}");
    Some(section.data(LittleEndian, program).unwrap().to_vec())
}

#[cfg(not(embedded_worker))]
#[test]
fn without_a_worker_it_says_that_it_cannot_start_runs() {
    let launcher = env!("CARGO_BIN_EXE_spacelift-launcher");
    let version = run(launcher, &["--version"]);
    let lines: Vec<&str> = text(&version.stdout).lines().collect();
    assert_eq!(lines[0], format!("spacelift-launcher {VERSION}"));
    assert!(lines[1].starts_with("commit: ") && lines[2].starts_with("target: "), "{lines:?}");
    assert_eq!((&lines[3..], version.status.code()), (&["worker: none, so it cannot start runs"][..], Some(0)));

    let note: serde_json::Value = serde_json::from_slice(&run(launcher, &["--version", "--json"]).stdout).unwrap();
    assert_eq!(note["worker"], serde_json::Value::Null);
    assert_eq!(section(&fs::read(launcher).unwrap(), ".spacelift.worker"), None);

    let start = run(launcher, &[]);
    assert_eq!(start.status.code(), Some(69));
    assert!(text(&start.stderr).contains("carries no worker, so it cannot start runs"), "{}", text(&start.stderr));

    let directory = tempfile::tempdir().unwrap();
    let extract = run(launcher, &["extract-worker", "--dir", directory.path().to_str().unwrap()]);
    assert_eq!((extract.status.code(), text(&extract.stdout)), (Some(69), ""));
    assert!(text(&extract.stderr).contains("built without a worker"), "{}", text(&extract.stderr));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn version_tells_which_worker_is_inside() {
    let Built { launcher, worker } = built();
    let file = fs::read(launcher).unwrap();
    let worker = fs::read(worker).unwrap();

    let json = run(launcher, &["--version", "--json"]);
    assert_eq!(json.status.code(), Some(0));
    let note = section(&file, ".spacelift.build").unwrap();
    assert_eq!(text(&json.stdout), format!("{}\n", text(&note)));

    let compressed = section(&file, ".spacelift.worker").unwrap();
    let mut inflated = Vec::new();
    flate2::read::ZlibDecoder::new(&compressed[..]).read_to_end(&mut inflated).unwrap();
    assert!(inflated == worker, "the section does not hold the worker");

    // The exact text is the contract: field order, too, is the same from release to release.
    let launcher_build: serde_json::Value = serde_json::from_slice(&note).unwrap();
    let (commit, target) = (launcher_build["commit"].as_str().unwrap(), launcher_build["target"].as_str().unwrap());
    let sha256 = sha256sum(&worker);
    let (size, compressed_size) = (worker.len(), compressed.len());
    let build = format!(r#""version":"{VERSION}","commit":"{commit}","target":"{target}""#);
    assert_eq!(
        text(&note),
        format!(
            r#"{{"format":1,"program":"spacelift-launcher",{build},"worker":{{{build},"sha256":"{sha256}","size":{size},"compressed_size":{compressed_size}}}}}"#
        )
    );

    let version = run(launcher, &["--version"]);
    assert_eq!(
        text(&version.stdout),
        format!(
            "spacelift-launcher {VERSION}\ncommit: {commit}\ntarget: {target}\nworker: {VERSION}\n\
             worker commit: {commit}\nworker target: {target}\nworker size: {size} bytes\nworker sha256: {sha256}\n"
        )
    );

    let start = run(launcher, &[]);
    assert_eq!(start.status.code(), Some(64));
    let said = text(&start.stderr);
    assert!(said.contains("SPACELIFT_TOKEN") && said.contains("SPACELIFT_POOL_PRIVATE_KEY"), "{said}");
}

fn sha256sum(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn extracting_prints_the_path_of_a_worker_that_runs() {
    let Built { launcher, worker } = built();
    for umask in ["000", "077"] {
        let host = tempfile::tempdir().unwrap();
        let base = host.path().join("new/base");
        let extract = Command::new("sh")
            .args(["-c", "umask $1; exec \"$2\" extract-worker", "sh", umask])
            .arg(launcher)
            .env("SPACELIFT_LAUNCHER_DIR", &base)
            .output()
            .unwrap();
        assert_eq!((extract.status.code(), text(&extract.stderr)), (Some(0), ""));
        let path = Path::new(text(&extract.stdout).strip_suffix('\n').unwrap());
        assert_eq!(path.parent().unwrap(), base.join("workers"));
        assert!(fs::read(path).unwrap() == fs::read(worker).unwrap());
        for made in [path, path.parent().unwrap(), &base, base.parent().unwrap()] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o7777, 0o755, "umask {umask}, {}", made.display());
        }
        let version = run(path, &["--version"]);
        assert!(text(&version.stdout).starts_with(&format!("spacelift-worker {VERSION}\n")));

        fs::write(path, b"changed").unwrap();
        let again = run(launcher, &["extract-worker", "--dir", base.to_str().unwrap()]);
        assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), text(&extract.stdout)));
        assert!(text(&again.stderr).contains("was not the worker that belongs there (it has 7 bytes)"));
        assert!(fs::read(path).unwrap() == fs::read(worker).unwrap());
    }
}

/// Runs the launcher from a shell script that sets the scene; `$1` is the launcher and `$2` an empty directory.
fn extract_in(scene: &str, arguments_before: &[&str], host: &Path) -> Output {
    let [program, before @ ..] = arguments_before else { panic!("a program is needed") };
    Command::new(program)
        .args(before)
        .args(["sh", "-c", &format!("{scene}; exec \"$1\" extract-worker --dir \"$2\""), "sh"])
        .args([&built().launcher, host])
        .output()
        .unwrap()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn a_write_that_fails_half_way_leaves_nothing_behind() {
    let host = tempfile::tempdir().unwrap();
    let output = extract_in("trap '' XFSZ; ulimit -f 8", &["env"], host.path());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(74), ""));
    let said = text(&output.stderr);
    assert!(said.contains(&format!("cannot write `{}", host.path().display())), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert_eq!(files_below(host.path()), <[PathBuf; 0]>::default());
}

#[test]
fn an_interruption_leaves_nothing_half_done() {
    built();
    // strace makes the disk slow: whatever is brought to it takes half a second, long enough to send a signal before
    // the file is made, while it is being written, and when it has its name.
    let moments = [("", "INT"), (".incoming-", "TERM"), (".incoming-", "INT"), ("spacelift-worker-", "INT")];
    std::thread::scope(|scope| {
        for (name, signal) in moments {
            scope.spawn(move || {
                let host = tempfile::tempdir().unwrap();
                let scene = format!(
                    r#"strace -o /dev/null -e trace=fsync -e inject=fsync:delay_enter=500000 \
                           "$1" extract-worker --dir "$2" &
                       while kill -0 $! && ! ls -a "$2/workers" 2>/dev/null | grep -q '^{name}'; do sleep 0.02; done
                       kill -{signal} $(cat /proc/$!/task/$!/children)
                       wait $!
                       exit $?"#
                );
                let output = extract_in(&scene, &["env"], host.path());
                assert_eq!((output.status.code(), text(&output.stdout)), (Some(130), ""), "{}", text(&output.stderr));
                assert!(text(&output.stderr).contains("interrupted"), "{}", text(&output.stderr));
                for file in files_below(host.path()) {
                    let name = file.file_name().unwrap().to_str().unwrap();
                    assert!(name.starts_with("spacelift-worker-"), "{name}");
                    assert!(fs::read(&file).unwrap() == fs::read(&built().worker).unwrap(), "{name}");
                }
            });
        }
    });
}

#[test]
fn a_full_disk_is_a_clear_error() {
    let host = tempfile::tempdir().unwrap();
    // A mount namespace of its own; machines that allow none (hardened kernels, some containers) cannot run this.
    let namespace = ["unshare", "--mount", "--map-root-user"];
    if !Command::new("unshare").args(["--mount", "--map-root-user", "true"]).status().is_ok_and(|s| s.success()) {
        return;
    }
    let scene = "mount -t tmpfs -o size=64k,mode=755 tmpfs \"$2\" || exit 125; \
                 \"$1\" extract-worker --dir \"$2\"; code=$?; find \"$2\" -type f; exit $code";
    let output = extract_in(scene, &namespace, host.path());
    if output.status.code() == Some(125) {
        return;
    }
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(74), ""), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains(host.path().to_str().unwrap()) && said.contains("free some space there"), "{said}");
}

/// `extract-worker` by a user who is bound by permissions, and who owns `host`. Root is not, so it becomes somebody else.
fn extract_as_ordinary_user(host: &Path) -> Output {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return extract_in(":", &["env"], host);
    }
    std::os::unix::fs::chown(host, Some(65534), None).unwrap();
    // A copy, because the way to the original may be closed to that user.
    let program = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let copy = program.path().join("spacelift-launcher");
    fs::copy(&built().launcher, &copy).unwrap();
    Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy)
        .args(["extract-worker", "--dir"])
        .arg(host)
        .output()
        .unwrap()
}

#[test]
fn a_directory_that_may_not_be_written_is_a_clear_error() {
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let output = extract_as_ordinary_user(host.path());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(74), ""), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains(&format!("cannot create the directory `{}/workers`", host.path().display())), "{said}");
    assert!(said.contains("Permission denied") && said.contains("choose another directory"), "{said}");
}

#[test]
fn a_file_that_may_not_be_read_is_replaced() {
    let host = tempfile::tempdir().unwrap();
    let first = extract_as_ordinary_user(host.path());
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let path = text(&first.stdout).trim_end();
    fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    let second = extract_as_ordinary_user(host.path());
    assert_eq!((second.status.code(), text(&second.stdout)), (Some(0), text(&first.stdout)));
    assert!(text(&second.stderr).contains("(it cannot be read)"), "{}", text(&second.stderr));
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_directory_that_others_may_change_is_refused_with_its_own_exit_code() {
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let output = extract_in(":", &["env"], host.path());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(77), ""));
    assert!(text(&output.stderr).contains("can be written by other users (mode 0777)"), "{}", text(&output.stderr));
    assert_eq!(files_below(host.path()), <[PathBuf; 0]>::default());
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_not() {
    let launcher = env!("CARGO_BIN_EXE_spacelift-launcher");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(launcher).arg("--version").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(text(&output.stderr).contains("cannot write to standard output"), "{}", text(&output.stderr));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(launcher).arg("--help").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn wrong_usage_says_where_help_is() {
    let output = run(env!("CARGO_BIN_EXE_spacelift-launcher"), &["start"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), ""));
    assert!(text(&output.stderr).contains("spacelift-launcher --help"), "{}", text(&output.stderr));
}

/// A worker with every occurrence of `from` exchanged.
fn altered(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut worker = fs::read(&built().worker).unwrap();
    let places: Vec<usize> =
        worker.windows(from.len()).enumerate().filter(|(_, it)| *it == from.as_bytes()).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{from}");
    for at in places {
        worker[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    worker
}

#[test]
fn a_worker_of_another_build_is_a_build_error_that_explains_itself() {
    let good = fs::read(&built().worker).unwrap();
    let note: serde_json::Value = serde_json::from_slice(&section(&good, ".spacelift.build").unwrap()).unwrap();
    let [version, commit, target] = ["version", "commit", "target"].map(|field| note[field].as_str().unwrap());
    let other = |field: &str, value: &str| {
        let last = if value.ends_with('0') { '1' } else { '0' };
        let changed = format!("{}{last}", &value[..value.len() - 1]);
        altered(&format!(r#""{field}":"{value}""#), &format!(r#""{field}":"{changed}""#))
    };
    let mut other_machine = good.clone();
    // The field e_machine: s390.
    other_machine[18..20].copy_from_slice(&22_u16.to_le_bytes());

    let cases: [(&[u8], &str); 8] = [
        (&other("version", version), "version"),
        (&other("commit", commit), "commit"),
        (&other("target", target), "target"),
        (&altered(r#""program":"spacelift-worker""#, r#""program":"spacelift-walker""#), "program"),
        (&altered(r#"{"format":1,"#, r#"{"format":2,"#), "format 2"),
        (&altered(".spacelift.build", ".spacelift.built"), "no build note"),
        (&other_machine, "another processor"),
        (b"#!/bin/sh\n", "not a program"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let _turn = CARGO.lock().unwrap_or_else(PoisonError::into_inner);
    let refused = |worker: &Path, reason: &str| {
        let output = cargo(&["check", "--package", "spacelift-launcher", "--lib"], Some(worker));
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{reason}: accepted");
        assert!(said.contains("cannot embed the worker that SPACELIFT_WORKER_BINARY names"), "{said}");
        assert!(said.contains(worker.to_str().unwrap()) && said.contains(reason), "{reason} is not in: {said}");
        assert!(said.contains("cargo xtask dist"), "{said}");
    };
    for (number, (worker, reason)) in cases.iter().enumerate() {
        let path = directory.path().join(number.to_string());
        fs::write(&path, worker).unwrap();
        refused(&path, reason);
    }
    refused(&directory.path().join("missing"), "No such file or directory");
    refused(Path::new("some/worker"), "the path is relative");
}
