//! Where everything is, and the commands for going on.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use integration_tests::s3_store;
use mothership::admin::Run;

use super::{STACK, Site};

/// The file with the pool's token.
const TOKEN: &str = "pool.token";
/// The file with the variables of a launcher, for a shell.
const VARIABLES: &str = "launcher.env";

/// Writes the token and the variables of a launcher, so that no secret is printed.
pub(super) fn write(site: &Site, directory: &Path) -> Result<()> {
    let host = directory.join("another-host");
    let mut variables = site.launchers.0.first().context("there is no launcher")?.variables.clone();
    variables.insert("SPACELIFT_LAUNCHER_DIR".to_owned(), path(&host));
    variables.insert("SPACELIFT_DEFAULT_RUNNER_IMAGE".to_owned(), site.image.clone());
    variables.remove("SPACELIFT_METADATA_name");
    variables.remove("PATH");
    let mut lines: Vec<String> =
        variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
    lines.sort();
    for (name, text) in [(TOKEN, site.pool.token.clone()), (VARIABLES, lines.concat())] {
        let file = directory.join(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        opened
            .and_then(|mut opened| opened.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// All of it, for a person.
pub(super) fn describe(site: &Site, directory: &Path, run: &Run) -> String {
    let plane = &site.control_plane;
    let mut text = "\nWhere everything is\n".to_owned();
    let mut place = |what: &str, value: &str| text += &format!("  {what:<22}{value}\n");
    place("control plane", plane.client.base());
    place("  its data", &path(&plane.home()));
    place("broker", &format!("mqtts://localhost:{}", plane.broker.port()));
    place("object store", &plane.store.endpoint());
    place("  its bucket", &format!("s3://{}, as files in {}", s3_store::BUCKET, path(&plane.store.bucket())));
    place("  access key", &format!("{} with secret {}", s3_store::ACCESS_KEY, s3_store::SECRET_KEY));
    place("container engine", &site.engine.host());
    place("pool", &site.pool.id.to_string());
    place("  its token", &path(&directory.join(TOKEN)));
    place("  its private key", &path(&site.pool.key));
    place("release", &path(&site.release.root));
    place("run", &run.id.to_string());
    for key in keys(&plane.store.bucket(), &format!("{}/{}", site.pool.id, run.id)) {
        let kind = if key.contains("/log/") { "  its log" } else { "  its workspace" };
        place(kind, &key);
    }
    place("log: control plane", &path(&plane.mothership.log_file()));
    place("log: broker", &path(plane.broker.daemon().log_file()));
    place("log: object store", &path(&plane.store.service.log_file()));
    for (name, file) in ["dockerd", "containerd"].iter().zip(site.engine.log_files()) {
        place(&format!("log: {name}"), &path(&file));
    }
    for (number, launcher) in (1..).zip(&site.launchers.0) {
        place(&format!("log: launcher-{number}"), &path(launcher.daemon().log_file()));
    }
    text += "\nTo go on, in another terminal\n";
    for command in commands(site, directory, run) {
        text += &format!("  {command}\n");
    }
    text
}

/// Lines for a shell, each of which works as it is, in this order.
fn commands(site: &Site, directory: &Path, run: &Run) -> Vec<String> {
    let plane = &site.control_plane;
    let mothership = format!("{} --data {}", quoted(&path(&site.mothership)), quoted(&path(&plane.home())));
    let launcher = site.release.program("spacelift-launcher", std::env::consts::ARCH);
    let workspace = plane.store.object(&format!("{}/{}/workspace", site.pool.id, run.id));
    vec![
        format!("{mothership} worker list"),
        format!("{mothership} run show {}", run.id),
        format!("{mothership} run log {}", run.id),
        format!("{mothership} run start --stack {STACK} --command 'echo another run'"),
        format!("{mothership} run start --stack {STACK}"),
        format!("{mothership} run list"),
        format!("(. {} && {} check)", quoted(&path(&directory.join(VARIABLES))), quoted(&path(&launcher))),
        format!("docker --host {} ps --all", site.engine.host()),
        format!("age --decrypt --identity {} {} | tar -tz", quoted(&path(&site.pool.key)), quoted(&path(&workspace))),
    ]
}

/// The keys of the objects below a prefix, sorted.
fn keys(bucket: &Path, prefix: &str) -> Vec<String> {
    let (mut left, mut found): (Vec<PathBuf>, Vec<String>) = (vec![bucket.join(prefix)], vec![]);
    while let Some(directory) = left.pop() {
        // Objects come and go; those that are there are named.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let file = entry.path();
            if file.is_dir() {
                left.push(file);
            } else if let Ok(key) = file.strip_prefix(bucket) {
                found.push(path(key));
            }
        }
    }
    found.sort();
    found
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// A word of a shell's command line.
fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-:=+@,".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
