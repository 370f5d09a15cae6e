//! `cargo xtask dist`: from sources to a signed, verified release.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use lexopt::Parser;

use crate::debian::Installing;
use crate::failure::Failure;
use crate::git::Sources;
use crate::json::{Json, map};
use crate::target::Target;
use crate::toolchain::Toolchain;
use crate::tools::Tools;
use crate::workspace::{LAUNCHER, TOOL, VERSION, WORKER, Workspace};

mod make;
mod options;
mod release;
mod stage;

use options::{Audience, Options, Signing};

/// What is done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Toolchain,
    Tools,
    Fetch,
    Build(&'static str, Target),
    Config,
    Keys,
    Stage,
    Image,
    Manual,
    Sbom,
    Provenance,
    Pack,
    Sign,
    Verify,
    CrossCheck,
}

impl Step {
    fn title(&self) -> String {
        match self {
            Self::Toolchain => "find the Rust toolchain".into(),
            Self::Tools => format!("find the C toolchain ({})", Tools::description()),
            Self::Fetch => "fetch the dependencies".into(),
            Self::Build(program, target) => format!("build {program} for {}", target.short()),
            Self::Config => "read the release configuration".into(),
            Self::Keys => "open the signing keys".into(),
            Self::Stage => "collect the files".into(),
            Self::Image => "make the launcher's image".into(),
            Self::Manual => "write the manual".into(),
            Self::Sbom => "list the dependencies (SBOM, third-party notices)".into(),
            Self::Provenance => "write the provenance".into(),
            Self::Pack => "pack".into(),
            Self::Sign => "sign".into(),
            Self::Verify => "verify, as a customer would".into(),
            Self::CrossCheck => "ask the launcher what it is".into(),
        }
    }
}

/// The steps of one run. The release tool comes first: it checks configuration and keys before the long part begins.
fn plan(targets: &[Target], host: Target, signing: &Signing) -> Vec<Step> {
    let mut steps = vec![Step::Toolchain, Step::Tools, Step::Fetch, Step::Build(TOOL, host), Step::Config];
    let is_signed = !matches!(signing, Signing::Later { .. });
    if is_signed {
        steps.push(Step::Keys);
    }
    for target in targets {
        steps.extend([Step::Build(WORKER, *target), Step::Build(LAUNCHER, *target)]);
        if *target != host {
            steps.push(Step::Build(TOOL, *target));
        }
    }
    steps.extend([Step::Stage, Step::Image, Step::Manual, Step::Sbom, Step::Provenance, Step::Pack]);
    if is_signed {
        steps.extend([Step::Sign, Step::Verify]);
    }
    if targets.contains(&host) {
        steps.push(Step::CrossCheck);
    }
    steps
}

/// Builds `spacelift-bundle` for this machine, as it ships.
pub(crate) fn build_tool(workspace: &Workspace, installing: Installing) -> Result<PathBuf> {
    let options = Options { installing, ..Options::new()? };
    make::build_tool(&options, workspace, &Sources::read(workspace)?, Target::host()?)
}

/// The command.
pub(crate) fn run(flags: Parser) -> Result<()> {
    let Some(options) = Options::parse(flags)? else {
        return Ok(io::stdout().write_all(options::HELP.as_bytes())?);
    };
    let workspace = Workspace::find()?;
    let sources = Sources::read(&workspace)?;
    let reasons = objections(&options, &workspace, &sources);
    let host = Target::host()?;
    if options.dry_run {
        print_plan(&options, &workspace, &sources, host)?;
    }
    if !reasons.is_empty() {
        return Err(Failure::Refused { what: "this release cannot be made".into(), reasons }.into());
    }
    if options.dry_run {
        return Ok(());
    }
    let release = make::make(&options, &workspace, &sources, host)?;
    if options.json { Ok(writeln!(io::stdout(), "{}", release.json())?) } else { Ok(release.print()?) }
}

/// Everything that speaks against the release and can be known before anything is built.
fn objections(options: &Options, workspace: &Workspace, sources: &Sources) -> Vec<String> {
    let mut reasons = Vec::new();
    if options.audience == Audience::Customers {
        reasons.extend(sources.objections());
        if options.is_development() {
            let advice = "a release for customers needs a release key: give --key FILE or --gpg-key FINGERPRINT \
                          (`cargo xtask keygen` makes one), or --unsigned to sign elsewhere";
            reasons.push(advice.into());
        }
    }
    let mut files: Vec<(&str, &Path)> = vec![];
    files.extend(options.certificates.iter().map(|file| ("--cert", file.as_path())));
    files.extend(options.passphrase_file.as_deref().map(|file| ("--passphrase-file", file)));
    if let Signing::Keys { files: keys, .. } = &options.signing {
        files.extend(keys.iter().map(|file| ("--key", file.as_path())));
        let ours = development_directory(workspace);
        if options.audience == Audience::Customers && keys.iter().any(|key| key.starts_with(&ours)) {
            reasons.push(format!("the keys in {} are for development releases", ours.display()));
        }
    }
    let config = config(options, workspace);
    files.push(("--config", &config));
    for (flag, file) in files {
        if let Err(error) = File::open(file) {
            reasons.push(format!("{}, the file for {flag}, cannot be read: {error}", file.display()));
        }
    }
    if let Some(name) = &options.passphrase_env
        && std::env::var_os(name).is_none()
    {
        reasons.push(format!("the environment variable {}, which --passphrase-env names, is not set", name.display()));
    }
    reasons
}

fn config(options: &Options, workspace: &Workspace) -> PathBuf {
    options.config.clone().unwrap_or_else(|| workspace.root().join("release.yaml"))
}

fn development_directory(workspace: &Workspace) -> PathBuf {
    workspace.dist().join("development")
}

fn print_plan(options: &Options, workspace: &Workspace, sources: &Sources, host: Target) -> Result<()> {
    let mut needed = options.targets.clone();
    needed.push(host);
    let toolchain = match Toolchain::find(&needed, options.toolchain) {
        Some(toolchain) => toolchain.description(),
        None if options.installing == Installing::Allowed => "none yet; it will be installed".into(),
        None => "none; the command that installs it will be named".into(),
    };
    let signing = match &options.signing {
        Signing::Development => format!("development key in {}", development_directory(workspace).display()),
        Signing::Keys { files, gpg } => {
            let files = files.iter().map(|file| file.display().to_string());
            files.chain(gpg.iter().map(|key| format!("gpg-agent's {key}"))).collect::<Vec<_>>().join(", ")
        }
        Signing::Later { development: true } => "nobody (development release)".into(),
        Signing::Later { development: false } => "nobody; sign the unsigned archive elsewhere".into(),
    };
    let modified = if sources.modified { ", modified" } else { "" };
    let steps: Vec<String> = plan(&options.targets, host, &options.signing).iter().map(Step::title).collect();
    let output = options.output.clone().unwrap_or_else(|| workspace.dist());
    let mut out = io::stdout().lock();
    if options.json {
        let document = map([
            ("version", VERSION.into()),
            ("commit", sources.commit.as_str().into()),
            ("modified", sources.modified.into()),
            ("toolchain", toolchain.into()),
            ("signing", signing.into()),
            ("output", output.display().to_string().into()),
            ("steps", Json::List(steps.into_iter().map(Json::from).collect())),
        ]);
        return Ok(writeln!(out, "{document}")?);
    }
    writeln!(out, "version    {VERSION}")?;
    writeln!(out, "commit     {}{modified}", sources.commit)?;
    writeln!(out, "toolchain  {toolchain}")?;
    writeln!(out, "signing    {signing}")?;
    writeln!(out, "output     {}", output.display())?;
    for (number, step) in (1..).zip(steps) {
        writeln!(out, "{number:>9}  {step}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::options::Signing;
    use super::{Step, plan};
    use crate::target::Target;
    use crate::workspace::{LAUNCHER, TOOL, WORKER};

    #[test]
    fn the_tool_is_built_first_and_once() {
        let steps = plan(&Target::ALL, Target::X86_64, &Signing::Development);
        let built: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Build(program, target) => Some((*program, *target)),
                _ => None,
            })
            .collect();
        assert_eq!(
            built,
            [
                (TOOL, Target::X86_64),
                (WORKER, Target::X86_64),
                (LAUNCHER, Target::X86_64),
                (WORKER, Target::Aarch64),
                (LAUNCHER, Target::Aarch64),
                (TOOL, Target::Aarch64),
            ]
        );
    }

    #[test]
    fn an_unsigned_archive_opens_no_key() {
        let steps = plan(&[Target::Aarch64], Target::X86_64, &Signing::Later { development: false });
        for step in [Step::Keys, Step::Sign, Step::Verify, Step::CrossCheck] {
            assert!(!steps.contains(&step), "{step:?}");
        }
    }
}
