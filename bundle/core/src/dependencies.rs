//! What a program is made of, from what cargo says about it.
//!
//! Three documents are put together, because none of them has everything:
//!
//! - `cargo tree -p PROGRAM --target TRIPLE --edges normal,build --prefix none` has the exact set of crates: features
//!   are resolved for this one program and this one target, as for the build itself;
//! - `cargo metadata --filter-platform TRIPLE` has licences, authors and who depends on whom, but for the whole
//!   workspace at once, so its graph is cut down to the set;
//! - `Cargo.lock` has the checksums.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;

/// Limit of each of the three documents. Those of a workspace with 2,000 crates are smaller.
const MAX_DOCUMENT: u64 = 256 * 1024 * 1024;

/// Why the documents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A document is not what it should be.
    #[error("{}: {reason}; expected the output of `{command}`", .path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What makes such a document.
        command: &'static str,
    },
    /// A licence text that is none.
    #[error("{} has more than {limit} bytes, which no licence has; the crate's source is damaged", .path.display())]
    LongText {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The documents are not about the same sources.
    #[error("{0}; make metadata, tree and Cargo.lock again, all with --locked and from the same sources")]
    Disagreement(String),
    /// The SBOM cannot be put into JSON.
    #[error("the SBOM cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The exit code for it: 66 if a file cannot be read, 65 if its contents are of no use.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { .. } => 66,
            Self::Document { .. } | Self::LongText { .. } | Self::Disagreement(_) => 65,
            Self::Json(_) => 1,
        }
    }
}

/// The crates of a workspace and of everything that it depends on.
#[derive(Debug)]
pub struct Metadata {
    packages: BTreeMap<String, Package>,
    edges: BTreeMap<String, Vec<Edge>>,
}

/// A crate.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it comes from; `None` for members of the workspace.
    pub source: Option<String>,
    /// Licence as its author wrote it, usually an SPDX expression.
    pub license: Option<String>,
    /// Licence file, for licences without a name.
    pub license_file: Option<PathBuf>,
    /// Authors, often with addresses.
    #[serde(default)]
    pub authors: Vec<String>,
    /// Source repository.
    pub repository: Option<String>,
    /// Home page.
    pub homepage: Option<String>,
    /// Its `Cargo.toml` on this machine.
    pub manifest_path: PathBuf,
    id: String,
    targets: Vec<Target>,
}

#[derive(Debug, Clone, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Debug)]
struct Edge {
    to: String,
    kind: EdgeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EdgeKind {
    Normal,
    Build,
}

/// When a crate matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Its code is in the program.
    Linked,
    /// It ran while the program was built: build scripts, procedural macros, and what they use.
    BuildTime,
}

/// The crates of one program.
#[derive(Debug)]
pub struct Selection<'a> {
    /// The program itself.
    pub root: &'a Package,
    /// Everything but the root, sorted by name and version.
    pub dependencies: Vec<Dependency<'a>>,
    /// Who depends on whom, by position in `dependencies`; the root's own edges come last.
    pub edges: Vec<Vec<usize>>,
}

/// A crate of a program.
#[derive(Debug, Clone, Copy)]
pub struct Dependency<'a> {
    /// The crate.
    pub package: &'a Package,
    /// When it matters.
    pub scope: Scope,
}

impl Package {
    /// Whether it comes from the workspace.
    pub fn is_member(&self) -> bool {
        self.source.is_none()
    }

    /// The licence as an SPDX expression, if its author gave one. `MIT/Apache-2.0`, as crates wrote it before 2018,
    /// becomes `MIT OR Apache-2.0`.
    pub fn license_expression(&self) -> Option<String> {
        let expression = self.license.as_deref()?.replace('/', " OR ");
        let words = expression.split_whitespace().collect::<Vec<_>>().join(" ");
        let plain = |c: char| c.is_ascii_alphanumeric() || " .+-()".contains(c);
        Some(words).filter(|words| !words.is_empty() && words.chars().all(plain))
    }

    fn is_proc_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }
}

impl Metadata {
    const COMMAND: &'static str = "cargo metadata --format-version 1 --locked";

    /// Reads the output of `cargo metadata`.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read(path)?;
        Self::parse(&bytes).map_err(|error| {
            let reason = error.to_string();
            Error::Document { path: path.to_owned(), reason, command: Self::COMMAND }
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Document {
            packages: Vec<Package>,
            resolve: Resolve,
        }
        #[derive(Deserialize)]
        struct Resolve {
            nodes: Vec<Node>,
        }
        #[derive(Deserialize)]
        struct Node {
            id: String,
            deps: Vec<Link>,
        }
        #[derive(Deserialize)]
        struct Link {
            pkg: String,
            dep_kinds: Vec<LinkKind>,
        }
        #[derive(Deserialize)]
        struct LinkKind {
            kind: Option<String>,
        }
        let document: Document = serde_json::from_slice(bytes)?;
        let edge = |link: Link| {
            let kinds = link.dep_kinds.iter().filter_map(|kind| match kind.kind.as_deref() {
                None => Some(EdgeKind::Normal),
                Some("build") => Some(EdgeKind::Build),
                // Dependencies of tests are in no program.
                Some(_) => None,
            });
            kinds.min().map(|kind| Edge { to: link.pkg, kind })
        };
        let edges =
            document.resolve.nodes.into_iter().map(|node| (node.id, node.deps.into_iter().filter_map(edge).collect()));
        let edges = edges.collect();
        let packages = document.packages.into_iter().map(|package| (package.id.clone(), package)).collect();
        Ok(Self { packages, edges })
    }

    /// The crates that `tree` lists.
    ///
    /// # Errors
    /// The tree has a crate that the metadata does not have, or has twice.
    pub fn select(&self, tree: &Tree) -> Result<Selection<'_>, Error> {
        let root = self.find(&tree.root)?;
        let mut ids = BTreeMap::new();
        for line in &tree.rest {
            let package = self.find(line)?;
            if package.id != root.id {
                ids.insert((&package.name, &package.version, &package.id), package);
            }
        }
        let linked = self.linked(root);
        let scope = |package: &Package| {
            if linked.contains(package.id.as_str()) { Scope::Linked } else { Scope::BuildTime }
        };
        let dependencies: Vec<Dependency<'_>> =
            ids.into_values().map(|package| Dependency { package, scope: scope(package) }).collect();
        let positions: BTreeMap<&str, usize> =
            dependencies.iter().enumerate().map(|(index, found)| (found.package.id.as_str(), index)).collect();
        let edges_of = |package: &Package| -> Vec<usize> {
            let edges = self.edges.get(&package.id).map_or([].as_slice(), Vec::as_slice);
            let targets: BTreeSet<usize> =
                edges.iter().filter_map(|edge| positions.get(edge.to.as_str()).copied()).collect();
            targets.into_iter().collect()
        };
        let edges = dependencies.iter().map(|found| found.package).chain([root]).map(edges_of).collect();
        Ok(Selection { root, dependencies, edges })
    }

    /// What is reached from the root without passing a build dependency or a procedural macro.
    fn linked(&self, root: &Package) -> BTreeSet<&str> {
        let mut linked = BTreeSet::new();
        let mut waiting = vec![root.id.as_str()];
        while let Some(id) = waiting.pop() {
            for edge in self.edges.get(id).map_or([].as_slice(), Vec::as_slice) {
                let compiled_in = self.packages.get(&edge.to).is_some_and(|package| !package.is_proc_macro());
                if edge.kind == EdgeKind::Normal && compiled_in && linked.insert(edge.to.as_str()) {
                    waiting.push(&edge.to);
                }
            }
        }
        linked
    }

    fn find(&self, line: &Line) -> Result<&Package, Error> {
        let mut candidates = self.packages.values().filter(|package| {
            (&package.name, &package.version) == (&line.name, &line.version) && line.origin.fits(package)
        });
        let Line { name, version, .. } = line;
        match (candidates.next(), candidates.next()) {
            (Some(package), None) => Ok(package),
            (None, _) => {
                Err(Error::Disagreement(format!("the tree has {name} {version}, which the metadata does not have")))
            }
            (Some(_), Some(_)) => {
                Err(Error::Disagreement(format!("{name} {version} comes from two sources, and the tree names neither")))
            }
        }
    }
}

/// The crates that one program is built from.
#[derive(Debug)]
pub struct Tree {
    root: Line,
    rest: Vec<Line>,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    name: String,
    version: String,
    origin: Origin,
}

/// Where a crate comes from, as `cargo tree` writes it.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// Nothing, or the name of a registry.
    Registry,
    /// A directory.
    Path,
    /// The address of a git repository.
    Git(String),
}

impl Origin {
    fn fits(&self, package: &Package) -> bool {
        let git = package.source.as_deref().and_then(|source| source.strip_prefix("git+"));
        match self {
            Self::Registry => !package.is_member() && git.is_none(),
            Self::Path => package.is_member(),
            // The metadata has the whole commit, the tree its start.
            Self::Git(address) => git.is_some_and(|source| source.starts_with(address)),
        }
    }
}

impl Tree {
    const COMMAND: &'static str = "cargo tree -p PROGRAM --target TRIPLE --edges normal,build --prefix none --locked";

    /// Reads the output of `cargo tree`.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read(path)?;
        let document = |reason| Error::Document { path: path.to_owned(), reason, command: Self::COMMAND };
        let text = String::from_utf8(bytes).map_err(|_| document("it is not UTF-8".to_owned()))?;
        Self::parse(&text).map_err(document)
    }

    /// The name of the program.
    pub fn root(&self) -> &str {
        &self.root.name
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            lines.push(Line::parse(line).ok_or_else(|| format!("line {} is not `NAME vVERSION`", index + 1))?);
        }
        let mut lines = lines.into_iter();
        let root = lines.next().ok_or("it is empty")?;
        Ok(Self { root, rest: lines.collect() })
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once(' ')?;
        let name_start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !name_start || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            return None;
        }
        let (version, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let version = version.strip_prefix('v').filter(|version| semver::Version::parse(version).is_ok())?;
        let mut origin = Origin::Registry;
        while !rest.is_empty() {
            let (note, after) = rest.strip_prefix('(')?.split_once(')')?;
            match note {
                "*" | "proc-macro" => {}
                _ if note.starts_with("registry ") => {}
                _ if note.contains("://") => origin = Origin::Git(note.to_owned()),
                _ => origin = Origin::Path,
            }
            rest = after.trim_start();
        }
        Some(Self { name: name.to_owned(), version: version.to_owned(), origin })
    }
}

/// The checksums in `Cargo.lock`.
#[derive(Debug)]
pub struct Lock {
    checksums: BTreeMap<(String, String, String), Digest>,
    digest: Digest,
}

impl Lock {
    /// Reads `Cargo.lock`.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read(path)?;
        let document = |reason| Error::Document { path: path.to_owned(), reason, command: "cargo generate-lockfile" };
        let digest = Digest::of(&bytes);
        let text = String::from_utf8(bytes).map_err(|_| document("it is not UTF-8".to_owned()))?;
        Self::parse(&text, digest).map_err(document)
    }

    /// SHA-256 of the file itself.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Cargo writes one `key = "value"` a line, always the same way, so this needs no TOML reader.
    fn parse(text: &str, digest: Digest) -> Result<Self, String> {
        let mut checksums = BTreeMap::new();
        let mut blocks = text.split("[[package]]");
        if !blocks.next().is_some_and(|head| head.lines().any(|line| line.starts_with("version = "))) {
            return Err("it has no `version = …` before its packages".to_owned());
        }
        for block in blocks {
            let value = |key: &str| {
                block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
            };
            let (Some(name), Some(version)) = (value("name"), value("version")) else {
                return Err("it has a package without name or version".to_owned());
            };
            if let (Some(source), Some(checksum)) = (value("source"), value("checksum")) {
                let checksum = checksum.parse().map_err(|error| format!("the checksum of {name}: {error}"))?;
                checksums.insert((name.to_owned(), version.to_owned(), source.to_owned()), checksum);
            }
        }
        Ok(Self { checksums, digest })
    }

    /// SHA-256 of the crate's published file; `None` for what is not from a registry.
    ///
    /// # Errors
    /// It is from a registry, but not in `Cargo.lock`.
    pub fn checksum(&self, package: &Package) -> Result<Option<Digest>, Error> {
        let Some(source) = package.source.as_ref().filter(|source| !source.starts_with("git+")) else {
            return Ok(None);
        };
        let key = (package.name.clone(), package.version.clone(), source.clone());
        match self.checksums.get(&key) {
            Some(checksum) => Ok(Some(*checksum)),
            None => {
                Err(Error::Disagreement(format!("Cargo.lock has no checksum of {} {}", package.name, package.version)))
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_DOCUMENT).read_to_end(&mut bytes))
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

    /// A workspace with two members, a crate from git, and a build script's dependency:
    ///
    /// ```text
    /// program ── library ── leaf
    ///    ├────── macros (procedural) ── leaf, parser
    ///    ├─build generator ── leaf
    ///    └─dev── tester
    /// ```
    pub(crate) struct Example {
        pub(crate) metadata: Metadata,
        pub(crate) tree: Tree,
        pub(crate) lock: Lock,
        pub(crate) directory: tempfile::TempDir,
    }

    impl Example {
        pub(crate) fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let package = |name: &str, source: Option<&str>, kind: &str, license: Option<&str>| {
                let home = directory.path().join(name);
                fs::create_dir_all(&home).unwrap();
                serde_json::json!({
                    "name": name, "version": "1.0.0", "id": id(name), "source": source, "license": license,
                    "license_file": null, "authors": [format!("Author of {name} <{name}@example.com>")],
                    "repository": format!("https://example.com/{name}"), "homepage": null,
                    "manifest_path": home.join("Cargo.toml"), "targets": [{"kind": [kind]}], "metadata": null,
                })
            };
            let edge = |to: &str, kind: Option<&str>| serde_json::json!({"pkg": id(to), "dep_kinds": [{"kind": kind}]});
            let node = |name: &str, deps: &[serde_json::Value]| serde_json::json!({"id": id(name), "deps": deps});
            let document = serde_json::json!({
                "packages": [
                    package("program", None, "bin", Some("MIT OR Apache-2.0")),
                    package("library", None, "lib", Some("MIT OR Apache-2.0")),
                    package("leaf", Some(REGISTRY), "lib", Some("MIT/Apache-2.0")),
                    package("macros", Some(REGISTRY), "proc-macro", Some("MIT")),
                    package("parser", Some(REGISTRY), "lib", Some("BSD-3-Clause")),
                    package("generator", Some("git+https://example.com/generator?rev=1#0123456789"), "lib", None),
                    package("tester", Some(REGISTRY), "lib", Some("MIT")),
                ],
                "resolve": {"nodes": [
                    node("program", &[edge("library", None), edge("macros", None), edge("generator", Some("build")),
                        edge("tester", Some("dev"))]),
                    node("library", &[edge("leaf", None)]),
                    node("macros", &[edge("leaf", None), edge("parser", None)]),
                    node("generator", &[edge("leaf", None)]),
                    node("leaf", &[]), node("parser", &[]), node("tester", &[]),
                ]},
            });
            let tree = "program v1.0.0 (/build/program)\nlibrary v1.0.0 (/build/library)\nleaf v1.0.0\n\
                macros v1.0.0 (proc-macro)\nleaf v1.0.0\nparser v1.0.0\n\
                generator v1.0.0 (https://example.com/generator?rev=1#0123)\nleaf v1.0.0 (*)\n";
            let mut lock = "version = 4\n".to_owned();
            for name in ["leaf", "macros", "parser", "tester"] {
                let checksum = Digest::of(name.as_bytes());
                lock.push_str(&format!(
                    "\n[[package]]\nname = \"{name}\"\nversion = \"1.0.0\"\nsource = \"{REGISTRY}\"\n\
                     checksum = \"{checksum}\"\ndependencies = [\n \"x\",\n]\n"
                ));
            }
            Self {
                metadata: Metadata::parse(document.to_string().as_bytes()).unwrap(),
                tree: Tree::parse(tree).unwrap(),
                lock: Lock::parse(&lock, Digest::of(lock.as_bytes())).unwrap(),
                directory,
            }
        }
    }

    fn id(name: &str) -> String {
        format!("id-of-{name}")
    }

    #[test]
    fn the_set_is_the_trees_and_the_graph_is_cut_down_to_it() {
        let example = Example::new();
        let selection = example.metadata.select(&example.tree).unwrap();
        assert_eq!(selection.root.name, "program");
        let names: Vec<&str> = selection.dependencies.iter().map(|found| found.package.name.as_str()).collect();
        assert_eq!(names, ["generator", "leaf", "library", "macros", "parser"]);
        assert_eq!(selection.edges, [vec![1], vec![], vec![1], vec![1, 4], vec![], vec![0, 2, 3]]);
    }

    #[test]
    fn what_only_ran_at_build_time_is_told_apart() {
        let example = Example::new();
        let selection = example.metadata.select(&example.tree).unwrap();
        let scopes: Vec<Scope> = selection.dependencies.iter().map(|found| found.scope).collect();
        assert_eq!(scopes, [Scope::BuildTime, Scope::Linked, Scope::Linked, Scope::BuildTime, Scope::BuildTime]);
    }

    #[test]
    fn documents_of_different_sources_are_refused() {
        let example = Example::new();
        for (line, reason) in [
            ("stranger v1.0.0", "does not have"),
            ("leaf v2.0.0", "does not have"),
            ("leaf v1.0.0 (/a/path)", "does not have"),
            ("generator v1.0.0", "does not have"),
            ("generator v1.0.0 (https://example.com/generator?rev=2#0123)", "does not have"),
        ] {
            let tree = Tree::parse(&format!("program v1.0.0 (/x)\n{line}\n")).unwrap();
            let error = example.metadata.select(&tree).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let tester = &example.metadata.packages[&id("tester")];
        assert!(example.lock.checksum(tester).unwrap().is_some());
        let newer = Package { version: "1.0.1".to_owned(), ..tester.clone() };
        assert!(matches!(example.lock.checksum(&newer), Err(Error::Disagreement(_))));
    }

    #[test]
    fn other_documents_are_not_taken_for_these() {
        for text in
            ["", "1leaf v1.0.0", "leaf 1.0.0", "leaf", "├── leaf v1.0.0", "[build-dependencies]", "leaf v1.0.0 x"]
        {
            assert!(Tree::parse(text).is_err(), "{text}");
        }
        assert!(Metadata::parse(b"{}").is_err());
        for text in ["", "[[package]]\n", "version = 4\n[[package]]\nname = \"x\"\n"] {
            assert!(Lock::parse(text, Digest::of(b"")).is_err(), "{text}");
        }
        let missing = Tree::read(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(missing.exit_code(), 66);
    }

    #[test]
    fn licences_become_spdx_expressions() {
        let example = Example::new();
        let expression = |license: Option<&str>| {
            let package = example.metadata.packages[&id("leaf")].clone();
            Package { license: license.map(str::to_owned), ..package }.license_expression()
        };
        assert_eq!(expression(Some("MIT/Apache-2.0")).unwrap(), "MIT OR Apache-2.0");
        assert_eq!(expression(Some("MIT / Apache-2.0")).unwrap(), "MIT OR Apache-2.0");
        assert_eq!(
            expression(Some("(MIT OR Apache-2.0) AND Unicode-3.0")).unwrap(),
            "(MIT OR Apache-2.0) AND Unicode-3.0"
        );
        assert_eq!(expression(None), None);
        assert_eq!(expression(Some("see <file>")), None);
    }
}
