//! YAML as a tree of nodes that know where they stand.
//!
//! The tree is made from the parser's events and not by its loader, because a loader resolves what has to be judged:
//! duplicate keys, aliases, and whether `1.0` is a number. Aliases, tags and several documents have no place in a
//! configuration of this size; without aliases there is no YAML bomb either.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::Problem;

/// Mappings and lists inside each other. The configuration needs three.
const MAX_DEPTH: usize = 16;
/// Nodes of the tree: ten times what a release with all the files it may have needs.
const MAX_NODES: usize = 100_000;

/// A place in the file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Mark {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    fn of(span: Span) -> Self {
        Self { line: span.start.line().max(1), column: span.start.col() + 1 }
    }
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Value {
    /// A word, a number, a quoted text.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the file, duplicate keys included.
    Mapping(Vec<(Node, Node)>),
    /// Something that was reported as a problem already.
    Unusable,
}

/// A scalar as it is written.
#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    quoted: bool,
}

/// The type that a scalar has by the core schema of YAML 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Nothing,
    Boolean,
    Number,
    Text,
}

impl Scalar {
    pub(super) fn kind(&self) -> Type {
        let text = self.text.as_str();
        let digits = text.trim_start_matches(['+', '-']);
        match text {
            _ if self.quoted => Type::Text,
            "" | "~" | "null" | "Null" | "NULL" => Type::Nothing,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Type::Boolean,
            _ if digits.starts_with("0x") || digits.starts_with("0o") => Type::Number,
            _ if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && text.parse::<f64>().is_ok() => {
                Type::Number
            }
            _ => Type::Text,
        }
    }
}

impl Node {
    /// What the node is, for a message that expected something else.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Unusable => "something unusable".to_owned(),
            Value::Scalar(scalar) => match scalar.kind() {
                Type::Nothing => "nothing".to_owned(),
                Type::Boolean => format!("the truth value {}", scalar.text),
                Type::Number => format!("the number {}", scalar.text),
                Type::Text => format!("the text {}", quote(&scalar.text)),
            },
        }
    }

    /// Whether there is nothing, as after `images:` when every item is commented out.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.kind() == Type::Nothing)
    }
}

/// A text from the file, fit for a message.
pub(super) fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The root node, or `None` for a file with nothing but comments. Problems that leave a tree behind are added to
/// `problems`; after one that does not, the result is an error.
pub(super) fn parse(text: &str, problems: &mut Vec<Problem>) -> Result<Option<Node>, Problem> {
    let mut tree = Tree { problems, open: Vec::new(), root: None, nodes: 0 };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let marker = error.marker();
            let mark = Mark { line: marker.line().max(1), column: marker.col() + 1 };
            Problem::new(mark, format!("this is not YAML: {}", error.info()))
        })?;
        tree.event(event, Mark::of(span))?;
    }
    Ok(tree.root)
}

struct Tree<'a> {
    problems: &'a mut Vec<Problem>,
    open: Vec<Node>,
    root: Option<Node>,
    nodes: usize,
}

impl Tree<'_> {
    fn event(&mut self, event: Event<'_>, mark: Mark) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES || self.open.len() > MAX_DEPTH {
            return Err(Problem::new(mark, "this is too large or too deep for a release configuration".to_owned()));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.check(mark, anchor, tag.is_some());
                let quoted = style != ScalarStyle::Plain;
                self.close(Node { mark, value: Value::Scalar(Scalar { text: text.into_owned(), quoted }) });
            }
            Event::SequenceStart(anchor, tag) => {
                self.check(mark, anchor, tag.is_some());
                self.open.push(Node { mark, value: Value::List(Vec::new()) });
            }
            Event::MappingStart(anchor, tag) => {
                self.check(mark, anchor, tag.is_some());
                self.open.push(Node { mark, value: Value::Mapping(Vec::new()) });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(node) = self.open.pop() {
                    self.close(node);
                }
            }
            Event::Alias(_) => {
                self.problem(mark, "aliases are not supported here; write the value out");
                self.close(Node { mark, value: Value::Unusable });
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                return Err(Problem::new(mark, "a second document starts here; the file holds one".to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Hands a finished node to the one that it is in.
    fn close(&mut self, node: Node) {
        match self.open.last_mut().map(|parent| &mut parent.value) {
            None => self.root = Some(node),
            Some(Value::List(items)) => items.push(node),
            Some(Value::Mapping(pairs)) => match pairs.last_mut() {
                // A key without a value waits as a pair with an unusable value that has no place.
                Some((_, value)) if value.mark == NOWHERE => *value = node,
                _ => pairs.push((node, Node { mark: NOWHERE, value: Value::Unusable })),
            },
            Some(Value::Scalar(_) | Value::Unusable) => {}
        }
    }

    fn check(&mut self, mark: Mark, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.problem(mark, "anchors (`&name`) are not supported here");
        }
        if tagged {
            self.problem(mark, "tags (`!name`) are not supported here; write the plain value");
        }
    }

    fn problem(&mut self, mark: Mark, message: &str) {
        self.problems.push(Problem::new(mark, message.to_owned()));
    }
}

const NOWHERE: Mark = Mark { line: 0, column: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Type {
        let mut problems = Vec::new();
        let node = parse(text, &mut problems).unwrap().unwrap();
        match node.value {
            Value::Scalar(scalar) => scalar.kind(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scalars_have_the_types_of_the_core_schema() {
        for (text, expected) in [
            ("~", Type::Nothing),
            ("null", Type::Nothing),
            ("''", Type::Text),
            ("true", Type::Boolean),
            ("yes", Type::Text),
            ("'true'", Type::Text),
            ("12", Type::Number),
            ("-1", Type::Number),
            ("1.0", Type::Number),
            ("1e3", Type::Number),
            ("0x1f", Type::Number),
            ("'12'", Type::Text),
            ("1.2.3", Type::Text),
            ("v1", Type::Text),
            ("inf", Type::Text),
            ("...x", Type::Text),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn nodes_know_their_places() {
        let mut problems = Vec::new();
        let root = parse("# comment\na: 1\nb:\n  - x\n  - {c: d}\n", &mut problems).unwrap().unwrap();
        let Value::Mapping(pairs) = root.value else { panic!() };
        let mark = |line, column| Mark { line, column };
        assert_eq!((pairs[0].0.mark, pairs[0].1.mark), (mark(2, 1), mark(2, 4)));
        let Value::List(items) = &pairs[1].1.value else { panic!() };
        assert_eq!((items[0].mark, items[1].mark), (mark(4, 5), mark(5, 5)));
    }

    #[test]
    fn hostile_files_end_early() {
        for text in [
            "[".repeat(1_000_000),
            "- ".repeat(500_000),
            "{a: ".repeat(250_000),
            "? ".repeat(500_000),
            "- x\n".repeat(250_000),
            "a".repeat(1_000_000),
            "&a [*a,*a,*a]".to_owned(),
            "a: &x\n".to_owned() + &"  - *x\n".repeat(100_000),
        ] {
            let mut problems = Vec::new();
            let started = std::time::Instant::now();
            let _ = parse(&text, &mut problems);
            assert!(started.elapsed().as_secs() < 5, "{}", &text[..10]);
        }
    }

    #[test]
    fn damaged_files_never_panic() {
        let good = "a: &x [1, 'b', \"c\\n\"]\nd: |\n  text\ne: {f: *x, ? g : h}\n--- !t\n...\n%YAML 1.2\n";
        for position in 0..good.len() {
            for byte in [b' ', b'\n', b'\t', b'{', b'[', b':', b'-', b'*', b'&', b'"', b'\'', b'#', b'%', b'|', b'?'] {
                let mut damaged = good.as_bytes().to_vec();
                damaged[position] = byte;
                let _ = parse(std::str::from_utf8(&damaged).unwrap(), &mut Vec::new());
                let _ = parse(std::str::from_utf8(&damaged[..position]).unwrap(), &mut Vec::new());
            }
        }
    }
}
