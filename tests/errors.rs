//! What users read when something is wrong, as pages: `data/errors/*.txt`.
//!
//! A page has commands, and below each one what it prints and its exit code. A test runs every command of its page and writes
//! the page anew; a difference to the file fails. With the environment variable `SPACELIFT_WRITE_ERRORS=1` the file is replaced
//! instead, for whoever changed words on purpose and reads what became of them.
//!
//! | line | meaning |
//! |---|---|
//! | `$ PROGRAM …` | runs a program in the page's directory. `NAME=VALUE` before it sets a variable, `'…'` keeps blanks together, `> FILE` at the end redirects standard output |
//! | `nobody$ PROGRAM …` | the same as a user without rights |
//! | `full-disk$ PROGRAM …` | the same with 4 KiB of room in the directory `disk` |
//! | `1> …`, `2> …` | a line of standard output, of standard error |
//! | `exit N` | the exit code |
//! | anything else | words for the reader |
//!
//! `{NAME}` stands for what differs from machine to machine, in commands and in what they print.

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use integration_tests::case::Case;
use integration_tests::control_plane::ControlPlane;
use integration_tests::pki::Authority;
use integration_tests::program;
use integration_tests::registry::Registry;
use integration_tests::release::workspace;
use integration_tests::run::{Finished, as_nobody, finish_within, on_small_disk, succeed, tool};
use integration_tests::s3_store::{ACCESS_KEY, BUCKET, S3Store, SECRET_KEY};
use launcher_wire::id::PoolId;
use sequoia_openpgp::Cert;
use sequoia_openpgp::parse::Parse as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Writes the pages anew instead of comparing them.
const WRITE: &str = "SPACELIFT_WRITE_ERRORS";
/// Bytes of the disk that is full: one page of memory, which its directory does not count towards.
const DISK: u64 = 4096;
/// How long a command may take. Those that try a server several times take five seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// Lines of a difference that are shown around what differs.
const CONTEXT: usize = 3;
/// Every page has a test below.
const PAGES: [&str; 10] = [
    "bundle-command-line",
    "bundle-install",
    "bundle-make",
    "bundle-publish",
    "bundle-verify",
    "launcher-check",
    "launcher-config",
    "mothership",
    "worker",
    "xtask",
];

/// What the commands of a page find: files, servers and variables.
struct World {
    directory: TempDir,
    /// Names for what differs between machines. Longer values come first.
    names: Vec<(String, String)>,
    /// Variables of every command.
    variables: Vec<(String, String)>,
    /// Servers, which end with the world.
    servers: Vec<Box<dyn Any>>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["home", "tmp", "disk", "folder"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mut world = Self { directory, names: Vec::new(), variables: Vec::new(), servers: Vec::new() };
        world.file("empty", "");
        world.file("text", "Good morning.\n");
        world.file("unreadable", "secret\n");
        fs::set_permissions(world.path("unreadable"), fs::Permissions::from_mode(0o600)).unwrap();
        let dir = world.path("").display().to_string();
        world.name("dir", dir.trim_end_matches('/'));
        world.name("closed", &closed_port().to_string());
        world.name("target", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
        world.name("version", concat!("v", env!("CARGO_PKG_VERSION")));
        let path = std::env::var("PATH").unwrap();
        world.variables = [
            ("PATH", path.as_str()),
            ("LC_ALL", "C"),
            ("HOME", &format!("{dir}home")),
            ("TMPDIR", &format!("{dir}tmp")),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    fn name(&mut self, name: &str, value: &str) {
        self.names.push((name.to_owned(), value.to_owned()));
        self.names.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    }

    fn variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// A command line of a page, run.
    fn run(&self, prompt: &str, line: &str) -> Finished {
        let mut words = words(&self.filled(line));
        let output = match words.iter().position(|word| word == ">") {
            Some(at) => words.drain(at..).nth(1),
            None => None,
        };
        let count = words.iter().take_while(|word| is_assignment(word)).count();
        let assignments: Vec<String> = words.drain(..count).collect();
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_else(|| panic!("no program in: {line}"));
        let mut words = words.peekable();
        let program = match name.as_str() {
            "spacelift-bundle" => program::bundle(),
            "spacelift-launcher" => program::launcher(),
            "spacelift-worker" => program::worker(),
            "mothership" => program::mothership(),
            "cargo" if words.next_if_eq("xtask").is_some() => program::xtask(),
            _ => panic!("{name} is not a program of this project: {line}"),
        };
        let mut command = if prompt == "nobody" { as_nobody(program) } else { Command::new(program) };
        command.args(words).env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.envs(assignments.iter().filter_map(|word| word.split_once('='))).current_dir(self.directory.path());
        if prompt == "full-disk" {
            command = on_small_disk(DISK, &self.path("disk"), &command);
        }
        if let Some(output) = output {
            command = redirected(&output, &command);
        }
        finish_within(LIMIT, &mut command)
    }

    fn filled(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
    }

    fn normalised(&self, text: &str) -> String {
        let text = self.names.iter().fold(text.to_owned(), |text, (name, value)| {
            // A port's digits can be anywhere, such as in a digest.
            let colon = if value.bytes().all(|byte| byte.is_ascii_digit()) { ":" } else { "" };
            text.replace(&format!("{colon}{value}"), &format!("{colon}{{{name}}}"))
        });
        // Names of files that are not complete yet, ids that are made anew, and times that are waited for.
        [".partial-", ".unpacking-", ".installing-", "/workers/", "trying again in ", "within "].iter().fold(
            text,
            |text, beginning| {
                let mut parts = text.split(beginning);
                let mut normalised = parts.next().unwrap_or_default().to_owned();
                for part in parts {
                    let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
                    normalised += &format!("{beginning}{{random}}{rest}");
                }
                normalised
            },
        )
    }

    /// Runs every command of a page and compares what they print.
    #[track_caller]
    fn check(&self, page: &str) {
        let path = pages().join(format!("{page}.txt"));
        let old = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut new = String::new();
        for line in old.lines().filter(|line| !is_output(line)) {
            new += &format!("{line}\n");
            let Some((prompt, line)) = prompted(line) else { continue };
            let finished = self.run(prompt, line);
            for (mark, text) in [("1>", &finished.stdout), ("2>", &finished.stderr)] {
                for line in self.normalised(text).lines() {
                    new += format!("{mark} {line}").trim_end();
                    new.push('\n');
                }
            }
            new += &match finished.code {
                Some(code) => format!("exit {code}\n"),
                None => "ended by a signal\n".to_owned(),
            };
        }
        if std::env::var_os(WRITE).is_some_and(|value| value == "1") {
            fs::write(&path, &new).unwrap();
        } else if old != new {
            let path = path.display();
            panic!("{path} has other words (-) than the programs (+); {WRITE}=1 writes it anew:\n{}", diff(&old, &new));
        }
    }
}

fn pages() -> PathBuf {
    workspace().join("tests/data/errors")
}

fn is_output(line: &str) -> bool {
    line.starts_with("1>") || line.starts_with("2>") || line.starts_with("exit ")
}

/// Who runs the line, and the line.
fn prompted(line: &str) -> Option<(&str, &str)> {
    let (prompt, rest) = line.split_once("$ ")?;
    ["", "nobody", "full-disk"].contains(&prompt).then_some((prompt, rest))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=')
        .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
}

/// What is between blanks; `'…'` is one word, blanks and all.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for character in line.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    assert!(!quoted, "a quote is open: {line}");
    words
}

/// The same command with its standard output in a file.
fn redirected(output: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "output=$1; shift; exec \"$@\" >\"$output\"", "sh", output]).arg(command.get_program());
    shell.args(command.get_args()).env_clear().current_dir(command.get_current_dir().unwrap());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Lines that only one of them has, with some around them.
fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // Lengths of the longest common subsequence from here on.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    let near = |at: usize| {
        let from = at.saturating_sub(CONTEXT);
        lines[from..(at + CONTEXT + 1).min(lines.len())].iter().any(|(mark, _)| *mark != ' ')
    };
    (0..lines.len()).filter(|at| near(*at)).map(|at| format!("{} {}\n", lines[at].0, lines[at].1)).collect()
}

#[test]
fn a_difference_shows_what_was_and_what_is() {
    let (old, new) = ("a\nb\nc\nd\ne\nf\ng\nh\n", "a\nb\nc\nd\nx\nf\ng\nh\n");
    assert_eq!(diff(old, new), "  b\n  c\n  d\n- e\n+ x\n  f\n  g\n  h\n");
    assert_eq!(diff(old, old), "");
}

/// Every page is checked, and what is on them is enough to be of use: failures, in words, without what is for developers.
#[test]
fn the_pages_are_pages_of_errors() {
    let files: BTreeSet<String> = fs::read_dir(pages())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.trim_end_matches(".txt").to_owned())
        .collect();
    assert_eq!(files, PAGES.map(str::to_owned).into());
    let mut commands = 0;
    for page in PAGES {
        let text = fs::read_to_string(pages().join(format!("{page}.txt"))).unwrap();
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace", "ended by a signal"] {
            assert!(!text.contains(word), "{page}: {word}");
        }
        assert!(!text.lines().any(|line| line == "exit 0"), "{page} has a command that succeeds");
        commands += text.lines().filter_map(prompted).count();
    }
    assert!(commands >= 80, "there are only {commands} commands");
}

/// Releases of `data/attacks` under their own names, and certificates.
fn releases(cases: &[&str]) -> World {
    let world = World::new();
    let data = workspace().join("tests/data");
    for case in cases {
        let directory = data.join("attacks").join(case);
        Case::read(&directory).unwrap().set_up(&directory, &world.path(case)).unwrap();
    }
    for certificate in fs::read_dir(data.join("certs")).unwrap() {
        let path = certificate.unwrap().path();
        fs::copy(&path, world.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    world
}

#[test]
fn bundle_command_line() {
    World::new().check("bundle-command-line");
}

#[test]
fn bundle_verify() {
    let world = releases(&[
        "good",
        "good-next-version",
        "archive-truncated",
        "archive-changed",
        "archive-missing",
        "signature-missing",
        "signature-by-unpinned",
        "signature-armored",
        "signature-sha1",
        "sums-changed-after-signing",
        "certificate-expired",
        "certificate-revoked",
        "subkey-expired",
        "gzip-damaged",
        "file-changed",
        "directory-file-missing",
        "directory-file-extra",
        "directory-file-changed",
        "development",
        "binary-for-another-processor",
    ]);
    let mut tar = tool("tar");
    tar.args(["-xzOf", "good-next-version/self-hosted-v1.2.4.tar.gz", "self-hosted-v1.2.4/manifest.json"]);
    world.file("newer.json", succeed(tar.current_dir(world.path(""))));
    // More than there is room for; whether it is the signed one shows when all of it is copied.
    let good = workspace().join("tests/data/attacks/good");
    Case::read(&good).unwrap().set_up(&good, &world.path("large")).unwrap();
    let large = fs::File::options().write(true).open(world.path("large/self-hosted-v1.2.3.tar.gz")).unwrap();
    large.set_len(16 * DISK).unwrap();
    world.check("bundle-verify");
}

/// What a vendor runs: keys, packing, signing, and looking at what came of it.
#[test]
fn bundle_make() {
    let mut world = releases(&["good", "directory"]);
    let mut keygen = Command::new(program::bundle());
    keygen.args(["keygen", "--user-id", "Vendor <v@example.com>", "--name", "key", "--output"]).arg(world.path("keys"));
    world.file("passphrase", "correct horse\n");
    world.file("wrong-passphrase", "battery staple\n");
    succeed(keygen.arg("--passphrase-file").arg(world.path("passphrase")));
    let certificate = Cert::from_file(world.path("keys/key.cert.asc")).unwrap();
    world.name("signing-key", &certificate.keys().subkeys().next().unwrap().key().fingerprint().to_hex());
    world.file(
        "release.yaml",
        "product: self hosted\nchannel: Stable\nsequence: -1\nsource: example.com\nthreshold: 0\ncolour: blue\n",
    );
    world.file("broken.yaml", "product: self-hosted\n  channel: [stable\n");
    world.file(
        "good.yaml",
        "product: self-hosted\nchannel: stable\nsequence: 1\nsource: https://example.com/source\nthreshold: 1\n",
    );
    world.check("bundle-make");
}

#[test]
fn bundle_install() {
    let mut world = releases(&["directory"]);
    world.variable("AWS_EC2_METADATA_DISABLED", "true");
    world.file("broken.json", "{\n  \"aws_region\": \"eu-west-1\",\n  \"signers\": [\"vendor.asc\"\n}\n");
    world.file("twice.json", "{\n  \"aws_region\": \"eu-west-1\",\n  \"aws_region\": \"eu-west-2\"\n}\n");
    let wrong = json!({
        "aws_region": "europe", "aws_account_id": 12, "signers": ["missing.asc", "ABCD"], "threshold": 0,
        "downloads_bucket_nam": "x", "downloads_bucket_name": "Has Capitals",
        "global_resource_tags": [{ "key": "aws:team", "value": 1 }],
        "s3_config": { "downloads_bucket_noncurrent_expiration_days": 0 }, "stack_names": "one",
    });
    world.file("wrong.json", serde_json::to_string_pretty(&wrong).unwrap());
    world.file("unsigned.json", r#"{ "aws_region": "eu-west-1" }"#);
    world.file("text.json", r#"{ "aws_region": "eu-west-1", "signers": ["text"] }"#);
    world.file("second.json", r#"{ "aws_region": "eu-west-1", "signers": ["second.asc"] }"#);
    world.file("good.json", r#"{ "aws_region": "eu-west-1", "signers": ["vendor.asc"] }"#);
    world.check("bundle-install");
}

#[test]
fn bundle_publish() {
    let mut world = releases(&["good-binaries", "good-next-version", "good-image", "good-rebuilt"]);
    let (store, registry) = (S3Store::start(env!("CARGO_BIN_EXE_strict-s3")), Registry::start());
    world.name("store", &store.port().to_string());
    world.name("registry", &registry.address());
    world.name("bucket", BUCKET);
    world.variable("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    world.variable("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    world.variable("AWS_REGION", "eu-west-1");
    world.variable("AWS_EC2_METADATA_DISABLED", "true");
    fs::create_dir(world.path("claimed")).unwrap();
    let mut publish = Command::new(program::bundle());
    publish.arg("publish").arg(world.path("good-rebuilt/self-hosted-v1.2.3.tar.gz"));
    publish.arg("--cert").arg(world.path("vendor.asc"));
    succeed(publish.arg("--bucket").arg(format!("file://{}", world.path("claimed").display())));
    world.servers.push(Box::new((store, registry)));
    world.check("bundle-publish");
}

/// A pool's key with a certificate for it, both in PEM, as a control plane and `openssl` make them.
fn pool(world: &World, name: &str, bits: &str, days: &str) -> (String, String) {
    let (key, certificate) = (world.path(&format!("{name}.key")), world.path(&format!("{name}.crt")));
    let mut openssl = tool("openssl");
    openssl.args(["req", "-x509", "-new", "-newkey", &format!("rsa:{bits}"), "-nodes", "-batch", "-days", days]);
    succeed(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
    (fs::read_to_string(key).unwrap(), fs::read_to_string(certificate).unwrap())
}

fn token(certificate: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut token = json!({
        "version": 1, "broker": "mqtts://localhost:8883", "api": "https://localhost/api", "pool": PoolId::new(),
        "certificate": certificate, "ca": certificate,
    });
    change(&mut token);
    BASE64_STANDARD.encode(token.to_string())
}

#[test]
fn launcher_config() {
    let mut world = World::new();
    let (key, certificate) = pool(&world, "pool", "3072", "365");
    let (other_key, _) = pool(&world, "other", "3072", "365");
    let (short_key, _) = pool(&world, "short", "2048", "365");

    let mut openssl = tool("openssl");
    openssl.args(["x509", "-in"]).arg(world.path("pool.crt")).arg("-signkey").arg(world.path("pool.key"));
    // It ended a day ago.
    let expired = succeed(openssl.args(["-days", "-1"]));

    world.name("key", &BASE64_STANDARD.encode(&key));
    world.name("other-key", &BASE64_STANDARD.encode(other_key));
    world.name("short-key", &BASE64_STANDARD.encode(short_key));
    world.name("certificate-as-key", &BASE64_STANDARD.encode(&certificate));
    world.name("token", &token(&certificate, |_| ()));
    world.name("expired-token", &token(&expired, |_| ()));
    world.name("version-2-token", &token(&certificate, |token| token["version"] = 2.into()));
    world.name("plain-token", &token(&certificate, |token| token["broker"] = "mqtt://localhost".into()));
    world.name("no-api-token", &token("", |token| drop(token.as_object_mut().unwrap().remove("api"))));
    world.name("broken-token", &BASE64_STANDARD.encode("{\"version\": 1, \"broker\":"));
    world.file("policy.rego", "package spacelift\n\ndeny[\"no\"] {\n  input.run.type ==\n}\n");
    world.check("launcher-config");
}

/// A control plane with all that it talks to, and what its administrators and its launchers read.
#[test]
fn control_plane() {
    let control_plane = ControlPlane::start(program::mothership(), env!("CARGO_BIN_EXE_strict-s3"));
    let made = control_plane.pool();
    let ready: Value = serde_json::from_slice(&BASE64_STANDARD.decode(&made.token).unwrap()).unwrap();
    let mut world = World::new();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut token = ready.clone();
        change(&mut token);
        BASE64_STANDARD.encode(token.to_string())
    };
    let other = Authority::new();
    let closed = world.filled("{closed}");
    world.name("home", control_plane.home().to_str().unwrap());
    world.name("pool", &made.id.to_string());
    world.name("unknown-pool", &PoolId::new().to_string());
    world.name("broker", &control_plane.broker.port().to_string());
    world.name("store", &control_plane.store.port().to_string());
    let api = ready["api"].as_str().unwrap().to_owned();
    let port = api.rsplit(':').next().unwrap().split('/').next().unwrap();
    world.name("port", port);
    world.name("key", &made.private_key());
    world.name("token", &made.token);
    world.name("wrong-ca-token", &changed(&|token| token["ca"] = other.pem().into()));
    world.name("no-broker-token", &changed(&|token| token["broker"] = format!("mqtts://localhost:{closed}").into()));
    let (foreign_key, foreign) = pool(&world, "foreign", "3072", "365");
    world.name("foreign-key", &BASE64_STANDARD.encode(foreign_key));
    world.name("foreign-token", &changed(&|token| token["certificate"] = foreign.as_str().into()));
    world.name("other-pool-token", &changed(&|token| token["pool"] = json!(PoolId::new())));
    world.variable("AWS_EC2_METADATA_DISABLED", "true");
    world.variable("SPACELIFT_LAUNCHER_DIR", world.path("spacelift").to_str().unwrap());
    world.variable("DOCKER_HOST", &format!("unix://{}", world.path("no-docker.sock").display()));
    world.file("broken.json", "{\n  \"slug\": \"network\",\n  \"pool\": 12\n}\n");
    fs::create_dir(world.path("closed-directory")).unwrap();
    fs::set_permissions(world.path("closed-directory"), fs::Permissions::from_mode(0o700)).unwrap();
    world.servers.push(Box::new(control_plane));
    world.check("mothership");
    world.check("launcher-check");
}

#[test]
fn worker() {
    World::new().check("worker");
}

#[test]
fn xtask() {
    let world = releases(&["good", "development"]);
    world.check("xtask");
}
