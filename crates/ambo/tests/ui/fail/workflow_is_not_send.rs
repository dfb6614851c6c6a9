//! A workflow moves between threads.
#![allow(unused)]

use std::rc::Rc;

use ambo::{Ctx, Result};

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<u64> {
    let order = Rc::new(order);
    cx.step("ship", || async { Ok::<_, ambo::Error>(()) }).await?;
    Ok(*order)
}

fn main() {}
