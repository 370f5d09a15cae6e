//! Pushing an image, beside `skopeo` and `docker`.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;
use integration_tests::docker::Engine;
use integration_tests::ecr;
use integration_tests::registry::Registry;
use integration_tests::release::noise;

use crate::publish::{COMMIT, sign};
use crate::{Goal, Limit, SIZE, beside, cpu_row, heading, race, row};

/// Of the generated image.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// Pushes an image with layers of 200 MB to a registry on loopback.
pub(crate) fn run(program: &Path, directory: &Path) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this benchmark starts a container engine: run it as root");
    let stage = directory.join("stage");
    fs::create_dir_all(stage.join("container-images"))?;
    let image = stage.join("container-images/spacelift-launcher.tar");
    ecr::image(&image, "v1.0.0", COMMIT, &noise(SIZE / 2));
    let (archive, certificate) = sign(program, &stage, directory)?;
    let release = directory.join("release");
    let mut unpack = Command::new(program);
    unpack.arg("verify").arg(archive).arg("--cert").arg(&certificate).arg("--unpack").arg(&release);
    ensure!(unpack.stdout(Stdio::null()).status()?.success(), "unpacking failed");
    // An empty one for each push: skopeo remembers which registry has which blob, and would send none of them again.
    let registries = RefCell::new(vec![]);
    let empty_registry = || {
        let registry = Registry::start();
        let address = registry.address();
        registries.borrow_mut().push(registry);
        address
    };
    let push = |registry: &str| {
        let mut command = Command::new(program);
        command.arg("push").arg(&release).arg("--cert").arg(&certificate).arg("--allow-http").arg("--repository");
        command.arg(format!("{registry}/spacelift-launcher")).stderr(Stdio::null());
        command
    };
    let skopeo = |registry: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--dest-tls-verify=false"]);
        command.arg(format!("oci-archive:{}", image.display()));
        command.arg(format!("docker://{registry}/spacelift-launcher:v1.0.0"));
        command
    };
    let ours = || Ok(vec![push(&empty_registry())]);
    let theirs = || Ok(vec![skopeo(&empty_registry())]);
    heading("push an image of two architectures, 200 MB: verified and sent; against tools that send");
    let result = race(&ours, &theirs)?;
    row("skopeo copy", &result, Goal::ShareOfWall(0.7))?;
    cpu_row(&result, 1.0)?;
    registries.borrow_mut().clear();

    let engine = Engine::start();
    let load = |architecture: &str| {
        let mut command = Command::new("skopeo");
        command.args(["--override-arch", architecture, "copy", "--quiet", "--dest-daemon-host", &engine.host()]);
        command.arg(format!("oci-archive:{}", image.display()));
        command.arg(format!("docker-daemon:loaded:{architecture}"));
        command
    };
    for architecture in ARCHITECTURES {
        ensure!(load(architecture).status()?.success(), "loading the image into the engine failed");
    }
    let theirs = || {
        let registry = empty_registry();
        let mut commands = vec![];
        for architecture in ARCHITECTURES {
            let name = format!("{registry}/spacelift-launcher:{architecture}");
            let mut tag = engine.docker();
            let tagged = tag.args(["tag", &format!("loaded:{architecture}"), &name]).status()?;
            ensure!(tagged.success(), "tagging the image failed");
            let mut command = engine.docker();
            command.args(["push", "--quiet", &name]);
            commands.push(command);
        }
        Ok(commands)
    };
    let result = race(&ours, &theirs)?;
    row("docker push, once for each architecture", &result, Goal::ShareOfWall(0.7))?;
    registries.borrow_mut().clear();

    let registry = empty_registry();
    ensure!(push(&registry).stdout(Stdio::null()).status()?.success(), "the first push failed");
    let again = || Ok(vec![push(&registry)]);
    let result = race(&again, &|| Ok(vec![skopeo(&registry)]))?;
    let both = [result.ours.as_secs_f64(), result.theirs.as_secs_f64()];
    beside("a second push, ours with verifying 200 MB", "skopeo copy", both, "s", Some(Limit::AtMost(0.2)))
}
