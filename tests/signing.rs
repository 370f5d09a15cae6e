//! Making keys and signing with them: with key files, with a real gpg-agent, by several signers, over the years.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::gpg;
use integration_tests::release::{Key, Release, Unpacked};
use integration_tests::run::{Finished, finish, succeed, tool, under_umask};
use integration_tests::tree;
use serde_json::{Value, json};

const PASSPHRASE: &str = "correct horse battery staple";

/// Somebody who makes releases: the files of the release under test, packed again for customers and not signed yet.
struct Vendor {
    unpacked: Unpacked,
    release: Release,
    keys: PathBuf,
}

impl Vendor {
    fn new() -> Self {
        let tested = Release::under_test();
        let unpacked = tested.unpack();
        let (output, keys) = (unpacked.scratch("output"), unpacked.scratch("keys"));
        unpacked.repacked(&output);
        let release = Release::in_directory(&output, &tested.version, Path::new(""));
        Self { unpacked, release, keys }
    }

    fn bundle(&self, arguments: &[&str]) -> Command {
        let mut bundle = self.unpacked.bundle();
        bundle.args(arguments);
        bundle
    }

    fn key(&self, name: &str, arguments: &[&str]) -> Key {
        self.unpacked.keygen(&self.keys, name, arguments)
    }

    /// Signs the unsigned archive.
    fn sign(&self, arguments: &[&str]) -> Finished {
        finish(self.bundle(&["sign", "--json"]).arg(&self.release.unsigned).args(arguments))
    }

    /// Adds a signature to the signed archive.
    fn add(&self, arguments: &[&str]) -> Finished {
        finish(self.bundle(&["sign", "--json"]).arg(&self.release.archive).args(arguments))
    }

    fn verify(&self, certificates: &[&Path], arguments: &[&str]) -> Finished {
        let mut verify = self.bundle(&["verify", "--json"]);
        verify.arg(&self.release.archive).args(arguments);
        for certificate in certificates {
            verify.arg("--cert").arg(certificate);
        }
        finish(&mut verify)
    }

    /// Fingerprints of the certificate and the key of each signer that verification counted.
    fn signers(&self, certificates: &[&Path], arguments: &[&str]) -> Vec<(String, String)> {
        let seen = self.verify(certificates, arguments).expect(0).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let signers = seen["signers"].as_array().unwrap();
        signers.iter().map(|signer| (text(&signer["fingerprint"]), text(&signer["key"]))).collect()
    }

    /// Nothing stands under a final name, or beside it.
    fn assert_unsigned(&self) {
        assert_eq!(tree::entries(&self.release.directory), std::slice::from_ref(&self.release.unsigned));
    }

    /// The verifiers that customers have agree. gpg and gpgv want to know every signer, sqv is content with one.
    fn assert_stock_tools_accept(&self, certificates: &[&Path]) {
        let (sums, signature) = (&self.release.sums, &self.release.signature);
        let home = gpg::Home::new();
        for certificate in certificates {
            home.import(certificate);
            succeed(tool("sqv").arg("--keyring").arg(certificate).arg(signature).arg(sums));
        }
        let verdict = home.verify(signature, sums).expect(0).stdout;
        assert_eq!(verdict.matches("[GNUPG:] GOODSIG").count(), certificates.len(), "{verdict}");
        for bad in ["EXPSIG", "EXPKEYSIG", "REVKEYSIG", "BADSIG", "ERRSIG"] {
            assert!(!verdict.contains(bad), "{verdict}");
        }
        let mut gpgv = tool("gpgv");
        gpgv.arg("--keyring").arg(home.keyring(certificates)).arg(signature).arg(sums);
        succeed(gpgv.env("GNUPGHOME", home.path()));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_passphrase_comes_from_a_file_or_the_environment() {
    let vendor = Vendor::new();
    let file = vendor.keys.join("passphrase");
    fs::write(&file, format!("{PASSPHRASE}\nwhat follows is ignored\n")).unwrap();
    let key = vendor.key("vendor", &["--passphrase-file", path(&file)]);
    for secret in [&key.secret, &key.signing] {
        let said = vendor.sign(&["--key", path(secret), "--passphrase-file", path(&file)]).expect(0).json();
        assert_eq!(said["signers"], json!([key.fingerprint]));
    }
    vendor.verify(&[&key.certificate], &[]).expect(0);
    vendor.assert_stock_tools_accept(&[&key.certificate]);

    for made in [&vendor.release.archive, &vendor.release.sums, &vendor.release.signature] {
        fs::remove_file(made).unwrap();
    }
    let sign = |variable: &str, passphrase: &str| {
        let mut sign = vendor.bundle(&["sign", "--passphrase-env", "SPACELIFT_TEST_PASSPHRASE", "--key"]);
        finish(sign.arg(&key.secret).arg(&vendor.release.unsigned).env(variable, passphrase))
    };
    let refused = sign("SPACELIFT_TEST_PASSPHRASE", "wrong").expect(64);
    assert!(refused.stderr.contains("the passphrase does not open") && refused.says("vendor.secret.asc"), "{refused}");
    let refused = sign("ANOTHER_VARIABLE", PASSPHRASE).expect(64);
    assert!(refused.says("SPACELIFT_TEST_PASSPHRASE") && refused.says("is not set"), "{refused}");
    // Nobody is at the terminal, because there is none.
    let refused = vendor.sign(&["--key", path(&key.secret)]).expect(64);
    assert!(refused.stderr.contains("--passphrase-file"), "{refused}");
    vendor.assert_unsigned();
    sign("SPACELIFT_TEST_PASSPHRASE", PASSPHRASE).expect(0);
    vendor.verify(&[&key.certificate], &[]).expect(0);
}

/// A key as people make it with gpg: a primary key that certifies and a subkey that signs.
fn gpg_key(home: &gpg::Home, algorithm: &str, passphrase: &str) -> String {
    let gpg = |arguments: &[&str]| {
        let mut gpg = home.gpg();
        gpg.args(["--pinentry-mode", "loopback", "--passphrase", passphrase]).args(arguments);
        succeed(&mut gpg)
    };
    // A name with a slash in it would be taken for a key's.
    let user = format!("Test <{}@example.com>", algorithm.replace('/', "-"));
    gpg(&["--quick-generate-key", &user, algorithm, "cert", "2y"]);
    let listed = succeed(home.gpg().args(["--with-colons", "--list-secret-keys", &user]));
    let fingerprint = listed.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().trim_matches(':').to_owned();
    gpg(&["--quick-add-key", &fingerprint, algorithm, "sign", "1y"]);
    fingerprint
}

fn exported(home: &gpg::Home, fingerprint: &str) -> PathBuf {
    let file = home.path().join(format!("{fingerprint}.asc"));
    succeed(home.gpg().args(["--armor", "--yes", "--output"]).arg(&file).args(["--export", fingerprint]));
    file
}

#[test]
fn gpg_agent_signs() {
    let vendor = Vendor::new();
    let home = gpg::Home::new();
    let sign = |key: &str| {
        let mut sign = vendor.bundle(&["sign", "--gpg-key", key, "--json"]);
        finish(sign.arg(&vendor.release.unsigned).env("GNUPGHOME", home.path()))
    };
    // What tokens hold, too: Ed25519, a NIST curve, RSA.
    for algorithm in ["ed25519", "nistp256/ecdsa", "rsa3072"] {
        let fingerprint = gpg_key(&home, algorithm, "");
        let said = sign(&fingerprint).expect(0).json();
        assert_eq!(said["signers"], json!([fingerprint]), "{algorithm}");
        let certificate = exported(&home, &fingerprint);
        let signers = vendor.signers(&[&certificate], &[]);
        assert_eq!(signers.len(), 1);
        assert_eq!(signers[0].0, fingerprint);
        assert_ne!(signers[0].1, fingerprint, "the subkey signs");
        vendor.assert_stock_tools_accept(&[&certificate]);
    }
    let refused = sign("0123456789ABCDEF0123456789ABCDEF01234567").expect(64);
    assert!(refused.stderr.contains("gpg has no such certificate"), "{refused}");
    let refused = sign("89ABCDEF").expect(64);
    assert!(refused.stderr.contains("whole fingerprint"), "{refused}");
}

#[test]
fn gpg_agent_asks_for_the_passphrase_itself() {
    let vendor = Vendor::new();
    let home = gpg::Home::new();
    let fingerprint = gpg_key(&home, "ed25519", PASSPHRASE);
    let sign = || {
        let mut sign = vendor.bundle(&["sign", "--gpg-key", &fingerprint]);
        finish(sign.arg(&vendor.release.unsigned).env("GNUPGHOME", home.path()))
    };
    home.answer_with("wrong");
    let refused = sign().expect(64);
    assert!(refused.stderr.contains("gpg could not sign with") && refused.says("passphrase"), "{refused}");
    vendor.assert_unsigned();
    home.answer_with(PASSPHRASE);
    sign().expect(0);
    vendor.verify(&[&exported(&home, &fingerprint)], &[]).expect(0);
}

#[test]
fn a_missing_gpg_is_named() {
    let vendor = Vendor::new();
    let mut sign = vendor.bundle(&["sign", "--gpg-key", "0123456789ABCDEF0123456789ABCDEF01234567"]);
    let refused = finish(sign.arg(&vendor.release.unsigned).env("PATH", "/nonexistent")).expect(64);
    assert!(refused.stderr.contains("gpg is not installed"), "{refused}");
    vendor.assert_unsigned();
}

#[test]
fn gpg_takes_our_keys() {
    let vendor = Vendor::new();
    let file = vendor.keys.join("passphrase");
    fs::write(&file, PASSPHRASE).unwrap();
    let key = vendor.key("vendor", &["--passphrase-file", path(&file)]);
    // The whole key, and what a machine that signs has: the subkey, and a note in place of the primary key.
    for secret in [&key.secret, &key.signing] {
        let home = gpg::Home::new();
        home.import(secret);
        home.answer_with(PASSPHRASE);
        let mut sign = vendor.bundle(&["sign", "--gpg-key", &key.fingerprint]);
        finish(sign.arg(&vendor.release.unsigned).env("GNUPGHOME", home.path())).expect(0);
        vendor.verify(&[&key.certificate], &[]).expect(0);
        vendor.assert_stock_tools_accept(&[&key.certificate]);

        let (data, signature) = (home.path().join("data"), home.path().join("data.sig"));
        fs::write(&data, "anything").unwrap();
        succeed(home.gpg().args(["--detach-sign", "--output"]).arg(&signature).arg(&data));
        home.verify(&signature, &data).expect(0);
        // gpg shows what the key is for: the primary key certifies and cannot sign.
        let listed = succeed(home.gpg().args(["--with-colons", "--list-secret-keys"]));
        let capabilities = |record: &str| {
            let line = listed.lines().find(|line| line.starts_with(record)).expect("the key is listed");
            line.split(':').nth(11).unwrap().chars().filter(char::is_ascii_lowercase).collect::<String>()
        };
        assert_eq!((capabilities("sec:").as_str(), capabilities("ssb:").as_str()), ("c", "s"), "{listed}");
    }
}

#[test]
fn several_sign_together() {
    let vendor = Vendor::new();
    let (one, two) = (vendor.key("one", &["--no-passphrase"]), vendor.key("two", &["--no-passphrase"]));
    let said = vendor.sign(&["--key", path(&one.signing), "--key", path(&two.signing)]).expect(0).json();
    assert_eq!(said["signers"], json!([one.fingerprint, two.fingerprint]));
    let pinned = [one.certificate.as_path(), two.certificate.as_path()];
    assert_eq!(vendor.signers(&pinned, &["--threshold", "2"]).len(), 2);
    // Each of them is enough for whoever trusts only one.
    for certificate in pinned {
        vendor.verify(&[certificate], &[]).expect(0);
    }
    vendor.assert_stock_tools_accept(&pinned);
}

#[test]
fn a_signature_can_be_added_later() {
    let vendor = Vendor::new();
    let (one, two) = (vendor.key("one", &["--no-passphrase"]), vendor.key("two", &["--no-passphrase"]));
    let sign = vendor.sign(&["--key", path(&one.signing)]).expect(0).json();
    assert_eq!(sign["action"], "signed");
    let pinned = [one.certificate.as_path(), two.certificate.as_path()];
    vendor.verify(&pinned, &["--threshold", "2"]).expect(12);
    let before = tree::read(&vendor.release.directory);
    let first = fs::read(&vendor.release.signature).unwrap();

    let added = vendor.add(&["--key", path(&two.signing)]).expect(0).json();
    assert_eq!(added["action"], "signature added");
    assert_eq!(added["payload_sha256"], sign["payload_sha256"]);
    assert_eq!(added["sha256"], sign["sha256"]);
    assert_eq!(vendor.signers(&pinned, &["--threshold", "2"]).len(), 2);
    let mut after = tree::read(&vendor.release.directory);
    let name = vendor.release.signature.file_name().unwrap().to_str().unwrap();
    after.insert(name.to_owned(), before[name].clone());
    assert_eq!(after, before, "only the signature changed");
    assert!(fs::read(&vendor.release.signature).unwrap().starts_with(&first), "the first signature stays as it is");

    // Once more changes nothing, and two signatures by one of them are still one signer.
    let again = vendor.add(&["--key", path(&two.signing)]).expect(0).json();
    assert_eq!(again["action"], "unchanged");
    vendor.assert_stock_tools_accept(&pinned);

    // Nobody vouches for an archive that is not the one that was signed.
    let mut archive = fs::read(&vendor.release.archive).unwrap();
    archive.push(0);
    fs::write(&vendor.release.archive, archive).unwrap();
    let three = vendor.key("three", &["--no-passphrase"]);
    let refused = vendor.add(&["--key", path(&three.signing)]).expect(65);
    assert!(refused.stderr.contains("its sums file says"), "{refused}");
}

#[test]
fn signing_again_keeps_what_is_there() {
    let vendor = Vendor::new();
    let key = vendor.key("vendor", &["--no-passphrase"]);
    let first = vendor.sign(&["--key", path(&key.signing)]).expect(0).json();
    let before = tree::read(&vendor.release.directory);
    let again = vendor.sign(&["--key", path(&key.signing)]).expect(0).json();
    assert_eq!((&first["action"], &again["action"]), (&json!("signed"), &json!("unchanged")));
    assert_eq!(tree::read(&vendor.release.directory), before);
    // Another signer is another release of the same payload.
    let other = vendor.key("other", &["--no-passphrase"]);
    let said = vendor.sign(&["--key", path(&other.signing)]).expect(0).json();
    assert_eq!(said["payload_sha256"], first["payload_sha256"]);
    vendor.verify(&[&other.certificate], &[]).expect(0);
    vendor.verify(&[&key.certificate], &[]).expect(12);
}

#[test]
fn a_rotated_key_signs_with_its_new_subkey() {
    let vendor = Vendor::new();
    let old = vendor.key("old", &["--no-passphrase"]);
    vendor.sign(&["--key", path(&old.signing)]).expect(0);
    let signed_by_old = vendor.signers(&[&old.certificate], &[]);

    // OpenPGP counts whole seconds: the new subkey must be the newer one.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let new = vendor.key("new", &["--rotate", path(&old.secret)]);
    assert_eq!(new.fingerprint, old.fingerprint, "customers pin the same certificate");
    assert!(!new.revocation.exists(), "the revocation from the beginning still holds");
    // What the old subkey signed stays good, under both.
    assert_eq!(vendor.signers(&[&new.certificate], &[]), signed_by_old);
    vendor.assert_stock_tools_accept(&[&new.certificate]);

    for made in [&vendor.release.archive, &vendor.release.sums, &vendor.release.signature] {
        fs::remove_file(made).unwrap();
    }
    vendor.sign(&["--key", path(&new.signing)]).expect(0);
    let signed_by_new = vendor.signers(&[&new.certificate], &[]);
    assert_ne!(signed_by_new[0].1, signed_by_old[0].1, "the newest subkey signs");
    vendor.assert_stock_tools_accept(&[&new.certificate]);
    // Who has only the old certificate cannot know the new subkey, and is told.
    let refused = vendor.verify(&[&old.certificate], &[]).expect(12);
    assert!(refused.says(&signed_by_new[0].1), "{refused}");
    // The key that only signs cannot add subkeys.
    let mut keygen = vendor.bundle(&["keygen", "--name", "third", "--rotate"]);
    let refused = finish(keygen.arg(&new.signing).arg("--output").arg(&vendor.keys)).expect(65);
    assert!(refused.says("primary key"), "{refused}");
}

#[test]
fn a_replaced_subkey_no_longer_verifies() {
    let vendor = Vendor::new();
    let old = vendor.key("old", &["--no-passphrase"]);
    vendor.sign(&["--key", path(&old.signing)]).expect(0);
    let new = vendor.key("new", &["--rotate", path(&old.secret), "--revoke-old"]);
    let refused = vendor.verify(&[&new.certificate], &[]).expect(13);
    assert!(refused.says("revoked"), "{refused}");
    vendor.sign(&["--key", path(&new.signing)]).expect(0);
    vendor.verify(&[&new.certificate], &[]).expect(0);
}

#[test]
fn a_published_revocation_ends_a_certificate() {
    let vendor = Vendor::new();
    let key = vendor.key("vendor", &["--no-passphrase"]);
    vendor.sign(&["--key", path(&key.signing)]).expect(0);
    vendor.verify(&[&key.certificate], &[]).expect(0);
    // As a customer does it who hears of it: gpg merges the two and gives the certificate to pin from now on.
    let home = gpg::Home::new();
    home.import(&key.certificate);
    home.import(&key.revocation);
    let revoked = exported(&home, &key.fingerprint);
    let refused = vendor.verify(&[&revoked], &[]).expect(13);
    assert!(refused.says("revoked") && refused.says(&key.fingerprint), "{refused}");
    // Whoever pins both has heard of it, too.
    vendor.verify(&[&key.certificate, &revoked], &[]).expect(13);
}

#[test]
fn another_certificate_does_not_verify() {
    let vendor = Vendor::new();
    let (key, other) = (vendor.key("vendor", &["--no-passphrase"]), vendor.key("other", &["--no-passphrase"]));
    vendor.sign(&["--key", path(&key.signing)]).expect(0);
    let signer = vendor.signers(&[&key.certificate], &[])[0].1.clone();
    let refused = vendor.verify(&[&other.certificate], &[]).expect(12);
    assert!(refused.says(&signer), "it names who signed: {refused}");
    // A secret key file is no certificate to hand around, and still no reason to crash.
    vendor.verify(&[&key.secret], &[]).expect(0);
}

#[test]
fn a_key_that_expires_soon_is_refused_where_that_is_asked() {
    let vendor = Vendor::new();
    let key = vendor.key("vendor", &["--no-passphrase", "--expires", "100d"]);
    let refused = vendor.sign(&["--key", path(&key.signing), "--require-validity-days", "180"]).expect(64);
    for part in ["expires in 99 days", "180", "--rotate"] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    vendor.assert_unsigned();
    vendor.sign(&["--key", path(&key.signing), "--require-validity-days", "99"]).expect(0);
}

#[test]
fn keys_can_be_checked_without_signing() {
    let vendor = Vendor::new();
    let key = vendor.key("vendor", &["--no-passphrase"]);
    let certificates = vendor.keys.join("certificates");
    vendor.sign(&["--check-keys", "--key", path(&key.signing), "--certificates-to", path(&certificates)]).expect(0);
    vendor.assert_unsigned();
    assert_eq!(tree::entries(&certificates), [certificates.join(format!("{}.asc", key.fingerprint))]);
    let refused = vendor.sign(&["--check-keys", "--key", path(&key.certificate)]).expect(65);
    assert!(refused.stderr.contains("only the public part"), "{refused}");
}

#[test]
fn secrets_are_private_whatever_the_umask() {
    let vendor = Vendor::new();
    for umask in ["000", "077"] {
        let mut keygen = vendor.bundle(&["keygen", "--no-passphrase", "--user-id", "x", "--name", umask, "--output"]);
        succeed(&mut under_umask(umask, keygen.arg(&vendor.keys)));
        for kind in ["secret", "signing", "revocation"] {
            assert_eq!(mode(&vendor.keys.join(format!("{umask}.{kind}.asc"))), 0o600, "{kind}");
        }
        assert_eq!(mode(&vendor.keys.join(format!("{umask}.cert.asc"))), 0o644);
    }
    assert_eq!(tree::entries(&vendor.keys).len(), 8, "nothing else is left");
}

#[test]
fn keygen_never_overwrites() {
    let vendor = Vendor::new();
    vendor.key("vendor", &["--no-passphrase"]);
    for kind in ["secret", "signing", "cert", "revocation"] {
        // Any one of the files is reason enough.
        let name = format!("alone-{kind}");
        fs::write(vendor.keys.join(format!("{name}.{kind}.asc")), "precious").unwrap();
        let before = tree::read(&vendor.keys);
        let mut keygen = vendor.bundle(&["keygen", "--no-passphrase", "--user-id", "x", "--name", &name, "--output"]);
        let refused = finish(keygen.arg(&vendor.keys)).expect(64);
        assert!(refused.stderr.contains("a key is never overwritten"), "{refused}");
        assert_eq!(tree::read(&vendor.keys), before);
    }
}

#[test]
fn a_new_key_needs_a_decision_about_its_passphrase() {
    let vendor = Vendor::new();
    let keygen = |arguments: &[&str]| {
        finish(vendor.bundle(&["keygen", "--user-id", "x", "--output"]).arg(&vendor.keys).args(arguments))
    };
    let refused = keygen(&[]).expect(64);
    assert!(refused.stderr.contains("--no-passphrase"), "{refused}");
    let empty = vendor.keys.join("empty");
    fs::write(&empty, "\n").unwrap();
    keygen(&["--passphrase-file", path(&empty)]).expect(64);
    keygen(&["--passphrase-file", path(&vendor.keys.join("missing"))]).expect(66);
    for time in ["0d", "1m", "1000y", "d", "-1d"] {
        keygen(&["--no-passphrase", "--expires", time]).expect(64);
    }
    assert_eq!(tree::entries(&vendor.keys), [empty]);
}

#[test]
fn wrong_key_files_are_named() {
    let vendor = Vendor::new();
    let missing = vendor.keys.join("missing.asc");
    assert!(vendor.sign(&["--key", path(&missing)]).expect(66).says("missing.asc"));
    let text = vendor.keys.join("text.asc");
    fs::write(&text, "this is not a key\n").unwrap();
    assert!(vendor.sign(&["--key", path(&text)]).expect(65).says("is not an OpenPGP key"));
    assert!(vendor.sign(&[]).expect(64).says("--gpg-key"));
    vendor.assert_unsigned();
}
