//! The way of a run, as its users see it.

use super::*;

/// Planted where a run gets its secrets from.
const SECRET: &str = "correct-horse-battery-staple";

#[test]
fn a_tracked_run_is_planned_here_and_applied_there() {
    let world = World::new();
    let control_plane = &world.control_plane;
    let first = world.launcher(&[("SPACELIFT_METADATA_zone", "here")]);
    control_plane.wait_for_worker(None, WorkerStatus::Idle);
    let workers = control_plane.client.workers().unwrap();
    assert_eq!(workers[0].metadata.get("zone").map(String::as_str), Some("here"));

    let mut stack = world.stack("network");
    stack.environment = vec![Variable { name: "PASSWORD".to_owned(), value: SECRET.to_owned(), secret: true }];
    stack.workflow = Some(Workflow {
        init: Some("echo the init".to_owned()),
        plan: Some("echo planned with $PASSWORD > /mnt/workspace/source/plan && export CARRIED=over && echo the plan of $PASSWORD".to_owned()),
        apply: Some("cat plan && echo \"CARRIED is $CARRIED\"".to_owned()),
        destroy: None,
        output: None,
    });
    let run = control_plane.begin(&stack, RunType::Tracked, None);
    control_plane.wait_for(run, RunState::Unconfirmed);
    let log = String::from_utf8(control_plane.log(run)).unwrap();
    assert!(log.contains("the init\n") && log.contains("the plan of ***\n"), "{log}");
    assert!(!log.contains(SECRET), "{log}");

    // The workspace is in the store for whoever has the pool's key, and for nobody else.
    let workspace = control_plane.store.object(&format!("{}/{run}/workspace", world.pool.id));
    let mut age = run::tool("age");
    let opened = world.engine.path().join("workspace.tar.gz");
    succeed(age.args(["--decrypt", "--identity"]).arg(&world.pool.key).arg("--output").arg(&opened).arg(&workspace));
    let listing = succeed(run::tool("tar").arg("-tzf").arg(&opened));
    assert!(listing.lines().any(|line| line.trim_start_matches("./") == "source/plan"), "{listing}");
    assert_eq!(tree::find(&control_plane.store.state(), SECRET.as_bytes()), Vec::<std::path::PathBuf>::new());

    let first_log = first.log();
    assert_eq!(first.finish(), Some(0), "{first_log}");
    let second = world.launcher(&[]);
    control_plane.client.confirm(run).unwrap();
    let finished = control_plane.wait_for(run, RunState::Finished);
    let states: Vec<RunState> = finished.history.iter().map(|change| change.state).collect();
    let expected = [
        RunState::Queued,
        RunState::Preparing,
        RunState::Initializing,
        RunState::Planning,
        RunState::Unconfirmed,
        RunState::Confirmed,
        RunState::PreparingApply,
        RunState::Applying,
        RunState::Finished,
    ];
    assert_eq!(states, expected);
    let log = String::from_utf8(control_plane.log(run)).unwrap();
    assert!(log.contains("planned with ***\n") && log.contains("CARRIED is over\n"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
    let workers: Vec<_> = finished.stages.iter().map(|stage| stage.worker).collect();
    assert_eq!(workers.len(), 2, "{finished:#?}");
    assert_ne!(workers[0], workers[1]);

    assert_eq!(world.containers(), Vec::<String>::new());
    assert_eq!(second.finish(), Some(0));
}

#[test]
fn a_workspace_that_was_changed_is_not_applied() {
    let world = World::new();
    let control_plane = &world.control_plane;
    let launcher = world.launcher(&[]);
    let stack = world.stack("changed");
    let run = control_plane.begin(&stack, RunType::Tracked, None);
    control_plane.wait_for(run, RunState::Unconfirmed);
    let workspace = control_plane.store.object(&format!("{}/{run}/workspace", world.pool.id));
    let mut bytes = fs::read(&workspace).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&workspace, bytes).unwrap();
    control_plane.client.confirm(run).unwrap();
    let failed = control_plane.wait_for(run, RunState::Failed);
    let report = failed.stages.last().unwrap().report.clone().unwrap();
    assert!(report.message.contains("workspace") && report.message.contains("changed"), "{report:?}");
    let log = String::from_utf8(control_plane.log(run)).unwrap();
    assert!(log.contains("the plan") && !log.contains("the apply"), "{log}");
    // The agent is as it was.
    let next = control_plane.begin(&stack, RunType::Task, Some("echo next"));
    control_plane.wait_for(next, RunState::Finished);
    assert_eq!(launcher.finish(), Some(0));
}

/// Whoever can write to the object store, and has the pool's certificate.
#[test]
fn what_somebody_else_stored_is_not_executed() {
    let world = World::new();
    let control_plane = &world.control_plane;
    let launcher = world.launcher(&[]);
    let object = |run, name: &str| control_plane.store.object(&format!("{}/{run}/{name}", world.pool.id));
    let unconfirmed = |slug: &str| {
        let run = control_plane.begin(&world.stack(slug), RunType::Tracked, None);
        control_plane.wait_for(run, RunState::Unconfirmed);
        run
    };
    let fails = |run, says: &[&str]| {
        let failed = control_plane.wait_for(run, RunState::Failed);
        let message = failed.stages.last().unwrap().report.clone().unwrap().message;
        for part in says {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        let log = String::from_utf8(control_plane.log(run)).unwrap();
        assert!(!log.contains("the apply") && !log.contains("forged"), "{log}");
    };
    // A workspace of another run of the same pool.
    let (first, second) = (unconfirmed("first"), unconfirmed("second"));
    fs::copy(object(second, "workspace"), object(first, "workspace")).unwrap();
    control_plane.client.confirm(first).unwrap();
    fails(first, &["somebody else put it there", "who may write to the object store"]);
    // One that was made with the public key alone.
    let made = tempfile::tempdir().unwrap();
    fs::create_dir(made.path().join("source")).unwrap();
    let archive = world.engine.path().join("forged.tar.gz");
    succeed(run::tool("tar").arg("-czf").arg(&archive).arg("-C").arg(made.path()).arg("."));
    let mut age = run::tool("age");
    age.args(["--encrypt", "--identity"]).arg(&world.pool.key).arg("--output").arg(object(second, "workspace"));
    succeed(age.arg(&archive));
    control_plane.client.confirm(second).unwrap();
    fails(second, &["somebody else put it there"]);
    // Another source.
    let mut stack = world.stack("source");
    stack.source = Source::Archive {};
    control_plane.client.apply_stack(&stack).unwrap();
    control_plane.client.upload_source("source", fs::read(&archive).unwrap()).unwrap();
    let good = control_plane.begin(&stack, RunType::Task, Some("echo good"));
    control_plane.wait_for(good, RunState::Finished);
    let sources = control_plane.store.object(&format!("{}/sources", world.pool.id));
    let [stored] = &tree::entries(&sources)[..] else { panic!("one source is stored") };
    fs::write(made.path().join("source/forged"), "").unwrap();
    let forged = world.engine.path().join("other.tar.gz");
    succeed(run::tool("tar").arg("-czf").arg(&forged).arg("-C").arg(made.path()).arg("."));
    fs::copy(&forged, stored).unwrap();
    let run = control_plane.begin(&stack, RunType::Task, Some("echo forged"));
    fails(run, &["not what the control plane named", "SHA-256"]);
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn nothing_of_a_run_is_told_to_whoever_looks_at_its_container() {
    let world = World::new();
    let launcher = world.launcher(&[("PLANTED", "planted-by-the-host"), ("SPACELIFT_MASK_ENVS", "PLANTED")]);
    let mut stack = world.stack("secrets");
    stack.environment = vec![Variable { name: "PASSWORD".to_owned(), value: SECRET.to_owned(), secret: true }];
    let command = "echo $PASSWORD $PLANTED && sleep 5 && id -u && cat /proc/1/cmdline";
    let run = world.control_plane.begin(&stack, RunType::Task, Some(command));
    world.control_plane.wait_for(run, RunState::Performing);
    let containers = world.containers();
    assert_eq!(containers.len(), 1);
    let inspected = succeed(world.engine.docker().arg("inspect").arg(&containers[0]));
    let private_key = fs::read_to_string(&world.pool.key).unwrap();
    let mut secrets = vec![SECRET, "planted-by-the-host", &world.pool.token];
    secrets.extend(private_key.lines().filter(|line| line.len() > 20 && !line.starts_with('-')));
    for secret in &secrets {
        assert!(!inspected.contains(secret), "{inspected}");
    }
    world.control_plane.wait_for(run, RunState::Finished);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("*** ***\n") && log.contains("1983\n"), "{log}");
    let own = launcher.log();
    for secret in &secrets {
        assert!(!log.contains(secret) && !own.contains(secret), "{log}\n{own}");
    }
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn what_ends_badly_says_why() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    let fails = |stack: &Stack, command: &str, outcome: Outcome, says: &str| {
        let run = world.control_plane.begin(stack, RunType::Task, Some(command));
        let ended = world.control_plane.wait_for(run, RunState::Failed);
        let report = ended.stages.last().unwrap().report.clone().unwrap();
        let log = String::from_utf8_lossy(&world.control_plane.log(run)).into_owned();
        assert_eq!(report.outcome, outcome, "{ended:#?}\n{log}");
        assert!(report.message.contains(says) || log.contains(says), "{ended:#?}\n{log}");
    };
    fails(&world.stack("failing"), "echo before; exit 7", Outcome::Failed, "7");
    let mut stack = world.stack("no-image");
    stack.image = Some("localhost:1/none:1".to_owned());
    fails(&stack, "true", Outcome::Unable, "localhost:1/none:1");
    // An image without a shell.
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("file"), "").unwrap();
    world.engine.import(empty.path(), "empty");
    let mut docker = world.engine.docker();
    docker.args(["image", "inspect", "--format", "{{.Id}}", "empty"]);
    stack.image = Some(succeed(&mut docker).trim().to_owned());
    fails(&stack, "true", Outcome::Unable, "/bin/sh");
    assert_eq!(world.containers(), Vec::<String>::new());
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_run_is_stopped_by_its_user_and_by_its_limits() {
    let world = World::new();
    let variables = [("SPACELIFT_LAUNCHER_RUN_TIMEOUT", "20s"), ("SPACELIFT_LAUNCHER_LOGS_TIMEOUT", "5s")];
    let launcher = world.launcher(&variables);
    let report = |run, state| {
        let ended = world.control_plane.wait_for(run, state);
        ended.stages.last().unwrap().report.clone().unwrap()
    };
    let mut stack = world.stack("stopped");
    stack.hooks.after_run = vec!["echo after all".to_owned()];
    let talking = "trap 'echo asked to end; exit 3' TERM; while true; do echo alive; sleep 1; done";
    let run = world.control_plane.begin(&stack, RunType::Task, Some(talking));
    world.control_plane.wait_for(run, RunState::Performing);
    world.control_plane.client.stop(run).unwrap();
    assert_eq!(report(run, RunState::Stopped).outcome, Outcome::StoppedByUser);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("asked to end\n") && log.contains("after all\n"), "{log}");

    let silent = world.control_plane.begin(&stack, RunType::Task, Some("sleep 100"));
    assert_eq!(report(silent, RunState::Stopped).outcome, Outcome::LogsTimeout);
    let long = world.control_plane.begin(&stack, RunType::Task, Some(talking));
    assert_eq!(report(long, RunState::Stopped).outcome, Outcome::RunTimeout);
    assert_eq!(world.containers(), Vec::<String>::new());
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_policy_decides_before_there_is_a_container() {
    let world = World::new();
    let policy = world.engine.path().join("policy.rego");
    fs::write(
        &policy,
        "package spacelift\n\nsample { true }\n\n\
         deny[reason] { contains(input.static_run_environment.command, \"rm\"); \
         reason := sprintf(\"no tasks that rm: %s\", [input.static_run_environment.command]) }\n",
    )
    .unwrap();
    let launcher = world.launcher(&[("SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY", policy.to_str().unwrap())]);
    let mut stack = world.stack("policy");
    stack.environment = vec![Variable { name: "PASSWORD".to_owned(), value: SECRET.to_owned(), secret: true }];
    // Somebody wrote the secret where it does not belong.
    let run = world.control_plane.begin(&stack, RunType::Task, Some(&format!("rm -rf {SECRET}")));
    let ended = world.control_plane.wait_for(run, RunState::Failed);
    assert_eq!(ended.stages.last().unwrap().report.clone().unwrap().outcome, Outcome::Denied);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("no tasks that rm: rm -rf ***") && log.contains("denies the run with this input"), "{log}");
    let message = ended.stages.last().unwrap().report.clone().unwrap().message;
    assert!(!log.contains(SECRET) && !message.contains(SECRET), "{message}\n{log}");
    let run = world.control_plane.begin(&world.stack("policy"), RunType::Task, Some("echo fine"));
    world.control_plane.wait_for(run, RunState::Finished);
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_launcher_that_was_killed_goes_on_with_its_run() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    let lines = "i=0; while [ $i -lt 150 ]; do echo line $i; i=$((i + 1)); sleep 0.1; done";
    let run = world.control_plane.begin(&world.stack("adopted"), RunType::Task, Some(lines));
    world.control_plane.wait_for(run, RunState::Performing);
    let killed = launcher.kill();
    let again = killed.start_again(&launcher_program());
    world.control_plane.wait_for(run, RunState::Finished);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    let seen: Vec<&str> = log.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<String> = (0..150).map(|number| format!("line {number}")).collect();
    assert_eq!(seen, expected, "{log}");
    assert_eq!(world.containers(), Vec::<String>::new());
    assert_eq!(again.finish(), Some(0));
}

#[test]
fn containers_that_were_left_behind_are_removed_by_whoever_they_belong_to() {
    let world = World::new();
    let launcher = world.launcher(&[]);
    world.control_plane.wait_for_worker(None, WorkerStatus::Idle);
    let worker = world.control_plane.client.workers().unwrap()[0].id;
    let killed = launcher.kill();
    let leave = |worker: &str| {
        let mut docker = world.engine.docker();
        docker.args(["run", "--detach", "--network=none", "--label", &format!("io.spacelift.worker={worker}")]);
        succeed(docker.args([&world.image, "sleep", "600"])).trim().to_owned()
    };
    let (_own, foreign) = (leave(&worker.to_string()), leave("01ARZ3NDEKTSV4RRFFQ69G5FAV"));
    let again = killed.start_again(&launcher_program());
    world.control_plane.wait_for_worker(Some(worker), WorkerStatus::Idle);
    let run = world.control_plane.begin(&world.stack("after"), RunType::Task, Some("true"));
    world.control_plane.wait_for(run, RunState::Finished);
    assert_eq!(world.containers(), [foreign]);
    assert!(again.log().contains("left behind"), "{}", again.log());
    assert_eq!(again.finish(), Some(0));
}

#[test]
fn a_host_is_checked_without_a_run() {
    let mut world = World::new();
    let check = |world: &World, broker: bool| {
        let data = tempfile::tempdir().unwrap();
        let mut launcher = Command::new(launcher_program());
        launcher.arg("check").env_clear().env("PATH", "/usr/bin:/bin").env("DOCKER_HOST", world.engine.host());
        launcher.env("SPACELIFT_TOKEN", &world.pool.token).env("SPACELIFT_POOL_PRIVATE_KEY", world.pool.private_key());
        launcher.env("SPACELIFT_LAUNCHER_DIR", data.path()).env("SPACELIFT_DEFAULT_RUNNER_IMAGE", &world.image);
        let checked = run::finish(&mut launcher).expect(if broker { 0 } else { 69 });
        let said = checked.stdout + &checked.stderr;
        for part in ["worker", "Docker engine", "runner image", "API"] {
            assert!(said.contains(&format!("ok      {part}: ")), "{said}");
        }
        let line = if broker { "ok      broker: " } else { "FAILED  broker: " };
        assert!(said.contains(line) && !said.contains(&world.pool.token), "{said}");
    };
    check(&world, true);
    assert_eq!(world.control_plane.client.workers().unwrap().len(), 0, "no worker is left");
    world.control_plane.broker.kill();
    check(&world, false);
}
