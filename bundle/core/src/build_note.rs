//! Which build a program is, read from its file without running it.
//!
//! Every program of a release has a *build note*: one line of JSON in the ELF section `.spacelift.build`, the same line
//! that the program prints for `--version --json`. A launcher has the worker that it carries in the section
//! `.spacelift.worker`, as one zlib stream.
//!
//! ```json
//! {"format":1,"program":"spacelift-launcher","version":"v1.2.3","commit":"<40 hexadecimal digits, or unknown>",
//!  "target":"x86_64-unknown-linux-musl",
//!  "worker":{"version":"v1.2.3","commit":"…","target":"…","sha256":"…","size":300000,"compressed_size":145000}}
//! ```
//!
//! What is read here has been signed at best and is hostile at worst, and it is never executed. Offsets are checked by
//! the `object` crate, counts and sizes here.

use std::fmt;
use std::io::Read as _;

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _};
use serde::Deserialize;

use crate::digest::Digest;
use crate::version::ReleaseVersion;

/// The launcher and the worker together have 8 MB. Keeps a compressed bomb from filling the memory.
const MAX_WORKER_SIZE: u64 = 16 << 20;

/// A note has some 500 bytes.
const MAX_NOTE_SIZE: usize = 4096;

/// Linkers make about a dozen segments and a few dozen sections.
const MAX_SEGMENTS: usize = 128;
const MAX_SECTIONS: usize = 1024;

const NOTE_SECTION: &str = ".spacelift.build";
const WORKER_SECTION: &str = ".spacelift.worker";
const WORKER_PROGRAM: &str = "spacelift-worker";

const LE: LittleEndian = LittleEndian;

/// Which build a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildNote {
    /// The program's file name, `spacelift-launcher` for example.
    pub program: String,
    /// The release that it belongs to.
    pub version: ReleaseVersion,
    /// The commit that was built, as 40 lower-case hexadecimal digits, or `unknown`.
    pub commit: String,
    /// The target triple, for the processor that the file is for.
    pub target: String,
    /// The worker that it carries.
    pub worker: Option<WorkerNote>,
}

/// What a launcher says about the worker that it carries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WorkerNote {
    /// The release that it belongs to.
    pub version: ReleaseVersion,
    /// The commit that was built, or `unknown`.
    pub commit: String,
    /// The target triple.
    pub target: String,
    /// The digest of the worker's file.
    pub sha256: Digest,
    /// The size of the worker's file in bytes.
    pub size: u64,
    /// The size in bytes of what is in the launcher.
    pub compressed_size: u64,
}

/// The processors that releases are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// Intel and AMD, 64 bits.
    X86_64,
    /// ARM, 64 bits, little endian.
    Aarch64,
}

/// As in a target triple and on command lines.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// Why a file is not accepted as a program of a release. To be read after the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not what a linker for Linux on a 64-bit little-endian processor writes.
    #[error("not a well-formed 64-bit Linux program (ELF): {0}")]
    Malformed(&'static str),
    /// Made for another processor.
    #[error("made for a processor that there are no releases for (ELF machine {0}): expected x86_64 or aarch64")]
    Machine(u16),
    /// A section is missing, ambiguous or not part of what is loaded.
    #[error("its ELF section {name} {problem}")]
    Section {
        /// The section's name.
        name: &'static str,
        /// What is wrong with it, as the rest of a sentence.
        problem: &'static str,
    },
    /// The build note does not follow its format.
    #[error("its build note is not valid: {0}")]
    Note(String),
    /// The build note is of a later format.
    #[error("its build note has format {0}, and this program knows format 1: use the spacelift-bundle of that release")]
    NoteFormat(u64),
    /// No worker inside.
    #[error("it carries no worker")]
    NoWorker,
    /// The worker inside does not inflate to what the note says.
    #[error("the worker in it {0}")]
    WorkerContent(String),
    /// The worker inside is not one for this launcher.
    #[error("the worker in it has {field} `{found}`, expected `{expected}`")]
    WorkerMismatch {
        /// The name of the field in the build note.
        field: &'static str,
        /// What the worker says.
        found: String,
        /// What the launcher says.
        expected: String,
    },
    /// The worker inside is no program of a release itself.
    #[error("the worker in it is not acceptable: {0}")]
    Worker(#[source] Box<Error>),
}

/// A program file, read as far as is needed to judge it.
#[derive(Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    machine: Machine,
    is_static: bool,
    segments: &'a [ProgramHeader64<LittleEndian>],
    sections: &'a [SectionHeader64<LittleEndian>],
    section_names: &'a [u8],
}

impl<'a> Elf<'a> {
    /// Reads the headers of a program.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Machine`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let malformed = |problem| move |_| Error::Malformed(problem);
        let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(malformed("its header is not one"))?;
        if !header.is_little_endian() {
            return Err(Error::Malformed("it is big-endian"));
        }
        if !matches!(header.e_type(LE), elf::ET_EXEC | elf::ET_DYN) {
            return Err(Error::Malformed("it is not executable"));
        }
        let machine = match header.e_machine(LE) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            other => return Err(Error::Machine(other.0)),
        };

        let segments = header.program_headers(LE, bytes).map_err(malformed("its program headers are cut off"))?;
        if segments.len() > MAX_SEGMENTS {
            return Err(Error::Malformed("it has too many program headers"));
        }
        let sections = header.section_headers(LE, bytes).map_err(malformed("its section headers are cut off"))?;
        if sections.len() > MAX_SECTIONS {
            return Err(Error::Malformed("it has too many sections"));
        }
        let section_names = match header.shstrndx(LE, bytes) {
            // Files without sections are well-formed; they only lack what is asked for later.
            Err(_) if sections.is_empty() => &[][..],
            index => index
                .ok()
                .and_then(|index| sections.get(usize::try_from(index).ok()?))
                .and_then(|section| section.data(LE, bytes).ok())
                .ok_or(Error::Malformed("the names of its sections are cut off"))?,
        };

        let mut is_static = true;
        for segment in segments {
            let dynamic = segment.dynamic(LE, bytes).map_err(malformed("its dynamic segment is cut off"))?;
            let needs_library = dynamic.unwrap_or_default().iter().any(|entry| entry.tag(LE) == elf::DT_NEEDED);
            if needs_library || segment.p_type(LE) == elf::PT_INTERP {
                is_static = false;
            }
        }
        Ok(Self { bytes, machine, is_static, segments, sections, section_names })
    }

    /// The processor that it is for.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Whether it starts without a dynamic loader and without libraries, in any container image and on any host.
    pub fn is_static(&self) -> bool {
        self.is_static
    }

    /// The build note.
    ///
    /// # Errors
    /// [`Error::Section`] for a program that has none, and the errors of a note that is not valid or names a target of
    /// another processor than the program's.
    pub fn build_note(&self) -> Result<BuildNote, Error> {
        let text = self.section(NOTE_SECTION)?;
        if text.len() > MAX_NOTE_SIZE {
            return Err(Error::Section { name: NOTE_SECTION, problem: "is too large" });
        }
        let note = parse_note(text)?;
        let processor = note.target.split('-').next().unwrap_or_default();
        if processor != self.machine.to_string() {
            return Err(Error::Note(format!(
                "it names the target `{}` in a program for {}",
                note.target, self.machine
            )));
        }
        Ok(note)
    }

    /// The file of the worker inside a launcher: of the size and digest that the launcher's build note names, and itself
    /// a worker of the same version, commit, target and linkage as the launcher.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NoWorker`] for a program that carries none.
    pub fn embedded_worker(&self) -> Result<Vec<u8>, Error> {
        let launcher = self.build_note()?;
        let worker = launcher.worker.ok_or(Error::NoWorker)?;
        let fields = [
            ("version", worker.version.to_string(), launcher.version.to_string()),
            ("commit", worker.commit.clone(), launcher.commit),
            ("target", worker.target.clone(), launcher.target),
        ];
        expect_equal(fields)?;

        let compressed = self.section(WORKER_SECTION)?;
        if compressed.len() as u64 != worker.compressed_size {
            let (found, expected) = (compressed.len(), worker.compressed_size);
            return Err(Error::WorkerContent(format!("takes {found} bytes, the build note says {expected}")));
        }
        let file = inflate(compressed, worker.size)?;
        let digest = Digest::of(&file);
        if digest != worker.sha256 {
            return Err(Error::WorkerContent(format!(
                "has the SHA-256 {digest}, the build note says {}",
                worker.sha256
            )));
        }

        let inner = |error| Error::Worker(Box::new(error));
        let elf = Elf::parse(&file).map_err(inner)?;
        let own = elf.build_note().map_err(inner)?;
        expect_equal([
            ("program", own.program, WORKER_PROGRAM.into()),
            ("version", own.version.to_string(), worker.version.to_string()),
            ("commit", own.commit, worker.commit),
            ("target", own.target, worker.target),
        ])?;
        if self.is_static && !elf.is_static {
            return Err(Error::WorkerContent("is not statically linked, though the launcher is".into()));
        }
        Ok(file)
    }

    /// The content of the one section of this name. It has to be part of what is loaded when the program runs: that
    /// makes it what the program itself sees, and what `strip` leaves alone.
    fn section(&self, name: &'static str) -> Result<&'a [u8], Error> {
        let wrong = |problem| Error::Section { name, problem };
        let mut found = self.sections.iter().filter(|section| self.is_called(section, name));
        let section = found.next().ok_or(wrong("is missing, so it is not a program of a release"))?;
        if found.next().is_some() {
            return Err(wrong("is there twice"));
        }
        if section.sh_type(LE) != elf::SHT_PROGBITS || section.sh_flags(LE).contains(elf::SHF_COMPRESSED) {
            return Err(wrong("is not plain data"));
        }
        let content = section.data(LE, self.bytes).map_err(|_| wrong("is cut off"))?;
        let (start, length, address) = (section.sh_offset(LE), section.sh_size(LE), section.sh_addr(LE));
        let is_loaded = self.segments.iter().any(|segment| {
            let (file_start, file_length) = segment.file_range(LE);
            segment.p_type(LE) == elf::PT_LOAD
                && start >= file_start
                && start.checked_add(length).is_some_and(|end| {
                    file_start.checked_add(file_length).is_some_and(|segment_end| end <= segment_end)
                })
                && address.checked_sub(segment.p_vaddr(LE)) == Some(start - file_start)
        });
        if is_loaded { Ok(content) } else { Err(wrong("is not loaded with the program")) }
    }

    /// Compares no more than the name, however long the table of names goes on without an end.
    fn is_called(&self, section: &SectionHeader64<LittleEndian>, name: &str) -> bool {
        usize::try_from(section.sh_name(LE))
            .ok()
            .and_then(|start| self.section_names.get(start..)?.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn expect_equal(fields: impl IntoIterator<Item = (&'static str, String, String)>) -> Result<(), Error> {
    match fields.into_iter().find(|(_, found, expected)| found != expected) {
        Some((field, found, expected)) => Err(Error::WorkerMismatch { field, found, expected }),
        None => Ok(()),
    }
}

fn inflate(compressed: &[u8], size: u64) -> Result<Vec<u8>, Error> {
    let wrong = |problem: String| Error::WorkerContent(problem);
    if size > MAX_WORKER_SIZE {
        return Err(wrong(format!("is said to have {size} bytes, and {MAX_WORKER_SIZE} is the limit")));
    }
    let mut decoder = flate2::bufread::ZlibDecoder::new(compressed);
    let mut file = Vec::new();
    // One byte more, to notice that there is more.
    let inflated = decoder.by_ref().take(size + 1).read_to_end(&mut file);
    inflated.map_err(|error| wrong(format!("cannot be inflated: {error}")))?;
    if file.len() as u64 != size {
        return Err(wrong(format!("inflates to another size than the build note says, {size} bytes")));
    }
    if decoder.total_in() != compressed.len() as u64 {
        return Err(wrong("is followed by something else".into()));
    }
    Ok(file)
}

/// Fields may be added without another format, so unknown ones are ignored; everything else is taken literally.
fn parse_note(text: &[u8]) -> Result<BuildNote, Error> {
    #[derive(Deserialize)]
    struct Format {
        format: u64,
    }
    #[derive(Deserialize)]
    struct Fields {
        program: String,
        version: ReleaseVersion,
        commit: String,
        target: String,
        // An `Option` may be left out unless it is asked for by name.
        #[serde(deserialize_with = "Option::deserialize")]
        worker: Option<WorkerNote>,
    }
    let invalid = |error: serde_json::Error| Error::Note(error.to_string());
    let Format { format } = serde_json::from_slice(text).map_err(invalid)?;
    if format != 1 {
        return Err(Error::NoteFormat(format));
    }
    let Fields { program, version, commit, target, worker } = serde_json::from_slice(text).map_err(invalid)?;

    // These go into messages, so they must not carry anything that a terminal obeys.
    let commits = [Some(&commit), worker.as_ref().map(|worker| &worker.commit)];
    if let Some(commit) = commits.into_iter().flatten().find(|commit| !is_commit(commit)) {
        return Err(Error::Note(format!("{commit:?} is not a commit: expected 40 hexadecimal digits or `unknown`")));
    }
    let names = [Some(&program), Some(&target), worker.as_ref().map(|worker| &worker.target)];
    if let Some(name) = names.into_iter().flatten().find(|name| !is_name(name)) {
        return Err(Error::Note(format!("{name:?} is not the name of a program or target")));
    }
    Ok(BuildNote { program, version, commit, target, worker })
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.'))
}

/// Whether `text` names a commit: 40 lower-case hexadecimal digits, or `unknown`.
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

/// Small programs that are like those of a release as far as this module looks.
#[cfg(test)]
pub(crate) mod fixture {
    use std::io::Write as _;

    use crate::digest::Digest;

    pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    pub(crate) const X86_64: u16 = 62;
    pub(crate) const AARCH64: u16 = 183;

    /// What goes into a program file. Change a field to get one that is wrong in this respect.
    #[derive(Clone)]
    pub(crate) struct Program {
        pub(crate) machine: u16,
        /// Name, content and number of each section that holds data.
        pub(crate) sections: Vec<(&'static str, Vec<u8>)>,
        pub(crate) interpreter: bool,
        pub(crate) needed_library: bool,
    }

    fn target(machine: u16) -> &'static str {
        if machine == AARCH64 { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" }
    }

    pub(crate) fn note(machine: u16, program: &str, version: &str, commit: &str, worker: &str) -> Vec<u8> {
        let target = target(machine);
        format!(
            r#"{{"format":1,"program":"{program}","version":"{version}","commit":"{commit}","target":"{target}","worker":{worker}}}"#
        )
        .into_bytes()
    }

    pub(crate) fn compress(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A program of this name that carries no worker.
    pub(crate) fn program(machine: u16, name: &str, version: &str, commit: &str) -> Program {
        let note = note(machine, name, version, commit, "null");
        Program { machine, sections: vec![(".spacelift.build", note)], interpreter: false, needed_library: false }
    }

    /// A launcher that carries `worker`.
    pub(crate) fn launcher(machine: u16, version: &str, commit: &str, worker: &[u8]) -> Program {
        let compressed = compress(worker);
        let worker_note = format!(
            r#"{{"version":"{version}","commit":"{commit}","target":"{}","sha256":"{}","size":{},"compressed_size":{}}}"#,
            target(machine),
            Digest::of(worker),
            worker.len(),
            compressed.len()
        );
        let mut launcher = program(machine, "spacelift-launcher", version, commit);
        launcher.sections = vec![
            (".spacelift.build", note(machine, "spacelift-launcher", version, commit, &worker_note)),
            (".spacelift.worker", compressed),
        ];
        launcher
    }

    impl Program {
        /// The file: header, program headers, the data that is loaded, section names, section headers.
        pub(crate) fn file(&self) -> Vec<u8> {
            const HEADER: u64 = 64;
            const SEGMENT: u64 = 56;
            const ADDRESS: u64 = 0x40_0000;
            let segment_count: u16 = 1 + u16::from(self.interpreter) + u16::from(self.needed_library);
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
            if self.needed_library {
                data.extend([1_u64, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
            }
            let loaded_end = start + data.len() as u64;
            let name_at = names.len();
            names.extend(b".shstrtab\0");
            headers.extend(section(name_at, 3, 0, 0, loaded_end, names.len()));
            let section_count = u16::try_from(headers.len() / 64).unwrap();

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
            if self.needed_library {
                file.extend(segment(2, dynamic_at, ADDRESS + dynamic_at, 32));
            }
            [file, data, names, headers].concat()
        }
    }

    fn segment(kind: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
        let words = [offset, address, address, size, size, 1];
        [kind, 4]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(words.iter().flat_map(|word| word.to_le_bytes()))
            .collect()
    }

    fn section(name: usize, kind: u32, flags: u64, address: u64, offset: u64, size: usize) -> Vec<u8> {
        let first = [u32::try_from(name).unwrap(), kind];
        let words = [flags, address, offset, size as u64, 0, 1, 0];
        first
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(words.iter().flat_map(|word| word.to_le_bytes()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{AARCH64, COMMIT, Program, X86_64, compress, launcher, note, program};
    use super::*;

    const VERSION: &str = "v1.2.3";

    fn worker() -> Vec<u8> {
        program(X86_64, "spacelift-worker", VERSION, COMMIT).file()
    }

    fn good() -> Program {
        launcher(X86_64, VERSION, COMMIT, &worker())
    }

    fn build_note(program: &Program) -> Result<BuildNote, Error> {
        Elf::parse(&program.file())?.build_note()
    }

    fn embedded_worker(program: &Program) -> Result<Vec<u8>, Error> {
        Elf::parse(&program.file())?.embedded_worker()
    }

    /// A good launcher but for its note, in which `from` is exchanged.
    fn with_note(from: &str, to: &str) -> Program {
        let mut program = good();
        let text = String::from_utf8(program.sections[0].1.clone()).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        program.sections[0].1 = text.replacen(from, to, 1).into_bytes();
        program
    }

    #[test]
    fn note_and_worker_of_a_good_launcher_are_read() {
        for (machine, name) in [(X86_64, "x86_64"), (AARCH64, "aarch64")] {
            let worker = program(machine, "spacelift-worker", VERSION, COMMIT).file();
            let file = launcher(machine, VERSION, COMMIT, &worker).file();
            let elf = Elf::parse(&file).unwrap();
            assert_eq!((elf.machine().to_string().as_str(), elf.is_static()), (name, true));
            let note = elf.build_note().unwrap();
            assert_eq!((note.program.as_str(), note.version.to_string().as_str()), ("spacelift-launcher", VERSION));
            assert_eq!((note.commit.as_str(), note.target), (COMMIT, format!("{name}-unknown-linux-musl")));
            let inside = note.worker.unwrap();
            assert_eq!((inside.sha256, inside.size), (Digest::of(&worker), worker.len() as u64));
            assert!(elf.embedded_worker().unwrap() == worker);
        }
    }

    #[test]
    fn a_program_that_needs_a_loader_or_a_library_is_not_static() {
        let is_static = |program: &Program| Elf::parse(&program.file()).unwrap().is_static();
        assert!(is_static(&good()));
        assert!(!is_static(&Program { interpreter: true, ..good() }));
        assert!(!is_static(&Program { needed_library: true, ..good() }));
    }

    #[test]
    fn truncated_anywhere_it_is_an_error() {
        let file = good().file();
        for length in 0..file.len() {
            assert!(Elf::parse(&file[..length]).and_then(|elf| elf.embedded_worker()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn whatever_byte_is_changed_no_other_worker_comes_out() {
        let (good, worker) = (good().file(), worker());
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at] ^ 0x80] {
                let mut file = good.clone();
                file[at] = value;
                if let Ok(found) = Elf::parse(&file).and_then(|elf| elf.embedded_worker()) {
                    assert!(found == worker, "byte {at} as {value}");
                }
            }
        }
    }

    #[test]
    fn hostile_offsets_and_sizes_are_errors_and_not_panics() {
        let good = good().file();
        let headers = usize::try_from(u64::from_le_bytes(good[40..48].try_into().unwrap())).unwrap();
        let tables = (0..64 + 56).chain(headers..good.len() - 7);
        let length = good.len() as u64;
        for at in tables {
            for value in [u64::MAX, i64::MAX as u64, 1 << 63, 1 << 32, length, length - 1, length + 1, 0] {
                let mut file = good.clone();
                file[at..at + 8].copy_from_slice(&value.to_le_bytes());
                if let Ok(elf) = Elf::parse(&file) {
                    let _ = elf.embedded_worker();
                }
            }
        }
    }

    #[test]
    fn only_programs_for_our_processors_are_read() {
        for file in [&b""[..], b"#!/bin/sh\n", &[0x7f; 4096]] {
            assert!(matches!(Elf::parse(file), Err(Error::Malformed(_))));
        }
        let parse = |at: usize, value: u8| {
            let mut file = good().file();
            file[at] = value;
            Elf::parse(&file).map(|_| ())
        };
        assert!(matches!(parse(4, 1), Err(Error::Malformed(_))), "32 bits");
        assert!(matches!(parse(5, 2), Err(Error::Malformed(_))), "big-endian");
        assert_eq!(parse(16, 1), Err(Error::Malformed("it is not executable")));
        assert_eq!(parse(18, 3), Err(Error::Machine(3)));
    }

    #[test]
    fn there_are_limits_on_what_is_looked_at() {
        let mut many = good();
        many.sections.extend((0..MAX_SECTIONS).map(|_| (".data", Vec::new())));
        assert_eq!(build_note(&many), Err(Error::Malformed("it has too many sections")));

        let segments = u16::try_from(MAX_SEGMENTS + 1).unwrap();
        let mut file = [good().file(), vec![0; 56 * usize::from(segments)]].concat();
        file[56..58].copy_from_slice(&segments.to_le_bytes());
        assert_eq!(Elf::parse(&file).map(|_| ()), Err(Error::Malformed("it has too many program headers")));

        let padding = format!("{:MAX_NOTE_SIZE$}}}", "");
        let problem = Error::Section { name: NOTE_SECTION, problem: "is too large" };
        assert_eq!(build_note(&with_note("}}", &format!("}}{padding}"))), Err(problem));
    }

    #[test]
    fn a_section_has_to_be_there_once_and_loaded() {
        let problem = |program: &Program| match embedded_worker(program) {
            Err(Error::Section { name, problem }) => (name, problem),
            other => panic!("{other:?}"),
        };
        let mut program = good();
        program.sections.remove(0);
        assert_eq!(problem(&program), (NOTE_SECTION, "is missing, so it is not a program of a release"));
        let mut program = good();
        program.sections.remove(1);
        assert_eq!(problem(&program).0, WORKER_SECTION);
        let mut program = good();
        program.sections.push(program.sections[0].clone());
        assert_eq!(problem(&program), (NOTE_SECTION, "is there twice"));
        // A name that only begins like it is another name.
        let mut program = good();
        program.sections[0].0 = ".spacelift.build2";
        assert_eq!(problem(&program).0, NOTE_SECTION);

        // The first section header describes the note: its address, what it is, and its flags.
        let file = good().file();
        let headers = usize::try_from(u64::from_le_bytes(file[40..48].try_into().unwrap())).unwrap();
        for (at, value, expected) in [
            (headers + 64 + 16, 0x41, "is not loaded with the program"),
            (headers + 64 + 4, 8, "is not plain data"),
            (headers + 64 + 9, 8, "is not plain data"),
        ] {
            let mut file = file.clone();
            file[at] ^= value;
            let problem = Elf::parse(&file).unwrap().build_note().unwrap_err();
            assert_eq!(problem, Error::Section { name: NOTE_SECTION, problem: expected });
        }
        // A program that is told to load less than the section.
        let mut file = good().file();
        file[64 + 32..64 + 40].copy_from_slice(&200_u64.to_le_bytes());
        let problem = Elf::parse(&file).unwrap().build_note().unwrap_err();
        assert_eq!(problem, Error::Section { name: NOTE_SECTION, problem: "is not loaded with the program" });
    }

    #[test]
    fn a_note_is_taken_literally() {
        assert_eq!(build_note(&with_note(r#""format":1"#, r#""format":2"#)), Err(Error::NoteFormat(2)));
        assert_eq!(build_note(&with_note(r#""format":1"#, r#""format":1,"later":{}"#)), build_note(&good()));
        for (from, to) in [
            (r#""format":1,"#, ""),
            (r#""format":1"#, r#""format":"1""#),
            (r#""commit""#, r#""comit""#),
            (r#""worker""#, r#""walker""#),
            (r#""v1.2.3""#, r#""1.2.3""#),
            (r#""program":"#, r#""program":"x","program":"#),
            ("spacelift-launcher", r"\u001b[31m"),
            ("spacelift-launcher", ""),
            ("x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"),
            ("x86_64-unknown-linux-musl", "x86_64 unknown"),
            (COMMIT, "main"),
            (COMMIT, &COMMIT.to_uppercase()),
            (r#""size":"#, r#""size":-"#),
            ("}}", "}} "),
            ("}}", "}}{}"),
            ("}}", "}}\0"),
            ("}}", "}"),
        ] {
            let result = build_note(&with_note(from, to));
            match to {
                // JSON allows blanks.
                "}} " => assert!(result.is_ok()),
                _ => assert!(matches!(result, Err(Error::Note(_))), "{from} → {to}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_worker_that_is_not_what_the_note_says_is_refused() {
        let content = |program: &Program| match embedded_worker(program) {
            Err(Error::WorkerContent(problem)) => problem,
            other => panic!("{other:?}"),
        };
        let size = format!(r#""size":{},"#, worker().len());
        let compressed_size = format!(r#""compressed_size":{}"#, good().sections[1].1.len());
        let digest = Digest::of(&worker()).to_string();
        assert!(content(&with_note(&size, r#""size":1,"#)).contains("another size"));
        assert!(content(&with_note(&size, r#""size":1000,"#)).contains("another size"));
        assert!(content(&with_note(&size, r#""size":17000000,"#)).contains("is the limit"));
        assert!(content(&with_note(&compressed_size, r#""compressed_size":7"#)).contains("bytes"));
        assert!(content(&with_note(&digest, &Digest::of(b"").to_string())).contains("SHA-256"));

        let mut followed = good();
        followed.sections[1].1.extend(b"more");
        let length = followed.sections[1].1.len();
        followed.sections[0].1 =
            with_note(&compressed_size, &format!(r#""compressed_size":{length}"#)).sections[0].1.clone();
        assert!(content(&followed).contains("followed by something else"));

        let mut damaged = good();
        damaged.sections[1].1.fill(0xff);
        assert!(content(&damaged).contains("cannot be inflated"));
    }

    #[test]
    fn a_bomb_stops_at_the_size_in_the_note() {
        let mut bomb = good();
        bomb.sections[1].1 = compress(&vec![0; 64 << 20]);
        // Its end is missing: whoever goes on past the size in the note finds that out, and says something else.
        bomb.sections[1].1.truncate(1000);
        let worker = format!(
            r#"{{"version":"{VERSION}","commit":"{COMMIT}","target":"x86_64-unknown-linux-musl","sha256":"{}","size":1000,"compressed_size":{}}}"#,
            Digest::of(b""),
            bomb.sections[1].1.len()
        );
        bomb.sections[0].1 = note(X86_64, "spacelift-launcher", VERSION, COMMIT, &worker);
        assert!(
            matches!(embedded_worker(&bomb), Err(Error::WorkerContent(problem)) if problem.contains("another size"))
        );
    }

    #[test]
    fn a_worker_of_another_build_is_refused() {
        let field = |program: &Program| match embedded_worker(program) {
            Err(Error::WorkerMismatch { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let other_commit = &COMMIT.replace('0', "1");
        let carrying = |worker: Program| launcher(X86_64, VERSION, COMMIT, &worker.file());
        // The worker's own note against the launcher's note about it.
        assert_eq!(field(&carrying(program(X86_64, "spacelift-walker", VERSION, COMMIT))), "program");
        assert_eq!(field(&carrying(program(X86_64, "spacelift-worker", "v1.2.2", COMMIT))), "version");
        assert_eq!(field(&carrying(program(X86_64, "spacelift-worker", VERSION, other_commit))), "commit");
        assert_eq!(field(&carrying(program(AARCH64, "spacelift-worker", VERSION, COMMIT))), "target");
        // The launcher's note about it against the launcher's own build. The first of each is the launcher's.
        assert_eq!(field(&with_note(r#""version":"v1.2.3""#, r#""version":"v1.2.4""#)), "version");
        assert_eq!(field(&with_note(COMMIT, other_commit)), "commit");
        assert_eq!(field(&with_note("x86_64-unknown-linux-musl", "x86_64-unknown-linux-gnu")), "target");

        let dynamic = Program { interpreter: true, ..program(X86_64, "spacelift-worker", VERSION, COMMIT) };
        assert!(
            matches!(embedded_worker(&carrying(dynamic)), Err(Error::WorkerContent(problem)) if problem.contains("static"))
        );
        assert!(matches!(embedded_worker(&launcher(X86_64, VERSION, COMMIT, b"#!/bin/sh")), Err(Error::Worker(_))));
        assert_eq!(embedded_worker(&program(X86_64, "spacelift-bundle", VERSION, COMMIT)), Err(Error::NoWorker));
    }
}
