//! A job from its beginning to its outcome.

mod commands;
mod prepare;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::archive;
use crate::environment::Environment;
use crate::execution::{End, Executor, Program};
use crate::init::Children;
use crate::log::Log;
use crate::masking::{Masker, Secrets};
use crate::protocol::{Changes, Hooks, Job, Outcome, Phase, Result as Ended, Stage, Tool, Upload, Workflow};
use crate::session::{Launcher, Outbox};
use crate::shell::{SHELL, Script, Word};
use crate::shortage;
use crate::stop::Stops;
use crate::transfer;
use crate::untrusted::{self, Links};

use commands::Step;
use prepare::CARRIED;

/// The worker's own directory in the workspace: scripts, and what they leave word of.
const PRIVATE: &str = ".spacelift-worker";
/// The plan in the workspace.
const PLAN: &str = "spacelift.plan";

/// Bytes of outputs: they are read as a whole, and are meant for people and other stacks.
const MAXIMUM_OUTPUTS: u64 = 16 * 1024 * 1024;
/// Bytes of what the tool says about a plan. It is read piece by piece, and ten thousand resources have some 100 MB.
const MAXIMUM_PLAN: u64 = 1024 * 1024 * 1024;
/// Bytes of an environment that a phase leaves. Linux starts no program with more than 6 MiB of it.
const MAXIMUM_ENVIRONMENT: u64 = 8 * 1024 * 1024;

/// What is not kept of a workspace is named one by one, up to so many.
const MAXIMUM_NOTES: usize = 20;

/// Where a worker works, and with whom.
#[derive(Debug)]
pub struct Place {
    /// The launcher's socket.
    pub socket: PathBuf,
    /// The workspace.
    pub workspace: PathBuf,
    /// This program.
    pub worker: PathBuf,
}

/// Why a job did not end well.
#[derive(Debug)]
enum Failure {
    Unable(String),
    Failed(String),
    Stopped,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("the worker cannot work: {error}{}", shortage::advice(&error)))
    }
}

struct Run {
    job: Box<Job>,
    place: Place,
    executor: Executor,
    hooks: Hooks,
    workflow: Workflow,
    project: PathBuf,
    /// As the container, the job and the runtime configuration make it.
    initial: Environment,
    /// As the phases left it.
    environment: Environment,
    changes: Option<Changes>,
    outbox: Arc<Outbox>,
    /// Whether the launcher has heard of this job's worker. Nothing is executed before.
    heard: bool,
}

/// Does a job. Whatever happens, it has an outcome.
pub async fn execute(job: Box<Job>, place: Place, outbox: Arc<Outbox>, stops: Stops, children: Children) -> Outcome {
    let log = Log::new(Masker::new(Secrets::default()), Arc::clone(&outbox));
    let hooks = job.hooks.clone().unwrap_or_default();
    let workflow = job.workflow.clone().unwrap_or_default();
    let mut run = Run {
        project: place.workspace.clone(),
        executor: Executor { children, stops, log },
        hooks,
        workflow,
        initial: Environment::of_the_container(),
        environment: Environment::of_the_container(),
        changes: None,
        job,
        place,
        outbox,
        heard: false,
    };
    let mut result = run.phases().await;
    // An order that came just now is not one to end `after_run`.
    let told = run.stop_if_told().await;
    result = result.and(told);
    run.after_run(&result).await;
    if result.is_ok() && run.job.keep_workspace {
        result = run.keep_workspace().await;
    }
    run.clean();
    run.executor.log.flush().await;
    let (ended, message) = match result {
        Ok(()) => (Ended::Finished, String::new()),
        Err(Failure::Unable(message)) => (Ended::Unable, message),
        Err(Failure::Failed(message)) => (Ended::Failed, message),
        Err(Failure::Stopped) => {
            let reason = run.executor.stops.taken().map(|order| order.reason).unwrap_or_default();
            (Ended::Stopped, if reason.is_empty() { "it was stopped".into() } else { reason })
        }
    };
    Outcome { result: ended.into(), message: run.executor.log.masked_line(&message), changes: run.changes }
}

impl Run {
    fn launcher(&self) -> Launcher {
        Launcher { socket: self.place.socket.clone(), session: self.job.session.clone() }
    }

    async fn phases(&mut self) -> Result<(), Failure> {
        self.executor.log.phase(Phase::Preparing).await;
        // Once the launcher has heard that, it gives the job to nobody else: nothing of the job may be executed before.
        let outbox = Arc::clone(&self.outbox);
        self.unless_stopped(outbox.empty()).await?;
        self.heard = true;
        // A job without a shell cannot even say why it failed.
        if !Path::new(SHELL).exists() {
            return Err(Failure::Unable(format!(
                "the runner image has no {SHELL}, which executes hooks and commands; use an image that has a shell"
            )));
        }
        self.prepare().await?;
        let steps: &[Step] = match self.job.stage() {
            Stage::Plan => &[Step::Init, Step::Plan],
            Stage::Apply => &[Step::Apply],
            Stage::Task => &[Step::Init, Step::Perform],
            Stage::Test => &[Step::Init, Step::Plan, Step::Apply],
            Stage::Destroy => &[Step::Init, Step::Destroy],
            Stage::Unspecified => return Err(Failure::Unable("the launcher did not say what to do".into())),
        };
        let mut result = Ok(());
        for &step in steps {
            result = self.phase(step).await;
            if result.is_err() {
                break;
            }
        }
        if self.job.stage() == Stage::Test {
            // What a test has made costs money, whatever became of the test.
            let told = self.stop_if_told().await;
            let destroyed = self.phase(Step::Destroy).await;
            return result.and(told).and(destroyed);
        }
        result
    }

    async fn phase(&mut self, step: Step) -> Result<(), Failure> {
        self.executor.log.phase(step.phase()).await;
        let (before, after) = step.hooks(&self.hooks);
        let (before, after) = (before.to_vec(), after.to_vec());
        let command = self.command(step)?;
        let script = Script { before: &before, command, after: &after };
        if !script.is_empty() {
            // A test is destroyed even after it was stopped.
            if step != Step::Destroy || self.job.stage() != Stage::Test {
                self.stop_if_told().await?;
            }
            self.shell(step.name(), step.state(), script).await?;
        }
        match step {
            Step::Plan => self.read_plan().await,
            Step::Apply if self.job.stage() == Stage::Apply => self.upload_outputs().await,
            _ => Ok(()),
        }
    }

    /// Executes a script, and takes over the environment that it leaves.
    async fn shell(&mut self, name: &str, state: &str, script: Script<'_>) -> Result<(), Failure> {
        if self.job.debug {
            self.executor.log.say(&format!("{name}: {SHELL} executes\n{}", script.text())).await;
        }
        let private = self.private()?;
        let (file, dumped, reached) = (private.join(name), private.join("environment"), private.join("reached"));
        for old in [&file, &dumped, &reached] {
            remove(old)?;
        }
        let word = Word { worker: &self.place.worker, environment: &dumped, reached: &reached };
        fs::write(&file, script.bytes(&word)).map_err(|error| at(&file, "written", &error))?;
        let mut environment = self.environment.clone();
        prepare::set_state(&mut environment, "run_state", state);
        let program = Program {
            command: vec![SHELL.into(), file.into()],
            environment,
            directory: self.project.clone(),
            output: None,
        };
        let before = shortage::refused_processes();
        let end = self.executor.run(program).await;
        let left = untrusted::read(&dumped, Links::Refused, MAXIMUM_ENVIRONMENT);
        if let Ok(Some(bytes)) = &left {
            self.environment = Environment::from_bytes(bytes);
        }
        let lacking = || shortage::found(before, &[Path::new("/"), Path::new("/tmp"), &self.place.workspace]);
        match end.map_err(|error| Failure::Failed(format!("{SHELL} cannot be started: {error}{}", lacking())))? {
            End::Stopped => {
                self.report_stop().await;
                Err(Failure::Stopped)
            }
            End::Exited(status) if !status.success() => {
                let tool = script.command.as_ref().and(self.missing_tool());
                let reason = match tool {
                    Some(missing) if status.code() == Some(127) => missing,
                    _ => format!("{name} failed: {}{}", describe(status), lacking()),
                };
                self.executor.log.say(&reason).await;
                Err(Failure::Failed(reason))
            }
            End::Exited(_) if script.command.is_some() && !reached.exists() => {
                let reason = format!(
                    "{name} failed: a hook ended the shell with `exit 0` before the phase's command; let the hook end \
                     without `exit`"
                );
                self.executor.log.say(&reason).await;
                Err(Failure::Failed(reason))
            }
            End::Exited(_) => match left {
                // The next phase would go on without what this one did.
                Err(error) => {
                    let reason = format!("{name} failed: the environment that it left cannot be taken over: {error}");
                    self.executor.log.say(&reason).await;
                    Err(Failure::Failed(reason))
                }
                Ok(_) => Ok(()),
            },
        }
    }

    async fn after_run(&mut self, result: &Result<(), Failure>) {
        let hooks = self.hooks.after_run.clone();
        let script = Script { before: &hooks, ..Script::default() };
        if script.is_empty() || !Path::new(SHELL).exists() || !self.heard {
            return;
        }
        let state = match result {
            Ok(()) if self.job.stage() == Stage::Plan && self.job.keep_workspace => "UNCONFIRMED",
            Ok(()) => "FINISHED",
            Err(Failure::Unable(_) | Failure::Failed(_)) => "FAILED",
            Err(Failure::Stopped) => "STOPPED",
        };
        if !self.project.is_dir() {
            self.project = self.place.workspace.clone();
        }
        let mut environment = self.environment.clone();
        prepare::set_state(&mut environment, "final_run_state", state);
        let before = std::mem::replace(&mut self.environment, environment);
        if self.shell("after_run", state, script).await.is_err() {
            self.executor.log.say("the hooks after_run did not end well, which changes nothing about the run").await;
        }
        // Nothing comes after it that its changes would be for.
        self.environment = before;
    }

    /// A program's standard output, in a file of the worker's own. It stays open: something else may have its name afterwards.
    async fn capture(&mut self, name: &str, command: Vec<std::ffi::OsString>) -> Result<File, Failure> {
        let path = self.private()?.join(name);
        remove(&path)?;
        let mut captured = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let output = captured.try_clone()?;
        let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
        let command = Program {
            command: match command.split_first() {
                // It is looked up where the job's own environment says.
                Some((first, rest)) => {
                    let first = commands::find(first, &self.environment).unwrap_or_else(|| first.into());
                    std::iter::once(first.into()).chain(rest.iter().cloned()).collect()
                }
                None => command,
            },
            environment: self.environment.clone(),
            directory: self.project.clone(),
            output: Some(output),
        };
        match self.executor.run(command).await {
            Ok(End::Exited(status)) if status.success() => {
                captured.rewind()?;
                Ok(captured)
            }
            Ok(End::Exited(status)) => {
                Err(Failure::Failed(format!("`{program}` for the {name} failed: {}", describe(status))))
            }
            Ok(End::Stopped) => {
                self.report_stop().await;
                Err(Failure::Stopped)
            }
            Err(error) => Err(Failure::Failed(format!("`{program}` for the {name} cannot be started: {error}"))),
        }
    }

    async fn read_plan(&mut self) -> Result<(), Failure> {
        let Some(tool) = self.tool() else { return Ok(()) };
        let plan = self.place.workspace.join(PLAN);
        if !plan.exists() {
            return Err(Failure::Failed(format!(
                "Planning failed: `{tool} plan` left no plan at `{}`",
                plan.display()
            )));
        }
        let shown = self.capture("plan", vec![tool.into(), "show".into(), "-json".into(), plan.into()]).await?;
        let size = shown.metadata()?.len();
        if size > MAXIMUM_PLAN {
            return Err(Failure::Failed(format!(
                "what `{tool} show -json` says has {size} bytes, and {MAXIMUM_PLAN} is the limit; split the stack"
            )));
        }
        let read = spawn_blocking(move || commands::changes(BufReader::new(shown.take(MAXIMUM_PLAN))));
        let changes = self.unless_stopped(read).await?.map_err(io::Error::other);
        let changes = changes.and_then(|changes| changes.map_err(io::Error::from));
        self.changes = Some(
            changes
                .map_err(|error| Failure::Failed(format!("what `{tool} show -json` says cannot be read: {error}")))?,
        );
        Ok(())
    }

    async fn upload_outputs(&mut self) -> Result<(), Failure> {
        let command = match (self.tool(), &self.workflow.output) {
            (Some(tool), _) => vec![tool.into(), "output".into(), "-json".into()],
            (None, Some(command)) => vec![SHELL.into(), "-c".into(), command.into()],
            (None, None) => return Ok(()),
        };
        let captured = self.capture("outputs", command).await?;
        let text = untrusted::content(&captured, Path::new("outputs"), MAXIMUM_OUTPUTS)
            .map_err(|error| Failure::Failed(format!("the outputs cannot be uploaded: {error}")))?;
        let outputs = commands::outputs(&text, self.job.sensitive_outputs).map_err(|error| {
            Failure::Failed(format!("the outputs are not what `terraform output -json` writes: {error}"))
        })?;
        let Some(outputs) = outputs else { return Ok(()) };
        let produce = move |out: &mut dyn io::Write| {
            out.write_all(&outputs).map_err(|source| archive::Error::Io { context: String::new(), source })
        };
        self.unless_stopped(transfer::upload(self.launcher(), Upload::Outputs, produce))
            .await?
            .map_err(|error| Failure::Failed(format!("the outputs cannot be uploaded: {error}")))
    }

    async fn keep_workspace(&mut self) -> Result<(), Failure> {
        self.carry()?;
        let directory = self.place.workspace.clone();
        let produce = move |out: &mut dyn io::Write| archive::pack(&directory, &[OsStr::new(PRIVATE)], out);
        let kept = self.unless_stopped(transfer::upload(self.launcher(), Upload::Workspace, produce)).await?;
        let skipped = kept.map_err(|error| Failure::Failed(format!("the workspace cannot be kept: {error}")))?;
        for path in skipped.iter().take(MAXIMUM_NOTES) {
            let path = untrusted::shown(path);
            let note = format!("`{path}` is no file, directory or link, so it is not kept in the workspace");
            self.executor.log.say(&note).await;
        }
        if let Some(more) = skipped.len().checked_sub(MAXIMUM_NOTES).filter(|more| *more > 0) {
            self.executor.log.say(&format!("{more} more are not kept for the same reason")).await;
        }
        Ok(())
    }

    /// Something that takes time but is no program of the job.
    async fn unless_stopped<F: Future>(&mut self, other: F) -> Result<F::Output, Failure> {
        let stops = &mut self.executor.stops;
        let done = tokio::select! {
            done = other => Some(done),
            _ = stops.next() => None,
        };
        match done {
            Some(done) => Ok(done),
            None => {
                self.report_stop().await;
                Err(Failure::Stopped)
            }
        }
    }

    async fn stop_if_told(&mut self) -> Result<(), Failure> {
        if self.executor.stops.take().is_some() {
            self.report_stop().await;
            return Err(Failure::Stopped);
        }
        Ok(())
    }

    async fn report_stop(&mut self) {
        let reason = self.executor.stops.taken().map(|order| order.reason).unwrap_or_default();
        self.executor.log.say(&format!("stopped: {reason}")).await;
    }

    fn private(&self) -> io::Result<PathBuf> {
        private_directory(&self.place.workspace.join(PRIVATE))
    }

    fn clean(&self) {
        // The container is about to be removed with all of it; outside of one nothing should be left.
        let _ = fs::remove_dir_all(self.place.workspace.join(PRIVATE));
        let _ = fs::remove_file(self.place.workspace.join(CARRIED));
    }

    /// The built-in tool's program.
    fn tool(&self) -> Option<&'static str> {
        match self.job.tool() {
            Tool::Terraform => Some("terraform"),
            Tool::OpenTofu => Some("tofu"),
            Tool::Custom | Tool::Unspecified => None,
        }
    }

    fn missing_tool(&self) -> Option<String> {
        let tool = self.tool()?;
        commands::find(OsStr::new(tool), &self.environment).is_none().then(|| commands::missing(tool))
    }
}

/// A directory of the worker's own, made or found. A job may have put something else in its place, which is removed: through a
/// link the worker would write elsewhere.
fn private_directory(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::set_permissions(path, fs::Permissions::from_mode(0o700))?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(path, "made", &error)),
        _ => Ok(path.to_owned()),
    }
}

/// Removes whatever has this name.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, "removed", &error)),
        _ => Ok(()),
    }
}

/// An error with the file that it is about, and what was to be done with it.
fn at(path: &Path, done: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}` cannot be {done}: {error}", untrusted::shown(path)))
}

fn describe(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed by signal 9; the container may have run out of memory".into(),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_workers_directory_is_its_own_again_whatever_a_job_put_there() {
        let place = tempfile::tempdir().unwrap();
        let (private, elsewhere) = (place.path().join(PRIVATE), place.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("kept"), "x").unwrap();
        symlink(&elsewhere, &private).unwrap();
        private_directory(&private).unwrap();
        assert!(fs::symlink_metadata(&private).unwrap().is_dir() && elsewhere.join("kept").exists());
        fs::set_permissions(&private, fs::Permissions::from_mode(0o000)).unwrap();
        private_directory(&private).unwrap();
        fs::create_dir_all(private.join("environment/deep")).unwrap();
        symlink(&elsewhere, private.join("reached")).unwrap();
        for name in ["environment", "reached", "missing"] {
            remove(&private.join(name)).unwrap();
        }
        assert_eq!(fs::read_dir(&private).unwrap().count(), 0);
        assert!(elsewhere.join("kept").exists());
    }
}
