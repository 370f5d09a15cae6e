//! Software bill of materials of one program, as CycloneDX 1.5 JSON.
//!
//! Written here and not by `cargo-cyclonedx`, because that tool resolves features over the whole workspace, so it lists
//! crates that are not in the program; it writes into the source tree; and installing it takes longer than a release
//! build. The format is specified at <https://cyclonedx.org/docs/1.5/json/>.
//!
//! The document has no time but the source date, no paths, and a serial number made from its contents: the same sources
//! give the same bytes.

use serde::Serialize;

use crate::dependencies::{Dependency, Error, Lock, Package, Scope, Selection};
use crate::digest::Digest;
use crate::source;

/// What an SBOM is made of.
#[derive(Debug)]
pub struct Sbom<'a> {
    /// The program and its crates.
    pub selection: &'a Selection<'a>,
    /// Checksums.
    pub lock: &'a Lock,
    /// The target triple that the program was built for.
    pub target: &'a str,
    /// What else was linked in or built with, each as `NAME VERSION` and more, such as `rustc 1.95.0 (f2d3ce0bd)`.
    pub toolchain: &'a [String],
    /// Date of the sources.
    pub date: source::Date,
}

impl Sbom<'_> {
    /// The document, with a newline at its end.
    ///
    /// # Errors
    /// A crate is not in `Cargo.lock`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut document = self.document()?;
        // A serial number has to be unique for the contents; a hash of them is (RFC 9562, version 8).
        document.serial_number = serial_number(&Digest::of(&serde_json::to_vec(&document)?));
        let mut bytes = serde_json::to_vec_pretty(&document)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn document(&self) -> Result<Document, Error> {
        let Selection { root, dependencies, edges } = self.selection;
        let crates = dependencies.iter().map(|dependency| self.of_crate(dependency));
        let mut components = crates.collect::<Result<Vec<Component>, Error>>()?;
        let references: Vec<String> = components.iter().map(|component| component.reference.clone()).collect();
        let toolchain: Vec<Component> = self.toolchain.iter().map(|text| of_toolchain(text)).collect();
        let mut program = of_package(root, "application");
        program.properties.push(Property { name: "cargo:target", value: self.target.to_owned() });
        let mut graph = Vec::new();
        for (position, targets) in edges.iter().enumerate() {
            let mut depends_on: Vec<String> = targets.iter().map(|&target| references[target].clone()).collect();
            let reference = references.get(position).unwrap_or(&program.reference).clone();
            if position == references.len() {
                depends_on.extend(toolchain.iter().map(|component| component.reference.clone()));
            }
            depends_on.sort();
            graph.push(Node { reference, depends_on });
        }
        graph.extend(toolchain.iter().map(|part| Node { reference: part.reference.clone(), depends_on: Vec::new() }));
        components.extend(toolchain);
        components.sort_by(|a, b| a.reference.cmp(&b.reference));
        graph.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(Document {
            bom_format: "CycloneDX",
            spec_version: "1.5",
            serial_number: String::new(),
            version: 1,
            metadata: About {
                timestamp: self.date.to_string(),
                tools: Tools { components: vec![this_tool()] },
                component: program,
            },
            components,
            dependencies: graph,
        })
    }

    fn of_crate(&self, dependency: &Dependency<'_>) -> Result<Component, Error> {
        let mut component = of_package(dependency.package, "library");
        component.scope = Some(match dependency.scope {
            Scope::Linked => "required",
            // The specification's word for what is used, but not reachable at run time.
            Scope::BuildTime => "excluded",
        });
        let checksum = self.lock.checksum(dependency.package)?;
        component.hashes = checksum.into_iter().map(|content| Hash { alg: "SHA-256", content }).collect();
        Ok(component)
    }
}

fn of_package(package: &Package, kind: &'static str) -> Component {
    let purl = purl(package);
    let license = match (package.license_expression(), &package.license, &package.license_file) {
        (Some(expression), _, _) => Some(License::Expression { expression }),
        (None, Some(name), _) => Some(License::Named { license: Name { name: name.clone() } }),
        (None, None, Some(_)) => {
            let name = format!("in the licence file of {} {}", package.name, package.version);
            Some(License::Named { license: Name { name } })
        }
        (None, None, None) => None,
    };
    let link =
        |kind, url: &Option<String>| url.as_ref().filter(|url| is_web(url)).map(|url| Link { kind, url: url.clone() });
    let links = [link("vcs", &package.repository), link("website", &package.homepage)];
    Component {
        kind,
        reference: purl.clone(),
        author: Some(package.authors.join(", ")).filter(|authors| !authors.is_empty()),
        name: package.name.clone(),
        version: package.version.clone(),
        description: None,
        scope: None,
        hashes: Vec::new(),
        licenses: license.into_iter().collect(),
        purl: Some(purl),
        external_references: links.into_iter().flatten().collect(),
        properties: Vec::new(),
    }
}

/// [Package URL](https://github.com/package-url/purl-spec). Members of the workspace are in no registry: as `cargo`
/// they would stand for whatever has their name there.
fn purl(package: &Package) -> String {
    const CRATES_IO: [&str; 2] =
        ["registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];
    let name = format!("{}@{}", package.name, package.version.replace('+', "%2B"));
    match package.source.as_deref() {
        None => format!("pkg:generic/{name}"),
        Some(source) if CRATES_IO.contains(&source) => format!("pkg:cargo/{name}"),
        Some(source) => match source.strip_prefix("git+") {
            Some(_) => format!("pkg:cargo/{name}?vcs_url={}", percent_encode(source)),
            None => {
                let address = source.split_once('+').map_or(source, |(_, address)| address);
                format!("pkg:cargo/{name}?repository_url={}", percent_encode(address))
            }
        },
    }
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".-_~/:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// What comes with the compiler and not from a registry. Of `rustc 1.95.0 (…)` it is the standard library that ends up
/// in the program.
fn of_toolchain(text: &str) -> Component {
    let mut words = text.split_whitespace();
    let given = words.next().unwrap_or_default();
    let version = words.next().unwrap_or_default().trim_end_matches(',').to_owned();
    let (name, license, description) = match given {
        "rustc" => ("rust-std", Some("MIT OR Apache-2.0"), format!("Rust standard library; built with {text}")),
        "musl" => ("musl", Some("MIT"), text.to_owned()),
        _ => (given, None, text.to_owned()),
    };
    let purl = format!("pkg:generic/{}@{}", percent_encode(name), percent_encode(&version));
    Component {
        kind: "library",
        reference: purl.clone(),
        author: None,
        name: name.to_owned(),
        version,
        description: Some(description),
        scope: Some("required"),
        hashes: Vec::new(),
        licenses: license.map(|license| License::Expression { expression: license.to_owned() }).into_iter().collect(),
        purl: Some(purl),
        external_references: Vec::new(),
        properties: Vec::new(),
    }
}

fn this_tool() -> Tool {
    Tool { kind: "application", name: "spacelift-bundle", version: env!("CARGO_PKG_VERSION") }
}

/// Whether it is an address that readers of the document can follow.
fn is_web(url: &str) -> bool {
    (url.starts_with("https://") || url.starts_with("http://"))
        && url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte))
}

fn serial_number(digest: &Digest) -> String {
    let mut hex: Vec<char> = digest.to_string().chars().take(32).collect();
    // The version, and the two bits of the variant.
    hex[12] = '8';
    hex[16] = match hex[16] {
        '0'..='3' => '8',
        '4'..='7' => '9',
        '8'..='b' => 'a',
        _ => 'b',
    };
    let part = |range: std::ops::Range<usize>| hex[range].iter().collect::<String>();
    format!("urn:uuid:{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    bom_format: &'static str,
    spec_version: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    serial_number: String,
    version: u32,
    metadata: About,
    components: Vec<Component>,
    dependencies: Vec<Node>,
}

#[derive(Serialize)]
struct About {
    timestamp: String,
    tools: Tools,
    component: Component,
}

#[derive(Serialize)]
struct Tools {
    components: Vec<Tool>,
}

#[derive(Serialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref")]
    reference: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<License>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_references: Vec<Link>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Serialize)]
struct Hash {
    alg: &'static str,
    content: Digest,
}

#[derive(Serialize)]
#[serde(untagged)]
enum License {
    Expression { expression: String },
    Named { license: Name },
}

#[derive(Serialize)]
struct Name {
    name: String,
}

#[derive(Serialize)]
struct Link {
    #[serde(rename = "type")]
    kind: &'static str,
    url: String,
}

#[derive(Serialize)]
struct Property {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::dependencies::tests::Example;

    fn sbom(example: &Example) -> Vec<u8> {
        let toolchain = [
            "rustc 1.95.0 (f2d3ce0bd 2026-03-21), standard library: built from source".to_owned(),
            "musl 1.2.5".to_owned(),
        ];
        let sbom = Sbom {
            selection: &example.metadata.select(&example.tree).unwrap(),
            lock: &example.lock,
            target: "x86_64-unknown-linux-musl",
            toolchain: &toolchain,
            date: "1700000000".parse().unwrap(),
        };
        sbom.to_bytes().unwrap()
    }

    fn component<'a>(document: &'a Value, name: &str) -> &'a Value {
        document["components"].as_array().unwrap().iter().find(|component| component["name"] == name).unwrap()
    }

    #[test]
    fn every_crate_is_a_component_with_its_origin_checksum_and_licence() {
        let document: Value = serde_json::from_slice(&sbom(&Example::new())).unwrap();
        assert_eq!(document["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        assert_eq!(document["metadata"]["component"]["bom-ref"], "pkg:generic/program@1.0.0");
        assert_eq!(
            *component(&document, "leaf"),
            json!({
                "type": "library", "bom-ref": "pkg:cargo/leaf@1.0.0", "author": "Author of leaf <leaf@example.com>",
                "name": "leaf", "version": "1.0.0", "scope": "required", "purl": "pkg:cargo/leaf@1.0.0",
                "hashes": [{"alg": "SHA-256", "content": Digest::of(b"leaf")}],
                "licenses": [{"expression": "MIT OR Apache-2.0"}],
                "externalReferences": [{"type": "vcs", "url": "https://example.com/leaf"}],
            })
        );
        let generator = component(&document, "generator");
        assert_eq!(generator["scope"], "excluded");
        assert_eq!(generator["licenses"], Value::Null);
        assert_eq!(
            generator["purl"],
            "pkg:cargo/generator@1.0.0?vcs_url=git%2Bhttps://example.com/generator%3Frev%3D1%230123456789"
        );
        assert_eq!(component(&document, "rust-std")["version"], "1.95.0");
        assert_eq!(component(&document, "musl")["licenses"][0]["expression"], "MIT");
    }

    #[test]
    fn the_graph_names_only_components_that_are_there() {
        let document: Value = serde_json::from_slice(&sbom(&Example::new())).unwrap();
        let components = document["components"].as_array().unwrap();
        let mut known: Vec<&str> = components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        known.push("pkg:generic/program@1.0.0");
        let graph = document["dependencies"].as_array().unwrap();
        assert_eq!(graph.len(), known.len());
        for node in graph {
            assert!(known.contains(&node["ref"].as_str().unwrap()));
            assert!(node["dependsOn"].as_array().unwrap().iter().all(|to| known.contains(&to.as_str().unwrap())));
        }
        let root = graph.iter().find(|node| node["ref"] == "pkg:generic/program@1.0.0").unwrap();
        assert_eq!(
            root["dependsOn"],
            json!([
                "pkg:cargo/generator@1.0.0?vcs_url=git%2Bhttps://example.com/generator%3Frev%3D1%230123456789",
                "pkg:cargo/macros@1.0.0",
                "pkg:generic/library@1.0.0",
                "pkg:generic/musl@1.2.5",
                "pkg:generic/rust-std@1.95.0",
            ])
        );
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_machine() {
        // Each example has its own directory, as two machines would have.
        let (one, two) = (Example::new(), Example::new());
        let bytes = sbom(&one);
        assert_eq!(bytes, sbom(&two));
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains(&*one.directory.path().to_string_lossy()) && !text.contains("/build/"));
    }

    #[test]
    fn serial_numbers_are_uuids() {
        for text in ["a", "b", "c", "d", "e"] {
            let serial = serial_number(&Digest::of(text.as_bytes()));
            let uuid = serial.strip_prefix("urn:uuid:").unwrap();
            let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12]);
            assert!(uuid.as_bytes()[14] == b'8' && b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
        }
    }

    #[test]
    fn only_followable_addresses_are_listed() {
        assert!(is_web("https://example.com/a?b#c"));
        assert!(!is_web("git@example.com:x") && !is_web("https://example.com/a b") && !is_web("https://x/{y}"));
    }
}
