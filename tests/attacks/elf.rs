//! Program files that are like those of a release as far as a verifier looks: headers, a build note, a worker.

use std::io::Write as _;

use bundle_core::digest::Digest;
use serde_json::{Value, json};

use super::release::{COMMIT, VERSION};

pub(crate) const X86_64: u16 = 62;
pub(crate) const AARCH64: u16 = 183;

pub(crate) const NOTE: &str = ".spacelift.build";
pub(crate) const WORKER: &str = ".spacelift.worker";

/// What goes into a program file. Change a field to get one that is wrong in this respect.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) machine: u16,
    /// Name and content of each section that holds data.
    pub(crate) sections: Vec<(&'static str, Vec<u8>)>,
    pub(crate) interpreter: bool,
    pub(crate) needs_library: bool,
}

pub(crate) fn target(machine: u16) -> &'static str {
    if machine == AARCH64 { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" }
}

impl Program {
    /// A program of the release that carries no worker.
    pub(crate) fn new(machine: u16, name: &str) -> Self {
        let note = json!({
            "format": 1, "program": name, "version": VERSION, "commit": COMMIT, "target": target(machine), "worker": null,
        });
        Self {
            machine,
            sections: vec![(NOTE, note.to_string().into_bytes())],
            interpreter: false,
            needs_library: false,
        }
    }

    /// The launcher of the release, with the worker of the release.
    pub(crate) fn launcher(machine: u16) -> Self {
        Self::launcher_with(machine, &Self::new(machine, "spacelift-worker").file())
    }

    /// A launcher that carries any worker, and says that it is the right one.
    pub(crate) fn launcher_with(machine: u16, worker: &[u8]) -> Self {
        let compressed = zlib(worker);
        let mut launcher = Self::new(machine, "spacelift-launcher").note(|note| {
            note["worker"] = json!({
                "version": VERSION, "commit": COMMIT, "target": target(machine),
                "sha256": Digest::of(worker), "size": worker.len(), "compressed_size": compressed.len(),
            });
        });
        launcher.sections.push((WORKER, compressed));
        launcher
    }

    /// Changes the build note.
    pub(crate) fn note(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut note = serde_json::from_slice(&self.sections[0].1).expect("a note is JSON");
        change(&mut note);
        self.sections[0].1 = note.to_string().into_bytes();
        self
    }

    /// The file: header, program headers, the data that is loaded, section names, section headers.
    pub(crate) fn file(&self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const SEGMENT: u64 = 56;
        const ADDRESS: u64 = 0x40_0000;
        let segment_count: u16 = 1 + u16::from(self.interpreter) + u16::from(self.needs_library);
        let start = HEADER + SEGMENT * u64::from(segment_count);

        let mut data = Vec::new();
        let mut names = vec![0];
        let mut headers = vec![0; 64];
        for (name, content) in &self.sections {
            let offset = start + data.len() as u64;
            headers.extend(section(names.len(), 1, 2, ADDRESS + offset, offset, content.len()));
            names.extend(name.as_bytes());
            names.push(0);
            data.extend(content);
        }
        let dynamic_at = start + data.len() as u64;
        if self.needs_library {
            // One entry, DT_NEEDED, and the end.
            data.extend([1_u64, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
        }
        let loaded_end = start + data.len() as u64;
        let name_at = names.len();
        names.extend(b".shstrtab\0");
        headers.extend(section(name_at, 3, 0, 0, loaded_end, names.len()));
        let section_count = u16::try_from(headers.len() / 64).expect("a few sections");

        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(2_u16.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend([ADDRESS, HEADER, loaded_end + names.len() as u64].iter().flat_map(|word| word.to_le_bytes()));
        file.extend(0_u32.to_le_bytes());
        let rest = [64, 56, segment_count, 64, section_count, section_count - 1];
        file.extend(rest.iter().flat_map(|half: &u16| half.to_le_bytes()));

        file.extend(segment(1, 0, ADDRESS, loaded_end));
        if self.interpreter {
            file.extend(segment(3, start, ADDRESS + start, 4));
        }
        if self.needs_library {
            file.extend(segment(2, dynamic_at, ADDRESS + dynamic_at, 32));
        }
        [file, data, names, headers].concat()
    }
}

pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn segment(kind: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let words = [offset, address, address, size, size, 1];
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    [kind, 4].iter().flat_map(|word| word.to_le_bytes()).chain(words).collect()
}

fn section(name: usize, kind: u32, flags: u64, address: u64, offset: u64, size: usize) -> Vec<u8> {
    let first = [u32::try_from(name).expect("a few names"), kind];
    let words = [flags, address, offset, size as u64, 0, 1, 0];
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    first.iter().flat_map(|word| word.to_le_bytes()).chain(words).collect()
}
