//! `manifest.json`: what a release is, and every file in it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::names::is_signature_name;
use crate::version::ReleaseVersion;

/// The manifest's name in the release directory.
pub const MANIFEST: &str = "manifest.json";
/// The name of the manifest's detached signature.
pub const MANIFEST_SIGNATURE: &str = "manifest.json.sig";
/// The name of the file that holds the release's version and a newline.
pub const VERSION: &str = "version";

/// The only format that this program writes and reads. A change that an older verifier must not overlook gets the next
/// number; unknown fields are errors, so every change is one.
const FORMAT: u32 = 1;

/// Limit of `manifest.json` in bytes: with the two tar headers before it, it fits the archive's first gzip member, which
/// is what lets a signature be added without packing again. Room for some 4,000 files.
pub const MAX_MANIFEST: usize = 900 * 1024;
/// Limit of the number of files, so that a verifier's tables stay small.
pub const MAX_FILES: usize = 4_000;
/// Limit of one file: a backend's image with room to spare, and below what a tar header can hold in octal.
pub const MAX_FILE: u64 = 8_000_000_000;
/// Limit of all files together.
pub const MAX_TOTAL: u64 = 64_000_000_000;
/// Limit of a path, so that with the directory before it every one fits a plain ustar header.
const MAX_PATH: usize = 150;

/// The contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's own format.
    pub format: u32,
    /// Product name; the archive and its directory are called `PRODUCT-VERSION`.
    pub product: String,
    /// The release's version.
    pub version: ReleaseVersion,
    /// Grows with every release of a channel; what a rollback is measured by.
    pub sequence: u64,
    /// The channel that the release belongs to, such as `stable`.
    pub channel: String,
    /// Whether it was made without a release key. Such a release is refused unless asked for by name.
    pub development: bool,
    /// The commit that it was built from: 40 hexadecimal digits (64 in a SHA-256 repository), or `unknown`.
    pub commit: String,
    /// Whether the work tree differed from that commit.
    pub modified: bool,
    /// Time of the commit in seconds since 1970, and the modification time of every file in the archive.
    pub source_date: u64,
    /// Where the sources are.
    pub source: String,
    /// The oldest version that may be upgraded to this one directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_upgrade_from: Option<ReleaseVersion>,
    /// How many distinct signers the vendor intends. What counts is the customer's own threshold.
    pub threshold: u32,
    /// The architectures whose binaries are in the release: `x86_64`, `aarch64`.
    pub targets: Vec<String>,
    /// Every file but the manifest and its signature, sorted by path.
    pub files: Vec<File>,
    /// Every container image, sorted by name.
    pub images: Vec<Image>,
}

/// One file of the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Path below the release directory.
    pub path: ReleasePath,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the contents.
    pub sha256: Digest,
    /// Permission bits.
    pub mode: Mode,
    /// What it is for.
    pub kind: Kind,
}

/// One container image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Repository name, such as `spacelift-launcher`.
    pub name: String,
    /// The tar file that holds it.
    pub path: ReleasePath,
    /// Digest of the image index or manifest (`sha256:…`).
    pub digest: String,
    /// Platforms such as `linux/amd64`, sorted.
    pub platforms: Vec<String>,
}

/// What a file is for. It follows from the path, see [`Kind::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An executable in `bin/`.
    Binary,
    /// A CloudFormation template.
    Template,
    /// A container image.
    Image,
    /// A shell script.
    Script,
    /// The customer's configuration.
    Config,
    /// The `version` file.
    Version,
    /// A software bill of materials.
    Sbom,
    /// How the release was built.
    Provenance,
    /// A signer's certificate.
    Key,
    /// A licence or notice.
    License,
    /// Anything else that the vendor adds.
    File,
}

impl Kind {
    /// The kind of the file at `path`.
    pub fn of(path: &ReleasePath) -> Self {
        match (path.first_component(), path.as_str()) {
            (_, VERSION) => Self::Version,
            (_, "config.json") => Self::Config,
            (_, "provenance.json") => Self::Provenance,
            (_, "install.sh" | "uninstall.sh") => Self::Script,
            ("bin", _) => Self::Binary,
            ("cloudformation", _) => Self::Template,
            ("container-images", _) => Self::Image,
            ("scripts", _) => Self::Script,
            ("sbom", _) => Self::Sbom,
            ("keys", _) => Self::Key,
            ("licenses", _) => Self::License,
            _ => Self::File,
        }
    }
}

/// Permission bits of a file in a release: nothing but these two exists, so no set-user-id bit can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// `0755`
    #[serde(rename = "0755")]
    Executable,
    /// `0644`
    #[serde(rename = "0644")]
    Plain,
}

impl Mode {
    /// The mode of the file at `path`. It does not depend on the file system that the release is packed on.
    pub fn of(path: &ReleasePath) -> Self {
        let text = path.as_str();
        if path.first_component() == "bin" && text != "bin" || text.ends_with(".sh") {
            Self::Executable
        } else {
            Self::Plain
        }
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::Executable => 0o755,
            Self::Plain => 0o644,
        }
    }
}

/// A path in a release: relative, normalised, of plain characters. It cannot leave the directory it is joined to, and it
/// prints safely.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ReleasePath(String);

/// A string that cannot be a path in a release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be a path in a release: {reason}")]
pub struct PathError {
    path: String,
    reason: &'static str,
}

impl ReleasePath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is before the first `/`, or the whole path.
    pub fn first_component(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// Every directory above the file, outermost first: `a/b/c` gives `a`, `a/b`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(index, _)| &self.0[..index])
    }
}

impl fmt::Display for ReleasePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ReleasePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for ReleasePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| Err(PathError { path: text.chars().take(200).collect(), reason });
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+@=-".contains(c);
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > MAX_PATH {
            return refuse("it is longer than 150 characters");
        }
        if text.starts_with('/') {
            return refuse("it is absolute");
        }
        for component in text.split('/') {
            match component {
                "" => return refuse("it has an empty component"),
                "." | ".." => return refuse("it has a `.` or `..` component"),
                _ if component.len() > 95 => return refuse("a component is longer than 95 characters"),
                _ if !component.chars().all(plain) => {
                    return refuse("only letters, digits and `._+@=-` are allowed between slashes");
                }
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl From<ReleasePath> for String {
    fn from(path: ReleasePath) -> Self {
        path.0
    }
}

impl TryFrom<String> for ReleasePath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A manifest that breaks its own rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON of the expected shape.
    #[error("manifest.json cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later format.
    #[error(
        "manifest.json has format {0}, this program reads format {FORMAT}: use the spacelift-bundle of that release"
    )]
    Format(u64),
    /// Too large.
    #[error("manifest.json has {0} bytes, more than the limit of {MAX_MANIFEST}")]
    TooLarge(usize),
    /// Any other broken rule.
    #[error("manifest.json: {0}")]
    Rule(String),
}

impl Manifest {
    /// The format number that a new manifest carries.
    pub fn current_format() -> u32 {
        FORMAT
    }

    /// `PRODUCT-VERSION`: the name of the directory in the archive.
    pub fn root(&self) -> String {
        format!("{}-{}", self.product, self.version)
    }

    /// The file's entry, if there is one at `path`.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path.as_str() == path)
    }

    /// The bytes of `manifest.json`: always the same for the same manifest.
    ///
    /// # Errors
    /// It is larger than [`MAX_MANIFEST`] or breaks a rule.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        if bytes.len() > MAX_MANIFEST {
            return Err(Error::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads `manifest.json` and checks every rule that can be checked without the files.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        if bytes.len() > MAX_MANIFEST {
            return Err(Error::TooLarge(bytes.len()));
        }
        // The format comes first: a later one may well have fields that this program would call unknown.
        let Format { format } = serde_json::from_slice(bytes)?;
        if format != u64::from(FORMAT) {
            return Err(Error::Format(format));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Error> {
        let rule = |text: String| Err(Error::Rule(text));
        let word = |text: &str, limit: usize| {
            !text.is_empty()
                && text.len() <= limit
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if !word(&self.product, 32) || !word(&self.channel, 32) {
            return rule("product and channel are 1 to 32 lower-case letters, digits or `-`".into());
        }
        let hex =
            |text: &str| matches!(text.len(), 40 | 64) && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
        if self.commit != "unknown" && !hex(&self.commit) {
            return rule("commit is neither 40 or 64 lower-case hexadecimal digits nor `unknown`".into());
        }
        if self.files.len() > MAX_FILES {
            return rule(format!("{} files are more than the limit of {MAX_FILES}", self.files.len()));
        }
        let mut directories = BTreeSet::new();
        let mut paths = BTreeSet::new();
        let mut total = 0_u64;
        let mut previous: Option<&ReleasePath> = None;
        for file in &self.files {
            let path = &file.path;
            if previous.is_some_and(|previous| previous >= path) {
                return rule(format!("files are not sorted by path, or {path} stands twice"));
            }
            previous = Some(path);
            if matches!(path.as_str(), MANIFEST | MANIFEST_SIGNATURE) || is_signature_name(path.as_str()) {
                return rule(format!("it lists {path} itself"));
            }
            if file.kind != Kind::of(path) || file.mode != Mode::of(path) {
                return rule(format!("kind or mode of {path} is not the one that its path calls for"));
            }
            if file.size > MAX_FILE {
                return rule(format!("{path} has {} bytes, more than the limit of {MAX_FILE}", file.size));
            }
            total = total.saturating_add(file.size);
            directories.extend(path.parents());
            paths.insert(path.as_str());
        }
        if total > MAX_TOTAL {
            return rule(format!("the files have {total} bytes together, more than the limit of {MAX_TOTAL}"));
        }
        if let Some(both) = paths.iter().find(|path| directories.contains(**path)) {
            return rule(format!("{both} is both a file and a directory"));
        }
        let taken =
            |directory: &&&str| matches!(**directory, MANIFEST | MANIFEST_SIGNATURE) || is_signature_name(directory);
        if let Some(directory) = directories.iter().find(taken) {
            return rule(format!("{directory} is used as a directory"));
        }
        if !self.images.windows(2).all(|pair| pair[0].name < pair[1].name) {
            return rule("images are not sorted by name, or one stands twice".into());
        }
        let listed: BTreeSet<_> = self.images.iter().map(|image| image.path.as_str()).collect();
        let present: BTreeSet<_> =
            self.files.iter().filter(|file| file.kind == Kind::Image).map(|file| file.path.as_str()).collect();
        if listed != present {
            return rule("the list of images and the files under container-images/ differ".into());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest(files: &[(&str, &[u8])]) -> Manifest {
        let mut files: Vec<_> = files
            .iter()
            .map(|(path, contents)| {
                let path: ReleasePath = path.parse().unwrap();
                File {
                    size: contents.len() as u64,
                    sha256: Digest::of(contents),
                    mode: Mode::of(&path),
                    kind: Kind::of(&path),
                    path,
                }
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Manifest {
            format: FORMAT,
            product: "self-hosted".into(),
            version: "v1.2.3".parse().unwrap(),
            sequence: 7,
            channel: "stable".into(),
            development: false,
            commit: "unknown".into(),
            modified: false,
            source_date: 1_700_000_000,
            source: "https://example.com/source".into(),
            minimum_upgrade_from: None,
            threshold: 1,
            targets: vec!["x86_64".into()],
            files,
            images: Vec::new(),
        }
    }

    /// Signatures of launchers lie beside what is listed: a directory in their place would keep them out.
    #[test]
    fn names_that_are_taken_are_no_directories() {
        for taken in [MANIFEST, MANIFEST_SIGNATURE, "spacelift-launcher-x86_64_SHA256SUMS.sig"] {
            let below = format!("{taken}/file");
            let error = manifest(&[(&below, b"")]).to_bytes().unwrap_err().to_string();
            assert!(error.contains("is used as a directory"), "{error}");
        }
    }

    #[test]
    fn is_read_as_it_was_written() {
        let manifest = manifest(&[("version", b"v1.2.3\n"), ("bin/tool", b"x"), ("a/b/c.sh", b"")]);
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
    }

    #[test]
    fn paths_that_could_escape_or_confuse_are_refused() {
        for path in
            ["", "/a", "a//b", "a/", "./a", "a/../b", "..", "a\\b", "a\nb", "a b", "ä", "a\0", &"x".repeat(151), "a:b"]
        {
            assert!(path.parse::<ReleasePath>().is_err(), "{path:?}");
        }
    }

    #[test]
    fn broken_rules_are_refused() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 11] = [
            ("format", |m| m.format = 2),
            ("duplicate", |m| m.files.push(m.files[1].clone())),
            ("unsorted", |m| m.files.swap(0, 1)),
            ("mode", |m| m.files[0].mode = Mode::Plain),
            ("kind", |m| m.files[0].kind = Kind::File),
            ("size", |m| m.files[0].size = MAX_FILE + 1),
            ("commit", |m| m.commit = "HEAD".into()),
            ("product", |m| m.product = "../x".into()),
            ("file and directory", |m| {
                let mut file = m.files[1].clone();
                file.path = "version/x".parse().unwrap();
                file.kind = Kind::File;
                m.files.push(file);
            }),
            ("itself", |m| {
                let mut file = m.files[1].clone();
                file.path = MANIFEST.parse().unwrap();
                file.kind = Kind::of(&file.path);
                m.files.insert(1, file);
            }),
            ("image not listed", |m| {
                m.files[1].path = "container-images/x.tar".parse().unwrap();
                m.files[1].kind = Kind::Image;
            }),
        ];
        for (name, change) in changes {
            let mut changed = manifest(&[("version", b"v1.2.3\n"), ("bin/tool", b"x")]);
            change(&mut changed);
            let bytes = serde_json::to_vec(&changed).unwrap();
            assert!(Manifest::from_bytes(&bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = String::from_utf8(manifest(&[]).to_bytes().unwrap()).unwrap();
        assert!(Manifest::from_bytes(text.replacen('{', "{\"surprise\": 1,", 1).as_bytes()).is_err());
    }
}
