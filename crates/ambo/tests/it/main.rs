//! Integration tests: one binary, a database a test, on the private PostgreSQL that `cargo xtask test` starts.

mod child;
mod crash;
mod docs;
mod fence;
mod harness;
mod marks;
mod outage;
mod random;
mod recovery;
mod smoke;
mod workflows;
