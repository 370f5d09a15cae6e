//! Secrets in the log: found wherever they are and replaced by `***`.
//!
//! [`Masker`] works on a stream. What it writes is the same however the stream is cut into pieces: it holds back bytes
//! only while they could be the beginning of a secret, never more than the longest secret's length less one (and the
//! beginning of a line that might be a directive). Matches that overlap are replaced as one.
//!
//! A line `::add-mask word…` makes secrets of the words, from that line on; `::add-mask::text` makes one of the whole
//! text.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use memchr::{memchr, memmem};

/// What is written instead of a secret.
pub const MASK: &[u8] = b"***";
/// Shorter lines of a secret with several lines are not secrets of their own: `{` or `EOF` would blank the whole log.
pub const MINIMUM_LINE: usize = 4;
/// Longer secrets are found as they are and line by line, but not in encoded forms: a search tree has some 30 bytes for
/// each byte of each form.
pub const MAXIMUM_ENCODED: usize = 64 * 1024;
/// Bytes of all forms of all secrets together.
pub const MAXIMUM_TOTAL: usize = 4 * 1024 * 1024;
/// Bytes of a line that adds masks. The rest of a longer one is written as one mask.
pub const MAXIMUM_DIRECTIVE: usize = 64 * 1024;

const DIRECTIVE: &[u8] = b"::add-mask";

/// There are more secrets than could be searched for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the secrets and their encoded forms have more than {MAXIMUM_TOTAL} bytes; mark fewer or smaller values as secret"
)]
pub struct TooMany;

/// Everything that may not be seen.
#[derive(Default)]
pub struct Secrets {
    forms: BTreeSet<Arc<[u8]>>,
    /// Those that no automaton has yet.
    fresh: Vec<Arc<[u8]>>,
    total: usize,
}

// What it holds may not be printed.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("forms", &self.forms.len()).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Adds a value: as it is, its lines, with other line ends, and the forms in which programs like to write it. A value
    /// of blanks only is not a secret.
    ///
    /// # Errors
    /// [`TooMany`]; whoever goes on regardless would show secrets.
    pub fn add(&mut self, value: &[u8]) -> Result<(), TooMany> {
        let trimmed = value.trim_ascii();
        if trimmed.is_empty() {
            return Ok(());
        }
        let unix = replace(value, b"\r\n", b"\n");
        let with_returns = replace(&unix, b"\n", b"\r\n");
        let mut values = vec![value, trimmed, &unix, &with_returns, unix.trim_ascii()];
        // Of a word all are the same.
        values.dedup();
        for &value in &values {
            self.add_form(value)?;
        }
        if trimmed.contains(&b'\n') {
            self.add_lines(value)?;
        }
        if value.len() <= MAXIMUM_ENCODED {
            // `echo "$SECRET" | base64` has a line break in it.
            let with_break = [trimmed, b"\n"].concat();
            self.add_base64(&with_break)?;
            for value in values {
                self.add_encoded(value)?;
            }
        }
        Ok(())
    }

    /// Adds each line of at least [`MINIMUM_LINE`] bytes, without blanks around it.
    ///
    /// # Errors
    /// [`TooMany`], as with [`add`](Self::add).
    pub fn add_lines(&mut self, value: &[u8]) -> Result<(), TooMany> {
        for line in value.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.len() >= MINIMUM_LINE {
                self.add_form(line)?;
                if line.len() <= MAXIMUM_ENCODED {
                    self.add_encoded(line)?;
                }
            }
        }
        Ok(())
    }

    fn add_base64(&mut self, value: &[u8]) -> Result<(), TooMany> {
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            self.add_form(engine.encode(value).as_bytes())?;
        }
        // The command breaks lines after 76 characters.
        let wrapped = STANDARD.encode(value);
        if wrapped.len() > 76 {
            for line in wrapped.as_bytes().chunks(76).filter(|line| line.len() >= MINIMUM_LINE) {
                self.add_form(line)?;
            }
        }
        Ok(())
    }

    fn add_encoded(&mut self, value: &[u8]) -> Result<(), TooMany> {
        self.add_base64(value)?;
        // Encoders differ in what they leave as it is, in the case of digits, and in the blank.
        for left in ["-_.~", "-_.~!*'()", "-_.~/"] {
            for blank in ["%20", "+"] {
                for lower in [false, true] {
                    self.add_form(&url_encoded(value, left, blank, lower))?;
                }
            }
        }
        if let Ok(text) = str::from_utf8(value)
            && let Ok(json) = serde_json::to_string(text)
        {
            let quoted = &json[1..json.len() - 1];
            self.add_form(quoted.as_bytes())?;
            // As Go writes it, and so Terraform's outputs have it; in HCL; and as Python writes what is not ASCII.
            let mut go = quoted.to_owned();
            for (special, escaped) in [('&', "\\u0026"), ('<', "\\u003c"), ('>', "\\u003e")] {
                go = go.replace(special, escaped);
            }
            self.add_form(go.as_bytes())?;
            if quoted.contains("${") || quoted.contains("%{") {
                self.add_form(quoted.replace("${", "$${").replace("%{", "%%{").as_bytes())?;
            }
            if !quoted.is_ascii() {
                self.add_form(ascii_quoted(quoted).as_bytes())?;
            }
        }
        Ok(())
    }

    fn add_form(&mut self, form: &[u8]) -> Result<(), TooMany> {
        if form.trim_ascii().is_empty() || self.forms.contains(form) {
            return Ok(());
        }
        self.total += form.len();
        if self.total > MAXIMUM_TOTAL {
            return Err(TooMany);
        }
        let form: Arc<[u8]> = form.into();
        self.fresh.push(Arc::clone(&form));
        self.forms.insert(form);
        Ok(())
    }
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = after;
        } else {
            out.push(rest[0]);
            rest = &rest[1..];
        }
    }
    out
}

/// What is in quotes in JSON, with nothing in it but ASCII.
fn ascii_quoted(quoted: &str) -> String {
    let mut units = [0; 2];
    let mut out = String::new();
    for character in quoted.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            out.extend(character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

fn url_encoded(value: &[u8], left: &str, blank: &str, lower: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value {
        match byte {
            b' ' => out.extend_from_slice(blank.as_bytes()),
            _ if byte.is_ascii_alphanumeric() || left.as_bytes().contains(&byte) => out.push(byte),
            _ if lower => out.extend_from_slice(format!("%{byte:02x}").as_bytes()),
            _ => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    out
}

/// A state of the search: the longest end of what was read that begins a secret.
#[derive(Debug, Clone, Copy)]
struct Node {
    byte: u8,
    first_child: u32,
    sibling: u32,
    /// The state for the longest proper end of this one.
    fallback: u32,
    depth: u32,
    /// Length of the longest secret that ends here; 0 for none.
    matched: u32,
    /// How many of the last bytes may yet become part of a secret that is not complete.
    open: u32,
}

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;

/// Finds secrets at once, after Aho and Corasick. It is written out here because the hold-back needs to know
/// how deep a state is, which crates that do the same do not say.
#[derive(Debug)]
struct Automaton {
    nodes: Vec<Node>,
    /// Children of the root: most bytes are not the beginning of a secret.
    first: [u32; 256],
}

impl Automaton {
    fn new(forms: &[Arc<[u8]>]) -> Self {
        let root = Node { byte: 0, first_child: NONE, sibling: NONE, fallback: ROOT, depth: 0, matched: 0, open: 0 };
        let mut automaton = Self { nodes: vec![root], first: [ROOT; 256] };
        for form in forms {
            automaton.insert(form);
        }
        automaton.link();
        automaton
    }

    fn insert(&mut self, form: &[u8]) {
        let mut at = ROOT;
        for &byte in form {
            at = match self.child(at, byte) {
                Some(next) => next,
                None => {
                    // `MAXIMUM_TOTAL` is far below what 32 bits count.
                    let new = self.nodes.len() as u32;
                    let Node { first_child: sibling, depth, .. } = self.nodes[at as usize];
                    let depth = depth + 1;
                    self.nodes.push(Node {
                        byte,
                        first_child: NONE,
                        sibling,
                        fallback: ROOT,
                        depth,
                        matched: 0,
                        open: 0,
                    });
                    self.nodes[at as usize].first_child = new;
                    if at == ROOT {
                        self.first[usize::from(byte)] = new;
                    }
                    new
                }
            };
        }
        self.nodes[at as usize].matched = self.nodes[at as usize].depth;
    }

    /// Shallow states first, so that the state that one falls back to is complete.
    fn link(&mut self) {
        let mut level = vec![ROOT];
        while !level.is_empty() {
            let mut below = Vec::new();
            for &parent in &level {
                let mut child = self.nodes[parent as usize].first_child;
                while child != NONE {
                    let Node { byte, sibling, depth, first_child, matched, .. } = self.nodes[child as usize];
                    let fallback =
                        if parent == ROOT { ROOT } else { self.step(self.nodes[parent as usize].fallback, byte) };
                    let Node { matched: shorter, open, .. } = self.nodes[fallback as usize];
                    let node = &mut self.nodes[child as usize];
                    node.fallback = fallback;
                    if matched == 0 {
                        node.matched = shorter;
                    }
                    // A secret that is no part of a longer one is complete: nothing has to be waited for.
                    node.open = if first_child == NONE { open } else { depth };
                    below.push(child);
                    child = sibling;
                }
            }
            level = below;
        }
    }

    fn child(&self, of: u32, byte: u8) -> Option<u32> {
        if of == ROOT {
            let child = self.first[usize::from(byte)];
            return (child != ROOT).then_some(child);
        }
        let mut child = self.nodes[of as usize].first_child;
        while child != NONE {
            let node = &self.nodes[child as usize];
            if node.byte == byte {
                return Some(child);
            }
            child = node.sibling;
        }
        None
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if let Some(next) = self.child(state, byte) {
                return next;
            }
            if state == ROOT {
                return ROOT;
            }
            state = self.nodes[state as usize].fallback;
        }
    }
}

/// An automaton for some of the secrets, and its state.
struct Search {
    forms: Vec<Arc<[u8]>>,
    /// Bytes of the forms: what it takes to build it.
    size: usize,
    automaton: Automaton,
    state: u32,
}

impl Search {
    fn new(forms: Vec<Arc<[u8]>>) -> Self {
        let size = forms.iter().map(|form| form.len()).sum();
        Self { automaton: Automaton::new(&forms), forms, size, state: ROOT }
    }
}

/// Bytes that are looked at to see whether a secret can begin somewhere.
const WINDOW: usize = 4;
/// Bits of the table of windows. Some hundred secrets set one of two hundred, and it stays in a processor's first cache.
const TABLE_BITS: u32 = 17;

/// Says where no secret begins, without a look at any of them: it may be wrong only by saying that one might.
struct Beginnings {
    /// For a number made of the first bytes of a secret, whether there is one with it.
    windows: Box<[u64; 1 << (TABLE_BITS - 6)]>,
    /// The first bytes of secrets that are shorter than a window.
    short: [bool; 256],
    has_short: bool,
}

impl Default for Beginnings {
    fn default() -> Self {
        Self { windows: Box::new([0; 1 << (TABLE_BITS - 6)]), short: [false; 256], has_short: false }
    }
}

impl Beginnings {
    fn add(&mut self, form: &[u8]) {
        match form.first_chunk() {
            Some(window) => {
                let number = Self::number(*window);
                self.windows[number >> 6] |= 1 << (number & 63);
            }
            // No form is empty.
            None => {
                self.short[usize::from(form[0])] = true;
                self.has_short = true;
            }
        }
    }

    /// Multiplied with what is next to 2³² divided by the golden ratio, the upper bits depend on all of the window.
    #[inline]
    fn number(window: [u8; WINDOW]) -> usize {
        (u32::from_le_bytes(window).wrapping_mul(0x9e37_79b1) >> (u32::BITS - TABLE_BITS)) as usize
    }

    #[inline]
    fn has(&self, window: [u8; WINDOW]) -> bool {
        let number = Self::number(window);
        self.windows[number >> 6] >> (number & 63) & 1 != 0
    }

    /// Whether a secret may begin at this place. Where not all of a window is there, it may.
    fn may_be_at(&self, bytes: &[u8], at: usize) -> bool {
        let window = bytes.get(at..).and_then(|rest| rest.first_chunk());
        window.is_none_or(|window| self.has(*window) || self.short[usize::from(window[0])])
    }

    /// The first place from this one on where a secret may begin; there is at least a byte after it.
    fn next(&self, bytes: &[u8], from: usize) -> usize {
        let rest = &bytes[from..];
        // Two loops: a secret of three letters is rare, and what looks for it costs half as much again.
        let mut windows = rest.array_windows();
        let found = if self.has_short {
            windows.position(|&window: &[u8; WINDOW]| self.has(window) || self.short[usize::from(window[0])])
        } else {
            windows.position(|&window: &[u8; WINDOW]| self.has(window))
        };
        from + found.unwrap_or_else(|| (rest.len() + 1).saturating_sub(WINDOW))
    }
}

/// Finds all of the secrets, with several automata side by side. A log can add a mask with each of its lines: what is new gets an
/// automaton of its own, and is united with those before it as soon as they are not much larger. So each secret is built into
/// an automaton as often as the total can be halved, and there are no more automata than that.
///
/// The automata are only asked where a secret may begin: nearly all of a log is passed over before.
#[derive(Default)]
struct Searches {
    parts: Vec<Search>,
    beginnings: Beginnings,
}

impl Searches {
    /// From the beginning of a text on, also for these.
    fn add(&mut self, mut forms: Vec<Arc<[u8]>>) {
        forms.iter().for_each(|form| self.beginnings.add(form));
        if !forms.is_empty() {
            let mut size: usize = forms.iter().map(|form| form.len()).sum();
            while let Some(last) = self.parts.pop_if(|last| last.size / 2 <= size) {
                size += last.size;
                forms.extend(last.forms);
            }
            self.parts.push(Search::new(forms));
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.parts.iter_mut().for_each(|search| search.state = ROOT);
    }

    /// Takes bytes, and tells of each that ends a secret: its place, and the length of the longest secret that ends there.
    fn run(&mut self, bytes: &[u8], mut found: impl FnMut(usize, u32)) {
        let mut at = 0;
        while at < bytes.len() {
            if self.is_idle(bytes, at) {
                self.restart();
                at = self.beginnings.next(bytes, at);
            }
            let longest = self.step(bytes[at]);
            if longest > 0 {
                found(at, longest);
            }
            at += 1;
        }
    }

    /// Whether nothing that began before this place becomes a secret. The automata alone would hardly ever say so: most letters
    /// are the beginning of one.
    fn is_idle(&self, bytes: &[u8], at: usize) -> bool {
        let depth = self.parts.iter().map(|search| search.automaton.nodes[search.state as usize].depth).max();
        match at.checked_sub(depth.unwrap_or(0) as usize) {
            // What is longer is more than a window says, and what began in the bytes before these is not at hand.
            Some(begin) if at - begin < WINDOW => !(begin..at).any(|begin| self.beginnings.may_be_at(bytes, begin)),
            _ => false,
        }
    }

    /// Takes a byte, and gives the length of the longest secret that ends with it; 0 for none.
    fn step(&mut self, byte: u8) -> u32 {
        let mut longest = 0;
        for Search { automaton, state, .. } in &mut self.parts {
            *state = automaton.step(*state, byte);
            longest = longest.max(automaton.nodes[*state as usize].matched);
        }
        longest
    }

    /// How many of the last bytes may yet become part of a secret that is not complete.
    fn open(&self) -> u32 {
        self.parts.iter().map(|search| search.automaton.nodes[search.state as usize].open).max().unwrap_or(0)
    }
}

/// Where in a line the stream is.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// At its beginning, with bytes that begin a directive.
    Beginning(Vec<u8>),
    /// In one that is no directive.
    Ordinary,
    /// In the rest of a directive that is too long.
    Swallowed,
}

/// Where the first line after the present one begins that may be a directive; the end, if none does. A line break at the end
/// needs no place of its own: what follows it comes with the next bytes, at the beginning of a line.
fn next_directive(bytes: &[u8]) -> usize {
    memmem::find(bytes, b"\n:").map_or(bytes.len(), |at| at + 1)
}

/// Replaces secrets in a stream.
pub struct Masker {
    secrets: Secrets,
    searches: Searches,
    /// Bytes from `base` on, which are not decided.
    held: Vec<u8>,
    base: u64,
    /// Matches in or after what is held, in order, none overlapping another.
    matches: Vec<(u64, u64)>,
    /// The end of the mask that was written last: what comes before it is part of it.
    masked_until: u64,
    line: Line,
    added: Vec<Vec<u8>>,
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masker").field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl Masker {
    /// For these secrets.
    pub fn new(mut secrets: Secrets) -> Self {
        let mut searches = Searches::default();
        searches.add(std::mem::take(&mut secrets.fresh));
        Self {
            secrets,
            searches,
            held: Vec::new(),
            base: 0,
            matches: Vec::new(),
            masked_until: 0,
            line: Line::Beginning(Vec::new()),
            added: Vec::new(),
        }
    }

    /// What the log itself added so far, for a later stage of the run.
    pub fn added(&self) -> &[Vec<u8>] {
        &self.added
    }

    /// Adds a secret from here on.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn add(&mut self, value: &[u8]) -> Result<(), TooMany> {
        self.secrets.add(value)?;
        self.take_fresh();
        Ok(())
    }

    /// Searches for what was added, too.
    fn take_fresh(&mut self) {
        if self.secrets.fresh.is_empty() {
            return;
        }
        self.searches.add(std::mem::take(&mut self.secrets.fresh));
        // What is held may be the beginning of the new one, and no match of an old one began before it.
        let held = std::mem::take(&mut self.held);
        self.matches.clear();
        self.search(&held);
    }

    /// Takes the next bytes and appends to `out` what is decided.
    ///
    /// # Errors
    /// [`TooMany`], when a directive added too much.
    pub fn write(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), TooMany> {
        while !bytes.is_empty() {
            let end = || memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
            match &mut self.line {
                Line::Ordinary => {
                    let (part, rest) = bytes.split_at(next_directive(bytes));
                    bytes = rest;
                    self.ordinary(part, out);
                }
                // Most lines show with their first byte that they are no directive.
                Line::Beginning(begun) if begun.is_empty() && bytes[0] != DIRECTIVE[0] => self.line = Line::Ordinary,
                Line::Swallowed => {
                    let end = end();
                    if bytes[end - 1] == b'\n' {
                        self.line = Line::Ordinary;
                        self.ordinary(b"\n", out);
                    }
                    bytes = &bytes[end..];
                }
                Line::Beginning(begun) => {
                    let room = if begun.len() < DIRECTIVE.len() { DIRECTIVE.len() } else { MAXIMUM_DIRECTIVE };
                    let (part, rest) = bytes.split_at(end().min(room - begun.len()));
                    bytes = rest;
                    begun.extend_from_slice(part);
                    let head = &begun[..begun.len().min(DIRECTIVE.len())];
                    if !DIRECTIVE.starts_with(head) {
                        let begun = std::mem::take(begun);
                        self.line = Line::Ordinary;
                        self.ordinary(&begun, out);
                    } else if begun.ends_with(b"\n") || begun.len() == MAXIMUM_DIRECTIVE {
                        let begun = std::mem::take(begun);
                        self.directive(&begun, out)?;
                    }
                }
            }
        }
        self.emit(self.decided(), out);
        Ok(())
    }

    /// The end: what is held is no secret.
    ///
    /// # Errors
    /// [`TooMany`], when a directive without a line break at its end added too much.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), TooMany> {
        if let Line::Beginning(begun) = &mut self.line {
            let begun = std::mem::take(begun);
            if begun.starts_with(DIRECTIVE) {
                self.directive(&begun, out)?;
            } else {
                self.search(&begun);
            }
        }
        self.line = Line::Beginning(Vec::new());
        self.emit(self.position(), out);
        self.searches.restart();
        Ok(())
    }

    fn ordinary(&mut self, part: &[u8], out: &mut Vec<u8>) {
        if part.ends_with(b"\n") {
            self.line = Line::Beginning(Vec::new());
        }
        self.search(part);
        self.emit(self.decided(), out);
    }

    fn directive(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), TooMany> {
        let text = line[DIRECTIVE.len()..].trim_ascii_end();
        let words: Vec<&[u8]> = match (text.strip_prefix(b"::"), text.first()) {
            (Some(text), _) => vec![text.trim_ascii()],
            (None, Some(first)) if first.is_ascii_whitespace() => text.split(u8::is_ascii_whitespace).collect(),
            // `::add-masks`, for one, is nothing that we know.
            (None, _) => Vec::new(),
        };
        // The last word of a line that is too long is not known to its end, so it is not shown and not a mask.
        let whole = line.ends_with(b"\n") || line.len() < MAXIMUM_DIRECTIVE;
        for word in words.into_iter().filter(|word| !word.is_empty()) {
            let before = self.secrets.forms.len();
            self.secrets.add(word)?;
            // A job that says the same again and again makes nothing of it.
            if self.secrets.forms.len() > before {
                self.added.push(word.to_vec());
            }
        }
        self.take_fresh();
        if whole {
            self.line = Line::Ordinary;
            self.ordinary(line, out);
        } else {
            self.ordinary(DIRECTIVE, out);
            self.emit(self.position(), out);
            self.searches.restart();
            out.push(b' ');
            out.extend_from_slice(MASK);
            self.line = Line::Swallowed;
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.base + self.held.len() as u64
    }

    /// No match that is yet to come begins before this.
    fn decided(&self) -> u64 {
        self.position() - u64::from(self.searches.open())
    }

    fn search(&mut self, bytes: &[u8]) {
        let start = self.position();
        let matches = &mut self.matches;
        self.searches.run(bytes, |at, matched| {
            let end = start + at as u64 + 1;
            let mut begin = end - u64::from(matched);
            while let Some((earlier, _)) = matches.pop_if(|(_, earlier_end)| *earlier_end > begin) {
                begin = begin.min(earlier);
            }
            matches.push((begin, end));
        });
        self.held.extend_from_slice(bytes);
    }

    /// Writes what comes before `until`.
    fn emit(&mut self, until: u64, out: &mut Vec<u8>) {
        let base = self.base;
        let plain = |held: &[u8], from: u64, to: u64, out: &mut Vec<u8>| {
            out.extend_from_slice(&held[(from - base) as usize..(to - base) as usize]);
        };
        let mut at = base.max(self.masked_until).min(until.max(base));
        let mut done = 0;
        for &(begin, end) in self.matches.iter().take_while(|(begin, _)| *begin < until) {
            if begin >= self.masked_until {
                plain(&self.held, at, begin, out);
                out.extend_from_slice(MASK);
            }
            self.masked_until = self.masked_until.max(end);
            at = self.masked_until.min(until);
            done += 1;
        }
        self.matches.drain(..done);
        if at < until {
            plain(&self.held, at, until, out);
        }
        self.held.drain(..(until - base) as usize);
        self.base = until;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// What the masker does, done with everything at hand and without thinking.
    fn masked_as_a_whole(forms: &BTreeSet<Arc<[u8]>>, text: &[u8]) -> Vec<u8> {
        let mut matches: Vec<(usize, usize)> = Vec::new();
        for form in forms {
            let found = text.windows(form.len()).enumerate().filter(|(_, window)| *window == &form[..]);
            matches.extend(found.map(|(at, _)| (at, at + form.len())));
        }
        matches.sort_unstable();
        let mut out = Vec::new();
        let mut at = 0;
        for (begin, end) in matches {
            if begin >= at {
                out.extend_from_slice(&text[at..begin]);
                out.extend_from_slice(MASK);
            }
            at = at.max(end);
        }
        out.extend_from_slice(&text[at..]);
        out
    }

    fn masked<'a>(secrets: Secrets, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut masker = Masker::new(secrets);
        let mut out = Vec::new();
        let longest = masker.secrets.forms.iter().map(|form| form.len()).max().unwrap_or(1);
        for part in parts {
            masker.write(part, &mut out).unwrap();
            assert!(masker.held.len() < longest, "{} of {longest} bytes held back", masker.held.len());
        }
        masker.flush(&mut out).unwrap();
        out
    }

    fn secrets<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Secrets {
        let mut secrets = Secrets::default();
        values.into_iter().for_each(|value| secrets.add(value).unwrap());
        secrets
    }

    /// The same numbers each time.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as usize) % limit
        }

        fn text(&mut self, alphabet: &[u8], length: usize) -> Vec<u8> {
            (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
        }
    }

    /// Overlapping, repeated, with line ends of both kinds, and beginnings of each other: a small alphabet makes all of it.
    #[test]
    fn secrets_are_masked_as_other_programs_write_them() {
        let secrets = || {
            let mut secrets = Secrets::default();
            for secret in ["p&ss<w>rd", "a${b}%{c}\"", "schlüssel𝄞"] {
                secrets.add(secret.as_bytes()).unwrap();
            }
            secrets
        };
        for written in [r"p\u0026ss\u003cw\u003erd", r#"a$${b}%%{c}\""#, r"schl\u00fcssel\ud834\udd1e"] {
            let (mut masker, mut out) = (Masker::new(secrets()), Vec::new());
            masker.write(written.as_bytes(), &mut out).unwrap();
            masker.flush(&mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), "***", "{written}");
        }
    }

    #[test]
    fn every_split_gives_what_masking_the_whole_gives() {
        let mut numbers = Numbers(7);
        for case in 0..200 {
            let alphabet: &[u8] = if case % 2 == 0 { b"ab" } else { b"abc\r\n" };
            let exact = case % 3 != 0;
            let make = |values: &[Vec<u8>]| {
                let mut secrets = Secrets::default();
                for value in values {
                    if exact { secrets.add_form(value) } else { secrets.add(value) }.unwrap();
                }
                secrets
            };
            let count = 1 + numbers.below(4);
            let mut values = Vec::new();
            for _ in 0..count {
                let length = 1 + numbers.below(6);
                values.push(numbers.text(alphabet, length));
            }
            // One that another one begins with.
            let prefix = values[0][..values[0].len().div_ceil(2)].to_vec();
            values.push(prefix);
            let mut text = Vec::new();
            while text.len() < 24 {
                let length = numbers.below(4);
                text.extend(numbers.text(alphabet, length));
                text.extend_from_slice(&values[numbers.below(values.len())]);
            }
            let expected = masked_as_a_whole(&make(&values).forms, &text);
            for at in 0..=text.len() {
                for to in at..=text.len() {
                    let parts = [&text[..at], &text[at..to], &text[to..]];
                    assert_eq!(masked(make(&values), parts), expected, "{values:?} in {text:?}, cut at {at} and {to}");
                }
            }
            assert_eq!(masked(make(&values), text.chunks(1)), expected, "{values:?} in {text:?}, byte by byte");
        }
    }

    #[test]
    fn secrets_are_found_in_every_form() {
        let value = b"first l\xc3\xadne \"of/it+\n  second=line?&\nxyz\n";
        let text = str::from_utf8(value).unwrap();
        let json = serde_json::to_string(text).unwrap();
        let with_crlf = text.replace('\n', "\r\n");
        let long = "long ".repeat(40);
        let wrapped = STANDARD.encode(&long);
        for (what, form) in [
            ("whole", text),
            ("with other line ends", &with_crlf),
            ("a line", "second=line?&"),
            ("base64", &STANDARD.encode(value)),
            ("base64 without padding", &STANDARD_NO_PAD.encode(value)),
            ("base64 for addresses", &URL_SAFE_NO_PAD.encode(value)),
            ("base64 of a line", &STANDARD.encode("second=line?&")),
            ("base64 of what echo writes", &STANDARD.encode("second=line?&\n")),
            ("in an address", "second%3Dline%3F%26"),
            ("in an address, lower case", "second%3dline%3f%26"),
            ("in JSON", &json[1..json.len() - 1]),
            ("a line of wrapped base64", &wrapped[76..152]),
        ] {
            let shown =
                masked(secrets([&value[..], long.as_bytes(), b"second=line?&"]), [format!("<{form}>").as_bytes()]);
            assert_eq!(String::from_utf8(shown).unwrap(), "<***>", "{what}");
        }
        // Short lines of a longer secret occur everywhere.
        assert_eq!(masked(secrets([&value[..]]), [&b"xyz"[..]]), b"xyz");
        assert_eq!(masked(secrets([&b" \n"[..], b""]), [&b"a \n b"[..]]), b"a \n b");
    }

    #[test]
    fn only_what_may_begin_a_secret_is_held_back() {
        let mut masker = Masker::new(secrets([&b"hunter2!"[..]]));
        let mut out = Vec::new();
        masker.write(b"Password: ", &mut out).unwrap();
        assert_eq!(out, b"Password: ");
        masker.write(b"hunter2", &mut out).unwrap();
        assert_eq!(out, b"Password: ");
        masker.write(b"!", &mut out).unwrap();
        assert_eq!(out, b"Password: ***");
        masker.write(b"hunter", &mut out).unwrap();
        masker.flush(&mut out).unwrap();
        assert_eq!(out, b"Password: ***hunter");
    }

    #[test]
    fn the_log_adds_masks_from_then_on() {
        let text = b"word one\n::add-mask word  other\r\nword other\nX\n::add-mask::two words\ntwo words, two\n::add-masks z\n::x\n\
                     ::add-mask last";
        let expected = b"word one\n::add-mask ***  ***\r\n*** ***\nX\n::add-mask::***\n***, two\n::add-masks z\n::x\n\
                         ::add-mask ***";
        for at in 0..=text.len() {
            for to in at..=text.len() {
                let mut masker = Masker::new(Secrets::default());
                let mut out = Vec::new();
                for part in [&text[..at], &text[at..to], &text[to..]] {
                    masker.write(part, &mut out).unwrap();
                }
                masker.flush(&mut out).unwrap();
                assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(expected), "cut at {at} and {to}");
                assert_eq!(masker.added(), [&b"word"[..], b"other", b"two words", b"last"]);
            }
        }
    }

    /// One automaton for all of them, built anew with each line, takes minutes for this.
    #[test]
    fn ten_thousand_masks_do_not_hold_up_the_log() {
        let mut masker = Masker::new(secrets([&b"given from the beginning"[..]]));
        let mut out = Vec::new();
        let mut numbers = Numbers(3);
        let names: Vec<_> = (0..10_000).map(|_| numbers.text(b"abcdefghijklmnop", 12)).collect();
        let begun = Instant::now();
        for name in &names {
            out.clear();
            let name = str::from_utf8(name).unwrap();
            masker.write(format!("{name}\n::add-mask {name}\n<{name}>\n").as_bytes(), &mut out).unwrap();
            assert_eq!(String::from_utf8_lossy(&out), format!("{name}\n::add-mask ***\n<***>\n"));
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        }
        assert_eq!(masker.added().len(), names.len());
        out.clear();
        for name in &names[..1000] {
            masker.write(&[&name[..], b" given from the beginning\n"].concat(), &mut out).unwrap();
        }
        assert_eq!(String::from_utf8_lossy(&out), "*** ***\n".repeat(1000));
        assert!(masker.searches.parts.len() < 24, "{} automata", masker.searches.parts.len());
    }

    /// In a text of which most is passed over: secrets that begin alike, that are shorter than what is looked at, and that are
    /// cut wherever it is.
    #[test]
    fn what_is_passed_over_has_no_secret_in_it() {
        let mut numbers = Numbers(5);
        for case in 0..300 {
            let alphabet: &[u8] = if case % 2 == 0 { b"abcdefghijklmnop\n:" } else { b"abc\n" };
            let mut values: Vec<Vec<u8>> = Vec::new();
            for index in 0..1 + numbers.below(8) {
                let shortest = if case % 3 == 0 { 1 } else { WINDOW };
                let mut value = match values.last() {
                    Some(last) if index % 2 == 1 => last[..last.len().min(5)].to_vec(),
                    _ => Vec::new(),
                };
                let length = shortest + numbers.below(9);
                value.extend(numbers.text(alphabet, length));
                values.push(value);
            }
            let mut text = Vec::new();
            while text.len() < 500 {
                let value = &values[numbers.below(values.len())];
                // Also what is no secret in the end.
                text.extend_from_slice(&value[..numbers.below(value.len() + 1)]);
                text.extend_from_slice(value);
                let length = numbers.below(60);
                text.extend(numbers.text(alphabet, length));
            }
            let make = || {
                let mut secrets = Secrets::default();
                values.iter().for_each(|value| secrets.add_form(value).unwrap());
                secrets
            };
            let expected = masked_as_a_whole(&make().forms, &text);
            for _ in 0..20 {
                let (mut parts, mut rest) = (Vec::new(), &text[..]);
                while !rest.is_empty() {
                    let (part, after) = rest.split_at((1 + numbers.below(100)).min(rest.len()));
                    parts.push(part);
                    rest = after;
                }
                let shown = String::from_utf8(masked(make(), parts.iter().copied())).unwrap();
                assert_eq!(shown, String::from_utf8_lossy(&expected), "{values:?} in {parts:?}");
            }
        }
    }

    /// However they are spread over automata.
    #[test]
    fn secrets_that_are_added_one_by_one_are_masked_as_all_at_once() {
        let mut numbers = Numbers(11);
        for _ in 0..200 {
            let mut values = Vec::new();
            for _ in 0..12 {
                let length = 1 + numbers.below(9);
                values.push(numbers.text(b"ab", length));
            }
            let text = numbers.text(b"abc", 60);
            let mut whole = Secrets::default();
            let mut masker = Masker::new(Secrets::default());
            for value in &values {
                whole.add_form(value).unwrap();
                masker.secrets.add_form(value).unwrap();
                masker.take_fresh();
            }
            let mut out = Vec::new();
            for byte in text.chunks(1) {
                masker.write(byte, &mut out).unwrap();
            }
            masker.flush(&mut out).unwrap();
            let expected = masked_as_a_whole(&whole.forms, &text);
            assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected), "{values:?} in {text:?}");
        }
    }

    #[test]
    fn a_directive_without_end_is_not_shown() {
        let mut masker = Masker::new(Secrets::default());
        let mut out = Vec::new();
        masker.write(b"::add-mask ", &mut out).unwrap();
        for _ in 0..20 {
            masker.write(&[b's'; 10_000], &mut out).unwrap();
        }
        masker.write(b"\nnext\n", &mut out).unwrap();
        assert_eq!(String::from_utf8_lossy(&out), "::add-mask ***\nnext\n");
    }

    #[test]
    fn too_many_secrets_are_an_error() {
        let value: Vec<u8> = (0..MAXIMUM_TOTAL).map(|at| b'a' + (at % 23) as u8).collect();
        let mut secrets = Secrets::default();
        assert_eq!(secrets.add(&value).and_then(|()| secrets.add(&value[1..])), Err(TooMany));
    }
}
