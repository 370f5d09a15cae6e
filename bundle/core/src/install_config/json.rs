//! JSON as written by people: a duplicate key is kept, so that it can be reported, and a mistake has a line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// A JSON value that keeps every key of an object, duplicates included, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Flag(bool),
    /// Any number.
    Number(serde_json::Number),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a document.
    ///
    /// # Errors
    /// Where and why it is not JSON.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        serde_json::from_str(text).map_err(|error| SyntaxError::new(text, &error))
    }

    /// What kind of value it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Flag(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Writes a document. Duplicate keys stay, so it is read again as what it was.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Flag(value) => serializer.serialize_bool(*value),
            Self::Number(value) => value.serialize(serializer),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(list) => serializer.collect_seq(list),
            Self::Object(entries) => serializer.collect_map(entries.iter().map(|(name, value)| (name, value))),
        }
    }
}

/// A document that is not JSON. Nothing of the document is in the message: there may be a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct SyntaxError {
    line: usize,
    column: usize,
    reason: String,
}

impl SyntaxError {
    /// The line, from 1 on.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column, from 1 on, in characters as an editor counts them. Behind the last one where something is missing.
    #[must_use]
    pub fn column(&self) -> usize {
        self.column
    }

    fn new(text: &str, error: &serde_json::Error) -> Self {
        let line = error.line().max(1);
        // With their ends, which have one byte or two.
        let before = text.split_inclusive('\n').take(line - 1).map(str::len).sum::<usize>();
        let rest = text.get(before..).unwrap_or_default();
        let content = rest.split('\n').next().unwrap_or_default();
        let content = content.strip_suffix('\r').unwrap_or(content);
        // The parser counts bytes that it has read, of a character as a rule only the first.
        let at = content.floor_char_boundary(error.column().saturating_sub(1));
        // Where the text ends too early, the place is the one where more is expected.
        let at = if error.is_eof() { content.len() } else { at };
        let (here, column) = (&rest[at..], content[..at].chars().count() + 1);
        let said = error.to_string();
        let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(reason, _)| reason);
        let reason = if here.starts_with("//") || here.starts_with("/*") || here.starts_with('#') {
            "JSON has no comments; remove it".to_owned()
        } else if said.contains("trailing comma") {
            "there is a comma after the last entry, which JSON does not allow; remove it".to_owned()
        } else if text.starts_with('\u{feff}') {
            "the file begins with a byte order mark; save it as UTF-8 without one".to_owned()
        } else if here.starts_with('\'') {
            "JSON strings and names stand in double quotes".to_owned()
        } else {
            said.to_owned()
        };
        Self { line, column, reason }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Flag(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::Json;

    fn mistake(text: &str) -> String {
        Json::parse(text).expect_err("it is not JSON").to_string()
    }

    #[test]
    fn mistakes_have_a_line_and_a_reason() {
        assert_eq!(
            mistake("{\n  \"a\": 1,\n}"),
            "line 3, column 1: there is a comma after the last entry, which JSON does not allow; remove it"
        );
        assert_eq!(mistake("{\n  // why\n  \"a\": 1\n}"), "line 2, column 3: JSON has no comments; remove it");
        assert_eq!(mistake("{\n  \"a\": /* why */ 1\n}"), "line 2, column 8: JSON has no comments; remove it");
        assert_eq!(mistake("{'a': 1}"), "line 1, column 2: JSON strings and names stand in double quotes");
        assert!(mistake("\u{feff}{}").contains("byte order mark"));
        assert!(mistake("{\"a\": 1").starts_with("line 1, column 8: EOF"));
        assert!(mistake("").starts_with("line 1, column 1: EOF"));
        assert!(mistake("{\n").starts_with("line 2, column 1: EOF"));
        assert!(mistake("{} {}").contains("trailing characters"));
    }

    #[test]
    fn columns_are_those_of_an_editor() {
        assert_eq!(mistake("{\r\n  \"a\": 1, // why\r\n}"), "line 2, column 11: JSON has no comments; remove it");
        assert_eq!(mistake("{\r\n\r\n  # why\r\n}"), "line 3, column 3: JSON has no comments; remove it");
        assert_eq!(mistake("{\"ä€😀\": // why\n1}"), "line 1, column 9: JSON has no comments; remove it");
        assert_eq!(mistake("{😀}"), "line 1, column 2: key must be a string");
        assert!(mistake("\"ä").starts_with("line 1, column 3: EOF"));
        assert!(mistake("[1,\r\n").starts_with("line 2, column 1: EOF"));
    }

    #[test]
    fn what_is_written_is_read_alike() {
        let text = r#"{"a":1,"a":[null,true,-1.5,"x\"\u0000ä"],"":{}}"#;
        let json = Json::parse(text).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), text);
    }

    #[test]
    fn duplicates_are_kept() {
        let Json::Object(entries) = Json::parse(r#"{"a": 1, "a": [null, true, 1.5, "x"]}"#).unwrap() else { panic!() };
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].1.kind(), "a list");
    }

    #[test]
    fn depth_is_limited() {
        assert!(mistake(&"[".repeat(100_000)).contains("recursion limit"));
    }
}
