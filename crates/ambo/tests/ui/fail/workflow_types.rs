//! Types that cannot be recorded.
#![allow(unused)]

use ambo::{Ctx, Result};

#[ambo::workflow]
async fn no_result(cx: Ctx, order: u64) -> u64 {
    order
}

struct Receipt;

#[ambo::workflow]
async fn output(cx: Ctx, order: u64) -> Result<Receipt> {
    Ok(Receipt)
}

struct Order;

#[ambo::workflow]
async fn input(cx: Ctx, order: Order) -> Result<()> {
    Ok(())
}

fn main() {}
