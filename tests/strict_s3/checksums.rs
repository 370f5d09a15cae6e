//! The checksums of what came in parts, as S3 keeps them.
//!
//! `s3s-fs` checks the checksum of every part and forgets it. S3 keeps the SHA-256 of the parts' SHA-256, marks it with the number
//! of parts, and tells it to whoever asks; and it refuses to complete an upload whose list of parts says something else.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumMode, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
    GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
    ListObjectsV2Output, ListPartsInput, ListPartsOutput, PutObjectInput, PutObjectOutput, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use sha2::{Digest as _, Sha256};

/// A directory as a store that keeps checksums of parts for as long as it runs. Afterwards it is a store that has none.
pub(crate) struct WithChecksums {
    files: FileSystem,
    /// By upload, then by number of the part.
    parts: Mutex<HashMap<String, BTreeMap<i32, String>>>,
    /// By bucket and key.
    objects: Mutex<HashMap<(String, String), String>>,
}

impl WithChecksums {
    pub(crate) fn new(files: FileSystem) -> Self {
        Self { files, parts: Mutex::default(), objects: Mutex::default() }
    }

    fn parts(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<i32, String>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn objects(&self) -> MutexGuard<'_, HashMap<(String, String), String>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_object(&self, bucket: &str, key: &str, mode: Option<&ChecksumMode>) -> Option<String> {
        let asked = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
        self.objects().get(&(bucket.to_owned(), key.to_owned())).filter(|_| asked).cloned()
    }
}

/// The SHA-256 of SHA-256 sums in base64, with their number.
fn of_parts(sums: &BTreeMap<i32, String>) -> Option<String> {
    let mut all = Sha256::new();
    for sum in sums.values() {
        all.update(BASE64_STANDARD.decode(sum).ok()?);
    }
    Some(format!("{}-{}", BASE64_STANDARD.encode(all.finalize()), sums.len()))
}

macro_rules! as_it_is {
    ($($name:ident: $input:ident => $output:ident,)*) => { $(
        fn $name<'a, 'b>(
            &'a self,
            request: S3Request<$input>,
        ) -> std::pin::Pin<Box<dyn Future<Output = S3Result<S3Response<$output>>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            self.files.$name(request)
        }
    )* };
}

#[async_trait::async_trait]
impl S3 for WithChecksums {
    as_it_is! {
        abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput,
        copy_object: CopyObjectInput => CopyObjectOutput,
        create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
        delete_object: DeleteObjectInput => DeleteObjectOutput,
        delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
        get_object: GetObjectInput => GetObjectOutput,
        head_bucket: HeadBucketInput => HeadBucketOutput,
        list_multipart_uploads: ListMultipartUploadsInput => ListMultipartUploadsOutput,
        list_objects: ListObjectsInput => ListObjectsOutput,
        list_objects_v2: ListObjectsV2Input => ListObjectsV2Output,
        list_parts: ListPartsInput => ListPartsOutput,
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (upload, number) = (request.input.upload_id.clone(), request.input.part_number);
        let checksum = request.input.checksum_sha256.clone();
        let uploaded = self.files.upload_part(request).await?;
        if let Some(checksum) = checksum {
            self.parts().entry(upload).or_default().insert(number, checksum);
        }
        Ok(uploaded)
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = &request.input;
        let object = (input.bucket.clone(), input.key.clone());
        let upload = input.upload_id.clone();
        let known = self.parts().get(&upload).cloned().unwrap_or_default();
        for part in input.multipart_upload.iter().flat_map(|upload| upload.parts.iter().flatten()) {
            let kept = part.part_number.and_then(|number| known.get(&number));
            if part.checksum_sha256.as_ref() != kept {
                return Err(s3_error!(InvalidPart, "the SHA-256 of a part is not the one that came with it"));
            }
        }
        let completed = self.files.complete_multipart_upload(request).await?;
        self.parts().remove(&upload);
        match of_parts(&known).filter(|_| !known.is_empty()) {
            Some(checksum) => self.objects().insert(object, checksum),
            None => self.objects().remove(&object),
        };
        Ok(completed)
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let object = (request.input.bucket.clone(), request.input.key.clone());
        let put = self.files.put_object(request).await?;
        self.objects().remove(&object);
        Ok(put)
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = &request.input;
        let kept = self.of_object(&input.bucket, &input.key, input.checksum_mode.as_ref());
        let mut head = self.files.head_object(request).await?;
        head.output.checksum_sha256 = head.output.checksum_sha256.or(kept);
        Ok(head)
    }
}
