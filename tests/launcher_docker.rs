//! The launcher's side of the container engine, against a real one.

use std::fs::{self, Permissions};
use std::future::Future;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration_tests::daemon::Daemon;
use integration_tests::docker::{self, busybox_root};
use integration_tests::run::{succeed, tool};
use serde_json::{Value, json};
use spacelift_launcher::docker::{ContainerSpec, Ended, Engine, Error, Exit, Limits, PullProblem, State};
use spacelift_launcher::registry_credentials::Credentials;
use tempfile::TempDir;

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
const LABEL: &str = "com.example.run";
/// `sha256:` and a digest that no image has.
const NO_IMAGE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// An engine with an image, and the directories of one container on the host.
struct Host {
    engine: docker::Engine,
    directory: TempDir,
    runtime: tokio::runtime::Runtime,
    client: Engine,
}

impl Host {
    const IMAGE: &str = "runner:test";

    fn start() -> Self {
        let engine = docker::Engine::start_with(docker::LIVE_RESTORE, &[]);
        // Everything that an image could say and that does not count.
        let root = busybox_root();
        let tar = engine.path().join("image.tar");
        succeed(tool("tar").arg("-cf").arg(&tar).arg("-C").arg(root.path()).arg("."));
        let mut import = engine.docker();
        import.arg("import");
        for change in [
            "ENTRYPOINT [\"/bin/busybox\", \"false\"]",
            "CMD [\"from-the-image\"]",
            "USER 0:0",
            "WORKDIR /tmp",
            "ENV OF_IMAGE=1",
            "HEALTHCHECK --interval=1s CMD /bin/busybox true",
            "VOLUME /anonymous",
        ] {
            import.args(["--change", change]);
        }
        succeed(import.arg(&tar).arg(Self::IMAGE));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let address = format!("unix://{}/docker.sock", engine.path().display());
        let client = runtime.block_on(Engine::connect(Some(&address))).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for name in ["socket", "workspace", "extra"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::set_permissions(directory.path().join(name), Permissions::from_mode(0o777)).unwrap();
        }
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        Self { engine, directory, runtime, client }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A container whose worker is a script.
    fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        let worker = self.at(&format!("worker-{name}"));
        fs::write(&worker, format!("#!/bin/busybox sh\n{script}\n")).unwrap();
        fs::set_permissions(&worker, Permissions::from_mode(0o755)).unwrap();
        ContainerSpec {
            name: name.to_owned(),
            labels: [(LABEL.to_owned(), name.to_owned())].into(),
            image: Self::IMAGE.to_owned(),
            worker,
            socket_directory: self.at("socket"),
            workspace: self.at("workspace"),
            mounts: vec![(self.at("extra"), PathBuf::from("/extra"))],
            network: "none".to_owned(),
            runtime: None,
            environment: vec![("HTTP_PROXY".to_owned(), "http://proxy:1".to_owned())],
            limits: Limits::default(),
        }
    }

    #[track_caller]
    fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("it takes too long") })
    }

    #[track_caller]
    fn run(&self, spec: &ContainerSpec) -> String {
        let created = self.block(self.client.create(spec)).unwrap();
        self.block(self.client.start(&created.id)).unwrap();
        created.id
    }

    /// Waits for the end of a container meanwhile.
    fn waiting(&self, id: &str) -> tokio::task::JoinHandle<Exit> {
        let (client, id) = (self.client.clone(), id.to_owned());
        self.runtime.spawn(async move { client.wait(&id).await })
    }

    #[track_caller]
    fn until_exists(&self, path: &Path) {
        let started = Instant::now();
        while !path.exists() {
            assert!(started.elapsed() < LIMIT, "{} does not appear", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn ended(code: i64) -> Exit {
    Exit::Ended(Ended { code, oom_killed: false, error: None })
}

#[test]
fn a_container_is_the_workers_alone() {
    let host = Host::start();
    let script = "
        b=/bin/busybox
        { echo user $($b id -u):$($b id -g); echo pid $$; echo directory $($b pwd); echo arguments $*; } >out
        $b env | $b sort >environment
        (echo changed >>/mnt/spacelift/spacelift-worker) 2>/dev/null && echo worker-changed >>out
        (echo x >/mnt/spacelift/socket/other) 2>/dev/null && echo socket-moved >>out
        echo x >/extra/reached
        echo said >&2
        exit 7";
    let spec = host.spec("alone", script);
    let id = host.run(&spec);
    assert_eq!(host.block(host.client.wait(&id)), ended(7));
    let out = fs::read_to_string(host.at("workspace/out")).unwrap();
    assert_eq!(out, "user 1983:1983\npid 1\ndirectory /mnt/workspace\narguments run\n");
    let environment = fs::read_to_string(host.at("workspace/environment")).unwrap();
    assert!(
        environment.contains("HTTP_PROXY=http://proxy:1\n") && environment.contains("OF_IMAGE=1\n"),
        "{environment}"
    );
    assert!(!host.at("socket/other").exists() && host.at("extra/reached").exists());
    assert_eq!(host.block(host.client.tail(&id, 5)).unwrap(), "said\n");

    let described = succeed(host.engine.docker().args(["inspect", &id]));
    let described: Value = serde_json::from_str(&described).unwrap();
    let config = &described[0]["Config"];
    let mut environment: Vec<&str> = config["Env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    environment.retain(|variable| !variable.starts_with("PATH="));
    environment.sort_unstable();
    assert_eq!(environment, ["HTTP_PROXY=http://proxy:1", "OF_IMAGE=1"]);
    assert_eq!(config["Labels"], json!({ LABEL: "alone" }));
    assert_eq!(config["Healthcheck"]["Test"], json!(["NONE"]));
    let limits = &described[0]["HostConfig"];
    assert_eq!(limits["PidsLimit"], json!(4096));
    assert_eq!(limits["LogConfig"], json!({ "Type": "json-file", "Config": { "max-size": "10m", "max-file": "1" } }));
    assert_eq!(
        (&limits["Init"], &limits["AutoRemove"], &limits["Privileged"]),
        (&json!(false), &json!(false), &json!(false))
    );
}

#[test]
fn a_container_is_made_once_and_removed_once() {
    let host = Host::start();
    let client = &host.client;
    let spec = host.spec("once", "exit 0");
    let created = host.block(client.create(&spec)).unwrap();
    assert!(!created.existed);
    let again = host.block(client.create(&spec)).unwrap();
    assert!(again.existed && again.id == created.id);
    let found = host.block(client.inspect("once")).unwrap().unwrap();
    assert_eq!((found.id.as_str(), found.name.as_str(), &found.state), (created.id.as_str(), "once", &State::Created));
    let mut other = spec.clone();
    other.labels.insert("com.example.pool".to_owned(), "p".to_owned());
    let conflict = host.block(client.create(&other)).unwrap_err();
    assert!(matches!(&conflict, Error::Conflict { name, .. } if name == "once"), "{conflict}");
    assert!(conflict.to_string().contains("has no label com.example.pool"), "{conflict}");

    let listed = |label: &str| host.block(client.list(label)).unwrap();
    assert_eq!(listed(LABEL).len(), 1);
    assert_eq!(listed("com.example.run=once").len(), 1);
    assert_eq!(listed("com.example.run=another").len(), 0);

    host.block(client.start(&created.id)).unwrap();
    assert_eq!(host.block(client.wait(&created.id)), ended(0));
    for _ in 0..2 {
        host.block(client.remove(&created.id)).unwrap();
        host.block(client.signal(&created.id, "SIGTERM")).unwrap();
        host.block(client.stop(&created.id, Duration::from_secs(1))).unwrap();
    }
    assert_eq!(host.block(client.inspect("once")).unwrap(), None);
    assert_eq!(succeed(host.engine.docker().args(["volume", "ls", "--quiet"])), "", "anonymous volumes are removed");
    assert_eq!(host.block(client.wait(&created.id)), Exit::Gone);
    let missing = host.block(client.start(&created.id)).unwrap_err();
    assert!(matches!(missing, Error::Refused { status: 404, .. }), "{missing}");
}

#[test]
fn a_mount_that_is_not_there_is_an_error() {
    let host = Host::start();
    let mut spec = host.spec("mounts", "exit 0");
    spec.mounts.push((host.at("missing"), PathBuf::from("/x")));
    let error = host.block(host.client.create(&spec)).unwrap_err().to_string();
    assert!(error.contains("missing") && error.contains("does not exist"), "{error}");
    assert!(!host.at("missing").exists());
}

#[test]
fn a_container_ends_by_signal_or_after_a_grace() {
    let host = Host::start();
    let polite = "trap 'exit 3' TERM; echo >ready-polite; while :; do /bin/busybox sleep 0.05; done";
    let id = host.run(&host.spec("polite", polite));
    host.until_exists(&host.at("workspace/ready-polite"));
    host.block(host.client.signal(&id, "SIGTERM")).unwrap();
    assert_eq!(host.block(host.client.wait(&id)), ended(3));

    let stubborn = "trap '' TERM; echo >ready-stubborn; while :; do /bin/busybox sleep 0.05; done";
    let id = host.run(&host.spec("stubborn", stubborn));
    host.until_exists(&host.at("workspace/ready-stubborn"));
    host.block(host.client.stop(&id, Duration::from_secs(1))).unwrap();
    assert_eq!(host.block(host.client.wait(&id)), ended(137));
}

#[test]
fn waiting_outlasts_the_end_of_the_engine() {
    let mut host = Host::start();
    let script =
        |name: &str| format!("echo >ready-{name}; while [ ! -e go-{name} ]; do /bin/busybox sleep 0.05; done; exit 5");
    let [after, between] = ["after", "between"].map(|name| {
        let id = host.run(&host.spec(name, &script(name)));
        host.until_exists(&host.at("workspace").join(format!("ready-{name}")));
        id
    });
    let [waiting_after, waiting_between] = [&after, &between].map(|id| host.waiting(id));
    host.engine.kill();
    let unreachable = host.block(host.client.ping()).unwrap_err();
    assert!(unreachable.is_transient(), "{unreachable}");
    fs::write(host.at("workspace/go-between"), "").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!waiting_after.is_finished() && !waiting_between.is_finished());
    host.engine.restart();
    host.block(host.client.ping()).unwrap();
    assert_eq!(host.block(waiting_between).unwrap(), ended(5), "it ended while there was no engine");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!waiting_after.is_finished());
    fs::write(host.at("workspace/go-after"), "").unwrap();
    assert_eq!(host.block(waiting_after).unwrap(), ended(5));
}

#[test]
fn a_container_that_somebody_removes_is_gone() {
    let host = Host::start();
    let id = host.run(&host.spec("gone", "echo >ready; /bin/busybox sleep 1000"));
    host.until_exists(&host.at("workspace/ready"));
    let waiting = host.waiting(&id);
    succeed(host.engine.docker().args(["rm", "--force", &id]));
    assert_eq!(host.block(waiting).unwrap(), Exit::Gone);
}

#[test]
fn want_of_memory_is_told_from_other_ends() {
    let host = Host::start();
    // The first process lives on and ends well.
    let mut spec = host.spec("memory", "/bin/busybox tail /dev/zero; exit 0");
    spec.limits.memory = Some(16 * 1024 * 1024);
    let id = host.run(&spec);
    let exit = host.block(host.client.wait(&id));
    assert!(matches!(exit, Exit::Ended(Ended { oom_killed: true, .. })), "{exit:?}");
}

#[test]
fn a_fork_bomb_ends_at_its_limit() {
    let host = Host::start();
    let mut spec = host.spec("forks", "f() { f | f & }; f; /bin/busybox sleep 2; exit 0");
    spec.limits.pids = 50;
    let id = host.run(&spec);
    assert!(matches!(host.block(host.client.wait(&id)), Exit::Ended(_)));
    host.block(host.client.ping()).unwrap();
}

#[test]
fn without_an_engine_it_is_said_where_it_should_be() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    for address in ["unix:///tmp/no-engine-here.sock".to_owned(), format!("tcp://127.0.0.1:{port}")] {
        let error = runtime.block_on(Engine::connect(Some(&address))).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains(&address), "{error}");
    }
}

/// A registry that wants a user and a password.
struct PrivateRegistry {
    _daemon: Daemon,
    _data: TempDir,
    address: String,
}

impl PrivateRegistry {
    /// In the header that carries them, these characters are where the two alphabets of base64 differ.
    const PASSWORD: &str = "p~?~>~ü>>?";
    /// Made of it with bcrypt, the only form that the registry takes.
    const HASH: &str = "$2b$04$pFXJ/LbkeTSV7GXPRcA2buz/w3KgLBKlaVKBxBmsd1UxgAIv83P12";

    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let config = data.path().join("config.yml");
        let at = |name: &str| data.path().join(name).display().to_string();
        fs::write(at("htpasswd"), format!("user:{}\n", Self::HASH)).unwrap();
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\nauth:\n  \
             htpasswd:\n    realm: test\n    path: {}\n",
            at("storage"),
            at("htpasswd")
        );
        fs::write(&config, text).unwrap();
        let mut command = tool("docker-registry");
        command.arg("serve").arg(&config);
        let is_ready = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let daemon = Daemon::start(&mut command, &data.path().join("log"), is_ready);
        Self { _daemon: daemon, _data: data, address: format!("127.0.0.1:{port}") }
    }

    fn credentials(password: &str) -> Option<Credentials> {
        Some(Credentials::Password { username: "user".to_owned(), password: password.to_owned() })
    }
}

#[test]
fn images_are_pulled_with_credentials() {
    let host = Host::start();
    let registry = PrivateRegistry::start();
    let image = format!("{}/team/runner:1", registry.address);
    succeed(host.engine.docker().args([
        "login",
        "--username",
        "user",
        "--password",
        PrivateRegistry::PASSWORD,
        &registry.address,
    ]));
    succeed(host.engine.docker().args(["tag", Host::IMAGE, &image]));
    let pushed = succeed(host.engine.docker().args(["push", &image]));
    let digest = pushed.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap();
    let by_digest = format!("{}/team/runner@{digest}", registry.address);
    let forget = || succeed(host.engine.docker().args(["rmi", &image]));
    forget();

    let pull = |image: &str, credentials: Option<Credentials>| {
        let mut lines = Vec::new();
        let result = host.block(host.client.pull(image, credentials, &mut |line| lines.push(line)));
        (result, lines)
    };
    let (result, lines) = pull(&image, PrivateRegistry::credentials(PrivateRegistry::PASSWORD));
    result.unwrap();
    assert!(lines.len() >= 2 && lines.iter().all(|line| line.contains("image") || line.contains("MB")), "{lines:?}");
    forget();
    for credentials in [None, PrivateRegistry::credentials("wrong")] {
        let error = pull(&image, credentials).0.unwrap_err();
        assert!(matches!(&error, Error::Pull { problem: PullProblem::Unauthorized(_), .. }), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let right = || PrivateRegistry::credentials(PrivateRegistry::PASSWORD);
    for missing in
        [format!("{}/team/runner:2", registry.address), format!("{}/other/x:1", registry.address), NO_IMAGE.to_owned()]
    {
        let error = pull(&missing, right()).0.unwrap_err();
        assert!(matches!(&error, Error::Pull { problem: PullProblem::NotFound(_), .. }), "{error}");
    }
    pull(&by_digest, right()).0.unwrap();
    drop(registry);
    let error = pull(&image, right()).0.unwrap_err();
    assert!(matches!(&error, Error::Pull { problem: PullProblem::Unreachable(_), .. }), "{error}");
    assert!(error.to_string().contains(&image), "{error}");
    // What a digest names is here, and cannot be another image.
    assert_eq!(pull(&by_digest, None).1, Vec::<String>::new());
    let id = succeed(host.engine.docker().args(["images", "--quiet", "--no-trunc", Host::IMAGE]));
    pull(id.trim(), None).0.unwrap();
    let error = pull("Not An Image", None).0.unwrap_err();
    assert!(matches!(&error, Error::Pull { problem: PullProblem::Name(_), .. }), "{error}");
}
