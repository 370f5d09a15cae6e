//! Step 9: releases that are all in order, but not the ones that should be installed now.

use bundle_core::manifest::Manifest;

use super::{Made, Material};
use crate::release::Release;

const DEVELOPMENT: &str = "--allow-development";
const ROLLBACK: &str = "--allow-rollback";
const SKIPPING: &str = "--allow-skipping-versions";

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let development = Release::new().manifest(|manifest| manifest.development = true);
    let development = development.package(vendor)?;
    let case = |name, description| Made::archive(material, name, description, &development);
    let mut cases = vec![
        case("development", "A release that no release key signed.")?
            .refused(19, &["development release", DEVELOPMENT]),
        case("development-accepted", "The same, asked for by name.")?
            .arguments(&[DEVELOPMENT])
            .accepted(&["verified", "DEVELOPMENT RELEASE"]),
    ];

    // The release that is offered is v1.2.3 with sequence 7 throughout.
    let add = |name, description, installed: &Release, offered: &Release, flags: &[&str]| -> anyhow::Result<Made> {
        let arguments = [&["--installed", "installed.json"], flags].concat();
        Ok(Made::archive(material, name, description, &offered.package(vendor)?)?
            .file("installed.json", installed.manifest_bytes())
            .arguments(&arguments))
    };
    let version = |version: &str, sequence| {
        Release::of_version(version).manifest(|manifest: &mut Manifest| manifest.sequence = sequence)
    };
    let offered = Release::new();
    let requires = |version: &str| {
        let version = version.parse().expect("a version");
        Release::new().manifest(|manifest: &mut Manifest| manifest.minimum_upgrade_from = Some(version))
    };
    let product = Release::new().manifest(|manifest| manifest.product = "another-product".into());
    let offered_development = Release::new().manifest(|manifest| manifest.development = true);
    cases.extend([
        add("upgrade", "The next release.", &version("v1.2.2", 6), &offered, &[])?.accepted(&["verified"]),
        add("upgrade-to-the-same", "The release that is installed.", &offered, &offered, &[])?.accepted(&["verified"]),
        add(
            "rollback-by-sequence",
            "A release of lower sequence than the installed one.",
            &version("v1.2.2", 8),
            &offered,
            &[],
        )?
        .refused(19, &["v1.2.3 (sequence 7) is older than the installed v1.2.2 (sequence 8)", ROLLBACK]),
        add(
            "rollback-by-sequence-accepted",
            "The same, asked for by name.",
            &version("v1.2.2", 8),
            &offered,
            &[ROLLBACK],
        )?
        .accepted(&["verified"]),
        add(
            "rollback-by-version",
            "A release of lower version than the installed one.",
            &version("v1.10.0", 6),
            &offered,
            &[],
        )?
        .refused(19, &["v1.2.3 (sequence 7) is older than the installed v1.10.0 (sequence 6)", ROLLBACK]),
        add(
            "rollback-by-version-accepted",
            "The same, asked for by name.",
            &version("v1.10.0", 6),
            &offered,
            &[ROLLBACK],
        )?
        .accepted(&["verified"]),
        add(
            "rollback-to-candidate",
            "A release candidate is offered over the release itself.",
            &version("v1.2.3", 7),
            &version("v1.2.3-rc.1", 8),
            &[],
        )?
        .refused(19, &["v1.2.3-rc.1 (sequence 8) is older", ROLLBACK]),
        add(
            "rollback-by-far",
            "The largest sequence that there is, installed.",
            &version("v1.2.2", u64::MAX),
            &offered,
            &[],
        )?
        .refused(19, &["18446744073709551615"]),
        add(
            "rollback-with-other-flags",
            "The flags for other risks do not cover a rollback.",
            &version("v1.2.4", 8),
            &offered,
            &[DEVELOPMENT, SKIPPING],
        )?
        .refused(19, &["is older than", ROLLBACK]),
        add(
            "same-sequence-other-version",
            "Two versions with one sequence: one of them was released in error.",
            &version("v1.2.2", 7),
            &offered,
            &[],
        )?
        .refused(19, &["both have sequence 7"]),
        add(
            "same-sequence-other-version-with-flags",
            "No flag accepts two versions with one sequence.",
            &version("v1.2.2", 7),
            &offered,
            &[DEVELOPMENT, ROLLBACK, SKIPPING],
        )?
        .refused(19, &["both have sequence 7"]),
        add("another-product", "Another product of the same vendor.", &product, &offered, &[])?
            .refused(19, &["different products"]),
        add(
            "another-product-with-flags",
            "No flag accepts another product.",
            &product,
            &offered,
            &[DEVELOPMENT, ROLLBACK, SKIPPING],
        )?
        .refused(19, &["different products"]),
        add(
            "skipped-version",
            "An upgrade that leaves out a required version.",
            &version("v1.2.1", 5),
            &requires("v1.2.2"),
            &[],
        )?
        .refused(19, &["upgrade to v1.2.2 first", SKIPPING]),
        add(
            "skipped-version-accepted",
            "The same, asked for by name.",
            &version("v1.2.1", 5),
            &requires("v1.2.2"),
            &[SKIPPING],
        )?
        .accepted(&["verified"]),
        add(
            "skipped-version-with-other-flags",
            "The flags for other risks do not cover a skipped version.",
            &version("v1.2.1", 5),
            &requires("v1.2.2"),
            &[DEVELOPMENT, ROLLBACK],
        )?
        .refused(19, &["upgrade to v1.2.2 first", SKIPPING]),
        add(
            "required-version-installed",
            "The required version is installed.",
            &version("v1.2.2", 6),
            &requires("v1.2.2"),
            &[],
        )?
        .accepted(&["verified"]),
        add(
            "development-over-release",
            "A development release over an installed one; the other flags do not cover it.",
            &version("v1.2.2", 6),
            &offered_development,
            &[ROLLBACK, SKIPPING],
        )?
        .refused(19, &["development release", DEVELOPMENT]),
        add("installed-manifest-bad", "The installed manifest is none.", &offered, &offered, &[])?
            .file("installed.json", "{}")
            .refused(64, &["--installed"]),
    ]);
    cases.push(
        Made::archive(
            material,
            "rollback-flag-alone",
            "A flag that accepts a rollback, without saying from what.",
            &offered.package(vendor)?,
        )?
        .arguments(&[ROLLBACK])
        .refused(64, &["--installed"]),
    );
    Ok(cases)
}
