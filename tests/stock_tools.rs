//! The tools that customers have accept a release and unpack the documented layout.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use integration_tests::gpg;
use integration_tests::release::{ARCHITECTURES, Release};
use integration_tests::run::{finish, succeed, tool};
use integration_tests::tree::{self, Node};
use serde_json::Value;

/// SHA-512 in OpenPGP's numbers (RFC 9580, section 9.5).
const SHA512: &str = "10";

#[test]
fn sha256sum_accepts_the_sums() {
    let release = Release::under_test();
    let mut check = tool("sha256sum");
    check.args(["-c", "--strict"]).arg(release.sums.file_name().unwrap()).current_dir(&release.directory);
    let name = release.archive.file_name().unwrap().to_str().unwrap();
    assert_eq!(succeed(&mut check), format!("{name}: OK\n"));
    let expected = format!("{}  {name}\n", tree::sha256(&release.archive));
    assert_eq!(fs::read_to_string(&release.sums).unwrap(), expected, "the documented form, and nothing else");
}

/// Exit codes of gpg are not enough: it ends with 0 for expired and revoked keys and for SHA-1 as well.
fn assert_good(verdict: &str, primary: &str) {
    let status = |name: &str| -> Option<Vec<&str>> {
        let line = verdict.lines().find_map(|line| line.strip_prefix("[GNUPG:] ")?.strip_prefix(name));
        line.map(|rest| rest.split_whitespace().collect())
    };
    assert!(status("GOODSIG").is_some(), "{verdict}");
    let valid = status("VALIDSIG").unwrap_or_else(|| panic!("no VALIDSIG: {verdict}"));
    // Fields: key, date, time, expiry, version, reserved, public-key algorithm, hash algorithm, class, primary key.
    assert_eq!((valid[7], valid[9]), (SHA512, primary), "{verdict}");
    for bad in ["EXPSIG", "EXPKEYSIG", "REVKEYSIG", "BADSIG", "ERRSIG"] {
        assert_eq!(status(bad), None, "{verdict}");
    }
}

fn fingerprint(home: &gpg::Home, certificate: &Path) -> String {
    let keys = succeed(home.gpg().args(["--with-colons", "--show-keys"]).arg(certificate));
    let line = keys.lines().find_map(|line| line.strip_prefix("fpr:")).expect("a certificate has a fingerprint");
    line.trim_matches(':').to_owned()
}

#[test]
fn gpg_accepts_the_signature() {
    let release = Release::under_test();
    let home = gpg::Home::new();
    home.import(&release.certificate);
    let primary = fingerprint(&home, &release.certificate);
    assert_good(&home.verify(&release.signature, &release.sums).expect(0).stdout, &primary);
    // The manifest has a signature of its own: an unpacked release can be verified without its archive.
    let unpacked = release.unpack();
    let (signature, manifest) = (unpacked.root.join("manifest.json.sig"), unpacked.root.join("manifest.json"));
    assert_good(&home.verify(&signature, &manifest).expect(0).stdout, &primary);
    // What it accepts depends on the sums at all.
    home.verify(&release.signature, &manifest).expect(1);
}

#[test]
fn gpgv_accepts_the_signature() {
    let release = Release::under_test();
    let home = gpg::Home::new();
    let keyring = home.keyring(&[&release.certificate]);
    let mut gpgv = tool("gpgv");
    gpgv.args(["--status-fd", "1", "--keyring"]).arg(keyring).arg(&release.signature).arg(&release.sums);
    let verdict = succeed(gpgv.env("GNUPGHOME", home.path()));
    assert_good(&verdict, &fingerprint(&home, &release.certificate));
}

#[test]
fn sqv_accepts_the_signature() {
    let release = Release::under_test();
    let mut sqv = tool("sqv");
    sqv.arg("--keyring").arg(&release.certificate).arg(&release.signature).arg(&release.sums);
    let home = gpg::Home::new();
    assert_eq!(succeed(&mut sqv).trim(), fingerprint(&home, &release.certificate));
}

#[test]
fn the_certificate_that_signed_is_in_keys() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let home = gpg::Home::new();
    let shipped = unpacked.root.join(format!("keys/{}.asc", fingerprint(&home, &release.certificate)));
    home.import(&shipped);
    home.verify(&release.signature, &release.sums).expect(0);
}

/// What an unpacked release must be, from its manifest alone.
fn from_manifest(root: &Path) -> BTreeMap<String, Node> {
    let manifest: Value = serde_json::from_slice(&fs::read(root.join("manifest.json")).unwrap()).unwrap();
    let mut nodes = BTreeMap::new();
    for file in manifest["files"].as_array().unwrap() {
        let path = file["path"].as_str().unwrap().to_owned();
        for (at, _) in path.match_indices('/') {
            nodes.insert(path[..at].to_owned(), Node::Directory { mode: 0o755 });
        }
        let mode = u32::from_str_radix(file["mode"].as_str().unwrap(), 8).unwrap();
        let sha256 = file["sha256"].as_str().unwrap().to_owned();
        nodes.insert(path, Node::File { mode, size: file["size"].as_u64().unwrap(), sha256 });
    }
    let launchers = ARCHITECTURES.map(|name| format!("spacelift-launcher-{name}_SHA256SUMS.sig"));
    for name in ["manifest.json", "manifest.json.sig"].into_iter().chain(launchers.iter().map(String::as_str)) {
        let path = root.join(name);
        let size = fs::metadata(&path).unwrap().len();
        nodes.insert(name.to_owned(), Node::File { mode: 0o644, size, sha256: tree::sha256(&path) });
    }
    nodes
}

#[test]
fn tar_unpacks_exactly_what_the_manifest_lists() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let beside = tree::entries(unpacked.root.parent().unwrap());
    assert_eq!(beside, std::slice::from_ref(&unpacked.root), "the archive holds one directory");
    assert_eq!(tree::read(&unpacked.root), from_manifest(&unpacked.root));
    let version = fs::read_to_string(unpacked.root.join("version")).unwrap();
    assert_eq!(version, format!("{}\n", release.version));
}

#[test]
fn the_documented_files_are_there_and_no_others() {
    let unpacked = Release::under_test().unpack();
    let mut expected: BTreeSet<String> = [
        "bin/spacelift-bundle",
        "bin/spacelift-bundle-aarch64",
        "bin/spacelift-launcher",
        "bin/spacelift-launcher-aarch64",
        "container-images/spacelift-launcher.tar",
        "licenses/LICENSE-APACHE",
        "licenses/LICENSE-MIT",
        "licenses/THIRD-PARTY.txt",
        "manifest.json",
        "manifest.json.sig",
        "provenance.json",
        "spacelift-launcher-aarch64_SHA256SUMS.sig",
        "spacelift-launcher-x86_64_SHA256SUMS.sig",
        "version",
    ]
    .map(str::to_owned)
    .into();
    for architecture in ARCHITECTURES {
        for program in ["spacelift-bundle", "spacelift-launcher", "spacelift-worker"] {
            expected.insert(format!("sbom/{program}-{architecture}.cdx.json"));
        }
    }
    // What the checkout has of these goes with every release; `keys/` has one certificate per signer; the manual has a test of
    // its own.
    let of_the_checkout = |path: &str| {
        let (first, _) = path.split_once('/').unwrap_or((path, ""));
        matches!(
            first,
            "cloudformation"
                | "completions"
                | "config.json"
                | "docs"
                | "install.sh"
                | "keys"
                | "man"
                | "scripts"
                | "uninstall.sh"
        )
    };
    let found: BTreeSet<String> = tree::read(&unpacked.root)
        .into_iter()
        .filter(|(path, node)| matches!(node, Node::File { .. }) && !of_the_checkout(path))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn busybox_unpacks_the_same() {
    let release = Release::under_test();
    let (unpacked, directory) = (release.unpack(), tempfile::tempdir().unwrap());
    succeed(tool("busybox").args(["tar", "-zxf"]).arg(&release.archive).current_dir(directory.path()));
    assert_eq!(tree::read(&directory.path().join(&release.root)), tree::read(&unpacked.root));
}

#[test]
fn an_ordinary_user_can_unpack_and_run_it() {
    let release = Release::under_test();
    let directory = tempfile::tempdir().unwrap();
    succeed(tool("chmod").arg("0777").arg(directory.path()));
    // The archive itself may be in a directory that others cannot enter.
    succeed(tool("cp").args([&release.archive, directory.path()]));
    let archive = directory.path().join(release.archive.file_name().unwrap());
    succeed(tool("chmod").arg("0644").arg(&archive));
    let unpack = "umask 077 && tar -zxf \"$0\" && \"./$1/bin/spacelift-launcher\" --version";
    let mut shell = integration_tests::run::as_nobody(Path::new("/bin/sh"));
    let said = succeed(shell.args(["-c", unpack]).arg(&archive).arg(&release.root).current_dir(directory.path()));
    assert!(said.contains(&release.version), "{said}");
}

#[test]
fn the_archive_tells_nothing_about_its_maker() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let mut list = tool("tar");
    list.args(["--numeric-owner", "--full-time", "--utc", "-tvzf"]).arg(&release.archive);
    let date = succeed(
        tool("date").args(["--utc", "+%Y-%m-%d %H:%M:%S", "--date"]).arg(format!("@{}", unpacked.field("source_date"))),
    );
    let listing = succeed(&mut list);
    assert_eq!(listing.lines().count(), tree::read(&unpacked.root).len() + 1);
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "0/0", "{line}");
        assert_eq!(format!("{} {}", words[3], words[4]), date.trim(), "{line}");
    }
    // gzip would keep a name and a time; `file` and others show them.
    let header = &fs::read(&release.archive).unwrap()[..10];
    assert_eq!(header[..4], [0x1f, 0x8b, 8, header[3] & 0x04], "a gzip header without a name");
    assert_eq!(header[4..8], [0; 4], "a gzip header without a time");
    finish(tool("gzip").arg("-t").arg(&release.archive)).expect(0);
}
