//! Installing a release into an AWS account: first everything that has no effect, then the effects, each of which can be
//! done again.
//!
//! Before anyone is asked: the release is copied and verified, the configuration checked, and the account looked at.
//! After `yes`: the stack of the downloads bucket, the stack of the image repository, the release's files in their order,
//! the image. A run that was interrupted anywhere goes on from there when it is run again.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bundle_core::install_config::{self, Config, Pin};
use bundle_core::interrupt;
use bundle_core::private::PrivateRelease;
use bundle_core::signature::Threshold;
use bundle_core::verify::{Development, Policy, Rollback, SkippedVersion};
use serde_json::json;

use crate::aws::{self, Connection, Proxies};
use crate::exit::Usage;
use crate::failure::{Failure, Kind};
use crate::progress::Progress;
use crate::publish::{self, Access, Bucket, Store};
use crate::registry::{self, Push};

pub(crate) mod account;
mod plan;
pub(crate) mod release;
pub(crate) mod stack;

use plan::{BUCKET_OUTPUT, Plan, PlannedStack, REPOSITORY_OUTPUT};
use release::Copy;
use stack::{Applied, Stacks, Wanted};

/// The template of the downloads bucket.
const S3_TEMPLATE: &str = "cloudformation/infra-s3.yaml";
/// The template of the image repository.
const ECR_TEMPLATE: &str = "cloudformation/infra-ecr.yaml";
/// The template of worker pools.
const POOL_TEMPLATE: &str = "cloudformation/workerpool.yaml";
/// The launcher's image in the release.
const LAUNCHER_IMAGE: &str = "spacelift-launcher";
/// Parameters of the templates that the configuration decides about.
const BUCKET_PARAMETER: &str = "BucketName";
const DAYS_PARAMETER: &str = "NoncurrentVersionExpirationDays";
const REPOSITORY_PARAMETER: &str = "RepositoryName";
const DECIDED: [&str; 3] = [BUCKET_PARAMETER, DAYS_PARAMETER, REPOSITORY_PARAMETER];
/// How often a signal is looked for while someone thinks about the answer.
const TICK: Duration = Duration::from_millis(100);
/// Limit of a template that is sent with the request.
const MAX_TEMPLATE: usize = 51_200;

/// What was asked for.
pub(crate) struct Request<'a> {
    /// The directory of the unpacked release.
    pub(crate) release: &'a Path,
    /// The configuration.
    pub(crate) config: &'a Path,
    /// Certificates to pin besides those of the configuration.
    pub(crate) certificates: &'a [PathBuf],
    /// How many must have signed, unless the configuration says it.
    pub(crate) threshold: Option<usize>,
    /// See [`Development`].
    pub(crate) development: Development,
    /// See [`Rollback`].
    pub(crate) rollback: Rollback,
    /// See [`SkippedVersion`].
    pub(crate) skipped_version: SkippedVersion,
    /// Who is asked before anything has an effect.
    pub(crate) consent: Consent,
    /// Where the private copy goes.
    pub(crate) work: &'a Path,
    /// How to reach AWS.
    pub(crate) aws: &'a aws::Options,
    /// Results for machines.
    pub(crate) json: bool,
}

/// Who says that it may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// A person at a terminal types it.
    Ask,
    /// The caller gave it.
    Given,
    /// Nothing shall begin.
    PlanOnly,
}

/// Installs.
///
/// # Errors
/// What was refused, and what was done before.
pub(crate) fn run(request: &Request<'_>, progress: &Arc<Progress>) -> anyhow::Result<()> {
    let config = Config::read(request.config)?;
    let pins: Vec<Pin> =
        config.signers.iter().cloned().chain(request.certificates.iter().cloned().map(Pin::File)).collect();
    if pins.is_empty() {
        return Err(Usage(format!(
            "no certificate is pinned, so nothing says who may have signed this release: get the vendor's certificate by \
             another way than the release (the vendor's site, an earlier installation, in person), and name the file or \
             its fingerprint in `signers` of {}, or give --cert FILE",
            request.config.display()
        ))
        .into());
    }
    let count = request.threshold.unwrap_or(config.threshold);
    let threshold = Threshold::new(count)
        .ok_or_else(|| Usage("--threshold 0 would accept anything; it must be at least 1".into()))?;
    progress.line(format!("verifying the release in {}", request.release.display()));
    let copy = Copy::make(request.release, request.work)?;
    let pinned = copy.pinned(&pins)?;
    if pinned.certs().len() < count {
        let pinned = pinned.certs().len();
        let why = format!(
            "{count} signatures cannot be had: only {pinned} certificate(s) are pinned; name the others in `signers`, or \
             lower `threshold`"
        );
        return Err(Usage(why).into());
    }
    let policy = Policy {
        pinned: &pinned,
        threshold,
        now: SystemTime::now(),
        installed: None,
        development: request.development,
        rollback: request.rollback,
        skipped_version: request.skipped_version,
    };
    let ignored = copy.ignored.clone();
    let release = copy.verify(&policy)?;
    let parts = Parts::find(&release)?;
    for signer in release.verified().signers() {
        progress.line(format!("signed by {} {}", signer.primary, signer.user_id.escape_debug()));
    }
    for name in &ignored {
        progress.line(format!("{name} is not part of the release; it is not used"));
    }
    aws::runtime()?.block_on(async {
        let connection = connect(&config, request.aws).await?;
        let stacks = Stacks::new(&connection.config, &connection.region, progress);
        let mut plan = Plan::make(&connection, &stacks, &config, release.manifest(), &policy).await?;
        if !parts.has_pool {
            plan.notes.push(format!("this release has no {POOL_TEMPLATE}"));
        }
        let installer = Installer { request, config: &config, release: &release, parts: &parts, progress };
        installer.run(&connection, &stacks, &plan).await
    })
}

/// Connects as the configuration and the flags have it.
///
/// # Errors
/// They contradict each other, or are not enough.
pub(crate) async fn connect(config: &Config, options: &aws::Options) -> anyhow::Result<Connection> {
    let either = |flag: &Option<String>, field: &Option<String>, flag_name: &str, field_name: &str| match (flag, field)
    {
        (Some(flag), Some(field)) if flag != field => Err(Usage(format!(
            "{flag_name} {flag} contradicts `{field_name}` of the configuration, which is {field}; leave one out"
        ))),
        (flag, field) => Ok(flag.clone().or_else(|| field.clone())),
    };
    let options = aws::Options {
        region: either(&options.region, &config.region, "--region", "aws_region")?,
        profile: either(&options.profile, &config.profile, "--profile", "aws_profile")?,
        proxies: Proxies {
            http: config.proxy.http.clone(),
            https: config.proxy.https.clone(),
            none: config.proxy.none.clone(),
        },
        ..options.clone()
    };
    let connection = Connection::open(&options).await?;
    if !install_config::is_region(&connection.region) {
        return Err(
            Usage(format!("{:?} is not a region; set `aws_region`, such as eu-west-1", connection.region)).into()
        );
    }
    Ok(connection)
}

/// Asks a person at the terminal. `accepted` are the answers that mean yes.
///
/// # Errors
/// There is no terminal, or the answer is another.
pub(crate) fn ask(question: &str, accepted: &[&str], flag: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        return Err(Usage(format!("nobody is at a terminal to confirm this; {flag} says yes in advance")).into());
    }
    let mut out = io::stderr().lock();
    write!(out, "\n{question} ").and_then(|()| out.flush())?;
    drop(out);
    // In a thread of its own: while it waits for a line, it does not hear signals.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = String::new();
        // Nobody waits any more if this cannot be sent.
        let _ = sender.send(io::stdin().lock().read_line(&mut answer).map(|_| answer));
    });
    let answer = loop {
        match receiver.recv_timeout(TICK) {
            Ok(answer) => break answer.context("cannot read the answer")?,
            Err(mpsc::RecvTimeoutError::Timeout) => interrupt::check()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => break String::new(),
        }
    };
    if !accepted.contains(&answer.trim()) {
        return Err(Usage("not confirmed; nothing was changed".into()).into());
    }
    Ok(())
}

/// The parts of a release that an installation needs.
struct Parts {
    s3_template: String,
    ecr_template: String,
    image: PathBuf,
    image_digest: String,
    has_pool: bool,
}

impl Parts {
    fn find(release: &PrivateRelease) -> anyhow::Result<Self> {
        let manifest = release.manifest();
        let missing =
            |what: &str| Usage(format!("this release has no {what}, so it cannot be installed; ask the vendor"));
        let template = |path: &str| -> anyhow::Result<String> {
            manifest.file(path).ok_or_else(|| missing(path))?;
            let full = release.path().join(path);
            let text = fs::read_to_string(&full).with_context(|| format!("cannot read {}", full.display()))?;
            if text.len() > MAX_TEMPLATE {
                return Err(Usage(format!(
                    "{path} has {} bytes, more than the {MAX_TEMPLATE} that CloudFormation takes",
                    text.len()
                ))
                .into());
            }
            Ok(text)
        };
        let image = manifest.images.iter().find(|image| image.name == LAUNCHER_IMAGE);
        let image = image.ok_or_else(|| missing("image of the launcher"))?;
        if manifest.targets.is_empty() {
            return Err(missing("launcher").into());
        }
        Ok(Self {
            s3_template: template(S3_TEMPLATE)?,
            ecr_template: template(ECR_TEMPLATE)?,
            image: release.path().join(image.path.as_str()),
            image_digest: image.digest.clone(),
            has_pool: manifest.file(POOL_TEMPLATE).is_some(),
        })
    }
}

/// Everything that the effects need.
struct Installer<'a> {
    request: &'a Request<'a>,
    config: &'a Config,
    release: &'a PrivateRelease,
    parts: &'a Parts,
    progress: &'a Arc<Progress>,
}

impl Installer<'_> {
    async fn run(&self, connection: &Connection, stacks: &Stacks<'_>, plan: &Plan) -> anyhow::Result<()> {
        if self.request.consent == Consent::PlanOnly {
            let mut out = io::stdout().lock();
            if self.request.json {
                writeln!(out, "{}", json!({ "ok": true, "plan": plan.json() }))?;
            } else {
                plan.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?;
            }
            return Ok(());
        }
        plan.lines().iter().for_each(|line| self.progress.line(line));
        if self.request.consent == Consent::Ask {
            let question = format!(
                "Installing version {} into AWS account {}. Are you sure you want to continue? Only 'yes' will be accepted:",
                plan.version, plan.account.id
            );
            ask(&question, &["yes"], "--yes")?;
        }
        let mut done = Vec::new();
        match self.effects(connection, stacks, plan, &mut done).await {
            Ok(result) => self.report(plan, &result),
            Err(error) => {
                for line in &done {
                    self.progress.line(format!("done before that: {line}"));
                }
                self.progress.line(match plan.installed_version() {
                    Some(version) => format!(
                        "workers still get {version} until everything is done; to go on, run the same command again; to \
                         stay at {version}, run install.sh of that release again with --allow-rollback"
                    ),
                    None => "to go on, run the same command again; to go back, run ./uninstall.sh".to_owned(),
                });
                Err(error)
            }
        }
    }

    async fn effects(
        &self,
        connection: &Connection,
        stacks: &Stacks<'_>,
        plan: &Plan,
        done: &mut Vec<String>,
    ) -> anyhow::Result<Installation> {
        let mut s3_parameters = Vec::new();
        if plan.bucket != plan.account.default_bucket() {
            s3_parameters.push((BUCKET_PARAMETER.to_owned(), plan.bucket.clone()));
        }
        if let Some(days) = self.config.noncurrent_days {
            s3_parameters.push((DAYS_PARAMETER.to_owned(), days.to_string()));
        }
        let mut ecr_parameters = Vec::new();
        if plan.repository != install_config::REPOSITORY {
            ecr_parameters.push((REPOSITORY_PARAMETER.to_owned(), plan.repository.clone()));
        }
        let s3 = self.stack(stacks, &plan.s3, &self.parts.s3_template, &s3_parameters, done).await?;
        let ecr = self.stack(stacks, &plan.ecr, &self.parts.ecr_template, &ecr_parameters, done).await?;
        let bucket = output(stacks, &plan.s3.name, BUCKET_OUTPUT).await?;
        let repository = output(stacks, &plan.ecr.name, REPOSITORY_OUTPUT).await?;
        interrupt::check()?;
        let image = self.distribute(connection, plan, &repository, done).await?;
        Ok(Installation { stacks: [(plan.s3.name.clone(), s3), (plan.ecr.name.clone(), ecr)], bucket, image })
    }

    async fn stack(
        &self,
        stacks: &Stacks<'_>,
        planned: &PlannedStack,
        template: &str,
        parameters: &[(String, String)],
        done: &mut Vec<String>,
    ) -> Result<Applied, stack::Error> {
        let wanted = Wanted { name: &planned.name, template, parameters, decided: &DECIDED, tags: &self.config.tags };
        if !planned.imports.is_empty() {
            stacks.import(&wanted, &planned.imports).await?;
            done.push(format!("the stack {} was made of what existed", planned.name));
        }
        let applied = stacks.apply(&wanted).await?;
        let how = match applied {
            Applied::Created => "was created",
            Applied::Updated => "was updated",
            Applied::Unchanged => "was in order and is as it was",
        };
        self.progress.line(format!("stack {} {how}", planned.name));
        done.push(format!("the stack {} {how}", planned.name));
        Ok(applied)
    }

    /// Uploads the release and pushes the launcher's image, then lets readers find them; returns the image's address.
    async fn distribute(
        &self,
        connection: &Connection,
        plan: &Plan,
        repository: &str,
        done: &mut Vec<String>,
    ) -> anyhow::Result<String> {
        let bucket = Bucket::S3 { name: plan.bucket.clone(), prefix: String::new() };
        let store = Store::open(&bucket, Access::Write, Some(connection), Some(&plan.account.id)).await?;
        let current = plan.installed.as_ref();
        let request = publish::Request { release: self.release, bucket: &bucket, current, promote: true };
        publish::upload(&store, &request, self.progress).await?;
        done.push(format!("the files of {} are in the bucket {}", plan.version, plan.bucket));
        let image = self.push(connection, repository).await?;
        done.push(format!("the image {image} is in the repository"));
        // From here on workers get the new version, so everything of it is there before.
        let (path, manifest) = (self.release.path(), self.release.manifest());
        publish::point(&store, &bucket, path, manifest, current, self.progress).await?;
        Ok(image)
    }

    /// Pushes the launcher's image, tagged with the version; returns its address.
    async fn push(&self, connection: &Connection, repository: &str) -> Result<String, registry::Error> {
        let version = self.release.manifest().version.to_string();
        let push = Push {
            image: &self.parts.image,
            digest: &self.parts.image_digest,
            repository: &repository.parse().map_err(registry::Error::Repository)?,
            tag: &version,
            // Its stack made it.
            create_repository: false,
            mount_from: None,
            tags: &[],
        };
        registry::push(connection, &push, self.progress).await?;
        Ok(format!("{repository}:{version}"))
    }

    fn report(&self, plan: &Plan, result: &Installation) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.request.json {
            let stacks: Vec<_> = result
                .stacks
                .iter()
                .map(|(name, applied)| json!({ "name": name, "result": format!("{applied:?}").to_lowercase() }))
                .collect();
            let document = json!({
                "ok": true,
                "account": plan.account.id,
                "region": plan.region,
                "version": plan.version,
                "installed_before": plan.installed_version(),
                "downloads_bucket": result.bucket,
                "launcher_image": result.image,
                "stacks": stacks,
            });
            return Ok(writeln!(out, "{document}")?);
        }
        writeln!(out, "\nInstallation info:\n")?;
        writeln!(out, "  * Launcher container image: {}", result.image)?;
        writeln!(out, "  * Downloads bucket: {}", result.bucket)?;
        if self.parts.has_pool {
            let template = self.request.release.join(POOL_TEMPLATE);
            writeln!(out, "\nNext, deploy a worker pool; fill in what is between < and >:\n")?;
            writeln!(out, "  aws cloudformation deploy --no-cli-pager \\")?;
            writeln!(out, "    --stack-name spacelift-default-worker-pool \\")?;
            writeln!(out, "    --template-file \"{}\" \\", template.display())?;
            writeln!(out, "    --region \"{}\" \\", plan.region)?;
            writeln!(out, "    --parameter-overrides \\")?;
            writeln!(out, "      PseudoRandomSuffix=\"ab12cd\" \\")?;
            writeln!(out, "      BinariesBucket=\"{}\" \\", result.bucket)?;
            for (name, value) in
                [("SecretName", "secret-name"), ("SecurityGroups", "security-groups"), ("Subnets", "subnets")]
            {
                writeln!(out, "      {name}=\"<{value}>\" \\")?;
            }
            writeln!(out, "      ImageId=\"<ami-id>\" \\")?;
            writeln!(out, "    --capabilities \"CAPABILITY_NAMED_IAM\"")?;
        }
        writeln!(out, "\nVersion {} has been successfully installed.", plan.version)?;
        Ok(())
    }
}

/// What an installation came to.
struct Installation {
    stacks: [(String, Applied); 2],
    bucket: String,
    image: String,
}

async fn output(stacks: &Stacks<'_>, name: &str, key: &str) -> Result<String, Failure> {
    let stack = stacks.find(name).await?;
    stack.and_then(|stack| stack.outputs.get(key).cloned()).ok_or_else(|| {
        let why = format!("it has no output {key}; another program may have changed it: run the same command again");
        Failure::new(format!("use the stack {name}"), Kind::Busy, why)
    })
}
