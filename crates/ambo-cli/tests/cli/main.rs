//! The binary `ambo` against a real PostgreSQL: what it prints, how it ends, and what it leaves behind.

mod dead;
mod dev;
mod doctor;
mod harness;
mod limits;
mod many;
mod migrate;
mod operate;
mod replay_check;
mod schedule;
mod workflow;
