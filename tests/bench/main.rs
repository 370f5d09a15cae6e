//! Benchmarks of the release programs, side by side with the tools that a user would use instead.
//!
//! `cargo xtask bench pack` and `cargo xtask bench verify` build the program that ships and run this with its path. Every such
//! row is measured in the same run: ours and theirs in turn, and the ratio pair by pair, so that a machine whose speed
//! drifts does not decide the result. Inputs are generated: pieces of this project's text, pieces of the program's own machine
//! code, and random bytes in place of compressed image layers; the same ones for the same program.
//!
//! `cargo xtask bench sessions` and `cargo xtask bench pipeline` have nothing beside them: they measure promises of the launcher.

mod logs;
mod masker;
mod pipeline;
mod sessions;
mod workspace;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use integration_tests::docker::Engine;
use integration_tests::ecr;
use integration_tests::registry::Registry;
use integration_tests::release::noise;
use integration_tests::s3_store::{BUCKET, S3Store};

/// Pairs of runs that count, after one that does not.
const RUNS: usize = 5;
/// Of the generated image.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Bytes of the generated release.
const SIZE: usize = 200_000_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (what, program) = match arguments.as_slice() {
        [what] if what == "sessions" => return sessions::run(),
        [what, rest @ ..] if what == "hold-sessions" => return sessions::hold(rest),
        [what] if what == "masker" => return masker::run(),
        [what, rest @ ..] if what == "mask" => return masker::mask(rest),
        [what] if what == "pipeline" => return pipeline::run(),
        [what] if what == "workspace" => return workspace::run(),
        [what, rest @ ..] if what == "pack-workspace" => return workspace::pack(rest),
        [what, rest @ ..] if what == "unpack-workspace" => return workspace::unpack(rest),
        [what, program] => (what, program),
        _ => bail!(
            "expected: sessions|masker|pipeline|workspace, or pack|verify|publish|push PATH-OF-spacelift-bundle; \
             `cargo xtask bench` calls this"
        ),
    };
    let program = fs::canonicalize(program).with_context(|| format!("{program} is not there"))?;
    for tool in ["tar", "gzip", "pigz", "sha256sum"] {
        ensure!(
            Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success()),
            "{tool} is not installed (`apt-get install {}`)",
            if tool == "sha256sum" { "coreutils" } else { tool }
        );
    }
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
    match what.as_str() {
        "pack" => pack(&program, directory.path()),
        "verify" => verify(&program, directory.path()),
        "publish" => publish(&program, directory.path()),
        "push" => push(&program, directory.path()),
        other => bail!("there is no benchmark {other:?}; there are pack, verify, publish, push and sessions"),
    }
}

/// What fills a generated release.
#[derive(Clone, Copy)]
enum Mix {
    /// Text and machine code alone: nothing that is compressed already.
    Compressible,
    /// As a real release: a third of it is image layers that are compressed already.
    Release,
}

fn pack(program: &Path, directory: &Path) -> anyhow::Result<()> {
    for (title, mix) in [("text and code", Mix::Compressible), ("a release with image layers", Mix::Release)] {
        let stage = directory.join("stage");
        generate(&stage, mix, program)?;
        let out = directory.join("out");
        let ours = || Ok(vec![pack_command(program, &stage, &directory.join("release.yaml"), &out)?]);
        let archive = out.join("bench-v1.0.0.unsigned.tar.gz");
        heading(&format!("pack 200 MB: {title}"));
        for (tool, other) in [("gzip -6", "gzip"), ("pigz -6", "pigz")] {
            let theirs_out = directory.join("theirs.tar.gz");
            let theirs = || {
                Ok(vec![shell(
                    r#"set -o pipefail; tar -C "$1" -cf - . | "$2" -6 > "$3""#,
                    &[stage.as_os_str(), other.as_ref(), theirs_out.as_os_str()],
                )])
            };
            let result = race(&ours, &theirs)?;
            let (our_size, their_size) = (fs::metadata(&archive)?.len(), fs::metadata(&theirs_out)?.len());
            row(&format!("tar | {tool}"), &result, Goal::Faster(if other == "gzip" { 7.0 } else { 3.0 }))?;
            say(&format!(
                "    size: ours {:.2} MB, {tool} {:.2} MB, ratio {:.4}; {:.0} MB/s against {:.0} MB/s",
                our_size as f64 / 1e6,
                their_size as f64 / 1e6,
                our_size as f64 / their_size as f64,
                SIZE as f64 / 1e6 / result.ours.as_secs_f64(),
                SIZE as f64 / 1e6 / result.theirs.as_secs_f64(),
            ))?;
        }
        fs::remove_dir_all(&stage)?;
    }
    Ok(())
}

fn verify(program: &Path, directory: &Path) -> anyhow::Result<()> {
    let stage = directory.join("stage");
    generate(&stage, Mix::Release, program)?;
    let out = directory.join("out");
    let status = pack_command(program, &stage, &directory.join("release.yaml"), &out)?.status()?;
    ensure!(status.success(), "packing failed");
    let keys = directory.join("keys");
    let status = Command::new(program)
        .args(["keygen", "--development", "--no-passphrase", "--output"])
        .arg(&keys)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "making a key failed");
    let status = Command::new(program)
        .arg("sign")
        .arg(out.join("bench-v1.0.0.unsigned.tar.gz"))
        .arg("--key")
        .arg(keys.join("release-key.signing.asc"))
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "signing failed");
    let archive = out.join("bench-v1.0.0.tar.gz");
    let certificate = keys.join("release-key.cert.asc");
    let ours = |extra: &[&str]| {
        let mut command = Command::new(program);
        command.arg("verify").arg(&archive).arg("--cert").arg(&certificate).args(extra);
        command
    };
    // What a careful user does by hand: the list of files must come from somewhere, so it is made beforehand.
    let unpacked = directory.join("unpacked");
    fs::create_dir(&unpacked)?;
    let prepare = shell(
        r#"tar -C "$1" -xzf "$2" && cd "$1/bench-v1.0.0" && find . -type f -exec sha256sum {} + > "$3""#,
        &[unpacked.as_os_str(), archive.as_os_str(), directory.join("files.sums").as_os_str()],
    )
    .status()?;
    ensure!(prepare.success(), "unpacking failed");

    heading(&format!("verify an archive of {:.1} MB with 200 MB in it", fs::metadata(&archive)?.len() as f64 / 1e6));
    let sums = || {
        Ok(vec![shell(
            r#"cd "$1" && sha256sum -c --strict --quiet bench-v1.0.0.tar.gz_SHA256SUMS"#,
            &[out.as_os_str()],
        )])
    };
    let result = race(&|| Ok(vec![ours(&["--sums-only"])]), &sums)?;
    row("sums: sha256sum -c", &result, Goal::Faster(3.0))?;
    let by_hand = || {
        Ok(vec![shell(
            r#"cd "$1" && sha256sum -c --strict --quiet bench-v1.0.0.tar.gz_SHA256SUMS && rm -rf "$2" && mkdir "$2" &&
               tar -C "$2" -xzf bench-v1.0.0.tar.gz && cd "$2/bench-v1.0.0" && sha256sum -c --strict --quiet "$3""#,
            &[out.as_os_str(), unpacked.as_os_str(), directory.join("files.sums").as_os_str()],
        )])
    };
    let full = || Ok(vec![ours(&["--allow-development"])]);
    let result = race(&full, &by_hand)?;
    row("full: sha256sum -c && tar -xzf && sha256sum -c", &result, Goal::ShareOfWall(0.6))?;
    let fresh = directory.join("fresh");
    let with_unpacking = || {
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        let mut command = ours(&["--allow-development", "--unpack"]);
        command.arg(&fresh);
        Ok(vec![command])
    };
    let result = race(&with_unpacking, &by_hand)?;
    row("full with --unpack, against the same", &result, Goal::ShareOfWall(0.6))?;
    let peak = peak_memory(&mut ours(&["--allow-development"]))?;
    let verdict = if peak <= 64 * 1024 { "met" } else { "MISSED" };
    say(&format!("  peak memory of a full verification: {:.1} MiB (goal 64 MiB: {verdict})", peak as f64 / 1024.0))
}

/// A signed release of what is in `stage`, with a certificate to verify it.
fn sign(program: &Path, stage: &Path, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (out, keys) = (directory.join("out"), directory.join("keys"));
    let mut keygen = Command::new(program);
    keygen.args(["keygen", "--no-passphrase", "--user-id", "Bench <bench@example.com>", "--output"]).arg(&keys);
    let mut pack = Command::new(program);
    fs::write(
        directory.join("release.yaml"),
        "product: bench\nchannel: stable\nsequence: 1\nsource: https://example.com/bench\n",
    )?;
    pack.args(["pack", "--version", "v1.0.0", "--commit", COMMIT, "--source-date", "1700000000", "--stage"]);
    pack.arg(stage).arg("--config").arg(directory.join("release.yaml")).arg("--output-dir").arg(&out);
    let mut sign = Command::new(program);
    sign.arg("sign").arg(out.join("bench-v1.0.0.unsigned.tar.gz"));
    sign.arg("--key").arg(keys.join("release-key.signing.asc"));
    for command in [&mut keygen, &mut pack, &mut sign] {
        let status = command.stdout(Stdio::null()).status()?;
        ensure!(status.success(), "{command:?} failed");
    }
    Ok((out.join("bench-v1.0.0.tar.gz"), keys.join("release-key.cert.asc")))
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Uploads to the same S3 store, each time to keys that are not there yet.
fn publish(program: &Path, directory: &Path) -> anyhow::Result<()> {
    let stage = directory.join("stage");
    fs::create_dir_all(stage.join("payload"))?;
    let file = stage.join("payload/large.bin");
    fs::write(&file, noise(SIZE))?;
    let (archive, certificate) = sign(program, &stage, directory)?;
    // From a directory, so that the release is sent and not its archive as well: both send 200 MB.
    let release = directory.join("release");
    let mut unpack = Command::new(program);
    unpack.arg("verify").arg(archive).arg("--cert").arg(&certificate).arg("--unpack").arg(&release);
    ensure!(unpack.stdout(Stdio::null()).status()?.success(), "unpacking failed");
    let server = std::env::current_exe()?.with_file_name("strict-s3");
    let store = S3Store::start(&server.to_string_lossy());
    let number = std::cell::Cell::new(0);
    let ours = || {
        number.set(number.get() + 1);
        let mut command = Command::new(program);
        command.arg("publish").arg(&release).arg("--cert").arg(&certificate).args(["--allow-http", "--bucket"]);
        command.arg(format!("s3://{BUCKET}/ours-{}", number.get())).stderr(Stdio::null());
        S3Store::configure(&mut command, &store.endpoint());
        Ok(vec![command])
    };
    let theirs = || {
        number.set(number.get() + 1);
        let mut command = Command::new("/usr/bin/aws");
        S3Store::configure(&mut command, &store.endpoint());
        command.args(["--endpoint-url", &store.endpoint(), "s3", "cp", "--only-show-errors"]).arg(&file);
        command.arg(format!("s3://{BUCKET}/theirs-{}/large.bin", number.get()));
        Ok(vec![command])
    };
    heading("upload 200 MB: verified, sent, read back; against the AWS CLI, which sends");
    let result = race(&ours, &theirs)?;
    row("aws s3 cp", &result, Goal::ShareOfWall(0.7))?;
    cpu_row(&result, 0.4)?;
    let peak = peak_memory(ours()?[0].stderr(Stdio::null()))?;
    let verdict = if peak <= 128 * 1024 { "met" } else { "MISSED" };
    say(&format!("  peak memory: {:.1} MiB (goal 128 MiB: {verdict})", peak as f64 / 1024.0))
}

/// Pushes an image with layers of 200 MB to a registry on loopback.
fn push(program: &Path, directory: &Path) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this benchmark starts a container engine: run it as root");
    let stage = directory.join("stage");
    fs::create_dir_all(stage.join("container-images"))?;
    let image = stage.join("container-images/spacelift-launcher.tar");
    ecr::image(&image, "v1.0.0", COMMIT, &noise(SIZE / 2));
    let (archive, certificate) = sign(program, &stage, directory)?;
    let release = directory.join("release");
    let mut unpack = Command::new(program);
    unpack.arg("verify").arg(archive).arg("--cert").arg(&certificate).arg("--unpack").arg(&release);
    ensure!(unpack.stdout(Stdio::null()).status()?.success(), "unpacking failed");
    // An empty one for each push: skopeo remembers which registry has which blob, and would send none of them again.
    let registries = RefCell::new(vec![]);
    let empty_registry = || {
        let registry = Registry::start();
        let address = registry.address();
        registries.borrow_mut().push(registry);
        address
    };
    let push = |registry: &str| {
        let mut command = Command::new(program);
        command.arg("push").arg(&release).arg("--cert").arg(&certificate).arg("--allow-http").arg("--repository");
        command.arg(format!("{registry}/spacelift-launcher")).stderr(Stdio::null());
        command
    };
    let skopeo = |registry: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--dest-tls-verify=false"]);
        command.arg(format!("oci-archive:{}", image.display()));
        command.arg(format!("docker://{registry}/spacelift-launcher:v1.0.0"));
        command
    };
    let ours = || Ok(vec![push(&empty_registry())]);
    let theirs = || Ok(vec![skopeo(&empty_registry())]);
    heading("push an image of two architectures, 200 MB: verified and sent; against tools that send");
    let result = race(&ours, &theirs)?;
    row("skopeo copy", &result, Goal::ShareOfWall(0.7))?;
    cpu_row(&result, 1.0)?;
    registries.borrow_mut().clear();

    let engine = Engine::start();
    let load = |architecture: &str| {
        let mut command = Command::new("skopeo");
        command.args(["--override-arch", architecture, "copy", "--quiet", "--dest-daemon-host", &engine.host()]);
        command.arg(format!("oci-archive:{}", image.display()));
        command.arg(format!("docker-daemon:loaded:{architecture}"));
        command
    };
    for architecture in ARCHITECTURES {
        ensure!(load(architecture).status()?.success(), "loading the image into the engine failed");
    }
    let theirs = || {
        let registry = empty_registry();
        let mut commands = vec![];
        for architecture in ARCHITECTURES {
            let name = format!("{registry}/spacelift-launcher:{architecture}");
            let mut tag = engine.docker();
            let tagged = tag.args(["tag", &format!("loaded:{architecture}"), &name]).status()?;
            ensure!(tagged.success(), "tagging the image failed");
            let mut command = engine.docker();
            command.args(["push", "--quiet", &name]);
            commands.push(command);
        }
        Ok(commands)
    };
    let result = race(&ours, &theirs)?;
    row("docker push, once for each architecture", &result, Goal::ShareOfWall(0.7))?;
    registries.borrow_mut().clear();

    let registry = empty_registry();
    ensure!(push(&registry).stdout(Stdio::null()).status()?.success(), "the first push failed");
    let again = || Ok(vec![push(&registry)]);
    let result = race(&again, &|| Ok(vec![skopeo(&registry)]))?;
    let verdict = if result.ours.as_secs_f64() < 0.2 { "met" } else { "MISSED" };
    say(&format!(
        "  a second push: ours {:.3} s with verifying 200 MB, skopeo {:.3} s; goal 0.2 s: {verdict}",
        result.ours.as_secs_f64(),
        result.theirs.as_secs_f64()
    ))
}

fn cpu_row(race: &Race, goal: f64) -> anyhow::Result<()> {
    let share = race.our_cpu.as_secs_f64() / race.their_cpu.as_secs_f64();
    say(&format!(
        "  processor time: ours {:.2} s, theirs {:.2} s, {share:.2} of it; goal {goal}: {}",
        race.our_cpu.as_secs_f64(),
        race.their_cpu.as_secs_f64(),
        if share <= goal { "met" } else { "MISSED" }
    ))
}

fn pack_command(program: &Path, stage: &Path, config: &Path, out: &Path) -> anyhow::Result<Command> {
    fs::write(config, "product: bench\nchannel: stable\nsequence: 1\nsource: https://example.com/bench\n")?;
    let mut command = Command::new(program);
    command.args([
        "pack",
        "--version",
        "v1.0.0",
        "--commit",
        "unknown",
        "--source-date",
        "1700000000",
        "--development",
    ]);
    command.arg("--stage").arg(stage).arg("--config").arg(config).arg("--output-dir").arg(out);
    Ok(command)
}

/// A command for bash, whose arguments are never part of the script's text.
fn shell(script: &str, arguments: &[&std::ffi::OsStr]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).args(arguments);
    command
}

struct Race {
    ours: Duration,
    theirs: Duration,
    /// Theirs divided by ours, pair by pair: minimum, median, maximum.
    ratio: [f64; 3],
    our_cpu: Duration,
    their_cpu: Duration,
}

type Commands<'a> = &'a dyn Fn() -> anyhow::Result<Vec<Command>>;

fn race(ours: Commands<'_>, theirs: Commands<'_>) -> anyhow::Result<Race> {
    let mut pairs = Vec::new();
    let mut cpus = (Duration::ZERO, Duration::ZERO);
    for run in 0..=RUNS {
        let before = cpu()?;
        let our_time = timed(ours)?;
        let between = cpu()?;
        let pair = (our_time, timed(theirs)?);
        let after = cpu()?;
        cpus = (cpus.0 + (between - before), cpus.1 + (after - between));
        if run > 0 {
            pairs.push(pair);
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let mut ratios: Vec<f64> = pairs.iter().map(|(ours, theirs)| theirs.as_secs_f64() / ours.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    Ok(Race {
        ours: median(pairs.iter().map(|pair| pair.0).collect()),
        theirs: median(pairs.iter().map(|pair| pair.1).collect()),
        ratio: [ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]],
        our_cpu: cpus.0 / (RUNS as u32 + 1),
        their_cpu: cpus.1 / (RUNS as u32 + 1),
    })
}

/// Processor time of all programs that were waited for so far.
fn cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in parentheses; the children's times are the 16th and 17th.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn timed(commands: Commands<'_>) -> anyhow::Result<Duration> {
    let commands = commands()?;
    let mut total = Duration::ZERO;
    for mut command in commands {
        command.stdout(Stdio::null());
        let start = Instant::now();
        let status = command.status().with_context(|| format!("{command:?} cannot be started"))?;
        total += start.elapsed();
        ensure!(status.success(), "{command:?} failed: {status}");
    }
    Ok(total)
}

/// The largest resident size in KiB, as the kernel keeps it; read until the process is gone.
fn peak_memory(command: &mut Command) -> anyhow::Result<u64> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        peak = peak.max(memory(child.id(), "VmHWM:").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(peak)
}

/// What the kernel says of a process's memory under this name, in KiB.
fn memory(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

enum Goal {
    /// Theirs takes at least this many times as long.
    Faster(f64),
    /// Ours takes at most this share of their time.
    ShareOfWall(f64),
}

fn heading(text: &str) {
    let _ = writeln!(io::stdout(), "\n{text}");
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

fn row(name: &str, race: &Race, goal: Goal) -> anyhow::Result<()> {
    let [low, median, high] = race.ratio;
    let (figures, goal, met) = match goal {
        Goal::Faster(times) => {
            (format!("{median:.2}x as fast ({low:.2} to {high:.2})"), format!("{times}x"), median >= times)
        }
        Goal::ShareOfWall(share) => (
            format!("{:.2} of the wall time ({:.2} to {:.2})", 1.0 / median, 1.0 / high, 1.0 / low),
            format!("{share}"),
            1.0 / median <= share,
        ),
    };
    say(&format!(
        "  {name}: ours {:.3} s, theirs {:.3} s, {figures}; goal {goal}: {}",
        race.ours.as_secs_f64(),
        race.theirs.as_secs_f64(),
        if met { "met" } else { "MISSED" }
    ))
}

/// Fills `stage` with files of a mix that is the same for the same program.
fn generate(stage: &Path, mix: Mix, program: &Path) -> anyhow::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let program = fs::read(program)?;
    let text = TEXT.concat().into_bytes();
    fs::create_dir_all(stage.join("payload"))?;
    let files = 20;
    for index in 0..files {
        let path = stage.join(format!("payload/{index:02}.bin"));
        let mut file = BufWriter::new(File::create(&path)?);
        let size = SIZE / files;
        let kind = match mix {
            Mix::Release if index % 3 == 2 => 2,
            _ => index % 2,
        };
        let mut written = 0;
        let mut piece = Vec::new();
        while written < size {
            piece.clear();
            match kind {
                0 => self::piece(&text, &mut random, &mut piece),
                1 => self::piece(&program, &mut random, &mut piece),
                _ => piece.extend((0..512).flat_map(|_| random.next().to_le_bytes())),
            }
            piece.truncate(size - written);
            file.write_all(&piece)?;
            written += piece.len();
        }
        file.flush()?;
    }
    Ok(())
}

/// Text as there is in a release: this project's own.
const TEXT: [&str; 6] = [
    include_str!("main.rs"),
    include_str!("../../Cargo.lock"),
    include_str!("../../README.md"),
    include_str!("../../LICENSE-APACHE"),
    include_str!("../../bundle/core/src/verify.rs"),
    include_str!("../../bundle/core/src/signing.rs"),
];

/// A piece of a real thing, a little different each time. Pieces come in random order, so what repeats lies further away
/// than any window reaches.
fn piece(original: &[u8], random: &mut Random, out: &mut Vec<u8>) {
    const PIECE: usize = 64 * 1024;
    let length = PIECE.min(original.len() / 2);
    let start = random.below((original.len() - length) as u64) as usize;
    out.extend_from_slice(&original[start..start + length]);
    for _ in 0..length / 256 {
        let (from, to) = (random.below(length as u64) as usize, random.below(length as u64) as usize);
        out[to] = out[from];
    }
}

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
}
