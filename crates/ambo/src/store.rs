//! Rows in and out: the only code, besides `on`, that speaks SQL. One file a verb, named as its function.

pub(crate) mod admin;
pub(crate) mod claim;
pub(crate) mod claim_queue;
pub(crate) mod connect;
#[cfg(test)]
mod cron;
pub(crate) mod enqueue;
pub(crate) mod flush;
pub(crate) mod migrate;
#[cfg(feature = "object-store")]
pub(crate) mod object;
#[cfg(test)]
mod predecessors;
pub(crate) mod queue;
pub(crate) mod retention;
pub(crate) mod schedule;
pub(crate) mod schema;
pub(crate) mod signal;
pub(crate) mod start;
#[cfg(test)]
mod test_server;
#[cfg(feature = "testing")]
pub(crate) mod testing;
pub(crate) mod timer;
pub(crate) mod transaction;
pub(crate) mod types;
pub(crate) mod why;
pub(crate) mod worker;
pub(crate) mod workflow;

pub(crate) use schema::Schema;
