//! Attributes that a run sets on itself, to be found by.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::engine::executor::encode_error;
use crate::engine::journal::Fact;
use crate::engine::run::{Run, Stop};
use crate::error::{Code, Error, Result};
use crate::payload::{self, Json};
use crate::store::claim::Checkpoint;
use crate::store::flush::NewAttribute;
use crate::vault::Vault;

/// Above this an attribute is data, and belongs into the input, a step or an event: it is indexed.
const BYTES_MAX: usize = 8 * 1024;
/// All that a run sets on itself, keys and values: a row is read and written whole.
const ALL_BYTES_MAX: usize = 64 * 1024;

/// What the names of attributes that were set begin with.
const NAME: &str = "ambo:attribute ";

/// The key of the attribute that a checkpoint says was set, and its bytes.
pub(crate) fn was_set(checkpoint: &Checkpoint) -> Option<(String, usize)> {
    let key = checkpoint.name.strip_prefix(NAME)?;
    Some((key.to_owned(), key.len() + checkpoint.output.as_ref()?.len()))
}

/// Those that a run is given with its enqueue. They stay in the database, as they are: it searches them.
pub(crate) fn given(attributes: &impl Serialize) -> Result<Json> {
    let json = Vault::new().encode("the attributes", attributes)?;
    if json.contains("\\u0000") {
        return Err(Error::new(Code::NotEncodable, "the attributes hold a NUL, which an index cannot"));
    }
    Ok(json)
}

/// Sets it: the value and the checkpoint that says so are one fact.
pub(crate) fn set<T: Serialize>(run: &Arc<Run>, position: Arc<str>, key: &str, value: &T) -> Result<()> {
    if key.is_empty() || key.len() > 180 || key.contains('\0') {
        let text =
            format!("the key of an attribute has 1 to 180 bytes and no NUL; this one has {}", key.len());
        return Err(Error::new(Code::InvalidName, text));
    }
    let name = format!("{NAME}{key}");
    let value = payload::encode("the value of an attribute", value)?;
    if value.len() > BYTES_MAX {
        let text =
            format!("the value of attribute {key:?} has {} bytes; the limit is {BYTES_MAX}", value.len());
        return Err(Error::new(Code::TooLarge, text));
    }
    if value.contains("\\u0000") {
        let text = format!("the value of attribute {key:?} holds a NUL, which an index cannot");
        return Err(Error::new(Code::NotEncodable, text));
    }
    match run.replay(&position, &name) {
        Ok(Some(Checkpoint { error: Some(error), .. })) => {
            return Err(payload::decode("a recorded error", &error)?);
        }
        Ok(Some(_)) => return Ok(()),
        Ok(None) => {}
        Err(error) => {
            let copy = Error::new(error.code(), error.text());
            run.stop(Stop::Dead(error));
            return Err(copy);
        }
    }
    if !run.admits()? {
        return Ok(());
    }
    let all = run.history.set_attribute(key, key.len() + value.len());
    if all > ALL_BYTES_MAX {
        let text = format!(
            "the attributes that the run has set would have {all} bytes; the limit is {ALL_BYTES_MAX}"
        );
        let error = Error::new(Code::TooLarge, text);
        run.record(position, name.into(), Err(encode_error(&error)), Duration::ZERO);
        return Err(error);
    }
    let checkpoint = run.checkpoint(position, name.into(), value.clone());
    run.give(Fact::Attribute(checkpoint, NewAttribute { key: key.into(), value }));
    Ok(())
}
