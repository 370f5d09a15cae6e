//! `sign`

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;

use bundle_core::release::{self, Action, Signed};
use bundle_core::signing::Signer;

use crate::exit::Usage;
use crate::passphrase;

/// Sign a packed release, or add a signature to a signed one.
///
/// An unsigned archive (`….unsigned.tar.gz`) becomes the archive, its sums and their signature. To an archive that is
/// signed already, signatures over its sums are added; the archive itself does not change.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle sign self-hosted-v1.2.3.unsigned.tar.gz --key release-key.signing.asc
  spacelift-bundle sign self-hosted-v1.2.3.tar.gz --gpg-key 0123456789ABCDEF0123456789ABCDEF01234567")]
pub(crate) struct Arguments {
    /// The archive, signed or not.
    archive: PathBuf,
    /// A key file; several sign together.
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// The fingerprint of a key that gpg-agent holds, on disk or on a token; several sign together.
    #[arg(long, value_name = "FINGERPRINT")]
    gpg_key: Vec<String>,
    #[command(flatten)]
    passphrase: passphrase::Source,
    /// Refuse a signing key that expires in less than DAYS days.
    #[arg(long, value_name = "DAYS")]
    require_validity_days: Option<u64>,
    /// Where to write the signed archive; the unsigned archive's directory unless given.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Also write the signers' certificates to this directory, as FINGERPRINT.asc.
    #[arg(long, value_name = "DIR")]
    certificates_to: Option<PathBuf>,
    /// Only open the keys and check them; sign nothing.
    #[arg(long)]
    check_keys: bool,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let mut signers = Vec::new();
    for path in &arguments.key {
        let passphrase = arguments.passphrase.for_key(path)?;
        signers.push(Signer::from_file(path, passphrase.as_ref(), now)?);
    }
    for fingerprint in &arguments.gpg_key {
        signers.push(Signer::from_gpg_agent(fingerprint, now)?);
    }
    if signers.is_empty() {
        return Err(Usage("nothing to sign with: give --key FILE or --gpg-key FINGERPRINT".into()).into());
    }
    if let Some(days) = arguments.require_validity_days {
        for signer in &signers {
            signer.require_validity(days, now)?;
        }
    }
    if let Some(directory) = &arguments.certificates_to {
        for signer in &signers {
            signer.write_certificate(directory)?;
        }
    }
    if arguments.check_keys {
        return Ok(());
    }
    let beside = arguments.archive.parent().map(PathBuf::from).unwrap_or_default();
    let output = arguments.output_dir.clone().unwrap_or(beside);
    let signed = release::sign(&arguments.archive, &output, &signers, now)?;
    print(&signed, json)?;
    Ok(())
}

fn print(signed: &Signed, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let action = match signed.action {
        Action::Signed => "signed",
        Action::Added => "signature added",
        Action::Kept => "unchanged",
    };
    let signers: Vec<_> = signed.signers.iter().map(|signer| signer.as_str()).collect();
    if json {
        let document = serde_json::json!({
            "action": action,
            "archive": signed.files.archive,
            "sums": signed.files.sums,
            "signature": signed.files.signature,
            "sha256": signed.digest,
            "size": signed.size,
            "payload_sha256": signed.payload,
            "signers": signers,
        });
        return writeln!(out, "{document}");
    }
    writeln!(out, "{action}")?;
    writeln!(out, "archive    {} ({} bytes)", signed.files.archive.display(), signed.size)?;
    writeln!(out, "sums       {}", signed.files.sums.display())?;
    writeln!(out, "signature  {}", signed.files.signature.display())?;
    writeln!(out, "sha256     {}", signed.digest)?;
    writeln!(out, "payload    {}", signed.payload)?;
    for signer in signers {
        writeln!(out, "signer     {signer}")?;
    }
    Ok(())
}
