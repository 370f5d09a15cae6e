//! Releases that were unpacked before, by tar for example, and may have been changed since.

use integration_tests::case::Preparation;

use super::{Made, Material, inside};
use crate::keys::{Algorithm, Binding, DAY, MADE, Signer, certifies, signs};
use crate::release::Release;

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, second, stranger, .. } = material;
    let release =
        Release::new().file("scripts/run.sh", "#!/bin/sh\necho good\n").file("config.json", "{}\n").file("empty", "");
    let root = release.root();
    let file = |path: &str| format!("{root}/{path}");
    let case = |name, description| Made::directory(material, name, description, &release);
    let mode = |path: &str, mode: &str| Preparation::Mode { path: inside(path), mode: mode.into() };
    let remove = |path: &str| Preparation::Remove { path: inside(path) };
    let extra = "it is in the directory but not in the manifest";
    let manifest = release.manifest_bytes();
    let signed_by = |signers: &[&Signer]| {
        let mut bytes = Vec::new();
        for signer in signers {
            bytes.extend(signer.sign(&manifest)?);
        }
        anyhow::Ok(bytes)
    };
    let mut other = manifest.clone();
    other.push(b'\n');
    let both = [("vendor.asc", vendor), ("second.asc", second)];

    let mut cases = vec![
        case("directory", "A release that tar has unpacked.")?.accepted(&["verified", &vendor.fingerprint()]),
        case("directory-umask-077", "A release that was unpacked by someone with a strict umask.")?
            .prepare(Preparation::Umask { path: root.clone().into(), mask: "077".into() })
            .accepted(&["verified"]),
        case("directory-threshold-two", "Two of two signed the manifest.")?
            .file(&file("manifest.json.sig"), signed_by(&[vendor, second])?)
            .pinned(&both)?
            .arguments(&["--threshold", "2"])
            .accepted(&["verified"]),
        case("directory-file-changed", "A script was exchanged for one of the same length.")?
            .file(&file("scripts/run.sh"), "#!/bin/sh\necho evil\n")
            .refused(17, &["scripts/run.sh: its SHA-256 is"]),
        case("directory-file-longer", "Something was appended to a file.")?
            .file(&file("config.json"), "{}\n\n")
            .refused(17, &["config.json: it has 4 bytes, the manifest says 3"]),
        case("directory-file-shorter", "A file was cut off.")?
            .file(&file("config.json"), "{}")
            .refused(17, &["config.json: it has 2 bytes, the manifest says 3"]),
        case("directory-file-missing", "A file was removed.")?
            .without_file(&file("config.json"))
            .refused(17, &["config.json: it is in the manifest but missing from the directory"]),
        case("directory-empty-file-missing", "A file that holds nothing was removed.")?
            .without_file(&file("empty"))
            .refused(17, &["empty: it is in the manifest but missing from the directory"]),
        case("directory-file-extra", "A file was added.")?
            .file(&file("scripts/zzz.sh"), "x")
            .refused(17, &["scripts/zzz.sh", extra]),
        case("directory-hidden-file-extra", "A hidden file was added.")?
            .file(&file(".profile"), "x")
            .refused(17, &[".profile", extra]),
        case("directory-directory-extra", "An empty directory was added.")?
            .prepare(Preparation::Directory { path: inside("zzz") })
            .refused(17, &["zzz", extra]),
        case("directory-name-with-control-characters", "A file was added whose name paints an answer of its own.")?
            .prepare(Preparation::File { path: inside("\x1b[2J\x1b[32mverified\u{9b}0m\r") })
            .refused(17, &["\\u{1b}[2J", extra]),
        case("directory-name-not-utf8", "A file was added whose name is not UTF-8.")?
            .prepare(Preparation::FileNamed { path: inside("."), name: b"caf\xe9".to_vec() })
            .refused(17, &["caf", extra]),
        case("directory-file-is-a-link", "A file was replaced by a link to another of the same contents.")?
            .prepare(remove("config.json"))
            .prepare(Preparation::Symlink { path: inside("config.json"), target: "../config.json".into() })
            .file("config.json", "{}\n")
            .refused(17, &["config.json: it is neither a regular file nor a directory"]),
        case("directory-directory-is-a-link", "A directory was replaced by a link to another of the same contents.")?
            .without_file(&file("scripts/run.sh"))
            .file("scripts/run.sh", "#!/bin/sh\necho good\n")
            .prepare(Preparation::Symlink { path: inside("scripts"), target: "../scripts".into() })
            .refused(17, &["scripts: it is neither a regular file nor a directory"]),
        case("directory-manifest-is-a-link", "The manifest was replaced by a link to a copy of it.")?
            .prepare(remove("manifest.json"))
            .prepare(Preparation::Symlink { path: inside("manifest.json"), target: "../manifest.json".into() })
            .file("manifest.json", manifest.clone())
            .refused(17, &["manifest.json: it is neither a regular file nor a directory"]),
        case("directory-link-extra", "A link was added.")?
            .prepare(Preparation::Symlink { path: inside("link"), target: "/etc/passwd".into() })
            .refused(17, &["link: it is neither a regular file nor a directory"]),
        case("directory-file-is-a-pipe", "A file was replaced by a named pipe, on which a reader waits for ever.")?
            .prepare(remove("config.json"))
            .prepare(Preparation::Fifo { path: inside("config.json") })
            .refused(17, &["config.json: it is neither a regular file nor a directory"]),
        case(
            "directory-manifest-is-a-pipe",
            "The manifest was replaced by a named pipe, on which a reader waits for ever.",
        )?
        .prepare(remove("manifest.json"))
        .prepare(Preparation::Fifo { path: inside("manifest.json") })
        .refused(17, &["manifest.json: it is neither a regular file nor a directory"]),
        case("directory-file-is-a-directory", "A file was replaced by a directory.")?
            .prepare(remove("config.json"))
            .prepare(Preparation::Directory { path: inside("config.json") })
            .refused(17, &["config.json: it is a directory and should be a file"]),
        case("directory-manifest-is-a-directory", "The manifest was replaced by a directory.")?
            .prepare(remove("manifest.json"))
            .prepare(Preparation::Directory { path: inside("manifest.json") })
            .refused(17, &["manifest.json: it is a directory and should be a file"]),
        case("directory-executable-bit-lost", "A script can no longer be run.")?
            .prepare(mode("scripts/run.sh", "644"))
            .refused(17, &["scripts/run.sh", "executable"]),
        case("directory-executable-bit-added", "A file became a program.")?
            .prepare(mode("config.json", "755"))
            .refused(17, &["config.json", "executable"]),
        case("directory-executable-bit-added-for-others", "A file became a program for others.")?
            .prepare(mode("config.json", "645"))
            .refused(17, &["config.json", "executable"]),
        case("directory-setuid", "A script got a set-user-id bit.")?
            .prepare(mode("scripts/run.sh", "4755"))
            .refused(17, &["scripts/run.sh", "set-user-id"]),
        case("directory-setgid", "A script got a set-group-id bit.")?
            .prepare(mode("scripts/run.sh", "2755"))
            .refused(17, &["scripts/run.sh", "set-user-id"]),
        case("directory-world-writable", "Everyone may change a script after it was verified.")?
            .prepare(mode("scripts/run.sh", "757"))
            .refused(17, &["scripts/run.sh", "write"]),
        case("directory-manifest-changed", "The manifest was changed.")?
            .file(&file("manifest.json"), other)
            .refused(17, &["manifest.json.sig", "BAD signature"]),
        case("directory-manifest-signed-by-unpinned", "The manifest is signed by someone who is not pinned.")?
            .file(&file("manifest.json.sig"), signed_by(&[stranger])?)
            .refused(17, &["manifest.json.sig", "0 of the required 1"]),
        case("directory-manifest-signature-empty", "The manifest's signature is an empty file.")?
            .file(&file("manifest.json.sig"), "")
            .refused(17, &["manifest.json.sig", "it is empty"]),
        case("directory-manifest-signature-missing", "The manifest's signature was removed.")?
            .without_file(&file("manifest.json.sig"))
            .refused(17, &["manifest.json.sig", "missing"]),
        case("directory-manifest-missing", "The manifest was removed.")?
            .without_file(&file("manifest.json"))
            .refused(17, &["manifest.json", "missing"]),
        case("directory-manifest-too-large", "A manifest of a gigabyte.")?
            .prepare(Preparation::Resize { path: inside("manifest.json"), size: 1 << 30 })
            .refused(17, &["manifest.json", "more than the limit"]),
        case("directory-manifest-signature-too-large", "A signature of a gigabyte.")?
            .prepare(Preparation::Resize { path: inside("manifest.json.sig"), size: 1 << 30 })
            .refused(17, &["manifest.json.sig", "more than 65536"]),
        case("directory-threshold-not-met", "Two are required, and one signed the manifest.")?
            .pinned(&both)?
            .arguments(&["--threshold", "2"])
            .refused(17, &["manifest.json.sig", "1 of the required 2"]),
        case("directory-with-arguments-of-archives", "There is nothing to unpack in a directory.")?
            .arguments(&["--unpack", "elsewhere"])
            .refused(64, &["--unpack"]),
        Made::directory(
            material,
            "directory-version-of-another",
            "`version` is of the release before.",
            &release.clone().file("version", "v1.2.2\n"),
        )?
        .refused(18, &["version: it says \"v1.2.2\""]),
        Made::directory(
            material,
            "directory-version-missing",
            "A release without `version`, whose manifest does not list it either.",
            &release.clone().without("version"),
        )?
        .refused(18, &["version: the manifest does not list it"]),
        Made::directory(
            material,
            "directory-development",
            "A development release that was unpacked.",
            &release.clone().manifest(|manifest| manifest.development = true),
        )?
        .refused(19, &["development release"]),
        case("directory-rollback", "An unpacked release that is older than the installed one.")?
            .file(
                "installed.json",
                Release::of_version("v1.3.0").manifest(|manifest| manifest.sequence = 8).manifest_bytes(),
            )
            .arguments(&["--installed", "installed.json"])
            .refused(19, &["is older than the installed v1.3.0"]),
    ];
    let short = Binding { valid_for: Some(200 * DAY), ..Binding::new(signs()) };
    let expired =
        Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[Binding::new(certifies())])?.subkey(MADE, &[short])?;
    cases.push(
        case("directory-certificate-expired", "The key that signed the manifest has expired.")?
            .file(&file("manifest.json.sig"), signed_by(&[&expired])?)
            .pinned(&[("directory-expired.asc", &expired)])?
            .refused(17, &["manifest.json.sig", "has expired"]),
    );
    Ok(cases)
}
