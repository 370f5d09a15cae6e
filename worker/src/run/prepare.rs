//! PREPARING: source, workspace, files, runtime configuration and environment are put in place.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;

use super::{Failure, PRIVATE, Run};
use crate::environment::{Changes, Environment};
use crate::execution::{End, Program};
use crate::files;
use crate::masking::{Masker, Secrets, TooMany};
use crate::protocol::{Download, Git, SourceKind, Tool, Variable};
use crate::run::commands;
use crate::runtime_config;
use crate::transfer;
use crate::untrusted::{self, Links};

/// What one stage hands to the next, inside of the workspace's encrypted archive: changed variables and added masks.
pub(super) const CARRIED: &str = ".spacelift-environment";
/// Bytes of it. An environment and masks have their own limits, which are below.
const MAXIMUM_CARRIED: u64 = 32 * 1024 * 1024;
/// Git is not to start programs that an address names.
const GIT_PROTOCOLS: &str = "https:http:ssh:git:file";

impl Run {
    pub(super) async fn prepare(&mut self) -> Result<(), Failure> {
        // From here on the log masks; nothing of the job was in it before.
        let secrets = self.secrets();
        let secrets = self.or_close(secrets)?;
        *self.executor.log.masker() = Masker::new(secrets);
        let mut environment = self.initial.clone();
        environment.add(&self.computed()).map_err(unable)?;
        environment.add(&self.job.environment).map_err(unable)?;
        let masked = self.mask_values(&environment);
        self.or_close(masked)?;
        self.initial = environment.clone();
        self.environment = environment;

        let source = self.place.workspace.join("source");
        if self.job.restore_workspace {
            self.download(Download::Workspace).await?;
        } else {
            fs::create_dir_all(&source).map_err(|error| {
                unable(format!(
                    "`{}` cannot be made: {error}; the run's user has to own the workspace",
                    source.display()
                ))
            })?;
            match self.job.source() {
                SourceKind::None => {}
                SourceKind::Archive => self.download(Download::Source).await?,
                SourceKind::Git => {
                    let git =
                        self.job.git.clone().ok_or_else(|| unable("the launcher did not say which repository"))?;
                    self.clone_repository(&git, &source).await?;
                }
            }
        }
        for file in &self.job.files {
            files::mount(&self.place.workspace, file).map_err(unable)?;
        }
        self.configure(&source).await?;
        self.take_carried().map_err(|error| unable(format!("what the earlier stage left cannot be used: {error}")))?;
        if self.job.restore_workspace && self.tool().is_some() && !self.place.workspace.join(super::PLAN).exists() {
            return Err(unable("the workspace of the earlier stage has no plan in it"));
        }
        Ok(())
    }

    /// What the source says about its runs.
    async fn configure(&mut self, source: &Path) -> Result<(), Failure> {
        let read = runtime_config::of_source(source.to_owned(), self.job.stack_id.clone(), self.is_testing());
        let (config, workflow) = self.unless_stopped(read).await?.map_err(unable)?;
        for note in &config.notes {
            self.executor.log.say(note).await;
        }
        config.override_hooks(&mut self.hooks);
        match (workflow, self.job.tool()) {
            (Some(workflow), Tool::Custom) => self.workflow = workflow,
            (Some(_), _) => {
                let note = format!("`{}` has no effect: the stack uses a built-in tool", runtime_config::WORKFLOW);
                self.executor.log.say(&note).await;
            }
            (None, Tool::Custom) if self.job.workflow.is_none() => {
                return Err(unable(format!(
                    "the stack has a custom workflow, but neither its settings nor `{}` in the source say what to execute",
                    runtime_config::WORKFLOW
                )));
            }
            (None, _) => {}
        }
        let root = config.project_root().unwrap_or(&self.job.project_root).to_owned();
        self.project = match files::relative(&root) {
            Some(inner) => source.join(inner),
            None if root.is_empty() || root == "." || root == "./" => source.to_owned(),
            None => return Err(unable(format!("the project root `{root}` is not inside the source"))),
        };
        if !self.project.is_dir() {
            return Err(unable(format!("the project root `{root}` is not a directory in the source")));
        }
        let variables: Vec<_> = config.variables().collect();
        self.initial.add(&variables).map_err(unable)?;
        // The path is known only now.
        self.initial.set("TF_VAR_spacelift_project_root", root.as_str());
        self.initial.set("SPACELIFT_PROJECT_ROOT", root.as_str());
        self.environment = self.initial.clone();
        let environment = self.environment.clone();
        let masked = self.mask_values(&environment);
        self.or_close(masked)
    }

    /// A log that does not know all secrets would show some of them.
    fn or_close<T>(&mut self, result: Result<T, TooMany>) -> Result<T, Failure> {
        result.map_err(|error| {
            self.executor.log.close();
            unable(error)
        })
    }

    /// Variables that say which run this is.
    fn computed(&self) -> Vec<Variable> {
        let job = &self.job;
        let kind = job.run_type.to_uppercase();
        let workspace = self.place.workspace.to_string_lossy();
        let facts = [
            ("run_id", &*job.run),
            ("stack_id", &job.stack_id),
            ("run_type", &kind),
            ("run_state", "PREPARING"),
            ("commit_sha", &job.commit),
            ("project_root", &job.project_root),
            ("workspace_root", &workspace),
            ("local_preview", "false"),
        ];
        let mut variables = vec![variable("TF_IN_AUTOMATION".into(), "1")];
        for (name, value) in facts {
            variables.push(variable(format!("TF_VAR_spacelift_{name}"), value));
            variables.push(variable(format!("SPACELIFT_{}", name.to_uppercase()), value));
        }
        variables
    }

    fn secrets(&self) -> Result<Secrets, TooMany> {
        let mut secrets = Secrets::default();
        let job = &self.job;
        for variable in &job.environment {
            if variable.secret || job.mask.contains(&variable.name) {
                secrets.add(variable.value.as_bytes())?;
            }
        }
        for value in &job.mask_values {
            secrets.add(value.as_bytes())?;
        }
        for file in job.files.iter().filter(|file| file.secret) {
            secrets.add(&file.contents)?;
        }
        let url = job.git.as_ref().map(|git| git.url.as_str()).unwrap_or_default();
        for secret in credentials(url) {
            secrets.add(&secret)?;
        }
        Ok(secrets)
    }

    /// Values as they are after expansion.
    fn mask_values(&mut self, environment: &Environment) -> Result<(), TooMany> {
        let secret = self.job.environment.iter().filter(|variable| variable.secret).map(|variable| &variable.name);
        for name in secret.chain(&self.job.mask) {
            if let Some(value) = environment.get(name) {
                self.executor.log.masker().add(value.as_bytes())?;
            }
        }
        Ok(())
    }

    async fn download(&mut self, what: Download) -> Result<(), Failure> {
        let workspace = self.place.workspace.clone();
        let name = if what == Download::Source { "source" } else { "workspace" };
        let into = if what == Download::Source { workspace.join("source") } else { workspace };
        let clear = {
            let into = into.clone();
            move || empty(&into)
        };
        self.unless_stopped(transfer::download(self.launcher(), what, into, clear))
            .await?
            .map_err(|error| unable(format!("the {name} cannot be unpacked: {error}")))
    }

    async fn clone_repository(&mut self, git: &Git, directory: &Path) -> Result<(), Failure> {
        let Git { url, commit, reference } = git;
        if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unable("the commit is not a commit's hash of 40 or 64 hexadecimal digits"));
        }
        if reference.as_ref().is_some_and(|reference| reference.starts_with('-') || reference.contains(':')) {
            return Err(unable("the branch or tag has a name that git does not allow"));
        }
        if commands::find(OsStr::new("git"), &self.environment).is_none() {
            return Err(unable(
                "the runner image has no program `git` in its PATH, which fetches the source; use an image that has it",
            ));
        }
        self.git(directory, &["init", "--quiet", "."], true).await?;
        // Most servers give a single commit; all give a branch; and everything is what is left.
        let exact =
            self.git(directory, &["fetch", "--quiet", "--no-tags", "--depth=1", "--", url, commit], false).await?;
        if !exact {
            let has = format!("{commit}^{{commit}}");
            let mut found = false;
            if let Some(reference) = reference {
                found = self.git(directory, &["fetch", "--quiet", "--depth=1", "--", url, reference], false).await?
                    && self.git(directory, &["cat-file", "-e", &has], false).await?;
            }
            if !found {
                self.executor.log.say("the server does not give that commit alone, so everything is fetched").await;
                let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
                // The largest depth that git knows takes back that an earlier attempt was shallow.
                self.git(
                    directory,
                    &["fetch", "--quiet", "--depth=2147483647", "--", url, everything[0], everything[1]],
                    true,
                )
                .await?;
            }
        }
        self.git(directory, &["checkout", "--quiet", "--detach", commit], true).await?;
        Ok(())
    }

    /// Whether it went well, if it need not.
    async fn git(&mut self, directory: &Path, arguments: &[&str], needed: bool) -> Result<bool, Failure> {
        let program = commands::find(OsStr::new("git"), &self.environment).unwrap_or_else(|| "git".into());
        let command = std::iter::once(program.into()).chain(arguments.iter().map(OsString::from)).collect();
        let mut environment = self.environment.clone();
        // Nobody is there to answer.
        environment.set("GIT_TERMINAL_PROMPT", "0");
        environment.set("GIT_ALLOW_PROTOCOL", GIT_PROTOCOLS);
        let program = Program { command, environment, directory: directory.to_owned(), output: None };
        match self.executor.run(program).await {
            Ok(End::Exited(status)) if status.success() => Ok(true),
            Ok(End::Exited(_)) if !needed => Ok(false),
            Ok(End::Exited(_)) => Err(unable(format!("`git {}` failed; the log has its reason", arguments[0]))),
            Ok(End::Stopped) => {
                self.report_stop().await;
                Err(Failure::Stopped)
            }
            Err(error) => Err(unable(format!("`git` cannot be started: {error}"))),
        }
    }

    /// Leaves word for the next stage.
    pub(super) fn carry(&mut self) -> io::Result<()> {
        let mut changes = self.environment.changes_since(&self.initial);
        for name in ["TF_VAR_spacelift_run_state", "SPACELIFT_RUN_STATE"] {
            changes.set.remove(name);
        }
        let mut bytes = Vec::new();
        let mut record = |kind: &[u8], parts: &[&[u8]]| {
            bytes.extend_from_slice(kind);
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            bytes.push(0);
        };
        for (name, value) in changes.set.iter() {
            record(b"+", &[name.as_bytes(), b"=", value.as_bytes()]);
        }
        for name in &changes.removed {
            record(b"-", &[name.as_bytes()]);
        }
        for mask in self.executor.log.masker().added() {
            // As base64: a mask may hold whatever a log holds, also what ends a record.
            record(b"*", &[STANDARD.encode(mask).as_bytes()]);
        }
        let path = self.place.workspace.join(CARRIED);
        super::remove(&path)?;
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut file, &bytes)
    }

    /// Takes the word that an earlier stage left.
    fn take_carried(&mut self) -> io::Result<()> {
        if !self.job.restore_workspace {
            return Ok(());
        }
        let path = self.place.workspace.join(CARRIED);
        let Some(bytes) = untrusted::read(&path, Links::Refused, MAXIMUM_CARRIED).map_err(io::Error::other)? else {
            return Ok(());
        };
        fs::remove_file(path)?;
        let mut changes = Changes::default();
        for record in bytes.split(|&byte| byte == 0) {
            match record.split_first() {
                Some((b'+', variable)) => {
                    changes.set.extend(Environment::from_bytes(variable));
                }
                Some((b'-', name)) => {
                    changes.removed.insert(OsString::from_vec(name.to_vec()));
                }
                Some((b'*', mask)) => {
                    let mask = STANDARD.decode(mask).map_err(io::Error::other)?;
                    let log = &mut self.executor.log;
                    log.masker().add(&mask).map_err(io::Error::other).inspect_err(|_| log.close())?;
                }
                _ => {}
            }
        }
        self.environment.apply(&changes);
        Ok(())
    }
}

/// Sets a fact under both of its names.
pub(super) fn set_state(environment: &mut Environment, name: &str, value: &str) {
    environment.set(format!("TF_VAR_spacelift_{name}"), value);
    environment.set(format!("SPACELIFT_{}", name.to_uppercase()), value);
}

fn variable(name: String, value: &str) -> Variable {
    Variable { name, value: value.into(), secret: false }
}

fn unable(error: impl ToString) -> Failure {
    Failure::Unable(error.to_string())
}

/// Removes everything in a directory, but not what the worker itself has there.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == PRIVATE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What of an address is secret: a password, or a token in the place of a user's name; as written and as meant.
fn credentials(url: &str) -> Vec<Vec<u8>> {
    let authority =
        url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let Some((user, _)) = authority.rsplit_once('@') else { return Vec::new() };
    let secrets = match user.split_once(':') {
        Some((_, password)) => vec![user, password],
        // `git@` is the name that everybody uses with SSH keys.
        None if user == "git" => Vec::new(),
        None => vec![user],
    };
    secrets.into_iter().flat_map(|secret| [secret.as_bytes().to_vec(), percent_decoded(secret)]).collect()
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = (first == b'%').then(|| tail.get(..2)).flatten().and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_addresses_are_found() {
        let found =
            |url| credentials(url).into_iter().map(|secret| String::from_utf8(secret).unwrap()).collect::<Vec<_>>();
        assert!(found("https://u:p%40ss@host/x").contains(&"p@ss".into()));
        assert!(found("https://u:p%40ss@host/x").contains(&"p%40ss".into()));
        assert!(found("https://token@host").contains(&"token".into()));
        assert!(found("ssh://git@host/x").is_empty());
        assert!(found("https://host/a@b").is_empty());
        assert!(found("git@host:x").is_empty());
    }
}
