//! `cargo xtask ci`: everything that must hold before a change is merged.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lexopt::Parser;
use lexopt::prelude::{Long, Short, Value};
use xshell::{Shell, cmd};

use crate::debian::{self, Installing};
use crate::progress::Progress;
use crate::test;
use crate::workspace::Workspace;

const HELP: &str = "\
Everything that must hold before a change is merged.

Usage: cargo xtask ci [flags]

Formatting, lints, shell scripts, dependency rules, `cargo deny`, then `cargo xtask test`. The first failure ends it.

      --checks       Leave the tests out
      --no-install   Install nothing on this machine; name the command that would
  -h, --help         Print this

Environment:
  RUSTSEC_ADVISORY_DB   A copy of the RustSec advisory database, as a directory or a tar file. Without it the database
                        is fetched; where that fails, advisories are not checked, and the output says so.

Examples:
  cargo xtask ci
  cargo xtask ci --checks
";

/// The checker of licences, bans, sources and advisories. Built from source: its binaries are not on any package index that
/// Rust users have.
const CARGO_DENY: &str = "0.20.2";
/// What cargo-deny takes for the address of the advisory database.
const ADVISORIES: &str = "https://github.com/RustSec/advisory-db";
/// Seconds that a connection to the advisory database may take.
const ADVISORIES_TIMEOUT: &str = "20";

/// What a part of the workspace may not depend on, however indirectly. These are the architecture's invariants: each part
/// stays what it is only as long as it cannot reach what would make it something else.
struct Rule {
    package: &'static str,
    reason: &'static str,
    /// Names of packages; a `*` at the end stands for anything.
    banned: &'static [&'static str],
}

const RULES: [Rule; 6] = [
    Rule {
        package: "xtask",
        reason: "it starts programs and is built before everything else, in seconds",
        banned: &[
            "aws-*",
            "bundle-core",
            "clap",
            "hyper",
            "integration-tests",
            "sequoia-*",
            "serde",
            "serde_json",
            "spacelift-*",
            "tokio",
        ],
    },
    Rule {
        package: "bundle-core",
        reason: "packing and verifying happen without a network, and apart from what runs on worker hosts",
        banned: &[
            "aws-*",
            "hyper*",
            "reqwest",
            "ring",
            "rustls",
            "rustls-webpki",
            "socket2",
            "spacelift-launcher",
            "spacelift-worker",
            "tokio*",
            "ureq",
        ],
    },
    Rule {
        package: "spacelift-bundle",
        reason: "the release tool and what runs on worker hosts do not share code that either could change for the other",
        banned: &["spacelift-launcher", "spacelift-worker"],
    },
    Rule {
        package: "spacelift-launcher",
        reason: "it is fetched by every worker host and does not carry the release tool",
        // Of AWS it knows where credentials are and what a token for runner images is.
        banned: &["aws-sdk-s3", "aws-sdk-cloudformation", "sequoia-*", "bundle-core", "spacelift-bundle"],
    },
    Rule {
        package: "launcher-wire",
        reason: "it says what both sides mean, and opens no connection itself",
        banned: &["aws-*", "bollard*", "hyper*", "reqwest", "rumqttc*", "rustls", "tokio*"],
    },
    Rule {
        package: "spacelift-worker",
        reason: "it is the first process of a customer's container: small, and it talks to nobody but the launcher",
        banned: &[
            "aws-*",
            "bollard*",
            "reqwest",
            "rumqttc*",
            "sequoia-*",
            "bundle-core",
            "spacelift-bundle",
            "spacelift-launcher",
        ],
    },
];

/// The command.
pub(crate) fn run(mut flags: Parser) -> Result<()> {
    let (mut checks_only, mut no_install) = (false, false);
    while let Some(flag) = flags.next()? {
        match flag {
            Long("checks") => checks_only = true,
            Long("no-install") => no_install = true,
            Short('h') | Long("help") => return Ok(io::stdout().write_all(HELP.as_bytes())?),
            Value(_) | Short(_) | Long(_) => return Err(flag.unexpected().into()),
        }
    }
    let ci = Ci { workspace: Workspace::find()?, installing: Installing::decide(no_install) };
    let mut progress = Progress::new(7);
    progress.step("cargo fmt", |progress| progress.run(ci.cargo().args(["fmt", "--all", "--check"])))?;
    progress.step("cargo clippy", |progress| {
        let flags = ["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"];
        progress.run(ci.cargo().args(flags))
    })?;
    progress.step("shellcheck", |progress| ci.check_scripts(progress))?;
    progress.step("dependency rules", |progress| RULES.iter().try_for_each(|rule| ci.check_rule(rule, progress)))?;
    progress.step("lock file of fuzz/", |progress| {
        // A workspace of its own, which no other command here looks at.
        let flags = ["metadata", "--locked", "--quiet", "--format-version=1", "--manifest-path=fuzz/Cargo.toml"];
        progress.run(ci.cargo().args(flags))
    })?;
    let deny = progress.step("find cargo-deny", |progress| ci.cargo_deny(progress))?;
    progress.step("cargo deny", |progress| ci.check_dependencies(&deny, progress))?;
    if checks_only {
        return Ok(());
    }
    let flags: &[&str] = if no_install { &["--no-install"] } else { &[] };
    test::run(Parser::from_args(flags.iter().map(OsString::from)))
}

/// Its user data is a script, too.
const WORKER_TEMPLATE: &str = "cloudformation/workerpool.yaml";

struct Ci {
    workspace: Workspace,
    installing: Installing,
}

impl Ci {
    fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(self.workspace.root());
        cargo
    }

    fn check_scripts(&self, progress: &Progress) -> Result<()> {
        let shell = Shell::new()?;
        shell.change_dir(self.workspace.root());
        // What lies under tests/data was made to be refused, scripts included.
        let listed = cmd!(shell, "git ls-files -- .ci/run *.sh :!tests/data").quiet().read()?;
        let mut scripts: Vec<PathBuf> = listed.lines().map(|script| self.workspace.root().join(script)).collect();
        scripts.retain(|script| script.exists());
        let template = self.workspace.root().join(WORKER_TEMPLATE);
        let text = fs::read_to_string(&template).with_context(|| format!("cannot read {}", template.display()))?;
        let user_data = self.workspace.root().join("target/user-data.sh");
        let script = user_data_of(&text).with_context(|| format!("{} has no user data", template.display()))?;
        fs::write(&user_data, script).with_context(|| format!("cannot write {}", user_data.display()))?;
        scripts.push(user_data);
        debian::install(&debian::missing(&[("shellcheck", "shellcheck")]), self.installing, progress)?;
        progress.run(Command::new("shellcheck").current_dir(self.workspace.root()).args(scripts))?;
        Ok(())
    }

    fn check_rule(&self, rule: &Rule, progress: &Progress) -> Result<()> {
        let mut cargo = self.cargo();
        cargo.args(["tree", "--locked", "--package", rule.package, "--edges", "normal,build", "--target", "all"]);
        let tree = progress.run(cargo.args(["--prefix", "none", "--format", "{p}"]))?;
        let broken = broken_by(rule, &String::from_utf8(tree)?);
        if !broken.is_empty() {
            bail!(
                "{} may not depend on {}: {}. See how it came in: cargo tree --package {} --invert {}",
                rule.package,
                broken.join(", "),
                rule.reason,
                rule.package,
                broken[0]
            );
        }
        Ok(())
    }

    /// The checker, built once into `target/tools`.
    fn cargo_deny(&self, progress: &Progress) -> Result<PathBuf> {
        if let Some(installed) = debian::find_program("cargo-deny") {
            let version = Command::new(&installed).arg("--version").output();
            if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim_end().ends_with(CARGO_DENY)) {
                return Ok(installed);
            }
        }
        let root = self.workspace.tools().join(format!("cargo-deny-{CARGO_DENY}"));
        let program = root.join("bin/cargo-deny");
        if !program.exists() {
            let build = self.workspace.tools().join("cargo-deny.build");
            let mut cargo = self.cargo();
            // Unoptimised: it runs for two seconds, and optimising it takes minutes.
            cargo.args(["install", "cargo-deny", "--version", &format!("={CARGO_DENY}"), "--locked", "--debug"]);
            cargo.args(["--no-default-features", "--no-track", "--root"]).arg(&root).arg("--target-dir").arg(&build);
            progress.run(&mut cargo)?;
            fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
        }
        Ok(program)
    }

    fn check_dependencies(&self, deny: &Path, progress: &Progress) -> Result<()> {
        let deny = |checks: &[&str]| {
            let mut command = Command::new(deny);
            command
                .current_dir(self.workspace.root())
                .args(["--locked", "check", "--hide-inclusion-graph"])
                .args(checks);
            command
        };
        progress.run(&mut deny(&["bans", "licenses", "sources"]))?;

        let mut check = deny(&["advisories"]);
        match env::var_os("RUSTSEC_ADVISORY_DB").filter(|path| !path.is_empty()) {
            Some(copy) => {
                let repository = self.advisory_repository(Path::new(&copy), progress)?;
                // cargo-deny only takes a database that git can fetch from a host; git finds the copy in its place.
                check.env("GIT_CONFIG_COUNT", "1");
                check.env("GIT_CONFIG_KEY_0", format!("url.file://{}.insteadOf", repository.display()));
                check.env("GIT_CONFIG_VALUE_0", ADVISORIES);
                progress.note(&format!("Advisories: checking against {}", copy.display()));
            }
            None if self.can_fetch_advisories() => {
                progress.note(&format!("Advisories: checking against {ADVISORIES}"));
            }
            None => {
                progress.note(&format!(
                    "Advisories: NOT CHECKED, because {ADVISORIES} cannot be reached; set RUSTSEC_ADVISORY_DB to a copy"
                ));
                return Ok(());
            }
        }
        progress.run(&mut check)?;
        Ok(())
    }

    fn can_fetch_advisories(&self) -> bool {
        let mut git = Command::new("timeout");
        git.args([ADVISORIES_TIMEOUT, "git", "ls-remote", "--exit-code", ADVISORIES, "HEAD"]);
        git.env("GIT_TERMINAL_PROMPT", "0").output().is_ok_and(|output| output.status.success())
    }

    /// A git repository with the contents of a directory or tar file.
    fn advisory_repository(&self, copy: &Path, progress: &Progress) -> Result<PathBuf> {
        let repository = self.workspace.tools().join("advisory-db");
        if repository.exists() {
            fs::remove_dir_all(&repository).with_context(|| format!("cannot remove {}", repository.display()))?;
        }
        fs::create_dir_all(&repository).with_context(|| format!("cannot create {}", repository.display()))?;
        if copy.is_dir() {
            progress.run(Command::new("cp").args(["-R", "--"]).arg(copy.join(".")).arg(&repository))?;
        } else {
            progress.run(Command::new("tar").arg("-xf").arg(copy).arg("-C").arg(&repository))?;
        }
        if !repository.join(".git").exists() {
            let shell = Shell::new()?;
            shell.change_dir(&repository);
            cmd!(shell, "git init --quiet --initial-branch main").quiet().run()?;
            cmd!(shell, "git add --all --force").quiet().run()?;
            let identity = ["-c", "user.name=advisories", "-c", "user.email=advisories@localhost"];
            cmd!(shell, "git {identity...} commit --quiet --no-verify --message copy").quiet().run()?;
        }
        Ok(repository)
    }
}

/// The shell script in the template of worker pools: two literal blocks, the first with references to parameters, which are
/// words here.
fn user_data_of(template: &str) -> Option<String> {
    let mut script = String::new();
    for (start, has_references) in [("- Fn::Sub: |", true), ("- |", false)] {
        let lines: Vec<&str> = template.lines().skip_while(|line| !line.trim().ends_with(start)).skip(1).collect();
        let indent = lines.first().map(|line| line.len() - line.trim_start().len())?;
        for line in lines {
            match line.get(indent..) {
                Some(rest) if line[..indent].trim().is_empty() => {
                    script.push_str(&if has_references {
                        rest.replace("${", "").replace('}', "")
                    } else {
                        rest.to_owned()
                    });
                }
                _ if line.trim().is_empty() => {}
                _ => break,
            }
            script.push('\n');
        }
    }
    Some(script)
}

/// The banned packages in the output of `cargo tree`.
fn broken_by(rule: &Rule, tree: &str) -> Vec<String> {
    let mut broken: Vec<String> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| *name != rule.package && rule.banned.iter().any(|pattern| fits(pattern, name)))
        .map(str::to_owned)
        .collect();
    broken.sort();
    broken.dedup();
    broken
}

fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::{RULES, Rule, broken_by, user_data_of};

    const RULE: Rule = Rule { package: "worker", reason: "", banned: &["aws-*", "tokio"] };

    #[test]
    fn finds_banned_packages_once() {
        let tree =
            "worker v0.1.0 (/src/worker)\ntokio v1.0.0\naws-config v1.0.0\ntokio v1.0.0 (*)\ntokio-util v1.0.0\n";
        assert_eq!(broken_by(&RULE, tree), ["aws-config", "tokio"]);
    }

    #[test]
    fn accepts_everything_else() {
        assert_eq!(broken_by(&RULE, "worker v0.1.0\nserde v1.0.0\n\n"), Vec::<String>::new());
    }

    #[test]
    fn finds_the_script_in_the_template() {
        let template = "a:\n  - - Fn::Sub: |\n        #!/bin/bash\n        A='${B}'\n    # c\n    - |\n        if A\n\n          b\nd: 1\n";
        assert_eq!(user_data_of(template).unwrap(), "#!/bin/bash\nA='B'\nif A\n\n  b\n");
        assert_eq!(user_data_of("a: 1\n"), None);
        let own = user_data_of(include_str!("../../cloudformation/workerpool.yaml")).unwrap();
        assert!(
            own.starts_with("#!/bin/bash\nBUCKET='BinariesBucket'\n") && own.trim_end().ends_with("finished=yes"),
            "{own}"
        );
    }

    #[test]
    fn every_rule_says_why() {
        assert!(RULES.iter().all(|rule| !rule.reason.is_empty() && !rule.banned.is_empty()));
    }
}
