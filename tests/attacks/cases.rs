//! Every case, in groups that follow the nine steps of verification.

use std::path::PathBuf;

use anyhow::ensure;
use integration_tests::case::{Case, Preparation};

use crate::keys::Signer;
use crate::release::{Package, Release};

mod archive;
mod content;
mod directory;
mod good;
mod launchers;
mod manifest;
mod parts;
mod signature;
mod sums;
mod upgrade;

/// A case with its files.
pub(crate) struct Made {
    pub(crate) name: &'static str,
    pub(crate) case: Case,
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The pinned certificates, by the name of their file.
    pub(crate) certificates: Vec<(&'static str, Vec<u8>)>,
}

/// What most cases are made from.
pub(crate) struct Material {
    /// The signer that is pinned unless a case says otherwise.
    pub(crate) vendor: Signer,
    /// A second signer of the same vendor.
    pub(crate) second: Signer,
    /// Someone with a perfectly good key.
    pub(crate) stranger: Signer,
    /// The smallest release, signed by the vendor.
    pub(crate) good: Package,
}

impl Material {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let vendor = Signer::new("Vendor <releases@vendor.example>")?;
        let good = Release::new().package(&vendor)?;
        Ok(Self {
            vendor,
            second: Signer::new("Vendor, second signer <second@vendor.example>")?,
            stranger: Signer::new("Stranger <stranger@example.net>")?,
            good,
        })
    }
}

/// Makes every case.
pub(crate) fn all(material: &Material) -> anyhow::Result<Vec<Made>> {
    let groups = [
        good::cases(material)?,
        signature::cases(material)?,
        sums::cases(material)?,
        archive::cases(material)?,
        manifest::cases(material)?,
        content::cases(material)?,
        parts::cases(material)?,
        upgrade::cases(material)?,
        directory::cases(material)?,
        launchers::cases(material)?,
    ];
    let cases: Vec<Made> = groups.into_iter().flatten().collect();
    for (index, case) in cases.iter().enumerate() {
        ensure!(cases[..index].iter().all(|other| other.name != case.name), "two cases are called {}", case.name);
    }
    Ok(cases)
}

impl Made {
    /// A case about an archive that is verified with the vendor's certificate.
    fn archive(material: &Material, name: &'static str, description: &str, package: &Package) -> anyhow::Result<Self> {
        Self::new(material, name, description, &package.name, package.files())
    }

    /// A case about a release that was unpacked before.
    fn directory(
        material: &Material,
        name: &'static str,
        description: &str,
        release: &Release,
    ) -> anyhow::Result<Self> {
        Self::new(material, name, description, &release.root(), release.unpacked(&[&material.vendor])?)
    }

    fn new(
        material: &Material,
        name: &'static str,
        description: &str,
        release: &str,
        files: Vec<(String, Vec<u8>)>,
    ) -> anyhow::Result<Self> {
        let case = Case {
            description: description.into(),
            release: release.into(),
            arguments: Vec::new(),
            certificates: Vec::new(),
            prepare: Vec::new(),
            exit: 0,
            message: Vec::new(),
            unpacked_exit: None,
        };
        Self { name, case, files, certificates: Vec::new() }.pinned(&[("vendor.asc", &material.vendor)])
    }

    /// Pins these certificates and no others.
    fn pinned(self, signers: &[(&'static str, &Signer)]) -> anyhow::Result<Self> {
        let mut certificates = Vec::new();
        for (name, signer) in signers {
            certificates.push((*name, signer.certificate()?));
        }
        Ok(self.pinned_files(certificates))
    }

    /// As [`Made::pinned`], with any files.
    fn pinned_files(mut self, certificates: Vec<(&'static str, Vec<u8>)>) -> Self {
        self.case.certificates = certificates.iter().map(|(name, _)| (*name).to_owned()).collect();
        self.certificates = certificates;
        self
    }

    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.case.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// Adds a file to the case, or exchanges one.
    fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.retain(|(known, _)| known != name);
        self.files.push((name.into(), contents.into()));
        self
    }

    fn without_file(mut self, name: &str) -> Self {
        self.files.retain(|(known, _)| known != name);
        self
    }

    fn prepare(mut self, preparation: Preparation) -> Self {
        self.case.prepare.push(preparation);
        self
    }

    /// The program must refuse it with this exit code and say all of this.
    fn refused(mut self, exit: u8, message: &[&str]) -> Self {
        self.case.exit = exit;
        self.case.message = message.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// The program must accept it and say all of this.
    fn accepted(self, message: &[&str]) -> Self {
        self.refused(0, message)
    }

    /// The archive is accepted, but the directory that it unpacks to gives this exit code.
    fn unpacked_exit(mut self, exit: u8) -> Self {
        self.case.unpacked_exit = Some(exit);
        self
    }
}

/// A path below the root of the usual release.
fn inside(path: &str) -> PathBuf {
    PathBuf::from(Release::new().root()).join(path)
}
