//! Steps 1, 2 and 3: what a signature file may be, who counts, and which signatures are good enough.

use std::io::Write as _;

use integration_tests::case::Preparation;
use openpgp::armor;
use openpgp::packet::prelude::SignatureBuilder;
use openpgp::packet::signature::subpacket::NotationDataFlags;
use openpgp::serialize::SerializeInto as _;
use openpgp::serialize::stream::{LiteralWriter, Message, Signer as StreamSigner};
use openpgp::types::{HashAlgorithm, KeyFlags, ReasonForRevocation, SignatureType};
use sequoia_openpgp as openpgp;

use super::{Made, Material};
use crate::keys::{
    Algorithm, BackSignature, Binding, DAY, FAR_FUTURE, MADE, RawSignature, SIGNED, Signer, armored, certifies, packet,
    sign_with, signs, time, with_packet,
};
use crate::release::{Package, Release};

/// The signature file that goes with the usual archive.
const SIGNATURE: &str = "self-hosted-v1.2.3.tar.gz_SHA256SUMS.sig";

pub(crate) fn cases(material: &Material) -> anyhow::Result<Vec<Made>> {
    let mut cases = forms(material)?;
    cases.extend(signers(material)?);
    cases.extend(signatures(material)?);
    cases.extend(certificates(material)?);
    Ok(cases)
}

/// Step 1: only binary detached signatures.
fn forms(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, good, .. } = material;
    let mut cases = Vec::new();
    let mut add = |name, description, signature: Vec<u8>, message: &[&str]| -> anyhow::Result<()> {
        let package = good.clone().with_signature(signature);
        cases.push(Made::archive(material, name, description, &package)?.refused(11, message));
        Ok(())
    };
    let signature = good.signature.clone();
    add("signature-empty", "The signature file is empty.", Vec::new(), &["it is empty"])?;
    add(
        "signature-is-text",
        "An error page was saved as the signature.",
        b"<html><body>403 Forbidden</body></html>\n".to_vec(),
        &["its first byte cannot begin an OpenPGP packet"],
    )?;
    let garbage: Vec<u8> = (0..200_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    add("signature-is-garbage", "The signature file holds random bytes.", garbage, &["not"])?;
    add(
        "signature-armored",
        "A good signature in ASCII armor, with room around it for text that a reader takes for signed.",
        armored(&signature, armor::Kind::Signature)?,
        &["armored text", "gpg --dearmor"],
    )?;
    add(
        "signature-clear-signed",
        "A clear-signed message in place of the signature. gpg --verify with one argument exits 0 on it.",
        stream(vendor, &good.sums, Stream::Clear)?,
        &["clear-signed"],
    )?;
    add(
        "signature-inline-signed",
        "An inline-signed message in place of the signature: it is validly signed by the pinned key, but over what is \
         inside it. gpg --verify with one argument exits 0 on it.",
        stream(vendor, b"anything at all", Stream::Inline)?,
        &["not a detached signature", "inline-signed"],
    )?;
    add(
        "signature-inline-signed-sums",
        "The sums themselves as an inline-signed message.",
        stream(vendor, &good.sums, Stream::Inline)?,
        &["not a detached signature"],
    )?;
    let literal = packet(11, b"b\0\0\0\0\0anything at all");
    add(
        "signature-before-a-message",
        "A good signature followed by a literal message: as an old inline-signed message, which is over the message.",
        [signature.clone(), literal].concat(),
        &["not a detached signature", "Literal"],
    )?;
    // A stored deflate block: compression that hides what is inside from a reader that looks at the first packet only.
    let stored = [&[1, 1, signature.len() as u8, 0, !(signature.len() as u8), 0xff][..], &signature].concat();
    add(
        "signature-compressed",
        "A good signature inside a compressed-data packet.",
        packet(8, &stored),
        &["not a detached signature", "Compressed"],
    )?;
    add(
        "signature-is-a-certificate",
        "The pinned certificate itself in place of the signature.",
        vendor.cert.clone().strip_secret_key_material().to_vec()?,
        &["not a detached signature", "Public"],
    )?;
    add(
        "signature-with-trailing-garbage",
        "A good signature, then bytes that are no packet.",
        [&signature[..], b"\0\0garbage"].concat(),
        &["it cannot be read as OpenPGP signatures"],
    )?;
    add(
        "signature-with-trailing-packet",
        "A good signature, then an empty packet of a kind that programs should skip.",
        [signature.clone(), packet(10, b"PGP")].concat(),
        &["not a detached signature", "Marker"],
    )?;
    add(
        "signature-truncated",
        "The download of the signature was cut off.",
        signature[..signature.len() - 9].to_vec(),
        &["it cannot be read as OpenPGP signatures"],
    )?;
    add(
        "signature-of-unknown-version",
        "The only signature is of a version that does not exist yet.",
        RawSignature::FutureVersion.sign(vendor.key(), &good.sums)?,
        &["no signature in it that this program understands"],
    )?;
    let text = vendor.sign_with(&good.sums, |builder| Ok(builder.set_type(SignatureType::Text)))?;
    add(
        "signature-text-mode",
        "A signature over text, which does not cover line ends: the sums could be changed in them.",
        text,
        &["of type", &vendor.fingerprint()],
    )?;
    let unknown = vendor.sign_with(&good.sums, |builder| Ok(builder.set_type(SignatureType::Unknown(0x60))))?;
    add("signature-of-unknown-type", "The signature is of a type that nobody knows.", unknown, &["of type"])?;
    let many = signature.repeat(65);
    add(
        "signature-too-many",
        "Sixty-five signatures: more than any release has, and each costs arithmetic.",
        many,
        &["more than 64 signatures"],
    )?;
    cases.push(
        Made::archive(material, "signature-too-large", "A signature file of a gigabyte.", good)?
            .prepare(Preparation::Resize { path: SIGNATURE.into(), size: 1 << 30 })
            .refused(11, &["more than 65536"]),
    );
    cases.push(
        Made::archive(material, "signature-missing", "There is no signature file.", good)?
            .without_file(SIGNATURE)
            .refused(66, &["cannot read", SIGNATURE]),
    );
    Ok(cases)
}

enum Stream {
    Inline,
    Clear,
}

/// A message that carries what it is signed over.
fn stream(signer: &Signer, contents: &[u8], kind: Stream) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let signing = StreamSigner::new(Message::new(&mut bytes), signer.key().clone())?.creation_time(time(SIGNED));
    let mut message = match kind {
        Stream::Clear => signing.cleartext().build()?,
        Stream::Inline => LiteralWriter::new(signing.build()?).build()?,
    };
    message.write_all(contents)?;
    message.finalize()?;
    Ok(bytes)
}

/// Step 2: distinct pinned certificates, and nothing bad by any of them.
fn signers(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, second, stranger, good } = material;
    let case = |name, description, package: &Package| Made::archive(material, name, description, package);
    let both = [("vendor.asc", vendor), ("second.asc", second)];
    let by_stranger = Release::new().package(stranger)?;
    let fingerprints = [vendor.fingerprint(), stranger.key().public().fingerprint().to_hex()];
    let mut cases = vec![
        case("signature-by-unpinned", "Signed by a perfectly valid key that is not pinned.", &by_stranger)?
            .refused(12, &["0 of the required 1", &fingerprints[0], &fingerprints[1]]),
    ];
    let with_key = Release::new().file(&format!("keys/{}.asc", stranger.fingerprint()), stranger.certificate()?);
    cases.push(
        case(
            "signature-by-certificate-in-release",
            "Signed by a key whose certificate the release itself brings along.",
            &with_key.package(stranger)?,
        )?
        .refused(12, &["0 of the required 1"]),
    );
    let anonymous = RawSignature::Anonymous.sign(stranger.key(), &good.sums)?;
    cases.push(
        case(
            "signature-by-nobody",
            "A signature by someone unknown that does not say who made it.",
            &good.clone().with_signature(anonymous),
        )?
        .refused(12, &["0 of the required 1", "nobody that can be named"]),
    );
    let forged = sign_with(stranger.key(), &good.sums, |builder| {
        builder.set_issuer_fingerprint(vendor.key().public().fingerprint())?.set_issuer(vendor.key().public().keyid())
    })?;
    cases.push(
        case(
            "signature-claims-pinned-signer",
            "A stranger's signature that claims to be the pinned signer's.",
            &good.clone().with_signature(forged),
        )?
        .refused(12, &["BAD signature", &fingerprints[0]]),
    );
    let other = vendor.sign(b"another file that the vendor signed")?;
    cases.push(
        case(
            "signature-over-another-file",
            "The pinned signer's signature over another file.",
            &good.clone().with_signature(other),
        )?
        .refused(12, &["BAD signature", &fingerprints[0]]),
    );
    let over_archive = vendor.sign(&good.archive)?;
    cases.push(
        case(
            "signature-over-the-archive",
            "The pinned signer's signature over the archive in place of the sums.",
            &good.clone().with_signature(over_archive),
        )?
        .refused(12, &["BAD signature"]),
    );
    let older = Release::of_version("v1.2.2").package(vendor)?;
    cases.push(
        case(
            "signature-of-another-release",
            "Archive and sums are of this release, the signature is of the one before.",
            &good.clone().with_signature(older.signature),
        )?
        .refused(12, &["BAD signature"]),
    );
    let mut flipped = good.signature.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    cases.push(
        case("signature-damaged", "One bit of the signature is wrong.", &good.clone().with_signature(flipped.clone()))?
            .refused(12, &["BAD signature", &fingerprints[0]]),
    );
    let mut sums = good.sums.clone();
    sums[0] = if sums[0] == b'0' { b'1' } else { b'0' };
    cases.push(
        case(
            "sums-changed-after-signing",
            "One digit of the sums is not the one that was signed.",
            &Package { sums, ..good.clone() },
        )?
        .refused(12, &["BAD signature"]),
    );
    let replaced = Release::new().file("version", "v1.2.3\n").file("extra", "evil").package(stranger)?;
    cases.push(
        case(
            "archive-and-sums-replaced",
            "Archive and sums are replaced together; only the signature is the vendor's.",
            &replaced.with_signature(good.signature.clone()),
        )?
        .refused(12, &["BAD signature"]),
    );
    let bad_and_good = [flipped, second.sign(&good.sums)?].concat();
    cases.push(
        case(
            "signature-bad-and-good",
            "One pinned signer's signature is good, another's is bad.",
            &good.clone().with_signature(bad_and_good),
        )?
        .pinned(&both)?
        .refused(12, &["BAD signature", &fingerprints[0]]),
    );

    let twice = [good.signature.clone(), vendor.sign(&good.sums)?].concat();
    cases.push(
        case(
            "threshold-one-key-twice",
            "Two are required, and one key signed twice.",
            &good.clone().with_signature(twice),
        )?
        .pinned(&both)?
        .arguments(&["--threshold", "2"])
        .refused(12, &["1 of the required 2"]),
    );
    let two_subkeys = Signer::new("Vendor with two signing subkeys")?.subkey(MADE, &[Binding::new(signs())])?;
    let mut signature = Vec::new();
    for subkey in &two_subkeys.subkeys {
        signature.extend(sign_with(subkey, &good.sums, Ok)?);
    }
    cases.push(
        case(
            "threshold-two-subkeys-of-one-certificate",
            "Two are required, and two subkeys of one certificate signed.",
            &good.clone().with_signature(signature),
        )?
        .pinned(&[("two-subkeys.asc", &two_subkeys), ("second.asc", second)])?
        .arguments(&["--threshold", "2"])
        .refused(12, &["1 of the required 2"]),
    );
    let one = Signer::new("One who signs for two")?;
    let shared = one.key().clone();
    let other = Signer::primary("The other", Algorithm::Ed25519, MADE, &[Binding::new(certifies())])?.adopt(
        shared,
        &[Binding::new(signs())],
        BackSignature::Present,
    )?;
    cases.push(
        case(
            "threshold-two-certificates-with-one-subkey",
            "Two are required, and one key signed that is a subkey of two certificates: still one holder of one key.",
            &Release::new().package(&one)?,
        )?
        .pinned(&[("shared-subkey-1.asc", &one), ("shared-subkey-2.asc", &other)])?
        .arguments(&["--threshold", "2"])
        .refused(12, &["1 of the required 2"]),
    );
    let with_stranger = [good.signature.clone(), stranger.sign(&good.sums)?].concat();
    cases.push(
        case(
            "threshold-second-signer-unknown",
            "Two are required, and the second signer is not pinned.",
            &good.clone().with_signature(with_stranger),
        )?
        .pinned(&both)?
        .arguments(&["--threshold", "2"])
        .refused(12, &["1 of the required 2", &fingerprints[1]]),
    );
    cases.push(
        case("threshold-more-than-pinned", "Two are required, and one certificate is pinned, twice.", good)?
            .pinned_files(vec![("vendor.asc", vendor.certificate()?), ("vendor.asc", vendor.certificate()?)])
            .arguments(&["--threshold", "2"])
            .refused(64, &["cannot be met", "1 certificate(s)"]),
    );
    cases.push(
        case("threshold-zero", "A threshold that everything meets.", &by_stranger)?
            .arguments(&["--threshold", "0"])
            .refused(64, &["at least 1"]),
    );
    cases.push(
        case("certificate-is-not-one", "The pinned file is no certificate.", good)?
            .pinned_files(vec![("not-a-certificate.asc", b"-----BEGIN PGP NOTHING-----\n".to_vec())])
            .refused(65, &["not an OpenPGP certificate"]),
    );
    Ok(cases)
}

/// Step 3, about the signature: its algorithms and its time.
fn signatures(material: &Material) -> anyhow::Result<Vec<Made>> {
    let Material { vendor, good, .. } = material;
    let fingerprint = vendor.fingerprint();
    let mut cases = Vec::new();
    let mut add = |name, description, signature: Vec<u8>, message: &[&str]| -> anyhow::Result<()> {
        let package = good.clone().with_signature(signature);
        let message = [&[fingerprint.as_str()], message].concat();
        cases.push(Made::archive(material, name, description, &package)?.refused(13, &message));
        Ok(())
    };
    let sums = &good.sums;
    let hash = |hash| vendor.sign_with(sums, |builder| Ok(builder.set_hash_algo(hash)));
    let weak = ["too weak"];
    add("signature-sha1", "Signed with SHA-1.", hash(HashAlgorithm::SHA1)?, &["SHA1", weak[0]])?;
    add("signature-md5", "Signed with MD5.", hash(HashAlgorithm::MD5)?, &["MD5", weak[0]])?;
    add("signature-ripemd160", "Signed with RIPEMD-160.", hash(HashAlgorithm::RipeMD)?, &["RipeMD", weak[0]])?;
    add("signature-sha224", "Signed with SHA-224.", hash(HashAlgorithm::SHA224)?, &["SHA224", weak[0]])?;
    add(
        "signature-version-3",
        "A signature of the format of 1996, which says nothing about itself that is signed as well.",
        RawSignature::Version3.sign(vendor.key(), sums)?,
        &["cannot be relied on", "version 3"],
    )?;
    let notation = |builder: SignatureBuilder| {
        let flags = NotationDataFlags::empty().set_human_readable();
        builder.set_notation("only-for@vendor.example", "the test environment", flags, true)
    };
    add(
        "signature-critical-notation",
        "The signer restricted the signature by a statement that a verifier must understand to rely on it.",
        vendor.sign_with(sums, notation)?,
        &["cannot be relied on", "critical", "only-for@vendor.example"],
    )?;
    let at = |seconds| vendor.sign_with(sums, |builder| builder.set_signature_creation_time(time(seconds)));
    add(
        "signature-in-the-future",
        "The signature says that it was made in 2099. (After that year this case proves nothing.)",
        at(FAR_FUTURE)?,
        &["not made while it could be"],
    )?;
    add(
        "signature-before-the-key",
        "The signature says that it was made before the key existed.",
        at(MADE - DAY)?,
        &["not made while it could be"],
    )?;
    let expired = vendor
        .sign_with(sums, |builder| builder.set_signature_validity_period(std::time::Duration::from_secs(30 * DAY)))?;
    add("signature-expired", "The signature itself was good for a month.", expired, &["Expired on 2024-07-01"])?;
    let timeless = vendor.sign_with(sums, SignatureBuilder::suppress_signature_creation_time)?;
    add("signature-without-time", "The signature does not say when it was made.", timeless, &["when it was made"])?;
    Ok(cases)
}

/// Step 3, about the certificate: expiry, revocation, and what its keys are for.
fn certificates(material: &Material) -> anyhow::Result<Vec<Made>> {
    use ReasonForRevocation::{KeyCompromised, KeyRetired, KeySuperseded};
    const SHA512: HashAlgorithm = HashAlgorithm::SHA512;

    let Material { good, second, .. } = material;
    let mut cases = Vec::new();
    let mut add = |name, file, description, signer: &Signer, message: &[&str]| -> anyhow::Result<()> {
        let package = Release::new().package(signer)?;
        let fingerprint = signer.fingerprint();
        let message = [&[fingerprint.as_str()], message].concat();
        cases.push(
            Made::archive(material, name, description, &package)?.pinned(&[(file, signer)])?.refused(13, &message),
        );
        Ok(())
    };
    let only_certifies = || Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[Binding::new(certifies())]);
    let short = |flags| Binding { valid_for: Some(200 * DAY), ..Binding::new(flags) };

    let expired = Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[short(certifies())])?
        .subkey(MADE, &[Binding::new(signs())])?;
    add(
        "certificate-expired",
        "expired.asc",
        "The certificate has expired since it signed. gpg and gpgv exit 0.",
        &expired,
        &["has expired", "Expired on 2024-07-19"],
    )?;
    let subkey_expired = only_certifies()?.subkey(MADE, &[short(signs())])?;
    add(
        "subkey-expired",
        "subkey-expired.asc",
        "The signing subkey has expired since it signed; the certificate has not.",
        &subkey_expired,
        &["has expired", "Expired on 2024-07-19", &subkey_expired.key().public().fingerprint().to_hex()],
    )?;
    let revoked = |at, reason| Signer::new("Vendor")?.revoked(at, reason, SHA512);
    add(
        "certificate-revoked",
        "revoked.asc",
        "The certificate was revoked because its key was stolen. gpg and gpgv exit 0.",
        &revoked(SIGNED + DAY, KeyCompromised)?,
        &["is revoked", "compromised", "see \\u{1b}[31mthe notice"],
    )?;
    add(
        "certificate-retired",
        "retired.asc",
        "The certificate was retired after it signed.",
        &revoked(SIGNED + DAY, KeyRetired)?,
        &["is revoked"],
    )?;
    add(
        "certificate-revoked-with-sha1",
        "revoked-with-sha1.asc",
        "The certificate was revoked by a signature with SHA-1. A weak revocation is still a warning by its owner.",
        &Signer::new("Vendor")?.revoked(SIGNED + DAY, KeyCompromised, HashAlgorithm::SHA1)?,
        &["is revoked"],
    )?;
    add(
        "certificate-revoked-with-md5",
        "revoked-with-md5.asc",
        "The certificate was revoked by a signature with MD5, as the oldest prepared revocations are.",
        &Signer::new("Vendor")?.revoked(SIGNED + DAY, KeyCompromised, HashAlgorithm::MD5)?,
        &["is revoked"],
    )?;
    add(
        "subkey-revoked",
        "subkey-revoked.asc",
        "The signing subkey was revoked because it was stolen.",
        &Signer::new("Vendor")?.subkey_revoked(0, SIGNED + DAY, KeyCompromised)?,
        &["is revoked"],
    )?;
    add(
        "subkey-superseded",
        "subkey-superseded.asc",
        "The signing subkey was replaced and revoked after it signed.",
        &Signer::new("Vendor")?.subkey_revoked(0, SIGNED + DAY, KeySuperseded)?,
        &["is revoked"],
    )?;
    let at = |at, valid_for| Binding { at, valid_for, ..Binding::new(signs()) };
    let gap = only_certifies()?.subkey(MADE, &[at(MADE, Some(100 * DAY)), at(SIGNED + 30 * DAY, None)])?;
    add(
        "signature-made-while-expired",
        "renewed-late.asc",
        "The signing subkey had expired when it signed; it was renewed later.",
        &gap,
        &["not made while it could be"],
    )?;
    let at_primary = |at, valid_for| Binding { at, valid_for, ..Binding::new(certifies()) };
    let gap = [at_primary(MADE, Some(100 * DAY)), at_primary(SIGNED + 30 * DAY, None)];
    let gap = Signer::primary("Vendor", Algorithm::Ed25519, MADE, &gap)?.subkey(MADE, &[Binding::new(signs())])?;
    add(
        "signature-made-while-certificate-expired",
        "certificate-renewed-late.asc",
        "The whole certificate had expired when it signed; it was renewed later.",
        &gap,
        &["not made while it could be"],
    )?;
    let suspended = only_certifies()?.subkey(MADE, &[at(MADE, None), at(SIGNED + 30 * DAY, None)])?.subkey_revoked(
        0,
        SIGNED - 30 * DAY,
        KeyRetired,
    )?;
    add(
        "signature-made-while-revoked",
        "suspended.asc",
        "The signing subkey was out of use when it signed; it was taken into use again later.",
        &suspended,
        &["not made while it could be"],
    )?;
    let suspended = Signer::primary(
        "Vendor",
        Algorithm::Ed25519,
        MADE,
        &[Binding::new(certifies()), Binding { at: SIGNED + 30 * DAY, ..Binding::new(certifies()) }],
    )?
    .subkey(MADE, &[Binding::new(signs())])?
    .revoked(SIGNED - 30 * DAY, KeyRetired, SHA512)?;
    add(
        "signature-made-while-certificate-revoked",
        "suspended-certificate.asc",
        "The whole certificate was out of use when it signed; it was taken into use again later.",
        &suspended,
        &["not made while it could be"],
    )?;

    add(
        "signature-by-certifying-key",
        "certifies-only.asc",
        "Signed by a primary key that may only certify.",
        &only_certifies()?,
        &["is not a signing key"],
    )?;
    let authenticates = only_certifies()?.subkey(MADE, &[Binding::new(KeyFlags::empty().set_authentication())])?;
    add(
        "signature-by-authentication-subkey",
        "authenticates-only.asc",
        "Signed by a subkey that may only authenticate, an SSH key for example.",
        &authenticates,
        &["is not a signing key"],
    )?;
    let rsa = Signer::primary("Vendor", Algorithm::Rsa(1024), MADE, &[Binding::new(certifies().set_signing())])?;
    add(
        "signature-rsa-1024",
        "rsa-1024.asc",
        "Signed with an RSA key of 1024 bits.",
        &rsa,
        &["does not meet the policy"],
    )?;
    let sha1 = |flags| Binding { hash: HashAlgorithm::SHA1, ..Binding::new(flags) };
    let weak = Signer::primary("Vendor", Algorithm::Ed25519, MADE, &[sha1(certifies())])?
        .subkey(MADE, &[Binding::new(signs())])?;
    add(
        "certificate-bound-with-sha1",
        "bound-with-sha1.asc",
        "The certificate speaks for its user and its expiry with SHA-1 only.",
        &weak,
        &["does not meet the policy"],
    )?;
    let weak = only_certifies()?.subkey(MADE, &[sha1(signs())])?;
    add(
        "subkey-bound-with-sha1",
        "subkey-bound-with-sha1.asc",
        "The signing subkey belongs to the certificate by a SHA-1 signature only.",
        &weak,
        &["does not meet the policy"],
    )?;
    let pair = Signer::new("Someone else")?.key().clone();
    let adopted = only_certifies()?.adopt(pair, &[Binding::new(signs())], BackSignature::Missing)?;
    add(
        "subkey-without-back-signature",
        "without-back-signature.asc",
        "The certificate claims a signing subkey that never agreed to belong to it.",
        &adopted,
        &["does not meet the policy"],
    )?;
    let born = Signer::primary(
        "Vendor",
        Algorithm::Ed25519,
        FAR_FUTURE,
        &[Binding { at: FAR_FUTURE, ..Binding::new(certifies().set_signing()) }],
    )?;
    let signature = born.sign_with(&good.sums, |builder| builder.set_signature_creation_time(time(FAR_FUTURE)))?;
    cases.push(
        Made::archive(
            material,
            "certificate-from-the-future",
            "The pinned certificate says that it was made in 2099. (After that year this case proves nothing.)",
            &good.clone().with_signature(signature),
        )?
        .pinned(&[("from-the-future.asc", &born)])?
        .refused(13, &[&born.fingerprint(), "does not meet the policy"]),
    );

    // A key server's copy of the vendor's certificate, to which someone has attached a subkey.
    let stranger = Signer::new("Stranger")?;
    let attached = Signer::new("Vendor")?;
    let subkey = stranger.key().public().clone().role_into_subordinate();
    let poisoned = with_packet(&attached.cert, &subkey.into())?;
    cases.push(
        Made::archive(
            material,
            "signature-by-attached-subkey",
            "A stranger's key hangs on to the pinned certificate as a subkey, but the certificate never accepted it.",
            &Release::new().package(&stranger)?,
        )?
        .pinned_files(vec![("attached-subkey.asc", poisoned)])
        .refused(13, &[&attached.fingerprint(), "does not meet the policy"]),
    );
    let mut stolen = Signer::new("Vendor")?;
    let before = stolen.certificate()?;
    let revocation = stolen.revocation(SIGNED + DAY, KeyCompromised, SHA512)?;
    let package = Release::new().package(&stolen)?;
    cases.push(
        Made::archive(
            material,
            "certificate-revoked-in-another-copy",
            "Two copies of one certificate are pinned; only the second knows that it was revoked.",
            &package,
        )?
        .pinned_files(vec![
            ("copy-before-revocation.asc", before),
            ("copy-with-revocation.asc", with_packet(&stolen.cert, &revocation)?),
        ])
        .refused(13, &["is revoked"]),
    );
    let both = [good.signature.clone(), expired.sign(&good.sums)?].concat();
    cases.push(
        Made::archive(
            material,
            "signature-good-and-expired",
            "One pinned signer's signature is good; another pinned signer's certificate has expired.",
            &good.clone().with_signature(both),
        )?
        .pinned(&[("vendor.asc", &material.vendor), ("expired.asc", &expired)])?
        .refused(13, &["has expired", &expired.fingerprint()]),
    );
    let sha1_second = second.sign_with(&good.sums, |builder| Ok(builder.set_hash_algo(HashAlgorithm::SHA1)))?;
    cases.push(
        Made::archive(
            material,
            "threshold-second-signature-sha1",
            "Two are required; the second pinned signer signed with SHA-1.",
            &good.clone().with_signature([good.signature.clone(), sha1_second].concat()),
        )?
        .pinned(&[("vendor.asc", &material.vendor), ("second.asc", second)])?
        .arguments(&["--threshold", "2"])
        .refused(13, &["too weak", &second.fingerprint()]),
    );
    Ok(cases)
}
