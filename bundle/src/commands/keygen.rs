//! `keygen`

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bundle_core::output::OutputFile;
use bundle_core::signing::{self, NewKey, OldSubkeys};
use bundle_core::source::Date;

use crate::exit::Usage;
use crate::passphrase;

/// A signing subkey lives two years unless told otherwise: long enough for customers to learn of the next one.
const DEFAULT_VALIDITY_DAYS: u64 = 730;
/// A throw-away key for development releases is not worth renewing.
const DEVELOPMENT_VALIDITY_DAYS: u64 = 30;
const DAY: u64 = 86_400;

/// Make an OpenPGP key for signing releases, or add a signing subkey to one.
///
/// Writes NAME.secret.asc (everything: keep it offline), NAME.signing.asc (the signing subkey alone: for the machine that
/// signs), NAME.cert.asc (the certificate: for customers to pin) and NAME.revocation.asc (publish it if the key is lost).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  spacelift-bundle keygen --user-id 'Example Inc. releases <release@example.com>' --output keys
  spacelift-bundle keygen --rotate keys/release-key.secret.asc --output keys --name release-key-2028")]
pub(crate) struct Arguments {
    /// Whose key it is, such as `Example Inc. releases <release@example.com>`.
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["rotate", "development"])]
    user_id: Option<String>,
    /// Directory to write to; made if it is missing.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Beginning of the files' names.
    #[arg(long, default_value = "release-key")]
    name: String,
    /// How long the signing subkey is valid: days (`400d`), weeks (`60w`) or years (`2y`).
    #[arg(long, value_name = "TIME", value_parser = validity)]
    expires: Option<u64>,
    /// Add a signing subkey to the key in FILE (a NAME.secret.asc) instead of making a new key.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user_id", "development"])]
    rotate: Option<PathBuf>,
    /// With --rotate: revoke the subkeys that are there. Releases that they signed no longer verify.
    #[arg(long, requires = "rotate")]
    revoke_old: bool,
    /// Make a throw-away key for development releases.
    #[arg(long)]
    development: bool,
    /// Do not protect the secret key with a passphrase.
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_env"])]
    no_passphrase: bool,
    #[command(flatten)]
    passphrase: passphrase::Source,
}

fn validity(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a time: expected days, weeks or years such as 400d, 60w or 2y");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let days = match unit {
        'd' => 1,
        'w' => 7,
        'y' => 365,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    // OpenPGP counts seconds in 32 bits.
    match count.checked_mul(days) {
        Some(days @ 1..=36_500) => Ok(days),
        _ => Err(format!("`{text}` is out of range: a subkey is valid for 1 day to 100 years")),
    }
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let default = if arguments.development { DEVELOPMENT_VALIDITY_DAYS } else { DEFAULT_VALIDITY_DAYS };
    let days = arguments.expires.unwrap_or(default);
    let validity = Duration::from_secs(days * DAY);
    if arguments.name.contains('/') || arguments.name.is_empty() {
        return Err(Usage(format!("--name {:?} is not the beginning of a file name", arguments.name)).into());
    }
    if arguments.user_id.as_deref().is_some_and(|user_id| user_id.trim().is_empty()) {
        let why = "--user-id is empty; customers read it: write whose key it is, such as 'Example Inc. <release@example.com>'";
        return Err(Usage(why.into()).into());
    }
    let path = |kind: &str| arguments.output.join(format!("{}.{kind}.asc", arguments.name));
    for existing in ["secret", "signing", "cert", "revocation"].map(path) {
        if existing.exists() {
            return Err(Usage(format!(
                "{} exists; a key is never overwritten: choose another --name or --output",
                existing.display()
            ))
            .into());
        }
    }
    let now = SystemTime::now();
    let key = match &arguments.rotate {
        Some(file) => {
            let passphrase = arguments.passphrase.for_key(file)?;
            let old = if arguments.revoke_old { OldSubkeys::Revoke } else { OldSubkeys::Keep };
            signing::rotate(file, validity, old, passphrase.as_ref(), now)?
        }
        None => {
            let user_id = arguments.user_id.as_deref().unwrap_or("Development key, do not trust");
            let passphrase = if arguments.no_passphrase { None } else { Some(arguments.passphrase.for_new_key()?) };
            signing::generate(user_id, validity, passphrase.as_ref(), now)?
        }
    };
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot create the directory {}", arguments.output.display()))?;
    let mut files = vec![
        prepare(&path("secret"), &key.secret, Secrecy::Private)?,
        prepare(&path("signing"), &key.signing_secret, Secrecy::Private)?,
        prepare(&path("cert"), &key.certificate, Secrecy::Public)?,
    ];
    if let Some(revocation) = &key.revocation {
        files.push(prepare(&path("revocation"), revocation, Secrecy::Private)?);
    }
    for file in files {
        file.commit().with_context(|| format!("cannot write to {}", arguments.output.display()))?;
    }
    print(&key, path, json)?;
    Ok(())
}

enum Secrecy {
    Private,
    Public,
}

/// A file that only needs its name. A set of keys is whole or not there: what a full disk left of one would stand in the
/// way of the next attempt.
fn prepare(path: &Path, contents: &[u8], secrecy: Secrecy) -> anyhow::Result<OutputFile> {
    let prepare = || -> io::Result<OutputFile> {
        let mut file = match secrecy {
            Secrecy::Private => OutputFile::create_private(path)?,
            Secrecy::Public => OutputFile::create(path)?,
        };
        file.writer().write_all(contents)?;
        file.sync()?;
        Ok(file)
    };
    prepare().with_context(|| format!("cannot write {}", path.display()))
}

fn print(key: &NewKey, path: impl Fn(&str) -> PathBuf, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let expires = Date::of(key.expires);
    if json {
        let document = serde_json::json!({
            "fingerprint": key.fingerprint.as_str(),
            "expires": expires.to_string(),
            "secret": path("secret"),
            "signing": path("signing"),
            "certificate": path("cert"),
            "revocation": key.revocation.as_ref().map(|_| path("revocation")),
        });
        return writeln!(out, "{document}");
    }
    writeln!(out, "fingerprint  {}", key.fingerprint)?;
    writeln!(out, "expires      {expires} (the signing subkey)")?;
    writeln!(out, "secret       {}   keep it offline: it can make new subkeys", path("secret").display())?;
    writeln!(out, "signing      {}   for the machine that signs releases", path("signing").display())?;
    writeln!(out, "certificate  {}   for customers to pin", path("cert").display())?;
    if key.revocation.is_some() {
        writeln!(out, "revocation   {}   publish it if the key is lost", path("revocation").display())?;
    }
    Ok(())
}
