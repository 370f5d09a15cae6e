//! The worker inside a launcher: what the launcher says about it, and how it is written to a host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use bundle_core::digest::Digest;
use integration_tests::release::{Release, Unpacked};
use object::read::elf::{FileHeader, SectionHeader};
use object::{LittleEndian, elf};

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The launcher of the release, and the worker that is in it.
struct Built {
    launcher: PathBuf,
    worker: Vec<u8>,
}

fn built() -> &'static Built {
    static RELEASE: OnceLock<(Unpacked, Built)> = OnceLock::new();
    let (_, built) = RELEASE.get_or_init(|| {
        let unpacked = Release::under_test().unpack();
        let launcher = unpacked.program("spacelift-launcher", std::env::consts::ARCH);
        let compressed = section(&fs::read(&launcher).unwrap(), ".spacelift.worker").unwrap();
        let mut worker = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(&compressed[..]), &mut worker).unwrap();
        (unpacked, Built { launcher, worker })
    });
    built
}

fn run(launcher: impl AsRef<Path>, arguments: &[&str]) -> Output {
    Command::new(launcher.as_ref()).args(arguments).env_remove("SPACELIFT_LAUNCHER_DIR").output().unwrap()
}

/// The sections' content, and whether they are loaded into memory, which is what keeps `strip` from removing them.
fn section(program: &[u8], name: &str) -> Option<Vec<u8>> {
    let header = elf::FileHeader64::<LittleEndian>::parse(program).unwrap();
    let sections = header.sections(LittleEndian, program).unwrap();
    let (_, section) = sections.section_by_name(LittleEndian, name.as_bytes())?;
    assert!(section.sh_flags(LittleEndian).contains(elf::SHF_ALLOC), "{name}");
    Some(section.data(LittleEndian, program).unwrap().to_vec())
}

#[test]
fn version_tells_which_worker_is_inside() {
    let Built { launcher, worker } = built();
    let file = fs::read(launcher).unwrap();

    let json = run(launcher, &["--version", "--json"]);
    assert_eq!(json.status.code(), Some(0));
    let note = section(&file, ".spacelift.build").unwrap();
    assert_eq!(text(&json.stdout), format!("{}\n", text(&note)));

    let compressed = section(&file, ".spacelift.worker").unwrap();

    // The exact text is the contract: field order, too, is the same from release to release.
    let launcher_build: serde_json::Value = serde_json::from_slice(&note).unwrap();
    let (commit, target) = (launcher_build["commit"].as_str().unwrap(), launcher_build["target"].as_str().unwrap());
    let sha256 = Digest::of(worker);
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
        assert!(fs::read(path).unwrap() == *worker);
        for made in [path, path.parent().unwrap(), &base, base.parent().unwrap()] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o7777, 0o755, "umask {umask}, {}", made.display());
        }
        let version = run(path, &["--version"]);
        assert!(text(&version.stdout).starts_with(&format!("spacelift-worker {VERSION}\n")));

        fs::write(path, b"changed").unwrap();
        let again = run(launcher, &["extract-worker", "--dir", base.to_str().unwrap()]);
        assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), text(&extract.stdout)));
        assert!(text(&again.stderr).contains("was not the worker that belongs there (it has 7 bytes)"));
        assert!(fs::read(path).unwrap() == *worker);
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
                    assert!(fs::read(&file).unwrap() == built().worker, "{name}");
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

/// An emptyDir of Kubernetes.
#[test]
fn a_new_volume_that_everyone_may_change_is_closed_and_used() {
    let host = tempfile::tempdir().unwrap();
    let scene = |before: &str| {
        format!(
            "mount -t tmpfs -o mode=777 tmpfs \"$2\"; {before}; \"$1\" extract-worker --dir \"$2\"; code=$?; \
             stat --format=mode=%a \"$2\"; exit $code"
        )
    };
    let namespace = ["unshare", "--mount", "--map-root-user"];
    let output = extract_in(&scene("true"), &namespace, host.path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("mode=755\n"), "{}", text(&output.stdout));
    // Whoever was there first could have left anything.
    let output = extract_in(&scene("touch \"$2/file\""), &namespace, host.path());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(77), "mode=777\n"));
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
