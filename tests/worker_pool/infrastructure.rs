//! The downloads bucket and the repository.

use integration_tests::aws_emulator::{ACCOUNT, Emulator, python_tool};
use integration_tests::release::workspace;
use integration_tests::run::{finish, succeed};
use serde_json::Value;

/// As documented, but for the stack and the template.
fn deploy(emulator: &Emulator, stack: &str, template: &str, more: &str) -> integration_tests::run::Finished {
    let script = format!(
        "aws cloudformation deploy --no-cli-pager \\\n  --stack-name {stack} \\\n  --template-file \
         \"cloudformation/{template}\" \\\n  --region \"eu-west-1\" {more}"
    );
    finish(emulator.shell(&script).current_dir(workspace()))
}

fn aws(emulator: &Emulator, arguments: &[&str]) -> Value {
    finish(emulator.aws().args(arguments).args(["--output", "json"])).expect(0).json()
}

#[test]
fn the_linter_of_templates_finds_nothing() {
    let mut templates: Vec<_> = std::fs::read_dir(workspace().join("cloudformation"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    templates.sort();
    assert!(templates.len() >= 2, "{templates:?}");
    let mut lint = std::process::Command::new(python_tool("cfn-lint"));
    // Warnings count, in every partition.
    lint.arg("--regions").args(["us-east-1", "eu-west-1", "us-gov-west-1", "cn-north-1"]).arg("--").args(templates);
    assert_eq!(succeed(&mut lint), "");
}

#[test]
fn the_downloads_bucket_is_private_encrypted_and_versioned() {
    let emulator = Emulator::start();
    deploy(&emulator, "spacelift-infra-s3", "infra-s3.yaml", "").expect(0);
    let bucket = format!("{ACCOUNT}-spacelift-infra-spacelift-downloads");
    let outputs = emulator.outputs("spacelift-infra-s3");
    assert_eq!(outputs["DownloadsBucketName"], bucket);
    assert_eq!(outputs["DownloadsBucketArn"], format!("arn:aws:s3:::{bucket}"));

    // The documented other way to its name: the resources of the stack.
    let query = "StackResources[?LogicalResourceId=='DownloadsBucket'].PhysicalResourceId";
    let resources = ["cloudformation", "describe-stack-resources", "--stack-name", "spacelift-infra-s3", "--query"];
    assert_eq!(aws(&emulator, &[&resources[..], &[query]].concat()), serde_json::json!([bucket]));

    let get = |what: &str| aws(&emulator, &["s3api", what, "--bucket", &bucket]);
    assert_eq!(get("get-bucket-versioning")["Status"], "Enabled");
    let block = get("get-public-access-block");
    for setting in ["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"] {
        assert_eq!(block["PublicAccessBlockConfiguration"][setting], true, "{setting}");
    }
    let encryption = get("get-bucket-encryption");
    let rule = &encryption["ServerSideEncryptionConfiguration"]["Rules"][0];
    assert_eq!(rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"], "AES256");
    let ownership = get("get-bucket-ownership-controls");
    assert_eq!(ownership["OwnershipControls"]["Rules"][0]["ObjectOwnership"], "BucketOwnerEnforced");
    let policy: Value = serde_json::from_str(get("get-bucket-policy")["Policy"].as_str().unwrap()).unwrap();
    let statement = &policy["Statement"][0];
    assert_eq!(statement["Effect"], "Deny");
    assert_eq!(statement["Condition"]["Bool"]["aws:SecureTransport"], "false");
    assert_eq!(
        statement["Resource"],
        serde_json::json!([format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")])
    );
    let lifecycle = get("get-bucket-lifecycle-configuration").to_string();
    assert!(lifecycle.contains(r#""AbortIncompleteMultipartUpload":{"DaysAfterInitiation":1}"#), "{lifecycle}");
    assert!(lifecycle.contains(r#""NoncurrentDays":90"#), "{lifecycle}");

    // An upgrade of the stack, and then nothing to do.
    let days = "--parameter-overrides NoncurrentVersionExpirationDays=7";
    deploy(&emulator, "spacelift-infra-s3", "infra-s3.yaml", days).expect(0);
    let lifecycle = get("get-bucket-lifecycle-configuration").to_string();
    assert!(lifecycle.contains(r#""NoncurrentDays":7"#), "{lifecycle}");
    let unchanged = deploy(&emulator, "spacelift-infra-s3", "infra-s3.yaml", days);
    assert!(unchanged.says("No changes to deploy"), "{unchanged}");

    // The bucket stays when the stack goes.
    succeed(emulator.aws().args(["cloudformation", "delete-stack", "--stack-name", "spacelift-infra-s3"]));
    assert_eq!(get("get-bucket-versioning")["Status"], "Enabled");
    assert!(get("get-bucket-policy")["Policy"].is_string());
}

#[test]
fn a_bucket_can_have_another_name_and_a_key_of_the_customer() {
    let emulator = Emulator::start();
    let key = format!("arn:aws:kms:eu-west-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab");
    let more = format!("--parameter-overrides BucketName=our-downloads KmsKeyArn={key}");
    deploy(&emulator, "spacelift-infra-s3", "infra-s3.yaml", &more).expect(0);
    assert_eq!(emulator.outputs("spacelift-infra-s3")["DownloadsBucketName"], "our-downloads");
    let encryption = aws(&emulator, &["s3api", "get-bucket-encryption", "--bucket", "our-downloads"]);
    let rule = &encryption["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"];
    assert_eq!(rule["SSEAlgorithm"], "aws:kms");
    assert_eq!(rule["KMSMasterKeyID"], key);
    let refused = deploy(&emulator, "other", "infra-s3.yaml", "--parameter-overrides BucketName=Not_A_Bucket");
    assert!(refused.code != Some(0) && refused.says("BucketName"), "{refused}");
}

#[test]
fn the_repository_keeps_what_a_tag_means() {
    let emulator = Emulator::start_with_registry("127.0.0.1:5000");
    deploy(&emulator, "spacelift-infra-ecr", "infra-ecr.yaml", "").expect(0);
    let outputs = emulator.outputs("spacelift-infra-ecr");
    assert_eq!(outputs["LauncherRepositoryUri"], "127.0.0.1:5000/spacelift-launcher");
    let arn = format!("arn:aws:ecr:eu-west-1:{ACCOUNT}:repository/spacelift-launcher");
    assert_eq!(outputs["LauncherRepositoryArn"], arn);
    let repositories = aws(&emulator, &["ecr", "describe-repositories"]);
    let repository = &repositories["repositories"][0];
    assert_eq!(repository["imageTagMutability"], "IMMUTABLE");
    assert_eq!(repository["imageScanningConfiguration"]["scanOnPush"], true);
    assert_eq!(repository["encryptionConfiguration"]["encryptionType"], "AES256");
    let policy = aws(&emulator, &["ecr", "get-lifecycle-policy", "--repository-name", "spacelift-launcher"]);
    let policy: Value = serde_json::from_str(policy["lifecyclePolicyText"].as_str().unwrap()).unwrap();
    assert_eq!(policy["rules"][0]["selection"]["tagStatus"], "untagged");
    assert_eq!(policy["rules"][0]["selection"]["countNumber"], 14);
    succeed(emulator.aws().args(["cloudformation", "delete-stack", "--stack-name", "spacelift-infra-ecr"]));
    assert_eq!(aws(&emulator, &["ecr", "describe-repositories"])["repositories"][0]["repositoryArn"], arn);
}
