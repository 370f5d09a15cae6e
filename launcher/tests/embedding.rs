//! A launcher without a worker, and workers that no launcher accepts.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use object::read::elf::{FileHeader, SectionHeader};
use object::{LittleEndian, elf};

/// What embeds the worker when a launcher is built.
#[allow(dead_code, reason = "a build script's main is not called here")]
#[path = "../build.rs"]
mod build_script;

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const LAUNCHER: &str = env!("CARGO_BIN_EXE_spacelift-launcher");

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(LAUNCHER).args(arguments).env_remove("SPACELIFT_LAUNCHER_DIR").output().unwrap()
}

/// The sections' content, and whether they are loaded into memory, which is what keeps `strip` from removing them.
fn section(program: &[u8], name: &str) -> Option<Vec<u8>> {
    let header = elf::FileHeader64::<LittleEndian>::parse(program).unwrap();
    let sections = header.sections(LittleEndian, program).unwrap();
    let (_, section) = sections.section_by_name(LittleEndian, name.as_bytes())?;
    assert!(section.sh_flags(LittleEndian).contains(elf::SHF_ALLOC), "{name}");
    Some(section.data(LittleEndian, program).unwrap().to_vec())
}

#[cfg(not(embedded_worker))]
#[test]
fn without_a_worker_it_says_that_it_cannot_start_runs() {
    let version = run(&["--version"]);
    let lines: Vec<&str> = text(&version.stdout).lines().collect();
    assert_eq!(lines[0], format!("spacelift-launcher {VERSION}"));
    assert!(lines[1].starts_with("commit: ") && lines[2].starts_with("target: "), "{lines:?}");
    assert_eq!((&lines[3..], version.status.code()), (&["worker: none, so it cannot start runs"][..], Some(0)));

    let note: serde_json::Value = serde_json::from_slice(&run(&["--version", "--json"]).stdout).unwrap();
    assert_eq!(note["worker"], serde_json::Value::Null);
    assert_eq!(section(&fs::read(LAUNCHER).unwrap(), ".spacelift.worker"), None);

    let start = run(&[]);
    assert_eq!(start.status.code(), Some(69));
    assert!(text(&start.stderr).contains("carries no worker, so it cannot start runs"), "{}", text(&start.stderr));

    let directory = tempfile::tempdir().unwrap();
    let extract = run(&["extract-worker", "--dir", directory.path().to_str().unwrap()]);
    assert_eq!((extract.status.code(), text(&extract.stdout)), (Some(69), ""));
    assert!(text(&extract.stderr).contains("built without a worker"), "{}", text(&extract.stderr));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_not() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(LAUNCHER).arg("--version").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(text(&output.stderr).contains("cannot write to standard output"), "{}", text(&output.stderr));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(LAUNCHER).arg("--help").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn wrong_usage_says_where_help_is() {
    let output = run(&["start"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), ""));
    assert!(text(&output.stderr).contains("spacelift-launcher --help"), "{}", text(&output.stderr));
}

/// `file` with every occurrence of `from` exchanged for `to`, which is as long.
fn altered(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut file = file.to_vec();
    let places: Vec<usize> =
        file.windows(from.len()).enumerate().filter(|(_, it)| *it == from.as_bytes()).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{from}");
    for at in places {
        file[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    file
}

#[test]
fn a_worker_of_another_build_is_a_build_error_that_explains_itself() {
    let launcher = fs::read(LAUNCHER).unwrap();
    let note: serde_json::Value = serde_json::from_slice(&section(&launcher, ".spacelift.build").unwrap()).unwrap();
    let [version, commit, target] = ["version", "commit", "target"].map(|field| note[field].as_str().unwrap());
    // The build note of a worker, in the program that is at hand.
    let good = altered(&launcher, r#""program":"spacelift-launcher""#, r#""program":"spacelift-worker"  "#);
    let other = |field: &str, value: &str| {
        let last = if value.ends_with('0') { '1' } else { '0' };
        let changed = format!("{}{last}", &value[..value.len() - 1]);
        altered(&good, &format!(r#""{field}":"{value}""#), &format!(r#""{field}":"{changed}""#))
    };
    let mut other_machine = good.clone();
    // The field e_machine: s390.
    other_machine[18..20].copy_from_slice(&22_u16.to_le_bytes());

    let build = build_script::Build { version: version.into(), commit: commit.into(), target: target.into() };
    assert_eq!(build_script::check(&good, &build), Ok(()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker");
    let refused = |worker: &Path, reason: &str| {
        let problem = build_script::embed(worker, &build, directory.path()).expect_err(reason);
        assert!(problem.contains(reason), "{reason} is not in: {problem}");
        let said = build_script::refusal(worker, &problem);
        assert!(said.contains("cannot embed the worker that SPACELIFT_WORKER_BINARY names"), "{said}");
        assert!(said.contains(worker.to_str().unwrap()) && said.contains(&problem), "{said}");
        assert!(said.contains("cargo xtask dist"), "{said}");
    };
    let cases: [(&[u8], &str); 8] = [
        (&other("version", version), "version"),
        (&other("commit", commit), "commit"),
        (&other("target", target), "target"),
        (&launcher, "program"),
        (&altered(&good, r#"{"format":1,"#, r#"{"format":2,"#), "format 2"),
        (&altered(&good, ".spacelift.build", ".spacelift.built"), "no build note"),
        (&other_machine, "another processor"),
        (b"#!/bin/sh\n", "not a program"),
    ];
    for (worker, reason) in cases {
        fs::write(&path, worker).unwrap();
        refused(&path, reason);
    }
    refused(&directory.path().join("missing"), "No such file or directory");
    refused(Path::new("some/worker"), "the path is relative");
}
