//! Functions for JSON Web Tokens.

use anyhow::Result;
use regorus::Engine;

/// Names, and how many arguments they take.
pub(super) const FUNCTIONS: [(&str, u8); 0] = [];

pub(super) fn add(_engine: &mut Engine) -> Result<()> {
    Ok(())
}
