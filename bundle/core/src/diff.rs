//! What changed between two releases, for people who decide about an upgrade; and whether a rebuild gave the same.
//!
//! Like [`crate::inspect`], this verifies nothing: it compares what two releases say and hold.

mod dependencies;
mod reproduce;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use crate::contents::Contents;
use crate::inspect::{self, Binary, Certificate, MAX_BINARY, MAX_KEY, NotVerified, Problem, read_whole, visit};
use crate::manifest::{File, Image, Kind, Manifest};
use crate::release;

pub use dependencies::{ComponentCount, Dependencies, Dependency, SbomChanges};
pub use reproduce::{FileDifference, FirstDifference, OneSided, Reproduction, reproduce};
pub use template::{Changed, Items, Parameter, Resource, TemplateChanges, ValueChange};

use dependencies::Sbom;
use template::Template;

/// What changed between two releases.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Always `false`.
    pub verified: NotVerified,
    /// The one that is there first.
    pub old: Side,
    /// The one that it is compared with.
    pub new: Side,
    /// What the manifests say otherwise about the release as a whole.
    pub fields: Vec<Field>,
    /// Files by what the manifests say of them.
    pub files: Changes<File>,
    /// Files that are the same.
    pub unchanged_files: usize,
    /// Container images.
    pub images: Changes<Image>,
    /// Programs whose build notes differ.
    pub binaries: Changes<Binary>,
    /// CloudFormation templates that differ.
    pub templates: Vec<TemplateChanges>,
    /// What the programs are made of, from their SBOMs.
    pub dependencies: Dependencies,
    /// Signers' certificates.
    pub keys: Changes<Certificate>,
    /// What somebody who upgrades has to know.
    pub notes: Vec<String>,
    /// What could not be compared, and why.
    pub problems: Problems,
}

/// One of the two releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Where it is.
    pub release: String,
    /// `PRODUCT-VERSION`.
    pub root: String,
}

impl Side {
    fn of(contents: &Contents) -> Self {
        Self { release: contents.path().display().to_string(), root: contents.manifest().root() }
    }
}

/// A field of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Field {
    /// Its name.
    pub field: String,
    /// What it was; `null` if it was not there.
    pub old: Value,
    /// What it is; `null` if it is not there any more.
    pub new: Value,
}

/// Things with names, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changes<T> {
    /// Only in the new release.
    pub added: Vec<T>,
    /// Only in the old release.
    pub removed: Vec<T>,
    /// In both and not the same.
    pub changed: Vec<Change<T>>,
}

/// Something that is in both releases and not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change<T> {
    /// In the old release.
    pub old: T,
    /// In the new release.
    pub new: T,
}

impl<T: PartialEq> Changes<T> {
    fn between(pairs: impl IntoIterator<Item = (Option<T>, Option<T>)>) -> Self {
        let mut changes = Self { added: Vec::new(), removed: Vec::new(), changed: Vec::new() };
        for pair in pairs {
            match pair {
                (None, Some(new)) => changes.added.push(new),
                (Some(old), None) => changes.removed.push(old),
                (Some(old), Some(new)) if old != new => changes.changed.push(Change { old, new }),
                _ => {}
            }
        }
        changes
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Both values of every key, in the order of the keys.
fn pairs<K: Ord + Clone, T>(
    old: BTreeMap<K, T>,
    mut new: BTreeMap<K, T>,
) -> impl Iterator<Item = (K, Option<T>, Option<T>)> {
    let mut all: BTreeMap<K, (Option<T>, Option<T>)> = BTreeMap::new();
    for (key, value) in old {
        let other = new.remove(&key);
        all.insert(key, (Some(value), other));
    }
    for (key, value) in new {
        all.insert(key, (None, Some(value)));
    }
    all.into_iter().map(|(key, (old, new))| (key, old, new))
}

/// What is wrong with each of the two releases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// In the old release.
    pub old: Vec<Problem>,
    /// In the new release.
    pub new: Vec<Problem>,
}

impl Problems {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.old.is_empty() && self.new.is_empty()
    }
}

/// Compares two releases, archives or directories.
///
/// # Errors
/// One of them cannot be read, or is an archive that differs from its own manifest.
pub fn compare(old: &Contents, new: &Contents, now: SystemTime) -> Result<Difference, release::Error> {
    let (old_manifest, new_manifest) = (old.manifest(), new.manifest());
    let mut problems = Problems::default();
    let old_facts = Facts::read(old, new_manifest, &mut problems.old, now)?;
    let new_facts = Facts::read(new, old_manifest, &mut problems.new, now)?;

    let by_path = |manifest: &Manifest| -> BTreeMap<String, File> {
        manifest.files.iter().map(|file| (file.path.to_string(), file.clone())).collect()
    };
    let files = Changes::between(pairs(by_path(old_manifest), by_path(new_manifest)).map(|(_, old, new)| (old, new)));
    let unchanged_files = new_manifest.files.len() - files.added.len() - files.changed.len();
    let mut templates = Vec::new();
    for (path, old, new) in old_facts.templates.with(new_facts.templates) {
        templates.extend(TemplateChanges::between(path, old, new));
    }
    Ok(Difference {
        verified: NotVerified,
        old: Side::of(old),
        new: Side::of(new),
        fields: fields(old_manifest, new_manifest),
        files,
        unchanged_files,
        images: images(old_manifest, new_manifest),
        binaries: Changes::between(old_facts.binaries.with(new_facts.binaries).map(|(_, old, new)| (old, new))),
        templates,
        dependencies: Dependencies::between(old_facts.sboms.with(new_facts.sboms)),
        keys: Changes::between(old_facts.keys.with(new_facts.keys).map(|(_, old, new)| (old, new))),
        notes: notes(old_manifest, new_manifest),
        problems,
    })
}

/// What was read from files of one kind, by path; `None` for a file that could not be read, which is among the problems
/// and cannot be compared.
struct Read<T>(BTreeMap<String, Option<T>>);

impl<T> Read<T> {
    fn with(self, new: Self) -> impl Iterator<Item = (String, Option<T>, Option<T>)> {
        pairs(self.0, new.0).filter_map(|(path, old, new)| match (old, new) {
            (Some(None), _) | (_, Some(None)) => None,
            (old, new) => Some((path, old.flatten(), new.flatten())),
        })
    }

    fn add(&mut self, path: &str, read: Result<T, String>, problems: &mut Vec<Problem>) {
        let read = read.map_err(|problem| problems.push(Problem::new(path, problem))).ok();
        self.0.insert(path.to_owned(), read);
    }
}

/// What the files of a release say that differ from the other release's.
struct Facts {
    binaries: Read<Binary>,
    templates: Read<Template>,
    sboms: Read<Sbom>,
    keys: Read<Certificate>,
}

impl Facts {
    fn read(
        contents: &Contents,
        other: &Manifest,
        problems: &mut Vec<Problem>,
        now: SystemTime,
    ) -> Result<Self, release::Error> {
        let mut facts = Self {
            binaries: Read(BTreeMap::new()),
            templates: Read(BTreeMap::new()),
            sboms: Read(BTreeMap::new()),
            keys: Read(BTreeMap::new()),
        };
        let mut found = Vec::new();
        // Everything is read, so that what the manifests say about the other files is known to be so.
        visit(
            contents,
            |_| true,
            problems,
            |file, reader| {
                if other.file(file.path.as_str()).is_some_and(|other| other == file) {
                    return Ok(());
                }
                let path = file.path.as_str();
                let mut whole = |limit| {
                    let whole = read_whole(reader, limit)?;
                    Ok::<_, std::io::Error>(
                        whole.ok_or_else(|| format!("it has more than {limit} bytes and was not looked into")),
                    )
                };
                match file.kind {
                    Kind::Binary => {
                        let binary = Binary::of(path, whole(MAX_BINARY)?.ok().as_deref());
                        facts.binaries.0.insert(path.to_owned(), Some(binary));
                    }
                    Kind::Template if template::is_template(path) => {
                        let template = whole(template::MAX_TEMPLATE)?.and_then(|bytes| Template::parse(&bytes));
                        facts.templates.add(path, template, &mut found);
                    }
                    Kind::Sbom => {
                        let sbom = whole(dependencies::MAX_SBOM)?.and_then(|bytes| Sbom::parse(&bytes));
                        facts.sboms.add(path, sbom, &mut found);
                    }
                    Kind::Key => {
                        let certificate = whole(MAX_KEY)?.and_then(|bytes| certificate(path, &bytes, now));
                        facts.keys.add(path, certificate, &mut found);
                    }
                    _ => {}
                }
                Ok(())
            },
        )?;
        problems.extend(found);
        Ok(facts)
    }
}

fn certificate(path: &str, bytes: &[u8], now: SystemTime) -> Result<Certificate, String> {
    let known = inspect::parse_key(path, Some(bytes)).map_err(|problem| problem.problem)?;
    match known.as_slice() {
        [only] => Ok(Certificate::of(only, now)),
        several => Err(format!("it holds {} certificates, and one is expected", several.len())),
    }
}

/// The fields that say something about the release as a whole.
fn fields(old: &Manifest, new: &Manifest) -> Vec<Field> {
    let header = |manifest: &Manifest| -> BTreeMap<String, Value> {
        match serde_json::to_value(manifest) {
            Ok(Value::Object(fields)) => {
                fields.into_iter().filter(|(name, _)| !matches!(name.as_str(), "files" | "images")).collect()
            }
            // A manifest is an object with names of its own: there is nothing else that it could become.
            _ => BTreeMap::new(),
        }
    };
    pairs(header(old), header(new))
        .filter(|(_, old, new)| old != new)
        .map(|(field, old, new)| Field { field, old: old.unwrap_or_default(), new: new.unwrap_or_default() })
        .collect()
}

fn images(old: &Manifest, new: &Manifest) -> Changes<Image> {
    let by_name = |manifest: &Manifest| -> BTreeMap<String, Image> {
        manifest.images.iter().map(|image| (image.name.clone(), image.clone())).collect()
    };
    Changes::between(pairs(by_name(old), by_name(new)).map(|(_, old, new)| (old, new)))
}

fn notes(old: &Manifest, new: &Manifest) -> Vec<String> {
    let mut notes = Vec::new();
    if old.product != new.product {
        notes.push(format!("{} and {} are different products", old.root(), new.root()));
        return notes;
    }
    let older = new.sequence < old.sequence || new.version < old.version;
    if older {
        notes.push(format!(
            "{} (sequence {}) is older than {} (sequence {}): installing it over the other is a rollback",
            new.version, new.sequence, old.version, old.sequence
        ));
    } else if new.sequence == old.sequence && new.version != old.version {
        notes.push(format!("both have sequence {}: one of them was released in error", new.sequence));
    }
    if let Some(required) = &new.minimum_upgrade_from
        && old.version < *required
    {
        notes.push(format!(
            "{} can be installed over {required} or later: upgrade from {} to {required} first",
            new.version, old.version
        ));
    }
    if new.development && !old.development {
        notes.push(format!("{} is a development release: no release key signed it", new.version));
    }
    let keys = |manifest: &Manifest| -> BTreeSet<String> {
        manifest.files.iter().filter(|file| file.kind == Kind::Key).map(|file| file.path.to_string()).collect()
    };
    let (old_keys, new_keys) = (keys(old), keys(new));
    if !old_keys.is_empty() && !new_keys.is_empty() && old_keys.is_disjoint(&new_keys) {
        notes.push(
            "they have no certificate in common: get the new one from the vendor and pin it before upgrading".into(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::inspect::fixture::{Example, YEAR, cert, key, launcher_binary, launcher_image};
    use crate::signing::{self, OldSubkeys};

    fn compared(old: &Path, new: &Path) -> Difference {
        compare(&Contents::open(old).unwrap(), &Contents::open(new).unwrap(), SystemTime::now()).unwrap()
    }

    fn paths(files: &[File]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    fn sbom(version: &str) -> Vec<u8> {
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "components": [{"name": "tokio", "version": version, "purl": format!("pkg:cargo/tokio@{version}")}],
        })
        .to_string()
        .into_bytes()
    }

    fn example(version: &str, more: &[(&str, &[u8])]) -> Example {
        let launcher = launcher_binary(version);
        let image = launcher_image(version);
        let sbom = sbom(version);
        let template = format!(
            "Parameters: {{Version: {{Type: String, Default: {version}}}}}\nResources: {{A: {{Type: 'AWS::SNS::Topic'}}}}\n"
        );
        let mut files: Vec<(&str, &[u8])> = vec![
            ("bin/spacelift-launcher", &launcher),
            ("container-images/spacelift-launcher.tar", &image),
            ("sbom/spacelift-launcher-x86_64.cdx.json", &sbom),
            ("cloudformation/pool.yaml", template.as_bytes()),
            ("install.sh", b"#!/bin/sh\n"),
        ];
        files.extend(more);
        Example::new(version, &files)
    }

    #[test]
    fn what_changed_between_two_releases_is_reported() {
        let vendor = key("Vendor");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &vendor.secret).unwrap();
        let rotated = signing::rotate(file.path(), YEAR, OldSubkeys::Keep, None, SystemTime::now()).unwrap();
        let (gone, fresh) = (key("Gone"), key("Fresh"));
        let mut old = example("v1.2.3", &[("scripts/old.sh", b"")]);
        old.release.certificates = vec![cert(&vendor), cert(&gone)];
        let mut new = example("v1.3.0", &[("scripts/new.sh", b"new")]);
        new.release.certificates = vec![cert(&rotated), cert(&fresh)];
        new.release.sequence = 8;
        new.release.threshold = 2;
        new.release.minimum_upgrade_from = Some("v1.2.0".parse().unwrap());
        let old = old.sign(&[&vendor]);
        let difference = compared(&old, &new.pack());

        assert_eq!(
            (difference.old.root.as_str(), difference.new.root.as_str()),
            ("self-hosted-v1.2.3", "self-hosted-v1.3.0")
        );
        let field = |field: &str, old: Value, new: Value| Field { field: field.into(), old, new };
        assert_eq!(
            difference.fields,
            [
                field("minimum_upgrade_from", Value::Null, "v1.2.0".into()),
                field("sequence", 7.into(), 8.into()),
                field("threshold", 1.into(), 2.into()),
                field("version", "v1.2.3".into(), "v1.3.0".into()),
            ]
        );
        let key_path = |key: &signing::NewKey| format!("keys/{}.asc", key.fingerprint);
        assert_eq!(paths(&difference.files.added), [&key_path(&fresh), "scripts/new.sh"]);
        assert_eq!(paths(&difference.files.removed), [&key_path(&gone), "scripts/old.sh"]);
        let changed: Vec<_> = difference.files.changed.iter().map(|change| change.new.path.as_str()).collect();
        assert_eq!(
            changed,
            [
                "bin/spacelift-launcher",
                "cloudformation/pool.yaml",
                "container-images/spacelift-launcher.tar",
                &key_path(&vendor),
                "sbom/spacelift-launcher-x86_64.cdx.json",
                "version",
            ]
        );
        assert_eq!(difference.unchanged_files, 1);

        let [image] = difference.images.changed.as_slice() else { panic!("{:?}", difference.images) };
        assert_ne!(image.old.digest, image.new.digest);
        assert_eq!(image.old.platforms, ["linux/amd64"]);
        let [binary] = difference.binaries.changed.as_slice() else { panic!("{:?}", difference.binaries) };
        let version = |binary: &Binary| {
            (binary.build.as_ref().unwrap().version.clone(), binary.worker.as_ref().unwrap().version.clone())
        };
        assert_eq!(version(&binary.old), ("v1.2.3".into(), "v1.2.3".into()));
        assert_eq!(version(&binary.new), ("v1.3.0".into(), "v1.3.0".into()));

        let [template] = difference.templates.as_slice() else { panic!("{:?}", difference.templates) };
        assert_eq!(template.path, "cloudformation/pool.yaml");
        assert_eq!(template.parameters.changed[0].changes[0].path, "Default");
        assert!(template.resources.is_empty());
        let [dependency] = difference.dependencies.changed.as_slice() else { panic!("{:?}", difference.dependencies) };
        assert_eq!((dependency.name.as_str(), dependency.ecosystem.as_str()), ("tokio", "cargo"));
        assert_eq!((dependency.old[0].as_str(), dependency.new[0].as_str()), ("v1.2.3", "v1.3.0"));

        let keys = &difference.keys;
        assert_eq!(keys.added[0].fingerprint, fresh.fingerprint.to_string());
        assert_eq!(keys.removed[0].user_ids, ["Gone"]);
        assert_eq!((keys.changed[0].old.signing_keys.len(), keys.changed[0].new.signing_keys.len()), (1, 2));
        assert_eq!(difference.notes, [""; 0]);
        assert!(difference.problems.is_empty());

        let document = serde_json::to_value(&difference).unwrap();
        assert_eq!(document["verified"], false);
        assert_eq!(document["files"]["changed"][0]["new"]["kind"], "binary");
        assert_eq!(document["templates"][0]["parameters"]["changed"][0]["changes"][0]["new"], "v1.3.0");
        assert_eq!(document["keys"]["added"][0]["fingerprint"], fresh.fingerprint.as_str());
    }

    #[test]
    fn the_same_release_has_no_changes_whoever_signed_it_and_however_it_is_at_hand() {
        let example = example("v1.2.3", &[]);
        let unsigned = example.pack();
        let signed = example.sign(&[&key("Vendor")]);
        let root = example.unpack(&signed);
        for (old, new) in [(&unsigned, &signed), (&signed, &root), (&root, &unsigned)] {
            let difference = compared(old, new);
            assert!(difference.fields.is_empty() && difference.files.is_empty() && difference.images.is_empty());
            assert!(difference.binaries.is_empty() && difference.templates.is_empty() && difference.keys.is_empty());
            assert!(
                difference.dependencies.is_empty() && difference.notes.is_empty() && difference.problems.is_empty()
            );
            assert_eq!(difference.unchanged_files, 6);
        }
    }

    #[test]
    fn parts_on_one_side_only_are_all_new_or_all_gone() {
        let bare = Example::new("v1.2.3", &[]);
        let bare = bare.pack();
        let full = example("v1.2.3", &[("cloudformation/README.md", b"- [x](y)\n")]);
        let full = full.pack();
        let difference = compared(&bare, &full);
        assert_eq!(difference.images.added.len(), 1);
        assert_eq!(difference.binaries.added[0].build.as_ref().unwrap().version, "v1.2.3");
        assert_eq!(difference.templates.len(), 1, "a README is no template");
        assert_eq!(difference.templates[0].resources.added[0].name, "A");
        assert_eq!(difference.dependencies.added_sboms[0].components, 1);
        assert_eq!(difference.fields, [Field { field: "targets".into(), old: json!([]), new: json!(["x86_64"]) }]);
        let difference = compared(&full, &bare);
        assert_eq!(difference.images.removed.len(), 1);
        assert_eq!(difference.binaries.removed.len(), 1);
        assert_eq!(difference.templates[0].parameters.removed.len(), 1);
        assert_eq!(difference.dependencies.removed_sboms.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_a_problem_and_not_a_change() {
        let broken: [(&str, &[u8]); 4] = [
            ("bin/spacelift-launcher", b"not a program"),
            ("cloudformation/pool.yaml", b"Resources: ["),
            ("sbom/spacelift-launcher-x86_64.cdx.json", b"{"),
            ("keys/x.asc", b"not a certificate"),
        ];
        let good = example("v1.2.3", &[("keys/x.asc", &key("Vendor").certificate)]);
        let good = good.pack();
        let bad = example("v1.2.3", &broken);
        let bad = bad.pack();
        let shown =
            |problems: &[Problem]| -> Vec<String> { problems.iter().map(|problem| problem.path.clone()).collect() };
        let names = ["cloudformation/pool.yaml", "keys/x.asc", "sbom/spacelift-launcher-x86_64.cdx.json"];
        let difference = compared(&good, &bad);
        assert_eq!(shown(&difference.problems.new), names);
        assert_eq!(difference.problems.old, []);
        assert!(difference.templates.is_empty() && difference.dependencies.is_empty() && difference.keys.is_empty());
        assert!(difference.binaries.changed[0].new.problem.is_some());
        assert_eq!(difference.files.changed.len(), 4);
        let difference = compared(&bad, &good);
        assert_eq!(shown(&difference.problems.old), names);
        assert!(difference.templates.is_empty() && difference.dependencies.is_empty() && difference.keys.is_empty());
    }

    #[test]
    fn files_beyond_a_limit_are_not_looked_into() {
        let large = vec![b' '; 1 + usize::try_from(dependencies::MAX_SBOM.max(template::MAX_TEMPLATE)).unwrap()];
        let files: [(&str, &[u8]); 2] = [("cloudformation/x.json", &large), ("sbom/x.cdx.json", &large)];
        let difference = compared(&Example::new("v1.2.3", &[]).pack(), &Example::new("v1.2.3", &files).pack());
        let problems: Vec<_> = difference.problems.new.iter().map(|problem| problem.problem.as_str()).collect();
        assert_eq!(problems.len(), 2);
        assert!(problems.iter().all(|problem| problem.contains("was not looked into")), "{problems:?}");
    }

    #[test]
    fn a_damaged_archive_is_an_error() {
        // What follows the beginning is more than one block.
        let example = example("v1.2.3", &[("a", &[0; 3 * crate::gzip::BLOCK])]);
        let archive = example.pack();
        let bytes = fs::read(&archive).unwrap();
        let cut = example.directory.path().join("cut.tar.gz");
        fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
        let (archive, cut) = (Contents::open(&archive).unwrap(), Contents::open(&cut).unwrap());
        for (old, new) in [(&archive, &cut), (&cut, &archive)] {
            let error = compare(old, new, SystemTime::now()).unwrap_err();
            assert!(error.to_string().contains("cut.tar.gz is not a release archive"), "{error}");
        }
    }

    #[test]
    fn whoever_upgrades_is_told_what_to_know() {
        let note = |change: fn(&mut Example), expected: &[&str]| {
            let old = Example::new("v1.2.3", &[]);
            let mut new = Example::new("v1.3.0", &[]);
            new.release.sequence = 8;
            change(&mut new);
            let notes = compared(&old.pack(), &new.pack()).notes;
            assert_eq!(notes.len(), expected.len(), "{notes:?}");
            for (note, expected) in notes.iter().zip(expected) {
                assert!(note.contains(expected), "{note}");
            }
        };
        note(|_| {}, &[]);
        note(|new| new.release.sequence = 6, &["rollback"]);
        note(|new| new.release.version = "v1.2.2".parse().unwrap(), &["rollback"]);
        note(|new| new.release.sequence = 7, &["in error"]);
        note(|new| new.release.minimum_upgrade_from = Some("v1.2.4".parse().unwrap()), &["to v1.2.4 first"]);
        note(|new| new.release.minimum_upgrade_from = Some("v1.2.3".parse().unwrap()), &[]);
        note(|new| new.release.development = true, &["development"]);
        note(|new| new.release.product = "other".into(), &["different products"]);
        let (one, other) = (key("One"), key("Other"));
        let with = |version: &str, keys: &[&signing::NewKey]| {
            let mut example = Example::new(version, &[]);
            example.release.certificates = keys.iter().map(|key| cert(key)).collect();
            example
        };
        let old = with("v1.2.3", &[&one]);
        let notes = compared(&old.pack(), &with("v1.2.3", &[&other]).pack()).notes;
        assert!(notes[0].contains("no certificate in common"), "{notes:?}");
        assert_eq!(compared(&old.pack(), &with("v1.2.3", &[&other, &one]).pack()).notes, [""; 0]);
    }
}
