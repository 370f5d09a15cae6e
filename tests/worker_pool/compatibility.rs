//! Clients that were written for other releases find in the bucket what they look for.

use integration_tests::run::{finish, succeed, tool};
use integration_tests::{program, tree};
use sequoia_openpgp::serialize::MarshalInto as _;

use super::pool::{Account, BUCKET, LAUNCHER};

/// What user data for the hosted product does: download, take the first field of the sums, compare, run.
const HOSTED: &str = r#"
set -e
base=$1
curl -fsS "$base/spacelift-launcher-x86_64" -o spacelift-launcher
curl -fsS "$base/spacelift-launcher-x86_64_SHA256SUMS" -o sums
curl -fsS "$base/spacelift-launcher-x86_64_SHA256SUMS.sig" -o sums.sig
gpgv --keyring "$PWD/keyring.gpg" sums.sig sums
expected=$(cut -f 1 -d ' ' sums)
actual=$(sha256sum spacelift-launcher | cut -f 1 -d ' ')
[ "$expected" = "$actual" ] || { echo "checksum mismatch" >&2; exit 1; }
chmod 755 spacelift-launcher
./spacelift-launcher --version
"#;

#[test]
fn user_data_of_the_hosted_product() {
    let account = Account::new();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("keyring.gpg"), account.vendor.cert.export_to_vec().unwrap()).unwrap();
    // That product's bucket is open to everyone.
    let open = |key: &str| {
        let mut acl = account.emulator.aws();
        acl.args(["s3api", "put-object-acl", "--acl", "public-read", "--bucket", BUCKET, "--key", key]);
        succeed(&mut acl);
    };
    for suffix in ["", "_SHA256SUMS", "_SHA256SUMS.sig"] {
        open(&format!("{LAUNCHER}{suffix}"));
    }
    let base = format!("{}/{BUCKET}", account.emulator.endpoint());
    let mut script = tool("bash");
    script.args(["-c", HOSTED, "bash", &base]).current_dir(directory.path());
    script.env("GNUPGHOME", directory.path()).env_remove("http_proxy").env_remove("HTTP_PROXY");
    let ran = finish(&mut script).expect(0);
    assert!(ran.says("spacelift-launcher v"), "{ran}");
    account.put_object(LAUNCHER, b"something else");
    open(LAUNCHER);
    let refused = finish(&mut script);
    assert!(refused.code == Some(1) && refused.says("checksum mismatch"), "{refused}");
}

#[test]
fn the_terraform_module_for_ec2() {
    let account = Account::new();
    account.put_object("spacelift-launcher", &std::fs::read(program::launcher()).unwrap());
    let directory = tempfile::tempdir().unwrap();
    // The module splits s3://BUCKET/KEY and fetches it like this.
    let script = format!(
        "aws s3api get-object --bucket {BUCKET} --key spacelift-launcher launcher >/dev/null && chmod 755 \
                          launcher && ./launcher --version"
    );
    let version = succeed(account.emulator.shell(&script).current_dir(directory.path()));
    assert!(version.starts_with("spacelift-launcher v"), "{version}");
    assert_eq!(tree::sha256(&directory.path().join("launcher")), tree::sha256(program::launcher()));
}
