//! End-to-end encryption: what a run stores outside this host is an `age` file that only the pool's key opens.
//!
//! The files are ordinary ones with one `ssh-rsa` recipient: `age -d -i spacelift.key` reads them. Both directions stream, with
//! some 64 KiB in memory.
//!
//! Encrypting takes only the public key, which is in the pool's certificate. So that whoever can write to the object store
//! cannot put a workspace of their own there, or that of another run, the header has one more stanza, `spacelift-pool-proof`,
//! which `age` passes over:
//!
//! ```text
//! HMAC-SHA256(key, "spacelift-pool-proof v1\0" ‖ purpose ‖ "\0" ‖ file key)
//! key = HMAC-SHA256(smaller prime ‖ larger prime, "spacelift-pool-proof v1")
//! ```
//!
//! The primes, big-endian and without leading zeros, are the same in whatever form a key is stored; its private exponent is not.
//!
//! Only a holder of the private key can make it for a file key, and only who knows the file key can make the encrypted parts.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use age::secrecy::ExposeSecret as _;
use age::ssh::{Identity, Recipient};
use age::stream::{StreamReader, StreamWriter};
use age_core::format::{FileKey, Stanza};
use hmac::{Hmac, Mac as _};
use launcher_wire::key::PoolKey;
use rsa::RsaPublicKey;
use rsa::pkcs8::der::zeroize::Zeroizing;
use rsa::traits::{PrivateKeyParts as _, PublicKeyParts as _};
use sha2::Sha256;

/// The stanza that shows that a holder of the private key made a file.
const PROOF: &str = "spacelift-pool-proof";
/// What a proof is for, in both steps.
const PROOF_VERSION: &[u8] = b"spacelift-pool-proof v1";
/// Bytes of the longest header that is read. Those that are made here have some 800, and twice that for the longest keys. The time
/// of reading one grows with the square of this.
const MAXIMUM_HEADER: u64 = 8 * 1024;

/// Why something cannot be encrypted or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Encrypted to other keys.
    #[error(
        "it was encrypted to another key than this pool's. The pool's key was replaced since, or it belongs to another pool: start the run anew"
    )]
    OtherKey,
    /// Encrypted to this pool by somebody who does not have its private key, or for another purpose.
    #[error(
        "it is encrypted to this pool, but not as {purpose} and by one of the pool's launchers: somebody else put it there. Start the run anew, and look at who may write to the object store"
    )]
    NotProven {
        /// What it was to be.
        purpose: String,
    },
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
    /// Begins a file: its header is written at once. It opens for the same `purpose` alone, such as `the workspace of run …`.
    ///
    /// # Errors
    /// `output` cannot be written.
    pub fn new(output: W, key: &PoolKey, purpose: &str) -> Result<Self, Error> {
        let public = key.public();
        let inner = Recipient::SshRsa(ssh_wire(&public), public);
        let recipient = Prover { inner, proof: Proof::new(key, purpose) };
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            .map_err(|_| Error::Key { reason: "the library refuses it as a recipient".to_owned() })?;
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

/// What shows that a file was made with the private key, and what for.
struct Proof(Hmac<Sha256>);

impl Proof {
    fn new(key: &PoolKey, purpose: &str) -> Self {
        let mac = |key: &[u8]| Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        let mut primes: Vec<_> = key.rsa().primes().iter().map(|prime| Zeroizing::new(prime.to_bytes_be())).collect();
        primes.sort_by_key(|prime| (prime.len(), prime.to_vec()));
        let secret = Zeroizing::new(primes.iter().flat_map(|prime| prime.iter().copied()).collect::<Vec<u8>>());
        let derived = mac(&secret).chain_update(PROOF_VERSION).finalize().into_bytes();
        Self(mac(&derived).chain_update(PROOF_VERSION).chain_update(b"\0").chain_update(purpose).chain_update(b"\0"))
    }

    fn of(&self, key: &FileKey) -> Hmac<Sha256> {
        self.0.clone().chain_update(key.expose_secret())
    }
}

/// A recipient who gets a proof as well.
struct Prover {
    inner: Recipient,
    proof: Proof,
}

impl age::Recipient for Prover {
    fn wrap_file_key(&self, key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let (mut stanzas, labels) = self.inner.wrap_file_key(key)?;
        let body = self.proof.of(key).finalize().into_bytes().to_vec();
        stanzas.push(Stanza { tag: PROOF.to_owned(), args: vec![], body });
        Ok((stanzas, labels))
    }
}

/// An identity that asks for a proof as well.
struct Verifier {
    inner: Identity,
    proof: Proof,
    is_unproven: Cell<bool>,
}

impl age::Identity for Verifier {
    fn unwrap_stanza(&self, _: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        // Key and proof are in two of them.
        None
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, age::DecryptError>> {
        let key = match self.inner.unwrap_stanzas(stanzas)? {
            Ok(key) => key,
            Err(error) => return Some(Err(error)),
        };
        let mut proofs = stanzas.iter().filter(|stanza| stanza.tag == PROOF);
        if proofs.any(|stanza| self.proof.of(&key).verify_slice(&stanza.body).is_ok()) {
            return Some(Ok(key));
        }
        self.is_unproven.set(true);
        Some(Err(age::DecryptError::DecryptionFailed))
    }
}

/// Gives up after some bytes, until it is told that the header is over: the library reads on for as long as there is one.
struct HeaderLimit<R> {
    inner: R,
    left: Arc<AtomicU64>,
}

impl<R: Read> Read for HeaderLimit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == u64::MAX {
            return self.inner.read(buffer);
        }
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..length])?;
        self.left.store(left - count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Gives what is in an encrypted file.
pub struct Opened<R: Read> {
    inner: StreamReader<HeaderLimit<R>>,
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
/// It is not encrypted to this key, not by a holder of this key, not for this purpose, not an `age` file, or cannot be read.
pub fn open<R: Read>(input: R, key: &PoolKey, purpose: &str) -> Result<Opened<R>, Error> {
    let inner = Identity::from_buffer(key.pkcs1_pem().as_bytes(), None)
        .map_err(|error| Error::Key { reason: error.to_string() })?;
    let left = Arc::new(AtomicU64::new(MAXIMUM_HEADER));
    let decryptor = age::Decryptor::new(HeaderLimit { inner: input, left: Arc::clone(&left) }).map_err(error)?;
    left.store(u64::MAX, Ordering::Relaxed);
    let identity = Verifier { inner, proof: Proof::new(key, purpose), is_unproven: Cell::new(false) };
    match decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)) {
        Ok(inner) => Ok(Opened { inner }),
        Err(_) if identity.is_unproven.get() => Err(Error::NotProven { purpose: purpose.to_owned() }),
        Err(failed) => Err(error(failed)),
    }
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

/// In words of our own: the library's messages come with a translator of some 100 kB, and from a macro that puts their parts into
/// the program in another order at each build.
fn error(error: age::DecryptError) -> Error {
    let reason = match error {
        age::DecryptError::NoMatchingKeys => return Error::OtherKey,
        age::DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Error::Io(error),
        age::DecryptError::Io(_) => "it is cut off",
        age::DecryptError::InvalidHeader | age::DecryptError::UnknownFormat => "there is no header that could be read",
        age::DecryptError::InvalidMac => "its header was changed",
        _ => "its key cannot be read",
    };
    Error::Damaged { reason: reason.to_owned() }
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
