//! From a job to its running container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use launcher_wire::api::{Job, Outcome};
use launcher_wire::id::WorkerId;
use serde_json::{Value, json};
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
    pub(super) async fn run(self, cancelled: oneshot::Receiver<()>) {
        // Only what comes before there is a container is given up in the middle. A request to make one that nobody waits for
        // would be fulfilled all the same.
        let spec = tokio::select! {
            spec = self.to_spec() => Some(spec),
            _ = cancelled => None,
        };
        let event = match spec {
            Some(Ok(spec)) => match self.to_container(&spec).await {
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

    async fn to_container(&self, spec: &ContainerSpec) -> Result<(), End> {
        let created = self.host.engine.create(spec).await.map_err(unable)?;
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
        let workspace = self.directory.join("workspace");
        slot::private_directory(&workspace).map_err(unable)?;
        worker_server::give_to_worker(&workspace).map_err(unable)?;
        let socket = socket(&self.directory);
        let socket_directory = self.directory.join("socket");
        slot::shared_directory(&socket_directory).map_err(unable)?;
        let ids = Ids { run: job.run, assignment: job.assignment };
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
            limits: docker::Limits::default(),
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
    for (object, own) in [
        (
            "run",
            json!({
                "id": job.run,
                "type": job::run_type(job.run_type),
                "project_root": job.project_root,
                "runtime_config": { "hooks": job.hooks, "workflow": job.workflow, "project_root": job.project_root },
            }),
        ),
        ("stack", json!({ "id": job.stack_id })),
        ("commit", json!({ "hash": job.commit })),
        ("request", json!({})),
    ] {
        let Some(Value::Object(said)) = input.get_mut(object) else {
            return Err(format!("the control plane did not say `{object}`, which policies decide on"));
        };
        let Value::Object(own) = own else { continue };
        said.extend(own);
    }
    if let Some(Value::Object(commit)) = input["run"].get_mut("commit") {
        commit.insert("hash".to_owned(), job.commit.clone().into());
    }
    input.insert("docker_image".to_owned(), image.into());
    input.insert("worker_version".to_owned(), env!("CARGO_PKG_VERSION").into());
    input.insert(
        "static_run_environment".to_owned(),
        json!({
            "stack_slug": job.stack_id,
            "commit_sha": job.commit,
            "run_type": job::run_type(job.run_type),
            "command": job.command.clone().unwrap_or_default(),
            "project_root": job.project_root,
            "environment_variables": variables,
        }),
    );
    Ok(Value::Object(input))
}

fn unable(error: impl std::fmt::Display) -> End {
    End { outcome: Outcome::Unable, message: error.to_string(), changes: None }
}
