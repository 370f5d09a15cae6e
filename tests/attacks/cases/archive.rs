//! Step 6: the archive's form. Every archive here is validly signed: this is what a signer with a broken or hostile build
//! machine could ship.

use std::io::{Read as _, Write as _};

use anyhow::ensure;
use tar::EntryType;

use super::{Made, Material};
use crate::release::{END, Entry, Package, Release, compress, pack};

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let mut cases = compression(material)?;
    cases.extend(kinds(material)?);
    cases.extend(headers(material)?);
    cases.extend(order(material)?);
    Ok(cases)
}

/// Header and trailer of the gzip members that an archive consists of.
const GZIP_HEADER: usize = 20;
const GZIP_TRAILER: usize = 8;

/// The gzip members of an archive, by the length that each names.
fn members(archive: &[u8]) -> Vec<Vec<u8>> {
    let mut members = Vec::new();
    let mut rest = archive;
    while !rest.is_empty() {
        let length = u32::from_le_bytes([rest[16], rest[17], rest[18], rest[19]]) as usize;
        let (member, after) = rest.split_at(length);
        members.push(member.to_vec());
        rest = after;
    }
    members
}

/// Makes the length that a member names right.
fn with_length(mut member: Vec<u8>) -> Vec<u8> {
    let length = (member.len() as u32).to_le_bytes();
    member[16..20].copy_from_slice(&length);
    member
}

fn plain_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn gunzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out)?;
    Ok(out)
}

/// The gzip around the tar stream.
fn compression(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, good, .. } = material;
    let mut cases = Vec::new();
    let mut add = |name, description, archive: Vec<u8>, message: &[&str]| -> anyhow::Result<()> {
        let package = Package::new(&good.name, archive).signed_by(&[vendor])?;
        cases.push(Made::archive(material, name, description, &package)?.refused(16, message));
        Ok(())
    };
    let archive = &good.archive;
    let members = members(archive);
    ensure!(members.len() == 3, "the smallest release has three gzip members");
    let stream = gunzip(archive)?;
    let changed = |index: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut members = members.clone();
        change(&mut members[index]);
        members.concat()
    };
    let not_ours = ["does not begin as an archive made by spacelift-bundle"];
    add("signed-empty-archive", "The archive is empty, and was signed so.", Vec::new(), &["ends where"])?;
    add("signed-plain-gzip", "The tar stream in one ordinary gzip member.", plain_gzip(&stream), &not_ours)?;
    add("signed-plain-tar", "The tar stream without compression.", stream.clone(), &not_ours)?;
    add("signed-xz", "Another compression.", [b"\xfd7zXZ\0", &stream[..600]].concat(), &not_ours)?;
    add(
        "signed-trailing-garbage",
        "Garbage after the last gzip member.",
        [archive, &b"garbage"[..]].concat(),
        &["garbage after the compressed data"],
    )?;
    add(
        "signed-trailing-zeros",
        "Zeros after the last gzip member, as tape drives leave them; gzip passes over them.",
        [archive, &[0; 512][..]].concat(),
        &["garbage after the compressed data"],
    )?;
    add(
        "signed-trailing-gzip",
        "An ordinary gzip member after the archive.",
        [archive.clone(), plain_gzip(b"more")].concat(),
        &["garbage after the compressed data"],
    )?;
    add(
        "signed-truncated",
        "The archive ends inside a gzip member.",
        archive[..archive.len() - 20].to_vec(),
        &["the file is truncated"],
    )?;
    add(
        "signed-truncated-in-header",
        "The archive ends inside the header of a gzip member.",
        [&members[0][..], &members[1], &members[2][..18]].concat(),
        &["the file is truncated"],
    )?;
    add(
        "signed-truncated-between-members",
        "The archive ends after its second gzip member.",
        members[..2].concat(),
        &["ends where self-hosted-v1.2.3/version should follow"],
    )?;
    let longer = |by: i64| {
        changed(1, &|member| {
            let length = (member.len() as i64 + by) as u32;
            member[16..20].copy_from_slice(&length.to_le_bytes());
        })
    };
    let damaged = "compressed";
    add("gzip-length-too-large", "A gzip member says that it is longer than it is.", longer(7), &[damaged])?;
    add("gzip-length-too-small", "A gzip member says that it is shorter than it is.", longer(-7), &[damaged])?;
    add(
        "gzip-length-tiny",
        "A gzip member says that it is shorter than its own header.",
        changed(1, &|member| member[16..20].copy_from_slice(&3_u32.to_le_bytes())),
        &["claims a length of 3 bytes"],
    )?;
    add(
        "gzip-length-huge",
        "A gzip member says that it has four gigabytes, to make the reader reserve them.",
        changed(1, &|member| member[16..20].copy_from_slice(&u32::MAX.to_le_bytes())),
        &["claims a length of 4294967295 bytes"],
    )?;
    add(
        "gzip-wrong-crc",
        "The check sum of a gzip member is wrong.",
        changed(2, &|member| {
            let at = member.len() - 5;
            member[at] ^= 1;
        }),
        &["a compressed block is damaged"],
    )?;
    let with_size = |size: u32| {
        changed(2, &|member| {
            let at = member.len() - 4;
            member[at..].copy_from_slice(&size.to_le_bytes());
        })
    };
    add(
        "gzip-size-too-small",
        "A gzip member says that it unpacks to less than it does.",
        with_size(512),
        &["a compressed block is damaged"],
    )?;
    add(
        "gzip-size-huge",
        "A gzip member says that it unpacks to four gigabytes.",
        with_size(u32::MAX),
        &["claims to hold 4294967295 bytes"],
    )?;
    add("gzip-size-zero", "A gzip member says that it is empty.", with_size(0), &["claims to hold 0 bytes"])?;
    let padded = changed(2, &|member| {
        let contents = gunzip(member).expect("a good member");
        let mut crc = flate2::Crc::new();
        crc.update(&contents);
        crc.update(&[0; 512]);
        let at = member.len() - GZIP_TRAILER;
        member.truncate(at);
        member.extend(crc.sum().to_le_bytes());
        member.extend((contents.len() as u32 + 512).to_le_bytes());
    });
    add(
        "gzip-size-too-large",
        "A gzip member says that it unpacks to more than it does, with the check sum of what a careless reader then has: \
         the data and zeros after them.",
        padded,
        &["a compressed block is damaged"],
    )?;
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    deflate.write_all(&vec![0; 16 << 20])?;
    let deflate = deflate.finish()?;
    let bomb = |size: u32| {
        let body = [&members[1][..GZIP_HEADER], &deflate, &[0; 4], &size.to_le_bytes()].concat();
        [&members[0][..], &with_length(body)].concat()
    };
    add(
        "gzip-bomb",
        "A gzip member of 16 KB unpacks to 16 MB, and says so.",
        bomb(16 << 20),
        &["claims to hold 16777216 bytes"],
    )?;
    add(
        "gzip-bomb-in-disguise",
        "A gzip member of 16 KB unpacks to 16 MB, and says that it has one.",
        bomb(1 << 20),
        &["a compressed block is damaged"],
    )?;
    add(
        "gzip-damaged",
        "The compressed data of a gzip member are damaged.",
        changed(2, &|member| member[GZIP_HEADER] = 0xff),
        &["a compressed block is damaged"],
    )?;
    add(
        "gzip-name-in-header",
        "A gzip member has a file name in its header, as the gzip program writes it.",
        changed(1, &|member| member[3] |= 8),
        &["garbage after the compressed data"],
    )?;
    let slack = |filler: &[u8]| {
        changed(1, &|member| {
            let at = member.len() - GZIP_TRAILER;
            let trailer = member.split_off(at);
            member.extend(filler);
            member.extend(trailer);
            *member = with_length(std::mem::take(member));
        })
    };
    add(
        "gzip-data-inside-a-member",
        "Bytes between the end of the compressed data and the trailer of a gzip member, which the named length covers.",
        slack(b"hidden"),
        &["a compressed block is damaged"],
    )?;
    add(
        "gzip-one-byte-inside-a-member",
        "A single zero byte in that place.",
        slack(&[0]),
        &["a compressed block is damaged"],
    )?;
    let hidden = hidden_member(&members)?;
    add(
        "gzip-hidden-member",
        "A whole gzip member is hidden inside another. Whoever goes by the named lengths does not see it; gzip and tar \
         unpack a file from it that is in no manifest.",
        hidden,
        &["a compressed block is damaged"],
    )?;
    let nothing: [&[u8]; 3] = [&members[0], &empty_member(&members[0]), &[&members[1][..], &members[2]].concat()];
    add("gzip-empty-member", "A gzip member that holds nothing.", nothing.concat(), &["claims to hold 0 bytes"])?;
    Ok(cases)
}

/// A member of the right form around nothing.
fn empty_member(like: &[u8]) -> Vec<u8> {
    with_length([&like[..GZIP_HEADER], &[3, 0], &[0; GZIP_TRAILER]].concat())
}

/// The archive with a member hidden in its second one: after that one's compressed data come its trailer, the hidden
/// member, and the header of a third whose extra field swallows what the named lengths take for the second one's trailer
/// and the next one's header.
fn hidden_member(members: &[Vec<u8>]) -> anyhow::Result<Vec<u8>> {
    let second = &members[1];
    let (body, trailer) = second.split_at(second.len() - GZIP_TRAILER);
    let evil = Entry::file("self-hosted-v1.2.3/install.sh", 0o755, b"#!/bin/sh\necho evil\n");
    let hidden = plain_gzip(&evil.bytes());
    let swallowed = u16::try_from(GZIP_TRAILER + GZIP_HEADER)?.to_le_bytes();
    let third = [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255][..], &swallowed].concat();
    let crafted = with_length([body, trailer, &hidden, &third, trailer].concat());
    let archive = [&members[0][..], &crafted, &members[2]].concat();
    // It proves something only if everyone else sees the file.
    let seen = gunzip(&archive)?;
    ensure!(seen.windows(9).any(|window| window == b"echo evil"), "the hidden member is not visible to gzip");
    Ok(archive)
}

/// Everything in a tar that is neither a regular file nor a directory.
fn kinds(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let release = Release::new().file("scripts/run.sh", "#!/bin/sh\n");
    let entries = release.entries(vendor)?;
    let root = release.root();
    let version = entries.len() - 1;
    ensure!(entries[version].path() == format!("{root}/version"), "`version` is the last file");
    let mut cases = Vec::new();
    let mut add = |name, description, entries: &[Entry], message: &[&str]| -> anyhow::Result<()> {
        let package = release.package_with(vendor, entries)?;
        cases.push(Made::archive(material, name, description, &package)?.refused(16, message));
        Ok(())
    };
    let replaced = |entry: Entry| {
        let mut entries = entries.clone();
        entries[version] = entry;
        entries
    };
    let before = |inserted: &[Entry]| {
        let mut changed = entries.clone();
        changed.splice(version..version, inserted.iter().cloned());
        changed
    };
    let path = format!("{root}/version");
    // By its place: the library would write the modern letter for an old kind.
    let of_kind = |kind: u8| replaced(entries[version].clone().with(|header| header.as_mut_bytes()[156] = kind));

    add(
        "tar-symlink",
        "A symbolic link in place of a file.",
        &replaced(Entry::link(&path, EntryType::Symlink, "/etc/passwd")),
        &["version is a symbolic link"],
    )?;
    let mut through = entries.clone();
    let directory = through.iter().position(|entry| entry.path() == format!("{root}/scripts/")).expect("a directory");
    through[directory] = Entry::link(&format!("{root}/scripts"), EntryType::Symlink, "/tmp");
    add(
        "tar-symlink-for-directory",
        "A symbolic link in place of a directory, and then a file through it.",
        &through,
        &["scripts is a symbolic link"],
    )?;
    let mut linked_root = entries.clone();
    linked_root[0] = Entry::link(&root, EntryType::Symlink, "/tmp");
    add(
        "tar-symlink-for-root",
        "A symbolic link in place of the release directory.",
        &linked_root,
        &["is a symbolic link"],
    )?;
    add(
        "tar-hard-link",
        "A hard link to a file outside.",
        &replaced(Entry::link(&path, EntryType::Link, "/etc/passwd")),
        &["version is a hard link"],
    )?;
    let device = |kind| {
        Entry::new(&path, kind, 0o666, b"").with(|header| {
            header.set_device_major(1).expect("ustar");
            header.set_device_minor(5).expect("ustar");
        })
    };
    add("tar-character-device", "A character device.", &replaced(device(EntryType::Char)), &["version is a device"])?;
    add("tar-block-device", "A block device.", &replaced(device(EntryType::Block)), &["version is a device"])?;
    add("tar-fifo", "A named pipe.", &replaced(Entry::new(&path, EntryType::Fifo, 0o644, b"")), &["a named pipe"])?;
    add("tar-contiguous", "A file of the kind that some old systems knew.", &of_kind(b'7'), &["unknown type"])?;
    add("tar-unknown-kind", "An entry of a kind that nobody knows.", &of_kind(b'Z'), &["unknown type"])?;
    add("tar-volume-label", "A GNU volume label.", &of_kind(b'V'), &["unknown type"])?;
    add("tar-continued", "The rest of a file from another volume.", &of_kind(b'M'), &["unknown type"])?;
    add(
        "tar-directory-dump",
        "A GNU directory listing, which can ask to rename and delete.",
        &of_kind(b'D'),
        &["unknown type"],
    )?;
    add(
        "tar-ancient-kind",
        "A regular file marked as it was before 1988.",
        &of_kind(0),
        &["version differs from the manifest in its tar header"],
    )?;
    add(
        "tar-directory-for-file",
        "A directory in place of a file.",
        &of_kind(b'5'),
        &["version differs from the manifest in its tar header"],
    )?;

    let pax = |record: &str| {
        // The length counts itself; it has two digits here.
        let record = format!("{} {record}\n", record.len() + 4);
        Entry::new("pax", EntryType::XHeader, 0o644, record.as_bytes())
    };
    let extension = "a PAX extension";
    add(
        "tar-pax-size",
        "A PAX header gives the next file another size, so that readers disagree about where it ends.",
        &before(&[pax("size=512")]),
        &[extension],
    )?;
    add(
        "tar-pax-path",
        "A PAX header renames the next file.",
        &before(&[pax("path=../../etc/cron.d/x")]),
        &[extension],
    )?;
    add("tar-pax-link", "A PAX header gives a link target.", &before(&[pax("linkpath=/etc/passwd")]), &[extension])?;
    add(
        "tar-pax-sparse",
        "A sparse file of 10 GB, in the PAX form.",
        &before(&[pax("GNU.sparse.size=10000000000")]),
        &[extension],
    )?;
    add(
        "tar-pax-harmless",
        "A PAX header that changes nothing but the time.",
        &before(&[pax("mtime=1")]),
        &[extension],
    )?;
    let global = pax("path=elsewhere").with(|header| header.set_entry_type(EntryType::XGlobalHeader));
    add("tar-pax-global", "A PAX header for all that follow.", &before(std::slice::from_ref(&global)), &[extension])?;
    let mut first = entries.clone();
    first.insert(0, global);
    add("tar-pax-global-first", "A PAX header before everything, as `git archive` writes it.", &first, &[extension])?;
    let gnu = |kind, text: &[u8]| Entry::new("././@LongLink", kind, 0o644, text);
    add(
        "tar-gnu-long-name",
        "A GNU long name, which renames the next file.",
        &before(&[gnu(EntryType::GNULongName, b"../../etc/cron.d/x\0")]),
        &["a GNU extension"],
    )?;
    add(
        "tar-gnu-long-link",
        "A GNU long link name.",
        &before(&[gnu(EntryType::GNULongLink, b"/etc/passwd\0")]),
        &["a GNU extension"],
    )?;
    let sparse = Entry::new(&path, EntryType::GNUSparse, 0o644, b"").with(|header| {
        header.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0");
        // Where the real size stands in this form: ten gigabytes.
        header.as_mut_bytes()[483..495].copy_from_slice(b"112402762000");
    });
    add("tar-sparse", "A sparse file of 10 GB that takes one block.", &replaced(sparse), &["a sparse file"])?;
    Ok(cases)
}

/// Names, sizes, modes and everything else that a tar header says about a file.
fn headers(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let release = Release::new().file("run.sh", "#!/bin/sh\n");
    let entries = release.entries(vendor)?;
    let root = release.root();
    let last = entries.len() - 1;
    let mut cases = Vec::new();
    let mut add = |name, description, entry: Entry, message: &[&str]| -> anyhow::Result<()> {
        let mut entries = entries.clone();
        entries[last] = entry;
        let package = release.package_with(vendor, &entries)?;
        cases.push(Made::archive(material, name, description, &package)?.refused(16, message));
        Ok(())
    };
    let version = &entries[last];
    let named = |path: &str| Entry::file(path, 0o644, b"v1.2.3\n");
    let escapes = "leads out of the release directory";
    add("tar-parent-directory", "A file two directories above.", named("../../etc/cron.d/x"), &[escapes])?;
    add(
        "tar-parent-directory-inside",
        "A file that leaves the release directory after entering it.",
        named(&format!("{root}/../../etc/cron.d/x")),
        &[escapes],
    )?;
    add("tar-absolute-path", "A file with an absolute path.", named("/etc/cron.d/x"), &[escapes])?;
    add(
        "tar-outside-root",
        "A file beside the release directory.",
        named("elsewhere/version"),
        &["not in the manifest"],
    )?;
    add(
        "tar-dot",
        "A path with a `.` in it, which names the same file.",
        named(&format!("{root}/./version")),
        &["not in the manifest"],
    )?;
    add("tar-backslash", "A path for Windows.", named(&format!("{root}\\..\\version")), &["not in the manifest"])?;
    add(
        "tar-name-in-other-case",
        "The name differs in the case of a letter, which is the same file on some systems.",
        named(&format!("{root}/Version")),
        &["not in the manifest"],
    )?;
    add(
        "tar-control-characters",
        "The name clears the terminal and paints an answer of its own.",
        named(&format!("{root}/\x1b[2J\x1b[32mverified\u{9b}0m\r")),
        &["\\u{1b}[2J", "not in the manifest"],
    )?;
    let latin1 = version.clone().with(|header| header.as_mut_bytes()[..4].copy_from_slice(b"s\xe9lf"));
    add("tar-name-not-utf8", "The name is not UTF-8.", latin1, &["not in the manifest"])?;
    add("tar-name-empty", "The entry has no name.", named(""), &["not in the manifest"])?;
    add(
        "tar-name-with-slash",
        "A file whose name ends as a directory's.",
        named(&format!("{root}/version/")),
        &["version/"],
    )?;
    let split = version.clone().with(|header| {
        // The same path, cut in two at another place.
        let bytes = header.as_mut_bytes();
        bytes[..100].fill(0);
        bytes[..7].copy_from_slice(b"version");
        bytes[345..345 + root.len()].copy_from_slice(root.as_bytes());
    });
    add("tar-name-split", "The name is divided between two fields without need.", split, &["tar header"])?;

    let mode = |bits| version.clone().with(|header| header.set_mode(bits));
    add("tar-setuid", "A set-user-id bit.", mode(0o4644), &["mode: found 4644, expected 0644"])?;
    add("tar-setgid", "A set-group-id bit.", mode(0o2644), &["mode: found 2644, expected 0644"])?;
    add("tar-sticky", "A sticky bit.", mode(0o1644), &["mode: found 1644, expected 0644"])?;
    add("tar-world-writable", "A file that everyone may write to.", mode(0o666), &["mode: found 0666, expected 0644"])?;
    add("tar-executable", "A file that should not be executable.", mode(0o755), &["mode: found 0755, expected 0644"])?;
    add(
        "tar-file-type-in-mode",
        "The type of a device among the permission bits.",
        mode(0o020_644),
        &["mode: found 20644, expected 0644"],
    )?;
    let changed = |change: &dyn Fn(&mut tar::Header)| version.clone().with(change);
    add(
        "tar-owner",
        "A file that belongs to someone.",
        changed(&|header| header.set_uid(1000)),
        &["owner: found 1000"],
    )?;
    add("tar-group", "A file that belongs to a group.", changed(&|header| header.set_gid(27)), &["group: found 27"])?;
    let owner_name = changed(&|header| header.set_username("nobody").expect("ustar"));
    add("tar-owner-name", "A file that belongs to someone by name.", owner_name, &["tar header"])?;
    let time = changed(&|header| header.set_mtime(1));
    add("tar-modification-time", "A file of another time.", time, &["modification time: found 1"])?;
    add(
        "tar-device-number",
        "A device number on a regular file.",
        changed(&|header| {
            header.set_device_major(1).expect("ustar");
        }),
        &["tar header"],
    )?;
    let gnu = changed(&|header| header.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0"));
    add("tar-gnu-header", "The header is of the GNU form.", gnu, &["tar header"])?;
    let old = changed(&|header| header.as_mut_bytes()[257..265].fill(0));
    add("tar-ancient-header", "The header is of the form from before 1988.", old, &["tar header"])?;
    let rest = changed(&|header| header.as_mut_bytes()[500..512].fill(b'x'));
    add("tar-data-in-header", "Data in the unused part of the header.", rest, &["tar header"])?;
    let link = changed(&|header| header.as_old_mut().linkname[..4].copy_from_slice(b"link"));
    add("tar-link-name-on-file", "A link target on a regular file.", link, &["tar header"])?;

    let size = |size: u64| version.clone().with(|header| header.set_size(size));
    add("tar-size-larger", "The file is larger than the manifest says.", size(512), &["size: found 512, expected 7"])?;
    add("tar-size-smaller", "The file is smaller than the manifest says.", size(1), &["size: found 1, expected 7"])?;
    add(
        "tar-size-10-gb",
        "The file claims ten gigabytes.",
        size(10_000_000_000),
        &["size: found 10000000000, expected 7"],
    )?;
    let binary = changed(&|header| {
        header.as_old_mut().size = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    });
    add(
        "tar-size-in-binary",
        "The size is written as a binary number, which is the same size.",
        binary,
        &["tar header"],
    )?;
    let nonsense = changed(&|header| header.as_old_mut().size.copy_from_slice(b"-0000000001\0"));
    add("tar-size-nonsense", "The size is no number.", nonsense, &["size: found nonsense, expected 7"])?;
    let checksum = version.clone().with_raw(|header| header.as_old_mut().cksum.copy_from_slice(b"000000\0 "));
    add("tar-header-checksum", "The header's check sum is wrong.", checksum, &["not a tar header"])?;
    let padded = version.clone().with_padding(b"hidden");
    add(
        "tar-data-in-padding",
        "Data in the padding after a file.",
        padded,
        &["the padding after version is not empty"],
    )?;

    // The manifest's own header, which has to be read before the manifest is known.
    let mut add_first = |name, description, index: usize, entry: Entry, message: &[&str]| -> anyhow::Result<()> {
        let mut entries = entries.clone();
        entries[index] = entry;
        let package = release.package_with(vendor, &entries)?;
        cases.push(Made::archive(material, name, description, &package)?.refused(16, message));
        Ok(())
    };
    let manifest = &entries[1];
    let size = |size: u64| manifest.clone().with(|header| header.set_size(size));
    add_first("tar-manifest-huge", "The manifest claims a gigabyte.", 1, size(1 << 30), &["more than the limit"])?;
    let nonsense = manifest.clone().with(|header| header.as_old_mut().size.copy_from_slice(b"-0000000001\0"));
    add_first("tar-manifest-size-nonsense", "The manifest's size is no number.", 1, nonsense, &["manifest.json"])?;
    let setuid = manifest.clone().with(|header| header.set_mode(0o4755));
    add_first("tar-manifest-setuid", "The manifest has a set-user-id bit.", 1, setuid, &["mode: found 4755"])?;
    let link = Entry::link(&manifest.path(), EntryType::Symlink, "/etc/passwd");
    add_first(
        "tar-manifest-is-a-link",
        "The manifest is a symbolic link.",
        1,
        link,
        &["manifest.json is a symbolic link"],
    )?;
    let huge = entries[2].clone().with(|header| header.set_size(1 << 20));
    add_first(
        "tar-manifest-signature-huge",
        "The manifest's signature claims a megabyte.",
        2,
        huge,
        &["more than the limit"],
    )?;
    let nonsense = entries[2].clone().with(|header| header.as_old_mut().size.copy_from_slice(b"-0000000001\0"));
    add_first(
        "tar-manifest-signature-size-nonsense",
        "The size of the manifest's signature is no number.",
        2,
        nonsense,
        &["manifest.json.sig"],
    )?;
    let writable = entries[0].clone().with(|header| header.set_mode(0o777));
    add_first(
        "tar-root-world-writable",
        "Everyone may write to the release directory.",
        0,
        writable,
        &["mode: found 0777"],
    )?;
    let elsewhere = Entry::directory("../");
    add_first("tar-root-elsewhere", "The release directory is the one above.", 0, elsewhere, &["leads out"])?;
    let other = Entry::directory("self-hosted-v1.2.2/");
    add_first(
        "tar-root-of-another-version",
        "The release directory is of another version.",
        0,
        other,
        &["self-hosted-v1.2.2/"],
    )?;
    Ok(cases)
}

/// Which entries there are, in which order, and how the stream ends.
fn order(material: &Material) -> anyhow::Result<Vec<Made>> {
    let vendor = &material.vendor;
    let release = Release::new().file("scripts/run.sh", "#!/bin/sh\n").file("scripts/stop.sh", "#!/bin/sh\n");
    let entries = release.entries(vendor)?;
    let root = release.root();
    let at = |path: &str| {
        entries.iter().position(|entry| entry.path() == format!("{root}/{path}")).expect("an entry of the release")
    };
    let mut cases = Vec::new();
    let mut add = |name, description, archive: Vec<u8>, message: &[&str]| -> anyhow::Result<()> {
        let package = Package::new(&release.name(), archive).signed_by(&[vendor])?;
        cases.push(Made::archive(material, name, description, &package)?.refused(16, message));
        Ok(())
    };
    let with = |index: usize, entry: &Entry| {
        let mut entries = entries.clone();
        entries.insert(index, entry.clone());
        pack(&entries)
    };
    let without = |index: usize| {
        let mut entries = entries.clone();
        entries.remove(index);
        pack(&entries)
    };
    let swapped = |a: usize, b: usize| {
        let mut entries = entries.clone();
        entries.swap(a, b);
        pack(&entries)
    };
    let end = entries.len();
    let (run, version) = (at("scripts/run.sh"), at("version"));
    let file = |path: &str| Entry::file(&format!("{root}/{path}"), 0o644, b"evil\n");
    add(
        "tar-duplicate-file",
        "A file stands in the archive twice; tar keeps the second.",
        with(version + 1, &file("version")),
        &["version stands in the archive twice"],
    )?;
    add(
        "tar-duplicate-file-in-between",
        "A file stands in the archive twice, the second time before others.",
        with(version, &Entry::file(&format!("{root}/scripts/run.sh"), 0o755, b"evil\n")),
        &["scripts/run.sh stands in the archive twice"],
    )?;
    add(
        "tar-duplicate-directory",
        "A directory stands in the archive twice.",
        with(version, &Entry::directory(&format!("{root}/scripts/"))),
        &["scripts/ stands in the archive twice"],
    )?;
    add(
        "tar-duplicate-manifest",
        "A second manifest, which tar would leave in place of the first.",
        with(end, &file("manifest.json")),
        &["manifest.json stands in the archive twice"],
    )?;
    add(
        "tar-duplicate-manifest-signature",
        "A second signature of the manifest.",
        with(end, &entries[2]),
        &["manifest.json.sig stands in the archive twice"],
    )?;
    add(
        "tar-extra-file",
        "A file that is not in the manifest.",
        with(end, &file("zzz")),
        &["zzz is in the archive but not in the manifest"],
    )?;
    add(
        "tar-extra-file-in-between",
        "A file that is not in the manifest, among those that are.",
        with(run, &file("scripts/evil.sh")),
        &["scripts/evil.sh is in the archive but not in the manifest"],
    )?;
    add("tar-extra-file-first", "A file before everything else.", with(0, &file("first")), &["first"])?;
    add(
        "tar-extra-directory",
        "A directory that holds nothing.",
        with(end, &Entry::directory(&format!("{root}/zzz/"))),
        &["zzz/ is in the archive but not in the manifest"],
    )?;
    add(
        "tar-missing-file",
        "A file that the manifest lists was left out.",
        without(run),
        &["scripts/run.sh is missing from the archive"],
    )?;
    add(
        "tar-missing-last-file",
        "The last file was left out.",
        without(version),
        &["the archive ends where self-hosted-v1.2.3/version should follow"],
    )?;
    add(
        "tar-missing-directory",
        "The directory of a file was left out, so that tar would take whatever is there.",
        without(at("scripts/")),
        &["scripts/ is missing from the archive"],
    )?;
    add("tar-missing-root", "The release directory was left out.", without(0), &["the release directory"])?;
    add("tar-missing-manifest", "The manifest was left out.", without(1), &["manifest.json"])?;
    add(
        "tar-missing-manifest-signature",
        "The manifest is not signed: an unsigned archive was published as it was.",
        without(2),
        &["manifest.json.sig is missing from the archive"],
    )?;
    add(
        "tar-wrong-order",
        "Two files have changed places.",
        swapped(run, version),
        &["scripts/run.sh is missing from the archive (self-hosted-v1.2.3/version stands in its place)"],
    )?;
    add("tar-manifest-not-first", "The manifest comes after its signature.", swapped(1, 2), &["manifest.json"])?;

    let bytes: Vec<u8> = entries.iter().map(Entry::bytes).collect::<Vec<_>>().concat();
    let stream = |end: &[u8]| compress(&[[&bytes, end].concat()]);
    add(
        "tar-no-end",
        "The tar stream just stops.",
        stream(&[]),
        &["ends where the end of the tar stream should follow"],
    )?;
    add(
        "tar-half-an-end",
        "The tar stream ends in one empty block.",
        stream(&END[..512]),
        &["ends where the end of the tar stream should follow"],
    )?;
    let trailing = ["data after the end of the tar stream"];
    add(
        "tar-data-after-end",
        "Data after the end of the tar stream.",
        stream(&[&END[..], b"hidden"].concat()),
        &trailing,
    )?;
    add(
        "tar-data-in-end",
        "Data in the second block of the end.",
        stream(&[&END[..512], &[b'x'; 512]].concat()),
        &trailing,
    )?;
    add("tar-more-zeros", "A tape's worth of zeros after the end.", stream(&[0; 10 * 1024]), &trailing)?;
    add(
        "tar-garbage-for-end",
        "Something that is no header where the end should be.",
        stream(&[b'x'; 1024]),
        &trailing,
    )?;
    let second = [&END[..], &file("evil").bytes(), &END].concat();
    add(
        "tar-two-streams",
        "A second tar stream follows, which `tar --ignore-zeros` reads.",
        stream(&second),
        &trailing,
    )?;
    add(
        "tar-two-streams-in-two-members",
        "A second tar stream follows in a gzip member of its own.",
        compress(&[[&bytes[..], &END].concat(), [&file("evil").bytes()[..], &END].concat()]),
        &trailing,
    )?;
    Ok(cases)
}
