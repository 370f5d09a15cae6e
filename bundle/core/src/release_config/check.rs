//! From a tree of nodes to a configuration, or to everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::yaml::{self, Mark, Node, Type, Value, quote};
use super::{AddedFile, Image, Problem, ReleaseConfig};
use crate::manifest::ReleasePath;
use crate::source;

/// What every JSON reader holds exactly.
const MAX_SEQUENCE: u64 = 1 << 53;
/// More signers than any vendor gathers.
const MAX_THRESHOLD: u64 = 100;
/// The manifest's limit for product and channel.
const MAX_WORD: usize = 32;
/// Fits `container-images/NAME.tar` and a repository's name.
const MAX_IMAGE_NAME: usize = 64;

/// Names at the top of every release. The product's own files are below them, now or in a later version.
const RESERVED: [&str; 14] = [
    "bin",
    "cloudformation",
    "config.json",
    "container-images",
    "install.sh",
    "keys",
    "licenses",
    "manifest.json",
    "manifest.json.sig",
    "provenance.json",
    "sbom",
    "scripts",
    "uninstall.sh",
    "version",
];
/// The product's own image.
const RESERVED_IMAGE: &str = crate::image::REPOSITORY;

/// Checks the text of a configuration file in `directory`.
pub(super) fn config(text: &str, directory: &Path) -> Result<ReleaseConfig, Vec<Problem>> {
    let mut checker = Checker { directory, problems: Vec::new() };
    let root = match yaml::parse(text, &mut checker.problems) {
        Ok(Some(root)) if !root.is_nothing() => root,
        Ok(_) => Node { mark: Mark::START, value: Value::Mapping(Vec::new()) },
        Err(problem) => {
            checker.problems.push(problem);
            return Err(sorted(checker.problems));
        }
    };
    let config = checker.root(&root);
    match config {
        Some(config) if checker.problems.is_empty() => Ok(config),
        _ => Err(sorted(checker.problems)),
    }
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| problem.mark);
    problems
}

/// Collects problems. Its functions return `None` after they reported one, and go on with the rest.
struct Checker<'a> {
    directory: &'a Path,
    problems: Vec<Problem>,
}

/// A mapping whose keys are known.
struct Mapping<'a> {
    mark: Mark,
    values: BTreeMap<&'a str, &'a Node>,
}

impl<'a> Mapping<'a> {
    /// The value of a key. Nothing after the colon is the same as no key.
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.values.get(key).copied().filter(|node| !node.is_nothing())
    }
}

impl Checker<'_> {
    fn root(&mut self, root: &Node) -> Option<ReleaseConfig> {
        const KEYS: [&str; 9] = [
            "product",
            "channel",
            "sequence",
            "source",
            "minimum_upgrade_from",
            "signers",
            "threshold",
            "images",
            "files",
        ];
        let mapping = self.mapping(root, &KEYS)?;
        let product = match mapping.get("product") {
            Some(node) => self.word(node, "product"),
            None => Some("self-hosted".to_owned()),
        };
        let channel = self.required(&mapping, "channel", "stable").and_then(|node| self.word(node, "channel"));
        let sequence = self.required(&mapping, "sequence", "1");
        let sequence = sequence.and_then(|node| self.integer(node, "sequence", MAX_SEQUENCE));
        let source = self.required(&mapping, "source", "https://example.com/team/product");
        let source = source.and_then(|node| self.parsed::<source::Url>(node, "source"));
        let minimum_upgrade_from =
            mapping.get("minimum_upgrade_from").map(|node| self.parsed(node, "minimum_upgrade_from"));
        let signers = self.signers(mapping.get("signers"));
        let threshold = match mapping.get("threshold") {
            Some(node) => self.threshold(node, &signers),
            None => Some(1),
        };
        let images = self.images(mapping.get("images"));
        let files = self.files(mapping.get("files"));
        Some(ReleaseConfig {
            product: product?,
            channel: channel?,
            sequence: sequence?,
            source: source?,
            minimum_upgrade_from: match minimum_upgrade_from {
                Some(version) => Some(version?),
                None => None,
            },
            signers: signers.into_iter().collect::<Option<_>>()?,
            threshold: threshold?,
            images,
            files,
            directory: self.directory.to_owned(),
        })
    }

    /// One entry for each signer that is listed, `None` for those with a problem.
    fn signers(&mut self, node: Option<&Node>) -> Vec<Option<PathBuf>> {
        let mut seen = BTreeSet::new();
        let mut signers = Vec::new();
        for item in self.list(node, "signers") {
            let certificate = self.mapping(item, &["certificate"]).and_then(|mapping| {
                let node = self.required(&mapping, "certificate", "keys/release.asc")?;
                let path = self.file(node, "certificate")?;
                if !seen.insert(path.clone()) {
                    self.problem(
                        node.mark,
                        format!("the certificate {} is listed twice", quote(&path.to_string_lossy())),
                    );
                }
                Some(path)
            });
            signers.push(certificate);
        }
        signers
    }

    fn threshold(&mut self, node: &Node, signers: &[Option<PathBuf>]) -> Option<u32> {
        let threshold = self.integer(node, "threshold", MAX_THRESHOLD)?;
        let count = signers.len();
        if count > 0 && threshold > count as u64 {
            let signers = if count == 1 { "signer is" } else { "signers are" };
            self.problem(node.mark, format!("threshold is {threshold}, but only {count} {signers} listed"));
            return None;
        }
        u32::try_from(threshold).ok()
    }

    fn images(&mut self, node: Option<&Node>) -> Vec<Image> {
        let mut names = BTreeSet::new();
        let mut images = Vec::new();
        for item in self.list(node, "images") {
            let Some(mapping) = self.mapping(item, &["name", "path"]) else {
                continue;
            };
            let name_node = self.required(&mapping, "name", "backend");
            let name = name_node.and_then(|node| self.image_name(node));
            if let (Some(node), Some(name)) = (name_node, &name)
                && !names.insert(name.clone())
            {
                self.problem(node.mark, format!("two images have the name {}", quote(name)));
            }
            let path = self.required(&mapping, "path", "build/backend.tar").and_then(|node| self.image_path(node));
            if let (Some(name), Some(path)) = (name, path) {
                images.push(Image { name, path });
            }
        }
        images
    }

    fn image_name(&mut self, node: &Node) -> Option<String> {
        let name = self.text(node, "name")?;
        let piece =
            |piece: &str| !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if name.len() > MAX_IMAGE_NAME || !name.split(['.', '_', '-']).all(piece) {
            let message = format!(
                "{} cannot be an image's name: expected lower-case letters and digits, with single `.`, `_` or `-` \
                 between them, at most {MAX_IMAGE_NAME} characters",
                quote(name)
            );
            self.problem(node.mark, message);
            return None;
        }
        if name == RESERVED_IMAGE {
            self.problem(node.mark, format!("{} is the product's own image; choose another name", quote(name)));
            return None;
        }
        Some(name.to_owned())
    }

    fn image_path(&mut self, node: &Node) -> Option<PathBuf> {
        let path = self.existing(node, "path")?;
        if path.is_dir() && !path.join("oci-layout").is_file() {
            let message = format!(
                "{} is a directory, but not an OCI image layout: it has no `oci-layout`",
                quote(&path.to_string_lossy())
            );
            self.problem(node.mark, message);
            return None;
        }
        Some(path)
    }

    fn files(&mut self, node: Option<&Node>) -> Vec<AddedFile> {
        let mut taken: Vec<(String, ReleasePath)> = Vec::new();
        let mut files = Vec::new();
        for item in self.list(node, "files") {
            let Some(mapping) = self.mapping(item, &["path", "source"]) else {
                continue;
            };
            let path_node = self.required(&mapping, "path", "docs/upgrade.md");
            let path = path_node.and_then(|node| self.archive_path(node, &taken));
            if let Some(path) = &path {
                taken.push((path.as_str().to_ascii_lowercase(), path.clone()));
            }
            let source =
                self.required(&mapping, "source", "docs/upgrade.md").and_then(|node| self.file(node, "source"));
            if let (Some(path), Some(source)) = (path, source) {
                files.push(AddedFile { path, source });
            }
        }
        files
    }

    /// A path in the archive that is free. Compared without case, so that the archive unpacks anywhere.
    fn archive_path(&mut self, node: &Node, taken: &[(String, ReleasePath)]) -> Option<ReleasePath> {
        let path: ReleasePath = self.parsed(node, "path")?;
        let folded = path.as_str().to_ascii_lowercase();
        let top = folded.split('/').next().unwrap_or_default();
        if RESERVED.contains(&top) {
            let message =
                format!("{} is taken by the product itself; choose another directory", quote(path.first_component()));
            self.problem(node.mark, message);
            return None;
        }
        let inside = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        for (other, written) in taken {
            let reason = if *other == folded {
                "are the same path"
            } else if inside(&folded, other) || inside(other, &folded) {
                "cannot both be there: one would be a directory"
            } else {
                continue;
            };
            self.problem(node.mark, format!("{} and {} {reason}", quote(path.as_str()), quote(written.as_str())));
            return None;
        }
        Some(path)
    }

    /// An existing regular file.
    fn file(&mut self, node: &Node, key: &str) -> Option<PathBuf> {
        let path = self.existing(node, key)?;
        if path.is_file() {
            return Some(path);
        }
        let message = format!("{} is not a file; directories are listed file by file", quote(&path.to_string_lossy()));
        self.problem(node.mark, message);
        None
    }

    /// Something that exists, relative to the configuration file.
    fn existing(&mut self, node: &Node, key: &str) -> Option<PathBuf> {
        let text = self.text(node, key)?;
        if text.is_empty() {
            self.problem(node.mark, format!("{key} is empty: expected the path of a file"));
            return None;
        }
        let path = self.directory.join(text);
        match fs::metadata(&path) {
            Ok(_) => Some(path),
            Err(error) => {
                let shown = quote(&path.to_string_lossy());
                self.problem(node.mark, format!("{key}: {shown} cannot be found: {error}"));
                None
            }
        }
    }

    /// A product or channel.
    fn word(&mut self, node: &Node, key: &str) -> Option<String> {
        let text = self.text(node, key)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > MAX_WORD || !text.bytes().all(plain) || text.starts_with('-') {
            let message = format!(
                "{key} is {}: expected 1 to {MAX_WORD} lower-case letters, digits and `-`, not starting with `-`",
                quote(text)
            );
            self.problem(node.mark, message);
            return None;
        }
        Some(text.to_owned())
    }

    /// Text that a type can be read from.
    fn parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, node: &Node, key: &str) -> Option<T> {
        match self.text(node, key)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(node.mark, format!("{key}: {error}"));
                None
            }
        }
    }

    fn text<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n str> {
        match &node.value {
            Value::Scalar(scalar) if scalar.kind() == Type::Text => Some(&scalar.text),
            Value::Scalar(scalar) if scalar.kind() != Type::Nothing => {
                let message = format!("{key}: expected text, found {}; put quotes around it", node.describe());
                self.problem(node.mark, message);
                None
            }
            _ => self.wrong_type(node, key, "text"),
        }
    }

    /// A whole number from 1 to `limit`.
    fn integer(&mut self, node: &Node, key: &str, limit: u64) -> Option<u64> {
        let Value::Scalar(scalar) = &node.value else {
            return self.wrong_type(node, key, "a whole number");
        };
        if scalar.kind() != Type::Number {
            return self.wrong_type(node, key, "a whole number");
        }
        // Only plain digits: other spellings differ between YAML 1.1 and 1.2, `010` among them.
        let plain = !scalar.text.starts_with('0') && scalar.text.bytes().all(|byte| byte.is_ascii_digit());
        match scalar.text.parse() {
            Ok(number) if plain && number >= 1 && number <= limit => Some(number),
            _ => {
                let message = format!("{key} is {}: expected a whole number from 1 to {limit}", scalar.text);
                self.problem(node.mark, message);
                None
            }
        }
    }

    fn list<'n>(&mut self, node: Option<&'n Node>, key: &str) -> &'n [Node] {
        match node.map(|node| (&node.value, node)) {
            None => &[],
            Some((Value::List(items), _)) => items,
            Some((_, node)) => {
                self.wrong_type::<()>(node, key, "a list");
                &[]
            }
        }
    }

    /// A mapping with no other keys than `known`, none of them twice.
    fn mapping<'n>(&mut self, node: &'n Node, known: &[&str]) -> Option<Mapping<'n>> {
        let Value::Mapping(pairs) = &node.value else {
            let keys = known.join(", ");
            if !matches!(node.value, Value::Unusable) {
                self.problem(node.mark, format!("expected a mapping with the keys {keys}; found {}", node.describe()));
            }
            return None;
        };
        let mut first: BTreeMap<&str, Mark> = BTreeMap::new();
        let mut values = BTreeMap::new();
        for (key_node, value) in pairs {
            let Value::Scalar(key) = &key_node.value else {
                self.problem(key_node.mark, format!("expected a key, found {}", key_node.describe()));
                continue;
            };
            let key = key.text.as_str();
            if let Some(first) = first.get(key) {
                let message = format!("the key {} is there twice, first in line {}", quote(key), first.line);
                self.problem(key_node.mark, message);
                continue;
            }
            first.insert(key, key_node.mark);
            if known.contains(&key) {
                values.insert(key, value);
            } else {
                self.problem(key_node.mark, unknown_key(key, known));
            }
        }
        Some(Mapping { mark: node.mark, values })
    }

    fn required<'n>(&mut self, mapping: &Mapping<'n>, key: &str, example: &str) -> Option<&'n Node> {
        let node = mapping.get(key);
        if node.is_none() {
            match mapping.values.get(key) {
                Some(empty) => {
                    self.problem(empty.mark, format!("{key} has no value; write for instance `{key}: {example}`"))
                }
                None => self
                    .problem(mapping.mark, format!("the key `{key}` is missing; add for instance `{key}: {example}`")),
            }
        }
        node
    }

    fn wrong_type<T>(&mut self, node: &Node, key: &str, expected: &str) -> Option<T> {
        // The other kind of unusable was reported where it was found.
        if !matches!(node.value, Value::Unusable) {
            self.problem(node.mark, format!("{key}: expected {expected}, found {}", node.describe()));
        }
        None
    }

    fn problem(&mut self, mark: Mark, message: String) {
        self.problems.push(Problem::new(mark, message));
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|candidate| (distance(key, candidate), candidate)).min();
    match nearest {
        // A third of the letters wrong is still a slip; more is another word.
        Some((distance, candidate)) if distance <= 1.max(candidate.len() / 3) => {
            format!("unknown key {}; did you mean `{candidate}`?", quote(key))
        }
        _ => format!("unknown key {}; known here: {}", quote(key), known.join(", ")),
    }
}

/// Letters to insert, delete, replace or swap with their neighbour to get from one to the other. Case and the choice
/// between `-` and `_` do not count.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    let fold = |text: &str| -> Vec<char> {
        text.chars().take(LONGEST).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
    };
    let (a, b) = (fold(a), fold(b));
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(from != to);
            let mut best = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a.asc", "b.asc", "backend.tar", "notes.md"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        fs::create_dir(directory.path().join("empty")).unwrap();
        fs::create_dir(directory.path().join("layout")).unwrap();
        fs::write(directory.path().join("layout/oci-layout"), "{}").unwrap();
        directory
    }

    const REQUIRED: &str = "channel: stable\nsequence: 1\nsource: https://example.com/x\n";

    /// Problems without the name of the temporary directory, as `LINE:COLUMN: message`.
    fn problems(text: &str) -> Vec<String> {
        let directory = directory();
        let problems = config(text, directory.path()).map(|config| format!("{config:?}")).unwrap_err();
        let prefix = format!("{}/", directory.path().display());
        problems
            .iter()
            .map(|p| format!("{}:{}: {}", p.mark.line, p.mark.column, p.message).replace(&prefix, ""))
            .collect()
    }

    fn only(text: &str) -> String {
        let problems = problems(&format!("{REQUIRED}{text}"));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems[0].clone()
    }

    #[test]
    fn a_full_configuration_is_read_and_written_back_as_it_was() {
        let directory = directory();
        let text = "\
product: acme-hosted
channel: beta
sequence: 9007199254740992
source: https://example.com/acme
minimum_upgrade_from: v1.2.3-rc.1
signers:
  - certificate: a.asc
  - certificate: ./b.asc
threshold: 2
images:
  - {name: back.end_1-x, path: backend.tar}
  - name: other
    path: layout
files:
  - path: docs/notes.md
    source: notes.md
";
        let path = directory.path().join("release.yaml");
        fs::write(&path, text).unwrap();
        let config = ReleaseConfig::read(&path).unwrap();
        assert_eq!(config.sequence, MAX_SEQUENCE);
        assert_eq!(config.signers[0], directory.path().join("a.asc"));
        assert_eq!(config.files[0].source, directory.path().join("notes.md"));
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "product": "acme-hosted", "channel": "beta", "sequence": MAX_SEQUENCE,
                "source": "https://example.com/acme", "minimum_upgrade_from": "v1.2.3-rc.1",
                "signers": [{"certificate": "a.asc"}, {"certificate": "b.asc"}], "threshold": 2,
                "images": [{"name": "back.end_1-x", "path": "backend.tar"}, {"name": "other", "path": "layout"}],
                "files": [{"path": "docs/notes.md", "source": "notes.md"}],
            })
        );
    }

    #[test]
    fn defaults_are_filled_in_and_empty_lists_may_be_left_open() {
        let directory = directory();
        let config = config(&format!("{REQUIRED}images:\nfiles: # none\nproduct:\n"), directory.path()).unwrap();
        assert_eq!((config.product.as_str(), config.threshold), ("self-hosted", 1));
        assert!(config.images.is_empty() && config.signers.is_empty() && config.minimum_upgrade_from.is_none());
    }

    #[test]
    fn everything_that_is_wrong_is_reported_at_once_in_the_order_of_the_file() {
        let text = "\
chanel: stable
sequence: \"7\"
source: https://user:secret@example.com/x
minimum_upgrade_from: 1.2
signers:
  - certificate: a.asc
threshold: 3
images:
  - name: Backend
    path: missing.tar
  - nam: x
  - plain
files:
  - path: bin/x
    source: empty
extra: 1
sequence: 8
";
        assert_eq!(
            problems(text),
            [
                "1:1: unknown key `chanel`; did you mean `channel`?",
                "1:1: the key `channel` is missing; add for instance `channel: stable`",
                "2:11: sequence: expected a whole number, found the text `7`",
                "3:9: source: it cannot be the source repository's address: it has a user name or password, which would \
                 be published with the release; expected something like https://example.com/team/product",
                "4:23: minimum_upgrade_from: expected text, found the number 1.2; put quotes around it",
                "7:12: threshold is 3, but only 1 signer is listed",
                "9:11: `Backend` cannot be an image's name: expected lower-case letters and digits, with single `.`, `_` \
                 or `-` between them, at most 64 characters",
                "10:11: path: `missing.tar` cannot be found: No such file or directory (os error 2)",
                "11:5: unknown key `nam`; did you mean `name`?",
                "11:5: the key `name` is missing; add for instance `name: backend`",
                "11:5: the key `path` is missing; add for instance `path: build/backend.tar`",
                "12:5: expected a mapping with the keys name, path; found the text `plain`",
                "14:11: `bin` is taken by the product itself; choose another directory",
                "15:13: `empty` is not a file; directories are listed file by file",
                "16:1: unknown key `extra`; known here: product, channel, sequence, source, minimum_upgrade_from, \
                 signers, threshold, images, files",
                "17:1: the key `sequence` is there twice, first in line 2",
            ]
        );
    }

    #[test]
    fn an_empty_file_lacks_every_required_key() {
        for text in ["", "# nothing\n", "---\n", "{}"] {
            let problems = problems(text);
            assert_eq!(problems.len(), 3, "{problems:#?}");
        }
    }

    #[test]
    fn numbers_have_one_spelling_and_limits() {
        for sequence in ["0", "-1", "1.0", "1e3", "0x10", "010", "9007199254740993", "99999999999999999999", "+1"] {
            let text = format!("channel: stable\nsource: https://example.com/x\nsequence: {sequence}\n");
            let problems = problems(&text);
            assert!(problems[0].starts_with("3:11: sequence is "), "{problems:?}");
        }
        assert!(only("threshold: 0").contains("expected a whole number from 1 to 100"));
        assert!(only("threshold: true").contains("found the truth value true"));
        assert!(only("threshold: [1]").contains("found a list"));
    }

    #[test]
    fn words_are_plain() {
        for word in ["Stable", "''", "-x", "a_b", "a/b", "ä", "../x", "abcdefghijklmnopqrstuvwxyz-123456"] {
            assert!(only(&format!("product: {word}")).starts_with("4:10: product is "), "{word}");
        }
    }

    #[test]
    fn versions_have_the_documented_form() {
        assert!(only("minimum_upgrade_from: 1.2.3").contains("is not a release version"));
        assert!(only("minimum_upgrade_from: v1.2").contains("is not a release version"));
    }

    #[test]
    fn files_cannot_hide_or_replace_others() {
        for (path, reason) in [
            ("/etc/x", "absolute"),
            ("../x", "`..`"),
            ("a//b", "empty component"),
            ("a b", "only letters"),
            ("version", "taken by the product"),
            ("Manifest.json", "taken by the product"),
            ("container-images/x.tar", "taken by the product"),
            ("licenses/x", "taken by the product"),
        ] {
            let problem = only(&format!("files: [{{path: \"{path}\", source: notes.md}}]"));
            assert!(problem.contains(reason), "{problem}");
        }
        for (one, other, reason) in [("a", "A", "same path"), ("a", "a/b", "directory"), ("a/b", "a", "directory")] {
            let text = format!("files: [{{path: {one}, source: notes.md}}, {{path: {other}, source: notes.md}}]");
            assert!(only(&text).contains(reason));
        }
    }

    #[test]
    fn images_and_signers_are_listed_once_and_exist() {
        let two = "images: [{name: a, path: backend.tar}, {name: a, path: layout}]";
        assert!(only(two).contains("two images have the name `a`"));
        assert!(only("images: [{name: spacelift-launcher, path: layout}]").contains("own image"));
        assert!(only("images: [{name: a, path: empty}]").contains("no `oci-layout`"));
        assert!(only("images: [{name: a--b, path: layout}]").contains("cannot be an image's name"));
        assert!(only("signers: [{certificate: a.asc}, {certificate: a.asc}]").contains("listed twice"));
        assert!(only("signers: [{certificate: gone.asc}]").contains("cannot be found"));
        assert!(only("signers: a.asc").contains("expected a list, found the text `a.asc`"));
    }

    #[test]
    fn yaml_with_more_than_values_is_refused() {
        assert!(only("threshold: &x 1").contains("anchors"));
        assert!(only("threshold: !!int 1").contains("tags"));
        let aliases = problems(&format!("{REQUIRED}threshold: &x 1\nproduct: *x\n"));
        assert!(aliases.len() == 2 && aliases[1].contains("aliases"), "{aliases:?}");
        assert!(only("---\nchannel: other\n").contains("second document"));
        assert!(only("images: [}").contains("not YAML"));
        assert!(only("? [a]\n: b\n").contains("expected a key, found a list"));
        assert!(problems("just text")[0].contains("expected a mapping"));
    }

    #[test]
    fn an_unreadable_file_and_mistakes_have_different_exit_codes() {
        let directory = directory();
        let missing = ReleaseConfig::read(&directory.path().join("release.yaml")).unwrap_err();
        assert_eq!((missing.exit_code(), missing.list().count()), (66, 0));
        let path = directory.path().join("bad.yaml");
        for (contents, expected) in
            [(vec![b'#'; 1024 * 1024 + 1], "more than 1048576 bytes"), (vec![0xff], "not UTF-8")]
        {
            fs::write(&path, contents).unwrap();
            let problems = ReleaseConfig::read(&path).unwrap_err();
            assert_eq!(problems.exit_code(), 64);
            assert!(problems.to_string().contains(expected), "{problems}");
        }
    }

    #[test]
    fn long_lists_of_problems_are_cut() {
        let directory = directory();
        let path = directory.path().join("release.yaml");
        fs::write(&path, "x: 1\n".repeat(100)).unwrap();
        let shown = ReleaseConfig::read(&path).unwrap_err().to_string();
        assert_eq!(shown.lines().count(), 51);
        assert!(shown.ends_with("release.yaml: and 53 more"), "{shown}");
    }
}
