//! Tar, read strictly and written plainly.
//!
//! The readers that an image file ends up in (Go's, libarchive's, GNU tar's) disagree about extensions, duplicates and
//! what follows the end. This one accepts only what they all read the same way, in bounded memory.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::{Error, quoted};
use crate::interrupt;

const BLOCK: usize = 512;
/// A tar header holds longer ones only in extensions. Blob names have 77 characters.
const MAX_NAME: usize = 255;
/// PAX headers hold times and owners here, a few hundred bytes. The `tar` crate would read one of any size into memory.
const MAX_PAX: u64 = 64 * 1024;
/// Large enough that a system call per buffer costs nothing, small beside the verifier's memory bound.
const BUFFER: usize = 128 * 1024;

/// What an entry is, apart from its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A regular file with `size` bytes to be read from [`Reader::data`].
    File { name: String, size: u64 },
    /// A directory. The archive's own root has the name `.`.
    Directory { name: String },
    /// A symbolic link.
    Link { name: String, target: String },
}

/// Reads entries one after the other.
pub(super) struct Reader<R> {
    inner: R,
    offset: u64,
    /// Bytes of the current entry that were not read yet, and what pads them to a full block.
    remaining: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, offset: 0, remaining: 0, padding: 0 }
    }

    /// The next entry. `None` after a proper end; what follows it has been checked to be nothing.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        io::copy(&mut self.data(), &mut io::sink()).map_err(read_error)?;
        self.skip_padding()?;
        let mut extended = false;
        loop {
            let offset = self.offset;
            let Some(header) = self.header()? else {
                if extended {
                    return Err(Error::Truncated("a PAX header is followed by nothing"));
                }
                return Ok(None);
            };
            let bad = |reason| Error::Header { offset, reason };
            let size = header.entry_size().map_err(|_| bad("the size is not a number"))?;
            if header.entry_type().as_byte() == b'x' {
                if extended {
                    return Err(bad("two PAX headers follow each other"));
                }
                self.pax_header(size, offset)?;
                extended = true;
                continue;
            }
            return self.entry(&header, size, offset).map(Some);
        }
    }

    /// The rest of the current entry's contents. It fails where the file ends before the contents do.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    /// Where in the archive the next unread byte is; right after an entry was returned, where its contents start.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Passes over the rest of the current entry's contents without reading them. An archive that ends before they do is
    /// noticed at the next entry.
    pub(super) fn skip(&mut self) -> Result<(), Error>
    where
        R: Seek,
    {
        let length = std::mem::take(&mut self.remaining);
        let distance = i64::try_from(length).map_err(|_| Error::Truncated("it ends within an entry"))?;
        self.inner.seek(SeekFrom::Current(distance)).map_err(Error::Read)?;
        self.offset += length;
        Ok(())
    }

    fn entry(&mut self, header: &tar::Header, size: u64, offset: u64) -> Result<Entry, Error> {
        let path = header.path_bytes();
        let file_type = header.entry_type().as_byte();
        let directory = file_type == b'5';
        let name = clean_name(&path, directory)?;
        let entry = match file_type {
            b'0' | 0 => Entry::File { name, size },
            b'5' => Entry::Directory { name },
            b'2' => {
                let target = header.link_name_bytes().unwrap_or_default();
                Entry::Link { name, target: String::from_utf8_lossy(&target).into_owned() }
            }
            other => return Err(Error::EntryType { name: quoted(&name), found: describe(other) }),
        };
        if !matches!(entry, Entry::File { .. }) && size != 0 {
            return Err(Error::Header { offset, reason: "something that is not a file has contents" });
        }
        self.remaining = size;
        self.padding = padding(size);
        Ok(entry)
    }

    /// The next header block, or `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<tar::Header>, Error> {
        let mut header = tar::Header::new_old();
        let offset = self.offset;
        self.fill(header.as_mut_bytes(), "it has no end marker")?;
        if is_zero(header.as_bytes()) {
            self.end()?;
            return Ok(None);
        }
        if offset == 0
            && let Some(format) = compression(header.as_bytes())
        {
            return Err(Error::Compressed(format));
        }
        let sum: u32 = header.as_bytes().iter().map(|&byte| u32::from(byte)).sum();
        let field: u32 = header.as_old().cksum.iter().map(|&byte| u32::from(byte)).sum();
        // The checksum is taken as if its own field held spaces.
        let expected = sum - field + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(expected) {
            return Err(Error::Header { offset, reason: "the header's checksum is wrong" });
        }
        Ok(Some(header))
    }

    /// After the first zero block: one more, and then nothing but zeros, with which tools fill up their last record.
    fn end(&mut self) -> Result<(), Error> {
        let mut block = [0; BLOCK];
        self.fill(&mut block, "its end marker is incomplete")?;
        if !is_zero(&block) {
            return Err(Error::TrailingData);
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            interrupt::check().map_err(Error::Read)?;
            match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) if is_zero(&buffer[..n]) => {}
                Ok(_) => return Err(Error::TrailingData),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
    }

    /// Lets records pass that say nothing about name, size or contents.
    fn pax_header(&mut self, size: u64, offset: u64) -> Result<(), Error> {
        if size > MAX_PAX {
            return Err(Error::Limit { limit: MAX_PAX, what: "bytes in a PAX header" });
        }
        let mut records = vec![0; size as usize];
        self.fill(&mut records, "a PAX header is incomplete")?;
        self.padding = padding(size);
        self.skip_padding()?;
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            let Some((key, after)) = pax_record(rest) else {
                return Err(Error::Header { offset, reason: "a PAX record is malformed" });
            };
            let key = String::from_utf8_lossy(key);
            let harmless = matches!(&*key, "atime" | "ctime" | "mtime" | "uid" | "gid" | "uname" | "gname" | "comment")
                || key.starts_with("LIBARCHIVE.")
                || key.starts_with("SCHILY.");
            if !harmless {
                return Err(Error::Extension(quoted(&key)));
            }
            rest = after;
        }
        Ok(())
    }

    fn skip_padding(&mut self) -> Result<(), Error> {
        let mut block = [0; BLOCK];
        let length = std::mem::take(&mut self.padding) as usize;
        self.fill(&mut block[..length], "the last entry is incomplete")
    }

    fn fill(&mut self, buffer: &mut [u8], missing: &'static str) -> Result<(), Error> {
        self.inner.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated(missing),
            _ => Error::Read(error),
        })?;
        self.offset += buffer.len() as u64;
        Ok(())
    }
}

/// Contents of the current entry.
pub(super) struct Data<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        let wanted = usize::try_from(self.reader.remaining).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.reader.inner.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reader.remaining -= read as u64;
        self.reader.offset += read as u64;
        Ok(read)
    }
}

/// What a failed read of [`Data`] means.
pub(super) fn read_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated("it ends within an entry"),
        _ => Error::Read(error),
    }
}

/// Key of the first record `LENGTH KEY=VALUE\n`, and what follows the record. The length counts the whole record, so a
/// value may contain newlines.
fn pax_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = records.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some((&pair[..equals], rest))
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn compression(start: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
    FORMATS.iter().find(|(magic, _)| start.starts_with(magic)).map(|&(_, name)| name)
}

fn describe(file_type: u8) -> String {
    match file_type {
        b'1' => "a hard link".to_owned(),
        b'3' | b'4' => "a device".to_owned(),
        b'6' => "a named pipe".to_owned(),
        b'S' => "a sparse file".to_owned(),
        b'g' => "a global PAX header".to_owned(),
        b'L' | b'K' => "a GNU long name".to_owned(),
        other => format!("of the unknown type {other:#04x}"),
    }
}

/// The entry's name: relative, without `..`, and without the `./` that `tar -C DIR .` puts before it.
fn clean_name(raw: &[u8], directory: bool) -> Result<String, Error> {
    let bad = |reason| Error::Name { name: quoted(&String::from_utf8_lossy(raw)), reason };
    let name = std::str::from_utf8(raw).map_err(|_| bad("it is not UTF-8"))?;
    if name.len() > MAX_NAME {
        return Err(bad("it is longer than 255 bytes"));
    }
    if name.starts_with('/') {
        return Err(bad("it is an absolute path"));
    }
    if name.contains(|c: char| c == '\\' || c.is_control()) {
        return Err(bad("it has a backslash or a control character"));
    }
    let name = match name.strip_suffix('/') {
        Some(name) if directory => name,
        Some(_) => return Err(bad("it is a file, but ends with a slash")),
        None => name,
    };
    if name == "." && directory {
        return Ok(name.to_owned());
    }
    let name = name.strip_prefix("./").unwrap_or(name);
    for component in name.split('/') {
        match component {
            "" => return Err(bad("it has an empty component")),
            "." | ".." => return Err(bad("it has a `.` or `..` component")),
            _ => {}
        }
    }
    Ok(name.to_owned())
}

/// Owner, mode and time of an entry that is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: u64,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

/// Writes plain ustar entries: names, owners and times fit the header, so nothing needs an extension.
pub(super) struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, name: &str, attributes: Attributes) -> io::Result<()> {
        self.header(&format!("{name}/"), b'5', 0, attributes)
    }

    /// Adds a file whose contents are in memory.
    pub(super) fn file(&mut self, name: &str, attributes: Attributes, contents: &[u8]) -> io::Result<()> {
        self.start_file(name, attributes, contents.len() as u64)?;
        self.inner.write_all(contents)?;
        self.end_file(contents.len() as u64)
    }

    /// Starts a file. Exactly `size` bytes go to [`Writer::contents`] then, and [`Writer::end_file`] follows.
    pub(super) fn start_file(&mut self, name: &str, attributes: Attributes, size: u64) -> io::Result<()> {
        self.header(name, b'0', size, attributes)
    }

    /// Takes the contents of the file that was started.
    pub(super) fn contents(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Ends a file of `size` bytes.
    pub(super) fn end_file(&mut self, size: u64) -> io::Result<()> {
        self.inner.write_all(&[0; BLOCK][..padding(size) as usize])
    }

    /// Writes the end marker.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK])?;
        Ok(self.inner)
    }

    fn header(&mut self, name: &str, file_type: u8, size: u64, attributes: Attributes) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        let field = &mut header.as_old_mut().name;
        let Some(field) = field.get_mut(..name.len()) else {
            return Err(io::Error::other(format!("{} is too long a name for an image file", quoted(name))));
        };
        field.copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(file_type));
        header.set_size(size);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.owner);
        header.set_gid(attributes.owner);
        header.set_mtime(attributes.modified);
        header.set_cksum();
        self.inner.write_all(header.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Attributes = Attributes { mode: 0o644, owner: 0, modified: 0 };

    fn entries(tar: &[u8]) -> Result<Vec<Entry>, Error> {
        let mut reader = Reader::new(tar);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    fn raw(name: &[u8], file_type: u8, contents: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(tar::EntryType::new(file_type));
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn ended(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend_from_slice(&[0; 2 * BLOCK]);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new(Vec::new());
        writer.directory("blobs", PLAIN).unwrap();
        writer.file("blobs/a", PLAIN, b"abc").unwrap();
        writer.file("empty", PLAIN, b"").unwrap();
        let bytes = writer.finish().unwrap();
        let file = |name: &str, size| Entry::File { name: name.to_owned(), size };
        let directory = Entry::Directory { name: "blobs".to_owned() };
        assert_eq!(entries(&bytes).unwrap(), [directory, file("blobs/a", 3), file("empty", 0)]);
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = ended(raw(b"a", b'0', &[7; 600]));
        assert_eq!(entries(&bytes).unwrap().len(), 1);
        for end in 0..bytes.len() {
            assert!(matches!(entries(&bytes[..end]), Err(Error::Truncated(_))), "cut at {end}");
        }
    }

    #[test]
    fn padding_after_the_end_is_zero_or_refused() {
        let mut bytes = ended(raw(b"a", b'0', b"x"));
        bytes.resize(10_240, 0);
        assert_eq!(entries(&bytes).unwrap().len(), 1);
        bytes.extend(ended(raw(b"hidden", b'0', b"x")));
        assert!(matches!(entries(&bytes), Err(Error::TrailingData)));
        let lone_zero_block = [raw(b"a", b'0', b"x"), vec![0; BLOCK], ended(raw(b"hidden", b'0', b"x"))].concat();
        assert!(matches!(entries(&lone_zero_block), Err(Error::TrailingData)));
    }

    #[test]
    fn names_that_could_escape_are_refused() {
        for name in [
            &b"/etc/passwd"[..],
            b"../x",
            b"a/../../x",
            b"a//b",
            b"a/./b",
            b"././a",
            b".",
            b"..",
            b"",
            b"a\\b",
            b"a\nb",
            b"\xff",
            b"a/",
        ] {
            assert!(matches!(entries(&ended(raw(name, b'0', b""))), Err(Error::Name { .. })), "{name:?}");
        }
        assert!(entries(&ended(raw(b"./a", b'0', b""))).is_ok());
        assert_eq!(entries(&ended(raw(b"./", b'5', b""))).unwrap(), [Entry::Directory { name: ".".to_owned() }]);
    }

    #[test]
    fn links_devices_and_sparse_files_are_named() {
        for (file_type, found) in [
            (b'1', "hard link"),
            (b'3', "device"),
            (b'6', "pipe"),
            (b'S', "sparse"),
            (b'g', "global"),
            (b'L', "long name"),
        ] {
            let error = entries(&ended(raw(b"x", file_type, b""))).unwrap_err();
            assert!(matches!(&error, Error::EntryType { found: text, .. } if text.contains(found)), "{error}");
        }
    }

    #[test]
    fn pax_records_that_change_name_or_size_are_refused() {
        let file = ended(raw(b"a", b'0', b"x"));
        for record in [&b"9 size=0\n"[..], b"10 path=b\n", b"18 GNU.sparse.x=1\n", b"16 hdrcharset=X\n"] {
            let bytes = [raw(b"pax", b'x', record), file.clone()].concat();
            assert!(matches!(entries(&bytes), Err(Error::Extension(_))), "{record:?}");
        }
        let harmless = [raw(b"pax", b'x', b"11 mtime=1\n"), file.clone()].concat();
        assert_eq!(entries(&harmless).unwrap().len(), 1);
        let newlines = [raw(b"pax", b'x', b"29 SCHILY.xattr.a=\n9 size=0\n\n"), file.clone()].concat();
        assert_eq!(entries(&newlines).unwrap().len(), 1);
        for record in [&b"99 mtime=1\n"[..], b"11 mtime=1\n\n9 size=0\n", b"0 a=b\n", b"3 =", b"10 mtime=1\n", b"x"] {
            let malformed = [raw(b"pax", b'x', record), file.clone()].concat();
            assert!(matches!(entries(&malformed), Err(Error::Header { .. })), "{record:?}");
        }
        let large = [raw(b"pax", b'x', &vec![b' '; MAX_PAX as usize + 1]), file].concat();
        assert!(matches!(entries(&large), Err(Error::Limit { .. })));
    }

    #[test]
    fn compressed_files_are_called_by_their_name() {
        for (start, format) in [(&b"\x1f\x8b\x08"[..], "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")] {
            let mut bytes = start.to_vec();
            bytes.resize(BLOCK, 1);
            assert!(matches!(entries(&bytes), Err(Error::Compressed(found)) if found == format));
        }
        assert!(matches!(entries(&[1; BLOCK]), Err(Error::Header { offset: 0, .. })));
    }

    #[test]
    fn a_size_beyond_the_file_does_not_reserve_memory() {
        let mut bytes = raw(b"a", b'0', b"");
        bytes[124..136].copy_from_slice(b"77777777777\0");
        let mut header = *tar::Header::from_byte_slice(&bytes[..BLOCK]).as_bytes();
        let mut parsed = tar::Header::new_old();
        parsed.as_mut_bytes().copy_from_slice(&header);
        parsed.set_cksum();
        header.copy_from_slice(parsed.as_bytes());
        assert!(matches!(entries(&header), Err(Error::Truncated(_))));
    }
}
