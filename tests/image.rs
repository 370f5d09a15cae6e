//! The launcher's image, as container tools see it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use integration_tests::docker::{Engine, busybox_root};
use integration_tests::registry::Registry;
use integration_tests::release::{ARCHITECTURES, Release, Unpacked};
use integration_tests::run::{finish, succeed, tool};
use integration_tests::tree;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The user of launcher images, documented since their first release.
const USER: &str = "1983:1983";

fn image(unpacked: &Unpacked) -> PathBuf {
    unpacked.root.join("container-images/spacelift-launcher.tar")
}

/// The digest that the release's manifest gives.
fn digest(unpacked: &Unpacked) -> String {
    let images = unpacked.manifest["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["name"] == "spacelift-launcher").expect("the launcher's image");
    assert_eq!(image["path"], "container-images/spacelift-launcher.tar");
    assert_eq!(image["platforms"], json!(["linux/amd64", "linux/arm64"]));
    image["digest"].as_str().unwrap().to_owned()
}

/// The names of processors in container images.
fn platform(architecture: &str) -> &str {
    if architecture == "x86_64" { "amd64" } else { "arm64" }
}

fn inspect(reference: &str, architecture: &str) -> Value {
    let mut skopeo = tool("skopeo");
    skopeo.args(["inspect", "--tls-verify=false", "--override-arch", platform(architecture), reference]);
    finish(&mut skopeo).expect(0).json()
}

fn raw_digest(reference: &str) -> String {
    let document = succeed(tool("skopeo").args(["inspect", "--tls-verify=false", "--raw", reference]));
    let digest: String = Sha256::digest(document).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

fn check_labels(labels: &Value, unpacked: &Unpacked) {
    for (label, field) in [("version", "version"), ("revision", "commit"), ("source", "source")] {
        let name = format!("org.opencontainers.image.{label}");
        assert_eq!(labels[&name], unpacked.manifest[field], "{name}");
    }
}

#[test]
fn skopeo_inspects_every_platform() {
    let unpacked = Release::under_test().unpack();
    let reference = format!("oci-archive:{}", image(&unpacked).display());
    for architecture in ARCHITECTURES {
        let seen = inspect(&reference, architecture);
        assert_eq!((&seen["Architecture"], &seen["Os"]), (&json!(platform(architecture)), &json!("linux")));
        assert_eq!(seen["Layers"].as_array().unwrap().len(), 2, "certificates and users, then the launcher");
        check_labels(&seen["Labels"], &unpacked);
    }
    assert_eq!(raw_digest(&reference), digest(&unpacked));
    // Without a choice it is the machine's own.
    let seen = finish(tool("skopeo").args(["inspect", &reference])).expect(0).json();
    assert_eq!(seen["Architecture"], platform(std::env::consts::ARCH));
}

#[test]
fn skopeo_copies_it_to_a_registry_with_the_same_digest() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let registry = Registry::start();
    let to = format!("docker://{}/spacelift-launcher:{}", registry.address(), release.version);
    let from = format!("oci-archive:{}", image(&unpacked).display());
    succeed(tool("skopeo").args(["copy", "--all", "--dest-tls-verify=false", &from, &to]));
    assert_eq!(raw_digest(&to), digest(&unpacked));
    for architecture in ARCHITECTURES {
        let seen = inspect(&to, architecture);
        assert_eq!(seen["Architecture"], platform(architecture));
        assert_eq!(seen["Digest"], digest(&unpacked), "the platforms are under one index");
        assert_eq!(seen["RepoTags"], json!([release.version]));
    }
    // By the digest, too: that is how workers pull it.
    let by_digest = format!("docker://{}/spacelift-launcher@{}", registry.address(), digest(&unpacked));
    assert_eq!(raw_digest(&by_digest), digest(&unpacked));
}

/// Unpacks one platform's layers in order.
fn root_of(image: &Path, architecture: &str, directory: &Path) -> PathBuf {
    let copy = directory.join("layers");
    let mut skopeo = tool("skopeo");
    skopeo.args(["copy", "--override-arch", platform(architecture)]).arg(format!("oci-archive:{}", image.display()));
    succeed(skopeo.arg(format!("dir:{}", copy.display())));
    let manifest: Value = serde_json::from_slice(&fs::read(copy.join("manifest.json")).unwrap()).unwrap();
    let root = directory.join("root");
    fs::create_dir(&root).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let name = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
        succeed(tool("tar").args(["--same-permissions", "-xzf"]).arg(copy.join(name)).arg("-C").arg(&root));
    }
    root
}

#[test]
fn it_holds_the_launcher_of_the_release_and_what_tls_needs() {
    let unpacked = Release::under_test().unpack();
    for architecture in ARCHITECTURES {
        let root = root_of(&image(&unpacked), architecture, &unpacked.scratch(architecture));
        let inside = tree::sha256(&root.join("usr/bin/spacelift-launcher"));
        assert_eq!(inside, tree::sha256(&unpacked.program("spacelift-launcher", architecture)), "{architecture}");

        // Every certificate of the bundle parses; openssl counts them.
        let bundle = root.join("etc/ssl/certs/ca-certificates.crt");
        let text = fs::read_to_string(&bundle).unwrap();
        let marked = text.matches("-----BEGIN CERTIFICATE-----").count();
        assert!(marked >= 50, "{marked} certificates are not what the web trusts");
        let listed = succeed(tool("openssl").args(["storeutl", "-noout", "-certs"]).arg(&bundle));
        assert!(listed.contains(&format!("Total found: {marked}")), "{listed}");

        let users = fs::read_to_string(root.join("etc/passwd")).unwrap();
        assert!(users.lines().any(|line| line.starts_with("spacelift:x:1983:1983:")), "{users}");
        let groups = fs::read_to_string(root.join("etc/group")).unwrap();
        assert!(groups.lines().any(|line| line.starts_with("spacelift:x:1983:")), "{groups}");

        let modes: BTreeMap<_, _> = tree::read(&root).into_iter().collect();
        for (path, node) in modes {
            let mode = match node {
                tree::Node::Directory { mode } | tree::Node::File { mode, .. } => mode,
                tree::Node::Other => panic!("{path} is neither a file nor a directory"),
            };
            assert_eq!(mode & 0o6000, 0, "{path} changes its user");
            assert!(mode & 0o002 == 0 || path == "tmp", "everyone can write to {path}");
        }
    }
}

#[test]
fn docker_loads_and_runs_it() {
    let release = Release::under_test();
    let unpacked = release.unpack();
    let engine = Engine::start();
    succeed(engine.docker().args(["load", "--input"]).arg(image(&unpacked)));
    let name = format!("spacelift-launcher:{}", release.version);

    let said = finish(engine.run().args([&name, "--version", "--json"])).expect(0).json();
    let launcher = unpacked.runnable("spacelift-launcher", std::env::consts::ARCH);
    let expected = finish({ launcher }.args(["--version", "--json"])).expect(0).json();
    assert_eq!(said, expected, "the image for this processor is what the plain name means");
    assert_eq!(said["version"], release.version);
    // Its own user may write to its own directory, and what it writes there runs.
    let extracted = succeed(engine.run().args([&name, "extract-worker"]));
    assert!(extracted.starts_with("/opt/spacelift/workers/spacelift-worker-"), "{extracted}");
    // Without arguments it is the agent, which says what it lacks.
    let lacking = finish(engine.run().arg(&name)).expect(64);
    assert!(lacking.says("SPACELIFT_TOKEN") && lacking.says("SPACELIFT_POOL_PRIVATE_KEY"), "{lacking}");

    let seen = finish(engine.docker().args(["image", "inspect", &name])).expect(0).json();
    let (config, root) = (&seen[0]["Config"], &seen[0]["RootFS"]);
    assert_eq!(config["User"], USER);
    assert_eq!(config["Entrypoint"], json!(["/usr/bin/spacelift-launcher"]));
    assert_eq!(config["WorkingDir"], "/opt/spacelift");
    check_labels(&config["Labels"], &unpacked);
    assert_eq!(root["Layers"].as_array().unwrap().len(), 2);
    let environment = config["Env"].as_array().unwrap();
    assert!(environment.contains(&json!("SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt")), "{environment:?}");
    let date = finish(unpacked.bundle().arg("inspect").arg(&release.archive).arg("--json")).expect(0).json();
    assert_eq!(seen[0]["Created"], date["date"], "the commit's time, not the build's");

    for architecture in ARCHITECTURES {
        let name = format!("{name}-{}", platform(architecture));
        let seen = finish(engine.docker().args(["image", "inspect", &name])).expect(0).json();
        assert_eq!(seen[0]["Architecture"], platform(architecture));
    }
}

/// What a vendor adds, as the tools write it that vendors have: `docker save`, and skopeo for an OCI layout.
#[test]
fn images_of_the_vendor_are_packed_as_they_are() {
    let tested = Release::under_test();
    let unpacked = tested.unpack();
    let (output, vendor) = (unpacked.scratch("output"), unpacked.scratch("vendor"));
    let engine = Engine::start();
    engine.import(busybox_root().path(), "backend:1.0");
    succeed(engine.docker().args(["save", "--output"]).arg(vendor.join("backend.tar")).arg("backend:1.0"));
    let layout = format!("oci:{}:1.0", vendor.join("frontend").display());
    let saved = format!("docker-archive:{}", vendor.join("backend.tar").display());
    succeed(tool("skopeo").args(["copy", &saved, &layout]));
    fs::write(vendor.join("guide.md"), "How to\n").unwrap();
    let added = "images:\n  - name: backend\n    path: backend.tar\n  - name: frontend\n    path: frontend\n\
                 files:\n  - path: docs/guide.md\n    source: guide.md\n";
    let config = vendor.join("release.yaml");
    fs::write(&config, fs::read_to_string(unpacked.config()).unwrap() + added).unwrap();
    let stage = unpacked.stage();
    finish(unpacked.pack_with(&stage, &config).arg("--output-dir").arg(&output)).expect(0);

    let key = unpacked.keygen(&unpacked.scratch("keys"), "test", &["--no-passphrase"]);
    let made = Release::in_directory(&output, &tested.version, &key.certificate);
    succeed(unpacked.bundle().arg("sign").arg(&made.unsigned).arg("--key").arg(&key.signing));
    let target = unpacked.scratch("target").join("release");
    let mut verify = unpacked.bundle();
    verify.arg("verify").arg(&made.archive).arg("--cert").arg(&made.certificate).arg("--unpack").arg(&target);
    succeed(&mut verify);

    let manifest: Value = serde_json::from_slice(&fs::read(target.join("manifest.json")).unwrap()).unwrap();
    let images = manifest["images"].as_array().unwrap();
    let names: Vec<_> = images.iter().map(|image| image["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["backend", "frontend", "spacelift-launcher"]);
    assert_eq!(images[1]["digest"], raw_digest(&layout), "a registry would give it the same digest");
    let packed = format!("oci-archive:{}", target.join("container-images/frontend.tar").display());
    assert_eq!(raw_digest(&packed), raw_digest(&layout));
    succeed(engine.docker().args(["image", "rm", "backend:1.0"]));
    succeed(engine.docker().args(["load", "--input"]).arg(target.join("container-images/backend.tar")));
    let said = succeed(engine.run().args(["backend:1.0", "/bin/busybox", "echo", "it runs"]));
    assert_eq!(said, "it runs\n");
    assert_eq!(fs::read_to_string(target.join("docs/guide.md")).unwrap(), "How to\n");
}
