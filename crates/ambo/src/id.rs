//! Ids: of runs, made in the database, and of workers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Code, Error};

/// The id of a run: a UUIDv7 made in the database, so that the order of ids is the order of time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// The id as a UUID.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// The last sixteen bits of an id, by which notifications name runs: enough to find them among one's own, and too little to know an
/// id by.
pub(crate) fn tag(run: &Uuid) -> u16 {
    run.as_u128() as u16
}

/// The tags in a notification. Anybody may have sent it: what makes no sense is none.
pub(crate) fn tags(payload: &str) -> impl Iterator<Item = u16> {
    payload.split(',').filter_map(|tag| u16::from_str_radix(tag, 16).ok())
}

impl From<Uuid> for RunId {
    fn from(id: Uuid) -> Self {
        RunId(id)
    }
}

impl FromStr for RunId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Uuid::parse_str(text).map(RunId).map_err(|_| {
            Error::new(Code::InvalidOption, "a run id is a UUID like 019ab3c2-7f00-7000-8000-000000000000")
        })
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({})", self.0)
    }
}

/// The id of a worker: a number never used before in this installation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerId(pub(crate) i64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
