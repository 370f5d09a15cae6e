//! Installing and uninstalling, against an emulated AWS account and a real registry.
//!
//! What the emulator does not check: signatures and permissions of requests, the owner that a request expects, and values
//! of most properties. It makes stacks in one step, so that nothing is ever seen in progress, and rolls nothing back.
//! Where a test needs a state that only AWS gets into, it says how it is brought about.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::aws_emulator::{ACCOUNT, Emulator};
use integration_tests::registry::Registry;
use integration_tests::release::Release;
use integration_tests::run::{Finished, find, finish, succeed, tool};
use serde_json::{Value, json};
use tempfile::TempDir;

mod vendor;

use vendor::{Offer, Vendor, bundle};

const BUCKET: &str = "123456789012-spacelift-infra-spacelift-downloads";
const STACKS: [&str; 2] = ["spacelift-infra-s3", "spacelift-infra-ecr"];

/// A customer with an account, who pins the vendor's certificate.
struct Customer {
    vendor: Vendor,
    // Fields are dropped in this order: the account before the registry that it leads to.
    aws: Emulator,
    registry: Registry,
    directory: TempDir,
}

impl Customer {
    fn new() -> Self {
        let registry = Registry::start();
        let aws = Emulator::start_with_registry(&registry.address());
        Self { vendor: Vendor::new(), aws, registry, directory: tempfile::tempdir().unwrap() }
    }

    /// A configuration that pins the vendor, with more fields.
    fn config(&self, more: &Value) -> PathBuf {
        let mut config = json!({ "aws_region": "eu-west-1", "signers": [self.vendor.certificate] });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = self.directory.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn command(&self, name: &str, release: &Path, config: &Path, arguments: &[&str]) -> Command {
        let mut command = bundle();
        command.arg(name).arg("--release").arg(release).arg("-c").arg(config).arg("--allow-http").args(arguments);
        if name == "install" {
            // What is killed cannot tidy up its private copy of the release.
            command.arg("--work-dir").arg(self.directory.path());
        }
        self.aws.configure(&mut command);
        command
    }

    fn install(&self, release: &Path, arguments: &[&str]) -> Finished {
        finish(&mut self.command("install", release, &self.config(&json!({})), arguments))
    }

    fn uninstall(&self, release: &Path, arguments: &[&str]) -> Finished {
        finish(&mut self.command("uninstall", release, &self.config(&json!({})), arguments))
    }

    /// What the AWS CLI prints as JSON.
    fn ask(&self, arguments: &[&str]) -> Value {
        let said = succeed(self.aws.aws().args(arguments).args(["--output", "json"]));
        if said.is_empty() { Value::Null } else { serde_json::from_str(&said).unwrap() }
    }

    fn stacks(&self) -> Vec<String> {
        let listed = self.ask(&["cloudformation", "describe-stacks"]);
        let mut names: Vec<String> = listed["Stacks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stack| stack["StackName"].as_str().unwrap().into())
            .collect();
        names.sort();
        names
    }

    fn has_bucket(&self) -> bool {
        let listed = self.ask(&["s3api", "list-buckets"]);
        listed["Buckets"].as_array().unwrap().iter().any(|bucket| bucket["Name"] == BUCKET)
    }

    /// The version that workers get: what the channel points to.
    fn published(&self) -> String {
        let path = self.directory.path().join("pointer");
        let (from, to) = (format!("s3://{BUCKET}/channel/stable.json"), path.to_str().unwrap());
        succeed(self.aws.aws().args(["s3", "cp", "--quiet", &from, to]));
        let manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest["version"].as_str().unwrap().to_owned()
    }

    /// The tags in the registry.
    fn tags(&self) -> Vec<String> {
        let image = format!("docker://{}/spacelift-launcher", self.registry.address());
        let listed = succeed(tool("skopeo").args(["list-tags", "--tls-verify=false", &image]));
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["Tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_release_is_installed_upgraded_rolled_back_and_uninstalled_twice() {
    let customer = Customer::new();
    let first = customer.vendor.release(Offer::new("v1.0.0", 1));
    let second = customer.vendor.release(Offer::new("v1.1.0", 2));
    for round in ["first", "second"] {
        let installed = customer.install(&first, &["--yes"]).expect(0);
        for part in [
            "Installation info:",
            &format!("Downloads bucket: {BUCKET}"),
            &format!("Launcher container image: {}/spacelift-launcher:v1.0.0", customer.registry.address()),
            "Version v1.0.0 has been successfully installed",
            &format!("account      {ACCOUNT}"),
            "stack spacelift-infra-s3: CREATE_COMPLETE",
        ] {
            assert!(installed.says(part), "{round}: {part}: {installed}");
        }
        assert_eq!(customer.stacks(), ["spacelift-infra-ecr", "spacelift-infra-s3"]);
        assert_eq!(customer.published(), "v1.0.0");

        // Again: nothing is there to do, and nothing is done.
        let again = customer.install(&first, &["--yes", "--json"]).expect(0);
        let document = again.json();
        assert_eq!(document["installed_before"], "v1.0.0", "{again}");
        for (stack, name) in document["stacks"].as_array().unwrap().iter().zip(STACKS) {
            assert_eq!((&stack["name"], &stack["result"]), (&json!(name), &json!("unchanged")), "{again}");
        }
        assert_eq!(document["downloads_bucket"], BUCKET);
        for stack in STACKS {
            let left = customer.ask(&["cloudformation", "list-change-sets", "--stack-name", stack]);
            let open = left["Summaries"].as_array().unwrap().iter();
            let open = open.filter(|summary| summary["ExecutionStatus"] != "EXECUTE_COMPLETE");
            assert_eq!(open.count(), 0, "an empty change set is not left behind: {left}");
        }

        let upgraded = customer.install(&second, &["--yes"]).expect(0);
        assert!(upgraded.says("v1.0.0 -> v1.1.0"), "{upgraded}");
        assert_eq!(customer.published(), "v1.1.0");
        assert_eq!(customer.tags(), ["v1.0.0", "v1.1.0"]);

        let refused = customer.install(&first, &["--yes"]).expect(19);
        assert!(refused.says("--allow-rollback"), "{refused}");
        assert_eq!(customer.published(), "v1.1.0");
        customer.install(&first, &["--yes", "--allow-rollback"]).expect(0);
        assert_eq!(customer.published(), "v1.0.0");

        let kept = customer.uninstall(&first, &["-f"]).expect(0);
        assert!(kept.says(&format!("left     bucket {BUCKET}")), "{kept}");
        assert_eq!(customer.stacks(), [""; 0]);
        assert_eq!(customer.published(), "v1.0.0", "the bucket and everything in it stay");
        let nothing = customer.uninstall(&first, &["-f"]).expect(0);
        assert!(nothing.says("nothing to uninstall"), "{nothing}");

        let deleted = customer.uninstall(&first, &["-f", "-n", "--json"]).expect(0).json();
        assert_eq!(deleted["left"], json!([]));
        assert!(!customer.has_bucket());
        customer.uninstall(&first, &["-f", "-n"]).expect(0);
    }
}

/// What an uninstallation kept is taken over by the next installation. The emulator has no import of resources of its own;
/// its correction takes what exists into the stack, and does not compare it with the template as AWS does.
#[test]
fn what_was_kept_is_used_again() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    customer.install(&release, &["--yes"]).expect(0);
    customer.uninstall(&release, &["-f"]).expect(0);
    let again = customer.install(&release, &["--yes"]).expect(0);
    assert!(again.says("exists and has no stack; it becomes part of spacelift-infra-s3"), "{again}");
    assert_eq!(customer.stacks(), ["spacelift-infra-ecr", "spacelift-infra-s3"]);
    assert_eq!(customer.published(), "v1.0.0");
    customer.install(&release, &["--yes"]).expect(0);
    customer.uninstall(&release, &["-f", "-n"]).expect(0);
    assert!(!customer.has_bucket());
}

#[test]
fn nothing_is_changed_before_someone_said_yes() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let refused = customer.install(&release, &[]).expect(64);
    assert!(refused.says("nobody is at a terminal") && refused.says("--yes"), "{refused}");
    assert!(refused.says(ACCOUNT) && refused.says("v1.0.0 (nothing is installed)"), "the plan is shown: {refused}");
    let plan = customer.install(&release, &["--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["plan"]["account"], ACCOUNT);
    assert_eq!(plan["plan"]["bucket"], BUCKET);
    assert_eq!(plan["plan"]["stacks"][0], json!({ "name": STACKS[0], "status": null, "imports": [] }));
    assert_eq!(customer.stacks(), [""; 0]);
    assert!(!customer.has_bucket());
    // Uninstalling asks, too.
    customer.install(&release, &["--yes"]).expect(0);
    let refused = customer.uninstall(&release, &["-n"]).expect(64);
    assert!(refused.says("nobody is at a terminal") && refused.says("DELETED"), "{refused}");
    assert!(customer.has_bucket());
}

#[test]
fn someone_at_a_terminal_is_asked_and_only_yes_counts() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let config = customer.config(&json!({}));
    let at_terminal = |answer: &str| {
        let install = customer.command("install", &release, &config, &[]);
        let words: Vec<String> = std::iter::once(install.get_program())
            .chain(install.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let mut script = Command::new("/bin/sh");
        // `script` gives it a terminal. What is typed comes when it has asked.
        script.args(["-c", &format!("(sleep 4; echo {answer}) | script -qec \"{}\" /dev/null", words.join(" "))]);
        customer.aws.configure(&mut script);
        finish(&mut script)
    };
    let no = at_terminal("y");
    assert!(no.code != Some(0) && no.says("Only 'yes' will be accepted") && no.says("nothing was changed"), "{no}");
    assert!(!customer.has_bucket());
    let yes = at_terminal("yes").expect(0);
    assert!(yes.says("Installation info:"), "{yes}");
}

#[test]
fn mistakes_in_the_configuration_are_reported_together_and_first() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let wrong = customer.config(&json!({
        "aws_regoin": "eu-west-1", "global_resource_tags": [{ "key": "aws:x", "value": "y" }],
        "proxy_config": { "http_proxy": "u:hunter2@proxy" },
    }));
    let refused = finish(&mut customer.command("install", &release, &wrong, &["--yes"])).expect(64);
    for part in ["3 mistakes", "did you mean `aws_region`?", "global_resource_tags[0].key", "proxy_config.http_proxy"] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    assert!(!refused.says("hunter2"), "{refused}");
    let path = customer.directory.path().join("comment.json");
    fs::write(&path, "{\n  // mine\n}\n").unwrap();
    let refused = finish(&mut customer.command("install", &release, &path, &["--yes"])).expect(64);
    assert!(refused.says("line 2, column 3: JSON has no comments"), "{refused}");
    finish(&mut customer.command("install", &release, Path::new("/nowhere/config.json"), &["--yes"])).expect(66);
    assert_eq!(customer.stacks(), [""; 0]);
}

#[test]
fn the_release_must_be_the_pinned_vendors() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    // The configuration that ships pins nobody.
    let shipped = release.join("config.json");
    let refused = finish(&mut customer.command("install", &release, &shipped, &["--yes"])).expect(64);
    assert!(refused.says("no certificate is pinned") && refused.says("by another way than the release"), "{refused}");
    let stranger = Vendor::new();
    let config = customer.config(&json!({ "signers": [stranger.certificate] }));
    finish(&mut customer.command("install", &release, &config, &["--yes"])).expect(17);
    // A fingerprint says whose certificate; the release may bring the certificate itself.
    let config = customer.config(&json!({ "signers": [customer.vendor.fingerprint] }));
    finish(&mut customer.command("install", &release, &config, &["--dry-run"])).expect(0);
    let config = customer.config(&json!({ "signers": [stranger.fingerprint] }));
    finish(&mut customer.command("install", &release, &config, &["--dry-run"])).expect(66);

    let template = release.join("cloudformation/infra-s3.yaml");
    let text = fs::read_to_string(&template).unwrap();
    fs::write(&template, text.replace("BlockPublicAcls: true", "BlockPublicAcls: false")).unwrap();
    let refused = customer.install(&release, &["--yes"]).expect(17);
    assert!(refused.says("infra-s3.yaml"), "{refused}");
    assert_eq!(customer.stacks(), [""; 0]);
}

#[test]
fn a_development_release_and_skipped_versions_need_their_flags() {
    let customer = Customer::new();
    let development = customer.vendor.release(Offer { development: true, ..Offer::new("v0.9.0", 1) });
    assert!(customer.install(&development, &["--yes"]).expect(19).says("--allow-development"));
    customer.install(&development, &["--yes", "--allow-development"]).expect(0);
    let far = Offer { minimum_upgrade_from: Some("v1.0.0"), ..Offer::new("v2.0.0", 5) };
    let far = customer.vendor.release(far);
    assert!(customer.install(&far, &["--yes"]).expect(19).says("--allow-skipping-versions"));
    assert_eq!(customer.published(), "v0.9.0");
    customer.install(&far, &["--yes", "--allow-skipping-versions"]).expect(0);
    assert_eq!(customer.published(), "v2.0.0");
}

/// The documented way: the configuration is edited where it lies. What is published is the release as it was signed.
#[test]
fn the_configuration_may_be_edited_in_place_and_is_never_published() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let signed = fs::read(release.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&signed).unwrap();
    config["signers"] = json!(["vendor.asc"]);
    config["aws_region"] = json!("eu-west-1");
    config["sso_config"] = json!({ "oidc_args": { "client_credentials": "hunter2" } });
    config["global_resource_tags"] = json!([{ "key": "team", "value": "platform" }]);
    fs::write(release.join("config.json"), config.to_string()).unwrap();
    fs::copy(&customer.vendor.certificate, release.join("vendor.asc")).unwrap();
    let mut install = bundle();
    install.arg("install").arg("--release").arg(&release).args(["--allow-http", "--yes"]);
    customer.aws.configure(&mut install);
    let installed = finish(&mut install).expect(0);
    assert!(installed.says("not used by this installer, only by the backend: sso_config"), "{installed}");
    assert!(installed.says("vendor.asc is not part of the release"), "{installed}");
    assert!(!installed.says("hunter2"), "{installed}");
    let path = customer.directory.path().join("published");
    let from = format!("s3://{BUCKET}/releases/v1.0.0/config.json");
    succeed(customer.aws.aws().args(["s3", "cp", "--quiet", &from, path.to_str().unwrap()]));
    assert_eq!(fs::read(path).unwrap(), signed);
    for stack in STACKS {
        let tags = &customer.ask(&["cloudformation", "describe-stacks", "--stack-name", stack])["Stacks"][0]["Tags"];
        assert_eq!(tags, &json!([{ "Key": "team", "Value": "platform" }]), "{stack}");
    }
    // Anything else that lies there is a sign that something is wrong.
    fs::write(release.join("bin/more"), "").unwrap();
    assert!(finish(&mut install).expect(17).says("bin/more"));
}

#[test]
fn names_of_the_configuration_are_used() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let config = customer.config(&json!({
        "downloads_bucket_name": "our-downloads", "launcher_repository_name": "team/launcher",
        "stack_names": { "s3": "our-s3", "ecr": "our-ecr" }, "aws_account_id": ACCOUNT,
        "s3_config": { "downloads_bucket_noncurrent_expiration_days": 30 },
    }));
    let installed = finish(&mut customer.command("install", &release, &config, &["--yes", "--json"])).expect(0).json();
    assert_eq!(installed["downloads_bucket"], "our-downloads");
    assert_eq!(installed["launcher_image"], format!("{}/team/launcher:v1.0.0", customer.registry.address()));
    assert_eq!(customer.stacks(), ["our-ecr", "our-s3"]);
    let stack = customer.ask(&["cloudformation", "describe-stacks", "--stack-name", "our-s3"]);
    let parameters = stack["Stacks"][0]["Parameters"].as_array().unwrap().clone();
    let days = json!("30");
    assert!(parameters.iter().any(|parameter| parameter["ParameterValue"] == days), "{parameters:?}");
    // The other name would mean another bucket, and everything in the first one left behind.
    let config = customer.config(&json!({ "stack_names": { "s3": "our-s3", "ecr": "our-ecr" } }));
    let refused = finish(&mut customer.command("install", &release, &config, &["--yes"])).expect(64);
    assert!(refused.says("has our-downloads") && refused.says("downloads_bucket_name"), "{refused}");
}

/// That credentials of one partition are not used in another is shown by unit tests: the emulator is in all of them.
#[test]
fn the_account_and_the_region_must_be_the_right_ones() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let refused = |more: Value, code: i32, arguments: &[&str], part: &str| {
        let config = customer.config(&more);
        let refused = finish(&mut customer.command("install", &release, &config, arguments)).expect(code);
        assert!(refused.says(part), "{part}: {refused}");
    };
    refused(json!({ "aws_account_id": "210987654321" }), 64, &["--yes"], "for account 210987654321");
    refused(json!({}), 64, &["--yes", "--region", "us-east-1"], "contradicts `aws_region`");
    refused(json!({ "aws_region": "Ireland" }), 64, &["--yes"], "is not a region");
    // A bucket with the name, elsewhere.
    let constraint = ["--region", "eu-central-1", "--create-bucket-configuration", "LocationConstraint=eu-central-1"];
    succeed(customer.aws.aws().args(["s3api", "create-bucket", "--bucket", BUCKET]).args(constraint));
    refused(json!({}), 78, &["--yes"], "it is in the region eu-central-1, and the installation in eu-west-1");
    assert_eq!(customer.stacks(), [""; 0]);
}

#[test]
fn credentials_that_do_not_work_are_told_apart() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let config = customer.config(&json!({}));
    let mut none = customer.command("install", &release, &config, &["--yes"]);
    none.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env("AWS_CONFIG_FILE", "/dev/null");
    let refused = finish(&mut none).expect(77);
    assert!(refused.says("credentials"), "{refused}");

    // The emulator accepts any credentials: an STS that answers as AWS does stands in front of it.
    for (code, part) in
        [("ExpiredToken", "have expired"), ("InvalidClientTokenId", "does not know"), ("AccessDenied", "denied")]
    {
        let sts = Refusal::start(code);
        let mut command = customer.command("install", &release, &config, &["--yes"]);
        let refused = finish(command.env("AWS_ENDPOINT_URL_STS", sts.address())).expect(77);
        assert!(refused.says(part) && refused.says(code), "{refused}");
        assert!(!refused.says("wJalrXUtnFEMI"), "{refused}");
    }
    assert_eq!(customer.stacks(), [""; 0]);
}

#[test]
fn what_cannot_be_reached_is_said() {
    let mut customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    customer.aws.stop();
    let refused = customer.install(&release, &["--yes"]).expect(69);
    assert!(refused.says("which AWS account"), "{refused}");
}

/// Proxies of the configuration are used, and the password that is in their address is sent and never shown.
#[test]
fn a_proxy_of_the_configuration_is_used() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let proxy = Refusal::start_with("407 Proxy Authentication Required", "");
    let address = proxy.address().replace("http://", "http://user:hunter2@");
    let config = customer.config(&json!({ "proxy_config": { "http_proxy": address } }));
    let refused = finish(&mut customer.command("install", &release, &config, &["--yes"])).expect(77);
    assert!(refused.says("the proxy asks for a password") && !refused.says("hunter2"), "{refused}");
    // Hosts that it is not for are reached without it, and the environment goes before the file.
    let config = customer.config(&json!({ "proxy_config": { "http_proxy": address, "no_proxy": "127.0.0.1" } }));
    finish(&mut customer.command("install", &release, &config, &["--dry-run"])).expect(0);
    let config = customer.config(&json!({ "proxy_config": { "http_proxy": address } }));
    let mut of_environment = customer.command("install", &release, &config, &["--dry-run"]);
    of_environment.env("HTTPS_PROXY", "http://127.0.0.1:9");
    finish(&mut of_environment).expect(0);
}

/// The archive as it ships, through the scripts in it, with nothing else: no Docker, jq, openssl or AWS CLI on the `PATH`.
#[test]
fn the_archive_installs_itself_with_its_scripts() {
    let registry = Registry::start();
    let aws = Emulator::start_with_registry(&registry.address());
    let under_test = Release::under_test();
    let unpacked = under_test.unpack();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    let text = json!({ "aws_region": "eu-west-1", "signers": [under_test.certificate] });
    fs::write(&config, text.to_string()).unwrap();
    let programs = directory.path().join("bin");
    fs::create_dir(&programs).unwrap();
    for name in ["sh", "dirname", "uname"] {
        std::os::unix::fs::symlink(find(name), programs.join(name)).unwrap();
    }
    let script = |name: &str, arguments: &[&str]| {
        let mut script = Command::new(unpacked.root.join(name));
        script.arg("-c").arg(&config).arg("--allow-http").args(arguments);
        aws.configure(&mut script);
        finish(script.env("PATH", &programs).current_dir(&unpacked.root))
    };
    let refused = script("install.sh", &["--yes"]).expect(19);
    assert!(refused.says("--allow-development"), "{refused}");
    for _ in 0..2 {
        let installed = script("install.sh", &["--yes", "--allow-development"]).expect(0);
        assert!(installed.says("Installation info:") && installed.says(BUCKET), "{installed}");
    }
    let kept = script("uninstall.sh", &["-f"]).expect(0);
    assert!(kept.says(&format!("left     bucket {BUCKET}")), "{kept}");
    let gone = script("uninstall.sh", &["-f", "-n"]).expect(0);
    assert!(gone.says(&format!("deleted  bucket {BUCKET}")) && !gone.says("left "), "{gone}");
    for name in ["install.sh", "uninstall.sh"] {
        assert!(succeed(Command::new(unpacked.root.join(name)).arg("-h")).contains("--config"));
    }
}

/// The emulator has one account in every bucket's place: the other owner is made by credentials of another account.
/// Larger than one part of an upload.
#[test]
fn a_large_launcher_is_installed_under_the_names_that_hosts_read() {
    const SIZE: usize = 9 * 1024 * 1024;
    let customer = Customer::new();
    let release = customer.vendor.release(Offer { launcher_size: SIZE, ..Offer::new("v1.0.0", 1) });
    customer.install(&release, &["--yes"]).expect(0);
    for key in ["spacelift-launcher", "spacelift-launcher-x86_64", "releases/v1.0.0/bin/spacelift-launcher"] {
        let head = customer.ask(&["s3api", "head-object", "--bucket", BUCKET, "--key", key]);
        assert_eq!(head["ContentLength"], SIZE, "{key}");
    }
    customer.install(&release, &["--yes"]).expect(0);
}

#[test]
fn an_account_that_may_have_no_more_stacks_is_told_before_anything_is_made() {
    let registry = Registry::start();
    let aws = Emulator::start_with_stack_limit(&registry.address(), 1);
    let customer = Customer { vendor: Vendor::new(), aws, registry, directory: tempfile::tempdir().unwrap() };
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let refused = customer.install(&release, &["--yes"]).expect(77);
    for part in ["0 of 1 stacks in eu-west-1", "needs 2 more", "Service Quotas"] {
        assert!(refused.says(part), "{part}: {refused}");
    }
    assert_eq!(customer.stacks(), Vec::<String>::new());
}

#[test]
fn a_bucket_of_someone_else_is_not_used() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let other = customer.config(&json!({ "downloads_bucket_name": "taken" }));
    let s3 = Refusal::start_with("403 Forbidden", "");
    let mut command = customer.command("install", &release, &other, &["--yes"]);
    let refused = finish(command.env("AWS_ENDPOINT_URL_S3", s3.address())).expect(77);
    assert!(refused.says("belongs to another account") && refused.says("downloads_bucket_name"), "{refused}");
    assert_eq!(customer.stacks(), [""; 0]);
}

/// The emulator never rolls back: a CloudFormation that answers as AWS does stands in front of it.
#[test]
fn a_stack_that_is_stuck_is_named_with_the_way_out() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let body = "<DescribeStacksResponse xmlns=\"http://cloudformation.amazonaws.com/doc/2010-05-15/\">\
                <DescribeStacksResult><Stacks><member><StackName>spacelift-infra-s3</StackName>\
                <StackId>arn:aws:cloudformation:eu-west-1:123456789012:stack/spacelift-infra-s3/1</StackId>\
                <CreationTime>2026-01-01T00:00:00Z</CreationTime><StackStatus>ROLLBACK_COMPLETE</StackStatus>\
                <StackStatusReason>no luck</StackStatusReason></member></Stacks></DescribeStacksResult>\
                </DescribeStacksResponse>";
    let stacks = Refusal::start_with("200 OK", body);
    let mut command = customer.command("install", &release, &customer.config(&json!({})), &["--yes"]);
    let refused = finish(command.env("AWS_ENDPOINT_URL_CLOUDFORMATION", stacks.address())).expect(78);
    for part in ["ROLLBACK_COMPLETE", "no luck", "./uninstall.sh", "delete-stack --region eu-west-1"] {
        assert!(refused.says(part), "{part}: {refused}");
    }
}

/// A stack that only has a change set, and a change set beside a stack: what is left by a run that was killed there.
#[test]
fn what_an_interrupted_run_left_is_cleared_away() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let template = format!("file://{}", release.join("cloudformation/infra-s3.yaml").display());
    let leave = |kind: &str, parameters: &[&str]| {
        let mut create = customer.aws.aws();
        create.args(["cloudformation", "create-change-set", "--stack-name", STACKS[0], "--change-set-type", kind]);
        create.args(["--change-set-name", "spacelift-bundle-1-1", "--template-body", &template]).args(parameters);
        succeed(&mut create);
    };
    leave("CREATE", &[]);
    customer.install(&release, &["--yes"]).expect(0);
    assert_eq!(customer.stacks(), ["spacelift-infra-ecr", "spacelift-infra-s3"]);
    let days = "ParameterKey=NoncurrentVersionExpirationDays,ParameterValue=7";
    leave("UPDATE", &["--parameters", days]);
    customer.install(&release, &["--yes"]).expect(0);
    let left = customer.ask(&["cloudformation", "list-change-sets", "--stack-name", STACKS[0]]).to_string();
    assert!(!left.contains("spacelift-bundle-1-1"), "{left}");
}

/// Killed at any time, it goes on from there when it is run again.
#[test]
fn an_installation_that_is_killed_goes_on() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    let config = customer.config(&json!({}));
    let started = Instant::now();
    customer.install(&release, &["--yes"]).expect(0);
    let whole = started.elapsed();
    customer.uninstall(&release, &["-f", "-n"]).expect(0);
    for part in 1..=8 {
        let mut install = customer.command("install", &release, &config, &["--yes"]);
        let mut child =
            install.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        thread::sleep(whole * part / 9);
        // SIGKILL: nothing is tidied up.
        child.kill().unwrap();
        child.wait().unwrap();
        let installed = customer.install(&release, &["--yes"]).expect(0);
        assert!(installed.says("Installation info:"), "{installed}");
        assert_eq!(customer.published(), "v1.0.0");
        assert_eq!(customer.stacks(), ["spacelift-infra-ecr", "spacelift-infra-s3"]);
        if part % 2 == 0 {
            // Uninstalling is no different.
            let mut uninstall = customer.command("uninstall", &release, &config, &["-f", "-n"]);
            let mut child = uninstall.stdout(std::process::Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_millis(150) * part);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        customer.uninstall(&release, &["-f", "-n"]).expect(0);
        assert!(!customer.has_bucket() && customer.stacks().is_empty());
    }
}

#[test]
fn worker_pools_that_use_the_bucket_are_named() {
    let customer = Customer::new();
    let release = customer.vendor.release(Offer::new("v1.0.0", 1));
    customer.install(&release, &["--yes"]).expect(0);
    let template = customer.directory.path().join("pool.yaml");
    let text = "Parameters:\n  BinariesBucket:\n    Type: String\nResources:\n  Topic:\n    Type: AWS::SNS::Topic\n";
    fs::write(&template, text).unwrap();
    let body = format!("file://{}", template.display());
    let mut create = customer.aws.aws();
    create.args(["cloudformation", "create-stack", "--stack-name", "our-pool", "--template-body", &body]);
    succeed(create.args(["--parameters", &format!("ParameterKey=BinariesBucket,ParameterValue={BUCKET}")]));
    let refused = customer.uninstall(&release, &["-n"]).expect(64);
    assert!(refused.says("our-pool") && refused.says("delete these stacks first"), "{refused}");
    assert!(customer.has_bucket());
    let kept = customer.uninstall(&release, &["-f"]).expect(0);
    assert!(kept.says("the worker pool our-pool fetches its launcher"), "{kept}");
}

/// The scripts of the release find their tool wherever they are called from, and hand on what they are given.
#[test]
fn the_scripts_call_the_tool_beside_them() {
    let directory = tempfile::tempdir().unwrap();
    let release = directory.path().join("a release");
    fs::create_dir_all(release.join("bin")).unwrap();
    for name in ["install.sh", "uninstall.sh"] {
        let script = integration_tests::release::workspace().join("scripts").join(name);
        succeed(tool("shellcheck").arg(&script));
        fs::copy(script, release.join(name)).unwrap();
    }
    let missing = finish(&mut Command::new(release.join("install.sh"))).expect(66);
    assert!(missing.says("unpack the whole release archive again"), "{missing}");
    let suffix = if std::env::consts::ARCH == "x86_64" { "" } else { "-aarch64" };
    std::os::unix::fs::symlink("/usr/bin/printf", release.join(format!("bin/spacelift-bundle{suffix}"))).unwrap();
    let root = fs::canonicalize(&release).unwrap();
    for name in ["install", "uninstall"] {
        let mut script = Command::new(format!("./{name}.sh"));
        // `printf` prints its first argument as a format: the name of the command, since there are no others in it.
        let said = finish(script.args(["-c", "a b.json"]).current_dir(&release)).expect(0);
        assert_eq!(said.stdout, name, "{said}");
    }
    fs::remove_file(release.join(format!("bin/spacelift-bundle{suffix}"))).unwrap();
    std::os::unix::fs::symlink("/usr/bin/echo", release.join(format!("bin/spacelift-bundle{suffix}"))).unwrap();
    let said = succeed(Command::new(release.join("uninstall.sh")).args(["-c", "a b.json", "-f", "-n"]));
    assert_eq!(said, format!("uninstall --release {} -c a b.json -f -n\n", root.display()));
}

/// A service that gives the same answer to everything. There is no other way to get some of AWS's answers on this machine.
struct Refusal {
    port: u16,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Refusal {
    /// Refuses in the words of services that speak XML.
    fn start(code: &str) -> Self {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>{code}</Code><Message>so it is</Message></Error><RequestId>1</RequestId></ErrorResponse>"
        );
        Self::start_with("403 Forbidden", &body)
    }

    fn start_with(status: &str, body: &str) -> Self {
        use std::io::{BufRead as _, BufReader, Read as _, Write as _};
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (is_over, status, body) = (std::sync::Arc::clone(&stop), status.to_owned(), body.to_owned());
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let Ok(mut connection) = connection else { continue };
                let mut reader = BufReader::new(connection.try_clone().unwrap());
                let (mut line, mut length, mut is_head) = (String::new(), 0_u64, false);
                while reader.read_line(&mut line).is_ok_and(|read| read > 0) && !line.trim().is_empty() {
                    is_head |= line.starts_with("HEAD ");
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap_or(0);
                    }
                    line.clear();
                }
                let _ = std::io::copy(&mut reader.take(length), &mut std::io::sink());
                let shown = if is_head { "" } else { body.as_str() };
                let _ = write!(
                    connection,
                    "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{shown}",
                    shown.len()
                );
            }
        });
        Self { port, stop, thread: Some(thread) }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
