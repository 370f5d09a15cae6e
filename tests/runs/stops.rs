//! What ends a run before its job has ended: memory, processes, disks, images and engines. Each has an outcome that names it and
//! says what to do, leaves nothing behind, and the launcher takes the next run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use integration_tests::registry::Registry;
use launcher_wire::api::Report;
use launcher_wire::id::RunId;

use super::faults::SmallDisk;
use super::*;

/// How a run that was begun failed, once nothing of it is left.
fn failed(world: &World, run: RunId) -> Report {
    let ended = world.control_plane.wait_within(run, RunState::Failed, Duration::from_secs(180));
    assert_eq!(world.containers(), Vec::<String>::new());
    ended.stages.last().unwrap().report.clone().unwrap()
}

fn log(world: &World, run: RunId) -> String {
    String::from_utf8_lossy(&world.control_plane.log(run)).into_owned()
}

fn succeeds(world: &World, stack: &Stack, command: &str) -> RunId {
    let run = world.control_plane.begin(stack, RunType::Task, Some(command));
    world.control_plane.wait_within(run, RunState::Finished, Duration::from_secs(180));
    run
}

#[track_caller]
fn assert_says(report: &Report, outcome: Outcome, parts: &[&str]) {
    assert_eq!(report.outcome, outcome, "{report:?}");
    for part in parts {
        assert!(report.message.contains(part), "{part} is not in: {report:?}");
    }
}

#[test]
fn what_a_container_has_too_little_of_is_named() {
    let world = World::new();
    let launcher = world.launcher(&[("SPACELIFT_WORKER_MEMORY", "48m")]);
    let mut stack = world.stack("memory");
    stack.hooks.after_run = vec!["echo after all".to_owned()];
    let begin = |command| world.control_plane.begin(&stack, RunType::Task, Some(command));
    let run = begin("echo before; busybox tail /dev/zero");
    assert_says(&failed(&world, run), Outcome::OutOfMemory, &["out of memory", "SPACELIFT_WORKER_MEMORY"]);
    let said = log(&world, run);
    assert!(said.contains("before\n") && said.contains("after all\n"), "{said}");
    // What a job survives is no reason to end it.
    let run = succeeds(&world, &stack, "busybox tail /dev/zero; echo went on");
    assert!(log(&world, run).contains("went on\n"));
    assert_eq!(launcher.finish(), Some(0));

    let launcher = world.launcher(&[]);
    let run = begin("bomb() { bomb | bomb & }; bomb; sleep 3; exit 1");
    assert_says(&failed(&world, run), Outcome::Failed, &["limit of processes"]);
    assert!(log(&world, run).contains("after all\n"), "there are processes again once the job has ended");
    succeeds(&world, &stack, "echo next");
    assert_eq!(launcher.finish(), Some(0));
}

/// Images, and what containers write outside of the workspace.
#[test]
fn a_job_that_fills_the_engines_disk_ends_with_that_reason() {
    let disk = SmallDisk::new("96m");
    let world = World::with(Engine::start_in(disk.path(), "{}", &[]));
    let launcher = world.launcher(&[]);
    let stack = world.stack("full");
    let run = world.control_plane.begin(&stack, RunType::Task, Some("echo before; cat /dev/zero > /tmp/fill"));
    assert_says(&failed(&world, run), Outcome::Failed, &["no room is left at `/`", "docker image prune"]);
    assert!(log(&world, run).contains("before\n"));
    let run = succeeds(&world, &stack, "cat /dev/zero > /tmp/fill; echo went on");
    assert!(log(&world, run).contains("went on\n"));
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_disk_without_room_is_named_before_there_is_a_container() {
    let disk = SmallDisk::new("40m");
    let world = World::new();
    let directory = disk.path().join("spacelift");
    let launcher = world.launcher(&[("SPACELIFT_LAUNCHER_DIR", directory.to_str().unwrap())]);
    world.control_plane.wait_for_worker(None, WorkerStatus::Idle);
    // The source: more than there is room for.
    let mut stack = world.stack("large");
    stack.source = Source::Archive {};
    world.control_plane.client.apply_stack(&stack).unwrap();
    let made = tempfile::tempdir().unwrap();
    succeed(
        run::tool("dd")
            .args(["if=/dev/urandom", "bs=1M", "count=45"])
            .arg(format!("of={}/file", made.path().display())),
    );
    let archive = made.path().join("archive.tar.gz");
    succeed(run::tool("tar").arg("-czf").arg(&archive).arg("-C").arg(made.path()).arg("file"));
    world.control_plane.client.upload_source("large", fs::read(&archive).unwrap()).unwrap();
    let run = world.control_plane.begin(&stack, RunType::Task, Some("true"));
    let place = directory.to_str().unwrap();
    let advice = "the disk of the worker's host is full";
    assert_says(
        &failed(&world, run),
        Outcome::Unable,
        &["keep the source in", place, advice, "SPACELIFT_LAUNCHER_DIR"],
    );

    // No room for anything.
    let mut fill = run::tool("dd");
    fill.args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", disk.path().join("fill").display()));
    run::finish(&mut fill);
    let stack = world.stack("next");
    let run = world.control_plane.begin(&stack, RunType::Task, Some("true"));
    assert_says(&failed(&world, run), Outcome::Unable, &[place, advice]);
    fs::remove_file(disk.path().join("fill")).unwrap();
    succeeds(&world, &stack, "echo there is room again");
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn an_image_that_is_removed_is_pulled_again_or_named() {
    let world = World::new();
    let registry = Registry::start();
    let image = format!("{}/runner:1", registry.address());
    let remove = || run::finish(world.engine.docker().args(["rmi", &image])).code == Some(0);
    succeed(world.engine.docker().args(["tag", &world.image, &image]));
    succeed(world.engine.docker().args(["push", &image]));
    // Otherwise its layers would be there, and its removal only that of a name.
    succeed(world.engine.docker().args(["rmi", "--force", &world.image]));
    let launcher = world.launcher(&[]);
    let stack = Stack { image: Some(image.clone()), ..world.stack("removed") };
    // Between being pulled and being used: whoever removes images there is seldom so quick.
    let was_pulled_again = (0..10).any(|_| {
        remove();
        let is_over = &AtomicBool::new(false);
        let mut docker = world.engine.docker();
        docker.args(["rmi", &image]);
        let run = thread::scope(|scope| {
            scope.spawn(move || while !is_over.load(Ordering::Relaxed) && run::finish(&mut docker).code != Some(0) {});
            let run = world.control_plane.begin(&stack, RunType::Task, Some("sleep 2"));
            world.control_plane.wait_for(run, RunState::Performing);
            is_over.store(true, Ordering::Relaxed);
            world.control_plane.wait_for(run, RunState::Finished);
            run
        });
        log(&world, run).matches("Pulled the image").count() == 2
    });
    assert!(was_pulled_again, "it was never removed in that moment");

    // Between a plan and its apply, and nobody has it any more.
    let run = world.control_plane.begin(&stack, RunType::Tracked, None);
    world.control_plane.wait_for(run, RunState::Unconfirmed);
    assert!(remove(), "nothing uses it");
    drop(registry);
    world.control_plane.client.confirm(run).unwrap();
    assert_says(&failed(&world, run), Outcome::Unable, &[&image, "registry cannot be reached"]);
    assert!(!log(&world, run).contains("the apply"));
    let other = runner_image(&world.engine);
    succeeds(&world, &Stack { image: Some(other), ..world.stack("other") }, "echo next");
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_restart_of_the_engine_that_ends_containers_is_named() {
    let mut world = World::new();
    let launcher = world.launcher(&[]);
    let stack = world.stack("restarted");
    for is_in_order in [true, false] {
        let command = "i=0; while true; do echo line $i; i=$((i + 1)); sleep 0.2; done";
        let run = world.control_plane.begin(&stack, RunType::Task, Some(command));
        world.control_plane.wait_for(run, RunState::Performing);
        thread::sleep(Duration::from_secs(1));
        if is_in_order {
            world.engine.end();
        } else {
            world.engine.kill();
        }
        world.engine.restart();
        assert_says(&failed(&world, run), Outcome::ContainerLost, &["Docker engine was restarted", "live-restore"]);
        assert!(log(&world, run).contains("line 0\n"));
        succeeds(&world, &stack, "echo next");
    }
    assert_eq!(launcher.finish(), Some(0));
}
