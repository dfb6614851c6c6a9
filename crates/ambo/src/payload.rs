//! Payloads: JSON as text, with a limit on its size.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error};

/// The largest input, output or error that is recorded, in bytes of JSON. A claim brings up to 500 inputs at once,
/// and the journal holds outputs in memory: without a limit one payload could end a worker.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Recorded JSON, as the text it was.
pub(crate) type Json = Box<str>;

pub(crate) fn encode(what: &str, value: &impl Serialize) -> Result<Json, Error> {
    let text = serde_json::to_string(value).map_err(|error| {
        Error::new(Code::NotEncodable, format!("{what} cannot be written as JSON")).with_source(error)
    })?;
    if text.len() > PAYLOAD_BYTES_MAX {
        return Err(Error::new(
            Code::TooLarge,
            format!("{what} has {} bytes; the limit is {PAYLOAD_BYTES_MAX}", text.len()),
        ));
    }
    Ok(text.into_boxed_str())
}

pub(crate) fn decode<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            Code::NotDecodable,
            format!(
                "{what} does not fit `{}` (line {} column {})",
                std::any::type_name::<T>(),
                error.line(),
                error.column()
            ),
        )
    })
}
