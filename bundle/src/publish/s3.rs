//! A bucket of an S3-compatible store.
//!
//! Every request carries a SHA-256 that the store checks before it keeps anything, so a byte that changed on the way is
//! refused there. The same checksum is what tells later whether an object is the one that should be there: of an object in
//! one part it is the SHA-256 of its bytes, of one in several parts the SHA-256 of its parts' digests.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::base64;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use bundle_core::digest::Digest;
use bundle_core::interrupt;
use sha2::Digest as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::object::{Object, PART, WHOLE};
use super::{Existing, Put};
use crate::aws::Connection;
use crate::failure::{Failure, Kind};

/// Parts on the way at once. Each is held in memory, with what the HTTP client buffers of it.
const PARTS_IN_FLIGHT: usize = 4;
/// Attempts of reading a part back.
const READ_ATTEMPTS: u32 = 4;
/// Attempts where another writer is at the same key.
const CONFLICT_ATTEMPTS: u32 = 6;

/// A bucket.
#[derive(Debug, Clone)]
pub(crate) struct S3 {
    client: Client,
    bucket: String,
    prefix: String,
    /// The account that the bucket must belong to, if the caller said so.
    owner: Option<String>,
    parts: Arc<Semaphore>,
    sent: Arc<AtomicU64>,
}

impl S3 {
    pub(crate) fn new(connection: &Connection, bucket: &str, prefix: &str, owner: Option<&str>) -> Self {
        Self {
            client: connection.s3(),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            owner: owner.map(str::to_owned),
            parts: Arc::new(Semaphore::new(PARTS_IN_FLIGHT)),
            sent: Arc::default(),
        }
    }

    /// Bytes sent so far, for progress.
    pub(crate) fn sent(&self) -> &Arc<AtomicU64> {
        &self.sent
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn doing(&self, what: &str, key: &str) -> String {
        format!("{what} s3://{}/{}{key}", self.bucket, self.prefix)
    }

    /// Whether the bucket is there, in this region, and open to these credentials.
    pub(crate) async fn check(&self) -> Result<(), Failure> {
        // Not a HEAD: the answer to one has no body, and so does not say why.
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).max_keys(1);
        let Err(error) = request.set_expected_bucket_owner(self.owner.clone()).send().await else { return Ok(()) };
        let doing = match &self.owner {
            Some(owner) => format!("open s3://{} as a bucket of the account {owner}", self.bucket),
            None => format!("open s3://{}", self.bucket),
        };
        Err(Failure::of(doing, "s3:ListBucket", &error))
    }

    /// Writes the object unless there is one of this key.
    pub(crate) async fn create(&self, object: &Object) -> Result<Put, Failure> {
        for attempt in 0.. {
            let result = if object.size > PART {
                self.multipart(object).await
            } else {
                self.put(object, &Condition::Absent).await
            };
            match result {
                // Two writers at one key: the store lets one through and asks the other to try again.
                Err(failure) if is_conflict(&failure) && attempt + 1 < CONFLICT_ATTEMPTS => wait(attempt).await,
                // The upload was ended by a publisher that had finished: what is there now decides.
                Err(failure) if failure.code.as_deref() == Some("NoSuchUpload") && attempt + 1 < CONFLICT_ATTEMPTS => {
                    if self.existing(&object.key).await?.is_some() {
                        return Ok(Put::Exists);
                    }
                    wait(attempt).await;
                }
                result => return result,
            }
        }
        unreachable!("the loop ends with a result")
    }

    /// Writes the object in place of what was there; only if that is still what `expected` says.
    pub(crate) async fn replace(&self, object: &Object, expected: Option<&Existing>) -> Result<(), Failure> {
        let condition = match expected {
            None => Condition::Absent,
            Some(Existing { etag: Some(etag), .. }) => Condition::Still(etag.clone()),
            Some(_) => Condition::None,
        };
        if object.size > WHOLE {
            let why = format!("it has {} bytes, more than the {WHOLE} that are sent at once", object.size);
            return Err(Failure::new(self.doing("replace", &object.key), Kind::Wrong, why));
        }
        match self.put(object, &condition).await {
            Ok(Put::Written) => Ok(()),
            // An answer that was lost on the way makes the next attempt find what the first one wrote.
            Ok(Put::Exists) if self.is_there(object).await?.is_ok() => Ok(()),
            Ok(Put::Exists) => Err(self.moved(&object.key)),
            Err(failure) if is_conflict(&failure) => Err(self.moved(&object.key)),
            Err(failure) => Err(failure),
        }
    }

    fn moved(&self, key: &str) -> Failure {
        let why = "someone else replaced it while this release was being published; run the command again";
        Failure::new(self.doing("replace", key), Kind::Busy, why)
    }

    async fn put(&self, object: &Object, condition: &Condition) -> Result<Put, Failure> {
        check_interrupt(&self.doing("upload", &object.key))?;
        let _permit = self.parts.acquire().await;
        let bytes = object.whole().map_err(|error| self.unreadable(object, &error))?;
        let checksum = base64::encode(sha2::Sha256::digest(&bytes));
        let length = bytes.len() as u64;
        let mut request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full(&object.key))
            .set_expected_bucket_owner(self.owner.clone())
            .content_type(object.content_type())
            .checksum_sha256(checksum)
            .body(ByteStream::new(SdkBody::from(bytes)));
        request = match condition {
            Condition::None => request,
            Condition::Absent => request.if_none_match("*"),
            Condition::Still(etag) => request.if_match(etag),
        };
        // The checksum is signed and covers the body; hashing it once more for the signature would double the work.
        match request.customize().disable_payload_signing().send().await {
            Ok(_) => {
                self.sent.fetch_add(length, Ordering::Relaxed);
                Ok(Put::Written)
            }
            Err(error) if status(&error) == Some(412) => Ok(Put::Exists),
            Err(error) => Err(Failure::of(self.doing("upload", &object.key), "s3:PutObject", &error)),
        }
    }

    async fn multipart(&self, object: &Object) -> Result<Put, Failure> {
        // Sending hundreds of megabytes only to be told that they are there already would be a waste.
        if self.existing(&object.key).await?.is_some() {
            return Ok(Put::Exists);
        }
        let doing = self.doing("upload", &object.key);
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(&object.key))
            .set_expected_bucket_owner(self.owner.clone())
            .content_type(object.content_type())
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .send()
            .await
            .map_err(|error| Failure::of(&doing, "s3:PutObject", &error))?;
        let Some(id) = begun.upload_id() else {
            return Err(Failure::new(doing, Kind::Wrong, "the store began an upload without naming it"));
        };
        let result = self.parts_and_completion(object, id).await;
        if !matches!(result, Ok(Put::Written)) {
            // Best effort: what stays is ended by the next publisher, or by the bucket's lifecycle rule.
            let _ = self.abort(&self.full(&object.key), id).await;
        }
        result
    }

    async fn parts_and_completion(&self, object: &Object, id: &str) -> Result<Put, Failure> {
        let mut sending = JoinSet::new();
        let mut parts = Vec::new();
        for index in 0..object.parts() {
            // Before the part is read: parts that wait for their turn take no memory.
            let permit = Arc::clone(&self.parts).acquire_owned().await;
            while let Some(done) = sending.try_join_next() {
                parts.push(joined(self.doing("upload", &object.key), done)?);
            }
            let (store, object, id) = (self.clone(), object.clone(), id.to_owned());
            sending.spawn(async move {
                let _permit = permit;
                store.part(&object, &id, index).await
            });
        }
        while let Some(done) = sending.join_next().await {
            parts.push(joined(self.doing("upload", &object.key), done)?);
        }
        parts.sort_by_key(CompletedPart::part_number);
        let doing = self.doing("complete the upload of", &object.key);
        check_interrupt(&doing)?;
        let completed = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full(&object.key))
            .upload_id(id)
            .set_expected_bucket_owner(self.owner.clone())
            .if_none_match("*")
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .send()
            .await;
        match completed {
            Ok(_) => Ok(Put::Written),
            Err(error) if status(&error) == Some(412) => Ok(Put::Exists),
            Err(error) => Err(Failure::of(doing, "s3:PutObject", &error)),
        }
    }

    async fn part(&self, object: &Object, id: &str, index: u64) -> Result<CompletedPart, Failure> {
        let number = i32::try_from(index + 1).unwrap_or(i32::MAX);
        let doing = || format!("{} (part {number} of {})", self.doing("upload", &object.key), object.parts());
        check_interrupt(&doing())?;
        let bytes = object.part(index).map_err(|error| self.unreadable(object, &error))?;
        let checksum = base64::encode(object.sum_of(index, &bytes));
        let length = bytes.len() as u64;
        let sent = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(self.full(&object.key))
            .upload_id(id)
            .part_number(number)
            .set_expected_bucket_owner(self.owner.clone())
            .checksum_sha256(&checksum)
            .body(ByteStream::new(SdkBody::from(bytes)))
            .customize()
            .disable_payload_signing()
            .send()
            .await
            .map_err(|error| Failure::of(doing(), "s3:PutObject", &error))?;
        self.sent.fetch_add(length, Ordering::Relaxed);
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag().map(str::to_owned))
            .checksum_sha256(checksum)
            .build())
    }

    fn sum(&self, object: &Object, index: u64) -> Result<[u8; 32], Failure> {
        object.sum(index).map_err(|error| self.unreadable(object, &error))
    }

    fn unreadable(&self, object: &Object, error: &io::Error) -> Failure {
        let why = format!("its private copy cannot be read: {error}");
        Failure::new(self.doing("upload", &object.key), Kind::Wrong, why)
    }

    /// Ends uploads to `keys` that were begun and never completed. The keys are published, so no such upload can succeed.
    pub(crate) async fn abort_abandoned(&self, below: &str) -> Result<usize, Failure> {
        let mut aborted = 0;
        let doing = self.doing("list unfinished uploads below", below);
        let listed = self
            .client
            .list_multipart_uploads()
            .bucket(&self.bucket)
            .prefix(self.full(below))
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await;
        let listed = match listed {
            Ok(listed) => listed,
            // Not every store has this, and not everyone may do it; the lifecycle rule ends them as well.
            Err(error) if matches!(status(&error), Some(403 | 404 | 405 | 501)) => return Ok(0),
            Err(error) => return Err(Failure::of(doing, "s3:ListBucketMultipartUploads", &error)),
        };
        for upload in listed.uploads() {
            let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
            aborted += usize::from(self.abort(key, id).await.is_ok());
        }
        Ok(aborted)
    }

    async fn abort(&self, full_key: &str, id: &str) -> Result<(), ()> {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(full_key).upload_id(id);
        request.set_expected_bucket_owner(self.owner.clone()).send().await.map(drop).map_err(drop)
    }

    /// What is there under `key`, as the store describes it.
    pub(crate) async fn existing(&self, key: &str) -> Result<Option<Existing>, Failure> {
        let head = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .set_expected_bucket_owner(self.owner.clone())
            .checksum_mode(ChecksumMode::Enabled)
            .send()
            .await;
        match head {
            Ok(head) => Ok(Some(of_head(&head))),
            Err(error) if status(&error) == Some(404) && !is_no_bucket(&error) => Ok(None),
            Err(error) => Err(Failure::of(self.doing("look at", key), "s3:GetObject and s3:ListBucket", &error)),
        }
    }

    /// Whether what is there under the object's key has its bytes. Believes the store's SHA-256 if it has one, and reads
    /// the object otherwise.
    pub(crate) async fn is_there(&self, object: &Object) -> Result<Result<(), String>, Failure> {
        let head = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(&object.key))
            .set_expected_bucket_owner(self.owner.clone())
            .checksum_mode(ChecksumMode::Enabled)
            .send()
            .await;
        let head = match head {
            Ok(head) => head,
            Err(error) if status(&error) == Some(404) => return Ok(Err("it is not there".into())),
            Err(error) => return Err(Failure::of(self.doing("look at", &object.key), "s3:GetObject", &error)),
        };
        let length = head.content_length().and_then(|length| u64::try_from(length).ok());
        if let Some(length) = length.filter(|length| *length != object.size) {
            return Ok(Err(format!("it has {length} bytes there and {} here", object.size)));
        }
        if let Some(stored) = head.checksum_sha256() {
            let is_whole = stored == base64::encode(object.sha256.as_bytes());
            // Not every store marks the checksum of parts as such.
            let may_be_of_parts = object.parts() > 1 || stored.contains('-');
            if is_whole || may_be_of_parts && stored.split('-').next() == Some(&self.checksum_of_parts(object)?) {
                return Ok(Ok(()));
            }
            // Another part size gives another checksum of the same bytes: then only the bytes themselves can tell.
            if !stored.contains('-') && object.parts() == 1 {
                return Ok(Err(format!("its SHA-256 there is {}, here {}", hex(stored), object.sha256)));
            }
        }
        self.is_there_part_by_part(object).await
    }

    /// Reads an object, several of its parts at a time, and compares it with ours.
    async fn is_there_part_by_part(&self, object: &Object) -> Result<Result<(), String>, Failure> {
        let mut reading = JoinSet::new();
        for index in 0..object.parts() {
            let permit = Arc::clone(&self.parts).acquire_owned().await;
            check_interrupt(&self.doing("read back", &object.key))?;
            while let Some(done) = reading.try_join_next() {
                if let Err(difference) = joined(self.doing("read back", &object.key), done)? {
                    return Ok(Err(difference));
                }
            }
            let (store, object) = (self.clone(), object.clone());
            reading.spawn(async move {
                let _permit = permit;
                store.part_is_there(&object, index).await
            });
        }
        while let Some(done) = reading.join_next().await {
            if let Err(difference) = joined(self.doing("read back", &object.key), done)? {
                return Ok(Err(difference));
            }
        }
        Ok(Ok(()))
    }

    async fn part_is_there(&self, object: &Object, index: u64) -> Result<Result<(), String>, Failure> {
        let ours = self.sum(object, index)?;
        let range = object.range(index);
        let asked = (object.parts() > 1).then(|| range.clone());
        for attempt in 0.. {
            match self.digest(&object.key, asked.clone()).await? {
                Ok((theirs, length)) if theirs == ours && length == range.end - range.start => {
                    return Ok(Ok(()));
                }
                Ok((_, length)) => {
                    let (first, after) = (range.start, range.end);
                    return Ok(Err(format!("the {length} bytes there are not bytes {first} to {after} here")));
                }
                Err(_) if attempt + 1 < READ_ATTEMPTS => wait(attempt).await,
                Err(cut) => return Err(cut),
            }
        }
        unreachable!("the loop ends with a result")
    }

    /// The SHA-256 of the SHA-256 of its parts, which a store keeps of what came in parts.
    fn checksum_of_parts(&self, object: &Object) -> Result<String, Failure> {
        let mut all = sha2::Sha256::new();
        for index in 0..object.parts() {
            check_interrupt(&self.doing("check", &object.key))?;
            all.update(self.sum(object, index)?);
        }
        Ok(base64::encode(all.finalize()))
    }

    /// Reads an object, or bytes of it, and hashes them. Gives their number, too. The inner error is a connection that was cut in
    /// the middle of an answer, which the client does not ask for again by itself.
    async fn digest(&self, key: &str, range: Option<Range<u64>>) -> Result<Result<([u8; 32], u64), Failure>, Failure> {
        let doing = self.doing("read back", key);
        let mut body =
            self.get(key, range, &doing).await?.ok_or_else(|| Failure::new(&doing, Kind::Wrong, "it is not there"))?;
        let mut hasher = sha2::Sha256::new();
        let mut length = 0;
        while let Some(chunk) = body.next().await {
            check_interrupt(&doing)?;
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Ok(Err(Failure::of_error(&doing, &error))),
            };
            hasher.update(&chunk);
            length += chunk.len() as u64;
        }
        Ok(Ok((hasher.finalize().into(), length)))
    }

    /// The whole of a small object.
    pub(crate) async fn read(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let doing = self.doing("read", key);
        let Some(mut body) = self.get(key, None, &doing).await? else { return Ok(None) };
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| Failure::of_error(&doing, &error))?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(Failure::new(doing, Kind::Wrong, format!("it has more than {limit} bytes")));
            }
        }
        Ok(Some(bytes))
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>, doing: &str) -> Result<Option<ByteStream>, Failure> {
        let mut request = self.client.get_object().bucket(&self.bucket).key(self.full(key));
        if let Some(range) = range {
            request = request.range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        match request.set_expected_bucket_owner(self.owner.clone()).send().await {
            Ok(found) => Ok(Some(found.body)),
            Err(error) if status(&error) == Some(404) && !is_no_bucket(&error) => Ok(None),
            Err(error) => Err(Failure::of(doing, "s3:GetObject and s3:ListBucket", &error)),
        }
    }
}

enum Condition {
    None,
    /// Nothing is there.
    Absent,
    /// What has this entity tag is there.
    Still(String),
}

fn of_head(head: &HeadObjectOutput) -> Existing {
    let size = head.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
    let sha256 = head.checksum_sha256().filter(|text| !text.contains('-')).and_then(|text| {
        let bytes: [u8; 32] = base64::decode(text).ok()?.try_into().ok()?;
        Some(Digest::from_bytes(bytes))
    });
    Existing { size, sha256, etag: head.e_tag().map(str::to_owned) }
}

fn hex(base64_text: &str) -> String {
    let bytes = base64::decode(base64_text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map_or_else(|| base64_text.to_owned(), |bytes| Digest::from_bytes(bytes).to_string())
}

fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// A HEAD has no body, so its 404 says nothing about the bucket; every other answer does.
fn is_no_bucket<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    error.as_service_error().and_then(ProvideErrorMetadata::code) == Some("NoSuchBucket")
}

fn is_conflict(failure: &Failure) -> bool {
    failure.status == Some(409)
}

fn joined<T>(doing: String, done: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Failure> {
    done.unwrap_or_else(|error| Err(Failure::new(doing, Kind::Wrong, error.to_string())))
}

fn check_interrupt(doing: &str) -> Result<(), Failure> {
    interrupt::check().map_err(|_| Failure::interrupted(doing))
}

/// Exponential backoff with full jitter. The jitter only has to differ between processes.
async fn wait(attempt: u32) {
    let longest = 200_u64 << attempt.min(5);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    let seed = u64::from(now) ^ u64::from(std::process::id()).rotate_left(16);
    tokio::time::sleep(Duration::from_millis(seed % longest)).await;
}
