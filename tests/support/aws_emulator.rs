//! AWS on this machine: S3, CloudFormation, IAM, STS, EC2, Auto Scaling, ECR's control plane and Secrets Manager.
//!
//! It is moto with the corrections of `aws_emulator.py`. What it does not check: signatures of requests, checksums of
//! uploads, IAM policies, and most values of properties in templates, which cfn-lint knows.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::registry::free_port;
use crate::release::workspace;
use crate::run;

/// The account that everything belongs to.
pub const ACCOUNT: &str = "123456789012";
/// The region of commands that name none.
pub const REGION: &str = "eu-west-1";
/// An access key that cannot be one: the emulator accepts any.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
/// Its secret.
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// A private, empty account on loopback. It ends when this is dropped.
///
/// Subnets and a security group with the names that the documentation uses exist in a few regions.
#[derive(Debug)]
pub struct Emulator {
    port: u16,
    // Fields are dropped in this order: the server before its data.
    daemon: Daemon,
    data: TempDir,
}

impl Emulator {
    /// Starts it, without a registry behind ECR.
    ///
    /// # Panics
    /// It does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it so that repositories and tokens of ECR lead to a registry at `host:port`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_with_registry(address: &str) -> Self {
        Self::start_with(&[("EMULATOR_REGISTRY", address)])
    }

    /// The same, for an account that may have so many stacks.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_with_stack_limit(registry: &str, stacks: u32) -> Self {
        Self::start_with(&[("EMULATOR_REGISTRY", registry), ("EMULATOR_STACK_LIMIT", &stacks.to_string())])
    }

    fn start_with(variables: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(python_tool("python"));
        command.arg(support("aws_emulator.py")).arg(port.to_string()).env("LC_ALL", "C.UTF-8");
        // Nothing of the machine's own configuration or proxies.
        for name in ["AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CA_BUNDLE", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1").envs(variables.iter().copied());
        let is_ready = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let daemon = Daemon::start(&mut command, &data.path().join("log"), is_ready);
        write_cli_configuration(data.path());
        Self { port, daemon, data }
    }

    /// The address of all its services, for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory that everything of it is in.
    pub fn path(&self) -> &Path {
        self.data.path()
    }

    /// What it printed: one line per request.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Ends it early: from here on nothing answers.
    pub fn stop(&mut self) {
        self.daemon.stop();
    }

    /// Credentials, region and endpoint for a program that uses AWS, and nothing of the user's own.
    pub fn configure(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name);
        }
        command.envs(self.environment());
    }

    /// The variables that [`Emulator::configure`] sets.
    pub fn environment(&self) -> Vec<(String, String)> {
        let config = self.data.path().join("config");
        [
            ("AWS_ENDPOINT_URL", self.endpoint().as_str()),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", config.to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("AWS_PAGER", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The AWS CLI, version 2, talking to this account.
    ///
    /// # Panics
    /// It is not installed.
    pub fn aws(&self) -> Command {
        let mut aws = Command::new(cli());
        self.configure(&mut aws);
        aws.env("LC_ALL", "C.UTF-8");
        aws
    }

    /// A shell in which `aws` is the AWS CLI talking to this account: documented commands run as they are printed.
    ///
    /// # Panics
    /// The AWS CLI is not installed.
    pub fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("/bin/bash");
        shell.args(["-euo", "pipefail", "-c", script]);
        self.configure(&mut shell);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = cli().parent().unwrap().to_owned();
        let path = std::env::join_paths(std::iter::once(first).chain(std::env::split_paths(&path))).unwrap();
        shell.env("PATH", path).env("LC_ALL", "C.UTF-8");
        shell
    }

    /// The outputs of a stack, by name.
    ///
    /// # Panics
    /// There is no such stack.
    pub fn outputs(&self, stack: &str) -> std::collections::BTreeMap<String, String> {
        let mut describe = self.aws();
        describe.args(["cloudformation", "describe-stacks", "--output", "json", "--stack-name", stack]);
        let document = run::finish(&mut describe).expect(0).json();
        let outputs = document["Stacks"][0]["Outputs"].as_array().cloned().unwrap_or_default();
        let text = |output: &serde_json::Value, field: &str| output[field].as_str().unwrap().to_owned();
        outputs.iter().map(|output| (text(output, "OutputKey"), text(output, "OutputValue"))).collect()
    }
}

/// A program of the Python environment that `cargo xtask test` makes: `python`, `cfn-lint`.
///
/// # Panics
/// It is not there.
pub fn python_tool(name: &str) -> PathBuf {
    let environment = workspace().join("target/tools/aws-emulator");
    let requirements = fs::read(support("aws_emulator.txt")).unwrap();
    let is_current = fs::read(environment.join("requirements.txt")).is_ok_and(|installed| installed == requirements);
    assert!(
        is_current,
        "{0} does not have what tests/support/aws_emulator.txt lists (moto and cfn-lint, from PyPI); `cargo xtask test` \
         installs it, as does: /usr/bin/python3 -m venv --clear {0} && {0}/bin/pip install --require-hashes --no-deps \
         -r tests/support/aws_emulator.txt && cp tests/support/aws_emulator.txt {0}/requirements.txt",
        environment.display()
    );
    environment.join("bin").join(name)
}

/// Version 2 of the AWS CLI: version 1 does not know all documented flags.
///
/// # Panics
/// It is not installed.
pub fn cli() -> &'static Path {
    static PATH: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PATH.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = std::iter::once(PathBuf::from("/usr/bin")).chain(std::env::split_paths(&path));
        let is_second = |program: &PathBuf| {
            let output = Command::new(program).arg("--version").output();
            output.is_ok_and(|output| output.stdout.starts_with(b"aws-cli/2."))
        };
        candidates
            .map(|directory| directory.join("aws"))
            .find(is_second)
            .expect("version 2 of the AWS CLI is not installed; it is in the Debian package awscli")
    })
}

/// Older versions of the CLI do not read `AWS_ENDPOINT_URL`; a plugin does it for them.
fn write_cli_configuration(directory: &Path) {
    let plugins = directory.join("plugins");
    fs::create_dir(&plugins).unwrap();
    fs::copy(support("aws_endpoint.py"), plugins.join("aws_endpoint.py")).unwrap();
    let text = format!("[plugins]\ncli_legacy_plugin_path = {}\nendpoint = aws_endpoint\n", plugins.display());
    fs::write(directory.join("config"), text).unwrap();
}

fn support(file: &str) -> PathBuf {
    workspace().join("tests/support").join(file)
}
