//! Pushing an image to a registry: ECR, or any other that speaks the [distribution specification].
//!
//! What is there already is never sent: first the tag is looked up, then every blob. Blobs go first, then manifests by
//! their digests, children before their index, and the tag last, so that whoever pulls by the tag gets all or nothing. A
//! push that was interrupted at any point is finished by running it again.
//!
//! [distribution specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md

mod address;
mod auth;
mod blob;
mod client;
mod ecr;
mod error;

use std::fs::File;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bundle_core::digest::Digest;
use bundle_core::image::{BlobDigest, Document, Layout};
use bundle_core::interrupt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;

use crate::aws;
use crate::progress::Progress;

use address::is_tag;
use blob::Source;
use client::{Body, Client, Request, Response};
use ecr::{Created, Ecr};
use error::Failure;

pub(crate) use address::Repository;
pub(crate) use error::Error;

/// Blobs that are sent at once. A release's image has six, two of them large.
const PARALLEL: usize = 4;
/// How often progress and signals are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Everything that a tag can be.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// What to push, and where.
#[derive(Debug)]
pub(crate) struct Push<'a> {
    /// An image file with an OCI layout.
    pub(crate) image: &'a Path,
    /// What the release's signed manifest calls the image by. Everything that is sent is hashed against it on the way, so
    /// whoever changes the file after it was verified gains nothing.
    pub(crate) digest: &'a str,
    /// Where it goes.
    pub(crate) repository: &'a Repository,
    /// The tag that it gets. An existing one is never moved.
    pub(crate) tag: &'a str,
    /// Make the repository in ECR if it is not there.
    pub(crate) create_repository: bool,
    /// Another repository of the same registry that may have some of the blobs.
    pub(crate) mount_from: Option<&'a str>,
    /// Resource tags for a repository that is made.
    pub(crate) tags: &'a [(String, String)],
}

/// An image that is in a registry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Pushed {
    /// `HOST/NAME:TAG@DIGEST`.
    pub(crate) reference: String,
    /// `sha256:…` of the index, or of the only manifest.
    pub(crate) digest: String,
    /// Blobs that were sent.
    pub(crate) blobs_sent: usize,
    /// Blobs that were there.
    pub(crate) blobs_present: usize,
    /// Blobs that were taken from another repository of the registry.
    pub(crate) blobs_mounted: usize,
    /// Size of the blobs that were sent.
    pub(crate) bytes_sent: u64,
}

/// Pushes an image. If the tag is there with the same digest, nothing is sent.
///
/// # Errors
/// See [`Error`]. The tag is written last, so it does not exist then unless it did before.
pub(crate) async fn push(connection: &aws::Connection, push: &Push<'_>, progress: &Progress) -> Result<Pushed, Error> {
    if !is_tag(push.tag) {
        return Err(Error::Tag(push.tag.chars().take(200).collect()));
    }
    if let Some(from) = push.mount_from.filter(|from| !address::is_name(from)) {
        return Err(Error::MountFrom(from.chars().take(200).collect()));
    }
    let read = |source| Error::Read { path: push.image.to_owned(), source };
    let file = File::open(push.image).map_err(read)?;
    let layout = Layout::read(&file).map_err(|source| Error::Image { path: push.image.to_owned(), source })?;
    if layout.root().digest.to_string() != push.digest {
        return Err(Error::Changed { path: push.image.to_owned(), digest: push.digest.to_owned() });
    }
    let total = layout.blobs.iter().map(|blob| blob.size).sum();
    let (notices, receiver) = mpsc::unbounded_channel();
    let mut scopes = vec![format!("repository:{}:pull,push", push.repository.name())];
    scopes.extend(push.mount_from.map(|from| format!("repository:{from}:pull")));
    let repository = push.repository;
    let open = open(connection, repository, scopes, notices, push.create_repository.then_some(push.tags));
    let (client, mut receiver) = watch(progress, None, receiver, open).await?;
    let client = Arc::new(client);
    let work = send_image(&client, push, Arc::new(file), &layout);
    let shown = Some((client.as_ref(), total));
    let pushed;
    (pushed, receiver) = watch(progress, shown, receiver, work).await?;
    drop(receiver);
    Ok(pushed)
}

/// The digest that a tag has, if it exists.
///
/// # Errors
/// See [`Error`].
pub(crate) async fn resolve(
    connection: &aws::Connection,
    repository: &Repository,
    tag: &str,
) -> Result<Option<String>, Error> {
    if !is_tag(tag) {
        return Err(Error::Tag(tag.chars().take(200).collect()));
    }
    let (notices, _receiver) = mpsc::unbounded_channel();
    let scopes = vec![format!("repository:{}:pull", repository.name())];
    let client = open(connection, repository, scopes, notices, None).await?;
    digest_of(&client, tag).await
}

/// Runs `work`, shows what it says and how far it is, and ends it when a signal comes.
async fn watch<T>(
    progress: &Progress,
    shown: Option<(&Client, u64)>,
    mut notices: mpsc::UnboundedReceiver<String>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<(T, mpsc::UnboundedReceiver<String>), Error> {
    let mut work = pin!(work);
    let mut tick = time::interval(TICK);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            Some(notice) = notices.recv() => progress.line(notice),
            _ = tick.tick() => {
                interrupt::check().map_err(Error::Interrupted)?;
                if let Some((client, total)) = shown {
                    // What is sent again after a failure counts once.
                    let sent = client.sent.load(Ordering::Relaxed).min(total);
                    if sent > 0 {
                        progress.amount("push the image", sent, total);
                    }
                }
            }
        }
    };
    while let Ok(notice) = notices.try_recv() {
        progress.line(notice);
    }
    Ok((done?, notices))
}

/// Finds out how the registry is reached and what it wants to see. `create` are the tags of a repository to be made.
async fn open(
    connection: &aws::Connection,
    repository: &Repository,
    scopes: Vec<String>,
    notices: mpsc::UnboundedSender<String>,
    create: Option<&[(String, String)]>,
) -> Result<Client, Error> {
    let client = |secure| {
        let connector = connection.connector.clone();
        Client::new(connector, repository.base(secure), repository.clone(), scopes.clone(), notices.clone())
    };
    if let Some(registry) = repository.ecr() {
        let client = client(true);
        let ecr = Ecr::of(connection, &registry)?;
        if let Some(tags) = create {
            create_repository(&client, &ecr, tags).await?;
        }
        return Ok(client.with_authorization(ecr.authorization().await?));
    }
    // An emulator's registry has any name. What it says about the repository tells whether it is its own.
    let ecr = Ecr::emulated(connection)?;
    let mut is_ecr = false;
    if let Some(tags) = create {
        let not_ecr = || Error::NotEcr { repository: repository.to_string() };
        let ecr = ecr.as_ref().ok_or_else(not_ecr)?;
        create_repository(&client(true), ecr, tags).await?;
        is_ecr = ecr.describe(repository.name()).await?.is_some_and(|described| described.is(repository));
        if !is_ecr {
            return Err(not_ecr());
        }
    }
    let credentials = auth::of_docker(&repository.registry())?;
    let (client, first) = ping(connection, client).await?;
    let wants_credentials = first.status == 401 && credentials.is_none();
    if let Some(ecr) = ecr.filter(|_| is_ecr || wants_credentials)
        && (is_ecr || ecr.describe(repository.name()).await?.is_some_and(|described| described.is(repository)))
    {
        return Ok(client.with_authorization(ecr.authorization().await?));
    }
    Ok(client.with_credentials(credentials))
}

/// Asks the registry whether it is one. Where plain HTTP is accepted, TLS is tried first, and a certificate that is not
/// accepted is no reason to do without.
async fn ping(connection: &aws::Connection, client: impl Fn(bool) -> Client) -> Result<(Client, Response), Error> {
    let secure = client(true);
    let ask = async |client: &Client| {
        let url = client.at("");
        client.retry(|| client.exchange("GET", &url, &[], Body::Empty, None)).await
    };
    if !connection.allow_http {
        let response = ask(&secure).await?;
        return Ok((secure, response));
    }
    let once = secure.exchange("GET", &secure.at(""), &[], Body::Empty, None).await;
    match once {
        Ok(response) => Ok((secure, response)),
        Err(Failure::Final(error @ (Error::Tls { .. } | Error::Proxy { .. }))) => Err(error),
        Err(Failure::Final(_) | Failure::Transient { .. }) => {
            let plain = client(false);
            let response = ask(&plain).await?;
            Ok((plain, response))
        }
    }
}

async fn create_repository(client: &Client, ecr: &Ecr, tags: &[(String, String)]) -> Result<(), Error> {
    let repository = client.repository();
    match ecr.create(repository.name(), tags).await? {
        Created::New => client.say(format!("made the repository {repository}")),
        Created::Existing => {
            let described = ecr.describe(repository.name()).await?;
            if described.is_some_and(|described| described.is_mutable) {
                client.say(format!(
                    "warning: the repository {repository} exists, and tags in it can be moved: whoever may push can \
                     replace this image; make its tags immutable"
                ));
            }
        }
    }
    Ok(())
}

async fn send_image(client: &Arc<Client>, push: &Push<'_>, file: Arc<File>, layout: &Layout) -> Result<Pushed, Error> {
    let digest = layout.root().digest.to_string();
    let reference = format!("{}:{}", push.repository, push.tag);
    let taken = |existing: String| Error::TagTaken { reference: reference.clone(), existing, ours: digest.clone() };
    let mut pushed = Pushed {
        reference: format!("{reference}@{digest}"),
        digest: digest.clone(),
        blobs_sent: 0,
        blobs_present: 0,
        blobs_mounted: 0,
        bytes_sent: 0,
    };
    match digest_of(client, push.tag).await? {
        Some(existing) if existing == digest => {
            pushed.blobs_present = layout.blobs.len();
            return Ok(pushed);
        }
        Some(existing) => return Err(taken(existing)),
        None => {}
    }
    send_blobs(client, push, file, layout, &mut pushed).await?;
    for document in &layout.documents {
        let name = document.digest.to_string();
        if digest_of(client, &name).await?.is_none() {
            client.retry(|| put_document(client, document, &name)).await?;
        }
    }
    let tagged = client.retry(|| put_document(client, layout.root(), push.tag)).await;
    // Whatever the answer was: the tag is what counts, and another push may have been faster.
    match (digest_of(client, push.tag).await, tagged) {
        (Ok(Some(existing)), _) if existing == digest => Ok(pushed),
        (Ok(Some(existing)), _) => Err(taken(existing)),
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(error),
        (Ok(None), Ok(())) => Err(client.protocol("write the tag", "it has no such tag afterwards")),
    }
}

async fn send_blobs(
    client: &Arc<Client>,
    push: &Push<'_>,
    file: Arc<File>,
    layout: &Layout,
    pushed: &mut Pushed,
) -> Result<(), Error> {
    let mut waiting = layout.blobs.iter();
    // Dropping it ends what is still running, so an error of one blob does not wait for the others.
    let mut running = JoinSet::new();
    loop {
        while running.len() < PARALLEL
            && let Some(&blob) = waiting.next()
        {
            let (client, source) = (Arc::clone(client), Source { file: Arc::clone(&file), blob });
            let (from, path) = (push.mount_from.map(str::to_owned), push.image.to_owned());
            running.spawn(async move {
                let sent = client.retry(|| send_blob(&client, &source, from.as_deref(), &path)).await;
                sent.map(|sent| (sent, blob.size))
            });
        }
        let Some(finished) = running.join_next().await else {
            return Ok(());
        };
        // A task that panicked has said so already; there is nothing to go on with.
        let finished = finished.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        match finished? {
            (Arrival::Present, _) => pushed.blobs_present += 1,
            (Arrival::Mounted, _) => pushed.blobs_mounted += 1,
            (Arrival::Uploaded, size) => {
                pushed.blobs_sent += 1;
                pushed.bytes_sent += size;
            }
        }
    }
}

/// How a blob came to be there.
enum Arrival {
    Present,
    Mounted,
    Uploaded,
}

/// One attempt: look, ask for a mount, send.
async fn send_blob(client: &Client, source: &Source, from: Option<&str>, path: &Path) -> Result<Arrival, Failure> {
    let name = client.repository().name();
    let digest = source.blob.digest.to_string();
    let doing = format!("push the blob {digest}");
    let request = |method, url, headers, body| Request { method, url, headers, body, doing: &doing };
    let seen = client.send(&request("HEAD", client.at(&format!("{name}/blobs/{digest}")), vec![], Body::Empty)).await?;
    match seen.status {
        200 => return Ok(Arrival::Present),
        404 => {}
        _ => return Err(client.refused(&doing, &seen)),
    }
    let uploads = client.at(&format!("{name}/blobs/uploads/"));
    let mut session = None;
    if let Some(from) = from {
        let url = uploads.clone().with_parameter("mount", &digest).with_parameter("from", from);
        let answer = client.send(&request("POST", url, vec![], Body::Empty)).await?;
        match answer.status {
            201 => return Ok(Arrival::Mounted),
            202 => session = Some(answer),
            429 | 500.. => return Err(client.refused(&doing, &answer)),
            // It does not mount, or not from there: then the blob is sent.
            _ => {}
        }
    }
    let session = match session {
        Some(session) => session,
        None => client.send(&request("POST", uploads, vec![], Body::Empty)).await?,
    };
    if session.status != 202 {
        return Err(client.refused(&doing, &session));
    }
    let target = client.follow(&session.url, session.header("location"), &doing)?.with_parameter("digest", &digest);
    let headers = vec![("content-type", "application/octet-stream".to_owned())];
    let answer = client.send(&request("PUT", target, headers, Body::Blob(source))).await;
    let answer = answer.map_err(|failure| match failure {
        Failure::Transient { error: Error::Unreachable { reason, .. }, .. } if reason.contains(blob::CHANGED) => {
            Failure::Final(Error::Changed { path: path.to_owned(), digest: digest.clone() })
        }
        other => other,
    })?;
    match answer.status {
        201 | 204 => Ok(Arrival::Uploaded),
        // The session expired, or was lost with the server that had it: a new one is another attempt.
        404 if answer.code() == "BLOB_UPLOAD_UNKNOWN" => Err(Failure::Transient {
            error: client.protocol(&doing, "the upload was forgotten while it went on"),
            after: None,
        }),
        _ => Err(client.refused(&doing, &answer)),
    }
}

async fn put_document(client: &Client, document: &Document, reference: &str) -> Result<(), Failure> {
    let doing = format!("push the manifest {reference}");
    let answer = client
        .send(&Request {
            method: "PUT",
            url: client.at(&format!("{}/manifests/{reference}", client.repository().name())),
            headers: vec![("content-type", document.media_type.clone())],
            body: Body::Bytes(&document.bytes),
            doing: &doing,
        })
        .await?;
    if !matches!(answer.status, 200 | 201) {
        return Err(client.refused(&doing, &answer));
    }
    match answer.header("docker-content-digest") {
        Some(digest) if digest != document.digest.to_string() => {
            let reason = format!("it stored {} under the digest {}", document.digest, digest.escape_debug());
            Err(client.protocol(&doing, &reason).into())
        }
        _ => Ok(()),
    }
}

/// The digest of what a tag or digest names, if it is there.
async fn digest_of(client: &Client, reference: &str) -> Result<Option<String>, Error> {
    client.retry(|| look_up(client, reference)).await
}

async fn look_up(client: &Client, reference: &str) -> Result<Option<String>, Failure> {
    let doing = format!("look up {reference}");
    let mut request = Request {
        method: "HEAD",
        url: client.at(&format!("{}/manifests/{reference}", client.repository().name())),
        headers: vec![("accept", ACCEPT.to_owned())],
        body: Body::Empty,
        doing: &doing,
    };
    let answer = client.send(&request).await?;
    match (answer.status, answer.header("docker-content-digest")) {
        (200, Some(digest)) => {
            let digest = digest.parse::<BlobDigest>();
            let digest = digest.map_err(|error| client.protocol(&doing, &error.to_string()))?;
            return Ok(Some(digest.to_string()));
        }
        (200, None) => {}
        (404, _) => return Ok(None),
        (408 | 429 | 500.., _) => return Err(client.refused(&doing, &answer)),
        // An answer to HEAD has no text that would say why.
        _ => {}
    }
    request.method = "GET";
    let answer = client.send(&request).await?;
    match answer.status {
        200 => Ok(Some(BlobDigest(Digest::of(&answer.body)).to_string())),
        404 => Ok(None),
        _ => Err(client.refused(&doing, &answer)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write as _;

    use bundle_core::image::{Architecture, LauncherImage};

    use super::*;

    /// The file may have been exchanged as a whole since it was verified. That is noticed before anything is asked of
    /// anyone: nothing listens where this push would go.
    #[test]
    fn another_image_than_the_signed_one_is_refused() {
        let mut launcher = b"\x7fELF\x02\x01\x01".to_vec();
        launcher.resize(64, 0);
        (launcher[16], launcher[18]) = (2, 62);
        let built = LauncherImage {
            version: &"v1.2.3".parse().unwrap(),
            commit: &bundle_core::source::Commit::Known("0123456789abcdef0123456789abcdef01234567".to_owned()),
            source: &"https://example.com/product".parse().unwrap(),
            date: "1700000000".parse().unwrap(),
            launchers: BTreeMap::from([(Architecture::X86_64, launcher)]),
        };
        let built = built.build().unwrap();
        let mut image = tempfile::NamedTempFile::new().unwrap();
        image.write_all(&built.tar).unwrap();
        let repository: Repository = "127.0.0.1:1/a".parse().unwrap();
        let refused = |digest: &str| {
            let push = Push {
                image: image.path(),
                digest,
                repository: &repository,
                tag: "v1.2.3",
                create_repository: true,
                mount_from: None,
                tags: &[],
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let options = aws::Options { region: Some("eu-west-1".into()), ..aws::Options::default() };
                let connection = aws::Connection::open(&options).await.unwrap();
                super::push(&connection, &push, &Progress::new()).await.unwrap_err()
            })
        };
        let other = format!("sha256:{}", "0".repeat(64));
        let error = refused(&other);
        assert!(matches!(&error, Error::Changed { digest, .. } if *digest == other), "{error}");
        // The right one gets further: only ECR makes repositories.
        assert!(matches!(refused(&built.summary.digest.to_string()), Error::NotEcr { .. }));
    }
}
