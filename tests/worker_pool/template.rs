//! The stack of a pool: what its parameters make of it.

use integration_tests::aws_emulator::{ACCOUNT, Emulator};
use integration_tests::release::workspace;
use integration_tests::run::{finish, succeed};
use serde_json::Value;

use super::pool::{Account, BUCKET};

fn query(emulator: &Emulator, command: &str) -> Value {
    finish(&mut emulator.shell(&format!("aws {command} --output json"))).expect(0).json()
}

fn launch_template(emulator: &Emulator, suffix: &str) -> Value {
    let name = format!("--launch-template-name spacelift-worker-pool-{suffix} --versions '$Latest'");
    let versions = query(emulator, &format!("ec2 describe-launch-template-versions {name}"));
    versions["LaunchTemplateVersions"][0]["LaunchTemplateData"].clone()
}

#[test]
fn a_pool_has_the_least_permissions_and_hosts_that_keep_to_themselves() {
    let account = Account::new();
    account.deploy(&account.own_template(), "ab12cd", "AdditionalRootCAsSecretName=our/cas");
    let emulator = &account.emulator;
    let role = "--role-name spacelift-worker-pool-ab12cd";
    let attached = query(emulator, &format!("iam list-attached-role-policies {role}"));
    let mut names: Vec<&str> = attached["AttachedPolicies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["PolicyName"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["AmazonSSMManagedInstanceCore", "AutoScalingReadOnlyAccess", "CloudWatchAgentServerPolicy"]);
    let inline = |name: &str| {
        let policy = query(emulator, &format!("iam get-role-policy {role} --policy-name {name}"));
        policy["PolicyDocument"]["Statement"].clone()
    };
    let arn = |name: &str| format!("arn:aws:secretsmanager:eu-west-1:{ACCOUNT}:secret:{name}-??????");
    assert_eq!(
        inline("read-secrets"),
        serde_json::json!([{
            "Effect": "Allow",
            "Action": "secretsmanager:GetSecretValue",
            "Resource": [arn("spacelift/default-worker-pool-credentials"), arn("our/cas")],
        }])
    );
    assert_eq!(
        inline("read-launcher"),
        serde_json::json!([{
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": format!("arn:aws:s3:::{BUCKET}/*"),
        }])
    );
    let template = launch_template(emulator, "ab12cd");
    assert_eq!(template["MetadataOptions"]["HttpTokens"], "required");
    assert_eq!(template["MetadataOptions"]["HttpPutResponseHopLimit"], 1);
    let disk = &template["BlockDeviceMappings"][0]["Ebs"];
    assert_eq!((disk["Encrypted"].as_bool(), disk["VolumeType"].as_str()), (Some(true), Some("gp3")));
    assert!(template["InstanceMarketOptions"].is_null(), "{template}");
    assert_eq!(template["SecurityGroupIds"], serde_json::json!(["sg-0d1e157a19ba2106f"]));
    let groups = query(emulator, "autoscaling describe-auto-scaling-groups");
    let group = &groups["AutoScalingGroups"][0];
    assert_eq!((group["MinSize"].as_u64(), group["MaxSize"].as_u64()), (Some(1), Some(10)));
    assert_eq!(group["VPCZoneIdentifier"], "subnet-44ca1b771ca7bcc1a,subnet-6b61ec08772f47ba2");
}

#[test]
fn a_role_of_the_customer_is_used_as_it_is() {
    let account = Account::new();
    let trust = r#"{"Version":"2012-10-17","Statement":[]}"#;
    let mut create = account.emulator.aws();
    create.args(["iam", "create-role", "--role-name", "default-worker-role", "--assume-role-policy-document", trust]);
    succeed(&mut create);
    let more = "InstanceRoleName=\"default-worker-role\" Spot=true MinSize=2 MaxSize=3 VolumeSize=100";
    account.deploy(&account.own_template(), "ab12cd", more);
    let roles = query(&account.emulator, "iam list-roles");
    let names: Vec<&str> =
        roles["Roles"].as_array().unwrap().iter().map(|role| role["RoleName"].as_str().unwrap()).collect();
    assert_eq!(names, ["default-worker-role"]);
    let name = "--instance-profile-name spacelift-worker-pool-ab12cd";
    let profile = query(&account.emulator, &format!("iam get-instance-profile {name}"));
    assert_eq!(profile["InstanceProfile"]["Roles"][0]["RoleName"], "default-worker-role");
    let template = launch_template(&account.emulator, "ab12cd");
    assert_eq!(template["InstanceMarketOptions"]["MarketType"], "spot");
    assert_eq!(template["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"], 100);
}

#[test]
fn an_update_makes_a_new_version_of_the_launch_template() {
    let account = Account::new();
    let release = account.own_template();
    assert!(account.deploy(&release, "ab12cd", "").contains("POWER_OFF_ON_ERROR='true'"));
    assert!(account.deploy(&release, "ab12cd", "PowerOffOnError=false").contains("POWER_OFF_ON_ERROR='false'"));
    let groups = query(&account.emulator, "autoscaling describe-auto-scaling-groups");
    assert_eq!(groups["AutoScalingGroups"][0]["LaunchTemplate"]["Version"], "2");
}

#[test]
fn values_that_could_leave_their_quotes_are_refused() {
    let account = Account::new();
    let release = account.own_template();
    for (more, name) in [
        ("HttpProxyConfig=\"http://x';reboot;'\"", "HttpProxyConfig"),
        ("NoProxyConfig=\"a b\"", "NoProxyConfig"),
        ("CustomUserDataSecretName=\"x'y\"", "CustomUserDataSecretName"),
        ("LauncherVersion=\"../v1.2.3\"", "LauncherVersion"),
        ("PowerOffOnError=maybe", "PowerOffOnError"),
    ] {
        let refused = account.try_deploy(&release, "ab12cd", more);
        assert!(refused.code != Some(0) && refused.says(name), "{refused}");
    }
}

#[test]
fn user_data_fits_with_the_longest_settings_in_use() {
    let account = Account::new();
    let certificates: Vec<_> = ["one", "two"].map(|name| super::pool::Signer::good(name).cert).into();
    let release = account.template("v1.2.3", &certificates, 2);
    let proxy = format!("http://user:{}@proxy.example.com:1234", "x".repeat(60));
    let more = format!(
        "HttpProxyConfig={proxy} HttpsProxyConfig={proxy} NoProxyConfig={} AdditionalRootCAsSecretName=our/cas \
         CustomUserDataSecretName=our/userdata LauncherVersion=v1.2.3",
        "some.domain,".repeat(20)
    );
    let user_data = account.deploy(&release, "ab12cd", &more);
    assert!(user_data.len() <= 16384, "{}", user_data.len());
    // As it is in the repository, the template is not one that anybody should deploy, and still it can be.
    assert!(account.deploy(&workspace(), "source", "").len() <= 16384);
}
