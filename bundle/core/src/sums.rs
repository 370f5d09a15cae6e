//! `…_SHA256SUMS`: one line that names the archive and its SHA-256.

use crate::digest::Digest;

/// Ends the name of the sums file, after the archive's whole name.
pub const SUFFIX: &str = "_SHA256SUMS";
/// Ends the name of the sums file's detached signature, after the sums file's whole name.
pub const SIGNATURE_SUFFIX: &str = ".sig";
/// Limit of a sums file in bytes. One line has some 120.
pub const MAX_SUMS: usize = 64 * 1024;

/// The sums file's contents for one file.
pub fn line(digest: Digest, name: &str) -> String {
    format!("{digest}  {name}\n")
}

/// Why a sums file is not accepted. `sha256sum -c` is lenient about several of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not text.
    #[error("it is not ASCII text")]
    NotText,
    /// A carriage return, as an editor or a transfer in text mode adds.
    #[error("line {0} ends in CR LF: it was changed on the way; download it again in binary mode")]
    CarriageReturn(usize),
    /// A line that is not `<64 hexadecimal digits><two spaces><file name>`.
    #[error("line {line} is not `<64 lower-case hexadecimal digits>  <file name>`: {text:?}")]
    Malformed {
        /// Line number, from 1.
        line: usize,
        /// The line, shortened.
        text: String,
    },
    /// The last line has no newline.
    #[error("the last line has no newline: the file is truncated")]
    Truncated,
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// Too large.
    #[error("it has more than the limit of {MAX_SUMS} bytes")]
    TooLarge,
    /// No line for the wanted file.
    #[error("it has no line for {wanted:?}; it names {}", .named.join(", "))]
    NotNamed {
        /// The file that was asked for.
        wanted: String,
        /// The files that it names instead, at most five.
        named: Vec<String>,
    },
    /// More than one line for one name.
    #[error("it names {0:?} more than once")]
    Duplicate(String),
}

/// The digest that `contents` gives for exactly `name`.
///
/// # Errors
/// Anything in the file that is not of the exact form, also in lines for other files; a missing or doubled name.
pub fn find(contents: &[u8], name: &str) -> Result<Digest, Error> {
    if contents.is_empty() {
        return Err(Error::Empty);
    }
    if !contents.is_ascii() || contents.contains(&0) {
        return Err(Error::NotText);
    }
    let text = std::str::from_utf8(contents).map_err(|_| Error::NotText)?;
    let body = text.strip_suffix('\n').ok_or(Error::Truncated)?;
    let mut found = None;
    let mut names: Vec<&str> = Vec::new();
    for (index, line) in body.split('\n').enumerate() {
        if line.contains('\r') {
            return Err(Error::CarriageReturn(index + 1));
        }
        let malformed = || Error::Malformed { line: index + 1, text: line.chars().take(120).collect() };
        let (digest, file) = line.split_once("  ").ok_or_else(malformed)?;
        let digest: Digest = digest.parse().map_err(|_| malformed())?;
        if file.is_empty() || !file.chars().all(|c| c.is_ascii_graphic()) || file.contains('/') {
            return Err(malformed());
        }
        if names.contains(&file) {
            return Err(Error::Duplicate(file.to_owned()));
        }
        names.push(file);
        if file == name {
            found = Some(digest);
        }
    }
    found.ok_or_else(|| Error::NotNamed {
        wanted: name.to_owned(),
        named: names.iter().take(5).map(|name| format!("{name:?}")).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "self-hosted-v1.2.3.tar.gz";

    fn good() -> String {
        line(Digest::of(b"x"), NAME)
    }

    #[test]
    fn the_exact_name_is_found_among_others() {
        let text = good() + &line(Digest::of(b"y"), &format!("{NAME}.old")) + &line(Digest::of(b"z"), "other");
        assert_eq!(find(text.as_bytes(), NAME), Ok(Digest::of(b"x")));
    }

    #[test]
    fn a_name_within_a_name_is_no_hit() {
        let text = line(Digest::of(b"x"), &format!("old-{NAME}")) + &line(Digest::of(b"x"), &format!("{NAME}.old"));
        assert!(matches!(find(text.as_bytes(), NAME), Err(Error::NotNamed { .. })));
    }

    #[test]
    fn two_lines_for_one_name_are_refused() {
        let text = good() + &line(Digest::of(b"y"), NAME);
        assert_eq!(find(text.as_bytes(), NAME), Err(Error::Duplicate(NAME.into())));
    }

    #[test]
    fn anything_but_the_exact_form_is_refused() {
        let good = good();
        let cases = [
            (good.replace('\n', "\r\n"), "CR LF"),
            (good.replace("  ", " "), "one space"),
            (good.replace("  ", " *"), "binary marker"),
            (good.replace("  ", "   "), "three spaces"),
            (good.to_uppercase(), "upper case"),
            (format!("{good}\n"), "blank line"),
            (format!("# comment\n{good}"), "comment"),
            (format!("{good}garbage\n"), "garbage line"),
            (good.trim_end().to_owned(), "no newline"),
            (String::new(), "empty"),
            (format!("\\{good}"), "escaped name"),
            (good.replace(NAME, "dir/self-hosted-v1.2.3.tar.gz"), "directory"),
            (good.replace(NAME, "\u{441}elf-hosted-v1.2.3.tar.gz"), "look-alike letter"),
        ];
        for (text, name) in cases {
            // The form is what is wrong, also where the name is another one then.
            let found = find(text.as_bytes(), NAME);
            assert!(!matches!(found, Ok(_) | Err(Error::NotNamed { .. })), "{name}: {found:?}");
        }
    }
}
