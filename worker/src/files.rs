//! Files that the control plane mounts into the workspace.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::protocol::File;

/// Only these bits of a mode mean something here.
const PERMISSIONS: u32 = 0o777;

/// Why a file was not put in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It belongs somewhere else.
    #[error(
        "the mounted file `{0}` is not inside the workspace; its path has to be relative to the workspace, without `..` and \
         without symbolic links that lead out of it"
    )]
    Outside(String),
    /// There is a directory.
    #[error("the mounted file `{0}` would replace a directory; mount it under another name")]
    Directory(String),
    /// The operating system refused.
    #[error("the mounted file `{path}` cannot be written: {source}{}", crate::shortage::advice(source))]
    Io {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Puts a file into the workspace, in the place of whatever has its name.
///
/// # Errors
/// When it would be somewhere else, or cannot be written.
pub fn mount(workspace: &Path, file: &File) -> Result<(), Error> {
    let io = |source| Error::Io { path: file.path.clone(), source };
    let outside = || Error::Outside(file.path.clone());
    let relative = relative(&file.path).ok_or_else(outside)?;
    let workspace = workspace.canonicalize().map_err(io)?;
    let path = workspace.join(relative);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(outside()) };
    // The deepest part that exists has to be inside before anything is made in it.
    let existing = parent.ancestors().find(|directory| directory.exists()).ok_or_else(outside)?;
    if !existing.canonicalize().map_err(io)?.starts_with(&workspace) {
        return Err(outside());
    }
    fs::create_dir_all(parent).map_err(io)?;
    let parent = parent.canonicalize().map_err(io)?;
    if !parent.starts_with(&workspace) {
        return Err(outside());
    }
    let path = parent.join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => return Err(Error::Directory(file.path.clone())),
        Ok(_) => fs::remove_file(&path).map_err(io)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
    new.write_all(&file.contents).map_err(io)?;
    // Not when it is made: the umask would take something away, and it has to be written even if it is read-only.
    new.set_permissions(Permissions::from_mode(file.mode & PERMISSIONS)).map_err(io)
}

/// A path that stays where it is put, with at least one component.
pub(crate) fn relative(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!clean.as_os_str().is_empty() && !clean.as_os_str().as_encoded_bytes().contains(&0)).then_some(clean)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(path: &str) -> File {
        File { path: path.into(), contents: b"new".to_vec(), mode: 0o440, secret: false }
    }

    #[test]
    fn a_file_wins_over_what_is_there() {
        let workspace = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::create_dir(workspace.path().join("source")).unwrap();
        fs::write(workspace.path().join("source/old"), "old").unwrap();
        symlink(elsewhere.path(), workspace.path().join("source/link")).unwrap();
        for path in ["source/old", "source/link", "a/b/./c"] {
            mount(workspace.path(), &file(path)).unwrap();
            let metadata = fs::symlink_metadata(workspace.path().join(path)).unwrap();
            assert!(metadata.is_file(), "{path}");
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o440);
            assert_eq!(fs::read(workspace.path().join(path)).unwrap(), b"new");
        }
        assert_eq!(fs::read(elsewhere.path()).unwrap(), b"");
        assert!(matches!(mount(workspace.path(), &file("source")), Err(Error::Directory(_))));
    }

    #[test]
    fn nothing_is_put_outside() {
        let outer = tempfile::tempdir().unwrap();
        let workspace = outer.path().join("workspace");
        fs::create_dir(&workspace).unwrap();
        symlink("..", workspace.join("up")).unwrap();
        symlink("../missing", workspace.join("dangling")).unwrap();
        for path in ["", ".", "/etc/x", "../x", "a/../../x", "up/x", "up/a/x"] {
            assert!(matches!(mount(&workspace, &file(path)), Err(Error::Outside(_))), "{path}");
        }
        assert!(mount(&workspace, &file("dangling/x")).is_err());
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
