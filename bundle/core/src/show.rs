//! Text that comes out of a release, on its way to a terminal or a script.
//!
//! A release that nobody verified may hold anything, also sequences that move a terminal's cursor, change its title or
//! reverse the direction of a line. Whoever prints such text passes it through here.

use std::fmt::Write as _;

use serde::Serialize;

/// More characters of one text than this say nothing more to a person.
const SHOWN: usize = 200;

/// `text` on one line: control, format and other invisible characters and the backslash escaped as Rust does it, and
/// the end of a long one left out.
pub fn text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(SHOWN));
    let mut characters = text.chars();
    for character in characters.by_ref().take(SHOWN) {
        match character {
            // Quotes do no harm, and names have them.
            '"' | '\'' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// A number of bytes for people: `812 B`, `12.3 KiB`, `7.9 MiB`, `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 3] = ["KiB", "MiB", "GiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths, rounded; the next unit begins where this one would show four digits.
    let mut tenths = bytes.saturating_mul(10).saturating_add(512) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `document` as one line of JSON in which everything but printable ASCII is escaped, so that it can be looked at on a
/// terminal. JSON itself would let through all that is above U+001F.
///
/// # Errors
/// `document` cannot be JSON.
pub fn json(document: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(document)?;
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, ' '..='~') {
            ascii.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(ascii, "\\u{unit:04x}");
        }
    }
    Ok(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Escape sequences of 7 and 8 bits, other controls, reversed direction, an invisible space, a second line.
    const HOSTILE: &str = "a\u{1b}[2Jb\u{9b}2Jc\u{7}\u{7f}d\u{202e}e\u{200b}f\ng\u{301}";

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for shown in [text(HOSTILE), json(&HOSTILE).unwrap()] {
            assert!(shown.chars().all(|c| matches!(c, ' '..='~')), "{shown}");
            for letter in 'a'..='g' {
                assert!(shown.contains(letter), "{shown}");
            }
        }
        assert_eq!(text("Ä. O'Brien \"x\" <a@b>"), "Ä. O'Brien \"x\" <a@b>");
        assert_eq!(text("\\u{1b}"), "\\\\u{1b}", "what looks escaped and what was escaped differ");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(text(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(text(&"x".repeat(201)), "x".repeat(200) + "…");
    }

    #[test]
    fn escaped_json_is_the_same_document() {
        for document in [HOSTILE, "ä \u{1f980} \\ \""] {
            assert_eq!(serde_json::from_str::<String>(&json(&document).unwrap()).unwrap(), document);
        }
    }

    #[test]
    fn sizes_have_at_most_four_digits_and_a_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (12_595, "12.3 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (8_283_750, "7.9 MiB"),
            (8_000_000_000, "7.5 GiB"),
            (u64::MAX, "1717986918.4 GiB"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(size(bytes), shown, "{bytes}");
        }
    }
}
