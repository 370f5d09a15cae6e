//! `licenses/THIRD-PARTY.txt`: whose work is in the programs, and under which licences.
//!
//! The texts are those in the crates' published sources, so that copyright lines are kept. Texts that differ in nothing
//! but white space are printed once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::dependencies::{Error, Metadata, Package, Tree};

/// Limit of one licence text. The longest in use, the GPL's, has 35 KiB; collections of licences have some more.
const MAX_TEXT: u64 = 1024 * 1024;

/// How names of licence files start, in lower case.
const NAMES: [&str; 7] = ["license", "licence", "copying", "copyright", "notice", "unlicense", "patents"];

const INTRODUCTION: &str = "\
THIRD-PARTY NOTICES

The programs of this release contain, or were built with, the components listed here. They are the work of others, and
are used under the licences that go with them. Where a licence is an offer of several, each is named. The texts of the
licences follow the list; the numbers in brackets lead to them.

";

/// What is linked into every program and comes with the compiler instead of a registry.
const RUNTIME: &str = "\
Rust standard library
    licence     MIT OR Apache-2.0
    authors     The Rust Project contributors
    repository  https://github.com/rust-lang/rust
    texts       [1]

musl libc
    licence     MIT
    authors     Rich Felker, et al. (Copyright 2005-2020)
    repository  https://musl.libc.org
    texts       [1]

";

/// The MIT licence as both projects above use it, each under its own copyright line.
const MIT: &str = "\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.";

/// The notices for everything that `trees` list. The same crates give the same text, wherever they are stored.
///
/// # Errors
/// A tree and the metadata do not belong together, or a licence file cannot be read.
pub fn third_party(metadata: &Metadata, trees: &[Tree]) -> Result<String, Error> {
    let mut packages: BTreeMap<(&str, &str), &Package> = BTreeMap::new();
    for tree in trees {
        for dependency in metadata.select(tree)?.dependencies {
            let package = dependency.package;
            if !package.is_member() {
                packages.insert((&package.name, &package.version), package);
            }
        }
    }
    let mut texts = Texts { numbers: BTreeMap::new(), texts: Vec::new() };
    texts.number(MIT);
    let mut notices = format!("{INTRODUCTION}{RUNTIME}");
    for package in packages.values() {
        let numbers: Vec<String> =
            license_texts(package)?.iter().map(|text| format!("[{}]", texts.number(text))).collect();
        notices.push_str(&entry(package, &numbers));
    }
    for (index, text) in texts.texts.iter().enumerate() {
        let rule = "=".repeat(100);
        notices.push_str(&format!("{rule}\n[{}]\n{rule}\n\n{text}\n\n", index + 1));
    }
    // Every part ends with an empty line; the file ends with a full one.
    notices.pop();
    Ok(notices)
}

fn entry(package: &Package, texts: &[String]) -> String {
    let license = match (package.license_expression(), &package.license) {
        (Some(expression), _) => expression,
        (None, Some(text)) => one_line(text),
        (None, None) => "see its text".to_owned(),
    };
    let mut entry = format!("{} {}\n    licence     {license}\n", package.name, package.version);
    if !package.authors.is_empty() {
        entry.push_str(&format!("    authors     {}\n", one_line(&package.authors.join(", "))));
    }
    if let Some(repository) = &package.repository {
        entry.push_str(&format!("    repository  {}\n", one_line(repository)));
    }
    let texts = if texts.is_empty() { "none in its published source".to_owned() } else { texts.join(" ") };
    entry.push_str(&format!("    texts       {texts}\n\n"));
    entry
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Distinct texts in the order in which they were first needed.
struct Texts {
    numbers: BTreeMap<String, usize>,
    texts: Vec<String>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        let count = self.texts.len();
        let number = *self.numbers.entry(one_line(text)).or_insert(count + 1);
        if number > count {
            self.texts.push(text.to_owned());
        }
        number
    }
}

/// The licence texts beside the crate's manifest, sorted by file name. Also one level down, in directories of licences.
fn license_texts(package: &Package) -> Result<Vec<String>, Error> {
    let Some(directory) = package.manifest_path.parent() else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    if let Some(file) = &package.license_file {
        files.push(directory.join(file));
    }
    for path in list(directory)? {
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() {
            files.extend(list(&path)?.into_iter().filter(|inner| inner.is_file()));
        }
    }
    let mut texts = Vec::new();
    for file in files {
        let text = read(&file)?;
        if !text.is_empty() && !texts.contains(&text) {
            texts.push(text);
        }
    }
    Ok(texts)
}

/// What in `directory` is called like a licence. In a directory that is called like one, everything is.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |source| Error::Read { path: directory.to_owned(), source };
    let like_license = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        // `license.rs` and `copyright.py` are programs.
        let program = [".rs", ".py", ".c", ".h", ".sh"].iter().any(|suffix| name.ends_with(suffix));
        !program && NAMES.iter().any(|start| name.starts_with(start))
    };
    let all = like_license(directory);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if all || like_license(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// A text without trailing white space and without empty lines at either end, whatever its line ends were.
fn read(path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_TEXT + 1).read_to_end(&mut bytes))
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(Error::LongText { path: path.to_owned(), limit: MAX_TEXT });
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().map(str::trim_end).collect();
    Ok(lines.join("\n").trim_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dependencies::tests::Example;

    fn notices(files: &[(&str, &str)]) -> String {
        let example = Example::new();
        for (name, text) in files {
            let path = example.directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let notices = third_party(&example.metadata, &[example.tree]).unwrap();
        assert!(!notices.contains(&*example.directory.path().to_string_lossy()));
        notices
    }

    #[test]
    fn crates_of_others_are_listed_with_their_texts() {
        let notices = notices(&[
            ("leaf/LICENSE-MIT", "Copyright A\r\n\r\npermission  \r\n"),
            ("leaf/COPYRIGHT", "who\n"),
            ("leaf/license.rs", "fn main() {}\n"),
            ("library/LICENSE", "our own\n"),
        ]);
        let expected = "\
leaf 1.0.0
    licence     MIT OR Apache-2.0
    authors     Author of leaf <leaf@example.com>
    repository  https://example.com/leaf
    texts       [2] [3]
";
        assert!(notices.contains(expected), "{notices}");
        assert!(notices.contains("[3]\n") && notices.contains("\nCopyright A\n\npermission\n"));
        assert!(!notices.contains("our own") && !notices.contains("fn main") && !notices.contains("library 1.0.0"));
        assert!(notices.contains("parser 1.0.0\n    licence     BSD-3-Clause\n"));
        assert!(notices.contains("    texts       none in its published source\n"));
        assert!(notices.ends_with("permission\n"));
    }

    #[test]
    fn texts_that_differ_in_white_space_alone_are_printed_once() {
        let notices = notices(&[
            ("leaf/LICENSE", "one two\nthree\n"),
            ("parser/licenses/A.txt", "one\r\ntwo three\r\n"),
            ("parser/licenses/B.txt", "other\n"),
        ]);
        assert_eq!(notices.matches("one two\nthree").count(), 1);
        assert!(notices.contains("https://example.com/parser\n    texts       [2] [3]\n"), "{notices}");
    }

    #[test]
    fn what_has_no_expression_is_still_listed() {
        let notices = notices(&[("generator/LICENSE", "do what you want\n")]);
        assert!(notices.contains("generator 1.0.0\n    licence     see its text\n"), "{notices}");
    }

    #[test]
    fn a_file_that_is_no_text_is_refused() {
        let example = Example::new();
        fs::write(example.directory.path().join("leaf/LICENSE"), vec![b'x'; MAX_TEXT as usize + 1]).unwrap();
        let error = third_party(&example.metadata, &[example.tree]).unwrap_err();
        assert_eq!(error.exit_code(), 65);
    }
}
