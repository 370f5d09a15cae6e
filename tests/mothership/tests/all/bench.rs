//! A broker, an object store and the control plane, on free ports of loopback.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use launcher_wire::api::{Source, Tool, Workflow};
use launcher_wire::id::PoolId;
use mothership::admin::{Client, CreateRun, Run, Stack};
use mothership::authority;
use tempfile::TempDir;

/// How long anything may take here before a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const BUCKET: &str = "runs";

/// A process that is killed when this is dropped.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Bench {
    pub(crate) broker_port: u16,
    pub(crate) objects_port: u16,
    flags: Vec<String>,
    mothership: Option<Process>,
    broker: Option<Process>,
    // Dropped last: the processes above have files in it.
    _objects: Process,
    directory: TempDir,
}

impl Bench {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        authority::init(&data, &["localhost".to_owned()]).unwrap();
        let (broker_port, objects_port) = (free_port(), free_port());
        write_broker_configuration(directory.path(), broker_port);
        let objects = start_objects(directory.path(), objects_port);
        let mut bench = Self {
            broker_port,
            objects_port,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            mothership: None,
            broker: None,
            _objects: objects,
            directory,
        };
        bench.start_broker();
        bench.start_mothership();
        bench
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn start_broker(&mut self) {
        let mut command = tool("mosquitto", "mosquitto");
        command.arg("-c").arg(self.path().join("mosquitto.conf"));
        let mut process = spawn(&mut command, &self.path().join("mosquitto.log"));
        wait_for_port(&mut process, self.broker_port, "mosquitto", &self.path().join("mosquitto.log"));
        self.broker = Some(process);
    }

    pub(crate) fn kill_broker(&mut self) {
        self.broker = None;
    }

    pub(crate) fn start_mothership(&mut self) {
        // What an earlier process wrote says nothing of this one.
        let _ = fs::remove_file(self.data().join("ready"));
        let mut command = self.command();
        command.args(["serve", "--broker", &format!("mqtts://localhost:{}", self.broker_port)]);
        command.args(["--s3-endpoint", &format!("http://127.0.0.1:{}", self.objects_port)]);
        command.args(["--s3-bucket", BUCKET, "--s3-region", "eu-west-1"]).args(&self.flags);
        command.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
        command.env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let log = self.path().join("mothership.log");
        let mut process = spawn(&mut command, &log);
        let ready = self.data().join("ready");
        eventually("the control plane is ready", || {
            assert!(process.0.try_wait().unwrap().is_none(), "it ended:\n{}", fs::read_to_string(&log).unwrap());
            ready.exists()
        });
        self.mothership = Some(process);
    }

    /// SIGKILL: nothing is brought to an end.
    pub(crate) fn kill_mothership(&mut self) {
        self.mothership = None;
    }

    pub(crate) fn restart_mothership(&mut self) {
        self.kill_mothership();
        self.start_mothership();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("mothership.log")).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::open(&self.data()).unwrap()
    }

    /// The program, for this server.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mothership"));
        command.arg("--data").arg(self.data());
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        command
    }

    /// A pool with a key that the documented command makes, in a shorter form.
    pub(crate) fn pool(&self, name: &str) -> Pool {
        let files = self.request(name, &["-newkey", "rsa:3072"]);
        let made = self.client().create_pool(Some(name), &files.csr).unwrap();
        Pool { id: made.pool, token: made.token, key: files.key }
    }

    /// A certificate request of the real `openssl req`.
    pub(crate) fn request(&self, name: &str, arguments: &[&str]) -> Request {
        let (key, csr) = (self.path().join(format!("{name}.key")), self.path().join(format!("{name}.csr")));
        let mut command = tool("openssl", "openssl");
        command.args(["req", "-new", "-nodes", "-subj", "/CN=x", "-keyout"]).arg(&key).arg("-out").arg(&csr);
        succeed(command.args(arguments));
        Request { key: fs::read_to_string(key).unwrap(), csr: fs::read_to_string(csr).unwrap() }
    }

    pub(crate) fn stack(&self, slug: &str, pool: PoolId) -> Stack {
        let stack = Stack {
            slug: slug.to_owned(),
            name: None,
            labels: vec!["team:network".to_owned()],
            pool,
            tool: Tool::Custom,
            image: Some("alpine:3".to_owned()),
            environment: Vec::new(),
            hooks: launcher_wire::api::Hooks::default(),
            files: Vec::new(),
            workflow: Some(Workflow { plan: Some("true".to_owned()), ..Workflow::default() }),
            project_root: String::new(),
            source: Source::None {},
            branch: None,
            autodeploy: false,
        };
        self.client().apply_stack(&stack).unwrap();
        stack
    }

    pub(crate) fn run(&self, stack: &str) -> Run {
        self.client().create_run(&wish(stack)).unwrap()
    }
}

pub(crate) fn wish(stack: &str) -> CreateRun {
    serde_json::from_value(serde_json::json!({ "stack": stack })).unwrap()
}

pub(crate) struct Pool {
    pub(crate) id: PoolId,
    pub(crate) token: String,
    pub(crate) key: String,
}

pub(crate) struct Request {
    pub(crate) key: String,
    pub(crate) csr: String,
}

fn write_broker_configuration(directory: &Path, port: u16) {
    let data = directory.join("data");
    let rules = directory.join("acl");
    fs::write(
        &rules,
        "user mothership\ntopic read spacelift/writeonly/#\ntopic write spacelift/readonly/#\n\
         pattern read spacelift/readonly/%u/%c\npattern write spacelift/writeonly/%u/%c\n",
    )
    .unwrap();
    let (rules, data) = (rules.display(), data.display());
    fs::write(
        directory.join("mosquitto.conf"),
        format!(
            "user root\nlistener {port} 127.0.0.1\ncafile {data}/ca.pem\ncertfile {data}/broker.pem\n\
             keyfile {data}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n\
             allow_anonymous false\nacl_file {rules}\nmessage_size_limit 131072\n"
        ),
    )
    .unwrap();
}

fn start_objects(directory: &Path, port: u16) -> Process {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = workspace.join("target/tools/aws-emulator/bin/python");
    assert!(
        python.is_file(),
        "{} is missing; `cargo xtask test` makes it (moto from PyPI, as tests/support/aws_emulator.txt lists it)",
        python.display()
    );
    let mut command = Command::new(python);
    command.arg(workspace.join("tests/support/aws_emulator.py")).arg(port.to_string());
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("LC_ALL", "C.UTF-8");
    let log = directory.join("objects.log");
    let mut process = spawn(&mut command, &log);
    wait_for_port(&mut process, port, "the object store", &log);
    let location =
        "<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>";
    let (status, answer) = crate::worker::plain("PUT", &format!("http://127.0.0.1:{port}/{BUCKET}"), location.into());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    process
}

fn spawn(command: &mut Command, log: &Path) -> Process {
    let output = File::options().create(true).append(true).open(log).unwrap();
    let errors = output.try_clone().unwrap();
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    Process(child.unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}")))
}

fn wait_for_port(process: &mut Process, port: u16, what: &str, log: &Path) {
    eventually(&format!("{what} listens"), || {
        let ended = process.0.try_wait().unwrap();
        assert!(ended.is_none(), "{what} ended:\n{}", fs::read_to_string(log).unwrap());
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A system tool.
pub(crate) fn tool(name: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; it is in the Debian package {package}"));
    let mut command = Command::new(found);
    command.env("LC_ALL", "C");
    command
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "after {} seconds it still is not so: {what}", LIMIT.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
}
