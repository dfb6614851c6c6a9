//! Integration tests: one binary, a database a test, on the private PostgreSQL that `cargo xtask test` starts.

mod child;
mod crash;
mod docs;
mod drain;
mod fence;
mod guarantees;
mod harness;
mod hostile;
mod marks;
mod outage;
mod random;
mod recovery;
mod smoke;
mod wake;
mod workflows;
mod schema;
mod partition;
