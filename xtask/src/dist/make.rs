//! The steps of a run.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::options::{Audience, Options, Signing};
use super::release::Release;
use super::stage::{Stage, program_place};
use super::{Step, config, development_directory, plan};
use crate::build::Builder;
use crate::git::Sources;
use crate::json::Json;
use crate::progress::Progress;
use crate::target::Target;
use crate::toolchain::Toolchain;
use crate::tools::{self, Tools};
use crate::workspace::{LAUNCHER, TOOL, VERSION, WORKER, Workspace};

/// A key that signs a release for customers lives at least this long: they need time to learn of its successor.
const RELEASE_KEY_DAYS: u64 = 180;
/// A development key is replaced when less than this is left of it.
const DEVELOPMENT_KEY_DAYS: u64 = 1;

/// The steps up to the release tool.
pub(super) fn build_tool(options: &Options, workspace: &Workspace, sources: &Sources, host: Target) -> Result<PathBuf> {
    let _lock = lock(workspace)?;
    let steps = [Step::Toolchain, Step::Tools, Step::Fetch, Step::Build(TOOL, host)];
    let mut progress = Progress::new(steps.len());
    let builder = prepare(options, workspace, sources, host, &mut progress)?;
    progress.step(&Step::Build(TOOL, host).title(), |progress| builder.build(TOOL, host, None, progress))
}

/// Runs every step of the plan.
pub(super) fn make(options: &Options, workspace: &Workspace, sources: &Sources, host: Target) -> Result<Release> {
    let _lock = lock(workspace)?;
    let mut progress = Progress::new(plan(&options.targets, host, &options.signing).len());
    let builder = prepare(options, workspace, sources, host, &mut progress)?;
    let tool = progress.step(&Step::Build(TOOL, host).title(), |progress| builder.build(TOOL, host, None, progress))?;
    let run = Run {
        options,
        sources,
        config: config(options, workspace),
        work: workspace.dist().join("work"),
        output: options.output.clone().unwrap_or_else(|| workspace.dist()),
        tool,
        host,
        builder,
    };

    let config = progress.step(&Step::Config.title(), |progress| run.read_config(progress))?;
    let source = config.require("source", "spacelift-bundle release-config")?.to_owned();
    let signers = match &options.signing {
        Signing::Later { .. } => None,
        signing => Some(progress.step(&Step::Keys.title(), |progress| run.open_keys(signing, progress))?),
    };

    let binaries = run.build_all(&mut progress)?;
    let stage = progress.step(&Step::Stage.title(), |_| run.fill_stage(&binaries))?;
    progress.step(&Step::Image.title(), |progress| run.make_image(&stage, &source, progress))?;
    progress.step(&Step::Manual.title(), |progress| run.write_manual(&stage, progress))?;
    progress.step(&Step::Sbom.title(), |progress| run.list_dependencies(&stage, progress))?;
    progress.step(&Step::Provenance.title(), |progress| run.write_provenance(&stage, &source, progress))?;

    let certificates = signers.as_ref().map_or(&[][..], |signers| &signers.certificates);
    let packed = progress.step(&Step::Pack.title(), |progress| run.pack(&stage, certificates, progress))?;
    let made = match &signers {
        None => packed,
        Some(signers) => {
            let signed = progress.step(&Step::Sign.title(), |progress| run.sign(&packed, signers, progress))?;
            progress.step(&Step::Verify.title(), |progress| run.verify(&signed, signers, progress))?;
            signed
        }
    };
    if options.targets.contains(&host) {
        progress.step(&Step::CrossCheck.title(), |progress| run.cross_check(&stage, progress))?;
    }
    let field = |name: &str| made.require(name, TOOL).map(str::to_owned);
    Ok(Release {
        archive: field("archive")?.into(),
        size: field("size")?.parse().context("the archive's size is not a number")?,
        // The payload digest is that of the unsigned archive.
        sha256: field("sha256").or_else(|_| field("payload_sha256"))?,
        payload: field("payload_sha256")?,
        signers: made.list("signers").iter().filter_map(Json::as_text).map(str::to_owned).collect(),
        certificates: match options.signing {
            // The one beside the key: it stays where it is.
            Signing::Development => vec![development_directory(workspace).join("development.cert.asc")],
            Signing::Keys { .. } | Signing::Later { .. } => certificates.to_vec(),
        },
        sources: sources.clone(),
        development: options.is_development(),
        toolchain: run.builder.toolchain.description(),
        tool: run.tool,
    })
}

/// One run at a time in a checkout: they share the stage.
fn lock(workspace: &Workspace) -> Result<File> {
    let work = workspace.dist().join("work");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let path = workspace.root().join("target/dist.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another `cargo xtask dist` is running in this checkout; wait for it"),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Finds or installs the toolchains, and fetches what they compile.
fn prepare<'a>(
    options: &Options,
    workspace: &'a Workspace,
    sources: &'a Sources,
    host: Target,
    progress: &mut Progress,
) -> Result<Builder<'a>> {
    let mut needed = options.targets.clone();
    if !needed.contains(&host) {
        needed.push(host);
    }
    let toolchain = progress.step(&Step::Toolchain.title(), |progress| {
        Toolchain::obtain(&needed, options.toolchain, options.installing, progress)
    })?;
    progress.note(&format!("Using {}", toolchain.description()));
    let tools = Tools::of(workspace);
    progress.step(&Step::Tools.title(), |progress| {
        if !tools.are_installed() {
            tools::require_network(options.offline, "zig")?;
        }
        tools.install(workspace, options.installing, progress)
    })?;
    let builder = Builder {
        workspace,
        toolchain,
        tools,
        sources,
        jobs: options.threads,
        offline: options.offline,
        secret: options.passphrase_env.clone(),
    };
    progress.step(&Step::Fetch.title(), |progress| builder.fetch(&needed, progress))?;
    Ok(builder)
}

/// The binaries by program and target.
type Binaries = BTreeMap<(&'static str, Target), PathBuf>;

/// The keys that sign, as `spacelift-bundle` takes them, and their certificates.
struct Signers {
    arguments: Vec<OsString>,
    certificates: Vec<PathBuf>,
}

/// What the steps share.
struct Run<'a> {
    options: &'a Options,
    sources: &'a Sources,
    config: PathBuf,
    /// Intermediate files.
    work: PathBuf,
    output: PathBuf,
    /// `spacelift-bundle` for this machine: the very binary that ships.
    tool: PathBuf,
    host: Target,
    builder: Builder<'a>,
}

impl Run<'_> {
    /// `spacelift-bundle` with a subcommand.
    fn tool(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg(subcommand);
        command
    }

    fn json(&self, command: &mut Command, progress: &Progress) -> Result<Json> {
        let output = progress.run(command.arg("--json"))?;
        Json::parse(&String::from_utf8(output)?).with_context(|| format!("{TOOL} printed no JSON document"))
    }

    fn read_config(&self, progress: &Progress) -> Result<Json> {
        self.json(self.tool("release-config").arg(&self.config), progress)
    }

    /// Opens the keys, so that a wrong passphrase or an expired key shows before the long part, and gets their certificates.
    fn open_keys(&self, signing: &Signing, progress: &Progress) -> Result<Signers> {
        let (arguments, days) = match signing {
            Signing::Keys { files, gpg } => {
                let days = (self.options.audience == Audience::Customers).then_some(RELEASE_KEY_DAYS);
                (self.key_arguments(files, gpg), days)
            }
            Signing::Development | Signing::Later { .. } => {
                let directory = development_directory(self.builder.workspace);
                let key = directory.join("development.secret.asc");
                let arguments = vec!["--key".into(), key.clone().into_os_string()];
                let usable = key.exists() && self.check_keys(&arguments, Some(DEVELOPMENT_KEY_DAYS), progress).is_ok();
                if !usable {
                    self.make_development_key(&directory, progress)?;
                }
                (arguments, None)
            }
        };
        let certificates = self.check_keys(&arguments, days, progress)?;
        Ok(Signers { arguments, certificates })
    }

    fn key_arguments(&self, files: &[PathBuf], gpg: &[String]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: &OsStr| arguments.extend([flag.into(), value.to_owned()]);
        files.iter().for_each(|file| add("--key", file.as_os_str()));
        gpg.iter().for_each(|key| add("--gpg-key", key.as_ref()));
        if let Some(file) = &self.options.passphrase_file {
            add("--passphrase-file", file.as_os_str());
        }
        if let Some(name) = &self.options.passphrase_env {
            add("--passphrase-env", name);
        }
        arguments
    }

    fn make_development_key(&self, directory: &Path, progress: &Progress) -> Result<()> {
        progress.note(&format!("Making a throw-away development key in {}", directory.display()));
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        let mut keygen = self.tool("keygen");
        keygen.args(["--development", "--no-passphrase", "--name", "development", "--output"]).arg(directory);
        progress.run(&mut keygen)?;
        Ok(())
    }

    /// The certificates of usable keys.
    fn check_keys(&self, keys: &[OsString], days: Option<u64>, progress: &Progress) -> Result<Vec<PathBuf>> {
        let directory = self.work.join("signers");
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut sign = self.tool("sign");
        // Nothing is signed, and still the command line has the archive's place.
        sign.arg(self.output.join("unsigned")).arg("--check-keys").args(keys).arg("--certificates-to").arg(&directory);
        if let Some(days) = days {
            sign.args(["--require-validity-days", &days.to_string()]);
        }
        self.run_signer(&mut sign, progress)?;
        let list =
            || -> io::Result<Vec<PathBuf>> { fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect() };
        let mut certificates = list().with_context(|| format!("cannot list {}", directory.display()))?;
        certificates.sort();
        Ok(certificates)
    }

    /// Only a key of the user may have a passphrase, which is asked for on the terminal.
    fn run_signer(&self, command: &mut Command, progress: &Progress) -> Result<Vec<u8>> {
        match self.options.signing {
            Signing::Keys { .. } => progress.run_asking(command),
            Signing::Development | Signing::Later { .. } => progress.run(command),
        }
    }

    fn build_all(&self, progress: &mut Progress) -> Result<Binaries> {
        let mut binaries = Binaries::new();
        for target in self.options.targets.iter().copied() {
            let mut build = |program, worker: Option<&Path>| -> Result<PathBuf> {
                let title = Step::Build(program, target).title();
                let binary = progress.step(&title, |progress| self.builder.build(program, target, worker, progress))?;
                binaries.insert((program, target), binary.clone());
                Ok(binary)
            };
            let worker = build(WORKER, None)?;
            build(LAUNCHER, Some(&worker))?;
            if target != self.host {
                build(TOOL, None)?;
            } else {
                binaries.insert((TOOL, target), self.tool.clone());
            }
        }
        Ok(binaries)
    }

    fn fill_stage(&self, binaries: &Binaries) -> Result<Stage> {
        let stage = Stage::create(self.builder.workspace.dist().join("stage"))?;
        stage.add_sources(self.builder.workspace)?;
        for ((program, target), binary) in binaries {
            // The worker ships inside the launcher.
            if *program != WORKER {
                stage.add_program(binary, program, *target)?;
            }
        }
        Ok(stage)
    }

    fn make_image(&self, stage: &Stage, source: &str, progress: &Progress) -> Result<()> {
        let mut image = self.tool("image");
        image.args(["--version", VERSION, "--source", source]).args(self.source_arguments());
        for target in &self.options.targets {
            let launcher = stage.directory().join(program_place(LAUNCHER, *target));
            let mut argument = OsString::from(format!("{}=", target.short()));
            argument.push(launcher);
            image.arg("--launcher").arg(argument);
        }
        image.arg("--output").arg(stage.place("container-images/spacelift-launcher.tar")?);
        progress.run(&mut image)?;
        Ok(())
    }

    /// Pages and completions of the tool, by itself; the launcher's are among what ships of the checkout.
    fn write_manual(&self, stage: &Stage, progress: &Progress) -> Result<()> {
        progress.run(self.tool("manual").arg("--output-dir").arg(stage.directory()))?;
        Ok(())
    }

    fn source_arguments(&self) -> [String; 4] {
        ["--commit".into(), self.sources.commit.clone(), "--source-date".into(), self.sources.date.to_string()]
    }

    /// One SBOM per program and target, and the notices of everything that is linked in.
    fn list_dependencies(&self, stage: &Stage, progress: &Progress) -> Result<()> {
        let write = |file: String, bytes: Vec<u8>| -> Result<PathBuf> {
            let path = self.work.join(file);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let targets = &self.options.targets;
        let all = write("metadata.json".into(), self.builder.metadata(targets, progress)?)?;
        let mut notices = self.tool("notices");
        notices.arg("--metadata").arg(all).arg("--output").arg(stage.place("licenses/THIRD-PARTY.txt")?);
        let musl = self.builder.tools.musl_version()?;
        for target in targets.iter().copied() {
            let metadata = self.builder.metadata(&[target], progress)?;
            let metadata = write(format!("metadata-{}.json", target.short()), metadata)?;
            for program in [WORKER, LAUNCHER, TOOL] {
                let tree = self.builder.dependencies(program, target, progress)?;
                let tree = write(format!("tree-{program}-{}.txt", target.short()), tree)?;
                let mut sbom = self.tool("sbom");
                sbom.arg("--metadata").arg(&metadata).arg("--tree").arg(&tree);
                sbom.arg("--lock").arg(self.builder.workspace.root().join("Cargo.lock"));
                sbom.args(["--package", program, "--target", target.triple()]);
                sbom.args(["--toolchain", &self.builder.toolchain.compiler.version]);
                sbom.args(["--toolchain", &format!("musl {musl}")]);
                sbom.args(["--source-date", &self.sources.date.to_string(), "--output"]);
                sbom.arg(stage.place(&format!("sbom/{program}-{}.cdx.json", target.short()))?);
                progress.run(&mut sbom)?;
                notices.arg("--tree").arg(tree);
            }
        }
        progress.run(&mut notices)?;
        Ok(())
    }

    fn write_provenance(&self, stage: &Stage, source: &str, progress: &Progress) -> Result<()> {
        let info = self.work.join("build-info.json");
        let mut used = vec![("toolchain".to_owned(), self.builder.toolchain.description().into())];
        used.extend(Tools::versions().map(|(name, version)| (name.to_owned(), version.into())));
        let targets = self.options.targets.iter().map(|target| target.triple().into()).collect();
        used.push(("targets".into(), Json::List(targets)));
        fs::write(&info, Json::Map(used).to_string()).with_context(|| format!("cannot write {}", info.display()))?;

        let mut provenance = self.tool("provenance");
        provenance.arg("--stage").arg(stage.directory()).args(self.source_arguments());
        if self.sources.modified {
            provenance.arg("--modified");
        }
        provenance.args(["--version", VERSION, "--source", source]).arg("--config").arg(&self.config);
        provenance.arg("--lock").arg(self.builder.workspace.root().join("Cargo.lock"));
        provenance.arg("--build-info").arg(info).arg("--output").arg(stage.place("provenance.json")?);
        progress.run(&mut provenance)?;
        Ok(())
    }

    fn pack(&self, stage: &Stage, signers: &[PathBuf], progress: &Progress) -> Result<Json> {
        let mut pack = self.tool("pack");
        pack.arg("--stage").arg(stage.directory()).arg("--config").arg(&self.config);
        pack.args(["--version", VERSION]).args(self.source_arguments());
        if self.sources.modified {
            pack.arg("--modified");
        }
        if self.options.is_development() {
            pack.arg("--development");
        }
        for certificate in signers.iter().chain(&self.options.certificates) {
            pack.arg("--cert").arg(certificate);
        }
        if let Some(threads) = self.options.threads {
            pack.args(["--threads", &threads.to_string()]);
        }
        pack.arg("--output-dir").arg(&self.output);
        self.json(&mut pack, progress)
    }

    fn sign(&self, packed: &Json, signers: &Signers, progress: &Progress) -> Result<Json> {
        let mut sign = self.tool("sign");
        sign.arg(packed.require("archive", "spacelift-bundle pack")?).args(&signers.arguments);
        sign.arg("--output-dir").arg(&self.output).arg("--json");
        let output = self.run_signer(&mut sign, progress)?;
        Json::parse(&String::from_utf8(output)?).with_context(|| format!("{TOOL} printed no JSON document"))
    }

    fn verify(&self, signed: &Json, signers: &Signers, progress: &Progress) -> Result<()> {
        let mut verify = self.tool("verify");
        verify.arg(signed.require("archive", "spacelift-bundle sign")?);
        for certificate in &signers.certificates {
            verify.arg("--cert").arg(certificate);
        }
        if self.options.is_development() {
            verify.arg("--allow-development");
        }
        progress.run(&mut verify)?;
        Ok(())
    }

    /// Runs the launcher that ships: what it says about itself must be what was built.
    fn cross_check(&self, stage: &Stage, progress: &Progress) -> Result<()> {
        let launcher = stage.directory().join(program_place(LAUNCHER, self.host));
        let output = progress.run(Command::new(&launcher).args(["--version", "--json"]))?;
        let says = Json::parse(&String::from_utf8(output)?).context("the launcher printed no JSON document")?;
        let commit = self.sources.commit.as_str();
        let expected = [
            ("version", VERSION),
            ("commit", commit),
            ("target", self.host.triple()),
            ("worker.version", VERSION),
            ("worker.commit", commit),
            ("worker.target", self.host.triple()),
        ];
        for (field, value) in expected {
            let found = says.text(field).unwrap_or("nothing");
            if found != value {
                bail!("{} says that its {field} is {found}, and it must be {value}", launcher.display());
            }
        }
        Ok(())
    }
}
