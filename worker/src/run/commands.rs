//! What each phase executes, and what the tools say.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Failure, PLAN, Run};
use crate::environment::Environment;
use crate::protocol::{Changes, Hooks, Phase, Stage};
use crate::shell::quoted;

/// What is done in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Init,
    Plan,
    Apply,
    Perform,
    Destroy,
}

impl Step {
    pub(super) fn phase(self) -> Phase {
        match self {
            Self::Init => Phase::Initializing,
            Self::Plan => Phase::Planning,
            Self::Apply => Phase::Applying,
            Self::Perform => Phase::Performing,
            Self::Destroy => Phase::Destroying,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Init => "Initializing",
            Self::Plan => "Planning",
            Self::Apply => "Applying",
            Self::Perform => "Performing",
            Self::Destroy => "Destroying",
        }
    }

    pub(super) fn state(self) -> &'static str {
        match self {
            Self::Init => "INITIALIZING",
            Self::Plan => "PLANNING",
            Self::Apply => "APPLYING",
            Self::Perform => "PERFORMING",
            Self::Destroy => "DESTROYING",
        }
    }

    pub(super) fn hooks(self, hooks: &Hooks) -> (&[String], &[String]) {
        match self {
            Self::Init => (&hooks.before_init, &hooks.after_init),
            Self::Plan => (&hooks.before_plan, &hooks.after_plan),
            Self::Apply => (&hooks.before_apply, &hooks.after_apply),
            Self::Perform => (&hooks.before_perform, &hooks.after_perform),
            Self::Destroy => (&hooks.before_destroy, &hooks.after_destroy),
        }
    }
}

impl Run {
    /// The phase's own command. A custom workflow may have none.
    pub(super) fn command(&self, step: Step) -> Result<Option<String>, Failure> {
        if step == Step::Perform {
            return match &self.job.command {
                Some(command) => Ok(Some(command.clone())),
                None => Err(Failure::Unable("the task has no command".into())),
            };
        }
        let Some(tool) = self.tool() else {
            let workflow = &self.workflow;
            let command = match step {
                Step::Init => &workflow.init,
                Step::Plan => &workflow.plan,
                Step::Apply => &workflow.apply,
                Step::Destroy => &workflow.destroy,
                Step::Perform => &None,
            };
            return Ok(command.clone());
        };
        let plan = self.place.workspace.join(PLAN);
        // The worker's own paths; one that is not text is given to nobody else.
        let plan = String::from_utf8_lossy(&quoted(plan.as_os_str())).into_owned();
        let command = match step {
            Step::Init => format!("{tool} init -input=false"),
            Step::Plan => format!("{tool} plan -input=false -out={plan}"),
            Step::Apply => format!("{tool} apply -auto-approve -input=false {plan}"),
            Step::Destroy | Step::Perform => format!("{tool} destroy -auto-approve -input=false"),
        };
        // Hooks may have installed it just now, so that only the shell knows.
        let missing = String::from_utf8_lossy(&quoted(OsStr::new(&missing(tool)))).into_owned();
        Ok(Some(format!(
            "command -v {tool} >/dev/null 2>&1 || {{ printf '%s\\n' {missing} >&2; exit 127; }}\n{command}"
        )))
    }

    pub(super) fn is_testing(&self) -> bool {
        self.job.stage() == Stage::Test
    }
}

/// What to do about a tool that is not there.
pub(super) fn missing(tool: &str) -> String {
    format!(
        "the runner image has no program `{tool}` in its PATH; use an image that has it, or install it in a hook before \
         Initializing"
    )
}

/// A program, as a shell would find it.
pub(super) fn find(name: &OsStr, environment: &Environment) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(name.into());
    }
    std::env::split_paths(environment.get("PATH")?).map(|directory| directory.join(name)).find(|path| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

#[derive(Deserialize)]
struct Plan {
    #[serde(default)]
    resource_changes: Total<ResourceChange>,
}

#[derive(Deserialize)]
struct ResourceChange {
    change: Change,
}

#[derive(Deserialize)]
struct Change {
    actions: Total<Action>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    Create,
    Update,
    Delete,
    #[serde(other)]
    Other,
}

impl From<Action> for Changes {
    fn from(action: Action) -> Self {
        let count = |is_this| u64::from(is_this);
        Self {
            add: count(matches!(action, Action::Create)),
            change: count(matches!(action, Action::Update)),
            destroy: count(matches!(action, Action::Delete)),
        }
    }
}

impl From<ResourceChange> for Changes {
    fn from(resource: ResourceChange) -> Self {
        resource.change.actions.changes
    }
}

/// A list that is added up while it is read: however long it is, none of it is kept.
struct Total<T> {
    changes: Changes,
    of: PhantomData<T>,
}

impl<T> Default for Total<T> {
    fn default() -> Self {
        Self { changes: Changes { add: 0, change: 0, destroy: 0 }, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de> + Into<Changes>> Deserialize<'de> for Total<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de, T: Deserialize<'de> + Into<Changes>> Visitor<'de> for Total<T> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(item) = list.next_element::<T>()? {
            let Changes { add, change, destroy } = item.into();
            self.changes.add += add;
            self.changes.change += change;
            self.changes.destroy += destroy;
        }
        Ok(self)
    }
}

/// Counts what a plan in JSON would change, as the tool's own summary does: a replacement is one to add and one to destroy.
pub(super) fn changes(plan: impl Read) -> Result<Changes, serde_json::Error> {
    let plan: Plan = serde_json::from_reader(plan)?;
    Ok(plan.resource_changes.changes)
}

#[derive(Deserialize, Serialize)]
struct OutputValue {
    #[serde(default)]
    sensitive: bool,
    #[serde(rename = "type", default)]
    kind: Value,
    value: Value,
}

/// The outputs as they are uploaded; none if there are none.
pub(super) fn outputs(text: &[u8], with_sensitive: bool) -> Result<Option<Vec<u8>>, serde_json::Error> {
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let mut outputs: BTreeMap<String, OutputValue> = serde_json::from_slice(text)?;
    outputs.retain(|_, output| with_sensitive || !output.sensitive);
    serde_json::to_vec(&outputs).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_as_the_tool_does() {
        let plan = br#"{"format_version":"1.2","resource_changes":[
            {"address":"a","change":{"actions":["create"],"before":null}},
            {"change":{"actions":["delete","create"]}},{"change":{"actions":["update"]}},
            {"change":{"actions":["no-op"]}},{"change":{"actions":["read"]}},{"change":{"actions":["delete"]}}]}"#;
        assert_eq!(changes(&plan[..]).unwrap(), Changes { add: 2, change: 1, destroy: 2 });
        assert_eq!(changes(&b"{}"[..]).unwrap(), Changes { add: 0, change: 0, destroy: 0 });
        assert!(changes(&b"no"[..]).is_err());
    }

    #[test]
    fn sensitive_outputs_are_left_out_unless_wanted() {
        let text = br#"{"a":{"sensitive":true,"type":"string","value":"x"},"b":{"sensitive":false,"type":"number","value":1}}"#;
        let names = |with| {
            let bytes = outputs(text, with).unwrap().unwrap();
            serde_json::from_slice::<BTreeMap<String, Value>>(&bytes).unwrap().into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["b"]);
        assert_eq!(names(true), ["a", "b"]);
    }
}
