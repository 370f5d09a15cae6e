//! Removing a tree that somebody made to be hard to remove: without permissions, or deeper than there are file descriptors and
//! stack.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, fchmod, openat, renameat, unlinkat};

/// Removes a directory with all that is in it. One level at a time: what is in a directory below is moved up beside it, so that
/// two directories are open at most, however deep it goes.
///
/// # Errors
/// Something cannot be removed, or there is no such directory.
pub(super) fn remove(tree: &Path) -> io::Result<()> {
    // Owners may remove what they own, once they may write the directory.
    let metadata = fs::symlink_metadata(tree)?;
    if !metadata.is_dir() {
        return fs::remove_file(tree);
    }
    // Not through a link: somebody may just have put one there.
    let directory = open(rustix::fs::CWD, tree.as_os_str().as_encoded_bytes())?;
    let mut number = 0_u64;
    loop {
        let mut is_empty = true;
        for (name, kind) in entries(&directory)? {
            is_empty = false;
            if kind != FileType::Directory {
                unlinkat(&directory, &name[..], AtFlags::empty())?;
                continue;
            }
            match unlinkat(&directory, &name[..], AtFlags::REMOVEDIR) {
                Ok(()) => continue,
                Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST | rustix::io::Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
            let below = open(&directory, &name)?;
            for (name, kind) in entries(&below)? {
                if kind == FileType::Directory {
                    // To move a directory, its own permissions have to allow to write it: its `..` changes.
                    drop(open(&below, &name)?);
                    renameat(&below, &name[..], &directory, unused(&directory, &mut number).as_bytes())?;
                } else {
                    unlinkat(&below, &name[..], AtFlags::empty())?;
                }
            }
            unlinkat(&directory, &name[..], AtFlags::REMOVEDIR)?;
        }
        if is_empty {
            break;
        }
    }
    fs::remove_dir(tree)
}

/// A directory, which its owner may change from now on.
fn open(at: impl std::os::fd::AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match openat(&at, name, flags | OFlags::RDONLY, Mode::empty()) {
        // Its owner may not read it: `chmod` by name it is then. A link in its place leads to nowhere that matters, as what is
        // opened afterwards is no link.
        Err(rustix::io::Errno::ACCESS) => {
            rustix::fs::chmodat(&at, name, Mode::RWXU, AtFlags::empty())?;
            openat(&at, name, flags | OFlags::RDONLY, Mode::empty())?
        }
        opened => opened?,
    };
    fchmod(&opened, Mode::RWXU)?;
    Ok(File::from(opened))
}

/// What is in a directory now.
fn entries(directory: &File) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut found = Vec::new();
    let again = openat(directory, ".", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut raw = RawDir::new(again, buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            found.push((name.to_vec(), kind));
        }
    }
    Ok(found)
}

/// A name that nothing has there.
fn unused(directory: &File, number: &mut u64) -> String {
    loop {
        *number += 1;
        let name = format!(".moved-{number}");
        if rustix::fs::statat(directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_is_hard_to_remove_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, kept) = (directory.path().join("tree"), directory.path().join("kept"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        fs::write(tree.join(".moved-1"), "x").unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        symlink(&kept, tree.join("a/b/link")).unwrap();
        for closed in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        assert_eq!(remove(&tree).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_tree_is_removed_however_deep_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = File::open(&tree).unwrap();
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = File::from(openat(&at, "d", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap());
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}
