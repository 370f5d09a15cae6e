//! JSON, as much as a build command needs: reading what `cargo` and `spacelift-bundle` print, writing a report.
//!
//! A crate for it would cost more build time than everything else here together. The reader accepts every valid document
//! and is lenient about some invalid ones, which is fine for the output of programs that this command started itself.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

/// Nothing that is read here nests deeper; the limit keeps a broken document from exhausting the stack.
const MAX_DEPTH: usize = 64;

/// A JSON value. Numbers stay text: they are only shown or compared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number as it was written.
    Number(String),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object, in the order of the document.
    Map(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.space();
        if reader.at < text.len() {
            bail!("something follows the JSON document at byte {}", reader.at);
        }
        Ok(value)
    }

    /// The value under a path of keys, as in `worker.version`.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, key| match value {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        })
    }

    /// The first value under this key, at any depth.
    pub(crate) fn find(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => {
                entries.iter().find_map(|(name, value)| if name == key { Some(value) } else { value.find(key) })
            }
            Self::List(values) => values.iter().find_map(|value| value.find(key)),
            _ => None,
        }
    }

    /// The text or number under a path.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.at(path)?.as_text()
    }

    /// The text, if it is text or a number.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Number(text) => Some(text),
            _ => None,
        }
    }

    /// The text or number under a path, or an error that names both.
    pub(crate) fn require(&self, path: &str, whose: &str) -> Result<&str> {
        self.text(path).with_context(|| format!("the output of {whose} has no \"{path}\""))
    }

    /// Whether the value under a path is `true`.
    pub(crate) fn is_true(&self, path: &str) -> bool {
        self.at(path) == Some(&Self::Bool(true))
    }

    /// The elements of the array under a path; none if it is not there.
    pub(crate) fn list(&self, path: &str) -> &[Self] {
        match self.at(path) {
            Some(Self::List(values)) => values,
            _ => &[],
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Self {
        Self::Number(number.to_string())
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// An object from literal keys.
pub(crate) fn map<const N: usize>(entries: [(&str, Json); N]) -> Json {
    Json::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

impl std::fmt::Display for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => f.write_str(number),
            Self::Text(text) => quote(f, text),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    quote(f, key)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn quote(f: &mut std::fmt::Formatter<'_>, text: &str) -> std::fmt::Result {
    f.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            control if u32::from(control) < 0x20 => write!(f, "\\u{:04x}", u32::from(control))?,
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Json> {
        if depth > MAX_DEPTH {
            bail!("the JSON document nests deeper than {MAX_DEPTH} levels");
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.entries(depth),
            Some(b'[') => self.elements(depth),
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b'-' | b'0'..=b'9') => {
                let start = self.at;
                while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
                    self.at += 1;
                }
                Ok(Json::Number(self.text[start..self.at].to_owned()))
            }
            _ => bail!("no JSON value at byte {}", self.at),
        }
    }

    fn entries(&mut self, depth: usize) -> Result<Json> {
        let mut entries = Vec::new();
        self.at += 1;
        while !self.closes(b'}', entries.is_empty())? {
            self.space();
            let key = self.string()?;
            self.space();
            self.expect(b':')?;
            entries.push((key, self.value(depth + 1)?));
        }
        Ok(Json::Map(entries))
    }

    fn elements(&mut self, depth: usize) -> Result<Json> {
        let mut elements = Vec::new();
        self.at += 1;
        while !self.closes(b']', elements.is_empty())? {
            elements.push(self.value(depth + 1)?);
        }
        Ok(Json::List(elements))
    }

    /// Steps over the closing bracket, or over the comma before the next element.
    fn closes(&mut self, bracket: u8, first: bool) -> Result<bool> {
        self.space();
        if self.peek() == Some(bracket) {
            self.at += 1;
            return Ok(true);
        }
        if !first {
            self.expect(b',')?;
        }
        Ok(false)
    }

    fn string(&mut self) -> Result<String> {
        self.expect(b'"')?;
        let mut value = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(stop) = rest.find(['"', '\\']) else { bail!("a JSON string does not end") };
            value.push_str(&rest[..stop]);
            self.at += stop + 1;
            if rest.as_bytes()[stop] == b'"' {
                return Ok(value);
            }
            value.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char> {
        let kind = self.peek().context("a JSON string ends in an escape")?;
        self.at += 1;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let high = self.unit()?;
                let mut units = vec![high];
                if (0xd800..0xdc00).contains(&high) && self.text[self.at..].starts_with("\\u") {
                    self.at += 2;
                    units.push(self.unit()?);
                }
                char::decode_utf16(units).next().and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => bail!("an unknown escape in a JSON string at byte {}", self.at),
        })
    }

    fn unit(&mut self) -> Result<u16> {
        let digits = self.text.get(self.at..self.at + 4).context("a JSON escape is cut off")?;
        self.at += 4;
        u16::from_str_radix(digits, 16).context("a JSON escape is not hexadecimal")
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json> {
        if !self.text[self.at..].starts_with(word) {
            bail!("no JSON value at byte {}", self.at);
        }
        self.at += word.len();
        Ok(value)
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek() != Some(byte) {
            bail!("'{}' is missing at byte {} of a JSON document", char::from(byte), self.at);
        }
        self.at += 1;
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Json, map};

    #[test]
    fn reads_what_it_writes() {
        let document = map([
            ("text", "a \"quoted\" \\ line\nand \u{1}".into()),
            ("number", 42_u64.into()),
            ("list", Json::List(vec![Json::Null, true.into(), map([])])),
        ]);
        assert_eq!(Json::parse(&document.to_string()).unwrap(), document);
    }

    #[test]
    fn finds_nested_values() {
        let document =
            Json::parse(r#" {"worker": {"version": "v1", "size": -1.5e3}, "on": true, "l": [1, 2]} "#).unwrap();
        assert_eq!(document.text("worker.version"), Some("v1"));
        assert_eq!(document.text("worker.size"), Some("-1.5e3"));
        assert_eq!(document.text("worker.missing"), None);
        assert!(document.is_true("on"));
        assert_eq!(document.list("l").len(), 2);
        assert_eq!(document.find("version"), Some(&Json::Text("v1".into())));
    }

    #[test]
    fn decodes_escapes() {
        assert_eq!(Json::parse(r#""\u00e9\ud83d\ude00\/\t""#).unwrap(), Json::Text("é😀/\t".into()));
    }

    #[test]
    fn rejects_what_is_cut_off() {
        for text in ["", "{", "[1", "\"a", "\"\\u00", "{\"a\" 1}", "nul", "1 2", &"[".repeat(100)] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }
}
