//! What a person who starts the worker by hand gets to see.

use std::fs::File;
use std::process::{Command, Output, Stdio};

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

fn worker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spacelift-worker")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

#[test]
fn version_is_one_fact_per_line() {
    let output = worker(&["--version"]);
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(lines[0], format!("spacelift-worker {VERSION}"));
    assert!(lines[1].starts_with("commit: "), "{lines:?}");
    assert!(lines[2].starts_with("target: "), "{lines:?}");
    assert_eq!((lines.len(), output.status.code()), (3, Some(0)));
}

#[test]
fn json_is_the_build_note_in_the_file() {
    let output = worker(&["--version", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let note = text(&output.stdout).strip_suffix('\n').unwrap();
    assert!(
        note.starts_with(&format!(r#"{{"format":1,"program":"spacelift-worker","version":"{VERSION}","#)),
        "{note}"
    );
    assert!(note.ends_with(r#","worker":null}"#), "{note}");
    assert_eq!(worker(&["--json", "--version"]).stdout, output.stdout);

    let file = std::fs::read(env!("CARGO_BIN_EXE_spacelift-worker")).unwrap();
    assert!(file.windows(note.len()).any(|window| window == note.as_bytes()), "the note is not in the file");
}

#[test]
fn started_in_any_other_way_it_says_what_it_is() {
    for arguments in [&[][..], &["run", "now"], &["--json"], &["--version", "--verbose"], &["--version", "--json", "x"]]
    {
        let output = worker(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains(&format!("spacelift-worker {VERSION}, the first process of a run's container")),
            "{said}"
        );
        assert!(said.contains("spacelift-launcher starts it"), "{said}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spacelift-worker"))
        .args(["--version", "--json"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(text(&output.stderr).contains("No space left on device"), "{}", text(&output.stderr));
}
