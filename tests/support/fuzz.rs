//! What is done with bytes from outside, one function for each parser: none of them may panic, take long, or break what it
//! promises about its output. `cargo xtask fuzz` looks for input that makes them; the tests do the inputs that were found.

mod socket;

use std::fs;
use std::io::{Cursor, Read as _};
use std::path::Path;
use std::time::SystemTime;

use bundle_core::build_note::Elf;
use bundle_core::install_config::{self, Config, Json};
use bundle_core::manifest::Manifest;
use bundle_core::{gzip, image, inspect, sums};
use launcher_wire::mqtt::{Envelope, FromWorker, ToWorker};
use launcher_wire::signature::{self, Headers};
use launcher_wire::token::Token;
use prost::Message as _;
use spacelift_launcher::policy::Policy;
use spacelift_launcher::registry_credentials::{Configured, Reference};
use spacelift_launcher::worker_server::{Heard, MAXIMUM_LINE};
use spacelift_worker::environment::Environment;
use spacelift_worker::masking::{Masker, Secrets};
use spacelift_worker::protocol::{self, MAXIMUM_PART, Variable};
use spacelift_worker::{archive, runtime_config};

/// A name and what is done.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 20] = [
    ("manifest", read_manifest),
    ("sums", read_sums),
    ("gzip", inflate),
    ("image", read_image),
    ("release", look_at_release),
    ("program", read_program),
    ("token", read_token),
    ("message", read_message),
    ("request", read_request),
    ("worker", hear_worker),
    ("reference", read_reference),
    ("docker_config", read_docker_config),
    ("policy", compile_policy),
    ("runtime_config", read_configuration),
    ("environment", expand),
    ("masking", mask),
    ("directive", mask_added),
    ("source", unpack),
    ("install_config", read_install_config),
    ("socket", socket::hear),
];

/// More than this is longer than finding anything takes.
const MAXIMUM_OUTPUT: u64 = 4 * 1024 * 1024;

fn read_manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::from_bytes(bytes) {
        let written = manifest.to_bytes().expect("what was read can be written");
        assert_eq!(Manifest::from_bytes(&written).expect("what was written can be read"), manifest);
    }
}

fn read_sums(bytes: &[u8]) {
    if let Ok(digest) = sums::find(bytes, "launcher") {
        // Stock tools find the same line.
        let line = sums::line(digest, "launcher");
        assert!(String::from_utf8_lossy(bytes).contains(line.trim_end()), "{line}");
    }
}

fn inflate(bytes: &[u8]) {
    let mut out = Vec::new();
    let _ = gzip::Reader::new(Cursor::new(bytes), 1).take(MAXIMUM_OUTPUT).read_to_end(&mut out);
}

fn read_image(bytes: &[u8]) {
    let _ = image::summarize(bytes);
}

fn look_at_release(bytes: &[u8]) {
    let directory = scratch();
    let path = directory.path().join("release.tar.gz");
    fs::write(&path, bytes).expect("there is room");
    let _ = inspect::inspect(&path, &[], SystemTime::UNIX_EPOCH);
}

fn read_program(bytes: &[u8]) {
    let _ = Elf::parse(bytes);
}

fn read_token(bytes: &[u8]) {
    use base64::Engine as _;
    // What is in the base64: guessing base64 finds nothing.
    let _ = Token::from_variable(&base64::prelude::BASE64_STANDARD.encode(bytes));
    let _ = Token::from_variable(&String::from_utf8_lossy(bytes));
}

fn read_message(bytes: &[u8]) {
    if let Ok(message) = Envelope::<ToWorker>::decode(bytes) {
        let _ = message.encode();
    }
    if let Ok(message) = Envelope::<FromWorker>::decode(bytes) {
        let _ = message.encode();
    }
}

fn read_request(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n').map(str::to_owned);
    let mut line = || lines.next().unwrap_or_default();
    let headers = Headers { content_digest: line(), worker: line(), signature_input: line(), signature: line() };
    let _ = signature::claimed(&headers);
}

/// Messages of a worker, each after its length: in a stream of gRPC the length has another form, which is not ours to read. The
/// first byte says how many were heard before.
fn hear_worker(bytes: &[u8]) {
    let Some((&acknowledged, mut rest)) = bytes.split_first() else { return };
    let (acknowledged, mut batch) = (u64::from(acknowledged), vec![]);
    while !rest.is_empty()
        && let Ok(message) = protocol::FromWorker::decode_length_delimited(&mut rest)
    {
        batch.push(message);
    }
    let Ok(heard) = Heard::new(acknowledged, batch.clone()) else { return };
    for ((sequence, bytes), expected) in heard.entries.iter().zip(acknowledged + 1..) {
        assert_eq!(*sequence, expected, "something is missing or doubled");
        assert!(bytes.len() <= MAXIMUM_PART, "more than a part");
    }
    if let Some(outcome) = &heard.outcome {
        assert!(!outcome.message.contains(char::is_control), "not a line: {outcome:?}");
        assert!(outcome.message.chars().count() <= MAXIMUM_LINE, "a long line");
    }
    let last = heard.entries.last().map_or(acknowledged, |(sequence, _)| *sequence);
    assert_eq!(Heard::new(last, batch).ok(), Some(Heard::default()), "what is repeated is heard again");
}

fn read_reference(bytes: &[u8]) {
    let _ = Reference::parse(&String::from_utf8_lossy(bytes));
}

/// The first line is a registry, the rest is a `config.json`. No message shows any of it.
fn read_docker_config(bytes: &[u8]) {
    let (registry, config) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    match Configured::parse(config, &String::from_utf8_lossy(registry)) {
        Ok(configured) => {
            assert_ne!(configured.helper.as_deref(), Some(""), "a helper without a name");
            if let Ok(Some(credentials)) = configured.stored() {
                assert!(format!("{credentials:?}").ends_with("(secret)"), "credentials are shown");
            }
        }
        Err(reason) => {
            let place = reason.replace(|character: char| character.is_ascii_digit(), "");
            assert_eq!(place, "line , column ", "more than the place");
        }
    }
}

fn compile_policy(bytes: &[u8]) {
    let _ = Policy::compile(&String::from_utf8_lossy(bytes), "policy.rego");
}

fn read_configuration(bytes: &[u8]) {
    let source = scratch();
    fs::create_dir(source.path().join(".spacelift")).expect("there is room");
    for name in ["config.yml", "workflow.yml"] {
        fs::write(source.path().join(".spacelift").join(name), bytes).expect("there is room");
    }
    let _ = runtime_config::RuntimeConfig::read(source.path(), "stack", false);
    let _ = runtime_config::workflow(source.path());
}

fn expand(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pairs = text.split('\n').filter_map(|line| line.split_once('='));
    let variables: Vec<_> =
        pairs.map(|(name, value)| Variable { name: name.to_owned(), value: value.to_owned(), secret: false }).collect();
    let _ = Environment::default().add(&variables);
}

/// The first line is a secret, and how the rest is divided makes no difference: the first byte says where.
fn mask(bytes: &[u8]) {
    let Some((&at, rest)) = bytes.split_first() else { return };
    let (secret, text) = rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    let masked = |parts: &[&[u8]]| {
        let mut secrets = Secrets::default();
        secrets.add(secret).ok()?;
        let (mut masker, mut out) = (Masker::new(secrets), Vec::new());
        for part in parts {
            masker.write(part, &mut out).ok()?;
        }
        masker.flush(&mut out).ok()?;
        Some(out)
    };
    let (before, after) = text.split_at(usize::from(at).min(text.len()));
    let whole = masked(&[text]);
    assert_eq!(masked(&[before, after]), whole, "it makes a difference where it is cut");
    let trimmed = secret.trim_ascii();
    // What a directive adds is masked from there on only, and shorter secrets can be in the mask itself.
    if let Some(out) = whole
        && trimmed.len() > 3
        && !b"***".windows(1).any(|star| trimmed.windows(1).any(|byte| byte == star))
    {
        assert!(!out.windows(trimmed.len()).any(|window| window == trimmed), "a secret is shown");
    }
}

/// What a line of the log adds is not seen from this line on, however the stream is cut: the first byte says where. The first
/// line is what is added, the second comes before it.
fn mask_added(bytes: &[u8]) {
    let Some((&at, rest)) = bytes.split_first() else { return };
    let mut lines = rest.splitn(3, |byte| *byte == b'\n').map(<[u8]>::to_vec);
    let mut line = || lines.next().unwrap_or_default();
    let (added, before, after) = (line(), [line(), b"\n".to_vec()].concat(), line());
    for separator in [" ", "::"] {
        let from_there = [b"::add-mask", separator.as_bytes(), &added, b"\n", &after].concat();
        let masked = |parts: &[&[u8]]| {
            let (mut masker, mut out) = (Masker::new(Secrets::default()), Vec::new());
            masker.write(&before, &mut out).ok()?;
            // A secret does not reach over the end of a line that a directive could have added.
            let shown = out.len();
            for part in parts {
                masker.write(part, &mut out).ok()?;
            }
            masker.flush(&mut out).ok()?;
            Some(out.split_off(shown))
        };
        let whole = masked(&[&from_there]);
        let (one, other) = from_there.split_at(usize::from(at).min(from_there.len()));
        assert_eq!(masked(&[one, other]), whole, "it makes a difference where it is cut");
        let words: Vec<&[u8]> = match separator {
            " " => added.split(u8::is_ascii_whitespace).collect(),
            _ => vec![added.trim_ascii()],
        };
        // Shorter ones, and stars, can be in the mask itself.
        for word in words.into_iter().filter(|word| word.len() > 3 && !word.contains(&b'*')) {
            let is_shown = |out: &Vec<u8>| out.windows(word.len()).any(|window| window == word);
            assert!(!whole.as_ref().is_some_and(is_shown), "a secret is shown");
        }
    }
}

fn unpack(bytes: &[u8]) {
    let around = scratch();
    let into = around.path().join("into");
    fs::create_dir(&into).expect("there is room");
    fs::write(around.path().join("beside"), "as it was").expect("there is room");
    // As gzip, or as what is in it.
    let mut compressed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let packed = std::io::Write::write_all(&mut compressed, bytes).and_then(|()| compressed.finish());
    let _ = archive::unpack(Cursor::new(packed.expect("memory takes everything")), &into);
    let beside: Vec<_> = entries(around.path());
    assert_eq!(beside, ["beside", "into"], "something is outside");
    assert_eq!(fs::read(around.path().join("beside")).expect("it is there"), b"as it was");
}

/// What is accepted is read alike when it is written anew. A mistake has a place in the text, and nobody is shown a password.
fn read_install_config(bytes: &[u8]) {
    let path = Path::new("/etc/release/config.json");
    let read = |bytes: &[u8]| Config::parse(bytes, path);
    let written = |json: &Json| serde_json::to_vec(json).expect("what was read can be written");
    let text = match read(bytes) {
        Err(install_config::Error::Syntax { source, .. }) => {
            let text = str::from_utf8(bytes).expect("other bytes are refused before");
            let line = text.split('\n').nth(source.line() - 1).expect("the line is in the text");
            assert!((1..=line.chars().count() + 1).contains(&source.column()), "{source} is not in {line:?}");
            let said = source.to_string();
            let mut parts = said.as_bytes().windows(SHOWN).flat_map(str::from_utf8);
            let shown = parts.find(|part| text.contains(part));
            assert_eq!(shown, None, "the text is in the message");
            return;
        }
        Ok(_) | Err(_) => str::from_utf8(bytes),
    };
    let Some(mut json) = text.ok().and_then(|text| Json::parse(text).ok()) else { return };
    if let Ok(config) = read(bytes) {
        assert_eq!(read(&written(&json)).expect("what was written can be read"), config);
    }
    mark(&mut json, false);
    match read(&written(&json)) {
        Ok(config) => assert!(!format!("{config:?}").contains(MARK), "a secret is shown"),
        Err(error) => assert!(!format!("{error} {error:?}").contains(MARK), "a secret is shown"),
    }
}

/// So many bytes of a text in a message are no accident.
const SHOWN: usize = 24;
/// What makes a secret recognizable. No text has it by chance.
const MARK: &str = "\u{2e3b}hunter2\u{2e3b}";
/// Fields of `config.json` that may hold a secret, wherever they stand.
const SECRETS: [&str; 5] = ["http_proxy", "https_proxy", "client_credentials", "client_secret", "signing_secret"];

/// Makes the secrets of a configuration recognizable: every text in one of the fields.
fn mark(json: &mut Json, is_secret: bool) {
    match json {
        Json::Text(text) if is_secret => text.push_str(MARK),
        Json::List(list) => list.iter_mut().for_each(|item| mark(item, is_secret)),
        Json::Object(entries) => {
            for (name, value) in entries {
                mark(value, is_secret || SECRETS.contains(&name.as_str()));
            }
        }
        Json::Null | Json::Flag(_) | Json::Number(_) | Json::Text(_) => {}
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let list = fs::read_dir(directory).expect("it is there");
    let mut names: Vec<_> = list.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// In memory, where there is such a place.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("there is room for files")
}
