//! Packing: from a stage directory to an unsigned archive.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sequoia_openpgp::Cert;

use crate::archive::{self, Entry};
use crate::digest::{Digest, HashingReader, HashingWriter};
use crate::manifest::{self, Manifest, Mode, ReleasePath};
use crate::output::OutputFile;
use crate::signature::Fingerprint;
use crate::version::ReleaseVersion;
use crate::{gzip, image, interrupt, signing, worker_template};

/// What to pack. Everything that the manifest says and that does not follow from the files.
pub struct Release {
    /// Product name.
    pub product: String,
    /// Version.
    pub version: ReleaseVersion,
    /// Grows with every release of the channel.
    pub sequence: u64,
    /// Channel.
    pub channel: String,
    /// Whether no release key will sign it.
    pub development: bool,
    /// The commit: 40 hexadecimal digits or `unknown`.
    pub commit: String,
    /// Whether the work tree differed from the commit.
    pub modified: bool,
    /// The commit's time in seconds since 1970.
    pub source_date: u64,
    /// Where the sources are.
    pub source: String,
    /// The oldest version that may be upgraded to this one directly.
    pub minimum_upgrade_from: Option<ReleaseVersion>,
    /// How many signers the vendor intends.
    pub threshold: u32,
    /// Certificates that go to `keys/`.
    pub certificates: Vec<Cert>,
    /// The directory that holds most files under their final names.
    pub stage: PathBuf,
    /// More files: where each comes from.
    pub files: Vec<(ReleasePath, PathBuf)>,
    /// More images: name, and the tar file or OCI layout directory. Each becomes `container-images/NAME.tar`.
    pub images: Vec<(String, PathBuf)>,
}

/// An archive that was packed, and is not signed yet.
#[derive(Debug)]
pub struct Packed {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256, which is the release's payload digest: equal for equal contents, whoever signs.
    pub payload: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Sum of the lengths of the files in it.
    pub unpacked_size: u64,
    /// The manifest in it.
    pub manifest: Manifest,
}

/// Why a release cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something in the stage cannot be part of a release.
    #[error("{} cannot be packed: {reason}", .path.display())]
    NotPackable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An image is not in order.
    #[error("{} is not a usable container image: {source}", .path.display())]
    Image {
        /// The tar file or directory.
        path: PathBuf,
        /// What is wrong with it.
        source: image::Error,
    },
    /// The manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// A certificate cannot be written.
    #[error(transparent)]
    Certificate(#[from] signing::Error),
}

enum Source {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl Source {
    fn open(&self) -> Result<Box<dyn Read + '_>, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(Cursor::new(bytes))),
            Self::Path(path) => {
                let file = File::open(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                Ok(Box::new(file))
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Bytes(_) => PathBuf::from("(generated)"),
        }
    }
}

/// Packs `release` into `PRODUCT-VERSION.unsigned.tar.gz` in `output`. The bytes depend on the contents of the files and
/// on `release` alone: not on directories, users, modes, times or the number of threads.
///
/// # Errors
/// See [`Error`]. Nothing is left under the archive's name.
pub fn pack(release: &Release, output: &Path, threads: usize) -> Result<Packed, Error> {
    // Private, whatever the umask: images are checked there and then packed.
    let scratch = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|source| Error::Write { path: std::env::temp_dir(), source })?;
    let mut sources = collect(release, scratch.path())?;
    sources.sort_by(|a, b| a.0.cmp(&b.0));
    let (manifest, sources) = describe(release, sources, threads)?;
    let manifest_bytes = manifest.to_bytes()?;

    let path = output.join(format!("{}{}", manifest.root(), archive::UNSIGNED_SUFFIX));
    let write = |source| Error::Write { path: path.clone(), source };
    let mut file = OutputFile::create(&path).map_err(write)?;
    let sink = HashingWriter::new(file.writer());
    let mut tar = archive::Writer::new(gzip::Writer::new(sink, threads));
    write_head(&mut tar, &manifest, &manifest_bytes).map_err(write)?;
    for entry in archive::entries(&manifest) {
        match entry {
            Entry::Directory(directory) => {
                archive::directory_header(&manifest, directory)
                    .and_then(|header| tar.header(&header))
                    .map_err(write)?;
            }
            Entry::File(index) => {
                let described = &manifest.files[index];
                let (source, crc) = &sources[index];
                archive::file_header(&manifest, index).and_then(|header| tar.header(&header)).map_err(write)?;
                let mut reader = Checked::new(source.open()?);
                tar.contents(&mut reader, described.size)
                    .map_err(|error| Error::Write { path: path.clone(), source: error })?;
                if reader.crc.sum() != *crc {
                    return Err(Error::NotPackable {
                        path: source.path(),
                        reason: "it changed while it was packed; run the command again".into(),
                    });
                }
            }
        }
    }
    let sink = tar.finish().and_then(gzip::Writer::finish).map_err(write)?;
    let (_, payload, size) = sink.finish();
    file.commit().map_err(write)?;
    let unpacked_size = manifest.files.iter().map(|file| file.size).sum();
    Ok(Packed { path, payload, size, unpacked_size, manifest })
}

/// Writes the first gzip member: the release directory and the manifest.
fn write_head<W: io::Write>(
    tar: &mut archive::Writer<gzip::Writer<W>>,
    manifest: &Manifest,
    bytes: &[u8],
) -> io::Result<()> {
    tar.header(&archive::directory_header(manifest, "")?)?;
    tar.header(&archive::manifest_header(manifest, manifest::MANIFEST, bytes.len())?)?;
    tar.contents(bytes, bytes.len() as u64)?;
    tar.inner().end_member()?;
    Ok(())
}

/// Every file of the release but the manifest, unsorted.
fn collect(release: &Release, scratch: &Path) -> Result<Vec<(ReleasePath, Source)>, Error> {
    let mut sources = Vec::new();
    walk(&release.stage, "", &mut sources)?;
    if let Some((_, source)) = sources.iter_mut().find(|(path, _)| path.as_str() == worker_template::PATH) {
        pin_signers(release, source)?;
    }
    for (path, source) in &release.files {
        sources.push((path.clone(), Source::Path(source.clone())));
    }
    for (name, source) in &release.images {
        let not_packable = |reason: String| Error::NotPackable { path: source.clone(), reason };
        let path = format!("container-images/{name}.tar")
            .parse()
            .map_err(|error: manifest::PathError| not_packable(error.to_string()))?;
        // A layout directory becomes a tar file here; a tar file is copied, so that what is packed is what was checked.
        let copy = scratch.join(format!("{name}.tar"));
        let file = File::create(&copy).map_err(|source| Error::Write { path: copy.clone(), source })?;
        image::normalize(source, file).map_err(|error| Error::Image { path: source.clone(), source: error })?;
        sources.push((path, Source::Path(copy)));
    }
    let generated = |path: &str| -> Result<ReleasePath, Error> {
        path.parse()
            .map_err(|error: manifest::PathError| Error::NotPackable { path: path.into(), reason: error.to_string() })
    };
    sources.push((generated(manifest::VERSION)?, Source::Bytes(format!("{}\n", release.version).into_bytes())));
    for cert in &release.certificates {
        let path = generated(&format!("keys/{}.asc", Fingerprint::of(cert)))?;
        sources.push((path, Source::Bytes(signing::armored_certificate(cert)?)));
    }
    Ok(sources)
}

/// Puts the release's certificates into the template of worker pools.
fn pin_signers(release: &Release, source: &mut Source) -> Result<(), Error> {
    let path = source.path();
    let template = fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let pins = worker_template::Pins {
        version: &release.version,
        certificates: &release.certificates,
        threshold: release.threshold,
    };
    let rendered = worker_template::render(&template, pins)
        .map_err(|error| Error::NotPackable { path, reason: error.to_string() })?;
    *source = Source::Bytes(rendered);
    Ok(())
}

fn walk(stage: &Path, below: &str, sources: &mut Vec<(ReleasePath, Source)>) -> Result<(), Error> {
    let directory = if below.is_empty() { stage.to_owned() } else { stage.join(below) };
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    for entry in fs::read_dir(&directory).map_err(read(&directory))? {
        let entry = entry.map_err(read(&directory))?;
        let path = entry.path();
        let not_packable = |reason: String| Error::NotPackable { path: path.clone(), reason };
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| not_packable("its name is not UTF-8".into()))?;
        let inside = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let kind = entry.file_type().map_err(read(&path))?;
        if kind.is_dir() {
            walk(stage, &inside, sources)?;
        } else if kind.is_file() {
            let inside = inside.parse().map_err(|error: manifest::PathError| not_packable(error.to_string()))?;
            sources.push((inside, Source::Path(path.clone())));
        } else {
            return Err(not_packable("a release holds only regular files and directories".into()));
        }
    }
    Ok(())
}

/// What the manifest says of one file's contents.
struct Described {
    size: u64,
    sha256: Digest,
    /// Of the same bytes, to notice files that change while they are packed. Whoever changes them on purpose gets a
    /// release that no verifier accepts.
    crc: u32,
    image: Option<manifest::Image>,
}

/// Hands on what `inner` gives and takes its CRC-32, which costs a tenth of a digest.
struct Checked<R> {
    inner: R,
    crc: libdeflater::Crc,
}

impl<R> Checked<R> {
    fn new(inner: R) -> Self {
        Self { inner, crc: libdeflater::Crc::new() }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.crc.update(&buffer[..read]);
        Ok(read)
    }
}

/// Reads every file once. Files are shared out among `threads`, since the manifest, which comes first in the archive,
/// waits for all of them.
fn describe(
    release: &Release,
    sources: Vec<(ReleasePath, Source)>,
    threads: usize,
) -> Result<(Manifest, Vec<(Source, u32)>), Error> {
    let described: Vec<OnceLock<Result<Described, Error>>> = sources.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, gzip::MAX_THREADS) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some((path, source)), Some(slot)) = (sources.get(index), described.get(index)) else { return };
                    let result = describe_file(path, source);
                    if result.is_err() {
                        next.store(sources.len(), Ordering::Relaxed);
                    }
                    // Each index is given out once, so the slot is empty.
                    let _ = slot.set(result);
                }
            });
        }
    });
    let mut files = Vec::with_capacity(sources.len());
    let mut images = Vec::new();
    let mut targets = Vec::new();
    let mut kept = Vec::with_capacity(sources.len());
    let mut results: Vec<_> = described.into_iter().map(OnceLock::into_inner).collect();
    // After a failure the rest was not read: report the failure, not what it left undone.
    if let Some(failed) = results.iter_mut().find_map(|result| result.take_if(|result| result.is_err())) {
        failed?;
    }
    for ((path, source), described) in sources.into_iter().zip(results.into_iter().flatten()) {
        let Described { size, sha256, crc, image } = described?;
        images.extend(image);
        match path.as_str() {
            "bin/spacelift-launcher" => targets.push("x86_64".to_owned()),
            "bin/spacelift-launcher-aarch64" => targets.push("aarch64".to_owned()),
            _ => {}
        }
        files.push(manifest::File { size, sha256, mode: Mode::of(&path), kind: manifest::Kind::of(&path), path });
        kept.push((source, crc));
    }
    targets.sort();
    images.sort_by(|a: &manifest::Image, b| a.name.cmp(&b.name));
    let manifest = Manifest {
        format: Manifest::current_format(),
        product: release.product.clone(),
        version: release.version.clone(),
        sequence: release.sequence,
        channel: release.channel.clone(),
        development: release.development,
        commit: release.commit.clone(),
        modified: release.modified,
        source_date: release.source_date,
        source: release.source.clone(),
        minimum_upgrade_from: release.minimum_upgrade_from.clone(),
        threshold: release.threshold,
        targets,
        files,
        images,
    };
    Ok((manifest, kept))
}

fn describe_file(path: &ReleasePath, source: &Source) -> Result<Described, Error> {
    let read = |error| Error::Read { path: source.path(), source: error };
    interrupt::check().map_err(read)?;
    let is_image = manifest::Kind::of(path) == manifest::Kind::Image;
    let contents = Checked::new(source.open()?);
    let mut reader = if is_image { HashingReader::beside(contents) } else { HashingReader::new(contents) };
    let image = if is_image {
        let summary =
            image::summarize(&mut reader).map_err(|error| Error::Image { path: source.path(), source: error })?;
        let name = path.as_str().trim_start_matches("container-images/").trim_end_matches(".tar");
        Some(manifest::Image {
            name: name.to_owned(),
            path: path.clone(),
            digest: summary.digest.to_string(),
            platforms: platform_names(&summary),
        })
    } else {
        None
    };
    reader.drain().map_err(read)?;
    let (contents, sha256, size) = reader.finish();
    Ok(Described { size, sha256, crc: contents.crc.sum(), image })
}

/// The platforms of an image as the manifest lists them.
pub(crate) fn platform_names(summary: &image::ImageSummary) -> Vec<String> {
    summary.platforms.iter().map(|image| image.platform.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_while_it_is_packed_is_no_release() {
        let directory = tempfile::tempdir().unwrap();
        let stage = directory.path().join("stage");
        fs::create_dir(&stage).unwrap();
        // A regular file with as many bytes each time, and never the same ones.
        let changing = PathBuf::from("/proc/sys/kernel/random/uuid");
        let release = Release {
            product: "example".into(),
            version: "v1.0.0".parse().unwrap(),
            sequence: 1,
            channel: "stable".into(),
            development: true,
            commit: "unknown".into(),
            modified: false,
            source_date: 1_700_000_000,
            source: "https://example.com/example".into(),
            minimum_upgrade_from: None,
            threshold: 1,
            certificates: vec![],
            stage,
            files: vec![("payload/changing".parse().unwrap(), changing.clone())],
            images: vec![],
        };
        let error = pack(&release, directory.path(), 1).unwrap_err();
        assert!(matches!(&error, Error::NotPackable { path, .. } if *path == changing), "{error}");
        assert!(error.to_string().contains("it changed while it was packed"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "only the stage is there");
    }
}
