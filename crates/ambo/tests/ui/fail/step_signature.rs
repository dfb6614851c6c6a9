//! Functions of which no step can be made.
#![allow(unused)]

use ambo::{Ctx, Result};

#[ambo::step]
fn not_async(order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::step]
async fn with_context(cx: &mut Ctx<'_>, order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::step]
async fn changes(order: &mut u64) -> Result<()> {
    *order += 1;
    Ok(())
}

#[ambo::step]
async fn generic<T: Send>(order: T) -> Result<()> {
    Ok(())
}

#[ambo::step]
async fn no_result(order: u64) {}

#[ambo::step(retries = 5)]
async fn unknown_option(order: u64) -> Result<u64> {
    Ok(order)
}

fn main() {}
