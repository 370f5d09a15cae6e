//! The signatures over the launchers' sums, which are all that a worker host sees of a release.

use super::good::binaries;
use super::{Made, Material};
use crate::release::Entry;

const OF_X86_64: &str = "spacelift-launcher-x86_64_SHA256SUMS.sig";
const OF_AARCH64: &str = "spacelift-launcher-aarch64_SHA256SUMS.sig";

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, second, stranger, .. } = material;
    let release = binaries();
    let inside = |name: &str| format!("{}/{name}", release.root());
    let entries = release.entries(vendor)?;
    let at = |name: &str| entries.iter().position(|entry| entry.path() == inside(name)).expect("an entry");
    let (of_x86_64, of_aarch64) = (at(OF_X86_64), at(OF_AARCH64));
    let add = |name, description, change: &dyn Fn(&mut Vec<Entry>), exit, message: &[&str]| {
        let mut entries = entries.clone();
        change(&mut entries);
        let package = release.package_with(vendor, &entries)?;
        anyhow::Ok(Made::archive(material, name, description, &package)?.refused(exit, message))
    };
    let exchange = |signature: &[u8]| {
        let entry = Entry::file(&inside(OF_X86_64), 0o644, signature);
        move |entries: &mut Vec<Entry>| entries[of_x86_64] = entry.clone()
    };
    let unpacked = release.unpacked(&[vendor])?;
    let signature_of = |name: &str| {
        let found = unpacked.iter().find(|(path, _)| *path == inside(name));
        found.map(|(_, contents)| contents.clone()).expect("a signature")
    };
    let by_stranger = release.unpacked(&[stranger])?;
    let by_stranger = by_stranger.iter().find(|(path, _)| *path == inside(OF_X86_64)).expect("a signature");
    let directory = |name, description| Made::directory(material, name, description, &release);
    let both = [("vendor.asc", vendor), ("second.asc", second)];
    Ok(vec![
        add(
            "launcher-signature-missing",
            "Nobody signed the sums of one launcher.",
            &|entries| drop(entries.remove(of_aarch64)),
            16,
            &["spacelift-launcher-aarch64_SHA256SUMS.sig is missing from the archive"],
        )?,
        add(
            "launcher-signatures-out-of-order",
            "The signatures over the two launchers stand in another order.",
            &|entries| entries.swap(of_x86_64, of_aarch64),
            16,
            &["spacelift-launcher-x86_64_SHA256SUMS.sig is missing from the archive"],
        )?,
        add(
            "launcher-signature-by-stranger",
            "Someone who is not pinned signed the sums of a launcher, in a release that the vendor signed.",
            &exchange(&by_stranger.1),
            17,
            &[OF_X86_64, "0 of the required 1"],
        )?,
        add(
            "launcher-signature-of-another",
            "The signature over the sums of one launcher stands in place of the other's.",
            &exchange(&signature_of(OF_AARCH64)),
            17,
            &[OF_X86_64, "BAD signature"],
        )?,
        add("launcher-signature-empty", "A signature is empty.", &exchange(b""), 17, &[OF_X86_64, "it is empty"])?,
        directory("directory-launchers", "An unpacked release with launchers, whose sums are signed.")?
            .accepted(&["verified"]),
        directory("directory-launcher-signature-missing", "The signature over a launcher's sums was removed.")?
            .without_file(&inside(OF_X86_64))
            .refused(17, &[OF_X86_64, "it is missing, so this is not the directory of a signed release"]),
        directory("directory-launcher-signature-changed", "The signature over a launcher's sums was exchanged.")?
            .file(&inside(OF_X86_64), signature_of(OF_AARCH64))
            .refused(17, &[OF_X86_64, "BAD signature"]),
        directory("directory-launcher-threshold-two", "Two signed the manifest, and one the sums of a launcher.")?
            .file(&inside("manifest.json.sig"), {
                let manifest = release.manifest_bytes();
                [vendor.sign(&manifest)?, second.sign(&manifest)?].concat()
            })
            .pinned(&both)?
            .arguments(&["--threshold", "2"])
            .refused(17, &[OF_X86_64, "1 of the required 2"]),
    ])
}
