//! Proves that an image file is complete and says what is in it.
//!
//! The file comes from outside and is read once, front to back, see [`Contents`]. What belongs to what is decided at
//! the end: documents may come after the blobs that they describe.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde::Serialize;

use super::contents::Contents;
use super::document::{self, Config, Descriptor, Document, Index, Layout, Legacy, Manifest, Saved, SavedList};
use super::tarball::{self, Entry};
use super::{BlobDigest, Error, Platform, quoted};

/// Manifests in all indexes: every platform that Linux distributions build for, each with an attestation, twice over.
const MAX_MANIFESTS: usize = 128;
/// `index.json`, an index in it, and one more for those who nest them.
const MAX_INDEX_DEPTH: usize = 3;
/// Longer names of images are not names: registries allow 255 characters.
const MAX_TAG: usize = 400;

const INDEX_JSON: &str = "index.json";
const MANIFEST_JSON: &str = "manifest.json";
const OCI_LAYOUT: &str = "oci-layout";
const REPOSITORIES: &str = "repositories";
const BLOBS: &str = "blobs/sha256/";

/// What an image file holds. Everything in it has been checked against its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// The form of the file.
    pub kind: Kind,
    /// What the image is called by in a registry: the digest of its index or of its only manifest. In a `docker save`
    /// archive, which has neither, the digest of its configuration, which is the image's ID.
    pub digest: BlobDigest,
    /// Every name and tag that the file gives to an image in it, sorted. Only plain characters.
    pub tags: Vec<String>,
    /// The image for each platform, sorted.
    pub platforms: Vec<PlatformImage>,
    /// Manifests that are no image but come with one: signatures, attestations.
    pub attachments: Vec<BlobDigest>,
}

/// The form of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An OCI image layout, with or without the `manifest.json` of `docker save` beside it.
    OciLayout,
    /// Only `docker save`'s own form.
    DockerArchive,
}

/// The image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlatformImage {
    /// Where it runs.
    pub platform: Platform,
    /// Digest of its manifest, which a `docker save` archive does not have.
    pub manifest: Option<BlobDigest>,
    /// Digest of its configuration.
    pub config: BlobDigest,
    /// Digests of the layers, lowest first: as stored, or of the uncompressed ones in a `docker save` archive.
    pub layers: Vec<BlobDigest>,
    /// User that its containers run as. Any text: escape it before printing.
    pub user: String,
    /// Command that its containers run. Any text.
    pub entrypoint: Vec<String>,
    /// Labels. Any text.
    pub labels: BTreeMap<String, String>,
}

impl ImageSummary {
    /// The image for a platform such as `linux/amd64`.
    pub fn platform(&self, name: &str) -> Option<&PlatformImage> {
        self.platforms.iter().find(|image| image.platform.to_string() == name)
    }
}

/// Reads an image file to its end and checks it: every blob has the content that its digest and size say, everything
/// that is referred to is there, nothing else is, and both of its indexes describe the same image.
///
/// Memory is bounded whatever the file: some 20 MiB at most, a few hundred KiB for real images.
///
/// # Errors
/// The first thing that is wrong, see [`Error`].
pub fn summarize(reader: impl Read) -> Result<ImageSummary, Error> {
    let mut tar = tarball::Reader::new(reader);
    let mut contents = Contents::default();
    while let Some(entry) = tar.next_entry()? {
        match entry {
            Entry::File { name, size } => contents.add_file(name, size, &mut tar.data())?,
            Entry::Directory { name } => contents.add_directory(name)?,
            Entry::Link { name, target } => contents.add_link(name, &target)?,
        }
    }
    Summary::of(&contents)
}

/// Works out what belongs to what.
pub(super) struct Summary<'a> {
    contents: &'a Contents,
    used: BTreeSet<String>,
    expanded: BTreeSet<BlobDigest>,
    visited: usize,
    images: Vec<PlatformImage>,
    attachments: BTreeSet<BlobDigest>,
    tags: BTreeSet<String>,
}

impl<'a> Summary<'a> {
    /// The summary of a file or directory that was read completely.
    pub(super) fn of(contents: &'a Contents) -> Result<ImageSummary, Error> {
        let mut summary = Summary {
            contents,
            used: BTreeSet::new(),
            expanded: BTreeSet::new(),
            visited: 0,
            images: Vec::new(),
            attachments: BTreeSet::new(),
            tags: BTreeSet::new(),
        };
        let (kind, digest) = if [OCI_LAYOUT, INDEX_JSON].iter().any(|name| contents.file(name).is_some()) {
            (Kind::OciLayout, summary.layout()?)
        } else if contents.file(MANIFEST_JSON).is_some() {
            (Kind::DockerArchive, summary.docker_archive()?)
        } else {
            return Err(Error::NotAnImage);
        };
        summary.check_rest(kind)?;
        let mut platforms = summary.images;
        platforms.sort_by(|a, b| a.platform.cmp(&b.platform));
        if let Some(pair) = platforms.windows(2).find(|pair| pair[0].platform == pair[1].platform) {
            return Err(Error::SeveralImages(pair[0].platform.to_string()));
        }
        let tags = summary.tags.into_iter().collect();
        let attachments = summary.attachments.into_iter().collect();
        Ok(ImageSummary { kind, digest, tags, platforms, attachments })
    }

    fn layout(&mut self) -> Result<BlobDigest, Error> {
        let layout: Layout = self.read(OCI_LAYOUT, "the file")?;
        if layout.image_layout_version != document::LAYOUT_VERSION {
            return Err(wrong(OCI_LAYOUT, format!("unknown version {}", quoted(&layout.image_layout_version))));
        }
        let index: Index = self.read(INDEX_JSON, OCI_LAYOUT)?;
        self.index(&index, INDEX_JSON, None, 1)?;
        if self.images.is_empty() {
            return Err(wrong(INDEX_JSON, "it lists no image".to_owned()));
        }
        for descriptor in &index.manifests {
            self.tag(
                descriptor.annotations.get(document::IMAGE_NAME).or(descriptor.annotations.get(document::REF_NAME)),
            )?;
        }
        if self.contents.file(MANIFEST_JSON).is_some() {
            self.compare_saved()?;
        }
        let listed: BTreeSet<BlobDigest> = index.manifests.iter().map(|descriptor| descriptor.digest).collect();
        match (listed.first(), self.contents.file(INDEX_JSON)) {
            // A layout of several platforms without an index in between: then index.json itself is the image's index.
            (_, Some(file)) if listed.len() > 1 => Ok(BlobDigest(file.digest)),
            (Some(&only), _) => Ok(only),
            (None, _) => Err(wrong(INDEX_JSON, "it lists no image".to_owned())),
        }
    }

    fn index(&mut self, index: &Index, name: &str, listed_as: Option<&str>, depth: usize) -> Result<(), Error> {
        if depth > MAX_INDEX_DEPTH {
            return Err(Error::Limit { limit: MAX_INDEX_DEPTH as u64, what: "indexes inside each other" });
        }
        check_header(name, index.schema_version, index.media_type.as_deref(), listed_as.unwrap_or(document::INDEX))?;
        if index.foreign_config.is_some() || index.foreign_layers.is_some() {
            return Err(wrong(name, "it is an index and a manifest at once".to_owned()));
        }
        for descriptor in &index.manifests {
            match descriptor.media_type.as_str() {
                document::INDEX | document::DOCKER_INDEX => {
                    let blob = self.blob(descriptor, name)?;
                    // Once is enough, whatever the number of references to it.
                    if self.expanded.insert(descriptor.digest) {
                        let inner: Index = self.read(&blob, name)?;
                        self.index(&inner, &blob, Some(&descriptor.media_type), depth + 1)?;
                    }
                }
                document::MANIFEST | document::DOCKER_MANIFEST => self.manifest(descriptor, name)?,
                other => return Err(wrong(name, format!("it lists something of the unknown type {}", quoted(other)))),
            }
        }
        Ok(())
    }

    fn manifest(&mut self, descriptor: &Descriptor, referrer: &str) -> Result<(), Error> {
        self.visited += 1;
        if self.visited > MAX_MANIFESTS {
            return Err(Error::Limit { limit: MAX_MANIFESTS as u64, what: "manifests" });
        }
        let name = self.blob(descriptor, referrer)?;
        let manifest: Manifest = self.read(&name, referrer)?;
        check_header(&name, manifest.schema_version, manifest.media_type.as_deref(), &descriptor.media_type)?;
        if manifest.foreign_manifests.is_some() {
            return Err(wrong(&name, "it is an index and a manifest at once".to_owned()));
        }
        let config_name = self.blob(&manifest.config, &name)?;
        for layer in &manifest.layers {
            self.blob(layer, &name)?;
        }
        let listed = descriptor.platform.as_ref().map(document::PlatformFields::checked).transpose();
        let listed = listed.map_err(|reason| wrong(referrer, reason))?;
        let image = matches!(manifest.config.media_type.as_str(), document::CONFIG | document::DOCKER_CONFIG);
        if !image || listed.as_ref().is_some_and(|platform| platform.os() == "unknown") {
            self.attachments.insert(descriptor.digest);
            return Ok(());
        }
        let config: Config = self.read(&config_name, &name)?;
        let configured = config.platform().map_err(|reason| wrong(&config_name, reason))?;
        let platform = match listed {
            Some(listed) if !listed.same_machine(&configured) => {
                let (listed, configured) = (listed.to_string(), configured.to_string());
                return Err(Error::PlatformMismatch { manifest: descriptor.digest, listed, configured });
            }
            Some(listed) => listed,
            None => configured,
        };
        self.check_layers(&manifest, &config, &config_name)?;
        let layers = manifest.layers.iter().map(|layer| layer.digest).collect();
        let image = config.into_image(platform, Some(descriptor.digest), manifest.config.digest, layers);
        if !self.images.contains(&image) {
            self.images.push(image);
        }
        Ok(())
    }

    /// Layers and their uncompressed digests in the configuration belong together one by one. Where a layer is stored
    /// uncompressed, the two digests are the same; a compressed one is checked by whoever unpacks it.
    fn check_layers(&self, manifest: &Manifest, config: &Config, config_name: &str) -> Result<(), Error> {
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let reason =
                format!("it describes {} layers, but its manifest has {}", diff_ids.len(), manifest.layers.len());
            return Err(wrong(config_name, reason));
        }
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if layer.media_type.ends_with(".tar") && layer.digest != *diff_id {
                let name = format!("the layer {}", layer.digest);
                return Err(Error::DigestMismatch { name, expected: diff_id.0, found: layer.digest.0 });
            }
        }
        Ok(())
    }

    /// What `docker load` reads must be what everything else reads.
    fn compare_saved(&mut self) -> Result<(), Error> {
        let saved: SavedList = self.read(MANIFEST_JSON, "the file")?;
        if saved.images.is_empty() {
            return Err(Error::Disagreement("manifest.json lists none".to_owned()));
        }
        for saved in &saved.images {
            let same = |image: &PlatformImage| {
                is_blob(&saved.config, image.config)
                    && saved.layers.len() == image.layers.len()
                    && saved.layers.iter().zip(&image.layers).all(|(path, digest)| is_blob(path, *digest))
            };
            if !self.images.iter().any(same) {
                let reason = format!("{} with its layers is in manifest.json only", quoted(&saved.config));
                return Err(Error::Disagreement(reason));
            }
            self.saved_tags(saved)?;
        }
        Ok(())
    }

    fn docker_archive(&mut self) -> Result<BlobDigest, Error> {
        let saved: SavedList = self.read(MANIFEST_JSON, "the file")?;
        let [saved] = saved.images.as_slice() else {
            return Err(match saved.images.as_slice() {
                [] => wrong(MANIFEST_JSON, "it lists no image".to_owned()),
                _ => Error::SeveralImages("`docker load`".to_owned()),
            });
        };
        let config_name = self.stored(&saved.config, MANIFEST_JSON)?;
        let config: Config = self.read(&config_name, MANIFEST_JSON)?;
        let platform = config.platform().map_err(|reason| wrong(&config_name, reason))?;
        let diff_ids = config.rootfs.diff_ids.clone();
        if diff_ids.len() != saved.layers.len() {
            let reason =
                format!("it describes {} layers, but manifest.json has {}", diff_ids.len(), saved.layers.len());
            return Err(wrong(&config_name, reason));
        }
        for (layer, diff_id) in saved.layers.iter().zip(&diff_ids) {
            let name = self.stored(layer, MANIFEST_JSON)?;
            match self.contents.file(&name).and_then(|file| file.diff_id) {
                Some(found) if found == diff_id.0 => {}
                Some(found) => {
                    return Err(Error::DigestMismatch { name: quoted(&name), expected: diff_id.0, found });
                }
                None => return Err(wrong(&name, "it is neither a tar nor a complete gzip file".to_owned())),
            }
        }
        self.saved_tags(saved)?;
        let Some(digest) = self.contents.file(&config_name).map(|file| BlobDigest(file.digest)) else {
            return Err(missing(&config_name, MANIFEST_JSON));
        };
        self.images.push(config.into_image(platform, None, digest, diff_ids));
        Ok(digest)
    }

    /// The file behind a name in `manifest.json`: itself, or what a link of that name leads to.
    fn stored(&mut self, name: &str, referrer: &str) -> Result<String, Error> {
        let target = self.contents.link(name).unwrap_or(name);
        if self.contents.file(target).is_none() {
            return Err(missing(name, referrer));
        }
        self.used.insert(target.to_owned());
        Ok(target.to_owned())
    }

    /// The name of the blob that a descriptor refers to, once it is there and has the right size. Its content has the
    /// digest that it is named by, or it would not have been read.
    fn blob(&mut self, descriptor: &Descriptor, referrer: &str) -> Result<String, Error> {
        let name = format!("{BLOBS}{}", descriptor.digest.0);
        let Some(file) = self.contents.file(&name) else {
            return Err(missing(&name, referrer));
        };
        if file.size != descriptor.size {
            let (expected, found) = (descriptor.size, file.size);
            return Err(Error::SizeMismatch { name, referrer: referrer.to_owned(), expected, found });
        }
        self.used.insert(name.clone());
        Ok(name)
    }

    fn read<T: Document>(&mut self, name: &str, referrer: &str) -> Result<T, Error> {
        let Some(file) = self.contents.file(name) else {
            return Err(missing(name, referrer));
        };
        self.used.insert(name.to_owned());
        document::parse(name, file.document(name)?)
    }

    fn saved_tags(&mut self, saved: &Saved) -> Result<(), Error> {
        saved.repo_tags.iter().try_for_each(|tag| self.tag(Some(tag)))
    }

    fn tag(&mut self, tag: Option<&String>) -> Result<(), Error> {
        let Some(tag) = tag else {
            return Ok(());
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/@+".contains(c);
        if tag.is_empty() || tag.len() > MAX_TAG || !tag.chars().all(plain) {
            return Err(wrong(INDEX_JSON, format!("{} is no name of an image", quoted(tag))));
        }
        // Docker's full form and its short form are the same name.
        let short = tag.strip_prefix("docker.io/").map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
        self.tags.insert(short.unwrap_or(tag).to_owned());
        Ok(())
    }

    /// Refuses what nothing refers to: some tool may see an image in it that no one has looked at.
    fn check_rest(&self, kind: Kind) -> Result<(), Error> {
        for (name, file) in self.contents.files().filter(|(name, _)| !self.used.contains(*name)) {
            let tolerated = match kind {
                _ if name == REPOSITORIES => true,
                Kind::DockerArchive => is_legacy_name(name),
                Kind::OciLayout => file.document(name).is_ok_and(|bytes| is_legacy_config(name, bytes)),
            };
            if !tolerated {
                return Err(Error::Unreferenced(quoted(name)));
            }
        }
        for (name, target) in self.contents.links() {
            if kind != Kind::DockerArchive {
                return Err(Error::EntryType { name: quoted(name), found: "a symbolic link".to_owned() });
            }
            if self.contents.file(target).is_none() {
                return Err(missing(target, name));
            }
        }
        for directory in self.contents.directories() {
            let names = self.contents.files().map(|(name, _)| name).chain(self.contents.links().map(|(name, _)| name));
            let above = |name: &str| name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
            if directory != "." && !names.into_iter().any(above) {
                return Err(Error::Unreferenced(quoted(directory)));
            }
        }
        Ok(())
    }
}

impl Config {
    fn platform(&self) -> Result<Platform, String> {
        let fields = document::PlatformFields {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
        };
        fields.checked()
    }

    fn into_image(
        self,
        platform: Platform,
        manifest: Option<BlobDigest>,
        config: BlobDigest,
        layers: Vec<BlobDigest>,
    ) -> PlatformImage {
        let execution = self.config.unwrap_or_default();
        PlatformImage {
            platform,
            manifest,
            config,
            layers,
            user: execution.user.unwrap_or_default(),
            entrypoint: execution.entrypoint,
            labels: execution.labels,
        }
    }
}

impl Platform {
    /// Variants are left out: indexes and configurations often differ in whether they name one at all.
    fn same_machine(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
    }
}

fn check_header(name: &str, version: u64, media_type: Option<&str>, expected: &str) -> Result<(), Error> {
    if version != 2 {
        return Err(wrong(name, format!("schemaVersion is {version}, expected 2")));
    }
    match media_type {
        Some(found) if found != expected => {
            Err(wrong(name, format!("mediaType is {}, expected {expected}", quoted(found))))
        }
        _ => Ok(()),
    }
}

fn is_blob(path: &str, digest: BlobDigest) -> bool {
    path.strip_prefix(BLOBS) == Some(digest.0.to_string().as_str())
}

/// Files of `docker save` for readers from before 2015: `HEX/VERSION` and `HEX/json`.
fn is_legacy_name(name: &str) -> bool {
    matches!(name.split_once('/'), Some((directory, "VERSION" | "json")) if is_hex(directory))
}

/// See [`Legacy`]. One that is an index, a manifest or a configuration as well is not tolerated.
fn is_legacy_config(name: &str, bytes: &[u8]) -> bool {
    document::parse(name, bytes).is_ok_and(|legacy: Legacy| {
        is_hex(&legacy.id) && legacy.rootfs.is_none() && legacy.manifests.is_none() && legacy.layers.is_none()
    })
}

fn is_hex(name: &str) -> bool {
    name.parse::<crate::digest::Digest>().is_ok()
}

fn wrong(document: &str, reason: String) -> Error {
    Error::Document { document: quoted(document), reason }
}

fn missing(name: &str, referrer: &str) -> Error {
    Error::Missing { name: quoted(name), referrer: quoted(referrer) }
}
