//! Small container images: an OCI layout with one tiny layer per platform.
//!
//! The image that `spacelift-bundle image` makes would do, but it carries the certificates of every authority, which is a
//! hundred times the size of what is looked at here.

use std::collections::BTreeMap;

use bundle_core::digest::Digest;
use serde_json::{Value, json};

use crate::release::{COMMIT, END, Entry, VERSION};

/// What goes into an image.
#[derive(Clone)]
pub(crate) struct Image {
    /// Processor architecture of each platform, as images call it, with its labels.
    pub(crate) platforms: Vec<(&'static str, BTreeMap<String, String>)>,
}

/// The labels of an image of the release.
pub(crate) fn labels() -> BTreeMap<String, String> {
    let pairs = [("version", VERSION), ("revision", COMMIT)];
    pairs.into_iter().map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned())).collect()
}

/// The files of an image, by name, before they become a tar.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

impl Image {
    /// For x86_64 only.
    pub(crate) fn new() -> Self {
        Self { platforms: vec![("amd64", labels())] }
    }

    /// For both architectures.
    pub(crate) fn for_both() -> Self {
        Self { platforms: vec![("amd64", labels()), ("arm64", labels())] }
    }

    /// Changes a label of one platform.
    pub(crate) fn label(mut self, platform: usize, name: &str, value: Option<&str>) -> Self {
        let name = format!("org.opencontainers.image.{name}");
        match value {
            Some(value) => self.platforms[platform].1.insert(name, value.to_owned()),
            None => self.platforms[platform].1.remove(&name),
        };
        self
    }

    /// The files of the layout.
    pub(crate) fn files(&self) -> Files {
        let mut files = Files::new();
        let mut manifests = Vec::new();
        for (architecture, labels) in &self.platforms {
            let text = format!("the launcher for {architecture}\n");
            let layer = [&Entry::file("usr/bin/spacelift-launcher", 0o755, text.as_bytes()).bytes()[..], &END].concat();
            let layer = add(&mut files, "application/vnd.oci.image.layer.v1.tar", layer);
            let config = json!({
                "architecture": architecture, "os": "linux", "config": { "Labels": labels },
                "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
            });
            let config = add(&mut files, "application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
            let manifest = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config, "layers": [layer],
            });
            let manifest = manifest.to_string().into_bytes();
            let mut manifest = add(&mut files, "application/vnd.oci.image.manifest.v1+json", manifest);
            manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
            manifests.push(manifest);
        }
        if manifests.len() > 1 {
            let index = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
            });
            let index = index.to_string().into_bytes();
            manifests = vec![add(&mut files, "application/vnd.oci.image.index.v1+json", index)];
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        files.insert("index.json".into(), index.to_string().into_bytes());
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files
    }

    /// The image file.
    pub(crate) fn tar(&self) -> Vec<u8> {
        tar(&self.files())
    }
}

/// Puts a blob among the files and returns what refers to it.
fn add(files: &mut Files, media_type: &str, bytes: Vec<u8>) -> Value {
    let digest = Digest::of(&bytes);
    let descriptor = json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() });
    files.insert(format!("blobs/sha256/{digest}"), bytes);
    descriptor
}

/// A tar of these files.
pub(crate) fn tar(files: &Files) -> Vec<u8> {
    entries(files).iter().map(Entry::bytes).chain([END.to_vec()]).collect::<Vec<_>>().concat()
}

/// The entries of such a tar.
pub(crate) fn entries(files: &Files) -> Vec<Entry> {
    files.iter().map(|(name, bytes)| Entry::file(name, 0o644, bytes)).collect()
}
