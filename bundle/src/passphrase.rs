//! Where a key's passphrase comes from: a file, the environment, or the person at the terminal. Never an argument: those
//! show in the process list.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bundle_core::signing::{self, Passphrase};

use crate::exit::{Unreadable, Usage};

#[derive(clap::Args)]
pub(crate) struct Source {
    /// Read the passphrase from the first line of FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_env")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from the environment variable VAR.
    #[arg(long, value_name = "VAR")]
    passphrase_env: Option<String>,
}

impl Source {
    /// The passphrase that was named, without asking anyone.
    fn named(&self) -> anyhow::Result<Option<Passphrase>> {
        if let Some(path) = &self.passphrase_file {
            let text = std::fs::read_to_string(path).map_err(|source| Unreadable {
                what: "the passphrase file",
                path: path.clone(),
                source,
            })?;
            let line = text.lines().next().unwrap_or_default();
            return nonempty(line.to_owned(), &format!("the passphrase file {}", path.display())).map(Some);
        }
        if let Some(name) = &self.passphrase_env {
            let text = std::env::var(name).map_err(|_| {
                Usage(format!("the environment variable {name}, which --passphrase-env names, is not set"))
            })?;
            return nonempty(text, &format!("the environment variable {name}")).map(Some);
        }
        Ok(None)
    }

    /// The passphrase for an existing key; `None` when the key has none.
    pub(crate) fn for_key(&self, key: &Path) -> anyhow::Result<Option<Passphrase>> {
        if !signing::needs_passphrase(key)? {
            return Ok(None);
        }
        if let Some(passphrase) = self.named()? {
            return Ok(Some(passphrase));
        }
        if !io::stdin().is_terminal() {
            return Err(signing::Error::PassphraseNeeded(key.to_owned()).into());
        }
        let text = rpassword::prompt_password(format!("Passphrase of {}: ", key.display()))
            .context("cannot read the passphrase from the terminal")?;
        Ok(Some(Passphrase::new(text)))
    }

    /// The passphrase for a key that is about to be made.
    pub(crate) fn for_new_key(&self) -> anyhow::Result<Passphrase> {
        if let Some(passphrase) = self.named()? {
            return Ok(passphrase);
        }
        if !io::stdin().is_terminal() {
            return Err(Usage(
                "a new key needs a passphrase: give --passphrase-file or --passphrase-env, or --no-passphrase".into(),
            )
            .into());
        }
        let ask = |prompt| rpassword::prompt_password(prompt).context("cannot read the passphrase");
        let first = ask("Passphrase for the new key: ")?;
        let second = ask("Once more: ")?;
        if first != second {
            return Err(Usage("the two passphrases differ; nothing was made".into()).into());
        }
        nonempty(first, "the passphrase")
    }
}

fn nonempty(text: String, what: &str) -> anyhow::Result<Passphrase> {
    if text.is_empty() {
        return Err(Usage(format!("{what} is empty; --no-passphrase makes a key without one")).into());
    }
    Ok(Passphrase::new(text))
}
