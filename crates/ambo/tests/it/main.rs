//! Integration tests: one binary, a database a test, on the private PostgreSQL that `cargo xtask test` starts.

mod alike;
mod batch;
mod change;
mod child;
mod crash;
mod dead;
mod dead_rows;
mod docs;
mod drain;
mod durable;
#[cfg(feature = "testing")]
mod examples;
mod expiry;
mod family;
mod fan_in;
mod fence;
mod forged;
mod fork;
#[cfg(feature = "testing")]
mod grace;
mod graph;
mod guarantees;
mod harness;
mod heads;
mod hostile;
mod hostile_sql;
#[cfg(feature = "sqlx")]
mod job;
mod kept;
mod key;
mod limits;
mod lowered;
mod marks;
mod misfit;
#[cfg(feature = "diesel-async")]
mod on_diesel_async;
mod on_driver;
#[cfg(feature = "sea-orm")]
mod on_sea_orm;
#[cfg(feature = "sqlx")]
mod on_sqlx;
mod on_tokio_postgres;
mod outage;
mod partition;
mod passing;
#[cfg(all(feature = "encryption", feature = "object-store"))]
mod payload;
mod poison;
mod pooled;
mod privilege;
mod program;
mod proxy;
mod purge;
mod queue_chaos;
mod random;
mod recovery;
mod redaction;
mod replay_check;
#[cfg(feature = "testing")]
mod rest;
mod retry;
mod schedule;
mod schema;
mod search;
mod smoke;
#[cfg(feature = "sqlx")]
mod stage;
mod telemetry;
#[cfg(feature = "testing")]
mod testbed;
#[cfg(feature = "testing")]
mod time_limits;
mod timers;
mod to_mend;
mod trace;
#[cfg(feature = "sqlx")]
mod transaction;
#[cfg(feature = "sqlx")]
mod transaction_trouble;
mod turns;
#[cfg(feature = "testing")]
mod unclaimed;
#[cfg(feature = "testing")]
mod undo;
#[cfg(feature = "testing")]
mod undo_beside;
#[cfg(feature = "testing")]
mod undo_end;
#[cfg(feature = "testing")]
mod undo_finish;
mod unfit;
mod update;
mod upgrade;
mod wait;
mod wake;
mod weights;
#[cfg(feature = "sqlx")]
mod why;
mod witness;
mod workflows;
