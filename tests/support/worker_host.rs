//! A worker host: a small Debian whose process 1 is systemd, in namespaces of its own, which runs user data at boot as
//! cloud-init would.
//!
//! What it does not have is Docker: a unit of that name sleeps in its place, so that user data finds one to configure.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::instance_metadata::InstanceMetadata;
use crate::release::workspace;
use crate::run;

/// Where every instance finds its metadata.
const METADATA_ADDRESS: &str = "169.254.169.254";
/// How long user data may take, its retries included.
const LIMIT: Duration = Duration::from_secs(90);
/// Fetching the packages of the root file system, once.
const MAKING_LIMIT: Duration = Duration::from_secs(900);

/// Runs `test` on a thread with a network of its own: loopback, and the address of the instance metadata service. Whatever
/// the thread starts is in that network.
///
/// # Panics
/// `test` does, or there can be no such network.
pub fn in_own_network<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    run::assert_root("a network of its own");
    // Made here, where there are mirrors to fetch it from: not behind the door that closes below.
    root();
    let data = tempfile::tempdir().unwrap();
    let ready = data.path().join("ready");
    let mut holder = run::tool("unshare");
    let script = "ip link set lo up && ip address add \"$1/32\" dev lo && touch \"$0\" && exec sleep infinity";
    holder.args(["--net", "--", "/bin/sh", "-euc", script]).arg(&ready).arg(METADATA_ADDRESS);
    holder.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let holder = Daemon::start(&mut holder, &data.path().join("log"), || ready.exists());
    let network = fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    let result = thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), Some(LinkNameSpaceType::Network)).unwrap();
            test()
        });
        inside.join()
    });
    drop(holder);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// The metadata service of the instance with this id. Only one can be in a network.
///
/// # Panics
/// It does not start.
pub fn instance_metadata(instance: &str) -> InstanceMetadata {
    let values = [
        ("instance-id", instance),
        ("ami-id", "ami-0ead0234bef4f51b0"),
        ("instance-type", "t3.micro"),
        ("placement/availability-zone", "eu-west-1a"),
    ];
    InstanceMetadata::start_at(METADATA_ADDRESS, 80, &values)
}

/// A host that booted and ran its user data.
#[derive(Debug)]
pub struct Host {
    // Fields are dropped in this order: the host before its file system.
    daemon: Daemon,
    state: TempDir,
}

impl Host {
    /// Boots a host and waits until its user data ended. `environment` is that of the user data; `change` may change the
    /// file system before, given the directory of what differs from the root that all hosts share.
    ///
    /// # Panics
    /// It does not boot, or the user data does not end.
    pub fn boot(user_data: &str, environment: &[(String, String)], change: impl FnOnce(&Path)) -> Self {
        run::assert_root("a worker host");
        let state = tempfile::tempdir().unwrap();
        let changes = state.path().join("changes");
        let put = |path: &str, mode: u32, text: &str| {
            let path = changes.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("var/lib/cloud/user-data", 0o700, user_data);
        let variables: String =
            environment.iter().map(|(name, value)| format!("Environment=\"{name}={value}\"\n")).collect();
        put(
            "etc/systemd/system/user-data.service",
            0o644,
            &format!(
                "[Service]\nType=oneshot\n{variables}ExecStart=/var/lib/cloud/user-data\n\
                 ExecStopPost=/bin/sh -c 'echo \"$EXIT_STATUS\" >/var/lib/cloud/code && mv /var/lib/cloud/code \
                 /var/lib/cloud/result'\n\
                 StandardOutput=append:/var/log/cloud-init-output.log\nStandardError=inherit\n"
            ),
        );
        put(
            "etc/systemd/system/docker.service",
            0o644,
            "[Service]\nExecStart=/bin/sh -c 'env >/var/lib/docker.env; exec sleep infinity'\n",
        );
        let wants = changes.join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants).unwrap();
        for unit in ["user-data.service", "docker.service"] {
            symlink(format!("/etc/systemd/system/{unit}"), wants.join(unit)).unwrap();
        }
        change(&changes);
        let mut boot = run::tool("bash");
        boot.arg(workspace().join("tests/support/boot_host.sh")).arg(root()).arg(state.path());
        let daemon = Daemon::start(&mut boot, &state.path().join("log"), || true);
        let mut host = Self { daemon, state };
        let started = Instant::now();
        while !host.path("var/lib/cloud/result").exists() {
            let is_on = host.is_on() || host.path("var/lib/cloud/result").exists();
            assert!(is_on && started.elapsed() < LIMIT, "its user data did not end{}", host.report());
            thread::sleep(Duration::from_millis(50));
        }
        host
    }

    /// Waits until something holds.
    ///
    /// # Panics
    /// It does not come about.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < LIMIT, "waited for {what}{}", self.report());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything that it said.
    fn report(&self) -> String {
        let output = self.read("var/log/cloud-init-output.log").unwrap_or_default();
        format!(":\n{}\n{}\n{output}\n{}", self.log("info"), self.log("error"), self.daemon.log())
    }

    /// Waits until it has shut itself down.
    ///
    /// # Panics
    /// It does not.
    pub fn wait_until_off(&mut self) {
        let started = Instant::now();
        while self.daemon.is_running() {
            assert!(started.elapsed() < LIMIT, "it is still on{}", self.report());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it has not shut itself down.
    ///
    /// # Panics
    /// The operating system does not tell.
    pub fn is_on(&mut self) -> bool {
        self.daemon.is_running()
    }

    /// The exit code of the user data, unless a signal ended it, as may happen while the host powers off.
    ///
    /// # Panics
    /// It has not ended.
    pub fn code(&self) -> Option<i32> {
        self.read("var/lib/cloud/result").unwrap().trim().parse().ok()
    }

    /// A file that the host wrote, if it did.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read(self.path(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where that file is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.state.path().join("changes").join(path)
    }

    /// `info` or `error`.
    pub fn log(&self, name: &str) -> String {
        self.read(&format!("var/log/spacelift/{name}.log")).unwrap_or_default()
    }
}

/// The root file system that all hosts share. Made once, which takes a minute.
fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // Otherwise the message would come from the script.
        run::find("debootstrap");
        let root = workspace().join("target/tools/worker-host");
        fs::create_dir_all(root.parent().unwrap()).unwrap();
        let mut make = run::tool("bash");
        make.arg(workspace().join("tests/support/worker_host.sh")).arg(&root);
        run::finish_within(MAKING_LIMIT, &mut make).expect(0);
        root
    })
}
