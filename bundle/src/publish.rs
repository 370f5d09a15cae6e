//! Publishing: from a verified release to a downloads bucket that no reader ever sees half-written.
//!
//! The order is what makes that true. First the version is claimed for this build under `claims/VERSION`. Everything of a version lies below `releases/VERSION/`, is written once and never
//! again, and is checked after it was written. Only then do the few keys change that have no version in their name, and
//! last of all the pointer by which readers find the version. So a reader that follows the pointer finds a whole release,
//! whenever the publisher was killed; and running it again goes on where it stopped.

mod bucket;
mod directory;
mod object;
mod s3;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bundle_core::digest::Digest;
use bundle_core::launcher_sums::LauncherSums;
use bundle_core::manifest::{MANIFEST, MANIFEST_SIGNATURE, MAX_MANIFEST, Manifest};
use bundle_core::private::PrivateRelease;
use bundle_core::signature::{self, MAX_SIGNATURE, PinnedCerts, Threshold};
use bundle_core::{archive, sums};
use tokio::task::JoinSet;

pub(crate) use self::bucket::Bucket;
use self::directory::Directory;
use self::object::{Object, WHOLE};
use self::s3::S3;
use crate::aws::Connection;
use crate::failure::{Failure, Kind};
use crate::progress::Progress;

/// Objects on the way at once. The parts that they are sent in are limited on their own.
const OBJECTS_IN_FLIGHT: usize = 8;

/// Why a release was not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] Failure),
    /// Other bytes are there already under a name that is written only once.
    #[error(
        "{address} is there already with other contents ({reason}): a version is published once and never changed. Publish \
         this build under a new version, or find out who published the other one"
    )]
    OtherContents {
        /// Where.
        address: String,
        /// What differs.
        reason: String,
    },
    /// What was written is not what can be read back.
    #[error(
        "{address} was written and is not right when it is read back: {reason}; is this really a store for us alone?"
    )]
    NotAsWritten {
        /// Where.
        address: String,
        /// What differs.
        reason: String,
    },
    /// The pointer in the bucket cannot be trusted, or forbids this release.
    #[error("{address}: {reason}")]
    Pointer {
        /// Where.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The version is not in the bucket, or not whole.
    #[error("{version} cannot be promoted: {reason}")]
    NotPublished {
        /// The version.
        version: String,
        /// What is missing.
        reason: String,
    },
    /// The private copy cannot be read.
    #[error("cannot read the private copy of {path}: {source}")]
    Read {
        /// The file in the release.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// What is under a key.
#[derive(Debug, Clone)]
pub(crate) struct Existing {
    /// Length in bytes.
    size: u64,
    /// Its digest, if the store keeps it.
    sha256: Option<Digest>,
    /// What the store calls this state of the object.
    etag: Option<String>,
}

impl Existing {
    fn is(&self, object: &Object) -> bool {
        self.size == object.size && self.sha256 == Some(object.sha256)
    }
}

/// What a create-only write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Written,
    /// Something is there already; what it is was not looked at.
    Exists,
}

/// What a bucket is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A bucket that is open.
#[derive(Clone)]
pub(crate) enum Store {
    S3(S3),
    Directory(Arc<Directory>),
}

impl Store {
    /// Opens `bucket`. `owner` is the account that it must belong to.
    ///
    /// # Errors
    /// The bucket is not there, or not for these credentials; a directory cannot be made or is in use.
    pub(crate) async fn open(
        bucket: &Bucket,
        access: Access,
        connection: Option<&Connection>,
        owner: Option<&str>,
    ) -> Result<Self, Failure> {
        match (bucket, connection) {
            (Bucket::Directory(path), _) => Ok(Self::Directory(Arc::new(match access {
                Access::Read => Directory::reading(path),
                Access::Write => Directory::writing(path)?,
            }))),
            (Bucket::S3 { name, prefix }, Some(connection)) => {
                let s3 = S3::new(connection, name, prefix, owner);
                s3.check().await?;
                Ok(Self::S3(s3))
            }
            (Bucket::S3 { .. }, None) => Err(Failure::new("open the bucket", Kind::Wrong, "there is no connection")),
        }
    }

    async fn create(&self, object: &Object) -> Result<Put, Failure> {
        match self {
            Self::S3(s3) => s3.create(object).await,
            Self::Directory(directory) => directory.create(object),
        }
    }

    async fn replace(&self, object: &Object, expected: Option<&Existing>) -> Result<(), Failure> {
        match self {
            Self::S3(s3) => s3.replace(object, expected).await,
            Self::Directory(directory) => directory.replace(object),
        }
    }

    async fn existing(&self, key: &str) -> Result<Option<Existing>, Failure> {
        match self {
            Self::S3(s3) => s3.existing(key).await,
            Self::Directory(directory) => directory.existing(key),
        }
    }

    /// Whether the object is there with its bytes; otherwise what differs.
    async fn is_there(&self, object: &Object) -> Result<Result<(), String>, Failure> {
        match self {
            Self::S3(s3) => s3.is_there(object).await,
            Self::Directory(directory) => Ok(match directory.existing(&object.key)? {
                Some(existing) if existing.is(object) => Ok(()),
                Some(existing) => Err(match existing.sha256 {
                    Some(found) => format!("its SHA-256 there is {found}, here {}", object.sha256),
                    None => "its bytes differ".into(),
                }),
                None => Err("it is not there".into()),
            }),
        }
    }

    /// Whether what was found has the object's bytes. Not every store keeps digests; then the bytes are read.
    async fn holds(&self, found: Option<&Existing>, object: &Object) -> Result<bool, Failure> {
        Ok(match found {
            Some(Existing { size, sha256: None, .. }) if *size == object.size => self.is_there(object).await?.is_ok(),
            Some(found) => found.is(object),
            None => false,
        })
    }

    async fn read(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Self::S3(s3) => s3.read(key, limit).await,
            Self::Directory(directory) => directory.read(key, limit),
        }
    }
}

/// The key of a channel's pointer.
pub(crate) fn pointer_key(channel: &str) -> String {
    format!("channel/{channel}.json")
}

/// What a channel points to: the manifest of the release that it was moved to last.
#[derive(Debug)]
pub(crate) struct Pointer {
    /// The manifest.
    pub(crate) manifest: Manifest,
    existing: Option<Existing>,
}

/// Whose signature on a pointer counts.
pub(crate) struct Trust<'a> {
    /// The pinned certificates.
    pub(crate) pinned: &'a PinnedCerts,
    /// How many must have signed.
    pub(crate) threshold: Threshold,
}

/// Reads a channel's pointer and checks its signature; `None` if nothing was published to the channel yet.
///
/// # Errors
/// It cannot be read, or nobody who is pinned signed it.
pub(crate) async fn read_pointer(
    store: &Store,
    bucket: &Bucket,
    channel: &str,
    trust: &Trust<'_>,
) -> Result<Option<Pointer>, Error> {
    let key = pointer_key(channel);
    let refuse = |reason: String| Error::Pointer { address: bucket.address(&key), reason };
    let existing = store.existing(&key).await?;
    if existing.is_none() {
        return Ok(None);
    }
    let Some(bytes) = store.read(&key, MAX_MANIFEST as u64).await? else { return Ok(None) };
    let manifest = Manifest::from_bytes(&bytes).map_err(|error| refuse(format!("it cannot be used: {error}")))?;
    // The signature beside the pointer changes after the pointer does; the one beside the release never changes.
    let signature_key = format!("releases/{}/{MANIFEST_SIGNATURE}", manifest.version);
    let signature = store.read(&signature_key, MAX_SIGNATURE as u64).await?;
    let signature = signature.ok_or_else(|| refuse(format!("there is no {}", bucket.address(&signature_key))))?;
    signature::verify(&bytes, &signature, trust.pinned, trust.threshold, std::time::SystemTime::now()).map_err(
        |error| {
            refuse(format!(
                "what the bucket says is published cannot be trusted: {error}. If its signer is retired, pin the retired \
                 certificate as well with --cert, or remove the pointer"
            ))
        },
    )?;
    if manifest.channel != channel {
        return Err(refuse(format!("it is of the channel {:?}", manifest.channel)));
    }
    Ok(Some(Pointer { manifest, existing }))
}

/// What to publish, and where.
pub(crate) struct Request<'a> {
    /// The release.
    pub(crate) release: &'a PrivateRelease,
    /// The bucket.
    pub(crate) bucket: &'a Bucket,
    /// The pointer as [`read_pointer`] found it, which verification took for what is installed.
    pub(crate) current: Option<&'a Pointer>,
    /// Whether the channel's pointer and the keys without a version move to this release.
    pub(crate) promote: bool,
}

/// What publishing came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// Objects that were written.
    pub(crate) written: usize,
    /// Objects that were there already with the same bytes.
    pub(crate) present: usize,
    /// Mutable keys that were changed, the pointer included.
    pub(crate) moved: usize,
    /// Uploads that others had left unfinished.
    pub(crate) aborted: usize,
}

/// The part of publishing that no reader sees: everything below `releases/VERSION/`, written and read back.
///
/// # Errors
/// See [`Error`]. Running it again goes on where it stopped.
pub(crate) async fn upload(store: &Store, request: &Request<'_>, progress: &Arc<Progress>) -> Result<Published, Error> {
    let stages = stages(request.release)?;
    let mut published = Published::default();
    claim(store, request).await?;
    let total: u64 = stages.iter().flatten().map(|object| object.size).sum();
    let version = &request.release.manifest().version;
    progress.line(format_args!(
        "uploading {} objects, {:.1} MB, to {}",
        stages.iter().map(Vec::len).sum::<usize>(),
        total as f64 / 1e6,
        request.bucket.address(&format!("releases/{version}/"))
    ));
    let ticker = Ticker::start(store, Arc::clone(progress), total);
    for stage in &stages {
        for (object, put) in each(store, stage, |store, object| async move { store.create(&object).await }).await? {
            match put {
                Put::Written => published.written += 1,
                Put::Exists => {
                    if let Err(reason) = store.is_there(&object).await? {
                        return Err(Error::OtherContents { address: request.bucket.address(&object.key), reason });
                    }
                    published.present += 1;
                }
            }
        }
    }
    drop(ticker);
    progress.line("reading back");
    for stage in &stages {
        for (object, right) in each(store, stage, |store, object| async move { store.is_there(&object).await }).await? {
            if let Err(reason) = right {
                return Err(Error::NotAsWritten { address: request.bucket.address(&object.key), reason });
            }
        }
    }
    if let Store::S3(s3) = store {
        published.aborted = s3.abort_abandoned(&format!("releases/{version}/")).await?;
    }
    Ok(published)
}

/// What publishing would do, found out without writing anything.
///
/// # Errors
/// See [`Error`]: also those that publishing would end with.
pub(crate) async fn plan(store: &Store, request: &Request<'_>) -> Result<Published, Error> {
    let mut plan = Published::default();
    let claim = claim_object(request.release)?;
    if store.existing(&claim.key).await?.is_some()
        && let Err(reason) = store.is_there(&claim).await?
    {
        return Err(Error::OtherContents { address: request.bucket.address(&claim.key), reason });
    }
    for stage in &stages(request.release)? {
        for (object, existing) in
            each(store, stage, |store, object| async move { store.existing(&object.key).await }).await?
        {
            if existing.is_none() {
                plan.written += 1;
            } else if let Err(reason) = store.is_there(&object).await? {
                return Err(Error::OtherContents { address: request.bucket.address(&object.key), reason });
            } else {
                plan.present += 1;
            }
        }
    }
    if request.promote {
        let manifest = request.release.manifest();
        let mut objects = mutable(request.release.path(), manifest)?;
        objects.extend(pointer(request.release.path(), manifest)?);
        for object in objects {
            let existing = store.existing(&object.key).await?;
            plan.moved += usize::from(!store.holds(existing.as_ref(), &object).await?);
        }
    }
    Ok(plan)
}

/// Takes the version for this build, before anything else is written: of two builds that are published under one version at
/// the same time, one must not get as far as writing its files between the other's.
async fn claim(store: &Store, request: &Request<'_>) -> Result<(), Error> {
    let object = claim_object(request.release)?;
    if store.create(&object).await? == Put::Exists
        && let Err(reason) = store.is_there(&object).await?
    {
        let version = &request.release.manifest().version;
        return Err(Error::OtherContents {
            address: request.bucket.address(&format!("releases/{version}/")),
            reason: format!("{} belongs to another build: {reason}", object.key),
        });
    }
    Ok(())
}

fn claim_object(release: &PrivateRelease) -> Result<Object, Error> {
    let path = release.path().join(MANIFEST);
    let manifest = std::fs::read(&path).map_err(|source| Error::Read { path: MANIFEST.into(), source })?;
    let line = sums::line(Digest::of(&manifest), MANIFEST);
    Ok(Object::of_bytes(format!("claims/{}", release.manifest().version), line.into_bytes()))
}

/// The part that readers see: the keys without a version, then the channel's pointer. What is there already is not written
/// again.
///
/// # Errors
/// See [`Error`]. Running it again goes on where it stopped.
pub(crate) async fn point(
    store: &Store,
    bucket: &Bucket,
    release: &Path,
    manifest: &Manifest,
    current: Option<&Pointer>,
    progress: &Progress,
) -> Result<usize, Error> {
    let mut moved = 0;
    for object in mutable(release, manifest)? {
        let existing = store.existing(&object.key).await?;
        if !store.holds(existing.as_ref(), &object).await? {
            store.replace(&object, existing.as_ref()).await?;
            moved += 1;
        }
    }
    // Who moved the pointer since it was read published something that this release was not compared with.
    let [pointer, signature] = pointer(release, manifest)?;
    let found = current.and_then(|current| current.existing.as_ref());
    if !store.holds(found, &pointer).await? {
        store.replace(&pointer, found).await?;
        moved += 1;
    }
    let existing = store.existing(&signature.key).await?;
    if !store.holds(existing.as_ref(), &signature).await? {
        store.replace(&signature, existing.as_ref()).await?;
        moved += 1;
    }
    if moved > 0 {
        progress.line(format_args!("{} points to {}", bucket.address(&pointer.key), manifest.version));
    }
    Ok(moved)
}

/// A release that is in the bucket already, fetched to `directory` as far as moving the pointer needs it.
///
/// # Errors
/// It is not there, not whole, or nobody who is pinned signed it.
pub(crate) async fn fetch_published(
    store: &Store,
    bucket: &Bucket,
    version: &str,
    trust: &Trust<'_>,
    directory: &Path,
) -> Result<Manifest, Error> {
    let refuse = |reason: String| Error::NotPublished { version: version.to_owned(), reason };
    let key = |name: &str| format!("releases/{version}/{name}");
    let missing = |name: &str| refuse(format!("there is no {}; publish it first", bucket.address(&key(name))));
    let read = async |name: &str, limit: u64| -> Result<Vec<u8>, Error> {
        store.read(&key(name), limit).await?.ok_or_else(|| missing(name))
    };
    let manifest_bytes = read(MANIFEST, MAX_MANIFEST as u64).await?;
    let signature = read(MANIFEST_SIGNATURE, MAX_SIGNATURE as u64).await?;
    let now = std::time::SystemTime::now();
    signature::verify(&manifest_bytes, &signature, trust.pinned, trust.threshold, now)
        .map_err(|error| refuse(format!("its manifest: {error}")))?;
    let manifest = Manifest::from_bytes(&manifest_bytes).map_err(|error| refuse(format!("its manifest: {error}")))?;
    if manifest.version.to_string() != version {
        return Err(refuse(format!("what lies there is {}", manifest.version)));
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        let parent = path.parent().map(Path::to_owned).unwrap_or_default();
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, bytes))
            .map_err(|source| Error::Read { path: name.to_owned(), source })
    };
    write(MANIFEST, &manifest_bytes)?;
    write(MANIFEST_SIGNATURE, &signature)?;
    for sums in LauncherSums::of(&manifest) {
        let signature = read(&sums.signature_name(), MAX_SIGNATURE as u64).await?;
        signature::verify(sums.text().as_bytes(), &signature, trust.pinned, trust.threshold, now)
            .map_err(|error| refuse(format!("the sums of {}: {error}", sums.name)))?;
        write(&sums.signature_name(), &signature)?;
        let launcher = read(sums.path, WHOLE).await?;
        if Digest::of(&launcher) != sums.sha256 {
            return Err(refuse(format!("{} is not the one that was signed", bucket.address(&key(sums.path)))));
        }
        write(sums.path, &launcher)?;
    }
    // Everything else must be there as well, or readers who follow the pointer would find a part of a release.
    for file in &manifest.files {
        match store.existing(&key(file.path.as_str())).await? {
            Some(existing) if existing.size == file.size => {}
            Some(_) => return Err(refuse(format!("{} has another length", bucket.address(&key(file.path.as_str()))))),
            None => return Err(missing(file.path.as_str())),
        }
    }
    Ok(manifest)
}

/// Everything below `releases/VERSION/`, in the order in which it is written: payloads, manifest, sums, signatures.
fn stages(release: &PrivateRelease) -> Result<[Vec<Object>; 4], Error> {
    let manifest = release.manifest();
    let root = release.path();
    let key = |name: &str| format!("releases/{}/{name}", manifest.version);
    let open = |name: &str, path: PathBuf, size, sha256| {
        Object::of_path(key(name), &path, size, sha256).map_err(|source| Error::Read { path: name.to_owned(), source })
    };
    let small = |name: &str| {
        let bytes = std::fs::read(root.join(name)).map_err(|source| Error::Read { path: name.to_owned(), source })?;
        Ok::<_, Error>(Object::of_bytes(key(name), bytes))
    };
    let (mut payloads, mut sums_files, mut signatures) = (Vec::new(), Vec::new(), vec![small(MANIFEST_SIGNATURE)?]);
    for file in &manifest.files {
        let name = file.path.as_str();
        payloads.push(open(name, root.join(name), file.size, file.sha256)?);
    }
    for sums in LauncherSums::of(manifest) {
        let launcher =
            payloads.iter().find(|object| object.key == key(sums.path)).map(|object| object.under(key(sums.name)));
        payloads.extend(launcher);
        sums_files.push(Object::of_bytes(key(&sums.sums_name()), sums.text().into_bytes()));
        signatures.push(small(&sums.signature_name())?);
    }
    if let Some(signed) = release.archive() {
        let name = format!("{}{}", manifest.root(), archive::SUFFIX);
        let (sha256, size) = signed.digest();
        let copy = signed.copy().map_err(|source| Error::Read { path: name.clone(), source })?;
        payloads.push(Object::of_file(key(&name), copy, size, sha256));
        let of_sums = format!("{name}{}", sums::SUFFIX);
        sums_files.push(Object::of_bytes(key(&of_sums), signed.sums()));
        signatures.push(Object::of_bytes(key(&format!("{of_sums}{}", sums::SIGNATURE_SUFFIX)), signed.signature()));
    }
    Ok([payloads, vec![small(MANIFEST)?], sums_files, signatures])
}

/// The keys that existing installations read, which have no version in their names.
fn mutable(release: &Path, manifest: &Manifest) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    for sums in LauncherSums::of(manifest) {
        let size = manifest.file(sums.path).map_or(0, |file| file.size);
        let launcher = Object::of_path(sums.name.to_owned(), &release.join(sums.path), size, sums.sha256)
            .map_err(|source| Error::Read { path: sums.path.to_owned(), source })?;
        let name = sums.signature_name();
        let signature =
            std::fs::read(release.join(&name)).map_err(|source| Error::Read { path: name.clone(), source })?;
        let of_sums = Object::of_bytes(sums.sums_name(), sums.text().into_bytes());
        let signature = Object::of_bytes(name, signature);
        if sums.name == "spacelift-launcher-x86_64" {
            // The oldest name, which Terraform modules read.
            let old = |suffix: &str| format!("spacelift-launcher{suffix}");
            let suffix = format!("{}{}", sums::SUFFIX, sums::SIGNATURE_SUFFIX);
            objects.push(launcher.under(old("")));
            objects.push(of_sums.under(old(sums::SUFFIX)));
            objects.push(signature.under(old(&suffix)));
        }
        objects.extend([launcher, of_sums, signature]);
    }
    Ok(objects)
}

fn pointer(release: &Path, manifest: &Manifest) -> Result<[Object; 2], Error> {
    let read =
        |name: &str| std::fs::read(release.join(name)).map_err(|source| Error::Read { path: name.to_owned(), source });
    let key = pointer_key(&manifest.channel);
    let signature_key = format!("{key}{}", sums::SIGNATURE_SUFFIX);
    Ok([Object::of_bytes(key, read(MANIFEST)?), Object::of_bytes(signature_key, read(MANIFEST_SIGNATURE)?)])
}

/// Does something with every object, several at once. The first failure ends it.
async fn each<T, F>(
    store: &Store,
    objects: &[Object],
    work: impl Fn(Store, Object) -> F,
) -> Result<Vec<(Object, T)>, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    let mut waiting = objects.iter();
    loop {
        while running.len() < OBJECTS_IN_FLIGHT {
            let Some(object) = waiting.next() else { break };
            let (object, future) = (object.clone(), work(store.clone(), object.clone()));
            running.spawn(async move { future.await.map(|result| (object, result)) });
        }
        match running.join_next().await {
            Some(Ok(result)) => results.push(result?),
            Some(Err(error)) => return Err(Failure::new("publish", Kind::Wrong, error.to_string())),
            None => return Ok(results),
        }
    }
}

/// Shows how much was sent, until it is dropped.
struct Ticker(Option<tokio::task::JoinHandle<()>>);

impl Ticker {
    fn start(store: &Store, progress: Arc<Progress>, total: u64) -> Self {
        let Store::S3(s3) = store else { return Self(None) };
        let sent = Arc::clone(s3.sent());
        Self(Some(tokio::spawn(async move {
            loop {
                progress.amount("uploading", sent.load(std::sync::atomic::Ordering::Relaxed), total);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
