//! Jobs, as the worker does them: the real program, talking to the real service over a socket, outside of a container.

mod launcher;

use std::time::{Duration, Instant};

use spacelift_worker::protocol::{
    Download, File, Hooks, Job, Result as Ended, SourceKind, Stage, Tool, Upload, Variable, Workflow,
};

use launcher::Bench;

fn hooks(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("echo {name}")).collect()
}

fn variable(name: &str, value: &str, secret: bool) -> Variable {
    Variable { name: name.into(), value: value.into(), secret }
}

fn job(stage: Stage) -> Job {
    Job {
        run: "01J0000000000000000000000A".into(),
        stage: stage.into(),
        tool: Tool::Custom.into(),
        stack_id: "mine".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        run_type: "tracked".into(),
        workflow: Some(Workflow {
            init: Some("echo init".into()),
            plan: Some("echo plan".into()),
            apply: Some("echo apply".into()),
            destroy: Some("echo destroy".into()),
            output: None,
        }),
        ..Job::default()
    }
}

fn task(command: &str) -> Job {
    Job { command: Some(command.into()), workflow: Some(Workflow::default()), ..job(Stage::Task) }
}

fn all_hooks() -> Hooks {
    Hooks {
        before_init: hooks(&["before init 1", "before init 2"]),
        after_init: hooks(&["after init"]),
        before_plan: hooks(&["before plan"]),
        after_plan: hooks(&["after plan"]),
        before_apply: hooks(&["before apply"]),
        after_apply: hooks(&["after apply"]),
        before_perform: hooks(&["before perform"]),
        after_perform: hooks(&["after perform"]),
        before_destroy: hooks(&["before destroy"]),
        after_destroy: hooks(&["after destroy"]),
        after_run: hooks(&["after run $TF_VAR_spacelift_final_run_state"]),
    }
}

const INIT: &str = "== Preparing\n== Initializing\nbefore init 1\nbefore init 2\ninit\nafter init\n";

#[tokio::test]
async fn phases_and_hooks_have_their_order() {
    let perform = Job { command: Some("echo perform".into()), ..job(Stage::Task) };
    for (job, expected) in [
        (job(Stage::Plan), "== Planning\nbefore plan\nplan\nafter plan\n"),
        (perform, "== Performing\nbefore perform\nperform\nafter perform\n"),
        (
            job(Stage::Test),
            "== Planning\nbefore plan\nplan\nafter plan\n== Applying\nbefore apply\napply\nafter apply\n== \
             Destroying\nbefore destroy\ndestroy\nafter destroy\n",
        ),
        (job(Stage::Destroy), "== Destroying\nbefore destroy\ndestroy\nafter destroy\n"),
    ] {
        let done = Bench::new(Job { hooks: Some(all_hooks()), ..job }).done().await;
        assert_eq!(done.transcript(), format!("{INIT}{expected}after run FINISHED\n== Finished"));
    }
    let done = Bench::new(Job { hooks: Some(all_hooks()), ..job(Stage::Apply) }).done().await;
    assert_eq!(
        done.transcript(),
        "== Preparing\n== Applying\nbefore apply\napply\nafter apply\nafter run FINISHED\n== Finished"
    );
}
