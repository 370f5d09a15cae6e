//! What a pool, a worker and a job cannot do to others.

use integration_tests::mosquitto::Mosquitto;
use integration_tests::run::Finished;
use launcher_wire::id::{PoolId, WorkerId};
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

/// A stock MQTT client with what a launcher of a pool has.
struct Client<'a> {
    broker: &'a Mosquitto,
    directory: tempfile::TempDir,
    key: &'a std::path::Path,
}

impl<'a> Client<'a> {
    fn new(broker: &'a Mosquitto, pool: &'a Pool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (token, _) = Token::from_variable(&pool.token).unwrap();
        fs::write(directory.path().join("certificate"), token.certificate).unwrap();
        fs::write(directory.path().join("ca"), token.ca.unwrap()).unwrap();
        Self { broker, directory, key: &pool.key }
    }

    fn ask(&self, program: &str, worker: WorkerId, topic: &str, arguments: &[&str]) -> Finished {
        let mut client = run::tool(program);
        client.args(["-h", "localhost", "-p", &self.broker.port().to_string(), "-q", "1", "-V", "mqttv5"]);
        client.arg("--cafile").arg(self.directory.path().join("ca"));
        client.arg("--cert").arg(self.directory.path().join("certificate")).arg("--key").arg(self.key);
        run::finish(client.args(["-i", &worker.to_string(), "-t", topic]).args(arguments))
    }

    fn may_read(&self, as_worker: WorkerId, pool: PoolId, worker: WorkerId) -> bool {
        let topic = format!("spacelift/readonly/{pool}/{worker}");
        // 27: nothing came within the time, so it was let in.
        match self.ask("mosquitto_sub", as_worker, &topic, &["-W", "1", "-C", "1"]) {
            Finished { code: Some(27), .. } => true,
            refused if refused.says("denied") || refused.says("Not authorized") => false,
            other => panic!("{other}"),
        }
    }

    fn may_write(&self, as_worker: WorkerId, pool: PoolId, worker: WorkerId) -> bool {
        let topic = format!("spacelift/writeonly/{pool}/{worker}");
        let said = self.ask("mosquitto_pub", as_worker, &topic, &["-m", "{}"]);
        // Version 5 of the protocol tells whoever publishes.
        !(said.says("Not authorized") || said.says("not authorised"))
    }
}

#[test]
fn the_broker_keeps_pools_and_workers_apart() {
    let world = World::new();
    let other = world.control_plane.pool();
    let client = Client::new(&world.control_plane.broker, &other);
    let (own_worker, second_worker, foreign_worker) = (WorkerId::new(), WorkerId::new(), WorkerId::new());
    for (pool, worker, allowed) in [
        (other.id, own_worker, true),
        (other.id, second_worker, false),
        (world.pool.id, foreign_worker, false),
        (world.pool.id, own_worker, false),
    ] {
        assert_eq!(client.may_read(own_worker, pool, worker), allowed, "reads {pool}/{worker}");
        assert_eq!(client.may_write(own_worker, pool, worker), allowed, "writes {pool}/{worker}");
    }
}

/// The launcher's socket is in the container, where the processes of the job are the same user.
#[test]
fn processes_of_a_job_are_not_taken_for_its_worker() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    let command =
        "for file in environ mem maps; do head -c 1 /proc/1/$file >/dev/null 2>&1 && echo \"read $file\"; done
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
