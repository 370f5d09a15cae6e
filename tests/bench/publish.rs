//! Uploading a release, beside the AWS CLI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::ensure;
use integration_tests::release::noise;
use integration_tests::s3_store::{BUCKET, S3Store};

use crate::{Goal, Limit, SIZE, cpu_row, figure, heading, peak_memory, race, row};

/// Uploads to the same S3 store, each time to keys that are not there yet.
pub(crate) fn run(program: &Path, directory: &Path) -> anyhow::Result<()> {
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
    figure("peak memory", peak as f64 / 1024.0, "MiB", Some(Limit::AtMost(128.0)))
}

/// A signed release of what is in `stage`, with a certificate to verify it.
pub(crate) fn sign(program: &Path, stage: &Path, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
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

/// Of the generated release.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
