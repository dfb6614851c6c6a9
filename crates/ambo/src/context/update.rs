//! Updates as the run that they are sent to sees them: a signal that wants an answer, and the event that gives it.

use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};
use crate::payload::Json;
use crate::vault::envelope;

/// What the keys of answers begin with.
const ANSWER: &str = "ambo:answer ";
/// The longest key of an update: with the prefix it is the key of an event.
pub(crate) const KEY_MAX: usize = 180;

/// A request that was sent to a run with [`Client::update`](crate::Client::update). Answer it with
/// [`Ctx::answer`](crate::Ctx::answer).
#[derive(Serialize, Deserialize)]
pub struct Update<T> {
    /// What was sent.
    pub value: T,
    pub(crate) key: String,
}

impl<T> Update<T> {
    /// The key of the request: one key is one request, however often it was sent.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl<T> fmt::Debug for Update<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The event under which the answer to a request is published.
pub(crate) fn answer_key(key: &str) -> String {
    format!("{ANSWER}{key}")
}

/// The key of the request that was sent under this key of a signal; `None`: it is no request.
pub(crate) fn key_in(signal_key: &str) -> Option<&str> {
    signal_key.strip_prefix(ANSWER)
}

/// The key of a request whose value may be anything; `None`: it is no request. One that only looks so, a plain signal, would
/// give its sender's answer to somebody else.
pub(crate) fn key_of<'k>(signal_key: &'k str, payload: &str) -> Option<&'k str> {
    let key = key_in(signal_key)?;
    serde_json::from_str::<Update<IgnoredAny>>(payload).ok().filter(|update| update.key == key).map(|_| key)
}

/// What stands in the place of an answer to a request that the run cannot take. No answer that a run gives begins so: it is
/// refused as an envelope is.
#[derive(Serialize, Deserialize)]
struct Refusal {
    #[serde(rename = "ambo:refused")]
    error: Error,
}

/// `wanted`: the type of the update that the run waits for, if it waits for one.
pub(crate) fn refusal(key: &str, topic: &str, wanted: Option<&str>) -> Json {
    let text = match wanted {
        Some(wanted) => {
            format!("the value of the update {key:?} does not fit `{wanted}`, which the run waits for")
        }
        None => {
            format!(
                "under {topic:?} the run waits for signals, and answers none: send one instead of the update {key:?}"
            )
        }
    };
    let refusal = Refusal { error: Error::new(Code::UnfitMessage, text) };
    serde_json::to_string(&refusal).unwrap_or_else(|_| unreachable!("texts")).into()
}

/// Why a request was refused, if what was recorded as its answer says that.
pub(crate) fn refused(answer: &str) -> Option<Error> {
    let refusal =
        serde_json::from_str::<Refusal>(Some(answer).filter(|json| envelope::is_one(json))?).ok()?;
    Some(refusal.error)
}
