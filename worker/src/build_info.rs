//! Which build a program is.
//!
//! The facts are in the program twice over, from one source: as the text that `--version` prints, and as a *build
//! note*, a line of JSON in the ELF section `.spacelift.build` that can be read without running the program.
//! `--version --json` prints the build note byte for byte.
//!
//! ```json
//! {"format":1,"program":"spacelift-launcher","version":"v1.2.3","commit":"<40 hexadecimal digits, or unknown>",
//!  "target":"x86_64-unknown-linux-musl","worker":null}
//! ```
//!
//! (On one line, without the blanks and the line break shown here.) `worker` is `null` unless the program carries a
//! worker; what it holds then is documented in the launcher. Fields keep their names, types and meaning as long as
//! `format` is 1. Fields may be added, so a reader ignores those it does not know.

use std::fmt;
use std::hint::black_box;

/// The facts of a build. Made by [`build_info!`](crate::build_info!).
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo {
    /// The program's file name, `spacelift-worker` for example.
    pub program: &'static str,
    /// The release version, with the `v`.
    pub version: &'static str,
    /// The commit that was built, as 40 hexadecimal digits, or `unknown` outside of a release build.
    pub commit: &'static str,
    /// The target triple that it was built for.
    pub target: &'static str,
    note: &'static [u8],
}

impl BuildInfo {
    /// For [`build_info!`](crate::build_info!) only, which puts `note` into the section.
    #[doc(hidden)]
    pub const fn new(
        program: &'static str,
        version: &'static str,
        commit: &'static str,
        target: &'static str,
        note: &'static [u8],
    ) -> Self {
        Self { program, version, commit, target, note }
    }

    /// The build note: one line of JSON, without a line break at its end.
    pub fn note(&self) -> &'static [u8] {
        // `#[used]` marks the section to be retained, which linkers before GNU ld 2.36 and lld 13 do not know: when they
        // collect unused sections they keep only what is referred to. So the optimiser must not be able to print a copy
        // of the text and drop the reference.
        black_box(self.note)
    }
}

/// One fact per line, without a line break at the end.
impl fmt::Display for BuildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, version, commit, target, .. } = self;
        write!(f, "{program} {version}\ncommit: {commit}\ntarget: {target}")
    }
}

/// Whether `text` may stand for a commit in a build note: 40 lower-case hexadecimal digits, or `unknown`.
pub const fn is_commit(text: &str) -> bool {
    let bytes = text.as_bytes();
    if let b"unknown" = bytes {
        return true;
    }
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'0'..=b'9' | b'a'..=b'f') {
            return false;
        }
        at += 1;
    }
    bytes.len() == 40
}

/// Puts the build note of the program that is being compiled into its section, and gives its [`BuildInfo`].
///
/// Call it in the `main.rs` of a program, once: a note in a library would end up in every program that uses the
/// library, beside that program's own. The package's build script sets `SPACELIFT_BUILD_TARGET` and
/// `SPACELIFT_BUILD_COMMIT`. A program that carries a worker gives the JSON of `worker` as a string literal or as an
/// `env!` of one.
///
/// The program has to call [`BuildInfo::note`] somewhere, in answer to `--version --json`, or an older linker drops
/// the section.
#[macro_export]
macro_rules! build_info {
    ($program:literal) => {
        $crate::build_info!($program, worker = "null")
    };
    ($program:literal, worker = $($worker:tt)+) => {{
        const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
        const COMMIT: &str = env!("SPACELIFT_BUILD_COMMIT");
        const TARGET: &str = env!("SPACELIFT_BUILD_TARGET");
        // None of these can hold a character that JSON escapes: cargo checks the version, the next line the commit,
        // and the others are names of ours and of the compiler.
        const _: () = assert!(
            $crate::build_info::is_commit(COMMIT),
            "the environment variable SPACELIFT_BUILD_COMMIT must be 40 lower-case hexadecimal digits or `unknown`"
        );
        const NOTE: &str = concat!(
            r#"{"format":1,"program":""#, $program,
            r#"","version":"v"#, env!("CARGO_PKG_VERSION"),
            r#"","commit":""#, env!("SPACELIFT_BUILD_COMMIT"),
            r#"","target":""#, env!("SPACELIFT_BUILD_TARGET"),
            r#"","worker":"#, $($worker)+,
            "}"
        );
        // An array and not a reference to one: the section holds the text itself.
        #[used]
        #[expect(unsafe_code, reason = "naming a section counts as unsafe; this one is read, never executed")]
        #[unsafe(link_section = ".spacelift.build")]
        static SECTION: [u8; NOTE.len()] = match NOTE.as_bytes().first_chunk() {
            Some(bytes) => *bytes,
            None => unreachable!(),
        };
        $crate::build_info::BuildInfo::new($program, VERSION, COMMIT, TARGET, &SECTION)
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_40_lower_case_hexadecimal_digits_or_unknown() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(is_commit(commit));
        assert!(is_commit("unknown"));
        for text in
            ["", "Unknown", &commit[1..], &format!("{commit}0"), &commit.to_uppercase(), &commit.replace('0', "\"")]
        {
            assert!(!is_commit(text), "{text:?}");
        }
    }

    #[test]
    fn text_and_note_say_the_same() {
        let info = crate::build_info!("some-program", worker = r#"{"size":1}"#);
        let version = concat!("v", env!("CARGO_PKG_VERSION"));
        let (commit, target) = (info.commit, info.target);
        assert_eq!(info.to_string(), format!("some-program {version}\ncommit: {commit}\ntarget: {target}"));
        assert_eq!(
            str::from_utf8(info.note()).unwrap(),
            format!(
                r#"{{"format":1,"program":"some-program","version":"{version}","commit":"{commit}","target":"{target}","worker":{{"size":1}}}}"#
            )
        );
        assert!(target.starts_with(std::env::consts::ARCH), "{target}");
    }
}
