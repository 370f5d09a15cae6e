//! Names that a release keeps for itself, whatever is in it.

use crate::sums;

/// The launchers: path in a release, name in a downloads bucket.
pub(crate) const LAUNCHERS: [(&str, &str); 2] = [
    ("bin/spacelift-launcher", "spacelift-launcher-x86_64"),
    ("bin/spacelift-launcher-aarch64", "spacelift-launcher-aarch64"),
];

/// Whether `path` is the name of the signature over a launcher's sums, whatever launchers a release has: no other file may be
/// called so.
pub(crate) fn is_signature_name(path: &str) -> bool {
    let name = path.strip_suffix(sums::SIGNATURE_SUFFIX).and_then(|path| path.strip_suffix(sums::SUFFIX));
    name.is_some_and(|name| LAUNCHERS.iter().any(|(_, launcher)| *launcher == name))
}

#[cfg(test)]
mod tests {
    use super::is_signature_name;

    #[test]
    fn only_launchers_have_signatures_of_their_own() {
        assert!(is_signature_name("spacelift-launcher-x86_64_SHA256SUMS.sig"));
        assert!(!is_signature_name("spacelift-launcher_SHA256SUMS.sig"));
    }
}
