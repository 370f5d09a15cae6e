//! Terraform itself, from the source archive to what it has applied.

use integration_tests::control_plane::runner_image_with;

use super::*;

const CONFIGURATION: &str = r#"
variable "greeting" {}

resource "terraform_data" "one" {
  input = var.greeting
}

output "greeting" {
  value = terraform_data.one.output
}
"#;

#[test]
fn terraform_plans_on_one_launcher_and_applies_on_another() {
    let world = World::new();
    let control_plane = &world.control_plane;
    let image = runner_image_with(&world.engine, &["terraform"]);
    let mut stack = world.stack("terraform");
    stack.tool = Tool::Terraform;
    stack.workflow = None;
    stack.image = Some(image);
    stack.source = Source::Archive {};
    let variable = |name: &str, value: &str| Variable { name: name.to_owned(), value: value.to_owned(), secret: false };
    stack.environment = vec![
        variable("TF_VAR_greeting", "hello from ${TF_VAR_spacelift_stack_id}"),
        variable("CHECKPOINT_DISABLE", "1"),
    ];
    stack.hooks.before_init = vec!["echo before the init".to_owned()];
    stack.hooks.after_apply = vec!["echo after the apply".to_owned()];
    control_plane.client.apply_stack(&stack).unwrap();
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("main.tf"), CONFIGURATION).unwrap();
    let archive = world.engine.path().join("source.tar.gz");
    succeed(run::tool("tar").arg("-czf").arg(&archive).arg("-C").arg(source.path()).arg("."));
    control_plane.client.upload_source("terraform", fs::read(&archive).unwrap()).unwrap();

    let planner = world.launcher(&[]);
    let run = control_plane.begin(&stack, RunType::Tracked, None);
    let planned = control_plane.wait_for(run, RunState::Unconfirmed);
    let changes = planned.changes.expect("Terraform says what it would change");
    assert_eq!((changes.add, changes.change, changes.destroy), (1, 0, 0));
    assert_eq!(planner.finish(), Some(0));

    let applier = world.launcher(&[]);
    control_plane.client.confirm(run).unwrap();
    control_plane.wait_for(run, RunState::Finished);
    let log = String::from_utf8(control_plane.log(run)).unwrap();
    let mut rest = log.as_str();
    for expected in
        ["before the init\n", " 1 to add, 0 to change", "Apply complete! Resources: 1 added", "after the apply\n"]
    {
        let at = rest.find(expected).unwrap_or_else(|| panic!("`{expected}` is not where it should be in\n{log}"));
        rest = &rest[at..];
    }
    let stored = control_plane.store.object(&format!("{}/{run}/outputs", world.pool.id));
    let mut age = run::tool("age");
    let outputs = succeed(age.args(["--decrypt", "--identity"]).arg(&world.pool.key).arg(stored));
    let outputs: serde_json::Value = serde_json::from_str(&outputs).unwrap();
    assert_eq!(outputs["greeting"]["value"], "hello from terraform", "{outputs}");
    assert_eq!(world.containers(), Vec::<String>::new());
    assert_eq!(applier.finish(), Some(0));
}
