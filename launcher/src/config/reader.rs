//! Looks variables up, and collects what is wrong with them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Letters that a misspelt name differs in.
const MAXIMUM_DISTANCE: usize = 2;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// With this variable.
    pub variable: String,
    /// What it is, and what to do. Never the variable's value.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)
    }
}

/// All that is wrong, sorted by variables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

pub(super) struct Reader {
    variables: BTreeMap<OsString, OsString>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Reader {
    pub(super) fn new(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        Self { variables: variables.collect(), problems: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn finish(mut self) -> (Vec<String>, Problems) {
        self.problems.sort();
        self.problems.dedup();
        (self.warnings, Problems(self.problems))
    }

    pub(super) fn problem(&mut self, variable: &str, message: impl fmt::Display) {
        self.problems.push(Problem { variable: variable.to_owned(), message: message.to_string() });
    }

    pub(super) fn warn(&mut self, message: impl fmt::Display) {
        self.warnings.push(message.to_string());
    }

    /// A problem, unless the variable already has one.
    pub(super) fn problem_if_absent(&mut self, variable: &str, message: &str) {
        if !self.problems.iter().any(|problem| problem.variable == variable) {
            self.problem(variable, message);
        }
    }

    /// As it is, also when it is empty.
    pub(super) fn raw(&self, name: &str) -> Option<OsString> {
        self.variables.get(OsStr::new(name)).cloned()
    }

    /// As text, unless it is empty.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.raw(name)?.into_string() {
            Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Err(_) => {
                self.problem(name, "it is not UTF-8");
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> bool {
        match self.text(name).as_deref() {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => {
                self.problem(name, "it is neither `true` nor `false`");
                false
            }
        }
    }

    /// A duration as Go writes it.
    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        // Go takes it without a unit, which would be one of none.
        let parsed =
            if text == "0" { Some(0) } else { go_duration::parse_go_duration(&text).ok().map(|found| found.0) };
        match parsed.map(u64::try_from) {
            Some(Ok(nanoseconds)) if nanoseconds > 0 => return Some(Duration::from_nanos(nanoseconds)),
            Some(Ok(_)) => self.problem(name, "it is zero. There is always a limit; set a long one instead"),
            Some(Err(_)) => self.problem(name, "it is negative. Write how long, such as 1000s, 90m or 1h10m"),
            None => self.problem(name, "it is not a duration. Write numbers with units, such as 1000s, 90m or 1h10m"),
        }
        None
    }

    /// What is between commas, without blanks around it. Empty items are nothing.
    pub(super) fn list(&mut self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
    }

    /// An absolute path. The Docker engine gets it in JSON, so it is text.
    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(name)?);
        if path.is_absolute() {
            Some(path)
        } else {
            self.problem(name, "it is not an absolute path. Begin it with `/`");
            None
        }
    }

    /// Names of variables that begin so, with what follows. Those that are not UTF-8 become problems.
    pub(super) fn with_prefix(&mut self, prefix: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut damaged = Vec::new();
        for name in self.variables.keys() {
            match name.to_str() {
                Some(name) => found.extend(name.strip_prefix(prefix).map(|rest| (name.to_owned(), rest.to_owned()))),
                None if name.as_encoded_bytes().starts_with(prefix.as_bytes()) => {
                    damaged.push(name.to_string_lossy().into_owned());
                }
                None => (),
            }
        }
        for name in damaged {
            self.problem(&name, "its name is not UTF-8");
        }
        found
    }

    pub(super) fn warn_of_misspelt_names(&mut self, known: &[&str]) {
        let names: Vec<String> = self.variables.keys().filter_map(|name| name.to_str()).map(str::to_owned).collect();
        for name in names {
            if known.contains(&name.as_str()) {
                continue;
            }
            let nearest = known.iter().map(|other| (distance(&name, other), other)).min();
            if let Some((difference, other)) = nearest
                && difference <= MAXIMUM_DISTANCE
            {
                self.warn(format_args!("{name} means nothing to the launcher. Is {other} meant?"));
            }
        }
    }
}

/// Letters to add, leave out or replace to make one of the other, after Levenshtein.
fn distance(one: &str, other: &str) -> usize {
    // Most names are of quite another length.
    if one.len().abs_diff(other.len()) > MAXIMUM_DISTANCE {
        return usize::MAX;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, candidate) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *candidate);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
