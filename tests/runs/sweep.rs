//! `spacelift-launcher sweep`: what is removed, what stays, and what is only said.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use launcher_wire::id::{AssignmentId, PoolId, RunId, WorkerId};

use super::*;

/// A place of a launcher that is not there, with files of a run that has ended.
fn place(directory: &Path, pool: PoolId, number: u32) -> (std::path::PathBuf, WorkerId) {
    let place = directory.join("pools").join(pool.to_string()).join(number.to_string());
    let worker = WorkerId::new();
    fs::create_dir_all(place.join("run/workspace")).unwrap();
    fs::create_dir_all(place.join("stale/old")).unwrap();
    fs::write(place.join("lock"), "").unwrap();
    fs::write(place.join("worker"), format!("{worker}\n")).unwrap();
    (place, worker)
}

#[test]
fn what_is_left_behind_is_shown_and_removed_and_nothing_else() {
    let world = World::new();
    let pool = world.pool.id;
    let run = RunId::new();
    let container = |worker: WorkerId, pool: PoolId| {
        let mut docker = world.engine.docker();
        docker.args(["run", "--detach", "--network=none", "--label", &format!("io.spacelift.worker={worker}")]);
        docker.args(["--label", &format!("io.spacelift.pool={pool}"), "--label", &format!("io.spacelift.run={run}")]);
        succeed(docker.args([&world.image, "sleep", "600"])).trim().to_owned()
    };
    let launcher = world.launcher(&[]);
    world.control_plane.wait_for_worker(None, WorkerStatus::Idle);
    // At its next start it has the first place again.
    let killed = launcher.kill();
    let directory = killed.directory();
    let (gone, gone_worker) = place(&directory, pool, 1);
    let (waiting, waiting_worker) = place(&directory, pool, 2);
    let orphan = container(gone_worker, pool);
    let mut kept = vec![
        container(waiting_worker, pool),
        container(WorkerId::new(), pool),
        container(WorkerId::new(), PoolId::new()),
    ];
    // From here on it goes quickly: after a minute the launcher itself looks after the place of the one that is gone.
    let launcher = killed.start_again(&launcher_program());
    let at_work = world.control_plane.client.workers().unwrap()[0].id;
    // Then it has removed what it found in its own name.
    let begun = Instant::now();
    while !launcher.log().contains("registering with") {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", launcher.log());
        thread::sleep(Duration::from_millis(20));
    }
    kept.push(container(at_work, pool));
    let journal = serde_json::json!({ "run": run, "assignment": AssignmentId::new(), "stage": "PLAN", "begun": 1 });
    let journal = journal.to_string();
    fs::write(waiting.join("journal"), &journal).unwrap();
    let sweep = |arguments: &[&str]| {
        let mut sweep = Command::new(launcher_program());
        sweep.arg("sweep").args(arguments).env_clear().envs(&launcher.variables);
        run::finish(&mut sweep).expect(0).stdout
    };
    let before = tree::read(&directory.join("pools"));
    let said = sweep(&["--dry-run"]);
    let lines = |said: &str, begin: &str| said.lines().filter(|line| line.starts_with(begin)).count();
    assert_eq!((lines(&said, "would remove"), lines(&said, "removed"), lines(&said, "FAILED")), (3, 0, 0), "{said}");
    // The place of the launcher at work, the one that waits, and a container of each, and one of nobody who is known.
    assert_eq!(lines(&said, "kept"), 5, "{said}");
    assert!(said.contains(gone.join("stale/old").to_str().unwrap()) && said.contains(&run.to_string()), "{said}");
    assert_eq!(tree::read(&directory.join("pools")), before);
    assert_eq!(world.containers().len(), 5);

    let said = sweep(&[]);
    assert_eq!((lines(&said, "would remove"), lines(&said, "removed"), lines(&said, "FAILED")), (0, 3, 0), "{said}");
    let mut left = world.containers();
    left.sort();
    kept.sort();
    assert!(left == kept && !left.contains(&orphan), "{left:?}");
    assert!(!gone.join("run").exists() && !gone.join("stale/old").exists());
    assert!(waiting.join("run/workspace").exists() && waiting.join("stale/old").exists());
    assert_eq!(fs::read_to_string(waiting.join("journal")).unwrap(), journal);
    let said = sweep(&[]);
    assert!(lines(&said, "removed") == 0 && said.contains("nothing is left behind"), "{said}");

    // The launcher was not disturbed.
    let run = world.control_plane.begin(&world.stack("after"), RunType::Task, Some("true"));
    world.control_plane.wait_for(run, RunState::Finished);
    assert_eq!(launcher.finish(), Some(0));
}
