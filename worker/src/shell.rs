//! What is given to the shell: one script for each phase, with its hooks.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The shell that every runner image has to have.
pub const SHELL: &str = "/bin/sh";

/// A script.
#[derive(Debug, Default)]
pub struct Script<'a> {
    /// Before the phase's own command.
    pub before: &'a [String],
    /// The phase's own command.
    pub command: Option<String>,
    /// After it.
    pub after: &'a [String],
}

/// Where the script leaves word for the worker.
#[derive(Debug)]
pub struct Word<'a> {
    /// This program.
    pub worker: &'a Path,
    /// Gets the environment at the end.
    pub environment: &'a Path,
    /// Is made when the phase's own command begins.
    pub reached: &'a Path,
}

impl Script<'_> {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.command.is_none() && self.before.iter().chain(self.after).all(|command| is_blank(command))
    }

    /// What a person would have typed: groups, each only if the ones before it went well.
    pub fn text(&self) -> String {
        self.groups(None).join(" && ")
    }

    /// What the shell is given: the same, and at the end whatever it is, word of its environment.
    pub fn bytes(&self, word: &Word<'_>) -> Vec<u8> {
        let dump =
            [&quoted(word.worker.as_os_str())[..], b" dump-env ", &quoted(word.environment.as_os_str())].concat();
        let mut bytes = [b"trap ", &quoted(OsStr::from_bytes(&dump))[..], b" EXIT\n"].concat();
        let groups = self.groups(Some(b": > ".iter().chain(&quoted(word.reached.as_os_str())).copied().collect()));
        bytes.extend_from_slice(groups.join(" && ").as_bytes());
        bytes.extend_from_slice(b"\n");
        // A trap of the job's own takes the place of the first one.
        bytes.extend_from_slice(b"set -- \"$?\"\n");
        bytes.extend_from_slice(&dump);
        bytes.extend_from_slice(b"\nexit \"$1\"\n");
        bytes
    }

    fn groups(&self, mark: Option<Vec<u8>>) -> Vec<String> {
        let group = |command: &String| format!("{{\n{command}\n}}");
        let hooks = |hooks: &[String]| hooks.iter().filter(|hook| !is_blank(hook)).map(group).collect::<Vec<_>>();
        let own = self.command.as_ref().map(|command| match &mark {
            Some(mark) => format!("{{\n{}\n{command}\n}}", String::from_utf8_lossy(mark)),
            None => group(command),
        });
        hooks(self.before).into_iter().chain(own).chain(hooks(self.after)).collect()
    }
}

/// Empty, or comments only: between braces the shell wants at least one command.
fn is_blank(command: &str) -> bool {
    command.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#'))
}

/// As one word of a shell, whatever is in it.
pub fn quoted(text: &OsStr) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in text.as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_chained() {
        let before = ["a".to_owned(), "  # nothing\n".to_owned(), "b <<E\nx\nE".to_owned()];
        let script = Script { before: &before, command: Some("tool".into()), after: &["c".to_owned()] };
        assert_eq!(script.text(), "{\na\n} && {\nb <<E\nx\nE\n} && {\ntool\n} && {\nc\n}");
        assert!(Script { before: &before[1..2], ..Script::default() }.is_empty());
    }

    #[test]
    fn a_quoted_text_is_one_word() {
        assert_eq!(quoted(OsStr::new("it's")), b"'it'\\''s'");
    }
}
