//! Releases that must be accepted: a verifier that refuses everything is not secure, it is broken.

use std::collections::BTreeMap;

use bundle_core::digest::Digest;
use bundle_core::sums;
use openpgp::types::HashAlgorithm;
use sequoia_openpgp as openpgp;

use super::{Made, Material};
use crate::elf::{AARCH64, Program, X86_64};
use crate::keys::{Algorithm, Binding, DAY, MADE, RawSignature, SIGNED, Signer, certifies, packet, signs};
use crate::oci::Image;
use crate::release::{Package, Release, pack};

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, second, stranger, good } = material;
    let case = |name, description, package: &Package| Made::archive(material, name, description, package);
    let fingerprint = vendor.fingerprint();
    let fingerprint = fingerprint.as_str();
    let mut cases = vec![
        case("good", "The smallest release, signed by the pinned certificate.", good)?.accepted(&[
            "verified",
            fingerprint,
            "self-hosted v1.2.3, sequence 7, channel stable",
        ]),
        case("good-sums-only", "Only the archive against its signed sums.", good)?
            .arguments(&["--sums-only"])
            .accepted(&["its SHA-256 is the signed one"]),
    ];

    let several = [stranger.sign(&good.sums)?, good.signature.clone(), stranger.sign(&good.sums)?].concat();
    cases.push(
        case(
            "good-with-unknown-signature",
            "Someone who is not pinned signed as well. Such a signature proves nothing and harms nothing.",
            &good.clone().with_signature(several),
        )?
        .accepted(&["verified", fingerprint]),
    );
    let later = [RawSignature::FutureVersion.sign(vendor.key(), &good.sums)?, good.signature.clone()].concat();
    cases.push(
        case(
            "good-with-signature-of-unknown-version",
            "A signature of a version that does not exist yet stands before the good one.",
            &good.clone().with_signature(later),
        )?
        .accepted(&["verified", fingerprint]),
    );
    cases.push(
        case(
            "good-with-signature-of-unknown-algorithm",
            "A signature by an algorithm that does not exist yet, by someone who is not pinned.",
            &good.clone().with_signature([unknown_algorithm(), good.signature.clone()].concat()),
        )?
        .accepted(&["verified", fingerprint]),
    );
    cases.push(
        case(
            "good-without-issuer",
            "The pinned signer's signature does not say who made it, which is allowed: every pinned key is tried.",
            &good.clone().with_signature(RawSignature::Anonymous.sign(vendor.key(), &good.sums)?),
        )?
        .accepted(&["verified", fingerprint]),
    );

    let both = Release::new().package_of(&[vendor, second])?;
    cases.push(
        case("good-threshold-two", "Two of two pinned signers signed.", &both)?
            .pinned(&[("vendor.asc", vendor), ("second.asc", second)])?
            .arguments(&["--threshold", "2"])
            .accepted(&["verified", fingerprint, &second.fingerprint()]),
    );
    cases.push(
        case(
            "good-old-and-new-certificate",
            "The certificate of today and the one of tomorrow are pinned; the release is signed with today's.",
            good,
        )?
        .pinned(&[("vendor.asc", vendor), ("second.asc", second)])?
        .accepted(&["verified", fingerprint]),
    );
    let joined = [good.signature.clone(), second.sign(&good.sums)?].concat();
    cases.push(
        case(
            "good-second-signer-joined-later",
            "A second signer added a signature over the sums. It cannot reach the manifest inside the archive, so the \
             unpacked directory does not meet the threshold by itself.",
            &good.clone().with_signature(joined),
        )?
        .pinned(&[("vendor.asc", vendor), ("second.asc", second)])?
        .arguments(&["--threshold", "2"])
        .accepted(&["verified", fingerprint, &second.fingerprint()])
        .unpacked_exit(17),
    );
    let twice = vec![("vendor.asc", vendor.certificate()?), ("vendor.asc", vendor.certificate()?)];
    cases.push(
        case("good-certificate-named-twice", "The same certificate is pinned twice; it counts once.", good)?
            .pinned_files(twice)
            .accepted(&["verified", fingerprint]),
    );

    let lines = [
        sums::line(Digest::of(b"another file"), "self-hosted-v1.2.2.tar.gz"),
        String::from_utf8(good.sums.clone())?,
        sums::line(Digest::of(b"a third"), "self-hosted-v1.2.3.tar.gz.old"),
    ];
    cases.push(
        case(
            "good-several-sums-lines",
            "The sums name other files as well, before and after, one of which contains the archive's name.",
            &good.clone().with_sums(vendor, lines.concat())?,
        )?
        .accepted(&["verified"]),
    );
    cases.push(
        case(
            "good-sums-and-signature-elsewhere",
            "The sums and their signature were downloaded to other names.",
            good,
        )?
        .file("sums", good.sums.clone())
        .file("signature", good.signature.clone())
        .without_file("self-hosted-v1.2.3.tar.gz_SHA256SUMS")
        .without_file("self-hosted-v1.2.3.tar.gz_SHA256SUMS.sig")
        .arguments(&["--sums", "sums", "--signature", "signature"])
        .accepted(&["verified"]),
    );

    let mut add = |name, description, release: Release| -> anyhow::Result<()> {
        cases.push(Made::archive(material, name, description, &release.package(vendor)?)?.accepted(&["verified"]));
        Ok(())
    };
    add("good-next-version", "The version after the one that most cases are about.", binaries_of("v1.2.4", 8))?;
    add(
        "good-rebuilt",
        "Another build of the same version, which may not take the place of the first one.",
        binaries().file("config.json", "{\"rebuilt\": true}\n"),
    )?;
    cases.extend(signers(material)?);
    cases.extend(contents(material)?);
    Ok(cases)
}

/// Certificates that are unlike the vendor's and good nevertheless.
fn signers(material: &Material) -> anyhow::Result<Vec<Made>> {
    let mut cases = Vec::new();
    let mut add = |name, file, description, signer: Signer| -> anyhow::Result<()> {
        let package = Release::new().package(&signer)?;
        let case = Made::archive(material, name, description, &package)?;
        cases.push(case.pinned(&[(file, &signer)])?.accepted(&["verified", &signer.fingerprint()]));
        Ok(())
    };
    let everything = Binding::new(certifies().set_signing());
    let alone = Signer::primary("Vendor", Algorithm::Ed25519, MADE, std::slice::from_ref(&everything))?;
    add("good-primary-key-signs", "signs-itself.asc", "The primary key itself signs; there are no subkeys.", alone)?;
    let rsa = Signer::primary("Vendor", Algorithm::Rsa(2048), MADE, &[everything])?;
    add("good-rsa-2048", "rsa-2048.asc", "An RSA key of 2048 bits.", rsa)?;
    let short = Binding { valid_for: Some(60 * DAY), ..Binding::new(signs()) };
    let rotated = Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[Binding::new(certifies())])?
        .subkey(MADE, &[short])?
        .subkey(MADE + DAY, &[Binding { at: MADE + DAY, ..Binding::new(signs()) }])?;
    add("good-rotated-subkey", "rotated.asc", "An older signing subkey has expired; the newer one signed.", rotated)?;
    let extended = |at, valid_for| Binding { at, valid_for, ..Binding::new(signs()) };
    let renewed = Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[Binding::new(certifies())])?
        .subkey(MADE, &[extended(MADE, Some(200 * DAY)), extended(SIGNED + 30 * DAY, None)])?;
    add(
        "good-renewed-subkey",
        "renewed.asc",
        "The signing subkey would have expired, but was renewed in time.",
        renewed,
    )?;
    let sha256 = |flags| Binding { hash: HashAlgorithm::SHA256, ..Binding::new(flags) };
    let older = Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[sha256(certifies())])?
        .subkey(MADE, &[sha256(signs())])?;
    add("good-sha256-certificate", "sha256.asc", "The certificate's own signatures are made with SHA-256.", older)?;
    Ok(cases)
}

/// Releases with everything in them that a release can have.
fn contents(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let add = |name, description, release: &Release| {
        anyhow::Ok(Made::archive(material, name, description, &release.package(vendor)?)?.accepted(&["verified"]))
    };
    let key = |release: Release, signer: &Signer| {
        anyhow::Ok(release.file(&format!("keys/{}.asc", signer.fingerprint()), signer.certificate()?))
    };
    let component = "c".repeat(95);
    let shapes = Release::new()
        .file("empty", "")
        .file("exactly-one-block", vec![b'x'; 512])
        .file("one-block-and-a-byte", vec![b'x'; 513])
        .file("a-b/c", "sorts before a/")
        .file("a/b/c", "")
        .file("a/b.sh", "#!/bin/sh\n")
        .file(&format!("deep/{component}/{}", "f".repeat(49)), "the longest path there can be")
        .file("licenses/MIT", "licence\n")
        .file("config.json", "{}\n");
    let key_of_both = key(key(Release::new(), vendor)?, &material.stranger)?;
    // Alphabetical, unlike the manifest's own order.
    let fields: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&Release::new().manifest_bytes())?;
    let reordered = serde_json::to_vec(&fields)?;
    let signature = vendor.sign(&reordered)?;
    let entries = Release::new().entries_with(&reordered, &signature);
    Ok(vec![
        add("good-shapes", "Empty files, whole blocks, nested directories, the longest path.", &shapes)?,
        add(
            "good-binaries",
            "Launchers with workers inside, and the bundle program, for both architectures.",
            &binaries(),
        )?,
        add(
            "good-image",
            "The launcher's image for both architectures, and one that the vendor added.",
            &Release::new()
                .image("spacelift-launcher", &Image::for_both().tar())?
                .image("backend", &Image::new().label(0, "version", Some("17")).tar())?,
        )?,
        add(
            "good-keys",
            "The release holds the signer's certificate and another, which is not trusted for being there.",
            &key_of_both,
        )?,
        Made::archive(
            material,
            "good-manifest-in-another-order",
            "The fields of manifest.json stand in another order and without line breaks: it is JSON, and it is signed.",
            &Package::new(&Release::new().name(), pack(&entries)).signed_by(&[vendor])?,
        )?
        .accepted(&["verified"]),
    ])
}

/// A release with a complete set of programs for both architectures.
pub(super) fn binaries() -> Release {
    Release::new()
        .file("bin/spacelift-launcher", Program::launcher(X86_64).file())
        .file("bin/spacelift-launcher-aarch64", Program::launcher(AARCH64).file())
        .file("bin/spacelift-bundle", Program::new(X86_64, "spacelift-bundle").file())
        .file("bin/spacelift-bundle-aarch64", Program::new(AARCH64, "spacelift-bundle").file())
        .manifest(|manifest| manifest.targets = vec!["aarch64".into(), "x86_64".into()])
}

/// As [`binaries`], of another version.
fn binaries_of(version: &str, sequence: u64) -> Release {
    let of = |machine, name| Program::new(machine, name).note(|note| note["version"] = version.into()).file();
    let launcher = |machine| {
        let launcher = Program::launcher_with(machine, &of(machine, "spacelift-worker"));
        launcher
            .note(|note| {
                note["version"] = version.into();
                note["worker"]["version"] = version.into();
            })
            .file()
    };
    Release::of_version(version)
        .file("bin/spacelift-launcher", launcher(X86_64))
        .file("bin/spacelift-launcher-aarch64", launcher(AARCH64))
        .file("bin/spacelift-bundle", of(X86_64, "spacelift-bundle"))
        .file("bin/spacelift-bundle-aarch64", of(AARCH64, "spacelift-bundle"))
        .manifest(|manifest| {
            manifest.sequence = sequence;
            manifest.targets = vec!["aarch64".into(), "x86_64".into()];
        })
}

/// A version 4 signature by public key algorithm 99, which nobody has.
fn unknown_algorithm() -> Vec<u8> {
    let issuer = [9, 16, 1, 2, 3, 4, 5, 6, 7, 8];
    let time = [&[5, 2][..], &(SIGNED as u32).to_be_bytes()].concat();
    let body = [&[4, 0, 99, 10, 0, 6][..], &time, &[0, 10], &issuer, &[0, 0], &[0, 8, 0xaa]].concat();
    packet(2, &body)
}
