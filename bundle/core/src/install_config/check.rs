//! Everything that is looked at in `config.json`, and the mistakes that are found.

use std::collections::BTreeSet;
use std::path::Path;

use super::fields::{Field, For, Shape, suggestion};
use super::forms::{is_stack, is_tag_char};
use super::json::Json;
use super::{MAX_TAGS, Pin, Problem};

/// What was found so far.
#[derive(Default)]
pub(super) struct Check {
    pub(super) problems: Vec<Problem>,
    pub(super) unused: Vec<String>,
}

impl Check {
    pub(super) fn problem(&mut self, path: &str, message: String) {
        self.problems.push(Problem { path: path.to_owned(), message });
    }

    pub(super) fn object(&mut self, value: &Json, path: &str, fields: &'static [Field]) {
        let Json::Object(entries) = value else {
            let message = format!("it is {} and must be an object", value.kind());
            return self.problem(if path.is_empty() { "(file)" } else { path }, message);
        };
        let mut seen = BTreeSet::new();
        for (name, value) in entries {
            // Names are the file's own text; what a terminal would obey must not get there.
            let name: String = name.chars().flat_map(char::escape_debug).take(100).collect();
            let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                self.problem(&place, format!("nothing has this name{}", suggestion(&name, path, fields)));
                continue;
            };
            if !seen.insert(name) {
                self.problem(&place, "it stands here twice; keep one".into());
            }
            if field.used == For::Backend && is_set(value) && !self.unused.contains(&place) {
                // Of an object that is not used, one line is enough.
                if !self.unused.iter().any(|known| place.starts_with(&format!("{known}."))) {
                    self.unused.push(place.clone());
                }
            }
            self.value(value, &place, &field.shape);
        }
    }

    fn value(&mut self, value: &Json, path: &str, shape: &'static Shape) {
        let expected = match (shape, value) {
            (_, Json::Null)
            | (Shape::Text, Json::Text(_))
            | (Shape::Whole, Json::Number(_))
            | (Shape::Switch, Json::Flag(_))
            | (Shape::Count, Json::Number(_)) => return,
            (Shape::Switch, Json::Text(text)) if matches!(text.as_str(), "" | "true" | "false") => return,
            (Shape::Count, Json::Text(text)) if text.chars().all(|c| c.is_ascii_digit()) => return,
            (Shape::Object(fields), _) => return self.object(value, path, fields),
            (Shape::Texts, Json::List(list)) => {
                for (index, item) in list.iter().enumerate() {
                    self.value(item, &format!("{path}[{index}]"), &Shape::Text);
                }
                return;
            }
            (Shape::Objects(fields), Json::List(list)) => {
                for (index, item) in list.iter().enumerate() {
                    self.object(item, &format!("{path}[{index}]"), fields);
                }
                return;
            }
            (Shape::Text, _) => "a string",
            (Shape::Whole | Shape::Count, _) => "a whole number",
            (Shape::Switch, _) => "true or false",
            (Shape::Texts, _) => "a list of strings",
            (Shape::Objects(_), _) => "a list of objects",
        };
        self.problem(path, format!("it is {} and must be {expected}", value.kind()));
    }

    pub(super) fn matches(
        &mut self,
        path: &str,
        value: Option<String>,
        is_good: fn(&str) -> bool,
        expected: &str,
    ) -> Option<String> {
        let value = value?;
        if !is_good(&value) {
            let shown: String = value.chars().take(100).collect();
            self.problem(path, format!("{shown:?} is not {expected}"));
        }
        Some(value)
    }

    pub(super) fn stack(&mut self, path: &str, value: Option<String>, default: &str) -> String {
        let expected = "a stack's name: a letter, then up to 127 letters, digits and `-`";
        self.matches(path, value, is_stack, expected).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn whole(&mut self, path: &str, value: Option<&Json>, least: u64, most: u64) -> Option<u64> {
        let Some(Json::Number(number)) = value else { return None };
        match number.as_u64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Some(number),
            None => {
                self.problem(path, format!("{number} is not a whole number from {least} to {most}"));
                None
            }
        }
    }

    pub(super) fn signers(&mut self, value: Option<&Json>, directory: &Path) -> Vec<Pin> {
        let Some(Json::List(list)) = value else { return Vec::new() };
        let mut pins = Vec::new();
        for (index, signer) in list.iter().enumerate() {
            let Json::Text(text) = signer else { continue };
            let path = format!("signers[{index}]");
            let digits: String = text.chars().filter(|c| *c != ' ').collect();
            let is_hex = digits.chars().all(|c| c.is_ascii_hexdigit());
            let pin = match digits.len() {
                0 => {
                    self.problem(&path, "it is empty; name a certificate file or a fingerprint".into());
                    continue;
                }
                40 | 64 if is_hex => Pin::Fingerprint(digits.to_ascii_uppercase()),
                8..=63 if is_hex => {
                    let message =
                        "it is a key ID or part of a fingerprint, which others can imitate; give all 40 digits";
                    self.problem(&path, message.into());
                    continue;
                }
                _ => Pin::File(directory.join(text)),
            };
            if pins.contains(&pin) {
                self.problem(&path, "it stands in the list twice".into());
            }
            pins.push(pin);
        }
        pins
    }

    pub(super) fn tags(&mut self, value: Option<&Json>) -> Vec<(String, String)> {
        let Some(Json::List(list)) = value else { return Vec::new() };
        if list.len() > MAX_TAGS {
            let message = format!("{} tags are more than the {MAX_TAGS} that a stack can have", list.len());
            self.problem("global_resource_tags", message);
        }
        let mut tags: Vec<(String, String)> = Vec::new();
        for (index, tag) in list.iter().enumerate() {
            let path = format!("global_resource_tags[{index}]");
            let text = |name: &str| match find(tag, name) {
                Some(Json::Text(text)) => Some(text.clone()),
                _ => None,
            };
            // A value of another type was reported already.
            for name in ["key", "value"] {
                if matches!(find(tag, name), None | Some(Json::Null)) && matches!(tag, Json::Object(_)) {
                    self.problem(&format!("{path}.{name}"), "it is missing".into());
                }
            }
            let (key, value) = (text("key"), text("value"));
            let is_key = |key: &String| {
                (1..=128).contains(&key.chars().count())
                    && !key.to_ascii_lowercase().starts_with("aws:")
                    && key.chars().all(is_tag_char)
            };
            if key.as_ref().is_some_and(|key| !is_key(key)) {
                let message =
                    "a tag's key has 1 to 128 letters, digits, spaces and `_.:/=+-@`, and does not begin with `aws:`";
                self.problem(&format!("{path}.key"), message.into());
            }
            let is_value = |value: &String| value.chars().count() <= 256 && value.chars().all(is_tag_char);
            if value.as_ref().is_some_and(|value| !is_value(value)) {
                let message = "a tag's value has at most 256 letters, digits, spaces and `_.:/=+-@`";
                self.problem(&format!("{path}.value"), message.into());
            }
            let Some(key) = key else { continue };
            if tags.iter().any(|(known, _)| *known == key) {
                self.problem(&format!("{path}.key"), "another tag has the same key".into());
            }
            // Without a value there is a problem, and nobody uses the tags.
            tags.push((key, value.unwrap_or_default()));
        }
        tags
    }

    /// The address is not repeated in the message: there may be a password in it.
    pub(super) fn proxy(&mut self, path: &str, value: Option<String>) -> Option<String> {
        let value = value?;
        let host = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
        let host = host.map(|rest| rest.rsplit_once('@').map_or(rest, |(_, host)| host));
        let is_host = |host: &str| {
            let host = host.trim_end_matches('/');
            !host.is_empty() && !host.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
        };
        if !host.is_some_and(is_host) {
            self.problem(path, "it must have the form http://HOST:PORT or https://HOST:PORT, with the protocol".into());
        }
        Some(value)
    }
}

/// Whether a value says anything: templates of the file have empty strings, lists and objects in place of what is not set.
pub(super) fn is_set(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Text(text) => !text.is_empty(),
        Json::List(list) => list.iter().any(is_set),
        Json::Object(entries) => entries.iter().any(|(_, value)| is_set(value)),
        Json::Flag(_) | Json::Number(_) => true,
    }
}

/// The value at a path of names with dots.
pub(super) fn find<'a>(json: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(json, |value, name| match value {
        Json::Object(entries) => entries.iter().find(|(known, _)| known == name).map(|(_, value)| value),
        _ => None,
    })
}
