//! Commands: those of the server, and those of people who use it.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use launcher_wire::api::RunType;
use launcher_wire::id::{PoolId, RunId, WorkerId};
use launcher_wire::mqtt;
use mothership::admin::{Client, CreateRun, Run, Stack};
use mothership::server::Settings;
use mothership::{authority, objects, server};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

/// How often `run log --follow` asks for more.
const FOLLOW: Duration = Duration::from_millis(500);

/// The reference control plane.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  mothership init --server-name control-plane.example.com
  mothership serve --broker mqtts://localhost:8883 --s3-endpoint https://s3.example.com \\
    --s3-bucket runs --s3-region eu-west-1
  mothership pool create --csr spacelift.csr --name production"
)]
pub(crate) struct Arguments {
    /// The server's data directory.
    #[arg(long, global = true, default_value = "mothership-data")]
    data: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the authority, the certificates and the administrator's token, where they are missing.
    Init {
        /// A name or an address of the broker and of the API; localhost always is one.
        #[arg(long, num_args = 1.., default_value = "localhost")]
        server_name: Vec<String>,
    },
    /// Serve, until SIGTERM.
    Serve(Box<Serve>),
    /// Pools.
    #[command(subcommand)]
    Pool(Pool),
    /// Workers.
    #[command(subcommand)]
    Worker(Worker),
    /// Stacks.
    #[command(subcommand)]
    Stack(StackCommand),
    /// Runs.
    #[command(subcommand)]
    Run(RunCommand),
}

#[derive(Debug, Args)]
struct Serve {
    /// Where to listen. Port 0 takes a free one, and the same one again after a restart.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The name under which launchers find it.
    #[arg(long, default_value = "localhost")]
    advertise_host: String,
    /// The broker: mqtts://HOST[:PORT].
    #[arg(long)]
    broker: String,
    /// What all topics begin with.
    #[arg(long, default_value = mqtt::DEFAULT_NAMESPACE)]
    namespace: String,
    /// The object store's address.
    #[arg(long)]
    s3_endpoint: String,
    /// The bucket.
    #[arg(long)]
    s3_bucket: String,
    /// Its region.
    #[arg(long)]
    s3_region: String,
    /// Certificate authorities of the object store, in PEM. None: the host's.
    #[arg(long)]
    s3_ca: Option<PathBuf>,
    /// The access key's identifier.
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    s3_access_key_id: String,
    /// Seconds between two signs of life of a worker.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    heartbeat: u64,
    /// Seconds until a scheduled run that no worker claims goes to another.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    claim_timeout: u64,
    /// Seconds until a run has failed whose worker is not there.
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    lost_timeout: u64,
}

#[derive(Debug, Subcommand)]
enum Pool {
    /// Make a pool from a certificate request.
    Create {
        /// The file that `openssl req -new` wrote as -out.
        #[arg(long)]
        csr: PathBuf,
        /// For people.
        #[arg(long)]
        name: Option<String>,
    },
    /// Show all pools.
    List,
    /// Let the workers of a pool take no more runs.
    Drain {
        /// The pool.
        pool: PoolId,
    },
    /// Let them take runs again.
    Undrain {
        /// The pool.
        pool: PoolId,
    },
    /// Let them start anew.
    Cycle {
        /// The pool.
        pool: PoolId,
    },
    /// Give a pool another key.
    Reset {
        /// The pool.
        pool: PoolId,
        /// The request about the new key.
        #[arg(long)]
        csr: PathBuf,
    },
    /// Show what uses a pool.
    UsedBy {
        /// The pool.
        pool: PoolId,
    },
}

#[derive(Debug, Subcommand)]
enum Worker {
    /// Show all workers.
    List,
    /// Let a worker take no more runs.
    Drain {
        /// The worker.
        worker: WorkerId,
    },
    /// Let it take runs again.
    Undrain {
        /// The worker.
        worker: WorkerId,
    },
}

#[derive(Debug, Subcommand)]
enum StackCommand {
    /// Make or replace a stack.
    Apply {
        /// Its description, in JSON.
        #[arg(short, long)]
        file: PathBuf,
        /// Its source, a gzipped tar archive.
        #[arg(long)]
        source: Option<PathBuf>,
    },
    /// Show all stacks.
    List,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    Proposed,
    Tracked,
    Task,
    Testing,
    Destroy,
}

#[derive(Debug, Subcommand)]
enum RunCommand {
    /// Start a run.
    Start {
        /// The stack.
        #[arg(long)]
        stack: String,
        /// What it does. With --command: a task.
        #[arg(long = "type", value_enum)]
        run_type: Option<Type>,
        /// The command of a task.
        #[arg(long)]
        command: Option<String>,
        /// The commit.
        #[arg(long)]
        commit: Option<String>,
        /// What policies are to see. May be given several times.
        #[arg(long)]
        metadata: Vec<String>,
    },
    /// Show the newest runs.
    List {
        /// Only those that wait for a worker.
        #[arg(long)]
        queued: bool,
    },
    /// Show a run with its history.
    Show {
        /// The run.
        run: RunId,
    },
    /// Agree with its plan.
    Confirm {
        /// The run.
        run: RunId,
    },
    /// Do not agree with its plan.
    Discard {
        /// The run.
        run: RunId,
    },
    /// End it.
    Stop {
        /// The run.
        run: RunId,
    },
    /// End it before a worker has it.
    Cancel {
        /// The run.
        run: RunId,
    },
    /// Print its log.
    Log {
        /// The run.
        run: RunId,
        /// Go on until it has ended.
        #[arg(long)]
        follow: bool,
    },
}

impl Arguments {
    pub(crate) fn run(self) -> Result<()> {
        let Self { data, json, command } = self;
        let open = || Client::open(&data);
        let out = Output { json };
        match command {
            Command::Init { server_name } => {
                authority::init(&data, &server_name)
                    .with_context(|| format!("cannot set up {}, which --data names", data.display()))?;
                Ok(())
            }
            Command::Serve(arguments) => serve(data, *arguments),
            Command::Pool(command) => pool(&open()?, &out, command),
            Command::Worker(command) => worker(&open()?, &out, command),
            Command::Stack(command) => stack(&open()?, &out, command),
            Command::Run(command) => run(&open()?, &out, command),
        }
    }
}

fn serve(data: PathBuf, arguments: Serve) -> Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let secret_key = std::env::var("AWS_SECRET_ACCESS_KEY")
        .ok()
        .context("the variable AWS_SECRET_ACCESS_KEY is not set; it holds the secret of --s3-access-key-id")?;
    let ca = match &arguments.s3_ca {
        Some(path) => Some(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => None,
    };
    let settings = Settings {
        data,
        listen: arguments.listen,
        advertise_host: arguments.advertise_host,
        broker: arguments.broker,
        namespace: arguments.namespace,
        objects: objects::Configuration {
            endpoint: arguments.s3_endpoint,
            bucket: arguments.s3_bucket,
            region: arguments.s3_region,
            access_key: arguments.s3_access_key_id,
            secret_key,
            session_token: std::env::var("AWS_SESSION_TOKEN").ok().filter(|token| !token.is_empty()),
            ca,
        },
        heartbeat: Duration::from_secs(arguments.heartbeat),
        claim_timeout: Duration::from_secs(arguments.claim_timeout),
        lost_timeout: Duration::from_secs(arguments.lost_timeout),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let announce = |ready: &server::Ready| {
            // Whoever closed standard output reads the file instead.
            let _ = writeln!(io::stdout(), "{}", serde_json::json!(ready));
        };
        server::serve(settings, announce, stop).await
    })
}

fn pool(client: &Client, out: &Output, command: Pool) -> Result<()> {
    match command {
        Pool::Create { csr, name } => {
            let made = client.create_pool(name.as_deref(), &read(&csr)?)?;
            out.value(&made, || format!("pool: {}\nSPACELIFT_TOKEN={}\n", made.pool, made.token))
        }
        Pool::Reset { pool, csr } => {
            let made = client.reset_pool(pool, &read(&csr)?)?;
            out.value(&made, || format!("pool: {}\nSPACELIFT_TOKEN={}\n", made.pool, made.token))
        }
        Pool::List => {
            let pools = client.pools()?;
            out.value(&pools, || {
                let rows = pools.iter().map(|pool| {
                    let state = if pool.drained { "DRAINED" } else { "ACTIVE" };
                    [
                        pool.id.to_string(),
                        pool.name.clone(),
                        state.to_owned(),
                        pool.workers.to_string(),
                        pool.busy.to_string(),
                        pool.queued.to_string(),
                    ]
                });
                table(["POOL", "NAME", "STATE", "WORKERS", "BUSY", "QUEUED"], rows)
            })
        }
        Pool::Drain { pool } => Ok(client.drain_pool(pool)?),
        Pool::Undrain { pool } => Ok(client.undrain_pool(pool)?),
        Pool::Cycle { pool } => Ok(client.cycle_pool(pool)?),
        Pool::UsedBy { pool } => {
            let used = client.used_by(pool)?;
            out.value(&used, || {
                let stacks = used.stacks.iter().map(|stack| ["stack".to_owned(), stack.clone()]);
                let runs = used.runs.iter().map(|run| ["run".to_owned(), run.to_string()]);
                table(["KIND", "NAME"], stacks.chain(runs))
            })
        }
    }
}

fn worker(client: &Client, out: &Output, command: Worker) -> Result<()> {
    match command {
        Worker::Drain { worker } => Ok(client.drain_worker(worker)?),
        Worker::Undrain { worker } => Ok(client.undrain_worker(worker)?),
        Worker::List => {
            let workers = client.workers()?;
            out.value(&workers, || {
                let rows = workers.iter().map(|worker| {
                    let tags: Vec<String> =
                        worker.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    [
                        worker.id.to_string(),
                        worker.pool.to_string(),
                        word(&worker.status),
                        worker.run.map(|run| run.to_string()).unwrap_or_default(),
                        worker.launcher_version.clone(),
                        tags.join(","),
                    ]
                });
                table(["WORKER", "POOL", "STATUS", "RUN", "VERSION", "METADATA"], rows)
            })
        }
    }
}

fn stack(client: &Client, out: &Output, command: StackCommand) -> Result<()> {
    match command {
        StackCommand::Apply { file, source } => {
            // What the parser says may repeat a value, and a value may be a secret.
            let stack: Stack = serde_json::from_str(&read(&file)?).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                // This one names a field and repeats nothing.
                let text = error.to_string();
                let missing = text.split(" at line ").next().filter(|text| text.starts_with("missing field"));
                let missing = missing.map(|text| format!(" ({text})")).unwrap_or_default();
                anyhow::anyhow!("{}, line {line}, column {column}: not a stack's description{missing}; openapi.json of mothership has its form", file.display())
            })?;
            let shown = client.apply_stack(&stack)?;
            if let Some(source) = source {
                let archive = std::fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
                client.upload_source(&stack.slug, archive)?;
            }
            out.value(&shown, || format!("stack: {}\n", shown.slug))
        }
        StackCommand::List => {
            let stacks = client.stacks()?;
            out.value(&stacks, || {
                let rows = stacks.iter().map(|stack| [stack.slug.clone(), stack.pool.to_string(), word(&stack.tool)]);
                table(["STACK", "POOL", "TOOL"], rows)
            })
        }
    }
}

fn run(client: &Client, out: &Output, command: RunCommand) -> Result<()> {
    let run = match command {
        RunCommand::List { queued } => {
            let runs = if queued { client.queued()? } else { client.runs()? };
            return out.value(&runs, || {
                let rows = runs.iter().map(|run| {
                    [
                        run.id.to_string(),
                        run.stack.clone(),
                        word(&run.run_type),
                        word(&run.state),
                        run.worker.map(|worker| worker.to_string()).unwrap_or_default(),
                        run.message.clone(),
                    ]
                });
                table(["RUN", "STACK", "TYPE", "STATE", "WORKER", "MESSAGE"], rows)
            });
        }
        RunCommand::Log { run, follow } => return log(client, run, follow),
        RunCommand::Start { stack, run_type, command, commit, metadata } => {
            let run_type = match (run_type, &command) {
                (Some(Type::Proposed), _) => RunType::Proposed,
                (Some(Type::Task), _) | (None, Some(_)) => RunType::Task,
                (Some(Type::Tracked), _) | (None, None) => RunType::Tracked,
                (Some(Type::Testing), _) => RunType::Testing,
                (Some(Type::Destroy), _) => RunType::Destroy,
            };
            let wish = CreateRun {
                stack,
                run_type,
                command,
                commit,
                author: None,
                message: None,
                user_provided_metadata: metadata,
            };
            client.create_run(&wish)?
        }
        RunCommand::Show { run } => client.run(run)?,
        RunCommand::Confirm { run } => client.confirm(run)?,
        RunCommand::Discard { run } => client.discard(run)?,
        RunCommand::Stop { run } => client.stop(run)?,
        RunCommand::Cancel { run } => client.cancel(run)?,
    };
    out.value(&run, || describe(&run))
}

fn describe(run: &Run) -> String {
    let mut text =
        format!("run: {}\nstack: {}\ntype: {}\nstate: {}\n", run.id, run.stack, word(&run.run_type), word(&run.state));
    if !run.message.is_empty() {
        text += &format!("message: {}\n", run.message);
    }
    let rows = run.history.iter().map(|change| [change.at.to_string(), word(&change.state), change.message.clone()]);
    text + &table(["AT", "STATE", "MESSAGE"], rows)
}

fn log(client: &Client, run: RunId, follow: bool) -> Result<()> {
    let (mut from, mut out) = (0, io::stdout().lock());
    loop {
        let part = client.log(run, from)?;
        from += part.bytes.len() as u64;
        out.write_all(&part.bytes).and_then(|()| out.flush()).context("cannot write to standard output")?;
        if part.bytes.is_empty() {
            if part.complete || !follow {
                return Ok(());
            }
            thread::sleep(FOLLOW);
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Where results go, and in which form.
struct Output {
    json: bool,
}

impl Output {
    fn value(&self, value: &impl Serialize, human: impl FnOnce() -> String) -> Result<()> {
        let mut text = if self.json { serde_json::to_string_pretty(value)? } else { human() };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        match io::stdout().write_all(text.as_bytes()) {
            // Whoever stopped reading has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => bail!("cannot write to standard output: {error}"),
            Ok(()) => Ok(()),
        }
    }
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    // Names come from others: nothing of them is to move the cursor.
    let printable = |cell: String| cell.replace(char::is_control, " ");
    let rows: Vec<[String; N]> =
        std::iter::once(head.map(str::to_owned)).chain(rows).map(|row| row.map(printable)).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().map_or_else(|| format_value(&value), str::to_owned)
}

fn format_value(value: &impl Display) -> String {
    value.to_string()
}
