use std::process::Command;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use launcher_wire::id::PoolId;

use super::*;

const DAY: u64 = 24 * 60 * 60;

/// A private key and a certificate about it that holds for 365 days, both in PEM.
struct Pair {
    key: String,
    certificate: String,
}

impl Pair {
    /// Made by the program of which the documentation has pools' keys made.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (key, certificate) = (directory.path().join("key"), directory.path().join("certificate"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "365", "-subj", "/CN=pool", "-keyout"]);
        let made = openssl.arg(&key).arg("-out").arg(&certificate).output();
        let made = made.expect("openssl is not installed; it is in the Debian package `openssl`");
        assert!(made.status.success(), "{made:?}");
        let read = |path| std::fs::read_to_string(path).unwrap();
        Self { key: read(&key), certificate: read(&certificate) }
    }

    fn variables(&self) -> Vec<(String, String)> {
        let token = Token {
            version: 1,
            broker: "mqtts://localhost".to_owned(),
            namespace: "spacelift".to_owned(),
            api: "https://localhost".to_owned(),
            pool: PoolId::new(),
            certificate: self.certificate.clone(),
            ca: None,
        };
        vec![(TOKEN.to_owned(), token.to_variable()), (KEY.to_owned(), BASE64_STANDARD.encode(&self.key))]
    }
}

static PAIR: LazyLock<Pair> = LazyLock::new(Pair::new);

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn read_at(now: Duration, more: &[(&str, &str)]) -> Result<Config, Problems> {
    let mut variables = PAIR.variables();
    // A later one of the same name replaces.
    variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Config::at(now, variables.into_iter().map(|(name, value)| (name.into(), value.into())))
}

fn read(more: &[(&str, &str)]) -> Config {
    read_at(now(), more).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems, as lines.
fn problems(more: &[(&str, &str)]) -> Vec<String> {
    let problems = read_at(now(), more).map(drop).expect_err(&format!("{more:?}"));
    problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_problem(name: &str, value: &str, part: &str) {
    let problems = problems(&[(name, value)]);
    let [problem] = problems.as_slice() else { panic!("{name}={value}: {problems:?}") };
    assert!(problem.starts_with(&format!("{name}: ")) && problem.contains(part), "{name}={value}: {problem}");
}

#[test]
fn two_variables_are_enough() {
    let config = read(&[]);
    assert_eq!(config.directory, PathBuf::from("/opt/spacelift"));
    assert_eq!(config.network, "bridge");
    assert_eq!(config.runtime, None);
    assert_eq!(config.logs_timeout, Duration::from_secs(420));
    assert_eq!(config.run_timeout, Duration::from_secs(4200));
    assert_eq!(config.default_image, DEFAULT_IMAGE);
    assert_eq!(config.default_ansible_image, DEFAULT_ANSIBLE_IMAGE);
    assert_eq!(config.docker_host, None);
    assert_eq!(config.docker_config_dir, None);
    assert!(!config.debug && !config.sensitive_outputs && !config.logs_on_stdout);
    assert!(config.mask.is_empty() && config.passed.is_empty() && config.mounts.is_empty() && config.vcs.is_empty());
    assert!(config.metadata.is_empty() && config.additional_roots.is_empty() && config.policy.is_none());
    assert_eq!(config.proxies, Proxies::default());
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_in_order_and_without_values() {
    let secret = "hunter2-hunter2";
    let wrong =
        [TOKEN, KEY, NETWORK, LOGS_TIMEOUT, RUN_TIMEOUT, DEBUG, SENSITIVE_OUTPUTS, DIRECTORY, AUTHORITIES, POLICY];
    let values: Vec<(&str, &str)> =
        wrong.iter().map(|name| (*name, if *name == NETWORK { "hunter2 hunter2" } else { secret })).collect();
    let problems = read_at(now(), &values).map(drop).unwrap_err();
    let named: Vec<&str> = problems.iter().map(|problem| problem.variable.as_str()).collect();
    let mut expected = wrong.to_vec();
    expected.sort_unstable();
    assert_eq!(named, expected);
    assert!(!problems.to_string().contains("hunter2"), "{problems}");
    assert_eq!(problems.to_string().lines().count(), wrong.len() + 1);
}

#[test]
fn what_is_required_is_asked_for() {
    let problems = Config::from_variables(std::iter::empty()).map(drop).unwrap_err();
    let named: Vec<&str> = problems.iter().map(|problem| problem.variable.as_str()).collect();
    assert_eq!(named, [KEY, TOKEN]);
    assert_problem(TOKEN, " ", "is not set");
    assert_problem(KEY, "", "is not set");
}

#[test]
fn the_key_has_to_belong_to_the_certificate() {
    let other = Pair::new();
    assert_problem(KEY, &BASE64_STANDARD.encode(other.key), "does not belong to the certificate");
}

#[test]
fn certificates_expire() {
    let after = |days: u64| now() + Duration::from_secs(days * DAY);
    assert!(read_at(after(330), &[]).unwrap().warnings.is_empty());
    let soon = read_at(after(340), &[]).unwrap();
    assert!(soon.warnings[0].contains("expires in 2") && soon.warnings.len() == 1, "{:?}", soon.warnings);
    let late = read_at(after(400), &[]).map(drop).unwrap_err().to_string();
    assert!(late.contains("expired 35 days ago") || late.contains("expired 34 days ago"), "{late}");
    let early = read_at(now() - Duration::from_secs(DAY), &[]).map(drop).unwrap_err().to_string();
    assert!(early.contains("not valid yet"), "{early}");
}

#[test]
fn durations_are_those_of_go() {
    for (text, seconds) in [("1000s", 1000), ("1h10m", 4200), ("90m", 5400), (" 1.5h ", 5400), ("2s500ms500ms", 3)] {
        assert_eq!(read(&[(RUN_TIMEOUT, text)]).run_timeout, Duration::from_secs(seconds), "{text}");
        assert_eq!(read(&[(LOGS_TIMEOUT, text)]).logs_timeout, Duration::from_secs(seconds), "{text}");
    }
    for (text, part) in [
        ("0", "zero"),
        ("0s", "zero"),
        ("-1m", "negative"),
        ("70", "not a duration"),
        ("1 h", "not a"),
        ("1d", "not a"),
    ] {
        assert_problem(RUN_TIMEOUT, text, part);
    }
}

#[test]
fn switches_are_true_or_false() {
    for (text, value) in [("true", true), ("1", true), ("false", false), ("0", false), ("", false)] {
        let config = read(&[(DEBUG, text), (SENSITIVE_OUTPUTS, text), (LOGS_ON_STDOUT, text)]);
        assert_eq!([config.debug, config.sensitive_outputs, config.logs_on_stdout], [value; 3], "{text}");
    }
    for text in ["yes", "TRUE", "on", "2"] {
        assert_problem(DEBUG, text, "neither");
    }
}

#[test]
fn variables_are_passed_by_name_and_kind_of_run() {
    let config = read(&[
        (PASSED, "PLAIN, ro_CREDENTIAL,wo_CREDENTIAL,,wo_ONLY,MISSING"),
        (MASK, "CREDENTIAL,ALSO"),
        ("PLAIN", "plain"),
        ("ro_CREDENTIAL", "for previews"),
        ("wo_CREDENTIAL", "for changes"),
        ("ONLY", "only"),
        ("ALSO", "also"),
        ("CREDENTIAL", "for nobody"),
        ("OTHER", "other"),
    ]);
    let given = |is_read_only: bool| -> Vec<(&str, &str, bool)> {
        let mut given: Vec<_> = config
            .passed
            .iter()
            .filter(|variable| variable.scope.applies(is_read_only))
            .map(|variable| (variable.name.as_str(), variable.value.as_str(), variable.masked))
            .collect();
        given.sort_unstable();
        given
    };
    let [also, plain] = [("ALSO", "also", true), ("PLAIN", "plain", false)];
    assert_eq!(given(true), [also, ("CREDENTIAL", "for previews", true), plain]);
    assert_eq!(given(false), [also, ("CREDENTIAL", "for changes", true), ("ONLY", "only", false), plain]);
    assert_eq!(config.mask, ["ALSO", "CREDENTIAL"]);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("MISSING"), "{:?}", config.warnings);
}

#[test]
fn the_pools_own_secrets_are_passed_to_nobody() {
    for list in [PASSED, MASK] {
        for item in [KEY.to_owned(), format!("ro_{TOKEN}")] {
            assert_problem(list, &item, "owner of the pool");
        }
        assert_problem(list, "A=hunter2", "not a variable's name");
    }
}

#[test]
fn mounts_are_pairs_of_absolute_paths() {
    let config = read(&[
        ("SPACELIFT_WORKER_EXTRA_MOUNTS", "/a:/b, /c/:/d//e"),
        ("SPACELIFT_WORKER_RO_EXTRA_MOUNTS", "/r:/x"),
        ("SPACELIFT_WORKER_WO_EXTRA_MOUNTS", "/w:/x"),
    ]);
    let mounts: Vec<(&str, &str, Scope)> = config
        .mounts
        .iter()
        .map(|mount| (mount.source.to_str().unwrap(), mount.target.to_str().unwrap(), mount.scope))
        .collect();
    assert_eq!(
        mounts,
        [
            ("/a", "/b", Scope::All),
            ("/c", "/d/e", Scope::All),
            ("/r", "/x", Scope::ReadOnly),
            ("/w", "/x", Scope::WriteOnly)
        ]
    );
    for (item, part) in [
        ("/a", "form"),
        ("/a:/b:ro", "form"),
        ("a:/b", "begin with"),
        ("/a:b", "begin with"),
        ("/a/../b:/c", ".."),
        ("/a:/b/../mnt/spacelift", ".."),
        ("/a:/", "hide"),
        ("/a:/mnt", "hide"),
        ("/a://mnt/./workspace/", "hide"),
        ("/a:/mnt/spacelift", "hide"),
        ("/a:/mnt/spacelift/spacelift-worker", "own files"),
        ("/a:/b,/c:/b", "already"),
    ] {
        assert_problem("SPACELIFT_WORKER_EXTRA_MOUNTS", item, part);
    }
    let clash = problems(&[("SPACELIFT_WORKER_EXTRA_MOUNTS", "/a:/b"), ("SPACELIFT_WORKER_RO_EXTRA_MOUNTS", "/c:/b")]);
    assert!(clash[0].contains("already"), "{clash:?}");
}

#[test]
fn names_and_images_are_checked() {
    let image =
        "registry.local:5000/team/runner@sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let config = read(&[(NETWORK, "runs_1"), (RUNTIME, "runsc"), (IMAGE, image), (ANSIBLE_IMAGE, "ansible")]);
    assert_eq!((config.network.as_str(), config.runtime.as_deref()), ("runs_1", Some("runsc")));
    assert_eq!((config.default_image.as_str(), config.default_ansible_image.as_str()), (image, "ansible"));
    assert_problem(NETWORK, "container:other", "not a name");
    assert_problem(RUNTIME, "-x", "not a name");
    for (text, bytes) in [("4g", 4 << 30), ("512M", 512 << 20), ("65536k", 64 << 20), ("67108864", 64 << 20)] {
        assert_eq!(read(&[(MEMORY, text)]).memory, Some(bytes), "{text}");
    }
    assert_eq!(read(&[]).memory, None);
    assert_problem(MEMORY, "31m", "less than 32m");
    for text in ["g", "4 g", "4gb", "-1g", "+4g", "1.5g", "99999999999g"] {
        assert_problem(MEMORY, text, "not an amount of memory");
    }
    assert_problem(IMAGE, "A B", "not the name of an image");
}

#[test]
fn tags_come_from_their_prefix() {
    let config = read(&[
        ("SPACELIFT_METADATA_instance_id", "i-1"),
        ("SPACELIFT_METADATA_ZONE", "a"),
        ("SPACELIFT_METADATA_e", ""),
    ]);
    let expected = [("ZONE", "a"), ("instance_id", "i-1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(config.metadata, BTreeMap::from(expected));
    assert_problem("SPACELIFT_METADATA_", "x", "missing");
    assert_problem("SPACELIFT_METADATA_x", &"v".repeat(MAXIMUM_METADATA_LENGTH + 1), "more than 1024 bytes");
    let names: Vec<String> = (0..=MAXIMUM_METADATA).map(|number| format!("{METADATA_PREFIX}{number}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    assert!(problems(&many)[0].contains("65 tags"));
}

#[test]
fn mappings_are_numbered_without_gaps() {
    let name = |number: u32| format!("{VCS_NAME_PREFIX}{number}");
    let endpoint = |number: u32| format!("{VCS_ENDPOINT_PREFIX}{number}");
    let config = read(&[
        (&name(0), "bitbucket_pool"),
        (&endpoint(0), "http://192.168.2.2"),
        (&name(1), "github_pool"),
        (&endpoint(1), "https://internal-github.net/"),
    ]);
    let mappings = [("bitbucket_pool", "http://192.168.2.2"), ("github_pool", "https://internal-github.net")];
    let mappings =
        mappings.map(|(name, endpoint)| VcsMapping { name: name.to_owned(), base_endpoint: endpoint.to_owned() });
    assert_eq!(config.vcs, mappings);
    assert_eq!(
        problems(&[(&name(0), "a")]),
        [format!("{}: it is not set, but {} is. Set both, or neither", endpoint(0), name(0))]
    );
    assert_eq!(
        problems(&[(&endpoint(0), "http://a")]),
        [format!("{}: it is not set, but {} is. Set both, or neither", name(0), endpoint(0))]
    );
    let gap = problems(&[(&name(1), "a"), (&endpoint(1), "http://a")]);
    assert!(gap.len() == 1 && gap[0].starts_with(&name(0)) && gap[0].contains("from 0 on"), "{gap:?}");
    for wrong in ["a", "ftp://a", "http://user:hunter2@a", "https://"] {
        let problems = problems(&[(&name(0), "a"), (&endpoint(0), wrong)]);
        assert!(problems.len() == 1 && problems[0].contains("not an address"), "{problems:?}");
        assert!(!problems[0].contains("hunter2"));
    }
    let twice = problems(&[(&name(0), "a"), (&endpoint(0), "http://a"), (&name(1), "a"), (&endpoint(1), "http://b")]);
    assert!(twice[0].contains("has this name already"), "{twice:?}");
    assert_problem(&format!("{VCS_NAME_PREFIX}01"), "a", "number");
}

#[test]
fn proxies_are_read_in_both_spellings_and_keep_their_password() {
    let config = read(&[
        ("HTTP_PROXY", "proxy:3128"),
        ("http_proxy", "http://other"),
        ("https_proxy", "http://user:hunter2@proxy:3128"),
        ("NO_PROXY", "localhost,.internal"),
    ]);
    assert_eq!(config.proxies.http.as_deref(), Some("http://proxy:3128"));
    assert_eq!(config.proxies.https.as_deref(), Some("http://user:hunter2@proxy:3128"));
    let public: Vec<&str> = config.proxies.public_variables().into_iter().map(|(name, _)| name).collect();
    assert_eq!(public, ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]);
    assert_eq!(config.proxies.variables().len(), 6);
    assert_problem("HTTPS_PROXY", "ftp://hunter2", "not a proxy");
}

#[test]
fn authorities_come_in_every_documented_wrapping() {
    let pem = &PAIR.certificate;
    let once = BASE64_STANDARD.encode(pem);
    let json = format!("{{\"caCertificates\": [\"{once}\", \"{once}\"]}}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, pem).unwrap();
    for (value, count) in [
        (pem.clone(), 1),
        (format!("{pem}\n{pem}"), 2),
        (once, 1),
        (BASE64_STANDARD.encode(&json), 2),
        (json, 2),
        (file.to_str().unwrap().to_owned(), 1),
    ] {
        let roots = read(&[(AUTHORITIES, &value)]).additional_roots;
        assert_eq!(roots.len(), count, "{value}");
        assert!(roots.iter().all(|root| root == pem), "{roots:?}");
    }
    for value in
        ["nothing", "bm90aGluZw==", "/no/such/file", "{\"caCertificates\": 1}", "{\"caCertificates\": [\"bm8=\"]}"]
    {
        let problems = problems(&[(AUTHORITIES, value)]);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
    let damaged = pem.replacen("MII", "MIA", 1);
    assert!(problems(&[(AUTHORITIES, &damaged)])[0].contains("certificate number 1"));
}

#[test]
fn the_engine_is_on_this_host() {
    for (value, expected) in [
        ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("tcp://localhost:2375", "tcp://localhost:2375"),
        ("127.0.0.1:2375", "tcp://127.0.0.1:2375"),
        ("tcp://[::1]:2375", "tcp://[::1]:2375"),
    ] {
        assert_eq!(read(&[(DOCKER_HOST, value)]).docker_host.as_deref(), Some(expected), "{value}");
    }
    for (value, part) in [
        ("tcp://10.0.0.1:2375", "another host"),
        ("tcp://localhost.example.com:2375", "another host"),
        ("tcp://localhost", "not an address"),
        ("unix://docker.sock", "not absolute"),
        ("ssh://host", "unix:///PATH"),
    ] {
        assert_problem(DOCKER_HOST, value, part);
    }
    let tls = problems(&[(DOCKER_HOST, "tcp://localhost:2376"), ("DOCKER_TLS_VERIFY", "1")]);
    assert!(tls[0].contains("does not speak TLS"), "{tls:?}");
}

#[test]
fn a_policy_is_compiled_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.rego");
    let path = file.to_str().unwrap();
    assert_problem(POLICY, path, "cannot read");
    std::fs::write(&file, "package spacelift\ndeny[\"x\"] { nonsense(1) }").unwrap();
    assert_problem(POLICY, path, "nonsense");
    std::fs::write(&file, "package spacelift\ndeny[\"x\"] { true }").unwrap();
    let policy = read(&[(POLICY, path)]).policy.unwrap();
    assert_eq!(policy.evaluate(serde_json::json!({})).deny, ["x"]);
    std::fs::write(&file, " ".repeat(2 * 1024 * 1024)).unwrap();
    assert_problem(POLICY, path, "more than 1048576 bytes");
}

#[test]
fn a_misspelt_name_is_noticed() {
    let config = read(&[("SPACELIFT_DEBGU", "true"), ("SPACELIFT_WORKER_NETWORKS", "x"), ("SPACELIFT_RUN_ID", "x")]);
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("SPACELIFT_DEBUG"), "{:?}", config.warnings);
    assert!(config.warnings[1].contains("SPACELIFT_WORKER_NETWORK "), "{:?}", config.warnings);
}

#[test]
fn what_is_not_text_is_a_problem() {
    use std::os::unix::ffi::OsStringExt as _;
    let damaged = || OsString::from_vec(vec![b'a', 0xff]);
    let own = PAIR.variables().into_iter().map(|(name, value)| (name.into(), value.into()));
    let more = [(NETWORK.into(), damaged()), (PASSED.into(), "DAMAGED".into()), ("DAMAGED".into(), damaged())];
    let problems = Config::from_variables(own.chain(more).chain([(damaged(), damaged())])).map(drop).unwrap_err();
    let named: Vec<&str> = problems.iter().map(|problem| problem.variable.as_str()).collect();
    assert_eq!(named, ["DAMAGED", NETWORK]);
}

#[test]
fn a_configuration_can_be_printed_without_its_secrets() {
    let config = read(&[(MASK, "PASSWORD"), ("PASSWORD", "hunter2"), ("HTTPS_PROXY", "http://u:hunter2@h:1")]);
    let text = format!("{config:?}");
    assert!(text.contains("PASSWORD") && !text.contains("hunter2"), "{text}");
    let key_line = PAIR.key.lines().nth(3).unwrap();
    assert!(!text.contains(key_line) && !text.contains(&config.token.to_variable()), "{text}");
}

#[test]
fn the_launchers_own_log_has_a_format_and_a_filter() {
    use tracing::Level;
    let log = read(&[]).log;
    assert_eq!(log.format, LogFormat::Human);
    assert!(log.filter.would_enable("spacelift_launcher::agent", &Level::INFO));
    assert!(!log.filter.would_enable("spacelift_launcher::agent", &Level::DEBUG));
    let log = read(&[(LOG_FORMAT, "json"), (LOG, "error,spacelift_launcher::agent=debug")]).log;
    assert_eq!(log.format, LogFormat::Json);
    assert!(log.filter.would_enable("spacelift_launcher::agent", &Level::DEBUG));
    assert!(!log.filter.would_enable("spacelift_launcher::session", &Level::WARN));
    assert_problem(LOG_FORMAT, "JSON lines", "neither `human` nor `json`");
    assert_problem(LOG, "verbose", "not a filter");
}

#[test]
fn metrics_are_for_this_host_unless_somebody_is_warned() {
    assert_eq!(read(&[]).metrics_address, None);
    for local in ["127.0.0.1:9464", "[::1]:9464", "127.1.2.3:0"] {
        let config = read(&[(METRICS_ADDRESS, local)]);
        assert_eq!((config.metrics_address.unwrap().to_string().as_str(), config.warnings.len()), (local, 0));
    }
    for open in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"] {
        let config = read(&[(METRICS_ADDRESS, open)]);
        assert!(config.warnings[0].contains("not on loopback") && config.warnings.len() == 1, "{:?}", config.warnings);
    }
    for wrong in ["9464", ":9464", "localhost:9464", "127.0.0.1", "http://127.0.0.1:9464"] {
        assert_problem(METRICS_ADDRESS, wrong, "127.0.0.1:9464");
    }
}

#[test]
fn a_service_manager_is_told_where_it_listens() {
    assert!(read(&[]).supervisor.is_none());
    let watchdog = |more: &[(&str, &str)]| {
        let config = read(&[&[("NOTIFY_SOCKET", "@manager")], more].concat());
        (config.supervisor.unwrap().watchdog, config.warnings.len())
    };
    let own = std::process::id().to_string();
    assert_eq!(watchdog(&[]), (None, 0));
    assert_eq!(watchdog(&[("WATCHDOG_USEC", "3000000")]), (Some(Duration::from_secs(3)), 0));
    assert_eq!(
        watchdog(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", own.as_str())]),
        (Some(Duration::from_secs(3)), 0)
    );
    assert_eq!(watchdog(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")]), (None, 0));
    assert_eq!(watchdog(&[("WATCHDOG_USEC", "often")]), (None, 1));
    // No reason not to start.
    let config = read(&[("NOTIFY_SOCKET", "vsock:2:1234")]);
    assert!(config.supervisor.is_none() && config.warnings[0].contains("NOTIFY_SOCKET"), "{:?}", config.warnings);
}
