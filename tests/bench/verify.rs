//! Verifying, beside what a careful user does by hand.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::pack::{Mix, generate, pack_command};
use crate::{Goal, Limit, figure, heading, peak_memory, race, row, say, shell};

/// Verifies a release of 200 MB.
pub(crate) fn run(program: &Path, directory: &Path) -> anyhow::Result<()> {
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
    say("  by hand is: the sums, unpacking with tar, and the sums of all files that were unpacked")?;
    let sums = || {
        Ok(vec![shell(
            r#"cd "$1" && sha256sum -c --strict --quiet bench-v1.0.0.tar.gz_SHA256SUMS"#,
            &[out.as_os_str()],
        )])
    };
    let result = race(&|| Ok(vec![ours(&["--sums-only"])]), &sums)?;
    row("sums: sha256sum -c", &result, Goal::Faster(3.0))?;
    let by_hand = || {
        // Nobody would measure this with what was there before.
        fs::remove_dir_all(&unpacked)?;
        fs::create_dir(&unpacked)?;
        Ok(vec![shell(
            r#"cd "$1" && sha256sum -c --strict --quiet bench-v1.0.0.tar.gz_SHA256SUMS &&
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
    row("full with --unpack: the same by hand", &result, Goal::ShareOfWall(0.6))?;
    let peak = peak_memory(&mut ours(&["--allow-development"]))?;
    figure("peak memory of a full verification", peak as f64 / 1024.0, "MiB", Some(Limit::AtMost(64.0)))
}
