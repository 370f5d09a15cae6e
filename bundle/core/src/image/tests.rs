//! Whole image files: what is made is read back, what tools make is accepted, what attackers make is not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};

use serde_json::{Value, json};

use super::document::{CONFIG, INDEX, LAYER, MANIFEST};
use super::tarball::{Attributes, Writer};
use super::{Architecture, Error, ImageSummary, Kind, LauncherImage, normalize, summarize};
use crate::digest::Digest;
use crate::source;

const PLAIN: Attributes = Attributes { mode: 0o644, owner: 0, modified: 0 };

/// Enough of an ELF header to be taken for a launcher.
fn launcher(architecture: Architecture) -> Vec<u8> {
    let mut binary = b"\x7fELF\x02\x01\x01".to_vec();
    binary.resize(64, 0);
    binary[16] = 2;
    binary[18] = architecture.elf_machine() as u8;
    binary
}

fn build(version: &str, architectures: &[Architecture]) -> Vec<u8> {
    let image = LauncherImage {
        version: &version.parse().unwrap(),
        commit: &source::Commit::Known("0123456789abcdef0123456789abcdef01234567".to_owned()),
        source: &"https://example.com/product".parse().unwrap(),
        date: "1700000000".parse().unwrap(),
        launchers: architectures.iter().map(|&architecture| (architecture, launcher(architecture))).collect(),
    };
    let built = image.build().unwrap();
    assert_eq!(summarize(built.tar.as_slice()).unwrap(), built.summary);
    built.tar
}

fn both() -> Vec<u8> {
    build("v1.2.3", &[Architecture::Aarch64, Architecture::X86_64])
}

/// The files of an image file by name.
fn unpack(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(name, contents);
        }
    }
    files
}

fn pack(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for (name, contents) in files {
        tar.file(name, PLAIN, contents).unwrap();
    }
    tar.finish().unwrap()
}

/// An image file put together by hand, so that single facts in it can be wrong.
#[derive(Default)]
struct Layout(BTreeMap<String, Vec<u8>>);

impl Layout {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.0.insert(format!("blobs/sha256/{digest}"), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    fn json(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// An image with one uncompressed layer, whose descriptor claims `listed` as its platform.
    fn image(&mut self, architecture: &str, layer: &[u8], listed: Option<&str>) -> Value {
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Labels": { "a": "b" }, "Entrypoint": ["/x"] },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config = self.json(CONFIG, &config);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let mut manifest = self.json(MANIFEST, &manifest);
        if let Some(architecture) = listed {
            manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        }
        manifest
    }

    fn index(&mut self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.0.insert("index.json".to_owned(), index.to_string().into_bytes());
        self.0.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    }

    fn read(&self) -> Result<ImageSummary, Error> {
        summarize(pack(&self.0).as_slice())
    }
}

fn simple() -> Layout {
    let mut layout = Layout::default();
    let manifest = layout.image("amd64", b"layer", Some("amd64"));
    layout.index(&[manifest]);
    layout
}

mod built {
    use super::*;

    #[test]
    fn the_summary_says_what_was_built() {
        let summary = summarize(both().as_slice()).unwrap();
        assert_eq!(summary.kind, Kind::OciLayout);
        assert_eq!(
            summary.tags,
            ["spacelift-launcher:v1.2.3", "spacelift-launcher:v1.2.3-amd64", "spacelift-launcher:v1.2.3-arm64"]
        );
        let platforms: Vec<String> = summary.platforms.iter().map(|image| image.platform.to_string()).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        for image in &summary.platforms {
            assert_eq!(image.entrypoint, ["/usr/bin/spacelift-launcher"]);
            assert_eq!(image.user, "1983:1983");
            assert_eq!(image.labels["org.opencontainers.image.version"], "v1.2.3");
            assert_eq!(image.labels["org.opencontainers.image.revision"], "0123456789abcdef0123456789abcdef01234567");
            assert_eq!(image.labels["org.opencontainers.image.source"], "https://example.com/product");
            assert_eq!(image.labels["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
            assert_eq!(image.layers.len(), 2);
        }
        let [amd64, arm64] = summary.platforms.as_slice() else { panic!() };
        assert_eq!(amd64.layers[0], arm64.layers[0]);
        assert_ne!(amd64.layers[1], arm64.layers[1]);
        assert!(amd64.manifest.is_some_and(|manifest| manifest != summary.digest));
    }

    #[test]
    fn one_architecture_needs_no_index_in_between() {
        let summary = summarize(build("v1.2.3", &[Architecture::Aarch64]).as_slice()).unwrap();
        assert_eq!(summary.platforms[0].manifest, Some(summary.digest));
        assert_eq!(summary.tags, ["spacelift-launcher:v1.2.3", "spacelift-launcher:v1.2.3-arm64"]);
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_an_upgrade_moves_one_layer() {
        let (old, again, new) = (both(), both(), build("v1.2.4", &[Architecture::X86_64]));
        assert_eq!(Digest::of(&old), Digest::of(&again));
        let layers = |tar: &[u8]| summarize(tar).unwrap().platforms[0].layers.clone();
        assert_eq!(layers(&old)[0], layers(&new)[0]);
    }

    #[test]
    fn every_tool_finds_one_image_without_a_tag() {
        let files = unpack(&both());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "v1.2.3");
        let saved: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(saved[0]["RepoTags"], json!(["spacelift-launcher:v1.2.3", "spacelift-launcher:v1.2.3-amd64"]));
        assert_eq!(saved[1]["RepoTags"], json!(["spacelift-launcher:v1.2.3-arm64"]));
    }

    #[test]
    fn the_wrong_binary_is_refused() {
        let build = |binary: Vec<u8>| {
            let image = LauncherImage {
                version: &"v1.2.3".parse().unwrap(),
                commit: &source::Commit::Unknown,
                source: &"https://example.com/product".parse().unwrap(),
                date: "0".parse().unwrap(),
                launchers: [(Architecture::X86_64, binary)].into(),
            };
            image.build().unwrap_err().to_string()
        };
        assert!(build(launcher(Architecture::Aarch64)).contains("another architecture"));
        assert!(build(b"#!/bin/sh".to_vec()).contains("not a 64-bit Linux executable"));
        assert!(build(Vec::new()).contains("not a 64-bit Linux executable"));
        let mut object = launcher(Architecture::X86_64);
        object[16] = 1;
        assert!(build(object).contains("not an executable"));
    }
}

mod attacks {
    use super::*;

    #[test]
    fn a_changed_blob() {
        let mut files = unpack(&both());
        let (_, layer) = files.iter_mut().find(|(_, contents)| contents.starts_with(&[0x1f, 0x8b])).unwrap();
        layer[100] ^= 1;
        assert!(matches!(summarize(pack(&files).as_slice()), Err(Error::DigestMismatch { .. })));
    }

    #[test]
    fn any_missing_file() {
        let files = unpack(&both());
        for name in files.keys().filter(|name| *name != "manifest.json") {
            let mut fewer = files.clone();
            fewer.remove(name);
            let error = summarize(pack(&fewer).as_slice()).unwrap_err();
            assert!(matches!(error, Error::Missing { .. }), "without {name}: {error}");
        }
        assert!(matches!(summarize(pack(&BTreeMap::new()).as_slice()), Err(Error::NotAnImage)));
    }

    #[test]
    fn any_extra_file_or_directory() {
        let extra_blob = format!("blobs/sha256/{}", Digest::of(b"{}"));
        for (name, contents) in
            [(extra_blob.as_str(), &b"{}"[..]), ("extra", b""), ("a/VERSION", b"1.0"), ("x/y/z", b"")]
        {
            let mut layout = simple();
            layout.0.insert(name.to_owned(), contents.to_vec());
            assert!(matches!(layout.read(), Err(Error::Unreferenced(_))), "{name}");
        }
        let mut tar = Writer::new(Vec::new());
        for (name, contents) in &simple().0 {
            tar.file(name, PLAIN, contents).unwrap();
        }
        tar.directory("empty", PLAIN).unwrap();
        let tar = tar.finish().unwrap();
        assert!(matches!(summarize(tar.as_slice()), Err(Error::Unreferenced(name)) if name == "`empty`"));
    }

    #[test]
    fn a_blob_outside_its_place() {
        for name in ["blobs/x", "blobs/sha512/00", "blobs/sha256/../x", "blobs/sha256/ABC"] {
            let mut layout = simple();
            layout.0.insert(name.to_owned(), b"x".to_vec());
            assert!(matches!(layout.read(), Err(Error::Name { .. })), "{name}");
        }
    }

    #[test]
    fn a_name_twice() {
        let tar = pack(&simple().0);
        let mut twice = tar[..tar.len() - 1024].to_vec();
        twice.extend_from_slice(&tar);
        assert!(matches!(summarize(twice.as_slice()), Err(Error::Duplicate(_))));
    }

    #[test]
    fn a_wrong_size() {
        let mut layout = Layout::default();
        let mut manifest = layout.image("amd64", b"layer", None);
        manifest["size"] = json!(1);
        layout.index(&[manifest]);
        assert!(matches!(layout.read(), Err(Error::SizeMismatch { expected: 1, .. })));
    }

    #[test]
    fn an_image_under_the_name_of_another_platform() {
        let mut layout = Layout::default();
        let manifest = layout.image("arm64", b"layer", Some("amd64"));
        layout.index(&[manifest]);
        let error = layout.read().unwrap_err();
        assert!(matches!(&error, Error::PlatformMismatch { listed, .. } if listed == "linux/amd64"), "{error}");
    }

    #[test]
    fn two_images_for_one_platform() {
        let mut layout = Layout::default();
        let one = layout.image("amd64", b"one", None);
        let two = layout.image("amd64", b"two", None);
        layout.index(&[one, two]);
        assert!(matches!(layout.read(), Err(Error::SeveralImages(_))));
    }

    #[test]
    fn docker_load_led_to_another_image() {
        let mut files = unpack(&both());
        let saved: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let mut crossed = saved.clone();
        crossed[0]["Config"] = saved[1]["Config"].clone();
        let mut reversed = saved.clone();
        reversed[0]["Layers"].as_array_mut().unwrap().reverse();
        let mut fewer = saved.clone();
        fewer[0]["Layers"].as_array_mut().unwrap().pop();
        for changed in [crossed, reversed, fewer, json!([])] {
            files.insert("manifest.json".to_owned(), changed.to_string().into_bytes());
            assert!(matches!(summarize(pack(&files).as_slice()), Err(Error::Disagreement(_))), "{changed}");
        }
    }

    #[test]
    fn layers_that_the_configuration_does_not_describe() {
        let mut layout = Layout::default();
        let layer = layout.blob(LAYER, b"\x1f\x8blayer");
        for (diff_ids, media_type) in [
            (json!([]), LAYER),
            (json!([format!("sha256:{}", Digest::of(b"other"))]), "application/vnd.oci.image.layer.v1.tar"),
        ] {
            let mut layer = layer.clone();
            layer["mediaType"] = json!(media_type);
            let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": diff_ids } });
            let mut layout = Layout(layout.0.clone());
            let config = layout.json(CONFIG, &config);
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
            let manifest = layout.json(MANIFEST, &manifest);
            layout.index(&[manifest]);
            let error = layout.read().unwrap_err();
            assert!(matches!(error, Error::Document { .. } | Error::DigestMismatch { .. }), "{error}");
        }
    }

    #[test]
    fn a_document_that_is_index_and_manifest_at_once() {
        let mut layout = Layout::default();
        let image = layout.image("amd64", b"layer", None);
        let both = json!({ "schemaVersion": 2, "manifests": [image], "layers": [] });
        let both = layout.json(INDEX, &both);
        layout.index(&[both]);
        assert!(matches!(layout.read(), Err(Error::Document { reason, .. }) if reason.contains("at once")));
    }

    #[test]
    fn media_types_that_contradict_each_other() {
        let mut layout = Layout::default();
        let mut image = layout.image("amd64", b"layer", None);
        image["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
        layout.index(&[image]);
        assert!(matches!(layout.read(), Err(Error::Document { reason, .. }) if reason.contains("mediaType")));
    }

    #[test]
    fn indexes_inside_each_other_without_end() {
        let mut layout = Layout::default();
        let mut inner = layout.image("amd64", b"layer", None);
        for depth in 1..=4 {
            // Two references to the same content at every depth must not double the work at every depth.
            layout.index(&[inner.clone(), inner.clone()]);
            assert_eq!(layout.read().is_ok(), depth <= 3, "{depth}");
            inner = layout.json(INDEX, &json!({ "schemaVersion": 2, "manifests": [inner.clone(), inner] }));
        }
    }

    #[test]
    fn more_manifests_than_any_image_has() {
        let mut layout = Layout::default();
        let image = layout.image("amd64", b"layer", None);
        layout.index(&vec![image; 1000]);
        assert!(matches!(layout.read(), Err(Error::Limit { what: "manifests", .. })));
    }

    #[test]
    fn json_without_end() {
        let mut layout = simple();
        let mut large = b"{".to_vec();
        large.resize(4 * 1024 * 1024 + 1, b' ');
        layout.0.insert("index.json".to_owned(), large.clone());
        assert!(matches!(layout.read(), Err(Error::Limit { what: "bytes in a JSON document", .. })));
        large.pop();
        let mut layout = simple();
        for n in 0..5 {
            large[1] = n;
            // Names that come before those of the real documents.
            layout.0.insert(format!("a{n}"), large.clone());
        }
        assert!(matches!(layout.read(), Err(Error::Limit { what: "bytes in JSON documents", .. })));
    }

    #[test]
    fn more_entries_than_any_image_has() {
        let mut layout = simple();
        layout.0.extend((0..4096).map(|n| (format!("{n}"), Vec::new())));
        assert!(matches!(layout.read(), Err(Error::Limit { what: "entries", .. })));
    }

    #[test]
    fn names_that_would_spoil_a_terminal() {
        let mut layout = Layout::default();
        let mut manifest = layout.image("amd64", b"layer", None);
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1\u{1b}[2J" });
        layout.index(&[manifest]);
        let error = layout.read().unwrap_err().to_string();
        assert!(error.contains("is no name of an image") && !error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn a_link_in_a_layout() {
        let id = Digest::of(b"x");
        let tar = pack(&simple().0);
        let link = with_link(&tar, &format!("{id}/layer.tar"), &format!("../{id}.tar"));
        assert!(matches!(summarize(link.as_slice()), Err(Error::EntryType { .. })));
    }

    #[test]
    fn damage_anywhere_is_an_error_or_changes_nothing() {
        let tar = build("v1.2.3", &[Architecture::X86_64]);
        let whole = summarize(tar.as_slice()).unwrap();
        // Every 7th byte meets every field of every header in some entry, at a seventh of the time.
        for position in (0..tar.len()).step_by(if tar.len() > 20_000 { 997 } else { 7 }) {
            let mut damaged = tar.clone();
            damaged[position] ^= 1 << (position % 8);
            if let Ok(summary) = summarize(damaged.as_slice()) {
                assert_eq!(summary, whole, "byte {position}");
            }
        }
        for end in (0..tar.len()).step_by(1009) {
            assert!(summarize(&tar[..end]).is_err(), "cut at {end}");
        }
    }
}

/// `tar` with a symbolic link before it.
fn with_link(tar: &[u8], name: &str, target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_link_name_literal(target).unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_cksum();
    [header.as_bytes().as_slice(), tar].concat()
}

mod docker_archives {
    use super::*;

    /// The form of podman, skopeo and `docker save` before 25: names instead of blobs.
    fn archive(layer_name: &str, stored: &[u8], uncompressed: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Labels": null, "User": "app" },
            "rootfs": { "diff_ids": [format!("sha256:{}", Digest::of(uncompressed))] },
        });
        let config = config.to_string().into_bytes();
        let config_name = format!("{}.json", Digest::of(&config));
        let saved = json!([{ "Config": config_name, "RepoTags": ["docker.io/a/b:1"], "Layers": [layer_name] }]);
        [
            (config_name, config),
            (layer_name.to_owned(), stored.to_vec()),
            ("manifest.json".to_owned(), saved.to_string().into_bytes()),
            ("repositories".to_owned(), b"{}".to_vec()),
        ]
        .into()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn of_old_docker() {
        let id = Digest::of(b"id");
        let mut files = archive(&format!("{id}/layer.tar"), b"layer", b"layer");
        files.insert(format!("{id}/VERSION"), b"1.0".to_vec());
        files.insert(format!("{id}/json"), b"{}".to_vec());
        let summary = summarize(pack(&files).as_slice()).unwrap();
        assert_eq!((summary.kind, summary.tags.as_slice()), (Kind::DockerArchive, &["a/b:1".to_owned()][..]));
        let [image] = summary.platforms.as_slice() else { panic!() };
        assert_eq!((image.config, image.manifest, image.user.as_str()), (summary.digest, None, "app"));
        assert_eq!(image.layers[0].0, Digest::of(b"layer"));
    }

    #[test]
    fn of_podman_with_its_links() {
        let (id, layer) = (Digest::of(b"id"), Digest::of(b"layer"));
        let tar = pack(&archive(&format!("{layer}.tar"), b"layer", b"layer"));
        let link = |target: &str| summarize(with_link(&tar, &format!("{id}/layer.tar"), target).as_slice());
        assert!(link(&format!("../{layer}.tar")).is_ok());
        assert!(matches!(link(&format!("../{id}.tar")), Err(Error::Missing { .. })));
        for target in ["/etc/passwd", "../../etc/passwd", "../x.tar", ""] {
            assert!(matches!(link(target), Err(Error::EntryType { .. })), "{target}");
        }
        let other_name = with_link(&tar, "x", &format!("../{layer}.tar"));
        assert!(matches!(summarize(other_name.as_slice()), Err(Error::EntryType { .. })));
    }

    #[test]
    fn of_old_docker_with_the_same_layer_twice() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let diff_id = format!("sha256:{}", Digest::of(b"layer"));
        let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": [diff_id, diff_id] } });
        let layers = [format!("{one}/layer.tar"), format!("{two}/layer.tar")];
        let saved = json!([{ "Config": "c.json", "RepoTags": null, "Layers": layers }]);
        let files = [
            (layers[0].clone(), b"layer".to_vec()),
            ("c.json".to_owned(), config.to_string().into_bytes()),
            ("manifest.json".to_owned(), saved.to_string().into_bytes()),
        ];
        let tar = with_link(&pack(&files.into()), &layers[1], &format!("../{one}/layer.tar"));
        assert_eq!(summarize(tar.as_slice()).unwrap().platforms[0].layers.len(), 2);
    }

    #[test]
    fn with_compressed_layers() {
        let stored = gzip(b"layer");
        assert!(summarize(pack(&archive("l.tar.gz", &stored, b"layer")).as_slice()).is_ok());
        let twice = [gzip(b"lay"), gzip(b"er")].concat();
        assert!(summarize(pack(&archive("l.tar.gz", &twice, b"layer")).as_slice()).is_ok());
        let other = archive("l.tar.gz", &stored, b"other");
        assert!(matches!(summarize(pack(&other).as_slice()), Err(Error::DigestMismatch { .. })));
        for end in 2..stored.len() {
            let cut = archive("l.tar.gz", &stored[..end], b"layer");
            assert!(matches!(summarize(pack(&cut).as_slice()), Err(Error::Document { .. })), "cut at {end}");
        }
    }

    #[test]
    fn with_a_changed_layer_or_an_extra_file() {
        let changed = archive("l.tar", b"lawyer", b"layer");
        assert!(matches!(summarize(pack(&changed).as_slice()), Err(Error::DigestMismatch { .. })));
        let mut extra = archive("l.tar", b"layer", b"layer");
        extra.insert("m.tar".to_owned(), b"layer".to_vec());
        assert!(matches!(summarize(pack(&extra).as_slice()), Err(Error::Unreferenced(_))));
    }

    #[test]
    fn with_several_images() {
        let mut files = archive("l.tar", b"layer", b"layer");
        let saved: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        files.insert("manifest.json".to_owned(), json!([saved[0], saved[0]]).to_string().into_bytes());
        assert!(matches!(summarize(pack(&files).as_slice()), Err(Error::SeveralImages(_))));
    }

    #[test]
    fn of_new_docker_with_the_leftovers_of_its_old_form() {
        let mut layout = simple();
        let leftover =
            json!({ "id": Digest::of(b"id"), "created": "1970-01-01T00:00:00Z", "os": "linux", "config": {} });
        layout.json(CONFIG, &leftover);
        assert!(layout.read().is_ok());
        let mut disguised = simple();
        disguised.json(CONFIG, &json!({ "id": Digest::of(b"id"), "os": "linux", "rootfs": { "diff_ids": [] } }));
        assert!(matches!(disguised.read(), Err(Error::Unreferenced(_))));
    }
}

mod other_layouts {
    use super::*;

    #[test]
    fn platforms_without_an_index_in_between() {
        let mut layout = Layout::default();
        let amd64 = layout.image("amd64", b"one", Some("amd64"));
        let arm64 = layout.image("arm64", b"two", None);
        layout.index(&[amd64, arm64]);
        let summary = layout.read().unwrap();
        assert_eq!(summary.platforms.len(), 2);
        assert_eq!(summary.digest.0, Digest::of(&layout.0["index.json"]));
        assert_eq!(summary.platform("linux/arm64").unwrap().labels["a"], "b");
    }

    #[test]
    fn attestations_are_checked_but_are_no_platform() {
        let mut layout = Layout::default();
        let image = layout.image("amd64", b"layer", Some("amd64"));
        let mut attestation = layout.image("unknown", b"{\"in-toto\":1}", Some("unknown"));
        attestation["platform"]["os"] = json!("unknown");
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [image, attestation] });
        let index = layout.json(INDEX, &index);
        layout.index(&[index]);
        let summary = layout.read().unwrap();
        assert_eq!((summary.platforms.len(), summary.attachments.len()), (1, 1));
        layout.0.remove(&format!("blobs/sha256/{}", Digest::of(b"{\"in-toto\":1}")));
        assert!(matches!(layout.read(), Err(Error::Missing { .. })));
    }

    #[test]
    fn one_image_under_two_tags() {
        let mut layout = Layout::default();
        let image = layout.image("amd64", b"layer", None);
        let tagged = |tag: &str| {
            let mut image = image.clone();
            image["annotations"] = json!({ "io.containerd.image.name": format!("docker.io/library/x:{tag}") });
            image
        };
        let manifests = [tagged("1"), tagged("2")];
        layout.index(&manifests);
        let summary = layout.read().unwrap();
        assert_eq!(summary.tags, ["x:1", "x:2"]);
        assert_eq!(Some(summary.digest), summary.platforms[0].manifest);
    }
}

mod normalized {
    use super::*;

    fn write(files: &BTreeMap<String, Vec<u8>>) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        directory
    }

    #[test]
    fn a_directory_becomes_the_same_tar_everywhere() {
        let layout = simple();
        let tars = [(); 2].map(|()| {
            let mut tar = Vec::new();
            let summary = normalize(write(&layout.0).path(), &mut tar).unwrap();
            assert_eq!(summary, layout.read().unwrap());
            assert_eq!(summary, summarize(tar.as_slice()).unwrap());
            tar
        });
        assert_eq!(tars[0], tars[1]);
    }

    #[test]
    fn a_tar_is_copied_as_it_is() {
        let tar = both();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &tar).unwrap();
        let mut copy = Vec::new();
        assert_eq!(normalize(file.path(), &mut copy).unwrap(), summarize(tar.as_slice()).unwrap());
        assert!(copy == tar);
    }

    #[test]
    fn links_to_blobs_are_followed_and_strangers_refused() {
        let layout = simple();
        let directory = write(&layout.0);
        let elsewhere = tempfile::tempdir().unwrap();
        let blob = directory.path().join(layout.0.keys().next().unwrap());
        fs::rename(&blob, elsewhere.path().join("blob")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("blob"), &blob).unwrap();
        assert!(normalize(directory.path(), io::sink()).is_ok());
        fs::create_dir_all(directory.path().join("blobs/sha256/deep/er")).unwrap();
        assert!(matches!(normalize(directory.path(), io::sink()), Err(Error::Unreferenced(_))));
        let socket = write(&layout.0);
        let _listener = std::os::unix::net::UnixListener::bind(socket.path().join("socket")).unwrap();
        assert!(matches!(normalize(socket.path(), io::sink()), Err(Error::EntryType { .. })));
    }

    #[test]
    fn a_full_disk_is_a_failed_write() {
        struct Full;
        impl io::Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), both()).unwrap();
        assert!(matches!(normalize(file.path(), Full), Err(Error::Write(_))));
        assert!(matches!(normalize(write(&simple().0).path(), Full), Err(Error::Write(_))));
    }
}

/// What a registry is sent.
mod layout {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use crate::image::{BlobDigest, Layout};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn everything_is_found_and_children_come_before_their_index() {
        let tar = both();
        let (summary, file) = (summarize(tar.as_slice()).unwrap(), file(&tar));
        let layout = Layout::read(&file).unwrap();
        assert_eq!(layout.root().digest, summary.digest);
        assert_eq!(layout.root().media_type, INDEX);
        let children: Vec<_> = layout.documents.iter().take(2).map(|document| Some(document.digest)).collect();
        for platform in &summary.platforms {
            assert!(children.contains(&platform.manifest));
            for part in platform.layers.iter().chain([&platform.config]) {
                assert_eq!(layout.blobs.iter().filter(|blob| blob.digest == *part).count(), 1, "{part}");
            }
        }
        for blob in &layout.blobs {
            let mut bytes = vec![0; blob.size as usize];
            file.read_exact_at(&mut bytes, blob.offset).unwrap();
            assert_eq!(BlobDigest(Digest::of(&bytes)), blob.digest);
        }
        assert!(layout.blobs.is_sorted_by(|a, b| a.size >= b.size), "the largest takes longest and starts first");
    }

    #[test]
    fn several_platforms_without_an_index_have_index_json_for_one() {
        let mut made = super::Layout::default();
        let manifests = [made.image("amd64", b"one", Some("amd64")), made.image("arm64", b"two", Some("arm64"))];
        made.index(&manifests);
        let tar = pack(&made.0);
        let layout = Layout::read(&file(&tar)).unwrap();
        assert_eq!(layout.root().digest, summarize(tar.as_slice()).unwrap().digest);
        assert_eq!(layout.root().bytes, made.0["index.json"]);
        assert_eq!((layout.documents.len(), layout.blobs.len()), (3, 4));
    }

    #[test]
    fn what_is_listed_must_be_what_is_there() {
        let made = simple().0;
        let changed = |from: &str, to: &str| {
            let mut files = made.clone();
            let index = String::from_utf8(files["index.json"].clone()).unwrap();
            assert!(index.contains(from));
            files.insert("index.json".to_owned(), index.replacen(from, to, 1).into_bytes());
            Layout::read(&file(&pack(&files))).unwrap_err().to_string()
        };
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert!(changed(MANIFEST, docker).contains("but listed as"));
        let mut files = made.clone();
        let manifest = files.iter().find(|(_, bytes)| bytes.windows(9).any(|part| part == b"\"layers\":"));
        let (name, mut bytes) = manifest.map(|(name, bytes)| (name.clone(), bytes.clone())).unwrap();
        bytes.push(b' ');
        files.insert(name, bytes);
        let error = Layout::read(&file(&pack(&files))).unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    }

    #[test]
    fn a_file_that_lacks_something_is_refused() {
        for (missing, says) in [("oci-layout", "oci-layout"), ("index.json", "index.json"), ("blobs", "refers to")] {
            let mut files = simple().0;
            let name = files.keys().find(|name| name.starts_with(missing)).unwrap().clone();
            files.remove(&name);
            let error = Layout::read(&file(&pack(&files))).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let tar = both();
        for length in [tar.len() / 2, tar.len() - 700, 100] {
            assert!(Layout::read(&file(&tar[..length])).is_err(), "cut off at {length}");
        }
    }
}
