//! What containers get: names of networks and runtimes, images, mounts.

use std::path::{Component, Path, PathBuf};

use super::reader::Reader;
use super::{MOUNTS, Scope};
use crate::registry_credentials::Reference;
use spacelift_worker::protocol;

/// What the worker and a shell need by themselves, with some room.
const MINIMUM_MEMORY: u64 = 32 << 20;

/// A file or directory of the host that containers see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host, as the Docker engine sees it.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// In which runs.
    pub scope: Scope,
}

/// A name as the engine gives them to networks and runtimes. Nothing else, as `container:…` would put a run into somebody
/// else's network.
pub(super) fn name(reader: &mut Reader, variable: &str) -> Option<String> {
    let name = reader.text(variable)?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c));
    if !is_name {
        reader.problem(variable, "it is not a name. Names have letters, digits and the characters _ . - /");
        return None;
    }
    Some(name)
}

/// Bytes of memory, as `docker run --memory` takes them: digits, and perhaps one of `b`, `k`, `m` and `g`.
pub(super) fn memory(reader: &mut Reader, variable: &str) -> Option<u64> {
    let text = reader.text(variable)?.to_ascii_lowercase();
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'b')) => (&text[..at], 1),
        Some((at, 'k')) => (&text[..at], 1 << 10),
        Some((at, 'm')) => (&text[..at], 1 << 20),
        Some((at, 'g')) => (&text[..at], 1 << 30),
        _ => (&text[..], 1),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = digits.parse::<u64>().ok().filter(|_| is_number).and_then(|number| number.checked_mul(unit));
    match bytes {
        Some(bytes) if bytes >= MINIMUM_MEMORY => return Some(bytes),
        Some(_) => reader.problem(variable, "it is less than 32m, in which no tool runs"),
        None => reader
            .problem(variable, "it is not an amount of memory. Write a whole number with a unit, such as 512m or 4g"),
    }
    None
}

pub(super) fn image(reader: &mut Reader, variable: &str) -> Option<String> {
    let image = reader.text(variable)?;
    match Reference::parse(&image) {
        Ok(_) => Some(image),
        Err(error) => {
            reader.problem(variable, error);
            None
        }
    }
}

pub(super) fn mounts(reader: &mut Reader) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for (variable, scope) in MOUNTS {
        for (index, item) in reader.list(variable).into_iter().enumerate() {
            match mount(&item, scope) {
                Ok(mount) => {
                    let clash = mounts.iter().find(|other| other.target == mount.target && other.scope.overlaps(scope));
                    if clash.is_some_and(|other| other.source != mount.source) {
                        let target = mount.target.display();
                        reader.problem(
                            variable,
                            format_args!(
                                "something else is mounted at `{target}` already. Choose another place in the container"
                            ),
                        );
                    } else if clash.is_none() {
                        mounts.push(mount);
                    }
                }
                // What is no path may be a secret that ended up here.
                Err(reason) if item.starts_with('/') => reader.problem(variable, format_args!("`{item}` {reason}")),
                Err(reason) => reader.problem(variable, format_args!("entry {} {reason}", index + 1)),
            }
        }
    }
    mounts
}

fn mount(item: &str, scope: Scope) -> Result<Mount, &'static str> {
    let mut parts = item.split(':');
    let (Some(source), Some(target), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err("is not of the form /host/path:/container/path");
    };
    let (source, target) = (Path::new(source), Path::new(target));
    if !source.is_absolute() || !target.is_absolute() {
        return Err("has a path that does not begin with `/`");
    }
    if [source, target].iter().any(|path| path.components().any(|part| part == Component::ParentDir)) {
        return Err("has `..` in a path; write the path that is meant");
    }
    // Components, so that `//` and `/.` make no difference.
    let target: PathBuf = target.components().collect();
    let own = Path::new(protocol::WORKER).parent().unwrap_or(Path::new("/"));
    let hides = |path: &Path| path.starts_with(&target);
    if hides(own) || hides(Path::new(protocol::WORKSPACE)) {
        return Err("would hide the worker or the workspace in the container; choose another target");
    }
    if target.starts_with(own) {
        return Err("has a target among the worker's own files; choose another one");
    }
    // It would be packed with the workspace, and cleared with it.
    if target.starts_with(protocol::WORKSPACE) {
        return Err("has a target inside the workspace, which is packed and cleared; choose another one");
    }
    Ok(Mount { source: source.components().collect(), target, scope })
}
