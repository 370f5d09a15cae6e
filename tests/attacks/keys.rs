//! OpenPGP keys, certificates and signatures, good ones and ones that are wrong in a single respect.
//!
//! Keys are made in memory and forgotten: only certificates are kept, so nobody can sign anything with them later.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sequoia_openpgp as openpgp;

use openpgp::armor;
use openpgp::cert::Cert;
use openpgp::crypto::{KeyPair, Signer as _};
use openpgp::packet::key::{Key4, PrimaryRole, SecretParts, SubordinateRole, UnspecifiedRole};
use openpgp::packet::prelude::SignatureBuilder;
use openpgp::packet::{Key, Packet, UserID};
use openpgp::parse::Parse as _;
use openpgp::serialize::{MarshalInto as _, Serialize as _};
use openpgp::types::{Curve, HashAlgorithm, KeyFlags, ReasonForRevocation, SignatureType};

pub(crate) const DAY: u64 = 86_400;
/// When keys are made unless a case says otherwise: 2024-01-01.
pub(crate) const MADE: u64 = 1_704_067_200;
/// When releases are signed unless a case says otherwise: 2024-06-01.
pub(crate) const SIGNED: u64 = MADE + 152 * DAY;
/// A time that has not come, nor will while this product lives: 2099-01-01.
pub(crate) const FAR_FUTURE: u64 = 4_070_908_800;

pub(crate) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A statement of the primary key about itself or about a subkey.
#[derive(Clone)]
pub(crate) struct Binding {
    /// When it was made.
    pub(crate) at: u64,
    /// For how many seconds after its own creation the key is valid; for ever by default.
    pub(crate) valid_for: Option<u64>,
    pub(crate) hash: HashAlgorithm,
    pub(crate) flags: KeyFlags,
}

impl Binding {
    pub(crate) fn new(flags: KeyFlags) -> Self {
        Self { at: MADE, valid_for: None, hash: HashAlgorithm::SHA512, flags }
    }

    fn builder(&self, kind: SignatureType) -> anyhow::Result<SignatureBuilder> {
        SignatureBuilder::new(kind)
            .set_hash_algo(self.hash)
            .set_signature_creation_time(time(self.at))?
            .set_key_flags(self.flags.clone())?
            .set_key_validity_period(self.valid_for.map(Duration::from_secs))
    }
}

pub(crate) fn certifies() -> KeyFlags {
    KeyFlags::empty().set_certification()
}

pub(crate) fn signs() -> KeyFlags {
    KeyFlags::empty().set_signing()
}

/// What kind of key.
#[derive(Clone, Copy)]
pub(crate) enum Algorithm {
    Ed25519,
    Rsa(usize),
}

impl Algorithm {
    fn generate(self, made: u64) -> anyhow::Result<Key<SecretParts, UnspecifiedRole>> {
        let mut key: Key<SecretParts, UnspecifiedRole> = match self {
            Self::Ed25519 => Key4::generate_ecc(true, Curve::Ed25519)?.into(),
            Self::Rsa(bits) => Key4::generate_rsa(bits)?.into(),
        };
        key.set_creation_time(time(made))?;
        Ok(key)
    }
}

/// A certificate with its secrets.
pub(crate) struct Signer {
    pub(crate) cert: Cert,
    pub(crate) primary: KeyPair,
    pub(crate) subkeys: Vec<KeyPair>,
}

impl Signer {
    /// As `keygen` makes one: a primary key that only certifies, one subkey that signs, neither expires.
    pub(crate) fn new(user_id: &str) -> anyhow::Result<Self> {
        Self::primary(user_id, Algorithm::Ed25519, MADE, &[Binding::new(certifies())])?
            .subkey(MADE, &[Binding::new(signs())])
    }

    /// Only a primary key.
    pub(crate) fn primary(
        user_id: &str,
        algorithm: Algorithm,
        made: u64,
        bindings: &[Binding],
    ) -> anyhow::Result<Self> {
        let key: Key<SecretParts, PrimaryRole> = algorithm.generate(made)?.role_into_primary();
        let mut pair = key.clone().role_into_unspecified().into_keypair()?;
        let user_id = UserID::from(user_id);
        let mut packets = vec![Packet::from(key.clone()), user_id.clone().into()];
        for binding in bindings {
            let builder = binding.builder(SignatureType::PositiveCertification)?;
            packets.push(builder.sign_userid_binding(&mut pair, None, &user_id)?.into());
        }
        Ok(Self { cert: Cert::from_packets(packets.into_iter())?, primary: pair, subkeys: Vec::new() })
    }

    /// Adds a subkey that this certificate's primary key has vouched for.
    pub(crate) fn subkey(self, made: u64, bindings: &[Binding]) -> anyhow::Result<Self> {
        let pair = Algorithm::Ed25519.generate(made)?.into_keypair()?;
        self.adopt(pair, bindings, BackSignature::Present)
    }

    /// Adds a subkey that is there already, in another certificate perhaps.
    pub(crate) fn adopt(
        mut self,
        mut pair: KeyPair,
        bindings: &[Binding],
        back_signature: BackSignature,
    ) -> anyhow::Result<Self> {
        let key: Key<_, SubordinateRole> = pair.public().clone().role_into_subordinate();
        let mut packets: Vec<Packet> = vec![key.clone().into()];
        for binding in bindings {
            let mut builder = binding.builder(SignatureType::SubkeyBinding)?;
            if back_signature == BackSignature::Present && binding.flags.for_signing() {
                let back = SignatureBuilder::new(SignatureType::PrimaryKeyBinding)
                    .set_hash_algo(binding.hash)
                    .set_signature_creation_time(time(binding.at))?
                    .sign_primary_key_binding(&mut pair, self.cert.primary_key().key(), &key)?;
                builder = builder.set_embedded_signature(back)?;
            }
            packets.push(builder.sign_subkey_binding(&mut self.primary, None, &key)?.into());
        }
        self.cert = self.cert.insert_packets(packets)?.0;
        self.subkeys.push(pair);
        Ok(self)
    }

    /// Revokes the whole certificate.
    pub(crate) fn revoked(mut self, at: u64, reason: ReasonForRevocation, hash: HashAlgorithm) -> anyhow::Result<Self> {
        let revocation = self.revocation(at, reason, hash)?;
        self.cert = self.cert.insert_packets(revocation)?.0;
        Ok(self)
    }

    /// A revocation of the whole certificate, not yet part of it.
    pub(crate) fn revocation(
        &mut self,
        at: u64,
        reason: ReasonForRevocation,
        hash: HashAlgorithm,
    ) -> anyhow::Result<Packet> {
        let builder = SignatureBuilder::new(SignatureType::KeyRevocation)
            .set_hash_algo(hash)
            .set_signature_creation_time(time(at))?
            .set_reason_for_revocation(reason, b"see \x1b[31mthe notice\x1b[0m")?;
        Ok(builder.sign_direct_key(&mut self.primary, None)?.into())
    }

    /// Revokes one subkey.
    pub(crate) fn subkey_revoked(mut self, index: usize, at: u64, reason: ReasonForRevocation) -> anyhow::Result<Self> {
        let key: Key<_, SubordinateRole> = self.subkeys[index].public().clone().role_into_subordinate();
        let revocation = SignatureBuilder::new(SignatureType::SubkeyRevocation)
            .set_hash_algo(HashAlgorithm::SHA512)
            .set_signature_creation_time(time(at))?
            .set_reason_for_revocation(reason, b"")?
            .sign_subkey_binding(&mut self.primary, None, &key)?;
        self.cert = self.cert.insert_packets([Packet::from(key), revocation.into()])?.0;
        Ok(self)
    }

    pub(crate) fn fingerprint(&self) -> String {
        self.cert.fingerprint().to_hex()
    }

    /// The key that signs releases: the newest subkey, or the primary key if there is none.
    pub(crate) fn key(&self) -> &KeyPair {
        self.subkeys.last().unwrap_or(&self.primary)
    }

    /// A good detached signature.
    pub(crate) fn sign(&self, data: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.sign_with(data, Ok)
    }

    /// A detached signature that is good but for `change`.
    pub(crate) fn sign_with(
        &self,
        data: &[u8],
        change: impl FnOnce(SignatureBuilder) -> anyhow::Result<SignatureBuilder>,
    ) -> anyhow::Result<Vec<u8>> {
        sign_with(self.key(), data, change)
    }

    /// The public certificate, armored.
    pub(crate) fn certificate(&self) -> anyhow::Result<Vec<u8>> {
        certificate(&self.cert)
    }

    /// The certificate with its secrets, binary.
    pub(crate) fn secret(&self) -> anyhow::Result<Vec<u8>> {
        let secrets = [&self.primary].into_iter().chain(&self.subkeys).map(|pair| {
            let key: Key<SecretParts, UnspecifiedRole> = pair.clone().into();
            key
        });
        let mut packets = Vec::new();
        for key in secrets {
            packets.push(if key.fingerprint() == self.cert.fingerprint() {
                Packet::from(key.role_into_primary())
            } else {
                Packet::from(key.role_into_subordinate())
            });
        }
        self.cert.clone().insert_packets(packets)?.0.as_tsk().to_vec()
    }
}

/// Whether a signing subkey says that it wants to be part of the certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackSignature {
    Present,
    Missing,
}

/// A detached signature by any key.
pub(crate) fn sign_with(
    pair: &KeyPair,
    data: &[u8],
    change: impl FnOnce(SignatureBuilder) -> anyhow::Result<SignatureBuilder>,
) -> anyhow::Result<Vec<u8>> {
    let builder = SignatureBuilder::new(SignatureType::Binary)
        .set_hash_algo(HashAlgorithm::SHA512)
        .set_signature_creation_time(time(SIGNED))?
        .set_issuer_fingerprint(pair.public().fingerprint())?
        .set_issuer(pair.public().keyid())?;
    Packet::from(change(builder)?.sign_message(&mut pair.clone(), data)?).to_vec()
}

/// Parts of a signature packet that no library lets one leave out.
pub(crate) enum RawSignature {
    /// Version 3, as programs wrote it before 1998.
    Version3,
    /// Version 4 with the time of its making as the only subpacket: it does not say who made it.
    Anonymous,
    /// Of a version that does not exist, by this very key.
    FutureVersion,
}

impl RawSignature {
    /// Signs as `pair`, with SHA-512.
    pub(crate) fn sign(&self, pair: &KeyPair, data: &[u8]) -> anyhow::Result<Vec<u8>> {
        const SHA512: u8 = 10;
        let algorithm: u8 = pair.public().pk_algo().into();
        let seconds = u32::try_from(SIGNED)?.to_be_bytes();
        let (head, trailer) = match self {
            // Version 3 hashes the type and the time, and nothing else after the data.
            Self::Version3 => {
                let keyid = pair.public().keyid();
                let mut head = vec![3, 5, 0];
                head.extend(seconds);
                head.extend(keyid.as_bytes());
                head.extend([algorithm, SHA512]);
                (head, [&[0][..], &seconds].concat())
            }
            Self::Anonymous | Self::FutureVersion => {
                let version = if matches!(self, Self::Anonymous) { 4 } else { 9 };
                let mut hashed = vec![version, 0, algorithm, SHA512, 0, 6, 5, 2];
                hashed.extend(seconds);
                let length = u32::try_from(hashed.len())?.to_be_bytes();
                let trailer = [&hashed[..], &[version, 0xff], &length].concat();
                ([&hashed[..], &[0, 0]].concat(), trailer)
            }
        };
        let mut hash = HashAlgorithm::SHA512.context()?.for_digest();
        hash.update(data);
        hash.update(&trailer);
        let digest = hash.into_digest()?;
        let numbers = pair.clone().sign(HashAlgorithm::SHA512, &digest)?.to_vec()?;
        let body = [&head[..], &digest[..2], &numbers].concat();
        Ok(packet(2, &body))
    }
}

/// An OpenPGP packet in the current format.
pub(crate) fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0xc0 | tag, 0xff][..], &length, body].concat()
}

/// Any certificate, armored.
pub(crate) fn certificate(cert: &Cert) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    cert.clone().strip_secret_key_material().serialize(&mut bytes)?;
    armored(&bytes, armor::Kind::PublicKey)
}

pub(crate) fn armored(bytes: &[u8], kind: armor::Kind) -> anyhow::Result<Vec<u8>> {
    let mut writer = armor::Writer::new(Vec::new(), kind)?;
    std::io::Write::write_all(&mut writer, bytes)?;
    Ok(writer.finalize()?)
}

/// The packets of a certificate with one more after them, which need not belong there.
pub(crate) fn with_packet(cert: &Cert, extra: &Packet) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    cert.clone().strip_secret_key_material().serialize(&mut bytes)?;
    extra.serialize(&mut bytes)?;
    // It has to be readable as a certificate at least.
    Cert::from_bytes(&bytes)?;
    armored(&bytes, armor::Kind::PublicKey)
}
