//! Worker hosts that refuse to start a launcher: one clear line in the log, and nothing installed.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bundle_core::Cert;
use integration_tests::program;
use integration_tests::release::workspace;
use integration_tests::run::{succeed, tool};
use integration_tests::worker_host::{Host, in_own_network};
use sequoia_openpgp::types::{HashAlgorithm, ReasonForRevocation};

use super::pool::{Account, LAUNCHER, PRIVATE_KEY, Signer, TOKEN};

/// Keeps the host on, so that it ends at once.
const STAY_ON: &str = "PowerOffOnError=false";
const DAY: Duration = Duration::from_secs(86_400);

/// The user data failed with one line that says `reason`, installed nothing and left nothing behind.
#[track_caller]
pub(super) fn assert_refused(host: &Host, reason: &str) {
    let log = host.log("error");
    assert_ne!(host.code(), Some(0), "{reason}: {log}");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("user data: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains(reason), "expected one line with `{reason}`:\n{log}");
    let left: Vec<_> = fs::read_dir(host.path("opt/spacelift")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{reason}: {left:?}");
    assert!(!host.path("etc/systemd/system/spacelift-launcher.service").exists(), "{reason}");
    let logs = format!("{log}{}{}", host.log("info"), host.read("var/log/cloud-init-output.log").unwrap_or_default());
    assert!(!logs.contains("eyJicm9rZXIi") && !logs.contains(PRIVATE_KEY) && !logs.contains(TOKEN), "{logs}");
}

fn sums_key() -> String {
    format!("{LAUNCHER}_SHA256SUMS")
}

fn signature_key() -> String {
    format!("{LAUNCHER}_SHA256SUMS.sig")
}

#[test]
fn files_in_the_bucket_that_are_not_what_was_signed() {
    in_own_network(|| {
        let account = Account::new();
        let user_data = account.deploy(&account.own_template(), "files1", STAY_ON);
        let _metadata = account.metadata("files1");
        let refused = |reason: &str| assert_refused(&account.boot(&user_data, |_| ()), reason);
        let sums = Account::sums();

        let mut launcher = fs::read(program::launcher()).unwrap();
        launcher.push(0);
        account.put_object(LAUNCHER, &launcher);
        refused("spacelift-launcher-x86_64 is not the file that was signed");
        launcher.pop();
        account.put_object(LAUNCHER, &launcher);

        let hash = sums.split(' ').next().unwrap();
        for wrong in [
            sums.repeat(2),
            format!("{hash}  spacelift-launcher-aarch64\n"),
            format!("{hash}  x{LAUNCHER}\n"),
            format!("{hash} *{LAUNCHER}\n"),
            format!("{hash}  {LAUNCHER}\r\n"),
            format!("{hash}  {LAUNCHER}"),
            format!("{hash}  {LAUNCHER}\n\0"),
        ] {
            account.put_object(&sums_key(), wrong.as_bytes());
            account.put_object(&signature_key(), &account.vendor.sign_now(wrong.as_bytes()));
            refused("is not one line for spacelift-launcher-x86_64");
        }
        account.put_object(&sums_key(), sums.as_bytes());

        account.put_object(&signature_key(), &account.vendor.sign_now(b"something else"));
        refused("BADSIG");
        account.put_object(&signature_key(), &Signer::good("somebody").sign_now(sums.as_bytes()));
        refused("0 of 1 signatures by pinned keys");
        account.put_object(&signature_key(), b"-----BEGIN PGP SIGNATURE-----\nnone\n");
        refused("0 of 1 signatures by pinned keys");
        let weak = account.vendor.sign(sums.as_bytes(), HashAlgorithm::SHA1, SystemTime::now());
        account.put_object(&signature_key(), &weak);
        refused("does not hold");
        account.put_object(&signature_key(), &vec![0; 100_000]);
        refused("is empty or larger than 65536 bytes");
    });
}

#[test]
fn signers_who_may_not_sign_any_more_or_are_too_few() {
    in_own_network(|| {
        let account = Account::new();
        let sums = Account::sums();
        let sums = sums.as_bytes();
        let now = SystemTime::now();
        let boot = |suffix: &str, certificates: &[Cert], threshold: u32, signature: &[u8]| {
            account.put_object(&signature_key(), signature);
            let template = account.template(super::pool::own_version(), certificates, threshold);
            let user_data = account.deploy(&template, suffix, STAY_ON);
            let _metadata = account.metadata(suffix);
            account.boot(&user_data, |_| ())
        };

        let expired = Signer::new("expired", now - 10 * DAY, Some(DAY.as_secs()));
        let signature = expired.sign(sums, HashAlgorithm::SHA512, now - 10 * DAY + DAY / 2);
        assert_refused(&boot("expird", &[expired.cert], 1, &signature), "EXPKEYSIG");

        let revoked = Signer::revoked("revoked", ReasonForRevocation::KeyCompromised);
        assert_refused(&boot("revokd", std::slice::from_ref(&revoked.cert), 1, &revoked.sign_now(sums)), "REVKEYSIG");

        let (one, two) = (Signer::good("one"), Signer::good("two"));
        let both = [one.cert.clone(), two.cert.clone()];
        let twice = [one.sign_now(sums), one.sign_now(sums)].concat();
        assert_refused(&boot("twice1", &both, 2, &twice), "1 of 2 signatures by pinned keys");

        // Enough signers, and one more who is not known.
        let stranger = Signer::good("stranger");
        let enough = [stranger.sign_now(sums), one.sign_now(sums), two.sign_now(sums)].concat();
        let host = boot("enough", &both, 2, &enough);
        assert_eq!(host.code(), Some(0), "{}", host.log("error"));
    });
}

#[test]
fn a_launcher_that_is_older_than_the_template() {
    in_own_network(|| {
        let account = Account::new();
        let certificates = [account.vendor.cert.clone()];
        for (number, version) in ["v0.1.1", "v0.10.0", "v99.0.0-rc.1"].into_iter().enumerate() {
            let suffix = format!("older{number}");
            let user_data = account.deploy(&account.template(version, &certificates, 1), &suffix, STAY_ON);
            let _metadata = account.metadata(&suffix);
            let reason = format!("this template takes none before {version}");
            assert_refused(&account.boot(&user_data, |_| ()), &reason);
        }
        // A pre-release comes before its release.
        let template = account.template(&format!("{}-rc.1", super::pool::own_version()), &certificates, 1);
        let user_data = account.deploy(&template, "newer1", STAY_ON);
        let _metadata = account.metadata("newer1");
        let host = account.boot(&user_data, |_| ());
        assert_eq!(host.code(), Some(0), "{}", host.log("error"));
    });
}

/// Makes a program of the shared root disappear.
fn hide(changes: &Path, program: &str) {
    let place = changes.join(program);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    // To an overlay file system, such a device is a file that was deleted.
    succeed(tool("mknod").arg(&place).args(["c", "0", "0"]));
}

#[test]
fn images_and_secrets_that_lack_something() {
    in_own_network(|| {
        let account = Account::new();
        let template = account.own_template();
        let user_data = account.deploy(&template, "lacks1", STAY_ON);
        let metadata = account.metadata("lacks1");
        for tool in ["gpgv", "sha256sum", "awk", "python3"] {
            let programs: &[&str] = if tool == "awk" { &["awk", "mawk"] } else { &[tool] };
            let host = account.boot(&user_data, |root| {
                programs.iter().for_each(|program| hide(root, &format!("usr/bin/{program}")));
            });
            assert_refused(&host, &format!("{tool} is not on this image"));
        }
        account.put_secret("not-base64", "{\"caCertificates\": []}");
        account.put_secret("not-pem", "eyJjYUNlcnRpZmljYXRlcyI6IFsiWjI5dlpBPT0iXX0=");
        account.put_secret("not-script", "if true; then");
        account.put_secret("ends", "exit 0");
        account.put_secret("no-token", "{\"SPACELIFT_POOL_PRIVATE_KEY\": \"secret-part\"}");
        for (number, (more, reason)) in [
            ("AdditionalRootCAsSecretName=not-base64", "the secret not-base64 is not usable"),
            ("AdditionalRootCAsSecretName=not-pem", "the secret not-pem is not usable"),
            ("AdditionalRootCAsSecretName=missing", "cannot read the secret missing"),
            ("CustomUserDataSecretName=not-script", "the secret not-script is not a shell script"),
            ("CustomUserDataSecretName=ends", "running the custom user data: it ended early, with exit code 0"),
            ("SecretName=no-token", "it has no SPACELIFT_TOKEN"),
        ]
        .into_iter()
        .enumerate()
        {
            let user_data = account.deploy(&template, &format!("lacks{}", number + 2), &format!("{more} {STAY_ON}"));
            assert_refused(&account.boot(&user_data, |_| ()), reason);
        }
        drop(metadata);
        assert_refused(&account.boot(&user_data, |_| ()), "the instance metadata service does not answer");
    });
}

#[test]
fn the_template_of_the_sources_pins_nothing_and_is_refused() {
    in_own_network(|| {
        let account = Account::new();
        let user_data = account.deploy(&workspace(), "source", STAY_ON);
        assert_refused(&account.boot(&user_data, |_| ()), "this template pins no keys");
    });
}

#[test]
fn a_host_that_reaches_no_bucket_powers_off() {
    in_own_network(|| {
        let account = Account::new();
        let user_data = account.deploy(&account.own_template(), "nos3up", "");
        let _metadata = account.metadata("nos3up");
        // Nothing listens there.
        let user_data = user_data.replacen('\n', "\nexport AWS_ENDPOINT_URL_S3=http://127.0.0.1:9\n", 1);
        let mut host = account.boot(&user_data, |_| ());
        assert_refused(&host, "cannot fetch s3://");
        host.wait_until_off();
    });
}
