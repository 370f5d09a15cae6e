//! What a worker downloads and uploads, by way of the launcher: only it has the pool's key.

use std::io::{self, Read as _};
use std::path::PathBuf;

use launcher_wire::api::Object;
use launcher_wire::key::PoolKey;
use sha2::{Digest as _, Sha256};
use spacelift_worker::archive::MAXIMUM_PACKED;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::slot;
use crate::upload::{Closed, Error, Parcel, Store, file_error, get_sealed};

/// Parts that the worker has not taken yet.
const QUEUE: usize = 4;
/// Bytes of a part.
const PART: usize = 64 * 1024;

/// Parts of a download. Without an error up to its end it is complete.
pub type Parts = mpsc::Receiver<Result<Vec<u8>, Error>>;

/// The object store, for one stage of a run, with the pool's key.
#[derive(Debug, Clone)]
pub struct Transfer {
    store: Store,
    key: PoolKey,
    directory: PathBuf,
    limit: u64,
}

impl Transfer {
    /// `directory` is where uploads wait, encrypted, until the object store has them, and a source until its digest is known.
    #[must_use]
    pub fn new(store: Store, key: PoolKey, directory: PathBuf) -> Self {
        Self { store, key, directory, limit: MAXIMUM_PACKED }
    }

    /// With another limit of a download's bytes than [`MAXIMUM_PACKED`].
    #[must_use]
    pub fn limited_to(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// The source: all of it is here, and is what the control plane named, before the first part is given.
    ///
    /// # Errors
    /// It is not to be had, another one, or larger than any that is unpacked; or there is no room for it.
    pub async fn source(&self) -> Result<Parts, Error> {
        let failed = |reason: String| Error::Download { object: "the source".to_owned(), reason };
        let expected = slot::kept_source(&self.directory).map_err(|error| failed(error.to_string()))?;
        let mut download = self.store.get(Object::Source).await?;
        let no_room = |error: io::Error| file_error("keep the source in", &self.directory, &error);
        // Without a name: nothing is left of it whatever happens.
        let file = tempfile::tempfile_in(&self.directory).map_err(no_room)?;
        let mut kept = tokio::fs::File::from_std(file);
        let (mut digest, mut size) = (Sha256::new(), 0);
        while let Some(part) = download.chunk().await? {
            let part = part.as_ref();
            size += part.len() as u64;
            // A length that the store says is known before any of it takes room.
            if size.max(download.length().unwrap_or_default()) > self.limit {
                return Err(Error::TooLarge { object: "the source".to_owned(), limit: self.limit });
            }
            digest.update(part);
            kept.write_all(part).await.map_err(no_room)?;
        }
        // What is still on its way to the disk would fail where nobody says why.
        kept.flush().await.map_err(no_room)?;
        let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if !found.eq_ignore_ascii_case(&expected) {
            return Err(failed(format!(
                "it is not what the control plane named: its SHA-256 is {found} and not {expected}. Somebody may have \
                 exchanged it: look at who may write to the object store"
            )));
        }
        kept.rewind().await.map_err(no_room)?;
        let (sender, parts) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            loop {
                let mut part = vec![0; PART];
                let part = match kept.read(&mut part).await {
                    Ok(0) => return,
                    Ok(count) => {
                        part.truncate(count);
                        Ok(part)
                    }
                    Err(error) => Err(Error::File(error.to_string())),
                };
                let failed = part.is_err();
                if sender.send(part).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(parts)
    }

    /// The workspace that an earlier stage left, decrypted.
    ///
    /// # Errors
    /// It is not to be had, or not encrypted to this pool.
    pub async fn workspace(&self) -> Result<Parts, Error> {
        let mut opened = get_sealed(&self.store, Object::Workspace, &self.key).await?;
        let (sender, parts) = mpsc::channel(QUEUE);
        let limit = self.limit;
        tokio::task::spawn_blocking(move || {
            let mut left = limit;
            loop {
                let mut part = vec![0; PART];
                let part = match opened.read(&mut part) {
                    Ok(0) => return,
                    Ok(count) if count as u64 > left => {
                        Err(Error::TooLarge { object: "the workspace".to_owned(), limit })
                    }
                    Ok(count) => {
                        left -= count as u64;
                        part.truncate(count);
                        Ok(part)
                    }
                    Err(error) => {
                        let reason = format!("{error}. It was changed, or is not of this pool");
                        Err(Error::Download { object: "the workspace".to_owned(), reason })
                    }
                };
                let failed = part.is_err();
                if sender.blocking_send(part).is_err() || failed {
                    return;
                }
            }
        });
        Ok(parts)
    }

    /// Begins an upload: what is written to it is encrypted.
    ///
    /// # Errors
    /// The disk fails.
    pub fn parcel(&self, object: Object) -> Result<Parcel, Error> {
        Parcel::begin(&self.directory, &self.key, &self.store, object)
    }

    /// Stores an upload.
    ///
    /// # Errors
    /// Control plane or object store refuse for good.
    pub async fn store(&self, parcel: Closed) -> Result<u64, Error> {
        parcel.store(&self.store).await
    }
}
