//! Failures that decide the exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | something failed; standard error says what |
//! | 64 | wrong flags, or a release that may not be made |
//! | 11 … 19, 65, 66, 73, 74 | what `spacelift-bundle` ended with, under its own documentation |
//! | 130 | interrupted |

use std::fmt;

/// A failure with an exit code of its own. Everything else is an ordinary `anyhow` error and gives 1.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line cannot be understood.
    Usage(String),
    /// The command was understood and is refused, for all of these reasons.
    Refused {
        /// What is refused.
        what: String,
        /// Why, each one a sentence that also says what to do.
        reasons: Vec<String>,
    },
    /// A program failed.
    Program {
        /// Its name, as in "cargo".
        name: String,
        /// The exit code that this process passes on.
        code: u8,
        /// How it ended, as the operating system tells it.
        ended: String,
        /// What it printed, if that was held back until now.
        output: String,
    },
    /// The user pressed ^C while a child ran.
    Interrupted,
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Refused { .. } => 64,
            Self::Program { code, .. } => *code,
            Self::Interrupted => 130,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
        Self::Usage(message.into()).into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Refused { what, reasons } => {
                write!(f, "{what}:")?;
                reasons.iter().try_for_each(|reason| write!(f, "\n  - {reason}"))
            }
            Self::Program { name, ended, output, .. } => {
                if !output.trim().is_empty() {
                    writeln!(f, "{name} printed:\n{}", output.trim_end())?;
                }
                write!(f, "{name} failed ({ended})")
            }
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn every_reason_has_its_own_line() {
        let refused = Failure::Refused { what: "no release".into(), reasons: vec!["dirty".into(), "no tag".into()] };
        assert_eq!(refused.to_string(), "no release:\n  - dirty\n  - no tag");
        assert_eq!(refused.exit_code(), 64);
    }
}
