//! What a pool, a worker and a job cannot do to others.

use integration_tests::mosquitto::Mosquitto;
use integration_tests::run::Finished;
use launcher_wire::id::WorkerId;
use launcher_wire::token::Token;
use spacelift_worker::protocol::{
    Download, DownloadRequest, FromWorker, Hello, Upload, UploadPart, VERSION, from_worker,
};
use spacelift_worker::session;

use super::*;

#[test]
fn a_pool_sees_nothing_of_another() {
    let world = World::new();
    let other = world.control_plane.pool();
    // The key of one pool and the token of another.
    let mut launcher = Command::new(launcher_program());
    launcher
        .env_clear()
        .env("SPACELIFT_TOKEN", &world.pool.token)
        .env("SPACELIFT_POOL_PRIVATE_KEY", other.private_key());
    let refused = run::finish(&mut launcher).expect(64);
    assert!(refused.says("SPACELIFT_POOL_PRIVATE_KEY") && refused.says("does not belong"), "{refused}");

    let foreign = Launcher::start(&launcher_program(), &world.engine, &other, &[]);
    let own = world.launcher(&[]);
    world.control_plane.wait_for_worker(None, WorkerStatus::Idle);
    let run = world.control_plane.begin(&world.stack("mine"), RunType::Task, Some("echo mine"));
    let finished = world.control_plane.wait_for(run, RunState::Finished);
    let workers = world.control_plane.client.workers().unwrap();
    let worker = workers.iter().find(|worker| worker.id == finished.stages[0].worker).unwrap();
    assert_eq!(worker.pool, world.pool.id);
    assert_eq!(own.finish(), Some(0));
    assert_eq!(foreign.finish(), Some(0));
}

/// A stock MQTT client with the certificate of a pool, or of the control plane.
struct Client<'a> {
    broker: &'a Mosquitto,
    directory: std::path::PathBuf,
}

impl<'a> Client<'a> {
    /// What a launcher of the pool has, put into files.
    fn of_pool(broker: &'a Mosquitto, pool: &Pool, directory: &std::path::Path) -> Self {
        let (token, _) = Token::from_variable(&pool.token).unwrap();
        fs::write(directory.join("client.pem"), token.certificate).unwrap();
        fs::write(directory.join("ca.pem"), token.ca.unwrap()).unwrap();
        fs::copy(&pool.key, directory.join("client.key")).unwrap();
        Self { broker, directory: directory.to_owned() }
    }

    fn ask(&self, program: &str, id: &str, topic: &str, arguments: &[&str]) -> Finished {
        let mut client = run::tool(program);
        client.args(["-h", "localhost", "-p", &self.broker.port().to_string(), "-q", "1", "-V", "mqttv5"]);
        for (flag, file) in [("--cafile", "ca.pem"), ("--cert", "client.pem"), ("--key", "client.key")] {
            client.arg(flag).arg(self.directory.join(file));
        }
        run::finish(client.args(["-i", id, "-t", topic]).args(arguments))
    }

    /// Whether a message that is there reaches it.
    fn may_read(&self, worker: WorkerId, topic: &str) -> bool {
        let heard = self.ask("mosquitto_sub", &worker.to_string(), topic, &["-W", "3", "-C", "1"]);
        match (heard.code, heard.stdout.trim()) {
            (Some(0), "for the worker") => true,
            // It waited in vain.
            (Some(27), "") => false,
            _ => panic!("{heard}"),
        }
    }

    /// Version 5 of the protocol tells whoever publishes what may not be published.
    fn may_write(&self, worker: WorkerId, topic: &str) -> bool {
        let said = self.ask("mosquitto_pub", &worker.to_string(), topic, &["-m", "{}"]);
        let is_refused = said.says("Not authorized");
        assert!(is_refused || said.code == Some(0), "{said}");
        !is_refused
    }
}

#[test]
fn the_broker_keeps_pools_and_workers_apart() {
    let world = World::new();
    let other = world.control_plane.pool();
    let broker = &world.control_plane.broker;
    let administrator = Client { broker, directory: world.control_plane.home() };
    let directory = tempfile::tempdir().unwrap();
    let client = Client::of_pool(broker, &other, directory.path());
    let (own_worker, second_worker) = (WorkerId::new(), WorkerId::new());
    for (pool, worker, allowed) in [
        (other.id, own_worker, true),
        (other.id, second_worker, false),
        (world.pool.id, second_worker, false),
        (world.pool.id, own_worker, false),
    ] {
        let topic = |direction: &str| format!("spacelift/{direction}/{pool}/{worker}");
        let message = ["--retain", "-m", "for the worker"];
        let published = administrator.ask("mosquitto_pub", "administrator", &topic("readonly"), &message);
        assert_eq!(published.expect(0).stderr, "");
        assert_eq!(client.may_read(own_worker, &topic("readonly")), allowed, "reads {pool}/{worker}");
        assert_eq!(client.may_write(own_worker, &topic("writeonly")), allowed, "writes {pool}/{worker}");
    }
}

/// What a job opens and never uses takes nothing from the launcher, which can stop it all the same.
#[test]
fn a_job_that_holds_the_socket_is_stopped() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    let run = world.control_plane.begin(&world.stack("greedy"), RunType::Task, Some("while true; do sleep 1; done"));
    world.control_plane.wait_for(run, RunState::Performing);
    let sockets = tree::named(&launcher.directory(), "launcher.sock");
    let [socket] = &sockets[..] else { panic!("{sockets:?}") };
    let held: Vec<_> = (0..600).filter_map(|_| std::os::unix::net::UnixStream::connect(socket).ok()).collect();
    assert!(!held.is_empty());
    std::thread::sleep(std::time::Duration::from_secs(1));
    let open = fs::read_dir(format!("/proc/{}/fd", launcher.id())).unwrap().count();
    assert!(open < 150, "{open} files are open");
    world.control_plane.client.stop(run).unwrap();
    world.control_plane.wait_for(run, RunState::Stopped);
    assert_eq!(world.containers(), Vec::<String>::new());
    assert_eq!(launcher.finish(), Some(0));
    drop(held);
}

/// The launcher's socket is in the container, where the processes of the job are the same user.
#[test]
fn processes_of_a_job_are_not_taken_for_its_worker() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    let command = "for file in environ mem maps; do (exec 3</proc/1/$file) 2>/dev/null && echo \"read $file\"; done
                   echo looked; while ! test -e go-on; do sleep 0.1; done";
    let run = world.control_plane.begin(&world.stack("curious"), RunType::Task, Some(command));
    world.control_plane.wait_for(run, RunState::Performing);
    let sockets = tree::named(&launcher.directory(), "launcher.sock");
    let [socket] = &sockets[..] else { panic!("{sockets:?}") };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (session, has_job) in [("", false), ("", true), ("0123456789abcdef", true)] {
            let stranger = session::Launcher { socket: socket.clone(), session: session.to_owned() };
            let mut client = stranger.client().await.unwrap();
            let hello = Hello { protocol: VERSION, version: "v0.0.0".to_owned(), has_job };
            let hello = FromWorker { sequence: 0, body: Some(from_worker::Body::Hello(hello)) };
            let refused = client.session(tokio_stream::once(hello)).await.map(|_| ()).unwrap_err();
            assert!(refused.message().contains("only the worker"), "{refused}");
            let what = DownloadRequest { what: Download::Source.into() };
            let refused = client.download(what).await.map(|_| ()).unwrap_err();
            assert!(refused.message().contains("only the worker"), "{refused}");
            let part = UploadPart { what: Upload::Outputs.into(), data: b"{}".to_vec(), last: true };
            let refused = client.upload(tokio_stream::once(part)).await.map(|_| ()).unwrap_err();
            assert!(refused.message().contains("only the worker"), "{refused}");
        }
    });
    fs::write(socket.parent().unwrap().parent().unwrap().join("workspace/source/go-on"), "").unwrap();
    world.control_plane.wait_for(run, RunState::Finished);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("looked\n") && !log.contains("read "), "{log}");
    assert_eq!(launcher.finish(), Some(0));
}
