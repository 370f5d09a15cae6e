//! The components that tests start end with the tests, also with those that fail.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::docker::{Engine, busybox_root};
use integration_tests::gpg;
use integration_tests::registry::Registry;
use integration_tests::run::{finish, succeed};

/// Command lines of processes that contain a text.
fn processes(text: &str) -> Vec<String> {
    let lines =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(text)).collect()
}

/// Runs `component`, which gives its directory and the texts that its processes are known by, and then fails.
fn assert_gone_after_failure(component: impl FnOnce(&mut dyn FnMut(&Path, &[&str]))) {
    let (mut directory, mut marks) = (PathBuf::new(), Vec::new());
    let failed = catch_unwind(AssertUnwindSafe(|| {
        component(&mut |path, texts| {
            directory = path.to_owned();
            marks = texts.iter().map(|text| (*text).to_owned()).collect();
            for mark in &marks {
                assert!(!processes(mark).is_empty(), "{mark} is running");
            }
            panic!("as a failing test does");
        });
    }));
    let message = failed.expect_err("it fails");
    assert_eq!(message.downcast_ref::<&str>(), Some(&"as a failing test does"));
    assert!(!directory.exists(), "{} is left", directory.display());
    let started = Instant::now();
    for mark in &marks {
        // gpg-agent answers before it ends.
        while !processes(mark).is_empty() {
            assert!(started.elapsed() < Duration::from_secs(10), "still there: {:?}", processes(mark));
            thread::sleep(Duration::from_millis(20));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(directory.to_str().unwrap()), "{mounts}");
}

#[test]
fn a_container_engine_ends_with_its_containers() {
    // A command line that no other process has.
    const SLEEP: &str = "sleep 98765.4321";
    assert_gone_after_failure(|running| {
        let engine = Engine::start();
        engine.import(busybox_root().path(), "busybox:test");
        let mut docker = engine.docker();
        docker.args(["run", "--detach", "--network=none", "busybox:test", "/bin/busybox"]).args(SLEEP.split(' '));
        succeed(&mut docker);
        running(engine.path(), &[engine.path().to_str().unwrap(), SLEEP]);
    });
}

#[test]
fn a_registry_ends() {
    assert_gone_after_failure(|running| {
        let registry = Registry::start();
        running(registry.path(), &[registry.path().to_str().unwrap()]);
    });
}

#[test]
fn a_gpg_agent_ends() {
    assert_gone_after_failure(|running| {
        let home = gpg::Home::new();
        let key = ["--passphrase", "", "--quick-generate-key", "Test"];
        finish(home.gpg().args(["--pinentry-mode", "loopback"]).args(key)).expect(0);
        running(home.path(), &[home.path().to_str().unwrap()]);
    });
}
