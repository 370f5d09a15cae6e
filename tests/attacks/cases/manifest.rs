//! Step 7, its first half: the manifest, its signature and its rules. The archive around it is validly signed throughout.

use openpgp::armor;
use openpgp::types::HashAlgorithm;
use sequoia_openpgp as openpgp;

use super::{Made, Material};
use crate::keys::{Binding, DAY, FAR_FUTURE, MADE, Signer, armored, signs, time};
use crate::oci::Image;
use crate::release::{Entry, Package, Release, pack};

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let mut cases = signatures(material)?;
    cases.extend(rules(material)?);
    Ok(cases)
}

/// Who signed the manifest.
fn signatures(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, second, stranger, .. } = material;
    let release = Release::new();
    let manifest = release.manifest_bytes();
    let mut cases = Vec::new();
    let mut add = |name, description, signature: Vec<u8>, message: &[&str]| -> anyhow::Result<()> {
        let package = Package::new(&release.name(), pack(&release.entries_with(&manifest, &signature)));
        let message = [&["manifest.json.sig"], message].concat();
        let package = package.signed_by(&[vendor])?;
        cases.push(Made::archive(material, name, description, &package)?.refused(17, &message));
        Ok(())
    };
    add("manifest-signature-empty", "The manifest's signature is an empty file.", Vec::new(), &["it is empty"])?;
    add(
        "manifest-signature-armored",
        "The manifest's signature is armored.",
        armored(&vendor.sign(&manifest)?, armor::Kind::Signature)?,
        &["armored text"],
    )?;
    add(
        "manifest-signature-by-unpinned",
        "The manifest is signed by someone who is not pinned.",
        stranger.sign(&manifest)?,
        &["0 of the required 1", &stranger.key().public().fingerprint().to_hex()],
    )?;
    add(
        "manifest-signature-by-unpinned-second",
        "The manifest is signed by a signer of the vendor's whose certificate is not pinned.",
        second.sign(&manifest)?,
        &["0 of the required 1", &second.key().public().fingerprint().to_hex()],
    )?;
    add(
        "manifest-signature-of-another",
        "The manifest's signature belongs to another manifest.",
        vendor.sign(&Release::new().file("extra", "").manifest_bytes())?,
        &["BAD signature", &vendor.fingerprint()],
    )?;
    add(
        "manifest-signature-sha1",
        "The manifest is signed with SHA-1.",
        vendor.sign_with(&manifest, |builder| Ok(builder.set_hash_algo(HashAlgorithm::SHA1)))?,
        &["SHA1", "too weak"],
    )?;
    add(
        "manifest-signature-in-the-future",
        "The manifest was signed in 2099. (After that year this case proves nothing.)",
        vendor.sign_with(&manifest, |builder| builder.set_signature_creation_time(time(FAR_FUTURE)))?,
        &["not made while it could be"],
    )?;
    let rotated = Signer::new("Vendor")?;
    let signature = rotated.sign(&manifest)?;
    let archive = pack(&release.entries_with(&manifest, &signature));
    let later = rotated
        .subkey_revoked(0, MADE + DAY, openpgp::types::ReasonForRevocation::KeySuperseded)?
        .subkey(MADE + DAY, &[Binding { at: MADE + DAY, ..Binding::new(signs()) }])?;
    let package = Package::new(&release.name(), archive).signed_by(&[&later])?;
    cases.push(
        Made::archive(
            material,
            "manifest-signature-by-revoked-subkey",
            "The sums are signed with the new subkey, the manifest still with the revoked one.",
            &package,
        )?
        .pinned(&[("replaced-subkey.asc", &later)])?
        .refused(17, &["manifest.json.sig", "is revoked"]),
    );
    Ok(cases)
}

/// What a manifest may say.
fn rules(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let release = Release::new().file("bin-is-no-prefix", "").file("install.sh", "#!/bin/sh\n");
    let good = String::from_utf8(release.manifest_bytes())?;
    let mut cases = Vec::new();
    let mut add = |name, description, manifest: &[u8], message: &[&str]| -> anyhow::Result<()> {
        let signature = vendor.sign(manifest)?;
        let package = Package::new(&release.name(), pack(&release.entries_with(manifest, &signature)));
        let package = package.signed_by(&[vendor])?;
        cases.push(Made::archive(material, name, description, &package)?.refused(17, message));
        Ok(())
    };
    // Exchanges one piece of the text, which must be there.
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} is not in the manifest");
        good.replacen(from, to, 1).into_bytes()
    };
    let path = |path: &str| with("\"path\": \"bin-is-no-prefix\"", &format!("\"path\": {path}"));
    let json = "manifest.json cannot be read";

    add("manifest-empty", "The manifest is an empty file.", b"", &[json])?;
    add("manifest-not-json", "The manifest is no JSON.", b"product: self-hosted\n", &[json])?;
    add("manifest-truncated", "The manifest ends too early.", &good.as_bytes()[..good.len() / 2], &[json])?;
    add(
        "manifest-not-utf8",
        "The manifest is not UTF-8.",
        &[b"{\"format\": 1, \"product\": \"\xff\"}"[..].to_vec()].concat(),
        &[json],
    )?;
    add(
        "manifest-byte-order-mark",
        "The manifest begins with the mark that some editors leave.",
        format!("\u{feff}{good}").as_bytes(),
        &[json],
    )?;
    add("manifest-two-documents", "A second JSON document follows.", format!("{good}{{}}").as_bytes(), &[json])?;
    add("manifest-nested", "The manifest is nested ten thousand levels deep.", "[".repeat(10_000).as_bytes(), &[json])?;
    add(
        "manifest-nested-field",
        "A field of the manifest is nested ten thousand levels deep.",
        &with("{", &format!("{{ \"x\": {},", "[".repeat(10_000))),
        &[json],
    )?;
    add(
        "manifest-unknown-field",
        "A field that this program does not know.",
        &with("{", "{ \"surprise\": 1,"),
        &[json, "surprise"],
    )?;
    add(
        "manifest-unknown-field-of-file",
        "A field of a file that this program does not know.",
        &with("\"path\": \"bin-is-no-prefix\"", "\"link\": \"/etc/passwd\", \"path\": \"bin-is-no-prefix\""),
        &[json, "link"],
    )?;
    add(
        "manifest-control-characters",
        "The name of an unknown field clears the terminal and paints an answer of its own.",
        &with("{", r#"{ "\u001b[2J\u001b[32mverified\u009b0m\r": 1,"#),
        &[json, "\\u{1b}[2J"],
    )?;
    add(
        "manifest-same-field-twice",
        "A field stands twice; which one counts depends on the reader.",
        &with("\"sequence\": 7", "\"sequence\": 7, \"sequence\": 8"),
        &[json, "duplicate"],
    )?;
    add(
        "manifest-format-2",
        "The manifest is of a later format.",
        &with("\"format\": 1", "\"format\": 2"),
        &["has format 2", "use the spacelift-bundle of that release"],
    )?;
    add(
        "manifest-format-2-with-new-field",
        "The manifest is of a later format, with a field that this one does not have.",
        &with("\"format\": 1", "\"format\": 2, \"later\": {}"),
        &["has format 2"],
    )?;
    add(
        "manifest-format-missing",
        "The manifest does not say its format.",
        &with("\"format\": 1,", ""),
        &[json, "format"],
    )?;
    add("manifest-format-text", "The format is a text.", &with("\"format\": 1", "\"format\": \"1\""), &[json])?;
    add(
        "manifest-field-missing",
        "The manifest does not say its sequence.",
        &with("\"sequence\": 7,", ""),
        &[json, "sequence"],
    )?;
    add(
        "manifest-sequence-negative",
        "The sequence is negative.",
        &with("\"sequence\": 7", "\"sequence\": -7"),
        &[json],
    )?;
    add("manifest-sequence-float", "The sequence is 1e99.", &with("\"sequence\": 7", "\"sequence\": 1e99"), &[json])?;
    add("manifest-version-bad", "The version lacks its `v`.", &with("\"v1.2.3\"", "\"1.2.3\""), &[json, "1.2.3"])?;
    add(
        "manifest-version-traversal",
        "The version leads out of a directory.",
        &with("\"v1.2.3\"", "\"v1.2.3-../../x\""),
        &[json],
    )?;
    add(
        "manifest-product-traversal",
        "The product leads out of a directory.",
        &with("\"self-hosted\"", "\"../x\""),
        &["product and channel"],
    )?;
    add(
        "manifest-product-empty",
        "The product has no name.",
        &with("\"self-hosted\"", "\"\""),
        &["product and channel"],
    )?;
    add(
        "manifest-channel-bad",
        "The channel holds spaces.",
        &with("\"stable\"", "\"the stable one\""),
        &["product and channel"],
    )?;
    add("manifest-commit-bad", "The commit is a name.", &with(crate::release::COMMIT, "main"), &["commit is neither"])?;
    add(
        "manifest-source-control-characters",
        "The place of the sources clears the terminal and paints an answer of its own.",
        &with("https://example.com/source", r"\u001b[2J\u001b[32mverified\u009b0m\r"),
        &["\\u{1b}[2J", "is not plain text"],
    )?;
    add(
        "manifest-target-control-characters",
        "The name of an architecture clears the terminal.",
        &with("\"targets\": []", r#""targets": ["\u001b[2J"]"#),
        &["\\u{1b}[2J", "is not plain text"],
    )?;
    let with_image = Release::new().image("backend", &Image::new().tar())?;
    let plain = ["\\u{1b}[2J", "is not plain text"];
    add(
        "manifest-image-name-control-characters",
        "The name of an image clears the terminal.",
        &with_image.clone().manifest(|manifest| manifest.images[0].name = "\x1b[2J".into()).manifest_bytes(),
        &plain,
    )?;
    add(
        "manifest-image-platform-control-characters",
        "A platform of an image clears the terminal.",
        &with_image.manifest(|manifest| manifest.images[0].platforms.push("\x1b[2J\u{9b}0m".into())).manifest_bytes(),
        &plain,
    )?;

    add(
        "manifest-path-traversal",
        "A file leads out of the release directory.",
        &path("\"../../etc/cron.d/x\""),
        &[json, "`.` or `..`"],
    )?;
    add(
        "manifest-path-traversal-inside",
        "A file leads out after entering a directory.",
        &path("\"a/../../x\""),
        &[json],
    )?;
    add("manifest-path-absolute", "A file has an absolute path.", &path("\"/etc/cron.d/x\""), &[json, "absolute"])?;
    add("manifest-path-dot", "A path with a `.` in it.", &path("\"./version\""), &[json])?;
    add("manifest-path-double-slash", "A path with an empty component.", &path("\"a//b\""), &[json])?;
    add("manifest-path-directory", "A path that ends in a slash.", &path("\"a/\""), &[json])?;
    add("manifest-path-empty", "An empty path.", &path("\"\""), &[json])?;
    add("manifest-path-backslash", "A path for Windows.", &path(r#""a\\..\\b""#), &[json])?;
    add(
        "manifest-path-nul",
        "A path with a NUL byte, where a program in C stops reading.",
        &path(r#""a\u0000b""#),
        &[json],
    )?;
    add("manifest-path-newline", "A path with a line end.", &path(r#""a\nb""#), &[json])?;
    add(
        "manifest-path-control-characters",
        "A path that clears the terminal.",
        &path(r#""\u001b[2J\u009b0m""#),
        &[json],
    )?;
    add("manifest-path-look-alike", "A path with a Cyrillic letter.", &path("\"\u{441}onfig.json\""), &[json])?;
    add("manifest-path-right-to-left", "A path that is displayed backwards.", &path("\"a\u{202e}hs.b\""), &[json])?;
    add(
        "manifest-path-too-long",
        "A path of 151 characters.",
        &path(&format!("\"{}\"", "x/".repeat(75) + "y")),
        &[json],
    )?;
    add(
        "manifest-path-duplicate",
        "A file stands twice.",
        &with("\"path\": \"install.sh\"", "\"path\": \"bin-is-no-prefix\""),
        &["bin-is-no-prefix stands twice"],
    )?;
    add("manifest-path-unsorted", "Files are not sorted.", &path("\"zzz\""), &["not sorted"])?;
    add(
        "manifest-lists-itself",
        "The manifest lists itself.",
        &with("\"path\": \"install.sh\"", "\"path\": \"manifest.json\""),
        &["lists manifest.json itself"],
    )?;
    add(
        "manifest-lists-its-signature",
        "The manifest lists its own signature.",
        &with("\"path\": \"install.sh\"", "\"path\": \"manifest.json.sig\""),
        &["lists manifest.json.sig itself"],
    )?;
    add(
        "manifest-lists-a-launcher-signature",
        "The manifest lists the signature over a launcher's sums.",
        &with("\"path\": \"install.sh\"", "\"path\": \"spacelift-launcher-aarch64_SHA256SUMS.sig\""),
        &["lists spacelift-launcher-aarch64_SHA256SUMS.sig itself"],
    )?;
    add(
        "manifest-file-and-directory",
        "A path is a file and a directory.",
        &with("\"path\": \"install.sh\"", "\"path\": \"bin-is-no-prefix/x\""),
        &["kind or mode"],
    )?;
    let both = Release::new().file("a", "").file("a/b", "").manifest_bytes();
    add("manifest-file-above-file", "A file is the directory of another.", &both, &["both a file and a directory"])?;
    let below = Release::new().file("manifest.json/x", "").manifest_bytes();
    add("manifest-as-directory", "A file below `manifest.json`.", &below, &["used as a directory"])?;
    add("manifest-mode-setuid", "A file with a set-user-id bit.", &with("\"0755\"", "\"4755\""), &[json, "4755"])?;
    add(
        "manifest-mode-wrong",
        "A script that is not executable.",
        &with("\"0755\"", "\"0644\""),
        &["kind or mode of install.sh"],
    )?;
    add(
        "manifest-kind-wrong",
        "A script that is called a licence, which nobody looks into.",
        &with("\"script\"", "\"license\""),
        &["kind or mode of install.sh"],
    )?;
    add("manifest-kind-unknown", "A file of a kind that does not exist.", &with("\"script\"", "\"symlink\""), &[json])?;
    add(
        "manifest-digest-upper-case",
        "A digest in upper-case letters.",
        &{
            let digest = bundle_core::digest::Digest::of(b"#!/bin/sh\n").to_string();
            with(&digest, &digest.to_uppercase())
        },
        &[json],
    )?;
    add("manifest-size-negative", "A file of a negative size.", &with("\"size\": 10", "\"size\": -10"), &[json])?;
    add(
        "manifest-size-huge",
        "A file of nine gigabytes.",
        &with("\"size\": 10", "\"size\": 9000000000"),
        &["more than the limit"],
    )?;
    let nine =
        (0..9).fold(Release::new(), |release, index| release.file(&format!("f{index}"), "")).manifest(|manifest| {
            for file in &mut manifest.files {
                file.size = 7_900_000_000;
            }
        });
    add("manifest-total-huge", "Files of 79 gigabytes together.", &nine.manifest_bytes(), &["bytes together"])?;
    let many = (0..4_001).map(|index| format!("{index:04}")).fold(Vec::new(), |mut files, name| {
        files.push(format!(r#"{{"path":"{name}","size":0,"sha256":"{:064}","mode":"0644","kind":"file"}}"#, 0));
        files
    });
    let start = good.find("\"files\": [").expect("the files") + "\"files\": [".len();
    let rest = good.find("\"images\"").expect("the images");
    add(
        "manifest-too-many-files",
        "Four thousand and one files.",
        format!("{}{}],{}", &good[..start], many.join(","), &good[rest..]).as_bytes(),
        &["4001 files"],
    )?;
    add(
        "manifest-image-not-listed",
        "An image that the list of images does not have.",
        &{ Release::new().file("container-images/x.tar", "x").manifest_bytes() },
        &["list of images"],
    )?;
    add(
        "manifest-image-missing",
        "The list of images has one that is no file.",
        &with(
            "\"images\": []",
            r#""images": [{"name":"x","path":"container-images/x.tar","digest":"sha256:0","platforms":[]}]"#,
        ),
        &["list of images"],
    )?;
    add(
        "manifest-path-component-too-long",
        "A component of a path has 96 characters, more than a tar header holds after its slash.",
        &path(&format!("\"{}\"", "x".repeat(96))),
        &[json, "longer than 95"],
    )?;
    let image = Image::new().tar();
    let twice = Release::new().image("backend", &image)?.manifest(|manifest| {
        manifest.images.push(manifest.images[0].clone());
    });
    add("manifest-image-twice", "An image stands twice.", &twice.manifest_bytes(), &["images are not sorted"])?;
    let two = Release::new().image("a", &image)?.image("b", &image)?;
    add(
        "manifest-images-unsorted",
        "Images are not sorted.",
        &two.manifest(|manifest| manifest.images.reverse()).manifest_bytes(),
        &["images are not sorted"],
    )?;
    cases.push(long_path(material)?);
    Ok(cases)
}

/// Product, version and path are each as long as they may be, and no tar header holds them together.
fn long_path(material: &Material) -> anyhow::Result<Made> {
    let version = format!("v1.2.3-{}", "r".repeat(57));
    let release = Release::of_version(&version).manifest(|manifest| manifest.product = "p".repeat(32));
    let directory = "a".repeat(95);
    let manifest = release.clone().file(&format!("{directory}/{}", "b".repeat(54)), "").manifest_bytes();
    let mut entries = release.entries_with(&manifest, &material.vendor.sign(&manifest)?);
    entries.insert(3, Entry::directory(&format!("{}/{directory}/", release.root())));
    let package = release.package_with(&material.vendor, &entries)?;
    let description = "A path fits no tar header together with the longest product and version.";
    Ok(Made::archive(material, "manifest-path-does-not-fit", description, &package)?
        .refused(17, &["is too long a path"]))
}
