//! What is in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// One file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory {
        /// Its permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Its permission bits.
        mode: u32,
        /// Its length in bytes.
        size: u64,
        /// SHA-256 of its contents in hexadecimal digits.
        sha256: String,
    },
    /// Anything else.
    Other,
}

/// Everything below a directory, by path.
///
/// # Panics
/// Something cannot be read.
pub fn read(directory: &Path) -> BTreeMap<String, Node> {
    let mut nodes = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for path in entries(&next) {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let node = if metadata.is_dir() {
                left.push(path.clone());
                Node::Directory { mode }
            } else if metadata.is_file() {
                Node::File { mode, size: metadata.len(), sha256: sha256(&path) }
            } else {
                Node::Other
            };
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            nodes.insert(name, node);
        }
    }
    nodes
}

/// What is directly in a directory, hidden files included, sorted.
///
/// # Panics
/// It cannot be read.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = list.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// SHA-256 of a file in hexadecimal digits.
///
/// # Panics
/// It cannot be read.
pub fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files below a directory that hold these bytes.
///
/// # Panics
/// Something cannot be read.
pub fn find(directory: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = vec![];
    for path in entries(directory) {
        if path.is_dir() {
            found.extend(find(&path, bytes));
        } else if fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path);
        }
    }
    found
}

/// The files of this name below a directory, whatever their kind. Links are not followed.
///
/// # Panics
/// Something cannot be read.
pub fn named(directory: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for path in entries(directory) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(named(&path, name));
        } else if path.file_name().is_some_and(|file| file == name) {
            found.push(path);
        }
    }
    found
}
