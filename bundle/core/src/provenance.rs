//! `provenance.json`: what was built, from which commit, with which toolchain.
//!
//! An [in-toto statement](https://github.com/in-toto/attestation/blob/v1.0/spec/v1.0/statement.md) with a
//! [SLSA provenance](https://slsa.dev/spec/v1.0/provenance) predicate. Its build type is `SOURCE/build-types/dist/v1`:
//! one run of `cargo xtask dist` in a checkout of SOURCE. The external parameters are the version, the targets and the
//! digest of the release configuration; everything else follows from the commit. It is signed together with the release
//! that it lies in.
//!
//! Nothing in it comes from the machine that ran the build: two machines that build the same commit with the same
//! toolchain write the same bytes, and `runDetails` says which kind of builder that was, not which one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, HashingReader};
use crate::interrupt;
use crate::source;
use crate::version::ReleaseVersion;

/// The directories of a release whose files are the statement's subjects.
const SUBJECTS: [&str; 2] = ["bin", "container-images"];

/// What the statement is made of.
#[derive(Debug)]
pub struct Provenance<'a> {
    /// The directory with the release's files.
    pub stage: &'a Path,
    /// The release's version.
    pub version: Option<&'a ReleaseVersion>,
    /// Digest of the release configuration.
    pub config: Option<Digest>,
    /// The commit.
    pub commit: &'a source::Commit,
    /// Whether the files that were built are those of the commit.
    pub tree: source::Tree,
    /// Date of the commit.
    pub date: source::Date,
    /// The source repository.
    pub source: &'a source::Url,
    /// Digest of `Cargo.lock`, which in turn has the digest of every crate.
    pub lock: Digest,
    /// Toolchain and targets.
    pub build: &'a BuildInfo,
    /// Who vouches for the build; `None` for whoever ran `cargo xtask dist` and signs the release.
    pub builder: Option<&'a str>,
}

/// What the build used: a JSON object of names and descriptions, such as `"toolchain": "rustc 1.95.0 (f2d3ce0bd)"`, and
/// under `targets` a list of target triples.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    components: BTreeMap<String, String>,
    targets: Vec<String>,
}

/// Why there is no statement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The build information is not what it should be.
    #[error("{}: {reason}; expected a JSON object of texts, and `targets` as a list of target triples", .path.display())]
    BuildInfo {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The stage has something other than plain files where the subjects are.
    #[error("{} is neither a file nor a directory; a release has nothing else", .0.display())]
    NotAFile(PathBuf),
    /// The stage has no files to speak of.
    #[error("{} has no files in bin/ or container-images/; nothing was built", .0.display())]
    Nothing(PathBuf),
    /// The statement cannot be put into JSON.
    #[error("the statement cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The exit code for it: 66 if something cannot be read, 65 if it is of no use.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { .. } => 66,
            Self::BuildInfo { .. } | Self::NotAFile(_) | Self::Nothing(_) => 65,
            Self::Json(_) => 1,
        }
    }
}

impl BuildInfo {
    /// Reads a file of build information.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&bytes).map_err(|reason| Error::BuildInfo { path: path.to_owned(), reason })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Text(String),
            List(Vec<String>),
        }
        let values: BTreeMap<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut info = Self::default();
        for (name, value) in values {
            match value {
                Value::Text(text) => {
                    info.components.insert(name, text);
                }
                Value::List(targets) if name == "targets" => info.targets = targets,
                Value::List(_) => return Err(format!("`{}` is a list", name.escape_debug())),
            }
        }
        info.targets.sort();
        Ok(info)
    }
}

impl Provenance<'_> {
    /// The statement, with a newline at its end.
    ///
    /// # Errors
    /// The stage cannot be read, or has nothing that was built.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let subject = self.subjects()?;
        let default_builder = self.source.join("builders/xtask-dist");
        let statement = Statement {
            kind: "https://in-toto.io/Statement/v1",
            subject,
            predicate_type: "https://slsa.dev/provenance/v1",
            predicate: Predicate {
                build_definition: BuildDefinition {
                    build_type: self.source.join("build-types/dist/v1"),
                    external_parameters: ExternalParameters {
                        version: self.version,
                        targets: &self.build.targets,
                        release_config: self.config.map(|sha256| Digests::Sha256 { sha256 }),
                    },
                    internal_parameters: InternalParameters {
                        source_date: self.date.to_string(),
                        source_tree: self.tree_name(),
                    },
                    resolved_dependencies: self.dependencies(),
                },
                run_details: RunDetails {
                    builder: Builder { id: self.builder.unwrap_or(&default_builder), version: &self.build.components },
                },
            },
        };
        let mut bytes = serde_json::to_vec_pretty(&statement)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn subjects(&self) -> Result<Vec<Subject>, Error> {
        let mut subjects = Vec::new();
        for directory in SUBJECTS {
            if self.stage.join(directory).exists() {
                self.add_subjects(directory, &mut subjects)?;
            }
        }
        if subjects.is_empty() {
            return Err(Error::Nothing(self.stage.to_owned()));
        }
        subjects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(subjects)
    }

    fn add_subjects(&self, directory: &str, subjects: &mut Vec<Subject>) -> Result<(), Error> {
        let path = self.stage.join(directory);
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Read { path, source }
        };
        for entry in fs::read_dir(&path).map_err(unreadable(&path))? {
            let entry = entry.map_err(unreadable(&path))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Error::NotAFile(path));
            };
            let name = format!("{directory}/{name}");
            let kind = entry.file_type().map_err(unreadable(&path))?;
            if kind.is_dir() {
                self.add_subjects(&name, subjects)?;
            } else if kind.is_file() {
                let sha256 = digest_of(&path).map_err(unreadable(&path))?;
                subjects.push(Subject { name, digest: Digests::Sha256 { sha256 } });
            } else {
                return Err(Error::NotAFile(path));
            }
        }
        Ok(())
    }

    fn dependencies(&self) -> Vec<Resource> {
        let (reference, digest) = match self.commit {
            source::Commit::Known(commit) => {
                (format!("@{commit}"), Some(Digests::Commit { git_commit: commit.clone() }))
            }
            source::Commit::Unknown => (String::new(), None),
        };
        let repository = Resource {
            name: None,
            uri: Some(format!("git+{}{reference}", self.source)),
            digest,
            annotations: BTreeMap::from([("sourceTree", self.tree_name().to_owned())]),
        };
        let lock = Resource {
            name: Some("Cargo.lock".to_owned()),
            uri: None,
            digest: Some(Digests::Sha256 { sha256: self.lock }),
            annotations: BTreeMap::new(),
        };
        let components = self.build.components.iter().map(|(name, description)| Resource {
            name: Some(name.clone()),
            uri: Some(component_uri(name, description)),
            digest: None,
            annotations: BTreeMap::from([("version", description.clone())]),
        });
        [repository, lock].into_iter().chain(components).collect()
    }

    /// How far the commit tells what was built.
    fn tree_name(&self) -> &'static str {
        match (self.commit, self.tree) {
            (source::Commit::Unknown, _) => "unknown",
            (source::Commit::Known(_), source::Tree::Clean) => "clean",
            (source::Commit::Known(_), source::Tree::Modified) => "modified",
        }
    }
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut reader = HashingReader::new(File::open(path)?);
    let mut buffer = vec![0; 256 * 1024];
    while io::Read::read(&mut reader, &mut buffer)? > 0 {
        interrupt::check()?;
    }
    let (_, digest, _) = reader.finish();
    Ok(digest)
}

/// A package URL for `rustc` and `1.95.0 (f2d3ce0bd)`, or for `toolchain` and `rustc 1.95.0 (f2d3ce0bd)`.
fn component_uri(name: &str, description: &str) -> String {
    let is_version = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let mut words = description.split_whitespace().map(|word| word.trim_end_matches(','));
    let (name, version) = match (words.next(), words.next()) {
        (Some(version), _) if is_version(version) => (name, version),
        (Some(program), Some(version)) if is_version(version) => (program, version),
        _ => (name, ""),
    };
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
    };
    match plain(version).as_str() {
        "" => format!("pkg:generic/{}", plain(name)),
        version => format!("pkg:generic/{}@{version}", plain(name)),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    subject: Vec<Subject>,
    predicate_type: &'static str,
    predicate: Predicate<'a>,
}

#[derive(Serialize)]
struct Subject {
    name: String,
    digest: Digests,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Digests {
    Sha256 {
        sha256: Digest,
    },
    Commit {
        #[serde(rename = "gitCommit")]
        git_commit: String,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Predicate<'a> {
    build_definition: BuildDefinition<'a>,
    run_details: RunDetails<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildDefinition<'a> {
    build_type: String,
    external_parameters: ExternalParameters<'a>,
    internal_parameters: InternalParameters,
    resolved_dependencies: Vec<Resource>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalParameters<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a ReleaseVersion>,
    targets: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    release_config: Option<Digests>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InternalParameters {
    source_date: String,
    source_tree: &'static str,
}

#[derive(Serialize)]
struct Resource {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digests>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct RunDetails<'a> {
    builder: Builder<'a>,
}

#[derive(Serialize)]
struct Builder<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    version: &'a BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn stage(files: &[&str]) -> tempfile::TempDir {
        let stage = tempfile::tempdir().unwrap();
        for name in files {
            let path = stage.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        stage
    }

    fn statement(stage: &Path, commit: &str, tree: source::Tree) -> Result<Vec<u8>, Error> {
        let build = BuildInfo::parse(
            br#"{"toolchain": "rustc 1.95.0 (f2d3ce0bd), standard library: built", "linker": "none",
                 "targets": ["b", "a"]}"#,
        );
        let provenance = Provenance {
            stage,
            version: Some(&"v1.2.3".parse().unwrap()),
            config: Some(Digest::of(b"config")),
            commit: &commit.parse().unwrap(),
            tree,
            date: "1700000000".parse().unwrap(),
            source: &"https://example.com/product/".parse().unwrap(),
            lock: Digest::of(b"lock"),
            build: &build.unwrap(),
            builder: None,
        };
        provenance.to_bytes()
    }

    #[test]
    fn the_statement_names_files_commit_and_toolchain() {
        let stage = stage(&["bin/b", "bin/a", "container-images/x.tar", "install.sh", "bin/sub/c"]);
        let bytes = statement(stage.path(), COMMIT, source::Tree::Clean).unwrap();
        let statement: Value = serde_json::from_slice(&bytes).unwrap();
        let subjects = ["bin/a", "bin/b", "bin/sub/c", "container-images/x.tar"]
            .map(|name| json!({"name": name, "digest": {"sha256": Digest::of(name.as_bytes())}}));
        assert_eq!(
            statement,
            json!({
                "_type": "https://in-toto.io/Statement/v1",
                "subject": subjects,
                "predicateType": "https://slsa.dev/provenance/v1",
                "predicate": {
                    "buildDefinition": {
                        "buildType": "https://example.com/product/build-types/dist/v1",
                        "externalParameters": {
                            "version": "v1.2.3", "targets": ["a", "b"],
                            "releaseConfig": {"sha256": Digest::of(b"config")},
                        },
                        "internalParameters": {"sourceDate": "2023-11-14T22:13:20Z", "sourceTree": "clean"},
                        "resolvedDependencies": [
                            {
                                "uri": format!("git+https://example.com/product/@{COMMIT}"),
                                "digest": {"gitCommit": COMMIT},
                                "annotations": {"sourceTree": "clean"},
                            },
                            {"name": "Cargo.lock", "digest": {"sha256": Digest::of(b"lock")}},
                            {"name": "linker", "uri": "pkg:generic/linker", "annotations": {"version": "none"}},
                            {
                                "name": "toolchain", "uri": "pkg:generic/rustc@1.95.0",
                                "annotations": {"version": "rustc 1.95.0 (f2d3ce0bd), standard library: built"},
                            },
                        ],
                    },
                    "runDetails": {
                        "builder": {
                            "id": "https://example.com/product/builders/xtask-dist",
                            "version": {
                                "linker": "none",
                                "toolchain": "rustc 1.95.0 (f2d3ce0bd), standard library: built",
                            },
                        },
                    },
                },
            })
        );
    }

    #[test]
    fn a_modified_tree_and_an_unknown_commit_are_flagged() {
        let stage = stage(&["bin/a"]);
        let dependency = |commit, tree| {
            let statement: Value = serde_json::from_slice(&statement(stage.path(), commit, tree).unwrap()).unwrap();
            statement["predicate"]["buildDefinition"]["resolvedDependencies"][0].clone()
        };
        assert_eq!(dependency(COMMIT, source::Tree::Modified)["annotations"]["sourceTree"], "modified");
        let unknown = dependency("unknown", source::Tree::Clean);
        assert_eq!((&unknown["digest"], &unknown["annotations"]["sourceTree"]), (&Value::Null, &json!("unknown")));
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_machine() {
        let stages = [stage(&["bin/a", "bin/b"]), stage(&["bin/b", "bin/a"])];
        let [one, two] = stages.each_ref().map(|stage| statement(stage.path(), COMMIT, source::Tree::Clean).unwrap());
        assert_eq!(one, two);
        assert!(!String::from_utf8(one).unwrap().contains(&*stages[0].path().to_string_lossy()));
    }

    #[test]
    fn a_stage_without_products_or_with_links_is_refused() {
        let refuse = |stage: &tempfile::TempDir| statement(stage.path(), COMMIT, source::Tree::Clean).unwrap_err();
        assert!(matches!(refuse(&stage(&["install.sh"])), Error::Nothing(_)));
        let linked = stage(&["bin/a"]);
        std::os::unix::fs::symlink("a", linked.path().join("bin/b")).unwrap();
        assert!(matches!(refuse(&linked), Error::NotAFile(_)));
    }

    #[test]
    fn other_build_information_is_refused() {
        for text in ["", "[]", r#"{"a": 1}"#, r#"{"a": ["b"]}"#, r#"{"targets": [1]}"#, r#"{"a": null}"#] {
            assert!(BuildInfo::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn components_have_package_urls() {
        for (name, description, expected) in [
            ("rustc", "1.95.0 (f2d3ce0bd)", "pkg:generic/rustc@1.95.0"),
            ("toolchain", "rustc 1.95.0, more", "pkg:generic/rustc@1.95.0"),
            ("c_toolchain", "Debian's gcc", "pkg:generic/c_toolchain"),
            ("a b", "", "pkg:generic/a-b"),
        ] {
            assert_eq!(component_uri(name, description), expected);
        }
    }
}
