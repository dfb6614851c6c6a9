//! What the database holds in place of a payload: a JSON object of a stated shape, the same for SQL.
//!
//! - encrypted: `{"ambo:sealed": {"key": ID, "text": BASE64, "digests": [HEX, …]}}`; `text` is a nonce of 24 bytes and the
//!   ciphertext (XChaCha20-Poly1305);
//! - stored apart: `{"ambo:object": {"path": PATH, "bytes": N, "key": ID, "digests": [HEX, …]}}`; `bytes` is the size of the
//!   payload, `key` is there if the object is encrypted.
//!
//! `digests` is there where the database compares: two payloads are the same if they have one in common. That of an error
//! goes on with its `code` in the clear.

use serde::{Deserialize, Serialize};

#[cfg(any(feature = "encryption", feature = "object-store"))]
use super::place::Place;
use crate::error::{Code, Error, Result};
#[cfg(any(feature = "encryption", feature = "object-store"))]
use crate::payload::Json;

/// What every envelope begins with, and no payload.
const BEGINS: &str = "{\"ambo:";

/// Whether recorded JSON is an envelope.
pub(crate) fn is_one(json: &str) -> bool {
    json.starts_with(BEGINS)
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Envelope {
    #[serde(rename = "ambo:sealed")]
    Sealed(Sealed),
    #[serde(rename = "ambo:object")]
    Object(Object),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sealed {
    pub(super) key: String,
    text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    digests: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Object {
    pub(super) path: String,
    bytes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    digests: Vec<String>,
}

/// An envelope, whatever stands beside it.
#[derive(Deserialize)]
struct Read {
    #[serde(rename = "ambo:sealed")]
    sealed: Option<Sealed>,
    #[serde(rename = "ambo:object")]
    object: Option<Object>,
}

impl Envelope {
    #[cfg(feature = "encryption")]
    pub(super) fn sealed(key: &str, content: &[u8], digests: Vec<String>) -> Self {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(content);
        Envelope::Sealed(Sealed { key: key.to_owned(), text, digests })
    }

    #[cfg(feature = "object-store")]
    pub(super) fn object(path: String, bytes: usize, key: Option<&str>, digests: Vec<String>) -> Self {
        Envelope::Object(Object { path, bytes, key: key.map(str::to_owned), digests })
    }

    #[cfg(any(feature = "encryption", feature = "object-store"))]
    pub(super) fn write(&self, place: &Place<'_>, json: &str) -> Json {
        let envelope = serde_json::to_string(self).unwrap_or_else(|_| unreachable!("texts and numbers"));
        if place.is_error() { with_code(&envelope, json) } else { envelope.into() }
    }

    /// The envelope, if recorded JSON is one.
    pub(super) fn read(json: &str) -> Result<Option<Self>> {
        if !is_one(json) {
            return Ok(None);
        }
        let read = serde_json::from_str(json).ok().and_then(|read: Read| match read {
            Read { sealed: Some(sealed), .. } => Some(Envelope::Sealed(sealed)),
            Read { object: Some(object), .. } => Some(Envelope::Object(object)),
            _ => None,
        });
        let strange = || {
            let text = "a recorded payload is an envelope of a kind that this program does not know";
            Error::new(Code::NoVault, text)
        };
        read.map(Some).ok_or_else(strange)
    }
}

impl Sealed {
    #[cfg(feature = "encryption")]
    pub(super) fn content(&self) -> Result<Vec<u8>> {
        use base64::Engine as _;
        let broken = |_| Error::new(Code::Undecipherable, "the ciphertext of a payload is not Base64");
        base64::engine::general_purpose::STANDARD_NO_PAD.decode(&self.text).map_err(broken)
    }

    #[cfg(not(feature = "encryption"))]
    pub(super) fn content(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

/// The envelope of an error, with its code beside, where it failed, and whether all is undone: whoever cannot open it sees that much.
#[cfg(any(feature = "encryption", feature = "object-store"))]
fn with_code(envelope: &str, error: &str) -> Json {
    #[derive(Serialize, Deserialize)]
    struct Seen {
        code: String,
        #[serde(default)]
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Vec<String>>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        undone: bool,
    }
    let Some(open) = envelope.strip_suffix('}') else { return envelope.into() };
    let Ok(mut seen) = serde_json::from_str::<Seen>(error) else { return envelope.into() };
    seen.message = "the text of this error is sealed".to_owned();
    let seen = serde_json::to_string(&seen).unwrap_or_else(|_| unreachable!("texts"));
    format!("{open},{}", &seen[1..]).into()
}
