//! Worker hosts that start: from the documented command to a launcher that was verified and runs.

use integration_tests::run::{succeed, tool};
use integration_tests::worker_host::in_own_network;

use super::pool::{Account, LAUNCHER, PRIVATE_KEY, TOKEN, own_version};
use super::refusals::assert_refused;

/// What a customer's own script may do: set variables, and look at what the launcher gets.
const CUSTOM: &str = r#"
export SPACELIFT_CUSTOM="two words, 100%"
echo "custom output"
mkdir -p /etc/systemd/system/spacelift-launcher.service.d
cat >/etc/systemd/system/spacelift-launcher.service.d/report.conf <<'END'
[Service]
ExecStartPre=/bin/sh -c 'id >/tmp/launcher.id; env -0 >/tmp/launcher.env; pwd >/tmp/launcher.pwd'
END
"#;

#[test]
fn the_documented_command_leads_to_a_verified_launcher() {
    in_own_network(|| {
        let account = Account::new();
        account.put_secret("spacelift/userdata", CUSTOM);
        let more = "CustomUserDataSecretName=\"spacelift/userdata\" PowerOffOnError=false";
        let user_data = account.deploy(&account.own_template(), "ab12cd", more);
        let _metadata = account.metadata("ab12cd");
        let host = account.boot(&user_data, |_| ());
        assert_eq!(host.code(), Some(0), "{}", host.log("error"));
        assert!(!host.log("error").contains("user data:"), "{}", host.log("error"));
        let verified = format!("launcher {} is verified and installed", own_version());
        assert!(host.log("info").contains(&verified), "{}", host.log("info"));
        host.wait_for("the launcher to end, as this version does", |host| host.log("error").contains("launcher: it"));
        let id = host.read("tmp/launcher.id").unwrap_or_default();
        assert!(id.starts_with("uid=1983(spacelift)"), "{id}\n{}\n{}", host.log("info"), host.log("error"));
        assert_eq!(host.read("tmp/launcher.pwd").unwrap(), "/opt/spacelift\n");
        let text = host.read("tmp/launcher.env").unwrap();
        let variables: Vec<&str> = text.split('\0').collect();
        let instance = account.instance("ab12cd");
        for expected in [
            format!("SPACELIFT_TOKEN={TOKEN}"),
            format!("SPACELIFT_POOL_PRIVATE_KEY={PRIVATE_KEY}"),
            "SPACELIFT_CUSTOM=two words, 100%".to_owned(),
            format!("SPACELIFT_METADATA_instance_id={instance}"),
            "SPACELIFT_METADATA_asg_id=spacelift-worker-pool-ab12cd".to_owned(),
        ] {
            assert!(variables.contains(&expected.as_str()), "{expected} is not in {variables:?}");
        }
        assert!(!text.contains("AWS_SECRET_ACCESS_KEY"), "credentials of user data are not the launcher's");
        // Secrets are in the one file that only root may read, and in no log.
        let environment = host.path("etc/spacelift/environment");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&environment).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        for log in [host.log("info"), host.log("error"), host.read("var/log/cloud-init-output.log").unwrap_or_default()]
        {
            assert!(!log.contains("eyJicm9rZXIi") && !log.contains(PRIVATE_KEY), "{log}");
        }
        let left = std::fs::read_dir(host.path("opt/spacelift")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["spacelift-launcher"]);
    });
}

#[test]
fn proxies_and_authorities_reach_docker_and_the_launcher() {
    in_own_network(|| {
        let account = Account::new();
        account.put_secret("spacelift/userdata", CUSTOM);
        let directory = tempfile::tempdir().unwrap();
        let certificate = directory.path().join("ca.pem");
        let mut openssl = tool("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Test CA"]);
        openssl.arg("-keyout").arg(directory.path().join("ca.key")).arg("-out").arg(&certificate);
        succeed(&mut openssl);
        // As documented: base64 of a JSON document with base64 of certificates.
        let encode = "printf '{\"caCertificates\": [\"%s\"]}' \"$(base64 -w0 <\"$0\")\" | base64 -w0";
        account.put_secret("ca-certs", &succeed(tool("bash").args(["-c", encode]).arg(&certificate)));
        let more = "HttpProxyConfig=\"http://proxy.example.com:1234\" HttpsProxyConfig=\"https://u:p%40ss@proxy.example.com:4321\" \
                    NoProxyConfig=\"127.0.0.1,some.domain\" AdditionalRootCAsSecretName=ca-certs \
                    CustomUserDataSecretName=spacelift/userdata RunLauncherAsSpaceliftUser=false PowerOffOnError=true";
        let user_data = account.deploy(&account.own_template(), "pr0xy1", more);
        let _metadata = account.metadata("pr0xy1");
        let mut host = account.boot(&user_data, |_| ());
        assert_eq!(host.code(), Some(0), "{}", host.log("error"));
        host.wait_for("the launcher to end, as this version does", |host| host.log("error").contains("launcher: it"));
        let id = host.read("tmp/launcher.id").unwrap();
        assert!(id.starts_with("uid=0(root)"), "{id}");
        let text = host.read("tmp/launcher.env").unwrap();
        let variables: Vec<&str> = text.split('\0').collect();
        for expected in [
            "HTTP_PROXY=http://proxy.example.com:1234",
            "http_proxy=http://proxy.example.com:1234",
            "HTTPS_PROXY=https://u:p%40ss@proxy.example.com:4321",
            "NO_PROXY=169.254.169.254,127.0.0.1,some.domain",
        ] {
            assert!(variables.contains(&expected), "{expected} is not in {variables:?}");
        }
        let docker = host.read("var/lib/docker.env").unwrap();
        assert!(docker.contains("HTTP_PROXY=http://proxy.example.com:1234\n"), "{docker}");
        assert!(docker.contains("HTTPS_PROXY=https://u:p%40ss@proxy.example.com:4321\n"), "{docker}");
        let bundle = host.read("etc/ssl/certs/ca-certificates.crt").unwrap();
        assert!(bundle.contains(std::fs::read_to_string(&certificate).unwrap().trim()), "the CA is trusted");
        // The launcher ended, so the host goes.
        host.wait_until_off();
    });
}

#[test]
fn a_pinned_version_comes_from_its_release() {
    in_own_network(|| {
        let account = Account::new();
        account.publish(&format!("releases/{}/", own_version()));
        // What anyone can overwrite is not looked at.
        account.put_object(LAUNCHER, b"another");
        // The template is of a later release, and the pin says that the older one is meant.
        let later = account.template("v99.0.0", std::slice::from_ref(&account.vendor.cert), 1);
        let more = format!("LauncherVersion={} PowerOffOnError=false", own_version());
        let user_data = account.deploy(&later, "pinned", &more);
        let _metadata = account.metadata("pinned");
        let host = account.boot(&user_data, |_| ());
        assert_eq!(host.code(), Some(0), "{}", host.log("error"));

        // A launcher of another version in that place is not it, whoever signed it.
        account.publish("releases/v98.0.0/");
        let user_data = account.deploy(&later, "pinned", "LauncherVersion=v98.0.0 PowerOffOnError=false");
        assert_refused(&account.boot(&user_data, |_| ()), &format!("is version {}", own_version()));
    });
}
