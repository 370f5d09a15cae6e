//! What a worker is told of a job: what the control plane said, with what this host adds.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use launcher_wire::api::{self, Job, RunType, Source};
use spacelift_worker::protocol;

use crate::config::Config;

/// How a repository on a private VCS is addressed: this, the name of the mapping, and the path on that server.
const PRIVATE: &str = "private://";
/// Permissions of a mounted file that has none of its own.
const FILE_MODE: u32 = 0o600;
/// Permissions that a mounted file may have.
const MODES: u32 = 0o777;

/// Why a job cannot be done here: one line for the run's log.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A file whose contents are not base64.
    #[error("the mounted file `{path}` is not base64")]
    File {
        /// Which.
        path: String,
    },
    /// A repository on a private VCS that this launcher does not know.
    #[error(
        "the source is on the private VCS `{name}`, which this launcher has no mapping for. Set \
         SPACELIFT_PRIVATEVCS_MAPPING_NAME_0={name} and SPACELIFT_PRIVATEVCS_MAPPING_BASE_ENDPOINT_0 (or the next free \
         number) where the launcher is started"
    )]
    Vcs {
        /// Its name.
        name: String,
    },
    /// What is to be checked out is not what the run is said to be of.
    #[error(
        "the control plane names commit `{commit}` for the run, and another one, `{checkout}`, for its source. A policy would decide on the first and the second would be executed"
    )]
    Commit {
        /// Of the run.
        commit: String,
        /// Of the source.
        checkout: String,
    },
    /// An archive that nobody could check.
    #[error(
        "the control plane does not say which archive the source is: its SHA-256 is missing. It is of another release"
    )]
    Archive,
}

/// The documented name of a type of run.
#[must_use]
pub fn run_type(run_type: RunType) -> &'static str {
    match run_type {
        RunType::Proposed => "proposed",
        RunType::Tracked => "tracked",
        RunType::Task => "task",
        RunType::Testing => "testing",
        RunType::Destroy => "destroy",
    }
}

/// The same where policies see it.
#[must_use]
pub fn run_type_for_policies(run_type: RunType) -> String {
    self::run_type(run_type).to_uppercase()
}

/// The image that a job's container is made of.
#[must_use]
pub fn image<'a>(job: &'a Job, config: &'a Config) -> &'a str {
    let default = if job.tool == api::Tool::Ansible { &config.default_ansible_image } else { &config.default_image };
    job.image.as_deref().filter(|image| !image.is_empty()).unwrap_or(default)
}

/// What the worker is told.
///
/// # Errors
/// The job cannot be done by this launcher.
pub fn for_worker(job: &Job, config: &Config) -> Result<protocol::Job, Error> {
    let is_read_only = job.run_type.is_read_only();
    // Proxies may hold a password, which is masked: so they come this way too and not with the container.
    let proxies = config.proxies.variables().into_iter().map(|(name, value)| protocol::Variable {
        name: name.to_owned(),
        value: value.to_owned(),
        secret: false,
    });
    // What the host passes comes first: the stack's own variables win over it.
    let passed = config.passed.iter().filter(|variable| variable.scope.applies(is_read_only));
    let passed = passed.map(|variable| protocol::Variable {
        name: variable.name.clone(),
        value: variable.value.clone(),
        secret: variable.masked,
    });
    let own = job.environment.iter().map(|variable| protocol::Variable {
        name: variable.name.clone(),
        value: variable.value.clone(),
        secret: variable.secret,
    });
    if let Source::Git { commit, .. } = &job.source
        && *commit != job.commit
    {
        return Err(Error::Commit { commit: job.commit.clone(), checkout: commit.clone() });
    }
    let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if job.source == (Source::Archive {}) && !job.source_sha256.as_ref().is_some_and(is_digest) {
        return Err(Error::Archive);
    }
    let (source, git) = source(&job.source, config)?;
    let api::Hooks {
        before_init,
        after_init,
        before_plan,
        after_plan,
        before_apply,
        after_apply,
        before_perform,
        after_perform,
        before_destroy,
        after_destroy,
        after_run,
    } = job.hooks.clone();
    Ok(protocol::Job {
        // Of the container that is made for it.
        session: String::new(),
        run: job.run.to_string(),
        stage: stage(job.stage).into(),
        tool: match job.tool {
            api::Tool::Terraform => protocol::Tool::Terraform,
            api::Tool::OpenTofu => protocol::Tool::OpenTofu,
            api::Tool::Ansible | api::Tool::Custom => protocol::Tool::Custom,
        }
        .into(),
        command: job.command.clone(),
        source: source.into(),
        git,
        project_root: job.project_root.clone(),
        environment: proxies.chain(passed).chain(own).collect(),
        files: job.files.iter().map(file).collect::<Result<_, _>>()?,
        hooks: Some(protocol::Hooks {
            before_init,
            after_init,
            before_plan,
            after_plan,
            before_apply,
            after_apply,
            before_perform,
            after_perform,
            before_destroy,
            after_destroy,
            after_run,
        }),
        workflow: job.workflow.clone().map(|api::Workflow { init, plan, apply, destroy, output }| protocol::Workflow {
            init,
            plan,
            apply,
            destroy,
            output,
        }),
        restore_workspace: job.restore_workspace,
        keep_workspace: job.keep_workspace,
        mask: config.mask.clone(),
        mask_values: config.proxies.variables().into_iter().flat_map(|(_, value)| address_secrets(value).1).collect(),
        debug: config.debug,
        sensitive_outputs: config.sensitive_outputs,
        stack_id: job.stack_id.clone(),
        commit: job.commit.clone(),
        run_type: run_type(job.run_type).to_owned(),
    })
}

/// What must not be shown of a job.
#[must_use]
pub fn secrets(job: &protocol::Job) -> Vec<String> {
    let is_secret = |variable: &&protocol::Variable| variable.secret || job.mask.contains(&variable.name);
    let values = job.environment.iter().filter(is_secret).map(|variable| variable.value.clone());
    let files = job.files.iter().filter(|file| file.secret).map(|file| String::from_utf8_lossy(&file.contents).into());
    let of_source = job.git.iter().flat_map(|git| {
        let (user, password) = address_secrets(&git.url);
        // `git` is what everybody is called who has a key; others are tokens.
        user.into_iter().filter(|user| user != "git").chain(password)
    });
    values.chain(files).chain(job.mask_values.iter().cloned()).chain(of_source).collect()
}

/// The user and the password in an address, each as it stands there and as it is meant.
fn address_secrets(address: &str) -> (Vec<String>, Vec<String>) {
    let Ok(url) = reqwest::Url::parse(address) else { return (vec![], vec![]) };
    let forms = |text: &str| match text {
        "" => vec![],
        text => vec![text.to_owned(), crate::network::unescaped(text)],
    };
    (forms(url.username()), forms(url.password().unwrap_or_default()))
}

fn stage(stage: api::Stage) -> protocol::Stage {
    match stage {
        api::Stage::Plan => protocol::Stage::Plan,
        api::Stage::Apply => protocol::Stage::Apply,
        api::Stage::Task => protocol::Stage::Task,
        api::Stage::Test => protocol::Stage::Test,
        api::Stage::Destroy => protocol::Stage::Destroy,
    }
}

fn file(file: &api::MountedFile) -> Result<protocol::File, Error> {
    let api::MountedFile { path, contents, secret, mode } = file;
    let contents = BASE64_STANDARD.decode(contents).map_err(|_| Error::File { path: path.clone() })?;
    let mode = mode.unwrap_or(FILE_MODE) & MODES;
    Ok(protocol::File { path: path.clone(), contents, mode, secret: *secret })
}

fn source(source: &Source, config: &Config) -> Result<(protocol::SourceKind, Option<protocol::Git>), Error> {
    let Source::Git { url, commit, reference } = source else {
        let kind = match source {
            Source::Archive {} => protocol::SourceKind::Archive,
            _ => protocol::SourceKind::None,
        };
        return Ok((kind, None));
    };
    let mapped = match url.strip_prefix(PRIVATE) {
        None => url.clone(),
        Some(rest) => {
            let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
            let mapping = config.vcs.iter().find(|mapping| mapping.name == name);
            let mapping = mapping.ok_or_else(|| Error::Vcs { name: name.to_owned() })?;
            format!("{}/{path}", mapping.base_endpoint.trim_end_matches('/'))
        }
    };
    let git = protocol::Git { url: mapped, commit: commit.clone(), reference: reference.clone() };
    Ok((protocol::SourceKind::Git, Some(git)))
}
