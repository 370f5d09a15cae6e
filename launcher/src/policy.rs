//! Initialization policies: which runs may begin on this host, in Rego.
//!
//! A policy is one file with `package spacelift`, in Rego v1 or v0. Its rule `deny` holds the reasons against a run; when
//! there is none, the run begins. A rule `sample` that is true has the decision logged with its input.
//!
//! Besides Rego's own functions that need no network there are:
//!
//! - `exec(command)`: runs a program of the host, given as an array of its path and its arguments, without a shell. Gives
//!   `{"status", "stdout", "stderr"}`; see [`command`].
//! - `sanitized(value)`: text that is the same for the same value and does not show it, to compare what must not be seen.
//! - `io.jwt.decode`, `io.jwt.decode_verify` and `io.jwt.verify_*`; see [`jwt`].
//!
//! Everything fails closed: a policy that does not compile is refused at start, and so is one that calls a function that
//! nobody knows or has no rule `deny`; one whose evaluation fails or takes too long denies.

mod command;
mod jwt;

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

/// The package of policies.
const PACKAGE: &str = "spacelift";
/// How long one evaluation may take, the commands that it executes included.
const LIMIT: Duration = Duration::from_secs(60);
/// Brackets within brackets. People write five or six.
const MAXIMUM_DEPTH: usize = 16;
/// Steps of the interpreter between two looks at the clock.
const CHECK_INTERVAL: NonZeroU32 = NonZeroU32::new(1000).expect("it is not zero");
/// Reasons that are passed on, and characters of each.
const MAXIMUM_REASONS: usize = 100;
const MAXIMUM_REASON: usize = 1000;

/// Why a policy is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not Rego.
    #[error("the policy `{file}` does not compile: {reason}")]
    Syntax {
        /// Its file.
        file: String,
        /// What the interpreter says, with the place.
        reason: String,
    },
    /// It is of another package.
    #[error("the policy `{file}` is of the package `{found}`. Begin it with `package {PACKAGE}`")]
    Package {
        /// Its file.
        file: String,
        /// Its package.
        found: String,
    },
    /// It decides nothing.
    #[error("the policy `{file}` has no rule `deny`, so it would let every run begin. Add one")]
    NoRule {
        /// Its file.
        file: String,
    },
    /// It calls what is not there.
    #[error(
        "the policy `{file}` calls `{function}` in line {line}, which is neither a function of it nor one of those that initialization policies have"
    )]
    UnknownFunction {
        /// Its file.
        file: String,
        /// What it calls.
        function: String,
        /// Where.
        line: u64,
    },
}

/// A policy that compiles.
#[derive(Clone)]
pub struct Policy {
    engine: Engine,
    file: String,
    has_sample: bool,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What a policy says about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Reasons against it. None: it may begin.
    pub deny: Vec<String>,
    /// Whether the decision is to be logged with its input.
    pub sampled: bool,
}

impl Policy {
    /// Compiles a policy. `file` is what it is called in errors.
    ///
    /// # Errors
    /// It does not compile, is of another package, has no rule `deny`, or calls an unknown function.
    pub fn compile(rego: &str, file: &str) -> Result<Self, Error> {
        Self::compile_within(rego, file, LIMIT)
    }

    /// `limit` is for each evaluation.
    fn compile_within(rego: &str, file: &str, limit: Duration) -> Result<Self, Error> {
        let syntax = |error: &anyhow::Error| Error::Syntax { file: file.to_owned(), reason: format!("{error:#}") };
        if let Some(line) = too_deep(rego) {
            let reason = format!(
                "brackets are nested more than {MAXIMUM_DEPTH} deep in line {line}. Take a part into a rule of its own"
            );
            return Err(Error::Syntax { file: file.to_owned(), reason });
        }
        // Version 1 first: what is valid in both means the same.
        let mut engine = match parse(rego, file, Version::One) {
            Ok(engine) => engine,
            Err(error) => match parse(rego, file, Version::Zero) {
                Ok(engine) => engine,
                // What is neither is most likely meant to be what it says it is, and otherwise of today.
                Err(old) => {
                    return Err(syntax(if rego.contains("rego.v1") || rego.contains(" if ") { &error } else { &old }));
                }
            },
        };
        let ast = engine.get_ast_as_json().map_err(|error| syntax(&error))?;
        let ast: Json = serde_json::from_str(&ast).map_err(|error| syntax(&error.into()))?;
        let packages = engine.get_packages().map_err(|error| syntax(&error))?;
        if packages != [format!("data.{PACKAGE}")] {
            let found = packages.join(", ").replace("data.", "");
            return Err(Error::Package { file: file.to_owned(), found });
        }
        let rules = Rules::of(&ast);
        if !rules.names.contains("deny") {
            return Err(Error::NoRule { file: file.to_owned() });
        }
        for call in &rules.calls {
            if !rules.knows(&call.function) {
                let Call { function, line } = call.clone();
                return Err(Error::UnknownFunction { file: file.to_owned(), function, line });
            }
        }
        if let Some((variable, line)) = rules.unbound.first() {
            let reason =
                format!("nothing gives the variable `{variable}` in the head of the rule in line {line} a value");
            return Err(Error::Syntax { file: file.to_owned(), reason });
        }
        // Everything that can be said about it without an input, such as variables that nothing binds.
        engine
            .clone()
            .compile_with_entrypoint(&format!("data.{PACKAGE}.deny").into())
            .map_err(|error| syntax(&error))?;
        engine.set_execution_timer_config(ExecutionTimerConfig { limit, check_interval: CHECK_INTERVAL });
        Ok(Self { engine, file: file.to_owned(), has_sample: rules.names.contains("sample") })
    }

    /// What it says about a run. It blocks for as long as the commands take that the policy executes: up to a minute.
    #[must_use]
    pub fn evaluate(&self, input: Json) -> Decision {
        self.decide(input).unwrap_or_else(|error| Decision {
            deny: vec![shortened(&format!("the initialization policy could not be evaluated: {error:#}"))],
            sampled: false,
        })
    }

    fn decide(&self, input: Json) -> anyhow::Result<Decision> {
        // Evaluation leaves traces in the engine.
        let mut engine = self.engine.clone();
        engine.set_input(Value::from(input));
        let deny = reasons(&engine.eval_rule(format!("data.{PACKAGE}.deny"))?);
        let sampled = self.has_sample && engine.eval_rule(format!("data.{PACKAGE}.sample"))? == Value::from(true);
        Ok(Decision { deny, sampled })
    }
}

/// The line in which brackets are nested too deep, if there is one: for each of them the parser tries twice what follows.
fn too_deep(rego: &str) -> Option<usize> {
    let (mut depth, mut line, mut quote) = (0_usize, 1, None);
    let mut characters = rego.chars();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match (quote, character) {
            (Some('"'), '\\') => drop(characters.next()),
            // A comment, or a string that should have ended.
            (Some('#' | '"'), '\n') => quote = None,
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`' | '#') => quote = Some(character),
            (None, '{' | '[' | '(') => depth += 1,
            (None, '}' | ']' | ')') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        if depth > MAXIMUM_DEPTH {
            return Some(line);
        }
    }
    None
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Zero,
    One,
}

fn parse(rego: &str, file: &str, version: Version) -> anyhow::Result<Engine> {
    let mut engine = Engine::new();
    engine.set_rego_v0(version == Version::Zero);
    engine.add_extension("exec".to_owned(), 1, Box::new(|arguments: Vec<Value>| command::exec(&arguments[0])))?;
    engine.add_extension("sanitized".to_owned(), 1, Box::new(|arguments: Vec<Value>| sanitized(&arguments[0])))?;
    jwt::add(&mut engine)?;
    engine.add_policy(file.to_owned(), rego.to_owned())?;
    Ok(engine)
}

fn is_extension(function: &str) -> bool {
    ["exec", "sanitized"].contains(&function) || jwt::FUNCTIONS.iter().any(|(name, _)| *name == function)
}

fn sanitized(value: &Value) -> anyhow::Result<Value> {
    let digest = Sha256::digest(serde_json::to_vec(value)?);
    Ok(Value::from(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// What a rule says. Whatever is there in an unexpected form is a reason as well.
fn reasons(value: &Value) -> Vec<String> {
    let mut reasons: Vec<String> = match value {
        Value::Undefined | Value::Null | Value::Bool(false) => Vec::new(),
        Value::Bool(true) => vec!["the initialization policy denies it without saying why".to_owned()],
        Value::Array(items) => items.iter().map(reason).collect(),
        Value::Set(items) => items.iter().map(reason).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{}: {}", reason(name), reason(value))).collect()
        }
        other => vec![reason(other)],
    };
    reasons.truncate(MAXIMUM_REASONS);
    reasons
}

fn reason(value: &Value) -> String {
    match value {
        Value::String(text) => shortened(text),
        other => shortened(&serde_json::to_string(other).unwrap_or_else(|error| error.to_string())),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAXIMUM_REASON).collect()
}

/// What a policy has and calls.
#[derive(Default)]
struct Rules {
    names: BTreeSet<String>,
    functions: BTreeSet<String>,
    calls: Vec<Call>,
    /// Variables in heads to which nothing gives a value, with their lines.
    unbound: Vec<(String, u64)>,
}

#[derive(Debug, Clone)]
struct Call {
    function: String,
    line: u64,
}

impl Rules {
    /// From the syntax tree as the interpreter gives it in JSON: a list of modules.
    fn of(ast: &Json) -> Self {
        let mut rules = Self::default();
        for rule in ast.pointer("/0/ast/rules").and_then(Json::as_array).into_iter().flatten() {
            let (kind, head) = match (rule.pointer("/Spec/head").and_then(Json::as_object), rule.get("Default")) {
                (Some(head), _) => head.iter().next().map(|(kind, head)| (kind.as_str(), head)).unzip(),
                (None, default) => (Some("Default"), default),
            };
            let Some(name) = head.and_then(|head| path(&head["refr"])) else { continue };
            let takes_arguments = head.is_some_and(|head| head["args"].as_array().is_some_and(|args| !args.is_empty()));
            if kind == Some("Func") || takes_arguments {
                rules.functions.insert(name.clone());
            }
            rules.names.insert(name);
        }
        rules.visit(ast);
        rules.find_unbound(ast);
        rules
    }

    /// A misspelt variable in a rule's head would make the rule say nothing, without an error: `deny[mesage] { message := … }`.
    fn find_unbound(&mut self, ast: &Json) {
        let mut known: BTreeSet<String> = ["input", "data"].map(str::to_owned).into();
        known.extend(self.names.iter().filter_map(|name| name.split('.').next().map(str::to_owned)));
        for import in ast.pointer("/0/ast/imports").and_then(Json::as_array).into_iter().flatten() {
            // What an alias is called is only in the source.
            let alias = import.get("as").and_then(|span| {
                let at = |name: &str| usize::try_from(span[name].as_u64()?).ok();
                ast.pointer("/0/source/contents")?.as_str()?.get(at("start")?..at("end")?).map(str::to_owned)
            });
            let last = path(&import["refr"]).and_then(|path| path.rsplit('.').next().map(str::to_owned));
            known.extend(alias.or(last));
        }
        for rule in ast.pointer("/0/ast/rules").and_then(Json::as_array).into_iter().flatten() {
            let Some(head) = rule.pointer("/Spec/head").and_then(Json::as_object).and_then(|head| head.values().next())
            else {
                continue;
            };
            let mut bound = known.clone();
            variables(&rule["Spec"]["bodies"], &mut bound);
            variables(&head["args"], &mut bound);
            let mut used = BTreeSet::new();
            variables(&head["key"], &mut used);
            variables(&head["assign"]["value"], &mut used);
            // Comprehensions bind variables of their own.
            let has_comprehension = |part: &Json| part.to_string().contains("Compr\":");
            if has_comprehension(&head["key"]) || has_comprehension(&head["assign"]) {
                continue;
            }
            let line = head["span"]["line"].as_u64().unwrap_or_default();
            self.unbound.extend(used.difference(&bound).map(|variable| (variable.clone(), line)));
        }
    }

    /// Collects what is called anywhere below.
    fn visit(&mut self, node: &Json) {
        match node {
            Json::Array(items) => items.iter().for_each(|item| self.visit(item)),
            Json::Object(fields) => {
                if let Some(call) = fields.get("Call") {
                    // What is called by an expression has no name, and nothing like it is ever known.
                    let function = path(&call["fcn"]).unwrap_or_else(|| "an expression".to_owned());
                    self.calls.push(Call { function, line: call["span"]["line"].as_u64().unwrap_or_default() });
                }
                fields.values().for_each(|field| self.visit(field));
            }
            _ => (),
        }
    }

    fn knows(&self, function: &str) -> bool {
        let own = function.strip_prefix("data.").and_then(|rest| rest.strip_prefix(PACKAGE)?.strip_prefix('.'));
        self.functions.contains(own.unwrap_or(function))
            || is_extension(function)
            || function == "print"
            || regorus::unstable::BUILTINS.contains_key(function)
    }
}

/// The variables of an expression, without names of functions.
fn variables(node: &Json, found: &mut BTreeSet<String>) {
    match node {
        Json::Array(items) => items.iter().for_each(|item| variables(item, found)),
        Json::Object(fields) => {
            found.extend(fields.get("Var").and_then(|variable| variable["value"].as_str()).map(str::to_owned));
            // `some x` has names without more; their values are given to them elsewhere.
            fields.iter().filter(|(name, _)| *name != "fcn").for_each(|(_, field)| variables(field, found));
        }
        _ => (),
    }
}

/// The dotted name that an expression is. What is in brackets is not part of a rule's name.
fn path(expression: &Json) -> Option<String> {
    if let Some(variable) = expression.get("Var") {
        return variable["value"].as_str().map(str::to_owned);
    }
    if let Some(reference) = expression.get("RefDot") {
        return Some(format!("{}.{}", path(&reference["refr"])?, reference["field"][1].as_str()?));
    }
    path(&expression.get("RefBrack")?["refr"])
}

#[cfg(test)]
mod tests;
