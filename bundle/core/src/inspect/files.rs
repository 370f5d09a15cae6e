//! Reading all files of a release for a look at them, whatever state it is in.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;

use crate::archive::FormError;
use crate::contents::Contents;
use crate::digest::HashingReader;
use crate::manifest::{self, MANIFEST, MAX_FILE, MAX_FILES};
use crate::{interrupt, release};

/// Entries of a directory tree that are looked at: some more than the largest release has.
const MAX_ENTRIES: usize = 4 * MAX_FILES;

/// Something about a file that is not as it should be, and that does not keep us from looking at the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, as a path in the release or beside it.
    pub path: String,
    /// What is wrong with it. May hold text from the release: escape it before printing.
    pub problem: String,
}

impl Problem {
    pub(crate) fn new(path: impl ToString, problem: impl ToString) -> Self {
        Self { path: path.to_string(), problem: problem.to_string() }
    }
}

/// Calls `look` with every file that is `wanted`, in the manifest's order, and a reader of its contents, and compares what
/// it holds with the manifest.
///
/// An archive has one form and is damaged if it has another: that is an error. A directory is something that people
/// change: what differs from the manifest there is a problem among others, and `look` may see contents that the
/// manifest does not know.
///
/// # Errors
/// The release cannot be read, or `look` failed, or an archive is damaged.
pub(crate) fn visit(
    contents: &Contents,
    wanted: impl Fn(&manifest::File) -> bool,
    problems: &mut Vec<Problem>,
    mut look: impl FnMut(&manifest::File, &mut dyn Read) -> io::Result<()>,
) -> Result<(), release::Error> {
    let path = contents.path();
    if contents.head().is_some() {
        return contents.for_each(|file, reader| {
            if !wanted(file) {
                return Ok(());
            }
            look(file, reader)?;
            drain(reader)
        });
    }
    for file in contents.manifest().files.iter().filter(|file| wanted(file)) {
        let full = path.join(file.path.as_str());
        match open(&full) {
            Ok(opened) => {
                let difference = look_at(file, &opened, &mut look).map_err(|source| release::Error::Io {
                    doing: "read",
                    path: full,
                    source,
                })?;
                problems.extend(difference.map(|difference| difference.problem(file)));
            }
            Err(error) => problems.push(Problem::new(&file.path, format!("it cannot be read: {error}"))),
        }
    }
    Ok(())
}

/// Opens a regular file and nothing else: a link could lead anywhere, and opening a named pipe could take forever.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// How a file differs from the manifest.
pub(super) struct Difference {
    field: &'static str,
    found: String,
    expected: String,
}

impl Difference {
    fn problem(self, file: &manifest::File) -> Problem {
        let Self { field, found, expected } = self;
        Problem::new(
            &file.path,
            format!("it differs from the manifest in its {field}: found {found}, expected {expected}"),
        )
    }

    pub(super) fn error(self, release: &Path, file: &manifest::File) -> release::Error {
        let Self { field, found, expected } = self;
        let source = FormError::Differs { path: file.path.to_string(), field, found, expected };
        release::Error::NotARelease { path: release.to_owned(), source }
    }
}

/// Looks at a file of a directory and says how it differs from what is listed.
pub(super) fn look_at(
    listed: &manifest::File,
    file: &File,
    look: &mut impl FnMut(&manifest::File, &mut dyn Read) -> io::Result<()>,
) -> io::Result<Option<Difference>> {
    let differs = |field, found: String, expected: String| Some(Difference { field, found, expected });
    let metadata = file.metadata()?;
    if metadata.len() != listed.size {
        // What is there is still worth a look.
        look(listed, &mut file.take(metadata.len().min(MAX_FILE)))?;
        return Ok(differs("size", metadata.len().to_string(), listed.size.to_string()));
    }
    let mut reader = HashingReader::new(file.take(listed.size));
    look(listed, &mut reader)?;
    drain(&mut reader)?;
    let (_, digest, size) = reader.finish();
    let (mode, expected_mode) = (metadata.permissions().mode() & 0o7777, listed.mode.bits());
    Ok(if size != listed.size {
        differs("size", size.to_string(), listed.size.to_string())
    } else if digest != listed.sha256 {
        differs("contents", digest.to_string(), listed.sha256.to_string())
    } else if mode & 0o111 != expected_mode & 0o111 {
        differs("mode", format!("{mode:04o}"), format!("{expected_mode:04o}"))
    } else {
        None
    })
}

fn drain(reader: &mut dyn Read) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while reader.read(&mut buffer)? > 0 {
        interrupt::check()?;
    }
    Ok(())
}

/// The whole of `reader`, or `None` if it has more than `limit` bytes.
pub(crate) fn read_whole(reader: &mut dyn Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// What is in a release directory and not in its manifest. Goes down only where the manifest does.
pub(crate) fn unlisted(contents: &Contents) -> Result<Vec<Problem>, release::Error> {
    let root = contents.path();
    let mut known = BTreeSet::from([MANIFEST]);
    let signatures = release::signature_names(contents.manifest());
    known.extend(signatures.iter().map(String::as_str));
    for file in &contents.manifest().files {
        known.insert(file.path.as_str());
        known.extend(file.path.parents());
    }
    let list = || {
        let mut found = BTreeSet::new();
        let mut seen = 0;
        let mut waiting = vec![String::new()];
        while let Some(below) = waiting.pop() {
            for entry in fs::read_dir(root.join(&below))? {
                interrupt::check()?;
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let inside = if below.is_empty() { name } else { format!("{below}/{name}") };
                seen += 1;
                if seen > MAX_ENTRIES {
                    let limit = format!("the directory holds more than {MAX_ENTRIES} entries");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, limit));
                }
                if !known.contains(inside.as_str()) {
                    found.insert(inside);
                } else if entry.file_type()?.is_dir() {
                    waiting.push(inside);
                }
            }
        }
        Ok(found)
    };
    let found = list().map_err(|source| release::Error::Io { doing: "read", path: root.to_owned(), source })?;
    Ok(found.into_iter().map(|path| Problem::new(path, "it is in the directory but not in the manifest")).collect())
}
