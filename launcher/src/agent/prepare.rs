//! From a job to its running container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use launcher_wire::api::{Job, MountedFile, Outcome};
use launcher_wire::id::WorkerId;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use spacelift_worker::masking::{Masker, Secrets, TooMany};
use spacelift_worker::protocol::{self, SOCKET};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Host, LABEL_ASSIGNMENT, LABEL_POOL, LABEL_RUN, LABEL_WORKER, exit_of};
use crate::docker::{self, ContainerSpec, Engine};
use crate::events::Sender;
use crate::job;
use crate::registry_credentials::{self, Reference};
use crate::run::{End, Event, Ids};
use crate::run_log::RunLog;
use crate::slot;
use crate::worker_server::{self, WorkerServer};

/// How long to wait before a container that could not be removed is tried again.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

/// Everything that is needed to begin a run.
pub(super) struct Preparation {
    pub(super) host: Arc<Host>,
    pub(super) worker: WorkerId,
    pub(super) name: String,
    pub(super) directory: PathBuf,
    pub(super) job: Job,
    pub(super) log: RunLog,
    pub(super) events: Sender,
    pub(super) server: watch::Sender<Option<Arc<WorkerServer>>>,
}

/// The socket of a run whose files are in this directory.
pub(super) fn socket(directory: &Path) -> PathBuf {
    let name = Path::new(SOCKET).file_name().unwrap_or_default();
    directory.join("socket").join(name)
}

/// Reports when a container has ended.
pub(super) fn watch_container(host: Arc<Host>, name: String, events: Sender) {
    tokio::spawn(async move {
        let exit = exit_of(host.engine.wait(&name).await);
        events.send(Event::Exited(exit)).await;
    });
}

/// Removes a container, however long the engine is away: nobody may be told that a run has ended whose container could still
/// begin.
pub(super) async fn remove(engine: &Engine, name: &str) {
    while let Err(error) = engine.remove(name).await {
        tracing::warn!(container = name, %error, "cannot remove the container; trying again");
        tokio::time::sleep(REMOVE_AGAIN).await;
    }
}

impl Preparation {
    /// Says what became of it with an event. When it is cancelled, or fails, no container is left.
    pub(super) async fn run(self, mut cancelled: oneshot::Receiver<()>) {
        // Only what comes before there is a container is given up in the middle. A request to make one that nobody waits for
        // would be fulfilled all the same.
        let spec = tokio::select! {
            spec = self.to_spec() => Some(spec),
            _ = &mut cancelled => None,
        };
        let event = match spec {
            Some(Ok(spec)) => match self.to_container(&spec, cancelled).await {
                Ok(()) => return watch_container(Arc::clone(&self.host), self.name.clone(), self.events.clone()),
                Err(end) => Event::PreparationFailed(end),
            },
            Some(Err(end)) => Event::PreparationFailed(end),
            None => Event::PreparationCancelled,
        };
        if let Some(server) = self.server.borrow().clone() {
            server.revoke();
        }
        remove(&self.host.engine, &self.name).await;
        self.events.send(event).await;
    }

    async fn to_container(&self, spec: &ContainerSpec, cancelled: oneshot::Receiver<()>) -> Result<(), End> {
        let mut created = self.host.engine.create(spec).await;
        // Whoever cleans up images on this host may find it in the moment in which no container is made of it yet.
        if let Err(docker::Error::ImageGone { .. }) = created {
            tokio::select! {
                pulled = self.pull(&spec.image) => pulled?,
                _ = cancelled => return Err(unable("preparing was cancelled")),
            }
            created = self.host.engine.create(spec).await;
        }
        let created = created.map_err(unable)?;
        // Before it is: what the worker then says must find a run that is being executed.
        self.events.send(Event::Started).await;
        self.host.engine.start(&created.id).await.map_err(unable)
    }

    async fn to_spec(&self) -> Result<ContainerSpec, End> {
        let Self { host, job, .. } = self;
        let config = &host.config;
        let image = job::image(job, config);
        self.log
            .line(format!(
                "Worker {} with launcher {} begins {} of run {}.",
                self.worker,
                env!("CARGO_PKG_VERSION"),
                job::run_type(job.run_type),
                job.run
            ))
            .await;
        let for_worker = job::for_worker(job, config).map_err(unable)?;
        self.ask_policy(image, &job::secrets(&for_worker)).await?;
        self.pull(image).await?;

        let embedded = host.embedded;
        let directory = config.directory.clone();
        let worker = tokio::task::spawn_blocking(move || {
            let file = embedded.ready(&directory)?;
            file.confirm()?;
            Ok::<_, crate::worker_binary::Error>(file.path().to_owned())
        });
        let worker = worker.await.map_err(unable)?.map_err(unable)?;
        let workspace = slot::workspace(&self.directory);
        slot::private_directory(&workspace).map_err(unable)?;
        worker_server::give_to_worker(&workspace).map_err(unable)?;
        let socket = socket(&self.directory);
        let socket_directory = self.directory.join("socket");
        slot::shared_directory(&socket_directory).map_err(unable)?;
        let ids = Ids { run: job.run, assignment: job.assignment };
        if let Some(sha256) = &job.source_sha256 {
            slot::keep_source(&self.directory, sha256).map_err(unable)?;
        }
        let session = slot::new_session(&self.directory).map_err(unable)?;
        let for_worker = protocol::Job { session: session.clone(), ..for_worker };
        let server = WorkerServer::start(worker_server::Settings {
            socket,
            session,
            job: Some(for_worker),
            directory: self.directory.clone(),
            said: slot::Said::default(),
            log: self.log.clone(),
            events: self.events.clone(),
            transfer: host.transfer(ids, self.directory.clone()),
        });
        self.server.send_replace(Some(Arc::new(server.map_err(unable)?)));
        Ok(self.container(image, worker, socket_directory, workspace))
    }

    fn container(&self, image: &str, worker: PathBuf, socket_directory: PathBuf, workspace: PathBuf) -> ContainerSpec {
        let Self { host, job, .. } = self;
        let config = &host.config;
        let is_read_only = job.run_type.is_read_only();
        let mounts = config.mounts.iter().filter(|mount| mount.scope.applies(is_read_only));
        let labels = [
            (LABEL_POOL, config.token.pool.to_string()),
            (LABEL_WORKER, self.worker.to_string()),
            (LABEL_RUN, job.run.to_string()),
            (LABEL_ASSIGNMENT, job.assignment.to_string()),
        ];
        ContainerSpec {
            name: self.name.clone(),
            labels: labels.map(|(name, value)| (name.to_owned(), value)).into(),
            image: image.to_owned(),
            worker,
            socket_directory,
            workspace,
            mounts: mounts.map(|mount| (mount.source.clone(), mount.target.clone())).collect(),
            network: config.network.clone(),
            runtime: config.runtime.clone(),
            environment: vec![],
            limits: docker::Limits { memory: config.memory, ..docker::Limits::default() },
        }
    }

    async fn pull(&self, image: &str) -> Result<(), End> {
        let directory = self.host.config.docker_config_dir.as_deref();
        // What has no registry in its name is on this host already, or refused by the engine's client with the reason.
        let credentials = match Reference::parse(image) {
            Ok(reference) => {
                let http = &self.host.http;
                registry_credentials::for_image(directory, &reference, http).await.map_err(unable)?
            }
            Err(_) => None,
        };
        let (sender, mut lines) = mpsc::unbounded_channel();
        let log = self.log.clone();
        let writer = tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                log.line(line).await;
            }
        });
        let mut progress = |line: String| drop(sender.send(line));
        let pulled = self.host.engine.pull(image, credentials, &mut progress).await;
        drop(sender);
        let _ = writer.await;
        pulled.map_err(unable)
    }

    /// What a policy says can repeat what it was given, or what a command of it printed: `secrets` are not in what is shown.
    async fn ask_policy(&self, image: &str, secrets: &[String]) -> Result<(), End> {
        let Some(policy) = &self.host.config.policy else { return Ok(()) };
        let denied = |message| End { outcome: Outcome::Denied, message, changes: None };
        let input = policy_input(&self.job, image, &self.host.config.mask).map_err(denied)?;
        let (policy, question) = (policy.clone(), input.clone());
        // It may execute commands, and waits for them.
        let decision = tokio::task::spawn_blocking(move || policy.evaluate(question)).await.map_err(unable)?;
        let deny: Vec<String> = decision.deny.iter().map(|reason| masked(reason, secrets)).collect();
        if decision.sampled {
            let decided = if deny.is_empty() { "allows" } else { "denies" };
            let input = masked(&input.to_string(), secrets);
            self.log.line(format!("The initialization policy {decided} the run with this input: {input}")).await;
        }
        if deny.is_empty() {
            self.log.line("The initialization policy allows the run.".to_owned()).await;
            return Ok(());
        }
        for reason in &deny {
            self.log.line(format!("The initialization policy denies the run: {reason}")).await;
        }
        let message = format!("the initialization policy denied it: {}", deny.join("; "));
        Err(denied(message))
    }
}

/// A text without the secrets that are in it.
fn masked(text: &str, secrets: &[String]) -> String {
    let masked = || {
        let mut set = Secrets::default();
        for secret in secrets {
            set.add(secret.as_bytes())?;
            // As it is in JSON.
            let quoted = Value::from(secret.as_str()).to_string();
            set.add(quoted.trim_matches('"').as_bytes())?;
        }
        let (mut masker, mut out) = (Masker::new(set), Vec::new());
        masker.write(text.as_bytes(), &mut out)?;
        masker.flush(&mut out)?;
        Ok::<_, TooMany>(String::from_utf8_lossy(&out).into_owned())
    };
    masked().unwrap_or_else(|_| "(not shown: the run has too many secrets to look for)".to_owned())
}

/// What a policy decides on: what the control plane says of the run, and what the launcher is about to do. Where the two
/// overlap, what is about to be done is what counts.
///
/// # Errors
/// The control plane left something out: a rule that asks for it would be undefined, and deny nothing.
fn policy_input(job: &Job, image: &str, mask: &[String]) -> Result<Value, String> {
    let variables: BTreeMap<&str, &str> = job
        .environment
        .iter()
        .map(|variable| {
            let is_hidden = variable.secret || mask.contains(&variable.name);
            (variable.name.as_str(), if is_hidden { "" } else { variable.value.as_str() })
        })
        .collect();
    let mut input = job.policy_input.clone();
    let run_type = job::run_type_for_policies(job.run_type);
    let hooks = json!(job.hooks);
    let mut runtime_config = object(&hooks);
    runtime_config.extend(object(&json!({
        "project_root": job.project_root,
        "runner_image": image,
        "hooks": job.hooks,
        "workflow": job.workflow,
    })));
    for (name, own) in [
        ("run", json!({ "id": job.run, "type": run_type })),
        ("stack", json!({ "id": job.stack_id })),
        ("commit", json!({ "hash": job.commit })),
        ("request", json!({})),
    ] {
        let Some(Value::Object(said)) = input.get_mut(name) else {
            return Err(format!("the control plane did not say `{name}`, which policies decide on"));
        };
        said.extend(object(&own));
    }
    let run = &mut input["run"];
    // A rule that looks for what is not there denies nothing: so what is documented is there, if need be empty.
    for (name, missing) in [
        ("user_provided_metadata", json!([])),
        ("changes", json!([])),
        ("flags", json!([])),
        ("commit", json!({})),
        ("runtime_config", json!({})),
        ("triggered_by", json!("")),
        ("state", json!("PREPARING")),
    ] {
        let said = &mut run[name];
        if said.is_null() || said.is_object() != missing.is_object() || said.is_array() != missing.is_array() {
            *said = missing;
        }
    }
    run["commit"]["hash"] = job.commit.clone().into();
    if let Value::Object(said) = &mut run["runtime_config"] {
        said.extend(runtime_config);
    }
    let of_run = |name: &str| input["run"]["commit"].get(name).cloned().unwrap_or_else(|| json!(""));
    let of_stack = |name: &str, missing: Value| {
        let said = input["stack"].get(name).filter(|said| !said.is_null());
        said.cloned().unwrap_or(missing)
    };
    let files: Vec<Value> = job.files.iter().map(|file| json!({ "path": file.path, "sha256": digest(file) })).collect();
    let environment = json!({
        "account_name": "",
        "auto_deploy": of_stack("autodeploy", json!(false)),
        "before_apply": job.hooks.before_apply,
        "before_init": job.hooks.before_init,
        "command": job.command.clone().unwrap_or_default(),
        "commit_branch": of_run("branch"),
        "commit_sha": job.commit,
        "environment_variables": variables,
        "mounted_files": files,
        "project_root": job.project_root,
        "refresh_state": true,
        "repository_path": of_stack("repository", json!("")),
        "restore_workspace": job.restore_workspace,
        "run_type": run_type,
        "run_ulid": job.run,
        "skip_init": false,
        "source": { "archive_sha256": job.source_sha256, "from": job.source },
        "stack_labels": of_stack("labels", json!([])),
        "stack_slug": job.stack_id,
        "stage": job.stage,
        "terraform_version": of_stack("terraform_version", json!("")),
    });
    input.insert("docker_image".to_owned(), image.into());
    input.insert("worker_version".to_owned(), env!("CARGO_PKG_VERSION").into());
    input.insert("static_run_environment".to_owned(), environment);
    Ok(Value::Object(input))
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Of what is in a mounted file, in hexadecimal. What is no base64 is refused before it is mounted.
fn digest(file: &MountedFile) -> String {
    let contents = BASE64_STANDARD.decode(&file.contents).unwrap_or_default();
    Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unable(error: impl std::fmt::Display) -> End {
    End { outcome: Outcome::Unable, message: error.to_string(), changes: None }
}

#[cfg(test)]
mod tests {
    use launcher_wire::api::{Hooks, RunType, Source, Stage, Tool};
    use launcher_wire::id::{AssignmentId, RunId};

    use super::*;

    fn job(policy_input: Value) -> Job {
        Job {
            run: RunId::new(),
            assignment: AssignmentId::new(),
            run_type: RunType::Tracked,
            stage: Stage::Plan,
            stack_id: "network".to_owned(),
            commit: "abc".to_owned(),
            image: None,
            tool: Tool::Custom,
            command: None,
            source: Source::Git { url: "https://git.test/r".to_owned(), commit: "abc".to_owned(), reference: None },
            source_sha256: None,
            project_root: "live".to_owned(),
            environment: vec![],
            files: vec![MountedFile {
                path: "source/main.tf".to_owned(),
                contents: BASE64_STANDARD.encode("x"),
                secret: true,
                mode: None,
            }],
            hooks: Hooks { before_init: vec!["curl evil".to_owned()], ..Hooks::default() },
            workflow: None,
            restore_workspace: false,
            keep_workspace: true,
            policy_input: object(&policy_input),
        }
    }

    /// Rules that look for what is not there deny nothing: whatever the control plane says or leaves out, it is there.
    #[test]
    fn what_policies_decide_on_is_always_there_and_is_what_is_done() {
        let said_nothing = json!({ "run": {}, "stack": {}, "commit": {}, "request": {} });
        let said_wrong = json!({
            "run": {
                "id": "another", "type": "PROPOSED", "user_provided_metadata": "none", "commit": { "hash": "signed" },
                "runtime_config": { "before_init": [], "terraform_version": "1.5.7" },
            },
            "stack": { "id": "another", "labels": ["a"] }, "commit": { "hash": "signed" }, "request": {},
        });
        for said in [said_nothing, said_wrong.clone()] {
            let job = job(said);
            let input = policy_input(&job, "image:1", &[]).unwrap();
            assert_eq!(input["run"]["id"], json!(job.run));
            assert_eq!(input["run"]["type"], "TRACKED");
            assert_eq!(input["run"]["user_provided_metadata"], json!([]));
            assert_eq!(input["run"]["commit"]["hash"], "abc");
            assert_eq!(input["run"]["runtime_config"]["before_init"], json!(["curl evil"]));
            assert_eq!(input["run"]["runtime_config"]["runner_image"], "image:1");
            let environment = &input["static_run_environment"];
            assert_eq!(environment["before_init"], json!(["curl evil"]));
            assert_eq!(environment["run_type"], "TRACKED");
            assert_eq!(environment["stack_slug"], "network");
            assert_eq!(environment["mounted_files"][0]["path"], "source/main.tf");
            assert_eq!(environment["mounted_files"][0]["sha256"].as_str().unwrap().len(), 64);
            assert_eq!(environment["source"]["from"]["url"], "https://git.test/r");
            assert_eq!(input["stack"]["id"], "network");
            assert_eq!(input["docker_image"], "image:1");
        }
        let input = policy_input(&job(said_wrong), "image:1", &[]).unwrap();
        assert_eq!(input["run"]["runtime_config"]["terraform_version"], "1.5.7");
        assert_eq!(input["static_run_environment"]["stack_labels"], json!(["a"]));
        assert!(policy_input(&job(json!({ "run": {} })), "image:1", &[]).is_err());
    }
}
