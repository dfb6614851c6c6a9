//! The vault: what becomes of payloads between a program and its database. They may be encrypted, and large ones may be stored
//! apart, in an object store; the database holds an envelope in their place.
//!
//! Whatever is written passes through [`Vault::seal`], whatever is read through [`Vault::open`]. A program without a vault
//! pays for one comparison.

#[cfg(any(feature = "encryption", feature = "object-store"))]
mod digest;
pub(crate) mod envelope;
#[cfg(feature = "encryption")]
mod keyring;
#[cfg(feature = "object-store")]
mod objects;
pub(crate) mod place;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::payload::{self, Json, PAYLOAD_BYTES_MAX};
use envelope::Envelope;
#[cfg(feature = "encryption")]
pub use keyring::Keyring;
#[cfg(feature = "object-store")]
use objects::Objects;
use place::Place;

/// The largest payload that goes to an object store, in bytes of JSON: a worker holds it in memory as a whole.
pub const OBJECT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a program does with its payloads before they are recorded; see the guide, `docs/guide/payloads.md`.
///
/// All programs that work with the same runs are configured alike. The empty vault, the default, records payloads as they are.
///
/// # Example
/// ```
/// # #[cfg(all(feature = "encryption", feature = "object-store"))] {
/// # let (new, old) = ([7; 32], [3; 32]);
/// use std::sync::Arc;
/// use ambo::{Keyring, Vault};
///
/// let keys = Keyring::new("2026-11", new).older("2026-05", old);
/// # let folder = std::env::temp_dir();
/// let store = object_store::local::LocalFileSystem::new_with_prefix(folder)?;
/// let vault = Vault::new().keyring(keys).objects(Arc::new(store), 64 * 1024);
/// vault.make_default();       // for every client of this program, and for transactions of its own
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Vault(Option<Arc<Inner>>);

#[derive(Default, Clone)]
struct Inner {
    #[cfg(feature = "encryption")]
    keys: Option<Keyring>,
    #[cfg(feature = "object-store")]
    objects: Option<Objects>,
}

static DEFAULT: OnceLock<Vault> = OnceLock::new();

impl Vault {
    /// An empty vault.
    pub fn new() -> Self {
        Vault(None)
    }

    #[cfg(any(feature = "encryption", feature = "object-store"))]
    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = self.0.map_or_else(Inner::default, Arc::unwrap_or_clone);
        change(&mut inner);
        Vault(Some(Arc::new(inner)))
    }

    /// Encrypts payloads with the current key of a ring, and reads those of its older keys too.
    #[cfg(feature = "encryption")]
    pub fn keyring(self, keys: Keyring) -> Self {
        self.with(|inner| inner.keys = Some(keys))
    }

    /// Puts payloads above `over` bytes of JSON into an object store: a local folder, S3, whatever the crate `object_store` knows.
    /// With one a payload may have [`OBJECT_BYTES_MAX`] bytes, without one [`PAYLOAD_BYTES_MAX`]. `over` is 128 at least, and
    /// [`PAYLOAD_BYTES_MAX`] halved at most.
    ///
    /// Objects lie in folders, a day each; one worker deletes those that are past the retention of the installation.
    #[cfg(feature = "object-store")]
    pub fn objects(self, store: Arc<dyn object_store::ObjectStore>, over: usize) -> Self {
        self.with(|inner| inner.objects = Some(Objects::new(store, over.clamp(128, PAYLOAD_BYTES_MAX / 2))))
    }

    /// Makes this the vault of the program: of clients that connect from now on, and of what is enqueued or sent in the
    /// program's own transactions. Once a process; says whether it was the first time.
    pub fn make_default(self) -> bool {
        DEFAULT.set(self).is_ok()
    }

    /// The vault of the program.
    pub(crate) fn of_process() -> Self {
        DEFAULT.get().cloned().unwrap_or_default()
    }

    /// Whether payloads pass as they are.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    #[cfg(feature = "encryption")]
    fn keys(&self) -> Option<&Keyring> {
        self.0.as_ref()?.keys.as_ref()
    }

    #[cfg(feature = "object-store")]
    fn store(&self) -> Option<&Objects> {
        self.0.as_ref()?.objects.as_ref()
    }

    #[cfg(not(feature = "object-store"))]
    fn store(&self) -> Option<&std::convert::Infallible> {
        None
    }

    /// The largest payload that is taken, in bytes of JSON as the program writes it.
    pub(crate) fn limit(&self) -> usize {
        if self.store().is_some() {
            return OBJECT_BYTES_MAX;
        }
        #[cfg(feature = "encryption")]
        if self.keys().is_some() {
            // Base64 makes four bytes of three, and the envelope is some more.
            return PAYLOAD_BYTES_MAX / 4 * 3 - 4096;
        }
        PAYLOAD_BYTES_MAX
    }

    /// Writes a value as JSON, if it is not too large to be recorded.
    pub(crate) fn encode(&self, what: &str, value: &impl Serialize) -> Result<Json> {
        let json = payload::encode(what, value)?;
        self.check(what, &json)?;
        Ok(json)
    }

    /// Refuses what is too large to be recorded.
    pub(crate) fn check(&self, what: &str, json: &str) -> Result<()> {
        let limit = self.limit();
        if json.len() > limit {
            let text = format!("{what} has {} bytes; the limit is {limit}", json.len());
            return Err(Error::new(Code::TooLarge, text));
        }
        Ok(())
    }

    /// What is recorded of a payload, if that needs nobody but this process; `None`: it belongs into the object store.
    pub(crate) fn seal_here(&self, place: &Place<'_>, json: &str) -> Option<Result<Json>> {
        if self.is_empty() || envelope::is_one(json) || place.is_error() && !place::is_secret(json) {
            return Some(Ok(json.into()));
        }
        #[cfg(feature = "object-store")]
        if self.store().is_some_and(|store| json.len() > store.over) {
            return None;
        }
        Some(self.seal_inline(place, json))
    }

    /// What is recorded of a payload that is not to leave the database.
    pub(crate) fn seal_inline(&self, place: &Place<'_>, json: &str) -> Result<Json> {
        #[cfg(feature = "encryption")]
        if let Some(keys) = self.keys().filter(|_| !envelope::is_one(json)) {
            let sealed = keys.seal(place, json.as_bytes())?;
            let digests = if place.is_compared() { keys.digests(json) } else { Vec::new() };
            return Ok(Envelope::sealed(keys.current(), &sealed, digests).write(place, json));
        }
        let _ = place;
        Ok(json.into())
    }

    /// What is recorded of a payload. What belongs into the object store is there when this returns: the fact that refers to
    /// it comes after.
    pub(crate) async fn seal(&self, place: &Place<'_>, json: &str) -> Result<Json> {
        if let Some(sealed) = self.seal_here(place, json) {
            return sealed;
        }
        #[cfg(feature = "object-store")]
        if let Some(store) = self.store() {
            let bytes = json.len();
            #[cfg(feature = "encryption")]
            if let Some(keys) = self.keys() {
                let path = store.put(keys.seal(place, json.as_bytes())?).await?;
                let digests = if place.is_compared() { keys.digests(json) } else { Vec::new() };
                return Ok(Envelope::object(path, bytes, Some(keys.current()), digests).write(place, json));
            }
            let digests = if place.is_compared() { vec![digest::of(json)] } else { Vec::new() };
            let path = store.put(json.as_bytes().to_vec()).await?;
            return Ok(Envelope::object(path, bytes, None, digests).write(place, json));
        }
        Ok(json.into())
    }

    /// The payload behind what was recorded.
    pub(crate) async fn open<'t>(&self, place: &Place<'_>, recorded: &'t str) -> Result<Cow<'t, str>> {
        match Envelope::read(recorded)? {
            None => Ok(Cow::Borrowed(recorded)),
            Some(Envelope::Sealed(sealed)) => {
                self.decipher(place, &sealed.key, &sealed.content()?).map(Cow::Owned)
            }
            Some(Envelope::Object(object)) => {
                let content = self.fetch(&object.path).await?;
                match &object.key {
                    Some(key) => self.decipher(place, key, &content).map(Cow::Owned),
                    None => text(content).map(Cow::Owned),
                }
            }
        }
    }

    /// [`show`](Vault::show) for a payload within a record.
    pub(crate) async fn show_within(
        &self,
        place: &Place<'_>,
        member: &str,
        recorded: &mut Option<Box<serde_json::value::RawValue>>,
    ) {
        type Record = std::collections::BTreeMap<String, Box<serde_json::value::RawValue>>;
        let Some(mut record) =
            recorded.as_ref().and_then(|json| serde_json::from_str::<Record>(json.get()).ok())
        else {
            return;
        };
        let Some(sealed) = record.remove(member) else { return };
        let mut shown = Some(sealed.clone());
        self.show(place, &mut shown).await;
        // In its place, so that the others keep their order.
        if let (Some(json), Some(shown)) = (recorded.as_mut(), shown)
            && let Ok(opened) =
                serde_json::value::RawValue::from_string(json.get().replacen(sealed.get(), shown.get(), 1))
        {
            *json = opened;
        }
    }

    /// [`open`](Vault::open) for what is shown: what cannot be opened stays as it is.
    pub(crate) async fn show(
        &self,
        place: &Place<'_>,
        recorded: &mut Option<Box<serde_json::value::RawValue>>,
    ) {
        let Some(json) = recorded.as_ref().filter(|json| envelope::is_one(json.get())) else { return };
        let opened = match self.open(place, json.get()).await {
            Ok(opened) => opened.into_owned(),
            Err(error) => {
                tracing::debug!(code = %error.code(), "a payload is shown as it is recorded");
                return;
            }
        };
        if let Ok(opened) = serde_json::value::RawValue::from_string(opened) {
            *recorded = Some(opened);
        }
    }

    #[cfg(feature = "encryption")]
    fn decipher(&self, place: &Place<'_>, key: &str, content: &[u8]) -> Result<String> {
        let keys = self.keys().ok_or_else(|| unknown_key(key))?;
        text(keys.open(place, key, content)?)
    }

    #[cfg(not(feature = "encryption"))]
    fn decipher(&self, _: &Place<'_>, key: &str, _: &[u8]) -> Result<String> {
        Err(unknown_key(key))
    }

    #[cfg(feature = "object-store")]
    async fn fetch(&self, path: &str) -> Result<Vec<u8>> {
        self.store().ok_or_else(|| no_store(path))?.get(path).await
    }

    #[cfg(not(feature = "object-store"))]
    async fn fetch(&self, path: &str) -> Result<Vec<u8>> {
        Err(no_store(path))
    }

    /// Deletes what is past the retention, beside the keeper's other duties; at most one such look at a time.
    #[cfg(feature = "object-store")]
    pub(crate) fn sweep(&self, session: &crate::store::connect::Session, schema: &crate::store::Schema) {
        if let Some(store) = self.store() {
            store.sweep(session.clone(), schema.clone());
        }
    }

    #[cfg(not(feature = "object-store"))]
    pub(crate) fn sweep(&self, _: &crate::store::connect::Session, _: &crate::store::Schema) {}
}

fn unknown_key(key: &str) -> Error {
    let text = format!(
        "a payload is encrypted with the key {key:?}, which this program does not have; \
         give it a vault with that key in its ring"
    );
    Error::new(Code::NoVault, text)
}

fn no_store(path: &str) -> Error {
    let text = format!(
        "a payload lies in the object {path}, and this program has no object store; \
         give it a vault with that store"
    );
    Error::new(Code::NoVault, text)
}

fn text(content: Vec<u8>) -> Result<String> {
    let broken = |_| Error::new(Code::Undecipherable, "a payload that was stored apart is not text");
    String::from_utf8(content).map_err(broken)
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Vault");
        #[cfg(feature = "encryption")]
        shown.field("keys", &self.keys());
        shown.field("objects", &self.store().is_some()).finish()
    }
}

#[cfg(all(test, feature = "encryption", feature = "object-store"))]
mod tests;
