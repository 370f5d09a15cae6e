//! End-to-end encryption: what a run stores outside this host is an `age` file that only the pool's key opens.
//!
//! The files are ordinary ones with one `ssh-rsa` recipient: `age -d -i spacelift.key` reads them. Both directions stream, with
//! some 64 KiB in memory.

use std::fmt;
use std::io::{self, Read, Write};

use age::ssh::{Identity, Recipient};
use age::stream::{StreamReader, StreamWriter};
use launcher_wire::key::PoolKey;
use rsa::RsaPublicKey;
use rsa::traits::PublicKeyParts as _;

/// Why something cannot be encrypted or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Encrypted to other keys.
    #[error(
        "it was encrypted to another key than this pool's. The pool's key was replaced since, or it belongs to another pool: start the run anew"
    )]
    OtherKey,
    /// Not an `age` file, or damaged in its first part.
    #[error("it is not an `age` file, or its beginning is damaged: {reason}")]
    Damaged {
        /// From the library.
        reason: String,
    },
    /// Reading or writing failed, also because an authenticated part was changed or is missing.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The key itself.
    #[error("the pool's key cannot be used for encryption: {reason}")]
    Key {
        /// From the library.
        reason: String,
    },
}

/// Encrypts to a pool.
pub struct Sealer<W: Write> {
    inner: StreamWriter<W>,
}

impl<W: Write> fmt::Debug for Sealer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl<W: Write> Sealer<W> {
    /// Begins a file: its header is written at once.
    ///
    /// # Errors
    /// `output` cannot be written.
    pub fn new(output: W, key: &RsaPublicKey) -> Result<Self, Error> {
        let recipient = Recipient::SshRsa(ssh_wire(key), key.clone());
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            .map_err(|error| Error::Key { reason: error.to_string() })?;
        Ok(Self { inner: encryptor.wrap_output(output)? })
    }

    /// Ends the file. Without it, whoever opens the file gets an error: it counts as cut off.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<W, Error> {
        Ok(self.inner.finish()?)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Gives what is in an encrypted file.
pub struct Opened<R: Read> {
    inner: StreamReader<R>,
}

impl<R: Read> fmt::Debug for Opened<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

/// Opens a file.
///
/// What was read counts only once the reader has come to its end without an error: a file that was cut off or changed gives
/// the parts before the damage, and then an error.
///
/// # Errors
/// It is not encrypted to this key, not an `age` file, or cannot be read.
pub fn open<R: Read>(input: R, key: &PoolKey) -> Result<Opened<R>, Error> {
    let identity = Identity::from_buffer(key.pkcs1_pem().as_bytes(), None)
        .map_err(|error| Error::Key { reason: error.to_string() })?;
    let decryptor = age::Decryptor::new(input).map_err(error)?;
    let inner = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(error)?;
    Ok(Opened { inner })
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "an encrypted file is cut off"),
            io::ErrorKind::InvalidData => io::Error::new(error.kind(), "an encrypted file is damaged or was changed"),
            _ => error,
        })
    }
}

fn error(error: age::DecryptError) -> Error {
    match error {
        age::DecryptError::NoMatchingKeys => Error::OtherKey,
        age::DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => Error::Io(error),
        error => Error::Damaged { reason: error.to_string() },
    }
}

/// A public key as SSH has it (RFC 4253, section 6.6): three strings with their lengths before them.
fn ssh_wire(key: &RsaPublicKey) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut string = |parts: [&[u8]; 2]| {
        let length = u32::try_from(parts[0].len() + parts[1].len()).expect("a key has far less than 4 GiB");
        wire.extend(length.to_be_bytes());
        wire.extend(parts.concat());
    };
    string([b"ssh-rsa", b""]);
    for number in [key.e(), key.n()] {
        let bytes = number.to_bytes_be();
        // Numbers are signed there: a first bit of one would make it negative.
        let sign: &[u8] = if bytes[0] & 0x80 == 0 { b"" } else { b"\0" };
        string([sign, &bytes]);
    }
    wire
}
