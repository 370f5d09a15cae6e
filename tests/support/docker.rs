//! A container engine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::daemon::{Daemon, Service};
use crate::interactive;
use crate::run::{self, finish, succeed};

/// Mounts of containers, and what the two daemons keep in fixed places, stay in a mount namespace that ends with them:
/// whatever becomes of a test, nothing has to be unmounted.
const IN_NAMESPACE: &str = "mount -t tmpfs tmpfs /run && if [ -d /etc/docker ]; then mount -t tmpfs tmpfs /etc/docker; fi \
                            && exec \"$@\"";

/// How long an engine may take to heed another configuration.
const CONFIGURATION_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// The configuration of an engine whose containers live on while it does not.
pub const LIVE_RESTORE: &str = "{\"live-restore\": true}";

/// A private `containerd` and `dockerd` without a network. Both end when this is dropped, and all containers with them.
#[derive(Debug)]
pub struct Engine {
    // Fields are dropped in this order: dockerd before containerd, both before their data.
    /// `dockerd`.
    pub dockerd: Service,
    _containerd: Daemon,
    data: TempDir,
    config_json: String,
}

impl Engine {
    /// Starts an engine without images.
    ///
    /// # Panics
    /// The tests do not run as root, or it does not start.
    pub fn start() -> Self {
        Self::start_with("{}", &[])
    }

    /// The same, with a configuration in JSON and with variables in its environment.
    ///
    /// # Panics
    /// The tests do not run as root, or it does not start.
    pub fn start_with(config_json: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_in(interactive::short_directory(), config_json, environment)
    }

    /// The same, with everything of it below this directory.
    ///
    /// # Panics
    /// The tests do not run as root, or it does not start.
    pub fn start_in(directory: &Path, config_json: &str, environment: &[(&str, &str)]) -> Self {
        run::assert_root("a container engine");
        // Sockets are in it, and a socket's path has at most 108 bytes.
        let data = tempfile::Builder::new().prefix("dock").tempdir_in(directory).unwrap();
        let at = |name: &str| data.path().join(name);
        let config = format!(
            "version = 2\nroot = \"{0}/containerd\"\nstate = \"{0}/containerd-state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{0}/containerd.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{0}/opt\"\n",
            data.path().display()
        );
        fs::write(at("containerd.toml"), config).unwrap();
        let mut containerd = run::tool("unshare");
        containerd.args(["--mount", "--", "sh", "-c", IN_NAMESPACE, "sh"]);
        containerd.arg(run::find("containerd")).arg("--config").arg(at("containerd.toml"));
        let socket = at("containerd.sock");
        let containerd = Daemon::start(&mut containerd, &at("containerd.log"), || UnixStream::connect(&socket).is_ok());

        // Without a file of its own it would read the machine's.
        fs::write(at("daemon.json"), config_json).unwrap();
        let mut dockerd = run::tool("nsenter");
        dockerd.envs(environment.iter().copied());
        dockerd.args(["--mount", "--target", &containerd.id().to_string(), "--"]).arg(run::find("dockerd"));
        dockerd.arg("--config-file").arg(at("daemon.json")).arg("--host").arg(host(data.path()));
        dockerd.arg("--containerd").arg(&socket).arg("--pidfile").arg(at("docker.pid"));
        dockerd.arg("--data-root").arg(at("docker")).arg("--exec-root").arg(at("docker-state"));
        dockerd.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]);
        let mut ping = client(data.path());
        ping.args(["version", "--format", "{{.Server.Version}}"]);
        let dockerd = Service::start(dockerd, &at("dockerd"), move || finish(&mut ping).code == Some(0));
        Self { dockerd, _containerd: containerd, data, config_json: config_json.to_owned() }
    }

    /// Ends it in order, and all containers with it, also when it was started with [`LIVE_RESTORE`].
    ///
    /// # Panics
    /// It has ended already, or does not hear that nothing is to live on.
    pub fn end(&mut self) {
        // What a file does not name stays as it was.
        fs::write(self.data.path().join("daemon.json"), "{\"live-restore\": false}").unwrap();
        self.dockerd.daemon().read_configuration();
        let begun = Instant::now();
        while succeed(self.docker().args(["info", "--format", "{{.LiveRestoreEnabled}}"])).trim() != "false" {
            assert!(begun.elapsed() < CONFIGURATION_LIMIT, "{}", self.dockerd.log());
            thread::sleep(POLL);
        }
        self.dockerd.stop();
        fs::write(self.data.path().join("daemon.json"), &self.config_json).unwrap();
        // It is there if it had to be killed.
        let _ = fs::remove_file(self.data.path().join("docker.pid"));
    }

    /// Ends it as a crash does. Its containers live on if it was started with [`LIVE_RESTORE`].
    ///
    /// # Panics
    /// It has ended already.
    pub fn kill(&mut self) {
        self.dockerd.daemon().kill();
        // Otherwise the next one believes that it runs.
        fs::remove_file(self.data.path().join("docker.pid")).unwrap();
    }

    /// Starts it again on the same data.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self) {
        self.dockerd.restart();
    }

    /// The files that `dockerd` and `containerd` print to.
    pub fn log_files(&self) -> [PathBuf; 2] {
        [self.dockerd.log_file(), self.data.path().join("containerd.log")]
    }

    /// The directory that everything of it is in.
    pub fn path(&self) -> &Path {
        self.data.path()
    }

    /// `DOCKER_HOST` for this engine.
    pub fn host(&self) -> String {
        host(self.data.path())
    }

    /// The `docker` client, talking to this engine.
    pub fn docker(&self) -> Command {
        client(self.data.path())
    }

    /// A container that is removed when its command ends, without a network.
    pub fn run(&self) -> Command {
        let mut docker = self.docker();
        docker.args(["run", "--rm", "--network=none"]);
        docker
    }

    /// Makes an image of a directory.
    ///
    /// # Panics
    /// The engine refuses it.
    pub fn import(&self, directory: &Path, name: &str) {
        let tar = self.data.path().join("import.tar");
        succeed(run::tool("tar").arg("-cf").arg(&tar).arg("-C").arg(directory).arg("."));
        succeed(self.docker().arg("import").arg(&tar).arg(name));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Errors are of no interest: this also runs after a test has failed. No `run::finish` here: it panics.
        let containers = self.docker().args(["ps", "--all", "--quiet"]).output();
        let containers =
            containers.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        if !containers.is_empty() {
            let _ = self.docker().args(["rm", "--force"]).args(containers.lines()).output();
        }
        self.dockerd.stop();
    }
}

fn host(data: &Path) -> String {
    format!("unix://{}/docker.sock", data.display())
}

/// Whichever client is there, with a configuration of its own: the user's could name other engines and credentials.
fn client(data: &Path) -> Command {
    let mut docker = run::tool("docker");
    // It also cleans up, and must not be interrupted in it.
    interactive::keep_apart(&mut docker);
    docker.env("DOCKER_HOST", host(data)).env("DOCKER_CONFIG", data.join("client"));
    for name in ["DOCKER_API_VERSION", "DOCKER_CONTEXT", "DOCKER_DEFAULT_PLATFORM", "DOCKER_TLS_VERIFY"] {
        docker.env_remove(name);
    }
    docker
}

/// A directory that is the root of a container with `busybox` and nothing else.
///
/// # Panics
/// `busybox` is not the static one.
pub fn busybox_root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let busybox: PathBuf = run::find("busybox");
    let linked = finish(run::tool("ldd").arg(&busybox));
    assert!(linked.says("not a dynamic executable"), "install busybox-static; this busybox needs libraries: {linked}");
    fs::create_dir(root.path().join("bin")).unwrap();
    fs::create_dir(root.path().join("tmp")).unwrap();
    fs::set_permissions(root.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    // A copy by another process: while this one has a file open for writing, a fork of it keeps others from executing it.
    succeed(run::tool("cp").arg(busybox).arg(root.path().join("bin/busybox")));
    root
}
