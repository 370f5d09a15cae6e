//! Step 7, its second half: every file against the manifest.

use super::{Made, Material};
use crate::elf::{Program, X86_64};
use crate::oci::Image;
use crate::release::Release;

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let launcher = Program::launcher(X86_64).file();
    let image = Image::new().tar();
    // One file of each way in which contents are read: passed through, held in memory, parsed as an image.
    let release = Release::new()
        .file("install.sh", "#!/bin/sh\necho good\n")
        .file("bin/spacelift-launcher", launcher.clone())
        .file(&format!("keys/{}.asc", vendor.fingerprint()), vendor.certificate()?)
        .file("empty", "")
        .image("spacelift-launcher", &image)?;
    let entries = release.entries(vendor)?;
    let mut cases = Vec::new();
    let mut add =
        |name, description, path: &str, change: &dyn Fn(&mut Vec<u8>), contents: &[u8]| -> anyhow::Result<()> {
            let full = format!("{}/{path}", release.root());
            let mut contents = contents.to_vec();
            change(&mut contents);
            let mut entries = entries.clone();
            let entry = entries.iter_mut().find(|entry| entry.path() == full).expect("the file");
            *entry = entry.clone().with_contents(&contents);
            let package = release.package_with(vendor, &entries)?;
            let message = format!("{path}: its SHA-256 is");
            cases.push(Made::archive(material, name, description, &package)?.refused(17, &[&message]));
            Ok(())
        };
    let flip = |contents: &mut Vec<u8>| {
        let middle = contents.len() / 2;
        contents[middle] ^= 1;
    };
    let script = b"#!/bin/sh\necho good\n";
    let evil = |contents: &mut Vec<u8>| *contents = b"#!/bin/sh\necho evil\n".to_vec();
    add("file-changed", "A script was exchanged for one of the same length.", "install.sh", &evil, script)?;
    add("file-changed-version", "`version` says something else than was signed.", "version", &flip, b"v1.2.3\n")?;
    add(
        "file-changed-binary",
        "One bit of a program is wrong; it still looks like a program.",
        "bin/spacelift-launcher",
        &|contents| {
            let last = contents.len() - 1;
            contents[last] ^= 1;
        },
        &launcher,
    )?;
    add(
        "file-changed-key",
        "One bit of a certificate in the release is wrong.",
        &format!("keys/{}.asc", vendor.fingerprint()),
        &flip,
        &vendor.certificate()?,
    )?;
    add(
        "file-changed-image",
        "One bit of an image is wrong.",
        "container-images/spacelift-launcher.tar",
        &flip,
        &image,
    )?;
    add(
        "file-changed-image-end",
        "The last byte of an image is wrong, after everything that an image reader looks at.",
        "container-images/spacelift-launcher.tar",
        &|contents| {
            let last = contents.len() - 1;
            contents[last] = 1;
        },
        &image,
    )?;
    let digest = release.clone().manifest(|manifest| {
        let empty = manifest.files.iter_mut().find(|file| file.path.as_str() == "empty").expect("the file");
        empty.sha256 = bundle_core::digest::Digest::of(b"something");
    });
    cases.push(
        Made::archive(
            material,
            "file-empty-with-other-digest",
            "The manifest gives an empty file the digest of something.",
            &digest.package(vendor)?,
        )?
        .refused(17, &["empty: its SHA-256 is e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]),
    );
    let large =
        Release::new().file("bin/spacelift-launcher", "").manifest(|manifest| manifest.files[0].size = 25 << 20);
    let mut entries = large.entries(vendor)?;
    let last = entries.iter().position(|entry| entry.path().ends_with("/spacelift-launcher")).expect("the program");
    entries[last] = entries[last].clone().with(|header| header.set_size(25 << 20));
    cases.push(
        Made::archive(
            material,
            "file-binary-huge",
            "A program of 25 MB, which would have to be held in memory.",
            &large.package_with(vendor, &entries)?,
        )?
        .refused(17, &["bin/spacelift-launcher", "more than the limit"]),
    );
    Ok(cases)
}
