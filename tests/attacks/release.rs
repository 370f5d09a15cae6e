//! Releases: the archive as it should be, built piece by piece so that a case can exchange any piece.
//!
//! This does not use the archive writer of the program under test: that one cannot make a wrong archive, and two
//! independent writers that agree about the good ones are worth more than one.

use std::collections::BTreeSet;
use std::io::Write as _;

use bundle_core::digest::Digest;
use bundle_core::gzip;
use bundle_core::manifest::{File, Image, Kind, Manifest, Mode, ReleasePath};
use bundle_core::sums;

use crate::keys::{DAY, MADE, Signer};

pub(crate) const PRODUCT: &str = "self-hosted";
pub(crate) const VERSION: &str = "v1.2.3";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The time that every file in an archive has.
pub(crate) const SOURCE_DATE: u64 = MADE + 150 * DAY;

const BLOCK: usize = 512;

/// A release before it is packed: a manifest and the files that it lists.
#[derive(Clone)]
pub(crate) struct Release {
    manifest: Manifest,
    contents: Vec<Vec<u8>>,
}

impl Release {
    /// The smallest release: `version`, and nothing else.
    pub(crate) fn new() -> Self {
        Self::of_version(VERSION)
    }

    /// As [`Release::new`], of another version.
    pub(crate) fn of_version(version: &str) -> Self {
        let manifest = Manifest {
            format: Manifest::current_format(),
            product: PRODUCT.into(),
            version: version.parse().expect("a version"),
            sequence: 7,
            channel: "stable".into(),
            development: false,
            commit: COMMIT.into(),
            modified: false,
            source_date: SOURCE_DATE,
            source: "https://example.com/source".into(),
            minimum_upgrade_from: None,
            threshold: 1,
            targets: Vec::new(),
            files: Vec::new(),
            images: Vec::new(),
        };
        Self { manifest, contents: Vec::new() }.file("version", format!("{version}\n"))
    }

    /// Adds or replaces a file.
    pub(crate) fn file(mut self, path: &str, contents: impl Into<Vec<u8>>) -> Self {
        let contents = contents.into();
        let path: ReleasePath = path.parse().expect("a path");
        let file = File {
            size: contents.len() as u64,
            sha256: Digest::of(&contents),
            mode: Mode::of(&path),
            kind: Kind::of(&path),
            path,
        };
        match self.manifest.files.binary_search_by(|known| known.path.cmp(&file.path)) {
            Ok(at) => {
                self.manifest.files[at] = file;
                self.contents[at] = contents;
            }
            Err(at) => {
                self.manifest.files.insert(at, file);
                self.contents.insert(at, contents);
            }
        }
        self
    }

    /// Removes a file.
    pub(crate) fn without(mut self, path: &str) -> Self {
        let at = self.manifest.files.iter().position(|file| file.path.as_str() == path).expect("a file");
        self.manifest.files.remove(at);
        self.contents.remove(at);
        self
    }

    /// Adds an image, and lists it as it is.
    pub(crate) fn image(mut self, name: &str, tar: &[u8]) -> anyhow::Result<Self> {
        let path = format!("container-images/{name}.tar");
        self = self.file(&path, tar);
        let summary = bundle_core::image::summarize(tar)?;
        self.manifest.images.push(Image {
            name: name.into(),
            path: path.parse()?,
            digest: summary.digest.to_string(),
            platforms: summary.platforms.iter().map(|image| image.platform.to_string()).collect(),
        });
        self.manifest.images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(self)
    }

    /// Changes what the manifest says.
    pub(crate) fn manifest(mut self, change: impl FnOnce(&mut Manifest)) -> Self {
        change(&mut self.manifest);
        self
    }

    /// The bytes of `manifest.json`, whether or not they are in order.
    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(&self.manifest).expect("a manifest is JSON");
        bytes.push(b'\n');
        bytes
    }

    pub(crate) fn root(&self) -> String {
        self.manifest.root()
    }

    /// The archive's file name.
    pub(crate) fn name(&self) -> String {
        format!("{}.tar.gz", self.root())
    }

    /// The archive's entries, with a manifest signed by `signer`.
    pub(crate) fn entries(&self, signer: &Signer) -> anyhow::Result<Vec<Entry>> {
        self.entries_of(&[signer])
    }

    /// As [`Release::entries`], signed by several.
    pub(crate) fn entries_of(&self, signers: &[&Signer]) -> anyhow::Result<Vec<Entry>> {
        let manifest = self.manifest_bytes();
        let mut entries = self.entries_with(&manifest, &sign_all(signers, &manifest)?);
        for (at, (name, sums)) in self.launcher_sums().into_iter().enumerate() {
            let signature = sign_all(signers, sums.as_bytes())?;
            entries.insert(3 + at, Entry::file(&format!("{}/{name}", self.root()), 0o644, &signature));
        }
        Ok(entries)
    }

    /// For each launcher the name of the signature over its sums, and the sums.
    fn launcher_sums(&self) -> Vec<(String, String)> {
        let launchers = [("bin/spacelift-launcher", "x86_64"), ("bin/spacelift-launcher-aarch64", "aarch64")];
        let digest = |path| self.manifest.files.iter().find(|file| file.path.as_str() == path).map(|file| file.sha256);
        let of = |(path, architecture)| {
            let sums = sums::line(digest(path)?, &format!("spacelift-launcher-{architecture}"));
            Some((format!("spacelift-launcher-{architecture}_SHA256SUMS.sig"), sums))
        };
        launchers.into_iter().filter_map(of).collect()
    }

    /// The archive's entries with any manifest and any signature, and none over launchers.
    pub(crate) fn entries_with(&self, manifest: &[u8], signature: &[u8]) -> Vec<Entry> {
        let root = self.root();
        let mut entries = vec![
            Entry::directory(&format!("{root}/")),
            Entry::file(&format!("{root}/manifest.json"), 0o644, manifest),
            Entry::file(&format!("{root}/manifest.json.sig"), 0o644, signature),
        ];
        let mut directories = BTreeSet::new();
        for (file, contents) in self.manifest.files.iter().zip(&self.contents) {
            for parent in file.path.parents() {
                if directories.insert(parent) {
                    entries.push(Entry::directory(&format!("{root}/{parent}/")));
                }
            }
            entries.push(Entry::file(&format!("{root}/{}", file.path), file.mode.bits(), contents));
        }
        entries
    }

    /// The release, packed and signed.
    pub(crate) fn package(&self, signer: &Signer) -> anyhow::Result<Package> {
        self.package_of(&[signer])
    }

    /// As [`Release::package`], signed by several.
    pub(crate) fn package_of(&self, signers: &[&Signer]) -> anyhow::Result<Package> {
        let archive = pack(&self.entries_of(signers)?);
        Package::new(&self.name(), archive).signed_by(signers)
    }

    /// The release, packed from entries that a case has changed, and signed over all.
    pub(crate) fn package_with(&self, signer: &Signer, entries: &[Entry]) -> anyhow::Result<Package> {
        Package::new(&self.name(), pack(entries)).signed_by(&[signer])
    }

    /// The release as a directory: every file with its path below the directory of the case.
    pub(crate) fn unpacked(&self, signers: &[&Signer]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let manifest = self.manifest_bytes();
        let signature = sign_all(signers, &manifest)?;
        let root = self.root();
        let mut files =
            vec![(format!("{root}/manifest.json"), manifest), (format!("{root}/manifest.json.sig"), signature)];
        for (name, sums) in self.launcher_sums() {
            files.push((format!("{root}/{name}"), sign_all(signers, sums.as_bytes())?));
        }
        for (file, contents) in self.manifest.files.iter().zip(&self.contents) {
            files.push((format!("{root}/{}", file.path), contents.clone()));
        }
        Ok(files)
    }
}

fn sign_all(signers: &[&Signer], text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut signatures = Vec::new();
    for signer in signers {
        signatures.extend(signer.sign(text)?);
    }
    Ok(signatures)
}

/// An entry of a tar stream: header, contents and what pads them.
#[derive(Clone)]
pub(crate) struct Entry {
    header: tar::Header,
    contents: Vec<u8>,
    padding: Vec<u8>,
}

impl Entry {
    pub(crate) fn file(path: &str, mode: u32, contents: &[u8]) -> Self {
        Self::new(path, tar::EntryType::Regular, mode, contents)
    }

    pub(crate) fn directory(path: &str) -> Self {
        Self::new(path, tar::EntryType::Directory, 0o755, b"")
    }

    /// Any kind of entry. The path is taken as it is, however hostile.
    pub(crate) fn new(path: &str, kind: tar::EntryType, mode: u32, contents: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        set_path(&mut header, path);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(contents.len() as u64);
        header.set_mtime(SOURCE_DATE);
        header.set_cksum();
        let padding = vec![0; contents.len().next_multiple_of(BLOCK) - contents.len()];
        Self { header, contents: contents.to_vec(), padding }
    }

    pub(crate) fn link(path: &str, kind: tar::EntryType, target: &str) -> Self {
        Self::new(path, kind, 0o777, b"").with(|header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    /// Changes the header and makes its checksum right again.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut tar::Header)) -> Self {
        change(&mut self.header);
        self.header.set_cksum();
        self
    }

    /// Changes the header and leaves its checksum as it is.
    pub(crate) fn with_raw(mut self, change: impl FnOnce(&mut tar::Header)) -> Self {
        change(&mut self.header);
        self
    }

    /// Exchanges the contents and leaves the header as it is.
    pub(crate) fn with_contents(mut self, contents: &[u8]) -> Self {
        self.padding = vec![0; contents.len().next_multiple_of(BLOCK) - contents.len()];
        self.contents = contents.to_vec();
        self
    }

    /// Writes into the padding after the contents.
    pub(crate) fn with_padding(mut self, text: &[u8]) -> Self {
        self.padding[..text.len()].copy_from_slice(text);
        self
    }

    pub(crate) fn path(&self) -> String {
        String::from_utf8_lossy(&self.header.path_bytes()).into_owned()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.header.as_bytes()[..], &self.contents, &self.padding].concat()
    }
}

/// Splits a long path between the two fields as everyone does, at a slash.
fn set_path(header: &mut tar::Header, path: &str) {
    if path.len() > 100 {
        header.set_path(path).expect("a path that fits");
        return;
    }
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
}

/// What ends a tar stream.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The archive of these entries: root and manifest in the first gzip member, the signatures in the second, then the rest.
pub(crate) fn pack(entries: &[Entry]) -> Vec<u8> {
    let bytes = |entries: &[Entry]| entries.iter().map(Entry::bytes).collect::<Vec<_>>().concat();
    let (head, rest) = entries.split_at(entries.len().min(2));
    let (signatures, rest) = rest.split_at(rest.iter().take_while(|entry| entry.path().ends_with(".sig")).count());
    compress(&[bytes(head), bytes(signatures), [&bytes(rest)[..], &END].concat()])
}

/// The archive of a tar stream that was put together by hand, in pieces that each begin a gzip member.
pub(crate) fn compress(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = gzip::Writer::new(Vec::new(), 1);
    for piece in pieces {
        writer.write_all(piece).expect("memory");
        writer.end_member().expect("memory");
    }
    writer.finish().expect("memory")
}

/// The three files of a release.
#[derive(Clone)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) archive: Vec<u8>,
    pub(crate) sums: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

impl Package {
    /// An archive with its sums, not signed.
    pub(crate) fn new(name: &str, archive: Vec<u8>) -> Self {
        let sums = sums::line(Digest::of(&archive), name).into_bytes();
        Self { name: name.into(), archive, sums, signature: Vec::new() }
    }

    /// Signs the sums as they are.
    pub(crate) fn signed_by(mut self, signers: &[&Signer]) -> anyhow::Result<Self> {
        self.signature.clear();
        for signer in signers {
            self.signature.extend(signer.sign(&self.sums)?);
        }
        Ok(self)
    }

    /// Exchanges the sums and signs them.
    pub(crate) fn with_sums(mut self, signer: &Signer, sums: impl Into<Vec<u8>>) -> anyhow::Result<Self> {
        self.sums = sums.into();
        self.signed_by(&[signer])
    }

    /// The same files with another signature.
    pub(crate) fn with_signature(mut self, signature: impl Into<Vec<u8>>) -> Self {
        self.signature = signature.into();
        self
    }

    /// The same sums and signature with another archive.
    pub(crate) fn with_archive(mut self, archive: impl Into<Vec<u8>>) -> Self {
        self.archive = archive.into();
        self
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.archive)
    }

    /// The documented names with their contents.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let sums = format!("{}{}", self.name, sums::SUFFIX);
        vec![
            (self.name.clone(), self.archive.clone()),
            (sums.clone(), self.sums.clone()),
            (format!("{sums}{}", sums::SIGNATURE_SUFFIX), self.signature.clone()),
        ]
    }
}
