//! `spacelift-bundle` out of the archive: verifying, unpacking, inspecting and comparing releases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::release::{Release, Unpacked, noise};
use integration_tests::run::{Finished, finish, succeed, tool, under_umask};
use integration_tests::tree;
use serde_json::{Value, json};

/// The limit that is promised for verification, in KiB as `ulimit` counts.
const MEMORY: &str = "65536";

fn verify(unpacked: &Unpacked, release: &Release) -> Command {
    let mut verify = unpacked.bundle();
    verify.arg("verify").arg(&release.archive).arg("--cert").arg(&release.certificate);
    verify
}

#[test]
fn a_release_verifies() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let said = succeed(verify(&unpacked, &release).arg("--allow-development"));
    let digest = tree::sha256(&release.archive);
    for part in ["verified", &digest, &release.version, "DEVELOPMENT RELEASE"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let seen = finish(verify(&unpacked, &release).args(["--allow-development", "--json"])).expect(0).json();
    assert_eq!((&seen["ok"], &seen["sha256"]), (&json!(true), &json!(digest)));
    for field in ["version", "commit", "product", "channel", "sequence", "development", "targets"] {
        assert_eq!(seen[field], unpacked.manifest[field], "{field}");
    }
}

#[test]
fn a_development_release_needs_a_flag() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let refused = finish(&mut verify(&unpacked, &release)).expect(19);
    assert!(refused.stderr.contains("development release") && refused.stderr.contains("--allow-development"));
    assert_eq!(refused.stdout, "");
    let refused = finish(verify(&unpacked, &release).arg("--json")).expect(19).json();
    assert_eq!((&refused["ok"], &refused["step"], &refused["exit_code"]), (&json!(false), &json!(9), &json!(19)));
    // Nothing of it is unpacked either.
    let target = unpacked.scratch("target").join("release");
    finish(verify(&unpacked, &release).arg("--unpack").arg(&target)).expect(19);
    assert_eq!(tree::entries(target.parent().unwrap()), [] as [PathBuf; 0]);
}

#[test]
fn unpacking_gives_what_tar_gives_and_verifies_again() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let target = unpacked.scratch("target").join("release");
    succeed(verify(&unpacked, &release).args(["--allow-development", "--unpack"]).arg(&target));
    assert_eq!(tree::read(&target), tree::read(&unpacked.root));
    let mut again = unpacked.bundle();
    again.arg("verify").arg(&target).arg("--cert").arg(&release.certificate).arg("--allow-development");
    succeed(&mut again);
    // What is there is never overwritten.
    finish(verify(&unpacked, &release).args(["--allow-development", "--unpack"]).arg(&target)).expect(73);
    // One file more is one that nobody signed.
    fs::write(target.join("scripts.sh"), "").unwrap();
    assert!(finish(&mut again).expect(17).says("scripts.sh"));
}

/// Runs a command under `strace` and gives the system calls of these kinds, one per line.
fn traced(calls: &str, command: &Command, directory: &Path) -> Vec<String> {
    let log = directory.join("strace");
    let mut strace = tool("strace");
    strace.args(["-f", "-qq", "-e", "signal=none", "-e", &format!("trace={calls}"), "-o"]).arg(&log);
    strace.arg("--").arg(command.get_program()).args(command.get_args());
    finish(&mut strace).expect(0);
    fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn verification_uses_no_network_and_runs_no_program() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let scratch = unpacked.scratch("scratch");
    let mut archive = verify(&unpacked, &release);
    archive.arg("--allow-development");
    let mut sums = verify(&unpacked, &release);
    sums.arg("--sums-only");
    let mut unpack = verify(&unpacked, &release);
    unpack.arg("--allow-development").arg("--unpack").arg(scratch.join("release"));
    let mut directory = unpacked.bundle();
    directory.arg("verify").arg(&unpacked.root).arg("--cert").arg(&release.certificate).arg("--allow-development");
    for command in [archive, sums, unpack, directory] {
        let calls = traced("network,execve", &command, &scratch);
        // The program itself: it shows that there is something to see at all.
        assert_eq!(calls.len(), 1, "{calls:#?}");
        assert!(calls[0].contains("execve(") && calls[0].contains("spacelift-bundle"), "{calls:#?}");
    }
}

/// What is not verified yet is nobody else's to read or to exchange, whatever the umask says.
#[test]
fn unpacking_is_private_until_it_is_complete() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let scratch = unpacked.scratch("scratch");
    let mut unpack = verify(&unpacked, &release);
    unpack.args(["--allow-development", "--unpack"]).arg(scratch.join("release"));
    let calls = traced("mkdir,mkdirat", &under_umask("000", &unpack), &scratch);
    let first = calls.first().expect("a directory is made");
    assert!(first.contains("/.unpacking-") && first.contains(", 0700)"), "{calls:#?}");
    assert_eq!(tree::read(&scratch.join("release")), tree::read(&unpacked.root), "the umask has no part in the result");
}

#[test]
fn verification_needs_little_memory_whatever_the_size() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let (stage, output) = (unpacked.stage(), unpacked.scratch("output"));
    // Three times the limit, and not compressible.
    let noise = noise(64 << 20);
    for name in ["one", "two", "three"] {
        fs::write(stage.join(name), &noise).unwrap();
    }
    let key = unpacked.keygen(&unpacked.scratch("keys"), "test", &["--no-passphrase"]);
    finish(unpacked.pack(&stage).arg("--output-dir").arg(&output)).expect(0);
    let large = Release::in_directory(&output, &release.version, &key.certificate);
    finish(unpacked.bundle().arg("sign").arg(&large.unsigned).arg("--key").arg(&key.signing)).expect(0);
    let verify = verify(&unpacked, &large);
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -d \"$0\" && exec \"$@\"", MEMORY]).arg(verify.get_program()).args(verify.get_args());
    succeed(&mut limited);
}

#[test]
fn inspect_shows_what_is_there_and_claims_nothing() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let inspect = |what: &Path, arguments: &[&str]| finish(unpacked.bundle().arg("inspect").arg(what).args(arguments));
    let text = inspect(&release.archive, &[]).expect(0).stdout;
    assert!(text.starts_with("NOT VERIFIED") && text.contains("NOT VERIFIED: use `spacelift-bundle verify"), "{text}");
    let manifest = unpacked.files();
    for part in manifest.keys().map(String::as_str).chain(["DEVELOPMENT RELEASE", "valid until"]) {
        assert!(text.contains(part), "{part}: {text}");
    }
    let seen = inspect(&release.archive, &["--json"]).expect(0).json();
    assert_eq!(seen["verified"], false);
    assert_eq!(seen["files"], unpacked.manifest["files"]);
    assert_eq!(seen["images"], unpacked.manifest["images"]);
    let field = |what: &Path, name: &str| inspect(what, &["--print", name]).expect(0).stdout.trim().to_owned();
    assert_eq!(field(&release.archive, "commit"), unpacked.field("commit"));
    assert_eq!(field(&release.archive, "root"), release.root);
    assert_eq!(field(&release.archive, "payload"), tree::sha256(&release.unsigned), "what a rebuild is compared with");
    assert_eq!(field(&unpacked.root, "version"), release.version);

    // One file, and the certificates.
    let scratch = unpacked.scratch("scratch");
    let launcher = scratch.join("launcher");
    let output = launcher.to_str().unwrap();
    inspect(&release.archive, &["--extract", "bin/spacelift-launcher", "--output", output]).expect(0);
    assert_eq!(tree::sha256(&launcher), tree::sha256(&unpacked.program("spacelift-launcher", "x86_64")));
    succeed(Command::new("test").arg("-x").arg(&launcher));
    inspect(&release.archive, &["--keys-to", scratch.join("keys").to_str().unwrap()]).expect(0);
    assert_eq!(tree::read(&scratch.join("keys")), tree::read(&unpacked.root.join("keys")));
}

fn diff(unpacked: &Unpacked, old: &Path, new: &Path, arguments: &[&str]) -> Finished {
    finish(unpacked.bundle().arg("diff").arg(old).arg(new).args(arguments))
}

#[test]
fn a_release_does_not_differ_from_itself() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    for new in [&release.archive, &unpacked.root] {
        let text = diff(&unpacked, &release.archive, new, &[]).expect(0).stdout;
        assert!(text.contains("0 added, 0 removed, 0 changed"), "{text}");
        let seen = diff(&unpacked, &release.archive, new, &["--json"]).expect(0).json();
        let nothing = json!({ "added": [], "removed": [], "changed": [] });
        for part in ["files", "images", "binaries", "keys"] {
            assert_eq!(seen[part], nothing, "{part}");
        }
        assert_eq!((&seen["fields"], &seen["templates"]), (&json!([]), &json!([])));
    }
    let same = diff(&unpacked, &release.archive, &release.unsigned, &["--reproduce"]).expect(0);
    assert!(same.stdout.starts_with("identical but for signatures"), "{same}");
}

#[test]
fn diff_tells_what_changed() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let (stage, old, new) = (unpacked.stage(), unpacked.scratch("old"), unpacked.scratch("new"));
    let template = stage.join("cloudformation/test.yaml");
    fs::create_dir_all(template.parent().unwrap()).unwrap();
    let resources = "Resources:\n  Topic:\n    Type: AWS::SNS::Topic\n";
    fs::write(&template, format!("Parameters:\n  Size:\n    Type: Number\n    Default: 1\n{resources}")).unwrap();
    finish(unpacked.pack(&stage).arg("--output-dir").arg(&old)).expect(0);

    let parameters = "Parameters:\n  Size:\n    Type: Number\n    Default: 2\n  Zone:\n    Type: String\n";
    fs::write(&template, format!("{parameters}{resources}")).unwrap();
    fs::write(stage.join("NEWS"), "more\n").unwrap();
    fs::remove_file(stage.join("licenses/LICENSE-MIT")).unwrap();
    let sbom = stage.join("sbom/spacelift-launcher-x86_64.cdx.json");
    let mut document: Value = serde_json::from_slice(&fs::read(&sbom).unwrap()).unwrap();
    let component = &mut document["components"][0];
    let dependency = component["name"].as_str().unwrap().to_owned();
    component["version"] = json!("999.0.0");
    fs::write(&sbom, serde_json::to_vec(&document).unwrap()).unwrap();
    finish(unpacked.pack(&stage).args(["--development", "--output-dir"]).arg(&new)).expect(0);

    let at = |directory: &Path| Release::in_directory(directory, &release.version, Path::new("")).unsigned;
    let text = diff(&unpacked, &at(&old), &at(&new), &[]).expect(0).stdout;
    for part in [
        "development: false -> true",
        "1 added, 1 removed, 2 changed",
        "+ NEWS",
        "- licenses/LICENSE-MIT",
        "~ parameter Size: Default 1 -> 2",
        "+ parameter Zone (String)",
        "999.0.0",
        &dependency,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let seen = diff(&unpacked, &at(&old), &at(&new), &["--json"]).expect(0).json();
    assert_eq!(seen["files"]["added"][0]["path"], "NEWS");
    let different = diff(&unpacked, &at(&old), &at(&new), &["--reproduce"]).expect(1);
    assert!(different.stdout.starts_with("DIFFERENT") && different.says("first difference at byte"), "{different}");
}

#[test]
fn every_command_explains_itself() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let help = succeed(unpacked.bundle().arg("--help"));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line that goes on is indented further than a command's name.
    let names: Vec<&str> =
        commands.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() >= 10, "{help}");
    for name in names {
        let text = succeed(unpacked.bundle().args([name, "--help"]));
        let first = text.lines().next().unwrap_or_default();
        assert!(!first.is_empty() && !first.starts_with("Usage"), "{name} does not say what it does: {text}");
        assert!(text.contains(&format!("Usage: spacelift-bundle {name}")), "{text}");
        let wrong = finish(unpacked.bundle().args([name, "--no-such-flag"])).expect(64);
        assert!(wrong.stdout.is_empty() && wrong.stderr.contains("--no-such-flag"), "{wrong}");
    }
    finish(unpacked.bundle().arg("no-such-command")).expect(64);
    finish(&mut unpacked.bundle()).expect(64);
}
