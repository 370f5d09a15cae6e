//! Identifiers. Each kind has a type of its own, so that none is taken for another.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

/// Not a ULID: 26 characters of Crockford's base 32, in upper case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a ULID, which has 26 characters, digits and capital letters without I, L, O and U")]
pub struct InvalidId(String);

fn parse(text: &str) -> Result<Ulid, InvalidId> {
    // The longest excerpt that an error message repeats.
    const EXCERPT: usize = 40;
    let invalid = || InvalidId(text.chars().take(EXCERPT).collect());
    let id = Ulid::from_string(text).map_err(|_| invalid())?;
    // Lower case and letters that stand for digits would give one thing several names.
    if id.to_string() == text { Ok(id) } else { Err(invalid()) }
}

fn generate() -> Ulid {
    let mut random = [0; 16];
    // Without randomness nothing that follows would be safe either: no TLS, no signatures.
    getrandom::fill(&mut random).expect("the operating system has randomness");
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or_default();
    Ulid::from_parts(milliseconds, u128::from_be_bytes(random))
}

macro_rules! id {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            /// A new one: of now, and random.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "every call gives another value")]
            pub fn new() -> Self {
                Self(generate())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

id!(
    /// A worker pool.
    PoolId
);
id!(
    /// One launcher of a pool. It keeps its identifier over restarts on the same host.
    WorkerId
);
id!(
    /// A run, through all its stages.
    RunId
);
id!(
    /// One stage of a run, given to one worker. Whatever a worker says of a run names it, so that what a worker says late,
    /// after the run was given to another, is told apart.
    AssignmentId
);
id!(
    /// An MQTT message.
    MessageId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identifier_has_one_form() {
        let id = RunId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(RunId::new(), id);
        for wrong in [
            "",
            "01ARZ3NDEKTSV4RRFFQ69G5FA",
            "01arz3ndektsv4rrffq69g5fav",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "../../../../../etc/passwd0",
        ] {
            assert!(wrong.parse::<RunId>().is_err(), "{wrong}");
        }
        assert!("O1ARZ3NDEKTSV4RRFFQ69G5FAV".parse::<RunId>().is_err(), "the letter O for a zero");
    }
}
