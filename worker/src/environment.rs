//! The job's environment: what it is made of, how `${NAME}` in it is expanded, and how it gets from one phase to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::protocol::Variable;

/// An expanded value that gets longer stays as it was written: a few variables that name each other often enough would fill
/// the memory. A program could not be started with a longer one either.
pub const MAXIMUM_VALUE: usize = 128 * 1024;
/// Shells set these for themselves.
const OF_THE_SHELL: [&str; 4] = ["_", "OLDPWD", "PWD", "SHLVL"];

/// A variable that cannot be one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its name.
    #[error(
        "`{0}` cannot be the name of an environment variable: it is empty, or has `=` or a zero byte in it; rename it"
    )]
    Name(String),
    /// Its value.
    #[error("the value of the environment variable `{0}` has a zero byte in it; encode it, or mount it as a file")]
    Value(String),
}

/// Variables and their values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

// Values are secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// The environment that the image and the container engine gave to this process.
    pub fn of_the_container() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// All variables.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// One of them.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.0.get(name.as_ref()).map(OsString::as_os_str)
    }

    /// Sets one.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// Takes one away.
    pub fn remove(&mut self, name: impl AsRef<OsStr>) {
        self.0.remove(name.as_ref());
    }

    /// Sets all those that are in another one.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Adds variables in which `${NAME}` stands for the value of another one, in whatever order they are; in a variable's own
    /// value its name stands for the value that it had before. What names nothing, or goes round in a circle, stays as it is
    /// written.
    ///
    /// # Errors
    /// When there is no such variable possible.
    pub fn add(&mut self, variables: &[Variable]) -> Result<(), Error> {
        let mut written = BTreeMap::new();
        for Variable { name, value, .. } in variables {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(Error::Name(name.clone()));
            }
            if value.contains('\0') {
                return Err(Error::Value(name.clone()));
            }
            written.insert(name.as_str(), value.as_str());
        }
        let mut expansion =
            Expansion { written: &written, before: self, done: BTreeMap::new(), within: BTreeSet::new() };
        for name in written.keys() {
            expansion.value(name);
        }
        let expanded = expansion.done.into_iter().map(|(name, value)| (name.into(), OsString::from_vec(value)));
        let expanded: Vec<(OsString, OsString)> = expanded.collect();
        self.0.extend(expanded);
        Ok(())
    }

    /// As bytes: `NAME=VALUE`, each ended by a zero byte, as the kernel has it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, value) in self.iter() {
            bytes.extend_from_slice(&[name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
        }
        bytes
    }

    /// From what [`to_bytes`](Self::to_bytes) gave, without those that shells set for themselves.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let variables = bytes.split(|&byte| byte == 0).filter_map(|variable| {
            // The name of a variable may begin with the sign, as far as the kernel is concerned.
            let at = variable.iter().skip(1).position(|&byte| byte == b'=')? + 1;
            let name = OsString::from_vec(variable[..at].to_vec());
            let of_the_shell = OF_THE_SHELL.iter().any(|own| name == *own);
            (!of_the_shell).then(|| (name, OsString::from_vec(variable[at + 1..].to_vec())))
        });
        Self(variables.collect())
    }

    /// How this one differs from an earlier one.
    pub fn changes_since(&self, earlier: &Self) -> Changes {
        let ours = |name: &OsStr| OF_THE_SHELL.iter().any(|own| name == *own);
        let set = self.iter().filter(|(name, value)| earlier.get(name) != Some(value) && !ours(name));
        let removed = earlier.0.keys().filter(|name| !self.0.contains_key(*name) && !ours(name));
        Changes {
            set: Self(set.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()),
            removed: removed.cloned().collect(),
        }
    }

    /// Makes the same changes here.
    pub fn apply(&mut self, changes: &Changes) {
        self.0.retain(|name, _| !changes.removed.contains(name));
        self.0.extend(changes.set.0.clone());
    }
}

/// What hooks and commands changed in an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones, and those with a new value.
    pub set: Environment,
    /// Those that are gone.
    pub removed: BTreeSet<OsString>,
}

/// Variables that refer to one another.
const MAXIMUM_DEPTH: usize = 64;

struct Expansion<'a> {
    written: &'a BTreeMap<&'a str, &'a str>,
    before: &'a Environment,
    done: BTreeMap<&'a str, Vec<u8>>,
    within: BTreeSet<&'a str>,
}

impl<'a> Expansion<'a> {
    /// The expanded value of a variable; none inside of its own expansion.
    fn value(&mut self, name: &'a str) -> Option<&[u8]> {
        if !self.done.contains_key(name) {
            // As it is written, in its own expansion and beyond any depth that people write.
            if self.within.len() >= MAXIMUM_DEPTH || !self.within.insert(name) {
                return None;
            }
            let written = self.written[name];
            let value = self.expand(name, written).unwrap_or_else(|| written.as_bytes().to_vec());
            self.within.remove(name);
            self.done.insert(name, value);
        }
        self.done.get(name).map(Vec::as_slice)
    }

    /// Nothing when it becomes too long.
    fn expand(&mut self, own: &str, text: &'a str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (plain, tail) = rest.split_at(at);
            out.extend_from_slice(plain.as_bytes());
            let name = tail[2..].split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
            let Some(name) = name else {
                out.extend_from_slice(b"${");
                rest = &tail[2..];
                continue;
            };
            let (reference, tail) = tail.split_at(name.len() + 3);
            let before = self.before.get(name).map(OsStrExt::as_bytes);
            let value = match self.written.get_key_value(name) {
                Some((other, _)) if *other != own => self.value(other),
                _ => before,
            };
            out.extend_from_slice(value.unwrap_or(reference.as_bytes()));
            if out.len() > MAXIMUM_VALUE {
                return None;
            }
            rest = tail;
        }
        out.extend_from_slice(rest.as_bytes());
        Some(out)
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, value: &str) -> Variable {
        Variable { name: name.into(), value: value.into(), secret: false }
    }

    fn expanded(variables: &[(&str, &str)]) -> Environment {
        let mut environment = Environment::default();
        environment.set("PATH", "/bin");
        let variables: Vec<_> = variables.iter().map(|(name, value)| variable(name, value)).collect();
        environment.add(&variables).unwrap();
        environment
    }

    #[test]
    fn references_are_expanded_in_any_order() {
        let environment = expanded(&[
            ("URL", "https://${HOST}:${PORT}/"),
            ("HOST", "${NAME}.example.com"),
            ("NAME", "a"),
            ("PORT", "1"),
            ("PORT", "2"),
            ("PATH", "/opt:${PATH}"),
        ]);
        assert_eq!(environment.get("URL").unwrap(), "https://a.example.com:2/");
        assert_eq!(environment.get("PATH").unwrap(), "/opt:/bin");
    }

    #[test]
    fn a_chain_without_an_end_ends() {
        let names: Vec<String> = (0..20_000).map(|number| format!("A{number:05}")).collect();
        let values: Vec<String> = names.iter().skip(1).map(|name| format!("${{{name}}}")).collect();
        let variables: Vec<_> = names.iter().map(String::as_str).zip(values.iter().map(String::as_str)).collect();
        assert!(expanded(&variables).get("A00000").unwrap().to_str().unwrap().starts_with("${A000"));
    }

    #[test]
    fn what_names_nothing_stays() {
        for text in ["${MISSING}", "$PATH", "${", "${}", "${A-b}", "a${1}b", "${PATH", "$$", "${X}"] {
            assert_eq!(expanded(&[("X", text)]).get("X").unwrap(), text);
        }
        assert_eq!(expanded(&[("X", "${${PATH}}")]).get("X").unwrap(), "${/bin}");
    }

    #[test]
    fn circles_and_explosions_end() {
        let circle = expanded(&[("A", "a${B}"), ("B", "b${A}")]);
        assert_eq!((circle.get("A").unwrap(), circle.get("B").unwrap()), ("ab${A}".as_ref(), "b${A}".as_ref()));
        let names: Vec<String> = (0..40).map(|at| format!("V{at}")).collect();
        let values: Vec<String> = (0..40).map(|at| format!("${{V{0}}}${{V{0}}}ha", at + 1)).collect();
        let variables: Vec<_> = names.iter().map(String::as_str).zip(values.iter().map(String::as_str)).collect();
        assert!(expanded(&variables).iter().all(|(_, value)| value.len() <= MAXIMUM_VALUE));
    }

    #[test]
    fn impossible_variables_are_errors() {
        let mut environment = Environment::default();
        assert_eq!(environment.add(&[variable("A=B", "")]), Err(Error::Name("A=B".into())));
        assert_eq!(environment.add(&[variable("", "")]), Err(Error::Name(String::new())));
        assert_eq!(environment.add(&[variable("A", "\0")]), Err(Error::Value("A".into())));
    }

    #[test]
    fn changes_can_be_made_elsewhere() {
        let earlier = expanded(&[("KEPT", "1"), ("GONE", "1"), ("NEW", "1")]);
        let later = Environment::from_bytes(b"KEPT=1\0NEW=2\0PATH=/bin\0X=a=b\nc\0PWD=/\0SHLVL=1\0_=x\0");
        let changes = later.changes_since(&earlier);
        let mut elsewhere = expanded(&[("KEPT", "other"), ("GONE", "1")]);
        elsewhere.apply(&changes);
        let mut expected = later.clone();
        expected.set("KEPT", "other");
        assert_eq!(elsewhere, expected);
        assert_eq!(Environment::from_bytes(&later.to_bytes()), later);
    }
}
