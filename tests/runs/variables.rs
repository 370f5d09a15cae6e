//! Each variable of the launcher, by what a run shows of it.

use super::*;

/// Starts a task and gives its log.
fn task(world: &World, stack: &Stack, command: &str) -> String {
    let run = world.control_plane.begin(stack, RunType::Task, Some(command));
    world.control_plane.wait_for(run, RunState::Finished);
    String::from_utf8(world.control_plane.log(run)).unwrap()
}

/// Starts a task that cannot begin and gives the reason.
fn refusal(world: &World, stack: &Stack) -> String {
    let run = world.control_plane.begin(stack, RunType::Task, Some("true"));
    let failed = world.control_plane.wait_for(run, RunState::Failed);
    failed.stages.last().unwrap().report.clone().unwrap().message
}

#[test]
fn variables_and_mounts_of_the_host_are_for_the_runs_that_they_name() {
    let world = World::new();
    let directories: Vec<_> = ["all", "read", "write"].map(|name| world.engine.path().join(name)).into();
    for directory in &directories {
        fs::create_dir(directory).unwrap();
    }
    let mount = |place: usize, target: &str| format!("{}:{target}", directories[place].display());
    let launcher = world.launcher(&[
        ("SPACELIFT_WHITELIST_ENVS", "ro_FLAVOUR,wo_FLAVOUR,COMMON"),
        ("ro_FLAVOUR", "preview"),
        ("wo_FLAVOUR", "change"),
        ("COMMON", "both"),
        ("UNLISTED", "unlisted"),
        ("SPACELIFT_WORKER_EXTRA_MOUNTS", &mount(0, "/all")),
        ("SPACELIFT_WORKER_RO_EXTRA_MOUNTS", &mount(1, "/read")),
        ("SPACELIFT_WORKER_WO_EXTRA_MOUNTS", &mount(2, "/write")),
    ]);
    let command =
        "echo \"[$FLAVOUR $COMMON $UNLISTED]\"; for d in /all /read /write; do test -d $d && echo has $d; done; true";
    let log = task(&world, &world.stack("write"), command);
    assert!(log.contains("[change both ]\nhas /all\nhas /write\n"), "{log}");

    let mut stack = world.stack("read");
    stack.workflow.as_mut().unwrap().plan = Some(command.to_owned());
    let run = world.control_plane.begin(&stack, RunType::Proposed, None);
    world.control_plane.wait_for(run, RunState::Finished);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    assert!(log.contains("[preview both ]\nhas /all\nhas /read\n"), "{log}");
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn logs_are_copied_and_commands_shown_where_that_is_wanted() {
    let world = World::new();
    let variables = [("SPACELIFT_RUN_LOGS_ON_STANDARD_OUTPUT_ENABLED", "true"), ("SPACELIFT_DEBUG", "true")];
    let launcher = world.launcher(&variables);
    let log = task(&world, &world.stack("loud"), "echo one-$((1 + 1))");
    assert!(log.contains("one-2\n") && log.contains("echo one-$((1 + 1))"), "{log}");
    let printed = launcher.log();
    let copied: Vec<serde_json::Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line = copied.iter().find(|line| line["msg"] == "one-2").unwrap_or_else(|| panic!("{printed}"));
    assert_eq!(line["stack_id"], "loud");
    assert!(line["run_ulid"].as_str().unwrap().len() == 26 && line["ts"].is_u64(), "{line}");
    assert_eq!(launcher.finish(), Some(0));

    let quiet = world.launcher(&[]);
    let log = task(&world, &world.stack("quiet"), "echo one-$((1 + 1))");
    assert!(log.contains("one-2\n") && !log.contains("echo one-$((1 + 1))"), "{log}");
    assert!(!quiet.log().contains("one-2"), "{}", quiet.log());
    assert_eq!(quiet.finish(), Some(0));
}

#[test]
fn sensitive_outputs_are_stored_where_that_is_wanted() {
    let world = World::new();
    let mut stack = world.stack("outputs");
    stack.autodeploy = true;
    stack.workflow.as_mut().unwrap().output = Some(
        r#"echo '{"open":{"sensitive":false,"value":"seen"},"closed":{"sensitive":true,"value":"hidden"}}'"#.to_owned(),
    );
    for (wanted, more) in [(false, &[][..]), (true, &[("SPACELIFT_SENSITIVE_OUTPUT_UPLOAD_ENABLED", "true")])] {
        let launcher = world.launcher(more);
        let run = world.control_plane.begin(&stack, RunType::Tracked, None);
        world.control_plane.wait_for(run, RunState::Finished);
        let stored = world.control_plane.store.object(&format!("{}/{run}/outputs", world.pool.id));
        let mut age = run::tool("age");
        let outputs = succeed(age.args(["--decrypt", "--identity"]).arg(&world.pool.key).arg(stored));
        let outputs: serde_json::Value = serde_json::from_str(&outputs).unwrap();
        assert_eq!(outputs["open"]["value"], "seen", "{outputs}");
        assert_eq!(outputs.get("closed").is_some(), wanted, "{outputs}");
        assert_eq!(launcher.finish(), Some(0));
    }
}

#[test]
fn what_the_engine_does_not_have_is_named() {
    let world = World::new();
    let launcher = world.launcher(&[("SPACELIFT_WORKER_RUNTIME", "no-such-runtime")]);
    let reason = refusal(&world, &world.stack("runtime"));
    assert!(reason.contains("no-such-runtime"), "{reason}");
    assert_eq!(launcher.finish(), Some(0));
    let launcher = world.launcher(&[("SPACELIFT_WORKER_NETWORK", "no-such-network")]);
    let reason = refusal(&world, &world.stack("network"));
    assert!(reason.contains("no-such-network"), "{reason}");
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn a_private_vcs_is_where_the_host_says() {
    let world = World::new();
    let mut stack = world.stack("private");
    let commit = "0123456789012345678901234567890123456789".to_owned();
    stack.source = Source::Git { url: "private://corporate/team/network.git".to_owned(), commit, reference: None };
    let launcher = world.launcher(&[]);
    let reason = refusal(&world, &stack);
    assert!(reason.contains("SPACELIFT_PRIVATEVCS_MAPPING_NAME_0=corporate"), "{reason}");
    assert_eq!(launcher.finish(), Some(0));
    let launcher = world.launcher(&[
        ("SPACELIFT_PRIVATEVCS_MAPPING_NAME_0", "corporate"),
        ("SPACELIFT_PRIVATEVCS_MAPPING_BASE_ENDPOINT_0", "http://127.0.0.1:9"),
    ]);
    // The image has no Git: that is as far as it comes.
    let reason = refusal(&world, &stack);
    assert!(reason.contains("git") && !reason.contains("MAPPING"), "{reason}");
    assert_eq!(launcher.finish(), Some(0));
}

#[test]
fn stacks_without_an_image_have_the_launchers() {
    let world = World::new();
    for (tool, variable) in
        [(Tool::Custom, "SPACELIFT_DEFAULT_RUNNER_IMAGE"), (Tool::Ansible, "SPACELIFT_DEFAULT_ANSIBLE_RUNNER_IMAGE")]
    {
        let launcher = world.launcher(&[(variable, &world.image)]);
        let mut stack = world.stack(variable.rsplit('_').nth(2).unwrap().to_lowercase().as_str());
        stack.tool = tool;
        stack.image = None;
        assert!(task(&world, &stack, "echo there").contains("there\n"));
        assert_eq!(launcher.finish(), Some(0));
    }
}

#[test]
fn proxies_of_the_host_are_for_its_runs_too() {
    let world = World::new();
    let launcher = world.launcher(&[
        ("HTTP_PROXY", "http://user:open-sesame@proxy.test:3128"),
        ("HTTPS_PROXY", "http://other.test:3128"),
        ("NO_PROXY", "localhost,127.0.0.1,.internal"),
    ]);
    let log = task(&world, &world.stack("proxies"), "for name in HTTP HTTPS NO; do env | grep ^${name}_PROXY=; done");
    let expected = "HTTPS_PROXY=http://other.test:3128\nNO_PROXY=localhost,127.0.0.1,.internal\n";
    assert!(log.contains("@proxy.test:3128\n") && log.contains(expected), "{log}");
    assert!(!log.contains("open-sesame") && !launcher.log().contains("open-sesame"), "{log}");
    assert_eq!(launcher.finish(), Some(0));
}
