//! The ring of keys that payloads are encrypted with: XChaCha20-Poly1305, whose nonces are long enough to be drawn at random.

use std::fmt;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::digest;
use super::place::Place;
use crate::error::{Code, Error, Result};

/// Bytes of a nonce, which stand before the ciphertext.
const NONCE: usize = 24;

/// Keys of 32 bytes, each with an id of 1 to 40 letters, digits, `.`, `_` and `-`, which is recorded in the clear. New payloads
/// are encrypted with the current key; those of the others can be read.
///
/// To rotate: give the new key to all programs as an [older](Keyring::older) one first, then make it the current one everywhere,
/// and drop the old one when the last run of its time has left with the retention.
#[derive(Clone)]
pub struct Keyring {
    /// The current one first.
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: String,
    cipher: XChaCha20Poly1305,
    digest: Hmac<Sha256>,
}

impl Keyring {
    /// A ring of one key, the current one.
    pub fn new(id: impl Into<String>, key: [u8; 32]) -> Self {
        Keyring { keys: vec![Key::new(id.into(), &key)] }
    }

    /// Adds a key that payloads were, or will be, encrypted with.
    pub fn older(mut self, id: impl Into<String>, key: [u8; 32]) -> Self {
        self.keys.push(Key::new(id.into(), &key));
        self
    }

    /// Reads a ring as an environment variable may hold it: `ID:BASE64,ID:BASE64,…`, the current key first.
    ///
    /// # Errors
    /// `AMBO041` for what is not that; the error does not show any of it.
    pub fn parse(text: &str) -> Result<Self> {
        use base64::Engine as _;
        let wrong = || {
            let text = "a ring of keys is ID:BASE64,ID:BASE64,..., each of 32 bytes; an id has 1 to 40 letters, digits, '.', '_', '-'";
            Error::new(Code::Configuration, text)
        };
        let mut keys: Vec<Key> = Vec::new();
        for part in text.split(',') {
            let (id, key) = part.trim().split_once(':').ok_or_else(wrong)?;
            let key = base64::engine::general_purpose::STANDARD_NO_PAD
                .decode(key.trim_end_matches('='))
                .map_err(|_| wrong())?;
            let key: [u8; 32] = key.try_into().map_err(|_| wrong())?;
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if id.is_empty() || id.len() > 40 || !id.chars().all(good) || keys.iter().any(|key| key.id == id)
            {
                return Err(wrong());
            }
            keys.push(Key::new(id.to_owned(), &key));
        }
        Ok(Keyring { keys })
    }

    /// The id of the current key.
    pub(super) fn current(&self) -> &str {
        &self.keys[0].id
    }

    pub(super) fn seal(&self, place: &Place<'_>, text: &[u8]) -> Result<Vec<u8>> {
        let key = &self.keys[0];
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| {
            Error::new(Code::Undecipherable, "the system gives no randomness to encrypt with")
        })?;
        let aad = key.bound_to(place);
        let sealed = key.cipher.encrypt(&XNonce::from(nonce), Payload { msg: text, aad: aad.as_bytes() });
        let sealed = sealed.map_err(|_| Error::new(Code::Undecipherable, "a payload cannot be encrypted"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    pub(super) fn open(&self, place: &Place<'_>, id: &str, content: &[u8]) -> Result<Vec<u8>> {
        let key = self.keys.iter().find(|key| key.id == id).ok_or_else(|| super::unknown_key(id))?;
        let broken = || {
            let text = format!(
                "a payload ({place}) cannot be decrypted with the key {id:?}: \
                 the key is another one of that name, or what is recorded was changed"
            );
            Error::new(Code::Undecipherable, text)
        };
        let (nonce, sealed) = content.split_first_chunk::<NONCE>().ok_or_else(broken)?;
        let aad = key.bound_to(place);
        let payload = Payload { msg: sealed, aad: aad.as_bytes() };
        key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| broken())
    }

    /// What tells whether two payloads are equal to whoever cannot read them: one for each key of the ring, the current
    /// first, so that a payload of before a rotation equals one of after it.
    pub(super) fn digests(&self, json: &str) -> Vec<String> {
        let canonical = digest::canonical(json);
        let of = |key: &Key| {
            let mut mac = key.digest.clone();
            mac.update(canonical.as_bytes());
            digest::hex(&mac.finalize().into_bytes())
        };
        self.keys.iter().map(of).collect()
    }
}

impl Key {
    fn new(id: String, key: &[u8; 32]) -> Self {
        // A key of its own for digests: one key, one use.
        let mut derive = mac(key);
        derive.update(b"ambo digests");
        let digest = mac(&derive.finalize().into_bytes());
        Key { id, cipher: XChaCha20Poly1305::new(key.into()), digest }
    }

    fn bound_to(&self, place: &Place<'_>) -> String {
        format!("ambo {} {place}", self.id)
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("a key of any length will do"))
}

/// Ids only.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}
