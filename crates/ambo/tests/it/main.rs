//! Integration tests: one binary, a database a test, on the private PostgreSQL that `cargo xtask test` starts.

mod child;
mod crash;
mod harness;
mod marks;
mod random;
mod smoke;
mod workflows;
