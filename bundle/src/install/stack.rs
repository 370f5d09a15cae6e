//! CloudFormation stacks: looked at, made and changed through change sets, watched, and deleted.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use aws_sdk_cloudformation::Client;
use aws_sdk_cloudformation::types::{
    ChangeAction, ChangeSetStatus, ChangeSetType, Parameter, Replacement, ResourceToImport, StackEvent, StackStatus,
    Tag,
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata as _;
use bundle_core::interrupt;

use crate::failure::{Failure, Kind, printable};
use crate::progress::Progress;

/// Change sets of this program have names that begin with this, so that those of an interrupted run can be told.
const CHANGE_SET_PREFIX: &str = "spacelift-bundle-";
/// A bucket and a repository take a minute; what takes this long hangs.
const STACK_LIMIT: Duration = Duration::from_secs(30 * 60);
/// As above, for CloudFormation's own thinking.
const CHANGE_SET_LIMIT: Duration = Duration::from_secs(5 * 60);
/// First and longest pause between two looks.
const POLL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// What holds data: a change that would remove or replace it is refused.
const PRECIOUS: [&str; 2] = ["AWS::S3::Bucket", "AWS::ECR::Repository"];
/// Changed resources that are listed.
const MAX_CHANGES: usize = 50;

/// The stacks of one account and region.
#[derive(Debug, Clone)]
pub(crate) struct Stacks<'a> {
    client: Client,
    region: String,
    progress: &'a Progress,
}

/// A stack as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stack {
    /// Its identifier, which is good after it is deleted, too.
    pub(crate) id: String,
    /// Status, such as `CREATE_COMPLETE`.
    pub(crate) status: String,
    /// Why it has that status.
    pub(crate) reason: Option<String>,
    /// What it gives to others.
    pub(crate) outputs: BTreeMap<String, String>,
    /// What it was made with.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// A stack as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// Name.
    pub(crate) name: &'a str,
    /// The template's text.
    pub(crate) template: &'a str,
    /// Values of the template's parameters.
    pub(crate) parameters: &'a [(String, String)],
    /// Parameters that the configuration decides about: without a value they get the template's default. All others keep
    /// the value that someone gave them.
    pub(crate) decided: &'a [&'a str],
    /// Tags of the stack, which CloudFormation gives to everything in it.
    pub(crate) tags: &'a [(String, String)],
}

/// Something that exists and that the stack shall have from now on.
#[derive(Debug, Clone)]
pub(crate) struct Import {
    /// Type, such as `AWS::S3::Bucket`.
    pub(crate) kind: &'static str,
    /// Name in the template.
    pub(crate) logical_id: &'static str,
    /// The property that identifies it.
    pub(crate) property: &'static str,
    /// Its value.
    pub(crate) value: String,
}

/// What becoming as wanted took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It was not there.
    Created,
    /// It was changed.
    Updated,
    /// It was as wanted.
    Unchanged,
}

/// What can be done about a stack in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none.
    Absent,
    /// It only has change sets that were never executed.
    Review,
    /// It can be changed.
    Steady,
    /// Something is going on, such as what an interrupted run began.
    Busy,
    /// It cannot be changed by anyone before it is repaired or deleted.
    Stuck,
}

/// Why a stack did not become as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The service refused a request.
    #[error(transparent)]
    Service(#[from] Failure),
    /// It ended in another state than it should.
    #[error("the stack {name} ended as {status}: {cause}; {next}")]
    Ended {
        /// The stack.
        name: String,
        /// Its status.
        status: String,
        /// The first resource that failed, and why.
        cause: String,
        /// What to do.
        next: String,
    },
    /// CloudFormation cannot work out the changes.
    #[error("the changes of the stack {name} cannot be made: {reason}")]
    ChangeSet {
        /// The stack.
        name: String,
        /// Why.
        reason: String,
    },
    /// The changes would destroy data.
    #[error(
        "the changes of the stack {name} would remove or replace {resource}, and all data in it; nothing was changed: \
         go back to the configuration that the stack was made with, or uninstall first"
    )]
    Destroys {
        /// The stack.
        name: String,
        /// What would be lost.
        resource: String,
    },
    /// It does not end.
    #[error(
        "the stack {name} is still {status} after {minutes} minutes; look at its events in the console and run the command again"
    )]
    TooLong {
        /// The stack.
        name: String,
        /// Its status.
        status: String,
        /// How long was waited.
        minutes: u64,
    },
    /// SIGINT or SIGTERM.
    #[error("the stack {name} goes on without this program; run the same command again to go on from there: {source}")]
    Interrupted {
        /// The stack.
        name: String,
        /// The signal.
        source: std::io::Error,
    },
}

impl Stack {
    /// What can be done about it.
    pub(crate) fn state(&self) -> State {
        match self.status.as_str() {
            "REVIEW_IN_PROGRESS" => State::Review,
            "CREATE_COMPLETE"
            | "UPDATE_COMPLETE"
            | "UPDATE_ROLLBACK_COMPLETE"
            | "IMPORT_COMPLETE"
            | "IMPORT_ROLLBACK_COMPLETE" => State::Steady,
            "DELETE_COMPLETE" => State::Absent,
            status if status.ends_with("_IN_PROGRESS") => State::Busy,
            _ => State::Stuck,
        }
    }
}

/// The state of a stack that may not be there.
pub(crate) fn state(stack: Option<&Stack>) -> State {
    stack.map_or(State::Absent, Stack::state)
}

/// What helps a stack that is stuck.
pub(crate) fn advice(name: &str, status: &str, region: &str) -> String {
    match status {
        "ROLLBACK_COMPLETE" | "ROLLBACK_FAILED" | "CREATE_FAILED" | "DELETE_FAILED" => format!(
            "its creation or deletion failed earlier and it can only be deleted: ./uninstall.sh does that and keeps the \
             data, or `aws cloudformation delete-stack --region {region} --stack-name {name}`; then install again"
        ),
        "UPDATE_ROLLBACK_FAILED" => format!(
            "repair what its events name, then `aws cloudformation continue-update-rollback --region {region} \
             --stack-name {name}`, and install again"
        ),
        _ => "look at its events in the CloudFormation console".to_owned(),
    }
}

impl<'a> Stacks<'a> {
    /// The stacks that `config` leads to.
    pub(crate) fn new(config: &aws_config::SdkConfig, region: &str, progress: &'a Progress) -> Self {
        Self { client: Client::new(config), region: region.to_owned(), progress }
    }

    /// The stack with this name or identifier, if there is one.
    ///
    /// # Errors
    /// CloudFormation refuses.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Stack>, Failure> {
        let answer = self.client.describe_stacks().stack_name(name).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let failed = Failure::of(format!("look at the stack {name}"), "cloudformation:DescribeStacks", &error);
                // There is no error code of its own for this.
                let is_absent = failed.code.as_deref() == Some("ValidationError")
                    && error
                        .as_service_error()
                        .and_then(|error| error.message())
                        .unwrap_or_default()
                        .contains("does not exist");
                return if is_absent { Ok(None) } else { Err(failed) };
            }
        };
        let found = answer.stacks().iter().map(described).find(|stack| stack.status != "DELETE_COMPLETE");
        // By its identifier, a stack is found after it was deleted, too.
        Ok(found.or_else(|| name.starts_with("arn:").then(|| answer.stacks().first().map(described)).flatten()))
    }

    /// Names of the stacks that have this value for this parameter.
    ///
    /// # Errors
    /// CloudFormation refuses.
    pub(crate) async fn with_parameter(&self, name: &str, value: &str) -> Result<Vec<String>, Failure> {
        let mut found = Vec::new();
        let mut pages = self.client.describe_stacks().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| Failure::of("list the stacks", "cloudformation:DescribeStacks", &error))?;
            for stack in page.stacks() {
                let has_it = |parameter: &Parameter| {
                    parameter.parameter_key() == Some(name) && parameter.parameter_value() == Some(value)
                };
                let is_deleted = stack.stack_status() == Some(&StackStatus::DeleteComplete);
                if !is_deleted && stack.parameters().iter().any(has_it) {
                    found.push(stack.stack_name().unwrap_or_default().to_owned());
                }
            }
        }
        Ok(found)
    }

    /// The type and physical name of everything in a stack.
    ///
    /// # Errors
    /// CloudFormation refuses.
    pub(crate) async fn resources(&self, stack: &Stack) -> Result<Vec<(String, String)>, Failure> {
        let mut found = Vec::new();
        let mut pages = self.client.list_stack_resources().stack_name(&stack.id).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| {
                Failure::of("list what is in the stack", "cloudformation:ListStackResources", &error)
            })?;
            for resource in page.stack_resource_summaries() {
                let is_gone = resource.resource_status().is_some_and(|status| status.as_str() == "DELETE_COMPLETE");
                if let (Some(kind), Some(name), false) =
                    (resource.resource_type(), resource.physical_resource_id(), is_gone)
                {
                    found.push((kind.to_owned(), name.to_owned()));
                }
            }
        }
        Ok(found)
    }

    /// Makes the stack as wanted. It may have been left in any state by a run that was interrupted.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn apply(&self, wanted: &Wanted<'_>) -> Result<Applied, Error> {
        let found = self.settle(wanted.name).await?;
        let mut parameters = wanted.parameters.to_vec();
        let (kind, applied, known) = match found {
            Some(stack) => {
                for (name, value) in kept(wanted, &stack.parameters) {
                    self.progress.line(format!("stack {}: parameter {name} keeps its value {value}", wanted.name));
                    parameters.push((name, value));
                }
                (ChangeSetType::Update, Applied::Updated, self.event_ids(&stack.id).await?)
            }
            None => (ChangeSetType::Create, Applied::Created, HashSet::new()),
        };
        let wanted = Wanted { parameters: &parameters, ..wanted.clone() };
        match self.change(&wanted, kind, &[]).await? {
            Some((id, change_set)) => {
                self.execute(wanted.name, &id, &change_set, known).await?;
                Ok(applied)
            }
            None => Ok(Applied::Unchanged),
        }
    }

    /// Makes a stack of what exists, such as the bucket that an earlier installation left behind.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn import(&self, wanted: &Wanted<'_>, imports: &[Import]) -> Result<(), Error> {
        self.settle(wanted.name).await?;
        let template = reduced(wanted.template, imports)
            .map_err(|reason| Error::ChangeSet { name: wanted.name.to_owned(), reason })?;
        let reduced = Wanted { template: &template, ..wanted.clone() };
        if let Some((id, change_set)) = self.change(&reduced, ChangeSetType::Import, imports).await? {
            self.execute(wanted.name, &id, &change_set, HashSet::new()).await?;
        }
        Ok(())
    }

    /// Waits for what is going on, and removes what an interrupted run left. What is then there can be changed.
    async fn settle(&self, name: &str) -> Result<Option<Stack>, Error> {
        let Some(mut stack) = self.find(name).await? else { return Ok(None) };
        if stack.state() == State::Busy {
            self.progress.line(format!("stack {name} is {}; waiting for it", stack.status));
            let known = self.event_ids(&stack.id).await?;
            stack = self.watch(name, &stack.id, known).await?;
        }
        match stack.state() {
            State::Absent => Ok(None),
            State::Review => {
                self.progress.line(format!("stack {name} was only prepared by an earlier run; starting anew"));
                self.delete(name, &stack, &[]).await?;
                Ok(None)
            }
            State::Steady => {
                self.discard_change_sets(name, &stack).await?;
                Ok(Some(stack))
            }
            State::Busy | State::Stuck => Err(self.ended(name, &stack).await),
        }
    }

    /// Removes change sets of this program that were never executed.
    async fn discard_change_sets(&self, name: &str, stack: &Stack) -> Result<(), Failure> {
        let listed = self.client.list_change_sets().stack_name(&stack.id).send().await;
        let listed = listed.map_err(|error| {
            Failure::of(format!("list the change sets of {name}"), "cloudformation:ListChangeSets", &error)
        })?;
        for summary in listed.summaries() {
            let is_ours = summary.change_set_name().is_some_and(|name| name.starts_with(CHANGE_SET_PREFIX));
            let is_open = !matches!(
                summary.execution_status().map(|status| status.as_str()),
                Some("EXECUTE_IN_PROGRESS" | "EXECUTE_COMPLETE")
            );
            if let (true, true, Some(id)) = (is_ours, is_open, summary.change_set_id()) {
                self.discard(name, id).await?;
            }
        }
        Ok(())
    }

    async fn discard(&self, name: &str, change_set: &str) -> Result<(), Failure> {
        let deleted = self.client.delete_change_set().change_set_name(change_set).send().await;
        deleted.map_err(|error| {
            Failure::of(format!("delete a change set of {name}"), "cloudformation:DeleteChangeSet", &error)
        })?;
        Ok(())
    }

    /// Makes a change set. `None` if there is nothing to change.
    async fn change(
        &self,
        wanted: &Wanted<'_>,
        kind: ChangeSetType,
        imports: &[Import],
    ) -> Result<Option<(String, String)>, Error> {
        let name = wanted.name;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut request = self
            .client
            .create_change_set()
            .stack_name(name)
            .change_set_name(format!("{CHANGE_SET_PREFIX}{}-{}", now.as_millis(), std::process::id()))
            .change_set_type(kind)
            .template_body(wanted.template);
        for (key, value) in wanted.parameters {
            request = request.parameters(Parameter::builder().parameter_key(key).parameter_value(value).build());
        }
        for (key, value) in wanted.tags {
            request = request.tags(Tag::builder().key(key).value(value).build());
        }
        for import in imports {
            let resource = ResourceToImport::builder()
                .resource_type(import.kind)
                .logical_resource_id(import.logical_id)
                .resource_identifier(import.property, &import.value);
            request = request.resources_to_import(resource.build());
        }
        let made = request.send().await;
        let made = made.map_err(|error| {
            Failure::of(format!("make a change set for {name}"), "cloudformation:CreateChangeSet", &error)
        })?;
        let (id, change_set) = (made.stack_id().unwrap_or(name).to_owned(), made.id().unwrap_or_default().to_owned());
        let started = Instant::now();
        let mut pause = Pause::new();
        loop {
            let seen = self.client.describe_change_set().change_set_name(&change_set).send().await;
            let seen = seen.map_err(|error| {
                Failure::of(format!("read a change set of {name}"), "cloudformation:DescribeChangeSet", &error)
            })?;
            match seen.status() {
                Some(ChangeSetStatus::CreateComplete) => {
                    self.judge(name, &change_set, seen.changes()).await?;
                    return Ok(Some((id, change_set)));
                }
                Some(ChangeSetStatus::Failed) => {
                    let reason = seen.status_reason().unwrap_or("no reason was given");
                    self.discard(name, &change_set).await?;
                    let is_empty = reason.contains("didn't contain changes") || reason.contains("No updates are to be");
                    return if is_empty {
                        Ok(None)
                    } else {
                        Err(Error::ChangeSet { name: name.to_owned(), reason: printable(reason) })
                    };
                }
                _ if started.elapsed() > CHANGE_SET_LIMIT => {
                    let status = seen.status().map_or("not made", |status| status.as_str());
                    return Err(too_long(name, status, CHANGE_SET_LIMIT));
                }
                _ => pause.wait(name).await?,
            }
        }
    }

    /// Prints what a change set does, and refuses what would destroy data.
    async fn judge(
        &self,
        name: &str,
        change_set: &str,
        changes: &[aws_sdk_cloudformation::types::Change],
    ) -> Result<(), Error> {
        for change in changes.iter().filter_map(|change| change.resource_change()).take(MAX_CHANGES) {
            let action = change.action().map_or("Change", ChangeAction::as_str);
            let kind = change.resource_type().unwrap_or_default();
            let resource = format!("{} ({kind})", change.logical_resource_id().unwrap_or_default());
            let replaces = matches!(change.replacement(), Some(Replacement::True | Replacement::Conditional));
            let removes = change.action() == Some(&ChangeAction::Remove);
            if PRECIOUS.contains(&kind) && (removes || replaces && change.replacement() == Some(&Replacement::True)) {
                self.discard(name, change_set).await?;
                return Err(Error::Destroys { name: name.to_owned(), resource });
            }
            let how = if replaces { ", which replaces it" } else { "" };
            self.progress.line(format!("stack {name}: {} {resource}{how}", action.to_lowercase()));
        }
        Ok(())
    }

    async fn execute(&self, name: &str, id: &str, change_set: &str, known: HashSet<String>) -> Result<(), Error> {
        interrupt::check().map_err(|source| Error::Interrupted { name: name.to_owned(), source })?;
        let done = self.client.execute_change_set().change_set_name(change_set).send().await;
        done.map_err(|error| {
            Failure::of(format!("execute the change set of {name}"), "cloudformation:ExecuteChangeSet", &error)
        })?;
        let stack = self.watch(name, id, known).await?;
        let is_good = matches!(stack.status.as_str(), "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "IMPORT_COMPLETE");
        if is_good { Ok(()) } else { Err(self.ended(name, &stack).await) }
    }

    /// Deletes a stack but not what is in `retain`, and waits until it is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) async fn delete(&self, name: &str, stack: &Stack, retain: &[String]) -> Result<(), Error> {
        let known = self.event_ids(&stack.id).await?;
        if stack.status != "DELETE_IN_PROGRESS" {
            let request = self.client.delete_stack().stack_name(&stack.id);
            // Only a stack whose deletion failed before may leave something behind that its template would delete.
            let request = if stack.status == "DELETE_FAILED" && !retain.is_empty() {
                request.set_retain_resources(Some(retain.to_vec()))
            } else {
                request
            };
            let deleted = request.send().await;
            deleted.map_err(|error| {
                Failure::of(format!("delete the stack {name}"), "cloudformation:DeleteStack", &error)
            })?;
        }
        let stack = self.watch(name, &stack.id, known).await?;
        if stack.status == "DELETE_COMPLETE" { Ok(()) } else { Err(self.ended(name, &stack).await) }
    }

    /// Prints every new event until nothing is going on any more.
    async fn watch(&self, name: &str, id: &str, mut known: HashSet<String>) -> Result<Stack, Error> {
        let started = Instant::now();
        let mut pause = Pause::new();
        loop {
            // The status first: events that come in between are then printed in the next round or in this one.
            let stack = self.find(id).await?.unwrap_or_else(|| Stack {
                id: id.to_owned(),
                status: "DELETE_COMPLETE".into(),
                reason: None,
                outputs: BTreeMap::new(),
                parameters: BTreeMap::new(),
            });
            let new: Vec<StackEvent> = match self.events(id).await {
                Ok(events) => events
                    .into_iter()
                    .filter(|event| known.insert(event.event_id().unwrap_or_default().to_owned()))
                    .collect(),
                // The events of a deleted stack may be gone with it.
                Err(_) if stack.status == "DELETE_COMPLETE" => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            if !new.is_empty() {
                pause = Pause::new();
            }
            for event in new.iter().rev() {
                self.progress.line(shown(name, event));
            }
            if !matches!(stack.state(), State::Busy | State::Review) {
                return Ok(stack);
            }
            if started.elapsed() > STACK_LIMIT {
                return Err(too_long(name, &stack.status, STACK_LIMIT));
            }
            pause.wait(name).await?;
        }
    }

    async fn event_ids(&self, id: &str) -> Result<HashSet<String>, Failure> {
        let events = self.events(id).await?;
        Ok(events.into_iter().filter_map(|event| event.event_id().map(str::to_owned)).collect())
    }

    /// The newest events, newest first. One page has a hundred: more than both stacks make together.
    async fn events(&self, id: &str) -> Result<Vec<StackEvent>, Failure> {
        let answer = self.client.describe_stack_events().stack_name(id).send().await;
        let answer = answer
            .map_err(|error| Failure::of("read a stack's events", "cloudformation:DescribeStackEvents", &error))?;
        Ok(answer.stack_events.unwrap_or_default())
    }

    /// The error for a stack that did not end as it should, with what failed first.
    async fn ended(&self, name: &str, stack: &Stack) -> Error {
        let events = self.events(&stack.id).await.unwrap_or_default();
        let cause = first_failure(&events)
            .or_else(|| stack.reason.clone())
            .unwrap_or_else(|| "CloudFormation gives no reason".into());
        let next = match stack.state() {
            State::Steady => {
                "it was rolled back and is as it was before; repair the cause and run the same command again".into()
            }
            _ => advice(name, &stack.status, &self.region),
        };
        Error::Ended { name: name.to_owned(), status: stack.status.clone(), cause, next }
    }
}

fn described(stack: &aws_sdk_cloudformation::types::Stack) -> Stack {
    let outputs = stack.outputs().iter();
    let outputs =
        outputs.filter_map(|output| Some((output.output_key()?.to_owned(), output.output_value()?.to_owned())));
    let parameters = stack.parameters().iter();
    let parameters = parameters
        .filter_map(|parameter| Some((parameter.parameter_key()?.to_owned(), parameter.parameter_value()?.to_owned())));
    Stack {
        id: stack.stack_id().or(stack.stack_name()).unwrap_or_default().to_owned(),
        status: stack.stack_status().map_or("UNKNOWN", StackStatus::as_str).to_owned(),
        reason: stack.stack_status_reason().map(printable).filter(|reason| !reason.is_empty()),
        outputs: outputs.collect(),
        parameters: parameters.collect(),
    }
}

/// Parameters that someone else gave a value to, such as a key: an update that leaves them out would take it away.
fn kept(wanted: &Wanted<'_>, current: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let document: serde_yaml::Value = serde_yaml::from_str(wanted.template).unwrap_or_default();
    let declared = |name: &str| document.get("Parameters")?.get(name);
    let default = |name: &str| match declared(name)?.get("Default")? {
        serde_yaml::Value::String(text) => Some(text.clone()),
        serde_yaml::Value::Number(number) => Some(number.to_string()),
        serde_yaml::Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    };
    let is_kept = |(name, value): &(&String, &String)| {
        declared(name).is_some() && !wanted.decided.contains(&name.as_str()) && default(name).as_ref() != Some(*value)
    };
    current.iter().filter(is_kept).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The template with only what is imported: an import can neither make other resources nor outputs. They come with the
/// update that follows.
fn reduced(template: &str, imports: &[Import]) -> Result<String, String> {
    let mut document: serde_yaml::Value =
        serde_yaml::from_str(template).map_err(|error| format!("the template cannot be read: {error}"))?;
    let root = document.as_mapping_mut().ok_or("the template is not a mapping")?;
    root.remove("Outputs");
    let resources = root.get_mut("Resources").and_then(serde_yaml::Value::as_mapping_mut);
    let resources = resources.ok_or("the template has no resources")?;
    resources.retain(|name, _| imports.iter().any(|import| name.as_str() == Some(import.logical_id)));
    if resources.len() != imports.len() {
        return Err("the template does not have what exists already under the expected names".into());
    }
    serde_yaml::to_string(&document).map_err(|error| format!("the template cannot be written: {error}"))
}

fn too_long(name: &str, status: &str, limit: Duration) -> Error {
    Error::TooLong { name: name.to_owned(), status: status.to_owned(), minutes: limit.as_secs() / 60 }
}

/// One event on one line.
fn shown(name: &str, event: &StackEvent) -> String {
    let status = event.resource_status().map_or("", |status| status.as_str());
    let resource = event.logical_resource_id().unwrap_or_default();
    let reason = event.resource_status_reason().map(printable).filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("stack {name}: {status} {resource}{reason}")
}

/// The resource that failed first, since the others fail because of it. `events` has the newest first.
fn first_failure(events: &[StackEvent]) -> Option<String> {
    let is_failure = |event: &&StackEvent| {
        let reason = event.resource_status_reason().unwrap_or_default();
        event.resource_status().is_some_and(|status| status.as_str().ends_with("_FAILED"))
            && !reason.to_lowercase().contains("cancelled")
    };
    // Of this operation alone: what failed last year is of no interest.
    let begins = |event: &&StackEvent| {
        event.resource_type() == Some("AWS::CloudFormation::Stack")
            && event.resource_status_reason().is_some_and(|reason| reason.eq_ignore_ascii_case("user initiated"))
    };
    let end = events.iter().position(|event| begins(&event)).unwrap_or(events.len());
    let failure = events[..end].iter().rev().find(is_failure)?;
    Some(format!(
        "{} ({}): {}",
        failure.logical_resource_id().unwrap_or_default(),
        failure.resource_type().unwrap_or_default(),
        failure.resource_status_reason().map_or_else(|| "no reason was given".into(), printable)
    ))
}

/// Pauses that grow.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(POLL.0)
    }

    async fn wait(&mut self, name: &str) -> Result<(), Error> {
        let until = Instant::now() + self.0;
        // In short pieces, so that a signal is heard.
        while Instant::now() < until {
            interrupt::check().map_err(|source| Error::Interrupted { name: name.to_owned(), source })?;
            tokio::time::sleep(POLL.0.min(until.saturating_duration_since(Instant::now()))).await;
        }
        self.0 = (self.0 * 2).min(POLL.1);
        Ok(())
    }
}

/// The failure for a stack that is in the way.
pub(crate) fn stuck(name: &str, stack: &Stack, region: &str) -> Failure {
    let reason = stack.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let why = format!("it is {}{reason}; {}", stack.status, advice(name, &stack.status, region));
    Failure::new(format!("use the stack {name}"), Kind::Wrong, why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_sdk_cloudformation::types::{ResourceStatus, StackEvent};

    use super::{Import, Stack, State, Wanted, advice, first_failure, kept, reduced};

    fn event(resource: &str, kind: &str, status: &str, reason: &str) -> StackEvent {
        StackEvent::builder()
            .logical_resource_id(resource)
            .resource_type(kind)
            .resource_status(ResourceStatus::from(status))
            .resource_status_reason(reason)
            .build()
    }

    #[test]
    fn the_first_failure_of_the_last_operation_is_the_cause() {
        let events = [
            event("s", "AWS::CloudFormation::Stack", "ROLLBACK_IN_PROGRESS", "The following resource(s) failed"),
            event("Policy", "AWS::S3::BucketPolicy", "CREATE_FAILED", "Resource creation cancelled"),
            event("Bucket", "AWS::S3::Bucket", "CREATE_FAILED", "x already exists"),
            event("s", "AWS::CloudFormation::Stack", "CREATE_IN_PROGRESS", "User Initiated"),
            event("Old", "AWS::S3::Bucket", "CREATE_FAILED", "long ago"),
        ];
        assert_eq!(first_failure(&events).as_deref(), Some("Bucket (AWS::S3::Bucket): x already exists"));
        assert_eq!(first_failure(&events[3..]), None);
    }

    #[test]
    fn what_is_imported_is_all_that_is_in_the_template_of_an_import() {
        let template = "Parameters:\n  Name:\n    Type: String\nResources:\n  Bucket:\n    Type: AWS::S3::Bucket\n    \
                        Properties:\n      BucketName: !Sub \"${Name}-x\"\n  Policy:\n    Type: AWS::S3::BucketPolicy\n\
                        Outputs:\n  Name:\n    Value: !Ref Bucket\n";
        let import =
            |logical_id| Import { kind: "AWS::S3::Bucket", logical_id, property: "BucketName", value: "x".to_owned() };
        let text = reduced(template, &[import("Bucket")]).unwrap();
        assert!(text.contains("!Sub") && text.contains("${Name}-x") && text.contains("Parameters"), "{text}");
        assert!(!text.contains("Policy") && !text.contains("Outputs"), "{text}");
        assert!(reduced(template, &[import("Other")]).is_err());
    }

    #[test]
    fn values_that_someone_else_gave_are_kept() {
        let template = "Parameters:\n  Name:\n    Default: \"\"\n  Key:\n    Default: \"\"\n  Days:\n    Default: 14\n";
        let wanted = Wanted { name: "s", template, parameters: &[], decided: &["Name"], tags: &[] };
        let current = [("Name", "x"), ("Key", "arn:key"), ("Days", "14"), ("Gone", "y")];
        let current = current.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(kept(&wanted, &current), [("Key".to_owned(), "arn:key".to_owned())]);
    }

    #[test]
    fn every_status_has_a_state() {
        let state = |status: &str| {
            let (outputs, parameters) = (BTreeMap::new(), BTreeMap::new());
            Stack { id: "x".into(), status: status.into(), reason: None, outputs, parameters }.state()
        };
        assert_eq!(state("CREATE_COMPLETE"), State::Steady);
        assert_eq!(state("UPDATE_ROLLBACK_COMPLETE"), State::Steady);
        assert_eq!(state("REVIEW_IN_PROGRESS"), State::Review);
        assert_eq!(state("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"), State::Busy);
        assert_eq!(state("DELETE_COMPLETE"), State::Absent);
        for stuck in ["ROLLBACK_COMPLETE", "CREATE_FAILED", "DELETE_FAILED", "UPDATE_ROLLBACK_FAILED"] {
            assert_eq!(state(stuck), State::Stuck, "{stuck}");
            assert!(advice("s", stuck, "eu-west-1").contains("aws cloudformation"), "{stuck}");
        }
    }
}
