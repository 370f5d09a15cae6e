//! What the source itself says about its runs: `.spacelift/config.yml` and `.spacelift/workflow.yml`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, DeserializeOwned, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_yaml::Value;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::protocol::{Hooks, Variable, Workflow};
use crate::untrusted::{self, Links};

/// The runtime configuration's path in the source.
pub const CONFIG: &str = ".spacelift/config.yml";
/// The custom workflow's path in the source.
pub const WORKFLOW: &str = ".spacelift/workflow.yml";
/// Bytes of either. People write them.
const MAXIMUM_SIZE: u64 = 1024 * 1024;
/// Bytes of either, with what its aliases stand for in the place of each.
const MAXIMUM_EXPANDED: usize = 16 * 1024 * 1024;
/// Bytes that each value counts besides its text: some kilobytes of aliases would make millions of empty ones.
const NODE: usize = 16;
/// For reading both. What people write takes milliseconds.
const MAXIMUM_TIME: Duration = Duration::from_secs(20);

/// Why a file of the source was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read, or should not be.
    #[error(transparent)]
    File(#[from] untrusted::Error),
    /// It says something that it may not.
    #[error("`{path}` is not right: {problem}; correct it in the source and start another run")]
    Content {
        /// Which one.
        path: &'static str,
        /// What it is, and where.
        problem: String,
    },
    /// It cannot be understood in any time that people would wait.
    #[error("`{CONFIG}` or `{WORKFLOW}` cannot be understood: {0}; make them simpler")]
    Slow(String),
}

/// The runtime configuration as far as it concerns one stack.
#[derive(Debug, Default)]
pub struct RuntimeConfig {
    hooks: HookSettings,
    environment: BTreeMap<String, String>,
    project_root: Option<String>,
    /// For people: what is in it but decided before the source is known.
    pub notes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: Option<Value>,
    #[serde(default)]
    stack_defaults: Option<Settings>,
    #[serde(default)]
    stacks: Option<BTreeMap<String, Option<Settings>>>,
    // For modules: which version this is, and what their test cases are, of which a run is given one.
    module_version: Option<Value>,
    test_defaults: Option<Settings>,
    tests: Option<Value>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    before_init: Option<Vec<String>>,
    after_init: Option<Vec<String>>,
    before_plan: Option<Vec<String>>,
    after_plan: Option<Vec<String>>,
    before_apply: Option<Vec<String>>,
    after_apply: Option<Vec<String>>,
    before_perform: Option<Vec<String>>,
    after_perform: Option<Vec<String>>,
    before_destroy: Option<Vec<String>>,
    after_destroy: Option<Vec<String>>,
    after_run: Option<Vec<String>>,
    environment: Option<BTreeMap<String, Value>>,
    project_root: Option<String>,
    runner_image: Option<String>,
    terraform_version: Option<Value>,
}

type HookSettings = [Option<Vec<String>>; 11];

impl Settings {
    fn hooks(&self) -> HookSettings {
        [
            &self.before_init,
            &self.after_init,
            &self.before_plan,
            &self.after_plan,
            &self.before_apply,
            &self.after_apply,
            &self.before_perform,
            &self.after_perform,
            &self.before_destroy,
            &self.after_destroy,
            &self.after_run,
        ]
        .map(Clone::clone)
    }
}

/// Reads what the source says about its runs: the runtime configuration and the custom workflow, if it has one.
///
/// # Errors
/// One of them says something unknown, is no file, or takes too long to be understood.
pub async fn of_source(
    source: PathBuf,
    stack: String,
    testing: bool,
) -> Result<(RuntimeConfig, Option<Workflow>), Error> {
    within(MAXIMUM_TIME, move || Ok((RuntimeConfig::read(&source, &stack, testing)?, workflow(&source)?))).await
}

/// Reading that takes longer is given up, and is over when the worker ends: brackets in brackets take a parser of YAML a time
/// that grows with their square.
async fn within<T: Send + 'static>(
    limit: Duration,
    read: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match timeout(limit, spawn_blocking(read)).await {
        Ok(Ok(result)) => result,
        Ok(Err(broken)) => Err(Error::Slow(broken.to_string())),
        Err(_) => Err(Error::Slow(format!("it takes more than {} s", limit.as_secs()))),
    }
}

impl RuntimeConfig {
    /// Reads it. A source without one has an empty one.
    ///
    /// # Errors
    /// When there is one that says something unknown: whoever wrote it expects it to happen.
    pub fn read(source: &Path, stack: &str, testing: bool) -> Result<Self, Error> {
        match read(source, CONFIG)? {
            Some(text) => {
                Self::parse(&text, stack, testing).map_err(|problem| Error::Content { path: CONFIG, problem })
            }
            None => Ok(Self::default()),
        }
    }

    fn parse(text: &str, stack: &str, testing: bool) -> Result<Self, String> {
        let document: Document = parsed(text)?;
        match document.version.as_ref().and_then(scalar).as_deref() {
            Some("1" | "2") => {}
            Some(other) => return Err(format!("`version` is {other:?}, and only \"1\" and \"2\" are known")),
            None => return Err("`version` is missing, which is to be \"1\" or \"2\"".into()),
        }
        let mut config = Self::default();
        let own = document.stacks.and_then(|mut stacks| stacks.remove(stack)).flatten();
        let tests = document.test_defaults.filter(|_| testing);
        // A later one goes before an earlier one, key by key.
        for settings in [document.stack_defaults, tests, own].into_iter().flatten() {
            for (hook, new) in config.hooks.iter_mut().zip(settings.hooks()) {
                if new.is_some() {
                    *hook = new;
                }
            }
            for (name, value) in settings.environment.into_iter().flatten() {
                let value =
                    scalar(&value).ok_or_else(|| format!("`environment.{name}` is neither text nor a number"))?;
                config.environment.insert(name, value);
            }
            if settings.project_root.is_some() {
                config.project_root = settings.project_root;
            }
            if let Some(image) = settings.runner_image {
                config.notes.push(format!(
                    "`runner_image` in `{CONFIG}` ({image}) has no effect here: the container was made before the source \
                     was known"
                ));
            }
            if let Some(version) = settings.terraform_version.as_ref().and_then(scalar) {
                config.notes.push(format!(
                    "`terraform_version` in `{CONFIG}` ({version}) has no effect here: the runner image's version is used"
                ));
            }
        }
        if document.module_version.is_none() && document.tests.is_some() {
            config.notes.push(format!("`tests` in `{CONFIG}` has no effect without `module_version`"));
        }
        Ok(config)
    }

    /// Puts its hooks in the place of the stack's.
    pub fn override_hooks(&self, hooks: &mut Hooks) {
        let targets = [
            &mut hooks.before_init,
            &mut hooks.after_init,
            &mut hooks.before_plan,
            &mut hooks.after_plan,
            &mut hooks.before_apply,
            &mut hooks.after_apply,
            &mut hooks.before_perform,
            &mut hooks.after_perform,
            &mut hooks.before_destroy,
            &mut hooks.after_destroy,
            &mut hooks.after_run,
        ];
        for (target, own) in targets.into_iter().zip(&self.hooks) {
            if let Some(own) = own {
                target.clone_from(own);
            }
        }
    }

    /// Its variables.
    pub fn variables(&self) -> impl Iterator<Item = Variable> {
        self.environment.iter().map(|(name, value)| Variable {
            name: name.clone(),
            value: value.clone(),
            secret: false,
        })
    }

    /// Where the tool is run, if it says so.
    pub fn project_root(&self) -> Option<&str> {
        self.project_root.as_deref()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkflowDocument {
    init: Option<String>,
    plan: Option<String>,
    apply: Option<String>,
    destroy: Option<String>,
    output: Option<String>,
}

/// Reads the custom workflow, if the source has one.
///
/// # Errors
/// As with [`RuntimeConfig::read`].
pub fn workflow(source: &Path) -> Result<Option<Workflow>, Error> {
    let Some(text) = read(source, WORKFLOW)? else { return Ok(None) };
    let document: WorkflowDocument = parsed(&text).map_err(|problem| Error::Content { path: WORKFLOW, problem })?;
    let WorkflowDocument { init, plan, apply, destroy, output } = document;
    Ok(Some(Workflow { init, plan, apply, destroy, output }))
}

fn read(source: &Path, path: &'static str) -> Result<Option<String>, Error> {
    let Some(bytes) = untrusted::read(&source.join(path), Links::Within(source), MAXIMUM_SIZE)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|error| Error::Content { path, problem: error.to_string() })?;
    Ok(Some(text))
}

/// Reads YAML that is not larger than it looks.
fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let left = Cell::new(MAXIMUM_EXPANDED);
    Expanded(&left)
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .and_then(|()| serde_yaml::from_str(text))
        .map_err(|error| error.to_string())
}

/// Walks through a document with a limit for its size, and keeps nothing of it: what an alias stands for counts each time, and
/// a few lines of aliases of aliases stand for more than there is memory.
#[derive(Clone, Copy)]
struct Expanded<'a>(&'a Cell<usize>);

impl Expanded<'_> {
    fn take<E: de::Error>(self, size: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(NODE + size);
        self.0.set(left.ok_or_else(|| {
            E::custom(format_args!("with what its aliases stand for it has more than {MAXIMUM_EXPANDED} bytes"))
        })?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Expanded<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Expanded<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.take(0)
    }

    /// A text without a document: nothing, or comments alone.
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.take(0)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<(), E> {
        self.take(0)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.take(0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.take(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        self.take(0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry_seed(self, self)?.is_some() {}
        self.take(0)
    }

    /// A tag, and what has it.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        tagged.variant_seed(self)?.1.newtype_variant_seed(self)
    }
}

/// YAML reads `1` and `true` as what they look like; a variable has only text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null => Some(String::new()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TEXT: &str = "
version: \"1\"
stack_defaults:
  before_init: [default]
  after_run: [after]
  environment: {A: 1, B: true, C: text}
  terraform_version: 1.5.7
stacks:
  mine:
    before_init: [own, own2]
    project_root: sub
    environment: {C: own}
  other:
    before_init: [not mine]
";

    #[test]
    fn a_stack_goes_before_the_defaults_and_both_before_the_settings() {
        let config = RuntimeConfig::parse(TEXT, "mine", false).unwrap();
        let mut hooks = Hooks { before_init: vec!["job".into()], before_plan: vec!["job".into()], ..Hooks::default() };
        config.override_hooks(&mut hooks);
        assert_eq!(hooks.before_init, ["own", "own2"]);
        assert_eq!(
            (&hooks.before_plan[..], &hooks.after_run[..]),
            (&["job".to_owned()][..], &["after".to_owned()][..])
        );
        let variables: Vec<_> = config.variables().map(|variable| (variable.name, variable.value)).collect();
        let expected = [("A", "1"), ("B", "true"), ("C", "own")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(variables, expected);
        assert_eq!(config.project_root(), Some("sub"));
        assert!(config.notes[0].contains("terraform_version"), "{:?}", config.notes);
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (text, name) in [
            ("version: \"1\"\nstacks: {mine: {before_initt: []}}", "before_initt"),
            ("version: 1\nstack: {}", "stack"),
            ("version: 3", "version"),
            ("stacks: {}", "version"),
            ("version: 1\nstack_defaults: {environment: {A: [1]}}", "environment.A"),
        ] {
            let error = RuntimeConfig::parse(text, "mine", false).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join(".spacelift")).unwrap();
        fs::write(source.path().join(WORKFLOW), "plann: x").unwrap();
        let error = workflow(source.path()).unwrap_err().to_string();
        assert!(error.contains("plann") && error.contains(WORKFLOW), "{error}");
    }

    #[test]
    fn a_file_is_not_larger_than_it_looks() {
        let config = |tests: &str| RuntimeConfig::parse(&format!("version: 1\ntests: {tests}"), "mine", false);
        let many = "x,".repeat(50_000);
        let aliases = "*a,".repeat(50_000);
        let doubled: String = (1..40).map(|at| format!("  a{at}: &a{at} [*a{0}, *a{0}]\n", at - 1)).collect();
        for text in [
            format!("[&a [{many}], {aliases}]"),
            format!("[&a '{}', {aliases}]", "x".repeat(100_000)),
            format!("\n  a0: &a0 [x]\n{doubled}"),
        ] {
            let begun = std::time::Instant::now();
            let error = config(&text).unwrap_err();
            assert!(error.contains("aliases") || error.contains("repetition"), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        }
        // What people write: one list for several stacks, tags, and all kinds of values.
        let text = "version: 1\nstack_defaults: {before_init: &hooks [a, b]}\ntests: [1, -1, 1.5, true, null, !tag x, {a: b}]\n\
                    stacks: {mine: {after_init: *hooks}}";
        let config = RuntimeConfig::parse(text, "mine", false).unwrap();
        assert_eq!(config.hooks[0], config.hooks[1]);
    }

    #[test]
    fn a_file_of_comments_alone_says_nothing() {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join(".spacelift")).unwrap();
        for text in ["", "# only a comment\n", "---\n"] {
            fs::write(source.path().join(WORKFLOW), text).unwrap();
            let workflow = workflow(source.path()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert!(workflow.is_some_and(|workflow| workflow.plan.is_none()), "{text:?}");
            let error = RuntimeConfig::parse(text, "mine", false).unwrap_err();
            assert!(error.contains("version"), "{text:?}: {error}");
        }
    }

    #[test]
    fn nobody_waits_for_brackets_in_brackets() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let content = |problem| Error::Content { path: CONFIG, problem };
        let read = move || RuntimeConfig::parse(&"[".repeat(20_000), "mine", false).map_err(content);
        let result = runtime.block_on(within(Duration::from_millis(10), read));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("make them simpler"), "{error}");
        runtime.shutdown_background();
    }

    #[test]
    fn what_is_no_file_of_the_source_is_refused_without_waiting() {
        let (source, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        fs::create_dir(source.path().join(".spacelift")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, source.path().join(CONFIG), rustix::fs::Mode::RWXU).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), source.path().join(WORKFLOW)).unwrap();
        let error = RuntimeConfig::read(source.path(), "mine", false).unwrap_err().to_string();
        assert!(error.contains(CONFIG) && error.contains("named pipe"), "{error}");
        let error = workflow(source.path()).unwrap_err().to_string();
        assert!(error.contains(WORKFLOW) && error.contains("leads out"), "{error}");
    }
}
