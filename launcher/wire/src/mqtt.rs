//! MQTT: topics, envelopes and their limits. AWS IoT Core's limits hold.
//!
//! A worker reads `NAMESPACE/readonly/POOL/WORKER` and writes `NAMESPACE/writeonly/POOL/WORKER`, as seen from its side. Its
//! client id is its [`WorkerId`]. Both directions carry an [`Envelope`] in JSON, quality of service 1; a message may arrive
//! twice and is then recognised by its id.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::{AssignmentId, MessageId, PoolId, RunId, WorkerId};

/// The version that this side speaks and the only one that it understands.
pub const VERSION: u32 = 1;
/// Bytes of an encoded envelope. AWS IoT Core refuses more.
pub const MAXIMUM_SIZE: usize = 128 * 1024;
/// The namespace when a token names none.
pub const DEFAULT_NAMESPACE: &str = "spacelift";

/// Where messages to a worker are.
#[must_use]
pub fn to_worker(namespace: &str, pool: PoolId, worker: WorkerId) -> String {
    format!("{namespace}/readonly/{pool}/{worker}")
}

/// Where messages from a worker are.
#[must_use]
pub fn from_worker(namespace: &str, pool: PoolId, worker: WorkerId) -> String {
    format!("{namespace}/writeonly/{pool}/{worker}")
}

/// All messages from workers, as a control plane subscribes to them.
#[must_use]
pub fn from_all_workers(namespace: &str) -> String {
    format!("{namespace}/writeonly/+/+")
}

/// A message with what every message has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<B> {
    /// [`VERSION`].
    pub version: u32,
    /// Tells a repetition.
    pub id: MessageId,
    /// When it was made, in milliseconds since 1970.
    pub at: u64,
    /// What it says.
    #[serde(flatten)]
    pub body: B,
}

/// From the control plane to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub enum ToWorker {
    /// Claim this run, unless there is one already or the worker drains.
    RunScheduled {
        /// What to claim.
        run: RunId,
        /// As which assignment.
        assignment: AssignmentId,
    },
    /// Stop this run: somebody wishes it to end.
    RunStop {
        /// Which.
        run: RunId,
        /// Which of its stages. One that is over already is not meant.
        assignment: AssignmentId,
    },
    /// Take no more runs; finish the present one.
    Drain {},
    /// Take runs again.
    Undrain {},
    /// Finish the present run, then exit with 0, for whoever supervises the launcher to start it anew.
    Cycle {},
}

/// From a worker to the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub enum FromWorker {
    /// It is there: said at each connection and, as a sign of life, as often as registration asked for.
    Alive {
        /// What it does.
        state: WorkerState,
    },
    /// It exits by itself. No sign of life will follow.
    Bye {},
    /// The last will: the broker says it for a worker whose connection broke.
    Lost {},
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkerState {
    /// It waits for a run.
    Idle,
    /// It has one.
    Busy {
        /// Which.
        run: RunId,
        /// Which of its stages.
        assignment: AssignmentId,
    },
    /// It takes no runs.
    Drained,
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// More than a message may have.
    #[error("a message of {size} bytes; at most {MAXIMUM_SIZE} are allowed")]
    TooLarge {
        /// Bytes that it has.
        size: usize,
    },
    /// Of another version.
    #[error("a message of version {version}; this side speaks version {VERSION}. Bring both sides to the same release")]
    Version {
        /// Its version.
        version: u64,
    },
    /// Not what the version describes.
    #[error("a message that is not as it should be: {reason}")]
    Malformed {
        /// What is wrong, from the parser.
        reason: String,
    },
}

impl<B: Serialize + DeserializeOwned> Envelope<B> {
    /// A new message of this time: `at` in milliseconds since 1970.
    #[must_use]
    pub fn new(at: u64, body: B) -> Self {
        Self { version: VERSION, id: MessageId::new(), at, body }
    }

    /// As it travels.
    ///
    /// # Errors
    /// It would be too large.
    pub fn encode(&self) -> Result<Vec<u8>, Invalid> {
        let bytes = serde_json::to_vec(self).map_err(malformed)?;
        within_limit(&bytes)?;
        Ok(bytes)
    }

    /// From what came.
    ///
    /// # Errors
    /// Too large, of another version, or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        /// Read first: a message of another version may look different in everything else.
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        within_limit(bytes)?;
        let Version { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != u64::from(VERSION) {
            return Err(Invalid::Version { version });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }
}

fn within_limit(bytes: &[u8]) -> Result<(), Invalid> {
    if bytes.len() > MAXIMUM_SIZE { Err(Invalid::TooLarge { size: bytes.len() }) } else { Ok(()) }
}

fn malformed(error: impl fmt::Display) -> Invalid {
    Invalid::Malformed { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        let state = WorkerState::Busy { run: RunId::new(), assignment: AssignmentId::new() };
        let sent = Envelope::new(1, FromWorker::Alive { state });
        assert_eq!(Envelope::decode(&sent.encode().unwrap()), Ok(sent));
        let sent = Envelope::new(2, ToWorker::Drain {});
        assert_eq!(Envelope::decode(&sent.encode().unwrap()), Ok(sent));
    }

    #[test]
    fn fields_of_a_newer_peer_are_passed_over_and_all_else_is_refused() {
        let id = MessageId::new();
        let decode = |text: &str| Envelope::<ToWorker>::decode(text.replace("ID", &id.to_string()).as_bytes());
        assert_eq!(
            decode(r#"{"version":1,"id":"ID","at":3,"type":"drain","body":{"soon":1},"more":[]}"#).unwrap().body,
            ToWorker::Drain {}
        );
        assert_eq!(decode(r#"{"version":2,"other":true}"#), Err(Invalid::Version { version: 2 }));
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"version":1}"#,
            r#"{"version":1,"id":"ID","at":3,"type":"dance","body":{}}"#,
            r#"{"version":1,"id":"ID","at":-3,"type":"drain","body":{}}"#,
        ] {
            assert!(matches!(decode(wrong), Err(Invalid::Malformed { .. })), "{wrong}");
        }
        let large = format!(r#"{{"version":1,"x":"{}"}}"#, "x".repeat(MAXIMUM_SIZE));
        assert!(matches!(decode(&large), Err(Invalid::TooLarge { .. })));
    }

    #[test]
    fn topics_are_the_documented_ones() {
        let (pool, worker) = (PoolId::new(), WorkerId::new());
        assert_eq!(to_worker("spacelift", pool, worker), format!("spacelift/readonly/{pool}/{worker}"));
        assert_eq!(from_worker("a", pool, worker), format!("a/writeonly/{pool}/{worker}"));
    }
}
