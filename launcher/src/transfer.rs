//! What a worker downloads and uploads, by way of the launcher: only it has the pool's key.

use std::io::Read as _;
use std::path::PathBuf;

use launcher_wire::api::Object;
use launcher_wire::key::PoolKey;
use tokio::sync::mpsc;

use crate::upload::{Closed, Error, Parcel, Store, get_sealed};

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
}

impl Transfer {
    /// `directory` is where uploads wait, encrypted, until the object store has them.
    #[must_use]
    pub fn new(store: Store, key: PoolKey, directory: PathBuf) -> Self {
        Self { store, key, directory }
    }

    /// The source.
    ///
    /// # Errors
    /// It is not to be had.
    pub async fn source(&self) -> Result<Parts, Error> {
        let mut download = self.store.get(Object::Source).await?;
        let (sender, parts) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            loop {
                let part = match download.chunk().await {
                    Ok(Some(part)) => Ok(part.as_ref().to_vec()),
                    Ok(None) => return,
                    Err(error) => Err(error),
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
        tokio::task::spawn_blocking(move || {
            loop {
                let mut part = vec![0; PART];
                let part = match opened.read(&mut part) {
                    Ok(0) => return,
                    Ok(count) => {
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
    pub fn parcel(&self) -> Result<Parcel, Error> {
        Parcel::begin(&self.directory, &self.key.public())
    }

    /// Stores an upload.
    ///
    /// # Errors
    /// Control plane or object store refuse for good.
    pub async fn store(&self, parcel: Closed, object: Object) -> Result<u64, Error> {
        parcel.store(&self.store, object).await
    }
}
