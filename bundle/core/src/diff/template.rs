//! CloudFormation templates.
//!
//! A template is read as the document that CloudFormation sees: the short forms of YAML (`!Ref X`, `!Sub …`,
//! `!GetAtt A.B`) are the long ones of JSON, so that a template that was only written differently is the same.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::{self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess as _, Visitor};
use serde_json::{Map, Number, Value};

use super::pairs;

/// Limit of a template in bytes; CloudFormation itself takes 1,000,000 from S3.
pub(super) const MAX_TEMPLATE: u64 = 1024 * 1024;
/// What a template may grow to in memory, counted in bytes of text and [`NODE`] for each value. YAML's aliases let a small
/// file stand for an endless one.
const BUDGET: usize = 16 * 1024 * 1024;
/// About what a value takes.
const NODE: usize = 64;

/// A template.
#[derive(Debug, Default)]
pub(super) struct Template {
    parameters: BTreeMap<String, Value>,
    resources: BTreeMap<String, Value>,
    sections: BTreeMap<String, Value>,
}

/// A template that changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TemplateChanges {
    /// Its path in the release.
    pub path: String,
    /// Its parameters.
    pub parameters: Items<Parameter>,
    /// Its resources.
    pub resources: Items<Resource>,
    /// The names of other parts that changed, such as `Outputs`.
    pub sections: Vec<String>,
}

/// Parameters or resources of a template, sorted by name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Items<T> {
    /// Only in the new template.
    pub added: Vec<T>,
    /// Only in the old template.
    pub removed: Vec<T>,
    /// In both and not the same.
    pub changed: Vec<Changed>,
}

/// A parameter. All its text comes from the template: escape it before printing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its type, such as `String`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is unless given; without one it must be given.
    pub default: Option<Value>,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resource {
    /// Its logical id.
    pub name: String,
    /// Its type, such as `AWS::S3::Bucket`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A parameter or resource that is in both templates and not the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// Its type in the new template.
    #[serde(rename = "type")]
    pub kind: String,
    /// What changed in it.
    pub changes: Vec<ValueChange>,
}

/// A value that changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueChange {
    /// Where it is, such as `Properties.BucketName`.
    pub path: String,
    /// What it was; absent if it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// What it is; absent if it is not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

/// Whether the file's name is that of a template; something to read may lie beside them.
pub(super) fn is_template(path: &str) -> bool {
    [".yaml", ".yml", ".json", ".template"].iter().any(|extension| path.ends_with(extension))
}

impl Template {
    /// Reads YAML or JSON. The error is a sentence about the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Value::Object(mut top) = document(bytes)? else {
            return Err("it is not a template: it holds no mapping".into());
        };
        let mut section = |name: &str| match top.remove(name) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(items)) => Ok(items.into_iter().collect()),
            Some(_) => Err(format!("it is not a template: {name} is not a mapping")),
        };
        let (parameters, resources) = (section("Parameters")?, section("Resources")?);
        Ok(Self { parameters, resources, sections: top.into_iter().collect() })
    }
}

fn document(bytes: &[u8]) -> Result<Value, String> {
    let budget = Cell::new(BUDGET);
    let seed = Document { budget: &budget };
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not a template: it is not UTF-8".to_owned())?;
    // JSON may hold tabs where YAML does not allow them. What only begins like JSON is YAML's flow style.
    if text.trim_start().starts_with('{') {
        let mut json = serde_json::Deserializer::from_str(text);
        if let Ok(value) = seed.deserialize(&mut json)
            && json.end().is_ok()
        {
            return Ok(value);
        }
        budget.set(BUDGET);
    }
    seed.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| format!("it is not a template: {error}"))
}

impl TemplateChanges {
    /// `None` if both mean the same. A template that is only on one side has everything added or removed.
    pub(super) fn between(path: String, old: Option<Template>, new: Option<Template>) -> Option<Self> {
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let parameters = Items::between(old.parameters, new.parameters, |name, value| Parameter {
            name,
            kind: kind(&value),
            default: value.get("Default").cloned(),
        });
        let resources =
            Items::between(old.resources, new.resources, |name, value| Resource { name, kind: kind(&value) });
        let sections: Vec<_> =
            pairs(old.sections, new.sections).filter(|(_, old, new)| old != new).map(|(name, _, _)| name).collect();
        let same = parameters.is_empty() && resources.is_empty() && sections.is_empty();
        (!same).then_some(Self { path, parameters, resources, sections })
    }
}

fn kind(item: &Value) -> String {
    item.get("Type").and_then(Value::as_str).unwrap_or("no type").to_owned()
}

impl<T> Items<T> {
    fn between(
        old: BTreeMap<String, Value>,
        new: BTreeMap<String, Value>,
        describe: impl Fn(String, Value) -> T,
    ) -> Self {
        let mut items = Self { added: Vec::new(), removed: Vec::new(), changed: Vec::new() };
        for (name, old, new) in pairs(old, new) {
            match (old, new) {
                (None, Some(new)) => items.added.push(describe(name, new)),
                (Some(old), None) => items.removed.push(describe(name, old)),
                (Some(old), Some(new)) if old != new => {
                    let kind = kind(&new);
                    let mut changes = Vec::new();
                    value_changes("", Some(old), Some(new), &mut changes);
                    items.changed.push(Changed { name, kind, changes });
                }
                _ => {}
            }
        }
        items
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// The smallest parts that differ. Lists and functions such as `Fn::Sub` are compared as a whole: parts of them say
/// little by themselves.
fn value_changes(path: &str, old: Option<Value>, new: Option<Value>, changes: &mut Vec<ValueChange>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) if !is_function(&old) && !is_function(&new) => {
            let (old, new): (BTreeMap<_, _>, BTreeMap<_, _>) = (old.into_iter().collect(), new.into_iter().collect());
            for (name, old, new) in pairs(old, new) {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                value_changes(&path, old, new, changes);
            }
        }
        (old, new) => changes.push(ValueChange { path: path.to_owned(), old, new }),
    }
}

fn is_function(value: &Map<String, Value>) -> bool {
    value.len() == 1 && value.keys().all(|name| name == "Ref" || name == "Condition" || name.starts_with("Fn::"))
}

/// Reads any JSON or YAML document within a budget, and refuses a key that stands twice.
#[derive(Clone, Copy)]
struct Document<'a> {
    budget: &'a Cell<usize>,
}

impl Document<'_> {
    fn spend<E: de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.budget.get().checked_sub(bytes.saturating_add(NODE));
        self.budget.set(left.ok_or_else(|| E::custom("it holds too much"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.spend(0)?;
        // YAML's infinities and NaN have no form in JSON.
        Ok(Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.spend(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut values = Map::new();
        while let Some(key) = access.next_key_seed(self)? {
            let key = match key {
                Value::String(key) => key,
                Value::Array(_) | Value::Object(_) => {
                    return Err(de::Error::custom("a key is neither text nor a number"));
                }
                plain => plain.to_string(),
            };
            let value = access.next_value_seed(self)?;
            if values.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} stands twice")));
            }
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }

    /// A tag, which is YAML's short form of a function.
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let (tag, contents) = access.variant::<String>()?;
        let value = contents.newtype_variant_seed(self)?;
        let (name, value) = match (tag.as_str(), value) {
            ("Ref" | "Condition", value) => (tag, value),
            ("GetAtt", Value::String(attribute)) => {
                let parts = attribute.split_once('.').map_or(vec![attribute.as_str()], |(a, b)| vec![a, b]);
                ("Fn::GetAtt".to_owned(), parts.into())
            }
            (_, value) => (format!("Fn::{tag}"), value),
        };
        Ok(Value::Object([(name, value)].into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "
AWSTemplateFormatVersion: 2010-09-09
Parameters:
  Kept: {Type: String}
  MaxSize: {Type: Number, Default: 10, MaxValue: 100}
  Gone: {Type: String, Default: x}
Resources:
  Role:
    Type: AWS::IAM::Role
    Properties:
      RoleName: !Sub '${AWS::StackName}-role'
      Path: /
  Topic: {Type: AWS::SNS::Topic}
  Group:
    Type: AWS::AutoScaling::AutoScalingGroup
    Properties:
      MaxSize: !Ref MaxSize
      Template: {Version: !GetAtt Launch.LatestVersionNumber}
Outputs:
  Arn: {Value: !GetAtt [Role, Arn]}
";

    fn parse(text: &str) -> Template {
        Template::parse(text.as_bytes()).unwrap()
    }

    fn changes(old: &str, new: &str) -> Option<TemplateChanges> {
        TemplateChanges::between("x.yaml".into(), Some(parse(old)), Some(parse(new)))
    }

    #[test]
    fn parameters_and_resources_are_compared() {
        let new = OLD
            .replace("Default: 10", "Default: 20")
            .replace("  Gone: {Type: String, Default: x}", "  New: {Type: String}")
            .replace("-role", "-worker")
            .replace("Topic: {Type: AWS::SNS::Topic}", "Queue: {Type: AWS::SQS::Queue}")
            .replace("MaxSize: !Ref MaxSize", "MaxSize: !Ref Kept")
            .replace("Arn: {", "RoleArn: {");
        let changes = changes(OLD, &new).unwrap();
        let parameters = &changes.parameters;
        assert_eq!(parameters.added, [Parameter { name: "New".into(), kind: "String".into(), default: None }]);
        assert_eq!(parameters.removed[0].default, Some("x".into()));
        let default = ValueChange { path: "Default".into(), old: Some(10.into()), new: Some(20.into()) };
        assert_eq!(
            parameters.changed,
            [Changed { name: "MaxSize".into(), kind: "Number".into(), changes: vec![default] }]
        );
        let resources = &changes.resources;
        assert_eq!(resources.added, [Resource { name: "Queue".into(), kind: "AWS::SQS::Queue".into() }]);
        assert_eq!(resources.removed, [Resource { name: "Topic".into(), kind: "AWS::SNS::Topic".into() }]);
        let paths: Vec<_> = resources
            .changed
            .iter()
            .flat_map(|changed| changed.changes.iter().map(|change| format!("{} {}", changed.name, change.path)))
            .collect();
        assert_eq!(paths, ["Group Properties.MaxSize", "Role Properties.RoleName"]);
        assert_eq!(changes.sections, ["Outputs"]);
    }

    #[test]
    fn the_same_template_in_json_is_no_change() {
        let json = r#"{
	"AWSTemplateFormatVersion": "2010-09-09",
	"Parameters": {
		"Kept": {"Type": "String"},
		"MaxSize": {"Type": "Number", "Default": 10, "MaxValue": 100},
		"Gone": {"Type": "String", "Default": "x"}
	},
	"Resources": {
		"Role": {
			"Type": "AWS::IAM::Role",
			"Properties": {"RoleName": {"Fn::Sub": "${AWS::StackName}-role"}, "Path": "/"}
		},
		"Topic": {"Type": "AWS::SNS::Topic"},
		"Group": {
			"Type": "AWS::AutoScaling::AutoScalingGroup",
			"Properties": {
				"MaxSize": {"Ref": "MaxSize"},
				"Template": {"Version": {"Fn::GetAtt": ["Launch", "LatestVersionNumber"]}}
			}
		}
	},
	"Outputs": {"Arn": {"Value": {"Fn::GetAtt": ["Role", "Arn"]}}}
}"#;
        assert_eq!(changes(OLD, json), None);
        assert_eq!(changes(OLD, OLD), None);
    }

    #[test]
    fn every_short_form_has_its_long_form() {
        let short =
            "Resources: {A: {X: [!Sub a, !If [c, !Ref d, !Equals [1, 2]], !Base64 {'Fn::Sub': s}, !Condition c]}}";
        let long = r#"{"Resources": {"A": {"X": [{"Fn::Sub": "a"},
            {"Fn::If": ["c", {"Ref": "d"}, {"Fn::Equals": [1, 2]}]}, {"Fn::Base64": {"Fn::Sub": "s"}}, {"Condition": "c"}]}}}"#;
        assert_eq!(changes(short, long), None);
    }

    #[test]
    fn a_template_on_one_side_is_all_new() {
        let added = TemplateChanges::between("x.yaml".into(), None, Some(parse(OLD))).unwrap();
        assert_eq!((added.parameters.added.len(), added.resources.added.len()), (3, 3));
        let removed = TemplateChanges::between("x.yaml".into(), Some(parse(OLD)), None).unwrap();
        assert_eq!((removed.parameters.removed.len(), removed.resources.removed.len()), (3, 3));
    }

    #[test]
    fn what_is_no_template_is_refused_with_a_reason() {
        let bomb = {
            let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
            for level in 1..12 {
                let previous = format!("*a{}, ", level - 1).repeat(10);
                text += &format!("a{level}: &a{level} [{previous}]\n");
            }
            text
        };
        let long_bomb = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(1_000));
        let deep = "[".repeat(100_000);
        let deep_json = "{\"a\":".repeat(10_000);
        let cases = [
            ("", "mapping"),
            ("just text", "mapping"),
            ("- a\n- b", "mapping"),
            ("a: 1\n---\nb: 2", "document"),
            ("Parameters: [a]", "Parameters"),
            ("Resources: x", "Resources"),
            ("Resources: {A: 1, A: 2}", "twice"),
            (r#"{"Resources": {"A": 1, "A": 2}}"#, "twice"),
            ("? [a]\n: b", "key"),
            ("a: *unknown", "anchor"),
            ("a: &a [*a]", ""),
            ("a: [", ""),
            ("a: \u{0}", ""),
            (&bomb, ""),
            (&long_bomb, "too much"),
            (&deep, "recursion"),
            (&deep_json, "recursion"),
        ];
        for (text, reason) in cases {
            let shown: String = text.chars().take(40).collect();
            let error = Template::parse(text.as_bytes()).expect_err(&shown);
            assert!(error.contains(reason), "{shown}: {error}");
        }
        assert!(Template::parse(b"a: \xff").is_err());
    }

    #[test]
    fn items_of_any_shape_are_described() {
        let odd = parse("Parameters: {A: 1, B: [x], C: {Type: [y], Default: {a: b}}, 7: ~}\nResources: {R: text}");
        let changes = TemplateChanges::between("x".into(), None, Some(odd)).unwrap();
        assert_eq!(changes.parameters.added.len(), 4);
        assert_eq!(changes.resources.added[0].kind, "no type");
    }
}
