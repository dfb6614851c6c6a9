//! Attributes that a run sets on itself, to be found by.

use std::sync::Arc;

use serde::Serialize;

use crate::engine::journal::Fact;
use crate::engine::run::{Run, Stop};
use crate::error::{Code, Error, Result};
use crate::payload;
use crate::store::flush::NewAttribute;

/// Above this an attribute is data, and belongs into the input, a step or an event: it is indexed.
const BYTES_MAX: usize = 8 * 1024;

/// Sets it: the value and the checkpoint that says so are one fact.
pub(crate) fn set<T: Serialize>(run: &Arc<Run>, position: Arc<str>, key: &str, value: &T) -> Result<()> {
    if key.is_empty() || key.len() > 180 || key.contains('\0') {
        let text =
            format!("the key of an attribute has 1 to 180 bytes and no NUL; this one has {}", key.len());
        return Err(Error::new(Code::InvalidName, text));
    }
    let name = format!("ambo:attribute {key}");
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
        Ok(Some(_)) => return Ok(()),
        Ok(None) => {}
        Err(error) => {
            let copy = Error::new(error.code(), error.text());
            run.stop(Stop::Dead(error));
            return Err(copy);
        }
    }
    run.check_refusal()?;
    let checkpoint = run.checkpoint(position, name.into(), value.clone());
    run.give(Fact::Attribute(checkpoint, NewAttribute { key: key.into(), value }));
    Ok(())
}
