//! Whether two builds of a release are the same but for their signatures.

use std::cmp::Ordering;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use serde::Serialize;

use super::{Changes, Field, Problems, Side, fields, images};
use crate::contents::Contents;
use crate::digest::Digest;
use crate::gzip::read_fully;
use crate::inspect::{Problem, unlisted, visit};
use crate::manifest::{Image, MANIFEST, ReleasePath};
use crate::{interrupt, release};

/// What is handed from a reader to the comparison at once.
const CHUNK: usize = 256 * 1024;
/// Chunks that wait between a reader and the comparison.
const WAITING: usize = 4;
/// Bytes that are compared at once.
const BLOCK: usize = 64 * 1024;
/// Equal bytes that are shown before the first difference.
const BEFORE: usize = 8;
/// Bytes that are shown from the first difference on.
const AFTER: usize = 16;

/// How two builds differ.
#[derive(Debug, Serialize)]
pub struct Reproduction {
    /// Whether they do not differ.
    pub identical: bool,
    /// The one that was there first.
    pub old: Side,
    /// The rebuilt one.
    pub new: Side,
    /// Files that were compared.
    pub compared: usize,
    /// The payload digest of each that is an archive.
    pub payload: Payload,
    /// Fields of the manifests that differ.
    pub fields: Vec<Field>,
    /// Images that differ by what the manifests say.
    pub images: Changes<Image>,
    /// Files whose bytes differ, `manifest.json` included.
    pub files: Vec<FileDifference>,
    /// Files that only the old one has.
    pub only_in_old: Vec<OneSided>,
    /// Files that only the new one has.
    pub only_in_new: Vec<OneSided>,
    /// Files of a directory that are missing, or not as its manifest has them.
    pub problems: Problems,
}

/// SHA-256 of each archive without its manifest's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Of the old one.
    pub old: Option<Digest>,
    /// Of the new one.
    pub new: Option<Digest>,
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileDifference {
    /// Its path in the release.
    pub path: String,
    /// Its length in the old one.
    pub old_size: u64,
    /// Its length in the new one.
    pub new_size: u64,
    /// Where they part.
    #[serde(flatten)]
    pub first: FirstDifference,
}

/// Where two files begin to differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirstDifference {
    /// Offset of the first byte that differs, or that only one of them has.
    pub offset: u64,
    /// Offset of the first byte that is shown.
    pub context_offset: u64,
    /// Bytes of the old one, in hexadecimal.
    pub old: String,
    /// Bytes of the new one, in hexadecimal.
    pub new: String,
}

/// A file that only one of them has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OneSided {
    /// Its path in the release.
    pub path: String,
    /// Its length.
    pub size: u64,
}

/// Compares everything but the signatures. Both releases are read at the same time, a few blocks of each in memory.
///
/// # Errors
/// One of them cannot be read, or is an archive that differs from its own manifest.
pub fn reproduce(old: &Contents, new: &Contents) -> Result<Reproduction, release::Error> {
    let payload_of =
        |contents: &Contents| contents.head().map(|head| release::payload(contents.path(), head)).transpose();
    let payload = Payload { old: payload_of(old)?, new: payload_of(new)? };
    let mut result = Reproduction {
        identical: false,
        old: Side::of(old),
        new: Side::of(new),
        compared: new.manifest().files.len(),
        payload,
        fields: fields(old.manifest(), new.manifest()),
        images: images(old.manifest(), new.manifest()),
        files: Vec::new(),
        only_in_old: Vec::new(),
        only_in_new: Vec::new(),
        problems: Problems::default(),
    };
    if payload.old.is_some() && payload.old == payload.new {
        // The same bytes. There is nothing to be found in them.
        result.identical = true;
        return Ok(result);
    }
    let mut manifests = (old.manifest_bytes(), new.manifest_bytes());
    let (old_size, new_size) = (manifests.0.len() as u64, manifests.1.len() as u64);
    let first = first_difference(&mut manifests.0, &mut manifests.1).map_err(reading(old))?;
    result.files.extend(first.map(|first| FileDifference { path: MANIFEST.into(), old_size, new_size, first }));
    compare_files(old, new, &mut result)?;
    for (contents, problems) in [(old, &mut result.problems.old), (new, &mut result.problems.new)] {
        if contents.head().is_none() {
            problems.extend(unlisted(contents)?);
        }
    }
    let same_files = result.files.is_empty() && result.only_in_old.is_empty() && result.only_in_new.is_empty();
    // Two archives of the same files that are not the same bytes are two releases to everyone who checks a digest.
    let same_bytes = payload.old.is_none() || payload.new.is_none();
    result.identical = same_files && same_bytes && result.problems.is_empty();
    Ok(result)
}

fn reading(contents: &Contents) -> impl FnOnce(io::Error) -> release::Error {
    let path = contents.path().to_owned();
    move |source| release::Error::Io { doing: "read", path, source }
}

/// What a reader reports.
enum Event {
    Begin(ReleasePath, u64),
    Data(Vec<u8>),
    End,
}

/// The files of one release, as they come in.
struct Incoming {
    events: Receiver<Event>,
    data: Vec<u8>,
    position: usize,
    ended: bool,
}

impl Incoming {
    /// The next file; `None` after the last, and when the reader failed.
    fn next_file(&mut self) -> Option<(ReleasePath, u64)> {
        loop {
            match self.events.recv().ok()? {
                Event::Begin(path, size) => {
                    self.data.clear();
                    self.position = 0;
                    self.ended = false;
                    return Some((path, size));
                }
                // What was left of the file before.
                Event::Data(_) | Event::End => {}
            }
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.data.len() && !self.ended {
            match self.events.recv() {
                Ok(Event::Data(data)) => {
                    self.data = data;
                    self.position = 0;
                }
                Ok(Event::End) => self.ended = true,
                Ok(Event::Begin(..)) | Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let read = (&self.data[self.position..]).read(buffer)?;
        self.position += read;
        Ok(read)
    }
}

/// Why a reader stops that nobody listens to any more.
#[derive(Debug, thiserror::Error)]
#[error("the comparison was given up")]
struct GivenUp;

fn is_given_up(error: &release::Error) -> bool {
    matches!(error, release::Error::Io { source, .. } if source.get_ref().is_some_and(|inner| inner.is::<GivenUp>()))
}

/// Reports every file of a release, until it ends or nobody listens any more.
fn report(contents: &Contents, events: &SyncSender<Event>) -> Result<Vec<Problem>, release::Error> {
    let mut problems = Vec::new();
    let send = |event| events.send(event).map_err(|_| io::Error::other(GivenUp));
    visit(
        contents,
        |_| true,
        &mut problems,
        |file, reader| {
            send(Event::Begin(file.path.clone(), file.size))?;
            loop {
                interrupt::check()?;
                let mut data = vec![0; CHUNK];
                let read = read_fully(&mut &mut *reader, &mut data)?;
                data.truncate(read);
                if read == 0 {
                    return send(Event::End);
                }
                send(Event::Data(data))?;
            }
        },
    )?;
    Ok(problems)
}

fn compare_files(old: &Contents, new: &Contents, result: &mut Reproduction) -> Result<(), release::Error> {
    thread::scope(|scope| {
        let start = |contents| {
            let (sender, events) = sync_channel(WAITING);
            let reader = scope.spawn(move || report(contents, &sender));
            (Incoming { events, data: Vec::new(), position: 0, ended: true }, reader)
        };
        let (old_files, old_reader) = start(old);
        let (new_files, new_reader) = start(new);
        // This ends for every reader that fails, and the other reader ends when this does.
        let merged = merge(old_files, new_files, result);
        let failed = |contents| reading(contents)(io::Error::other("its reader failed"));
        let old_problems = old_reader.join().unwrap_or_else(|_| Err(failed(old)));
        let new_problems = new_reader.join().unwrap_or_else(|_| Err(failed(new)));
        match (old_problems, new_problems) {
            (Ok(old_problems), Ok(new_problems)) => {
                result.problems.old.extend(old_problems);
                result.problems.new.extend(new_problems);
                merged.map_err(reading(old))
            }
            (Err(error), other) | (other, Err(error)) => {
                // Giving up is only ever the consequence of something else.
                let errors = [Some(error), other.err()];
                let cause = errors.into_iter().flatten().find(|error| !is_given_up(error));
                Err(cause.unwrap_or_else(|| merged.map_or_else(reading(old), |()| failed(old))))
            }
        }
    })
}

/// Walks through both lists of files, which are sorted.
fn merge(mut old: Incoming, mut new: Incoming, result: &mut Reproduction) -> io::Result<()> {
    let (mut next_old, mut next_new) = (old.next_file(), new.next_file());
    loop {
        let order = match (&next_old, &next_new) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let in_old = next_old.take_if(|_| order.is_le());
        let in_new = next_new.take_if(|_| order.is_ge());
        match (in_old, in_new) {
            (Some((path, old_size)), Some((_, new_size))) => {
                let first = first_difference(&mut old, &mut new)?;
                let path = path.to_string();
                result.files.extend(first.map(|first| FileDifference { path, old_size, new_size, first }));
                (next_old, next_new) = (old.next_file(), new.next_file());
            }
            (Some((path, size)), None) => {
                result.only_in_old.push(OneSided { path: path.to_string(), size });
                next_old = old.next_file();
            }
            (None, Some((path, size))) => {
                result.only_in_new.push(OneSided { path: path.to_string(), size });
                next_new = new.next_file();
            }
            (None, None) => return Ok(()),
        }
    }
}

/// Reads both until they differ or end.
fn first_difference(old: &mut impl Read, new: &mut impl Read) -> io::Result<Option<FirstDifference>> {
    let (mut old_block, mut new_block) = (vec![0; BLOCK + AFTER], vec![0; BLOCK + AFTER]);
    let mut before: Vec<u8> = Vec::with_capacity(BEFORE);
    let mut offset = 0_u64;
    loop {
        interrupt::check()?;
        let old_read = read_fully(old, &mut old_block[..BLOCK])?;
        let new_read = read_fully(new, &mut new_block[..BLOCK])?;
        let common = old_read.min(new_read);
        let parted = old_block[..common].iter().zip(&new_block[..common]).position(|(old, new)| old != new);
        let Some(at) = parted.or((old_read != new_read).then_some(common)) else {
            if old_read < BLOCK {
                return Ok(None);
            }
            offset += BLOCK as u64;
            before.clear();
            before.extend(&old_block[BLOCK - BEFORE..BLOCK]);
            continue;
        };
        let old_read = old_read + read_fully(old, &mut old_block[old_read..(at + AFTER).max(old_read)])?;
        let new_read = new_read + read_fully(new, &mut new_block[new_read..(at + AFTER).max(new_read)])?;
        // Equal bytes come from this block, and from the one before where this one has too few.
        let here = at.min(BEFORE);
        let carried = &before[before.len().saturating_sub(BEFORE - here)..];
        let show =
            |block: &[u8], read: usize| hexadecimal(carried) + &hexadecimal(&block[at - here..read.min(at + AFTER)]);
        return Ok(Some(FirstDifference {
            offset: offset + at as u64,
            context_offset: offset + (at - here) as u64 - carried.len() as u64,
            old: show(&old_block, old_read),
            new: show(&new_block, new_read),
        }));
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;

    use super::*;
    use crate::gzip;
    use crate::inspect::fixture::{Example, key};

    fn reproduced(old: &Path, new: &Path) -> Result<Reproduction, release::Error> {
        reproduce(&Contents::open(old).unwrap(), &Contents::open(new).unwrap())
    }

    fn first(old: &[u8], new: &[u8]) -> Option<FirstDifference> {
        let found = first_difference(&mut &*old, &mut &*new).unwrap();
        // The other way round it is the same with the sides exchanged.
        let turned = first_difference(&mut &*new, &mut &*old).unwrap().map(|first| FirstDifference {
            old: first.new.clone(),
            new: first.old.clone(),
            ..first
        });
        assert_eq!(found, turned);
        found
    }

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        assert_eq!(first(b"", b""), None);
        let sample: Vec<u8> = (0..3 * BLOCK).map(|index| (index % 251) as u8).collect();
        assert_eq!(first(&sample, &sample), None);
        for at in [0, 1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 8, 2 * BLOCK - 3, 3 * BLOCK - 1] {
            let mut changed = sample.clone();
            changed[at] ^= 0xff;
            let (start, end) = (at.saturating_sub(BEFORE), (at + AFTER).min(sample.len()));
            let expected = FirstDifference {
                offset: at as u64,
                context_offset: start as u64,
                old: hexadecimal(&sample[start..end]),
                new: hexadecimal(&changed[start..end]),
            };
            assert_eq!(first(&sample, &changed), Some(expected), "{at}");
            // One file is the beginning of the other.
            let expected = FirstDifference {
                offset: at as u64,
                context_offset: start as u64,
                old: hexadecimal(&sample[start..end]),
                new: hexadecimal(&sample[start..at]),
            };
            assert_eq!(first(&sample, &sample[..at]), Some(expected), "{at}");
        }
    }

    #[test]
    fn only_signatures_may_differ() {
        let example = Example::new("v1.2.3", &[("config.json", b"{}"), ("bin/x", b"x")]);
        let unsigned = example.pack();
        let one = example.directory.path().join("one");
        fs::rename(example.sign(&[&key("One")]), &one).unwrap();
        let other = example.sign(&[&key("Other"), &key("Another")]);
        let root = example.unpack(&other);
        let whole = reproduced(&one, &other).unwrap();
        assert!(whole.identical);
        assert!(whole.payload.old.is_some() && whole.payload.old == whole.payload.new);
        assert!(reproduced(&unsigned, &one).unwrap().identical);
        for archive in [&unsigned, &one, &other] {
            let result = reproduced(archive, &root).unwrap();
            assert!(result.identical, "{result:?}");
            assert_eq!((result.compared, result.payload.new), (3, None));
            assert!(reproduced(&root, archive).unwrap().identical);
        }
        assert!(reproduced(&root, &root).unwrap().identical);
    }

    #[test]
    fn every_difference_is_named() {
        let large = |last: u8| [vec![7; 3_000_000], vec![last]].concat();
        let old =
            Example::new("v1.2.3", &[("a", b"same"), ("b", b"12345"), ("c", &large(1)), ("d", b"only"), ("z", b"")]);
        let mut new =
            Example::new("v1.2.3", &[("0", b"only"), ("a", b"same"), ("b", b"12x45"), ("c", &large(2)), ("zz", b"x")]);
        new.release.source_date += 1;
        let (old, new) = (old.pack(), new.pack());
        let result = reproduced(&old, &new).unwrap();
        assert!(!result.identical);
        assert_ne!(result.payload.old, result.payload.new);
        let differ: Vec<_> =
            result.files.iter().map(|it| (it.path.as_str(), it.old_size, it.new_size, it.first.offset)).collect();
        assert_eq!(differ[1..], [("b", 5, 5, 2), ("c", 3_000_001, 3_000_001, 3_000_000)]);
        assert_eq!(differ[0].0, MANIFEST);
        assert_eq!(
            (result.files[1].first.old.as_str(), result.files[1].first.new.as_str()),
            ("3132333435", "3132783435")
        );
        let one_sided = |files: &[OneSided]| -> Vec<(String, u64)> {
            files.iter().map(|file| (file.path.clone(), file.size)).collect()
        };
        assert_eq!(one_sided(&result.only_in_old), [("d".to_owned(), 4), ("z".to_owned(), 0)]);
        assert_eq!(one_sided(&result.only_in_new), [("0".to_owned(), 4), ("zz".to_owned(), 1)]);
        assert_eq!(result.fields.len(), 1);
        assert_eq!(result.fields[0].field, "source_date");
        assert!(result.problems.is_empty());
        let document = serde_json::to_value(&result).unwrap();
        assert_eq!(document["identical"], false);
        assert_eq!(document["files"][1]["offset"], 2);
        assert_eq!(document["files"][1]["path"], "b");
    }

    #[test]
    fn a_directory_that_was_changed_is_not_identical() {
        let example = Example::new("v1.2.3", &[("config.json", b"{}"), ("bin/x", b"x")]);
        let archive = example.pack();
        let root = example.unpack(&archive);
        fs::write(root.join("extra"), "").unwrap();
        let result = reproduced(&archive, &root).unwrap();
        assert!(!result.identical);
        assert_eq!(result.problems.new.len(), 1);
        fs::remove_file(root.join("extra")).unwrap();
        fs::write(root.join("config.json"), "[]").unwrap();
        let result = reproduced(&root, &archive).unwrap();
        assert!(!result.identical);
        assert_eq!((result.files[0].path.as_str(), result.files[0].first.offset), ("config.json", 0));
        assert_eq!(result.problems.old.len(), 1);
        fs::remove_file(root.join("config.json")).unwrap();
        let result = reproduced(&root, &archive).unwrap();
        assert!(!result.identical && result.problems.old[0].problem.contains("cannot be read"));
        fs::write(root.join("config.json"), "{}").unwrap();
        assert!(reproduced(&root, &archive).unwrap().identical);
        fs::set_permissions(root.join("bin/x"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(!reproduced(&root, &archive).unwrap().identical, "it cannot be run any more");
    }

    #[test]
    fn another_compression_of_the_same_files_is_a_difference() {
        let example = Example::new("v1.2.3", &[("a", &[b'a'; 100_000])]);
        let archive = example.pack();
        let mut tar = Vec::new();
        gzip::Reader::new(fs::File::open(&archive).unwrap(), 1).read_to_end(&mut tar).unwrap();
        let manifest = Contents::open(&archive).unwrap().manifest_bytes().len();
        let head = 2 * 512 + manifest.next_multiple_of(512);
        let mut other = gzip::Writer::new(Vec::new(), 1);
        for part in [&tar[..head], &tar[head..head + 50_000], &tar[head + 50_000..]] {
            other.write_all(part).unwrap();
            other.end_member().unwrap();
        }
        let path = example.directory.path().join("other.tar.gz");
        fs::write(&path, other.finish().unwrap()).unwrap();
        let result = reproduced(&archive, &path).unwrap();
        assert!(!result.identical);
        assert!(result.files.is_empty() && result.only_in_old.is_empty() && result.problems.is_empty());
        assert_ne!(result.payload.old, result.payload.new);
    }

    #[test]
    fn the_archive_that_is_damaged_is_the_one_that_is_named() {
        let noise: Vec<u8> =
            (0..4_000_000_u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
        let whole = Example::new("v1.2.3", &[("a", b"1"), ("b", &noise), ("c", &noise)]);
        let archive = whole.pack();
        let bytes = fs::read(&archive).unwrap();
        let cut = whole.directory.path().join("cut.tar.gz");
        for length in [bytes.len() / 4, bytes.len() - 1] {
            fs::write(&cut, &bytes[..length]).unwrap();
            for (old, new) in [(&archive, &cut), (&cut, &archive), (&cut, &cut)] {
                // Two that are cut at the same byte are the same.
                if old == new {
                    assert!(reproduced(old, new).unwrap().identical);
                    continue;
                }
                let error = reproduced(old, new).unwrap_err().to_string();
                assert!(error.contains("cut.tar.gz") && error.contains("truncated"), "{error}");
            }
        }
    }
}
