//! Files in places where a job can put what it likes.
//!
//! Whatever is there, the worker does not wait for it, does not leave the place that it was told, and keeps no more of it in
//! memory than a named limit: a job may leave a named pipe, a link to a device, or a file of terabytes without a byte in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Which symbolic links are followed.
#[derive(Debug, Clone, Copy)]
pub enum Links<'a> {
    /// None in the place of the file. Its directory is the worker's own.
    Refused,
    /// Those that lead to something in this directory: sources share files that way.
    Within(&'a Path),
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("`{path}` is a {kind}, and only a regular file is read there; put a file in its place, or remove it")]
    Kind {
        /// Where.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// It is a link to somewhere else.
    #[error("`{path}` is a symbolic link that leads out of `{within}`; put the file itself in its place, or remove it")]
    Outside {
        /// Where.
        path: String,
        /// What it should not lead out of.
        within: String,
    },
    /// There is more of it than the limit.
    #[error("`{path}` has more than {limit} bytes, which is the limit for it; make it smaller, or remove it")]
    TooLarge {
        /// Where.
        path: String,
        /// Bytes.
        limit: u64,
    },
    /// The operating system refused.
    #[error("`{path}` cannot be read: {source}")]
    Io {
        /// Where.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Reads a file of at most `limit` bytes. None: there is nothing.
///
/// # Errors
/// It is no regular file, leads elsewhere, has more bytes, or cannot be read. Nothing of it is given then.
pub fn read(path: &Path, links: Links<'_>, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let Some(file) = open(path, links)? else { return Ok(None) };
    content(&file, path, limit).map(Some)
}

/// Reads what is left of an open file, if that are at most `limit` bytes. The path is for the error alone.
///
/// # Errors
/// It has more bytes, or cannot be read.
pub fn content(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let too_large = || Error::TooLarge { path: shown(path), limit };
    let io = |source| Error::Io { path: shown(path), source };
    // What is long already is not read to find out.
    if file.metadata().map_err(io)?.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// Opens a regular file for reading, and never waits for that. None: there is nothing.
///
/// # Errors
/// It is no regular file, leads elsewhere, or cannot be opened.
pub fn open(path: &Path, links: Links<'_>) -> Result<Option<File>, Error> {
    let io = |source| Error::Io { path: shown(path), source };
    let real = match links {
        Links::Refused => Ok(path.to_owned()),
        Links::Within(_) => path.canonicalize(),
    };
    let Some(real) = if_there(real).map_err(io)? else { return Ok(None) };
    if let Links::Within(directory) = links
        && !real.starts_with(directory.canonicalize().map_err(io)?)
    {
        return Err(Error::Outside { path: shown(path), within: shown(directory) });
    }
    // A look first: opening a device can do something to it, and a socket cannot be opened.
    let Some(found) = if_there(fs::symlink_metadata(&real)).map_err(io)? else { return Ok(None) };
    check(found.file_type(), path)?;
    let mut options = OpenOptions::new();
    // What is there may be exchanged meanwhile: a link is not followed, and nobody is waited for at the other end of a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = options.read(true).custom_flags(flags.bits().cast_signed()).open(&real);
    let Some(file) = if_there(opened).map_err(io)? else { return Ok(None) };
    check(file.metadata().map_err(io)?.file_type(), path)?;
    Ok(Some(file))
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn check(found: fs::FileType, path: &Path) -> Result<(), Error> {
    let kind = match found {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "directory",
        kind if kind.is_symlink() => "symbolic link",
        kind if kind.is_fifo() => "named pipe",
        kind if kind.is_socket() => "socket",
        _ => "device",
    };
    Err(Error::Kind { path: shown(path), kind })
}

/// Characters of a name that are shown. Archives can have names of any length, and whoever reads the log has seen enough.
const MAXIMUM_SHOWN: usize = 300;

/// A path for people, cut where it is longer than anybody reads.
#[must_use]
pub fn shown(path: impl Into<PathBuf>) -> String {
    let path: PathBuf = path.into();
    clipped(&path.to_string_lossy(), MAXIMUM_SHOWN)
}

/// A text of at most so many characters, with a sign where it was cut.
#[must_use]
pub fn clipped(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    const LIMIT: u64 = 1000;

    /// What comes of everything that is not a file, in one directory.
    fn refused(links: for<'a> fn(&'a Path) -> Links<'a>) -> Vec<(&'static str, String)> {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        symlink("/proc/self/environ", at("secret")).unwrap();
        symlink("pipe", at("link")).unwrap();
        File::create(at("sparse")).unwrap().set_len(1 << 42).unwrap();
        fs::write(at("long"), [b'x'; LIMIT as usize + 1]).unwrap();
        ["pipe", "socket", "directory", "device", "secret", "link", "sparse", "long"]
            .map(|name| {
                let error = read(&at(name), links(place.path()), LIMIT).unwrap_err().to_string();
                assert!(error.contains(&at(name).display().to_string()) && error.contains("remove it"), "{error}");
                (name, error)
            })
            .into()
    }

    #[test]
    fn nothing_but_a_file_is_read_and_nobody_waits() {
        let expected = ["named pipe", "socket", "directory", "link", "link", "link", "1000 bytes", "1000 bytes"];
        for ((name, error), expected) in refused(|_| Links::Refused).into_iter().zip(expected) {
            assert!(error.contains(expected), "{name}: {error}");
        }
        let expected =
            ["named pipe", "socket", "directory", "leads out", "leads out", "named pipe", "1000 bytes", "1000 bytes"];
        for ((name, error), expected) in refused(|place| Links::Within(place)).into_iter().zip(expected) {
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn a_file_is_read_and_none_is_no_error() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("file"), [b'x'; LIMIT as usize]).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("missing", at("dangling")).unwrap();
        let within = Links::Within(place.path());
        for (name, links) in [("file", Links::Refused), ("file", within), ("link", within)] {
            assert_eq!(read(&at(name), links, LIMIT).unwrap().unwrap().len() as u64, LIMIT, "{name}");
        }
        for (name, links) in [("missing", Links::Refused), ("file/x", Links::Refused), ("dangling", within)] {
            assert!(read(&at(name), links, LIMIT).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn a_file_without_end_is_read_to_the_limit() {
        // As one that grows faster than it is read: it says that it has no bytes.
        let endless = File::open("/dev/zero").unwrap();
        assert!(matches!(content(&endless, Path::new("x"), LIMIT), Err(Error::TooLarge { limit: LIMIT, .. })));
    }

    #[test]
    fn what_nobody_reads_is_not_shown() {
        assert_eq!(shown("short"), "short");
        assert_eq!(clipped("äöü", 2), "äö…");
        assert_eq!(shown("ä".repeat(5000)).chars().count(), MAXIMUM_SHOWN + 1);
    }
}
