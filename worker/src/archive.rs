//! Workspaces and sources as archives: gzipped tar, unpacked so that nothing gets out of its directory.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use tar::{Archive, Builder, EntryType, Header};

use crate::shortage;
use crate::untrusted::{self, Links, shown};

/// What an archive may have, packed or unpacked. A workspace that could not be unpacked again is not packed either.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Real workspaces have some ten thousand, and inodes run out at a few millions.
    entries: usize,
    /// Bytes of its files, holes included, and of the headers before them. Providers have some 500 MB each.
    size: u64,
    /// Bytes from the end of an entry to the beginning of the next: long names and extended attributes, which are read into
    /// memory. People's have a few kilobytes.
    header: u64,
    /// Bytes of the headers of all directories: they get their permissions and times at the end, so they are remembered.
    directories: u64,
}

const LIMITS: Limits =
    Limits { entries: 1_000_000, size: 64 * GIBIBYTE, header: 1024 * 1024, directories: GIBIBYTE / 4 };
const GIBIBYTE: u64 = 1024 * 1024 * 1024;
/// Bytes of an archive that anybody keeps on a disk: what may be unpacked, where nothing of it can be compressed.
pub const MAXIMUM_PACKED: u64 = LIMITS.size + GIBIBYTE;
/// What is kept of a directory besides its extended headers.
const DIRECTORY: u64 = 1024;
/// More than the headers of a directory have besides its name, with what fills up the entry before.
const MOST_HEADERS: u64 = 4 * 512;
/// Only these bits of a mode are given to anything: what is executed as somebody else comes with an image, if at all.
const PERMISSIONS: u32 = 0o777;

/// Why an archive was not unpacked, or a directory not packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not stay in its directory.
    #[error(
        "its entry `{0}` is not inside the directory that it is unpacked to: an archive like this is made to do harm"
    )]
    Outside(String),
    /// It is something that an archive has no business to make.
    #[error("its entry `{path}` is a {kind}; only files, directories and links are unpacked")]
    Kind {
        /// Its name.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// There are too many.
    #[error("it has more than {0} entries, which is the limit; leave out what no stage needs")]
    TooMany(usize),
    /// It is too large.
    #[error("with `{path}` it has more than {limit} bytes, which is the limit; leave out what no stage needs")]
    TooLarge {
        /// With which entry it became so.
        path: String,
        /// Bytes.
        limit: u64,
    },
    /// The names of all directories are remembered until everything is unpacked.
    #[error("its directories take more than {0} bytes to describe, which is the limit; leave out what no stage needs")]
    Directories(u64),
    /// What says where data is in a file with holes is read into memory.
    #[error("`{path}` has more than {limit} holes, which is the limit; fill them in a hook: `cp --sparse=never`")]
    Holes {
        /// The file.
        path: String,
        /// How many.
        limit: u64,
    },
    /// Names and attributes that nobody gives to a file, or a second archive behind the first.
    #[error("{what} has more than {limit} bytes: an archive like this is made to do harm")]
    Excessive {
        /// Which part of the archive.
        what: &'static str,
        /// Bytes.
        limit: u64,
    },
    /// A file was written to while it was packed.
    #[error("`{0}` changed while it was packed; end what writes to it in a hook")]
    Changed(String),
    /// It is cut off, damaged, or the disk is full.
    #[error("{context}{source}{}", shortage::advice(source))]
    Io {
        /// Where, with what separates it from the reason.
        context: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// A reader of what somebody else made, which gives no more than it may at the moment.
struct Bounded<'a, R> {
    inner: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(into.len());
        if left == 0 && !into.is_empty() {
            return Err(io::Error::other("it is longer than it may be"));
        }
        let count = self.inner.read(&mut into[..left])?;
        self.left.set(self.left.get() - count as u64);
        Ok(count)
    }
}

/// Unpacks a gzipped tar archive into a directory.
///
/// # Errors
/// When the archive would do anything outside of the directory, is not complete, has more in it than people's archives have, or
/// cannot be written.
pub fn unpack(archive: impl Read, into: &Path) -> Result<(), Error> {
    unpack_within(archive, into, LIMITS)
}

fn unpack_within(archive: impl Read, into: &Path, limits: Limits) -> Result<(), Error> {
    let io = |source| Error::Io { context: String::new(), source };
    let left = Cell::new(limits.header);
    let excessive = |what, source| match left.get() {
        0 => Error::Excessive { what, limit: limits.header },
        _ => io(source),
    };
    let mut archive = Archive::new(Bounded { inner: MultiGzDecoder::new(archive), left: &left });
    archive.set_preserve_permissions(true);
    archive.set_mask(!PERMISSIONS);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(false);
    let mut directories = Vec::new();
    let (mut count, mut size, mut size_of_directories) = (0, 0_u64, 0);
    let mut entries = archive.entries().map_err(io)?;
    loop {
        // What the library reads into memory comes before an entry; what it copies to the disk has a size that is known.
        left.set(limits.header);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|source| excessive("what comes before one of its entries", source))?;
        let header = limits.header - left.replace(u64::MAX);
        count += 1;
        if count > limits.entries {
            return Err(Error::TooMany(limits.entries));
        }
        let name = entry.path_bytes().into_owned();
        let path = shown(OsStr::from_bytes(&name));
        size = size.saturating_add(header).saturating_add(entry.size());
        if size > limits.size {
            return Err(Error::TooLarge { path, limit: limits.size });
        }
        let stays = Path::new(OsStr::from_bytes(&name))
            .components()
            .all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
        if !stays {
            return Err(Error::Outside(path));
        }
        let failed = |source| Error::Io { context: format!("`{path}`: "), source };
        match entry.header().entry_type() {
            // Commit hashes, as source archives have them.
            EntryType::XGlobalHeader => {}
            // A read-only directory gets its permissions when everything is in it.
            EntryType::Directory => {
                size_of_directories += DIRECTORY + header;
                if size_of_directories > limits.directories {
                    let what = "what describes its directories";
                    return Err(Error::Excessive { what, limit: limits.directories });
                }
                directories.push(entry);
            }
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink
            | EntryType::Link => {
                if !entry.unpack_in(into).map_err(failed)? {
                    return Err(Error::Outside(path));
                }
            }
            EntryType::Char | EntryType::Block => return Err(Error::Kind { path, kind: "device" }),
            EntryType::Fifo => return Err(Error::Kind { path, kind: "named pipe" }),
            _ => return Err(Error::Kind { path, kind: "thing of an unknown kind" }),
        }
    }
    // The deepest first: permissions of an outer one may keep from the inner ones.
    directories.sort_by_cached_key(|directory| std::cmp::Reverse(directory.path_bytes().into_owned()));
    for mut directory in directories {
        let path = shown(OsStr::from_bytes(&directory.path_bytes()));
        directory.unpack_in(into).map_err(|source| Error::Io { context: format!("`{path}`: "), source })?;
    }
    // What comes after the archive's end mark is read too, so that a damaged checksum is found.
    left.set(limits.header);
    io::copy(&mut archive.into_inner(), &mut io::sink())
        .map_err(|source| excessive("what comes after its end", source))?;
    Ok(())
}

/// Packs a directory into a gzipped tar archive, except for entries of its top with these names. Gives the paths of what
/// cannot be in an archive: sockets, pipes and devices.
///
/// # Errors
/// When something cannot be read, with its path, or the archive cannot be written.
pub fn pack(directory: &Path, except: &[&OsStr], out: impl Write) -> Result<Vec<PathBuf>, Error> {
    pack_within(directory, except, out, LIMITS)
}

fn pack_within(directory: &Path, except: &[&OsStr], out: impl Write, limits: Limits) -> Result<Vec<PathBuf>, Error> {
    // A workspace is packed between a plan and somebody's decision: soon is better than small.
    let mut builder = Builder::new(GzEncoder::new(out, Compression::fast()));
    builder.follow_symlinks(false);
    let mut skipped = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    let (mut count, mut size, mut size_of_directories) = (0, 0_u64, 0);
    while let Some(inner) = waiting.pop() {
        let failed = |path: &Path| {
            let context = format!("`{}`: ", shown(path));
            move |source| Error::Io { context, source }
        };
        let outer = directory.join(&inner);
        let mut names = Vec::new();
        for entry in fs::read_dir(&outer).map_err(failed(&outer))? {
            let name = entry.map_err(failed(&outer))?.file_name();
            if inner.as_os_str().is_empty() && except.contains(&name.as_os_str()) {
                continue;
            }
            count += 1;
            if count > limits.entries {
                return Err(Error::TooMany(limits.entries));
            }
            names.push(name);
        }
        names.sort();
        for name in names {
            let (path, from) = (inner.join(&name), outer.join(&name));
            let found = fs::symlink_metadata(&from).map_err(failed(&from))?;
            let kind = found.file_type();
            if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
                skipped.push(path);
                continue;
            }
            if kind.is_file() {
                // Holes count: nobody can say what they take where they are unpacked.
                size = size.saturating_add(found.len());
                if size > limits.size {
                    return Err(Error::TooLarge { path: shown(path), limit: limits.size });
                }
                append_file(&mut builder, &from, &path, limits)?;
            } else {
                builder.append_path_with_name(&from, &path).map_err(failed(&from))?;
            }
            if kind.is_dir() {
                size_of_directories += DIRECTORY + MOST_HEADERS + 2 * path.as_os_str().len() as u64;
                if size_of_directories > limits.directories {
                    return Err(Error::Directories(limits.directories));
                }
                waiting.push(path);
            }
        }
    }
    let io = |source| Error::Io { context: String::new(), source };
    builder.into_inner().map_err(io)?.finish().map_err(io)?.flush().map_err(io)?;
    Ok(skipped)
}

/// Appends a file as long as its header says, also when somebody goes on writing to it.
fn append_file(builder: &mut Builder<impl Write>, from: &Path, path: &Path, limits: Limits) -> Result<(), Error> {
    /// What tells where data is comes in blocks, with so many pieces in each.
    const PIECES: u64 = 21;
    const BLOCK: u64 = 512;
    let context = format!("`{}`: ", shown(from));
    let failed = |source| Error::Io { context: context.clone(), source };
    let opened = untrusted::open(from, Links::Refused).map_err(|error| failed(io::Error::other(error)))?;
    let mut file = opened.ok_or_else(|| Error::Changed(shown(path)))?;
    let found = file.metadata().map_err(failed)?;
    let limit = (limits.header.saturating_sub(MOST_HEADERS) / BLOCK) * PIECES;
    if let Some(pieces) = pieces(&file, found.len(), limit).map_err(failed)? {
        if pieces > limit {
            return Err(Error::Holes { path: shown(path), limit });
        }
        // Only what is not a hole is read.
        builder.append_file(path, &mut file).map_err(failed)?;
        let is_same = file.metadata().map_err(failed)?.len() == found.len();
        return if is_same { Ok(()) } else { Err(Error::Changed(shown(path))) };
    }
    let mut header = Header::new_gnu();
    header.set_metadata(&found);
    let mut content = file.take(found.len());
    builder.append_data(&mut header, path, &mut content).map_err(failed)?;
    // A shorter one would be continued with the next entry's header.
    if content.limit() > 0 { Err(Error::Changed(shown(path))) } else { Ok(()) }
}

/// How many pieces of data there are between the holes of a file: nothing if it has no hole. Counts to little more than `most`.
fn pieces(file: &fs::File, length: u64, most: u64) -> io::Result<Option<u64>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;

    // A file system that knows nothing of holes has one at the end alone.
    let is_dense = match seek(file, SeekFrom::Hole(0)) {
        Ok(first) => first >= length,
        Err(Errno::NXIO | Errno::INVAL) => true,
        Err(error) => return Err(error.into()),
    };
    let (mut pieces, mut at) = (0, 0);
    while !is_dense && pieces <= most {
        match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < length => at = seek(file, SeekFrom::Hole(start))?,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        }
        pieces += 1;
    }
    seek(file, SeekFrom::Start(0))?;
    Ok((!is_dense).then_some(pieces))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const SMALL: Limits = Limits { entries: 10, size: 100_000, header: 16 * 1024, directories: 64 * 1024 };

    /// An archive of these entries. Names are written as they are, however bad.
    fn archive(entries: &[(EntryType, &str, &str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (kind, name, link, data) in entries {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o7755);
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn unpacked(archive: &[u8]) -> (tempfile::TempDir, Result<(), Error>) {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("into")).unwrap();
        fs::write(place.path().join("outside"), "old").unwrap();
        let result = unpack_within(archive, &place.path().join("into"), SMALL);
        assert_eq!(fs::read(place.path().join("outside")).unwrap(), b"old");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "something was made outside");
        (place, result)
    }

    #[test]
    fn nothing_of_an_archive_gets_out_of_its_directory() {
        use EntryType::{Link, Regular, Symlink};
        for (what, entries) in [
            ("an absolute name", &[(Regular, "/tmp/spacelift-outside", "", &b"new"[..])][..]),
            ("a name that goes up", &[(Regular, "a/../../outside", "", b"new")]),
            ("a link, and a name through it", &[(Symlink, "up", "..", b""), (Regular, "up/outside", "", b"new")]),
            ("a link, and a directory through it", &[(Symlink, "up", "..", b""), (Regular, "up/new/file", "", b"new")]),
            ("a hard link to what is above", &[(Link, "hard", "../outside", b"")]),
            ("a hard link to an absolute name", &[(Link, "hard", "/etc/passwd", b"")]),
            ("a hard link through a link", &[(Symlink, "up", "..", b""), (Link, "hard", "up/outside", b"")]),
            ("a hard link to a link", &[(Symlink, "up", "../outside", b""), (Link, "hard", "up", b"")]),
        ] {
            assert!(unpacked(&archive(entries)).1.is_err(), "{what}");
        }
        // In the place of the link, not where it leads.
        let over = [(Symlink, "x", "../outside", &b""[..]), (Regular, "x", "", b"new")];
        let (place, result) = unpacked(&archive(&over));
        result.unwrap();
        assert!(fs::symlink_metadata(place.path().join("into/x")).unwrap().is_file());
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
            assert!(matches!(unpacked(&archive(&[(kind, "x", "", b"")])).1, Err(Error::Kind { .. })), "{kind:?}");
        }
    }

    #[test]
    fn nothing_is_executed_as_somebody_else() {
        let entries = [(EntryType::Regular, "file", "", &b"x"[..]), (EntryType::Directory, "directory", "", b"")];
        let (place, result) = unpacked(&archive(&entries));
        result.unwrap();
        for name in ["file", "directory"] {
            let mode = fs::metadata(place.path().join("into").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o755, "{name}");
        }
    }

    #[test]
    fn names_and_attributes_without_end_are_not_read_into_memory() {
        let long = vec![b'x'; 4 * SMALL.header as usize];
        let pax = [b"70000 comment=".as_slice(), &long].concat();
        for (kind, data) in [
            (EntryType::GNULongName, &long),
            (EntryType::GNULongLink, &long),
            (EntryType::XHeader, &pax),
            (EntryType::XGlobalHeader, &pax),
            // What has no content of its own.
            (EntryType::Directory, &long),
        ] {
            let entries = [(kind, "x", "", data.as_slice()), (EntryType::Regular, "file", "", b"x")];
            let error = unpacked(&archive(&entries)).1.unwrap_err();
            assert!(matches!(error, Error::Excessive { .. }), "{kind:?}: {error}");
        }
        // Each within the limit, and all of them kept.
        let (name, entry) = (vec![b'd'; 3000], (EntryType::Directory, "x", "", &b""[..]));
        let entries: Vec<_> = (0..30).flat_map(|_| [(EntryType::GNULongName, "x", "", &name[..]), entry]).collect();
        let limits = Limits { entries: 100, size: u64::MAX, ..SMALL };
        let place = tempfile::tempdir().unwrap();
        let error = unpack_within(&archive(&entries)[..], place.path(), limits).unwrap_err();
        assert!(matches!(error, Error::Excessive { .. }), "{error}");
        // The end of the log, and of an outcome, is for people.
        let entries = [(EntryType::GNULongName, "x", "", &b"../".repeat(4000)[..]), (EntryType::Regular, "x", "", b"")];
        let error = unpacked(&archive(&entries)).1.unwrap_err().to_string();
        assert!(error.contains("not inside") && error.len() < 1000, "{} bytes", error.len());
    }

    #[test]
    fn an_archive_does_not_fill_the_disk() {
        let half = vec![0; SMALL.size as usize / 2];
        let file = |name| (EntryType::Regular, name, "", half.as_slice());
        assert!(unpacked(&archive(&[file("one")])).1.is_ok());
        let error = unpacked(&archive(&[file("one"), file("two")])).1.unwrap_err();
        assert!(matches!(&error, Error::TooLarge { path, .. } if path == "two"), "{error}");
        let many: Vec<_> = (0..=SMALL.entries).map(|_| (EntryType::Symlink, "x", "y", &b""[..])).collect();
        assert!(matches!(unpacked(&archive(&many)).1, Err(Error::TooMany(_))));
        // A second archive behind the first is not unpacked, and not read to its end either.
        let mut behind = archive(&[file("one")]);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&vec![0; 2 * SMALL.header as usize]).unwrap();
        behind.extend(gzip.finish().unwrap());
        assert!(matches!(unpacked(&behind).1, Err(Error::Excessive { .. })));
    }

    #[test]
    fn a_workspace_is_packed_as_far_as_it_can_be_unpacked() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let packed = || {
            let mut bytes = Vec::new();
            pack_within(place.path(), &[OsStr::new("own")], &mut bytes, SMALL).map(|skipped| (bytes, skipped))
        };
        fs::write(at("file"), vec![b'x'; 1000]).unwrap();
        File::create(at("hole")).unwrap().set_len(50_000).unwrap();
        symlink("/dev/zero", at("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
        File::create(at("own")).unwrap().set_len(1 << 42).unwrap();
        let (bytes, skipped) = packed().unwrap();
        assert_eq!(skipped, [Path::new("pipe")]);
        let (there, result) = unpacked(&bytes);
        result.unwrap();
        let into = there.path().join("into");
        assert_eq!(fs::read(into.join("file")).unwrap(), fs::read(at("file")).unwrap());
        assert_eq!(fs::metadata(into.join("hole")).unwrap().len(), 50_000);
        assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("/dev/zero"));
        File::create(at("terabytes")).unwrap().set_len(1 << 42).unwrap();
        let error = packed().unwrap_err();
        assert!(matches!(&error, Error::TooLarge { path, .. } if path == "terabytes"), "{error}");
        fs::remove_file(at("terabytes")).unwrap();
        for number in 0..=SMALL.entries {
            fs::write(at(&format!("x{number}")), "").unwrap();
        }
        assert!(matches!(packed(), Err(Error::TooMany(_))));
    }

    #[test]
    fn directories_and_holes_are_packed_as_far_as_they_can_be_unpacked() {
        let limits = Limits { entries: 1000, size: GIBIBYTE, header: 16 * 512, directories: 64 * 1024 };
        let try_both = |place: &Path| {
            let mut bytes = Vec::new();
            pack_within(place, &[], &mut bytes, limits)?;
            let into = tempfile::tempdir().unwrap();
            unpack_within(bytes.as_slice(), into.path(), limits)
        };
        let place = tempfile::tempdir().unwrap();
        let mut made = 0;
        let error = loop {
            // Names that are too long for an ordinary header take the most.
            fs::create_dir(place.path().join(format!("{made:0200}"))).unwrap();
            made += 1;
            match try_both(place.path()) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Directories(_)) && made > 10, "{error} with {made}");

        let place = tempfile::tempdir().unwrap();
        let file = File::create(place.path().join("holes")).unwrap();
        let most = (limits.header - MOST_HEADERS) / 512 * 21;
        for number in 0..most {
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", number * 8192).unwrap();
        }
        file.set_len(most * 8192 + 4096).unwrap();
        assert_eq!(pieces(&file, most * 8192 + 4096, most).unwrap(), Some(most), "this file system keeps holes");
        try_both(place.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", (most + 1) * 8192).unwrap();
        let error = try_both(place.path()).unwrap_err();
        assert!(matches!(&error, Error::Holes { path, .. } if path == "holes"), "{error}");
    }

    #[test]
    fn a_file_that_grows_is_as_long_as_its_header_says() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, "first").unwrap();
        // It grows when the packer has begun to write, which is before it reads what is in it.
        struct Growing(PathBuf, Vec<u8>);
        impl Write for Growing {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                fs::OpenOptions::new().append(true).open(&self.0)?.write_all(&[b'y'; 512])?;
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut builder = Builder::new(Growing(path.clone(), Vec::new()));
        append_file(&mut builder, &path, Path::new("file"), SMALL).unwrap();
        let bytes = builder.into_inner().unwrap().1;
        let mut archive = Archive::new(&bytes[..]);
        let sizes: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().size()).collect();
        assert_eq!(sizes, [5]);
    }
}
