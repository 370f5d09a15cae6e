use serde_json::json;

use super::*;

fn policy(rego: &str) -> Policy {
    Policy::compile(rego, "p.rego").unwrap_or_else(|error| panic!("{error}\n{rego}"))
}

fn denied(rego: &str, input: Json) -> Vec<String> {
    policy(rego).evaluate(input).deny
}

fn refused(rego: &str) -> Error {
    Policy::compile(rego, "p.rego").expect_err(rego)
}

#[test]
fn both_versions_of_rego_are_understood() {
    let new = "package spacelift\nimport rego.v1\ndeny contains \"no tasks\" if input.run.type == \"task\"";
    let newer = "package spacelift\ndeny contains \"no tasks\" if { input.run.type == \"task\" }";
    let old = "package spacelift\ndeny[\"no tasks\"] { input.run.type == \"task\" }";
    let older = "package spacelift\ndeny[sprintf(\"no %ss\", [kind])] { kind := input.run.type; kind == \"task\" }";
    let keywords = "package spacelift\nimport future.keywords.in\ndeny[\"no tasks\"] { input.run.type in {\"task\"} }";
    for rego in [new, newer, old, older, keywords] {
        assert_eq!(denied(rego, json!({ "run": { "type": "task" } })), ["no tasks"], "{rego}");
        assert!(denied(rego, json!({ "run": { "type": "tracked" } })).is_empty(), "{rego}");
    }
}

#[test]
fn the_documented_example_lets_everything_begin() {
    let decision = policy("package spacelift\n\ndeny[\"you shall not pass\"] {\n    false\n}\n").evaluate(json!({}));
    assert_eq!(decision, Decision { deny: Vec::new(), sampled: false });
}

#[test]
fn a_policy_that_decides_nothing_is_refused() {
    assert!(matches!(refused("package other\ndeny[\"x\"] { true }"), Error::Package { found, .. } if found == "other"));
    assert!(matches!(refused("package spacelift\ndenny[\"x\"] { true }"), Error::NoRule { .. }));
    for rego in ["", "package spacelift\ndeny[", "pakage spacelift"] {
        assert!(matches!(refused(rego), Error::Syntax { .. }), "{rego}");
    }
}

#[test]
fn a_variable_that_nothing_binds_is_refused() {
    for rego in [
        "package spacelift\ndeny[x] { true }",
        "package spacelift\ndeny[sprintf(\"no %s\", [mesage])] { message := input.a }",
        "package spacelift\ndeny[\"x\"] { y > 1 }",
        "package spacelift\nimport rego.v1\ndeny contains mesage if { message := input.a }",
        "package spacelift\ndeny = mesage { message := input.a }",
    ] {
        assert!(matches!(refused(rego), Error::Syntax { .. }), "{rego}");
    }
    for rego in [
        "package spacelift\ndeny[x] { some x; input.list[x] }",
        "package spacelift\nimport input.run as r\nreasons[\"a\"] { r }\ndeny[sprintf(\"%v %v %v\", [reasons, r, input])] { true }",
        "package spacelift\ndeny := [x | x := input.list[_]]",
        "package spacelift\ndeny[x] { input.list[_] = x }",
    ] {
        policy(rego);
    }
}

#[test]
fn an_unknown_function_is_refused_wherever_it_is_called() {
    for (rego, name) in [
        ("package spacelift\ndeny[\"x\"] { http.send({}).status_code == 1 }", "http.send"),
        ("package spacelift\ndeny[\"x\"] { nonsense(1) }", "nonsense"),
        ("package spacelift\ndeny[\"x\"] { f(1) }\nf(x) = y { y := [z | z := hidden(x)] }", "hidden"),
        ("package spacelift\nx := 1\ndeny[\"x\"] { input.a; not x(1) }", "x"),
        ("package spacelift\nimport rego.v1\ndeny contains 1 if { every v in input { rare(v) } }", "rare"),
    ] {
        let error = refused(rego);
        assert!(matches!(&error, Error::UnknownFunction { function, .. } if function == name), "{rego}: {error}");
    }
    policy(
        "package spacelift\ndeny[\"x\"] { f(1); data.spacelift.f(1); count(input) > 1; print(1) }\nf(x) = x { true }",
    );
}

#[test]
fn what_cannot_be_evaluated_is_denied() {
    for rego in [
        // Two values for one rule.
        "package spacelift\ndeny = x { x := [input.a, input.b][_] }",
        "package spacelift\ndeny[\"x\"] { exec(\"not an array\").status == 0 }",
        "package spacelift\ndeny[\"x\"] { exec([\"/does/not/exist\"]).status == 0 }",
    ] {
        let deny = denied(rego, json!({ "a": 1, "b": 2 }));
        assert_eq!(deny.len(), 1, "{rego}: {deny:?}");
        assert!(deny[0].contains("could not be evaluated"), "{rego}: {deny:?}");
    }
}

#[test]
fn every_form_of_a_reason_counts() {
    for (value, expected) in [
        ("true", vec!["the initialization policy denies it without saying why"]),
        ("false", vec![]),
        ("\"a\"", vec!["a"]),
        ("[\"a\", 1]", vec!["a", "1"]),
        ("{\"a\", {\"b\": 1}}", vec!["a", "{\"b\":1}"]),
        ("{\"a\": \"b\"}", vec!["a: b"]),
        ("[]", vec![]),
        ("null", vec![]),
        ("0", vec!["0"]),
    ] {
        assert_eq!(denied(&format!("package spacelift\ndeny := {value}"), json!({})), expected, "{value}");
    }
    let long = denied("package spacelift\ndeny := [input.long]", json!({ "long": "x".repeat(MAXIMUM_REASON * 2) }));
    assert_eq!(long[0].len(), MAXIMUM_REASON);
}

#[test]
fn a_sample_is_asked_for_by_its_own_rule() {
    let rego = "package spacelift\ndeny[\"x\"] { false }\nsample { input.a == 1 }";
    assert!(policy(rego).evaluate(json!({ "a": 1 })).sampled);
    assert!(!policy(rego).evaluate(json!({ "a": 2 })).sampled);
}

#[test]
fn a_policy_that_takes_for_ever_to_read_is_refused() {
    let nested = |open: &str, close: &str, depth| {
        format!("package spacelift\n\ndeny[x] {{ x := {}1{} }}", open.repeat(depth), close.repeat(depth))
    };
    for (open, close) in [("[", "]"), ("{", "}"), ("(", ")")] {
        let started = std::time::Instant::now();
        let error = Policy::compile(&nested(open, close, 60), "p.rego").unwrap_err().to_string();
        assert!(error.contains("nested") && error.contains("line 3"), "{error}");
        assert!(Policy::compile(&nested(open, "", 60), "p.rego").is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    let harmless = format!(
        "package spacelift\n# {0}\ndeny[x] {{ x := \"{0} \\\" {0}\" }}\ndeny[x] {{ x := `{0}` }}\ndeny[x] {{ x := [[[[1]]]] }}",
        "[".repeat(100)
    );
    Policy::compile(&harmless, "p.rego").unwrap();
}

#[test]
fn a_policy_that_does_not_end_is_cut_off() {
    let rego = "package spacelift\ndeny[\"x\"] { r := numbers.range(1, 200); count([1 | a := r[_]; b := r[_]; c := r[_]; a + b == c]) == 1 }";
    let deny = Policy::compile_within(rego, "p.rego", Duration::from_millis(200)).unwrap().evaluate(json!({})).deny;
    assert!(deny[0].contains("could not be evaluated"), "{deny:?}");
}

#[test]
fn commands_are_executed_without_a_shell() {
    let rego = "package spacelift\nr := exec(input.command)\ndeny[sprintf(\"%v|%v|%v\", [r.status, r.stdout, r.stderr])] { true }";
    let says = |command: Json| denied(rego, json!({ "command": command })).remove(0);
    assert_eq!(says(json!(["echo", "$HOME; ls", "`id`"])), "0|$HOME; ls `id`\n|");
    assert_eq!(says(json!(["/bin/sh", "-c", "echo no >&2; exit 3"])), "3||no\n");
    assert_eq!(says(json!(["/bin/sh", "-c", "kill -9 $$"])), "137||");
    assert!(says(json!(["/bin/sh", "-c", "head -c 3000000 /dev/zero"])).contains("printed more than"));
}

#[test]
fn a_command_and_what_it_started_end_in_time() {
    let started = std::time::Instant::now();
    let exec = |command: Json| command::exec_within(Duration::from_secs(1), &Value::from(command));
    let late = exec(json!(["/bin/sh", "-c", "sleep 100"])).unwrap_err();
    assert!(late.to_string().contains("took longer than 1 seconds"), "{late}");
    // A process that stays behind holds the output open; it ends with the command.
    let left = exec(json!(["/bin/sh", "-c", "sleep 100 & echo $!"])).unwrap();
    let pid = left["stdout"].as_string().unwrap().trim().to_owned();
    // It is killed, which takes effect when it is next scheduled.
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !state().is_empty() && !state().contains(") Z ") {
        assert!(started.elapsed() < Duration::from_secs(30), "{}", state());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn sanitized_values_can_be_compared_and_not_read() {
    let rego = "package spacelift\ndeny[sanitized(input.a)] { sanitized(input.a) == sanitized(input.b) }";
    let same = denied(rego, json!({ "a": "secret", "b": "secret" }));
    assert_eq!(same.len(), 1);
    assert!(!same[0].contains("secret"));
    assert!(denied(rego, json!({ "a": "secret", "b": "other" })).is_empty());
}

#[test]
fn commands_do_not_get_the_pools_secrets() {
    const NAME: &str = "policy::tests::commands_do_not_get_the_pools_secrets";
    if std::env::var_os("SPACELIFT_TOKEN").is_none() {
        // A process cannot safely change its own environment: one more, with what a launcher has in its.
        let mut own = std::process::Command::new(std::env::current_exe().unwrap());
        own.args(["--exact", NAME]).env("SPACELIFT_TOKEN", "t-hunter2").env("SPACELIFT_POOL_PRIVATE_KEY", "k-hunter2");
        let output = own.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    // Reasons are cut, so the policy itself looks.
    let rego =
        "package spacelift\ndeny[text] { text := input.texts[_]; contains(exec([\"/usr/bin/env\"]).stdout, text) }";
    assert_eq!(denied(rego, json!({ "texts": ["PATH=", "hunter2"] })), ["PATH="]);
}
