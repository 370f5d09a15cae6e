//! `verify`

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use bundle_core::gzip;
use bundle_core::manifest::Manifest;
use bundle_core::source::Date;
use bundle_core::verify::{self, Files, Policy, Rollback, SkippedVersion, Verified};

use crate::commands::policy;
use crate::exit::{Unreadable, Usage};

/// Verify a release against the certificates that you trust. Touches no network.
///
/// RELEASE is an archive, with its `_SHA256SUMS` and `_SHA256SUMS.sig` beside it, or the directory of an unpacked
/// release. Exit code 0 means that every one of the nine steps passed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle verify self-hosted-v1.2.3.tar.gz --cert vendor.asc
  spacelift-bundle verify self-hosted-v1.2.3.tar.gz --cert a.asc --cert b.asc --threshold 2 \\
    --unpack self-hosted-v1.2.3")]
pub(crate) struct Arguments {
    /// The archive, or the directory of an unpacked release.
    release: PathBuf,
    #[command(flatten)]
    trust: policy::Trust,
    /// The sums file, if it is not beside the archive.
    #[arg(long, value_name = "FILE")]
    sums: Option<PathBuf>,
    /// The sums file's signature, if it is not beside the archive.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// `manifest.json` of the release that is installed: refuse anything older.
    #[arg(long, value_name = "FILE")]
    installed: Option<PathBuf>,
    /// Unpack the release to this directory, which must not exist; it appears only if everything is in order.
    #[arg(long, value_name = "DIR")]
    unpack: Option<PathBuf>,
    /// Only the archive against its signed sums (steps 1 to 5); do not look inside.
    #[arg(long, conflicts_with = "unpack")]
    sums_only: bool,
    /// Accept a release that is older than the installed one.
    #[arg(long, requires = "installed")]
    allow_rollback: bool,
    /// Accept an upgrade that skips a required version.
    #[arg(long, requires = "installed")]
    allow_skipping_versions: bool,
    /// A directory on a disk with room for a copy of the archive [default: $TMPDIR or /var/tmp].
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Threads for inflating.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let pinned = arguments.trust.read()?;
    let installed = arguments.installed.as_deref().map(read_installed).transpose()?;
    let policy = Policy {
        installed: installed.as_ref(),
        rollback: if arguments.allow_rollback { Rollback::Accept } else { Rollback::Refuse },
        skipped_version: if arguments.allow_skipping_versions {
            SkippedVersion::Accept
        } else {
            SkippedVersion::Refuse
        },
        ..pinned.policy()
    };
    if arguments.release.is_dir() {
        let unusable = arguments.unpack.is_some() || arguments.sums_only || arguments.sums.is_some();
        if unusable || arguments.signature.is_some() {
            return Err(Usage(
                "--unpack, --sums-only, --sums and --signature go with an archive, not a directory".into(),
            )
            .into());
        }
        let verified = verify::directory(&arguments.release, &policy)?;
        return Ok(print(&arguments.release, &verified, json)?);
    }
    // What is beside it is read first, and would be what is missing.
    if let Err(source) = std::fs::metadata(&arguments.release) {
        return Err(Unreadable { what: "the release", path: arguments.release.clone(), source }.into());
    }
    let mut files = Files::beside(&arguments.release);
    if let Some(sums) = &arguments.sums {
        files.sums.clone_from(sums);
    }
    if let Some(signature) = &arguments.signature {
        files.signature.clone_from(signature);
    }
    let work = arguments.work_dir.clone().unwrap_or_else(default_work_dir);
    let threads = arguments.threads.unwrap_or_else(gzip::default_threads);
    if arguments.sums_only {
        let digest = verify::sums_only(&files, &policy)?;
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::json!({ "ok": true, "sums_only": true, "sha256": digest }))?;
        } else {
            writeln!(
                out,
                "{}: its SHA-256 is the signed one; its contents were not looked at",
                files.archive.display()
            )?;
        }
        return Ok(());
    }
    let archive = verify::open(&files, &policy, &work)?;
    let verified = match &arguments.unpack {
        Some(destination) => verify::unpack(&archive, &policy, threads, destination)?,
        None => verify::check(&archive, &policy, threads)?,
    };
    Ok(print(&arguments.release, &verified, json)?)
}

/// Where large temporary files go.
pub(crate) fn default_work_dir() -> PathBuf {
    // /tmp is often kept in memory; /var/tmp is meant for large files.
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

fn read_installed(path: &Path) -> anyhow::Result<Manifest> {
    let unreadable = |source| Unreadable { what: "the installed manifest", path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    Manifest::from_bytes(&bytes).map_err(|error| {
        let path = path.display();
        Usage(format!("--installed {path}: {error}; it takes manifest.json of the release that is installed")).into()
    })
}

fn print(release: &Path, verified: &Verified, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let manifest = verified.manifest();
    if json {
        let signers: Vec<_> = verified
            .signers()
            .iter()
            .map(|signer| {
                serde_json::json!({
                    "fingerprint": signer.primary.as_str(),
                    "key": signer.key.as_str(),
                    "user_id": signer.user_id,
                    "signed_at": Date::of(signer.signed_at).to_string(),
                    "expires": signer.expires.map(|time| Date::of(time).to_string()),
                    "hash": signer.hash,
                })
            })
            .collect();
        let document = serde_json::json!({
            "ok": true,
            "release": release,
            "sha256": verified.archive().map(|(digest, _)| digest),
            "size": verified.archive().map(|(_, size)| size),
            "product": manifest.product,
            "version": manifest.version,
            "sequence": manifest.sequence,
            "channel": manifest.channel,
            "development": manifest.development,
            "commit": manifest.commit,
            "targets": manifest.targets,
            "signers": signers,
        });
        return writeln!(out, "{document}");
    }
    let (green, yellow, reset) = if out.is_terminal() { ("\x1b[32m", "\x1b[1;33m", "\x1b[0m") } else { ("", "", "") };
    writeln!(out, "{green}verified{reset}  {}", release.display())?;
    for signer in verified.signers() {
        let until =
            signer.expires.map_or_else(|| "never expires".into(), |time| format!("valid until {}", Date::of(time)));
        writeln!(
            out,
            "signed    {} by {} {}",
            Date::of(signer.signed_at),
            signer.primary,
            signer.user_id.escape_debug()
        )?;
        writeln!(out, "          with key {}, {}, {until}", signer.key, signer.hash)?;
    }
    if let Some((digest, size)) = verified.archive() {
        writeln!(out, "archive   sha256 {digest}, {size} bytes")?;
    }
    writeln!(
        out,
        "release   {} {}, sequence {}, channel {}, for {}",
        manifest.product,
        manifest.version,
        manifest.sequence,
        manifest.channel,
        manifest.targets.join(" and ")
    )?;
    let modified = if manifest.modified { " with uncommitted changes" } else { "" };
    writeln!(out, "source    {} at commit {}{modified}", manifest.source, manifest.commit)?;
    let (files, images) = (manifest.files.len(), manifest.images.len());
    writeln!(out, "contents  {files} files, {images} image{}", if images == 1 { "" } else { "s" })?;
    if manifest.development {
        writeln!(
            out,
            "{yellow}DEVELOPMENT RELEASE{reset}: no release key signed it. Do not install it where it matters."
        )?;
    }
    Ok(())
}
