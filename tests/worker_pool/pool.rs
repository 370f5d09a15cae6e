//! A pool in an emulated account: what an installation and the documented commands leave there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use bundle_core::Cert;
use bundle_core::version::ReleaseVersion;
use bundle_core::worker_template::{self, Pins};
use integration_tests::aws_emulator::Emulator;
use integration_tests::instance_metadata::InstanceMetadata;
use integration_tests::release::workspace;
use integration_tests::run::{Finished, finish, succeed};
use integration_tests::worker_host::{self, Host};
use integration_tests::{program, tree};
use sequoia_openpgp::crypto::KeyPair;
use sequoia_openpgp::packet::Packet;
use sequoia_openpgp::packet::prelude::SignatureBuilder;
use sequoia_openpgp::serialize::MarshalInto as _;
use sequoia_openpgp::types::{HashAlgorithm, KeyFlags, ReasonForRevocation, SignatureType};
use tempfile::TempDir;

/// The bucket and the secret of the documented commands.
pub(super) const BUCKET: &str = "012345678901-spacelift-infra-spacelift-downloads";
pub(super) const SECRET: &str = "spacelift/default-worker-pool-credentials";
/// What is in the secret, and must be nowhere else than in the launcher's environment.
pub(super) const TOKEN: &str = "token-eyJicm9rZXIi-$HOME-`id`-\\\"end";
pub(super) const PRIVATE_KEY: &str = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCg==";
/// The launcher's name in the bucket.
pub(super) const LAUNCHER: &str = "spacelift-launcher-x86_64";

/// Someone who signs.
pub(super) struct Signer {
    pub(super) cert: Cert,
    key: KeyPair,
}

impl Signer {
    /// A key whose certificate is made at `made` and is valid for `seconds`, if any are given.
    pub(super) fn new(name: &str, made: SystemTime, seconds: Option<u64>) -> Self {
        let builder = sequoia_openpgp::cert::CertBuilder::new()
            .add_userid(name)
            .set_creation_time(made)
            .set_validity_period(seconds.map(std::time::Duration::from_secs));
        let (cert, _) = builder.add_subkey(KeyFlags::empty().set_signing(), None, None).generate().unwrap();
        let key = cert.keys().subkeys().secret().next().unwrap().key().clone().into_keypair().unwrap();
        Self { cert: cert.strip_secret_key_material(), key }
    }

    /// One that is good now.
    pub(super) fn good(name: &str) -> Self {
        Self::new(name, SystemTime::now() - std::time::Duration::from_secs(3600), None)
    }

    /// One whose certificate says that it holds no more.
    pub(super) fn revoked(name: &str, reason: ReasonForRevocation) -> Self {
        let made = SystemTime::now() - std::time::Duration::from_secs(3600);
        let builder = sequoia_openpgp::cert::CertBuilder::new().add_userid(name).set_creation_time(made);
        let (cert, _) = builder.add_subkey(KeyFlags::empty().set_signing(), None, None).generate().unwrap();
        let key = cert.keys().subkeys().secret().next().unwrap().key().clone().into_keypair().unwrap();
        let mut primary = cert.primary_key().key().clone().parts_into_secret().unwrap().into_keypair().unwrap();
        let revocation = cert.revoke(&mut primary, reason, b"").unwrap();
        let (cert, _) = cert.insert_packets(revocation).unwrap();
        Self { cert: cert.strip_secret_key_material(), key }
    }

    /// A detached signature.
    pub(super) fn sign(&self, data: &[u8], hash: HashAlgorithm, at: SystemTime) -> Vec<u8> {
        let mut key = self.key.clone();
        let signature = SignatureBuilder::new(SignatureType::Binary)
            .set_hash_algo(hash)
            .set_signature_creation_time(at)
            .and_then(|builder| builder.set_issuer_fingerprint(key.public().fingerprint()))
            .and_then(|builder| builder.set_issuer(key.public().keyid()))
            .and_then(|builder| builder.sign_message(&mut key, data))
            .unwrap();
        Packet::from(signature).to_vec().unwrap()
    }

    /// As releases are signed.
    pub(super) fn sign_now(&self, data: &[u8]) -> Vec<u8> {
        self.sign(data, HashAlgorithm::SHA512, SystemTime::now())
    }
}

/// An account with a downloads bucket and the secret of a pool.
pub(super) struct Account {
    pub(super) emulator: Emulator,
    pub(super) vendor: Signer,
    directory: TempDir,
}

impl Account {
    /// With a release in the bucket that the vendor signed: the launcher under test.
    pub(super) fn new() -> Self {
        let emulator = Emulator::start();
        let directory = tempfile::tempdir().unwrap();
        let account = Self { emulator, vendor: Signer::good("vendor"), directory };
        account.aws(&["s3api", "create-bucket", "--bucket", BUCKET, "--create-bucket-configuration"], |command| {
            command.arg("LocationConstraint=eu-west-1");
        });
        let pool = serde_json::json!({ "SPACELIFT_TOKEN": TOKEN, "SPACELIFT_POOL_PRIVATE_KEY": PRIVATE_KEY });
        account.put_secret(SECRET, &pool.to_string());
        account.publish("");
        account
    }

    fn aws(&self, arguments: &[&str], more: impl FnOnce(&mut Command)) -> String {
        let mut aws = self.emulator.aws();
        aws.args(arguments);
        more(&mut aws);
        succeed(&mut aws)
    }

    pub(super) fn put_secret(&self, name: &str, value: &str) {
        let file = self.directory.path().join("secret");
        fs::write(&file, value).unwrap();
        self.aws(&["secretsmanager", "create-secret", "--name", name, "--secret-string"], |command| {
            command.arg(format!("file://{}", file.display()));
        });
    }

    pub(super) fn put_object(&self, key: &str, contents: &[u8]) {
        let file = self.directory.path().join("object");
        fs::write(&file, contents).unwrap();
        self.aws(&["s3api", "put-object", "--bucket", BUCKET, "--key", key, "--body"], |command| {
            command.arg(&file);
        });
    }

    /// The line of the sums file.
    pub(super) fn sums() -> String {
        format!("{}  {LAUNCHER}\n", tree::sha256(program::launcher()))
    }

    /// Launcher, sums and signature, below a prefix of keys.
    pub(super) fn publish(&self, prefix: &str) {
        let sums = Self::sums();
        self.put_object(&format!("{prefix}{LAUNCHER}"), &fs::read(program::launcher()).unwrap());
        self.put_object(&format!("{prefix}{LAUNCHER}_SHA256SUMS"), sums.as_bytes());
        self.put_object(&format!("{prefix}{LAUNCHER}_SHA256SUMS.sig"), &self.vendor.sign_now(sums.as_bytes()));
    }

    /// The template as a release of this version has it, in a directory like that of a release.
    pub(super) fn template(&self, version: &str, certificates: &[Cert], threshold: u32) -> PathBuf {
        let release = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        let version: ReleaseVersion = version.parse().unwrap();
        let source = fs::read(workspace().join(worker_template::PATH)).unwrap();
        let pins = Pins { version: &version, certificates, threshold };
        fs::create_dir(release.join("cloudformation")).unwrap();
        fs::write(release.join(worker_template::PATH), worker_template::render(&source, pins).unwrap()).unwrap();
        release
    }

    /// The template of the release under test.
    pub(super) fn own_template(&self) -> PathBuf {
        self.template(own_version(), std::slice::from_ref(&self.vendor.cert), 1)
    }

    /// The documented command, verbatim but for the stack, the suffix and what `more` adds.
    pub(super) fn try_deploy(&self, release: &Path, suffix: &str, more: &str) -> Finished {
        let script = format!(
            "aws cloudformation deploy --no-cli-pager \\\n  --stack-name pool-{suffix} \\\n  --template-file \
             \"cloudformation/workerpool.yaml\" \\\n  --region \"eu-west-1\" \\\n  --parameter-overrides \\\n    \
             PseudoRandomSuffix=\"{suffix}\" \\\n    BinariesBucket=\"{BUCKET}\" \\\n    SecretName=\"{SECRET}\" \\\n    \
             SecurityGroups=\"sg-0d1e157a19ba2106f\" \\\n    \
             Subnets=\"subnet-44ca1b771ca7bcc1a,subnet-6b61ec08772f47ba2\" \\\n    \
             ImageId=\"ami-0ead0234bef4f51b0\" \\\n    {more} \\\n  --capabilities \"CAPABILITY_NAMED_IAM\""
        );
        finish(self.emulator.shell(&script).current_dir(release))
    }

    /// Deploys, and gives the user data of the pool's newest launch template.
    pub(super) fn deploy(&self, release: &Path, suffix: &str, more: &str) -> String {
        self.try_deploy(release, suffix, more).expect(0);
        self.user_data(suffix)
    }

    pub(super) fn user_data(&self, suffix: &str) -> String {
        let script = format!(
            "aws ec2 describe-launch-template-versions --launch-template-name spacelift-worker-pool-{suffix} \
             --versions '$Latest' --output text \
             --query 'LaunchTemplateVersions[0].LaunchTemplateData.UserData' | base64 -d"
        );
        succeed(&mut self.emulator.shell(&script))
    }

    /// The id of an instance of a group of this pool.
    pub(super) fn instance(&self, suffix: &str) -> String {
        let group = format!("AutoScalingInstances[?AutoScalingGroupName=='spacelift-worker-pool-{suffix}'].InstanceId");
        let arguments = ["autoscaling", "describe-auto-scaling-instances", "--output", "text", "--query", &group];
        let text = self.aws(&arguments, |_| {});
        text.split_whitespace().next().unwrap_or_else(|| panic!("the group of {suffix} has no instance")).to_owned()
    }

    /// The metadata service of that instance.
    pub(super) fn metadata(&self, suffix: &str) -> InstanceMetadata {
        worker_host::instance_metadata(&self.instance(suffix))
    }

    /// Boots a host with this user data.
    pub(super) fn boot(&self, user_data: &str, change: impl FnOnce(&Path)) -> Host {
        let mut environment = self.emulator.environment();
        // The host has the plugin that leads an older CLI to the emulator, at a place of its own.
        for (name, value) in &mut environment {
            if name == "AWS_CONFIG_FILE" {
                *value = "/var/lib/cloud/aws/config".to_owned();
            }
        }
        Host::boot(user_data, &environment, |root| {
            let plugins = root.join("var/lib/cloud/aws/plugins");
            fs::create_dir_all(&plugins).unwrap();
            fs::copy(workspace().join("tests/support/aws_endpoint.py"), plugins.join("aws_endpoint.py")).unwrap();
            let config = "[plugins]\ncli_legacy_plugin_path = /var/lib/cloud/aws/plugins\nendpoint = aws_endpoint\n";
            fs::write(root.join("var/lib/cloud/aws/config"), config).unwrap();
            change(root);
        })
    }
}

/// The version of the launcher under test, and so of the release that it belongs to.
pub(super) fn own_version() -> &'static str {
    concat!("v", env!("CARGO_PKG_VERSION"))
}
