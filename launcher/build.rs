//! Embeds the worker that the environment variable `SPACELIFT_WORKER_BINARY` names.
//!
//! A launcher and the worker inside it are of one build: same version, same commit, same target. Anything else is an
//! error here, because on a host it would show up as a run that fails in a way that nobody can explain.
//!
//! Without the variable the launcher is built without a worker: enough to compile and test it, not to start runs.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, SectionHeader};
use sha2::{Digest, Sha256};

const WORKER_BINARY: &str = "SPACELIFT_WORKER_BINARY";

fn main() -> io::Result<()> {
    let target = variable("TARGET")?;
    let commit = env::var("SPACELIFT_BUILD_COMMIT").unwrap_or_else(|_| "unknown".into());
    let mut cargo = io::stdout().lock();
    writeln!(cargo, "cargo::rerun-if-changed=build.rs")?;
    writeln!(cargo, "cargo::rerun-if-env-changed=SPACELIFT_BUILD_COMMIT")?;
    writeln!(cargo, "cargo::rerun-if-env-changed={WORKER_BINARY}")?;
    writeln!(cargo, "cargo::rustc-check-cfg=cfg(embedded_worker)")?;
    writeln!(cargo, "cargo::rustc-env=SPACELIFT_BUILD_TARGET={target}")?;
    writeln!(cargo, "cargo::rustc-env=SPACELIFT_BUILD_COMMIT={commit}")?;

    // An empty variable is how a shell spells "not for this command".
    let Some(path) = env::var_os(WORKER_BINARY).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return writeln!(cargo, "cargo::rustc-env=SPACELIFT_WORKER_NOTE=null");
    };
    writeln!(cargo, "cargo::rerun-if-changed={}", path.display())?;
    let launcher = Build { version: format!("v{}", variable("CARGO_PKG_VERSION")?), commit, target };
    let out = PathBuf::from(variable("OUT_DIR")?);
    match embed(&path, &launcher, &out) {
        Ok(note) => {
            writeln!(cargo, "cargo::rustc-cfg=embedded_worker")?;
            writeln!(cargo, "cargo::rustc-env=SPACELIFT_WORKER_NOTE={note}")
        }
        Err(problem) => writeln!(cargo, "cargo::error={}", refusal(&path, &problem)),
    }
}

pub(crate) fn refusal(worker: &Path, problem: &str) -> String {
    format!(
        "cannot embed the worker that {WORKER_BINARY} names, `{}`: {problem}. Build the worker and the launcher from \
         one commit for one target (`cargo xtask dist` does), or unset {WORKER_BINARY} for a launcher that carries no \
         worker.",
        worker.display()
    )
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

/// What the launcher that is being built has in common with the worker that it carries.
pub(crate) struct Build {
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) target: String,
}

/// Writes `worker.zlib` and `embedded_worker.rs`, a literal of `worker_binary::Embedded`, to `out`, and gives what the
/// launcher's build note says about the worker.
pub(crate) fn embed(path: &Path, launcher: &Build, out: &Path) -> Result<String, String> {
    if !path.is_absolute() {
        return Err(
            "the path is relative, and cargo runs this check in the launcher's directory; give it in full".into()
        );
    }
    let worker = fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    check(&worker, launcher)?;

    let compressed = compress(&worker).map_err(|error| format!("it cannot be compressed: {error}"))?;
    let digest: [u8; 32] = Sha256::digest(&worker).into();
    let hexadecimal: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let Build { version, commit, target } = launcher;
    let (size, compressed_size) = (worker.len(), compressed.len());

    let embedded = format!(
        "Embedded {{ version: {version:?}, commit: {commit:?}, target: {target:?}, sha256: Sha256({digest:?}), \
         size: {size}, compressed: &COMPRESSED }}"
    );
    for (name, content) in [("worker.zlib", &compressed[..]), ("embedded_worker.rs", embedded.as_bytes())] {
        let path = out.join(name);
        fs::write(&path, content).map_err(|error| format!("`{}` cannot be written: {error}", path.display()))?;
    }
    Ok(format!(
        r#"{{"version":"{version}","commit":"{commit}","target":"{target}","sha256":"{hexadecimal}","size":{size},"compressed_size":{compressed_size}}}"#
    ))
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>, libdeflater::CompressionError> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::best());
    let mut compressed = vec![0; compressor.zlib_compress_bound(bytes.len())];
    let length = compressor.zlib_compress(bytes, &mut compressed)?;
    compressed.truncate(length);
    Ok(compressed)
}

/// Whether `file` is the worker of the same build.
pub(crate) fn check(file: &[u8], launcher: &Build) -> Result<(), String> {
    let header = FileHeader64::<LittleEndian>::parse(file)
        .map_err(|_| "it is not a program for 64-bit little-endian Linux (ELF)".to_owned())?;
    let machine = header.e_machine(LittleEndian);
    let architecture = launcher.target.split('-').next().unwrap_or_default();
    let same_machine = match architecture {
        "x86_64" => machine == elf::EM_X86_64,
        "aarch64" => machine == elf::EM_AARCH64,
        other => {
            return Err(format!("the launcher is built for {other}, and workers exist for x86_64 and aarch64 only"));
        }
    };
    if !same_machine {
        return Err(format!("it is for another processor than {architecture} (ELF machine {})", machine.0));
    }

    let note = build_note(file, header)?;
    let expected = [
        ("program", "spacelift-worker"),
        ("version", &launcher.version),
        ("commit", &launcher.commit),
        ("target", &launcher.target),
    ];
    if note["format"] != 1 {
        return Err(format!("its build note has format {}, and this launcher knows format 1", note["format"]));
    }
    for (field, expected) in expected {
        if note[field] != expected {
            return Err(format!("its build note says {field} {}, and the launcher needs \"{expected}\"", note[field]));
        }
    }
    Ok(())
}

fn build_note(file: &[u8], header: &FileHeader64<LittleEndian>) -> Result<serde_json::Value, String> {
    let damaged = |error: object::Error| format!("its section table cannot be read: {error}");
    let sections = header.sections(LittleEndian, file).map_err(damaged)?;
    let (_, section) = sections
        .section_by_name(LittleEndian, b".spacelift.build")
        .ok_or("it has no build note (ELF section .spacelift.build), so it is not a worker of this project")?;
    let note = section.data(LittleEndian, file).map_err(damaged)?;
    serde_json::from_slice(note).map_err(|error| format!("its build note is not valid JSON: {error}"))
}
