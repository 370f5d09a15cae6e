//! Runner images that not everyone may pull.

use integration_tests::ecr::{self, Door, Ecr};
use integration_tests::registry::Registry;

use super::*;

/// Puts the runner image of a world into a registry by its back door, under the name that it has behind its front door.
fn publish(world: &World, registry: &Registry, name: &str) {
    let image = format!("{}/{name}", registry.address());
    succeed(world.engine.docker().args(["tag", &world.image, &image]));
    succeed(world.engine.docker().args(["push", &image]));
    succeed(world.engine.docker().args(["rmi", &image]));
}

fn stack_in(world: &World, slug: &str, image: &str) -> Stack {
    let mut stack = world.stack(slug);
    stack.image = Some(image.to_owned());
    stack
}

/// Runs a task on a launcher with these variables; what it says for itself, and what the launcher printed.
fn outcome(world: &World, stack: &Stack, state: RunState, more: &[(&str, &str)]) -> (String, String) {
    let launcher = world.launcher(more);
    let run = world.control_plane.begin(stack, RunType::Task, Some("echo from-the-registry"));
    let ended = world.control_plane.wait_for(run, state);
    let log = String::from_utf8(world.control_plane.log(run)).unwrap();
    let said = format!("{log}\n{}", ended.stages[0].report.as_ref().unwrap().message);
    let printed = launcher.log();
    assert_eq!(launcher.finish(), Some(0));
    (said, printed)
}

#[test]
fn docker_configuration_has_the_credentials_of_registries() {
    let world = World::new();
    let registry = Registry::start();
    let door = Ecr::start(&registry, Door::Token);
    let image = format!("{}/team/runner:1", door.address());
    publish(&world, &registry, "team/runner:1");
    let stack = stack_in(&world, "configured", &image);

    let (said, _) = outcome(&world, &stack, RunState::Failed, &[]);
    assert!(said.contains(&image) && said.contains("SPACELIFT_DOCKER_CONFIG_DIR"), "{said}");

    let directory = world.engine.path().join("docker-config");
    let mut login = world.engine.docker();
    login.arg("--config").arg(&directory).args(["login", "--username", "user"]);
    succeed(login.args(["--password", ecr::PASSWORD, &door.address()]));
    let variables = [("SPACELIFT_DOCKER_CONFIG_DIR", directory.to_str().unwrap())];
    let (said, printed) = outcome(&world, &stack, RunState::Finished, &variables);
    assert!(said.contains("from-the-registry\n"), "{said}");
    assert!(!said.contains(ecr::PASSWORD) && !printed.contains(ecr::PASSWORD), "{said}\n{printed}");
}

/// Through a proxy and with an authority that only the launcher's variables name.
#[test]
fn ecr_gives_a_token_for_the_credentials_of_the_host() {
    let registry = Registry::start();
    let door = Ecr::start(&registry, Door::Ecr);
    door.create("runners/base", true);
    let proxy = format!("http://{}", door.address());
    let config = serde_json::json!({ "insecure-registries": [Ecr::host()] }).to_string();
    let world = World::with(Engine::start_with(&config, &[("HTTPS_PROXY", &proxy)]));
    let image = format!("{}/runners/base:1", Ecr::host());
    publish(&world, &registry, "runners/base:1");
    let stack = stack_in(&world, "in-ecr", &image);
    let authorities = door.authority();
    let network = [("HTTPS_PROXY", proxy.as_str()), ("ADDITIONAL_ROOT_CAS", authorities.to_str().unwrap())];
    let with = |more: &[(&'static str, &'static str)]| [&network[..], more].concat();

    let without = with(&[("AWS_EC2_METADATA_DISABLED", "true")]);
    let (said, _) = outcome(&world, &stack, RunState::Failed, &without);
    for part in [&Ecr::host()[..], "AWS credentials of this host", "ecr:GetAuthorizationToken"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }

    door.forget();
    let credentials = with(&[("AWS_ACCESS_KEY_ID", "AKIDHOST"), ("AWS_SECRET_ACCESS_KEY", "secret-of-the-host")]);
    let (said, printed) = outcome(&world, &stack, RunState::Finished, &credentials);
    assert!(said.contains("from-the-registry\n"), "{said}");
    for secret in [ecr::PASSWORD, "secret-of-the-host"] {
        assert!(!said.contains(secret) && !printed.contains(secret), "{said}\n{printed}");
    }
    let asked = door.seen().iter().filter(|seen| seen.headers.contains_key("x-amz-target")).count();
    assert_eq!(asked, 1, "a token for the run");
}
