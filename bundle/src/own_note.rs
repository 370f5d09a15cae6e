//! The build note of this program: what verification and `inspect` read of a binary without running it.

use std::hint::black_box;

use bundle_core::build_note::is_commit;

/// The build note of the program that this is part of: one line of JSON, without a line break at its end.
pub(crate) fn own() -> &'static [u8] {
    const NOTE: &str = concat!(
        r#"{"format":1,"program":""#,
        env!("CARGO_PKG_NAME"),
        r#"","version":"v"#,
        env!("CARGO_PKG_VERSION"),
        r#"","commit":""#,
        env!("SPACELIFT_BUILD_COMMIT"),
        r#"","target":""#,
        env!("SPACELIFT_BUILD_TARGET"),
        r#"","worker":null}"#
    );
    const _: () = assert!(
        is_commit(env!("SPACELIFT_BUILD_COMMIT")),
        "the environment variable SPACELIFT_BUILD_COMMIT must be 40 lower-case hexadecimal digits or `unknown`"
    );
    // An array and not a reference to one: the section holds the text itself.
    #[used]
    #[expect(unsafe_code, reason = "naming a section counts as unsafe; this one is read, never executed")]
    #[unsafe(link_section = ".spacelift.build")]
    static SECTION: [u8; NOTE.len()] = match NOTE.as_bytes().first_chunk() {
        Some(bytes) => *bytes,
        None => unreachable!(),
    };
    // Linkers before GNU ld 2.36 and lld 13 do not know of sections to be retained and drop what nothing refers to. So
    // the optimiser must not be able to print a copy of the text and drop the reference.
    black_box(&SECTION)
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use bundle_core::build_note::Elf;

    use super::*;

    #[test]
    fn the_program_that_runs_has_a_note() {
        let file = fs::read(env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.machine().to_string(), env::consts::ARCH);
        assert!(own().starts_with(br#"{"format":1,"program":"spacelift-bundle""#));
        let note = elf.build_note().unwrap();
        assert_eq!((note.program.as_str(), note.worker), ("spacelift-bundle", None));
        assert_eq!(note.version.to_string(), concat!("v", env!("CARGO_PKG_VERSION")));
    }
}
