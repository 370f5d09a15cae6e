//! The object store: addresses for workers, and reading what they put there.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use axum::http::StatusCode;
use launcher_wire::api::{LogSummary, Operation, Presigned};
use launcher_wire::id::{AssignmentId, PoolId, RunId};
use sha2::{Digest as _, Sha256};

use crate::refusal::{Refusal, Result};

/// How long an address holds.
const VALIDITY: Duration = Duration::from_secs(15 * 60);
/// Bytes of the largest object of a log that is read.
const MAXIMUM_CHUNK: i64 = 64 * 1024 * 1024;

/// Where the object store is, and who asks.
pub struct Configuration {
    /// Its address.
    pub endpoint: String,
    /// The bucket that everything is in.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The access key's identifier.
    pub access_key: String,
    /// The access key.
    pub secret_key: String,
    /// The session's token, of temporary credentials.
    pub session_token: Option<String>,
    /// Certificate authorities in PEM. None: the host's.
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configuration")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

/// What the names of all objects of a stage's log begin with.
pub(crate) fn log_prefix(pool: PoolId, run: RunId, assignment: AssignmentId) -> String {
    format!("{pool}/{run}/{assignment}/log")
}

impl Key {
    pub(crate) fn log(prefix: &str, number: u64) -> Self {
        Self(format!("{prefix}/{number:08}"))
    }

    pub(crate) fn workspace(pool: PoolId, run: RunId) -> Self {
        Self(format!("{pool}/{run}/workspace"))
    }

    pub(crate) fn outputs(pool: PoolId, run: RunId) -> Self {
        Self(format!("{pool}/{run}/outputs"))
    }

    /// By its digest: what a run was started with stays, whatever is uploaded later.
    pub(crate) fn source(pool: PoolId, archive: &str) -> Self {
        Self(format!("{pool}/sources/{archive}"))
    }
}

/// The object store.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    client: Client,
    bucket: String,
}

impl Objects {
    pub(crate) fn new(configuration: &Configuration) -> anyhow::Result<Self> {
        let store = match &configuration.ca {
            Some(pem) => TrustStore::empty().with_pem_certificate(pem.clone()),
            None => TrustStore::empty().with_native_roots(true),
        };
        let tls = TlsContext::builder().with_trust_store(store).build()?;
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls)
            .build_https();
        let credentials = Credentials::new(
            &configuration.access_key,
            &configuration.secret_key,
            configuration.session_token.clone(),
            None,
            "environment",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(configuration.region.clone()))
            .endpoint_url(&configuration.endpoint)
            .credentials_provider(credentials)
            .force_path_style(true)
            // A checksum in a presigned address would be the one of a body that nobody has seen.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Ok(Self { client: Client::from_conf(config), bucket: configuration.bucket.clone() })
    }

    /// An address with which the object can be put or fetched for a while.
    pub(crate) async fn presign(&self, key: &Key, operation: Operation, now: u64) -> Result<Presigned> {
        let config = PresigningConfig::expires_in(VALIDITY).map_err(|error| unavailable(&error))?;
        let request = match operation {
            Operation::Get => {
                let request = self.client.get_object().bucket(&self.bucket).key(&key.0).presigned(config).await;
                request.map_err(|error| unavailable(&DisplayErrorContext(&error)))?
            }
            Operation::Put => {
                let request = self.client.put_object().bucket(&self.bucket).key(&key.0).presigned(config).await;
                request.map_err(|error| unavailable(&DisplayErrorContext(&error)))?
            }
        };
        let headers = request.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Presigned { url: request.uri().to_owned(), headers, expires: now + VALIDITY.as_secs() })
    }

    /// The bytes of an object, if there is one.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        let answer = self.client.get_object().bucket(&self.bucket).key(&key.0).send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => return Ok(None),
            Err(error) => return Err(unavailable(&DisplayErrorContext(&error))),
        };
        if answer.content_length().is_some_and(|length| length > MAXIMUM_CHUNK) {
            return Err(Refusal::invalid(format!("an object of the log is larger than {MAXIMUM_CHUNK} bytes")));
        }
        let bytes = answer.body.collect().await.map_err(|error| unavailable(&error))?;
        Ok(Some(bytes.to_vec()))
    }

    /// How long an object is, if there is one.
    pub(crate) async fn length(&self, key: &Key) -> Result<Option<u64>> {
        match self.client.head_object().bucket(&self.bucket).key(&key.0).send().await {
            Ok(answer) => Ok(Some(u64::try_from(answer.content_length().unwrap_or_default()).unwrap_or_default())),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => Ok(None),
            Err(error) => Err(unavailable(&DisplayErrorContext(&error))),
        }
    }

    /// Puts an object there.
    pub(crate) async fn put(&self, key: &Key, bytes: Vec<u8>) -> Result<()> {
        let request = self.client.put_object().bucket(&self.bucket).key(&key.0).body(ByteStream::from(bytes));
        request.send().await.map_err(|error| unavailable(&DisplayErrorContext(&error)))?;
        Ok(())
    }

    /// Refuses a log of which something is missing or that is another one.
    pub(crate) async fn check_log(&self, prefix: &str, said: &LogSummary) -> Result<()> {
        let (mut bytes, mut lines, mut sha256) = (0_u64, 0_u64, Sha256::new());
        for number in 0..said.chunks {
            let Some(chunk) = self.get(&Key::log(prefix, number)).await? else {
                return Err(Refusal::invalid(format!(
                    "the log has {} objects, says the worker, but object {number} is not in the object store",
                    said.chunks
                )));
            };
            bytes += chunk.len() as u64;
            lines += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
            sha256.update(&chunk);
        }
        let sha256: String = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let found = [("bytes", bytes.to_string()), ("lines", lines.to_string()), ("sha256", sha256)];
        let said = [said.bytes.to_string(), said.lines.to_string(), said.sha256.clone()];
        let differences: Vec<String> = found
            .iter()
            .zip(&said)
            .filter(|((_, found), said)| found != *said)
            .map(|((name, found), said)| format!("{name}: the worker says {said}, the object store has {found}"))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Refusal::invalid(format!("the log is not the one that the worker describes: {}", differences.join("; "))))
    }
}

fn unavailable(error: &dyn fmt::Display) -> Refusal {
    tracing::warn!(%error, "the object store failed");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the object store does not answer as it should. Try again later")
}
