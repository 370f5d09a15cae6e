//! Makes the launcher's image.

use std::collections::BTreeMap;

use serde::Serialize;

use super::document::{self, Descriptor, Index, Layout, Manifest, PlatformFields, Saved};
use super::layer::{self, Layer};
use super::tarball::{Attributes, Writer};
use super::{Architecture, BlobDigest, Error, ImageSummary, summarize};
use crate::digest::Digest;
use crate::source;
use crate::version::ReleaseVersion;

/// The image's repository name.
pub const REPOSITORY: &str = "spacelift-launcher";

/// What the launcher's image is made of.
#[derive(Debug)]
pub struct LauncherImage<'a> {
    /// The release that the launchers belong to; also the image's tag.
    pub version: &'a ReleaseVersion,
    /// The commit that they were built from.
    pub commit: &'a source::Commit,
    /// Where the sources are.
    pub source: &'a source::Url,
    /// The commit's date: creation date of the image and modification time of the launcher in it.
    pub date: source::Date,
    /// The binaries, at least one.
    pub launchers: BTreeMap<Architecture, Vec<u8>>,
}

/// A finished image.
#[derive(Debug)]
pub struct Built {
    /// The image file.
    pub tar: Vec<u8>,
    /// What is in it, read back from the file by the same code that a verifier runs.
    pub summary: ImageSummary,
}

impl LauncherImage<'_> {
    /// Makes the image file. The same input gives the same bytes on every machine.
    ///
    /// # Errors
    /// There is no launcher, or one is not an executable for the architecture that it was given for.
    pub fn build(&self) -> Result<Built, Error> {
        let mut blobs = Blobs::default();
        let base = layer::base()?;
        blobs.0.insert(base.digest, base.bytes.clone());
        let mut manifests = Vec::new();
        let mut saved = Vec::new();
        for (&architecture, binary) in &self.launchers {
            check_executable(architecture, binary)?;
            let launcher = layer::launcher(binary, self.date)?;
            let config = blobs.add_json(document::CONFIG, &self.config(architecture, &base, &launcher))?;
            let layers = [&base, &launcher].map(layer_descriptor).to_vec();
            saved.push(self.saved(architecture, &config, &layers));
            blobs.0.insert(launcher.digest, launcher.bytes);
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(document::MANIFEST.to_owned()),
                config,
                layers,
                annotations: self.description(),
                foreign_manifests: None,
            };
            manifests.push(Descriptor {
                platform: Some(platform(architecture)),
                ..blobs.add_json(document::MANIFEST, &manifest)?
            });
        }
        let mut top = match manifests.as_slice() {
            [] => return Err(Error::NoLauncher),
            [only] => only.clone(),
            _ => blobs.add_json(document::INDEX, &index(manifests, self.description()))?,
        };
        let tag = self.version.to_string();
        top.annotations.insert(document::IMAGE_NAME.to_owned(), format!("docker.io/library/{REPOSITORY}:{tag}"));
        top.annotations.insert(document::REF_NAME.to_owned(), tag);
        let tar = self.tar(blobs, &index(vec![top], BTreeMap::new()), &saved)?;
        let summary = summarize(tar.as_slice())?;
        Ok(Built { tar, summary })
    }

    /// Labels of the image, and annotations of the documents around it, which tools show without fetching the image.
    fn description(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("created", self.date.to_string()),
            ("description", "Self-Hosted launcher: starts runs on a worker host".to_owned()),
            ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
            ("revision", self.commit.to_string()),
            ("source", self.source.to_string()),
            ("title", REPOSITORY.to_owned()),
            ("version", self.version.to_string()),
        ];
        pairs.into_iter().map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).collect()
    }

    fn config(&self, architecture: Architecture, base: &Layer, launcher: &Layer) -> Config {
        let step =
            |what: &str, date: String| History { created: date, created_by: format!("spacelift-bundle image: {what}") };
        Config {
            created: self.date.to_string(),
            architecture: architecture.oci(),
            os: "linux",
            config: Execution {
                // By number: Kubernetes cannot tell that a name is not root, and refuses it under runAsNonRoot.
                user: format!("{0}:{0}", layer::USER),
                env: [
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                    format!("SSL_CERT_FILE={}", layer::CERTIFICATES),
                ],
                entrypoint: [layer::LAUNCHER],
                working_dir: layer::HOME,
                labels: self.description(),
            },
            rootfs: RootFs { kind: "layers", diff_ids: [base.diff_id, launcher.diff_id] },
            history: [
                step("users, certificates, directories", "1970-01-01T00:00:00Z".to_owned()),
                step(layer::LAUNCHER, self.date.to_string()),
            ],
        }
    }

    fn saved(&self, architecture: Architecture, config: &Descriptor, layers: &[Descriptor]) -> Saved {
        let name = format!("{REPOSITORY}:{}", self.version);
        let mut repo_tags = vec![format!("{name}-{}", architecture.oci())];
        // The map is sorted: the first architecture is x86_64 if there is one.
        if self.launchers.keys().next() == Some(&architecture) {
            repo_tags.insert(0, name);
        }
        Saved {
            config: blob_path(config.digest),
            repo_tags,
            layers: layers.iter().map(|layer| blob_path(layer.digest)).collect(),
        }
    }

    fn tar(&self, blobs: Blobs, index: &Index, saved: &[Saved]) -> Result<Vec<u8>, Error> {
        let layout = Layout { image_layout_version: document::LAYOUT_VERSION.to_owned() };
        let plain = Attributes { mode: 0o644, owner: 0, modified: self.date.unix() };
        let directory = Attributes { mode: 0o755, ..plain };
        let write = || {
            let mut tar = Writer::new(Vec::new());
            tar.directory("blobs", directory)?;
            tar.directory("blobs/sha256", directory)?;
            for (digest, bytes) in &blobs.0 {
                tar.file(&blob_path(*digest), plain, bytes)?;
            }
            tar.file("index.json", plain, &serde_json::to_vec(index)?)?;
            tar.file("manifest.json", plain, &serde_json::to_vec(saved)?)?;
            tar.file("oci-layout", plain, &serde_json::to_vec(&layout)?)?;
            tar.finish()
        };
        write().map_err(Error::Write)
    }
}

/// What goes into `blobs/sha256`.
#[derive(Default)]
struct Blobs(BTreeMap<BlobDigest, Vec<u8>>);

impl Blobs {
    fn add_json(&mut self, media_type: &str, document: &impl Serialize) -> Result<Descriptor, Error> {
        let bytes = serde_json::to_vec(document).map_err(|error| Error::Write(error.into()))?;
        let digest = BlobDigest(Digest::of(&bytes));
        let size = bytes.len() as u64;
        self.0.insert(digest, bytes);
        Ok(Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() })
    }
}

fn blob_path(digest: BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.0)
}

fn layer_descriptor(layer: &Layer) -> Descriptor {
    Descriptor {
        media_type: document::LAYER.to_owned(),
        digest: layer.digest,
        size: layer.bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

fn platform(architecture: Architecture) -> PlatformFields {
    PlatformFields { architecture: architecture.oci().to_owned(), os: "linux".to_owned(), variant: None }
}

fn index(manifests: Vec<Descriptor>, annotations: BTreeMap<String, String>) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(document::INDEX.to_owned()),
        manifests,
        annotations,
        foreign_config: None,
        foreign_layers: None,
    }
}

/// Refuses what the image's platform could not run: the wrong file, or the binary of the other architecture.
fn check_executable(architecture: Architecture, binary: &[u8]) -> Result<(), Error> {
    let refuse = |reason| Err(Error::Launcher { architecture, reason });
    // ELF64, little-endian, current version; then the type and the machine as 16-bit numbers.
    let Some(header) = binary.get(..20).filter(|header| header.starts_with(b"\x7fELF\x02\x01\x01")) else {
        return refuse("is not a 64-bit Linux executable (ELF)");
    };
    if !matches!(u16::from_le_bytes([header[16], header[17]]), 2 | 3) {
        return refuse("is an ELF file, but not an executable");
    }
    if u16::from_le_bytes([header[18], header[19]]) != architecture.elf_machine() {
        return refuse("was built for another architecture");
    }
    Ok(())
}

/// The image's configuration as it is written.
#[derive(Serialize)]
struct Config {
    created: String,
    architecture: &'static str,
    os: &'static str,
    config: Execution,
    rootfs: RootFs,
    history: [History; 2],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    user: String,
    env: [String; 2],
    entrypoint: [&'static str; 1],
    working_dir: &'static str,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [BlobDigest; 2],
}

#[derive(Serialize)]
struct History {
    created: String,
    created_by: String,
}
