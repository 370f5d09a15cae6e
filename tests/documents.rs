//! What a release says about its making: bills of materials, provenance and licences.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use integration_tests::program;
use integration_tests::release::{ARCHITECTURES, Release, Unpacked, workspace};
use integration_tests::run::{finish, succeed, tool};
use integration_tests::tree;
use serde_json::{Value, json};

/// The programs that each have a bill of materials. The worker's is that of a part of the launcher.
const PROGRAMS: [&str; 3] = ["spacelift-bundle", "spacelift-launcher", "spacelift-worker"];
/// Parts that no Rust package manager knows.
const TOOLCHAIN: [&str; 2] = ["musl", "rust-std"];

fn read(unpacked: &Unpacked, path: &str) -> Value {
    let bytes = fs::read(unpacked.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {value}"))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().unwrap_or_else(|| panic!("{field} is missing in {value}"))
}

/// Checksums in `Cargo.lock` by name and version; packages of the workspace have none.
fn locked() -> BTreeMap<(String, String), Option<String>> {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let mut packages = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(line.trim_matches('"').to_owned())
        };
        packages.insert((field("name").unwrap(), field("version").unwrap()), field("checksum"));
    }
    assert!(packages.len() > 50, "Cargo.lock is not read rightly");
    packages
}

fn each_sbom(mut check: impl FnMut(&str, &str, &Value)) {
    let unpacked = Release::under_test().unpack();
    for architecture in ARCHITECTURES {
        for program in PROGRAMS {
            check(program, architecture, &read(&unpacked, &format!("sbom/{program}-{architecture}.cdx.json")));
        }
    }
}

/// The rules of CycloneDX 1.5 that a consumer relies on: <https://cyclonedx.org/docs/1.5/json/>.
#[test]
fn sboms_are_cyclonedx() {
    let mut numbers = BTreeSet::new();
    each_sbom(|program, architecture, sbom| {
        assert_eq!((text(sbom, "bomFormat"), text(sbom, "specVersion")), ("CycloneDX", "1.5"));
        assert_eq!(sbom["version"], 1);
        let number = text(sbom, "serialNumber").strip_prefix("urn:uuid:").expect("a serial number is a UUID");
        let groups: Vec<usize> = number.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{number}");
        assert!(numbers.insert(number.to_owned()), "{program} for {architecture} has another one's serial number");
        let subject = &sbom["metadata"]["component"];
        assert_eq!((text(subject, "type"), text(subject, "name")), ("application", program));
        assert_eq!(text(subject, "version"), env!("CARGO_PKG_VERSION"));
        let target = format!("{architecture}-unknown-linux-musl");
        assert_eq!(subject["properties"], json!([{ "name": "cargo:target", "value": target }]));

        let mut references: BTreeSet<&str> = [text(subject, "bom-ref")].into();
        for component in list(sbom, "components") {
            for field in ["type", "name", "version", "purl", "scope"] {
                assert!(!text(component, field).is_empty(), "{component}");
            }
            assert!(references.insert(text(component, "bom-ref")), "{component} stands twice");
            // Either one expression or a list of licences, never both.
            for licence in list(component, "licenses") {
                assert!(licence["expression"].is_string() != licence["license"].is_object(), "{component}");
            }
        }
        let graph: BTreeMap<&str, Vec<&str>> = list(sbom, "dependencies")
            .iter()
            .map(|node| {
                let targets = list(node, "dependsOn").iter().map(|target| target.as_str().unwrap());
                (text(node, "ref"), targets.collect())
            })
            .collect();
        assert_eq!(graph.keys().copied().collect::<BTreeSet<_>>(), references, "every part has its dependencies");
        // And everything is reached from the program: nothing is listed that is not in it.
        let (mut reached, mut left) = (BTreeSet::new(), vec![text(subject, "bom-ref")]);
        while let Some(next) = left.pop() {
            if reached.insert(next) {
                left.extend(&graph[next]);
            }
        }
        assert_eq!(reached, references);
    });
}

/// Whether a package is of this workspace.
fn is_ours(name: &str) -> bool {
    ["bundle-core", "launcher-wire"].contains(&name) || name.starts_with("spacelift-")
}

#[test]
fn sboms_agree_with_cargo_lock() {
    let locked = locked();
    each_sbom(|program, architecture, sbom| {
        let mut of_the_toolchain = BTreeSet::new();
        for component in list(sbom, "components") {
            let (name, version) = (text(component, "name"), text(component, "version"));
            if TOOLCHAIN.contains(&name) {
                of_the_toolchain.insert(name);
                continue;
            }
            let checksum = locked
                .get(&(name.to_owned(), version.to_owned()))
                .unwrap_or_else(|| panic!("{name} {version} of {program} is not in Cargo.lock"));
            match checksum {
                Some(checksum) => {
                    assert_eq!(component["hashes"], json!([{ "alg": "SHA-256", "content": checksum }]), "{name}");
                    assert_eq!(text(component, "purl"), format!("pkg:cargo/{name}@{version}"));
                }
                None => assert!(is_ours(name), "{name} is of the workspace"),
            }
        }
        assert_eq!(of_the_toolchain, TOOLCHAIN.into(), "what is linked statically is listed: {program} {architecture}");
        let has = |name: &str| list(sbom, "components").iter().any(|component| component["name"] == name);
        // What the architecture is about: the verifier has the OpenPGP library, what runs on worker hosts has not.
        assert_eq!(has("sequoia-openpgp"), program == "spacelift-bundle", "{program}");
        // The launcher carries the worker.
        assert_eq!(has("spacelift-worker"), program == "spacelift-launcher", "{program}");
    });
}

#[test]
fn provenance_names_every_program_and_image_by_its_digest() {
    let unpacked = Release::under_test().unpack();
    let statement = read(&unpacked, "provenance.json");
    assert_eq!(text(&statement, "_type"), "https://in-toto.io/Statement/v1");
    assert_eq!(text(&statement, "predicateType"), "https://slsa.dev/provenance/v1");
    let subjects: BTreeMap<&str, &str> = list(&statement, "subject")
        .iter()
        .map(|subject| (text(subject, "name"), text(&subject["digest"], "sha256")))
        .collect();
    let files = unpacked.files();
    let expected: BTreeSet<&str> = files
        .keys()
        .map(String::as_str)
        .filter(|path| path.starts_with("bin/") || path.starts_with("container-images/"))
        .collect();
    assert_eq!(subjects.keys().copied().collect::<BTreeSet<_>>(), expected);
    for (path, digest) in subjects {
        assert_eq!(digest, tree::sha256(&unpacked.root.join(path)), "{path}");
    }
}

#[test]
fn provenance_says_what_was_built_from_what() {
    let unpacked = Release::under_test().unpack();
    let statement = read(&unpacked, "provenance.json");
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["version"], unpacked.manifest["version"]);
    let targets = ["aarch64-unknown-linux-musl", "x86_64-unknown-linux-musl"];
    assert_eq!(definition["externalParameters"]["targets"], json!(targets));
    let dependencies = list(definition, "resolvedDependencies");
    let commit = unpacked.field("commit");
    let source = format!("git+{}@{commit}", unpacked.field("source"));
    let sources = dependencies.iter().find(|dependency| dependency["uri"] == source.as_str());
    let sources = sources.unwrap_or_else(|| panic!("{source} is not among {dependencies:?}"));
    assert_eq!(sources["digest"]["gitCommit"], commit);
    let tree = if unpacked.manifest["modified"] == true { "modified" } else { "clean" };
    assert_eq!(sources["annotations"]["sourceTree"], tree);
    let named = |name: &str| {
        let found = dependencies.iter().find(|dependency| dependency["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not among {dependencies:?}"))
    };
    assert_eq!(named("Cargo.lock")["digest"]["sha256"], tree::sha256(&workspace().join("Cargo.lock")));
    assert!(text(&named("toolchain")["annotations"], "version").starts_with("rustc 1."));
    for tool in ["cargo-zigbuild", "ziglang"] {
        assert!(!text(&named(tool)["annotations"], "version").is_empty());
    }
    assert!(text(&statement["predicate"]["runDetails"]["builder"], "id").starts_with("https://"));
}

#[test]
fn licences_of_everything_that_is_linked_in_are_there() {
    let unpacked = Release::under_test().unpack();
    let notices = fs::read_to_string(unpacked.root.join("licenses/THIRD-PARTY.txt")).unwrap();
    each_sbom(|program, _, sbom| {
        for component in list(sbom, "components") {
            let (name, version) = (text(component, "name"), text(component, "version"));
            let heading = match name {
                "musl" => "musl libc".to_owned(),
                "rust-std" => "Rust standard library".to_owned(),
                _ if is_ours(name) => continue,
                _ => format!("{name} {version}"),
            };
            assert!(notices.lines().any(|line| line == heading), "{name} {version} of {program}");
        }
    });
    // The OpenPGP library is the one part under a licence that asks for more than a notice.
    for part in ["LGPL-2.0-or-later", "GNU LIBRARY GENERAL PUBLIC LICENSE"] {
        assert!(notices.to_uppercase().contains(&part.to_uppercase()), "{part}");
    }
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let shipped = unpacked.root.join("licenses").join(name);
        assert_eq!(tree::sha256(&shipped), tree::sha256(&workspace().join(name)));
    }
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let unpacked = Release::under_test().unpack();
    let help = succeed(Command::new(program::bundle()).arg("--help"));
    let commands = help.split_once("Commands:").unwrap().1.split("\n\n").next().unwrap();
    let commands = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut expected: BTreeSet<String> =
        commands.map(|line| format!("spacelift-bundle-{}.1", line.split_whitespace().next().unwrap())).collect();
    assert!(expected.contains("spacelift-bundle-verify.1") && expected.len() > 15, "{expected:?}");
    expected.extend(["spacelift-bundle.1".to_owned(), "spacelift-launcher.1".to_owned()]);
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = tree::entries(&unpacked.root.join(directory));
        entries.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("man/man1"), expected);
    for name in expected {
        let page = fs::read_to_string(unpacked.root.join("man/man1").join(&name)).unwrap();
        let title = page.lines().find(|line| line.starts_with(".TH ")).unwrap_or_else(|| panic!("{name} has no title"));
        assert!(title.contains(name.trim_end_matches(".1")), "{name}: {title}");
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{name}");
        let Some(command) = name.strip_prefix("spacelift-bundle-") else { continue };
        let help = succeed(Command::new(program::bundle()).arg(command.trim_end_matches(".1")).arg("--help"));
        let page = page.replace("\\-", "-");
        for flag in
            help.lines().filter_map(|line| line.trim_start().split_once("--").filter(|(short, _)| short.len() < 5))
        {
            let flag = flag.1.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap();
            assert!(page.contains(&format!("--{flag}")), "--{flag} is not in {name}");
        }
    }
    assert_eq!(
        names("completions"),
        [
            "_spacelift-bundle",
            "_spacelift-launcher",
            "spacelift-bundle",
            "spacelift-bundle.fish",
            "spacelift-launcher",
            "spacelift-launcher.fish",
        ]
        .map(str::to_owned)
        .into()
    );
    succeed(tool("bash").arg("-n").arg(unpacked.root.join("completions/spacelift-bundle")));
    let printed = succeed(Command::new(program::bundle()).args(["completions", "bash"]));
    assert_eq!(printed, fs::read_to_string(unpacked.root.join("completions/spacelift-bundle")).unwrap());
}

/// The launcher's page is written by hand.
#[test]
fn the_launchers_page_names_every_variable() {
    let page = fs::read_to_string(workspace().join("man/man1/spacelift-launcher.1")).unwrap().replace("\\-", "-");
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let table = readme.split_once("| variable | meaning | default |").unwrap().1.split("\n\n").next().unwrap();
    let mut variables = BTreeSet::new();
    for cell in table.lines().filter_map(|line| line.split('|').nth(1)) {
        variables.extend(cell.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("..")).map(str::to_owned));
    }
    assert!(variables.len() > 15, "{variables:?}");
    for variable in variables {
        let name = variable.split('<').next().unwrap();
        assert!(page.contains(name), "{variable} is not on the page");
    }
}

/// Those of the launcher are written by hand, as its command line is.
#[test]
fn the_launchers_completions_name_every_command_and_flag() {
    let help = succeed(Command::new(program::launcher()).arg("--help"));
    let usage = help.split_once("Usage:").unwrap().1.split_once("\n\n").unwrap().0;
    let usage: Vec<&str> = usage.lines().filter(|line| line.starts_with("  spacelift-launcher")).collect();
    let words: BTreeSet<&str> = usage
        .iter()
        .flat_map(|line| line.split_whitespace().skip(1))
        .map(|word| word.trim_matches(['[', ']']))
        .filter(|word| word.chars().any(|c| c.is_ascii_lowercase()))
        .collect();
    let expected = ["--dir", "--dry-run", "--help", "--json", "--version", "check", "extract-worker", "sweep"];
    assert_eq!(words, expected.into(), "{usage:?}");
    let directory = workspace().join("completions");
    for (file, long) in
        [("spacelift-launcher", "--"), ("_spacelift-launcher", "--"), ("spacelift-launcher.fish", "-l ")]
    {
        let text = fs::read_to_string(directory.join(file)).unwrap();
        for word in &words {
            let word = word.strip_prefix("--").map_or_else(|| (*word).to_owned(), |name| format!("{long}{name}"));
            assert!(text.contains(&word), "{word} is not in {file}");
        }
    }
    // What bash offers after these words, the last of which is only begun.
    let offered = |words: &str| -> BTreeSet<String> {
        let script = "source \"$0\"; COMP_WORDS=(spacelift-launcher \"$@\"); COMP_CWORD=$#; _spacelift_launcher; \
                      printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = tool("bash");
        bash.args(["--norc", "-c", script]).arg(directory.join("spacelift-launcher"));
        succeed(bash.args(words.split(' '))).lines().map(str::to_owned).collect()
    };
    let first = ["check", "sweep", "extract-worker", "--version", "-V", "--help", "-h"];
    assert_eq!(offered(""), first.map(str::to_owned).into());
    assert_eq!(offered("sweep --d"), ["--dry-run"].map(str::to_owned).into());
    assert_eq!(offered("extract-worker --d"), ["--dir"].map(str::to_owned).into());
    assert_eq!(offered("--version --j"), ["--json"].map(str::to_owned).into());
    // These shells are on few machines; where they are, they have to understand it.
    for (shell, file) in [("zsh", "_spacelift-launcher"), ("fish", "spacelift-launcher.fish")] {
        let is_there = std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join(shell).is_file());
        if is_there {
            succeed(tool(shell).arg("-n").arg(directory.join(file)));
        } else {
            let _ = writeln!(std::io::stderr(), "{shell} is not here: {file} was compared with the help alone");
        }
    }
}

/// Commands in the documents, without what follows a `#` or a gap, and without brackets. Lines that end in a backslash are one command.
fn documented_commands() -> Vec<(String, Vec<String>)> {
    let mut commands = vec![];
    let directory = fs::read_dir(workspace().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let guides = directory.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    for path in guides.chain(["README.md", "CONTRIBUTING.md"].map(|name| workspace().join(name))) {
        let text = fs::read_to_string(&path).unwrap().replace("\\\n", " ");
        let mut is_code = false;
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with("```") {
                is_code = !is_code;
            } else if is_code {
                let words = line.split(" #").next().unwrap().split("   ").next().unwrap().replace(['[', ']'], " ");
                commands.push((path.display().to_string(), words.split_whitespace().map(str::to_owned).collect()));
            }
        }
    }
    commands
}

/// The commands that a program's help begins with, two blanks in, under `heading`.
fn commands_of(program: &Path, heading: &str) -> Vec<String> {
    let help = succeed(Command::new(program).arg("--help"));
    let list = help.split_once(heading).unwrap_or_else(|| panic!("{heading} is not in\n{help}")).1;
    let list = list.trim_start_matches('\n').split("\n\n").next().unwrap();
    let lines = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Without what a shell puts in for `$(…)`: its flags are those of another program.
fn without_substitutions(line: &str) -> String {
    let mut parts = line.split("$(");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.filter_map(|part| part.split_once(')')).fold(first, |line, (_, after)| line + after)
}

/// What every `--help` shows under "Examples:", as [`documented_commands`].
fn commands_in_helps() -> Vec<(String, Vec<String>)> {
    let mut helps: Vec<(&Path, Vec<String>)> =
        [program::bundle(), program::launcher(), program::worker(), program::mothership(), program::xtask()]
            .map(|program| (program, vec![]))
            .into();
    for (program, heading) in [(program::bundle(), "Commands:\n"), (program::xtask(), "[flags]\n")] {
        helps.extend(commands_of(program, heading).into_iter().map(|command| (program, vec![command])));
    }
    let mut commands = Vec::new();
    for (program, arguments) in helps {
        let help = succeed(Command::new(program).args(&arguments).arg("--help")).replace("\\\n", " ");
        let whose = format!("{} {} --help", program.display(), arguments.join(" "));
        let examples =
            help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{whose} shows no example:\n{help}")).1;
        let examples: Vec<&str> = examples.lines().take_while(|line| line.starts_with("  ")).collect();
        assert!(!examples.is_empty(), "{whose}: {help}");
        for line in examples {
            let line = without_substitutions(line);
            let line = line.trim().trim_start_matches("source <(").trim_end_matches(')');
            commands.push((whose.clone(), line.split_whitespace().map(str::to_owned).collect()));
        }
    }
    commands
}

/// Programs of others that examples run, and what shells have.
const OTHERS: [&str; 6] = ["cargo", "skopeo", "docker", "export", "T=x86_64-unknown-linux-musl", "gpg"];

#[test]
fn commands_in_the_documents_are_understood() {
    let mut known = 0;
    let helps = commands_in_helps();
    let is_example = |document: &str| document.ends_with("--help");
    for (document, words) in documented_commands().into_iter().chain(helps) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = words.join(" ");
        // The command of a program, in words that are no flags; what else is no flag is an argument of it.
        let (program, arguments, depth) = match words.as_slice() {
            ["cargo", "xtask", rest @ ..] => (program::xtask(), rest, 1),
            ["spacelift-bundle" | "bin/spacelift-bundle" | "./bin/spacelift-bundle", rest @ ..] => {
                (program::bundle(), rest, 1)
            }
            ["./install.sh", ..] if is_example(&document) => (program::bundle(), &["install"][..], 1),
            ["./uninstall.sh", ..] if is_example(&document) => (program::bundle(), &["uninstall"][..], 1),
            ["spacelift-launcher" | "./spacelift-launcher", rest @ ..] if is_example(&document) => {
                (program::launcher(), rest, 0)
            }
            ["spacelift-worker", rest @ ..] if is_example(&document) => (program::worker(), rest, 0),
            ["mothership", rest @ ..] if is_example(&document) => (program::mothership(), rest, 2),
            // A line that was wrapped begins with anything.
            [first, ..] if is_example(&document) => {
                assert!(OTHERS.contains(first), "{document}: {said}\n`{first}` is no program; is the line too long?");
                continue;
            }
            _ => continue,
        };
        let subcommand: Vec<&str> =
            arguments.iter().take(depth).take_while(|word| !word.starts_with('-')).copied().collect();
        assert!(depth == 0 || !subcommand.is_empty(), "{document}: {said}");
        let help = finish(Command::new(program).args(&subcommand).arg("--help")).expect(0).stdout;
        let command = arguments.first().filter(|word| depth == 0 && !word.starts_with('-'));
        assert!(command.is_none_or(|command| help.contains(command)), "{document}: {said} is not in\n{help}");
        for flag in
            arguments.iter().take_while(|argument| **argument != "--").filter(|argument| argument.starts_with("--"))
        {
            let name = flag.split('=').next().unwrap();
            let is_there = help.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == name);
            assert!(is_there, "{document}: {said}\n{name} is not in the help of {}:\n{help}", subcommand.join(" "));
        }
        known += 1;
    }
    assert!(known > 80, "only {known} commands were found");
}

/// The names in a cell of a table, which stand between backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether a function of this name begins in a source: Rust, a shell's, or a case of a list that a macro makes tests of.
fn has_function(source: &str, name: &str) -> bool {
    source.lines().map(str::trim_start).any(|line| {
        let after = line.split_once("fn ").and_then(|(_, rest)| rest.strip_prefix(name));
        after.is_some_and(|rest| rest.starts_with(['(', '<'])) || line == format!("{name}() {{") || line == name
    })
}

/// What `cargo test` calls a test of this name in this file.
fn printed(file: &str, source: &str, name: &str) -> String {
    let module = match file.split_once("/src/") {
        Some((_, module)) => module,
        None => file.rsplit_once("tests/all/").or(file.split_once("tests/")).map_or(file, |(_, module)| module),
    };
    let module = module.trim_end_matches(".rs");
    // A test program of a package has its file for its top.
    let is_top = file.split_once("/tests/").is_some_and(|(package, _)| !package.ends_with("mothership"));
    let path: Vec<&str> = module.split('/').filter(|part| !is_top && !part.is_empty()).collect();
    let inner: &[&str] = if source.contains("mod tests {\n") { &["tests"] } else { &[] };
    [&path[..], inner, &[name]].concat().join("::")
}

/// A line that names what is gone would have people believe in it.
#[test]
fn defences_and_their_tests_are_there() {
    let page = fs::read_to_string(workspace().join("docs/defences.md")).unwrap();
    let read = |file: &str| {
        fs::read_to_string(workspace().join(file)).unwrap_or_else(|error| panic!("docs/defences.md: {file}: {error}"))
    };
    let mut seen = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| defence ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [defence, _, place, test] = cells[..] else { panic!("{line}") };
        assert!(seen.insert(defence), "it stands here twice: {line}");
        let (&[file, function], &[tests, test]) = (&names(place)[..], &names(test)[..]) else { panic!("{line}") };
        assert!(has_function(&read(file), function), "{file} has no function {function}: {line}");
        let name = test.rsplit("::").next().unwrap();
        let source = read(tests);
        assert!(has_function(&source, name), "{tests} has no test {name}: {line}");
        assert_eq!(printed(tests, &source, name), test, "{line}");
    }
    assert!(seen.len() >= 40, "only {} defences were found", seen.len());
}
