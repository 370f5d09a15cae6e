//! What the programs are made of, from their CycloneDX documents.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::pairs;

/// Limit of an SBOM in bytes: some thousand components. Ours have a few hundred.
pub(super) const MAX_SBOM: u64 = 8 * 1024 * 1024;

/// The components of one SBOM: the versions of everything by ecosystem and name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sbom(BTreeMap<(String, String), BTreeSet<String>>);

/// What changed in all SBOMs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Dependencies {
    /// Only in the new release, or a version more of something that is in both.
    pub added: Vec<Dependency>,
    /// Only in the old release, or a version less of something that is in both.
    pub removed: Vec<Dependency>,
    /// Another version.
    pub changed: Vec<Dependency>,
    /// The same for each SBOM that is in both releases.
    pub sboms: Vec<SbomChanges>,
    /// SBOMs that are only in the new release.
    pub added_sboms: Vec<ComponentCount>,
    /// SBOMs that are only in the old release.
    pub removed_sboms: Vec<ComponentCount>,
}

/// Something that a program is made of. All its text comes from the SBOM: escape it before printing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dependency {
    /// Its name, with the group before it if it has one.
    pub name: String,
    /// Where it comes from, such as `cargo`: the type of its package URL. Empty if it has none.
    pub ecosystem: String,
    /// The versions that are only in the old release.
    pub old: Vec<String>,
    /// The versions that are only in the new release.
    pub new: Vec<String>,
    /// The SBOMs in which it is so.
    pub sboms: Vec<String>,
}

/// What changed in one SBOM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SbomChanges {
    /// Its path in the release.
    pub path: String,
    /// See [`Dependencies::added`].
    pub added: Vec<Dependency>,
    /// See [`Dependencies::removed`].
    pub removed: Vec<Dependency>,
    /// See [`Dependencies::changed`].
    pub changed: Vec<Dependency>,
}

/// An SBOM and how many components it lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentCount {
    /// Its path in the release.
    pub path: String,
    /// Components, each version counted.
    pub components: usize,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "bomFormat")]
    format: String,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    name: String,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    purl: Option<String>,
    #[serde(default)]
    components: Vec<Component>,
}

impl Sbom {
    /// Reads CycloneDX JSON. The error is a sentence about the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| format!("it is not CycloneDX in JSON: {error}"))?;
        if document.format != "CycloneDX" {
            return Err(format!("it is not CycloneDX in JSON: bomFormat is {:?}", document.format));
        }
        let mut sbom = Self::default();
        let mut waiting = document.components;
        while let Some(component) = waiting.pop() {
            // `pkg:cargo/name@version`
            let ecosystem = component.purl.as_deref().and_then(|purl| purl.strip_prefix("pkg:")?.split('/').next());
            let name = match component.group {
                Some(group) if !group.is_empty() => format!("{group}/{}", component.name),
                _ => component.name,
            };
            let versions = sbom.0.entry((ecosystem.unwrap_or_default().to_owned(), name)).or_default();
            versions.insert(component.version.unwrap_or_default());
            waiting.extend(component.components);
        }
        Ok(sbom)
    }

    fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }
}

impl Dependencies {
    pub(super) fn between(sboms: impl IntoIterator<Item = (String, Option<Sbom>, Option<Sbom>)>) -> Self {
        let mut all = Self::default();
        // The same change in several SBOMs is one change of the release.
        let mut changes: BTreeMap<Dependency, Vec<String>> = BTreeMap::new();
        for (path, old, new) in sboms {
            let (old, new) = match (old, new) {
                (Some(old), Some(new)) => (old, new),
                (Some(only), None) => {
                    all.removed_sboms.push(ComponentCount { path, components: only.count() });
                    continue;
                }
                (None, Some(only)) => {
                    all.added_sboms.push(ComponentCount { path, components: only.count() });
                    continue;
                }
                (None, None) => continue,
            };
            let mut of_this = SbomChanges { path, added: Vec::new(), removed: Vec::new(), changed: Vec::new() };
            for ((ecosystem, name), old, new) in pairs(old.0, new.0) {
                let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
                let only_old: Vec<_> = old.difference(&new).cloned().collect();
                let only_new: Vec<_> = new.difference(&old).cloned().collect();
                let sboms = vec![of_this.path.clone()];
                let dependency = Dependency { name, ecosystem, old: only_old, new: only_new, sboms };
                let list = match (dependency.old.is_empty(), dependency.new.is_empty()) {
                    (true, true) => continue,
                    (true, false) => &mut of_this.added,
                    (false, true) => &mut of_this.removed,
                    (false, false) => &mut of_this.changed,
                };
                let anywhere = Dependency { sboms: Vec::new(), ..dependency.clone() };
                changes.entry(anywhere).or_default().push(of_this.path.clone());
                list.push(dependency);
            }
            if !(of_this.added.is_empty() && of_this.removed.is_empty() && of_this.changed.is_empty()) {
                all.sboms.push(of_this);
            }
        }
        for (dependency, sboms) in changes {
            let list = match (dependency.old.is_empty(), dependency.new.is_empty()) {
                (true, _) => &mut all.added,
                (_, true) => &mut all.removed,
                _ => &mut all.changed,
            };
            list.push(Dependency { sboms, ..dependency });
        }
        all
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.sboms.is_empty() && self.added_sboms.is_empty() && self.removed_sboms.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sbom(components: &[(&str, &str)]) -> Option<Sbom> {
        let components: Vec<_> = components
            .iter()
            .map(|(name, version)| {
                serde_json::json!({
                    "type": "library", "name": name, "version": version, "purl": format!("pkg:cargo/{name}@{version}"),
                })
            })
            .collect();
        let document = serde_json::json!({ "bomFormat": "CycloneDX", "specVersion": "1.5", "components": components });
        Some(Sbom::parse(document.to_string().as_bytes()).unwrap())
    }

    fn shown(dependencies: &[Dependency]) -> Vec<String> {
        dependencies
            .iter()
            .map(|it| format!("{} {}>{} {}", it.name, it.old.join("+"), it.new.join("+"), it.sboms.join(",")))
            .collect()
    }

    #[test]
    fn versions_are_compared_for_each_program_and_together() {
        let old = [("same", "1.0.0"), ("up", "1.0.0"), ("gone", "1.0.0"), ("two", "1.0.0"), ("two", "2.0.0")];
        let new = [("same", "1.0.0"), ("up", "1.1.0"), ("new", "0.1.0"), ("two", "2.0.0"), ("two", "3.0.0")];
        let dependencies = Dependencies::between([
            ("a".to_owned(), sbom(&old), sbom(&new)),
            (
                "b".to_owned(),
                sbom(&[("up", "1.0.0"), ("more", "1.0.0")]),
                sbom(&[("up", "1.1.0"), ("more", "1.0.0"), ("more", "2.0.0")]),
            ),
            ("same".to_owned(), sbom(&old), sbom(&old)),
            ("c".to_owned(), None, sbom(&old)),
            ("d".to_owned(), sbom(&new), None),
        ]);
        assert_eq!(shown(&dependencies.added), ["more >2.0.0 b", "new >0.1.0 a"]);
        assert_eq!(shown(&dependencies.removed), ["gone 1.0.0> a"]);
        assert_eq!(shown(&dependencies.changed), ["two 1.0.0>3.0.0 a", "up 1.0.0>1.1.0 a,b"]);
        let paths: Vec<_> = dependencies.sboms.iter().map(|sbom| sbom.path.as_str()).collect();
        assert_eq!(paths, ["a", "b"]);
        assert_eq!(shown(&dependencies.sboms[1].changed), ["up 1.0.0>1.1.0 b"]);
        assert_eq!(dependencies.added_sboms, [ComponentCount { path: "c".into(), components: 5 }]);
        assert_eq!(dependencies.removed_sboms, [ComponentCount { path: "d".into(), components: 5 }]);
    }

    #[test]
    fn our_own_sboms_are_understood() {
        let example = crate::dependencies::tests::Example::new();
        let document = crate::sbom::Sbom {
            selection: &example.metadata.select(&example.tree).unwrap(),
            lock: &example.lock,
            target: "x86_64-unknown-linux-musl",
            toolchain: &["musl 1.2.5".to_owned()],
            date: "1700000000".parse().unwrap(),
        };
        let sbom = Sbom::parse(&document.to_bytes().unwrap()).unwrap();
        let leaf = &sbom.0[&("cargo".to_owned(), "leaf".to_owned())];
        assert!(leaf.contains("1.0.0"), "{leaf:?}");
        assert!(sbom.0.iter().any(|((_, name), versions)| name == "musl" && versions.contains("1.2.5")), "{sbom:?}");
    }

    #[test]
    fn nested_components_and_groups_count() {
        let parse = |text: &str| Sbom::parse(text.as_bytes()).unwrap();
        let sbom = parse(
            r#"{"bomFormat": "CycloneDX", "components": [{"name": "a", "group": "g", "components": [{"name": "b", "version": "1"}]}]}"#,
        );
        let names: Vec<_> = sbom.0.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["b", "g/a"]);
        assert_eq!(parse(r#"{"bomFormat": "CycloneDX"}"#).count(), 0);
    }

    #[test]
    fn what_is_no_sbom_is_refused_with_a_reason() {
        let deep = r#"{"bomFormat": "CycloneDX", "components": [{"name": "a", "components": ["#.to_owned()
            + &r#"{"name": "a", "components": ["#.repeat(10_000);
        let cases = [
            "",
            "[]",
            "{}",
            "null",
            "{\"bomFormat\": \"SPDX\"}",
            r#"{"bomFormat": "CycloneDX", "components": [1]}"#,
            &deep,
        ];
        for text in cases {
            let error = Sbom::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains("CycloneDX"), "{error}");
        }
    }
}
