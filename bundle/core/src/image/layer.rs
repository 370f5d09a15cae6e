//! The file system of the launcher's image, in two layers.
//!
//! The base is the same in every release until the certificates change; it carries no date. The launcher is on top. So
//! a host that upgrades fetches one layer, and a registry stores the base once.

use std::io;

use libdeflater::{CompressionLvl, Compressor};

use super::tarball::{Attributes, Writer};
use super::{BlobDigest, Error};
use crate::digest::Digest;
use crate::source;

/// The documented user and group of the launcher.
pub(super) const USER: u64 = 1983;
/// Home and scratch directory of that user.
pub(super) const HOME: &str = "/opt/spacelift";
/// The launcher's path in the image.
pub(super) const LAUNCHER: &str = "/usr/bin/spacelift-launcher";
/// Where OpenSSL, Go and rustls-native-certs look first on Debian, and what SSL_CERT_FILE says.
pub(super) const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// libdeflate's level. Measured on a stripped binary of 1.8 MB: level 10 is 2.2 % smaller than level 9 and takes 0.26 s
/// instead of 0.10 s; levels 11 and 12 take longer and gain nothing. Every worker host that runs the image fetches it.
const LEVEL: i32 = 10;

const PASSWD: &str = "\
root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
spacelift:x:1983:1983:spacelift:/opt/spacelift:/sbin/nologin
";
const GROUP: &str = "\
root:x:0:
nobody:x:65534:
spacelift:x:1983:
";

/// A compressed layer.
pub(super) struct Layer {
    /// The gzip file.
    pub(super) bytes: Vec<u8>,
    /// Digest of the gzip file.
    pub(super) digest: BlobDigest,
    /// Digest of the tar in it.
    pub(super) diff_id: BlobDigest,
}

impl Layer {
    fn new(tar: &[u8]) -> Result<Self, Error> {
        let bytes = gzip(tar).map_err(Error::Write)?;
        Ok(Self { digest: BlobDigest(Digest::of(&bytes)), diff_id: BlobDigest(Digest::of(tar)), bytes })
    }
}

/// Users, certificates, home and scratch directories.
pub(super) fn base() -> Result<Layer, Error> {
    Layer::new(&base_tar().map_err(Error::Write)?)
}

fn base_tar() -> io::Result<Vec<u8>> {
    // Not the source date: it would give every release a base of its own.
    let root = |mode| Attributes { mode, owner: 0, modified: 0 };
    let mut tar = Writer::new(Vec::new());
    tar.directory("etc", root(0o755))?;
    tar.file("etc/group", root(0o644), GROUP.as_bytes())?;
    tar.file("etc/passwd", root(0o644), PASSWD.as_bytes())?;
    tar.directory("etc/ssl", root(0o755))?;
    tar.directory("etc/ssl/certs", root(0o755))?;
    tar.file(in_tar(CERTIFICATES), root(0o644), certificates().as_bytes())?;
    tar.directory("opt", root(0o755))?;
    tar.directory(in_tar(HOME), Attributes { mode: 0o755, owner: USER, modified: 0 })?;
    tar.directory("root", root(0o700))?;
    tar.directory("tmp", root(0o1777))?;
    tar.directory("usr", root(0o755))?;
    tar.directory("usr/bin", root(0o755))?;
    tar.finish()
}

/// The launcher and nothing else.
pub(super) fn launcher(binary: &[u8], date: source::Date) -> Result<Layer, Error> {
    let attributes = Attributes { mode: 0o755, owner: 0, modified: date.unix() };
    let tar = || {
        let mut tar = Writer::new(Vec::with_capacity(binary.len() + 4096));
        tar.file(in_tar(LAUNCHER), attributes, binary)?;
        tar.finish()
    };
    Layer::new(&tar().map_err(Error::Write)?)
}

fn in_tar(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}

/// Mozilla's root certificates as one PEM file, in the order of the crate, which is fixed by its version.
fn certificates() -> String {
    let mut pem = String::from("# Mozilla's root certificates, from the crate webpki-root-certs.\n");
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        // RFC 7468: lines of 64 characters.
        for line in certificate.chunks(48) {
            base64(line, &mut pem);
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

fn base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            if position <= chunk.len() {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * position) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
}

/// One gzip member. The header has no time and no operating system, and libdeflate's output depends on nothing but its
/// version, which Cargo.toml pins.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let level = CompressionLvl::new(LEVEL).map_err(|_| io::Error::other("libdeflate lacks the compression level"))?;
    let mut compressor = Compressor::new(level);
    let mut compressed = vec![0; compressor.gzip_compress_bound(bytes.len())];
    let length = compressor.gzip_compress(bytes, &mut compressed).map_err(io::Error::other)?;
    compressed.truncate(length);
    Ok(compressed)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unzip(bytes: &[u8]) -> Vec<u8> {
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(bytes).read_to_end(&mut tar).unwrap();
        tar
    }

    #[test]
    fn base64_is_as_in_rfc_4648() {
        for (bytes, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            let mut text = String::new();
            base64(bytes.as_bytes(), &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn every_certificate_is_in_the_file() {
        let pem = certificates();
        let count = pem.matches("-----BEGIN CERTIFICATE-----\nMII").count();
        assert_eq!(count, webpki_root_certs::TLS_SERVER_ROOT_CERTS.len());
        assert!(count > 100, "only {count} certificates");
        assert!(pem.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn layers_hold_the_documented_files_with_their_owners_and_modes() {
        let base = base().unwrap();
        let launcher = launcher(b"#!", "1700000000".parse().unwrap()).unwrap();
        let mut listing = Vec::new();
        for layer in [&base, &launcher] {
            let tar = unzip(&layer.bytes);
            assert_eq!((layer.diff_id.0, layer.digest.0), (Digest::of(&tar), Digest::of(&layer.bytes)));
            for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
                let header = entry.unwrap().header().clone();
                let path = header.path().unwrap().display().to_string();
                let (uid, gid) = (header.uid().unwrap(), header.gid().unwrap());
                listing.push(format!("{:o} {uid}:{gid} {} {path}", header.mode().unwrap(), header.mtime().unwrap()));
            }
        }
        assert_eq!(
            listing,
            [
                "755 0:0 0 etc/",
                "644 0:0 0 etc/group",
                "644 0:0 0 etc/passwd",
                "755 0:0 0 etc/ssl/",
                "755 0:0 0 etc/ssl/certs/",
                "644 0:0 0 etc/ssl/certs/ca-certificates.crt",
                "755 0:0 0 opt/",
                "755 1983:1983 0 opt/spacelift/",
                "700 0:0 0 root/",
                "1777 0:0 0 tmp/",
                "755 0:0 0 usr/",
                "755 0:0 0 usr/bin/",
                "755 0:0 1700000000 usr/bin/spacelift-launcher",
            ]
        );
    }

    #[test]
    fn gzip_headers_carry_neither_time_nor_system() {
        let bytes = gzip(b"abc").unwrap();
        assert_eq!((&bytes[..4], &bytes[4..8], bytes[9]), (&b"\x1f\x8b\x08\x00"[..], &[0; 4][..], 255));
        assert_eq!(unzip(&bytes), b"abc");
    }
}
