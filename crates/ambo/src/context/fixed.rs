//! Values that are drawn once: recorded without a commit of their own, the same in every replay.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::run::{Run, Stop};
use crate::error::{Error, Result};
use crate::payload;

/// The recorded value of a position, or a new one.
pub(crate) fn fixed<T>(
    run: &Arc<Run>,
    position: Arc<str>,
    name: &'static str,
    draw: impl FnOnce() -> T,
) -> Result<T>
where
    T: Serialize + DeserializeOwned,
{
    let recorded = run.replay(&position, name).and_then(|checkpoint| {
        let output = checkpoint.as_ref().map(|checkpoint| checkpoint.output.as_deref().unwrap_or("null"));
        output.map(|output| payload::decode(&format!("the recorded {name}"), output)).transpose()
    });
    match recorded {
        Ok(Some(value)) => Ok(value),
        Ok(None) => {
            let value = draw();
            if run.refusal().is_some() && run.told() > 0 {
                // The body only ends: a run that goes on after all, by a retry, comes this way no more.
                return Ok(value);
            }
            let json = payload::encode("a drawn value", &value)?;
            run.record(position, name.into(), Ok(json), Duration::ZERO);
            Ok(value)
        }
        Err(error) => {
            let copy = Error::new(error.code(), error.text());
            run.stop(Stop::Dead(error));
            Err(copy)
        }
    }
}
