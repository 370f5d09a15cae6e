//! The JSON documents of an image, as far as they matter here.
//!
//! They are read from untrusted files by a Go program on the other side, whose JSON parser differs from this one: it
//! takes `Layers` for `layers`, and the last of two equal keys. What the two would read differently is refused, lists
//! and maps have limits, and fields that do not matter cost no memory.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{BlobDigest, Error, Platform};

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What Docker called the same documents before there was a common specification.
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The only version that `oci-layout` ever had.
pub(super) const LAYOUT_VERSION: &str = "1.0.0";
/// A descriptor's annotation with the image's full name, as containerd and Docker write and read it.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// A descriptor's annotation with the image's tag.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Entries of a list or map. Docker stops at 127 layers; labels and platforms stay far below.
const MAX_ITEMS: usize = 1024;

/// `oci-layout`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Layout {
    pub(super) image_layout_version: String,
}

/// An image index: `index.json`, or the document that names the manifest of each platform.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "map")]
    pub(super) annotations: BTreeMap<String, String>,
    /// What only a manifest has: a document that is both means different things to different tools.
    #[serde(default, skip_serializing, rename = "config")]
    pub(super) foreign_config: Option<IgnoredAny>,
    #[serde(default, skip_serializing, rename = "layers")]
    pub(super) foreign_layers: Option<IgnoredAny>,
}

/// The manifest of one image.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    #[serde(deserialize_with = "list")]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "map")]
    pub(super) annotations: BTreeMap<String, String>,
    /// What only an index has, see [`Index::foreign_config`].
    #[serde(default, skip_serializing, rename = "manifests")]
    pub(super) foreign_manifests: Option<IgnoredAny>,
}

/// A reference to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: BlobDigest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<PlatformFields>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "map")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// A platform as documents write it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PlatformFields {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

impl PlatformFields {
    /// The platform, if its parts are plain words.
    pub(super) fn checked(&self) -> Result<Platform, String> {
        const LONGEST: usize = 32;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let variant = self.variant.as_ref().filter(|variant| !variant.is_empty());
        for word in [Some(&self.os), Some(&self.architecture), variant].into_iter().flatten() {
            if word.is_empty() || word.len() > LONGEST || !word.chars().all(plain) {
                return Err(format!("{} is no part of a platform's name", super::quoted(word)));
            }
        }
        Ok(Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: variant.cloned() })
    }
}

/// The configuration of one image, as far as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    #[serde(default)]
    pub(super) config: Option<Execution>,
    pub(super) rootfs: RootFs,
}

/// What a container of the image runs by default.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Execution {
    #[serde(default, rename = "Labels", deserialize_with = "map")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, rename = "Entrypoint", deserialize_with = "list")]
    pub(super) entrypoint: Vec<String>,
    #[serde(default, rename = "User")]
    pub(super) user: Option<String>,
}

/// The uncompressed layers.
#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "list")]
    pub(super) diff_ids: Vec<BlobDigest>,
}

/// One image of the `manifest.json` of `docker save`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    #[serde(default, deserialize_with = "list")]
    pub(super) repo_tags: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub(super) layers: Vec<String>,
}

/// The whole `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct SavedList {
    #[serde(deserialize_with = "list")]
    pub(super) images: Vec<Saved>,
}

/// What `docker save` of Docker 25 and later leaves among the blobs for readers from before 2015: nothing refers to it,
/// and no tool of today reads it.
#[derive(Debug, Deserialize)]
pub(super) struct Legacy {
    pub(super) id: String,
    #[serde(default)]
    pub(super) rootfs: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) manifests: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) layers: Option<IgnoredAny>,
}

/// A document that can be read out of an image, with the names of its fields.
pub(super) trait Document: for<'de> Deserialize<'de> {
    /// The names of the fields that matter, at any depth.
    const FIELDS: &'static [&'static str];
}

const DESCRIPTOR_FIELDS: [&str; 11] = [
    "schemaVersion",
    "mediaType",
    "manifests",
    "config",
    "layers",
    "digest",
    "size",
    "platform",
    "architecture",
    "os",
    "variant",
];

impl Document for Layout {
    const FIELDS: &'static [&'static str] = &["imageLayoutVersion"];
}
impl Document for Index {
    const FIELDS: &'static [&'static str] = &DESCRIPTOR_FIELDS;
}
impl Document for Manifest {
    const FIELDS: &'static [&'static str] = &DESCRIPTOR_FIELDS;
}
impl Document for Config {
    const FIELDS: &'static [&'static str] =
        &["architecture", "os", "variant", "config", "rootfs", "diff_ids", "Labels", "Entrypoint", "User"];
}
impl Document for SavedList {
    const FIELDS: &'static [&'static str] = &["Config", "RepoTags", "Layers"];
}
impl Document for Legacy {
    const FIELDS: &'static [&'static str] = &["id", "rootfs", "manifests", "layers"];
}

/// Reads a document.
pub(super) fn parse<T: Document>(name: &str, bytes: &[u8]) -> Result<T, Error> {
    let failed = |error: serde_json::Error| Error::Document { document: name.to_owned(), reason: error.to_string() };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    ExactKeys { fields: T::FIELDS }.deserialize(&mut deserializer).map_err(failed)?;
    deserializer.end().map_err(failed)?;
    serde_json::from_slice(bytes).map_err(failed)
}

/// Walks a document and refuses keys that another parser takes for one of `fields`.
#[derive(Clone, Copy)]
struct ExactKeys {
    fields: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for ExactKeys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ExactKeys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if let Some(field) = self.fields.iter().find(|field| field.eq_ignore_ascii_case(&key) && **field != key) {
                return Err(A::Error::custom(format_args!("the key {} is not `{field}`", super::quoted(&key))));
            }
            // The keys of these are free text, and every parser keeps them as they are.
            if matches!(key.as_str(), "annotations" | "Labels") {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(self)?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A list of at most [`MAX_ITEMS`]. Go writes an empty one as `null`.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element()? {
                if items.len() == MAX_ITEMS {
                    return Err(A::Error::custom(format_args!("a list has more than {MAX_ITEMS} items")));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_any(List(PhantomData))
}

/// A map of at most [`MAX_ITEMS`] without duplicate keys. Go writes an empty one as `null`.
fn map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Map;
    impl<'de> Visitor<'de> for Map {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with strings")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut items = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if items.len() == MAX_ITEMS {
                    return Err(A::Error::custom(format_args!("an object has more than {MAX_ITEMS} keys")));
                }
                let shown = super::quoted(&key);
                if items.insert(key, value).is_some() {
                    return Err(A::Error::custom(format_args!("the key {shown} is there twice")));
                }
            }
            Ok(items)
        }
    }
    deserializer.deserialize_any(Map)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn manifest(text: &str) -> Result<Manifest, String> {
        let text = text.replace("BLOB", &format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":3}}"#));
        parse("m", text.as_bytes()).map_err(|error: Error| error.to_string())
    }

    #[test]
    fn unknown_fields_are_ignored_and_null_is_empty() {
        let read =
            manifest(r#"{"schemaVersion":2,"config":BLOB,"layers":null,"annotations":null,"x":[1,-2,0.5,true,{}]}"#);
        assert_eq!(read.unwrap().layers.len(), 0);
    }

    #[test]
    fn keys_that_another_parser_takes_for_a_field_are_refused() {
        for extra in [r#""Layers":[]"#, r#""CONFIG":BLOB"#, r#""x":[{"Digest":"y"}]"#, r#""layers":[]"#] {
            let text = format!(r#"{{"schemaVersion":2,"config":BLOB,"layers":[BLOB],{extra}}}"#);
            assert!(manifest(&text).is_err(), "{extra}");
        }
        let labels = r#"{"schemaVersion":2,"config":BLOB,"layers":[],"annotations":{"Size":"1","Layers":"2"}}"#;
        assert_eq!(manifest(labels).unwrap().annotations.len(), 2);
    }

    #[test]
    fn lists_and_maps_have_limits() {
        let list = ["BLOB"; MAX_ITEMS + 1].join(",");
        let error = manifest(&format!(r#"{{"schemaVersion":2,"config":BLOB,"layers":[{list}]}}"#)).unwrap_err();
        assert!(error.contains("more than 1024 items"), "{error}");
        let pairs: Vec<String> = (0..=MAX_ITEMS).map(|n| format!(r#""{n}":"""#)).collect();
        let text = format!(r#"{{"schemaVersion":2,"config":BLOB,"layers":[],"annotations":{{{}}}}}"#, pairs.join(","));
        assert!(manifest(&text).unwrap_err().contains("more than 1024 keys"));
        let twice = r#"{"schemaVersion":2,"config":BLOB,"layers":[],"annotations":{"a":"1","a":"2"}}"#;
        assert!(manifest(twice).unwrap_err().contains("twice"));
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let text = format!(r#"{{"x":{}"#, "[".repeat(100_000));
        assert!(manifest(&text).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn other_digests_and_trailing_data_are_refused() {
        for text in [
            r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha512:00","size":3},"layers":[]}"#,
            r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:../..","size":3},"layers":[]}"#,
            r#"{"schemaVersion":2,"config":BLOB,"layers":[]}{}"#,
            r#"{"schemaVersion":2,"config":BLOB,"layers":[]"#,
            r#"{"schemaVersion":2,"layers":[]}"#,
        ] {
            assert!(manifest(text).is_err(), "{text}");
        }
    }

    #[test]
    fn platforms_are_plain_words() {
        let platform = |os: &str, variant: Option<&str>| {
            let fields =
                PlatformFields { architecture: "arm".into(), os: os.into(), variant: variant.map(str::to_owned) };
            fields.checked().map(|platform| platform.to_string())
        };
        assert_eq!(platform("linux", Some("v7")).unwrap(), "linux/arm/v7");
        assert_eq!(platform("linux", Some("")).unwrap(), "linux/arm");
        for os in ["", "a b", "a\u{1b}[2J", "a/b", &"x".repeat(33)] {
            assert!(platform(os, None).is_err());
        }
    }
}
