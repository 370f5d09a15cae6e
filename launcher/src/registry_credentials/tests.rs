use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::network::{Network, Settings};

fn directory(config: &Value) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    directory
}

fn ask(directory: &Path, image: &str) -> Result<Option<Credentials>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let http = Network::new(&Settings::default()).unwrap().object_store_client();
    runtime.block_on(for_image(Some(directory), &Reference::parse(image).unwrap(), &http.unwrap()))
}

fn found(config: Value, image: &str) -> Option<Credentials> {
    ask(directory(&config).path(), image).unwrap_or_else(|error| panic!("{config}: {error}"))
}

fn password(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() })
}

/// An entry as `docker login` writes it.
fn auth(text: &str) -> Value {
    json!({ "auth": BASE64_STANDARD.encode(text) })
}

#[test]
fn names_of_images_are_read_as_docker_reads_them() {
    let digest = format!("sha256:{}", "a".repeat(64));
    for (text, registry, repository, tag, has_digest) in [
        ("busybox".to_owned(), "docker.io", "library/busybox", Some("latest"), false),
        ("a/b:1".to_owned(), "docker.io", "a/b", Some("1"), false),
        ("index.docker.io/busybox".to_owned(), "docker.io", "library/busybox", Some("latest"), false),
        ("localhost/a".to_owned(), "localhost", "a", Some("latest"), false),
        ("localhost:5000/a/b_c__d-e.f".to_owned(), "localhost:5000", "a/b_c__d-e.f", Some("latest"), false),
        (
            "public.ecr.aws/spacelift/runner-terraform:latest".to_owned(),
            "public.ecr.aws",
            "spacelift/runner-terraform",
            Some("latest"),
            false,
        ),
        (format!("r.io/a@{digest}"), "r.io", "a", None, true),
        (format!("r.io:1/a:t@{digest}"), "r.io:1", "a", Some("t"), true),
        ("[::1]:5000/a".to_owned(), "[::1]:5000", "a", Some("latest"), false),
    ] {
        let reference = Reference::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let read = (reference.registry(), reference.repository(), reference.tag(), reference.digest().is_some());
        assert_eq!(read, (registry, repository, tag, has_digest), "{text}");
    }
    for text in [
        "",
        ":",
        "A",
        "a b",
        "a/",
        "/a",
        "a//b",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a:",
        "a:-x",
        "a@sha256:1",
        "a@md5:1",
        "http://a/b",
        "a?b/c",
        "r.io/a;b",
        "r.io/../b",
        "a\n",
    ] {
        assert!(Reference::parse(text).is_err(), "{text:?}");
    }
    assert!(Reference::parse(&format!("a:{}", "x".repeat(129))).is_err());
    assert!(Reference::parse(&"a".repeat(256)).is_err());
}

#[test]
fn entries_are_found_by_every_name_of_their_registry() {
    for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "https://registry-1.docker.io/v2/"] {
        assert_eq!(found(json!({ "auths": { key: auth("u:p") } }), "busybox"), password("u", "p"), "{key}");
        assert_eq!(found(json!({ "auths": { key: auth("u:p") } }), "r.io/busybox"), None, "{key}");
    }
    for key in ["r.io:5000", "https://r.io:5000", "http://r.io:5000/v2/"] {
        assert_eq!(found(json!({ "auths": { key: auth("u:p:q") } }), "r.io:5000/a"), password("u", "p:q"), "{key}");
        assert_eq!(found(json!({ "auths": { key: auth("u:p") } }), "r.io/a"), None, "{key}");
    }
}

#[test]
fn entries_come_in_several_forms() {
    let entry = |entry: Value| found(json!({ "auths": { "r.io": entry } }), "r.io/a");
    assert_eq!(entry(json!({ "username": "u", "password": "p" })), password("u", "p"));
    let token = json!({ "identitytoken": "t", "auth": "" });
    assert_eq!(entry(token), Some(Credentials::IdentityToken("t".to_owned())));
    assert_eq!(entry(json!({})), None);
    assert_eq!(found(json!({ "HttpHeaders": {} }), "r.io/a"), None);
}

#[test]
fn what_is_wrong_is_told_without_what_it_is() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(ask(empty.path(), "r.io/a").unwrap(), None, "nobody has logged in yet");
    for (config, part) in [
        (json!({ "auths": { "r.io": { "auth": "hunter2!" } } }), "not base64"),
        (json!({ "auths": { "r.io": auth("hunter2") } }), "without a user"),
        (json!({ "auths": "hunter2" }), "line 1"),
        (json!({ "credsStore": "../hunter2" }), "name that no helper has"),
        (json!({ "credsStore": "not-installed-anywhere" }), "not installed"),
    ] {
        let error = ask(directory(&config).path(), "r.io/a").unwrap_err().to_string();
        assert!(error.contains(part), "{config}: {error}");
        assert!(part.starts_with("name") || !error.contains("hunter2"), "{config}: {error}");
    }
    assert!(!format!("{:?}", password("u", "hunter2")).contains("hunter2"));
}

/// Asks with a credential helper `test`. It is not on the `PATH`, as the environment is shared with other tests.
fn with_helper(script: &str, config: &Value, image: &str) -> Result<Option<Credentials>, Error> {
    let bin = tempfile::tempdir().unwrap();
    let source = bin.path().join("source");
    fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
    // A copy by another process: while this one has a file open for writing, a fork of it keeps others from executing it.
    let mut install = std::process::Command::new("install");
    let installed = install.args(["-m", "755"]).arg(&source).arg(bin.path().join("docker-credential-test")).status();
    assert!(installed.unwrap().success());
    let directory = directory(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let registry = Reference::parse(image).unwrap().registry().to_owned();
    runtime.block_on(configured_with(directory.path(), &registry, Some(bin.path())))
}

#[test]
fn helpers_are_asked_for_their_registry() {
    let answer = "read server; [ \"$1\" = get ] && printf '{\"ServerURL\":\"%s\",\"Username\":\"u\",\"Secret\":\"%s\"}' \"$server\" \"$server\"";
    let store = json!({ "credsStore": "test", "auths": { "r.io": {} } });
    assert_eq!(with_helper(answer, &store, "r.io:1/a").unwrap(), password("u", "r.io:1"));
    assert_eq!(with_helper(answer, &store, "busybox").unwrap(), password("u", "https://index.docker.io/v1/"));
    let helpers = json!({ "credHelpers": { "r.io": "test" }, "auths": { "other.io": auth("x:y") } });
    assert_eq!(with_helper(answer, &helpers, "r.io/a").unwrap(), password("u", "r.io"));
    assert_eq!(with_helper(answer, &helpers, "other.io/a").unwrap(), password("x", "y"));
    let token = "printf '{\"Username\":\"<token>\",\"Secret\":\"t\"}'";
    assert_eq!(with_helper(token, &helpers, "r.io/a").unwrap(), Some(Credentials::IdentityToken("t".to_owned())));
}

#[test]
fn helpers_that_know_nothing_or_fail_are_told_apart() {
    let config = json!({ "credsStore": "test", "auths": { "r.io": auth("u:p") } });
    let nothing = "echo 'credentials not found in native keychain'; exit 1";
    assert_eq!(with_helper(nothing, &config, "r.io/a").unwrap(), password("u", "p"), "the next place is looked at");
    for (script, part) in
        [("echo hunter2; echo hunter2 >&2; exit 1", "failed for r.io"), ("echo hunter2", "something else than JSON")]
    {
        let error = with_helper(script, &config, "r.io/a").unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
    }
}
