//! What is refused, and how.

use std::collections::BTreeSet;

use launcher_wire::id::{AssignmentId, RunId, WorkerId};
use launcher_wire::mqtt::WorkerState;
use launcher_wire::signature::MAXIMUM_SKEW;
use mothership::admin::WorkerStatus;

use crate::bench::{Bench, eventually, succeed, tool};
use crate::worker::{Worker, seconds};

#[test]
fn only_who_has_the_key_of_the_pool_is_heard() {
    let bench = Bench::start(&[]);
    let (pool, foreign) = (bench.pool("a"), bench.pool("b"));
    bench.stack("s", pool.id);
    let (worker, mut other) = (Worker::new(&pool), Worker::new(&foreign));
    assert_eq!(worker.claim(RunId::new(), AssignmentId::new()).unwrap_err().0, 403, "it is not registered");
    worker.register(WorkerState::Idle).unwrap();
    other.register(WorkerState::Idle).unwrap();

    // The key of one pool with the name of the other.
    let mut token = other.token.clone();
    token.pool = pool.id;
    let impostor = Worker::with(token, &foreign.key);
    assert_eq!(impostor.register(WorkerState::Idle).unwrap_err().0, 401);

    let path = format!("/v1/workers/{}", worker.id);
    let headers = worker.sign("DELETE", &path, b"", seconds() - MAXIMUM_SKEW - 5);
    assert!(worker.send("DELETE", &path, Vec::new(), &headers).unwrap_err().1.contains("clock"));
    let headers = worker.sign("PUT", &path, b"{}", seconds());
    assert_eq!(worker.send("PUT", &path, b"[]".to_vec(), &headers).unwrap_err().0, 401, "another body");
    assert_eq!(worker.send("PUT", &path, b"{}".to_vec(), &headers).unwrap_err().0, 422, "signed, but no registration");
    let (status, message) = worker.send("PUT", &path, b"{}".to_vec(), &headers).unwrap_err();
    assert_eq!((status, message.contains("came before")), (401, true), "{message}");
    assert_eq!(worker.request("PUT", &format!("{path}?a=b"), Vec::new()).unwrap_err().0, 422);
    assert_eq!(worker.request("PUT", &path, vec![b' '; 1024 * 1024 + 1]).unwrap_err().0, 413);
    assert_eq!(worker.request("DELETE", &format!("/v1/workers/{}", WorkerId::new()), Vec::new()).unwrap_err().0, 403);
    assert_eq!(worker.request("POST", &path, Vec::new()).unwrap_err().0, 405);
    assert_eq!(worker.request("POST", "/v1/nothing", Vec::new()).unwrap_err().0, 404);

    let run = bench.run("s").id;
    assert_eq!(other.claim(run, AssignmentId::new()).unwrap_err().0, 404, "the other pool's runs are not there");
    assert_eq!(worker.claim(run, AssignmentId::new()).unwrap_err().0, 409);
    other.id = worker.id;
    assert_eq!(other.register(WorkerState::Idle).unwrap_err().0, 403, "the other pool's worker");
    assert_eq!(other.claim(run, AssignmentId::new()).unwrap_err().0, 403);
}

#[test]
fn people_need_the_token() {
    let bench = Bench::start(&[]);
    let address = format!("{}/admin/v1/pools", bench.client().base());
    let ask = |headers: &[&str]| {
        let mut curl = tool("curl", "curl");
        curl.args(["--noproxy", "*", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
        curl.arg(bench.data().join("ca.pem"));
        for header in headers {
            curl.args(["-H", header]);
        }
        String::from_utf8(succeed(curl.arg(&address)).stdout).unwrap()
    };
    let token = std::fs::read_to_string(bench.data().join("admin.token")).unwrap();
    assert_eq!(ask(&[]), "401");
    assert_eq!(ask(&["Authorization: Bearer x"]), "401");
    assert_eq!(ask(&[&format!("Authorization: Basic {token}")]), "401");
    assert_eq!(ask(&[&format!("Authorization: Bearer {token}")]), "200");
    assert!(!bench.log().contains(&token));
}

#[test]
fn messages_that_cannot_be_read_are_counted_and_dropped() {
    let bench = Bench::start(&[]);
    let pool = bench.pool("a");
    let worker = Worker::start(&pool);
    for payload in [b"".to_vec(), b"{}".to_vec(), b"{\"version\":2}".to_vec(), vec![0xff; 1000]] {
        worker.say_bytes(payload);
    }
    eventually("all are counted", || bench.log().contains("malformed=4"));
    worker.alive(WorkerState::Drained);
    eventually("it goes on", || bench.client().workers().unwrap()[0].status == WorkerStatus::Drained);
}

#[test]
fn every_route_is_described() {
    let description: serde_json::Value = serde_json::from_str(mothership::http::OPENAPI).unwrap();
    let mut described = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            described.insert(format!("{method} {path}"));
        }
    }
    let mut routes = BTreeSet::new();
    for route in include_str!("../../src/http.rs").split(".route(").skip(1) {
        let path = route.split('"').nth(1).unwrap();
        let handlers = route.split_once(',').unwrap().1.split('\n').next().unwrap();
        for method in ["get", "put", "post", "delete"] {
            if handlers.contains(&format!("{method}(")) {
                routes.insert(format!("{method} {path}"));
            }
        }
    }
    assert!(routes.len() > 30, "{routes:?}");
    assert_eq!(routes, described);
    let text = mothership::http::OPENAPI;
    for reference in text.split("\"$ref\": \"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(description.pointer(pointer).is_some(), "{pointer}");
    }
}
