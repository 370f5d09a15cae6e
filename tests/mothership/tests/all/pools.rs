//! Pools: their certificates, and what is done with all workers of one.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use launcher_wire::mqtt::{FromWorker, ToWorker, WorkerState};
use launcher_wire::token::Token;
use mothership::admin::WorkerStatus;

use crate::bench::{Bench, Pool, eventually, succeed, tool};
use crate::worker::Worker;

#[test]
fn the_documented_request_becomes_a_certificate_for_a_client() {
    let bench = Bench::start(&[]);
    let (key, csr) = (bench.path().join("spacelift.key"), bench.path().join("spacelift.csr"));
    let mut openssl = tool("openssl", "openssl");
    openssl.args(["req", "-new", "-newkey", "rsa:4096", "-nodes", "-keyout"]).arg(&key).arg("-out").arg(&csr);
    let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Return at every question.
    child.stdin.take().unwrap().write_all(&[b'\n'; 16]).unwrap();
    assert!(child.wait().unwrap().success());

    let output = succeed(bench.command().args(["pool", "create", "--json", "--csr"]).arg(&csr));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (token, certificate) = Token::from_variable(made["token"].as_str().unwrap()).unwrap();
    assert_eq!(token.broker, format!("mqtts://localhost:{}", bench.broker_port));
    let file = bench.path().join("pool.pem");
    fs::write(&file, &certificate.pem).unwrap();
    let ca = bench.data().join("ca.pem");
    succeed(tool("openssl", "openssl").args(["verify", "-purpose", "sslclient", "-CAfile"]).arg(&ca).arg(&file));
    let mut as_server = tool("openssl", "openssl");
    as_server.args(["verify", "-purpose", "sslserver", "-CAfile"]).arg(&ca).arg(&file);
    assert!(!as_server.output().unwrap().status.success(), "it is no server's");
    let subject = succeed(tool("openssl", "openssl").args(["x509", "-noout", "-subject", "-in"]).arg(&file)).stdout;
    assert_eq!(String::from_utf8(subject).unwrap().trim(), format!("subject=CN = {}", token.pool));

    let pool = Pool { id: token.pool, token: token.to_variable(), key: fs::read_to_string(key).unwrap() };
    let worker = Worker::start(&pool);
    eventually("it is idle", || bench.client().workers().unwrap()[0].status == WorkerStatus::Idle);
    let list = succeed(bench.command().args(["worker", "list"])).stdout;
    let list = String::from_utf8(list).unwrap();
    assert!(list.contains(&worker.id.to_string()) && list.contains("IDLE") && list.contains("zone=a"), "{list}");
    for secret in ["ca.key", "api.key", "broker.key", "client.key", "admin.token"] {
        let mode = fs::metadata(bench.data().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
}

#[test]
fn other_requests_are_refused_with_the_reason() {
    let bench = Bench::start(&[]);
    let client = bench.client();
    let refused = |csr: &str| {
        let error = client.create_pool(None, csr).unwrap_err();
        assert_eq!(error.status(), Some(422), "{error}");
        error.to_string()
    };
    let short = bench.request("short", &["-newkey", "rsa:2048"]);
    assert!(refused(&short.csr).contains("2048 bits"));
    let curve = bench.request("curve", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    assert!(refused(&curve.csr).contains("not an RSA key"));
    let extensions =
        ["-addext", "subjectAltName=DNS:a", "-addext", "basicConstraints=CA:TRUE", "-addext", "1.2.3.4=ASN1:NULL"];
    let greedy = bench.request("greedy", &[["-newkey", "rsa:3072"].as_slice(), &extensions].concat());
    let message = refused(&greedy.csr);
    for extension in ["subjectAltName", "basicConstraints", "1.2.3.4"] {
        assert!(message.contains(extension), "{message}");
    }
    let good = bench.request("good", &["-newkey", "rsa:3072"]);
    assert!(refused(&good.key).contains("PRIVATE KEY"));
    assert!(refused("hello").contains("no PEM block"));
    assert!(refused(&"x".repeat(40_000)).contains("40000 bytes"));
    // Another signature, of the same length: the end of the base64 is the end of the signature.
    let end = good.csr.rfind("\n-----END").unwrap() - 8;
    let other = if good.csr.as_bytes()[end] == b'A' { "B" } else { "A" };
    let mut forged = good.csr.clone();
    forged.replace_range(end..=end, other);
    assert!(refused(&forged).contains("not signed by the key"), "{forged}");
    assert!(client.pools().unwrap().is_empty());
    client.create_pool(None, &good.csr).unwrap();
}

#[test]
fn after_a_reset_the_old_key_is_refused() {
    let bench = Bench::start(&[]);
    let old = bench.pool("a");
    let worker = Worker::start(&old);
    let client = bench.client();
    let same = fs::read_to_string(bench.path().join("a.csr")).unwrap();
    assert_eq!(client.reset_pool(old.id, &same).unwrap_err().status(), Some(422), "that would end nothing");
    let request = bench.request("next", &["-newkey", "rsa:3072"]);
    let made = client.reset_pool(old.id, &request.csr).unwrap();
    assert_eq!(worker.register(WorkerState::Idle).unwrap_err().0, 401);
    let next = Worker::start(&Pool { id: made.pool, token: made.token, key: request.key });
    next.register(WorkerState::Idle).unwrap();
}

#[test]
fn drained_workers_take_nothing_until_they_are_undrained() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    bench.stack("s", pool.id);
    let client = bench.client();
    let worker = Worker::start(&pool);
    client.drain_pool(pool.id).unwrap();
    assert_eq!(worker.next(), ToWorker::Drain {});
    worker.alive(WorkerState::Idle);
    assert_eq!(worker.next(), ToWorker::Drain {}, "it may not have heard it");
    worker.alive(WorkerState::Drained);
    bench.run("s");
    assert_eq!(worker.next_within(Duration::from_millis(500)), None);
    assert!(client.pools().unwrap()[0].drained);
    assert!(worker.register(WorkerState::Drained).unwrap().drained, "over restarts, too");

    client.undrain_pool(pool.id).unwrap();
    assert_eq!(worker.next(), ToWorker::Undrain {});
    client.drain_worker(worker.id).unwrap();
    assert_eq!(worker.next(), ToWorker::Drain {});
    client.undrain_worker(worker.id).unwrap();
    assert_eq!(worker.next(), ToWorker::Undrain {});
    worker.alive(WorkerState::Idle);
    let (run, assignment) = worker.scheduled();

    // What is scheduled but not claimed is taken back at once.
    client.drain_pool(pool.id).unwrap();
    assert_eq!(worker.claim(run, assignment).unwrap_err().0, 409);
    client.undrain_pool(pool.id).unwrap();
    worker.alive(WorkerState::Idle);
    worker.scheduled();

    client.cycle_pool(pool.id).unwrap();
    eventually("it is told", || worker.next() == ToWorker::Cycle {});
    worker.say(FromWorker::Bye {});
    worker.deregister().unwrap();
    eventually("it is gone", || client.workers().unwrap().is_empty());
}
