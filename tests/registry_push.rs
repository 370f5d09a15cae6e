//! Pushing the image of a release to registries: to one with ECR's rules and names, and to others.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::ecr::{self, Door, Ecr, Fault, PASSWORD, TOKEN, base64};
use integration_tests::program;
use integration_tests::registry::Registry;
use integration_tests::release::noise;
use integration_tests::run::{Finished, finish, succeed, tool};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const VERSION: &str = "v1.2.3";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NAME: &str = "spacelift-launcher";
/// Part of the AWS credentials that the tests push with.
const SECRET_KEY: &str = "aws-secret-that-nobody-may-see";
/// Two configurations and two layers.
const BLOBS: u64 = 4;

/// A signed release with the launcher's image and nothing else.
struct Release {
    directory: TempDir,
    archive: PathBuf,
    certificate: PathBuf,
    digest: String,
}

impl Release {
    /// With this in its layers.
    fn with(contents: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("stage/container-images")).unwrap();
        fs::create_dir(path("home")).unwrap();
        ecr::image(&path("stage/container-images/spacelift-launcher.tar"), VERSION, COMMIT, contents);
        let config =
            "product: self-hosted\nchannel: stable\nsequence: 1\nsource: https://example.com/source\nthreshold: 1\n";
        fs::write(path("release.yaml"), config).unwrap();
        let run = |arguments: &[&str]| {
            finish(Command::new(program::bundle()).current_dir(directory.path()).args(arguments)).expect(0)
        };
        let user = "test <test@example.com>";
        run(&["keygen", "--name", "key", "--output", ".", "--user-id", user, "--no-passphrase"]);
        let describe = ["--version", VERSION, "--commit", COMMIT, "--source-date", "1700000000"];
        let pack = ["pack", "--json", "--stage", "stage", "--config", "release.yaml", "--output-dir", "."];
        run(&[&pack[..], &describe[..]].concat());
        run(&["sign", &format!("self-hosted-{VERSION}.unsigned.tar.gz"), "--key", "key.signing.asc"]);
        let archive = path(&format!("self-hosted-{VERSION}.tar.gz"));
        let seen = run(&["inspect", "--json", archive.to_str().unwrap()]).json();
        let digest = seen["images"][0]["digest"].as_str().unwrap_or_else(|| panic!("{seen}")).to_owned();
        Self { archive, certificate: path("key.cert.asc"), digest, directory }
    }

    fn small() -> Self {
        Self::with(b"what is in the layers\n")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A push to a repository, with nothing of this machine's configuration in its environment.
    fn push(&self, repository: &str) -> Command {
        self.push_of(&self.archive, &self.certificate, repository)
    }

    /// As [`Release::push`], of another archive or directory.
    fn push_of(&self, release: &Path, certificate: &Path, repository: &str) -> Command {
        let mut push = Command::new(program::bundle());
        push.env_clear().env("HOME", self.path("home")).env("TMPDIR", self.directory.path());
        push.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE").env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        push.env("AWS_REGION", "us-east-1").env("AWS_EC2_METADATA_DISABLED", "true");
        push.arg("push").arg(release).arg("--cert").arg(certificate).arg("--repository").arg(repository);
        push
    }

    /// A push to the ECR of a test under its real name.
    fn push_to_ecr(&self, ecr: &Ecr) -> Command {
        let mut push = self.push(&format!("{}/{NAME}", Ecr::host()));
        through(&mut push, ecr);
        push
    }

    /// A push to a server of a test under its address.
    fn push_to(&self, server: &Ecr) -> Command {
        let mut push = self.push(&format!("{}/{NAME}", server.address()));
        push.env("AWS_CA_BUNDLE", server.authority());
        push
    }

    /// A push over plain HTTP.
    fn push_plainly(&self, address: &str) -> Command {
        let mut push = self.push(&format!("{address}/{NAME}"));
        push.arg("--allow-http");
        push
    }

    /// What `docker login` writes.
    fn log_in(&self, address: &str, password: &str) {
        let auth = base64(format!("user:{password}").as_bytes());
        fs::create_dir_all(self.path("home/.docker")).unwrap();
        let config = json!({ "auths": { address: { "auth": auth } } });
        fs::write(self.path("home/.docker/config.json"), config.to_string()).unwrap();
    }
}

fn through(push: &mut Command, ecr: &Ecr) {
    push.env("HTTPS_PROXY", format!("http://{}", ecr.address())).env("AWS_CA_BUNDLE", ecr.authority());
}

/// Runs it, and looks whether it printed a secret.
#[track_caller]
fn run(push: &mut Command) -> Finished {
    let finished = finish(push);
    for secret in [SECRET_KEY, PASSWORD, TOKEN, &base64(format!("AWS:{PASSWORD}").as_bytes())] {
        assert!(!finished.says(secret), "{secret} was printed: {finished}");
    }
    finished
}

/// What a registry that lets everyone in has under a name.
fn raw(registry: &Registry, reference: &str) -> Vec<u8> {
    let from = format!("docker://{}/{reference}", registry.address());
    succeed(tool("skopeo").args(["inspect", "--tls-verify=false", "--raw", &from])).into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn counts(pushed: &Value) -> [u64; 3] {
    ["blobs_sent", "blobs_present", "blobs_mounted"].map(|name| pushed[name].as_u64().unwrap())
}

/// How many requests had this method and a target with this in it.
fn requests(ecr: &Ecr, method: &str, part: &str) -> usize {
    ecr.seen().iter().filter(|seen| seen.method == method && seen.target.contains(part)).count()
}

fn refuse(status: u16, code: &str, message: &str) -> Fault {
    let body = json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    Fault::Answer { status, headers: String::new(), body }
}

#[test]
fn ecr_gets_what_it_does_not_have_and_nothing_twice() {
    let (release, registry) = (Release::small(), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    let first = run(release.push_to_ecr(&ecr).args(["--create-repository", "--json"])).expect(0).json();
    let reference = format!("{}/{NAME}:{VERSION}@{}", Ecr::host(), release.digest);
    assert_eq!((&first["reference"], &first["digest"]), (&json!(reference), &json!(release.digest)));
    assert_eq!(counts(&first), [BLOBS, 0, 0]);
    let sent: u64 = ecr.seen().iter().filter(|seen| seen.target.contains("/blobs/")).map(|seen| seen.body).sum();
    assert_eq!(first["bytes_sent"], sent);
    let repository = ecr.repository(NAME).expect("it was made");
    assert!(repository.is_immutable && repository.is_scanned);

    // Others find the same image, for both processors, and can read all of it.
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);
    assert_eq!(digest(&raw(&registry, &format!("{NAME}@{}", release.digest))), release.digest);
    let from = format!("docker://{}/{NAME}:{VERSION}", registry.address());
    for architecture in ["amd64", "arm64"] {
        let mut skopeo = tool("skopeo");
        skopeo.args(["inspect", "--tls-verify=false", "--override-arch", architecture, &from]);
        assert_eq!(finish(&mut skopeo).expect(0).json()["Architecture"], architecture);
    }
    let copy = format!("dir:{}", release.path("copy").display());
    succeed(tool("skopeo").args(["copy", "--all", "--src-tls-verify=false", &from, &copy]));
    assert_eq!(digest(&fs::read(release.path("copy/manifest.json")).unwrap()), release.digest);

    // The order: blobs, children, index, tag.
    let puts: Vec<String> =
        ecr.seen().into_iter().filter(|seen| seen.method == "PUT").map(|seen| seen.target).collect();
    let first_manifest = puts.iter().position(|target| target.contains("/manifests/")).unwrap();
    assert_eq!(first_manifest as u64, BLOBS, "{puts:#?}");
    assert!(puts[first_manifest + 2].ends_with(&release.digest), "{puts:#?}");
    assert!(puts[first_manifest + 3].ends_with(VERSION), "{puts:#?}");

    // Again: one look at the tag, and nothing else goes to the registry.
    ecr.forget();
    let again = run(&mut release.push_to_ecr(&ecr)).expect(0);
    assert_eq!(again.stdout, format!("{reference}\n"));
    let seen: Vec<_> = ecr.seen().into_iter().filter(|seen| seen.target.starts_with("/v2/")).collect();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert_eq!(seen[0].method, "HEAD");
    let again = run(release.push_to_ecr(&ecr).args(["--create-repository", "--json"])).expect(0).json();
    assert_eq!((counts(&again), &again["bytes_sent"]), ([0, BLOBS, 0], &json!(0)));
}

#[test]
fn a_tag_is_never_moved() {
    let (old, new, registry) = (Release::small(), Release::with(b"something else"), Registry::start());
    // Not even where the registry would allow it.
    for door in [Door::Ecr, Door::Open] {
        let server = Ecr::start(&registry, door);
        server.create(NAME, true);
        let push = |release: &Release| match door {
            Door::Ecr => release.push_to_ecr(&server),
            _ => release.push_to(&server),
        };
        run(&mut push(&old)).expect(0);
        server.forget();
        let refused = run(&mut push(&new)).expect(69);
        assert!(refused.says(&old.digest) && refused.says(&new.digest), "{refused}");
        assert!(refused.says(&format!("{NAME}:{VERSION} exists already")), "{refused}");
        assert_eq!(requests(&server, "POST", "/blobs/") + requests(&server, "PUT", ""), 0, "nothing was sent");
        let seen = run(push(&new).arg("--dry-run")).expect(0);
        assert!(seen.stdout.contains("a push would be refused"), "{seen}");
        // Under another tag there is room, and the layers' other halves are there already.
        run(push(&new).args(["--tag", &format!("other-{door:?}")])).expect(0);
    }
}

#[test]
fn a_dry_run_sends_nothing() {
    let (release, registry) = (Release::small(), Registry::start());
    let server = Ecr::start(&registry, Door::Open);
    let seen = run(release.push_to(&server).args(["--dry-run", "--json"])).expect(0).json();
    assert_eq!((&seen["digest"], &seen["existing"]), (&json!(release.digest), &json!(null)));
    assert!(server.seen().iter().all(|seen| matches!(seen.method.as_str(), "GET" | "HEAD")));
    run(&mut release.push_to(&server)).expect(0);
    let seen = run(release.push_to(&server).arg("--dry-run")).expect(0);
    assert!(seen.stdout.contains("already"), "{seen}");
}

#[test]
fn only_what_was_verified_is_pushed() {
    let (release, registry) = (Release::small(), Registry::start());
    let server = Ecr::start(&registry, Door::Open);
    // The directory of an unpacked release is as good as the archive.
    succeed(tool("tar").arg("-xzf").arg(&release.archive).current_dir(release.directory.path()));
    let unpacked = release.path(&format!("self-hosted-{VERSION}"));
    let from_directory = |certificate: &Path| {
        let mut push = release.push_of(&unpacked, certificate, &format!("{}/directory", server.address()));
        push.env("AWS_CA_BUNDLE", server.authority());
        push
    };
    run(&mut from_directory(&release.certificate)).expect(0);
    assert_eq!(digest(&raw(&registry, &format!("directory:{VERSION}"))), release.digest);

    server.forget();
    let image = unpacked.join("container-images/spacelift-launcher.tar");
    let mut bytes = fs::read(&image).unwrap();
    bytes[2000] ^= 1;
    fs::write(&image, bytes).unwrap();
    run(&mut from_directory(&release.certificate)).expect(17);
    let stranger = Release::small();
    let refused = run(&mut from_directory(&stranger.certificate)).expect(17);
    assert!(refused.says("0 of the required 1"), "{refused}");
    let mut bytes = fs::read(&release.archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&release.archive, bytes).unwrap();
    run(&mut release.push_to(&server)).expect(15);
    assert!(server.seen().is_empty(), "nothing is asked of the registry before the release is verified");
    // What was unpacked to be pushed is gone.
    let left = fs::read_dir(release.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with("spacelift-bundle-")));
}

/// The directory of an unpacked release is somebody's; what is in it when it is sent counts.
#[test]
fn what_changes_after_it_was_verified_is_not_pushed() {
    let (release, registry) = (Release::with(&noise(32 << 20)), Registry::start());
    let server = Ecr::start(&registry, Door::Open);
    succeed(tool("tar").arg("-xzf").arg(&release.archive).current_dir(release.directory.path()));
    let unpacked = release.path(&format!("self-hosted-{VERSION}"));
    // The layers are the largest and are sent first.
    for _ in 0..2 {
        server.fail("PUT /v2/", Fault::Slow(Duration::from_millis(2)));
    }
    let mut push = release.push_of(&unpacked, &release.certificate, &format!("{}/{NAME}", server.address()));
    push.env("AWS_CA_BUNDLE", server.authority());
    let running = thread::spawn(move || finish(&mut push));
    while requests(&server, "PUT", "/blobs/") < 2 {
        assert!(!running.is_finished(), "{}", running.join().unwrap());
        thread::sleep(Duration::from_millis(1));
    }
    let image = fs::OpenOptions::new().write(true).open(unpacked.join("container-images/spacelift-launcher.tar"));
    let image = image.unwrap();
    for at in [30 << 20, 62 << 20] {
        image.write_all_at(b"other bytes", at).unwrap();
    }
    let refused = running.join().unwrap().expect(65);
    assert!(refused.says("changed after it was verified"), "{refused}");
    assert_eq!(requests(&server, "PUT", "/manifests/"), 0);
}

#[test]
fn plain_http_only_on_request_and_never_instead_of_bad_tls() {
    let (release, registry) = (Release::small(), Registry::start());
    let refused = run(&mut release.push(&format!("{}/{NAME}", registry.address()))).expect(64);
    assert!(refused.says("does not speak TLS") && refused.says("--allow-http"), "{refused}");
    run(&mut release.push_plainly(&registry.address())).expect(0);
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);

    let server = Ecr::start(&registry, Door::Open);
    let refused = run(&mut release.push_plainly(&server.address()));
    // It answers both; TLS is tried first, and its certificate is nobody's.
    let refused = refused.expect(69);
    assert!(refused.says("AWS_CA_BUNDLE") && refused.says("certificate"), "{refused}");
    assert!(server.seen().is_empty(), "no request was made in the clear");
    run(release.push_plainly(&server.address()).env("AWS_CA_BUNDLE", server.authority())).expect(0);
}

#[test]
fn pushes_of_one_tag_at_once_end_with_one_image() {
    let (release, other, registry) = (Release::small(), Release::with(&noise(4 << 20)), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    ecr.create(NAME, true);
    let all = |pushes: Vec<Command>| -> Vec<Finished> {
        let threads: Vec<_> = pushes.into_iter().map(|mut push| thread::spawn(move || finish(&mut push))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    };
    let same: Vec<Command> = (0..4).map(|_| release.push_to_ecr(&ecr)).collect();
    for finished in all(same) {
        assert!(finished.expect(0).stdout.contains(&release.digest));
    }
    // Two releases with one version: the first wins, the other one says so.
    let tagged = |release: &Release| {
        let mut push = release.push_to_ecr(&ecr);
        push.args(["--tag", "contested"]);
        push
    };
    let finished = all(vec![tagged(&release), tagged(&other), tagged(&release), tagged(&other)]);
    let winner = digest(&raw(&registry, &format!("{NAME}:contested")));
    for (finished, release) in finished.into_iter().zip([&release, &other, &release, &other]) {
        if release.digest == winner {
            finished.expect(0);
        } else {
            let refused = finished.expect(69);
            assert!(refused.says(&winner) && refused.says("exists already"), "{refused}");
        }
    }
}

#[test]
fn failures_that_pass_are_waited_out() {
    let (release, registry) = (Release::with(&noise(2 << 20)), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    ecr.create(NAME, true);
    let slow_down = |status| Fault::Answer { status, headers: "Retry-After: 1\r\n".into(), body: String::new() };
    ecr.fail("HEAD /v2/spacelift-launcher/manifests/v1.2.3", slow_down(429));
    ecr.fail("POST /v2/spacelift-launcher/blobs/uploads/", refuse(500, "UNKNOWN", "a hiccup"));
    ecr.fail("PUT /v2/spacelift-launcher/blobs/uploads/", Fault::Cut(1 << 20));
    ecr.fail("PUT /v2/spacelift-launcher/manifests/sha256:", refuse(503, "UNAVAILABLE", "a hiccup"));
    ecr.fail("PUT /v2/spacelift-launcher/manifests/sha256:", refuse(400, "DIGEST_INVALID", "half of it is missing"));
    let started = Instant::now();
    let pushed = run(release.push_to_ecr(&ecr).arg("--json")).expect(0);
    assert!(started.elapsed() >= Duration::from_secs(1), "the registry asked for a second");
    assert_eq!(counts(&pushed.json()), [BLOBS, 0, 0]);
    for said in ["status 429", "status 500", "a hiccup", "half of it is missing", "trying again in"] {
        assert!(pushed.stderr.contains(said), "{said}: {pushed}");
    }
    // The blob that was cut off was started again, whole.
    let cut: Vec<u64> =
        ecr.seen().iter().filter(|seen| seen.target.contains("digest=")).map(|seen| seen.body).collect();
    assert_eq!(cut.len() as u64, BLOBS + 1, "{cut:?}");
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);
}

#[test]
fn failures_that_stay_are_reported_and_leave_no_tag() {
    let (release, registry) = (Release::small(), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    ecr.create(NAME, true);
    for _ in 0..5 {
        ecr.fail("manifests/sha256:", refuse(503, "UNAVAILABLE", "down for today"));
    }
    let refused = run(&mut release.push_to_ecr(&ecr)).expect(75);
    for said in ["503", "5 times", "try again later"] {
        assert!(refused.stderr.contains(said), "{said}: {refused}");
    }
    assert_eq!(requests(&ecr, "PUT", &format!("manifests/{VERSION}")), 0);
    // The next one finishes it, and sends no blob again.
    let pushed = run(release.push_to_ecr(&ecr).arg("--json")).expect(0).json();
    assert_eq!(counts(&pushed), [0, BLOBS, 0]);

    let refused = run(&mut release.push("127.0.0.1:1/a")).expect(69);
    assert!(refused.says("cannot be reached") && refused.says("https://127.0.0.1:1"), "{refused}");
}

#[test]
fn refusals_say_what_to_do() {
    let (release, registry) = (Release::small(), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    let refused = run(&mut release.push_to_ecr(&ecr)).expect(69);
    for said in
        ["spacelift-launcher does not exist", ecr::ACCOUNT, ecr::REGION, "--create-repository", "infra-ecr.yaml"]
    {
        assert!(refused.stderr.contains(said), "{said}: {refused}");
    }
    ecr.create(NAME, false);
    let warned = run(release.push_to_ecr(&ecr).arg("--create-repository")).expect(0);
    assert!(warned.stderr.contains("warning") && warned.stderr.contains("can be moved"), "{warned}");

    let other = ["--tag", "other"];
    let cases: [(&str, Fault, i32, &[&str]); 5] = [
        (
            "POST /v2/",
            refuse(403, "DENIED", "not authorized to perform: ecr:InitiateLayerUpload"),
            77,
            &["not allowed", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:GetAuthorizationToken"],
        ),
        ("PUT /v2/", refuse(405, "UNSUPPORTED", "read-only today"), 69, &["refused to", "read-only today"]),
        ("PUT /v2/", refuse(400, "MANIFEST_INVALID", "other bytes"), 69, &["refused to push", "other bytes"]),
        ("PUT /v2/", refuse(413, "TOO_LARGE", "\u{1b}[2Jcleared"), 69, &["413"]),
        ("HEAD /v2/", Fault::Answer { status: 302, headers: String::new(), body: String::new() }, 69, &["no Location"]),
    ];
    for (part, fault, code, says) in cases {
        let release = Release::with(format!("{fault:?}").as_bytes());
        ecr.fail(part, fault);
        ecr.forget();
        let refused = run(release.push_to_ecr(&ecr).args(other)).expect(code);
        for said in says {
            assert!(refused.stderr.contains(said), "{said}: {refused}");
        }
        assert!(!refused.says("\u{1b}"), "{refused}");
        assert!(!refused.says("trying again"), "{refused}");
    }

    let mut denied = release.push_to_ecr(&ecr);
    let error = json!({ "__type": "AccessDeniedException", "message": "no identity-based policy allows it" });
    ecr.fail("POST /", Fault::Answer { status: 400, headers: String::new(), body: error.to_string() });
    let refused = run(&mut denied).expect(77);
    assert!(refused.says("ecr:GetAuthorizationToken") && refused.says("no identity-based policy"), "{refused}");
    let error = json!({ "__type": "ExpiredTokenException", "message": "The security token is expired" });
    ecr.fail("POST /", Fault::Answer { status: 400, headers: String::new(), body: error.to_string() });
    let refused = run(&mut release.push_to_ecr(&ecr)).expect(77);
    assert!(refused.says("is expired") && refused.says("sign in again"), "{refused}");
    let mut nobody = release.push_to_ecr(&ecr);
    nobody.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let refused = run(&mut nobody).expect(77);
    assert!(refused.says("credentials") && refused.says("AWS_PROFILE"), "{refused}");
    // A registry that does not take its own token says so with the token in its answer: it is not repeated.
    ecr.fail("HEAD /v2/", refuse(401, "UNAUTHORIZED", ""));
    let refused = run(release.push_to_ecr(&ecr).args(["--tag", "new"])).expect(77);
    assert!(refused.says("refused the token") && refused.says(ecr::ACCOUNT), "{refused}");
    let echo = format!("you sent Basic {} which is {PASSWORD}", base64(format!("AWS:{PASSWORD}").as_bytes()));
    ecr.fail("PUT /v2/", refuse(400, "UNKNOWN", &echo));
    let refused = run(release.push_to_ecr(&ecr).args(["--tag", "new"])).expect(69);
    assert!(refused.says("you sent Basic *** which is ***"), "{refused}");
}

#[test]
fn proxies_and_authorities_of_the_customer() {
    let (release, registry) = (Release::small(), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    ecr.create(NAME, true);
    let refused = run(release.push_to_ecr(&ecr).env_remove("AWS_CA_BUNDLE")).expect(69);
    assert!(refused.says("AWS_CA_BUNDLE"), "{refused}");
    ecr.require_proxy_password("open-sesame");
    let refused = run(&mut release.push_to_ecr(&ecr)).expect(77);
    assert!(refused.says("HTTPS_PROXY") && !refused.says("open-sesame"), "{refused}");
    let mut push = release.push_to_ecr(&ecr);
    run(push.env("HTTPS_PROXY", format!("http://proxy:open-sesame@{}", ecr.address()))).expect(0);

    // The same between us and a registry that is not ECR.
    let other = Ecr::start(&registry, Door::Open);
    other.require_proxy_password("open-sesame");
    let mut push = release.push("registry.example.com/a");
    through(&mut push, &other);
    let refused = run(&mut push).expect(77);
    assert!(refused.says("asks for credentials") && refused.says("HTTPS_PROXY"), "{refused}");
}

#[test]
fn credentials_go_nowhere_else() {
    let (release, registry) = (Release::small(), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    let storage = Ecr::start(&registry, Door::Open);
    ecr.create(NAME, true);
    let mut push = release.push_to_ecr(&ecr);
    // One authority for both, so that the way leads through TLS as it does in the world.
    let both = [fs::read(ecr.authority()).unwrap(), fs::read(storage.authority()).unwrap()].concat();
    let bundle = release.path("both.pem");
    fs::write(&bundle, both).unwrap();
    push.env("AWS_CA_BUNDLE", &bundle).env("NO_PROXY", "127.0.0.1");
    let elsewhere = format!("https://{}", storage.address());
    for _ in 0..BLOBS {
        ecr.fail("POST /v2/", Fault::Elsewhere(elsewhere.clone()));
    }
    let redirect = format!("Location: {elsewhere}/v2/{NAME}/manifests/{VERSION}\r\n");
    ecr.fail("HEAD /v2/", Fault::Answer { status: 307, headers: redirect, body: String::new() });
    run(&mut push).expect(0);
    let seen = storage.seen();
    assert_eq!(seen.iter().filter(|seen| seen.method == "PUT").count() as u64, BLOBS, "{seen:#?}");
    assert_eq!(seen.iter().filter(|seen| seen.method == "HEAD").count(), 1, "{seen:#?}");
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("authorization")), "{seen:#?}");
    let tokens = ecr.seen().iter().filter(|seen| seen.headers.contains_key("authorization")).count();
    assert!(tokens > 0, "the registry itself gets them");

    // From TLS to plain HTTP nothing goes at all.
    let release = Release::with(b"another");
    storage.forget();
    for _ in 0..BLOBS {
        ecr.fail("POST /v2/", Fault::Elsewhere(format!("http://{}", storage.address())));
    }
    let mut push = release.push_to_ecr(&ecr);
    let refused = run(push.args(["--tag", "other", "--allow-http"])).expect(69);
    assert!(refused.says("from TLS to plain HTTP"), "{refused}");
    assert!(storage.seen().is_empty());
}

#[test]
fn other_registries_take_what_docker_login_stored() {
    let (release, registry) = (Release::small(), Registry::start());
    let server = Ecr::start(&registry, Door::Token);
    let push = || release.push_to(&server);
    let refused = run(&mut push()).expect(77);
    assert!(refused.says(&format!("docker login {}", server.address())), "{refused}");
    release.log_in(&server.address(), "wrong-password");
    let refused = run(&mut push()).expect(77);
    assert!(refused.says("docker login") && !refused.says("wrong-password"), "{refused}");
    assert!(!refused.says(&base64(b"user:wrong-password")), "{refused}");
    release.log_in("other.example.com", PASSWORD);
    run(&mut push()).expect(77);
    release.log_in(&server.address(), PASSWORD);
    server.forget();
    run(&mut push()).expect(0);
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);
    for seen in server.seen() {
        let given = seen.headers.get("authorization").map(String::as_str);
        let is_token_server = seen.target.starts_with("/token?");
        assert!(given.is_none_or(|given| given.starts_with("Basic ") == is_token_server), "{seen:?}");
        if is_token_server {
            assert!(seen.target.contains("scope=repository%3Aspacelift-launcher%3Apull%2Cpush"), "{seen:?}");
            assert!(seen.target.contains("service=registry%20of%20a%20test"), "{seen:?}");
        }
    }
    assert_eq!(requests(&server, "GET", "/token?"), 1, "one token is enough");

    let config = json!({ "auths": { server.address(): {} }, "credsStore": "desktop" });
    fs::write(release.path("home/.docker/config.json"), config.to_string()).unwrap();
    let refused = run(&mut push()).expect(64);
    assert!(refused.says("credential helper desktop") && refused.says("DOCKER_CONFIG"), "{refused}");
    // Another directory may have the password.
    let directory = release.path("docker");
    fs::rename(release.path("home/.docker"), &directory).unwrap();
    fs::write(directory.join("config.json"), "{").unwrap();
    let refused = run(push().env("DOCKER_CONFIG", &directory)).expect(64);
    assert!(refused.says(directory.join("config.json").to_str().unwrap()), "{refused}");

    let open = Ecr::start(&registry, Door::AnonymousToken);
    run(release.push_to(&open).args(["--tag", "anonymous"])).expect(0);
}

#[test]
fn only_what_is_on_aws_needs_aws() {
    let (release, registry) = (Release::small(), Registry::start());
    let without = |mut push: Command| {
        push.env_remove("AWS_REGION");
        push
    };
    let mut elsewhere = without(release.push_plainly(&registry.address()));
    run(elsewhere.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY")).expect(0);
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);
    // The address of a registry of ECR has its region.
    let ecr = Ecr::start(&registry, Door::Ecr);
    run(without(release.push_to_ecr(&ecr)).arg("--create-repository")).expect(0);
    // An emulator's has not.
    let mut emulated = without(release.push_plainly(&registry.address()));
    let refused = run(emulated.args(["--endpoint-url", "http://127.0.0.1:1"])).expect(64);
    assert!(refused.says("AWS_REGION"), "{refused}");
}

#[test]
fn an_emulator_of_ecr_has_its_registry_where_it_says() {
    let (release, registry) = (Release::small(), Registry::start());
    let emulator = Ecr::start(&registry, Door::Open);
    let endpoint = format!("http://{}", emulator.address());
    run(release.push_to(&emulator).args(["--create-repository", "--allow-http", "--endpoint-url", &endpoint]))
        .expect(0);
    assert!(emulator.repository(NAME).is_some_and(|repository| repository.is_immutable));
    // A registry that the emulator knows nothing of gets no token of it.
    let stranger = Ecr::start(&registry, Door::Ecr);
    stranger.create("other", true);
    let mut push = release.push(&format!("{}/other", stranger.address()));
    push.args(["--allow-http", "--endpoint-url", &endpoint]).env("AWS_CA_BUNDLE", stranger.authority());
    let refused = run(&mut push).expect(77);
    assert!(refused.says("docker login"), "{refused}");
    assert!(stranger.seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
    let refused = run(release.push_plainly(&registry.address()).arg("--create-repository")).expect(64);
    assert!(refused.says("not in ECR"), "{refused}");
    // An endpoint of its own for ECR needs the same consent to plain HTTP as every other.
    let mut push = release.push_to(&emulator);
    let refused = run(push.env("AWS_ENDPOINT_URL_ECR", &endpoint)).expect(64);
    assert!(refused.says("is plain HTTP") && refused.says("--allow-http"), "{refused}");
}

#[test]
fn blobs_are_taken_from_another_repository_when_asked() {
    let (release, registry) = (Release::small(), Registry::start());
    let server = Ecr::start(&registry, Door::Open);
    let push = |name: &str| {
        let mut push = release.push(&format!("{}/{name}", server.address()));
        push.args(["--json", "--allow-http"]).env("AWS_CA_BUNDLE", server.authority());
        push
    };
    run(&mut push("first")).expect(0);
    let mounted = run(push("second").args(["--mount-from", "first"])).expect(0).json();
    assert_eq!((counts(&mounted), &mounted["bytes_sent"]), ([0, 0, BLOBS], &json!(0)));
    assert_eq!(digest(&raw(&registry, &format!("second:{VERSION}"))), release.digest);
    // One that has nothing, or is refused, costs nothing but the question.
    let sent = run(push("third").args(["--mount-from", "empty"])).expect(0).json();
    assert_eq!(counts(&sent), [BLOBS, 0, 0]);
    server.fail("mount=", refuse(404, "NAME_UNKNOWN", "from"));
    let sent = run(push("fourth").args(["--mount-from", "first"])).expect(0).json();
    assert_eq!(counts(&sent), [1, 0, BLOBS - 1]);
    run(push("fifth").args(["--mount-from", "example.com:5000/first"])).expect(64);
}

#[test]
fn wrong_calls_are_usage_errors() {
    let release = Release::small();
    for (repository, says) in [("spacelift-launcher", "no name"), ("https://a.b/c", "scheme"), ("a.b/c:v1", "tag")] {
        let refused = run(&mut release.push(repository)).expect(64);
        assert!(refused.says(says), "{refused}");
    }
    let refused = run(release.push("a.b/c").args(["--tag", "a b"])).expect(64);
    assert!(refused.says("cannot be a tag"), "{refused}");
    run(release.push("a.b/c").args(["--threshold", "2"])).expect(64);
    let failed = run(release.push("a.b/c").args(["--tag", "a b", "--json"])).expect(64).json();
    assert_eq!((&failed["ok"], &failed["exit_code"]), (&json!(false), &json!(64)));
}

/// The largest amount of memory that a process had, in KiB, and how it ended.
fn peak(mut child: Child) -> (u64, Option<i32>) {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            return (peak, status.code());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn large_layers_take_little_memory() {
    let (release, registry) = (Release::with(&noise(150 << 20)), Registry::start());
    let mut push = release.push_plainly(&registry.address());
    let (peak, code) = peak(push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert_eq!(code, Some(0));
    assert!((1..=128 << 10).contains(&peak), "{peak} KiB");
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);
}

#[test]
fn an_interrupted_push_ends_soon_and_is_finished_by_the_next_one() {
    let (release, registry) = (Release::with(&noise(32 << 20)), Registry::start());
    let ecr = Ecr::start(&registry, Door::Ecr);
    ecr.create(NAME, true);
    for _ in 0..2 {
        // The layers are the largest and are sent first.
        ecr.fail("PUT /v2/", Fault::Slow(Duration::from_millis(200)));
    }
    let mut child = release.push_to_ecr(&ecr).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while requests(&ecr, "PUT", "/blobs/") == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "no upload was started");
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be interrupted");
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    assert_eq!(requests(&ecr, "PUT", "/manifests/"), 0);
    // Faults that were not used up are forgotten with the server.
    let ecr = Ecr::start(&registry, Door::Ecr);
    ecr.create(NAME, true);
    run(&mut release.push_to_ecr(&ecr)).expect(0);
    assert_eq!(digest(&raw(&registry, &format!("{NAME}:{VERSION}"))), release.digest);
}
