//! Step 8: parts that are each signed and in order, but do not belong together. The signer made a mistake, or was tricked
//! into signing a mixture.

use bundle_core::manifest::Manifest;
use openpgp::armor;
use sequoia_openpgp as openpgp;
use serde_json::json;
use tar::EntryType;

use super::good::binaries;
use super::{Made, Material};
use crate::elf::{AARCH64, NOTE, Program, WORKER, X86_64, target, zlib};
use crate::keys::{Signer, armored};
use crate::oci::{self, Files, Image};
use crate::release::{END, Entry, Package, Release, pack};

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let mut cases = versions(material)?;
    cases.extend(programs(material)?);
    cases.extend(workers(material)?);
    cases.extend(images(material)?);
    cases.extend(keys(material)?);
    Ok(cases)
}

fn refused(
    material: &Material,
    name: &'static str,
    description: &str,
    release: &Release,
    message: &[&str],
) -> anyhow::Result<Made> {
    Ok(Made::archive(material, name, description, &release.package(&material.vendor)?)?.refused(18, message))
}

/// The file name, `version` and the manifest.
fn versions(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let add =
        |name, description, release: Release, message: &[&str]| refused(material, name, description, &release, message);
    let newer = Release::of_version("v1.2.4");
    let mut cases = vec![
        add(
            "version-file-of-another-version",
            "`version` is of the release before.",
            Release::new().file("version", "v1.2.2\n"),
            &["version: it says \"v1.2.2\", the manifest says v1.2.3"],
        )?,
        add(
            "version-file-without-newline",
            "`version` has no line end.",
            Release::new().file("version", "v1.2.3"),
            &["version: it says"],
        )?,
        add(
            "version-file-with-more",
            "`version` has a second line.",
            Release::new().file("version", "v1.2.3\nv1.2.4\n"),
            &["version: it says"],
        )?,
        add(
            "version-file-control-characters",
            "`version` clears the terminal and paints an answer of its own.",
            Release::new().file("version", "\x1b[2J\x1b[32mverified\u{9b}0m\r\n"),
            &["version: it says \"\\u{1b}[2J"],
        )?,
        add(
            "version-file-missing",
            "There is no `version`.",
            Release::new().file("config.json", "{}\n").without("version"),
            &["version: the manifest does not list it"],
        )?,
    ];
    let archive = Release::new().package(vendor)?.archive;
    cases.push(
        Made::archive(
            material,
            "archive-named-as-another-version",
            "The archive of one version, signed under the name of the next.",
            &Package::new(&newer.name(), archive).signed_by(&[vendor])?,
        )?
        .refused(18, &["self-hosted-v1.2.4.tar.gz: the manifest in it is of self-hosted-v1.2.3"]),
    );
    let archive = Release::new().package(vendor)?.archive;
    cases.push(
        Made::archive(
            material,
            "archive-named-as-another-product",
            "The archive of one product, signed under the name of another.",
            &Package::new("another-product-v1.2.3.tar.gz", archive).signed_by(&[vendor])?,
        )?
        .refused(18, &["another-product-v1.2.3.tar.gz: the manifest in it is of self-hosted-v1.2.3"]),
    );
    Ok(cases)
}

/// The programs in `bin/`.
fn programs(material: &Material) -> anyhow::Result<Vec<Made>> {
    let add =
        |name, description, release: Release, message: &[&str]| refused(material, name, description, &release, message);
    let launcher = |program: &Program| binaries().file("bin/spacelift-launcher", program.file());
    let good = || Program::launcher(X86_64);
    let old = |note: &mut serde_json::Value| note["version"] = json!("v1.2.2");
    let of_version = |name, version: &str| Program::new(X86_64, name).note(|note| note["version"] = json!(version));
    // The launcher of the release before is whole in itself: its worker is of its own version.
    let old_worker = of_version("spacelift-worker", "v1.2.2").file();
    let old_launcher = Program::launcher_with(X86_64, &old_worker).note(|note| {
        note["version"] = json!("v1.2.2");
        note["worker"]["version"] = json!("v1.2.2");
    });
    let other_commit = "f".repeat(40);
    Ok(vec![
        add(
            "launcher-of-another-version",
            "The launcher of the release before beside the manifest of this one.",
            launcher(&old_launcher),
            &["bin/spacelift-launcher: it is of v1.2.2, the manifest of v1.2.3"],
        )?,
        add(
            "launcher-of-another-commit",
            "The launcher has the right version but was built from another commit.",
            launcher(
                &Program::launcher_with(
                    X86_64,
                    &Program::new(X86_64, "spacelift-worker").note(|note| note["commit"] = json!(other_commit)).file(),
                )
                .note(|note| {
                    note["commit"] = json!(other_commit);
                    note["worker"]["commit"] = json!(other_commit);
                }),
            ),
            &["bin/spacelift-launcher: it was built from commit ffff"],
        )?,
        add(
            "bundle-of-another-version",
            "The bundle program of the release before.",
            binaries().file("bin/spacelift-bundle", Program::new(X86_64, "spacelift-bundle").note(old).file()),
            &["bin/spacelift-bundle: it is of v1.2.2"],
        )?,
        add(
            "arm64-under-x86-64-name",
            "The launcher for arm64 under the name of the one for x86_64.",
            launcher(&Program::launcher(AARCH64)),
            &["bin/spacelift-launcher: it is built for aarch64, its name says x86_64"],
        )?,
        add(
            "x86-64-under-arm64-name",
            "The launcher for x86_64 under the name of the one for arm64.",
            binaries().file("bin/spacelift-launcher-aarch64", good().file()),
            &["bin/spacelift-launcher-aarch64: it is built for x86_64, its name says aarch64"],
        )?,
        add(
            "binary-with-note-for-another-target",
            "A program for x86_64 whose note says that it is for arm64.",
            launcher(&good().note(|note| note["target"] = json!(target(AARCH64)))),
            &["bin/spacelift-launcher", "names the target"],
        )?,
        add(
            "binary-under-another-name",
            "The bundle program under the launcher's name.",
            binaries().file("bin/spacelift-launcher", Program::new(X86_64, "spacelift-bundle").file()),
            &["bin/spacelift-launcher: it says it is spacelift-bundle"],
        )?,
        add(
            "binary-with-interpreter",
            "A launcher that needs a dynamic loader, so that it runs on some hosts only.",
            launcher(&Program { interpreter: true, ..good() }),
            &["bin/spacelift-launcher: it is not statically linked"],
        )?,
        add(
            "binary-with-library",
            "A launcher that needs a library of the host.",
            launcher(&Program { needs_library: true, ..good() }),
            &["bin/spacelift-launcher: it is not statically linked"],
        )?,
        add(
            "binary-is-a-script",
            "A shell script in place of a program.",
            binaries().file("bin/spacelift-launcher", "#!/bin/sh\nexec /tmp/evil\n"),
            &["bin/spacelift-launcher: it is not a usable binary"],
        )?,
        add(
            "binary-is-empty",
            "An empty file in place of a program.",
            binaries().file("bin/spacelift-launcher", ""),
            &["bin/spacelift-launcher: it is not a usable binary"],
        )?,
        add(
            "binary-truncated",
            "A program that was cut off before it was packed.",
            binaries().file("bin/spacelift-launcher", &good().file()[..300]),
            &["bin/spacelift-launcher: it is not a usable binary"],
        )?,
        add(
            "binary-for-another-processor",
            "A program for a processor that there are no releases for.",
            binaries().file("bin/spacelift-launcher", Program { machine: 243, ..good() }.file()),
            &["bin/spacelift-launcher: it is not a usable binary", "processor"],
        )?,
        add(
            "binary-without-note",
            "A program that does not say what it is.",
            launcher(&Program { sections: Vec::new(), ..good() }),
            &["bin/spacelift-launcher: its build note cannot be read", NOTE],
        )?,
        add(
            "binary-with-two-notes",
            "A program that says twice what it is.",
            launcher(&Program { sections: [good().sections, vec![good().sections[0].clone()]].concat(), ..good() }),
            &["bin/spacelift-launcher: its build note cannot be read", "twice"],
        )?,
        add(
            "binary-with-control-characters",
            "A program whose name for itself clears the terminal.",
            launcher(&good().note(|note| note["program"] = json!("\x1b[2Jspacelift-launcher"))),
            &["bin/spacelift-launcher: its build note cannot be read"],
        )?,
        add(
            "binary-with-later-note",
            "A program whose note is of a later format.",
            launcher(&good().note(|note| note["format"] = json!(2))),
            &["bin/spacelift-launcher: its build note cannot be read", "format 2"],
        )?,
        add(
            "binary-extra",
            "A program in bin/ that is not of this product.",
            binaries().file("bin/helper", Program::new(X86_64, "spacelift-worker").file()),
            &["bin/helper: it says it is spacelift-worker"],
        )?,
        add(
            "launcher-missing",
            "The manifest names an architecture without a launcher.",
            binaries().without("bin/spacelift-launcher-aarch64"),
            &["bin/spacelift-launcher-aarch64: the manifest names its target but does not list it"],
        )?,
        add(
            "bundle-missing",
            "The manifest names an architecture without a bundle program.",
            binaries().without("bin/spacelift-bundle"),
            &["bin/spacelift-bundle: the manifest names its target but does not list it"],
        )?,
        add(
            "target-unknown",
            "The manifest names an architecture that nobody knows.",
            binaries().manifest(|manifest| manifest.targets.push("z80".into())),
            &["z80"],
        )?,
    ])
}

/// The worker in the launcher.
fn workers(material: &Material) -> anyhow::Result<Vec<Made>> {
    let add = |name, description, program: &Program, message: &str| {
        let release = binaries().file("bin/spacelift-launcher", program.file());
        refused(material, name, description, &release, &["bin/spacelift-launcher: the worker in it", message])
    };
    let good = || Program::launcher(X86_64);
    let worker = || Program::new(X86_64, "spacelift-worker");
    let carrying = |worker: &Program| Program::launcher_with(X86_64, &worker.file());
    let with_section = |contents: Vec<u8>| {
        let mut program = good();
        program.sections[1].1 = contents;
        let length = program.sections[1].1.len();
        program.note(|note| note["worker"]["compressed_size"] = json!(length))
    };
    let mut tampered = worker().file();
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    let commit = "f".repeat(40);
    Ok(vec![
        add(
            "worker-missing",
            "A launcher without a worker.",
            &Program::new(X86_64, "spacelift-launcher"),
            "carries no worker",
        )?,
        add(
            "worker-section-missing",
            "The note describes a worker, and there is none.",
            &Program { sections: good().sections[..1].to_vec(), ..good() },
            WORKER,
        )?,
        add(
            "worker-tampered",
            "The worker was exchanged after the launcher was built.",
            &with_section(zlib(&tampered)),
            "SHA-256",
        )?,
        add(
            "worker-of-another-version",
            "The worker says that it is of another version than the launcher says.",
            &carrying(&worker().note(|note| note["version"] = json!("v1.2.2"))),
            "version `v1.2.2`",
        )?,
        add(
            "worker-of-another-version-in-note",
            "The launcher itself says that its worker is of another version.",
            &good().note(|note| note["worker"]["version"] = json!("v1.2.2")),
            "version `v1.2.2`",
        )?,
        add(
            "worker-of-another-commit",
            "The worker was built from another commit.",
            &carrying(&worker().note(|note| note["commit"] = json!(commit))),
            "commit `ffff",
        )?,
        add(
            "worker-for-another-processor",
            "The worker is for another processor than the launcher.",
            &carrying(&Program::new(AARCH64, "spacelift-worker")),
            "target `aarch64-unknown-linux-musl`",
        )?,
        add(
            "worker-is-another-program",
            "The worker is a launcher.",
            &carrying(&Program::new(X86_64, "spacelift-launcher")),
            "program `spacelift-launcher`",
        )?,
        add(
            "worker-with-interpreter",
            "The worker needs a dynamic loader, which most container images do not have.",
            &carrying(&Program { interpreter: true, ..worker() }),
            "not statically linked",
        )?,
        add(
            "worker-is-a-script",
            "The worker is a shell script.",
            &Program::launcher_with(X86_64, b"#!/bin/sh\n"),
            "not acceptable",
        )?,
        add(
            "worker-without-note",
            "The worker does not say what it is.",
            &carrying(&Program { sections: vec![(".data", vec![0])], ..worker() }),
            "not acceptable",
        )?,
        add(
            "worker-damaged",
            "The worker cannot be unpacked.",
            &with_section(b"damaged".to_vec()),
            "cannot be inflated",
        )?,
        add("worker-truncated", "The worker was cut off.", &with_section(zlib(&worker().file())[..40].to_vec()), "")?,
        add(
            "worker-with-more",
            "Something follows the worker.",
            &with_section([zlib(&worker().file()), b"more".to_vec()].concat()),
            "followed by something else",
        )?,
        add(
            "worker-bomb",
            "A worker of 4 KB that unpacks to 4 MB, and says that it is small.",
            &with_section(zlib(&vec![0; 4 << 20])),
            "another size",
        )?,
        add(
            "worker-huge",
            "A worker that says it has a gigabyte.",
            &good().note(|note| note["worker"]["size"] = json!(1 << 30)),
            "is the limit",
        )?,
    ])
}

/// Container images.
fn images(material: &Material) -> anyhow::Result<Vec<Made>> {
    const NAME: &str = "spacelift-launcher";
    const PATH: &str = "container-images/spacelift-launcher.tar";

    let add = |name, description, release: Release, message: &[&str]| {
        let message = [&[PATH], message].concat();
        refused(material, name, description, &release, &message)
    };
    let good = Image::new();
    let listed = |image: &Image| Release::new().image(NAME, &image.tar());
    // The manifest lists the good image; the file is another.
    let replaced = |tar: &[u8]| anyhow::Ok(Release::new().image(NAME, &good.tar())?.file(PATH, tar));
    let files = good.files();
    let changed = |change: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        change(&mut files);
        replaced(&oci::tar(&files))
    };
    let blob = files.keys().find(|name| name.starts_with("blobs/")).expect("a blob").clone();
    let mut corrupted = files.clone();
    corrupted.get_mut(&blob).expect("a blob")[0] ^= 1;
    let entries = oci::entries(&files);
    let with_entry = |entry: Entry| {
        let tar: Vec<u8> =
            entries.iter().chain([&entry]).map(Entry::bytes).chain([END.to_vec()]).collect::<Vec<_>>().concat();
        replaced(&tar)
    };
    let old = |manifest: &mut Manifest| manifest.images[0].digest = format!("sha256:{:064}", 0);
    Ok(vec![
        add(
            "image-label-of-another-version",
            "The label of the launcher's image names another version.",
            listed(&good.clone().label(0, "version", Some("v1.2.2")))?,
            &["label org.opencontainers.image.version is v1.2.2, the manifest says v1.2.3"],
        )?,
        add(
            "image-label-of-another-commit",
            "The label of the launcher's image names another commit.",
            listed(&good.clone().label(0, "revision", Some("main")))?,
            &["label org.opencontainers.image.revision is main"],
        )?,
        add(
            "image-label-missing",
            "The launcher's image does not say which version it is.",
            listed(&good.clone().label(0, "version", None))?,
            &["label org.opencontainers.image.version is (none)"],
        )?,
        add(
            "image-label-on-second-platform",
            "The launcher's image for arm64 is of another version than the one for x86_64.",
            listed(&Image::for_both().label(1, "version", Some("v1.2.2")))?,
            &["label org.opencontainers.image.version is v1.2.2"],
        )?,
        add(
            "image-label-control-characters",
            "The label clears the terminal and paints an answer of its own.",
            listed(&good.clone().label(0, "version", Some("\x1b[2J\x1b[32mverified\u{9b}0m\r")))?,
            &["label org.opencontainers.image.version is \\u{1b}[2J"],
        )?,
        add(
            "image-listed-under-two-names",
            "The launcher's image of another version is listed twice, first under a name that is not looked at.",
            listed(&good.clone().label(0, "version", Some("v1.2.2")))?.manifest(|manifest| {
                let mut other = manifest.images[0].clone();
                other.name = "backend".into();
                manifest.images.insert(0, other);
            }),
            &["label org.opencontainers.image.version is v1.2.2"],
        )?,
        add(
            "image-digest-of-another",
            "The manifest gives another digest than the image in the file has.",
            listed(&good)?.manifest(old),
            &["the image in it is sha256:", "the manifest says sha256:0000"],
        )?,
        add(
            "image-exchanged",
            "Another image of the same version in place of the one that the manifest lists.",
            replaced(&good.clone().label(0, "title", Some("another")).tar())?,
            &["the image in it is sha256:"],
        )?,
        add(
            "image-platforms-of-another",
            "The manifest says that the image is for arm64 as well.",
            listed(&good)?.manifest(|manifest| manifest.images[0].platforms.push("linux/arm64".into())),
            &["the image in it is", "the manifest says", "linux/arm64"],
        )?,
        add(
            "image-blob-corrupted",
            "One bit of a layer is wrong.",
            replaced(&oci::tar(&corrupted))?,
            &["has the SHA-256"],
        )?,
        add(
            "image-blob-missing",
            "A layer is missing.",
            changed(&|files| {
                files.remove(&blob);
            })?,
            &["does not have"],
        )?,
        add(
            "image-blob-extra",
            "A blob that belongs to no image.",
            changed(&|files| {
                let digest = bundle_core::digest::Digest::of(b"hidden");
                files.insert(format!("blobs/sha256/{digest}"), b"hidden".to_vec());
            })?,
            &["belongs to no image"],
        )?,
        add(
            "image-file-extra",
            "A file that is no part of an image layout.",
            changed(&|files| {
                files.insert("evil.sh".into(), b"#!/bin/sh\n".to_vec());
            })?,
            &["belongs to no image"],
        )?,
        add(
            "image-two-descriptions",
            "`docker load` would find another image than everyone else.",
            changed(&|files| {
                files
                    .insert("manifest.json".into(), br#"[{"Config":"index.json","RepoTags":[],"Layers":[]}]"#.to_vec());
            })?,
            &["describe different images"],
        )?,
        add("image-is-empty", "An empty file in place of an image.", replaced(b"")?, &["cut off"])?,
        add("image-is-text", "A text in place of an image.", replaced(&[b'x'; 1024])?, &["not a tar"])?,
        add(
            "image-compressed",
            "The image file is compressed.",
            replaced(&gzip(&good.tar()))?,
            &["compressed with gzip"],
        )?,
        add("image-truncated", "The image file is cut off.", replaced(&good.tar()[..2000])?, &["cut off"])?,
        add(
            "image-with-data-after-end",
            "Something follows the end of the image.",
            replaced(&[good.tar(), vec![b'x'; 512]].concat())?,
            &["something after its end"],
        )?,
        add(
            "image-with-duplicate",
            "A file stands in the image twice.",
            with_entry(entries[0].clone())?,
            &["two entries named"],
        )?,
        add(
            "image-with-link",
            "A symbolic link in the image.",
            with_entry(Entry::link("latest", EntryType::Symlink, "/etc/passwd"))?,
            &["a symbolic link"],
        )?,
        add(
            "image-with-parent-directory",
            "A file in the image leads out of it.",
            with_entry(Entry::file("../../etc/cron.d/x", 0o644, b"x"))?,
            &["`.` or `..`"],
        )?,
        add(
            "image-with-pax-size",
            "A PAX header in the image gives the next file another size.",
            with_entry(Entry::new("pax", EntryType::XHeader, 0o644, b"12 size=512\n"))?,
            &["tar extension"],
        )?,
    ])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Certificates in `keys/`.
fn keys(material: &Material) -> anyhow::Result<Vec<Made>> {
    // A key of its own that is given away on purpose: it is in these cases with its secret, and signs nothing.
    let leaked = Signer::new("LEAKED ON PURPOSE, for a test <do-not-trust@example.invalid>")?;
    let path = format!("keys/{}.asc", leaked.fingerprint());
    let add = |name, description, path: &str, contents: Vec<u8>, message: &[&str]| {
        refused(material, name, description, &Release::new().file(path, contents), message)
    };
    let secret = leaked.secret()?;
    let both = [leaked.certificate()?, material.stranger.certificate()?].concat();
    let mut cases = vec![
        add(
            "key-with-secret",
            "The release holds a secret key. (It is a test key, leaked on purpose.)",
            &path,
            armored(&secret, armor::Kind::SecretKey)?,
            &["PRIVATE KEY", "compromised"],
        )?,
        add(
            "key-with-secret-binary",
            "The release holds a secret key without armor, which no search for text finds.",
            &path,
            secret.clone(),
            &["PRIVATE KEY", "compromised"],
        )?,
        add(
            "key-with-secret-as-certificate",
            "The release holds a secret key in the armor of a public one.",
            &path,
            armored(&secret, armor::Kind::PublicKey)?,
            &["PRIVATE KEY", "compromised"],
        )?,
        add(
            "key-under-another-name",
            "A certificate under the fingerprint of another.",
            &format!("keys/{}.asc", material.vendor.fingerprint()),
            leaked.certificate()?,
            &["not the certificate that its name says"],
        )?,
        add("key-is-none", "A text in place of a certificate.", &path, b"no key\n".to_vec(), &["not a certificate"])?,
        add(
            "key-two-in-one-file",
            "Two certificates in one file.",
            &path,
            both,
            &["not the certificate that its name says"],
        )?,
    ];
    let pem = b"-----BEGIN OPENSSH PRIVATE KEY-----\n";
    cases.push(add(
        "key-with-another-secret",
        "Another kind of secret key, before the certificate.",
        &path,
        [&pem[..], &leaked.certificate()?].concat(),
        &["PRIVATE KEY"],
    )?);
    let unsigned = Release::new().file(&path, armored(&secret, armor::Kind::SecretKey)?);
    cases.push(
        Made::archive(
            material,
            "key-with-secret-development",
            "The same in a development release: it is refused all the same.",
            &Package::new(
                &unsigned.name(),
                pack(&unsigned.clone().manifest(|m| m.development = true).entries(&material.vendor)?),
            )
            .signed_by(&[&material.vendor])?,
        )?
        .arguments(&["--allow-development"])
        .refused(18, &["PRIVATE KEY"]),
    );
    Ok(cases)
}
