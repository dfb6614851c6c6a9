//! Updates as the run that they are sent to sees them: a signal that wants an answer, and the event that gives it.

use std::fmt;

use serde::{Deserialize, Serialize};

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
