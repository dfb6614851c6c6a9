//! What a payload is of: bound into its ciphertext, so that one cannot be taken for another.
//!
//! Not the run, except for an outcome: a fork takes over the records of the run that it comes from.

use std::fmt;

use uuid::Uuid;

use crate::error::{Code, Error, Result};

/// See the module.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(any(feature = "encryption", feature = "object-store")),
    expect(dead_code, reason = "only what is in an envelope is compared by what the envelope says")
)]
pub(crate) enum Place<'a> {
    /// The input of a run; whether it comes with an idempotency key.
    Input {
        keyed: bool,
    },
    /// The result of a call at a position.
    Step(&'a str),
    /// How a call at a position failed.
    Failure(&'a str),
    Output(Uuid),
    Error(Uuid),
    /// The value of an event, by its key.
    Event(&'a str),
    /// The payload of a signal, by its topic; whether it comes with an idempotency key.
    Signal {
        topic: &'a str,
        keyed: bool,
    },
}

impl Place<'_> {
    /// Whether the database compares such a payload with another.
    #[cfg(any(feature = "encryption", feature = "object-store"))]
    pub(super) fn is_compared(&self) -> bool {
        matches!(self, Place::Input { keyed: true } | Place::Signal { keyed: true, .. })
    }
}

impl Place<'_> {
    /// Whether it is an error.
    pub(super) fn is_error(&self) -> bool {
        matches!(self, Place::Failure(_) | Place::Error(_))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Input { .. } => f.write_str("input"),
            Place::Step(position) => write!(f, "step {position}"),
            Place::Failure(position) => write!(f, "failure {position}"),
            Place::Output(run) => write!(f, "output {run}"),
            Place::Error(run) => write!(f, "error {run}"),
            Place::Event(key) => write!(f, "event {key}"),
            Place::Signal { topic, .. } => write!(f, "signal {topic}"),
        }
    }
}

/// Whether what a call of this name recorded is a payload. What begins with `ambo:` is Ambo's own: times, numbers and ids, which
/// its SQL reads. A consumed signal is recorded as it was sent: sealed already.
pub(crate) fn is_payload(name: &str) -> bool {
    !name.starts_with("ambo:") || name.starts_with("ambo:await ") || name.starts_with("ambo:result ")
}

/// A payload within a record of Ambo's own.
pub(crate) struct Within<'a> {
    pub(crate) place: Place<'a>,
    /// The name under which the record has it.
    pub(crate) member: &'static str,
}

impl<'a> Within<'a> {
    /// What the record of a call of this name has in it.
    pub(crate) fn of(name: &'a str) -> Option<Self> {
        if let Some(topic) = name.strip_prefix("ambo:signal ") {
            return Some(Within { place: Place::Signal { topic, keyed: false }, member: "payload" });
        }
        (name == "ambo:continued").then_some(Within { place: Place::Input { keyed: false }, member: "input" })
    }
}

/// Whether the text of an error is the application's: those of Ambo's own making hold no payloads, and stay legible.
pub(crate) fn is_secret(error: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Coded {
        code: String,
    }
    let code = serde_json::from_str::<Coded>(error).ok().and_then(|coded| Code::parse(&coded.code));
    code.is_none_or(|code| matches!(code, Code::Application | Code::Panicked | Code::NotCompensated))
}

/// What is wrong with a payload that looks like an envelope.
pub(crate) fn refuse(what: &str) -> Result<()> {
    let text = format!("{what} is an object whose first key begins with \"ambo:\"; such keys are Ambo's own");
    Err(Error::new(Code::NotEncodable, text))
}
