//! Workspaces and sources as archives: gzipped tar, unpacked so that nothing gets out of its directory.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use tar::{Archive, Builder, EntryType};

/// Entries of an archive. Real workspaces have some ten thousand, and inodes run out at a few millions.
pub const MAXIMUM_ENTRIES: usize = 1_000_000;
/// Directories get their permissions and times at the end, so they are remembered.
const MAXIMUM_DIRECTORIES: usize = 100_000;

/// Why an archive was not unpacked.
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
    #[error("it has more than {0} entries")]
    TooMany(usize),
    /// It is cut off, damaged, or the disk is full.
    #[error("{context}{source}")]
    Io {
        /// Where, with what separates it from the reason.
        context: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Unpacks a gzipped tar archive into a directory.
///
/// # Errors
/// When the archive would do anything outside of the directory, is not complete, or cannot be written.
pub fn unpack(archive: impl Read, into: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { context: String::new(), source };
    let mut archive = Archive::new(MultiGzDecoder::new(archive));
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(false);
    let mut directories = Vec::new();
    for (count, entry) in archive.entries().map_err(io)?.enumerate() {
        let mut entry = entry.map_err(io)?;
        if count >= MAXIMUM_ENTRIES {
            return Err(Error::TooMany(MAXIMUM_ENTRIES));
        }
        let name = entry.path_bytes().into_owned();
        let path = String::from_utf8_lossy(&name).into_owned();
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
                if directories.len() >= MAXIMUM_DIRECTORIES {
                    return Err(Error::TooMany(MAXIMUM_DIRECTORIES));
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
        let path = String::from_utf8_lossy(&directory.path_bytes()).into_owned();
        directory.unpack_in(into).map_err(|source| Error::Io { context: format!("`{path}`: "), source })?;
    }
    // What comes after the archive's end mark is read too, so that a damaged checksum is found.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(io)?;
    Ok(())
}

/// Packs a directory into a gzipped tar archive, except for entries of its top with these names. Gives the paths of what
/// cannot be in an archive: sockets, pipes and devices.
///
/// # Errors
/// When something cannot be read, with its path, or the archive cannot be written.
pub fn pack(directory: &Path, except: &[&OsStr], out: impl Write) -> Result<Vec<PathBuf>, Error> {
    // A workspace is packed between a plan and somebody's decision: soon is better than small.
    let mut builder = Builder::new(GzEncoder::new(out, Compression::fast()));
    builder.follow_symlinks(false);
    let mut skipped = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(inner) = waiting.pop() {
        let failed = |path: &Path| {
            let context = format!("`{}`: ", path.display());
            move |source| Error::Io { context, source }
        };
        let outer = directory.join(&inner);
        let mut names: Vec<_> = fs::read_dir(&outer)
            .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect())
            .map_err(failed(&outer))?;
        names.sort();
        for name in names {
            if inner.as_os_str().is_empty() && except.contains(&name.as_os_str()) {
                continue;
            }
            let (path, from) = (inner.join(&name), outer.join(&name));
            let kind = fs::symlink_metadata(&from).map_err(failed(&from))?.file_type();
            if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
                skipped.push(path);
                continue;
            }
            builder.append_path_with_name(&from, &path).map_err(failed(&from))?;
            if kind.is_dir() {
                waiting.push(path);
            }
        }
    }
    let io = |source| Error::Io { context: String::new(), source };
    builder.into_inner().map_err(io)?.finish().map_err(io)?.flush().map_err(io)?;
    Ok(skipped)
}
