//! What a run made, as it is told to people and to machines.

use std::io::{self, Write as _};
use std::path::PathBuf;

use crate::git::Sources;
use crate::json::{Json, map};
use crate::workspace::VERSION;

/// What was made.
pub(super) struct Release {
    pub(super) archive: PathBuf,
    pub(super) size: u64,
    pub(super) sha256: String,
    pub(super) payload: String,
    pub(super) signers: Vec<String>,
    pub(super) certificates: Vec<PathBuf>,
    pub(super) sources: Sources,
    pub(super) development: bool,
    pub(super) toolchain: String,
    pub(super) tool: PathBuf,
}

impl Release {
    /// The command that a user may want next.
    fn next(&self) -> String {
        let (tool, archive) = (self.tool.display(), self.archive.display());
        if self.signers.is_empty() {
            return format!("{tool} sign {archive} --key KEY");
        }
        let certificates: String = self.certificates.iter().map(|cert| format!(" --cert {}", cert.display())).collect();
        let development = if self.development { " --allow-development" } else { "" };
        format!("{tool} verify {archive}{certificates}{development}")
    }

    pub(super) fn json(&self) -> Json {
        let texts = |texts: &[String]| Json::List(texts.iter().map(|text| text.as_str().into()).collect());
        map([
            ("version", VERSION.into()),
            ("commit", self.sources.commit.as_str().into()),
            ("modified", self.sources.modified.into()),
            ("development", self.development.into()),
            ("archive", self.archive.display().to_string().into()),
            ("size", self.size.into()),
            ("sha256", self.sha256.as_str().into()),
            ("payload_sha256", self.payload.as_str().into()),
            ("signers", texts(&self.signers)),
            ("toolchain", self.toolchain.as_str().into()),
            ("next", self.next().into()),
        ])
    }

    pub(super) fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let kind = match (self.development, self.signers.is_empty()) {
            (true, _) => "development release: customers' verifiers refuse it",
            (false, true) => "release, not signed yet",
            (false, false) => "release",
        };
        let modified = if self.sources.modified { ", modified: nobody can rebuild it" } else { "" };
        writeln!(out, "Self-Hosted {VERSION} ({kind})")?;
        writeln!(out, "  archive    {}", self.archive.display())?;
        writeln!(out, "  size       {} bytes", self.size)?;
        writeln!(out, "  sha256     {}", self.sha256)?;
        writeln!(out, "  payload    {}", self.payload)?;
        for signer in &self.signers {
            writeln!(out, "  signed by  {signer}")?;
        }
        writeln!(out, "  commit     {}{modified}", self.sources.commit)?;
        writeln!(out, "  toolchain  {}", self.toolchain)?;
        writeln!(out, "  next       {}", self.next())
    }
}
