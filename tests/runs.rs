//! Runs, from a request to a container that has ended and a log in the object store: with the launcher that ships, the
//! reference control plane, a real broker, a real container engine and a strict object store.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use integration_tests::control_plane::{ControlPlane, Launcher, Pool, custom_stack, runner_image};
use integration_tests::docker::Engine;
use integration_tests::release::{Release, Unpacked};
use integration_tests::run::{self, succeed};
use integration_tests::{program, tree};
use launcher_wire::api::{Outcome, RunState, RunType, Source, Tool, Variable, Workflow};
use mothership::admin::{Stack, WorkerStatus};

mod end_to_end;
mod faults;
mod hostile;
mod isolation;
mod registries;
mod sight;
mod stops;
mod sweep;
mod terraform;
mod variables;

/// What a run needs.
struct World {
    control_plane: ControlPlane,
    engine: Engine,
    pool: Pool,
    image: String,
}

impl World {
    fn new() -> Self {
        Self::with(Engine::start())
    }

    fn with(engine: Engine) -> Self {
        let control_plane = ControlPlane::start(program::mothership(), env!("CARGO_BIN_EXE_strict-s3"));
        let image = runner_image(&engine);
        let pool = control_plane.pool();
        Self { control_plane, engine, pool, image }
    }

    fn launcher(&self, more: &[(&str, &str)]) -> Launcher {
        Launcher::start(&launcher_program(), &self.engine, &self.pool, more)
    }

    fn stack(&self, slug: &str) -> Stack {
        let workflow = Workflow {
            init: Some("echo the init".to_owned()),
            plan: Some("echo the plan".to_owned()),
            apply: Some("echo the apply".to_owned()),
            destroy: None,
            output: None,
        };
        custom_stack(slug, self.pool.id, &self.image, workflow)
    }

    /// Containers that are there.
    fn containers(&self) -> Vec<String> {
        let mut docker = self.engine.docker();
        docker.args(["ps", "--all", "--quiet", "--no-trunc"]);
        succeed(&mut docker).lines().map(str::to_owned).collect()
    }
}

/// The launcher of the release archive, or the one that the environment variable `SPACELIFT_LAUNCHER` names.
fn launcher_program() -> std::path::PathBuf {
    static RELEASE: OnceLock<Unpacked> = OnceLock::new();
    match std::env::var_os("SPACELIFT_LAUNCHER") {
        Some(path) => fs::canonicalize(path).unwrap(),
        None => {
            let release = RELEASE.get_or_init(|| Release::under_test().unpack());
            release.program("spacelift-launcher", std::env::consts::ARCH)
        }
    }
}
