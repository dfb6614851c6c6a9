//! Large payloads in an object store: written before the fact that refers to them, deleted after it has left.
//!
//! The day of its writing is the folder of an object. A fact that refers to it is never older than its partition, so that what
//! lies before the oldest partition is referred to only by runs that were carried over, or forked: those are asked for.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::error::{Code, Error, Result};
use crate::store::connect::Session;
use crate::store::{Schema, object};

/// Between two looks for what is past the retention.
const SWEEP: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Payloads of more bytes go here.
    pub(super) over: usize,
    sweeping: Arc<AtomicBool>,
    swept: Arc<Mutex<Option<Instant>>>,
}

impl Objects {
    pub(super) fn new(store: Arc<dyn ObjectStore>, over: usize) -> Self {
        Objects { store, over, sweeping: Arc::default(), swept: Arc::default() }
    }

    /// Writes; answers the path. Nobody else writes to it.
    pub(super) async fn put(&self, content: Vec<u8>) -> Result<String> {
        // The clock of this machine names the folder only: what it holds is deleted by the store's own times too.
        let day = Timestamp::now().strftime("%Y-%m-%d").to_string();
        let path = format!("{day}/{}", uuid::Uuid::new_v4().simple());
        self.store
            .put(&Path::from(path.as_str()), content.into())
            .await
            .map_err(|error| trouble(&path, error))?;
        Ok(path)
    }

    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let Some(place) = read_path(path) else {
            let text = "a recorded payload refers to something that is not an object of Ambo's";
            return Err(Error::new(Code::ObjectMissing, text));
        };
        let got = self.store.get(&place).await.map_err(|error| trouble(path, error))?;
        Ok(got.bytes().await.map_err(|error| trouble(path, error))?.to_vec())
    }

    /// See [`Vault::sweep`](super::Vault::sweep).
    pub(super) fn sweep(&self, session: Session, schema: Schema) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_some_and(|at| at.elapsed() < SWEEP) || self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        *swept = Some(Instant::now());
        let this = self.clone();
        tokio::spawn(async move {
            match this.delete_old(&session, &schema).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "objects past the retention were deleted"),
                Err(error) => {
                    tracing::warn!(%error, "cannot delete objects past the retention; trying again later")
                }
            }
            this.sweeping.store(false, Ordering::Release);
        });
    }

    async fn delete_old(&self, session: &Session, schema: &Schema) -> Result<u64> {
        let listed = self.store.list_with_delimiter(None).await.map_err(|error| trouble("", error))?;
        let Some(horizon) = object::horizon(session, schema).await? else { return Ok(0) };
        let last = horizon.strftime("%Y-%m-%d").to_string();
        let old: Vec<Path> = listed
            .common_prefixes
            .into_iter()
            .filter(|day| is_day(day.as_ref()) && day.as_ref() < last.as_str())
            .collect();
        if old.is_empty() {
            return Ok(0);
        }
        let kept: HashSet<String> = object::kept(session, schema).await?.into_iter().collect();
        let kept = Arc::new(kept);
        let mut count = 0;
        for day in old {
            let kept = kept.clone();
            let objects = self.store.list(Some(&day)).try_filter(move |object| {
                let written = object.last_modified.timestamp();
                std::future::ready(written < horizon.as_second() && !kept.contains(object.location.as_ref()))
            });
            let paths = objects.map_ok(|object| object.location).boxed();
            let mut deleted = self.store.delete_stream(paths);
            while let Some(path) = deleted.next().await {
                match path {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => count += 1,
                    Err(error) => return Err(trouble(day.as_ref(), error)),
                }
            }
        }
        Ok(count)
    }
}

fn is_day(folder: &str) -> bool {
    folder.len() == 10
        && folder.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// A path that [`Objects::put`] could have made: what SQL wrote must not lead out of the folders.
fn read_path(path: &str) -> Option<Path> {
    let (day, name) = path.split_once('/')?;
    (is_day(day) && name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| Path::from(path))
}

fn trouble(path: &str, error: object_store::Error) -> Error {
    let (code, text) = match &error {
        object_store::Error::NotFound { .. } => (Code::ObjectMissing, format!("there is no object {path}")),
        _ => (Code::Unavailable, format!("the object store does not answer for {path:?}")),
    };
    Error::new(code, text).with_source(error)
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("store", &self.store.to_string()).field("over", &self.over).finish()
    }
}
