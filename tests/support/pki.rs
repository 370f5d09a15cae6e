//! A certificate authority with what it issues: for servers on loopback, and for pools.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::run::{self, succeed};

/// A name that no DNS has, in every server's certificate. Whoever gets to such a server by it was led there by a proxy.
pub const UNRESOLVABLE: &str = "control-plane.test";

/// A certificate authority. Its files are in a directory that goes when this is dropped.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// `openssl` fails.
    pub fn new() -> Self {
        let authority = Self { directory: tempfile::tempdir().unwrap() };
        let mut openssl = run::tool("openssl");
        openssl.args([
            "req",
            "-x509",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=authority",
        ]);
        openssl.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        openssl.arg("-keyout").arg(authority.path("ca.key")).arg("-out").arg(authority.path("ca.crt"));
        succeed(&mut openssl);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its certificate, a file.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Its certificate, in PEM.
    ///
    /// # Panics
    /// The file is gone.
    pub fn pem(&self) -> String {
        fs::read_to_string(self.certificate()).unwrap()
    }

    /// Certificate and key of a server at `localhost`, 127.0.0.1 and [`UNRESOLVABLE`], as files.
    ///
    /// # Panics
    /// `openssl` fails.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        let names = format!("DNS:localhost,DNS:{UNRESOLVABLE},IP:127.0.0.1");
        self.issue("server", "rsa:2048", &format!("subjectAltName={names}\nextendedKeyUsage=serverAuth\n"))
    }

    /// Certificate and key of a client with this common name, as files: made as pools' keys are, in PKCS#8.
    ///
    /// # Panics
    /// `openssl` fails.
    pub fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue(name, "rsa:3072", "extendedKeyUsage=clientAuth\nkeyUsage=critical,digitalSignature\n")
    }

    fn issue(&self, name: &str, key: &str, extensions: &str) -> (PathBuf, PathBuf) {
        let at = |extension: &str| self.path(&format!("{name}.{extension}"));
        let mut openssl = run::tool("openssl");
        openssl.args(["req", "-new", "-newkey", key, "-nodes", "-subj", &format!("/CN={name}")]);
        succeed(openssl.arg("-keyout").arg(at("key")).arg("-out").arg(at("csr")));
        fs::write(at("ext"), format!("basicConstraints=CA:FALSE\n{extensions}")).unwrap();
        let mut openssl = run::tool("openssl");
        openssl.args(["x509", "-req", "-days", "30", "-CAcreateserial"]).arg("-in").arg(at("csr"));
        openssl.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.path("ca.key"));
        succeed(openssl.arg("-extfile").arg(at("ext")).arg("-out").arg(at("crt")));
        (at("crt"), at("key"))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// A file's text.
///
/// # Panics
/// It cannot be read.
pub fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
