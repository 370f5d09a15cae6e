//! The processors that a release is built for.

use anyhow::Result;

use crate::failure::Failure;

/// One of the two targets. Both are Linux with musl, linked statically.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// Intel and AMD, 64 bit.
    X86_64,
    /// Arm, 64 bit.
    Aarch64,
}

impl Target {
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The name on command lines and in file names.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// What follows a program's name in `bin/`: the names without a suffix are older than the second target.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::X86_64 => "",
            Self::Aarch64 => "-aarch64",
        }
    }

    /// `e_machine` in the ELF header.
    pub(crate) fn elf_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }

    /// The target of this machine.
    pub(crate) fn host() -> Result<Self> {
        Self::ALL.into_iter().find(|target| target.short() == std::env::consts::ARCH).ok_or_else(|| {
            Failure::usage(format!("releases are built on x86_64 and aarch64, and this is {}", std::env::consts::ARCH))
        })
    }

    /// The targets that a `--target` flag names.
    pub(crate) fn parse(name: &str) -> Result<Vec<Self>> {
        if name == "all" {
            return Ok(Self::ALL.to_vec());
        }
        match Self::ALL.into_iter().find(|target| [target.short(), target.triple()].contains(&name)) {
            Some(target) => Ok(vec![target]),
            None => Err(Failure::usage(format!("--target takes x86_64, aarch64 or all, not \"{name}\""))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn parses_names() {
        assert_eq!(Target::parse("all").unwrap(), Target::ALL);
        assert_eq!(Target::parse("aarch64").unwrap(), [Target::Aarch64]);
        assert_eq!(Target::parse("x86_64-unknown-linux-musl").unwrap(), [Target::X86_64]);
        assert!(Target::parse("arm64").unwrap_err().to_string().contains("\"arm64\""));
    }
}
