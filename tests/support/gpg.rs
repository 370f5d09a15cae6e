//! GnuPG with a home directory of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::run::{self, Finished, finish, succeed};

/// A private home with a private gpg-agent, which ends when this is dropped.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
}

impl Home {
    /// An empty home.
    ///
    /// # Panics
    /// The directory cannot be made.
    pub fn new() -> Self {
        // The agent's sockets are in it, and a socket's path has at most 108 bytes.
        let private = fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix("gpg").permissions(private).tempdir_in("/tmp").unwrap();
        Self { directory }
    }

    /// The directory, for `GNUPGHOME`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `gpg` in this home.
    pub fn gpg(&self) -> Command {
        let mut gpg = run::tool("gpg");
        gpg.args(["--batch", "--no-tty"]).env("GNUPGHOME", self.path());
        gpg
    }

    /// Imports keys or certificates.
    ///
    /// # Panics
    /// gpg refuses them.
    pub fn import(&self, file: &Path) {
        finish(self.gpg().arg("--import").arg(file)).expect(0);
    }

    /// Certificates in binary form in one file, as `gpgv` wants them.
    ///
    /// # Panics
    /// gpg refuses one.
    pub fn keyring(&self, certificates: &[&Path]) -> PathBuf {
        let (keyring, part) = (self.path().join("keyring.gpg"), self.path().join("part.gpg"));
        let mut bytes = Vec::new();
        for certificate in certificates {
            succeed(self.gpg().args(["--yes", "--dearmor", "--output"]).arg(&part).arg(certificate));
            bytes.extend(fs::read(&part).unwrap());
        }
        fs::write(&keyring, bytes).unwrap();
        keyring
    }

    /// What `gpg --verify` with both arguments says, its status lines on standard output.
    pub fn verify(&self, signature: &Path, data: &Path) -> Finished {
        finish(self.gpg().args(["--status-fd", "1", "--verify"]).arg(signature).arg(data))
    }

    /// Makes the agent ask a program that answers with `passphrase`, in place of a person at a terminal.
    ///
    /// # Panics
    /// The files cannot be written.
    pub fn answer_with(&self, passphrase: &str) {
        let program = self.path().join("pinentry");
        let script = format!(
            "#!/bin/sh\necho OK\nwhile read -r command rest; do\n  [ \"$command\" = GETPIN ] && echo 'D {passphrase}'\n  \
             echo OK\n  [ \"$command\" = BYE ] && exit\ndone\n"
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(self.path().join("gpg-agent.conf"), format!("pinentry-program {}\n", program.display())).unwrap();
        self.gpgconf(&["--kill", "gpg-agent"]);
    }

    fn gpgconf(&self, arguments: &[&str]) {
        // Errors are of no interest: this also runs after a test has failed.
        let _ = Command::new("gpgconf").args(arguments).env("GNUPGHOME", self.path()).output();
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.gpgconf(&["--kill", "all"]);
        // Where there is a /run/user, the sockets are there and not in the home.
        self.gpgconf(&["--remove-socketdir"]);
    }
}
